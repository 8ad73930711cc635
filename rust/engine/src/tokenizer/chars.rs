//! One token per character of a closed list, as small character models have it.
//!
//! The list is a file `chars.json` in the model's folder: a JSON array of strings of one character each, in the order of
//! their ids. A character that is not in the list cannot be encoded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::table::{MAX_IDS, TokenTable};
use super::{Tokenizer, broken, load::read_file, sha256_hex};
use crate::error::Result;

/// 16 MiB hold every character there is.
const MAX_BYTES: u64 = 16 << 20;

/// The character tokenizer.
#[derive(Debug)]
pub struct Chars {
    path: PathBuf,
    ids: HashMap<char, u32>,
    table: TokenTable,
    fingerprint: String,
}

impl Chars {
    /// Reads `chars.json`.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(path, &read_file(path, MAX_BYTES)?)
    }

    /// Reads the file's bytes; `path` is for messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let list: Vec<String> = serde_json::from_slice(bytes)
            .map_err(|error| broken(path, format!("not a JSON array of strings: {error}")))?;
        if list.is_empty() || list.len() > MAX_IDS {
            return Err(broken(path, format!("holds {} characters, needed 1 to {MAX_IDS}", list.len())));
        }
        let mut ids = HashMap::with_capacity(list.len());
        for (id, entry) in (0u32..).zip(&list) {
            let mut chars = entry.chars();
            let (Some(character), None) = (chars.next(), chars.next()) else {
                return Err(broken(path, format!("entry {id} is {entry:?}, needed one character")));
            };
            if let Some(first) = ids.insert(character, id) {
                return Err(broken(path, format!("{character:?} is entry {first} and entry {id}")));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            ids,
            table: TokenTable::new(list.iter().map(String::as_bytes)),
            fingerprint: sha256_hex(&[bytes]),
        })
    }
}

impl Tokenizer for Chars {
    fn vocab_size(&self) -> usize {
        self.table.len()
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        text.chars()
            .enumerate()
            .map(|(position, character)| {
                self.ids.get(&character).copied().ok_or_else(|| {
                    let code = u32::from(character);
                    broken(
                        &self.path,
                        format!("has no character {character:?} (U+{code:04X}), the text's character {position}"),
                    )
                })
            })
            .collect()
    }

    fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text)
    }

    fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.table.get(id)
    }

    fn eos_id(&self) -> Option<u32> {
        None
    }

    fn special_ids(&self) -> &[u32] {
        &[]
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.table.get(id).ok().map(super::printable)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        let mut chars = token.chars();
        let character = chars.next()?;
        chars.next().is_none().then(|| self.ids.get(&character).copied())?
    }

    fn describe(&self) -> String {
        format!("characters, {} tokens", self.table.len())
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Chars> {
        Chars::parse(Path::new("chars.json"), json.as_bytes())
    }

    #[test]
    fn characters_are_their_place_in_the_list() -> Result<()> {
        let chars = parse(r#"["\n", " ", "a", "é", "語"]"#)?;
        assert_eq!(chars.encode("é a語\n")?, [3, 1, 2, 4, 0]);
        assert_eq!(chars.decode(&[3, 1, 2, 4, 0])?, "é a語\n");
        assert_eq!(chars.token_to_id("語"), Some(4));
        assert_eq!(chars.token_to_id("aa"), None);
        assert_eq!(chars.id_to_token(2).as_deref(), Some("a"));
        Ok(())
    }

    #[test]
    fn an_unknown_character_is_named() -> Result<()> {
        let message = parse(r#"["a"]"#)?.encode("aaß").expect_err("ß is not in the list").to_string();
        assert!(message.contains("'ß' (U+00DF), the text's character 2"), "{message}");
        Ok(())
    }

    #[test]
    fn broken_lists_are_refused() {
        for (json, reason) in [
            (r#"["a", "bc"]"#, r#"entry 1 is "bc", needed one character"#),
            (r#"["a", ""]"#, r#"entry 1 is """#),
            (r#"["a", "b", "a"]"#, "'a' is entry 0 and entry 2"),
            ("[]", "holds 0 characters"),
            (r#"{"a": 0}"#, "not a JSON array"),
        ] {
            let message = parse(json).expect_err("broken").to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
}
