//! The one decode loop: a single stream, a batch and a server are the same rows in the same passes.
//!
//! Rows join with [`Decoder::add`] and leave by themselves or by [`Decoder::cancel`], at any pass. Every
//! [`Decoder::step`] packs what all rows have to read into one pass, draws a token for every row that came to the end of
//! its prompt, and tells what happened in [`Events`]. A row's text depends on its request alone: not on its neighbours, and
//! not on how its prompt was cut into passes.
//!
//! Where a row speculates, its part of a pass is the token to be read and guesses of those that follow. The pass leaves a
//! state after each. Drawing goes on from line to line as long as it draws what was guessed, so one pass brings one token or
//! several; the row's state is then the one after the last token that was right, and nothing is copied or undone.
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
//! let mut decoder = Decoder::new(model.runner()?, tokenizer);
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
mod speculation;
mod stats;
mod stop;
mod verification;
pub mod verify;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use spikelet_simd::{Cpu, Level};

use crate::backend::{DrawSpec, Drawn, PassRow, Runner};
use crate::draft::{Companions, Drafter};
use crate::error::{Error, Result};
use crate::sampler::{Sampler, Workspaces};
use crate::tokenizer::Tokenizer;

pub use events::{Event, Events};
pub use request::{FinishReason, Request, SequenceState, StopRules};
pub use stats::{RowStats, SpeculationStats};
pub use stop::StopStrings;

use plan::{Demand, share_out};
use row::{Row, first_tokens};
use speculation::Drafting;
use verification::{verify, verify_drawn};

/// Logits of a pass from which on several threads draw. Fewer are drawn from sooner than another thread begins.
const MANY_LOGITS: usize = 32 << 10;

/// Names a row of a decoder. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u64);

impl RowId {
    /// Stands for a row when drafters are timed by themselves.
    pub(crate) fn for_measuring(number: usize) -> Self {
        Self(number as u64)
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Rows of text in the making, and the runner that takes them through the model.
pub struct Decoder<R: Runner> {
    runner: R,
    tokenizer: Arc<dyn Tokenizer>,
    works: Workspaces,
    /// In the order in which they joined.
    rows: Vec<Row>,
    next_id: u64,
    /// Of rows that have left and whose states nobody has taken yet.
    states: Vec<(RowId, SequenceState)>,
    /// The row that comes first in the next pass, where not all find room.
    first: usize,
    demands: Vec<Demand>,
    shares: Vec<usize>,
    /// Which lines of a pass's logits are whose.
    lines: Vec<Range<usize>>,
    drafting: Drafting,
    /// What a device shall draw, and what it drew; whose specs are whose.
    specs: Vec<DrawSpec>,
    drawn: Vec<Option<Drawn>>,
    spec_ranges: Vec<Range<usize>>,
    /// Always empty between steps: memory for the rows of a pass.
    pass: Vec<PassRow<'static>>,
}

impl<R: Runner> Decoder<R> {
    /// A decoder without rows. What speculation needs beside the model comes with [`with_companions`](Self::with_companions).
    pub fn new(runner: R, tokenizer: Arc<dyn Tokenizer>) -> Self {
        // A wrong SPIKELET_ISA was refused when the model was loaded.
        let level = Level::detect().unwrap_or_else(|_| Level::best());
        let works = Workspaces::new(level, runner.config().vocab_size, runner.cpu().map_or(1, Cpu::threads));
        Self {
            runner,
            tokenizer,
            works,
            rows: Vec::new(),
            next_id: 0,
            states: Vec::new(),
            first: 0,
            demands: Vec::new(),
            shares: Vec::new(),
            lines: Vec::new(),
            drafting: Drafting::default(),
            specs: Vec::new(),
            drawn: Vec::new(),
            spec_ranges: Vec::new(),
            pass: Vec::new(),
        }
    }

    /// The same, where rows may speculate with what the model brings along, as far as it pays.
    pub fn with_companions(runner: R, tokenizer: Arc<dyn Tokenizer>, companions: Arc<Companions>) -> Self {
        Self { drafting: Drafting::new(Some(companions)), ..Self::new(runner, tokenizer) }
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
        let speculation = self.drafting.admit(&request.speculative, &self.runner)?;
        let slot = self.runner.alloc_slot()?;
        if let Some(start) = &request.start
            && let Err(error) = self.runner.write_state(slot, &start.values)
        {
            self.runner.free_slot(slot);
            return Err(error);
        }
        let id = RowId(self.next_id);
        self.next_id += 1;
        self.rows.push(Row::new(id, slot, tokens, sampler, request, eos, speculation));
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

    /// Gives the rows of [`Method::Own`](crate::draft::Method::Own) a drafter, in the place of an earlier one.
    pub fn set_drafter(&mut self, drafter: Box<dyn Drafter>) {
        self.drafting.set_own(drafter);
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
        self.rows.iter().for_each(|row| row.free(&mut self.runner));
        self.runner
    }

    /// Runs one pass over what the rows have to read and replaces `events` by what happened.
    ///
    /// # Errors
    /// Those of [`Runner::forward`] and of drafters: the pass as a whole failed, all rows are where they were and may be
    /// stepped again or cancelled. What concerns one row ends that row, with its error in [`Event::Finished`].
    pub fn step(&mut self, events: &mut Events) -> Result<()> {
        let started = Instant::now();
        events.clear();
        self.retire(events);
        if self.rows.is_empty() {
            return Ok(());
        }
        self.drafting.propose(&mut self.rows, self.runner.max_pass_tokens())?;
        let drafted = Instant::now();
        self.demands.clear();
        self.demands.extend(self.rows.iter().map(Row::demand));
        self.first = share_out(&self.demands, self.runner.max_pass_tokens(), self.first, &mut self.shares);
        self.forward()?;
        let verified = Instant::now();
        events.reserve(2 * self.rows.len() + self.shares.iter().sum::<usize>());
        self.draw();
        self.let_out(events);
        let done = Instant::now();
        let seconds = (done - started).as_secs_f64();
        for ((row, demand), &share) in self.rows.iter_mut().zip(&self.demands).zip(&self.shares) {
            if share > 0 {
                row.spend(seconds, demand.decoding);
            }
        }
        let times = [drafted - started, verified - drafted, done - verified];
        self.drafting.book(&mut self.rows, &self.demands, &self.shares, times);
        self.retire(events);
        Ok(())
    }

    /// Runs the pass that `shares` describe.
    fn forward(&mut self) -> Result<()> {
        let taken = |share: &usize| *share > 0;
        let rows = self.rows.iter_mut().zip(&self.shares).filter(|(_, share)| taken(share));
        if let Some((failed, error)) =
            rows.enumerate().find_map(|(i, (row, _))| row.append_draft(&mut self.runner).err().map(|error| (i, error)))
        {
            let rows = self.rows.iter_mut().zip(&self.shares).filter(|(_, share)| taken(share));
            rows.take(failed).for_each(|(row, _)| row.remove_draft());
            return Err(error);
        }
        let mut pass = recycle(std::mem::take(&mut self.pass));
        let rows = self.rows.iter().zip(&self.shares).filter(|(_, share)| **share > 0);
        pass.extend(rows.map(|(row, &share)| row.pass(share)));
        let empty = pass.is_empty();
        let mut done = if empty { Ok(()) } else { self.runner.forward_deferred(&pass) };
        self.pass = recycle(pass);
        if done.is_ok() && !empty {
            done = self.draw_on_device();
        }
        if done.is_err() {
            let rows = self.rows.iter_mut().zip(&self.shares).filter(|(_, share)| **share > 0);
            rows.for_each(|(row, _)| row.remove_draft());
        }
        done
    }

    /// After a pass: lets the device draw for the rows that it can draw for, and fetches what the others, and drafters, need.
    fn draw_on_device(&mut self) -> Result<()> {
        let known = self.known();
        self.specs.clear();
        self.drawn.clear();
        self.spec_ranges.clear();
        let draws = self.runner.draws();
        let mut line = 0;
        for (row, &share) in self.rows.iter().zip(&self.shares).filter(|_| draws) {
            let specs = row.draw_specs(share, line, known, &mut self.specs);
            line += row.lines(share);
            self.spec_ranges.push(specs);
        }
        if !self.specs.is_empty() {
            self.runner.draw(&self.specs, &mut self.drawn)?;
        }
        let logits = self.drawn.len() < line || self.drawn.iter().any(Option::is_none);
        self.runner.fetch(logits || !draws, self.drafting.wants_hidden())
    }

    /// Ids beyond the tokenizer's are padding of the model's matrices: they stand for nothing and are never drawn.
    fn known(&self) -> usize {
        self.runner.config().vocab_size.min(self.tokenizer.vocab_size())
    }

    /// After a pass: moves the rows on and draws tokens for each that got logits.
    fn draw(&mut self) {
        let vocab_size = self.runner.config().vocab_size;
        let width = self.runner.config().hidden_size;
        let known = self.known();
        let (logits, hidden) = (self.runner.logits(), self.runner.hidden());
        self.lines.clear();
        let mut next = 0;
        for (row, &share) in self.rows.iter_mut().zip(&self.shares) {
            let first = next;
            next += if share > 0 { row.advance(share) } else { 0 };
            self.lines.push(first..next);
        }
        let (all_lines, works, drawn, ranges) = (&self.lines, &self.works, &self.drawn, &self.spec_ranges);
        let draw = |index: usize, row: &mut Row| {
            let lines = all_lines[index].clone();
            if lines.is_empty() {
                return;
            }
            let drawn = ranges.get(index).map_or(&[][..], |range| &drawn[range.clone()]);
            if !drawn.is_empty() && drawn.iter().all(Option::is_some) {
                row.accepted = Some(verify_drawn(row, drawn.iter().copied().flatten()));
                return;
            }
            let own = &logits[lines.start * vocab_size..lines.end * vocab_size];
            match works.lend(|work| verify(row, own, vocab_size, known, work)) {
                Ok(accepted) => row.accepted = Some(accepted),
                Err(error) => row.fail(error),
            }
        };
        // Rows draw without knowing of each other, so it is as well if they do so at once.
        match self.runner.cpu() {
            Some(cpu) if logits.len() >= MANY_LOGITS => cpu.each(&mut self.rows, &draw),
            _ => self.rows.iter_mut().enumerate().for_each(|(index, row)| draw(index, row)),
        }
        for (row, lines) in self.rows.iter_mut().zip(&self.lines) {
            if let Some(accepted) = row.accepted.take() {
                // None where no drafter asked for any.
                let hidden = match hidden {
                    [] => hidden,
                    _ => &hidden[lines.start * width..(lines.start + accepted + 1).min(lines.end) * width],
                };
                self.drafting.observe(row, accepted, hidden);
            }
        }
    }

    /// Tells of the tokens that are drawn.
    fn let_out(&mut self, events: &mut Events) {
        for row in &mut self.rows {
            let mut first = true;
            while let Some(ready) = row.next_ready(first) {
                first = false;
                let bytes = match self.tokenizer.token_bytes(ready.id) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        row.end = Some(error.into());
                        break;
                    }
                };
                let (mark, text, top) = events.begin();
                top.extend_from_slice(row.rivals(&ready));
                row.accept(ready.id, bytes, text);
                events.token(mark, row.id, &ready);
            }
        }
    }

    /// Lets the rows that have ended leave.
    fn retire(&mut self, events: &mut Events) {
        let mut index = 0;
        while let Some(row) = self.rows.get_mut(index) {
            let Some(mut end) = row.end.take() else {
                index += 1;
                continue;
            };
            let mut row = self.rows.remove(index);
            if row.keep_state && end.reason != FinishReason::Error {
                match row.state(&self.runner) {
                    Ok(state) => self.states.push((row.id, state)),
                    Err(error) => end = error.into(),
                }
            }
            row.free(&mut self.runner);
            self.drafting.forget(row.id);
            let (mark, text, _) = events.begin();
            row.flush(text);
            events.finished(mark, row.id, row.stats, end);
        }
    }
}

/// Empties a vector of borrows and lends its memory to borrows of another lifetime, so that a pass allocates nothing: an
/// empty vector's memory is kept when it is mapped to elements of the same layout.
fn recycle<'a>(mut rows: Vec<PassRow<'_>>) -> Vec<PassRow<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
