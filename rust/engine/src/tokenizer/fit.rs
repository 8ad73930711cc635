//! Whether a tokenizer belongs to a model.
//!
//! The classic mistake with RWKV models is a tokenizer of the other family: the 20B (GPT-NeoX) one has 50,277 ids, World
//! models have 65,536 rows. Every id is then valid and the text is garbage. The rule here:
//!
//! - a tokenizer never has more ids than the model has rows;
//! - it may have fewer, because trainers round the rows up: fewer than 64 (any model is rounded to a multiple of 64 at
//!   times: GPT-2's 50,257 to 50,304, World's 65,530 to 65,536), or at most 1,024 and a tenth of the rows (Phi-2: 50,295
//!   of 51,200).
//!
//! The 20B tokenizer leaves 15,259 of a World model's rows unused, 23 %, and is refused.

use std::path::Path;
use std::sync::Arc;

use super::{Shared, Tokenizer, broken};
use crate::error::{Error, Result};

/// Any model may have fewer than so many rows more than its tokenizer has ids.
const ROUNDING: usize = 64;
/// Large models may have so many rows more if they are at most a tenth.
const MAX_PADDING: usize = 1024;

/// Ids of the 20B tokenizer, and the rows of its models.
const NEOX_IDS: usize = 50_277;
/// Rows of a World model.
const WORLD_ROWS: usize = 65_536;

/// Refuses a tokenizer that cannot be the one the model was trained with, going by their sizes. `source` is where the
/// tokenizer came from, for the message.
pub fn check_vocab(tokenizer: &dyn Tokenizer, source: &Path, model_rows: usize) -> Result<()> {
    let ids = tokenizer.vocab_size();
    let fits = match model_rows.checked_sub(ids) {
        None => false,
        Some(padding) => padding < ROUNDING || (padding <= MAX_PADDING && padding * 10 <= model_rows),
    };
    if fits {
        return Ok(());
    }
    let kind = tokenizer.describe();
    let difference = if ids > model_rows { "more than" } else { "too few for" };
    let mut reason = format!("{kind}: has {ids} ids, {difference} the model's vocabulary of {model_rows}");
    if let Some(hint) = usual_tokenizer(model_rows) {
        reason = format!("{reason}; {hint}");
    }
    Err(broken(source, reason))
}

/// What models of this size usually take.
pub(super) fn usual_tokenizer(model_rows: usize) -> Option<&'static str> {
    match model_rows {
        WORLD_ROWS => Some("models of 65536 usually take the RWKV World vocabulary, rwkv_vocab_v20230424.txt"),
        NEOX_IDS => Some("models of 50277 usually take the GPT-NeoX tokenizer, 20B_tokenizer.json"),
        50_257 | 50_304 => Some("models of this size usually take GPT-2's vocab.json and merges.txt"),
        256 => Some("models of 256 usually take bytes: \"tokenizer_class\": \"bytes\" in config.json"),
        _ => None,
    }
}

/// Checks a tokenizer against a model and gives it the model's size: the model's further ids stand for nothing, and
/// `eos_id` of the model's configuration goes before the tokenizer's own.
pub fn fit_vocab(tokenizer: Shared, source: &Path, model_rows: usize, eos_id: Option<u32>) -> Result<Shared> {
    check_vocab(&*tokenizer, source, model_rows)?;
    if let Some(id) = eos_id.filter(|&id| id as usize >= model_rows) {
        return Err(Error::TokenId { id: u64::from(id), vocab_size: model_rows });
    }
    let eos_id = eos_id.or(tokenizer.eos_id());
    if tokenizer.vocab_size() == model_rows && tokenizer.eos_id() == eos_id {
        return Ok(tokenizer);
    }
    let mut special = tokenizer.special_ids().to_vec();
    special.extend(eos_id.filter(|&id| id as usize >= tokenizer.vocab_size()));
    Ok(Arc::new(Fitted { inner: tokenizer, rows: model_rows, eos_id, special }))
}

/// A tokenizer with the size and the last token of a model.
struct Fitted {
    inner: Shared,
    rows: usize,
    eos_id: Option<u32>,
    special: Vec<u32>,
}

impl Fitted {
    /// Whether an id is one of the model's that the tokenizer does not have.
    fn is_padding(&self, id: u32) -> bool {
        (self.inner.vocab_size()..self.rows).contains(&(id as usize))
    }
}

impl Tokenizer for Fitted {
    fn vocab_size(&self) -> usize {
        self.rows
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.encode(text)
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.encode_ordinary(text)
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        if self.is_padding(id) {
            return Ok(&[]);
        }
        self.inner.token_bytes(id).map_err(|error| match error {
            Error::TokenId { id, .. } => Error::TokenId { id, vocab_size: self.rows },
            other => other,
        })
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let known: Vec<u32> = ids.iter().copied().filter(|&id| !self.is_padding(id)).collect();
        self.inner.decode(&known)
    }

    fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    fn special_ids(&self) -> &[u32] {
        &self.special
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::Bytes;
    use super::*;

    /// A tokenizer of any size; only its size matters here.
    struct Sized(usize);

    impl Tokenizer for Sized {
        fn vocab_size(&self) -> usize {
            self.0
        }
        fn encode(&self, _: &str) -> Result<Vec<u32>> {
            Ok(Vec::new())
        }
        fn encode_ordinary(&self, _: &str) -> Result<Vec<u32>> {
            Ok(Vec::new())
        }
        fn token_bytes(&self, _: u32) -> Result<&[u8]> {
            Ok(b"?")
        }
        fn eos_id(&self) -> Option<u32> {
            Some(0)
        }
        fn special_ids(&self) -> &[u32] {
            &[0]
        }
        fn id_to_token(&self, _: u32) -> Option<String> {
            None
        }
        fn token_to_id(&self, _: &str) -> Option<u32> {
            None
        }
        fn describe(&self) -> String {
            "of some size".to_owned()
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn sizes_that_belong_together() {
        let source = Path::new("tokenizer.json");
        for (ids, rows) in [
            (50_277, 50_277),
            (65_530, 65_536),
            (50_257, 50_304),
            (50_277, 50_304),
            (50_277, 50_432),
            (50_295, 51_200),
            (65, 128),
            (256, 256),
        ] {
            assert!(check_vocab(&Sized(ids), source, rows).is_ok(), "{ids} in {rows}");
        }
        for (ids, rows) in [
            (50_277, 65_536),
            (65_530, 50_277),
            (50_257, 50_277 + 1200),
            (50_278, 50_277),
            (257, 256),
            (256, 384),
            (4_096, 5_000),
        ] {
            let message = check_vocab(&Sized(ids), source, rows).expect_err("other sizes").to_string();
            assert!(message.contains(&ids.to_string()) && message.contains(&rows.to_string()), "{message}");
        }
    }

    #[test]
    fn the_classic_mistake_is_explained() {
        let source = Path::new("20B_tokenizer.json");
        let message = check_vocab(&Sized(50_277), source, 65_536).expect_err("20B with World").to_string();
        assert!(message.contains("has 50277 ids, too few for the model's vocabulary of 65536"), "{message}");
        assert!(message.contains("rwkv_vocab_v20230424.txt"), "{message}");
        let message = check_vocab(&Sized(65_530), source, 50_277).expect_err("World with 20B").to_string();
        assert!(message.contains("20B_tokenizer.json"), "{message}");
    }

    #[test]
    fn further_rows_stand_for_nothing() -> Result<()> {
        let tokenizer = fit_vocab(Arc::new(Bytes::new()), Path::new("."), 300, Some(256))?;
        assert_eq!(tokenizer.vocab_size(), 300);
        assert_eq!(tokenizer.token_bytes(255)?, b"\xff");
        assert_eq!(tokenizer.token_bytes(256)?, b"");
        assert_eq!(tokenizer.decode(&[0x61, 299, 256, 0x62])?, "ab");
        assert!(matches!(tokenizer.token_bytes(300), Err(Error::TokenId { id: 300, vocab_size: 300 })));
        assert!(matches!(tokenizer.decode(&[300]), Err(Error::TokenId { id: 300, .. })));
        assert_eq!(tokenizer.eos_id(), Some(256));
        assert!(tokenizer.is_special(256) && !tokenizer.is_special(257));
        let refused = fit_vocab(Arc::new(Bytes::new()), Path::new("."), 256, Some(256));
        assert!(matches!(refused, Err(Error::TokenId { id: 256, vocab_size: 256 })));
        Ok(())
    }
}
