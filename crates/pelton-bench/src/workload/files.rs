//! A folder of source files as one long text, from which completion prompts are cut.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::BenchError;
use crate::plan::{FilesPlan, Fim};
use crate::workload::count::Count;
use crate::workload::cut;
use crate::workload::draw::{Purpose, below, random};

/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Text that is kept.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Most directory entries that are looked at.
const MAX_ENTRIES: usize = 1_000_000;

/// Deepest folder.
const MAX_DEPTH: usize = 64;

/// Beginnings tried for one prompt before giving up.
const MAX_TRIES: u32 = 64;

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct Folder {
    /// Texts of all files, in an order by seed, each ended by an empty line.
    text: String,
    /// How many files were read, and how many not, for whom it concerns.
    pub told: String,
}

/// Files left out, by reason.
#[derive(Debug, Default)]
struct Skipped {
    links: usize,
    large: usize,
    not_text: usize,
    unreadable: usize,
    beyond: usize,
}

impl Folder {
    /// Reads the files with the wished endings below a directory, at most 64 MiB of them. Symbolic links are not followed, names that
    /// begin with a dot are passed over; larger files and those that are no text are counted.
    ///
    /// # Errors
    /// [`BenchError::Prompts`] if nothing is left.
    pub fn read(plan: &FilesPlan, seed: u64) -> Result<Self, BenchError> {
        let bad = |why: String| BenchError::Prompts(format!("files of {}: {why}", plan.dir.display()));
        let mut skipped = Skipped::default();
        let mut paths = list(plan, &mut skipped).map_err(|error| bad(error.to_string()))?;
        paths.sort();
        fastrand::Rng::with_seed(seed).shuffle(&mut paths);
        let (mut text, mut num_read) = (String::new(), 0);
        for path in &paths {
            if text.len() >= MAX_TEXT_BYTES {
                skipped.beyond += 1;
                continue;
            }
            match read_text(path) {
                Ok(Some(file)) if !file.trim().is_empty() => {
                    text.push_str(file.trim_end());
                    text.push_str("\n\n");
                    num_read += 1;
                }
                Ok(Some(_)) => {}
                Ok(None) => skipped.not_text += 1,
                Err(Unread::Large) => skipped.large += 1,
                Err(Unread::Io) => skipped.unreadable += 1,
            }
        }
        let told = format!("{num_read} files of {} ({} KiB){skipped}", plan.dir.display(), text.len() >> 10);
        if text.is_empty() {
            let endings = plan.extensions.join(", ");
            return Err(bad(format!("no text in files that end in {endings}{skipped}; name others with --file-types")));
        }
        Ok(Self { text, told })
    }

    /// Prompt number `index`: it begins at a random line and ends where its tokens do, in the middle of anything. `tokens` are without
    /// what the server adds.
    pub async fn prompt(
        &self,
        counter: &mut impl Count,
        seed: u64,
        index: u64,
        tokens: usize,
        fim: Option<&Fim>,
    ) -> Result<String, BenchError> {
        let mut random = random(seed, Purpose::Words, index, 0);
        for _ in 0..MAX_TRIES {
            let window = self.window(below(&mut random, self.text.len() as u64) as usize, tokens);
            // Where the gap is: anywhere, as seen from about four bytes in a token.
            let gap = below(&mut random, (4 * tokens as u64).min(window.len() as u64).max(1)) as usize;
            let dress = |cut: &str| match fim {
                Some(fim) => fim_prompt(fim, cut, gap),
                None => cut.to_owned(),
            };
            if let Some(prompt) = cut::exactly(counter, &window, tokens, &dress).await? {
                return Ok(prompt);
            }
        }
        Err(BenchError::Prompts(format!(
            "no prompt of {tokens} tokens can be cut from {}: it needs more text, or the tokenizer cannot be met exactly",
            self.told
        )))
    }

    /// Text from the line after byte `at` on, enough for `tokens`; after the end comes the beginning.
    fn window(&self, at: usize, tokens: usize) -> String {
        // Long indentation is one token; twelve bytes in each is more than source files have on average.
        let bytes = (12 * tokens + 256).min(self.text.len());
        let begin = self.text.as_bytes()[at..].iter().position(|&byte| byte == b'\n').map_or(0, |n| at + n + 1);
        let begin = if begin >= self.text.len() { 0 } else { begin };
        let end = self.text.ceil_char_boundary(begin + bytes);
        let mut window = self.text[begin..end].to_owned();
        let rest = bytes.saturating_sub(window.len());
        window.push_str(&self.text[..self.text.floor_char_boundary(rest.min(begin))]);
        window
    }
}

/// Text before and behind a gap at byte `gap`, in the order prefix, suffix, middle; the gap swallows the rest of its line.
fn fim_prompt(fim: &Fim, text: &str, gap: usize) -> String {
    let (before, rest) = text.split_at(text.floor_char_boundary(gap));
    let after = rest.find('\n').map_or("", |end| &rest[end..]);
    format!("{}{before}{}{after}{}", fim.prefix, fim.suffix, fim.middle)
}

fn list(plan: &FilesPlan, skipped: &mut Skipped) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(plan.dir.clone(), 0)];
    let mut seen = 0;
    while let Some((folder, depth)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            Err(_) => {
                skipped.unreadable += 1;
                continue;
            }
        };
        for entry in entries {
            seen += 1;
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || seen > MAX_ENTRIES {
                continue;
            }
            let path = entry.path();
            match entry.file_type() {
                // Links may lead in circles, and to what is found anyway.
                Ok(kind) if kind.is_symlink() => skipped.links += 1,
                Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => folders.push((path, depth + 1)),
                Ok(kind) if kind.is_file() && has_ending(&path, &plan.extensions) => found.push(path),
                _ => {}
            }
        }
    }
    Ok(found)
}

fn has_ending(path: &Path, extensions: &[String]) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| extensions.contains(&ending))
}

enum Unread {
    Large,
    Io,
}

/// `None` if it is no text.
fn read_text(path: &Path) -> Result<Option<String>, Unread> {
    let file = File::open(path).map_err(|_| Unread::Io)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|_| Unread::Io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Unread::Large);
    }
    Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { links, large, not_text, unreadable, beyond } = self;
        let reasons = [
            (links, "links"),
            (large, "larger than 1 MiB"),
            (not_text, "not text"),
            (unreadable, "unreadable"),
            (beyond, "beyond 64 MiB in all"),
        ];
        let told: Vec<String> =
            reasons.iter().filter(|(n, _)| **n > 0).map(|(n, reason)| format!("{n} {reason}")).collect();
        if told.is_empty() { Ok(()) } else { write!(f, "; left out: {}", told.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::count::Local;

    struct Place(PathBuf);
    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pelton-files-{}-{name}", std::process::id()));
            std::fs::create_dir_all(path.join("deep/er")).expect("can be made");
            Self(path)
        }
        fn write(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.0.join(name), bytes).expect("can be written");
        }
        fn plan(&self) -> FilesPlan {
            FilesPlan { dir: self.0.clone(), extensions: vec!["rs".to_owned()], fim: None }
        }
    }
    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn demo() -> Local {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        Local::load(&path).expect("the demo model has a tokenizer")
    }

    #[test]
    fn what_is_no_source_text_is_left_out_and_told() {
        let place = Place::new("skip");
        place.write("a.rs", b"fn a() {}\n");
        place.write("deep/er/b.RS", "fn b() { \"\u{e9}\" }\n".as_bytes());
        place.write("c.txt", b"not wished");
        place.write(".hidden.rs", b"not seen");
        place.write("binary.rs", b"fn\0");
        place.write("latin.rs", b"fn \xe9");
        place.write("huge.rs", &vec![b'x'; (MAX_FILE_BYTES + 1) as usize]);
        std::os::unix::fs::symlink(&place.0, place.0.join("deep/loop")).expect("can be linked");
        let folder = Folder::read(&place.plan(), 1).expect("two files");
        assert_eq!(folder.text.len(), "fn a() {}\n\nfn b() { \"\u{e9}\" }\n\n".len());
        assert!(folder.told.contains("2 files"), "{}", folder.told);
        assert!(folder.told.ends_with("left out: 1 links, 1 larger than 1 MiB, 2 not text"), "{}", folder.told);
    }

    #[test]
    fn a_folder_without_text_is_refused() {
        let place = Place::new("empty");
        place.write("a.txt", b"text");
        let error = Folder::read(&place.plan(), 1).expect_err("no .rs").to_string();
        assert!(error.contains("end in rs"), "{error}");
        let plan = FilesPlan { dir: place.0.join("none"), ..place.plan() };
        assert!(Folder::read(&plan, 1).is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn prompts_are_exact_and_equal_for_equal_seeds() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/workload");
        let plan = FilesPlan { dir, extensions: vec!["rs".to_owned()], fim: None };
        let folder = Folder::read(&plan, 3).expect("this crate has files");
        let fim = Fim { prefix: "<P>".to_owned(), suffix: "<S>".to_owned(), middle: "<M>".to_owned() };
        let mut counter = demo();
        let mut seen = std::collections::HashSet::new();
        for (index, tokens) in [(0, 64), (1, 64), (2, 200), (3, 17)] {
            for fim in [None, Some(&fim)] {
                let prompt = folder.prompt(&mut counter, 3, index, tokens, fim).await.expect("can be cut");
                assert_eq!(counter.count(&prompt).await.expect("counts"), tokens, "{prompt}");
                let again = folder.prompt(&mut counter, 3, index, tokens, fim).await.expect("can be cut");
                assert_eq!(prompt, again);
                let is_fim = prompt.starts_with("<P>") && prompt.contains("<S>") && prompt.ends_with("<M>");
                assert_eq!(is_fim, fim.is_some(), "{prompt}");
                assert!(seen.insert(prompt));
            }
        }
    }

    #[test]
    fn windows_are_cyclic_and_whole_characters() {
        let folder = Folder { text: "a\u{e9}\u{e9}\nb\u{e9}\n".to_owned(), told: String::new() };
        for at in 0..folder.text.len() {
            let window = folder.window(at, 1);
            assert!(window.len() + 1 >= folder.text.len(), "{window:?}");
        }
        assert_eq!(folder.window(1, 1), "b\u{e9}\na\u{e9}\u{e9}\n");
    }

    #[test]
    fn the_gap_swallows_the_rest_of_its_line() {
        let fim = Fim { prefix: "<P>".to_owned(), suffix: "<S>".to_owned(), middle: "<M>".to_owned() };
        assert_eq!(fim_prompt(&fim, "let a = 1;\nlet b;\n", 6), "<P>let a <S>\nlet b;\n<M>");
        assert_eq!(fim_prompt(&fim, "let", 50), "<P>let<S><M>");
    }
}
