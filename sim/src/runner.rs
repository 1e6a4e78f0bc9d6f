//! Many seeds, one after the other: stops at the first that fails and says how to replay it.
//!
//! 1. A seed's result depends on the seed alone; running seeds 0..100 in one go, in slices, or on two threads gives the
//!    same summary.
//! 2. A panic inside a seed is that seed's failure, not the run's.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::rng::mix64;
use crate::{Counters, TraceHash};

/// Which seeds to run and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first seed.
    pub first_seed: u64,
    /// How many seeds at most.
    pub seeds: u64,
    /// Start no further seed once this many steps were made. 0 is no limit.
    pub steps_max: u64,
    /// The one command that replays a seed, with `{seed}` where its number goes.
    pub replay: String,
}

/// What one seed that held did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedRun {
    /// Inputs given to machines, invariants checked after each.
    pub steps: u64,
    /// Faults injected.
    pub faults: u64,
    /// The fingerprint of everything that happened.
    pub hash: TraceHash,
    /// What was seen.
    pub counters: Counters,
}

/// A seed that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {message}\nreplay: {replay}")]
pub struct SeedFailure {
    /// The seed.
    pub seed: u64,
    /// What was violated.
    pub message: String,
    /// The one command that shows it again.
    pub replay: String,
}

/// What a run of many seeds came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Seeds that held.
    pub seeds: u64,
    /// Their steps.
    pub steps: u64,
    /// Their faults.
    pub faults: u64,
    /// What they saw.
    pub counters: Counters,
    /// The fingerprint of all of them, whatever their order.
    pub hash: TraceHash,
    /// Where the next slice begins: every seed before it was run.
    pub next_seed: u64,
    /// The lowest seed found that failed.
    pub failure: Option<SeedFailure>,
}

impl Plan {
    /// Runs the seeds in order on this thread.
    pub fn run<E: fmt::Display>(&self, scenario: impl Fn(u64) -> Result<SeedRun, E>) -> Summary {
        let mut summary = Summary { next_seed: self.first_seed, ..Summary::default() };
        while self.goes_on(&summary) {
            let seed = summary.next_seed;
            summary.next_seed += 1;
            summary.add(seed, self.run_seed(seed, &scenario));
        }
        summary
    }

    /// Runs one seed; a panic becomes its failure.
    pub(crate) fn run_seed<E: fmt::Display>(
        &self,
        seed: u64,
        scenario: &impl Fn(u64) -> Result<SeedRun, E>,
    ) -> Result<SeedRun, SeedFailure> {
        // The scenario builds its world from the seed and drops it: nothing half-changed is seen after a panic.
        let message = match catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            Ok(Ok(run)) => return Ok(run),
            Ok(Err(error)) => error.to_string(),
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
                format!("panicked: {}", text.unwrap_or("without words"))
            }
        };
        Err(SeedFailure { seed, message, replay: self.replay.replace("{seed}", &seed.to_string()) })
    }

    pub(crate) fn goes_on(&self, summary: &Summary) -> bool {
        let end = self.first_seed.saturating_add(self.seeds);
        let steps_left = self.steps_max == 0 || summary.steps < self.steps_max;
        summary.failure.is_none() && summary.next_seed < end && steps_left
    }
}

impl Summary {
    pub(crate) fn add(&mut self, seed: u64, result: Result<SeedRun, SeedFailure>) {
        match result {
            Ok(run) => {
                self.seeds += 1;
                self.steps += run.steps;
                self.faults += run.faults;
                self.counters.merge(&run.counters);
                // A sum, so that the order of the seeds does not matter; each bound to its seed.
                let high = mix64(seed ^ (run.hash.0 >> 64) as u64);
                let low = mix64(seed ^ run.hash.0 as u64);
                self.hash.0 = self.hash.0.wrapping_add(u128::from(high) << 64 | u128::from(low));
            }
            Err(failure) => {
                if self.failure.as_ref().is_none_or(|known| failure.seed < known.seed) {
                    self.failure = Some(failure);
                }
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds held, {} steps, {} faults, next seed {}, trace {}",
            self.seeds, self.steps, self.faults, self.next_seed, self.hash
        )?;
        write!(f, "{}", self.counters)?;
        match &self.failure {
            Some(failure) => write!(f, "\nFAILED {failure}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn plan(first_seed: u64, seeds: u64) -> Plan {
        Plan { first_seed, seeds, steps_max: 0, replay: "triune sim --seed {seed}".into() }
    }

    fn scenario(seed: u64) -> Result<SeedRun, String> {
        if seed == 40 {
            return Err("two leaders in term 3".into());
        }
        assert_ne!(seed, 60, "an invariant");
        let mut counters = Counters::new();
        counters.add("even", u64::from(seed.is_multiple_of(2)));
        let hash = TraceHash(Rng::new(seed).next_u64().into());
        Ok(SeedRun { steps: 10, faults: 1, hash, counters })
    }

    #[test]
    fn slices_and_threads_come_to_what_one_go_does() {
        let whole = plan(0, 40).run(scenario);
        let (mut a, b) = (plan(0, 15).run(scenario), plan(15, 25).run(scenario));
        assert_eq!(a.next_seed, 15);
        a.counters.merge(&b.counters);
        assert_eq!(a.hash.0.wrapping_add(b.hash.0), whole.hash.0);
        assert_eq!((a.counters, whole.seeds, whole.steps), (whole.counters.clone(), 40, 400));
        assert_eq!(plan(0, 40).run_on_threads(2, None, scenario), whole);
    }

    #[test]
    fn the_first_failure_stops_and_says_how_to_replay_it() {
        let summary = plan(30, 100).run(scenario);
        let failure = summary.failure.clone().unwrap();
        assert_eq!((summary.seeds, failure.seed), (10, 40));
        assert!(summary.to_string().ends_with("FAILED seed 40: two leaders in term 3\nreplay: triune sim --seed 40"));
        let panicked = plan(60, 1).run_on_threads(2, None, scenario).failure.unwrap();
        assert!(panicked.message.starts_with("panicked: ") && panicked.message.contains("an invariant"));
    }

    #[test]
    fn a_step_budget_ends_the_slice() {
        let summary = Plan { steps_max: 95, ..plan(0, 40) }.run(scenario);
        assert_eq!((summary.seeds, summary.next_seed), (10, 10));
    }

    #[test]
    fn a_time_budget_of_nothing_runs_nothing() {
        let none = plan(0, 40).run_on_threads(1, Some(std::time::Duration::ZERO), scenario);
        assert_eq!((none.seeds, none.next_seed), (0, 0));
    }
}
