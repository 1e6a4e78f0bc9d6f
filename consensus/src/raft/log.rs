//! The replicated log as the core sees it: the epochs of all entries, and the recent entries themselves.
//!
//! ```text
//!   base            cache_first                    last
//!    │ ───────── runs (epoch of every index) ────── │
//!    ·                 │ ─────── cache ───────────── │
//!    released          on disk and in memory
//!          on disk only: asked back with `Effect::Fetch`
//! ```
//! 1. `runs` covers `base.index + 1 ..= last.index` without gap, epochs strictly rising, the first ≥ `base.epoch`.
//! 2. `cache` is a suffix of the log: empty, or ending at `last`.
//! 3. What is not yet durable is in the cache; only [`Log::evict`] forgets, and its caller says up to where.

use std::collections::VecDeque;

use triune_storage::{Entry, Epoch, Index, Position, Run};

use crate::RecoverError;

/// What an entry costs in the cache beyond its payload.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 96;

#[derive(Clone, Debug)]
pub(super) struct Log {
    base: Position,
    last: Position,
    runs: VecDeque<Run>,
    cache: VecDeque<Entry>,
    cache_bytes: usize,
}

impl Log {
    pub(super) fn recover(base: Position, runs: Vec<Run>) -> Result<Self, RecoverError> {
        let mut last = base;
        let mut merged: VecDeque<Run> = VecDeque::with_capacity(runs.len());
        for run in runs {
            if run.first != last.index.next() || run.last < run.first {
                return Err(RecoverError::Inconsistent("the log's runs leave a gap"));
            }
            if run.epoch < last.epoch {
                return Err(RecoverError::Inconsistent("the log's epochs go back"));
            }
            last = Position { epoch: run.epoch, index: run.last };
            match merged.back_mut() {
                Some(back) if back.epoch == run.epoch => back.last = run.last,
                _ => merged.push_back(run),
            }
        }
        Ok(Self { base, last, runs: merged, cache: VecDeque::new(), cache_bytes: 0 })
    }

    pub(super) const fn base(&self) -> Position {
        self.base
    }

    pub(super) const fn last(&self) -> Position {
        self.last
    }

    pub(super) fn cache_first(&self) -> Index {
        Index(self.last.index.0 + 1 - self.cache.len() as u64)
    }

    #[cfg(test)]
    pub(super) const fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// The epoch of the entry at `index`, the base included; `None` outside. O(log runs), O(1) in the newest run.
    pub(super) fn epoch_at(&self, index: Index) -> Option<Epoch> {
        if index == self.base.index {
            return Some(self.base.epoch);
        }
        if index < self.base.index || index > self.last.index {
            return None;
        }
        match self.runs.back() {
            Some(run) if run.first <= index => Some(run.epoch),
            _ => {
                let at = self.runs.partition_point(|run| run.last < index);
                self.runs.get(at).map(|run| run.epoch)
            }
        }
    }

    pub(super) fn position_at(&self, index: Index) -> Option<Position> {
        self.epoch_at(index).map(|epoch| Position { epoch, index })
    }

    /// Whether the entry at this position is in the log (or is its base).
    pub(super) fn matches(&self, position: Position) -> bool {
        self.epoch_at(position.index) == Some(position.epoch)
    }

    /// The last position ≤ `index` whose epoch is ≤ `epoch`: where two logs can agree at best (etcd's hint).
    pub(super) fn last_at_most(&self, index: Index, epoch: Epoch) -> Position {
        let index = index.min(self.last.index);
        if index <= self.base.index {
            return self.base;
        }
        for run in self.runs.iter().rev() {
            if run.first <= index && run.epoch <= epoch {
                return Position { epoch: run.epoch, index: index.min(run.last) };
            }
        }
        self.base
    }

    pub(super) fn append(&mut self, entry: Entry) {
        let position = entry.position;
        assert_eq!(position.index, self.last.index.next(), "an append leaves a gap");
        assert!(position.epoch >= self.last.epoch, "an append goes back in epochs");
        match self.runs.back_mut() {
            Some(run) if run.epoch == position.epoch => run.last = position.index,
            _ => self.runs.push_back(Run { epoch: position.epoch, first: position.index, last: position.index }),
        }
        self.cache_bytes += cost(&entry);
        self.cache.push_back(entry);
        self.last = position;
    }

    /// Forgets the entries from `index` on.
    pub(super) fn truncate_from(&mut self, index: Index) {
        assert!(index > self.base.index, "a truncation reaches below the base");
        assert!(index <= self.last.index, "a truncation beyond the end");
        while self.cache.back().is_some_and(|entry| entry.position.index >= index) {
            self.cache_bytes -= self.cache.pop_back().as_ref().map_or(0, cost);
        }
        while self.runs.back().is_some_and(|run| run.first >= index) {
            self.runs.pop_back();
        }
        if let Some(run) = self.runs.back_mut() {
            run.last = run.last.min(index.prev());
        }
        self.last = self.runs.back().map_or(self.base, |run| Position { epoch: run.epoch, index: run.last });
        debug_assert_eq!(self.last.index, index.prev());
    }

    /// Forgets everything: a snapshot at `base` stands for it.
    pub(super) fn reset(&mut self, base: Position) {
        *self = Self { base, last: base, runs: VecDeque::new(), cache: VecDeque::new(), cache_bytes: 0 };
    }

    /// The log now starts after `upto`, which is in it.
    pub(super) fn release(&mut self, upto: Index) {
        let Some(base) = self.position_at(upto) else {
            unreachable!("a release beyond the log");
        };
        self.evict(upto, 0);
        self.base = base;
        while self.runs.front().is_some_and(|run| run.last <= upto) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.first = run.first.max(upto.next());
        }
    }

    /// Forgets cached entries ≤ `upto` (the caller knows them durable), oldest first, until ≤ `bytes_max` are left.
    pub(super) fn evict(&mut self, upto: Index, bytes_max: usize) {
        while self.cache_bytes > bytes_max && self.cache.front().is_some_and(|entry| entry.position.index <= upto) {
            self.cache_bytes -= self.cache.pop_front().as_ref().map_or(0, cost);
        }
    }

    /// Copies out cached entries `first ..= last`, at least one, stopping before `bytes_max` of payload are passed.
    /// `None` when `first` is not in the cache.
    pub(super) fn cached(&self, first: Index, last: Index, bytes_max: usize) -> Option<(Vec<Entry>, usize)> {
        let cache_first = self.cache_first();
        if first < cache_first || first > last || last > self.last.index {
            return None;
        }
        let skip = usize::try_from(first.0 - cache_first.0).ok()?;
        let want = usize::try_from(last.0 - first.0 + 1).ok()?;
        let (mut taken, mut bytes) = (0, 0);
        for entry in self.cache.range(skip..skip + want) {
            let more = cost(entry);
            if taken > 0 && bytes + more > bytes_max {
                break;
            }
            taken += 1;
            bytes += more;
        }
        Some((self.cache.range(skip..skip + taken).cloned().collect(), bytes))
    }

    /// Whether `entries` are what this log holds from `first` on: a late answer of the disk may not be.
    pub(super) fn confirms(&self, first: Index, entries: &[Entry]) -> bool {
        !entries.is_empty()
            && entries.iter().zip(first.0..).all(|(entry, index)| {
                entry.position.index == Index(index) && self.epoch_at(Index(index)) == Some(entry.position.epoch)
            })
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    pub(super) fn check_invariants(&self) {
        let mut last = self.base;
        for run in &self.runs {
            assert_eq!(run.first, last.index.next(), "runs leave a gap");
            assert!(run.last >= run.first, "a run is empty");
            assert!(run.epoch >= last.epoch, "epochs go back");
            last = Position { epoch: run.epoch, index: run.last };
        }
        assert_eq!(last, self.last, "the last run does not end the log");
        if let Some(back) = self.cache.back() {
            assert_eq!(back.position, self.last, "the cache is no suffix");
        }
        assert!(self.cache.len() as u64 <= self.last.index.0 - self.base.index.0, "the cache reaches below the base");
    }
}

/// What an entry counts for in windows and caches.
pub(super) fn cost(entry: &Entry) -> usize {
    entry.payload_bytes() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u64, index: u64) -> Entry {
        Entry { position: Position::new(epoch, index), ..Entry::default() }
    }

    fn log(epochs: &[u64]) -> Log {
        let mut log = Log::recover(Position::ZERO, Vec::new()).expect("an empty log");
        for (epoch, index) in epochs.iter().zip(1..) {
            log.append(entry(*epoch, index));
        }
        log.check_invariants();
        log
    }

    #[test]
    fn epochs_are_found_in_every_run_and_nowhere_else() {
        let log = log(&[1, 1, 3, 3, 3, 7]);
        let epochs: Vec<_> = (0..9).map(|i| log.epoch_at(Index(i)).map(|e| e.0)).collect();
        assert_eq!(epochs, [Some(0), Some(1), Some(1), Some(3), Some(3), Some(3), Some(7), None, None]);
    }

    #[test]
    fn truncation_cuts_runs_and_cache_together() {
        let mut log = log(&[1, 1, 3, 3, 3, 7]);
        log.truncate_from(Index(4));
        log.check_invariants();
        assert_eq!(log.last(), Position::new(3, 3));
        log.append(entry(8, 4));
        log.check_invariants();
        assert_eq!(log.cached(Index(3), Index(4), 1 << 20).map(|(e, _)| e), Some(vec![entry(3, 3), entry(8, 4)]));
    }

    #[test]
    fn the_hint_is_the_last_place_two_logs_can_agree() {
        let log = log(&[1, 1, 3, 3, 3, 7]);
        assert_eq!(log.last_at_most(Index(6), Epoch(5)), Position::new(3, 5));
        assert_eq!(log.last_at_most(Index(9), Epoch(9)), Position::new(7, 6));
        assert_eq!(log.last_at_most(Index(4), Epoch(2)), Position::new(1, 2));
        assert_eq!(log.last_at_most(Index(4), Epoch(0)), Position::ZERO);
    }

    #[test]
    fn eviction_leaves_epochs_and_release_moves_the_base() {
        let mut log = log(&[1, 1, 3, 3, 3, 7]);
        log.evict(Index(4), 0);
        log.check_invariants();
        assert_eq!((log.cache_first(), log.cache_bytes()), (Index(5), 2 * ENTRY_OVERHEAD_BYTES));
        assert_eq!(log.cached(Index(4), Index(6), 1 << 20), None);
        log.release(Index(4));
        log.check_invariants();
        assert_eq!((log.base(), log.last()), (Position::new(3, 4), Position::new(7, 6)));
        assert_eq!(log.epoch_at(Index(3)), None);
    }

    #[test]
    fn recovery_refuses_gaps_and_epochs_that_fall() {
        let run = |epoch, first, last| Run { epoch: Epoch(epoch), first: Index(first), last: Index(last) };
        assert!(Log::recover(Position::new(1, 4), vec![run(1, 5, 6), run(2, 7, 7)]).is_ok());
        assert!(Log::recover(Position::new(1, 4), vec![run(1, 6, 6)]).is_err());
        assert!(Log::recover(Position::new(1, 4), vec![run(3, 5, 6), run(2, 7, 7)]).is_err());
    }
}
