//! What one replica's disk durably holds, as a plain value: the reference the invariants compare messages with.

use std::collections::VecDeque;

use bytes::Bytes;
use triune_storage::{Entry, Index, IoSeq, Position, Run, StreamBatch};

use crate::{Configuration, Recovered, SnapshotMark};

/// The durable log and hard state of one replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// The log starts after this.
    pub base: Position,
    /// The log.
    pub entries: VecDeque<Entry>,
    /// The hard state.
    pub state: Option<Bytes>,
    /// The newest write it contains.
    pub seq: IoSeq,
    /// What the state machine durably holds beside the log.
    pub applied: Position,
}

impl Image {
    /// Makes a write durable.
    ///
    /// # Panics
    /// When it does not follow the write before, or does not fit the log.
    pub fn write(&mut self, batch: StreamBatch) {
        assert_eq!(batch.seq, self.seq.next(), "writes are numbered without gap");
        self.seq = batch.seq;
        if let Some(base) = batch.reset {
            self.base = base;
            self.entries.clear();
        }
        if let Some(index) = batch.truncate_from {
            assert!(index > self.base.index, "a truncation below the base");
            self.entries.truncate(usize::try_from(index.0 - self.base.index.0 - 1).unwrap_or(usize::MAX));
        }
        for entry in batch.entries {
            assert_eq!(entry.position.index, self.last().index.next(), "a write leaves a gap");
            self.entries.push_back(entry);
        }
        if batch.state.is_some() {
            self.state = batch.state;
        }
    }

    /// Forgets the log up to `upto`.
    pub fn release(&mut self, upto: Index) {
        while self.entries.front().is_some_and(|entry| entry.position.index <= upto) {
            self.base = self.entries.pop_front().map_or(self.base, |entry| entry.position);
        }
    }

    /// Its last position.
    pub fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| entry.position)
    }

    /// The entry at `index`.
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        let at = index.0.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Whether the log or the state machine holds this (committed) position.
    pub fn holds(&self, position: Position) -> bool {
        position.index <= self.base.index.max(self.applied.index)
            || self.entry(position.index).is_some_and(|e| e.position == position)
    }

    /// Answers [`crate::Effect::Fetch`].
    pub fn read(&self, first: Index, last: Index, bytes_max: usize) -> Option<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for index in first.0..=last.0 {
            let Some(entry) = self.entry(Index(index)) else {
                break;
            };
            bytes += entry.payload_bytes();
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(entry.clone());
        }
        (!entries.is_empty()).then_some(entries)
    }

    /// What a start finds.
    pub fn recovered(&self, applied: Option<SnapshotMark>, formed: Option<Configuration>) -> Recovered {
        let mut runs: Vec<Run> = Vec::new();
        for entry in &self.entries {
            let Position { epoch, index } = entry.position;
            match runs.last_mut() {
                Some(run) if run.epoch == epoch => run.last = index,
                _ => runs.push(Run { epoch, first: index, last: index }),
            }
        }
        Recovered {
            state: self.state.clone(),
            base: self.base,
            runs,
            holes: Vec::new(),
            applied,
            last_seq: self.seq,
            formed,
        }
    }
}
