//! AVX2 with FMA: a virtual vector is two 256-bit registers. Intrinsics only.

use crate::{Isa, LANES, Op};
use std::arch::x86_64::*;

/// Proof that this processor has AVX2, FMA and F16C, with `VNNI` also the dot products of bytes in their AVX form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx2<const VNNI: bool>(());

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

/// The same for integers.
#[derive(Clone, Copy)]
pub(crate) struct PairN(__m256i, __m256i);

impl Avx2<false> {
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

impl Avx2<true> {
    /// As above.
    pub(crate) fn new() -> Option<Self> {
        Avx2::<false>::new().filter(|_| is_x86_feature_detected!("avxvnni")).map(|_| Avx2(()))
    }

    /// The same processor, for operations without integers.
    pub(crate) fn without_vnni(self) -> Avx2<false> {
        Avx2(())
    }

    #[inline]
    pub(crate) fn enter<O: Op>(self, op: O) -> O::Output {
        // SAFETY: `self` exists, so `new` has seen every feature that the callee enables.
        unsafe { self.enter_enabled(op) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
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

impl<const VNNI: bool> Avx2<VNNI> {
    #[inline(always)]
    fn dot4_half(self, n: __m256i, w: __m256i, x: __m256i) -> __m256i {
        avx2! {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(n, w, x);
            }
            // |w| has no sign, x takes that of w: two products of at most 127 * 127 fit 16 bits.
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(n, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn mul_wide_half(self, a: __m256i, b: __m256i) -> (__m256i, __m256i) {
        avx2! {
            // The instruction multiplies even lanes; a product takes the place of a pair of lanes.
            let even = _mm256_mul_epu32(a, b);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
            let high = _mm256_blend_epi32::<0xaa>(_mm256_srli_epi64::<32>(even), odd);
            let low = _mm256_blend_epi32::<0xaa>(even, _mm256_slli_epi64::<32>(odd));
            (high, low)
        }
    }

    #[inline(always)]
    fn zip_half(self, a: __m256i, b: __m256i) -> PairN {
        avx2! {
            // Within halves of a register: lanes 0, 1 and 4, 5; then lanes 2, 3 and 6, 7.
            let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            PairN(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
        }
    }
}

impl<const VNNI: bool> Isa for Avx2<VNNI> {
    type V = Pair;
    type N = PairN;
    /// With VNNI as stored, plus 128; else signed.
    type Q = PairN;

    const TILE_VECTORS: usize = 1;
    const TILE_TOKENS: usize = 6;
    const DOT_TOKENS: usize = 4;
    const DOT_OFFSET: i32 = if VNNI { 128 } else { 0 };

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
    fn load_bf16_low(self, x: &[[u8; 4]; LANES]) -> Pair {
        avx2! {
            let low = _mm256_slli_epi32::<16>(_mm256_loadu_si256(x.as_ptr().cast()));
            let high = _mm256_slli_epi32::<16>(_mm256_loadu_si256(x.as_ptr().add(8).cast()));
            Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn load_bf16_high(self, x: &[[u8; 4]; LANES]) -> Pair {
        avx2! {
            let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let low = _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().cast()), upper);
            let high = _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().add(8).cast()), upper);
            Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
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
    fn splat_n(self, x: i32) -> PairN {
        avx2! {
            let n = _mm256_set1_epi32(x);
            PairN(n, n)
        }
    }
    #[inline(always)]
    fn to_f32(self, n: PairN) -> Pair {
        avx2!(Pair(_mm256_cvtepi32_ps(n.0), _mm256_cvtepi32_ps(n.1)))
    }
    #[inline(always)]
    fn load_n(self, x: &[u32; LANES]) -> PairN {
        avx2!(PairN(_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())))
    }
    #[inline(always)]
    fn add_n(self, a: PairN, b: PairN) -> PairN {
        avx2!(PairN(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn xor_n(self, a: PairN, b: PairN) -> PairN {
        avx2!(PairN(_mm256_xor_si256(a.0, b.0), _mm256_xor_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn mul_wide(self, a: PairN, b: PairN) -> (PairN, PairN) {
        let (first, second) = (self.mul_wide_half(a.0, b.0), self.mul_wide_half(a.1, b.1));
        (PairN(first.0, second.0), PairN(first.1, second.1))
    }
    #[inline(always)]
    fn zip_n(self, a: PairN, b: PairN) -> (PairN, PairN) {
        (self.zip_half(a.0, b.0), self.zip_half(a.1, b.1))
    }
    #[inline(always)]
    fn any_ge(self, a: Pair, b: Pair) -> bool {
        avx2! {
            let (low, high) = (_mm256_cmp_ps::<_CMP_GE_OQ>(a.0, b.0), _mm256_cmp_ps::<_CMP_GE_OQ>(a.1, b.1));
            _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
        }
    }
    #[inline(always)]
    fn load_q(self, w: &[u8; 64]) -> PairN {
        avx2! {
            let low = _mm256_loadu_si256(w.as_ptr().cast());
            let high = _mm256_loadu_si256(w.as_ptr().add(32).cast());
            if VNNI {
                return PairN(low, high);
            }
            let sign = _mm256_set1_epi8(-128);
            PairN(_mm256_xor_si256(low, sign), _mm256_xor_si256(high, sign))
        }
    }
    #[inline(always)]
    fn load_nibbles(self, w: &[u8; 64], table: &[u8; 16]) -> (PairN, PairN) {
        avx2! {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            let table = if VNNI { table } else { _mm256_xor_si256(table, _mm256_set1_epi8(-128)) };
            let mask = _mm256_set1_epi8(15);
            let first = _mm256_loadu_si256(w.as_ptr().cast());
            let second = _mm256_loadu_si256(w.as_ptr().add(32).cast());
            let low = PairN(
                _mm256_shuffle_epi8(table, _mm256_and_si256(first, mask)),
                _mm256_shuffle_epi8(table, _mm256_and_si256(second, mask)),
            );
            let high = PairN(
                _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(first), mask)),
                _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(second), mask)),
            );
            (low, high)
        }
    }
    #[inline(always)]
    fn dot4(self, n: PairN, w: PairN, x: [i8; 4]) -> PairN {
        let x = avx2!(_mm256_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8))));
        PairN(self.dot4_half(n.0, w.0, x), self.dot4_half(n.1, w.1, x))
    }
    #[inline(always)]
    fn prefetch<T>(self, at: *const T, near: bool) {
        if near { avx2!(_mm_prefetch::<_MM_HINT_T0>(at.cast())) } else { avx2!(_mm_prefetch::<_MM_HINT_T1>(at.cast())) }
    }
}
