//! A gRPC server with scripted answers, on a thread of its own: HTTP/2 frames written as they are, so that it can also err in every way.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use pelton_protocol::kserve::{
    InferOutputTensor, ModelInferRequest, ModelInferResponse, ModelMetadataResponse, ModelStreamInferResponse,
    ServerMetadataResponse, TensorMetadata,
};
use prost::Message;

/// One act of an answer.
pub enum Act {
    /// Bytes of the body, framed already.
    Send(Vec<u8>),
    /// A pause until this long after the request was received.
    Until(Duration),
    /// Trailers with this status and message: the end.
    Status(u16, &'static str),
    /// Resets the stream.
    Reset,
}

/// A call as received.
pub struct Call {
    /// Name of the method.
    pub method: String,
    /// Its metadata.
    pub metadata: HashMap<String, String>,
    /// Its first message.
    pub message: Bytes,
}

impl Call {
    /// The message of an inference.
    pub fn question(&self) -> ModelInferRequest {
        ModelInferRequest::decode(self.message.clone()).expect("a request")
    }
}

type Script = dyn Fn(&Call) -> Vec<Act> + Send + Sync;

/// Listens until the process ends.
pub fn start(script: impl Fn(&Call) -> Vec<Act> + Send + Sync + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("the socket allows it");
    let address = listener.local_addr().expect("the listener is bound");
    let script: Arc<Script> = Arc::new(script);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((socket, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                socket.set_nodelay(true).expect("the socket allows it");
                tokio::task::spawn_local(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let script = Arc::clone(&script);
                        tokio::task::spawn_local(async move {
                            // A client that goes away ends its call; nothing is expected of it.
                            let _ = answer(request, respond, &*script).await;
                        });
                    }
                });
            }
        });
    });
    address
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    script: &Script,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        bytes.extend_from_slice(&part);
    }
    let received = Instant::now();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let call = Call {
        method: head.uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
        metadata: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        message: bytes.freeze().slice(5..),
    };
    let response = http::Response::builder().header("content-type", "application/grpc").body(()).expect("valid");
    let mut stream = respond.send_response(response, false)?;
    for act in script(&call) {
        match act {
            Act::Send(bytes) => stream.send_data(Bytes::from(bytes), false)?,
            Act::Until(after) => {
                // The runtime's timer counts whole milliseconds and rounds up: the last two are slept by the thread.
                let due = received + after;
                tokio::time::sleep_until((due - Duration::from_millis(2)).into()).await;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Act::Status(code, message) => {
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", code.into());
                trailers.insert("grpc-message", http::HeaderValue::from_static(message));
                return stream.send_trailers(trailers);
            }
            Act::Reset => stream.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }
    Ok(())
}

/// One message as it travels.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
}

/// A piece of text as Triton writes it.
pub fn piece(text: &str) -> ModelInferResponse {
    let output = InferOutputTensor {
        name: "text_output".to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![1],
        contents: None,
    };
    let raw = [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    ModelInferResponse { outputs: vec![output], raw_output_contents: vec![raw], ..Default::default() }
}

/// The same in a stream.
pub fn streamed(text: &str) -> Act {
    Act::Send(framed(&ModelStreamInferResponse { infer_response: Some(piece(text)), ..Default::default() }))
}

/// What a Triton with an ensemble of TensorRT-LLM says of itself; `None` for inference.
pub fn facts(call: &Call) -> Option<Vec<Act>> {
    let tensor = |(name, datatype): (&str, &str)| TensorMetadata {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![-1, 1],
    };
    let message = match call.method.as_str() {
        "ServerMetadata" => framed(&ServerMetadataResponse { name: "triton".to_owned(), ..Default::default() }),
        "ModelMetadata" => framed(&ModelMetadataResponse {
            name: "ensemble".to_owned(),
            inputs: [("text_input", "BYTES"), ("max_tokens", "INT32"), ("stream", "BOOL")].map(tensor).into(),
            ..Default::default()
        }),
        _ => return None,
    };
    Some(vec![Act::Send(message), Act::Status(0, "")])
}
