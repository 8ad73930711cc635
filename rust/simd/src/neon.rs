//! NEON: a virtual vector is four 128-bit registers. Intrinsics only, and the instructions for which there are none yet.

use crate::{Isa, LANES, Op};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof that this processor has NEON (all 64-bit Arm processors that run an operating system do), with `DOTPROD` also the dot
/// products of bytes (nearly all since 2018).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Neon<const DOTPROD: bool>(());

/// Lanes 0..4, 4..8, 8..12 and 12..16.
#[derive(Clone, Copy)]
pub(crate) struct Quad(float32x4_t, float32x4_t, float32x4_t, float32x4_t);

/// The same for integers.
#[derive(Clone, Copy)]
pub(crate) struct QuadN(int32x4_t, int32x4_t, int32x4_t, int32x4_t);

/// Weights of four outputs times four inputs in each.
#[derive(Clone, Copy)]
pub(crate) struct QuadQ(int8x16_t, int8x16_t, int8x16_t, int8x16_t);

impl Neon<false> {
    /// The feature tested here is exactly that enabled in `enter_enabled`.
    pub(crate) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    #[inline]
    pub(crate) fn enter<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` exists, so `new` has seen the feature that the callee enables.
        unsafe { self.enter_enabled(op) }
    }

    #[target_feature(enable = "neon")]
    fn enter_enabled<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }
}

impl Neon<true> {
    /// The features tested here are exactly those enabled in `enter_enabled`.
    pub(crate) fn new() -> Option<Self> {
        Neon::<false>::new().filter(|_| is_aarch64_feature_detected!("dotprod")).map(|_| Neon(()))
    }

    /// The same processor, for operations without integers.
    pub(crate) fn without_dotprod(self) -> Neon<false> {
        Neon(())
    }

    #[inline]
    pub(crate) fn enter<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` exists, so `new` has seen every feature that the callee enables.
        unsafe { self.enter_enabled(op) }
    }

    #[target_feature(enable = "neon,dotprod")]
    fn enter_enabled<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }
}

/// Calls intrinsics that need no more than the features `Neon::new` tests.
macro_rules! neon {
    ($($body:tt)*) => {
        // SAFETY: `self` proves that the processor has the features; pointers come from references to 16 lanes.
        unsafe { $($body)* }
    };
}

/// An intrinsic, or a macro over intrinsics, on each of the four registers.
macro_rules! quad {
    ($f:ident!($($v:expr),*)) => {
        neon!(Quad($f!($($v.0),*), $f!($($v.1),*), $f!($($v.2),*), $f!($($v.3),*)))
    };
    ($f:ident($($v:expr),*)) => {
        neon!(Quad($f($($v.0),*), $f($($v.1),*), $f($($v.2),*), $f($($v.3),*)))
    };
}

/// Bit selection by a comparison of lanes.
macro_rules! greater {
    ($a:expr, $b:expr, $yes:expr, $no:expr) => {
        vbslq_f32(vcgtq_f32($a, $b), $yes, $no)
    };
}
macro_rules! greater_or_equal {
    ($a:expr, $b:expr, $yes:expr, $no:expr) => {
        vbslq_f32(vcgeq_f32($a, $b), $yes, $no)
    };
}
/// Only NaN differs from itself.
macro_rules! not_a_number {
    ($x:expr, $yes:expr, $no:expr) => {
        vbslq_f32(vceqq_f32($x, $x), $no, $yes)
    };
}
macro_rules! add_exponent {
    ($p:expr, $magic:expr) => {
        vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32($p), vshlq_n_s32::<23>(vreinterpretq_s32_f32($magic))))
    };
}

/// `n` plus, for each of four outputs, four weights times four codes. The intrinsic is younger than the oldest Rust that builds
/// this.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut n: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction, which the function's features contain, touches nothing but these registers.
    unsafe {
        asm!(
            "sdot {n:v}.4s, {w:v}.16b, {x:v}.16b",
            n = inout(vreg) n,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    n
}

impl<const DOTPROD: bool> Neon<DOTPROD> {
    #[inline(always)]
    fn dot4_quarter(self, n: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        neon! {
            if DOTPROD {
                return dot(n, w, x);
            }
            // Two products of at most 127 * 127 fit 16 bits.
            let pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
            vpadalq_s16(n, pairs)
        }
    }

    #[inline(always)]
    fn mul_wide_quarter(self, a: int32x4_t, b: int32x4_t) -> (int32x4_t, int32x4_t) {
        neon! {
            let (a, b) = (vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b));
            let low = vreinterpretq_s32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(b)));
            let high = vreinterpretq_s32_u64(vmull_high_u32(a, b));
            (vuzp2q_s32(low, high), vuzp1q_s32(low, high))
        }
    }
}

impl<const DOTPROD: bool> Isa for Neon<DOTPROD> {
    type V = Quad;
    type N = QuadN;
    /// Signed.
    type Q = QuadQ;

    // Of 32 registers: six tokens' sums fill 24, a vector of weights four, an input one.
    const TILE_VECTORS: usize = 1;
    const TILE_TOKENS: usize = 6;
    const DOT_TOKENS: usize = 4;
    const DOT_OFFSET: i32 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        neon! {
            let v = vdupq_n_f32(x);
            Quad(v, v, v, v)
        }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Quad {
        let at = x.as_ptr();
        neon!(Quad(vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))))
    }
    #[inline(always)]
    fn store(self, v: Quad, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        neon! {
            vst1q_f32(at, v.0);
            vst1q_f32(at.add(4), v.1);
            vst1q_f32(at.add(8), v.2);
            vst1q_f32(at.add(12), v.3);
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Quad {
        neon! {
            let (a, b) = (vld1q_u16(x.as_ptr()), vld1q_u16(x.as_ptr().add(8)));
            let wide = [vmovl_u16(vget_low_u16(a)), vmovl_high_u16(a), vmovl_u16(vget_low_u16(b)), vmovl_high_u16(b)];
            let [a, b, c, d] = wide.map(|v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(v)));
            Quad(a, b, c, d)
        }
    }
    #[inline(always)]
    fn load_bf16_low(self, x: &[[u8; 4]; LANES]) -> Quad {
        let at: *const u32 = x.as_ptr().cast();
        neon! {
            let words = [vld1q_u32(at), vld1q_u32(at.add(4)), vld1q_u32(at.add(8)), vld1q_u32(at.add(12))];
            let [a, b, c, d] = words.map(|v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(v)));
            Quad(a, b, c, d)
        }
    }
    #[inline(always)]
    fn load_bf16_high(self, x: &[[u8; 4]; LANES]) -> Quad {
        let at: *const u32 = x.as_ptr().cast();
        neon! {
            let upper = vdupq_n_u32(0xffff_0000);
            let words = [vld1q_u32(at), vld1q_u32(at.add(4)), vld1q_u32(at.add(8)), vld1q_u32(at.add(12))];
            let [a, b, c, d] = words.map(|v| vreinterpretq_f32_u32(vandq_u32(v, upper)));
            Quad(a, b, c, d)
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Quad {
        // The intrinsic is younger than the oldest Rust that builds this; the instruction is as old as NEON.
        macro_rules! widen {
            ($instruction:literal, $from:expr) => {{
                let to: float32x4_t;
                asm!($instruction, to = lateout(vreg) to, from = in(vreg) $from, options(pure, nomem, nostack, preserves_flags));
                to
            }};
        }
        neon! {
            let (a, b) = (vld1q_u16(x.as_ptr()), vld1q_u16(x.as_ptr().add(8)));
            Quad(
                widen!("fcvtl {to:v}.4s, {from:v}.4h", a),
                widen!("fcvtl2 {to:v}.4s, {from:v}.8h", a),
                widen!("fcvtl {to:v}.4s, {from:v}.4h", b),
                widen!("fcvtl2 {to:v}.4s, {from:v}.8h", b),
            )
        }
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        quad!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        quad!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        quad!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        quad!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        quad!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        // Not the instruction of that name: it gives NaN where either is NaN.
        quad!(greater!(a, b, a, b))
    }
    #[inline(always)]
    fn select_gt(self, a: Quad, b: Quad, yes: Quad, no: Quad) -> Quad {
        quad!(greater!(a, b, yes, no))
    }
    #[inline(always)]
    fn select_ge(self, a: Quad, b: Quad, yes: Quad, no: Quad) -> Quad {
        quad!(greater_or_equal!(a, b, yes, no))
    }
    #[inline(always)]
    fn select_nan(self, x: Quad, yes: Quad, no: Quad) -> Quad {
        quad!(not_a_number!(x, yes, no))
    }
    #[inline(always)]
    fn scale_exponent(self, p: Quad, magic: Quad) -> Quad {
        quad!(add_exponent!(p, magic))
    }
    #[inline(always)]
    fn splat_n(self, x: i32) -> QuadN {
        neon! {
            let n = vdupq_n_s32(x);
            QuadN(n, n, n, n)
        }
    }
    #[inline(always)]
    fn to_f32(self, n: QuadN) -> Quad {
        quad!(vcvtq_f32_s32(n))
    }
    #[inline(always)]
    fn load_n(self, x: &[u32; LANES]) -> QuadN {
        let at: *const i32 = x.as_ptr().cast();
        neon!(QuadN(vld1q_s32(at), vld1q_s32(at.add(4)), vld1q_s32(at.add(8)), vld1q_s32(at.add(12))))
    }
    #[inline(always)]
    fn add_n(self, a: QuadN, b: QuadN) -> QuadN {
        neon!(QuadN(vaddq_s32(a.0, b.0), vaddq_s32(a.1, b.1), vaddq_s32(a.2, b.2), vaddq_s32(a.3, b.3)))
    }
    #[inline(always)]
    fn xor_n(self, a: QuadN, b: QuadN) -> QuadN {
        neon!(QuadN(veorq_s32(a.0, b.0), veorq_s32(a.1, b.1), veorq_s32(a.2, b.2), veorq_s32(a.3, b.3)))
    }
    #[inline(always)]
    fn mul_wide(self, a: QuadN, b: QuadN) -> (QuadN, QuadN) {
        let products = [
            self.mul_wide_quarter(a.0, b.0),
            self.mul_wide_quarter(a.1, b.1),
            self.mul_wide_quarter(a.2, b.2),
            self.mul_wide_quarter(a.3, b.3),
        ];
        let [high, low] = [products.map(|p| p.0), products.map(|p| p.1)];
        (QuadN(high[0], high[1], high[2], high[3]), QuadN(low[0], low[1], low[2], low[3]))
    }
    #[inline(always)]
    fn zip_n(self, a: QuadN, b: QuadN) -> (QuadN, QuadN) {
        neon! {
            let first = QuadN(vzip1q_s32(a.0, b.0), vzip2q_s32(a.0, b.0), vzip1q_s32(a.1, b.1), vzip2q_s32(a.1, b.1));
            let second = QuadN(vzip1q_s32(a.2, b.2), vzip2q_s32(a.2, b.2), vzip1q_s32(a.3, b.3), vzip2q_s32(a.3, b.3));
            (first, second)
        }
    }
    #[inline(always)]
    fn any_ge(self, a: Quad, b: Quad) -> bool {
        neon! {
            let first = vorrq_u32(vcgeq_f32(a.0, b.0), vcgeq_f32(a.1, b.1));
            let second = vorrq_u32(vcgeq_f32(a.2, b.2), vcgeq_f32(a.3, b.3));
            vmaxvq_u32(vorrq_u32(first, second)) != 0
        }
    }
    #[inline(always)]
    fn load_q(self, w: &[u8; 64]) -> QuadQ {
        let at = w.as_ptr();
        neon! {
            let stored = [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))];
            let [a, b, c, d] = stored.map(|v| vreinterpretq_s8_u8(veorq_u8(v, vdupq_n_u8(0x80))));
            QuadQ(a, b, c, d)
        }
    }
    #[inline(always)]
    fn load_nibbles(self, w: &[u8; 64], table: &[u8; 16]) -> (QuadQ, QuadQ) {
        let at = w.as_ptr();
        neon! {
            let table = veorq_u8(vld1q_u8(table.as_ptr()), vdupq_n_u8(0x80));
            let stored = [vld1q_u8(at), vld1q_u8(at.add(16)), vld1q_u8(at.add(32)), vld1q_u8(at.add(48))];
            let low = stored.map(|v| vreinterpretq_s8_u8(vqtbl1q_u8(table, vandq_u8(v, vdupq_n_u8(15)))));
            let high = stored.map(|v| vreinterpretq_s8_u8(vqtbl1q_u8(table, vshrq_n_u8::<4>(v))));
            (QuadQ(low[0], low[1], low[2], low[3]), QuadQ(high[0], high[1], high[2], high[3]))
        }
    }
    #[inline(always)]
    fn dot4(self, n: QuadN, w: QuadQ, x: [i8; 4]) -> QuadN {
        let x = neon!(vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(x.map(|x| x as u8)))));
        QuadN(
            self.dot4_quarter(n.0, w.0, x),
            self.dot4_quarter(n.1, w.1, x),
            self.dot4_quarter(n.2, w.2, x),
            self.dot4_quarter(n.3, w.3, x),
        )
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T, near: bool) {
        // SAFETY: a prefetch reads nothing that the program can see and never faults, wherever `at` points.
        unsafe {
            if near {
                asm!("prfm pldl1keep, [{}]", in(reg) at.addr(), options(nomem, nostack, preserves_flags));
            } else {
                asm!("prfm pldl2keep, [{}]", in(reg) at.addr(), options(nomem, nostack, preserves_flags));
            }
        }
    }
}
