//! Quantised weights: from values to codes and back, as they lie in a file. Kernels read a packed copy, see [`crate::Matrix`].
//!
//! The inputs of a row are cut into blocks of 64. A block has one scale, a bfloat16, and each of its weights a code that stands
//! for a small integer `v`; the weight is `scale * v`, which is exact in f32:
//! - q8: the code is `v` itself, from -127 to 127;
//! - q4: the code is a place in [`TABLE`]. The scale may be negative, so that the block's extreme weight, whichever sign it
//!   has, can be the table's -127.
//!
//! Some inputs, the *outliers*, can be left out of the blocks: their weights are kept as bfloat16. Few inputs of a trained
//! model are far larger than the others; what is rounded in their weights, and what they do to the 8-bit activations beside
//! them, would ruin a model of 4 bits.

use crate::convert::{bf16_to_f32, f32_to_bf16};
use crate::encode::{EncodeQ4, EncodeQ8};
use crate::portable::Portable;
use crate::{Cpu, Level, Op, WeightFormat};
use std::sync::Mutex;

/// Inputs that share a scale.
pub const QUANT_BLOCK: usize = crate::tile::BLOCK;

/// What the 16 codes of q4 stand for, ascending.
///
/// The quantiser of least mean squared error (Lloyd-Max) for this source: 64 independent normal numbers, divided by the one
/// largest in magnitude so that it becomes -127; an error counts in units of the numbers before the division. A test derives
/// it again.
pub const TABLE: [i8; 16] = [-127, -98, -78, -61, -46, -33, -21, -9, 2, 14, 26, 39, 52, 68, 86, 109];

/// The code of q4 whose value is nearest to 0. Places that hold no weight (outliers, the end of a row) have it.
pub(crate) const NEAREST_ZERO: u8 = 8;

/// Largest scale, a bfloat16: 127 times it is a finite f32, and 127 times the next one is not.
pub(crate) const LARGEST_SCALE: f32 = f32::from_bits(0x7c01_0000);

/// Every input counts at least this share of the mean importance: a text shows only so much.
const LEAST_IMPORTANCE: f64 = 0.01;

/// Scales of one row.
pub fn blocks_of(inputs: usize) -> usize {
    inputs.div_ceil(QUANT_BLOCK)
}

/// Bytes of the codes of one row: a byte per input for q8; for q4 four bytes per eight inputs, the last eight filled up.
///
/// # Panics
/// If the format is not quantised.
pub fn code_bytes_of(format: WeightFormat, inputs: usize) -> usize {
    match format {
        WeightFormat::Q8 => inputs,
        WeightFormat::Q4 => 4 * inputs.div_ceil(8),
        _ => panic!("{format:?} has no codes"),
    }
}

/// Whether a scale can stand in a file: all weights of its block are then finite.
pub fn is_valid_scale(scale: f32) -> bool {
    scale.abs() <= LARGEST_SCALE
}

/// A quantised matrix `[outputs, inputs]`, row-major, as in a file but for the byte order of numbers of more than a byte.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantized {
    /// [`WeightFormat::Q8`] or [`WeightFormat::Q4`].
    pub format: WeightFormat,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// `[outputs][code_bytes_of(inputs)]`. q8: an i8 each. q4: byte `4 g + k` of a row holds the code of input `8 g + k` in its
    /// low half and that of input `8 g + 4 + k` in its high half.
    pub codes: Vec<u8>,
    /// `[outputs][blocks_of(inputs)]`, bfloat16.
    pub scales: Vec<u16>,
    /// Inputs that are kept as bfloat16, ascending. Their codes mean nothing.
    pub outliers: Vec<u32>,
    /// `[outputs][outliers]`, bfloat16.
    pub outlier_weights: Vec<u16>,
}

/// The same, borrowed, with numbers as in a file: little-endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedView<'a> {
    /// [`WeightFormat::Q8`] or [`WeightFormat::Q4`].
    pub format: WeightFormat,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// See [`Quantized::codes`].
    pub codes: &'a [u8],
    /// See [`Quantized::scales`]; two bytes each.
    pub scales: &'a [u8],
    /// See [`Quantized::outliers`].
    pub outliers: &'a [u32],
    /// See [`Quantized::outlier_weights`]; two bytes each.
    pub outlier_weights: &'a [u8],
}

impl Quantized {
    /// Writes row `o` to `buf[..inputs]`.
    pub fn row_to_f32(&self, o: usize, buf: &mut [f32]) {
        let (blocks, kept) = (blocks_of(self.inputs), self.outliers.len());
        let codes = code_bytes_of(self.format, self.inputs);
        let scales = &self.scales[o * blocks..(o + 1) * blocks];
        decode(self.format, &self.codes[o * codes..(o + 1) * codes], |b| bf16_to_f32(scales[b]), buf);
        for (&input, &weight) in self.outliers.iter().zip(&self.outlier_weights[o * kept..]) {
            buf[input as usize] = bf16_to_f32(weight);
        }
    }
}

impl Quantized {
    /// Hands `f` the matrix with numbers as in a file.
    pub fn with_view<R>(&self, f: impl FnOnce(&QuantizedView<'_>) -> R) -> R {
        let little = |numbers: &[u16]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        f(&QuantizedView {
            format: self.format,
            outputs: self.outputs,
            inputs: self.inputs,
            codes: &self.codes,
            scales: &little(&self.scales),
            outliers: &self.outliers,
            outlier_weights: &little(&self.outlier_weights),
        })
    }
}

impl QuantizedView<'_> {
    /// The same matrix times `factor`, a power of two: its scales and the weights of its outliers, two bytes each. Exact unless they
    /// become too small for a bfloat16.
    pub fn scaled(&self, factor: f32) -> (Vec<u8>, Vec<u8>) {
        let times = |bytes: &[u8]| -> Vec<u8> {
            let values = bytes.as_chunks::<2>().0.iter().map(|&b| bf16_to_f32(u16::from_le_bytes(b)) * factor);
            values.flat_map(|value| f32_to_bf16(value).to_le_bytes()).collect()
        };
        (times(self.scales), times(self.outlier_weights))
    }

    /// Writes row `o` to `buf[..inputs]`.
    pub fn row_to_f32(&self, o: usize, buf: &mut [f32]) {
        let (blocks, kept) = (blocks_of(self.inputs), self.outliers.len());
        let codes = code_bytes_of(self.format, self.inputs);
        let scales = &self.scales.as_chunks::<2>().0[o * blocks..(o + 1) * blocks];
        let wide = |&bytes: &[u8; 2]| bf16_to_f32(u16::from_le_bytes(bytes));
        decode(self.format, &self.codes[o * codes..(o + 1) * codes], |b| wide(&scales[b]), buf);
        let weights = &self.outlier_weights.as_chunks::<2>().0[o * kept..];
        for (&input, weight) in self.outliers.iter().zip(weights) {
            buf[input as usize] = wide(weight);
        }
    }
}

/// Weights of the blocks of one row.
fn decode(format: WeightFormat, codes: &[u8], scale: impl Fn(usize) -> f32, buf: &mut [f32]) {
    for (b, block) in buf.chunks_mut(QUANT_BLOCK).enumerate() {
        let scale = scale(b);
        let at = b * QUANT_BLOCK;
        if format == WeightFormat::Q8 {
            for (weight, &code) in block.iter_mut().zip(&codes[at..]) {
                *weight = scale * f32::from(code as i8);
            }
        } else {
            let values = TABLE.map(|v| scale * f32::from(v));
            for (weights, bytes) in block.chunks_mut(8).zip(codes[at / 2..].as_chunks::<4>().0) {
                for (k, weight) in weights.iter_mut().enumerate() {
                    *weight = values[usize::from(bytes[k % 4] >> (4 * (k / 4)) & 15)];
                }
            }
        }
    }
}

/// Quantises a matrix. `row(o, buf)` fills `buf[..inputs]` with output row `o`; it is called once per row, from several threads.
///
/// The scales of q4 are searched for the least squared error, each input's counted by `importance`, its mean square in use
/// (`E[x²]`, `[inputs]`), if that is known. The inputs in `outliers` (ascending) are kept as bfloat16. The result has the same
/// bits for any number of threads and any instruction set.
///
/// # Panics
/// If the format is not quantised, a weight is not finite (also as bfloat16, if an outlier), an importance is negative or not
/// finite, or the outliers do not ascend below `inputs`: the caller has checked them.
pub fn quantize(
    cpu: &Cpu,
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
    importance: Option<&[f32]>,
    outliers: &[u32],
    row: impl Fn(usize, &mut [f32]) + Sync,
) -> Quantized {
    assert!(outliers.is_sorted_by(|a, b| a < b), "outliers ascend");
    assert!(outliers.last().is_none_or(|&last| (last as usize) < inputs), "outliers are inputs");
    let importance = weigh(importance, inputs, outliers);
    let (code_bytes, blocks, kept) = (code_bytes_of(format, inputs), blocks_of(inputs), outliers.len());
    let mut result = Quantized {
        format,
        outputs,
        inputs,
        codes: vec![empty_code(format); outputs * code_bytes],
        scales: vec![0; outputs * blocks],
        outliers: outliers.to_vec(),
        outlier_weights: vec![0; outputs * kept],
    };
    // Some rows at a time, so that threads share the work evenly and buffers are made once per task.
    let step = outputs.div_ceil(cpu.threads() * 8).max(1);
    let mut codes = result.codes.chunks_mut((step * code_bytes).max(1));
    let mut scales = result.scales.chunks_mut((step * blocks).max(1));
    let mut weights = result.outlier_weights.chunks_mut((step * kept).max(1));
    let parts: Vec<_> = (0..outputs.div_ceil(step))
        .map(|_| {
            Mutex::new(Part {
                codes: codes.next().unwrap_or_default(),
                scales: scales.next().unwrap_or_default(),
                outlier_weights: weights.next().unwrap_or_default(),
            })
        })
        .collect();
    cpu.run(parts.len(), &|p| {
        let mut part = parts[p].lock().expect("each task takes its own part");
        let mut values = vec![0.0; inputs];
        for (i, o) in (p * step..outputs.min((p + 1) * step)).enumerate() {
            row(o, &mut values);
            assert!(values.iter().all(|w| w.is_finite()), "weights are finite");
            for (place, &input) in part.outlier_weights[i * kept..][..kept].iter_mut().zip(outliers) {
                let weight = &mut values[input as usize];
                *place = f32_to_bf16(*weight);
                assert!(bf16_to_f32(*place).is_finite(), "outliers are finite as bfloat16");
                // The importance is 0 there too, so it has no say.
                *weight = 0.0;
            }
            let Part { codes, scales, .. } = &mut *part;
            let scales = &mut scales[i * blocks..(i + 1) * blocks];
            let codes = &mut codes[i * code_bytes..(i + 1) * code_bytes];
            encode_row(cpu.level(), format, &values, &importance, codes, scales);
        }
    });
    drop(parts);
    result
}

/// Quantises one row. Scales are 0 before, and codes those of 0.
fn encode_row(
    level: Level,
    format: WeightFormat,
    values: &[f32],
    importance: &[f32],
    codes: &mut [u8],
    scales: &mut [u16],
) {
    if format == WeightFormat::Q8 {
        level.dispatch(EncodeQ8 { values, codes, scales });
    } else {
        level.dispatch(EncodeQ4 { values, importance, codes, scales });
    }
}

/// What one task writes.
struct Part<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [u16],
    outlier_weights: &'a mut [u16],
}

/// Rows that are quantised one by one, without calibration and outliers: no whole matrix of codes need be in memory.
pub(crate) struct RowQuantizer {
    level: Level,
    format: WeightFormat,
    importance: Vec<f32>,
}

/// Some rows, as they would lie in a file.
pub(crate) struct QuantizedRows {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
}

impl RowQuantizer {
    pub fn new(level: Level, format: WeightFormat, inputs: usize) -> Self {
        Self { level, format, importance: weigh(None, inputs, &[]) }
    }

    /// Quantises rows as `row` gives them.
    pub fn rows(&self, rows: std::ops::Range<usize>, row: &impl Fn(usize, &mut [f32])) -> QuantizedRows {
        let inputs = self.importance.len();
        let (code_bytes, blocks) = (code_bytes_of(self.format, inputs), blocks_of(inputs));
        let mut values = vec![0.0; inputs];
        let mut scales = vec![0; blocks];
        let mut result = QuantizedRows {
            codes: vec![empty_code(self.format); rows.len() * code_bytes],
            scales: Vec::with_capacity(rows.len() * blocks * 2),
        };
        for (i, o) in rows.enumerate() {
            row(o, &mut values);
            assert!(values.iter().all(|w| w.is_finite()), "weights are finite");
            let codes = &mut result.codes[i * code_bytes..(i + 1) * code_bytes];
            scales.fill(0);
            encode_row(self.level, self.format, &values, &self.importance, codes, &mut scales);
            result.scales.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
        }
        result
    }
}

/// How much each input counts: at most 1, so that no sum overflows, and 0 for outliers.
fn weigh(importance: Option<&[f32]>, inputs: usize, outliers: &[u32]) -> Vec<f32> {
    let mut weights = vec![1.0; inputs];
    if let Some(given) = importance {
        assert_eq!(given.len(), inputs, "an importance per input");
        assert!(given.iter().all(|h| h.is_finite() && *h >= 0.0), "importances are numbers of at least 0");
        let ordinary = |i: usize| outliers.binary_search(&(i as u32)).is_err();
        let used = || given.iter().enumerate().filter(|(i, _)| ordinary(*i)).map(|(_, &h)| f64::from(h));
        let (largest, mean) = (used().fold(0.0, f64::max), used().sum::<f64>() / inputs.max(1) as f64);
        if largest > 0.0 {
            let least = LEAST_IMPORTANCE * mean;
            for (weight, &h) in weights.iter_mut().zip(given) {
                *weight = ((f64::from(h) + least) / (largest + least)) as f32;
            }
        }
    }
    for &input in outliers {
        weights[input as usize] = 0.0;
    }
    weights
}

/// A byte of codes that hold no weight.
fn empty_code(format: WeightFormat) -> u8 {
    if format == WeightFormat::Q4 { NEAREST_ZERO * 0x11 } else { 0 }
}

/// Rounds a row to what q8 stores of it.
pub fn round_to_q8(row: &mut [f32]) {
    for block in row.chunks_mut(QUANT_BLOCK) {
        let (mut codes, mut scale) = ([0; QUANT_BLOCK], [0]);
        let codes_of_block = &mut codes[..block.len()];
        EncodeQ8 { values: block, codes: codes_of_block, scales: &mut scale }.run(Portable);
        decode(WeightFormat::Q8, &codes, |_| bf16_to_f32(scale[0]), block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::largest_magnitude;
    use crate::testing::{Rng, assert_same_bits};
    use crate::{Level, for_each_isa};
    use proptest::prelude::*;

    const FORMATS: [WeightFormat; 2] = [WeightFormat::Q8, WeightFormat::Q4];

    fn of_values(format: WeightFormat, inputs: usize, importance: Option<&[f32]>, values: &[f32]) -> Quantized {
        let cpu = Cpu::new(Level::best(), 1);
        quantize(&cpu, format, values.len() / inputs, inputs, importance, &[], |o, row| {
            row.copy_from_slice(&values[o * inputs..][..inputs]);
        })
    }

    fn back(matrix: &Quantized) -> Vec<f32> {
        let mut values = vec![f32::NAN; matrix.outputs * matrix.inputs];
        for (o, row) in values.chunks_mut(matrix.inputs).enumerate() {
            matrix.row_to_f32(o, row);
        }
        values
    }

    /// Twelve uniform numbers make a nearly normal one.
    fn normal(rng: &mut Rng, len: usize) -> Vec<f32> {
        (0..len).map(|_| (0..12).map(|_| rng.unit()).sum::<f32>() / 2.0).collect()
    }

    const CELLS: usize = 2 * 127;

    /// The source that `TABLE` is made for: the share of each cell of width 1 of [-127, 127].
    fn source() -> [f64; CELLS] {
        const STEP: f64 = 0.005;
        let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let mut cells = [0.0; CELLS];
        // The share of a normal number's magnitudes below the extreme.
        let mut below = 0.0;
        for i in 0..1400 {
            let extreme = (f64::from(i) + 0.5) * STEP;
            below += density(extreme) * STEP; // twice the density, half of this step ..
            // Of 64 numbers one is the extreme, the 63 others are normal below it. Errors count by its square.
            let weight = 64.0 * below.powi(63) * 2.0 * density(extreme) * STEP * extreme.powi(2);
            for (cell, share) in cells.iter_mut().enumerate() {
                let u = cell as f64 + 0.5 - 127.0;
                *share += weight * density(u * extreme / 127.0) * extreme / below;
            }
            below += density(extreme) * STEP; // .. and the other half
        }
        cells
    }

    #[test]
    fn the_table_is_the_quantiser_of_least_error() {
        let source = source();
        // Share and mean of what lies between two places, the density within a cell being constant.
        let between = |from: f64, to: f64| {
            let (mut mass, mut sum) = (0.0, 0.0);
            for cell in from.floor() as i64..to.ceil() as i64 {
                let (a, b) = (from.max(cell as f64), to.min(cell as f64 + 1.0));
                let share = source[(cell + 127) as usize] * (b - a);
                mass += share;
                sum += share * (a + b) / 2.0;
            }
            sum / mass
        };
        let mut table: Vec<f64> = (0..16).map(|i| -127.0 + 16.0 * f64::from(i)).collect();
        // Lloyd's iteration: each level moves to the mean of what is nearest to it; the first stays at the extreme.
        for _ in 0..1000 {
            let border = |i: usize| if i == 15 { 127.0 } else { (table[i] + table[i + 1]) / 2.0 };
            let moved: Vec<f64> = (1..16).map(|i| between(border(i - 1), border(i))).collect();
            table[1..].copy_from_slice(&moved);
        }
        let rounded: Vec<i8> = table.iter().map(|v| v.round() as i8).collect();
        assert_eq!(rounded, TABLE, "{table:.2?}");
    }

    #[test]
    fn normal_weights_lose_what_four_and_eight_bits_must() {
        let values = normal(&mut Rng(1), 64 * 500);
        let power: f64 = values.iter().map(|&w| f64::from(w).powi(2)).sum();
        for (format, least, most) in [(WeightFormat::Q4, 0.005, 0.0068), (WeightFormat::Q8, 1e-5, 4e-5)] {
            let found = back(&of_values(format, 64, None, &values));
            let error: f64 = values.iter().zip(&found).map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
            assert!((least..most).contains(&(error / power)), "{format:?}: {}", error / power);
        }
    }

    #[test]
    fn important_inputs_are_kept_better() {
        let values = normal(&mut Rng(2), 64 * 200);
        let importance: Vec<f32> = (0..64).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
        let error = |found: &[f32]| -> f64 {
            let each = values.iter().zip(found).enumerate();
            each.map(|(i, (&a, &b))| f64::from(importance[i % 64]) * f64::from(a - b).powi(2)).sum()
        };
        let plain = error(&back(&of_values(WeightFormat::Q4, 64, None, &values)));
        let weighed = error(&back(&of_values(WeightFormat::Q4, 64, Some(&importance), &values)));
        assert!(weighed < 0.8 * plain, "{weighed} of {plain}");
        // A model may leave inputs unused altogether.
        let unused = back(&of_values(WeightFormat::Q4, 64, Some(&[0.0; 64]), &values));
        assert_eq!(error(&unused), plain);
    }

    #[test]
    fn outliers_are_kept_apart_from_the_blocks() {
        let inputs = 150;
        let cpu = Cpu::new(Level::best(), 2);
        let mut values = Rng(3).vec(40 * inputs);
        let outliers = [0, 3, 64, 149];
        for row in values.chunks_mut(inputs) {
            outliers.iter().for_each(|&i| row[i as usize] *= 1000.0);
        }
        for format in FORMATS {
            let row = |o: usize, row: &mut [f32]| row.copy_from_slice(&values[o * inputs..][..inputs]);
            let matrix = quantize(&cpu, format, 40, inputs, None, &outliers, row);
            for (i, (&found, &value)) in back(&matrix).iter().zip(&values).enumerate() {
                if outliers.contains(&((i % inputs) as u32)) {
                    assert_eq!(found, bf16_to_f32(f32_to_bf16(value)));
                } else {
                    assert!((found - value).abs() < 0.15, "{format:?} {i}: {value} became {found}");
                }
            }
        }
    }

    #[test]
    fn threads_and_instruction_sets_change_no_bit() {
        for (outputs, inputs) in [(1, 1), (3, 64), (37, 65), (100, 200), (0, 5), (5, 0)] {
            let values = Rng(4).vec(outputs * inputs);
            let importance: Vec<f32> = Rng(5).vec(inputs).iter().map(|h| h.abs()).collect();
            let outliers: &[u32] = if inputs > 60 { &[7, 60] } else { &[] };
            for format in FORMATS {
                let of = |level, threads| {
                    let cpu = Cpu::new(level, threads);
                    quantize(&cpu, format, outputs, inputs, Some(&importance), outliers, |o, row| {
                        row.copy_from_slice(&values[o * inputs..][..inputs]);
                    })
                };
                let wanted = of(Level::best(), 1);
                for_each_isa(|level| {
                    for threads in [1, 2, 3] {
                        assert_eq!(of(level, threads), wanted, "{} {threads}", level.name());
                    }
                });
                assert_view_is_equal(&wanted);
            }
        }
    }

    fn assert_view_is_equal(matrix: &Quantized) {
        let (mut one, mut other) = (vec![f32::NAN; matrix.inputs], vec![f32::NAN; matrix.inputs]);
        matrix.with_view(|view| {
            let (scales, outlier_weights) = view.scaled(0.25);
            let quarter = QuantizedView { scales: &scales, outlier_weights: &outlier_weights, ..*view };
            for o in 0..matrix.outputs {
                matrix.row_to_f32(o, &mut one);
                view.row_to_f32(o, &mut other);
                assert_same_bits(&one, &other, "view");
                quarter.row_to_f32(o, &mut other);
                other.iter_mut().for_each(|w| *w *= 4.0);
                assert_same_bits(&one, &other, "scaled view");
            }
        });
    }

    #[test]
    fn zeros_stay_zeros_and_fill_the_end_of_a_row() {
        for format in FORMATS {
            let mut values = vec![0.0; 70];
            values[1] = -0.0;
            let matrix = of_values(format, 70, None, &values);
            assert!(back(&matrix).iter().all(|&w| w == 0.0));
            assert_eq!(matrix.scales, [0, 0]);
            values[65] = -3.0;
            let matrix = of_values(format, 70, None, &values);
            let found = back(&matrix);
            assert!((found[65] + 3.0).abs() < 0.01, "{}", found[65]);
            assert!(found[66..].iter().all(|w| w.abs() < 0.06));
        }
        let matrix = of_values(WeightFormat::Q4, 70, None, &[1.0; 70]);
        // Inputs 64 to 69, and two places beyond them.
        assert_eq!(matrix.codes[32..], [0x00, 0x00, 0x80, 0x80]);
    }

    #[test]
    #[should_panic(expected = "weights are finite")]
    fn weights_that_are_not_finite_are_the_callers_mistake() {
        of_values(WeightFormat::Q8, 2, None, &[1.0, f32::NAN]);
    }

    /// Any finite number: usual ones, subnormals, the largest, both zeros.
    fn weight() -> impl Strategy<Value = f32> {
        prop_oneof![4 => -1.0f32..1.0, 1 => any::<f32>().prop_filter("finite", |w| w.is_finite()), 1 => Just(0.0), 1 => Just(-0.0)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 400 }))]

        #[test]
        fn eight_bits_are_off_by_half_a_step_at_most(values in prop::collection::vec(weight(), 1..150)) {
            let matrix = of_values(WeightFormat::Q8, values.len(), None, &values);
            for (block, (values, found)) in values.chunks(64).zip(back(&matrix).chunks(64)).enumerate() {
                let scale = bf16_to_f32(matrix.scales[block]);
                let most = largest_magnitude(values);
                prop_assert!(is_valid_scale(scale) && scale >= 0.0);
                prop_assert!(f64::from(scale) <= f64::from(most) / 127.0 * 1.008 + 1e-40);
                for (&w, &q) in values.iter().zip(found) {
                    // Beyond 127 times the largest scale there is nothing.
                    let bound = if scale == LARGEST_SCALE { 0.501 + 0.5 } else { 0.501 };
                    prop_assert!((f64::from(w) - f64::from(q)).abs() <= bound * f64::from(scale), "{w} became {q}");
                }
            }
            prop_assert!(matrix.codes.iter().all(|&code| code != 0x80));
        }

        #[test]
        fn four_bits_are_no_worse_than_the_nearest_values_for_the_plain_scale(
            values in prop::collection::vec(weight(), 1..150)
        ) {
            let matrix = of_values(WeightFormat::Q4, values.len(), None, &values);
            for (b, (values, found)) in values.chunks(64).zip(back(&matrix).chunks(64)).enumerate() {
                let most = largest_magnitude(values);
                let extreme = values.iter().copied().find(|w| w.abs() == most).unwrap_or(0.0);
                let plain = f32_to_bf16((extreme / -127.0).clamp(-LARGEST_SCALE, LARGEST_SCALE));
                prop_assert!(is_valid_scale(bf16_to_f32(matrix.scales[b])));
                let scale = f64::from(bf16_to_f32(plain));
                // In units of the extreme, as the sums in f64 would overflow.
                let square = |a: f64, b: f64| ((a - b) / f64::from(extreme)).powi(2);
                let nearest = |w: f64| TABLE.iter().map(|&v| square(w, scale * f64::from(v))).fold(f64::INFINITY, f64::min);
                let wanted: f64 = values.iter().map(|&w| nearest(f64::from(w))).sum();
                let error: f64 = values.iter().zip(found).map(|(&w, &q)| square(f64::from(w), f64::from(q))).sum();
                prop_assert!(extreme == 0.0 || error <= wanted * 1.0001 + 1e-5, "{error} {wanted}");
            }
        }
    }
}
