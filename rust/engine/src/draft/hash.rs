//! A hash of the last tokens of a text.

/// Hash of a run, from its last token to its first: for each token, `h = (h ^ token ^ 0x9E3779B97F4A7C15) *
/// 0xD6E8FEB86659FD93` and then `h ^= h >> 32`, beginning with 0. Files hold places that it gives, so it must not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RunHash(pub u64);

impl RunHash {
    /// Takes in the token before.
    pub fn add(&mut self, token: u32) {
        let mixed = (self.0 ^ u64::from(token) ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.0 = mixed ^ (mixed >> 32);
    }

    /// That of a whole run.
    pub fn of(run: &[u32]) -> Self {
        let mut hash = Self::default();
        run.iter().rev().for_each(|&token| hash.add(token));
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed apart from this crate, from the description above: files must keep their meaning.
    #[test]
    fn hashes_never_change() {
        assert_eq!(RunHash::of(&[]).0, 0);
        assert_eq!(RunHash::of(&[7]).0, 0xc84f_2f95_caea_27c3);
        assert_eq!(RunHash::of(&[50_000, 0, 7]).0, 0x4578_277c_71f2_36d3);
    }
}
