//! What is known of a measurement while it goes on.

use pelton_bench::batches::{BatchSight, BatchTimes, Batches, Figures, Quantity};

/// A [`BatchSight`] on its way between threads.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Preparing(String),
    Begins(usize),
    Warmed,
    Ran(BatchTimes),
    Failed(String),
    /// Nothing more is measured; what went wrong, if anything.
    Over(Option<String>),
}

impl Told {
    pub fn of(sight: BatchSight<'_>) -> Self {
        match sight {
            BatchSight::Preparing(what) => Told::Preparing(what.to_owned()),
            BatchSight::Begins { batch } => Told::Begins(batch),
            BatchSight::Warmed => Told::Warmed,
            BatchSight::Ran(times) => Told::Ran(*times),
            BatchSight::Failed { reason, .. } => Told::Failed(reason.to_owned()),
        }
    }
}

/// Everything that is drawn, but the viewer's choices.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub batches: Batches,
    runs: Vec<BatchTimes>,
    /// Index of the size that is measured, from its beginning on.
    current: Option<usize>,
    /// Runs of the current size that are over, warm-ups and failures too.
    num_over: u32,
    pub preparing: Option<String>,
    /// The last message of a run that failed.
    pub failure: Option<String>,
    is_over: bool,
}

impl State {
    pub fn new(batches: Batches) -> Self {
        Self { batches, runs: Vec::new(), current: None, num_over: 0, preparing: None, failure: None, is_over: false }
    }

    pub fn take(&mut self, told: Told) {
        match told {
            Told::Preparing(what) => self.preparing = Some(what),
            Told::Begins(size) => {
                self.preparing = None;
                self.num_over = 0;
                self.current = self.batches.sizes.iter().position(|&asked| asked == size);
            }
            Told::Warmed => self.num_over += 1,
            Told::Ran(times) => {
                self.num_over += 1;
                self.runs.push(times);
            }
            Told::Failed(message) => {
                self.num_over += 1;
                self.failure = Some(message);
            }
            Told::Over(failure) => {
                self.is_over = true;
                self.preparing = None;
                self.failure = failure.or(self.failure.take());
            }
        }
    }

    /// Index of the size that is measured, or was last.
    pub fn current(&self) -> usize {
        self.current.unwrap_or(0)
    }

    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Runs of this size that count, in order.
    pub fn runs(&self, size: usize) -> impl Iterator<Item = &BatchTimes> {
        self.runs.iter().filter(move |times| times.batch == size)
    }

    pub fn figures(&self, quantity: Quantity, size: usize) -> Option<Figures> {
        quantity.figures(&self.batches, &self.runs, size)
    }

    /// Averages of both quantities for each size that has them.
    pub fn averages(&self, quantities: [Quantity; 2]) -> Vec<(usize, (f64, f64))> {
        let average = |quantity, size| self.figures(quantity, size).map(|figures| figures.average);
        let point = |&size| Some((size, (average(quantities[0], size)?, average(quantities[1], size)?)));
        self.batches.sizes.iter().filter_map(point).collect()
    }

    /// Share of the current size's runs that are over.
    pub fn batch_progress(&self) -> f64 {
        let of = f64::from(self.batches.runs + self.batches.warmups);
        if of > 0.0 { (f64::from(self.num_over) / of).min(1.0) } else { 0.0 }
    }

    /// Share of all runs that are over.
    pub fn total_progress(&self) -> f64 {
        match self.current {
            Some(index) => (index as f64 + self.batch_progress()) / self.batches.sizes.len().max(1) as f64,
            None => 0.0,
        }
    }
}

#[cfg(test)]
pub(super) mod sample {
    use pelton_bench::batches::BatchSampling;

    use super::*;

    /// One size is over, the next has two runs of four, the third is to come.
    pub fn measured() -> State {
        let mut state = State::new(Batches {
            model: "bigcode/starcoder".into(),
            sizes: vec![1, 2, 4],
            sequence_length: 10,
            decode_length: 8,
            runs: 4,
            warmups: 1,
            sampling: BatchSampling::default(),
        });
        let ran = |batch, prefill_ms, decode_ms| Told::Ran(BatchTimes { batch, prefill_ms, decode_ms });
        state.take(Told::Begins(1));
        state.take(Told::Warmed);
        (0..4).for_each(|n| state.take(ran(1, 10.0 + f64::from(n), 70.0)));
        state.take(Told::Begins(2));
        state.take(Told::Warmed);
        [16.0, 20.0].into_iter().for_each(|prefill_ms| state.take(ran(2, prefill_ms, 91.0)));
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_every_run_once() {
        let mut state = sample::measured();
        assert_eq!((state.current(), state.batch_progress()), (1, 0.6));
        assert!((state.total_progress() - (1.0 + 0.6) / 3.0).abs() < 1e-9);
        state.take(Told::Failed("status 500".into()));
        assert_eq!((state.batch_progress(), state.failure.as_deref()), (0.8, Some("status 500")));
        assert_eq!(state.runs(2).count(), 2, "a failed run is no measurement");
    }

    #[test]
    fn each_size_has_a_point() {
        let points = sample::measured().averages([Quantity::PrefillLatency, Quantity::PrefillThroughput]);
        assert_eq!(points.len(), 2);
        assert_eq!(points[1], (2, (18.0, (1250.0 + 1000.0) / 2.0)));
    }
}
