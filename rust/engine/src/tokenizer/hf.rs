//! Hugging Face's `tokenizer.json`, encoded with their `tokenizers` crate.
//!
//! Models of type BPE and Unigram; every normalizer and pre-tokenizer the crate knows. The file's truncation, padding and
//! post-processor are left aside: text is never cut and nothing is added to it.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{
    AddedVocabulary, Model, ModelWrapper, NormalizerWrapper, OffsetType, PreTokenizer, PreTokenizerWrapper,
};

use super::hf_decoder::Decoder;
use super::hf_file::{self, Entry, Parts};
use super::table::TokenTable;
use super::{Tokenizer, broken, joined_bytes, load::read_file, lossy, sha256_hex};
use crate::error::Result;

/// The largest in use have some 35 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Names of the token that ends a text, most likely first; used if neither configuration names one.
const EOS_NAMES: [&str; 6] = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]"];
/// Texts are encoded in parts of about this many bytes where that makes no difference. Twice as fast as 64 KiB, where the
/// crate's many small allocations outgrow the caches.
const PART: usize = 4 << 10;

/// A tokenizer from a `tokenizer.json`, or from GPT-2's two files.
pub struct HfTokenizer {
    path: PathBuf,
    kind: &'static str,
    model: ModelWrapper,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Recognises special tokens in text.
    added: AddedVocabulary,
    /// Does not.
    added_ordinary: AddedVocabulary,
    decoder: Decoder,
    table: TokenTable,
    entries: Vec<Entry>,
    ids: HashMap<String, u32>,
    special: Vec<u32>,
    unknown: Option<u32>,
    eos_id: Option<u32>,
    /// Texts are encoded in parts of about so many bytes.
    part: usize,
    fingerprint: String,
}

impl HfTokenizer {
    /// Reads a file. If a `tokenizer_config.json` beside it names an `eos_token`, that is the token that ends a text.
    pub fn load(path: &Path) -> Result<Self> {
        let mut tokenizer = Self::parse(path, &read_file(path, MAX_BYTES)?)?;
        let beside = path.with_file_name("tokenizer_config.json");
        if beside.is_file() {
            let bytes = read_file(&beside, MAX_BYTES)?;
            let config: Value =
                serde_json::from_slice(&bytes).map_err(|error| broken(&beside, format!("is not JSON: {error}")))?;
            let name = config.get("eos_token").and_then(|token| token.get("content").unwrap_or(token).as_str());
            tokenizer.eos_id = name.and_then(|name| tokenizer.token_to_id(name)).or(tokenizer.eos_id);
        }
        Ok(tokenizer)
    }

    /// Reads the file's bytes; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let file = serde_json::from_slice(bytes).map_err(|error| broken(path, format!("is not JSON: {error}")))?;
        Self::from_value(path, file, sha256_hex(&[bytes]))
    }

    /// Builds the tokenizer of a file's content.
    pub(super) fn from_value(path: &Path, file: Value, fingerprint: String) -> Result<Self> {
        let parts = guarded(|| hf_file::parse(file)).map_err(|reason| broken(path, reason))?;
        Self::from_parts(path, parts, fingerprint).map_err(|reason| broken(path, reason))
    }

    fn from_parts(path: &Path, parts: Parts, fingerprint: String) -> std::result::Result<Self, String> {
        let mut tokens: Vec<Vec<u8>> = Vec::with_capacity(parts.entries.len());
        let mut ids = HashMap::with_capacity(parts.entries.len());
        let mut special = Vec::new();
        for (id, entry) in (0..).zip(&parts.entries) {
            tokens.push(match &entry.name {
                Some(name) if !entry.added => parts.decoder.bytes(name)?,
                Some(name) if !entry.special => name.as_bytes().to_vec(),
                _ => Vec::new(),
            });
            if let Some(name) = &entry.name {
                ids.insert(name.clone(), id);
            }
            if entry.special {
                special.push(id);
            }
        }
        let mut added_ordinary = parts.added.clone();
        added_ordinary.set_encode_special_tokens(true);
        let named_eos = EOS_NAMES.iter().filter_map(|name| ids.get(*name).copied());
        Ok(Self {
            path: path.to_owned(),
            kind: parts.kind,
            eos_id: named_eos.into_iter().find(|id| special.binary_search(id).is_ok()),
            model: parts.model,
            normalizer: parts.normalizer,
            pre_tokenizer: parts.pre_tokenizer,
            added: parts.added,
            added_ordinary,
            decoder: parts.decoder,
            table: TokenTable::new(tokens.iter().map(Vec::as_slice)),
            entries: parts.entries,
            ids,
            special,
            unknown: parts.unknown,
            part: if parts.cuts_before_spaces { PART } else { usize::MAX },
            fingerprint,
        })
    }

    /// Encodes a text, long ones in parts: the crate needs some hundred bytes of memory for each byte it is given.
    fn encode_with(&self, text: &str, added: &AddedVocabulary) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        let mut rest = text;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(part_end(rest, self.part));
            guarded(|| self.encode_part(part, added, &mut ids)).map_err(|reason| broken(&self.path, reason))?;
            rest = after;
        }
        Ok(ids)
    }

    /// The crate's own sequence of steps, with a look at each word: a BPE model leaves out what it has no token for.
    fn encode_part(&self, text: &str, added: &AddedVocabulary, ids: &mut Vec<u32>) -> std::result::Result<(), String> {
        let mut words = added.extract_and_normalize(self.normalizer.as_ref(), text);
        let steps = || -> tokenizers::Result<Vec<u32>> {
            if let Some(pre_tokenizer) = &self.pre_tokenizer {
                pre_tokenizer.pre_tokenize(&mut words)?;
            }
            words.tokenize(|word| {
                let tokens = self.model.tokenize(word.get())?;
                if tokens.last().map_or(0, |token| token.offsets.1) < word.get().len() {
                    return Err(format!("has no tokens for all of {:?}", word.get_original()).into());
                }
                Ok(tokens)
            })?;
            Ok(words.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
        };
        ids.extend(steps().map_err(|error| format!("cannot encode the text: {error}"))?);
        Ok(())
    }
}

/// Where to cut a text: before the first white space that follows something else and lies at least `part` bytes in.
fn part_end(text: &str, part: usize) -> usize {
    if text.len() <= part {
        return text.len();
    }
    let mut after_word = false;
    for (place, character) in text.char_indices() {
        let space = character.is_whitespace();
        if place >= part && space && after_word {
            return place;
        }
        after_word = !space;
    }
    text.len()
}

/// Runs the crate's code, which was not written for hostile files, so that a panic in it becomes an error.
fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    let message = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("Hugging Face's tokenizers cannot work with this file: {text}")
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(message(panic)))
}

impl Tokenizer for HfTokenizer {
    fn vocab_size(&self) -> usize {
        self.table.len()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, &self.added)
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_with(text, &self.added_ordinary)?;
        // Some models have their special tokens in the vocabulary too, and find them there.
        match ids.iter().find(|&&id| self.is_special(id) && Some(id) != self.unknown) {
            Some(&id) => {
                let name = self.id_to_token(id).unwrap_or_default();
                Err(broken(
                    &self.path,
                    format!("the text holds {name:?}, which this tokenizer cannot encode as ordinary text"),
                ))
            }
            None => Ok(ids),
        }
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.table.get(id)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut text = lossy(joined_bytes(self, ids)?);
        if self.decoder.drops_first_space && text.starts_with(' ') {
            text.remove(0);
        }
        Ok(text)
    }

    fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    fn special_ids(&self) -> &[u32] {
        &self.special
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.entries.get(id as usize)?.name.clone()
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn describe(&self) -> String {
        format!("Hugging Face {}, {} tokens, {} of them special", self.kind, self.ids.len(), self.special.len())
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A byte-level BPE with added runs of spaces, as GPT-NeoX has them.
    fn with_runs_of_spaces() -> Result<HfTokenizer> {
        let bytes = (0..0x144).filter_map(char::from_u32).filter(|&c| super::super::hf_decoder::byte_of(c).is_some());
        let mut tokens: Vec<String> = bytes.map(String::from).collect();
        tokens.extend(["Ġt", "he", "Ġthe", "ĠĠ", "ĊĊ", "'s"].map(str::to_owned));
        let vocab: serde_json::Map<String, Value> =
            tokens.into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
        let added = ["    ", "  ", " \n", "<|endoftext|>"];
        let added: Vec<Value> = added
            .iter()
            .zip(262..)
            .map(|(content, id)| json!({"id": id, "content": content, "normalized": id % 2 == 0}))
            .collect();
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
        let file = json!({
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "Ċ Ċ", "' s"]},
        });
        HfTokenizer::from_value(Path::new("tokenizer.json"), file, String::new())
    }

    proptest! {
        /// Encoding in parts changes nothing. Parts of one byte: cut wherever a cut is allowed.
        #[test]
        fn parts_have_the_ids_of_the_whole(pieces in prop::collection::vec("[ \n\t\u{3000}\u{a0}]{1,6}|<\\|endoftext\\|>|'s| the|[a-z0-9語é.!\u{301}]{1,4}|\\PC", 0..24)) {
            let mut tokenizer = with_runs_of_spaces()?;
            let text = pieces.concat();
            prop_assert_eq!(tokenizer.part, PART);
            let whole = tokenizer.encode(&text)?;
            tokenizer.part = 1;
            prop_assert_eq!(tokenizer.encode(&text)?, whole);
        }
    }

    #[test]
    fn parts_end_before_a_space_after_a_word() {
        assert_eq!(part_end("ab cd", 5), 5);
        assert_eq!(part_end("ab cd", 1), 2);
        assert_eq!(part_end("ab   cd e", 3), 7);
        assert_eq!(part_end("abcd", 1), 4);
    }
}
