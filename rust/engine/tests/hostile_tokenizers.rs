//! Damaged tokenizer files are read or refused, without a panic and within bounded memory.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use spikelet::tokenizer::Tokenizer;
use spikelet::tokenizer::chars::Chars;
use spikelet::tokenizer::hf::HfTokenizer;
use spikelet::tokenizer::world::World;

/// A file with one of each part that the reader knows.
fn files() -> Vec<Value> {
    let bpe = json!({"type": "BPE", "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "##b": 4, "▁": 5}, "merges": [["a", "b"]], "unk_token": "<unk>",
        "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "dropout": null});
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5], ["b", -2.0], ["▁ab", -1.0]], "byte_fallback": false});
    let added = json!([{"id": 0, "content": "<unk>", "special": true, "normalized": false, "lstrip": true, "rstrip": true, "single_word": true}]);
    let normalizers = [
        Value::Null,
        json!({"type": "NFC"}),
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Precompiled", "precompiled_charsmap": "ALQCAACEAAAAAACAAQAAgMz8AgC4BQAA"}),
    ];
    let pre_tokenizers = [
        Value::Null,
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}),
        json!({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\s+|a(?!b)"}, "behavior": "Isolated", "invert": false},
            {"type": "FixedLength", "length": 2}, {"type": "Digits", "individual_digits": true}]}),
    ];
    let decoders = [
        json!({"type": "ByteLevel"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
        json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
    ];
    let mut files = Vec::new();
    for (number, normalizer) in normalizers.iter().enumerate() {
        for pre_tokenizer in &pre_tokenizers {
            for model in [&bpe, &unigram] {
                let decoder = &decoders[number % decoders.len()];
                files.push(json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}));
            }
        }
    }
    files
}

/// All places in a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, child)| {
            let place = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            out.push(place.clone());
            places(child, &place, out);
        }),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, child)| {
            let place = format!("{at}/{index}");
            out.push(place.clone());
            places(child, &place, out);
        }),
        _ => {}
    }
}

/// What a file that was read does with text: anything but panic.
fn exercise(tokenizer: &dyn Tokenizer) {
    for text in ["", "ab ba", " a<unk> b", "語🦀\u{0}\u{301}", "aab<unk>1 23"] {
        if let Ok(ids) = tokenizer.encode(text) {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            let _ = tokenizer.decode(&ids);
        }
        let _ = tokenizer.encode_ordinary(text);
    }
    let _ = (tokenizer.token_bytes(u32::MAX), tokenizer.decode(&[0, 1, 2, 3]), tokenizer.describe());
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![Just(0i64), Just(-1), Just(4_294_967_296), 0i64..10, any::<i64>()].prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof!["", "a", "##", "▁", "<unk>", "[a-z語(*+?]{0,4}", "ByteLevel|NFKD|Sequence|Lowercase|Nmt|Replace"]
            .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!({"Regex": "(a*)*b"})),
        Just(json!({"String": ""})),
    ]
}

/// The crate's own panics are caught; their messages would only clutter the output.
fn silently<T>(run: impl FnOnce() -> T) -> T {
    use std::sync::Once;
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let normal = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let theirs = info.location().is_some_and(|location| location.file().contains("tokenizers-"));
            if !theirs {
                normal(info);
            }
        }));
    });
    run()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn tokenizer_json_with_other_values(pick in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4)) {
        let mut file = pick.get(&files()).clone();
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&file, "", &mut all);
            if !all.is_empty() {
                *file.pointer_mut(&all[place.index(all.len())]).unwrap() = value;
            }
        }
        silently(|| if let Ok(tokenizer) = HfTokenizer::parse(Path::new("t.json"), file.to_string().as_bytes()) {
            exercise(&tokenizer);
        });
    }

    #[test]
    fn tokenizer_json_with_other_bytes(pick in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), end in any::<prop::sample::Index>()) {
        let mut bytes = pick.get(&files()).to_string().into_bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if end.index(3) == 0 {
            bytes.truncate(end.index(bytes.len()));
        }
        silently(|| if let Ok(tokenizer) = HfTokenizer::parse(Path::new("t.json"), &bytes) {
            exercise(&tokenizer);
        });
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        assert!(HfTokenizer::parse(Path::new("t.json"), &bytes).is_err());
        assert!(World::parse(Path::new("v.txt"), &bytes).is_err());
        assert!(Chars::parse(Path::new("chars.json"), &bytes).is_err());
    }
}

/// Deeply nested JSON does not overflow the stack.
#[test]
fn nesting_is_bounded() {
    for (open, close) in [("[", "]"), ("{\"model\":", "}"), ("{\"type\":\"Sequence\",\"decoders\":[", "]}")] {
        let json = format!("{{\"decoder\": {}1{} }}", open.repeat(100_000), close.repeat(100_000));
        assert!(HfTokenizer::parse(Path::new("t.json"), json.as_bytes()).is_err());
        assert!(Chars::parse(Path::new("chars.json"), json.as_bytes()).is_err());
    }
}
