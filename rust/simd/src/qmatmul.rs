//! Products of integer weights with one or many tokens: the loops over the tile kernel of [`qtile`](crate::qtile), whose
//! definition they follow to the bit. As in [`matmul`](crate::matmul) a few tokens stream and more of them run in blocks.

use crate::matmul::{Edge, MAX_TILE, STREAM_TOKENS, Target, with_tokens};
use crate::pack::PANEL;
use crate::qtile::{BLOCK, Codes, DotTile, block_bytes, dot_tile, encode};
use crate::shared::SharedMut;
use crate::{Isa, Matrix, Op, WeightFormat};
use std::ops::Range;

/// Blocks that many tokens work on at a time: those of a panel fill half of the first level cache.
const CHUNK: usize = 8;

/// Up to this many tokens, reading memory in order matters more than room in the first level cache.
const FEW_TOKENS: usize = 32;

/// Codes of one token lie this far apart: an odd number of cache lines, so that tokens spread over the cache's sets.
pub(crate) fn code_stride(width: usize) -> usize {
    (width.div_ceil(BLOCK) | 1) * BLOCK
}

/// Turns tokens into codes; those of outliers are zero.
pub(crate) struct Encode<'a> {
    pub x: &'a [f32],
    pub width: usize,
    pub outliers: &'a [u32],
    pub tokens: Range<usize>,
    pub codes: &'a SharedMut<'a, i8>,
    pub scales: &'a SharedMut<'a, f32>,
    pub sums: &'a SharedMut<'a, i32>,
}

impl Op for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (blocks, stride) = (self.width.div_ceil(BLOCK), code_stride(self.width));
        for t in self.tokens {
            let x = &self.x[t * self.width..(t + 1) * self.width];
            // SAFETY: each token has its own codes, scales and sums, and belongs to one task.
            let (codes, scales, sums) = unsafe {
                let of_block = t * blocks..(t + 1) * blocks;
                (
                    self.codes.part(t * stride..(t + 1) * stride),
                    self.scales.part(of_block.clone()),
                    self.sums.part(of_block),
                )
            };
            let mut outliers = self.outliers;
            for (b, (x, codes)) in x.chunks(BLOCK).zip(codes.as_chunks_mut::<BLOCK>().0).enumerate() {
                let here = outliers.iter().take_while(|&&i| (i as usize) < (b + 1) * BLOCK).count();
                (scales[b], sums[b]) = match x.first_chunk() {
                    Some(whole) if here == 0 => encode(isa, whole, codes),
                    _ => {
                        let mut rest = [0.0; BLOCK];
                        rest[..x.len()].copy_from_slice(x);
                        outliers[..here].iter().for_each(|&i| rest[i as usize % BLOCK] = 0.0);
                        encode(isa, &rest, codes)
                    }
                };
                outliers = &outliers[here..];
            }
        }
    }
}

/// Outputs of some panels for any number of tokens.
pub(crate) struct Dots<'a> {
    pub w: &'a Matrix,
    pub x: &'a Codes,
    pub n: usize,
    pub y: &'a SharedMut<'a, f32>,
    /// Each panel belongs to one task only.
    pub panels: Range<usize>,
}

impl Op for Dots<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.w.format() {
            WeightFormat::Q4 => dots::<I, true>(isa, self),
            _ => dots::<I, false>(isa, self),
        }
    }
}

/// What tiles read, checked to be there.
struct Parts<'a> {
    weights: &'a [u8],
    x: &'a Codes,
    stride: usize,
    blocks: usize,
    panel_bytes: usize,
}

impl<'a> Parts<'a> {
    #[inline(always)]
    fn of<const NIBBLES: bool>(a: &Dots<'a>) -> Parts<'a> {
        let (inputs, outputs) = (a.w.inputs(), a.w.outputs());
        let (blocks, stride) = (inputs.div_ceil(BLOCK), code_stride(inputs));
        let (weights, panel_bytes) = (a.w.blocks(), blocks * block_bytes::<NIBBLES>());
        assert!(a.n >= 1 && a.y.len() == a.n * outputs);
        assert!(a.panels.end <= outputs.div_ceil(PANEL) && a.panels.end * panel_bytes <= weights.len());
        assert!(a.n * stride <= a.x.codes.len());
        assert!(a.n * blocks <= a.x.scales.len() && a.n * blocks <= a.x.sums.len());
        Parts { weights, x: a.x, stride, blocks, panel_bytes }
    }

    /// The tile that begins at a panel and a token.
    #[inline(always)]
    fn tile(&self, panel: usize, token: usize, acc: (*mut f32, usize)) -> DotTile {
        DotTile {
            w: self.weights.as_ptr().wrapping_add(panel * self.panel_bytes),
            panel: self.panel_bytes,
            x: self.x.codes.as_ptr().wrapping_add(token * self.stride),
            x_stride: self.stride,
            scales: self.x.scales.as_ptr().wrapping_add(token * self.blocks),
            sums: self.x.sums.as_ptr().wrapping_add(token * self.blocks),
            per_token: self.blocks,
            acc: acc.0,
            acc_stride: acc.1,
        }
    }
}

#[inline(always)]
fn dots<I: Isa, const NIBBLES: bool>(isa: I, a: Dots<'_>) {
    let parts = Parts::of::<NIBBLES>(&a);
    let (n, outputs) = (a.n, a.w.outputs());
    // Panel by panel, so that memory is read in order: all inputs of a few tokens, which stay in the first level cache, a chunk of the
    // inputs of many.
    let chunk_blocks = if n <= FEW_TOKENS { parts.blocks.max(1) } else { CHUNK };
    // Tiles of nearly equal size, so that none is too small to be fast.
    let tiles = n.div_ceil(STREAM_TOKENS);
    let mut edge: Edge = [[0.0; PANEL]; MAX_TILE];
    for chunk in 0..parts.blocks.div_ceil(chunk_blocks).max(1) {
        let blocks = chunk * chunk_blocks..parts.blocks.min((chunk + 1) * chunk_blocks);
        for panel in a.panels.clone() {
            let target = Target { y: a.y, outputs, panel };
            for i in 0..tiles {
                let tokens = i * n / tiles..(i + 1) * n / tiles;
                target.take(&mut edge, tokens.clone());
                let to = parts.tile(panel, tokens.start, target.sums(&mut edge, tokens.start));
                // SAFETY: a panel of this task, full or summed up in `edge`; `Parts` has checked the sizes.
                unsafe { one_panel::<I, NIBBLES>(isa, to, tokens.len(), blocks.clone(), chunk == 0) };
                target.give(&edge, tokens);
            }
        }
    }
}

/// One panel, up to 8 tokens.
///
/// # Safety
/// As for `dot_tile` with one panel, two vectors and `n` tokens.
#[inline(always)]
unsafe fn one_panel<I: Isa, const NIBBLES: bool>(isa: I, to: DotTile, n: usize, blocks: Range<usize>, fresh: bool) {
    macro_rules! whole {
        ([$($k:literal)*]) => {
            // SAFETY: what the caller vouches for.
            with_tokens!(n, T, [$($k)*], unsafe { dot_tile::<I, NIBBLES, 1, 0, 2, T>(isa, to, blocks, fresh) })
        };
    }
    if (I::TILE_VECTORS, I::DOT_TOKENS) == (2, 8) {
        return whole!([1 2 3 4 5 6 7 8]);
    }
    // Block by block, while it is in the first level cache, half a panel and a few tokens at a time.
    let parts = n.div_ceil(I::DOT_TOKENS);
    let first = blocks.start;
    for b in first..blocks.end.max(first + 1) {
        let block = || b..blocks.end.min(b + 1);
        for part in 0..parts {
            let (start, end) = (part * n / parts, (part + 1) * n / parts);
            let to = DotTile {
                x: to.x.wrapping_add(start * to.x_stride),
                scales: to.scales.wrapping_add(start * to.per_token),
                sums: to.sums.wrapping_add(start * to.per_token),
                acc: to.acc.wrapping_add(start * to.acc_stride),
                ..to
            };
            let fresh = fresh && b == first;
            // SAFETY: a part of what the caller vouches for.
            with_tokens!(end - start, T, [1 2 3 4], unsafe {
                dot_tile::<I, NIBBLES, 1, 0, 1, T>(isa, to, block(), fresh);
                dot_tile::<I, NIBBLES, 1, 1, 1, T>(isa, to, block(), fresh);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{self, QuantizedView, TABLE};
    use crate::testing::{Rng, assert_same_bits};
    use crate::{Cpu, Level, convert};

    /// Codes and scales as in a file, and the matrix packed from them.
    struct Weights {
        values: Vec<i32>,
        scales: Vec<f32>,
        outliers: Vec<u32>,
        outlier_weights: Vec<f32>,
        matrix: Matrix,
    }

    fn random(rng: &mut Rng, outputs: usize, inputs: usize, format: WeightFormat, outliers: &[u32]) -> Weights {
        let cpu = Cpu::new(Level::best(), 1);
        let rows = rng.vec(outputs * inputs);
        let q = quant::quantize(&cpu, format, outputs, inputs, None, outliers, |o, row| {
            row.copy_from_slice(&rows[o * inputs..][..inputs])
        });
        let bytes = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (scales, weights) = (bytes(&q.scales), bytes(&q.outlier_weights));
        let matrix = Matrix::pack_quantized(
            &cpu,
            &QuantizedView {
                format,
                outputs,
                inputs,
                codes: &q.codes,
                scales: &scales,
                outliers,
                outlier_weights: &weights,
            },
        );
        let per_row = q.codes.len() / outputs;
        let value = |o: usize, i: usize| {
            let row = &q.codes[o * per_row..];
            match format {
                WeightFormat::Q8 => i32::from(row[i] as i8),
                _ => i32::from(TABLE[usize::from(row[i / 8 * 4 + i % 4] >> (i % 8 / 4 * 4) & 15)]),
            }
        };
        Weights {
            values: (0..outputs * inputs).map(|at| value(at / inputs, at % inputs)).collect(),
            scales: q.scales.iter().map(|&s| convert::bf16_to_f32(s)).collect(),
            outliers: outliers.to_vec(),
            outlier_weights: q.outlier_weights.iter().map(|&w| convert::bf16_to_f32(w)).collect(),
            matrix,
        }
    }

    /// The definition at the head of `qtile`, one number at a time.
    fn naive(w: &Weights, x: &[f32]) -> Vec<f32> {
        let (outputs, inputs) = (w.matrix.outputs(), w.matrix.inputs());
        let blocks = inputs.div_ceil(BLOCK);
        let mut y = Vec::new();
        for x in x.chunks(inputs) {
            let mut inner = x.to_vec();
            w.outliers.iter().for_each(|&i| inner[i as usize] = 0.0);
            for o in 0..outputs {
                let mut acc = 0.0f32;
                for (b, block) in inner.chunks(BLOCK).enumerate() {
                    let amax = block.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    let factor = if amax > 0.0 { 127.0 / amax } else { 0.0 };
                    let sum: i32 = block
                        .iter()
                        .enumerate()
                        .map(|(i, x)| w.values[o * inputs + b * BLOCK + i] * (x * factor).round_ties_even() as i32)
                        .sum();
                    acc = w.scales[o * blocks + b].mul_add(sum as f32 * (amax / 127.0), acc);
                }
                let k = w.outliers.len();
                for (b, part) in w.outliers.chunks(BLOCK).enumerate() {
                    let chain = part.iter().enumerate().fold(0.0f32, |sum, (i, &input)| {
                        w.outlier_weights[o * k + b * BLOCK + i].mul_add(x[input as usize], sum)
                    });
                    acc += chain;
                }
                y.push(acc);
            }
        }
        y
    }

    #[test]
    fn same_bits_for_every_count_of_tokens_format_thread_count_and_instruction_set() {
        let mut rng = Rng(41);
        let shapes: &[(usize, usize)] =
            if cfg!(miri) { &[(33, 65)] } else { &[(130, 200), (64, 64), (40, 7), (257, 1100)] };
        let counts: &[usize] = if cfg!(miri) { &[1, 3, 9] } else { &[1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 33] };
        let most = counts.iter().copied().max().unwrap_or(0);
        for &(outputs, inputs) in shapes {
            let some: Vec<u32> = (0..inputs as u32).filter(|i| i % 9 == 4).collect();
            for (format, outliers) in [
                (WeightFormat::Q8, &[] as &[u32]),
                (WeightFormat::Q4, &[]),
                (WeightFormat::Q8, &some),
                (WeightFormat::Q4, &some),
            ] {
                let w = random(&mut rng, outputs, inputs, format, outliers);
                let mut x = rng.vec(most * inputs);
                // Blocks of zeros, and large numbers beside small ones.
                x[..inputs.min(70)].fill(0.0);
                x.iter_mut().step_by(97).for_each(|x| *x *= 1e4);
                let wanted = naive(&w, &x);
                for level in Level::available() {
                    for threads in [1, 3] {
                        let cpu = Cpu::new(level, threads);
                        for &n in counts {
                            let mut y = vec![f32::NAN; n * outputs];
                            cpu.matmul(&w.matrix, &x[..n * inputs], n, &mut y);
                            let what = format!("{} x{threads} {format:?} {outputs}x{inputs} n={n}", level.name());
                            assert_same_bits(&y, &wanted[..n * outputs], &what);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_reaches_the_outputs_of_its_token_and_no_other() {
        let mut rng = Rng(43);
        for format in [WeightFormat::Q8, WeightFormat::Q4] {
            let w = random(&mut rng, 40, 130, format, &[]);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for level in Level::available() {
                    let mut x = rng.vec(2 * 130);
                    let mut wanted = vec![f32::NAN; 80];
                    Cpu::new(level, 1).matmul(&w.matrix, &x, 2, &mut wanted);
                    x[3] = bad;
                    let mut y = vec![0.0; 80];
                    Cpu::new(level, 1).matmul(&w.matrix, &x, 2, &mut y);
                    assert!(y[..40].iter().all(|y| y.is_nan()), "{} {bad}", level.name());
                    assert_same_bits(&y[40..], &wanted[40..], "the other token");
                }
            }
        }
    }

    #[test]
    fn the_smallest_and_largest_activations_do_no_harm() {
        let w = random(&mut Rng(47), 32, 64, WeightFormat::Q8, &[]);
        for level in Level::available() {
            for size in [f32::from_bits(1), 1e-40, 1e-37, f32::MAX] {
                let mut y = vec![f32::NAN; 32];
                Cpu::new(level, 1).matmul(&w.matrix, &[size; 64], 1, &mut y);
                assert!(y.iter().all(|y| !y.is_nan()), "{} {size:e}: {y:?}", level.name());
            }
        }
    }
}
