//! Engine errors as Python exceptions, and the door through which all engine work goes.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use spikelet::error::{Error, Result};

pyo3::import_exception!(spikelet.errors, SpikeletError);
pyo3::import_exception!(spikelet.errors, OptionError);
pyo3::import_exception!(spikelet.errors, FormatError);
pyo3::import_exception!(spikelet.errors, TokenizerError);
pyo3::import_exception!(spikelet.errors, UnsupportedError);
pyo3::import_exception!(spikelet.errors, StateError);
pyo3::import_exception!(spikelet.errors, NotFiniteError);
pyo3::import_exception!(spikelet.errors, FileError);
pyo3::import_exception!(spikelet.errors, NotFoundError);
pyo3::import_exception!(spikelet.errors, DeviceError);
pyo3::import_exception!(spikelet.errors, InternalError);

/// The exception for an error of the engine.
pub fn exception(error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => NotFoundError::new_err(message),
        Error::Io { source, .. } => FileError::new_err((message, source.raw_os_error())),
        Error::Format { .. } | Error::Tensor { .. } | Error::Config { .. } => FormatError::new_err(message),
        Error::Tokenizer { .. } | Error::NoTokenizer { .. } => TokenizerError::new_err(message),
        Error::Unsupported { .. } => UnsupportedError::new_err(message),
        Error::Option { .. } | Error::TokenId { .. } => OptionError::new_err(message),
        Error::Logits { .. } => NotFiniteError::new_err(message),
        Error::Device { .. } => DeviceError::new_err(message),
        Error::State { .. } => StateError::new_err(message),
        _ => SpikeletError::new_err(message),
    }
}

/// Does the engine's work without the GIL. An error becomes its exception; a panic, which is a defect of the engine,
/// becomes an `InternalError` instead of unwinding into Python.
pub fn engine<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(exception(&error)),
        Err(panic) => {
            let what =
                panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            Err(InternalError::new_err(format!("internal error: {}", what.unwrap_or("unknown"))))
        }
    }
}

/// Locks what a pass works on. A lock that a panic left behind stays shut: what it guards may be half done.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| Error::State { reason: "an internal error left it unusable; start anew".into() })
}

/// An option's value that it cannot take.
pub fn bad_option(name: &str, value: impl ToString, needed: &str) -> Error {
    Error::Option { name: name.into(), value: value.to_string(), needed: needed.into() }
}
