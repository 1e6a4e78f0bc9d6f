//! What a watch stream asks and what it is told.

use bytes::Bytes;

use crate::mvcc::op::Revision;
use crate::mvcc::outcome::Events;

/// A client's stream of watches, numbered by the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub u64);

/// A watch's number in its stream, as the client sees it.
pub type WatchId = i64;

/// In a created response: the watch was refused. In a progress response: all watches of the stream.
pub const WATCH_ID_NONE: WatchId = -1;

/// A wish to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchCreate {
    /// The first key; empty means one zero byte, the least key there is.
    pub key: Bytes,
    /// As [`RangeOp::range_end`](crate::mvcc::RangeOp::range_end).
    pub range_end: Bytes,
    /// The first revision wanted, which may be a future one; 0 for the next. Below 0: refused as compacted.
    pub start_revision: Revision,
    /// Whether events carry the pair as it was.
    pub prev_kv: bool,
    /// Whether quiet watches are told of progress at each tick.
    pub progress_notify: bool,
    /// Whether a large revision may be split over responses.
    pub fragment: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
    /// The number the client chose; 0 leaves it to the stream.
    pub watch_id: WatchId,
}

/// Why a watch is no more, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CancelReason {
    /// The client said so; etcd gives no text.
    #[error("cancelled by the client")]
    Requested,
    /// The range holds no key. etcd: `mvcc: watcher range is empty`.
    #[error("mvcc: watcher range is empty")]
    EmptyRange,
    /// The number is taken. etcd: `mvcc: duplicate watch ID provided on the WatchStream`.
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// Its next revision is below the compaction; see [`WatchResponse::compact_revision`].
    /// etcd: `etcdserver: mvcc: required revision has been compacted`.
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    /// The stream asked for a leader and there is none. etcd: `etcdserver: no leader`.
    #[error("no leader")]
    NoLeader,
    /// The stream has as many watches as it may. Open another stream.
    #[error("too many watches in one stream")]
    TooMany,
}

/// One message to a watch's client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchResponse {
    /// Which watch; [`WATCH_ID_NONE`] for a refused one, and for the progress of the whole stream.
    pub watch_id: WatchId,
    /// The header's revision. In a progress message: every event up to it was delivered.
    pub revision: Revision,
    /// Answers a creation.
    pub created: bool,
    /// Why there will be no more of this watch.
    pub canceled: Option<CancelReason>,
    /// With [`CancelReason::Compacted`]: the oldest revision that can be watched. Else 0.
    pub compact_revision: Revision,
    /// More of the same revisions follows in the next response of this watch.
    pub fragment: bool,
    /// The events; none in creations, cancellations and progress.
    pub events: Events,
}

impl WatchResponse {
    /// Whether this only tells progress.
    #[must_use]
    pub fn is_progress(&self) -> bool {
        self.events.is_empty() && !self.created && self.canceled.is_none() && self.compact_revision == 0
    }
}

/// How much a hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimits {
    /// Bytes of events queued for one watch before it reads from the store instead. Default 1 MiB.
    pub queue_bytes_max: usize,
    /// Size at which a response is split, for watches that allow it. Default 1.5 MiB, the request limit.
    pub fragment_bytes: usize,
    /// Watches in one stream. Default 100,000.
    pub stream_watches_max: usize,
    /// Revisions read from the store for one catching-up watch before the next one's turn. Default 1,000, as etcd.
    pub catch_up_revisions: usize,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            queue_bytes_max: 1 << 20,
            fragment_bytes: 3 << 19,
            stream_watches_max: 100_000,
            catch_up_revisions: 1_000,
        }
    }
}
