//! Canonical matrices into panels, in the order in which kernels read them.
//!
//! A panel holds [`PANEL`] output features (the last panel is filled up with zeros) over all input features, `k` outermost:
//!
//! ```text
//! f32, f16:  [panel][k][32]
//! bf16:      [panel][k / 2][32][2]     pairs of input features lie together
//! int8:      [panel][k / 4][32][4]     with a scale and the sum of codes for each column
//! groups:    see [`grouped`]
//! ```
//!
//! `k` is filled up with zeros to a multiple of 32 (64 in int8), as much as a tile of AMX takes at a time. A pair of
//! bf16 is one 32-bit word: its halves become two floats by one shift and one mask, and the BF16 instructions want exactly such pairs.

use half::{bf16, f16};
use pelton_backend::{
    BackendError, DType, DenseWeight, Group, GroupedRow, GroupedWeight, HostTensor, IntGroups, WeightFormat,
};

use crate::amx::ROW_BYTES;
use crate::buffer::{Buffer, Plain};
use crate::pool::{Pool, SharedMut};

use super::grouped::GroupedPanels;
use super::int8;

/// Output features of a panel.
pub(crate) const PANEL: usize = 32;

/// Input features that are read and turned around at a time.
const STRIP: usize = 64;

/// A packed `[out_features, in_features]` matrix.
pub struct PackedLinear {
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) panels: Panels,
}

/// The panels, by precision.
pub(crate) enum Panels {
    F32(Buffer<f32>),
    F16(Buffer<f16>),
    Bf16(Buffer<bf16>),
    Int8(Int8Panels),
    Grouped(GroupedPanels),
}

/// Codes, and what belongs to each column; columns that fill up the last panel have zeros.
pub(crate) struct Int8Panels {
    pub codes: Buffer<i8>,
    pub scales: Buffer<f32>,
    /// Sum of the column's codes.
    pub code_sums: Buffer<i32>,
}

impl Int8Panels {
    /// Where `(k, column)` lies in its panel.
    pub fn offset(k: usize, column: usize) -> usize {
        (k / int8::STEP * PANEL + column) * int8::STEP + k % int8::STEP
    }

    /// Codes of one panel.
    pub fn panel_len(in_features: usize) -> usize {
        in_features.next_multiple_of(ROW_BYTES) * PANEL
    }
}

/// An element type of panels.
pub(crate) trait Element: Plain {
    /// What it is called in files.
    const DTYPE: DType;
    const ZERO: Self;
    /// From little-endian bytes, as many as it has.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Rounds to nearest even.
    fn round(x: f32) -> Self;
    fn widen(self) -> f32;
    /// Where `(k, column)` lies in its panel.
    fn offset(k: usize, column: usize) -> usize;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn from_bytes(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn round(x: f32) -> f32 {
        x
    }

    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn offset(k: usize, column: usize) -> usize {
        k * PANEL + column
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn from_bytes(bytes: &[u8]) -> f16 {
        f16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn round(x: f32) -> f16 {
        f16::from_f32(x)
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn offset(k: usize, column: usize) -> usize {
        k * PANEL + column
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn from_bytes(bytes: &[u8]) -> bf16 {
        bf16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn round(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn offset(k: usize, column: usize) -> usize {
        (k / 2 * PANEL + column) * 2 + k % 2
    }
}

impl PackedLinear {
    /// Packs `parts`, joined by output rows. All parts must agree in `in_features` and `stored_as`.
    pub(crate) fn new(pool: &Pool, parts: &[DenseWeight<'_>]) -> Result<Self, BackendError> {
        let Some(first) = parts.first() else {
            return Err(BackendError::Unsupported("a linear weight without parts".into()));
        };
        let (in_features, stored_as) = (first.in_features(), first.stored_as());
        for part in parts {
            if part.in_features() != in_features {
                return Err(BackendError::Shape {
                    what: "a part of a joined linear weight",
                    expected: format!("[out, {in_features}]"),
                    found: part.tensor().shape().to_vec(),
                });
            }
            if part.stored_as() != stored_as {
                return Err(BackendError::Unsupported(format!(
                    "a linear weight joined of {stored_as} and {} parts",
                    part.stored_as()
                )));
            }
        }
        let out_features = parts.iter().map(DenseWeight::out_features).sum();
        let panels = match stored_as {
            WeightFormat::Dense(DType::F32) => Panels::F32(pack(pool, parts)?),
            WeightFormat::Dense(DType::F16) => Panels::F16(pack(pool, parts)?),
            WeightFormat::Dense(DType::BF16) => Panels::Bf16(pack(pool, parts)?),
            WeightFormat::Grouped(format) => {
                let row = |row: usize| {
                    let (part, row) = part_of(parts, row);
                    let mut values = vec![0.0; in_features];
                    part.tensor().read_f32(row * in_features, &mut values);
                    format.quantise(&values)
                };
                pack_integers(pool, format, [out_features, in_features], None, row)?
            }
        };
        Ok(Self { out_features, in_features, panels })
    }

    /// The same for parts that arrive in integers, which must agree in the order of their input features too.
    pub(crate) fn from_grouped(pool: &Pool, parts: &[GroupedWeight<'_>]) -> Result<Self, BackendError> {
        let Some(first) = parts.first() else {
            return Err(BackendError::Unsupported("a linear weight without parts".into()));
        };
        let (in_features, format) = (first.in_features(), first.format());
        let mut ends = Vec::with_capacity(parts.len());
        let mut out_features = 0;
        for part in parts {
            if part.in_features() != in_features {
                return Err(BackendError::Shape {
                    what: "a part of a joined linear weight",
                    expected: format!("[out, {in_features}]"),
                    found: vec![part.out_features(), part.in_features()],
                });
            }
            if part.format() != format {
                let other = part.format();
                return Err(BackendError::Unsupported(format!("a linear weight joined of {format} and {other} parts")));
            }
            if part.order() != first.order() {
                let what = "a linear weight joined of parts whose input features are grouped differently";
                return Err(BackendError::Unsupported(what.into()));
            }
            out_features += part.out_features();
            ends.push(out_features);
        }
        let row = |row: usize| {
            let part = ends.partition_point(|&end| end <= row);
            parts[part].row(row - part.checked_sub(1).map_or(0, |before| ends[before]))
        };
        let panels = pack_integers(pool, format, [out_features, in_features], first.order(), row)?;
        Ok(Self { out_features, in_features, panels })
    }
}

/// Elements of one panel.
pub(crate) fn panel_len(in_features: usize) -> usize {
    in_features.next_multiple_of(ROW_BYTES / size_of::<bf16>()) * PANEL
}

fn pack<T: Element>(pool: &Pool, parts: &[DenseWeight<'_>]) -> Result<Buffer<T>, BackendError> {
    let in_features = parts[0].in_features();
    let out_features: usize = parts.iter().map(DenseWeight::out_features).sum();
    let panel_len = panel_len(in_features);
    let num_panels = out_features.div_ceil(PANEL);
    let mut packed = Buffer::new("a linear weight", num_panels.saturating_mul(panel_len))?;
    pool.run_pieces(packed.as_mut_slice(), panel_len, |_, panel, out| {
        let mut strip = [[T::ZERO; STRIP]; PANEL];
        let columns = PANEL.min(out_features - panel * PANEL);
        for first_k in (0..in_features).step_by(STRIP) {
            let width = STRIP.min(in_features - first_k);
            for (column, values) in strip.iter_mut().enumerate().take(columns) {
                let (part, row) = part_of(parts, panel * PANEL + column);
                read(part.tensor(), row * in_features + first_k, &mut values[..width]);
            }
            for k in 0..width {
                for (column, values) in strip.iter().enumerate().take(columns) {
                    out[T::offset(first_k + k, column)] = values[k];
                }
            }
        }
    });
    Ok(packed)
}

/// Packs what `row` gives for each output feature, input features in `order`.
fn pack_integers(
    pool: &Pool,
    format: IntGroups,
    shape: [usize; 2],
    order: Option<&[u32]>,
    row: impl Fn(usize) -> GroupedRow + Sync,
) -> Result<Panels, BackendError> {
    let in_features = shape[1];
    if format.group == Group::Row && in_features > int8::MAX_IN_FEATURES {
        return Err(BackendError::Unsupported(format!(
            "a weight in {format} with {in_features} input features: at most {} can be summed",
            int8::MAX_IN_FEATURES
        )));
    }
    Ok(match format {
        IntGroups::INT8 => Panels::Int8(pack_int8(pool, shape, row)?),
        _ => Panels::Grouped(GroupedPanels::new(pool, format, shape, order, row)?),
    })
}

fn pack_int8(
    pool: &Pool,
    [out_features, in_features]: [usize; 2],
    row: impl Fn(usize) -> GroupedRow + Sync,
) -> Result<Int8Panels, BackendError> {
    let panel_len = Int8Panels::panel_len(in_features);
    let num_panels = out_features.div_ceil(PANEL);
    let mut codes = Buffer::<i8>::new("a linear weight", num_panels.saturating_mul(panel_len))?;
    let mut scales = Buffer::<f32>::new("scales of a linear weight", num_panels * PANEL)?;
    let mut code_sums = Buffer::<i32>::new("sums of a linear weight", num_panels * PANEL)?;
    let (scales_out, sums_out) = (SharedMut::new(scales.as_mut_slice()), SharedMut::new(code_sums.as_mut_slice()));
    pool.run_pieces(codes.as_mut_slice(), panel_len, |_, panel, codes| {
        // SAFETY: panels have columns of their own.
        let (scales, sums) = unsafe { (scales_out.slice(panel * PANEL, PANEL), sums_out.slice(panel * PANEL, PANEL)) };
        for column in 0..PANEL.min(out_features - panel * PANEL) {
            let row = row(panel * PANEL + column);
            scales[column] = row.scales[0];
            for (k, code) in row.codes.into_iter().enumerate() {
                // From a zero of 128 to one of 0.
                let code = (code ^ 0x80) as i8;
                codes[Int8Panels::offset(k, column)] = code;
                sums[column] += i32::from(code);
            }
        }
    });
    Ok(Int8Panels { codes, scales, code_sums })
}

/// Elements from `first` on: as they are where the file has the wanted precision, else rounded. At most [`STRIP`].
fn read<T: Element>(tensor: &HostTensor<'_>, first: usize, out: &mut [T]) {
    if tensor.dtype() == T::DTYPE {
        let bytes = &tensor.bytes()[first * size_of::<T>()..][..size_of_val(out)];
        for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
            *value = T::from_bytes(bytes);
        }
    } else {
        let mut wide = [0.0; STRIP];
        tensor.read_f32(first, &mut wide[..out.len()]);
        for (value, &wide) in out.iter_mut().zip(&wide) {
            *value = T::round(wide);
        }
    }
}

/// The part that holds output row `row` of the joined matrix, and which of its rows that is.
fn part_of<'p, 'a>(parts: &'p [DenseWeight<'a>], mut row: usize) -> (&'p DenseWeight<'a>, usize) {
    for part in parts {
        if row < part.out_features() {
            return (part, row);
        }
        row -= part.out_features();
    }
    unreachable!("row is within the joined matrix")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_parts_come_back_element_by_element() {
        for (rows, in_features) in [([1, 2], 1), ([63, 1], 64), ([64, 65], 65), ([100, 29], 130)] {
            for stored_as in [DType::F32, DType::F16, DType::BF16] {
                let pool = Pool::new(2, &[]).unwrap();
                // Small whole numbers are exact in every precision.
                let value = |row: usize, k: usize| ((row * 31 + k * 7) % 251) as f32 - 125.0;
                let part = |first: usize, rows: usize| {
                    let values: Vec<f32> =
                        (0..rows * in_features).map(|i| value(first + i / in_features, i % in_features)).collect();
                    DenseWeight::new(HostTensor::from_f32(vec![rows, in_features], &values), stored_as).unwrap()
                };
                let packed = PackedLinear::new(&pool, &[part(0, rows[0]), part(rows[0], rows[1])]).unwrap();
                for row in 0..rows[0] + rows[1] {
                    for k in 0..in_features {
                        let at = row / PANEL * panel_len(in_features);
                        let found = match &packed.panels {
                            Panels::F32(panels) => panels.as_slice()[at + f32::offset(k, row % PANEL)],
                            Panels::F16(panels) => panels.as_slice()[at + f16::offset(k, row % PANEL)].widen(),
                            Panels::Bf16(panels) => panels.as_slice()[at + bf16::offset(k, row % PANEL)].widen(),
                            Panels::Int8(_) | Panels::Grouped(_) => unreachable!("not asked for"),
                        };
                        assert_eq!(found, value(row, k), "row {row}, k {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_of_the_wanted_precision_are_taken_as_they_are() {
        let pool = Pool::new(2, &[]).unwrap();
        let bytes: Vec<u8> = (0..70 * 66u16).flat_map(|i| (i % 0x7c00).to_le_bytes()).collect();
        let tensor = |dtype| HostTensor::new(dtype, vec![70, 66], bytes.as_slice()).unwrap();
        let packed =
            |dtype| PackedLinear::new(&pool, &[DenseWeight::new(tensor(dtype), dtype).unwrap()]).unwrap().panels;
        let (Panels::F16(halves), Panels::Bf16(brains)) = (packed(DType::F16), packed(DType::BF16)) else { panic!() };
        for (row, k) in [(0, 0), (0, 65), (63, 1), (64, 0), (69, 65), (33, 32)] {
            let (at, bits) = (row / PANEL * panel_len(66), (row * 66 + k) as u16 % 0x7c00);
            assert_eq!(halves.as_slice()[at + f16::offset(k, row % PANEL)].to_bits(), bits);
            assert_eq!(brains.as_slice()[at + bf16::offset(k, row % PANEL)].to_bits(), bits);
        }
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let pool = Pool::new(1, &[]).unwrap();
        let part = |k: usize, stored_as| {
            DenseWeight::new(HostTensor::from_f32(vec![2, k], &vec![0.0; 2 * k]), stored_as).unwrap()
        };
        let Err(error) = PackedLinear::new(&pool, &[part(3, DType::F32), part(4, DType::F32)]) else { panic!() };
        assert!(error.to_string().contains("expected [out, 3]"), "{error}");
        let Err(error) = PackedLinear::new(&pool, &[part(3, DType::F32), part(3, DType::F16)]) else { panic!() };
        assert!(error.to_string().contains("float32 and float16"), "{error}");
        assert!(PackedLinear::new(&pool, &[]).is_err());
    }
}
