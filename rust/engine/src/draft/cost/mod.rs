//! What decoding costs on this machine: the measured price of a pass over T tokens, of drafting and of drawing.
//!
//! Whether a draft pays depends on two curves only: how often its tokens are right, and how little a pass over several tokens
//! costs beyond a pass over one. The second one is measured here, once per machine and model, and kept on the disk.
//!
//! On a CPU, T tokens of one row cost what one token of each of T rows costs, but for some percent: the matrices are read once and
//! multiplied by T vectors either way, and only the recurrences, a hundredth of the work, tell rows from tokens. So one
//! curve over all tokens of a pass serves drafts, batches and both at once.

mod curve;
mod live;
mod measure;
mod store;

use std::sync::Arc;

pub use curve::Curve;
pub use live::LiveCosts;
pub use measure::Effort;
pub use store::Machine;

use super::Source;
use crate::backend::Runner;
use crate::error::Result;
use crate::model::Model;

/// What a drafter takes, by the number of rows that it drafts for at once.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftCost {
    /// Seconds of the first guess: reading what the row has done since the last draft is part of it.
    pub first: Curve,
    /// Seconds of every further one.
    pub next: Curve,
}

impl DraftCost {
    /// Seconds of a draft; `rows_at[i]` rows have a guess number `i`, and that is the number that never grows.
    fn seconds(&self, rows_at: impl Iterator<Item = f64>) -> f64 {
        rows_at.enumerate().map(|(depth, rows)| self.at(depth, rows)).sum()
    }

    /// Seconds of guess number `depth` for so many rows.
    fn at(&self, depth: usize, rows: f64) -> f64 {
        if depth == 0 { self.first.at(rows) } else { self.next.at(rows) }
    }
}

/// Measured costs. They do not change; see [`LiveCosts`] for a machine whose speed does.
#[derive(Clone, Debug, PartialEq)]
pub struct CostTable {
    pass: Curve,
    line: f64,
    drafts: [Option<DraftCost>; Source::ALL.len()],
}

impl CostTable {
    /// A table from given seconds: of passes, and of drawing one token.
    pub fn new(pass: Curve, line: f64) -> Self {
        Self { pass, line, drafts: Default::default() }
    }

    /// What [`measure`](Self::measure) found on this machine for this model, now or earlier.
    ///
    /// Passes run on a runner that is dropped afterwards, so that no memory stays. A cache that cannot be read or written
    /// only means that they are measured again.
    ///
    /// # Errors
    /// Those of [`Runner::forward`].
    pub fn of(model: &Arc<Model>) -> Result<Self> {
        let key = Machine::here().key(model);
        if let Some(pass) = store::load(&key, "pass") {
            return Ok(Self::new(pass, 0.0));
        }
        let table = Self::measure(&mut model.runner()?, Effort::default())?;
        store::save(&key, &[("pass", &table.pass)]);
        Ok(table)
    }

    /// Times passes with logits and a state after every token. The runner's slots are given back.
    ///
    /// # Errors
    /// Those of [`Runner::forward`].
    pub fn measure(runner: &mut dyn Runner, effort: Effort) -> Result<Self> {
        Ok(Self::new(measure::passes(runner, effort)?, 0.0))
    }

    /// Times `draw`, which draws one token from a line of logits.
    ///
    /// # Errors
    /// Those of `draw`.
    pub fn measure_line(&mut self, draw: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.line = measure::once(draw, Effort { seconds: 0.01, rounds: 31 })?;
        Ok(())
    }

    /// Times `draft(rows, tokens)`, which drafts so many tokens for so many rows. `name` tells the drafter from any other
    /// of this model; costs are remembered by it as passes are.
    ///
    /// # Errors
    /// Those of `draft`.
    pub fn measure_draft(
        &mut self,
        source: Source,
        model: &Model,
        name: &str,
        draft: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let key = format!("{}\n{name}", Machine::here().key(model));
        let cost = match (store::load(&key, "first"), store::load(&key, "next")) {
            (Some(first), Some(next)) => DraftCost { first, next },
            _ => {
                let cost = measure::drafts(draft, Effort { seconds: 0.1, rounds: 9 })?;
                store::save(&key, &[("first", &cost.first), ("next", &cost.next)]);
                cost
            }
        };
        self.set_draft(source, cost);
        Ok(())
    }

    /// Sets what drafts of a source cost. Those of n-grams and tables are looked up and cost nothing unless set.
    pub fn set_draft(&mut self, source: Source, cost: DraftCost) {
        self.drafts[source as usize] = Some(cost);
    }

    /// Seconds of a pass over so many tokens with logits after each, as measured.
    pub fn predict_pass(&self, tokens: f64) -> f64 {
        self.pass.at(tokens)
    }

    /// Seconds of drawing so many tokens, as measured.
    pub fn predict_lines(&self, lines: f64) -> f64 {
        self.line * lines
    }

    /// Seconds of drafting `lengths[i]` tokens for row `i`, all rows at once, as measured.
    pub fn predict_draft(&self, source: Source, lengths: impl Iterator<Item = usize>) -> f64 {
        self.draft_seconds(source, &live::rows_at(lengths))
    }

    /// The measured passes: tokens and seconds.
    pub fn passes(&self) -> &[(usize, f64)] {
        self.pass.points()
    }

    /// The measured costs of a drafter.
    pub fn draft(&self, source: Source) -> Option<&DraftCost> {
        self.drafts[source as usize].as_ref()
    }

    fn draft_seconds(&self, source: Source, rows_at: &[f64]) -> f64 {
        let rows = rows_at.iter().copied().take_while(|&rows| rows > 0.0);
        match self.draft(source) {
            Some(cost) => cost.seconds(rows),
            None => rows.map(|_| self.unknown_step(source)).sum(),
        }
    }

    /// Seconds of step number `depth` of a draft for so many rows.
    fn draft_step(&self, source: Source, depth: usize, rows: f64) -> f64 {
        match self.draft(source) {
            Some(cost) => cost.at(depth, rows),
            None => self.unknown_step(source) * rows.min(1.0),
        }
    }

    /// A network that nobody has timed is taken for a tenth of the model, until its drafts tell better.
    fn unknown_step(&self, source: Source) -> f64 {
        match source {
            Source::NGram | Source::Table => 0.0,
            Source::Prophet | Source::Model | Source::Own => 0.1 * self.predict_pass(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_costs_its_first_step_and_the_others() {
        let mut table = CostTable::new(Curve::through(&[(1, 1.0), (2, 1.1)]), 0.01);
        assert_eq!(table.predict_draft(Source::NGram, [4].into_iter()), 0.0);
        assert!((table.predict_draft(Source::Prophet, [4].into_iter()) - 0.4).abs() < 1e-12);
        let cost =
            DraftCost { first: Curve::through(&[(1, 0.3), (2, 0.4)]), next: Curve::through(&[(1, 0.1), (2, 0.15)]) };
        table.set_draft(Source::Prophet, cost);
        // Both rows have two guesses, one has a third.
        let seconds = table.predict_draft(Source::Prophet, [2, 3].into_iter());
        assert!((seconds - (0.4 + 0.15 + 0.1)).abs() < 1e-12, "{seconds}");
        assert_eq!(table.predict_draft(Source::Prophet, std::iter::empty()), 0.0);
        assert_eq!(table.predict_lines(3.0), 0.03);
    }
}
