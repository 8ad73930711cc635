//! Every operation of [`Isa`] on values that are hard to get right: the results are those of a constant that stands here, so
//! they are the same on processors that never meet.

use crate::testing::Rng;
use crate::{Isa, LANES, Op, for_each_isa};

type Lanes = [f32; LANES];

/// Zeros, subnormals, the edges of the range, infinities, NaN with either sign, and ties.
const SPECIAL: [u32; 20] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3f00_0000,
    0x4b00_0001,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
    0x3380_0000,
];

/// FNV-1a over words; one NaN is like another.
struct Hash(u64);

impl Hash {
    fn words(&mut self, words: impl IntoIterator<Item = u32>) {
        for word in words {
            self.0 = (self.0 ^ u64::from(word)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn lanes(&mut self, lanes: Lanes) {
        self.words(lanes.map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }));
    }
}

/// The results of all operations on floating-point numbers: three vectors and 16 halves of words.
struct Floats<'a>(&'a [Lanes; 3], &'a [u16; LANES]);

impl Op for Floats<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<Lanes> {
        let [a, b, c] = self.0.map(|x| isa.load(&x));
        let words = self.0[0].map(|x| x.to_bits().to_ne_bytes());
        // A number for the exponent as the callers give it, and any bits.
        let magic = isa.splat(12_582_912.0 + f32::from(self.1[0] as i16 % 100));
        [
            isa.splat(self.0[0][0]),
            isa.load_bf16(self.1),
            isa.load_f16(self.1),
            isa.load_bf16_low(&words),
            isa.load_bf16_high(&words),
            isa.add(a, b),
            isa.sub(a, b),
            isa.mul(a, b),
            isa.div(a, b),
            isa.fma(a, b, c),
            isa.max(a, b),
            isa.select_gt(a, b, c, a),
            isa.select_ge(a, b, c, b),
            isa.select_nan(a, b, c),
            isa.scale_exponent(a, magic),
            isa.scale_exponent(a, b),
        ]
        .map(|v| isa.to_array(v))
        .to_vec()
    }
}

/// Those on integers: a sum that goes on, weights, a table of weights, and activations.
struct Integers<'a>(i32, &'a [u8; 64], &'a [u8; 16], [i8; 4]);

impl Op for Integers<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<Lanes> {
        let Integers(sum, weights, table, x) = self;
        let sum = isa.splat_n(sum - I::DOT_OFFSET * x.iter().map(|&x| i32::from(x)).sum::<i32>());
        let (low, high) = isa.load_nibbles(weights, table);
        [isa.load_q(weights), low, high].map(|w| isa.to_array(isa.to_f32(isa.dot4(sum, w, x)))).to_vec()
    }
}

/// Those on words of random numbers.
struct Words<'a>(&'a [u32; LANES], &'a [u32; LANES]);

impl Op for Words<'_> {
    type Output = Vec<Lanes>;
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<Lanes> {
        let (a, b) = (isa.load_n(self.0), isa.load_n(self.1));
        let ((high, low), (first, second)) = (isa.mul_wide(a, b), isa.zip_n(a, b));
        // f32 holds 24 bits, so each word goes out in two halves.
        let halves = |n: I::N| {
            let upper = isa.mul_wide(n, isa.splat_n(1 << 16)).0;
            let lower = isa.mul_wide(isa.mul_wide(n, isa.splat_n(1 << 16)).1, isa.splat_n(1 << 16)).0;
            [upper, lower].map(|n| isa.to_array(isa.to_f32(n)))
        };
        let found = [a, isa.add_n(a, b), isa.xor_n(a, b), high, low, first, second].map(halves);
        let (x, y) = (isa.to_f32(a), isa.to_f32(b));
        let any = [isa.any_ge(x, y), isa.any_ge(y, x), isa.any_ge(x, isa.splat(f32::NAN))];
        found.into_iter().flatten().chain(any.map(|any| [f32::from(any); LANES])).collect()
    }
}

#[test]
fn every_operation_has_the_bits_of_every_processor() {
    for_each_isa(|level| {
        let (mut rng, mut hash) = (Rng(11), Hash(0xcbf2_9ce4_8422_2325));
        for round in 0..if cfg!(miri) { 20 } else { 4_000 } {
            // In turn: any bits, special values, numbers of like size (which cancel and tie).
            let mut value = |_| match round % 3 {
                0 => f32::from_bits(rng.next_u32()),
                1 => f32::from_bits(SPECIAL[rng.next_u32() as usize % SPECIAL.len()]),
                _ => rng.unit() * [1.0, 2.0, 0.5, 1.0 / 4096.0][rng.next_u32() as usize % 4],
            };
            let vectors = [(); 3].map(|()| std::array::from_fn(&mut value));
            let halves = std::array::from_fn(|_| rng.next_u32() as u16);
            level.dispatch(Floats(&vectors, &halves)).into_iter().for_each(|lanes| hash.lanes(lanes));

            // Weights and activations of -127 to 127, weights plus 128; sums so large that f32 rounds them, and usual ones.
            let mut byte = |_: usize| match round % 5 {
                0 => [1, 255][rng.next_u32() as usize % 2],
                _ => (rng.next_u32() % 255 + 1) as u8,
            };
            let (weights, table) = (std::array::from_fn(&mut byte), std::array::from_fn(&mut byte));
            let x: [u8; 4] = std::array::from_fn(&mut byte);
            let x = x.map(|x| (x ^ 0x80) as i8);
            let sum = (rng.next_u32() as i32) >> [2, 15][round % 2];
            level.dispatch_dot(Integers(sum, &weights, &table, x)).into_iter().for_each(|lanes| hash.lanes(lanes));
        }
        if !cfg!(miri) {
            assert_eq!(format!("{:016x}", hash.0), "a76290c3d0cba5dc", "{}", level.name());
        }
    });
}

#[test]
fn every_operation_on_words_has_the_bits_of_every_processor() {
    for_each_isa(|level| {
        let (mut rng, mut hash) = (Rng(12), Hash(0xcbf2_9ce4_8422_2325));
        for round in 0..if cfg!(miri) { 20 } else { 4_000 } {
            // In turn: any bits, special values, lanes that are equal but for few.
            let mut word = |_| match round % 3 {
                0 => rng.next_u32(),
                1 => [0, 1, u32::MAX, 1 << 31, 1 << 16][rng.next_u32() as usize % 5],
                _ => 8 + u32::from(rng.next_u32().is_multiple_of(16)),
            };
            let [a, b] = [(); 2].map(|()| std::array::from_fn(&mut word));
            level.dispatch(Words(&a, &b)).into_iter().for_each(|lanes| hash.lanes(lanes));
        }
        if !cfg!(miri) {
            assert_eq!(format!("{:016x}", hash.0), "c88bca786fab2c25", "{}", level.name());
        }
    });
}
