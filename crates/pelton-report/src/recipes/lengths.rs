//! Output lengths against requests per second, response time, batch factor and the share of work before and after the model: the load
//! test of a code model on Triton.
//!
//! The last three come from the server's own counters before and after each run. Each kind of server has counters of its own; what a
//! server does not count is left out, not guessed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use pelton_bench::results::{Results, RunResult};
use pelton_bench::{BenchPlan, Load, PromptMix, ServerMetrics, TargetPlan, WorkloadPlan};

use super::Table;
use super::table::or_dash;

/// Tokens of the answers in the original.
pub const OUTPUT_TOKENS: [u32; 4] = [8, 32, 128, 512];

/// CodeGen 350M on Triton with FasterTransformer, one A100 80 GB: output tokens, requests per second, mean response time in ms, requests
/// for each execution of the model, and the durations of pre- and postprocessing in percent of the model's.
const PUBLISHED: [(u32, f64, f64, f64, f64, f64); 4] = [
    (8, 1715.0, 38.0, 391_768.0 / 20_439.0, 2.73, 0.83),
    (32, 500.0, 122.0, 118_812.0 / 6_022.0, 0.76, 0.26),
    (128, 65.0, 620.0, 14_286.0 / 1_121.0, 0.16, 0.08),
    (512, 40.0, 1600.0, 7_183.0 / 465.0, 0.06, 0.06),
];

/// An ensemble's own time is that of its steps, but for what passes between them.
const ENSEMBLE_ERROR: f64 = 0.02;

/// A load test for each output length: constantly many users, one prompt for all.
pub fn plans(
    target: &TargetPlan,
    input: u32,
    outputs: &[u32],
    users: usize,
    duration: Duration,
    seed: u64,
) -> Vec<BenchPlan> {
    let plan = |&output: &u32| {
        let workload = WorkloadPlan { prompts: PromptMix::Same, ..WorkloadPlan::synthetic(input, output, seed) };
        super::test(target.clone(), workload, Load::users([users]), duration)
    };
    outputs.iter().map(plan).collect()
}

/// Work of a server between two readings of its counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Requests computed together, on average.
    pub batch: Option<f64>,
    /// Duration of preprocessing over that of the model, both summed over requests: in a batch each request has all of the model's time.
    pub before: Option<f64>,
    /// The same for postprocessing; of text-generation-inference both are summed over steps.
    pub after: Option<f64>,
}

impl Work {
    /// From the counters of Triton, text-generation-inference, vLLM or pelton.
    pub fn of(metrics: &ServerMetrics) -> Self {
        let counters = Counters(metrics);
        counters.triton().or_else(|| counters.tgi()).or_else(|| counters.vllm()).unwrap_or_default()
    }
}

struct Counters<'a>(&'a ServerMetrics);

impl Counters<'_> {
    /// What the series that begin with `name` and hold `label` grew by.
    fn grown(&self, name: &str, label: &str) -> Option<f64> {
        let sum = |page: &BTreeMap<String, f64>| {
            let named = page.iter().filter(|(series, _)| {
                let bare = series.split('{').next().unwrap_or_default();
                bare == name && series.contains(label)
            });
            named.map(|(_, value)| *value).reduce(|sum, value| sum + value)
        };
        let grown = sum(&self.0.after)? - sum(&self.0.before).unwrap_or(0.0);
        (grown > 0.0).then_some(grown)
    }

    fn ratio(&self, above: (&str, &str), below: (&str, &str)) -> Option<f64> {
        Some(self.grown(above.0, above.1)? / self.grown(below.0, below.1)?)
    }

    /// The model among an ensemble's steps is the one that computed longest, the ensemble itself left out: it is never executed on its own,
    /// and its time is the sum of its steps.
    fn triton(&self) -> Option<Work> {
        const INFER: &str = "nv_inference_compute_infer_duration_us";
        let models = self.0.after.keys().filter(|series| series.starts_with(INFER)).filter_map(|series| {
            let model = series.split("model=\"").nth(1)?.split('"').next()?;
            Some(format!("model=\"{model}\""))
        });
        let mut times: Vec<(f64, String)> =
            models.filter_map(|model| Some((self.grown(INFER, &model)?, model))).collect();
        times.sort_by(|one, other| other.0.total_cmp(&one.0));
        let is_sum = |first: f64, rest: &[(f64, String)]| {
            let sum: f64 = rest.iter().map(|(time, _)| time).sum();
            !rest.is_empty() && (first - sum).abs() < ENSEMBLE_ERROR * first
        };
        let model = match times.as_slice() {
            [(first, _), rest @ ..] if is_sum(*first, rest) => rest.first()?.1.clone(),
            [(_, model), ..] => model.clone(),
            [] => return None,
        };
        Some(Work {
            batch: self.ratio(("nv_inference_count", &model), ("nv_inference_exec_count", &model)),
            before: self.ratio((INFER, "model=\"preprocessing\""), (INFER, &model)),
            after: self.ratio((INFER, "model=\"postprocessing\""), (INFER, &model)),
        })
    }

    /// Generated tokens for each step is the number of requests in it; the first token of each comes from its prefill. pelton counts all of
    /// its steps.
    fn tgi(&self) -> Option<Work> {
        let generated = "tgi_request_generated_tokens_sum";
        let decoded = self.grown(generated, "").zip(self.grown("tgi_request_generated_tokens_count", ""));
        let decode_steps = self.grown("tgi_batch_inference_count", "method=\"decode\"");
        let of_decoding = decoded.zip(decode_steps).map(|((tokens, answers), steps)| (tokens - answers) / steps);
        let inference = ("tgi_request_inference_duration_sum", "");
        self.grown(inference.0, inference.1)?;
        Some(Work {
            batch: of_decoding.or_else(|| self.ratio((generated, ""), ("pelton:steps_total", ""))),
            before: self.ratio(("tgi_request_validation_duration_sum", ""), inference),
            after: self.ratio(("tgi_batch_decode_duration_sum", ""), ("tgi_batch_forward_duration_sum", "")),
        })
    }

    fn vllm(&self) -> Option<Work> {
        let batch = self.ratio(("vllm:generation_tokens_total", ""), ("vllm:iteration_tokens_total_count", ""))?;
        Some(Work { batch: Some(batch), ..Work::default() })
    }
}

/// Prints the table of one load test for each output length.
#[derive(Debug)]
pub struct Lengths<'a>(pub &'a [Results]);

impl fmt::Display for Lengths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "output length",
            "requests/s",
            "average response time",
            "batch factor",
            "preprocessing",
            "postprocessing",
            "failed",
            "published: requests/s, response time, batch, pre, post",
        ]);
        for results in self.0 {
            for run in &results.runs {
                let length = run.rows.first().map(|row| row.wished_tokens);
                let work = run.server_metrics.as_ref().map(Work::of).unwrap_or_default();
                let share = |share: Option<f64>| or_dash(share, |share| format!("{:.2} %", 100.0 * share));
                let published = length.and_then(|length| PUBLISHED.iter().find(|row| row.0 == length));
                table.row([
                    or_dash(length, |length| generated(length, run)),
                    format!("{:.2}", run.summary.rates.requests_per_s),
                    or_dash(run.summary.e2e_ms.as_ref(), |e2e| format!("{:.1} ms", e2e.mean)),
                    or_dash(work.batch, |batch| format!("{batch:.1}")),
                    share(work.before),
                    share(work.after),
                    format!("{} of {}", run.summary.requests.failed, run.summary.requests.measured),
                    or_dash(published, |&(_, rate, ms, batch, before, after)| {
                        format!("{rate:.0}, {ms:.0} ms, {batch:.1}, {before:.2} %, {after:.2} %")
                    }),
                ]);
            }
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "\nBatch factor: requests of each execution of the model. Pre- and postprocessing: their time over the model's, summed over \
             requests, so that a request in a batch of twenty counts the whole batch's time: shares of work are larger by the batch factor \
             (but for postprocessing of text-generation-inference, which counts steps)."
        )?;
        writeln!(f, "Published: CodeGen 350M, Triton with FasterTransformer, one A100 80 GB.")
    }
}

/// The wished length, and the mean of the answers where they are shorter.
fn generated(wished: u32, run: &RunResult) -> String {
    match &run.summary.output_tokens {
        Some(tokens) if tokens.mean < f64::from(wished) => format!("{wished} (mean {:.1})", tokens.mean),
        _ => wished.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(before: &[(&str, f64)], after: &[(&str, f64)]) -> ServerMetrics {
        let page = |series: &[(&str, f64)]| series.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        ServerMetrics { before: page(before), after: page(after), ..ServerMetrics::default() }
    }

    /// The counters that the original published for eight tokens give the figures that it states.
    #[test]
    fn the_published_counters_give_the_published_shares() {
        let infer = "nv_inference_compute_infer_duration_us";
        let series = |name: &str, model: &str| format!("{name}{{model=\"{model}\",version=\"1\"}}");
        let model = "codegen-350M-mono-gptj";
        let after = [
            (series("nv_inference_count", model), 391_768.0),
            (series("nv_inference_exec_count", model), 20_439.0),
            (series(infer, "ensemble"), 6_368_616_649.0),
            (series(infer, "postprocessing"), 51_508_744.0),
            (series(infer, model), 6_148_437_063.0),
            (series(infer, "preprocessing"), 168_281_250.0),
        ];
        let after: Vec<(&str, f64)> = after.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let work = Work::of(&metrics(&[], &after));
        let near = |value: Option<f64>, wanted: f64| (value.expect("is counted") - wanted).abs() < 0.01 * wanted;
        assert!(near(work.batch, 19.17) && near(work.before, 0.0273) && near(work.after, 0.0083), "{work:?}");
    }

    /// Whatever the ensemble is called, it is not the model; a model beside another one is.
    #[test]
    fn the_ensemble_is_known_by_its_sum() {
        let series = |what: &str, model: &str| format!("nv_inference_{what}{{model=\"{model}\"}}");
        let page = |times: &[(&str, f64)]| -> Vec<(String, f64)> {
            let of = |&(model, time): &(&str, f64)| {
                let executions = if model == "all" { 100.0 } else { 10.0 };
                let infer = series("compute_infer_duration_us", model);
                [(infer, time), (series("count", model), 100.0), (series("exec_count", model), executions)]
            };
            times.iter().flat_map(of).collect()
        };
        for times in [&[("all", 1010.0), ("model", 900.0), ("pre", 110.0)][..], &[("model", 900.0), ("all", 100.0)]] {
            let page = page(times);
            let after: Vec<(&str, f64)> = page.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            assert_eq!(Work::of(&metrics(&[], &after)).batch, Some(10.0), "{times:?}");
        }
    }

    #[test]
    fn only_the_growth_between_the_readings_counts() {
        let work = Work::of(&metrics(
            &[
                ("tgi_request_generated_tokens_sum", 100.0),
                ("pelton:steps_total", 100.0),
                ("tgi_request_inference_duration_sum", 5.0),
            ],
            &[
                ("tgi_request_generated_tokens_sum", 900.0),
                ("pelton:steps_total", 200.0),
                ("tgi_request_inference_duration_sum", 7.0),
            ],
        ));
        assert_eq!(work, Work { batch: Some(8.0), before: None, after: None });
    }

    #[test]
    fn a_server_that_counts_nothing_has_no_figures() {
        assert_eq!(Work::of(&metrics(&[], &[("process_cpu_seconds_total", 3.0)])), Work::default());
    }
}
