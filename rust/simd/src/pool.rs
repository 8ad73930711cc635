//! Threads that stay ready between the phases of a token.
//!
//! A pass over one token is a hundred or so phases of some ten microseconds. Waking a sleeping thread for each would take as
//! long as the work, so a worker that has run out of work looks for more for a while, first spinning, then giving its time
//! slice away, and only then sleeps. An idle pool uses no processor time.
//!
//! The calling thread takes part and never waits for a worker that has not begun: if another process holds the other
//! cores, the caller simply does all tasks itself. What it cannot help is a worker that loses its core in the middle of a task, and
//! comes back milliseconds later. After such a stall it works alone for a while, longer each time that it happens again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker looks for work at full speed, and how long it goes on between giving its time slice away.
const SPIN: Duration = Duration::from_micros(30);
const YIELD: Duration = Duration::from_micros(300);

/// A worker that keeps the caller waiting this long, on top of a few tasks' time, has lost its core.
const STALL: Duration = Duration::from_micros(150);
const STALL_TASKS: u32 = 3;
/// How long the caller then works alone, the first time and at most.
const ALONE: Duration = Duration::from_millis(4);
const ALONE_AT_MOST: Duration = Duration::from_millis(256);
/// Runs with the workers after which a stall counts as the first again.
const TRUSTED: u32 = 2_000;

/// State word: bits 32.. count the runs, bit 31 is set while a run takes workers in, bits 0..31 count those inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const RUN: u64 = 1 << 32;

type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// A fixed number of threads, the caller's included.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a run. A second caller, or a task that calls again, finds it taken and works alone.
    busy: Mutex<Trust>,
}

/// Whether the workers can be relied upon.
#[derive(Default)]
struct Trust {
    /// Until then the caller works alone.
    alone_until: Option<Instant>,
    /// How long it did so last.
    alone: Duration,
    /// Runs with the workers since.
    runs: u32,
}

impl Trust {
    /// Whether workers may take part now.
    fn workers(&mut self) -> bool {
        if self.alone_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.alone_until = None;
        true
    }

    /// Judges a run in which a task took `task` and the caller waited for workers for `waited`.
    fn learn(&mut self, task: Duration, waited: Duration) {
        if waited > STALL + task * STALL_TASKS {
            self.alone = (self.alone * 2).clamp(ALONE, ALONE_AT_MOST);
            self.alone_until = Some(Instant::now() + self.alone);
            self.runs = 0;
        } else if self.runs < TRUSTED {
            self.runs += 1;
            if self.runs == TRUSTED {
                self.alone = Duration::ZERO;
            }
        }
    }
}

struct Shared {
    state: AtomicU64,
    /// The next task to be taken.
    next: AtomicUsize,
    /// The work of the current run. Written only while no worker is inside and none can enter.
    job: Mutex<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Number of sleeping workers, and their bell. Whoever changes what a sleeper waits for takes the lock before ringing.
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    bell: Condvar,
    /// Rung when the last worker leaves a closed run and the caller sleeps: ringing costs a system call.
    left: Condvar,
    caller_sleeps: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    /// Lifetime erased: see `Pool::run`.
    task: Task<'static>,
}

/// A panic while one of these locks is held leaves nothing half done behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// `threads - 1` workers; none, and no synchronisation at all, for one thread.
    pub(crate) fn new(threads: usize) -> Pool {
        assert!(threads >= 1, "a pool needs at least the calling thread");
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: Mutex::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            bell: Condvar::new(),
            left: Condvar::new(),
            caller_sleeps: AtomicBool::new(false),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("spikelet-{i}")).spawn(move || shared.work())
        };
        // A system that refuses threads leaves a smaller pool: the results are the same.
        let workers = (1..threads).map_while(|i| spawn(i).ok()).collect();
        Pool { shared, workers, busy: Mutex::default() }
    }

    /// Threads that take part in a run.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i < tasks`, in any order and on any thread, and returns when all calls have.
    ///
    /// Allocates nothing. If a task panics, tasks not yet begun are dropped and the panic goes on in the caller.
    pub(crate) fn run(&self, tasks: usize, task: Task<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(task);
        }
        let mut trust = match self.busy.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another caller has the workers, or this is a task of the run itself.
            Err(std::sync::TryLockError::WouldBlock) => return (0..tasks).for_each(task),
        };
        if !trust.workers() {
            return (0..tasks).for_each(task);
        }
        // SAFETY: only the lifetime changes. Workers read the reference between `enter` and `leave`, and this function neither
        // returns nor unwinds before `close_and_wait` has shut the run and seen the last of them leave.
        let task: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let job = Job { tasks, task };
        let begun = Instant::now();
        self.shared.open(job);
        let taken = self.shared.take_tasks(job);
        let worked = begun.elapsed();
        let waited = self.shared.close_and_wait();
        trust.learn(worked / taken.max(1), waited);
        drop(trust);
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.state.fetch_add(RUN, SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.bell.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Publishes a job and wakes the workers that sleep.
    fn open(&self, job: Job) {
        *lock(&self.job) = Some(job);
        self.next.store(0, Relaxed);
        let runs = self.state.load(Relaxed) & !(RUN - 1);
        self.state.store(runs.wrapping_add(RUN) | OPEN, SeqCst);
        if self.asleep.load(SeqCst) > 0 {
            // The lock orders this bell after the sleeper's last look at the state.
            drop(lock(&self.sleep));
            self.bell.notify_all();
        }
    }

    /// Lets nobody else in and waits until the workers inside have left.
    /// Returns how long that took.
    fn close_and_wait(&self) -> Duration {
        self.state.fetch_and(!OPEN, AcqRel);
        let begun = Instant::now();
        while self.state.load(Acquire) & INSIDE != 0 {
            match begun.elapsed() {
                t if t < SPIN => (0..16).for_each(|_| std::hint::spin_loop()),
                t if t < YIELD => std::thread::yield_now(),
                _ => {
                    let mut sleep = lock(&self.sleep);
                    self.caller_sleeps.store(true, SeqCst);
                    while self.state.load(SeqCst) & INSIDE != 0 {
                        sleep = self.left.wait(sleep).unwrap_or_else(PoisonError::into_inner);
                    }
                    self.caller_sleeps.store(false, SeqCst);
                }
            }
        }
        begun.elapsed()
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        while let Some(run) = self.wait_for_run(seen) {
            seen = run;
            if let Some(job) = self.enter(run) {
                self.take_tasks(job);
                self.leave();
            }
        }
    }

    /// The number of the next run after `seen`, or None when the pool is dropped.
    fn wait_for_run(&self, seen: u64) -> Option<u64> {
        let begun = Instant::now();
        loop {
            let run = self.state.load(Acquire) / RUN;
            if run != seen {
                return (!self.stop.load(Acquire)).then_some(run);
            }
            match begun.elapsed() {
                t if t < SPIN => (0..16).for_each(|_| std::hint::spin_loop()),
                t if t < YIELD => std::thread::yield_now(),
                _ => {
                    let mut sleep = lock(&self.sleep);
                    self.asleep.fetch_add(1, SeqCst);
                    while self.state.load(SeqCst) / RUN == seen {
                        sleep = self.bell.wait(sleep).unwrap_or_else(PoisonError::into_inner);
                    }
                    self.asleep.fetch_sub(1, SeqCst);
                }
            }
        }
    }

    /// Steps into `run` if it is still open.
    fn enter(&self, run: u64) -> Option<Job> {
        let mut state = self.state.load(Acquire);
        while state / RUN == run && state & OPEN != 0 {
            match self.state.compare_exchange_weak(state, state + 1, AcqRel, Acquire) {
                Ok(_) => return *lock(&self.job),
                Err(now) => state = now,
            }
        }
        None
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, SeqCst);
        if before & OPEN == 0 && before & INSIDE == 1 && self.caller_sleeps.load(SeqCst) {
            // The lock orders this bell after the caller's last look.
            drop(lock(&self.sleep));
            self.left.notify_all();
        }
    }

    /// Returns how many it took.
    fn take_tasks(&self, job: Job) -> u32 {
        let mut taken = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= job.tasks {
                    return;
                }
                (job.task)(i);
                taken += 1;
            }
        }));
        if let Err(panic) = result {
            self.next.store(job.tasks, Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
        taken
    }
}

/// Number of physical cores that this process may use: the default number of threads.
///
/// Two hardware threads of one core share its arithmetic units, so that a second one brings nothing here. Respects the
/// affinity mask and, through the standard library, control group limits.
pub fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, |n| n.get());
    physical_cores_in("/sys/devices/system/cpu", "/proc/self/status").map_or(logical, |cores| cores.clamp(1, logical))
}

/// Distinct cores among the allowed processors, from Linux' description of the topology.
fn physical_cores_in(topology: &str, status: &str) -> Option<usize> {
    let status = std::fs::read_to_string(status).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = std::collections::BTreeSet::new();
    for cpu in parse_cpu_list(allowed.trim())? {
        let siblings = std::fs::read_to_string(format!("{topology}/cpu{cpu}/topology/thread_siblings_list")).ok()?;
        cores.insert(siblings.trim().to_owned());
    }
    Some(cores.len())
}

/// `"0-2,7"` is `[0, 1, 2, 7]`.
fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_to(pool: &Pool, tasks: usize) {
        let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|i| {
            done[i].fetch_add(1, Relaxed);
        });
        assert!(done.iter().all(|d| d.load(Relaxed) == 1), "every task runs exactly once");
    }

    #[test]
    fn every_task_runs_once_over_many_small_runs() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for run in 0..if cfg!(miri) { 20 } else { 3_000 } {
                count_to(&pool, run % 9);
            }
        }
    }

    #[test]
    fn workers_wake_up_after_sleeping() {
        let pool = Pool::new(3);
        for _ in 0..4 {
            std::thread::sleep(YIELD * 5);
            count_to(&pool, 50);
        }
    }

    #[test]
    fn a_caller_that_waits_long_is_woken() {
        let pool = Pool::new(2);
        let caller = std::thread::current().id();
        for _ in 0..5 {
            // A worker's task outlasts spinning and yielding.
            pool.run(4, &|_| {
                if std::thread::current().id() != caller {
                    std::thread::sleep(YIELD * 20);
                } else {
                    std::thread::sleep(YIELD);
                }
            });
        }
    }

    #[test]
    fn after_a_stall_the_caller_works_alone_and_longer_each_time() {
        let mut trust = Trust::default();
        let task = Duration::from_micros(20);
        assert!(trust.workers());
        trust.learn(task, STALL);
        assert!(trust.workers(), "a wait that tasks explain is no stall");
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            trust.learn(task, Duration::from_millis(3));
            assert!(!trust.workers(), "alone after a stall");
            assert!(trust.alone > last || trust.alone == ALONE_AT_MOST);
            last = trust.alone;
            trust.alone_until = Some(Instant::now());
            assert!(trust.workers(), "until its time is over");
        }
        (0..TRUSTED).for_each(|_| trust.learn(task, task));
        trust.learn(task, Duration::from_millis(3));
        assert_eq!(trust.alone, ALONE, "after many good runs it begins anew");
        // Long tasks are waited for.
        let mut trust = Trust::default();
        trust.learn(Duration::from_millis(5), Duration::from_millis(12));
        assert!(trust.workers());
    }

    #[test]
    fn workers_really_take_part() {
        let pool = Pool::new(2);
        let names = Mutex::new(std::collections::BTreeSet::new());
        // Each task waits a little, so that the worker gets its share even on a busy machine.
        for _ in 0..50 {
            pool.run(8, &|_| {
                std::thread::sleep(Duration::from_micros(200));
                lock(&names).insert(format!("{:?}", std::thread::current().id()));
            });
            if lock(&names).len() == 2 {
                return;
            }
        }
        panic!("only the caller worked");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            for _ in 0..20 {
                let caught = catch_unwind(AssertUnwindSafe(|| pool.run(16, &|i| assert!(i != 7, "task seven"))));
                let message = caught.expect_err("task 7 panics");
                assert_eq!(message.downcast_ref::<&str>(), Some(&"task seven"));
                count_to(&pool, 5);
            }
        }
    }

    #[test]
    fn concurrent_and_nested_callers_all_finish() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..if cfg!(miri) { 5 } else { 500 } {
                        count_to(&pool, 7);
                    }
                });
            }
        });
        pool.run(4, &|_| count_to(&pool, 6));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_idle_pool_uses_no_processor_time() {
        if cfg!(miri) {
            return;
        }
        let ticks = |task: &str| -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{task}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            fields
                .get(11)
                .zip(fields.get(12))
                .map_or(0, |(u, s)| u.parse::<u64>().unwrap_or(0) + s.parse::<u64>().unwrap_or(0))
        };
        let tid = Mutex::new(String::new());
        let pool = Pool::new(2);
        let here = std::thread::current().id();
        while lock(&tid).is_empty() {
            pool.run(64, &|_| {
                std::thread::sleep(Duration::from_micros(50));
                if std::thread::current().id() != here {
                    let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
                    *lock(&tid) = link.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
                }
            });
        }
        let tid = lock(&tid).clone();
        std::thread::sleep(YIELD * 20);
        let before = ticks(&tid);
        std::thread::sleep(Duration::from_millis(200));
        assert!(ticks(&tid) <= before + 1, "a worker without work must sleep");
    }

    #[test]
    fn cores_are_counted_once_per_set_of_siblings() {
        assert_eq!(parse_cpu_list("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_cpu_list("x"), None);
        assert!(physical_cores() >= 1);
        let dir = std::env::temp_dir().join(format!("spikelet-topology-{}", std::process::id()));
        for (cpu, siblings) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            let folder = dir.join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&folder).expect("a writable temporary folder");
            std::fs::write(folder.join("thread_siblings_list"), format!("{siblings}\n")).expect("a writable file");
        }
        let status = dir.join("status");
        for (allowed, cores) in [("0-3", 2), ("0,2", 1), ("1-2", 2)] {
            std::fs::write(&status, format!("Name:\tx\nCpus_allowed_list:\t{allowed}\n")).expect("a writable file");
            assert_eq!(physical_cores_in(&dir.to_string_lossy(), &status.to_string_lossy()), Some(cores), "{allowed}");
        }
        std::fs::remove_dir_all(&dir).expect("the folder made above");
    }
}
