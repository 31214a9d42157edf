//! Figures drawn as SVG, without anything from outside but a font's name.

use std::fmt::{self, Write};

use super::figure::{Axis, Colour, Data, Figure, Point, Scale, Series, Side};
use super::palette::css;
use super::scale::{Ruler, mark_text};

/// The fonts asked for; the first is the one with which PNGs are made.
pub const FONTS: &str = "'DejaVu Sans', Verdana, 'Bitstream Vera Sans', sans-serif";

const SIDES: [Side; 3] = [Side::Left, Side::Right, Side::SecondRight];
const TEXT: f64 = 12.0;
const LINE: f64 = 17.0;
const INK: &str = "#222222";
const SOFT: &str = "#5a5a5a";
const GRID: &str = "#e4e4e4";
/// Most series that get their name at the end of their line.
const MAX_DIRECT: usize = 6;

/// Draws figures one below the other, with their plots in line. The horizontal axis is named under the last.
pub fn svg(figures: &[Figure]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = draw_all(&mut out, figures);
    out
}

fn draw_all(out: &mut String, figures: &[Figure]) -> fmt::Result {
    let width = figures.iter().map(|figure| figure.width).max().unwrap_or(320);
    let height: u32 = figures.iter().map(|figure| figure.height).sum::<u32>().max(40);
    write!(out, r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img" "#)?;
    write!(out, r#"viewBox="0 0 {width} {height}" font-family="{FONTS}" font-size="{TEXT}">"#)?;
    write!(out, r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##)?;
    let layouts: Vec<Layout<'_>> = figures.iter().map(Layout::new).collect();
    let left = layouts.iter().map(|layout| layout.left).fold(0.0, f64::max);
    let right = layouts.iter().map(|layout| layout.right).fold(0.0, f64::max);
    let mut top = 0.0;
    for (n, layout) in layouts.into_iter().enumerate() {
        let is_last = n + 1 == figures.len();
        let height = f64::from(layout.figure.height);
        let bottom = if is_last { 42.0 } else { 26.0 };
        let area = Area {
            left,
            right: f64::from(width) - right,
            top: top + layout.head,
            bottom: (top + height - bottom).max(top + layout.head + 20.0),
        };
        Panel { layout, area, top, names_x: is_last }.draw(out)?;
        top += height;
    }
    out.write_str("</svg>\n")
}

/// The room that what stands around the plot needs.
struct Layout<'a> {
    figure: &'a Figure,
    note: Vec<String>,
    legend: Legend,
    left: f64,
    right: f64,
    head: f64,
}

enum Legend {
    /// One series needs no name: the title and the axis say what it is.
    None,
    /// Names at the ends of the lines.
    Direct,
    /// Names in lines under the title: indices of the series in each, with the position of each.
    Rows(Vec<Vec<(usize, f64)>>),
}

impl<'a> Layout<'a> {
    fn new(figure: &'a Figure) -> Self {
        let room = f64::from(figure.width) - 32.0;
        let note = figure.note.as_deref().map(|note| wrapped(note, room)).unwrap_or_default();
        let legend = Legend::of(figure, room);
        let mut left = widest_mark(figure, Side::Left) + 14.0;
        if figure.y[0].as_ref().is_some_and(|axis| axis.bare) {
            left = 16.0;
        }
        let mut right: f64 = 20.0;
        for side in [Side::Right, Side::SecondRight] {
            if figure.y[usize::from(side)].is_some() {
                right += axis_width(figure, side);
            }
        }
        if matches!(legend, Legend::Direct) {
            let names = figure.series.iter().map(|series| text_width(&series.name));
            right = right.max(names.fold(0.0, f64::max) + 20.0);
        }
        let rows = if let Legend::Rows(rows) = &legend { rows.len() } else { 0 };
        let head = 34.0 + LINE * (note.len() + rows) as f64 + 24.0;
        Self { figure, note, legend, left: left.max(40.0), right, head }
    }
}

impl Legend {
    fn of(figure: &Figure, room: f64) -> Self {
        let series = &figure.series;
        let has_right = figure.y[1].is_some() || figure.y[2].is_some();
        let is_line = |series: &Series| matches!(series.data, Data::Line(_) | Data::DottedLine(_));
        if series.len() < 2 && !has_right {
            return Legend::None;
        }
        let names = series.iter().map(|series| text_width(&series.name)).fold(0.0, f64::max);
        if !has_right && series.len() <= MAX_DIRECT && series.iter().all(is_line) && names < 110.0 {
            return Legend::Direct;
        }
        let mut rows: Vec<Vec<(usize, f64)>> = vec![Vec::new()];
        let mut x = 0.0;
        for (n, series) in series.iter().enumerate() {
            let width = 24.0 + text_width(&series.name) + 16.0;
            if x + width > room && x > 0.0 {
                rows.push(Vec::new());
                x = 0.0;
            }
            if let Some(row) = rows.last_mut() {
                row.push((n, x));
            }
            x += width;
        }
        Legend::Rows(rows)
    }
}

#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

struct Panel<'a> {
    layout: Layout<'a>,
    area: Area,
    top: f64,
    names_x: bool,
}

impl Panel<'_> {
    fn draw(&self, out: &mut String) -> fmt::Result {
        let figure = self.layout.figure;
        let x = Ruler::new(&figure.x, figure.extent_x(), (self.area.left, self.area.right));
        let y = SIDES.map(|side| {
            let axis = figure.y[usize::from(side)].as_ref()?;
            Some(Ruler::new(axis, figure.extent(side), self.ends(side)))
        });
        self.head(out)?;
        for &(from, to) in &figure.greyed {
            let (from, to) = (x.at(from), x.at(to));
            write!(
                out,
                r##"<rect x="{from:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="#f0f0f0"/>"##,
                self.area.top,
                (to - from).max(0.0),
                self.area.bottom - self.area.top
            )?;
        }
        self.x_axis(out, &x)?;
        let mut axis_x = self.area.right;
        for side in SIDES {
            let (Some(axis), Some(ruler)) = (&figure.y[usize::from(side)], &y[usize::from(side)]) else { continue };
            if side == Side::Left {
                self.left_axis(out, axis, ruler)?;
            } else {
                self.right_axis(out, side, axis, ruler, axis_x)?;
                axis_x += axis_width(figure, side);
            }
        }
        for series in &figure.series {
            if let Some(ruler) = &y[usize::from(series.side)] {
                self.series(out, series, &x, ruler)?;
            }
        }
        if matches!(self.layout.legend, Legend::Direct)
            && let Some(ruler) = &y[0]
        {
            self.direct_names(out, ruler)?;
        }
        Ok(())
    }

    /// Spans are read from the top, values from the bottom.
    fn ends(&self, side: Side) -> (f64, f64) {
        let spans = self.layout.figure.series.iter().any(|series| series.side == side && !series.bars().is_empty());
        if spans { (self.area.top, self.area.bottom) } else { (self.area.bottom, self.area.top) }
    }

    fn head(&self, out: &mut String) -> fmt::Result {
        let figure = self.layout.figure;
        let mut y = self.top + 24.0;
        write!(out, r#"<text x="16" y="{y:.1}" font-size="15" font-weight="bold" fill="{INK}">"#)?;
        escaped(out, &figure.title)?;
        out.write_str("</text>")?;
        y += 3.0;
        for line in &self.layout.note {
            y += LINE;
            text(out, (16.0, y), "start", SOFT, line)?;
        }
        if let Legend::Rows(rows) = &self.layout.legend {
            for row in rows {
                y += LINE;
                for &(n, x) in row {
                    let series = &figure.series[n];
                    self.swatch(out, series, 16.0 + x, y - 4.0)?;
                    text(out, (16.0 + x + 24.0, y), "start", INK, &series.name)?;
                }
            }
        }
        if let Some(axis) = figure.y[0].as_ref() {
            let names_one = figure.y[1].is_some() && self.only_on(Side::Left).is_some();
            let colour = self.only_on(Side::Left).filter(|_| names_one).map_or(SOFT.to_owned(), css);
            text(out, (16.0, self.area.top - 10.0), "start", &colour, &axis.title())?;
        }
        Ok(())
    }

    /// The colour of the only series on a side.
    fn only_on(&self, side: Side) -> Option<Colour> {
        let mut on_side = self.layout.figure.series.iter().filter(|series| series.side == side);
        on_side.next().filter(|_| on_side.next().is_none())?.colour
    }

    fn swatch(&self, out: &mut String, series: &Series, x: f64, y: f64) -> fmt::Result {
        let colour = stroke(series);
        match &series.data {
            Data::Spans(_) => {
                write!(out, r#"<rect x="{x:.1}" y="{:.1}" width="18" height="9" fill="{colour}"/>"#, y - 4.5)
            }
            Data::Dots(_) => write!(out, r#"<circle cx="{:.1}" cy="{y:.1}" r="4" fill="{colour}"/>"#, x + 9.0),
            _ => write!(
                out,
                r#"<line x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="2.5"{}/>"#,
                x + 18.0,
                dash(series)
            ),
        }
    }

    fn x_axis(&self, out: &mut String, ruler: &Ruler) -> fmt::Result {
        let (figure, area) = (self.layout.figure, self.area);
        let room = ((area.right - area.left) / 70.0) as usize;
        let mut free = f64::NEG_INFINITY;
        for mark in ruler.marks(&figure.x, room) {
            let (x, label) = (ruler.at(mark), mark_text(&figure.x, mark));
            let half = text_width(&label) / 2.0;
            write!(
                out,
                r##"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}" stroke="#999999"/>"##,
                area.bottom,
                area.bottom + 4.0
            )?;
            if x - half > free {
                text(out, (x, area.bottom + 17.0), "middle", SOFT, &label)?;
                free = x + half + 6.0;
            }
        }
        write!(
            out,
            r##"<line x1="{:.1}" y1="{2:.1}" x2="{:.1}" y2="{2:.1}" stroke="#999999"/>"##,
            area.left, area.right, area.bottom
        )?;
        if self.names_x {
            let middle = f64::midpoint(area.left, area.right);
            text(out, (middle, area.bottom + 35.0), "middle", SOFT, &figure.x.title())?;
        }
        Ok(())
    }

    fn left_axis(&self, out: &mut String, axis: &Axis, ruler: &Ruler) -> fmt::Result {
        let area = self.area;
        if axis.bare {
            return Ok(());
        }
        for mark in ruler.marks(axis, self.room()) {
            let y = ruler.at(mark);
            if (y - area.bottom).abs() > 0.5 {
                write!(
                    out,
                    r#"<line x1="{:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{GRID}"/>"#,
                    area.left, area.right
                )?;
            }
            text(out, (area.left - 7.0, y + 4.2), "end", SOFT, &mark_text(axis, mark))?;
        }
        Ok(())
    }

    fn right_axis(&self, out: &mut String, side: Side, axis: &Axis, ruler: &Ruler, x: f64) -> fmt::Result {
        let colour = self.only_on(side).map_or(SOFT.to_owned(), css);
        let area = self.area;
        write!(
            out,
            r#"<line x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}" stroke="{colour}" stroke-opacity="0.5"/>"#,
            area.top, area.bottom
        )?;
        for mark in ruler.marks(axis, self.room()) {
            let y = ruler.at(mark);
            write!(
                out,
                r#"<line x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{colour}" stroke-opacity="0.5"/>"#,
                x + 4.0
            )?;
            text(out, (x + 8.0, y + 4.2), "start", &colour, &mark_text(axis, mark))?;
        }
        let (x, y) = (x + axis_width(self.layout.figure, side) - 10.0, f64::midpoint(area.top, area.bottom));
        write!(out, r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" text-anchor="middle" fill="{colour}">"#)?;
        escaped(out, &axis.title())?;
        out.write_str("</text>")
    }

    /// How many marks a vertical axis has place for.
    fn room(&self) -> usize {
        (((self.area.bottom - self.area.top) / 42.0) as usize).max(3)
    }

    fn series(&self, out: &mut String, series: &Series, x: &Ruler, y: &Ruler) -> fmt::Result {
        let colour = stroke(series);
        let axes = (&self.layout.figure.x, self.layout.figure.y[usize::from(series.side)].as_ref());
        let visible = |point: &&Point| {
            (axes.0.scale == Scale::Linear || point.x > 0.0)
                && (point.y > 0.0 || axes.1.is_none_or(|axis| axis.scale == Scale::Linear))
        };
        for point in series.points().iter().filter(visible) {
            let Some((low, high)) = point.bar else { continue };
            let (x, low, high) = (x.at(point.x), y.at(low), y.at(high));
            write!(
                out,
                r#"<path d="M{0:.1} {low:.1}H{1:.1}M{2:.1} {low:.1}V{high:.1}M{0:.1} {high:.1}H{1:.1}" stroke="{colour}" stroke-width="1.3" fill="none"/>"#,
                x - 4.0,
                x + 4.0,
                x
            )?;
        }
        match &series.data {
            Data::Line(points) | Data::DottedLine(points) | Data::Steps(points) => {
                write!(
                    out,
                    r#"<path fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{} d=""#,
                    dash(series)
                )?;
                let steps = matches!(series.data, Data::Steps(_));
                for (n, point) in points.iter().filter(visible).enumerate() {
                    let (x, y) = (x.at(point.x), y.at(point.y));
                    match (n, steps) {
                        (0, _) => write!(out, "M{x:.1} {y:.1}")?,
                        (_, true) => write!(out, "H{x:.1}V{y:.1}")?,
                        (_, false) => write!(out, "L{x:.1} {y:.1}")?,
                    }
                }
                out.write_str(r#""/>"#)?;
            }
            Data::Dots(_) | Data::Spans(_) => {}
        }
        if let Data::Dots(points) | Data::DottedLine(points) = &series.data {
            let (radius, opacity) = if points.len() > 100 { (2.2, 0.55) } else { (3.4, 1.0) };
            write!(out, r#"<g fill="{colour}" fill-opacity="{opacity}">"#)?;
            for point in points.iter().filter(visible) {
                write!(out, r#"<circle cx="{:.1}" cy="{:.1}" r="{radius}"/>"#, x.at(point.x), y.at(point.y))?;
            }
            out.write_str("</g>")?;
        }
        if !series.bars().is_empty() {
            self.spans(out, series, x, y)?;
        }
        Ok(())
    }

    fn spans(&self, out: &mut String, series: &Series, x: &Ruler, y: &Ruler) -> fmt::Result {
        // Bars touch each other a little less than a place's height.
        let height = ((y.at(1.0) - y.at(0.0)) * 0.8).clamp(0.8, 12.0);
        write!(out, r#"<path fill="{}" d=""#, stroke(series))?;
        for span in series.bars() {
            let (from, to, middle) = (x.at(span.from), x.at(span.to), y.at(f64::from(span.place)));
            let width = (to - from).max(0.6);
            write!(out, "M{from:.1} {:.1}h{width:.1}v{height:.1}h-{width:.1}z", middle - height / 2.0)?;
        }
        out.write_str(r#""/>"#)
    }

    /// Writes each name at the end of its line, apart from the others.
    fn direct_names(&self, out: &mut String, ruler: &Ruler) -> fmt::Result {
        let mut names: Vec<(f64, &Series)> = self
            .layout
            .figure
            .series
            .iter()
            .filter_map(|series| {
                let last = series.points().iter().max_by(|a, b| a.x.total_cmp(&b.x))?;
                Some((ruler.at(last.y), series))
            })
            .collect();
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        let bottom = self.area.bottom + 4.0;
        let mut places = spread(&names.iter().map(|name| name.0).collect::<Vec<_>>(), 14.0);
        // Pushed down beyond the plot: all move up as far.
        let beyond = (places.last().copied().unwrap_or(0.0) - bottom).max(0.0);
        places.iter_mut().for_each(|place| *place -= beyond);
        for (place, (_, series)) in places.iter().zip(&names) {
            text(out, (self.area.right + 8.0, place + 4.0), "start", &stroke(series), &series.name)?;
        }
        Ok(())
    }
}

/// Moves ascending places until they are `gap` apart.
fn spread(places: &[f64], gap: f64) -> Vec<f64> {
    let mut spread: Vec<f64> = Vec::with_capacity(places.len());
    for &place in places {
        let free = spread.last().map_or(f64::NEG_INFINITY, |last| last + gap);
        spread.push(place.max(free));
    }
    spread
}

fn stroke(series: &Series) -> String {
    css(series.colour.unwrap_or(Colour::Nth(0)))
}

fn dash(series: &Series) -> &'static str {
    if series.dashed { r#" stroke-dasharray="6 4""# } else { "" }
}

/// Marks and the title that stands upright beside them.
fn axis_width(figure: &Figure, side: Side) -> f64 {
    widest_mark(figure, side) + 34.0
}

fn widest_mark(figure: &Figure, side: Side) -> f64 {
    let Some(axis) = &figure.y[usize::from(side)] else { return 0.0 };
    let ruler = Ruler::new(axis, figure.extent(side), (0.0, 1.0));
    let room = (figure.height / 60) as usize;
    let widths = ruler.marks(axis, room).into_iter().map(|mark| text_width(&mark_text(axis, mark)));
    widths.fold(0.0, f64::max)
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, fill: &str, text: &str) -> fmt::Result {
    write!(out, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{fill}">"#)?;
    escaped(out, text)?;
    out.write_str("</text>")
}

/// Characters that XML keeps for itself, and those that it does not allow at all.
fn escaped(out: &mut String, text: &str) -> fmt::Result {
    for char in text.chars() {
        match char {
            '&' => out.write_str("&amp;")?,
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            char if char.is_control() => out.write_char(' ')?,
            char => out.write_char(char)?,
        }
    }
    Ok(())
}

/// Lines that fit into `room` pixels.
fn wrapped(text: &str, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(line) + text_width(word) + 4.0 < room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// About the width of a text at [`TEXT`] pixels, a little too much rather than too little. From the advances of DejaVu Sans.
fn text_width(text: &str) -> f64 {
    let em = |char: char| match char {
        'i' | 'j' | 'l' | '\'' | '|' => 0.30,
        'f' | 't' | 'r' | '.' | ',' | ':' | ';' | '!' | '(' | ')' | '[' | ']' | ' ' | '-' | '/' => 0.40,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.96,
        'A'..='Z' => 0.74,
        _ => 0.64,
    };
    TEXT * text.chars().map(em).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        let points = |factor: f64| (1..=4).map(|n| Point::new(f64::from(n), factor * f64::from(n))).collect();
        Figure::new("A & <b>", Axis::new("users"), Axis::new("rate").unit("1/s"))
            .with(Series::dotted_line("one", points(1.0)))
            .with(Series::dotted_line("two", points(2.0)).dashed())
    }

    #[test]
    fn pictures_are_well_formed_and_say_what_they_show() {
        let text = svg(&[figure()]);
        let tree = resvg::usvg::roxmltree::Document::parse(&text).expect("well-formed");
        let words: Vec<&str> =
            tree.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect();
        for word in ["A & <b>", "rate (1/s)", "users", "one", "two", "4"] {
            assert!(words.contains(&word), "{word} is not in {words:?}");
        }
        assert_eq!(text.matches("<circle").count(), 8);
        assert_eq!(text.matches("stroke-dasharray").count(), 1);
    }

    #[test]
    fn values_stand_where_the_marks_say() {
        let text = svg(&[figure().axis(Side::Left, Axis::new("rate").span(0.0, 8.0))]);
        let attribute = |element: &str, name: &str| -> f64 {
            let from = element.find(&format!("{name}=\"")).expect("it has the attribute") + name.len() + 2;
            element[from..].split('"').next().and_then(|value| value.parse().ok()).expect("a number")
        };
        let circles: Vec<f64> = text.split("<circle").skip(1).map(|circle| attribute(circle, "cy")).collect();
        let mark = text.split("<text").find(|text| text.contains(r#"text-anchor="end""#) && text.contains(">4</text>"));
        let mark_y = attribute(mark.expect("a mark at 4"), " y") - 4.2;
        // The fourth of the first series and the second of the other are 4.
        assert!((circles[3] - mark_y).abs() < 0.2 && (circles[5] - mark_y).abs() < 0.2, "{circles:?} {mark_y}");
    }

    #[test]
    fn names_at_the_ends_of_lines_do_not_cover_each_other() {
        assert_eq!(spread(&[1.0, 2.0, 30.0], 14.0), [1.0, 15.0, 30.0]);
    }

    #[test]
    fn nothing_outside_of_the_picture_is_asked_for() {
        let text = svg(&[figure(), figure()]).replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http") && !text.contains("href") && !text.contains("url("), "{text}");
    }

    #[test]
    fn figures_without_values_are_drawn_too() {
        let empty = Figure::new("nothing", Axis::new("x").log(), Axis::new("y").log()).size(1, 1);
        let text = svg(&[empty]);
        assert!(resvg::usvg::roxmltree::Document::parse(&text).is_ok() && !text.contains("NaN"), "{text}");
    }
}
