//! Rows as JSON: one object each, times in microseconds.

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::Report;
use crate::recorder::{Failure, Row};

/// Writes the report. Serialised straight into `out`, since rows may be many.
pub fn write(report: &Report, mut out: impl std::io::Write) -> Result<(), serde_json::Error> {
    serde_json::to_writer(&mut out, report)?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(serde_json::Error::io)
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let column = |value: fn(&crate::recorder::Arrival) -> u32| self.arrivals.iter().map(value).collect::<Vec<_>>();
        let mut row = serializer.serialize_struct("Row", 18)?;
        row.serialize_field("index", &self.index)?;
        row.serialize_field("user", &self.user)?;
        row.serialize_field("part", &self.part)?;
        row.serialize_field("intended_us", &self.intended_us)?;
        row.serialize_field("start_us", &self.start_us)?;
        row.serialize_field("connect_us", &self.connect_us)?;
        row.serialize_field("first_byte_us", &self.first_byte_us)?;
        row.serialize_field("end_us", &self.end_us)?;
        row.serialize_field("prompt_tokens", &self.prompt_tokens)?;
        row.serialize_field("prompt_tokens_reported", &self.prompt_tokens_reported)?;
        row.serialize_field("output_tokens", &self.output_tokens)?;
        row.serialize_field("counted_by", &self.counted_by)?;
        row.serialize_field("status", &self.status)?;
        row.serialize_field("finish_reason", &self.finish_reason)?;
        row.serialize_field("error", &self.failure)?;
        row.serialize_field("arrivals_us", &column(|arrival| arrival.at_us))?;
        row.serialize_field("arrival_tokens", &column(|arrival| arrival.tokens))?;
        row.serialize_field("arrival_events", &column(|arrival| arrival.events))?;
        row.end()
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut failure = serializer.serialize_struct("Failure", 2)?;
        failure.serialize_field("kind", &self.kind.to_string())?;
        failure.serialize_field("message", &self.message)?;
        failure.end()
    }
}
