//! How far a load is: who waits is told, and pages of the files that have been read leave memory.

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use spikelet_simd::Cpu;

use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// Is told how many bytes of the files have been read of how many; `Break` stops the load.
pub type LoadProgress<'a> = &'a mut (dyn FnMut(u64, u64) -> ControlFlow<()> + Send);

/// Pages leave memory so many bytes at a time: asking the system costs some microseconds.
const SLAB: usize = 1 << 20;
/// A thread may be so many of these behind another.
const LATE: usize = 4;
/// Between two calls of a progress function.
const INTERVAL: Duration = Duration::from_millis(20);

/// The reading of a checkpoint's tensors, each once.
pub struct Reading<'a> {
    checkpoint: &'a Checkpoint,
    total: u64,
    /// Bytes of the tensors that are done, and of the one at work.
    before: AtomicU64,
    within: AtomicU64,
    stopped: AtomicBool,
    /// Only the thread that loads talks to the outside: in Python, only that one hears of Ctrl-C.
    caller: ThreadId,
    teller: Mutex<Teller<'a>>,
}

struct Teller<'a> {
    tell: LoadProgress<'a>,
    next: Instant,
    last: Option<u64>,
}

impl<'a> Reading<'a> {
    pub fn new(checkpoint: &'a Checkpoint, tell: LoadProgress<'a>) -> Self {
        Self {
            checkpoint,
            total: checkpoint.tensor_bytes(),
            before: AtomicU64::new(0),
            within: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            caller: thread::current().id(),
            teller: Mutex::new(Teller { tell, next: Instant::now(), last: None }),
        }
    }

    /// This part of a tensor's bytes is not needed any more. (It can be read again: that only takes time.) Says whether to go on.
    pub fn part(&self, tensor: &[u8], part: Range<usize>) -> bool {
        self.within.fetch_add(part.len() as u64, Relaxed);
        let (first, end) = (part.start / SLAB, part.end / SLAB);
        if first < end {
            // Also what a thread that was late has brought back of those before.
            self.checkpoint.release(&tensor[first.saturating_sub(LATE) * SLAB..end * SLAB]);
        }
        if thread::current().id() == self.caller {
            self.tell(false);
        }
        !self.stopped.load(Relaxed)
    }

    /// The whole tensor is not needed any more; it was made of these.
    pub fn done(&self, parts: &[&[u8]]) -> Result<()> {
        parts.iter().for_each(|bytes| self.checkpoint.release(bytes));
        let bytes: usize = parts.iter().map(|bytes| bytes.len()).sum();
        self.within.store(0, Relaxed);
        self.before.fetch_add(bytes as u64, Relaxed);
        self.tell(false);
        self.go_on()
    }

    /// All is read.
    pub fn finish(&self) -> Result<()> {
        self.before.store(self.total, Relaxed);
        self.tell(true);
        self.go_on()
    }

    /// An error if the load is to stop.
    pub fn go_on(&self) -> Result<()> {
        if self.stopped.load(Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Whether all slabs of a tensor are good. They are looked at by all threads and leave memory.
    pub fn all(&self, cpu: &Cpu, tensor: &[u8], good: impl Fn(&[u8]) -> bool + Sync) -> bool {
        let bad = AtomicBool::new(false);
        cpu.run(tensor.len().div_ceil(SLAB), &|slab| {
            let part = slab * SLAB..tensor.len().min((slab + 1) * SLAB);
            if self.stopped.load(Relaxed) || bad.load(Relaxed) {
                return;
            }
            if !good(&tensor[part.clone()]) {
                bad.store(true, Relaxed);
            }
            self.part(tensor, part);
        });
        !bad.into_inner()
    }

    /// Calls the progress function if it is due.
    fn tell(&self, at_once: bool) {
        let Ok(mut teller) = self.teller.lock() else { return };
        let now = Instant::now();
        let done = (self.before.load(Relaxed) + self.within.load(Relaxed)).min(self.total);
        if (now < teller.next && !at_once) || teller.last == Some(done) || self.stopped.load(Relaxed) {
            return;
        }
        (teller.next, teller.last) = (now + INTERVAL, Some(done));
        if (teller.tell)(done, self.total).is_break() {
            self.stopped.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Model};
    use std::path::Path;

    fn load(mut tell: impl FnMut(u64, u64) -> ControlFlow<()> + Send) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/spikegpt-tiny");
        Model::load_with(&folder, &LoadOptions::default(), &mut tell).map(drop)
    }

    #[test]
    fn progress_goes_from_nothing_to_all() {
        let mut calls = Vec::new();
        load(|done, total| {
            calls.push((done, total));
            ControlFlow::Continue(())
        })
        .expect("a model");
        let total = calls[0].1;
        assert!(calls.iter().all(|c| c.1 == total) && calls.is_sorted(), "{calls:?}");
        assert_eq!(calls.first(), Some(&(0, total)));
        assert_eq!(calls.iter().filter(|c| c.0 == total).count(), 1, "{calls:?}");
    }

    #[test]
    fn a_load_stops_when_told_so() {
        let mut calls = 0;
        let error = load(|_, _| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert!(matches!(error, Err(Error::Cancelled)));
        assert_eq!(calls, 1);
    }
}
