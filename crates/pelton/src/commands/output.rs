//! Files that measurements are written to.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// A file for one report.
pub struct OutputFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl OutputFile {
    /// Opened before a run: a wrong path shall not cost a measurement.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Writes `report` as one line of JSON.
    pub fn write_json(mut self, report: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.file, report)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.file.write_all(b"\n").and_then(|()| self.file.flush())?))
            .with_context(|| format!("{} cannot be written", self.path.display()))
    }

    /// Writes a finished text.
    pub fn write_text(mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}
