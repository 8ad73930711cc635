//! From the lines of logits of a row's pass to the tokens that it goes on with.

use spikelet_simd::Level;

use super::row::Row;
use super::verify::{self, RowChances, Targets, Verdict};
use crate::backend::Drawn;
use crate::draft::Verify;
use crate::error::Result;
use crate::sampler::{Dist, Logprobs, Sampler, Workspace};

/// Draws from `lines`, `[1 + guesses][vocab]`, of which the first `known` logits stand for tokens, and compares with the
/// guesses. Returns how many of those were accepted.
///
/// Where the draws are the row's own, this is decoding without a draft, line by line, for as long as the guesses have led
/// to the right lines: the text cannot depend on them. A rule decides by distributions instead: its text is another one, of
/// the same distribution. A greedy row draws its own, which is what every rule comes to.
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
    let draft = std::mem::take(&mut row.draft);
    let guesses = &draft.tokens[..row.used];
    // A drafter that does not tell what it drew from leaves the rules nothing to go by.
    let own = guesses.is_empty()
        || draft.drawn.len() < guesses.len()
        || row.sampler.params().is_greedy()
        || row.speculation.forced_acceptance.is_some();
    let lines = Lines { all: lines, vocab_size, known };
    let accepted = match row.speculation.verify {
        Verify::Token if !own => by_rule(row, guesses, lines, work, |level, targets, chances| {
            verify::token(guesses, &draft.drawn, level, targets, chances)
        }),
        Verify::Block if !own => by_rule(row, guesses, lines, work, |level, targets, chances| {
            verify::block(guesses, &draft.drawn, level, targets, chances)
        }),
        _ => by_own_draws(row, guesses, lines, work),
    };
    row.draft = draft;
    accepted
}

/// The same with the tokens that a device has drawn from the row's lines.
pub(super) fn verify_drawn(row: &mut Row, drawn: impl Iterator<Item = Drawn>) -> usize {
    let draft = std::mem::take(&mut row.draft);
    let guesses = &draft.tokens[..row.used];
    let mut accepted = 0;
    for drawn in drawn {
        let guessed = guesses.get(accepted) == Some(&drawn.id);
        row.push_drawn(drawn, guessed);
        accepted += usize::from(guessed);
        if !guessed || row.is_stop(drawn.id) {
            break;
        }
    }
    row.draft = draft;
    accepted
}

/// Lines of logits, of which only the first `known` of each stand for tokens.
#[derive(Clone, Copy)]
struct Lines<'a> {
    all: &'a [f32],
    vocab_size: usize,
    known: usize,
}

impl<'a> Lines<'a> {
    fn whole(&self, index: usize) -> &'a [f32] {
        &self.all[index * self.vocab_size..(index + 1) * self.vocab_size]
    }

    fn known(&self, index: usize) -> &'a [f32] {
        &self.whole(index)[..self.known]
    }
}

fn by_own_draws(row: &mut Row, guesses: &[u32], lines: Lines<'_>, work: &mut Workspace) -> Result<usize> {
    let start = row.position;
    for i in 0..=guesses.len() {
        let mut id = row.sampler.sample(lines.known(i), start + i as u64, work)?;
        let mut guessed = guesses.get(i) == Some(&id);
        if let (Some(probability), Some(&guess)) = (row.speculation.forced_acceptance, guesses.get(i)) {
            guessed = row.sampler.accept_uniform(start, i) < probability;
            id = if guessed { guess } else { id };
        }
        row.push(id, guessed, &Logprobs::new(work.level(), lines.whole(i)))?;
        if !guessed || row.is_stop(id) {
            return Ok(i + usize::from(guessed));
        }
    }
    unreachable!("nothing is guessed after the last guess")
}

/// Lets a rule decide.
fn by_rule(
    row: &mut Row,
    guesses: &[u32],
    lines: Lines<'_>,
    work: &mut Workspace,
    rule: impl FnOnce(Level, &mut RowTargets<'_>, &mut RowChances) -> Verdict,
) -> Result<usize> {
    let level = work.level();
    let mut chances = RowChances { noise: row.sampler.noise(), start: row.position };
    row.sampler.remember();
    let mut targets = RowTargets { sampler: &mut row.sampler, work, guesses, lines, observed: 0 };
    let Verdict { accepted, next } = rule(level, &mut targets, &mut chances);
    row.sampler.recall();
    for (i, &id) in guesses[..accepted].iter().enumerate() {
        row.push(id, true, &Logprobs::new(level, lines.whole(i)))?;
        if row.is_stop(id) {
            return Ok(i + 1);
        }
    }
    row.push(next?, false, &Logprobs::new(level, lines.whole(accepted)))?;
    Ok(accepted)
}

/// The distributions of a row along its draft, as they would be had the guesses been drawn.
struct RowTargets<'a> {
    sampler: &'a mut Sampler,
    work: &'a mut Workspace,
    guesses: &'a [u32],
    lines: Lines<'a>,
    /// Guesses that the penalties count.
    observed: usize,
}

impl Targets for RowTargets<'_> {
    fn after(&mut self, guesses: usize) -> Result<Dist<'_>> {
        for &guess in &self.guesses[self.observed..guesses] {
            self.sampler.observe(guess);
        }
        self.observed = guesses;
        self.sampler.distribution(self.lines.known(guesses), self.work)
    }
}
