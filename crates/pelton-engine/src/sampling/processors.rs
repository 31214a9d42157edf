//! What changes one row of logits before a token is picked, in order of application.

use pelton_backend::TokenId;

/// Adds each bias to its token's logit. Tokens are in the vocabulary: the handle checked.
pub(super) fn add_bias(row: &mut [f32], bias: &[(TokenId, f32)]) {
    for &(token, value) in bias {
        row[token.0 as usize] += value;
    }
}

/// Divides positive and multiplies negative logits of every token in `tokens` by `penalty`, once each (Keskar et al. 2019, CTRL).
///
/// `counts`: `[vocab]`, all zero before and after.
pub(super) fn penalize_repetition(
    row: &mut [f32],
    tokens: impl Iterator<Item = TokenId> + Clone,
    penalty: f32,
    counts: &mut [u32],
) {
    for TokenId(token) in tokens.clone() {
        let (logit, seen) = (&mut row[token as usize], &mut counts[token as usize]);
        if *seen == 0 {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *seen = 1;
        }
    }
    for TokenId(token) in tokens {
        counts[token as usize] = 0;
    }
}

/// Subtracts `frequency` for each occurrence in `generated`, and `presence` once for each token that occurs.
///
/// `counts`: `[vocab]`, all zero before and after.
pub(super) fn penalize_occurrence(
    row: &mut [f32],
    generated: &[TokenId],
    frequency: f32,
    presence: f32,
    counts: &mut [u32],
) {
    for TokenId(token) in generated {
        counts[*token as usize] += 1;
    }
    for TokenId(token) in generated {
        let count = std::mem::take(&mut counts[*token as usize]);
        if count > 0 {
            row[*token as usize] -= frequency * count as f32 + presence;
        }
    }
}

/// Makes `tokens` impossible; those outside the vocabulary are so already.
pub(super) fn mask(row: &mut [f32], tokens: &[TokenId]) {
    for TokenId(token) in tokens {
        if let Some(logit) = row.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn repetition_counts_once_and_pushes_towards_less_likely() {
        let mut row = [4.0, -4.0, 1.0, 0.0];
        let mut counts = [0; 4];
        penalize_repetition(&mut row, tokens(&[0, 1, 0, 3]).into_iter(), 2.0, &mut counts);
        assert_eq!(row, [2.0, -8.0, 1.0, 0.0]);
        assert_eq!(counts, [0; 4]);
    }

    #[test]
    fn frequency_counts_each_time_and_presence_once() {
        let mut row = [0.0; 3];
        let mut counts = [0; 3];
        penalize_occurrence(&mut row, &tokens(&[2, 0, 2, 2]), 0.5, 0.25, &mut counts);
        assert_eq!(row, [-0.75, 0.0, -1.75]);
        assert_eq!(counts, [0; 3]);
    }

    #[test]
    fn bias_adds_and_mask_excludes() {
        let mut row = [1.0, 2.0];
        add_bias(&mut row, &[(TokenId(0), 3.0), (TokenId(0), -1.0)]);
        mask(&mut row, &tokens(&[1, 900]));
        assert_eq!(row, [3.0, f32::NEG_INFINITY]);
    }
}
