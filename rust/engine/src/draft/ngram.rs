//! The n-gram drafter: what followed the last tokens when they stood in this text before comes again.
//!
//! It costs nothing beside a pass of the model and wins where text repeats itself: code, lists, quotations of the prompt. Each
//! row has an index from every run of `min..=max` tokens to the place where it ended last; a draft copies from behind the
//! longest run that the text now ends with. A copy that reaches the end of the text goes on with what it has copied, so
//! a text that repeats a period is continued in it.

use std::collections::HashMap;

use super::hash::RunHash;
use super::{Draft, DraftRow, Drafter, Drawn, Source};
use crate::decode::RowId;
use crate::error::{Error, Result};

/// Longest runs that may be asked for: beyond it a longer match says nothing more.
const MAX_RUN: usize = 32;

/// Guesses from the row's own prompt and output.
#[derive(Debug)]
pub struct NGram {
    min: usize,
    max: usize,
    rows: HashMap<RowId, Row>,
}

/// What is kept for a row.
#[derive(Debug)]
struct Row {
    index: Index,
    record: Record,
    /// Where the last draft began in the history, its tokens, and the length of the match behind it.
    drafted: (usize, Vec<u32>, usize),
}

impl NGram {
    /// Copies from behind runs of `min` to `max` tokens (`prompt_lookup_min`, `prompt_lookup_max`).
    ///
    /// # Errors
    /// [`Error::Option`] unless `1 <= min <= max <= 32`.
    pub fn new(min: usize, max: usize) -> Result<Self> {
        let wrong = |name: &str, value: usize, needed: String| {
            Err(Error::Option { name: name.into(), value: value.to_string(), needed })
        };
        if !(1..=MAX_RUN).contains(&max) {
            return wrong("prompt_lookup_max", max, format!("1 to {MAX_RUN}"));
        }
        if !(1..=max).contains(&min) {
            return wrong("prompt_lookup_min", min, format!("1 to prompt_lookup_max, which is {max}"));
        }
        Ok(Self { min, max, rows: HashMap::new() })
    }
}

impl Default for NGram {
    fn default() -> Self {
        Self { min: 2, max: 8, rows: HashMap::new() }
    }
}

impl Drafter for NGram {
    fn source(&self) -> Source {
        Source::NGram
    }

    /// Nothing: the history that comes with the next wish for a draft says it all.
    fn observe(&mut self, _: RowId, _: &[u32], _: &[f32]) {}

    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        for (i, wish) in rows.iter_mut().enumerate() {
            let row = self.rows.entry(wish.row).or_insert_with(|| Row {
                index: Index::new(self.min, self.max),
                record: Record::default(),
                drafted: (0, Vec::new(), 0),
            });
            row.propose(wish, &mut |draft| more(i, draft));
        }
        Ok(())
    }

    fn forget(&mut self, row: RowId) {
        self.rows.remove(&row);
    }
}

impl Row {
    fn propose(&mut self, wish: &mut DraftRow<'_>, more: &mut dyn FnMut(&Draft) -> bool) {
        let history = wish.history;
        let (start, tokens, matched) = &mut self.drafted;
        if let Some(came) = history.get(*start..) {
            self.record.learn(*matched, tokens, came);
        }
        tokens.clear();
        self.index.update(history);
        let Some(end) = self.index.find(history) else { return };
        let period = history.len() - end;
        *start = history.len();
        *matched = match_length(history, end);
        let draft = &mut *wish.draft;
        draft.source = Some(Source::NGram);
        while draft.tokens.len() < wish.max_tokens {
            let n = draft.tokens.len();
            if n > 0 && !more(draft) {
                break;
            }
            draft.tokens.push(history[end + n % period]);
            draft.confidence.push(self.record.confidence(*matched + n));
            if wish.distributions {
                draft.drawn.push(Drawn::Certain);
            }
        }
        tokens.extend_from_slice(&draft.tokens);
    }
}

/// How many tokens before `end` are those at the end of the text, counted up to [`MAX_RUN`].
fn match_length(history: &[u32], end: usize) -> usize {
    let backwards = history[..end].iter().rev().zip(history.iter().rev());
    backwards.take(MAX_RUN).take_while(|(a, b)| a == b).count()
}

/// How often guesses came true so far, by the length of the match behind them.
///
/// A guess further on in a draft counts as one behind a longer match: it is looked at only if all before it came true.
#[derive(Debug, Default)]
struct Record {
    /// Per class of length: guesses that came true, and all that were put to the test. Old ones fade.
    classes: [(f32, f32); 6],
}

impl Record {
    /// What a row has not seen yet weighs as much as so many guesses.
    const PRIOR: f32 = 4.0;
    /// What is left of a guess's weight when the next of its class is tested.
    const FADING: f32 = 0.95;

    /// 1, 2, 3 to 4, 5 to 8, 9 to 16, more.
    fn class(matched: usize) -> usize {
        (matched.max(1) - 1).checked_ilog2().map_or(0, |log| log as usize + 1).min(5)
    }

    /// Takes note of what came in place of a draft behind a match of `matched` tokens.
    fn learn(&mut self, matched: usize, drafted: &[u32], came: &[u32]) {
        for (i, (guess, token)) in drafted.iter().zip(came).enumerate() {
            let (good, all) = &mut self.classes[Self::class(matched + i)];
            *good = *good * Self::FADING + f32::from(u8::from(guess == token));
            *all = *all * Self::FADING + 1.0;
            if guess != token {
                return;
            }
        }
    }

    /// The share of guesses behind such matches that come true. Without experience m / (m + 2).
    fn confidence(&self, matched: usize) -> f32 {
        let prior = matched as f32 / (matched as f32 + 2.0);
        let (good, all) = self.classes[Self::class(matched)];
        (good + Self::PRIOR * prior) / (all + Self::PRIOR)
    }
}

/// Where each run of `min..=max` tokens ended last, the end of the text left out.
#[derive(Debug)]
struct Index {
    min: usize,
    /// `places[n - min]` is of the runs of n tokens.
    places: Vec<Places>,
    /// Runs that end at a place up to this one are in `places`.
    done: usize,
    /// The last tokens before `done`, by which a history that is not the one from before is known.
    tail: Vec<u32>,
}

impl Index {
    fn new(min: usize, max: usize) -> Self {
        Self { min, places: (min..=max).map(|_| Places::default()).collect(), done: 0, tail: Vec::with_capacity(max) }
    }

    fn max(&self) -> usize {
        self.min + self.places.len() - 1
    }

    /// Takes in the runs that end before the last token of `history`; the one at its end is what is looked up. A
    /// history that does not go on from the one before is read anew.
    fn update(&mut self, history: &[u32]) {
        // Places are kept in 32 bits.
        let end = history.len().saturating_sub(1).min(u32::MAX as usize);
        if self.done > end || !history[..self.done].ends_with(&self.tail) {
            self.places.iter_mut().for_each(Places::clear);
            self.done = 0;
        }
        let max = self.max();
        for place in self.done + 1..=end {
            let mut hash = RunHash::default();
            for n in 1..=max.min(place) {
                hash.add(history[place - n]);
                if n >= self.min {
                    self.places[n - self.min].insert(history, n, place as u32, hash);
                }
            }
        }
        self.done = end.max(self.done);
        self.tail.clear();
        self.tail.extend_from_slice(&history[self.done.saturating_sub(max)..self.done]);
    }

    /// Where the longest run that `history` ends with ended before.
    fn find(&self, history: &[u32]) -> Option<usize> {
        let longest = self.max().min(history.len());
        let mut hashes = [RunHash::default(); MAX_RUN + 1];
        for n in 1..=longest {
            hashes[n] = hashes[n - 1];
            hashes[n].add(history[history.len() - n]);
        }
        let found = |n: usize| self.places[n - self.min].find(history, n, hashes[n]).map(|place| place as usize);
        (self.min..=longest).rev().find_map(found)
    }
}

/// Runs of one length: a hash table with open addressing whose keys are the places themselves, for the text says which run
/// ends there.
#[derive(Debug, Default)]
struct Places {
    /// Places, 0 where empty (no run ends there). A power of two of them, at most half of them used; or none.
    slots: Vec<u32>,
    used: usize,
}

impl Places {
    fn clear(&mut self) {
        self.slots.fill(0);
        self.used = 0;
    }

    /// The slot of the run of `n` tokens that ends at `place`, or the empty one where it belongs.
    fn slot(&self, history: &[u32], n: usize, place: usize, hash: RunHash) -> usize {
        let run = &history[place - n..place];
        let mask = self.slots.len() - 1;
        let mut slot = hash.0 as usize & mask;
        while self.slots[slot] != 0 && !ends_at(history, run, self.slots[slot]) {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn insert(&mut self, history: &[u32], n: usize, place: u32, hash: RunHash) {
        if self.slots.len() < 2 * (self.used + 1) {
            self.grow(history, n);
        }
        let slot = self.slot(history, n, place as usize, hash);
        self.used += usize::from(self.slots[slot] == 0);
        self.slots[slot] = place;
    }

    fn find(&self, history: &[u32], n: usize, hash: RunHash) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let place = self.slots[self.slot(history, n, history.len(), hash)];
        (place != 0).then_some(place)
    }

    fn grow(&mut self, history: &[u32], n: usize) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![0; (2 * old.len()).max(64)];
        for place in old.into_iter().filter(|&place| place != 0) {
            let hash = RunHash::of(&history[place as usize - n..place as usize]);
            let slot = self.slot(history, n, place as usize, hash);
            self.slots[slot] = place;
        }
    }
}

/// Whether `run` ends at `place`.
fn ends_at(history: &[u32], run: &[u32], place: u32) -> bool {
    history.get(..place as usize).is_some_and(|before| before.ends_with(run))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{draft, rows};
    use super::*;
    use crate::draft::MAX_DRAFT;

    /// The definition: the longest run, and of its earlier occurrences the last.
    fn naive_find(min: usize, max: usize, history: &[u32]) -> Option<usize> {
        (min..=max.min(history.len())).rev().find_map(|n| {
            let run = &history[history.len() - n..];
            (n..history.len()).rev().find(|&end| history[..end].ends_with(run))
        })
    }

    fn naive_draft(min: usize, max: usize, history: &[u32], n: usize) -> Vec<u32> {
        let Some(end) = naive_find(min, max, history) else { return Vec::new() };
        let mut text = history.to_vec();
        for i in 0..n {
            text.push(text[end + i]);
        }
        text.split_off(history.len())
    }

    #[test]
    fn text_that_repeats_a_period_goes_on_in_it() {
        let [row] = rows();
        let mut ngram = NGram::new(2, 4).expect("good values");
        let draft = draft(&mut ngram, row, &[9, 1, 2, 3, 1, 2, 3, 1], 7, |_| true);
        assert_eq!(draft.tokens, [2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(draft.drawn, vec![Drawn::Certain; 7]);
        assert_eq!(draft.source, Some(Source::NGram));
        assert!(draft.confidence.is_sorted(), "a later guess is looked at only if those before came true: {draft:?}");
    }

    #[test]
    fn nothing_to_copy_is_an_empty_draft() {
        let [row] = rows();
        let mut ngram = NGram::new(2, 8).expect("good values");
        for history in [&[][..], &[5], &[5, 5], &[1, 2, 3, 4, 5], &[1, 2, 3, 1]] {
            assert_eq!(draft(&mut ngram, row, history, 4, |_| true).tokens, [0; 0], "{history:?}");
        }
        assert_eq!(draft(&mut NGram::new(1, 1).expect("good"), row, &[5, 5], 2, |_| true).tokens, [5, 5]);
    }

    #[test]
    fn drafts_end_when_told_so() {
        let [row] = rows();
        let mut ngram = NGram::default();
        assert_eq!(draft(&mut ngram, row, &[1; 9], 9, |draft| draft.tokens.len() < 3).tokens.len(), 3);
    }

    #[test]
    fn confidence_learns_from_what_came() {
        let [row, other] = rows();
        let (mut ngram, mut history) = (NGram::default(), vec![1, 2, 3, 1, 2]);
        let first = draft(&mut ngram, row, &history, 1, |_| true).confidence[0];
        // What follows is always another.
        for i in 0..20 {
            history.extend([100 + i, 1, 2]);
            draft(&mut ngram, row, &history, 1, |_| true);
        }
        let last = draft(&mut ngram, row, &history, 1, |_| true).confidence[0];
        assert!(last < 0.5 * first, "{first} {last}");
        assert_eq!(draft(&mut ngram, other, &[1, 2, 3, 1, 2], 1, |_| true).confidence[0], first, "rows learn apart");
        let mut record = Record::default();
        (0..50).for_each(|_| record.learn(2, &[7, 8, 9], &[7, 8, 9]));
        assert!(record.confidence(2) > 0.9 && record.confidence(4) > 0.9);
        assert_eq!(record.confidence(20), 20.0 / 22.0);
    }

    #[test]
    fn rows_that_leave_are_forgotten() {
        let [row] = rows();
        let mut ngram = NGram::default();
        draft(&mut ngram, row, &[1; 9], 9, |_| true);
        assert_eq!(ngram.rows.len(), 1);
        ngram.forget(row);
        assert!(ngram.rows.is_empty());
        ngram.forget(row);
    }

    #[test]
    fn lengths_that_make_no_sense_are_refused() {
        for (min, max, name) in [(0, 4, "prompt_lookup_min"), (5, 4, "prompt_lookup_min"), (1, 33, "prompt_lookup_max")]
        {
            let error = NGram::new(min, max).expect_err("refused").to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(NGram::new(0, 0).is_err());
    }

    proptest! {
        /// Also where a history is cut back and goes on in another way.
        #[test]
        fn drafts_are_those_of_the_definition(
            min in 1..4_usize,
            more in 0..5_usize,
            changes in prop::collection::vec((0..40_usize, prop::collection::vec(0..3_u32, 0..40)), 1..20),
        ) {
            let [row] = rows();
            let max = min + more;
            let mut ngram = NGram::new(min, max).expect("good values");
            let mut history: Vec<u32> = Vec::new();
            for (step, (cut, tokens)) in changes.into_iter().enumerate() {
                if step % 4 == 3 {
                    history.truncate(history.len().saturating_sub(cut));
                    draft(&mut ngram, row, &history, 1, |_| true);
                }
                history.extend(tokens);
                let found = draft(&mut ngram, row, &history, MAX_DRAFT, |_| true);
                prop_assert_eq!(found.tokens, naive_draft(min, max, &history, MAX_DRAFT));
            }
        }
    }
}
