//! Raw rows: what happened to each request, nothing computed from it yet.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Tokens that became readable at one moment: all events completed by one read from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Microseconds after the request's start.
    pub at_us: u32,
    /// Events that carried text or tokens.
    pub events: u32,
    /// Tokens in them.
    pub tokens: u32,
}

/// How the number of generated tokens of a request is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountedBy {
    /// The server said it (usage, details, or a header).
    Server,
    /// One event is one token, as the dialect defines.
    Events,
    /// The server did not say it: chunks with text were counted instead, so the number may be too small.
    Chunks,
}

/// What went wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// No connection could be made.
    Connect,
    /// The request's own time limit passed.
    Timeout,
    /// The server answered with this HTTP status.
    Status(u16),
    /// The connection or the stream ended before the answer was complete.
    Broken,
    /// The stream held an error event.
    ErrorEvent,
    /// The answer was not what its dialect defines.
    Malformed,
    /// It still ran when the grace period at the end was over.
    Cut,
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ErrorKind::Connect => f.write_str("connect"),
            ErrorKind::Timeout => f.write_str("timeout"),
            ErrorKind::Status(status) => write!(f, "status {status}"),
            ErrorKind::Broken => f.write_str("broken stream"),
            ErrorKind::ErrorEvent => f.write_str("error event"),
            ErrorKind::Malformed => f.write_str("malformed"),
            ErrorKind::Cut => f.write_str("cut at the end"),
        }
    }
}

/// A failed request: its kind, and the server's or the system's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub kind: ErrorKind,
    /// At most [`Failure::MAX_MESSAGE_CHARS`] characters.
    pub message: String,
}

impl Failure {
    /// Longest message kept.
    pub const MAX_MESSAGE_CHARS: usize = 200;

    /// Keeps the beginning of the message.
    pub fn new(kind: ErrorKind, message: impl std::fmt::Display) -> Self {
        Self { kind, message: message.to_string().chars().take(Self::MAX_MESSAGE_CHARS).collect() }
    }
}

/// The part of a run to which a request belongs. Rows of every part are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Too early to count.
    Warmup,
    /// Goes into the summary.
    Measured,
    /// Too late to count.
    Cooldown,
}

/// One request. Times are microseconds: `intended_us` and `start_us` after the beginning of the run, all others after `start_us`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Order of intended start.
    pub index: u64,
    /// Virtual user; 0 in the open loop.
    pub user: u32,
    /// When the request should have started. In the closed loop this is when it did.
    pub intended_us: u64,
    /// When it started; a needed connection is made after this.
    pub start_us: u64,
    /// Time spent connecting, if this request had to.
    pub connect_us: Option<u32>,
    /// First byte of the answer's head.
    pub first_byte_us: Option<u32>,
    /// The last byte that belongs to the answer, or the moment of failure.
    pub end_us: u32,
    /// When tokens arrived; one entry for an answer that is not streamed.
    pub arrivals: Vec<Arrival>,
    /// Tokens that the prompt was made to have.
    pub prompt_tokens: u32,
    /// Tokens that the server says it had.
    pub prompt_tokens_reported: Option<u32>,
    /// Tokens generated.
    pub output_tokens: u32,
    /// How `output_tokens` is known.
    pub counted_by: CountedBy,
    /// HTTP status, once there was one.
    pub status: Option<u16>,
    /// Why the server ended, in its words.
    pub finish_reason: Option<String>,
    /// `None` if the answer is complete.
    pub failure: Option<Failure>,
    /// Part of the run; set when the run is over.
    pub part: Part,
}

/// A row being written while its request runs.
#[derive(Debug)]
pub struct RowBuilder {
    row: Row,
    start: Instant,
}

impl RowBuilder {
    /// A request that starts now: at `start`, instead of at `intended`, both after `run_start`.
    pub fn new(
        index: u64,
        user: u32,
        run_start: Instant,
        intended: Instant,
        start: Instant,
        prompt_tokens: u32,
    ) -> Self {
        let since = |instant: Instant| instant.saturating_duration_since(run_start).as_micros() as u64;
        let row = Row {
            index,
            user,
            intended_us: since(intended),
            start_us: since(start),
            connect_us: None,
            first_byte_us: None,
            end_us: 0,
            arrivals: Vec::new(),
            prompt_tokens,
            prompt_tokens_reported: None,
            output_tokens: 0,
            counted_by: CountedBy::Chunks,
            status: None,
            finish_reason: None,
            failure: None,
            part: Part::Measured,
        };
        Self { row, start }
    }

    /// A connection was made between `began` and now.
    pub fn connected(&mut self, took: Duration) {
        self.row.connect_us = Some(micros(took));
    }

    /// The answer's head arrived.
    pub fn head(&mut self, at: Instant, status: u16) {
        self.row.first_byte_us = Some(self.after_start(at));
        self.row.status = Some(status);
    }

    /// `events` with text arrived, holding `tokens`. Events of one read join.
    pub fn arrived(&mut self, at: Instant, events: u32, tokens: u32) {
        let at_us = self.after_start(at);
        match self.row.arrivals.last_mut() {
            Some(last) if last.at_us == at_us => {
                last.events = last.events.saturating_add(events);
                last.tokens = last.tokens.saturating_add(tokens);
            }
            _ => self.row.arrivals.push(Arrival { at_us, events, tokens }),
        }
    }

    /// Something that belongs to the answer arrived.
    pub fn touch(&mut self, at: Instant) {
        self.row.end_us = self.after_start(at);
    }

    /// What the server reports of the prompt.
    pub fn prompt_tokens(&mut self, reported: u32) {
        self.row.prompt_tokens_reported = Some(reported);
    }

    /// Why the server ended.
    pub fn finish_reason(&mut self, reason: &str) {
        self.row.finish_reason = Some(reason.chars().take(40).collect());
    }

    /// Settles the number of generated tokens.
    ///
    /// `Server` counts that differ from what the arrivals hold are spread evenly over the events, in order.
    pub fn count(&mut self, tokens: u32, by: CountedBy) {
        self.row.output_tokens = tokens;
        self.row.counted_by = by;
        let arrivals = &mut self.row.arrivals;
        let held: u64 = arrivals.iter().map(|arrival| u64::from(arrival.tokens)).sum();
        let events: u64 = arrivals.iter().map(|arrival| u64::from(arrival.events)).sum();
        if held == u64::from(tokens) || events == 0 {
            return;
        }
        let (mut seen, mut given) = (0, 0);
        for arrival in arrivals {
            seen += u64::from(arrival.events);
            let due = u64::from(tokens) * seen / events;
            arrival.tokens = (due - given) as u32; // At most `tokens`.
            given = due;
        }
    }

    /// Tokens seen so far, before they are settled.
    pub fn tokens_so_far(&self) -> u32 {
        self.row.arrivals.iter().map(|arrival| arrival.tokens).sum()
    }

    /// Ends the row; a failure ends it at `now`.
    pub fn finish(mut self, failure: Option<Failure>, now: Instant) -> Row {
        if failure.is_some() {
            self.touch(now);
            if self.row.output_tokens == 0 {
                self.row.output_tokens = self.tokens_so_far();
            }
        }
        self.row.failure = failure;
        self.row
    }

    fn after_start(&self, at: Instant) -> u32 {
        micros(at.saturating_duration_since(self.start))
    }
}

/// Saturates after 71 minutes.
fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(arrivals: &[(u64, u32, u32)]) -> RowBuilder {
        let start = Instant::now();
        let mut builder = RowBuilder::new(0, 0, start, start, start, 1);
        for &(us, events, tokens) in arrivals {
            builder.arrived(start + Duration::from_micros(us), events, tokens);
        }
        builder
    }

    #[test]
    fn events_of_one_read_are_one_arrival() {
        let mut builder = builder(&[(5, 1, 1), (5, 2, 3), (6, 1, 1)]);
        builder.count(5, CountedBy::Events);
        let row = builder.finish(None, Instant::now());
        let expected = [Arrival { at_us: 5, events: 3, tokens: 4 }, Arrival { at_us: 6, events: 1, tokens: 1 }];
        assert_eq!(row.arrivals, expected);
    }

    #[test]
    fn tokens_that_the_server_counted_are_spread_over_the_events() {
        let tokens = |reported| {
            let mut builder = builder(&[(1, 1, 1), (2, 2, 2), (3, 1, 1)]);
            builder.count(reported, CountedBy::Server);
            builder.finish(None, Instant::now()).arrivals.iter().map(|a| a.tokens).collect::<Vec<_>>()
        };
        assert_eq!(tokens(4), [1, 2, 1]);
        assert_eq!(tokens(5), [1, 2, 2]);
        assert_eq!(tokens(8), [2, 4, 2]);
        assert_eq!(tokens(2), [0, 1, 1]);
    }
}
