//! LoRA adapters of `pelton serve`.

use std::collections::HashSet;
use std::path::Path;

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Adapters")]
pub struct AdapterArgs {
    /// LoRA adapters that requests may name by `adapter_id` (or `model` on OpenAI routes): a comma list of ID, ID@REVISION, NAME=PATH or
    /// NAME=ID@REVISION, where ID is a directory or a hub id and the name of an adapter without NAME. All are loaded at start; requests with
    /// different ones, and with none, are computed together. Each costs memory, and time in steps that have requests for it.
    #[arg(long, env = "LORA_ADAPTERS", value_parser = adapters, default_value = "", hide_default_value = true, value_name = "LIST")]
    pub lora_adapters: AdapterList,
}

/// Adapters, in the order they were typed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdapterList(pub Vec<AdapterArg>);

/// One adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterArg {
    /// What requests call it.
    pub name: String,
    /// Directory or hub id.
    pub id: String,
    /// Of the hub.
    pub revision: Option<String>,
}

fn adapters(text: &str) -> Result<AdapterList, String> {
    if text.trim().is_empty() {
        return Ok(AdapterList::default());
    }
    let list: Vec<AdapterArg> = text.split(',').map(|item| adapter(item.trim())).collect::<Result<_, _>>()?;
    let mut names = HashSet::new();
    match list.iter().find(|adapter| !names.insert(adapter.name.as_str())) {
        Some(twice) => Err(format!(
            "two adapters are called {:?}: give one of them another name, as in other={}",
            twice.name, twice.id
        )),
        None => Ok(AdapterList(list)),
    }
}

fn adapter(item: &str) -> Result<AdapterArg, String> {
    let expected = || format!("{item:?} is not ID, ID@REVISION, NAME=PATH or NAME=ID@REVISION");
    let (name, place) = match item.split_once('=') {
        Some((name, place)) => (Some(name.trim()), place.trim()),
        None => (None, item),
    };
    // A directory may have an @ in its name.
    let (id, revision) = match place.rsplit_once('@') {
        Some((id, revision)) if !Path::new(place).exists() => (id, Some(revision)),
        _ => (place, None),
    };
    let name = name.unwrap_or(id);
    if name.is_empty() || id.is_empty() || revision.is_some_and(str::is_empty) {
        return Err(expected());
    }
    Ok(AdapterArg { name: name.to_owned(), id: id.to_owned(), revision: revision.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arg(name: &str, id: &str, revision: Option<&str>) -> AdapterArg {
        AdapterArg { name: name.into(), id: id.into(), revision: revision.map(str::to_owned) }
    }

    #[test]
    fn lists_are_read_as_the_launcher_reads_them() {
        let AdapterList(list) = adapters("org/a, org/b@v1,mine=/data/x , other=org/c@main").unwrap();
        assert_eq!(
            list,
            [
                arg("org/a", "org/a", None),
                arg("org/b", "org/b", Some("v1")),
                arg("mine", "/data/x", None),
                arg("other", "org/c", Some("main")),
            ]
        );
        assert_eq!(adapters("").unwrap().0, []);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["a,,b", "=x", "x=", "a@", "@v1", ","] {
            assert!(adapters(text).unwrap_err().contains("is not ID, ID@REVISION"), "{text}");
        }
        let error = adapters("a=x,b=y,a=z").unwrap_err();
        assert_eq!(error, "two adapters are called \"a\": give one of them another name, as in other=z");
    }
}
