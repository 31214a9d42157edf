//! Following one text through its grammar.

use llguidance::Matcher;

use super::shorten;

/// Where one text is in its grammar.
pub struct GrammarMatcher(Matcher);

/// Whether a text may end where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrammarEnding {
    /// It is not complete.
    No,
    /// It is complete, and may go on.
    May,
    /// It is complete, and nothing may follow.
    Must,
}

/// Why a text cannot be followed any further: the grammar became too complex, or a token came that it does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MatchError(String);

impl GrammarMatcher {
    /// At the beginning, with states of its own: what happens to this text concerns no other one.
    pub(super) fn beginning(beginning: &Matcher) -> Self {
        Self(beginning.deep_clone())
    }

    /// Another one in the same state.
    pub fn fork(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Gives the tokens that may come next to `take`, as words of which bit `t % 32` of word `t / 32` is token `t`; tokens that end texts mean nothing in
    /// them. Nothing is given where nothing may follow.
    ///
    /// # Errors
    /// [`MatchError`], and again each time from then on.
    pub fn next(&mut self, take: impl FnOnce(&[u32])) -> Result<GrammarEnding, MatchError> {
        self.check()?;
        if self.0.is_stopped() {
            return Ok(GrammarEnding::Must);
        }
        let may_end = self.0.is_accepting().map_err(|error| failed(&error))?;
        let mask = self.0.compute_mask().map_err(|error| failed(&error))?;
        take(mask.as_slice());
        Ok(if may_end { GrammarEnding::May } else { GrammarEnding::No })
    }

    /// `token` has come.
    ///
    /// # Errors
    /// [`MatchError`], and again each time from then on.
    pub fn accept(&mut self, token: u32) -> Result<(), MatchError> {
        self.0.consume_token(token).map_err(|error| failed(&error))
    }

    /// If `token` may come next, it has come. Costs next to nothing beside [`GrammarMatcher::next`].
    ///
    /// # Errors
    /// [`MatchError`], and again each time from then on.
    pub fn try_accept(&mut self, token: u32) -> Result<bool, MatchError> {
        self.check()?;
        let environment = self.0.tok_env().map_err(|error| failed(&error))?;
        let vocabulary = environment.tok_trie();
        // To the matcher, what has no bytes fits everywhere.
        if token as usize >= vocabulary.vocab_size() || vocabulary.token(token).is_empty() {
            return Ok(false);
        }
        Ok(self.0.try_consume_tokens(&[token]).map_err(|error| failed(&error))? == 1)
    }

    fn check(&self) -> Result<(), MatchError> {
        self.0.get_error().map_or(Ok(()), |error| Err(MatchError(shorten(&error))))
    }
}

fn failed(error: &impl std::fmt::Display) -> MatchError {
    MatchError(shorten(&format!("{error:#}")))
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").finish_non_exhaustive()
    }
}
