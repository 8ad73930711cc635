//! What a row is asked to do, and what is left when it is done.

use std::sync::Arc;

use crate::draft::SpeculativeConfig;
use crate::error::{Error, Result};
use crate::sampler::SamplingParams;

/// When a row ends.
#[derive(Clone, Debug, PartialEq)]
pub struct StopRules {
    /// Most tokens to generate. 0 reads the prompt and generates nothing.
    pub max_new_tokens: usize,
    /// The row ends as soon as its generated text holds one of these.
    pub strings: Vec<String>,
    /// The row ends when it generates one of these.
    pub ids: Vec<u32>,
    /// Go on after the model's end-of-text token.
    pub ignore_eos: bool,
    /// Leave the stop string, or the text of the stop token, at the end of the text.
    pub include_stop: bool,
}

impl Default for StopRules {
    fn default() -> Self {
        Self { max_new_tokens: 256, strings: Vec::new(), ids: Vec::new(), ignore_eos: false, include_stop: false }
    }
}

impl StopRules {
    /// Checks every value, for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`Error::Option`] for an empty stop string, [`Error::TokenId`] for a token that does not exist.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        if self.strings.iter().any(String::is_empty) {
            let needed = "stop strings of at least one character".into();
            return Err(Error::Option { name: "stop".into(), value: "\"\"".into(), needed });
        }
        check_ids(&self.ids, vocab_size)
    }
}

/// A row for the [`Decoder`](super::Decoder).
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Token ids to read. May be empty if `start` has a pending token, or if the model has a token that begins a text
    /// (`bos_token_id`, else its end-of-text token), which is then read instead.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopRules,
    /// Number of the row in the user's batch. Part of the noise, so that rows with one seed differ.
    pub row: u32,
    /// Where to go on; nothing is the beginning of a text. It is read, not changed: two rows that start here are two
    /// continuations.
    pub start: Option<Arc<SequenceState>>,
    /// Keep the state for [`Decoder::take_state`](super::Decoder::take_state) when the row ends.
    pub keep_state: bool,
    /// Tokens guessed ahead and verified.
    pub speculative: SpeculativeConfig,
    /// Let tokens out one per step, though a pass may bring several: a row that is cancelled between steps then stands
    /// where its reader stands.
    pub one_per_step: bool,
}

/// A sequence at rest.
///
/// A state that comes out of the decoder has seen every token of its sequence but the last, which is `pending`: it is read
/// first when the sequence goes on, and nothing is ever read twice. The sequence is the prompt and every generated token,
/// with the token that stopped it and the tokens of which a stop string cut off the text.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceState {
    /// The model's state, as [`Runner::read_state`](crate::backend::Runner::read_state) gives it.
    pub values: Vec<f32>,
    /// How many tokens the model's state has seen.
    pub position: u64,
    /// The token after those.
    pub pending: Option<u32>,
    /// The last of those that the state has seen, as far as they are known: where repetitions are looked for. Results do not
    /// depend on it, and files of sessions do not hold it.
    pub recent: Vec<u32>,
}

impl SequenceState {
    /// Length of the sequence.
    pub fn num_tokens(&self) -> u64 {
        self.position + u64::from(self.pending.is_some())
    }
}

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It generated the end-of-text token.
    Eos,
    /// It generated one of the stop tokens.
    StopId,
    /// Its text came to hold a stop string.
    StopString,
    /// It generated as many tokens as it may.
    Length,
    /// It was cancelled.
    Cancelled,
    /// Its logits or its text failed; the event tells how.
    Error,
}

impl FinishReason {
    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::StopId => "stop_id",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// # Errors
/// [`Error::TokenId`] for the first id outside the vocabulary.
pub(super) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(Error::TokenId { id: id.into(), vocab_size }),
        None => Ok(()),
    }
}
