//! How much memory this process may use: the machine's, or its control group's where that is less.

use std::fs;
use std::path::Path;

use pelton_backend::MemoryReport;

/// What could be allocated now, counting what the page cache would give back.
pub(crate) fn report() -> MemoryReport {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_meminfo(&text));
    // Without /proc nothing is known, and the operating system decides.
    let mut report = machine.unwrap_or(MemoryReport { total_bytes: u64::MAX, available_bytes: u64::MAX });
    for group in groups() {
        report.total_bytes = report.total_bytes.min(group.limit_bytes);
        let free = group.limit_bytes.saturating_sub(group.used_bytes.saturating_sub(group.reclaimable_bytes));
        report.available_bytes = report.available_bytes.min(free);
    }
    report
}

struct Group {
    limit_bytes: u64,
    used_bytes: u64,
    /// File pages that would be dropped first.
    reclaimable_bytes: u64,
}

fn parse_meminfo(text: &str) -> Option<MemoryReport> {
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    Some(MemoryReport { total_bytes: bytes("MemTotal")?, available_bytes: bytes("MemAvailable")? })
}

/// The limits on this process: those of its group and of the groups around it, of both versions of control groups.
fn groups() -> Vec<Group> {
    let Ok(membership) = fs::read_to_string("/proc/self/cgroup") else { return Vec::new() };
    let mut found = Vec::new();
    for line in membership.lines() {
        // `hierarchy:controllers:path`; version 2 has no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, names) = if controllers.is_empty() {
            ("/sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
            ("/sys/fs/cgroup/memory", names)
        } else {
            continue;
        };
        // Inside a container the path may not exist below the mount; then the mount itself is the group.
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            found.extend(read_group(&Path::new(root).join(ancestor), names));
        }
    }
    found
}

/// `None` where there is no limit.
fn read_group(folder: &Path, [limit, used, inactive]: [&str; 3]) -> Option<Group> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok();
    let limit_bytes = number(limit)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable_bytes = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok()).unwrap_or(0);
    Some(Group { limit_bytes, used_bytes: number(used)?, reclaimable_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24689764 kB\nMemFree:        17825792 kB\nMemAvailable:   20971520 kB\n";
        let report = parse_meminfo(text).unwrap();
        assert_eq!(report, MemoryReport { total_bytes: 24_689_764 * 1024, available_bytes: 20_971_520 * 1024 });
        assert!(parse_meminfo("MemTotal: much").is_none());
    }

    #[test]
    fn a_group_without_a_limit_is_none_and_one_with_a_limit_counts_file_pages_as_free() {
        let folder = std::env::temp_dir().join(format!("pelton-group-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let names = ["memory.max", "memory.current", "inactive_file"];
        fs::write(folder.join("memory.max"), "max\n").unwrap();
        fs::write(folder.join("memory.current"), "900\n").unwrap();
        fs::write(folder.join("memory.stat"), "anon 100\ninactive_file 700\n").unwrap();
        assert!(read_group(&folder, names).is_none());
        fs::write(folder.join("memory.max"), "1000\n").unwrap();
        let group = read_group(&folder, names).unwrap();
        assert_eq!((group.limit_bytes, group.used_bytes, group.reclaimable_bytes), (1000, 900, 700));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn this_machine_has_memory() {
        let report = report();
        assert!(report.available_bytes > 0 && report.available_bytes <= report.total_bytes);
    }
}
