//! The log's index in memory: for each stream, where every live entry lies. 20 bytes an entry, plus one run an epoch.
//!
//! ```text
//! base                                           last
//!  ├──────────────┼──────────────────────────────┤
//!  released       slots[0] … slots[n-1]            n = last - base
//! ```
//!
//! 1. `slots[i]` is entry `base + 1 + i`.
//! 2. Segments never fall along `slots` (holes aside), so the first one tells
//!    which segments a stream still needs.
//! 3. `runs` covers exactly the slots that are no holes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::format::Salt;
use super::types::Hole;
use crate::{DiskFile, Epoch, Index, Position, Run, StreamId};

/// An open segment file. Whoever holds an `Arc` of it keeps it from being reused.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) seq: u64,
    pub(super) path: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) size: u64,
    pub(super) salt: Salt,
}

/// Where an entry's record and payload lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) segment: u32,
    pub(super) record: u32,
    pub(super) data: u32,
    pub(super) len: u32,
    pub(super) sections: u16,
}

impl Slot {
    pub(super) const HOLE: Self = Self { segment: u32::MAX, record: 0, data: 0, len: 0, sections: 0 };

    pub(super) fn is_hole(&self) -> bool {
        self.segment == u32::MAX
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct StreamLog {
    pub(super) base: Position,
    slots: VecDeque<Slot>,
    runs: VecDeque<Run>,
}

impl StreamLog {
    pub(super) fn last_index(&self) -> Index {
        Index(self.base.index.0 + self.slots.len() as u64)
    }

    /// The last entry's position; its epoch is the last known one if it is a hole.
    pub(super) fn last(&self) -> Position {
        let epoch = self.runs.back().map_or(self.base.epoch, |run| run.epoch);
        Position { epoch, index: self.last_index() }
    }

    pub(super) fn slot(&self, index: Index) -> Option<&Slot> {
        let i = index.0.checked_sub(self.base.index.0 + 1)?;
        self.slots.get(usize::try_from(i).ok()?)
    }

    pub(super) fn slots_from(&self, index: Index) -> impl Iterator<Item = &Slot> {
        let skip = index.0.saturating_sub(self.base.index.0 + 1);
        self.slots.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn push(&mut self, epoch: Epoch, slot: Slot) {
        let index = self.last_index().next();
        self.slots.push_back(slot);
        match self.runs.back_mut() {
            Some(run) if run.epoch == epoch && run.last.next() == index => run.last = index,
            _ => self.runs.push_back(Run { epoch, first: index, last: index }),
        }
    }

    /// Marks everything behind the last entry up to `upto` as existing and lost.
    pub(super) fn push_holes(&mut self, upto: Index) {
        let n = upto.0.saturating_sub(self.last_index().0);
        self.slots.extend((0..n).map(|_| Slot::HOLE));
    }

    pub(super) fn truncate_from(&mut self, index: Index) {
        let keep = index.0.saturating_sub(self.base.index.0 + 1);
        self.slots.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        while let Some(run) = self.runs.back_mut() {
            if run.last < index {
                break;
            }
            if run.first < index {
                run.last = index.prev();
                break;
            }
            self.runs.pop_back();
        }
    }

    pub(super) fn reset(&mut self, base: Position) {
        self.base = base;
        self.slots.clear();
        self.runs.clear();
    }

    /// Moves the base up; all up to it is forgotten.
    pub(super) fn release(&mut self, base: Position) {
        if base.index <= self.base.index {
            return;
        }
        let gone = base.index.0 - self.base.index.0;
        let gone = usize::try_from(gone).unwrap_or(usize::MAX).min(self.slots.len());
        self.slots.drain(..gone);
        self.base = base;
        while let Some(run) = self.runs.front_mut() {
            if run.first > base.index {
                break;
            }
            if run.last > base.index {
                run.first = base.index.next();
                break;
            }
            self.runs.pop_front();
        }
    }

    /// The position of entry `index`; in a hole, with the last known epoch before it.
    pub(super) fn position(&self, index: Index) -> Position {
        let run = self.runs.iter().rev().find(|run| run.first <= index);
        Position { epoch: run.map_or(self.base.epoch, |run| run.epoch), index }
    }

    pub(super) fn holes(&self) -> Vec<Hole> {
        let mut holes: Vec<Hole> = Vec::new();
        for (i, _) in self.slots.iter().enumerate().filter(|(_, slot)| slot.is_hole()) {
            let index = Index(self.base.index.0 + 1 + i as u64);
            match holes.last_mut() {
                Some(hole) if hole.last.next() == index => hole.last = index,
                _ => holes.push(Hole { first: index, last: index }),
            }
        }
        holes
    }

    pub(super) fn hole_count(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.is_hole()).count() as u64
    }

    /// The oldest segment that holds a live entry.
    pub(super) fn first_segment(&self) -> Option<u64> {
        self.slots.iter().find(|slot| !slot.is_hole()).map(|slot| u64::from(slot.segment))
    }
}

/// What readers see.
#[derive(Debug, Default)]
pub(super) struct LogIndex {
    pub(super) streams: BTreeMap<StreamId, StreamLog>,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(segment: u32) -> Slot {
        Slot { segment, record: 1, data: 2, len: 3, sections: 0 }
    }

    #[test]
    fn runs_follow_pushes_truncations_and_releases() {
        let mut log = StreamLog::default();
        for (epoch, n) in [(1, 3), (2, 3), (4, 2)] {
            for _ in 0..n {
                log.push(Epoch(epoch), slot(epoch as u32));
            }
        }
        assert_eq!(log.last(), Position::new(4, 8));
        log.truncate_from(Index(6));
        assert_eq!(log.last(), Position::new(2, 5));
        log.release(Position::new(1, 2));
        let run = |epoch, first, last| Run { epoch: Epoch(epoch), first: Index(first), last: Index(last) };
        assert_eq!(log.runs().collect::<Vec<_>>(), vec![run(1, 3, 3), run(2, 4, 5)]);
        assert_eq!(log.position(Index(4)), Position::new(2, 4));
        log.push_holes(Index(7));
        log.push(Epoch(5), slot(5));
        assert_eq!(log.holes(), vec![Hole { first: Index(6), last: Index(7) }]);
        assert_eq!(log.last(), Position::new(5, 8));
        log.truncate_from(Index(1));
        assert_eq!((log.last(), log.runs().count()), (Position::new(1, 2), 0));
    }
}
