//! A page in the Prometheus text format: its series as written, and what servers of several makes say in common terms.
//!
//! Names: vLLM (`gpu_cache_usage_perc` until 0.10, then `kv_cache_usage_perc`; counters with and without `_total`), TGI (tokens of finished
//! requests only), SGLang, llama.cpp, and Triton with TensorRT-LLM.

use std::collections::{BTreeMap, HashMap};

use super::ServerSample;

/// Most series that are kept of one page.
const MAX_SERIES: usize = 20_000;

/// One line of a page.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Series<'a> {
    name: &'a str,
    /// As written between the braces.
    labels: &'a str,
    /// Name and labels as written.
    text: &'a str,
    value: f64,
}

/// The series of a page. Lines that are none are passed over.
fn series(page: &str) -> impl Iterator<Item = Series<'_>> {
    page.lines().filter_map(read_line)
}

fn read_line(line: &str) -> Option<Series<'_>> {
    let line = line.trim();
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let name = &line[..end];
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let (labels, rest) = match line[end..].strip_prefix('{') {
        Some(inside) => {
            let close = closing_brace(inside)?;
            (&inside[..close], &inside[close + 1..])
        }
        None => ("", &line[end..]),
    };
    let text = line[..line.len() - rest.len()].trim_end();
    // A time stamp may follow.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series { name, labels, text, value })
}

/// Labels may hold braces in quotes, and quotes behind backslashes.
fn closing_brace(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Whether the page has any series at all.
pub fn has_series(page: &str) -> bool {
    series(page).next().is_some()
}

/// Counters and the sums and counts of histograms and summaries: series as written, and their values.
pub fn counters(page: &str) -> BTreeMap<String, f64> {
    let types: HashMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.trim().split_once(char::is_whitespace)).collect();
    let grows = |series: &Series<'_>| {
        if series.name.ends_with("_created") {
            return false;
        }
        let base = |suffix: &str| series.name.strip_suffix(suffix).and_then(|base| types.get(base)).copied();
        match types.get(series.name).copied().or_else(|| base("_total")) {
            Some(kind) => matches!(kind.trim(), "counter" | "untyped" | "unknown"),
            None => match base("_sum").or_else(|| base("_count")) {
                Some(kind) => matches!(kind.trim(), "histogram" | "summary"),
                // Of a page without types all is kept that is no bucket.
                None => base("_bucket").is_none() && types.is_empty(),
            },
        }
    };
    let kept = series(page).filter(|series| series.value.is_finite() && grows(series)).take(MAX_SERIES);
    kept.map(|series| (series.text.to_owned(), series.value)).collect()
}

/// What a series tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    Running,
    Waiting,
    KvUsage,
    PromptTokens,
    GeneratedTokens,
}

/// Numbers of kinds of things told.
const NUM_TELLS: usize = 5;

/// Names of one make of servers, with a label that must be there.
type Family = &'static [(&'static str, &'static str, Tells)];

/// Makes in order: where a page has the names of several, the first that tells a thing is believed.
const FAMILIES: [Family; 6] = [
    &[
        ("vllm:num_requests_running", "", Tells::Running),
        ("vllm:num_requests_waiting", "", Tells::Waiting),
        ("vllm:kv_cache_usage_perc", "", Tells::KvUsage),
        ("vllm:gpu_cache_usage_perc", "", Tells::KvUsage),
        ("vllm:prompt_tokens_total", "", Tells::PromptTokens),
        ("vllm:prompt_tokens", "", Tells::PromptTokens),
        ("vllm:generation_tokens_total", "", Tells::GeneratedTokens),
        ("vllm:generation_tokens", "", Tells::GeneratedTokens),
    ],
    &[
        ("tgi_batch_current_size", "", Tells::Running),
        ("tgi_queue_size", "", Tells::Waiting),
        ("tgi_request_input_length_sum", "", Tells::PromptTokens),
        ("tgi_request_generated_tokens_sum", "", Tells::GeneratedTokens),
    ],
    &[
        ("sglang:num_running_reqs", "", Tells::Running),
        ("sglang:num_queue_reqs", "", Tells::Waiting),
        ("sglang:token_usage", "", Tells::KvUsage),
        ("sglang:prompt_tokens_total", "", Tells::PromptTokens),
        ("sglang:generation_tokens_total", "", Tells::GeneratedTokens),
    ],
    &[
        ("llamacpp:requests_processing", "", Tells::Running),
        ("llamacpp:requests_deferred", "", Tells::Waiting),
        ("llamacpp:kv_cache_usage_ratio", "", Tells::KvUsage),
        ("llamacpp:prompt_tokens_total", "", Tells::PromptTokens),
        ("llamacpp:tokens_predicted_total", "", Tells::GeneratedTokens),
    ],
    &[
        ("nv_trt_llm_request_metrics", "request_type=\"active\"", Tells::Running),
        ("nv_trt_llm_request_metrics", "request_type=\"waiting\"", Tells::Waiting),
        ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type=\"fraction\"", Tells::KvUsage),
    ],
    &[("nv_inference_pending_request_count", "", Tells::Waiting)],
];

/// What a page says at `at_us`. Series that differ in their labels (engines, models) are added, their shares of the cache averaged.
pub fn sample(page: &str, at_us: u64) -> ServerSample {
    let mut sums = [[None::<(f64, u32)>; FAMILIES.len()]; NUM_TELLS];
    for series in series(page).filter(|series| series.value.is_finite()) {
        for (family, names) in FAMILIES.iter().enumerate() {
            let told = names.iter().find(|(name, label, _)| *name == series.name && series.labels.contains(label));
            if let Some((.., tells)) = told {
                let (sum, n) = sums[*tells as usize][family].get_or_insert((0.0, 0));
                *sum += series.value;
                *n += 1;
            }
        }
    }
    let first = |tells: Tells| sums[tells as usize].iter().flatten().next().copied();
    let sum = |tells| first(tells).map(|(sum, _)| sum);
    ServerSample {
        at_us,
        running: sum(Tells::Running),
        waiting: sum(Tells::Waiting),
        kv_usage: first(Tells::KvUsage).map(|(sum, n)| sum / f64::from(n)),
        prompt_tokens: sum(Tells::PromptTokens),
        generated_tokens: sum(Tells::GeneratedTokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_written() {
        let line = r#"a_total{x="}\"{",y="1"} 3e2 1700000000"#;
        let expected =
            Series { name: "a_total", labels: r#"x="}\"{",y="1""#, text: r#"a_total{x="}\"{",y="1"}"#, value: 300.0 };
        assert_eq!(read_line(line), Some(expected));
        assert_eq!(read_line("b 5").map(|series| (series.text, series.value)), Some(("b", 5.0)));
        assert_eq!(read_line("  b\t-Inf").map(|series| series.value), Some(f64::NEG_INFINITY));
        for none in ["", "# HELP a b", "# a{} 5", "a", "a{x=\"1\" 5", "a five", "{} 1", "<html> 5x"] {
            assert_eq!(read_line(none), None, "{none}");
        }
    }

    #[test]
    fn what_grows_is_kept() {
        let page = r#"# HELP tgi_request_count n
# TYPE tgi_request_count counter
tgi_request_count 7
# TYPE tgi_queue_size gauge
tgi_queue_size 3
# TYPE d histogram
d_bucket{method="decode",le="1"} 1
d_bucket{method="decode",le="+Inf"} 2
d_sum{method="decode"} 1.5
d_count{method="decode"} 2
# TYPE s summary
s{quantile="0.5"} 4
s_sum 9
# TYPE t counter
t_total{a="b"} 5
t_created{a="b"} 1700000000
"#;
        let kept = counters(page);
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "d_count{method=\"decode\"}",
                "d_sum{method=\"decode\"}",
                "s_sum",
                "t_total{a=\"b\"}",
                "tgi_request_count"
            ]
        );
        assert_eq!(kept["d_sum{method=\"decode\"}"], 1.5);
        assert_eq!(counters("a 1\nb NaN\n").into_iter().collect::<Vec<_>>(), [("a".to_owned(), 1.0)]);
    }

    #[test]
    fn servers_of_each_make_are_understood() {
        let sample = |page: &str| {
            let ServerSample { running, waiting, kv_usage, prompt_tokens, generated_tokens, .. } = sample(page, 0);
            [running, waiting, kv_usage, prompt_tokens, generated_tokens]
        };
        let old = "vllm:num_requests_running{model_name=\"m\"} 4.0\nvllm:num_requests_waiting{model_name=\"m\"} 2\n\
                   vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.25\nvllm:prompt_tokens_total{model_name=\"m\"} 10\n\
                   vllm:generation_tokens_total{model_name=\"m\"} 20";
        assert_eq!(sample(old), [Some(4.0), Some(2.0), Some(0.25), Some(10.0), Some(20.0)]);
        let new = "vllm:num_requests_running{engine=\"0\"} 4\nvllm:num_requests_running{engine=\"1\"} 5\n\
                   vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75";
        assert_eq!(sample(new), [Some(9.0), None, Some(0.5), None, None]);
        let tgi = "tgi_batch_current_size 3\ntgi_queue_size 1\ntgi_request_input_length_sum 100\ntgi_request_generated_tokens_sum 50";
        assert_eq!(sample(tgi), [Some(3.0), Some(1.0), None, Some(100.0), Some(50.0)]);
        assert_eq!(sample(&format!("{tgi}\n{old}"))[0], Some(4.0), "one make is believed, not the sum of two");
        let llama = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 6\nllamacpp:prompt_tokens_total 5\nllamacpp:tokens_predicted_total 8";
        assert_eq!(sample(llama), [Some(1.0), Some(6.0), None, Some(5.0), Some(8.0)]);
        let triton = "nv_inference_pending_request_count{model=\"a\",version=\"1\"} 2\nnv_inference_pending_request_count{model=\"b\",version=\"1\"} 3";
        assert_eq!(sample(triton), [None, Some(5.0), None, None, None]);
        let trt = "nv_trt_llm_request_metrics{model=\"t\",request_type=\"waiting\",version=\"1\"} 2\n\
                   nv_trt_llm_request_metrics{model=\"t\",request_type=\"active\",version=\"1\"} 8\n\
                   nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"t\"} 0.5";
        assert_eq!(sample(&format!("{trt}\n{triton}")), [Some(8.0), Some(2.0), Some(0.5), None, None]);
    }
}
