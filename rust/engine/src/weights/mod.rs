//! Models on disk: files to named tensors, and back.
//!
//! [`Checkpoint::open`] takes
//! - a model folder: `config.json` with `model.safetensors`, or shards with `model.safetensors.index.json`;
//! - a Hugging Face folder of RWKV-4, with its names and keys, also as `pytorch_model.bin`;
//! - one safetensors file, or one `.pth` file of the original authors, in PyTorch's zip layout or the one before it.
//!
//! Files are mapped, never copied, and must not shrink while a checkpoint made from them is alive. Nothing in a file is trusted: every
//! size and offset is checked before it is used, and pickles can build nothing but tensors. [`convert()`] turns all of them into a model folder.

mod convert;
mod fingerprint;
mod infer;
mod inspect;
mod layout;
mod map;
mod names;
mod outliers;
mod prophet;
mod pth;
mod quantize;
mod quantized;
mod safetensors;
mod tensor;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};
use spikelet_simd::quant::QuantizedView;

pub use self::convert::{Progress, convert};
pub use self::inspect::{Inspection, TensorInfo};
pub use self::prophet::ProphetConfig;
pub(crate) use self::prophet::{ProphetFiles, prophet_folder, table_path};
pub use self::quantize::{Quantization, QuantizedMatrix, quantize};
pub(crate) use self::quantized::all_quantised;
pub use self::quantized::{MatrixView, matrix_format};
pub use self::safetensors::SafetensorsFile;
pub(crate) use self::tensor::all_finite;
pub use self::tensor::{Dtype, TensorView};
pub use self::write::save_safetensors;
use crate::config::{ModelConfig, ModelType, PartialConfig};
use crate::error::{Error, Result};
use crate::generation_config::GenerationConfig;
use layout::Tensors;
use map::MappedFile;
use quantized::Quantised;

/// Longest `config.json` that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// Where the bytes of a stored tensor are.
#[derive(Clone, Debug)]
enum Data {
    /// In the file of this number.
    Mapped { file: usize, start: usize, len: usize },
    /// Put in order while reading.
    Owned(Vec<u8>),
}

/// A tensor as found in a file.
#[derive(Clone, Debug)]
struct Stored {
    /// The name in the file.
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Data,
}

/// What a bare file of weights may leave open. Asked for, by these names, only when it is not certain otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// The architecture: SpikeGPT and RWKV-4 files hold the same tensors.
    pub model_type: Option<ModelType>,
    /// SpikeGPT: whether it was trained with a binary embedding.
    pub spike_embedding: Option<bool>,
}

impl From<Option<ModelType>> for OpenOptions {
    fn from(model_type: Option<ModelType>) -> OpenOptions {
        OpenOptions { model_type, spike_embedding: None }
    }
}

/// A model's configuration and tensors, read from a folder or a file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    files: Vec<MappedFile>,
    tensors: Tensors,
    /// What is known of quantised matrices, by name.
    quantised: BTreeMap<String, Quantised>,
    sha256: OnceLock<String>,
}

impl Checkpoint {
    /// Opens a model folder, a safetensors file or a `.pth` file.
    ///
    /// The `config.json` in the folder (or beside the file) says what the model is; what it leaves out follows from the tensors.
    /// All names and shapes are checked; values are not read yet.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_with(path, None)
    }

    /// The same for files that do not say what they hold: a [`ModelType`] or more [`OpenOptions`].
    pub fn open_with(path: &Path, options: impl Into<OpenOptions>) -> Result<Checkpoint> {
        let source = Source::find(path)?;
        let partial = match &source.config {
            Some(config) => PartialConfig::parse(config, &read_small(config, MAX_CONFIG)?)?,
            None => PartialConfig::default(),
        };
        let (files, stored) = source.read()?;
        let mut tensors = by_name(path, stored)?;
        if partial.tie_word_embeddings {
            tie(path, &files, &mut tensors)?;
        }
        let config = infer::complete(path, &tensors, &partial, options.into())?;
        let quantised = quantized::read(path, &files, &tensors, &config)?;
        Ok(Checkpoint { path: path.to_owned(), config, files, tensors, quantised, sha256: OnceLock::new() })
    }

    /// Tensors that were checked elsewhere, none of them quantised.
    fn of_parts(path: &Path, config: ModelConfig, files: Vec<MappedFile>, tensors: Tensors) -> Checkpoint {
        let quantised = BTreeMap::new();
        Checkpoint { path: path.to_owned(), config, files, tensors, quantised, sha256: OnceLock::new() }
    }

    /// The complete configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The original authors' names of all tensors, sorted; of a quantised matrix also those of its parts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor as stored, by the original authors' name, whatever the file calls it.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, stored)) = self.tensors.get_key_value(name) else {
            return Err(Error::tensor(&self.path, name, "the model has no such tensor"));
        };
        Ok(TensorView { name, dtype: stored.dtype, shape: &stored.shape, bytes: bytes_of(&self.files, &stored.data) })
    }

    /// A tensor that must have this shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let view = self.get(name)?;
        if view.shape == shape {
            Ok(view)
        } else {
            Err(Error::tensor(&self.path, name, format!("found shape {:?}, needed {shape:?}", view.shape)))
        }
    }

    /// A matrix `[outputs, inputs]`, floating point or quantised.
    pub fn matrix<'a>(&'a self, name: &'a str, outputs: usize, inputs: usize) -> Result<MatrixView<'a>> {
        if self.quantised.contains_key(name) {
            quantized::matrix(self, name, (outputs, inputs))
        } else {
            self.expect(name, &[outputs, inputs]).map(MatrixView::Float)
        }
    }

    /// Outputs and inputs of a quantised matrix; none for other tensors.
    fn quantised_shape(&self, name: &str) -> Option<(usize, usize)> {
        self.quantised.get(name).map(Quantised::shape)
    }

    /// Whether a tensor is a quantised matrix's scales or outliers.
    fn is_quantised_part(&self, name: &str) -> bool {
        quantized::whole_of(name).is_some_and(|whole| self.quantised.contains_key(whole))
    }

    /// Refuses a matrix with a value that is not finite, or with a code that means nothing, naming the place.
    pub fn check_matrix(&self, matrix: &MatrixView<'_>) -> Result<()> {
        match matrix {
            MatrixView::Float(view) => self.check_finite(view),
            MatrixView::Quantised { name, view } => quantized::check_values(&self.path, name, view),
        }
    }

    /// Refuses scales and outliers that are not finite.
    pub(crate) fn check_scales(&self, name: &str, view: &QuantizedView<'_>) -> Result<()> {
        quantized::check_scales(&self.path, name, view)
    }

    /// Bytes of all tensors.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|t| bytes_of(&self.files, &t.data).len() as u64).sum()
    }

    /// These bytes of a tensor are not needed for now: their pages may leave memory. They come back when they are read again.
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.files.iter().for_each(|file| file.release(bytes));
    }

    /// A vector of `len` finite values; stored as `[len]`, `[1, 1, len]`, `[len, 1]` or the like.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let view = self.get(name)?;
        if !layout::is_vector(view.shape, len) {
            return Err(Error::tensor(&self.path, name, format!("found shape {:?}, needed [{len}]", view.shape)));
        }
        self.check_finite(&view)?;
        Ok(view.to_f32())
    }

    /// Refuses a tensor that holds NaN or an infinity, naming the place.
    pub fn check_finite(&self, view: &TensorView<'_>) -> Result<()> {
        layout::check_finite(&self.path, view)
    }

    /// The type of the big matrices as stored; what it means if they are quantised says
    /// [`ModelConfig::quantization`](crate::config::ModelConfig::quantization).
    pub fn dtype(&self) -> Dtype {
        // Opening has made sure that this tensor is there.
        self.tensors.get("blocks.0.ffn.key.weight").map_or(Dtype::F32, |t| t.dtype)
    }

    /// SHA-256 of the configuration and of every tensor's name, type, shape and bytes: equal for the same model in another kind of file.
    /// Reads the whole model the first time.
    pub fn sha256(&self) -> Result<String> {
        Ok(self.sha256.get_or_init(|| self.hash()).clone())
    }

    /// A name for the weights that is found in a moment however large they are: SHA-256 of every tensor's name, type, shape and
    /// first bytes. What is made for one model, such as its prophet, says by it for which.
    pub fn fingerprint(&self) -> String {
        fingerprint::fingerprint(self.tensors.iter().map(|(name, stored)| TensorView {
            name,
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: bytes_of(&self.files, &stored.data),
        }))
    }

    /// The sampling settings in `generation_config.json` beside the weights, if there are any.
    pub fn generation_config(&self) -> Result<Option<GenerationConfig>> {
        let path = self.folder().join("generation_config.json");
        if !path.exists() {
            return Ok(None);
        }
        let config = GenerationConfig::parse(&path, &read_small(&path, MAX_CONFIG)?)?;
        let vocab_size = self.config.vocab_size;
        if let Some(id) = config.eos_token_id.iter().find(|&&id| id as usize >= vocab_size) {
            let reason = format!("eos_token_id is {id}, but the vocabulary has {vocab_size} tokens");
            return Err(Error::config(&path, reason));
        }
        Ok(Some(config))
    }

    /// The folder that holds the model's files.
    pub fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new("")) }
    }

    fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(self.config.to_json().to_string().as_bytes());
        for (name, stored) in &self.tensors {
            part(name.as_bytes());
            part(stored.dtype.name().as_bytes());
            part(&stored.shape.iter().flat_map(|&d| (d as u64).to_le_bytes()).collect::<Vec<u8>>());
            part(bytes_of(&self.files, &stored.data));
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

fn bytes_of<'a>(files: &'a [MappedFile], data: &'a Data) -> &'a [u8] {
    match data {
        Data::Mapped { file, start, len } => &files[*file][*start..start + len],
        Data::Owned(bytes) => bytes,
    }
}

/// Gives the tensors the authors' names; two must not become the same.
fn by_name(path: &Path, stored: Vec<Stored>) -> Result<Tensors> {
    let mut tensors: Tensors = BTreeMap::new();
    for tensor in stored {
        let name = names::canonical(&tensor.name);
        if let Some(other) = tensors.get(&name) {
            let reason = format!("found twice, as `{}` and as `{}`", other.name, tensor.name);
            return Err(Error::tensor(path, &name, reason));
        }
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// `tie_word_embeddings`: the head is the embedding. A head that is there all the same must agree.
fn tie(path: &Path, files: &[MappedFile], tensors: &mut Tensors) -> Result<()> {
    let Some(emb) = tensors.get("emb.weight") else {
        return Ok(());
    };
    match tensors.get("head.weight") {
        Some(head) if bytes_of(files, &head.data) != bytes_of(files, &emb.data) => {
            Err(Error::tensor(path, "head.weight", "it differs from `emb.weight`, but tie_word_embeddings is true"))
        }
        Some(_) => Ok(()),
        None => {
            let head = emb.clone();
            tensors.insert("head.weight".into(), head);
            Ok(())
        }
    }
}

/// Reads a small text file whole.
fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path))?;
    if !file.metadata().map_err(Error::io(path))?.is_file() {
        return Err(Error::format(path, "not a regular file"));
    }
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > limit {
        return Err(Error::format(
            path,
            format!("the file is larger than {limit} bytes, too large for what it should hold"),
        ));
    }
    Ok(text)
}

/// The files of a model.
struct Source {
    weights: Weights,
    config: Option<PathBuf>,
}

enum Weights {
    One(PathBuf),
    Index(PathBuf),
}

impl Source {
    fn find(path: &Path) -> Result<Source> {
        let meta = std::fs::metadata(path).map_err(Error::io(path))?;
        let folder = if meta.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let config = Some(folder.join("config.json")).filter(|p| p.exists());
        let weights = if meta.is_dir() {
            Source::in_folder(path)?
        } else if path.to_string_lossy().ends_with(".index.json") {
            Weights::Index(path.to_owned())
        } else {
            Weights::One(path.to_owned())
        };
        Ok(Source { weights, config })
    }

    /// The usual names first; else the only file that looks like weights.
    fn in_folder(folder: &Path) -> Result<Weights> {
        for name in
            ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
        {
            let path = folder.join(name);
            if path.exists() {
                return Ok(if name.ends_with(".json") { Weights::Index(path) } else { Weights::One(path) });
            }
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            let weights = path.extension().is_some_and(|e| ["safetensors", "pth", "pt"].iter().any(|w| e == *w));
            if weights && path.is_file() {
                found.push(path);
            }
        }
        found.sort();
        match found.as_slice() {
            [] => Err(Error::format(
                folder,
                "the folder holds no weights: needed model.safetensors, model.safetensors.index.json or a .pth file",
            )),
            [one] => Ok(Weights::One(one.clone())),
            several => {
                let names: Vec<_> = several.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
                let names = names.join(", ");
                Err(Error::format(
                    folder,
                    format!("the folder holds several files of weights ({names}): give the path of one"),
                ))
            }
        }
    }

    /// Maps the files and reads what tensors they hold.
    fn read(&self) -> Result<(Vec<MappedFile>, Vec<Stored>)> {
        match &self.weights {
            Weights::One(path) => {
                let file = MappedFile::open(path)?;
                let stored = read_file(&file, 0)?;
                Ok((vec![file], stored))
            }
            Weights::Index(path) => {
                let (mut files, mut all) = (Vec::new(), Vec::new());
                for (path, promised) in safetensors::read_index(path)?.files {
                    let file = MappedFile::open(&path)?;
                    let stored = read_file(&file, files.len())?;
                    safetensors::check_shard(&path, &stored, &promised)?;
                    all.extend(stored);
                    files.push(file);
                }
                Ok((files, all))
            }
        }
    }
}

fn read_file(file: &MappedFile, number: usize) -> Result<Vec<Stored>> {
    let path = file.path();
    let pth = ["pth", "pt", "bin"].iter().any(|e| path.extension().is_some_and(|found| found == *e));
    if file.starts_with(b"GGUF") {
        let reason = "it is a GGUF file; needed safetensors or .pth";
        Err(Error::format(path, reason))
    } else if pth || pth::is_pth(file) {
        pth::read(path, file, number)
    } else {
        Ok(safetensors::read(path, file, number)?.0)
    }
}
