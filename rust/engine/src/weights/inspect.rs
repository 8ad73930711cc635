//! What is known about a model without running it: `spikelet info`.

use std::path::PathBuf;

use super::Checkpoint;
use super::layout::is_vector;
use super::tensor::Dtype;
use crate::config::ModelConfig;

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
    /// Number of weights.
    pub parameters: u64,
    /// The type of the big matrices as stored.
    pub dtype: Dtype,
    /// Bytes that the weights take in memory, by the type that the matrices are loaded in; vectors are f32 always.
    pub memory: Vec<(Dtype, u64)>,
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
        let parameters = tensors.iter().map(|t| t.numel).sum();
        let vectors: u64 = tensors.iter().filter(|t| is_vector(&t.shape, t.numel as usize)).map(|t| t.numel).sum();
        let memory = [Dtype::F32, Dtype::Bf16, Dtype::F16]
            .map(|dtype| (dtype, vectors * 4 + (parameters - vectors) * dtype.size() as u64));
        Inspection {
            path: self.path.clone(),
            files: self.files.iter().map(|f| (f.path().to_owned(), f.len() as u64)).collect(),
            config: self.config.clone(),
            parameters,
            dtype: self.dtype(),
            memory: memory.to_vec(),
            state_bytes: self.config.state_len() as u64 * 4,
            tensors,
        }
    }
}
