//! Drafting for the rows of a decoder: which drafters there are, who asks which, and what came of it.

use std::time::Duration;

use super::RowId;
use super::plan::Demand;
use super::row::Row;
use crate::backend::Runner;
use crate::draft::{DraftRow, Drafter, MAX_DRAFT, Method, NGram, SpeculativeConfig, Verify};
use crate::error::{Error, Result};

/// What speculation means for one row.
#[derive(Clone, Debug, Default)]
pub(super) struct Speculation {
    /// The drafters it may ask, by index, best first.
    drafters: Vec<usize>,
    num_tokens: Option<usize>,
    pub(super) verify: Verify,
}

/// What tells one drafter of a decoder from the others.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// The caller's own.
    Own,
    NGram {
        min: usize,
        max: usize,
    },
}

/// The drafters of a decoder, each made when first asked for.
#[derive(Default)]
pub(super) struct Drafting {
    drafters: Vec<(Kind, Box<dyn Drafter>)>,
    /// Tokens that a drafter is told of.
    read: Vec<u32>,
}

impl Drafting {
    /// Finds or makes the drafters of a request.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for settings that make no sense, or that need what the model does not have.
    pub(super) fn admit(&mut self, config: &SpeculativeConfig, _runner: &impl Runner) -> Result<Speculation> {
        config.validate()?;
        let mut drafters = Vec::new();
        match config.method {
            Method::Off | Method::Auto => {}
            Method::Own => drafters.push(self.own()?),
            _ => {
                let (min, max) = (config.lookup_min, config.lookup_max);
                drafters.push(self.find(Kind::NGram { min, max }, || NGram::new(min, max))?);
            }
        }
        Ok(Speculation { drafters, num_tokens: config.num_tokens, verify: config.verify })
    }

    /// Puts the caller's own drafter in the place of the one before.
    pub(super) fn set_own(&mut self, drafter: Box<dyn Drafter>) {
        match self.drafters.iter_mut().find(|(kind, _)| *kind == Kind::Own) {
            Some((_, place)) => *place = drafter,
            None => self.drafters.push((Kind::Own, drafter)),
        }
    }

    fn own(&self) -> Result<usize> {
        self.drafters.iter().position(|(kind, _)| *kind == Kind::Own).ok_or_else(|| Error::Option {
            name: "method".into(),
            value: "own".into(),
            needed: "a drafter, given to the decoder".into(),
        })
    }

    /// The drafter of a kind, made if there is none.
    fn find<D: Drafter + 'static>(&mut self, kind: Kind, make: impl FnOnce() -> Result<D>) -> Result<usize> {
        if let Some(index) = self.drafters.iter().position(|(other, _)| *other == kind) {
            return Ok(index);
        }
        self.drafters.push((kind, Box::new(make()?)));
        Ok(self.drafters.len() - 1)
    }

    /// Lets the rows that speculate have their drafts.
    ///
    /// # Errors
    /// Of a drafter. No row has a draft then.
    pub(super) fn propose(&mut self, rows: &mut [Row], most_tokens: usize) -> Result<()> {
        rows.iter_mut().for_each(|row| row.draft.clear());
        if self.drafters.is_empty() {
            return Ok(());
        }
        // Every row reads one token at least, so guesses share what is left of a pass.
        let most = most_tokens.saturating_sub(rows.len()) / rows.len().max(1);
        for (index, (_, drafter)) in self.drafters.iter_mut().enumerate() {
            let mut asks: Vec<DraftRow<'_>> = rows
                .iter_mut()
                .filter(|row| row.draft.tokens.is_empty() && row.speculation.drafters.contains(&index))
                .filter_map(|row| {
                    let wanted = row.speculation.num_tokens.unwrap_or(MAX_DRAFT);
                    let n = row.most_guesses().min(wanted).min(most);
                    (n > 0).then(|| row.ask(n))
                })
                .collect();
            if asks.is_empty() {
                continue;
            }
            let proposed = drafter.propose(&mut asks, &mut |_, _| true);
            drop(asks);
            if let Err(error) = proposed {
                rows.iter_mut().for_each(|row| row.draft.clear());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tells of what became of a row's part of a pass: `accepted` of its guesses stay; `hidden` are the residual streams at
    /// the tokens that led to logits and stay.
    pub(super) fn observe(&mut self, row: &mut Row, accepted: usize, hidden: &[f32]) {
        if let Some(source) = row.draft.source {
            row.stats.speculation.note(source, row.draft.tokens.len(), accepted);
        }
        self.read.clear();
        self.read.extend_from_slice(row.last_read(1));
        self.read.extend_from_slice(&row.draft.tokens[..accepted]);
        for &index in &row.speculation.drafters {
            let drafter = &mut self.drafters[index].1;
            drafter.observe(row.id, &self.read, if drafter.wants_hidden() { hidden } else { &[] });
        }
    }

    /// Books the times of a step on the rows that were decoding: of drafting, of the pass, of drawing.
    pub(super) fn book(&self, rows: &mut [Row], demands: &[Demand], shares: &[usize], times: [Duration; 3]) {
        let [draft, verify, accept] = times.map(|time| time.as_secs_f64());
        let rows = rows.iter_mut().zip(demands).zip(shares);
        for ((row, _), _) in rows.filter(|((_, demand), share)| demand.decoding && **share > 0) {
            let stats = &mut row.stats.speculation;
            stats.draft_seconds += draft;
            stats.verify_seconds += verify;
            stats.accept_seconds += accept;
        }
    }

    /// A row has left.
    pub(super) fn forget(&mut self, row: RowId) {
        self.drafters.iter_mut().for_each(|(_, drafter)| drafter.forget(row));
    }
}
