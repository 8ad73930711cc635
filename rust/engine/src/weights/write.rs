//! Writing files so that a full disk or an interruption leaves what was there before.
//!
//! A new file grows under a temporary name in the same folder, is flushed to the disk, and then takes its real name in one step.
//! Only a process that is killed leaves the temporary file (`.spikelet-….part`), which nothing reads.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::tensor::{Dtype, TensorView, byte_len};
use crate::error::{Error, Result};

/// A file that does not exist yet under its name. Dropped before [`PendingFile::commit`], it leaves nothing behind.
#[derive(Debug)]
pub(super) struct PendingFile {
    target: PathBuf,
    file: NamedTempFile,
}

impl PendingFile {
    pub fn create(target: &Path) -> Result<PendingFile> {
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".spikelet-").suffix(".part");
        // Temporary files are private by default; this one will be an ordinary file, as the user's mask wishes it.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(Error::io(target))?;
        Ok(PendingFile { target: target.to_owned(), file })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.target))
    }

    /// Where the content is until then.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Waits until the content is on the disk: the last moment at which a full disk can show.
    pub fn sync(&self) -> Result<()> {
        self.file.as_file().sync_all().map_err(Error::io(&self.target))
    }

    /// Takes the real name. Call [`PendingFile::sync`] before.
    pub fn commit(self) -> Result<()> {
        let PendingFile { target, file } = self;
        file.persist(&target).map_err(|e| Error::io(&target)(e.error))?;
        sync_folder(&target).map_err(Error::io(&target))
    }
}

/// On Unix a new name is safe only when its folder is on the disk too.
#[cfg(unix)]
fn sync_folder(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(folder) if folder != Path::new("") => std::fs::File::open(folder)?.sync_all(),
        _ => std::fs::File::open(".")?.sync_all(),
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Writes a small file whole, or leaves the old one.
pub(super) fn pending_text(path: &Path, text: &str) -> Result<PendingFile> {
    let mut file = PendingFile::create(path)?;
    file.write(text.as_bytes())?;
    file.sync()?;
    Ok(file)
}

/// Name, type and shape of a tensor that is going to be written.
pub(super) struct Plan<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
}

impl Plan<'_> {
    pub fn bytes(&self) -> usize {
        // Shapes come from tensors that exist, so the product does.
        byte_len(self.dtype, self.shape).unwrap_or(usize::MAX)
    }
}

/// The order in which tensors lie in a file: wide types first, so that every tensor is aligned; then by name.
pub(super) fn order(plans: &mut [Plan<'_>]) {
    plans.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(b.name)));
}

/// Length and JSON of a file with these tensors, in this order.
pub(super) fn header(plans: &[Plan<'_>], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), json!(metadata));
    }
    let mut place = 0;
    for plan in plans {
        let end = place + plan.bytes();
        let entry = json!({ "dtype": plan.dtype.name(), "shape": plan.shape, "data_offsets": [place, end] });
        map.insert(plan.name.to_owned(), entry);
        place = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    // The data begins at a multiple of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

/// Writes tensors and string metadata to a safetensors file.
///
/// The file appears whole or not at all; one that was there before stays until then.
pub fn save_safetensors(path: &Path, tensors: &[TensorView<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut by_name = BTreeMap::new();
    for tensor in tensors {
        let reason = if byte_len(tensor.dtype, tensor.shape) != Some(tensor.bytes.len()) {
            "its bytes do not fit its shape"
        } else if tensor.name == "__metadata__" || by_name.insert(tensor.name, tensor.bytes).is_some() {
            "its name cannot be used, or is used twice"
        } else {
            continue;
        };
        return Err(Error::tensor(path, tensor.name, reason));
    }
    let mut plans: Vec<Plan<'_>> =
        tensors.iter().map(|t| Plan { name: t.name, dtype: t.dtype, shape: t.shape }).collect();
    order(&mut plans);
    let mut file = PendingFile::create(path)?;
    file.write(&header(&plans, metadata))?;
    for plan in &plans {
        file.write(by_name[plan.name])?;
    }
    file.sync()?;
    file.commit()
}
