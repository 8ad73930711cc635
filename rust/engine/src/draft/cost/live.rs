//! Costs that follow the machine: measured ones, corrected by what rounds really take.

use std::sync::Arc;

use super::CostTable;
use crate::draft::{MAX_DRAFT, Source};

/// Passes of so many tokens and fewer, down to the one before, share a correction.
const BUCKETS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64];

/// A [`CostTable`] and how far this machine, now, is from it.
///
/// Processors change their clock and share their memory with others, all of which scales every cost at once; and single
/// figures of the table may be off. So there is one factor for all and one for each kind of work. Both move slowly, and no
/// single observation moves them far: one that took ten times as long was interrupted and says little about the next.
#[derive(Clone, Debug)]
pub struct LiveCosts {
    table: Arc<CostTable>,
    speed: Factor,
    pass: [Factor; BUCKETS.len() + 1],
    drafts: [Factor; Source::ALL.len()],
    line: Mean,
    /// Of a round with drafts and of one without, beside passes, drafts and draws.
    rest: [Mean; 2],
    /// What the round in progress was told so far.
    told: f64,
    /// Passes so far.
    passes: u32,
}

impl LiveCosts {
    /// As measured.
    pub fn new(table: Arc<CostTable>) -> Self {
        let line = Mean { seconds: table.predict_lines(1.0), known: table.predict_lines(1.0) > 0.0 };
        Self {
            table,
            speed: Factor::default(),
            pass: Default::default(),
            drafts: Default::default(),
            line,
            rest: Default::default(),
            told: 0.0,
            passes: 0,
        }
    }

    /// The measured costs.
    pub fn table(&self) -> &Arc<CostTable> {
        &self.table
    }

    /// Seconds that a pass over so many tokens, with logits after each, will take.
    pub fn expect_pass(&self, tokens: f64) -> f64 {
        self.table.predict_pass(tokens) * self.speed.value * self.pass[bucket(tokens)].value
    }

    /// Seconds of guess number `depth` (0 is the first) for so many rows at once.
    pub fn expect_step(&self, source: Source, depth: usize, rows: f64) -> f64 {
        let factor = self.speed.value * self.drafts[source as usize].value;
        self.table.draft_step(source, depth, rows) * factor
    }

    /// Seconds of drawing a token.
    pub fn expect_line(&self) -> f64 {
        self.line.seconds
    }

    /// Seconds of the rest of a round.
    pub fn expect_rest(&self, drafted: bool) -> f64 {
        self.rest[usize::from(drafted)].seconds
    }

    /// A pass over so many tokens, all with logits, took so many seconds.
    pub fn note_pass(&mut self, tokens: usize, seconds: f64) {
        self.told += seconds;
        let expected = self.expect_pass(tokens as f64);
        self.speed.learn(expected, seconds);
        self.pass[bucket(tokens as f64)].learn(expected, seconds);
        self.passes = self.passes.wrapping_add(1);
        if self.passes.is_multiple_of(Factor::REST) {
            // What single tokens take is what the machine's speed is known by.
            let [single, several @ ..] = &mut self.pass;
            single.fade();
            several.iter_mut().chain(&mut self.drafts).filter(|factor| factor.log > 0.0).for_each(Factor::fade);
        }
    }

    /// Drafting `lengths[i]` tokens for row `i`, all at once, took so many seconds.
    pub fn note_draft(&mut self, source: Source, lengths: impl Iterator<Item = usize>, seconds: f64) {
        self.told += seconds;
        let factor = self.speed.value * self.drafts[source as usize].value;
        let expected = self.table.draft_seconds(source, &rows_at(lengths)) * factor;
        self.drafts[source as usize].learn(expected, seconds);
    }

    /// Drawing so many tokens took so many seconds.
    pub fn note_lines(&mut self, lines: usize, seconds: f64) {
        self.told += seconds;
        if lines > 0 {
            self.line.learn(seconds / lines as f64);
        }
    }

    /// The round is over and took so many seconds in all, those of its pass, drafts and draws included.
    pub fn note_round(&mut self, drafted: bool, seconds: f64) {
        self.rest[usize::from(drafted)].learn((seconds - self.told).max(0.0));
        self.told = 0.0;
    }
}

fn bucket(tokens: f64) -> usize {
    if tokens < 8.5 {
        return (tokens + 0.5) as usize - usize::from(tokens >= 0.5);
    }
    BUCKETS.partition_point(|&most| (most as f64) < tokens - 0.5)
}

/// How many rows get a guess number 0, 1, 2 ...
pub(super) fn rows_at(lengths: impl Iterator<Item = usize>) -> [f64; MAX_DRAFT] {
    let mut rows = [0.0; MAX_DRAFT];
    for length in lengths {
        rows[..length.min(MAX_DRAFT)].iter_mut().for_each(|n| *n += 1.0);
    }
    rows
}

/// How many times as long something takes as was measured.
#[derive(Clone, Copy, Debug)]
struct Factor {
    /// Its logarithm: twice and half are equally far from 1.
    log: f64,
    value: f64,
    seen: f64,
}

impl Default for Factor {
    fn default() -> Self {
        Self { log: 0.0, value: 1.0, seen: 0.0 }
    }
}

impl Factor {
    /// Share of a deviation that is believed at once ..
    const RATE: f64 = 0.1;
    /// .. and at first, when nothing but the table is known.
    const FIRST: f64 = 0.3;
    /// Deviations count as this one at most: some 10 % up, because interruptions only ever add, and 30 % down.
    const CLAMP: (f64, f64) = (-0.26, 0.1);
    /// Passes between two times to fade.
    const REST: u32 = 16;

    fn learn(&mut self, expected: f64, seconds: f64) {
        if expected > 0.0 && seconds > 0.0 {
            self.seen += 1.0;
            let rate = (Self::FIRST / self.seen.sqrt()).max(Self::RATE);
            self.log += rate * (seconds / expected).ln().clamp(Self::CLAMP.0, Self::CLAMP.1);
            self.value = self.log.exp();
        }
    }

    /// Leans back to what was measured. A kind of work that is done is soon learnt anew; one that is not done any more, because it
    /// seemed too dear at a bad moment, gets another chance. One that proved cheaper than measured stays so: where that is wrong,
    /// it is done and learnt.
    fn fade(&mut self) {
        self.log *= 1.0 - 1.0 / f64::from(Self::REST);
        self.value = self.log.exp();
    }
}

/// Seconds of something that was not measured before.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    seconds: f64,
    known: bool,
}

impl Mean {
    fn learn(&mut self, seconds: f64) {
        if self.known {
            // An interruption counts as twice the usual, and a little more so that it can grow from 0.
            let seconds = seconds.min(2.0 * self.seconds + 1e-7);
            self.seconds += Factor::RATE * (seconds - self.seconds);
        } else {
            *self = Self { seconds, known: true };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::cost::Curve;

    fn live() -> LiveCosts {
        LiveCosts::new(Arc::new(CostTable::new(Curve::through(&[(1, 1e-2), (4, 1.2e-2), (8, 2e-2)]), 1e-5)))
    }

    #[test]
    fn numbers_of_tokens_share_corrections() {
        for tokens in 0..1000 {
            let tokens = f64::from(tokens) / 4.0;
            let found = BUCKETS.partition_point(|&most| (most as f64) < tokens - 0.5);
            assert!(bucket(tokens).abs_diff(found) <= usize::from(tokens.fract() == 0.5), "{tokens}");
        }
        assert_eq!([1.0, 2.4, 8.0, 9.0, 12.0, 13.0, 64.0, 65.0].map(bucket), [0, 1, 7, 8, 8, 9, 13, 14]);
    }

    #[test]
    fn it_follows_a_machine_that_slows_down_and_leaves_the_measurement_alone() {
        let mut costs = live();
        for _ in 0..200 {
            costs.note_pass(4, 2.4e-2);
        }
        assert!((costs.expect_pass(4.0) / 2.4e-2 - 1.0).abs() < 0.01, "{}", costs.expect_pass(4.0));
        assert!(costs.expect_pass(1.0) > 1.3e-2, "the others are slower, too");
        assert_eq!(costs.table().predict_pass(4.0), 1.2e-2);
        // It was all the machine, and a few passes of the other kind tell.
        for _ in 0..60 {
            costs.note_pass(1, 2e-2);
        }
        assert!((costs.expect_pass(1.0) / 2e-2 - 1.0).abs() < 0.05, "{}", costs.expect_pass(1.0));
    }

    #[test]
    fn what_is_not_done_any_more_is_believed_to_cost_what_was_measured() {
        let mut costs = live();
        for _ in 0..50 {
            costs.note_pass(1, 1e-2);
            costs.note_pass(4, 1.8e-2);
        }
        assert!(costs.expect_pass(4.0) > 1.7e-2 * costs.expect_pass(1.0) / 1e-2);
        for _ in 0..1000 {
            costs.note_pass(1, 1e-2);
        }
        let ratio = costs.expect_pass(4.0) / costs.expect_pass(1.0);
        assert!((ratio - 1.2).abs() < 0.06, "{ratio}");
    }

    #[test]
    fn what_was_measured_at_a_bad_moment_is_put_right_by_a_few_passes() {
        let mut costs = LiveCosts::new(Arc::new(CostTable::new(Curve::through(&[(1, 1e-2), (2, 1.5e-2)]), 1e-5)));
        for _ in 0..8 {
            costs.note_pass(2, 1.1e-2);
            for _ in 0..200 {
                costs.note_pass(1, 1e-2);
            }
        }
        let ratio = costs.expect_pass(2.0) / costs.expect_pass(1.0);
        assert!((ratio / 1.1 - 1.0).abs() < 0.1, "{ratio}");
    }

    #[test]
    fn an_interruption_moves_little() {
        let mut costs = live();
        for _ in 0..20 {
            costs.note_pass(1, 1e-2);
        }
        costs.note_pass(1, 10.0);
        assert!(costs.expect_pass(1.0) < 1.06e-2, "{}", costs.expect_pass(1.0));
        costs.note_pass(1, 0.0);
        costs.note_pass(1, f64::NAN);
        assert!(costs.expect_pass(1.0).is_finite());
        for _ in 0..10 {
            costs.note_lines(1, 1e-5);
        }
        costs.note_lines(1, 1.0);
        assert!(costs.expect_line() < 1.2e-5);
    }

    #[test]
    fn a_wrong_figure_of_the_table_is_put_right() {
        let mut costs = live();
        for _ in 0..100 {
            costs.note_pass(1, 1e-2);
            costs.note_pass(4, 3e-2);
        }
        let ratio = costs.expect_pass(4.0) / costs.expect_pass(1.0);
        assert!((ratio - 3.0).abs() < 0.25, "{ratio}");
    }

    #[test]
    fn what_a_round_takes_beside_is_kept_apart() {
        let mut costs = live();
        for drafted in [true, false] {
            for _ in 0..50 {
                costs.note_pass(1, 1e-2);
                costs.note_lines(2, 2e-5);
                costs.note_round(drafted, 1e-2 + 2e-5 + if drafted { 3e-5 } else { 1e-5 });
            }
        }
        assert!((costs.expect_rest(true) - 3e-5).abs() < 1e-9);
        assert!((costs.expect_rest(false) - 1e-5).abs() < 1e-9);
    }

    #[test]
    fn a_drafter_that_nobody_has_timed_is_learnt() {
        let mut costs = live();
        assert_eq!(costs.expect_step(Source::NGram, 0, 1.0), 0.0);
        for _ in 0..200 {
            costs.note_draft(Source::Prophet, [2, 1].into_iter(), 4e-4);
            costs.note_draft(Source::Prophet, std::iter::empty(), 1.0);
        }
        let steps = costs.expect_step(Source::Prophet, 0, 2.0) + costs.expect_step(Source::Prophet, 1, 1.0);
        assert!((steps / 4e-4 - 1.0).abs() < 0.01, "{steps}");
    }
}
