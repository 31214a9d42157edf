//! One internal request in, one stream of events out; no dialect is known here.

mod constraint;
mod error;
mod event;
mod prepare;
mod request;
mod stream;
mod submit;

pub(crate) use error::{Field, Invalid, ServeError};
pub(crate) use event::{Choice, FinishReason, GenerateEvent, GeneratedToken, Generation};
pub(crate) use prepare::PreparedPrompt;
pub(crate) use request::{
    Chat, ChatTools, Defaults, DetailsRequest, GenerateRequest, GrammarRequest, Prompt, SamplingRequest,
    StoppingRequest,
};
pub(crate) use stream::GenerateStream;
pub(crate) use submit::{submit, submit_instead, tokenize};
