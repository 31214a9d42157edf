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
    /// Opened before a run: a wrong path shall not cost a measurement. What an existing file holds stays until there is something new.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Writes `report` as one line of JSON.
    pub fn write_json(mut self, report: &impl Serialize) -> Result<()> {
        self.empty();
        serde_json::to_writer(&mut self.file, report)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.file.write_all(b"\n").and_then(|()| self.file.flush())?))
            .with_context(|| format!("{} cannot be written", self.path.display()))
    }

    /// Pipes and terminals have nothing that could be emptied.
    fn empty(&self) {
        let _ = self.file.get_ref().set_len(0);
    }

    /// Writes a finished text.
    pub fn write_text(mut self, text: &str) -> Result<()> {
        self.empty();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}
