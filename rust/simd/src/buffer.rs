//! Memory for weights.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Memory for weights: aligned to cache lines, large ones to huge pages, which the system is asked to use because a pass
/// over a model otherwise spends much of its time on looking up addresses. Not initialised.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
}

const LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

// SAFETY: plain memory with one owner; shared access only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Not initialised: write every byte before reading any.
    pub(crate) fn new(bytes: usize) -> Buffer {
        if bytes == 0 {
            return Buffer { start: NonNull::<Line>::dangling().cast(), bytes };
        }
        let layout = Self::layout(bytes);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        advise_huge_pages(start, bytes);
        Buffer { start, bytes }
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    fn layout(bytes: usize) -> Layout {
        let align = if bytes >= 2 * HUGE_PAGE { HUGE_PAGE } else { LINE };
        Layout::from_size_align(bytes, align).expect("a matrix fits the address space")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated with the same layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
        }
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
    if whole >= 2 * HUGE_PAGE {
        // SAFETY: the range lies inside one allocation of ours; this advice changes no contents. A refusal does no harm.
        unsafe { madvise(start.as_ptr().cast(), whole, MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge_pages(_start: NonNull<u8>, _bytes: usize) {}
