//! The view as it is drawn, from numbers alone.

use pelton_bench::batches::{Figures, Quantity};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{LineGauge, Paragraph, Wrap};

use super::keys::Choices;
use super::state::State;
use crate::charts;

/// Smallest area in which anything but one line is drawn.
const MIN_SIZE: (u16, u16) = (40, 12);

/// Lines of a panel: six figures and the frame.
const PANEL_HEIGHT: u16 = 8;

/// Narrowest area with panels: four of them side by side, with names, numbers and units.
const MIN_PANELS_WIDTH: u16 = 78;

/// From this width on units of throughputs have room beside everything else.
const WIDE: u16 = 100;

/// Lowest area of the body with panels, and with charts below them.
const MIN_PANELS_HEIGHT: u16 = 2 * PANEL_HEIGHT;
const MIN_CHARTS_HEIGHT: u16 = MIN_PANELS_HEIGHT + 6;

const PREFILL: Color = Color::Green;
const DECODE: Color = Color::Cyan;

/// Draws the chosen size.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, choices: &Choices) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        frame.render_widget(Paragraph::new(short(state)).wrap(Wrap { trim: true }), area);
        return;
    }
    let message_height = u16::from(state.failure.is_some());
    let [head, tabs, total, batch, message, body] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(message_height),
        Constraint::Fill(1),
    ])
    .areas(area);
    draw_head(frame, head, state);
    draw_tabs(frame, tabs, state, choices);
    draw_gauges(frame, total, batch, state);
    if let Some(failure) = &state.failure {
        frame.render_widget(Paragraph::new(format!(" {failure}")).fg(Color::Red), message);
    }
    let Some(&size) = state.batches.sizes.get(choices.tab(state)) else { return };
    if body.height < MIN_PANELS_HEIGHT || body.width < MIN_PANELS_WIDTH {
        draw_table(frame, body, state, size);
        return;
    }
    let panels_height = if body.height < MIN_CHARTS_HEIGHT { body.height / 2 } else { PANEL_HEIGHT };
    let [prefill, decode, charts] =
        Layout::vertical([Constraint::Length(panels_height), Constraint::Length(panels_height), Constraint::Fill(1)])
            .areas(body);
    draw_prefill(frame, prefill, state, choices, size);
    draw_decode(frame, decode, state, choices, size);
    if body.height >= MIN_CHARTS_HEIGHT {
        draw_charts(frame, charts, state, size);
    }
}

/// What fits anywhere.
fn short(state: &State) -> String {
    let size = state.batches.sizes.get(state.current()).copied().unwrap_or(0);
    format!("batch {size} {:.0} %", 100.0 * state.total_progress())
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let batches = &state.batches;
    let words = Line::from(vec![
        Span::from(" Model: ").dim(),
        Span::from(batches.model.clone()).bold(),
        Span::from(" | Sequence Length: ").dim(),
        Span::from(batches.sequence_length.to_string()).bold(),
        Span::from(" | Decode Length: ").dim(),
        Span::from(batches.decode_length.to_string()).bold(),
    ]);
    let keys = Line::from(vec![
        " q ".bold().fg(Color::Cyan),
        "quit ".dim(),
        " ← → ".bold().fg(Color::Cyan),
        "batch ".dim(),
        " + - ".bold().fg(Color::Cyan),
        "zoom ".dim(),
    ]);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(keys.width() as u16)]).areas(area);
    frame.render_widget(Paragraph::new(words), left);
    frame.render_widget(Paragraph::new(keys), right);
}

fn draw_tabs(frame: &mut Frame<'_>, area: Rect, state: &State, choices: &Choices) {
    let chosen = choices.tab(state);
    let tab = |(index, size): (usize, &usize)| {
        let style = if index == chosen { Style::new().reversed() } else { Style::new().dim() };
        Span::styled(format!(" Batch: {size} "), style)
    };
    let tabs: Vec<Span<'_>> = state.batches.sizes.iter().enumerate().map(tab).collect();
    // The chosen one is always in sight.
    let width = |spans: &[Span<'_>]| spans.iter().map(Span::width).sum::<usize>();
    let mut first = 0;
    while first < chosen && width(&tabs[first..=chosen]) > usize::from(area.width) {
        first += 1;
    }
    frame.render_widget(Paragraph::new(Line::from(tabs[first..].to_vec())), area);
}

fn draw_gauges(frame: &mut Frame<'_>, total: Rect, batch: Rect, state: &State) {
    let state_color = if state.failure.is_some() { Color::Red } else { Color::LightGreen };
    let size = state.batches.sizes.get(state.current()).copied().unwrap_or(0);
    let now = match &state.preparing {
        Some(what) => what.clone(),
        None if state.is_over() => "done, q quits".to_owned(),
        None => format!("batch {size}"),
    };
    for (area, name, share, right) in [
        (total, "Total Progress", state.total_progress(), String::new()),
        (batch, "Batch Progress", state.batch_progress(), now),
    ] {
        let [left, bar, rest] = Layout::horizontal([
            Constraint::Length(17),
            Constraint::Fill(1),
            Constraint::Length((right.chars().count() as u16 + 2).min(area.width / 2)),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(format!(" {name}").bold()), left);
        let gauge = LineGauge::default()
            .ratio(share)
            .label(format!("{:3.0} %", 100.0 * share))
            .filled_symbol("━")
            .filled_style(Style::new().fg(state_color))
            .unfilled_style(Style::new().dim());
        frame.render_widget(gauge, bar);
        frame.render_widget(Paragraph::new(format!(" {right}")), rest);
    }
}

fn draw_prefill(frame: &mut Frame<'_>, area: Rect, state: &State, choices: &Choices, size: usize) {
    let [latency, throughput, histogram] =
        Layout::horizontal([latency_width(area), rate_width(area), Constraint::Fill(1)]).areas(area);
    draw_latency(frame, latency, "Prefill Latency", state.figures(Quantity::PrefillLatency, size), PREFILL);
    draw_rate(frame, throughput, "Prefill Throughput", state.figures(Quantity::PrefillThroughput, size), PREFILL);
    draw_histogram(frame, histogram, "Prefill", Quantity::PrefillLatency, state, choices, size, PREFILL);
}

fn draw_decode(frame: &mut Frame<'_>, area: Rect, state: &State, choices: &Choices, size: usize) {
    let widths = [latency_width(area), latency_width(area), rate_width(area), Constraint::Fill(1)];
    let [total, token, throughput, histogram] = Layout::horizontal(widths).areas(area);
    draw_latency(frame, total, "Decode Total", state.figures(Quantity::DecodeTotalLatency, size), DECODE);
    draw_latency(frame, token, "Decode Token", state.figures(Quantity::DecodeTokenLatency, size), DECODE);
    draw_rate(frame, throughput, "Decode Throughput", state.figures(Quantity::DecodeThroughput, size), DECODE);
    draw_histogram(frame, histogram, "Decode", Quantity::DecodeTokenLatency, state, choices, size, DECODE);
}

/// Room for a figure with its unit; the histogram has what is left.
fn latency_width(area: Rect) -> Constraint {
    Constraint::Length(if area.width < WIDE { 20 } else { 22 })
}

/// As [`latency_width`]; without the unit where it is narrow.
fn rate_width(area: Rect) -> Constraint {
    Constraint::Length(if area.width < WIDE { 20 } else { 32 })
}

fn draw_latency(frame: &mut Frame<'_>, area: Rect, title: &str, figures: Option<Figures>, color: Color) {
    let lines = figures.map(|figures| {
        [
            ("Average", figures.average),
            ("Lowest", figures.lowest),
            ("Highest", figures.highest),
            ("p50", figures.p50),
            ("p90", figures.p90),
            ("p99", figures.p99),
        ]
        .to_vec()
    });
    draw_figures(frame, area, title, lines, "ms", color);
}

fn draw_rate(frame: &mut Frame<'_>, area: Rect, title: &str, figures: Option<Figures>, color: Color) {
    let lines = figures.map(|figures| {
        [("Average", figures.average), ("Lowest", figures.lowest), ("Highest", figures.highest)].to_vec()
    });
    draw_figures(frame, area, title, lines, "tokens/secs", color);
}

/// A line for each figure; the unit is left out where there is no room for it.
fn draw_figures(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    figures: Option<Vec<(&'static str, f64)>>,
    unit: &str,
    color: Color,
) {
    let block = charts::panel(Line::from(format!(" {title} ")).bold());
    let room = usize::from(block.inner(area).width);
    let line = |(name, value)| {
        let (name, number) = (format!("{name}: "), format!("{value:.2}"));
        let with_unit = format!("{number} {unit}");
        let value = if name.len() + with_unit.len() <= room { with_unit } else { number };
        Line::from(vec![Span::from(name).dim(), Span::from(value).bold().fg(color)])
    };
    let lines = figures.map_or_else(|| vec![Line::from(" -").dim()], |figures| figures.into_iter().map(line).collect());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// Equal parts of the span from the lowest value on, halved as often as chosen; what lies beyond is counted in the title.
#[expect(clippy::too_many_arguments, reason = "where, what, of whom")]
fn draw_histogram(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    quantity: Quantity,
    state: &State,
    choices: &Choices,
    size: usize,
    color: Color,
) {
    let values: Vec<f64> = state.runs(size).filter_map(|times| quantity.of(&state.batches, times)).collect();
    // The frame takes two lines.
    let num = usize::from(area.height.saturating_sub(2)).max(1);
    let (bars, num_beyond) = histogram(&values, num, choices.zoom);
    let beyond = if num_beyond > 0 { format!(", {num_beyond} beyond") } else { String::new() };
    charts::bars(frame, area, &format!("{title}: runs by ms{beyond}"), &bars, color);
}

/// Counts in `num` equal parts of the span halved `zoom` times, with labels; and how many values lie beyond it.
fn histogram(values: &[f64], num: usize, zoom: u32) -> (Vec<(String, u64)>, u64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() {
        return (Vec::new(), 0);
    }
    let width = (most - least) / f64::from(1 << zoom) / num as f64;
    if width <= 0.0 {
        return (vec![(charts::figure(least), values.len() as u64)], 0);
    }
    let mut counts = vec![0; num];
    let mut num_beyond = 0;
    for value in values {
        let part = ((value - least) / width) as usize;
        // The greatest value ends the last part of the whole span.
        match counts.get_mut(if zoom == 0 { part.min(num - 1) } else { part }) {
            Some(count) => *count += 1,
            None => num_beyond += 1,
        }
    }
    let label = |n: usize| charts::figure(least + width * n as f64);
    (counts.into_iter().enumerate().map(|(n, count)| (label(n), count)).collect(), num_beyond)
}

fn draw_charts(frame: &mut Frame<'_>, area: Rect, state: &State, size: usize) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    for (area, title, quantities, color) in [
        (left, "Prefill: throughput over latency", [Quantity::PrefillLatency, Quantity::PrefillThroughput], PREFILL),
        (
            right,
            "Decode: throughput over token latency",
            [Quantity::DecodeTokenLatency, Quantity::DecodeThroughput],
            DECODE,
        ),
    ] {
        let averages = state.averages(quantities);
        let points: Vec<(f64, f64)> = averages.iter().map(|&(_, point)| point).collect();
        let chosen = averages.iter().find(|(of, _)| *of == size).map(|&(_, point)| point);
        charts::scatter(frame, area, title, ["ms", "tokens/s"], &points, chosen, color);
    }
}

/// All figures in few lines, where there is no room for panels.
fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &State, size: usize) {
    let rows = [
        ("prefill ms", Quantity::PrefillLatency),
        ("prefill tok/s", Quantity::PrefillThroughput),
        ("decode ms", Quantity::DecodeTotalLatency),
        ("token ms", Quantity::DecodeTokenLatency),
        ("decode tok/s", Quantity::DecodeThroughput),
    ];
    let lines = rows.map(|(name, quantity)| {
        let figures = state.figures(quantity, size);
        let cell = |value: fn(&Figures) -> f64| figures.as_ref().map_or("-".to_owned(), |of| charts::figure(value(of)));
        let cells =
            [cell(|of| of.average), cell(|of| of.lowest), cell(|of| of.highest), cell(|of| of.p50), cell(|of| of.p99)];
        std::iter::once(name.to_owned()).chain(cells).collect()
    });
    let head = ["", "avg", "low", "high", "p50", "p99"];
    charts::table(frame, area, &format!("batch {size}"), 14, &head, lines.to_vec());
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;
    use crate::batches::state::{Told, sample};

    /// What a terminal of this size shows.
    fn shown(size: (u16, u16), state: &State, choices: &Choices) -> String {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(size.0, size.1)).expect("a buffer");
        terminal.draw(|frame| draw(frame, state, choices)).expect("a buffer");
        terminal.backend().to_string()
    }

    fn has_line(screen: &str, words: &[&str]) -> bool {
        screen.lines().any(|line| words.iter().all(|word| line.contains(word)))
    }

    #[test]
    fn everything_about_a_size_is_on_the_screen() {
        for size in [(100, 32), (120, 40), (200, 60)] {
            let screen = shown(size, &sample::measured(), &Choices::default());
            for words in [
                &["Model: bigcode/starcoder", "Sequence Length: 10", "Decode Length: 8", "quit", "zoom"] as &[&str],
                &["Batch: 1", "Batch: 2", "Batch: 4"],
                &["Total Progress", "53 %"],
                &["Batch Progress", "60 %", "batch 2"],
                &["Prefill Latency", "Prefill Throughput", "Prefill: runs by ms"],
                &["Average: 18.00 ms", "Average: 1125.00 tokens/secs", "16.0"],
                &["Lowest: 16.00 ms", "Lowest: 1000.00 tokens/secs"],
                &["Highest: 20.00 ms", "Highest: 1250.00 tokens/secs"],
                &["Decode Total", "Decode Token", "Decode Throughput", "Decode: runs by ms"],
                &["p50: 91.00 ms", "p50: 13.00 ms"],
                &["p99: 91.00 ms", "p99: 13.00 ms"],
                &["Average: 153.85 tokens/secs", "13.0", "█"],
                &["Prefill: throughput over latency", "Decode: throughput over token latency"],
                &["2000 tokens/s", "200 tokens/s"],
                &["20.0 ms", "20.0 ms"],
            ] {
                assert!(has_line(&screen, words), "{words:?} at {size:?}:\n{screen}");
            }
        }
    }

    #[test]
    fn a_small_screen_has_the_figures_at_least() {
        let screen = shown((80, 24), &sample::measured(), &Choices::default());
        assert!(has_line(&screen, &["Average: 18.00 ms"]) && has_line(&screen, &["p99: 13.00 ms"]), "{screen}");
        assert!(has_line(&screen, &["Average: 91.00 ms", "Average: 13.00 ms", "│Average: 153.85 "]), "{screen}");
        assert!(!screen.contains("throughput over latency"), "{screen}");
        let screen = shown((60, 14), &sample::measured(), &Choices::default());
        assert!(has_line(&screen, &["prefill ms", "18.0", "16.0", "20.0"]), "{screen}");
        assert!(has_line(&screen, &["decode tok/s", "154"]), "{screen}");
        assert_eq!(
            shown((30, 1), &sample::measured(), &Choices::default()).trim_matches(['"', '\n', ' ']),
            "batch 2 53 %"
        );
    }

    #[test]
    fn no_size_is_too_small() {
        let many =
            State::new(pelton_bench::batches::Batches { sizes: (1..40).collect(), ..sample::measured().batches });
        for width in [1, 2, 39, 40, 77, 78, 100] {
            for height in [1, 2, 11, 12, 19, 20, 21, 26, 27, 40] {
                shown((width, height), &sample::measured(), &Choices::default());
                shown((width, height), &many, &Choices::default());
            }
        }
    }

    #[test]
    fn a_failure_is_told_and_the_end_too() {
        let mut state = sample::measured();
        state.take(Told::Failed("status 500: the model is gone".into()));
        state.take(Told::Over(None));
        let screen = shown((100, 32), &state, &Choices::default());
        assert!(has_line(&screen, &["status 500: the model is gone"]), "{screen}");
        assert!(has_line(&screen, &["done, q quits"]), "{screen}");
    }

    #[test]
    fn sizes_without_runs_and_decode_of_one_token_show_dashes() {
        let mut state = sample::measured();
        state.take(Told::Begins(4));
        let screen = shown((100, 32), &state, &Choices::default());
        assert!(!screen.contains("Average:") && has_line(&screen, &["│ -"]), "{screen}");
        let mut state = sample::measured();
        state.batches.decode_length = 1;
        let screen = shown((100, 32), &state, &Choices::default());
        assert!(has_line(&screen, &["Average: 18.00 ms"]) && !screen.contains("Average: 13.00"), "{screen}");
    }

    #[test]
    fn the_chosen_tab_is_in_sight() {
        let mut state = sample::measured();
        state.batches.sizes = (1..40).collect();
        state.take(Told::Begins(39));
        assert!(has_line(&shown((60, 30), &state, &Choices::default()), &["Batch: 39"]));
    }

    #[test]
    fn zooming_looks_closer_at_the_lowest() {
        let values = [10.0, 10.5, 11.0, 12.0, 50.0];
        let (bars, beyond) = histogram(&values, 4, 0);
        assert_eq!((bars.iter().map(|bar| bar.1).collect::<Vec<_>>(), beyond), (vec![4, 0, 0, 1], 0));
        let (bars, beyond) = histogram(&values, 4, 4);
        assert_eq!((bars.iter().map(|bar| bar.1).collect::<Vec<_>>(), beyond), (vec![2, 1, 0, 1], 1));
        assert_eq!(histogram(&[3.0, 3.0], 4, 2), (vec![("3.00".into(), 2)], 0));
        assert_eq!(histogram(&[], 4, 0), (vec![], 0));

        let mut choices = Choices::default();
        let state = sample::measured();
        for _ in 0..8 {
            choices.press(KeyEvent::new(KeyCode::Char('+'), KeyModifiers::NONE), &state);
        }
        assert!(has_line(&shown((100, 32), &state, &choices), &["Prefill: runs by ms, 1 beyond"]));
    }
}
