//! Environment variables that no flag stands for. Those of flags are named beside the flag; nothing else is read anywhere.

use std::env;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// `HOSTNAME`, when it is an address: containers set it to their name, which is nothing to listen on.
pub fn hostname() -> IpAddr {
    let address = env::var("HOSTNAME").ok().and_then(|value| value.parse().ok());
    address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// `HF_API_TOKEN` and `HUGGING_FACE_HUB_TOKEN`: older names of `HF_TOKEN`.
pub fn hub_token() -> Option<String> {
    let names = ["HF_API_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    names.into_iter().find_map(|name| env::var(name).ok()).filter(|token| !token.is_empty())
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
