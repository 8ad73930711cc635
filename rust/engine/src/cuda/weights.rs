//! Weights on their way from a checkpoint into a card's memory, in the order in which the kernels read them.
//!
//! `kernels/generate/weights.cuh` describes that order. A matrix comes some rows at a time, so that no second copy of it need be in the
//! computer's memory. What is refused, and in which words, is what [`Loader`](crate::model) refuses on the CPU.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytemuck::{Pod, Zeroable};
use spikelet_simd::convert::{f32_to_bf16, f32_to_f16};
use spikelet_simd::quant::{QuantizedView, blocks_of, quantize};
use spikelet_simd::{Cpu, WeightFormat};

use super::driver::{Buffer, Device};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::{Embedding, LoadProgress, Reading};
use crate::state::StateLayout;
use crate::weights::{Checkpoint, MatrixView, matrix_format};

/// Outputs that lie side by side.
pub const GROUP: usize = 8;
/// Inputs of which a warp multiplies the products of one group at a time: four blocks of 64.
pub const SPAN: usize = 256;
const BLOCK: usize = 64;
const LANES: usize = 32;
/// Bytes that a lane reads at a time.
const WORD: usize = 16;
/// Bytes of packed weights that are on their way at a time, at least a group.
const STAGED: usize = 16 << 20;
/// Vectors share allocations of so many numbers.
const VECTORS: usize = 1 << 18;
/// Each vector begins at a multiple of so many numbers.
const ALIGNED: usize = 32;

/// A matrix in a card's memory, as kernels are told of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct PackedMatrix {
    weights: u64,
    outlier_weights: u64,
    outlier_masks: u64,
    outliers_before: u64,
    pub outputs: u32,
    pub inputs: u32,
    pub outliers: u32,
    unused: u32,
}

impl PackedMatrix {
    /// A matrix that is nowhere yet.
    pub fn of_shape(outputs: usize, inputs: usize) -> Self {
        Self { outputs: outputs as u32, inputs: inputs as u32, ..Self::default() }
    }

    /// Groups of outputs.
    pub fn groups(&self) -> u32 {
        self.outputs.div_ceil(GROUP as u32)
    }

    /// Units of a group.
    pub fn spans(&self) -> u32 {
        self.inputs.div_ceil(SPAN as u32)
    }

    /// Units of a group's outliers.
    pub fn outlier_spans(&self) -> u32 {
        self.outliers.div_ceil(SPAN as u32)
    }
}

/// Memory of a card that a model keeps.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: Vec<Buffer<u8>>,
    vectors: Vec<Buffer<f32>>,
    /// Numbers of the last of `vectors` that are taken.
    used: usize,
}

impl Kept {
    /// Bytes of all matrices.
    pub fn matrix_bytes(&self) -> usize {
        self.bytes.iter().map(Buffer::len).sum()
    }

    fn keep(&mut self, buffer: Buffer<u8>) -> u64 {
        let pointer = buffer.pointer();
        self.bytes.push(buffer);
        pointer
    }
}

/// Bytes of a unit: what a warp multiplies at a time, [`GROUP`] outputs by [`SPAN`] inputs.
fn unit_bytes(format: WeightFormat) -> usize {
    GROUP * SPAN * width_of(format) + if format == WeightFormat::Q8 { LANES * 2 } else { 0 }
}

fn width_of(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 => 4,
        WeightFormat::Q8 => 1,
        _ => 2,
    }
}

/// Where the weight of an input and of an output of the group lies among the group's units.
fn place(format: WeightFormat, output: usize, input: usize) -> usize {
    let per_word = WORD / width_of(format);
    let (span, block, within) = (input / SPAN, input % SPAN / BLOCK, input % BLOCK);
    let (step, lane) = (within / per_word, block * GROUP + output);
    span * unit_bytes(format) + (step * LANES + lane) * WORD + within % per_word * width_of(format)
}

/// Brings rows of floats into a group's units, which hold zeros.
fn pack_floats(format: WeightFormat, output: usize, row: &[f32], group: &mut [u8]) {
    let per_word = WORD / width_of(format);
    for (i, values) in row.chunks(per_word).enumerate() {
        let at = place(format, output, i * per_word);
        let word = &mut group[at..at + WORD];
        match format {
            WeightFormat::F32 => fill(word, values, f32::to_le_bytes),
            WeightFormat::F16 => fill(word, values, |v| f32_to_f16(v).to_le_bytes()),
            _ => fill(word, values, |v| f32_to_bf16(v).to_le_bytes()),
        }
    }
}

fn fill<const N: usize>(word: &mut [u8], values: &[f32], bytes: impl Fn(f32) -> [u8; N]) {
    for (to, &value) in word.as_chunks_mut().0.iter_mut().zip(values) {
        *to = bytes(value);
    }
}

/// The same of codes and scales, as they lie in a file.
fn pack_codes(output: usize, codes: &[u8], scales: &[u8], group: &mut [u8]) {
    for (i, codes) in codes.chunks(WORD).enumerate() {
        let at = place(WeightFormat::Q8, output, i * WORD);
        group[at..at + codes.len()].copy_from_slice(codes);
    }
    let (unit, blocks) = (unit_bytes(WeightFormat::Q8), SPAN / BLOCK);
    for (block, scale) in scales.chunks_exact(2).enumerate() {
        let at = block / blocks * unit + GROUP * SPAN + (block % blocks * GROUP + output) * 2;
        group[at..at + 2].copy_from_slice(scale);
    }
}

/// Brings a checkpoint's tensors to a card.
pub struct CudaLoader<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    config: &'a ModelConfig,
    format: WeightFormat,
    device: &'a Arc<Device>,
    cpu: &'a Cpu,
    reading: Reading<'a>,
    layout: StateLayout,
    kept: Kept,
}

/// A matrix to be packed.
struct Source<'a> {
    view: MatrixView<'a>,
    name: &'a str,
    factor: f32,
}

impl<'a> CudaLoader<'a> {
    pub fn new(
        checkpoint: &'a Arc<Checkpoint>,
        config: &'a ModelConfig,
        format: WeightFormat,
        device: &'a Arc<Device>,
        cpu: &'a Cpu,
        progress: LoadProgress<'a>,
    ) -> Result<Self> {
        let reading = Reading::new(checkpoint, progress);
        reading.done(&[])?;
        let (layout, kept) = (StateLayout::default(), Kept::default());
        Ok(Self { checkpoint, config, format, device, cpu, reading, layout, kept })
    }

    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// All tensors have been asked for.
    pub fn finish(self) -> Result<(StateLayout, Kept)> {
        self.reading.finish()?;
        Ok((self.layout, self.kept))
    }

    /// Asks for a place in the state.
    pub fn state(&mut self, name: String, len: usize, fresh: f32) -> u32 {
        self.layout.push(name, len, fresh).start as u32
    }

    /// A vector of `len` elements: its address.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<u64> {
        self.vector_of(name, len, |x| x)
    }

    /// The same, each element changed by `f`.
    pub fn vector_of(&mut self, name: &str, len: usize, f: impl Fn(f32) -> f32) -> Result<u64> {
        let mut values = self.checkpoint.vector(name, len)?;
        values.iter_mut().for_each(|x| *x = f(*x));
        self.reading.done(&[self.checkpoint.get(name)?.bytes])?;
        let room = self.kept.vectors.last().map_or(0, |buffer| buffer.len() - self.kept.used);
        if room < len {
            self.kept.vectors.push(self.device.zeros(VECTORS.max(len))?);
            self.kept.used = 0;
        }
        let buffer = self.kept.vectors.last().expect("there is one now");
        let at = self.kept.used;
        self.device.write(buffer, at, &values)?;
        self.kept.used = (at + len).next_multiple_of(ALIGNED).min(buffer.len());
        Ok(buffer.pointer_at(at))
    }

    /// A matrix stored `[outputs, inputs]`, every element divided by `divisor`, a power of two.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize, divisor: f32) -> Result<PackedMatrix> {
        let view = self.checkpoint.matrix(name, outputs, inputs)?;
        if let MatrixView::Quantised { .. } = view {
            self.checkpoint.check_matrix(&view)?;
        }
        let source = Source { view, name, factor: divisor.recip() };
        let matrix = match matrix_format(name, self.format, false).unwrap_or(self.format) {
            WeightFormat::Q8 => self.integers(&source, outputs, inputs)?,
            format => self.floats(&source, format, outputs, inputs)?,
        };
        self.reading.done(&parts(&view))?;
        Ok(matrix)
    }

    /// A matrix of floating point.
    fn floats(
        &mut self,
        source: &Source<'_>,
        format: WeightFormat,
        outputs: usize,
        inputs: usize,
    ) -> Result<PackedMatrix> {
        let watch = Watch::new(format);
        let weights = self.pack(format, outputs, inputs, &|rows: Range<usize>, group: &mut [u8]| {
            let mut row = vec![0.0; inputs];
            for (i, o) in rows.enumerate() {
                self.row(source, outputs, o, &mut row, &watch);
                pack_floats(format, i, &row, group);
            }
        })?;
        self.refuse(source, &watch)?;
        let weights = self.kept.keep(weights);
        Ok(PackedMatrix { weights, ..PackedMatrix::of_shape(outputs, inputs) })
    }

    /// A matrix of integers of 8 bits: as stored, or rounded now.
    fn integers(&mut self, source: &Source<'_>, outputs: usize, inputs: usize) -> Result<PackedMatrix> {
        let (blocks, watch) = (blocks_of(inputs), Watch::new(WeightFormat::Q8));
        let outliers = match &source.view {
            MatrixView::Quantised { view, .. } => view.outliers,
            MatrixView::Float(_) => &[],
        };
        // [outputs][outliers], bfloat16; a few numbers of each row.
        let mut outlier_weights = vec![0; outputs * outliers.len() * 2];
        let weights = match &source.view {
            MatrixView::Quantised { view, .. } if view.format == WeightFormat::Q8 => {
                let (scales, of_outliers) = view.scaled(source.factor);
                outlier_weights = of_outliers;
                self.pack(WeightFormat::Q8, outputs, inputs, &|rows, group| {
                    for (i, o) in rows.clone().enumerate() {
                        let scales = &scales[o * blocks * 2..(o + 1) * blocks * 2];
                        pack_codes(i, &view.codes[o * inputs..(o + 1) * inputs], scales, group);
                    }
                    self.reading.part(view.codes, rows.start * inputs..rows.end * inputs);
                })?
            }
            _ => {
                let kept = outliers.len();
                let places: Vec<_> = outlier_weights.chunks_mut((GROUP * kept * 2).max(1)).map(Mutex::new).collect();
                self.pack(WeightFormat::Q8, outputs, inputs, &|rows, group| {
                    // One thread, as this is a task of one already.
                    let cpu = Cpu::new(self.cpu.level(), 1);
                    let row = |i: usize, to: &mut [f32]| self.row(source, outputs, rows.start + i, to, &watch);
                    let quantized = quantize(&cpu, WeightFormat::Q8, rows.len(), inputs, None, outliers, row);
                    quantized.with_view(|view: &QuantizedView<'_>| {
                        for i in 0..rows.len() {
                            let scales = &view.scales[i * blocks * 2..(i + 1) * blocks * 2];
                            pack_codes(i, &view.codes[i * inputs..(i + 1) * inputs], scales, group);
                        }
                        if kept > 0 {
                            let mut place = places[rows.start / GROUP].lock().expect("a task of its own");
                            place.copy_from_slice(view.outlier_weights);
                        }
                    });
                })?
            }
        };
        self.refuse(source, &watch)?;
        let weights = self.kept.keep(weights);
        let mut matrix = PackedMatrix { weights, ..PackedMatrix::of_shape(outputs, inputs) };
        if !outliers.is_empty() {
            self.outliers(&mut matrix, outliers, &outlier_weights)?;
        }
        Ok(matrix)
    }

    /// The columns of outliers, a bf16 matrix of its own, and which inputs they are.
    fn outliers(&mut self, matrix: &mut PackedMatrix, outliers: &[u32], weights: &[u8]) -> Result<()> {
        let (count, outputs) = (outliers.len(), matrix.outputs as usize);
        let packed = self.pack(WeightFormat::Bf16, outputs, count, &|rows, group| {
            for (i, o) in rows.enumerate() {
                for (j, weight) in weights[o * count * 2..(o + 1) * count * 2].chunks_exact(2).enumerate() {
                    let at = place(WeightFormat::Bf16, i, j);
                    group[at..at + 2].copy_from_slice(weight);
                }
            }
        })?;
        let blocks = blocks_of(matrix.inputs as usize);
        let (mut masks, mut before) = (vec![0_u64; blocks], vec![0_u32; blocks]);
        for &input in outliers {
            masks[input as usize / BLOCK] |= 1 << (input as usize % BLOCK);
        }
        for block in 1..blocks {
            before[block] = before[block - 1] + masks[block - 1].count_ones();
        }
        matrix.outliers = count as u32;
        matrix.outlier_weights = self.kept.keep(packed);
        matrix.outlier_masks = self.kept.keep(self.device.upload(bytemuck::cast_slice(&masks))?);
        matrix.outliers_before = self.kept.keep(self.device.upload(bytemuck::cast_slice(&before))?);
        Ok(())
    }

    /// Packs a matrix group by group, on all threads, as many at a time as fit the staging memory; `fill` brings some rows into their
    /// group.
    fn pack(
        &self,
        format: WeightFormat,
        outputs: usize,
        inputs: usize,
        fill: &(dyn Fn(Range<usize>, &mut [u8]) + Sync),
    ) -> Result<Buffer<u8>> {
        let group_bytes = inputs.div_ceil(SPAN) * unit_bytes(format);
        let groups = outputs.div_ceil(GROUP);
        let at_once = (STAGED / group_bytes.max(1)).clamp(1, groups.max(1));
        let buffer = self.device.zeros::<u8>(groups * group_bytes)?;
        let mut staged = vec![0_u8; at_once * group_bytes];
        for first in (0..groups).step_by(at_once) {
            let count = at_once.min(groups - first);
            let staged = &mut staged[..count * group_bytes];
            staged.fill(0);
            let mut parts: Vec<&mut [u8]> = staged.chunks_exact_mut(group_bytes.max(1)).collect();
            self.cpu.each(&mut parts, &|i, group| {
                let start = (first + i) * GROUP;
                fill(start..outputs.min(start + GROUP), group);
            });
            self.reading.go_on()?;
            self.device.write(&buffer, first * group_bytes, staged)?;
        }
        Ok(buffer)
    }

    /// A row of a matrix times its factor. What is wrong with it is noted, and the row then holds zeros.
    fn row(&self, source: &Source<'_>, outputs: usize, o: usize, row: &mut [f32], watch: &Watch) {
        source.view.row_to_f32(o, row);
        // Without early exits, so that it becomes vector code.
        let largest = row.iter().fold(0, |most, w| u32::max(most, w.abs().to_bits()));
        if largest >= f32::INFINITY.to_bits() {
            watch.infinite.store(true, Relaxed);
            row.fill(0.0);
        }
        if source.factor != 1.0 {
            row.iter_mut().for_each(|w| *w *= source.factor);
        }
        if f32::from_bits(largest) * source.factor >= watch.limit {
            watch.overflow.store(true, Relaxed);
        }
        let bytes = parts(&source.view)[0];
        let width = bytes.len() / outputs.max(1);
        if !self.reading.part(bytes, o * width..(o + 1) * width) {
            row.fill(0.0);
        }
    }

    fn refuse(&self, source: &Source<'_>, watch: &Watch) -> Result<()> {
        if watch.infinite.load(Relaxed) {
            self.checkpoint.check_matrix(&source.view)?;
        }
        if watch.overflow.load(Relaxed) {
            return Err(Error::tensor(
                self.checkpoint.path(),
                source.name,
                "it holds values beyond the range of f16; load it as bf16 or f32",
            ));
        }
        Ok(())
    }

    /// The table of token embeddings, row after row: its address and its format. A binary one holds what it makes of its weights.
    pub fn embedding(&mut self, name: &'static str) -> Result<(u64, TableFormat)> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let view = self.checkpoint.matrix(name, vocab, hidden)?;
        self.checkpoint.check_matrix(&view)?;
        let table = Embedding::of(self.checkpoint, self.config, self.format, name);
        let spikes = self.config.spike_embedding;
        let format = match (spikes, self.format) {
            (true, _) | (_, WeightFormat::Bf16) => TableFormat::Bf16,
            (_, WeightFormat::F16) => TableFormat::F16,
            _ => TableFormat::F32,
        };
        let width = hidden * if format == TableFormat::F32 { 4 } else { 2 };
        let buffer = self.device.zeros::<u8>(vocab * width)?;
        let at_once = (STAGED / width.max(1)).clamp(1, vocab.max(1));
        let bytes = parts(&view)[0];
        let row_bytes = bytes.len() / vocab.max(1);
        let mut staged = vec![0_u8; at_once * width];
        for first in (0..vocab).step_by(at_once) {
            let count = at_once.min(vocab - first);
            let mut rows: Vec<&mut [u8]> = staged[..count * width].chunks_exact_mut(width.max(1)).collect();
            self.cpu.each(&mut rows, &|i, to| {
                let mut values = vec![0.0; hidden];
                let id = first + i;
                table.rows(std::iter::once(id as u32), hidden, &mut values);
                if spikes {
                    values.iter_mut().for_each(|x| *x = if *x >= 0.0 { 1.0 } else { 0.0 });
                }
                match format {
                    TableFormat::F32 => fill(to, &values, f32::to_le_bytes),
                    TableFormat::Bf16 => fill(to, &values, |v| f32_to_bf16(v).to_le_bytes()),
                    TableFormat::F16 => fill(to, &values, |v| f32_to_f16(v).to_le_bytes()),
                }
                self.reading.part(bytes, id * row_bytes..(id + 1) * row_bytes);
            });
            self.reading.go_on()?;
            self.device.write(&buffer, first * width, &staged[..count * width])?;
        }
        self.reading.done(&parts(&view))?;
        Ok((self.kept.keep(buffer), format))
    }
}

/// How a table of embeddings is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    F32 = 0,
    Bf16 = 1,
    F16 = 2,
}

/// What is wrong with the rows of a matrix.
struct Watch {
    /// From here on a value rounds to infinity.
    limit: f32,
    infinite: AtomicBool,
    overflow: AtomicBool,
}

impl Watch {
    fn new(format: WeightFormat) -> Self {
        let limit = if format == WeightFormat::F16 { 65_520.0 } else { f32::INFINITY };
        Self { limit, infinite: AtomicBool::new(false), overflow: AtomicBool::new(false) }
    }
}

/// What a matrix is made of in a file; first that of which each row has its share.
fn parts<'a>(view: &MatrixView<'a>) -> Vec<&'a [u8]> {
    match view {
        MatrixView::Float(view) => vec![view.bytes],
        MatrixView::Quantised { view, .. } => vec![view.codes, view.scales, view.outlier_weights],
    }
}
