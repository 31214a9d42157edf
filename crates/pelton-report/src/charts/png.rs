//! An SVG as a PNG: the same picture on every machine, because the font is part of the program.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

/// Pixels of a PNG for each of the SVG, so that it is sharp on the screens of today.
pub const SHARPNESS: f32 = 2.0;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PngError {
    /// Not an SVG.
    #[error("picture cannot be read: {0}")]
    Svg(#[from] usvg::Error),
    /// It has no pixels, or too many.
    #[error("picture of {width} x {height} pixels cannot be made")]
    Size {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// It cannot be packed.
    #[error("picture cannot be packed: {0}")]
    Pack(String),
}

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    for font in [dejavu::sans::regular(), dejavu::sans::bold()] {
        fonts.load_font_data(font.to_vec());
    }
    fonts.set_sans_serif_family("DejaVu Sans");
    Arc::new(fonts)
});

/// Draws an SVG made by [`svg`](super::svg) into a PNG file's bytes, with `sharpness` pixels for each of the SVG.
pub fn png(svg: &str, sharpness: f32) -> Result<Vec<u8>, PngError> {
    let options =
        usvg::Options { fontdb: Arc::clone(&FONTS), font_family: "DejaVu Sans".to_owned(), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options)?;
    let size = tree.size();
    let (width, height) = ((size.width() * sharpness).round() as u32, (size.height() * sharpness).round() as u32);
    let mut pixels = Pixmap::new(width, height).ok_or(PngError::Size { width, height })?;
    resvg::render(&tree, Transform::from_scale(sharpness, sharpness), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| PngError::Pack(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::charts::{Axis, Figure, Point, Series, svg};

    #[test]
    fn a_png_has_the_pixels_and_the_letters_of_its_svg() {
        let figure = |title: &str| {
            Figure::new(title, Axis::new("x"), Axis::new("y"))
                .size(400, 200)
                .with(Series::line("a", vec![Point::new(0.0, 1.0), Point::new(1.0, 2.0)]))
        };
        let decoded = |title| {
            let bytes = png(&svg(&[figure(title)]), SHARPNESS).expect("a picture");
            Pixmap::decode_png(&bytes).expect("a PNG")
        };
        let (with, without) = (decoded("Title"), decoded(" "));
        assert_eq!((with.width(), with.height()), (800, 400));
        // The letters of the title are all that differs, and all of it is in the first 60 rows.
        let differs = |y: u32| (0..800).any(|x| with.pixel(x, y) != without.pixel(x, y));
        assert!((0..60).any(differs) && !(60..400).any(differs));
    }

    #[test]
    fn what_is_no_picture_is_an_error() {
        assert!(matches!(png("hello", 1.0), Err(PngError::Svg(_))));
    }
}
