//! The pages as they are drawn, from numbers alone.

use std::time::Duration;

use pelton_bench::Distribution;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{LineGauge, Paragraph, Wrap};

use super::keys::{Choices, Page};
use crate::charts::{self, Curve};
use crate::tally::{Latency, Point, Quantiles, RECENT_S, Running, Tally};

/// Seconds that curves go back.
const CURVE_S: f64 = 120.0;

/// Smallest area in which anything but one line is drawn.
const MIN_SIZE: (u16, u16) = (40, 10);

/// Draws the chosen page.
pub(crate) fn draw(frame: &mut Frame<'_>, tally: &Tally, choices: &Choices) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        frame.render_widget(Paragraph::new(short(tally)).wrap(Wrap { trim: true }), area);
        return;
    }
    let [head, progress, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(area);
    draw_head(frame, head, tally, choices);
    frame.render_widget(Paragraph::new(keys(tally, choices)), foot);
    let Some(run) = &tally.run else {
        let words = tally.preparing.as_deref().unwrap_or("waiting for the first run");
        frame.render_widget(Paragraph::new(format!("{words} ...")).dim().centered(), body);
        return;
    };
    draw_progress(frame, progress, run, tally, choices);
    match choices.page {
        Page::Overview => overview(frame, body, run, tally),
        Page::Latencies => latencies(frame, body, run),
        Page::Errors => errors(frame, body, run, tally),
        Page::Runs => runs(frame, body, tally),
    }
}

/// What fits anywhere.
fn short(tally: &Tally) -> String {
    match (&tally.run, &tally.preparing) {
        (Some(run), _) => format!(
            "{} {:.0} % {} done {} failed",
            run.begins.label,
            100.0 * run.progress(),
            run.now.done,
            run.now.failed
        ),
        (None, Some(what)) => what.clone(),
        (None, None) => "waiting".to_owned(),
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, tally: &Tally, choices: &Choices) {
    let mut tabs = Vec::new();
    for page in Page::ALL {
        let style = if page == choices.page { Style::new().reversed() } else { Style::new().dim() };
        tabs.push(Span::styled(format!(" {} ", page.title()), style));
    }
    let tabs = Line::from(tabs);
    let about = &tally.about;
    let mut words = vec![" pelton bench ".bold().fg(Color::Cyan), Span::from(about.url.clone())];
    words.extend(about.model.iter().filter(|model| !model.is_empty()).map(|model| format!("  {model}").bold()));
    words.extend(about.api.map(|api| format!("  {api}").dim()));
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(tabs.width() as u16)]).areas(area);
    frame.render_widget(Paragraph::new(Line::from(words)), left);
    frame.render_widget(Paragraph::new(tabs), right);
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, run: &Running, tally: &Tally, choices: &Choices) {
    let place = if run.begins.of > 1 { format!(" ({} of {})", run.begins.n + 1, run.begins.of) } else { String::new() };
    let state = match &tally.preparing {
        Some(what) => what.clone(),
        None if run.is_over => format!("over after {}", clock(run.now.at)),
        None if choices.is_ending => {
            format!("ending: {} still running, q again cuts them", run.now.running())
        }
        None => {
            format!("{} of {}, {} left", clock(run.now.at), clock(run.begins.limits.duration), clock(run.remaining()))
        }
    };
    let label = format!(" {}{place}", run.begins.label);
    let [name, bar, rest] = Layout::horizontal([
        Constraint::Length(label.chars().count() as u16 + 1),
        Constraint::Fill(1),
        Constraint::Length(state.chars().count() as u16 + 2),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(label.bold()), name);
    let gauge = LineGauge::default()
        .ratio(run.progress())
        .label(format!("{:3.0} %", 100.0 * run.progress()))
        .filled_symbol("━")
        .filled_style(Style::new().fg(Color::Cyan))
        .unfilled_style(Style::new().dim());
    frame.render_widget(gauge, bar);
    frame.render_widget(Paragraph::new(format!(" {state}")), rest);
}

fn keys(tally: &Tally, choices: &Choices) -> Line<'static> {
    let mut words = vec![Span::from(" ")];
    let mut key = |name: &'static str, what: &'static str| {
        words.extend([name.bold().fg(Color::Cyan), Span::from(format!(" {what}   ")).dim()]);
    };
    key("q", if choices.is_ending { "cut" } else { "end" });
    key("tab", "page");
    key("p", if choices.is_frozen { "go on" } else { "freeze" });
    if tally.steered().is_some() {
        key("+ -", "users");
    }
    if choices.is_frozen {
        words.push(" FROZEN ".reversed());
    }
    Line::from(words)
}

fn overview(frame: &mut Frame<'_>, area: Rect, run: &Running, tally: &Tally) {
    let notes = notes(run, tally);
    let notes_height = if area.height >= 26 && !notes.is_empty() { (notes.len() as u16 + 2).min(7) } else { 0 };
    let [upper, lower, table, counts, rest] = Layout::vertical([
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(6),
        Constraint::Length(3),
        Constraint::Length(notes_height),
    ])
    .areas(area);
    let halves = |area| Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(area);
    let [left, right] = halves(upper);
    let requests = curve(run, "ok", Color::Green, |point| Some(point.requests));
    let failures = curve(run, "failed", Color::Red, |point| Some(point.failures));
    charts::curves(frame, left, "requests/s", &[requests, failures], CURVE_S);
    let tokens = curve(run, "", Color::Cyan, |point| Some(point.tokens));
    charts::curves(frame, right, "tokens/s", &[tokens], CURVE_S);
    let [left, right] = halves(lower);
    let middle = curve(run, "p50", Color::Green, |point| point.ttft_p50);
    let high = curve(run, "p95", Color::Yellow, |point| point.ttft_p95);
    charts::curves(frame, left, "first token, ms", &[middle, high], CURVE_S);
    let running = curve(run, "running", Color::Magenta, |point| Some(point.running as f64));
    let users = curve(run, "users", Color::Blue, |point| point.users.map(|users| users as f64));
    let curves = if run.now.users.is_some() { vec![running, users] } else { vec![running] };
    charts::curves(frame, right, "requests", &curves, CURVE_S);
    draw_quantiles(frame, table, run);
    draw_counts(frame, counts, run);
    if notes_height > 0 {
        let lines: Vec<Line<'_>> = notes.into_iter().map(|note| Line::from(format!("• {note}"))).collect();
        let block = charts::panel(Line::from(" notes ").bold());
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(block), rest);
    }
}

fn curve<'a>(run: &Running, name: &'a str, color: Color, value: impl Fn(&Point) -> Option<f64>) -> Curve<'a> {
    Curve::new(name, color, run.points.iter().map(|point| (point.at_s, value(point))))
}

fn rows(run: &Running) -> [(&'static str, &Latency); 3] {
    [("first token", &run.ttft), ("between tokens", &run.itl), ("end to end", &run.e2e)]
}

fn draw_quantiles(frame: &mut Frame<'_>, area: Rect, run: &Running) {
    let cells = |values: Option<Quantiles>| {
        let of =
            |value: fn(&Quantiles) -> f64| values.as_ref().map_or_else(|| "-".to_owned(), |v| charts::figure(value(v)));
        [of(|values| values.p50), of(|values| values.p95), of(|values| values.p99), of(|values| values.max)]
    };
    let lines = rows(run).map(|(name, latency)| {
        let mut line = vec![name.to_owned()];
        line.extend(cells(latency.recent()).into_iter().take(3));
        line.extend(cells(latency.whole()));
        line
    });
    let title = format!("latencies in ms: last {RECENT_S} s | whole run so far");
    let head = ["", "p50", "p95", "p99", "| p50", "p95", "p99", "max"];
    charts::table(frame, area, &title, 15, &head, lines.to_vec());
}

fn draw_counts(frame: &mut Frame<'_>, area: Rect, run: &Running) {
    let now = &run.now;
    let mut words = vec![
        format!(" {} done", now.done).fg(Color::Green),
        Span::from(format!("  {} running", now.running())),
        count(now.failed, "failed", Color::Red),
    ];
    if run.begins.late_after_us.is_some() {
        words.push(count(now.dropped, "dropped", Color::Yellow));
        words.push(count(run.late, "late", Color::Yellow));
    }
    if let Some(server) = &run.server {
        words.push(Span::from("  server:").dim());
        let number = |value: Option<f64>, name: &str| value.map(|value| Span::from(format!(" {value:.0} {name}")));
        words.extend(number(server.running, "running"));
        words.extend(number(server.waiting, "waiting"));
        words.extend(server.kv_usage.map(|share| Span::from(format!(" KV {:.0} %", 100.0 * share))));
    }
    let block = charts::panel(Line::from(" requests so far ").bold());
    frame.render_widget(Paragraph::new(Line::from(words)).block(block), area);
}

fn count(number: u64, name: &str, color: Color) -> Span<'static> {
    let span = Span::from(format!("  {number} {name}"));
    if number > 0 { span.fg(color) } else { span.dim() }
}

/// What the reader should know.
fn notes(run: &Running, tally: &Tally) -> Vec<String> {
    let mut notes = Vec::new();
    if run.num_warmup > 0 {
        notes.push(format!("{} ended requests are warm-up and in no percentile", run.num_warmup));
    }
    if run.missed_looks > 0 {
        notes.push(format!(
            "this view missed {} looks: its percentiles lack their requests, the results do not",
            run.missed_looks
        ));
    }
    for (kind, error) in run.errors.iter().take(3) {
        notes.push(format!("{} x {kind}: {}", error.count, error.example));
    }
    if let Some(done) = tally.done.back() {
        notes.extend(done.notes.iter().map(|note| format!("{}: {note}", done.label)));
    }
    notes
}

fn latencies(frame: &mut Frame<'_>, area: Rect, run: &Running) {
    let [table, upper, lower] =
        Layout::vertical([Constraint::Length(6), Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    draw_quantiles(frame, table, run);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(upper);
    let both = |middle: fn(&Point) -> Option<f64>, high: fn(&Point) -> Option<f64>| {
        [curve(run, "p50", Color::Green, middle), curve(run, "p95", Color::Yellow, high)]
    };
    charts::curves(frame, left, "between tokens, ms", &both(|p| p.itl_p50, |p| p.itl_p95), CURVE_S);
    charts::curves(frame, right, "end to end, ms", &both(|p| p.e2e_p50, |p| p.e2e_p95), CURVE_S);
    // The frame takes two lines.
    let num = usize::from(lower.height.saturating_sub(2));
    let (title, latency) = match run.ttft.whole() {
        Some(_) => ("time to first token, whole run: requests by ms", &run.ttft),
        None => ("end to end, whole run: requests by ms", &run.e2e),
    };
    let bars: Vec<(String, u64)> = latency
        .bars(num)
        .into_iter()
        .map(|bar| (format!("{} to {}", charts::figure(bar.from_ms), charts::figure(bar.to_ms)), bar.count))
        .collect();
    charts::bars(frame, lower, title, &bars, Color::Cyan);
}

fn errors(frame: &mut Frame<'_>, area: Rect, run: &Running, tally: &Tally) {
    let [upper, lower] = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let mut lines = Vec::new();
    for (kind, error) in &run.errors {
        lines.push(Line::from(vec![
            Span::from(format!("{:>7} ", error.count)).fg(Color::Red).bold(),
            Span::from(kind.to_string()).bold(),
            Span::from(format!("  {}", error.example)),
        ]));
    }
    if lines.is_empty() {
        lines.push(Line::from(" no request failed so far").dim());
    }
    let block = charts::panel(Line::from(" failed requests, with the first words of each kind ").bold());
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), upper);
    let lines: Vec<Line<'_>> = notes(run, tally).into_iter().map(|note| Line::from(format!("• {note}"))).collect();
    let block = charts::panel(Line::from(" notes ").bold());
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }).block(block), lower);
}

fn runs(frame: &mut Frame<'_>, area: Rect, tally: &Tally) {
    let head =
        ["load", "ok", "failed", "dropped", "req/s", "tok/s", "ttft p50", "ttft p95", "itl p50", "itl p95", "e2e p95"];
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), charts::figure);
    // The newest that fit: frame and head take three lines.
    let skipped = tally.done.len().saturating_sub(usize::from(area.height.saturating_sub(3)));
    let lines = tally.done.iter().skip(skipped).map(|done| {
        let of = |values: &Option<Distribution>, value: fn(&Distribution) -> f64| cell(values.as_ref().map(value));
        vec![
            done.label.clone(),
            done.complete.to_string(),
            done.failed.to_string(),
            done.dropped.to_string(),
            charts::figure(done.requests_per_s),
            charts::figure(done.tokens_per_s),
            of(&done.ttft, |values| values.p50),
            of(&done.ttft, |values| values.p95),
            of(&done.itl, |values| values.p50),
            of(&done.itl, |values| values.p95),
            of(&done.e2e, |values| values.p95),
        ]
    });
    let first = tally.done.iter().map(|done| done.label.chars().count()).max().unwrap_or(0).max(4) as u16;
    charts::table(frame, area, "runs that are over: measured window, ms", first + 1, &head, lines.collect());
}

/// Minutes and seconds, or hours.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use pelton_bench::watch::{Moment, Sight, Watch};
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::looks::{Done, Look};
    use crate::sample;

    /// What a terminal of this size shows.
    fn shown(size: (u16, u16), tally: &Tally, choices: &Choices) -> String {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(size.0, size.1)).expect("a buffer");
        terminal.draw(|frame| draw(frame, tally, choices)).expect("a buffer");
        terminal.backend().to_string()
    }

    /// Two seconds into a run in which one request in three fails.
    fn running() -> Tally {
        let (mut looker, looks) = crate::looks::channel();
        let mut tally = Tally::new(sample::about());
        sample::begin(&mut looker);
        for second in 1..=2 {
            let rows = [
                sample::row(0, 0, 0, &[(20_000, 1), (30_000, 1)]),
                sample::row(1, 0, 0, &[(20_000, 1), (30_000, 1)]),
                sample::failed(2, "connection reset by peer"),
            ];
            let now = Moment {
                at: Duration::from_secs(second),
                users: Some(4),
                started: 3 * second + 4,
                done: 2 * second,
                failed: second,
                tokens: 500 * second,
                ..Moment::default()
            };
            looker.see(Sight::Moment(&now, &rows));
        }
        looks.try_iter().for_each(|look| {
            tally.take(look);
        });
        tally
    }

    fn on(page: Page) -> Choices {
        Choices { page, ..Choices::default() }
    }

    /// Whether a line holds all of these words.
    fn has_line(screen: &str, words: &[&str]) -> bool {
        screen.lines().any(|line| words.iter().all(|word| line.contains(word)))
    }

    #[test]
    fn the_overview_tells_rates_latencies_and_counts() {
        for size in [(80, 24), (100, 40), (200, 60)] {
            let screen = shown(size, &running(), &on(Page::Overview));
            for words in [
                &["pelton bench", "http://127.0.0.1:3000", "overview", "runs"] as &[&str],
                &["4 users", "0:02 of 0:10", "0:08 left", "20 %"],
                &["requests/s", "ok 2.00", "failed 1.00", "tokens/s", "500"],
                &["first token", "p50 20.0", "p95 20.0", "running 4", "users 4"],
                &["first token", "20.0"],
                &["between tokens", "10.0"],
                &["end to end", "30.0"],
                &["4 done", "4 running", "2 failed"],
                &["q end", "tab page", "p freeze"],
            ] {
                assert!(has_line(&screen, words), "{words:?} at {size:?}:\n{screen}");
            }
            assert!(screen.contains("+ -"), "users can be steered:\n{screen}");
        }
    }

    #[test]
    fn errors_come_with_their_first_words() {
        let screen = shown((100, 24), &running(), &on(Page::Errors));
        assert!(has_line(&screen, &["2", "broken stream", "connection reset by peer"]), "{screen}");
    }

    #[test]
    fn the_histogram_counts_each_request() {
        let screen = shown((100, 40), &running(), &on(Page::Latencies));
        assert!(has_line(&screen, &["20.0 to ", "█", " 4"]), "{screen}");
        assert!(screen.contains("time to first token, whole run"), "{screen}");
    }

    #[test]
    fn runs_that_are_over_stand_in_a_table() {
        let mut tally = running();
        let ttft = Distribution::of(vec![12.5]);
        let done =
            Done { label: "4 users".into(), complete: 41, failed: 3, requests_per_s: 8.25, ttft, ..Done::default() };
        tally.take(Look::Ends(Box::new(done)));
        let screen = shown((120, 20), &tally, &on(Page::Runs));
        assert!(has_line(&screen, &["4 users", "41", "3", "8.25", "12.5", "-"]), "{screen}");
        assert!(has_line(&screen, &["over after"]), "{screen}");
    }

    #[test]
    fn no_size_is_too_small() {
        let (run, none) = (running(), Tally::new(sample::about()));
        for page in Page::ALL {
            for width in [1, 2, 10, 39, 40, 41, 80] {
                for height in [1, 2, 5, 9, 10, 11, 15, 24] {
                    shown((width, height), &run, &on(page));
                    shown((width, height), &none, &on(page));
                }
            }
        }
        assert!(shown((38, 2), &run, &on(Page::Overview)).contains("4 users 20 %"));
    }

    #[test]
    fn an_ending_and_a_frozen_view_say_so() {
        let choices = Choices { is_ending: true, is_frozen: true, ..Choices::default() };
        let screen = shown((100, 30), &running(), &choices);
        assert!(has_line(&screen, &["ending: 4 still running"]), "{screen}");
        assert!(has_line(&screen, &["q cut", "p go on", "FROZEN"]), "{screen}");
    }
}
