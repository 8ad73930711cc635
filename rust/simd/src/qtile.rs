//! The tile kernel of products with integer weights, and the integer form of the activations.
//!
//! The definition, which every path follows to the bit: activations become integers per token and block of 64 inputs,
//! `code = round(x * (127 / amax))` with `amax` the largest magnitude of the block and ties to even, standing for
//! `code * (amax / 127)`. An output is `acc`, where `acc` starts at +0.0 and `acc = fma(scale, sum * (amax / 127), acc)` for each
//! block in ascending order; `sum` is the exact integer sum of weight times code, and `scale` is that of block and output.

use crate::pack::PANEL;
pub(crate) use crate::tile::BLOCK;
use crate::tile::clear;
use crate::vecops::fold_lanes;
use crate::{Isa, LANES};
use std::ops::Range;

/// Values of 4-bit weights, by code.
const VALUES: [i8; 16] = crate::quant::TABLE;
/// The same plus 128, as [`Isa::load_nibbles`] wants them.
const TABLE: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (VALUES[i] as u8) ^ 0x80;
        i += 1;
    }
    table
};
/// Bytes of a panel's scales for one block, bf16: they lie before the block's codes.
pub(crate) const SCALE_BYTES: usize = PANEL * 2;
/// Blocks of 4-bit weights that are fetched ahead of time in tiles of at least so many tokens: from there on arithmetic takes longer than
/// memory, and the two must overlap. (8-bit weights do better when left to the processor.)
const AHEAD_BLOCKS: usize = 2;
const AHEAD_FROM_TOKENS: usize = 5;
/// Added to a small number, this leaves its nearest integer, ties to even, in the low bits.
const MAGIC: f32 = 12_582_912.0;
const LARGEST: f32 = 127.0;

/// Bytes of one block of one panel, scales included.
pub(crate) const fn block_bytes<const NIBBLES: bool>() -> usize {
    SCALE_BYTES + PANEL * BLOCK / if NIBBLES { 2 } else { 1 }
}

/// Integer activations: for each token `blocks` times 64 codes, and for each block a scale and the sum of its codes.
#[derive(Default)]
pub(crate) struct Codes {
    pub codes: Vec<i8>,
    pub scales: Vec<f32>,
    pub sums: Vec<i32>,
}

impl Codes {
    /// Makes room for `n` tokens of `blocks` blocks, of which a token's codes lie `stride` apart.
    pub(crate) fn prepare(&mut self, n: usize, blocks: usize, stride: usize) {
        grow(&mut self.codes, n * stride);
        grow(&mut self.scales, n * blocks);
        grow(&mut self.sums, n * blocks);
    }
}

/// Makes room for `len` elements; keeps what memory there is.
pub(crate) fn grow<T: Default + Clone>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Turns one block of activations into codes; returns scale and sum. A value that is not finite makes the scale NaN, so that it
/// reaches the outputs.
#[inline(always)]
pub(crate) fn encode<I: Isa>(isa: I, x: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> (f32, i32) {
    let zero = isa.splat(0.0);
    let (parts, _) = x.as_chunks::<LANES>();
    let (mut largest, mut poison) = (zero, zero);
    for part in parts {
        let v = isa.load(part);
        largest = isa.max(isa.max(v, isa.sub(zero, v)), largest);
        poison = isa.fma(v, zero, poison);
    }
    let amax = fold_lanes(isa, largest, |a, b| if b > a { b } else { a });
    // Zero, or NaN: the order does not matter.
    let poison = fold_lanes(isa, poison, |a, b| a + b);
    // The smallest magnitudes have no reciprocal in f32; such a block is zero beside everything else.
    let factor = if amax >= f32::MIN_POSITIVE * 256.0 { LARGEST / amax } else { 0.0 };
    for (part, codes) in parts.iter().zip(codes.as_chunks_mut::<LANES>().0) {
        let v = isa.mul(isa.load(part), isa.splat(factor));
        // `max` gives its second operand where the first is NaN, so every value ends up in range.
        let v = isa.max(v, isa.splat(-LARGEST));
        let v = isa.select_gt(v, isa.splat(LARGEST), isa.splat(LARGEST), v);
        *codes = isa.to_array(isa.add(v, isa.splat(MAGIC))).map(|lane| lane.to_bits() as i8);
    }
    let sum = codes.iter().map(|&code| i32::from(code)).sum();
    let scale = if factor > 0.0 { amax / LARGEST } else { 0.0 };
    (scale + poison, sum)
}

/// What a tile reads and adds to.
#[derive(Clone, Copy)]
pub(crate) struct DotTile {
    /// First block of the first panel.
    pub w: *const u8,
    /// Bytes between panels.
    pub panel: usize,
    /// Codes of block 0 of the first token.
    pub x: *const i8,
    pub x_stride: usize,
    /// Scale and sum of block 0 of the first token; `per_token` from one token to the next.
    pub scales: *const f32,
    pub sums: *const i32,
    pub per_token: usize,
    pub acc: *mut f32,
    pub acc_stride: usize,
}

/// `P` panels by `V` vectors, from `FIRST` on, by `T` tokens: adds the given blocks to `acc`, which counts as zero if `fresh`.
///
/// # Safety
/// For all panels, vectors, tokens and blocks visited, the pointers must be valid: `acc` to write, the others to read.
#[allow(clippy::needless_range_loop)] // constant bounds over arrays that become registers
#[inline(always)]
pub(crate) unsafe fn dot_tile<
    I: Isa,
    const NIBBLES: bool,
    const P: usize,
    const FIRST: usize,
    const V: usize,
    const T: usize,
>(
    isa: I,
    a: DotTile,
    blocks: Range<usize>,
    fresh: bool,
) {
    let acc_at = |p: usize, t: usize, v: usize| {
        a.acc.wrapping_add(t * a.acc_stride + p * PANEL + (FIRST + v) * LANES).cast::<[f32; LANES]>()
    };
    if fresh && blocks.is_empty() {
        // SAFETY: `acc` is valid for these by the caller's promise.
        unsafe { clear::<I, P, FIRST, V, T>(isa, a.acc, a.acc_stride) };
    }
    let first = blocks.start;
    for b in blocks {
        let block_at = |p: usize| a.w.wrapping_add(p * a.panel + b * block_bytes::<NIBBLES>());
        let mut sum = [[[isa.splat_n(0); V]; T]; P];
        if I::DOT_OFFSET != 0 {
            for t in 0..T {
                // SAFETY: a block's sum of a token.
                let start = isa.splat_n(-I::DOT_OFFSET * unsafe { *a.sums.add(t * a.per_token + b) });
                for p in 0..P {
                    sum[p][t] = [start; V];
                }
            }
        }
        let groups = BLOCK / 4;
        let step = if NIBBLES { 2 } else { 1 };
        for g in (0..groups).step_by(step) {
            for p in 0..P {
                let line = block_at(p).wrapping_add(SCALE_BYTES + g / step * PANEL * 4);
                for v in 0..V {
                    if NIBBLES && T >= AHEAD_FROM_TOKENS {
                        isa.prefetch(
                            line.wrapping_add((FIRST + v) * 64 + AHEAD_BLOCKS * block_bytes::<NIBBLES>()),
                            true,
                        );
                    }
                    // SAFETY: a line of the block.
                    let w = unsafe { &*line.add((FIRST + v) * 64).cast::<[u8; 64]>() };
                    let w = if NIBBLES {
                        let (low, high) = isa.load_nibbles(w, &TABLE);
                        [low, high]
                    } else {
                        [isa.load_q(w); 2]
                    };
                    for half in 0..step {
                        for t in 0..T {
                            // SAFETY: four codes of a token's block.
                            let x = unsafe { *a.x.add(t * a.x_stride + b * BLOCK + (g + half) * 4).cast::<[i8; 4]>() };
                            sum[p][t][v] = isa.dot4(sum[p][t][v], w[half], x);
                        }
                    }
                }
            }
        }
        for p in 0..P {
            for v in 0..V {
                // SAFETY: the block's scales; they lie at an even address.
                let scale = isa.load_bf16(unsafe { &*block_at(p).add((FIRST + v) * LANES * 2).cast::<[u16; LANES]>() });
                for t in 0..T {
                    // SAFETY: a block's scale of a token.
                    let x = isa.splat(unsafe { *a.scales.add(t * a.per_token + b) });
                    // Not kept in registers between blocks: those are for `sum`.
                    // SAFETY: `acc` is valid for these by the caller's promise.
                    let at = unsafe { &mut *acc_at(p, t, v) };
                    let acc = if fresh && b == first { isa.splat(0.0) } else { isa.load(at) };
                    isa.store(isa.fma(scale, isa.mul(isa.to_f32(sum[p][t][v]), x), acc), at);
                }
            }
        }
    }
}
