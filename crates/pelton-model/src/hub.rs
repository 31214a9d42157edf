//! Models by name: files of a hub repository, brought into the local cache that other Hugging Face tools share.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::ProgressBar;

use crate::adapters;
use crate::files::{ModelFiles, is_gguf, is_plain};
use crate::weights::{CheckpointError, FORMATS, FileFormat, Index, listed};

const ENDPOINT: &str = "https://huggingface.co";
/// For the first answer of the hub. Downloads themselves may take as long as they take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach the hub.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Branch, tag or commit; `None`: `main`.
    pub revision: Option<String>,
    /// Sent as bearer token; `None`: the token stored beside the cache by a login, if there is one.
    pub token: Option<String>,
    /// The hub cache, usually `~/.cache/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// The hub's address; `None`: `https://huggingface.co`.
    pub endpoint: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
}

/// A model that could not be brought here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a directory nor a name.
    #[error(
        "model {model_id:?} is neither an existing path nor a hub name like `name`, `organisation/name` or \
         `organisation/name/file.gguf`"
    )]
    ModelId {
        /// As it was given.
        model_id: String,
    },
    /// A revision that cannot be one.
    #[error("revision {revision:?} is not a branch, tag or commit")]
    Revision {
        /// As it was given.
        revision: String,
    },
    /// No answer.
    #[error(
        "cannot reach {endpoint}: {cause}; check the network, name a local directory, or use --offline when the model is \
         already in {}", cache_dir.display()
    )]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What the network said.
        cause: String,
        /// Where cached models are.
        cache_dir: PathBuf,
    },
    /// Refused: 401 or 403.
    #[error(
        "{endpoint} refuses {what} (status {status}): it is private, gated, or does not exist; check the name, and the token's access"
    )]
    Refused {
        /// The hub's address.
        endpoint: String,
        /// Model and revision, or a file of them.
        what: String,
        /// Its answer.
        status: u16,
    },
    /// Not there: 404.
    #[error("{endpoint} has no {what}")]
    NotFound {
        /// The hub's address.
        endpoint: String,
        /// Model and revision, or a file of them.
        what: String,
    },
    /// Any other refusal, or an answer that makes no sense.
    #[error("{endpoint} failed to deliver {what}: {cause}")]
    Failed {
        /// The hub's address.
        endpoint: String,
        /// Model and revision, or a file of them.
        what: String,
        /// What happened.
        cause: String,
    },
    /// The repository holds no weights that can be read.
    #[error("{what} has no {missing}; safetensors, PyTorch and GGUF checkpoints can be served")]
    NoWeights {
        /// Model and revision.
        what: String,
        /// The file that is missing.
        missing: String,
    },
    /// The repository is no adapter.
    #[error("{what} has no {missing}, so it is no LoRA adapter")]
    NoAdapter {
        /// Model and revision.
        what: String,
        /// The file that is missing.
        missing: &'static str,
    },
    /// Several GGUF files, each a model.
    #[error("{what} has {count} GGUF files: {names}; name one of them, as in {model_id}/{first}")]
    SeveralGguf {
        /// Model and revision.
        what: String,
        /// How many.
        count: usize,
        /// Their names.
        names: String,
        /// The model alone.
        model_id: String,
        /// One of them.
        first: String,
    },
    /// Not all in the cache, and nothing else may be asked.
    #[error("{what} is not complete in {}: {missing} is missing; run once without --offline to fill the cache", cache_dir.display())]
    NotCached {
        /// Model and revision.
        what: String,
        /// The first file that is missing.
        missing: String,
        /// The cache looked into.
        cache_dir: PathBuf,
    },
    /// The cache cannot be written or read.
    #[error("cannot use the cache {}: {cause}", cache_dir.display())]
    Cache {
        /// Where it is.
        cache_dir: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// The directory or GGUF file of a model: `model_id` itself when it is a path, else the snapshot of that hub repository (or the GGUF file in
/// it that a third part of the name names), downloaded as far as needed.
///
/// Only what serving reads is fetched: one GGUF file, or JSON files, chat templates, and the weights in one format; not the same weights in
/// others. All files come from one commit. Progress is drawn on standard error when that is a terminal.
pub fn fetch(model_id: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    if Path::new(model_id).exists() {
        return Ok(PathBuf::from(model_id));
    }
    let (repository, gguf) = match model_id.rsplit_once('/') {
        Some((repository, file)) if repository.contains('/') && is_gguf(file) => (repository, Some(file)),
        _ => (model_id, None),
    };
    if !is_model_id(repository) {
        return Err(HubError::ModelId { model_id: model_id.to_owned() });
    }
    let revision = options.revision.as_deref().unwrap_or("main");
    if !is_revision(revision) {
        return Err(HubError::Revision { revision: revision.to_owned() });
    }
    let hub = Hub { model_id: repository, gguf, revision, options };
    if options.offline { hub.cached() } else { hub.download() }
}

/// The commit whose snapshot in a hub cache `path` is, or is a file of.
pub fn commit_of(path: &Path) -> Option<&str> {
    let mut parts = path.components().map(|part| part.as_os_str().to_str());
    parts.find(|part| *part == Some("snapshots"))?;
    parts.next()?
}

/// The directory of a LoRA adapter: `id` itself when it is a path, else the snapshot of that hub repository with the two files of an adapter.
pub fn fetch_adapter(id: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    if Path::new(id).exists() {
        return Ok(PathBuf::from(id));
    }
    if !is_model_id(id) {
        return Err(HubError::ModelId { model_id: id.to_owned() });
    }
    let revision = options.revision.as_deref().unwrap_or("main");
    if !is_revision(revision) {
        return Err(HubError::Revision { revision: revision.to_owned() });
    }
    let hub = Hub { model_id: id, gguf: None, revision, options };
    if options.offline { hub.cached_adapter() } else { hub.download_adapter() }
}

struct Hub<'a> {
    model_id: &'a str,
    /// The one file that is wished for.
    gguf: Option<&'a str>,
    revision: &'a str,
    options: &'a HubOptions,
}

/// The files of a repository that are its weights.
enum Weights<'a> {
    /// Of that format, as one file or by its index.
    Files(&'static FileFormat),
    /// One safetensors file of another name.
    Named(&'a str),
    /// One GGUF file, which is the whole model.
    Gguf(&'a str),
}

impl Hub<'_> {
    /// Asks the hub which files the revision has.
    fn files(&self) -> Result<(Vec<String>, Downloads<'_>), HubError> {
        let cache = Cache::new(self.options.cache_dir.clone());
        let mut builder =
            ApiBuilder::from_cache(cache.clone()).with_endpoint(self.endpoint().to_owned()).with_retries(2);
        if let Some(token) = &self.options.token {
            builder = builder.with_token(Some(token.clone()));
        }
        let api = builder.build().map_err(|error| self.failure(&self.what(), error))?;
        let RepoInfo { siblings, sha } = self.info(&api)?;
        if sha.is_empty() || sha.len() > 64 || !sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(self.failed(&self.what(), format!("its commit is {sha:?}")));
        }
        let names = siblings.into_iter().map(|file| file.rfilename).collect();
        let commit = Repo::with_revision(self.model_id.to_owned(), RepoType::Model, sha.clone());
        let snapshot = cache.repo(commit.clone()).pointer_path(&sha);
        Ok((names, Downloads { hub: self, cache, repo: api.repo(commit), snapshot, sha }))
    }

    fn download(&self) -> Result<PathBuf, HubError> {
        let (names, files) = self.files()?;
        let has = |name: &str| names.iter().any(|candidate| candidate == name);
        let snapshot = files.snapshot.clone();
        let model = match self.weights(&names)? {
            None => {
                return Err(HubError::NoWeights {
                    what: self.what(),
                    missing: self.gguf.unwrap_or("weights").to_owned(),
                });
            }
            Some(Weights::Gguf(file)) => {
                files.get(file)?;
                snapshot.join(file)
            }
            Some(weights) => {
                for name in names.iter().filter(|name| is_description(name)) {
                    files.get(name)?;
                }
                if !has("config.json") {
                    return Err(HubError::NoWeights { what: self.what(), missing: "config.json".to_owned() });
                }
                match weights {
                    Weights::Files(format) if !has(format.single) => {
                        files.get(format.index)?;
                        for shard in
                            shards(&snapshot, format).map_err(|error| self.failed(&self.what(), error.to_string()))?
                        {
                            files.get(&shard)?;
                        }
                    }
                    Weights::Files(format) => files.get(format.single)?,
                    Weights::Named(file) | Weights::Gguf(file) => files.get(file)?,
                }
                snapshot.clone()
            }
        };
        files.finish()?;
        Ok(model)
    }

    fn download_adapter(&self) -> Result<PathBuf, HubError> {
        let (names, files) = self.files()?;
        for name in adapter_files(|name| names.iter().any(|candidate| candidate == name)) {
            if !names.iter().any(|candidate| candidate == name) {
                return Err(HubError::NoAdapter { what: self.what(), missing: name });
            }
            files.get(name)?;
        }
        files.finish()?;
        Ok(files.snapshot)
    }

    /// Which of a repository's files are the weights; `None` when there are none.
    fn weights<'n>(&self, names: &'n [String]) -> Result<Option<Weights<'n>>, HubError> {
        let has = |name: &str| names.iter().any(|candidate| candidate == name);
        if let Some(wanted) = self.gguf {
            return Ok(names.iter().find(|name| *name == wanted).map(|name| Weights::Gguf(name)));
        }
        if let Some(format) = FORMATS.iter().find(|format| has(format.single) || has(format.index)) {
            return Ok(Some(Weights::Files(format)));
        }
        let ggufs: Vec<String> = names.iter().filter(|name| is_plain(name) && is_gguf(name)).cloned().collect();
        match &ggufs[..] {
            [first, _, ..] => Err(HubError::SeveralGguf {
                what: self.what(),
                count: ggufs.len(),
                names: listed(&ggufs, ", "),
                model_id: self.model_id.to_owned(),
                first: first.clone(),
            }),
            [one] => Ok(names.iter().find(|name| *name == one).map(|name| Weights::Gguf(name))),
            [] => {
                let mut named = names.iter().filter(|name| is_plain(name) && name.ends_with(FORMATS[0].ending));
                Ok(named.next().filter(|_| named.next().is_none()).map(|name| Weights::Named(name)))
            }
        }
    }

    fn not_cached(&self, missing: &str) -> HubError {
        HubError::NotCached {
            what: self.what(),
            missing: missing.to_owned(),
            cache_dir: self.options.cache_dir.clone(),
        }
    }

    /// The folder of the revision's files in the cache.
    fn cached_snapshot(&self) -> Result<PathBuf, HubError> {
        let repo = Repo::with_revision(self.model_id.to_owned(), RepoType::Model, self.revision.to_owned());
        let folder = self.options.cache_dir.join(repo.folder_name());
        let commit = match std::fs::read_to_string(folder.join("refs").join(self.revision)) {
            Ok(commit) => commit.trim().to_owned(),
            // A commit is its own name.
            Err(error) if error.kind() == ErrorKind::NotFound => self.revision.to_owned(),
            Err(error) => return Err(self.cache_error(&error)),
        };
        let snapshot = folder.join("snapshots").join(&commit);
        if !is_plain(&commit) || !snapshot.is_dir() {
            return Err(self.not_cached("the snapshot"));
        }
        Ok(snapshot)
    }

    fn cached_adapter(&self) -> Result<PathBuf, HubError> {
        let snapshot = self.cached_snapshot()?;
        let has = |name: &str| snapshot.join(name).is_file();
        match adapter_files(has).into_iter().find(|name| !has(name)) {
            Some(missing) => Err(self.not_cached(missing)),
            None => Ok(snapshot),
        }
    }

    /// The snapshot in the cache, if everything that serving reads is there.
    fn cached(&self) -> Result<PathBuf, HubError> {
        let snapshot = self.cached_snapshot()?;
        let has = |name: &str| snapshot.join(name).is_file();
        let entries = std::fs::read_dir(&snapshot).map_err(|error| self.cache_error(&error))?;
        let names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| has(name)).collect();
        let format = match self.weights(&names)? {
            None => return Err(self.not_cached(self.gguf.unwrap_or(FORMATS[0].single))),
            Some(Weights::Gguf(file)) => return Ok(snapshot.join(file)),
            Some(Weights::Files(format)) => Some(format),
            Some(Weights::Named(_)) => None,
        };
        if !has("config.json") {
            return Err(self.not_cached("config.json"));
        }
        if let Some(format) = format.filter(|format| !has(format.single)) {
            let shards = shards(&snapshot, format).map_err(|error| self.cache_error(&error))?;
            if let Some(missing) = shards.iter().find(|shard| !has(shard)) {
                return Err(self.not_cached(missing));
            }
        }
        Ok(snapshot)
    }

    /// What the hub says of the repository; the first thing asked, so its failures are explained with most care.
    fn info(&self, api: &Api) -> Result<RepoInfo, HubError> {
        let repo = Repo::with_revision(self.model_id.to_owned(), RepoType::Model, self.revision.to_owned());
        let request = api.repo(repo).info_request();
        let request =
            request.config().timeout_connect(Some(CONNECT_TIMEOUT)).timeout_global(Some(ANSWER_TIMEOUT)).build();
        let mut response = request.call().map_err(|error| self.failure(&self.what(), Box::new(error).into()))?;
        response.body_mut().read_json().map_err(|error| self.failed(&self.what(), error.to_string()))
    }

    fn endpoint(&self) -> &str {
        self.options.endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/')
    }

    fn what(&self) -> String {
        format!("model {} at revision {}", self.model_id, self.revision)
    }

    fn failed(&self, what: &str, cause: String) -> HubError {
        HubError::Failed { endpoint: self.endpoint().to_owned(), what: what.to_owned(), cause }
    }

    fn cache_error(&self, error: &dyn fmt::Display) -> HubError {
        HubError::Cache { cache_dir: self.options.cache_dir.clone(), cause: error.to_string() }
    }

    fn failure(&self, what: &str, error: ApiError) -> HubError {
        let endpoint = self.endpoint().to_owned();
        let what = what.to_owned();
        match error {
            ApiError::TooManyRetries(inner) => self.failure(&what, *inner),
            ApiError::IoError(error) => self.cache_error(&error),
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(404) => HubError::NotFound { endpoint, what },
                ureq::Error::StatusCode(status @ (401 | 403)) => HubError::Refused { endpoint, what, status },
                ureq::Error::StatusCode(status) => self.failed(&what, format!("status {status}")),
                other => HubError::Unreachable {
                    endpoint,
                    cause: other.to_string(),
                    cache_dir: self.options.cache_dir.clone(),
                },
            },
            other => self.failed(&what, other.to_string()),
        }
    }
}

/// The files of an adapter, where `has` tells which there are.
fn adapter_files(has: impl Fn(&str) -> bool) -> [&'static str; 2] {
    let weights = adapters::WEIGHTS.into_iter().find(|name| has(name));
    [adapters::CONFIG, weights.unwrap_or(adapters::WEIGHTS[0])]
}

/// Names of the shards that the snapshot's index lists.
fn shards(snapshot: &Path, format: &'static FileFormat) -> Result<Vec<String>, CheckpointError> {
    let index = Index::read(&ModelFiles::directory(snapshot)?, format)?.ok_or(CheckpointError::NoWeights)?;
    Ok(index.shards()?.into_iter().map(str::to_owned).collect())
}

/// Files of one commit on their way into the cache.
struct Downloads<'a> {
    hub: &'a Hub<'a>,
    cache: Cache,
    repo: ApiRepo,
    snapshot: PathBuf,
    /// The commit.
    sha: String,
}

impl Downloads<'_> {
    /// Brings `name` into the snapshot, unless it is there.
    fn get(&self, name: &str) -> Result<(), HubError> {
        if self.snapshot.join(name).exists() {
            return Ok(());
        }
        let bar = ProgressBar::new(0);
        let done = self.repo.download_with_progress(name, bar.clone());
        bar.finish_and_clear();
        done.map(drop).map_err(|error| self.hub.failure(&format!("{name} of {}", self.hub.what()), error))
    }

    /// Notes that the revision is this commit: its files are there.
    fn finish(&self) -> Result<(), HubError> {
        let Hub { model_id, revision, .. } = self.hub;
        let repo = Repo::with_revision((*model_id).to_owned(), RepoType::Model, (*revision).to_owned());
        self.cache.repo(repo).create_ref(&self.sha).map_err(|error| self.hub.cache_error(&error))
    }
}

/// Whether a file of the repository's root describes the model: configuration, tokenizer, chat template.
fn is_description(name: &str) -> bool {
    is_plain(name) && !name.ends_with(".index.json") && (name.ends_with(".json") || name.ends_with(".jinja"))
}

/// `name` or `organisation/name`, in the letters that the hub allows.
fn is_model_id(id: &str) -> bool {
    let is_part = |part: &str| {
        (1..=96).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    let mut parts = id.split('/');
    parts.clone().count() <= 2 && parts.all(is_part)
}

/// Branches may have slashes; nothing here may climb out of the cache.
fn is_revision(revision: &str) -> bool {
    (1..=200).contains(&revision.len())
        && revision.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte))
        && revision.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_hub_are_looked_up() {
        for id in ["gpt2", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "a_b/c.d"] {
            assert!(is_model_id(id), "{id}");
        }
        for id in
            ["", "/", "a/", "/a", "a/b/c", "../a", "./models", "~/models", "a b", "a--b", "-a", "a/..", "C:\\a", "é"]
        {
            assert!(!is_model_id(id), "{id}");
        }
    }

    #[test]
    fn revisions_cannot_leave_the_cache() {
        for revision in ["main", "refs/pr/3", "v1.0", "0123abcd"] {
            assert!(is_revision(revision), "{revision}");
        }
        for revision in ["", "..", "a/../b", "/etc", "a//b", "a b", "a\n"] {
            assert!(!is_revision(revision), "{revision}");
        }
    }

    #[test]
    fn only_descriptions_of_the_root_are_fetched() {
        for name in ["config.json", "tokenizer.json", "chat_template.jinja"] {
            assert!(is_description(name), "{name}");
        }
        for name in [
            "README.md",
            "pytorch_model.bin.index.json",
            "model.safetensors.index.json",
            "onnx/config.json",
            "model.safetensors",
            "x.bin",
        ] {
            assert!(!is_description(name), "{name}");
        }
    }
}
