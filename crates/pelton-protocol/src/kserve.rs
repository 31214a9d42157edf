//! The KServe v2 inference protocol over gRPC: messages of `inference.GRPCInferenceService`, as far as text generation needs them.
//!
//! Field numbers are those of the protocol's `grpc_service.proto`; fields left out here are skipped by readers, as Protocol Buffers define.

use std::collections::HashMap;

use prost::{Message, Oneof};

/// Prefix of the service's paths: the method's name follows.
pub const SERVICE: &str = "/inference.GRPCInferenceService/";

/// Asks for [`ServerMetadataResponse`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ServerMetadataRequest {}

/// What the server is.
#[derive(Clone, PartialEq, Message)]
pub struct ServerMetadataResponse {
    /// `triton`, or another.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Parts of the protocol that it has.
    #[prost(string, repeated, tag = "3")]
    pub extensions: Vec<String>,
}

/// Asks for [`ModelMetadataResponse`].
#[derive(Clone, PartialEq, Message)]
pub struct ModelMetadataRequest {
    /// The model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version; empty lets the server choose.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// What a model takes and gives.
#[derive(Clone, PartialEq, Message)]
pub struct ModelMetadataResponse {
    /// The model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Versions that can be asked.
    #[prost(string, repeated, tag = "2")]
    pub versions: Vec<String>,
    /// What runs it.
    #[prost(string, tag = "3")]
    pub platform: String,
    /// What it takes.
    #[prost(message, repeated, tag = "4")]
    pub inputs: Vec<TensorMetadata>,
    /// What it gives.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor of a model.
#[derive(Clone, PartialEq, Message)]
pub struct TensorMetadata {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// `BYTES`, `INT32`, `FP32`, ...
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Sizes, -1 where they vary; with a leading -1 where the model takes batches.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
}

/// A value that is no tensor.
#[derive(Clone, PartialEq, Message)]
pub struct InferParameter {
    /// The value.
    #[prost(oneof = "ParameterValue", tags = "1, 2, 3, 4, 5")]
    pub value: Option<ParameterValue>,
}

/// See [`InferParameter`].
#[derive(Clone, PartialEq, Oneof)]
pub enum ParameterValue {
    /// A truth.
    #[prost(bool, tag = "1")]
    Bool(bool),
    /// A whole number.
    #[prost(int64, tag = "2")]
    Int64(i64),
    /// A text.
    #[prost(string, tag = "3")]
    Text(String),
    /// A number.
    #[prost(double, tag = "4")]
    Double(f64),
    /// A whole number that is not negative.
    #[prost(uint64, tag = "5")]
    Uint64(u64),
}

/// Elements of a tensor, row-major, in the list that its datatype demands.
#[derive(Clone, PartialEq, Message)]
pub struct InferTensorContents {
    /// `BOOL`.
    #[prost(bool, repeated, tag = "1")]
    pub bool_contents: Vec<bool>,
    /// `INT8`, `INT16`, `INT32`.
    #[prost(int32, repeated, tag = "2")]
    pub int_contents: Vec<i32>,
    /// `INT64`.
    #[prost(int64, repeated, tag = "3")]
    pub int64_contents: Vec<i64>,
    /// `UINT8`, `UINT16`, `UINT32`.
    #[prost(uint32, repeated, tag = "4")]
    pub uint_contents: Vec<u32>,
    /// `UINT64`.
    #[prost(uint64, repeated, tag = "5")]
    pub uint64_contents: Vec<u64>,
    /// `FP32`.
    #[prost(float, repeated, tag = "6")]
    pub fp32_contents: Vec<f32>,
    /// `FP64`.
    #[prost(double, repeated, tag = "7")]
    pub fp64_contents: Vec<f64>,
    /// `BYTES`.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub bytes_contents: Vec<Vec<u8>>,
}

/// One tensor of a question.
#[derive(Clone, PartialEq, Message)]
pub struct InferInputTensor {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its datatype.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Its sizes.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
    /// Its elements.
    #[prost(message, optional, tag = "5")]
    pub contents: Option<InferTensorContents>,
}

/// A question to a model. All its outputs are answered.
#[derive(Clone, PartialEq, Message)]
pub struct ModelInferRequest {
    /// The model.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// Its version; empty lets the server choose.
    #[prost(string, tag = "2")]
    pub model_version: String,
    /// Comes back in each answer.
    #[prost(string, tag = "3")]
    pub id: String,
    /// What is no tensor.
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, InferParameter>,
    /// Tensors.
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<InferInputTensor>,
}

/// One tensor of an answer.
#[derive(Clone, PartialEq, Message)]
pub struct InferOutputTensor {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its datatype.
    #[prost(string, tag = "2")]
    pub datatype: String,
    /// Its sizes.
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
    /// Its elements, unless they are in [`ModelInferResponse::raw_output_contents`].
    #[prost(message, optional, tag = "5")]
    pub contents: Option<InferTensorContents>,
}

/// An answer, or one piece of it.
#[derive(Clone, PartialEq, Message)]
pub struct ModelInferResponse {
    /// The model.
    #[prost(string, tag = "1")]
    pub model_name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub model_version: String,
    /// That of the question.
    #[prost(string, tag = "3")]
    pub id: String,
    /// What is no tensor, such as `triton_final_response`.
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, InferParameter>,
    /// Tensors.
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<InferOutputTensor>,
    /// Elements of each tensor as bytes, little-endian; texts have their length in four bytes before them.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub raw_output_contents: Vec<Vec<u8>>,
}

/// One answer of a stream.
#[derive(Clone, PartialEq, Message)]
pub struct ModelStreamInferResponse {
    /// What went wrong; empty if nothing.
    #[prost(string, tag = "1")]
    pub error_message: String,
    /// The answer.
    #[prost(message, optional, tag = "2")]
    pub infer_response: Option<ModelInferResponse>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes written by hand after the protocol's field numbers: tag = number * 8 + 2 for texts and messages.
    #[test]
    fn messages_are_laid_out_as_the_protocol_says() {
        let text = InferTensorContents { bytes_contents: vec![b"hi".to_vec()], ..Default::default() };
        let number = InferTensorContents { uint_contents: vec![9], ..Default::default() };
        let input = |name: &str, datatype: &str, contents| InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![1, 1],
            contents: Some(contents),
        };
        let parameter = InferParameter { value: Some(ParameterValue::Bool(true)) };
        let request = ModelInferRequest {
            model_name: "m".to_owned(),
            parameters: HashMap::from([("p".to_owned(), parameter)]),
            inputs: vec![input("t", "BYTES", text), input("n", "UINT32", number)],
            ..Default::default()
        };
        let expected = b"\x0a\x01m\
            \x22\x07\x0a\x01p\x12\x02\x08\x01\
            \x2a\x14\x0a\x01t\x12\x05BYTES\x1a\x02\x01\x01\x2a\x04\x42\x02hi\
            \x2a\x14\x0a\x01n\x12\x06UINT32\x1a\x02\x01\x01\x2a\x03\x22\x01\x09";
        assert_eq!(request.encode_to_vec(), expected);

        let answer = b"\x12\x15\x0a\x01m\x2a\x0a\x0a\x01o\x12\x05BYTES\x32\x04\x00\x00\x00\x00";
        let read =
            ModelStreamInferResponse::decode(&answer[..]).expect("well formed").infer_response.expect("an answer");
        assert_eq!((read.outputs[0].name.as_str(), read.outputs[0].datatype.as_str()), ("o", "BYTES"));
        assert_eq!(read.raw_output_contents, [vec![0; 4]]);
        assert_eq!(ModelStreamInferResponse::decode(&b"\x0a\x03bad"[..]).expect("well formed").error_message, "bad");
    }
}
