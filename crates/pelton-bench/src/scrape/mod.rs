//! The server's own metrics, read while it is measured, on the clock of the rows and on a thread of its own.

mod page;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::client::Target;
use crate::client::probe::Questions;
use crate::plan::{Api, BenchPlan, MetricsSource, TargetPlan};

/// Longest time for one reading.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Readings that are kept. Where there would be more, every second one is dropped and the interval doubled.
const MAX_SAMPLES: usize = 36_000;

/// Readings that may wait for those who look on; what finds no room is only kept.
const MAX_FRESH: usize = 1024;

/// Where Triton has its page.
const TRITON_PORT: u16 = 8002;

/// What a server told of itself during one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerMetrics {
    /// Address of the page.
    pub url: String,
    /// Readings in order of time.
    pub samples: Vec<ServerSample>,
    /// Counters and sums of the whole page just before the run: series as written (`name{label="value"}`) and its value.
    pub before: BTreeMap<String, f64>,
    /// The same just after.
    pub after: BTreeMap<String, f64>,
}

/// One reading, in common terms whatever the server calls them; `None` where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerSample {
    /// Microseconds after the beginning of the run.
    pub at_us: u64,
    /// Requests being computed.
    pub running: Option<f64>,
    /// Requests waiting.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Prompt tokens since the server began.
    pub prompt_tokens: Option<f64>,
    /// Generated tokens since the server began.
    pub generated_tokens: Option<f64>,
}

/// A page of metrics that answers.
#[derive(Clone, Debug)]
pub struct Page {
    target: Target,
    /// What is asked for, behind the target's prefix.
    path: String,
    url: String,
    interval: Duration,
}

impl Page {
    /// Finds the page that the plan names, or looks where servers have one.
    ///
    /// # Errors
    /// A note for the reader, if a page was named that does not answer. That the server has none is no error.
    pub async fn find(plan: &BenchPlan, api: Api) -> Result<Option<Self>, String> {
        let (urls, must) = match &plan.metrics.source {
            MetricsSource::Off => return Ok(None),
            MetricsSource::Url(url) => (vec![url.clone()], true),
            MetricsSource::Auto => (usual_urls(&plan.target.url, api), false),
        };
        let mut why = String::new();
        for url in urls {
            match Self::open(plan, &url).await {
                Ok(page) => return Ok(Some(page)),
                Err(error) => why = format!("no server metrics: {url}: {error}"),
            }
        }
        if must { Err(why) } else { Ok(None) }
    }

    async fn open(plan: &BenchPlan, url: &str) -> Result<Self, String> {
        // What is secret goes to the measured server alone.
        let target = if is_same_server(url, &plan.target.url) {
            TargetPlan { url: url.to_owned(), ..plan.target.clone() }
        } else {
            TargetPlan { url: url.to_owned(), api_key: None, headers: BTreeMap::new(), ..plan.target.clone() }
        };
        let target = Target::resolve(&target).map_err(|error| error.to_string())?;
        let has_path = url.parse::<http::Uri>().is_ok_and(|uri| uri.path().len() > 1);
        // Some servers mount the page as a folder, and redirect.
        let paths = if has_path { ["", "/"] } else { ["/metrics", "/metrics/"] };
        let mut questions = Questions::new(target.clone(), TIMEOUT);
        let mut why = String::new();
        for path in paths {
            match read(&mut questions, path).await {
                Ok(text) if page::has_series(&text) => {
                    let (path, url) = (path.to_owned(), url.to_owned());
                    return Ok(Self { target, path, url, interval: plan.metrics.interval });
                }
                Ok(_) => why = "the page has no metrics".to_owned(),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

fn usual_urls(url: &str, api: Api) -> Vec<String> {
    let prefixed = format!("{}/metrics", url.trim_end_matches('/'));
    let mut urls = vec![prefixed];
    if let Ok(uri) = url.parse::<http::Uri>()
        && let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority())
    {
        // Servers with a prefix for their routes may leave it out here.
        let root = format!("{scheme}://{authority}/metrics");
        if !urls.contains(&root) {
            urls.push(root);
        }
        if api.name().starts_with("kserve") {
            urls.insert(0, format!("http://{}:{TRITON_PORT}/metrics", authority.host()));
        }
    }
    urls
}

fn is_same_server(url: &str, other: &str) -> bool {
    let authority = |url: &str| url.parse::<http::Uri>().ok().and_then(|uri| uri.authority().cloned());
    authority(url).is_some() && authority(url) == authority(other)
}

async fn read(questions: &mut Questions, path: &str) -> Result<String, String> {
    match questions.page(path).await {
        Ok((200..=299, body)) => String::from_utf8(body).map_err(|_| "the page is no text".to_owned()),
        Ok((status, _)) => Err(format!("status {status}")),
        Err(failure) => Err(failure.message),
    }
}

/// Reads a page during one run.
#[derive(Debug)]
pub struct Scraper {
    url: String,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Readings>,
}

/// Readings as they come, for those who look on.
#[derive(Debug)]
pub struct Fresh(mpsc::Receiver<(Instant, ServerSample)>);

impl Fresh {
    /// The next reading of a run that `began` then, if there is one already.
    pub fn next(&self, began: Instant) -> Option<ServerSample> {
        self.0.try_iter().find_map(|(at, sample)| after(began, at, sample))
    }
}

/// A reading on the clock of the rows; `None` if it was made before the run.
fn after(began: Instant, at: Instant, sample: ServerSample) -> Option<ServerSample> {
    let at_us = at.checked_duration_since(began)?.as_micros() as u64;
    Some(ServerSample { at_us, ..sample })
}

/// What the thread gathered. Times are moments, since the run's beginning is known only later.
#[derive(Debug, Default)]
struct Readings {
    samples: Vec<(Instant, ServerSample)>,
    before: BTreeMap<String, f64>,
    after: BTreeMap<String, f64>,
    asked: u64,
    failed: u64,
    /// The words of the first failure.
    why: Option<String>,
}

impl Scraper {
    /// Begins to read; returns when the first reading is done, whatever came of it.
    pub fn start(page: &Page) -> Result<(Self, Fresh), BenchError> {
        let (stop, stopped) = mpsc::channel();
        let (show, shown) = mpsc::sync_channel(MAX_FRESH);
        let (ready, is_ready) = mpsc::channel();
        let of_thread = page.clone();
        let gather = move || gather(&of_thread, &show, &ready, &stopped);
        let thread =
            std::thread::Builder::new().name("bench-metrics".to_owned()).spawn(gather).map_err(BenchError::Thread)?;
        // A thread that is gone is seen at the end.
        let _ = is_ready.recv();
        Ok((Self { url: page.url.clone(), stop, thread }, Fresh(shown)))
    }

    /// Reads a last time and ends. Readings before the run `began` are left out. A note tells of failures.
    pub fn finish(self, began: Instant) -> (ServerMetrics, Option<String>) {
        let Self { url, stop, thread } = self;
        drop(stop);
        let Ok(readings) = thread.join() else {
            return (
                ServerMetrics { url, ..ServerMetrics::default() },
                Some("server metrics: reading failed".to_owned()),
            );
        };
        let note = readings.why.map(|why| {
            format!("server metrics: {} of {} readings of {url} failed: {why}", readings.failed, readings.asked)
        });
        let samples = readings.samples.into_iter().filter_map(|(at, sample)| after(began, at, sample)).collect();
        (ServerMetrics { url, samples, before: readings.before, after: readings.after }, note)
    }
}

/// The thread: reads at once, then at every interval, and a last time when nobody holds the other end of `stopped`.
fn gather(
    page: &Page,
    show: &mpsc::SyncSender<(Instant, ServerSample)>,
    ready: &mpsc::Sender<()>,
    stopped: &mpsc::Receiver<()>,
) -> Readings {
    let mut readings = Readings::default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            (readings.asked, readings.failed, readings.why) = (1, 1, Some(error.to_string()));
            return readings;
        }
    };
    let mut questions = Questions::new(page.target.clone(), TIMEOUT);
    let mut interval = page.interval;
    let mut due = Instant::now();
    let mut text = readings.read(&runtime, &mut questions, page);
    readings.before = text.as_deref().map(page::counters).unwrap_or_default();
    // Nobody may wait any more; then the run is over at the next look.
    let _ = ready.send(());
    loop {
        // A reading that takes longer than the interval is followed by the next at once, not by several.
        due = (due + interval).max(Instant::now());
        match stopped.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            _ => break,
        }
        if readings.read(&runtime, &mut questions, page).is_some()
            && let Some(&sample) = readings.samples.last()
        {
            // Nobody may look, or not fast enough.
            let _ = show.try_send(sample);
        }
        if readings.samples.len() >= MAX_SAMPLES {
            let mut keep = false;
            readings.samples.retain(|_| {
                keep = !keep;
                keep
            });
            interval *= 2;
        }
    }
    text = readings.read(&runtime, &mut questions, page);
    readings.after = text.as_deref().map(page::counters).unwrap_or_default();
    readings
}

impl Readings {
    /// One reading; its text if it could be had.
    fn read(&mut self, runtime: &tokio::runtime::Runtime, questions: &mut Questions, page: &Page) -> Option<String> {
        let asked = Instant::now();
        self.asked += 1;
        match runtime.block_on(read(questions, &page.path)) {
            Ok(text) => {
                // The server wrote the page somewhere between question and answer.
                let at = asked + asked.elapsed() / 2;
                self.samples.push((at, page::sample(&text, 0)));
                Some(text)
            }
            Err(why) => {
                self.failed += 1;
                self.why.get_or_insert(why);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_looked_for_where_servers_have_them() {
        let urls = |url: &str| usual_urls(url, Api::Openai);
        assert_eq!(urls("http://h:3000"), ["http://h:3000/metrics"]);
        assert_eq!(urls("http://h:5000/a/b/"), ["http://h:5000/a/b/metrics", "http://h:5000/metrics"]);
    }

    #[test]
    fn secrets_stay_with_their_server() {
        assert!(is_same_server("http://h:3000/metrics", "http://h:3000/v1"));
        assert!(!is_same_server("http://h:8002/metrics", "http://h:3000"));
        assert!(!is_same_server("", ""));
    }
}
