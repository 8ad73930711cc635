//! Which tensors a model must have, and what its configuration follows from.
//!
//! RWKV-4 and SpikeGPT hold the same tensors under the same names: neurons have no parameters. So the sizes are always certain, and
//! the architecture never is: it comes from `config.json` or from the caller.

use std::collections::BTreeMap;
use std::path::Path;

use super::names::{Family, block_of, family};
use super::{Stored, TensorView};
use crate::config::{ModelConfig, ModelType, PartialConfig, SpikeVariant};
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

/// Completes a configuration from the tensors and checks one against the other, names and shapes.
pub(super) fn complete(
    path: &Path,
    tensors: &Tensors,
    partial: &PartialConfig,
    model_type: Option<ModelType>,
) -> Result<ModelConfig> {
    let ffn_pre = match family(tensors.keys().map(String::as_str)) {
        Family::Rwkv4Like { ffn_pre } => ffn_pre,
        Family::Other { architecture, evidence } => {
            return Err(Error::Unsupported {
                what: format!("{}: {architecture} (it holds `{evidence}`)", path.display()),
                reason: "not yet by this version, which runs spikegpt and rwkv4".into(),
            });
        }
        Family::Unknown => {
            let some: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
            return Err(Error::Unsupported {
                what: format!("{}: an unknown architecture", path.display()),
                reason: format!(
                    "found {} tensors ({}…), needed those of spikegpt or rwkv4 (`emb.weight`, `blocks.0.…`)",
                    tensors.len(),
                    some.join(", ")
                ),
            });
        }
    };
    let model_type = decide_type(path, partial, model_type)?;
    if model_type == ModelType::Rwkv4 && (partial.variant.is_some() || partial.spike_embedding.is_some()) {
        let reason = "its keys `variant` and `spike_embedding` belong to spikegpt models, not to rwkv4";
        return Err(Error::config(path, reason));
    }
    let variant = decide_variant(path, partial, model_type, ffn_pre)?;
    let emb = matrix(path, tensors, "emb.weight")?;
    let vocab_size = agree(path, "vocab_size", partial.vocab_size, emb.0, "rows of `emb.weight`")?;
    let hidden_size = agree(path, "hidden_size", partial.hidden_size, emb.1, "columns of `emb.weight`")?;
    let blocks = tensors.keys().filter_map(|n| block_of(n)).map(|(block, _)| block).max().unwrap_or(0);
    let layers = agree(path, "num_hidden_layers", partial.num_hidden_layers, blocks.saturating_add(1), "blocks")?;
    let key = matrix(path, tensors, "blocks.0.ffn.key.weight")?;
    let intermediate =
        agree(path, "intermediate_size", partial.intermediate_size, key.0, "rows of `blocks.0.ffn.key.weight`")?;
    let attention_hidden_size = partial.attention_hidden_size.unwrap_or(hidden_size);
    if attention_hidden_size != hidden_size {
        return Err(Error::config(
            path,
            format!(
                "attention_hidden_size is {attention_hidden_size}: this version needs it to equal hidden_size, {hidden_size}"
            ),
        ));
    }
    for (key, id) in [("bos_token_id", partial.bos_token_id), ("eos_token_id", partial.eos_token_id)] {
        if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
            return Err(Error::config(path, format!("{key} is {id}, but the vocabulary has {vocab_size} tokens")));
        }
    }
    let config = ModelConfig {
        model_type,
        vocab_size,
        hidden_size,
        attention_hidden_size,
        num_hidden_layers: layers,
        intermediate_size: intermediate,
        context_length: partial.context_length,
        layer_norm_epsilon: partial.layer_norm_epsilon.unwrap_or(1e-5),
        rescale_every: partial.rescale_every.unwrap_or(0),
        spike_embedding: model_type == ModelType::SpikeGpt && partial.spike_embedding.unwrap_or(true),
        variant,
        bos_token_id: partial.bos_token_id,
        eos_token_id: partial.eos_token_id,
        tokenizer_class: partial.tokenizer_class.clone(),
    };
    check(path, tensors, &config)?;
    Ok(config)
}

fn decide_type(path: &Path, partial: &PartialConfig, asked: Option<ModelType>) -> Result<ModelType> {
    match (partial.model_type, asked) {
        (Some(said), Some(asked)) if said != asked => Err(Error::Option {
            name: "model_type".into(),
            value: asked.name().into(),
            needed: format!("{}, as the configuration of {} says", said.name(), path.display()),
        }),
        (Some(found), _) | (None, Some(found)) => Ok(found),
        (None, None) => Err(Error::Option {
            name: "model_type".into(),
            value: "nothing".into(),
            needed: format!(
                "spikegpt or rwkv4: their files hold the same tensors, and {} has no config.json that says which it is",
                path.display()
            ),
        }),
    }
}

fn decide_variant(path: &Path, partial: &PartialConfig, model_type: ModelType, ffn_pre: bool) -> Result<SpikeVariant> {
    if model_type == ModelType::Rwkv4 && ffn_pre {
        return Err(Error::Unsupported {
            what: format!("{}: RWKV-4 with `blocks.0.ffnPre`", path.display()),
            reason: "only spikegpt models have this variant here".into(),
        });
    }
    let found = if ffn_pre { SpikeVariant::RwkvFfnPre } else { SpikeVariant::Rwkv };
    match partial.variant {
        Some(said) if said != found => Err(Error::config(
            path,
            format!("variant is \"{}\", but the tensors are those of \"{}\"", said.name(), found.name()),
        )),
        _ => Ok(found),
    }
}

/// The rows and columns of a matrix that sizes are read from.
fn matrix(path: &Path, tensors: &Tensors, name: &str) -> Result<(usize, usize)> {
    let Some(stored) = tensors.get(name) else {
        return Err(missing(path, tensors, name, None));
    };
    match stored.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => Err(Error::tensor(path, name, format!("found shape {:?}, needed a matrix", stored.shape))),
    }
}

fn agree(path: &Path, key: &str, said: Option<usize>, found: usize, what: &str) -> Result<usize> {
    match said {
        Some(said) if said != found => {
            Err(Error::config(path, format!("{key} is {said}, but the model has {found} {what}")))
        }
        _ => Ok(found),
    }
}

/// Every tensor of a model with its shape.
pub(super) fn expected(config: &ModelConfig) -> Vec<(String, Shape)> {
    let (c, f) = (config.hidden_size, config.intermediate_size);
    let mut list = vec![
        ("emb.weight".to_owned(), Shape::Matrix(config.vocab_size, c)),
        ("head.weight".to_owned(), Shape::Matrix(config.vocab_size, c)),
        ("ln_out.weight".to_owned(), Shape::Vector(c)),
        ("ln_out.bias".to_owned(), Shape::Vector(c)),
    ];
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
        let norms: &[&str] = if block == 0 { &["ln0", "ln1", "ln2"] } else { &["ln1", "ln2"] };
        for norm in norms {
            add(norm, "weight", Shape::Vector(c));
            add(norm, "bias", Shape::Vector(c));
        }
        if block == 0 && config.variant == SpikeVariant::RwkvFfnPre {
            channel_mix.iter().for_each(|(name, shape)| add("ffnPre", name, *shape));
        } else {
            time_mix.iter().for_each(|(name, shape)| add("att", name, *shape));
        }
        channel_mix.iter().for_each(|(name, shape)| add("ffn", name, *shape));
    }
    list
}

fn check(path: &Path, tensors: &Tensors, config: &ModelConfig) -> Result<()> {
    // A file with one tensor `blocks.4000000.x` must not make us list four million blocks of 18 tensors.
    let blocks = config.num_hidden_layers;
    if blocks.saturating_mul(9) > tensors.len() {
        let reason = format!("found {} tensors, too few for {blocks} blocks", tensors.len());
        return Err(Error::format(path, reason));
    }
    let expected = expected(config);
    for (name, shape) in &expected {
        let Some(stored) = tensors.get(name) else {
            return Err(missing(path, tensors, name, Some(&expected)));
        };
        if !shape.fits(&stored.shape) {
            return Err(Error::tensor(
                path,
                name,
                format!("found shape {:?}, needed {}", stored.shape, shape.needed()),
            ));
        }
        if !stored.dtype.is_float() {
            let found = stored.dtype.name();
            return Err(Error::tensor(path, name, format!("found type {found}, needed F32, BF16, F16 or F64")));
        }
    }
    if let Some(name) = first_unexpected(tensors, &expected) {
        return Err(Error::tensor(
            path,
            name,
            format!("found, but a {} model has no such tensor", config.model_type.name()),
        ));
    }
    Ok(())
}

fn first_unexpected<'a>(tensors: &'a Tensors, expected: &[(String, Shape)]) -> Option<&'a str> {
    let known: std::collections::BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    tensors.keys().map(String::as_str).find(|name| !known.contains(name))
}

fn missing(path: &Path, tensors: &Tensors, name: &str, expected: Option<&[(String, Shape)]>) -> Error {
    let instead = expected.and_then(|expected| first_unexpected(tensors, expected));
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
