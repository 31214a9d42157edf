//! Whose turn it is, and who gives way.
//!
//! First come, first served: lists are kept in order of arrival. A sequence that came earlier takes blocks from the latest one
//! that runs, never the other way round: the earliest always gets on, so everyone becomes the earliest at last.

use std::collections::VecDeque;

use crate::Newcomers;
use crate::sequence::{Sequence, SequenceId};

/// Inserts `sequence` where its arrival puts it; returns the index.
pub(super) fn insert_running(running: &mut Vec<Sequence>, sequence: Sequence) -> usize {
    let index = running.partition_point(|other| other.id < sequence.id);
    running.insert(index, sequence);
    index
}

/// As [`insert_running`]: a preempted sequence comes before everyone who arrived later.
pub(super) fn insert_waiting(waiting: &mut VecDeque<Sequence>, sequence: Sequence) {
    let index = waiting.partition_point(|other| other.id < sequence.id);
    waiting.insert(index, sequence);
}

/// The running sequence that gives its blocks back when the one at `asking` needs some: the latest, if it came later.
pub(super) fn victim(running: &[Sequence], asking: usize) -> Option<usize> {
    let latest = running.len() - 1;
    (latest > asking).then_some(latest)
}

/// Whether `sequence` never ran, nor any choice of its request up to the end of the prompt.
pub(super) fn is_newcomer(sequence: &Sequence) -> bool {
    !sequence.was_admitted() && !sequence.group.prompt_computed()
}

/// Whether newcomers may join now, `steps` steps after the last one did.
pub(super) fn newcomers_may_join(
    newcomers: Newcomers,
    num_running: usize,
    waiting: &VecDeque<Sequence>,
    steps: u32,
) -> bool {
    let least = (newcomers.waiting_served_ratio * num_running as f32).floor();
    num_running == 0
        || least < 1.0
        || steps >= newcomers.max_waiting_steps
        || waiting.iter().filter(|sequence| is_newcomer(sequence)).count() as f32 >= least
}

/// Whether `sequence` gains by waiting for another choice of its request to compute the prompt, and there is one that will.
pub(super) fn waits_for_sibling(
    sequence: &Sequence,
    block_tokens: u32,
    running: &[Sequence],
    waiting: &VecDeque<Sequence>,
) -> bool {
    let group = &sequence.group;
    // The last token is always computed again, so a prompt shares the full blocks before it. Rows whose logits are asked for
    // cannot be shared.
    let can_share = group.num_prompt_tokens > block_tokens && group.report.prompt_logprobs.is_none();
    let is_earlier_sibling = |id: SequenceId| group.first <= id && id < sequence.id;
    let earlier = |other: Option<&Sequence>| other.is_some_and(|other| is_earlier_sibling(other.id));
    can_share
        && !group.prompt_computed()
        && group.first != sequence.id
        && (earlier(running.get(running.partition_point(|other| other.id < group.first)))
            || earlier(waiting.get(waiting.partition_point(|other| other.id < group.first))))
}
