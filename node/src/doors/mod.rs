//! The doors: front ends that turn a client protocol into calls of the pure member, and its answers back.
//!
//! A door decides nothing. It decodes, asks the [`Bridge`], and encodes; limits on connections and bytes are the
//! listener's, all else is the member's.

mod bridge;
pub mod etcd;

pub use bridge::{Bridge, CallError, Port, PortError, WatchItem, WatchStream};
