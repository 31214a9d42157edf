//! Whatever a model wants to say, its text keeps to the grammar; and no grammar hurts who reads it.

use crate::samples::{self, Sample};
use fastrand::Rng;
use pelton_text::{Detokenizer, Grammar, GrammarEnding, GrammarError, TextModel};
use regex::Regex;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A text that `grammar` allows, drawn token by token; `None` when it grows too long to wait for its end.
fn draw(model: &TextModel, grammar: &Grammar, rng: &mut Rng) -> Option<String> {
    const MAX_TOKENS: usize = 400;
    let mut matcher = model.grammar(grammar).expect("the grammar is valid");
    // As after a prompt: no tokenizer drops a space then.
    let mut detokenizer = Detokenizer::new(model, true, &model.encode("e", false).expect("encoded"));
    let mut text = String::new();
    let mut previous = None;
    for _ in 0..MAX_TOKENS {
        let mut allowed = Vec::new();
        let ending = matcher.next(|words| {
            allowed.extend(
                (0..model.vocab_size() as u32).filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1),
            );
        });
        let ending = ending.expect("the text can be followed");
        allowed.retain(|token| !model.eos_token_ids().contains(token));
        if ending == GrammarEnding::Must || ending == GrammarEnding::May && (allowed.is_empty() || rng.u8(..3) == 0) {
            text.push_str(&detokenizer.finish());
            return Some(text);
        }
        // Ends are looked for: a string goes on for ever if its quote is one of a hundred tokens.
        let closing =
            allowed.iter().copied().find(|&token| matches!(model.token_text(token).as_str(), "\"" | "}" | "]" | ","));
        let token = closing.filter(|_| rng.u8(..3) == 0).unwrap_or_else(|| allowed[rng.usize(..allowed.len())]);
        // A fork in the same state allows the same.
        if rng.u8(..8) == 0 {
            matcher = matcher.fork();
        }
        matcher.accept(token).expect("what is allowed is accepted");
        assert!(!model.is_special(token), "{token}");
        text.push_str(&detokenizer.push(token).expect("the token is known"));
        previous = Some(token);
    }
    assert!(previous.is_some());
    None
}

/// Draws from each sample that has tokens for any text, and hands the texts to `check`.
fn each(grammar: &Grammar, check: impl Fn(&str)) {
    let mut num_drawn = 0;
    for Sample { name, model, .. } in samples::all().iter().filter(|sample| sample.name.starts_with("byte")) {
        for seed in 0..12 {
            if let Some(text) = draw(model, grammar, &mut Rng::with_seed(seed)) {
                let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&text)));
                assert!(checked.is_ok(), "{name}, seed {seed}: {text:?}");
                num_drawn += 1;
            }
        }
    }
    let bytes = TextModel::bytes();
    for seed in 0..12 {
        if let Some(text) = draw(&bytes, grammar, &mut Rng::with_seed(seed)) {
            check(&text);
            num_drawn += 1;
        }
    }
    assert!(num_drawn >= 24, "only {num_drawn} texts came to an end");
}

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema(schema.to_string())
}

#[test]
fn patterns_are_matched_as_a_whole() {
    for pattern in [
        r"[a-c]{2,5}-\d+",
        r"^(yes|no|perhaps)$",
        r"\w+@(hello|world)\.(com|org)",
        "(é|€|😀){1,4}x?",
        r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)",
        r"a/b\\c\$",
        r"[^a-z]{3}",
    ] {
        let oracle = Regex::new(&format!("^(?:{})$", pattern.trim_matches(['^']))).expect("a pattern");
        each(&Grammar::Regex(pattern.into()), |text| assert!(oracle.is_match(text)));
    }
}

#[test]
fn one_of_the_choices_is_taken_literally() {
    let choices = ["a.b", "a+", "^$", "hello world", "/x\\", "[]{}()|?*", "née"].map(str::to_owned);
    each(&Grammar::Choices(choices.to_vec()), |text| assert!(choices.iter().any(|choice| choice == text)));
}

#[test]
fn json_is_valid_under_its_schema() {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "é"]}, "minItems": 1, "maxItems": 3},
            "address": {"$ref": "#/$defs/address"},
        },
        "required": ["name", "age", "tags"],
        "$defs": {"address": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}, "required": ["zip"]}},
    });
    each(&schema(person), |text| {
        let value: Value = serde_json::from_str(text).expect("JSON");
        let object = value.as_object().expect("an object");
        assert!(object.keys().all(|key| ["name", "age", "tags", "address"].contains(&key.as_str())), "{text}");
        assert!(object["name"].as_str().expect("a string").chars().count() <= 6);
        assert!(object["age"].as_u64().expect("an integer") <= 120);
        let tags = object["tags"].as_array().expect("a list");
        assert!(
            (1..=3).contains(&tags.len())
                && tags.iter().all(|tag| ["a", "b", "é"].contains(&tag.as_str().unwrap_or("")))
        );
        if let Some(address) = object.get("address") {
            let zip = address["zip"].as_str().expect("a string");
            assert!(zip.len() == 5 && zip.bytes().all(|byte| byte.is_ascii_digit()));
        }
        assert!(!text.contains('\n'), "it is compact: {text}");
    });
}

#[test]
fn parts_of_a_schema_that_stand_together_are_not_closed_against_each_other() {
    let parts = json!({
        "allOf": [
            {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]},
        ],
    });
    let beside = json!({
        "type": "object", "properties": {"kind": {"const": "x"}}, "required": ["kind"],
        "anyOf": [{"properties": {"b": {"const": 2}}, "required": ["b"]}, {"properties": {"c": {"const": 3}}, "required": ["c"]}],
    });
    for open in [parts, beside] {
        TextModel::bytes().grammar(&schema(open)).expect("it can be satisfied");
    }
}

#[test]
fn a_lark_grammar_is_followed() {
    let grammar = "start: sum\nsum: NUMBER (\" + \" NUMBER)*\nNUMBER: /[0-9]{1,3}/\n";
    let oracle = Regex::new(r"^\d{1,3}( \+ \d{1,3})*$").expect("a pattern");
    each(&Grammar::Lark(grammar.into()), |text| assert!(oracle.is_match(text)));
}

#[test]
fn tokens_without_a_place_in_the_vocabulary_are_no_obstacle() {
    // A vocabulary of a few words: what they cannot spell cannot be said, and that is told.
    let metaspace = samples::all().iter().find(|sample| sample.name == "metaspace").expect("a sample");
    for seed in 0..8 {
        let text = draw(&metaspace.model, &Grammar::Regex("e(l|o|é){1,9}[.] ?".into()), &mut Rng::with_seed(seed));
        let text = text.expect("it ends");
        assert!(text.starts_with('e') && text.trim_end().ends_with('.') && text.chars().count() <= 12, "{text:?}");
    }
    let refused = metaspace.model.grammar(&Grammar::Regex("\u{4e00}+".into()));
    assert!(refused.is_err(), "no token spells it");
}

#[test]
fn what_is_no_grammar_is_told() {
    let model = TextModel::bytes();
    let lists = "[".repeat(70) + &"]".repeat(70);
    for (grammar, words) in [
        (Grammar::Regex("a(b".into()), "unclosed"),
        (Grammar::Regex("(?=a)b".into()), "look"),
        (Grammar::Regex("x".repeat(20_000)), "limit is 16384"),
        (Grammar::Regex("(".repeat(100) + &")".repeat(100)), "limit is 64"),
        (Grammar::Lark("start: nothing".into()), "nothing"),
        (Grammar::Lark(lists), "limit is 64"),
        (Grammar::Choices(Vec::new()), "choose"),
        (Grammar::JsonSchema("{".into()), "EOF"),
        (Grammar::JsonSchema("3".into()), "object"),
        (Grammar::JsonSchema("[".repeat(1000)), "recursion"),
        (schema(json!({"type": "nonsense"})), "nonsense"),
        (schema(json!({"$ref": "http://example.org/x"})), "http"),
        (schema(json!({"type": "array", "minItems": 1_000_000_000})), "limit is 10000"),
        (schema(json!({"type": "string", "maxLength": 1e12})), "limit is 10000"),
        (schema(json!({"type": "object", "properties": {"a": false}, "required": ["a"]})), "nsatisfiable"),
    ] {
        let Err(error) = model.grammar(&grammar) else { panic!("{grammar:?} is taken") };
        let message = error.to_string();
        assert!(message.contains(words), "{words:?} is not in {message:?}");
        assert!(message.len() < 500 && !message.contains('\n'), "{message}");
    }
    assert!(matches!(model.grammar(&Grammar::JsonSchema("x".repeat(200_000))), Err(GrammarError::TooLong { .. })));
}

/// How long it took to read `grammar`, and the slowest of the steps that followed it, on a thread as small as those of an engine.
fn endure(grammar: &Grammar) -> (Duration, Duration) {
    let started = Instant::now();
    let grammar = grammar.clone();
    // A stack as those of a text pool.
    let reader = std::thread::Builder::new().stack_size(16 << 20).spawn(move || TextModel::bytes().grammar(&grammar));
    let read = reader.expect("a thread").join().expect("no grammar breaks a thread");
    let reading = started.elapsed();
    let Ok(mut matcher) = read else { return (reading, Duration::ZERO) };
    let follow = std::thread::spawn(move || {
        let mut rng = Rng::with_seed(1);
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let started = Instant::now();
            let mut allowed = Vec::new();
            let is_set = |words: &[u32], token: u32| words[token as usize / 32] >> (token % 32) & 1 == 1;
            let ending = matcher.next(|words| allowed.extend((0..256).filter(|&token| is_set(words, token))));
            if ending.is_err() || allowed.is_empty() {
                break;
            }
            let accepted = matcher.accept(allowed[rng.usize(..allowed.len())]);
            slowest = slowest.max(started.elapsed());
            if accepted.is_err() {
                break;
            }
        }
        slowest
    });
    (reading, follow.join().expect("no grammar breaks a thread"))
}

#[test]
fn hostile_grammars_cost_a_bounded_time() {
    let deep =
        |depth: usize| (0..depth).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let many: Vec<String> = (0..8000).map(|index| format!("word{index}")).collect();
    let wide: serde_json::Map<String, Value> =
        (0..1500).map(|index| (format!("property{index}"), json!({"type": "string"}))).collect();
    for grammar in [
        Grammar::Regex("((((a{1,100}){1,100}){1,100}){1,100})".into()),
        Grammar::Regex("(a|b)*c(a|b){2000}".into()),
        Grammar::Regex("x".repeat(16_000)),
        Grammar::Regex("(x?)".repeat(4000)),
        Grammar::Regex("(.*a){60}".into()),
        Grammar::Regex("(a*)*".repeat(50)),
        Grammar::Lark("start: start start | \"a\"".into()),
        Grammar::Lark(format!("start: {}\"a\"", "\"b\" ".repeat(3000))),
        Grammar::Choices(many.clone()),
        schema(json!({"enum": many})),
        schema(deep(60)),
        schema(json!({"type": "object", "properties": wide})),
        schema(
            json!({"type": "array", "items": {"type": "array", "items": {"type": "string", "minLength": 9999}, "minItems": 9999}, "minItems": 9999}),
        ),
        schema(json!({"$ref": "#"})),
        schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})),
        schema(json!({"type": "number", "multipleOf": 0.000_001, "minimum": -1e30, "maximum": 1e30})),
    ] {
        let (reading, slowest_step) = endure(&grammar);
        let name: String = format!("{grammar:?}").chars().take(80).collect();
        println!("{reading:?} to read, {slowest_step:?} a step: {name}");
        // Some hundred times what an idle machine takes.
        assert!(
            reading < Duration::from_secs(30) && slowest_step < Duration::from_secs(5),
            "{reading:?}, {slowest_step:?}: {name}"
        );
    }
}

#[test]
fn the_latest_grammars_are_kept() {
    let model = TextModel::bytes();
    let grammar = Grammar::json_object();
    model.grammar(&grammar).expect("valid");
    let mut tokens = Vec::new();
    // Each beginning is its own: what one text does, another does not see.
    let mut first = model.grammar(&grammar).expect("valid");
    first.accept(b'{'.into()).expect("allowed");
    let mut second = model.grammar(&grammar).expect("valid");
    second.next(|words| tokens.extend_from_slice(words)).expect("followed");
    assert_eq!(tokens.iter().map(|word| word.count_ones()).sum::<u32>(), 1, "only the bracket");
    for index in 0..40 {
        model.grammar(&Grammar::Regex(format!("a{index}"))).expect("valid");
    }
    model.grammar(&grammar).expect("valid again");
}
