//! The table for people.

use std::fmt;

use super::{CpuFacts, Extent, KernelReport, KernelRow, Limits};

impl fmt::Display for KernelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        machine(f, &self.cpu)?;
        let threads = self.chosen.threads;
        writeln!(f, "chosen    {}, {threads} {}", self.chosen.isa, if threads == 1 { "thread" } else { "threads" })?;
        limits(f, &self.limits)?;
        writeln!(f)?;
        writeln!(f, "{:<9} {:<36} {:>5} {:>12} {:>14} {:>7}  of", "kernel", "size", "rows", "time", "rate", "share")?;
        let mut before = "";
        for row in &self.kernels {
            if !before.is_empty() && before != row.kernel && (before == "linear" || before == "attend") {
                writeln!(f)?;
            }
            before = row.kernel;
            line(f, row)?;
        }
        for left in &self.left_out {
            writeln!(
                f,
                "left out: {} {}, {} rows (at least {:.1} s)",
                left.kernel, left.size, left.rows, left.least_s
            )?;
        }
        writeln!(f)?;
        if self.extent == Extent::Quick {
            writeln!(f, "sizes that sit in caches: shares mean little, leave --quick out for figures to quote")?;
        }
        writeln!(
            f,
            "medians of {} interleaved rounds; linear: output x input features; share: least time that the limit allows over the time taken",
            self.rounds
        )
    }
}

fn machine(f: &mut fmt::Formatter<'_>, cpu: &CpuFacts) -> fmt::Result {
    let list = |present: bool| {
        let names: Vec<&str> = cpu.flags.iter().filter(|flag| flag.present == present).map(|flag| flag.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(" ") }
    };
    let cores = if cpu.cores == 1 { "core" } else { "cores" };
    writeln!(f, "cpu       {}, {} {cores}", cpu.model, cpu.cores)?;
    writeln!(f, "flags     {}", list(true))?;
    writeln!(f, "lacks     {}", list(false))?;
    let caches: Vec<String> = cpu
        .caches
        .iter()
        .map(|cache| {
            let kib = cache.bytes as f64 / 1024.0;
            let size = if kib < 1024.0 { format!("{kib:.0} KiB") } else { format!("{:.1} MiB", kib / 1024.0) };
            if cache.count == 1 {
                format!("L{} {size}", cache.level)
            } else {
                format!("L{} {} x {size}", cache.level, cache.count)
            }
        })
        .collect();
    writeln!(f, "caches    {}", if caches.is_empty() { "not told".to_owned() } else { caches.join(", ") })
}

fn limits(f: &mut fmt::Formatter<'_>, limits: &Limits) -> fmt::Result {
    writeln!(f, "memory    {} read", rate(limits.memory_bytes_per_s, "B/s"))?;
    writeln!(f, "cache     {} read from L2", rate(limits.cache_bytes_per_s, "B/s"))?;
    writeln!(f, "f32       {} in fused multiply-adds", rate(limits.f32_per_s, "FLOP/s"))?;
    if let Some(per_s) = limits.bf16_per_s {
        writeln!(f, "bf16      {} in bf16 dot products", rate(per_s, "FLOP/s"))?;
    }
    if let Some(per_s) = limits.int8_per_s {
        writeln!(f, "int8      {} in int8 dot products", rate(per_s, "OP/s"))?;
    }
    Ok(())
}

fn line(f: &mut fmt::Formatter<'_>, row: &KernelRow) -> fmt::Result {
    let reached = if row.bound.is_bytes() {
        rate(row.bytes_per_s, "B/s")
    } else {
        rate(row.operations_per_s, row.bound.operations())
    };
    let time = match row.time_us {
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    };
    let share = format!("{:.0} %", 100.0 * row.share);
    writeln!(
        f,
        "{:<9} {:<36} {:>5} {time:>12} {reached:>14} {share:>7}  {}",
        row.kernel,
        row.size,
        row.rows,
        row.bound.name()
    )
}

/// A rate in billions, or trillions where there are some, with three digits.
fn rate(per_s: f64, unit: &str) -> String {
    let (value, prefix) = if per_s < 1e12 { (per_s / 1e9, "G") } else { (per_s / 1e12, "T") };
    match value {
        v if v < 10.0 => format!("{v:.2} {prefix}{unit}"),
        v if v < 100.0 => format!("{v:.1} {prefix}{unit}"),
        v => format!("{v:.0} {prefix}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn rates_have_three_digits() {
        assert_eq!(rate(16.46e9, "B/s"), "16.5 GB/s");
        assert_eq!(rate(307.4e9, "FLOP/s"), "307 GFLOP/s");
        assert_eq!(rate(1.2345e12, "OP/s"), "1.23 TOP/s");
        assert_eq!(rate(4e6, "B/s"), "0.00 GB/s");
    }
}
