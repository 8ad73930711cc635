//! Logits of all tokens, or of some.

/// A line of logits and the tokens they stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line<'a> {
    /// One logit for each token.
    pub logits: &'a [f32],
    /// The tokens, ascending and as many as there are logits; None: `0..logits.len()`.
    pub ids: Option<&'a [u32]>,
}

impl<'a> From<&'a [f32]> for Line<'a> {
    /// A logit for every token of the vocabulary.
    fn from(logits: &'a [f32]) -> Self {
        Self { logits, ids: None }
    }
}

impl Line<'_> {
    /// The token that a logit stands for.
    pub(super) fn id(&self, index: usize) -> u32 {
        self.ids.map_or(index as u32, |ids| ids[index])
    }

    /// Where a token's logit is, if it has one.
    pub(super) fn index(&self, id: u32) -> Option<usize> {
        match self.ids {
            None => Some(id as usize).filter(|&index| index < self.logits.len()),
            Some(ids) => ids.binary_search(&id).ok(),
        }
    }
}
