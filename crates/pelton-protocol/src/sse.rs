//! Server-sent events: framing for servers, incremental reading for clients.
//!
//! Written are single `data:` lines. Read is what the HTML standard's event stream allows (lines ended by LF, CRLF or CR; comments;
//! several data lines per event), of which only the data is kept.

use serde::Serialize;

/// The event that ends an OpenAI-style stream, framed.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// The data of [`DONE`].
pub const DONE_DATA: &str = "[DONE]";

/// A comment, which keeps idle connections open and which readers skip.
pub const KEEP_ALIVE: &[u8] = b":\n\n";

/// Appends one event with `value` as JSON: `data: {json}`, LF, LF. On an error `out` is left as it was.
pub fn encode_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    // Compact JSON holds no raw line ends: inside strings they are escaped.
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        out.truncate(start);
        return Err(error);
    }
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// Why a stream cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line, or the data of one event, is longer than the reader's limit.
    #[error("event stream holds an event of more than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Event data is not UTF-8.
    #[error("event stream holds data that is not UTF-8")]
    NotUtf8,
}

/// Incremental reader of an event stream.
///
/// Bytes go in as they arrive, cut anywhere; the data of complete events comes out. Memory is bounded by the limit given to
/// [`Decoder::new`].
#[derive(Debug)]
pub struct Decoder {
    max_event_bytes: usize,
    /// The unfinished line.
    line: Vec<u8>,
    /// Data lines of the unfinished event, joined by LF.
    data: Vec<u8>,
    /// Whether there was one, if only an empty one.
    has_data: bool,
    /// The last byte was CR: an LF now belongs to it.
    after_cr: bool,
    /// No line has been finished yet, so a byte order mark may stand in front.
    at_start: bool,
    failed: Option<SseError>,
}

impl Decoder {
    /// A reader that refuses lines and events of more than `max_event_bytes`.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            at_start: true,
            failed: None,
        }
    }

    /// Takes the next bytes of the stream, and hands over the data of each event that they complete.
    ///
    /// Events before an error are handed over; after one of the stream itself every call returns it again. An error of `event` ends the call.
    pub fn push<E: From<SseError>>(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        let mut rest = bytes;
        loop {
            match self.next(&mut rest) {
                Ok(true) => {
                    let result = match std::str::from_utf8(&self.data) {
                        Ok(data) => event(data),
                        Err(_) => Err(self.fail(SseError::NotUtf8).into()),
                    };
                    self.data.clear();
                    self.has_data = false;
                    result?;
                }
                Ok(false) => return Ok(()),
                Err(error) => return Err(self.fail(error).into()),
            }
        }
    }

    /// Whether bytes of an unfinished event are held: true at the end of a stream means that it was cut.
    pub fn is_mid_event(&self) -> bool {
        !self.line.is_empty() || self.has_data
    }

    fn fail(&mut self, error: SseError) -> SseError {
        self.failed = Some(error);
        error
    }

    /// Reads lines off the front of `bytes` until an event is complete; false if there are too few.
    fn next(&mut self, bytes: &mut &[u8]) -> Result<bool, SseError> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                *bytes = &bytes[1..];
                continue;
            }
            let end = memchr::memchr2(b'\n', b'\r', bytes);
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + part.len() > self.max_event_bytes {
                return Err(SseError::TooLong { limit: self.max_event_bytes });
            }
            let Some(end) = end else {
                self.line.extend_from_slice(part);
                *bytes = &[];
                break;
            };
            self.after_cr = bytes[end] == b'\r';
            *bytes = &bytes[end + 1..];
            let is_complete = if self.line.is_empty() {
                self.end_line(part)
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(part);
                let is_complete = self.end_line(&line);
                line.clear();
                self.line = line;
                is_complete
            }?;
            if is_complete {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes one whole line in. True if it completes an event.
    fn end_line(&mut self, mut line: &[u8]) -> Result<bool, SseError> {
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            return Ok(self.has_data);
        }
        let colon = memchr::memchr(b':', line);
        let (field, value) = match colon {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        if field != b"data" {
            return Ok(false); // A comment (no name), or a field that carries no data.
        }
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        if self.data.len() + value.len() > self.max_event_bytes {
            return Err(SseError::TooLong { limit: self.max_event_bytes });
        }
        self.data.extend_from_slice(value);
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Appends one event with `data` as it is, one `data:` line per line of it. CRLF and CR count as line ends and become LF for the reader.
    fn encode_data(data: &str, out: &mut Vec<u8>) {
        let mut rest = data;
        loop {
            let end = rest.find(['\n', '\r']);
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(&rest.as_bytes()[..end.unwrap_or(rest.len())]);
            out.push(b'\n');
            let Some(end) = end else { break };
            rest = rest[end..].strip_prefix("\r\n").unwrap_or_else(|| &rest[end + 1..]);
        }
        out.push(b'\n');
    }

    /// The data of each event that these bytes complete.
    fn push(decoder: &mut Decoder, bytes: &[u8], events: &mut Vec<String>) -> Result<(), SseError> {
        decoder.push(bytes, |data| {
            events.push(data.to_owned());
            Ok(())
        })
    }

    fn read_in_chunks<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Decoder) {
        let mut decoder = Decoder::new(1 << 16);
        let mut events = Vec::new();
        for chunk in chunks {
            push(&mut decoder, chunk, &mut events).expect("stream is well formed");
        }
        (events, decoder)
    }

    #[test]
    fn all_line_ends_comments_and_missing_spaces_are_read() {
        let stream =
            b"\xEF\xBB\xBFdata:a\n\n: ping\r\n\r\nevent: x\rid: 7\rdata: b\r\rdata: c\r\ndata\r\ndata:  d\r\n\r\n";
        assert_eq!(read_in_chunks([&stream[..]]).0, ["a", "b", "c\n\n d"]);
    }

    #[test]
    fn an_event_that_is_cut_is_not_delivered_and_is_noticed() {
        let (events, decoder) = read_in_chunks([&b"data: a\n\ndata: b\n"[..]]);
        assert_eq!(events, ["a"]);
        assert!(decoder.is_mid_event());
        assert!(!read_in_chunks([&b"data: a\n\n"[..]]).1.is_mid_event());
    }

    #[test]
    fn long_lines_and_long_events_are_refused_for_good() {
        let expected = Err(SseError::TooLong { limit: 10 });
        for stream in [&b"data: 12345"[..], b"data: 1234\ndata: 1234\ndata: 1234\n\n"] {
            let mut decoder = Decoder::new(10);
            let mut events = Vec::new();
            push(&mut decoder, b"data: ok\n\n", &mut events).expect("short event");
            assert_eq!(push(&mut decoder, stream, &mut events), expected);
            assert_eq!(push(&mut decoder, b"\n\n", &mut events), expected);
            assert_eq!(events, ["ok"]);
        }
    }

    #[test]
    fn data_that_is_not_utf8_is_refused() {
        let mut events = Vec::new();
        assert_eq!(push(&mut Decoder::new(100), b"data: \xFF\n\n", &mut events), Err(SseError::NotUtf8));
    }

    #[test]
    fn json_is_written_as_one_line() {
        let mut out = Vec::new();
        encode_json(&serde_json::json!({"text": "a\nb"}), &mut out).expect("a value is serialisable");
        assert_eq!(out, b"data: {\"text\":\"a\\nb\"}\n\n");
    }

    proptest! {
        /// What is written is read back, wherever the bytes are cut.
        #[test]
        fn events_survive_any_chunking(
            events in prop::collection::vec("[a-zä€😀: \n\r]{0,12}", 0..6),
            cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let mut stream = Vec::new();
            for event in &events {
                encode_data(event, &mut stream);
                stream.extend_from_slice(KEEP_ALIVE);
            }
            let mut chunks = Vec::new();
            let (mut rest, mut cuts) = (&stream[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            let (read, decoder) = read_in_chunks(chunks);
            let expected: Vec<_> = events.iter().map(|event| event.replace("\r\n", "\n").replace('\r', "\n")).collect();
            prop_assert_eq!(read, expected);
            prop_assert!(!decoder.is_mid_event());
        }

        /// The result of arbitrary bytes does not depend on the cuts either.
        #[test]
        fn arbitrary_lines_read_the_same_byte_by_byte(stream in "(data|d|:| |a|\n|\r|\r\n){0,40}") {
            let whole = read_in_chunks([stream.as_bytes()]).0;
            prop_assert_eq!(read_in_chunks(stream.as_bytes().chunks(1)).0, whole);
        }
    }
}
