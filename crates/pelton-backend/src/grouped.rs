//! Integers in groups: what a matrix in eight or four bits means, how numbers become one, and how one arrives that already is.
//!
//! Input features lie in groups, each with one scale for each output feature; a weight is `(code - zero) * scale`. Codes have no sign:
//! without zero points of their own, the zero is in the middle, 128 or 8.
//!
//! | checkpoint | bits, group | zeros | order |
//! | --- | --- | --- | --- |
//! | GPTQ | 4 or 8, 32 to 128 or the row | stored, or 8 | `g_idx` |
//! | AWQ | 4, 128 | stored | as they come |
//! | compressed-tensors | 4 or 8, 32 to 128 or the row | mostly the middle | `weight_g_idx` |

use std::borrow::Cow;
use std::fmt;

use crate::BackendError;

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Codes 0 to 15.
    Four,
    /// Codes 0 to 255.
    Eight,
}

impl Bits {
    /// How many.
    pub const fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The largest code.
    pub const fn largest(self) -> u8 {
        match self {
            Self::Four => 15,
            Self::Eight => 255,
        }
    }

    /// The code of zero where there are no zero points.
    pub const fn middle(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }
}

/// How many input features share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// 32 of them.
    Of32,
    /// 64 of them.
    Of64,
    /// 128 of them.
    Of128,
    /// All.
    Row,
}

impl Group {
    /// Input features of a group in a matrix with `in_features`; the last group may have fewer.
    pub const fn features(self, in_features: usize) -> usize {
        match self {
            Self::Of32 => 32,
            Self::Of64 => 64,
            Self::Of128 => 128,
            Self::Row => in_features,
        }
    }
}

/// How a matrix of integers is cut and what it carries. Rows that meet it are quantised to eight bits in the same groups, each with a
/// scale of its own: `scale = max |x| / 127`, `code = round(x * (127 / max |x|))` to nearest even.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntGroups {
    /// Of each weight.
    pub bits: Bits,
    /// Weights with one scale.
    pub group: Group,
    /// Whether each group has a zero point beside its scale.
    pub zeros: bool,
}

impl IntGroups {
    /// Eight bits, one scale for each output feature.
    pub const INT8: Self = Self { bits: Bits::Eight, group: Group::Row, zeros: false };
    /// Four bits in groups of 32.
    pub const INT4: Self = Self { bits: Bits::Four, group: Group::Of32, zeros: false };

    /// Groups in a row of `in_features`.
    pub const fn num_groups(self, in_features: usize) -> usize {
        in_features.div_ceil(self.group.features(in_features))
    }
}

impl fmt::Display for IntGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int{}", self.bits.count())?;
        match self.group {
            Group::Of32 => f.write_str(" g32")?,
            Group::Of64 => f.write_str(" g64")?,
            Group::Of128 => f.write_str(" g128")?,
            Group::Row => {}
        }
        if self.zeros { f.write_str(" zeros") } else { Ok(()) }
    }
}

/// One output feature in integers: `codes` `[in]`, `scales` and `zeros` `[groups]`, the latter in every format.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedRow {
    /// Codes.
    pub codes: Vec<u8>,
    /// Scales; zero where all numbers of a group are, not a number where one of them is not finite. Those of groups have eleven
    /// significant bits, as half-precision numbers do; those of whole rows are any.
    pub scales: Vec<f32>,
    /// Codes of zero.
    pub zeros: Vec<u8>,
}

impl GroupedRow {
    /// The numbers kept, in groups of `features`; exact.
    pub fn values(&self, features: usize) -> impl Iterator<Item = f64> {
        self.codes.iter().enumerate().map(move |(k, &code)| {
            (f64::from(code) - f64::from(self.zeros[k / features])) * f64::from(self.scales[k / features])
        })
    }
}

/// Numbers whose largest is below this become zeros: the reciprocal of their scale would overflow.
const SMALLEST: f32 = 1e-36;

/// Added to a float below 2^22 and taken off again, it leaves the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// Largest magnitudes of a group in codes of four bits, of which the best is chosen; those above 8 clip. Perplexity of the demo model
/// in groups of 32 (embedding and head in int8) rises by 1.5 % with these five, 1.6 % with eleven between 6.75 and 9.25, 2.0 % when the
/// largest is made 8 without a search.
const TRIED: [f32; 5] = [7.0, 7.5, 8.0, 8.5, 9.0];

impl IntGroups {
    /// One row of numbers in this format.
    ///
    /// - Eight bits: the largest magnitude gets the code 127 away from the middle; with zero points, the least number gets 0 and the
    ///   greatest 255.
    /// - Four bits with zero points: likewise 0 and 15.
    /// - Four bits without: of the scales that put the largest magnitude near 8 codes below the middle, each moved to the least squares
    ///   for the codes it gives, the one with the smallest squared error. It is negative where the largest number is positive.
    pub fn quantise(self, values: &[f32]) -> GroupedRow {
        let features = self.group.features(values.len()).max(1);
        let num_groups = values.len().div_ceil(features);
        let middle = self.bits.middle();
        let mut row = GroupedRow {
            codes: vec![middle; values.len()],
            scales: vec![0.0; num_groups],
            zeros: vec![middle; num_groups],
        };
        for (group, (values, codes)) in values.chunks(features).zip(row.codes.chunks_mut(features)).enumerate() {
            let (least, greatest) = values.iter().fold((0.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
            let largest = greatest.max(-least);
            // Not a number where one of the values is not finite, which `min` and `max` overlook.
            if values.iter().map(|x| x * 0.0).sum::<f32>() != 0.0 {
                row.scales[group] = f32::NAN;
                continue;
            }
            if largest < SMALLEST {
                continue;
            }
            let most = f32::from(self.bits.largest());
            // Divided first: the difference itself may be more than a float can be.
            let range = greatest / most - least / most;
            let (scale, lowest) = match (self.bits, self.zeros) {
                (_, true) => (range, 0.0),
                // Both signs reach equally far, as in rows.
                (Bits::Eight, false) => (largest / 127.0, 1.0),
                (Bits::Four, false) => {
                    (least_squares_scale(values, if greatest == largest { greatest } else { least }), 0.0)
                }
            };
            let scale = if self.group == Group::Row { scale } else { eleven_bits(scale) };
            let inverse = 1.0 / scale;
            let zero = if self.zeros { (ROUND - least * inverse - ROUND).clamp(0.0, most) } else { f32::from(middle) };
            for (code, x) in codes.iter_mut().zip(values) {
                *code = (x * inverse + ROUND - ROUND + zero).clamp(lowest, most) as u8;
            }
            (row.scales[group], row.zeros[group]) = (scale, zero as u8);
        }
        row
    }
}

/// The scale of least squared error among [`TRIED`], each moved to the least squares for its codes. `peak` is the number of
/// largest magnitude.
fn least_squares_scale(values: &[f32], peak: f32) -> f32 {
    const LANES: usize = 8;
    let mut best = (0.0, 0.0);
    for codes in TRIED {
        let inverse = -codes / peak;
        // Sums side by side, which the compiler turns into vectors.
        let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut add = |values: &[f32; LANES]| {
            for lane in 0..LANES {
                let scaled = values[lane] * inverse;
                let code = (scaled + ROUND - ROUND).clamp(-8.0, 7.0);
                products[lane] += scaled * code;
                squares[lane] += code * code;
            }
        };
        let (whole, rest) = values.as_chunks::<LANES>();
        whole.iter().for_each(&mut add);
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        add(&last);
        let (products, squares): (f32, f32) = (products.iter().sum(), squares.iter().sum());
        // In units of the scale tried, `products / squares` is that of least squares, and leaves the squared error
        // `sum of scaled^2 - products^2 / squares`. The gain compares scales, in units of the peak.
        let gain = products * products / (squares * codes * codes);
        if gain > best.0 {
            best = (gain, products / squares * (peak / -codes));
        }
    }
    best.1
}

/// Rounded to eleven significant bits, ties to even.
fn eleven_bits(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x0fff + (bits >> 13 & 1)) & !0x1fff)
}

/// A matrix `[out_features, in_features]` that arrives in integers.
#[derive(Debug, Clone)]
pub struct GroupedWeight<'a> {
    format: IntGroups,
    out_features: usize,
    in_features: usize,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [f32]>,
    zeros: Option<Cow<'a, [u8]>>,
    order: Option<Vec<u32>>,
}

impl<'a> GroupedWeight<'a> {
    /// `codes` are `[out, in]`, one in each byte; `scales` and, where `format` has them, `zeros` `[out, groups]`. All row-major; groups of
    /// consecutive input features, unless [`GroupedWeight::with_group_index`] says otherwise.
    ///
    /// Fails when sizes do not fit together or a code is more than its bits hold. A zero point may be one more than the largest code:
    /// some checkpoints store them less one. Backends may keep scales in eleven significant bits relative to the largest of their row.
    pub fn new(
        format: IntGroups,
        [out_features, in_features]: [usize; 2],
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [f32]>>,
        zeros: Option<Cow<'a, [u8]>>,
    ) -> Result<Self, BackendError> {
        let (codes, scales) = (codes.into(), scales.into());
        if out_features == 0 || in_features == 0 {
            let (expected, found) = ("[out, in]".to_owned(), vec![out_features, in_features]);
            return Err(BackendError::Shape { what: "a grouped weight", expected, found });
        }
        let num_groups = format.num_groups(in_features);
        let fits = |what, columns: usize, found: usize| match out_features.checked_mul(columns) {
            Some(len) if len == found => Ok(()),
            _ => {
                let expected = format!("{out_features} x {columns} numbers in {format}");
                Err(BackendError::Shape { what, expected, found: vec![found] })
            }
        };
        fits("the list of a grouped weight's codes", in_features, codes.len())?;
        fits("the list of a grouped weight's scales", num_groups, scales.len())?;
        match &zeros {
            Some(zeros) => {
                fits("the list of a grouped weight's zeros", num_groups * usize::from(format.zeros), zeros.len())?
            }
            None => fits("the list of a grouped weight's zeros", num_groups * usize::from(format.zeros), 0)?,
        }
        let within = |what, numbers: &[u8], limit: u8| match numbers.iter().position(|&number| number > limit) {
            None => Ok(()),
            Some(index) => Err(BackendError::Value { what, index, found: numbers[index].into(), limit: limit.into() }),
        };
        within("codes of a grouped weight", &codes, format.bits.largest())?;
        within(
            "zeros of a grouped weight",
            zeros.as_deref().unwrap_or_default(),
            format.bits.largest().saturating_add(1),
        )?;
        Ok(Self { format, out_features, in_features, codes, scales, zeros, order: None })
    }

    /// The same with the group of each input feature named (`g_idx`, act-order). Fails unless each group has as many features as
    /// its size says, and the last what is left.
    pub fn with_group_index(mut self, group_of: &[u32]) -> Result<Self, BackendError> {
        if group_of.len() != self.in_features {
            let (expected, found) = (format!("[{}]", self.in_features), vec![group_of.len()]);
            return Err(BackendError::Shape { what: "the group index of a grouped weight", expected, found });
        }
        let mut order: Vec<u32> = (0..self.in_features as u32).collect();
        // Stable: features of a group keep their order, and an index that says nothing new changes nothing.
        order.sort_by_key(|&k| group_of[k as usize]);
        let features = self.format.group.features(self.in_features);
        for (place, &k) in order.iter().enumerate() {
            let (found, expected) = (group_of[k as usize] as usize, place / features);
            if found != expected {
                return Err(BackendError::Unsupported(format!(
                    "a group index that puts input feature {k} into group {found} where groups of {features} need it in {expected}"
                )));
            }
        }
        let moved = order.iter().enumerate().any(|(place, &k)| place != k as usize);
        self.order = moved.then_some(order);
        Ok(self)
    }

    /// The same with row `i` taken from row `rows[i]`. Fails unless `rows` is a permutation.
    pub fn with_rows(self, rows: &[u32]) -> Result<Self, BackendError> {
        let mut missing = vec![true; self.out_features];
        let known = |row: &&u32| missing.get_mut(**row as usize).is_some_and(std::mem::take);
        if rows.len() != self.out_features || rows.iter().filter(known).count() != rows.len() {
            let (expected, found) = (format!("a permutation of {} rows", self.out_features), vec![rows.len()]);
            return Err(BackendError::Shape { what: "the row order of a grouped weight", expected, found });
        }
        let num_groups = self.format.num_groups(self.in_features);
        Ok(Self {
            codes: taken(&self.codes, self.in_features, rows).into(),
            scales: taken(&self.scales, num_groups, rows).into(),
            zeros: self.zeros.as_deref().map(|zeros| taken(zeros, num_groups, rows).into()),
            ..self
        })
    }

    /// How it is cut.
    pub fn format(&self) -> IntGroups {
        self.format
    }

    /// Rows: features going out.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns: features coming in.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Input features by group: place `p` belongs to group `p / features` and is feature `order[p]`. `None`: as they come.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// One output feature, input features as ordered.
    pub fn row(&self, row: usize) -> GroupedRow {
        let num_groups = self.format.num_groups(self.in_features);
        let codes = &self.codes[row * self.in_features..][..self.in_features];
        let groups = row * num_groups..(row + 1) * num_groups;
        GroupedRow {
            codes: match &self.order {
                None => codes.to_vec(),
                Some(order) => order.iter().map(|&k| codes[k as usize]).collect(),
            },
            scales: self.scales[groups.clone()].to_vec(),
            zeros: match &self.zeros {
                None => vec![self.format.bits.middle(); num_groups],
                Some(zeros) => zeros[groups].to_vec(),
            },
        }
    }

    /// Fills `out`, `[in]`, with the numbers of one output feature, input features as they come; each rounded to f32 once, which scales
    /// of half precision make exact.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let features = self.format.group.features(self.in_features);
        for (place, value) in self.row(row).values(features).enumerate() {
            let feature = self.order.as_ref().map_or(place, |order| order[place] as usize);
            out[feature] = value as f32;
        }
    }
}

/// Rows of `values`, `[rows, columns]`, in another order.
fn taken<T: Copy>(values: &[T], columns: usize, rows: &[u32]) -> Vec<T> {
    rows.iter().flat_map(|&row| &values[row as usize * columns..][..columns]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [IntGroups; 4] = [
        IntGroups::INT8,
        IntGroups::INT4,
        IntGroups { bits: Bits::Eight, group: Group::Of64, zeros: true },
        IntGroups { bits: Bits::Four, group: Group::Of32, zeros: true },
    ];

    fn wave(count: usize, shift: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i % 5) as f32) + shift).collect()
    }

    #[test]
    fn numbers_come_back_within_a_step() {
        for format in FORMATS {
            for shift in [0.0, 2.0, -40.0] {
                let values = wave(150, shift);
                let row = format.quantise(&values);
                let features = format.group.features(150);
                for (k, (kept, &x)) in row.values(features).zip(&values).enumerate() {
                    // Half a step where nothing clips; the search may clip at 9 where 7 is the last code.
                    let steps = if format == IntGroups::INT4 { 2.3 } else { 0.51 };
                    let step = f64::from(row.scales[k / features].abs());
                    assert!(
                        (kept - f64::from(x)).abs() <= steps * step,
                        "{format}, {x} became {kept} in steps of {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn searching_leaves_less_error_than_reaching_for_the_largest() {
        let (mut searched, mut reached) = (0.0, 0.0);
        for start in 0..50 {
            let values: Vec<f32> =
                wave(32, 0.0).iter().enumerate().map(|(i, x)| x * ((i * i + start) as f32).cos()).collect();
            let peak = values.iter().fold(0.0f32, |a, &b| if b.abs() > a.abs() { b } else { a });
            let kept = IntGroups::INT4.quantise(&values);
            for (x, kept) in values.iter().zip(kept.values(32)) {
                let scale = peak / -8.0;
                searched += (f64::from(*x) - kept).powi(2);
                reached += f64::from(x - (x / scale).round().clamp(-8.0, 7.0) * scale).powi(2);
            }
        }
        assert!(searched < 0.95 * reached, "{searched} and {reached}");
    }

    #[test]
    fn whole_numbers_of_a_scale_are_exact() {
        let exact = |format: IntGroups, values: &[f32]| {
            let kept: Vec<f64> = format.quantise(values).values(32).collect();
            assert_eq!(kept, values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), "{format}");
        };
        let values: Vec<f32> = (0..64).map(|i| (i % 16 - 8) as f32 * 0.25).collect();
        exact(IntGroups::INT4, &values);
        exact(IntGroups::INT4, &values.iter().map(|x| -x).collect::<Vec<_>>());
        exact(IntGroups { zeros: true, ..IntGroups::INT4 }, &values.iter().map(|x| x + 0.5).collect::<Vec<_>>());
    }

    #[test]
    fn eight_bits_round_to_nearest_even_and_reach_equally_far() {
        let values = [0.5, 1.5, -2.5, 127.0, -127.0, 126.4, -0.6];
        assert_eq!(IntGroups::INT8.quantise(&values).codes, [128, 130, 126, 255, 1, 254, 127]);
        for largest in [1e-36, 0.1, 3.3, 1e30, f32::MAX] {
            assert_eq!(IntGroups::INT8.quantise(&[largest, -largest]).codes, [255, 1], "{largest:e}");
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_spoils_its_group() {
        for format in FORMATS {
            let mut values = vec![0.0; 200];
            values[70] = f32::NAN;
            values[199] = f32::INFINITY;
            let row = format.quantise(&values);
            for (group, scale) in row.scales.iter().enumerate() {
                let features = format.group.features(200);
                let spoiled = 70 / features == group || 199 / features == group;
                assert!(if spoiled { scale.is_nan() } else { *scale == 0.0 }, "{format}, group {group}: {scale}");
            }
        }
    }

    #[test]
    fn sizes_and_codes_are_checked() {
        let format = IntGroups { zeros: true, ..IntGroups::INT4 };
        let zeros = |count| Some(Cow::from(vec![16u8; count]));
        assert!(GroupedWeight::new(format, [2, 40], vec![15; 80], vec![1.0; 4], zeros(4)).is_ok());
        for (codes, scales, zeros, part) in [
            (vec![0; 79], 4, zeros(4), "2 x 40"),
            (vec![0; 80], 3, zeros(4), "scales"),
            (vec![0; 80], 4, zeros(2), "zeros"),
            (vec![0; 80], 4, None, "zeros"),
            ([vec![0; 77], vec![16, 0, 0]].concat(), 4, zeros(4), "77 is 16, limit is 15"),
        ] {
            let error = GroupedWeight::new(format, [2, 40], codes, vec![1.0; scales], zeros).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(GroupedWeight::new(IntGroups::INT4, [2, 40], vec![0; 80], vec![1.0; 4], zeros(4)).is_err());
        assert!(GroupedWeight::new(format, [0, 40], vec![], vec![], None).is_err());
    }

    #[test]
    fn a_group_index_becomes_an_order() {
        let weight = || {
            GroupedWeight::new(
                IntGroups::INT4,
                [1, 40],
                (0..40).map(|k| k % 16).collect::<Vec<_>>(),
                vec![1.0; 2],
                None,
            )
        };
        let index: Vec<u32> = (0..40).map(|k| u32::from(k % 5 == 0)).collect();
        let ordered = weight().unwrap().with_group_index(&index).unwrap();
        assert_eq!(ordered.order().unwrap()[30..34], [38, 39, 0, 5]);
        assert_eq!(ordered.row(0).codes[30..34], [38 % 16, 39 % 16, 0, 5]);
        let plain: Vec<u32> = (0..40).map(|k| k / 32).collect();
        assert!(weight().unwrap().with_group_index(&plain).unwrap().order().is_none());
        let error = weight().unwrap().with_group_index(&[0; 40]).unwrap_err().to_string();
        assert!(error.contains("input feature 32 into group 0") && error.contains("in 1"), "{error}");
        assert!(weight().unwrap().with_group_index(&[0; 39]).is_err());
    }

    #[test]
    fn rows_are_read_in_the_order_asked_for() {
        let format = IntGroups { zeros: true, ..IntGroups::INT4 };
        let codes: Vec<u8> = (0..120u8).map(|i| i % 16).collect();
        let scales = vec![0.5, 2.0, 1.0, 0.25, 4.0, 8.0];
        let weight = GroupedWeight::new(format, [3, 40], codes, scales, Some(vec![0, 1, 2, 3, 4, 16].into())).unwrap();
        let index: Vec<u32> = (0..40).map(|k| u32::from(k < 8)).collect();
        let weight = weight.with_group_index(&index).unwrap();
        let read = |weight: &GroupedWeight<'_>, row| {
            let mut out = vec![0.0; 40];
            weight.read_row(row, &mut out);
            out
        };
        // Feature 3 of row 1 is in the second group, feature 30 in the first.
        assert_eq!(read(&weight, 1)[3], (11.0 - 3.0) * 0.25);
        assert_eq!(read(&weight, 1)[30], (6.0 - 2.0) * 1.0);
        let moved = weight.clone().with_rows(&[2, 0, 1]).unwrap();
        for (row, from) in [(0, 2), (1, 0), (2, 1)] {
            assert_eq!(read(&moved, row), read(&weight, from));
        }
        for rows in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3], &[0, 1, 2, 2]] {
            assert!(weight.clone().with_rows(rows).is_err(), "{rows:?}");
        }
    }
}
