//! How text becomes token ids and ids become text.
//!
//! One trait, [`Tokenizer`], over the kinds that SpikeGPT and RWKV models come with: Hugging Face's `tokenizer.json`
//! ([`hf`]), GPT-2's vocabulary and merges ([`gpt2`]), the RWKV World vocabulary ([`world`]), raw bytes ([`bytes`]) and a
//! list of characters ([`chars`]). [`load_tokenizer`] finds out which one a folder holds.
//!
//! A token stands for *bytes*, not for text: a character may be spread over several tokens. Text that is being generated
//! goes through a [`StreamDecoder`], which never lets half a character out.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

pub mod bytes;
pub mod chars;
mod fit;
pub mod gpt2;
pub mod hf;
mod hf_decoder;
mod hf_file;
mod literal;
mod load;
mod stream;
mod table;
mod trie;
pub mod world;

pub use fit::{check_vocab, fit_vocab};
pub use load::load_tokenizer;
pub use stream::StreamDecoder;

/// Text to ids and back. Immutable and shared between threads.
pub trait Tokenizer: Send + Sync {
    /// Ids are below this. Some of them may stand for nothing.
    fn vocab_size(&self) -> usize;

    /// The ids of a text. Nothing is added; special tokens that are written out in the text are recognised where the
    /// vocabulary has such (a World vocabulary, bytes and characters have none).
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// As [`encode`](Self::encode), but special tokens are ordinary text: what a user of a chat typed must not be able to
    /// end the turn.
    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>>;

    /// The bytes that a token stands for; none for special tokens and for ids that stand for nothing.
    fn token_bytes(&self, id: u32) -> Result<&[u8]>;

    /// The text of ids that stand at the beginning of a text. Bytes that are not UTF-8 become U+FFFD, special tokens nothing.
    ///
    /// Tokenizers that put a space before a text when they encode it take it away here. What a model adds to a text does
    /// not stand at its beginning: decode that with [`token_bytes`](Self::token_bytes) and a [`StreamDecoder`].
    fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(lossy(joined_bytes(self, ids)?))
    }

    /// The token that ends a text.
    fn eos_id(&self) -> Option<u32>;

    /// Ids of the special tokens, ascending.
    fn special_ids(&self) -> &[u32];

    /// Whether a token is special, that is, stands for an event in the text and not for a part of it.
    fn is_special(&self, id: u32) -> bool {
        self.special_ids().binary_search(&id).is_ok()
    }

    /// The name of a token in its vocabulary, also of a special one. Not its text: see [`token_bytes`](Self::token_bytes).
    fn id_to_token(&self, id: u32) -> Option<String>;

    /// The id of the token with this name.
    fn token_to_id(&self, token: &str) -> Option<u32>;

    /// The kind and its size, in a few words for a person.
    fn describe(&self) -> String;

    /// SHA-256 of what defines the tokenizer, in hexadecimal: equal fingerprints mean equal ids.
    fn fingerprint(&self) -> String;
}

/// The bytes of several tokens, one after another.
fn joined_bytes<T: Tokenizer + ?Sized>(tokenizer: &T, ids: &[u32]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(ids.len() * 4);
    for &id in ids {
        bytes.extend_from_slice(tokenizer.token_bytes(id)?);
    }
    Ok(bytes)
}

/// Bytes as text, with U+FFFD for what is not UTF-8.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Bytes as a readable name: the text where they are UTF-8, else `b'\xe8\xaa'`.
fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("b'{}'", bytes.escape_ascii()),
    }
}

/// An error about a tokenizer's file.
fn broken(path: &Path, reason: impl Into<String>) -> Error {
    Error::Tokenizer { path: path.to_owned(), reason: reason.into() }
}

/// SHA-256 in hexadecimal over parts, each preceded by its length, so that no two lists of parts look alike.
fn sha256_hex(parts: &[&[u8]]) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write as _;

    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A shared tokenizer.
type Shared = Arc<dyn Tokenizer>;
