//! The newest changes, in memory, in order: those not on disk yet, and behind them a bounded cache of those that are.
//!
//! ```text
//!        ◀─ cached, evictable ─▶◀─ in flight ─▶◀─ pending ─▶
//!  disk  │ ………………………………………… │
//!  front └──────────────────────┴──────────────┴────────────┘ back
//! ```
//!
//! Invariants: revisions ascend from front to back; nothing in flight or pending is ever evicted.

use std::collections::VecDeque;

use super::op::{KeyValue, Revision};
use super::outcome::{Event, EventKind};
use super::revision::Rev;

/// One change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) rev: Rev,
    pub(crate) kind: EventKind,
    /// In a deletion: the key and the revision alone.
    pub(crate) kv: KeyValue,
}

impl Change {
    pub(crate) fn event(&self) -> Event {
        Event { kind: self.kind, kv: self.kv.clone(), prev_kv: None }
    }

    fn cost(&self) -> usize {
        size_of::<Self>() + self.kv.key.len() + self.kv.value.len()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tail {
    changes: VecDeque<Change>,
    cached: usize,
    in_flight: usize,
    /// Of the cached ones.
    cached_bytes: usize,
}

impl Tail {
    pub(crate) fn push(&mut self, change: Change) {
        assert!(self.changes.back().is_none_or(|last| last.rev < change.rev), "history only grows at its end");
        self.changes.push_back(change);
    }

    pub(crate) fn get(&self, rev: Rev) -> Option<&Change> {
        let at = self.changes.binary_search_by_key(&rev, |change| change.rev).ok()?;
        self.changes.get(at)
    }

    /// The changes with `main ≥ revision`, ascending.
    pub(crate) fn since(&self, revision: Revision) -> impl Iterator<Item = &Change> {
        let at = self.changes.partition_point(|change| change.rev.main < revision);
        self.changes.range(at..)
    }

    /// The oldest change here: everything before it is on disk alone.
    pub(crate) fn first(&self) -> Option<Rev> {
        self.changes.front().map(|change| change.rev)
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.changes.len() > self.cached + self.in_flight
    }

    /// Moves what is pending into flight.
    pub(crate) fn depart(&mut self) -> impl Iterator<Item = &Change> {
        assert_eq!(self.in_flight, 0, "one flush at a time");
        self.in_flight = self.changes.len() - self.cached;
        self.changes.range(self.cached..)
    }

    /// What was in flight is on disk: evictable from now on.
    pub(crate) fn arrive(&mut self, cache_bytes_max: usize) {
        let landed = self.changes.range(self.cached..self.cached + self.in_flight);
        self.cached_bytes += landed.map(Change::cost).sum::<usize>();
        self.cached += std::mem::take(&mut self.in_flight);
        while self.cached_bytes > cache_bytes_max
            && self.cached > 0
            && let Some(evicted) = self.changes.pop_front()
        {
            self.cached_bytes -= evicted.cost();
            self.cached -= 1;
        }
    }
}
