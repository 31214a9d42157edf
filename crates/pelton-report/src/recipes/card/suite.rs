//! One run in the form in which the model-card suite stores it, so that whatever reads those files reads these.

use pelton_bench::results::RunResult;
use pelton_bench::{ErrorKind, ServerMetrics};
use serde_json::{Map, Value, json};

use super::query::{Query, mean, median, quantile};

/// Percentiles that the suite gives beside mean and median.
const PERCENTILES: [u32; 8] = [1, 5, 10, 25, 75, 90, 95, 99];

/// `parameters`: of the whole suite, and of this run. With `individual`, each request; with `profile`, each reading of the server's metrics.
pub fn run_json(parameters: &Map<String, Value>, run: &RunResult, individual: bool, profile: bool) -> Value {
    let queries: Vec<Query> = run.rows.iter().filter_map(Query::of).collect();
    let column = |value: &dyn Fn(&Query) -> Option<f64>| queries.iter().filter_map(value).collect::<Vec<f64>>();
    let sum = |value: &dyn Fn(&Query) -> Option<f64>| column(value).iter().sum::<f64>();
    let generated = sum(&|query| Some(query.response_length));
    let per_second = |seconds: f64| if seconds > 0.0 { json!(generated / seconds) } else { Value::Null };
    let total = sum(&|query| Some(query.total_time));
    let from_first = sum(&|query| Some(query.total_time - query.time_to_first_token));
    let without_waiting = sum(&|query| Some(query.total_time - query.waiting_time));
    let failed = run.rows.iter().filter(|row| row.failure.is_some());
    let is_timeout = |kind: ErrorKind| matches!(kind, ErrorKind::Timeout | ErrorKind::Cut);
    let timeouts = failed.clone().filter(|row| row.failure.as_ref().is_some_and(|failure| is_timeout(failure.kind)));
    let errored: Vec<Value> = failed
        .clone()
        .filter_map(|row| row.failure.as_ref())
        .filter(|failure| !is_timeout(failure.kind))
        .map(|failure| json!({ "error": failure.message, "kind": failure.kind.to_string() }))
        .collect();
    let most = |which: fn(&pelton_bench::ServerSample) -> Option<f64>| {
        let samples = run.server_metrics.iter().flat_map(|metrics| &metrics.samples);
        // The suite's way to say that there are no metrics.
        samples.filter_map(which).reduce(f64::max).unwrap_or(-1.0)
    };
    let metrics: [(&str, Vec<f64>); 10] = [
        ("time_to_first_token", column(&|query| Some(query.time_to_first_token))),
        ("prompt_length", column(&|query| Some(query.prompt_length))),
        ("response_length", column(&|query| Some(query.response_length))),
        ("total_query_time", column(&|query| Some(query.total_time))),
        ("completion_time_from_first_token", column(&|query| Some(query.total_time - query.time_to_first_token))),
        ("median_time_between_tokens", column(&|query| Some(query.median_gap))),
        ("total_waiting_time", column(&|query| Some(query.waiting_time))),
        ("speed_from_beginning", column(&|query| Some(query.speed_from_beginning()))),
        ("speed_from_first_token", column(&Query::speed_from_first_token)),
        ("speed_without_waiting_time", column(&Query::speed_without_waiting)),
    ];
    let aggregated: Map<String, Value> =
        metrics.into_iter().map(|(name, values)| (name.to_owned(), aggregate(&values))).collect();
    let mut json = json!({
        "parameters": parameters,
        "general_metrics": {
            "max_kv_cache": most(|sample| sample.kv_usage),
            "max_requests_running": most(|sample| sample.running),
            "max_requests_waiting": most(|sample| sample.waiting),
            "total_number_of_queries": queries.len(),
            "nb_timeout_queries": timeouts.count(),
            "nb_errored_queries": errored.len(),
            "total_time": total,
            "total_time_from_first_token": from_first,
            "total_time_without_waiting_time": without_waiting,
            "total_number_of_ingested_tokens": sum(&|query| Some(query.prompt_length)),
            "total_number_of_generated_tokens": generated,
            "speed": per_second(total),
            "speed_without_waiting_time": per_second(without_waiting),
            "speed_from_first_token": per_second(from_first),
            "actual_total_time": run.wall_s,
        },
        "aggregated_metrics": aggregated,
        "errored_queries": errored,
    });
    if individual {
        json["individual_query"] = queries.iter().map(Query::to_json).collect();
    }
    if let Some(metrics) = run.server_metrics.as_ref().filter(|_| profile) {
        json["kv_cache_profile"] = readings(metrics, run.began_unix_s);
    }
    json
}

fn aggregate(values: &[f64]) -> Value {
    let mut aggregate =
        Map::from_iter([("mean".to_owned(), json!(mean(values))), ("median".to_owned(), json!(median(values)))]);
    for percent in PERCENTILES {
        aggregate.insert(format!("percentile_{percent}"), json!(quantile(values, f64::from(percent) / 100.0)));
    }
    Value::Object(aggregate)
}

fn readings(metrics: &ServerMetrics, began_unix_s: f64) -> Value {
    metrics
        .samples
        .iter()
        .map(|sample| {
            json!({
                "num_requests_running": sample.running,
                "num_requests_waiting": sample.waiting,
                "gpu_cache_usage_perc": sample.kv_usage,
                "timestamp": began_unix_s + sample.at_us as f64 / 1e6,
            })
        })
        .collect()
}
