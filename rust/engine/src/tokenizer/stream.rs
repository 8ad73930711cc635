//! From a stream of token bytes to whole characters.
//!
//! A token may end inside a character: one Chinese character or emoji often spans two or three tokens. The decoder
//! holds back at most three bytes, the beginning of a character that may still become whole, and emits the rest at once.

/// Replaces what is not UTF-8.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Turns bytes that arrive in arbitrary pieces into text that never holds half a character.
///
/// Bytes that cannot become a character are replaced by U+FFFD as soon as that is certain, one for each *maximal
/// subpart* (Unicode standard, section 3.9, "U+FFFD Substitution of Maximal Subparts"). So the pieces together with
/// [`finish`](Self::finish) are what [`String::from_utf8_lossy`] makes of all the bytes at once.
///
/// ```
/// use spikelet::tokenizer::StreamDecoder;
///
/// let mut decoder = StreamDecoder::new();
/// let mut text = String::new();
/// decoder.push(b"caf\xc3", &mut text);
/// assert_eq!(text, "caf");
/// decoder.push(b"\xa9", &mut text);
/// assert_eq!(text, "café");
/// ```
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// The first bytes of a character that is not whole yet: always a valid beginning, hence at most three.
    held: [u8; 4],
    held_len: usize,
}

impl StreamDecoder {
    /// A decoder that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and appends to `out` every character that they make whole.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        let mut rest = bytes;
        while self.held_len > 0 {
            let Some((&byte, after)) = rest.split_first() else {
                return;
            };
            if self.join(byte, out) {
                rest = after;
            }
        }
        self.whole(rest, out);
    }

    /// Ends the text: what is held back can no longer become a character. The decoder is then as new.
    pub fn finish(&mut self, out: &mut String) {
        if self.held_len > 0 {
            self.held_len = 0;
            out.push(REPLACEMENT);
        }
    }

    /// Number of bytes held back, 0 to 3.
    pub fn held(&self) -> usize {
        self.held_len
    }

    /// Adds one byte to the held ones. False: it does not belong to them, they were replaced, and it is still to be read.
    fn join(&mut self, byte: u8, out: &mut String) -> bool {
        self.held[self.held_len] = byte;
        match std::str::from_utf8(&self.held[..=self.held_len]) {
            Ok(character) => {
                out.push_str(character);
                self.held_len = 0;
                true
            }
            Err(error) if error.error_len().is_none() => {
                self.held_len += 1;
                true
            }
            // The held bytes were a valid beginning, so the maximal subpart is exactly they.
            Err(_) => {
                out.push(REPLACEMENT);
                self.held_len = 0;
                false
            }
        }
    }

    /// Appends bytes that begin at a character's border and holds an unfinished last character.
    fn whole(&mut self, bytes: &[u8], out: &mut String) {
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && may_grow(invalid) {
                self.held[..invalid.len()].copy_from_slice(invalid);
                self.held_len = invalid.len();
            } else if !invalid.is_empty() {
                out.push(REPLACEMENT);
            }
        }
    }
}

/// Whether the bytes are the beginning of a character.
fn may_grow(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pushes `bytes` cut after each of `cuts` (taken modulo the length) and returns the pieces and the flushed end.
    fn stream(bytes: &[u8], cuts: &[usize]) -> (Vec<String>, String) {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut decoder = StreamDecoder::new();
        let mut start = 0;
        let mut pieces = Vec::new();
        for end in ends {
            let mut piece = String::new();
            decoder.push(&bytes[start..end], &mut piece);
            pieces.push(piece);
            start = end;
        }
        let mut last = String::new();
        decoder.finish(&mut last);
        assert_eq!(decoder.held(), 0);
        (pieces, last)
    }

    #[test]
    fn characters_come_out_with_their_last_byte() {
        for text in ["é", "語", "🦀"] {
            let mut decoder = StreamDecoder::new();
            let mut out = String::new();
            let (last, first) = text.as_bytes().split_last().expect("not empty");
            for byte in first {
                decoder.push(&[*byte], &mut out);
                assert_eq!(out, "");
            }
            decoder.push(&[*last], &mut out);
            assert_eq!(out, text);
            assert_eq!(decoder.held(), 0);
        }
    }

    #[test]
    fn invalid_bytes_are_replaced_as_soon_as_they_are_certain() {
        let mut decoder = StreamDecoder::new();
        let mut out = String::new();
        decoder.push(b"\xff", &mut out);
        assert_eq!(out, "\u{fffd}");
        decoder.push(b"\xe8\xaa", &mut out);
        assert_eq!(out, "\u{fffd}");
        decoder.push(b"a", &mut out);
        assert_eq!(out, "\u{fffd}\u{fffd}a");
        decoder.push(b"\xf0\x9f", &mut out);
        decoder.push(b"", &mut out);
        decoder.finish(&mut out);
        assert_eq!(out, "\u{fffd}\u{fffd}a\u{fffd}");
        decoder.finish(&mut out);
        assert_eq!(out, "\u{fffd}\u{fffd}a\u{fffd}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn pieces_of_text_are_the_text(text in "[a é語𝄞🦀👨‍👩‍👧🇩🇪ёא中文]{0,24}", cuts in prop::collection::vec(any::<usize>(), 0..40)) {
            let (pieces, last) = stream(text.as_bytes(), &cuts);
            prop_assert_eq!(pieces.concat(), text);
            prop_assert_eq!(last, "");
        }

        #[test]
        fn pieces_of_any_bytes_are_the_lossy_text(bytes in prop::collection::vec(any::<u8>(), 0..48), cuts in prop::collection::vec(any::<usize>(), 0..24)) {
            let (pieces, last) = stream(&bytes, &cuts);
            prop_assert_eq!(pieces.concat() + &last, String::from_utf8_lossy(&bytes));
        }

        /// Bytes near the borders of the encoding: surrogates, overlong forms, above U+10FFFF.
        #[test]
        fn pieces_of_broken_text_are_the_lossy_text(
            picks in prop::collection::vec(prop::sample::select(&[0x41, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xe0, 0xed, 0xef, 0xf0, 0xf4, 0xf5][..]), 0..24),
            cuts in prop::collection::vec(any::<usize>(), 0..24),
        ) {
            let (pieces, last) = stream(&picks, &cuts);
            prop_assert_eq!(pieces.concat() + &last, String::from_utf8_lossy(&picks));
        }
    }
}
