//! The line that tells how a run goes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pelton_bench::Limits;
use pelton_bench::watch::{Moment, Sight, Watch};

/// Time over which rates are taken: answers come in bursts.
const SPAN: Duration = Duration::from_secs(1);

/// Draws on the terminal's error stream, if it is one.
#[derive(Debug)]
pub struct Line {
    bar: ProgressBar,
    /// Where a series of tests is.
    series: String,
    limits: Option<Limits>,
    /// The moment from which rates are taken.
    base: Moment,
}

impl Line {
    /// Nothing is drawn yet.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(4));
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {elapsed} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, series: String::new(), limits: None, base: Moment::default() }
    }

    fn draw(&mut self, now: &Moment) {
        let Some(limits) = &self.limits else { return };
        let passed = now.at.as_secs_f64() / limits.duration.as_secs_f64();
        let started = now.started as f64 / limits.requests as f64;
        self.bar.set_position((1000.0 * passed.max(started)).min(1000.0) as u64);
        let span = now.at.saturating_sub(self.base.at);
        if span < SPAN && !self.base.at.is_zero() {
            return;
        }
        let per_second = |now: u64, before: u64| (now - before) as f64 / span.as_secs_f64().max(1e-3);
        self.bar.set_message(format!(
            "{:.1} req/s, {:.0} tok/s, {} running, {} done, {} failed, {} dropped",
            per_second(now.done, self.base.done),
            per_second(now.tokens, self.base.tokens),
            now.running(),
            now.done,
            now.failed,
            now.dropped,
        ));
        self.base = *now;
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch for Line {
    fn see(&mut self, sight: Sight<'_>) {
        match sight {
            Sight::Series(place) => place.clone_into(&mut self.series),
            Sight::Preparing(what) => {
                // After a run: what is finished is not drawn any more.
                if self.bar.is_finished() {
                    self.bar.reset();
                }
                self.bar.set_prefix(self.series.clone());
                self.bar.set_message(what.to_owned());
            }
            Sight::Begins { case, limits, n, of } => {
                let number = (of > 1).then(|| format!("{} of {of}", n + 1));
                let series = Some(self.series.clone()).filter(|series| !series.is_empty());
                let place = number.into_iter().chain(series).collect::<Vec<_>>().join(", ");
                let place = if place.is_empty() { place } else { format!(" ({place})") };
                self.bar.reset();
                self.bar.set_prefix(format!("{case}{place}"));
                self.limits = Some(limits.clone());
                self.base = Moment::default();
            }
            Sight::Moment(now, _) => self.draw(now),
            Sight::Found { .. } | Sight::Server(_) => {}
            Sight::Ends(_) => self.bar.finish_and_clear(),
        }
    }
}
