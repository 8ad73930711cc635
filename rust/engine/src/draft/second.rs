//! A second model as a drafter: any smaller one over the same vocabulary.
//!
//! It reads what the row has read, and goes on by itself while it drafts, with a state slot after every token. When the row has
//! gone another way, the slot after the last token that both have in common is where it goes on: nothing is read twice, and
//! nothing is copied.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::guess::guess;
use super::{Draft, DraftRow, Drafter, MAX_DRAFT, Source};
use crate::backend::{DeviceRunner, LogitsWanted, PassRow, Runner};
use crate::config::ModelConfig;
use crate::decode::RowId;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sampler::{Line, Workspace};
use crate::state::Slot;

/// Tokens at the end of what a row has to read that get a slot each; of longer texts only the last one.
const TRAIL: usize = MAX_DRAFT + 1;

/// Guesses with a second model.
pub struct SecondModel {
    model: Arc<Model>,
    runner: DeviceRunner,
    work: Workspace,
    rows: HashMap<RowId, Row>,
}

/// What the second model has read for a row.
#[derive(Debug)]
struct Row {
    /// All of it.
    read: Vec<u32>,
    /// The state after all but the last `trail.len()` of these tokens.
    base: Slot,
    /// The state after each of those.
    trail: Vec<Slot>,
}

impl Row {
    fn last(&self) -> Slot {
        self.trail.last().copied().unwrap_or(self.base)
    }

    /// Goes back to the last token that is also in `history`, whose own last token shall be read anew: it is the one that
    /// logits are wanted of.
    fn roll_back(&mut self, history: &[u32], runner: &mut DeviceRunner) -> Result<()> {
        let based = self.read.len() - self.trail.len();
        let known = &history[..history.len() - 1];
        let common = self.read.iter().zip(known).take_while(|(a, b)| a == b).count();
        if common < based {
            self.trail.drain(..).for_each(|slot| runner.free_slot(slot));
            self.read.clear();
            return runner.reset_slot(self.base);
        }
        self.trail.drain(common - based..).for_each(|slot| runner.free_slot(slot));
        // What is common now stays so.
        if let Some(slot) = self.trail.pop() {
            runner.free_slot(std::mem::replace(&mut self.base, slot));
            self.trail.drain(..).for_each(|slot| runner.free_slot(slot));
        }
        self.read.truncate(common);
        Ok(())
    }
}

/// Tokens that a row is to read: its place among those that want drafts, its name, the tokens.
type Part<'a> = (usize, RowId, &'a [u32]);

impl SecondModel {
    /// Drafts with `model` for a model of the configuration `target`.
    ///
    /// # Errors
    /// [`Error::Option`] if their vocabularies differ in size; those of [`Model::runner`].
    pub fn new(model: Arc<Model>, target: &ModelConfig) -> Result<Self> {
        let (found, needed) = (model.config().vocab_size, target.vocab_size);
        if found != needed {
            return Err(Error::Option {
                name: "draft_model".into(),
                value: format!("{} with a vocabulary of {found} tokens", model.path().display()),
                needed: format!("a model with the vocabulary of the one it drafts for, which has {needed} tokens"),
            });
        }
        let work = Workspace::new(model.cpu().level(), needed);
        Ok(Self { runner: model.runner()?, model, work, rows: HashMap::new() })
    }

    /// The model that drafts.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Brings a row to the end of its history, but for the last tokens.
    fn catch_up(&mut self, row: RowId, history: &[u32]) -> Result<()> {
        let Self { runner, rows, .. } = self;
        let row = match rows.entry(row) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                place.insert(Row { read: Vec::new(), base: runner.alloc_slot()?, trail: Vec::new() })
            }
        };
        row.roll_back(history, runner)?;
        if history.len() - row.read.len() <= TRAIL {
            return Ok(());
        }
        for tokens in history[row.read.len()..history.len() - 1].chunks(runner.max_pass_tokens()) {
            let pass = PassRow { slot: row.base, tokens, logits: LogitsWanted::None, keep: &[row.base] };
            runner.forward(&[pass])?;
            row.read.extend_from_slice(tokens);
        }
        Ok(())
    }

    /// Reads tokens, a slot for each, and hands on the logits after the last of every part.
    fn read(&mut self, parts: &[Part<'_>], mut logits: impl FnMut(usize, &[f32], &mut Workspace)) -> Result<()> {
        let Self { runner, rows, work, model } = self;
        let most = runner.max_pass_tokens();
        let mut parts = parts;
        while !parts.is_empty() {
            let mut tokens = 0;
            let fits = |part: &&Part<'_>| {
                tokens += part.2.len();
                tokens <= most
            };
            let (now, later) = parts.split_at(parts.iter().take_while(fits).count());
            let mut starts = Vec::with_capacity(now.len());
            for (_, id, tokens) in now {
                let row = rows.get_mut(id).expect("a row that has caught up");
                starts.push((row.last(), row.trail.len()));
                for _ in *tokens {
                    row.trail.push(runner.alloc_slot()?);
                }
                row.read.extend_from_slice(tokens);
            }
            let pass: Vec<PassRow<'_>> = now
                .iter()
                .zip(&starts)
                .map(|((_, id, tokens), (slot, start))| PassRow {
                    slot: *slot,
                    tokens,
                    logits: LogitsWanted::Last,
                    keep: &rows[id].trail[*start..],
                })
                .collect();
            runner.forward(&pass)?;
            let lines = runner.logits().chunks_exact(model.config().vocab_size);
            now.iter().zip(lines).for_each(|(part, line)| logits(part.0, line, work));
            parts = later;
        }
        Ok(())
    }

    fn draft(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        let mut parts: Vec<Part<'_>> = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            if row.max_tokens > 0 && !row.history.is_empty() {
                self.catch_up(row.row, row.history)?;
                parts.push((i, row.row, &row.history[self.rows[&row.row].read.len()..]));
            }
        }
        let mut guesses: Vec<(usize, RowId, u32)>;
        while !parts.is_empty() {
            let mut on = Vec::new();
            self.read(&parts, |i, logits, work| {
                let row = &mut rows[i];
                // A row whose settings leave no token gets no more guesses.
                let drawn = guess(row, Source::Model, Line::from(logits), work).is_ok();
                if drawn && row.draft.tokens.len() < row.max_tokens && more(i, row.draft) {
                    on.push((i, row.row, row.draft.tokens[row.draft.tokens.len() - 1]));
                }
            })?;
            guesses = on;
            parts = guesses.iter().map(|(i, row, guess)| (*i, *row, std::slice::from_ref(guess))).collect();
        }
        Ok(())
    }
}

impl Drafter for SecondModel {
    fn source(&self) -> Source {
        Source::Model
    }

    /// Nothing: the history that comes with the next wish for a draft says it all.
    fn observe(&mut self, _: RowId, _: &[u32], _: &[f32]) {}

    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        let done = self.draft(rows, more);
        if done.is_err() {
            // Where a pass failed, what has been read is not known.
            rows.iter().for_each(|row| self.forget(row.row));
        }
        done
    }

    fn forget(&mut self, row: RowId) {
        if let Some(Row { base, trail, .. }) = self.rows.remove(&row) {
            trail.into_iter().chain([base]).for_each(|slot| self.runner.free_slot(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{draft_by, golden, rows};
    use super::*;
    use crate::sampler::{Sampler, SamplingParams};

    /// What the model itself says after a text, read anew for every token.
    fn naive_draft(model: &Arc<Model>, sampler: &Sampler, history: &[u32], n: usize) -> Vec<u32> {
        let mut work = Workspace::new(model.cpu().level(), model.config().vocab_size);
        let mut text = history.to_vec();
        for _ in 0..n {
            let mut runner = model.runner().expect("a runner");
            let slot = runner.alloc_slot().expect("a slot");
            for tokens in text.chunks(500) {
                let row = PassRow { slot, tokens, logits: LogitsWanted::Last, keep: &[slot] };
                runner.forward(&[row]).expect("a pass");
            }
            text.push(sampler.sample(runner.logits(), text.len() as u64, &mut work).expect("finite"));
        }
        text.split_off(history.len())
    }

    fn sampler(temperature: f32) -> Sampler {
        let params = SamplingParams { temperature, seed: 3, ..SamplingParams::default() };
        Sampler::new(&params, 256, 0, 0).expect("good values")
    }

    #[test]
    fn drafts_are_what_the_model_says_whatever_came_between() {
        for (name, temperature) in [("spikegpt-tiny", 1.0), ("rwkv4-tiny", 0.0)] {
            let model = golden(name);
            let [row, other] = rows();
            let sampler = sampler(temperature);
            let mut second = SecondModel::new(Arc::clone(&model), model.config()).expect("one vocabulary");
            let mut history: Vec<u32> = (0..600).map(|i| i * 7 % 256).collect();
            // What the row really says: so many guesses are right, then comes another token; or the text is cut back first.
            for (right, cut) in [(0, 0), (4, 0), (2, 0), (5, 0), (0, 1), (1, 3), (0, 590), (3, 0), (0, 12), (5, 0)] {
                history.truncate(history.len() - cut);
                let draft = draft_by(&sampler, true, &mut second, row, &history, 5, |_| true);
                assert_eq!(draft.tokens, naive_draft(&model, &sampler, &history, 5), "{name}: {right} {cut}");
                assert_eq!(draft.source, Some(Source::Model));
                history.extend_from_slice(&draft.tokens[..right]);
                history.push(9);
                // Another row in between, with a text that grows by much.
                let theirs: Vec<u32> = history.iter().rev().copied().collect();
                let draft = draft_by(&sampler, true, &mut second, other, &theirs, 2, |draft| draft.tokens.is_empty());
                assert_eq!(draft.tokens, naive_draft(&model, &sampler, &theirs, 1));
            }
            // Rounds take no more memory: two rows, each with a base, what it read at once and its guesses.
            assert!(second.runner.alloc_slot().expect("a slot") < 2 * (1 + TRAIL + 5) as Slot);
        }
    }

    #[test]
    fn rows_side_by_side_are_what_they_are_alone() {
        let model = golden("spikegpt-tiny");
        let sampler = sampler(1.0);
        let mut second = SecondModel::new(Arc::clone(&model), model.config()).expect("one vocabulary");
        let names: [RowId; 3] = rows();
        let texts: [Vec<u32>; 3] = [vec![5], (0..40).collect(), vec![]];
        let mut drafts: [Draft; 3] = Default::default();
        let mut wishes: Vec<DraftRow<'_>> = drafts
            .iter_mut()
            .zip(&texts)
            .zip(names)
            .map(|((draft, history), row)| DraftRow {
                row,
                history,
                position: history.len() as u64,
                max_tokens: 4,
                sampler: &sampler,
                shared_noise: true,
                distributions: false,
                draft,
            })
            .collect();
        second.propose(&mut wishes, &mut |i, draft| i == 1 || draft.tokens.len() < 2).expect("drafts");
        assert_eq!(drafts[0].tokens, naive_draft(&model, &sampler, &texts[0], 2));
        assert_eq!(drafts[1].tokens, naive_draft(&model, &sampler, &texts[1], 4));
        assert!(drafts[2].tokens.is_empty(), "a row without a token to go on from");
        names.into_iter().for_each(|row| second.forget(row));
        assert!(second.rows.is_empty());
    }

    #[test]
    fn a_model_of_another_vocabulary_is_refused() {
        let model = golden("rwkv4-tiny");
        let target = ModelConfig { vocab_size: 300, ..model.config().clone() };
        let error = SecondModel::new(model, &target).err().expect("refused").to_string();
        for part in ["draft_model", "rwkv4-tiny", "256 tokens", "300 tokens"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
