//! Quantised models on disk: written, read, converted back, and refused when broken.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod files;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use common::{HIDDEN, LAYERS, Random, VOCAB, load, random_model, run};
use files::{Owned, golden, tensors};
use spikelet::model::{LoadOptions, calibrate};
use spikelet::weights::{
    Checkpoint, Dtype, MatrixView, Quantization, QuantizedMatrix, convert, quantize, save_safetensors,
};
use spikelet_simd::WeightFormat::{self, F32, Q4, Q8};
use spikelet_simd::{Cpu, Level};

const KINDS: [&str; 4] = [
    r#""model_type": "rwkv4""#,
    r#""model_type": "spikegpt", "spike_embedding": true"#,
    r#""model_type": "spikegpt", "spike_embedding": false, "neuron": "plif""#,
    r#""model_type": "spikegpt", "spike_embedding": true, "variant": "rwkv-ffnpre""#,
];

fn quietly(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn ids() -> Vec<u32> {
    let mut random = Random(5);
    (0..60).map(|_| random.below(VOCAB) as u32).collect()
}

fn quantized(from: &Path, to: &Path, format: WeightFormat, calibrated: bool) -> Vec<QuantizedMatrix> {
    let cpu = Cpu::new(Level::best(), 2);
    let seen = calibrated.then(|| calibrate(&load(from, LoadOptions::default()), &ids(), &mut quietly).unwrap());
    let how = Quantization { format, calibration: seen.as_ref() };
    quantize(&Checkpoint::open(from).unwrap(), to, how, &cpu, &mut quietly).unwrap()
}

/// Every kind of model in both formats, quantised: its folder, and that of the model it was made from.
fn each_model(check: impl Fn(&str, WeightFormat, &Path, &Path)) {
    for kind in KINDS {
        for format in [Q8, Q4] {
            let folder = tempfile::tempdir().unwrap();
            random_model(folder.path(), 7, kind);
            let small = folder.path().join("small");
            quantized(folder.path(), &small, format, false);
            check(&format!("{kind}, {format:?}"), format, folder.path(), &small);
        }
    }
}

fn of_format(format: WeightFormat) -> LoadOptions {
    LoadOptions { format: Some(format), ..LoadOptions::default() }
}

#[test]
fn a_quantised_model_says_what_it_is() {
    each_model(|kind, format, original, small| {
        let (original, small) = (Checkpoint::open(original).unwrap(), Checkpoint::open(small).unwrap());
        assert_eq!(small.config().quantization, Some(format), "{kind}");
        let (before, after) = (original.inspect(), small.inspect());
        assert_eq!(after.dtype, if format == Q4 { "q4" } else { "q8" });
        assert_eq!(after.parameters, before.parameters, "{kind}");
        assert_eq!(after.memory, before.memory, "{kind}: the memory of each format is that of the whole model");
        let spikes = original.config().spike_embedding;
        let emb = small.get("emb.weight").unwrap();
        assert_eq!(emb.dtype, if spikes { Dtype::F32 } else { Dtype::I8 }, "{kind}");
        assert_eq!(small.get("head.weight").unwrap().dtype, Dtype::I8);
        let codes = small.get("blocks.1.ffn.key.weight").unwrap();
        let (dtype, width) = if format == Q4 { (Dtype::U8, HIDDEN / 2) } else { (Dtype::I8, HIDDEN) };
        assert_eq!((codes.dtype, codes.shape[1]), (dtype, width));
        assert_eq!(small.get("blocks.1.ffn.key.weight.scale").unwrap().shape[1], 2);
        assert_eq!(small.get("ln_out.weight").unwrap().bytes, original.get("ln_out.weight").unwrap().bytes);
    });
}

#[test]
fn quantising_and_loading_in_the_format_give_the_same_bits() {
    let ids = ids();
    each_model(|kind, format, original, small| {
        let expected = run(&load(original, of_format(format)), &ids, [ids.len()]);
        let model = load(small, LoadOptions::default());
        assert_eq!(model.format(), format, "{kind}: the file's own format is kept");
        assert!(run(&model, &ids, [7, 53]) == expected, "{kind}");
        let again = small.join("again");
        quantized(small, &again, format, false);
        // The weights may move when codes are searched anew, the file stays as good.
        assert_eq!(load(&again, LoadOptions::default()).format(), format);
        let halved = LoadOptions { rescale_every: Some(1), ..LoadOptions::default() };
        let expected = run(&load(original, LoadOptions { format: Some(format), ..halved.clone() }), &ids, [ids.len()]);
        assert!(run(&load(small, halved), &ids, [ids.len()]) == expected, "{kind}: rescaled");
    });
}

#[test]
fn a_quantised_model_becomes_numbers_again() {
    let ids = ids();
    each_model(|kind, format, _, small| {
        let quantised = Checkpoint::open(small).unwrap();
        let wide = small.join("wide");
        convert(&quantised, &wide, Some(Dtype::F32), &mut quietly).unwrap();
        let numbers = Checkpoint::open(&wide).unwrap();
        assert_eq!((numbers.config().quantization, numbers.dtype()), (None, Dtype::F32), "{kind}");
        assert_eq!(numbers.names().count(), quantised.names().filter(|name| !name.ends_with(".scale")).count());
        let matrix = numbers.get("blocks.0.ffn.value.weight").unwrap();
        let (outputs, inputs) = (matrix.shape[0], matrix.shape[1]);
        let MatrixView::Quantised { view, .. } = quantised.matrix(matrix.name, outputs, inputs).unwrap() else {
            panic!("{kind}: not quantised");
        };
        assert_eq!(view.format, format);
        let (mut a, mut b) = (vec![f32::NAN; inputs], vec![f32::NAN; inputs]);
        for row in 0..outputs {
            view.row_to_f32(row, &mut a);
            matrix.row_to_f32(row, &mut b);
            assert_eq!(a, b);
        }
        let expected = run(&load(&wide, LoadOptions::default()), &ids, [60]);
        assert!(run(&load(small, of_format(F32)), &ids, [60]) == expected, "{kind}");
        let message = quantised.matrix("head.weight", 3, HIDDEN).unwrap_err().to_string();
        assert!(message.contains("tensor `head.weight`: found a matrix [131, 88], needed [3, 88]"), "{message}");
    });
}

#[test]
fn a_copy_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    quantized(&golden("rwkv4-tiny"), folder.path(), Q4, true);
    let (quantised, copy) = (Checkpoint::open(folder.path()).unwrap(), folder.path().join("copy"));
    convert(&quantised, &copy, None, &mut quietly).unwrap();
    let read = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(read(folder.path()) == read(&copy));
    assert_eq!(Checkpoint::open(&copy).unwrap().sha256().unwrap(), quantised.sha256().unwrap());
    // A file without its config still says that it is quantised.
    std::fs::remove_file(copy.join("config.json")).unwrap();
    let bare = Checkpoint::open_with(&copy, Some(spikelet::config::ModelType::Rwkv4)).unwrap();
    assert_eq!(bare.config().quantization, Some(Q4));
}

#[test]
fn large_inputs_are_kept_apart_where_a_text_shows_them() {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, KINDS[0]);
    // Channel 70 of a norm grows; the matrices that read it shrink: the same function.
    let mut all = tensors(&folder.path().join("model.safetensors"));
    for tensor in &mut all {
        let values = |t: &Owned| t.view().to_f32();
        let reads = ["key", "value", "receptance"].map(|m| format!("blocks.0.att.{m}.weight"));
        let mut changed = values(tensor);
        if tensor.name.starts_with("blocks.0.ln1.") {
            changed[70] *= 64.0;
        } else if reads.contains(&tensor.name) {
            changed.chunks_mut(HIDDEN).for_each(|row| row[70] /= 64.0);
        }
        tensor.bytes = changed.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
    save(folder.path(), &all);
    let small = folder.path().join("small");
    let report = quantized(folder.path(), &small, Q4, true);
    let kept: Vec<&str> = report.iter().filter(|m| m.outliers > 0).map(|m| m.name.as_str()).collect();
    assert_eq!(kept, ["blocks.0.att.key.weight", "blocks.0.att.value.weight", "blocks.0.att.receptance.weight"]);
    assert_eq!(report.len(), 2 + 7 * LAYERS);
    let checkpoint = Checkpoint::open(&small).unwrap();
    let outliers = checkpoint.get("blocks.0.att.key.weight.outliers").unwrap();
    assert_eq!((outliers.dtype, outliers.to_f32()), (Dtype::I32, vec![70.0]));
    assert_eq!(checkpoint.get("blocks.0.att.key.weight.outlier_weight").unwrap().shape, [HIDDEN, 1]);
    let logits = |path: &Path| run(&load(path, LoadOptions::default()), &ids(), [60]).0;
    let off = |path: &Path| -> f32 {
        let both = logits(path).into_iter().zip(logits(folder.path()));
        both.map(|(a, b)| (f32::from_bits(a) - f32::from_bits(b)).powi(2)).sum::<f32>().sqrt()
    };
    let plain = folder.path().join("plain");
    quantized(folder.path(), &plain, Q4, false);
    assert!(off(&small) < 0.75 * off(&plain), "{} {}", off(&small), off(&plain));
    // It still loads in every format, and back.
    for format in [F32, Q8, Q4] {
        logits(&small);
        assert_eq!(load(&small, of_format(format)).format(), format);
    }
}

#[test]
fn an_interrupted_quantisation_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden("rwkv4-tiny")).unwrap();
    let (cpu, new) = (Cpu::new(Level::best(), 1), folder.path().join("new"));
    let how = Quantization { format: Q4, calibration: None };
    for stop_at in [0, 5, 30] {
        let mut calls = 0;
        let mut stop = |_: u64, _: u64| {
            calls += 1;
            if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert_eq!(quantize(&original, &new, how, &cpu, &mut stop).unwrap_err().to_string(), "cancelled");
        assert!(!new.exists());
    }
    let float = Quantization { format: F32, ..how };
    let message = quantize(&original, &new, float, &cpu, &mut quietly).unwrap_err().to_string();
    assert!(message.contains("option `dtype`: found f32, needed q8 or q4"), "{message}");
}

fn save(folder: &Path, tensors: &[Owned]) {
    let views: Vec<_> = tensors.iter().map(Owned::view).collect();
    save_safetensors(&folder.join("model.safetensors"), &views, &BTreeMap::new()).unwrap();
}

/// The tensors of a q4 model with one input kept apart, `blocks.1.att.key.weight`'s.
fn sound() -> (tempfile::TempDir, Vec<Owned>) {
    let folder = tempfile::tempdir().unwrap();
    quantized(&golden("rwkv4-tiny"), folder.path(), Q4, false);
    let mut all = tensors(&folder.path().join("model.safetensors"));
    let mut add = |name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>| {
        all.push(Owned { name: name.into(), dtype, shape: shape.to_vec(), bytes });
    };
    add(
        "blocks.1.att.key.weight.outliers",
        Dtype::I32,
        &[2],
        [3i32, 40].iter().flat_map(|i| i.to_le_bytes()).collect(),
    );
    add("blocks.1.att.key.weight.outlier_weight", Dtype::Bf16, &[64, 2], vec![0; 256]);
    save(folder.path(), &all);
    (folder, all)
}

/// The message with which the model is refused after a change, when it is opened or loaded.
fn changed(name: &str, change: impl FnOnce(&mut Owned)) -> String {
    let (folder, mut all) = sound();
    change(all.iter_mut().find(|t| t.name == name).unwrap());
    save(folder.path(), &all);
    match spikelet::model::Model::load(folder.path(), &LoadOptions::default()) {
        Ok(_) => panic!("{name}: not refused"),
        Err(error) => error.to_string(),
    }
}

const KEY: &str = "blocks.1.att.key.weight";

#[test]
fn broken_quantised_files_are_refused_by_name() {
    let (folder, _) = sound();
    load(folder.path(), LoadOptions::default());
    let numbers = |dtype: Dtype, values: &[f32]| -> Vec<u8> {
        assert_eq!(dtype, Dtype::Bf16);
        values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
    };
    let indices = |list: &[i32]| list.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>();
    type Change<'a> = Box<dyn FnOnce(&mut Owned) + 'a>;
    let cases: Vec<(String, Change<'_>, &str)> = vec![
        (KEY.into(), Box::new(|t| t.name = "other".into()), "tensor `blocks.1.att.key.weight`: it is missing"),
        (KEY.into(), Box::new(|t| t.dtype = Dtype::I8), "found type I8, needed U8, as the model is quantised"),
        (KEY.into(), Box::new(|t| t.shape = vec![32, 64]), "found shape [32, 64], needed [64, 32] (q4)"),
        (format!("{KEY}.scale"), Box::new(|t| t.name = "x".into()), ".att.key.weight.scale`: it is missing"),
        (format!("{KEY}.scale"), Box::new(|t| t.dtype = Dtype::F16), ".scale`: found type F16, needed BF16"),
        (format!("{KEY}.scale"), Box::new(|t| t.shape = vec![1, 64]), ".scale`: found shape [1, 64], needed [64, 1]"),
        (
            format!("{KEY}.scale"),
            Box::new(|t| t.bytes[6..8].copy_from_slice(&numbers(Dtype::Bf16, &[f32::NAN]))),
            ".scale`: found NaN at flat index 3, needed finite numbers below",
        ),
        (
            format!("{KEY}.scale"),
            Box::new(|t| t.bytes[0..2].copy_from_slice(&numbers(Dtype::Bf16, &[-1e37]))),
            ".scale`: found -",
        ),
        (
            "head.weight".into(),
            Box::new(|t| t.bytes[70] = 0x80),
            "`head.weight`: found -128 at flat index 70, needed codes",
        ),
        ("head.weight".into(), Box::new(|t| t.dtype = Dtype::U8), "`head.weight`: found type U8, needed I8"),
        ("emb.weight.scale".into(), Box::new(|t| t.name = "x".into()), "`emb.weight.scale`: it is missing"),
        (format!("{KEY}.outliers"), Box::new(|t| t.dtype = Dtype::F32), ".outliers`: found type F32, needed I32"),
        (format!("{KEY}.outliers"), Box::new(|t| t.shape = vec![1, 2]), ".outliers`: found shape [1, 2], needed [k]"),
        (format!("{KEY}.outliers"), Box::new(|t| t.name = "x".into()), ".outliers`: it is missing"),
        (format!("{KEY}.outlier_weight"), Box::new(|t| t.name = "x".into()), ".outlier_weight`: it is missing"),
        (
            format!("{KEY}.outliers"),
            Box::new(|t| t.bytes = indices(&[40, 3])),
            "found input 3 after 40, needed them ascending",
        ),
        (format!("{KEY}.outliers"), Box::new(|t| t.bytes = indices(&[3, 3])), "found input 3 after 3"),
        (
            format!("{KEY}.outliers"),
            Box::new(|t| t.bytes = indices(&[3, 64])),
            "found input 64, needed inputs from 0 to 63",
        ),
        (format!("{KEY}.outliers"), Box::new(|t| t.bytes = indices(&[-1, 3])), "found input -1, needed"),
        (format!("{KEY}.outlier_weight"), Box::new(|t| t.shape = vec![2, 64]), "found shape [2, 64], needed [64, 2]"),
        (
            format!("{KEY}.outlier_weight"),
            Box::new(|t| t.bytes[0..2].copy_from_slice(&numbers(Dtype::Bf16, &[f32::INFINITY]))),
            ".outlier_weight`: found inf at flat index 0, needed finite numbers",
        ),
        (format!("{KEY}.outliers"), Box::new(|t| t.name = "ln_out.weight.outliers".into()), "missing"),
    ];
    for (name, change, expected) in cases {
        let message = changed(&name, change);
        assert!(message.contains(expected), "{name}: {message}\nneeded {expected}");
        assert!(message.contains("tensor `"), "{message}");
    }
}

#[test]
fn what_the_configuration_says_must_be_so() {
    let (folder, _) = sound();
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let open = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Checkpoint::open(folder.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(config.contains(r#""format": "q4""#), "{config}");
    let message = open(&config.replace("q4", "q8")).unwrap_err();
    assert!(message.contains("quantization is q8, but `blocks.0.ffn.key.weight` holds U8, needed I8"), "{message}");
    open(r#"{"model_type": "rwkv4"}"#).unwrap();
    let all = tensors(&golden("rwkv4-tiny").join("model.safetensors"));
    save(folder.path(), &all);
    let message = open(&config).unwrap_err();
    assert!(message.contains("quantization is q4, but `blocks.0.ffn.key.weight` holds F32, needed U8"), "{message}");
}
