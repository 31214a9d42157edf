//! Files that measurements are written to.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// A file for one report. Made for a report that never came, it goes again, unless the process ends at once (a third interrupt).
pub struct OutputFile {
    path: PathBuf,
    file: BufWriter<File>,
    /// Made here, and nothing was put into it.
    is_left_over: bool,
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // Somebody else may have put a report of their own in its place meanwhile.
        if self.is_left_over && self.is_empty_in_its_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl OutputFile {
    /// Opened before a run: a wrong path shall not cost a measurement. What an existing file holds stays until there is something new.
    pub fn create(path: &Path) -> Result<Self> {
        let (file, is_left_over) = match File::create_new(path) {
            // Also a link, which may lead to nothing yet.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                (File::options().write(true).create(true).truncate(false).open(path), false)
            }
            made => (made, true),
        };
        let file = file.with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), is_left_over })
    }

    fn is_empty_in_its_place(&self) -> bool {
        let facts = (self.file.get_ref().metadata(), self.path.symlink_metadata());
        matches!(facts, (Ok(mine), Ok(there)) if there.len() == 0 && (mine.dev(), mine.ino()) == (there.dev(), there.ino()))
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
    fn empty(&mut self) {
        self.is_left_over = false;
        let _ = self.file.get_ref().set_len(0);
    }

    /// Writes a finished text.
    pub fn write_text(mut self, text: &str) -> Result<()> {
        self.empty();
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_if_something_is_in_it_or_was_before() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("run.json");
        drop(OutputFile::create(&path).expect("can be made"));
        assert!(!path.exists(), "nothing came of it");
        OutputFile::create(&path).and_then(|file| file.write_text("first")).expect("can be written");
        drop(OutputFile::create(&path).expect("is there"));
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "first");
        std::fs::remove_file(&path).expect("can be removed");
        let file = OutputFile::create(&path).expect("can be made");
        let other = folder.path().join("other.json");
        std::fs::write(&other, "").and_then(|()| std::fs::rename(&other, &path)).expect("takes its place");
        drop(file);
        assert!(path.exists(), "somebody else's, if also empty");
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(folder.path().join("target.json"), &link).expect("can be linked");
        OutputFile::create(&link).and_then(|file| file.write_text("behind")).expect("can be written");
        assert_eq!(std::fs::read_to_string(&link).expect("leads there"), "behind");
    }
}
