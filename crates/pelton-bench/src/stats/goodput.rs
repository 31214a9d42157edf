//! Which requests met the targets; definitions are in [`crate::slo`].

use super::{Distribution, Window, values};
use crate::metric::Metric;
use crate::plan::TargetPlan;
use crate::recorder::{Part, Row};
use crate::slo::{Attained, Goodput, Slo};

/// `None` if no target judges requests.
pub(super) fn goodput(
    slos: &[Slo],
    target: &TargetPlan,
    rows: &[Row],
    window: Window,
    dropped: u64,
) -> Option<Goodput> {
    let judging: Vec<Slo> = slos.iter().copied().filter(Slo::judges_requests).collect();
    if judging.is_empty() {
        return None;
    }
    let meets = |row: &Row, slo: &Slo| row.failure.is_none() && own_value_meets(row, slo, target.stream);
    let (mut measured, mut good, mut finished) = (dropped, 0u64, 0u64);
    let mut met = vec![0u64; judging.len()];
    for row in rows {
        let mut is_good = true;
        for (slo, met) in judging.iter().zip(&mut met) {
            let meets = meets(row, slo);
            *met += u64::from(meets && row.part == Part::Measured);
            is_good &= meets;
        }
        measured += u64::from(row.part == Part::Measured);
        good += u64::from(is_good && row.part == Part::Measured);
        finished += u64::from(is_good && window.holds(row.end_at_us()));
    }
    let share = |n: u64| if measured > 0 { n as f64 / measured as f64 } else { 0.0 };
    Some(Goodput {
        requests_per_s: window.per_second(finished),
        attainment: share(good),
        by_slo: judging.into_iter().zip(met).map(|(slo, met)| Attained { slo, share: share(met) }).collect(),
    })
}

fn own_value_meets(row: &Row, slo: &Slo, is_streamed: bool) -> bool {
    match Distribution::of(values::of_row(row, slo.metric)).and_then(|own| slo.aggregate.of(&own)) {
        // The first arrival of a whole answer is its end.
        Some(_) if !is_streamed && matches!(slo.metric, Metric::Ttft | Metric::ServiceTtft) => false,
        Some(value) => slo.operator.holds(value, slo.limit),
        // An answer of one token has no gap that could be too long.
        None => matches!(slo.metric, Metric::Tpot | Metric::Itl | Metric::ChunkGap),
    }
}
