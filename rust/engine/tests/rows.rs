//! The promise of the decode loop: what a row says depends on its request alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod mock;

use std::sync::Arc;

use mock::{EOS, KNOWN, Listener, POISON, VOCAB, decoder, run, run_one, text_of};
use spikelet::backend::Runner;
use spikelet::decode::{FinishReason, Request, SequenceState, StopRules};
use spikelet::sampler::{Preset, SamplingParams};

fn stop(max_new_tokens: usize) -> StopRules {
    StopRules { max_new_tokens, ..Default::default() }
}

/// Rows of all kinds: prompts of other lengths, other settings, other lengths of text.
fn requests() -> Vec<Request> {
    (0..9_u32)
        .map(|row| Request {
            prompt: (0..[1, 3, 40, 7, 100, 2, 5, 64, 1][row as usize])
                .map(|i| (i * 7 + row) % 36 + 1 - (i + row) % 2)
                .collect(),
            sampling: SamplingParams {
                preset: Preset::ALL[row as usize % 2],
                temperature: [1.0, 0.0, 0.7, 1.3][row as usize % 4],
                top_k: [0, 10, 3][row as usize % 3],
                top_p: [1.0, 0.8][row as usize % 2],
                frequency_penalty: 0.2,
                repetition_penalty: 1.1,
                penalty_decay: 0.99,
                seed: 5 + u64::from(row / 3),
                logprobs: row as usize % 4,
                ..Default::default()
            },
            stop: StopRules {
                max_new_tokens: [30, 1, 12, 50, 20, 33, 40, 5, 60][row as usize],
                strings: if row > 4 { vec!["é".into(), "az".into(), "\n the".into()] } else { vec![] },
                ..Default::default()
            },
            row,
            ..Default::default()
        })
        .map(|mut request| {
            request.prompt.iter_mut().for_each(|id| *id %= KNOWN as u32);
            request
        })
        .collect()
}

#[test]
fn a_row_says_the_same_alone_in_a_batch_and_in_passes_of_any_size() {
    let requests = requests();
    let alone: Vec<_> = requests.iter().map(|request| run_one(&mut decoder(512), request)).collect();
    for told in &alone {
        assert!(told.reason.is_some() && told.error.is_none(), "{told:?}");
    }
    for max_pass_tokens in [1, 2, 3, 8, 9, 10, 17, 64, 512] {
        let mut together = decoder(max_pass_tokens);
        assert_eq!(run(&mut together, &requests), alone, "{max_pass_tokens} tokens per pass");
        assert_eq!(together.runner().slots_in_use(), 0);
        let mut one = decoder(max_pass_tokens);
        assert_eq!(run_one(&mut one, &requests[4]), alone[4]);
    }
}

#[test]
fn rows_join_and_leave_at_any_pass() {
    let requests = requests();
    let alone: Vec<_> = requests.iter().map(|request| run_one(&mut decoder(512), request)).collect();
    for delay in 1..6 {
        let mut decoder = decoder(12);
        let mut listener = Listener::default();
        let mut ids = Vec::new();
        for request in &requests {
            ids.push(decoder.add(request).unwrap());
            for _ in 0..delay {
                listener.step(&mut decoder).unwrap();
            }
        }
        // Rows that are cancelled on the way disturb nobody either.
        let extra = decoder.add(&requests[2]).unwrap();
        listener.step(&mut decoder).unwrap();
        assert!(decoder.cancel(extra));
        listener.finish(&mut decoder);
        for (id, alone) in ids.iter().zip(&alone) {
            assert_eq!(&listener.rows[id], alone, "joined {delay} passes apart");
        }
        assert_eq!(decoder.runner().slots_in_use(), 0);
    }
}

#[test]
fn seed_and_row_number_make_texts_differ() {
    let base = Request { prompt: vec![1, 2, 3], stop: stop(20), ..Default::default() };
    let mut decoder = decoder(512);
    let first = run_one(&mut decoder, &base);
    assert_eq!(run_one(&mut decoder, &base), first);
    let other_row = run_one(&mut decoder, &Request { row: 1, ..base.clone() });
    assert_ne!(other_row.ids, first.ids);
    let sampling = SamplingParams { seed: 1, ..Default::default() };
    assert_ne!(run_one(&mut decoder, &Request { sampling, ..base }).ids, first.ids);
}

#[test]
fn long_prompts_do_not_hold_up_rows_that_generate() {
    let mut decoder = decoder(512);
    let mut listener = Listener::default();
    let quick = decoder.add(&Request { prompt: vec![1], stop: stop(10), ..Default::default() }).unwrap();
    listener.step(&mut decoder).unwrap();
    decoder.add(&Request { prompt: vec![2; 5000], stop: stop(1), ..Default::default() }).unwrap();
    for n in 2..=10 {
        listener.step(&mut decoder).unwrap();
        assert_eq!(listener.rows[&quick].ids.len(), n, "a token in every pass");
    }
    assert!(decoder.runner().passes[1..10].iter().all(|&(rows, tokens)| rows == 2 && tokens <= 65));
    listener.finish(&mut decoder);
    assert!(decoder.runner().passes[11..].iter().any(|&(_, tokens)| tokens == 512), "then at full speed");
}

#[test]
fn a_session_goes_on_where_it_stopped() {
    let prompt = vec![4, 5, 6, 7];
    for temperature in [0.0, 1.0] {
        let sampling = SamplingParams { temperature, seed: 3, ..Default::default() };
        let request = |prompt: &[u32], new, start: Option<SequenceState>| Request {
            prompt: prompt.to_vec(),
            sampling: sampling.clone(),
            stop: stop(new),
            start: start.map(Arc::new),
            keep_state: true,
            ..Default::default()
        };
        let mut decoder = decoder(3);
        let whole = run_one(&mut decoder, &request(&prompt, 20, None));
        // Feed, feed again, generate, generate again with nothing added.
        let mut state = None;
        let mut ids = Vec::new();
        let mut listener = Listener::default();
        for (prompt, new) in [(&prompt[..1], 0), (&prompt[1..3], 0), (&prompt[3..], 1), (&[], 12), (&[], 7)] {
            let row = decoder.add(&request(prompt, new, state.take())).unwrap();
            listener.finish(&mut decoder);
            let told = &listener.rows[&row];
            assert_eq!((told.reason, told.ids.len()), (Some(FinishReason::Length), new));
            ids.extend(&told.ids);
            let next = decoder.take_state(row).unwrap();
            assert!(decoder.take_state(row).is_err(), "taken once");
            assert!(next.pending.is_some());
            state = Some(next);
        }
        assert_eq!(ids, whole.ids);
        let state = state.unwrap();
        assert_eq!((state.num_tokens(), state.position, state.pending), (24, 23, ids.last().copied()));
        // The pending token is not in the state yet, all others are.
        let seen = [&prompt[..], &ids[..ids.len() - 1]].concat();
        let slot = decoder.runner_mut().alloc_slot().expect("a slot");
        let rows = |tokens| spikelet::backend::PassRow {
            slot,
            tokens,
            logits: spikelet::backend::LogitsWanted::None,
            keep: std::slice::from_ref(&slot),
        };
        seen.chunks(3).for_each(|tokens| decoder.runner_mut().forward(&[rows(tokens)]).unwrap());
        assert_eq!(decoder.runner().read_state(slot).expect("a state"), state.values);
        // Two continuations of one state are a fork.
        let fork = request(&[9], 5, Some(state));
        assert_eq!(run_one(&mut decoder, &fork), run_one(&mut decoder, &fork));
    }
}

#[test]
fn a_cancelled_row_leaves_a_state_to_go_on_from() {
    let request = |prompt: &[u32], new, start| Request {
        prompt: prompt.to_vec(),
        stop: stop(new),
        start,
        keep_state: true,
        ..Default::default()
    };
    let prompt: Vec<u32> = (1..=10).collect();
    for steps in 0..8 {
        let mut decoder = decoder(4);
        let whole = run_one(&mut decoder, &request(&prompt, 12, None));
        let mut listener = Listener::default();
        let row = decoder.add(&request(&prompt, 12, None)).unwrap();
        for _ in 0..steps {
            listener.step(&mut decoder).unwrap();
        }
        assert!(decoder.cancel(row));
        assert!(!decoder.cancel(row), "only once");
        let passes = decoder.runner().passes.len();
        listener.finish(&mut decoder);
        assert_eq!(decoder.runner().passes.len(), passes, "no pass for a cancelled row");
        let told = listener.rows[&row].clone();
        assert_eq!(told.reason, Some(FinishReason::Cancelled));
        assert_eq!(told.ids, whole.ids[..told.ids.len()]);
        assert_eq!(told.text, text_of(&told.ids), "what was held back came out");
        let state = decoder.take_state(row).unwrap();
        let rest = &prompt[prompt.len().min(state.num_tokens() as usize)..];
        let mut ids = told.ids;
        ids.extend(run_one(&mut decoder, &request(rest, 12 - ids.len(), Some(Arc::new(state)))).ids);
        assert_eq!(ids, whole.ids, "cancelled after {steps} steps");
        assert_eq!(decoder.runner().slots_in_use(), 0);
    }
}

#[test]
fn texts_are_cut_at_stop_strings_and_never_inside_a_character() {
    for seed in 0..40 {
        let sampling = SamplingParams { seed, temperature: 1.5, ..Default::default() };
        let free = Request { prompt: vec![3], sampling, stop: stop(80), ..Default::default() };
        let mut decoder = decoder(512);
        let whole = run_one(&mut decoder, &free);
        assert_eq!(whole.text, text_of(&whole.ids));
        let full = &whole.text;
        // A stop string out of the text's middle, another that never comes, one that only begins.
        let chars: Vec<char> = full.chars().collect();
        let middle: String = chars[30..33].iter().collect();
        let never = format!("{}~", chars[20..24].iter().collect::<String>());
        for include_stop in [false, true] {
            let strings = vec![never.clone(), middle.clone()];
            let request = Request { stop: StopRules { strings, include_stop, ..stop(80) }, ..free.clone() };
            let told = run_one(&mut decoder, &request);
            let at = full.find(&middle).unwrap();
            assert_eq!(told.text, full[..at + if include_stop { middle.len() } else { 0 }]);
            assert_eq!(told.reason, Some(FinishReason::StopString));
            assert_eq!(told.ids, whole.ids[..told.ids.len()]);
        }
    }
}

#[test]
fn stop_tokens_end_rows() {
    let sampling = SamplingParams { seed: 2, ..Default::default() };
    let free = Request { prompt: vec![3], sampling, stop: stop(40), ..Default::default() };
    let mut decoder = decoder(512);
    let whole = run_one(&mut decoder, &free);
    let id = whole.ids[10];
    let first = whole.ids.iter().position(|other| *other == id).unwrap();
    for include_stop in [false, true] {
        let rules = StopRules { ids: vec![id], include_stop, ..stop(40) };
        let told = run_one(&mut decoder, &Request { stop: rules, ..free.clone() });
        assert_eq!(told.reason, Some(FinishReason::StopId));
        assert_eq!(told.ids, whole.ids[..=first], "the stop token is told");
        assert_eq!(told.text, text_of(&whole.ids[..first + usize::from(include_stop)]));
        assert_eq!(told.counts, (1, first + 1));
    }
    // A decoder whose model likes to end.
    let mut decoder = mock::decoder(512);
    decoder.runner_mut().eos_bias = 30.0;
    let told = run_one(&mut decoder, &free);
    assert_eq!((told.reason, &told.ids[..], &told.text[..]), (Some(FinishReason::Eos), &[EOS][..], ""));
    let told = run_one(&mut decoder, &Request { stop: StopRules { ignore_eos: true, ..stop(4) }, ..free.clone() });
    assert_eq!((told.reason, &told.ids[..]), (Some(FinishReason::Length), &[EOS; 4][..]));
    // The model's own end of text goes before the tokenizer's.
    decoder.runner_mut().config.eos_token_id = Some(17);
    assert_eq!(run_one(&mut decoder, &free).reason, Some(FinishReason::Length));
}

#[test]
fn a_row_that_fails_hurts_nobody_else() {
    let good = Request { prompt: vec![1, 2], stop: stop(10), keep_state: true, ..Default::default() };
    let bad = Request { prompt: vec![1, POISON], ..good.clone() };
    let mut decoder = decoder(512);
    let alone = run_one(&mut decoder, &good);
    let told = run(&mut decoder, &[good.clone(), bad.clone(), good]);
    assert_eq!((&told[0], &told[2]), (&alone, &alone));
    assert_eq!((told[1].reason, &told[1].ids[..]), (Some(FinishReason::Error), &[][..]));
    assert!(told[1].error.as_ref().unwrap().contains("NaN"), "{told:?}");
    assert_eq!(decoder.runner().slots_in_use(), 0);
    let row = decoder.add(&bad).unwrap();
    Listener::default().finish(&mut decoder);
    assert!(decoder.take_state(row).unwrap_err().to_string().contains("row"));
}

#[test]
fn a_pass_that_fails_can_be_repeated() {
    let requests = requests();
    let alone = run(&mut decoder(32), &requests);
    let mut decoder = decoder(32);
    let mut listener = Listener::default();
    let ids: Vec<_> = requests.iter().map(|request| decoder.add(request).unwrap()).collect();
    for step in 0.. {
        if decoder.is_idle() {
            break;
        }
        decoder.runner_mut().fail = step % 2 == 0;
        assert_eq!(listener.step(&mut decoder).is_err(), step % 2 == 0);
    }
    let told: Vec<_> = ids.iter().map(|id| listener.rows[id].clone()).collect();
    assert_eq!(told, alone);
}

#[test]
fn scores_are_the_log_probabilities_of_generation() {
    let mut decoder = decoder(7);
    let request = Request { prompt: vec![8, 9], stop: stop(30), ..Default::default() };
    let told = run_one(&mut decoder, &request);
    let text = [&[8, 9], &told.ids[..]].concat();
    let bits = |scores: Vec<f32>| scores.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let scores = bits(decoder.score(&text, None).unwrap());
    assert_eq!(scores.len(), 31);
    assert_eq!(scores[1..], told.logprobs);
    // From a state with a pending token, the first has a score, too.
    let feed = Request { stop: stop(0), keep_state: true, ..request };
    let row = decoder.add(&feed).unwrap();
    Listener::default().finish(&mut decoder);
    let state = decoder.take_state(row).unwrap();
    assert_eq!(bits(decoder.score(&told.ids, Some(&state)).unwrap()), told.logprobs);
    // Piece by piece, as one does with a long text.
    let slot = decoder.runner_mut().alloc_slot().expect("a slot");
    let pieces = [&text[..10], &text[9..11], &text[10..]];
    let scored: Vec<u32> = pieces.iter().flat_map(|piece| bits(decoder.score_from(slot, piece).unwrap())).collect();
    assert_eq!(scored, scores);
    decoder.runner_mut().free_slot(slot);
    assert!(decoder.score(&[], None).unwrap().is_empty());
    assert!(decoder.score(&[1], None).unwrap().is_empty());
    assert!(decoder.score(&[1, 40], None).unwrap_err().to_string().contains("40"));
    assert!(decoder.score(&[1, POISON, 2], None).unwrap_err().to_string().contains("NaN"));
    assert_eq!(decoder.runner().slots_in_use(), 0);
}

#[test]
fn top_log_probabilities_are_of_raw_logits_and_drawn_tokens_are_known() {
    let sampling = SamplingParams { temperature: 3.0, top_k: 5, logprobs: VOCAB, ..Default::default() };
    let told = run_one(&mut decoder(8), &Request { prompt: vec![1], sampling, stop: stop(30), ..Default::default() });
    for ((id, logprob), top) in told.ids.iter().zip(&told.logprobs).zip(&told.tops) {
        assert!((*id as usize) < KNOWN, "padding is never drawn");
        assert_eq!(top.len(), VOCAB);
        assert!(top.contains(&(*id, *logprob)));
        let sum: f64 = top.iter().map(|(_, bits)| f64::from(f32::from_bits(*bits)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        assert!(top.is_sorted_by(|a, b| f32::from_bits(a.1) >= f32::from_bits(b.1)));
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_and_change_nothing() {
    let good = Request { prompt: vec![1], ..Default::default() };
    let state =
        |values: Vec<f32>, pending| Some(Arc::new(SequenceState { values, position: 0, pending, recent: Vec::new() }));
    let cases = [
        ("vocabulary", Request { prompt: vec![1, VOCAB as u32], ..good.clone() }),
        ("vocabulary", Request { start: state(vec![0.0; 4], Some(99)), ..good.clone() }),
        ("numbers", Request { start: state(vec![0.0; 3], None), ..good.clone() }),
        ("pending", Request { prompt: vec![], start: state(vec![0.0; 4], None), ..good.clone() }),
        ("stop", Request { stop: StopRules { strings: vec![String::new()], ..stop(1) }, ..good.clone() }),
        ("vocabulary", Request { stop: StopRules { ids: vec![40], ..stop(1) }, ..good.clone() }),
        ("top_p", Request { sampling: SamplingParams { top_p: 2.0, ..Default::default() }, ..good.clone() }),
    ];
    let mut decoder = decoder(8);
    for (word, request) in cases {
        let error = decoder.add(&request).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(decoder.is_idle());
    assert_eq!(decoder.runner().slots_in_use(), 0);
    assert!(run_one(&mut decoder, &good).reason.is_some(), "the decoder is as good as before");
}

#[test]
fn an_empty_prompt_begins_with_what_begins_a_text() {
    let empty = Request { stop: stop(5), ..Default::default() };
    let mut decoder = decoder(8);
    let from_eos = run_one(&mut decoder, &Request { prompt: vec![EOS], ..empty.clone() });
    assert_eq!(run_one(&mut decoder, &empty), from_eos);
    decoder.runner_mut().config.bos_token_id = Some(5);
    let from_bos = run_one(&mut decoder, &Request { prompt: vec![5], ..empty.clone() });
    assert_eq!(run_one(&mut decoder, &empty), from_bos);
    assert_ne!(from_bos.ids, from_eos.ids);
}

#[test]
fn statistics_count_tokens_and_time() {
    let mut decoder = decoder(4);
    let mut listener = Listener::default();
    let row = decoder.add(&Request { prompt: vec![1; 10], stop: stop(6), ..Default::default() }).unwrap();
    listener.step(&mut decoder).unwrap();
    assert_eq!(decoder.stats(row).unwrap().num_prompt_tokens, 4);
    listener.finish(&mut decoder);
    assert!(decoder.stats(row).is_none());
    let stats = listener.stats[&row];
    assert_eq!((stats.num_prompt_tokens, stats.num_generated_tokens), (10, 6));
    assert!(stats.prefill_seconds > 0.0 && stats.decode_seconds > 0.0);
    assert!(stats.prefill_tokens_per_second() > 0.0 && stats.decode_tokens_per_second() > 0.0);
    let row = decoder.add(&Request { prompt: vec![1; 10], stop: stop(0), ..Default::default() }).unwrap();
    listener.finish(&mut decoder);
    assert_eq!(listener.rows[&row].counts, (9, 0), "the last token stays pending");
    assert_eq!(listener.stats[&row].decode_tokens_per_second(), 0.0);
}
