//! The promise that speculation leaves the distribution of texts alone, kept by the whole engine: chi-square of what thousands of rows
//! say against what the model's own distributions give for every text.
//!
//! Four tokens may be drawn, so the 256 texts of four tokens can all be gone through. Seeds are given: the outcome never changes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use spikelet::Result;
use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::decode::{Decoder, Event, Events, Request, RowId, StopRules};
use spikelet::draft::{Method, SpeculativeConfig, Verify};
use spikelet::model::{LoadOptions, Model};
use spikelet::sampler::{Sampler, SamplingParams, Workspace};
use spikelet::state::Slot;
use spikelet::tokenizer::Tokenizer;

/// Tokens that can be drawn, and tokens of a text.
const KNOWN: usize = 4;
const LENGTH: usize = 4;
const RUNS: usize = 8_000;
/// Repeats itself, so that n-grams have something to guess.
const PROMPT: [u32; 12] = [0, 1, 2, 0, 1, 3, 0, 1, 2, 0, 1, 3];

/// A tokenizer of four letters: the other ids of the model are padding, which is never drawn.
struct Letters;

impl Tokenizer for Letters {
    fn vocab_size(&self) -> usize {
        KNOWN
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(|byte| u32::from(byte - b'a')).collect())
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        Ok(&b"abcd"[id as usize..=id as usize])
    }

    fn eos_id(&self) -> Option<u32> {
        None
    }

    fn special_ids(&self) -> &[u32] {
        &[]
    }

    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }

    fn token_to_id(&self, _: &str) -> Option<u32> {
        None
    }

    fn describe(&self) -> String {
        "letters".into()
    }

    fn fingerprint(&self) -> String {
        "letters".into()
    }
}

fn model(seed: u64) -> Arc<Model> {
    let folder = tempfile::tempdir().unwrap();
    common::random_model(folder.path(), seed, r#""model_type": "rwkv4""#);
    common::load(folder.path(), LoadOptions::default())
}

/// Probability of every text, in the order of its tokens as digits.
fn exact(model: &Arc<Model>, params: &SamplingParams) -> Vec<f64> {
    let mut runner = model.runner().expect("a runner");
    let mut work = Workspace::new(model.cpu().level(), KNOWN);
    let mut sampler = Sampler::new(params, common::VOCAB, 0, 0).unwrap();
    sampler.observe_prompt(&PROMPT);
    let slot = runner.alloc_slot().expect("a slot");
    runner.forward(&[PassRow { slot, tokens: &PROMPT, logits: LogitsWanted::Last, keep: &[slot] }]).unwrap();
    let logits = runner.logits()[..KNOWN].to_vec();
    let mut out = Vec::new();
    texts(&mut runner, slot, &logits, &sampler, &mut work, (1.0, LENGTH), &mut out);
    out
}

fn texts(
    runner: &mut impl Runner,
    slot: Slot,
    logits: &[f32],
    sampler: &Sampler,
    work: &mut Workspace,
    (so_far, left): (f64, usize),
    out: &mut Vec<f64>,
) {
    let dist = sampler.distribution(logits, work).unwrap();
    let chances: Vec<f64> = (0..KNOWN as u32).map(|id| f64::from(dist.prob(id))).collect();
    for (id, chance) in (0..KNOWN as u32).zip(chances) {
        if left == 1 {
            out.push(so_far * chance);
            continue;
        }
        let next = runner.alloc_slot().expect("a slot");
        runner.forward(&[PassRow { slot, tokens: &[id], logits: LogitsWanted::Last, keep: &[next] }]).unwrap();
        let logits = runner.logits()[..KNOWN].to_vec();
        let mut sampler = sampler.clone();
        sampler.observe(id);
        texts(runner, next, &logits, &sampler, work, (so_far * chance, left - 1), out);
        runner.free_slot(next);
    }
}

/// How often each text was said, and how many guesses were accepted.
fn said(model: &Arc<Model>, params: &SamplingParams, speculative: &SpeculativeConfig) -> (Vec<usize>, usize) {
    let mut decoder = Decoder::new(model.runner().expect("a runner"), Arc::new(Letters));
    let (mut events, mut counts, mut accepted) = (Events::new(), vec![0; KNOWN.pow(LENGTH as u32)], 0);
    let mut rows: Vec<(RowId, usize, usize)> = Vec::new();
    let mut joined = 0;
    while joined < RUNS || !decoder.is_idle() {
        while joined < RUNS && decoder.num_active() < 60 {
            let request = Request {
                prompt: PROMPT.to_vec(),
                sampling: SamplingParams { seed: joined as u64, ..params.clone() },
                stop: StopRules { max_new_tokens: LENGTH, ..StopRules::default() },
                // Some rows share a seed with another one's.
                row: joined as u32 % 3,
                speculative: speculative.clone(),
                ..Request::default()
            };
            rows.push((decoder.add(&request).unwrap(), 0, 0));
            joined += 1;
        }
        decoder.step(&mut events).unwrap();
        for event in events.iter() {
            match event {
                Event::Token { row, id, drafted, .. } => {
                    let (_, text, _) = rows.iter_mut().find(|(other, ..)| *other == row).unwrap();
                    *text = *text * KNOWN + id as usize;
                    accepted += usize::from(drafted);
                }
                Event::Finished { row, .. } => {
                    let at = rows.iter().position(|(other, ..)| *other == row).unwrap();
                    counts[rows.swap_remove(at).1] += 1;
                }
            }
        }
    }
    (counts, accepted)
}

/// How far counts lie from what is expected, in standard deviations of a normal distribution (Wilson and Hilferty).
fn deviation(counts: &[usize], exact: &[f64]) -> f64 {
    let (mut chi, mut cells) = (0.0, 0.0_f64);
    let (mut rare, mut rare_expected) = (0.0, 0.0);
    for (&count, &p) in counts.iter().zip(exact) {
        let expected = p * RUNS as f64;
        assert!(p > 0.0 || count == 0, "what cannot be said was said");
        if expected < 5.0 {
            rare += count as f64;
            rare_expected += expected;
        } else {
            chi += (count as f64 - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    if rare_expected >= 5.0 {
        chi += (rare - rare_expected).powi(2) / rare_expected;
        cells += 1.0;
    }
    let freedom = (cells - 1.0).max(1.0);
    let spread = 2.0 / (9.0 * freedom);
    ((chi / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn texts_have_the_models_distribution_under_every_rule() {
    let (target, draft_model) = (model(3), model(4));
    // The drafting model would guess ids that cannot be drawn.
    let logit_bias: Vec<(u32, f32)> = (KNOWN as u32..common::VOCAB as u32).map(|id| (id, f32::NEG_INFINITY)).collect();
    let plain = SamplingParams { temperature: 1.0, logit_bias, ..SamplingParams::default() };
    let settings = [
        plain.clone(),
        SamplingParams { temperature: 0.7, top_k: 3, ..plain.clone() },
        SamplingParams { top_p: 0.85, repetition_penalty: 1.3, frequency_penalty: 0.4, ..plain },
    ];
    for params in &settings {
        let exact = exact(&target, params);
        assert!((exact.iter().sum::<f64>() - 1.0).abs() < 1e-5);
        for (method, verify) in [
            (Method::Off, Verify::Coupled),
            (Method::DraftModel, Verify::Coupled),
            (Method::DraftModel, Verify::Token),
            (Method::DraftModel, Verify::Block),
            (Method::NGram, Verify::Token),
            (Method::NGram, Verify::Block),
        ] {
            let config = SpeculativeConfig {
                method,
                verify,
                num_tokens: Some(3),
                lookup_min: 1,
                draft_model: (method == Method::DraftModel).then(|| Arc::clone(&draft_model)),
                ..SpeculativeConfig::default()
            };
            let (counts, accepted) = said(&target, params, &config);
            assert!(
                method == Method::Off || accepted > RUNS / 20,
                "{accepted} guesses accepted: too few to mean anything"
            );
            let deviation = deviation(&counts, &exact);
            println!("{method:?} {verify:?} temperature {}: {deviation:.2}, {accepted} accepted", params.temperature);
            assert!(deviation < 3.7, "{method:?}, {verify:?}: {deviation:.2} standard deviations, {params:?}");
        }
    }
}
