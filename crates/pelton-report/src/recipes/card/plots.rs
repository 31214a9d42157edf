//! The card's graphs.

use pelton_bench::results::RunResult;

use super::Couple;
use super::figures::{Ingestion, Speed, Spread};
use crate::charts::{Axis, Figure, Point, Series, Side};

/// Pixels, in the proportions of the suite's graphs.
const WIDTH: u32 = 1110;
const HEIGHT: u32 = 630;

/// Time to first token by prompt length, with the fitted line.
pub fn ingestion(model: &str, ingestion: &Ingestion) -> Figure {
    let ends = ingestion.all.iter().map(|point| point.x);
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let speed = ingestion
        .tokens_per_second()
        .map_or_else(|| "not measurable".to_owned(), |speed| format!("{speed} tokens per second"));
    let x = Axis::new("Prompt length").unit("tokens").from_zero();
    let y = Axis::new("Time to first token").unit("s").from_zero();
    Figure::new(format!("Model : {model}. Prompt ingestion speed : {speed}"), x, y)
        .with(Series::dots("requests", ingestion.all.clone()))
        .with(Series::line("fitted line", ingestion.fit.line(low, high)).dashed())
        .size(WIDTH, HEIGHT)
}

/// Tokens per second of all requests together, a line for each couple.
pub fn totals(totals: &[(Couple, Vec<(usize, f64)>)]) -> Figure {
    let x = Axis::new("Number of parallel requests").from_zero();
    let y = Axis::new("Total speed generation").unit("tokens per second").from_zero();
    let mut figure = Figure::new("Total generation speed", x, y);
    for ((input, output), points) in totals {
        let points = points.iter().map(|&(n, speed)| Point::new(n as f64, speed)).collect();
        figure = figure.with(Series::dotted_line(format!("input length : {input}, output length : {output}"), points));
    }
    figure.size(WIDTH, HEIGHT)
}

/// Speed of one request, KV cache in use, time to first token, by parallel requests.
pub fn speeds((input, output): Couple, points: &[Speed]) -> Figure {
    let bars = |which: fn(&Speed) -> Spread, factor: f64| {
        let point = |speed: &Speed| {
            let spread = which(speed);
            let value = |value: f64| factor * value;
            Point::new(speed.parallel as f64, value(spread.median))
                .between(value(spread.median - spread.below), value(spread.median + spread.above))
        };
        points.iter().map(point).collect::<Vec<_>>()
    };
    let usage: Vec<Point> =
        points.iter().filter_map(|speed| Some(Point::new(speed.parallel as f64, speed.max_kv_cache?))).collect();
    let x = Axis::new("Number of parallel requests").from_zero();
    let y = Axis::new("Speed generation").unit("tokens per second").from_zero();
    let title = format!("Input length : {input}, output length : {output}");
    let mut figure = Figure::new(title, x, y)
        .axis(Side::SecondRight, Axis::new("Time to first token").unit("ms").from_zero())
        .with(Series::dotted_line("speed of one request", bars(|speed| speed.speed, 1.0)));
    if !usage.is_empty() {
        let usage = Series::dotted_line("KV cache in use", usage).on(Side::Right).dashed();
        figure = figure.axis(Side::Right, Axis::new("Max KV cache percentage").shares()).with(usage);
    }
    let ttft = bars(|speed| speed.time_to_first_token, 1e3);
    figure.with(Series::dotted_line("time to first token", ttft).on(Side::SecondRight)).size(WIDTH, HEIGHT)
}

/// KV cache in use, and requests running and waiting, over time. `None` if the server told nothing.
pub fn kv_profile((input, output): Couple, run: &RunResult) -> Option<Figure> {
    let samples = &run.server_metrics.as_ref()?.samples;
    let line = |which: fn(&pelton_bench::ServerSample) -> Option<f64>| {
        let points = samples.iter().filter_map(|sample| Some(Point::new(sample.at_us as f64 / 1e6, which(sample)?)));
        points.collect::<Vec<_>>()
    };
    let usage = line(|sample| sample.kv_usage);
    if usage.is_empty() {
        return None;
    }
    let title = format!("KV cache by more and more requests, input length : {input}, output length : {output}");
    let figure = Figure::new(title, Axis::new("Time").unit("s").from_zero(), Axis::new("Percentage KV cache").shares())
        .axis(Side::Right, Axis::new("Requests number").from_zero())
        .with(Series::line("KV cache in use", usage))
        .with(Series::steps("running", line(|sample| sample.running)).on(Side::Right))
        .with(Series::steps("waiting", line(|sample| sample.waiting)).on(Side::Right));
    Some(figure.size(WIDTH, HEIGHT))
}
