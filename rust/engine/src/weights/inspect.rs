//! What is known about a model without running it: `spikelet info`.

use std::path::PathBuf;

use spikelet_simd::WeightFormat::{self, Bf16, F16, F32, Q4, Q8};
use spikelet_simd::quant::{blocks_of, code_bytes_of};

use super::Checkpoint;
use super::layout::{Shape, expected};
use super::quantized::matrix_format;
use super::tensor::Dtype;
use crate::config::{ModelConfig, format_name};

/// A model's facts.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The folder or file.
    pub path: PathBuf,
    /// The files that hold the weights, with their sizes.
    pub files: Vec<(PathBuf, u64)>,
    /// The complete configuration.
    pub config: ModelConfig,
    /// All tensors, sorted by name.
    pub tensors: Vec<TensorInfo>,
    /// Number of weights, however many bits each has.
    pub parameters: u64,
    /// The type of the big matrices as stored: `f32`, `q4`, …
    pub dtype: String,
    /// Bytes that the weights take in memory, by the format that the matrices are loaded in; vectors are f32 always.
    pub memory: Vec<(&'static str, u64)>,
    /// Bytes of one sequence's state.
    pub state_bytes: u64,
}

/// A tensor's facts.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The original authors' name.
    pub name: String,
    /// The name in the file.
    pub stored_name: String,
    /// The type as stored.
    pub dtype: Dtype,
    /// The shape as stored.
    pub shape: Vec<usize>,
    /// Number of values.
    pub numel: u64,
}

impl Checkpoint {
    /// Lists what the model is made of.
    pub fn inspect(&self) -> Inspection {
        let tensors: Vec<TensorInfo> = self
            .tensors
            .iter()
            .map(|(name, stored)| TensorInfo {
                name: name.clone(),
                stored_name: stored.name.clone(),
                dtype: stored.dtype,
                shape: stored.shape.clone(),
                numel: stored.shape.iter().map(|&d| d as u64).product(),
            })
            .collect();
        let (mut vectors, mut parameters) = (0, 0);
        let mut memory = [F32, Bf16, F16, Q8, Q4].map(|format| (format, 0));
        for (name, shape) in expected(&self.config) {
            match shape {
                Shape::Vector(n) => vectors += n as u64,
                Shape::Matrix(outputs, inputs) => {
                    parameters += (outputs * inputs) as u64;
                    for (format, bytes) in &mut memory {
                        let row = match matrix_format(&name, *format, self.config.spike_embedding) {
                            Some(format) => row_bytes(format, inputs),
                            None => self.tensors[&name].dtype.size() * inputs,
                        };
                        *bytes += (outputs * row) as u64;
                    }
                }
            }
        }
        parameters += vectors;
        let memory = memory.map(|(format, bytes)| (format_name(format), bytes + vectors * 4));
        let dtype = match self.config.quantization {
            Some(format) => format_name(format).to_owned(),
            None => self.dtype().name().to_lowercase(),
        };
        Inspection {
            path: self.path.clone(),
            files: self.files.iter().map(|f| (f.path().to_owned(), f.len() as u64)).collect(),
            config: self.config.clone(),
            parameters,
            dtype,
            memory: memory.to_vec(),
            state_bytes: self.config.state_len() as u64 * 4,
            tensors,
        }
    }
}

/// Bytes of one row of a matrix.
fn row_bytes(format: WeightFormat, inputs: usize) -> usize {
    match format {
        F32 => 4 * inputs,
        Bf16 | F16 => 2 * inputs,
        Q8 | Q4 => code_bytes_of(format, inputs) + 2 * blocks_of(inputs),
    }
}
