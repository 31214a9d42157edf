//! Fetching from a hub: what is asked for, what lands in the cache, and what is said when it cannot be had.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pelton_model::hub::{HubError, HubOptions, commit_of, fetch, fetch_adapter};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ID: &str = "org/tiny";

/// Path, and the value of the authorization header.
type Asked = (String, Option<String>);

/// A hub on the loopback device with one repository; it answers until dropped.
struct Hub {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Repository {
    files: BTreeMap<String, Vec<u8>>,
    commit: String,
    /// Status of every answer, if not 200.
    status: Option<u16>,
    /// Status of answers for files, if not 200.
    file_status: Option<u16>,
}

impl Repository {
    fn new(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        Self { files, commit: COMMIT.to_owned(), status: None, file_status: None }
    }

    fn whole() -> Self {
        Self::new(&[
            ("config.json", "{}"),
            ("tokenizer.json", "{\"model\": 1}"),
            ("chat_template.jinja", "hello"),
            ("README.md", "long"),
            ("model.safetensors", "weights, or what stands for them"),
            ("pytorch_model.bin", "the same weights again"),
            ("consolidated.safetensors", "and again"),
            ("onnx/config.json", "{}"),
            ("../evil.json", "{}"),
        ])
    }

    fn sharded(index: &str) -> Self {
        Self::new(&[
            ("config.json", "{}"),
            ("model.safetensors.index.json", index),
            ("model-1.safetensors", "one"),
            ("model-2.safetensors", "two"),
            ("unlisted.safetensors", "three"),
        ])
    }
}

impl Hub {
    fn serve(repository: Repository) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (asked, stop) = (asked.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    answer(stream.unwrap(), &repository, &asked);
                }
            }
        });
        Self { address, asked, stop, thread: Some(thread) }
    }

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            revision: None,
            token: None,
            cache_dir: cache.to_owned(),
            endpoint: Some(format!("http://{}", self.address)),
            offline: false,
        }
    }

    /// What was asked since the last call.
    fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread from its accept.
        drop(TcpStream::connect(self.address));
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|result| result.is_ok()));
    }
}

/// One request, one answer, end of connection.
fn answer(mut stream: TcpStream, repository: &Repository, asked: &Mutex<Vec<Asked>>) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    asked.lock().unwrap().push((path.clone(), headers.get("authorization").cloned()));

    let info = format!("/api/models/{ID}/revision/");
    let file = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/"));
    let (status, extra, body) = if let Some(status) = repository.status {
        (status, String::new(), Vec::new())
    } else if path.starts_with(&info) && !path.ends_with("/absent") {
        let siblings: Vec<_> = repository.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"siblings": siblings, "sha": repository.commit});
        (200, String::new(), info.to_string().into_bytes())
    } else if let Some((name, status)) = file.zip(repository.file_status).filter(|(name, _)| *name != "config.json") {
        (status, String::new(), name.as_bytes().to_vec())
    } else if let Some((name, content)) = file.and_then(|name| repository.files.get_key_value(name)) {
        let range = headers["range"].strip_prefix("bytes=").unwrap();
        let (begin, end) = range.split_once('-').unwrap();
        let begin: usize = begin.parse().unwrap();
        let end = end.parse().map_or(content.len(), |last: usize| last + 1);
        let range = format!("Content-Range: bytes {begin}-{}/{}\r\n", end - 1, content.len());
        let extra = format!("{range}ETag: \"etag-of-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
        (206, extra, content[begin..end].to_vec())
    } else {
        (404, String::new(), Vec::new())
    };
    let head = format!("HTTP/1.1 {status} X\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // A client that has gone away is its own affair.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn only_what_serving_reads_is_fetched_once_and_then_found_offline() {
    let hub = Hub::serve(Repository::whole());
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    let snapshot = fetch(ID, &options).unwrap();
    assert!(snapshot.ends_with(format!("models--org--tiny/snapshots/{COMMIT}")), "{snapshot:?}");
    assert_eq!(commit_of(&snapshot.join("model.gguf")), Some(COMMIT));
    assert_eq!(commit_of(Path::new("/models/tiny")), None);
    let wanted = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names_in(&snapshot), wanted);
    assert_eq!(
        std::fs::read_to_string(snapshot.join("model.safetensors")).unwrap(),
        "weights, or what stands for them"
    );
    let asked = hub.take_asked();
    assert!(
        asked.iter().all(|(path, token)| !path.contains(".bin") && !path.contains("onnx") && token.is_none()),
        "{asked:?}"
    );

    assert_eq!(fetch(ID, &options).unwrap(), snapshot);
    assert_eq!(hub.take_asked(), [(format!("/api/models/{ID}/revision/main"), None)]);

    drop(hub);
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(fetch(ID, &offline).unwrap(), snapshot);
    let by_commit = HubOptions { revision: Some(COMMIT.to_owned()), ..offline };
    assert_eq!(fetch(ID, &by_commit).unwrap(), snapshot);
}

#[test]
fn shards_are_those_the_index_lists() {
    let index =
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let hub = Hub::serve(Repository::sharded(index));
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fetch(ID, &hub.options(cache.path())).unwrap();
    let wanted = ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(names_in(&snapshot), wanted);
    std::fs::remove_file(snapshot.join("model-2.safetensors")).unwrap();
    let error = fetch(ID, &HubOptions { offline: true, ..hub.options(cache.path()) }).unwrap_err().to_string();
    assert!(error.contains("model-2.safetensors is missing; run once without --offline"), "{error}");
    std::fs::write(snapshot.join("model.safetensors.index.json"), "{").unwrap();
    let error = fetch(ID, &HubOptions { offline: true, ..hub.options(cache.path()) }).unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error}");
    assert!(error.to_string().contains("model.safetensors.index.json is broken"), "{error}");
}

#[test]
fn token_and_revision_are_sent() {
    let hub = Hub::serve(Repository::whole());
    let cache = tempfile::tempdir().unwrap();
    let options =
        HubOptions { revision: Some("refs/pr/3".into()), token: Some("hf_secret".into()), ..hub.options(cache.path()) };
    let snapshot = fetch(ID, &options).unwrap();
    let asked = hub.take_asked();
    assert_eq!(asked[0].0, format!("/api/models/{ID}/revision/refs%2Fpr%2F3"));
    assert!(asked[1..].iter().all(|(path, _)| path.starts_with(&format!("/{ID}/resolve/{COMMIT}/"))), "{asked:?}");
    assert!(asked.iter().all(|(_, token)| token.as_deref() == Some("Bearer hf_secret")), "{asked:?}");
    assert_eq!(fetch(ID, &HubOptions { offline: true, ..options.clone() }).unwrap(), snapshot);
    let error = fetch(ID, &HubOptions { offline: true, revision: None, ..options }).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |change: fn(&mut Repository), revision: Option<&str>| {
        let mut repository = Repository::whole();
        change(&mut repository);
        let hub = Hub::serve(repository);
        let cache = tempfile::tempdir().unwrap();
        let options = HubOptions { revision: revision.map(str::to_owned), ..hub.options(cache.path()) };
        fetch(ID, &options).unwrap_err()
    };
    let error = refused(|repository| repository.status = Some(401), None);
    assert!(matches!(error, HubError::Refused { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("model org/tiny at revision main (status 401)"), "{error}");
    assert!(error.to_string().contains("the token's access"), "{error}");
    let error = refused(|_| (), Some("absent"));
    assert!(matches!(error, HubError::NotFound { .. }), "{error}");
    assert!(error.to_string().ends_with("has no model org/tiny at revision absent"), "{error}");
    let error = refused(|repository| repository.status = Some(503), None);
    assert!(error.to_string().ends_with("status 503"), "{error}");
    // Descriptions of gated models are public, files are not.
    let error = refused(|repository| repository.file_status = Some(403), None);
    assert!(error.to_string().contains("chat_template.jinja of model org/tiny"), "{error}");
    assert!(matches!(error, HubError::Refused { status: 403, .. }), "{error}");
}

#[test]
fn repositories_without_readable_weights_are_refused() {
    for (missing, files) in [
        ("weights", &[("config.json", "{}"), ("tf_model.h5", "x")][..]),
        ("config.json", &[("model.safetensors", "x")]),
    ] {
        let hub = Hub::serve(Repository::new(files));
        let cache = tempfile::tempdir().unwrap();
        let error = fetch(ID, &hub.options(cache.path())).unwrap_err().to_string();
        assert!(error.contains(&format!("has no {missing}; safetensors, PyTorch")), "{error}");
    }
}

#[test]
fn pickles_are_fetched_where_there_is_nothing_better() {
    let index = r#"{"weight_map": {"a": "pytorch_model-1.bin"}}"#;
    let files = [
        ("config.json", "{}"),
        ("pytorch_model.bin.index.json", index),
        ("pytorch_model-1.bin", "1"),
        ("training_args.bin", "x"),
    ];
    let hub = Hub::serve(Repository::new(&files));
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch(ID, &hub.options(cache.path())).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "pytorch_model-1.bin", "pytorch_model.bin.index.json"]);
}

#[test]
fn a_single_safetensors_file_may_have_any_name() {
    let files = [("config.json", "{}"), ("quantize_config.json", "{}"), ("gptq_model-4bit-128g.safetensors", "x")];
    let hub = Hub::serve(Repository::new(&files));
    let cache = tempfile::tempdir().unwrap();
    let options = hub.options(cache.path());
    let folder = fetch(ID, &options).unwrap();
    assert_eq!(names_in(&folder), ["config.json", "gptq_model-4bit-128g.safetensors", "quantize_config.json"]);
    drop(hub);
    assert_eq!(fetch(ID, &HubOptions { offline: true, ..options }).unwrap(), folder);
    // Of two nobody knows which.
    let hub = Hub::serve(Repository::new(&[("config.json", "{}"), ("a.safetensors", "x"), ("b.safetensors", "x")]));
    let cache = tempfile::tempdir().unwrap();
    assert!(fetch(ID, &hub.options(cache.path())).unwrap_err().to_string().contains("has no weights"));
}

#[test]
fn a_gguf_file_is_the_whole_model() {
    let hub = Hub::serve(Repository::new(&[("a-Q8_0.gguf", "1"), ("README.md", "x")]));
    let cache = tempfile::tempdir().unwrap();
    let file = fetch(ID, &hub.options(cache.path())).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    assert_eq!(file.file_name().unwrap(), "a-Q8_0.gguf");
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    assert_eq!(fetch(ID, &offline).unwrap(), file);

    let hub = Hub::serve(Repository::new(&[("a-Q8_0.gguf", "1"), ("a-Q4_0.gguf", "2"), ("config.json", "{}")]));
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(ID, &hub.options(cache.path())).unwrap_err().to_string();
    assert!(error.contains("has 2 GGUF files: "), "{error}");
    assert!(error.contains(&format!("name one of them, as in {ID}/a-Q")), "{error}");
    let file = fetch(&format!("{ID}/a-Q4_0.gguf"), &hub.options(cache.path())).unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "2");
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    let error = fetch(&format!("{ID}/a-Q8_0.gguf"), &offline).unwrap_err().to_string();
    assert!(error.contains("a-Q8_0.gguf is missing"), "{error}");
    let error = fetch(&format!("{ID}/b.gguf"), &hub.options(cache.path())).unwrap_err().to_string();
    assert!(error.contains("has no b.gguf"), "{error}");
}

#[test]
fn a_hostile_hub_cannot_write_outside_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let index = r#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#;
    let hub = Hub::serve(Repository::sharded(index));
    let error = fetch(ID, &hub.options(cache.path())).unwrap_err().to_string();
    assert!(error.contains("\"../../../../evil.safetensors\" is not the name of a *.safetensors file"), "{error}");
    let hub = Hub::serve(Repository { commit: "../../evil".into(), ..Repository::whole() });
    let error = fetch(ID, &hub.options(cache.path())).unwrap_err().to_string();
    assert!(error.contains("its commit is \"../../evil\""), "{error}");
}

#[test]
fn without_network_one_error_says_so_quickly() {
    // A port that was free a moment ago: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        revision: None,
        token: None,
        cache_dir: cache.path().to_owned(),
        endpoint: Some(format!("http://{address}/")),
        offline: false,
    };
    let start = Instant::now();
    let error = fetch(ID, &options).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("cannot reach http://{address}: ")) && text.contains("use --offline"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn directories_are_taken_as_they_are_and_nonsense_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        revision: None,
        token: None,
        cache_dir: cache.path().join("cache"),
        endpoint: None,
        offline: true,
    };
    assert_eq!(fetch(cache.path().to_str().unwrap(), &options).unwrap(), cache.path());
    for id in ["/no/such/directory", "./nowhere", "a/b/c", ""] {
        assert!(matches!(fetch(id, &options), Err(HubError::ModelId { .. })), "{id}");
    }
    let error = fetch(ID, &options).unwrap_err().to_string();
    assert!(error.contains("model org/tiny at revision main is not complete in"), "{error}");
    let climbing = HubOptions { revision: Some("../../x".into()), ..options };
    assert!(matches!(fetch(ID, &climbing), Err(HubError::Revision { .. })));
}

#[test]
fn of_an_adapter_its_two_files_are_fetched() {
    let files = [("adapter_config.json", "{}"), ("adapter_model.safetensors", "A and B"), ("tokenizer.json", "{}")];
    let hub = Hub::serve(Repository::new(&files));
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch_adapter(ID, &hub.options(cache.path())).unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("adapter_model.safetensors")).unwrap(), "A and B");
    assert!(folder.join("adapter_config.json").is_file() && !folder.join("tokenizer.json").exists());
    assert_eq!(fetch_adapter(folder.to_str().unwrap(), &hub.options(cache.path())).unwrap(), folder);

    hub.take_asked();
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    assert_eq!(fetch_adapter(ID, &offline).unwrap(), folder);
    std::fs::remove_file(folder.join("adapter_config.json")).unwrap();
    let error = fetch_adapter(ID, &offline).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json is missing"), "{error}");
    assert!(hub.take_asked().is_empty());

    let hub = Hub::serve(Repository::whole());
    let error = fetch_adapter(ID, &hub.options(cache.path())).unwrap_err().to_string();
    assert_eq!(error, format!("model {ID} at revision main has no adapter_config.json, so it is no LoRA adapter"));
    assert!(matches!(fetch_adapter("no such/place/at all", &offline), Err(HubError::ModelId { .. })));
}
