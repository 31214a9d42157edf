//! What the server runs on, in lines for a bug report.

use pelton_backend::Backend;
use pelton_cpu::CpuBackend;
use pelton_cpu::measure::CpuFacts;
use pelton_model::Size;

use crate::args::serve::ServeArgs;
use crate::env;

/// Version, compiler, CPU, memory, and the environment variables that are set.
pub fn environment(backend: &CpuBackend) -> Vec<String> {
    let cpu = CpuFacts::here();
    let flags: Vec<&str> = cpu.flags.iter().filter(|flag| flag.present).map(|flag| flag.name).collect();
    let memory = backend.memory();
    let mut lines = vec![
        format!("pelton {} for {}, {}", env!("CARGO_PKG_VERSION"), env!("PELTON_TARGET"), env!("PELTON_RUSTC")),
        format!("CPU: {}, {} cores for this process; {}", cpu.model, cpu.cores, flags.join(" ")),
        format!("computes with: {}", backend.describe()),
        format!("memory: {}, {} of it available", Size(memory.total_bytes), Size(memory.available_bytes)),
    ];
    let command = ServeArgs::launcher();
    let names =
        command.get_arguments().filter_map(|arg| Some((arg.get_env()?.to_str()?, arg.is_hide_env_values_set())));
    let settings = env::settings(names);
    lines.push(if settings.is_empty() { "no flag is set by the environment".to_owned() } else { settings.join(" ") });
    lines
}
