//! Results of several processes that shared one test, made into one.
//!
//! Each process ran the same plan with another share of the load (`Scale::shard`), and wrote its results. Runs are joined by their place
//! in the plan; times are laid on the clock of the part that began first (the clocks of the machines must agree: NTP keeps them within
//! milliseconds). Summaries are computed again from all rows. Where rows were left out, counts and rates are added up, and the quantiles
//! come from the added histograms, with their precision of 0.1 %.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::plan::{Scale, Shard};
use crate::recorder::Row;
use crate::results::{Results, RunResult};
use crate::search::SearchEnd;
use crate::stats::{self, Histograms, Merged, Summary};

/// Parts further apart than this did not run together.
pub const MAX_SKEW: Duration = Duration::from_secs(60);

/// Why results cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("at least one file of results is needed")]
    Nothing,
    /// The parts are of different tests.
    #[error("part {part} has another {what} than the first: merge only shares of one test")]
    Different {
        /// From 1.
        part: usize,
        /// What differs.
        what: &'static str,
    },
    /// Two parts are the same share.
    #[error("part {part} is shard {shard}, as one before it: merge each share once")]
    Twice {
        /// From 1.
        part: usize,
        /// Its share.
        shard: Shard,
    },
    /// Shares are missing.
    #[error("{found} of {of} shards are given: the merged load would not be the planned one")]
    Missing {
        /// How many there are.
        found: usize,
        /// How many there should be.
        of: u32,
    },
    /// The parts did not run together.
    #[error("run {run} of part {part} began {apart_s:.1} s apart from the first part's: start all together (--start-at), limit {max:?}", max = MAX_SKEW)]
    Apart {
        /// From 1.
        run: usize,
        /// From 1.
        part: usize,
        /// Distance in seconds.
        apart_s: f64,
    },
    /// A part holds a search, whose levels the other parts did not follow.
    #[error("part {0} is a search: a search cannot be shared, each process would follow its own levels")]
    Search(usize),
    /// A histogram cannot be read.
    #[error("part {part}: {why}")]
    Histogram {
        /// From 1.
        part: usize,
        /// Why.
        why: String,
    },
}

/// Joins the shares of one test.
///
/// # Errors
/// Parts of different tests, missing or doubled shares, runs that did not overlap.
pub fn merge(mut parts: Vec<Results>) -> Result<Results, MergeError> {
    check(&parts)?;
    // The order of the files shall not matter.
    parts.sort_by_key(|part| part.plan.scale.shard.unwrap_or(Shard::WHOLE).index);
    let mut rest = parts.into_iter();
    let Some(mut merged) = rest.next() else { return Err(MergeError::Nothing) };
    let mut columns: Vec<Vec<RunResult>> = std::mem::take(&mut merged.runs).into_iter().map(|run| vec![run]).collect();
    for part in rest {
        for (column, run) in columns.iter_mut().zip(part.runs) {
            column.push(run);
        }
        merged.began_unix_s = merged.began_unix_s.min(part.began_unix_s);
    }
    merged.plan.scale = Scale { keep: merged.plan.scale.keep, ..Scale::default() };
    let runs = columns.into_iter().enumerate().map(|(number, column)| join(&merged, number + 1, column));
    merged.runs = runs.collect::<Result<_, _>>()?;
    merged.estimates = stats::bootstrap::estimate_cases(&merged.runs);
    Ok(merged)
}

fn check(parts: &[Results]) -> Result<(), MergeError> {
    let first = parts.first().ok_or(MergeError::Nothing)?;
    let mut shards = HashSet::new();
    let of = first.plan.scale.shard.map_or(1, |shard| shard.of);
    for (number, part) in (1..).zip(parts) {
        let different = |what| Err(MergeError::Different { part: number, what });
        if part.search.as_ref().is_some_and(|search| search.end != SearchEnd::Interrupted || !search.trials.is_empty())
        {
            return Err(MergeError::Search(number));
        }
        if part.server.model != first.server.model || part.server.api != first.server.api {
            return different("server");
        }
        if part.plan.load != first.plan.load || part.plan.goals != first.plan.goals {
            return different("load");
        }
        if part.plan.scale.keep != first.plan.scale.keep {
            return different("choice of rows kept");
        }
        if part.plan.workload.seed != first.plan.workload.seed {
            return different("seed");
        }
        if part.plan.workload != first.plan.workload {
            return different("workload");
        }
        if part.plan.limits != first.plan.limits {
            return different("duration or number of requests");
        }
        if (part.plan.warmup, part.plan.cooldown) != (first.plan.warmup, first.plan.cooldown) {
            return different("warm-up or cool-down");
        }
        if part.runs.len() != first.runs.len() || part.runs.iter().zip(&first.runs).any(|(a, b)| a.case != b.case) {
            return different("list of runs");
        }
        let shard = part.plan.scale.shard.unwrap_or(Shard::WHOLE);
        if shard.of != of {
            return different("number of shards");
        }
        if !shards.insert(shard.index) {
            return Err(MergeError::Twice { part: number, shard });
        }
        for (run, (here, there)) in (1..).zip(part.runs.iter().zip(&first.runs)) {
            let apart_s = (here.began_unix_s - there.began_unix_s).abs();
            if apart_s > MAX_SKEW.as_secs_f64() {
                return Err(MergeError::Apart { run, part: number, apart_s });
            }
        }
    }
    if shards.len() != of as usize {
        return Err(MergeError::Missing { found: shards.len(), of });
    }
    Ok(())
}

/// One run from the parts of it.
fn join(whole: &Results, number: usize, parts: Vec<RunResult>) -> Result<RunResult, MergeError> {
    let began_unix_s = parts.iter().map(|part| part.began_unix_s).fold(f64::INFINITY, f64::min);
    let wall_s = parts.iter().map(|part| part.began_unix_s - began_unix_s + part.wall_s).fold(0.0, f64::max);
    let summaries: Vec<(f64, Summary)> =
        parts.iter().map(|part| (part.began_unix_s - began_unix_s, part.summary.clone())).collect();
    let is_interrupted = parts.iter().any(|part| part.is_interrupted);
    let mut histograms: Option<Histograms> = None;
    let (mut rows, mut dropped_us): (Vec<Row>, Vec<u64>) = (Vec::new(), Vec::new());
    let mut server_metrics = None;
    let (case, repeat) = (parts[0].case.clone(), parts[0].repeat);
    for (part, run) in parts.into_iter().enumerate() {
        let later_us = ((run.began_unix_s - began_unix_s) * 1e6).round() as u64;
        rows.extend(run.rows.into_iter().map(|row| Row {
            intended_us: row.intended_us + later_us,
            start_us: row.start_us + later_us,
            ..row
        }));
        dropped_us.extend(run.dropped_us.into_iter().map(|at| at + later_us));
        // Each part read the same server.
        server_metrics = server_metrics.or(run.server_metrics.map(|mut metrics| {
            metrics.samples.iter_mut().for_each(|sample| sample.at_us += later_us);
            metrics
        }));
        if let Some(part_of) = run.histograms {
            let sum = histograms.get_or_insert_default();
            sum.add(&part_of).map_err(|why| MergeError::Histogram { part: part + 1, why })?;
        }
    }
    rows.sort_by_key(|row| (row.intended_us, row.index, row.turn));
    renumber(&mut rows);
    dropped_us.sort_unstable();
    let merged = Merged {
        case: &case,
        rows: &rows,
        dropped_us: &dropped_us,
        parts: &summaries,
        is_interrupted,
        histograms: histograms.as_ref(),
    };
    let summary = merged.summary(&whole.plan).map_err(|why| MergeError::Histogram { part: number, why })?;
    Ok(RunResult {
        verdicts: whole.plan.goals.slos.iter().map(|slo| slo.judge(&summary)).collect(),
        case,
        repeat,
        began_unix_s,
        wall_s,
        is_interrupted,
        summary,
        histograms,
        server_metrics,
        dropped_us,
        rows,
    })
}

/// New numbers in order of the intended start; turns of one conversation keep sharing theirs.
fn renumber(rows: &mut [Row]) {
    let mut numbers: BTreeMap<u64, u64> = BTreeMap::new();
    for row in rows.iter_mut() {
        let next = numbers.len() as u64;
        row.index = *numbers.entry(row.index).or_insert(next);
    }
    rows.sort_by_key(|row| (row.index, row.turn));
}
