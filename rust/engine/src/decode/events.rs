//! What a step has to say, in memory that is reused from step to step.

use std::ops::Range;

use super::RowId;
use super::request::FinishReason;
use super::row::Ready;
use super::stats::RowStats;
use crate::error::Error;
use crate::sampler::TokenLogprob;

/// One thing that happened to a row.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A token was generated. There is one for every token, stop tokens included.
    Token {
        /// The row.
        row: RowId,
        /// The token.
        id: u32,
        /// Text that became certain with it: empty while a character or a possible stop string is held back. The last
        /// token of a row brings all that was held back, so the texts of a row, joined, are its text.
        text: &'a str,
        /// Its log probability under the model, before any setting of the sampler acts.
        logprob: f32,
        /// The most probable tokens, if asked for.
        top_logprobs: &'a [TokenLogprob],
        /// Whether it was guessed ahead and then verified.
        drafted: bool,
    },
    /// The row has left.
    Finished {
        /// The row.
        row: RowId,
        /// Why.
        reason: FinishReason,
        /// What was held back, where the row ended without a token in this step: when cancelled or failed.
        text: &'a str,
        /// What it did.
        stats: &'a RowStats,
        /// What failed, if something did.
        error: Option<&'a Error>,
    },
}

/// The events of a step, in the order in which they happened.
///
/// [`Decoder::step`](super::Decoder::step) clears and refills it. Texts lie one after another in one string, so once that
/// is as long as the longest step's text, nothing is allocated any more.
#[derive(Debug, Default)]
pub struct Events {
    records: Vec<Record>,
    text: String,
    top: Vec<TokenLogprob>,
}

#[derive(Debug)]
enum Record {
    Token { row: RowId, id: u32, text: Range<usize>, logprob: f32, top: Range<usize>, drafted: bool },
    Finished { row: RowId, reason: FinishReason, text: Range<usize>, stats: Box<RowStats>, error: Option<Error> },
}

impl Events {
    /// No events.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The events.
    pub fn iter(&self) -> impl Iterator<Item = Event<'_>> {
        self.records.iter().map(|record| match record {
            Record::Token { row, id, text, logprob, top, drafted } => Event::Token {
                row: *row,
                id: *id,
                text: &self.text[text.clone()],
                logprob: *logprob,
                top_logprobs: &self.top[top.clone()],
                drafted: *drafted,
            },
            Record::Finished { row, reason, text, stats, error } => Event::Finished {
                row: *row,
                reason: *reason,
                text: &self.text[text.clone()],
                stats,
                error: error.as_ref(),
            },
        })
    }

    /// Room for so many events with texts of common lengths.
    pub(super) fn reserve(&mut self, events: usize) {
        self.records.reserve(events);
        self.text.reserve(32 * events);
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.text.clear();
        self.top.clear();
    }

    /// Where the next event's text and top log probabilities go, and a mark of where they begin.
    pub(super) fn begin(&mut self) -> (Mark, &mut String, &mut Vec<TokenLogprob>) {
        (Mark { text: self.text.len(), top: self.top.len() }, &mut self.text, &mut self.top)
    }

    pub(super) fn token(&mut self, mark: Mark, row: RowId, ready: &Ready) {
        let (text, top) = (mark.text..self.text.len(), mark.top..self.top.len());
        let &Ready { id, logprob, drafted, .. } = ready;
        self.records.push(Record::Token { row, id, text, logprob, top, drafted });
    }

    pub(super) fn finished(&mut self, mark: Mark, row: RowId, stats: RowStats, end: End) {
        let text = mark.text..self.text.len();
        self.records.push(Record::Finished { row, reason: end.reason, text, stats: Box::new(stats), error: end.error });
    }
}

/// Where an event's share of the buffers begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    text: usize,
    top: usize,
}

/// How a row ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) reason: FinishReason,
    pub(super) error: Option<Error>,
}

impl From<FinishReason> for End {
    fn from(reason: FinishReason) -> Self {
        Self { reason, error: None }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self { reason: FinishReason::Error, error: Some(error) }
    }
}
