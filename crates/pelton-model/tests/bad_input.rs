//! Bad files of every format, and the memory they ask for: in a process of its own, since what is counted is all of the process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton_model::{Checkpoint, ModelFiles};

/// The system's allocator, with the bytes in use and the most there ever were.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on as it came to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a reader needs whatever the file: the buffer for an archive's directory, messages, a folder's names.
const FIXED_BYTES: usize = 100_000;
/// The most that each byte of a file may cost. One byte of a pickle may be a value of 32 bytes in a list that has grown to twice its size,
/// beside the list it grew from.
const BYTES_PER_BYTE: usize = 150;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")).join(name)).unwrap()
}

/// The most memory that `work` had beside what was in use before.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

/// Opens `bytes` as the file `name` of a model, as far as that goes.
fn open(name: &str, bytes: &[u8], folder: &std::path::Path) -> Result<(), String> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    let files =
        ModelFiles::at(if name.ends_with(".gguf") { &path } else { folder }).map_err(|error| error.to_string())?;
    if name.ends_with(".gguf") {
        files.read("config.json").map_err(|error| error.to_string())?;
        files.read(pelton_model::GGUF_TOKENIZER).map_err(|error| error.to_string())?;
        return Ok(());
    }
    Checkpoint::open(&files).map(drop).map_err(|error| error.to_string())
}

/// One test, so that nothing else allocates beside it.
#[test]
fn no_file_asks_for_more_memory_than_its_size_deserves() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], what: &str| {
        let mut result = Ok(());
        let peak = peak_of(|| result = open(name, bytes, folder.path()));
        let limit = FIXED_BYTES + BYTES_PER_BYTE * bytes.len();
        assert!(peak <= limit, "{what}: {peak} bytes for a file of {}, limit is {limit} ({result:?})", bytes.len());
        std::fs::remove_file(folder.path().join(name)).unwrap();
        result
    };
    for (name, file, step) in [
        ("model.safetensors", "models/stored_bf16/model.safetensors", 607),
        ("pytorch_model.bin", "formats/pickle/views.bin", 61),
        ("x.gguf", "formats/gguf/llama-q8_0.gguf", 307),
    ] {
        let whole = fixture(file);
        check(name, &whole, "whole").unwrap();
        // Bytes at begin and end, where headers and directories are, and some between, made as large as can be: lengths, counts and
        // offsets among them.
        let ends = (0..300).chain(whole.len() - 300..whole.len()).chain((0..whole.len()).step_by(step));
        for place in ends {
            for width in [1, 8] {
                let mut bytes = whole.clone();
                let end = whole.len().min(place + width);
                bytes[place..end].fill(0xff);
                let _ = check(name, &bytes, &format!("{width} bytes of {name} at {place}"));
            }
        }
    }
    // As much as a pickle can make of a byte: empty dicts, and marks.
    for op in [b"}", b"(", b"]", b")"] {
        let pickle = op.repeat(1 << 20);
        check("pytorch_model.bin", &archive(&pickle), "a pickle of one opcode").unwrap_err();
    }
}

/// A PyTorch file of one pickle.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
    let (mut entry, config) =
        archive.new_file("a/data.pkl").compression_method(rawzip::CompressionMethod::STORE).start().unwrap();
    let mut writer = config.wrap(&mut entry);
    std::io::Write::write_all(&mut writer, pickle).unwrap();
    let (_, output) = writer.finish().unwrap();
    entry.finish(output).unwrap();
    archive.finish().unwrap();
    bytes
}
