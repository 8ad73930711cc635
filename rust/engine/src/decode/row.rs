//! One row of the decoder: what it has still to read, how it chooses, and the text it has not let out yet.

use super::RowId;
use super::events::End;
use super::plan::Demand;
use super::request::{FinishReason, Request, RowStats, SequenceState};
use super::stop::StopStrings;
use crate::backend::Runner;
use crate::error::Result;
use crate::sampler::Sampler;
use crate::state::Slot;
use crate::tokenizer::StreamDecoder;

/// A sequence that is being read or generated.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: RowId,
    pub(super) slot: Slot,
    /// Tokens that the slot has seen.
    pub(super) position: u64,
    /// Tokens to read, the first `read` of which are read. Past the prompt: the last generated token.
    tokens: Vec<u32>,
    read: usize,
    pub(super) sampler: Sampler,
    text: RowText,
    eos: Option<u32>,
    stop_ids: Vec<u32>,
    include_stop: bool,
    max_new_tokens: usize,
    pub(super) keep_state: bool,
    pub(super) stats: RowStats,
    /// How it ended; it leaves at the next opportunity.
    pub(super) end: Option<End>,
}

impl Row {
    /// A row that has read nothing of `tokens`, which are at least one. `eos` ends it, if the request does not ignore it.
    pub(super) fn new(
        id: RowId,
        slot: Slot,
        tokens: Vec<u32>,
        mut sampler: Sampler,
        request: &Request,
        eos: Option<u32>,
    ) -> Self {
        sampler.observe_prompt(&tokens);
        let stop = &request.stop;
        let mut row = Self {
            id,
            slot,
            position: request.start.as_ref().map_or(0, |start| start.position),
            tokens,
            read: 0,
            sampler,
            text: RowText::new(StopStrings::new(&stop.strings, stop.include_stop)),
            eos: eos.filter(|_| !stop.ignore_eos),
            stop_ids: stop.ids.clone(),
            include_stop: stop.include_stop,
            max_new_tokens: stop.max_new_tokens,
            keep_state: request.keep_state,
            stats: RowStats::default(),
            end: None,
        };
        row.end_if_read();
        row
    }

    /// What it could use of a pass.
    pub(super) fn demand(&self) -> Demand {
        // A row that shall generate nothing leaves its last token unread: its logits are of no use, and who goes on from
        // here needs a token to read.
        let kept = usize::from(self.max_new_tokens == 0);
        Demand { tokens: self.tokens.len() - self.read - kept, decoding: self.stats.num_generated_tokens > 0 }
    }

    /// The next `n` tokens to read.
    pub(super) fn next(&self, n: usize) -> &[u32] {
        &self.tokens[self.read..self.read + n]
    }

    /// Whether reading `n` more tokens leads to logits.
    pub(super) fn completes(&self, n: usize) -> bool {
        self.read + n == self.tokens.len()
    }

    /// Takes note that `n` tokens were read.
    pub(super) fn advance(&mut self, n: usize) {
        self.read += n;
        self.position += n as u64;
        if self.stats.num_generated_tokens == 0 {
            self.stats.num_prompt_tokens += n;
        }
        self.end_if_read();
    }

    fn end_if_read(&mut self) {
        if self.max_new_tokens == 0 && self.demand().tokens == 0 {
            self.end = Some(FinishReason::Length.into());
        }
    }

    /// Takes the token that was chosen, which stands for `bytes`; text that has become certain is appended to `out`.
    pub(super) fn accept(&mut self, id: u32, bytes: &[u8], out: &mut String) {
        self.tokens.clear();
        self.tokens.push(id);
        self.read = 0;
        self.sampler.observe(id);
        self.stats.num_generated_tokens += 1;
        let stop = if self.eos == Some(id) {
            Some(FinishReason::Eos)
        } else {
            self.stop_ids.contains(&id).then_some(FinishReason::StopId)
        };
        let mut reason = stop;
        if (stop.is_none() || self.include_stop) && self.text.push(bytes, out) {
            reason = stop.or(Some(FinishReason::StopString));
        }
        if reason.is_none() && self.stats.num_generated_tokens >= self.max_new_tokens {
            reason = Some(FinishReason::Length);
        }
        if let Some(reason) = reason {
            let stopped = self.text.finish(out) && reason == FinishReason::Length;
            self.end = Some(if stopped { FinishReason::StopString } else { reason }.into());
        }
    }

    /// Lets out what was held back.
    pub(super) fn flush(&mut self, out: &mut String) {
        self.text.finish(out);
    }

    /// Books the time of a step. `decoding`: whether the row was past its prompt when the step began.
    pub(super) fn spend(&mut self, seconds: f64, decoding: bool) {
        if decoding {
            self.stats.decode_seconds += seconds;
        } else {
            self.stats.prefill_seconds += seconds;
        }
    }

    /// Where the sequence stands.
    pub(super) fn state(&self, runner: &impl Runner) -> SequenceState {
        SequenceState {
            values: runner.read_state(self.slot),
            position: self.position,
            pending: self.tokens.get(self.read).copied(),
        }
    }
}

/// From token bytes to text that is certain.
#[derive(Debug)]
struct RowText {
    utf8: StreamDecoder,
    stop: StopStrings,
    piece: String,
    /// After a stop string, or the end.
    over: bool,
}

impl RowText {
    fn new(stop: StopStrings) -> Self {
        // Room for a long token.
        Self { utf8: StreamDecoder::new(), stop, piece: String::with_capacity(256), over: false }
    }

    /// Adds bytes. True: a stop string is complete.
    fn push(&mut self, bytes: &[u8], out: &mut String) -> bool {
        self.piece.clear();
        self.utf8.push(bytes, &mut self.piece);
        self.over = self.stop.push(&self.piece, out);
        self.over
    }

    /// Ends the text, once. True: what was held back completed a stop string.
    fn finish(&mut self, out: &mut String) -> bool {
        if self.over {
            return false;
        }
        self.over = true;
        self.piece.clear();
        self.utf8.finish(&mut self.piece);
        let stopped = self.stop.push(&self.piece, out);
        self.stop.finish(out);
        stopped
    }
}

/// The tokens a request begins with: the pending one of its start, then its prompt; else what begins a text.
pub(super) fn first_tokens(request: &Request, begin: Option<u32>) -> Result<Vec<u32>> {
    let pending = request.start.as_ref().and_then(|start| start.pending);
    let mut tokens: Vec<u32> = pending.into_iter().chain(request.prompt.iter().copied()).collect();
    if tokens.is_empty() {
        let reason = match (&request.start, begin) {
            (None, Some(id)) => {
                tokens.push(id);
                return Ok(tokens);
            }
            (None, None) => "at least one token, because the model names none that begins a text",
            (Some(_), _) => "at least one token, because the state has no pending one",
        };
        return Err(crate::Error::Option { name: "prompt".into(), value: "\"\"".into(), needed: reason.into() });
    }
    Ok(tokens)
}
