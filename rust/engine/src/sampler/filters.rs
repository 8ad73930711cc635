//! Filters: each keeps a subset of the candidates, never none.
//!
//! Weights are probabilities up to one common factor, so nothing is divided until the end. Sums are in f64 and in one fixed
//! order; only additions, multiplications, divisions and comparisons occur, so every machine keeps the same candidates.

use std::cmp::Ordering;

/// A token that may still be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    /// Logit after bias and penalties (and temperature, where that comes first), less the greatest of all.
    pub(super) score: f32,
    /// exp(score), above 0.
    pub(super) weight: f32,
}

/// The candidates and the sum of weights of the distribution they stand for.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
    pub(super) total: f64,
}

/// More probable first, lower id first among equals: the order in which every border is drawn.
fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

impl Candidates {
    /// Keeps the `k` most probable.
    pub(super) fn top_k(&mut self, k: usize) {
        if k < self.list.len() {
            self.list.select_nth_unstable_by(k - 1, by_score);
            self.list.truncate(k);
            // The order that selection leaves is an accident of its algorithm, and sums depend on the order.
            self.list.sort_unstable_by_key(|c| c.id);
        }
        self.sum();
    }

    /// Keeps the most probable ones up to and including the one that brings their share to `share`.
    pub(super) fn top_p(&mut self, share: f32) {
        self.list.sort_unstable_by(by_score);
        self.keep_share(share);
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
        let distance = |c: &Candidate| (f64::from(c.score) - expected).abs();
        self.list.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id)));
        self.keep_share(share);
    }

    /// Keeps the first ones up to and including the one that brings their share of the total to `share`.
    fn keep_share(&mut self, share: f32) {
        let enough = f64::from(share) * self.total;
        let mut sum = 0.0;
        let reached = self.list.iter().position(|c| {
            sum += f64::from(c.weight);
            sum >= enough
        });
        if let Some(last) = reached {
            self.list.truncate(last + 1);
        }
        self.sum();
    }

    fn sum(&mut self) {
        self.total = self.list.iter().map(|c| f64::from(c.weight)).sum();
    }
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
        let mut candidates = Candidates { list, total: 0.0 };
        candidates.sum();
        candidates
    }

    fn ids(mut candidates: Candidates) -> Vec<u32> {
        candidates.list.sort_by_key(|c| c.id);
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
