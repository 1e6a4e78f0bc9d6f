//! The `Transport` trait: what a driver needs of a network, and no more.
//!
//! It carries opaque frames on numbered channels and names no message, so a new message never needs a new method.
//!
//! 1. `send` never waits: it queues the frame or hands it back.
//! 2. Per (peer, channel) the frames of one link session arrive in order, once, without gap.
//! 3. A session ends with its connection, or when an accepted frame is lost. Frames of an ended session are not
//!    delivered after its [`Event::Down`].
//! 4. A full queue on one channel holds up no other channel of the same peer, and no other peer.
//!
//! 5. A frame for the local id, or for a peer never made known, is refused with [`SendError::Unknown`].
//!
//! Sessions are seen by the *receiver*: `Up`, frames, `Down`, `Up` with a larger session, … . Whoever needs loss
//! detection (Zab, Sequence Paxos) resynchronises on a new session; Raft ignores them.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Channel, Lane, LinkSession, NodeId};

/// What a transport delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Frames from `peer` on this lane begin, under a session larger than every earlier one of (peer, lane).
    Up {
        /// Who sends.
        peer: NodeId,
        /// Which of the peer's two connections.
        lane: Lane,
        /// The new session.
        session: LinkSession,
    },
    /// No further frame of this session will be delivered.
    Down {
        /// Who sent.
        peer: NodeId,
        /// Which of the peer's two connections.
        lane: Lane,
        /// The session that ended.
        session: LinkSession,
    },
    /// One frame, whole and checked.
    Frame {
        /// Who sent it.
        from: NodeId,
        /// The session it belongs to; its `Up` was delivered before.
        session: LinkSession,
        /// The channel it was sent on.
        channel: Channel,
        /// What was sent, byte for byte.
        frame: Bytes,
    },
}

/// Why a frame was not taken. The frame comes back: nothing is lost silently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer's queue for this channel is at its limit. Retry later or drop; the session goes on.
    #[error("queue full")]
    Full(Bytes),
    /// No connection to this peer now. One is being tried; send again after the peer speaks.
    #[error("peer not connected")]
    NotConnected(Bytes),
    /// This transport does not know the peer's address. Tell it with the implementation's `set_peer`.
    #[error("peer unknown")]
    Unknown(Bytes),
    /// The frame exceeds the transport's `frame_bytes_max`. It will never be taken.
    #[error("frame too large: {} bytes", .0.len())]
    TooLarge(Bytes),
    /// The transport was shut down. Give up.
    #[error("transport closed")]
    Closed(Bytes),
}

impl SendError {
    /// The frame that was not sent.
    pub fn into_frame(self) -> Bytes {
        match self {
            Self::Full(f) | Self::NotConnected(f) | Self::Unknown(f) | Self::TooLarge(f) | Self::Closed(f) => f,
        }
    }
}

/// A network between the members of one cluster. Object safe; cheap to share behind an `Arc`.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// This end's id.
    fn local(&self) -> NodeId;

    /// Queues `frame` for `to` and returns at once.
    ///
    /// # Errors
    /// See [`SendError`]; each variant returns the frame.
    fn send(&self, to: NodeId, channel: Channel, frame: Bytes) -> Result<(), SendError>;

    /// The next event; `None` after [`Transport::shutdown`], once everything delivered before it was taken.
    ///
    /// One task calls this. Two concurrent callers share the events between them.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is either returned or still there for the next call.
    async fn recv(&self) -> Option<Event>;

    /// Moves up to `max` events that are there onto the end of `events`, waiting until there is at least one. Returns
    /// how many were moved; 0 only when [`Transport::recv`] would return `None`, or `max` is 0.
    ///
    /// The provided form moves one. Implementations that can hand over many for one wake-up do.
    ///
    /// # Cancel safety
    /// Cancel safe: every event is either in `events` or still there for the next call.
    async fn recv_many(&self, events: &mut Vec<Event>, max: usize) -> usize {
        if max == 0 {
            return 0;
        }
        let Some(event) = self.recv().await else { return 0 };
        events.push(event);
        1
    }

    /// Stops accepting, flushes what was queued for at most `drain_ms`, closes every link and awaits its own tasks.
    async fn shutdown(&self, drain_ms: u64);
}
