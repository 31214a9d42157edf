//! The `tojson` filter, written as Python's `json.dumps` writes: prompts must match those of training to the byte.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use std::io::{Result, Write};

/// `value|tojson(indent=, separators=, ensure_ascii=, sort_keys=)`. Nothing is escaped for HTML, and keys keep their order unless asked otherwise.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> std::result::Result<String, Error> {
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "value cannot be written as JSON").with_source(error)
    };
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;

    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let default = if indent.is_some() { [",", ": "] } else { [", ", ": "] };
    let [item, key] = match separators.as_deref() {
        None => default.map(str::to_owned),
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson separators must be two strings")),
    };
    let spaces = " ".repeat(indent.unwrap_or(0).min(16));
    let formatter = Python {
        layout: indent.map(|_| PrettyFormatter::with_indent(spaces.as_bytes())),
        item: item.as_bytes(),
        key: key.as_bytes(),
        ensure_ascii: ensure_ascii == Some(true),
    };
    let mut out = Vec::new();
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
    String::from_utf8(out).map_err(|_| Error::new(ErrorKind::BadSerialization, "JSON separators are not UTF-8"))
}

/// Layout of `json.dumps`.
struct Python<'a> {
    /// Line breaks and indents, if asked.
    layout: Option<PrettyFormatter<'a>>,
    item: &'a [u8],
    key: &'a [u8],
    ensure_ascii: bool,
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        match &mut self.layout {
            Some(layout) => layout.begin_array(out),
            None => CompactFormatter.begin_array(out),
        }
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        match &mut self.layout {
            Some(layout) => layout.end_array(out),
            None => CompactFormatter.end_array(out),
        }
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.before_item(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        match &mut self.layout {
            Some(layout) => layout.end_array_value(out),
            None => Ok(()),
        }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        match &mut self.layout {
            Some(layout) => layout.begin_object(out),
            None => CompactFormatter.begin_object(out),
        }
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        match &mut self.layout {
            Some(layout) => layout.end_object(out),
            None => CompactFormatter.end_object(out),
        }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        self.before_item(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        out.write_all(self.key)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> Result<()> {
        match &mut self.layout {
            Some(layout) => layout.end_object_value(out),
            None => Ok(()),
        }
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> Result<()> {
        if !self.ensure_ascii {
            return out.write_all(fragment.as_bytes());
        }
        for char in fragment.chars() {
            if char.is_ascii() {
                out.write_all(&[char as u8])?;
            } else {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

impl Python<'_> {
    fn before_item<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> Result<()> {
        if !first {
            out.write_all(self.item)?;
        }
        match &mut self.layout {
            // As if each were the first: the separator is ours.
            Some(layout) => layout.begin_array_value(out, true),
            None => Ok(()),
        }
    }
}
