//! What a chart shows, apart from how it is drawn: axes in units, and series of points or spans on them.

use serde::Serialize;

/// One plot: a horizontal axis, up to three vertical ones, and what lies on them.
///
/// ```
/// use pelton_report::charts::{Axis, Figure, Point, Series, Side};
///
/// let speed = vec![Point::new(1.0, 30.0).between(28.0, 31.0), Point::new(8.0, 180.0).between(170.0, 190.0)];
/// let usage = vec![Point::new(1.0, 0.02), Point::new(8.0, 0.16)];
/// let figure = Figure::new("Speed", Axis::new("users"), Axis::new("output tokens").unit("tokens/s").from_zero())
///     .axis(Side::Right, Axis::new("KV cache in use").shares())
///     .with(Series::line("speed", speed))
///     .with(Series::line("KV cache", usage).on(Side::Right));
/// assert!(pelton_report::charts::svg(&[figure]).starts_with("<svg"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Says what is shown.
    pub title: String,
    /// What the reader should know: what was left out, what bars mean.
    pub note: Option<String>,
    /// Pixels of the whole picture.
    pub width: u32,
    /// The same.
    pub height: u32,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axes by [`Side`]; the left one is always there.
    pub y: [Option<Axis>; 3],
    /// Drawn in this order.
    pub series: Vec<Series>,
    /// Spans of the horizontal axis on a grey ground: what is shown but not counted.
    pub greyed: Vec<(f64, f64)>,
    /// Figures of one page with the same link have one cursor.
    pub link: Option<String>,
}

/// Which vertical axis a series is read on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "usize")]
pub enum Side {
    /// The usual one.
    #[default]
    Left,
    /// At the right border of the plot.
    Right,
    /// Further right.
    SecondRight,
}

impl From<Side> for usize {
    fn from(side: Side) -> Self {
        match side {
            Side::Left => 0,
            Side::Right => 1,
            Side::SecondRight => 2,
        }
    }
}

/// How values become positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Equal steps.
    #[default]
    Linear,
    /// Equal ratios; values that are not above zero are not drawn.
    Log,
}

/// An axis. Its span is that of the values unless it is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Axis {
    /// What is measured.
    pub label: String,
    /// Its unit; empty for pure numbers.
    pub unit: String,
    /// How values become positions.
    pub scale: Scale,
    /// Smallest value shown.
    pub from: Option<f64>,
    /// Largest value shown.
    pub to: Option<f64>,
    /// Where marks stand; empty: at round numbers.
    pub marks: Vec<f64>,
    /// Values are shares of one, written as per cent.
    pub shares: bool,
    /// Without marks and lines.
    pub bare: bool,
}

impl Axis {
    /// A linear axis.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    /// Names the unit.
    pub fn unit(mut self, unit: &str) -> Self {
        unit.clone_into(&mut self.unit);
        self
    }

    /// Makes it logarithmic.
    pub fn log(mut self) -> Self {
        self.scale = Scale::Log;
        self
    }

    /// Begins at zero.
    pub fn from_zero(mut self) -> Self {
        self.from = Some(0.0);
        self
    }

    /// Sets both ends.
    pub fn span(mut self, from: f64, to: f64) -> Self {
        (self.from, self.to) = (Some(from), Some(to));
        self
    }

    /// Sets where marks stand, for example at the measured loads.
    pub fn marks(mut self, at: impl Into<Vec<f64>>) -> Self {
        self.marks = at.into();
        self
    }

    /// Values are shares, 0 to 1, written as per cent.
    pub fn shares(mut self) -> Self {
        self.shares = true;
        "%".clone_into(&mut self.unit);
        self.span(0.0, 1.0)
    }

    /// An axis that only counts places.
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Label and unit as written at the axis.
    pub fn title(&self) -> String {
        if self.unit.is_empty() { self.label.clone() } else { format!("{} ({})", self.label, self.unit) }
    }
}

/// Things of one kind and one colour.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Series {
    /// As written beside it.
    pub name: String,
    /// The axis it is read on.
    pub side: Side,
    /// `None` takes the next of the palette.
    pub colour: Option<Colour>,
    /// A broken line, for what is compared with (another source of the same number, a published figure).
    pub dashed: bool,
    /// The values.
    #[serde(flatten)]
    pub data: Data,
}

/// The values of a series.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", content = "data", rename_all = "kebab-case")]
pub enum Data {
    /// Joined by straight lines.
    Line(Vec<Point>),
    /// Joined by straight lines, with a dot at each: few values that were measured one by one.
    DottedLine(Vec<Point>),
    /// A value holds until the next.
    Steps(Vec<Point>),
    /// Dots alone.
    Dots(Vec<Point>),
    /// Horizontal bars.
    Spans(Vec<Span>),
}

/// A value, with an error bar if it has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Position on the horizontal axis.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Lower and upper end of the error bar.
    pub bar: Option<(f64, f64)>,
}

impl Point {
    /// Without an error bar.
    pub fn new(x: f64, y: f64) -> Self {
        Self { x, y, bar: None }
    }

    /// With an error bar, such as two quartiles or an interval.
    pub fn between(mut self, low: f64, high: f64) -> Self {
        self.bar = Some((low, high));
        self
    }
}

impl Serialize for Point {
    /// `[x, y]` or `[x, y, low, high]`, six significant digits: enough for eyes, and short.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bar = self.bar.map(|(low, high)| [low, high]);
        let numbers = [self.x, self.y].into_iter().chain(bar.into_iter().flatten());
        serializer.collect_seq(numbers.map(short))
    }
}

/// A horizontal bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Left end.
    pub from: f64,
    /// Right end.
    pub to: f64,
    /// Place from the top, from 0.
    pub place: u32,
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq([short(self.from), short(self.to), f64::from(self.place)])
    }
}

/// Six significant digits.
fn short(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = (5.0 - value.abs().log10().floor()).clamp(0.0, 12.0);
    let factor = 10f64.powf(digits);
    (value * factor).round() / factor
}

/// A colour by its meaning, so that a page can choose another shade on a dark ground.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colour {
    /// One of a few things without order: the `n`th of the palette, which the colour-blind can tell apart.
    Nth(usize),
    /// Something with an order, from 0 (little) to 1 (much).
    Shade(f64),
    /// What went wrong.
    Failure,
    /// What stands back.
    Quiet,
}

impl Series {
    fn new(name: impl Into<String>, data: Data) -> Self {
        Self { name: name.into(), side: Side::Left, colour: None, dashed: false, data }
    }

    /// Points joined by lines.
    pub fn line(name: impl Into<String>, points: Vec<Point>) -> Self {
        Self::new(name, Data::Line(points))
    }

    /// Points joined by lines, with a dot at each.
    pub fn dotted_line(name: impl Into<String>, points: Vec<Point>) -> Self {
        Self::new(name, Data::DottedLine(points))
    }

    /// Values that hold until the next.
    pub fn steps(name: impl Into<String>, points: Vec<Point>) -> Self {
        Self::new(name, Data::Steps(points))
    }

    /// Dots alone.
    pub fn dots(name: impl Into<String>, points: Vec<Point>) -> Self {
        Self::new(name, Data::Dots(points))
    }

    /// Horizontal bars.
    pub fn spans(name: impl Into<String>, spans: Vec<Span>) -> Self {
        Self::new(name, Data::Spans(spans))
    }

    /// Reads it on another axis.
    pub fn on(mut self, side: Side) -> Self {
        self.side = side;
        self
    }

    /// Sets the colour.
    pub fn colour(mut self, colour: Colour) -> Self {
        self.colour = Some(colour);
        self
    }

    /// Breaks the line.
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }

    /// The points; none where the series has spans.
    pub fn points(&self) -> &[Point] {
        match &self.data {
            Data::Line(points) | Data::DottedLine(points) | Data::Steps(points) | Data::Dots(points) => points,
            Data::Spans(_) => &[],
        }
    }

    /// The spans; none where the series has points.
    pub fn bars(&self) -> &[Span] {
        match &self.data {
            Data::Spans(spans) => spans,
            _ => &[],
        }
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.points().is_empty() && self.bars().is_empty()
    }
}

impl Figure {
    /// Of 800 x 400 pixels.
    pub fn new(title: impl Into<String>, x: Axis, left: Axis) -> Self {
        Self {
            title: title.into(),
            note: None,
            width: 800,
            height: 400,
            x,
            y: [Some(left), None, None],
            series: Vec::new(),
            greyed: Vec::new(),
            link: None,
        }
    }

    /// Sets the size in pixels; less than 320 x 200 becomes that.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        (self.width, self.height) = (width.clamp(320, 8000), height.clamp(200, 8000));
        self
    }

    /// Adds or replaces a vertical axis.
    pub fn axis(mut self, side: Side, axis: Axis) -> Self {
        self.y[usize::from(side)] = Some(axis);
        self
    }

    /// Adds a series and gives it a colour if it has none. Values that are not finite are left out, and so is a series without any;
    /// one on an axis that is not there goes to the left.
    pub fn with(mut self, mut series: Series) -> Self {
        match &mut series.data {
            Data::Line(points) | Data::DottedLine(points) | Data::Steps(points) | Data::Dots(points) => {
                points.retain(|point| point.x.is_finite() && point.y.is_finite());
            }
            Data::Spans(spans) => spans.retain(|span| span.from.is_finite() && span.to.is_finite()),
        }
        if series.is_empty() {
            return self;
        }
        if self.y[usize::from(series.side)].is_none() {
            series.side = Side::Left;
        }
        let next = self.series.iter().filter(|series| matches!(series.colour, Some(Colour::Nth(_)))).count();
        series.colour.get_or_insert(Colour::Nth(next));
        self.series.push(series);
        self
    }

    /// Adds what the reader should know.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Greys a span of the horizontal axis.
    pub fn greyed(mut self, from: f64, to: f64) -> Self {
        if from < to {
            self.greyed.push((from, to));
        }
        self
    }

    /// Joins the cursors of figures with the same link.
    pub fn link(mut self, link: impl Into<String>) -> Self {
        self.link = Some(link.into());
        self
    }

    /// Whether it has nothing to show.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Smallest and largest value on a vertical axis, error bars included; on a logarithmic one only what is above zero.
    pub(crate) fn extent(&self, side: Side) -> Option<(f64, f64)> {
        let is_log = self.y[usize::from(side)].as_ref().is_some_and(|axis| axis.scale == Scale::Log);
        let on_side = || self.series.iter().filter(move |series| series.side == side);
        let points = on_side().flat_map(Series::points).flat_map(|point| {
            let (low, high) = point.bar.unwrap_or((point.y, point.y));
            [point.y, low, high]
        });
        let places = on_side().flat_map(Series::bars).map(|span| f64::from(span.place));
        extent(points.chain(places), is_log)
    }

    /// The same for the horizontal axis.
    pub(crate) fn extent_x(&self) -> Option<(f64, f64)> {
        let points = self.series.iter().flat_map(Series::points).map(|point| point.x);
        let spans = self.series.iter().flat_map(Series::bars).flat_map(|span| [span.from, span.to]);
        extent(points.chain(spans), self.x.scale == Scale::Log)
    }
}

fn extent(values: impl Iterator<Item = f64>, is_log: bool) -> Option<(f64, f64)> {
    values.filter(|value| !is_log || *value > 0.0).fold(None, |extent, value| {
        let (low, high): (f64, f64) = extent.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// The straight line `y = offset + slope * x` with the least squared distances from `points`.
///
/// `None` unless there are two different `x`.
pub fn least_squares(points: &[Point]) -> Option<Fit> {
    let n = points.len() as f64;
    let mean = |value: fn(&Point) -> f64| points.iter().map(value).sum::<f64>() / n;
    let (x, y) = (mean(|point| point.x), mean(|point| point.y));
    let sum = |term: &dyn Fn(&Point) -> f64| points.iter().map(term).sum::<f64>();
    let xx = sum(&|point| (point.x - x).powi(2));
    let yy = sum(&|point| (point.y - y).powi(2));
    let xy = sum(&|point| (point.x - x) * (point.y - y));
    let slope = (xx > 0.0).then(|| xy / xx)?;
    let r_squared = if yy > 0.0 { xy * xy / (xx * yy) } else { 1.0 };
    Some(Fit { slope, offset: y - slope * x, r_squared })
}

/// See [`least_squares`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Growth of `y` for one of `x`.
    pub slope: f64,
    /// `y` at zero.
    pub offset: f64,
    /// Share of the variance that the line explains, 0 to 1.
    pub r_squared: f64,
}

impl Fit {
    /// The line between two positions, ready for [`Series::line`].
    pub fn line(&self, from: f64, to: f64) -> Vec<Point> {
        [from, to].map(|x| Point::new(x, self.offset + self.slope * x)).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_found_again() {
        let points: Vec<Point> = [1.0, 2.0, 5.0].map(|x| Point::new(x, 3.0 + 2.0 * x)).to_vec();
        let fit = least_squares(&points).expect("three positions");
        assert!((fit.slope - 2.0).abs() < 1e-12 && (fit.offset - 3.0).abs() < 1e-12 && fit.r_squared > 0.999);
        assert_eq!(fit.line(0.0, 1.0)[1], Point::new(1.0, fit.offset + fit.slope));
        assert_eq!(least_squares(&points[..1]), None);
        assert_eq!(least_squares(&[]), None);
    }

    #[test]
    fn series_take_the_next_colour_and_an_axis_that_exists() {
        let line = |name: &str| Series::line(name, vec![Point::new(0.0, 1.0)]);
        let figure = Figure::new("t", Axis::new("x"), Axis::new("y"))
            .with(line("a"))
            .with(line("failed").colour(Colour::Failure))
            .with(Series::line("none", Vec::new()))
            .with(line("b").on(Side::Right));
        let colours: Vec<_> = figure.series.iter().filter_map(|series| series.colour).collect();
        assert_eq!(colours, [Colour::Nth(0), Colour::Failure, Colour::Nth(1)]);
        assert_eq!(figure.series[2].side, Side::Left);
    }

    #[test]
    fn what_cannot_be_drawn_is_outside_of_every_extent() {
        let points = [0.0, -1.0, f64::NAN, 4.0, 2.0].map(|y| Point::new(1.0, y)).to_vec();
        let figure =
            |axis| Figure::new("t", Axis::new("x"), axis).with(Series::dots("a", points.clone())).extent(Side::Left);
        assert_eq!(figure(Axis::new("y").log()), Some((2.0, 4.0)));
        assert_eq!(figure(Axis::new("y")), Some((-1.0, 4.0)));
    }

    #[test]
    fn numbers_in_pages_are_short() {
        assert_eq!([short(1234.56789), short(0.000123456789), short(98765432.1)], [1234.57, 0.000123457, 98765432.0]);
        assert_eq!(short(0.0), 0.0);
    }
}
