//! What the three machines of a member say to each other.
//!
//! Each machine has one inbox, first in first out. Running to completion empties all three at every step, so what is
//! in them is the work of one input; the simulator leaves them full and picks which machine goes on.
//!
//! 1. `order → state` carries entries, installs and role changes in the order the replica gave them: the state machine
//!    never sees an entry of a new leader before that leader's role, nor one behind a snapshot before the snapshot.
//! 2. `state → edge` carries a command's answer before the progress that includes it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use triune_consensus::session::{SessionId, SessionTable};
use triune_consensus::{AdminError, AdminId, AdminOp, Entry, FetchId, Index, Position, ReadError, ReadId};
use triune_consensus::{Role, SnapshotEvent, SnapshotMark, SnapshotOp};
use triune_storage::{Epoch, IoSeq, OrderedStore};
use triune_transport::{GroupId, LinkSession, Nanos, NodeId};
use triune_txn::mvcc;

use super::api::{AlarmKind, Call, Header, Refusal, Reply, RequestId, Status, StreamId, WatchRequest};
use super::command::Command;
use super::forward::{LeaseAnswer, LeaseAsk, Refused};
use super::system::MemberRecord;

/// The inboxes.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) order: VecDeque<ToOrder>,
    pub(super) state: VecDeque<ToState>,
    pub(super) edge: VecDeque<ToEdge>,
}

impl Queues {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty() && self.state.is_empty() && self.edge.is_empty()
    }
}

/// What enters the order machine.
#[derive(Debug)]
pub(super) enum ToOrder {
    Frame {
        from: NodeId,
        session: LinkSession,
        frame: Bytes,
    },
    Link {
        peer: NodeId,
        session: LinkSession,
        up: bool,
    },
    Timeout,
    Persisted {
        group: GroupId,
        seq: IoSeq,
    },
    Fetched {
        group: GroupId,
        req: FetchId,
        entries: Option<Vec<Entry>>,
    },
    WallClock(u64),
    /// Commands from the own door, or forwarded by a peer's.
    Propose {
        from: Option<NodeId>,
        commands: Vec<Command>,
    },
    Read(ReadId),
    Admin {
        id: AdminId,
        op: AdminOp,
    },
    Applied {
        group: GroupId,
        upto: Index,
        stamp_ms: u64,
    },
    Compact {
        group: GroupId,
        upto: Index,
    },
    Snapshot {
        group: GroupId,
        event: SnapshotEvent,
    },
    /// Fills in the replica's part of a status, then passes it on to the state.
    Status {
        id: RequestId,
        status: Box<Status>,
    },
}

/// What enters the state machine.
#[derive(Debug)]
pub(super) enum ToState {
    Role(RoleNow),
    Apply(Vec<Entry>),
    SnapshotOp(SnapshotOp),
    Installed {
        mark: SnapshotMark,
        store: Arc<dyn OrderedStore>,
    },
    SnapshotFailed,
    Flushed(Position),
    /// Reads that may be answered once everything ≤ `index` is applied.
    Read {
        index: Index,
        reads: Vec<Read>,
    },
    /// Answer once the removal behind the compaction in force is durable.
    AwaitRemoval {
        id: RequestId,
        deadline: Nanos,
    },
    Watch {
        stream: StreamId,
        event: WatchRequest,
    },
    Status {
        id: RequestId,
        status: Box<Status>,
    },
    Timeout,
    Cancel(RequestId),
    /// The member shuts down: streams end.
    Drain,
}

/// What enters the edge machine.
#[derive(Debug)]
pub(super) enum ToEdge {
    Call {
        id: RequestId,
        within: Option<Nanos>,
        needs_leader: bool,
        call: Call,
    },
    Cancel(RequestId),
    Timeout,
    Drain,
    /// The disk is full, or takes writes again.
    Space {
        full: bool,
    },
    Link {
        peer: NodeId,
        up: bool,
    },
    Frame {
        from: NodeId,
        message: EdgeFrame,
    },
    Role(RoleNow),
    Refused {
        refused: Vec<(u64, u64, Refused)>,
    },
    ReadReady {
        id: ReadId,
        outcome: Result<Index, ReadError>,
    },
    AdminDone {
        id: AdminId,
        outcome: Result<(), AdminError>,
    },
    /// A command of this door's session took effect, or never will.
    Applied {
        session: SessionId,
        seq: u64,
        header: Header,
        result: Result<Reply, Refusal>,
    },
    /// This boot's session is open.
    SessionOpened(SessionId),
    /// This boot's session was closed by an entry applied here: what was not answered yet was not carried out.
    SessionClosed,
    /// A snapshot replaced the state. `session`: this boot's, if it is open there; `sessions`: what was applied inside.
    Leapt {
        header: Header,
        session: Option<SessionId>,
        sessions: Box<SessionTable>,
    },
    /// A lease read found that this member no longer leads.
    LeaseRetry(Read),
    /// What everybody at the edge may know of the state.
    Progress(Progress),
    /// The leader's clock: end these leases.
    Expired {
        epoch: Epoch,
        leases: Vec<mvcc::LeaseId>,
    },
    /// The leader's clock: record how long these still have.
    Checkpoint {
        epoch: Epoch,
        checkpoints: Vec<mvcc::LeaseCheckpoint>,
    },
}

/// Messages of peers that concern the edge.
#[derive(Debug)]
pub(super) enum EdgeFrame {
    Rejected { refused: Vec<(u64, u64, Refused)> },
    LeaseAsk { req: u64, ask: LeaseAsk },
    LeaseAnswer { req: u64, answer: LeaseAnswer },
}

/// The part the replica of group 0 plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct RoleNow {
    pub(super) role: Role,
    pub(super) leader: Option<NodeId>,
    pub(super) epoch: Epoch,
}

impl RoleNow {
    pub(super) fn leads(&self) -> bool {
        self.role == Role::Leader
    }
}

/// A read that was, or need not be, let through by the leader.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    pub(super) asker: Asker,
    pub(super) what: ReadWhat,
    pub(super) deadline: Nanos,
}

/// Who waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Door(RequestId),
    Peer { node: NodeId, req: u64 },
}

/// What is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ReadWhat {
    Range(mvcc::RangeOp),
    Txn(mvcc::TxnOp),
    Lease(LeaseAsk),
    Leases,
    Alarms { member: u64, alarm: Option<AlarmKind> },
    MemberList,
    Health,
    HashKv(i64),
    Hash,
}

/// What the edge knows of the state, as of some applied index.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) header: Header,
    pub(super) bytes: u64,
    pub(super) no_space: bool,
    pub(super) corrupt: bool,
    /// The member table; the same `Arc` as long as it did not change.
    pub(super) members: Arc<Vec<MemberRecord>>,
    /// The configuration in force at `applied`: (voters, learners) as far as replacing a disk needs it.
    pub(super) config: Arc<triune_consensus::Configuration>,
    /// This member leads and has committed in its epoch.
    pub(super) proven: bool,
}
