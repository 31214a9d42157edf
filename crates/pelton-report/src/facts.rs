//! What was measured and how, in words.

use std::time::Duration;

use pelton_bench::results::{Results, TokenSource};
use pelton_bench::search::{Search, SearchEnd};
use pelton_bench::{SearchAxis, Warmup};

use crate::numbers::{percent, plain, utc};
use crate::report::Test;

/// Server, prompts, answers, and what was left out.
pub fn setup(results: &Results) -> Vec<(&'static str, String)> {
    let (plan, server) = (&results.plan, &results.server);
    let model = server.info.get("model_id").and_then(|id| id.as_str()).unwrap_or(&server.model);
    let way = if plan.target.stream { "streamed" } else { "not streamed" };
    let counted = match results.prompts.counted_by {
        TokenSource::Tokenizer => "counted by the tokenizer given",
        TokenSource::Server => "counted by the server",
        TokenSource::Usage => "counted by the answers to a few requests before the run",
        TokenSource::Guess => "guessed as one per word: no tokenizer given and none to ask",
    };
    let workload = &plan.workload;
    let (input, output) = (workload.told_input(), workload.told_output());
    let length = if server.ignores_end_of_text { "end of text ignored" } else { "may end earlier" };
    let warmup = match plan.warmup {
        Warmup::Time(Duration::ZERO) | Warmup::Requests(0) => "no warm-up".to_owned(),
        Warmup::Time(time) => format!("{time:?} warm-up"),
        Warmup::Requests(n) => format!("{n} requests warm-up"),
    };
    let cooldown = match plan.cooldown {
        Duration::ZERO => "no cool-down".to_owned(),
        time => format!("{time:?} cool-down"),
    };
    let mut facts = vec![
        ("server", format!("{} ({}, {way}), model {model}", plan.target.url, server.api.name())),
        ("prompts", format!("{input}, {}, {counted}; seed {}", workload.prompts, workload.seed)),
        ("answers", format!("{output}, {length}")),
        ("left out", format!("{warmup}, {cooldown}")),
    ];
    facts.extend(results.prompts.notes.iter().map(|note| ("source", note.clone())));
    if results.prompts.expected_hit_share > 0.0 {
        let share = percent(results.prompts.expected_hit_share);
        facts.push(("prefixes", format!("a warm prefix cache is expected to find {share} of the prompt tokens")));
    }
    if let Some(search) = &results.search {
        facts.push(("search", found(search)));
    }
    facts
}

/// What a search found.
fn found(search: &Search) -> String {
    let axis = match search.axis {
        SearchAxis::Users => "users",
        SearchAxis::Rate => "requests/s",
    };
    let answer = search.answer.map(|level| format!("targets are met up to {} {axis}", plain(level)));
    let answer = answer.unwrap_or_else(|| "no load that meets the targets was found".to_owned());
    let end = match search.end {
        SearchEnd::Found => "confirmed",
        SearchEnd::UpperBound => "the highest load allowed: the true answer may be higher",
        SearchEnd::NoneMeets => "not even the lowest load meets them",
        SearchEnd::Runs => "ended by the number of runs allowed",
        SearchEnd::Time => "ended by the time allowed",
        SearchEnd::Interrupted => "interrupted",
    };
    format!("{answer} ({end}; {} runs)", search.trials.len())
}

/// The same, and when, where and by which command.
pub fn all(test: &Test) -> Vec<(&'static str, String)> {
    let results = &test.results;
    let machine = &results.machine;
    let memory = machine
        .memory_bytes
        .map_or_else(String::new, |bytes| format!(", {:.0} GiB", bytes as f64 / f64::from(1 << 30)));
    let mut facts = setup(results);
    if !results.server.launch_arguments.is_null() {
        facts.push(("launched with", results.server.launch_arguments.to_string()));
    }
    facts.extend([
        ("began", utc(results.began_unix_s)),
        ("measured on", format!("{}, {} processors{memory}, {}", machine.cpu, machine.cores, machine.system)),
        ("measured by", format!("pelton {}", results.pelton_version)),
        ("command", command(&results.command)),
    ]);
    facts
}

/// As one would type it: words with other than plain characters in quotes.
fn command(words: &[String]) -> String {
    let is_plain = |char: char| char.is_alphanumeric() || "-_./:=,+@%*".contains(char);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn commands_can_be_pasted() {
        let words = ["pelton", "bench", "--slo", "ttft:p95<500ms", "it's", ""].map(str::to_owned);
        assert_eq!(super::command(&words), r"pelton bench --slo 'ttft:p95<500ms' 'it'\''s' ''");
    }
}
