//! The promise of speculative decoding: a row says the same with any drafts as without.
//!
//! Drafts come from an oracle that knows what each row will say, and lies as often as it is told to. So drafts are accepted in whole,
//! in part and not at all, in every order.
#![allow(clippy::unwrap_used, missing_docs)]

mod mock;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mock::{EOS, KNOWN, Listener, MockDecoder, Told, decoder, run_one};
use proptest::prelude::*;
use spikelet::Result;
use spikelet::decode::{FinishReason, Request, RowId, StopRules};
use spikelet::draft::{Draft, DraftRow, Drafter, MAX_DRAFT, Method, Source, SpeculativeConfig};
use spikelet::sampler::{Preset, SamplingParams};

/// What an oracle was told of a row.
#[derive(Debug, Default)]
struct Heard {
    read: Vec<u32>,
    forgotten: bool,
}

/// Knows the whole sequence of every row: prompt and text.
struct Oracle {
    sequences: BTreeMap<Vec<u32>, Vec<u32>>,
    /// Of 256 guesses, so many are wrong.
    lies: u16,
    /// Lengths of drafts, in turns.
    lengths: Vec<usize>,
    turn: usize,
    heard: Arc<Mutex<BTreeMap<RowId, Heard>>>,
}

impl Oracle {
    fn lie(&self, row: RowId, at: usize) -> bool {
        let mixed =
            (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.turn as u64 ^ row.to_string().len() as u64;
        (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) < u64::from(self.lies)
    }
}

impl Drafter for Oracle {
    fn source(&self) -> Source {
        Source::Own
    }

    fn wants_hidden(&self) -> bool {
        true
    }

    fn observe(&mut self, row: RowId, tokens: &[u32], hidden: &[f32]) {
        assert!(!tokens.is_empty() && hidden.len() == tokens.len());
        // The mock's hidden state is the token that led to it.
        assert!(tokens.iter().zip(hidden).all(|(&token, &h)| token as f32 == h));
        self.heard.lock().unwrap().entry(row).or_default().read.extend(tokens);
    }

    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        for (i, row) in rows.iter_mut().enumerate() {
            assert!(row.draft.tokens.is_empty() && (1..=MAX_DRAFT).contains(&row.max_tokens));
            assert_eq!(row.position, row.history.len() as u64, "the position at which the first guess is drawn");
            self.turn += 1;
            let length = self.lengths[self.turn % self.lengths.len()].min(row.max_tokens);
            let whole = self.sequences.values().find(|whole| whole.starts_with(row.history));
            for at in row.history.len()..row.history.len() + length {
                let right = whole.and_then(|whole| whole.get(at)).copied().unwrap_or(1);
                let guess = if self.lie(row.row, at) { (right + 1) % KNOWN as u32 } else { right };
                row.draft.tokens.push(guess);
                row.draft.confidence.push(0.5);
                row.draft.source = Some(Source::Own);
                if !more(i, row.draft) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, row: RowId) {
        self.heard.lock().unwrap().entry(row).or_default().forgotten = true;
    }
}

fn request(row: u32, seed: u64, temperature: f32) -> Request {
    let row_index = row as usize;
    Request {
        prompt: (0..1 + row * 7 % 23).map(|i| (i * 7 + row) % 36 + 1).collect(),
        sampling: SamplingParams {
            preset: Preset::ALL[row_index % 2],
            temperature,
            top_k: [0, 10, 3][row_index % 3],
            top_p: [1.0, 0.8][row_index % 2],
            frequency_penalty: [0.0, 0.2][row_index / 2 % 2],
            repetition_penalty: [1.0, 1.1][row_index / 3 % 2],
            penalty_decay: 0.99,
            logit_bias: vec![(5, 1.0), (7, f32::NEG_INFINITY)],
            seed,
            logprobs: row_index % 3,
            ..Default::default()
        },
        stop: StopRules {
            max_new_tokens: 1 + row_index * 11 % 40,
            strings: if row_index % 4 == 3 { vec!["é".into(), "az".into(), "\n the".into()] } else { vec![] },
            ids: if row_index % 5 == 4 { vec![9, 10] } else { vec![] },
            ..Default::default()
        },
        row,
        keep_state: true,
        ..Default::default()
    }
}

fn speculative(request: &Request, num_tokens: Option<usize>) -> Request {
    let speculative = SpeculativeConfig { method: Method::Own, num_tokens, ..Default::default() };
    Request { speculative, ..request.clone() }
}

/// A decoder whose drafter knows what the requests lead to.
fn with_oracle(
    max_pass_tokens: usize,
    told: &[(Request, Told)],
    lies: u16,
    lengths: &[usize],
) -> (MockDecoder, Arc<Mutex<BTreeMap<RowId, Heard>>>) {
    let heard = Arc::default();
    let sequences = told.iter().map(|(request, told)| {
        let whole = [request.prompt.clone(), told.ids.clone()].concat();
        (whole.clone(), whole)
    });
    let oracle =
        Oracle { sequences: sequences.collect(), lies, lengths: lengths.to_vec(), turn: 0, heard: Arc::clone(&heard) };
    let mut decoder = decoder(max_pass_tokens);
    decoder.set_drafter(Box::new(oracle));
    (decoder, heard)
}

#[test]
fn texts_logprobs_states_and_ends_are_those_of_base_decoding() {
    let mut drafted = 0;
    for (seed, temperature) in [(1, 0.0), (2, 0.7), (3, 1.0), (4, 1.6)] {
        let base: Vec<(Request, Told)> = (0..12)
            .map(|row| request(row, seed, temperature))
            .map(|request| (request.clone(), run_one(&mut decoder(512), &request)))
            .collect();
        for lies in [0, 20, 80, 256] {
            for (lengths, num_tokens) in
                [(vec![1], None), (vec![4], Some(3)), (vec![16, 1, 5, 2], Some(16)), (vec![9, 3], Some(2))]
            {
                for (batch, max_pass_tokens) in [(1, 512), (4, 64), (12, 512), (12, 20)] {
                    for rows in base.chunks(batch) {
                        let (mut decoder, heard) = with_oracle(max_pass_tokens, rows, lies, &lengths);
                        let ids: Vec<RowId> = rows
                            .iter()
                            .map(|(request, _)| decoder.add(&speculative(request, num_tokens)).unwrap())
                            .collect();
                        let mut listener = Listener::default();
                        listener.finish(&mut decoder);
                        drafted += listener.drafted;
                        for (id, (request, told)) in ids.iter().zip(rows) {
                            assert_eq!(&listener.rows[id], told, "lies {lies}, lengths {lengths:?}, {request:?}");
                            let mut alone = mock::decoder(512);
                            let base_id = alone.add(request).unwrap();
                            Listener::default().finish(&mut alone);
                            assert_eq!(decoder.take_state(*id).unwrap(), alone.take_state(base_id).unwrap());
                            let stats = listener.stats[id];
                            let speculation = stats.speculation;
                            assert!(speculation.num_accepted_tokens <= speculation.num_draft_tokens);
                            assert!(
                                speculation.num_rounds + speculation.num_accepted_tokens + 1
                                    >= stats.num_generated_tokens
                            );
                            if lies == 256 {
                                assert_eq!(speculation.num_accepted_tokens, 0, "all were lies");
                            }
                            let heard = heard.lock().unwrap();
                            let sequence = [request.prompt.clone(), told.ids.clone()].concat();
                            let read = &heard[id].read;
                            let from = request.prompt.len() - 1;
                            assert!(
                                heard[id].forgotten
                                    && sequence[from..].starts_with(&read[..told.ids.len().min(read.len())])
                            );
                        }
                        assert_eq!(decoder.runner().slots_in_use(), 0);
                    }
                }
            }
        }
    }
    assert!(drafted > 10_000, "{drafted} guesses were accepted: too few to mean anything");
}

#[test]
fn a_right_draft_saves_passes_and_none_goes_beyond_the_end() {
    let mut base_request = request(0, 1, 0.0);
    base_request.stop.max_new_tokens = 31;
    let told = run_one(&mut decoder(512), &base_request);
    assert_eq!(told.ids.len(), 31, "the test needs a text that goes to its limit");
    let (mut decoder, _) = with_oracle(512, &[(base_request.clone(), told.clone())], 0, &[5]);
    assert_eq!(run_one(&mut decoder, &speculative(&base_request, Some(5))), told);
    // One token from the prompt's pass, then six per pass: 1 + 5 * 6 = 31.
    let passes = &decoder.runner().passes;
    assert_eq!(passes.len(), 6, "{passes:?}");
    assert!(passes[1..].iter().all(|&(rows, tokens)| (rows, tokens) == (1, 6)), "{passes:?}");
}

#[test]
fn one_token_per_step_and_a_state_where_the_reader_stands() {
    let base_request = Request { keep_state: true, ..request(8, 3, 0.9) };
    let told = run_one(&mut decoder(512), &base_request);
    assert!(told.ids.len() > 6);
    for stop_after in 1..told.ids.len() {
        let mut states = Vec::new();
        for speculate in [false, true] {
            let (mut decoder, _) = with_oracle(512, &[(base_request.clone(), told.clone())], 30, &[7, 3]);
            let mut request = Request { one_per_step: true, ..base_request.clone() };
            if speculate {
                request = Request { one_per_step: true, ..speculative(&request, None) };
            }
            let id = decoder.add(&request).unwrap();
            let mut listener = Listener::default();
            for step in 1..=stop_after {
                listener.step(&mut decoder).unwrap();
                assert_eq!(listener.rows[&id].ids.len(), step, "one token per step");
            }
            decoder.cancel(id);
            listener.finish(&mut decoder);
            states.push((decoder.take_state(id).unwrap(), listener.rows[&id].clone()));
        }
        assert_eq!(states[0], states[1], "cancelled after {stop_after} tokens");
    }
}

#[test]
fn a_failed_pass_changes_nothing_and_a_failed_line_ends_the_row_where_base_decoding_does() {
    let base_request = request(11, 2, 0.8);
    let told = run_one(&mut decoder(512), &base_request);
    let (mut decoder, _) = with_oracle(512, &[(base_request.clone(), told.clone())], 60, &[4]);
    let id = decoder.add(&speculative(&base_request, None)).unwrap();
    let mut listener = Listener::default();
    while !decoder.is_idle() {
        decoder.runner_mut().fail = true;
        assert!(listener.step(&mut decoder).is_err() || decoder.is_idle());
        decoder.runner_mut().fail = false;
        listener.step(&mut decoder).unwrap();
    }
    assert_eq!(listener.rows[&id], told);
}

#[test]
fn a_stop_token_within_a_draft_ends_the_row_there() {
    let mut base_request = request(6, 6, 1.2);
    base_request.stop.max_new_tokens = 200;
    let mut plain = decoder(512);
    plain.runner_mut().eos_bias = 2.0;
    let told = run_one(&mut plain, &base_request);
    assert_eq!((told.reason, told.ids.last()), (Some(FinishReason::Eos), Some(&EOS)));
    for length in 1..=MAX_DRAFT {
        let (mut decoder, _) = with_oracle(512, &[(base_request.clone(), told.clone())], 0, &[length]);
        decoder.runner_mut().eos_bias = 2.0;
        assert_eq!(run_one(&mut decoder, &speculative(&base_request, Some(length))), told);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn rows_that_join_at_any_time_say_the_same(
        lies in 0..=256_u16,
        lengths in prop::collection::vec(1..=MAX_DRAFT, 1..4),
        joins in prop::collection::vec((0..20_u32, 0..5_usize, 0..4_u64), 1..8),
        max_pass_tokens in 9..80_usize,
    ) {
        let base: Vec<(Request, Told)> = joins
            .iter()
            .map(|&(row, _, seed)| request(row, seed, 0.5 * seed as f32))
            .map(|request| (request.clone(), run_one(&mut decoder(512), &request)))
            .collect();
        let (mut decoder, _) = with_oracle(max_pass_tokens, &base, lies, &lengths);
        let mut listener = Listener::default();
        let mut ids = Vec::new();
        for ((request, _), &(_, delay, seed)) in base.iter().zip(&joins) {
            let request = if seed % 2 == 0 { speculative(request, None) } else { request.clone() };
            ids.push(decoder.add(&request).unwrap());
            for _ in 0..delay {
                listener.step(&mut decoder).unwrap();
            }
        }
        listener.finish(&mut decoder);
        for (id, (_, told)) in ids.iter().zip(&base) {
            prop_assert_eq!(&listener.rows[id], told);
        }
        prop_assert_eq!(decoder.runner().slots_in_use(), 0);
    }
}
