//! What one sequence is guessed to say next, and how good its guesses were.

use pelton_backend::TokenId;

use super::ngrams::{MATCH_TOKENS, Match, NgramIndex};

/// How much one guess changes the estimate of all: the last dozen count.
const LEARNING_RATE: f32 = 1.0 / 12.0;

/// Chances that a guess is right after a match of two, three and four tokens, before anything is known of the sequence. Measured: shares
/// of right guesses of the demo model completing code that it was not trained on (docs/decisions/0018).
const FIRST_CHANCES: [f32; 3] = [0.5, 0.6, 0.8];

/// Guesses for one sequence, from its own tokens.
///
/// Every token is guessed if it can be, whether or not a row was spent on the guess: so the chances are up to date when drafting
/// did not pay for a while and may pay again.
#[derive(Debug)]
pub(crate) struct Drafter {
    index: NgramIndex,
    /// Where the sequence seems to repeat itself.
    source: Option<Match>,
    /// By tokens of the match: the chance that the next guess is right.
    chances: [f32; 3],
}

impl Drafter {
    pub(crate) fn new() -> Self {
        Self { index: NgramIndex::default(), source: None, chances: FIRST_CHANCES }
    }

    /// Looks for a place that reads like the end of `tokens`, all that is known of the sequence.
    pub(crate) fn look(&mut self, tokens: &[TokenId]) {
        self.source = self.index.find(tokens);
    }

    /// The guess for the token after `tokens`, the last `num_drafts` of which are guesses themselves, and its chance if they are right.
    pub(crate) fn guess(&self, tokens: &[TokenId], num_drafts: u32) -> Option<(TokenId, f32)> {
        let source = self.source?;
        // A place near the end runs into the guesses, which repeat it then.
        let guess = tokens[(source.next + num_drafts) as usize];
        Some((guess, self.chances[chance_index(source.num_tokens + num_drafts)]))
    }

    /// Learns from the token after `tokens`.
    pub(crate) fn learn(&mut self, tokens: &[TokenId], token: TokenId) {
        let Some(source) = &mut self.source else { return };
        let is_right = tokens[source.next as usize] == token;
        let chance = &mut self.chances[chance_index(source.num_tokens)];
        *chance += (f32::from(u8::from(is_right)) - *chance) * LEARNING_RATE;
        if is_right {
            source.next += 1;
            source.num_tokens += 1;
        } else {
            self.source = None;
        }
    }
}

/// Longer matches count as the longest.
fn chance_index(num_tokens: u32) -> usize {
    (num_tokens.min(*MATCH_TOKENS.end()) - MATCH_TOKENS.start()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn guesses_follow_the_place_and_repeat_when_they_reach_the_end() {
        let mut drafter = Drafter::new();
        let mut known = tokens(&[5, 1, 2, 3, 1, 2]);
        drafter.look(&known);
        let mut guesses = Vec::new();
        for num_drafts in 0..6 {
            let (guess, chance) = drafter.guess(&known, num_drafts).expect("there is a place");
            assert_eq!(chance, FIRST_CHANCES[2.min(num_drafts as usize)]);
            guesses.push(guess);
            known.push(guess);
        }
        assert_eq!(guesses, tokens(&[3, 1, 2, 3, 1, 2]));
    }

    #[test]
    fn chances_follow_what_was_said_drafted_or_not() {
        let mut drafter = Drafter::new();
        let mut known = tokens(&[1, 2, 3, 4, 1, 2, 3, 4]);
        for next in [1, 2, 3, 4].into_iter().cycle().take(60) {
            drafter.look(&known);
            drafter.learn(&known, TokenId(next));
            known.push(TokenId(next));
        }
        assert!(drafter.chances[2] > 0.95, "{:?}", drafter.chances);
        // The same four tokens, and never again what followed.
        for next in 10..50 {
            drafter.look(&known);
            drafter.learn(&known, TokenId(next));
            known.extend(tokens(&[next, 1, 2, 3, 4]));
        }
        assert!(drafter.chances[2] < 0.05, "{:?}", drafter.chances);
        assert_eq!(drafter.chances[..2], FIRST_CHANCES[..2], "nothing was learnt of shorter matches");
    }

    #[test]
    fn without_a_place_there_is_no_guess() {
        let mut drafter = Drafter::new();
        let known = tokens(&[1, 2, 3]);
        drafter.look(&known);
        assert_eq!(drafter.guess(&known, 0), None);
        drafter.learn(&known, TokenId(4));
        assert_eq!(drafter.chances, FIRST_CHANCES);
    }
}
