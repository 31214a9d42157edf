//! How near kernels come to what this machine can give: the table of `pelton kernels`.
//!
//! Reading order: `facts` say what the CPU is, `probes` what it gives, `cases` which operations are run, `roofline` what bounds them,
//! `table` how people see it. Machines are shared and noisy: probes and cases are interleaved in rounds, and medians are compared.

mod cases;
mod facts;
mod probes;
mod roofline;
mod table;

use std::time::{Duration, Instant};

use pelton_backend::BackendError;
use serde::Serialize;

pub use facts::{CpuCache, CpuFacts, CpuFlag};
pub use probes::ReadBandwidth;
pub use roofline::{Bound, Limits};

use crate::CpuBackend;
use cases::Case;
use probes::{Probes, uncached_bytes};
use roofline::median;

/// Least time of one sample; an operation that is shorter is repeated in it.
const SAMPLE: Duration = Duration::from_micros(300);

/// Repetitions of a sample at most.
const MAX_REPEATS: u32 = 1000;

/// A case that cannot end within this share of the time for all of them is left out: plain code takes minutes for what others do in
/// a blink.
const MOST_OF_TIME: f64 = 0.1;

/// Rounds at most: medians of more samples say nothing new.
const MAX_ROUNDS: usize = 1000;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeasurePlan {
    /// Sizes.
    pub extent: Extent,
    /// Time for all rounds. The first round is finished whatever it takes.
    pub time: Duration,
}

/// Sizes of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// Those of a decoder of 1.1 billion parameters; weights, keys and values come from memory. Takes about 1 GB.
    Full,
    /// Small ones, which sit in caches: to see that everything works. Shares mean little.
    Quick,
}

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeasureProgress<'a> {
    /// From 0 to 1.
    pub share: f64,
    /// What is done now.
    pub what: &'a str,
}

/// What was measured; its [`Display`](std::fmt::Display) is the table for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelReport {
    /// The machine.
    pub cpu: CpuFacts,
    /// What computed.
    pub chosen: Chosen,
    /// What the machine gives.
    pub limits: Limits,
    /// Sizes.
    pub extent: Extent,
    /// Samples of each limit; the last round may have been cut.
    pub rounds: usize,
    /// One for each operation and size.
    pub kernels: Vec<KernelRow>,
    /// Operations that would have taken too long.
    pub left_out: Vec<LeftOut>,
}

/// What computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chosen {
    /// Instruction set.
    pub isa: &'static str,
    /// Threads, the caller included.
    pub threads: usize,
}

/// One operation at one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelRow {
    /// The operation.
    pub kernel: &'static str,
    /// Its size and formats.
    pub size: String,
    /// Rows of the step.
    pub rows: usize,
    /// Median time of one run.
    pub time_us: f64,
    /// The shortest.
    pub least_time_us: f64,
    /// Runs that were timed, or groups of short runs.
    pub samples: usize,
    /// Bytes it must move: weights, keys and values, or else its rows.
    pub bytes: f64,
    /// Operations it must do; none are counted for what moves more than it computes.
    pub operations: f64,
    /// Bytes over the median time.
    pub bytes_per_s: f64,
    /// Operations over the median time.
    pub operations_per_s: f64,
    /// What limits it.
    pub bound: Bound,
    /// Least time by that limit over the median time: 1 is as fast as the machine. Noise and caches may lead above.
    pub share: f64,
}

/// An operation that was not measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    /// The operation.
    pub kernel: &'static str,
    /// Its size and formats.
    pub size: String,
    /// Rows of the step.
    pub rows: usize,
    /// Least time of one run, by the limits.
    pub least_s: f64,
}

/// Measures limits and kernels of `backend` in rounds until the time of `plan` is over. Fails when there is not enough memory.
pub fn measure(
    backend: &CpuBackend,
    plan: &MeasurePlan,
    progress: &mut dyn FnMut(MeasureProgress<'_>),
) -> Result<KernelReport, BackendError> {
    progress(MeasureProgress { share: 0.0, what: "making weights" });
    let cpu = CpuFacts::here();
    let mut probes = Probes::new(backend, &cpu)?;
    let cases = cases::all(backend, plan.extent, uncached_bytes(&cpu))?;
    probes.measure(backend);
    let first_limits = probes.limits();
    let too_long = |case: &Case| is_too_long(case.need.bound(&first_limits).1, plan.time);
    let (long, cases): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(too_long);
    let mut timed: Vec<Timed> = cases.into_iter().map(Timed::new).collect();

    let began = Instant::now();
    let mut rounds = 1;
    'measuring: while rounds < MAX_ROUNDS {
        probes.measure(backend);
        rounds += 1;
        for case in &mut timed {
            let share = began.elapsed().as_secs_f64() / plan.time.as_secs_f64().max(1e-9);
            if share >= 1.0 && !case.samples.is_empty() {
                break 'measuring;
            }
            progress(MeasureProgress { share: share.min(1.0), what: case.case.kernel });
            case.sample(backend);
        }
        if began.elapsed() >= plan.time {
            break;
        }
    }

    let limits = probes.limits();
    let left_out = |case: Case| {
        let (_, least_s) = case.need.bound(&first_limits);
        LeftOut { kernel: case.kernel, size: case.size, rows: case.rows, least_s }
    };
    Ok(KernelReport {
        cpu,
        chosen: Chosen { isa: backend.isa.name(), threads: backend.threads() },
        limits,
        extent: plan.extent,
        rounds,
        kernels: timed.into_iter().map(|case| case.row(&limits)).collect(),
        left_out: long.into_iter().map(left_out).collect(),
    })
}

/// Whether one run of at least `least_s` would use up too much of `time`, or of a second where that is more.
fn is_too_long(least_s: f64, time: Duration) -> bool {
    least_s > MOST_OF_TIME * time.as_secs_f64().max(1.0)
}

/// A case and the times it took.
struct Timed {
    case: Case,
    /// Runs in a sample.
    repeats: u32,
    /// Seconds of one run.
    samples: Vec<f64>,
}

impl Timed {
    fn new(case: Case) -> Self {
        Self { case, repeats: 1, samples: Vec::new() }
    }

    fn sample(&mut self, backend: &CpuBackend) {
        let start = Instant::now();
        for _ in 0..self.repeats {
            (self.case.run)(backend);
        }
        let seconds = start.elapsed().as_secs_f64() / f64::from(self.repeats);
        if self.samples.is_empty() {
            // How short it is shows once everything it needs has been there.
            let start = Instant::now();
            (self.case.run)(backend);
            let again = start.elapsed().as_secs_f64().max(1e-9);
            self.repeats = (SAMPLE.as_secs_f64() / again).ceil().clamp(1.0, f64::from(MAX_REPEATS)) as u32;
        }
        self.samples.push(seconds);
    }

    fn row(mut self, limits: &Limits) -> KernelRow {
        // The first sample warmed up; it counts where it is the only one.
        if self.samples.len() > 1 {
            self.samples.remove(0);
        }
        let samples = self.samples.len();
        let time = median(&mut self.samples).max(1e-9);
        let (bound, least) = self.case.need.bound(limits);
        KernelRow {
            kernel: self.case.kernel,
            size: self.case.size,
            rows: self.case.rows,
            time_us: 1e6 * time,
            least_time_us: 1e6 * self.samples[0],
            samples,
            bytes: self.case.need.bytes,
            operations: self.case.need.operations,
            bytes_per_s: self.case.need.bytes / time,
            operations_per_s: self.case.need.operations / time,
            bound,
            share: least / time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuConfig, IsaChoice};

    #[test]
    fn every_kernel_has_a_row_with_a_sane_share() {
        let backend =
            CpuBackend::new(CpuConfig { threads: Some(2), isa: IsaChoice::Auto, pin: false }).expect("a backend");
        let plan = MeasurePlan { extent: Extent::Quick, time: Duration::from_millis(200) };
        let mut last = 0.0;
        let report = measure(&backend, &plan, &mut |progress| {
            assert!((0.0..=1.0).contains(&progress.share) && progress.share >= last);
            last = progress.share;
        })
        .expect("it fits");
        for kernel in ["linear", "adapt", "attend", "add_norm", "rope", "gate", "embed"] {
            assert!(report.kernels.iter().any(|row| row.kernel == kernel), "{kernel}");
        }
        assert!(report.left_out.is_empty(), "{:?}", report.left_out);
        for row in &report.kernels {
            assert!(row.time_us > 0.0 && row.least_time_us <= row.time_us && row.samples > 0, "{row:?}");
            assert!(row.share > 0.0 && row.share < 100.0, "{row:?}");
        }
        let text = report.to_string();
        assert!(text.contains("256 x 704 int8") && text.contains("sizes that sit in caches"), "{text}");
    }

    #[test]
    fn what_takes_more_than_a_tenth_of_the_time_is_too_long() {
        assert!(is_too_long(1.6, Duration::from_secs(15)) && !is_too_long(1.4, Duration::from_secs(15)));
        assert!(is_too_long(0.11, Duration::ZERO) && !is_too_long(0.09, Duration::ZERO));
    }

    #[test]
    fn the_table_says_what_was_left_out() {
        let report = KernelReport {
            cpu: CpuFacts { model: "A CPU".into(), cores: 1, flags: Vec::new(), caches: Vec::new() },
            chosen: Chosen { isa: "scalar", threads: 1 },
            limits: Limits {
                memory_bytes_per_s: 10e9,
                cache_bytes_per_s: 100e9,
                f32_per_s: 1e9,
                bf16_per_s: None,
                int8_per_s: Some(2e9),
            },
            extent: Extent::Full,
            rounds: 3,
            kernels: vec![KernelRow {
                kernel: "linear",
                size: "2048 x 2048 bf16".into(),
                rows: 1,
                time_us: 1000.0,
                least_time_us: 900.0,
                samples: 2,
                bytes: 8e6,
                operations: 8e6,
                bytes_per_s: 8e9,
                operations_per_s: 8e9,
                bound: Bound::Memory,
                share: 0.8,
            }],
            left_out: vec![LeftOut { kernel: "linear", size: "32000 x 2048 f32".into(), rows: 256, least_s: 33.5 }],
        };
        let text = report.to_string();
        assert!(text.contains("8.00 GB/s") && text.contains("80 %") && text.contains("memory"), "{text}");
        assert!(text.contains("left out: linear 32000 x 2048 f32, 256 rows (at least 33.5 s)"), "{text}");
        assert!(text.contains("int8 dot products"), "{text}");
    }
}
