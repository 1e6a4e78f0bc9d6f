//! Seeds on several threads and within a wall-time budget. A shell: it hands out seeds and adds up results.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Plan, SeedRun, Summary};

impl Plan {
    /// Runs the seeds on `threads` threads, starting none after `budget`. Seeds are handed out in order and each one
    /// started is finished, so [`Summary::next_seed`] is where to go on. After a failure no further seed is started.
    pub fn run_on_threads<E: fmt::Display>(
        &self,
        threads: usize,
        budget: Option<Duration>,
        scenario: impl Fn(u64) -> Result<SeedRun, E> + Sync,
    ) -> Summary {
        let started = Instant::now();
        let summary = Mutex::new(Summary { next_seed: self.first_seed, ..Summary::default() });
        let take = || {
            let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
            let in_time = budget.is_none_or(|budget| started.elapsed() < budget);
            let seed = (in_time && self.goes_on(&summary)).then_some(summary.next_seed)?;
            summary.next_seed += 1;
            Some(seed)
        };
        thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some(seed) = take() {
                        let result = self.run_seed(seed, &scenario);
                        summary.lock().unwrap_or_else(PoisonError::into_inner).add(seed, result);
                    }
                });
            }
        });
        summary.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
