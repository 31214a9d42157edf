//! Colours on a light ground.

use super::figure::Colour;

/// Colours that the colour-blind can tell apart, darkened until thin lines and text can be read on white. Source: Okabe and Ito 2008,
/// without yellow.
pub const PALETTE: [&str; 7] = ["#0072b2", "#d55e00", "#008f68", "#b0578d", "#c98500", "#2f9bd1", "#4d4d4d"];

/// Ends and between of an ordered range: dark to light, by hue too. Source: the viridis map of matplotlib up to where it turns too light.
const SHADES: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [62.0, 74.0, 137.0], [38.0, 130.0, 142.0], [53.0, 183.0, 121.0], [132.0, 172.0, 32.0]];

/// As written in SVG.
pub fn css(colour: Colour) -> String {
    match colour {
        Colour::Nth(n) => PALETTE[n % PALETTE.len()].to_owned(),
        Colour::Failure => "#c1121f".to_owned(),
        Colour::Quiet => "#b3b3b3".to_owned(),
        Colour::Shade(share) => {
            let at = share.clamp(0.0, 1.0) * (SHADES.len() - 1) as f64;
            let (low, high) = (SHADES[at.floor() as usize], SHADES[at.ceil() as usize]);
            let mix = |n: usize| (low[n] + (high[n] - low[n]) * at.fract()).round() as u8;
            format!("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_can_be_seen_on_white() {
        // WCAG 2: relative luminance, and at least 2.2 to 1 for things as large as lines.
        let luminance = |hex: &str| {
            let channel = |n: usize| {
                let value = f64::from(u8::from_str_radix(&hex[n..n + 2], 16).expect("two digits")) / 255.0;
                if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
            };
            0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
        };
        let all = (0..7).map(Colour::Nth).chain((0..=10).map(|n| Colour::Shade(f64::from(n) / 10.0)));
        for colour in all.chain([Colour::Failure]) {
            let contrast = 1.05 / (luminance(&css(colour)) + 0.05);
            assert!(contrast >= 2.2, "{colour:?} {contrast}");
        }
    }
}
