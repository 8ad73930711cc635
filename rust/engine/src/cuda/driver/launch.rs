//! Kernels, their launches, and graphs of launches.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bytemuck::Pod;
use cudarc::driver::sys::{CUfunction, CUgraph, CUgraphExec, CUstream};

use super::Device;
use super::api::{CAPTURE_THREAD_LOCAL, FUNCTION_SHARED, FUNCTION_THREADS, NOT_FOUND};
use super::context::{Context, lock};
use crate::error::Result;

/// Dynamic shared memory that every kernel may have without asking.
const SHARED_FOR_ALL: u32 = 48 << 10;

/// A kernel of the module `generate`.
pub struct Kernel {
    context: Arc<Context>,
    function: CUfunction,
    /// Of a block: the number that it was compiled for.
    threads: u32,
    /// Bytes of dynamic shared memory that it may have.
    shared: AtomicU32,
}

// SAFETY: the function may be launched from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Asks for so much dynamic shared memory, where that needs asking.
    fn allow(&self, shared_bytes: u32) -> Result<()> {
        if shared_bytes <= self.shared.load(Relaxed) {
            return Ok(());
        }
        let _bound = self.context.bind()?;
        // SAFETY: the function lives as long as its module, which `context` holds.
        let code =
            unsafe { (self.context.api.cuFuncSetAttribute)(self.function, FUNCTION_SHARED, shared_bytes as i32) };
        self.context.check("asking for shared memory", code)?;
        self.shared.fetch_max(shared_bytes, Relaxed);
        Ok(())
    }
}

impl Device {
    /// Finds a kernel by its name.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): there is none of that name, or the device is lost.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let context = &self.context;
        let symbol = CString::new(name).map_err(|_| context.failure(format!("{name:?} is no name")))?;
        let _bound = context.bind()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with NUL, and `function` is written.
        let code = unsafe { (context.api.cuModuleGetFunction)(&raw mut function, context.module, symbol.as_ptr()) };
        if code == NOT_FOUND {
            return Err(context.failure(format!("there is no kernel `{name}`")));
        }
        context.check("finding a kernel", code)?;
        let mut threads = 0;
        // SAFETY: the function was found just now; `threads` is written.
        let code = unsafe { (context.api.cuFuncGetAttribute)(&raw mut threads, FUNCTION_THREADS, function) };
        context.check("asking for a kernel's threads", code)?;
        Ok(Kernel {
            context: Arc::clone(context),
            function,
            threads: threads.unsigned_abs(),
            shared: AtomicU32::new(SHARED_FOR_ALL),
        })
    }

    /// Has the card run a kernel after all that was asked for before, on `blocks` blocks of its own number of threads.
    ///
    /// # Safety
    /// `params` is what the kernel takes, and every pointer in it reaches as far as the kernel reads and writes, as long as the launch
    /// is under way; where it is recorded, as long as the graph is.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): it cannot be launched so, or the device is lost.
    pub unsafe fn launch<P: Pod>(&self, kernel: &Kernel, blocks: u32, shared_bytes: u32, params: &P) -> Result<()> {
        let context = self.ready(kernel, shared_bytes)?;
        let _bound = context.bind()?;
        let mut params = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the parameters before it returns; the rest is the caller's promise.
        let code = unsafe {
            (context.api.cuLaunchKernel)(
                kernel.function,
                blocks,
                1,
                1,
                kernel.threads,
                1,
                1,
                shared_bytes,
                context.stream(),
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        context.check("launching a kernel", code)
    }

    /// The same for a kernel whose blocks wait for each other: all of them run at once.
    ///
    /// # Safety
    /// As of [`launch`](Self::launch).
    ///
    /// # Errors
    /// As of [`launch`](Self::launch); also where there are more blocks than [`resident_blocks`](Self::resident_blocks).
    pub unsafe fn launch_cooperative<P: Pod>(
        &self,
        kernel: &Kernel,
        blocks: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<()> {
        let context = self.ready(kernel, shared_bytes)?;
        let _bound = context.bind()?;
        let mut params = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: as above.
        let code = unsafe {
            (context.api.cuLaunchCooperativeKernel)(
                kernel.function,
                blocks,
                1,
                1,
                kernel.threads,
                1,
                1,
                shared_bytes,
                context.stream(),
                params.as_mut_ptr(),
            )
        };
        context.check("launching a cooperative kernel", code)
    }

    /// How many blocks of a kernel the card runs at once.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): a block cannot have so much shared memory, or the device is lost.
    pub fn resident_blocks(&self, kernel: &Kernel, shared_bytes: u32) -> Result<u32> {
        let context = self.ready(kernel, shared_bytes)?;
        let _bound = context.bind()?;
        let mut blocks = 0;
        // SAFETY: `blocks` is written.
        let code = unsafe {
            (context.api.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                &raw mut blocks,
                kernel.function,
                kernel.threads as i32,
                shared_bytes as usize,
            )
        };
        context.check("asking for a kernel's blocks", code)?;
        Ok(blocks.unsigned_abs() * self.multiprocessors())
    }

    fn ready(&self, kernel: &Kernel, shared_bytes: u32) -> Result<&Context> {
        assert!(Arc::ptr_eq(&kernel.context, &self.context), "a kernel of another device");
        kernel.allow(shared_bytes)?;
        Ok(&self.context)
    }

    /// Records what `record` launches and copies on the card, instead of doing it. Reading and writing cannot be recorded. What other
    /// threads do meanwhile is done as always. `record` must not record in turn.
    ///
    /// # Errors
    /// Those of `record`; [`Error::Device`](crate::Error::Device): the driver makes no graph of it.
    pub fn capture(self: &Arc<Self>, record: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        let context = &self.context;
        let _turn = lock(&context.turn);
        let stream = OwnStream { context, stream: context.new_stream()? };
        let _bound = context.bind()?;
        let api = context.api;
        // SAFETY: the stream is our own.
        let code = unsafe { (api.cuStreamBeginCapture_v2)(stream.stream, CAPTURE_THREAD_LOCAL) };
        context.check("beginning to record", code)?;
        let recorder = context.record_to(stream.stream);
        let recorded = record();
        drop(recorder);
        let mut graph = Graph {
            context: Arc::clone(context),
            graph: std::ptr::null_mut(),
            exec: std::ptr::null_mut(),
            of: PhantomData,
        };
        // SAFETY: the stream records; `graph` is written.
        let code = unsafe { (api.cuStreamEndCapture)(stream.stream, &raw mut graph.graph) };
        recorded?;
        context.check("ending a record", code)?;
        // SAFETY: the graph is whole; `exec` is written.
        let code = unsafe { (api.cuGraphInstantiateWithFlags)(&raw mut graph.exec, graph.graph, 0) };
        context.check("making a graph", code)?;
        Ok(graph)
    }
}

/// A stream for a record.
struct OwnStream<'a> {
    context: &'a Context,
    stream: CUstream,
}

impl Drop for OwnStream<'_> {
    fn drop(&mut self) {
        if let Ok(_bound) = self.context.bind() {
            // SAFETY: it is ours, and nobody uses it any more.
            unsafe { (self.context.api.cuStreamDestroy_v2)(self.stream) };
        }
    }
}

/// Launches and copies that were recorded, to be done again and again.
pub struct Graph {
    context: Arc<Context>,
    graph: CUgraph,
    exec: CUgraphExec,
    /// Not for two threads at once.
    of: PhantomData<*const ()>,
}

// SAFETY: one thread after the other may use it.
unsafe impl Send for Graph {}

impl Graph {
    /// Has the card do all of it, after all that was asked for before.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): the device is lost.
    pub fn launch(&self) -> Result<()> {
        let context = &*self.context;
        let _bound = context.bind()?;
        // SAFETY: the graph is whole; that pointers in it are good is the promise of who recorded them.
        let code = unsafe { (context.api.cuGraphLaunch)(self.exec, context.stream()) };
        context.check("launching a graph", code)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_bound) = self.context.bind() {
            // SAFETY: both are ours; the driver lets a launch that is under way end.
            unsafe {
                if !self.exec.is_null() {
                    (self.context.api.cuGraphExecDestroy)(self.exec);
                }
                if !self.graph.is_null() {
                    (self.context.api.cuGraphDestroy)(self.graph);
                }
            }
        }
    }
}
