//! The KServe v2 dialect over gRPC as a client: messages in frames on HTTP/2, and the status that ends them.
//!
//! A read is timed at the socket, as everywhere: a message's time is that of the read that brought its last byte.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use pelton_protocol::kserve::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ParameterValue,
};
use prost::Message;
use serde_json::Value;

use super::kserve::{Model, Question, Said};
use super::values::{MAX_TOKENS, Text};
use crate::recorder::{ErrorKind, Failure};

/// Bytes before each message: whether it is compressed, and its length, big-endian.
const FRAME_HEAD: usize = 5;

/// One message as it travels.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(FRAME_HEAD + length);
    bytes.push(0);
    // Lengths beyond the field cannot come about: prompts are made in memory and are far smaller.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    Bytes::from(bytes)
}

/// The message of a question.
pub fn request(model: &Model, question: Question) -> ModelInferRequest {
    let parameter = |(name, value): (String, Value)| {
        let value = match value {
            Value::Bool(truth) => ParameterValue::Bool(truth),
            Value::String(text) => ParameterValue::Text(text),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(whole), _) => ParameterValue::Int64(whole),
                (None, Some(whole)) => ParameterValue::Uint64(whole),
                (None, None) => ParameterValue::Double(number.as_f64()?),
            },
            _ => return None, // Refused when the plan was read.
        };
        Some((name, InferParameter { value: Some(value) }))
    };
    ModelInferRequest {
        model_name: model.name.clone(),
        model_version: model.version.clone().unwrap_or_default(),
        id: String::new(),
        parameters: question.parameters.into_iter().filter_map(parameter).collect::<HashMap<_, _>>(),
        inputs: question.tensors,
    }
}

/// Cuts a body into messages.
#[derive(Debug)]
pub struct Frames {
    max_message_bytes: usize,
    buffer: BytesMut,
}

impl Frames {
    /// Refuses messages of more bytes than this.
    pub fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, buffer: BytesMut::new() }
    }

    /// Takes the next bytes of the body.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if all of it is there.
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Failure> {
        let bad = |text: String| Failure::new(ErrorKind::Malformed, text);
        let Some(&[compressed, a, b, c, d]) = self.buffer.first_chunk() else { return Ok(None) };
        if compressed != 0 {
            return Err(bad(format!("message has compression flag {compressed}, and no compression was offered")));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.max_message_bytes {
            return Err(bad(format!("message has {length} bytes, limit is {}", self.max_message_bytes)));
        }
        if self.buffer.len() < FRAME_HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEAD);
        let message = self.buffer.split_to(length);
        M::decode(message.freeze()).map(Some).map_err(|error| bad(format!("message cannot be read: {error}")))
    }

    /// Whether bytes of an unfinished message are held.
    pub fn is_mid_message(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// What head or trailers say of the end: `None` if they have no status.
pub fn status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let status = text("grpc-status")?;
    let message = text("grpc-message").map(|message| unescaped(&message)).unwrap_or_default();
    Some(match status.trim().parse::<u16>() {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::new(ErrorKind::Grpc(code), message)),
        Err(_) => Err(Failure::new(ErrorKind::Malformed, format!("grpc-status is {status:?}"))),
    })
}

/// Undoes percent-encoding; what is not encoded properly stays as it is.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.first_chunk::<2>().filter(|_| byte == b'%');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a response says; its text is in the output of this name.
pub fn said(response: ModelInferResponse, text: &str) -> Result<Said<'static>, Failure> {
    let mut said = Said::default();
    let mut raw = response.raw_output_contents.into_iter();
    for output in response.outputs {
        // Either all outputs are raw, one after another, or none is.
        let contents = match raw.next() {
            Some(raw) => Contents::Raw(raw),
            None => Contents::Listed(output.contents.unwrap_or_default()),
        };
        match output.name.as_str() {
            name if name == text => said.text = Some(Text(contents.text(name)?.into())),
            "num_output_tokens" => said.output_tokens = contents.count()?,
            "num_input_tokens" => said.input_tokens = contents.count()?,
            name @ "finish_reason" => said.finish_reason = Some(contents.text(name)?),
            _ => {}
        }
    }
    Ok(said)
}

/// Elements of an output.
enum Contents {
    Raw(Vec<u8>),
    Listed(InferTensorContents),
}

impl Contents {
    /// All texts of a BYTES tensor, joined.
    fn text(self, name: &str) -> Result<String, Failure> {
        let texts = match self {
            Contents::Listed(contents) => contents.bytes_contents,
            Contents::Raw(bytes) => {
                let mut texts = Vec::new();
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let cut = || Failure::new(ErrorKind::Malformed, format!("output {name:?} is cut inside a text"));
                    let (length, tail) = rest.split_first_chunk().ok_or_else(cut)?;
                    let length = u32::from_le_bytes(*length) as usize;
                    texts.push(tail.get(..length).ok_or_else(cut)?.to_vec());
                    rest = &tail[length..];
                }
                texts
            }
        };
        let bytes = texts.concat();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first element of a tensor of 32-bit numbers.
    fn count(self) -> Result<Option<u32>, Failure> {
        let count = match self {
            Contents::Raw(bytes) => bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)),
            Contents::Listed(contents) => {
                let signed = contents.int_contents.first().and_then(|&n| u32::try_from(n).ok());
                contents.uint_contents.first().copied().or(signed)
            }
        };
        match count {
            Some(n) if n > MAX_TOKENS => {
                Err(Failure::new(ErrorKind::Malformed, format!("{n} tokens are told, limit is {MAX_TOKENS}")))
            }
            count => Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_protocol::kserve::{InferOutputTensor, ModelStreamInferResponse};

    fn response(raw: &[&[u8]], names: &[&str]) -> ModelInferResponse {
        let output = |name: &&str| InferOutputTensor { name: (*name).to_owned(), ..Default::default() };
        ModelInferResponse {
            outputs: names.iter().map(output).collect(),
            raw_output_contents: raw.iter().map(|bytes| bytes.to_vec()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn messages_are_found_wherever_the_bytes_are_cut() {
        let message = |text: &str| ModelStreamInferResponse { error_message: text.to_owned(), ..Default::default() };
        let bytes = [frame(&message("a")), frame(&message("")), frame(&message("bc"))].concat();
        for size in 1..bytes.len() {
            let mut frames = Frames::new(100);
            let mut found = Vec::new();
            for part in bytes.chunks(size) {
                frames.push(part);
                while let Some(message) = frames.next::<ModelStreamInferResponse>().expect("well formed") {
                    found.push(message.error_message);
                }
            }
            assert_eq!((found, frames.is_mid_message()), (vec!["a".to_owned(), String::new(), "bc".to_owned()], false));
        }
    }

    #[test]
    fn absurd_frames_are_refused() {
        for bytes in [&[1, 0, 0, 0, 0][..], &[0, 255, 255, 255, 255], &[0, 0, 0, 0, 1, 0xff]] {
            let mut frames = Frames::new(100);
            frames.push(bytes);
            let failure = frames.next::<ModelStreamInferResponse>().expect_err("absurd");
            assert_eq!(failure.kind, ErrorKind::Malformed);
        }
    }

    #[test]
    fn raw_and_listed_outputs_are_read() {
        let raw = response(&[&[9, 0, 0, 0], b"\x02\0\0\0hi"], &["num_output_tokens", "t"]);
        let read = said(raw, "t").expect("well formed");
        assert_eq!((read.text.expect("a text").as_str(), read.output_tokens), ("hi", Some(9)));
        let mut listed = response(&[], &["t"]);
        listed.outputs[0].contents =
            Some(InferTensorContents { bytes_contents: vec![b"hi".to_vec()], ..Default::default() });
        assert_eq!(said(listed, "t").expect("well formed").text.expect("a text").as_str(), "hi");
        assert!(said(response(&[b"\x09\0\0\0hi"], &["t"]), "t").is_err(), "cut");
        assert!(said(response(&[&[0xff; 4]], &["num_output_tokens"]), "t").is_err(), "absurd");
    }

    #[test]
    fn a_status_has_its_code_and_words() {
        let headers = |status: &'static str| {
            let pairs = [("grpc-status", status), ("grpc-message", "no%20model%3a%zz 5%")];
            HeaderMap::from_iter(
                pairs.map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))),
            )
        };
        assert_eq!(status(&HeaderMap::new()), None);
        assert_eq!(status(&headers("0")), Some(Ok(())));
        assert_eq!(status(&headers("5")), Some(Err(Failure::new(ErrorKind::Grpc(5), "no model:%zz 5%"))));
        assert!(matches!(status(&headers("x")), Some(Err(failure)) if failure.kind == ErrorKind::Malformed));
    }
}
