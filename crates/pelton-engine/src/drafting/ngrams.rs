//! Where the last tokens of a sequence stood before: an index that grows with the sequence.

use std::ops::RangeInclusive;

use pelton_backend::TokenId;

/// Tokens that have to agree. One token alone agrees too often with what means nothing; beyond four the index would only confirm
/// what it found.
pub(super) const MATCH_TOKENS: RangeInclusive<u32> = 2..=4;

/// Entries for each token: one for each length of a match.
const ENTRIES_PER_TOKEN: usize = 3;

/// Slots looked at for one entry. With half of the slots empty more are hardly ever needed, unless somebody chose tokens that
/// collide: then entries are lost, and nothing else.
const MAX_PROBES: usize = 64;

/// Tokens indexed in one call: a long prompt is indexed over a few steps, about a tenth of a millisecond each.
const MAX_INDEXED: usize = 4096;

/// A place that reads like the end of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Position of the token that followed there.
    pub(super) next: u32,
    /// Tokens that agree, one of [`MATCH_TOKENS`].
    pub(super) num_tokens: u32,
}

/// For every run of two, three and four tokens, the position that followed its last occurrence.
///
/// Eight slots of four bytes for each token at most, once grown: 256 KiB for 8192 tokens.
#[derive(Debug, Default)]
pub(super) struct NgramIndex {
    /// Open addressing; a power of two, at least half of them empty.
    slots: Vec<Slot>,
    num_entries: usize,
    /// Tokens whose runs before them are in.
    num_indexed: usize,
}

/// A [`Match`] in four bytes: `next * 4 + num_tokens - 2`. Zero is empty, since two tokens come before any `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot(u32);

impl Slot {
    const EMPTY: Self = Self(0);

    fn new(found: Match) -> Self {
        Self(found.next << 2 | (found.num_tokens - MATCH_TOKENS.start()))
    }

    fn get(self) -> Match {
        Match { next: self.0 >> 2, num_tokens: (self.0 & 3) + MATCH_TOKENS.start() }
    }

    /// The tokens that stand for it.
    fn run(self, tokens: &[TokenId]) -> &[TokenId] {
        let Match { next, num_tokens } = self.get();
        &tokens[(next - num_tokens) as usize..next as usize]
    }
}

impl NgramIndex {
    /// Takes in what is new in `tokens`, the same sequence each time, and finds the last place before its end that reads like its
    /// end, for as many tokens as possible. `None` also while a long sequence is not yet taken in.
    pub(super) fn find(&mut self, tokens: &[TokenId]) -> Option<Match> {
        self.grow_with(tokens);
        if self.num_indexed < tokens.len() {
            return None;
        }
        MATCH_TOKENS.rev().find_map(|num_tokens| {
            let run = &tokens[tokens.len().checked_sub(num_tokens as usize)?..];
            let slot = self.slots[self.probe(tokens, run)?];
            (slot != Slot::EMPTY).then(|| slot.get())
        })
    }

    fn grow_with(&mut self, tokens: &[TokenId]) {
        let end = tokens.len().min(self.num_indexed + MAX_INDEXED);
        self.reserve(tokens, (end - self.num_indexed) * ENTRIES_PER_TOKEN);
        for next in self.num_indexed..end {
            for num_tokens in MATCH_TOKENS.filter(|&num_tokens| num_tokens as usize <= next) {
                self.insert(tokens, Slot::new(Match { next: next as u32, num_tokens }));
            }
        }
        self.num_indexed = end;
    }

    /// Doubles the slots until `more` entries leave half of them empty.
    fn reserve(&mut self, tokens: &[TokenId], more: usize) {
        let wanted = ((self.num_entries + more) * 2).next_power_of_two();
        if wanted <= self.slots.len() {
            return;
        }
        let before = std::mem::replace(&mut self.slots, vec![Slot::EMPTY; wanted]);
        self.num_entries = 0;
        for slot in before.into_iter().filter(|&slot| slot != Slot::EMPTY) {
            self.insert(tokens, slot);
        }
    }

    /// What was there for the same run goes.
    fn insert(&mut self, tokens: &[TokenId], slot: Slot) {
        if let Some(at) = self.probe(tokens, slot.run(tokens)) {
            self.num_entries += usize::from(self.slots[at] == Slot::EMPTY);
            self.slots[at] = slot;
        }
    }

    /// The slot of `run`, or the empty one that would be its.
    fn probe(&self, tokens: &[TokenId], run: &[TokenId]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let first = hash(run);
        (first..first + MAX_PROBES)
            .map(|at| at & mask)
            .find(|&at| self.slots[at] == Slot::EMPTY || self.slots[at].run(tokens) == run)
    }
}

/// Multiplies and rotates, as rustc's own hash does; the upper half is the better one.
fn hash(run: &[TokenId]) -> usize {
    let mix =
        |hash: u64, token: &TokenId| (hash.rotate_left(5) ^ u64::from(token.0)).wrapping_mul(0x517c_c1b7_2722_0a95);
    (run.iter().fold(run.len() as u64, mix) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(tokens: &[TokenId]) -> Option<Match> {
        MATCH_TOKENS.rev().find_map(|num_tokens| {
            let length = num_tokens as usize;
            let end = &tokens[tokens.len().checked_sub(length)?..];
            let next = (length..tokens.len()).rev().find(|&next| &tokens[next - length..next] == end)?;
            Some(Match { next: next as u32, num_tokens })
        })
    }

    #[test]
    fn the_longest_match_wins_and_of_equals_the_last() {
        let tokens = |ids: &[u32]| -> Vec<TokenId> { ids.iter().copied().map(TokenId).collect() };
        let find = |ids: &[u32]| NgramIndex::default().find(&tokens(ids));
        assert_eq!(find(&[1, 2, 3, 9, 2, 3, 8, 1, 2, 3]), Some(Match { next: 3, num_tokens: 3 }));
        assert_eq!(find(&[2, 3, 9, 2, 3, 8, 2, 3]), Some(Match { next: 5, num_tokens: 2 }));
        assert_eq!(find(&[7, 7, 7]), Some(Match { next: 2, num_tokens: 2 }));
        assert_eq!(find(&[1, 2, 3, 4, 3]), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn a_long_sequence_is_taken_in_piece_by_piece() {
        let mut index = NgramIndex::default();
        let tokens: Vec<TokenId> = (0..10_000).map(|at| TokenId(at % 6000)).collect();
        assert_eq!((index.find(&tokens), index.find(&tokens)), (None, None));
        assert_eq!(index.find(&tokens), Some(Match { next: 4000, num_tokens: 4 }));
        assert!(index.slots.len() <= 65_536, "at most half as many again as needed");
    }

    #[test]
    fn colliding_runs_cost_a_bounded_time() {
        // All runs of two in the first 64 slots of those there are.
        let mut index = NgramIndex { slots: vec![Slot::EMPTY; 1 << 16], ..NgramIndex::default() };
        let mut tokens = Vec::new();
        let mut candidates = (0..u32::MAX).map(TokenId);
        while tokens.len() < 200 {
            let last = tokens.last().copied().unwrap_or(TokenId(0));
            tokens.extend(candidates.find(|&next| hash(&[last, next]) & 0xFFFF < 2));
        }
        index.find(&tokens);
        assert!(index.num_entries < 3 * 200 - 100, "some did not find a place in time: {}", index.num_entries);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn finds_what_a_scan_finds_however_the_sequence_grew(
            ids in prop::collection::vec(0u32..5, 0..300),
            pieces in prop::collection::vec(1usize..40, 1..8),
        ) {
            let tokens: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
            let mut index = NgramIndex::default();
            let (mut known, mut pieces) = (0, pieces.into_iter().cycle());
            while known < tokens.len() {
                known = (known + pieces.next().unwrap_or(1)).min(tokens.len());
                prop_assert_eq!(index.find(&tokens[..known]), naive(&tokens[..known]));
            }
        }
    }
}
