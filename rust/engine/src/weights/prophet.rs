//! The folder of a prophet: `config.json`, `model.safetensors`, and perhaps the table `ngram.safetensors`.
//!
//! A prophet guesses for one model and is refused by every other, which it knows by the model's fingerprint. When a model is
//! rounded, its prophet goes along and gets the new fingerprint: it guesses no worse.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::layout::{Shape, check_prophet};
use super::map::MappedFile;
use super::write::{PendingFile, pending_text};
use super::{Checkpoint, Dtype, MAX_CONFIG, Source, by_name, read_small};
use crate::config::{ModelConfig, ModelType, Neuron, SpikeVariant, boolean, epsilon, size, string, wrong};
use crate::error::{Error, Result};

/// The folder's name inside a model folder.
pub(super) const FOLDER: &str = "prophet";
const FINGERPRINT: &str = "model_fingerprint";
const DRAFT_IDS: &str = "draft_ids";
const WEIGHTS: &str = "model.safetensors";
const TABLE: &str = "ngram.safetensors";
/// Hidden states that a draft may begin with.
const MAX_LEADING: usize = 16;
/// Largest file of a prophet that is copied along.
const MAX_COPY: u64 = 1 << 30;

/// What a prophet's `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ProphetConfig {
    /// The neurons of its blocks: those of SpikeGPT (`"block": "spikegpt"`), or none (`"rwkv4"`).
    pub neuron: Neuron,
    /// Width of its blocks.
    pub hidden_size: usize,
    /// Number of its blocks.
    pub num_hidden_layers: usize,
    /// Width of their channel mixes.
    pub intermediate_size: usize,
    /// Width of the model's residual stream.
    pub target_hidden_size: usize,
    /// The model's vocabulary.
    pub vocab_size: usize,
    /// How many of its tokens can be guessed.
    pub draft_vocab_size: usize,
    /// True hidden states that a draft begins with, if so many are known.
    pub num_leading: usize,
    /// Epsilon of every layer norm.
    pub layer_norm_epsilon: f32,
    /// Whether its head is rows of the model's.
    pub tied_head: bool,
    /// Whether the model's embedding passes a step function.
    pub spike_embedding: bool,
    /// Which model it guesses for, see [`Checkpoint::fingerprint`].
    pub model_fingerprint: String,
    /// How sure it is against how often it is right, as the training found.
    pub calibration: Option<Value>,
}

impl ProphetConfig {
    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Config`] names the key that is missing, unknown or has a value that makes no sense.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let map = parse_object(path, text)?;
        const KEYS: [&str; 15] = [
            "model_type",
            "block",
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "target_hidden_size",
            "vocab_size",
            "draft_vocab_size",
            "num_leading",
            "layer_norm_epsilon",
            "tied_head",
            "spike_embedding",
            FINGERPRINT,
            "model_sha256",
            "calibration",
        ];
        if let Some(key) = map.keys().find(|key| !key.starts_with('_') && !KEYS.contains(&key.as_str())) {
            let reason = format!(
                "unknown key `{key}`: it may change what the prophet computes, and this version does not know how (if it is \
                 only a remark, let its name start with `_`)"
            );
            return Err(Error::config(path, reason));
        }
        let get =
            |key: &str| map.get(key).ok_or_else(|| Error::config(path, format!("a prophet needs the key `{key}`")));
        let size_of = |key: &str| size(path, key, get(key)?);
        let model_type = get("model_type")?;
        if model_type.as_str() != Some("prophet") {
            return Err(wrong(path, "model_type", model_type, "\"prophet\""));
        }
        let block = get("block")?;
        let config = Self {
            neuron: match string(path, "block", block)? {
                "rwkv4" => Neuron::None,
                "spikegpt" => Neuron::Lif,
                _ => return Err(wrong(path, "block", block, "\"rwkv4\" or \"spikegpt\"")),
            },
            hidden_size: size_of("hidden_size")?,
            num_hidden_layers: size_of("num_hidden_layers")?,
            intermediate_size: size_of("intermediate_size")?,
            target_hidden_size: size_of("target_hidden_size")?,
            vocab_size: size_of("vocab_size")?,
            draft_vocab_size: size_of("draft_vocab_size")?,
            num_leading: size_of("num_leading")?,
            layer_norm_epsilon: epsilon(path, "layer_norm_epsilon", get("layer_norm_epsilon")?)?,
            tied_head: boolean(path, "tied_head", get("tied_head")?)?,
            spike_embedding: boolean(path, "spike_embedding", get("spike_embedding")?)?,
            model_fingerprint: string(path, FINGERPRINT, get(FINGERPRINT)?)?.to_owned(),
            calibration: map.get("calibration").filter(|value| !value.is_null()).cloned(),
        };
        if config.num_leading > MAX_LEADING {
            return Err(wrong(path, "num_leading", get("num_leading")?, &format!("1 to {MAX_LEADING}")));
        }
        if config.draft_vocab_size > config.vocab_size {
            let needed = format!("at most vocab_size, which is {}", config.vocab_size);
            return Err(wrong(path, "draft_vocab_size", get("draft_vocab_size")?, &needed));
        }
        Ok(config)
    }

    /// Its blocks, as those of a model.
    fn blocks(&self) -> ModelConfig {
        ModelConfig {
            model_type: ModelType::SpikeGpt,
            vocab_size: self.draft_vocab_size,
            hidden_size: self.hidden_size,
            attention_hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            intermediate_size: self.intermediate_size,
            context_length: None,
            layer_norm_epsilon: self.layer_norm_epsilon,
            rescale_every: 0,
            spike_embedding: false,
            variant: SpikeVariant::Rwkv,
            neuron: self.neuron,
            bos_token_id: None,
            eos_token_id: None,
            tokenizer_class: None,
            quantization: None,
        }
    }

    /// Its tensors, those of the blocks left out.
    fn tensors(&self) -> Vec<(String, Shape)> {
        let (wide, narrow) = (self.target_hidden_size, self.hidden_size);
        let read = if self.tied_head { wide } else { narrow };
        let mut list = vec![("fuse.weight", Shape::Matrix(narrow, 2 * wide))];
        for (weight, bias, width) in [
            ("ln_hidden.weight", "ln_hidden.bias", wide),
            ("ln_emb.weight", "ln_emb.bias", wide),
            ("ln_out.weight", "ln_out.bias", read),
        ] {
            list.extend([(weight, Shape::Vector(width)), (bias, Shape::Vector(width))]);
        }
        if wide != narrow {
            list.push(("up.weight", Shape::Matrix(wide, narrow)));
        }
        if !self.tied_head {
            list.push(("head.weight", Shape::Matrix(self.draft_vocab_size, narrow)));
        }
        list.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect()
    }
}

/// A prophet's files, of which names, types, shapes and the ids of the guesses have been checked.
#[derive(Debug)]
pub(crate) struct ProphetFiles {
    pub config: ProphetConfig,
    /// The tensors; its configuration is that of the blocks.
    pub checkpoint: Checkpoint,
    /// The tokens that can be guessed, ascending.
    pub draft_ids: Vec<u32>,
}

impl ProphetFiles {
    /// Opens the folder of a prophet that must be `target`'s.
    pub fn open(folder: &Path, target: &Checkpoint) -> Result<Self> {
        let path = folder.join("config.json");
        let config = ProphetConfig::parse(&path, &read_small(&path, MAX_CONFIG)?)?;
        check_target(&path, &config.model_fingerprint, target)?;
        let model = target.config();
        for (key, found, needed) in [
            ("target_hidden_size", config.target_hidden_size, model.hidden_size),
            ("vocab_size", config.vocab_size, model.vocab_size),
        ] {
            if found != needed {
                return Err(wrong(&path, key, &found.into(), &format!("the model's, which is {needed}")));
            }
        }
        if config.spike_embedding != model.spike_embedding {
            let needed = format!("the model's, which is {}", model.spike_embedding);
            return Err(wrong(&path, "spike_embedding", &config.spike_embedding.into(), &needed));
        }
        let (files, stored) = Source::find(folder)?.read()?;
        let tensors = by_name(folder, stored)?;
        let blocks = config.blocks();
        check_prophet(folder, &tensors, &blocks, config.tensors(), DRAFT_IDS)?;
        let checkpoint = Checkpoint::of_parts(folder, blocks, files, tensors);
        let draft_ids = read_draft_ids(&checkpoint, &config)?;
        Ok(Self { config, checkpoint, draft_ids })
    }
}

/// Refuses a prophet, or what else lies in its folder, that was made for another model.
pub(crate) fn check_target(path: &Path, made_for: &str, target: &Checkpoint) -> Result<()> {
    let found = target.fingerprint();
    if made_for == found {
        return Ok(());
    }
    let reason = format!(
        "made for the model with fingerprint {made_for}, but {} has the fingerprint {found}",
        target.path().display()
    );
    Err(Error::config(path, reason))
}

fn read_draft_ids(checkpoint: &Checkpoint, config: &ProphetConfig) -> Result<Vec<u32>> {
    let view = checkpoint.expect(DRAFT_IDS, &[config.draft_vocab_size])?;
    let wrong = |reason: String| Err(Error::tensor(checkpoint.path(), DRAFT_IDS, reason));
    if view.dtype != Dtype::I32 {
        return wrong(format!("found type {}, needed I32", view.dtype.name()));
    }
    let ids: Vec<i32> = view.bytes.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
    if let Some(bad) = ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= config.vocab_size)) {
        return wrong(format!("found token {bad}, needed tokens from 0 to {}", config.vocab_size - 1));
    }
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] >= pair[1]) {
        return wrong(format!("found token {} after {}, needed them ascending", pair[1], pair[0]));
    }
    Ok(ids.into_iter().map(i32::cast_unsigned).collect())
}

fn parse_object(path: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => {
            Err(Error::config(path, "found JSON that is not an object, needed { \"model_type\": \"prophet\", … }"))
        }
        Err(error) => Err(Error::config(path, format!("not valid JSON: {error}"))),
    }
}

/// Where the table of a model is, or would be.
pub(crate) fn table_path(checkpoint: &Checkpoint) -> PathBuf {
    prophet_folder(checkpoint).join(TABLE)
}

/// Where the prophet of a model is, or would be.
pub(crate) fn prophet_folder(checkpoint: &Checkpoint) -> PathBuf {
    checkpoint.folder().join(FOLDER)
}

/// What `from` has in its prophet's folder, on its way into the model folder `to`, for the model with that `fingerprint`.
pub(super) fn copy_prophet(from: &Checkpoint, to: &Path, fingerprint: &str) -> Result<Vec<PendingFile>> {
    let (source, target) = (prophet_folder(from), to.join(FOLDER));
    let (path, mut files) = (source.join("config.json"), Vec::new());
    // A table of a text goes with any model of the vocabulary.
    let mut names = vec![TABLE];
    if path.exists() {
        let mut config = parse_object(&path, &read_small(&path, MAX_CONFIG)?)?;
        let made_for = config.get(FINGERPRINT).unwrap_or(&Value::Null);
        check_target(&path, string(&path, FINGERPRINT, made_for)?, from)?;
        config.insert(FINGERPRINT.into(), fingerprint.into());
        let mut text = serde_json::to_string_pretty(&config).map_err(|e| Error::config(&path, e.to_string()))?;
        text.push('\n');
        fs::create_dir_all(&target).map_err(Error::io(&target))?;
        files.push(pending_text(&target.join("config.json"), &text)?);
        names.push(WEIGHTS);
    }
    let same = source.canonicalize().ok() == target.canonicalize().ok();
    for name in names {
        let path = source.join(name);
        if same || !path.exists() {
            continue;
        }
        let file = MappedFile::open(&path)?;
        if file.len() as u64 > MAX_COPY {
            return Err(Error::format(&path, format!("larger than {MAX_COPY} bytes, too large for a prophet")));
        }
        fs::create_dir_all(&target).map_err(Error::io(&target))?;
        let mut copy = PendingFile::create(&target.join(name))?;
        copy.write(&file)?;
        copy.sync()?;
        files.push(copy);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"model_type": "prophet", "block": "rwkv4", "hidden_size": 32, "num_hidden_layers": 1,
        "intermediate_size": 48, "target_hidden_size": 64, "vocab_size": 256, "draft_vocab_size": 40, "num_leading": 2,
        "layer_norm_epsilon": 1e-5, "tied_head": false, "spike_embedding": true, "model_fingerprint": "ab", "_made": "today",
        "model_sha256": "cd", "calibration": null}"#;

    fn parse(text: &str) -> Result<ProphetConfig> {
        ProphetConfig::parse(Path::new("prophet/config.json"), text.as_bytes())
    }

    #[test]
    fn a_config_says_which_tensors_there_are() {
        let config = parse(GOOD).expect("valid");
        assert_eq!((config.neuron, config.num_leading, config.calibration.as_ref()), (Neuron::None, 2, None));
        let names = |config: &ProphetConfig| config.tensors().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(&config).contains(&"up.weight".into()) && names(&config).contains(&"head.weight".into()));
        let tied = ProphetConfig { tied_head: true, hidden_size: 64, ..config };
        assert!(!names(&tied).contains(&"up.weight".into()) && !names(&tied).contains(&"head.weight".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (from, to, expected) in [
            ("\"prophet\"", "\"rwkv4\"", "key `model_type`: found \"rwkv4\", needed \"prophet\""),
            ("\"rwkv4\"", "\"gpt2\"", "key `block`: found \"gpt2\""),
            ("\"hidden_size\": 32", "\"hidden_size\": 0", "key `hidden_size`: found 0"),
            (
                "\"draft_vocab_size\": 40",
                "\"draft_vocab_size\": 400",
                "key `draft_vocab_size`: found 400, needed at most",
            ),
            ("\"num_leading\": 2", "\"num_leading\": 17", "key `num_leading`: found 17, needed 1 to 16"),
            ("\"tied_head\"", "\"tied_hat\"", "unknown key `tied_hat`"),
            ("\"tied_head\": false,", "", "a prophet needs the key `tied_head`"),
            ("\"ab\"", "1", "key `model_fingerprint`: found 1, needed a string"),
        ] {
            let message = parse(&GOOD.replace(from, to)).expect_err("refused").to_string();
            assert!(message.contains(expected) && message.contains("prophet/config.json"), "{message}");
        }
        assert!(parse("[1]").expect_err("refused").to_string().contains("not an object"));
    }
}
