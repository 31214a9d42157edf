//! How near linears come to what the machine can give: memory bandwidth with one row, arithmetic with many.
//!
//! `cargo run --release -p pelton-cpu --example linear_speed [threads] [isa]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use pelton_backend::{Backend, DType, DenseWeight, HostTensor, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig, IsaChoice};

const SHAPES: [[usize; 2]; 3] = [[2048, 2048], [5632, 2048], [32_000, 2048]];
const ROWS: [usize; 5] = [1, 8, 32, 128, 512];

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map(|threads| threads.parse().expect("a number of threads"));
    let isa = args.next().map_or(IsaChoice::Auto, |isa| isa.parse().expect("an instruction set"));
    let backend = CpuBackend::new(CpuConfig { threads, isa, pin: false }).expect("a backend");
    println!("{}", backend.describe());
    let bandwidth = read_bandwidth(backend.threads());
    let peak = fma_peak(backend.threads());
    println!("reading {:.1} GB/s, fused multiply-add {:.1} GFLOP/s (measured)", bandwidth / 1e9, peak / 1e9);
    println!(
        "{:>14} {:>5} {:>10} {:>8} {:>7} {:>10} {:>7}",
        "bf16 [n, k]", "m", "time us", "GB/s", "share", "GFLOP/s", "share"
    );
    for [n, k] in SHAPES {
        let values: Vec<u8> =
            (0..n * k).flat_map(|i| half::bf16::from_f32((i % 61) as f32 / 61.0 - 0.5).to_le_bytes()).collect();
        let tensor = HostTensor::new(DType::BF16, vec![n, k], values).expect("a tensor");
        let weight = backend.pack(&[DenseWeight::new(tensor, DType::BF16).expect("a matrix")]).expect("it fits");
        for m in ROWS {
            let x = rows(&backend, m, k);
            let mut out = backend.rows(m, n).expect("it fits");
            let time = best_time(|| backend.linear(&x, &weight, None, &mut out)).as_secs_f64();
            let (bytes, flops) = ((2 * n * k) as f64 / time, (2 * m * n * k) as f64 / time);
            println!(
                "{:>14} {m:>5} {:>10.1} {:>8.1} {:>6.0}% {:>10.1} {:>6.0}%",
                format!("{n} x {k}"),
                time * 1e6,
                bytes / 1e9,
                100.0 * bytes / bandwidth,
                flops / 1e9,
                100.0 * flops / peak
            );
        }
    }
}

/// `m` rows of `k` different numbers.
fn rows(backend: &CpuBackend, m: usize, k: usize) -> <CpuBackend as Backend>::Rows {
    let values: Vec<f32> = (0..m * k).map(|i| (i % 37) as f32 / 37.0 - 0.5).collect();
    let weight = DenseWeight::new(HostTensor::from_f32(vec![m, k], &values), DType::F32).expect("a matrix");
    let table = backend.pack(&[weight]).expect("it fits");
    let batch = StepBatch { token_ids: (0..m as u32).map(TokenId).collect(), ..StepBatch::default() };
    let mut step = backend.step(m).expect("it fits");
    backend.begin(&batch, &mut step);
    let mut out = backend.rows(m, k).expect("it fits");
    backend.embed(&step, &table, &mut out);
    out
}

/// The best of several runs within about a second.
fn best_time(mut work: impl FnMut()) -> Duration {
    let began = Instant::now();
    let mut best = Duration::MAX;
    while best == Duration::MAX || began.elapsed() < Duration::from_millis(700) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
    }
    best
}

/// Bytes per second that all threads together read from memory: 96 MiB each, more than caches hold.
fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 12 << 20;
    let data: Vec<Vec<u64>> = (0..threads).map(|_| vec![1; WORDS]).collect();
    let time = best_time(|| {
        std::thread::scope(|scope| {
            for part in &data {
                scope.spawn(|| black_box(part.iter().fold(0u64, |sum, &x| sum.wrapping_add(x))));
            }
        });
    });
    (threads * 8 * WORDS) as f64 / time.as_secs_f64()
}

/// Floating-point operations per second with operands in registers: of one thread in a quiet moment, times the threads.
fn fma_peak(threads: usize) -> f64 {
    const ROUNDS: usize = 100_000;
    let mut lanes = 0;
    let time = best_time(|| lanes = multiply_add(ROUNDS));
    (threads * 2 * lanes * ROUNDS) as f64 / time.as_secs_f64()
}

/// Ten independent chains in the widest registers; returns the products of one round.
fn multiply_add(rounds: usize) -> usize {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512 F.
        unsafe { multiply_add_avx512(rounds) };
        10 * 16
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has AVX2 and FMA.
        unsafe { multiply_add_avx2(rounds) };
        10 * 8
    } else {
        // Without FMA the share is of nothing in particular.
        black_box((0..rounds).fold(0.5f32, |sum, _| black_box(sum * 0.5 + 0.5)));
        1
    }
}

#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(rounds: usize) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let factor = _mm512_set1_ps(black_box(0.5));
    let mut sums = [factor; 10];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(rounds: usize) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let factor = _mm256_set1_ps(black_box(0.5));
    let mut sums = [factor; 10];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
}
