//! Every scheme against the numbers its own package reads, and with damaged tensors.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde_json::{Value, json};

use super::*;
use crate::config::HfConfig;
use crate::files::ModelFiles;

/// One matrix of `fixtures/formats/matrices`, and what the reference reads in it.
struct Case {
    name: String,
    bytes: Vec<u8>,
    config: String,
    expected: Vec<f32>,
    shape: [usize; 2],
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/formats/matrices"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn case(path: &Path) -> Option<Case> {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata): (usize, Metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let config = metadata.metadata().as_ref()?.get("config")?.clone();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected = file.tensor("expected").unwrap();
    Some(Case {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        config: format!(r#"{{"quantization_config": {config}}}"#),
        expected: floats(expected.data()),
        shape: expected.shape().try_into().unwrap(),
        bytes,
    })
}

fn cases() -> Vec<Case> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let cases: Vec<Case> = paths.iter().filter_map(|path| case(path)).collect();
    assert_eq!(cases.len(), 26);
    cases
}

fn named(name: &str) -> Case {
    case(&folder().join(format!("{name}.safetensors"))).unwrap()
}

impl Case {
    fn wanted(&self) -> TensorSpec {
        TensorSpec { name: "m.weight".to_owned(), shape: self.shape.to_vec(), stored: Stored::AsIs }
    }

    fn open(&self) -> Result<Quantised, CheckpointError> {
        let config = HfConfig::parse("config.json", self.config.as_bytes()).unwrap();
        let scheme = scheme_of(&config, &ModelFiles::embedded(&[])).unwrap().unwrap();
        let files = ModelFiles::embedded(&[("model.safetensors", self.bytes.clone().leak())]);
        let checkpoint = Checkpoint::open(&files)?;
        Quantised::check(checkpoint, scheme, [self.wanted()].iter(), |name| name == "expected")
    }

    fn read(&self) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.open()?.matrix(&self.wanted())?.decoded().host().to_f32())
    }

    /// With another header, and the same data.
    fn edited(&self, edit: impl FnOnce(&mut Value)) -> Case {
        let len = u64::from_le_bytes(self.bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&self.bytes[8..8 + len]).unwrap();
        edit(&mut header);
        let header = header.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &self.bytes[8 + len..]].concat();
        Case { name: self.name.clone(), bytes, config: self.config.clone(), expected: Vec::new(), shape: self.shape }
    }

    /// With the bytes of a tensor changed.
    fn damaged(&self, tensor: &str, damage: impl FnOnce(&mut [u8])) -> Case {
        let len = u64::from_le_bytes(self.bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&self.bytes[8..8 + len]).unwrap();
        let offsets = &header[tensor]["data_offsets"];
        let [begin, end] = [0, 1].map(|side| 8 + len + offsets[side].as_u64().unwrap() as usize);
        let mut bytes = self.bytes.clone();
        damage(&mut bytes[begin..end]);
        Case { name: self.name.clone(), bytes, config: self.config.clone(), expected: Vec::new(), shape: self.shape }
    }
}

#[test]
fn every_number_is_the_one_the_reference_reads() {
    for case in cases() {
        let found = case.read().unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(found.len(), case.expected.len(), "{}", case.name);
        for (index, (found, expected)) in found.iter().zip(&case.expected).enumerate() {
            let same = match case.name.as_str() {
                // The reference multiplies by SCB, rounds, multiplies by a rounded 1 / 127 and rounds: three roundings beside our two.
                "bnb_8bit" => (found - expected).abs() <= expected.abs() * 5.0 * f32::EPSILON / 2.0,
                // Of a zero's sign, packages are not of one mind.
                _ => found == expected || found.is_nan() && expected.is_nan(),
            };
            assert!(same, "{}: number {index} is {found:e}, expected {expected:e}", case.name);
        }
    }
}

#[test]
fn what_kernels_have_stays_in_integers() {
    for (name, format) in [
        ("gptq_4bit_sym", Some("int4 g32")),
        ("gptq_4bit_asym_row", Some("int4 zeros")),
        ("gptq_4bit_act_order", Some("int4 g32 zeros")),
        ("gptq_4bit_short_last_group", Some("int4 g64 zeros")),
        ("gptq_4bit_groups_of_16", None),
        ("gptq_8bit_sym_row", Some("int8")),
        ("gptq_8bit_v2_sym", Some("int8 g64")),
        ("awq_32", Some("int4 g32 zeros")),
        ("compressed_4bit_sym", Some("int4 g32")),
        ("compressed_8bit_packed", Some("int8 zeros")),
        ("compressed_8bit_tensor", Some("int8")),
        ("bnb_8bit", Some("int8")),
        ("bnb_nf4", None),
        ("fp8_block", None),
    ] {
        let case = named(name);
        let source = case.open().unwrap();
        assert_eq!(source.integers(&case.wanted()).map(|format| format.to_string()).as_deref(), format, "{name}");
        let matrix = source.matrix(&case.wanted()).unwrap();
        assert_eq!(matches!(matrix, Matrix::Grouped(_)), format.is_some(), "{name}");
        let numbers = source.tensor(&case.wanted()).unwrap().host().to_f32();
        assert_eq!(numbers, matrix.decoded().host().to_f32(), "{name}");
    }
}

#[test]
fn rows_come_in_the_order_asked_for() {
    for name in ["gptq_4bit_act_order", "bnb_8bit", "fp8_block", "gptq_4bit_groups_of_16"] {
        let case = named(name);
        let [rows, columns] = case.shape;
        let order: Vec<u32> = (0..rows as u32).map(|row| (row * 5 + 3) % rows as u32).collect();
        let wanted = TensorSpec { stored: Stored::Rows(order.clone().into()), ..case.wanted() };
        let found = case.open().unwrap().matrix(&wanted).unwrap().decoded().host().to_f32();
        let straight = case.read().unwrap();
        for (row, from) in order.into_iter().enumerate() {
            assert_eq!(found[row * columns..][..columns], straight[from as usize * columns..][..columns], "{name}");
        }
        // What is transposed in numbers is not in codes.
        let transposed = TensorSpec { stored: Stored::Transposed, ..case.wanted() };
        assert_eq!(case.open().unwrap().matrix(&transposed).unwrap().decoded().host().to_f32(), straight, "{name}");
    }
}

/// Every tensor in turn: renamed, of another shape, of another type. Some are not needed, and some shapes mean something else; what is
/// read all the same has the right size, and a refusal names the tensor.
#[test]
fn tensors_missing_or_of_wrong_shape_or_type_are_named() {
    for case in cases() {
        let file = SafeTensors::deserialize(&case.bytes).unwrap();
        for name in file.names().into_iter().filter(|name| *name != "expected") {
            let shape = file.tensor(name).unwrap().shape().to_vec();
            let type_name = serde_json::to_value(file.tensor(name).unwrap().dtype()).unwrap();
            let renamed = case.edited(|header| {
                let entry = header[name].take();
                header["m.other"] = entry;
                header.as_object_mut().unwrap().remove(name);
            });
            let error = renamed.read().unwrap_err().to_string();
            assert!(
                error.contains("m.other belongs to no part") || error.contains("m."),
                "{}, {name}: {error}",
                case.name
            );
            let flat = case.edited(|header| header[name]["shape"] = json!([1, 1, shape.iter().product::<usize>()]));
            let tolerated =
                name.ends_with("input_scale") || name.ends_with("weight_format") || name.contains("quant_state");
            match flat.read() {
                Ok(_) => assert!(tolerated, "{}: {name} was flattened", case.name),
                Err(error) => assert!(error.to_string().contains(name), "{}, {name}: {error}", case.name),
            }
            let other = match type_name.as_str().unwrap() {
                "U8" => "BOOL",
                "I8" | "F8_E4M3" => "F8_E5M2",
                "F16" | "BF16" => "I16",
                "I32" | "F32" => "U32",
                _ => "F64",
            };
            match case.edited(|header| header[name]["dtype"] = json!(other)).read() {
                Ok(_) => {
                    assert!(name.ends_with("input_scale") || name.ends_with("weight_format"), "{}: {name}", case.name)
                }
                Err(error) => assert!(error.to_string().contains(name), "{}, {name}: {error}", case.name),
            }
        }
    }
}

#[test]
fn an_input_feature_in_a_group_that_is_not_there_is_refused() {
    for (name, tensor) in [("gptq_4bit_act_order", "m.g_idx"), ("compressed_4bit_act_order", "m.weight_g_idx")] {
        for group in [3i32, -2, i32::MAX, i32::MIN] {
            let damaged = named(name).damaged(tensor, |bytes| bytes[20..24].copy_from_slice(&group.to_le_bytes()));
            let error = damaged.read().unwrap_err().to_string();
            let expected = format!("{tensor} puts input feature 5 into group {group}, there are 3");
            assert!(error.ends_with(&expected), "{error}");
        }
        // Groups of other sizes are no error, but no kernel has them.
        let uneven = named(name).damaged(tensor, |bytes| bytes.fill(0));
        assert_eq!(uneven.open().unwrap().integers(&uneven.wanted()), None);
        assert_eq!(uneven.read().unwrap().len(), uneven.shape[0] * uneven.shape[1]);
    }
}

#[test]
fn widths_that_are_not_read_are_named() {
    let mut case = named("gptq_4bit_sym");
    // The same words are 64 features in six bits, or 128 in three.
    case.shape = [32, 128];
    let error = case.read().unwrap_err().to_string();
    assert!(error.contains("m.qweight is in 3 bits; GPTQ is read in 4 and 8 bits"), "{error}");
    case.shape = [32, 64];
    let error = case.read().unwrap_err().to_string();
    assert!(error.contains("m.qweight has shape [12, 32], expected [8, 32] in 4 bits or [16, 32] in 8"), "{error}");
}

#[test]
fn a_bias_of_zeros_is_nothing_and_one_of_numbers_is_said() {
    let with_bias = |byte: u8| {
        let case = named("gptq_4bit_sym");
        let len = u64::from_le_bytes(case.bytes[..8].try_into().unwrap()) as usize;
        let data = case.bytes.len() - 8 - len;
        let mut case = case.edited(|header| {
            header["m.bias"] = json!({"dtype": "F16", "shape": [32], "data_offsets": [data, data + 64]});
        });
        case.bytes.extend([byte; 64]);
        case
    };
    with_bias(0).read().unwrap();
    let error = with_bias(1).read().unwrap_err().to_string();
    assert!(error.ends_with("m.bias has numbers, but the model adds no bias there"), "{error}");
}

#[test]
fn a_broken_state_of_bitsandbytes_is_refused() {
    let state = "m.weight.quant_state.bitsandbytes__nf4";
    let case = named("bnb_nf4_nested");
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        case.damaged(state, |bytes| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            assert!(text.contains(from), "{text}");
            bytes.copy_from_slice(text.replacen(from, to, 1).as_bytes());
        })
    };
    for (from, to, part) in [
        ("\"blocksize\": 64", "\"blocksize\": 0 ", "blocksize of 0, expected 1 to 65536"),
        ("\"blocksize\": 64", "\"blocksize\": 63", "m.weight.absmax has shape [41], expected [42]"),
        ("[37, 70]", "[70, 37]", "has shape [70, 37], expected [37, 70]"),
        ("{\"", "{ ", "is broken"),
    ] {
        let error = replaced(from, to).read().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Whatever byte of a header is changed, there is a matrix of the right size or an error.
#[test]
fn no_change_of_a_header_panics() {
    for name in ["gptq_4bit_act_order", "compressed_4bit_asym", "fp8_block", "bnb_nf4_nested"] {
        let case = named(name);
        let len = u64::from_le_bytes(case.bytes[..8].try_into().unwrap()) as usize;
        let mut read = 0;
        for place in 0..8 + len {
            let mut changed = named(name);
            changed.bytes[place] ^= 1 << (place % 8);
            if let Ok(values) = changed.read() {
                assert_eq!(values.len(), case.shape[0] * case.shape[1]);
                read += 1;
            }
        }
        assert!(read > 0 && read < len, "{name}: {read}");
    }
}

#[test]
fn rounding_to_a_codebook_is_what_the_package_does() {
    use crate::weights::Codebook;
    for (name, codebook) in [("round_nf4", Codebook::Nf4), ("round_fp4", Codebook::Fp4), ("round_fp8", Codebook::Fp8)] {
        let bytes = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut values, expected) =
            (floats(file.tensor("given").unwrap().data()), floats(file.tensor("expected").unwrap().data()));
        let columns = file.tensor("given").unwrap().shape()[1];
        codebook.round(&mut values, columns);
        for (index, (found, expected)) in values.iter().zip(&expected).enumerate() {
            // Constants of four-bit floats are written with eight digits there.
            assert!((found - expected).abs() <= 4e-7, "{name}: number {index} is {found:e}, expected {expected:e}");
        }
    }
}
