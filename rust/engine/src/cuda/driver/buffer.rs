//! Memory of a card: taking it, and moving numbers to and from it.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;

use super::Device;
use super::api::OUT_OF_MEMORY;
use super::context::{Context, lock};
use crate::error::Result;

/// Bytes of each staging buffer. Larger pieces come and go by way of the driver's own.
const STAGING: usize = 1 << 20;

/// Numbers in a card's memory. Whoever has the buffer may have it written to: work is done in the order in which it is asked for.
pub struct Buffer<T> {
    context: Arc<Context>,
    pointer: u64,
    len: usize,
    of: PhantomData<fn() -> T>,
}

impl<T: Pod> Buffer<T> {
    /// Takes memory, with nothing in particular in it.
    fn new(context: &Arc<Context>, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).expect("fewer bytes than addresses");
        let mut pointer = 0;
        if bytes > 0 {
            let bound = context.bind()?;
            // SAFETY: `pointer` is written.
            let code = unsafe { (context.api.cuMemAlloc_v2)(&raw mut pointer, bytes) };
            drop(bound);
            if code == OUT_OF_MEMORY {
                let free = memory(context).map_or_else(
                    |_| String::new(),
                    |(free, total)| format!(", and {} of {} are free", size(free), size(total)),
                );
                return Err(context.failure(format!("out of memory: {} were asked for{free}", size(bytes))));
            }
            context.check("taking memory", code)?;
        }
        Ok(Self { context: Arc::clone(context), pointer, len, of: PhantomData })
    }

    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address on the card.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The address of number `index`, or of the end.
    ///
    /// # Panics
    /// If it is beyond the end.
    pub fn pointer_at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "number {index} of a buffer of {}", self.len);
        self.pointer + (index * size_of::<T>()) as u64
    }

    /// The address of `len` numbers from `at` on.
    fn part(&self, device: &Device, at: usize, len: usize) -> u64 {
        assert!(Arc::ptr_eq(&self.context, &device.context), "a buffer of another device");
        assert!(at <= self.len && len <= self.len - at, "{len} numbers at {at} of a buffer of {}", self.len);
        self.pointer_at(at)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.pointer != 0
            && let Ok(_bound) = self.context.bind()
        {
            // SAFETY: it was taken from this context and nobody has it any more. The driver waits until the card is done with it. On a lost
            // device it says no, which changes nothing.
            unsafe { (self.context.api.cuMemFree_v2)(self.pointer) };
        }
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("pointer", &self.pointer).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Device {
    /// Takes memory for `len` numbers, all of whose bits are 0.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): there is not so much, or the device is lost.
    pub fn zeros<T: Pod>(self: &Arc<Self>, len: usize) -> Result<Buffer<T>> {
        let buffer = Buffer::new(&self.context, len)?;
        self.clear(&buffer)?;
        Ok(buffer)
    }

    /// Puts zeros into a whole buffer.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): the device is lost.
    pub fn clear<T: Pod>(&self, buffer: &Buffer<T>) -> Result<()> {
        let (to, bytes) = (buffer.part(self, 0, buffer.len), buffer.len * size_of::<T>());
        if bytes == 0 {
            return Ok(());
        }
        let context = &*self.context;
        let _bound = context.bind()?;
        // SAFETY: the buffer has so many bytes.
        context.check("clearing memory", unsafe { (context.api.cuMemsetD8Async)(to, 0, bytes, context.stream()) })
    }

    /// Takes memory with `data` in it.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): there is not so much, or the device is lost.
    pub fn upload<T: Pod>(self: &Arc<Self>, data: &[T]) -> Result<Buffer<T>> {
        let buffer = Buffer::new(&self.context, data.len())?;
        self.write(&buffer, 0, data)?;
        Ok(buffer)
    }

    /// Puts `data` into a buffer from number `at` on, after all that was asked for before. Little data does not wait for that.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): the device is lost, or this thread records a graph.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write<T: Pod>(&self, to: &Buffer<T>, at: usize, data: &[T]) -> Result<()> {
        let (to, bytes): (u64, &[u8]) = (to.part(self, at, data.len()), bytemuck::cast_slice(data));
        if bytes.is_empty() {
            return Ok(());
        }
        let context = &*self.context;
        self.not_recorded("writing")?;
        let _bound = context.bind()?;
        let mut staging = lock(&self.staging.up);
        let copy = |from: *const u8| {
            // SAFETY: both sides have so many bytes, and those at `from` stay as they are until the copy is done: see below.
            let code = unsafe { (context.api.cuMemcpyHtoDAsync_v2)(to, from.cast(), bytes.len(), context.stream()) };
            context.check("copying to it", code)
        };
        match staging.place(context, bytes.len())? {
            // The place is not used again before the stream was waited for.
            Some(place) => {
                place.copy_from_slice(bytes);
                copy(place.as_ptr())
            }
            None => {
                copy(bytes.as_ptr())?;
                context.synchronize()
            }
        }
    }

    /// Reads numbers from `at` on, after waiting for all that was asked for before.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): the device is lost, or this thread records a graph.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn read<T: Pod>(&self, from: &Buffer<T>, at: usize, into: &mut [T]) -> Result<()> {
        let from = from.part(self, at, into.len());
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(into);
        if bytes.is_empty() {
            return Ok(());
        }
        let context = &*self.context;
        self.not_recorded("reading")?;
        let _bound = context.bind()?;
        let mut staging = lock(&self.staging.down);
        let copy = |to: *mut u8, len: usize| {
            // SAFETY: both sides have so many bytes, and nobody looks at those at `to` before the stream was waited for.
            let code = unsafe { (context.api.cuMemcpyDtoHAsync_v2)(to.cast(), from, len, context.stream()) };
            context.check("copying from it", code)?;
            context.synchronize()
        };
        match staging.place(context, bytes.len())? {
            Some(place) => {
                copy(place.as_mut_ptr(), place.len())?;
                bytes.copy_from_slice(place);
                staging.used = 0; // nothing is under way
                Ok(())
            }
            None => copy(bytes.as_mut_ptr(), bytes.len()),
        }
    }

    /// Copies numbers between buffers, on the card. The two parts do not overlap.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): the device is lost.
    ///
    /// # Panics
    /// If one of them has fewer.
    pub fn copy<T: Pod>(
        &self,
        from: &Buffer<T>,
        from_at: usize,
        to: &Buffer<T>,
        to_at: usize,
        len: usize,
    ) -> Result<()> {
        let (from, to) = (from.part(self, from_at, len), to.part(self, to_at, len));
        let bytes = len * size_of::<T>();
        if bytes == 0 || from == to {
            return Ok(());
        }
        let context = &*self.context;
        let _bound = context.bind()?;
        // SAFETY: both parts have so many bytes.
        let code = unsafe { (context.api.cuMemcpyDtoDAsync_v2)(to, from, bytes, context.stream()) };
        context.check("copying on it", code)
    }

    /// Bytes that are free, and bytes that there are.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): the device is lost.
    pub fn memory(&self) -> Result<(usize, usize)> {
        memory(&self.context)
    }

    /// What waits for the card, or moves host memory, has no place in a graph.
    fn not_recorded(&self, what: &str) -> Result<()> {
        match self.context.recorder() {
            None => Ok(()),
            Some(_) => Err(self.context.failure(format!("{what} cannot be recorded"))),
        }
    }
}

fn memory(context: &Context) -> Result<(usize, usize)> {
    let _bound = context.bind()?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are written.
    context.check("asking for its memory", unsafe { (context.api.cuMemGetInfo_v2)(&raw mut free, &raw mut total) })?;
    Ok((free, total))
}

/// Bytes as people write them.
pub(super) fn size(bytes: usize) -> String {
    let bytes = bytes as f64;
    match bytes {
        0.0..1e3 => format!("{bytes} bytes"),
        1e3..1e6 => format!("{:.1} kB", bytes / 1e3),
        1e6..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} GB", bytes / 1e9),
    }
}

/// Page-locked memory, which a card reads and writes while the processor goes on.
pub(super) struct Staging {
    up: Mutex<Pinned>,
    down: Mutex<Pinned>,
}

impl Staging {
    pub fn new(context: &Arc<Context>) -> Self {
        let pinned = || Mutex::new(Pinned { context: Arc::clone(context), bytes: None, used: 0 });
        Self { up: pinned(), down: pinned() }
    }
}

struct Pinned {
    context: Arc<Context>,
    /// Taken when it is first needed. Null: the system gives none, and we do without.
    bytes: Option<*mut u8>,
    /// Bytes that copies under way may still read.
    used: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    /// A place that no copy under way looks at. None: so much does not fit.
    fn place(&mut self, context: &Context, len: usize) -> Result<Option<&mut [u8]>> {
        if len > STAGING {
            return Ok(None);
        }
        let start = *self.bytes.get_or_insert_with(|| {
            let mut start: *mut c_void = std::ptr::null_mut();
            // SAFETY: `start` is written.
            let code = unsafe { (context.api.cuMemHostAlloc)(&raw mut start, STAGING, 0) };
            if code != 0 {
                return std::ptr::null_mut();
            }
            // SAFETY: the allocation has so many bytes.
            unsafe { start.cast::<u8>().write_bytes(0, STAGING) };
            start.cast()
        });
        if start.is_null() {
            return Ok(None);
        }
        if self.used + len > STAGING {
            context.synchronize()?;
            self.used = 0;
        }
        let at = self.used;
        self.used += len;
        // SAFETY: the allocation has `STAGING` bytes, which fit, and the part is not lent to anybody else.
        Ok(Some(unsafe { std::slice::from_raw_parts_mut(start.add(at), len) }))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(start) = self.bytes.filter(|start| !start.is_null())
            && let Ok(_bound) = self.context.bind()
        {
            // SAFETY: it was taken from this context; the driver waits for copies under way.
            unsafe { (self.context.api.cuMemFreeHost)(start.cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_read_well() {
        assert_eq!([7, 1500, 2_000_000, 3_210_000_000].map(size), ["7 bytes", "1.5 kB", "2.0 MB", "3.2 GB"]);
    }
}
