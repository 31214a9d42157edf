//! Tiles of AMX: whether they may be used, how they are shaped, and their instructions.
//!
//! Stable Rust knows neither the instructions nor the feature, so they are assembly here. Eight tiles of up to sixteen rows of
//! [`ROW_BYTES`] are used in one way: four hold sums, two hold rows and two hold columns, so that each load serves two products.
//!
//! ```text
//!                columns 0..16    columns 16..32
//!                    tile 6           tile 7
//! rows, tile 4       sums 0           sums 1
//! rows, tile 5       sums 2           sums 3
//! ```

use std::arch::asm;
use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::isa::Amx;
use crate::lanes::CACHE_LINE;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// Bytes of a row of a tile.
pub(crate) const ROW_BYTES: usize = CACHE_LINE;

/// What the CPU has, and the system lets this process use.
#[derive(Clone, Copy, Default)]
pub(crate) struct AmxFlags {
    pub tile: bool,
    pub bf16: bool,
    pub int8: bool,
}

impl AmxFlags {
    /// Asks the system, which refuses tiles to processes that have not asked, at the first call.
    pub(crate) fn detect() -> Self {
        static FLAGS: OnceLock<AmxFlags> = OnceLock::new();
        *FLAGS.get_or_init(|| {
            let features = cpu_features();
            if features.tile && registers_enabled() && permitted() { features } else { Self::default() }
        })
    }
}

/// What the CPU says it has.
fn cpu_features() -> AmxFlags {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(0).eax < 7 {
        return AmxFlags::default();
    }
    let edx = __cpuid_count(7, 0).edx;
    let bit = |index: u32| edx >> index & 1 == 1;
    AmxFlags { tile: bit(24), bf16: bit(22), int8: bit(25) }
}

/// Whether the system saves configuration and contents of tiles when it switches threads.
fn registers_enabled() -> bool {
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    const TILES: u64 = 1 << 17 | 1 << 18;
    // SAFETY: AVX is only reported where the system has enabled the instruction.
    is_x86_feature_detected!("avx") && unsafe { enabled_state() } & TILES == TILES
}

/// Asks for the right to use tiles, which holds for all threads of the process.
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request reads and writes no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// What `LDTILECFG` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles of this thread have their shape while this exists; one at a time. Afterwards they cost nothing when threads are switched.
pub(crate) struct Tiles {
    rows: usize,
    /// Not for other threads.
    thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Sums and rows get `rows` rows, at most [`TILE_ROWS`]. All tiles are zeros at first.
    pub(crate) fn new(_: Amx, rows: usize) -> Self {
        assert!((1..=TILE_ROWS).contains(&rows), "a tile of {rows} rows");
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(ROW_BYTES as u16);
        config.rows[..6].fill(rows as u8);
        config.rows[6..8].fill(TILE_ROWS as u8);
        // SAFETY: the proof exists, so tiles may be used; the configuration is 64 bytes and within what palette 1 allows.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
        Self { rows, thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles may be used, since `self` exists.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A product of tiles over some steps, added to sums in memory. A step is what one instruction takes: 32 bf16 or 64 int8 of each row.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Two tiles of rows, `[steps][rows]` of [`ROW_BYTES`] each. The second is not read where [`Product::pair`] is false.
    pub rows: [*const u8; 2],
    pub pair: bool,
    /// `[steps][16][32]` words of four bytes.
    pub columns: *const u8,
    pub steps: usize,
    /// `[tile][2][16][16]` numbers of four bytes: sixteen rows of the left columns, then of the right.
    pub sums: *mut u8,
    /// Bytes that columns are asked for ahead of where they are read; 0: not at all.
    pub ahead: usize,
}

/// Bytes of the sums of one tile of rows.
pub(crate) const SUMS_BYTES: usize = 2 * TILE_ROWS * ROW_BYTES;

/// Bytes of the columns of one step.
pub(crate) const STEP_BYTES: usize = 2 * TILE_ROWS * ROW_BYTES;

/// A kind of numbers that tiles multiply.
pub(crate) trait TileNumbers {
    /// `sums += rows * columns` for two tiles of rows, or for one.
    ///
    /// # Safety
    /// What `product` points to must be there, its sums for this call alone; it has at least one step.
    unsafe fn multiply(tiles: &Tiles, product: Product);

    /// `count` times four products of whole tiles that read no memory, to see how fast tiles are.
    fn multiply_in_registers(tiles: &Tiles, count: usize);
}

macro_rules! tile_numbers {
    ($(#[$doc:meta])* $name:ident, $dot:literal) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl TileNumbers for $name {
            unsafe fn multiply(tiles: &Tiles, product: Product) {
                // SAFETY: the caller's promise, passed on.
                unsafe {
                    if product.pair {
                        multiply!($dot, 1, tiles, product);
                    } else {
                        multiply!($dot, 0, tiles, product);
                    }
                }
            }

            fn multiply_in_registers(_tiles: &Tiles, count: usize) {
                // SAFETY: tiles are shaped, since `_tiles` exists; nothing else is touched.
                unsafe {
                    asm!(
                        "2:",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7"),
                        "dec {count}",
                        "jnz 2b",
                        count = inout(reg) count.max(1) => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        options(nostack, nomem),
                    );
                }
            }
        }
    };
}

/// The loop over steps. Tiles keep nothing from one block of assembly to the next but their shape: sums are loaded and stored.
macro_rules! multiply {
    ($dot:literal, $pair:literal, $tiles:ident, $product:ident) => {
        asm!(
            "tileloadd tmm0, [{sums} + {row}]",
            "tileloadd tmm1, [{sums} + {row} + 1024]",
            concat!(".if ", $pair),
            "tileloadd tmm2, [{sums} + {row} + 2048]",
            "tileloadd tmm3, [{sums} + {row} + 3072]",
            ".endif",
            "2:",
            // Left and right columns lie beside each other, so their rows are twice as far apart.
            "tileloadd tmm6, [{columns} + 2*{row}]",
            "tileloadd tmm4, [{rows} + {row}]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{columns} + 2*{row} + 64]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            concat!(".if ", $pair),
            "tileloadd tmm5, [{more_rows} + {row}]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            ".endif",
            "test {ahead}, {ahead}",
            "jz 3f",
            "add {ahead}, {columns}",
            ".irp line, 0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960",
            "prefetcht1 [{ahead} + \\line]",
            "prefetcht1 [{ahead} + \\line + 1024]",
            ".endr",
            "sub {ahead}, {columns}",
            "3:",
            "add {columns}, 2048",
            "add {rows}, {step}",
            "add {more_rows}, {step}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + 1024], tmm1",
            concat!(".if ", $pair),
            "tilestored [{sums} + {row} + 2048], tmm2",
            "tilestored [{sums} + {row} + 3072], tmm3",
            ".endif",
            row = in(reg) ROW_BYTES,
            step = in(reg) $tiles.rows * ROW_BYTES,
            sums = in(reg) $product.sums,
            rows = inout(reg) $product.rows[0] => _,
            more_rows = inout(reg) $product.rows[1] => _,
            columns = inout(reg) $product.columns => _,
            steps = inout(reg) $product.steps => _,
            ahead = inout(reg) $product.ahead => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}
tile_numbers! {
    /// bf16, summed in f32: sixteen pairs are summed, even and odd elements apart, then both sums are added, then to what was there.
    /// Numbers near zero count as zero.
    Bf16, "tdpbf16ps"
}

tile_numbers! {
    /// int8 with sign, summed in 32 bits.
    Int8, "tdpbssd"
}
