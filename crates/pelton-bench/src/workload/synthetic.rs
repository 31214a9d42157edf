//! Synthetic prompts: seeded words, an exact number of tokens, distinct from the first word on.
//!
//! Words are picked whose token counts add: a text of them has as many tokens as its words have each, whatever their order. That is
//! established once by asking the tokenizer ([`Words::calibrate`]); composing a prompt then needs no tokenizer and costs microseconds.

use crate::BenchError;
use crate::plan::{PromptMix, WorkloadPlan};
use crate::workload::count::Count;

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

/// Composes the prompts of a run.
#[derive(Clone, Debug)]
pub struct Prompts {
    words: Vec<Word>,
    mix: PromptMix,
    seed: u64,
    /// Tokens to make, without the server's overhead.
    tokens: u32,
    /// Tokens as the server counts.
    wished: u32,
    /// `completes[n]`: n more tokens can be made of words.
    completes: Vec<bool>,
    /// The beginning that all prompts share.
    shared: Vec<Word>,
}

impl Prompts {
    /// Prepares prompts for a workload. Errors if its length cannot be made of the words.
    pub fn new(words: &Words, workload: &WorkloadPlan) -> Result<Self, BenchError> {
        let wished = workload.input_tokens;
        let impossible = |why: &str| BenchError::Prompts(format!("prompts of {wished} tokens cannot be made: {why}"));
        let tokens = u32::try_from(i64::from(wished) - words.overhead)
            .map_err(|_| impossible(&format!("the server adds {} tokens to each", words.overhead)))?;
        let mut completes = vec![false; tokens as usize + 1];
        completes[0] = true;
        let mut costs: Vec<usize> = words.words.iter().map(|word| word.more as usize).collect();
        costs.sort_unstable();
        costs.dedup();
        for n in 1..completes.len() {
            completes[n] = costs.iter().take_while(|&&cost| cost <= n).any(|&cost| completes[n - cost]);
        }
        // Only words that can begin such a prompt: it must be possible to complete it.
        let can_begin = |word: &Word| tokens.checked_sub(word.first).is_some_and(|rest| completes[rest as usize]);
        if !words.words.iter().any(can_begin) {
            return Err(impossible("no sequence of words has that many"));
        }
        let mut prompts = Self {
            words: words.words.clone(),
            mix: workload.prompts,
            seed: workload.seed,
            tokens,
            wished,
            completes,
            shared: Vec::new(),
        };
        // In an order that depends on the seed, so that two seeds share no first words by rule.
        fastrand::Rng::with_seed(workload.seed).shuffle(&mut prompts.words);
        if let PromptMix::SharedPrefix(shared) = workload.prompts {
            let shared = (i64::from(shared) - words.overhead).max(0) as u32;
            prompts.shared = prompts.compose(0, shared);
        }
        Ok(prompts)
    }

    /// Tokens of each prompt as the server counts them.
    pub fn wished_tokens(&self) -> u32 {
        self.wished
    }

    /// Prompt number `index` of this run; equal for equal seeds.
    pub fn prompt(&self, index: u64) -> String {
        let index = if self.mix == PromptMix::Same { 0 } else { index };
        let words = self.compose(index, self.tokens);
        let mut text = String::with_capacity(words.len() * 6);
        for (n, word) in words.iter().enumerate() {
            if n > 0 {
                text.push(' ');
            }
            text.push_str(word.text);
        }
        text
    }

    /// Words of exactly `self.tokens` tokens, or of the first at most `tokens` of them.
    ///
    /// The first words after the shared ones are the digits of `index` in base `words.len()`: as long as that many digits fit, no two
    /// prompts are equal, and neighbours differ in the first. The rest is random.
    fn compose(&self, index: u64, tokens: u32) -> Vec<Word> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut words = self.shared.clone();
        let base = self.words.len() as u64;
        let mut digits = index;
        let mut left = self.tokens;
        for (n, word) in words.iter().enumerate() {
            left -= if n == 0 { word.first } else { word.more };
        }
        while left > 0 {
            let wanted = if digits > 0 || words.len() == self.shared.len() {
                let digit = digits % base;
                digits /= base;
                digit as usize
            } else {
                random.usize(..self.words.len())
            };
            let is_first = words.is_empty();
            let cost = |word: &Word| if is_first { word.first } else { word.more };
            // The wanted word, or the next one in order with which the length can still be met. There always is one: the first word
            // leaves a remainder that completes, and so does each after it.
            let fits = |word: &&Word| left.checked_sub(cost(word)).is_some_and(|rest| self.completes[rest as usize]);
            let Some(&word) = self.words.iter().cycle().skip(wanted).take(self.words.len()).find(fits) else { break };
            if self.tokens - left + cost(&word) > tokens {
                break;
            }
            left -= cost(&word);
            words.push(word);
        }
        words
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

    fn workload(input_tokens: u32, prompts: PromptMix) -> WorkloadPlan {
        WorkloadPlan { input_tokens, output_tokens: 1, prompts, seed: 5, tokenizer: None }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn prompts_have_exactly_the_wished_tokens() {
        let bytes = Words::calibrate(&mut Bytes).await.expect("bytes add");
        let joining = Words::calibrate(&mut Joining).await.expect("most words add");
        for tokens in [2, 3, 4, 5, 7, 16, 33, 512, 4097] {
            for index in [0, 1, 2, 400, 99_999] {
                let prompt = |words| {
                    Prompts::new(words, &workload(tokens, PromptMix::Distinct)).expect("possible").prompt(index)
                };
                assert_eq!(Bytes.count(&prompt(&bytes)).await.expect("counts"), tokens as usize);
                assert_eq!(Joining.count(&prompt(&joining)).await.expect("counts"), tokens as usize);
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
        let prompt = Prompts::new(&words, &workload(100, PromptMix::Distinct)).expect("possible").prompt(3);
        assert_eq!(prompt.len() + 1 + 20, 100);
        let error = Prompts::new(&words, &workload(19, PromptMix::Distinct)).expect_err("shorter than the template");
        assert!(error.to_string().contains("19 tokens"), "{error}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn prompts_are_exact_under_a_real_tokenizer() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        for path in [path.join("tokenizer.json"), path] {
            let mut counter = crate::workload::count::Local::load(&path).expect("the demo model has a tokenizer");
            let words = Words::calibrate(&mut counter).await.expect("many words add");
            for tokens in [1, 2, 17, 512] {
                let prompts = Prompts::new(&words, &workload(tokens, PromptMix::Distinct)).expect("possible");
                for index in 0..50 {
                    let count = counter.count(&prompts.prompt(index)).await.expect("counts");
                    assert_eq!(count, tokens as usize, "{:?}", prompts.prompt(index));
                }
            }
        }
    }

    #[test]
    fn prompts_differ_from_the_first_word_on() {
        let prompts = Prompts::new(&Words::guessed(), &workload(32, PromptMix::Distinct)).expect("possible");
        let all: HashSet<String> = (0..20_000).map(|n| prompts.prompt(n)).collect();
        assert_eq!(all.len(), 20_000);
        let first: HashSet<String> =
            (0..200).map(|n| prompts.prompt(n).split(' ').next().expect("a word").to_owned()).collect();
        assert_eq!(first.len(), 200);
    }

    #[test]
    fn a_shared_prefix_is_shared_and_no_more() {
        let prompts = Prompts::new(&Words::guessed(), &workload(32, PromptMix::SharedPrefix(20))).expect("possible");
        let split = |n| prompts.prompt(n).split(' ').map(str::to_owned).collect::<Vec<_>>();
        for n in 1..50 {
            let (one, other) = (split(0), split(n));
            assert_eq!(one.len(), 32);
            assert_eq!(one[..20], other[..20]);
            assert_ne!(one[20], other[20]);
        }
    }

    #[test]
    fn the_same_prompt_is_the_same() {
        let prompts = Prompts::new(&Words::guessed(), &workload(32, PromptMix::Same)).expect("possible");
        assert_eq!(prompts.prompt(0), prompts.prompt(77));
    }

    #[test]
    fn equal_seeds_give_equal_prompts() {
        let prompt = |seed| {
            let plan = WorkloadPlan { seed, ..workload(32, PromptMix::Distinct) };
            Prompts::new(&Words::guessed(), &plan).expect("possible").prompt(9)
        };
        assert_eq!(prompt(1), prompt(1));
        assert_ne!(prompt(1), prompt(2));
    }
}
