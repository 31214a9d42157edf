//! Metric names of vLLM's OpenAI server, current and former, as dashboards, load tests and gateways read them.
//!
//! Absent is `vllm:iteration_tokens_total`: it is a histogram over steps, and steps are the engine's; its count of rows is there as a counter.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pelton_engine::EngineGauges;

use super::histogram::{Histogram, one_two_five};
use super::registry::{CacheShape, Counters, Series, header, sample};
use super::speculation::Accepted;
use crate::Limits;

/// Bounds of the gap histogram, in seconds.
pub(crate) const TOKEN_GAP_BOUNDS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// The present and the former name of the gap histogram.
pub(crate) const TOKEN_GAP_NAMES: [&str; 2] =
    ["vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"];

const FIRST_TOKEN_BOUNDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

const REQUEST_BOUNDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

pub(crate) fn series(limits: &Limits) -> Vec<Series> {
    let seconds = || Histogram::new(REQUEST_BOUNDS);
    let tokens = || Histogram::new(one_two_five(f64::from(limits.max_total_tokens)));
    vec![
        Series {
            name: "vllm:time_to_first_token_seconds",
            help: "Seconds from arrival to the first token.",
            value: |record| Some(record.time_to_first_token()?.as_secs_f64()),
            histogram: Histogram::new(FIRST_TOKEN_BOUNDS),
        },
        Series {
            name: "vllm:request_time_per_output_token_seconds",
            help: "Mean seconds between tokens of a request.",
            value: |record| Some(record.time_per_output_token()?.as_secs_f64()),
            histogram: Histogram::new(TOKEN_GAP_BOUNDS),
        },
        Series {
            name: "vllm:e2e_request_latency_seconds",
            help: "Seconds from arrival to the end.",
            value: |record| Some(record.total().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "vllm:request_queue_time_seconds",
            help: "Seconds from the queue to the first step.",
            value: |record| Some(record.queue().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "vllm:request_inference_time_seconds",
            help: "Seconds from the first step to the last token.",
            value: |record| Some(record.inference().as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "vllm:request_prefill_time_seconds",
            help: "Seconds from the first step to the first token.",
            value: |record| Some(record.prefill()?.as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "vllm:request_decode_time_seconds",
            help: "Seconds from the first to the last token.",
            value: |record| Some(record.decode()?.as_secs_f64()),
            histogram: seconds(),
        },
        Series {
            name: "vllm:request_prompt_tokens",
            help: "Prompt tokens.",
            value: |record| Some(f64::from(record.num_prompt_tokens)),
            histogram: tokens(),
        },
        Series {
            name: "vllm:request_generation_tokens",
            help: "Tokens generated.",
            value: |record| Some(f64::from(record.num_generated_tokens)),
            histogram: tokens(),
        },
        Series {
            name: "vllm:request_params_max_tokens",
            help: "Tokens that a choice was allowed.",
            value: |record| Some(f64::from(record.max_tokens)),
            histogram: tokens(),
        },
        Series {
            name: "vllm:request_params_n",
            help: "Sequences of a request.",
            value: |record| Some(f64::from(record.num_sequences)),
            histogram: Histogram::new([1.0, 2.0, 5.0, 10.0, 20.0]),
        },
    ]
}

pub(crate) fn render(counters: &Counters, gauges: &EngineGauges, cache: CacheShape, labels: &str, out: &mut String) {
    let mut gauge = |name: &str, help: &str, value: f64| {
        header(name, help, "gauge", out);
        sample(name, labels, value, out);
    };
    gauge("vllm:num_requests_running", "Running sequences.", gauges.running.load(Relaxed) as f64);
    gauge("vllm:num_requests_waiting", "Waiting sequences.", gauges.waiting.load(Relaxed) as f64);
    let blocks = gauges.blocks_total.load(Relaxed).max(1) as f64;
    let usage = gauges.blocks_used.load(Relaxed) as f64 / blocks;
    gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", usage);
    gauge("vllm:gpu_cache_usage_perc", "Former name of vllm:kv_cache_usage_perc.", usage);

    let name = "vllm:cache_config_info";
    header(name, "Sizes of the KV cache, as labels.", "gauge", out);
    let CacheShape { block_tokens, num_blocks } = cache;
    sample(name, &format!("{labels},block_size=\"{block_tokens}\",num_gpu_blocks=\"{num_blocks}\""), 1, out);

    let mut counter = |name: &str, help: &str, value: &AtomicU64| {
        header(name, help, "counter", out);
        sample(name, labels, value.load(Relaxed), out);
    };
    counter("vllm:prompt_tokens_total", "Prompt tokens computed or found.", &counters.prompt_tokens);
    counter("vllm:generation_tokens_total", "Tokens generated.", &counters.generated_tokens);
    counter("vllm:num_preemptions_total", "Sequences that lost their blocks.", &gauges.preemptions);
    counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up.", &gauges.prefix_queried_tokens);
    counter("vllm:prefix_cache_hits_total", "Prompt tokens found.", &gauges.prefix_hit_tokens);
    counter("vllm:spec_decode_num_drafts_total", "Rounds of guessing: a sequence in a step.", &gauges.drafts);
    counter("vllm:spec_decode_num_draft_tokens_total", "Tokens guessed.", &gauges.drafted_tokens);
    counter("pelton:steps_total", "Steps computed.", &gauges.steps);
    counter("pelton:step_rows_total", "Rows computed, over all steps.", &gauges.rows);

    let accepted = Accepted::read(gauges);
    let name = "vllm:spec_decode_num_accepted_tokens_total";
    header(name, "Guessed tokens accepted.", "counter", out);
    sample(name, labels, accepted.sum(), out);
    let name = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
    header(name, "Guessed tokens accepted, by place in their round.", "counter", out);
    for position in 0..gauges.samples_by_accepted.len() - 1 {
        sample(name, &format!("{labels},position=\"{position}\""), accepted.at(position), out);
    }

    let name = "vllm:request_success_total";
    header(name, "Ended requests by reason.", "counter", out);
    for (reason, counter) in [
        ("stop", &counters.stopped),
        ("length", &counters.reached_length),
        ("abort", &counters.cancelled),
        ("error", &counters.failed),
    ] {
        sample(name, &format!("{labels},finished_reason=\"{reason}\""), counter.load(Relaxed), out);
    }
}
