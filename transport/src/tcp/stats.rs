//! Counters of one transport. Hot ones are relaxed atomics; reasons, which are rare, share a small map.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A reading of every counter since the transport was bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpStats {
    /// Frames written to sockets.
    pub frames_sent: u64,
    /// Their bytes, headers included.
    pub bytes_sent: u64,
    /// Batches they were written in.
    pub batches_sent: u64,
    /// Frames received whole and checked.
    pub frames_received: u64,
    /// Their bytes, headers included.
    pub bytes_received: u64,
    /// Accepted frames dropped because their connection ended before they were written.
    pub frames_dropped: u64,
    /// Sends refused because a queue was full.
    pub sends_full: u64,
    /// Outbound connections established; all but the first of each peer's lane are reconnects.
    pub connects: u64,
    /// Times a reader stopped because its receiver had no room.
    pub inbox_stalls: u64,
    /// Dials that failed, by reason.
    pub dial_failures: BTreeMap<&'static str, u64>,
    /// Inbound connections refused or ended for a fault of the other end, by reason.
    pub inbound_faults: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) frames_sent: Counter,
    pub(super) bytes_sent: Counter,
    pub(super) batches_sent: Counter,
    pub(super) frames_received: Counter,
    pub(super) bytes_received: Counter,
    pub(super) frames_dropped: Counter,
    pub(super) sends_full: Counter,
    pub(super) connects: Counter,
    pub(super) inbox_stalls: Counter,
    pub(super) dial_failures: Reasons,
    pub(super) inbound_faults: Reasons,
}

#[derive(Default)]
pub(super) struct Counter(AtomicU64);

/// Counts by label. Labels are constants of this crate, so the map is small and never grows by what a peer sends.
#[derive(Default)]
pub(super) struct Reasons(Mutex<BTreeMap<&'static str, u64>>);

impl Counters {
    pub(super) fn read(&self) -> TcpStats {
        TcpStats {
            frames_sent: self.frames_sent.read(),
            bytes_sent: self.bytes_sent.read(),
            batches_sent: self.batches_sent.read(),
            frames_received: self.frames_received.read(),
            bytes_received: self.bytes_received.read(),
            frames_dropped: self.frames_dropped.read(),
            sends_full: self.sends_full.read(),
            connects: self.connects.read(),
            inbox_stalls: self.inbox_stalls.read(),
            dial_failures: self.dial_failures.read(),
            inbound_faults: self.inbound_faults.read(),
        }
    }
}

impl Counter {
    pub(super) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Reasons {
    pub(super) fn add(&self, label: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }

    fn read(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
