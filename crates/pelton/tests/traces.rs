//! Traces of requests arrive at a collector, and nobody waits for one that is away.
#![cfg(feature = "otlp")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let sent = self.0.send(request.into_inner());
        sent.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

/// `pelton serve` over the model that computes nothing.
struct Serving {
    process: Child,
    address: String,
}

impl Serving {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_pelton"))
            .args(["serve", "--model-id", "fake", "--port", "0"])
            .args(arguments)
            .envs([("RUST_LOG", "off"), ("OTEL_BSP_SCHEDULE_DELAY", "50"), ("OTEL_BSP_MAX_QUEUE_SIZE", "64")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("pelton starts");
        let lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let mut lines = lines.map(|line| line.expect("text"));
        let address = lines.find_map(|line| Some(line.split_once("is served on http://")?.1.to_owned()));
        Self { process, address: address.expect("the server says where it listens") }
    }

    /// The answer to a request with `headers`.
    fn generate(&self, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let body = r#"{"inputs":"abc","parameters":{"max_new_tokens":4}}"#;
        let length = body.len();
        write!(
            stream,
            "POST /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{headers}\r\n{body}"
        )
        .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    /// Stops the server as a supervisor does, and gives its exit code.
    fn stop(mut self) -> Option<i32> {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().expect("kill runs");
        assert!(told.success());
        self.process.wait().expect("the server ends").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match attribute(attributes, key)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match attribute(attributes, key)? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_arrives_at_the_collector_as_a_span_with_its_stretches() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("a bound address"));
    let collector = Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    let collector = tokio::spawn(collector.serve_with_incoming(TcpIncoming::from(listener)));

    let asking = tokio::task::spawn_blocking(move || {
        let serving = Serving::start(&["--otlp-endpoint", &endpoint, "--otlp-service-name", "my-models"]);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        serving.generate(&format!("traceparent: {parent}-01\r\ntracestate: vendor=7\r\n"));
        // The client does not record these, so nobody does.
        serving.generate("traceparent: 00-11111111111111111111111111111111-b7ad6b7169203331-00\r\n");
        // This one begins a trace, and is sent at the latest when the server stops.
        serving.generate("");
        assert_eq!(serving.stop(), Some(0));
    });
    tokio::time::timeout(PATIENCE, asking).await.expect("in time").expect("the server answers");

    let mut spans: Vec<Span> = Vec::new();
    while let Ok(export) = received.try_recv() {
        for resource in export.resource_spans {
            let attributes = resource.resource.expect("a resource").attributes;
            assert_eq!(text(&attributes, "service.name"), Some("my-models"));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    collector.abort();

    let ids = |span: &Span| (span.trace_id.clone(), span.span_id.clone());
    let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    let (told, own): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.trace_id == trace_id);
    assert_eq!((told.len(), own.len()), (5, 5), "{spans:?}");

    let request = told.iter().find(|span| span.name == "POST /generate").expect("the request's span");
    assert_eq!(request.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(request.trace_state, "vendor=7");
    assert_eq!(request.kind, 2, "a server's span");
    assert_eq!(number(&request.attributes, "gen_ai.usage.input_tokens"), Some(3));
    assert_eq!(number(&request.attributes, "gen_ai.usage.output_tokens"), Some(4));
    assert_eq!(text(&request.attributes, "gen_ai.request.model"), Some("fake"));
    assert_eq!(text(&request.attributes, "pelton.outcome"), Some("length"));

    let mut time = request.start_time_unix_nano;
    for name in ["validate", "queue", "prefill", "decode"] {
        let stretch = told.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {told:?}"));
        assert_eq!(stretch.parent_span_id, request.span_id);
        assert_eq!(stretch.start_time_unix_nano, time, "{name} begins where the one before ends");
        time = stretch.end_time_unix_nano;
    }
    assert_eq!(time, request.end_time_unix_nano);

    let root = own.iter().find(|span| span.name == "POST /generate").expect("the request's span");
    assert!(root.parent_span_id.is_empty() && root.trace_id != [0x11; 16], "{root:?}");
    assert!(own.iter().all(|span| ids(span) == ids(root) || span.parent_span_id == root.span_id));
}

#[test]
fn nobody_waits_for_a_collector_that_is_away() {
    // The port is taken, and nobody ever answers there.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("a bound address"));
    let serving = Serving::start(&["--otlp-endpoint", &endpoint]);
    // Five spans each: more than the queue holds.
    for _ in 0..40 {
        serving.generate("");
    }
    let stopping = Instant::now();
    assert_eq!(serving.stop(), Some(0));
    assert!(stopping.elapsed() < Duration::from_secs(40), "{:?}", stopping.elapsed());
}
