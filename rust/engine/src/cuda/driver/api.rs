//! The calls of the CUDA driver that this crate makes, found by name in its library.
//!
//! `cudarc` finds the library and brings the types. Its own bindings are not called: they panic where a driver lacks a function, and their
//! return type is an enumeration, so that an error code of a later driver would be undefined behaviour. Here it is a number.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream,
};

/// What a call returns: 0, or the number of an error.
pub(super) type Code = c_int;

pub(super) const OUT_OF_MEMORY: Code = 2;
pub(super) const STUB_LIBRARY: Code = 34;
pub(super) const NO_DEVICE: Code = 100;
pub(super) const NOT_FOUND: Code = 500;

/// Errors after which nothing more can be done in a context: a kernel has crashed, or the card is gone.
const LOST: [Code; 14] = [4, 46, 201, 214, 220, 700, 702, 709, 714, 715, 716, 717, 718, 719];

macro_rules! calls {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The driver's functions.
        #[allow(non_snake_case)]
        pub(super) struct Api {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Api {
            /// Finds all of them; the name of the first one that is not there.
            fn load() -> Result<Self, &'static str> {
                // SAFETY: the library was found to be there.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    // SAFETY: the type is that of the function in cuda.h, and the library is never unloaded.
                    $($name: unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes()).map_err(|_| stringify!($name))? },)*
                })
            }
        }
    };
}

calls! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(Code, *mut *const c_char);
    cuGetErrorString(Code, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceGetAttribute(*mut c_int, c_uint, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamBeginCapture_v2(CUstream, c_uint);
    cuStreamEndCapture(CUstream, *mut CUgraph);
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
    cuGraphLaunch(CUgraphExec, CUstream);
    cuGraphExecDestroy(CUgraphExec);
    cuGraphDestroy(CUgraph);
    cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut c_uint, *mut *mut c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncGetAttribute(*mut c_int, c_uint, CUfunction);
    cuFuncSetAttribute(CUfunction, c_uint, c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, CUfunction, c_int, usize);
    cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void
    );
    cuLaunchCooperativeKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void
    );
}

// Numbers of cuda.h.
/// `CU_STREAM_NON_BLOCKING`: other libraries' work on the default stream does not hold ours up.
pub(super) const NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads may allocate meanwhile.
pub(super) const CAPTURE_THREAD_LOCAL: c_uint = 1;
/// `CU_JIT_ERROR_LOG_BUFFER`, `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
pub(super) const JIT_ERROR_LOG: [c_uint; 2] = [5, 6];
/// `CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK`: for our kernels, which say it, the number that they are compiled for.
pub(super) const FUNCTION_THREADS: c_uint = 0;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(super) const FUNCTION_SHARED: c_uint = 8;
/// `CU_DEVICE_ATTRIBUTE_..`.
pub(super) const MULTIPROCESSORS: c_uint = 16;
pub(super) const CAPABILITY: [c_uint; 2] = [75, 76];
pub(super) const SHARED_PER_BLOCK: c_uint = 97;

/// The driver's functions, or why they cannot be had.
pub(super) fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Api> = OnceLock::new();
    if let Some(api) = API.get() {
        return Ok(api);
    }
    // SAFETY: asks the system for a library that is in every way NVIDIA's business.
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no NVIDIA driver: libcuda was not found".into());
    }
    match Api::load() {
        Ok(api) => Ok(API.get_or_init(|| api)),
        Err(name) => Err(format!("the NVIDIA driver has no {name}; version 525 (CUDA 12.0) or later is needed")),
    }
}

impl Api {
    /// A code in the driver's words.
    pub fn words(&self, code: Code) -> String {
        // SAFETY: the functions write a pointer to a text that lives as long as the library, or say that there is none.
        let text = |find: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| unsafe {
            let mut text = std::ptr::null();
            (find(code, &raw mut text) == 0 && !text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy())
        };
        match (text(self.cuGetErrorString), text(self.cuGetErrorName)) {
            (Some(text), Some(name)) => format!("{text} ({name})"),
            (None, Some(name)) => name.into_owned(),
            _ => format!("unknown error {code}"),
        }
    }
}

/// Whether nothing more can be done in the context where it happened.
pub(super) fn is_lost(code: Code) -> bool {
    LOST.contains(&code)
}
