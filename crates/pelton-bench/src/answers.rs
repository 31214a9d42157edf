//! Counts the tokens of answers by a tokenizer, after a run: for servers that do not count, and to check those that do.
//!
//! The text of an answer is encoded once, as a whole. A token belongs to the arrival that completed its text, so the counts of the
//! arrivals sum to that of the answer, whatever the chunks cut through.

use std::cell::RefCell;
use std::collections::HashMap;

use pelton_text::TextModel;

use crate::recorder::{CountedBy, Row, RowBuilder, Words};

/// Most memory that kept texts take in one run.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// The texts of a run's answers, until they are counted.
pub struct Answers {
    tokenizer: TextModel,
    kept: RefCell<Kept>,
    max_kept_bytes: usize,
}

#[derive(Default)]
struct Kept {
    /// By index and turn of the row.
    words: HashMap<(u64, u32), Words>,
    bytes: usize,
    /// Answers without a count of the server whose text there was no room for.
    lost: u64,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("kept", &self.kept.borrow().words.len()).finish_non_exhaustive()
    }
}

impl Answers {
    /// Counts with this tokenizer.
    pub fn new(tokenizer: TextModel) -> Self {
        Self { tokenizer, kept: RefCell::default(), max_kept_bytes: MAX_KEPT_BYTES }
    }

    /// Takes the text of an answer that is over.
    pub fn keep(&self, row: &RowBuilder) {
        let Some(words) = row.words() else { return };
        let row = row.row();
        let mut kept = self.kept.borrow_mut();
        if kept.bytes + words.bytes() > self.max_kept_bytes {
            kept.lost += u64::from(row.counted_by == CountedBy::Chunks);
            return;
        }
        kept.bytes += words.bytes();
        kept.words.insert((row.index, row.turn), words.clone());
    }

    /// Counts what was kept, and forgets it. Rows that the server counted keep its count. Returns what the reader should know.
    pub fn settle(&self, rows: &mut [Row]) -> Vec<String> {
        let mut kept = self.kept.take();
        let (mut compared, mut differing, mut most) = (0u64, 0u64, 0);
        for row in rows {
            let Some(words) = kept.words.remove(&(row.index, row.turn)) else { continue };
            let Some(counts) = self.count(&words) else { continue };
            let total: u32 = counts.iter().sum();
            if row.counted_by == CountedBy::Chunks {
                row.arrivals.iter_mut().zip(counts).for_each(|(arrival, tokens)| arrival.tokens = tokens);
                row.output_tokens = total;
                row.counted_by = CountedBy::Tokenizer;
            } else if row.failure.is_none() {
                compared += 1;
                differing += u64::from(total != row.output_tokens);
                most = most.max(total.abs_diff(row.output_tokens));
            }
        }
        let mut notes = Vec::new();
        if differing > 0 {
            notes.push(format!(
                "the tokenizer counts other numbers of tokens than the server in {differing} of {compared} answers, by up to {most}; the \
                 server's are used (it may count the end of text, or text it does not send)"
            ));
        }
        if kept.lost > 0 {
            let (lost, mib) = (kept.lost, self.max_kept_bytes >> 20);
            notes.push(format!(
                "the texts of {lost} answers were not kept for the tokenizer: more than {mib} MiB of them"
            ));
        }
        notes
    }

    /// Tokens of each arrival. `None` if the tokenizer cannot encode the text.
    fn count(&self, words: &Words) -> Option<Vec<u32>> {
        let tokens = self.tokenizer.encode_with_offsets(&words.text, false).ok()?;
        let mut counts = vec![0u32; words.ends.len()];
        // Offsets count characters, ends count bytes: both only ever grow, so one walk over the text joins them.
        let mut bytes = words.text.char_indices().map(|(at, _)| at).chain([words.text.len()]).enumerate();
        let (mut char_at, mut byte_at) = bytes.next()?;
        let mut arrival = 0;
        for token in tokens {
            while char_at < token.stop {
                let Some(next) = bytes.next() else { break };
                (char_at, byte_at) = next;
            }
            while arrival + 1 < counts.len() && words.ends[arrival] < byte_at {
                arrival += 1;
            }
            *counts.get_mut(arrival)? += 1;
        }
        Some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// A row whose events are these texts, one per millisecond.
    fn row(index: u64, texts: &[&str], server: Option<u32>) -> RowBuilder {
        let start = Instant::now();
        let mut row = RowBuilder::new(start, start).numbered(index, 0, 0).keeping_text();
        for (n, text) in texts.iter().enumerate() {
            row.piece(text);
            row.arrived(start + Duration::from_millis(n as u64), 1, 1);
        }
        match server {
            Some(tokens) => row.count(tokens, CountedBy::Server),
            None => row.count(row.tokens_so_far(), CountedBy::Chunks),
        }
        row
    }

    fn settled(answers: &Answers, builders: Vec<RowBuilder>) -> (Vec<Row>, Vec<String>) {
        builders.iter().for_each(|row| answers.keep(row));
        let mut rows: Vec<Row> = builders.into_iter().map(|row| row.finish(None, Instant::now())).collect();
        let notes = answers.settle(&mut rows);
        (rows, notes)
    }

    /// Under the tokenizer of bytes, a character of two bytes is two tokens.
    #[test]
    fn tokens_belong_to_the_arrival_that_completes_them() {
        let answers = Answers::new(TextModel::bytes());
        let (rows, notes) = settled(&answers, vec![row(3, &["ab", "é", "", "c\u{1F600}"], None)]);
        let tokens: Vec<u32> = rows[0].arrivals.iter().map(|arrival| arrival.tokens).collect();
        assert_eq!((tokens, rows[0].output_tokens), (vec![2, 2, 0, 5], 9));
        assert_eq!((rows[0].counted_by, notes), (CountedBy::Tokenizer, vec![]));
    }

    #[test]
    fn the_count_of_the_server_wins_and_differences_are_told() {
        let answers = Answers::new(TextModel::bytes());
        let (rows, notes) = settled(&answers, vec![row(0, &["abc"], Some(3)), row(1, &["abc"], Some(5))]);
        assert_eq!((rows[1].output_tokens, rows[1].counted_by), (5, CountedBy::Server));
        assert!(notes[0].contains("in 1 of 2 answers, by up to 2"), "{notes:?}");
    }

    #[test]
    fn texts_beyond_the_memory_are_counted_by_chunks() {
        let answers = Answers { max_kept_bytes: 100, ..Answers::new(TextModel::bytes()) };
        let long = "x".repeat(60);
        let (rows, notes) = settled(&answers, vec![row(0, &[&long], None), row(1, &[&long], None)]);
        assert_eq!(rows.iter().map(|row| row.output_tokens).collect::<Vec<_>>(), [60, 1]);
        assert!(notes[0].contains("the texts of 1 answers were not kept"), "{notes:?}");
        // The next run has its room again.
        assert_eq!(settled(&answers, vec![row(0, &[&long], None)]).0[0].output_tokens, 60);
    }
}
