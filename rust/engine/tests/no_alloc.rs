//! The promise that a steady decode loop takes no memory.
//!
//! Every allocation of this program is counted. The loop runs with all samplers at work; once it is warm, steps may not
//! allocate, free or grow anything.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod mock;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mock::decoder;
use spikelet::backend::Runner;
use spikelet::decode::{Decoder, Event, Events, Request, StopRules};
use spikelet::model::LoadOptions;
use spikelet::sampler::{Preset, SamplingParams};
use spikelet::tokenizer::bytes::Bytes;

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is also that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `memory` came from the system's allocator with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `memory` came from the system's allocator with this layout.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rows that use everything a sampler has, for a long time.
fn requests() -> Vec<Request> {
    let filters =
        [(0, 1.0, 0.0, 1.0), (20, 1.0, 0.0, 1.0), (0, 0.9, 0.0, 1.0), (0, 1.0, 0.1, 1.0), (30, 0.95, 0.02, 0.9)];
    let sampling = filters.into_iter().flat_map(|(top_k, top_p, min_p, typical_p)| {
        Preset::ALL.map(|preset| SamplingParams {
            preset,
            temperature: 1.2,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty: 1.1,
            frequency_penalty: 0.1,
            penalty_decay: 0.996,
            logit_bias: vec![(3, 1.0)],
            logprobs: 5,
            ..Default::default()
        })
    });
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    let strings = vec!["zzzzzz".to_string(), "🦀🦀🦀🦀".to_string(), "né né".to_string()];
    (0..)
        .zip(sampling.chain([greedy]))
        .map(|(row, sampling)| Request {
            prompt: vec![row % 30 + 1; 5],
            sampling,
            stop: StopRules { max_new_tokens: 5000, strings: strings.clone(), ..Default::default() },
            row,
            ..Default::default()
        })
        .collect()
}

/// Steps until the loop is warm, then counts what 300 steps allocate.
fn assert_steady<R: Runner>(mut decoder: Decoder<R>, what: &str) {
    let max_pass_tokens = decoder.runner().max_pass_tokens();
    for request in requests() {
        decoder.add(&request).unwrap();
    }
    let mut events = Events::new();
    for _ in 0..30 {
        decoder.step(&mut events).unwrap();
    }
    let rows = decoder.num_active();
    // A thread of the pool that the system starts late takes its own memory then, in one window; a loop that allocates
    // does so in every window.
    let mut calls = usize::MAX;
    for _ in 0..5 {
        let before = CALLS.load(Ordering::Relaxed);
        assert!(before > 0, "the count works");
        let (mut tokens, mut bytes) = (0, 0);
        for _ in 0..300 {
            decoder.step(&mut events).unwrap();
            for event in events.iter() {
                if let Event::Token { text, .. } = event {
                    tokens += 1;
                    bytes += text.len();
                }
            }
        }
        calls = calls.min(CALLS.load(Ordering::Relaxed) - before);
        assert_eq!(decoder.num_active(), rows, "{what}: nobody stopped, so all steps count");
        let least = 300 * rows.min(max_pass_tokens - max_pass_tokens / 8);
        assert!(tokens >= least && bytes > 0, "{what}: {tokens} {bytes}");
        if calls == 0 {
            return;
        }
    }
    panic!("{what}: at least {calls} allocations in every 300 steps of {rows} rows");
}

/// One test, because the count is of the whole program.
#[test]
fn a_warm_loop_allocates_nothing() {
    // Fewer tokens per pass than rows, and more.
    assert_steady(decoder(7), "mock, 7 tokens per pass");
    assert_steady(decoder(64), "mock, 64 tokens per pass");
    for model_type in ["spikegpt", "rwkv4"] {
        let folder = tempfile::tempdir().unwrap();
        common::random_model(folder.path(), 5, &format!(r#""model_type": "{model_type}""#));
        for threads in [1, 2] {
            let model = common::load(folder.path(), LoadOptions { threads: Some(threads), ..Default::default() });
            let decoder = Decoder::new(model.runner().expect("a runner"), Arc::new(Bytes::new()));
            assert_steady(decoder, &format!("{model_type}, {threads} threads"));
        }
    }
}
