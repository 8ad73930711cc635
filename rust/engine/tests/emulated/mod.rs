//! A CUDA driver that runs kernels on the CPU (kernels/simt), in the place of NVIDIA's.

#![allow(dead_code, unsafe_code)]

use std::ffi::{CString, c_char};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

/// The emulated driver, and the right to change its settings: tests that use it come one after another.
pub struct Emulated {
    library: &'static Library,
    changed: Vec<&'static str>,
    _turn: MutexGuard<'static, ()>,
}

/// Puts the emulated driver in the place of the real one. None, with a message: it cannot be built here.
pub fn driver() -> Option<Emulated> {
    static TURN: Mutex<()> = Mutex::new(());
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let library = LIBRARY.get_or_init(|| build().map_err(|why| eprintln!("skipped: {why}")).ok());
    library.as_ref().map(|library| Emulated { library, changed: Vec::new(), _turn: turn })
}

/// Builds it, or finds it built, and opens it before anybody asks for a driver: whoever does then gets this one.
fn build() -> Result<Library, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/emulated_cuda.py");
    let built = Command::new("python3").arg(script).output().map_err(|error| format!("no python3: {error}"))?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).trim().to_owned());
    }
    let path = String::from_utf8_lossy(&built.stdout).trim().to_owned();
    // SAFETY: the library is our own; loading it runs constructors that make lists.
    unsafe { Library::new(&path) }.map_err(|error| format!("{path}: {error}"))
}

impl Emulated {
    /// Sets one of its variables until the test ends.
    pub fn set(&mut self, variable: &'static str, value: &str) {
        self.changed.push(variable);
        self.tell(variable, Some(value));
    }

    /// Takes it back.
    pub fn unset(&mut self, variable: &'static str) {
        self.tell(variable, None);
    }

    /// Bytes of device memory that are taken.
    pub fn memory_in_use(&self) -> usize {
        // SAFETY: the function has this type.
        unsafe { self.library.get::<unsafe extern "C" fn() -> usize>(b"simt_memory_in_use\0").expect("it is there")() }
    }

    /// Bytes of a kernel's parameters; 0: there is no such kernel.
    pub fn params_size(&self, kernel: &str) -> usize {
        let kernel = CString::new(kernel).expect("no NUL");
        // SAFETY: the function has this type, and the text ends with NUL.
        unsafe {
            let ask = self.library.get::<unsafe extern "C" fn(*const c_char) -> usize>(b"simt_params_size\0");
            ask.expect("it is there")(kernel.as_ptr())
        }
    }

    fn tell(&self, variable: &str, value: Option<&str>) {
        let variable = CString::new(variable).expect("no NUL");
        let value = value.map(|value| CString::new(value).expect("no NUL"));
        // SAFETY: the function has this type; it copies both texts.
        unsafe {
            let set = self
                .library
                .get::<unsafe extern "C" fn(*const c_char, *const c_char)>(b"simt_set\0")
                .expect("it is there");
            set(variable.as_ptr(), value.as_ref().map_or(std::ptr::null(), |value| value.as_ptr()));
        }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        for variable in std::mem::take(&mut self.changed) {
            self.unset(variable);
        }
    }
}
