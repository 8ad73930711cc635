//! The promise: a prophet computes what the reference says, row by row, and only one that fits its model is loaded.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Tensors, golden, load};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use spikelet::model::{LoadOptions, Model, Prophet, ProphetRunner};
use spikelet::weights::{self, Checkpoint, Quantization};
use spikelet_simd::{Cpu, Level, WeightFormat};

const NAMES: [&str; 2] = ["spikegpt-tiny", "rwkv4-tiny"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/prophet").join(name)
}

fn prophet(name: &str, options: LoadOptions) -> Arc<Prophet> {
    Prophet::load(&data(name), &load(&golden(name), options)).unwrap()
}

/// What drafts begin with: hidden states, and the tokens that follow.
fn pairs(name: &str, count: usize) -> (Vec<f32>, Vec<u32>) {
    let expected = Tensors::read(&data(name).join("expected.safetensors"));
    let (hidden, tokens) = (expected.f32("hidden"), expected.ids("tokens"));
    (hidden[hidden.len() - count * 64..].to_vec(), tokens[tokens.len() - count..].to_vec())
}

/// Logits and stand-ins of a draft of the given tokens.
fn draft(runner: &mut ProphetRunner, name: &str, count: usize, guesses: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let (hidden, tokens) = pairs(name, count);
    runner.begin(1);
    runner.step(&[(0, &tokens)], &hidden).unwrap();
    let (mut logits, mut stand_ins) = (runner.logits().to_vec(), runner.stand_ins().to_vec());
    for guess in &guesses[..guesses.len() - 1] {
        let before = runner.stand_ins().to_vec();
        runner.step(&[(0, &[*guess])], &before).unwrap();
        logits.extend_from_slice(runner.logits());
        stand_ins.extend_from_slice(runner.stand_ins());
    }
    (logits, stand_ins)
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn drafts_are_those_of_the_reference() {
    for name in NAMES {
        let expected = Tensors::read(&data(name).join("expected.safetensors"));
        // The reference computes in f64. Logits are some units, stand-ins some tens.
        for (format, limit) in [(None, 1e-4), (Some(WeightFormat::Bf16), 1.0), (Some(WeightFormat::Q8), 1.5)] {
            let prophet = prophet(name, LoadOptions { format, ..LoadOptions::default() });
            for count in [1, 2] {
                let guesses = expected.ids(&format!("guesses.{count}"));
                // Rounding may flip a spike, and from then on a draft goes its own way.
                let steps = if format.is_some() && name == "spikegpt-tiny" { 0 } else { guesses.len() };
                let (logits, stand_ins) = draft(&mut prophet.runner(), name, count, &guesses);
                let ids = prophet.draft_ids().len();
                let off = worst(&logits[..steps * ids], &expected.f32(&format!("logits.{count}"))[..steps * ids]);
                assert!(off <= limit, "{name}, {format:?}: logits differ by up to {off}");
                let expected = &expected.f32(&format!("stand_ins.{count}"))[..steps * 64];
                let off = worst(&stand_ins[..steps * 64], expected);
                assert!(off <= limit, "{name}, {format:?}: stand-ins differ by up to {off}");
            }
        }
    }
}

#[test]
fn rows_side_by_side_are_what_they_are_alone_on_any_number_of_threads() {
    for name in NAMES {
        let guesses = [[1_u32, 200, 7], [9, 9, 30]];
        let alone = [1, 2].map(|count| {
            let prophet = prophet(name, LoadOptions::default());
            draft(&mut prophet.runner(), name, count, &guesses[count - 1])
        });
        let together = prophet(name, LoadOptions { threads: Some(2), ..LoadOptions::default() });
        let mut runner = together.runner();
        let (one, two) = (pairs(name, 1), pairs(name, 2));
        // Twice: the second time the slots are used ones.
        for _ in 0..2 {
            let mut found = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
            runner.begin(3);
            // Row 1 gets nothing; rows come in another order.
            let mut tokens = vec![(2, &two.1[..]), (0, &one.1[..])];
            let mut hidden = [&two.0[..], &one.0].concat();
            for step in 0..3 {
                runner.step(&tokens, &hidden).unwrap();
                hidden = runner.stand_ins().to_vec();
                let ids = together.draft_ids().len();
                for (place, count) in [(0, 2), (1, 1)] {
                    found[count - 1].0.extend_from_slice(&runner.logits()[place * ids..(place + 1) * ids]);
                    found[count - 1].1.extend_from_slice(&hidden[place * 64..(place + 1) * 64]);
                }
                tokens = vec![(2, &guesses[1][step..=step]), (0, &guesses[0][step..=step])];
            }
            assert!(found == alone, "{name}");
        }
    }
}

#[test]
fn a_prophet_of_another_model_is_refused_with_both_names() {
    let model = load(&golden("spikegpt-tiny-realemb"), LoadOptions::default());
    let error = Prophet::load(&data("spikegpt-tiny"), &model).err().unwrap().to_string();
    let right = Checkpoint::open(&golden("spikegpt-tiny")).unwrap().fingerprint();
    for part in ["prophet/spikegpt-tiny", "spikegpt-tiny-realemb", &right, &model.checkpoint().fingerprint()] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

/// A copy of a prophet in which one thing is wrong, and what the refusal says.
fn refused(name: &str, expected: &[&str], config: impl Fn(String) -> String, change: impl Fn(&mut Parts)) {
    let folder = tempfile::tempdir().unwrap();
    let text = config(fs::read_to_string(data(name).join("config.json")).unwrap());
    fs::write(folder.path().join("config.json"), text).unwrap();
    let mut parts = read_parts(&data(name).join("model.safetensors"));
    change(&mut parts);
    write_parts(&folder.path().join("model.safetensors"), &parts);
    let model = load(&golden(name), LoadOptions::default());
    let error = Prophet::load(folder.path(), &model).err().unwrap().to_string();
    for part in expected {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

type Parts = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_parts(path: &Path) -> Parts {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn write_parts(path: &Path, parts: &Parts) {
    let views = parts
        .iter()
        .map(|(name, (dtype, shape, data))| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes the beginning of a tensor.
fn overwrite(parts: &mut Parts, name: &str, bytes: &[u8]) {
    parts.get_mut(name).unwrap().2[..bytes.len()].copy_from_slice(bytes);
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let same = |text| text;
    let spiking = "spikegpt-tiny";
    for name in ["fuse.weight", "blocks.1.att.output.weight", "up.weight", "head.weight", "ln_emb.bias", "draft_ids"] {
        refused(spiking, &[name], same, |parts| drop(parts.remove(name)));
        refused(spiking, &[name, "[1, 1]"], same, |parts| {
            let width = parts[name].2.len() / parts[name].1.iter().product::<usize>();
            let part = parts.get_mut(name).unwrap();
            (part.1, part.2) = (vec![1, 1], vec![0; width]);
        });
    }
    refused(spiking, &["`blocks.2.ln1.weight`", "has no such tensor"], same, |parts| {
        parts.insert("blocks.2.ln1.weight".into(), parts["blocks.1.ln1.weight"].clone());
    });
    refused("rwkv4-tiny", &["`up.weight`", "has no such tensor"], same, |parts| {
        parts.insert("up.weight".into(), parts["blocks.0.att.key.weight"].clone());
    });
    refused(spiking, &["`head.weight`", "NaN at flat index 0"], same, |parts| {
        overwrite(parts, "head.weight", &f32::NAN.to_le_bytes());
    });
    refused(spiking, &["`blocks.0.att.time_decay`", "inf"], same, |parts| {
        overwrite(parts, "blocks.0.att.time_decay", &f32::INFINITY.to_le_bytes());
    });
    refused(spiking, &["too few for 3000 blocks"], |text| text.replace(r#"layers": 2"#, r#"layers": 3000"#), |_| ());
}

#[test]
fn guesses_that_the_model_has_not_are_refused() {
    let ids = |ids: &[i32]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        move |parts: &mut Parts| overwrite(parts, "draft_ids", &bytes)
    };
    for name in NAMES {
        refused(name, &["`draft_ids`", "found token 3 after 5"], |text| text, ids(&[4, 5, 3]));
        refused(name, &["`draft_ids`", "found token 5 after 5"], |text| text, ids(&[5, 5]));
        refused(name, &["`draft_ids`", "found token 256, needed tokens from 0 to 255"], |text| text, ids(&[256]));
        refused(name, &["`draft_ids`", "found token -1"], |text| text, ids(&[-1]));
        refused(
            name,
            &["`draft_ids`", "found type F32, needed I32"],
            |text| text,
            |parts| {
                parts.get_mut("draft_ids").unwrap().0 = Dtype::F32;
            },
        );
    }
}

#[test]
fn a_config_that_does_not_fit_the_model_is_refused() {
    for (from, to, expected) in [
        ("size\": 64", "size\": 96", "key `target_hidden_size`: found 96, needed the model's, which is 64"),
        ("\"vocab_size\": 256", "\"vocab_size\": 300", "key `vocab_size`: found 300, needed the model's, which is 256"),
        ("embedding\": true", "embedding\": false", "key `spike_embedding`: found false, needed the model's"),
    ] {
        refused("spikegpt-tiny", &[expected, "config.json"], |text| text.replace(from, to), |_| ());
    }
    refused("spikegpt-tiny", &["not valid JSON"], |text| text[1..].into(), |_| ());
    let model = load(&golden("rwkv4-tiny"), LoadOptions::default());
    assert!(Prophet::load(Path::new("nowhere"), &model).err().unwrap().to_string().contains("nowhere"));
    assert!(Prophet::of(&model).unwrap().is_none(), "it has none in its folder");
}

/// A model folder with a prophet.
fn with_prophet(folder: &Path, name: &str) {
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(name).join(file), folder.join(file)).unwrap();
    }
    fs::create_dir(folder.join("prophet")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(data(name).join(file), folder.join("prophet").join(file)).unwrap();
    }
    fs::write(folder.join("prophet/ngram.safetensors"), "a table").unwrap();
}

fn convert(from: &Path, to: &Path, dtype: Option<weights::Dtype>) -> spikelet::Result<()> {
    weights::convert(&Checkpoint::open(from)?, to, dtype, &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn a_prophet_goes_along_when_its_model_is_rounded() {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        with_prophet(&source, name);
        let narrow = folder.path().join("narrow");
        convert(&source, &narrow, Some(weights::Dtype::Bf16)).unwrap();
        let small = folder.path().join("small");
        let (checkpoint, cpu) = (Checkpoint::open(&source).unwrap(), Cpu::new(Level::best(), 1));
        let how = Quantization { format: WeightFormat::Q4, calibration: None };
        weights::quantize(&checkpoint, &small, how, &cpu, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let mut fingerprints = Vec::new();
        for (path, same) in [(&source, true), (&narrow, false), (&small, false)] {
            let model = load(path, LoadOptions::default());
            let prophet = Prophet::of(&model).unwrap().unwrap();
            let tokens = [model.config().vocab_size as u32 - 1];
            prophet.runner().step(&[], &[]).unwrap();
            let mut runner = prophet.runner();
            runner.begin(1);
            runner.step(&[(0, &tokens)], &[1.0; 64]).unwrap();
            assert!(runner.logits().iter().all(|logit| logit.is_finite()));
            assert!(runner.step(&[(0, &[256])], &[1.0; 64]).is_err());
            let was = Checkpoint::open(&source).unwrap().fingerprint();
            assert_eq!(model.checkpoint().fingerprint() == was, same);
            assert_eq!(fs::read_to_string(path.join("prophet/ngram.safetensors")).unwrap(), "a table");
            fingerprints.push(model.checkpoint().fingerprint());
        }
        assert_ne!(fingerprints[1], fingerprints[2]);
        // In its own folder.
        convert(&source, &source, Some(weights::Dtype::F16)).unwrap();
        assert!(Prophet::of(&load(&source, LoadOptions::default())).unwrap().is_some());
        // One that is not the model's stays behind, with an error, and leaves nothing.
        fs::copy(data(name).join("config.json"), source.join("prophet/config.json")).unwrap();
        let target = folder.path().join("target");
        let error = convert(&source, &target, None).unwrap_err().to_string();
        assert!(error.contains("made for the model with fingerprint") && !target.exists(), "{error}");
    }
}

#[test]
fn a_tied_head_is_the_models_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let model: Arc<Model> = {
        let (checkpoint, cpu) = (Checkpoint::open(&golden("rwkv4-tiny")).unwrap(), Cpu::new(Level::best(), 1));
        let how = Quantization { format: WeightFormat::Q8, calibration: None };
        weights::quantize(&checkpoint, folder.path(), how, &cpu, &mut |_, _| ControlFlow::Continue(())).unwrap();
        load(folder.path(), LoadOptions::default())
    };
    // The prophet's norm before the head becomes the model's.
    let mut parts = read_parts(&data("rwkv4-tiny").join("model.safetensors"));
    let of_model = read_parts(&golden("rwkv4-tiny").join("model.safetensors"));
    for name in ["ln_out.weight", "ln_out.bias"] {
        parts.insert(name.into(), of_model[name].clone());
    }
    let there = folder.path().join("prophet");
    fs::create_dir(&there).unwrap();
    write_parts(&there.join("model.safetensors"), &parts);
    let text = fs::read_to_string(data("rwkv4-tiny").join("config.json")).unwrap();
    let (old, new) = (Checkpoint::open(&golden("rwkv4-tiny")).unwrap().fingerprint(), model.checkpoint().fingerprint());
    fs::write(there.join("config.json"), text.replace(&old, &new)).unwrap();
    let prophet = Prophet::of(&model).unwrap().unwrap();
    let mut runner = prophet.runner();
    runner.begin(1);
    runner.step(&[(0, &[3])], &[0.5; 64]).unwrap();
    // What the model's own head makes of the same hidden state, from its weights as stored.
    let checkpoint = model.checkpoint();
    let cpu = model.cpu();
    let mut normed = vec![0.0; 64];
    let norm = |part: &str| checkpoint.vector(&format!("ln_out.{part}"), 64).unwrap();
    cpu.layer_norm(runner.stand_ins(), 1, &norm("weight"), &norm("bias"), 1e-5, &mut normed);
    let weights::MatrixView::Quantised { view, .. } = checkpoint.matrix("head.weight", 256, 64).unwrap() else {
        panic!("the head is quantised");
    };
    let head = spikelet_simd::Matrix::pack_quantized(cpu, &view);
    let mut logits = vec![0.0; 256];
    cpu.matmul(&head, &normed, 1, &mut logits);
    let expected: Vec<f32> = prophet.draft_ids().iter().map(|&id| logits[id as usize]).collect();
    assert_eq!(runner.logits(), expected);
}
