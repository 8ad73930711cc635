//! Elementwise operations, sums over channels, and `exp`, written once over [`Isa`].
//!
//! Sums over channels: lane `l` of 16 adds the elements `l, l + 16, l + 32, ..` in ascending order, then the lanes are added
//! in one fixed tree (`l + (l + 8)`, then 4, 2, 1). A tail is filled up with values that change nothing.

use crate::shared::SharedMut;
use crate::{Isa, LANES, Level, Op};
use std::ops::Range;

/// Above this, `exp` is infinite (ln of the largest f32).
const EXP_MAX: f32 = 88.722_84;
/// Below this, `exp` is zero: the result would be subnormal.
const EXP_MIN: f32 = -87.33;
/// Added to a small number, this leaves its nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// ln 2 in two parts, the first with few enough bits that its product with a whole number up to 2^8 is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// `exp(r) = 1 + r + r^2 q(r)` for `|r| <= ln 2 / 2`: a minimax fit, relative error 3.1e-9 before rounding.
const EXP_Q: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_4, 0.008_368_851, 0.001_381_432];

/// `exp` within 1 unit in the last place or so: 0 below -87.33, infinite above 88.72284, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<I: Isa>(isa: I, x: I::V) -> I::V {
    let magic = isa.fma(x, isa.splat(std::f32::consts::LOG2_E), isa.splat(MAGIC));
    let n = isa.sub(magic, isa.splat(MAGIC));
    let r = isa.fma(n, isa.splat(-LN2_HIGH), x);
    let r = isa.fma(n, isa.splat(-LN2_LOW), r);
    let mut q = isa.splat(EXP_Q[4]);
    for i in (0..4).rev() {
        q = isa.fma(q, r, isa.splat(EXP_Q[i]));
    }
    let p = isa.add(isa.splat(1.0), isa.fma(isa.mul(r, r), q, r));
    let y = isa.scale_exponent(p, magic);
    let y = isa.select_gt(isa.splat(EXP_MIN), x, isa.splat(0.0), y);
    let y = isa.select_gt(x, isa.splat(EXP_MAX), isa.splat(f32::INFINITY), y);
    isa.select_nan(x, x, y)
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(isa: I, x: I::V) -> I::V {
    let one = isa.splat(1.0);
    isa.div(one, isa.add(one, exp(isa, isa.sub(isa.splat(0.0), x))))
}

/// The sum of the 16 lanes, by halves.
#[inline(always)]
pub(crate) fn sum_lanes<I: Isa>(isa: I, v: I::V) -> f32 {
    fold_lanes(isa, v, |a, b| a + b)
}

/// What `join` makes of the 16 lanes, by halves.
#[inline(always)]
pub(crate) fn fold_lanes<I: Isa>(isa: I, v: I::V, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = isa.to_array(v);
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// What happens to one vector. A trait and not a closure, because only methods can be forced to be inlined, and a vector
/// operation that is not inlined runs without the instructions of its instruction set.
pub(crate) trait Unary: Copy + Sync {
    fn apply<I: Isa>(self, isa: I, x: I::V) -> I::V;
}

/// The same for two vectors, of which the second is replaced.
pub(crate) trait Binary: Copy + Sync {
    fn apply<I: Isa>(self, isa: I, x: I::V, y: I::V) -> I::V;
}

macro_rules! operations {
    ($($kind:ident $name:ident $(($field:ident))?: |$isa:ident, $($v:ident),*| $body:expr;)*) => {
        $(
            #[derive(Clone, Copy)]
            pub(crate) struct $name $((pub operations!(@f32 $field)))?;
            impl $kind for $name {
                #[inline(always)]
                fn apply<I: Isa>(self, $isa: I, $($v: I::V),*) -> I::V {
                    $(let $name($field) = self;)?
                    $body
                }
            }
        )*
    };
    (@f32 $field:ident) => { f32 };
}

operations! {
    // The order keeps NaN: max gives its second operand where either is NaN.
    Unary ReluSquared: |isa, x| {
        let r = isa.max(isa.splat(0.0), x);
        isa.mul(r, r)
    };
    Unary Heaviside: |isa, x| isa.select_ge(x, isa.splat(0.0), isa.splat(1.0), isa.splat(0.0));
    Unary Scale(factor): |isa, x| isa.mul(isa.splat(factor), x);
    Unary Exp: |isa, x| exp(isa, x);
    Binary Add: |isa, x, y| isa.add(y, x);
    Binary SigmoidMul: |isa, x, y| isa.mul(sigmoid(isa, x), y);
}

/// `x = f(x)`.
pub(crate) struct Map<'a, F>(pub F, pub &'a mut [f32]);

impl<F: Unary> Op for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for part in self.1.chunks_mut(LANES) {
            isa.store_part(self.0.apply(isa, isa.load_part(part, 0.0)), part);
        }
    }
}

/// `y = f(x, y)` over slices of equal length.
pub(crate) struct Map2<'a, F>(pub F, pub &'a [f32], pub &'a mut [f32]);

impl<F: Binary> Op for Map2<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (x, y) in self.1.chunks(LANES).zip(self.2.chunks_mut(LANES)) {
            isa.store_part(self.0.apply(isa, isa.load_part(x, 0.0), isa.load_part(y, 0.0)), y);
        }
    }
}

/// Rows of `weight.len()` channels: `y = (x - mean) / sqrt(variance + eps) * weight + bias`.
pub(crate) struct LayerNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
    pub y: &'a mut [f32],
}

impl Op for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let width = self.weight.len();
        let count = width as f32;
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let mut sum = isa.splat(0.0);
            for part in x.chunks(LANES) {
                sum = isa.add(sum, isa.load_part(part, 0.0));
            }
            let mean = sum_lanes(isa, sum) / count;

            let (mut squares, center) = (isa.splat(0.0), isa.splat(mean));
            for part in x.chunks(LANES) {
                let d = isa.sub(isa.load_part(part, mean), center);
                squares = isa.fma(d, d, squares);
            }
            let scale = isa.splat(1.0 / (sum_lanes(isa, squares) / count + self.eps).sqrt());

            let mut i = 0;
            while i < width {
                let end = width.min(i + LANES);
                let d = isa.mul(isa.sub(isa.load_part(&x[i..end], 0.0), center), scale);
                let (w, b) = (isa.load_part(&self.weight[i..end], 0.0), isa.load_part(&self.bias[i..end], 0.0));
                isa.store_part(isa.fma(d, w, b), &mut y[i..end]);
                i = end;
            }
        }
    }
}

/// Some tokens of several sequences that lie one after another: `y = x * mu + prev * (1 - mu)` for each `mu` and `y`, where `prev` is
/// the token before.
pub(crate) struct TokenMix<'a, const K: usize> {
    pub lens: &'a [usize],
    /// `[lens.len()][width]`: what the first tokens of the sequences come after.
    pub before: &'a [f32],
    pub x: &'a [f32],
    pub mu: [&'a [f32]; K],
    pub y: &'a [SharedMut<'a, f32>; K],
    /// Each token belongs to one task only.
    pub tokens: Range<usize>,
}

impl<const K: usize> Op for TokenMix<'_, K> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let width = self.before.len() / self.lens.len();
        let mut first = 0;
        for (&len, before) in self.lens.iter().zip(self.before.chunks_exact(width)) {
            for t in self.tokens.start.max(first)..self.tokens.end.min(first + len) {
                let prev = if t == first { before } else { &self.x[(t - 1) * width..t * width] };
                let row = t * width..(t + 1) * width;
                let x = &self.x[row.clone()];
                // SAFETY: the token belongs to this task.
                let mut y = self.y.each_ref().map(|y| unsafe { y.part(row.clone()) });
                let mut i = 0;
                while i < width {
                    let end = width.min(i + LANES);
                    let (x, prev) = (isa.load_part(&x[i..end], 0.0), isa.load_part(&prev[i..end], 0.0));
                    for (mu, y) in self.mu.iter().zip(&mut y) {
                        let mu = isa.load_part(&mu[i..end], 0.0);
                        let old = isa.mul(prev, isa.sub(isa.splat(1.0), mu));
                        isa.store_part(isa.fma(x, mu, old), &mut y[i..end]);
                    }
                    i = end;
                }
            }
            first += len;
        }
    }
}

struct LogSumExp<'a>(&'a [f32]);

impl Op for LogSumExp<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut highest = isa.splat(f32::NEG_INFINITY);
        for part in self.0.chunks(LANES) {
            highest = isa.max(isa.load_part(part, f32::NEG_INFINITY), highest);
        }
        let highest = isa.to_array(highest).into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        // Subtracting an infinite maximum would make NaN of it.
        let shift = if highest.is_finite() { highest } else { 0.0 };
        let mut sum = isa.splat(0.0);
        for part in self.0.chunks(LANES) {
            let v = isa.load_part(part, f32::NEG_INFINITY);
            sum = isa.add(sum, exp(isa, isa.sub(v, isa.splat(shift))));
        }
        log_of_sum(shift, sum_lanes(isa, sum))
    }
}

/// `ln(sum * exp(greatest))`: the end of [`log_sum_exp`], where the sum of `exp(x - greatest)` was made elsewhere.
pub fn log_of_sum(greatest: f32, sum: f32) -> f32 {
    (f64::from(greatest) + ln(sum)) as f32
}

/// Natural logarithm from additions, multiplications and divisions only: the C library's may differ between processors.
/// Absolute error below 1e-13.
fn ln(x: f32) -> f64 {
    if x.is_nan() || x <= 0.0 || x == f32::INFINITY {
        return if x == 0.0 {
            f64::NEG_INFINITY
        } else if x > 0.0 {
            f64::INFINITY
        } else {
            f64::NAN
        };
    }
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)); a subnormal f32 is a normal f64.
    let bits = f64::from(x).to_bits();
    let above = bits.wrapping_sub(std::f64::consts::FRAC_1_SQRT_2.to_bits());
    let e = (above as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((e as u64) << 52));
    // ln m = 2 artanh t, a series in t^2 <= 0.0295.
    let t = (m - 1.0) / (m + 1.0);
    let mut series = 0.0;
    for k in (0..9).rev() {
        series = series * (t * t) + 1.0 / f64::from(2 * k + 1);
    }
    e as f64 * std::f64::consts::LN_2 + 2.0 * t * series
}

/// `ln(sum(exp(x)))` without overflow; minus infinity for an empty slice, NaN if any element is NaN.
///
/// The result has the same bits on every instruction set.
pub fn log_sum_exp(level: Level, x: &[f32]) -> f32 {
    level.dispatch(LogSumExp(x))
}

/// `x = exp(x)` for every element, with the same bits on every instruction set.
pub fn exp_in_place(level: Level, x: &mut [f32]) {
    level.dispatch(Map(Exp, x));
}

/// `1 / (1 + exp(-x))` of one number, with the bits of the vector form.
pub fn sigmoidf(x: f32) -> f32 {
    1.0 / (1.0 + expf(0.0 - x))
}

/// `exp` of one number, with the bits of the vector form.
pub fn expf(x: f32) -> f32 {
    use crate::portable::fma;
    if x.is_nan() {
        return x;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    if x > EXP_MAX {
        return f32::INFINITY;
    }
    let magic = fma(x, std::f32::consts::LOG2_E, MAGIC);
    let n = magic - MAGIC;
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));
    let q = EXP_Q[..4].iter().rev().fold(EXP_Q[4], |q, &c| fma(q, r, c));
    let p = 1.0 + fma(r * r, q, r);
    f32::from_bits(p.to_bits().wrapping_add(magic.to_bits() << 23))
}

/// Index of the largest element, the first of equals. NaN counts as smaller than every number.
///
/// # Panics
/// If `x` is empty.
pub fn argmax(x: &[f32]) -> usize {
    assert!(!x.is_empty(), "argmax of nothing");
    // Two simple loops, which the compiler vectorises, instead of one with a branch. Comparisons with NaN are false.
    let (groups, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for group in groups {
        for (best, &v) in lanes.iter_mut().zip(group) {
            *best = if v > *best { v } else { *best };
        }
    }
    let highest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &v| if v > a { v } else { a });
    let holds = |group: &[f32; LANES]| group.iter().fold(false, |any, &v| any | (v == highest));
    let start = groups.iter().position(holds).unwrap_or(groups.len()) * LANES;
    // Nothing but NaN has no largest element.
    x[start..].iter().position(|&v| v == highest).map_or(0, |i| start + i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_same_bits};
    use crate::{Cpu, for_each_isa};

    const EPS: f32 = 1e-5;

    /// Lengths around whole vectors.
    fn lengths() -> impl Iterator<Item = usize> {
        1..=2 * LANES + 1
    }

    /// Distance in units of the last place of `wanted`.
    fn ulps(found: f32, wanted: f64) -> f64 {
        let rounded = wanted as f32;
        let unit = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
        (f64::from(found) - wanted).abs() / unit
    }

    fn naive_sum(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        for (i, &v) in x.iter().enumerate() {
            lanes[i % LANES] = f(lanes[i % LANES], v);
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    fn naive_layer_norm(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let n = weight.len() as f32;
        for (x, y) in x.chunks(weight.len()).zip(y.chunks_mut(weight.len())) {
            let mean = naive_sum(x, |a, v| a + v) / n;
            let variance = naive_sum(x, |a, v| (v - mean).mul_add(v - mean, a)) / n;
            let scale = 1.0 / (variance + EPS).sqrt();
            for i in 0..x.len() {
                y[i] = ((x[i] - mean) * scale).mul_add(weight[i], bias[i]);
            }
        }
    }

    #[test]
    fn exp_is_accurate_at_every_exponent() {
        let mut worst = 0.0f64;
        let step = if cfg!(miri) { 9_999_991 } else { 1_009 };
        for bits in (0..0x7f80_0000u32).step_by(step) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if (EXP_MIN..=EXP_MAX).contains(&x) {
                    worst = worst.max(ulps(expf(x), f64::from(x).exp()));
                }
            }
        }
        assert!(worst < 1.1, "{worst} units in the last place");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(expf(0.0), 1.0);
        assert_eq!(expf(-0.0), 1.0);
        assert_eq!(expf(-1e38), 0.0);
        assert_eq!(expf(f32::NEG_INFINITY), 0.0);
        assert_eq!(expf(-87.331), 0.0);
        assert!(expf(EXP_MIN) >= f32::MIN_POSITIVE);
        assert!(expf(88.722).is_finite());
        assert_eq!(expf(88.723), f32::INFINITY);
        assert_eq!(expf(f32::MAX), f32::INFINITY);
        assert!(expf(f32::NAN).is_nan());
    }

    #[test]
    fn vector_exp_has_the_bits_of_the_scalar() {
        let mut rng = Rng(7);
        let mut x: Vec<f32> =
            (0..if cfg!(miri) { 300 } else { 100_000 }).map(|_| f32::from_bits(rng.next_u32())).collect();
        x.extend((0..4_000).map(|i| (i - 2_000) as f32 * 0.0451));
        x.extend([0.0, -0.0, EXP_MIN, EXP_MAX, 88.723, -87.331, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -1e38]);
        let wanted: Vec<f32> = x.iter().map(|&x| expf(x)).collect();
        for_each_isa(|level| {
            let mut y = x.clone();
            exp_in_place(level, &mut y);
            assert_same_bits(&y, &wanted, level.name());
        });
    }

    #[test]
    fn elementwise_operations_at_every_length() {
        for_each_isa(|level| {
            let (cpu, name) = (Cpu::new(level, 1), level.name());
            let mut rng = Rng(11);
            for len in lengths().chain([0]) {
                let (x, y) = (rng.vec(len), rng.vec(len));
                let check = |op: &dyn Fn(&mut [f32]), naive: &dyn Fn(f32, f32) -> f32| {
                    let mut found = y.clone();
                    op(&mut found);
                    let wanted: Vec<f32> = x.iter().zip(&y).map(|(&x, &y)| naive(x, y)).collect();
                    assert_same_bits(&found, &wanted, name);
                };
                check(&|v| cpu.relu_squared(v), &|_, y| y.max(0.0) * y.max(0.0));
                check(&|v| cpu.heaviside(v), &|_, y| {
                    if y >= 0.0 { 1.0 } else { 0.0 }
                });
                check(&|v| cpu.scale(0.3, v), &|_, y| y * 0.3);
                check(&|v| cpu.add(&x, v), &|x, y| y + x);
                check(&|v| cpu.sigmoid_mul(&x, v), &|x, y| sigmoidf(x) * y);
            }
            let mut edges = [-0.0, 0.0, f32::NAN, -f32::MIN_POSITIVE, f32::INFINITY];
            cpu.heaviside(&mut edges);
            assert_same_bits(&edges, &[1.0, 1.0, 0.0, 0.0, 1.0], name);
            let mut edges = [-0.0, -3.0, f32::NAN, f32::NEG_INFINITY, 2.0];
            cpu.relu_squared(&mut edges);
            assert_same_bits(&edges, &[0.0, 0.0, f32::NAN, 0.0, 4.0], name);
        });
    }

    #[test]
    fn layer_norm_at_every_length() {
        for_each_isa(|level| {
            let mut rng = Rng(13);
            for threads in [1, 2] {
                let cpu = Cpu::new(level, threads);
                for width in lengths().chain([100, 768]) {
                    let n = if width == 768 && !cfg!(miri) { 70 } else { 3 };
                    let x = rng.vec(n * width);
                    let (weight, bias) = (rng.vec(width), rng.vec(width));
                    let mut wanted = vec![f32::NAN; n * width];
                    let mut found = wanted.clone();
                    naive_layer_norm(&x, &weight, &bias, &mut wanted);
                    cpu.layer_norm(&x, n, &weight, &bias, EPS, &mut found);
                    assert_same_bits(&found, &wanted, level.name());
                }
            }
        });
    }

    /// One sequence after another, one number at a time.
    fn naive_token_mix(lens: &[usize], before: &[f32], x: &[f32], mu: &[f32]) -> Vec<f32> {
        let (width, mut y) = (mu.len(), Vec::new());
        for (i, &len) in lens.iter().enumerate() {
            let mut prev = before[i * width..][..width].to_vec();
            for _ in 0..len {
                let x = &x[y.len()..][..width];
                y.extend((0..width).map(|i| x[i].mul_add(mu[i], prev[i] * (1.0 - mu[i]))));
                prev.copy_from_slice(x);
            }
        }
        y
    }

    #[test]
    fn token_mix_at_every_length_for_one_sequence_and_several() {
        for_each_isa(|level| {
            let mut rng = Rng(19);
            for threads in [1, 3] {
                let cpu = Cpu::new(level, threads);
                for width in lengths().chain([100, 768]) {
                    // So many tokens of 768 channels that the threads share them, also within a sequence.
                    let many: &[usize] = if width == 768 && !cfg!(miri) { &[1, 70, 0, 2] } else { &[2, 0, 1] };
                    for lens in [many, &[1], &[]] {
                        let n: usize = lens.iter().sum();
                        let (x, before) = (rng.vec(n * width), rng.vec(lens.len() * width));
                        let mus = [rng.vec(width), rng.vec(width), rng.vec(width)];
                        let [mut a, mut b, mut c, mut alone] = [(); 4].map(|()| vec![f32::NAN; n * width]);
                        let [mu_a, mu_b, mu_c] = &mus;
                        cpu.token_mix(lens, &before, &x, [(mu_a, &mut a), (mu_b, &mut b), (mu_c, &mut c)]);
                        cpu.token_mix(lens, &before, &x, [(mu_a, &mut alone)]);
                        for (found, mu) in [&a, &b, &c, &alone].into_iter().zip([mu_a, mu_b, mu_c, mu_a]) {
                            assert_same_bits(found, &naive_token_mix(lens, &before, &x, mu), level.name());
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn log_sum_exp_is_near_f64_and_equal_everywhere() {
        let mut rng = Rng(17);
        for len in lengths() {
            let x: Vec<f32> = rng.vec(len).iter().map(|v| v * 30.0).collect();
            let wanted = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            let reference = log_sum_exp(Level::by_name("portable").expect("always there"), &x);
            assert!((f64::from(reference) - wanted).abs() < 4e-6, "{len}: {reference} {wanted}");
            for_each_isa(|level| assert_same_bits(&[log_sum_exp(level, &x)], &[reference], level.name()));
        }
        for_each_isa(|level| {
            assert_eq!(log_sum_exp(level, &[]), f32::NEG_INFINITY);
            assert_eq!(log_sum_exp(level, &[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
            assert_eq!(log_sum_exp(level, &[1e30, 5.0]), 1e30);
            assert_eq!(log_sum_exp(level, &[f32::INFINITY, 5.0]), f32::INFINITY);
            assert!(log_sum_exp(level, &[1.0, f32::NAN, 5.0]).is_nan());
        });
    }

    #[test]
    fn ln_is_accurate() {
        for bits in (1..0x7f80_0000u32).step_by(if cfg!(miri) { 9_999_991 } else { 100_003 }) {
            let x = f32::from_bits(bits);
            assert!((ln(x) - f64::from(x).ln()).abs() < 1e-13, "{x:e}");
        }
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f32::INFINITY), f64::INFINITY);
        assert!(ln(f32::NAN).is_nan() && ln(-1.0).is_nan());
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_no_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -1.0, f32::NAN, 0.0]), 3);
        assert_eq!(argmax(&[f32::NEG_INFINITY]), 0);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
        assert_eq!(argmax(&[f32::NAN; 40]), 0);
        let mut rng = Rng(41);
        for len in lengths() {
            // Few different values, so that there are equals.
            let x: Vec<f32> = (0..len).map(|_| (rng.next_u32() % 5) as f32).collect();
            let wanted = (0..len).rev().max_by(|&a, &b| x[a].total_cmp(&x[b]));
            assert_eq!(Some(argmax(&x)), wanted, "{x:?}");
        }
    }
}
