//! The one source of randomness: xoshiro256** seeded by splitmix64, with helpers that use integers only.
//!
//! A printed seed must replay years later and on any machine, so nothing here depends on a library, on the width of
//! `usize`, or on floating point: even the exponential distribution is drawn by comparing integers.
//!
//! 1. The sequence of a seed never changes. The test `the_sequence_is_stable_forever` pins it.
//! 2. [`Rng::fork`] gives independent streams by label, so that adding a draw to one part of a simulation does not
//!    shift the draws of another.
//!
//! Source: Blackman and Vigna, "Scrambled linear pseudorandom number generators" (2019); von Neumann, "Various
//! techniques used in connection with random digits" (1951) for the exponential.

use std::fmt;

use triune_transport::Nanos;

/// A probability in parts per million: 0 is never, 1,000,000 (and more) is always.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ppm(pub u32);

impl Ppm {
    /// Never.
    pub const NEVER: Self = Self(0);
    /// Always.
    pub const ALWAYS: Self = Self(1_000_000);

    /// `n` percent.
    pub const fn percent(n: u32) -> Self {
        Self(n.saturating_mul(10_000))
    }

    /// Whether it can happen at all.
    pub const fn is_on(self) -> bool {
        self.0 > 0
    }
}

impl fmt::Debug for Ppm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ppm", self.0)
    }
}

/// A seeded generator. Cloning it clones its future.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator of `seed`. Every seed is a good one, 0 included.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        let state = std::array::from_fn(|_| splitmix64(&mut x));
        // splitmix64 is a bijection over a counter: four zeros in a row cannot occur.
        debug_assert_ne!(state, [0; 4]);
        Self { state }
    }

    /// An independent generator for the part of the simulation called `label`. Draws nothing from `self`.
    #[must_use]
    pub fn fork(&self, label: &str) -> Self {
        let [a, b, c, d] = self.state;
        let mut x = a ^ b.rotate_left(17) ^ c.rotate_left(31) ^ d.rotate_left(47);
        for byte in label.bytes() {
            x = (x ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            x ^= x >> 29;
        }
        Self::new(x)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [mut s0, mut s1, mut s2, mut s3] = self.state;
        let result = s1.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s1 << 17;
        s2 ^= s0;
        s3 ^= s1;
        s1 ^= s2;
        s0 ^= s3;
        s2 ^= t;
        s3 = s3.rotate_left(45);
        self.state = [s0, s1, s2, s3];
        result
    }

    /// A number below `bound`, each as likely (Lemire's multiplication with rejection). 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            if (wide as u64) >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// A number in `low ..= high`; `low` when the range is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        if high <= low {
            return low;
        }
        match (high - low).checked_add(1) {
            Some(span) => low + self.below(span),
            None => self.next_u64(),
        }
    }

    /// A span in `low ..= high`.
    pub fn span(&mut self, low: Nanos, high: Nanos) -> Nanos {
        Nanos(self.range(low.0, high.0))
    }

    /// True with probability `p`. Draws nothing when `p` is 0 or certain, so a fault class that is off costs nothing.
    pub fn chance(&mut self, p: Ppm) -> bool {
        match p {
            Ppm(0) => false,
            p if p >= Ppm::ALWAYS => true,
            Ppm(p) => self.below(1_000_000) < u64::from(p),
        }
    }

    /// True half of the time.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// An index below `len`; `None` when there is none.
    pub fn index(&mut self, len: usize) -> Option<usize> {
        if len == 0 {
            return None;
        }
        Some(self.below(len as u64) as usize)
    }

    /// One of `items`, each as likely; `None` when there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let i = self.index(items.len())?;
        items.get(i)
    }

    /// Puts `items` in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }

    /// An exponentially distributed span with this mean: the gap between events that have no memory.
    ///
    /// Von Neumann's method: compare uniforms, never take a logarithm, so the result is the same on every machine.
    /// Cut at 64 × `mean`.
    pub fn exponential(&mut self, mean: Nanos) -> Nanos {
        let mut whole: u64 = 0;
        while whole < 64 {
            let first = self.next_u64();
            let (mut last, mut drawn) = (first, 1_u64);
            loop {
                let next = self.next_u64();
                drawn += 1;
                if next > last {
                    break;
                }
                last = next;
            }
            if drawn % 2 == 0 {
                let part = (u128::from(mean.0) * u128::from(first)) >> 64;
                return Nanos(mean.0.saturating_mul(whole).saturating_add(part as u64));
            }
            whole += 1;
        }
        Nanos(mean.0.saturating_mul(64))
    }
}

/// One output of splitmix64, and the step of its counter.
pub(crate) fn splitmix64(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix64(*x)
}

/// Stafford's variant 13 of the 64-bit finaliser: a bijection that spreads every bit.
pub(crate) const fn mix64(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_stable_forever() {
        // splitmix64(0) is published; xoshiro's first outputs follow from it.
        let mut x = 0;
        assert_eq!(splitmix64(&mut x), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(&mut x), 0x6e78_9e6a_a1b9_65f4);
        let mut rng = Rng::new(0);
        assert_eq!([rng.next_u64(), rng.next_u64()], [0x99ec_5f36_cb75_f2b4, 0xbf6e_1f78_4956_452a]);
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut rng = Rng::new(7);
        let mut seen = [0_u32; 10];
        for _ in 0..100_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
        assert_eq!((rng.below(0), rng.below(1), rng.range(5, 5), rng.range(9, 3)), (0, 0, 5, 9));
        let _ = rng.range(0, u64::MAX);
    }

    #[test]
    fn the_exponential_has_its_mean_and_its_tail() {
        let mut rng = Rng::new(3);
        let draws: Vec<u64> = (0..100_000).map(|_| rng.exponential(Nanos(1_000_000)).0).collect();
        let mean = draws.iter().sum::<u64>() / draws.len() as u64;
        assert!((985_000..1_015_000).contains(&mean), "mean {mean}");
        // P(x > 2 means) = e^-2 = 0.1353
        let beyond = draws.iter().filter(|x| **x > 2_000_000).count();
        assert!((13_000..14_100).contains(&beyond), "beyond two means {beyond}");
    }

    #[test]
    fn forks_are_independent_and_draw_nothing() {
        let rng = Rng::new(1);
        let (mut a, mut b) = (rng.fork("disk"), rng.fork("net"));
        assert_ne!(a.next_u64(), b.next_u64());
        assert_eq!(rng, Rng::new(1));
        assert_eq!(rng.fork("disk").next_u64(), Rng::new(1).fork("disk").next_u64());
    }

    #[test]
    fn a_class_that_is_off_draws_nothing() {
        let mut rng = Rng::new(9);
        assert!(!rng.chance(Ppm::NEVER));
        assert!(rng.chance(Ppm::ALWAYS));
        assert_eq!(rng, Rng::new(9));
        let hits = (0..100_000).filter(|_| rng.chance(Ppm::percent(10))).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
    }

    #[test]
    fn shuffle_keeps_the_items() {
        let mut items: Vec<u32> = (0..50).collect();
        Rng::new(2).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        assert_eq!(Rng::new(2).pick::<u8>(&[]), None);
    }
}
