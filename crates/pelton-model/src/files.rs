//! Where a model's files come from: a directory, one GGUF file, or named bytes inside the program.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::gguf::{self, Gguf, GgufError};
use crate::weights::{FORMATS, listed};

/// Largest text file read whole. Tokenizers of large vocabularies take some 30 MB, indexes of many shards about 10.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// What a GGUF file says of text, as JSON: one object with the keys of its metadata that begin with `tokenizer.`.
pub const GGUF_TOKENIZER: &str = "tokenizer.gguf.json";

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
    /// Several GGUF files, each a model.
    #[error("{path} holds {count} GGUF files: {names}; name one of them, as in {path}/{first}")]
    SeveralGguf {
        /// The directory.
        path: String,
        /// How many.
        count: usize,
        /// Their names.
        names: String,
        /// One of them.
        first: String,
    },
    /// A GGUF file that cannot be served.
    #[error(transparent)]
    Gguf(#[from] GgufError),
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
    Gguf { path: PathBuf, gguf: Arc<Gguf> },
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
    /// The model at `path`: a GGUF file, or a directory.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let path = path.into();
        if path.is_file() && path.to_str().is_some_and(is_gguf) { Self::gguf_file(path) } else { Self::directory(path) }
    }

    /// The files of `path`; where it holds weights in no other format, its one GGUF file, which is all that is read then. Fails when
    /// `path` is no directory.
    pub fn directory(path: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let path = path.into();
        if !path.is_dir() {
            return Err(FilesError::NotADirectory { path });
        }
        let has = |name: &str| path.join(name).exists();
        if FORMATS.iter().any(|format| has(format.single) || has(format.index)) {
            return Ok(Self { source: Source::Directory(path) });
        }
        let mut names = names_in(&path)?;
        names.retain(|name| is_gguf(name));
        names.sort();
        match &names[..] {
            [] => Ok(Self { source: Source::Directory(path) }),
            [one] => Self::gguf_file(path.join(one)),
            [first, ..] => Err(FilesError::SeveralGguf {
                path: path.display().to_string(),
                count: names.len(),
                names: listed(&names, ", "),
                first: first.clone(),
            }),
        }
    }

    /// The model in the GGUF file `path`: its metadata is told as `config.json` and as [`GGUF_TOKENIZER`].
    pub fn gguf_file(path: impl Into<PathBuf>) -> Result<Self, FilesError> {
        let path = path.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let blob = open(&path, &name)?
            .ok_or_else(|| FilesError::Io { name: name.clone(), source: ErrorKind::NotFound.into() })?;
        let gguf = Arc::new(Gguf::open(&name, blob)?);
        Ok(Self { source: Source::Gguf { path, gguf } })
    }

    /// The GGUF file, where the model is one.
    pub(crate) fn gguf(&self) -> Option<Arc<Gguf>> {
        match &self.source {
            Source::Gguf { gguf, .. } => Some(gguf.clone()),
            Source::Directory(_) | Source::Embedded(_) => None,
        }
    }

    /// Files that are part of the program.
    pub fn embedded(files: &[(&str, &'static [u8])]) -> Self {
        Self { source: Source::Embedded(files.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect()) }
    }

    /// The directory or file, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Directory(path) | Source::Gguf { path, .. } => Some(path),
            Source::Embedded(_) => None,
        }
    }

    /// The whole of a small file; `None` when there is no such file. At most 256 MiB.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, FilesError> {
        if let Source::Gguf { gguf, .. } = &self.source {
            return Ok(match name {
                "config.json" => Some(gguf.config()?.into()),
                GGUF_TOKENIZER => Some(gguf.tokenizer().into()),
                _ => None,
            });
        }
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

    /// Names of the files that end so, in order.
    pub(crate) fn names_ending(&self, ending: &str) -> Result<Vec<String>, FilesError> {
        let mut names: Vec<String> = match &self.source {
            Source::Embedded(files) => files.keys().cloned().collect(),
            Source::Directory(path) => names_in(path)?,
            Source::Gguf { .. } => Vec::new(),
        };
        names.retain(|name| name.ends_with(ending));
        names.sort();
        Ok(names)
    }

    /// Opens a file that is read in pieces; `None` when there is no such file.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Blob<'static>>, FilesError> {
        if !is_plain(name) {
            return Err(FilesError::Name { name: name.to_owned() });
        }
        match &self.source {
            Source::Embedded(files) => Ok(files.get(name).map(|bytes| Blob::Memory(bytes))),
            Source::Directory(path) => open(&path.join(name), name),
            Source::Gguf { .. } => Ok(None),
        }
    }
}

/// Opens the file `path`, called `name`; `None` when there is none.
fn open(path: &Path, name: &str) -> Result<Option<Blob<'static>>, FilesError> {
    let io = |source| FilesError::Io { name: name.to_owned(), source };
    // Asked before it is opened: opening a pipe would wait for somebody to write into it.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(io(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok(Some(Blob::File { file, len }))
}

/// Whether `name` is that of a GGUF file.
pub(crate) fn is_gguf(name: &str) -> bool {
    name.ends_with(gguf::ENDING)
}

impl fmt::Display for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Directory(path) | Source::Gguf { path, .. } => write!(f, "{}", path.display()),
            Source::Embedded(_) => f.write_str("the model inside the program"),
        }
    }
}

/// Names of the files of a directory, those that are text.
fn names_in(path: &Path) -> Result<Vec<String>, FilesError> {
    let io = |source| FilesError::Io { name: path.display().to_string(), source };
    let entries = std::fs::read_dir(path).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
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
