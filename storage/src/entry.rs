//! What the log holds: entries with a head and payload sections, and the batches in which they are written.
//!
//! Head and sections are separate byte strings with a checksum each, because in the queue *the log is the partition*:
//! a reader must be able to send section 2 of entry 7 from disk to a socket without decoding anything around it.

use bytes::Bytes;

use crate::{Epoch, Index, IoSeq, Position, StreamId};

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its epoch and index.
    pub position: Position,
    /// What the protocol above says it is (command, configuration, no-op …); opaque here.
    pub kind: u8,
    /// The command's envelope and head.
    pub head: Bytes,
    /// Bulk payload, each section located on its own. Usually empty; at most 65,535.
    pub sections: Vec<Bytes>,
}

impl Entry {
    /// Head and sections together, in bytes.
    pub fn payload_bytes(&self) -> usize {
        self.head.len() + self.sections.iter().map(Bytes::len).sum::<usize>()
    }
}

/// One replica's write: everything that must become durable together.
///
/// Order of meaning: `reset`, then `truncate_from`, then `entries`, then `state`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StreamBatch {
    /// Whose log.
    pub stream: StreamId,
    /// The number of this write in its replica, dense.
    pub seq: IoSeq,
    /// The writer's epoch, so that a late completion cannot confirm an overwritten suffix.
    pub epoch: Epoch,
    /// A snapshot at this position replaced the log: forget everything, the next entry follows it.
    pub reset: Option<Position>,
    /// Forget entries from this index on.
    pub truncate_from: Option<Index>,
    /// New entries, contiguous, the first directly behind what is left.
    pub entries: Vec<Entry>,
    /// The protocol's hard state (term and vote, promises, epochs), replacing the old one; opaque here.
    pub state: Option<Bytes>,
}

/// Where a piece of an entry lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The segment's sequence number.
    pub segment: u64,
    /// Byte offset in the segment's file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
    /// CRC32C of those bytes.
    pub crc: u32,
}

/// Which piece of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The head.
    Head,
    /// A payload section, from 0.
    Payload(u16),
}

/// A run of consecutive entries of one epoch: `first ..= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The epoch of all of them.
    pub epoch: Epoch,
    /// The first index.
    pub first: Index,
    /// The last index.
    pub last: Index,
}
