//! Environment variables that no flag stands for. Those of flags are named beside the flag; nothing else is read anywhere.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `HOSTNAME`, when it is an address: containers set it to their name, which is nothing to listen on.
pub fn hostname() -> Option<IpAddr> {
    env::var("HOSTNAME").ok()?.parse().ok()
}

/// `HF_API_TOKEN` and `HUGGING_FACE_HUB_TOKEN`: older names of `HF_TOKEN`.
pub fn hub_token() -> Option<String> {
    let names = ["HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    names.into_iter().find_map(text)
}

/// `HF_ENDPOINT`: another hub than the public one.
pub fn hub_endpoint() -> Option<String> {
    env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty())
}

/// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
pub fn hub_cache() -> PathBuf {
    if let Some(cache) = env::var_os("HF_HUB_CACHE") {
        return cache.into();
    }
    let home = env::var_os("HF_HOME").map(PathBuf::from);
    home.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache").join("huggingface")).join("hub")
}

/// `COMPUTE_TYPE`: what the header x-compute-type says.
pub fn compute_type() -> String {
    env::var("COMPUTE_TYPE").unwrap_or_else(|_| "cpu".into())
}

/// `AIP_HTTP_PORT`: the port that Vertex AI calls, whatever else is said.
pub fn vertex_port() -> Result<Option<u16>> {
    let Some(port) = text("AIP_HTTP_PORT") else { return Ok(None) };
    port.parse().map(Some).with_context(|| format!("AIP_HTTP_PORT is {port:?}, which is no port"))
}

/// `AIP_PREDICT_ROUTE` and `AIP_HEALTH_ROUTE`: paths under which Vertex AI asks for predictions and health.
pub fn vertex_routes() -> [Option<String>; 2] {
    ["AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"].map(text)
}

/// `MESSAGES_API_ENABLED`: `/invocations` takes chats alone, as version 2.2 of text-generation-inference did.
pub fn messages_api_enabled() -> bool {
    text("MESSAGES_API_ENABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// `RUST_LOG`, else `LOG_LEVEL`: what is logged.
pub fn log_filter() -> Option<String> {
    text("RUST_LOG").or_else(|| text("LOG_LEVEL"))
}

/// `LOG_COLORIZE`: whether log lines are coloured, whatever they are written to.
pub fn log_colorize() -> Option<bool> {
    switch("LOG_COLORIZE")
}

/// `PREFIX_CACHING`: whether computed prompts are found again.
pub fn prefix_caching() -> Option<bool> {
    switch("PREFIX_CACHING")
}

/// One line for each variable of text-generation-inference that asks for something else than what happens.
pub fn notes() -> Vec<String> {
    let mut notes = Vec::new();
    if switch("PREFILL_CHUNKING") == Some(false) {
        notes.push("PREFILL_CHUNKING=0 changes nothing: long prompts are always computed in pieces".to_owned());
    }
    if let Some(attention) = text("ATTENTION") {
        notes.push(format!(
            "ATTENTION={attention} changes nothing: there is one attention kernel for each instruction set"
        ));
    }
    notes
}

/// The variables among `names` that are set, with their values; those of `secret` names are not shown.
pub fn settings<'a>(names: impl Iterator<Item = (&'a str, bool)>) -> Vec<String> {
    let shown = |(name, secret): (&str, bool)| {
        let value = env::var(name).ok()?;
        Some(if secret { format!("{name}=...") } else { format!("{name}={value}") })
    };
    names.filter_map(shown).collect()
}

/// `1` or `true`, `0` or `false`; anything else counts as not said.
fn switch(name: &str) -> Option<bool> {
    match text(name)?.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
