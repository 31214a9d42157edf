//! Pictures of numbers in a terminal: curves over time, points, bars of a histogram, tables of figures. They know nothing of load tests.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, BorderType, Chart, Dataset, GraphType, Paragraph, Row, Sparkline, Table, Wrap};

/// Lowest inner height at which axes leave room for a curve.
const MIN_CURVE_HEIGHT: u16 = 5;

/// Narrowest inner width at which axes leave room for a curve.
const MIN_CURVE_WIDTH: u16 = 24;

/// One curve: a name, a colour, and points of time and value in ascending order of time.
#[derive(Debug)]
pub(crate) struct Curve<'a> {
    pub name: &'a str,
    pub color: Color,
    pub points: Vec<(f64, f64)>,
}

impl<'a> Curve<'a> {
    /// Values that are absent leave the curve out there.
    pub fn new(name: &'a str, color: Color, points: impl Iterator<Item = (f64, Option<f64>)>) -> Self {
        Self { name, color, points: points.filter_map(|(at, value)| Some((at, value?))).collect() }
    }

    fn last(&self) -> Option<f64> {
        self.points.last().map(|&(_, value)| value)
    }
}

/// A frame with a title.
pub(crate) fn panel(title: Line<'_>) -> Block<'_> {
    Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().dim()).title(title)
}

/// Curves over the last `seconds`, the newest values in the title; a row of bars where there is no room for axes.
pub(crate) fn curves(frame: &mut Frame<'_>, area: Rect, title: &str, curves: &[Curve<'_>], seconds: f64) {
    let mut words = vec![Span::from(format!(" {title}  ")).bold()];
    for curve in curves {
        let value = curve.last().map_or_else(|| "-".to_owned(), figure);
        words.push(Span::from(format!("{} {value}  ", curve.name)).fg(curve.color));
    }
    let block = panel(Line::from(words));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if inner.is_empty() {
        return;
    }
    let end = curves.iter().filter_map(|curve| curve.points.last()).map(|&(at, _)| at).fold(0.0, f64::max);
    let begin = (end - seconds).max(0.0);
    if inner.height < MIN_CURVE_HEIGHT || inner.width < MIN_CURVE_WIDTH {
        let Some(first) = curves.first() else { return };
        let shown = &first.points[first.points.len().saturating_sub(inner.width.into())..];
        let peak = shown.iter().map(|&(_, value)| value).fold(0.0, f64::max);
        // Bars are whole numbers: in thousandths of the highest.
        let bars = shown.iter().map(|&(_, value)| if peak > 0.0 { (1000.0 * value / peak) as u64 } else { 0 });
        frame.render_widget(Sparkline::default().data(bars.collect::<Vec<_>>()).fg(first.color), inner);
        return;
    }
    let shown: Vec<Vec<(f64, f64)>> =
        curves.iter().map(|curve| curve.points.iter().copied().filter(|&(at, _)| at >= begin).collect()).collect();
    let top = ceiling(shown.iter().flatten().map(|&(_, value)| value).fold(0.0, f64::max));
    let datasets = curves.iter().zip(&shown).map(|(curve, points)| {
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).fg(curve.color).data(points)
    });
    let dim = Style::new().dim();
    let times = [seconds_ago(end - begin), "now".to_owned()];
    let chart = Chart::new(datasets.collect())
        .legend_position(None)
        .x_axis(Axis::default().bounds([begin, end.max(begin + 1.0)]).labels(times).style(dim))
        .y_axis(Axis::default().bounds([0.0, top]).labels(["0".to_owned(), figure(top)]).style(dim));
    frame.render_widget(chart, inner);
}

/// Points of two measures, both axes from zero; the chosen point stands out. Where there is no room for axes the points are a list.
pub(crate) fn scatter(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    units: [&str; 2],
    points: &[(f64, f64)],
    chosen: Option<(f64, f64)>,
    color: Color,
) {
    let block = panel(Line::from(format!(" {title} ")).bold());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if inner.height < MIN_CURVE_HEIGHT || inner.width < MIN_CURVE_WIDTH {
        let list: Vec<String> =
            points.iter().map(|&(x, y)| format!("{} {} {}", figure(x), units[0], figure(y))).collect();
        frame.render_widget(Paragraph::new(list.join(", ")).wrap(Wrap { trim: true }), inner);
        return;
    }
    let end = |of: fn(&(f64, f64)) -> f64| ceiling(points.iter().map(of).fold(0.0, f64::max));
    let (right, top) = (end(|point| point.0), end(|point| point.1));
    let chosen: Vec<(f64, f64)> = chosen.into_iter().collect();
    let dots = |data, color| Dataset::default().marker(Marker::Dot).graph_type(GraphType::Scatter).fg(color).data(data);
    let dim = Style::new().dim();
    let axis = |end: f64, unit: &str| {
        let labels = ["0".to_owned(), format!("{} {unit}", figure(end))];
        Axis::default().bounds([0.0, end]).labels(labels).style(dim)
    };
    let chart = Chart::new(vec![dots(points, color), dots(&chosen, Color::White)])
        .legend_position(None)
        .x_axis(axis(right, units[0]))
        .y_axis(axis(top, units[1]));
    frame.render_widget(chart, inner);
}

/// Horizontal bars, each with its label before and its count behind it.
pub(crate) fn bars(frame: &mut Frame<'_>, area: Rect, title: &str, bars: &[(String, u64)], color: Color) {
    let block = panel(Line::from(format!(" {title} ")).bold());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let label_width = bars.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let most = bars.iter().map(|&(_, count)| count).max().unwrap_or(0);
    let count_width = most.to_string().len();
    let room = usize::from(inner.width).saturating_sub(label_width + count_width + 2);
    let lines = bars.iter().map(|(label, count)| {
        // In eighths of a character.
        let eighths = if most == 0 { 0 } else { (8 * room as u64 * count).div_ceil(most) };
        let (whole, rest) = ((eighths / 8) as usize, (eighths % 8) as usize);
        let mut bar = "█".repeat(whole);
        bar.push_str(["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][rest]);
        Line::from(vec![
            Span::from(format!("{label:>label_width$} ")).dim(),
            Span::from(bar).fg(color),
            Span::from(format!(" {count}")).dim(),
        ])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inner);
}

/// A table: a bold head, the first column as wide as `first`, the others sharing the rest.
pub(crate) fn table(frame: &mut Frame<'_>, area: Rect, title: &str, first: u16, head: &[&str], rows: Vec<Vec<String>>) {
    let right = |text: String| Line::from(text).right_aligned();
    let cells = |row: Vec<String>| {
        let cells = row.into_iter().enumerate();
        Row::new(cells.map(|(n, text)| if n == 0 { Line::from(text) } else { right(text) }).collect::<Vec<_>>())
    };
    let widths =
        head.iter().enumerate().map(|(n, _)| if n == 0 { Constraint::Length(first) } else { Constraint::Fill(1) });
    let header = cells(head.iter().map(|&name| name.to_owned()).collect()).style(Modifier::BOLD);
    let table = Table::new(rows.into_iter().map(cells), widths)
        .header(header)
        .block(panel(Line::from(format!(" {title} ")).bold()));
    frame.render_widget(table, area);
}

/// A number in few characters.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 1e6 => format!("{:.1}M", value / 1e6),
        magnitude if magnitude >= 1e4 => format!("{:.1}k", value / 1e3),
        magnitude if magnitude >= 100.0 || magnitude == 0.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn ceiling(value: f64) -> f64 {
    if !(value > 0.0 && value.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|&top| top >= value).unwrap_or(10.0 * power)
}

fn seconds_ago(seconds: f64) -> String {
    if seconds < 120.0 { format!("-{seconds:.0} s") } else { format!("-{:.0} min", seconds / 60.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let figures = [0.0, 0.1234, 1.0, 12.34, 123.4, 9_999.0, 12_345.0, 1_234_567.0].map(figure);
        assert_eq!(figures, ["0", "0.12", "1.00", "12.3", "123", "9999", "12.3k", "1.2M"]);
    }

    #[test]
    fn axes_end_at_round_numbers() {
        let ends = [0.0, 0.3, 1.0, 1.1, 4.0, 7.0, 99.0, 101.0, f64::NAN].map(ceiling);
        assert_eq!(ends, [1.0, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 200.0, 1.0]);
    }
}
