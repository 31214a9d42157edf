//! `text-generation-launcher`, as container scripts of text-generation-inference start it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing in these tests takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The launcher's name in a directory of its own, as the container has it.
fn launcher(directory: &TempDir) -> Command {
    let link = directory.path().join("text-generation-launcher");
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_pelton"), &link).expect("a link");
    }
    let mut command = Command::new(link);
    // What a container sets, and nothing that this machine happens to have set.
    command.env_remove("RUST_LOG").env("LOG_LEVEL", "info").env("HOSTNAME", "3f1c2a9be0d4").stdin(Stdio::null());
    command
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// A running launcher; ends with its owner.
struct Launched {
    child: Child,
    lines: Receiver<String>,
    /// Everything told until it was connected.
    told: Vec<String>,
    port: u16,
    _directory: TempDir,
}

impl Launched {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a directory");
        let mut command = launcher(&directory);
        command.args(arguments).envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("the launcher starts");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut told = Vec::new();
        while !told.last().is_some_and(|line: &String| line.contains("Connected")) {
            told.push(lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{error}: {told:?}")));
        }
        let at = told.iter().find_map(|line| Some(line.split_once("is served on http://")?.1)).expect("an address");
        assert!(at.starts_with("0.0.0.0:"), "a container's HOSTNAME is no address, and all are listened on: {at}");
        let port = port_of(at);
        Self { child, lines, told, port, _directory: directory }
    }

    /// A scripted model with `arguments`.
    fn fake(arguments: &[&str]) -> Self {
        let arguments: Vec<&str> =
            ["--model-id", "fake", "--port", "0"].into_iter().chain(arguments.iter().copied()).collect();
        Self::start(&arguments, &[])
    }

    fn get(&self, path: &str) -> Answer {
        ask(self.port, "GET", path, "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        ask(self.port, "POST", path, &body.to_string())
    }

    fn info(&self) -> Value {
        self.get("/info").json()
    }

    /// Asks for `max_new_tokens` after `prompt`; whoever drops the connection does not want them any more.
    fn begin(&self, prompt: &str, max_new_tokens: u32) -> TcpStream {
        send(self.port, "POST", "/generate", &generation(prompt, max_new_tokens).to_string())
    }

    /// Waits until the metrics hold each of `wanted`.
    fn until(&self, wanted: &[&str]) {
        let begin = Instant::now();
        loop {
            let metrics = self.get("/metrics").body;
            if wanted.iter().all(|wanted| metrics.lines().any(|line| line == *wanted)) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{wanted:?} is missing in {metrics}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn assert_told(&self, words: &str) {
        assert!(self.told.iter().any(|line| line.contains(words)), "`{words}` is missing in {:#?}", self.told);
    }

    /// Sends SIGTERM and waits for the end.
    fn terminate(&mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill starts").success());
        self.child.wait().expect("an exit status")
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// A header's value in milliseconds.
    fn milliseconds(&self, name: &str) -> u64 {
        let line = self.head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned));
        line.expect("the header is there").trim_start_matches(':').trim().parse().expect("a number")
    }
}

fn port_of(address: &str) -> u16 {
    let digits = address.split_once(':').expect("a port").1;
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a port")
}

fn generation(prompt: &str, max_new_tokens: u32) -> Value {
    json!({"inputs": prompt, "parameters": {"max_new_tokens": max_new_tokens, "details": true}})
}

fn send(port: u16, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("written");
    stream
}

fn ask(port: u16, method: &str, path: &str, body: &str) -> Answer {
    let mut answer = String::new();
    send(port, method, path, body).read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Runs a launcher that must not start, and gives back what it said.
fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let directory = TempDir::new().expect("a directory");
    let mut command = launcher(&directory);
    command.args(["--port", "0"]).args(arguments).envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().expect("the launcher starts");
    let told = String::from_utf8_lossy(&stdout);
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success() && !told.contains("Connected"), "{arguments:?} {environment:?}: {told}{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

/// A checkpoint in the shape of StarCoder, small, of random weights, with the demo model's tokenizer; as GPTQ with four bits.
fn starcoder(directory: &Path) -> PathBuf {
    const HIDDEN: usize = 64;
    let whole = directory.join("whole");
    fs::create_dir(&whole).expect("a folder");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(demo().join(name), whole.join(name)).expect("copied");
    }
    let config = json!({
        "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh",
        "multi_query": true, "n_embd": HIDDEN, "n_head": 4, "n_inner": 4 * HIDDEN, "n_layer": 2, "n_positions": 8192,
        "layer_norm_epsilon": 1e-5, "vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
    });
    fs::write(whole.join("config.json"), config.to_string()).expect("written");
    let mut tensors = vec![
        ("transformer.wte.weight".to_owned(), vec![4096, HIDDEN]),
        ("transformer.wpe.weight".to_owned(), vec![8192, HIDDEN]),
        ("transformer.ln_f.weight".to_owned(), vec![HIDDEN]),
        ("transformer.ln_f.bias".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("transformer.h.{layer}.{name}"), shape.to_vec()));
        for (name, outputs, inputs) in [
            ("attn.c_attn", HIDDEN + 2 * HIDDEN / 4, HIDDEN),
            ("attn.c_proj", HIDDEN, HIDDEN),
            ("mlp.c_fc", 4 * HIDDEN, HIDDEN),
            ("mlp.c_proj", HIDDEN, 4 * HIDDEN),
        ] {
            add(&format!("{name}.weight"), &[outputs, inputs]);
            add(&format!("{name}.bias"), &[outputs]);
        }
        for name in ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"] {
            add(name, &[HIDDEN]);
        }
    }
    let (mut header, mut data, mut random) = (serde_json::Map::new(), Vec::new(), 1_u64);
    for (name, shape) in tensors {
        let begin = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = (random >> 40) as f32 / (1 << 24) as f32 * 0.2 - 0.1;
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(whole.join("model.safetensors")).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    file.write_all(&data).expect("written");
    let text = directory.join("text");
    fs::write(&text, "def add(a, b):\n    return a + b\n".repeat(80)).expect("written");
    let gptq = directory.join("starcoder-gptq");
    let made = Command::new(env!("CARGO_BIN_EXE_pelton"))
        .args([
            "quantize",
            "--quiet",
            "--format",
            "gptq",
            "--group-size",
            "32",
            "--calibration-tokens",
            "512",
            "--calibration",
        ])
        .args([&text, &whole, &gptq])
        .output()
        .expect("pelton starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    gptq
}

#[test]
fn starcoder_recipe_starts_from_the_environment_alone() {
    let data = TempDir::new().expect("a directory");
    let model = starcoder(data.path());
    let environment = [
        ("MODEL_ID", model.to_str().expect("text")),
        ("QUANTIZE", "gptq"),
        ("NUM_SHARD", "1"),
        ("MAX_INPUT_LENGTH", "1562"),
        ("MAX_TOTAL_TOKENS", "4096"),
        ("HUGGINGFACE_HUB_CACHE", data.path().to_str().expect("text")),
        ("PORT", "0"),
    ];
    let mut launched = Launched::start(&[], &environment);
    let info = launched.info();
    assert_eq!((&info["max_input_tokens"], &info["max_total_tokens"]), (&json!(1562), &json!(4096)));
    let answer = launched.post("/generate", &generation("def fibonacci(n):", 5)).json();
    assert!(answer["details"]["generated_tokens"].as_u64().is_some_and(|tokens| (1..=5).contains(&tokens)), "{answer}");
    assert_eq!(launched.terminate().code(), Some(0));
    assert!(launched.lines.try_iter().any(|line| line.contains("stopping")), "the log tells the end");

    // What it is not, it is not taken for.
    let contradicted = refusal(&["--quantize", "awq"], &environment[..1]);
    assert!(
        contradicted.contains("--quantize awq needs a checkpoint quantised so, but this one is gptq"),
        "{contradicted}"
    );
    let learned = refusal(&["--rope-scaling", "linear", "--rope-factor", "2"], &environment[..1]);
    assert!(learned.contains("learned positions"), "{learned}");
}

#[test]
fn defaults_are_those_of_text_generation_inference() {
    let launched = Launched::fake(&[]);
    let info = launched.info();
    for (limit, value) in [
        ("max_best_of", 2),
        ("max_stop_sequences", 4),
        ("max_concurrent_requests", 128),
        ("max_client_batch_size", 4),
        ("validation_workers", 2),
    ] {
        assert_eq!(info[limit], value, "{limit}");
    }
}

#[test]
fn a_flag_comes_before_its_variable() {
    let environment = [
        ("MODEL_ID", "fake"),
        ("PORT", "1"),
        ("MAX_BEST_OF", "3"),
        ("MAX_STOP_SEQUENCES", "9"),
        ("JSON_OUTPUT", "false"),
    ];
    let launched = Launched::start(&["-p", "0", "--max-best-of", "5"], &environment);
    let info = launched.info();
    assert_eq!((&info["max_best_of"], &info["max_stop_sequences"]), (&json!(5), &json!(9)));
}

#[test]
fn what_asks_for_something_else_is_explained_in_the_log() {
    let launched = Launched::start(
        &[
            "--model-id",
            "fake",
            "-p",
            "0",
            "--cuda-graphs",
            "1,2,4",
            "--trust-remote-code",
            "--usage-stats",
            "on",
            "--num-shard",
            "1",
        ],
        &[
            ("PREFILL_CHUNKING", "0"),
            ("MASTER_ADDR", "localhost"),
            ("CUDA_MEMORY_FRACTION", "0.9"),
            ("SHARDED", "false"),
        ],
    );
    launched.assert_told("--cuda-graphs changes nothing: no GPU is used");
    launched.assert_told("--trust-remote-code changes nothing: no code of a model's repository is run");
    launched.assert_told("--usage-stats changes nothing: no statistics are sent");
    launched.assert_told("PREFILL_CHUNKING=0 changes nothing");
    launched.assert_told("--master-addr changes nothing");
    launched.assert_told("--cuda-memory-fraction changes nothing");
    // What asks for what happens anyway is not worth a line.
    let quiet = Launched::fake(&[
        "--usage-stats",
        "off",
        "--cuda-graphs",
        "0",
        "--disable-crash-reports",
        "--enable-prefill-logprobs",
    ]);
    assert!(!quiet.told.iter().any(|line| line.contains("changes nothing")), "{:?}", quiet.told);
}

#[test]
fn the_environment_is_told_and_the_server_starts() {
    let launched = Launched::start(&["--env"], &[("MODEL_ID", "fake"), ("PORT", "0"), ("HF_TOKEN", "secret")]);
    launched.assert_told(&format!("pelton {} for ", env!("CARGO_PKG_VERSION")));
    launched.assert_told("rustc ");
    launched.assert_told("CPU: ");
    launched.assert_told("HF_TOKEN=...");
    launched.assert_told("MODEL_ID=fake");
    assert!(!launched.told.iter().any(|line| line.contains("secret")), "{:?}", launched.told);
}

#[test]
fn every_line_is_json_where_that_is_asked_for() {
    let launched = Launched::fake(&["--json-output", "--cuda-graphs", "8"]);
    for line in &launched.told {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
}

#[test]
fn metrics_may_have_a_port_of_their_own() {
    let launched = Launched::fake(&["--prometheus-port", "0"]);
    let at = launched.told.iter().find_map(|line| line.split_once("metrics are on http://")).expect("a line").1;
    let port = port_of(at);
    assert!(ask(port, "GET", "/metrics", "").body.contains("tgi_queue_size 0"));
    assert_eq!(ask(port, "GET", "/info", "").status, 404);
    assert!(launched.get("/metrics").body.contains("tgi_queue_size 0"));
}

// Requests of these tests would take minutes and are not waited for: what is looked for is there all that time.

#[test]
fn batches_are_as_large_as_they_may_be() {
    let launched = Launched::fake(&["--max-batch-size", "2", "--fake-step-cost", "20ms"]);
    let _requests: Vec<_> = (0..5).map(|_| launched.begin("abc", 8000)).collect();
    launched.until(&["tgi_batch_current_size 2", "tgi_queue_size 3"]);
}

#[test]
fn sequences_share_the_tokens_of_the_cache() {
    // 64 blocks of sixteen tokens: the first prompt leaves 26 of them, the second needs 32.
    let launched = Launched::fake(&["--max-batch-total-tokens", "1024", "--fake-step-cost", "200ms"]);
    let _first = launched.begin(&"a".repeat(600), 400);
    launched.until(&["tgi_batch_current_size 1"]);
    let _second = launched.begin(&"b".repeat(500), 400);
    launched.until(&["tgi_batch_current_size 1", "tgi_queue_size 1"]);
    // It was not the number of sequences.
    let launched = Launched::fake(&["--max-batch-total-tokens", "2048", "--fake-step-cost", "200ms"]);
    let _both = [launched.begin(&"a".repeat(600), 400), launched.begin(&"b".repeat(500), 400)];
    launched.until(&["tgi_batch_current_size 2", "tgi_queue_size 0"]);
}

#[test]
fn prompts_are_computed_in_steps_of_the_budget() {
    let launched = Launched::fake(&["--max-batch-prefill-tokens", "16", "--fake-step-cost", "20ms"]);
    let answer = launched.post("/generate", &generation(&"a".repeat(160), 1));
    assert!(answer.milliseconds("x-inference-time") >= 10 * 20, "ten steps: {}", answer.head);
}

#[test]
fn newcomers_wait_for_company() {
    let arguments = ["--waiting-served-ratio", "2", "--max-waiting-tokens", "100000", "--fake-step-cost", "20ms"];
    let launched = Launched::fake(&arguments);
    let _running = launched.begin("abc", 8000);
    launched.until(&["tgi_batch_current_size 1"]);
    let _alone = launched.begin("def", 8000);
    launched.until(&["tgi_batch_current_size 1", "tgi_queue_size 1"]);
    let _company = launched.begin("ghi", 8000);
    launched.until(&["tgi_batch_current_size 3", "tgi_queue_size 0"]);
}

#[test]
fn newcomers_wait_no_longer_than_is_said() {
    let arguments = ["--waiting-served-ratio", "2", "--max-waiting-tokens", "5", "--fake-step-cost", "20ms"];
    let launched = Launched::fake(&arguments);
    let _running = launched.begin("abc", 8000);
    launched.until(&["tgi_batch_current_size 1"]);
    let _alone = launched.begin("def", 8000);
    launched.until(&["tgi_batch_current_size 2", "tgi_queue_size 0"]);
}

#[test]
fn requests_beyond_the_limits_are_refused() {
    let launched = Launched::fake(&[
        "--max-concurrent-requests=1",
        "--max-input-tokens=8",
        "--max-total-tokens=8000",
        "--fake-step-cost=20ms",
    ]);
    assert_eq!(launched.post("/generate", &generation("abcdefghi", 1)).status, 422, "nine tokens of eight");
    assert_eq!(launched.post("/generate", &generation("abc", 7998)).status, 422, "8001 tokens of 8000");
    let _running = launched.begin("abc", 7997);
    launched.until(&["tgi_batch_current_size 1"]);
    assert_eq!(launched.post("/generate", &generation("abc", 1)).status, 429);
}

#[test]
fn another_tokenizer_configuration_and_other_weights_are_used() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("tokenizer_config.json");
    let config = json!({"eos_token": "<|endoftext|>", "chat_template": "X{{ messages[0]['content'] }}Y"});
    fs::write(&path, config.to_string()).expect("written");
    let launched = Launched::start(
        &[
            "--model-id",
            "org/name",
            "--tokenizer-config-path",
            path.to_str().expect("text"),
            "-p",
            "0",
            "--rope-scaling",
            "linear",
        ],
        &[
            ("WEIGHTS_CACHE_OVERRIDE", demo().to_str().expect("text")),
            ("ROPE_FACTOR", "2"),
            ("MAX_BATCH_TOTAL_TOKENS", "4096"),
        ],
    );
    let body = json!({"messages": [{"role": "user", "content": "abc"}]});
    assert_eq!(launched.post("/chat_tokenize", &body).json()["templated_text"], "XabcY");
    let info = launched.info();
    assert_eq!((&info["model_id"], &info["max_total_tokens"]), (&json!("org/name"), &json!(4096)), "twice 2048");
}

#[test]
fn sequences_are_as_long_as_the_cache_unless_told_otherwise() {
    let launched = Launched::start(&["-p", "0", "--max-batch-total-tokens", "512"], &[]);
    assert_eq!(launched.info()["max_total_tokens"], 512);
    launched.assert_told("sequences may have 512 tokens, what the KV cache holds; the model was made for 2048");
    launched.assert_told("serving the demo model inside this program");
}

#[test]
fn a_stop_while_the_model_is_fetched_is_heeded() {
    // A hub that takes the question and never answers.
    let hub = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", hub.local_addr().expect("an address"));
    let directory = TempDir::new().expect("a directory");
    let mut command = launcher(&directory);
    command.args(["--model-id", "org/model"]).env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", directory.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the launcher starts");
    let _asked = hub.accept().expect("the hub is asked");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill starts").success());
    let mut told = String::new();
    child.stderr.take().expect("stderr is piped").read_to_string(&mut told).expect("text");
    // Whoever does not listen to the signal ends by it, without a code; the first process of a container does not end at all.
    assert_eq!(child.wait().expect("an exit status").code(), Some(1), "{told}");
    assert!(told.contains("stopped while the model was loaded"), "{told}");
}

#[test]
fn what_cannot_be_had_is_refused_with_a_way_out() {
    for (arguments, words) in [
        (&["--num-shard", "2"][..], &["--num-shard is 2", "balancer"][..]),
        (&["--sharded", "true"], &["--sharded true"]),
        (&["--ngrok"], &["`ngrok http 0`"]),
        (&["--quantize", "exl2"], &["take the model in GPTQ or AWQ"]),
        (&["--kv-cache-dtype", "fp8_e5m2"], &["--kv-cache-dtype", "int8"]),
        (&["--validation-workers", "0"], &["--validation-workers", "1..=256"]),
        (&["--max-input-tokens", "5", "--max-input-length", "5"], &["two names of one limit"]),
        (
            &["--max-input-length", "9", "--max-total-tokens", "9"],
            &["--max-input-tokens is 9, expected less than --max-total-tokens, which is 9"],
        ),
        (
            &["--max-total-tokens", "90", "--max-batch-total-tokens", "80"],
            &["--max-total-tokens is 90, expected at most"],
        ),
        (
            &["--max-batch-prefill-tokens", "90", "--max-batch-total-tokens", "80"],
            &["--max-batch-prefill-tokens is 90"],
        ),
        (&["--rope-factor", "2"], &["--rope-factor needs --rope-scaling"]),
        (&["--rope-scaling", "linear", "--rope-factor", "0.5"], &["0.5", "from 1 to"]),
        (&["--waiting-served-ratio=-1"], &["--waiting-served-ratio"]),
        (&["--rope-scaling", "linear", "--model-id", "fake"], &["--rope-scaling", "fake"]),
    ] {
        let refusal = refusal(arguments, &[]);
        for word in words {
            assert!(refusal.contains(word), "`{word}` is missing in: {refusal}");
        }
    }
    assert!(refusal(&[], &[("NUM_SHARD", "4")]).contains("--num-shard is 4"), "by its variable too");
}
