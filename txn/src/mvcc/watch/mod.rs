//! Watches: every event of a key range from a revision on, in order, none lost, none twice.

mod hub;
mod interval;
mod message;

pub use hub::WatcherHub;
pub use message::{CancelReason, StreamKey, WATCH_ID_NONE, WatchCreate, WatchId, WatchLimits, WatchResponse};
