//! The conformance list of backends, for every instruction set this machine has and with one, two and three threads.

use pelton_backend::{DType, conformance};
use pelton_cpu::{CpuBackend, CpuConfig, IsaChoice};

/// Runs `check` on every instruction set and number of threads, and says which ran.
fn on_every_machine(check: impl Fn(&CpuBackend, conformance::Precision)) {
    for isa in IsaChoice::NAMED {
        let missing = isa.missing();
        if !missing.is_empty() {
            println!("{isa}: not run, this CPU lacks {}", missing.join(", "));
            continue;
        }
        for threads in [1, 2, 3] {
            let backend = CpuBackend::new(CpuConfig { threads: Some(threads), isa, pin: false }).unwrap();
            let rounds = matches!(isa, IsaChoice::Avx512Bf16 | IsaChoice::Amx);
            let beside_bf16 = if rounds { DType::BF16 } else { DType::F32 };
            check(&backend, conformance::Precision { beside_bf16 });
        }
        println!("{isa}: ran with 1, 2 and 3 threads");
    }
}

#[test]
fn loading() {
    on_every_machine(|backend, _| conformance::loading(backend));
}

#[test]
fn embed() {
    on_every_machine(|backend, _| conformance::embed(backend));
}

#[test]
fn take_rows() {
    on_every_machine(|backend, _| conformance::take_rows(backend));
}

#[test]
fn norm() {
    on_every_machine(|backend, _| conformance::norm(backend));
}

#[test]
fn add_norm() {
    on_every_machine(|backend, _| conformance::add_norm(backend));
}

#[test]
fn norm_heads() {
    on_every_machine(|backend, _| conformance::norm_heads(backend));
}

#[test]
fn add_positions() {
    on_every_machine(|backend, _| conformance::add_positions(backend));
}

#[test]
fn scale() {
    on_every_machine(|backend, _| conformance::scale(backend));
}

#[test]
fn activate() {
    on_every_machine(|backend, _| conformance::activate(backend));
}

#[test]
fn experts() {
    on_every_machine(|backend, _| conformance::experts(backend));
}

#[test]
fn experts_are_batch_invariant() {
    on_every_machine(|backend, _| conformance::experts_are_batch_invariant(backend));
}

#[test]
fn rope() {
    on_every_machine(|backend, _| conformance::rope(backend));
}

#[test]
fn gate() {
    on_every_machine(|backend, _| conformance::gate(backend));
}

#[test]
fn pointwise_is_batch_invariant() {
    on_every_machine(|backend, _| conformance::pointwise_is_batch_invariant(backend));
}

#[test]
fn linear() {
    on_every_machine(conformance::linear);
}

#[test]
fn linear_is_batch_invariant() {
    on_every_machine(|backend, _| conformance::linear_is_batch_invariant(backend));
}

#[test]
fn grouped() {
    on_every_machine(|backend, _| conformance::grouped(backend));
}

#[test]
fn attention() {
    on_every_machine(conformance::attention);
}

#[test]
fn attention_is_batch_invariant() {
    on_every_machine(|backend, _| conformance::attention_is_batch_invariant(backend));
}

#[test]
fn adapters() {
    on_every_machine(|backend, _| conformance::adapters(backend));
}

#[test]
fn adapters_are_batch_invariant() {
    on_every_machine(|backend, _| conformance::adapters_are_batch_invariant(backend));
}
