//! What is asked, request by request: lengths, texts, conversations, all seeded.

pub mod count;
mod cut;
mod dataset;
mod draw;
mod files;
mod pool;
mod session;
pub mod synthetic;
pub mod trace;

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

pub use session::{Ask, Prompt, Session};

use crate::BenchError;
use crate::plan::{PromptMix, Source, ThinkTime, WorkloadPlan};
use crate::results::PromptMaking;
use crate::watch::{Sight, Watch};
use count::{Count, Counter, SAMPLE};
use draw::{Purpose, Sampler, below, random};
use pool::Pool;
use session::Turn;
use synthetic::{Prompts, Shared, Words};
use trace::TraceEntry;

/// Requests from which the expected share of the prefix cache is estimated.
const MAX_ESTIMATED: u64 = 256;

/// Everything that one run asks. Equal plans, seeds included, ask the same.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    /// Of prompts and their lengths: the same in all runs where all prompts are.
    seed_of_text: u64,
    mix: PromptMix,
    think: ThinkTime,
    turns: Sampler,
    material: Material,
}

/// What requests are made of.
#[derive(Clone, Debug)]
enum Material {
    Synthetic { texts: Texts, input: Sampler, output: Sampler },
    Trace { texts: Texts, entries: Rc<Vec<TraceEntry>> },
    Pool(Pool),
}

/// Texts of words, and what is needed to make others.
#[derive(Clone, Debug)]
struct Texts {
    words: Words,
    prompts: Prompts,
    longest: u32,
}

impl Texts {
    /// Errors if prompts of `longest` tokens, or any shorter ones, cannot be made.
    fn new(words: Words, seed: u64, longest: u32) -> Result<Self, BenchError> {
        let prompts = Prompts::new(&words, seed, longest);
        let texts = Self { words, prompts, longest };
        if texts.prompts.possible(longest).is_none() {
            return Err(texts.impossible(longest));
        }
        Ok(texts)
    }

    fn impossible(&self, tokens: u32) -> BenchError {
        let why = match self.words.overhead() {
            overhead if overhead >= i64::from(tokens) => format!("the server adds {overhead} tokens to each"),
            _ => "no sequence of words has that many".to_owned(),
        };
        BenchError::Prompts(format!("prompts of {tokens} tokens cannot be made: {why}"))
    }

    fn reseed(&mut self, seed: u64) {
        self.prompts = Prompts::new(&self.words, seed, self.longest);
    }
}

impl Workload {
    /// Reads files, learns how the server counts, makes what can be made before the run. `requests` bounds how many different ones are
    /// needed; `reported` is what the server said of [`SAMPLE`].
    ///
    /// # Errors
    /// Files that cannot be read; lengths that cannot be made; a counter that fails.
    pub async fn prepare(
        plan: &WorkloadPlan,
        requests: u64,
        counter: &mut Counter<'_>,
        reported: Option<u32>,
        watch: &mut dyn Watch,
    ) -> Result<(Self, PromptMaking), BenchError> {
        let counted_by = counter.source();
        let mut notes = Vec::new();
        let overhead = match reported {
            Some(reported) if counter.is_exact() => i64::from(reported) - counter.count(SAMPLE).await? as i64,
            _ => 0,
        };
        let (material, overhead) = match &plan.source {
            Source::Synthetic => {
                let (input, output) = (plan.input(), plan.output());
                let sampler = Sampler::new(&input, Purpose::Input)?;
                let words = Words::learn(counter, overhead, watch).await?;
                let overhead = words.overhead();
                let texts = Texts::new(words, plan.seed, sampler.highest(&input))?;
                if let Some(wished) = input.fixed().filter(|&wished| texts.prompts.possible(wished) != Some(wished)) {
                    return Err(texts.impossible(wished));
                }
                let output = Sampler::new(&output, Purpose::Output)?;
                (Material::Synthetic { texts, input: sampler, output }, overhead)
            }
            Source::Trace(path) => {
                let entries = trace::read(path)?;
                let longest = entries.iter().map(|entry| entry.input_tokens).max().unwrap_or(1);
                let words = Words::learn(counter, overhead, watch).await?;
                let overhead = words.overhead();
                let texts = Texts::new(words, plan.seed, longest)?;
                notes.push(format!("{} requests in {}", entries.len(), path.display()));
                (Material::Trace { texts, entries: Rc::new(entries) }, overhead)
            }
            Source::Files(files) => {
                watch.see(Sight::Preparing("reading files"));
                let made = pool::from_files(plan, files, requests, counter, overhead, watch).await?;
                notes.extend(made.notes);
                (Material::Pool(made.pool), overhead)
            }
            Source::Dataset(dataset) => {
                watch.see(Sight::Preparing("reading the dataset"));
                let made = pool::from_dataset(plan, dataset, requests, counter, overhead, watch).await?;
                notes.extend(made.notes);
                (Material::Pool(made.pool), overhead)
            }
        };
        let workload = Self {
            seed: plan.seed,
            seed_of_text: plan.seed,
            mix: plan.prompts,
            think: plan.think,
            turns: Sampler::new(&plan.turns, Purpose::Turns)?,
            material,
        };
        let expected_hit_share = workload.hit_share(requests);
        Ok((workload, PromptMaking { counted_by, overhead, expected_hit_share, notes }))
    }

    /// The same kind of requests with other texts, for another run: those of this one may be in the server's prefix cache. What was read
    /// from files comes in another order.
    pub fn reseeded(&self, seed: u64) -> Self {
        let mut workload = Self { seed, ..self.clone() };
        // One text for all is in every cache from the second request on; another one in each run would only make runs differ.
        if self.mix == PromptMix::Same {
            return workload;
        }
        workload.seed_of_text = seed;
        match &mut workload.material {
            Material::Synthetic { texts, .. } | Material::Trace { texts, .. } => texts.reseed(seed),
            Material::Pool(pool) => pool.reseed(seed),
        }
        workload
    }

    /// What start number `index` of the run asks.
    pub fn session(&self, index: u64) -> Session {
        // All the same: text and length of the prompt are drawn for the first. What is asked for is drawn for each.
        let of_text = if self.mix == PromptMix::Same { 0 } else { index };
        let wished = self.turns.at(self.seed, index, 0);
        let pause = |turn| match turn {
            0 => Duration::ZERO,
            _ => draw::think_time(self.think, self.seed, index, turn),
        };
        match &self.material {
            Material::Synthetic { texts, input, output } => {
                let turn = |turn| {
                    let tokens = input.at(self.seed_of_text, of_text, turn);
                    let output_tokens = output.at(self.seed, index, turn);
                    let (text, tokens) = match turn {
                        0 => {
                            let tokens = texts.prompts.possible(tokens).unwrap_or(tokens);
                            (texts.prompts.prompt(of_text, tokens, self.shared(of_text, tokens)).0, tokens)
                        }
                        _ => (texts.prompts.message(of_text, turn, tokens), 0),
                    };
                    Turn { text, tokens, output_tokens, pause: pause(turn) }
                };
                Session::new(None, (0..wished).map(turn).collect())
            }
            Material::Trace { texts, entries } => {
                let entry = &entries[(index % entries.len() as u64) as usize];
                let tokens = texts.prompts.possible(entry.input_tokens).unwrap_or(entry.input_tokens);
                let text = texts.prompts.blocks(index, tokens, &entry.hash_ids, trace::BLOCK_TOKENS);
                let turn = Turn { text, tokens, output_tokens: entry.output_tokens, pause: Duration::ZERO };
                Session::new(None, vec![turn])
            }
            Material::Pool(pool) => {
                let entry = pool.entry(of_text);
                let turns = entry.turns.iter().take(wished as usize).zip(0..).map(|(said, turn)| Turn {
                    text: said.text.clone(),
                    tokens: if turn == 0 { entry.tokens } else { 0 },
                    output_tokens: pool.output_tokens(said, self.seed, index, turn),
                    pause: pause(turn),
                });
                Session::new(entry.system.clone(), turns.collect())
            }
        }
    }

    /// What a first message of `tokens` tokens has in common with others.
    fn shared(&self, index: u64, tokens: u32) -> Option<Shared> {
        let (shared, groups) = match self.mix {
            PromptMix::Distinct | PromptMix::Same => return None,
            PromptMix::SharedPrefix { tokens, groups } => (tokens, groups),
            PromptMix::HitRate { rate, groups } => ((rate * f64::from(tokens)).round() as u32, groups),
        };
        let group = below(&mut random(self.seed, Purpose::Group, index, 0), groups.into());
        // The last token is its own, or there were nothing left to compute.
        Some(Shared { group, tokens: shared.min(tokens - 1) })
    }

    /// Share of all prompt tokens that a prefix cache without limits finds, once it has seen every prefix; of a trace, from an empty cache
    /// on. 0 where nothing is shared on purpose, also where prompts of files repeat.
    fn hit_share(&self, requests: u64) -> f64 {
        if self.mix == PromptMix::Same {
            return 1.0;
        }
        let (mut found, mut all) = (0u64, 0u64);
        match &self.material {
            Material::Synthetic { texts, input, output } => {
                for index in 0..requests.min(MAX_ESTIMATED) {
                    let tokens = input.at(self.seed, index, 0);
                    let tokens = texts.prompts.possible(tokens).unwrap_or(tokens);
                    let shared = self.shared(index, tokens);
                    found += shared.map_or(0, |shared| u64::from(texts.prompts.prompt(index, tokens, Some(shared)).1));
                    all += u64::from(tokens);
                    // Each further message comes behind everything said so far, which the cache has.
                    let mut history = u64::from(tokens);
                    for turn in 1..self.turns.at(self.seed, index, 0) {
                        history += u64::from(output.at(self.seed, index, turn - 1));
                        found += history;
                        history += u64::from(input.at(self.seed, index, turn));
                        all += history;
                    }
                }
            }
            Material::Trace { entries, .. } => {
                let mut seen: HashSet<u64> = HashSet::new();
                for entry in entries.iter().take(requests as usize) {
                    let full = (entry.input_tokens / trace::BLOCK_TOKENS) as usize;
                    let known = entry.hash_ids.iter().take(full).take_while(|id| seen.contains(*id)).count();
                    found += known as u64 * u64::from(trace::BLOCK_TOKENS);
                    all += u64::from(entry.input_tokens);
                    seen.extend(&entry.hash_ids);
                }
            }
            Material::Pool(_) => {}
        }
        if all == 0 { 0.0 } else { found as f64 / all as f64 }
    }
}
