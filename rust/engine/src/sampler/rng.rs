//! Random numbers that are a pure function of where they are used.
//!
//! A generator that is stepped along would tie a token to how many numbers were drawn before it: by other rows, by another
//! way of cutting the work into passes, by drafts that were thrown away. Here a number belongs to (seed, row, position)
//! and has no history. How they are made is part of what the crate promises: it must not change.

use spikelet_simd::{Race, philox};

/// What a number is for that does not draw the row's own token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Whether a drafted token is accepted.
    Accept,
    /// The token in place of the first one that was not.
    Residual,
    /// What a drafter guesses.
    Draft,
}

/// The noise of one row: its seed and its number in the user's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
    row: u32,
}

impl Noise {
    /// The noise of a row.
    pub fn new(seed: u64, row: u32) -> Self {
        Self { seed, row }
    }

    /// The seed, and the row's number.
    pub(super) fn name(&self) -> (u64, u32) {
        (self.seed, self.row)
    }

    /// The race that draws the token at `position` of the sequence.
    pub fn race(&self, position: u64) -> Race {
        Race::new(self.seed, self.row, position)
    }

    /// A number in [0, 1), a multiple of 2^-53, for the guess number `index` of the draft whose first token is the one at
    /// position `start`.
    ///
    /// It belongs to the draft and not to the position that the guess is for: a rule that looks at all guesses before it
    /// accepts some has used the numbers of the others too, and the next draft covers their positions again.
    ///
    /// Philox with the seed as key and the counter (start low, start high, row, 2^32 - 1 - 4 `index` - k), where k is 0 to
    /// accept, 1 for a residual and 2 to draft: the upper 53 bits of the first two words, first word high. The last word of
    /// a [`race`](Self::race) is below 2^30.
    pub fn uniform(&self, start: u64, index: u32, purpose: Purpose) -> f64 {
        let last = u32::MAX - 4 * index - purpose as u32;
        let counter = [start as u32, (start >> 32) as u32, self.row, last];
        let [high, low, ..] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::Purpose::{Accept, Draft, Residual};
    use super::*;

    /// Computed apart from this crate, from the description of `uniform`: texts of a seed must stay what they are.
    #[test]
    fn uniforms_never_change() {
        assert_eq!(Noise::new(0, 0).uniform(0, 0, Accept), 0.799_191_412_743_525);
        assert_eq!(Noise::new(7, 3).uniform(5, 0, Accept), 0.216_730_855_680_476_9);
        assert_eq!(Noise::new(7, 3).uniform(5, 2, Residual), 0.746_378_251_782_735_4);
        assert_eq!(Noise::new(0x1234_5678_9abc_def0, 2).uniform((1 << 33) + 1, 15, Draft), 0.294_081_227_926_153_77);
    }

    #[test]
    fn everything_that_a_number_belongs_to_counts() {
        let base = Noise::new(7, 0).uniform(3, 0, Accept);
        assert_eq!(base, Noise::new(7, 0).uniform(3, 0, Accept));
        for other in [
            Noise::new(8, 0).uniform(3, 0, Accept),
            Noise::new(7 + (1 << 32), 0).uniform(3, 0, Accept),
            Noise::new(7, 1).uniform(3, 0, Accept),
            Noise::new(7, 0).uniform(4, 0, Accept),
            Noise::new(7, 0).uniform(3 + (1 << 32), 0, Accept),
            Noise::new(7, 0).uniform(3, 1, Accept),
            Noise::new(7, 0).uniform(3, 0, Residual),
            Noise::new(7, 0).uniform(3, 0, Draft),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniforms_fill_the_unit_interval_evenly() {
        for purpose in [Accept, Residual, Draft] {
            let mut counts = [0_u32; 16];
            for row in 0..16 {
                for start in 0..1000 {
                    let u = Noise::new(42, row).uniform(start, row, purpose);
                    assert!((0.0..1.0).contains(&u));
                    counts[(u * 16.0) as usize] += 1;
                }
            }
            // Chi-square with 15 degrees of freedom: 37.7 is passed once in a thousand.
            let chi: f64 = counts.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 37.7, "{purpose:?} {chi}");
        }
    }
}
