//! Any processor: a virtual vector is an array, left to the compiler to vectorise. The results have the bits of the other
//! instruction sets, so the fused multiply-add is computed in software: no processor feature may be assumed here.

use crate::{Isa, LANES, convert};

/// Always available.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Portable;

/// `a * b + c` rounded once, without an FMA instruction, for all values including subnormals, infinities and NaN.
///
/// The product of two f32 is exact in f64. Their sum with `c` is rounded there to *odd* (an inexact sum becomes whichever
/// of its two neighbours has an odd last bit), after which the rounding to f32 cannot be a second rounding of a tie:
/// Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Computers 57 (2008).
#[inline(always)]
pub(crate) fn fma(a: f32, b: f32, c: f32) -> f32 {
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = p + c;
    // Knuth's two-sum: `error` is exactly (p + c) - sum. NaN where something is infinite; both comparisons are then false.
    let virtual_c = sum - p;
    let error = (p - (sum - virtual_c)) + (c - virtual_c);
    let inexact = (error > 0.0) | (error < 0.0);
    let even = sum.to_bits() & 1 == 0;
    // Towards the error: away from zero (+1) if it has the sign of the sum, towards zero (-1) if not.
    let step = if (error > 0.0) == (sum > 0.0) { 1u64 } else { u64::MAX };
    let odd = sum.to_bits().wrapping_add(if inexact & even { step } else { 0 });
    f64::from_bits(odd) as f32
}

/// Applies `$f` to every lane.
macro_rules! lanes {
    ($i:ident => $f:expr) => {{
        let mut out = [0.0; LANES];
        for $i in 0..LANES {
            out[$i] = $f;
        }
        out
    }};
}

impl Isa for Portable {
    type V = [f32; LANES];
    type N = [i32; LANES];
    type Q = [i8; 64];

    const TILE_VECTORS: usize = 1;
    const TILE_TOKENS: usize = 4;
    const DOT_TOKENS: usize = 4;
    const DOT_OFFSET: i32 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::V {
        lanes!(i => convert::bf16_to_f32(x[i]))
    }
    #[inline(always)]
    fn load_bf16_low(self, x: &[[u8; 4]; LANES]) -> Self::V {
        lanes!(i => f32::from_bits(u32::from_ne_bytes(x[i]) << 16))
    }
    #[inline(always)]
    fn load_bf16_high(self, x: &[[u8; 4]; LANES]) -> Self::V {
        lanes!(i => f32::from_bits(u32::from_ne_bytes(x[i]) & 0xffff_0000))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::V {
        lanes!(i => convert::f16_to_f32(x[i]))
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes!(i => fma(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn select_gt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        lanes!(i => if a[i] > b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn select_ge(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        lanes!(i => if a[i] >= b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn select_nan(self, x: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        lanes!(i => if x[i].is_nan() { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn scale_exponent(self, p: Self::V, magic: Self::V) -> Self::V {
        lanes!(i => f32::from_bits(p[i].to_bits().wrapping_add(magic[i].to_bits() << 23)))
    }
    #[inline(always)]
    fn splat_n(self, x: i32) -> Self::N {
        [x; LANES]
    }
    #[inline(always)]
    fn to_f32(self, n: Self::N) -> Self::V {
        lanes!(i => n[i] as f32)
    }
    #[inline(always)]
    fn load_n(self, x: &[u32; LANES]) -> Self::N {
        x.map(u32::cast_signed)
    }
    #[inline(always)]
    fn add_n(self, a: Self::N, b: Self::N) -> Self::N {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn xor_n(self, a: Self::N, b: Self::N) -> Self::N {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn mul_wide(self, a: Self::N, b: Self::N) -> (Self::N, Self::N) {
        let product = |i: usize| u64::from(a[i].cast_unsigned()) * u64::from(b[i].cast_unsigned());
        (std::array::from_fn(|i| (product(i) >> 32) as i32), std::array::from_fn(|i| product(i) as i32))
    }
    #[inline(always)]
    fn zip_n(self, a: Self::N, b: Self::N) -> (Self::N, Self::N) {
        let lane = |i: usize| if i.is_multiple_of(2) { a[i / 2] } else { b[i / 2] };
        (std::array::from_fn(lane), std::array::from_fn(|i| lane(i + LANES)))
    }
    #[inline(always)]
    fn any_ge(self, a: Self::V, b: Self::V) -> bool {
        a.iter().zip(&b).fold(false, |any, (a, b)| any | (a >= b))
    }
    #[inline(always)]
    fn load_q(self, w: &[u8; 64]) -> Self::Q {
        w.map(|w| (w ^ 0x80) as i8)
    }
    #[inline(always)]
    fn load_nibbles(self, w: &[u8; 64], table: &[u8; 16]) -> (Self::Q, Self::Q) {
        let value = |index: u8| (table[usize::from(index)] ^ 0x80) as i8;
        (w.map(|w| value(w & 15)), w.map(|w| value(w >> 4)))
    }
    #[inline(always)]
    fn dot4(self, mut n: Self::N, w: Self::Q, x: [i8; 4]) -> Self::N {
        let (groups, _) = w.as_chunks::<4>();
        for (n, w) in n.iter_mut().zip(groups) {
            for i in 0..4 {
                *n += i32::from(w[i]) * i32::from(x[i]);
            }
        }
        n
    }
    #[inline(always)]
    fn prefetch<T>(self, _at: *const T, _near: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    /// `mul_add` is the processor's own instruction, or the C library's correctly rounded routine.
    fn check(a: f32, b: f32, c: f32) {
        let (found, wanted) = (fma(a, b, c), a.mul_add(b, c));
        let same = found.to_bits() == wanted.to_bits() || (found.is_nan() && wanted.is_nan());
        assert!(same, "fma({a:e}, {b:e}, {c:e}): found {found:e}, wanted {wanted:e}");
    }

    #[test]
    fn software_fma_is_right_for_random_bit_patterns() {
        let mut rng = Rng(1);
        let rounds = if cfg!(miri) { 2_000 } else { 4_000_000 };
        for _ in 0..rounds {
            check(f32::from_bits(rng.next_u32()), f32::from_bits(rng.next_u32()), f32::from_bits(rng.next_u32()));
        }
    }

    #[test]
    fn software_fma_is_right_where_terms_nearly_cancel_or_nearly_tie() {
        let mut rng = Rng(2);
        let rounds = if cfg!(miri) { 2_000 } else { 1_000_000 };
        for _ in 0..rounds {
            let (a, b) = (f32::from_bits(rng.next_u32()), f32::from_bits(rng.next_u32()));
            let near =
                (-(f64::from(a) * f64::from(b)) as f32).to_bits().wrapping_add(rng.next_u32() % 5).wrapping_sub(2);
            check(a, b, f32::from_bits(near));
            // A product of a few bits far below or just at half a unit of c: ties, and near ties.
            let half_unit = f32::from_bits(((rng.next_u32() % 200 + 30) << 23) | (rng.next_u32() % 3));
            let c = half_unit * 16_777_216.0 * (1.0 + (rng.next_u32() % 8) as f32 / 4_194_304.0);
            check(half_unit, if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 }, c);
        }
    }

    #[test]
    fn software_fma_is_right_for_subnormals_and_special_values() {
        let tiny = f32::from_bits(1);
        let special = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            tiny,
            -tiny,
            f32::MIN_POSITIVE,
            f32::from_bits(0x007f_ffff),
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            0.5,
            1.5,
            f32::EPSILON,
            1.0 + f32::EPSILON,
            1.0 - f32::EPSILON / 2.0,
        ];
        for a in special {
            for b in special {
                for c in special {
                    check(a, b, c);
                }
            }
        }
        let mut rng = Rng(3);
        for _ in 0..if cfg!(miri) { 1_000 } else { 1_000_000 } {
            // Products around the smallest f32, sums that are subnormal.
            let a = f32::from_bits(rng.next_u32() & 0x007f_ffff | (rng.next_u32() % 128) << 23);
            let b = f32::from_bits(rng.next_u32() & 0x007f_ffff | (rng.next_u32() % 128) << 23);
            let c = f32::from_bits(rng.next_u32() & 0x80ff_ffff);
            check(a, b, c);
        }
    }
}
