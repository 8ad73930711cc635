//! Drafts, rules, samplers and the decode loop together: what rows say has the distribution that the sampler tells, token by
//! token, whichever way drafts are verified.
//!
//! Expected counts come from the engine's own distributions along all texts, so nothing is fitted. Seeds are fixed.
#![allow(clippy::unwrap_used, missing_docs)]

mod mock;

use std::collections::BTreeMap;

use mock::{EOS, KNOWN, Listener, MockDecoder, MockRunner, decoder};
use spikelet::Result;
use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::decode::{Request, RowId, StopRules};
use spikelet::draft::{Draft, DraftRow, Drafter, Drawn, Method, Source, SpeculativeConfig, Verify};
use spikelet::sampler::{Preset, Sampler, SamplingParams, Workspace};
use spikelet_simd::Level;

const PROMPT: [u32; 2] = [5, 11];
/// Tokens of a text.
const LENGTH: usize = 4;
const TEXTS: u32 = 6000;
/// Where what is wrong is small.
const MANY_TEXTS: u32 = 100_000;

/// Logits of the token after a sequence.
fn logits(sequence: &[u32]) -> Vec<f32> {
    let mut runner = MockRunner::new(64);
    let slot = runner.alloc_slot().expect("a slot");
    runner.forward(&[PassRow { slot, tokens: sequence, logits: LogitsWanted::Last, keep: &[slot] }]).unwrap();
    runner.logits()[..KNOWN].to_vec()
}

/// The model with other logits.
#[derive(Clone, Copy, PartialEq)]
enum Twisted {
    /// Does as it should.
    Right,
    /// Says that it draws from the model's own distribution.
    Lying,
    /// Draws with numbers that belong to positions: a draft draws with those again that the one before it drew with.
    Repeating,
}

impl Drafter for Twisted {
    fn source(&self) -> Source {
        Source::Own
    }

    fn observe(&mut self, _: RowId, _: &[u32], _: &[f32]) {}

    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        let mut work = Workspace::new(Level::best(), KNOWN);
        for (i, row) in rows.iter_mut().enumerate() {
            let mut sequence = row.history.to_vec();
            for n in 0..row.max_tokens {
                let own = logits(&sequence);
                let twisted: Vec<f32> = (0..).zip(&own).map(|(id, l)| l + (id % 5) as f32 * 0.6).collect();
                let q = row.sampler.distribution(&twisted[..], &mut work)?;
                let (start, number) = match self {
                    Self::Repeating => (0, row.position as usize + n),
                    _ => (row.position, n),
                };
                let guess = q.draw(row.sampler.draft_uniform(start, number));
                let told = match self {
                    Self::Lying => row.sampler.distribution(&own[..], &mut work)?,
                    _ => q,
                };
                row.draft.drawn.push(Drawn::From(told.ids.to_vec(), told.probs.to_vec()));
                row.draft.tokens.push(guess);
                row.draft.confidence.push(0.5);
                row.draft.source = Some(Source::Own);
                sequence.push(guess);
                // Some tokens end the draft that they are part of.
                if guess % 3 == 0 || !more(i, row.draft) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, _: RowId) {}
}

fn request(sampling: &SamplingParams, seed: u64, verify: Verify) -> Request {
    Request {
        prompt: PROMPT.to_vec(),
        sampling: SamplingParams { seed, ..sampling.clone() },
        stop: StopRules { max_new_tokens: LENGTH, ..Default::default() },
        speculative: SpeculativeConfig { method: Method::Own, num_tokens: Some(4), verify, ..Default::default() },
        row: (seed % 3) as u32,
        ..Default::default()
    }
}

/// How often each text was said, and how many guesses were accepted.
fn texts(number: u32, sampling: &SamplingParams, verify: Verify, drafter: Twisted) -> (BTreeMap<Vec<u32>, u32>, usize) {
    let mut decoder: MockDecoder = decoder(400);
    decoder.set_drafter(Box::new(drafter));
    let mut listener = Listener::default();
    for seed in 0..number {
        decoder.add(&request(sampling, seed.into(), verify)).unwrap();
        if seed % 50 == 49 {
            listener.finish(&mut decoder);
        }
    }
    let mut counts = BTreeMap::new();
    for told in std::mem::take(&mut listener.rows).into_values() {
        *counts.entry(told.ids).or_default() += 1;
    }
    (counts, listener.drafted)
}

/// The probability of every text.
fn expected(sampling: &SamplingParams) -> BTreeMap<Vec<u32>, f64> {
    let mut work = Workspace::new(Level::best(), KNOWN);
    let mut open = vec![(vec![], 1.0)];
    let mut texts = BTreeMap::new();
    while let Some((text, prob)) = open.pop() {
        if text.len() == LENGTH || text.last() == Some(&EOS) {
            texts.insert(text, prob);
            continue;
        }
        let mut sampler = Sampler::new(sampling, KNOWN, 0, 0).unwrap();
        sampler.observe_prompt(&PROMPT);
        text.iter().for_each(|&id| sampler.observe(id));
        let line = logits(&[&PROMPT[..], &text].concat());
        let p = sampler.distribution(&line[..], &mut work).unwrap();
        open.extend(p.ids.iter().zip(p.probs).map(|(&id, &p)| ([&text[..], &[id]].concat(), prob * f64::from(p))));
    }
    texts
}

/// How many standard deviations chi-square lies above its mean (Wilson and Hilferty's approximation).
fn surprise(counts: &BTreeMap<Vec<u32>, u32>, expected: &BTreeMap<Vec<u32>, f64>) -> f64 {
    let texts = f64::from(counts.values().sum::<u32>());
    assert!(counts.keys().all(|text| expected.contains_key(text)), "a text that cannot be");
    let mut cells = vec![(0.0, 0.0)];
    for (text, prob) in expected {
        let cell = (prob * texts, f64::from(counts.get(text).copied().unwrap_or(0)));
        // Rare texts count together.
        if cell.0 < 8.0 {
            cells[0] = (cells[0].0 + cell.0, cells[0].1 + cell.1);
        } else {
            cells.push(cell);
        }
    }
    cells.retain(|(wanted, _)| *wanted > 4.0);
    let chi: f64 = cells.iter().map(|(wanted, found)| (found - wanted).powi(2) / wanted).sum();
    let spread = 2.0 / (9.0 * (cells.len() - 1) as f64);
    ((chi / (cells.len() - 1) as f64).cbrt() - (1.0 - spread)) / spread.sqrt()
}

fn settings() -> [SamplingParams; 2] {
    let plain = SamplingParams { top_k: 3, ..Default::default() };
    let penalised = SamplingParams {
        preset: Preset::Rwkv,
        temperature: 1.3,
        top_k: 0,
        top_p: 0.6,
        repetition_penalty: 1.4,
        frequency_penalty: 0.8,
        penalty_decay: 0.9,
        ..Default::default()
    };
    [plain, penalised]
}

#[test]
fn texts_come_as_often_as_the_sampler_says_however_drafts_are_verified() {
    for sampling in settings() {
        let expected = expected(&sampling);
        for verify in Verify::ALL {
            let (counts, accepted) = texts(TEXTS, &sampling, verify, Twisted::Right);
            assert!(accepted > TEXTS as usize / 4, "{verify:?}: {accepted} guesses accepted");
            // Passed once in ten thousand.
            let surprise = surprise(&counts, &expected);
            assert!(surprise < 3.72, "{verify:?}: {surprise} in {sampling:?}");
        }
    }
}

#[test]
fn a_drafter_that_tells_another_distribution_is_seen() {
    let [sampling, _] = settings();
    let expected = expected(&sampling);
    for verify in [Verify::Token, Verify::Block] {
        let (counts, _) = texts(TEXTS, &sampling, verify, Twisted::Lying);
        let surprise = surprise(&counts, &expected);
        assert!(surprise > 8.0, "{verify:?}: {surprise}");
    }
    // Own draws do not ask what guesses were drawn from.
    let (counts, _) = texts(TEXTS, &sampling, Verify::Coupled, Twisted::Lying);
    assert!(surprise(&counts, &expected) < 3.72);
}

/// The block rule looks at guesses that it then refuses. Were they drawn with the numbers that the next draft has, that draft
/// would not be independent of the refusal.
#[test]
fn numbers_belong_to_drafts_because_those_of_positions_are_not_independent() {
    let [sampling, _] = settings();
    let expected = expected(&sampling);
    let [right, repeating] = [Twisted::Right, Twisted::Repeating]
        .map(|drafter| surprise(&texts(MANY_TEXTS, &sampling, Verify::Block, drafter).0, &expected));
    assert!(right < 3.72 && repeating > 5.0, "{right} {repeating}");
}
