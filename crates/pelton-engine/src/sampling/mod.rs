//! From logits to a token.
mod draw;
mod params;
mod processors;
mod sampler;

pub use params::SamplingParams;
pub(crate) use sampler::Sampler;
