//! Criterion benchmarks of the kernels by themselves, at the shapes of a model of 768 channels.
//!
//!     cargo bench -p spikelet-benches -- [filter]
//!
//! They are for comparing a change with what was before it: `--save-baseline before`, then `--baseline before`. How near the
//! matrix kernels come to what the machine can do is told by the example `roofline`, which measures bandwidth in the same turns.
//!
//! Throughput is bytes of weights for products and elements for the rest. Weights come from memory: there are copies enough
//! to fill several caches, and every iteration takes the next one.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spikelet_simd::{Cpu, Level, Matrix, WeightFormat};
use std::hint::black_box;
use std::time::Duration;

const CHANNELS: usize = 768;
const WIDE: usize = 4 * CHANNELS;
/// Copies of a matrix take at least this many bytes together.
const MEMORY: usize = 128 << 20;
const FORMATS: [WeightFormat; 5] =
    [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4];
const TOKENS: [usize; 4] = [1, 4, 8, 64];

/// Small numbers without a pattern, in [-0.5, 0.5).
fn noise(i: usize) -> f32 {
    (i.wrapping_mul(0x9e37_79b9) >> 7 & 0xffff) as f32 / 65536.0 - 0.5
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(noise).collect()
}

fn matrices(cpu: &Cpu, outputs: usize, inputs: usize, format: WeightFormat) -> Vec<Matrix> {
    let make = || {
        Matrix::pack(outputs, inputs, format, cpu, |o, row| {
            (0..).zip(row).for_each(|(i, w)| *w = noise(o * inputs + i))
        })
    };
    let first = make();
    let copies = MEMORY.div_ceil(first.bytes());
    std::iter::once(first).chain((1..copies).map(|_| make())).collect()
}

/// `ffn.key` in every format: one token, a verified draft, the widest streamed pass, a short prompt.
fn matmul(criterion: &mut Criterion) {
    let cpu = Cpu::new(Level::best(), 1);
    let mut group = criterion.benchmark_group("matmul");
    for format in FORMATS {
        let weights = matrices(&cpu, WIDE, CHANNELS, format);
        let mut next = weights.iter().cycle();
        group.throughput(Throughput::Bytes(weights[0].bytes() as u64));
        for n in TOKENS {
            let (x, mut y) = (numbers(n * CHANNELS), vec![0.0; n * WIDE]);
            group.bench_function(BenchmarkId::new(format!("{format:?}"), n), |bench| {
                bench.iter(|| next.by_ref().take(1).for_each(|w| cpu.matmul(w, &x, n, black_box(&mut y))));
            });
        }
    }
    group.finish();
}

/// `ffn.value` after relu² left 30 % of its inputs.
fn matmul_sparse(criterion: &mut Criterion) {
    let cpu = Cpu::new(Level::best(), 1);
    let mut group = criterion.benchmark_group("matmul_sparse");
    for format in FORMATS {
        let weights = matrices(&cpu, CHANNELS, WIDE, format);
        let mut next = weights.iter().cycle();
        group.throughput(Throughput::Bytes(weights[0].bytes() as u64));
        for n in [1, 4] {
            let x: Vec<f32> = (0..n * WIDE).map(|i| (noise(i) - 0.2).max(0.0)).collect();
            let mut y = vec![0.0; n * CHANNELS];
            group.bench_function(BenchmarkId::new(format!("{format:?}"), n), |bench| {
                bench.iter(|| next.by_ref().take(1).for_each(|w| cpu.matmul_sparse(w, &x, n, black_box(&mut y))));
            });
        }
    }
    group.finish();
}

/// What a layer does besides, for one token and for a chunk of a prompt.
fn elementwise(criterion: &mut Criterion) {
    let cpu = Cpu::new(Level::best(), 1);
    let vector = numbers(CHANNELS);
    let decay: Vec<f32> = vector.iter().map(|w| -w.exp()).collect();
    for n in [1, 512] {
        let (x, mut y) = (numbers(n * CHANNELS), vec![0.0; n * CHANNELS]);
        let mut group = criterion.benchmark_group(format!("{n} x {CHANNELS}"));
        group.throughput(Throughput::Elements((n * CHANNELS) as u64));
        group.bench_function("layer_norm", |bench| {
            bench.iter(|| cpu.layer_norm(&x, n, &vector, &vector, 1e-5, black_box(&mut y)));
        });
        let mut state = vec![0.0; 3 * CHANNELS];
        group.bench_function("wkv4", |bench| {
            bench.iter(|| cpu.wkv4(&[n], CHANNELS, &decay, &vector, &x, &x, &mut state, None, black_box(&mut y)));
        });
        let mut membrane = vec![0.0; CHANNELS];
        group.bench_function("lif", |bench| {
            bench.iter(|| cpu.lif(&[n], CHANNELS, None, &x, &mut membrane, None, black_box(&mut y)));
        });
        group.finish();
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = kernels; config = settings(); targets = matmul, matmul_sparse, elementwise }
criterion_main!(kernels);
