//! What goes into the log's `open` and what comes out: configuration, the recovered picture, errors.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{DiskError, Epoch, Index, IoSeq, Position, Run, StreamId};

/// How a [`Wal`](crate::Wal) is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Size of a segment file in bytes, reserved ahead; 8 KiB to 1 GiB. A batch that does not fit gets a segment of its
    /// own size. Default 64 MiB: a roll (one more sync) each 64 MiB is noise, and a freed segment is a useful amount.
    pub segment_bytes: u64,
    /// Freed segments kept for reuse, so that the steady state allocates nothing. Default 2.
    pub spare_segments_max: usize,
    /// Keep one segment in reserve, for [`Wal::append_reserved`](crate::Wal::append_reserved) on a full disk. While it
    /// is in use and cannot be made anew, other appends get `NoSpace`. Default true.
    pub reserve: bool,
    /// Largest batch in bytes, all streams together; at most 1 GiB. Default 256 MiB.
    pub batch_bytes_max: u64,
    /// Mixed into every checksum, so that bytes of another log, or bytes a client chose, never pass for ours. Give the
    /// disk id. Must be the same at every open. Default 0.
    pub salt: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, spare_segments_max: 2, reserve: true, batch_bytes_max: 256 << 20, salt: 0 }
    }
}

/// What `open` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Every stream the log knows.
    pub streams: BTreeMap<StreamId, RecoveredStream>,
    /// A damaged batch may have held the only writes of a stream that is not listed here.
    pub doubt: bool,
    /// How many batches and entries got which verdict.
    pub verdicts: Verdicts,
    /// Whether the last owner closed the log in order ([`Wal::close`](crate::Wal::close)).
    pub clean: bool,
    /// The number of this opening, from 1.
    pub boot: u64,
}

impl Recovered {
    /// Whether any stream lost something that may have been acknowledged.
    pub fn is_faulty(&self) -> bool {
        self.doubt || self.streams.values().any(RecoveredStream::is_faulty)
    }
}

/// One stream as recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredStream {
    /// The newest hard state, if any was ever written and it is intact.
    pub state: Option<Bytes>,
    /// The newest hard state existed and is lost. Do not vote.
    pub state_faulty: bool,
    /// The log starts behind this position: released, or reset to a snapshot.
    pub base: Position,
    /// The last entry, or `base` when there is none. A hole may be the last.
    pub last: Position,
    /// The intact entries, by epoch, ascending; they do not cover the holes.
    pub runs: Vec<Run>,
    /// Entries that existed and are lost, ascending. Never treat them as missing.
    pub holes: Vec<Hole>,
    /// A damaged batch may have held a write of this stream of which nothing is left.
    pub doubt: bool,
    /// The number of the newest recovered write, as its writer counted.
    pub last_seq: IoSeq,
    /// The writer's epoch in that write.
    pub epoch: Epoch,
}

impl RecoveredStream {
    /// Whether something that may have been acknowledged is lost.
    pub fn is_faulty(&self) -> bool {
        self.state_faulty || self.doubt || !self.holes.is_empty()
    }
}

/// Entries that existed and are lost: `first ..= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The first lost index.
    pub first: Index,
    /// The last lost index.
    pub last: Index,
}

/// How many batches and entries got which verdict.
///
/// *Absent* needs no count: it is all that follows the last entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Intact batches.
    pub batches_ok: u64,
    /// Batches beyond every watermark that fail their checks: never acknowledged, cut.
    pub batches_torn: u64,
    /// Batches that a later watermark proves durable, and that fail their checks.
    pub batches_faulty: u64,
    /// Live entries that are intact.
    pub entries_ok: u64,
    /// Live entries that existed and are lost.
    pub entries_faulty: u64,
}

/// What a successful append was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The number of the group commit.
    pub seq: u64,
    /// Bytes written, headers and padding included.
    pub bytes: u64,
}

/// The log cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk failed. Nothing was decided; look at the device.
    #[error("wal: {0}")]
    Disk(#[from] DiskError),
    /// A newer program wrote this log. Use that program.
    #[error("wal: {path} has format version {found}, this program reads up to {supported}")]
    Version {
        /// The segment.
        path: String,
        /// Its version.
        found: u16,
        /// Ours.
        supported: u16,
    },
    /// The configuration is out of its bounds.
    #[error("wal: {0}")]
    Config(&'static str),
}

/// A write to the log failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The disk is full. Nothing was written and nothing is harmed: free space and try again, or, for writes that free
    /// space, use [`Wal::append_reserved`](crate::Wal::append_reserved).
    #[error("wal: no space left for another segment")]
    NoSpace,
    /// The device failed in this call; the log is poisoned from now on. Stop and open again.
    #[error("wal: {0}")]
    Disk(#[source] DiskError),
    /// An earlier call failed. Stop and open again; a sync is never retried.
    #[error("wal: poisoned by an earlier failure")]
    Poisoned,
    /// The batch is larger than the configuration or the format allows. Nothing was written: split it.
    #[error("wal: a batch of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLarge {
        /// What it would have taken.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// Entries do not follow what the stream holds. Nothing was written: the caller has lost its place.
    #[error("wal: {stream:?}: expected entry {expected:?}, got {got:?}")]
    Gap {
        /// The stream.
        stream: StreamId,
        /// What would fit.
        expected: Index,
        /// What was given.
        got: Index,
    },
}

/// A read from the log failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The device failed. Try another replica; this one is unwell.
    #[error("wal: {0}")]
    Disk(#[from] DiskError),
    /// The entry was released; a snapshot has what it did.
    #[error("wal: {stream:?}: entries up to {base:?} are released")]
    Released {
        /// The stream.
        stream: StreamId,
        /// Its base.
        base: Position,
    },
    /// The entry existed and is lost, or fails its checksum now. Repair from a peer; never treat it as missing.
    #[error("wal: {stream:?}: entry {index:?} is faulty")]
    Faulty {
        /// The stream.
        stream: StreamId,
        /// The entry.
        index: Index,
    },
    /// There is no such entry yet.
    #[error("wal: {stream:?}: no entry {index:?}, the last is {last:?}")]
    Absent {
        /// The stream.
        stream: StreamId,
        /// What was asked for.
        index: Index,
        /// The last there is.
        last: Index,
    },
}
