//! AVX-512: a virtual vector is one 512-bit register. Intrinsics only.

use crate::{Isa, LANES, Op};
use std::arch::x86_64::*;

/// Proof that this processor has AVX-512 F, BW, DQ, VL and VNNI (all processors with AVX-512 do since 2019; those without VNNI use AVX2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The features tested here are exactly those enabled in `enter_enabled`.
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx512(()))
    }

    #[inline]
    pub(crate) fn enter<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` exists, so `new` has seen every feature that the callee enables.
        unsafe { self.enter_enabled(op) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn enter_enabled<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }
}

/// Calls intrinsics that need no more than the features `Avx512::new` tests.
macro_rules! avx512 {
    ($($body:tt)*) => {
        // SAFETY: `self` proves that the processor has the features; pointers come from references to 16 lanes.
        unsafe { $($body)* }
    };
}

impl Isa for Avx512 {
    type V = __m512;
    type N = __m512i;
    /// As stored, plus 128.
    type Q = __m512i;

    const TILE_VECTORS: usize = 2;
    const TILE_TOKENS: usize = 12;
    const DOT_TOKENS: usize = 8;
    const DOT_OFFSET: i32 = 128;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        avx512!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        avx512!(_mm512_storeu_ps(to.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> __m512 {
        avx512! {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_bf16_low(self, x: &[[u8; 4]; LANES]) -> __m512 {
        avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_bf16_high(self, x: &[[u8; 4]; LANES]) -> __m512 {
        avx512! {
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(x.as_ptr().cast()), upper))
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> __m512 {
        avx512!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn select_gt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn select_ge(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn select_nan(self, x: __m512, yes: __m512, no: __m512) -> __m512 {
        avx512!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), no, yes))
    }
    #[inline(always)]
    fn scale_exponent(self, p: __m512, magic: __m512) -> __m512 {
        avx512! {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(magic));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n))
        }
    }
    #[inline(always)]
    fn splat_n(self, x: i32) -> __m512i {
        avx512!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn to_f32(self, n: __m512i) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(n))
    }
    #[inline(always)]
    fn load_n(self, x: &[u32; LANES]) -> __m512i {
        avx512!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn add_n(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn xor_n(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn mul_wide(self, a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        avx512! {
            // The instruction multiplies even lanes; a product takes the place of a pair of lanes.
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
            let high = _mm512_mask_shuffle_epi32::<0b11_11_01_01>(odd, 0x5555, even);
            let low = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xaaaa, odd);
            (high, low)
        }
    }
    #[inline(always)]
    fn zip_n(self, a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        avx512! {
            let first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
            (_mm512_permutex2var_epi32(a, first, b), _mm512_permutex2var_epi32(a, second, b))
        }
    }
    #[inline(always)]
    fn any_ge(self, a: __m512, b: __m512) -> bool {
        avx512!(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) != 0)
    }
    #[inline(always)]
    fn load_q(self, w: &[u8; 64]) -> __m512i {
        avx512!(_mm512_loadu_si512(w.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_nibbles(self, w: &[u8; 64], table: &[u8; 16]) -> (__m512i, __m512i) {
        avx512! {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            let (w, mask) = (_mm512_loadu_si512(w.as_ptr().cast()), _mm512_set1_epi8(15));
            let low = _mm512_and_si512(w, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask);
            (_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high))
        }
    }
    #[inline(always)]
    fn dot4(self, n: __m512i, w: __m512i, x: [i8; 4]) -> __m512i {
        avx512!(_mm512_dpbusd_epi32(n, w, _mm512_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8)))))
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T, near: bool) {
        if near {
            avx512!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
        } else {
            avx512!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
        }
    }
}
