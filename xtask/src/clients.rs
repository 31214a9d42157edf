//! Tests with real clients, and readers of what is written: Python packages at pinned versions in virtual environments under `target/`, and curl.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cargo, run};

/// Folders under `clients/`, each with its pinned requirements: packages that cannot be installed together live apart.
const FOLDERS: [&str; 4] = ["current", "archived", "langchain", "readers"];

/// Builds the server, prepares the environments, and lets pytest talk to a server that it starts.
pub fn check(root: &Path) -> Result<()> {
    run(cargo().args(["build", "--package", "pelton"]))?;
    let binary = target(root).join("debug").join("pelton");
    for folder in FOLDERS {
        let python = environment(root, folder)?;
        run(Command::new(python)
            .current_dir(root.join("clients"))
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", folder])
            .env("PELTON_BINARY", &binary)
            .env("PYTHONDONTWRITEBYTECODE", "1"))?;
    }
    Ok(())
}

/// The Python of `folder`'s virtual environment. It is made again when the pinned requirements have changed since.
fn environment(root: &Path, folder: &str) -> Result<PathBuf> {
    let wanted_path = root.join("clients").join(folder).join("requirements.txt");
    let wanted = std::fs::read_to_string(&wanted_path).with_context(|| format!("cannot read {wanted_path:?}"))?;
    let environment = target(root).join("clients").join(folder);
    let python = environment.join("bin").join("python");
    let installed = environment.join("installed.txt");
    if python.exists() && std::fs::read_to_string(&installed).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    println!("installing the clients of {} into {}", wanted_path.display(), environment.display());
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))
        .context("a Python 3 with the venv module is needed for the tests with real clients")?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&wanted_path))?;
    std::fs::write(&installed, &wanted).with_context(|| format!("cannot write {installed:?}"))?;
    Ok(python)
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}
