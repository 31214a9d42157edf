//! Where a model's files are: in a directory, in one GGUF file, on the hub, or in this binary.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pelton_model::ModelFiles;
use pelton_model::hub::{self, HubOptions};

use crate::args::hub::HubArgs;
use crate::args::serve::adapters::AdapterArg;
use crate::{demo, env};

/// Files and name of the model that `id` names, downloaded first if that is a hub name; of the demo model without it.
pub fn find(id: Option<&str>, args: &HubArgs) -> Result<(ModelFiles, String)> {
    let Some(id) = id else {
        check_no_revision(args)?;
        return Ok((ModelFiles::embedded(demo::FILES), demo::NAME.to_owned()));
    };
    let files = ModelFiles::at(path(id, args)?).with_context(|| format!("cannot load model {id}"))?;
    Ok((files, id.to_owned()))
}

/// Refuses a revision where no hub model is named.
pub fn check_no_revision(args: &HubArgs) -> Result<()> {
    if args.revision.is_some() {
        bail!("--revision needs --model-id with a hub name");
    }
    Ok(())
}

/// Files of an adapter, downloaded first if its id is a hub name.
pub fn find_adapter(adapter: &AdapterArg, args: &HubArgs) -> Result<ModelFiles> {
    let AdapterArg { name, id, revision } = adapter;
    if Path::new(id).exists()
        && let Some(revision) = revision
    {
        bail!("adapter {name} has revision {revision}, but {id} is a path");
    }
    let folder = hub::fetch_adapter(id, &hub_options(args, revision.clone()));
    let files = folder.map(ModelFiles::directory).with_context(|| format!("cannot find adapter {name}"))?;
    files.with_context(|| format!("cannot load adapter {name}"))
}

fn path(id: &str, args: &HubArgs) -> Result<PathBuf> {
    if Path::new(id).exists() {
        if args.revision.is_some() {
            bail!("--revision names a revision on the hub, but {id} is a path");
        }
        return Ok(id.into());
    }
    let options = hub_options(args, args.revision.clone());
    hub::fetch(id, &options).with_context(|| format!("cannot find model {id}"))
}

fn hub_options(args: &HubArgs, revision: Option<String>) -> HubOptions {
    HubOptions {
        revision,
        token: args.hf_token.clone().filter(|token| !token.is_empty()).or_else(env::hub_token),
        cache_dir: args.huggingface_hub_cache.clone().unwrap_or_else(env::hub_cache),
        endpoint: env::hub_endpoint(),
        offline: args.offline,
    }
}
