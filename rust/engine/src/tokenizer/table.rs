//! The bytes of every token, in one piece of memory.

use crate::error::{Error, Result};

/// No vocabulary has ids from here on. The largest in use have some 260,000 entries; the limit keeps a damaged file that
/// names id 4,000,000,000 from asking for a table of that length.
pub(super) const MAX_IDS: usize = 1 << 22;

/// Token id to bytes. Ids that stand for nothing have none.
#[derive(Debug)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they begin where those of the id before end.
    ends: Vec<usize>,
}

impl TokenTable {
    /// Builds the table from one entry per id.
    pub(super) fn new<'a>(tokens: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        for token in tokens {
            bytes.extend_from_slice(token);
            ends.push(bytes.len());
        }
        Self { bytes, ends }
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token.
    pub(super) fn get(&self, id: u32) -> Result<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index).ok_or(Error::TokenId { id: u64::from(id), vocab_size: self.ends.len() })?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Ok(&self.bytes[start..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() -> Result<()> {
        let tokens: [&[u8]; 4] = [b"", b"ab", b"", b"c"];
        let table = TokenTable::new(tokens.into_iter());
        assert_eq!(table.len(), 4);
        for (id, token) in (0..).zip(tokens) {
            assert_eq!(table.get(id)?, token);
        }
        let error = table.get(4).expect_err("only four ids");
        assert!(matches!(error, Error::TokenId { id: 4, vocab_size: 4 }));
        Ok(())
    }
}
