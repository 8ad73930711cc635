//! What a sampler asks of a line of logits as wide as the vocabulary: few passes, each a whole vector at a time.

use crate::vecops::exp;
use crate::{Isa, LANES, Level, Op};

/// The greatest element, and whether all are finite. Minus infinity for none; where some are NaN, the greatest is anything.
pub fn survey(level: Level, x: &[f32]) -> (f32, bool) {
    level.dispatch(Survey(x))
}

/// Appends the indices of all elements that are at least `bar`, ascending.
pub fn at_least(level: Level, x: &[f32], bar: f32, indices: &mut Vec<u32>) {
    level.dispatch(AtLeast { x, bar, indices });
}

/// The index of the first element that is at least `bar`.
pub fn first_at_least(level: Level, x: &[f32], bar: f32) -> Option<usize> {
    level.dispatch(FirstAtLeast { x, bar })
}

/// Replaces `weights` by `exp((x - greatest) / temperature)`.
pub fn weigh(level: Level, x: &[f32], greatest: f32, temperature: f32, weights: &mut Vec<f32>) {
    // Old values are as good as any: every one is written over.
    weights.resize(x.len(), 0.0);
    level.dispatch(Weigh { x, greatest, temperature, weights });
}

/// Sum in f64, in eight lanes and one fixed order.
pub fn sum(level: Level, x: &[f32]) -> f64 {
    level.dispatch(Sum(x))
}

/// Weights from 0 to 1 in whole numbers, so that sums of a quarter of a million of them do not depend on their order: so many are 1, and
/// weights above 2^-20 lose nothing.
pub const UNITS: f64 = (1_u64 << 44) as f64;

/// A weight in [`UNITS`], to the nearest.
#[inline(always)]
pub fn units_of(weight: f32) -> u64 {
    // Where numbers are a unit apart.
    const WHOLE: f64 = (1_u64 << 52) as f64;
    (f64::from(weight) * UNITS + WHOLE).to_bits() - WHOLE.to_bits()
}

/// Sum of weights in [`UNITS`].
pub fn units(level: Level, weights: &[f32]) -> u64 {
    level.dispatch(Units(weights))
}

/// Divides by the [`sum`].
pub fn normalise(level: Level, x: &mut [f32]) {
    level.dispatch(Normalise(x));
}

/// The greatest element of every 16, to select from in place of all.
pub fn greatest_of_16(level: Level, x: &[f32], greatest: &mut Vec<f32>) {
    greatest.clear();
    level.dispatch(GreatestOf16 { x, greatest });
}

struct Survey<'a>(&'a [f32]);

impl Op for Survey<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> (f32, bool) {
        // Two of each, because one would wait for itself.
        let mut greatest = [isa.splat(f32::NEG_INFINITY); 2];
        let mut zeros = [isa.splat(0.0); 2];
        let zero = isa.splat(0.0);
        for pair in self.0.chunks(2 * LANES) {
            for (i, part) in pair.chunks(LANES).enumerate() {
                let v = isa.load_part(part, part[0]);
                greatest[i] = isa.max(v, greatest[i]);
                // Infinity times zero is NaN, which stays.
                zeros[i] = isa.fma(v, zero, zeros[i]);
            }
        }
        let zeros = isa.to_array(isa.add(zeros[0], zeros[1]));
        let greatest = isa.to_array(isa.max(greatest[0], greatest[1]));
        let greatest = greatest.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        (greatest, !zeros.into_iter().any(f32::is_nan))
    }
}

struct AtLeast<'a> {
    x: &'a [f32],
    bar: f32,
    indices: &'a mut Vec<u32>,
}

impl Op for AtLeast<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (group, part) in self.x.chunks(LANES).enumerate() {
            if isa.any_ge(isa.load_part(part, f32::NEG_INFINITY), isa.splat(self.bar)) {
                let found = part.iter().enumerate().filter(|(_, v)| **v >= self.bar);
                self.indices.extend(found.map(|(lane, _)| (group * LANES + lane) as u32));
            }
        }
    }
}

struct FirstAtLeast<'a> {
    x: &'a [f32],
    bar: f32,
}

impl Op for FirstAtLeast<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<usize> {
        let reaches = |part: &[f32]| isa.any_ge(isa.load_part(part, f32::NEG_INFINITY), isa.splat(self.bar));
        let start = self.x.chunks(LANES).position(reaches)? * LANES;
        self.x[start..].iter().position(|&v| v >= self.bar).map(|lane| start + lane)
    }
}

struct Weigh<'a> {
    x: &'a [f32],
    greatest: f32,
    temperature: f32,
    weights: &'a mut [f32],
}

impl Op for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (greatest, temperature) = (isa.splat(self.greatest), isa.splat(self.temperature));
        for (x, weights) in self.x.chunks(LANES).zip(self.weights.chunks_mut(LANES)) {
            let score = isa.div(isa.sub(isa.load_part(x, 0.0), greatest), temperature);
            isa.store_part(exp(isa, score), weights);
        }
    }
}

// The rest needs no intrinsics: the compiler makes vectors of it with whatever instructions `dispatch` enables.

struct Sum<'a>(&'a [f32]);

impl Op for Sum<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> f64 {
        let mut lanes = [0.0_f64; 8];
        let (chunks, rest) = self.0.as_chunks::<8>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(value);
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}

struct Units<'a>(&'a [f32]);

impl Op for Units<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> u64 {
        self.0.iter().fold(0, |sum: u64, &weight| sum.wrapping_add(units_of(weight)))
    }
}

struct Normalise<'a>(&'a mut [f32]);

impl Op for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let total = Sum(self.0).run(isa);
        for v in self.0 {
            *v = (f64::from(*v) / total) as f32;
        }
    }
}

struct GreatestOf16<'a> {
    x: &'a [f32],
    greatest: &'a mut Vec<f32>,
}

impl Op for GreatestOf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let larger = |a: f32, &b: &f32| if b > a { b } else { a };
        self.greatest.extend(self.x.chunks(LANES).map(|part| part.iter().fold(f32::NEG_INFINITY, larger)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_same_bits};
    use crate::{expf, for_each_isa};

    #[test]
    fn every_pass_equals_its_naive_twin_at_every_length() {
        for_each_isa(|level| {
            let mut rng = Rng(23);
            for len in 0..5 * LANES {
                let mut x = rng.vec(len);
                // Few different values, so that there are equals.
                x.iter_mut().for_each(|v| *v = (*v * 6.0).round());
                let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(survey(level, &x), (greatest, true));
                for bar in [-7.0, 0.0, 3.0, greatest, 7.0] {
                    let wanted: Vec<u32> = (0..len as u32).filter(|&i| x[i as usize] >= bar).collect();
                    let mut found = vec![9];
                    at_least(level, &x, bar, &mut found);
                    assert_eq!((found[0], &found[1..]), (9, &wanted[..]));
                    assert_eq!(first_at_least(level, &x, bar), wanted.first().map(|&i| i as usize));
                }
                let mut found = vec![f32::NAN; 3];
                weigh(level, &x, 6.0, 0.7, &mut found);
                assert_same_bits(&found, &x.iter().map(|v| expf((v - 6.0) / 0.7)).collect::<Vec<_>>(), level.name());
                greatest_of_16(level, &x, &mut found);
                let wanted: Vec<f32> = x.chunks(16).map(|part| part.iter().copied().fold(part[0], f32::max)).collect();
                assert_eq!(found, wanted);

                let weights: Vec<f32> = rng.vec(len).iter().map(|v| v.abs()).collect();
                let total = weights.iter().map(|&w| f64::from(w)).sum::<f64>();
                assert!((sum(level, &weights) - total).abs() < 1e-12 * (1.0 + total));
                let wanted: u64 = weights.iter().map(|&w| (f64::from(w) * UNITS).round_ties_even() as u64).sum();
                assert_eq!(units(level, &weights), wanted);
                let mut shares = weights.clone();
                normalise(level, &mut shares);
                let wanted: Vec<f32> =
                    weights.iter().map(|&w| (f64::from(w) / sum(Level::best(), &weights)) as f32).collect();
                assert_same_bits(&shares, &wanted, level.name());
            }
        });
    }

    #[test]
    fn one_number_that_is_not_finite_is_seen_wherever_it_is() {
        for_each_isa(|level| {
            for len in [1, 16, 17, 40, 64] {
                for at in 0..len {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut x = vec![f32::MAX; len];
                        x[at] = bad;
                        assert!(!survey(level, &x).1, "{bad} at {at} of {len}");
                    }
                }
            }
            // As banned tokens are.
            assert_eq!(survey(level, &[f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY]).0, 3.0);
            assert_eq!(survey(level, &[f32::NEG_INFINITY; 20]).0, f32::NEG_INFINITY);
        });
    }
}
