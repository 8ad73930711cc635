//! From the lines of logits of a row's pass to the tokens that it goes on with.

use super::row::Row;
use crate::error::Result;
use crate::sampler::{Logprobs, Workspace};

/// Draws from `lines`, `[1 + guesses][vocab]`, of which the first `known` logits stand for tokens, and compares with the
/// guesses. Returns how many of those were accepted.
///
/// Where the draws are the row's own, this is decoding without a draft, line by line, for as long as the guesses have led
/// to the right lines: the text cannot depend on them.
///
/// # Errors
/// Of the line that cannot be drawn from. The tokens before it are drawn.
pub(super) fn verify(
    row: &mut Row,
    lines: &[f32],
    vocab_size: usize,
    known: usize,
    work: &mut Workspace,
) -> Result<usize> {
    let guesses = std::mem::take(&mut row.draft.tokens);
    let accepted = by_own_draws(row, &guesses[..row.used], lines, vocab_size, known, work);
    row.draft.tokens = guesses;
    accepted
}

fn by_own_draws(
    row: &mut Row,
    guesses: &[u32],
    lines: &[f32],
    vocab_size: usize,
    known: usize,
    work: &mut Workspace,
) -> Result<usize> {
    let start = row.position;
    for (i, line) in lines.chunks_exact(vocab_size).enumerate() {
        let mut id = row.sampler.sample(&line[..known], start + i as u64, work)?;
        let mut guessed = guesses.get(i) == Some(&id);
        if let (Some(probability), Some(&guess)) = (row.speculation.forced_acceptance, guesses.get(i)) {
            guessed = row.sampler.accept_uniform(start, i) < probability;
            id = if guessed { guess } else { id };
        }
        row.push(id, guessed, &Logprobs::new(work.level(), line))?;
        if !guessed || row.is_stop(id) {
            return Ok(i + usize::from(guessed));
        }
    }
    Ok(guesses.len())
}
