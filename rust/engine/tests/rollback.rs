//! The promise that a refused guess leaves no trace: every part of the state goes back with the slot.
//!
//! Forgotten side states are how recurrent models come to say other things under speculation. So runners that forget one part
//! each, or hand out the slot beside, must change the text here; only then does it mean anything that the true one does not.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use spikelet::Result;
use spikelet::backend::{DeviceRunner, PassRow, Runner};
use spikelet::config::ModelConfig;
use spikelet::decode::{Decoder, Event, Events, Request, RowId, StopRules};
use spikelet::draft::{Draft, DraftRow, Drafter, Method, Source, SpeculativeConfig};
use spikelet::model::{LoadOptions, Model};
use spikelet::sampler::SamplingParams;
use spikelet::state::Slot;
use spikelet::tokenizer::load_tokenizer;

/// What a runner does wrong with the states after the tokens of a draft.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The parts whose names end so are those after the last token in all slots.
    Forgets(&'static str),
    /// Each slot holds the state after the token behind.
    OneTooFar,
    /// Each slot holds the state after the token before.
    OneTooFew,
    /// Slots that are not in use are full of NaN.
    Poisons,
}

struct Faulty {
    runner: DeviceRunner,
    model: Arc<Model>,
    fault: Fault,
}

impl Faulty {
    fn spoil(&mut self, keep: &[Slot], before: &[f32]) {
        let states: Vec<Vec<f32>> = keep.iter().map(|&slot| self.runner.read_state(slot).unwrap()).collect();
        let last = states.last().unwrap();
        for (i, &slot) in keep.iter().enumerate() {
            let mut state = states[i].clone();
            match self.fault {
                Fault::None | Fault::Poisons => continue,
                Fault::Forgets(part) => {
                    for field in self.model.state_layout().fields().iter().filter(|field| field.name.ends_with(part)) {
                        state[field.range.clone()].copy_from_slice(&last[field.range.clone()]);
                    }
                }
                Fault::OneTooFar => state.clone_from(&states[(i + 1).min(keep.len() - 1)]),
                Fault::OneTooFew => state.copy_from_slice(if i == 0 { before } else { &states[i - 1] }),
            }
            self.runner.write_state(slot, &state).unwrap();
        }
    }
}

impl Runner for Faulty {
    fn config(&self) -> &ModelConfig {
        self.runner.config()
    }

    fn max_pass_tokens(&self) -> usize {
        self.runner.max_pass_tokens()
    }

    fn alloc_slot(&mut self) -> Result<Slot> {
        self.runner.alloc_slot()
    }

    fn free_slot(&mut self, slot: Slot) {
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
        let before: Vec<Vec<f32>> = rows.iter().map(|row| self.runner.read_state(row.slot)).collect::<Result<_>>()?;
        if self.fault == Fault::Poisons {
            // What lies in the slots behind the first is left over from drafts before, and must not matter.
            for slot in rows.iter().flat_map(|row| row.keep.iter().skip(1)) {
                let garbage = vec![f32::from_bits(0x7f7f_7f7f); before[0].len()];
                self.runner.write_state(*slot, &garbage)?;
            }
        }
        self.runner.forward(rows)?;
        for (row, before) in rows.iter().zip(&before).filter(|(row, _)| row.keep.len() > 1) {
            self.spoil(row.keep, before);
        }
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        self.runner.logits()
    }

    fn hidden(&self) -> &[f32] {
        self.runner.hidden()
    }
}

/// Guesses what comes, but for every third token.
struct OftenRight {
    sequence: Vec<u32>,
    vocab_size: u32,
}

impl Drafter for OftenRight {
    fn source(&self) -> Source {
        Source::Own
    }

    fn observe(&mut self, _: RowId, _: &[u32], _: &[f32]) {}

    fn propose(&mut self, rows: &mut [DraftRow<'_>], _: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        for row in rows {
            let from = row.history.len();
            for at in from..(from + 4).min(self.sequence.len()).min(from + row.max_tokens) {
                let right = self.sequence[at];
                row.draft.tokens.push(if at % 3 == 0 { (right + 1) % self.vocab_size } else { right });
                row.draft.confidence.push(0.5);
            }
        }
        Ok(())
    }

    fn forget(&mut self, _: RowId) {}
}

/// The ids that a model says after a prompt, at a temperature that every change of its logits shows in.
fn text(model: &Arc<Model>, fault: Fault, sequence: Option<&[u32]>) -> Vec<u32> {
    let mut config = model.config().clone();
    config.tokenizer_class = Some("bytes".into());
    let tokenizer = load_tokenizer(&model.path(), Some(&config)).unwrap();
    let runner = Faulty { runner: model.runner().expect("a runner"), model: Arc::clone(model), fault };
    let mut decoder = Decoder::new(runner, tokenizer);
    let vocab_size = model.config().vocab_size as u32;
    let drafts = sequence.map(|sequence| OftenRight { sequence: sequence.to_vec(), vocab_size });
    let method = if drafts.is_some() { Method::Own } else { Method::Off };
    drafts.into_iter().for_each(|drafts| decoder.set_drafter(Box::new(drafts)));
    let request = Request {
        prompt: vec![5, 60, 7],
        sampling: SamplingParams { seed: 4, ..SamplingParams::default() },
        stop: StopRules { max_new_tokens: 60, ignore_eos: true, ..StopRules::default() },
        speculative: SpeculativeConfig { method, ..SpeculativeConfig::default() },
        ..Request::default()
    };
    decoder.add(&request).unwrap();
    let (mut events, mut ids) = (Events::new(), Vec::new());
    while !decoder.is_idle() {
        decoder.step(&mut events).unwrap();
        ids.extend(events.iter().filter_map(|event| match event {
            Event::Token { id, .. } => Some(id),
            Event::Finished { .. } => None,
        }));
    }
    ids
}

#[test]
fn a_refused_guess_leaves_no_trace_and_every_forgotten_part_would_show() {
    for (name, parts) in [
        ("rwkv4-tiny", &["att.shift", "ffn.shift", "att.aa", "att.bb", "att.pp"][..]),
        ("spikegpt-tiny", &["att.shift", "ffn.shift", "att.aa", "att.bb", "att.pp", "lif1.membrane", "lif2.membrane"]),
        ("spikegpt-tiny-ffnpre", &["ffnPre.shift", "lif1.membrane"]),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let model = Model::load(&folder, &LoadOptions { threads: Some(1), ..LoadOptions::default() }).unwrap();
        let base = text(&model, Fault::None, None);
        assert_eq!(base.len(), 60);
        let sequence = [vec![5, 60, 7], base.clone()].concat();
        assert_eq!(text(&model, Fault::None, Some(&sequence)), base, "{name}");
        assert_eq!(text(&model, Fault::Poisons, Some(&sequence)), base, "{name}");
        for fault in [Fault::OneTooFar, Fault::OneTooFew] {
            assert_ne!(text(&model, fault, Some(&sequence)), base, "{name}, {fault:?}");
        }
        for part in parts {
            let fields = model.state_layout().fields();
            assert!(fields.iter().any(|field| field.name.ends_with(part)), "{name} has no {part}");
            assert_ne!(text(&model, Fault::Forgets(part), Some(&sequence)), base, "{name} forgets {part} unseen");
        }
    }
}
