//! Decoding and detokenizing agree with each other, and with the tokenizers library.

use crate::samples;
use pelton_text::{Detokenizer, TextError, TextModel};
use proptest::prelude::*;

/// Pieces of a stream, the last of which is what `finish` gives.
fn pieces(model: &TextModel, skip_special_tokens: bool, prompt_tail: &[u32], ids: &[u32]) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(model, skip_special_tokens, prompt_tail);
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).expect("the id is known")).collect();
    pieces.push(detokenizer.finish());
    pieces
}

fn ids(model: &TextModel, tokens: &[&str]) -> Vec<u32> {
    let all: Vec<String> = (0..model.vocab_size() as u32).map(|id| model.token_text(id)).collect();
    tokens.iter().map(|token| all.iter().position(|text| text == token).expect("the token exists") as u32).collect()
}

/// Ids below the vocabulary size of each sample come out of these by remainder.
fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..10_000, 0..24)
}

proptest! {
    #[test]
    fn a_stream_gives_the_text_of_the_whole(raw in any_ids(), skip in any::<bool>()) {
        for sample in samples::all() {
            let ids: Vec<u32> = raw.iter().map(|id| id % sample.model.vocab_size() as u32).collect();
            let whole = sample.model.decode(&ids, skip).expect("ids are known");
            prop_assert_eq!(pieces(&sample.model, skip, &[], &ids).concat(), whole, "{}", sample.name);
        }
    }

    #[test]
    fn decoding_is_that_of_the_library(raw in any_ids(), skip in any::<bool>()) {
        for sample in samples::all() {
            let ids: Vec<u32> = raw.iter().map(|id| id % sample.model.vocab_size() as u32).collect();
            let expected = sample.library.decode(&ids, skip).expect("the library decodes");
            // The library spoils a whole run of byte tokens for one bad byte; here the good ones stay.
            if !(sample.name.starts_with("byte tokens") && expected.contains('\u{FFFD}')) {
                prop_assert_eq!(sample.model.decode(&ids, skip).expect("ids are known"), expected, "{}", sample.name);
            }
        }
    }

    #[test]
    fn encoded_text_decodes_as_in_the_library(text in "(hello|world|[ hewo.é€😀\n]){0,20}", skip in any::<bool>()) {
        for sample in samples::all() {
            let ids = sample.model.encode(&text, true).expect("the text is encoded");
            let expected = sample.library.encode(text.as_str(), true).expect("the text is encoded");
            prop_assert_eq!(&ids[..], expected.get_ids());
            let expected = sample.library.decode(&ids, skip).expect("the library decodes");
            prop_assert_eq!(sample.model.decode(&ids, skip).expect("ids are known"), expected, "{}", sample.name);
        }
    }

    /// A prompt and what follows it make one text, wherever a space stands.
    #[test]
    fn a_stream_after_a_prompt_continues_its_text(prompt in "[ helo.é]{0,8}", raw in any_ids(), skip in any::<bool>()) {
        for sample in samples::all() {
            let prompt = sample.model.encode(&prompt, true).expect("the text is encoded");
            let ids: Vec<u32> = raw.iter().map(|id| id % sample.model.vocab_size() as u32).collect();
            let whole = sample.model.decode(&[&prompt[..], &ids].concat(), skip).expect("ids are known");
            let before = sample.model.decode(&prompt, skip).expect("ids are known");
            let after = pieces(&sample.model, skip, &prompt, &ids).concat();
            prop_assert_eq!(before + &after, whole, "{}", sample.name);
        }
    }

    #[test]
    fn characters_are_never_broken_and_never_late(text in "[ aé€😀你]{0,12}") {
        for sample in &samples::all()[..3] {
            let ids = sample.model.encode(&text, false).expect("the text is encoded");
            let pieces = pieces(&sample.model, true, &[], &ids);
            for (count, piece) in pieces.iter().enumerate() {
                prop_assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
                // All that the tokens so far complete has been given: at most one character is open.
                let bytes: usize = ids[..(count + 1).min(ids.len())].iter().map(|&id| sample.model.token_bytes(id).len()).sum();
                let given: usize = pieces[..=count].iter().map(String::len).sum();
                prop_assert!(bytes <= given + 3 + 1, "{bytes} bytes, {given} given"); // One leading space may be stripped.
            }
        }
    }
}

#[test]
fn leading_spaces_are_dropped_at_the_beginning_of_a_text_only() {
    let llama = samples::load(&samples::byte_tokens(true));
    let hello = ids(&llama, &[" hello"]);
    let (bos, word) = (1, ids(&llama, &[" hello", "."]));
    assert_eq!(pieces(&llama, true, &[], &hello).concat(), "hello");
    assert_eq!(pieces(&llama, true, &[bos], &hello).concat(), "hello");
    assert_eq!(pieces(&llama, true, &[&[bos], &word[..]].concat(), &hello).concat(), " hello");
    assert_eq!(llama.decode(&[hello[0], hello[0]], true).expect("ids are known"), "hello hello");
    assert_eq!(llama.decode(&[bos, hello[0]], false).expect("ids are known"), "<s> hello");
}

#[test]
fn bytes_that_are_not_utf8_do_not_stall_the_stream() {
    let model = TextModel::bytes();
    let stream = [0xF0, 0x9F, b'a'.into(), 0xE5, 0xE5, 0xFF, b'b'.into(), 0xE5];
    assert_eq!(
        pieces(&model, true, &[], &stream),
        ["", "", "\u{FFFD}a", "", "\u{FFFD}", "\u{FFFD}\u{FFFD}", "b", "", "\u{FFFD}"]
    );
}

#[test]
fn good_characters_stay_beside_bad_byte_tokens() {
    let llama = samples::load(&samples::byte_tokens(true));
    let byte = |byte: u32| 3 + byte;
    let stream = [byte(0xE4), byte(0xBD), byte(0xA0), byte(0xE4), byte(0xBD), byte(b'!'.into())];
    assert_eq!(pieces(&llama, true, &[], &stream), ["", "", "你", "", "", "\u{FFFD}\u{FFFD}!", ""]);
}

#[test]
fn special_tokens_are_skipped_or_shown() {
    let model = TextModel::bytes();
    let stream = [104, 256, 105];
    assert_eq!(pieces(&model, true, &[], &stream).concat(), "hi");
    assert_eq!(pieces(&model, false, &[], &stream).concat(), "h<|endoftext|>i");
    assert!(model.is_special(256) && !model.is_special(104) && !model.is_special(u32::MAX));
}

#[test]
fn unknown_ids_are_refused_and_leave_the_stream_alone() {
    let model = TextModel::bytes();
    let error = model.decode(&[999], true).expect_err("the id is unknown");
    assert_eq!(error.to_string(), "token id 999 is unknown, the vocabulary has 262 tokens");
    let mut detokenizer = Detokenizer::new(&model, true, &[]);
    assert_eq!(detokenizer.push(0xC3).expect("a byte"), "");
    assert!(matches!(detokenizer.push(999), Err(TextError::UnknownToken { id: 999, vocab_size: 262 })));
    assert_eq!(detokenizer.push(0xA9).expect("a byte"), "é");
}

#[test]
fn texts_of_single_tokens_are_exact_where_bytes_are_asked() {
    let model = TextModel::bytes();
    assert_eq!((model.token_text(0xC3).as_str(), &model.token_bytes(0xC3)[..]), ("\u{FFFD}", &[0xC3][..]));
    assert_eq!(model.token_text(999), "");
    let llama = samples::load(&samples::byte_tokens(true));
    assert_eq!(llama.token_text(ids(&llama, &[" hello"])[0]), " hello");
    assert_eq!(llama.token_bytes(3 + 0xE4), [0xE4]);
}
