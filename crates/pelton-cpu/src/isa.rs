//! Instruction sets: what this CPU has, proof values, and the crossing into code compiled for one of them.

use std::fmt;

use crate::amx::AmxFlags;
use crate::lanes::{Lanes, Tiles};

/// Which instruction set to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IsaChoice {
    /// The best this CPU has.
    #[default]
    Auto,
    /// Plain code; the definition of every kernel.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ (with the AVX2 set).
    Avx512,
    /// AVX-512 with BF16: bfloat16 weights meet rows rounded to bfloat16.
    Avx512Bf16,
    /// AMX: tiles multiply bfloat16 and int8 weights; else as AVX-512 with BF16.
    Amx,
}

impl IsaChoice {
    /// Every set that can be named, from plain to best.
    pub const NAMED: [IsaChoice; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// CPU flags that the choice needs and this CPU lacks, as `/proc/cpuinfo` spells them. The system is asked for tiles by
    /// this: where it refuses, they are missing.
    pub fn missing(self) -> Vec<&'static str> {
        let avx2: &[Feature] = &[
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
        ];
        let avx512: &[Feature] = &[
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ];
        let bf16: &[Feature] = &[("avx512_bf16", is_x86_feature_detected!("avx512bf16"))];
        let tiles = if self == Self::Amx { AmxFlags::detect() } else { AmxFlags::default() };
        let amx: &[Feature] = &[("amx_tile", tiles.tile), ("amx_bf16", tiles.bf16), ("amx_int8", tiles.int8)];
        let needed: &[&[Feature]] = match self {
            Self::Auto | Self::Scalar => &[],
            Self::Avx2 => &[avx2],
            Self::Avx512 => &[avx2, avx512],
            Self::Avx512Bf16 => &[avx2, avx512, bf16],
            Self::Amx => &[avx2, avx512, bf16, amx],
        };
        needed.iter().copied().flatten().filter(|(_, present)| !present).map(|&(name, _)| name).collect()
    }
}

impl fmt::Display for IsaChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        })
    }
}

impl std::str::FromStr for IsaChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        std::iter::once(Self::Auto)
            .chain(Self::NAMED)
            .find(|choice| choice.to_string() == name)
            .ok_or_else(|| format!("unknown instruction set {name:?}: auto, scalar, avx2, avx512, avx512bf16 or amx"))
    }
}

type Feature = (&'static str, bool);

/// Plain code; needs no proof.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

/// Proof that AVX2, FMA and F16C may be used; only [`Isa::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof that AVX-512 F, BW, VL and DQ may be used; only [`Isa::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof that AVX-512 BF16 may be used beside [`Avx512`]; only [`Isa::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

/// Proof that tiles of bf16 and int8 may be used beside [`Avx512Bf16`]; only [`Isa::detect`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(Avx512Bf16);

/// Proof that AVX-512 VNNI may be used beside [`Avx512`]; only [`Isa::int8`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

/// Proof that AVX-VNNI may be used beside [`Avx2`]; only [`Isa::int8`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

/// What multiplies int8 numbers where tiles do not. Results are the same bits on each, so this needs no choice by name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Int8Isa {
    Scalar(Scalar),
    Avx2(Avx2),
    AvxVnni(AvxVnni),
    Avx512(Avx512),
    Avx512Vnni(Avx512Vnni),
}

/// The instruction set chosen at start.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    Scalar(Scalar),
    Avx2(Avx2),
    Avx512(Avx512),
    Avx512Bf16(Avx512Bf16),
    Amx(Amx),
}

impl Isa {
    /// The wanted set, or the flags this CPU lacks for it. `Auto` always succeeds.
    pub(crate) fn detect(choice: IsaChoice) -> Result<Self, Vec<&'static str>> {
        if choice == IsaChoice::Auto {
            let best = IsaChoice::NAMED.into_iter().rev().find(|named| named.missing().is_empty());
            return Self::detect(best.unwrap_or(IsaChoice::Scalar));
        }
        let missing = choice.missing();
        if !missing.is_empty() {
            return Err(missing);
        }
        Ok(match choice {
            IsaChoice::Auto | IsaChoice::Scalar => Self::Scalar(Scalar),
            IsaChoice::Avx2 => Self::Avx2(Avx2(())),
            IsaChoice::Avx512 => Self::Avx512(Avx512(())),
            IsaChoice::Avx512Bf16 => Self::Avx512Bf16(Avx512Bf16(Avx512(()))),
            IsaChoice::Amx => Self::Amx(Amx(Avx512Bf16(Avx512(())))),
        })
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scalar(_) => "scalar",
            Self::Avx2(_) => "AVX2",
            Self::Avx512(_) => "AVX-512",
            Self::Avx512Bf16(_) => "AVX-512 BF16",
            Self::Amx(_) => "AMX",
        }
    }

    /// How large register tiles may be.
    pub(crate) fn tiles(self) -> Tiles {
        match self {
            Self::Scalar(_) => <Scalar as Lanes>::TILES,
            Self::Avx2(_) => <Avx2 as Lanes>::TILES,
            Self::Avx512(_) | Self::Avx512Bf16(_) | Self::Amx(_) => <Avx512 as Lanes>::TILES,
        }
    }

    /// The best for int8 that goes with this set on this CPU.
    pub(crate) fn int8(self) -> Int8Isa {
        match self {
            Self::Scalar(isa) => Int8Isa::Scalar(isa),
            Self::Avx2(isa) => match is_x86_feature_detected!("avxvnni") {
                true => Int8Isa::AvxVnni(AvxVnni(isa)),
                false => Int8Isa::Avx2(isa),
            },
            Self::Avx512(isa) | Self::Avx512Bf16(Avx512Bf16(isa)) | Self::Amx(Amx(Avx512Bf16(isa))) => {
                match is_x86_feature_detected!("avx512vnni") {
                    true => Int8Isa::Avx512Vnni(Avx512Vnni(isa)),
                    false => Int8Isa::Avx512(isa),
                }
            }
        }
    }

    /// The dot product of bf16 pairs, where it goes with this set.
    pub(crate) fn bf16(self) -> Option<Avx512Bf16> {
        match self {
            Self::Avx512Bf16(isa) | Self::Amx(Amx(isa)) => Some(isa),
            Self::Scalar(_) | Self::Avx2(_) | Self::Avx512(_) => None,
        }
    }

    /// Runs `kernel` in code compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Scalar(isa) => isa.run(OnLanes(kernel)),
            Self::Avx2(isa) => isa.run(OnLanes(kernel)),
            Self::Avx512(isa) | Self::Avx512Bf16(Avx512Bf16(isa)) | Self::Amx(Amx(Avx512Bf16(isa))) => {
                isa.run(OnLanes(kernel));
            }
        }
    }
}

/// A kernel over [`Lanes`], with its arguments.
pub(crate) trait Kernel {
    /// The arithmetic. Must be `#[inline(always)]`, as everything it calls on `isa`, so that it is compiled with the
    /// instruction set of the function it lands in.
    fn run<L: Lanes>(self, isa: L);
}

/// A kernel for one instruction set, with its arguments.
pub(crate) trait Task<I> {
    /// The arithmetic; `#[inline(always)]` as in [`Kernel::run`].
    fn run(self, isa: I);
}

/// A kernel over lanes is a task of every instruction set.
struct OnLanes<K>(K);

impl<K: Kernel, L: Lanes> Task<L> for OnLanes<K> {
    #[inline(always)]
    fn run(self, isa: L) {
        self.0.run(isa);
    }
}

/// A proof value of one instruction set.
pub(crate) trait Proof: Sized {
    /// Runs `task` in code compiled for that set.
    fn run<T: Task<Self>>(self, task: T);
}

impl Proof for Scalar {
    fn run<T: Task<Self>>(self, task: T) {
        task.run(self);
    }
}

impl Proof for Avx2 {
    fn run<T: Task<Self>>(self, task: T) {
        // SAFETY: the proof exists, so the CPU has the features the function is compiled for.
        unsafe { task_avx2(self, task) }
    }
}

impl Proof for AvxVnni {
    fn run<T: Task<Self>>(self, task: T) {
        // SAFETY: as above.
        unsafe { task_avxvnni(self, task) }
    }
}

impl Proof for Avx512 {
    fn run<T: Task<Self>>(self, task: T) {
        // SAFETY: as above.
        unsafe { task_avx512(self, task) }
    }
}

impl Proof for Avx512Vnni {
    fn run<T: Task<Self>>(self, task: T) {
        // SAFETY: as above.
        unsafe { task_avx512vnni(self, task) }
    }
}

impl Proof for Avx512Bf16 {
    fn run<T: Task<Self>>(self, task: T) {
        // SAFETY: as above.
        unsafe { task_avx512bf16(self, task) }
    }
}

impl AvxVnni {
    /// What it implies.
    pub(crate) fn avx2(self) -> Avx2 {
        self.0
    }
}

impl Avx512Vnni {
    /// What it implies.
    pub(crate) fn avx512(self) -> Avx512 {
        self.0
    }
}

impl Avx512Bf16 {
    /// What it implies.
    pub(crate) fn avx512(self) -> Avx512 {
        self.0
    }
}

impl Amx {
    /// What it implies.
    pub(crate) fn avx512bf16(self) -> Avx512Bf16 {
        self.0
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn task_avx512bf16<T: Task<Avx512Bf16>>(isa: Avx512Bf16, task: T) {
    task.run(isa);
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn task_avx512vnni<T: Task<Avx512Vnni>>(isa: Avx512Vnni, task: T) {
    task.run(isa);
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn task_avx512<T: Task<Avx512>>(isa: Avx512, task: T) {
    task.run(isa);
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn task_avxvnni<T: Task<AvxVnni>>(isa: AvxVnni, task: T) {
    task.run(isa);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn task_avx2<T: Task<Avx2>>(isa: Avx2, task: T) {
    task.run(isa);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_the_best_named_set_that_lacks_nothing() {
        let best = IsaChoice::NAMED.into_iter().rfind(|choice| choice.missing().is_empty()).unwrap();
        assert_eq!(Isa::detect(IsaChoice::Auto).unwrap().name(), Isa::detect(best).unwrap().name());
    }

    #[test]
    fn names_parse_back() {
        for choice in IsaChoice::NAMED {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("sse9".parse::<IsaChoice>().unwrap_err().contains("sse9"));
    }
}
