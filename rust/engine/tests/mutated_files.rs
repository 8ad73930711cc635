//! Files broken at random places are read without a panic and without much memory.
//!
//! Sound files are cut, spliced, overwritten and bit-flipped, as a fuzzer would do it, and read to the last value. `PROPTEST_CASES=100000` looks longer.

mod files;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use files::{golden, legacy_start, sample, tests_folder};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use spikelet::config::ModelType;
use spikelet::draft::{TableFile, TableOptions, build_table};
use spikelet::model::{LoadOptions, Model, Prophet};
use spikelet::weights::{Checkpoint, Dtype, Quantization, SafetensorsFile, quantize, save_safetensors};
use spikelet_simd::{Cpu, Level, WeightFormat};

/// One change of a file. Places are shares of the length, so that they fit files of every size.
#[derive(Clone, Debug)]
enum Change {
    Flip(f64, u8),
    Byte(f64, u8),
    Number(f64, u64, usize),
    Cut(f64),
    Remove(f64, usize),
    Repeat(f64, usize),
    Splice(usize, f64, f64, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || prop_oneof![0.0..1.0, 0.0..0.05];
    let telling = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(1 << 63),
        Just(u64::MAX),
        Just(u64::MAX - 8),
        any::<u64>()
    ];
    prop_oneof![
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        2 => (at(), telling, prop_oneof![Just(2usize), Just(4), Just(8)]).prop_map(|(at, n, width)| Change::Number(at, n, width)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), 1usize..40).prop_map(|(at, n)| Change::Remove(at, n)),
        1 => (at(), 1usize..40).prop_map(|(at, n)| Change::Repeat(at, n)),
        2 => (any::<usize>(), at(), at(), 1usize..200).prop_map(|(seed, from, to, n)| Change::Splice(seed, from, to, n)),
    ]
}

fn apply(file: &mut Vec<u8>, change: &Change, seeds: &[Vec<u8>]) {
    let place = |file: &[u8], share: f64| ((file.len() as f64 * share) as usize).min(file.len().saturating_sub(1));
    if file.is_empty() {
        return;
    }
    match *change {
        Change::Flip(at, bit) => {
            let at = place(file, at);
            file[at] ^= 1 << bit;
        }
        Change::Byte(at, byte) => {
            let at = place(file, at);
            file[at] = byte;
        }
        Change::Number(at, number, width) => {
            let at = place(file, at);
            for (old, new) in file[at..].iter_mut().zip(&number.to_le_bytes()[..width]) {
                *old = *new;
            }
        }
        Change::Cut(at) => file.truncate(place(file, at)),
        Change::Remove(at, n) => {
            let at = place(file, at);
            file.drain(at..(at + n).min(file.len()));
        }
        Change::Repeat(at, n) => {
            let at = place(file, at);
            let part = file[at..(at + n).min(file.len())].to_vec();
            file.splice(at..at, part);
        }
        Change::Splice(seed, from, to, n) => {
            let other = &seeds[seed % seeds.len()];
            let from = place(other, from);
            let part = other[from..(from + n).min(other.len())].to_vec();
            let to = place(file, to);
            file.splice(to..to, part);
        }
    }
}

/// Reads whatever a path leads to, to the last value.
fn read_everything(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open_with(path, Some(ModelType::Rwkv4)) {
        for name in checkpoint.names() {
            let view = checkpoint.get(name).expect("a listed tensor");
            let _ = checkpoint.check_finite(&view);
            assert_eq!(view.to_f32().len(), view.shape.iter().product::<usize>());
        }
        let config = checkpoint.config();
        let (vocab, hidden, wide) = (config.vocab_size, config.hidden_size, config.intermediate_size);
        for (name, outputs, inputs) in [
            ("emb.weight", vocab, hidden),
            ("head.weight", vocab, hidden),
            ("blocks.0.ffn.key.weight", wide, hidden),
            ("blocks.0.ffn.value.weight", hidden, wide),
        ] {
            let matrix = checkpoint.matrix(name, outputs, inputs).expect("its shape has been checked");
            let _ = checkpoint.check_matrix(&matrix);
            let mut row = vec![0.0; inputs];
            (0..outputs).for_each(|o| matrix.row_to_f32(o, &mut row));
        }
        let _ = checkpoint.sha256();
        let _ = checkpoint.inspect();
        let _ = checkpoint.generation_config();
    }
    if let Ok(file) = SafetensorsFile::open(path) {
        for name in file.names() {
            let view = file.get(name).expect("a listed tensor");
            assert_eq!(view.to_f32().len(), view.shape.iter().product::<usize>());
        }
    }
}

/// Changes the seeds at random; `write` puts the bytes where they belong and gives the path to open.
fn mutate(cases: u32, seeds: &[Vec<u8>], write: impl Fn(&Path, &[u8]) -> std::path::PathBuf) {
    mutate_for(cases, seeds, write, read_everything);
}

/// The same for files that are read in another way.
fn mutate_for(
    cases: u32,
    seeds: &[Vec<u8>],
    write: impl Fn(&Path, &[u8]) -> std::path::PathBuf,
    read_everything: impl Fn(&Path),
) {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let plan = (0..seeds.len(), prop::collection::vec(change(), 1..6));
    let result = runner.run(&plan, |(seed, changes)| {
        let mut file = seeds[seed].clone();
        changes.iter().for_each(|change| apply(&mut file, change, seeds));
        let path = write(folder.path(), &file);
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| read_everything(&path)));
        prop_assert!(read.is_ok(), "a panic");
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a seed")
}

fn one_file(name: &'static str) -> impl Fn(&Path, &[u8]) -> std::path::PathBuf {
    move |folder, bytes| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    }
}

/// The bytes of a small quantised file with an input kept apart.
fn quantised(format: WeightFormat) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let original = Checkpoint::open_with(&sample("expected_f32.safetensors"), Some(ModelType::Rwkv4)).expect("sound");
    let how = Quantization { format, calibration: None };
    let cpu = Cpu::new(Level::best(), 1);
    quantize(&original, folder.path(), how, &cpu, &mut |_, _| ControlFlow::Continue(())).expect("written");
    let path = folder.path().join("model.safetensors");
    let mut all = files::tensors(&path);
    let head = original.get("head.weight").expect("there").shape[0];
    for (name, dtype, shape, bytes) in [
        ("head.weight.outliers", Dtype::I32, vec![1], vec![1, 0, 0, 0]),
        ("head.weight.outlier_weight", Dtype::Bf16, vec![head, 1], vec![7; 2 * head]),
    ] {
        all.push(files::Owned { name: name.into(), dtype, shape, bytes });
    }
    let views: Vec<_> = all.iter().map(files::Owned::view).collect();
    save_safetensors(&path, &views, &BTreeMap::new()).expect("written");
    assert!(Checkpoint::open(&folder.path().join("model.safetensors")).is_ok(), "a sound seed");
    read(&path)
}

#[test]
#[ignore = "run in a child process with little memory by the test below"]
fn child_safetensors() {
    let mut seeds: Vec<_> =
        ["f32", "f16", "bf16"].map(|d| read(&sample(&format!("expected_{d}.safetensors")))).to_vec();
    seeds.push(files::raw_safetensors(
        r#"{"a":{"dtype":"I64","shape":[1,0],"data_offsets":[0,0]},"__metadata__":{"k":"v"}}"#,
        b"",
    ));
    // Quantised files say what they are by their tensors' types.
    for format in [WeightFormat::Q8, WeightFormat::Q4] {
        seeds.push(quantised(format));
    }
    mutate(1400, &seeds, one_file("m.safetensors"));
}

#[test]
#[ignore = "run in a child process with little memory by the test below"]
fn child_pth() {
    let names = ["zip_f32", "zip_bf16", "zip_nested", "legacy_f32", "legacy_f16", "legacy_nested"];
    let mut seeds: Vec<_> = names.map(|n| read(&sample(&format!("{n}.pth")))).to_vec();
    seeds.push(legacy_start());
    mutate(1200, &seeds, one_file("m.pth"));
}

/// Most changes of a file hit its numbers; here the pickle alone is changed, in an archive that stays whole.
#[test]
#[ignore = "run in a child process with little memory by the test below"]
fn child_pickles() {
    let tensors = files::tensors(&sample("expected_f32.safetensors"));
    let seeds = vec![
        files::Pickler::new().dict_of_tensors(&tensors[..3], false).stop(),
        files::Pickler::new().op(b"}").str("state_dict").dict_of_tensors(&tensors[..1], false).op(b"s").stop(),
        b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94]\x94(K\x02G\0\0\0\0\0\0\0\0\x88Neu."
            .to_vec(),
    ];
    mutate(1200, &seeds, |folder, bytes| {
        let storages: Vec<(String, &[u8])> =
            (0..3).map(|i| (format!("a/data/{i}"), tensors[i].bytes.as_slice())).collect();
        let mut members: Vec<(&str, &[u8])> = storages.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        members.push(("a/data.pkl", bytes));
        one_file("m.pth")(folder, &files::zip(&members))
    });
}

/// Puts a changed text beside sound weights.
fn beside(
    weights: &'static str,
    target: &'static str,
    text: &'static str,
) -> impl Fn(&Path, &[u8]) -> std::path::PathBuf {
    move |folder, bytes| {
        if !folder.join(target).exists() {
            std::fs::copy(sample(weights), folder.join(target)).expect("copied");
        }
        std::fs::write(folder.join(text), bytes).expect("written");
        folder.to_owned()
    }
}

#[test]
#[ignore = "run in a child process with little memory by the test below"]
fn child_texts() {
    let goldens = std::fs::read_dir(tests_folder().join("golden")).expect("a folder");
    let mut configs: Vec<_> = goldens.map(|e| read(&e.expect("an entry").path().join("config.json"))).collect();
    configs.push(br#"{"model_type":"rwkv","vocab_size":8,"hidden_size":4,"num_hidden_layers":1,"intermediate_size":16,"attention_hidden_size":null,"eos_token_id":[0],"rescale_every":6,"layer_norm_epsilon":1e-5,"tie_word_embeddings":true,"tokenizer_class":"bytes"}"#.to_vec());
    mutate(800, &configs, beside("expected_f32.safetensors", "model.safetensors", "config.json"));
    let generation =
        br#"{"temperature":0.8,"top_k":40,"top_p":0.9,"stop":["a","b"],"eos_token_id":[0,1],"chat_template":"{{x}}"}"#;
    mutate(
        400,
        &[generation.to_vec()],
        beside("expected_f32.safetensors", "model.safetensors", "generation_config.json"),
    );
    let names = files::tensors(&sample("expected_f32.safetensors"));
    let map: std::collections::BTreeMap<_, _> = names.iter().map(|t| (t.name.as_str(), "s.safetensors")).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string().into_bytes();
    mutate(400, &[index], beside("expected_f32.safetensors", "s.safetensors", "model.safetensors.index.json"));
}

/// A prophet's weights and configuration, and a table: read, and used if they can be.
#[test]
#[ignore = "run in a child process with little memory by the test below"]
fn child_prophets() {
    for name in ["spikegpt-tiny", "rwkv4-tiny"] {
        let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
        let model = Model::load(&golden(name), &options).expect("sound");
        let folder = tests_folder().join("data/prophet").join(name);
        let files = ["config.json", "model.safetensors"];
        for changed in files {
            let seed = read(&folder.join(changed));
            let write = |to: &Path, bytes: &[u8]| {
                for file in files {
                    std::fs::copy(folder.join(file), to.join(file)).expect("copied");
                }
                std::fs::write(to.join(changed), bytes).expect("written");
                to.to_owned()
            };
            mutate_for(300, &[seed], write, |path| {
                if let Ok(prophet) = Prophet::load(path, &model) {
                    let mut runner = prophet.runner();
                    runner.begin(1);
                    runner.step(&[(0, &[3, 4])], &[0.5; 128]).expect("ids of the vocabulary");
                    assert_eq!(runner.logits().len(), prophet.draft_ids().len());
                }
            });
        }
    }
    let texts = [[1, 2, 3, 4, 5, 6, 7].repeat(9), [2, 3, 9].repeat(9)];
    let path = tempfile::NamedTempFile::new().expect("a file");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    build_table(path.path(), &texts, 10, &TableOptions::default(), go_on).expect("built");
    mutate_for(600, &[read(path.path())], one_file("ngram.safetensors"), |path| {
        if let Ok(table) = TableFile::open(path, 10) {
            let guessed = (0..60).filter_map(|end| table.next(&texts[0][..end]));
            assert!(guessed.into_iter().all(|(token, confidence)| token < 10 && confidence <= 1.0));
        }
    });
}

/// 512 MiB of address space for a child that reads files of a few kilobytes.
fn in_little_memory(child: &str) {
    #[cfg(unix)]
    files::run_limited("-v 524288", child, &[]).unwrap_or_else(|output| panic!("{output}"));
    let _ = child;
}

#[test]
fn changed_safetensors_files() {
    in_little_memory("child_safetensors");
}

#[test]
fn changed_pth_files() {
    in_little_memory("child_pth");
}

#[test]
fn changed_pickles() {
    in_little_memory("child_pickles");
}

#[test]
fn changed_configs_and_indexes() {
    in_little_memory("child_texts");
}

#[test]
fn changed_prophets_and_tables() {
    in_little_memory("child_prophets");
}

#[test]
fn seeds_are_sound() {
    assert!(Checkpoint::open(&golden("rwkv4-tiny")).is_ok());
    assert!(Checkpoint::open_with(&sample("zip_nested.pth"), Some(ModelType::Rwkv4)).is_ok());
}
