//! What a sequence may say next: the face of grammars towards the sampler.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pelton_backend::TokenId;

use crate::event::SequenceError;

/// Follows one sequence and says before each token which ones may come.
///
/// The sampler asks for a mask, draws, and tells what it drew at once, so that several rows of a sequence can be sampled in one step.
/// Tokens are accepted in order and never taken back; a preempted sequence keeps its constraint. Stop tokens are the engine's business:
/// they are possible where the constraint may end, whatever the mask says of them, and are not told to it.
pub trait TokenConstraint: Send {
    /// Allows in `mask`, which is empty, every token that may come next.
    ///
    /// # Errors
    /// Any ends the sequence, and no other one.
    fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError>;

    /// `token`, one of those allowed last, has come.
    ///
    /// # Errors
    /// As of [`TokenConstraint::allow`].
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError>;

    /// If `token`, any but a stop token, may come next, it has come, and the answer is true. To be cheaper than [`TokenConstraint::allow`],
    /// and to agree with it.
    ///
    /// # Errors
    /// As of [`TokenConstraint::allow`].
    fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError>;

    /// One in the same state that goes its own way: each choice of a request has its own.
    fn fork(&self) -> Box<dyn TokenConstraint>;
}

impl Clone for Box<dyn TokenConstraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

impl fmt::Debug for dyn TokenConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenConstraint")
    }
}

/// Whether a text may end where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is not complete.
    No,
    /// It is complete, and may go on.
    May,
    /// It is complete, and nothing may follow.
    Must,
}

/// Why a constraint cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// One bit for each token of the vocabulary.
#[derive(Debug, Clone, Default)]
pub struct TokenMask {
    /// Bit `t % 32` of word `t / 32` is token `t`.
    words: Vec<u32>,
    num_tokens: usize,
}

impl TokenMask {
    /// Forbids all of `num_tokens` tokens.
    pub fn clear(&mut self, num_tokens: usize) {
        self.words.clear();
        self.words.resize(num_tokens.div_ceil(32), 0);
        self.num_tokens = num_tokens;
    }

    /// Allows `token`, if there is such a token.
    pub fn allow(&mut self, token: TokenId) {
        if (token.0 as usize) < self.num_tokens {
            self.words[token.0 as usize / 32] |= 1 << (token.0 % 32);
        }
    }

    /// Forbids `token`.
    pub fn forbid(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token.0 as usize / 32) {
            *word &= !(1 << (token.0 % 32));
        }
    }

    /// Allows the tokens whose bits are set in `words`: bit `t % 32` of word `t / 32` is token `t`. Bits beyond the vocabulary are passed over.
    pub fn allow_words(&mut self, words: &[u32]) {
        for (word, more) in self.words.iter_mut().zip(words) {
            *word |= more;
        }
        let in_last = self.num_tokens % 32;
        if let Some(last) = self.words.last_mut().filter(|_| in_last > 0) {
            *last &= (1 << in_last) - 1;
        }
    }

    /// Whether `token` is allowed.
    pub fn is_allowed(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
    }

    /// Whether no token is allowed.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Makes what is forbidden impossible. `row`: `[vocab]` logits.
    pub(super) fn apply(&self, row: &mut [f32]) {
        for (&word, logits) in self.words.iter().zip(row.chunks_mut(32)) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// Puts into `mask` what may follow: what `constraint` allows, without stop tokens where it may not end, and they alone where it must.
///
/// `too_short` forbids the stop tokens as long as something else may come: who must end ends, however few tokens there are.
pub(super) fn allowed(
    constraint: &mut dyn TokenConstraint,
    stop_tokens: &[TokenId],
    too_short: bool,
    vocab_size: usize,
    mask: &mut TokenMask,
) -> Result<(), SequenceError> {
    mask.clear(vocab_size);
    let ending = guarded(|| constraint.allow(mask))?;
    if ending == Ending::Must {
        mask.clear(vocab_size);
    }
    stop_tokens.iter().for_each(|&token| mask.forbid(token));
    let may_go_on = !mask.is_empty();
    if ending != Ending::No && !(too_short && may_go_on) {
        stop_tokens.iter().for_each(|&token| mask.allow(token));
    }
    if mask.is_empty() {
        let reason = match ending {
            Ending::No => "no token that the request allows can follow the text so far",
            Ending::May | Ending::Must => "the text is complete, and the request has no token that ends it",
        };
        return Err(SequenceError::Constraint(reason.to_owned()));
    }
    Ok(())
}

/// Tells `constraint` that `token` has come.
pub(super) fn accept(constraint: &mut dyn TokenConstraint, token: TokenId) -> Result<(), SequenceError> {
    guarded(|| constraint.accept(token))
}

/// Whether `constraint` allowed `token`, which then has come.
pub(super) fn try_accept(constraint: &mut dyn TokenConstraint, token: TokenId) -> Result<bool, SequenceError> {
    guarded(|| constraint.try_accept(token))
}

/// A constraint that panics ends its sequence as one that fails.
fn guarded<T>(call: impl FnOnce() -> Result<T, ConstraintError>) -> Result<T, SequenceError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|ConstraintError(reason)| SequenceError::Constraint(reason)),
        Err(_) => Err(SequenceError::Constraint("it failed unexpectedly".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows what it is told, once.
    struct Fixed(Vec<u32>, Ending);

    impl TokenConstraint for Fixed {
        fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError> {
            self.0.iter().for_each(|&token| mask.allow(TokenId(token)));
            Ok(self.1)
        }

        fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
            panic!("{token:?} is too much for it")
        }

        fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
            Ok(self.0.contains(&token.0))
        }

        fn fork(&self) -> Box<dyn TokenConstraint> {
            Box::new(Fixed(self.0.clone(), self.1))
        }
    }

    /// Of a vocabulary of 40 tokens, with the stop tokens 2 and 35.
    fn allowed_of(tokens: &[u32], ending: Ending, too_short: bool) -> Result<Vec<u32>, SequenceError> {
        let mut mask = TokenMask::default();
        let stop_tokens = [TokenId(2), TokenId(35)];
        allowed(&mut Fixed(tokens.to_vec(), ending), &stop_tokens, too_short, 40, &mut mask)?;
        Ok((0..64).filter(|&token| mask.is_allowed(TokenId(token))).collect())
    }

    #[test]
    fn stop_tokens_follow_the_ending_and_not_the_mask() {
        for too_short in [false, true] {
            assert_eq!(allowed_of(&[1, 2, 39, 40, 63], Ending::No, too_short), Ok(vec![1, 39]));
            assert_eq!(allowed_of(&[1, 2], Ending::Must, too_short), Ok(vec![2, 35]));
            assert_eq!(allowed_of(&[2], Ending::May, too_short), Ok(vec![2, 35]));
        }
        assert_eq!(allowed_of(&[1, 39], Ending::May, false), Ok(vec![1, 2, 35, 39]));
        assert_eq!(allowed_of(&[1, 39], Ending::May, true), Ok(vec![1, 39]));
    }

    #[test]
    fn where_nothing_can_follow_the_sequence_ends_with_a_reason() {
        let Err(SequenceError::Constraint(reason)) = allowed_of(&[2, 35], Ending::No, false) else { panic!("allowed") };
        assert!(reason.contains("no token that the request allows"), "{reason}");
        let mut mask = TokenMask::default();
        let result = allowed(&mut Fixed(vec![1], Ending::Must), &[], false, 40, &mut mask);
        assert!(matches!(result, Err(SequenceError::Constraint(reason)) if reason.contains("no token that ends it")));
    }

    #[test]
    fn a_panic_is_a_failure_of_the_constraint() {
        let result = accept(&mut Fixed(Vec::new(), Ending::No), TokenId(0));
        assert!(matches!(result, Err(SequenceError::Constraint(_))));
    }

    #[test]
    fn masks_apply_to_each_token_of_any_vocabulary() {
        for num_tokens in [1, 31, 32, 33, 64, 100] {
            let mut mask = TokenMask::default();
            mask.clear(num_tokens);
            assert!(mask.is_empty());
            mask.allow_words(&[0xffff_fffe, u32::MAX, 0x8000_0001, 0xf]);
            mask.forbid(TokenId(40));
            mask.forbid(TokenId(4000));
            let mut row = vec![0.0; num_tokens];
            mask.apply(&mut row);
            for (token, logit) in row.into_iter().enumerate() {
                let allowed = token != 0 && token != 40 && !(65..95).contains(&token);
                assert_eq!(logit == 0.0, allowed, "token {token} of {num_tokens}");
                assert_eq!(mask.is_allowed(TokenId(token as u32)), allowed);
            }
            assert!(!mask.is_allowed(TokenId(num_tokens as u32)));
        }
    }
}
