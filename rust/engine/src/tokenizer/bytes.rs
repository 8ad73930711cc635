//! One token for each of the 256 bytes: needs no file and knows every text.

use super::{Tokenizer, sha256_hex};
use crate::error::{Error, Result};

/// The byte tokenizer: the id of a byte is its value.
#[derive(Debug)]
pub struct Bytes {
    /// `all[b] == b`, so that a token can lend its byte.
    all: [u8; 256],
}

impl Bytes {
    /// The only one there is.
    pub fn new() -> Self {
        let mut all = [0; 256];
        for (slot, byte) in all.iter_mut().zip(0..=u8::MAX) {
            *slot = byte;
        }
        Self { all }
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokenizer for Bytes {
    fn vocab_size(&self) -> usize {
        256
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        let index = id as usize;
        self.all.get(index..=index).ok_or(Error::TokenId { id: u64::from(id), vocab_size: 256 })
    }

    fn eos_id(&self) -> Option<u32> {
        None
    }

    fn special_ids(&self) -> &[u32] {
        &[]
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        let byte = u8::try_from(id).ok()?;
        Some(byte.escape_ascii().to_string())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        (0..=u8::MAX).find(|byte| byte.escape_ascii().to_string() == token).map(u32::from)
    }

    fn describe(&self) -> String {
        "bytes, 256 tokens".to_owned()
    }

    fn fingerprint(&self) -> String {
        sha256_hex(&[b"spikelet bytes 256"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_its_id() -> Result<()> {
        let bytes = Bytes::new();
        assert_eq!(bytes.encode("aé")?, [0x61, 0xc3, 0xa9]);
        for id in 0..256 {
            assert_eq!(bytes.token_bytes(id)?, [u8::try_from(id).expect("below 256")]);
            let name = bytes.id_to_token(id).expect("a byte");
            assert_eq!(bytes.token_to_id(&name), Some(id));
        }
        let error = bytes.token_bytes(256).expect_err("only 256 bytes");
        assert!(matches!(error, Error::TokenId { id: 256, vocab_size: 256 }));
        assert_eq!(bytes.decode(&[0xc3, 0xa9, 0xc3])?, "é\u{fffd}");
        Ok(())
    }
}
