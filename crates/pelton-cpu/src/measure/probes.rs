//! What the machine gives: bytes read per second from memory and from the second-level caches, operations per second in registers.
//!
//! All threads of the pool read or compute at once, in units that are claimed as those of kernels are, so that a bound is what a
//! perfect kernel would reach on the same threads at the same moment.

use std::hint::black_box;
use std::time::Instant;

use pelton_backend::BackendError;

use super::CpuFacts;
use super::roofline::{Limits, median};
use crate::CpuBackend;
use crate::amx::{self, TILE_ROWS, TileNumbers, Tiles};
use crate::buffer::Buffer;
use crate::isa::{Amx, Isa, IsaChoice, Kernel};
use crate::lanes::{LANES, Lanes};

/// Floats of a unit of reading: 1 MiB.
const UNIT_FLOATS: usize = 1 << 18;

/// Floats that are read between two steps of the loop: four cache lines.
const STEP_FLOATS: usize = 4 * LANES;

/// Bytes of last-level cache where the system does not tell: more than most cores have to themselves.
const UNTOLD_LAST_LEVEL_BYTES: u64 = 64 << 20;

/// Bytes of a second-level cache where the system does not tell.
const UNTOLD_SECOND_LEVEL_BYTES: u64 = 256 << 10;

/// The least and most memory that is read in one pass; a pass should be long beside the start of a region.
const PASS_BYTES: std::ops::RangeInclusive<u64> = 96 << 20..=1 << 30;

/// Times a part of a cache is read in one sample: the first brings it there.
const CACHE_PASSES: usize = 48;

/// Instructions of each chain in one unit of computing: some 50 microseconds.
const CHAIN_LENGTH: usize = 20_000;

/// Units of computing for each thread in one sample.
const COMPUTE_UNITS: usize = 8;

/// How many bytes ahead a reading loop asks for lines, beside what the hardware does by itself. The better of them is the limit: which
/// it is differs between machines.
const AHEAD_BYTES: [usize; 2] = [0, 2048];

/// Bytes that no cache of this machine holds: more than twice the last level.
pub(super) fn uncached_bytes(facts: &CpuFacts) -> u64 {
    2 * facts.last_level_bytes().unwrap_or(UNTOLD_LAST_LEVEL_BYTES) + (8 << 20)
}

/// Memory to read, more than caches hold, and what was measured on it so far.
pub struct ReadBandwidth {
    data: Buffer<f32>,
    /// By loop, bytes per second of each pass.
    passes: [Vec<f64>; AHEAD_BYTES.len()],
}

impl ReadBandwidth {
    /// Takes the memory: more than twice the last level of caches that `facts` tell.
    pub fn new(backend: &CpuBackend, facts: &CpuFacts) -> Result<Self, BackendError> {
        let bytes = uncached_bytes(facts).clamp(*PASS_BYTES.start(), *PASS_BYTES.end()) as usize;
        let mut data = Buffer::new("the memory to read", (bytes / 4).next_multiple_of(UNIT_FLOATS))?;
        // Memory that was never written is one page of zeros, mapped again and again.
        backend.pool.run_pieces(data.as_mut_slice(), UNIT_FLOATS, |_, _, piece| piece.fill(1.0));
        Ok(Self { data, passes: Default::default() })
    }

    /// Reads everything once with each kind of loop.
    pub fn measure(&mut self, backend: &CpuBackend) {
        // Loads of the widest registers, whatever kernels are restricted to: memory is the machine's.
        let widest = Isa::detect(IsaChoice::Auto).unwrap_or(backend.isa);
        let data = self.data.as_slice();
        for (ahead, passes) in AHEAD_BYTES.into_iter().zip(&mut self.passes) {
            let start = Instant::now();
            backend.pool.run(data.len() / UNIT_FLOATS, |_, unit| {
                widest.run(Read { data: &data[unit * UNIT_FLOATS..][..UNIT_FLOATS], ahead });
            });
            passes.push((4 * data.len()) as f64 / start.elapsed().as_secs_f64());
        }
    }

    /// Bytes per second: the median pass of the better loop. Panics before the first [`ReadBandwidth::measure`].
    pub fn bytes_per_s(&self) -> f64 {
        self.passes.iter().map(|passes| median(&mut passes.clone())).fold(0.0, f64::max)
    }
}

/// Everything that [`Limits`] are made of, sampled again and again.
pub(super) struct Probes {
    memory: ReadBandwidth,
    /// A part for each thread.
    cache: Buffer<f32>,
    cache_passes: Vec<f64>,
    f32_samples: Vec<f64>,
    bf16_samples: Vec<f64>,
    int8_samples: Vec<f64>,
    int8: Option<Int8Unit>,
}

impl Probes {
    pub(super) fn new(backend: &CpuBackend, facts: &CpuFacts) -> Result<Self, BackendError> {
        // Half of the cache: the other half is for whatever else lives there.
        let part = facts.cache_bytes(2).unwrap_or(UNTOLD_SECOND_LEVEL_BYTES) as usize / 2 / 4;
        let part = (part / STEP_FLOATS).max(1) * STEP_FLOATS;
        let mut cache = Buffer::new("the caches to read", part * backend.threads())?;
        cache.as_mut_slice().fill(1.0);
        Ok(Self {
            memory: ReadBandwidth::new(backend, facts)?,
            cache,
            cache_passes: Vec::new(),
            f32_samples: Vec::new(),
            bf16_samples: Vec::new(),
            int8_samples: Vec::new(),
            int8: Int8Unit::detect(backend.isa),
        })
    }

    /// One sample of each.
    pub(super) fn measure(&mut self, backend: &CpuBackend) {
        self.memory.measure(backend);
        self.cache_passes.push(read_caches(backend, self.cache.as_slice()));
        let isa = backend.isa;
        self.f32_samples.push(computing(backend, f32_operations(isa), || isa.run(Fma)));
        match isa {
            Isa::Avx512Bf16(_) => {
                self.bf16_samples.push(computing(backend, 2 * 32 * WIDE_DOT_CHAINS * CHAIN_LENGTH, || {
                    // SAFETY: the proof exists, so the CPU has AVX-512 BF16.
                    unsafe { dot_bf16() }
                }))
            }
            Isa::Amx(isa) => {
                self.bf16_samples.push(computing(backend, 2 * 32 * TILES_SUMS, || tiles::<amx::Bf16>(isa)))
            }
            _ => {}
        }
        if let Some(unit) = self.int8 {
            self.int8_samples.push(computing(backend, unit.operations(), || unit.run()));
        }
    }

    /// Medians. Panics before the first [`Probes::measure`].
    pub(super) fn limits(&self) -> Limits {
        let middle = |samples: &Vec<f64>| (!samples.is_empty()).then(|| median(&mut samples.clone()));
        Limits {
            memory_bytes_per_s: self.memory.bytes_per_s(),
            cache_bytes_per_s: median(&mut self.cache_passes.clone()),
            f32_per_s: median(&mut self.f32_samples.clone()),
            bf16_per_s: middle(&self.bf16_samples),
            int8_per_s: middle(&self.int8_samples),
        }
    }
}

/// Bytes per second that all threads read, each over and over from its part of `data`.
fn read_caches(backend: &CpuBackend, data: &[f32]) -> f64 {
    let part = data.len() / backend.threads();
    let start = Instant::now();
    backend.pool.run(backend.threads(), |_, unit| {
        for _ in 0..CACHE_PASSES {
            backend.isa.run(Read { data: &data[unit * part..][..part], ahead: 0 });
        }
    });
    (4 * data.len() * CACHE_PASSES) as f64 / start.elapsed().as_secs_f64()
}

/// Operations per second that all threads do, where one call of `work` does `operations`.
fn computing(backend: &CpuBackend, operations: usize, work: impl Fn() + Sync) -> f64 {
    let units = COMPUTE_UNITS * backend.threads();
    let start = Instant::now();
    backend.pool.run(units, |_, _| work());
    (units * operations) as f64 / start.elapsed().as_secs_f64()
}

/// Reads `data` from its begin to its end.
struct Read<'a> {
    data: &'a [f32],
    /// Bytes ahead of the loop that lines are asked for; 0: never.
    ahead: usize,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let mut sums = [isa.splat(0.0); STEP_FLOATS / LANES];
        let (steps, _) = self.data.as_chunks::<STEP_FLOATS>();
        for step in steps {
            for (i, sum) in sums.iter_mut().enumerate() {
                if self.ahead > 0 {
                    isa.prefetch(step.as_ptr().wrapping_byte_add(self.ahead).wrapping_add(i * LANES));
                }
                *sum = isa.add(*sum, isa.read(step, i * LANES));
            }
        }
        black_box(total(isa, sums));
    }
}

/// Independent chains of fused multiply-adds: latency times throughput is eight registers, and a vector is two of AVX2, which has
/// sixteen in all.
const WIDE_CHAINS: usize = 12;
const NARROW_CHAINS: usize = 6;

/// One unit of f32 arithmetic.
struct Fma;

impl Kernel for Fma {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        if L::TILES.wide { multiply_add::<L, WIDE_CHAINS>(isa) } else { multiply_add::<L, NARROW_CHAINS>(isa) }
    }
}

#[inline(always)]
fn multiply_add<L: Lanes, const CHAINS: usize>(isa: L) {
    let factor = isa.splat(black_box(0.5));
    let mut sums = [factor; CHAINS];
    for _ in 0..CHAIN_LENGTH {
        for sum in &mut sums {
            *sum = isa.fma(*sum, factor, factor);
        }
    }
    black_box(total(isa, sums));
}

/// A loop rather than a closure: that would be compiled without the instruction set.
#[inline(always)]
fn total<L: Lanes, const N: usize>(isa: L, sums: [L::V; N]) -> f32 {
    let mut all = isa.splat(0.0);
    for sum in sums {
        all = isa.add(all, sum);
    }
    isa.sum(all)
}

/// Operations of [`Fma`]: as many chains as [`Fma`] has on `isa`.
fn f32_operations(isa: Isa) -> usize {
    let chains = if isa.tiles().wide { WIDE_CHAINS } else { NARROW_CHAINS };
    2 * LANES * chains * CHAIN_LENGTH
}

/// Independent chains of dot products. Twelve are too few for two units of six cycles (bf16 on Zen 5); as many as fit the registers.
const WIDE_DOT_CHAINS: usize = 24;
const NARROW_DOT_CHAINS: usize = 12;

/// Products of tiles in each chain of one unit of computing, of which there are four: some 50 microseconds.
const TILE_CHAIN_LENGTH: usize = 2000;

/// Numbers that are added up by one call of [`tiles`], each of a row of a tile times a column.
const TILES_SUMS: usize = 4 * TILE_ROWS * LANES * TILE_CHAIN_LENGTH;

fn tiles<N: TileNumbers>(isa: Amx) {
    N::multiply_in_registers(&Tiles::new(isa, TILE_ROWS), TILE_CHAIN_LENGTH);
}

/// Instructions that multiply bytes and sum products by four.
#[derive(Debug, Clone, Copy)]
enum Int8Unit {
    /// 64 bytes of each row and column.
    Amx(Amx),
    /// 64 bytes each.
    Avx512Vnni,
    /// 32 bytes each.
    AvxVnni,
}

impl Int8Unit {
    /// The one as wide as the vectors of `isa`.
    fn detect(isa: Isa) -> Option<Self> {
        if let Isa::Amx(isa) = isa {
            return Some(Self::Amx(isa));
        }
        let wide = isa.tiles().wide && is_x86_feature_detected!("avx512vnni");
        let narrow = !matches!(isa, Isa::Scalar(_)) && is_x86_feature_detected!("avxvnni");
        if wide { Some(Self::Avx512Vnni) } else { narrow.then_some(Self::AvxVnni) }
    }

    /// Of one call of [`Int8Unit::run`].
    fn operations(self) -> usize {
        match self {
            Self::Amx(_) => 2 * 64 * TILES_SUMS,
            Self::Avx512Vnni => 2 * 64 * WIDE_DOT_CHAINS * CHAIN_LENGTH,
            Self::AvxVnni => 2 * 32 * NARROW_DOT_CHAINS * CHAIN_LENGTH,
        }
    }

    fn run(self) {
        match self {
            Self::Amx(isa) => tiles::<amx::Int8>(isa),
            // SAFETY: `detect` has found AVX-512 VNNI, and AVX-512 F is part of every wide instruction set.
            Self::Avx512Vnni => unsafe { dot_int8_avx512() },
            // SAFETY: `detect` has found AVX-VNNI, which implies AVX2.
            Self::AvxVnni => unsafe { dot_int8_avx() },
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_int8_avx512() {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8};
    let ones = _mm512_set1_epi8(black_box(1));
    let mut sums = [ones; WIDE_DOT_CHAINS];
    for _ in 0..CHAIN_LENGTH {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, ones, ones);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2,avxvnni")]
fn dot_int8_avx() {
    use std::arch::x86_64::{_mm256_dpbusd_avx_epi32, _mm256_set1_epi8};
    let ones = _mm256_set1_epi8(black_box(1));
    let mut sums = [ones; NARROW_DOT_CHAINS];
    for _ in 0..CHAIN_LENGTH {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, ones, ones);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16() {
    use std::arch::x86_64::{__m512bh, _mm512_dpbf16_ps, _mm512_set1_epi16, _mm512_set1_ps};
    let halves = _mm512_set1_epi16(black_box(0x3f00));
    // SAFETY: 512 bits are 32 bf16.
    let halves = unsafe { std::mem::transmute::<std::arch::x86_64::__m512i, __m512bh>(halves) };
    let mut sums = [_mm512_set1_ps(0.0); WIDE_DOT_CHAINS];
    for _ in 0..CHAIN_LENGTH {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, halves, halves);
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuConfig;

    #[test]
    fn every_instruction_set_is_probed() {
        for isa in IsaChoice::NAMED {
            let Ok(backend) = CpuBackend::new(CpuConfig { threads: Some(2), isa, pin: false }) else { continue };
            let facts = CpuFacts { model: String::new(), cores: 2, flags: Vec::new(), caches: Vec::new() };
            let mut probes = Probes::new(&backend, &facts).unwrap();
            probes.measure(&backend);
            let limits = probes.limits();
            let sane = |per_s: f64| per_s > 1e5 && per_s < 1e15;
            assert!(
                sane(limits.memory_bytes_per_s) && sane(limits.cache_bytes_per_s) && sane(limits.f32_per_s),
                "{limits:?}"
            );
            let has_bf16 = matches!(backend.isa, Isa::Avx512Bf16(_) | Isa::Amx(_));
            assert_eq!(limits.bf16_per_s.is_some_and(sane), has_bf16, "{limits:?}");
            assert_eq!(limits.int8_per_s.is_some_and(sane), Int8Unit::detect(backend.isa).is_some(), "{limits:?}");
        }
    }

    #[test]
    fn uncached_is_more_than_twice_the_last_level() {
        let mut facts = CpuFacts { model: String::new(), cores: 1, flags: Vec::new(), caches: Vec::new() };
        assert!(uncached_bytes(&facts) > 2 * UNTOLD_LAST_LEVEL_BYTES);
        facts.caches.push(super::super::CpuCache { level: 3, bytes: 10 << 20, count: 2 });
        assert_eq!(uncached_bytes(&facts), 48 << 20);
    }
}
