//! House rules that a machine can check.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Crates where `unsafe` is allowed; every other carries `#![forbid(unsafe_code)]`, and `pelton-model` denies it but for one function.
const UNSAFE_CRATES: [&str; 2] = ["pelton-cpu", "pelton-model"];

/// Module names that say nothing.
const EMPTY_NAMES: [&str; 6] = ["common", "utils", "util", "core", "helpers", "misc"];

/// Walks all Rust sources and fails with the list of everything found.
pub fn check(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    for file in rust_files(root)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file:?}"))?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        findings.extend(findings_in(&name, &text));
    }
    if !findings.is_empty() {
        bail!("{} house rule(s) broken:\n  {}", findings.len(), findings.join("\n  "));
    }
    Ok(())
}

fn findings_in(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut find = |line: usize, what: &str| findings.push(format!("{name}:{line}: {what}"));
    if !text.starts_with("//!") {
        find(1, "a file begins with a //! sentence that says its one subject");
    }
    let path = Path::new(name);
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        find(1, "this name says nothing; name the thing");
    }
    let is_root = matches!(stem, "lib" | "main") && path.parent().is_some_and(|parent| parent.ends_with("src"));
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|allowed| name.contains(allowed));
    if is_root && !may_be_unsafe && !text.contains("#![forbid(unsafe_code)]") {
        find(1, "this crate has no business with unsafe code: add #![forbid(unsafe_code)]");
    }
    for (index, line) in text.lines().enumerate() {
        if line.ends_with(' ') {
            find(index + 1, "trailing space");
        }
        if line.chars().count() > 160 {
            find(index + 1, "line longer than 160 characters");
        }
    }
    findings
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("crates"), root.join("xtask")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {folder:?}"))? {
            let path = entry?.path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::findings_in;

    #[test]
    fn each_rule_finds_its_breach() {
        assert!(findings_in("crates/a/src/x.rs", "//! Fine.\n").is_empty());
        assert_eq!(findings_in("crates/a/src/utils.rs", "//! Things.\n").len(), 1);
        assert_eq!(findings_in("crates/a/src/x.rs", "fn f() {} \n").len(), 2);
        assert_eq!(findings_in("crates/a/src/lib.rs", "//! A crate.\n").len(), 1);
        assert!(findings_in("crates/pelton-cpu/src/lib.rs", "//! A crate.\n").is_empty());
    }
}
