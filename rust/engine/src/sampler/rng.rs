//! Random numbers that are a pure function of where they are used.
//!
//! A generator that is stepped along would tie a token to how many numbers were drawn before it: by other rows, by another
//! way of cutting the work into passes, by drafts that were thrown away. Here a number belongs to (seed, row, position)
//! and has no history. The algorithm is part of what the crate promises: it must not change.

/// Philox4x32-10 of Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011): ten rounds that
/// mix a 128-bit counter with a 64-bit key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let ([mut a, mut b, mut c, mut d], [mut k, mut l]) = (counter, key);
    for _ in 0..10 {
        let x = MULTIPLIERS[0] * u64::from(a);
        let y = MULTIPLIERS[1] * u64::from(c);
        (a, b, c, d) = ((y >> 32) as u32 ^ b ^ k, y as u32, (x >> 32) as u32 ^ d ^ l, x as u32);
        k = k.wrapping_add(WEYL[0]);
        l = l.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// The noise of one row: its seed and its number in the user's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
    row: u32,
}

impl Noise {
    /// Last word of the counter for the number that draws a token. Ids of tokens are below it, so noise of single
    /// tokens can never meet it.
    const DRAW: u32 = u32::MAX;

    /// The noise of a row.
    pub fn new(seed: u64, row: u32) -> Self {
        Self { seed, row }
    }

    /// The number in [0, 1), a multiple of 2^-53, that draws the token at `position` of the sequence: key = seed, counter =
    /// (position low, position high, row, 2^32 - 1), the upper 53 bits of the first two words, first word high.
    pub fn uniform(&self, position: u64) -> f64 {
        let counter = [position as u32, (position >> 32) as u32, self.row, Self::DRAW];
        let [high, low, ..] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that the authors publish with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_its_authors_numbers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    /// Computed apart from this crate, from the description of `uniform`: texts of a seed must stay what they are.
    #[test]
    fn uniforms_never_change() {
        assert_eq!(Noise::new(0, 0).uniform(0), 0.799_191_412_743_525);
        assert_eq!(Noise::new(7, 3).uniform(5), 0.216_730_855_680_476_9);
        assert_eq!(Noise::new(0x1234_5678_9abc_def0, 2).uniform((1 << 33) + 1), 0.540_967_004_804_842_7);
    }

    #[test]
    fn seed_row_and_position_all_count() {
        let base = Noise::new(7, 0).uniform(3);
        assert_eq!(base, Noise::new(7, 0).uniform(3));
        for other in [
            Noise::new(8, 0).uniform(3),
            Noise::new(7 + (1 << 32), 0).uniform(3),
            Noise::new(7, 1).uniform(3),
            Noise::new(7, 0).uniform(4),
            Noise::new(7, 0).uniform(3 + (1 << 32)),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniforms_fill_the_unit_interval_evenly() {
        let mut counts = [0_u32; 16];
        for row in 0..16 {
            for position in 0..1000 {
                let u = Noise::new(42, row).uniform(position);
                assert!((0.0..1.0).contains(&u));
                counts[(u * 16.0) as usize] += 1;
            }
        }
        // Chi-square with 15 degrees of freedom: 37.7 is passed once in a thousand.
        let chi: f64 = counts.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 37.7, "{chi}");
    }
}
