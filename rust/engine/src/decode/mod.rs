//! The one decode loop: a single stream, a batch and a server are the same rows in the same passes.
//!
//! Rows join with [`Decoder::add`] and leave by themselves or by [`Decoder::cancel`], at any pass. Every
//! [`Decoder::step`] packs what all rows have to read into one pass, draws a token for every row that came to the end of
//! its prompt, and tells what happened in [`Events`]. A row's text depends on its request alone: not on its neighbours, and
//! not on how its prompt was cut into passes.
//!
//! A steady loop allocates nothing: rows, events and texts live in memory that is reused. Only joining and leaving rows,
//! and a text longer than any before, take memory.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use spikelet::decode::{Decoder, Event, Events, Request};
//! use spikelet::model::{LoadOptions, Model};
//! use spikelet::tokenizer::load_tokenizer;
//!
//! # fn main() -> spikelet::Result<()> {
//! let folder = Path::new("a-model");
//! let model = Model::load(folder, &LoadOptions::default())?;
//! let tokenizer = load_tokenizer(folder, Some(model.config()))?;
//! let prompt = tokenizer.encode("Once upon a time")?;
//! let mut decoder = Decoder::new(model.runner(), tokenizer);
//! decoder.add(&Request { prompt, ..Request::default() })?;
//! let mut events = Events::new();
//! while !decoder.is_idle() {
//!     decoder.step(&mut events)?;
//!     for event in events.iter() {
//!         match event {
//!             Event::Token { text, .. } => print!("{text}"),
//!             Event::Finished { reason, .. } => println!("\n[{}]", reason.name()),
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod events;
mod plan;
mod request;
mod row;
mod score;
mod stop;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use spikelet_simd::Level;

use crate::backend::{LogitsWanted, PassRow, Runner};
use crate::error::{Error, Result};
use crate::sampler::{Logprobs, Sampler, Workspace};
use crate::tokenizer::Tokenizer;

pub use events::{Event, Events};
pub use request::{FinishReason, Request, RowStats, SequenceState, StopRules};
pub use stop::StopStrings;

use plan::{Demand, share_out};
use row::{Row, first_tokens};

/// Names a row of a decoder. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u64);

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Rows of text in the making, and the runner that takes them through the model.
pub struct Decoder<R: Runner> {
    runner: R,
    tokenizer: Arc<dyn Tokenizer>,
    work: Workspace,
    /// In the order in which they joined.
    rows: Vec<Row>,
    next_id: u64,
    /// Of rows that have left and whose states nobody has taken yet.
    states: Vec<(RowId, SequenceState)>,
    /// The row that comes first in the next pass, where not all find room.
    first: usize,
    demands: Vec<Demand>,
    shares: Vec<usize>,
    /// Always empty between steps: memory for the rows of a pass.
    pass: Vec<PassRow<'static>>,
}

impl<R: Runner> Decoder<R> {
    /// A decoder without rows.
    pub fn new(runner: R, tokenizer: Arc<dyn Tokenizer>) -> Self {
        // A wrong SPIKELET_ISA was refused when the model was loaded.
        let level = Level::detect().unwrap_or_else(|_| Level::best());
        let work = Workspace::new(level, runner.config().vocab_size);
        Self {
            runner,
            tokenizer,
            work,
            rows: Vec::new(),
            next_id: 0,
            states: Vec::new(),
            first: 0,
            demands: Vec::new(),
            shares: Vec::new(),
            pass: Vec::new(),
        }
    }

    /// Lets a row join: it takes part from the next step on.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::TokenId`] or [`Error::State`] if any part of the request makes no sense for this model.
    /// Nothing has changed then.
    pub fn add(&mut self, request: &Request) -> Result<RowId> {
        let config = self.runner.config();
        let eos = config.eos_token_id.or_else(|| self.tokenizer.eos_id());
        let begin = config.bos_token_id.or(eos);
        let vocab_size = config.vocab_size;
        request.stop.validate(vocab_size)?;
        let tokens = first_tokens(request, begin)?;
        request::check_ids(&tokens, vocab_size)?;
        let expected = tokens.len().saturating_add(request.stop.max_new_tokens);
        let sampler = Sampler::new(&request.sampling, vocab_size, request.row, expected)?;
        let slot = self.runner.alloc_slot();
        if let Some(start) = &request.start
            && let Err(error) = self.runner.write_state(slot, &start.values)
        {
            self.runner.free_slot(slot);
            return Err(error);
        }
        let id = RowId(self.next_id);
        self.next_id += 1;
        self.rows.push(Row::new(id, slot, tokens, sampler, request, eos));
        Ok(id)
    }

    /// Ends a row. Its [`Event::Finished`] comes with the next step, which runs no pass for it. False: there is no such row.
    pub fn cancel(&mut self, row: RowId) -> bool {
        let row = self.rows.iter_mut().find(|r| r.id == row && r.end.is_none());
        row.map(|row| row.end = Some(FinishReason::Cancelled.into())).is_some()
    }

    /// What an active row did so far.
    pub fn stats(&self, row: RowId) -> Option<RowStats> {
        self.rows.iter().find(|r| r.id == row).map(|r| r.stats)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows that have not left.
    pub fn num_active(&self) -> usize {
        self.rows.len()
    }

    /// The final state of a row that has left and was asked to keep it. It can be taken once.
    ///
    /// # Errors
    /// [`Error::State`] if there is none: the row is active, was not asked to keep it, or has failed.
    pub fn take_state(&mut self, row: RowId) -> Result<SequenceState> {
        match self.states.iter().position(|(id, _)| *id == row) {
            Some(index) => Ok(self.states.swap_remove(index).1),
            None => Err(Error::State { reason: format!("row {row} has left none") }),
        }
    }

    /// The runner.
    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// The runner. Its slots belong to the rows: whoever uses it in between takes slots of their own.
    pub fn runner_mut(&mut self) -> &mut R {
        &mut self.runner
    }

    /// Gives the runner back and drops all rows.
    pub fn into_runner(mut self) -> R {
        for row in &self.rows {
            self.runner.free_slot(row.slot);
        }
        self.runner
    }

    /// Runs one pass over what the rows have to read and replaces `events` by what happened.
    ///
    /// # Errors
    /// Those of [`Runner::forward`]: the pass as a whole failed, all rows are where they were and may be stepped again or
    /// cancelled. What concerns one row ends that row, with its error in [`Event::Finished`].
    pub fn step(&mut self, events: &mut Events) -> Result<()> {
        let started = Instant::now();
        events.clear();
        self.retire(events);
        self.demands.clear();
        self.demands.extend(self.rows.iter().map(Row::demand));
        self.first = share_out(&self.demands, self.runner.max_pass_tokens(), self.first, &mut self.shares);
        if self.rows.is_empty() {
            return Ok(());
        }
        events.reserve(2 * self.rows.len());
        self.forward()?;
        self.choose(events);
        let seconds = started.elapsed().as_secs_f64();
        for ((row, demand), &share) in self.rows.iter_mut().zip(&self.demands).zip(&self.shares) {
            if share > 0 {
                row.spend(seconds, demand.decoding);
            }
        }
        self.retire(events);
        Ok(())
    }

    /// Runs the pass that `shares` describe.
    fn forward(&mut self) -> Result<()> {
        let mut pass = recycle(std::mem::take(&mut self.pass));
        pass.extend(self.rows.iter().zip(&self.shares).filter(|(_, share)| **share > 0).map(|(row, &share)| PassRow {
            slot: row.slot,
            tokens: row.next(share),
            logits: if row.completes(share) { LogitsWanted::Last } else { LogitsWanted::None },
            keep: std::slice::from_ref(&row.slot),
        }));
        let done = self.runner.forward(&pass);
        self.pass = recycle(pass);
        done
    }

    /// After a pass: moves the rows on and draws a token for each that got logits.
    fn choose(&mut self, events: &mut Events) {
        let vocab_size = self.runner.config().vocab_size;
        // Ids beyond the tokenizer's are padding of the model's matrices: they stand for nothing and are never drawn.
        let known = vocab_size.min(self.tokenizer.vocab_size());
        let mut lines = self.runner.logits().chunks_exact(vocab_size);
        for (row, &share) in self.rows.iter_mut().zip(&self.shares) {
            if share == 0 {
                continue;
            }
            let completes = row.completes(share);
            row.advance(share);
            if completes {
                let line = lines.next().expect("a line of logits for every row that wanted one");
                let chosen = choose_token(row, line, known, &mut self.work, &*self.tokenizer, events);
                if let Err(error) = chosen {
                    row.end = Some(error.into());
                }
            }
        }
    }

    /// Lets the rows that have ended leave.
    fn retire(&mut self, events: &mut Events) {
        let mut index = 0;
        while let Some(row) = self.rows.get_mut(index) {
            let Some(end) = row.end.take() else {
                index += 1;
                continue;
            };
            let mut row = self.rows.remove(index);
            if row.keep_state && end.reason != FinishReason::Error {
                self.states.push((row.id, row.state(&self.runner)));
            }
            self.runner.free_slot(row.slot);
            let (mark, text, _) = events.begin();
            row.flush(text);
            events.finished(mark, row.id, row.stats, end);
        }
    }
}

/// Draws a row's next token from a line of logits, of which the first `known` stand for tokens.
fn choose_token(
    row: &mut Row,
    line: &[f32],
    known: usize,
    work: &mut Workspace,
    tokenizer: &dyn Tokenizer,
    events: &mut Events,
) -> Result<()> {
    let id = row.sampler.sample(&line[..known], row.position, work)?;
    let logprobs = Logprobs::new(work.level(), line);
    let logprob = logprobs.checked(id)?;
    let bytes = tokenizer.token_bytes(id)?;
    let (mark, text, top) = events.begin();
    logprobs.top(row.sampler.params().logprobs, top);
    row.accept(id, bytes, text);
    events.token(mark, row.id, id, logprob);
    Ok(())
}

/// Empties a vector of borrows and lends its memory to borrows of another lifetime, so that a pass allocates nothing: an
/// empty vector's memory is kept when it is mapped to elements of the same layout.
fn recycle<'a>(mut rows: Vec<PassRow<'_>>) -> Vec<PassRow<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
