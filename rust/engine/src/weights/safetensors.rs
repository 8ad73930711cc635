//! The safetensors format: a length, a JSON header, then the tensors' bytes; and the index of a model in several such files.
//!
//! Every claim of the header is checked before it is used: sizes against the file, offsets against each other (they must cover the data
//! without gap or overlap, as the format demands), names for repetition.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::map::MappedFile;
use super::tensor::{Dtype, TensorView, byte_len};
use super::{Data, Stored};
use crate::error::{Error, Result};

/// Longest header that is read: a model of a thousand layers needs a hundredth of it.
const MAX_HEADER: u64 = 16 << 20;
/// Longest index that is read.
const MAX_INDEX: u64 = 16 << 20;
/// Most dimensions a tensor has.
pub(super) const MAX_DIMS: usize = 8;

struct Header {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Header, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut names = BTreeSet::new();
                let mut tensors = Vec::new();
                let mut metadata = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` appears twice")));
                    }
                    if name == "__metadata__" {
                        metadata = map.next_value()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header { tensors, metadata })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The tensors of a safetensors file, which is `file` in the list of the checkpoint's files.
pub(super) fn read(path: &Path, bytes: &[u8], file: usize) -> Result<(Vec<Stored>, BTreeMap<String, String>)> {
    let bad = |reason: String| Error::format(path, reason);
    let truncated = |needed: u64| bad(format!("the file is truncated: found {} bytes, needed {needed}", bytes.len()));
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(truncated(8));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(format!(
            "not a safetensors file: its header claims {length} bytes, at most {MAX_HEADER} are read"
        )));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(truncated(8 + length));
    };
    let header: Header = serde_json::from_slice(header)
        .map_err(|e| bad(format!("not a safetensors file: its header is not valid: {e}")))?;
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, raw) in header.tensors {
        tensors.push(check(path, name, raw)?);
    }
    // In order of their place, each must begin where the last ended.
    tensors.sort_by_key(|(_, start, end)| (*start, *end));
    let mut place = 0;
    for (tensor, start, end) in &tensors {
        if *start != place {
            let what = if *start < place { "overlap those of another tensor" } else { "leave a gap before them" };
            return Err(Error::tensor(path, &tensor.name, format!("its bytes {start}..{end} {what}")));
        }
        place = *end;
    }
    if place > data.len() as u64 {
        return Err(truncated((8 + length).saturating_add(place)));
    }
    if place < data.len() as u64 {
        return Err(bad(format!("{} bytes at the end belong to no tensor", data.len() as u64 - place)));
    }
    let base = 8 + length as usize;
    let stored = tensors.into_iter().map(|(mut tensor, start, end)| {
        // Both are within the file, as just shown, so they fit.
        let (start, len) = (base + start as usize, (end - start) as usize);
        tensor.data = Data::Mapped { file, start, len };
        tensor
    });
    Ok((stored.collect(), header.metadata))
}

fn check(path: &Path, name: String, raw: RawTensor) -> Result<(Stored, u64, u64)> {
    let bad = |reason: String| Error::tensor(path, &name, reason);
    let Some(dtype) = Dtype::by_name(&raw.dtype) else {
        return Err(bad(format!("its type {} is not supported", raw.dtype)));
    };
    if raw.shape.len() > MAX_DIMS {
        return Err(bad(format!("found {} dimensions, at most {MAX_DIMS} are read", raw.shape.len())));
    }
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let needed = shape.as_ref().and_then(|shape| byte_len(dtype, shape));
    let (Some(shape), Some(needed)) = (shape, needed) else {
        return Err(bad(format!("its shape {:?} overflows", raw.shape)));
    };
    let (start, end) = raw.data_offsets;
    if start > end || end - start != needed as u64 {
        return Err(bad(format!(
            "its offsets {start}..{end} do not fit {} values of shape {shape:?}, which need {needed} bytes",
            dtype.name()
        )));
    }
    let data = Data::Mapped { file: 0, start: 0, len: 0 };
    Ok((Stored { name, dtype, shape, data }, start, end))
}

/// Any safetensors file: named tensors and notes, mapped and checked like a model's.
#[derive(Debug)]
pub struct SafetensorsFile {
    file: MappedFile,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file; its values are not read yet.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let file = MappedFile::open(path)?;
        let (stored, metadata) = read(path, &file, 0)?;
        let tensors = stored.into_iter().map(|t| (t.name.clone(), t)).collect();
        Ok(SafetensorsFile { file, tensors, metadata })
    }

    /// The notes of the file's header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, by ascending names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|(name, stored)| TensorView {
            name,
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: super::bytes_of(std::slice::from_ref(&self.file), &stored.data),
        })
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, stored)) = self.tensors.get_key_value(name) else {
            return Err(Error::tensor(self.file.path(), name, "the file has no such tensor"));
        };
        Ok(TensorView {
            name,
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: super::bytes_of(std::slice::from_ref(&self.file), &stored.data),
        })
    }
}

/// `model.safetensors.index.json`: which file holds which tensor.
pub(super) struct Index {
    /// Files in order of their names, with the tensors each must hold.
    pub files: BTreeMap<PathBuf, BTreeSet<String>>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index; the files it names lie beside it and nowhere else.
pub(super) fn read_index(path: &Path) -> Result<Index> {
    let text = super::read_small(path, MAX_INDEX)?;
    parse_index(path, &text)
}

fn parse_index(path: &Path, text: &[u8]) -> Result<Index> {
    let raw: RawIndex =
        serde_json::from_slice(text).map_err(|e| Error::format(path, format!("not a valid index: {e}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in raw.weight_map {
        let plain = !file.is_empty() && !file.starts_with('.') && !file.contains(['/', '\\', ':', '\0']);
        if !plain {
            return Err(Error::format(
                path,
                format!("tensor `{tensor}`: found file name {file:?}, needed the name of a file in the same folder"),
            ));
        }
        files.entry(folder.join(file)).or_default().insert(tensor);
    }
    if files.is_empty() {
        return Err(Error::format(path, "the index names no tensors"));
    }
    Ok(Index { files })
}

/// A shard must hold exactly what the index says.
pub(super) fn check_shard(path: &Path, stored: &[Stored], promised: &BTreeSet<String>) -> Result<()> {
    let found: BTreeSet<&str> = stored.iter().map(|t| t.name.as_str()).collect();
    if let Some(name) = promised.iter().find(|name| !found.contains(name.as_str())) {
        return Err(Error::tensor(path, name, "the index says that this file holds it, but it does not"));
    }
    if let Some(name) = found.iter().find(|name| !promised.contains(**name)) {
        return Err(Error::tensor(path, name, "this file holds it, but the index does not say so"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_reaches_no_other_folder() {
        let index = |file: &str| {
            parse_index(Path::new("m/i.json"), format!(r#"{{"weight_map": {{"a": {file:?}}}}}"#).as_bytes())
        };
        assert!(index("model-1.safetensors").is_ok());
        for file in ["../x", "/etc/passwd", "a/b", "", "..", "c:x", "a\\b", ".hidden"] {
            let message = index(file).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains("needed the name of a file in the same folder"), "{file}: {message}");
        }
    }
}
