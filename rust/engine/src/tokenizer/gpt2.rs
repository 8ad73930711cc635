//! GPT-2's tokenizer from its two files: the vocabulary (`vocab.json`, OpenAI's `encoder.json`) and the merges
//! (`merges.txt`, OpenAI's `vocab.bpe`).
//!
//! The result is Hugging Face's BPE with the byte-level steps around it that GPT-2 has, without a space before the text.

use std::path::Path;

use serde_json::{Value, json};

use super::hf::HfTokenizer;
use super::{broken, load::read_file, sha256_hex};
use crate::error::Result;

/// GPT-2's own files have 1 MB and 0.5 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Tokens that are special wherever a vocabulary of this kind has them.
const SPECIAL: [&str; 2] = ["<|endoftext|>", "<|padding|>"];

/// Reads both files.
pub fn load(vocab: &Path, merges: &Path) -> Result<HfTokenizer> {
    let vocab_bytes = read_file(vocab, MAX_BYTES)?;
    let merges_bytes = read_file(merges, MAX_BYTES)?;
    let ids: Value =
        serde_json::from_slice(&vocab_bytes).map_err(|error| broken(vocab, format!("is not JSON: {error}")))?;
    let pairs = parse_merges(merges, &merges_bytes)?;
    let added: Vec<Value> = SPECIAL
        .iter()
        .filter_map(|token| {
            Some(json!({"id": ids.get(token)?, "content": token, "special": true, "normalized": false}))
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": ids, "merges": pairs},
    });
    HfTokenizer::from_value(vocab, file, sha256_hex(&[&vocab_bytes, &merges_bytes]))
}

/// Two tokens a line, after a line `#version: 0.2`.
fn parse_merges(path: &Path, bytes: &[u8]) -> Result<Vec<[String; 2]>> {
    let text = std::str::from_utf8(bytes).map_err(|error| broken(path, format!("is not UTF-8: {error}")))?;
    let mut pairs = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || (number == 1 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                pairs.push([left.to_owned(), right.to_owned()]);
            }
            _ => {
                return Err(broken(path, format!("line {number} is {line:?}, needed two tokens")));
            }
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_pairs() -> Result<()> {
        let path = Path::new("merges.txt");
        let pairs = parse_merges(path, "#version: 0.2\nĠ t\r\n# h\n\n".as_bytes())?;
        assert_eq!(pairs, [["Ġ", "t"], ["#", "h"]].map(|pair| pair.map(str::to_owned)));
        for (text, reason) in
            [("a b c", "line 1"), ("a b\nc", "line 2"), ("a b\n #version", "line 2"), ("a ", "line 1")]
        {
            let message = parse_merges(path, text.as_bytes()).expect_err("not pairs").to_string();
            assert!(message.contains(reason), "{message}");
        }
        assert!(parse_merges(path, b"\xff a").is_err());
        Ok(())
    }
}
