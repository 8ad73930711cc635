//! A card's context with a stream and the kernels in it, and its errors in words.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use cudarc::driver::sys::{CUcontext, CUdevice, CUmodule, CUstream};

use super::api::{self, Api, Code};
use crate::error::{Error, Result};

/// What the JIT may say about kernels that it refuses.
const LOG_BYTES: usize = 4096;

/// The device's primary context, which PyTorch and others in this process share, and what of it is ours.
pub(super) struct Context {
    pub api: &'static Api,
    pub ordinal: usize,
    device: CUdevice,
    raw: CUcontext,
    stream: CUstream,
    pub module: CUmodule,
    /// A kernel has crashed, or the card is gone.
    lost: AtomicBool,
    /// Whether `recording` holds something.
    is_recording: AtomicBool,
    /// The thread whose work is being recorded, and the stream that records it.
    recording: Mutex<Option<Recording>>,
    /// Held by who records.
    pub turn: Mutex<()>,
}

#[derive(Clone, Copy)]
struct Recording {
    thread: ThreadId,
    stream: CUstream,
}

// SAFETY: the driver's functions may be called from any thread, and its handles are plain addresses.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the context of a device and makes a stream in it.
    pub fn new(api: &'static Api, ordinal: usize, device: CUdevice) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `device` came from the driver; `raw` is written.
        let code = unsafe { (api.cuDevicePrimaryCtxRetain)(&raw mut raw, device) };
        if code != 0 {
            return Err(failure(ordinal, format!("its context cannot be had: {}", api.words(code))));
        }
        let mut context = Self {
            api,
            ordinal,
            device,
            raw,
            stream: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            lost: AtomicBool::new(false),
            is_recording: AtomicBool::new(false),
            recording: Mutex::new(None),
            turn: Mutex::new(()),
        };
        context.stream = context.new_stream()?;
        Ok(context)
    }

    /// Has the driver compile PTX, a text that ends with a NUL.
    pub fn load(&mut self, ptx: &'static str) -> Result<()> {
        assert!(ptx.ends_with('\0'), "the driver looks for the end of the text");
        let mut log = vec![0_u8; LOG_BYTES];
        let mut module = std::ptr::null_mut();
        let mut options = api::JIT_ERROR_LOG;
        // The second value is a number in the place of an address.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let code = {
            let _bound = self.bind()?;
            // SAFETY: the text ends with NUL; there are as many options as values, and the log is as long as they say.
            unsafe {
                (self.api.cuModuleLoadDataEx)(
                    &raw mut module,
                    ptx.as_ptr().cast(),
                    options.len() as u32,
                    options.as_mut_ptr(),
                    values.as_mut_ptr(),
                )
            }
        };
        if code != 0 {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(LOG_BYTES);
            let log = String::from_utf8_lossy(&log[..end]);
            let log = log.trim();
            let says = if log.is_empty() { String::new() } else { format!(": {log}") };
            let reason = format!(
                "its driver refuses spikelet's kernels: {}{says}; version 525 (CUDA 12.0) or later is needed",
                self.api.words(code)
            );
            return Err(failure(self.ordinal, reason));
        }
        self.module = module;
        Ok(())
    }

    /// A stream, to be destroyed by whoever asked for it.
    pub fn new_stream(&self) -> Result<CUstream> {
        let _bound = self.bind()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: `stream` is written.
        self.check("making a stream", unsafe { (self.api.cuStreamCreate)(&raw mut stream, api::NON_BLOCKING) })?;
        Ok(stream)
    }

    /// Makes the context current in this thread, for a while: what others in this process had there comes back.
    pub fn bind(&self) -> Result<Bound<'_>> {
        // SAFETY: the context is retained as long as `self` lives.
        self.check("entering its context", unsafe { (self.api.cuCtxPushCurrent_v2)(self.raw) })?;
        Ok(Bound { api: self.api, of: PhantomData })
    }

    /// The stream that this thread's work goes to.
    pub fn stream(&self) -> CUstream {
        self.recorder().unwrap_or(self.stream)
    }

    /// The stream that records what this thread does, if one does.
    pub fn recorder(&self) -> Option<CUstream> {
        if !self.is_recording.load(Relaxed) {
            return None;
        }
        let recording = *lock(&self.recording);
        recording.filter(|recording| recording.thread == thread::current().id()).map(|recording| recording.stream)
    }

    /// Lets a stream record what this thread does, until the guard goes.
    pub fn record_to(&self, stream: CUstream) -> Recorder<'_> {
        *lock(&self.recording) = Some(Recording { thread: thread::current().id(), stream });
        self.is_recording.store(true, Relaxed);
        Recorder(self)
    }

    /// Waits until all is done that was put on the stream.
    pub fn synchronize(&self) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        self.check("waiting for it", unsafe { (self.api.cuStreamSynchronize)(self.stream) })
    }

    /// An error for a code that is not 0, with what was being done.
    pub fn check(&self, what: &str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        if api::is_lost(code) {
            self.lost.store(true, Relaxed);
        }
        let lost = if self.lost.load(Relaxed) {
            "; models on this device cannot go on in this process until all of them are dropped, others can"
        } else {
            ""
        };
        Err(self.failure(format!("{what}: {}{lost}", self.api.words(code))))
    }

    /// An error of this device.
    pub fn failure(&self, reason: String) -> Error {
        failure(self.ordinal, reason)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A lost device refuses these; there is nothing to be done about it then.
        if let Ok(bound) = self.bind() {
            // SAFETY: nothing refers to stream or module any more: all that did holds `self`.
            unsafe {
                if !self.stream.is_null() {
                    (self.api.cuStreamSynchronize)(self.stream);
                    (self.api.cuStreamDestroy_v2)(self.stream);
                }
                if !self.module.is_null() {
                    (self.api.cuModuleUnload)(self.module);
                }
            }
            drop(bound);
        }
        // SAFETY: retained once, in `new`.
        unsafe { (self.api.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// A context is current in this thread.
pub(super) struct Bound<'a> {
    api: &'static Api,
    /// Not for another thread.
    of: PhantomData<(&'a Context, *const ())>,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: what was pushed is popped, in the same thread.
        unsafe { (self.api.cuCtxPopCurrent_v2)(&raw mut context) };
    }
}

/// This thread's work is being recorded.
pub(super) struct Recorder<'a>(&'a Context);

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.0.is_recording.store(false, Relaxed);
        *lock(&self.0.recording) = None;
    }
}

/// An error of a device.
pub(super) fn failure(ordinal: usize, reason: String) -> Error {
    Error::Device { device: format!("cuda:{ordinal}"), reason }
}

/// What these locks guard is never half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
