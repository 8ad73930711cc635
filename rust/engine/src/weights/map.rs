//! A file in memory without being copied: the only `unsafe` of this crate's CPU side.
//!
//! A mapped file must not shrink while a model made from it is alive: reading a page that no longer exists ends the process (SIGBUS) on
//! Unix. Replacing the file by renaming another over it, as [`super::save_safetensors`] does, is safe: the mapping keeps the old content.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A whole file, mapped read-only.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<MappedFile> {
        let file = File::open(path).map_err(Error::io(path))?;
        let meta = file.metadata().map_err(Error::io(path))?;
        if !meta.is_file() {
            return Err(Error::format(path, "not a regular file"));
        }
        if meta.len() == 0 {
            return Err(Error::format(path, "the file is empty"));
        }
        #[allow(unsafe_code)]
        // SAFETY: the map is private to this type and handed out as `&[u8]` only, never written. Another process that writes into the
        // file can change the bytes we see: they are plain numbers that are checked where they are used, and no reference to anything but `u8`
        // is ever made from them. Shrinking the file is the documented limit above.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(MappedFile { path: path.to_owned(), map })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
