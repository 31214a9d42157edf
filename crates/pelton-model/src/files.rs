//! Where a model's files come from: a directory, or named bytes inside the program.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Largest text file read whole. Tokenizers of large vocabularies take some 30 MB, indexes of many shards about 10.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// A model's files could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The given path is no directory.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// As it was given.
        path: PathBuf,
    },
    /// A name that would leave the directory, or is none.
    #[error("{name:?} is not the name of a file in a model directory")]
    Name {
        /// As it was asked for.
        name: String,
    },
    /// A text file beyond the limit.
    #[error("{name} has {found} bytes, limit is {limit}")]
    TooLarge {
        /// Which file.
        name: String,
        /// Its size.
        found: u64,
        /// What is read at most.
        limit: u64,
    },
    /// The operating system refused.
    #[error("cannot read {name}: {source}")]
    Io {
        /// Which file.
        name: String,
        /// Its reason.
        source: io::Error,
    },
}

/// The files of one model, by plain name (`config.json`, `model.safetensors`, ...).
#[derive(Debug, Clone)]
pub struct ModelFiles {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Directory(PathBuf),
    Embedded(BTreeMap<String, &'static [u8]>),
}

/// A file that is read in pieces.
#[derive(Debug)]
pub(crate) enum Blob<'a> {
    /// An open file and its length when it was opened.
    File { file: File, len: u64 },
    /// Bytes in memory; of a model, those of the program itself.
    Memory(&'a [u8]),
}

impl Blob<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Blob::File { len, .. } => *len,
            Blob::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `out` from `offset` on; fails past the end.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Blob::File { file, .. } => file.read_exact_at(out, offset),
            Blob::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let found = rest.and_then(|rest| rest.get(..out.len())).ok_or(ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(found);
                Ok(())
            }
        }
    }
}

impl ModelFiles {
    /// The files of `path`. Fails when that is no directory.
    pub fn directory(path: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let path = path.into();
        if !path.is_dir() {
            return Err(FilesError::NotADirectory { path });
        }
        Ok(Self { source: Source::Directory(path) })
    }

    /// Files that are part of the program.
    pub fn embedded(files: &[(&str, &'static [u8])]) -> Self {
        Self { source: Source::Embedded(files.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect()) }
    }

    /// The directory, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Directory(path) => Some(path),
            Source::Embedded(_) => None,
        }
    }

    /// The whole of a small file; `None` when there is no such file. At most 256 MiB.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, FilesError> {
        match self.open(name)? {
            None => Ok(None),
            Some(Blob::Memory(bytes)) => Ok(Some(Cow::Borrowed(bytes))),
            Some(Blob::File { len, .. }) if len > MAX_TEXT_BYTES => {
                Err(FilesError::TooLarge { name: name.to_owned(), found: len, limit: MAX_TEXT_BYTES })
            }
            Some(Blob::File { file, len }) => {
                let mut bytes = Vec::with_capacity(len as usize);
                // A file may grow while it is read; the limit holds all the same.
                file.take(MAX_TEXT_BYTES)
                    .read_to_end(&mut bytes)
                    .map_err(|source| FilesError::Io { name: name.to_owned(), source })?;
                Ok(Some(Cow::Owned(bytes)))
            }
        }
    }

    /// Opens a file that is read in pieces; `None` when there is no such file.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Blob<'static>>, FilesError> {
        if !is_plain(name) {
            return Err(FilesError::Name { name: name.to_owned() });
        }
        let io = |source| FilesError::Io { name: name.to_owned(), source };
        match &self.source {
            Source::Embedded(files) => Ok(files.get(name).map(|bytes| Blob::Memory(bytes))),
            Source::Directory(path) => {
                let path = path.join(name);
                // Asked before it is opened: opening a pipe would wait for somebody to write into it.
                match std::fs::metadata(&path) {
                    Ok(metadata) if metadata.is_file() => {}
                    Ok(_) => return Err(io(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))),
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(io(error)),
                }
                let file = File::open(path).map_err(io)?;
                let len = file.metadata().map_err(io)?.len();
                Ok(Some(Blob::File { file, len }))
            }
        }
    }
}

impl fmt::Display for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Directory(path) => write!(f, "{}", path.display()),
            Source::Embedded(_) => f.write_str("the model inside the program"),
        }
    }
}

/// Whether `name` is one path component that cannot lead elsewhere.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_and_embedded_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let on_disk = ModelFiles::directory(dir.path()).unwrap();
        let inside = ModelFiles::embedded(&[("config.json", b"{}")]);
        for files in [&on_disk, &inside] {
            assert_eq!(files.read("config.json").unwrap().as_deref(), Some(&b"{}"[..]));
            assert!(files.read("tokenizer.json").unwrap().is_none());
        }
        assert_eq!(on_disk.path(), Some(dir.path()));
        assert_eq!(inside.path(), None);
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let files = ModelFiles::embedded(&[]);
        for name in ["", "..", "../secret", "/etc/passwd", "a\\b", "a\0"] {
            assert!(matches!(files.read(name), Err(FilesError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_directory_or_no_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        std::fs::write(&file, "x").unwrap();
        let error = ModelFiles::directory(&file).unwrap_err();
        assert!(error.to_string().ends_with("plain is not a directory"), "{error}");
        std::fs::create_dir(dir.path().join("config.json")).unwrap();
        let error = ModelFiles::directory(dir.path()).unwrap().read("config.json").unwrap_err();
        assert_eq!(error.to_string(), "cannot read config.json: not a regular file");
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("tokenizer.json")).unwrap();
        let error = ModelFiles::directory(dir.path()).unwrap().read("tokenizer.json").unwrap_err();
        assert_eq!(error.to_string(), "cannot read tokenizer.json: not a regular file");
    }
}
