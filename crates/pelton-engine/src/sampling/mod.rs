//! From logits to a token.
//!
//! `survey` reads a row once, in vector registers: the greatest logits of its parts and the sums of its weights, for the draw and for
//! log-probabilities together. From these a threshold follows that few tokens exceed; only those are gathered, weighed and ordered, and
//! only as far as the draw needs it (`draw`). No vocabulary is copied or sorted, unless penalties change it (a copy) or typical-p has no
//! other filter before it.
//!
//! # Measured
//!
//! 2026-11-22, `cargo run --release -p pelton-engine --example sampling_speed`: Intel Xeon at 2.5 GHz with AVX-512, one core for the
//! engine, the other one in use by others, so read differences below a fifth as noise. Microseconds per row with everything between two
//! calls of the model, vocabulary 151,936; one row lies in the second-level cache, 32 rows (19 MB) come from memory. *Before*: a list of
//! all candidates with one library call of `exp` for each, the same again for the log-probability. *Told*: with log-probability and the
//! five likeliest tokens.
//!
//! | | 1 user, before | now | 32 users, before | now |
//! | --- | ---: | ---: | ---: | ---: |
//! | greedy | 23 | 31 | 75 | 69 |
//! | greedy, told | 1,101 | 65 | 1,377 | 116 |
//! | temperature 0.8 | 3,388 | 93 | 3,008 | 136 |
//! | temperature 0.8, told | 3,097 | 143 | 4,711 | 180 |
//! | temperature 0.8, top-p 0.9 | 3,774 | 62 | 3,616 | 110 |
//! | temperature 0.8, top-p 0.9, told | 5,582 | 141 | 4,510 | 177 |
//! | temperature 0.8, top-k 50 | 2,422 | 33 | 1,036 | 89 |
//! | temperature 0.8, top-k 50, told | 2,325 | 74 | 2,911 | 130 |
//!
//! Reading a row from memory takes 69 of these, behind which the arithmetic hides only in part. A row of 32,000 takes 25 to 30
//! drawn and up to 47 told, before 600 to 1,200. A row in which nothing stands out (a bell of standard deviation 2, of which top-p 0.9
//! keeps a tenth) still takes 3,100 to 4,400, at 32,000 tokens 700 to 900 where it took 2,000 to 3,400.
//!
//! What was tried: sums of lanes folded where they arise (the compiler then adds in eight narrow registers: 134 instead of 69 for one sum of
//! a row in cache); Horner's scheme instead of Estrin's, and each piece's greatest before its weights instead of beside the weights of
//! the piece before (67 to 45 for one sum together, 100 to 78 for two; of the latter alone, for rows from memory: 121 to 101 and 154 to
//! 116); touching yet another piece ahead, so that it is under way (for rows from memory 131 and 165: worse). Multiplication and
//! addition apart would cost 18 operations instead of 12 for each weight.

mod constraint;
mod draw;
mod exponential;
mod params;
mod processors;
mod sampler;
mod survey;
#[cfg(test)]
mod vocabulary_tests;
mod watermark;

pub use constraint::{ConstraintError, Ending, TokenConstraint, TokenMask};
pub use params::SamplingParams;
#[cfg(test)]
pub(crate) use sampler::RowSampler;
pub(crate) use sampler::Sampler;
pub use watermark::Watermark;
