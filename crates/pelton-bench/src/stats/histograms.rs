//! Histograms of latencies, which can be added up where rows would be too many to keep.
//!
//! High dynamic range histograms (Tene), three significant digits: every quantile is within 0.1 % of the true value. Stored in their
//! own V2 form, compressed, as base64, so that other programs can read them. Times are in microseconds.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::{Distribution, values};
use crate::metric::Metric;
use crate::results::RunResult;

/// Largest value: 24 h in microseconds.
const MAX_VALUE: u64 = 24 * 3600 * 1_000_000;

/// Digits of every value that are kept.
const DIGITS: u8 = 3;

/// One histogram for each metric that has several values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histograms(BTreeMap<Metric, String>);

impl Histograms {
    /// Of a run that has its rows.
    pub(crate) fn of(run: &RunResult) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for metric in Metric::ALL.into_iter().filter(|metric| metric.distribution(&run.summary).is_some()) {
            let mut histogram = empty()?;
            for value in values::of_requests(run, metric).into_iter().flatten() {
                histogram.saturating_record((value * units(metric)).round() as u64);
            }
            all.insert(metric, write(&histogram)?);
        }
        Ok(Self(all))
    }

    /// Adds another's values.
    ///
    /// # Errors
    /// If one of them is not what [`Histograms`] writes.
    pub fn add(&mut self, other: &Self) -> Result<(), String> {
        for (metric, text) in &other.0 {
            let sum = match self.0.get(metric) {
                Some(mine) => {
                    let mut sum = read(mine)?;
                    sum.add(read(text)?).map_err(|error| error.to_string())?;
                    write(&sum)?
                }
                None => text.clone(),
            };
            self.0.insert(*metric, sum);
        }
        Ok(())
    }

    /// Quantiles of a metric, in its unit, with the histogram's precision; `None` without values.
    ///
    /// # Errors
    /// If it is not what [`Histograms`] writes.
    pub fn distribution(&self, metric: Metric) -> Result<Option<Distribution>, String> {
        let Some(text) = self.0.get(&metric) else { return Ok(None) };
        let histogram = read(text)?;
        if histogram.is_empty() {
            return Ok(None);
        }
        let at = |q: f64| histogram.value_at_quantile(q) as f64 / units(metric);
        Ok(Some(Distribution {
            count: histogram.len() as usize,
            mean: histogram.mean() / units(metric),
            min: histogram.min() as f64 / units(metric),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / units(metric),
        }))
    }
}

/// Units of the histogram in one of the metric.
fn units(metric: Metric) -> f64 {
    if metric.unit() == "ms" { 1000.0 } else { 1.0 }
}

fn empty() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, MAX_VALUE, DIGITS).map_err(|error| error.to_string())
}

fn write(histogram: &Histogram<u64>) -> Result<String, String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).map_err(|error| error.to_string())?;
    Ok(BASE64_STANDARD.encode(bytes))
}

fn read(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|error| format!("histogram is not base64: {error}"))?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|error| format!("histogram cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl Iterator<Item = u64>) -> Histograms {
        let mut histogram = empty().expect("bounds are valid");
        values.for_each(|value| histogram.saturating_record(value));
        Histograms(BTreeMap::from([(Metric::Ttft, write(&histogram).expect("memory is writable"))]))
    }

    #[test]
    fn sums_of_histograms_have_the_quantiles_of_all_values() {
        let mut random = fastrand::Rng::with_seed(3);
        let values: Vec<u64> = (0..20_000).map(|_| (-50_000.0 * (1.0 - random.f64()).ln()) as u64).collect();
        let exact = Distribution::of(values.iter().map(|&us| us as f64 / 1e3).collect()).expect("not empty");
        let mut sum = of(values[..5000].iter().copied());
        sum.add(&of(values[5000..].iter().copied())).expect("both are histograms");
        let merged = sum.distribution(Metric::Ttft).expect("readable").expect("not empty");
        assert_eq!(merged.count, exact.count);
        let pairs =
            [(merged.p50, exact.p50), (merged.p90, exact.p90), (merged.p99, exact.p99), (merged.p999, exact.p999)];
        for (merged, exact) in pairs {
            assert!((merged / exact - 1.0).abs() < 2e-3, "{merged} is not {exact}");
        }
        assert_eq!(sum.distribution(Metric::E2e), Ok(None));
    }

    #[test]
    fn what_is_no_histogram_is_an_error() {
        let mut good = of([1, 2].into_iter());
        for bad in ["%", "AAAA"] {
            let bad = Histograms(BTreeMap::from([(Metric::Ttft, bad.to_owned())]));
            assert!(bad.distribution(Metric::Ttft).is_err());
            assert!(good.add(&bad).is_err());
        }
    }
}
