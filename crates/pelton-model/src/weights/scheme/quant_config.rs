//! Where a checkpoint says how it is quantised, and what it says; or why it cannot be served.
//!
//! Looked for in `config.json` (`quantization_config`, `compression_config`), then in `quantize_config.json`, then in `quant_config.json`.

use super::Scheme;
use super::awq::Awq;
use super::compressed::Compressed;
use super::fp8::Fp8;
use super::gptq::Gptq;
use crate::config::{ConfigError, HfConfig};
use crate::files::{FilesError, ModelFiles};

/// Files beside `config.json`, of quantisers that do not write into it.
const FILES: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// Input features of a group, and sides of a block, at most: more than any model has.
const MAX_FEATURES: usize = 1 << 20;

/// What is said when no better choice comes near.
const INSTEAD: &str = "take the same model in bfloat16 and quantise it while it is loaded (--quantize int4 or int8), or as GPTQ, AWQ or \
    compressed-tensors in 4 or 8 bits";

/// A quantisation that cannot be read, or cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum QuantConfigError {
    /// A file could not be reached.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// What it says cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The scheme of the checkpoint that `config`, its `config.json`, and `files` beside it describe; `None`: numbers.
pub(crate) fn scheme_of(config: &HfConfig, files: &ModelFiles) -> Result<Option<Scheme>, QuantConfigError> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(section) = config.section(key)? {
            return Ok(scheme(&section)?);
        }
    }
    for file in FILES {
        if let Some(bytes) = files.read(file)? {
            return Ok(scheme(&HfConfig::parse(file, &bytes)?)?);
        }
    }
    Ok(None)
}

fn scheme(config: &HfConfig) -> Result<Option<Scheme>, ConfigError> {
    let method = match config.optional_text("quant_method")? {
        Some(method) => method.to_lowercase(),
        None => unnamed(config)?.to_owned(),
    };
    let refused = |why: &str| Err(config.unsupported("quant_method", &format!("{why}; {INSTEAD}")));
    match method.as_str() {
        "gptq" => gptq(config).map(Some),
        "awq" => awq(config).map(Some),
        "compressed-tensors" => compressed(config),
        "fp8" => fp8(config).map(Some),
        "fbgemm_fp8" => Ok(Some(Scheme::Fp8(Fp8 { block: None }))),
        "bitsandbytes" => bitsandbytes(config).map(Some),
        "marlin" | "gptq_marlin" | "awq_marlin" | "gptq_marlin_24" => {
            refused("Marlin is the layout of one GPU kernel; the same weights are published as GPTQ or AWQ")
        }
        "exl2" | "exl3" => refused("the layout and mixed widths of ExLlama are read by its GPU kernels alone"),
        _ => refused("not known; known are gptq, awq, compressed-tensors, fp8, fbgemm_fp8 and bitsandbytes"),
    }
}

/// The method of a configuration that does not name it, as older quantisers write them.
fn unnamed(config: &HfConfig) -> Result<&'static str, ConfigError> {
    if config.has("config_groups") {
        return Ok("compressed-tensors");
    }
    if config.has("zero_point") || config.has("q_group_size") || config.has("w_bit") {
        return Ok("awq");
    }
    if config.has("load_in_8bit") || config.has("load_in_4bit") {
        return Ok("bitsandbytes");
    }
    if config.has("bits") {
        return Ok("gptq");
    }
    Err(config.missing("quant_method"))
}

/// Input features of a group; `None` (-1): all.
fn features(config: &HfConfig, keys: &[&str]) -> Result<Option<usize>, ConfigError> {
    for key in keys {
        match config.optional_integer(key, -1..=MAX_FEATURES as i64)? {
            Some(0) => return Err(config.refuse(key, "-1 (whole rows) or at least 1")),
            Some(features) => return Ok(usize::try_from(features).ok()),
            None => {}
        }
    }
    Ok(None)
}

fn gptq(config: &HfConfig) -> Result<Scheme, ConfigError> {
    match config.size_or("bits", 4, 1..=64)? {
        4 | 8 => {}
        _ => return Err(config.unsupported("bits", &format!("GPTQ is read in 4 and 8 bits; {INSTEAD}"))),
    }
    if config.bool_or("is_marlin_format", false)? {
        return Err(config.unsupported(
            "is_marlin_format",
            "the layout of one GPU kernel; take the GPTQ checkpoint it was made from",
        ));
    }
    for key in ["pack_dtype"] {
        if !matches!(config.optional_text(key)?, None | Some("int32")) {
            return Err(config.unsupported(key, "codes are read from words of 32 bits"));
        }
    }
    let key = if config.has("checkpoint_format") { "checkpoint_format" } else { "format" };
    let zeros_less_one = match config.optional_text(key)? {
        None | Some("gptq") => true,
        Some("gptq_v2") => false,
        Some("marlin" | "marlin_24" | "bitblas") => {
            return Err(
                config.unsupported(key, "the layout of one GPU kernel; take the GPTQ checkpoint it was made from")
            );
        }
        Some(_) => return Err(config.unsupported(key, "not known; known are gptq and gptq_v2")),
    };
    Ok(Scheme::Gptq(Gptq {
        features: features(config, &["group_size"])?,
        zeros_less_one,
        // With groups fixed beforehand, sorting changes no group.
        sorted: config.bool_or("desc_act", false)? && !config.bool_or("static_groups", false)?,
    }))
}

fn awq(config: &HfConfig) -> Result<Scheme, ConfigError> {
    for key in ["bits", "w_bit"] {
        if config.size_or(key, 4, 1..=64)? != 4 {
            return Err(config.unsupported(key, "AWQ is read in 4 bits"));
        }
    }
    let version = config.optional_text("version")?.map(str::to_lowercase);
    match version.as_deref() {
        None | Some("gemm") => {}
        Some("gemv" | "gemv_fast" | "gemvfast" | "llm-awq") => {
            let why = "the layout of one GPU kernel; take the checkpoint in version gemm, as most are";
            return Err(config.unsupported("version", why));
        }
        Some(_) => return Err(config.unsupported("version", "not known; known is gemm")),
    }
    if !matches!(config.optional_text("backend")?, None | Some("autoawq")) {
        return Err(config.unsupported("backend", "packed in another order; known is autoawq"));
    }
    Ok(Scheme::Awq(Awq { features: features(config, &["q_group_size", "group_size"])? }))
}

fn fp8(config: &HfConfig) -> Result<Scheme, ConfigError> {
    if !matches!(config.optional_text("fmt")?, None | Some("e4m3")) {
        return Err(config.unsupported("fmt", "eight-bit floats are read in e4m3"));
    }
    Ok(Scheme::Fp8(Fp8 { block: block(config, "weight_block_size")? }))
}

/// Two sizes as a list, or as `128x128`, which older files have.
fn block(config: &HfConfig, key: &str) -> Result<Option<[usize; 2]>, ConfigError> {
    let expected = || config.refuse(key, "two numbers, rows and columns of a block");
    if let Ok(Some(text)) = config.optional_text(key) {
        let sides = text.split('x').map(|side| side.parse().ok().filter(|side| (1..=MAX_FEATURES).contains(side)));
        let sides = sides.collect::<Option<Vec<usize>>>().ok_or_else(expected)?;
        return sides.try_into().map(Some).map_err(|_| expected());
    }
    let Some(sizes) = config.optional_sizes(key, 1..=MAX_FEATURES)? else { return Ok(None) };
    sizes.try_into().map(Some).map_err(|_| expected())
}

fn bitsandbytes(config: &HfConfig) -> Result<Scheme, ConfigError> {
    let kind = config.optional_text("bnb_4bit_quant_type")?;
    if config.bool_or("load_in_4bit", false)? && !matches!(kind, None | Some("nf4" | "fp4")) {
        return Err(config.unsupported("bnb_4bit_quant_type", "not known; known are nf4 and fp4"));
    }
    let storage = config.optional_text("bnb_4bit_quant_storage")?;
    if !matches!(storage, None | Some("uint8")) {
        return Err(config.unsupported("bnb_4bit_quant_storage", "codes are read from bytes (uint8)"));
    }
    Ok(Scheme::Bitsandbytes)
}

fn compressed(config: &HfConfig) -> Result<Option<Scheme>, ConfigError> {
    known_format(config)?;
    if let Some(sparsity) = config.section("sparsity_config")?
        && !matches!(sparsity.optional_text("format")?, None | Some("dense"))
    {
        return Err(sparsity.unsupported("format", "sparse tensors are not read"));
    }
    if let Some(transforms) = config.section("transform_config")?
        && transforms.section("config_groups")?.is_some_and(|groups| groups.nested_keys().next().is_some())
    {
        return Err(transforms.unsupported("config_groups", "rotations of activations are not computed"));
    }
    let (mut group_features, mut blocks) = (None, None);
    if let Some(groups) = config.section("config_groups")? {
        for name in groups.nested_keys() {
            let Some(group) = groups.section(name)? else { continue };
            known_format(&group)?;
            let Some(weights) = group.section("weights")? else { continue };
            match weights.size_or("num_bits", 8, 1..=64)? {
                4 | 8 => {}
                _ => return Err(weights.unsupported("num_bits", "weights are read in 4 and 8 bits")),
            }
            match weights.optional_text("type")? {
                None | Some("int") => {}
                Some("float") if weights.size_or("num_bits", 8, 1..=64)? == 8 => {}
                Some("float") => return Err(weights.unsupported("num_bits", "floats are read in 8 bits")),
                Some(_) => return Err(weights.unsupported("type", "not known; known are int and float")),
            }
            match weights.optional_text("strategy")? {
                None | Some("tensor" | "channel" | "group" | "block") => {}
                Some(_) => {
                    return Err(
                        weights.unsupported("strategy", "not known; known are tensor, channel, group and block")
                    );
                }
            }
            group_features = group_features.or(features(&weights, &["group_size"])?);
            blocks = blocks.or(block(&weights, "block_structure")?);
        }
    }
    Ok(Some(Scheme::Compressed(Compressed { features: group_features, block: blocks })))
}

fn known_format(config: &HfConfig) -> Result<(), ConfigError> {
    const KNOWN: [&str; 6] =
        ["dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"];
    match config.optional_text("format")? {
        Some("marlin-24") => {
            Err(config.unsupported("format", "the layout of one GPU kernel; take a pack-quantized checkpoint"))
        }
        Some(format) if !KNOWN.contains(&format) => {
            Err(config.unsupported("format", &format!("not known; known are {}", KNOWN.join(", "))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(section: Value) -> Result<Option<Scheme>, QuantConfigError> {
        let config = json!({"quantization_config": section}).to_string();
        scheme_of(&HfConfig::parse("config.json", config.as_bytes()).unwrap(), &ModelFiles::embedded(&[]))
    }

    fn gptq(features: Option<usize>, zeros_less_one: bool, sorted: bool) -> Scheme {
        Scheme::Gptq(Gptq { features, zeros_less_one, sorted })
    }

    #[test]
    fn published_configurations_are_read() {
        let compressed = |format: &str, weights: Value| {
            json!({"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": null}}})
        };
        let of = |features, block| Scheme::Compressed(Compressed { features, block });
        for (section, scheme) in [
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true}),
                gptq(Some(128), true, true),
            ),
            (json!({"bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}), gptq(None, false, false)),
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}),
                Scheme::Awq(Awq { features: Some(128) }),
            ),
            (
                json!({"w_bit": 4, "q_group_size": 64, "zero_point": true, "version": "GEMM"}),
                Scheme::Awq(Awq { features: Some(64) }),
            ),
            (
                json!({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}),
                Scheme::Fp8(Fp8 { block: Some([128, 128]) }),
            ),
            (json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}), Scheme::Fp8(Fp8 { block: None })),
            (
                json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8"}),
                Scheme::Bitsandbytes,
            ),
            (
                compressed(
                    "pack-quantized",
                    json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
                ),
                of(Some(128), None),
            ),
            (
                compressed(
                    "int-quantized",
                    json!({"num_bits": 8, "type": "int", "strategy": "channel", "group_size": null}),
                ),
                of(None, None),
            ),
            (
                compressed(
                    "float-quantized",
                    json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "64x32"}),
                ),
                of(None, Some([64, 32])),
            ),
        ] {
            assert_eq!(read(section.clone()).unwrap(), Some(scheme), "{section}");
        }
    }

    #[test]
    fn files_beside_the_configuration_are_read_in_turn() {
        let config = HfConfig::parse("config.json", b"{}").unwrap();
        let (first, second) = (&br#"{"bits": 4, "group_size": 32}"#[..], &br#"{"w_bit": 4, "q_group_size": 64}"#[..]);
        let of = |files: &[(&str, &'static [u8])]| scheme_of(&config, &ModelFiles::embedded(files)).unwrap();
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("quant_config.json", second)]), Some(Scheme::Awq(Awq { features: Some(64) })));
        let both = [("quant_config.json", second), ("quantize_config.json", first)];
        assert_eq!(of(&both), Some(gptq(Some(32), true, false)));
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_key_value_and_reason() {
        let compressed = |weights: Value| json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}});
        for (section, part) in [
            (json!({"quant_method": "gptq", "bits": 3}), "quantization_config.bits is 3: GPTQ is read in 4 and 8 bits"),
            (json!({"quant_method": "gptq", "bits": 2}), "bits is 2"),
            (json!({"quant_method": "gptq", "bits": "4"}), "bits is \"4\", expected a whole number"),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 0}),
                "group_size is 0, expected -1 (whole rows) or at least 1",
            ),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": -7}), "group_size is -7"),
            (json!({"quant_method": "gptq", "bits": 4, "group_size": 1e18}), "group_size is 1e+18"),
            (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "layout of one GPU kernel"),
            (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "x"}), "known are gptq and gptq_v2"),
            (json!({"quant_method": "gptq", "bits": 4, "pack_dtype": "int8"}), "words of 32 bits"),
            (json!({"quant_method": "gptq", "bits": 4, "is_marlin_format": true}), "is_marlin_format is true"),
            (json!({"quant_method": "marlin"}), "published as GPTQ or AWQ"),
            (json!({"quant_method": "exl2"}), "ExLlama"),
            (json!({"quant_method": "aqlm"}), "known are gptq, awq"),
            (json!({"quant_method": 4}), "quant_method is 4, expected a string"),
            (json!({}), "no quantization_config.quant_method"),
            (json!({"quant_method": "awq", "version": "gemv"}), "version is \"gemv\": the layout of one GPU kernel"),
            (json!({"quant_method": "awq", "bits": 8}), "AWQ is read in 4 bits"),
            (json!({"quant_method": "awq", "backend": "llm-awq"}), "packed in another order"),
            (json!({"quant_method": "fp8", "fmt": "e5m2"}), "read in e4m3"),
            (
                json!({"quant_method": "fp8", "weight_block_size": [128]}),
                "weight_block_size is [128], expected two numbers",
            ),
            (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "weight_block_size is [0,128]"),
            (
                json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "int3"}),
                "nf4 and fp4",
            ),
            (json!({"quant_method": "bitsandbytes", "bnb_4bit_quant_storage": "bfloat16"}), "uint8"),
            (json!({"quant_method": "compressed-tensors", "format": "marlin-24"}), "pack-quantized"),
            (json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}), "known are dense"),
            (
                json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}),
                "sparse tensors",
            ),
            (
                json!({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}),
                "rotations of activations",
            ),
            (compressed(json!({"block_structure": "64x"})), "block_structure is \"64x\", expected two numbers"),
            (compressed(json!({"num_bits": 3})), "config_groups.g.weights.num_bits is 3"),
            (compressed(json!({"num_bits": 4, "type": "float"})), "floats are read in 8 bits"),
            (compressed(json!({"strategy": "token"})), "strategy is \"token\""),
            (compressed(json!({"group_size": 0})), "group_size is 0"),
        ] {
            let error = read(section.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{section}: {error}");
        }
    }

    /// Whatever a byte is changed to, the answer is a scheme or an error.
    #[test]
    fn no_change_of_a_byte_panics() {
        let texts = [
            r#"{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": false, "checkpoint_format": "gptq_v2"}"#,
            r#"{"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}"#,
            r#"{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}}}, "ignore": ["lm_head"]}"#,
        ];
        let mut read = 0;
        for text in texts {
            for place in 0..text.len() {
                for byte in [b'0', b'9', b'-', b'e', b'.', b'"', b'}', b' ', 0xff] {
                    let mut changed = text.as_bytes().to_vec();
                    changed[place] = byte;
                    let Ok(config) = HfConfig::parse("quantize_config.json", &changed) else { continue };
                    read += usize::from(scheme(&config).is_ok());
                }
            }
        }
        assert!(read > 100, "{read}");
    }
}
