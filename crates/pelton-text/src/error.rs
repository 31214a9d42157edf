//! What can go wrong with text.

/// An error of this crate. Messages name the file, limit or value at fault.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file that every model needs is not there.
    #[error("{file} is missing: {hint}")]
    Missing {
        /// Name of the file.
        file: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A file exists and cannot be read.
    #[error("{file} cannot be read: {source}")]
    Unreadable {
        /// Name of the file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is truncated, not JSON, or says something impossible.
    #[error("{file} is invalid: {reason}")]
    Invalid {
        /// Name of the file.
        file: String,
        /// Why, with the place where it is known.
        reason: String,
    },
    /// The tokenizer uses something that is not supported.
    #[error("{file} is not supported: {reason}")]
    Unsupported {
        /// Name of the file.
        file: String,
        /// What is not supported.
        reason: String,
    },
    /// The tokenizer could not encode a text.
    #[error("text cannot be encoded: {0}")]
    Encode(String),
    /// A token id that the tokenizer and the model do not have.
    #[error("token id {id} is unknown, the vocabulary has {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Number of known ids.
        vocab_size: usize,
    },
    /// The chat template could not be compiled or rendered, or it refused the conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// The queue of the text threads is full.
    #[error("too many requests wait for tokenizing, limit is {limit}")]
    Busy {
        /// How many may wait.
        limit: usize,
    },
    /// A job panicked on a text thread, which went on to the next job.
    #[error("tokenizing failed unexpectedly")]
    Panicked,
}
