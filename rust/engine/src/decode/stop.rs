//! Stop strings in a text that arrives in pieces.

/// Lets text through until it holds a stop string, and never lets a part of one out.
///
/// What could be the beginning of a stop string is held back until that is decided. The first stop string to be complete
/// counts, and of several that end at one place the longest; so neither what comes out nor where it ends depends on how the
/// text was cut.
#[derive(Clone, Debug)]
pub struct StopStrings {
    strings: Vec<String>,
    include: bool,
    held: String,
}

impl StopStrings {
    /// Looks for `strings`, none of which is empty. `include`: let the stop string itself out, too.
    pub fn new(strings: &[String], include: bool) -> Self {
        debug_assert!(!strings.iter().any(String::is_empty), "an empty stop string would stop everything");
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        // Room for a long token after the longest beginning, so that steady work does not allocate.
        let held = if longest == 0 { String::new() } else { String::with_capacity(longest + 256) };
        Self { strings: strings.to_vec(), include, held }
    }

    /// Takes the next piece and appends to `out` what is certain. True: a stop string is complete; what came after it is
    /// dropped.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        if self.strings.is_empty() {
            out.push_str(text);
            return false;
        }
        self.held.push_str(text);
        if let Some((start, end)) = self.find() {
            out.push_str(&self.held[..if self.include { end } else { start }]);
            self.held.clear();
            return true;
        }
        let certain = self.held.len() - self.open();
        out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        false
    }

    /// Ends the text: what is held back is no stop string any more.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Where the first complete stop string lies.
    fn find(&self) -> Option<(usize, usize)> {
        let places =
            self.strings.iter().filter_map(|s| self.held.find(s.as_str()).map(|start| (start, start + s.len())));
        places.min_by_key(|&(start, end)| (end, start))
    }

    /// Length of the longest end of what is held that could begin a stop string.
    fn open(&self) -> usize {
        let begins =
            |string: &str, length: &usize| string.is_char_boundary(*length) && self.held.ends_with(&string[..*length]);
        let longest = |string: &String| {
            let most = self.held.len().min(string.len() - 1);
            (1..=most).rev().find(|length| begins(string, length))
        };
        self.strings.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes out, and whether a stop string was met, of a search over the whole text.
    fn naive(strings: &[String], include: bool, text: &str) -> (String, bool) {
        for end in text.char_indices().map(|(i, c)| i + c.len_utf8()) {
            let ending = strings.iter().filter(|s| text[..end].ends_with(s.as_str()));
            if let Some(longest) = ending.map(String::len).max() {
                let cut = if include { end } else { end - longest };
                return (text[..cut].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    /// Pushes the characters of `text` in pieces of the given lengths.
    fn streamed(strings: &[String], include: bool, text: &str, lengths: &[usize]) -> (String, bool) {
        let mut stop = StopStrings::new(strings, include);
        let (mut out, mut stopped) = (String::new(), false);
        let mut chars = text.chars().peekable();
        for &length in lengths.iter().cycle() {
            if stopped || chars.peek().is_none() {
                break;
            }
            let piece: String = chars.by_ref().take(length).collect();
            stopped = stop.push(&piece, &mut out);
            if !stopped {
                let so_far = out.clone() + &stop.held;
                assert_eq!(naive(strings, include, &so_far), (so_far, false), "nothing is lost");
            }
        }
        if !stopped {
            stop.finish(&mut out);
        }
        (out, stopped)
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_stop_string_across_pieces_never_leaks() {
        let mut stop = StopStrings::new(&strings(&["\nUser:"]), false);
        let mut out = String::new();
        for piece in ["Hi", "!\n", "Us", "e"] {
            assert!(!stop.push(piece, &mut out));
            assert!("Hi!".starts_with(&out));
        }
        assert!(stop.push("r: more", &mut out));
        assert_eq!(out, "Hi!");
    }

    #[test]
    fn a_false_beginning_comes_out_late() {
        let mut stop = StopStrings::new(&strings(&["aab", "«»"]), false);
        let mut out = String::new();
        assert!(!stop.push("xaa", &mut out));
        assert_eq!(out, "x");
        assert!(!stop.push("a", &mut out));
        assert_eq!(out, "xa");
        assert!(!stop.push("«", &mut out));
        assert_eq!(out, "xaaa");
        stop.finish(&mut out);
        assert_eq!(out, "xaaa«");
    }

    #[test]
    fn the_first_complete_string_counts() {
        let list = strings(&["abcd", "bc"]);
        assert_eq!(streamed(&list, false, "xabcd", &[9]), ("xa".into(), true));
        assert_eq!(streamed(&list, true, "xabcd", &[1]), ("xabc".into(), true));
        assert_eq!(streamed(&strings(&["c", "abc"]), false, "abc", &[2]), (String::new(), true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_split_equals_a_search_over_the_whole_text(
            list in prop::collection::vec("[abé]{1,4}", 0..4),
            text in "[abéc🦀]{0,40}",
            lengths in prop::collection::vec(1..6_usize, 1..8),
            include in any::<bool>(),
        ) {
            prop_assert_eq!(streamed(&list, include, &text, &lengths), naive(&list, include, &text));
        }
    }
}
