//! Working memory of kernels: one piece per worker and one for all, grown at first use and then kept.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::pool::lock;

/// Working memory by worker. A worker index belongs to one thread at a time, but for 0, which is every caller's: a lock is only ever waited
/// for when several threads call operations of one backend at once.
pub(crate) struct Scratches {
    workers: Vec<Mutex<Scratch>>,
    shared: Mutex<Scratch>,
    /// Floats that every worker has. Written by callers, who grow all pieces before a region: a worker that gets its first unit in the
    /// thousandth step must not allocate then.
    reserved_floats: AtomicUsize,
}

/// One piece. Contents are leftovers of earlier use.
#[derive(Default)]
pub(crate) struct Scratch {
    floats: Vec<f32>,
    words: Vec<u32>,
}

impl Scratches {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            workers: (0..threads).map(|_| Mutex::default()).collect(),
            shared: Mutex::default(),
            reserved_floats: AtomicUsize::new(0),
        }
    }

    /// Gives every worker room for `len` floats.
    pub(crate) fn reserve_floats(&self, len: usize) {
        if self.reserved_floats.load(Ordering::Relaxed) < len {
            for worker in &self.workers {
                lock(worker).floats(len);
            }
            self.reserved_floats.fetch_max(len, Ordering::Relaxed);
        }
    }

    /// That of `worker`, inside a region.
    pub(crate) fn of(&self, worker: usize) -> MutexGuard<'_, Scratch> {
        lock(&self.workers[worker])
    }

    /// That of an operation as a whole; held by the caller around its regions.
    pub(crate) fn shared(&self) -> MutexGuard<'_, Scratch> {
        lock(&self.shared)
    }
}

impl Scratch {
    pub(crate) fn floats(&mut self, len: usize) -> &mut [f32] {
        if self.floats.len() < len {
            self.floats.resize(len, 0.0);
        }
        &mut self.floats[..len]
    }

    pub(crate) fn words_and_floats(&mut self, words: usize, floats: usize) -> (&mut [u32], &mut [f32]) {
        self.words(words);
        self.floats(floats);
        (&mut self.words[..words], &mut self.floats[..floats])
    }

    pub(crate) fn words(&mut self, len: usize) -> &mut [u32] {
        if self.words.len() < len {
            self.words.resize(len, 0);
        }
        &mut self.words[..len]
    }
}
