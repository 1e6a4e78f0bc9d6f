//! The leader's clock: milliseconds since 1970 that never jump.
//!
//! It advances with the member's monotonic clock and slews to the wall clock by at most a tenth of the time that
//! passed, so an operator who sets the clock bends stamps slowly and breaks no order. Stamps order nothing that safety
//! needs; they date things.

use triune_transport::Nanos;

/// A clock that follows the wall clock without jumping.
#[derive(Clone, Debug)]
pub(crate) struct LeaderClock {
    /// What it showed, in nanoseconds since 1970, at `at`.
    shown: u128,
    at: Nanos,
    /// The wall clock, and when it was read.
    wall: (u128, Nanos),
}

impl LeaderClock {
    /// A clock that shows the wall clock's time now.
    pub(crate) const fn new(now: Nanos, wall_ms: u64) -> Self {
        let wall = wall_ms as u128 * NS_PER_MS;
        Self { shown: wall, at: now, wall: (wall, now) }
    }

    /// The wall clock was read.
    pub(crate) fn wall(&mut self, now: Nanos, wall_ms: u64) {
        self.advance(now);
        self.wall = (u128::from(wall_ms) * NS_PER_MS, now);
    }

    /// The time now, in ms. Never less than before.
    pub(crate) fn now_ms(&mut self, now: Nanos) -> u64 {
        self.advance(now);
        u64::try_from(self.shown / NS_PER_MS).unwrap_or(u64::MAX)
    }

    fn advance(&mut self, now: Nanos) {
        let passed = u128::from(now.since(self.at).0);
        self.at = self.at.max(now);
        let target = self.wall.0 + u128::from(now.since(self.wall.1).0);
        let (slew_max, plain) = (passed / SLEW_DIVISOR, self.shown + passed);
        self.shown = target.clamp(plain - slew_max, plain + slew_max);
    }
}

const NS_PER_MS: u128 = 1_000_000;
/// At most a tenth of the time that passed (DESIGN: slews by ≤ 10 %).
const SLEW_DIVISOR: u128 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_set_ahead_is_followed_by_a_tenth() {
        let mut clock = LeaderClock::new(Nanos::ZERO, 1_000);
        clock.wall(Nanos::ZERO, 100_000);
        assert_eq!(clock.now_ms(Nanos::from_secs(10)), 12_000);
    }

    #[test]
    fn a_wall_clock_set_back_slows_it_and_never_turns_it() {
        let mut clock = LeaderClock::new(Nanos::ZERO, 100_000);
        clock.wall(Nanos::ZERO, 1_000);
        let mut last = clock.now_ms(Nanos::ZERO);
        for s in 1..100 {
            let shown = clock.now_ms(Nanos::from_secs(s));
            assert_eq!(shown - last, 900);
            last = shown;
        }
    }

    #[test]
    fn it_meets_the_wall_clock_and_stays_with_it() {
        let mut clock = LeaderClock::new(Nanos::ZERO, 0);
        clock.wall(Nanos::ZERO, 500);
        assert_eq!(clock.now_ms(Nanos::from_secs(5)), 5_500);
        assert_eq!(clock.now_ms(Nanos::from_secs(50)), 50_500);
        assert_eq!(clock.now_ms(Nanos::from_secs(49)), 50_500);
    }
}
