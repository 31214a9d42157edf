//! A histogram with fixed bounds that many threads add to, and its Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of values by upper bound. Adding takes no lock; reading while others add may be one value off between count and sum.
pub(crate) struct Histogram {
    /// Ascending upper bounds, inclusive; the bucket above the last is implied.
    bounds: Box<[f64]>,
    /// One more than `bounds`. Not cumulative: the text is.
    counts: Box<[AtomicU64]>,
    /// Bits of an f64.
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let bounds: Box<[f64]> = bounds.into_iter().collect();
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure never gives up, so the update cannot fail.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }

    /// Appends the buckets, sum and count of `name`; `labels` is empty or `a="b",c="d"`.
    pub(crate) fn render(&self, name: &str, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Relaxed);
            // Writing to a string cannot fail.
            let _ = match self.bounds.get(index) {
                Some(bound) => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}"),
                None => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}"),
            };
        }
        let sum = f64::from_bits(self.sum.load(Relaxed));
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_sum{braced} {sum}\n{name}_count{braced} {total}");
    }
}

/// `count` bounds of equal distance up to `max`.
pub(crate) fn linear(max: f64, count: u32) -> impl Iterator<Item = f64> {
    (1..=count).map(move |index| max * f64::from(index) / f64::from(count))
}

/// `first * factor^k` for `k` from 1 to `count`.
pub(crate) fn exponential(first: f64, factor: f64, count: i32) -> impl Iterator<Item = f64> {
    (1..=count).map(move |power| first * factor.powi(power))
}

/// 1, 2, 5, 10, 20, 50, ... up to `max`, which ends the list.
pub(crate) fn one_two_five(max: f64) -> impl Iterator<Item = f64> {
    let steps = (0..).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    steps.take_while(move |&bound| bound <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let histogram = Histogram::new([1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            histogram.observe(value);
        }
        let mut text = String::new();
        histogram.render("h", "a=\"b\"", &mut text);
        let expected = "h_bucket{a=\"b\",le=\"1\"} 2\nh_bucket{a=\"b\",le=\"2\"} 3\nh_bucket{a=\"b\",le=\"+Inf\"} 4\n\
                        h_sum{a=\"b\"} 12\nh_count{a=\"b\"} 4\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn bound_series() {
        assert_eq!(one_two_five(50.0).collect::<Vec<_>>(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(linear(10.0, 4).collect::<Vec<_>>(), [2.5, 5.0, 7.5, 10.0]);
        assert_eq!(exponential(0.5, 2.0, 3).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
    }
}
