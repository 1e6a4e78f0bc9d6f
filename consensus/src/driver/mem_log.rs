//! A log in memory: for tests, benches and programs whose state need not survive the process.
//!
//! It keeps a log's promises but durability: it may be opened again by a later driver of the same process, and then
//! holds what was committed, so a test can crash a driver and recover its replica.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use triune_storage::{Entry, Index, IoSeq, Position, Run, StreamBatch, StreamId};

use super::log::{DriverLog, LogError, LogRead, LogWrite, Space};
use crate::Recovered;

/// A log in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemLog {
    streams: Arc<Mutex<BTreeMap<StreamId, Stream>>>,
}

#[derive(Debug, Default)]
struct Stream {
    state: Option<Bytes>,
    base: Position,
    /// Invariant: contiguous, the first directly behind `base`.
    entries: VecDeque<Entry>,
    last_seq: IoSeq,
}

impl MemLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Both ends of it.
    pub fn open(&self) -> DriverLog {
        DriverLog { writer: Box::new(self.clone()), reader: Box::new(self.clone()) }
    }

    /// What a replica of `stream` finds at start. `applied` and `formed` are left to the embedder.
    pub fn recover(&self, stream: StreamId) -> Recovered {
        let streams = self.lock();
        let Some(stream) = streams.get(&stream) else { return Recovered::default() };
        let mut runs = Vec::<Run>::new();
        for entry in &stream.entries {
            let Position { epoch, index } = entry.position;
            match runs.last_mut() {
                Some(run) if run.epoch == epoch => run.last = index,
                _ => runs.push(Run { epoch, first: index, last: index }),
            }
        }
        Recovered {
            state: stream.state.clone(),
            base: stream.base,
            runs,
            last_seq: stream.last_seq,
            ..Recovered::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    fn write(&mut self, batch: &StreamBatch) {
        if let Some(base) = batch.reset {
            self.entries.clear();
            self.base = base;
        }
        if let Some(from) = batch.truncate_from {
            self.entries.truncate(self.offset(from));
        }
        for entry in &batch.entries {
            let expected = self.entries.back().map_or(self.base.index, |last| last.position.index).next();
            assert_eq!(entry.position.index, expected, "entries of one log are contiguous");
            self.entries.push_back(entry.clone());
        }
        if let Some(state) = &batch.state {
            self.state = Some(state.clone());
        }
        self.last_seq = batch.seq;
    }

    fn release(&mut self, upto: Index) {
        for _ in 0..self.offset(upto.next()) {
            if let Some(entry) = self.entries.pop_front() {
                self.base = entry.position;
            }
        }
    }

    /// How many entries lie before `index`.
    fn offset(&self, index: Index) -> usize {
        let before = index.prev().0.saturating_sub(self.base.index.0);
        usize::try_from(before).unwrap_or(usize::MAX).min(self.entries.len())
    }
}

impl LogWrite for MemLog {
    fn commit(&mut self, batches: &[StreamBatch], _space: Space) -> Result<(), LogError> {
        let mut streams = self.lock();
        for batch in batches {
            streams.entry(batch.stream).or_default().write(batch);
        }
        Ok(())
    }

    fn release(&mut self, stream: StreamId, upto: Index) -> Result<(), LogError> {
        if let Some(stream) = self.lock().get_mut(&stream) {
            stream.release(upto);
        }
        Ok(())
    }
}

impl LogRead for MemLog {
    fn entries(
        &mut self,
        stream: StreamId,
        first: Index,
        last: Index,
        bytes_max: usize,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        let streams = self.lock();
        let Some(stream) = streams.get(&stream) else { return Ok(None) };
        if first <= stream.base.index {
            return Ok(None);
        }
        let mut bytes = 0;
        let entries = stream.entries.range(stream.offset(first)..).take_while(|entry| {
            let fits = bytes == 0 || bytes + entry.payload_bytes() <= bytes_max;
            bytes += entry.payload_bytes().max(1);
            fits && entry.position.index <= last
        });
        let entries = entries.cloned().collect::<Vec<_>>();
        Ok((!entries.is_empty()).then_some(entries))
    }
}
