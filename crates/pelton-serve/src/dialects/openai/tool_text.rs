//! A call of a function, read from its text as it comes: `{"function": {"_name": "add", "a": 1}}` becomes the name `add` and the arguments `{"a": 1}`.

use super::tools::NAME;

/// A call as far as it is known.
#[derive(Default)]
pub(super) struct ToolText {
    /// What came before the name was complete.
    before: String,
    name: Option<String>,
    arguments: Arguments,
}

/// What a piece of text brought.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct ToolStep {
    /// The function's name, once it is complete.
    pub(super) name: Option<String>,
    /// The next characters of the arguments; they begin with the name.
    pub(super) arguments: String,
}

impl ToolText {
    /// Adds the next piece of text.
    pub(super) fn push(&mut self, text: &str) -> ToolStep {
        let mut step = ToolStep::default();
        if self.name.is_some() {
            self.arguments.push(text, &mut step.arguments);
            return step;
        }
        self.before.push_str(text);
        if let Some((name, end)) = name_in(&self.before) {
            step.arguments.push('{');
            let rest = self.before.split_off(end);
            self.arguments.push(&rest, &mut step.arguments);
            self.name = Some(name.clone());
            step.name = Some(name);
        }
        step
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the arguments are whole.
    pub(super) fn is_complete(&self) -> bool {
        self.arguments.is_complete
    }
}

/// The value of the first `_name` in `text`, once it is there, and where it ends.
fn name_in(text: &str) -> Option<(String, usize)> {
    let key = format!("\"{NAME}\"");
    let value = text.find(&key)? + key.len();
    let value = value + text[value..].find(':')? + 1;
    let mut values = serde_json::Deserializer::from_str(&text[value..]).into_iter::<String>();
    let name = values.next()?.ok()?;
    Some((name, value + values.byte_offset()))
}

/// What follows the name, up to the bracket that closes the function.
#[derive(Default)]
struct Arguments {
    has_begun: bool,
    /// Brackets open within the arguments' own.
    depth: u32,
    in_string: bool,
    is_escaped: bool,
    is_complete: bool,
}

impl Arguments {
    fn push(&mut self, text: &str, out: &mut String) {
        for char in text.chars() {
            if self.is_complete || !self.has_begun && matches!(char, ' ' | ',') {
                continue;
            }
            self.has_begun = true;
            out.push(char);
            if self.in_string {
                self.in_string = self.is_escaped || char != '"';
                self.is_escaped = !self.is_escaped && char == '\\';
                continue;
            }
            match char {
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' if self.depth == 0 => self.is_complete = true,
                '}' | ']' => self.depth -= 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: impl Iterator<Item = String>) -> (Option<String>, String, bool) {
        let mut text = ToolText::default();
        let (mut name, mut arguments) = (None, String::new());
        for piece in pieces {
            let step = text.push(&piece);
            assert!(name.is_none() || step.name.is_none(), "the name comes once");
            name = name.or(step.name);
            arguments.push_str(&step.arguments);
            assert!(name.is_some() || arguments.is_empty(), "nothing comes before the name");
        }
        (name, arguments, text.is_complete())
    }

    #[test]
    fn a_call_is_the_same_in_whatever_pieces_it_comes() {
        for (text, name, arguments) in [
            (r#"{"function":{"_name":"f"}}"#, "f", "{}"),
            (r#"{"function": {"_name": "f"} } "#, "f", "{}"),
            (
                r#"{"function": {"_name": "add", "a": 1, "b": [2, {"c": "}"}]}}"#,
                "add",
                r#"{"a": 1, "b": [2, {"c": "}"}]}"#,
            ),
            (r#"{"function":{"_name":"say \"é\"","text":"\\\"}, {"}}"#, "say \"é\"", r#"{"text":"\\\"}, {"}"#),
        ] {
            let expected = (Some(name.to_owned()), arguments.to_owned(), true);
            assert_eq!(read([text.to_owned()].into_iter()), expected);
            assert_eq!(read(text.chars().map(String::from)), expected);
            serde_json::from_str::<serde_json::Value>(arguments).expect("JSON");
        }
    }

    #[test]
    fn a_call_that_is_cut_is_not_complete() {
        let text = r#"{"function": {"_name": "add", "a": 1}}"#;
        for end in 0..text.len() - 1 {
            let (name, arguments, is_complete) = read([text[..end].to_owned()].into_iter());
            assert!(!is_complete, "{}", &text[..end]);
            assert_eq!(name.is_some(), end >= 28, "{}", &text[..end]);
            assert!(r#"{"a": 1}"#.starts_with(&arguments), "{arguments}");
        }
        assert_eq!(read([text[..28].to_owned()].into_iter()).1, "{");
    }
}
