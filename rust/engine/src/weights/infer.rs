//! What a model's configuration follows from: `config.json`, the tensors, and the caller where neither is certain.
//!
//! RWKV-4 and SpikeGPT hold the same tensors under the same names: the authors' neurons have no parameters. So the sizes are always certain, and
//! the architecture never is, but for the one SpikeGPT that was published.

use std::path::Path;

use super::OpenOptions;
use super::layout::{Tensors, check, missing};
use super::names::{Family, block_of, family};
use super::{Dtype, quantized};
use crate::config::{ModelConfig, ModelType, Neuron, PartialConfig, SpikeVariant, format_name};
use crate::error::{Error, Result};
use spikelet_simd::WeightFormat;

/// Completes a configuration from the tensors and checks one against the other, names and shapes.
pub(super) fn complete(
    path: &Path,
    tensors: &Tensors,
    partial: &PartialConfig,
    options: OpenOptions,
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
    let shape = Sizes::read(path, tensors, partial)?;
    let model_type = decide_type(path, partial, options, &shape)?;
    if model_type == ModelType::Rwkv4
        && (partial.variant.is_some() || partial.spike_embedding.is_some() || partial.neuron.is_some())
    {
        let reason = "its keys `variant`, `spike_embedding` and `neuron` belong to spikegpt models, not to rwkv4";
        return Err(Error::config(path, reason));
    }
    let variant = decide_variant(path, partial, model_type, ffn_pre)?;
    let Sizes { vocab_size, hidden_size, layers, intermediate_size } = shape;
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
        intermediate_size,
        context_length: partial.context_length,
        layer_norm_epsilon: partial.layer_norm_epsilon.unwrap_or(1e-5),
        rescale_every: partial.rescale_every.unwrap_or(0),
        spike_embedding: model_type == ModelType::SpikeGpt && decide_embedding(path, partial, options, &shape)?,
        variant,
        neuron: decide_neuron(tensors, partial, model_type),
        bos_token_id: partial.bos_token_id,
        eos_token_id: partial.eos_token_id,
        tokenizer_class: partial.tokenizer_class.clone(),
        quantization: decide_quantization(path, tensors, partial)?,
    };
    check(path, tensors, &config)?;
    Ok(config)
}

/// The sizes, which the tensors always tell.
#[derive(Clone, Copy)]
struct Sizes {
    vocab_size: usize,
    hidden_size: usize,
    layers: usize,
    intermediate_size: usize,
}

impl Sizes {
    fn read(path: &Path, tensors: &Tensors, partial: &PartialConfig) -> Result<Sizes> {
        let emb = matrix(path, tensors, "emb.weight")?;
        let key = matrix(path, tensors, "blocks.0.ffn.key.weight")?;
        let last = tensors.keys().filter_map(|n| block_of(n)).map(|(block, _)| block).max().unwrap_or(0);
        let (said, blocks) = (partial.num_hidden_layers, last.saturating_add(1));
        let key_rows = "rows of `blocks.0.ffn.key.weight`";
        Ok(Sizes {
            vocab_size: agree(path, "vocab_size", partial.vocab_size, emb.0, "rows of `emb.weight`")?,
            hidden_size: agree(path, "hidden_size", partial.hidden_size, emb.1, "columns of `emb.weight`")?,
            layers: agree(path, "num_hidden_layers", said, blocks, "blocks")?,
            intermediate_size: agree(path, "intermediate_size", partial.intermediate_size, key.0, key_rows)?,
        })
    }

    /// The published SpikeGPT-216M: no RWKV-4 of these sizes was ever published.
    fn is_spikegpt_216m(&self) -> bool {
        (self.layers, self.hidden_size, self.vocab_size) == (18, 768, 50277)
    }
}

fn decide_type(path: &Path, partial: &PartialConfig, options: OpenOptions, sizes: &Sizes) -> Result<ModelType> {
    match (partial.model_type, options.model_type) {
        (Some(said), Some(asked)) if said != asked => Err(Error::Option {
            name: "model_type".into(),
            value: asked.name().into(),
            needed: format!("{}, as the configuration of {} says", said.name(), path.display()),
        }),
        (Some(found), _) | (None, Some(found)) => Ok(found),
        (None, None) if sizes.is_spikegpt_216m() => Ok(ModelType::SpikeGpt),
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

/// Whether the embedding of a SpikeGPT is binary. The authors' inference script makes it so for the 77 characters of enwik8 only; their
/// training script does for every vocabulary. So for files without a config it is certain for their own models and asked for otherwise.
fn decide_embedding(path: &Path, partial: &PartialConfig, options: OpenOptions, sizes: &Sizes) -> Result<bool> {
    match (partial.spike_embedding, options.spike_embedding) {
        (Some(said), Some(asked)) if said != asked => Err(Error::Option {
            name: "spike_embedding".into(),
            value: asked.to_string(),
            needed: format!("{said}, as the configuration of {} says", path.display()),
        }),
        (Some(found), _) | (None, Some(found)) => Ok(found),
        // A config.json of ours: true is the key's default.
        (None, None) if partial.model_type.is_some() || sizes.vocab_size == 77 => Ok(true),
        (None, None) if sizes.is_spikegpt_216m() => Ok(false),
        (None, None) => Err(Error::Option {
            name: "spike_embedding".into(),
            value: "nothing".into(),
            needed: format!(
                "true if the model was trained with a binary embedding, else false: {} does not say which",
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

/// The neurons of a model. A learned decay shows by its tensors; that there are none does not show.
fn decide_neuron(tensors: &Tensors, partial: &PartialConfig, model_type: ModelType) -> Neuron {
    let learned = tensors.contains_key("blocks.0.lif1.w");
    match (model_type, partial.neuron) {
        (ModelType::Rwkv4, _) => Neuron::None,
        // If it contradicts the tensors, the check of their names says so.
        (_, Some(said)) => said,
        (_, None) if learned => Neuron::Plif,
        (_, None) => Neuron::Lif,
    }
}

/// Quantised matrices show by their type; what the configuration says must agree.
fn decide_quantization(path: &Path, tensors: &Tensors, partial: &PartialConfig) -> Result<Option<WeightFormat>> {
    const SAMPLE: &str = "blocks.0.ffn.key.weight";
    let stored = tensors.get(SAMPLE).map(|t| t.dtype);
    let found = stored.and_then(quantized::format_of_type);
    match partial.quantization {
        Some(said) if found != Some(said) => {
            let (said, needed) = (format_name(said), quantized::type_of(said).name());
            let stored = stored.map_or("nothing", Dtype::name);
            Err(Error::config(path, format!("quantization is {said}, but `{SAMPLE}` holds {stored}, needed {needed}")))
        }
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

#[cfg(test)]
mod tests {
    use super::super::layout::{Shape, expected};
    use super::super::{Data, Stored};
    use super::*;

    /// Tensors of these sizes; opening never looks at values.
    fn tensors(layers: usize, hidden_size: usize, vocab_size: usize) -> Tensors {
        tensors_with(layers, hidden_size, vocab_size, Neuron::Lif)
    }

    fn tensors_with(layers: usize, hidden_size: usize, vocab_size: usize, neuron: Neuron) -> Tensors {
        let config = ModelConfig {
            model_type: ModelType::SpikeGpt,
            vocab_size,
            hidden_size,
            attention_hidden_size: hidden_size,
            num_hidden_layers: layers,
            intermediate_size: 4 * hidden_size,
            context_length: None,
            layer_norm_epsilon: 1e-5,
            rescale_every: 0,
            spike_embedding: false,
            variant: SpikeVariant::Rwkv,
            neuron,
            bos_token_id: None,
            eos_token_id: None,
            tokenizer_class: None,
            quantization: None,
        };
        let stored = |(name, shape): (String, Shape)| {
            let shape = match shape {
                Shape::Vector(n) => vec![n],
                Shape::Matrix(o, i) => vec![o, i],
            };
            (name.clone(), Stored { name, dtype: Dtype::F32, shape, data: Data::Owned(Vec::new()) })
        };
        expected(&config).into_iter().map(stored).collect()
    }

    fn completed(tensors: &Tensors, options: OpenOptions) -> Result<ModelConfig> {
        complete(Path::new("m.pth"), tensors, &PartialConfig::default(), options)
    }

    #[test]
    fn the_published_spikegpt_needs_no_config() {
        let config = completed(&tensors(18, 768, 50277), OpenOptions::default()).expect("known by its sizes");
        assert_eq!((config.model_type, config.spike_embedding), (ModelType::SpikeGpt, false));
        // The caller knows better.
        let config = completed(&tensors(18, 768, 50277), Some(ModelType::Rwkv4).into()).expect("told");
        assert_eq!(config.model_type, ModelType::Rwkv4);
    }

    #[test]
    fn a_learned_decay_shows_and_must_agree_with_what_is_said() {
        let learned = tensors_with(2, 4, 77, Neuron::Plif);
        let open = |tensors: &Tensors, neuron| {
            let partial = PartialConfig { model_type: Some(ModelType::SpikeGpt), neuron, ..PartialConfig::default() };
            complete(Path::new("m.pth"), tensors, &partial, OpenOptions::default())
        };
        assert_eq!(open(&learned, None).expect("shows").neuron, Neuron::Plif);
        assert_eq!(open(&tensors(2, 4, 77), None).expect("usual").neuron, Neuron::Lif);
        assert_eq!(open(&tensors(2, 4, 77), Some(Neuron::None)).expect("told").neuron, Neuron::None);
        let message = open(&learned, Some(Neuron::Lif)).expect_err("contradiction").to_string();
        assert!(message.contains("`blocks.0.lif1.w`"), "{message}");
        let message = open(&tensors(2, 4, 77), Some(Neuron::Plif)).expect_err("contradiction").to_string();
        assert!(message.contains("`blocks.0.lif1.w`") && message.contains("missing"), "{message}");
        let rwkv4 = OpenOptions::from(Some(ModelType::Rwkv4));
        assert_eq!(completed(&tensors(2, 4, 77), rwkv4).expect("rwkv4").neuron, Neuron::None);
        assert!(completed(&learned, rwkv4).is_err());
    }

    #[test]
    fn the_embedding_is_certain_or_asked_for() {
        let spikegpt = OpenOptions::from(Some(ModelType::SpikeGpt));
        assert!(completed(&tensors(2, 4, 77), spikegpt).expect("characters").spike_embedding);
        let message = completed(&tensors(2, 4, 78), spikegpt).expect_err("not certain").to_string();
        assert!(
            message.starts_with("option `spike_embedding`: found nothing, needed true if the model was trained with"),
            "{message}"
        );
        for asked in [true, false] {
            let options = OpenOptions { spike_embedding: Some(asked), ..spikegpt };
            assert_eq!(completed(&tensors(2, 4, 78), options).expect("told").spike_embedding, asked);
        }
        let rwkv4 = OpenOptions::from(Some(ModelType::Rwkv4));
        assert!(!completed(&tensors(2, 4, 78), rwkv4).expect("no neurons").spike_embedding);
        let message = completed(&tensors(12, 768, 50277), OpenOptions::default()).expect_err("not certain").to_string();
        assert!(message.starts_with("option `model_type`: found nothing"), "{message}");
    }
}
