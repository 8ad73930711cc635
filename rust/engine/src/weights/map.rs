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

    /// Lets the pages of these bytes leave this process's memory, if they lie in this file. They stay in the system's cache as long as it
    /// likes, and come back when they are read.
    pub fn release(&self, bytes: &[u8]) {
        let (all, part) = (self.map.as_ptr_range(), bytes.as_ptr_range());
        if bytes.is_empty() || part.start < all.start || part.end > all.end {
            return;
        }
        #[cfg(unix)]
        {
            let offset = part.start.addr() - all.start.addr();
            #[allow(unsafe_code)]
            // SAFETY: the map is of a file, shared and read-only, so its pages hold nothing that the file does not: whoever reads them
            // again, also at this moment in another thread, finds the same bytes. The range lies inside the map; the pages at its ends are
            // dropped whole, for which the same holds. A refusal does no harm.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_hold_the_same_when_they_are_read_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|i| i.to_le_bytes()).collect();
        std::fs::write(file.path(), &bytes).expect("written");
        let map = MappedFile::open(file.path()).expect("mapped");
        assert!(map[..] == bytes[..]);
        map.release(&map[..]);
        assert!(map[..] == bytes[..]);
        map.release(&map[5000..5001]);
        map.release(&map[..0]);
        map.release(&bytes); // not of this file
        assert!(map[..] == bytes[..]);
    }
}
