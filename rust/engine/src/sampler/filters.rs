//! Filters: each keeps a subset of the candidates, never none.
//!
//! Weights are probabilities up to one common factor, so nothing is divided until the end. A filter finds the last candidate
//! that it keeps by selection, not by sorting, which is linear in their number, and then drops all that rank behind it.
//! Only additions, multiplications, divisions and comparisons occur, in one fixed order or in whole numbers, so every
//! machine keeps the same candidates.

use spikelet_simd::units_of;

/// A token that may still be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    /// Logit after bias and penalties (and temperature, where that comes first), less the greatest of all.
    pub(super) score: f32,
    /// exp(score), above 0 and at most 1.
    pub(super) weight: f32,
}

/// The candidates, ascending by id.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
    /// Sum of the weights of the distribution that they stand for.
    pub(super) total: f64,
    /// The same in units.
    pub(super) units: u64,
    /// Scratch: rank and weight, to be selected from.
    ranked: Vec<Ranked>,
}

/// Rank (lower is better, no two are equal) and weight in units: sums of whole numbers do not depend on their order.
type Ranked = (u64, u64);

/// A number that grows with `value`, then with `id`.
fn rank(value: f32, id: u32) -> u64 {
    // The bits of f32 grow with the value above 0 and fall with it below; adding 0 turns -0 into 0.
    let bits = (value + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(id)
}

/// More probable first, lower id first among equals.
fn by_score(candidate: &Candidate) -> u64 {
    rank(-candidate.score, candidate.id)
}

impl Candidates {
    /// None, with room for `n`.
    pub(super) fn with_capacity(n: usize) -> Self {
        Self { list: Vec::with_capacity(n), total: 0.0, units: 0, ranked: Vec::with_capacity(n) }
    }

    /// Keeps the `k` most probable.
    pub(super) fn top_k(&mut self, k: usize) {
        if k < self.list.len() {
            self.rank(by_score);
            let last = self.ranked.select_nth_unstable(k - 1).1.0;
            self.list.retain(|c| by_score(c) <= last);
        }
        self.sum();
    }

    /// Keeps the most probable ones up to and including the one that brings their share to `share`.
    pub(super) fn top_p(&mut self, share: f32) {
        self.keep_share(share, by_score);
    }

    /// Keeps those at least `fraction` times as probable as the most probable one.
    pub(super) fn min_p(&mut self, fraction: f32) {
        let greatest = self.list.iter().map(|c| c.weight).fold(0.0, f32::max);
        let least = f64::from(fraction) * f64::from(greatest);
        self.list.retain(|c| f64::from(c.weight) >= least);
        self.sum();
    }

    /// Keeps those whose surprise is nearest to the expected surprise, up to and including the one that brings their share
    /// to `share`.
    ///
    /// Surprise is log Z - score and its expectation log Z - E(score), so log Z drops out of their distance.
    pub(super) fn typical(&mut self, share: f32) {
        let weighted: f64 = self.list.iter().map(|c| f64::from(c.weight) * f64::from(c.score)).sum();
        let expected = weighted / self.total;
        self.keep_share(share, |c| rank((f64::from(c.score) - expected).abs() as f32, c.id));
    }

    /// Keeps the best by `key` up to and including the one that brings their share of the total to `share`.
    fn keep_share(&mut self, share: f32, key: impl Fn(&Candidate) -> u64) {
        self.rank(&key);
        let enough = (f64::from(share) * self.units as f64).ceil() as u64;
        let last = border(&mut self.ranked, enough);
        self.list.retain(|c| key(c) <= last);
        self.sum();
    }

    fn rank(&mut self, key: impl Fn(&Candidate) -> u64) {
        self.ranked.clear();
        self.ranked.extend(self.list.iter().map(|c| (key(c), units_of(c.weight))));
    }

    fn sum(&mut self) {
        self.total = self.list.iter().map(|c| f64::from(c.weight)).sum();
        self.units = self.list.iter().map(|c| units_of(c.weight)).sum();
    }
}

/// The rank of the first one with which the weights, best rank first, sum to `enough`; of the last one if they never do.
fn border(mut ranked: &mut [Ranked], enough: u64) -> u64 {
    let mut before = 0;
    while ranked.len() > 1 {
        let middle = ranked.len() / 2;
        ranked.select_nth_unstable(middle);
        let (better, worse) = ranked.split_at_mut(middle);
        let with_better = before + better.iter().map(|(_, weight)| weight).sum::<u64>();
        if with_better >= enough {
            ranked = better;
        } else {
            before = with_better;
            ranked = worse;
        }
    }
    ranked[0].0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(scores: &[f32]) -> Candidates {
        let list: Vec<Candidate> = scores
            .iter()
            .enumerate()
            .map(|(id, &score)| Candidate { id: id as u32, score, weight: score.exp() })
            .collect();
        let mut candidates = Candidates { list, ..Default::default() };
        candidates.sum();
        candidates
    }

    fn ids(candidates: Candidates) -> Vec<u32> {
        assert!(candidates.list.is_sorted_by_key(|c| c.id));
        candidates.list.iter().map(|c| c.id).collect()
    }

    /// Ids, best first by `key` (smaller is better), lower ids first among equals.
    fn ranked(scores: &[f32], key: impl Fn(usize) -> f64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| key(a).total_cmp(&key(b)));
        order
    }

    fn softmax(scores: &[f32]) -> Vec<f64> {
        let weights: Vec<f64> = scores.iter().map(|s| f64::from(s.exp())).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    /// The shortest beginning of `order` with at least `share` of the probability.
    fn naive_share(order: &[usize], p: &[f64], share: f64) -> Vec<u32> {
        let enough = |n: &usize| order[..*n].iter().map(|&i| p[i]).sum::<f64>() >= share;
        let n = (1..=order.len()).find(enough).unwrap_or(order.len());
        let mut ids: Vec<u32> = order[..n].iter().map(|&i| i as u32).collect();
        ids.sort_unstable();
        ids
    }

    /// Scores with ties and wide gaps.
    fn scores() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(prop_oneof![(-20..1).prop_map(|i| i as f32 * 0.5), -30.0..0.0_f32], 1..40)
    }

    proptest! {
        #[test]
        fn top_k_equals_its_naive_twin(scores in scores(), k in 1..50_usize) {
            let mut fast = candidates(&scores);
            fast.top_k(k);
            let mut naive: Vec<u32> = ranked(&scores, |i| -f64::from(scores[i])).iter().take(k).map(|&i| i as u32).collect();
            naive.sort_unstable();
            prop_assert_eq!(ids(fast), naive);
        }

        #[test]
        fn top_p_equals_its_naive_twin(scores in scores(), share in 0.0..1.0_f32) {
            let mut fast = candidates(&scores);
            fast.top_p(share);
            let order = ranked(&scores, |i| -f64::from(scores[i]));
            prop_assert_eq!(ids(fast), naive_share(&order, &softmax(&scores), f64::from(share)));
        }

        #[test]
        fn min_p_equals_its_naive_twin(scores in scores(), fraction in 0.0..=1.0_f32) {
            let mut fast = candidates(&scores);
            fast.min_p(fraction);
            let p = softmax(&scores);
            let greatest = p.iter().copied().fold(0.0, f64::max);
            // Whether p / greatest reaches the fraction, but for its last bits.
            let ids = ids(fast);
            for (id, p) in p.iter().enumerate() {
                let ratio = p / greatest;
                if (ratio - f64::from(fraction)).abs() > 1e-9 {
                    prop_assert_eq!(ids.contains(&(id as u32)), ratio > f64::from(fraction));
                }
            }
            prop_assert!(!ids.is_empty());
        }

        #[test]
        fn typical_equals_its_naive_twin(scores in prop::collection::vec(-12.0..0.0_f32, 1..40), share in 0.0..1.0_f32) {
            let mut fast = candidates(&scores);
            fast.typical(share);
            let p = softmax(&scores);
            let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
            let order = ranked(&scores, |i| (-p[i].ln() - entropy).abs());
            prop_assert_eq!(ids(fast), naive_share(&order, &p, f64::from(share)));
        }

        #[test]
        fn totals_are_sums_of_what_is_left(scores in scores(), k in 1..50_usize, share in 0.0..=1.0_f32) {
            let mut c = candidates(&scores);
            let filters: [&dyn Fn(&mut Candidates); 4] =
                [&|c| c.top_k(k), &|c| c.top_p(share), &|c| c.min_p(share / 2.0), &|c| c.typical(share)];
            for filter in filters {
                filter(&mut c);
                prop_assert!(!c.list.is_empty());
                let sum: f64 = c.list.iter().map(|c| f64::from(c.weight)).sum();
                prop_assert_eq!(c.total, sum);
            }
        }
    }

    #[test]
    fn equals_at_the_border_keep_the_lowest_ids() {
        let scores = [-1.0, 0.0, -1.0, -1.0, -9.0];
        let mut top_k = candidates(&scores);
        top_k.top_k(3);
        assert_eq!(ids(top_k), [0, 1, 2]);
        let mut top_p = candidates(&[-1.0; 4]);
        top_p.top_p(0.5);
        assert_eq!(ids(top_p), [0, 1]);
        let mut one = candidates(&scores);
        one.top_p(0.0);
        assert_eq!(ids(one), [1]);
    }
}
