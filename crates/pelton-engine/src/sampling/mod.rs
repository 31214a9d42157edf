//! From logits to a token.
mod draw;
mod exponential;
mod params;
mod processors;
mod sampler;
mod survey;
#[cfg(test)]
mod vocabulary_tests;

pub use params::SamplingParams;
pub(crate) use sampler::Sampler;
