//! Text of a growing token sequence, never with half a character.

use crate::vocabulary::Assembly;
use crate::{TextError, TextModel};

/// Turns the tokens of one stream into text as they come, at constant cost per token.
///
/// All outputs together, [`finish`](Self::finish) included, are what [`TextModel::decode`] makes of the whole sequence. At most three bytes are ever
/// held back: an incomplete character that cannot be completed any more is released as U+FFFD with the token that shows it.
#[derive(Clone)]
pub struct Detokenizer {
    model: TextModel,
    skip_special_tokens: bool,
    assembly: Assembly,
}

impl Detokenizer {
    /// Begins a stream. `prompt_tail` is the end of the prompt (or all of it) after which the text comes, empty where the text stands alone: tokenizers that
    /// drop a leading space drop it at the beginning of a text only. Ids that are unknown in it are passed over.
    pub fn new(model: &TextModel, skip_special_tokens: bool, prompt_tail: &[u32]) -> Self {
        let mut assembly = Assembly::new(model.vocabulary());
        let mut prompt_text = String::new();
        for &id in prompt_tail {
            if !(skip_special_tokens && model.is_special(id)) {
                // An unknown id adds no text, so there is nothing to do about it here.
                let _unknown = assembly.add(model.vocabulary(), id, &mut prompt_text);
                prompt_text.clear();
            }
        }
        assembly.finish(model.vocabulary(), &mut prompt_text);
        Self { model: model.clone(), skip_special_tokens, assembly }
    }

    /// Adds one token; returns the text that is complete now, which is empty while a character is not.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`], which leaves the stream as it was.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut text = String::new();
        if !(self.skip_special_tokens && self.model.is_special(id)) {
            self.assembly.add(self.model.vocabulary(), id, &mut text)?;
        }
        Ok(text)
    }

    /// Ends the stream; returns U+FFFD for what is left of an incomplete character, and otherwise nothing.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.assembly.finish(self.model.vocabulary(), &mut text);
        text
    }
}
