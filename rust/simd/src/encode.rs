//! One row of weights to codes: which scale each block gets.

use crate::convert::{bf16_to_f32, f32_to_bf16};
use crate::quant::{LARGEST_SCALE, NEAREST_ZERO, QUANT_BLOCK, TABLE};
use crate::{Isa, LANES, Op};

/// Halfway between the values of neighbouring codes: from here on the upper one is nearer. Exact.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = (TABLE[i] as f32 + TABLE[i + 1] as f32) / 2.0;
        i += 1;
    }
    borders
};

/// Scales that the search for q4 begins with, as parts of the one that maps the extreme to -127 (or, with the other sign, to 127).
const STARTS: [f32; 7] = [1.0, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1];

#[inline(always)]
pub(crate) fn largest_magnitude(block: &[f32]) -> f32 {
    // As bits, because a maximum of integers may be taken in any order, that is in vectors.
    f32::from_bits(block.iter().fold(0, |most, w| u32::max(most, w.abs().to_bits())))
}

/// Codes and scales of one row of q8. The scale is the smallest that reaches the largest weight.
pub(crate) struct EncodeQ8<'a> {
    pub values: &'a [f32],
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u16],
}

impl Op for EncodeQ8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let blocks = self.values.chunks(QUANT_BLOCK).zip(self.codes.chunks_mut(QUANT_BLOCK));
        for ((block, codes), place) in blocks.zip(self.scales) {
            let wanted = largest_magnitude(block) / 127.0;
            let nearest = f32_to_bf16(wanted);
            let up = if bf16_to_f32(nearest) < wanted { nearest + 1 } else { nearest };
            *place = up.min(f32_to_bf16(LARGEST_SCALE));
            let scale = bf16_to_f32(*place);
            if scale > 0.0 {
                for (code, &w) in codes.iter_mut().zip(block) {
                    // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the last bits of the sum.
                    *code = ((w / scale).clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as u8;
                }
            } else {
                codes.fill(0);
            }
        }
    }
}

/// Codes and scales of one row of q4.
pub(crate) struct EncodeQ4<'a> {
    pub values: &'a [f32],
    pub importance: &'a [f32],
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u16],
}

impl Op for EncodeQ4<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let blocks = self.values.chunks(QUANT_BLOCK).zip(self.importance.chunks(QUANT_BLOCK));
        let places = self.codes.chunks_mut(QUANT_BLOCK / 2).zip(self.scales);
        for ((values, importance), (codes, scale)) in blocks.zip(places) {
            let most = largest_magnitude(values);
            let Some(&extreme) = values.iter().find(|w| w.abs() == most && most > 0.0) else {
                continue; // all zero: scale and codes are already
            };
            let mut block = Block { extreme, values: [0.0; QUANT_BLOCK], importance: [0.0; QUANT_BLOCK] };
            block.importance[..importance.len()].copy_from_slice(importance);
            for (part, w) in block.values.iter_mut().zip(values) {
                *part = w / extreme;
            }
            *scale = block.search(isa);
            block.write_codes(block.part_of(*scale), &mut codes[..4 * values.len().div_ceil(8)]);
        }
    }
}

/// A block in units of its extreme weight, so that nothing overflows or vanishes.
struct Block {
    extreme: f32,
    values: [f32; QUANT_BLOCK],
    importance: [f32; QUANT_BLOCK],
}

/// What a scale does to a block.
#[derive(Clone, Copy)]
struct Fit {
    error: f32,
    /// For the same codes, the scale of least error.
    better: f32,
}

impl Block {
    /// The scale in units of the extreme weight.
    fn part_of(&self, scale: u16) -> f32 {
        bf16_to_f32(scale) / self.extreme
    }

    /// The nearest scale that can be stored.
    fn stored(&self, part: f32) -> u16 {
        f32_to_bf16((part * self.extreme).clamp(-LARGEST_SCALE, LARGEST_SCALE))
    }

    /// From several scales, each improved once for the codes that it leads to: the one of least error.
    #[inline(always)]
    fn search<I: Isa>(&self, isa: I) -> u16 {
        let mut best = (f32::INFINITY, 0);
        let mut consider = |scale: u16| {
            let fit = self.fit(isa, self.part_of(scale));
            if fit.error < best.0 {
                best = (fit.error, scale);
            }
            fit
        };
        for start in STARTS {
            for sign in [-1.0, 1.0] {
                let first = consider(self.stored(sign * start / 127.0));
                if first.better.is_finite() {
                    consider(self.stored(first.better));
                }
            }
        }
        best.1
    }

    #[inline(always)]
    fn fit<I: Isa>(&self, isa: I, part: f32) -> Fit {
        let inverse = isa.splat(inverse(part));
        let part = isa.splat(part);
        let zero = isa.splat(0.0);
        let (mut error, mut wv, mut vv) = (zero, zero, zero);
        let (values, importance) = (self.values.as_chunks::<LANES>().0, self.importance.as_chunks::<LANES>().0);
        for (w, h) in values.iter().zip(importance) {
            let (w, h) = (isa.load(w), isa.load(h));
            let u = isa.mul(w, inverse);
            let mut v = isa.splat(f32::from(TABLE[0]));
            for (border, upper) in BORDERS.iter().zip(&TABLE[1..]) {
                v = isa.select_ge(u, isa.splat(*border), isa.splat(f32::from(*upper)), v);
            }
            let off = isa.sub(w, isa.mul(part, v));
            error = isa.add(error, isa.mul(h, isa.mul(off, off)));
            let hv = isa.mul(h, v);
            wv = isa.add(wv, isa.mul(hv, w));
            vv = isa.add(vv, isa.mul(hv, v));
        }
        let sum = |lanes| isa.to_array(lanes).iter().sum::<f32>();
        Fit { error: sum(error), better: sum(wv) / sum(vv) }
    }

    /// The nearest codes. `codes` holds four bytes per eight inputs; what lies beyond the last input is 0 here.
    fn write_codes(&self, part: f32, codes: &mut [u8]) {
        let inverse = inverse(part);
        let code = |i: usize| {
            if self.importance[i] == 0.0 && self.values[i] == 0.0 {
                return NEAREST_ZERO;
            }
            BORDERS.iter().filter(|&&border| self.values[i] * inverse >= border).count() as u8
        };
        for (g, bytes) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (k, byte) in bytes.iter_mut().enumerate() {
                *byte = code(8 * g + k) | code(8 * g + 4 + k) << 4;
            }
        }
    }
}

/// `1 / part`; 0 where the scale was too small for a bfloat16.
#[inline(always)]
fn inverse(part: f32) -> f32 {
    if part == 0.0 { 0.0 } else { 1.0 / part }
}
