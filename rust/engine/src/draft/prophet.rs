//! The prophet as a drafter: what it keeps of each row, and how its guesses are drawn.
//!
//! Of a row it keeps the model's last hidden states, nothing else: a draft reads them with the tokens that followed, from the zero
//! state, and then goes on by itself. All rows that want a draft are guessed side by side, so its weights are read once for
//! all of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::guess::guess;
use super::{Draft, DraftRow, Drafter, Source};
use crate::decode::RowId;
use crate::error::Result;
use crate::model::{Prophet, ProphetRunner};
use crate::sampler::{Line, Workspace};

/// Guesses with a [`Prophet`].
pub struct ProphetDrafter {
    runner: ProphetRunner,
    work: Workspace,
    rows: HashMap<RowId, Known>,
    /// The hidden states of a step.
    hidden: Vec<f32>,
    /// Rows that get another guess.
    active: Vec<usize>,
}

/// The last tokens of a row that the model has read, and its hidden state after each.
#[derive(Debug, Default)]
struct Known {
    tokens: Vec<u32>,
    hidden: Vec<f32>,
}

impl Known {
    /// Takes in what was read, and keeps the last `most`.
    fn read(&mut self, tokens: &[u32], hidden: &[f32], width: usize, most: usize) {
        let known = (hidden.len() / width).min(tokens.len());
        if known < tokens.len() {
            // What is kept no longer comes right before.
            self.tokens.clear();
            self.hidden.clear();
        }
        let new = known.min(most);
        let old = self.tokens.len().min(most - new);
        self.tokens.drain(..self.tokens.len() - old);
        self.hidden.drain(..self.hidden.len() - old * width);
        self.tokens.extend_from_slice(&tokens[tokens.len() - new..]);
        self.hidden.extend_from_slice(&hidden[hidden.len() - new * width..]);
    }

    /// The tokens that follow the hidden states, if those are of the end of this history.
    fn following<'a>(&self, history: &'a [u32]) -> Option<&'a [u32]> {
        let (_, read) = history.split_last()?;
        let known = !self.tokens.is_empty() && read.ends_with(&self.tokens);
        known.then(|| &history[history.len() - self.tokens.len()..])
    }
}

impl ProphetDrafter {
    /// A drafter for the rows of one decoder of the prophet's model.
    pub fn new(prophet: Arc<Prophet>) -> Self {
        Self {
            work: Workspace::new(prophet.model().cpu().level(), prophet.draft_ids().len()),
            runner: prophet.runner(),
            rows: HashMap::new(),
            hidden: Vec::new(),
            active: Vec::new(),
        }
    }

    /// The prophet that guesses.
    pub fn prophet(&self) -> &Arc<Prophet> {
        self.runner.prophet()
    }

    /// Draws a guess for each active row from the lines of the last step, and keeps those active that get another, with
    /// what stands in for their hidden states.
    fn draw(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) {
        let Self { runner, work, hidden, active, .. } = self;
        let prophet = runner.prophet();
        let ids = prophet.draft_ids();
        let lines = runner.logits().chunks_exact(ids.len());
        let stand_ins = runner.stand_ins().chunks_exact(prophet.config().target_hidden_size);
        hidden.clear();
        let mut lines = lines.zip(stand_ins);
        active.retain(|&i| {
            let (logits, stand_in) = lines.next().expect("a line for every active row");
            let row = &mut rows[i];
            // A row whose settings leave none of these tokens, or whose hidden states were no numbers, gets no more guesses.
            let drawn = guess(row, Source::Prophet, Line { logits, ids: Some(ids) }, work).is_ok();
            let on = drawn && row.draft.tokens.len() < row.max_tokens && more(i, row.draft);
            if on {
                hidden.extend_from_slice(stand_in);
            }
            on
        });
    }
}

impl Drafter for ProphetDrafter {
    fn source(&self) -> Source {
        Source::Prophet
    }

    fn wants_hidden(&self) -> bool {
        true
    }

    fn observe(&mut self, row: RowId, tokens: &[u32], hidden: &[f32]) {
        let config = self.runner.prophet().config();
        let (width, most) = (config.target_hidden_size, config.num_leading);
        self.rows.entry(row).or_default().read(tokens, hidden, width, most);
    }

    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        self.hidden.clear();
        self.active.clear();
        for (i, row) in rows.iter().enumerate() {
            if let Some(known) = self.rows.get(&row.row)
                && known.following(row.history).is_some()
                && row.max_tokens > 0
            {
                self.hidden.extend_from_slice(&known.hidden);
                self.active.push(i);
            }
        }
        self.runner.begin(rows.len());
        while !self.active.is_empty() {
            let pairs: Vec<(usize, &[u32])> = self
                .active
                .iter()
                .map(|&i| {
                    let row = &rows[i];
                    let first = || self.rows[&row.row].following(row.history).unwrap_or_default();
                    (i, row.draft.tokens.last().map_or_else(first, std::slice::from_ref))
                })
                .collect();
            self.runner.step(&pairs, &self.hidden)?;
            self.draw(rows, more);
        }
        Ok(())
    }

    fn forget(&mut self, row: RowId) {
        self.rows.remove(&row);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::super::testing::{draft_by, golden, rows};
    use super::*;
    use crate::draft::Drawn;
    use crate::sampler::{Sampler, SamplingParams};
    use crate::weights::SafetensorsFile;

    const WIDTH: usize = 64;

    fn data(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/prophet").join(name)
    }

    fn drafter(name: &str) -> ProphetDrafter {
        ProphetDrafter::new(Prophet::load(&data(name), &golden(name)).expect("a prophet"))
    }

    /// Hidden states and tokens of a text, and the greedy draft that follows where so many pairs are known.
    fn known(name: &str, pairs: usize) -> (Vec<f32>, Vec<u32>, Vec<u32>) {
        let file = SafetensorsFile::open(&data(name).join("expected.safetensors")).expect("answers");
        let ids = |name: &str| {
            let bytes = file.get(name).expect("ids").bytes;
            bytes.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b) as u32).collect()
        };
        (file.get("hidden").expect("hidden states").to_f32(), ids("tokens"), ids(&format!("guesses.{pairs}")))
    }

    fn sampler(temperature: f32) -> Sampler {
        let params = SamplingParams { temperature, seed: 5, ..SamplingParams::default() };
        Sampler::new(&params, 256, 0, 0).expect("good values")
    }

    fn greedy(drafter: &mut ProphetDrafter, row: RowId, history: &[u32], n: usize) -> Vec<u32> {
        draft_by(&sampler(0.0), true, drafter, row, history, n, |_| true).tokens
    }

    #[test]
    fn drafts_go_on_from_the_last_pairs() {
        for name in ["spikegpt-tiny", "rwkv4-tiny"] {
            let [row, other] = rows();
            let (hidden, tokens, two) = known(name, 2);
            let (_, _, one) = known(name, 1);
            let mut drafter = drafter(name);
            assert!(drafter.wants_hidden());
            assert_eq!(greedy(&mut drafter, row, &tokens, 6), [0; 0], "nothing is known of the row");
            // Told in pieces, the hidden states of the first ones left out.
            drafter.observe(row, &tokens[..4], &hidden[3 * WIDTH..4 * WIDTH]);
            drafter.observe(row, &tokens[4..8], &hidden[4 * WIDTH..8 * WIDTH]);
            drafter.observe(row, &tokens[8..9], &hidden[8 * WIDTH..]);
            assert_eq!(greedy(&mut drafter, row, &tokens, 6), two, "{name}");
            assert_eq!(greedy(&mut drafter, row, &tokens, 3), two[..3], "a draft leaves nothing behind");
            // A gap: only what comes after it counts.
            drafter.observe(other, &tokens[..7], &hidden[..7 * WIDTH]);
            drafter.observe(other, &tokens[7..9], &hidden[8 * WIDTH..]);
            assert_eq!(greedy(&mut drafter, other, &tokens, 6), one, "{name}");
            drafter.observe(other, &tokens[8..9], &[]);
            assert_eq!(greedy(&mut drafter, other, &tokens, 6), [0; 0]);
            // A history that is not what was read.
            assert_eq!(greedy(&mut drafter, row, &tokens[..9], 6), [0; 0]);
            assert_eq!(greedy(&mut drafter, row, &[], 6), [0; 0]);
            drafter.forget(row);
            assert_eq!(greedy(&mut drafter, row, &tokens, 6), [0; 0]);
        }
    }

    #[test]
    fn rows_end_one_by_one_and_do_not_touch_each_other() {
        let [row, unknown, other] = rows();
        let (hidden, tokens, expected) = known("spikegpt-tiny", 2);
        let mut drafter = drafter("spikegpt-tiny");
        for row in [row, other] {
            drafter.observe(row, &tokens[..9], &hidden);
        }
        let sampler = sampler(0.0);
        let mut drafts = [Draft::default(), Draft::default(), Draft::default()];
        let mut wishes: Vec<DraftRow<'_>> = drafts
            .iter_mut()
            .zip([(row, 2), (unknown, 6), (other, 6)])
            .map(|(draft, (row, max_tokens))| DraftRow {
                row,
                history: &tokens,
                position: 10,
                max_tokens,
                sampler: &sampler,
                shared_noise: true,
                distributions: false,
                draft,
            })
            .collect();
        drafter.propose(&mut wishes, &mut |i, draft| i != 2 || draft.tokens.len() < 4).expect("drafts");
        assert_eq!(drafts.each_ref().map(|draft| &draft.tokens[..]), [&expected[..2], &[], &expected[..4]]);
        assert!(drafts[2].drawn.is_empty() && drafts[2].source == Some(Source::Prophet));
        assert!(drafts[1].source.is_none());
    }

    #[test]
    fn guesses_are_drawn_from_what_is_told() {
        let [row] = rows();
        let (hidden, tokens, _) = known("rwkv4-tiny", 2);
        let mut drafter = drafter("rwkv4-tiny");
        drafter.observe(row, &tokens[..9], &hidden);
        let ids = drafter.prophet().draft_ids().to_vec();
        for shared in [true, false] {
            let sampler = sampler(1.0);
            let draft = draft_by(&sampler, shared, &mut drafter, row, &tokens, 5, |_| true);
            for (i, (&token, drawn)) in draft.tokens.iter().zip(&draft.drawn).enumerate() {
                let Drawn::From(of, probs) = drawn else { panic!("{drawn:?}") };
                let mass: f32 = probs.iter().sum();
                assert!(ids == *of && (mass - 1.0).abs() < 1e-5);
                let confidence = draft.confidence[i];
                let greatest = probs.iter().copied().fold(0.0, f32::max);
                let at = of.binary_search(&token).expect("one of them");
                let expected = if shared { probs[at] } else { greatest };
                assert!((confidence - expected).abs() < 1e-5, "{confidence} {expected}");
                if shared {
                    // The race of that position, over logarithms of what is told.
                    let logits: Vec<f32> = probs.iter().map(|p| p.ln()).collect();
                    let mut work = Workspace::new(drafter.prophet().model().cpu().level(), ids.len());
                    let line = Line { logits: &logits, ids: Some(of) };
                    assert_eq!(sampler.sample(line, 10 + i as u64, &mut work).expect("finite"), token);
                }
            }
            assert_eq!((draft.tokens.len(), draft.drawn.len()), (5, 5));
        }
    }

    #[test]
    fn a_row_whose_settings_leave_nothing_gets_no_guess() {
        let [row] = rows();
        let (hidden, tokens, _) = known("rwkv4-tiny", 2);
        let mut drafter = drafter("rwkv4-tiny");
        drafter.observe(row, &tokens[..9], &hidden);
        let logit_bias = drafter.prophet().draft_ids().iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
        let params = SamplingParams { logit_bias, ..SamplingParams::default() };
        let sampler = Sampler::new(&params, 256, 0, 0).expect("good values");
        assert!(draft_by(&sampler, true, &mut drafter, row, &tokens, 5, |_| true).tokens.is_empty());
    }
}
