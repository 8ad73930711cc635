//! Reads and checks `tokenizer.json` before Hugging Face's code sees it.
//!
//! The `tokenizers` crate trusts its files: it panics on merges that lead nowhere, only warns when a token gets another id
//! than the file says, and would build any chain of steps. What it is given here was checked before.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{AddedToken, AddedVocabulary, Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::hf_decoder::Decoder;
use super::table::MAX_IDS;

/// How much longer than the text its normalised form may become; real files stay below ten.
const MAX_GROWTH: usize = 64;

/// What a file holds, checked.
pub(super) struct Parts {
    pub(super) kind: &'static str,
    pub(super) model: ModelWrapper,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) added: AddedVocabulary,
    pub(super) decoder: Decoder,
    /// By id.
    pub(super) entries: Vec<Entry>,
    /// The token for what has no token.
    pub(super) unknown: Option<u32>,
    /// Whether a text may be cut before a space that follows something else without changing its tokens.
    pub(super) cuts_before_spaces: bool,
}

/// One id.
#[derive(Clone, Default)]
pub(super) struct Entry {
    /// The token's name; `None` if the id stands for nothing.
    pub(super) name: Option<String>,
    /// Whether the token was added to the model's vocabulary, so that its name is its text.
    pub(super) added: bool,
    pub(super) special: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Option<Vec<Added>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: Value,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: Vocab,
    merges: Merges,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: Option<bool>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    ignore_merges: Option<bool>,
}

/// Newer files hold pairs, older ones strings with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merges {
    Pairs(Vec<(String, String)>),
    Lines(Vec<String>),
}

#[derive(Deserialize)]
struct UnigramFile {
    vocab: Vec<(String, f64)>,
    #[serde(default)]
    unk_id: Option<usize>,
    #[serde(default)]
    byte_fallback: bool,
}

/// Reads a whole file.
pub(super) fn parse(file: Value) -> Result<Parts, String> {
    let file: File =
        serde_json::from_value(file).map_err(|error| format!("is not a tokenizer of Hugging Face: {error}"))?;
    let growth = growth(&file.normalizer).saturating_mul(growth(&file.pre_tokenizer));
    if growth > MAX_GROWTH {
        return Err(format!("has normalizers that may make a text more than {MAX_GROWTH} times as long"));
    }
    let decoder = Decoder::parse(&file.decoder, &file.pre_tokenizer)?;
    let added = file.added_tokens.unwrap_or_default();
    let plain = added
        .iter()
        .all(|token| !(token.single_word || token.lstrip || token.rstrip || ends_word_inside(&token.content)));
    let cuts_before_spaces = plain && is_gpt2_split(&file.pre_tokenizer) && is_local(&file.normalizer);
    let (kind, model, mut entries, unknown) = parse_model(file.model)?;
    let normalizer: Option<NormalizerWrapper> = part(file.normalizer, "normalizer")?;
    let pre_tokenizer = part(file.pre_tokenizer, "pre_tokenizer")?;
    let added = add_tokens(added, &model, normalizer.as_ref(), &mut entries)?;
    Ok(Parts { kind, model, normalizer, pre_tokenizer, added, decoder, entries, unknown, cuts_before_spaces })
}

/// Reads an optional part with Hugging Face's own code.
fn part<T: serde::de::DeserializeOwned>(value: Value, name: &str) -> Result<Option<T>, String> {
    serde_json::from_value(value).map_err(|error| format!("has a {name} that cannot be read: {error}"))
}

/// How many times longer a text can become, at most, in this step or sequence of steps.
fn growth(step: &Value) -> usize {
    let children = ["normalizers", "pretokenizers"].iter().filter_map(|key| step.get(key)?.as_array());
    let product = children.flatten().map(growth).fold(1, usize::saturating_mul);
    let text = |pointer| step.pointer(pointer).and_then(Value::as_str);
    match step.get("type").and_then(Value::as_str) {
        Some("Replace") => {
            let from = text("/pattern/String").map_or(1, |from| from.len().max(1));
            let to = text("/content").map_or(0, str::len);
            to.div_ceil(from).max(1)
        }
        Some("Prepend") => text("/prepend").map_or(1, |text| text.len().max(1)),
        Some("ByteLevel") => 2,
        Some("Metaspace") => 4,
        _ => product,
    }
}

/// Whether a token holds something before white space, so that a cut before white space could divide it.
fn ends_word_inside(content: &str) -> bool {
    content.trim_start().contains(char::is_whitespace)
}

/// Whether text is divided by GPT-2's pattern alone. In that pattern white space only ever begins a part or follows white space.
fn is_gpt2_split(pre_tokenizer: &Value) -> bool {
    let flag = |key: &str| pre_tokenizer.get(key).and_then(Value::as_bool);
    pre_tokenizer.get("type").and_then(Value::as_str) == Some("ByteLevel")
        && flag("add_prefix_space") == Some(false)
        && flag("use_regex").unwrap_or(true)
}

/// Whether a normalizer treats both sides of a space apart. NFC does: a space combines with nothing before it.
fn is_local(normalizer: &Value) -> bool {
    matches!(normalizer.get("type").and_then(Value::as_str), Some("NFC")) || normalizer.is_null()
}

type ParsedModel = (&'static str, ModelWrapper, Vec<Entry>, Option<u32>);

fn parse_model(model: Value) -> Result<ParsedModel, String> {
    let kind = model.get("type").and_then(Value::as_str).map(str::to_owned);
    // Files of before 2020 do not name the model.
    match kind.as_deref().or_else(|| model.get("merges").map(|_| "BPE")) {
        Some("BPE") => parse_bpe(
            serde_json::from_value(model).map_err(|error| format!("has a BPE model that cannot be read: {error}"))?,
        ),
        Some("Unigram") => parse_unigram(
            serde_json::from_value(model)
                .map_err(|error| format!("has a Unigram model that cannot be read: {error}"))?,
        ),
        Some(other) => Err(format!("has a model of type {other:?}, which is not supported: needed BPE or Unigram")),
        None => Err("has a model without a type".to_owned()),
    }
}

fn parse_bpe(file: Bpe) -> Result<ParsedModel, String> {
    let entries = entries_by_id(file.vocab.iter().map(|(name, &id)| (name.as_str(), id)))?;
    let merges = match file.merges {
        Merges::Pairs(pairs) => pairs,
        Merges::Lines(lines) => lines
            .iter()
            .filter(|line| !line.starts_with("#version"))
            .map(|line| match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
                _ => Err(format!("has the merge {line:?}, needed two tokens with a space between")),
            })
            .collect::<Result<_, _>>()?,
    };
    check_merges(&file.vocab, &merges, file.continuing_subword_prefix.as_deref().unwrap_or(""))?;
    let unknown = match &file.unk_token {
        Some(token) => Some(
            *file
                .vocab
                .get(token)
                .ok_or_else(|| format!("has the unk_token {token:?}, which is not in its vocabulary"))?,
        ),
        None => None,
    };
    // Dropout is for training: left out here, so that equal texts give equal ids.
    let mut builder = BpeBuilder::new()
        .vocab_and_merges(file.vocab, merges)
        .fuse_unk(file.fuse_unk.unwrap_or(false))
        .byte_fallback(file.byte_fallback.unwrap_or(false))
        .ignore_merges(file.ignore_merges.unwrap_or(false));
    if let Some(token) = file.unk_token {
        builder = builder.unk_token(token);
    }
    if let Some(prefix) = file.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = file.end_of_word_suffix {
        builder = builder.end_of_word_suffix(suffix);
    }
    let model = builder.build().map_err(|error| format!("has a BPE model that cannot be built: {error}"))?;
    Ok(("BPE", model.into(), entries, unknown))
}

/// Every merge joins two tokens into a third. The second loses the prefix that marks the inside of a word.
fn check_merges(vocab: &Vocab, merges: &[(String, String)], prefix: &str) -> Result<(), String> {
    let mut joined = String::new();
    for (left, right) in merges {
        let tail = right
            .strip_prefix(prefix)
            .ok_or_else(|| format!("has the merge of {left:?} and {right:?}, which lacks the prefix {prefix:?}"))?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(tail);
        if let Some(missing) = [left, right, &joined].into_iter().find(|token| !vocab.contains_key(*token)) {
            return Err(format!("has the merge of {left:?} and {right:?}, but {missing:?} is not in its vocabulary"));
        }
    }
    Ok(())
}

fn parse_unigram(file: UnigramFile) -> Result<ParsedModel, String> {
    let entries = entries_by_id(file.vocab.iter().map(|(name, _)| name.as_str()).zip(0..))?;
    if let Some((name, score)) = file.vocab.iter().find(|(_, score)| !score.is_finite() || score.abs() > 1e9) {
        return Err(format!("gives the token {name:?} the score {score}"));
    }
    let unknown = file.unk_id.and_then(|id| u32::try_from(id).ok());
    let model = Unigram::from(file.vocab, file.unk_id, file.byte_fallback)
        .map_err(|error| format!("has a Unigram model that cannot be built: {error}"))?;
    Ok(("Unigram", model.into(), entries, unknown))
}

/// A list by id of a vocabulary's tokens.
fn entries_by_id<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for (name, id) in tokens {
        let entry = entry_mut(&mut entries, name, id)?;
        if let Some(other) = entry.name.replace(name.to_owned()) {
            return Err(format!("gives the id {id} to both {other:?} and {name:?}"));
        }
    }
    Ok(entries)
}

fn entry_mut<'a>(entries: &'a mut Vec<Entry>, name: &str, id: u32) -> Result<&'a mut Entry, String> {
    let index = id as usize;
    if index >= MAX_IDS {
        return Err(format!("gives {name:?} the id {id}, needed one below {MAX_IDS}"));
    }
    if index >= entries.len() {
        entries.resize(index + 1, Entry::default());
    }
    Ok(&mut entries[index])
}

/// Adds the tokens that the model's vocabulary does not take part in, and makes sure that each has the id the file gives it.
fn add_tokens(
    tokens: Vec<Added>,
    model: &ModelWrapper,
    normalizer: Option<&NormalizerWrapper>,
    entries: &mut Vec<Entry>,
) -> Result<AddedVocabulary, String> {
    let mut added = AddedVocabulary::new();
    let theirs = tokens.iter().map(|token| {
        AddedToken::from(token.content.as_str(), token.special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized.unwrap_or(!token.special))
    });
    added
        .add_tokens(theirs, model, normalizer)
        .map_err(|error| format!("has added_tokens that cannot be used: {error}"))?;
    for token in &tokens {
        let Added { id, content, .. } = token;
        if content.is_empty() {
            return Err(format!("has an added token without text, id {id}"));
        }
        match added.token_to_id(content, model) {
            Some(given) if given == *id => {}
            given => {
                let given = given.map_or("none".to_owned(), |id| id.to_string());
                return Err(format!(
                    "gives the added token {content:?} the id {id}, but by the order of its tokens it is {given}"
                ));
            }
        }
        let entry = entry_mut(entries, content, *id)?;
        if let Some(name) = entry.name.as_ref().filter(|name| *name != content) {
            return Err(format!("gives the id {id} to both {name:?} and {content:?}"));
        }
        *entry = Entry { name: Some(content.clone()), added: true, special: token.special };
    }
    // A model without any token of its own leaves nothing to encode with.
    if model.get_vocab_size() == 0 {
        return Err("has an empty vocabulary".to_owned());
    }
    Ok(added)
}
