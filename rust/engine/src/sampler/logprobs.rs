//! Log probabilities as reported to users: the log softmax of the raw logits, before bias, penalties, temperature and
//! filters, so that generated and scored text can be compared.

use std::cmp::Ordering;

use spikelet_simd::{Level, log_sum_exp};

use crate::error::{Error, Result};

/// A token and the logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// The log probabilities behind one line of logits.
#[derive(Clone, Copy, Debug)]
pub struct Logprobs<'a> {
    logits: &'a [f32],
    log_sum: f32,
}

impl<'a> Logprobs<'a> {
    /// Reads a line of logits, one per token of the vocabulary.
    pub fn new(level: Level, logits: &'a [f32]) -> Self {
        Self { logits, log_sum: log_sum_exp(level, logits) }
    }

    /// Log probability of a token.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn of(&self, id: u32) -> f32 {
        self.logits[id as usize] - self.log_sum
    }

    /// Log probability of a token, where the logits can be trusted less.
    ///
    /// # Errors
    /// [`Error::Logits`] if it is not finite, because some logit is not.
    pub fn checked(&self, id: u32) -> Result<f32> {
        let logprob = self.of(id);
        if logprob.is_finite() {
            return Ok(logprob);
        }
        Err(Error::Logits { reason: format!("they give token {id} the log probability {logprob}") })
    }

    /// Appends the `n` most probable tokens, most probable first, lower ids first among equals.
    pub fn top(&self, n: usize, out: &mut Vec<TokenLogprob>) {
        if n == 0 {
            return;
        }
        let start = out.len();
        out.reserve(n + 1);
        for (id, &logit) in self.logits.iter().enumerate() {
            let entry = TokenLogprob { id: id as u32, logprob: logit - self.log_sum };
            let full = out.len() == start + n;
            // Ids ascend, so an equal one that comes later ranks lower.
            if full && out.last().is_some_and(|least| least.logprob >= entry.logprob) {
                continue;
            }
            let better = |e: &TokenLogprob| e.logprob.total_cmp(&entry.logprob) != Ordering::Less;
            let at = start + out[start..].partition_point(better);
            out.insert(at, entry);
            out.truncate(start + n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0, -2.0, 3.0, 3.0, 0.5, -2.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let logprobs = Logprobs::new(Level::best(), &logits);
        for (id, &logit) in logits.iter().enumerate() {
            let exact = f64::from(logit) - total.ln();
            assert!((f64::from(logprobs.of(id as u32)) - exact).abs() < 1e-6);
        }
    }

    #[test]
    fn the_top_is_a_stable_sort_cut_short() {
        let logits: Vec<f32> = (0..50).map(|i| ((i * 37 % 23) as f32) * 0.25).collect();
        let logprobs = Logprobs::new(Level::best(), &logits);
        let mut order: Vec<u32> = (0..50).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        for n in [0, 1, 2, 7, 49, 50] {
            let mut top = vec![TokenLogprob { id: 99, logprob: 9.0 }];
            logprobs.top(n, &mut top);
            assert_eq!(top.remove(0).id, 99, "what was there stays");
            let ids: Vec<u32> = top.iter().map(|t| t.id).collect();
            assert_eq!(ids, order[..n]);
            assert!(top.iter().all(|t| t.logprob == logprobs.of(t.id)));
        }
    }
}
