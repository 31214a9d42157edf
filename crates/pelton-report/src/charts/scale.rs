//! From values to positions on an axis, and where its marks stand.

use super::figure::{Axis, Scale};
use crate::numbers::{percent, plain};

/// An axis with its span settled and its ends on the picture.
#[derive(Clone, Copy, Debug)]
pub struct Ruler {
    scale: Scale,
    from: f64,
    to: f64,
    /// Pixels of `from` and `to`.
    ends: (f64, f64),
}

impl Ruler {
    /// `extent` is that of the values; the ends of `axis` go before it.
    pub fn new(axis: &Axis, extent: Option<(f64, f64)>, ends: (f64, f64)) -> Self {
        let (low, high) = extent.unwrap_or(match axis.scale {
            Scale::Linear => (0.0, 1.0),
            Scale::Log => (1.0, 10.0),
        });
        let (mut from, mut to) = match axis.scale {
            Scale::Linear => {
                // A little air, and never beyond zero.
                let air = 0.04 * (high - low);
                let from = if low >= 0.0 { (low - air).max(0.0) } else { low - air };
                (axis.from.unwrap_or(from), axis.to.unwrap_or(high + air))
            }
            Scale::Log => {
                let above_zero = |end: Option<f64>| end.filter(|end| *end > 0.0);
                let air = (high / low).powf(0.03);
                (above_zero(axis.from).unwrap_or(low / air), above_zero(axis.to).unwrap_or(high * air))
            }
        };
        if to <= from {
            // One value, or ends that contradict the values: room on both sides of what there is.
            (from, to) = match axis.scale {
                Scale::Linear if from == 0.0 => (0.0, 1.0),
                Scale::Linear => (from - 0.5 * from.abs(), from + 0.5 * from.abs()),
                Scale::Log => (from / 2.0, from * 2.0),
            };
        }
        Self { scale: axis.scale, from, to, ends }
    }

    /// The pixel of a value, at most a little outside of the ends.
    pub fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln(),
        };
        self.ends.0 + share.clamp(-0.02, 1.02) * (self.ends.1 - self.ends.0)
    }

    /// Values that get a mark, ascending; `room` is how many there is place for.
    pub fn marks(&self, axis: &Axis, room: usize) -> Vec<f64> {
        let wished: Vec<f64> = axis.marks.iter().copied().filter(|mark| (self.from..=self.to).contains(mark)).collect();
        if !wished.is_empty() {
            return wished;
        }
        match self.scale {
            Scale::Linear => linear_marks(self.from, self.to, room),
            Scale::Log => log_marks(self.from, self.to, room),
        }
    }
}

/// How a mark of this axis is written.
pub fn mark_text(axis: &Axis, value: f64) -> String {
    if axis.shares { percent(value).replace(".0 ", " ") } else { plain(value) }
}

/// Multiples of 1, 2 or 5 times a power of ten; at most a third more than there is room for.
fn linear_marks(from: f64, to: f64, room: usize) -> Vec<f64> {
    let rough = (to - from) / room.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= 0.75 * rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (from / step - 1e-9).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// Powers of ten; with 2 and 5 between where there is room, and plain steps within less than a factor of three.
fn log_marks(from: f64, to: f64, room: usize) -> Vec<f64> {
    if to / from < 3.0 {
        return linear_marks(from, to, room.min(6));
    }
    let decades = (from.log10().floor() as i32)..=(to.log10().ceil() as i32);
    let with = |digits: &[f64]| -> Vec<f64> {
        let marks = decades.clone().flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
        marks.filter(|mark| (from * 0.999..=to * 1.001).contains(mark)).collect()
    };
    let fine = with(&[1.0, 2.0, 5.0]);
    if fine.len() <= room {
        return fine;
    }
    let coarse = with(&[1.0]);
    let every = coarse.len().div_ceil(room.max(1));
    coarse.into_iter().step_by(every.max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_inside() {
        assert_eq!(linear_marks(0.0, 104.0, 6), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(linear_marks(0.3, 0.9, 3), [0.4, 0.6000000000000001, 0.8]);
        assert_eq!(log_marks(3.0, 70.0, 8), [5.0, 10.0, 20.0, 50.0]);
        assert_eq!(log_marks(1.0, 1e6, 4), [1.0, 100.0, 10_000.0, 1e6]);
        assert_eq!(log_marks(100.0, 140.0, 5), [100.0, 110.0, 120.0, 130.0, 140.0]);
    }

    #[test]
    fn every_span_has_a_length() {
        let axes = [Axis::new("a"), Axis::new("a").log(), Axis::new("a").from_zero(), Axis::new("a").span(2.0, 1.0)];
        for axis in &axes {
            for extent in [None, Some((0.0, 0.0)), Some((5.0, 5.0)), Some((1.0, 3.0))] {
                if axis.scale == Scale::Log && extent.is_some_and(|(low, _)| low <= 0.0) {
                    continue; // Left out of every extent.
                }
                let ruler = Ruler::new(axis, extent, (0.0, 100.0));
                assert!(ruler.to > ruler.from && ruler.at(ruler.to).is_finite(), "{axis:?} {extent:?} {ruler:?}");
                assert!(!ruler.marks(axis, 5).is_empty(), "{axis:?} {extent:?} {ruler:?}");
            }
        }
    }

    #[test]
    fn a_logarithmic_axis_has_equal_ratios() {
        let axis = Axis::new("a").log().span(1.0, 100.0);
        let ruler = Ruler::new(&axis, Some((2.0, 50.0)), (0.0, 200.0));
        assert!((ruler.at(10.0) - 100.0).abs() < 1e-9);
        assert!(ruler.at(0.0) >= -4.0);
    }
}
