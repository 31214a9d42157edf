//! Every load does what it says, targets and searches find what is true, and shares make the whole.

mod mock;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mock::{Act, Mock, Pace, Question, run, tgi_facts, tgi_stream};
use pelton_bench::merge::{MergeError, merge};
use pelton_bench::results::{Results, RunResult};
use pelton_bench::search::SearchEnd;
use pelton_bench::slo::Aggregate;
use pelton_bench::watch::{Blind, Control, Sight, Watch};
use pelton_bench::{
    Arrival, BenchError, BenchPlan, Case, Goals, KeepRows, Lengths, Load, Metric, OpenBounds, Outcome, PromptMix,
    Rates, SearchAxis, SearchPlan, Shape, Shard, Source, Stage, Starts, Users, WorkloadPlan, compare,
};

/// How long a test waits for a quiet moment.
const PATIENCE: Duration = Duration::from_secs(120);

fn plan(mock: &Mock, load: impl Into<Load>, duration_ms: u64, requests: u64) -> BenchPlan {
    let mut plan = mock::plan(mock.url(), requests, 2);
    plan.load = load.into();
    plan.limits.duration = Duration::from_millis(duration_ms);
    plan
}

fn paced(first_ms: u64, gap_ms: u64) -> Mock {
    Mock::start(move |question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(first_ms, gap_ms))))
}

fn watched(plan: &BenchPlan, watch: &mut dyn Watch, control: &Control) -> Results {
    pelton_bench::run(plan, Vec::new(), watch, control).expect("the server answers")
}

fn stage(ms: u64, target: f64) -> Stage {
    Stage { duration: Duration::from_millis(ms), target }
}

fn intended_us(run: &RunResult) -> Vec<u64> {
    run.rows.iter().map(|row| row.intended_us).collect()
}

/// Up to six in 600 ms, held, down to two at once.
#[test]
fn ramping_users_come_and_go_at_their_times() {
    let mock = paced(5, 1);
    let stages = vec![stage(600, 6.0), stage(400, 6.0), stage(0, 2.0)];
    let case = Case::Closed { users: Users::Ramping { from: 0, stages }, each: None };
    let report = run(&plan(&mock, case, 1500, 100_000));
    let rows = &report.runs[0].rows;
    for user in 0..6u32 {
        let starts: Vec<u64> = rows.iter().filter(|row| row.user == user).map(|row| row.start_us).collect();
        // User n comes where the line passes n + 1/2; it may be late, never early.
        let due = 1000 * (100 * u64::from(user) + 50);
        assert!(starts.first().is_some_and(|&first| first >= due), "user {user} was due at {due}: {starts:?}");
        // A request under way is finished, and no other begun; half a second is patience for a busy machine.
        let last = *starts.last().expect("there is a first");
        assert!(user < 2 || last < 1_500_000 - 100_000, "user {user} started at {last}");
    }
    assert!(rows.iter().any(|row| row.user < 2 && row.start_us > 1_300_000), "two users go on to the end");
    assert!(rows.iter().all(|row| row.failure.is_none()));
}

#[test]
fn each_user_makes_its_own_number_of_requests() {
    let mock = paced(1, 0);
    let case = Case::Closed { users: Users::Constant(4), each: Some(3) };
    let report = run(&plan(&mock, case.clone(), 30_000, 100_000));
    let run_of = |user| report.runs[0].rows.iter().filter(|row| row.user == user).count();
    assert_eq!([0, 1, 2, 3].map(run_of), [3; 4]);
    assert_eq!(report.runs[0].case, case);
    // All were started: the window ends with the last answer, not with the duration.
    assert!(report.runs[0].summary.rates.to_s < 20.0, "{:?}", report.runs[0].summary.rates);
    // The number that all share comes first where it is smaller.
    assert_eq!(run(&plan(&mock, case, 30_000, 7)).runs[0].rows.len(), 7);
}

/// Asks for more users, then for fewer, then for the end, as soon as it sees that the wish before was fulfilled.
struct Hand {
    control: Control,
    seen: Vec<usize>,
}

impl Watch for Hand {
    fn see(&mut self, sight: Sight<'_>) {
        let Sight::Moment(now, _) = sight else { return };
        let users = now.users.expect("users are steered");
        if self.seen.last() != Some(&users) {
            self.seen.push(users);
        }
        match users {
            1 => self.control.set_users(5),
            5 => self.control.set_users(2),
            _ => self.control.stop(),
        }
    }
}

#[test]
fn a_hand_changes_the_number_of_users_and_ends_the_run() {
    let mock = paced(5, 1);
    for (users, words) in [(Users::Steered { from: 1 }, "interrupted"), (Users::Constant(1), "changed by hand")] {
        let control = Control::default();
        let mut hand = Hand { control: control.clone(), seen: Vec::new() };
        let case = Case::Closed { users, each: None };
        let report = watched(&plan(&mock, case, 60_000, 100_000), &mut hand, &control);
        assert_eq!(hand.seen, [1, 5, 2]);
        let users: BTreeSet<u32> = report.runs[0].rows.iter().map(|row| row.user).collect();
        assert_eq!(users.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let notes = &report.runs[0].summary.notes;
        assert!(notes.iter().any(|note| note.contains(words)), "{notes:?}");
    }
}

/// Tokens of a request under way are seen before it ends.
#[test]
fn tokens_are_seen_as_they_arrive() {
    struct Tokens(Vec<(u64, u64)>);
    impl Watch for Tokens {
        fn see(&mut self, sight: Sight<'_>) {
            if let Sight::Moment(now, _) = sight {
                self.0.push((now.done, now.tokens));
            }
        }
    }
    let mock = paced(10, 50);
    let mut plan = plan(&mock, Load::users([1]), 30_000, 1);
    plan.workload = WorkloadPlan::synthetic(20, 20, 1);
    let mut tokens = Tokens(Vec::new());
    watched(&plan, &mut tokens, &Control::default());
    let under_way: Vec<u64> = tokens.0.iter().filter(|(done, _)| *done == 0).map(|(_, tokens)| *tokens).collect();
    assert!(under_way.windows(2).any(|pair| 0 < pair[0] && pair[0] < pair[1]), "{under_way:?}");
}

#[test]
fn bursts_ramps_and_random_gaps_are_intended_as_planned() {
    let mock = paced(1, 0);
    let bounds = OpenBounds::default();
    let burst = run(&plan(&mock, Case::rate(40.0, Arrival::Burst { size: 4 }, bounds), 30_000, 10));
    assert_eq!(intended_us(&burst.runs[0]), [0, 0, 0, 0, 100_000, 100_000, 100_000, 100_000, 200_000, 200_000]);

    // From 0 to 100 per second in a second are 50, then nothing more: the run ends by itself.
    let stages = vec![stage(1000, 100.0), stage(0, 0.0)];
    let ramp = Case::Open { starts: Starts::Ramping { from: 0.0, stages, arrival: Arrival::Constant }, bounds };
    let ramp = run(&plan(&mock, ramp, 30_000, 1000));
    assert_eq!((ramp.runs[0].rows.len(), ramp.runs[0].summary.requests.dropped), (50, 0));
    let expected = |n: usize| ((2.0 * n as f64 / 100.0).sqrt() * 1e6) as u64;
    for (n, at) in intended_us(&ramp.runs[0]).into_iter().enumerate() {
        assert!(at.abs_diff(expected(n)) < 3, "start {n} at {at}, expected {}", expected(n));
    }
    assert!(ramp.runs[0].wall_s < 20.0, "{} s", ramp.runs[0].wall_s);

    let gamma = |shape| Case::rate(500.0, Arrival::Gamma { shape }, bounds);
    let times = |shape| intended_us(&run(&plan(&mock, gamma(shape), 30_000, 40)).runs[0]);
    assert_eq!(times(0.2), times(0.2));
    assert_ne!(times(0.2), times(5.0));
}

#[test]
fn a_trace_is_replayed_at_its_times_and_lengths() {
    let asked: Arc<Mutex<Vec<(usize, u64)>>> = Arc::default();
    let list = Arc::clone(&asked);
    let mock = Mock::start(move |question| {
        tgi_facts(question).unwrap_or_else(|| {
            let prompt = mock::tokens(question.body["inputs"].as_str().expect("a prompt"));
            let wished = question.body["parameters"]["max_new_tokens"].as_u64().expect("a number");
            list.lock().expect("not poisoned").push((prompt, wished));
            tgi_stream(question, Pace::ms(1, 0))
        })
    });
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("trace.jsonl");
    let lines = [(1000, 30, 3), (1200, 40, 2), (1800, 25, 5)].map(|(at, input, output)| {
        format!("{{\"timestamp\": {at}, \"input_length\": {input}, \"output_length\": {output}, \"hash_ids\": [1]}}\n")
    });
    std::fs::write(&path, lines.concat()).expect("the directory is writable");
    let starts = Starts::Trace { path: path.clone(), speed: 2.0 };
    let mut plan = plan(&mock, Case::Open { starts, bounds: OpenBounds::default() }, 30_000, 1000);
    plan.workload = WorkloadPlan { source: Source::Trace(path), ..WorkloadPlan::default() };
    let report = run(&plan);
    assert_eq!(intended_us(&report.runs[0]), [0, 100_000, 400_000]);
    assert_eq!(report.runs[0].case.to_string(), "trace trace.jsonl 2 times faster");
    let asked = asked.lock().expect("not poisoned");
    assert_eq!(asked[asked.len() - 3..], [(30, 3), (40, 2), (25, 5)]);
}

/// Answers after 20 ms while at most `limit` requests run, after 200 ms when there are more.
fn crowded(limit: usize) -> Mock {
    let ends: Mutex<Vec<Instant>> = Mutex::default();
    Mock::start(move |question: &Question| {
        tgi_facts(question).unwrap_or_else(|| {
            let mut ends = ends.lock().expect("not poisoned");
            ends.retain(|&end| end > question.received);
            let first = Duration::from_millis(if ends.len() < limit { 20 } else { 200 });
            ends.push(question.received + first);
            tgi_stream(question, Pace { first, gap: Duration::ZERO })
        })
    })
}

fn goals(slos: &[&str], search: Option<SearchPlan>) -> Goals {
    Goals { slos: slos.iter().map(|slo| slo.parse().expect(slo)).collect(), repeats: 1, search }
}

fn search(to: f64) -> SearchPlan {
    SearchPlan { axis: SearchAxis::Users, from: 1.0, to, precision: 0.01, confirm: 2, max_runs: 60, max_time: PATIENCE }
}

#[test]
fn the_highest_number_of_users_within_the_targets_is_found() {
    let mut plan = plan(&crowded(5), Load::users([1]), 500, 100_000);
    plan.goals = goals(&["ttft:p50<100ms", "error-rate<1%"], Some(search(64.0)));
    // Other work on the machine keeps users from running together, so the crowd that slows this server does not always gather.
    let began = Instant::now();
    let is_found = |report: &Results| {
        let found = report.search.as_ref().expect("a search was asked for");
        (found.answer, found.end) == (Some(5.0), SearchEnd::Found)
    };
    let mut report = run(&plan);
    while !is_found(&report) && began.elapsed() < PATIENCE {
        report = run(&plan);
    }
    let found = report.search.as_ref().expect("a search was asked for");
    assert_eq!((found.answer, found.end), (Some(5.0), SearchEnd::Found), "{found:?}");
    assert_eq!(found.trials.len(), report.runs.len());
    for trial in &found.trials {
        let run = &report.runs[trial.run];
        assert_eq!(run.case, Case::users(trial.level as usize));
        assert_eq!(run.verdicts.iter().all(|verdict| verdict.ok), trial.ok);
    }
    assert_eq!(report.outcome_of_server(), Outcome::Met);
}

#[test]
fn a_search_is_bounded_in_runs_and_tells_when_nothing_meets() {
    let mut plan = plan(&paced(20, 0), Load::users([1]), 100, 100_000);
    plan.goals = goals(&["ttft:p50<1ms"], Some(search(64.0)));
    let none = run(&plan);
    assert_eq!(none.search.as_ref().map(|found| (found.answer, found.end)), Some((None, SearchEnd::NoneMeets)));
    assert_eq!((none.outcome_of_server(), none.outcome_of_server().exit_code()), (Outcome::TargetsMissed, 3));
    plan.goals = goals(&["ttft:p50<10s"], Some(SearchPlan { max_runs: 2, ..search(64.0) }));
    let bounded = run(&plan);
    assert_eq!((bounded.search.as_ref().map(|found| found.end), bounded.runs.len()), (Some(SearchEnd::Runs), 2));
}

#[test]
fn targets_are_judged_and_give_the_exit_code() {
    let mock = paced(20, 2);
    let mut plan = plan(&mock, Load::users([1]), 30_000, 5);
    plan.goals = goals(&["ttft:max<10s", "error-rate<1%", "attainment>=100%"], None);
    let met = run(&plan);
    assert_eq!(met.runs[0].verdicts.iter().map(|verdict| verdict.ok).collect::<Vec<_>>(), [true; 3]);
    assert_eq!(met.outcome_of_server().exit_code(), 0);
    let goodput = met.runs[0].summary.goodput.as_ref().expect("a target judges requests");
    assert_eq!((goodput.attainment, goodput.requests_per_s), (1.0, met.runs[0].summary.rates.requests_per_s));
    plan.goals = goals(&["ttft:max<10s", "ttft:p50<15ms"], None);
    let missed = run(&plan);
    assert_eq!(missed.runs[0].verdicts.iter().map(|verdict| verdict.ok).collect::<Vec<_>>(), [true, false]);
    assert_eq!(missed.runs[0].summary.goodput.as_ref().map(|goodput| goodput.attainment), Some(0.0));
    assert_eq!(missed.outcome_of_server(), Outcome::TargetsMissed);

    let broken = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            // The request before the run is answered.
            if question.nth == 0 { tgi_stream(question, Pace::ms(0, 0)) } else { vec![Act::Close] }
        })
    });
    plan.target.url = broken.url();
    assert_eq!(run(&plan).outcome(), Outcome::NothingMeasured);
}

#[test]
fn repetitions_are_interleaved_and_estimated_together() {
    let mock = paced(5, 1);
    let mut plan = plan(&mock, Load::users([1, 2]), 30_000, 6);
    plan.goals.repeats = 3;
    let report = run(&plan);
    let order: Vec<(String, u32)> = report.runs.iter().map(|run| (run.case.to_string(), run.repeat)).collect();
    let expected = [("1 user", 0), ("2 users", 0), ("1 user", 1), ("2 users", 1), ("1 user", 2), ("2 users", 2)];
    assert_eq!(order, expected.map(|(case, repeat)| (case.to_owned(), repeat)));
    let estimates = &report.estimates;
    assert_eq!(estimates.iter().map(|case| case.runs.clone()).collect::<Vec<_>>(), [vec![0, 2, 4], vec![1, 3, 5]]);
    let ttft = estimates[0].estimates.iter().find(|e| (e.metric, e.aggregate) == (Metric::Ttft, Aggregate::P50));
    let ttft = ttft.expect("first tokens were timed");
    let interval = ttft.interval.expect("three runs of six requests");
    assert!(interval.low <= ttft.value && ttft.value <= interval.high && interval.low >= 5.0, "{ttft:?}");
}

#[test]
fn differences_of_servers_are_told_and_equal_ones_are_not() {
    // A busy machine may hold requests up for tens of milliseconds.
    let report = |first_ms| run(&plan(&paced(first_ms, 1), Load::users([2]), 30_000, 30));
    let (fast, slow) = (report(10), report(160));
    let (fast, slow) = ([&fast.runs[0]], [&slow.runs[0]]);
    let difference = compare(&fast, &slow, Metric::Ttft, Aggregate::P50).expect("both have first tokens");
    assert_eq!(difference.words(), "higher", "{difference:?}");
    let interval = difference.interval.expect("enough requests");
    assert!(interval.low <= difference.absolute() && difference.absolute() <= interval.high, "{difference:?}");
    let same = compare(&fast, &fast, Metric::Ttft, Aggregate::P50).expect("there are first tokens");
    assert_eq!((same.absolute(), same.words()), (0.0, "no significant difference"));
    assert_eq!(compare(&fast, &slow, Metric::Lateness, Aggregate::P50), None, "a closed loop has no lateness");
}

#[test]
fn one_prompt_for_all_leaves_each_answer_its_own_length() {
    let prompts: Arc<Mutex<HashSet<String>>> = Arc::default();
    let list = Arc::clone(&prompts);
    let mock = Mock::start(move |question| {
        tgi_facts(question).unwrap_or_else(|| {
            list.lock().expect("not poisoned").insert(question.body["inputs"].as_str().expect("a prompt").to_owned());
            tgi_stream(question, Pace::ms(1, 1))
        })
    });
    let mut plan = plan(&mock, Load::users([1, 2]), 30_000, 20);
    plan.workload.prompts = PromptMix::Same;
    plan.workload.input_tokens = Some(Lengths::of(Shape::Uniform(20, 200)));
    plan.workload.output_tokens = Some(Lengths::of(Shape::Uniform(2, 40)));
    let report = run(&plan);
    let lengths: BTreeSet<u32> = report.runs[0].rows.iter().map(|row| row.wished_tokens).collect();
    assert!(lengths.len() > 5, "{lengths:?}");
    // The sample, and the one prompt of both runs.
    assert_eq!(prompts.lock().expect("not poisoned").len(), 2);
}

/// Ends the test when its first run is over.
struct EnoughOfOne(Control);

impl Watch for EnoughOfOne {
    fn see(&mut self, sight: Sight<'_>) {
        if let Sight::Ends(_) = sight {
            self.0.stop();
        }
    }
}

#[test]
fn an_end_between_two_runs_begins_no_other() {
    let mock = paced(1, 1);
    let control = Control::default();
    let plan = plan(&mock, Load::users([1, 2, 3]), 30_000, 3);
    let report = watched(&plan, &mut EnoughOfOne(control.clone()), &control);
    assert_eq!((report.runs.len(), report.runs[0].rows.len()), (1, 3));
    assert_eq!(report.outcome_of_server(), Outcome::Met);
}

#[test]
fn a_share_without_users_ends_at_once() {
    let mock = paced(1, 1);
    let mut plan = plan(&mock, Load::users([2]), 30_000, 100);
    plan.scale.shard = Some(Shard { index: 0, of: 4 });
    let began = Instant::now();
    assert!(run(&plan).runs[0].rows.is_empty());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// The shares of a plan, run one after another.
fn shares(plan: &BenchPlan, of: u32) -> Vec<Results> {
    let share = |index| {
        let mut plan = plan.clone();
        plan.scale.shard = Some(Shard { index, of });
        run(&plan)
    };
    (0..of).map(share).collect()
}

#[test]
fn shares_of_an_open_loop_are_the_whole_schedule() {
    let prompts: Arc<Mutex<Vec<String>>> = Arc::default();
    let list = Arc::clone(&prompts);
    let mock = Mock::start(move |question| {
        tgi_facts(question).unwrap_or_else(|| {
            list.lock().expect("not poisoned").push(question.body["inputs"].as_str().expect("a prompt").to_owned());
            tgi_stream(question, Pace::ms(5, 1))
        })
    });
    let case = Case::rate(50.0, Arrival::Poisson, OpenBounds::default());
    let plan = plan(&mock, case, 30_000, 31);
    let whole = intended_us(&run(&plan).runs[0]);
    prompts.lock().expect("not poisoned").clear();
    let parts = shares(&plan, 3);
    assert_eq!(parts.iter().map(|part| part.runs[0].rows.len()).collect::<Vec<_>>(), [11, 10, 10]);
    let mut together: Vec<u64> = parts.iter().flat_map(|part| intended_us(&part.runs[0])).collect();
    together.sort_unstable();
    assert_eq!(together, whole);
    // One request before each run has the sample's text; all others differ.
    let different: HashSet<String> = prompts.lock().expect("not poisoned").iter().cloned().collect();
    assert_eq!(different.len(), 31 + 1);

    // The order of the files does not matter. They did not run at once here, so that times lie apart by what the clocks say.
    let merged = merge(parts.iter().rev().cloned().collect()).expect("shares of one test");
    let run = &merged.runs[0];
    assert_eq!((run.summary.requests.measured, run.summary.requests.complete), (31, 31));
    assert_eq!(run.rows.iter().map(|row| row.index).collect::<Vec<_>>(), (0..31).collect::<Vec<_>>());
    assert!(run.rows.windows(2).all(|pair| pair[0].intended_us <= pair[1].intended_us));
    let began = parts.iter().map(|part| part.runs[0].began_unix_s).fold(f64::INFINITY, f64::min);
    assert_eq!(run.began_unix_s, began);
    let last = &parts[2].runs[0];
    let moved_us = ((last.began_unix_s - began) * 1e6).round() as u64;
    assert!(run.rows.iter().any(|row| row.start_us == last.rows[0].start_us + moved_us));
    assert_eq!(merged.plan.scale.shard, None);
}

#[test]
fn shares_of_a_closed_loop_divide_users_and_requests() {
    let mock = paced(2, 1);
    let parts = shares(&plan(&mock, Load::users([5]), 30_000, 21), 2);
    assert_eq!(parts.iter().map(|part| part.runs[0].rows.len()).collect::<Vec<_>>(), [10, 11]);
    let users = |part: &Results| part.runs[0].rows.iter().map(|row| row.user).collect::<BTreeSet<u32>>();
    let (one, other) = (users(&parts[0]), users(&parts[1]));
    assert!(one.is_disjoint(&other) && one.len() <= 2 && other.len() <= 3, "{one:?} {other:?}");
    let merged = merge(parts).expect("shares of one test");
    assert_eq!(merged.runs[0].summary.requests.complete, 21);
}

#[test]
fn without_rows_histograms_are_merged() {
    // Far enough apart that a busy machine reads no two tokens at once, between which there would be no gap.
    let mock = paced(20, 200);
    let mut plan = plan(&mock, Load::users([2]), 30_000, 20);
    plan.goals = goals(&["ttft:p50<10s"], None);
    let with_rows = merge(shares(&plan, 2)).expect("shares of one test");
    plan.scale.keep = KeepRows::None;
    let parts = shares(&plan, 2);
    assert!(parts.iter().all(|part| part.runs[0].rows.is_empty()));
    let without = merge(parts.clone()).expect("shares of one test");
    let (a, b) = (&with_rows.runs[0].summary, &without.runs[0].summary);
    assert_eq!(a.requests, b.requests);
    assert_eq!(a.prompts, b.prompts);
    // The shares ran one after another: all that was answered lies between the beginning of the first and the end of the last.
    for summary in [a, b] {
        let Rates { from_s, to_s, requests_per_s, .. } = summary.rates;
        assert!(from_s < 0.1 && to_s > 4.0, "{from_s} {to_s}");
        assert!((requests_per_s * (to_s - from_s) - 20.0).abs() < 0.5, "{requests_per_s} until {to_s} s");
        assert!(summary.notes.iter().any(|note| note.contains("s apart")), "{:?}", summary.notes);
    }
    let ttft = b.ttft_ms.as_ref().expect("histograms hold first tokens");
    assert_eq!((ttft.count, b.itl_ms.as_ref().map(|itl| itl.count)), (20, Some(20)));
    // Between the smallest and the largest of the parts, within the precision.
    let of_parts = || parts.iter().filter_map(|part| part.runs[0].summary.ttft_ms.as_ref());
    let (min, max) =
        (of_parts().map(|t| t.min).fold(f64::INFINITY, f64::min), of_parts().map(|t| t.max).fold(0.0, f64::max));
    assert!((ttft.min / min - 1.0).abs() < 2e-3 && (ttft.max / max - 1.0).abs() < 2e-3, "{ttft:?} {min} {max}");
    assert!(without.runs[0].verdicts[0].ok);
    assert!(b.notes.iter().any(|note| note.contains("merged histograms")), "{:?}", b.notes);
}

#[test]
fn what_is_no_set_of_shares_is_not_merged() {
    let mock = paced(1, 0);
    let plan = plan(&mock, Load::users([2]), 30_000, 4);
    let parts = shares(&plan, 2);
    let merged = |parts: &[&Results]| merge(parts.iter().map(|&part| part.clone()).collect());
    assert!(matches!(merged(&[]), Err(MergeError::Nothing)));
    assert!(matches!(merged(&[&parts[0]]), Err(MergeError::Missing { found: 1, of: 2 })));
    assert!(matches!(merged(&[&parts[0], &parts[0]]), Err(MergeError::Twice { part: 2, .. })));
    let mut other = parts[1].clone();
    other.plan.workload.seed += 1;
    assert!(matches!(merged(&[&parts[0], &other]), Err(MergeError::Different { part: 2, what: "seed" })));
    let mut later = parts[1].clone();
    later.runs[0].began_unix_s += 1000.0;
    assert!(matches!(merged(&[&parts[0], &later]), Err(MergeError::Apart { run: 1, part: 2, .. })));
    let whole = run(&plan);
    assert_eq!(merged(&[&whole]).expect("one whole test").runs[0].rows.len(), whole.runs[0].rows.len());
}

#[test]
fn what_no_test_can_have_is_refused_before_the_run() {
    let mock = paced(1, 0);
    let plan = plan(&mock, Load::users([1]), 1000, 10);
    let refused = |change: &dyn Fn(&mut BenchPlan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        match pelton_bench::run(&plan, Vec::new(), &mut Blind, &Control::default()) {
            Err(BenchError::Plan(text)) => text,
            other => panic!("not refused: {other:?}"),
        }
    };
    assert!(refused(&|plan| plan.goals.search = Some(search(64.0))).contains("a search needs a target"));
    assert!(refused(&|plan| plan.goals.repeats = 0).contains("repeats must be in 1..=1000, given 0"));
    assert!(refused(&|plan| plan.scale.shard = Some(Shard { index: 2, of: 2 })).contains("given 2/2"));
    assert!(
        refused(&|plan| {
            plan.goals = goals(&["ttft:p50<1s"], Some(search(64.0)));
            plan.scale.shard = Some(Shard { index: 0, of: 2 });
        })
        .contains("a search cannot be shared")
    );
}
