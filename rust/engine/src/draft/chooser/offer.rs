//! What rows could draft from, and what that promises.

use std::cmp::{Ordering, Reverse};
use std::ops::Range;

use super::HOPELESS;
use super::belief::{Belief, Gate, RowRecord};
use crate::draft::{MAX_DRAFT, Source};

/// What a row could draft from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub source: Source,
    pub record: RowRecord,
    /// Drafted already: it costs nothing more.
    pub ready: bool,
    /// Most guesses.
    pub len: usize,
    /// So many of them cannot be cut.
    pub fixed: usize,
    /// Tokens that the first 0, 1, 2 ... guesses are expected to bring ..
    pub gain: [f64; MAX_DRAFT + 1],
    /// .. and to add to the pass. Of a draft that may stop before, a guess counts only in part.
    pub tokens: [f64; MAX_DRAFT + 1],
}

impl Offer {
    pub fn new(source: Source, record: &RowRecord, ready: bool, len: usize) -> Self {
        let none = [0.0; MAX_DRAFT + 1];
        Self { source, record: *record, ready, len: len.min(MAX_DRAFT), fixed: 0, gain: none, tokens: none }
    }

    /// Probability that guess number `depth` is drafted at all.
    pub fn reach(&self, depth: usize) -> f64 {
        if depth == 0 { 1.0 } else { self.tokens[depth] - self.tokens[depth - 1] }
    }

    /// Chance that the row gets as far as guess number `depth`, if that is in the pass, and that it comes true.
    pub fn chance(&self, depth: usize) -> f64 {
        (self.gain[depth + 1] - self.gain[depth]) / (self.tokens[depth + 1] - self.tokens[depth]).max(1e-9)
    }

    /// Expects guesses behind `gate`.
    pub fn expect(&mut self, belief: &Belief, gate: Gate) {
        let (mut alive, mut reached) = (1.0, 1.0);
        for depth in 0..self.len {
            reached *= gate.share;
            alive *= gate.share * belief.chance_behind(gate, &self.record, depth);
            self.gain[depth + 1] = self.gain[depth] + alive;
            self.tokens[depth + 1] = self.tokens[depth] + reached;
            if alive < HOPELESS * reached && self.fixed == 0 {
                // None of the others will be looked at.
                let (gain, tokens) = (self.gain[depth + 1], self.tokens[depth + 1]);
                self.gain[depth + 2..].fill(gain);
                self.tokens[depth + 2..].fill(tokens);
                break;
            }
        }
    }

    /// Expects guesses of which the drafter was so sure.
    pub fn expect_known(&mut self, belief: &Belief, confidence: &[f32]) {
        let mut alive = 1.0;
        for (depth, &confidence) in confidence[..self.len].iter().enumerate() {
            alive *= belief.chance(&self.record, confidence, depth);
            self.gain[depth + 1] = self.gain[depth] + alive;
            self.tokens[depth + 1] = (depth + 1) as f64;
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub max_tokens: usize,
    /// It drafts as many whether that pays or not.
    pub fixed: bool,
    /// Its offers, by index.
    pub offers: Range<usize>,
    /// The one that is looked at.
    pub chosen: Option<usize>,
    /// Guesses it gets, as far as one can tell before they are made.
    pub planned: usize,
}

/// The next guess of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Next {
    pub chance: f64,
    pub row: usize,
}

impl Eq for Next {}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> Ordering {
        self.chance.total_cmp(&other.chance).then(Reverse(self.row).cmp(&Reverse(other.row)))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
