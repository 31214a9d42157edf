//! The machine that measures, and what measuring costs it. Read from `/proc`; elsewhere the answers are unknown.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Stored with every result: a number without its machine says little.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model, or the architecture if the system does not name it.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Physical memory.
    pub memory_bytes: Option<u64>,
    /// Operating system and kernel release.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib =
            field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib.map(|kib| kib * 1024),
            system: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease").trim())
                .trim_end()
                .to_owned(),
        }
    }
}

/// Processor time of the client since some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTime {
    /// Time the calling thread was on a processor.
    pub ran: Duration,
    /// Time it waited for one while it could have run.
    pub waited: Duration,
    /// Time on a processor of all threads of the process together.
    pub process: Duration,
}

impl CpuTime {
    /// Since the thread and the process began.
    pub fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let mut numbers = text.split_whitespace().map(|number| number.parse().map(Duration::from_nanos));
        let (ran, waited) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let process = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(Self { ran, waited, process: Duration::try_from(process).ok()? })
    }

    /// What was added since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
            process: self.process.saturating_sub(before.process),
        }
    }
}
