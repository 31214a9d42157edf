//! How a model is found on the hub: flags of every command that takes a model's name.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub struct HubArgs {
    /// Branch, tag or commit of a hub model.
    #[arg(long, env = "REVISION")]
    pub revision: Option<String>,

    /// Use only what the hub cache holds already; never the network.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub offline: bool,

    /// Directory of downloaded hub models.
    #[arg(long, env = "HUGGINGFACE_HUB_CACHE")]
    pub huggingface_hub_cache: Option<PathBuf>,

    /// Token for the hub, for gated and private models.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    pub hf_token: Option<String>,
}
