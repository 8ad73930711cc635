//! Exact CPU kernels for SpikeGPT and RWKV inference.
//!
//! *Exact* means: a result is a function of the numbers that go in, and of nothing else. It has the same bits on every
//! instruction set, for every number of tokens in a pass and for every number of threads. A spiking network needs this,
//! because one differing last bit can move a neuron over its threshold and change the whole text.
//!
//! How that is reached:
//!
//! - Everything is written once over [`Isa`], a virtual vector of 16 lanes: one AVX-512 register, two AVX registers, four
//!   NEON registers, or an array. An `Isa` is a value that proves that the processor has the instructions; nothing else can call them.
//! - Matrix products vectorise over *outputs*. Each output is one chain of fused multiply-adds over the inputs in ascending
//!   order, cut into blocks of 64 (see [`matmul`]).
//! - Sums over channels use 16 virtual lanes and one fixed tree; `exp` is our own polynomial (see [`vecops`]).
//!
//! This holds in the floating-point environment that every thread starts with: round to nearest, subnormals kept.
//!
//! Layers, from the ground up: [`portable`], `avx2`, `avx512`, `neon` (intrinsics only), [`vecops`], [`mod@line`], [`race`], [`quant`], [`encode`], [`pack`], [`tile`], [`qtile`],
//! [`matmul`], [`qmatmul`], [`recurrence`], [`pool`], [`products`], and [`Cpu`], which joins an instruction set with threads and is what callers use.
//!
//! ```
//! use spikelet_simd::{Cpu, Level, Matrix, WeightFormat};
//!
//! let cpu = Cpu::new(Level::best(), 2);
//! // Two outputs, three inputs: row `o` is [o + 1, 0, 2].
//! let w = Matrix::pack(2, 3, WeightFormat::F32, &cpu, |o, row| row.copy_from_slice(&[o as f32 + 1.0, 0.0, 2.0]));
//! let mut y = [f32::NAN; 2];
//! cpu.matmul(&w, &[1.0, 10.0, 0.5], 1, &mut y);
//! assert_eq!(y, [2.0, 3.0]);
//! ```

// Items that `train` and the tools need are public inside the crate; what users call is re-exported below.
#![warn(rustdoc::broken_intra_doc_links)]
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod buffer;
pub mod convert;
mod cpu;
mod encode;
mod interleave;
mod level;
mod line;
mod matmul;
pub mod measure;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod pool;
mod portable;
mod products;
mod qmatmul;
mod qtile;
pub mod quant;
mod race;
mod recurrence;
#[cfg(test)]
mod same_bits;
mod shared;
mod tile;
pub mod train;
mod vecops;

pub use cpu::Cpu;
pub use level::{IsaError, Level};
pub use line::{UNITS, at_least, first_at_least, greatest_of_16, normalise, sum, survey, units, units_of, weigh};
pub use pack::{Matrix, WeightFormat};
pub use pool::physical_cores;
pub use products::Linear;
pub use race::{Race, philox};
pub use vecops::{argmax, exp_in_place, expf, log_of_sum, log_sum_exp, sigmoidf};

/// Lanes of the virtual vector.
pub(crate) const LANES: usize = 16;

/// An instruction set. Holding a value proves that this processor has it, so the operations are safe to call.
///
/// The operations mean the same bits on every instruction set (only the payload of a NaN may differ). Methods must be
/// inlined into a function that enables the instructions, which is what [`Level::dispatch`] provides: kernels are `#[inline(always)]` too.
pub(crate) trait Isa: Copy + Send + Sync {
    /// 16 lanes of f32.
    type V: Copy;
    /// 16 lanes of i32.
    type N: Copy;
    /// Integer weights of 16 outputs times 4 inputs, as [`Isa::dot4`] takes them.
    type Q: Copy;

    /// Vectors of 16 outputs that the matrix kernel keeps in registers for one token (at most 2).
    const TILE_VECTORS: usize;
    /// Tokens whose sums of `TILE_VECTORS` vectors fit the registers.
    const TILE_TOKENS: usize;
    /// The same for integer weights.
    const DOT_TOKENS: usize;
    /// What `dot4` takes too much for a weight, because its instruction wants weights without a sign: 128, or 0 where it does not.
    const DOT_OFFSET: i32;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// 16 bfloat16 as f32; exact.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::V;
    /// The same of those in the lower halves of 16 words.
    fn load_bf16_low(self, x: &[[u8; 4]; LANES]) -> Self::V;
    /// The same of those in the upper halves.
    fn load_bf16_high(self, x: &[[u8; 4]; LANES]) -> Self::V;
    /// 16 IEEE half floats as f32; exact.
    fn load_f16(self, x: &[u16; LANES]) -> Self::V;

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: the second operand where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { yes } else { no }` in every lane.
    fn select_gt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `if a >= b { yes } else { no }` in every lane.
    fn select_ge(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `if x is NaN { yes } else { no }` in every lane.
    fn select_nan(self, x: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `p * 2^n` where `n` sits in the low bits of `magic`, that is `magic = 1.5 * 2^23 + n`. The exponent of `p` is moved by
    /// integer addition: the caller sees to it that the result is a normal number.
    fn scale_exponent(self, p: Self::V, magic: Self::V) -> Self::V;
    fn splat_n(self, x: i32) -> Self::N;
    /// To the nearest f32; exact up to 2^24.
    fn to_f32(self, n: Self::N) -> Self::V;
    fn load_n(self, x: &[u32; LANES]) -> Self::N;
    /// Whatever goes beyond 32 bits is lost.
    fn add_n(self, a: Self::N, b: Self::N) -> Self::N;
    fn xor_n(self, a: Self::N, b: Self::N) -> Self::N;
    /// Products of numbers without a sign: their upper 32 bits, and their lower ones.
    fn mul_wide(self, a: Self::N, b: Self::N) -> (Self::N, Self::N);
    /// Lanes in turns: `a0 b0 a1 b1 .. a7 b7`, and `a8 b8 .. a15 b15`.
    fn zip_n(self, a: Self::N, b: Self::N) -> (Self::N, Self::N);
    /// Whether `a >= b` in some lane.
    fn any_ge(self, a: Self::V, b: Self::V) -> bool;
    /// 64 weights, each stored as itself plus 128: byte `4 o + i` is that of output `o` and input `i`.
    fn load_q(self, w: &[u8; 64]) -> Self::Q;
    /// 128 weights, each stored as the index of its value (plus 128) in `table`: the lower halves of the bytes, then the upper ones.
    fn load_nibbles(self, w: &[u8; 64], table: &[u8; 16]) -> (Self::Q, Self::Q);
    /// `n + sum of (weight + DOT_OFFSET) * x[i]` over 4 inputs: exact for weights and `x` in -127..=127.
    fn dot4(self, n: Self::N, w: Self::Q, x: [i8; 4]) -> Self::N;
    /// Asks for the cache line at `at` (which may lie outside any allocation): into the first level cache, or only the second.
    fn prefetch<T>(self, at: *const T, near: bool);

    /// Up to 16 values; lanes beyond the slice hold `fill`.
    #[inline(always)]
    fn load_part(self, x: &[f32], fill: f32) -> Self::V {
        if let Some(whole) = x.first_chunk::<LANES>() {
            return self.load(whole);
        }
        let mut lanes = [fill; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first `min(16, to.len())` lanes.
    #[inline(always)]
    fn store_part(self, v: Self::V, to: &mut [f32]) {
        if let Some(whole) = to.first_chunk_mut::<LANES>() {
            return self.store(v, whole);
        }
        let len = to.len();
        to.copy_from_slice(&self.to_array(v)[..len]);
    }

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        lanes
    }
}

/// A computation that is compiled once per instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Op {
    type Output;
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Runs a block on every instruction set that this processor has, the portable one included.
#[cfg(test)]
pub(crate) fn for_each_isa(mut test: impl FnMut(Level)) {
    for level in Level::available() {
        test(level);
    }
}

/// The test suite's source of numbers: small, seeded and the same everywhere.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) struct Rng(pub u64);

    impl Rng {
        pub(crate) fn next_u32(&mut self) -> u32 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as u32
        }

        /// Uniform in [-1, 1).
        pub(crate) fn unit(&mut self) -> f32 {
            (self.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
        }

        pub(crate) fn vec(&mut self, len: usize) -> Vec<f32> {
            (0..len).map(|_| self.unit()).collect()
        }
    }

    /// Equal bits, any NaN being equal to any other.
    #[track_caller]
    pub(crate) fn assert_same_bits(found: &[f32], wanted: &[f32], what: &str) {
        assert_eq!(found.len(), wanted.len(), "{what}: length");
        for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
            let same = f.to_bits() == w.to_bits() || (f.is_nan() && w.is_nan());
            assert!(same, "{what}: element {i}: found {f:e}, wanted {w:e}");
        }
    }
}
