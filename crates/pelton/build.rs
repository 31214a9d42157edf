//! Notes what the program is built with and for, which `--env` tells.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = env::var("RUSTC").ok().and_then(|rustc| Command::new(rustc).arg("--version").output().ok());
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    println!("cargo::rustc-env=PELTON_RUSTC={}", version.as_deref().unwrap_or("rustc").trim());
    println!("cargo::rustc-env=PELTON_TARGET={}", env::var("TARGET").unwrap_or_default());
}
