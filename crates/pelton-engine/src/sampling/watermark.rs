//! A mark in a text's choice of words that statistics can find (Kirchenbauer et al. 2023).
//!
//! The token before decides which share `gamma` of the vocabulary is green; green tokens are made likelier by `delta`. Membership is a
//! hash of both tokens, so that no vocabulary has to be shuffled: one pass over the row. Who knows `gamma` counts the green tokens of a text
//! and finds more than chance would give.

use pelton_backend::TokenId;

/// How strongly a text is marked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watermark {
    /// Share of the vocabulary that is green, between 0 and 1.
    pub gamma: f32,
    /// What is added to the logit of a green token.
    pub delta: f32,
}

impl Watermark {
    /// Whether `token` is green after `previous`.
    pub fn is_green(&self, previous: TokenId, token: TokenId) -> bool {
        hash(key(previous), token.0) < self.threshold()
    }

    /// How many standard deviations more of `tokens` are green than chance gives; above 4 is a mark beyond reasonable doubt. The first token
    /// only counts as the one before the second; 0 for fewer than two.
    pub fn z_score(&self, tokens: &[TokenId]) -> f64 {
        let num_pairs = tokens.len().saturating_sub(1) as f64;
        if num_pairs == 0.0 {
            return 0.0;
        }
        let num_green = tokens.windows(2).filter(|pair| self.is_green(pair[0], pair[1])).count() as f64;
        let gamma = f64::from(self.gamma);
        (num_green - gamma * num_pairs) / (num_pairs * gamma * (1.0 - gamma)).sqrt()
    }

    /// Adds `delta` to green tokens. `row`: `[vocab]` logits of what follows `previous`.
    pub(super) fn add(&self, row: &mut [f32], previous: TokenId) {
        let (key, threshold) = (key(previous), self.threshold());
        for (token, logit) in row.iter_mut().enumerate() {
            *logit += if hash(key, token as u32) < threshold { self.delta } else { 0.0 };
        }
    }

    /// Hashes below are green.
    fn threshold(&self) -> u32 {
        (f64::from(self.gamma) * f64::from(u32::MAX)) as u32
    }
}

/// The factor is that of the paper's seed.
fn key(previous: TokenId) -> u32 {
    hash(0, previous.0.wrapping_mul(15_485_863))
}

/// A mixer of 32 bits (Ettinger's search of 2018, "lowbias32"); loops over it are compiled to vector instructions.
fn hash(key: u32, token: u32) -> u32 {
    let mut x = token ^ key;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_green_tokens_is_gamma_after_any_token() {
        for gamma in [0.1, 0.25, 0.5, 0.9] {
            let watermark = Watermark { gamma, delta: 1.0 };
            for previous in (0..50).chain([31_999, 151_935]) {
                let mut row = vec![0.0; 20_000];
                watermark.add(&mut row, TokenId(previous));
                let share = row.iter().sum::<f32>() / row.len() as f32;
                assert!((share - gamma).abs() < 0.02, "{share} after {previous}");
                assert!(
                    (0..100)
                        .all(|token| watermark.is_green(TokenId(previous), TokenId(token))
                            == (row[token as usize] == 1.0))
                );
            }
        }
    }

    #[test]
    fn neighbours_have_lists_of_their_own() {
        let watermark = Watermark { gamma: 0.5, delta: 1.0 };
        for previous in 0..50 {
            let same = (0..4000).map(TokenId).filter(|&token| {
                watermark.is_green(TokenId(previous), token) == watermark.is_green(TokenId(previous + 1), token)
            });
            let same = same.count();
            assert!((1800..2200).contains(&same), "{same} of 4000 are the same after {previous} and the next");
        }
    }

    #[test]
    fn membership_is_the_same_for_ever() {
        let watermark = Watermark { gamma: 0.5, delta: 2.0 };
        let green: Vec<u32> = (0..24).filter(|&token| watermark.is_green(TokenId(7), TokenId(token))).collect();
        assert_eq!(green, [0, 3, 6, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19], "texts that were marked stay marked");
    }
}
