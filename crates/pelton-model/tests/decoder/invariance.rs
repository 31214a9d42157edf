//! Against itself: a row's logits are the same bits whatever else is in the step and however its sequence was computed.

use pelton_backend::{DType, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig, IsaChoice};
use pelton_model::{Decoder, Model, ModelFiles, load};

use crate::fixture::{BLOCK_TOKENS, Sequence, argmax, bits, decoder, instruction_sets, options, root};

/// Shapes that stress tiles differently: even, odd everywhere, wide heads; windows and caps; experts.
const NAMES: [&str; 5] = ["gqa", "mqa_odd_sizes", "head_dim_apart", "gemma2", "qwen2_moe"];
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
/// Every fixture's vocabulary is larger.
const TOKENS: u32 = 97;

/// Runs `test` on every model, precision and instruction set.
fn everywhere(test: impl Fn(&mut Decoder<CpuBackend>, &str)) {
    for isa in instruction_sets() {
        for dtype in DTYPES {
            for name in NAMES {
                test(&mut decoder(name, isa, dtype), &format!("{name}, {isa}, {dtype}"));
            }
        }
    }
}

/// `len` tokens that differ for each `seed`.
fn prompt(seed: u32, len: usize) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        TokenId((state >> 16) % TOKENS)
    };
    (0..len).map(next).collect()
}

/// Logits after `tokens`, computed alone and at once.
fn alone(decoder: &mut Decoder<CpuBackend>, tokens: &[TokenId]) -> Vec<u32> {
    bits(&Sequence::new(tokens, tokens.len(), 400, 1).run(decoder, tokens.len()))
}

#[test]
fn decoding_in_a_batch_equals_decoding_alone() {
    everywhere(|decoder, case| {
        let prompts: Vec<Vec<TokenId>> = (0..64).map(|index| prompt(index, 2 + (index as usize * 7) % 45)).collect();
        let wanted: Vec<Vec<u32>> = prompts.iter().map(|tokens| alone(decoder, tokens)).collect();
        for size in [1, 2, 3, 7, 16, 33, 64] {
            let mut batch = StepBatch::default();
            let mut sequences: Vec<Sequence> = prompts[..size]
                .iter()
                .zip(0..)
                .map(|(tokens, index)| Sequence::new(tokens, 48, index * 3, 1))
                .collect();
            for sequence in &mut sequences {
                batch.clear();
                let known = sequence.tokens.len() - 1;
                sequence.push(&mut batch, known, false);
                assert!(decoder.forward(&batch).unwrap().is_empty());
            }
            batch.clear();
            for sequence in &mut sequences {
                sequence.push(&mut batch, 1, true);
            }
            let logits = decoder.forward(&batch).unwrap();
            for (index, row) in logits.chunks_exact(logits.len() / size).enumerate() {
                assert_eq!(bits(row), wanted[index], "{case}: sequence {index} in a batch of {size}");
            }
        }
    });
}

#[test]
fn a_prompt_cut_into_steps_equals_the_whole() {
    everywhere(|decoder, case| {
        let tokens = prompt(5, 130);
        let wanted = alone(decoder, &tokens);
        for chunk in [1, 7, 64, 129, 130] {
            let mut sequence = Sequence::new(&tokens, 140, 0, 3);
            let mut logits = sequence.run(decoder, chunk);
            assert_eq!(bits(&logits), wanted, "{case}: {chunk} tokens a step");
            // What was left in the KV cache is the same as well.
            for _ in 0..4 {
                sequence.tokens.push(argmax(&logits));
                logits = sequence.run(decoder, 1);
            }
            assert_eq!(bits(&logits), alone(decoder, &sequence.tokens), "{case}: decoding after {chunk} tokens a step");
        }
        // One token first, then all others.
        let mut sequence = Sequence::new(&tokens, 130, 0, 3);
        let mut batch = StepBatch::default();
        sequence.push(&mut batch, 1, false);
        decoder.forward(&batch).unwrap();
        assert_eq!(bits(&sequence.run(decoder, 130)), wanted, "{case}: 1 + 129");
    });
}

#[test]
fn prompts_and_decoding_in_one_step_do_not_touch_each_other() {
    everywhere(|decoder, case| {
        let (long, short, fresh) = (prompt(11, 100), prompt(12, 33), prompt(13, 20));
        let wanted = [&long, &short, &fresh].map(|tokens| alone(decoder, tokens));
        let mut sequences =
            [(&long, 0), (&short, 20), (&fresh, 40)].map(|(tokens, block)| Sequence::new(tokens, 112, block, 1));
        let mut batch = StepBatch::default();
        sequences[0].push(&mut batch, 41, false);
        sequences[1].push(&mut batch, 32, false);
        decoder.forward(&batch).unwrap();
        batch.clear();
        sequences[0].push(&mut batch, 59, true);
        sequences[1].push(&mut batch, 1, true);
        sequences[2].push(&mut batch, 20, true);
        let logits = decoder.forward(&batch).unwrap();
        for (row, wanted) in logits.chunks_exact(logits.len() / 3).zip(wanted) {
            assert_eq!(bits(row), wanted, "{case}");
        }
    });
}

#[test]
fn blocks_of_another_sequence_serve_as_prefix() {
    everywhere(|decoder, case| {
        let shared = 2 * BLOCK_TOKENS as usize;
        let first = prompt(21, 50);
        let second: Vec<TokenId> = first[..shared].iter().copied().chain(prompt(22, 30)).collect();
        let wanted = alone(decoder, &second);
        let mut owner = Sequence::new(&first, 64, 0, 1);
        owner.run(decoder, 50);
        let mut borrower = Sequence::new(&second, 64, 100, 1);
        borrower.blocks[..2].copy_from_slice(&owner.blocks[..2]);
        borrower.num_computed = shared;
        assert_eq!(bits(&borrower.run(decoder, 64)), wanted, "{case}");
        // Nor has the borrower written into them.
        owner.tokens.push(TokenId(1));
        assert_eq!(bits(&owner.run(decoder, 1)), alone(decoder, &owner.tokens), "{case}: the owner afterwards");
    });
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let tokens = prompt(31, 130);
    let run = |threads: usize| {
        let config = CpuConfig { threads: Some(threads), isa: IsaChoice::Auto, ..CpuConfig::default() };
        let files = ModelFiles::directory(root().join("gqa")).unwrap();
        let mut decoder = load(&files, CpuBackend::new(config).unwrap(), &options(DType::BF16)).unwrap();
        alone(&mut decoder, &tokens)
    };
    let wanted = run(1);
    for threads in [2, 3, 5] {
        assert_eq!(run(threads), wanted, "{threads} threads");
    }
}
