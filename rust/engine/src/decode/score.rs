//! Log probabilities of given tokens.

use super::Decoder;
use super::request::{SequenceState, check_ids};
use crate::backend::{LogitsWanted, PassRow, Runner};
use crate::error::Result;
use crate::sampler::Logprobs;
use crate::state::Slot;

/// Most tokens of a pass, each of which needs a whole line of logits: enough to use the matrix kernels well, and a few dozen
/// megabytes at most.
const TOKENS_PER_PASS: usize = 64;

impl<R: Runner> Decoder<R> {
    /// Log probabilities of `ids`, each given all before it: of all but the first, which has nothing before it, or of all
    /// if `start` has a pending token. Rows wait meanwhile and are not changed.
    ///
    /// # Errors
    /// [`Error::TokenId`](crate::Error::TokenId), [`Error::State`](crate::Error::State) or
    /// [`Error::Logits`](crate::Error::Logits).
    pub fn score(&mut self, ids: &[u32], start: Option<&SequenceState>) -> Result<Vec<f32>> {
        let pending = start.and_then(|start| start.pending);
        let tokens: Vec<u32> = pending.into_iter().chain(ids.iter().copied()).collect();
        let slot = self.runner.alloc_slot()?;
        let started = start.map_or(Ok(()), |start| self.runner.write_state(slot, &start.values));
        let scores = started.and_then(|()| self.score_from(slot, &tokens));
        self.runner.free_slot(slot);
        scores
    }

    /// Log probabilities of all `tokens` but the first, after the sequence in `slot`. The slot moves on by all tokens but
    /// the last, so a long text can be scored piece by piece: each piece begins with the last token of the one before.
    ///
    /// # Errors
    /// Those of [`score`](Self::score). The slot has then seen some of the tokens.
    pub fn score_from(&mut self, slot: Slot, tokens: &[u32]) -> Result<Vec<f32>> {
        let vocab_size = self.runner.config().vocab_size;
        check_ids(tokens, vocab_size)?;
        let most = self.runner.max_pass_tokens().min(TOKENS_PER_PASS);
        let mut scores = Vec::with_capacity(tokens.len());
        let (read, asked) = match tokens {
            [] => return Ok(scores),
            [read @ .., _] => (read, &tokens[1..]),
        };
        for (read, asked) in read.chunks(most).zip(asked.chunks(most)) {
            let row = PassRow { slot, tokens: read, logits: LogitsWanted::All, keep: &[slot] };
            self.runner.forward(&[row])?;
            for (line, &id) in self.runner.logits().chunks_exact(vocab_size).zip(asked) {
                scores.push(Logprobs::new(self.works.level(), line).checked(id)?);
            }
        }
        Ok(scores)
    }
}
