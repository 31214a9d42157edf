//! A backend's threads, lent to code beside its operations.

/// Threads that host code may use between two operations, such as sampling from logits.
pub trait Workers: Sync {
    /// How many there are, the caller included.
    fn count(&self) -> usize;

    /// Calls `work(worker, unit)` once for each unit in `0..num_units`, with `worker` below [`Workers::count`] and one call of a
    /// worker at a time, and returns when all are done. Units should be worth some microseconds.
    fn run(&self, num_units: usize, work: &(dyn Fn(usize, usize) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Clone, Copy)]
pub struct CallerAlone;

impl Workers for CallerAlone {
    fn count(&self) -> usize {
        1
    }

    fn run(&self, num_units: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        for unit in 0..num_units {
            work(0, unit);
        }
    }
}
