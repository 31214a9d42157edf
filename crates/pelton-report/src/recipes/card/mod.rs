//! The model card of the happy_vllm suite: prompt ingestion speed, speed of parallel requests, tokens that fit the KV cache.
//!
//! Three scenarios for several couples of lengths: prompts of many lengths one after another; more and more requests at once until time is
//! over; a constant number of requests in parallel. [`store()`] and [`write()`] make the suite's folder of them: the card, its graphs, their data, the
//! thresholds, and each run in the suite's form.

mod figures;
mod page;
mod plots;
mod query;
mod suite;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pelton_bench::results::{Results, RunResult};
use pelton_bench::{BenchPlan, Case, Lengths, Shape, TargetPlan, Waves, WorkloadPlan};
use serde_json::{Map, Value, json};

use crate::charts::{Figure, PngError, Point, SHARPNESS, png, svg};
use figures::{Ingestion, Speed, Thresholds, kv_tokens, total_speeds};
use query::Query;

/// Tokens of a prompt, tokens of an answer.
pub type Couple = (u32, u32);

/// The couple and the number of requests in the card's second line.
const HEADLINE: (Couple, usize) = ((1024, 128), 10);

/// The couples whose graphs the suite's card shows.
const SHOWN: [Couple; 2] = [(4096, 128), (32, 16)];

/// Shortest prompt of the prompt ingestion.
const SHORTEST_PROMPT: u32 = 32;

/// Between the end of a wave and the next.
const WAVE_PAUSE: Duration = Duration::from_millis(500);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Prompts of many lengths, one after another, one token each: repetition `n`.
    PromptIngestion(u32),
    /// Waves of more and more requests.
    KvCacheProfile(Couple),
    /// So many requests in parallel.
    GenerationSpeed(Couple, usize),
}

impl Scenario {
    /// Name of the file with its run, without ending.
    pub fn name(self) -> String {
        match self {
            Scenario::PromptIngestion(n) => format!("prompt_ingestion_{n}"),
            Scenario::KvCacheProfile((input, output)) => format!("kv_cache_profile_input_{input}_output_{output}"),
            Scenario::GenerationSpeed((input, output), n) => {
                format!("generation_speed_input_{input}_output_{output}_nb_requests_{n}")
            }
        }
    }
}

/// Which scenarios, and how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Extent {
    /// Couples of lengths.
    pub couples: Vec<Couple>,
    /// Parallel requests.
    pub parallel: Vec<usize>,
    /// Repetitions of the prompt ingestion, and the longest time of each.
    pub ingestion: (u32, Duration),
    /// Longest prompt of the prompt ingestion.
    pub longest_prompt: u32,
    /// Time of more and more requests.
    pub profile: Duration,
    /// A run of constant requests lasts at least so long and until there are so many requests, at most so long.
    pub speed: (Duration, u64, Duration),
    /// Longest time of all constant runs of one couple; what is left of it then is not measured.
    pub of_couple: Duration,
    /// Most requests of a run.
    pub max_queries: u64,
    /// Seconds between two readings of the server's metrics.
    pub metrics_interval: Duration,
}

impl Extent {
    /// As the suite has it: up to eight hours.
    pub fn full(metrics_interval: Duration) -> Self {
        let seconds = Duration::from_secs;
        Self {
            couples: [32, 1024, 4096]
                .into_iter()
                .flat_map(|input| [16, 128, 1024].map(|output| (input, output)))
                .collect(),
            parallel: vec![1, 2, 3, 4, 6, 8, 10, 14, 18, 22, 26, 30, 34, 38],
            ingestion: (4, seconds(900)),
            longest_prompt: 4096,
            profile: seconds(900),
            speed: (seconds(60), 100, seconds(900)),
            of_couple: seconds(900),
            max_queries: 1000,
            metrics_interval,
        }
    }

    /// The same scenarios in a few minutes: the couples that the card shows, few numbers of parallel requests, short runs.
    pub fn quick(metrics_interval: Duration) -> Self {
        let seconds = Duration::from_secs;
        Self {
            couples: vec![(32, 16), (1024, 128), (4096, 128)],
            parallel: vec![1, 4, 10, 22],
            ingestion: (2, seconds(15)),
            profile: seconds(15),
            speed: (seconds(8), 20, seconds(20)),
            ..Self::full(metrics_interval)
        }
    }

    /// Leaves out what is longer than the server takes. Returns the couples that were left out.
    pub fn fit(&mut self, max_tokens: u32) -> Vec<Couple> {
        let fits = |&(input, output): &Couple| input + output <= max_tokens;
        let (kept, left) = self.couples.drain(..).partition(fits);
        self.couples = kept;
        self.longest_prompt = self.longest_prompt.min(max_tokens.saturating_sub(1));
        left
    }

    /// The load test of each scenario, in the order in which they are run.
    pub fn plans(&self, target: &TargetPlan, seed: u64) -> Vec<(Scenario, BenchPlan)> {
        let mut target = target.clone();
        target.stream = true;
        let mut plans = Vec::new();
        let mut add = |scenario, workload: WorkloadPlan, case: Case, duration, requests| {
            // Another seed each time: prompts of an earlier run may be in the server's prefix cache.
            let workload = WorkloadPlan { seed: seed.wrapping_add(plans.len() as u64), ..workload };
            let mut plan = super::test(target.clone(), workload, case.into(), duration);
            plan.limits.requests = requests;
            plan.metrics.interval = self.metrics_interval;
            plans.push((scenario, plan));
        };
        let (repeats, duration) = self.ingestion;
        for n in 0..repeats {
            let lengths = Lengths::of(Shape::Uniform(SHORTEST_PROMPT.min(self.longest_prompt), self.longest_prompt));
            let workload = WorkloadPlan { input_tokens: Some(lengths), ..WorkloadPlan::synthetic(1, 1, 0) };
            add(Scenario::PromptIngestion(n), workload, Case::users(1), duration, self.max_queries);
        }
        for &(input, output) in &self.couples {
            let sizes = (1..).scan(0, |sum, size| {
                *sum += size as u64;
                (*sum <= self.max_queries).then_some(size)
            });
            let waves = Waves { sizes: sizes.collect(), pause: WAVE_PAUSE };
            let workload = WorkloadPlan::synthetic(input, output, 0);
            let scenario = Scenario::KvCacheProfile((input, output));
            add(scenario, workload, Case::Waves(waves), self.profile, self.max_queries);
        }
        let (least, enough, most) = self.speed;
        for &couple in &self.couples {
            for &n in &self.parallel {
                let workload = WorkloadPlan::synthetic(couple.0, couple.1, 0);
                add(Scenario::GenerationSpeed(couple, n), workload, Case::users(n), most, enough);
            }
        }
        for (scenario, plan) in &mut plans {
            if matches!(scenario, Scenario::GenerationSpeed(..)) {
                plan.limits.at_least = least;
            }
        }
        plans
    }
}

/// Time that the constant runs of each couple have taken.
#[derive(Debug, Default)]
pub struct Spent(BTreeMap<Couple, Duration>);

impl Spent {
    /// Notes a run.
    pub fn add(&mut self, scenario: Scenario, took: Duration) {
        if let Scenario::GenerationSpeed(couple, _) = scenario {
            *self.0.entry(couple).or_default() += took;
        }
    }

    /// The scenario's couple, if that has had its time: fewer parallel requests were measured for it, more are left out, as in the suite.
    pub fn is_over(&self, extent: &Extent, scenario: Scenario) -> Option<Couple> {
        let Scenario::GenerationSpeed(couple, _) = scenario else { return None };
        Some(couple).filter(|couple| self.of(couple) >= extent.of_couple)
    }

    /// Longest time that these plans can still take.
    pub fn left<'a>(&self, extent: &Extent, plans: impl Iterator<Item = &'a (Scenario, BenchPlan)>) -> Duration {
        let mut others = Duration::ZERO;
        let mut couples: BTreeMap<Couple, Duration> = BTreeMap::new();
        for (scenario, plan) in plans {
            match scenario {
                Scenario::GenerationSpeed(couple, _) => *couples.entry(*couple).or_default() += plan.limits.duration,
                _ => others += plan.limits.duration,
            }
        }
        // The run in which a couple's time ends goes on to its own end.
        let (_, _, longest) = extent.speed;
        let of_couple = |(couple, sum): (&Couple, &Duration)| {
            (*sum).min(extent.of_couple.saturating_sub(self.of(couple)) + longest)
        };
        others + couples.iter().map(of_couple).sum::<Duration>()
    }

    fn of(&self, couple: &Couple) -> Duration {
        self.0.get(couple).copied().unwrap_or_default()
    }
}

/// What the card says beside its numbers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shown as the machine; empty takes the processor's name of the measuring machine.
    pub machine: String,
    /// Tokens per second that each request shall have, for the thresholds.
    pub speed_threshold: f64,
    /// Fewer complete answers than this make no point in a graph.
    pub min_answers: usize,
    /// Time of the suite's beginning, as text.
    pub suite_id: String,
    /// Seconds between two readings of the server's metrics.
    pub metrics_interval_s: f64,
    /// Most requests of a run.
    pub max_queries: u64,
}

/// Why the folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// A file or folder.
    #[error("{} cannot be written: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A picture.
    #[error("graph {name} cannot be drawn: {source}")]
    Graph {
        /// Its name.
        name: String,
        /// Why.
        source: PngError,
    },
    /// There is nothing to tell.
    #[error("no run was measured: there is no card to write")]
    Empty,
}

/// Everything that was measured, by scenario.
pub type Measured = BTreeMap<Scenario, Results>;

/// Writes one run into `raw_results/` of `folder`, in the suite's form.
pub fn store(folder: &Path, scenario: Scenario, results: &Results, options: &Options) -> Result<(), CardError> {
    let Some(run) = results.runs.first() else { return Ok(()) };
    let mut own = parameters(results, options);
    own.extend(run_parameters(scenario));
    let individual = matches!(scenario, Scenario::PromptIngestion(_));
    let profile = !individual;
    let json = suite::run_json(&own, run, individual, profile);
    Writer { folder }.json(&format!("raw_results/{}.json", scenario.name()), &json)
}

/// Writes `report/`, the card and all that belongs to it, into `folder`. `left_out` says what was not measured. Returns the card's path.
pub fn write(folder: &Path, measured: &Measured, options: &Options, left_out: &[String]) -> Result<PathBuf, CardError> {
    let first = measured.values().next().ok_or(CardError::Empty)?;
    let writer = Writer { folder };
    let parameters = parameters(first, options);

    let mut points = Vec::new();
    let mut speeds: BTreeMap<Couple, Vec<Speed>> = BTreeMap::new();
    let mut capacities = Vec::new();
    for (&scenario, results) in measured {
        let Some(run) = results.runs.first() else { continue };
        match scenario {
            Scenario::PromptIngestion(_) => {
                let queries = run.rows.iter().filter_map(Query::of);
                points.extend(queries.map(|query| Point::new(query.prompt_length, query.time_to_first_token)));
            }
            Scenario::KvCacheProfile(couple) => {
                capacities.extend(kv_tokens(run));
                writer.kv_profile(couple, run)?;
            }
            Scenario::GenerationSpeed(couple, n) => {
                let enough = |speed: &Speed| speed.answers >= options.min_answers;
                speeds.entry(couple).or_default().extend(Speed::of(n, run).filter(enough));
            }
        }
    }
    speeds.retain(|_, points| !points.is_empty());
    for points in speeds.values_mut() {
        points.sort_by_key(|speed| speed.parallel);
    }

    let ingestion = Ingestion::of(points);
    if let Some(ingestion) = &ingestion {
        writer.ingestion(&first.server.model, ingestion)?;
    }
    writer.totals(&speeds)?;
    for (couple, points) in &speeds {
        writer.speeds(*couple, points)?;
    }
    writer.thresholds(&speeds, options.speed_threshold)?;

    let mut shown = parameters;
    let machine = if options.machine.is_empty() { first.machine.cpu.clone() } else { options.machine.clone() };
    shown.insert("gpu_name".to_owned(), json!(machine));
    writer.json("report/parameters.json", &Value::Object(shown.clone()))?;
    let ten = speeds.get(&HEADLINE.0).and_then(|points| points.iter().find(|speed| speed.parallel == HEADLINE.1));
    // Where these were not measured: the longest and the shortest couple.
    let long = speeds.get_key_value(&SHOWN[0]).or(speeds.last_key_value());
    let short = speeds.get_key_value(&SHOWN[1]).or(speeds.first_key_value());
    let mut graphs: Vec<Couple> = long.into_iter().chain(short).map(|(couple, _)| *couple).collect();
    graphs.dedup();
    let rows = shown.into_iter().map(|(name, value)| (name, plain(&value))).collect::<Vec<_>>();
    let notes = [notes(measured, options), left_out.to_vec()].concat();
    let card = page::Card {
        model: &first.server.model,
        machine: &machine,
        ingestion: ingestion.as_ref().and_then(Ingestion::tokens_per_second),
        ten_parallel: ten.map(|speed| speed.speed.median),
        kv_tokens: (!capacities.is_empty()).then(|| query::median(&capacities)),
        graphs: &graphs,
        has_totals: speeds.values().any(|points| total_speeds(points).is_some()),
        parameters: &rows,
        notes: &notes,
    };
    writer.text("report/README.md", card.to_markdown().as_bytes())
}

/// What all runs share: how the load was made, then what the server says it was launched with.
fn parameters(results: &Results, options: &Options) -> Map<String, Value> {
    let server = &results.server;
    let mut parameters = Map::from_iter([
        ("model".to_owned(), json!(server.model)),
        ("step_live_metrics".to_owned(), json!(options.metrics_interval_s)),
        ("max_queries".to_owned(), json!(options.max_queries)),
        ("request_rate".to_owned(), json!(0)),
        ("backend".to_owned(), json!(server.api.name())),
        ("suite_id".to_owned(), json!(options.suite_id)),
        ("pelton_version".to_owned(), json!(results.pelton_version)),
    ]);
    let mut add = |name: &str, value: &Value| {
        parameters.entry(name).or_insert_with(|| value.clone());
    };
    match server.info.as_object() {
        // What the suite takes of happy_vllm's.
        Some(info) if info.contains_key("vllm_version") => {
            for (name, of) in
                [("model_name", "model_name"), ("happy_vllm_version", "version"), ("vllm_version", "vllm_version")]
            {
                info.get(of).into_iter().for_each(|value| add(name, value));
            }
        }
        // A list of models says nothing of how they are served.
        Some(info) if info.contains_key("data") => {}
        info => info.into_iter().flatten().for_each(|(name, value)| add(name, value)),
    }
    server.launch_arguments.as_object().into_iter().flatten().for_each(|(name, value)| add(name, value));
    parameters
}

fn run_parameters(scenario: Scenario) -> [(String, Value); 4] {
    let (profile, length, output, workers) = match scenario {
        Scenario::PromptIngestion(_) => ("constant_number_of_queries", 0, 1, 1),
        Scenario::KvCacheProfile((input, output)) => ("growing_requests", input, output, 1),
        Scenario::GenerationSpeed((input, output), n) => ("constant_number_of_queries", input, output, n),
    };
    [
        ("prompt_length".to_owned(), json!(length.to_string())),
        ("n_workers".to_owned(), json!(workers)),
        ("query_profile".to_owned(), json!(profile)),
        ("output_length".to_owned(), json!(output)),
    ]
}

/// A value as the card's table shows it: Python's words, since the original is Python.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn notes(measured: &Measured, options: &Options) -> Vec<String> {
    let mut notes = vec![
        "Speeds are tokens, not chunks, over time. The mean generation speed for 10 parallel requests is the median over requests, time to \
         first token included, as on the original card."
            .to_owned(),
        format!(
            "thresholds.csv: most parallel requests with a median speed of at least {} tokens per second, and most that use less than 95 % \
             of the KV cache.",
            options.speed_threshold
        ),
    ];
    let runs = || measured.values().flat_map(|results| &results.runs);
    let chunks = runs().flat_map(|run| &run.rows).filter(|row| !query::counts_tokens(row)).count();
    if chunks > 0 {
        notes.push(format!("{chunks} answers came without token counts: their chunks were counted instead."));
    }
    let failed: u64 = runs().flat_map(|run| run.summary.errors.values()).map(|errors| errors.count).sum();
    if failed > 0 {
        notes.push(format!("{failed} requests failed or were cut at the end of a run; they are in no figure."));
    }
    // Of runs that end by their time, what was cut is told above.
    notes.extend(super::notes(measured.values()));
    notes
}

/// Puts files into the folder.
struct Writer<'a> {
    folder: &'a Path,
}

impl Writer<'_> {
    fn text(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, CardError> {
        let path = self.folder.join(name);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, bytes));
        written.map_err(|source| CardError::File { path: path.clone(), source })?;
        Ok(path)
    }

    fn json(&self, name: &str, value: &Value) -> Result<(), CardError> {
        // Two spaces and a line end: what people diff.
        let text = format!("{value:#}\n");
        self.text(name, text.as_bytes()).map(drop)
    }

    fn png(&self, name: &str, figure: Figure) -> Result<(), CardError> {
        let png =
            png(&svg(&[figure]), SHARPNESS).map_err(|source| CardError::Graph { name: name.to_owned(), source })?;
        self.text(name, &png).map(drop)
    }

    fn ingestion(&self, model: &str, ingestion: &Ingestion) -> Result<(), CardError> {
        self.png("report/prompt_ingestion_graph.png", plots::ingestion(model, ingestion))?;
        let column = |points: &[Point], which: fn(&Point) -> f64| points.iter().map(which).collect::<Vec<_>>();
        let data = json!({
            "fit_coefficients": [ingestion.fit.slope, ingestion.fit.offset],
            "prompt_lengths": column(&ingestion.kept, |point| point.x),
            "times_to_first_token": column(&ingestion.kept, |point| point.y),
            "prompt_lengths_all": column(&ingestion.all, |point| point.x),
            "times_to_first_token_all": column(&ingestion.all, |point| point.y),
        });
        self.json("report/data/prompt_ingestion_graph_data.json", &data)
    }

    fn totals(&self, speeds: &BTreeMap<Couple, Vec<Speed>>) -> Result<(), CardError> {
        let totals: Vec<(Couple, Vec<(usize, f64)>)> =
            speeds.iter().filter_map(|(couple, points)| Some((*couple, total_speeds(points)?))).collect();
        if totals.is_empty() {
            return Ok(());
        }
        self.png("report/total_speed_generation_graph.png", plots::totals(&totals))?;
        let data: Map<String, Value> = totals
            .iter()
            .map(|((input, output), points)| {
                let parallel: Vec<usize> = points.iter().map(|point| point.0).collect();
                let speed: Vec<f64> = points.iter().map(|point| point.1).collect();
                let data = json!({ "parallel_requests_nb": parallel, "total_speed_generation": speed });
                (format!("input_{input}_output_{output}"), data)
            })
            .collect();
        self.json("report/data/total_speed_generation_graph_data.json", &Value::Object(data))
    }

    fn speeds(&self, (input, output): Couple, points: &[Speed]) -> Result<(), CardError> {
        let name = format!("input_{input}_output_{output}");
        let figure = plots::speeds((input, output), points);
        self.png(&format!("report/speed_generation/speed_generation_graph_{name}.png"), figure)?;
        let data: Map<String, Value> = points
            .iter()
            .map(|speed| {
                let spread = |spread: figures::Spread| json!([spread.below, spread.median, spread.above]);
                let data = json!({
                    "speed_generation": spread(speed.speed),
                    "time_to_first_token": spread(speed.time_to_first_token),
                    "max_kv_cache": speed.max_kv_cache,
                    "parallel_requests_nb": speed.parallel,
                });
                (speed.parallel.to_string(), data)
            })
            .collect();
        let path = format!("report/speed_generation/data/speed_generation_graph_data_{name}.json");
        self.json(&path, &Value::Object(data))
    }

    fn kv_profile(&self, (input, output): Couple, run: &RunResult) -> Result<(), CardError> {
        let Some(figure) = plots::kv_profile((input, output), run) else { return Ok(()) };
        self.png(&format!("report/kv_cache_profile/graph_kv_cache_profile_input_{input}_output_{output}.png"), figure)
    }

    fn thresholds(&self, speeds: &BTreeMap<Couple, Vec<Speed>>, least: f64) -> Result<(), CardError> {
        let mut text = String::from("speed_threshold,kv_cache_threshold,input_length,output_length\n");
        for ((input, output), points) in speeds {
            let Thresholds { speed, kv_cache } = Thresholds::of(points, least);
            let cell = |threshold: Option<usize>| threshold.map_or_else(String::new, |n| n.to_string());
            text.push_str(&format!("{},{},{input},{output}\n", cell(speed), cell(kv_cache)));
        }
        self.text("report/thresholds.csv", text.as_bytes()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_couple_that_had_its_time_is_over_and_others_are_not() {
        let extent = Extent::full(Duration::from_secs(1));
        let plans = extent.plans(&TargetPlan::at("http://localhost"), 0);
        let mut spent = Spent::default();
        let hours = |spent: &Spent| spent.left(&extent, plans.iter()).as_secs_f64() / 3600.0;
        // Four ingestions and nine profiles of a quarter of an hour; nine couples of one, each of whose last runs may take another.
        assert_eq!(hours(&spent), (4.0 + 9.0 + 9.0 * 2.0) / 4.0);
        let slow = Scenario::GenerationSpeed((4096, 1024), 1);
        spent.add(slow, Duration::from_secs(899));
        assert_eq!(spent.is_over(&extent, slow), None);
        spent.add(slow, Duration::from_secs(1));
        assert_eq!(spent.is_over(&extent, Scenario::GenerationSpeed((4096, 1024), 38)), Some((4096, 1024)));
        assert_eq!(spent.is_over(&extent, Scenario::GenerationSpeed((32, 16), 38)), None);
        assert_eq!(spent.is_over(&extent, Scenario::KvCacheProfile((4096, 1024))), None);
        assert!(hours(&spent) < (4.0 + 9.0 + 9.0 * 2.0) / 4.0);
    }
}
