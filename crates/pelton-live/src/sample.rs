//! Small inputs for tests.

use std::time::Duration;

use pelton_bench::watch::{Sight, Watch};
use pelton_bench::{Case, CountedBy, ErrorKind, Failure, Limits, Part, Row, TokenArrival, Warmup};

use crate::looks::Looker;
use crate::tally::About;

pub(crate) fn about() -> About {
    About {
        url: "http://127.0.0.1:3000".to_owned(),
        model: None,
        api: Some("tgi"),
        streams: true,
        warmup: Warmup::Requests(0),
        may_steer: true,
    }
}

/// Four users for ten seconds.
pub(crate) fn begin(looker: &mut Looker) {
    let limits = Limits {
        duration: Duration::from_secs(10),
        requests: 1_000_000,
        grace: Duration::from_secs(1),
        at_least: Duration::ZERO,
    };
    looker.see(Sight::Begins { case: &Case::users(4), limits: &limits, n: 0, of: 1 });
}

/// A complete answer, whose last token ends it; arrivals are microseconds after the start, and tokens.
pub(crate) fn row(index: u64, intended_us: u64, start_us: u64, arrivals: &[(u32, u32)]) -> Row {
    let arrivals: Vec<TokenArrival> =
        arrivals.iter().map(|&(at_us, tokens)| TokenArrival { at_us, events: 1, tokens }).collect();
    let output_tokens = arrivals.iter().map(|arrival| arrival.tokens).sum();
    Row {
        index,
        turn: 0,
        user: 0,
        intended_us,
        start_us,
        connect_us: None,
        first_byte_us: None,
        first_event_us: None,
        end_us: arrivals.last().map_or(0, |last| last.at_us),
        arrivals,
        prompt_tokens: 1,
        prompt_tokens_reported: None,
        wished_tokens: output_tokens,
        output_tokens,
        counted_by: CountedBy::Server,
        status: Some(200),
        finish_reason: None,
        server_ms: None,
        failure: None,
        part: Part::Measured,
    }
}

/// A stream that broke with these words.
pub(crate) fn failed(index: u64, words: &str) -> Row {
    Row { failure: Some(Failure::new(ErrorKind::Broken, words)), ..row(index, 0, 0, &[]) }
}
