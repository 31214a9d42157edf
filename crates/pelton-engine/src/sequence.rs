//! One token stream being computed: what is known of it, what is computed, and where its keys and values lie.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use pelton_backend::{AdapterId, TokenId};

use crate::drafting::Drafter;
use crate::event::SampledToken;
use crate::kv::{BlockTable, KvBlocks};
use crate::scheduler::{Finished, Outcome, Started};
use crate::{FinishReason, Foretold, ReportParams, SamplingParams, SequenceError, StoppingParams, TokenConstraint};

/// Order of arrival, and the name of a sequence between its stream and the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId(pub(crate) u64);

/// What the choices of one request have in common.
#[derive(Debug)]
pub(crate) struct Group {
    /// The first choice; the others follow.
    pub(crate) first: SequenceId,
    pub(crate) num_prompt_tokens: u32,
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stopping: StoppingParams,
    pub(crate) report: ReportParams,
    /// Whether some choice has computed the prompt, so that the others find its blocks. Engine thread only.
    prompt_computed: AtomicBool,
}

impl Group {
    pub(crate) fn new(
        first: SequenceId,
        num_prompt_tokens: u32,
        adapter: Option<AdapterId>,
        sampling: SamplingParams,
        stopping: StoppingParams,
        report: ReportParams,
    ) -> Self {
        Self { first, num_prompt_tokens, adapter, sampling, stopping, report, prompt_computed: AtomicBool::new(false) }
    }

    pub(crate) fn prompt_computed(&self) -> bool {
        self.prompt_computed.load(Ordering::Relaxed)
    }
}

/// One sequence.
///
/// ```text
/// tokens:  0 ......... num_computed ......... num_prompt_tokens ......... num_known
///          |-- in blocks of `table` --|------------- the gap -------------|
/// ```
///
/// A sequence without blocks is waiting; its `num_computed` is zero. It may have generated tokens: preemption keeps them.
/// From plan to commit, drafts may stand behind what is known: tokens that the step computes as if they had been sampled.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// Which choice of its request.
    pub(crate) choice: u32,
    /// Where the engine thread keeps this sequence's stream.
    pub(crate) seat: usize,
    pub(crate) group: Arc<Group>,
    /// Known tokens, then drafts.
    tokens: Vec<TokenId>,
    num_drafts: u32,
    num_computed: u32,
    pub(crate) table: BlockTable,
    /// Log-probabilities of the prompt's tokens found so far, if asked for. A preempted sequence keeps them.
    prompt_logprobs: Vec<Option<Foretold>>,
    /// Prompt tokens found in the prefix cache; known once the sequence was first admitted.
    num_cached_tokens: Option<u32>,
    num_preemptions: u32,
    /// Where tokens are drafted at all.
    drafter: Option<Box<Drafter>>,
    num_drafted: u32,
    num_accepted: u32,
    is_over: bool,
    /// What may be said next. Locked by whoever samples the sequence, and nobody else at that time.
    pub(crate) constraint: Option<Mutex<Box<dyn TokenConstraint>>>,
}

impl Sequence {
    pub(crate) fn new(
        id: SequenceId,
        choice: u32,
        group: Arc<Group>,
        prompt: Vec<TokenId>,
        constraint: Option<Box<dyn TokenConstraint>>,
    ) -> Self {
        debug_assert_eq!(group.num_prompt_tokens as usize, prompt.len());
        // Nothing comes before the first token, so nothing foretells it.
        let prompt_logprobs = if group.report.prompt_logprobs.is_some() { vec![None] } else { Vec::new() };
        Self {
            id,
            choice,
            seat: 0,
            table: BlockTable::new(group.adapter),
            group,
            tokens: prompt,
            num_drafts: 0,
            num_computed: 0,
            prompt_logprobs,
            num_cached_tokens: None,
            num_preemptions: 0,
            drafter: None,
            num_drafted: 0,
            num_accepted: 0,
            is_over: false,
            constraint: constraint.map(Mutex::new),
        }
    }

    /// Prompt and generated tokens.
    pub(crate) fn tokens(&self) -> &[TokenId] {
        self.tokens_with(0)
    }

    /// Known tokens and the first `num_drafts` drafts: what is known once these are accepted.
    pub(crate) fn tokens_with(&self, num_drafts: u32) -> &[TokenId] {
        &self.tokens[..(self.num_known() + num_drafts) as usize]
    }

    pub(crate) fn num_generated(&self) -> u32 {
        self.num_known() - self.group.num_prompt_tokens
    }

    pub(crate) fn num_known(&self) -> u32 {
        self.tokens.len() as u32 - self.num_drafts
    }

    #[cfg(test)]
    pub(crate) fn num_drafts(&self) -> u32 {
        self.num_drafts
    }

    /// The draft behind the first `index`.
    pub(crate) fn draft(&self, index: u32) -> Option<TokenId> {
        self.tokens.get((self.num_known() + index) as usize).copied()
    }

    pub(crate) fn num_computed(&self) -> u32 {
        self.num_computed
    }

    /// Tokens known and not computed; at least one until the sequence ends.
    pub(crate) fn gap(&self) -> u32 {
        self.num_known() - self.num_computed
    }

    pub(crate) fn num_cached_tokens(&self) -> u32 {
        self.num_cached_tokens.unwrap_or(0)
    }

    /// Whether its last token was sampled.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether it was planned into a step before.
    pub(crate) fn was_admitted(&self) -> bool {
        self.num_cached_tokens.is_some()
    }

    /// First position whose logits are wanted for the prompt's log-probabilities; `None` when nothing is wanted any more.
    pub(crate) fn first_wanted_prompt_row(&self) -> Option<u32> {
        let found = self.prompt_logprobs.len() as u32;
        (self.group.report.prompt_logprobs.is_some()
            && found < self.group.num_prompt_tokens
            && self.num_generated() == 0)
            .then(|| found - 1)
    }

    /// Notes how the next prompt token was foretold.
    pub(crate) fn push_prompt_logprob(&mut self, foretold: Foretold) {
        self.prompt_logprobs.push(Some(foretold));
    }

    /// Waiting to running: the blocks in `table` hold the first `num_hit_tokens` tokens.
    pub(crate) fn admit(&mut self, num_hit_tokens: u32) {
        debug_assert!(num_hit_tokens < self.num_known(), "the last token is computed for its logits");
        self.num_computed = num_hit_tokens;
        self.num_cached_tokens.get_or_insert(num_hit_tokens);
    }

    /// Running, `num_rows` further.
    pub(crate) fn advance(&mut self, num_rows: u32) {
        self.num_computed += num_rows;
        debug_assert!(self.num_computed <= self.num_known());
        if self.num_computed >= self.group.num_prompt_tokens {
            self.group.prompt_computed.store(true, Ordering::Relaxed);
        }
    }

    /// Running to waiting: its blocks were given back; its tokens stay.
    pub(crate) fn preempt(&mut self) {
        debug_assert!(self.table.blocks().is_empty(), "blocks are given back first");
        self.num_computed = 0;
        self.num_preemptions += 1;
    }

    /// Lets others find what is computed.
    pub(crate) fn publish_to(&mut self, kv: &mut KvBlocks) {
        kv.publish(&mut self.table, &self.tokens, self.num_computed);
    }

    /// From now on tokens can be drafted.
    pub(crate) fn enable_drafts(&mut self) {
        self.drafter = Some(Box::new(Drafter::new()));
    }

    /// Finds out what may come next, before any draft of a step. Done for every step that samples, drafts or not: that is how guesses
    /// are judged.
    pub(crate) fn look_ahead(&mut self) {
        debug_assert_eq!(self.num_drafts, 0, "drafts do not outlive their step");
        let may_draft = self.num_generated() + 1 < self.group.stopping.max_tokens;
        if let Some(drafter) = self.drafter.as_mut().filter(|_| may_draft) {
            drafter.look(&self.tokens);
        }
    }

    /// The next draft and its chance, if those before it are right. `None` where there is no guess, and where a draft would be of no
    /// use: the last token of a sequence needs no row of its own, so neither a stop token nor one at the length limit is drafted, and
    /// accepted drafts never end a sequence.
    pub(crate) fn next_draft(&self) -> Option<(TokenId, f32)> {
        let stopping = &self.group.stopping;
        if self.num_generated() + self.num_drafts + 1 >= stopping.max_tokens {
            return None;
        }
        let guess = self.drafter.as_ref()?.guess(&self.tokens, self.num_drafts)?;
        (!stopping.stop_tokens.contains(&guess.0)).then_some(guess)
    }

    /// Adds [`Self::next_draft`].
    pub(crate) fn push_draft(&mut self, draft: TokenId) {
        self.tokens.push(draft);
        self.num_drafts += 1;
        self.num_drafted += 1;
    }

    /// Forgets the drafts that were not accepted.
    pub(crate) fn drop_drafts(&mut self) {
        self.tokens.truncate(self.num_known() as usize);
        self.num_drafts = 0;
    }

    /// Appends a sampled token, which may be the last one; it takes the place of the first draft. Without one the sequence is over.
    pub(crate) fn take_sample(&mut self, token: Result<SampledToken, SequenceError>) -> Outcome {
        let mut outcome = Outcome { seat: self.seat, started: None, token, finished: None };
        let Ok(token) = &outcome.token else {
            self.is_over = true;
            return outcome;
        };
        if self.num_generated() == 0 {
            let prompt_logprobs = self.group.report.prompt_logprobs.map(|_| std::mem::take(&mut self.prompt_logprobs));
            outcome.started = Some(Started { num_cached_tokens: self.num_cached_tokens(), prompt_logprobs });
        }
        let num_known = self.num_known() as usize;
        if let Some(drafter) = &mut self.drafter {
            drafter.learn(&self.tokens[..num_known], token.id);
        }
        if self.draft(0) == Some(token.id) {
            self.num_drafts -= 1;
            self.num_accepted += 1;
        } else {
            self.drop_drafts();
            self.tokens.push(token.id);
        }
        let stopping = &self.group.stopping;
        let reason = if stopping.stop_tokens.contains(&token.id) {
            FinishReason::StopToken(token.id)
        } else if self.num_generated() >= stopping.max_tokens {
            FinishReason::Length
        } else {
            return outcome;
        };
        self.is_over = true;
        outcome.finished = Some(Finished {
            reason,
            num_prompt_tokens: self.group.num_prompt_tokens,
            num_generated_tokens: self.num_generated(),
            num_cached_tokens: self.num_cached_tokens(),
            num_preemptions: self.num_preemptions,
            num_drafted_tokens: self.num_drafted,
            num_accepted_tokens: self.num_accepted,
        });
        outcome
    }
}
