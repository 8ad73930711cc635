//! What this machine can do: the ceilings that kernels are measured against, for benchmarks and `doctor`.

use crate::vecops::sum_lanes;
use crate::{Cpu, Isa, LANES, Level, Matrix, Op, WeightFormat};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// A figure is taken from this many measurements ..
const REPEATS: usize = 9;
/// .. each of which goes on for at least this long: short enough to be spared by other processes now and then.
const LEAST: Duration = Duration::from_millis(3);

/// Reads `bytes` of memory on `threads` threads, again and again, in the order in which weights are read; GB/s.
///
/// The median of several measurements: bandwidth is shared with other machines and drifts. Choose `bytes` several times the size of the last cache to measure memory.
pub fn read_bandwidth(threads: usize, bytes: usize) -> f64 {
    const INPUTS: usize = 256;
    let cpu = Cpu::new(Level::best(), threads);
    let outputs = (bytes / size_of::<f32>() / INPUTS).max(1);
    // A matrix, so that alignment and page size are those of weights.
    let memory = Matrix::pack(outputs, INPUTS, WeightFormat::F32, &cpu, |o, row| row.fill(o as f32));
    let (words, _) = memory.weights::<f32>().as_chunks::<LANES>();
    let share = words.len().div_ceil(8 * threads);
    let pass = || {
        cpu.run(words.len().div_ceil(share), &|i| {
            let part = &words[i * share..words.len().min((i + 1) * share)];
            black_box(cpu.level().dispatch(Read(part)));
        });
    };
    per_second(memory.bytes() as f64, pass)[REPEATS / 2] / 1e9
}

/// f32 multiply-adds on `threads` threads with nothing but registers, two operations each; GFLOP/s.
///
/// The best of several measurements: a peak is what the processor can do when it is left alone.
pub fn fma_peak(level: Level, threads: usize) -> f64 {
    const ROUNDS: usize = 5_000;
    let cpu = Cpu::new(level, threads);
    let tasks = 4 * threads;
    let pass = || {
        cpu.run(tasks, &|_| {
            black_box(level.dispatch(Multiply(ROUNDS)));
        });
    };
    per_second((2 * LANES * Multiply::CHAINS * ROUNDS * tasks) as f64, pass)[REPEATS - 1] / 1e9
}

/// Dot products of bytes on `threads` threads with nothing but registers, as products of integer weights have them, two operations per
/// multiply-add; GOP/s. The best of several measurements.
pub fn int8_peak(level: Level, threads: usize) -> f64 {
    const ROUNDS: usize = 5_000;
    let cpu = Cpu::new(level, threads);
    let tasks = 4 * threads;
    let pass = || {
        cpu.run(tasks, &|_| {
            black_box(level.dispatch_dot(Dot(ROUNDS)));
        });
    };
    per_second((2 * 4 * LANES * Dot::CHAINS * ROUNDS * tasks) as f64, pass)[REPEATS - 1] / 1e9
}

/// `amount` per second of `pass`, in ascending order.
fn per_second(amount: f64, pass: impl Fn()) -> [f64; REPEATS] {
    pass();
    let mut rates = [0.0; REPEATS];
    for rate in &mut rates {
        let (begun, mut passes) = (Instant::now(), 0);
        while begun.elapsed() < LEAST {
            pass();
            passes += 1;
        }
        *rate = amount * f64::from(passes) / begun.elapsed().as_secs_f64();
    }
    rates.sort_by(f64::total_cmp);
    rates
}

struct Read<'a>(&'a [[f32; LANES]]);

impl Op for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut sums = [isa.splat(0.0); 8];
        let (groups, rest) = self.0.as_chunks::<8>();
        for group in groups {
            for (sum, lanes) in sums.iter_mut().zip(group) {
                *sum = isa.add(*sum, isa.load(lanes));
            }
        }
        for lanes in rest {
            sums[0] = isa.add(sums[0], isa.load(lanes));
        }
        sums.iter().map(|&v| sum_lanes(isa, v)).sum()
    }
}

struct Multiply(usize);

impl Multiply {
    /// Independent chains: enough for the latency of every processor, few enough for 16 registers of 8 lanes.
    const CHAINS: usize = 6;
}

impl Op for Multiply {
    type Output = f32;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let factor = isa.splat(black_box(0.999));
        let term = isa.splat(black_box(0.001));
        // Different lanes: of equal ones the compiler would compute one half.
        let mut sums = [(); Self::CHAINS].map(|()| isa.load(&black_box(std::array::from_fn(|i| i as f32))));
        for _ in 0..self.0 {
            for sum in &mut sums {
                // Added to in place, as sums in matrix products are: the only form that Arm has.
                *sum = isa.fma(factor, term, *sum);
            }
        }
        sums.iter().map(|&v| sum_lanes(isa, v)).sum()
    }
}

struct Dot(usize);

impl Dot {
    /// As for [`Multiply`].
    const CHAINS: usize = 6;
}

impl Op for Dot {
    type Output = f32;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let w = isa.load_q(&black_box([129; 64]));
        let x = black_box([1, 2, 3, 4]);
        let mut sums = [(); Self::CHAINS].map(|()| isa.splat_n(black_box(0)));
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = isa.dot4(*sum, w, x);
            }
        }
        sums.iter().map(|&n| sum_lanes(isa, isa.to_f32(n))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_positive() {
        if !cfg!(miri) {
            assert!(read_bandwidth(2, 1 << 20) > 0.0);
            assert!(fma_peak(Level::best(), 1) > 0.0);
            Level::available().into_iter().for_each(|level| assert!(int8_peak(level, 1) > 0.0));
        }
    }
}
