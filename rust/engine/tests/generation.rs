//! Whole generations with real models: the decode loop over the runner on CPU.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use common::{load, random_model};
use spikelet::backend::DeviceRunner;
use spikelet::decode::{Decoder, Event, Events, Request, SequenceState, StopRules};
use spikelet::model::LoadOptions;
use spikelet::sampler::SamplingParams;
use spikelet::tokenizer::bytes::Bytes;

const MODELS: [&str; 2] = [r#""model_type": "spikegpt""#, r#""model_type": "rwkv4""#];

fn decoder(folder: &std::path::Path, threads: usize) -> Decoder<DeviceRunner> {
    let model = load(folder, LoadOptions { threads: Some(threads), ..Default::default() });
    Decoder::new(model.runner().expect("a runner"), Arc::new(Bytes::new()))
}

fn request(row: u32, prompt_len: u32, max_new_tokens: usize, temperature: f32) -> Request {
    Request {
        prompt: (0..prompt_len).map(|i| (i * 31 + row) % 127 + 1).collect(),
        sampling: SamplingParams { temperature, top_p: 0.9, seed: 9, ..Default::default() },
        stop: StopRules { max_new_tokens, ..Default::default() },
        row,
        keep_state: true,
        ..Default::default()
    }
}

/// Ids, bits of their log probabilities, and final state of every request.
fn run(decoder: &mut Decoder<DeviceRunner>, requests: &[Request]) -> Vec<(Vec<u32>, Vec<u32>, SequenceState)> {
    let rows: Vec<_> = requests.iter().map(|request| decoder.add(request).unwrap()).collect();
    let mut told = vec![(Vec::new(), Vec::new()); rows.len()];
    let mut events = Events::new();
    while !decoder.is_idle() {
        decoder.step(&mut events).unwrap();
        for event in events.iter() {
            if let Event::Token { row, id, logprob, .. } = event {
                let (ids, logprobs) = &mut told[rows.iter().position(|r| *r == row).unwrap()];
                ids.push(id);
                logprobs.push(logprob.to_bits());
            }
        }
    }
    let finish = |((ids, logprobs), row)| (ids, logprobs, decoder.take_state(row).unwrap());
    told.into_iter().zip(rows).map(finish).collect()
}

#[test]
fn batches_and_threads_change_no_bit_of_a_generation() {
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 11, model);
        let requests = [request(0, 3, 20, 0.0), request(1, 70, 12, 1.0), request(2, 1, 30, 0.7), request(3, 9, 5, 1.3)];
        let alone: Vec<_> =
            requests.iter().map(|r| run(&mut decoder(folder.path(), 1), std::slice::from_ref(r)).remove(0)).collect();
        assert!(
            alone.iter().any(|(ids, ..)| ids.windows(2).any(|pair| pair[0] != pair[1])),
            "the model has something to say"
        );
        for threads in [1, 2] {
            assert_eq!(run(&mut decoder(folder.path(), threads), &requests), alone, "{model}, {threads} threads");
        }
    }
}

#[test]
fn a_state_goes_on_in_another_decoder_with_the_same_bits() {
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 12, model);
        let whole = run(&mut decoder(folder.path(), 1), &[request(1, 40, 25, 1.0)]).remove(0);
        let (mut ids, mut logprobs, state) = run(&mut decoder(folder.path(), 1), &[request(1, 40, 10, 1.0)]).remove(0);
        let rest = Request { prompt: vec![], start: Some(Arc::new(state)), ..request(1, 0, 15, 1.0) };
        let (more_ids, more_logprobs, state) = run(&mut decoder(folder.path(), 2), &[rest]).remove(0);
        ids.extend(more_ids);
        logprobs.extend(more_logprobs);
        assert_eq!((ids, logprobs, state), whole, "{model}");
    }
}

#[test]
fn scores_of_a_generation_are_its_log_probabilities() {
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 13, model);
        let mut decoder = decoder(folder.path(), 1);
        let request = request(0, 150, 20, 1.0);
        let (ids, logprobs, _) = run(&mut decoder, std::slice::from_ref(&request)).remove(0);
        let scores = decoder.score(&[&request.prompt[..], &ids[..]].concat(), None).unwrap();
        let bits: Vec<u32> = scores[149..].iter().map(|score| score.to_bits()).collect();
        assert_eq!(bits, logprobs, "{model}");
    }
}
