//! Seeded draws: each is a pure function of seed, purpose and place, so that a request is the same whenever and wherever it is made.

use std::path::Path;
use std::time::Duration;

use rand_distr::{Distribution, Exp, LogNormal, Normal, Uniform};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::SeedableRng;

use crate::BenchError;
use crate::plan::{Lengths, Shape, ThinkTime};

/// Most lines of a file of lengths.
const MAX_LINES: usize = 1_000_000;

/// Longest file of lengths.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What is drawn: equal places of two purposes are independent, except that lengths of one file share [`Purpose::Line`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Words of a prompt of its own.
    Words = 1,
    /// Words of a prefix.
    Prefix,
    /// Words of a block of a trace.
    Block,
    /// To which prefix a request belongs.
    Group,
    /// Tokens of a prompt.
    Input,
    /// Tokens of an answer.
    Output,
    /// Line of a file of lengths.
    Line,
    /// Messages in a conversation.
    Turns,
    /// Time before a message.
    Think,
}

/// A random source for one place of one purpose.
pub fn random(seed: u64, purpose: Purpose, index: u64, turn: u32) -> Pcg64Mcg {
    // Each part passes through a mixing step of its own, so that neighbours have nothing in common.
    let parts = [purpose as u64, index, u64::from(turn)];
    Pcg64Mcg::seed_from_u64(parts.iter().fold(mix(seed), |sum, &part| mix(sum ^ mix(part))))
}

/// A number below `bound`, which is at least 1.
pub fn below(random: &mut Pcg64Mcg, bound: u64) -> u64 {
    Uniform::new(0, bound.max(1)).map_or(0, |uniform| uniform.sample(random))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// Draws lengths.
#[derive(Clone, Debug)]
pub struct Sampler {
    spread: Spread,
    purpose: Purpose,
    min: u32,
    max: u32,
}

#[derive(Clone, Debug)]
enum Spread {
    Fixed(u32),
    Uniform(Uniform<u32>),
    Normal(Normal<f64>),
    LogNormal(LogNormal<f64>),
    Exponential(Exp<f64>),
    /// The lengths of a file, in its order.
    Lines(Vec<u32>),
}

impl Sampler {
    /// Reads the file, if there is one. `purpose` decides which of its columns: the second for [`Purpose::Output`], if there are two.
    pub fn new(lengths: &Lengths, purpose: Purpose) -> Result<Self, BenchError> {
        let bad = || BenchError::Plan(format!("lengths {lengths} cannot be drawn"));
        let (spread, purpose) = match &lengths.shape {
            &Shape::Fixed(n) => (Spread::Fixed(n), purpose),
            &Shape::Uniform(from, to) => {
                (Spread::Uniform(Uniform::new_inclusive(from, to).map_err(|_| bad())?), purpose)
            }
            &Shape::Normal(mean, deviation) => {
                (Spread::Normal(Normal::new(mean, deviation).map_err(|_| bad())?), purpose)
            }
            &Shape::LogNormal(median, sigma) => {
                (Spread::LogNormal(LogNormal::new(median.ln(), sigma).map_err(|_| bad())?), purpose)
            }
            &Shape::Exponential(mean) => (Spread::Exponential(Exp::new(1.0 / mean).map_err(|_| bad())?), purpose),
            Shape::File(path) => (Spread::Lines(read_lengths(path, purpose)?), Purpose::Line),
        };
        Ok(Self { spread, purpose, min: lengths.min, max: lengths.max })
    }

    /// The length at one place.
    pub fn at(&self, seed: u64, index: u64, turn: u32) -> u32 {
        let mut random = random(seed, self.purpose, index, turn);
        let drawn = match &self.spread {
            Spread::Fixed(n) => *n,
            Spread::Uniform(uniform) => uniform.sample(&mut random),
            // The cast saturates.
            Spread::Normal(normal) => normal.sample(&mut random).round() as u32,
            Spread::LogNormal(log_normal) => log_normal.sample(&mut random).round() as u32,
            Spread::Exponential(exponential) => exponential.sample(&mut random).round() as u32,
            Spread::Lines(lines) => lines[below(&mut random, lines.len() as u64) as usize],
        };
        drawn.clamp(self.min, self.max)
    }

    /// Nothing longer is drawn.
    pub fn highest(&self, lengths: &Lengths) -> u32 {
        match &self.spread {
            Spread::Lines(lines) => lines.iter().max().map_or(1, |&most| most.clamp(self.min, self.max)),
            _ => lengths.highest(),
        }
    }
}

/// Time before message `turn` of conversation `index`.
pub fn think_time(think: ThinkTime, seed: u64, index: u64, turn: u32) -> Duration {
    match think {
        ThinkTime::Fixed(time) => time,
        ThinkTime::Exponential(mean) if mean.is_zero() => mean,
        ThinkTime::Exponential(mean) => {
            let times: f64 = rand_distr::Exp1.sample(&mut random(seed, Purpose::Think, index, turn));
            // Longer than any run is as good as forever.
            Duration::try_from_secs_f64(mean.as_secs_f64() * times).unwrap_or(crate::plan::MAX_DURATION)
        }
    }
}

/// One column of a CSV file. A first line without numbers is a head.
fn read_lengths(path: &Path, purpose: Purpose) -> Result<Vec<u32>, BenchError> {
    let bad = |why: String| BenchError::Plan(format!("lengths of {}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(bad(format!("the file has {size} bytes, at most {MAX_FILE_BYTES} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let mut lengths = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line.split([',', ';', '\t']).map(str::trim).collect();
        if cells.iter().all(|cell| cell.is_empty()) {
            continue;
        }
        let column = usize::from(purpose == Purpose::Output && cells.len() > 1);
        match cells[column].parse::<u32>() {
            Ok(0) => return Err(bad(format!("line {} says 0, lengths are at least 1", n + 1))),
            Ok(length) if lengths.len() < MAX_LINES => lengths.push(length),
            Ok(_) => return Err(bad(format!("more than {MAX_LINES} lines"))),
            Err(_) if n == 0 => {}
            Err(_) => return Err(bad(format!("line {} has {:?} where a whole number belongs", n + 1, cells[column]))),
        }
    }
    if lengths.is_empty() {
        return Err(bad("no line has a number".to_owned()));
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 20_000;

    fn draws(text: &str) -> Vec<f64> {
        let lengths: Lengths = text.parse().expect("lengths");
        let sampler = Sampler::new(&lengths, Purpose::Input).expect("can be drawn");
        (0..N as u64).map(|index| f64::from(sampler.at(3, index, 0))).collect()
    }

    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    /// Bounds are five standard errors of the mean, and five of the deviation (at most `deviation * sqrt(2 / N)` for these shapes).
    #[test]
    fn draws_have_the_mean_and_the_deviation_of_their_shape() {
        let root = (N as f64).sqrt();
        for (text, mean, deviation) in [
            ("uniform:100..600", 350.0, (501.0f64.powi(2) - 1.0).sqrt() / 12f64.sqrt()),
            ("normal:512,64", 512.0, 64.0),
            ("exponential:2000", 2000.0, 2000.0),
        ] {
            let (drawn, spread) = moments(&draws(text));
            assert!((drawn - mean).abs() < 5.0 * deviation / root, "{text}: mean {drawn}");
            assert!((spread - deviation).abs() < 10.0 * deviation / root, "{text}: deviation {spread}");
        }
        let logarithms: Vec<f64> = draws("lognormal:5000,0.5").iter().map(|n| n.ln()).collect();
        let (median, sigma) = moments(&logarithms);
        assert!((median - 5000f64.ln()).abs() < 5.0 * 0.5 / root, "{median}");
        assert!((sigma - 0.5).abs() < 5.0 * 0.5 / root, "{sigma}");
    }

    #[test]
    fn bounds_cut_what_is_drawn() {
        let values = draws("normal:100,50,90..110");
        assert!(values.iter().all(|n| (90.0..=110.0).contains(n)));
        assert!(values.contains(&90.0) && values.contains(&110.0));
    }

    #[test]
    fn neighbours_and_purposes_are_independent() {
        let first = |purpose, index| below(&mut random(1, purpose, index, 0), 1 << 40);
        assert_ne!(first(Purpose::Input, 0), first(Purpose::Output, 0));
        assert_ne!(first(Purpose::Input, 0), first(Purpose::Input, 1));
        assert_eq!(first(Purpose::Input, 7), first(Purpose::Input, 7));
    }

    #[test]
    fn columns_of_one_file_stay_pairs() {
        let path = std::env::temp_dir().join(format!("pelton-lengths-{}.csv", std::process::id()));
        std::fs::write(&path, "input,output\n10,1\n20,2\n30,3\n\n").expect("can be written");
        let lengths = Lengths::of(Shape::File(path.clone()));
        let input = Sampler::new(&lengths, Purpose::Input).expect("has numbers");
        let output = Sampler::new(&lengths, Purpose::Output).expect("has numbers");
        let drawn: std::collections::BTreeSet<_> = (0..100).map(|n| (input.at(1, n, 0), output.at(1, n, 0))).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [(10, 1), (20, 2), (30, 3)]);
        assert_eq!(input.highest(&lengths), 30);
        std::fs::write(&path, "10\nten\n").expect("can be written");
        let error = Sampler::new(&lengths, Purpose::Input).expect_err("no number");
        assert!(error.to_string().contains("line 2 has \"ten\""), "{error}");
        std::fs::remove_file(&path).expect("was written");
    }

    #[test]
    fn think_times_have_their_mean() {
        let mean = Duration::from_millis(500);
        let sum: f64 =
            (0..N as u64).map(|index| think_time(ThinkTime::Exponential(mean), 1, index, 1).as_secs_f64()).sum();
        assert!((sum / N as f64 - 0.5).abs() < 5.0 * 0.5 / (N as f64).sqrt());
        assert_eq!(think_time(ThinkTime::Fixed(mean), 1, 2, 3), mean);
    }
}
