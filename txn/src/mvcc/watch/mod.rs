//! Watches: every event of a key range from a revision on, in order, none lost, none twice.

mod message;

pub use message::{CancelReason, StreamKey, WATCH_ID_NONE, WatchCreate, WatchId, WatchLimits, WatchResponse};
