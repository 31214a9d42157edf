//! A checkpoint's folder: weights, a configuration that says how they are spelt, and everything else as it was.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use pelton_backend::Group;
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use serde_json::{Value, json};

use super::pack::NewTensor;
use super::{QuantizeError, QuantizeFormat};
use crate::files::ModelFiles;
use crate::load::{CONFIG, LoadError};
use crate::spec::{DecoderSpec, DecoderTensors};
use crate::weights::{Bytes, Checkpoint, ElementType, FORMATS};

/// Files beside the weights that a model may have.
const OTHERS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
];

fn failed(path: &Path, cause: impl ToString) -> QuantizeError {
    QuantizeError::Write { path: path.to_owned(), cause: cause.to_string() }
}

/// Makes the folder; refuses one that has something in it.
pub(super) fn check_new(out: &Path) -> Result<(), QuantizeError> {
    std::fs::create_dir_all(out).map_err(|error| failed(out, error))?;
    let mut entries = std::fs::read_dir(out).map_err(|error| failed(out, error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(failed(out, "the folder is not empty; name a new one")),
    }
}

/// A tensor of the new file: a new one, or one of the old file, mapped while it is written.
enum Source<'a> {
    New(&'a NewTensor),
    Old { dtype: Dtype, shape: &'a [usize], bytes: Bytes },
}

impl View for Source<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::New(tensor) => tensor.dtype,
            Self::Old { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::New(tensor) => &tensor.shape,
            Self::Old { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::New(tensor) => Cow::Borrowed(&tensor.bytes),
            Self::Old { bytes, .. } => Cow::Borrowed(bytes.as_slice()),
        }
    }

    fn data_len(&self) -> usize {
        self.data().len()
    }
}

/// Writes the tensors of `old` but for those named in `replaced`, and `new`; returns the bytes of all old and all new tensors.
pub(super) fn weights(
    out: &Path,
    old: &Checkpoint,
    replaced: &HashSet<String>,
    new: &[NewTensor],
) -> Result<(u64, u64), QuantizeError> {
    let path = out.join(FORMATS[0].single);
    let mut tensors: Vec<(String, Source<'_>)> =
        new.iter().map(|tensor| (tensor.name.clone(), Source::New(tensor))).collect();
    let mut before = 0;
    for name in old.names() {
        let (element, shape) = old.stored(name).expect("a name of the checkpoint");
        let bytes = old.bytes(name)?;
        before += bytes.as_slice().len() as u64;
        if replaced.contains(name) {
            continue;
        }
        let Some(dtype) = dtype(element) else {
            return Err(failed(&path, format!("tensor {name} has type {element}, which cannot be copied")));
        };
        tensors.push((name.to_owned(), Source::Old { dtype, shape, bytes }));
    }
    let after = tensors.iter().map(|(_, tensor)| tensor.data_len() as u64).sum();
    // Transformers asks for this entry.
    let about = [("format".to_owned(), "pt".to_owned())].into();
    serialize_to_file(tensors, Some(about), &path).map_err(|error| failed(&path, error))?;
    Ok((before, after))
}

fn dtype(element: &ElementType) -> Option<Dtype> {
    use pelton_backend::DType;
    Some(match element {
        ElementType::Float(DType::F32) => Dtype::F32,
        ElementType::Float(DType::F16) => Dtype::F16,
        ElementType::Float(DType::BF16) => Dtype::BF16,
        ElementType::I64 => Dtype::I64,
        ElementType::I32 => Dtype::I32,
        ElementType::U8 => Dtype::U8,
        ElementType::I8 => Dtype::I8,
        _ => return None,
    })
}

/// Writes `config.json` with what `format` adds, and copies what else there is.
pub(super) fn others(
    out: &Path,
    files: &ModelFiles,
    config: &[u8],
    format: QuantizeFormat,
    tensors: &DecoderTensors,
    spec: &DecoderSpec,
) -> Result<(), QuantizeError> {
    let mut config: Value = serde_json::from_slice(config).map_err(|error| failed(&out.join(CONFIG), error))?;
    let quantization = quantization_config(format, tensors, spec);
    if matches!(format, QuantizeFormat::Gptq { .. }) {
        // Where readers of GPTQ looked before configurations held it.
        write_json(&out.join("quantize_config.json"), &quantization)?;
    }
    config["quantization_config"] = quantization;
    write_json(&out.join(CONFIG), &config)?;
    for name in OTHERS {
        if let Some(bytes) = files.read(name).map_err(LoadError::from)? {
            let path = out.join(name);
            std::fs::write(&path, bytes).map_err(|error| failed(&path, error))?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), QuantizeError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| failed(path, error))?;
    std::fs::write(path, text + "\n").map_err(|error| failed(path, error))
}

fn quantization_config(format: QuantizeFormat, tensors: &DecoderTensors, spec: &DecoderSpec) -> Value {
    let group_size = |group: Group| match group {
        Group::Of32 => 32,
        Group::Of64 => 64,
        Group::Of128 => 128,
        Group::Row => -1,
    };
    // Matrices that stay in numbers: the head, and what chooses experts.
    let mut kept: Vec<&str> = vec![spec.names.head];
    kept.extend(
        tensors.layers.iter().flat_map(|layer| layer.mlp.routers()).filter_map(|it| it.name.strip_suffix(".weight")),
    );
    let compressed = |storage: &str, weights: Value, inputs: Value| {
        json!({
            "quant_method": "compressed-tensors", "format": storage, "quantization_status": "compressed", "ignore": kept,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": null}},
        })
    };
    match format {
        QuantizeFormat::Gptq { bits, group, act_order } => json!({
            "quant_method": "gptq", "checkpoint_format": "gptq", "bits": bits.count(), "group_size": group_size(group), "sym": true,
            "desc_act": act_order, "static_groups": false, "true_sequential": false, "damp_percent": 0.01, "lm_head": false,
        }),
        QuantizeFormat::Awq { group } => json!({
            "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group_size(group), "zero_point": true,
            "modules_to_not_convert": if kept.len() > 1 { json!(kept) } else { Value::Null },
        }),
        QuantizeFormat::Int8 => compressed(
            "int-quantized",
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false}),
            json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true}),
        ),
        QuantizeFormat::Int4 { group: Group::Row } => compressed(
            "pack-quantized",
            json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false}),
            Value::Null,
        ),
        QuantizeFormat::Int4 { group } => compressed(
            "pack-quantized",
            json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": group_size(group), "dynamic": false}),
            Value::Null,
        ),
    }
}
