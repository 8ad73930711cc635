//! Every form that a model's weights come in reads as the same model, and converting loses nothing.

mod files;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use files::{Owned, golden, legacy_pth_of, sample, tensors, zip_pth_of};
use spikelet::config::{ModelType, SpikeVariant};
use spikelet::weights::{Checkpoint, Dtype, OpenOptions, SafetensorsFile, convert, save_safetensors};

const MODELS: [&str; 4] = ["spikegpt-tiny", "spikegpt-tiny-realemb", "spikegpt-tiny-ffnpre", "rwkv4-tiny"];

fn quietly(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn assert_same(checkpoint: &Checkpoint, expected: &Path) {
    let expected = tensors(expected);
    assert_eq!(checkpoint.names().count(), expected.len());
    for tensor in expected {
        let view = checkpoint.get(&tensor.name).expect("the tensor");
        assert_eq!((view.dtype, view.shape), (tensor.dtype, &tensor.shape[..]), "{}", tensor.name);
        assert_eq!(view.bytes, tensor.bytes, "{}", tensor.name);
    }
}

#[test]
fn golden_models_open_with_their_sizes() {
    for name in MODELS {
        let checkpoint = Checkpoint::open(&golden(name)).expect(name);
        let config = checkpoint.config();
        assert_eq!((config.vocab_size, config.hidden_size), (256, 64));
        assert_eq!((config.num_hidden_layers, config.intermediate_size), (4, 256));
        assert_eq!(config.variant == SpikeVariant::RwkvFfnPre, name.ends_with("ffnpre"));
        assert_eq!(config.spike_embedding, name.starts_with("spikegpt") && !name.ends_with("realemb"));
        assert_eq!(checkpoint.dtype(), Dtype::F32);
        assert_same(&checkpoint, &golden(name).join("model.safetensors"));
        for tensor in checkpoint.names() {
            checkpoint.check_finite(&checkpoint.get(tensor).expect(tensor)).expect(tensor);
        }
        assert_eq!(checkpoint.vector("blocks.1.att.time_mix_k", 64).expect("a vector").len(), 64);
        assert!(checkpoint.expect("head.weight", &[256, 64]).is_ok());
        assert_eq!(checkpoint.generation_config().expect("none is fine"), None);
    }
}

#[test]
fn what_pytorch_wrote_reads_as_what_it_held() {
    for (file, expected) in [
        ("zip_f32.pth", "f32"),
        ("zip_f16.pth", "f16"),
        ("zip_bf16.pth", "bf16"),
        ("zip_nested.pth", "f32"),
        ("legacy_f32.pth", "f32"),
        ("legacy_f16.pth", "f16"),
        ("legacy_bf16.pth", "bf16"),
        ("legacy_nested.pth", "f32"),
    ] {
        let checkpoint = Checkpoint::open_with(&sample(file), Some(ModelType::Rwkv4)).expect(file);
        assert_eq!(checkpoint.config().vocab_size, 8);
        assert_same(&checkpoint, &sample(&format!("expected_{expected}.safetensors")));
    }
}

/// `.pth` to safetensors gives the golden file, byte for byte, and the same model by its hash.
#[test]
fn a_golden_model_survives_pth_and_back() {
    for name in MODELS {
        let original = Checkpoint::open(&golden(name)).expect(name);
        let golden_file = golden(name).join("model.safetensors");
        let bytes = std::fs::read(&golden_file).expect("the golden file");
        for pth in [zip_pth_of(&tensors(&golden_file)), legacy_pth_of(&tensors(&golden_file))] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("model.pth"), pth).expect("written");
            std::fs::copy(golden(name).join("config.json"), folder.path().join("config.json")).expect("copied");
            let checkpoint = Checkpoint::open(folder.path()).expect(name);
            let out = folder.path().join("out");
            convert(&checkpoint, &out, None, &mut quietly).expect("converted");
            assert!(std::fs::read(out.join("model.safetensors")).expect("written") == bytes, "{name}: bytes differ");
            let converted = Checkpoint::open(&out).expect("a model folder");
            assert_eq!(converted.config(), original.config());
            assert_eq!(converted.sha256().expect("a hash"), original.sha256().expect("a hash"));
        }
    }
}

#[test]
fn hugging_face_rwkv4_folder_reads_as_the_authors() {
    let authors = golden("rwkv4-tiny").join("model.safetensors");
    let rename = |name: &str| match name {
        "head.weight" => name.to_owned(),
        "emb.weight" => "rwkv.embeddings.weight".to_owned(),
        _ => format!("rwkv.{name}")
            .replace(".att.", ".attention.")
            .replace(".ffn.", ".feed_forward.")
            .replace(".ln0.", ".pre_ln.")
            .replace("time_mix_k", "time_mix_key")
            .replace("time_mix_v", "time_mix_value")
            .replace("time_mix_r", "time_mix_receptance"),
    };
    let renamed: Vec<Owned> = tensors(&authors).into_iter().map(|t| Owned { name: rename(&t.name), ..t }).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let config = r#"{"architectures": ["RwkvForCausalLM"], "attention_hidden_size": 64, "bos_token_id": 0, "context_length": 1024,
        "eos_token_id": 0, "hidden_size": 64, "intermediate_size": 256, "layer_norm_epsilon": 1e-05, "model_type": "rwkv",
        "num_hidden_layers": 4, "rescale_every": 6, "tie_word_embeddings": false, "torch_dtype": "float32", "use_cache": true,
        "vocab_size": 256}"#;
    std::fs::write(folder.path().join("config.json"), config).expect("written");
    // As shards with an index.
    let (first, second) = renamed.split_at(40);
    let mut map = BTreeMap::new();
    for (i, shard) in [first, second].into_iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        let views: Vec<_> = shard.iter().map(Owned::view).collect();
        save_safetensors(&folder.path().join(&file), &views, &BTreeMap::new()).expect("saved");
        map.extend(shard.iter().map(|t| (t.name.clone(), file.clone())));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("a Hugging Face folder");
    assert_eq!(checkpoint.config().model_type, ModelType::Rwkv4);
    assert_eq!(checkpoint.config().rescale_every, 0);
    assert_same(&checkpoint, &authors);
    assert_eq!(checkpoint.inspect().files.len(), 2);
    assert_eq!(checkpoint.inspect().tensors[0].stored_name, "rwkv.blocks.0.attention.key.weight");
}

#[test]
fn pytorch_bin_folders_read_too() {
    let authors = golden("rwkv4-tiny").join("model.safetensors");
    let all = tensors(&authors);
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
    write("config.json", br#"{"model_type": "rwkv"}"#);
    write("pytorch_model.bin", &legacy_pth_of(&all));
    assert_same(&Checkpoint::open(folder.path()).expect("one file"), &authors);
    std::fs::remove_file(folder.path().join("pytorch_model.bin")).expect("removed");
    let (first, second) = all.split_at(30);
    let mut map = BTreeMap::new();
    for (shard, name) in [(first, "pytorch_model-1-of-2.bin"), (second, "pytorch_model-2-of-2.bin")] {
        write(name, &zip_pth_of(shard));
        map.extend(shard.iter().map(|t| (&t.name, name)));
    }
    write("pytorch_model.bin.index.json", serde_json::json!({ "weight_map": map }).to_string().as_bytes());
    assert_same(&Checkpoint::open(folder.path()).expect("shards"), &authors);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let mut all = tensors(&golden("rwkv4-tiny").join("model.safetensors"));
    all.retain(|t| t.name != "head.weight");
    let folder = tempfile::tempdir().expect("a folder");
    let views: Vec<_> = all.iter().map(Owned::view).collect();
    save_safetensors(&folder.path().join("model.safetensors"), &views, &BTreeMap::new()).expect("saved");
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "rwkv4", "tie_word_embeddings": true}"#)
        .expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("tied");
    assert_eq!(checkpoint.get("head.weight").expect("head").bytes, checkpoint.get("emb.weight").expect("emb").bytes);
}

#[test]
fn without_a_config_sizes_are_inferred_and_the_architecture_is_asked_for() {
    let file = golden("spikegpt-tiny-ffnpre").join("model.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let alone = folder.path().join("model.safetensors");
    std::fs::copy(file, &alone).expect("copied");
    let message = Checkpoint::open(&alone).expect_err("cannot be known").to_string();
    assert!(message.starts_with("option `model_type`: found nothing, needed spikegpt or rwkv4"), "{message}");
    let message = Checkpoint::open_with(&alone, Some(ModelType::SpikeGpt)).expect_err("cannot be known").to_string();
    assert!(message.starts_with("option `spike_embedding`: found nothing, needed true if"), "{message}");
    let options = OpenOptions { model_type: Some(ModelType::SpikeGpt), spike_embedding: Some(true) };
    let checkpoint = Checkpoint::open_with(&alone, options).expect("told");
    let config = checkpoint.config();
    assert_eq!((config.vocab_size, config.hidden_size, config.num_hidden_layers), (256, 64, 4));
    assert_eq!((config.variant, config.spike_embedding), (SpikeVariant::RwkvFfnPre, true));
    let message = Checkpoint::open_with(&alone, Some(ModelType::Rwkv4)).expect_err("no such variant").to_string();
    assert!(message.contains("RWKV-4 with `blocks.0.ffnPre` is not supported"), "{message}");
    let message = Checkpoint::open_with(&golden("rwkv4-tiny"), Some(ModelType::SpikeGpt))
        .expect_err("said otherwise")
        .to_string();
    assert!(message.contains("option `model_type`: found spikegpt, needed rwkv4, as the configuration"), "{message}");
}

#[test]
fn converting_rounds_matrices_and_keeps_vectors() {
    let original = Checkpoint::open(&golden("spikegpt-tiny")).expect("golden");
    let folder = tempfile::tempdir().expect("a folder");
    for (dtype, tolerance) in [(Dtype::Bf16, 1.0 / 256.0), (Dtype::F16, 1.0 / 2048.0)] {
        convert(&original, folder.path(), Some(dtype), &mut quietly).expect("converted");
        let converted = Checkpoint::open(folder.path()).expect("a model folder");
        assert_eq!(converted.dtype(), dtype);
        assert_eq!(converted.config(), original.config());
        for name in original.names() {
            let (a, b) = (original.get(name).expect(name), converted.get(name).expect(name));
            assert_eq!(a.shape, b.shape);
            if b.dtype == Dtype::F32 {
                assert_eq!(a.bytes, b.bytes, "{name}");
                continue;
            }
            for (x, y) in a.to_f32().into_iter().zip(b.to_f32()) {
                assert!((x - y).abs() <= x.abs() * tolerance + 1e-7, "{name}: {x} became {y}");
                assert!(name != "emb.weight" || (x >= 0.0) == (y >= 0.0), "{name}: {x} became {y}: another spike");
            }
        }
    }
}

#[test]
fn progress_rises_to_the_size_of_the_weights() {
    let original = Checkpoint::open(&golden("rwkv4-tiny")).expect("golden");
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = Vec::new();
    let mut progress = |done, total| {
        seen.push((done, total));
        ControlFlow::Continue(())
    };
    convert(&original, &folder.path().join("new"), None, &mut progress).expect("converted");
    assert!(seen.is_sorted());
    let parameters = original.inspect().parameters;
    assert_eq!(seen.last(), Some(&(parameters * 4, parameters * 4)));
}

#[test]
fn tokenizer_files_go_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::create_dir(&from).expect("made");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("rwkv4-tiny").join(file), from.join(file)).expect("copied");
    }
    for file in ["tokenizer.json", "rwkv_vocab_v20230424.txt", "generation_config.json", "training.log"] {
        std::fs::write(from.join(file), "{}").expect("written");
    }
    convert(&Checkpoint::open(&from).expect("a model"), &to, None, &mut quietly).expect("converted");
    let mut found: Vec<_> =
        std::fs::read_dir(&to).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
    found.sort();
    let expected =
        ["config.json", "generation_config.json", "model.safetensors", "rwkv_vocab_v20230424.txt", "tokenizer.json"];
    assert_eq!(found, expected);
}

#[test]
fn a_saved_file_reads_back_with_its_notes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.safetensors");
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensor = Owned { name: "a \"quoted\" name".into(), dtype: Dtype::F32, shape: vec![3, 1], bytes };
    let notes = BTreeMap::from([("model".to_owned(), "é\n".to_owned())]);
    save_safetensors(&path, &[tensor.view()], &notes).expect("saved");
    let file = SafetensorsFile::open(&path).expect("readable");
    assert_eq!(file.metadata(), &notes);
    assert_eq!(file.get("a \"quoted\" name").expect("there").to_f32(), [1.0, 2.0, 3.0]);
    let message = file.get("other").expect_err("not there").to_string();
    assert!(message.contains("tensor `other`: the file has no such tensor"), "{message}");
    let twice = save_safetensors(&path, &[tensor.view(), tensor.view()], &notes).expect_err("twice").to_string();
    assert!(twice.contains("used twice"), "{twice}");
}

#[test]
fn facts_of_a_model() {
    let facts = Checkpoint::open(&golden("spikegpt-tiny")).expect("golden").inspect();
    assert_eq!(facts.state_bytes, 7 * 64 * 4 * 4);
    assert_eq!(facts.parameters * 4, facts.memory[0].1);
    assert!(facts.memory[1].1 < facts.memory[0].1 * 6 / 10);
    assert_eq!(facts.memory[1].1, facts.memory[2].1);
}

#[test]
fn a_checkpoint_is_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
    shared::<SafetensorsFile>();
}
