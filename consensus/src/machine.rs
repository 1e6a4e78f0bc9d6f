//! The `Machine` trait: what the driver runs.
//!
//! A machine is any pure assembly of replicas: a single [`crate::Seat`] with a program's state machine, or a whole
//! member with many groups. The driver owns the clock, the network, the log and the threads; the machine owns every
//! decision. Effects come out already gated: the driver executes each at once, in order.

use bytes::Bytes;
use triune_storage::{Entry, Index, IoSeq, StreamBatch};
use triune_transport::{Channel, GroupId, Lane, LinkSession, Nanos, NodeId};

use crate::FetchId;

/// What enters a machine.
#[derive(Debug)]
#[non_exhaustive]
pub enum MachineInput<R> {
    /// A frame from a peer.
    Frame {
        /// Who sent it.
        from: NodeId,
        /// In which run of frames.
        session: LinkSession,
        /// On which channel.
        channel: Channel,
        /// What.
        frame: Bytes,
    },
    /// A run of frames from a peer began or ended.
    Link {
        /// Whose.
        peer: NodeId,
        /// On which of its connections.
        lane: Lane,
        /// Which.
        session: LinkSession,
        /// Began or ended.
        up: bool,
    },
    /// The deadline passed.
    Timeout,
    /// Every write ≤ `seq` of this group's replica is durable.
    Persisted {
        /// The group.
        group: GroupId,
        /// The number.
        seq: IoSeq,
    },
    /// An answer to [`MachineEffect::Fetch`].
    Fetched {
        /// The group.
        group: GroupId,
        /// The request.
        req: FetchId,
        /// `None`: they are gone.
        entries: Option<Vec<Entry>>,
    },
    /// The disk is full: the log now writes into its reserve. Refuse what grows, let through what frees. When the
    /// reserve is full too, the driver holds all further writes and tries again; nothing written is harmed.
    NoSpace,
    /// The disk takes ordinary writes again.
    SpaceAgain,
    /// A write or sync failed for good. The machine stops; the embedder ends the member.
    IoFailed,
    /// The embedding program asks for something.
    Request(R),
}

/// What a machine wants done.
#[derive(Debug)]
#[non_exhaustive]
pub enum MachineEffect<O> {
    /// Append this to the log and sync; answer [`MachineInput::Persisted`]. In the order asked.
    Persist(StreamBatch),
    /// Send now; a refusal is loss.
    Send {
        /// To whom.
        to: NodeId,
        /// On which channel.
        channel: Channel,
        /// What.
        frame: Bytes,
    },
    /// Read entries from the log; answer [`MachineInput::Fetched`].
    Fetch {
        /// The group.
        group: GroupId,
        /// Comes back in the answer.
        req: FetchId,
        /// The first index.
        first: Index,
        /// The last index.
        last: Index,
        /// Stop after so many payload bytes, but return at least one entry.
        bytes_max: usize,
    },
    /// The group's log before and at this index may go.
    Release {
        /// The group.
        group: GroupId,
        /// The last index that may go.
        upto: Index,
    },
    /// Something for the embedding program.
    Output(O),
}

/// A pure assembly of replicas.
pub trait Machine: Send {
    /// What the embedding program asks of it.
    type Request: Send + 'static;
    /// What it tells the embedding program.
    type Output: Send + 'static;

    /// Takes one input; appends to `out` what must be done, at once and in order.
    fn step(&mut self, now: Nanos, input: MachineInput<Self::Request>, out: &mut Vec<MachineEffect<Self::Output>>);

    /// Called when no further input is at hand: the place to do what is cheaper for many inputs together.
    fn idle(&mut self, now: Nanos, out: &mut Vec<MachineEffect<Self::Output>>) {
        let _ = (now, out);
    }

    /// When to step with [`MachineInput::Timeout`] next.
    fn next_deadline(&self) -> Option<Nanos>;
}
