//! Prompts from files and datasets, made and counted before the run: a bounded number, in an order by seed, used again when it ends.

use std::rc::Rc;

use crate::BenchError;
use crate::plan::{DEFAULT_OUTPUT_TOKENS, DatasetPlan, FilesPlan, PromptMix, WorkloadPlan};
use crate::watch::{Sight, Watch};
use crate::workload::count::{Count, Counter};
use crate::workload::cut;
use crate::workload::dataset::{Answer, Dataset, Entry};
use crate::workload::draw::{Purpose, Sampler};
use crate::workload::files::Folder;

/// Most prompts that are made where counting is cheap.
const MAX_PROMPTS: u64 = 2000;

/// Most prompts that are made where counting is a question to the server.
const MAX_ASKED_PROMPTS: u64 = 400;

/// Texts that are shown to a server that counts only whole requests.
const NUM_SAMPLES: u64 = 4;

/// Tokens of such a text.
const SAMPLE_TOKENS: usize = 500;

/// Prompts between two words on how far it is.
const PROGRESS: usize = 50;

/// Prompts made before the run.
#[derive(Clone, Debug)]
pub struct Pool {
    entries: Rc<Vec<Pooled>>,
    order: Vec<u32>,
    /// Lengths of answers, if the plan says them.
    output: Option<Sampler>,
}

/// One prompt, or one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooled {
    /// What the system message says.
    pub system: Option<String>,
    /// What the user says.
    pub turns: Vec<Said>,
    /// Tokens of the first prompt as the server counts; 0 if a system message makes that uncertain.
    pub tokens: u32,
}

/// One message of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The words.
    pub text: String,
    /// Tokens of the answer.
    pub output_tokens: u32,
}

/// A pool, and what the reader should know of it.
pub struct Made {
    /// The prompts.
    pub pool: Pool,
    /// Where they come from, and how many there are.
    pub notes: Vec<String>,
}

impl Pool {
    fn new(entries: Vec<Pooled>, plan: &WorkloadPlan) -> Result<Self, BenchError> {
        let output = match &plan.output_tokens {
            Some(lengths) => Some(Sampler::new(lengths, Purpose::Output)?),
            None => None,
        };
        let mut pool = Self { order: (0..entries.len() as u32).collect(), entries: Rc::new(entries), output };
        pool.reseed(plan.seed);
        Ok(pool)
    }

    /// Another order.
    pub fn reseed(&mut self, seed: u64) {
        self.order.sort_unstable();
        fastrand::Rng::with_seed(seed).shuffle(&mut self.order);
    }

    /// Number `index`; after the last comes the first.
    pub fn entry(&self, index: u64) -> &Pooled {
        &self.entries[self.order[(index % self.order.len() as u64) as usize] as usize]
    }

    /// Tokens of the answer to a message.
    pub fn output_tokens(&self, said: &Said, seed: u64, index: u64, turn: u32) -> u32 {
        self.output.as_ref().map_or(said.output_tokens, |output| output.at(seed, index, turn))
    }
}

/// How many prompts are made.
fn size(plan: &WorkloadPlan, requests: u64, counter: &Counter<'_>) -> u64 {
    let most = match counter {
        Counter::Remote(_) => MAX_ASKED_PROMPTS,
        Counter::Local(_) | Counter::Usage(_) => MAX_PROMPTS,
    };
    if plan.prompts == PromptMix::Same { 1 } else { requests.min(most) }
}

fn repeats(num: usize, requests: u64) -> Option<String> {
    (requests > num as u64).then(|| format!("{num} different prompts; request {} begins them again", num + 1))
}

fn progress(done: usize, of: u64, watch: &mut dyn Watch) {
    if done.is_multiple_of(PROGRESS) {
        watch.see(Sight::Preparing(&format!("making prompts: {done} of {of}")));
    }
}

/// Tokens to make for `wished` as the server counts.
fn own(wished: u32, overhead: i64) -> Result<usize, BenchError> {
    let own = usize::try_from(i64::from(wished) - overhead).ok().filter(|&own| own > 0);
    own.ok_or_else(|| {
        BenchError::Prompts(format!(
            "prompts of {wished} tokens cannot be made: the server adds {overhead} tokens to each"
        ))
    })
}

/// Pieces of source files.
pub async fn from_files(
    plan: &WorkloadPlan,
    files: &FilesPlan,
    requests: u64,
    counter: &mut Counter<'_>,
    overhead: i64,
    watch: &mut dyn Watch,
) -> Result<Made, BenchError> {
    let folder = Folder::read(files, plan.seed)?;
    let input = Sampler::new(&plan.input(), Purpose::Input)?;
    if !counter.is_exact() {
        let mut samples = Vec::new();
        for index in 0..NUM_SAMPLES {
            samples.push(folder.prompt(counter, plan.seed, index, SAMPLE_TOKENS, None).await?);
        }
        counter.learn(samples.iter().map(String::as_str), overhead).await?;
    }
    let num = size(plan, requests, counter);
    let mut entries = Vec::new();
    for index in 0..num {
        progress(entries.len(), num, watch);
        let tokens = input.at(plan.seed, index, 0);
        let own = own(tokens, overhead)?;
        let text = folder.prompt(counter, plan.seed, index, own, files.fim.as_ref()).await?;
        let turns = vec![Said { text, output_tokens: DEFAULT_OUTPUT_TOKENS }];
        entries.push(Pooled { system: None, turns, tokens });
    }
    let notes = std::iter::once(folder.told.clone()).chain(repeats(entries.len(), requests)).collect();
    Ok(Made { pool: Pool::new(entries, plan)?, notes })
}

/// Prompts and conversations of a dataset.
pub async fn from_dataset(
    plan: &WorkloadPlan,
    dataset: &DatasetPlan,
    requests: u64,
    counter: &mut Counter<'_>,
    overhead: i64,
    watch: &mut dyn Watch,
) -> Result<Made, BenchError> {
    let read = Dataset::read(&dataset.file, plan.seed)?;
    let input = match &plan.input_tokens {
        Some(lengths) => Some(Sampler::new(lengths, Purpose::Input)?),
        None => None,
    };
    counter.learn(read.entries.iter().map(|entry| entry.messages[0].text.as_str()), overhead).await?;
    let num = size(plan, requests, counter);
    let wished = dataset.min_tokens.unwrap_or(0)..=dataset.max_tokens.unwrap_or(u32::MAX);
    let (mut entries, mut left_out) = (Vec::new(), 0);
    for entry in &read.entries {
        if entries.len() as u64 == num {
            break;
        }
        progress(entries.len(), num, watch);
        let index = entries.len() as u64;
        let made = pooled(plan, entry, input.as_ref().map(|input| (input, index)), counter, overhead).await?;
        match made.filter(|(_, tokens)| wished.contains(tokens)) {
            Some((pooled, _)) => entries.push(pooled),
            None => left_out += 1,
        }
    }
    let told = match left_out {
        0 => read.told,
        n => format!("{}; {n} left out for their lengths", read.told),
    };
    if entries.is_empty() {
        return Err(BenchError::Prompts(format!("dataset: {told}, none is left")));
    }
    let notes = std::iter::once(told).chain(repeats(entries.len(), requests)).collect();
    Ok(Made { pool: Pool::new(entries, plan)?, notes })
}

/// One entry with its first prompt's tokens as the server counts them; `None` if it cannot be cut to the drawn length.
async fn pooled(
    plan: &WorkloadPlan,
    entry: &Entry,
    input: Option<(&Sampler, u64)>,
    counter: &mut Counter<'_>,
    overhead: i64,
) -> Result<Option<(Pooled, u32)>, BenchError> {
    let mut turns = Vec::new();
    let mut first = 0;
    for (message, turn) in entry.messages.iter().take(plan.turns.highest() as usize).zip(0..) {
        let before = match &entry.system {
            Some(system) if turn == 0 => format!("{system}\n\n"),
            _ => String::new(),
        };
        let text = match input {
            Some((input, index)) => {
                let tokens = input.at(plan.seed, index, turn);
                let wished = if turn == 0 { own(tokens, overhead)? } else { tokens as usize };
                let dress = |cut: &str| format!("{before}{cut}");
                let Some(cut) = cut::exactly(counter, &stretched(&message.text, wished), wished, &dress).await? else {
                    return Ok(None);
                };
                cut[before.len()..].to_owned()
            }
            None => message.text.clone(),
        };
        if turn == 0 {
            let count = counter.count(&format!("{before}{text}")).await? as i64;
            first = (count + overhead).clamp(1, u32::MAX.into()) as u32;
        }
        let output_tokens = match &message.answer {
            // Only where the plan does not say it.
            Some(Answer::Text(answer)) if plan.output_tokens.is_none() => counter.count(answer).await? as u32,
            Some(Answer::Tokens(tokens)) => *tokens,
            _ => DEFAULT_OUTPUT_TOKENS,
        };
        turns.push(Said { text, output_tokens: output_tokens.clamp(1, crate::plan::MAX_TOKENS) });
    }
    let tokens = if entry.system.is_some() { 0 } else { first };
    Ok(Some((Pooled { system: entry.system.clone(), turns, tokens }, first)))
}

/// The text again and again, until it has surely enough for `tokens`.
fn stretched(text: &str, tokens: usize) -> String {
    let bytes = 12 * tokens + 256;
    let mut long = String::with_capacity(bytes + text.len());
    long.push_str(text);
    while long.len() < bytes {
        long.push('\n');
        long.push_str(text);
    }
    long
}
