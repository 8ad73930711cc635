//! Which inputs of a matrix are kept apart when it is quantised.
//!
//! Trained models have channels that are far larger than the others: what rounding does to their weights counts many times, and
//! their size sets the step of the 8-bit activations of the 63 inputs that share their block. Keeping such an input in 16 bits
//! takes away both errors. Which inputs those are shows only in use, so there must be a calibration.

use spikelet_simd::quant::QUANT_BLOCK;

use crate::model::InputStatistics;

/// At most one input in so many is kept apart.
const ONE_IN: usize = 64;
/// Bits that an input costs more when it is kept apart, per output.
const BITS: f64 = 16.0;
/// One bit more for every weight would divide the squared error by 4: the share of the error that it takes away, per bit.
const PER_BIT: f64 = std::f64::consts::LN_2 * 2.0;

/// A product whose expected squared error is this share of its square, or less, needs nothing.
const GOOD: f64 = 1e-3;

/// Squared errors of a matrix product and their parts, in units of the outputs' squares.
struct Errors<'a> {
    inputs: usize,
    /// By what the weights lose: per input.
    weights: Vec<f64>,
    /// By what activations lose: sum of the squares of a column's weights.
    power: &'a [f64],
    /// Inputs of some tokens, magnitudes, `[tokens][inputs]`; 0 for inputs that are kept apart.
    sample: Vec<f32>,
}

/// Inputs to keep apart, ascending.
///
/// `power` is the sum of squares of each column of the matrix, `lost` that of what its quantisation takes away. In turn, the
/// input whose removal takes away most of the expected error of the product goes, as long as it takes away more than the bits
/// that it costs would if they were spent on all weights alike: `16 ln 4 / inputs` of what is left. What is left must be worth it: more than
/// a thousandth of the product's square.
pub(super) fn choose(seen: &InputStatistics, power: &[f64], lost: &[f64]) -> Vec<u32> {
    let inputs = seen.inputs;
    let squares = seen.mean_squares();
    let mut errors = Errors {
        inputs,
        weights: squares.iter().zip(lost).map(|(&x, lost)| f64::from(x) * lost).collect(),
        power,
        sample: seen.sample.iter().map(|x| x.abs()).collect(),
    };
    let good = GOOD * squares.iter().zip(power).map(|(&x, power)| f64::from(x) * power).sum::<f64>();
    let share = (BITS * PER_BIT / inputs.max(1) as f64).min(1.0);
    let mut chosen = Vec::new();
    let mut gains: Vec<f64> = (0..inputs).map(|input| errors.gain(input)).collect();
    while chosen.len() < inputs / ONE_IN {
        let Some((best, &gain)) = gains.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) else { break };
        let total = errors.total();
        if total <= good || gain <= share * total || !gain.is_finite() {
            break;
        }
        errors.remove(best);
        chosen.push(best as u32);
        // Only what shares a block has changed.
        let first = best / QUANT_BLOCK * QUANT_BLOCK;
        (first..inputs.min(first + QUANT_BLOCK)).for_each(|input| gains[input] = errors.gain(input));
    }
    chosen.sort_unstable();
    chosen
}

impl Errors<'_> {
    fn total(&self) -> f64 {
        let blocks = (0..self.inputs).step_by(QUANT_BLOCK);
        self.weights.iter().sum::<f64>() + blocks.map(|first| self.of_activations(first, None)).sum::<f64>()
    }

    /// What goes away with an input: the error of its weights, and the coarser steps of its block.
    fn gain(&self, input: usize) -> f64 {
        let first = input / QUANT_BLOCK * QUANT_BLOCK;
        self.weights[input] + self.of_activations(first, None) - self.of_activations(first, Some(input))
    }

    fn remove(&mut self, input: usize) {
        self.weights[input] = 0.0;
        self.sample.iter_mut().skip(input).step_by(self.inputs).for_each(|x| *x = 0.0);
    }

    /// The mean squared error by rounding the activations of a block: each that is not 0 is off by a step's uniform error, a
    /// twelfth of its square.
    fn of_activations(&self, first: usize, without: Option<usize>) -> f64 {
        let end = self.inputs.min(first + QUANT_BLOCK);
        let mut sum = 0.0;
        let tokens = self.sample.chunks_exact(self.inputs.max(1));
        let count = tokens.len().max(1) as f64;
        for token in tokens {
            let (mut largest, mut power) = (0.0f32, 0.0);
            for input in (first..end).filter(|&input| token[input] != 0.0 && Some(input) != without) {
                largest = largest.max(token[input]);
                power += self.power[input];
            }
            sum += (f64::from(largest) / 127.0).powi(2) / 12.0 * power;
        }
        sum / count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs of size 1, some larger with weights as much smaller: all contribute alike.
    fn chosen(inputs: usize, large: &[(usize, f32)], lost: f64) -> Vec<u32> {
        let size = |i: usize| large.iter().find(|(at, _)| *at == i).map_or(1.0, |(_, size)| *size);
        let mut seen = InputStatistics::new("m".into(), inputs);
        let token: Vec<f32> = (0..inputs).map(|i| if i % 2 == 0 { size(i) } else { -size(i) }).collect();
        (0..10).for_each(|_| seen.note(&token, 1));
        let power: Vec<f64> = (0..inputs).map(|i| f64::from(size(i)).powi(-2)).collect();
        choose(&seen, &power, &vec![lost; inputs])
    }

    #[test]
    fn inputs_alike_stay_together() {
        assert_eq!(chosen(768, &[], 6e-3), [0u32; 0]);
        assert_eq!(chosen(768, &[(5, 3.0)], 6e-3), [0u32; 0], "not worth 16 bits");
        assert_eq!(chosen(768, &[(5, 20.0)], 1e-4), [0u32; 0], "good enough with 8 bits");
        assert_eq!(chosen(0, &[], 6e-3), [0u32; 0]);
    }

    #[test]
    fn large_inputs_are_kept_apart_also_two_of_a_block() {
        assert_eq!(chosen(768, &[(700, 50.0), (5, 50.0), (9, 40.0)], 6e-3), [5, 9, 700]);
        // With 8 bits it is what they do to their neighbours' activations.
        assert_eq!(chosen(768, &[(700, 300.0), (5, 300.0), (9, 300.0)], 1e-4), [5, 9, 700]);
    }

    #[test]
    fn no_more_than_one_in_64() {
        assert_eq!(chosen(128, &[(1, 60.0), (2, 50.0), (70, 80.0), (71, 20.0)], 6e-3).len(), 2);
        assert_eq!(chosen(63, &[(1, 50.0)], 6e-3), [0u32; 0]);
    }

    #[test]
    fn a_matrix_that_was_never_used_keeps_nothing_apart() {
        let seen = InputStatistics::new("m".into(), 128);
        assert_eq!(choose(&seen, &[1.0; 128], &[1.0; 128]), [0u32; 0]);
    }
}
