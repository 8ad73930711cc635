//! The RWKV World vocabulary (`rwkv_vocab_v20230424.txt`): greedy longest match over bytes.
//!
//! The format and the way of encoding are those of BlinkDL's ChatRWKV (`tokenizer/rwkv_tokenizer.py`). A line holds an id,
//! the token as a Python string or bytes literal, and its length in bytes:
//!
//! ```text
//! 65 'A' 1
//! 144 b'\x8f' 1
//! ```
//!
//! Every single byte is a token, so every text can be encoded. Id 0 is not in the file: it ends a document and is never
//! the result of encoding. The published vocabulary ends at id 65529 while its models have 65,536 rows; the rest stands
//! for nothing.

use std::path::Path;

use super::table::{MAX_IDS, TokenTable};
use super::trie::Trie;
use super::{Tokenizer, broken, literal, load::read_file, printable, sha256_hex};
use crate::error::Result;

/// The published file has 1.1 MB.
const MAX_BYTES: u64 = 16 << 20;
/// The longest published token has 128 bytes.
const MAX_TOKEN: usize = 4096;
/// The name of id 0.
const END_OF_DOCUMENT: &str = "<|endoftext|>";

/// The World tokenizer.
#[derive(Debug)]
pub struct World {
    table: TokenTable,
    trie: Trie,
    tokens: usize,
    fingerprint: String,
}

impl World {
    /// Reads a vocabulary file.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &read_file(path, MAX_BYTES)?)
    }

    /// Reads the file's bytes; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|error| broken(path, format!("is not UTF-8: {error}")))?;
        let mut tokens: Vec<(Vec<u8>, u32)> = Vec::new();
        for (number, line) in (1..).zip(text.split('\n')) {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if !line.is_empty() {
                let token = parse_line(line).map_err(|reason| broken(path, format!("line {number} {reason}")))?;
                tokens.push(token);
            }
        }
        let table = table_by_id(&tokens).map_err(|reason| broken(path, reason))?;
        tokens.sort_unstable();
        let sorted: Vec<(&[u8], u32)> = tokens.iter().map(|(bytes, id)| (&bytes[..], *id)).collect();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let reason = format!("{:?} is both token {} and token {}", printable(pair[0].0), pair[0].1, pair[1].1);
            return Err(broken(path, reason));
        }
        let trie = Trie::new(&sorted);
        if let Some(byte) = (0..=u8::MAX).find(|&byte| trie.get(&[byte]).is_none()) {
            let reason = format!("has no token for the single byte {byte:#04x}, so not every text could be encoded");
            return Err(broken(path, reason));
        }
        Ok(Self { table, trie, tokens: tokens.len(), fingerprint: sha256_hex(&[bytes]) })
    }
}

/// Reads `id literal length`. The literal may hold spaces. The error continues "line 7 …".
fn parse_line(line: &str) -> std::result::Result<(Vec<u8>, u32), String> {
    let fields = line.split_once(' ').and_then(|(id, rest)| Some((id, rest.rsplit_once(' ')?)));
    let (id, (literal, length)) = fields.ok_or("is not 'id literal length'")?;
    let id = number(id).ok_or_else(|| format!("has the id {id:?}, needed a number"))?;
    if id == 0 || id >= MAX_IDS {
        return Err(format!("has the id {id}, needed 1 to {}", MAX_IDS - 1));
    }
    let bytes = literal::parse(literal).map_err(|reason| format!("holds {literal}, which {reason}"))?;
    if number(length) != Some(bytes.len()) {
        return Err(format!("gives the length {length} to a token of {} bytes", bytes.len()));
    }
    if bytes.is_empty() || bytes.len() > MAX_TOKEN {
        return Err(format!("holds a token of {} bytes, needed 1 to {MAX_TOKEN}", bytes.len()));
    }
    Ok((bytes, id as u32))
}

/// Decimal digits and nothing else.
fn number(digits: &str) -> Option<usize> {
    let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    only_digits.then(|| digits.parse().ok())?
}

/// The bytes of every id, or which id comes twice.
fn table_by_id(tokens: &[(Vec<u8>, u32)]) -> std::result::Result<TokenTable, String> {
    let size = tokens.iter().map(|(_, id)| *id as usize + 1).max().ok_or("holds no tokens")?;
    let mut by_id: Vec<&[u8]> = vec![&[]; size];
    for (bytes, id) in tokens {
        let slot = &mut by_id[*id as usize];
        if !slot.is_empty() {
            return Err(format!("gives the id {id} to two tokens"));
        }
        *slot = bytes;
    }
    Ok(TokenTable::new(by_id.into_iter()))
}

impl Tokenizer for World {
    fn vocab_size(&self) -> usize {
        self.table.len()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut rest = text.as_bytes();
        // World tokens have 4 bytes on average in English, 3 in Chinese.
        let mut ids = Vec::with_capacity(rest.len() / 3 + 1);
        while !rest.is_empty() {
            let (id, length) = self.trie.longest(rest);
            ids.push(id);
            rest = &rest[length..];
        }
        Ok(ids)
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.table.get(id)
    }

    fn eos_id(&self) -> Option<u32> {
        Some(0)
    }

    fn special_ids(&self) -> &[u32] {
        &[0]
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        if id == 0 {
            return Some(END_OF_DOCUMENT.to_owned());
        }
        let bytes = self.table.get(id).ok()?;
        (!bytes.is_empty()).then(|| printable(bytes))
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        if token == END_OF_DOCUMENT {
            return Some(0);
        }
        let by_text = self.trie.get(token.as_bytes());
        by_text.or_else(|| self.trie.get(&literal::parse(token).ok()?))
    }

    fn describe(&self) -> String {
        format!("RWKV World, {} tokens", self.tokens + 1)
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The 256 bytes with the ids 1 to 256, as the published file has them.
    fn single_bytes() -> String {
        (0..=255u8).fold(String::new(), |text, byte| text + &format!("{} b'\\x{byte:02x}' 1\n", u32::from(byte) + 1))
    }

    fn parse(text: &str) -> Result<World> {
        World::parse(Path::new("rwkv_vocab.txt"), text.as_bytes())
    }

    fn sample() -> Result<World> {
        parse(&(single_bytes() + "300 ' the' 4\n301 '語' 3\r\n302 b'\\xe8\\xaa' 2\n"))
    }

    #[test]
    fn the_longest_token_wins() -> Result<()> {
        let world = sample()?;
        assert_eq!(world.vocab_size(), 303);
        assert_eq!(world.encode(" then語")?, [300, 111, 301]);
        assert_eq!(world.encode("誠")?, [302, 0xa0 + 1]);
        assert_eq!(world.decode(&[302])?, "\u{fffd}");
        assert_eq!(world.decode(&[302, 0xa0 + 1, 0])?, "誠");
        Ok(())
    }

    #[test]
    fn ids_without_a_token_stand_for_nothing() -> Result<()> {
        let world = sample()?;
        assert_eq!(world.token_bytes(0)?, b"");
        assert_eq!(world.token_bytes(299)?, b"");
        assert_eq!(world.id_to_token(299), None);
        assert_eq!(world.id_to_token(0).as_deref(), Some("<|endoftext|>"));
        assert!(world.token_bytes(303).is_err());
        Ok(())
    }

    #[test]
    fn names_lead_back_to_ids() -> Result<()> {
        let world = sample()?;
        for id in (0..257).chain(300..303) {
            let name = world.id_to_token(id).expect("a token");
            assert_eq!(world.token_to_id(&name), Some(id), "{name}");
        }
        Ok(())
    }

    #[test]
    fn broken_files_are_refused() {
        let all = single_bytes();
        let cases = [
            (String::new(), "holds no tokens"),
            (all.replace("66 b'\\x41' 1\n", ""), "single byte 0x41"),
            (all.clone() + "300 'ab' 3\n", "line 257 gives the length 3 to a token of 2 bytes"),
            (all.clone() + "300 'ab' 2\n300 'cd' 2\n", "gives the id 300 to two tokens"),
            (all.clone() + "300 'ab' 2\n301 'ab' 2\n", "\"ab\" is both token 300 and token 301"),
            (all.clone() + "0 'ab' 2\n", "has the id 0"),
            (all.clone() + "4294967295 'ab' 2\n", "has the id 4294967295"),
            (all.clone() + "+300 'ab' 2\n", "has the id \"+300\""),
            (all.clone() + "300 '' 0\n", "a token of 0 bytes"),
            (all.clone() + "300 ab 2\n", "holds ab, which is not a Python"),
            (all.clone() + "300 2\n", "is not 'id literal length'"),
            (all + "300 __import__('os') 2\n", "is not a Python"),
        ];
        for (text, reason) in cases {
            let message = parse(&text).expect_err(reason).to_string();
            assert!(message.contains(reason), "{message}");
        }
        let error = World::parse(Path::new("v.txt"), b"\xff").expect_err("not UTF-8");
        assert!(error.to_string().contains("not UTF-8"), "{error}");
    }

    proptest! {
        #[test]
        fn text_comes_back(text in any::<String>()) {
            let world = sample()?;
            prop_assert_eq!(world.decode(&world.encode(&text)?)?, text);
        }

        /// Bytes changed, cut out and doubled in a good file: read or refused, never a panic.
        #[test]
        fn damaged_files_are_read_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)) {
            let mut bytes = (single_bytes() + "300 ' the' 4\n301 '語' 3\n").into_bytes();
            for (place, byte, kind) in changes {
                if bytes.is_empty() {
                    break;
                }
                let place = place.index(bytes.len());
                match kind {
                    0 => bytes[place] = byte,
                    1 => { bytes.remove(place); }
                    2 => bytes.insert(place, byte),
                    _ => bytes.truncate(place.max(1)),
                }
            }
            if let Ok(world) = World::parse(Path::new("v.txt"), &bytes) {
                let text = "then 語 !";
                prop_assert_eq!(world.decode(&world.encode(text)?)?, text);
            }
        }
    }
}
