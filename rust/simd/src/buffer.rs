//! Memory for weights.
//!
//! Matrices are cut from large chunks of memory: the system can then back all of them with huge pages. A pass over matrices of a
//! megabyte each in ordinary pages reads memory at little more than half the speed.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

const LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
/// Chunks double up to this size, so that a small model does not take more than twice what it needs.
const LARGEST_CHUNK: usize = 64 << 20;
const SMALLEST_CHUNK: usize = 64 << 10;

/// One allocation, given back when the last buffer in it is gone.
struct Chunk {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory; who may touch which part of it is the buffers' business.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(bytes: usize) -> Chunk {
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        advise_huge_pages(start, bytes);
        Chunk { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        Layout::from_size_align(bytes, align).expect("weights fit the address space")
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// Where buffers are cut from.
#[derive(Default)]
pub(crate) struct Arena(Mutex<Open>);

/// The chunk that has room, and how much of it is taken; bytes of all chunks so far.
#[derive(Default)]
struct Open {
    chunk: Option<Arc<Chunk>>,
    used: usize,
    total: usize,
}

impl Arena {
    /// Memory aligned to cache lines. Not initialised: write every byte before reading any.
    pub(crate) fn buffer(&self, bytes: usize) -> Buffer {
        if bytes == 0 {
            return Buffer { start: NonNull::<Line>::dangling().cast(), bytes, _chunk: None };
        }
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = open.chunk.as_ref().map_or(0, |chunk| chunk.bytes - open.used);
        if room < bytes {
            let size = open.total.clamp(SMALLEST_CHUNK, LARGEST_CHUNK).max(bytes);
            let size = size.next_multiple_of(if size >= HUGE_PAGE { HUGE_PAGE } else { LINE });
            open.total += size;
            let chunk = Arc::new(Chunk::new(size));
            if size - bytes <= room {
                // The chunk before has more room left: this buffer gets a chunk for itself.
                let start = chunk.start;
                return Buffer { start, bytes, _chunk: Some(chunk) };
            }
            open.chunk = Some(chunk);
            open.used = 0;
        }
        let chunk = Arc::clone(open.chunk.as_ref().expect("there is a chunk with room"));
        // SAFETY: `used + bytes` is at most the chunk's size.
        let start = unsafe { chunk.start.add(open.used) };
        open.used = (open.used + bytes).next_multiple_of(LINE).min(chunk.bytes);
        Buffer { start, bytes, _chunk: Some(chunk) }
    }
}

/// Memory for one matrix.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
    /// Keeps the memory alive.
    _chunk: Option<Arc<Chunk>>,
}

// SAFETY: memory that no other buffer has a part of; shared access only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

/// What an empty buffer's address is aligned to.
#[repr(align(64))]
struct Line;

#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    let whole = bytes / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 {
        // SAFETY: the range lies inside one allocation of ours; this advice changes no contents. A refusal does no harm.
        unsafe { madvise(start.as_ptr().cast(), whole, MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_start: NonNull<u8>, _bytes: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_do_not_overlap_and_outlive_the_arena() {
        let arena = Arena::default();
        let sizes = [1, 64, 63, 100_000, 0, 5, 3 << 20, 200, 1 << 20, 40];
        let buffers: Vec<Buffer> = sizes.iter().map(|&bytes| arena.buffer(bytes)).collect();
        drop(arena);
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!((buffer.len(), buffer.start() as usize % LINE), (sizes[i], 0));
            // SAFETY: the buffer's own memory.
            unsafe { buffer.start().write_bytes(i as u8, buffer.len()) };
        }
        for (i, buffer) in buffers.iter().enumerate() {
            // SAFETY: written above.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.start(), buffer.len()) };
            assert!(bytes.iter().all(|&b| b == i as u8), "buffer {i}");
        }
    }

    #[test]
    fn small_matrices_share_a_chunk() {
        let arena = Arena::default();
        let buffers: Vec<Buffer> = (0..200).map(|_| arena.buffer(600 << 10)).collect();
        let chunks: std::collections::BTreeSet<_> =
            buffers.iter().filter_map(|b| b._chunk.as_ref().map(|c| Arc::as_ptr(c) as usize)).collect();
        assert!(chunks.len() < 12, "{} chunks", chunks.len());
    }
}
