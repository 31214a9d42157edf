//! Synthetic prompts: seeded words, an exact number of tokens, distinct from the first word on.
//!
//! Words are picked whose token counts add: a text of them has as many tokens as its words have each, whatever their order. That is
//! established once by asking the tokenizer ([`Words::calibrate`]); composing a prompt then needs no tokenizer and costs microseconds.

use rand_pcg::Pcg64Mcg;

use crate::BenchError;
use crate::watch::{Sight, Watch};
use crate::workload::count::{Count, Counter};
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

/// Words that are sent together to a server that only reports the tokens of whole prompts.
const GROUP: usize = 16;

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
    /// Tokens of the server for each token here; 1 unless nobody counts single words.
    scale: f64,
}

impl Words {
    /// What can be learned of the words from this counter. The server adds `overhead` to what it counts.
    pub async fn learn(counter: &mut Counter<'_>, overhead: i64, watch: &mut dyn Watch) -> Result<Self, BenchError> {
        match counter {
            Counter::Usage(usage) if usage.reports() => {
                watch.see(Sight::Preparing("finding words of one token by requests for one token"));
                Self::by_reports(&mut async |text: &str| usage.prompt(text).await).await
            }
            Counter::Usage(_) => Ok(Self::guessed()),
            counter => Ok(Self { overhead, ..Self::calibrate(counter, watch).await? }),
        }
    }

    /// Measures the candidate words and keeps those that add. About two questions per word.
    ///
    /// Errors if the counter fails, or if too few words add.
    pub async fn calibrate(counter: &mut impl Count, watch: &mut dyn Watch) -> Result<Self, BenchError> {
        let anchors = counter.count(&format!("{ANCHOR} {ANCHOR}")).await?;
        let mut words = Vec::new();
        let num_candidates = CANDIDATES.split_whitespace().count();
        for (n, text) in CANDIDATES.split_whitespace().enumerate() {
            if n.is_multiple_of(50) {
                watch.see(Sight::Preparing(&format!("counting the tokens of words: {n} of {num_candidates}")));
            }
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
        Ok(Self { words, overhead: 0, scale: 1.0 })
    }

    /// Learns from reports of whole prompts: `report` tells the tokens of a text as the server counts them, at the price of a request.
    ///
    /// To ask for each word would take hundreds. Instead [`GROUP`] words are sent together: where a group has the fewest tokens of all, each
    /// of its words is taken for one token, and a last request over words of several groups must agree. If it does not, all words are
    /// used, and their mean length. At most one request for each group, and two.
    pub async fn by_reports<F>(report: &mut F) -> Result<Self, BenchError>
    where
        F: AsyncFnMut(&str) -> Result<u32, BenchError>,
    {
        let all: Vec<&'static str> = CANDIDATES.split_whitespace().collect();
        let mut groups = Vec::new();
        for group in all.chunks_exact(GROUP) {
            groups.push((report(&group.join(" ")).await?, group));
        }
        let fewest = groups.iter().map(|group| group.0).min().unwrap_or(0);
        let overhead = i64::from(fewest) - GROUP as i64;
        let one = |text| Word { text, first: 1, more: 1 };
        let clean = groups.iter().filter(|group| group.0 == fewest).flat_map(|group| group.1).copied();
        let words: Vec<Word> = clean.map(one).collect();
        if words.len() >= 2 * GROUP && overhead >= 0 {
            let mut random = fastrand::Rng::with_seed(0);
            let text: Vec<&str> = (0..CHECK_WORDS).map(|_| words[random.usize(..words.len())].text).collect();
            if i64::from(report(&text.join(" ")).await?) == CHECK_WORDS as i64 + overhead {
                return Ok(Self { words, overhead, scale: 1.0 });
            }
        }
        // A line through one group and all words: what grows is the mean length, what stays is the overhead.
        let whole = f64::from(report(&all.join(" ")).await?);
        let mean = groups.iter().map(|group| f64::from(group.0)).sum::<f64>() / groups.len() as f64;
        let scale = ((whole - mean) / (all.len() - GROUP) as f64).max(0.1);
        let overhead = (mean - scale * GROUP as f64).round() as i64;
        Ok(Self { overhead, scale, ..Self::guessed() })
    }

    /// One token per word: a guess for servers that tell nothing.
    pub fn guessed() -> Self {
        Self {
            words: CANDIDATES.split_whitespace().map(|text| Word { text, first: 1, more: 1 }).collect(),
            overhead: 0,
            scale: 1.0,
        }
    }

    /// Tokens that the server adds to every prompt.
    pub fn overhead(&self) -> i64 {
        self.overhead
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
    scale: f64,
    /// Most tokens of a prompt that are made of words.
    longest: i64,
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
        // Prompts are made without the overhead, further messages of a conversation in full.
        let longest = made(max_tokens, words.overhead, words.scale);
        let size = longest.max(max_tokens.into()) as usize + 1;
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
        Self { words: shuffled, seed, overhead: words.overhead, scale: words.scale, longest, begins, continues }
    }

    /// The length nearest to `tokens` (as the server counts) that a prompt can have; `None` if there is none up to the maximum.
    pub fn possible(&self, tokens: u32) -> Option<u32> {
        let wished = made(tokens, self.overhead, self.scale);
        let can =
            |n: i64| n <= self.longest && usize::try_from(n).is_ok_and(|n| self.begins.get(n).is_some_and(|&can| can));
        let steps = (0..self.begins.len() as i64).flat_map(|step| [wished - step, wished + step]);
        match steps.into_iter().find(|&n| can(n))? {
            found if found == wished => Some(tokens),
            found => Some(self.told(found)),
        }
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
        let shared = if prefix == 0 { 0 } else { self.told(prefix.into()) };
        (line.text, shared)
    }

    /// A further message of conversation `index`. Its length is the nearest below `tokens` that words can make.
    pub fn message(&self, index: u64, turn: u32, tokens: u32) -> String {
        let mut line = Line::default();
        let tokens = self.down((f64::from(tokens) / self.scale).round() as u32);
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
        made(tokens, self.overhead, self.scale).clamp(0, self.begins.len() as i64 - 1) as u32
    }

    /// Tokens as the server counts for so many made.
    fn told(&self, made: i64) -> u32 {
        ((made as f64 * self.scale).round() as i64 + self.overhead).max(0) as u32
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
            let (before, from) = self.words.split_at(wanted);
            let Some(&word) = from.iter().chain(before).find(fits) else { break };
            left -= cost(&word);
            if !line.text.is_empty() {
                line.text.push(' ');
            }
            line.text.push_str(word.text);
            line.is_new = false;
        }
    }
}

/// Tokens to make of words for so many as the server counts.
fn made(tokens: u32, overhead: i64, scale: f64) -> i64 {
    ((i64::from(tokens) - overhead) as f64 / scale).round() as i64
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
    use crate::watch::Blind;
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
        let bytes = Words::calibrate(&mut Bytes, &mut Blind).await.expect("bytes add");
        let joining = Words::calibrate(&mut Joining, &mut Blind).await.expect("most words add");
        for tokens in [2, 3, 4, 5, 7, 16, 33, 512, 4097] {
            for index in [0, 1, 2, 400, 99_999] {
                assert_eq!(Bytes.count(&prompt(&bytes, index, tokens)).await.expect("counts"), tokens as usize);
                assert_eq!(Joining.count(&prompt(&joining, index, tokens)).await.expect("counts"), tokens as usize);
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn words_that_join_their_neighbours_are_left_out() {
        let words = Words::calibrate(&mut Joining, &mut Blind).await.expect("most words add");
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
        let mut words = Words::calibrate(&mut Bytes, &mut Blind).await.expect("bytes add");
        words.overhead = 20;
        assert_eq!(prompt(&words, 3, 100).len() + 1 + 20, 100);
        // Behind other messages each word has a space before it.
        assert_eq!(Prompts::new(&words, 5, 100).message(3, 1, 100).len() + 1, 100);
        assert_eq!(Prompts::new(&words, 5, 19).possible(19), None, "shorter than the template");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn prompts_are_exact_under_a_real_tokenizer() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        for path in [path.join("tokenizer.json"), path] {
            let mut counter = crate::workload::count::Local::load(&path).expect("the demo model has a tokenizer");
            let words = Words::calibrate(&mut counter, &mut Blind).await.expect("many words add");
            for tokens in [1, 2, 17, 512] {
                for index in 0..50 {
                    let prompt = prompt(&words, index, tokens);
                    assert_eq!(counter.count(&prompt).await.expect("counts"), tokens as usize, "{prompt:?}");
                }
            }
        }
    }

    /// Words that begin with `li` are two tokens; a template adds nine.
    #[tokio::test(flavor = "current_thread")]
    async fn words_of_one_token_are_found_by_reports_of_whole_prompts() {
        let mut asked = 0;
        let tokens = |text: &str| 9 + text.split(' ').map(|word| 1 + u32::from(word.starts_with("li"))).sum::<u32>();
        let mut report = async |text: &str| {
            asked += 1;
            Ok(tokens(text))
        };
        let words = Words::by_reports(&mut report).await.expect("reports");
        assert_eq!((words.overhead, words.scale), (9, 1.0));
        assert!(words.words.len() > 50 && words.words.iter().all(|word| !word.text.starts_with("li")));
        assert_eq!(tokens(&prompt(&words, 4, 100)), 100);
        assert!(asked <= CANDIDATES.split_whitespace().count() / GROUP + 2, "{asked} requests");
    }

    /// Every word costs its length: no group is clean, and the mean must do.
    #[tokio::test(flavor = "current_thread")]
    async fn the_mean_length_is_used_where_no_word_is_one_token() {
        let tokens = |text: &str| 5 + text.len() as u32;
        let words = Words::by_reports(&mut async |text: &str| Ok(tokens(text))).await.expect("reports");
        assert!(words.scale > 3.0, "{}", words.scale);
        let prompt = prompt(&words, 4, 4000);
        assert!(tokens(&prompt).abs_diff(4000) < 200, "{}", tokens(&prompt));
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
