//! `config.json`: which architecture a model has and how large it is.
//!
//! A key that is neither known nor known to be harmless is refused by name, because it may change what the model computes.
//! Keys that start with `_` are comments. What the file leaves out is taken from the tensors where they leave no doubt
//! (see [`crate::weights`]).

use std::path::Path;

use serde_json::{Map, Value, json};
use spikelet_simd::WeightFormat;
use spikelet_simd::quant::QUANT_BLOCK;

use crate::error::{Error, Result};

/// Architectures that this version runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ModelType {
    /// SpikeGPT: RWKV blocks whose outputs pass leaky integrate-and-fire neurons.
    SpikeGpt,
    /// RWKV-4 ("Dove"); Hugging Face calls it `rwkv`.
    Rwkv4,
}

impl ModelType {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            ModelType::SpikeGpt => "spikegpt",
            ModelType::Rwkv4 => "rwkv4",
        }
    }

    /// The architecture of a `model_type`, with what the user should know if there is none.
    pub fn by_name(name: &str) -> Result<ModelType> {
        match name {
            "spikegpt" => Ok(ModelType::SpikeGpt),
            "rwkv4" | "rwkv" => Ok(ModelType::Rwkv4),
            "rwkv5" | "rwkv6" | "rwkv6qwen2" | "rwkv7" | "gpt2" => Err(Error::Unsupported {
                what: format!("model_type `{name}`"),
                reason: "not yet by this version, which runs spikegpt and rwkv4".into(),
            }),
            _ => Err(Error::Unsupported {
                what: format!("model_type `{name}`"),
                reason: "unknown architecture; this version runs spikegpt and rwkv4".into(),
            }),
        }
    }
}

/// The two forms of SpikeGPT's first block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SpikeVariant {
    /// Every block mixes over time, then over channels.
    Rwkv,
    /// Block 0 has a second channel mix (`ffnPre`) in place of its time mix.
    RwkvFfnPre,
}

impl SpikeVariant {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            SpikeVariant::Rwkv => "rwkv",
            SpikeVariant::RwkvFfnPre => "rwkv-ffnpre",
        }
    }
}

/// What stands between a SpikeGPT block's output and the residual stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Neuron {
    /// Leaky integrate-and-fire neurons with a time constant of 2 tokens, as the authors have them.
    Lif,
    /// The same with a learned decay per channel, the sigmoid of `blocks.N.lif1.w` and `blocks.N.lif2.w`.
    Plif,
    /// Nothing: no spikes, and no membranes in the state.
    None,
}

impl Neuron {
    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Neuron::Lif => "lif",
            Neuron::Plif => "plif",
            Neuron::None => "none",
        }
    }
}

/// A format's name, as options and files spell it.
pub fn format_name(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::F32 => "f32",
        WeightFormat::Bf16 => "bf16",
        WeightFormat::F16 => "f16",
        WeightFormat::Q8 => "q8",
        WeightFormat::Q4 => "q4",
    }
}

/// A model's architecture and sizes; what a complete `config.json` says.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelConfig {
    /// The architecture.
    pub model_type: ModelType,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the time mix; equal to `hidden_size` in all models that this version runs.
    pub attention_hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Width of the channel mix.
    pub intermediate_size: usize,
    /// Tokens per sequence in training. The state has constant size, so this limits nothing.
    pub context_length: Option<usize>,
    /// Epsilon of every layer norm.
    pub layer_norm_epsilon: f32,
    /// Compatibility switch for the original inference script, 0 is off: halve the stream after every so many layers.
    pub rescale_every: usize,
    /// SpikeGPT: the embedding passes a step function (1 where it is at least 0).
    pub spike_embedding: bool,
    /// SpikeGPT: the form of the first block.
    pub variant: SpikeVariant,
    /// SpikeGPT: its neurons; other models have none.
    pub neuron: Neuron,
    /// The id that begins a text.
    pub bos_token_id: Option<u32>,
    /// The id that ends a text.
    pub eos_token_id: Option<u32>,
    /// `bytes` and `chars` name built-in tokenizers.
    pub tokenizer_class: Option<String>,
    /// The format of quantised matrices, [`WeightFormat::Q8`] or [`WeightFormat::Q4`]; none if they are floating point.
    pub quantization: Option<WeightFormat>,
}

impl ModelConfig {
    /// The keys and values of a complete `config.json`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.into(), value);
        put("model_type", json!(self.model_type.name()));
        if self.model_type == ModelType::SpikeGpt {
            put("variant", json!(self.variant.name()));
            put("spike_embedding", json!(self.spike_embedding));
            // The key's default stays out: folders of models as the authors made them read as ever.
            if self.neuron != Neuron::Lif {
                put("neuron", json!(self.neuron.name()));
            }
        }
        put("vocab_size", json!(self.vocab_size));
        put("hidden_size", json!(self.hidden_size));
        put("num_hidden_layers", json!(self.num_hidden_layers));
        put("intermediate_size", json!(self.intermediate_size));
        if let Some(length) = self.context_length {
            put("context_length", json!(length));
        }
        put("layer_norm_epsilon", epsilon_to_json(self.layer_norm_epsilon));
        if self.rescale_every != 0 {
            put("rescale_every", json!(self.rescale_every));
        }
        if let Some(id) = self.bos_token_id {
            put("bos_token_id", json!(id));
        }
        if let Some(id) = self.eos_token_id {
            put("eos_token_id", json!(id));
        }
        if let Some(class) = &self.tokenizer_class {
            put("tokenizer_class", json!(class));
        }
        if let Some(format) = self.quantization {
            let (format, version) = (format_name(format), QUANTIZATION_VERSION);
            put("quantization", json!({ "format": format, "block_size": QUANT_BLOCK, "version": version }));
        }
        Value::Object(map)
    }

    /// f32 values that one sequence's state holds.
    pub fn state_len(&self) -> usize {
        // Token shifts of time and channel mix, aa, bb, pp; neurons add the membranes of two layers.
        let per_layer = if self.neuron == Neuron::None { 5 } else { 7 };
        per_layer * self.hidden_size * self.num_hidden_layers
    }
}

/// The shortest decimal that reads back as the same f32 (`1e-5`, not `9.999999747378752e-6`).
fn epsilon_to_json(epsilon: f32) -> Value {
    epsilon.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// The layout of quantised tensors that this version writes and reads.
const QUANTIZATION_VERSION: u64 = 1;

/// Sizes above this are refused: no such model exists, and sums of products of sizes below it cannot overflow.
const MAX_SIZE: u64 = 1 << 24;

/// Keys that other programs write and that change nothing in what the model computes here.
const HARMLESS: &[&str] = &[
    "architectures",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
];

/// `config.json` as read: what it leaves out is still open.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct PartialConfig {
    pub model_type: Option<ModelType>,
    pub vocab_size: Option<usize>,
    pub hidden_size: Option<usize>,
    pub attention_hidden_size: Option<usize>,
    pub num_hidden_layers: Option<usize>,
    pub intermediate_size: Option<usize>,
    pub context_length: Option<usize>,
    pub layer_norm_epsilon: Option<f32>,
    pub rescale_every: Option<usize>,
    pub spike_embedding: Option<bool>,
    pub variant: Option<SpikeVariant>,
    pub neuron: Option<Neuron>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
    pub tokenizer_class: Option<String>,
    pub tie_word_embeddings: bool,
    pub quantization: Option<WeightFormat>,
}

impl PartialConfig {
    /// Reads the text of a `config.json`; `path` is for messages.
    pub fn parse(path: &Path, text: &[u8]) -> Result<PartialConfig> {
        let value: Value =
            serde_json::from_slice(text).map_err(|e| Error::config(path, format!("not valid JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(Error::config(path, "found JSON that is not an object, needed { \"model_type\": … }"));
        };
        let mut config = PartialConfig::default();
        let model_type = map.get("model_type");
        if let Some(value) = model_type {
            config.model_type = Some(ModelType::by_name(string(path, "model_type", value)?)?);
        }
        for (key, value) in &map {
            if key != "model_type" && !key.starts_with('_') && !HARMLESS.contains(&key.as_str()) {
                config.set(path, key, value)?;
            }
        }
        // Hugging Face's RWKV-4 halves at inference by default. Without neurons this changes nothing but the rounding, and it is undone at the end.
        if model_type.and_then(Value::as_str) == Some("rwkv") {
            config.rescale_every = Some(0);
        }
        Ok(config)
    }

    fn set(&mut self, path: &Path, key: &str, value: &Value) -> Result<()> {
        let spike_only = matches!(key, "spike_embedding" | "variant" | "neuron");
        if spike_only && self.model_type.is_some_and(|t| t != ModelType::SpikeGpt) {
            return Err(Error::config(path, format!("key `{key}` belongs to spikegpt models only")));
        }
        match key {
            "vocab_size" => self.vocab_size = Some(size(path, key, value)?),
            "hidden_size" => self.hidden_size = Some(size(path, key, value)?),
            "attention_hidden_size" if value.is_null() => {}
            "attention_hidden_size" => self.attention_hidden_size = Some(size(path, key, value)?),
            "num_hidden_layers" => self.num_hidden_layers = Some(size(path, key, value)?),
            "intermediate_size" if value.is_null() => {}
            "intermediate_size" => self.intermediate_size = Some(size(path, key, value)?),
            "context_length" | "max_position_embeddings" if value.is_null() => {}
            "context_length" | "max_position_embeddings" => self.context_length = Some(size(path, key, value)?),
            "layer_norm_epsilon" => self.layer_norm_epsilon = Some(epsilon(path, key, value)?),
            "rescale_every" => {
                let every = value.as_i64().ok_or_else(|| wrong(path, key, value, "a whole number"))?;
                // Hugging Face: 0 and below mean off.
                self.rescale_every = Some(usize::try_from(every).unwrap_or(0));
            }
            "spike_embedding" => self.spike_embedding = Some(boolean(path, key, value)?),
            "variant" => {
                self.variant = Some(match string(path, key, value)? {
                    "rwkv" => SpikeVariant::Rwkv,
                    "rwkv-ffnpre" => SpikeVariant::RwkvFfnPre,
                    _ => return Err(wrong(path, key, value, "\"rwkv\" or \"rwkv-ffnpre\"")),
                });
            }
            "neuron" => {
                self.neuron = Some(match string(path, key, value)? {
                    "lif" => Neuron::Lif,
                    "plif" => Neuron::Plif,
                    "none" => Neuron::None,
                    _ => return Err(wrong(path, key, value, "\"lif\", \"plif\" or \"none\"")),
                });
            }
            "bos_token_id" => self.bos_token_id = token_id(path, key, value)?,
            "eos_token_id" => self.eos_token_id = token_id(path, key, value)?,
            "tokenizer_class" if value.is_null() => {}
            "tokenizer_class" => self.tokenizer_class = Some(string(path, key, value)?.to_owned()),
            "quantization" if value.is_null() => {}
            "quantization" => self.quantization = Some(quantization(path, value)?),
            "tie_word_embeddings" => self.tie_word_embeddings = boolean(path, key, value)?,
            _ => {
                return Err(Error::config(
                    path,
                    format!(
                        "unknown key `{key}`: it may change what the model computes, and this version does not know how \
                         (if it is only a remark, let its name start with `_`)"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Every key counts: a file of another block size or version would be read wrongly.
fn quantization(path: &Path, value: &Value) -> Result<WeightFormat> {
    const KEYS: [&str; 3] = ["format", "block_size", "version"];
    let Value::Object(map) = value else {
        return Err(wrong(path, "quantization", value, "an object with `format`, `block_size` and `version`"));
    };
    if let Some(key) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(Error::config(path, format!("unknown key `{key}` in `quantization`: needed {}", KEYS.join(", "))));
    }
    let [format, block_size, version] = KEYS.map(|key| map.get(key).unwrap_or(&Value::Null));
    if version.as_u64() != Some(QUANTIZATION_VERSION) {
        return Err(wrong(path, "quantization.version", version, "1, the only one that this version reads"));
    }
    if block_size.as_u64() != Some(QUANT_BLOCK as u64) {
        return Err(wrong(path, "quantization.block_size", block_size, "64"));
    }
    match format.as_str() {
        Some("q8") => Ok(WeightFormat::Q8),
        Some("q4") => Ok(WeightFormat::Q4),
        _ => Err(wrong(path, "quantization.format", format, "\"q8\" or \"q4\"")),
    }
}

pub(crate) fn wrong(path: &Path, key: &str, value: &Value, needed: &str) -> Error {
    let mut found = value.to_string();
    if found.len() > 80 {
        found = found.chars().take(60).collect::<String>() + "…";
    }
    Error::config(path, format!("key `{key}`: found {found}, needed {needed}"))
}

pub(crate) fn string<'a>(path: &Path, key: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| wrong(path, key, value, "a string"))
}

pub(crate) fn boolean(path: &Path, key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| wrong(path, key, value, "true or false"))
}

pub(crate) fn size(path: &Path, key: &str, value: &Value) -> Result<usize> {
    value
        .as_u64()
        .filter(|&n| (1..=MAX_SIZE).contains(&n))
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| wrong(path, key, value, "a whole number from 1 to 16777216"))
}

pub(crate) fn epsilon(path: &Path, key: &str, value: &Value) -> Result<f32> {
    let epsilon = value.as_f64().unwrap_or(f64::NAN) as f32;
    if epsilon > 0.0 && epsilon < 1.0 {
        Ok(epsilon)
    } else {
        Err(wrong(path, key, value, "a number above 0 and below 1"))
    }
}

fn token_id(path: &Path, key: &str, value: &Value) -> Result<Option<u32>> {
    match value {
        Value::Null => Ok(None),
        // Some programs write a list of one.
        Value::Array(list) if list.len() == 1 => token_id(path, key, &list[0]),
        _ => value.as_u64().and_then(|id| u32::try_from(id).ok()).map(Some).ok_or_else(|| {
            wrong(path, key, value, "a token id (further end tokens belong into generation_config.json)")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PartialConfig> {
        PartialConfig::parse(Path::new("config.json"), text.as_bytes())
    }

    fn message(text: &str) -> String {
        parse(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn hugging_face_rwkv4_config_is_read() {
        let config = parse(
            r#"{"architectures": ["RwkvForCausalLM"], "attention_hidden_size": 768, "bos_token_id": 0, "context_length": 1024,
                "eos_token_id": 0, "hidden_size": 768, "intermediate_size": 3072, "layer_norm_epsilon": 1e-05, "model_type": "rwkv",
                "num_hidden_layers": 12, "rescale_every": 6, "tie_word_embeddings": false, "torch_dtype": "float32",
                "transformers_version": "4.28.0.dev0", "use_cache": true, "vocab_size": 50277, "_remark": 1}"#,
        )
        .expect("valid");
        assert_eq!(config.model_type, Some(ModelType::Rwkv4));
        assert_eq!(config.rescale_every, Some(0));
        assert_eq!(config.vocab_size, Some(50277));
        assert_eq!(config.eos_token_id, Some(0));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        assert!(message(r#"{"model_type": "rwkv4", "sliding_window": 3}"#).contains("unknown key `sliding_window`"));
        assert!(
            message(r#"{"model_type": "llama"}"#).contains("model_type `llama` is not supported: unknown architecture")
        );
        assert!(message(r#"{"model_type": "rwkv7"}"#).contains("is not supported: not yet by this version"));
        assert!(message(r#"{"model_type": 4}"#).contains("key `model_type`: found 4, needed a string"));
        assert!(message(r#"{"hidden_size": -1}"#).contains("key `hidden_size`: found -1, needed a whole number"));
        assert!(message(r#"{"hidden_size": 1e30}"#).contains("needed a whole number"));
        assert!(message(r#"{"layer_norm_epsilon": 0}"#).contains("above 0"));
        assert!(message(r#"{"model_type": "rwkv4", "variant": "rwkv"}"#).contains("belongs to spikegpt models only"));
        assert!(message(r#"{"model_type": "rwkv4", "neuron": "lif"}"#).contains("belongs to spikegpt models only"));
        assert!(message(r#"{"neuron": "if"}"#).contains("needed \"lif\", \"plif\" or \"none\""));
        for (quantization, expected) in [
            ("4", "key `quantization`: found 4, needed an object"),
            (r#"{"format": "q5", "block_size": 64, "version": 1}"#, "key `quantization.format`: found \"q5\", needed"),
            (
                r#"{"format": "q4", "block_size": 32, "version": 1}"#,
                "key `quantization.block_size`: found 32, needed 64",
            ),
            (r#"{"format": "q4", "block_size": 64, "version": 2}"#, "key `quantization.version`: found 2, needed 1"),
            (r#"{"format": "q4", "block_size": 64}"#, "key `quantization.version`: found null"),
            (r#"{"format": "q4", "block_size": 64, "version": 1, "bits": 4}"#, "unknown key `bits` in `quantization`"),
        ] {
            let found = message(&format!(r#"{{"quantization": {quantization}}}"#));
            assert!(found.contains(expected), "{found}");
        }
        assert!(message(r#"{"variant": "x"}"#).contains("needed \"rwkv\" or \"rwkv-ffnpre\""));
        assert!(message(r#"{"eos_token_id": [1, 2]}"#).contains("generation_config.json"));
        assert!(message("[1]").contains("not an object"));
        assert!(message("{").contains("not valid JSON"));
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_complete_config_survives_writing_and_reading() {
        let config = ModelConfig {
            model_type: ModelType::SpikeGpt,
            vocab_size: 256,
            hidden_size: 64,
            attention_hidden_size: 64,
            num_hidden_layers: 4,
            intermediate_size: 256,
            context_length: Some(128),
            layer_norm_epsilon: 1e-5,
            rescale_every: 6,
            spike_embedding: false,
            variant: SpikeVariant::RwkvFfnPre,
            neuron: Neuron::Plif,
            bos_token_id: None,
            eos_token_id: Some(0),
            tokenizer_class: Some("bytes".into()),
            quantization: Some(WeightFormat::Q4),
        };
        let text = config.to_json().to_string();
        assert!(text.contains("\"layer_norm_epsilon\":0.00001"), "{text}");
        let read = parse(&text).expect("valid");
        assert_eq!(read.layer_norm_epsilon, Some(1e-5));
        assert_eq!(read.variant, Some(SpikeVariant::RwkvFfnPre));
        assert_eq!(read.rescale_every, Some(6));
        assert_eq!(read.neuron, Some(Neuron::Plif));
        assert_eq!(read.quantization, Some(WeightFormat::Q4));
        let usual = ModelConfig { neuron: Neuron::Lif, ..config.clone() };
        assert!(!usual.to_json().to_string().contains("neuron"), "the default stays out");
        let silent = ModelConfig { neuron: Neuron::None, ..config.clone() };
        assert_eq!(silent.state_len(), 5 * 64 * 4);
        assert_eq!(config.state_len(), 7 * 64 * 4);
    }
}
