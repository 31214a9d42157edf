//! Raw rows: what happened to each request, nothing computed from it yet.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountedBy {
    /// The server said it (usage, details, or a header).
    Server,
    /// One event is one token, as the dialect defines.
    Events,
    /// A tokenizer of our own, from the text of the answer: the server did not say it.
    Tokenizer,
    /// Nobody said it: chunks with text were counted instead, so the number may be too small.
    Chunks,
}

/// What went wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ErrorKind {
    /// No connection could be made.
    Connect,
    /// The request's own time limit passed.
    Timeout,
    /// The server answered with this HTTP status.
    Status(u16),
    /// The server ended a call of gRPC with this status.
    Grpc(u16),
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
            ErrorKind::Grpc(status) => write!(f, "grpc status {status}"),
            ErrorKind::Broken => f.write_str("broken stream"),
            ErrorKind::ErrorEvent => f.write_str("error event"),
            ErrorKind::Malformed => f.write_str("malformed"),
            ErrorKind::Cut => f.write_str("cut at the end"),
        }
    }
}

impl From<ErrorKind> for String {
    fn from(kind: ErrorKind) -> Self {
        kind.to_string()
    }
}

impl TryFrom<String> for ErrorKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = [
            ErrorKind::Connect,
            ErrorKind::Timeout,
            ErrorKind::Broken,
            ErrorKind::ErrorEvent,
            ErrorKind::Malformed,
            ErrorKind::Cut,
        ];
        let status = || text.strip_prefix("status ")?.parse().ok().map(ErrorKind::Status);
        let grpc = || text.strip_prefix("grpc status ")?.parse().ok().map(ErrorKind::Grpc);
        let kind = plain.into_iter().find(|kind| kind.to_string() == text).or_else(status).or_else(grpc);
        kind.ok_or_else(|| format!("{text:?} is no kind of error"))
    }
}

/// A failed request: its kind, and the server's or the system's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Order of intended start.
    pub index: u64,
    /// Position in its conversation, from 0. Turns of one conversation share `index`.
    pub turn: u32,
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
    /// First event of a streamed answer, whatever it holds: a role, a comment of usage, text.
    pub first_event_us: Option<u32>,
    /// The last byte that belongs to the answer, or the moment of failure.
    pub end_us: u32,
    /// When tokens arrived; one entry for an answer that is not streamed.
    #[serde(flatten, with = "columns")]
    pub arrivals: Vec<Arrival>,
    /// Tokens that the prompt was made to have.
    pub prompt_tokens: u32,
    /// Tokens that the server says it had.
    pub prompt_tokens_reported: Option<u32>,
    /// Tokens asked for.
    pub wished_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// How `output_tokens` is known.
    pub counted_by: CountedBy,
    /// HTTP status, once there was one.
    pub status: Option<u16>,
    /// Why the server ended, in its words.
    pub finish_reason: Option<String>,
    /// What the server says of its own time, if it does.
    pub server_ms: Option<ServerTimes>,
    /// `None` if the answer is complete.
    #[serde(rename = "error")]
    pub failure: Option<Failure>,
    /// Part of the run; set when the run is over.
    pub part: Part,
}

/// A server's account of one request, in milliseconds; members that it does not tell are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerTimes {
    /// From receiving to the end.
    pub total: Option<f64>,
    /// Checking and tokenizing.
    pub validation: Option<f64>,
    /// Waiting for its turn.
    pub queue: Option<f64>,
    /// Computing.
    pub inference: Option<f64>,
    /// Computing, for each generated token.
    pub per_token: Option<f64>,
}

/// Arrivals as three lists, which are far shorter than a list of objects.
mod columns {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::Arrival;

    #[derive(Serialize, Deserialize)]
    struct Columns {
        arrivals_us: Vec<u32>,
        arrival_tokens: Vec<u32>,
        arrival_events: Vec<u32>,
    }

    pub fn serialize<S: Serializer>(arrivals: &[Arrival], serializer: S) -> Result<S::Ok, S::Error> {
        let column = |value: fn(&Arrival) -> u32| arrivals.iter().map(value).collect();
        let columns = Columns {
            arrivals_us: column(|arrival| arrival.at_us),
            arrival_tokens: column(|arrival| arrival.tokens),
            arrival_events: column(|arrival| arrival.events),
        };
        columns.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Arrival>, D::Error> {
        let Columns { arrivals_us, arrival_tokens, arrival_events } = Columns::deserialize(deserializer)?;
        if arrivals_us.len() != arrival_tokens.len() || arrivals_us.len() != arrival_events.len() {
            return Err(de::Error::custom("lists of arrivals have different lengths"));
        }
        let parts = arrivals_us.into_iter().zip(arrival_tokens).zip(arrival_events);
        Ok(parts.map(|((at_us, tokens), events)| Arrival { at_us, events, tokens }).collect())
    }
}

/// A row being written while its request runs.
#[derive(Debug)]
pub struct RowBuilder {
    row: Row,
    start: Instant,
    /// Sum over the arrivals, as they came.
    tokens: u64,
    /// The answer's words, if anyone wants them.
    words: Option<Words>,
    /// Where tokens are counted as they arrive, and how many of this request it holds.
    live: Option<(Rc<Cell<u64>>, u64)>,
}

/// The text of an answer. One string and positions in it: a string for each token would take several times the memory.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// All of it, thoughts included.
    pub text: String,
    pieces: Vec<Piece>,
    /// For each arrival of the row: how long the text was after it, in bytes.
    pub ends: Vec<usize>,
}

impl Words {
    /// Memory that it takes, roughly.
    pub fn bytes(&self) -> usize {
        self.text.len() + size_of_val(&*self.pieces) + size_of_val(&*self.ends)
    }
}

/// A part of [`Words::text`]: what one event added.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Where it ends, in bytes. It begins where the one before ends.
    end: usize,
    /// Said to itself by a model that thinks before it answers.
    is_thought: bool,
}

impl RowBuilder {
    /// A request that starts at `start`, after `run_start`; it was intended to start then too, unless [`intended`](Self::intended) says
    /// otherwise.
    pub fn new(run_start: Instant, start: Instant) -> Self {
        let start_us = start.saturating_duration_since(run_start).as_micros() as u64;
        let row = Row {
            index: 0,
            turn: 0,
            user: 0,
            intended_us: start_us,
            start_us,
            connect_us: None,
            first_byte_us: None,
            first_event_us: None,
            end_us: 0,
            arrivals: Vec::new(),
            prompt_tokens: 0,
            prompt_tokens_reported: None,
            wished_tokens: 0,
            output_tokens: 0,
            counted_by: CountedBy::Chunks,
            status: None,
            finish_reason: None,
            server_ms: None,
            failure: None,
            part: Part::Measured,
        };
        Self { row, start, tokens: 0, words: None, live: None }
    }

    /// Which request of the run it is.
    pub fn numbered(mut self, index: u64, turn: u32, user: u32) -> Self {
        (self.row.index, self.row.turn, self.row.user) = (index, turn, user);
        self
    }

    /// When it should have started, in microseconds after the beginning of the run.
    pub fn intended(mut self, intended_us: u64) -> Self {
        self.row.intended_us = intended_us;
        self
    }

    /// What is asked: tokens of the prompt and of the answer.
    pub fn asking(mut self, prompt_tokens: u32, wished_tokens: u32) -> Self {
        (self.row.prompt_tokens, self.row.wished_tokens) = (prompt_tokens, wished_tokens);
        self
    }

    /// Adds tokens to `total` as they arrive; what the server counts in the end corrects it.
    pub fn counting(mut self, total: Rc<Cell<u64>>) -> Self {
        self.live = Some((total, 0));
        self
    }

    /// Keeps the text of the answer, see [`take_pieces`](Self::take_pieces).
    pub fn keeping_text(mut self) -> Self {
        self.keep_text();
        self
    }

    /// The same, of a row that has begun.
    pub fn keep_text(&mut self) {
        self.words.get_or_insert_default();
    }

    /// Whether readers shall hand over the text of the answer.
    pub fn wants_text(&self) -> bool {
        self.words.is_some()
    }

    /// Text of one event. Handed over before the event's [`arrived`](Self::arrived).
    pub fn piece(&mut self, text: &str) {
        self.add(text, false);
    }

    /// The same, of what a model thinks before it answers.
    pub fn thought(&mut self, text: &str) {
        self.add(text, true);
    }

    fn add(&mut self, text: &str, is_thought: bool) {
        if let Some(words) = &mut self.words
            && !text.is_empty()
        {
            words.text.push_str(text);
            words.pieces.push(Piece { end: words.text.len(), is_thought });
        }
    }

    /// The text of the answer, one entry for each event that had some. Thoughts are no part of it.
    pub fn take_pieces(&mut self) -> Vec<String> {
        let Words { text, pieces, .. } = self.words.take().unwrap_or_default();
        let begins = std::iter::once(0).chain(pieces.iter().map(|piece| piece.end));
        let spans = begins.zip(&pieces).filter(|(_, piece)| !piece.is_thought);
        spans.map(|(begin, piece)| text[begin..piece.end].to_owned()).collect()
    }

    /// The text so far, if it is kept.
    pub fn words(&self) -> Option<&Words> {
        self.words.as_ref()
    }

    /// The row so far.
    pub fn row(&self) -> &Row {
        &self.row
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
        if let Some((total, mine)) = &mut self.live {
            *mine += u64::from(tokens);
            total.set(total.get() + u64::from(tokens));
        }
        self.tokens += u64::from(tokens);
        match self.row.arrivals.last_mut() {
            Some(last) if last.at_us == at_us => {
                last.events = last.events.saturating_add(events);
                last.tokens = last.tokens.saturating_add(tokens);
            }
            _ => self.row.arrivals.push(Arrival { at_us, events, tokens }),
        }
        if let Some(words) = &mut self.words {
            words.ends.resize(self.row.arrivals.len(), 0);
            words.ends.last_mut().into_iter().for_each(|end| *end = words.text.len());
        }
    }

    /// Something that belongs to the answer arrived.
    pub fn touch(&mut self, at: Instant) {
        self.row.end_us = self.after_start(at);
        self.row.first_event_us.get_or_insert(self.row.end_us);
    }

    /// What the server says of its own time.
    pub fn server_times(&mut self, times: ServerTimes) {
        self.row.server_ms = Some(times);
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
    /// Counts that differ from what the arrivals hold are spread over them in proportion to it, in order; evenly over the events if they
    /// hold nothing.
    pub fn count(&mut self, tokens: u32, by: CountedBy) {
        self.row.output_tokens = tokens;
        self.row.counted_by = by;
        let arrivals = &mut self.row.arrivals;
        let held: u64 = arrivals.iter().map(|arrival| u64::from(arrival.tokens)).sum();
        if held == u64::from(tokens) {
            return;
        }
        let weight = |arrival: &Arrival| u64::from(if held > 0 { arrival.tokens } else { arrival.events });
        let whole: u64 = arrivals.iter().map(weight).sum();
        let (mut seen, mut given) = (0, 0);
        for arrival in arrivals {
            seen += weight(arrival);
            let due = u64::from(tokens) * seen / whole.max(1);
            arrival.tokens = (due - given) as u32; // At most `tokens`.
            given = due;
        }
    }

    /// Tokens seen so far, before they are settled.
    pub fn tokens_so_far(&self) -> u32 {
        u32::try_from(self.tokens).unwrap_or(u32::MAX)
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
        if let Some((total, mine)) = self.live {
            total.set((total.get() + u64::from(self.row.output_tokens)).saturating_sub(mine));
        }
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
        let mut builder = RowBuilder::new(start, start);
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
    fn the_text_of_an_answer_is_kept_without_its_thoughts_if_it_is_wanted() {
        let mut unasked = builder(&[]);
        unasked.piece("lost");
        assert_eq!(unasked.take_pieces(), [""; 0]);
        let mut builder = builder(&[]).keeping_text();
        builder.thought("hm ");
        builder.piece("é a");
        builder.piece("");
        builder.thought("so");
        builder.piece("b");
        assert_eq!(builder.take_pieces(), ["é a", "b"]);
    }

    #[test]
    fn rows_are_read_back_as_they_were_written() {
        let mut builder = builder(&[(5, 1, 1), (6, 2, 3)]);
        builder.count(4, CountedBy::Server);
        let mut row = builder.finish(Some(Failure::new(ErrorKind::Status(429), "busy")), Instant::now());
        row.server_ms = Some(ServerTimes { queue: Some(1.5), ..ServerTimes::default() });
        let text = serde_json::to_string(&row).expect("rows can be written");
        assert!(text.contains(r#""arrivals_us":[5,6],"arrival_tokens":[1,3],"arrival_events":[1,2]"#), "{text}");
        assert!(text.contains(r#""error":{"kind":"status 429","message":"busy"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Row>(&text).expect("rows can be read"), row);
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
