//! How near the matrix kernels come to what this machine can do.
//!
//!     cargo run --release -p spikelet-simd --example roofline -- [threads] [shape filter]
//!
//! Weights come from memory: every shape is repeated until the copies are several times the size of the last cache. Kernels
//! and the bandwidth they are compared with are measured in turns, because both drift on shared machines.

use spikelet_simd::{Cpu, Level, Matrix, WeightFormat, measure};
use std::time::Instant;

const MEMORY: usize = 256 << 20;
const SHAPES: [(usize, usize); 4] = [(768, 768), (3072, 768), (768, 3072), (50277, 768)];
const FORMATS: [WeightFormat; 5] =
    [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4];
const TOKENS: [usize; 5] = [1, 2, 3, 4, 8];
const PREFILL: usize = 512;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(f: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    f();
    begun.elapsed().as_secs_f64()
}

/// Small numbers without a pattern.
fn noise(i: usize) -> f32 {
    (i.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) as f32 / 65536.0 - 0.5
}

fn matrices(cpu: &Cpu, outputs: usize, inputs: usize, format: WeightFormat) -> Vec<Matrix> {
    let make = || {
        Matrix::pack(outputs, inputs, format, cpu, |o, row| {
            (0..).zip(row).for_each(|(i, w)| *w = noise(o * inputs + i))
        })
    };
    let first = make();
    let copies = (MEMORY / first.bytes()).max(1);
    std::iter::once(first).chain((1..copies).map(|_| make())).collect()
}

fn report(cpu: &Cpu, outputs: usize, inputs: usize, format: WeightFormat, peak: f64) {
    let weights = matrices(cpu, outputs, inputs, format);
    let bytes: usize = weights.iter().map(Matrix::bytes).sum();
    let x: Vec<f32> = (0..PREFILL * inputs).map(noise).collect();
    let mut y = vec![0.0; PREFILL * outputs];
    let mut pass = |n: usize| {
        let (x, y) = (&x[..n * inputs], &mut y[..n * outputs]);
        seconds(|| weights.iter().for_each(|w| cpu.matmul(w, x, n, y)))
    };

    let mut times = TOKENS.map(|_| Vec::new());
    let mut bandwidth = Vec::new();
    for _ in 0..7 {
        for (times, n) in times.iter_mut().zip(TOKENS) {
            times.push(pass(n));
        }
        bandwidth.push(measure::read_bandwidth(cpu.threads(), MEMORY));
    }
    let times = times.map(median);
    let read = bytes as f64 / times[0] / 1e9;
    let bandwidth = median(bandwidth);
    print!(
        "{outputs:>5}x{inputs:<5}{:<5}{read:6.1} GB/s = {:3.0}% of {bandwidth:5.1};",
        format!("{format:?}"),
        100.0 * read / bandwidth
    );
    for (n, time) in TOKENS.iter().zip(times).skip(1) {
        print!(" x{:4.2} (n={n})", time / times[0]);
    }

    let one = &weights[..1];
    let flops = (2 * PREFILL * inputs * outputs) as f64;
    let prefill =
        median((0..5).map(|_| seconds(|| one.iter().for_each(|w| cpu.matmul(w, &x, PREFILL, &mut y)))).collect());
    println!("; n={PREFILL}: {:5.1} GFLOP/s = {:3.0}%", flops / prefill / 1e9, 100.0 * flops / prefill / 1e9 / peak);
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    let filter = args.next().unwrap_or_default();
    let level = Level::detect().unwrap_or_else(|error| panic!("{error}"));
    let cpu = Cpu::new(level, threads);
    let peak = measure::fma_peak(level, threads);
    println!("{} x{threads}: {peak:.0} GFLOP/s", level.name());
    for (outputs, inputs) in SHAPES {
        for format in FORMATS {
            if format!("{outputs}x{inputs} {format:?}").contains(&filter) {
                report(&cpu, outputs, inputs, format, peak);
            }
        }
    }
}
