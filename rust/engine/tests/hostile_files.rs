//! Broken and hostile weight files are refused with a message that names the cause; nothing in them is ever run.
//!
//! `.pth` files have tests of their own: `hostile_pickles.rs` and `hostile_archives.rs`.

mod files;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use files::{Owned, golden, raw_safetensors, tensors};
use spikelet::config::ModelType;
use spikelet::weights::{Checkpoint, Dtype, SafetensorsFile, convert, save_safetensors};

/// The message with which a file of these bytes is refused.
fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    let error = Checkpoint::open_with(&path, Some(ModelType::Rwkv4)).expect_err("must be refused");
    error.to_string().replace(&folder.path().display().to_string(), "")
}

fn safetensors_refused(bytes: &[u8]) -> String {
    refused("m.safetensors", bytes)
}

/// A model folder with changed tensors and config.
fn folder_with(config: &str, tensors: &[Owned]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let views: Vec<_> = tensors.iter().map(Owned::view).collect();
    save_safetensors(&folder.path().join("model.safetensors"), &views, &BTreeMap::new()).expect("saved");
    std::fs::write(folder.path().join("config.json"), config).expect("written");
    folder
}

fn golden_tensors() -> Vec<Owned> {
    tensors(&golden("rwkv4-tiny").join("model.safetensors"))
}

const RWKV4: &str = r#"{"model_type": "rwkv4"}"#;

/// The message with which the golden model is refused after a change.
fn changed(config: &str, change: impl FnOnce(&mut Vec<Owned>)) -> String {
    let mut all = golden_tensors();
    change(&mut all);
    let folder = folder_with(config, &all);
    Checkpoint::open(folder.path()).expect_err("must be refused").to_string()
}

fn find<'a>(tensors: &'a mut [Owned], name: &str) -> &'a mut Owned {
    tensors.iter_mut().find(|t| t.name == name).expect("a tensor of the golden model")
}

fn quietly(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn truncated_files() {
    let whole = std::fs::read(golden("rwkv4-tiny").join("model.safetensors")).expect("golden");
    let message = safetensors_refused(&whole[..whole.len() - 1]);
    let expected = format!("the file is truncated: found {} bytes, needed {}", whole.len() - 1, whole.len());
    assert!(message.contains(&expected), "{message}");
    assert!(safetensors_refused(&whole[..100]).contains("the file is truncated: found 100 bytes, needed"));
    assert!(safetensors_refused(&whole[..7]).contains("the file is truncated: found 7 bytes, needed 8"));
    assert!(safetensors_refused(b"").contains("the file is empty"));
    assert!(safetensors_refused(b"GGUF\x03\0\0\0").contains("it is a GGUF file; needed safetensors or .pth"));
    assert!(safetensors_refused(&[&whole[..], b"x"].concat()).contains("1 bytes at the end belong to no tensor"));
}

#[test]
fn headers_that_lie() {
    let mut large = vec![0; 64];
    large[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let message = safetensors_refused(&large);
    assert!(
        message.contains("not a safetensors file: its header claims 18446744073709551615 bytes, at most 16777216"),
        "{message}"
    );
    large[..8].copy_from_slice(&(1u64 << 20).to_le_bytes());
    assert!(safetensors_refused(&large).contains("the file is truncated"));
    for (header, data, expected) in [
        ("{", 0, "its header is not valid: EOF while parsing"),
        ("[]", 0, "its header is not valid: invalid type"),
        (r#"{"a": 3}"#, 0, "its header is not valid"),
        (
            r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#,
            12,
            "tensor `b`: its bytes 4..12 overlap those of another tensor",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}"#,
            12,
            "tensor `b`: its bytes 8..12 leave a gap before them",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [18446744073709551615, 3]}}"#,
            4,
            "tensor `a`: its offsets 18446744073709551615..3 do not fit F32 values of shape [1], which need 4 bytes",
        ),
        (
            r#"{"a": {"dtype": "U8", "shape": [18446744073709551607], "data_offsets": [0, 18446744073709551607]}}"#,
            4,
            "the file is truncated: found",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
            0,
            "tensor `a`: its shape [4294967296, 4294967296] overflows",
        ),
        (
            r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
            4,
            "its header is not valid: invalid value",
        ),
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#, 4, "which need 8 bytes"),
        (
            r#"{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}"#,
            1,
            "tensor `a`: its type F4 is not supported",
        ),
        (
            r#"{"a": {"dtype": "U8", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 1]}}"#,
            1,
            "tensor `a`: found 9 dimensions, at most 8 are read",
        ),
        (
            r#"{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}"#,
            0,
            "`a` appears twice",
        ),
        (r#"{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], "x": 1}}"#, 0, "unknown field `x`"),
    ] {
        let message = safetensors_refused(&raw_safetensors(header, &vec![0; data]));
        assert!(message.contains(expected), "{header}\n{message}");
    }
}

#[test]
fn tensors_that_are_not_those_of_the_model() {
    let message = changed(RWKV4, |all| find(all, "blocks.2.att.key.weight").name = "blocks.2.att.kee.weight".into());
    assert!(
        message.contains(
            "tensor `blocks.2.att.key.weight`: it is missing; perhaps misnamed: found `blocks.2.att.kee.weight`"
        ),
        "{message}"
    );
    let message = changed(RWKV4, |all| all.retain(|t| t.name != "ln_out.bias"));
    assert!(message.contains("tensor `ln_out.bias`: it is missing among the 77 tensors found"), "{message}");
    let message = changed(RWKV4, |all| find(all, "blocks.1.ffn.key.weight").shape = vec![64, 256]);
    assert!(message.contains("tensor `blocks.1.ffn.key.weight`: found shape [64, 256], needed [256, 64]"), "{message}");
    let message = changed(RWKV4, |all| find(all, "blocks.1.ln1.weight").shape = vec![8, 8]);
    assert!(message.contains("tensor `blocks.1.ln1.weight`: found shape [8, 8], needed [64]"), "{message}");
    let message = changed(RWKV4, |all| find(all, "blocks.1.ln1.weight").dtype = Dtype::I32);
    assert!(
        message.contains("tensor `blocks.1.ln1.weight`: found type I32, needed F32, BF16, F16 or F64"),
        "{message}"
    );
    let message = changed(RWKV4, |all| {
        let extra = Owned { name: "blocks.0.att.extra".into(), ..all[0].clone() };
        all.push(extra);
    });
    assert!(message.contains("tensor `blocks.0.att.extra`: found, but a rwkv4 model has no such tensor"), "{message}");
    let message = changed(RWKV4, |all| {
        let extra = Owned { name: "module.emb.weight".into(), ..all[0].clone() };
        all.push(extra);
    });
    assert!(message.contains("found twice, as `emb.weight` and as `module.emb.weight`"), "{message}");
    let message = changed(RWKV4, |all| find(all, "ln_out.bias").name = "blocks.16000000.x".into());
    assert!(message.contains("too few for 16000001 blocks"), "{message}");
    let message = changed(RWKV4, |all| find(all, "ln_out.bias").name = format!("blocks.{}.x", usize::MAX));
    assert!(message.contains("too few for"), "{message}");
}

#[test]
fn values_that_are_not_numbers() {
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut all = golden_tensors();
        find(&mut all, "blocks.3.att.time_decay").bytes[20..24].copy_from_slice(&bad.to_le_bytes());
        find(&mut all, "head.weight").bytes[4000..4004].copy_from_slice(&bad.to_le_bytes());
        let folder = folder_with(RWKV4, &all);
        let checkpoint = Checkpoint::open(folder.path()).expect("names and shapes are right");
        let message = checkpoint.vector("blocks.3.att.time_decay", 64).expect_err("not finite").to_string();
        let expected = format!(
            "tensor `blocks.3.att.time_decay`: found {shown} at flat index 5 of shape [64], needed finite numbers"
        );
        assert!(message.contains(&expected), "{message}");
        let view = checkpoint.get("head.weight").expect("there");
        let message = checkpoint.check_finite(&view).expect_err("not finite").to_string();
        assert!(message.contains(&format!("tensor `head.weight`: found {shown} at flat index 1000")), "{message}");
        let message =
            convert(&checkpoint, &folder.path().join("out"), None, &mut quietly).expect_err("not finite").to_string();
        assert!(message.contains("needed finite numbers"), "{message}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn values_too_large_for_f16() {
    let mut all = golden_tensors();
    find(&mut all, "head.weight").bytes[4000..4004].copy_from_slice(&1e5f32.to_le_bytes());
    let folder = folder_with(RWKV4, &all);
    let checkpoint = Checkpoint::open(folder.path()).expect("valid");
    let out = folder.path().join("out");
    let message = convert(&checkpoint, &out, Some(Dtype::F16), &mut quietly).expect_err("too large").to_string();
    assert!(
        message.contains("tensor `head.weight`: 100000 at flat index 1000 is too large for F16 (at most 65504"),
        "{message}"
    );
    assert!(!out.exists());
    convert(&checkpoint, &out, Some(Dtype::Bf16), &mut quietly).expect("bf16 has the range of f32");
    let message = convert(&checkpoint, &out, Some(Dtype::I8), &mut quietly).expect_err("not a weight type").to_string();
    assert!(message.contains("option `dtype`: found I8, needed F32, BF16 or F16"), "{message}");
}

#[test]
fn configurations_that_contradict_the_tensors() {
    for (config, expected) in [
        (
            r#"{"model_type": "rwkv4", "vocab_size": 300}"#,
            "vocab_size is 300, but the model has 256 rows of `emb.weight`",
        ),
        (r#"{"model_type": "rwkv4", "hidden_size": 32}"#, "hidden_size is 32, but the model has 64 columns"),
        (r#"{"model_type": "rwkv4", "num_hidden_layers": 12}"#, "num_hidden_layers is 12, but the model has 4 blocks"),
        (
            r#"{"model_type": "rwkv4", "intermediate_size": 224}"#,
            "intermediate_size is 224, but the model has 256 rows",
        ),
        (
            r#"{"model_type": "rwkv4", "attention_hidden_size": 32}"#,
            "attention_hidden_size is 32: this version needs it to equal",
        ),
        (r#"{"model_type": "rwkv4", "eos_token_id": 256}"#, "eos_token_id is 256, but the vocabulary has 256 tokens"),
        (
            r#"{"model_type": "spikegpt", "variant": "rwkv-ffnpre", "spike_embedding": true}"#,
            "variant is \"rwkv-ffnpre\", but the tensors are those of \"rwkv\"",
        ),
        (r#"{"model_type": "rwkv4", "alibi": true}"#, "unknown key `alibi`"),
        (r#"{"model_type": "qwen9"}"#, "model_type `qwen9` is not supported: unknown architecture"),
        (r#"{"model_type": "rwkv6"}"#, "model_type `rwkv6` is not supported: not yet by this version"),
        (r#"{}"#, "option `model_type`: found nothing, needed spikegpt or rwkv4"),
        (r#"{"#, "config.json: not valid JSON"),
    ] {
        let message = changed(config, |_| {});
        assert!(message.contains(expected), "{config}\n{message}");
    }
    let message = changed(r#"{"model_type": "rwkv4", "tie_word_embeddings": true}"#, |_| {});
    assert!(
        message.contains("tensor `head.weight`: it differs from `emb.weight`, but tie_word_embeddings is true"),
        "{message}"
    );
    let message = changed(&format!("{{\"_\": \"{}\"}}", "x".repeat(2 << 20)), |_| {});
    assert!(message.contains("config.json: the file is larger than 1048576 bytes"), "{message}");
}

#[test]
fn architectures_that_this_version_does_not_run() {
    for (name, architecture) in [
        ("blocks.0.att.r_k", "RWKV-7"),
        ("blocks.0.att.time_maa_x", "RWKV-6"),
        ("blocks.0.att.ln_x.weight", "RWKV-5"),
        ("rwkv.blocks.0.attention.ln_x.weight", "RWKV-5"),
        ("transformer.h.0.attn.c_attn.weight", "GPT-2"),
        ("h.0.attn.c_attn.weight", "GPT-2"),
        ("model.layers.0.self_attn.q_proj.weight", "a transformer of the Llama family"),
    ] {
        let header = format!(r#"{{"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}"#);
        let message = safetensors_refused(&raw_safetensors(&header, &[0; 4]));
        assert!(message.contains(&format!("{architecture} (it holds `")), "{message}");
        assert!(message.contains("is not supported: not yet by this version"), "{message}");
    }
    let header = r#"{"encoder.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
    let message = safetensors_refused(&raw_safetensors(header, &[0; 4]));
    assert!(
        message.contains("an unknown architecture is not supported: found 1 tensors (encoder.weight…)"),
        "{message}"
    );
}

#[test]
fn folders_without_clear_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = || Checkpoint::open(folder.path()).expect_err("must be refused").to_string();
    assert!(message().contains("the folder holds no weights: needed model.safetensors"));
    std::fs::write(folder.path().join("a.pth"), "x").expect("written");
    std::fs::write(folder.path().join("b.pth"), "x").expect("written");
    assert!(message().contains("several files of weights (a.pth, b.pth): give the path of one"));
    std::fs::create_dir(folder.path().join("model.safetensors")).expect("made");
    assert!(
        message().contains("model.safetensors: not a regular file") || message().contains("directory"),
        "{}",
        message()
    );
    let message = Checkpoint::open(Path::new("/no/such/model")).expect_err("absent").to_string();
    assert!(message.contains("/no/such/model: No such file or directory"), "{message}");
}

#[test]
fn indexes_that_lie() {
    let tensor = golden_tensors().swap_remove(0);
    let folder = tempfile::tempdir().expect("a folder");
    save_safetensors(&folder.path().join("s.safetensors"), &[tensor.view()], &BTreeMap::new()).expect("saved");
    for (index, expected) in [
        (
            r#"{"weight_map": {"x": "s.safetensors"}}"#.to_owned(),
            "tensor `x`: the index says that this file holds it, but it does not",
        ),
        (
            format!(r#"{{"weight_map": {{"{}": "t.safetensors"}}}}"#, tensor.name),
            "t.safetensors: No such file or directory",
        ),
        (r#"{"weight_map": {"x": "../s.safetensors"}}"#.to_owned(), "needed the name of a file in the same folder"),
        (r#"{"weight_map": {}}"#.to_owned(), "the index names no tensors"),
        (r#"{"weight_map": 3}"#.to_owned(), "not a valid index"),
    ] {
        std::fs::write(folder.path().join("model.safetensors.index.json"), &index).expect("written");
        let message = Checkpoint::open(folder.path()).expect_err("must be refused").to_string();
        assert!(message.contains(expected), "{index}\n{message}");
    }
}

#[test]
fn a_generation_config_of_another_vocabulary() {
    let folder = folder_with(RWKV4, &golden_tensors());
    let write = |text: &str| std::fs::write(folder.path().join("generation_config.json"), text).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("valid");
    write(r#"{"eos_token_id": [0, 256]}"#);
    let message = checkpoint.generation_config().expect_err("no such token").to_string();
    assert!(message.contains("eos_token_id is 256, but the vocabulary has 256 tokens"), "{message}");
    write(r#"{"temperature": -1}"#);
    let message = checkpoint.generation_config().expect_err("no such temperature").to_string();
    assert!(message.contains("generation_config.json: key `temperature`: found -1"), "{message}");
}

#[test]
fn a_file_of_other_tensors_opens_as_tensors_only() {
    let path = golden("rwkv4-tiny").join("expected.safetensors");
    assert!(SafetensorsFile::open(&path).expect("tensors").get("ids").is_ok());
    let message = Checkpoint::open(&path).expect_err("not a model").to_string();
    assert!(message.contains("an unknown architecture"), "{message}");
}
