//! `.pth` files of PyTorch: the zip layout of 1.6 and later, and the row of pickles before it.
//!
//! Both hold a pickle that describes tensors, and the numbers themselves as plain bytes, which stay where they are in the mapped file.
//! Only tensors that are not contiguous are copied, in order.

mod machine;
mod pickle;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use super::tensor::{Dtype, byte_len};
use super::{Data, Stored};
use crate::error::{Error, Result};
use pickle::{Id, Pickle, Refused, Storage, Tensor, Value};

/// First value of a file in the old layout.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// Second value.
const PROTOCOL: i64 = 1001;
/// Longest name of a tensor: one long string could name many.
const MAX_NAME: usize = 512;
/// How deep a state dict may be nested (`{"model": {"state_dict": …}}`).
const MAX_DEPTH: usize = 4;
/// Keys under which training programs keep the tensors, in order of preference.
const NESTED: &[&str] = &["state_dict", "model_state_dict", "model", "module", "weights"];

/// Whether a file begins as one of the two layouts does.
pub(super) fn is_pth(bytes: &[u8]) -> bool {
    zip::is_zip(bytes) || bytes.starts_with(b"\x80\x02\x8a\x0a")
}

/// The tensors of a `.pth` file, which is `file` in the list of the checkpoint's files.
pub(super) fn read(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<Stored>> {
    let layout = if zip::is_zip(bytes) { read_zip(bytes) } else { read_legacy(bytes) };
    let (pickle, places) =
        layout.map_err(|reason| Error::format(path, format!("not a .pth file of tensors: {reason}")))?;
    let tensors = state_dict(&pickle).map_err(|reason| Error::format(path, reason))?;
    // All copies together take no more than the file.
    let mut copies_left = bytes.len();
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let bad = |reason: String| Error::tensor(path, name, reason);
        let place = places.get(tensor.storage.key).cloned();
        let place = place.ok_or_else(|| bad(format!("its storage {} is not in the file", tensor.storage.key)))?;
        stored.push(Stored {
            name: name.to_owned(),
            dtype: tensor.storage.dtype,
            shape: shape_of(tensor).map_err(bad)?,
            data: data_of(tensor, bytes, place, file, &mut copies_left).map_err(bad)?,
        });
    }
    Ok(stored)
}

/// Where each storage lies, by its key.
type Places<'a> = HashMap<&'a str, Range<usize>>;

fn read_zip(bytes: &[u8]) -> Refused<(Pickle<'_>, Places<'_>)> {
    let members = zip::members(bytes)?;
    let folders: Vec<&str> = members.keys().filter_map(|name| name.strip_suffix("data.pkl")).collect();
    let &[folder] = folders.as_slice() else {
        return Err(format!("found {} members `data.pkl`, needed one", folders.len()));
    };
    let inside: BTreeMap<&str, &Range<usize>> =
        members.iter().filter_map(|(name, place)| Some((name.strip_prefix(folder)?, place))).collect();
    if inside.contains_key("constants.pkl") {
        return Err("it is a TorchScript program, needed a file of torch.save".into());
    }
    if let Some(&place) = inside.get("byteorder")
        && &bytes[place.clone()] != b"little"
    {
        return Err("it was written on a big-endian machine".into());
    }
    let pickle = Pickle::read(&bytes[members[format!("{folder}data.pkl").as_str()].clone()])?;
    let places =
        inside.iter().filter_map(|(name, place)| Some((name.strip_prefix("data/")?, (*place).clone()))).collect();
    Ok((pickle, places))
}

/// Magic number, protocol, facts about the machine, the object, the keys of its storages; then each storage: its length and its bytes.
fn read_legacy(bytes: &[u8]) -> Refused<(Pickle<'_>, Places<'_>)> {
    if bytes.get(257..262) == Some(b"ustar") {
        return Err("it has the tar layout of PyTorch before 0.2; save it again with a newer one".into());
    }
    let mut rest = bytes;
    let mut next = || {
        let pickle = Pickle::read(rest)?;
        rest = &rest[pickle.length..];
        Refused::Ok(pickle)
    };
    if next()?.root() != &Value::BigInt(MAGIC) {
        return Err("it is a pickle, but torch.save did not write it".into());
    }
    match next()?.root() {
        Value::Int(PROTOCOL) => {}
        other => {
            return Err(format!("its layout version is {}, needed {PROTOCOL}", other.kind()));
        }
    }
    let machine = next()?;
    if lookup(&machine, machine.root(), "little_endian") != Some(&Value::Bool(true)) {
        return Err("it was not written on a little-endian machine".into());
    }
    let object = next()?;
    let keys = next()?;
    let Value::List(keys_in_order) = keys.root() else {
        return Err("the list of its storages is missing".into());
    };
    let described = storages(&object);
    let mut places = Places::new();
    let mut at = bytes.len() - rest.len();
    for &key in keys_in_order {
        let &Value::Str(key) = keys.get(key) else {
            return Err("the list of its storages holds something that is not a string".into());
        };
        let storage = described.get(key).ok_or_else(|| format!("its storage {key} is nowhere described"))?;
        let truncated = || format!("storage {key} reaches past the end: the file is truncated");
        let (numel, _) = bytes[at..].split_first_chunk::<8>().ok_or_else(truncated)?;
        let numel = u64::from_le_bytes(*numel);
        if numel != storage.numel {
            return Err(format!("storage {key} holds {numel} values, needed {}", storage.numel));
        }
        at += 8;
        let end =
            usize::try_from(numel).ok().and_then(|n| byte_len(storage.dtype, &[n])).and_then(|n| at.checked_add(n));
        let end = end.filter(|&end| end <= bytes.len()).ok_or_else(truncated)?;
        places.insert(key, at..end);
        at = end;
    }
    Ok((object, places))
}

/// The storages that a pickle describes, by key.
fn storages<'p, 'a>(pickle: &'p Pickle<'a>) -> HashMap<&'a str, &'p Storage<'a>> {
    pickle
        .values()
        .filter_map(|value| match value {
            Value::Storage(storage) => Some((storage.key, storage)),
            _ => None,
        })
        .collect()
}

fn lookup<'p, 'a>(pickle: &'p Pickle<'a>, dict: &Value<'a>, key: &str) -> Option<&'p Value<'a>> {
    let Value::Dict(pairs) = dict else {
        return None;
    };
    let is_key = |id: Id| matches!(pickle.get(id), Value::Str(k) if *k == key);
    pairs.iter().rev().find(|(k, _)| is_key(*k)).map(|(_, v)| pickle.get(*v))
}

/// The named tensors of the object: of the dict under one of the usual keys if there is one, else of itself.
fn state_dict<'p, 'a>(pickle: &'p Pickle<'a>) -> Refused<Vec<(&'a str, &'p Tensor<'a>)>> {
    let mut dict = pickle.root();
    for _ in 0..MAX_DEPTH {
        let Value::Dict(pairs) = dict else {
            return Err("found no dict of tensors in the file, needed one as `state_dict()` gives it".into());
        };
        let is_dict = |value: &&Value<'_>| matches!(value, Value::Dict(_));
        match NESTED.iter().find_map(|key| lookup(pickle, dict, key).filter(is_dict)) {
            Some(inner) => dict = inner,
            None if pairs.is_empty() => return Err("found no tensors in the file".into()),
            None => return tensors_of(pickle, pairs),
        }
    }
    Err("the tensors lie too deep in nested dicts".into())
}

fn tensors_of<'p, 'a>(pickle: &'p Pickle<'a>, pairs: &[(Id, Id)]) -> Refused<Vec<(&'a str, &'p Tensor<'a>)>> {
    let mut tensors = Vec::new();
    for &(key, value) in pairs {
        let &Value::Str(name) = pickle.get(key) else {
            return Err("found a tensor whose name is not a string".into());
        };
        if name.len() > MAX_NAME {
            return Err(format!("found a tensor whose name has {} bytes, at most {MAX_NAME} are read", name.len()));
        }
        match pickle.get(value) {
            Value::Tensor(tensor) => tensors.push((name, tensor)),
            // Notes of a training program beside the tensors: step counts, learning rates.
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => {}
            _ => {
                return Err(format!("`{}` is not a tensor but lies among them", name.escape_debug()));
            }
        }
    }
    Ok(tensors)
}

fn shape_of(tensor: &Tensor<'_>) -> Refused<Vec<usize>> {
    let shape = tensor.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<usize>>>();
    shape.filter(|s| byte_len(Dtype::F64, s).is_some()).ok_or_else(|| format!("its shape {:?} overflows", tensor.shape))
}

/// The bytes of a tensor: where they lie if they lie in order, else a copy in order.
fn data_of(
    tensor: &Tensor<'_>,
    bytes: &[u8],
    place: Range<usize>,
    file: usize,
    copies_left: &mut usize,
) -> Refused<Data> {
    let width = tensor.storage.dtype.size();
    let storage = (place.len() / width) as u64;
    if !place.len().is_multiple_of(width) || storage != tensor.storage.numel {
        return Err(format!(
            "its storage has {} bytes, needed {} values of {width}",
            place.len(),
            tensor.storage.numel
        ));
    }
    let shape = shape_of(tensor)?;
    let numel: usize = shape.iter().product();
    // The last value of the view must lie in the storage.
    let last = tensor.shape.iter().zip(&tensor.stride).try_fold(tensor.offset, |last, (&size, &stride)| {
        last.checked_add(size.saturating_sub(1).checked_mul(stride)?)
    });
    let inside = last.is_some_and(|last| last < storage || (numel == 0 && tensor.offset <= storage));
    if !inside {
        return Err(format!(
            "its view (offset {}, shape {shape:?}, strides {:?}) leaves its storage of {storage} values",
            tensor.offset, tensor.stride
        ));
    }
    let start = place.start + tensor.offset as usize * width;
    if is_contiguous(tensor) {
        let len = numel * width;
        return Ok(Data::Mapped { file, start, len });
    }
    if tensor.shape.iter().zip(&tensor.stride).any(|(&size, &stride)| size > 1 && stride == 0) || numel as u64 > storage
    {
        return Err(format!(
            "its values overlap (shape {shape:?}, strides {:?}); save a copy of it instead",
            tensor.stride
        ));
    }
    *copies_left = copies_left
        .checked_sub(numel * width)
        .ok_or("too many tensors are not contiguous and share their values; save contiguous copies instead")?;
    Ok(Data::Owned(gather(tensor, &shape, &bytes[start..place.end], width)))
}

fn is_contiguous(tensor: &Tensor<'_>) -> bool {
    let mut expected = 1u64;
    for (&size, &stride) in tensor.shape.iter().zip(&tensor.stride).rev() {
        if size != 1 && stride != expected {
            return tensor.shape.contains(&0);
        }
        expected = size.max(1).saturating_mul(expected);
    }
    true
}

/// Copies a view in row-major order.
fn gather(tensor: &Tensor<'_>, shape: &[usize], bytes: &[u8], width: usize) -> Vec<u8> {
    let numel: usize = shape.iter().product();
    let mut out = Vec::with_capacity(numel * width);
    let mut index = vec![0usize; shape.len()];
    let mut at = 0;
    for _ in 0..numel {
        out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
        for d in (0..shape.len()).rev() {
            let stride = tensor.stride[d] as usize;
            index[d] += 1;
            at += stride;
            if index[d] < shape[d] {
                break;
            }
            at -= index[d] * stride;
            index[d] = 0;
        }
    }
    out
}
