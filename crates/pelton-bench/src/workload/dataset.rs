//! Datasets: prompts and conversations of a file, read once as a stream, of which a random part is kept.
//!
//! One JSON object for each line, or one array of them. Known layouts, by their members: `conversations` of `{"from", "value"}`
//! (ShareGPT), `messages` of `{"role", "content"}` (OpenAI), `prompt`, or `text`; the answer's length may be told by a text (`response`,
//! `completion`, `output`) or a number (`max_tokens`, `output_tokens`).

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::BenchError;

/// Entries that are kept to choose from.
const MAX_KEPT: usize = 20_000;

/// Text that is kept.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// Longest line or element.
const MAX_ENTRY_BYTES: u64 = 16 << 20;

/// Bad entries whose places are told.
const MAX_TOLD: usize = 5;

/// One prompt or conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What the system message says.
    pub system: Option<String>,
    /// What the user says, at least once.
    pub messages: Vec<Message>,
}

/// A message of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The words.
    pub text: String,
    /// How long the answer in the dataset is.
    pub answer: Option<Answer>,
}

/// An answer in a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its words.
    Text(String),
    /// Its tokens.
    Tokens(u32),
}

impl Entry {
    fn bytes(&self) -> usize {
        let answer = |message: &Message| match &message.answer {
            Some(Answer::Text(text)) => text.len(),
            _ => 0,
        };
        let messages: usize = self.messages.iter().map(|message| message.text.len() + answer(message)).sum();
        messages + self.system.as_ref().map_or(0, String::len)
    }
}

/// What was read.
#[derive(Debug, Default)]
pub struct Dataset {
    /// A random part of the file, in random order.
    pub entries: Vec<Entry>,
    /// How many entries there were, and what was wrong with the others, for whom it concerns.
    pub told: String,
}

/// Entries that cannot be used.
#[derive(Debug, Default)]
struct Bad {
    count: usize,
    /// Place and reason of the first.
    first: Vec<String>,
}

impl Dataset {
    /// Reads the whole file. Of a large one a random part is kept, drawn by seed: each entry is equally likely, up to the limit in bytes.
    ///
    /// # Errors
    /// [`BenchError::Prompts`] if the file cannot be read or has no good entry.
    pub fn read(path: &Path, seed: u64) -> Result<Self, BenchError> {
        let failed = |why: String| BenchError::Prompts(format!("dataset {}: {why}", path.display()));
        let mut reader = BufReader::new(File::open(path).map_err(|error| failed(error.to_string()))?);
        let mut kept = Reservoir::new(seed);
        let mut bad = Bad::default();
        let io = |error: std::io::Error| failed(error.to_string());
        let unit = if first_byte(&mut reader).map_err(io)? == Some(b'[') {
            read_array(reader, &mut kept, &mut bad);
            "entry"
        } else {
            read_lines(reader, &mut kept, &mut bad).map_err(io)?;
            "line"
        };
        let mut told = format!("{} good entries in {}", kept.seen, path.display());
        if bad.count > 0 {
            let more = if bad.count > bad.first.len() { ", ..." } else { "" };
            told.push_str(&format!("; {} bad ({unit} {}{more})", bad.count, bad.first.join(&format!(", {unit} "))));
        }
        if kept.entries.is_empty() {
            return Err(failed(told));
        }
        let mut entries = kept.entries;
        fastrand::Rng::with_seed(seed).shuffle(&mut entries);
        Ok(Self { entries, told })
    }
}

impl Bad {
    fn add(&mut self, place: usize, why: impl std::fmt::Display) {
        self.count += 1;
        if self.first.len() < MAX_TOLD {
            self.first.push(format!("{place}: {why}"));
        }
    }
}

/// A random part of a stream of unknown length (Vitter 1985, algorithm R).
struct Reservoir {
    entries: Vec<Entry>,
    bytes: usize,
    /// Entries there is room for; what is kept when the bytes run out.
    room: usize,
    seen: usize,
    random: fastrand::Rng,
}

impl Reservoir {
    fn new(seed: u64) -> Self {
        Self { entries: Vec::new(), bytes: 0, room: MAX_KEPT, seen: 0, random: fastrand::Rng::with_seed(seed) }
    }

    fn add(&mut self, entry: Entry) {
        self.seen += 1;
        let bytes = entry.bytes();
        if self.entries.len() < self.room && self.bytes + bytes > MAX_KEPT_BYTES && !self.entries.is_empty() {
            self.room = self.entries.len();
        }
        if self.entries.len() < self.room {
            self.bytes += bytes;
            self.entries.push(entry);
            return;
        }
        let at = self.random.usize(..self.seen);
        if let Some(old) = self.entries.get_mut(at)
            && self.bytes - old.bytes() + bytes <= MAX_KEPT_BYTES
        {
            self.bytes = self.bytes - old.bytes() + bytes;
            *old = entry;
        }
    }
}

fn first_byte(reader: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    loop {
        let buffer = reader.fill_buf()?;
        let Some(at) = buffer.iter().position(|byte| !byte.is_ascii_whitespace()) else {
            let read = buffer.len();
            if read == 0 {
                return Ok(None);
            }
            reader.consume(read);
            continue;
        };
        // White space in front is left where it is: lines are counted from the beginning.
        return Ok(Some(buffer[at]));
    }
}

fn read_lines(mut reader: impl BufRead, kept: &mut Reservoir, bad: &mut Bad) -> std::io::Result<()> {
    let mut line = Vec::new();
    for n in 1.. {
        line.clear();
        let read = reader.by_ref().take(MAX_ENTRY_BYTES).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_ENTRY_BYTES && line.last() != Some(&b'\n') {
            bad.add(n, format_args!("longer than {MAX_ENTRY_BYTES} bytes"));
            skip_line(&mut reader)?;
            continue;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&line).map_err(|error| error.to_string()).and_then(|value| entry(&value)) {
            Ok(entry) => kept.add(entry),
            Err(why) => bad.add(n, why),
        }
    }
    Ok(())
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let (read, found) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(read);
        if found {
            return Ok(());
        }
    }
}

/// Reads element by element; what follows on broken JSON is lost.
fn read_array(reader: impl Read, kept: &mut Reservoir, bad: &mut Bad) {
    struct Elements<'a> {
        kept: &'a mut Reservoir,
        bad: &'a mut Bad,
        left: Rc<Cell<u64>>,
        read: &'a Cell<usize>,
    }
    impl<'de> Visitor<'de> for Elements<'_> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array of entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
            while let Some(value) = elements.next_element::<Value>()? {
                self.read.set(self.read.get() + 1);
                self.left.set(MAX_ENTRY_BYTES);
                match entry(&value) {
                    Ok(entry) => self.kept.add(entry),
                    Err(why) => self.bad.add(self.read.get(), why),
                }
            }
            Ok(())
        }
    }
    let left = Rc::new(Cell::new(MAX_ENTRY_BYTES));
    let read = Cell::new(0);
    let bounded = Bounded { inner: reader, left: Rc::clone(&left) };
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(bounded));
    if let Err(error) = json.deserialize_seq(Elements { kept, bad, left, read: &read }) {
        bad.add(read.get() + 1, format_args!("{error}; nothing behind it is read"));
    }
}

/// Ends with an error when one element is too long.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(std::io::Error::other(format!("longer than {MAX_ENTRY_BYTES} bytes")));
        }
        let read = self.inner.read(buffer)?;
        self.left.set(left.saturating_sub(read as u64));
        Ok(read)
    }
}

/// Reads one entry of any known layout.
fn entry(value: &Value) -> Result<Entry, String> {
    if let Some(said) = value.get("conversations").and_then(Value::as_array) {
        return conversation(said, "from", "value");
    }
    if let Some(said) = value.get("messages").and_then(Value::as_array).or_else(|| value.as_array()) {
        return conversation(said, "role", "content");
    }
    let text = ["prompt", "text"].iter().find_map(|name| value.get(name)?.as_str());
    let text = text.filter(|text| !text.is_empty());
    let Some(text) = text else {
        return Err("no conversations, messages, prompt or text".to_owned());
    };
    let tokens = ["max_tokens", "output_tokens"].iter().find_map(|name| value.get(name)?.as_u64());
    let words = ["response", "completion", "output"].iter().find_map(|name| value.get(name)?.as_str());
    let answer = match (tokens, words) {
        (Some(tokens), _) => Some(Answer::Tokens(u32::try_from(tokens).unwrap_or(u32::MAX))),
        (None, words) => words.map(|words| Answer::Text(words.to_owned())),
    };
    Ok(Entry { system: None, messages: vec![Message { text: text.to_owned(), answer }] })
}

fn conversation(said: &[Value], who: &str, what: &str) -> Result<Entry, String> {
    let mut entry = Entry::default();
    for message in said {
        let role = message.get(who).and_then(Value::as_str).unwrap_or_default();
        let Some(text) = message.get(what).and_then(words) else {
            return Err(format!("a message without {what}"));
        };
        match role {
            "system" if entry.messages.is_empty() => entry.system = Some(text),
            "human" | "user" => entry.messages.push(Message { text, answer: None }),
            _ => {
                // The first answer to each message; what an assistant says unasked is no part of a request.
                if let Some(message) = entry.messages.last_mut()
                    && message.answer.is_none()
                {
                    message.answer = Some(Answer::Text(text));
                }
            }
        }
    }
    entry.messages.retain(|message| !message.text.is_empty());
    if entry.messages.is_empty() {
        return Err("the user says nothing".to_owned());
    }
    Ok(entry)
}

/// A text, or the texts of its parts.
fn words(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Dataset, BenchError> {
        let path = std::env::temp_dir().join(format!("pelton-dataset-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("can be written");
        let read = Dataset::read(&path, 1);
        std::fs::remove_file(&path).expect("was written");
        read
    }

    fn said(text: &str, answer: Option<&str>) -> Message {
        Message { text: text.to_owned(), answer: answer.map(|text| Answer::Text(text.to_owned())) }
    }

    #[test]
    fn each_layout_is_read() {
        let entry = |text: &str| entry(&serde_json::from_str(text).expect("JSON"));
        let share = entry(
            r#"{"id":"a","conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"},{"from":"human","value":"r"}]}"#,
        );
        assert_eq!(share, Ok(Entry { system: None, messages: vec![said("q", Some("a")), said("r", None)] }));
        let openai = entry(
            r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"q"}]},{"role":"assistant","content":"a"}]}"#,
        );
        assert_eq!(openai, Ok(Entry { system: Some("s".to_owned()), messages: vec![said("q", Some("a"))] }));
        assert_eq!(
            entry(r#"{"text":"q","completion":"a"}"#),
            Ok(Entry { system: None, messages: vec![said("q", Some("a"))] })
        );
        let tokens = Message { text: "q".to_owned(), answer: Some(Answer::Tokens(7)) };
        assert_eq!(entry(r#"{"prompt":"q","max_tokens":7}"#), Ok(Entry { system: None, messages: vec![tokens] }));
        assert!(entry(r#"{"prompt":""}"#).is_err());
        assert!(entry(r#"{"conversations":[{"from":"gpt","value":"a"}]}"#).is_err());
        assert!(entry("5").is_err());
    }

    #[test]
    fn bad_lines_are_told_and_the_others_read() {
        let text = "\n{\"prompt\":\"one\"}\n{\"prompt\":\n{\"other\":1}\n\n{\"prompt\":\"two\"}";
        let dataset = read("lines", text).expect("two are good");
        assert_eq!(dataset.entries.len(), 2);
        assert!(dataset.told.contains("2 good") && dataset.told.contains("2 bad (line 3: "), "{}", dataset.told);
        assert!(dataset.told.contains("line 4: no conversations"), "{}", dataset.told);
    }

    #[test]
    fn an_array_is_read_as_far_as_it_is_json() {
        let whole = read("array", r#" [{"prompt":"one"}, {"x":1}, {"prompt":"two"}]"#).expect("two are good");
        assert_eq!(whole.entries.len(), 2);
        assert!(whole.told.contains("1 bad (entry 2: "), "{}", whole.told);
        let broken = read("broken", r#"[{"prompt":"one"}, {"prompt":"tw"#).expect("one is good");
        assert_eq!(broken.entries.len(), 1);
        assert!(broken.told.contains("nothing behind it is read"), "{}", broken.told);
    }

    #[test]
    fn a_file_without_any_good_entry_is_refused() {
        for (name, text) in [("none", "{}\n[]"), ("void", ""), ("blank", " \n "), ("list", "[]")] {
            let error = read(name, text).expect_err("no entry").to_string();
            assert!(error.contains("0 good entries"), "{error}");
        }
        assert!(Dataset::read(Path::new("/nowhere.jsonl"), 1).is_err());
    }

    #[test]
    fn a_random_part_is_kept_in_bounded_memory() {
        let mut kept = Reservoir::new(1);
        for n in 0..3 * MAX_KEPT {
            kept.add(Entry { system: None, messages: vec![said(&n.to_string(), None)] });
        }
        assert_eq!((kept.entries.len(), kept.seen), (MAX_KEPT, 3 * MAX_KEPT));
        let late = kept
            .entries
            .iter()
            .filter(|entry| entry.messages[0].text.len() == 5 && entry.messages[0].text.as_str() >= "40000")
            .count();
        // A third of the stream makes a third of the part, within five standard deviations of a binomial.
        let deviation = (MAX_KEPT as f64 * 2.0 / 9.0).sqrt();
        assert!((late as f64 - MAX_KEPT as f64 / 3.0).abs() < 5.0 * deviation, "{late}");
        let mut kept = Reservoir::new(1);
        let large = "x".repeat(MAX_KEPT_BYTES / 3);
        (0..9).for_each(|_| kept.add(Entry { system: None, messages: vec![said(&large, None)] }));
        assert_eq!((kept.entries.len(), kept.bytes), (3, 3 * large.len()));
    }
}
