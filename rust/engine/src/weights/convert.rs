//! A model in any readable form becomes a model folder: `config.json`, `model.safetensors` with the original authors' names, the
//! tokenizer's files, and its prophet.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use half::{bf16, f16};

use super::fingerprint::fingerprint;
use super::layout::is_vector;
use super::prophet::{FOLDER as PROPHET, copy_prophet};
use super::tensor::{Dtype, TensorView, decode};
use super::write::{PendingFile, Plan, header, order, pending_text};
use super::{Checkpoint, MatrixView, SafetensorsFile};
use crate::config::{ModelConfig, ModelType};
use crate::error::{Error, Result};

/// Values converted at a time.
const CHUNK: usize = 1 << 18;
/// Largest file that is copied along.
const MAX_COPY: u64 = 256 << 20;

/// Tells how many bytes are written of how many; `Break` stops the work.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Writes `checkpoint` as a model folder to `folder`, which is made if needed.
///
/// With `dtype` (F32, BF16 or F16) the matrices are rounded to it, to nearest, ties to even, after those that are quantised have become
/// numbers; vectors, which are small and matter more, then keep their type unless it is widened to F32. Without, every byte stays as it is.
/// Values that are not finite, or too large for F16, are refused.
///
/// Files appear only when all are complete: an error, a full disk or a `Break` leaves the folder as it was.
pub fn convert(checkpoint: &Checkpoint, folder: &Path, dtype: Option<Dtype>, progress: Progress<'_>) -> Result<()> {
    if let Some(dtype) = dtype.filter(|d| !matches!(d, Dtype::F32 | Dtype::Bf16 | Dtype::F16)) {
        return Err(Error::Option {
            name: "dtype".into(),
            value: dtype.name().into(),
            needed: "F32, BF16 or F16".into(),
        });
    }
    let mut config = checkpoint.config().clone();
    if dtype.is_some() {
        config.quantization = None;
    }
    write_folder(checkpoint, &config, folder, |path| weights(checkpoint, path, dtype, progress))
}

/// Makes a model folder of `config`, what goes with the weights of `checkpoint`, and the file that `weights` writes to a path.
pub(super) fn write_folder(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    folder: &Path,
    weights: impl FnOnce(&Path) -> Result<PendingFile>,
) -> Result<()> {
    let made = !folder.exists();
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let write_all = || {
        let weights = weights(&folder.join("model.safetensors"))?;
        let fingerprint = fingerprint(SafetensorsFile::open(weights.path())?.tensors());
        let mut files = vec![weights];
        let mut text =
            serde_json::to_string_pretty(&config.to_json()).map_err(|e| Error::config(folder, e.to_string()))?;
        text.push('\n');
        files.push(pending_text(&folder.join("config.json"), &text)?);
        files.extend(companions(checkpoint.folder(), folder)?);
        files.extend(copy_prophet(checkpoint, folder, &fingerprint)?);
        files.into_iter().try_for_each(PendingFile::commit)
    };
    let (prophet, result) = (folder.join(PROPHET), write_all());
    if result.is_err() {
        // Fails, as it should, where something is in it after all.
        let _ = (std::fs::remove_dir(prophet), made.then(|| std::fs::remove_dir(folder)));
    }
    result
}

/// A tensor on its way into the new file.
struct Piece<'a> {
    from: Values<'a>,
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// Where its values are.
enum Values<'a> {
    Stored(TensorView<'a>),
    Quantised(MatrixView<'a>),
}

impl<'a> Piece<'a> {
    /// All tensors as they are, or the model's in the given type.
    fn all(checkpoint: &'a Checkpoint, dtype: Option<Dtype>) -> Result<Vec<Piece<'a>>> {
        let mut pieces = Vec::new();
        for name in checkpoint.names() {
            if dtype.is_some() && checkpoint.is_quantised_part(name) {
                continue;
            }
            let piece = match (dtype, checkpoint.quantised_shape(name)) {
                (Some(dtype), Some((outputs, inputs))) => {
                    let from = Values::Quantised(checkpoint.matrix(name, outputs, inputs)?);
                    Piece { from, name, dtype, shape: vec![outputs, inputs] }
                }
                _ => {
                    let view = checkpoint.get(name)?;
                    Piece { name, dtype: target(&view, dtype), shape: view.shape.to_vec(), from: Values::Stored(view) }
                }
            };
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Refuses values that no model should have.
    fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        match (&self.from, checkpoint.quantised_shape(self.name)) {
            (Values::Quantised(matrix), _) => checkpoint.check_matrix(matrix),
            (_, Some((outputs, inputs))) => checkpoint.check_matrix(&checkpoint.matrix(self.name, outputs, inputs)?),
            (Values::Stored(view), None) => checkpoint.check_finite(view),
        }
    }

    /// The bytes if they stay as they are.
    fn unchanged(&self) -> Option<&'a [u8]> {
        match &self.from {
            Values::Stored(view) if view.dtype == self.dtype => Some(view.bytes),
            _ => None,
        }
    }

    /// Hands the values on, some at a time.
    fn each_part(&self, mut part: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        match &self.from {
            Values::Stored(view) => {
                let mut values = vec![0.0; CHUNK];
                view.bytes.chunks(CHUNK * view.dtype.size()).try_for_each(|bytes| {
                    let values = &mut values[..bytes.len() / view.dtype.size()];
                    decode(view.dtype, bytes, values);
                    part(values)
                })
            }
            Values::Quantised(matrix) => {
                let mut values = vec![0.0; self.shape[1]];
                (0..self.shape[0]).try_for_each(|row| {
                    matrix.row_to_f32(row, &mut values);
                    part(&values)
                })
            }
        }
    }
}

/// The type that a tensor gets.
fn target(stored: &TensorView<'_>, dtype: Option<Dtype>) -> Dtype {
    let vector = is_vector(stored.shape, stored.numel());
    match dtype {
        None => stored.dtype,
        Some(narrow @ (Dtype::Bf16 | Dtype::F16)) if !vector => narrow,
        Some(Dtype::F32) => Dtype::F32,
        Some(_) => stored.dtype,
    }
}

fn weights(checkpoint: &Checkpoint, path: &Path, dtype: Option<Dtype>, progress: Progress<'_>) -> Result<PendingFile> {
    let pieces = Piece::all(checkpoint, dtype)?;
    let mut plans: Vec<Plan<'_>> =
        pieces.iter().map(|p| Plan { name: p.name, dtype: p.dtype, shape: &p.shape }).collect();
    order(&mut plans);
    let pieces: BTreeMap<&str, &Piece<'_>> = pieces.iter().map(|p| (p.name, p)).collect();
    let total = plans.iter().map(|p| p.bytes() as u64).sum();
    let mut done = 0;
    let mut file = PendingFile::create(path)?;
    file.write(&header(&plans, &BTreeMap::new()))?;
    let config = checkpoint.config();
    let spikes = config.model_type == ModelType::SpikeGpt && config.spike_embedding;
    let mut out = Vec::new();
    for plan in &plans {
        let piece = pieces[plan.name];
        piece.check(checkpoint)?;
        let mut write = |bytes: &[u8]| {
            if progress(done, total).is_break() {
                return Err(Error::Cancelled);
            }
            done += bytes.len() as u64;
            file.write(bytes)
        };
        if let Some(bytes) = piece.unchanged() {
            bytes.chunks(CHUNK * plan.dtype.size()).try_for_each(&mut write)?;
            continue;
        }
        let keep_sign = spikes && plan.name == "emb.weight";
        let mut index = 0;
        piece.each_part(|values| {
            encode(plan.dtype, values, keep_sign, &mut out);
            if let Some(at) = overflow(plan.dtype, &out) {
                let (value, index) = (values[at], index + at);
                let (name, largest) = match plan.dtype {
                    Dtype::F16 => ("F16", "65504; take BF16 or F32"),
                    _ => ("BF16", "3.39e38; take F32"),
                };
                let reason = format!("{value} at flat index {index} is too large for {name} (at most {largest})");
                return Err(Error::tensor(checkpoint.path(), plan.name, reason));
            }
            index += values.len();
            write(&out)
        })?;
    }
    if progress(done, total).is_break() {
        return Err(Error::Cancelled);
    }
    file.sync()?;
    Ok(file)
}

/// Values in the given type, rounded to nearest even.
///
/// `keep_sign`: a spiking embedding asks only whether a value is negative, so a negative value too small for the type becomes the
/// smallest negative one instead of -0.0, which would count as positive.
fn encode(dtype: Dtype, values: &[f32], keep_sign: bool, out: &mut Vec<u8>) {
    out.clear();
    let sign = |bits: u16, v: f32| {
        if keep_sign && v < 0.0 && bits == 0x8000 { 0x8001 } else { bits }
    };
    match dtype {
        Dtype::Bf16 => out.extend(values.iter().flat_map(|&v| sign(bf16::from_f32(v).to_bits(), v).to_le_bytes())),
        Dtype::F16 => out.extend(values.iter().flat_map(|&v| sign(f16::from_f32(v).to_bits(), v).to_le_bytes())),
        _ => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}

/// Index of the first f16 that has become infinite. (The largest finite f32 rounds to infinity in bf16 too, but no weight comes near it:
/// that is caught the same way.)
fn overflow(dtype: Dtype, out: &[u8]) -> Option<usize> {
    let exponent = match dtype {
        Dtype::F16 => 0x7c00,
        Dtype::Bf16 => 0x7f80,
        _ => return None,
    };
    out.as_chunks::<2>().0.iter().position(|&b| u16::from_le_bytes(b) & exponent == exponent)
}

/// Whether a file beside the weights belongs to the tokenizer or says how to sample.
fn is_companion(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ];
    NAMES.contains(&name)
        || (name.starts_with("rwkv_vocab_") && name.ends_with(".txt"))
        || (name.starts_with("gpt2") && (name.ends_with("vocab.json") || name.ends_with("merges.txt")))
}

/// Copies, not yet under their names, of the files that go with the weights.
fn companions(from: &Path, to: &Path) -> Result<Vec<PendingFile>> {
    let from = if from == Path::new("") { Path::new(".") } else { from };
    let same = from.canonicalize().ok() == to.canonicalize().ok();
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if same || !is_companion(&name) || !path.is_file() {
            continue;
        }
        let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
        if file.metadata().map_err(Error::io(&path))?.len() > MAX_COPY {
            return Err(Error::format(&path, format!("larger than {MAX_COPY} bytes, too large for a tokenizer")));
        }
        let mut text = Vec::new();
        file.take(MAX_COPY).read_to_end(&mut text).map_err(Error::io(&path))?;
        let mut copy = PendingFile::create(&to.join(&name))?;
        copy.write(&text)?;
        copy.sync()?;
        copies.push(copy);
    }
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(dtype: Dtype, values: &[f32], keep_sign: bool) -> Vec<u16> {
        let mut out = Vec::new();
        encode(dtype, values, keep_sign, &mut out);
        out.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b)).collect()
    }

    #[test]
    fn rounding_is_to_nearest_ties_to_even() {
        let half_step = f32::from_bits(0x3f80_8000); // halfway between 1.0 and the next bf16
        let above = f32::from_bits(0x3f80_8001);
        let odd = f32::from_bits(0x3f81_8000); // halfway above an odd bf16
        assert_eq!(encoded(Dtype::Bf16, &[half_step, above, odd], false), [0x3f80, 0x3f81, 0x3f82]);
        let half_step = 1.0 + 0.5 * f32::powi(2.0, -10);
        let odd = 1.0 + 1.5 * f32::powi(2.0, -10);
        assert_eq!(encoded(Dtype::F16, &[half_step, odd], false), [0x3c00, 0x3c02]);
    }

    #[test]
    fn values_too_large_are_found() {
        let mut out = Vec::new();
        encode(Dtype::F16, &[65504.0, 65519.0, 65520.0], false, &mut out);
        assert_eq!(overflow(Dtype::F16, &out), Some(2));
        encode(Dtype::Bf16, &[65520.0, 3.0e38, f32::MAX], false, &mut out);
        assert_eq!(overflow(Dtype::Bf16, &out), Some(2));
    }

    #[test]
    fn a_spiking_embedding_keeps_its_signs() {
        let tiny = [-1e-9, -0.0, 0.0, 1e-9, -1.0];
        assert_eq!(encoded(Dtype::F16, &tiny, true), [0x8001, 0x8000, 0, 0, 0xbc00]);
        assert_eq!(encoded(Dtype::F16, &tiny, false)[0], 0x8000);
    }
}
