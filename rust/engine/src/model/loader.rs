//! Brings named tensors into the form that the kernels read, and lays out the state as the layers ask for it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use spikelet_simd::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use spikelet_simd::quant::{QuantizedView, quantize, round_to_q8};
use spikelet_simd::{Cpu, Matrix, WeightFormat};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::reading::{LoadProgress, Reading};
use crate::state::StateLayout;
use crate::weights::{Checkpoint, Dtype, MatrixView, all_finite, all_quantised, matrix_format};

/// Weights and bias of a layer norm.
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// Normalises `n` tokens.
    pub fn apply(&self, cpu: &Cpu, x: &[f32], n: usize, y: &mut [f32]) {
        cpu.layer_norm(x, n, &self.weight, &self.bias, self.epsilon, y);
    }
}

/// The table of token embeddings `[vocab, hidden]`, read where it lies in the mapped file.
pub struct Embedding {
    checkpoint: Arc<Checkpoint>,
    name: &'static str,
    vocab: usize,
    format: WeightFormat,
}

impl Embedding {
    /// That of a model whose tensors have been looked at. A binary one is not rounded.
    pub fn of(checkpoint: &Arc<Checkpoint>, config: &ModelConfig, format: WeightFormat, name: &'static str) -> Self {
        let format = match matrix_format(name, format, config.spike_embedding) {
            Some(format) if !config.spike_embedding => format,
            _ => WeightFormat::F32,
        };
        Self { checkpoint: Arc::clone(checkpoint), name, vocab: config.vocab_size, format }
    }

    /// The rows of a pass's tokens, `[n][hidden]`, rounded to the format of the model's matrices. Only the signs of a binary
    /// embedding count, so that is not rounded: a small negative weight would become -0, which fires.
    pub fn rows(&self, tokens: impl Iterator<Item = u32>, hidden: usize, out: &mut [f32]) {
        let table = self.checkpoint.matrix(self.name, self.vocab, hidden);
        let table = table.expect("the table was found when the model was loaded");
        for (token, line) in tokens.zip(out.chunks_exact_mut(hidden)) {
            table.row_to_f32(token as usize, line);
        }
        match self.format {
            WeightFormat::F32 => {}
            WeightFormat::Bf16 => out.iter_mut().for_each(|x| *x = bf16_to_f32(f32_to_bf16(*x))),
            WeightFormat::F16 => out.iter_mut().for_each(|x| *x = f16_to_f32(f32_to_f16(*x))),
            WeightFormat::Q8 | WeightFormat::Q4 => {
                // What is stored so is so already.
                if let MatrixView::Float(_) = table {
                    out.chunks_exact_mut(hidden).for_each(round_to_q8);
                }
            }
        }
    }
}

/// Hands tensors to the layers under construction.
pub struct Loader<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    config: &'a ModelConfig,
    format: WeightFormat,
    cpu: &'a Cpu,
    layout: StateLayout,
    reading: Reading<'a>,
    /// Bytes of the matrices packed so far.
    bytes: usize,
}

impl<'a> Loader<'a> {
    pub fn new(
        checkpoint: &'a Arc<Checkpoint>,
        config: &'a ModelConfig,
        format: WeightFormat,
        cpu: &'a Cpu,
        progress: LoadProgress<'a>,
    ) -> Result<Self> {
        let reading = Reading::new(checkpoint, progress);
        reading.done(&[])?;
        Ok(Self { checkpoint, config, format, cpu, layout: StateLayout::default(), reading, bytes: 0 })
    }

    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// Bytes of the matrices packed so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All tensors have been asked for: the state's layout.
    pub fn finish(self) -> Result<StateLayout> {
        self.reading.finish()?;
        Ok(self.layout)
    }

    /// Asks for a place in the state.
    pub fn state(&mut self, name: String, len: usize, fresh: f32) -> Range<usize> {
        self.layout.push(name, len, fresh)
    }

    /// A vector of `len` elements, whatever axes of size 1 it is stored with.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let values = self.checkpoint.vector(name, len)?;
        self.reading.done(&[self.checkpoint.get(name)?.bytes])?;
        Ok(values)
    }

    /// The layer norm `{prefix}.weight`, `{prefix}.bias` over the hidden width.
    pub fn layer_norm(&self, prefix: &str) -> Result<LayerNorm> {
        self.layer_norm_over(prefix, self.config.hidden_size)
    }

    /// The same over another width.
    pub fn layer_norm_over(&self, prefix: &str, len: usize) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: self.vector(&format!("{prefix}.weight"), len)?,
            bias: self.vector(&format!("{prefix}.bias"), len)?,
            epsilon: self.config.layer_norm_epsilon,
        })
    }

    /// A matrix stored `[outputs, inputs]`, every element divided by `divisor`, a power of two.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize, divisor: f32) -> Result<Matrix> {
        let view = self.checkpoint.matrix(name, outputs, inputs)?;
        let format = matrix_format(name, self.format, false).unwrap_or(self.format);
        let source = Source { view, name, format, outputs, inputs, factor: divisor.recip() };
        let matrix = match self.as_stored(&source) {
            Some(matrix) => matrix,
            None => self.by_rows(&source)?,
        };
        self.reading.done(&parts(&view))?;
        self.bytes += matrix.bytes();
        Ok(matrix)
    }

    /// A matrix that is stored in the wanted format. None: it is not, or something is wrong, or the load is to stop; `by_rows` says what.
    fn as_stored(&self, source: &Source<'_>) -> Option<Matrix> {
        let Source { format, outputs, inputs, factor, .. } = *source;
        let bytes = parts(&source.view)[0];
        let width = bytes.len() / outputs.max(1);
        let read = |rows: Range<usize>| self.reading.part(bytes, rows.start * width..rows.end * width);
        match source.view {
            MatrixView::Float(view) if factor == 1.0 && stored_format(view.dtype) == Some(format) => {
                Matrix::pack_bytes(self.cpu, format, outputs, inputs, bytes, &read)
            }
            MatrixView::Quantised { name, view } if view.format == format => {
                self.checkpoint.check_scales(name, &view).ok()?;
                let good = AtomicBool::new(true);
                let checked = |rows: Range<usize>| {
                    if !all_quantised(format, &bytes[rows.start * width..rows.end * width]) {
                        good.store(false, Relaxed);
                    }
                    read(rows) && good.load(Relaxed)
                };
                let (scales, outlier_weights) = view.scaled(factor);
                let view = QuantizedView { scales: &scales, outlier_weights: &outlier_weights, ..view };
                Matrix::pack_codes(self.cpu, &view, &checked)
            }
            _ => None,
        }
    }

    /// Any other matrix, a row at a time.
    fn by_rows(&self, source: &Source<'_>) -> Result<Matrix> {
        let Source { view, name, format, outputs, inputs, factor } = *source;
        self.reading.go_on()?;
        if let MatrixView::Quantised { .. } = view {
            self.checkpoint.check_matrix(&view)?;
        }
        let bytes = parts(&view)[0];
        let width = bytes.len() / outputs.max(1);
        let limit = match format {
            WeightFormat::F16 => 65_520.0,
            _ => f32::INFINITY,
        };
        let (infinite, overflow) = (AtomicBool::new(false), AtomicBool::new(false));
        let row = |row: usize, out: &mut [f32]| {
            view.row_to_f32(row, out);
            // Without early exits, so that it becomes vector code.
            let largest = out.iter().fold(0, |most, w| u32::max(most, w.abs().to_bits()));
            if largest >= f32::INFINITY.to_bits() {
                infinite.store(true, Relaxed);
                out.fill(0.0); // it is thrown away
            }
            if factor != 1.0 {
                out.iter_mut().for_each(|w| *w *= factor);
            }
            if f32::from_bits(largest) * factor >= limit {
                overflow.store(true, Relaxed);
            }
            if !self.reading.part(bytes, row * width..(row + 1) * width) {
                out.fill(0.0);
            }
        };
        let matrix = match view {
            MatrixView::Quantised { view, .. } if format.is_quantized() && !view.outliers.is_empty() => {
                let quantized = quantize(self.cpu, format, outputs, inputs, None, view.outliers, row);
                quantized.with_view(|view| Matrix::pack_quantized(self.cpu, view))
            }
            _ => Matrix::pack(outputs, inputs, format, self.cpu, row),
        };
        self.reading.go_on()?;
        if infinite.into_inner() {
            self.checkpoint.check_matrix(&view)?;
        }
        if overflow.into_inner() {
            return Err(Error::Tensor {
                path: self.checkpoint.path().to_path_buf(),
                tensor: name.into(),
                reason: "it holds values beyond the range of f16; load it as bf16 or f32".into(),
            });
        }
        Ok(matrix)
    }

    /// The table of token embeddings.
    pub fn embedding(&self, name: &'static str) -> Result<Embedding> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let view = self.checkpoint.matrix(name, vocab, hidden)?;
        let good = match view {
            MatrixView::Float(view) => self.reading.all(self.cpu, view.bytes, |part| all_finite(view.dtype, part)),
            MatrixView::Quantised { name, view } => {
                self.checkpoint.check_scales(name, &view)?;
                self.reading.all(self.cpu, view.codes, |part| all_quantised(view.format, part))
            }
        };
        if !good {
            self.checkpoint.check_matrix(&view)?;
        }
        self.reading.done(&parts(&view))?;
        Ok(Embedding::of(self.checkpoint, self.config, self.format, name))
    }
}

/// A matrix to be packed.
#[derive(Clone, Copy)]
struct Source<'a> {
    view: MatrixView<'a>,
    name: &'a str,
    /// The wanted one.
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
    /// Times every weight.
    factor: f32,
}

/// What a matrix is made of in a file; first that of which each row has its share.
fn parts<'a>(view: &MatrixView<'a>) -> Vec<&'a [u8]> {
    match view {
        MatrixView::Float(view) => vec![view.bytes],
        MatrixView::Quantised { view, .. } => vec![view.codes, view.scales, view.outlier_weights],
    }
}

/// The format whose bits a type has.
fn stored_format(dtype: Dtype) -> Option<WeightFormat> {
    match dtype {
        Dtype::F32 => Some(WeightFormat::F32),
        Dtype::Bf16 => Some(WeightFormat::Bf16),
        Dtype::F16 => Some(WeightFormat::F16),
        _ => None,
    }
}
