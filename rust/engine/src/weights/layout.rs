//! Which tensors a model must have, and of which shapes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Stored, TensorView, quantized};
use crate::config::{ModelConfig, Neuron, SpikeVariant};
use crate::error::{Error, Result};

pub(super) type Tensors = BTreeMap<String, Stored>;

/// What a tensor of a model is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// One value per channel; stored as `[n]`, `[1, 1, n]` or the like.
    Vector(usize),
    /// `[outputs, inputs]`.
    Matrix(usize, usize),
}

impl Shape {
    pub fn fits(self, found: &[usize]) -> bool {
        match self {
            Shape::Vector(n) => is_vector(found, n),
            Shape::Matrix(o, i) => found == [o, i],
        }
    }

    fn needed(self) -> String {
        match self {
            Shape::Vector(n) => format!("[{n}]"),
            Shape::Matrix(o, i) => format!("[{o}, {i}]"),
        }
    }
}

/// Whether `shape` is `n` values in a row: at least one dimension, and all but one are 1.
pub(super) fn is_vector(shape: &[usize], n: usize) -> bool {
    let wide = shape.iter().filter(|&&d| d != 1).count();
    !shape.is_empty() && wide <= 1 && shape.iter().product::<usize>() == n
}

/// Every tensor of a model with its shape.
pub(super) fn expected(config: &ModelConfig) -> Vec<(String, Shape)> {
    let c = config.hidden_size;
    let mut list = vec![
        ("emb.weight".to_owned(), Shape::Matrix(config.vocab_size, c)),
        ("head.weight".to_owned(), Shape::Matrix(config.vocab_size, c)),
        ("ln_out.weight".to_owned(), Shape::Vector(c)),
        ("ln_out.bias".to_owned(), Shape::Vector(c)),
        ("blocks.0.ln0.weight".to_owned(), Shape::Vector(c)),
        ("blocks.0.ln0.bias".to_owned(), Shape::Vector(c)),
    ];
    list.extend(expected_blocks(config));
    list
}

/// Those of the blocks, without the norm of the embedding that belongs to the first.
pub(super) fn expected_blocks(config: &ModelConfig) -> Vec<(String, Shape)> {
    let (c, f) = (config.hidden_size, config.intermediate_size);
    let mut list = Vec::new();
    let channel_mix = [
        ("time_mix_k", Shape::Vector(c)),
        ("time_mix_r", Shape::Vector(c)),
        ("key.weight", Shape::Matrix(f, c)),
        ("receptance.weight", Shape::Matrix(c, c)),
        ("value.weight", Shape::Matrix(c, f)),
    ];
    let time_mix = [
        ("time_decay", Shape::Vector(c)),
        ("time_first", Shape::Vector(c)),
        ("time_mix_k", Shape::Vector(c)),
        ("time_mix_v", Shape::Vector(c)),
        ("time_mix_r", Shape::Vector(c)),
        ("key.weight", Shape::Matrix(c, c)),
        ("value.weight", Shape::Matrix(c, c)),
        ("receptance.weight", Shape::Matrix(c, c)),
        ("output.weight", Shape::Matrix(c, c)),
    ];
    for block in 0..config.num_hidden_layers {
        let mut add = |module: &str, name: &str, shape| list.push((format!("blocks.{block}.{module}.{name}"), shape));
        for norm in ["ln1", "ln2"] {
            add(norm, "weight", Shape::Vector(c));
            add(norm, "bias", Shape::Vector(c));
        }
        if block == 0 && config.variant == SpikeVariant::RwkvFfnPre {
            channel_mix.iter().for_each(|(name, shape)| add("ffnPre", name, *shape));
        } else {
            time_mix.iter().for_each(|(name, shape)| add("att", name, *shape));
        }
        channel_mix.iter().for_each(|(name, shape)| add("ffn", name, *shape));
        if config.neuron == Neuron::Plif {
            add("lif1", "w", Shape::Vector(c));
            add("lif2", "w", Shape::Vector(c));
        }
    }
    list
}

/// Every expected tensor must be there with its shape and a float type, or with the parts of a quantised one; and no other.
pub(super) fn check(path: &Path, tensors: &Tensors, config: &ModelConfig) -> Result<()> {
    check_blocks(path, tensors, config.num_hidden_layers)?;
    let expected = expected(config);
    let known: BTreeSet<String> =
        expected.iter().flat_map(|(name, shape)| quantized::names(config, name, *shape)).collect();
    for (name, shape) in &expected {
        let Some(stored) = tensors.get(name) else {
            return Err(missing(path, tensors, name, Some(&known)));
        };
        if let Some(matrix) = quantized::expected_matrix(config, name, *shape) {
            quantized::check(path, tensors, name, matrix)?;
        } else {
            check_float(path, name, stored, *shape)?;
        }
    }
    if let Some(name) = first_unexpected(tensors, &known) {
        return Err(Error::tensor(
            path,
            name,
            format!("found, but a {} model has no such tensor", config.model_type.name()),
        ));
    }
    Ok(())
}

/// A file with one tensor `blocks.4000000.x` must not make us list four million blocks of 18 tensors.
fn check_blocks(path: &Path, tensors: &Tensors, blocks: usize) -> Result<()> {
    if blocks.saturating_mul(9) > tensors.len() {
        let reason = format!("found {} tensors, too few for {blocks} blocks", tensors.len());
        return Err(Error::format(path, reason));
    }
    Ok(())
}

fn check_float(path: &Path, name: &str, stored: &Stored, shape: Shape) -> Result<()> {
    if !shape.fits(&stored.shape) {
        let reason = format!("found shape {:?}, needed {}", stored.shape, shape.needed());
        return Err(Error::tensor(path, name, reason));
    }
    if !stored.dtype.is_float() {
        let found = stored.dtype.name();
        return Err(Error::tensor(path, name, format!("found type {found}, needed F32, BF16, F16 or F64")));
    }
    Ok(())
}

/// The same for a prophet: its blocks, and `more` beside them. Tensors of `other` types are for the caller to look at.
pub(super) fn check_prophet(
    path: &Path,
    tensors: &Tensors,
    blocks: &ModelConfig,
    more: Vec<(String, Shape)>,
    other: &str,
) -> Result<()> {
    check_blocks(path, tensors, blocks.num_hidden_layers)?;
    let mut expected = expected_blocks(blocks);
    expected.extend(more);
    let known: BTreeSet<String> = expected.iter().map(|(name, _)| name.clone()).chain([other.into()]).collect();
    for (name, shape) in &expected {
        let stored = tensors.get(name).ok_or_else(|| missing(path, tensors, name, Some(&known)))?;
        check_float(path, name, stored, *shape)?;
    }
    match first_unexpected(tensors, &known) {
        Some(name) => Err(Error::tensor(path, name, "found, but a prophet of this shape has no such tensor")),
        None => Ok(()),
    }
}

fn first_unexpected<'a>(tensors: &'a Tensors, known: &BTreeSet<String>) -> Option<&'a str> {
    tensors.keys().map(String::as_str).find(|name| !known.contains(*name))
}

pub(super) fn missing(path: &Path, tensors: &Tensors, name: &str, known: Option<&BTreeSet<String>>) -> Error {
    let instead = known.and_then(|known| first_unexpected(tensors, known));
    let reason = match instead {
        Some(found) => format!("it is missing; perhaps misnamed: found `{found}`, which the model does not have"),
        None => format!("it is missing among the {} tensors found", tensors.len()),
    };
    Error::tensor(path, name, reason)
}

/// Refuses NaN and infinities, naming the tensor and the place.
pub(super) fn check_finite(path: &Path, view: &TensorView<'_>) -> Result<()> {
    match view.first_not_finite() {
        None => Ok(()),
        Some((index, value)) => Err(Error::tensor(
            path,
            view.name,
            format!("found {value} at flat index {index} of shape {:?}, needed finite numbers", view.shape),
        )),
    }
}
