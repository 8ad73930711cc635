//! Brings named tensors into the form that the kernels read, and lays out the state as the layers ask for it.

use std::ops::Range;
use std::sync::Arc;

use spikelet_simd::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use spikelet_simd::quant::{QuantizedView, quantize, round_to_q8};
use spikelet_simd::{Cpu, Matrix, WeightFormat};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::state::StateLayout;
use crate::weights::{Checkpoint, MatrixView, matrix_format};

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
    /// Bytes of the matrices packed so far.
    bytes: usize,
}

impl<'a> Loader<'a> {
    pub fn new(checkpoint: &'a Arc<Checkpoint>, config: &'a ModelConfig, format: WeightFormat, cpu: &'a Cpu) -> Self {
        Self { checkpoint, config, format, cpu, layout: StateLayout::default(), bytes: 0 }
    }

    pub fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// Bytes of the matrices packed so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn into_layout(self) -> StateLayout {
        self.layout
    }

    /// Asks for a place in the state.
    pub fn state(&mut self, name: String, len: usize, fresh: f32) -> Range<usize> {
        self.layout.push(name, len, fresh)
    }

    /// A vector of `len` elements, whatever axes of size 1 it is stored with.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(name, len)
    }

    /// The layer norm `{prefix}.weight`, `{prefix}.bias` over the hidden width.
    pub fn layer_norm(&self, prefix: &str) -> Result<LayerNorm> {
        let len = self.config.hidden_size;
        Ok(LayerNorm {
            weight: self.vector(&format!("{prefix}.weight"), len)?,
            bias: self.vector(&format!("{prefix}.bias"), len)?,
            epsilon: self.config.layer_norm_epsilon,
        })
    }

    /// A matrix stored `[outputs, inputs]`, every element divided by `divisor`, a power of two.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize, divisor: f32) -> Result<Matrix> {
        let view = self.checkpoint.matrix(name, outputs, inputs)?;
        self.checkpoint.check_matrix(&view)?;
        let factor = divisor.recip();
        let format = matrix_format(name, self.format, false).unwrap_or(self.format);
        if format.is_quantized() {
            let matrix = self.quantized(&view, format, [outputs, inputs], factor);
            self.bytes += matrix.bytes();
            return Ok(matrix);
        }
        let overflow = std::sync::atomic::AtomicBool::new(false);
        let limit = match format {
            WeightFormat::F16 => 65_520.0,
            _ => f32::INFINITY,
        };
        let row = |row: usize, out: &mut [f32]| {
            view.row_to_f32(row, out);
            if factor != 1.0 {
                out.iter_mut().for_each(|w| *w *= factor);
            }
            if out.iter().any(|w| w.abs() >= limit) {
                overflow.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        };
        let matrix = Matrix::pack(outputs, inputs, format, self.cpu, row);
        if overflow.into_inner() {
            return Err(Error::Tensor {
                path: self.checkpoint.path().to_path_buf(),
                tensor: name.into(),
                reason: "it holds values beyond the range of f16; load it as bf16 or f32".into(),
            });
        }
        self.bytes += matrix.bytes();
        Ok(matrix)
    }

    /// A matrix in a format of integers, with `factor` times its weights: as it is stored, or quantised here.
    fn quantized(
        &self,
        matrix: &MatrixView<'_>,
        format: WeightFormat,
        [outputs, inputs]: [usize; 2],
        factor: f32,
    ) -> Matrix {
        let outliers = match matrix {
            MatrixView::Quantised { view, .. } if view.format == format => {
                let (scales, outlier_weights) = view.scaled(factor);
                let view = QuantizedView { scales: &scales, outlier_weights: &outlier_weights, ..*view };
                return Matrix::pack_quantized(self.cpu, &view);
            }
            MatrixView::Quantised { view, .. } => view.outliers,
            MatrixView::Float(_) => &[],
        };
        let row = |row: usize, out: &mut [f32]| {
            matrix.row_to_f32(row, out);
            out.iter_mut().for_each(|w| *w *= factor);
        };
        let quantized = quantize(self.cpu, format, outputs, inputs, None, outliers, row);
        quantized.with_view(|view| Matrix::pack_quantized(self.cpu, view))
    }

    /// The table of token embeddings.
    pub fn embedding(&self, name: &'static str) -> Result<Embedding> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let view = self.checkpoint.matrix(name, vocab, hidden)?;
        self.checkpoint.check_matrix(&view)?;
        let format = match matrix_format(name, self.format, self.config.spike_embedding) {
            Some(format) if !self.config.spike_embedding => format,
            _ => WeightFormat::F32,
        };
        Ok(Embedding { checkpoint: Arc::clone(self.checkpoint), name, vocab, format })
    }
}
