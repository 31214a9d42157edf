//! Matrices read and decoded on threads of their own while those before them are packed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::spec::TensorSpec;
use crate::weights::{CheckpointError, Matrix, TensorSource};

/// Threads that read. Packing has threads of its own; decoding is what keeps these busy.
const READERS: usize = 2;
/// Groups of matrices that may be in memory before they are asked for.
const AHEAD: usize = 2;

/// Groups of matrices on their way from files to the backend.
pub(crate) struct ReadAhead<'a> {
    source: &'a dyn TensorSource,
    groups: &'a [&'a [TensorSpec]],
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Of each group.
    slots: Vec<Slot>,
    /// Nothing will be asked for any more.
    finished: bool,
}

enum Slot {
    Waiting,
    Reading,
    Read(Result<Vec<Matrix>, CheckpointError>),
    Taken,
}

/// Runs `work` while the matrices of `groups` are read in that order, [`AHEAD`] groups before they are asked for.
pub(crate) fn reading_ahead<R>(
    source: &dyn TensorSource,
    groups: &[&[TensorSpec]],
    work: impl FnOnce(&ReadAhead<'_>) -> R,
) -> R {
    let slots = groups.iter().map(|_| Slot::Waiting).collect();
    let state = Mutex::new(State { slots, finished: false });
    let ahead = ReadAhead { source, groups, state, changed: Condvar::new() };
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| ahead.read_on());
        }
        let finish = OnDrop(|| ahead.change(|state| state.finished = true));
        let result = work(&ahead);
        drop(finish);
        result
    })
}

impl ReadAhead<'_> {
    /// The matrices of `parts`: those read ahead, or read now where no thread has begun with them.
    pub(crate) fn matrices(&self, parts: &[TensorSpec]) -> Result<Vec<Matrix>, CheckpointError> {
        let Some(index) = self.groups.iter().position(|group| std::ptr::eq(*group, parts)) else {
            return self.read(parts);
        };
        let mut state = self.lock();
        loop {
            match std::mem::replace(&mut state.slots[index], Slot::Taken) {
                Slot::Read(matrices) => {
                    self.changed.notify_all();
                    return matrices;
                }
                Slot::Reading => {
                    state.slots[index] = Slot::Reading;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Slot::Waiting | Slot::Taken => {
                    drop(state);
                    return self.read(parts);
                }
            }
        }
    }

    /// What a reading thread does.
    fn read_on(&self) {
        let mut state = self.lock();
        while !state.finished {
            let held = state.slots.iter().filter(|slot| matches!(slot, Slot::Reading | Slot::Read(_))).count();
            match state.slots.iter().position(|slot| matches!(slot, Slot::Waiting)) {
                None => return,
                Some(index) if held < AHEAD => {
                    state.slots[index] = Slot::Reading;
                    drop(state);
                    // Should reading panic, whoever asks for these matrices shall read them, and meet the panic.
                    let give_up = OnDrop(|| self.change(|state| state.slots[index] = Slot::Waiting));
                    let matrices = self.read(self.groups[index]);
                    std::mem::forget(give_up);
                    self.change(|state| state.slots[index] = Slot::Read(matrices));
                    state = self.lock();
                }
                Some(_) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn read(&self, parts: &[TensorSpec]) -> Result<Vec<Matrix>, CheckpointError> {
        parts.iter().map(|part| self.source.matrix(part)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something when it goes, however that happens.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use pelton_backend::DType;

    use super::*;
    use crate::spec::Stored;
    use crate::weights::Tensor;

    /// Tensors of one number, their own; counts how many were read.
    #[derive(Default)]
    struct Numbers {
        read: AtomicUsize,
    }

    impl TensorSource for Numbers {
        fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
            self.read.fetch_add(1, Ordering::SeqCst);
            let number: f32 = wanted.name.parse().map_err(|_| CheckpointError::NoWeights)?;
            Ok(Tensor::made(DType::F32, vec![1], number.to_le_bytes().to_vec()))
        }
    }

    fn groups(names: &[&str]) -> Vec<Vec<TensorSpec>> {
        let spec = |name: &str| TensorSpec { name: name.to_owned(), shape: vec![1], stored: Stored::AsIs };
        names.iter().map(|name| vec![spec(name), spec(name)]).collect()
    }

    fn numbers(matrices: Vec<Matrix>) -> Vec<f32> {
        matrices.into_iter().map(|matrix| matrix.decoded().host().to_f32()[0]).collect()
    }

    #[test]
    fn matrices_come_in_any_order_each_once() {
        let names: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        let groups = groups(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let list: Vec<&[TensorSpec]> = groups.iter().map(Vec::as_slice).collect();
        let source = Numbers::default();
        reading_ahead(&source, &list, |ahead| {
            for index in (0..40).step_by(2).chain((1..40).step_by(2).rev()) {
                assert_eq!(numbers(ahead.matrices(list[index]).unwrap()), [index as f32; 2]);
            }
            // Not in the list, or asked for again: read when they are.
            assert_eq!(numbers(ahead.matrices(&list[3][..1]).unwrap()), [3.0]);
            assert_eq!(numbers(ahead.matrices(list[3]).unwrap()), [3.0; 2]);
        });
        assert_eq!(source.read.load(Ordering::SeqCst), 2 * 40 + 3);
    }

    #[test]
    fn no_more_is_read_ahead_than_shall_be_held() {
        let groups = groups(&["1", "2", "3", "4", "5", "6"]);
        let list: Vec<&[TensorSpec]> = groups.iter().map(Vec::as_slice).collect();
        let source = Numbers::default();
        reading_ahead(&source, &list, |ahead| {
            for (taken, group) in list.iter().enumerate() {
                ahead.matrices(group).unwrap();
                assert!(source.read.load(Ordering::SeqCst) <= 2 * (taken + 1 + AHEAD));
            }
        });
        // Work that stops early leaves the rest unread.
        let source = Numbers::default();
        reading_ahead(&source, &list, |_| ());
        assert!(source.read.load(Ordering::SeqCst) <= 2 * AHEAD);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_where_it_is_asked_for() {
        let groups = groups(&["1", "x", "3"]);
        let list: Vec<&[TensorSpec]> = groups.iter().map(Vec::as_slice).collect();
        reading_ahead(&Numbers::default(), &list, |ahead| {
            assert!(ahead.matrices(list[0]).is_ok());
            assert!(matches!(ahead.matrices(list[1]), Err(CheckpointError::NoWeights)));
            assert!(ahead.matrices(list[2]).is_ok());
        });
    }
}
