//! Synthetic prompts: seeded words, an exact number of tokens, distinct from the first word on.
//!
//! Words are picked whose token counts add: a text of them has as many tokens as its words have each, whatever their order. That is
//! established once by asking the tokenizer ([`Words::calibrate`]); composing a prompt then needs no tokenizer and costs microseconds.

use rand_pcg::Pcg64Mcg;

use crate::BenchError;
use crate::workload::count::Count;
use crate::workload::draw::{Purpose, below, random};

/// Words to begin with; which of them are used depends on the tokenizer.
const CANDIDATES: &str = include_str!("words.txt");

/// The word between which others are measured.
const ANCHOR: &str = "the";

/// Random texts that must have the expected number of tokens, one after another, before the words are trusted.
const CHECKS: u32 = 8;

/// Words of each such text.
const CHECK_WORDS: usize = 64;

/// Most texts that are tried. Each failure removes two words.
const MAX_CHECKS: u32 = 200;

/// Fewer words than this do not make prompts that differ.
const MIN_WORDS: usize = 8;

/// A word and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    text: &'static str,
    /// Tokens of the word alone, special tokens of the text included.
    first: u32,
    /// Tokens that it adds behind another word.
    more: u32,
}

/// Words whose token counts add, under one tokenizer.
#[derive(Clone, Debug)]
pub struct Words {
    words: Vec<Word>,
    /// Tokens that the server adds to what was counted, such as a chat template; negative if it leaves out special tokens.
    overhead: i64,
}

impl Words {
    /// Measures the candidate words and keeps those that add. About two questions per word.
    ///
    /// Errors if the counter fails, or if too few words add.
    pub async fn calibrate(counter: &mut impl Count) -> Result<Self, BenchError> {
        let anchors = counter.count(&format!("{ANCHOR} {ANCHOR}")).await?;
        let mut words = Vec::new();
        for text in CANDIDATES.split_whitespace() {
            let first = counter.count(text).await? as u32;
            let between = counter.count(&format!("{ANCHOR} {text} {ANCHOR}")).await?;
            let more = between.saturating_sub(anchors) as u32;
            // What adds nothing was swallowed by its neighbours.
            if first > 0 && more > 0 {
                words.push(Word { text, first, more });
            }
        }
        let mut random = fastrand::Rng::with_seed(0);
        let mut passed = 0;
        for _ in 0..MAX_CHECKS {
            if words.len() < MIN_WORDS || passed == CHECKS {
                break;
            }
            let text: Vec<usize> = (0..CHECK_WORDS).map(|_| random.usize(..words.len())).collect();
            match find_misfit(counter, &words, &text).await? {
                None => passed += 1,
                Some((left, right)) => {
                    passed = 0;
                    words.swap_remove(left.max(right));
                    if left != right {
                        words.swap_remove(left.min(right));
                    }
                }
            }
        }
        if words.len() < MIN_WORDS || passed < CHECKS {
            return Err(BenchError::Prompts(format!(
                "this tokenizer leaves {} words whose tokens add, at least {MIN_WORDS} are needed",
                words.len()
            )));
        }
        Ok(Self { words, overhead: 0 })
    }

    /// One token per word: a guess for servers that cannot be asked.
    pub fn guessed() -> Self {
        Self {
            words: CANDIDATES.split_whitespace().map(|text| Word { text, first: 1, more: 1 }).collect(),
            overhead: 0,
        }
    }

    /// Learns what the server adds: it reports `reported` tokens for a prompt that was counted as `counted`.
    pub fn learn_overhead(&mut self, counted: u32, reported: u32) {
        self.overhead = i64::from(reported) - i64::from(counted);
    }

    /// Tokens that the server adds to every prompt.
    pub fn overhead(&self) -> i64 {
        self.overhead
    }

    /// A short text and its number of tokens, to learn the overhead from.
    pub fn sample(&self) -> (String, u32) {
        let picked = self.words.iter().cycle().take(16);
        let tokens = self.words[0].first + picked.clone().skip(1).map(|word| word.more).sum::<u32>();
        (picked.map(|word| word.text).collect::<Vec<_>>().join(" "), tokens)
    }
}

/// Two neighbours in `text` (positions in `words`) that do not cost what they should, found by halving; `None` if the sum is right.
async fn find_misfit(
    counter: &mut impl Count,
    words: &[Word],
    text: &[usize],
) -> Result<Option<(usize, usize)>, BenchError> {
    let mut part = text;
    if fits(counter, words, part).await? {
        return Ok(None);
    }
    while part.len() > 2 {
        // The halves share a word, so that every pair of neighbours is in one of them.
        let middle = part.len() / 2;
        part = if fits(counter, words, &part[..=middle]).await? { &part[middle..] } else { &part[..=middle] };
    }
    Ok(Some((part[0], part[part.len() - 1])))
}

async fn fits(counter: &mut impl Count, words: &[Word], text: &[usize]) -> Result<bool, BenchError> {
    let expected = words[text[0]].first + text[1..].iter().map(|&at| words[at].more).sum::<u32>();
    let joined = text.iter().map(|&at| words[at].text).collect::<Vec<_>>().join(" ");
    Ok(counter.count(&joined).await? == expected as usize)
}

/// Composes texts of a run.
#[derive(Clone, Debug)]
pub struct Prompts {
    words: Vec<Word>,
    seed: u64,
    overhead: i64,
    /// `begins[n]`: a text of n tokens can be made of words.
    begins: Vec<bool>,
    /// `continues[n]`: n more tokens can be made of words.
    continues: Vec<bool>,
}

/// A text being composed.
#[derive(Debug, Default)]
struct Line {
    text: String,
    /// Whether the next word is the first of a prompt.
    is_new: bool,
}

/// The beginning that a prompt has in common with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Which text it is.
    pub group: u64,
    /// Tokens of it, as the server counts them.
    pub tokens: u32,
}

/// Words whose text is a pure function of their place.
#[derive(Debug)]
struct Picks {
    random: Pcg64Mcg,
    /// Places of the first words, in base `words.len()`; `None` when they are used up.
    digits: Option<u64>,
}

impl Prompts {
    /// Prepares texts of up to `max_tokens` tokens, overhead included.
    pub fn new(words: &Words, seed: u64, max_tokens: u32) -> Self {
        let size = (i64::from(max_tokens) - words.overhead).max(0) as usize + 1;
        let costs = |cost: fn(&Word) -> u32| {
            let mut costs: Vec<usize> = words.words.iter().map(|word| cost(word) as usize).collect();
            costs.sort_unstable();
            costs.dedup();
            costs
        };
        let mut continues = vec![false; size];
        continues[0] = true;
        let more = costs(|word| word.more);
        for n in 1..size {
            continues[n] = more.iter().take_while(|&&cost| cost <= n).any(|&cost| continues[n - cost]);
        }
        let mut begins = vec![false; size];
        for word in &words.words {
            let costs = word.first as usize;
            (costs..size).for_each(|n| begins[n] |= continues[n - costs]);
        }
        let mut shuffled = words.words.clone();
        // In an order that depends on the seed, so that two seeds share no first words by rule.
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        Self { words: shuffled, seed, overhead: words.overhead, begins, continues }
    }

    /// The length nearest to `tokens` (as the server counts) that a prompt can have; `None` if there is none up to the maximum.
    pub fn possible(&self, tokens: u32) -> Option<u32> {
        let wished = i64::from(tokens) - self.overhead;
        let can = |n: i64| usize::try_from(n).is_ok_and(|n| self.begins.get(n).is_some_and(|&can| can));
        let steps = (0..self.begins.len() as i64).flat_map(|step| [wished - step, wished + step]);
        let found = steps.into_iter().find(|&n| can(n))?;
        u32::try_from(found + self.overhead).ok()
    }

    /// Prompt number `index` of `tokens` tokens, which must be [`possible`](Self::possible), and how many of them it really shares: as
    /// many as wished, or the next smaller number that words can make. Equal for equal seeds.
    ///
    /// Its first words after the shared ones are the digits of `index` in base `words.len()`: as long as that many digits fit, no two
    /// prompts are equal, and neighbours differ in the first. The rest is random.
    pub fn prompt(&self, index: u64, tokens: u32, shared: Option<Shared>) -> (String, u32) {
        let mut line = Line { text: String::with_capacity(tokens as usize * 6), is_new: true };
        let mut left = self.own(tokens);
        let mut prefix = 0;
        if let Some(Shared { group, tokens }) = shared {
            let wished = self.own(tokens).min(left);
            prefix = (1..=wished)
                .rev()
                .find(|&n| self.begins[n as usize] && self.continues[(left - n) as usize])
                .unwrap_or(0);
            let picks = Picks { random: random(self.seed, Purpose::Prefix, group, 0), digits: None };
            self.extend(&mut line, prefix, picks);
            left -= prefix;
        }
        self.extend(
            &mut line,
            left,
            Picks { random: random(self.seed, Purpose::Words, index, 0), digits: Some(index) },
        );
        let shared = if prefix == 0 { 0 } else { (i64::from(prefix) + self.overhead).max(0) as u32 };
        (line.text, shared)
    }

    /// A further message of conversation `index`. Its length is the nearest below `tokens` that words can make.
    pub fn message(&self, index: u64, turn: u32, tokens: u32) -> String {
        let mut line = Line::default();
        let tokens = self.down(tokens);
        self.extend(&mut line, tokens, Picks { random: random(self.seed, Purpose::Words, index, turn), digits: None });
        line.text
    }

    /// A prompt of `tokens` tokens made of blocks: block `n` is `block_tokens` long, the same text wherever `ids[n]` is the same. What
    /// goes beyond the ids is the prompt's own. The last block ends where the prompt does.
    pub fn blocks(&self, index: u64, tokens: u32, ids: &[u64], block_tokens: u32) -> String {
        let mut line = Line { text: String::with_capacity(tokens as usize * 6), is_new: true };
        let total = self.own(tokens);
        let mut done = 0;
        for (n, &id) in ids.iter().enumerate() {
            // Where the server's count of the prompt reaches the end of the block.
            let end = self.own(block_tokens.saturating_mul(n as u32 + 1).min(tokens)).min(total);
            let room = |n: u32| if done == 0 { self.begins[n as usize] } else { self.continues[n as usize] };
            let Some(length) = (1..=end.saturating_sub(done)).rev().find(|&n| room(n)) else { continue };
            self.extend(&mut line, length, Picks { random: random(self.seed, Purpose::Block, id, 0), digits: None });
            done += length;
        }
        let rest = self.down(total - done);
        let picks = Picks { random: random(self.seed, Purpose::Words, index, 0), digits: Some(index) };
        self.extend(&mut line, if done == 0 { total } else { rest }, picks);
        line.text
    }

    /// Tokens to make for so many as the server counts, within what was prepared.
    fn own(&self, tokens: u32) -> u32 {
        (i64::from(tokens) - self.overhead).clamp(0, self.begins.len() as i64 - 1) as u32
    }

    /// The most tokens, at most `tokens`, that words can add.
    fn down(&self, tokens: u32) -> u32 {
        let top = (tokens as usize).min(self.continues.len() - 1);
        (0..=top).rev().find(|&n| self.continues[n]).unwrap_or(0) as u32
    }

    /// Appends words of exactly `tokens` tokens, which must be possible: the picked word each time, or the next one in order with which
    /// the length can still be met. There always is one: each leaves a remainder that completes.
    fn extend(&self, line: &mut Line, tokens: u32, mut picks: Picks) {
        let mut left = tokens;
        while left > 0 {
            let cost = |word: &Word| if line.is_new { word.first } else { word.more };
            let fits = |word: &&Word| left.checked_sub(cost(word)).is_some_and(|rest| self.continues[rest as usize]);
            let wanted = picks.next(self.words.len());
            let Some(&word) = self.words.iter().cycle().skip(wanted).take(self.words.len()).find(fits) else { break };
            left -= cost(&word);
            if !line.text.is_empty() {
                line.text.push(' ');
            }
            line.text.push_str(word.text);
            line.is_new = false;
        }
    }
}

impl Picks {
    fn next(&mut self, base: usize) -> usize {
        match self.digits.take() {
            Some(digits) => {
                let rest = digits / base as u64;
                self.digits = (rest > 0).then_some(rest);
                (digits % base as u64) as usize
            }
            None => below(&mut self.random, base as u64) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// One token per byte, and one at the beginning.
    struct Bytes;
    impl Count for Bytes {
        async fn count(&mut self, text: &str) -> Result<usize, BenchError> {
            Ok(text.len() + 1)
        }
    }

    /// One token per word, but `x` joins the word before it, and `if else` is one token.
    struct Joining;
    impl Count for Joining {
        async fn count(&mut self, text: &str) -> Result<usize, BenchError> {
            let words: Vec<&str> = text.split(' ').collect();
            let joined = words.windows(2).filter(|pair| pair[1] == "x" || pair == &["if", "else"]).count();
            Ok(words.len() - joined)
        }
    }

    fn prompt(words: &Words, index: u64, tokens: u32) -> String {
        let prompts = Prompts::new(words, 5, tokens);
        assert_eq!(prompts.possible(tokens), Some(tokens));
        prompts.prompt(index, tokens, None).0
    }

    #[tokio::test(flavor = "current_thread")]
    async fn prompts_have_exactly_the_wished_tokens() {
        let bytes = Words::calibrate(&mut Bytes).await.expect("bytes add");
        let joining = Words::calibrate(&mut Joining).await.expect("most words add");
        for tokens in [2, 3, 4, 5, 7, 16, 33, 512, 4097] {
            for index in [0, 1, 2, 400, 99_999] {
                assert_eq!(Bytes.count(&prompt(&bytes, index, tokens)).await.expect("counts"), tokens as usize);
                assert_eq!(Joining.count(&prompt(&joining, index, tokens)).await.expect("counts"), tokens as usize);
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn words_that_join_their_neighbours_are_left_out() {
        let words = Words::calibrate(&mut Joining).await.expect("most words add");
        assert!(words.words.len() > 200 && words.words.iter().all(|word| word.text != "x"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_pair_that_joins_is_found() {
        let words = Words::guessed().words;
        let at = |text| words.iter().position(|word| word.text == text).expect("in the list");
        let mut text: Vec<usize> = (0..20).map(|n| at("a") - n).collect();
        assert_eq!(find_misfit(&mut Joining, &words, &text).await.expect("counts"), None);
        text.splice(13..13, [at("if"), at("else")]);
        assert_eq!(find_misfit(&mut Joining, &words, &text).await.expect("counts"), Some((at("if"), at("else"))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_overhead_of_the_server_is_part_of_the_wished_tokens() {
        let mut words = Words::calibrate(&mut Bytes).await.expect("bytes add");
        let (text, counted) = words.sample();
        assert_eq!(text.len() + 1, counted as usize);
        words.learn_overhead(counted, counted + 20);
        assert_eq!(prompt(&words, 3, 100).len() + 1 + 20, 100);
        assert_eq!(Prompts::new(&words, 5, 19).possible(19), None, "shorter than the template");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn prompts_are_exact_under_a_real_tokenizer() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        for path in [path.join("tokenizer.json"), path] {
            let mut counter = crate::workload::count::Local::load(&path).expect("the demo model has a tokenizer");
            let words = Words::calibrate(&mut counter).await.expect("many words add");
            for tokens in [1, 2, 17, 512] {
                for index in 0..50 {
                    let prompt = prompt(&words, index, tokens);
                    assert_eq!(counter.count(&prompt).await.expect("counts"), tokens as usize, "{prompt:?}");
                }
            }
        }
    }

    #[test]
    fn prompts_differ_from_the_first_word_on() {
        let prompts = Prompts::new(&Words::guessed(), 5, 32);
        let all: HashSet<String> = (0..20_000).map(|n| prompts.prompt(n, 32, None).0).collect();
        assert_eq!(all.len(), 20_000);
        let first: HashSet<String> =
            (0..200).map(|n| prompts.prompt(n, 32, None).0.split(' ').next().expect("a word").to_owned()).collect();
        assert_eq!(first.len(), 200);
    }

    #[test]
    fn a_shared_prefix_is_shared_and_no_more() {
        let prompts = Prompts::new(&Words::guessed(), 5, 40);
        let split = |n, group, length| {
            let (text, shared) = prompts.prompt(n, length, Some(Shared { group, tokens: 20 }));
            assert_eq!(shared, 20);
            text.split(' ').map(str::to_owned).collect::<Vec<_>>()
        };
        for n in 1..50 {
            let (one, other) = (split(0, 3, 32), split(n, 3, 40));
            assert_eq!((one.len(), other.len()), (32, 40));
            assert_eq!(one[..20], other[..20]);
            assert_ne!(one[20], other[20]);
            assert_ne!(one[..20], split(n, 4, 32)[..20]);
        }
    }

    #[test]
    fn blocks_of_equal_ids_are_equal() {
        let prompts = Prompts::new(&Words::guessed(), 5, 100);
        let split = |index, tokens, ids: &[u64]| {
            let text = prompts.blocks(index, tokens, ids, 16);
            text.split(' ').map(str::to_owned).collect::<Vec<_>>()
        };
        let (one, other) = (split(0, 40, &[1, 2, 3]), split(1, 60, &[1, 2, 4, 5]));
        assert_eq!((one.len(), other.len()), (40, 60));
        assert_eq!(one[..32], other[..32]);
        assert_ne!(one[32..40], other[32..40]);
        assert_eq!(split(0, 40, &[1, 2, 3]), split(9, 40, &[1, 2, 3]), "ids say all");
        // Ids that say too little or too much.
        assert_eq!((split(0, 50, &[1]).len(), split(0, 10, &[1, 2, 3]).len()), (50, 10));
        assert_ne!(split(0, 50, &[1])[16..], split(1, 50, &[1])[16..]);
    }

    #[test]
    fn equal_seeds_give_equal_prompts() {
        let prompt = |seed| Prompts::new(&Words::guessed(), seed, 32).prompt(9, 32, None).0;
        assert_eq!(prompt(1), prompt(1));
        assert_ne!(prompt(1), prompt(2));
    }
}
