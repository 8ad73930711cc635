//! Weight matrices in the order in which the kernels read them.

use crate::buffer::Buffer;
use crate::qtile::{self, BLOCK, SCALE_BYTES};
use crate::quant::{QuantizedView, TABLE};
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
            let quantized = quant::quantize(cpu, format, outputs, inputs, None, &[], row);
            return quantized.with_view(|view| Matrix::pack_quantized(cpu, view));
        }
        let width = if format == WeightFormat::F32 { 4 } else { 2 };
        Matrix::in_panels(cpu, outputs, inputs, format, inputs * PANEL * width, |first, bytes| {
            let mut values = vec![0.0; inputs];
            for lane in 0..PANEL.min(outputs - first) {
                row(first + lane, &mut values);
                match format {
                    WeightFormat::F32 => scatter(bytes, lane, &values, f32::to_ne_bytes),
                    WeightFormat::F16 => scatter(bytes, lane, &values, |v| convert::f32_to_f16(v).to_ne_bytes()),
                    _ => scatter(bytes, Bf16::slot(lane), &values, |v| convert::f32_to_bf16(v).to_ne_bytes()),
                }
            }
        })
    }

    /// Packs a matrix of integers.
    ///
    /// # Panics
    /// If lengths do not fit the shape, an outlier is out of order or out of range, or the format is none of integers.
    pub fn pack_quantized(cpu: &Cpu, view: &QuantizedView<'_>) -> Matrix {
        let QuantizedView { format, outputs, inputs, .. } = *view;
        let (blocks, nibbles) = (inputs.div_ceil(BLOCK), format == WeightFormat::Q4);
        assert_eq!(view.codes.len(), outputs * quant::code_bytes_of(format, inputs), "bytes of codes");
        assert_eq!(view.scales.len(), outputs * blocks * 2, "bytes of scales");
        assert_eq!(view.outlier_weights.len(), outputs * view.outliers.len() * 2, "bytes of outliers' weights");
        assert!(view.outliers.is_sorted_by(|a, b| a < b), "outliers ascend");
        assert!(view.outliers.last().is_none_or(|&last| (last as usize) < inputs), "outliers are inputs");
        let block_bytes = if nibbles { qtile::block_bytes::<true>() } else { qtile::block_bytes::<false>() };
        let row_bytes = view.codes.len() / outputs.max(1);
        // Of every block a row has this many bytes.
        let of_block = if nibbles { BLOCK / 2 } else { BLOCK };
        let mut matrix = Matrix::in_panels(cpu, outputs, inputs, format, blocks * block_bytes, |first, panel| {
            for lane in 0..PANEL.min(outputs - first) {
                let row = &view.codes[(first + lane) * row_bytes..][..row_bytes];
                let scales = &view.scales[(first + lane) * blocks * 2..][..blocks * 2];
                for (b, block) in panel.chunks_exact_mut(block_bytes).enumerate() {
                    let (block_scales, codes) = block.split_at_mut(SCALE_BYTES);
                    let scale = u16::from_le_bytes([scales[2 * b], scales[2 * b + 1]]);
                    block_scales[lane * 2..][..2].copy_from_slice(&scale.to_ne_bytes());
                    let part = &row[b * of_block..row.len().min((b + 1) * of_block)];
                    for (group, four) in part.chunks(4).enumerate() {
                        let to = &mut codes[(group * PANEL + lane) * 4..][..4];
                        // Signed bytes become unsigned ones, see `Isa::load_q`.
                        for (to, code) in to.iter_mut().zip(four) {
                            *to = if nibbles { *code } else { code ^ 0x80 };
                        }
                    }
                }
            }
        });
        if !view.outliers.is_empty() {
            let k = view.outliers.len();
            let columns = Matrix::pack(outputs, k, WeightFormat::Bf16, cpu, |o, row| {
                let (bytes, _) = view.outlier_weights[o * k * 2..][..k * 2].as_chunks::<2>();
                row.iter_mut().zip(bytes).for_each(|(w, &b)| *w = convert::bf16_to_f32(u16::from_le_bytes(b)));
            });
            matrix.outliers = Some(Box::new(Outliers { inputs: view.outliers.to_vec(), columns }));
        }
        matrix
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

/// Writes one output's weights into its slot of a panel.
fn scatter<const N: usize>(panel: &mut [u8], slot: usize, values: &[f32], narrow: impl Fn(f32) -> [u8; N]) {
    let (slots, _) = panel.as_chunks_mut::<N>();
    for (slots, &value) in slots.chunks_exact_mut(PANEL).zip(values) {
        slots[slot] = narrow(value);
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
