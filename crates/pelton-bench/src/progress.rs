//! The line that tells how a run goes.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::executor::Live;
use crate::plan::Limits;

/// Time between two drawings: slow enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(250);

/// Draws on the terminal's error stream, or nowhere.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line that begins with `name`; invisible if `visible` is false or there is no terminal.
    pub fn new(name: &str, visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1000), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {elapsed} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_owned());
        Self { bar }
    }

    /// Draws until it is dropped.
    pub(crate) async fn watch(&mut self, live: &Live, began: Instant, limits: &Limits) -> Infallible {
        let mut ticks = tokio::time::interval(INTERVAL);
        let (mut last_done, mut last_tokens, mut last_at) = (0, 0, began);
        loop {
            ticks.tick().await;
            let (done, failed, tokens) = (live.done.get(), live.failed.get(), live.tokens.get());
            let passed = began.elapsed().as_secs_f64() / limits.duration.as_secs_f64();
            let started = live.started.get() as f64 / limits.requests as f64;
            self.bar.set_position((1000.0 * passed.max(started)).min(1000.0) as u64);
            // Rates of about the last second: answers come in bursts.
            let span = last_at.elapsed();
            if span < Duration::from_secs(1) && last_at != began {
                continue;
            }
            let per_second = |now: u64, before: u64| (now - before) as f64 / span.as_secs_f64().max(1e-3);
            let running = live.started.get() - done - failed;
            self.bar.set_message(format!(
                "{:.1} req/s, {:.0} tok/s, {running} running, {done} done, {failed} failed, {} dropped",
                per_second(done, last_done),
                per_second(tokens, last_tokens),
                live.dropped.get(),
            ));
            (last_done, last_tokens, last_at) = (done, tokens, Instant::now());
        }
    }

    /// Takes the line away.
    pub fn clear(self) {
        self.bar.finish_and_clear();
    }
}
