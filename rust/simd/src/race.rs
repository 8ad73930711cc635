//! The race that draws a token: every token runs for an exponential time divided by its weight, and the first one home is it.
//!
//! With `E_i` independent and exponential, token `i` has the greatest `weight_i / E_i` with probability `weight_i / sum of
//! weights` (the Gumbel-max trick, without logarithms of weights). Nothing needs to be summed or normalised, and two
//! distributions that are close have the same winner nearly always when they share the times: this is what lets drafts be
//! verified without a change of text (Daliri, Musco and Suresh, "Coupling without Communication and Drafter-Invariant
//! Speculative Decoding", arXiv:2408.07978).
//!
//! The result is defined in f64 by additions, multiplications and divisions alone. Vectors only leave out those who cannot
//! win: `E_i` is above the uniform number that it is made of, so whoever has less than the best score so far times that
//! number needs no logarithm.

use crate::{Isa, LANES, Level, Op};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Philox4x32-10 of Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011): ten rounds that
/// mix a 128-bit counter with a 64-bit key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    round_keys(key).into_iter().fold(counter, philox_round)
}

fn round_keys(key: [u32; 2]) -> [[u32; 2]; ROUNDS] {
    std::array::from_fn(|round| [0, 1].map(|i| key[i].wrapping_add(WEYL[i].wrapping_mul(round as u32))))
}

fn philox_round([a, b, c, d]: [u32; 4], [k, l]: [u32; 2]) -> [u32; 4] {
    let x = u64::from(MULTIPLIERS[0]) * u64::from(a);
    let y = u64::from(MULTIPLIERS[1]) * u64::from(c);
    [(y >> 32) as u32 ^ b ^ k, y as u32, (x >> 32) as u32 ^ d ^ l, x as u32]
}

/// The times of all tokens at one position of one row.
///
/// Token `id` has word `id % 4` of [`philox`] with the counter (position low, position high, row, `id / 4`) and the seed as
/// key. From that word w come `u = (w + 1/2) / 2^32` and its time `-ln(1 - u)`. This is part of what the crate promises: it
/// must not change, or the text of every seed does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Race {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Race {
    /// The race for the token at `position` of row `row` under `seed`.
    pub fn new(seed: u64, row: u32, position: u64) -> Race {
        Race { key: [seed as u32, (seed >> 32) as u32], counter: [position as u32, (position >> 32) as u32, row] }
    }

    /// The time of token `id`: exponential with mean 1, from 2^-33 to 22.9.
    pub fn time(&self, id: u32) -> f64 {
        let [a, b, c] = self.counter;
        exponential(philox([a, b, c, id / 4], self.key)[id as usize % 4])
    }

    /// Which token wins among `0..weights.len()`: the lowest of equals. None if no weight is above 0.
    pub fn winner(&self, level: Level, weights: &[f32]) -> Option<usize> {
        level.dispatch(Everyone { race: *self, weights })
    }

    /// The same among the tokens `ids`: the index of the winner in `ids`, the lowest of equals.
    ///
    /// # Panics
    /// If there are not as many weights as ids.
    pub fn winner_among(&self, level: Level, ids: &[u32], weights: &[f32]) -> Option<usize> {
        assert_eq!(ids.len(), weights.len(), "a weight for every id (left: ids, right: weights)");
        level.dispatch(Listed { race: *self, ids, weights })
    }
}

/// `-ln(1 - u)` with `u = (w + 1/2) / 2^32`. Relative error below 1e-15.
fn exponential(word: u32) -> f64 {
    // Of u and 1 - u the smaller one, which is exact in f64.
    let small = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    if word < 1 << 31 {
        return minus_ln_of_one_less(small(word));
    }
    // 1 - u = m / 2^k with m from 1/2 to 1.
    let rest = small(!word);
    let bits = rest.to_bits();
    let k = 1022 - (bits >> 52);
    let m = f64::from_bits(bits + (k << 52));
    k as f64 * std::f64::consts::LN_2 + minus_ln_of_one_less(1.0 - m)
}

/// `-ln(1 - y)` for y from 0 to 1/2, as `2 artanh(y / (2 - y))`: a series in at most 1/9.
fn minus_ln_of_one_less(y: f64) -> f64 {
    let t = y / (2.0 - y);
    let mut series = 0.0;
    for k in (0..16).rev() {
        series = series * (t * t) + 1.0 / f64::from(2 * k + 1);
    }
    2.0 * t * series
}

/// Who leads, and what it takes to be looked at.
struct Lead {
    race: Race,
    score: f64,
    winner: Option<usize>,
    /// Whoever has a weight below this times its word (as a number) has a lower score.
    bar: f32,
}

impl Lead {
    fn new(race: Race) -> Self {
        Lead { race, score: 0.0, winner: None, bar: 0.0 }
    }

    /// Lets up to 16 run: `words` are numbers, `start` is the index of the first and `id(lane)` the token of each.
    #[inline(always)]
    fn challenge<I: Isa>(&mut self, isa: I, words: I::V, weights: &[f32], start: usize, id: impl Fn(usize) -> u32) {
        let bars = isa.mul(words, isa.splat(self.bar));
        if !isa.any_ge(isa.load_part(weights, 0.0), bars) {
            return;
        }
        let bars = isa.to_array(bars);
        for (lane, (&weight, bar)) in weights.iter().zip(bars).enumerate() {
            if weight >= bar && weight > 0.0 {
                self.run(start + lane, id(lane), weight);
            }
        }
    }

    fn run(&mut self, index: usize, id: u32, weight: f32) {
        let score = f64::from(weight) / self.race.time(id);
        if score > self.score {
            self.score = score;
            self.winner = Some(index);
            // E > u > word / 2^32. The last factor is far from all rounding; a bar too small for its rounding to be known is none.
            let bar = score / 4_294_967_296.0 * (1.0 - 1e-6);
            let bar = bar.min(f64::from(f32::MAX)) as f32;
            self.bar = if bar >= f32::MIN_POSITIVE { bar } else { 0.0 };
        }
    }
}

/// Words as numbers, those from 2^31 on as 2^31: their times are above ln 2, and so above 1/2.
#[inline(always)]
fn numbers<I: Isa>(isa: I, words: I::N) -> I::V {
    let x = isa.to_f32(words);
    isa.select_gt(isa.splat(0.0), x, isa.splat(2_147_483_648.0), x)
}

/// [`philox`] of 16 counters whose last words are `blocks`.
#[inline(always)]
fn philox_lanes<I: Isa>(isa: I, [a, b, c]: [u32; 3], blocks: I::N, keys: &[[u32; 2]; ROUNDS]) -> [I::N; 4] {
    // The last word only enters the third in the first round, and by exclusive or.
    let [first, second, third, fourth] = philox_round([a, b, c, 0], keys[0]);
    let (mut a, mut b) = (isa.splat_n(first.cast_signed()), isa.splat_n(second.cast_signed()));
    let (mut c, mut d) = (isa.xor_n(isa.splat_n(third.cast_signed()), blocks), isa.splat_n(fourth.cast_signed()));
    let m = isa.splat_n(MULTIPLIERS[0].cast_signed());
    let n = isa.splat_n(MULTIPLIERS[1].cast_signed());
    for &[k, l] in &keys[1..] {
        let (x, y) = (isa.mul_wide(a, m), isa.mul_wide(c, n));
        a = isa.xor_n(isa.xor_n(y.0, b), isa.splat_n(k.cast_signed()));
        c = isa.xor_n(isa.xor_n(x.0, d), isa.splat_n(l.cast_signed()));
        (b, d) = (y.1, x.1);
    }
    [a, b, c, d]
}

struct Everyone<'a> {
    race: Race,
    weights: &'a [f32],
}

impl Op for Everyone<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<usize> {
        let Race { key, counter } = self.race;
        let keys = round_keys(key);
        let mut lead = Lead::new(self.race);
        let mut blocks = isa.load_n(&std::array::from_fn(|lane| lane as u32));
        for (index, group) in self.weights.chunks(4 * LANES).enumerate() {
            let [a, b, c, d] = philox_lanes(isa, counter, blocks, &keys);
            blocks = isa.add_n(blocks, isa.splat_n(LANES as i32));
            // From four words of 16 blocks to the order of ids.
            let (even, odd) = (isa.zip_n(a, c), isa.zip_n(b, d));
            let (low, high) = (isa.zip_n(even.0, odd.0), isa.zip_n(even.1, odd.1));
            let mut start = index * 4 * LANES;
            for (words, weights) in [low.0, low.1, high.0, high.1].into_iter().zip(group.chunks(LANES)) {
                lead.challenge(isa, numbers(isa, words), weights, start, |lane| (start + lane) as u32);
                start += LANES;
            }
        }
        lead.winner
    }
}

struct Listed<'a> {
    race: Race,
    ids: &'a [u32],
    weights: &'a [f32],
}

impl Op for Listed<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<usize> {
        let Race { key, counter } = self.race;
        let keys = round_keys(key);
        let mut lead = Lead::new(self.race);
        for (index, (ids, weights)) in self.ids.chunks(LANES).zip(self.weights.chunks(LANES)).enumerate() {
            let mut part = [0; LANES];
            part[..ids.len()].copy_from_slice(ids);
            // id / 4, and id % 4 as the upper two bits, which look like 0, 2^30, -2^31 and -2^30.
            let (blocks, place) = isa.mul_wide(isa.load_n(&part), isa.splat_n(1 << 30));
            let place = isa.to_f32(place);
            let [a, b, c, d] = philox_lanes(isa, counter, blocks, &keys);
            let low = isa.select_gt(place, isa.splat(0.0), numbers(isa, b), numbers(isa, a));
            let high = isa.select_gt(place, isa.splat(-1_610_612_736.0), numbers(isa, d), numbers(isa, c));
            let words = isa.select_gt(isa.splat(0.0), place, high, low);
            lead.challenge(isa, words, weights, index * LANES, |lane| ids[lane]);
        }
        lead.winner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_each_isa;
    use crate::testing::Rng;

    /// The vectors that the authors publish with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_its_authors_numbers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    /// Every token runs, no vectors.
    fn naive_winner(race: &Race, ids: &[u32], weights: &[f32]) -> Option<usize> {
        let mut lead = (0.0, None);
        for (index, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
            let score = f64::from(weight) / race.time(id);
            if score > lead.0 {
                lead = (score, Some(index));
            }
        }
        lead.1
    }

    #[test]
    fn nobody_who_could_win_is_left_out() {
        let mut rng = Rng(5);
        let rounds = if cfg!(miri) { 6 } else { 600 };
        for round in 0..rounds {
            let race = Race::new(rng.next_u32().into(), rng.next_u32() % 3, (rng.next_u32() % 5).into());
            let len = if round % 3 == 0 { rng.next_u32() as usize % 2000 } else { rng.next_u32() as usize % 150 };
            let mut weight = |i: usize| match round % 6 {
                // Alike; far apart; ever greater; mostly none; too small for a bar; the greatest there are.
                0 => rng.unit() + 1.0,
                1 => (rng.unit() * 40.0).exp(),
                2 => (i as f32 * 0.04 - 80.0).exp(),
                3 => f32::from(rng.next_u32().is_multiple_of(9)),
                4 => f32::from_bits(rng.next_u32() % 300),
                _ => f32::MAX * (1.0 - rng.unit().abs() * 0.5),
            };
            let weights: Vec<f32> = (0..len).map(&mut weight).collect();
            let all: Vec<u32> = (0..len as u32).collect();
            let some: Vec<u32> = all.iter().map(|id| id * 3 + rng.next_u32() % 3).collect();
            let (wanted, among) = (naive_winner(&race, &all, &weights), naive_winner(&race, &some, &weights));
            for_each_isa(|level| {
                assert_eq!(race.winner(level, &weights), wanted, "{} {round}", level.name());
                assert_eq!(race.winner_among(level, &all, &weights), wanted, "{} {round}", level.name());
                assert_eq!(race.winner_among(level, &some, &weights), among, "{} {round}", level.name());
            });
        }
    }

    #[test]
    fn without_a_weight_nobody_wins_and_with_one_it_does() {
        let race = Race::new(3, 0, 9);
        for_each_isa(|level| {
            for len in 0..150 {
                let mut weights = vec![0.0; len];
                assert_eq!(race.winner(level, &weights), None);
                if len > 0 {
                    weights[len * 2 / 3] = f32::from_bits(1);
                    assert_eq!(race.winner(level, &weights), Some(len * 2 / 3));
                }
            }
            assert_eq!(race.winner(level, &[f32::NAN, 1.0, f32::NAN]), Some(1));
        });
    }

    #[test]
    fn times_are_logarithms() {
        let edges = [0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, u32::MAX - 1, u32::MAX];
        let mut rng = Rng(8);
        let words = (0..if cfg!(miri) { 100 } else { 200_000 }).map(|i| rng.next_u32() >> (i % 32));
        for word in edges.into_iter().chain(words.flat_map(|w| [w, !w])) {
            let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
            let wanted = -(-u).ln_1p();
            let found = exponential(word);
            assert!((found / wanted - 1.0).abs() < 4e-15, "{word}: {found} {wanted}");
        }
    }

    /// Computed apart from this crate, with 200 bits, from the description of [`Race`]: texts of a seed must stay what they are.
    #[test]
    fn races_never_change_and_are_those_of_every_processor() {
        let near = |time: f64, wanted: f64| assert!((time / wanted - 1.0).abs() < 1e-15, "{time} {wanted}");
        near(Race::new(0, 0, 0).time(0), 0.509_237_669_833_078_7);
        near(Race::new(7, 3, 5).time(1), 0.570_879_369_656_850_1);
        near(Race::new(0x1234_5678_9abc_def0, 2, (1 << 33) + 1).time(50_276), 0.580_433_008_204_505_5);
        near(Race::new(42, 0, 11).time(6), 5.748_614_409_340_183);
        let weights: Vec<f32> = (0..1000).map(|id| 1.0 / (1 + id % 10) as f32).collect();
        let squares: Vec<u32> = (0..200).map(|i| i * i).collect();
        let cycle: Vec<f32> = (0..200).map(|i| (1 + i % 7) as f32).collect();
        for (seed, wanted, among) in [
            (0, [858, 371, 4, 855], 187),
            (7, [219, 38, 368, 630], 144),
            (0x1234_5678_9abc_def0, [10, 810, 322, 727], 111),
        ] {
            for_each_isa(|level| {
                for (position, wanted) in (0..).zip(wanted) {
                    assert_eq!(Race::new(seed, 1, position).winner(level, &weights), Some(wanted));
                }
                assert_eq!(Race::new(seed, 1, 9).winner_among(level, &squares, &cycle), Some(among));
            });
        }
    }

    #[test]
    fn tokens_win_as_often_as_their_weights_say() {
        let weights: [f32; 9] = [1.0, 0.0, 2.0, 0.5, 8.0, 1e-20, 3.0, 3.0, 0.25];
        let races = if cfg!(miri) { 100 } else { 200_000 };
        let mut counts = [0_u32; 9];
        for position in 0..races {
            let winner = Race::new(position % 7, position as u32 % 5, position).winner(Level::best(), &weights);
            counts[winner.expect("weights above 0")] += 1;
        }
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        assert_eq!((counts[1], counts[5]), (0, 0));
        // Chi-square with 6 degrees of freedom: 22.5 is passed once in a thousand.
        let chi: f64 = weights
            .iter()
            .zip(counts)
            .map(|(&w, seen)| (f64::from(w) / total * races as f64, f64::from(seen)))
            .filter(|(expected, _)| *expected > 1e-9)
            .map(|(expected, seen)| (seen - expected).powi(2) / expected)
            .sum();
        assert!(chi < 22.5, "{chi} {counts:?}");
    }
}
