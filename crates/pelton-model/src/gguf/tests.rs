//! Blocks against the format's own package, and bad files.

use std::path::PathBuf;

use super::*;
use crate::gguf::kind::Kind;
use crate::weights::{Bytes, span};

fn fixture(name: &str) -> &'static [u8] {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/formats/gguf"));
    std::fs::read(folder.join(name)).unwrap().leak()
}

fn open(bytes: &'static [u8]) -> Result<Gguf, GgufError> {
    Gguf::open("x.gguf", Blob::Memory(bytes))
}

fn refusal(bytes: Vec<u8>) -> String {
    open(bytes.leak()).unwrap_err().to_string()
}

fn bits(values: impl IntoIterator<Item = f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_format_has_the_numbers_of_the_python_package() {
    let gguf = open(fixture("blocks.gguf")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(fixture("blocks.safetensors")).unwrap();
    assert_eq!(gguf.header.tensors.len(), 3 + 2 * 10);
    for (name, info) in &gguf.header.tensors {
        let wanted = expected.tensor(name).unwrap();
        assert_eq!(wanted.shape(), info.shape, "{name}");
        let wanted = wanted.data().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
        assert_eq!(bits(gguf.numbers(name).unwrap()), bits(wanted), "{name}");
    }
}

#[test]
fn integers_are_the_numbers_of_their_blocks() {
    let gguf = open(fixture("blocks.gguf")).unwrap();
    let mut checked = 0;
    for (name, info) in &gguf.header.tensors {
        let kind = Kind::numbered(info.kind).unwrap();
        let Some(groups) = kind.integers() else { continue };
        let bytes = span(&gguf.blob, gguf.ranges[name].clone()).unwrap();
        for block in bytes.as_slice().chunks_exact(kind.block_bytes()) {
            let (mut codes, mut values) = ([0; 32], [0.0; 32]);
            let scale = kind.codes(block, &mut codes);
            kind.decode(block, &mut values);
            assert!(codes.iter().all(|&code| code <= groups.bits.largest()));
            let middle = f32::from(groups.bits.middle());
            assert_eq!(bits(codes.map(|code| (f32::from(code) - middle) * scale)), bits(values), "{name}");
            checked += 1;
        }
    }
    assert_eq!(checked, 3 * 11);
}

#[test]
fn a_file_on_disk_reads_as_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, fixture("blocks.gguf")).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let on_disk = Gguf::open("x.gguf", Blob::File { file, len }).unwrap();
    let inside = open(fixture("blocks.gguf")).unwrap();
    assert_eq!(on_disk.ranges, inside.ranges);
    for name in on_disk.ranges.keys() {
        assert_eq!(bits(on_disk.numbers(name).unwrap()), bits(inside.numbers(name).unwrap()), "{name}");
    }
    assert!(matches!(span(&on_disk.blob, 0..8).unwrap(), Bytes::Mapped(_)));
}

/// A file of `keys` and `tensors`, each already in bytes, and `data` bytes of data.
fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let counts = [(tensors.len() as u64).to_le_bytes(), (keys.len() as u64).to_le_bytes()].concat();
    let mut bytes = [b"GGUF\x03\0\0\0", &counts[..], &keys.concat(), &tensors.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(32) + data, 7);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    [&text(name)[..], &(dims.len() as u32).to_le_bytes(), &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()]
        .concat()
}

#[test]
fn contradictions_are_refused() {
    let huge = u64::MAX.to_le_bytes();
    let array = |element: u32, count: u64| [&element.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let nested = [array(9, 1).repeat(6), array(0, 0)].concat();
    for (bytes, part) in [
        (b"GGML\x03\0\0\0".to_vec(), "does not begin with GGUF"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1, and versions 2 and 3 are read"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (b"GGUF\x63\0\0\0".to_vec(), "version 99"),
        ([&b"GGUF\x03\0\0\0"[..], &huge, &huge].concat(), "is truncated"),
        (file(&[key("a", 13, b"")], &[], 0), "a value of type 13"),
        (file(&[key("a", 8, &huge)], &[], 0), "is truncated"),
        (file(&[key("a", 9, &array(8, u64::MAX))], &[], 0), "is truncated"),
        (file(&[key("a", 9, &array(12, u64::MAX / 4))], &[], 0), "is truncated"),
        (file(&[key("a", 9, &nested)], &[], 0), "arrays lie in arrays, limit is 4 deep"),
        (file(&[key("a", 8, b"\x01\0\0\0\0\0\0\0\xff")], &[], 0), "is not UTF-8"),
        (file(&[key("a", 7, b"\x01"), key("a", 7, b"\0")], &[], 0), "key a stands there twice"),
        (file(&[key("general.alignment", 4, b"\x21\0\0\0")], &[], 0), "general.alignment is"),
        (file(&[key("split.count", 2, b"\x03\0")], &[], 0), "one of 3 files of a model is not supported: join them"),
        (file(&[], &[tensor("t", &[1; 5], 0, 0)], 4), "tensor t has 5 dimensions"),
        (file(&[], &[tensor("t", &[8], 0, 0), tensor("t", &[8], 0, 32)], 64), "tensor t stands there twice"),
        (
            file(&[], &[tensor("t", &[8], 16, 0)], 64),
            "tensor t is stored as IQ2_XXS (number 16), which is not read; F32, F16",
        ),
        (file(&[], &[tensor("t", &[8], 777, 0)], 64), "a format not heard of (number 777)"),
        (file(&[], &[tensor("t", &[33], 8, 0)], 64), "shape [33], which does not go into blocks of 32"),
        (file(&[], &[tensor("t", &[9], 0, 0)], 32), "tensor t has 36 bytes at 0, beyond the file's end"),
        (file(&[], &[tensor("t", &[8], 0, u64::MAX - 8)], 32), "beyond the file's end"),
        (file(&[], &[tensor("t", &[u64::MAX, u64::MAX], 0, 0)], 32), "does not go into blocks"),
        (file(&[], &[tensor("t", &[8], 0, 0), tensor("u", &[8], 0, 16)], 64), "tensors t and u overlap"),
    ] {
        let error = refusal(bytes);
        assert!(error.contains(part), "{error} is not about {part}");
    }
}

#[test]
fn architectures_and_keys_are_refused_by_name() {
    let config = |keys: &[Vec<u8>]| open(file(keys, &[], 0).leak()).unwrap().config().unwrap_err().to_string();
    let architecture = key("general.architecture", 8, &text("mamba"));
    let error = config(&[architecture]);
    assert!(error.contains("general.architecture \"mamba\" is not supported: known are llama, qwen2"), "{error}");
    let error = config(&[]);
    assert!(error.contains("general.architecture \"\""), "{error}");
    let llama = key("general.architecture", 8, &text("llama"));
    let error = config(std::slice::from_ref(&llama));
    assert_eq!(error, "x.gguf: llama.attention.head_count is absent, expected a count");
    let experts = key("llama.expert_count", 4, b"\x08\0\0\0");
    assert!(config(&[llama.clone(), experts]).contains("llama is not supported: it has 8 experts"));
    let heads = key("llama.attention.head_count", 4, b"\0\0\0\0");
    let hidden = key("llama.embedding_length", 4, b"\x20\0\0\0");
    assert!(config(&[llama, heads, hidden]).contains("expected at least one"));
}

#[test]
fn every_truncation_is_refused() {
    let whole = fixture("llama-q8_0.gguf");
    for len in 0..whole.len() {
        open(&whole[..len]).unwrap_err();
    }
}

/// Whatever bit of the header flips, the answer is an error or tensors that lie within the file.
#[test]
fn no_flipped_bit_reads_beyond_the_file() {
    let whole = fixture("llama-q8_0.gguf");
    let header = open(whole).unwrap().header.data_begin as usize;
    let (mut opened, mut refused) = (0, 0);
    for bit in 0..header * 8 {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok((header, ranges)) = read_header("x.gguf", &Blob::Memory(&bytes)) else {
            refused += 1;
            continue;
        };
        opened += 1;
        assert!(ranges.values().all(|range| range.start <= range.end && range.end <= whole.len() as u64));
        let gguf = Gguf { file: String::new(), header, ranges, blob: Blob::Memory(&[]) };
        let _ = gguf.config();
        gguf.tokenizer();
    }
    assert!(opened > 100 && refused > 100, "{opened} {refused}");
}

#[test]
fn what_is_said_of_text_is_handed_on_key_by_key() {
    for name in ["tokenizer-bpe", "tokenizer-spm"] {
        let found: Value =
            serde_json::from_slice(&open(fixture(&format!("{name}.gguf"))).unwrap().tokenizer()).unwrap();
        let wanted: Value = serde_json::from_slice(fixture(&format!("{name}.json"))).unwrap();
        assert_eq!(found, wanted, "{name}");
    }
}

#[test]
fn headers_longer_than_the_first_read_are_read_on() {
    let long = "x".repeat(3 << 20);
    let gguf = open(file(&[key("tokenizer.long", 8, &text(&long))], &[tensor("t", &[8], 0, 0)], 32).leak()).unwrap();
    assert_eq!(gguf.header.text("tokenizer.long"), Some(&long[..]));
    assert_eq!(gguf.numbers("t").unwrap(), [f32::from_le_bytes([7; 4]); 8]);
}

#[test]
fn rotary_rules_come_from_keys_or_tensors_of_factors() {
    let number = |value: u32| value.to_le_bytes().to_vec();
    let sized = [
        ("attention.head_count", 4),
        ("embedding_length", 64),
        ("block_count", 1),
        ("feed_forward_length", 32),
        ("context_length", 100),
    ];
    let read = |extra: &[Vec<u8>], tensors: &[Vec<u8>]| -> Value {
        let mut keys = vec![key("general.architecture", 8, &text("llama"))];
        keys.extend(sized.map(|(name, value)| key(&format!("llama.{name}"), 4, &number(value))));
        keys.extend_from_slice(extra);
        let tensors = [&[tensor("token_embd.weight", &[4, 2], 0, 0)], tensors].concat();
        let mut file = file(&keys, &tensors, 0);
        // Eight numbers of the embedding, eight factors.
        file.extend((0..16).flat_map(|i| (0.5 * i as f32).to_le_bytes()));
        serde_json::from_slice(&open(file.leak()).unwrap().config().unwrap()).unwrap()
    };
    let plain = read(&[], &[]);
    assert_eq!(
        (&plain["head_dim"], &plain["vocab_size"], &plain["rope_scaling"]),
        (&16.into(), &2.into(), &Value::Null)
    );
    let factors = read(&[], &[tensor("rope_freqs.weight", &[8], 0, 32)]);
    let scaling = &factors["rope_scaling"];
    assert_eq!(scaling["long_factor"], serde_json::json!([4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5]));
    assert_eq!((&scaling["short_factor"], &scaling["attention_factor"]), (&scaling["long_factor"], &1.0.into()));
    let scaling = |kind: &str| {
        [key("llama.rope.scaling.type", 8, &text(kind)), key("llama.rope.scaling.factor", 6, &4f32.to_le_bytes())]
    };
    assert_eq!(
        read(&scaling("linear"), &[])["rope_scaling"],
        serde_json::json!({"rope_type": "linear", "factor": 4.0})
    );
    assert_eq!(read(&scaling("yarn"), &[])["rope_scaling"]["factor"], 4.0);
    let window = read(&[key("llama.attention.sliding_window", 4, &number(7))], &[]);
    assert_eq!(window["architectures"], serde_json::json!(["MistralForCausalLM"]));
}
