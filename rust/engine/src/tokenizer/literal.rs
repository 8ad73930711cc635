//! Python string and bytes literals, as `repr` writes them.
//!
//! The World vocabulary holds its tokens as Python literals and the original reads them with `eval`. Here is a reader of
//! the literals alone. It follows the Python reference, "String and Bytes literals", and is stricter: one pair of quotes,
//! no prefix but `b`, no unknown escapes, no names of characters.

/// The bytes of a literal: of `'…'` its UTF-8, of `b'…'` the bytes themselves. The error says what is wrong.
pub(super) fn parse(literal: &str) -> Result<Vec<u8>, String> {
    let (is_bytes, quoted) = match literal.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let quote = match quoted.chars().next() {
        Some(quote @ ('\'' | '"')) => quote,
        _ => return Err("is not a Python string or bytes literal".to_owned()),
    };
    let body = quoted[1..].strip_suffix(quote).ok_or_else(|| "has no closing quote".to_owned())?;
    let mut reader = Reader { chars: body.chars(), is_bytes, out: Vec::with_capacity(body.len()) };
    while let Some(character) = reader.chars.next() {
        match character {
            '\\' => reader.escape()?,
            _ if character == quote => {
                return Err("has a quote inside that is not escaped".to_owned());
            }
            '\n' | '\r' | '\0' => return Err(format!("holds a raw {character:?}")),
            _ if is_bytes && !character.is_ascii() => {
                return Err(format!("holds {character:?} in a bytes literal"));
            }
            _ => reader.push_char(character),
        }
    }
    Ok(reader.out)
}

struct Reader<'a> {
    chars: std::str::Chars<'a>,
    is_bytes: bool,
    out: Vec<u8>,
}

impl Reader<'_> {
    /// Reads what follows a backslash.
    fn escape(&mut self) -> Result<(), String> {
        let escape =
            self.chars.next().ok_or_else(|| "ends in a backslash, which escapes the closing quote".to_owned())?;
        let value = match escape {
            '\\' | '\'' | '"' => u32::from(escape),
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => 0x0a,
            'r' => 0x0d,
            't' => 0x09,
            'v' => 0x0b,
            'x' => self.hex(2)?,
            'u' if !self.is_bytes => self.hex(4)?,
            'U' if !self.is_bytes => self.hex(8)?,
            '0'..='7' => self.octal(escape),
            _ => return Err(format!("has the unknown escape \\{escape}")),
        };
        self.push(value)
    }

    /// Exactly `digits` hexadecimal digits.
    fn hex(&mut self, digits: usize) -> Result<u32, String> {
        (0..digits).try_fold(0, |value: u32, _| {
            let digit = self.chars.next().and_then(|digit| digit.to_digit(16));
            digit
                .map(|digit| value << 4 | digit)
                .ok_or_else(|| format!("has an escape with fewer than {digits} hexadecimal digits"))
        })
    }

    /// One to three octal digits, the first already read.
    fn octal(&mut self, first: char) -> u32 {
        let mut value = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit) = self.chars.clone().next().and_then(|digit| digit.to_digit(8)) else {
                break;
            };
            self.chars.next();
            value = value << 3 | digit;
        }
        value
    }

    fn push(&mut self, value: u32) -> Result<(), String> {
        if self.is_bytes {
            let byte = u8::try_from(value).map_err(|_| format!("has the escape {value:#o}, which is no byte"))?;
            self.out.push(byte);
        } else {
            let character =
                char::from_u32(value).ok_or_else(|| format!("has the escape U+{value:04X}, which is no character"))?;
            self.push_char(character);
        }
        Ok(())
    }

    fn push_char(&mut self, character: char) {
        let mut utf8 = [0; 4];
        self.out.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Python's `repr` gives for bytes.
    fn bytes_repr(bytes: &[u8]) -> String {
        let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
        let mut repr = format!("b{quote}");
        for &byte in bytes {
            match byte {
                b'\\' => repr.push_str("\\\\"),
                b'\t' => repr.push_str("\\t"),
                b'\n' => repr.push_str("\\n"),
                b'\r' => repr.push_str("\\r"),
                _ if byte == quote as u8 => repr.push_str(&format!("\\{quote}")),
                0x20..0x7f => repr.push(byte as char),
                _ => repr.push_str(&format!("\\x{byte:02x}")),
            }
        }
        repr.push(quote);
        repr
    }

    /// A literal of a string; `forms` chooses how each character is written.
    fn str_literal(text: &str, forms: &[u8]) -> String {
        let mut literal = String::from("'");
        for (character, form) in text.chars().zip(forms.iter().cycle()) {
            let code = u32::from(character);
            match form % 4 {
                0 if code < 0x100 => literal.push_str(&format!("\\x{code:02x}")),
                1 if code < 0x1_0000 => literal.push_str(&format!("\\u{code:04X}")),
                2 => literal.push_str(&format!("\\U{code:08x}")),
                _ if matches!(character, '\'' | '\\') => literal.extend(['\\', character]),
                _ if matches!(character, '\0' | '\n' | '\r') => literal.push_str(&format!("\\{code:03o}")),
                _ => literal.push(character),
            }
        }
        literal.push('\'');
        literal
    }

    #[test]
    fn literals_as_python_reads_them() {
        // The expected bytes are what Python 3.11 gives for each literal.
        let cases: [(&str, &[u8]); 12] = [
            (r"'\x00'", b"\x00"),
            (r"'\x80'", b"\xc2\x80"),
            (r"b'\x80'", b"\x80"),
            (r#"b"it's""#, b"it's"),
            (r#""'""#, b"'"),
            (r#"'"'"#, b"\""),
            (r#"'\'\"\\'"#, b"'\"\\"),
            (r"'\a\b\f\n\r\t\v'", b"\x07\x08\x0c\n\r\t\x0b"),
            (r"'\0\12\1234'", b"\x00\nS4"),
            (r"'\u8a9e\U0001f980'", "語🦀".as_bytes()),
            (r"'\777'", "ǿ".as_bytes()),
            ("''", b""),
        ];
        for (literal, bytes) in cases {
            assert_eq!(parse(literal).as_deref(), Ok(bytes), "{literal}");
        }
    }

    #[test]
    fn what_is_not_a_literal_is_refused() {
        for literal in [
            "",
            "b",
            "a",
            "'",
            "b'",
            "'a",
            "a'",
            "'a\"",
            "'a'b'",
            "r'a'",
            "B'a'",
            "'''a'''",
            r"'\'",
            r"'\q'",
            r"'\x1'",
            r"'\xg0'",
            r"'\ud800'",
            r"'\U00110000'",
            r"'\N{DASH}'",
            r"b'\u0041'",
            r"b'\400'",
            "b'é'",
            "'a\nb'",
            "'\\\n'",
            "__import__('os')",
            "'a' + 'b'",
        ] {
            assert!(parse(literal).is_err(), "{literal}");
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(parse(&bytes_repr(&bytes)), Ok(bytes));
        }

        #[test]
        fn text_comes_back(text in any::<String>(), forms in prop::collection::vec(any::<u8>(), 1..8)) {
            prop_assert_eq!(parse(&str_literal(&text, &forms)), Ok(text.into_bytes()));
        }

        #[test]
        fn anything_is_read_or_refused(literal in "b?['\"]?[\\\\'\"xuUN{}0-9a-fé\n]{0,16}['\"]?") {
            let _ = parse(&literal);
        }
    }
}
