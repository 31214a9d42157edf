//! Joins grammars, which know text, to the engine's constraints, which know tokens.

use pelton_engine::{ConstraintError, Ending, TokenConstraint, TokenId, TokenMask};
use pelton_text::{GrammarEnding, GrammarMatcher};

use super::ServeError;
use super::prepare::text_error;
use super::request::{GrammarRequest, StoppingRequest};
use crate::server::Server;

/// Reads the grammar that a request asks for, on the thread that only reads grammars: one that takes long keeps nobody waiting but others with grammars.
pub(super) async fn constraint(
    server: &Server,
    request: Option<GrammarRequest>,
    stopping: &StoppingRequest,
) -> Result<Option<Box<dyn TokenConstraint>>, ServeError> {
    let Some(GrammarRequest { field, grammar }) = request else { return Ok(None) };
    if !server.config().grammar_support {
        return Err(ServeError::Conflict { field, message: "grammar is not supported".into() });
    }
    if stopping.ignore_eos {
        let message = format!("`ignore_eos` and `{field}` exclude each other: a text ends where its grammar does");
        return Err(ServeError::Conflict { field: "ignore_eos", message: message.into() });
    }
    if server.text().eos_token_ids().is_empty() && stopping.stop_tokens.is_empty() {
        return Err(ServeError::unsupported(field, "the model has no token that ends a text"));
    }
    let read = server.grammar_pool().run(move |model| model.grammar(&grammar)).await.map_err(text_error)?;
    let matcher = read.map_err(|error| ServeError::Grammar { field, reason: error.to_string() })?;
    Ok(Some(Box::new(Following(matcher))))
}

/// A text that follows its grammar token by token.
struct Following(GrammarMatcher);

impl TokenConstraint for Following {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError> {
        let ending = self.0.next(|words| mask.allow_words(words));
        Ok(match ending.map_err(|error| ConstraintError(error.to_string()))? {
            GrammarEnding::No => Ending::No,
            GrammarEnding::May => Ending::May,
            GrammarEnding::Must => Ending::Must,
        })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        self.0.accept(token.0).map_err(|error| ConstraintError(error.to_string()))
    }

    fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        self.0.try_accept(token.0).map_err(|error| ConstraintError(error.to_string()))
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self(self.0.fork()))
    }
}
