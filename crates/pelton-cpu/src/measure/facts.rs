//! What this CPU is: its name, the flags that kernels ask for, its caches; as Linux tells them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Serialize, Serializer};

use crate::pool::allowed_cpus;

/// Flags that decide which kernels can run, as `/proc/cpuinfo` spells them.
const FLAGS: [&str; 13] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
];

/// Where Linux describes CPUs.
const SYSTEM_CPUS: &str = "/sys/devices/system/cpu";

/// Caches that one CPU may have: more entries than that are not looked for.
const MAX_CACHES: usize = 16;

/// A CPU, as far as it matters to kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuFacts {
    /// Model name, or `unknown`.
    pub model: String,
    /// CPUs that this process may run on.
    pub cores: usize,
    /// Flags that kernels ask for, there or not. A map from name to presence in JSON.
    #[serde(serialize_with = "as_map")]
    pub flags: Vec<CpuFlag>,
    /// Caches of the CPUs that this process may run on, nearest first; instruction caches left out.
    pub caches: Vec<CpuCache>,
}

/// One flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFlag {
    /// As `/proc/cpuinfo` spells it.
    pub name: &'static str,
    /// Whether this CPU has it, and the operating system lets it be used.
    pub present: bool,
}

/// Caches of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CpuCache {
    /// 1 is nearest.
    pub level: u32,
    /// Bytes of each.
    pub bytes: u64,
    /// How many there are; several CPUs may share one.
    pub count: usize,
}

impl CpuFacts {
    /// Of the machine that this process runs on. What the operating system does not tell is missing.
    pub fn here() -> Self {
        let (model, flags) = parse_cpuinfo(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        let cpus = allowed_cpus();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { model, cores, flags, caches: read_caches(Path::new(SYSTEM_CPUS), &cpus) }
    }

    /// Bytes of each cache of `level`; `None` where there is none, or none is told.
    pub(super) fn cache_bytes(&self, level: u32) -> Option<u64> {
        self.caches.iter().find(|cache| cache.level == level).map(|cache| cache.bytes)
    }

    /// Bytes of all caches of the last level; `None` where none is told.
    pub(super) fn last_level_bytes(&self) -> Option<u64> {
        self.caches.last().map(|cache| cache.bytes * cache.count as u64)
    }
}

fn as_map<S: Serializer>(flags: &[CpuFlag], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(flags.iter().map(|flag| (flag.name, flag.present)))
}

/// Name and flags of the first CPU listed.
fn parse_cpuinfo(text: &str) -> (String, Vec<CpuFlag>) {
    let field = |name: &str| {
        text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name).map(|(_, value)| value)
    };
    let model = field("model name").map_or("unknown", str::trim).to_owned();
    let listed: Vec<&str> = field("flags").unwrap_or_default().split_whitespace().collect();
    (model, FLAGS.map(|name| CpuFlag { name, present: listed.contains(&name) }).into())
}

/// Data and unified caches of `cpus`, described under `folder`.
fn read_caches(folder: &Path, cpus: &[usize]) -> Vec<CpuCache> {
    // A cache is told once for each CPU that shares it; its level and the list of those CPUs name it.
    let mut found: BTreeMap<(u32, String), u64> = BTreeMap::new();
    for cpu in cpus {
        for index in 0..MAX_CACHES {
            let read = |name: &str| {
                let path = folder.join(format!("cpu{cpu}/cache/index{index}")).join(name);
                fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
            };
            let (Some(kind), Some(level), Some(size)) = (read("type"), read("level"), read("size")) else { break };
            let (Ok(level), Some(bytes)) = (level.parse(), parse_size(&size)) else { continue };
            if kind != "Instruction" {
                found.insert((level, read("shared_cpu_list").unwrap_or_else(|| cpu.to_string())), bytes);
            }
        }
    }
    let mut caches: Vec<CpuCache> = Vec::new();
    for ((level, _), bytes) in found {
        match caches.last_mut().filter(|cache| cache.level == level) {
            Some(cache) => {
                cache.count += 1;
                // Cores of two kinds: the smaller cache is the one to count on.
                cache.bytes = cache.bytes.min(bytes);
            }
            None => caches.push(CpuCache { level, bytes, count: 1 }),
        }
    }
    caches
}

/// `32K`, `36608K`, `2M`.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |number| (number, 1 << 20)),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_gives_name_and_flags() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2.50GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\n\
                    model name\t: Another\nflags\t\t: fma\n";
        let (model, flags) = parse_cpuinfo(text);
        assert_eq!(model, "A CPU @ 2.50GHz");
        let present: Vec<&str> = flags.iter().filter(|flag| flag.present).map(|flag| flag.name).collect();
        assert_eq!(present, ["avx2", "avx512f", "avx512_vnni"]);
        let (model, flags) = parse_cpuinfo("");
        assert_eq!(model, "unknown");
        assert!(flags.iter().all(|flag| !flag.present));
    }

    #[test]
    fn shared_caches_are_counted_once() {
        let folder = std::env::temp_dir().join(format!("pelton-caches-{}", std::process::id()));
        for cpu in 0..3 {
            let own = cpu.to_string();
            let caches = [
                ("Data", "1", "32K", own.as_str()),
                ("Instruction", "1", "64K", own.as_str()),
                ("Unified", "2", "1024K", own.as_str()),
                ("Unified", "3", "36608K", "0-2"),
            ];
            for (index, (kind, level, size, shared)) in caches.into_iter().enumerate() {
                let cache = folder.join(format!("cpu{cpu}/cache/index{index}"));
                fs::create_dir_all(&cache).unwrap();
                for (name, text) in [("type", kind), ("level", level), ("size", size), ("shared_cpu_list", shared)] {
                    fs::write(cache.join(name), format!("{text}\n")).unwrap();
                }
            }
        }
        let caches = read_caches(&folder, &[0, 2]);
        fs::remove_dir_all(&folder).unwrap();
        let cache = |level, bytes, count| CpuCache { level, bytes, count };
        assert_eq!(caches, [cache(1, 32 << 10, 2), cache(2, 1 << 20, 2), cache(3, 36608 << 10, 1)]);
        let facts = CpuFacts { model: String::new(), cores: 2, flags: Vec::new(), caches };
        assert_eq!((facts.cache_bytes(2), facts.cache_bytes(4)), (Some(1 << 20), None));
        assert_eq!(facts.last_level_bytes(), Some(36608 << 10));
        assert!(read_caches(&folder, &[0]).is_empty());
    }

    #[test]
    fn this_cpu_is_described() {
        let facts = CpuFacts::here();
        assert!(facts.cores > 0);
        let avx2 = facts.flags.iter().find(|flag| flag.name == "avx2").unwrap().present;
        assert_eq!(avx2, is_x86_feature_detected!("avx2"));
        assert!(facts.caches.is_sorted_by_key(|cache| cache.level));
    }
}
