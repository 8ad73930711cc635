//! What bytes a Hugging Face token stands for.
//!
//! `tokenizer.json` describes decoding as steps over a whole list of tokens. Generation needs the bytes of one token, so
//! here each step is applied to a token alone. Steps for which that would be wrong are refused by name when loading.
//! A space that encoding puts before the text, and the decoder takes away again, is not part of any token: see
//! [`Decoder::drops_first_space`].

use serde_json::Value;

/// No token has more bytes; a chain of replacements could otherwise ask for any amount of memory.
const MAX_TOKEN: usize = 1 << 16;

/// The steps from a token's name in the vocabulary to its bytes.
#[derive(Debug)]
pub(super) struct Decoder {
    steps: Vec<Step>,
    /// Whether decoding a whole text takes away one space at its beginning.
    pub(super) drops_first_space: bool,
}

#[derive(Debug)]
enum Step {
    /// Characters of GPT-2's table to bytes.
    ByteLevel,
    /// `<0x0A>` to a byte.
    ByteFallback,
    /// `▁` to a space, and other fixed strings.
    Replace { from: String, to: String },
    /// Up to so many of a character away at the beginning and the end.
    Strip { content: char, start: usize, stop: usize },
}

/// A token on its way: text until a step has made bytes of it.
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

impl Decoder {
    /// Reads the `decoder` of a file. One without a decoder is read as byte-level where its `pre_tokenizer` is.
    pub(super) fn parse(decoder: &Value, pre_tokenizer: &Value) -> Result<Self, String> {
        let mut parsed = Self { steps: Vec::new(), drops_first_space: false };
        match decoder {
            Value::Null if has_byte_level(pre_tokenizer) => parsed.steps.push(Step::ByteLevel),
            Value::Null => {
                return Err(
                    "has no decoder: how its tokens become text is not said (Hugging Face joins them by spaces)"
                        .to_owned(),
                );
            }
            _ => {
                parsed.add(decoder, &mut false)?;
            }
        }
        Ok(parsed)
    }

    /// Adds a step. `fused` says whether all tokens are already one text at this point.
    fn add(&mut self, step: &Value, fused: &mut bool) -> Result<(), String> {
        let kind = step.get("type").and_then(Value::as_str).unwrap_or("without a type");
        match kind {
            "Sequence" => {
                let steps = step.get("decoders").and_then(Value::as_array);
                for step in steps.ok_or("has a decoder Sequence without a list of decoders")? {
                    self.add(step, fused)?;
                }
            }
            "ByteLevel" => self.steps.push(Step::ByteLevel),
            "ByteFallback" if !*fused => self.steps.push(Step::ByteFallback),
            "Fuse" => *fused = true,
            "Replace" if !*fused => {
                let from = step.pointer("/pattern/String").and_then(Value::as_str).filter(|from| !from.is_empty());
                let to = step.get("content").and_then(Value::as_str);
                let (Some(from), Some(to)) = (from, to) else {
                    return Err(
                        "has a decoder Replace with something other than a fixed string, which is not supported"
                            .to_owned(),
                    );
                };
                self.steps.push(Step::Replace { from: from.to_owned(), to: to.to_owned() });
            }
            "Metaspace" if !*fused => self.add_metaspace(step)?,
            "Strip" => self.add_strip(step, *fused)?,
            _ => {
                let place = if *fused { " after Fuse" } else { "" };
                return Err(format!(
                    "has the decoder {kind}{place}, which is not supported: the bytes of a token would depend on its neighbours"
                ));
            }
        }
        Ok(())
    }

    fn add_metaspace(&mut self, step: &Value) -> Result<(), String> {
        let replacement = step.get("replacement").and_then(Value::as_str).filter(|text| text.chars().count() == 1);
        let from = replacement.ok_or("has a decoder Metaspace without a replacement of one character")?;
        self.steps.push(Step::Replace { from: from.to_owned(), to: " ".to_owned() });
        let never = step.get("prepend_scheme").and_then(Value::as_str) == Some("never")
            || step.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
        self.drops_first_space |= !never;
        Ok(())
    }

    fn add_strip(&mut self, step: &Value, fused: bool) -> Result<(), String> {
        let content = step.get("content").and_then(Value::as_str).and_then(|text| {
            let mut chars = text.chars();
            chars.next().filter(|_| chars.next().is_none())
        });
        let count = |key: &str| step.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let (Some(content), Some(start), Some(stop)) = (content, count("start"), count("stop")) else {
            return Err("has a decoder Strip without a character and two counts".to_owned());
        };
        match (fused, content, start, stop) {
            (false, ..) => self.steps.push(Step::Strip { content, start, stop }),
            (true, ' ', 1, 0) => self.drops_first_space = true,
            _ => {
                return Err(format!(
                    "has the decoder Strip of {content:?} ({start} at the beginning, {stop} at the end of the text), which is not supported"
                ));
            }
        }
        Ok(())
    }

    /// The bytes of the token with this name.
    pub(super) fn bytes(&self, token: &str) -> Result<Vec<u8>, String> {
        let mut piece = Piece::Text(token.to_owned());
        for step in &self.steps {
            piece = match piece {
                Piece::Text(text) => step.apply(text),
                Piece::Bytes(bytes) => Piece::Bytes(bytes),
            };
            if matches!(&piece, Piece::Text(text) if text.len() > MAX_TOKEN) {
                return Err(format!("has a token of more than {MAX_TOKEN} bytes"));
            }
        }
        Ok(match piece {
            Piece::Text(text) => text.into_bytes(),
            Piece::Bytes(bytes) => bytes,
        })
    }
}

impl Step {
    fn apply(&self, text: String) -> Piece {
        match self {
            // As Hugging Face has it: a token with a character outside the table stands for itself.
            Step::ByteLevel => match text.chars().map(byte_of).collect() {
                Some(bytes) => Piece::Bytes(bytes),
                None => Piece::Bytes(text.into_bytes()),
            },
            Step::ByteFallback => match byte_token(&text) {
                Some(byte) => Piece::Bytes(vec![byte]),
                None => Piece::Text(text),
            },
            Step::Replace { from, to } => Piece::Text(text.replace(from, to)),
            Step::Strip { content, start, stop } => {
                let mut rest = text.as_str();
                for _ in 0..(*start).min(text.len()) {
                    rest = rest.strip_prefix(*content).unwrap_or(rest);
                }
                for _ in 0..(*stop).min(text.len()) {
                    rest = rest.strip_suffix(*content).unwrap_or(rest);
                }
                Piece::Text(rest.to_owned())
            }
        }
    }
}

/// Whether a `pre_tokenizer` is byte-level or has such a part.
fn has_byte_level(pre_tokenizer: &Value) -> bool {
    let parts = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
    pre_tokenizer.get("type").and_then(Value::as_str) == Some("ByteLevel")
        || parts.is_some_and(|parts| parts.iter().any(has_byte_level))
}

/// The byte of `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    two.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a character of a byte-level vocabulary stands for.
///
/// GPT-2 (`encoder.py`, `bytes_to_unicode`) writes bytes that are printable in Latin-1 as themselves and the other 68, in
/// ascending order, as the characters from U+0100 on.
pub(super) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decoder(value: Value) -> Result<Decoder, String> {
        Decoder::parse(&value, &Value::Null)
    }

    #[test]
    fn the_byte_table_is_a_bijection() {
        let mut seen: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn byte_level_tokens() -> Result<(), String> {
        let decoder = decoder(json!({"type": "ByteLevel"}))?;
        assert_eq!(decoder.bytes("Ġthe")?, b" the");
        assert_eq!(decoder.bytes("è")?, b"\xe8");
        assert_eq!(decoder.bytes("語")?, "語".as_bytes());
        assert!(!decoder.drops_first_space);
        Ok(())
    }

    #[test]
    fn sentencepiece_tokens() -> Result<(), String> {
        let llama = decoder(json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}))?;
        assert!(llama.drops_first_space);
        assert_eq!(llama.bytes("▁a▁")?, b" a ");
        assert_eq!(llama.bytes("<0xE8>")?, b"\xe8");
        assert_eq!(llama.bytes("<0x+1>")?, b"<0x+1>");
        let metaspace = decoder(json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}))?;
        assert_eq!(metaspace.bytes("▁a")?, b" a");
        assert!(!metaspace.drops_first_space);
        assert!(decoder(json!({"type": "Metaspace", "replacement": "▁"}))?.drops_first_space);
        Ok(())
    }

    #[test]
    fn strip_before_fuse_is_for_each_token() -> Result<(), String> {
        let strip = decoder(json!({"type": "Strip", "content": "#", "start": 2, "stop": 1}))?;
        assert_eq!(strip.bytes("###a##")?, b"#a#");
        assert_eq!(strip.bytes("#")?, b"");
        Ok(())
    }

    #[test]
    fn what_needs_neighbours_is_refused_by_name() {
        let refused = [
            (json!({"type": "WordPiece", "prefix": "##"}), "WordPiece"),
            (json!({"type": "CTC"}), "CTC"),
            (json!({"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
            (json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": ""}), "Replace"),
            (json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"}), "Replace"),
            (
                json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
                "Strip",
            ),
            (
                json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a"}, "content": ""}]}),
                "Replace after Fuse",
            ),
            (json!({"type": "Sequence"}), "Sequence"),
            (json!({}), "without a type"),
            (Value::Null, "no decoder"),
        ];
        for (value, name) in refused {
            let reason = decoder(value).expect_err(name);
            assert!(reason.contains(name), "{reason}");
        }
        let byte_level = json!({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]});
        assert!(Decoder::parse(&Value::Null, &byte_level).is_ok());
    }

    #[test]
    fn replacements_cannot_grow_without_bound() -> Result<(), String> {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let chain = decoder(json!({"type": "Sequence", "decoders": vec![double; 40]}))?;
        assert!(chain.bytes("a").is_err());
        assert_eq!(chain.bytes("b")?, b"b");
        Ok(())
    }
}
