//! What a model's matrices are multiplied with over a text: the calibration of quantised weights.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use spikelet_simd::Matrix;

use super::Model;
use crate::backend::{LogitsWanted, PassRow, Runner, cpu_only};
use crate::error::{Error, Result};

/// Tokens whose inputs are kept whole.
const SAMPLES: usize = 64;
/// Tokens of a pass of [`calibrate`]: few enough for their logits to stay small.
const PART: usize = 256;

/// Watches the products of passes, see [`DeviceRunner::forward_observed`](crate::backend::DeviceRunner::forward_observed).
#[derive(Debug)]
pub struct Observer {
    /// By the address of the matrix, which stays where it is as long as the model lives.
    places: BTreeMap<usize, usize>,
    matrices: Vec<InputStatistics>,
    /// Every so many tokens are kept as a sample.
    every: usize,
}

/// What one matrix was multiplied with.
#[derive(Clone, Debug)]
pub struct InputStatistics {
    /// The matrix's tensor.
    pub name: String,
    /// Number of inputs.
    pub inputs: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Sum of the squares of each input.
    squares: Vec<f64>,
    /// Inputs of some tokens, `[samples][inputs]`.
    pub sample: Vec<f32>,
}

impl InputStatistics {
    /// Statistics of a matrix that has not been used yet.
    pub fn new(name: String, inputs: usize) -> Self {
        Self { name, inputs, tokens: 0, squares: vec![0.0; inputs], sample: Vec::new() }
    }

    /// Mean square of each input, `[inputs]`; zeros if nothing was seen.
    pub fn mean_squares(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f64;
        self.squares.iter().map(|sum| (sum / tokens).min(f64::from(f32::MAX)) as f32).collect()
    }

    /// Takes in the inputs of some tokens, `[tokens][inputs]`; keeps those of every `every`-th.
    pub fn note(&mut self, x: &[f32], every: usize) {
        for token in x.chunks_exact(self.inputs.max(1)) {
            for (sum, &x) in self.squares.iter_mut().zip(token) {
                *sum += f64::from(x) * f64::from(x);
            }
            if self.tokens.is_multiple_of(every) {
                self.sample.extend_from_slice(token);
            }
            self.tokens += 1;
        }
    }
}

impl Observer {
    /// Watches `model` over a text of about `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it computes on a GPU.
    pub fn new(model: &Model, tokens: usize) -> Result<Self> {
        let matrices = model.architecture().ok_or_else(|| cpu_only("calibration"))?.matrices();
        let places = matrices.iter().enumerate().map(|(i, (_, matrix))| (address(matrix), i)).collect();
        let unused = |(name, matrix): (String, &Matrix)| InputStatistics::new(name, matrix.inputs());
        let every = tokens.div_ceil(SAMPLES).max(1);
        Ok(Self { places, matrices: matrices.into_iter().map(unused).collect(), every })
    }

    /// What was seen, by the name of the matrix's tensor.
    pub fn into_statistics(self) -> BTreeMap<String, InputStatistics> {
        self.matrices.into_iter().map(|statistics| (statistics.name.clone(), statistics)).collect()
    }

    pub(super) fn note(&mut self, w: &Matrix, x: &[f32]) {
        let place = self.places.get(&address(w)).expect("the matrix belongs to the model that is watched");
        self.matrices[*place].note(x, self.every);
    }
}

/// Lets `model` read a text, as far as `progress` allows (tokens read, tokens in all), and says what its matrices were multiplied
/// with, by the names of their tensors.
///
/// # Errors
/// [`Error::TokenId`] for an id outside the vocabulary, [`Error::Cancelled`], or [`Error::Logits`] if the model computes numbers
/// that are not finite. [`Error::Unsupported`] if it computes on a GPU.
pub fn calibrate(
    model: &Arc<Model>,
    tokens: &[u32],
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<BTreeMap<String, InputStatistics>> {
    let mut observer = Observer::new(model, tokens.len())?;
    let mut runner = model.runner()?;
    let slot = runner.alloc_slot()?;
    let mut done = 0;
    for part in tokens.chunks(PART) {
        if progress(done, tokens.len() as u64).is_break() {
            return Err(Error::Cancelled);
        }
        let row = PassRow { slot, tokens: part, logits: LogitsWanted::All, keep: &[slot] };
        runner.forward_observed(row, &mut observer)?;
        done += part.len() as u64;
    }
    if progress(done, done).is_break() {
        return Err(Error::Cancelled);
    }
    let statistics = observer.into_statistics();
    if let Some(bad) = statistics.values().find(|s| s.squares.iter().any(|square| !square.is_finite())) {
        return Err(Error::Logits { reason: format!("the inputs of `{}` are not finite over this text", bad.name) });
    }
    Ok(statistics)
}

fn address(matrix: &Matrix) -> usize {
    std::ptr::from_ref(matrix).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LoadOptions;
    use crate::weights::Checkpoint;
    use std::path::Path;

    #[test]
    fn every_matrix_is_seen_at_every_token_and_no_bit_changes() {
        for name in ["spikegpt-tiny", "rwkv4-tiny"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
            let model = Model::load(&folder, &LoadOptions::default()).expect("a model");
            let tokens: Vec<u32> = (0..100).map(|i| i * 7 % model.config().vocab_size as u32).collect();
            let (mut runner, mut plain) = (model.runner().expect("a runner"), model.runner().expect("a runner"));
            let mut observer = Observer::new(&model, tokens.len()).expect("on the CPU");
            for part in tokens.chunks(30) {
                let slot = runner.alloc_slot().expect("a slot");
                let row = PassRow { slot, tokens: part, logits: LogitsWanted::All, keep: &[slot] };
                runner.forward_observed(row, &mut observer).expect("valid ids");
                let slot = plain.alloc_slot().expect("a slot");
                plain.forward(&[PassRow { slot, keep: &[slot], ..row }]).expect("valid ids");
                assert_eq!(runner.logits(), plain.logits());
            }
            let statistics = observer.into_statistics();
            let checkpoint = Checkpoint::open(&folder).expect("a model");
            let matrix = |name: &&str| *name != "emb.weight" && checkpoint.get(name).is_ok_and(|v| v.shape.len() == 2);
            let names: Vec<&str> = checkpoint.names().filter(matrix).collect();
            assert_eq!(statistics.keys().collect::<Vec<_>>(), names);
            for statistics in statistics.values() {
                assert_eq!(statistics.tokens, 100);
                assert_eq!(statistics.sample.len(), 50 * statistics.inputs, "every second token");
                let mean: f32 = statistics.mean_squares().iter().sum();
                let of_sample = statistics.sample.iter().map(|x| x * x).sum::<f32>() / 50.0;
                assert!(mean > 0.0 && (mean - of_sample).abs() < 0.2 * mean, "{mean} {of_sample}");
            }
        }
    }
}
