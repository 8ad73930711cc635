//! What a row did, and how long it took.

use crate::draft::{MAX_DRAFT, Source};

/// What a row did and how long it took.
///
/// Seconds are those of the steps that the row took part in, other rows' share included, and not the caller's time between
/// steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStats {
    /// Tokens read before the first generated one, the pending one of a continued sequence included.
    pub num_prompt_tokens: usize,
    /// Tokens generated, a stop token included.
    pub num_generated_tokens: usize,
    /// Time to the first generated token.
    pub prefill_seconds: f64,
    /// Time from the first generated token to the last.
    pub decode_seconds: f64,
    /// What drafts came to.
    pub speculation: SpeculationStats,
}

impl RowStats {
    /// Tokens read per second, 0 if nothing was timed.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.num_prompt_tokens, self.prefill_seconds)
    }

    /// Tokens generated per second after the first, which belongs to the prompt's time. 0 if there is no second.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.num_generated_tokens.saturating_sub(1), self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// Counts and times of a row's rounds: passes past its prompt, each of which verifies a draft or has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpeculationStats {
    /// Rounds, those without a draft included.
    pub num_rounds: usize,
    /// Rounds with a draft.
    pub num_drafts: usize,
    /// Tokens guessed.
    pub num_draft_tokens: usize,
    /// Guesses accepted.
    pub num_accepted_tokens: usize,
    /// Drafts that had a guess at each position.
    pub drafted_at: [usize; MAX_DRAFT],
    /// Guesses accepted at each position.
    pub accepted_at: [usize; MAX_DRAFT],
    /// Drafts of which so many guesses were accepted.
    pub accepted_lengths: [usize; MAX_DRAFT + 1],
    /// Tokens guessed and accepted, by [`Source`].
    pub by_source: [(usize, usize); Source::ALL.len()],
    /// Time spent drafting.
    pub draft_seconds: f64,
    /// Time of the passes.
    pub verify_seconds: f64,
    /// Time spent drawing and accepting.
    pub accept_seconds: f64,
    /// Time that drafts and passes should have taken by the costs measured beforehand; 0 where none were.
    pub predicted_seconds: f64,
    /// Time that passes without drafts should have taken for the same tokens.
    pub predicted_base_seconds: f64,
}

impl SpeculationStats {
    /// Books a draft of `drafted` guesses, of which `accepted` stay.
    pub(super) fn note(&mut self, source: Source, drafted: usize, accepted: usize) {
        self.num_drafts += 1;
        self.num_draft_tokens += drafted;
        self.num_accepted_tokens += accepted;
        self.drafted_at[..drafted].iter_mut().for_each(|n| *n += 1);
        self.accepted_at[..accepted].iter_mut().for_each(|n| *n += 1);
        self.accepted_lengths[accepted] += 1;
        let (guessed, stayed) = &mut self.by_source[source as usize];
        *guessed += drafted;
        *stayed += accepted;
    }

    /// Accepted guesses per guess.
    pub fn acceptance_rate(&self) -> f64 {
        ratio(self.num_accepted_tokens, self.num_draft_tokens)
    }

    /// Accepted guesses per draft.
    pub fn mean_accepted(&self) -> f64 {
        ratio(self.num_accepted_tokens, self.num_drafts)
    }

    /// Tokens per draft that its round brought: the accepted ones and the one that the model adds.
    pub fn mean_acceptance_length(&self) -> f64 {
        if self.num_drafts == 0 { 0.0 } else { 1.0 + self.mean_accepted() }
    }

    /// Accepted guesses per guess at each position, for as many positions as were guessed at.
    pub fn acceptance_rate_per_position(&self) -> impl Iterator<Item = f64> + '_ {
        let both = self.accepted_at.iter().zip(&self.drafted_at);
        both.take_while(|(_, drafted)| **drafted > 0).map(|(&accepted, &drafted)| ratio(accepted, drafted))
    }

    /// Share of the rounds without a draft.
    pub fn chose_base(&self) -> f64 {
        ratio(self.num_rounds - self.num_drafts, self.num_rounds)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_guess_per_draft_and_per_position() {
        let mut stats = SpeculationStats { num_rounds: 4, ..Default::default() };
        stats.note(Source::Prophet, 3, 2);
        stats.note(Source::NGram, 5, 0);
        stats.note(Source::Prophet, 1, 1);
        assert_eq!(stats.acceptance_rate(), 3.0 / 9.0);
        assert_eq!((stats.mean_accepted(), stats.mean_acceptance_length()), (1.0, 2.0));
        let rates: Vec<f64> = stats.acceptance_rate_per_position().collect();
        assert_eq!(rates, [2.0 / 3.0, 0.5, 0.0, 0.0, 0.0]);
        assert_eq!(stats.accepted_lengths[..3], [1, 1, 1]);
        assert_eq!(stats.by_source[Source::Prophet as usize], (4, 3));
        assert_eq!(stats.chose_base(), 0.25);
    }

    #[test]
    fn nothing_drafted_is_no_division_by_zero() {
        let stats = SpeculationStats::default();
        assert_eq!((stats.acceptance_rate(), stats.mean_acceptance_length(), stats.chose_base()), (0.0, 0.0, 0.0));
        assert_eq!(stats.acceptance_rate_per_position().count(), 0);
    }
}
