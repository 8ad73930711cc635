//! Finds the tokenizer of a model.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bytes::Bytes;
use super::chars::Chars;
use super::fit::usual_tokenizer;
use super::hf::HfTokenizer;
use super::world::World;
use super::{Shared, broken, fit_vocab, gpt2};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Names of Hugging Face files; the second is that of the RWKV-4 "Pile" models.
const HF_NAMES: [&str; 2] = ["tokenizer.json", "20B_tokenizer.json"];
/// GPT-2's two files: as Hugging Face names them, as OpenAI does, and the first with a prefix.
const GPT2_NAMES: [[&str; 2]; 3] =
    [["vocab.json", "merges.txt"], ["encoder.json", "vocab.bpe"], ["gpt2_vocab.json", "gpt2_merges.txt"]];
/// The list of the character tokenizer.
const CHARS_NAME: &str = "chars.json";
/// Files that hold weights: the tokenizer lies beside them.
const WEIGHTS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "gguf"];

/// Loads the tokenizer of a model folder, the one beside a weight file, or a tokenizer file itself.
///
/// A folder is searched for, in this order: `tokenizer.json`, `20B_tokenizer.json` (Hugging Face); `rwkv_vocab_*.txt`
/// (RWKV World); `vocab.json` and `merges.txt` (GPT-2; also `encoder.json` and `vocab.bpe`, or both with the prefix
/// `gpt2_`); then the configuration's `tokenizer_class` decides: `bytes`, or `chars` with a `chars.json`.
///
/// With a configuration the tokenizer is checked against the model's vocabulary and takes its size and its
/// `eos_token_id`, see [`fit_vocab`].
pub fn load_tokenizer(folder_or_file: &Path, config: Option<&ModelConfig>) -> Result<Shared> {
    let metadata = folder_or_file.metadata().map_err(Error::io(folder_or_file))?;
    let (source, tokenizer) = if metadata.is_dir() {
        from_folder(folder_or_file, config)?
    } else if has_extension(folder_or_file, &WEIGHTS) {
        let folder = folder_or_file.parent().filter(|folder| folder.as_os_str() != "");
        from_folder(folder.unwrap_or(Path::new(".")), config)?
    } else {
        (folder_or_file.to_owned(), from_file(folder_or_file)?)
    };
    match config {
        Some(config) => fit_vocab(tokenizer, &source, config.vocab_size, config.eos_token_id),
        None => Ok(tokenizer),
    }
}

/// The tokenizer in a folder and the file it came from.
fn from_folder(folder: &Path, config: Option<&ModelConfig>) -> Result<(PathBuf, Shared)> {
    for name in HF_NAMES {
        let path = folder.join(name);
        if path.is_file() {
            let tokenizer = Arc::new(HfTokenizer::load(&path)?);
            return Ok((path, tokenizer));
        }
    }
    if let Some(path) = world_file(folder)? {
        let tokenizer = Arc::new(World::load(&path)?);
        return Ok((path, tokenizer));
    }
    for [vocab, merges] in GPT2_NAMES.map(|names| names.map(|name| folder.join(name))) {
        if vocab.is_file() && merges.is_file() {
            let tokenizer = Arc::new(gpt2::load(&vocab, &merges)?);
            return Ok((vocab, tokenizer));
        }
    }
    match config.and_then(|config| config.tokenizer_class.as_deref()) {
        Some("bytes") => Ok((folder.to_owned(), Arc::new(Bytes::new()))),
        Some("chars") => {
            let path = folder.join(CHARS_NAME);
            let tokenizer = Arc::new(Chars::load(&path)?);
            Ok((path, tokenizer))
        }
        None => Err(Error::NoTokenizer { path: folder.to_owned(), reason: nothing_found(None, config) }),
        class => Err(broken(folder, nothing_found(class, config))),
    }
}

/// The one World vocabulary of a folder. Several would be a guess.
fn world_file(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in folder.read_dir().map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("rwkv_vocab_") && name.ends_with(".txt") && path.is_file() {
            found.push(path);
        }
    }
    if found.len() > 1 {
        found.sort_unstable();
        let names: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
        let reason = format!("holds several World vocabularies, name one of them: {}", names.join(", "));
        return Err(broken(folder, reason));
    }
    Ok(found.pop())
}

/// What was looked for, and what would help.
fn nothing_found(class: Option<&str>, config: Option<&ModelConfig>) -> String {
    let mut reason = String::from(
        "no tokenizer found: looked for tokenizer.json, 20B_tokenizer.json, rwkv_vocab_*.txt, vocab.json with merges.txt, \
         encoder.json with vocab.bpe, gpt2_vocab.json with gpt2_merges.txt, and a \"tokenizer_class\" of \"bytes\" or \"chars\" in config.json",
    );
    if let Some(class) = class {
        reason += &format!(" (it is {class:?}, which needs one of the files)");
    }
    if let Some(hint) = config.and_then(|config| usual_tokenizer(config.vocab_size)) {
        reason += &format!("; {hint}");
    }
    reason
}

/// A tokenizer file by its name.
fn from_file(path: &Path) -> Result<Shared> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let pair = GPT2_NAMES.iter().find(|names| names.contains(&name));
    if let Some([vocab, merges]) = pair {
        return Ok(Arc::new(gpt2::load(&path.with_file_name(vocab), &path.with_file_name(merges))?));
    }
    if name == CHARS_NAME {
        return Ok(Arc::new(Chars::load(path)?));
    }
    if has_extension(path, &["json"]) {
        return Ok(Arc::new(HfTokenizer::load(path)?));
    }
    if has_extension(path, &["txt"]) {
        return Ok(Arc::new(World::load(path)?));
    }
    Err(broken(
        path,
        "is not a tokenizer by its name: needed a .json file of Hugging Face, a World vocabulary .txt, vocab.json with merges.txt, or chars.json",
    ))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|found| extensions.iter().any(|known| found.eq_ignore_ascii_case(known)))
}

/// Reads a file of at most `max` bytes.
pub(super) fn read_file(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > max {
        return Err(broken(path, format!("is larger than {max} bytes, which no such file is")));
    }
    Ok(bytes)
}
