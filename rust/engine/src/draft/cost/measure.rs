//! Timing of passes, drafts and draws.
//!
//! Other processes, and on rented machines other guests, only ever make a pass slower. So all lengths are measured in turns,
//! several times, and of each the second best counts (of few, the best): the median on a machine that others use, too, is
//! theirs, above all for long passes, while on one that is left alone both are the same but for a few percent.

use std::time::Instant;

use super::DraftCost;
use super::curve::Curve;
use crate::backend::{LogitsWanted, PassRow, Runner};
use crate::error::Result;
use crate::state::Slot;

/// Tokens of the passes that are timed, the most telling first: where time is short, the last ones are left out.
const TOKENS: [usize; 14] = [1, 4, 8, 2, 6, 16, 3, 5, 7, 12, 32, 64, 24, 48];
/// These are timed for any model, however slow.
const AT_LEAST: usize = 3;
/// Further tries of what seems to have been interrupted.
const MORE: usize = 4;
/// Rows that drafting is timed for.
const ROWS: [usize; 5] = [1, 2, 4, 8, 16];
/// Tokens of a timed draft: one, and so many.
const DRAFT: usize = 5;

/// How much time measuring may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// About so many seconds; more only for models that need more to be measured at all.
    pub seconds: f64,
    /// Most repetitions.
    pub rounds: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self { seconds: 0.5, rounds: 15 }
    }
}

/// Seconds of passes with logits and a state after every token.
pub(super) fn passes(runner: &mut dyn Runner, effort: Effort) -> Result<Curve> {
    let most = runner.max_pass_tokens();
    let mut bench = Bench { slots: vec![runner.alloc_slot()?], runner, text: vec![0] };
    let begun = Instant::now();
    let measured = bench.warm_up(effort.seconds / 6.0).and_then(|()| {
        let tokens: Vec<usize> = TOKENS.into_iter().filter(|&tokens| tokens <= most).collect();
        let left = effort.seconds - begun.elapsed().as_secs_f64();
        in_turns(&tokens, Effort { seconds: left, ..effort }, &mut |tokens, turn| bench.pass(tokens, turn))
    });
    bench.close();
    Ok(Curve::through(&measured?))
}

/// Seconds of drafts; `draft(rows, tokens)` makes one.
pub(super) fn drafts(draft: &mut dyn FnMut(usize, usize) -> Result<()>, effort: Effort) -> Result<DraftCost> {
    let mut timed = |rows, tokens| {
        let begun = Instant::now();
        draft(rows, tokens)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    timed(1, DRAFT)?;
    let half = Effort { seconds: effort.seconds / 2.0, ..effort };
    let first = in_turns(&ROWS, half, &mut |rows, _| timed(rows, 1))?;
    let mut whole = in_turns(&ROWS, half, &mut |rows, _| timed(rows, DRAFT))?;
    // Few rows may have been timed, and not the same for both.
    whole.retain(|(rows, _)| first.iter().any(|(n, _)| n == rows));
    let once = |rows: usize| first.iter().find(|(n, _)| *n == rows).map_or(0.0, |(_, seconds)| *seconds);
    // A first guess reads a token or two and so takes at most twice as long as the next ones, which disturbances of the first
    // must not make look free.
    let step = |rows: usize, all: f64| ((all - once(rows)) / (DRAFT - 1) as f64).max(0.4 * once(rows));
    let next: Vec<_> = whole.iter().map(|&(rows, all)| (rows, step(rows, all))).collect();
    Ok(DraftCost { first: Curve::through(&first), next: Curve::through(&next) })
}

/// Seconds of one call.
pub(super) fn once(call: &mut dyn FnMut() -> Result<()>, effort: Effort) -> Result<f64> {
    call()?;
    let found = in_turns(&[1], effort, &mut |_, _| {
        let begun = Instant::now();
        call()?;
        Ok(begun.elapsed().as_secs_f64())
    })?;
    Ok(found[0].1)
}

/// Good times of `time(size, turn)`, ascending by size. `sizes` come in the order of their importance, and the first ones are
/// measured in any case.
///
/// The first turn measures one after the other as long as three turns of all so far fit into the time; the turns after it
/// repeat those. Above 16 each second turn is enough: such passes are long, and so their times are steadier.
fn in_turns(
    sizes: &[usize],
    effort: Effort,
    time: &mut dyn FnMut(usize, usize) -> Result<f64>,
) -> Result<Vec<(usize, f64)>> {
    let begun = Instant::now();
    let mut found: Vec<(usize, Vec<f64>)> = Vec::with_capacity(sizes.len());
    for (i, &size) in sizes.iter().enumerate() {
        let spent: f64 = found.iter().map(|(_, times)| times[0]).sum();
        // What it will take, judged by the largest so far.
        let guess = found
            .iter()
            .max_by_key(|(n, _)| *n)
            .map_or(0.0, |(n, times)| times[0] * (size as f64 / *n as f64).min(4.0));
        if i >= AT_LEAST && 3.0 * (spent + guess) > effort.seconds {
            continue;
        }
        found.push((size, vec![time(size, 0)?]));
    }
    'turns: for turn in 1..effort.rounds {
        for (size, times) in &mut found {
            // Another one like the last would be over the time.
            if begun.elapsed().as_secs_f64() + times[times.len() - 1] > effort.seconds {
                break 'turns;
            }
            if *size <= 16 || turn % 2 == 0 {
                times.push(time(*size, turn)?);
            }
        }
    }
    found.sort_by_key(|(size, _)| *size);
    for i in 1..found.len() {
        // Dearer by the token than a smaller pass: it was interrupted every time, which would be remembered.
        let (smaller, least) = (found[i - 1].0, good(&mut found[i - 1].1));
        let (size, times) = &mut found[i];
        let most = 1.5 * least * *size as f64 / smaller as f64;
        for turn in 0..MORE {
            if good(times) <= most {
                break;
            }
            times.push(time(*size, turn)?);
        }
    }
    Ok(found.into_iter().map(|(size, mut times)| (size, good(&mut times))).collect())
}

fn good(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[(times.len() - 1) / 8]
}

/// A text of the model's own, and slots to read it with.
struct Bench<'a> {
    runner: &'a mut dyn Runner,
    /// The first one holds the state before every pass.
    slots: Vec<Slot>,
    /// Channel mixing skips what is zero in all tokens of a pass, so tokens should be those that the model itself writes:
    /// neither all the same nor thrown together at random.
    text: Vec<u32>,
}

impl Bench<'_> {
    /// Most tokens of the text.
    const TEXT: usize = 96;
    /// Seconds of a pass whose weights a cache could hold.
    const SHORT: f64 = 2e-3;

    /// Writes the text, for so many seconds at most, and with it wakes threads and makes room.
    fn warm_up(&mut self, seconds: f64) -> Result<()> {
        let begun = Instant::now();
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        while self.text.len() < Self::TEXT && (self.text.len() < 4 || begun.elapsed().as_secs_f64() < seconds) {
            let row = PassRow {
                slot: self.slots[0],
                tokens: &self.text[self.text.len() - 1..],
                logits: LogitsWanted::Last,
                keep: &self.slots[..1],
            };
            self.runner.forward(&[row])?;
            // Knuth's multiplier for a congruential generator of 64 bits.
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.text.push(drawn(self.runner.logits(), (noise >> 40) as f32 / (1_u64 << 24) as f32));
        }
        Ok(())
    }

    /// Seconds of a pass over one row of so many tokens: of the second one in sequence, if it is short, because the pass
    /// before, of many tokens, has driven weights out of the caches that a text in progress finds there.
    fn pass(&mut self, tokens: usize, turn: usize) -> Result<f64> {
        while self.slots.len() < tokens + 1 {
            self.slots.push(self.runner.alloc_slot()?);
        }
        let read: Vec<u32> = self.text.iter().copied().cycle().skip(17 * turn % self.text.len()).take(tokens).collect();
        let row =
            PassRow { slot: self.slots[0], tokens: &read, logits: LogitsWanted::All, keep: &self.slots[1..=tokens] };
        let begun = Instant::now();
        self.runner.forward(&[row])?;
        let cold = begun.elapsed().as_secs_f64();
        if cold > Self::SHORT {
            return Ok(cold);
        }
        let begun = Instant::now();
        self.runner.forward(&[row])?;
        Ok(begun.elapsed().as_secs_f64())
    }

    fn close(self) {
        self.slots.into_iter().for_each(|slot| self.runner.free_slot(slot));
    }
}

/// A token of a line of logits at a point of the cumulated distribution, 0 to 1. Whatever the line holds, there is one.
fn drawn(line: &[f32], point: f32) -> u32 {
    let most = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = line.iter().map(|x| (x - most).exp()).sum();
    let mut left = point * total;
    let found = line.iter().position(|x| {
        left -= (x - most).exp();
        left < 0.0
    });
    found.unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DeviceRunner;
    use crate::config::ModelConfig;
    use crate::draft::testing::golden;

    #[test]
    fn disturbed_turns_do_not_count() {
        let effort = Effort { seconds: 10.0, rounds: 9 };
        let mut calls = 0;
        let found = in_turns(&[1, 4, 2], effort, &mut |size, turn| {
            calls += 1;
            Ok(if turn % 2 == 1 { 1.0 } else { size as f64 * 1e-3 })
        });
        assert_eq!(found.expect("no error"), [(1, 1e-3), (2, 2e-3), (4, 4e-3)]);
        assert_eq!(calls, 27);
    }

    #[test]
    fn what_was_interrupted_is_timed_again() {
        let mut calls = 0;
        let found = in_turns(&[1, 4, 8], Effort { seconds: 0.0, rounds: 15 }, &mut |size, _| {
            calls += 1;
            Ok(if calls == 3 { 1.0 } else { size as f64 * 1e-3 })
        });
        assert_eq!((found.expect("no error"), calls), (vec![(1, 1e-3), (4, 4e-3), (8, 8e-3)], 4));
    }

    #[test]
    fn a_slow_model_is_timed_at_the_most_telling_lengths_only() {
        let effort = Effort { seconds: 0.5, rounds: 15 };
        let mut sizes = Vec::new();
        let found = in_turns(&TOKENS, effort, &mut |size, _| {
            sizes.push(size);
            Ok(0.4 + 0.01 * size as f64)
        });
        assert_eq!(found.expect("no error").iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 4, 8]);
        assert_eq!(sizes[..3], [1, 4, 8]);
    }

    #[test]
    fn the_step_of_a_draft_is_what_longer_drafts_cost_more() {
        let mut calls = 0;
        let cost = drafts(
            &mut |rows, tokens| {
                calls += rows * tokens;
                Ok(())
            },
            Effort { seconds: 0.01, rounds: 3 },
        )
        .expect("no error");
        assert!(calls > 0);
        assert!(cost.first.at(1.0) >= 0.0 && cost.next.at(16.0) >= cost.next.at(1.0));
    }

    /// A runner that counts slots in use and looks at passes.
    struct Watched {
        runner: DeviceRunner,
        slots: usize,
        passes: Vec<usize>,
    }

    impl Runner for Watched {
        fn config(&self) -> &ModelConfig {
            self.runner.config()
        }

        fn max_pass_tokens(&self) -> usize {
            24
        }

        fn alloc_slot(&mut self) -> Result<Slot> {
            self.slots += 1;
            self.runner.alloc_slot()
        }

        fn free_slot(&mut self, slot: Slot) {
            self.slots -= 1;
            self.runner.free_slot(slot);
        }

        fn reset_slot(&mut self, slot: Slot) -> Result<()> {
            self.runner.reset_slot(slot)
        }

        fn copy_slot(&mut self, from: Slot, to: Slot) -> Result<()> {
            self.runner.copy_slot(from, to)
        }

        fn read_state(&self, slot: Slot) -> Result<Vec<f32>> {
            self.runner.read_state(slot)
        }

        fn write_state(&mut self, slot: Slot, state: &[f32]) -> Result<()> {
            self.runner.write_state(slot, state)
        }

        fn forward(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
            let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
            assert!(rows.iter().all(|row| row.keep.len() == row.tokens.len()), "a state after every token");
            self.passes.push(tokens);
            self.runner.forward(rows)
        }

        fn logits(&self) -> &[f32] {
            self.runner.logits()
        }

        fn hidden(&self) -> &[f32] {
            self.runner.hidden()
        }
    }

    #[test]
    fn passes_of_a_model_are_timed_and_slots_come_back() {
        let mut watched =
            Watched { runner: golden("spikegpt-tiny").runner().expect("a runner"), slots: 0, passes: Vec::new() };
        let curve = passes(&mut watched, Effort { seconds: 10.0, rounds: 2 }).expect("no error");
        assert_eq!(curve.points().iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24]);
        assert!(curve.at(1.0) > 0.0);
        assert!(watched.passes.contains(&24) && watched.slots == 0);
    }

    #[test]
    fn a_point_of_the_distribution_is_a_token() {
        let line = [0.0, 1.0_f32.ln(), f32::NEG_INFINITY, 2.0_f32.ln()];
        assert_eq!([0.0, 0.2, 0.3, 0.6, 0.99].map(|point| drawn(&line, point)), [0, 0, 1, 3, 3]);
        assert_eq!(drawn(&[f32::NAN; 3], 0.5), 0);
    }
}
