//! How numbers lie in GGUF tensors: blocks of 32 or 256 along a row, each with its scales.
//!
//! A block's numbers are computed in f32, in the order that `gguf.quants` of the format's Python package has, so that they are its
//! numbers to the last bit. Formats whose blocks are integers of one scale are integers in groups of 32 as they are.
//!
//! Source: `ggml-common.h` and `ggml-quants.c` of ggml, `quants.py` of the package `gguf`.

use half::{bf16, f16};
use pelton_backend::{Bits, Group, IntGroups};

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    BF16,
    /// Scale times integer, in 32s.
    Q4_0,
    Q5_0,
    Q8_0,
    /// Scale times integer plus minimum, in 32s.
    Q4_1,
    Q5_1,
    /// In 256s, whose parts' scales are integers of a scale themselves.
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// Name and number in a file.
const KINDS: [(Kind, &str, u32); 13] = [
    (Kind::F32, "F32", 0),
    (Kind::F16, "F16", 1),
    (Kind::BF16, "BF16", 30),
    (Kind::Q4_0, "Q4_0", 2),
    (Kind::Q4_1, "Q4_1", 3),
    (Kind::Q5_0, "Q5_0", 6),
    (Kind::Q5_1, "Q5_1", 7),
    (Kind::Q8_0, "Q8_0", 8),
    (Kind::Q2K, "Q2_K", 10),
    (Kind::Q3K, "Q3_K", 11),
    (Kind::Q4K, "Q4_K", 12),
    (Kind::Q5K, "Q5_K", 13),
    (Kind::Q6K, "Q6_K", 14),
];

/// Formats known by name only.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Kind {
    /// The format of a number; of one that is not read, its name and those that are.
    pub(super) fn numbered(number: u32) -> Result<Self, String> {
        if let Some((kind, ..)) = KINDS.iter().find(|(_, _, known)| *known == number) {
            return Ok(*kind);
        }
        let name = OTHERS.iter().find(|(known, _)| *known == number).map_or("a format not heard of", |(_, name)| name);
        let known = KINDS.map(|(_, name, _)| name).join(", ");
        Err(format!("{name} (number {number}), which is not read; {known} are"))
    }

    /// Numbers in a block.
    pub(super) fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q2K => 16 + 64 + 4,
            Self::Q3K => 32 + 64 + 12 + 2,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of a tensor; `None` when its rows are no whole blocks, or it is larger than can be.
    pub(super) fn size_bytes(self, shape: &[usize]) -> Option<u64> {
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_elements()) {
            return None;
        }
        let blocks =
            shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim as u64))? / self.block_elements() as u64;
        blocks.checked_mul(self.block_bytes() as u64)
    }

    /// The integers that a matrix of this format is, without loss.
    pub(super) fn integers(self) -> Option<IntGroups> {
        let bits = match self {
            Self::Q4_0 => Bits::Four,
            // Five bits are kept in eight.
            Self::Q5_0 | Self::Q8_0 => Bits::Eight,
            _ => return None,
        };
        Some(IntGroups { bits, group: Group::Of32, zeros: false })
    }

    /// The codes of one block of [`Kind::integers`], zero in the middle of what their bits hold, and its scale.
    pub(super) fn codes(self, block: &[u8], codes: &mut [u8]) -> f32 {
        match self {
            Self::Q4_0 => low_then_high(&block[2..18], codes),
            Self::Q5_0 => {
                fives(&block[2..6], &block[6..22], codes);
                codes.iter_mut().for_each(|code| *code += 128 - 16);
            }
            Self::Q8_0 => {
                for (code, byte) in codes.iter_mut().zip(&block[2..34]) {
                    *code = byte ^ 0x80;
                }
            }
            _ => unreachable!("only formats with integers are asked for codes"),
        }
        half_at(block, 0)
    }

    /// The numbers of one block.
    pub(super) fn decode(self, block: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Self::F16 => out[0] = half_at(block, 0),
            Self::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => {
                let mut codes = [0; 32];
                let scale = self.codes(block, &mut codes);
                let middle = self.integers().map_or(0, |groups| groups.bits.middle());
                for (value, code) in out.iter_mut().zip(codes) {
                    *value = scale * (f32::from(code) - f32::from(middle));
                }
            }
            Self::Q4_1 | Self::Q5_1 => {
                let mut codes = [0; 32];
                match self {
                    Self::Q4_1 => low_then_high(&block[4..20], &mut codes),
                    _ => fives(&block[4..8], &block[8..24], &mut codes),
                }
                let (scale, least) = (half_at(block, 0), half_at(block, 2));
                for (value, code) in out.iter_mut().zip(codes) {
                    *value = scale * f32::from(code) + least;
                }
            }
            Self::Q2K => q2_k(block, out),
            Self::Q3K => q3_k(block, out),
            Self::Q4K | Self::Q5K => q45_k(self, block, out),
            Self::Q6K => q6_k(block, out),
        }
    }
}

fn half_at(bytes: &[u8], place: usize) -> f32 {
    f16::from_le_bytes([bytes[place], bytes[place + 1]]).to_f32()
}

/// Codes of four bits: the low halves of all bytes, then the high ones.
fn low_then_high(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Codes of five bits: four as in [`low_then_high`], the fifth in the bits of `tops`.
fn fives(tops: &[u8], bytes: &[u8], codes: &mut [u8]) {
    low_then_high(bytes, codes);
    for (k, code) in codes.iter_mut().enumerate() {
        *code |= (tops[k / 8] >> (k % 8) & 1) << 4;
    }
}

/// 16 bytes of scale and minimum for each 16, 64 of codes, two halves.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, least) = (half_at(block, 80), half_at(block, 82));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[part] & 15);
        let minimum = least * f32::from(scales[part] >> 4);
        // 32 bytes hold 128 codes: the lowest two bits of all, then the next two, ...
        let (half, shift, place) = (part / 8, part % 8 / 2 * 2, part % 2 * 16);
        for (value, byte) in out.iter_mut().zip(&codes[half * 32 + place..]) {
            *value = scale * f32::from(byte >> shift & 3) - minimum;
        }
    }
}

/// 32 bytes of third bits, 64 of codes, 12 of scales of six bits, a half.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (tops, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[part % 8] >> (part / 8 * 4) & 15;
        let high = packed[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (half, shift, place) = (part / 8, part % 8 / 2 * 2, part % 2 * 16);
        for (k, value) in out.iter_mut().enumerate() {
            let code = codes[half * 32 + place + k] >> shift & 3;
            // The third bit says that four is not taken off.
            let top = tops[place + k] >> (part / 2) & 1;
            *value = scale * (f32::from(code) - f32::from((top ^ 1) << 2));
        }
    }
}

/// Two halves, 12 bytes of scales and minima of six bits, for five bits 32 bytes of the fifth, 128 of codes.
fn q45_k(kind: Kind, block: &[u8], out: &mut [f32]) {
    let (d, least, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let (tops, codes) = if kind == Kind::Q5K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        // The first four are six bits of their own bytes; of the others, those bytes hold the highest two.
        let (scale, minimum) = if part < 4 {
            (packed[part] & 63, packed[part + 4] & 63)
        } else {
            let low = packed[part + 4];
            (low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4)
        };
        let (scale, minimum) = (d * f32::from(scale), least * f32::from(minimum));
        for (k, value) in out.iter_mut().enumerate() {
            let mut code = codes[part / 2 * 32 + k] >> (part % 2 * 4) & 15;
            if let Some(top) = tops.get(k) {
                code |= (top >> part & 1) << 4;
            }
            *value = scale * f32::from(code) - minimum;
        }
    }
}

/// 128 bytes of four bits, 64 of two more, 16 signed scales, a half.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lows, tops, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[part] as i8);
        // In each half of the block: 64 bytes of low codes, whose high halves come after all low ones, and 32 bytes of tops.
        let (half, within) = (part / 8, part % 8);
        for (k, value) in out.iter_mut().enumerate() {
            let place = within % 4 * 16 + k;
            let low = lows[half * 64 + place] >> (within / 4 * 4) & 15;
            let top = tops[half * 32 + place % 32] >> (within / 2 * 2) & 3;
            *value = scale * (f32::from(low | top << 4) - 32.0);
        }
    }
}
