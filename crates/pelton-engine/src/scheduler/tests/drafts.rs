//! Schedules with drafts.

use super::*;

/// One sequence of sequences that say `token` whatever happened before, and so are guessed right.
fn certain(token: u32, num_prompt_tokens: usize, max_tokens: u32) -> Ask {
    let sampling = SamplingParams { logit_bias: vec![(TokenId(token), 1000.0)], ..SamplingParams::default() };
    Ask { sampling, ..ask(&vec![token; num_prompt_tokens], max_tokens) }
}

fn speculating(speculate: u32, num_blocks: u32, max_step_tokens: u32) -> World {
    let mut world = World::small(num_blocks, max_step_tokens);
    let config = EngineConfig { max_step_tokens, max_sequences: 8, speculate, ..EngineConfig::default() };
    world.scheduler = Scheduler::new(&config, &world.spec);
    world
}

/// Drafts of the last plan, by span.
fn drafts(world: &World) -> Vec<u32> {
    world.plan.spans.iter().map(|span| span.num_drafts).collect()
}

#[test]
fn what_is_guessed_right_takes_one_step() {
    let mut world = speculating(4, 40, 100);
    world.submit(certain(1, 5, 30));
    // Carefully beside the prompt and before anything is known of the sequence, then all that is allowed, and the last by itself.
    for (rows, said) in [(5 + 3, 4), (1 + 4, 9), (1 + 4, 14), (1 + 4, 19), (1 + 4, 24), (1 + 4, 29), (1, 30)] {
        world.step();
        assert_eq!((world.rows(), world.said[0].len()), (vec![(0, rows)], said));
    }
    world.drain(1);
    let counters = world.scheduler.counters();
    assert_eq!((counters.drafts, counters.drafted_tokens), (6, 23));
    assert_eq!(counters.samples_by_accepted[..5], [1, 0, 0, 1, 5]);
}

#[test]
fn wrong_guesses_end_and_leave_no_blocks() {
    let mut world = speculating(6, 40, 100);
    // The prompt promises ones; the answer says twos.
    let sampling = SamplingParams { logit_bias: vec![(TokenId(2), 1000.0)], ..SamplingParams::default() };
    world.submit(Ask { sampling, ..ask(&[1; 6], 4) });
    world.step();
    assert!(drafts(&world)[0] > 1 && world.said[0].len() == 1);
    assert_eq!(world.scheduler.num_blocks_used(), 4, "seven tokens in blocks of two");
    world.drain(4);
}

#[test]
fn stop_tokens_end_a_sequence_among_accepted_drafts() {
    let mut world = speculating(4, 40, 100);
    world.submit(Ask { stop_tokens: vec![TokenId(1)], ..certain(1, 8, 30) });
    world.step();
    assert_eq!(drafts(&world), [0], "a stop token needs no row");
    world.drain(1);
    world.submit(Ask { stop_tokens: vec![TokenId(1)], min_tokens: 9, ..certain(1, 8, 30) });
    world.drain(20);
    assert_eq!(world.num_finished, 2);
}

#[test]
fn drafts_take_what_prompts_and_newcomers_leave() {
    let mut world = speculating(4, 40, 6);
    world.submit(certain(1, 4, 30));
    world.step();
    world.submit(certain(2, 9, 30));
    world.step();
    assert_eq!(world.rows(), [(0, 1), (1, 5)]);
    world.step();
    assert_eq!(world.rows()[..], [(0, 1 + 1), (1, 4)], "one row was left");
    world.drain(40);
}

#[test]
fn drafts_need_logits_too() {
    let mut world = speculating(4, 40, 100);
    world.spec.max_logit_rows = 3;
    let config = EngineConfig { max_step_tokens: 100, max_sequences: 8, speculate: 4, ..EngineConfig::default() };
    world.scheduler = Scheduler::new(&config, &world.spec);
    world.submit(certain(1, 4, 12));
    world.submit(certain(2, 4, 12));
    world.step();
    assert_eq!(drafts(&world), [1, 0]);
    world.drain(20);
}

#[test]
fn nobody_loses_blocks_to_drafts() {
    // Five blocks of two: each wants five positions at the end, so three blocks and two; a draft finds none.
    let mut world = speculating(4, 5, 100);
    world.submit(certain(1, 3, 2));
    world.submit(certain(2, 5, 1));
    world.step();
    assert_eq!(drafts(&world), [0, 0]);
    world.drain(5);
    assert_eq!(world.scheduler.counters().preemptions, 0);
}

#[test]
fn many_sequences_draft_what_is_nearly_certain() {
    let mut world = speculating(4, 200, 100);
    for _ in 0..8 {
        world.submit(certain(1, 6, 60));
    }
    world.step();
    world.step();
    let careful = drafts(&world);
    assert!(careful.iter().sum::<u32>() < 8 * 3, "{careful:?}");
    for _ in 0..8 {
        world.step();
    }
    assert_eq!(drafts(&world), [4; 8], "by now they are certain");
    world.drain(100);
}

#[test]
fn rows_that_cost_as_much_as_a_step_are_not_drafted() {
    let mut world = speculating(4, 200, 100);
    world.took = |rows| Duration::from_millis(rows.into());
    for index in 0..6 {
        world.submit(ask(&[index % 4, 1, 2, 1, 2], 100));
    }
    world.drain(200);
    let counters = world.scheduler.counters();
    let num_tokens: usize = world.said.iter().map(Vec::len).sum();
    assert!(counters.drafted_tokens < num_tokens as u64 / 4, "{counters:?}");
}
