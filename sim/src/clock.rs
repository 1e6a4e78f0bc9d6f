//! Virtual time. One true time for the world; for each node a monotonic clock that starts elsewhere and runs a little
//! fast or slow, and a wall clock that may jump.
//!
//! 1. A node's monotonic clock never goes back, whatever is done to its drift.
//! 2. `true_time_of(now_at(t)) <= t`, and a timer set for a local deadline fires at the first true instant at which the
//!    local clock shows it: neither early nor a nanosecond late.
//! 3. A jump of the wall clock leaves the monotonic clock alone.

use triune_transport::Nanos;

/// One node's clocks, as functions of true time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The last true instant at which the drift changed.
    base_true: Nanos,
    /// What the monotonic clock showed then.
    base_local: Nanos,
    /// How much faster it runs than true time, in parts per million; negative is slower. Within ±[`DRIFT_PPM_MAX`].
    drift_ppm: i32,
    /// Wall time, in ms, at true time zero; moved by jumps.
    wall_origin_ms: i64,
}

/// The greatest drift a clock may have: 20 %, far beyond real crystals, so that drift bounds can be broken on purpose.
pub const DRIFT_PPM_MAX: i32 = 200_000;

/// Wall time at true time zero unless set otherwise: 2026-01-01T00:00:00Z, in ms.
pub const WALL_ORIGIN_MS: i64 = 1_767_225_600_000;

const MILLION: u128 = 1_000_000;

impl Default for Clock {
    fn default() -> Self {
        Self::new(Nanos::ZERO, 0)
    }
}

impl Clock {
    /// A clock that shows `skew` at true time zero and drifts by `drift_ppm` (cut to ±[`DRIFT_PPM_MAX`]).
    pub fn new(skew: Nanos, drift_ppm: i32) -> Self {
        Self {
            base_true: Nanos::ZERO,
            base_local: skew,
            drift_ppm: drift_ppm.clamp(-DRIFT_PPM_MAX, DRIFT_PPM_MAX),
            wall_origin_ms: WALL_ORIGIN_MS,
        }
    }

    /// What the monotonic clock shows at true time `t`. An instant before the last change of drift counts as that one.
    pub fn now_at(&self, t: Nanos) -> Nanos {
        let elapsed = u128::from(t.since(self.base_true).0);
        let local = elapsed * self.rate() / MILLION;
        self.base_local.after(Nanos(u64::try_from(local).unwrap_or(u64::MAX)))
    }

    /// The first true instant at which the monotonic clock shows at least `local`: when a timer fires.
    pub fn true_time_of(&self, local: Nanos) -> Nanos {
        if local == Nanos::MAX {
            return Nanos::MAX;
        }
        let span = u128::from(local.since(self.base_local).0);
        let elapsed = (span * MILLION).div_ceil(self.rate());
        self.base_true.after(Nanos(u64::try_from(elapsed).unwrap_or(u64::MAX)))
    }

    /// Changes the drift from true time `t` on. Timers must be set anew with [`Clock::true_time_of`].
    pub fn set_drift(&mut self, t: Nanos, drift_ppm: i32) {
        let local = self.now_at(t);
        *self = Self {
            base_true: t,
            base_local: local,
            drift_ppm: drift_ppm.clamp(-DRIFT_PPM_MAX, DRIFT_PPM_MAX),
            wall_origin_ms: self.wall_origin_ms,
        };
        debug_assert_eq!(self.now_at(t), local);
    }

    /// The drift in force, in parts per million.
    pub const fn drift_ppm(&self) -> i32 {
        self.drift_ppm
    }

    /// Wall time in ms since 1970 at true time `t`.
    pub fn wall_ms_at(&self, t: Nanos) -> i64 {
        self.wall_origin_ms.saturating_add(i64::try_from(t.as_millis()).unwrap_or(i64::MAX))
    }

    /// Moves the wall clock by `ms`, back if negative.
    pub fn jump_wall(&mut self, ms: i64) {
        self.wall_origin_ms = self.wall_origin_ms.saturating_add(ms);
    }

    fn rate(&self) -> u128 {
        // Within 0.8 and 1.2 million by the clamp: never zero.
        (1_000_000 + i64::from(self.drift_ppm)).unsigned_abs().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn timers_fire_at_the_first_instant_that_shows_the_deadline() {
        let mut rng = Rng::new(5);
        for _ in 0..10_000 {
            let drift = rng.range(0, 400_000) as i32 - 200_000;
            let clock = Clock::new(Nanos(rng.below(1 << 40)), drift);
            let deadline = clock.now_at(Nanos(rng.below(1 << 40)));
            let fires = clock.true_time_of(deadline);
            assert!(clock.now_at(fires) >= deadline, "{clock:?} fires early");
            if fires > Nanos::ZERO {
                assert!(clock.now_at(Nanos(fires.0 - 1)) < deadline, "{clock:?} fires late");
            }
        }
        assert_eq!(Clock::default().true_time_of(Nanos::MAX), Nanos::MAX);
    }

    #[test]
    fn a_change_of_drift_never_turns_the_clock_back() {
        let mut rng = Rng::new(6);
        let mut clock = Clock::new(Nanos::from_secs(3), 500);
        let (mut t, mut last) = (Nanos::ZERO, clock.now_at(Nanos::ZERO));
        for _ in 0..10_000 {
            t = t.after(rng.span(Nanos::ZERO, Nanos::from_millis(50)));
            if rng.coin() {
                clock.set_drift(t, rng.range(0, 400_000) as i32 - 200_000);
            }
            let now = clock.now_at(t);
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn a_wall_jump_leaves_the_monotonic_clock_alone() {
        let mut clock = Clock::new(Nanos::ZERO, 0);
        let (t, before) = (Nanos::from_secs(9), clock.now_at(Nanos::from_secs(9)));
        clock.jump_wall(-3_600_000);
        assert_eq!(clock.now_at(t), before);
        assert_eq!(clock.wall_ms_at(t), WALL_ORIGIN_MS + 9_000 - 3_600_000);
    }
}
