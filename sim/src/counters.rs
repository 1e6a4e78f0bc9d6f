//! `sometimes` counters: proof that a simulation went where the bugs live.
//!
//! A run that never changed its leader has tested nothing about leader changes, however green it is. Counters are
//! merged over seeds; a name that was required and stayed zero fails the run.

use std::collections::BTreeMap;
use std::fmt;

/// How often each interesting thing happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    counts: BTreeMap<&'static str, u64>,
}

/// Names that had to happen and did not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("never happened: {}", .0.join(", "))]
pub struct NeverHappened(pub Vec<&'static str>);

impl Counters {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `name` once.
    pub fn hit(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts `name` `n` times. Adding 0 makes the name known, so it shows as zero.
    pub fn add(&mut self, name: &'static str, n: u64) {
        let count = self.counts.entry(name).or_insert(0);
        *count = count.saturating_add(n);
    }

    /// How often `name` happened.
    pub fn of(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (name, n) in &other.counts {
            self.add(name, *n);
        }
    }

    /// Every name with its count, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().map(|(name, n)| (*name, *n))
    }

    /// Checks that each of `names` happened.
    ///
    /// # Errors
    /// Names those that did not: run more seeds, or find out why the world cannot get there.
    pub fn require(&self, names: &[&'static str]) -> Result<(), NeverHappened> {
        let missing: Vec<_> = names.iter().copied().filter(|name| self.of(name) == 0).collect();
        if missing.is_empty() { Ok(()) } else { Err(NeverHappened(missing)) }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, n)) in self.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{name}={n}")?;
        }
        Ok(())
    }
}

/// Counts that something happened: `sometimes!(counters, "leader_changed")`, or only if a condition holds:
/// `sometimes!(counters, "log_truncated", removed > 0)`. The name is made known either way.
#[macro_export]
macro_rules! sometimes {
    ($counters:expr, $name:literal) => {
        $counters.hit($name)
    };
    ($counters:expr, $name:literal, $condition:expr) => {
        $counters.add($name, u64::from($condition))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_required_name_that_never_happened_is_told() {
        let (mut a, mut b) = (Counters::new(), Counters::new());
        sometimes!(a, "leader_changed");
        sometimes!(a, "torn", false);
        sometimes!(b, "leader_changed", true);
        a.merge(&b);
        assert_eq!(a.to_string(), "leader_changed=2 torn=0");
        assert_eq!(a.require(&["leader_changed"]), Ok(()));
        assert_eq!(a.require(&["leader_changed", "torn", "faulty"]), Err(NeverHappened(vec!["torn", "faulty"])));
    }
}
