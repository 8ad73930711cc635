//! A sequence at rest in a file: what it takes to go on, in another process, with the same bits.
//!
//! The file is safetensors. Each part of the state is a tensor under its name in the [`StateLayout`](crate::state::StateLayout);
//! notes in the header say which model it belongs to and where in the sequence it stands.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::format_name;
use crate::decode::SequenceState;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::weights::{Dtype, SafetensorsFile, TensorView, save_safetensors};

const FORMAT: &str = "spikelet-session-1";

/// Writes a state of `model` to a file, whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn save_session(path: &Path, model: &Model, state: &SequenceState) -> Result<()> {
    let fields = model.state_layout().fields();
    let bytes: Vec<u8> = state.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shapes: Vec<[usize; 1]> = fields.iter().map(|field| [field.range.len()]).collect();
    let tensors: Vec<TensorView<'_>> = fields
        .iter()
        .zip(&shapes)
        .map(|(field, shape)| TensorView {
            name: &field.name,
            dtype: Dtype::F32,
            shape,
            bytes: &bytes[field.range.start * 4..field.range.end * 4],
        })
        .collect();
    let mut notes: BTreeMap<String, String> = identity(model)?.map(|(key, value)| (key.to_owned(), value)).into();
    notes.insert("position".into(), state.position.to_string());
    if let Some(id) = state.pending {
        notes.insert("pending".into(), id.to_string());
    }
    save_safetensors(path, &tensors, &notes)
}

/// Reads a state of `model` from a file.
///
/// # Errors
/// [`Error::State`] if it belongs to another model, or to the same one in another number format; [`Error::Format`] and
/// [`Error::Tensor`] if the file is broken.
pub fn load_session(path: &Path, model: &Model) -> Result<SequenceState> {
    let file = SafetensorsFile::open(path)?;
    let notes = file.metadata();
    for (key, needed) in identity(model)? {
        let found = notes.get(key).map_or("nothing", String::as_str);
        if found == needed {
            continue;
        }
        let reason = match key {
            "format" => {
                let reason = format!("is no session: found format {found}, needed {needed}");
                return Err(Error::Format { path: path.into(), reason });
            }
            "model_sha256" => {
                format!("{} belongs to the model with SHA-256 {found}, this one has {needed}", path.display())
            }
            _ => format!("{} was saved with {key} {found}, the model is loaded with {needed}", path.display()),
        };
        return Err(Error::State { reason });
    }
    let mut values = vec![0.0; model.state_layout().len()];
    for field in model.state_layout().fields() {
        let tensor = file.get(&field.name)?;
        let problem = |reason: String| Error::Tensor { path: path.into(), tensor: field.name.clone(), reason };
        if tensor.dtype != Dtype::F32 || *tensor.shape != [field.range.len()] {
            let (dtype, shape) = (tensor.dtype.name(), tensor.shape);
            return Err(problem(format!("found {dtype} {shape:?}, needed F32 [{}]", field.range.len())));
        }
        let part = tensor.to_f32();
        if let Some(index) = part.iter().position(|value| value.is_nan()) {
            return Err(problem(format!("element {index} is NaN")));
        }
        values[field.range.clone()].copy_from_slice(&part);
    }
    let vocab_size = model.config().vocab_size;
    let position = number(path, notes, "position")?.unwrap_or(0);
    let pending = match number(path, notes, "pending")? {
        Some(id) if id >= vocab_size as u64 => return Err(Error::TokenId { id, vocab_size }),
        Some(id) => Some(id as u32),
        None => None,
    };
    Ok(SequenceState { values, position, pending, recent: Vec::new() })
}

/// What must be equal for a state to mean the same, what differs most first.
fn identity(model: &Model) -> Result<[(&'static str, String); 4]> {
    Ok([
        ("format", FORMAT.into()),
        ("model_sha256", model.checkpoint().sha256()?),
        ("dtype", format_name(model.format()).into()),
        ("rescale_every", model.config().rescale_every.to_string()),
    ])
}

/// A note that is a number.
fn number(path: &Path, notes: &BTreeMap<String, String>, key: &str) -> Result<Option<u64>> {
    let parse = |text: &String| {
        let reason = || format!("note `{key}`: found {text:?}, needed a whole number");
        text.parse().map_err(|_| Error::Format { path: path.into(), reason: reason() })
    };
    notes.get(key).map(parse).transpose()
}
