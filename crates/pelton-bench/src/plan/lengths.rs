//! How long things are: one number, or a distribution of them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most tokens of one prompt or one answer.
pub const MAX_TOKENS: u32 = 1 << 20;

/// A distribution of whole numbers, cut to `min..=max`: what is drawn below or above becomes the bound itself.
///
/// Written as it is typed: a shape, and bounds behind it where they are not 1 and [`MAX_TOKENS`] (`lognormal:512,0.6,16..4096`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lengths {
    /// How they are spread.
    pub shape: Shape,
    /// Smallest.
    pub min: u32,
    /// Largest.
    pub max: u32,
}

/// A distribution before it is cut.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Always the same number: `512`.
    Fixed(u32),
    /// Every number from the first to the second equally often: `uniform:100..600`.
    Uniform(u32, u32),
    /// Normal with this mean and standard deviation: `normal:512,128`.
    Normal(f64, f64),
    /// The number whose logarithm is normal: median, and standard deviation of the natural logarithm: `lognormal:512,0.6`. The mean is
    /// `median * exp(sigma^2 / 2)`.
    LogNormal(f64, f64),
    /// Exponential with this mean: `exponential:200`.
    Exponential(f64),
    /// Numbers of a file, each line equally often: `file:lengths.csv`. One column, or two: lengths of prompts and of answers; both taken
    /// from one file, they come from one line.
    File(PathBuf),
}

impl Lengths {
    /// Cut only to what is possible at all.
    pub fn of(shape: Shape) -> Self {
        Self { shape, min: 1, max: MAX_TOKENS }
    }

    /// The number, if it is always the same.
    pub fn fixed(&self) -> Option<u32> {
        match self.shape {
            Shape::Fixed(n) => Some(n.clamp(self.min, self.max)),
            _ => None,
        }
    }

    /// A length that is practically never exceeded (six standard deviations, fourteen means of the exponential); `max` for files.
    pub fn highest(&self) -> u32 {
        let highest = match self.shape {
            Shape::Fixed(n) => f64::from(n),
            Shape::Uniform(_, to) => f64::from(to),
            Shape::Normal(mean, deviation) => mean + 6.0 * deviation,
            Shape::LogNormal(median, sigma) => median * (6.0 * sigma).exp(),
            Shape::Exponential(mean) => 14.0 * mean,
            Shape::File(_) => f64::INFINITY,
        };
        (highest.ceil() as u32).clamp(self.min, self.max)
    }

    /// Refuses what no request can have. `what` names the lengths in the message.
    pub(crate) fn check(&self, what: &str) -> Result<(), String> {
        let refuse = |why: String| Err(format!("{what} {self}: {why}"));
        if self.min == 0 || self.max > MAX_TOKENS || self.min > self.max {
            return refuse(format!(
                "bounds must be in 1..={MAX_TOKENS} and in order, given {}..{}",
                self.min, self.max
            ));
        }
        let size = |n: f64| n.is_finite() && (1.0..=f64::from(MAX_TOKENS)).contains(&n);
        match self.shape {
            Shape::Fixed(n) if n == 0 || n > MAX_TOKENS => refuse(format!("must be in 1..={MAX_TOKENS}, given {n}")),
            Shape::Uniform(from, to) if from == 0 || from > to || to > MAX_TOKENS => {
                refuse(format!("must be in 1..={MAX_TOKENS} and in order, given {from}..{to}"))
            }
            Shape::Normal(mean, deviation) if !size(mean) || !(0.0..=1e6).contains(&deviation) => refuse(format!(
                "mean must be in 1..={MAX_TOKENS} and deviation in 0..=1000000, given {mean} and {deviation}"
            )),
            Shape::LogNormal(median, sigma) if !size(median) || !(0.0..=10.0).contains(&sigma) => {
                refuse(format!("median must be in 1..={MAX_TOKENS} and sigma in 0..=10, given {median} and {sigma}"))
            }
            Shape::Exponential(mean) if !size(mean) => {
                refuse(format!("mean must be in 1..={MAX_TOKENS}, given {mean}"))
            }
            _ => Ok(()),
        }
    }
}

impl From<u32> for Lengths {
    fn from(n: u32) -> Self {
        Self::of(Shape::Fixed(n))
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shape {
            Shape::Fixed(n) => write!(f, "{n}")?,
            Shape::Uniform(from, to) => write!(f, "uniform:{from}..{to}")?,
            Shape::Normal(mean, deviation) => write!(f, "normal:{mean},{deviation}")?,
            Shape::LogNormal(median, sigma) => write!(f, "lognormal:{median},{sigma}")?,
            Shape::Exponential(mean) => write!(f, "exponential:{mean}")?,
            Shape::File(path) => write!(f, "file:{}", path.display())?,
        }
        if (self.min, self.max) == (1, MAX_TOKENS) { Ok(()) } else { write!(f, ",{}..{}", self.min, self.max) }
    }
}

impl From<Lengths> for String {
    fn from(lengths: Lengths) -> Self {
        lengths.to_string()
    }
}

impl TryFrom<String> for Lengths {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "expected 512, uniform:100..600, normal:MEAN,DEVIATION, lognormal:MEDIAN,SIGMA, exponential:MEAN, or \
                             file:LENGTHS.csv; bounds may stand behind (normal:512,128,64..2048)";
        // A range at the end that is not the shape itself is the bounds.
        let bounded = text.rsplit_once(',').and_then(|(shape, bounds)| Some((shape, range(bounds)?)));
        let (text, (min, max)) = bounded.unwrap_or((text, (1, MAX_TOKENS)));
        let bad = || format!("{text:?} is no length: {FORMS}");
        let (name, rest) = text.split_once(':').unwrap_or(("", text));
        let pair = || {
            let (one, other) = rest.split_once(',')?;
            Some((one.trim().parse().ok()?, other.trim().parse().ok()?))
        };
        let shape = match name {
            "" => rest.trim().parse().ok().map(Shape::Fixed),
            "uniform" => range(rest).map(|(from, to)| Shape::Uniform(from, to)),
            "normal" => pair().map(|(mean, deviation)| Shape::Normal(mean, deviation)),
            "lognormal" => pair().map(|(median, sigma)| Shape::LogNormal(median, sigma)),
            "exponential" => rest.trim().parse().ok().map(Shape::Exponential),
            "file" if !rest.is_empty() => Some(Shape::File(rest.into())),
            _ => None,
        };
        let lengths = Lengths { shape: shape.ok_or_else(bad)?, min, max };
        lengths.check("length")?;
        Ok(lengths)
    }
}

/// `from..to`, both included.
fn range(text: &str) -> Option<(u32, u32)> {
    let (from, to) = text.split_once("..")?;
    Some((from.trim().parse().ok()?, to.trim_start_matches('=').trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_they_are_typed() {
        for text in [
            "512",
            "uniform:100..600",
            "normal:512,128",
            "lognormal:512,0.6",
            "exponential:200",
            "file:a,b.csv",
            "lognormal:512,0.6,16..4096",
            "file:lengths.csv,1..100",
        ] {
            let lengths: Lengths = text.parse().expect("a length");
            assert_eq!(lengths.to_string(), text);
            let json = serde_json::to_string(&lengths).expect("can be written");
            assert_eq!(serde_json::from_str::<Lengths>(&json).expect("can be read"), lengths);
        }
        let bounded: Lengths = "normal:5,1,2..8".parse().expect("a length");
        assert_eq!(bounded, Lengths { shape: Shape::Normal(5.0, 1.0), min: 2, max: 8 });
    }

    #[test]
    fn what_is_no_length_is_refused_with_the_forms() {
        for text in
            ["", "0", "-3", "5.5", "uniform:9..3", "normal:512", "normal:0,1", "lognormal:5,-1", "poisson:5", "file:"]
        {
            let error = text.parse::<Lengths>().expect_err(text);
            assert!(error.contains("expected 512") || error.contains("must be in"), "{error}");
        }
        assert!("7,9..3".parse::<Lengths>().expect_err("bounds out of order").contains("in order"));
    }

    #[test]
    fn a_fixed_length_is_known_and_others_are_not() {
        assert_eq!(Lengths::from(7).fixed(), Some(7));
        assert_eq!("uniform:7..8".parse::<Lengths>().expect("a length").fixed(), None);
        assert_eq!("normal:100,10".parse::<Lengths>().expect("a length").highest(), 160);
    }
}
