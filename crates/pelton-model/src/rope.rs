//! Rotary position embeddings: frequencies of every scaling rule, and the table that backends read.

use std::f64::consts::TAU;

use crate::config::{ConfigError, HfConfig};

/// Rotary embedding of a family: base, rotated width, and how frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths: the i-th frequency is `theta^(-2i / rotary_dim)`.
    pub theta: f64,
    /// Rotated dimensions of a head, even.
    pub rotary_dim: usize,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// Rules that stretch rotary frequencies. `factor` is the wished over the trained length, `original` the trained length.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Every frequency divided by `factor` (Chen et al. 2023, position interpolation).
    Linear {
        /// Divides.
        factor: f64,
    },
    /// The base grows with the sequence ("NTK-aware"): position `p >= original` uses the base for a sequence of `p + 1` tokens.
    ///
    /// Transformers takes the base of the longest sequence seen so far for a whole call and leaves older keys as they were, so its
    /// numbers depend on how a prompt was cut. The one rule that does not is what it computes when fed token by token; that is this.
    Dynamic {
        /// Stretch at `factor * original`.
        factor: f64,
        /// Positions with the plain base.
        original: usize,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a linear blend between.
    Llama3 {
        /// Divides long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Trained length.
        original: usize,
    },
    /// YaRN (Peng et al. 2023): a blend by dimension, and a factor on cosines and sines.
    Yarn {
        /// Divides slow dimensions.
        factor: f64,
        /// Trained length.
        original: usize,
        /// Dimensions that turn more often over the trained length are kept.
        beta_fast: f64,
        /// Dimensions that turn less often are divided.
        beta_slow: f64,
        /// On cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the blend are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): each frequency divided by a factor of its own, from one list up to the trained length and from another beyond,
    /// and a factor on cosines and sines.
    ///
    /// Which list it is depends on the greatest length of a sequence, as served, and holds for every position: a table of at most `original` positions
    /// uses `short`, any longer one `long`. Transformers changes over when a sequence outgrows the trained length, which makes its
    /// earlier keys wrong and has to compute the whole sequence again. A model that is served with a limit of `original` positions is
    /// exactly the short one.
    LongRope {
        /// `[rotary_dim / 2]`, up to `original` positions.
        short: Vec<f64>,
        /// `[rotary_dim / 2]`, for more.
        long: Vec<f64>,
        /// Trained length.
        original: usize,
        /// On cosines and sines, with either list.
        attention_factor: f64,
    },
}

/// Another stretch than the checkpoint's, asked for by whoever serves it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeStretch {
    /// How.
    pub rule: RopeRule,
    /// The wished over the trained length, 1 to 1,000,000.
    pub factor: f64,
}

/// Rules that need nothing but a factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeRule {
    /// [`RopeScaling::Linear`].
    Linear,
    /// [`RopeScaling::Dynamic`].
    Dynamic,
}

/// Why positions cannot be stretched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RopeStretchError {
    /// No factor.
    #[error("the factor of rotary positions is {found}, expected a number from 1 to 1000000")]
    Factor {
        /// As it was given.
        found: f64,
    },
    /// Too few rotated dimensions for the rule.
    #[error("dynamic scaling needs more than two rotated dimensions")]
    Narrow,
    /// Positions are not rotary, or rotary in several ways.
    #[error("positions of this model cannot be stretched by a factor: it has {found}; leave --rope-scaling out")]
    Positions {
        /// What it has.
        found: &'static str,
    },
}

/// Rule names of Transformers that can be served.
const KNOWN: &str = "default, linear, dynamic, llama3, yarn, longrope";
const FACTOR: std::ops::RangeInclusive<f64> = 1.0..=1e6;
const POSITIONS: std::ops::RangeInclusive<usize> = 1..=(1 << 30);

impl Rope {
    /// Without scaling.
    pub fn plain(theta: f64, rotary_dim: usize) -> Self {
        Self { theta, rotary_dim, scaling: RopeScaling::None }
    }

    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters` as Transformers 5 writes them.
    pub fn from_config(config: &HfConfig, rotary_dim: usize, max_positions: usize) -> Result<Self, ConfigError> {
        let (key, section) = match config.section("rope_parameters")? {
            Some(section) => ("rope_parameters", Some(section)),
            None => ("rope_scaling", config.section("rope_scaling")?),
        };
        let theta_range = 1.000_001..=1e15;
        let theta = config.float_or("rope_theta", 10_000.0, theta_range.clone())?;
        let theta = match &section {
            Some(section) => section.float_or("rope_theta", theta, theta_range)?,
            None => theta,
        };
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(config.refuse("head_dim", &format!("an even rotated width (it comes to {rotary_dim})")));
        }
        let scaling = match &section {
            None => RopeScaling::None,
            Some(section) => {
                if section.nested_keys().next().is_some() {
                    return Err(config.unsupported(key, "rope parameters for each kind of layer are not supported"));
                }
                RopeScaling::from_config(config, section, rotary_dim, max_positions)?
            }
        };
        Ok(Self { theta, rotary_dim, scaling })
    }

    /// Positions the model can tell apart, where `stated` is its `max_position_embeddings`.
    ///
    /// That is the stretched length for most checkpoints; with `dynamic`, and with YaRN switched on by hand, it is the trained one.
    pub fn max_positions(&self, stated: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { factor, original } | RopeScaling::Yarn { factor, original, .. } => {
                stated.max((original as f64 * factor) as usize)
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::LongRope { .. } => stated,
        }
    }

    /// The same under `stretch` instead of its own rule, and how many positions it tells apart then, where `reached` are told apart now.
    pub fn stretched(&self, stretch: RopeStretch, reached: usize) -> Result<(Self, usize), RopeStretchError> {
        let RopeStretch { rule, factor } = stretch;
        if !FACTOR.contains(&factor) {
            return Err(RopeStretchError::Factor { found: factor });
        }
        let trained = match self.scaling {
            RopeScaling::None => reached,
            RopeScaling::Linear { factor } => (reached as f64 / factor) as usize,
            RopeScaling::Dynamic { original, .. }
            | RopeScaling::Llama3 { original, .. }
            | RopeScaling::Yarn { original, .. }
            | RopeScaling::LongRope { original, .. } => original,
        };
        let scaling = match rule {
            RopeRule::Linear => RopeScaling::Linear { factor },
            RopeRule::Dynamic if self.rotary_dim <= 2 => return Err(RopeStretchError::Narrow),
            RopeRule::Dynamic => RopeScaling::Dynamic { factor, original: trained },
        };
        Ok((Self { scaling, ..self.clone() }, (trained as f64 * factor) as usize))
    }

    /// Bytes of [`Rope::table`].
    pub fn table_bytes(&self, positions: usize) -> u64 {
        positions as u64 * self.rotary_dim as u64 * 4
    }

    /// `[positions, rotary_dim]` as little-endian f32: for each position `rotary_dim / 2` cosines, then as many sines.
    ///
    /// Angles are computed in f64, and cosines and sines are rounded once: at position 100,000 an angle in f32 would be off by up
    /// to 0.004.
    pub fn table(&self, positions: usize) -> Vec<u8> {
        let half = self.rotary_dim / 2;
        let mut table = Vec::with_capacity(positions * self.rotary_dim * 4);
        let mut sines = Vec::with_capacity(half * 4);
        let attention_factor = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        };
        let mut frequencies = self.frequencies(self.theta, positions);
        for position in 0..positions {
            if let RopeScaling::Dynamic { factor, original } = self.scaling
                && position >= original
            {
                frequencies = self.frequencies(self.dynamic_theta(factor, original, position + 1), positions);
            }
            sines.clear();
            for &frequency in &frequencies {
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                table.extend_from_slice(&((cosine * attention_factor) as f32).to_le_bytes());
                sines.extend_from_slice(&((sine * attention_factor) as f32).to_le_bytes());
            }
            table.extend_from_slice(&sines);
        }
        table
    }

    /// The base of "dynamic" for a sequence of `length` tokens.
    fn dynamic_theta(&self, factor: f64, original: usize, length: usize) -> f64 {
        let dim = self.rotary_dim as f64;
        let stretch = factor * length as f64 / original as f64 - (factor - 1.0);
        self.theta * stretch.powf(dim / (dim - 2.0))
    }

    /// `[rotary_dim / 2]` radians per position, from base `theta`, after scaling, where there are `positions`.
    fn frequencies(&self, theta: f64, positions: usize) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        let plain = (0..self.rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim));
        match self.scaling {
            RopeScaling::LongRope { ref short, ref long, original, .. } => {
                let factors = if positions > original { long } else { short };
                plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
            RopeScaling::None | RopeScaling::Dynamic { .. } => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => plain
                .map(|frequency| {
                    let turns = original as f64 * frequency / TAU;
                    let blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - blend) * frequency / factor + blend * frequency
                })
                .collect(),
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                // The dimension that turns `turns` times over the trained length.
                let dim_of = |turns: f64| dim * (original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (dim_of(beta_fast), dim_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let low = low.max(0.0);
                let mut high = high.min(dim - 1.0);
                if low == high {
                    high += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(i, frequency)| {
                        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        frequency / factor * ramp + frequency * (1.0 - ramp)
                    })
                    .collect()
            }
        }
    }
}

impl RopeScaling {
    /// `config` is what holds `section`: Phi-3 has the trained length there.
    fn from_config(
        config: &HfConfig,
        section: &HfConfig,
        rotary_dim: usize,
        max_positions: usize,
    ) -> Result<Self, ConfigError> {
        let key = if section.has("rope_type") { "rope_type" } else { "type" };
        let factor = || section.float("factor", FACTOR);
        match section.optional_text(key)?.unwrap_or("default") {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "dynamic" if rotary_dim <= 2 => {
                Err(section.unsupported(key, "dynamic scaling needs more than two rotated dimensions"))
            }
            "dynamic" => Ok(Self::Dynamic { factor: factor()?, original: max_positions }),
            "llama3" => {
                let low_freq_factor = section.float("low_freq_factor", 1e-6..=1e6)?;
                let high_freq_factor = section.float("high_freq_factor", 1e-6..=1e6)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(section.refuse("high_freq_factor", "more than low_freq_factor"));
                }
                Ok(Self::Llama3 {
                    factor: factor()?,
                    low_freq_factor,
                    high_freq_factor,
                    original: section.size("original_max_position_embeddings", POSITIONS)?,
                })
            }
            "yarn" => {
                let factor = factor()?;
                let beta_fast = section.float_or("beta_fast", 32.0, 1e-6..=1e6)?;
                let beta_slow = section.float_or("beta_slow", 1.0, 1e-6..=1e6)?;
                if beta_fast < beta_slow {
                    return Err(section.refuse("beta_fast", "at least beta_slow"));
                }
                Ok(Self::Yarn {
                    factor,
                    original: section.size_or("original_max_position_embeddings", max_positions, POSITIONS)?,
                    beta_fast,
                    beta_slow,
                    attention_factor: yarn_attention_factor(section, factor)?,
                    truncate: section.bool_or("truncate", true)?,
                })
            }
            // Older files say "su".
            "longrope" | "su" => {
                let trained = |config: &HfConfig| config.optional_size("original_max_position_embeddings", 2..=1 << 30);
                let original = match trained(config)? {
                    Some(original) => original,
                    None => trained(section)?.unwrap_or(max_positions.max(2)),
                };
                let stretch = max_positions as f64 / original as f64;
                let usual = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
                Ok(Self::LongRope {
                    short: section.floats("short_factor", rotary_dim / 2, 1e-3..=1e6)?,
                    long: section.floats("long_factor", rotary_dim / 2, 1e-3..=1e6)?,
                    original,
                    attention_factor: section.float_or("attention_factor", usual, 1e-6..=1e6)?,
                })
            }
            _ => Err(section.unsupported(key, &format!("this rule is not known; known are {KNOWN}"))),
        }
    }
}

/// `attention_factor` as given, else from `mscale` and `mscale_all_dim` if both are there (and not zero), else from `factor`.
fn yarn_attention_factor(section: &HfConfig, factor: f64) -> Result<f64, ConfigError> {
    let mscale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    if let Some(given) = section.optional_float("attention_factor", 1e-6..=1e6)? {
        return Ok(given);
    }
    let over = section.float_or("mscale", 0.0, 0.0..=1e6)?;
    let under = section.float_or("mscale_all_dim", 0.0, 0.0..=1e6)?;
    Ok(if over != 0.0 && under != 0.0 { mscale(over) / mscale(under) } else { mscale(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::spec_of;

    fn read(text: &str, rotary_dim: usize) -> Result<Rope, ConfigError> {
        Rope::from_config(&HfConfig::parse("config.json", text.as_bytes()).unwrap(), rotary_dim, 2048)
    }

    fn row(rope: &Rope, position: usize) -> Vec<f32> {
        let width = rope.rotary_dim * 4;
        let table = rope.table(position + 1);
        table[position * width..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn plain_table_is_cosines_then_sines() {
        let rope = read("{}", 4).unwrap();
        assert_eq!(rope, Rope { theta: 10_000.0, rotary_dim: 4, scaling: RopeScaling::None });
        assert_eq!(row(&rope, 0), [1.0, 1.0, 0.0, 0.0]);
        let expected = [3f64.cos(), 0.03f64.cos(), 3f64.sin(), 0.03f64.sin()].map(|x| x as f32);
        assert_eq!(row(&rope, 3), expected);
        assert_eq!(rope.table(5).len() as u64, rope.table_bytes(5));
    }

    #[test]
    fn a_stretch_replaces_the_rule_of_the_file() {
        let stretch = |rope: &Rope, rule, factor| rope.stretched(RopeStretch { rule, factor }, 8192);
        let plain = read("{}", 8).unwrap();
        let (linear, positions) = stretch(&plain, RopeRule::Linear, 4.0).unwrap();
        assert_eq!((linear.scaling.clone(), positions), (RopeScaling::Linear { factor: 4.0 }, 32_768));
        // The trained length is what the file's own rule says it is.
        let (dynamic, positions) = stretch(&linear, RopeRule::Dynamic, 2.0).unwrap();
        assert_eq!((dynamic.scaling.clone(), positions), (RopeScaling::Dynamic { factor: 2.0, original: 2048 }, 4096));
        assert_eq!(stretch(&dynamic, RopeRule::Linear, 3.0).unwrap().1, 3 * 2048);
        for factor in [0.5, f64::NAN, 1e9] {
            assert!(matches!(stretch(&plain, RopeRule::Linear, factor), Err(RopeStretchError::Factor { .. })));
        }
        assert_eq!(stretch(&Rope::plain(1e4, 2), RopeRule::Dynamic, 2.0), Err(RopeStretchError::Narrow));
    }

    #[test]
    fn a_stretched_model_is_the_one_whose_file_says_so() {
        let spec = |positions: usize, more: &str| {
            let text = format!(
                r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": {positions}{more}}}"#
            );
            spec_of(&HfConfig::parse("config.json", text.as_bytes()).unwrap()).unwrap().1
        };
        let stretched = |rule| spec(256, "").stretched(RopeStretch { rule, factor: 4.0 }).unwrap();
        // A file with a linear stretch says the stretched length, one with a dynamic stretch the trained one.
        for (rule, said) in [
            (RopeRule::Linear, spec(1024, r#", "rope_scaling": {"type": "linear", "factor": 4.0}"#)),
            (RopeRule::Dynamic, spec(256, r#", "rope_scaling": {"type": "dynamic", "factor": 4.0}"#)),
        ] {
            let asked = stretched(rule);
            assert_eq!(asked.positions, said.positions);
            assert_eq!((asked.max_positions, said.max_positions), (1024, 1024));
        }
        let learned = r#"{"architectures": ["GPT2LMHeadModel"], "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}"#;
        let (_, learned) = spec_of(&HfConfig::parse("config.json", learned.as_bytes()).unwrap()).unwrap();
        let error = learned.stretched(RopeStretch { rule: RopeRule::Linear, factor: 2.0 }).unwrap_err().to_string();
        assert!(error.contains("it has learned positions; leave --rope-scaling out"), "{error}");
    }

    #[test]
    fn linear_divides_positions() {
        let plain = read("{}", 8).unwrap();
        let linear = read(r#"{"rope_scaling": {"type": "linear", "factor": 4}}"#, 8).unwrap();
        assert_eq!(row(&linear, 40), row(&plain, 10));
    }

    #[test]
    fn both_spellings_of_the_parameters_mean_the_same() {
        let old = r#"{"rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
            "high_freq_factor": 4, "original_max_position_embeddings": 512}}"#;
        let new = r#"{"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512}}"#;
        assert_eq!(read(old, 16), read(new, 16));
    }

    #[test]
    fn dynamic_is_plain_up_to_the_trained_length_and_reaches_further() {
        let plain = read("{}", 8).unwrap();
        let dynamic = read(r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#, 8).unwrap();
        assert_eq!(row(&dynamic, 2047), row(&plain, 2047));
        let stretched = Rope { theta: 10_000.0 * (2.0 * 2049.0 / 2048.0 - 1.0f64).powf(8.0 / 6.0), ..plain.clone() };
        assert_eq!(row(&dynamic, 2048), row(&stretched, 2048));
        assert_eq!(dynamic.max_positions(2048), 4096);
        assert_eq!(plain.max_positions(2048), 2048);
    }

    #[test]
    fn yarn_scales_by_the_logarithm_unless_told() {
        let factor_of = |extra: &str| {
            let text = format!(r#"{{"rope_scaling": {{"type": "yarn", "factor": 4.0{extra}}}}}"#);
            match read(&text, 16).unwrap().scaling {
                RopeScaling::Yarn { attention_factor, .. } => attention_factor,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(factor_of(""), 0.1 * 4f64.ln() + 1.0);
        assert_eq!(factor_of(r#", "attention_factor": 0.5"#), 0.5);
        assert_eq!(factor_of(r#", "mscale": 1.0, "mscale_all_dim": 1.0"#), 1.0);
        assert_eq!(factor_of(r#", "mscale": 0.707"#), 0.1 * 4f64.ln() + 1.0);
        let yarn = read(r#"{"rope_scaling": {"type": "yarn", "factor": 4.0}}"#, 16).unwrap();
        assert_eq!(yarn.max_positions(2048), 8192);
        // The fastest dimension is kept, the slowest divided.
        let frequencies = yarn.frequencies(yarn.theta, 100);
        assert_eq!(frequencies[0], 1.0);
        assert_eq!(frequencies[7], 10_000f64.powf(-14.0 / 16.0) / 4.0);
    }

    #[test]
    fn longrope_has_a_list_for_each_length_as_served() {
        let text = r#"{"original_max_position_embeddings": 64, "rope_scaling": {"type": "su", "short_factor": [1, 2],
            "long_factor": [4, 8]}}"#;
        let rope = read(text, 4).unwrap();
        let factor = (1.0 + 32f64.ln() / 64f64.ln()).sqrt();
        assert_eq!(rope.frequencies(rope.theta, 64), [1.0, 0.01 / 2.0]);
        assert_eq!(rope.frequencies(rope.theta, 65), [1.0 / 4.0, 0.01 / 8.0]);
        assert_eq!(rope.table(1)[..4], (factor as f32).to_le_bytes());
        assert_eq!(rope.max_positions(2048), 2048);
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (text, rotary_dim, part) in [
            (r#"{"rope_scaling": {"rope_type": "mrope"}}"#, 8, "known are default, linear"),
            (r#"{"rope_scaling": {"type": "longrope"}}"#, 8, "no rope_scaling.short_factor"),
            (r#"{"rope_scaling": {"type": "su", "short_factor": [1]}}"#, 8, "expected 4 numbers"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, 8, "no rope_scaling.factor"),
            (r#"{"rope_scaling": {"type": "linear", "factor": 0}}"#, 8, "rope_scaling.factor is 0"),
            (r#"{"rope_scaling": {"type": "dynamic", "factor": 2}}"#, 2, "more than two"),
            (r#"{"rope_scaling": 3}"#, 8, "expected an object"),
            (r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#, 8, "each kind of layer"),
            (r#"{"rope_theta": 0}"#, 8, "rope_theta is 0"),
            (r#"{"head_dim": 7}"#, 7, "even rotated width"),
            (
                r#"{"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
                    "original_max_position_embeddings": 8}}"#,
                8,
                "more than low_freq_factor",
            ),
        ] {
            let error = read(text, rotary_dim).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
