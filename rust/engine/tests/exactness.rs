//! The promise: logits and state are a function of weights, previous state and token alone. Same bits for any number of
//! tokens in the pass, rows beside it, threads and instruction set.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{Random, VOCAB, bits, load, random_model, random_model_with, run};
use spikelet::backend::{LogitsWanted, PassRow, Runner};
use spikelet::model::{LoadOptions, Model};
use spikelet::state::Slot;
use spikelet::weights::{Checkpoint, Dtype, Quantization, convert, quantize};
use spikelet_simd::{Cpu, Level, WeightFormat};

const FORMATS: [WeightFormat; 5] =
    [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4];
const KINDS: [(&str, &str); 6] = [
    ("spikegpt", r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": true"#),
    ("spikegpt, real embedding", r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": false"#),
    ("spikegpt, ffnPre", r#""model_type": "spikegpt", "variant": "rwkv-ffnpre", "spike_embedding": true"#),
    (
        "spikegpt, learned decay",
        r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": true, "neuron": "plif""#,
    ),
    (
        "spikegpt, no neurons",
        r#""model_type": "spikegpt", "variant": "rwkv", "spike_embedding": true, "neuron": "none""#,
    ),
    ("rwkv4", r#""model_type": "rwkv4""#),
];

fn ids(seed: u64, len: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(VOCAB) as u32).collect()
}

/// Runs `check` on every kind of model in every format.
fn each_model(check: impl Fn(&str, &Path, WeightFormat)) {
    for (name, config) in KINDS {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 7, config);
        for format in FORMATS {
            check(&format!("{name}, {format:?}"), folder.path(), format);
        }
    }
}

fn options(format: WeightFormat) -> LoadOptions {
    LoadOptions { format: Some(format), ..LoadOptions::default() }
}

#[test]
fn the_number_of_tokens_in_a_pass_changes_no_bit() {
    let ids = ids(1, 160);
    each_model(|name, folder, format| {
        let model = load(folder, options(format));
        let expected = run(&model, &ids, vec![1; ids.len()]);
        for t in (2..=16).chain([33, 128]) {
            assert!(run(&model, &ids, vec![t; ids.len()]) == expected, "{name}: passes of {t} tokens");
        }
    });
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let ids = ids(2, 70);
    each_model(|name, folder, format| {
        let expected = run(&load(folder, options(format)), &ids, [1, 3, 64, 1, 1]);
        for threads in [2, 4] {
            let model = load(folder, LoadOptions { threads: Some(threads), ..options(format) });
            assert!(run(&model, &ids, [1, 3, 64, 1, 1]) == expected, "{name}: {threads} threads");
        }
    });
}

#[test]
fn the_instruction_set_changes_no_bit() {
    let ids = ids(3, 60);
    each_model(|name, folder, format| {
        let at = |level| load(folder, LoadOptions { level: Some(level), ..options(format) });
        let portable = Level::by_name("portable").unwrap();
        let expected = run(&at(portable), &ids, [1, 1, 5, 53]);
        for level in Level::available() {
            assert!(run(&at(level), &ids, [1, 1, 5, 53]) == expected, "{name}: {}", level.name());
        }
    });
}

/// Logits and states of `rows` run together, each row cut into pieces of its own.
fn run_together(model: &Arc<Model>, rows: &[(Vec<u32>, usize)]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let vocab = model.config().vocab_size;
    let mut runner = model.runner().expect("a runner");
    let slots: Vec<_> = rows.iter().map(|_| runner.alloc_slot().expect("a slot")).collect();
    let mut results = vec![(Vec::new(), Vec::new()); rows.len()];
    let mut at = vec![0; rows.len()];
    loop {
        // Rows end at different passes and leave; the first one joins a pass late.
        let active: Vec<usize> =
            (0..rows.len()).filter(|&i| at[i] < rows[i].0.len() && (i > 0 || rows.len() == 1 || at[1] > 0)).collect();
        if active.is_empty() {
            break;
        }
        let pass: Vec<PassRow<'_>> = active
            .iter()
            .map(|&i| PassRow {
                slot: slots[i],
                tokens: &rows[i].0[at[i]..(at[i] + rows[i].1).min(rows[i].0.len())],
                logits: LogitsWanted::All,
                keep: std::slice::from_ref(&slots[i]),
            })
            .collect();
        runner.forward(&pass).unwrap();
        let mut lines = runner.logits().chunks_exact(vocab);
        for (&i, row) in active.iter().zip(&pass) {
            for _ in row.tokens {
                results[i].0.extend(bits(lines.next().unwrap()));
            }
            at[i] += row.tokens.len();
        }
    }
    for (result, &slot) in results.iter_mut().zip(&slots) {
        result.1 = bits(&runner.read_state(slot).expect("a state"));
    }
    results
}

#[test]
fn the_rows_beside_it_change_no_bit() {
    each_model(|name, folder, format| {
        let model = load(folder, options(format));
        for batch in [1, 3, 8] {
            let rows: Vec<_> = (0..batch).map(|i| (ids(10 + i as u64, 9 + 7 * i), 1 + (i * 5) % 11)).collect();
            let together = run_together(&model, &rows);
            for ((ids, _), found) in rows.iter().zip(together) {
                assert!(run(&model, ids, [ids.len()]) == found, "{name}: batch of {batch}");
            }
        }
    });
}

#[test]
fn a_pass_leaves_the_state_after_each_token_and_rolling_back_is_choosing_one() {
    let ids = ids(4, 12);
    let rejected = other_ids(&ids);
    each_model(|name, folder, format| {
        let model = load(folder, options(format));
        let mut runner = model.runner().expect("a runner");
        let base = runner.alloc_slot().expect("a slot");
        runner.forward(&[all(base, &ids[..4], &[base])]).unwrap();
        let before = bits(&runner.read_state(base).expect("a state"));

        // Five tokens of which the last three will be rejected; one slot per token, the base untouched.
        let slots: Vec<_> = (0..5).map(|_| runner.alloc_slot().expect("a slot")).collect();
        runner.forward(&[all(base, &rejected[4..9], &slots)]).unwrap();
        assert!(bits(&runner.read_state(base).expect("a state")) == before, "{name}: the base slot is unchanged");
        for (t, &slot) in slots.iter().enumerate() {
            let (_, expected) = run(&model, &rejected[..5 + t], [5 + t]);
            assert!(bits(&runner.read_state(slot).expect("a state")) == expected, "{name}: state after token {t}");
        }

        // Go on from the second one, while the base slot serves as a per-token slot.
        let kept = slots[1];
        runner.forward(&[all(kept, &ids[6..9], &[slots[2], base, kept])]).unwrap();
        for (t, slot) in [(7, slots[2]), (8, base), (9, kept)] {
            let (_, expected) = run(&model, &ids[..t], [t]);
            assert!(
                bits(&runner.read_state(slot).expect("a state")) == expected,
                "{name}: state after going on to {t}"
            );
        }
    });
}

fn all<'a>(slot: Slot, tokens: &'a [u32], keep: &'a [Slot]) -> PassRow<'a> {
    PassRow { slot, tokens, logits: LogitsWanted::All, keep }
}

/// The same ids up to the sixth, others after it.
fn other_ids(ids: &[u32]) -> Vec<u32> {
    ids.iter().enumerate().map(|(i, &id)| if i < 6 { id } else { (id + 1) % VOCAB as u32 }).collect()
}

#[test]
fn forked_states_interleaved_give_what_each_gives_alone() {
    let (start, a, b) = (ids(5, 6), ids(6, 10), ids(7, 10));
    each_model(|name, folder, format| {
        let model = load(folder, options(format));
        let mut runner = model.runner().expect("a runner");
        let (left, right) = (runner.alloc_slot().expect("a slot"), runner.alloc_slot().expect("a slot"));
        let feed = |runner: &mut dyn Runner, slot, tokens: &[u32]| {
            runner.forward(&[PassRow { slot, tokens, logits: LogitsWanted::Last, keep: &[slot] }]).unwrap();
        };
        feed(&mut runner, left, &start);
        runner.copy_slot(left, right).expect("copied");
        for (x, y) in a.iter().zip(&b) {
            feed(&mut runner, left, &[*x]);
            feed(&mut runner, right, &[*y]);
        }
        for (slot, rest) in [(left, &a), (right, &b)] {
            let ids = [start.as_slice(), rest].concat();
            assert!(bits(&runner.read_state(slot).expect("a state")) == run(&model, &ids, [ids.len()]).1, "{name}");
        }
    });
}

#[test]
fn an_id_out_of_range_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, KINDS[0].1);
    let model = load(folder.path(), LoadOptions::default());
    let mut runner = model.runner().expect("a runner");
    let slot = runner.alloc_slot().expect("a slot");
    let before = bits(&runner.read_state(slot).expect("a state"));
    let row = PassRow { slot, tokens: &[1, VOCAB as u32], logits: LogitsWanted::Last, keep: &[slot] };
    let error = runner.forward(&[row]).unwrap_err().to_string();
    assert!(error.contains(&VOCAB.to_string()), "{error}");
    assert!(bits(&runner.read_state(slot).expect("a state")) == before);
}

#[test]
fn converting_to_a_format_and_loading_in_it_give_the_same_bits() {
    let ids = ids(8, 20);
    each_model(|name, folder, format| {
        let dtype = match format {
            WeightFormat::F32 => Some(Dtype::F32),
            WeightFormat::Bf16 => Some(Dtype::Bf16),
            WeightFormat::F16 => Some(Dtype::F16),
            WeightFormat::Q8 | WeightFormat::Q4 => None,
        };
        let converted = tempfile::tempdir().unwrap();
        let out = converted.path().join("model");
        let checkpoint = Checkpoint::open(folder).unwrap();
        let quietly = &mut |_, _| ControlFlow::Continue(());
        if dtype.is_some() {
            convert(&checkpoint, &out, dtype, quietly).unwrap();
        } else {
            let how = Quantization { format, calibration: None };
            quantize(&checkpoint, &out, how, &Cpu::new(Level::best(), 2), quietly).unwrap();
        }
        let expected = run(&load(folder, options(format)), &ids, [20]);
        let model = load(&out, LoadOptions::default());
        assert_eq!(model.format(), format, "{name}: the file's own format is kept");
        assert!(run(&model, &ids, [20]) == expected, "{name}");
    });
}

#[test]
fn a_spikegpt_without_neurons_and_with_a_real_embedding_is_an_rwkv4() {
    let ids = ids(9, 50);
    let results =
        [r#""model_type": "rwkv4""#, r#""model_type": "spikegpt", "spike_embedding": false, "neuron": "none""#].map(
            |config| {
                let folder = tempfile::tempdir().unwrap();
                random_model(folder.path(), 7, config);
                run(&load(folder.path(), LoadOptions::default()), &ids, [20, 30])
            },
        );
    assert!(results[0] == results[1]);
}

#[test]
fn a_learned_decay_of_one_half_is_the_usual_neuron_and_others_are_not() {
    let ids = ids(10, 50);
    let usual = r#""model_type": "spikegpt", "spike_embedding": true"#;
    let learned = r#""model_type": "spikegpt", "spike_embedding": true, "neuron": "plif""#;
    let result = |config: &str, decay: f32| {
        let folder = tempfile::tempdir().unwrap();
        random_model_with(folder.path(), 7, config, decay);
        run(&load(folder.path(), LoadOptions::default()), &ids, [20, 30])
    };
    assert!(result(usual, 0.0) == result(learned, 0.0), "w = 0 is a decay of one half");
    assert!(result(usual, 0.0) != result(learned, 1.0));
}
