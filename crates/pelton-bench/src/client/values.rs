//! Values inside answers, in every form in which servers write them.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most tokens that a server is believed to have generated in one answer. What is counted takes memory after the run.
pub const MAX_TOKENS: u32 = 1 << 20;

/// A text of an answer: not copied unless it holds escapes (a plain `Option<Cow<str>>` would copy every one, and each event has one).
///
/// `null` reads as empty; a list, or a part `{"type":"text","text":...}` of one, as its texts joined.
#[derive(Clone, Debug, Default)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Text<'_> {
    /// The string; empty for `null`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl<'de> Visitor<'de> for AnyText {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of them, or null")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E: Error>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text<'de>, A::Error> {
                let mut all = String::new();
                while let Some(part) = list.next_element::<Text<'de>>()? {
                    all.push_str(part.as_str());
                }
                Ok(Text(Cow::Owned(all)))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut part: A) -> Result<Text<'de>, A::Error> {
                let mut text = Text::default();
                while let Some(key) = part.next_key::<Cow<'_, str>>()? {
                    if key == "text" {
                        text = part.next_value()?;
                    } else {
                        part.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(text)
            }
        }
        deserializer.deserialize_any(AnyText)
    }
}

/// A number of tokens, at most [`MAX_TOKENS`]; of a list its first member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCount(pub u32);

impl<'de> Deserialize<'de> for TokenCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl<'de> Visitor<'de> for Number {
            type Value = TokenCount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number of tokens in 0..={MAX_TOKENS}")
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<TokenCount, E> {
                let count = u32::try_from(n).ok().filter(|&n| n <= MAX_TOKENS);
                count.map(TokenCount).ok_or_else(|| E::custom(format!("{n} tokens are told, limit is {MAX_TOKENS}")))
            }
            fn visit_f64<E: Error>(self, n: f64) -> Result<TokenCount, E> {
                if n.fract() == 0.0 && (0.0..=f64::from(MAX_TOKENS)).contains(&n) {
                    return Ok(TokenCount(n as u32));
                }
                Err(E::custom(format!("{n} tokens are told, which must be whole and in 0..={MAX_TOKENS}")))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TokenCount, A::Error> {
                let first = list.next_element()?.ok_or_else(|| Error::custom("an empty list tells no tokens"))?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// How many members a list has; none if it is `null`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Length(pub u32);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Length;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or null")
            }
            fn visit_unit<E: Error>(self) -> Result<Length, E> {
                Ok(Length(0))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Length, A::Error> {
                let mut length = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    length += 1;
                }
                Ok(Length(length))
            }
        }
        deserializer.deserialize_any(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_in_every_form() {
        let text = |json: &str| serde_json::from_str::<Text<'_>>(json).expect("a text").as_str().to_owned();
        assert_eq!(text(r#""plain""#), "plain");
        assert_eq!(text(r#""a\nb""#), "a\nb");
        assert_eq!(text("null"), "");
        assert_eq!(text(r#"["a","b"]"#), "ab");
        assert_eq!(text(r#"[{"type":"text","text":"a"},{"type":"image"}]"#), "a");
        assert!(serde_json::from_str::<Text<'_>>("7").is_err());
    }

    #[test]
    fn counts_of_tokens_are_believed_within_reason() {
        let count = |json: &str| serde_json::from_str::<TokenCount>(json).map(|count| count.0).ok();
        assert_eq!(
            (count("7"), count("7.0"), count("[7]"), count("1048576")),
            (Some(7), Some(7), Some(7), Some(1 << 20))
        );
        for absurd in ["-1", "0.5", "1048577", "99999999999999999999999", "1e300", "\"7\"", "[]"] {
            assert_eq!(count(absurd), None, "{absurd}");
        }
    }
}
