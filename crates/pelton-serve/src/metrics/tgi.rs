//! Metric names of text-generation-inference, as its published dashboard queries them.
//!
//! Absent are the series per batch phase (`tgi_batch_inference_*` and kin): there is no prefill batch and no decode batch here.

use std::sync::atomic::Ordering::Relaxed;

use pelton_engine::EngineGauges;

use super::histogram::{Histogram, exponential, linear};
use super::registry::{CacheShape, Counters, Series, header, sample};
use super::speculation::Accepted;
use crate::Limits;

pub(crate) fn series(limits: &Limits) -> Vec<Series> {
    let seconds = || Histogram::new(exponential(0.0001, 1.5, 35));
    let tokens = |max: u32| Histogram::new(linear(f64::from(max), 100));
    let (input, total) = (limits.max_input_tokens, limits.max_total_tokens);
    vec![
        Series {
            name: "tgi_request_duration",
            help: "Seconds from arrival to the end.",
            value: |record| Some(record.total().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "tgi_request_validation_duration",
            help: "Seconds of checking and tokenizing.",
            value: |record| Some(record.validation().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "tgi_request_queue_duration",
            help: "Seconds from the queue to the first step.",
            value: |record| Some(record.queue().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "tgi_request_inference_duration",
            help: "Seconds from the first step to the end.",
            value: |record| Some(record.inference().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "tgi_request_mean_time_per_token_duration",
            help: "Inference seconds per generated token.",
            value: |record| Some(record.time_per_token().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "tgi_request_input_length",
            help: "Prompt tokens.",
            value: |record| Some(f64::from(record.num_prompt_tokens)),
            histogram: tokens(input),
        },
        Series {
            name: "tgi_request_max_new_tokens",
            help: "Tokens that a request was allowed.",
            value: |record| Some(f64::from(record.max_tokens)),
            histogram: tokens(total),
        },
        Series {
            name: "tgi_request_generated_tokens",
            help: "Tokens generated.",
            value: |record| Some(f64::from(record.num_generated_tokens)),
            histogram: tokens(total),
        },
    ]
}

pub(crate) fn render(counters: &Counters, gauges: &EngineGauges, cache: CacheShape, out: &mut String) {
    header("tgi_request_count", "Requests.", "counter", out);
    sample("tgi_request_count", "", counters.requests.load(Relaxed), out);

    header("tgi_request_success", "Requests that ended well.", "counter", out);
    let success = counters.stopped.load(Relaxed) + counters.reached_length.load(Relaxed);
    sample("tgi_request_success", "", success, out);

    header("tgi_request_failure", "Requests that did not, by reason.", "counter", out);
    for (reason, counter) in [
        ("overloaded", &counters.overloaded),
        ("validation", &counters.invalid),
        ("template", &counters.bad_template),
        ("generation", &counters.failed),
        ("dropped", &counters.cancelled),
    ] {
        sample("tgi_request_failure", &format!("err=\"{reason}\""), counter.load(Relaxed), out);
    }

    let name = "tgi_request_skipped_tokens";
    header(name, "Guessed tokens accepted, for each sequence in each step that gave it a token.", "summary", out);
    let accepted = Accepted::read(gauges);
    for quantile in [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
        sample(name, &format!("quantile=\"{quantile}\""), accepted.quantile(quantile), out);
    }
    sample("tgi_request_skipped_tokens_sum", "", accepted.sum(), out);
    sample("tgi_request_skipped_tokens_count", "", accepted.count(), out);

    header("tgi_queue_size", "Waiting sequences.", "gauge", out);
    sample("tgi_queue_size", "", gauges.waiting.load(Relaxed), out);
    header("tgi_batch_current_size", "Running sequences.", "gauge", out);
    sample("tgi_batch_current_size", "", gauges.running.load(Relaxed), out);
    header("tgi_batch_current_max_tokens", "Token positions owned by running sequences.", "gauge", out);
    let tokens = gauges.blocks_used.load(Relaxed) * u64::from(cache.block_tokens);
    sample("tgi_batch_current_max_tokens", "", tokens, out);
}
