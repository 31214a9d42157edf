//! Flags that say what shall be found out: targets, repetitions, the highest load that meets the targets.

use std::time::Duration;

use clap::Args;
use pelton_bench::slo::Slo;
use pelton_bench::{Goals, SearchAxis, SearchPlan};

use crate::args::duration::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Targets")]
pub struct GoalArgs {
    /// A target that each run shall meet; may be given several times. METRIC:AGGREGATE<LIMIT for latencies (ttft:p95<500ms,
    /// itl:p99<60ms, e2e:mean<2s; aggregates: min, p50, p90, p95, p99, p99.9, max, mean), METRIC<LIMIT for numbers of the whole run
    /// (error-rate<1%, requests-per-second>10, attainment>99%). `pelton bench explain` lists the metrics. A missed target gives exit
    /// code 3. Together they also define goodput: answers whose own values meet all of them.
    #[arg(long, value_name = "TARGET")]
    pub slo: Vec<Slo>,

    /// Runs of each case. All cases are run once before any is run again, so that a drift of the server hits all alike; the report
    /// gives confidence intervals over them. One run tells nothing of how runs differ: 5 are a good number for comparisons.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeats: u32,

    /// Finds the highest load that meets all targets: users[:FROM..TO] or rate[:FROM..TO] (users:1..1024, rate:1..1000). It doubles
    /// from FROM until targets are missed, halves the distance, and believes a level only if it meets the targets again. Each
    /// level is a run of --duration; give it time to settle with --warmup.
    #[arg(long, value_name = "AXIS[:FROM..TO]", value_parser = search, requires = "slo",
          conflicts_with_all = ["users", "rate", "replay", "stages", "repeats"])]
    pub search: Option<SearchRange>,

    /// How close the answer and the next level that misses the targets shall be. Less costs one run for each halving.
    #[arg(long, value_name = "SHARE", requires = "search", default_value = "5%", value_parser = share)]
    pub search_precision: f64,

    /// Times that a level must meet the targets to be the answer. Where runs of a level disagree, more than half of them decide.
    #[arg(long, value_name = "N", requires = "search", default_value_t = 2)]
    pub search_confirm: u32,

    /// Most runs of a search.
    #[arg(long, value_name = "N", requires = "search", default_value_t = 40)]
    pub search_max_runs: u32,

    /// Time after which no further run of a search begins.
    #[arg(long, value_name = "TIME", requires = "search", default_value = "2h", value_parser = duration)]
    pub search_max_time: Duration,

    /// Only warn when the client, not the server, was the limit (its thread busy more than 80 % of the time or waiting for a
    /// processor more than 5 %, more than 1 % of the starts late). Without it that gives exit code 4.
    #[arg(long)]
    pub allow_client_limit: bool,
}

/// What a search varies, between which bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchRange {
    pub axis: SearchAxis,
    pub from: f64,
    pub to: f64,
}

impl GoalArgs {
    pub fn goals(&self) -> Goals {
        let search = self.search.map(|SearchRange { axis, from, to }| SearchPlan {
            axis,
            from,
            to,
            precision: self.search_precision,
            confirm: self.search_confirm,
            max_runs: self.search_max_runs,
            max_time: self.search_max_time,
        });
        Goals { slos: self.slo.clone(), repeats: self.repeats, search }
    }
}

fn search(text: &str) -> Result<SearchRange, String> {
    let (name, range) = text.split_once(':').map_or((text, None), |(name, range)| (name, Some(range)));
    let (axis, from, to) = match name {
        "users" => (SearchAxis::Users, 1.0, 1024.0),
        "rate" => (SearchAxis::Rate, 1.0, 1000.0),
        _ => return Err(format!("{name:?} is neither users nor rate")),
    };
    let Some(range) = range else { return Ok(SearchRange { axis, from, to }) };
    let number = |text: &str| text.trim().parse::<f64>().map_err(|_| format!("{text:?} is not a number"));
    let (from, to) = range.split_once("..").ok_or_else(|| format!("{range:?} is not FROM..TO"))?;
    Ok(SearchRange { axis, from: number(from)?, to: number(to)? })
}

/// `5%` or `0.05`.
fn share(text: &str) -> Result<f64, String> {
    let (number, divisor) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    number
        .trim()
        .parse::<f64>()
        .map(|number| number / divisor)
        .map_err(|_| format!("{text:?} is not a share, such as 5%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_have_an_axis_and_bounds() {
        let range = |axis, from, to| Ok(SearchRange { axis, from, to });
        assert_eq!(search("users"), range(SearchAxis::Users, 1.0, 1024.0));
        assert_eq!(search("rate:0.5..20"), range(SearchAxis::Rate, 0.5, 20.0));
        for bad in ["tokens", "users:5", "users:a..b"] {
            assert!(search(bad).is_err(), "{bad}");
        }
        assert_eq!((share("5%"), share("0.1")), (Ok(0.05), Ok(0.1)));
    }
}
