//! Weight matrices in the order in which the kernels read them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::buffer::Buffer;
use crate::interleave::{all_finite, fours, side_by_side};
use crate::qtile::{self, BLOCK, SCALE_BYTES};
use crate::quant::{QuantizedView, RowQuantizer, TABLE};
use crate::tile::{Bf16, F16, Weight};
use crate::{Cpu, convert, quant};

/// Outputs that lie side by side: one input's weights for them fill one cache line of half floats or two of f32.
pub(crate) const PANEL: usize = 32;

/// How weights are stored. State and sums are f32 whatever the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightFormat {
    /// 32-bit IEEE floating point.
    F32,
    /// The upper half of an f32: 8 bits of exponent, 8 of precision.
    Bf16,
    /// IEEE half precision: 5 bits of exponent, 11 of precision.
    F16,
    /// Integers of 8 bits with a scale per output and block of 64 inputs; activations are rounded to 8 bits too.
    Q8,
    /// Indices of 4 bits into a table of 16 values, else as [`WeightFormat::Q8`].
    Q4,
}

impl WeightFormat {
    /// Bits of one weight, its share of scales included.
    pub fn bits_per_weight(self) -> f64 {
        match self {
            WeightFormat::F32 => 32.0,
            WeightFormat::Bf16 | WeightFormat::F16 => 16.0,
            WeightFormat::Q8 => 8.25,
            WeightFormat::Q4 => 4.25,
        }
    }

    /// Whether weights are integers with scales.
    pub fn is_quantized(self) -> bool {
        matches!(self, WeightFormat::Q8 | WeightFormat::Q4)
    }
}

/// A weight matrix `[outputs, inputs]`, stored input-major in panels of 32 outputs, the last panel filled up with zeros.
///
/// Floating point: `[panels][inputs][32]`; of bf16, outputs `i` and `i + 16` share a 32-bit word, so that a shift and a mask widen them.
/// Integers: for each panel and block of 64 inputs 32 scales, then the codes in groups of 4 inputs, `[16][32][4]` (4 bits:
/// `[8][32][4]` bytes, the first of two groups in their lower halves). Outlier columns are a bf16 matrix of their own.
///
/// Lanes of a vector are thus different outputs, whose sums run over the inputs in order, whatever the vector's width; and
/// an input that is zero skips whole cache lines.
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    format: WeightFormat,
    data: Buffer,
    outliers: Option<Box<Outliers>>,
}

/// Columns of a matrix of integers that are kept in bf16.
pub(crate) struct Outliers {
    /// Ascending.
    pub inputs: Vec<u32>,
    /// `[outputs][inputs.len()]`.
    pub columns: Matrix,
}

impl Matrix {
    /// Packs a matrix. `row(o, buf)` fills `buf[..inputs]` with output row `o`; it is called from several threads, for floating
    /// point once per row.
    ///
    /// Narrow formats round to nearest even, integer formats as [`quant::quantize`] does when it knows nothing of the inputs. Weights must
    /// be finite, also after rounding: skipping an input that is zero leaves out `0 * weight`, which is NaN for an infinite weight.
    pub fn pack(
        outputs: usize,
        inputs: usize,
        format: WeightFormat,
        cpu: &Cpu,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Matrix {
        if format.is_quantized() {
            // As `quant::quantize` does it, but only the codes of a panel are in memory beside the matrix.
            let quantizer = RowQuantizer::new(cpu.level(), format, inputs);
            return Matrix::in_panels(cpu, outputs, inputs, format, panel_bytes(format, inputs), |first, panel| {
                let rows = quantizer.rows(first..outputs.min(first + PANEL), &row);
                fill_blocks(format, inputs, &rows.codes, &rows.scales, panel);
            });
        }
        let width = if format == WeightFormat::F32 { 4 } else { 2 };
        Matrix::in_panels(cpu, outputs, inputs, format, inputs * PANEL * width, |first, panel| {
            // Whole rows, one after another, and only then side by side: the panel's lines are written once.
            let lanes = PANEL.min(outputs - first);
            let (mut values, mut rows) = (vec![0.0; inputs], vec![0; lanes * inputs * width]);
            for (lane, part) in rows.chunks_exact_mut((inputs * width).max(1)).enumerate() {
                row(first + lane, &mut values);
                match format {
                    WeightFormat::F32 => narrow(&values, part, f32::to_ne_bytes),
                    WeightFormat::F16 => narrow(&values, part, |v| convert::f32_to_f16(v).to_ne_bytes()),
                    _ => narrow(&values, part, |v| convert::f32_to_bf16(v).to_ne_bytes()),
                }
            }
            side_by_side(format, &rows, inputs, panel);
        })
    }

    /// Packs a matrix of floating point that is stored in the wanted format: `bytes` holds its rows, little-endian, at any alignment.
    ///
    /// `read(rows)` is called, from several threads, when these rows are not needed any more. Gives up, with None, if a weight is not
    /// finite or `read` returns false.
    ///
    /// # Panics
    /// If the number of bytes does not fit the shape, or the format is one of integers.
    pub fn pack_bytes(
        cpu: &Cpu,
        format: WeightFormat,
        outputs: usize,
        inputs: usize,
        bytes: &[u8],
        read: &(dyn Fn(Range<usize>) -> bool + Sync),
    ) -> Option<Matrix> {
        assert!(!format.is_quantized(), "{format:?} is packed from codes and scales");
        let width = if format == WeightFormat::F32 { 4 } else { 2 };
        assert_eq!(bytes.len(), outputs * inputs * width, "bytes of a matrix [{outputs}, {inputs}]");
        let given_up = AtomicBool::new(false);
        let matrix = Matrix::in_panels(cpu, outputs, inputs, format, inputs * PANEL * width, |first, panel| {
            let rows = first..outputs.min(first + PANEL);
            if given_up.load(Relaxed) {
                return;
            }
            let part = &bytes[rows.start * inputs * width..rows.end * inputs * width];
            // The check reads from memory, in order; what follows then reads from the cache.
            if !all_finite(format, part) {
                return given_up.store(true, Relaxed);
            }
            if cfg!(target_endian = "little") {
                side_by_side(format, part, inputs, panel);
            } else {
                let mut native = part.to_vec();
                native.chunks_exact_mut(width).for_each(<[u8]>::reverse);
                side_by_side(format, &native, inputs, panel);
            }
            if !read(rows) {
                given_up.store(true, Relaxed);
            }
        });
        (!given_up.into_inner()).then_some(matrix)
    }

    /// Packs a matrix of integers.
    ///
    /// # Panics
    /// If lengths do not fit the shape, an outlier is out of order or out of range, or the format is none of integers.
    pub fn pack_quantized(cpu: &Cpu, view: &QuantizedView<'_>) -> Matrix {
        Matrix::pack_codes(cpu, view, &|_| true).expect("nothing stopped it")
    }

    /// The same while others look on: `read(rows)` is called, from several threads, when the codes of these rows are not needed any
    /// more. Gives up, with None, if it returns false.
    ///
    /// # Panics
    /// As above.
    pub fn pack_codes(
        cpu: &Cpu,
        view: &QuantizedView<'_>,
        read: &(dyn Fn(Range<usize>) -> bool + Sync),
    ) -> Option<Matrix> {
        let QuantizedView { format, outputs, inputs, .. } = *view;
        let blocks = inputs.div_ceil(BLOCK);
        let row_bytes = quant::code_bytes_of(format, inputs);
        assert_eq!(view.codes.len(), outputs * row_bytes, "bytes of codes");
        assert_eq!(view.scales.len(), outputs * blocks * 2, "bytes of scales");
        assert_eq!(view.outlier_weights.len(), outputs * view.outliers.len() * 2, "bytes of outliers' weights");
        assert!(view.outliers.is_sorted_by(|a, b| a < b), "outliers ascend");
        assert!(view.outliers.last().is_none_or(|&last| (last as usize) < inputs), "outliers are inputs");
        let given_up = AtomicBool::new(false);
        let mut matrix =
            Matrix::in_panels(cpu, outputs, inputs, format, panel_bytes(format, inputs), |first, panel| {
                if given_up.load(Relaxed) {
                    return;
                }
                let rows = first..outputs.min(first + PANEL);
                let codes = &view.codes[rows.start * row_bytes..rows.end * row_bytes];
                let scales = &view.scales[rows.start * blocks * 2..rows.end * blocks * 2];
                fill_blocks(format, inputs, codes, scales, panel);
                if !read(rows) {
                    given_up.store(true, Relaxed);
                }
            });
        if given_up.into_inner() {
            return None;
        }
        if !view.outliers.is_empty() {
            let k = view.outliers.len();
            let columns = Matrix::pack(outputs, k, WeightFormat::Bf16, cpu, |o, row| {
                let (bytes, _) = view.outlier_weights[o * k * 2..][..k * 2].as_chunks::<2>();
                row.iter_mut().zip(bytes).for_each(|(w, &b)| *w = convert::bf16_to_f32(u16::from_le_bytes(b)));
            });
            matrix.outliers = Some(Box::new(Outliers { inputs: view.outliers.to_vec(), columns }));
        }
        Some(matrix)
    }

    /// Fills every panel, which begins with zeros, by `fill(first output, bytes)`.
    fn in_panels(
        cpu: &Cpu,
        outputs: usize,
        inputs: usize,
        format: WeightFormat,
        panel_bytes: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Matrix {
        let panels = outputs.div_ceil(PANEL);
        let data = cpu.arena().buffer(panels * panel_bytes);
        let start = SendPtr(data.start());
        cpu.run(panels, &|panel| {
            // SAFETY: the panel lies inside the buffer, and each task has its own panel.
            let bytes = unsafe {
                let at = start.get().add(panel * panel_bytes);
                at.write_bytes(0, panel_bytes);
                std::slice::from_raw_parts_mut(at, panel_bytes)
            };
            fill(panel * PANEL, bytes);
        });
        Matrix { outputs, inputs, format, data, outliers: None }
    }

    /// Rows: the length of a product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns: the length of the vectors that it multiplies.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How the weights are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Memory taken, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.outliers.as_ref().map_or(0, |o| o.columns.bytes())
    }

    /// Writes output row `o` to `buf[..inputs]`, as rounded when it was packed.
    pub fn row_to_f32(&self, o: usize, buf: &mut [f32]) {
        assert!(o < self.outputs, "row {o} of {} outputs", self.outputs);
        assert_eq!(buf.len(), self.inputs, "a row has `inputs` elements");
        let lane = o % PANEL;
        match self.format {
            WeightFormat::F32 => self.read_row(o, lane, buf, |w: f32| w),
            WeightFormat::Bf16 => self.read_row(o, Bf16::slot(lane), buf, |w: Bf16| convert::bf16_to_f32(w.0)),
            WeightFormat::F16 => self.read_row(o, lane, buf, |w: F16| convert::f16_to_f32(w.0)),
            WeightFormat::Q8 | WeightFormat::Q4 => self.read_codes(o, buf),
        }
    }

    fn read_row<W: Weight>(&self, o: usize, slot: usize, buf: &mut [f32], widen: impl Fn(W) -> f32) {
        let panel = &self.weights::<W>()[o / PANEL * PANEL * self.inputs..];
        for (value, weights) in buf.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *value = widen(weights[slot]);
        }
    }

    fn read_codes(&self, o: usize, buf: &mut [f32]) {
        let nibbles = self.format == WeightFormat::Q4;
        let block_bytes = if nibbles { qtile::block_bytes::<true>() } else { qtile::block_bytes::<false>() };
        let (lane, blocks) = (o % PANEL, self.inputs.div_ceil(BLOCK));
        let panel = &self.blocks()[o / PANEL * blocks * block_bytes..];
        for (block, values) in panel.chunks_exact(block_bytes).zip(buf.chunks_mut(BLOCK)) {
            let scale = convert::bf16_to_f32(u16::from_ne_bytes([block[lane * 2], block[lane * 2 + 1]]));
            let codes = &block[SCALE_BYTES..];
            for (i, value) in values.iter_mut().enumerate() {
                let (group, at) = (i / 4, i % 4);
                *value = scale
                    * f32::from(if nibbles {
                        let byte = codes[(group / 2 * PANEL + lane) * 4 + at];
                        TABLE[usize::from(byte >> (group % 2 * 4) & 15)]
                    } else {
                        (codes[(group * PANEL + lane) * 4 + at] ^ 0x80) as i8
                    });
            }
        }
        if let Some(Outliers { inputs, columns }) = self.outliers() {
            let mut row = vec![0.0; inputs.len()];
            columns.row_to_f32(o, &mut row);
            inputs.iter().zip(row).for_each(|(&i, w)| buf[i as usize] = w);
        }
    }

    pub(crate) fn outliers(&self) -> Option<&Outliers> {
        self.outliers.as_deref()
    }

    /// All weights in storage order, 64-byte aligned; `W` must be the type of the format.
    pub(crate) fn weights<W: Weight>(&self) -> &[W] {
        assert_eq!(W::FORMAT, self.format, "the type of the weights");
        // SAFETY: packing has written every byte, any bits are a valid `W`, and the buffer is aligned for all of them.
        unsafe { std::slice::from_raw_parts(self.data.start().cast(), self.data.len() / size_of::<W>()) }
    }

    /// All blocks of integer weights in storage order, 64-byte aligned.
    pub(crate) fn blocks(&self) -> &[u8] {
        assert!(self.format.is_quantized(), "{:?} weights are not in blocks", self.format);
        // SAFETY: packing has written every byte.
        unsafe { std::slice::from_raw_parts(self.data.start(), self.data.len()) }
    }
}

/// Bytes of a panel of integers.
fn panel_bytes(format: WeightFormat, inputs: usize) -> usize {
    inputs.div_ceil(BLOCK) * block_bytes(format)
}

fn block_bytes(format: WeightFormat) -> usize {
    if format == WeightFormat::Q4 { qtile::block_bytes::<true>() } else { qtile::block_bytes::<false>() }
}

/// Brings the codes and scales of a panel's rows, as they lie in a file, into its blocks.
fn fill_blocks(format: WeightFormat, inputs: usize, rows: &[u8], scales: &[u8], panel: &mut [u8]) {
    let (blocks, row_bytes) = (inputs.div_ceil(BLOCK), quant::code_bytes_of(format, inputs));
    // Of every block a row has this many bytes. Signed bytes become unsigned ones, see `Isa::load_q`.
    let (of_block, flip) = if format == WeightFormat::Q4 { (BLOCK / 2, 0) } else { (BLOCK, 0x80) };
    for (b, block) in panel.chunks_exact_mut(block_bytes(format)).enumerate() {
        let (block_scales, codes) = block.split_at_mut(SCALE_BYTES);
        let column = scales.as_chunks::<2>().0.iter().skip(b).step_by(blocks);
        for (to, &scale) in block_scales.as_chunks_mut::<2>().0.iter_mut().zip(column) {
            *to = u16::from_le_bytes(scale).to_ne_bytes();
        }
        fours(rows, row_bytes, b * of_block, flip, codes);
    }
}

fn narrow<const N: usize>(values: &[f32], to: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    for (to, &value) in to.as_chunks_mut().0.iter_mut().zip(values) {
        *to = bytes(value);
    }
}

/// A pointer that tasks may share.
#[derive(Clone, Copy)]
struct SendPtr(*mut u8);

// SAFETY: a bare address; those who use it say why they may.
unsafe impl Send for SendPtr {}
// SAFETY: as above.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    fn get(self) -> *mut u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::testing::{Rng, assert_same_bits};

    #[test]
    fn rows_come_back_rounded_to_the_format() {
        for (outputs, inputs) in [(1, 1), (31, 5), (32, 64), (33, 65), (100, 17)] {
            let values = Rng(3).vec(outputs * inputs);
            for (format, round) in [
                (WeightFormat::F32, (|v| v) as fn(f32) -> f32),
                (WeightFormat::Bf16, |v| convert::bf16_to_f32(convert::f32_to_bf16(v))),
                (WeightFormat::F16, |v| convert::f16_to_f32(convert::f32_to_f16(v))),
            ] {
                let cpu = Cpu::new(Level::best(), 2);
                let m = Matrix::pack(outputs, inputs, format, &cpu, |o, row| {
                    row.copy_from_slice(&values[o * inputs..][..inputs])
                });
                assert_eq!((m.outputs(), m.inputs(), m.format()), (outputs, inputs, format));
                assert_eq!(m.bytes(), outputs.div_ceil(32) * 32 * inputs * format.bits_per_weight() as usize / 8);
                let mut row = vec![f32::NAN; inputs];
                for o in 0..outputs {
                    m.row_to_f32(o, &mut row);
                    let wanted: Vec<f32> = values[o * inputs..][..inputs].iter().map(|&v| round(v)).collect();
                    assert_same_bits(&row, &wanted, "row");
                }
            }
        }
    }

    #[test]
    fn stored_bytes_and_their_values_make_the_same_matrix() {
        let cpu = Cpu::new(Level::best(), 2);
        for (outputs, inputs) in [(1, 1), (31, 5), (32, 64), (33, 65), (100, 17), (64, 48), (0, 3), (3, 0)] {
            let values = Rng(4).vec(outputs * inputs);
            for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16] {
                let mut bytes = vec![0]; // no number is aligned then
                for &v in &values {
                    match format {
                        WeightFormat::F32 => bytes.extend(v.to_le_bytes()),
                        WeightFormat::Bf16 => bytes.extend(convert::f32_to_bf16(v).to_le_bytes()),
                        _ => bytes.extend(convert::f32_to_f16(v).to_le_bytes()),
                    }
                }
                let rows = std::sync::Mutex::new(Vec::new());
                let note = |part: Range<usize>| {
                    rows.lock().expect("no test panicked").extend(part);
                    true
                };
                let stored = Matrix::pack_bytes(&cpu, format, outputs, inputs, &bytes[1..], &note);
                let stored = stored.expect("weights are finite");
                let m = Matrix::pack(outputs, inputs, format, &cpu, |o, row| {
                    row.copy_from_slice(&values[o * inputs..][..inputs])
                });
                assert!(stored.bytes_in_memory() == m.bytes_in_memory(), "{format:?} [{outputs}, {inputs}]");
                let mut rows = rows.into_inner().expect("no test panicked");
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..outputs), "each row is reported once");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_packed() {
        let cpu = Cpu::new(Level::best(), 2);
        let (outputs, inputs) = (70, 33);
        for (format, bits) in [
            (WeightFormat::F32, vec![0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7f80_0001]),
            (WeightFormat::Bf16, vec![0x7f80, 0xff80, 0x7fc0, 0x7f81]),
            (WeightFormat::F16, vec![0x7c00, 0xfc00, 0x7e00, 0x7c01]),
        ] {
            let width = format.bits_per_weight() as usize / 8;
            for bad in bits {
                for at in [0, 1000, outputs * inputs - 1] {
                    let mut bytes = vec![0; outputs * inputs * width];
                    bytes[at * width..][..width].copy_from_slice(&u32::to_le_bytes(bad)[..width]);
                    let m = Matrix::pack_bytes(&cpu, format, outputs, inputs, &bytes, &|_| true);
                    assert!(m.is_none(), "{format:?} {bad:x} at {at}");
                }
            }
        }
    }

    #[test]
    fn whoever_looks_on_can_stop_it() {
        let cpu = Cpu::new(Level::best(), 1);
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let stop = |_: Range<usize>| {
            calls.fetch_add(1, Relaxed);
            false
        };
        assert!(Matrix::pack_bytes(&cpu, WeightFormat::F16, 100, 2, &[0; 400], &stop).is_none());
        assert_eq!(calls.load(Relaxed), 1);
        let quantized = quant::quantize(&cpu, WeightFormat::Q8, 100, 2, None, &[], |_, row| row.fill(1.0));
        let scales: Vec<u8> = quantized.scales.iter().flat_map(|v| v.to_le_bytes()).collect();
        let quant::Quantized { format, outputs, inputs, ref codes, .. } = quantized;
        let view =
            QuantizedView { format, outputs, inputs, codes, scales: &scales, outliers: &[], outlier_weights: &[] };
        assert!(Matrix::pack_codes(&cpu, &view, &stop).is_none());
        assert_eq!(calls.load(Relaxed), 2);
    }

    #[test]
    fn rows_of_integers_come_back_as_they_were_quantised() {
        let cpu = Cpu::new(Level::best(), 2);
        for (outputs, inputs) in [(1, 1), (31, 5), (32, 64), (33, 65), (100, 130)] {
            let values = Rng(5).vec(outputs * inputs);
            let outliers: Vec<u32> = (0..inputs as u32).filter(|i| i % 50 == 3).collect();
            for format in [WeightFormat::Q8, WeightFormat::Q4] {
                let quantized = quant::quantize(&cpu, format, outputs, inputs, None, &outliers, |o, row| {
                    row.copy_from_slice(&values[o * inputs..][..inputs])
                });
                let m = pack(&cpu, &quantized);
                let block = if format == WeightFormat::Q4 { 64 + 1024 } else { 64 + 2048 };
                let panels = outputs.div_ceil(32);
                assert_eq!(m.bytes(), panels * (inputs.div_ceil(64) * block + 32 * 2 * outliers.len()));
                let (mut row, mut wanted) = (vec![f32::NAN; inputs], vec![f32::NAN; inputs]);
                for o in 0..outputs {
                    m.row_to_f32(o, &mut row);
                    quantized.row_to_f32(o, &mut wanted);
                    assert_same_bits(&row, &wanted, "row");
                }
            }
        }
    }

    impl Matrix {
        fn bytes_in_memory(&self) -> &[u8] {
            // SAFETY: packing has written every byte.
            unsafe { std::slice::from_raw_parts(self.data.start(), self.data.len()) }
        }
    }

    /// A quantised matrix as it would be read from a file.
    fn pack(cpu: &Cpu, q: &quant::Quantized) -> Matrix {
        let bytes = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (scales, outlier_weights) = (bytes(&q.scales), bytes(&q.outlier_weights));
        let quant::Quantized { format, outputs, inputs, ref codes, ref outliers, .. } = *q;
        let (scales, outlier_weights) = (&scales, &outlier_weights);
        Matrix::pack_quantized(
            cpu,
            &QuantizedView { format, outputs, inputs, codes, scales, outliers, outlier_weights },
        )
    }

    #[test]
    fn empty_matrices_are_fine() {
        let cpu = Cpu::new(Level::best(), 1);
        for (outputs, inputs) in [(0, 3), (3, 0), (0, 0)] {
            for format in [WeightFormat::F16, WeightFormat::Q8, WeightFormat::Q4] {
                let m = Matrix::pack(outputs, inputs, format, &cpu, |_, _| ());
                assert_eq!(m.bytes(), 0);
            }
        }
    }
}
