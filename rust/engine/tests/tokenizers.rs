//! Tokenizers give the ids that their originals give, and text comes back from ids.
//!
//! Tests on published vocabularies need `shared/data` beside the repository and pass without looking where it is absent.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use spikelet::tokenizer::hf::HfTokenizer;
use spikelet::tokenizer::{StreamDecoder, Tokenizer, load_tokenizer};

/// A file of the shared data, unpacked, if it is there.
fn shared(path: &str) -> Option<Vec<u8>> {
    let bytes = fs::read(shared_path(path)).ok()?;
    if !path.ends_with(".gz") {
        return Some(bytes);
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    Some(unpacked)
}

fn shared_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path)
}

fn gpt2() -> Option<Arc<dyn Tokenizer>> {
    let path = shared_path("tokenizers/gpt2_vocab.json");
    path.is_file().then(|| load_tokenizer(&path, None).unwrap())
}

fn neox() -> Option<Arc<dyn Tokenizer>> {
    let json = shared("tokenizers/20B_tokenizer.json.gz")?;
    Some(Arc::new(HfTokenizer::parse(Path::new("20B_tokenizer.json"), &json).unwrap()))
}

fn world() -> Option<Arc<dyn Tokenizer>> {
    let path = shared_path("tokenizers/rwkv_vocab_v20230424.txt");
    path.is_file().then(|| load_tokenizer(&path, None).unwrap())
}

/// Text, its GPT-2 ids and its NeoX ids, by Python's `tokenizers` 0.23.3.
#[rustfmt::skip]
const HARD: &[(&str, &[u32], &[u32])] = &[
    ("", &[], &[]),
    (" ", &[220], &[209]),
    ("Hello world", &[15496, 995], &[12092, 1533]),
    ("  two  spaces\n\n\ttab \n", &[220, 734, 220, 9029, 628, 197, 8658, 220, 198], &[50276, 9389, 50276, 31748, 535, 186, 8476, 2490]),
    ("I'll've we'd 's 'S", &[40, 1183, 1053, 356, 1549, 705, 82, 705, 50], &[42, 1833, 1849, 359, 1871, 686, 84, 686, 52]),
    ("\u{a0}nbsp\u{3000}ideographic\u{2028}line\u{85}next", &[1849, 77, 24145, 5099, 222, 485, 6826, 447, 101, 1370, 126, 227, 19545], &[575, 6732, 19409, 504, 5576, 40702, 1282, 16643, 8384]),
    ("\u{1f980}\u{1f389}\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}\u{1f466}\u{1f1e9}\u{1f1ea}", &[8582, 99, 222, 8582, 236, 231, 41840, 101, 447, 235, 41840, 102, 447, 235, 41840, 100, 447, 235, 41840, 99, 8582, 229, 102, 8582, 229, 103], &[14931, 101, 211, 14931, 225, 220, 14931, 228, 103, 325, 224, 14931, 228, 104, 325, 224, 14931, 228, 102, 325, 224, 14931, 228, 101, 14931, 218, 104, 14931, 218, 105]),
    ("\u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c}\u{3002}\u{4eca}\u{5929}\u{5929}\u{6c14}\u{5f88}\u{597d}", &[19526, 254, 25001, 121, 171, 120, 234, 10310, 244, 45911, 234, 16764, 20015, 232, 25465, 25465, 36365, 242, 36181, 230, 25001, 121], &[24553, 34439, 6238, 42848, 45261, 4340, 37248, 40120, 40120, 17289, 231, 45091, 34439]),
    ("\u{65e5}\u{672c}\u{8a9e}\u{306e}\u{30c6}\u{30ad}\u{30b9}\u{30c8} \u{3072}\u{3089}\u{304c}\u{306a}", &[33768, 98, 17312, 105, 45739, 252, 5641, 24336, 25084, 43302, 23294, 110, 36853, 35585, 26945], &[49868, 19119, 241, 3917, 28656, 33548, 38206, 209, 765, 112, 11039, 6957, 6686]),
    ("\u{e9} e\u{301} \u{fb01} \u{c5}", &[2634, 304, 136, 223, 27332, 105, 223, 6184, 227], &[860, 3974, 16141, 107, 212, 17732]),
    ("def f(x):\n    return x  # c\n\n\n\n        pass\n", &[4299, 277, 7, 87, 2599, 198, 220, 220, 220, 1441, 2124, 220, 1303, 269, 628, 628, 220, 220, 220, 220, 220, 220, 220, 1208, 198], &[1545, 269, 9, 89, 2262, 187, 50274, 2309, 1269, 50276, 4, 260, 5429, 50270, 5858, 187]),
    ("1234567890 \u{bd} \u{b2} \u{2167} \u{663}", &[10163, 2231, 30924, 3829, 25208, 1587, 110, 2343, 227, 100, 18923, 96], &[42594, 25025, 2270, 24142, 1191, 112, 3384, 216, 102, 209, 149, 98]),
    ("<|endoftext|>a <|endoftext|><|padding|>", &[50256, 64, 220, 50256, 27, 91, 39231, 91, 29], &[0, 66, 209, 0, 1]),
    ("\u{0}\u{1}\u{7f}\u{80}\u{feff}\u{fffd}\u{10ffff}", &[188, 189, 221, 126, 222, 171, 119, 123, 4210, 176, 237, 123, 123], &[177, 178, 210, 9589, 41497, 21478, 176, 226, 125, 125]),
    ("\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{627}\u{644}\u{633}\u{644}\u{627}\u{645} \u{5e2}\u{5d1}\u{5e8}\u{5d9}\u{5ea} \u{e44}\u{e17}\u{e22}", &[11976, 101, 11976, 106, 11976, 116, 24231, 235, 11976, 97, 24231, 229, 28981, 45692, 13862, 12919, 25405, 14360, 95, 49603, 37778, 33951, 103, 220, 31479, 226, 19567, 245, 19567, 95], &[23068, 32191, 28733, 17665, 23936, 15472, 9445, 14585, 4467, 30901, 6810, 97, 27339, 21062, 13963, 105, 209, 40366, 37948, 34816]),
    (" a   b    c\r\n\r\n d", &[257, 220, 220, 275, 220, 220, 220, 269, 201, 198, 201, 198, 288], &[247, 50275, 67, 50274, 68, 15971, 277]),
];

#[test]
fn gpt2_and_neox_give_the_ids_of_the_original() {
    let (Some(gpt2), Some(neox)) = (gpt2(), neox()) else { return };
    for (text, gpt2_ids, neox_ids) in HARD {
        assert_eq!(gpt2.encode(text).unwrap(), *gpt2_ids, "{text:?}");
        assert_eq!(neox.encode(text).unwrap(), *neox_ids, "{text:?}");
    }
    assert_eq!((gpt2.vocab_size(), neox.vocab_size()), (50_257, 50_277));
    assert_eq!((gpt2.eos_id(), neox.eos_id()), (Some(50_256), Some(0)));
    assert_eq!(gpt2.describe(), "Hugging Face BPE, 50257 tokens, 1 of them special");
}

/// SHA-256 of the ids as little-endian u32.
fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// So much of a text is encoded, to be quick without optimisation.
const MAX_TEXT: usize = 300_000;

/// Digests by Python's `tokenizers` 0.23.3. These texts are longer than the parts that encoding cuts a text into.
#[test]
fn long_texts_give_the_ids_of_the_original() {
    let (Some(gpt2), Some(neox)) = (gpt2(), neox()) else { return };
    #[rustfmt::skip]
    let cases = [
        ("wikitext-2/valid.txt", 71_067, "840ce2565dd008ca66fcbe15193c8b79844eb079b02f8bccdfef0758fc519777", 70_820, "31751c4342e84998cbed8ee9f4b70f673c402df91384e9ee4acd7cdd0e46fd7d"),
        ("tinyshakespeare/input.txt", 90_723, "e13e5e6252e907bd4a25c73921c539223e0b75e4b0e23d8f4e8dff6c99729970", 91_171, "3e4ef20563d03aecc76582cda31eb2e71698941c1353e9d6f63dbda3f8b36fa7"),
        ("enwik8/enwik8.first4150000.gz", 88_096, "c7ec984d5f07f898f919eb73c2300694aaeee107508893bd5a225f7c63e8b107", 82_278, "42fd1c1bff45af18d9765df82d29f452573d50fa4b859b31d0d159c4cc9fb2d9"),
    ];
    for (file, gpt2_len, gpt2_digest, neox_len, neox_digest) in cases {
        let bytes = shared(file).unwrap();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]).into_owned();
        for (tokenizer, len, expected) in [(&gpt2, gpt2_len, gpt2_digest), (&neox, neox_len, neox_digest)] {
            let ids = tokenizer.encode(&text).unwrap();
            assert_eq!(ids.len(), len, "{file}");
            assert_eq!(digest(&ids), expected, "{file}");
        }
        assert!(gpt2.decode(&gpt2.encode(&text).unwrap()).unwrap() == text, "{file}");
    }
}

/// The regular expression engine must not give up on a long run of one kind.
#[test]
fn long_runs_give_the_ids_of_the_original() {
    let Some(gpt2) = gpt2() else { return };
    let ids = gpt2.encode(&(" ".repeat(2_000_000) + "x")).unwrap();
    assert_eq!((ids.len(), &ids[ids.len() - 3..]), (2_000_000, &[220, 220, 2124][..]));
}

#[test]
fn special_tokens_are_recognised_unless_text_is_ordinary() {
    let Some(gpt2) = gpt2() else { return };
    let text = "a<|endoftext|>";
    assert_eq!(gpt2.encode(text).unwrap(), [64, 50_256]);
    let ordinary = gpt2.encode_ordinary(text).unwrap();
    assert_eq!(ordinary, [64, 27, 91, 437, 1659, 5239, 91, 29]);
    assert_eq!(gpt2.decode(&ordinary).unwrap(), text);
    assert_eq!(gpt2.decode(&[64, 50_256]).unwrap(), "a");
    assert_eq!(gpt2.token_bytes(50_256).unwrap(), b"");
    assert_eq!(gpt2.id_to_token(50_256).as_deref(), Some("<|endoftext|>"));
    assert!(gpt2.is_special(50_256) && !gpt2.is_special(50_255));
}

#[test]
fn world_gives_the_published_ids() {
    let (Some(world), Some(cases)) = (world(), shared("tokenizers/rwkv_world_cases.jsonl")) else { return };
    let mut number = 0;
    for line in cases.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let case: Value = serde_json::from_slice(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| world.token_bytes(id).unwrap()).copied().collect();
        if let Some(text) = case["text"].as_str() {
            assert_eq!(world.encode(text).unwrap(), ids, "{case}");
            assert_eq!(world.decode(&ids).unwrap(), text);
        } else {
            // Bytes that are no text: they cannot be given to `encode`, but must come back.
            let hex = case["hex"].as_str().unwrap();
            let expected: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            assert_eq!(bytes, expected, "{case}");
        }
        number += 1;
    }
    assert_eq!(number, 836);
    assert_eq!((world.vocab_size(), world.eos_id()), (65_530, Some(0)));
}

/// Every token by itself: its name leads back to its id.
#[test]
fn names_lead_back_to_ids() {
    for tokenizer in [gpt2(), neox(), world()].into_iter().flatten() {
        for id in 0..tokenizer.vocab_size() as u32 {
            let Some(name) = tokenizer.id_to_token(id) else { continue };
            assert_eq!(tokenizer.token_to_id(&name), Some(id), "{name:?}");
        }
    }
}

/// A byte-level BPE with a few merges, as `tokenizer.json` holds it.
fn small_bpe() -> Value {
    let mut printable: Vec<u32> = (0x21..0x7f).chain(0xa1..0xad).chain(0xae..0x100).collect();
    printable.extend(0x100..0x144);
    let mut tokens: Vec<String> = printable.into_iter().map(|code| char::from_u32(code).unwrap().to_string()).collect();
    let merges = [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], ["è", "ª"], ["Ċ", "Ċ"], ["Ġ", "Ġ"]];
    tokens.extend(merges.iter().map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 262, "content": "<|endoftext|>", "special": true, "normalized": false},
            {"id": 263, "content": "語", "special": false, "normalized": false},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

fn parse(file: &Value) -> Result<HfTokenizer, spikelet::Error> {
    HfTokenizer::parse(Path::new("tokenizer.json"), file.to_string().as_bytes())
}

#[test]
fn merges_may_be_pairs_or_lines() {
    let pairs = small_bpe();
    let mut lines = pairs.clone();
    for merge in lines["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    let text = " the the  then\n\n語";
    let ids = parse(&pairs).unwrap().encode(text).unwrap();
    assert_eq!(ids, parse(&lines).unwrap().encode(text).unwrap());
    assert_eq!(ids, [258, 258, 220, 258, 77, 260, 263]);
}

#[test]
fn broken_tokenizer_files_are_refused_by_name() {
    #[rustfmt::skip]
    let cases: [(&str, Value, &str); 14] = [
        ("/model/type", json!("WordPiece"), "model of type \"WordPiece\""),
        ("/decoder", json!({"type": "WordPiece"}), "the decoder WordPiece"),
        ("/decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}), "ByteFallback after Fuse"),
        ("/model/merges/0", json!(["h", "zzz"]), "\"zzz\" is not in its vocabulary"),
        ("/model/merges/0", json!(["h", "h"]), "\"hh\" is not in its vocabulary"),
        ("/model/vocab/a", json!(4_294_967_295_u32), "the id 4294967295"),
        ("/model/vocab/a", json!(-1), "BPE model that cannot be read"),
        ("/model/vocab/a", json!(65), "gives the id 65 to both"),
        ("/added_tokens/0/id", json!(300), "the id 300, but by the order of its tokens it is 262"),
        ("/added_tokens/0/content", json!(""), "without text"),
        ("/model/vocab", json!({}), "not in its vocabulary"),
        ("/model", json!("BPE"), "a model without a type"),
        ("/pre_tokenizer", json!({"type": "Nonsense"}), "has a pre_tokenizer that cannot be read"),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "ByteLevel"}); 7]}), "times as long"),
    ];
    for (place, value, reason) in cases {
        let mut file = small_bpe();
        *file.pointer_mut(place).unwrap() = value;
        let message = parse(&file).err().expect(place).to_string();
        assert!(message.contains(reason), "{place}: {message}");
    }
    let mut prefix = small_bpe();
    prefix["model"]["continuing_subword_prefix"] = json!("##");
    let message = parse(&prefix).err().unwrap().to_string();
    assert!(message.contains("lacks the prefix"), "{message}");
}

/// A vocabulary without all bytes does not swallow what it lacks.
#[test]
fn what_has_no_token_is_an_error() {
    let mut file = small_bpe();
    file["model"]["vocab"].as_object_mut().unwrap().remove("z");
    for (id, value) in file["model"]["vocab"].as_object_mut().unwrap().values_mut().enumerate() {
        *value = json!(id);
    }
    for token in file["added_tokens"].as_array_mut().unwrap() {
        token["id"] = json!(token["id"].as_u64().unwrap() - 1);
    }
    let tokenizer = parse(&file).unwrap();
    assert!(tokenizer.encode("abc").is_ok());
    let message = tokenizer.encode("a zoo").unwrap_err().to_string();
    assert!(message.contains("has no tokens for all of \" zoo\""), "{message}");
}

#[test]
fn sentencepiece_like_tokenizers_keep_their_spaces() {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend(bytes);
    tokens.extend(["▁", "a", "b", "▁a", "ab"].map(str::to_owned));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "special": true, "normalized": false});
    let file = json!({
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "a"], ["a", "b"]], "unk_token": "<unk>", "byte_fallback": true},
    });
    let tokenizer = parse(&file).unwrap();
    let ids = tokenizer.encode("a ab語").unwrap();
    assert_eq!(ids, [262, 262, 261, 3 + 0xe8, 3 + 0xaa, 3 + 0x9e]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a ab語");
    assert_eq!(tokenizer.token_bytes(262).unwrap(), b" a");
    assert_eq!(tokenizer.token_bytes(3 + 0xe8).unwrap(), b"\xe8");
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.encode("a</s>").unwrap(), [262, 2]);
    let ordinary = tokenizer.encode_ordinary("a</s>").unwrap();
    assert!(!ordinary.contains(&2));
    assert_eq!(tokenizer.decode(&ordinary).unwrap(), "a</s>");
}

#[test]
fn unigram_models_are_read() {
    let file = json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "normalized": false}],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", -3.0], ["a", -3.0], ["b", -3.0], ["▁ab", -1.0]]},
    });
    let tokenizer = parse(&file).unwrap();
    assert_eq!(tokenizer.encode("ab a").unwrap(), [4, 1, 2]);
    assert_eq!(tokenizer.decode(&[4, 1, 2]).unwrap(), "ab a");
    assert_eq!(tokenizer.encode("ab語").unwrap(), [4, 0]);
}

/// Pushes the bytes of ids one token at a time.
fn streamed(tokenizer: &dyn Tokenizer, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new();
    let mut text = String::new();
    for &id in ids {
        decoder.push(tokenizer.token_bytes(id).unwrap(), &mut text);
    }
    decoder.finish(&mut text);
    text
}

proptest! {
    #[test]
    fn text_comes_back(text in any::<String>()) {
        let small = parse(&small_bpe()).unwrap();
        let ids = small.encode(&text).unwrap();
        prop_assert_eq!(&small.decode(&ids).unwrap(), &text);
        prop_assert_eq!(&streamed(&small, &ids), &text);
        prop_assert_eq!(&small.decode(&small.encode_ordinary(&text).unwrap()).unwrap(), &text);
    }
}
