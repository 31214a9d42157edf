//! Charts: what they show ([`Figure`]), drawn as SVG, and as PNG from that very SVG.
//!
//! An interactive page shows the same figures: they can be written as JSON.

mod figure;
mod palette;
mod png;
mod runs;
mod scale;
mod svg;

pub use figure::{Axis, Colour, Data, Figure, Fit, Point, Scale, Series, Side, Span, least_squares};
pub use palette::PALETTE;
pub use png::{PngError, SHARPNESS, png};
pub use runs::{Chart, Charts, MAX_DETAILED, RunCharts};
pub use svg::svg;
