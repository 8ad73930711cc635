//! `load_tokenizer` finds the tokenizer of a folder, says what it looked for, and refuses one of another model.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::json;
use spikelet::Error;
use spikelet::config::{ModelConfig, ModelType, Neuron, SpikeVariant};
use spikelet::tokenizer::load_tokenizer;
use tempfile::TempDir;

fn config(vocab_size: usize, tokenizer_class: Option<&str>) -> ModelConfig {
    ModelConfig {
        model_type: ModelType::Rwkv4,
        vocab_size,
        hidden_size: 8,
        attention_hidden_size: 8,
        num_hidden_layers: 1,
        intermediate_size: 32,
        context_length: None,
        layer_norm_epsilon: 1e-5,
        rescale_every: 0,
        spike_embedding: false,
        variant: SpikeVariant::Rwkv,
        neuron: Neuron::None,
        bos_token_id: None,
        eos_token_id: None,
        tokenizer_class: tokenizer_class.map(str::to_owned),
        quantization: None,
    }
}

const VOCAB: &str = r#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#;
const MERGES: &str = "#version: 0.2\na b\n";

fn hf() -> String {
    let added =
        json!([{"id": 3, "content": "</s>", "special": true}, {"id": 4, "content": "<|im_end|>", "special": true}]);
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
    json!({"added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}).to_string()
}

fn world() -> String {
    (0..=255u8).map(|byte| format!("{} b'\\x{byte:02x}' 1\n", u32::from(byte) + 1)).collect()
}

fn write(folder: &TempDir, files: &[(&str, &str)]) {
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
}

fn described(path: &Path, config: Option<&ModelConfig>) -> String {
    load_tokenizer(path, config).unwrap().describe()
}

#[test]
fn the_first_kind_in_order_is_taken() {
    let folder = TempDir::new().unwrap();
    let bytes = config(256, Some("bytes"));
    assert_eq!(described(folder.path(), Some(&bytes)), "bytes, 256 tokens");
    write(&folder, &[("vocab.json", VOCAB)]);
    assert_eq!(described(folder.path(), Some(&bytes)), "bytes, 256 tokens");
    write(&folder, &[("merges.txt", MERGES)]);
    assert_eq!(described(folder.path(), None), "Hugging Face BPE, 4 tokens, 1 of them special");
    write(&folder, &[("rwkv_vocab_v20230424.txt", &world())]);
    assert_eq!(described(folder.path(), None), "RWKV World, 257 tokens");
    write(&folder, &[("20B_tokenizer.json", &hf())]);
    assert_eq!(described(folder.path(), None), "Hugging Face BPE, 5 tokens, 2 of them special");
    write(&folder, &[("tokenizer.json", "{")]);
    let message = load_tokenizer(folder.path(), None).err().unwrap().to_string();
    assert!(message.contains("tokenizer.json: is not JSON"), "{message}");
}

#[test]
fn files_are_loaded_by_their_name() {
    let folder = TempDir::new().unwrap();
    write(
        &folder,
        &[
            ("encoder.json", VOCAB),
            ("vocab.bpe", MERGES),
            ("my.json", &hf()),
            ("my.txt", &world()),
            ("chars.json", r#"["a"]"#),
        ],
    );
    for (name, kind) in [
        ("encoder.json", "Hugging Face BPE, 4"),
        ("vocab.bpe", "Hugging Face BPE, 4"),
        ("my.json", "Hugging Face BPE, 5"),
        ("my.txt", "RWKV World"),
        ("chars.json", "characters, 1"),
    ] {
        let found = described(&folder.path().join(name), None);
        assert!(found.starts_with(kind), "{name}: {found}");
    }
    write(&folder, &[("notes.md", "")]);
    let message = load_tokenizer(&folder.path().join("notes.md"), None).err().unwrap().to_string();
    assert!(message.contains("not a tokenizer by its name"), "{message}");
    let missing = load_tokenizer(&folder.path().join("none.json"), None);
    assert!(matches!(missing, Err(Error::Io { .. })));
    fs::remove_file(folder.path().join("vocab.bpe")).unwrap();
    assert!(matches!(load_tokenizer(&folder.path().join("encoder.json"), None), Err(Error::Io { .. })));
}

#[test]
fn the_tokenizer_of_a_weight_file_lies_beside_it() {
    let folder = TempDir::new().unwrap();
    write(&folder, &[("model.pth", ""), ("tokenizer.json", &hf())]);
    assert!(described(&folder.path().join("model.pth"), None).starts_with("Hugging Face"));
}

#[test]
fn chars_need_their_list() {
    let folder = TempDir::new().unwrap();
    let config = config(2, Some("chars"));
    assert!(
        matches!(load_tokenizer(folder.path(), Some(&config)), Err(Error::Io { path, .. }) if path.ends_with("chars.json"))
    );
    write(&folder, &[("chars.json", r#"["a", "b"]"#)]);
    assert_eq!(load_tokenizer(folder.path(), Some(&config)).unwrap().encode("ba").unwrap(), [1, 0]);
}

#[test]
fn what_was_looked_for_is_listed() {
    let folder = TempDir::new().unwrap();
    let message =
        load_tokenizer(folder.path(), Some(&config(65_536, Some("GPTNeoXTokenizer")))).err().unwrap().to_string();
    for part in [
        "tokenizer.json",
        "rwkv_vocab_*.txt",
        "vocab.json with merges.txt",
        "GPTNeoXTokenizer",
        "rwkv_vocab_v20230424.txt",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    write(&folder, &[("rwkv_vocab_a.txt", ""), ("rwkv_vocab_b.txt", "")]);
    let message = load_tokenizer(folder.path(), None).err().unwrap().to_string();
    assert!(
        message.contains("several") && message.contains("rwkv_vocab_a.txt") && message.contains("rwkv_vocab_b.txt"),
        "{message}"
    );
}

#[test]
fn a_tokenizer_of_another_vocabulary_size_is_refused() {
    let folder = TempDir::new().unwrap();
    write(&folder, &[("tokenizer.json", &hf())]);
    for size in [4, 69, 50_277] {
        let error = load_tokenizer(folder.path(), Some(&config(size, None))).err().unwrap();
        let message = error.to_string();
        assert!(
            matches!(error, Error::Tokenizer { .. })
                && message.contains("has 5 ids")
                && message.contains(&size.to_string()),
            "{message}"
        );
    }
    let padded = load_tokenizer(folder.path(), Some(&config(64, None))).unwrap();
    assert_eq!(padded.vocab_size(), 64);
    assert_eq!(padded.token_bytes(63).unwrap(), b"");
    assert!(matches!(padded.token_bytes(64), Err(Error::TokenId { id: 64, vocab_size: 64 })));
}

#[test]
fn the_end_of_text_is_the_most_explicit_one() {
    let folder = TempDir::new().unwrap();
    write(&folder, &[("tokenizer.json", &hf())]);
    assert_eq!(load_tokenizer(folder.path(), None).unwrap().eos_id(), Some(3));
    write(&folder, &[("tokenizer_config.json", r#"{"eos_token": {"content": "<|im_end|>"}}"#)]);
    assert_eq!(load_tokenizer(folder.path(), None).unwrap().eos_id(), Some(4));
    write(&folder, &[("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#)]);
    assert_eq!(load_tokenizer(folder.path(), None).unwrap().eos_id(), Some(4));
    let chosen = ModelConfig { eos_token_id: Some(1), ..config(5, None) };
    assert_eq!(load_tokenizer(folder.path(), Some(&chosen)).unwrap().eos_id(), Some(1));
    let outside = ModelConfig { eos_token_id: Some(5), ..config(5, None) };
    assert!(matches!(load_tokenizer(folder.path(), Some(&outside)), Err(Error::TokenId { id: 5, vocab_size: 5 })));
}

/// Equal files have equal fingerprints, others not.
#[test]
fn fingerprints_tell_tokenizers_apart() {
    let folder = TempDir::new().unwrap();
    write(
        &folder,
        &[
            ("a.json", &hf()),
            ("b.json", &hf()),
            ("c.json", &hf().replace("im_end", "im_fin")),
            ("vocab.json", VOCAB),
            ("merges.txt", MERGES),
            ("w.txt", &world()),
        ],
    );
    let of = |name: &str| load_tokenizer(&folder.path().join(name), None).unwrap().fingerprint();
    assert_eq!(of("a.json"), of("b.json"));
    let mut all = ["a.json", "c.json", "vocab.json", "w.txt"].map(of).to_vec();
    assert!(all.iter().all(|hash| hash.len() == 64));
    all.dedup();
    assert_eq!(all.len(), 4);
}
