//! Weight matrices in the order in which the kernels read them.

use crate::tile::{Bf16, F16, Weight};
use crate::{Cpu, convert};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Outputs that lie side by side: one input's weights for them fill one cache line of half floats or two of f32.
pub(crate) const PANEL: usize = 32;

/// How weights are stored. Activations and sums are f32 whatever the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightFormat {
    /// 32-bit IEEE floating point.
    F32,
    /// The upper half of an f32: 8 bits of exponent, 8 of precision.
    Bf16,
    /// IEEE half precision: 5 bits of exponent, 11 of precision.
    F16,
    /// 8-bit integers with a scale per 64 inputs, see [`crate::quant`].
    Q8,
    /// 4-bit codes with a scale per 64 inputs, see [`crate::quant`].
    Q4,
}

impl WeightFormat {
    /// Bytes of one weight, rounded up.
    pub fn bytes_per_weight(self) -> usize {
        match self {
            WeightFormat::F32 => 4,
            WeightFormat::Bf16 | WeightFormat::F16 => 2,
            WeightFormat::Q8 | WeightFormat::Q4 => 1,
        }
    }
}

/// A weight matrix `[outputs, inputs]`, stored input-major in panels of 32 outputs: `[ceil(outputs / 32)][inputs][32]`, the
/// last panel filled up with zeros.
///
/// Lanes of a vector are thus different outputs, whose sums run over the inputs in order, whatever the vector's width; and
/// an input that is zero skips whole cache lines.
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    format: WeightFormat,
    data: Buffer,
}

impl Matrix {
    /// Packs a matrix. `row(o, buf)` fills `buf[..inputs]` with output row `o`; it is called once per row, from several threads.
    ///
    /// Narrow formats round to nearest even. Weights must be finite, also after rounding: skipping an input that is zero
    /// leaves out `0 * weight`, which is NaN for an infinite weight.
    pub fn pack(
        outputs: usize,
        inputs: usize,
        format: WeightFormat,
        cpu: &Cpu,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Matrix {
        let panels = outputs.div_ceil(PANEL);
        let panel_bytes = inputs * PANEL * format.bytes_per_weight();
        let data = Buffer::new(panels * panel_bytes);
        let start = SendPtr(data.start.as_ptr());
        cpu.run(panels, &|panel| {
            // SAFETY: the panel lies inside the buffer, and each task has its own panel.
            let bytes = unsafe {
                let at = start.get().add(panel * panel_bytes);
                at.write_bytes(0, panel_bytes);
                std::slice::from_raw_parts_mut(at, panel_bytes)
            };
            let first = panel * PANEL;
            let mut values = vec![0.0; inputs];
            for lane in 0..PANEL.min(outputs - first) {
                row(first + lane, &mut values);
                match format {
                    WeightFormat::F32 => scatter(bytes, lane, &values, f32::to_ne_bytes),
                    WeightFormat::Bf16 => scatter(bytes, lane, &values, |v| convert::f32_to_bf16(v).to_ne_bytes()),
                    WeightFormat::F16 => scatter(bytes, lane, &values, |v| convert::f32_to_f16(v).to_ne_bytes()),
                    WeightFormat::Q8 | WeightFormat::Q4 => panic!("quantised weights have no kernel"),
                }
            }
        });
        Matrix { outputs, inputs, format, data }
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
        self.data.bytes
    }

    /// Writes output row `o` to `buf[..inputs]`, as rounded when it was packed.
    pub fn row_to_f32(&self, o: usize, buf: &mut [f32]) {
        assert!(o < self.outputs, "row {o} of {} outputs", self.outputs);
        assert_eq!(buf.len(), self.inputs, "a row has `inputs` elements");
        match self.format {
            WeightFormat::F32 => self.read_row(o, buf, |w: f32| w),
            WeightFormat::Bf16 => self.read_row(o, buf, |w: Bf16| convert::bf16_to_f32(w.0)),
            WeightFormat::F16 => self.read_row(o, buf, |w: F16| convert::f16_to_f32(w.0)),
            WeightFormat::Q8 | WeightFormat::Q4 => panic!("quantised weights have no kernel"),
        }
    }

    fn read_row<W: Weight>(&self, o: usize, buf: &mut [f32], widen: impl Fn(W) -> f32) {
        let panel = &self.weights::<W>()[o / PANEL * PANEL * self.inputs..];
        for (value, weights) in buf.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *value = widen(weights[o % PANEL]);
        }
    }

    /// All weights in storage order, 64-byte aligned; `W` must be the type of the format.
    pub(crate) fn weights<W: Weight>(&self) -> &[W] {
        assert_eq!(W::FORMAT, self.format, "the type of the weights");
        // SAFETY: `pack` has written every byte, any bits are a valid `W`, and the buffer is aligned for all of them.
        unsafe { std::slice::from_raw_parts(self.data.start.as_ptr().cast(), self.data.bytes / size_of::<W>()) }
    }
}

/// Writes one output's weights into its lane of a panel.
fn scatter<const N: usize>(panel: &mut [u8], lane: usize, values: &[f32], narrow: impl Fn(f32) -> [u8; N]) {
    let (slots, _) = panel.as_chunks_mut::<N>();
    for (slots, &value) in slots.chunks_exact_mut(PANEL).zip(values) {
        slots[lane] = narrow(value);
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

/// Memory for weights: aligned to cache lines, large ones to huge pages, which the system is asked to use because a pass
/// over a model otherwise spends much of its time on looking up addresses. Not initialised.
struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

const LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

// SAFETY: plain memory with one owner; shared access only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Buffer {
        if bytes == 0 {
            return Buffer { start: NonNull::<Line>::dangling().cast(), bytes };
        }
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        advise_huge_pages(start, bytes);
        Buffer { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        let align = if bytes >= 2 * HUGE_PAGE { HUGE_PAGE } else { LINE };
        Layout::from_size_align(bytes, align).expect("a matrix fits the address space")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated with the same layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
        }
    }
}

/// What an empty buffer's address is aligned to.
#[repr(align(64))]
struct Line;

#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    let whole = bytes / HUGE_PAGE * HUGE_PAGE;
    if whole >= 2 * HUGE_PAGE {
        // SAFETY: the range lies inside one allocation of ours; this advice changes no contents. A refusal does no harm.
        unsafe { madvise(start.as_ptr().cast(), whole, MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_start: NonNull<u8>, _bytes: usize) {}

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
                assert_eq!(m.bytes(), outputs.div_ceil(32) * 32 * inputs * format.bytes_per_weight());
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
    fn empty_matrices_are_fine() {
        let cpu = Cpu::new(Level::best(), 1);
        for (outputs, inputs) in [(0, 3), (3, 0), (0, 0)] {
            let m = Matrix::pack(outputs, inputs, WeightFormat::F16, &cpu, |_, _| ());
            assert_eq!(m.bytes(), 0);
        }
    }
}
