//! One row of the decoder: what it has still to read, how it chooses, and the text it has not let out yet.

use std::collections::VecDeque;
use std::ops::Range;

use super::RowId;
use super::events::End;
use super::plan::Demand;
use super::request::{FinishReason, Request, SequenceState};
use super::speculation::Speculation;
use super::stats::RowStats;
use super::stop::StopStrings;
use crate::backend::{DrawSpec, Drawn, LogitsWanted, PassRow, Runner};
use crate::draft::{Draft, DraftRow, MAX_DRAFT, Verify};
use crate::error::{Error, Result};
use crate::sampler::{Logprobs, Sampler, TokenLogprob};
use crate::state::Slot;
use crate::tokenizer::StreamDecoder;

/// Tokens for which a row takes room in advance, at most.
const MOST_EXPECTED: usize = 1 << 16;

/// Tokens that a sequence at rest remembers, for drafts that go on from repetitions.
const MOST_RECENT: usize = 2048;

/// A sequence that is being read or generated.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: RowId,
    /// Where its states lie. A pass leaves one in the first, or one after each token of a draft in as many.
    slots: Vec<Slot>,
    /// Which of them holds the state of the sequence.
    base: usize,
    /// Tokens that this state has seen.
    pub(super) position: u64,
    /// The sequence, of which the first `read` tokens are read. Past the prompt: all but the last, which was drawn and waits
    /// to be read.
    tokens: Vec<u32>,
    read: usize,
    pub(super) sampler: Sampler,
    /// Guesses, of which the coming pass verifies the first `used`.
    pub(super) draft: Draft,
    pub(super) used: usize,
    /// Tokens drawn from the last pass.
    drawn: usize,
    pub(super) speculation: Speculation,
    /// How many of them the last pass has shown to be right, until the drafters are told.
    pub(super) accepted: Option<usize>,
    /// Tokens that are drawn and not yet let out.
    ready: VecDeque<Ready>,
    /// Why no token can be drawn after these.
    failure: Option<Error>,
    /// Their most probable rivals, one after another.
    top: Vec<TokenLogprob>,
    /// Whether a token of the last pass is out already.
    begun: bool,
    one_per_step: bool,
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

/// A token that is drawn and not yet let out.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) id: u32,
    pub(super) logprob: f32,
    /// Its part of [`Row::top`].
    pub(super) top: Range<usize>,
    /// Whether it was guessed.
    pub(super) drafted: bool,
}

impl Row {
    /// A row that has read nothing of `tokens`, which are at least one. `eos` ends it, if the request does not ignore it.
    pub(super) fn new(
        id: RowId,
        slot: Slot,
        mut tokens: Vec<u32>,
        mut sampler: Sampler,
        request: &Request,
        eos: Option<u32>,
        speculation: Speculation,
    ) -> Self {
        sampler.observe_prompt(&tokens);
        let stop = &request.stop;
        let recent = request.start.as_ref().map_or(&[][..], |start| &start.recent);
        tokens.splice(..0, recent.iter().copied());
        // Room for all that is likely to come.
        tokens.reserve(stop.max_new_tokens.min(MOST_EXPECTED) + MAX_DRAFT);
        let mut row = Self {
            id,
            slots: vec![slot],
            base: 0,
            position: request.start.as_ref().map_or(0, |start| start.position),
            tokens,
            read: recent.len(),
            sampler,
            draft: Draft::default(),
            used: 0,
            drawn: 0,
            speculation,
            accepted: None,
            ready: VecDeque::with_capacity(MAX_DRAFT + 1),
            failure: None,
            top: Vec::with_capacity(request.sampling.logprobs + 1),
            begun: false,
            one_per_step: request.one_per_step,
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

    /// What it could use of a pass, its draft included.
    pub(super) fn demand(&self) -> Demand {
        let decoding = self.stats.num_generated_tokens > 0;
        if !self.ready.is_empty() || self.failure.is_some() {
            return Demand { tokens: 0, decoding };
        }
        // A row that shall generate nothing leaves its last token unread: its logits are of no use, and who goes on from
        // here needs a token to read.
        let kept = usize::from(self.max_new_tokens == 0);
        Demand { tokens: self.tokens.len() - self.read - kept + self.used, decoding }
    }

    /// Most guesses that could be of use in the coming pass.
    pub(super) fn most_guesses(&self) -> usize {
        let decoding = self.stats.num_generated_tokens > 0 && self.demand().tokens > 0 && self.end.is_none();
        // The token after the last guess is drawn in the same pass.
        let left = self.max_new_tokens - self.stats.num_generated_tokens.min(self.max_new_tokens);
        if decoding { left.saturating_sub(1).min(MAX_DRAFT) } else { 0 }
    }

    /// Asks a drafter for at most `max_tokens` guesses.
    pub(super) fn ask(&mut self, max_tokens: usize) -> DraftRow<'_> {
        DraftRow {
            row: self.id,
            history: &self.tokens,
            position: self.position + 1,
            max_tokens,
            sampler: &self.sampler,
            shared_noise: self.speculation.verify == Verify::Coupled,
            distributions: self.speculation.verify != Verify::Coupled,
            draft: &mut self.draft,
        }
    }

    /// Forgets the guesses.
    pub(super) fn clear_draft(&mut self) {
        self.draft.clear();
        self.used = 0;
    }

    /// Has the pass verify all guesses.
    pub(super) fn use_whole_draft(&mut self) {
        self.used = self.draft.tokens.len();
    }

    /// Puts the guesses behind the tokens to read and takes slots for the states after them.
    ///
    /// # Errors
    /// Where there is no room for slots. The row is as before.
    pub(super) fn append_draft(&mut self, runner: &mut impl Runner) -> Result<()> {
        self.slots.swap(0, self.base);
        self.base = 0;
        while self.slots.len() <= self.used {
            self.slots.push(runner.alloc_slot()?);
        }
        self.tokens.extend_from_slice(&self.draft.tokens[..self.used]);
        Ok(())
    }

    /// Takes the guesses away again.
    pub(super) fn remove_draft(&mut self) {
        self.tokens.truncate(self.tokens.len() - self.used);
    }

    /// Its part of a pass: the next `n` tokens, of which the last ones are the guesses.
    pub(super) fn pass(&self, n: usize) -> PassRow<'_> {
        let guesses = self.used;
        let logits = match self.completes(n) {
            true if guesses > 0 => LogitsWanted::All,
            true => LogitsWanted::Last,
            false => LogitsWanted::None,
        };
        let keep = if guesses > 0 { &self.slots[..=guesses] } else { &self.slots[..1] };
        PassRow { slot: self.slots[0], tokens: &self.tokens[self.read..self.read + n], logits, keep }
    }

    /// Whether reading `n` more tokens leads to logits.
    fn completes(&self, n: usize) -> bool {
        self.read + n == self.tokens.len()
    }

    /// The lines of logits that come of reading `n` tokens.
    pub(super) fn lines(&self, n: usize) -> usize {
        if n > 0 && self.completes(n) { self.used + 1 } else { 0 }
    }

    /// Adds what a device has to know to draw from the row's lines after a pass over `n` tokens, the first of which is `line`. Nothing
    /// where the row has to be drawn for on the CPU: as its settings say, or because a rule decides on guesses.
    pub(super) fn draw_specs(&self, n: usize, line: usize, known: usize, specs: &mut Vec<DrawSpec>) -> Range<usize> {
        let start = specs.len();
        let rule = self.used > 0 && self.speculation.verify != Verify::Coupled && !self.sampler.params().is_greedy();
        if self.sampler.params().logprobs == 0 && !rule && self.speculation.forced_acceptance.is_none() {
            let position = self.position + (n - self.used.min(n)) as u64;
            let spec = |i| self.sampler.draw_spec(line + i, known, position + i as u64);
            specs.extend((0..self.lines(n)).map_while(spec));
        }
        start..specs.len()
    }

    /// Takes note that a pass has read `n` tokens. Returns the lines of logits that came of it.
    pub(super) fn advance(&mut self, n: usize) -> usize {
        let lines = self.lines(n);
        self.remove_draft();
        let n = n - self.used;
        self.drawn = 0;
        self.read += n;
        self.position += n as u64;
        self.begun = false;
        if self.stats.num_generated_tokens == 0 {
            self.stats.num_prompt_tokens += n;
        } else {
            self.stats.speculation.num_rounds += 1;
        }
        self.end_if_read();
        lines
    }

    fn end_if_read(&mut self) {
        if self.max_new_tokens == 0 && self.tokens.len() - self.read == 1 {
            self.end = Some(FinishReason::Length.into());
        }
    }

    /// Takes a token that was drawn, to be let out later. Penalties count it from now on.
    pub(super) fn push(&mut self, id: u32, drafted: bool, logprobs: &Logprobs<'_>) -> Result<()> {
        let logprob = logprobs.checked(id)?;
        let start = self.top.len();
        logprobs.top(self.sampler.params().logprobs, &mut self.top);
        self.take(Ready { id, logprob, top: start..self.top.len(), drafted });
        Ok(())
    }

    /// The same with a token that a device has drawn.
    pub(super) fn push_drawn(&mut self, Drawn { id, logprob }: Drawn, drafted: bool) {
        let end = self.top.len();
        self.take(Ready { id, logprob, top: end..end, drafted });
    }

    fn take(&mut self, ready: Ready) {
        self.sampler.observe(ready.id);
        self.drawn += 1;
        self.ready.push_back(ready);
    }

    /// How many tokens were drawn from the last pass.
    pub(super) fn num_drawn(&self) -> usize {
        self.drawn
    }

    /// The last of them, as long as it is not out.
    pub(super) fn last_drawn(&self) -> Option<u32> {
        self.ready.back().map(|ready| ready.id)
    }

    /// Whether a token ends the text by itself.
    pub(super) fn is_stop(&self, id: u32) -> bool {
        self.eos == Some(id) || self.stop_ids.contains(&id)
    }

    /// Ends it once the tokens that are drawn are out.
    pub(super) fn fail(&mut self, error: Error) {
        self.failure = Some(error);
    }

    /// The next token to let out; after the first of a step only where the row may let out several.
    pub(super) fn next_ready(&mut self, first: bool) -> Option<Ready> {
        if self.end.is_some() || !first && self.one_per_step {
            return None;
        }
        let ready = self.ready.pop_front();
        if ready.is_none() {
            self.end = self.failure.take().map(End::from);
        }
        ready
    }

    /// The most probable rivals of a token.
    pub(super) fn rivals(&self, ready: &Ready) -> &[TokenLogprob] {
        &self.top[ready.top.clone()]
    }

    /// Lets out a token, which stands for `bytes`; text that has become certain is appended to `out`.
    pub(super) fn accept(&mut self, id: u32, bytes: &[u8], out: &mut String) {
        if self.begun {
            // The pass has read the token before this one, as a guess.
            self.read += 1;
            self.position += 1;
            self.base += 1;
        }
        self.begun = true;
        if self.ready.is_empty() {
            self.top.clear();
        }
        self.tokens.push(id);
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
    pub(super) fn state(&self, runner: &impl Runner) -> Result<SequenceState> {
        Ok(SequenceState {
            values: runner.read_state(self.slots[self.base])?,
            position: self.position,
            pending: self.tokens.get(self.read).copied(),
            recent: self.tokens[self.read.saturating_sub(MOST_RECENT)..self.read].to_vec(),
        })
    }

    /// Gives its slots back.
    pub(super) fn free(&self, runner: &mut impl Runner) {
        self.slots.iter().for_each(|&slot| runner.free_slot(slot));
    }

    /// Tokens that the last pass has read and that stay, the last `n` of them.
    pub(super) fn last_read(&self, n: usize) -> &[u32] {
        &self.tokens[self.read - n.min(self.read)..self.read]
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
