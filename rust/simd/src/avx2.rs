//! AVX2 with FMA: a virtual vector is two 256-bit registers. Intrinsics only.

use crate::{Isa, LANES, Op};
use std::arch::x86_64::*;

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx2(());

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

impl Avx2 {
    /// The features tested here are exactly those enabled in `enter_enabled`.
    pub(crate) fn new() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    #[inline]
    pub(crate) fn enter<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` exists, so `new` has seen every feature that the callee enables.
        unsafe { self.enter_enabled(op) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn enter_enabled<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }
}

/// Calls intrinsics that need no more than the features `Avx2::new` tests.
macro_rules! avx2 {
    ($($body:tt)*) => {
        // SAFETY: `self` proves that the processor has the features; pointers come from references to 16 lanes.
        unsafe { $($body)* }
    };
}

impl Isa for Avx2 {
    type V = Pair;

    const TILE_VECTORS: usize = 1;
    const TILE_TOKENS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        avx2! {
            let v = _mm256_set1_ps(x);
            Pair(v, v)
        }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Pair {
        avx2!(Pair(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }
    #[inline(always)]
    fn store(self, v: Pair, to: &mut [f32; LANES]) {
        avx2! {
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Pair {
        avx2! {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            Pair(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Pair {
        avx2! {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            Pair(low, high)
        }
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        avx2!(Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        avx2!(Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        avx2!(Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        avx2!(Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        avx2!(Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        avx2!(Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn select_gt(self, a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        avx2! {
            let low = _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_GT_OQ>(a.0, b.0));
            let high = _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_GT_OQ>(a.1, b.1));
            Pair(low, high)
        }
    }
    #[inline(always)]
    fn select_ge(self, a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        avx2! {
            let low = _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_GE_OQ>(a.0, b.0));
            let high = _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_GE_OQ>(a.1, b.1));
            Pair(low, high)
        }
    }
    #[inline(always)]
    fn select_nan(self, x: Pair, yes: Pair, no: Pair) -> Pair {
        avx2! {
            let low = _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_UNORD_Q>(x.0, x.0));
            let high = _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_UNORD_Q>(x.1, x.1));
            Pair(low, high)
        }
    }
    #[inline(always)]
    fn scale_exponent(self, p: Pair, magic: Pair) -> Pair {
        avx2! {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic.1));
            let low = _mm256_add_epi32(_mm256_castps_si256(p.0), low);
            let high = _mm256_add_epi32(_mm256_castps_si256(p.1), high);
            Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T, near: bool) {
        if near { avx2!(_mm_prefetch::<_MM_HINT_T0>(at.cast())) } else { avx2!(_mm_prefetch::<_MM_HINT_T1>(at.cast())) }
    }
}
