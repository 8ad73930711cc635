//! bfloat16 and IEEE half floats to f32 and back. Widening is exact; narrowing rounds to nearest, ties to even.

/// A bfloat16 is the upper half of an f32.
#[inline(always)]
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Rounds to bfloat16; NaN stays NaN, values beyond the range become infinite.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x0040;
    }
    // Half a unit of the result, less one if the result is even so far: ties then go to even.
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Widens a half float; subnormals included.
#[inline(always)]
pub fn f16_to_f32(x: u16) -> f32 {
    let sign = u32::from(x & 0x8000) << 16;
    let magnitude = u32::from(x & 0x7fff);
    // The f32 with the same exponent and mantissa fields is 2^112 too small, in both ranges; the product is exact.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let special = f32::from_bits(0x7f80_0000 | (magnitude << 13) | if magnitude > 0x7c00 { 0x0040_0000 } else { 0 });
    let value = if magnitude >= 0x7c00 { special } else { scaled };
    f32::from_bits(sign | value.to_bits())
}

/// Rounds to a half float; NaN stays NaN, values beyond the range become infinite.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let value = if magnitude > 0x7f80_0000 {
        0x7e00 | (magnitude >> 13) as u16 & 0x03ff
    } else if magnitude >= 0x4780_0000 {
        0x7c00 // 65536 and above
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14: adding 0.5 leaves the subnormal half float, rounded, in the last bits of the sum.
        ((f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000) as u16
    } else {
        let rounded = magnitude + 0x0fff + ((magnitude >> 13) & 1);
        ((rounded - (112 << 23)) >> 13) as u16
    };
    sign | value
}

/// Converts every element with `f`, from `from` to `to`, which must be of equal length.
fn convert_slice<A: Copy, B>(from: &[A], to: &mut [B], f: impl Fn(A) -> B) {
    assert_eq!(from.len(), to.len(), "converted slices must be of equal length");
    for (to, &from) in to.iter_mut().zip(from) {
        *to = f(from);
    }
}

/// [`bf16_to_f32`] over slices of equal length.
pub fn bf16_to_f32_slice(from: &[u16], to: &mut [f32]) {
    convert_slice(from, to, bf16_to_f32);
}

/// [`f32_to_bf16`] over slices of equal length.
pub fn f32_to_bf16_slice(from: &[f32], to: &mut [u16]) {
    convert_slice(from, to, f32_to_bf16);
}

/// [`f16_to_f32`] over slices of equal length.
pub fn f16_to_f32_slice(from: &[u16], to: &mut [f32]) {
    convert_slice(from, to, f16_to_f32);
}

/// [`f32_to_f16`] over slices of equal length.
pub fn f32_to_f16_slice(from: &[f32], to: &mut [u16]) {
    convert_slice(from, to, f32_to_f16);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_same_bits};
    use crate::{Isa, LANES, Level, Op, for_each_isa};

    /// The value that the bits stand for, from the definition.
    fn naive_f16(x: u16) -> f64 {
        let (exponent, mantissa) = (i32::from(x >> 10 & 31), f64::from(x & 0x3ff));
        let magnitude = match exponent {
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            0 => mantissa * 2f64.powi(-24),
            e => (1024.0 + mantissa) * 2f64.powi(e - 25),
        };
        if x & 0x8000 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_half_float_widens_exactly_and_comes_back() {
        for x in 0..=u16::MAX {
            let wide = f16_to_f32(x);
            let wanted = naive_f16(x);
            assert!(f64::from(wide).to_bits() == wanted.to_bits() || (wide.is_nan() && wanted.is_nan()), "{x:#06x}");
            if wide.is_nan() {
                assert!(f16_to_f32(f32_to_f16(wide)).is_nan());
                assert!(bf16_to_f32(f32_to_bf16(wide)).is_nan());
            } else {
                assert_eq!(f32_to_f16(wide), x, "{x:#06x}");
            }
            let wide = bf16_to_f32(x);
            if !wide.is_nan() {
                assert_eq!(f32_to_bf16(wide), x, "{x:#06x}");
            }
        }
    }

    /// Nearest of the two neighbours, ties to the even one, with f64 as the judge.
    fn naive_narrow(x: f32, widen: impl Fn(u16) -> f32, infinity: u16, beyond: f64) -> u16 {
        let magnitude = f64::from(x.abs());
        let mut low = 0u16;
        let mut high = infinity;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if f64::from(widen(middle)) <= magnitude { low = middle } else { high = middle }
        }
        let above = if high == infinity { beyond } else { f64::from(widen(high)) };
        let (down, up) = (magnitude - f64::from(widen(low)), above - magnitude);
        let pick = if down < up || (down == up && low & 1 == 0) { low } else { high };
        pick | if x.is_sign_negative() { 0x8000 } else { 0 }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even() {
        let mut rng = Rng(5);
        for i in 0..if cfg!(miri) { 500 } else { 200_000 } {
            // Around the range of half floats, with many ties.
            let mut bits =
                (rng.next_u32() & 0x8000_0000) | ((rng.next_u32() % 50 + 95) << 23) | (rng.next_u32() & 0x007f_ffff);
            if i % 3 == 0 {
                bits &= 0xffff_f000;
            }
            let x = f32::from_bits(bits);
            assert_eq!(f32_to_f16(x), naive_narrow(x, f16_to_f32, 0x7c00, 65536.0), "{x:e}");
            let x = f32::from_bits(if i % 3 == 0 { rng.next_u32() & 0xffff_8000 } else { rng.next_u32() });
            if x.is_finite() {
                assert_eq!(f32_to_bf16(x), naive_narrow(x, bf16_to_f32, 0x7f80, 2f64.powi(128)), "{x:e}");
            }
        }
    }

    struct Widen<'a>(&'a [u16; LANES]);
    impl Op for Widen<'_> {
        type Output = [[f32; LANES]; 2];
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Self::Output {
            [isa.to_array(isa.load_bf16(self.0)), isa.to_array(isa.load_f16(self.0))]
        }
    }

    #[test]
    fn every_instruction_set_widens_alike() {
        for_each_isa(|level: Level| {
            for start in (0..=u16::MAX).step_by(if cfg!(miri) { 4096 } else { LANES }) {
                let x: [u16; LANES] = std::array::from_fn(|i| start.wrapping_add(i as u16));
                let [bf16, f16] = level.dispatch(Widen(&x));
                assert_same_bits(&bf16, &x.map(bf16_to_f32), level.name());
                assert_same_bits(&f16, &x.map(f16_to_f32), level.name());
            }
        });
    }
}
