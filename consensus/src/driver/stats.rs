//! Counters of a driver, for metrics and benches. They decide nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a driver has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverStats {
    /// Turns of the machine thread.
    pub turns: u64,
    /// Inputs stepped in them.
    pub inputs: u64,
    /// Frames the transport did not take.
    pub sends_refused: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Writes covered by them.
    pub writes: u64,
    /// Payload bytes written.
    pub write_bytes: u64,
    /// Nanoseconds spent in append and sync together.
    pub sync_nanos: u64,
    /// The longest of them.
    pub sync_nanos_max: u64,
}

/// The same, while it is counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    turns: AtomicU64,
    inputs: AtomicU64,
    sends_refused: AtomicU64,
    syncs: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    sync_nanos: AtomicU64,
    sync_nanos_max: AtomicU64,
}

impl Counters {
    pub(crate) fn turn(&self, inputs: u64) {
        self.turns.fetch_add(1, Relaxed);
        self.inputs.fetch_add(inputs, Relaxed);
    }

    pub(crate) fn send_refused(&self) {
        self.sends_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn sync(&self, writes: u64, bytes: u64, nanos: u64) {
        self.syncs.fetch_add(1, Relaxed);
        self.writes.fetch_add(writes, Relaxed);
        self.write_bytes.fetch_add(bytes, Relaxed);
        self.sync_nanos.fetch_add(nanos, Relaxed);
        self.sync_nanos_max.fetch_max(nanos, Relaxed);
    }

    pub(crate) fn read(&self) -> DriverStats {
        DriverStats {
            turns: self.turns.load(Relaxed),
            inputs: self.inputs.load(Relaxed),
            sends_refused: self.sends_refused.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            writes: self.writes.load(Relaxed),
            write_bytes: self.write_bytes.load(Relaxed),
            sync_nanos: self.sync_nanos.load(Relaxed),
            sync_nanos_max: self.sync_nanos_max.load(Relaxed),
        }
    }
}
