//! The compute pool: a team of threads that runs one parallel region at a time.
//!
//! The caller is worker 0. A region's units are handed out one by one by an atomic counter, so that the caller finishes what a
//! descheduled worker never began; it waits only for workers that have begun. Workers look for the next region for a moment, then
//! sleep: an idle pool uses no CPU, and a core that another process wants is given up soon.
//!
//! One word, `state`, holds who may touch a region:
//!
//! ```text
//! bits 63..32  generation of the region, so that a worker joins each region once
//! bit  31      open: workers may still join
//! bits 30..0   workers inside
//! ```

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pelton_backend::Workers;

/// How long a thread looks at the state before it sleeps. Longer than the serial gaps inside a step, shorter than anybody notices.
const SPIN: Duration = Duration::from_micros(40);

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 32;

/// Runs `units` of a region: called with the worker's index and the unit's.
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// A team of threads. Regions of several callers take turns; a region must not start another one.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by whoever runs a region.
    turn: Mutex<()>,
}

struct Shared {
    /// See the module documentation. Written by callers (open, close) and workers (enter, leave).
    state: AtomicU64,
    /// Next unit to hand out.
    next: AtomicUsize,
    /// Written by the caller while nobody is inside, read by workers that are inside.
    region: UnsafeCell<Option<Region>>,
    /// One per worker but the caller; true while it sleeps or is about to.
    asleep: Vec<AtomicBool>,
    /// True while the caller sleeps (or is about to) until the last worker has left.
    caller_waits: AtomicBool,
    /// With `left`, the bed of the waiting caller.
    leaving: Mutex<()>,
    left: Condvar,
    /// What a worker panicked with, for the caller to continue.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stopping: AtomicBool,
}

#[derive(Clone, Copy)]
struct Region {
    work: *const Work<'static>,
    num_units: usize,
}

// SAFETY: `region` is the only field that is not `Sync` by itself. It is written by the caller alone, while it holds `turn`, and only
// when no worker is inside and `state` is closed; workers read it only after they entered through `state` (acquire).
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `region` is only followed while the caller that owns its target waits inside `run`.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` (at least one) including the caller, all of them started: a region sets up nothing. Worker `i` is bound
    /// to `cpus[i]` where there is one.
    pub(crate) fn new(threads: usize, cpus: &[usize]) -> std::io::Result<Self> {
        let num_workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            region: UnsafeCell::new(None),
            asleep: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            caller_waits: AtomicBool::new(false),
            leaving: Mutex::new(()),
            left: Condvar::new(),
            panic: Mutex::new(None),
            stopping: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(num_workers), turn: Mutex::new(()) };
        // The channel has room for every worker, so none of them waits here when a later one cannot be started.
        let (started, all_started) = std::sync::mpsc::sync_channel(num_workers);
        for index in 1..=num_workers {
            let started = started.clone();
            let shared = Arc::clone(&pool.shared);
            let cpu = cpus.get(index).copied();
            let worker = std::thread::Builder::new().name(format!("compute-{index}")).spawn(move || {
                if let Some(cpu) = cpu {
                    bind_to(cpu);
                }
                // Nobody listens any more when a later worker could not be started.
                let _ = started.send(());
                shared.worker(index);
            })?;
            pool.workers.push(worker);
        }
        drop(started);
        all_started.iter().take(num_workers).for_each(drop);
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(worker, unit)` once for each unit in `0..num_units`, on all threads, and returns when all are done.
    ///
    /// Units should be worth a few microseconds. Allocates nothing. Continues a panic of `work`; units that had not begun by
    /// then are left out.
    pub(crate) fn run(&self, num_units: usize, work: impl Fn(usize, usize) + Sync) {
        if self.workers.is_empty() || num_units <= 1 {
            for unit in 0..num_units {
                work(0, unit);
            }
            return;
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        let work: &Work<'_> = &work;
        // SAFETY: only the lifetime changes; nobody follows the pointer once `run` has closed the region and seen it empty.
        let work_for_workers = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        // SAFETY: we hold `turn`, the region before was closed and empty when its `run` returned, so nobody reads this now.
        unsafe { *shared.region.get() = Some(Region { work: work_for_workers, num_units }) };
        shared.next.store(0, Ordering::Relaxed);
        let generation = (shared.state.load(Ordering::Relaxed) & !(GENERATION - 1)).wrapping_add(GENERATION);
        shared.state.store(generation | OPEN, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers).take(num_units - 1) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }

        let own = catch_unwind(AssertUnwindSafe(|| shared.take_units(0, work, num_units)));
        if own.is_err() {
            shared.next.store(num_units, Ordering::Relaxed);
        }
        shared.close_and_wait();
        let theirs = lock(&shared.panic).take();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }

    /// Cuts `data` into pieces of `piece_len` (the last may be shorter) and calls `work(worker, piece_index, piece)` for each, on all
    /// threads.
    pub(crate) fn run_pieces<T: Send>(
        &self,
        data: &mut [T],
        piece_len: usize,
        work: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        let len = data.len();
        let base = SharedMut::new(data);
        self.run(len.div_ceil(piece_len), |worker, index| {
            let first = index * piece_len;
            // SAFETY: pieces of different units do not overlap, and each unit is handed out once.
            let piece = unsafe { base.slice(first, piece_len.min(len - first)) };
            work(worker, index, piece);
        });
    }
}

impl Workers for Pool {
    fn count(&self) -> usize {
        self.threads()
    }

    fn run(&self, num_units: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        Self::run(self, num_units, work);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker cannot panic outside a region, and there its panic went to the caller.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn worker(&self, index: usize) {
        let mut joined = self.state.load(Ordering::Relaxed) & !(GENERATION - 1);
        while let Some(generation) = self.enter_next(index, joined) {
            joined = generation;
            // SAFETY: we are inside an open region: the caller wrote `region` before it opened it and does not write again before
            // we leave.
            let region = unsafe { *self.region.get() };
            if let Some(Region { work, num_units }) = region {
                // SAFETY: the caller keeps what `work` points to alive until everybody has left.
                let work = unsafe { &*work };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_units(index, work, num_units))) {
                    self.next.store(num_units, Ordering::Relaxed);
                    lock(&self.panic).get_or_insert(panic);
                }
            }
            self.state.fetch_sub(1, Ordering::SeqCst);
            if self.caller_waits.load(Ordering::SeqCst) {
                drop(lock(&self.leaving));
                self.left.notify_one();
            }
        }
    }

    fn take_units(&self, worker: usize, work: &Work<'_>, num_units: usize) {
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= num_units {
                return;
            }
            work(worker, unit);
        }
    }

    /// Waits for an open region that is not `joined` and enters it; `None` when the pool stops.
    fn enter_next(&self, index: usize, joined: u64) -> Option<u64> {
        let asleep = &self.asleep[index - 1];
        let mut patience = Patience::new();
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(generation) = self.try_enter(joined) {
                asleep.store(false, Ordering::Relaxed);
                return Some(generation);
            }
            if patience.spin() {
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            // Whoever opens a region or stops the pool after this look sees `asleep` and wakes us.
            let state = self.state.load(Ordering::SeqCst);
            let nothing_new = state & OPEN == 0 || state & !(GENERATION - 1) == joined;
            if nothing_new && !self.stopping.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            patience = Patience::new();
        }
    }

    fn try_enter(&self, joined: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let generation = state & !(GENERATION - 1);
            if state & OPEN == 0 || generation == joined {
                return None;
            }
            match self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(generation),
                Err(now) => state = now,
            }
        }
    }

    fn close_and_wait(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut patience = Patience::new();
        while state & INSIDE != 0 {
            if !patience.spin() {
                let mut bed = lock(&self.leaving);
                self.caller_waits.store(true, Ordering::SeqCst);
                while self.state.load(Ordering::SeqCst) & INSIDE != 0 {
                    bed = self.left.wait(bed).unwrap_or_else(PoisonError::into_inner);
                }
                self.caller_waits.store(false, Ordering::SeqCst);
                return;
            }
            state = self.state.load(Ordering::Acquire);
        }
    }
}

/// Spinning with an end.
struct Patience {
    looks: u32,
    until: Option<Instant>,
}

impl Patience {
    fn new() -> Self {
        Self { looks: 0, until: None }
    }

    /// Spends a moment; false when the time is over.
    fn spin(&mut self) -> bool {
        self.looks += 1;
        std::hint::spin_loop();
        if !self.looks.is_multiple_of(32) {
            return true;
        }
        let now = Instant::now();
        now < *self.until.get_or_insert(now + SPIN)
    }
}

/// A slice of which the units of a region write disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    data: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow that is handed to several threads; `slice` leaves it to its callers that parts do not overlap.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrow: std::marker::PhantomData }
    }

    /// `data[first..first + len]`; panics past the end.
    ///
    /// # Safety
    /// No other part that is alive may overlap this one.
    pub(crate) unsafe fn slice(&self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first <= self.len && len <= self.len - first, "{first} + {len} elements of {}", self.len);
        // SAFETY: within the borrowed slice (asserted); disjoint from other parts by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(first), len) }
    }

    /// To `data[index]`; panics when there is none.
    ///
    /// # Safety
    /// What is written through the pointer must be read and written by nobody else meanwhile.
    pub(crate) unsafe fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: within the borrowed slice (asserted).
        unsafe { self.data.add(index) }
    }
}

/// Locks; a panic of another holder says nothing about data that is only ever replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CPUs that this process may run on, ascending; empty when the operating system does not tell.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero `cpu_set_t` is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable and of the stated size; 0 is this thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: every index is within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Binds this thread to `cpu`. Without the right to do so it runs where it may: slower at worst.
fn bind_to(cpu: usize) {
    // SAFETY: an all-zero `cpu_set_t` is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return;
    }
    // SAFETY: `cpu` is within the set (checked above).
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a valid set of the stated size; 0 is this thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_unit_runs_once_at_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads, &[]).unwrap();
            for num_units in [0, 1, 2, 7, 64, 1000] {
                let counts: Vec<AtomicU32> = (0..num_units).map(|_| AtomicU32::new(0)).collect();
                pool.run(num_units, |worker, unit| {
                    assert!(worker < threads);
                    counts[unit].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads");
            }
        }
    }

    #[test]
    fn many_short_regions_in_a_row_lose_nothing() {
        let pool = Pool::new(4, &[]).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(5, |_, unit| {
                sum.fetch_add(unit, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 20_000 * 10);
    }

    #[test]
    fn sleeping_workers_are_woken() {
        let pool = Pool::new(2, &[]).unwrap();
        for _ in 0..20 {
            while !pool.shared.asleep[0].load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            // Both units wait for each other, so both threads must be there.
            let met = std::sync::Barrier::new(2);
            pool.run(2, |_, _| {
                met.wait();
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for panicking in [0, 1, 39] {
            let pool = Pool::new(3, &[]).unwrap();
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(40, |_, unit| assert_ne!(unit, panicking, "unit of doom"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("unit of doom"), "{message}");
            let ran = AtomicUsize::new(0);
            pool.run(40, |_, _| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 40);
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2, &[]).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(3, |_, unit| {
                            sum.fetch_add(unit, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 500 * 3);
    }

    #[test]
    fn pieces_cover_the_slice_without_overlap() {
        let pool = Pool::new(3, &[]).unwrap();
        let mut data = vec![0usize; 103];
        pool.run_pieces(&mut data, 10, |_, index, piece| {
            assert_eq!(piece.len(), if index == 10 { 3 } else { 10 });
            for value in piece {
                *value += index + 1;
            }
        });
        assert!(data.iter().enumerate().all(|(i, &value)| value == i / 10 + 1));
    }
}
