//! What a member is asked and what it answers: the seam between the pure core and everything that runs it.
//!
//! The core never holds a channel end. A request carries an id drawn by its door; the answer carries it back. Watches
//! are streams with credit: the core sends at most [`WATCH_CREDIT_BYTES`] that the door has not taken yet, and
//! reads the rest from the store when there is room again, so a slow client costs no memory.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use triune_consensus::{Position, Role, SnapshotEvent, SnapshotOp};
use triune_storage::{OrderedStore, StoreBatch};
use triune_transport::{GroupId, Nanos, NodeId};
use triune_txn::mvcc;

use super::system::MemberRecord;

/// Bytes of watch responses that may be on their way to one stream's door.
pub const WATCH_CREDIT_BYTES: usize = 1 << 20;

/// A request's name at this member; drawn by its door, never reused while the member runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A watch stream's name at this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What enters a member from its own process.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// A client's call; answered once by [`Output::Reply`].
    Call {
        /// Its name.
        id: RequestId,
        /// How long the client waits, if it said; the member's own limit holds anyway.
        within: Option<Nanos>,
        /// The client wants no answer at all rather than wait while there is no leader (`hasleader`).
        needs_leader: bool,
        /// What it asks.
        call: Call,
    },
    /// The client of this call is gone; no answer is wanted. A proposal may still be carried out.
    Cancel(RequestId),
    /// Something about a watch stream.
    Watch {
        /// Which stream.
        stream: StreamId,
        /// What.
        event: WatchRequest,
    },
    /// The flush handed out last for this group is durable.
    Flushed {
        /// The group.
        group: GroupId,
        /// The mark that came with it.
        mark: Position,
    },
    /// The state store failed, or a value in it fails its checksum: the member must end.
    StoreFailed {
        /// The group.
        group: GroupId,
        /// A value failed its checksum: the disk id must be retired, not only the process ended.
        corrupt: bool,
    },
    /// An answer to [`Output::Snapshot`].
    Snapshot {
        /// The group.
        group: GroupId,
        /// What happened.
        event: SnapshotEvent,
        /// With [`SnapshotEvent::Installed`]: the store that holds the snapshot's state.
        store: Option<Arc<dyn OrderedStore>>,
    },
    /// The wall clock, in ms since 1970, as of now: every second or so. Drives stamps, never safety.
    WallClock(u64),
    /// The member begins to shut down: move leaderships away, refuse new calls.
    Drain,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Call {
    /// A range read: linearizable, or from this member's state as it is.
    Range {
        /// What to read.
        op: mvcc::RangeOp,
        /// From the local state, without asking anybody.
        serializable: bool,
    },
    /// A put.
    Put(mvcc::PutOp),
    /// A delete.
    DeleteRange(mvcc::DeleteRangeOp),
    /// A transaction. A read-only one is served as a read.
    Txn {
        /// Compares and both branches.
        op: mvcc::TxnOp,
        /// Every range in it asked to be serializable (matters for a read-only one).
        serializable: bool,
    },
    /// Forget revisions.
    Compact(mvcc::CompactOp),
    /// Make a lease; id 0: the member draws one.
    LeaseGrant(mvcc::LeaseGrantOp),
    /// End a lease and delete its keys.
    LeaseRevoke(mvcc::LeaseRevokeOp),
    /// Renew a lease. Unknown: TTL 0.
    LeaseKeepAlive(i64),
    /// How long a lease has left. Unknown: TTL −1.
    LeaseTimeToLive {
        /// Which.
        id: i64,
        /// Also its keys.
        keys: bool,
    },
    /// All leases.
    Leases,
    /// Raise, clear or list alarms.
    Alarm {
        /// What to do.
        action: AlarmAction,
        /// Whose; 0: everybody's.
        member: u64,
        /// Which; `None`: all kinds.
        alarm: Option<AlarmKind>,
    },
    /// This member's state, at once.
    Status,
    /// The hash of all revisions up to this one; 0: the current.
    HashKv(i64),
    /// The hash of the whole state.
    Hash,
    /// Hand the leadership to this member (an etcd member id). Only the leader does.
    MoveLeader(u64),
    /// All members.
    MemberList {
        /// Ask the leader first.
        linearizable: bool,
    },
    /// A linearizable read of nothing: whether the cluster serves.
    Health,
    /// Nothing to give back here; answered at once.
    Defragment,
    /// A blank member comes back in place of a lost disk; answered with [`Reply::MemberList`] once the wish is logged.
    /// The leader then makes the new disk a learner and, when it has caught up, a voter in place of the old one.
    Replace {
        /// The member's name, as the member table has it.
        name: String,
        /// The new disk.
        disk: NodeId,
        /// Where peers reach it.
        peer_addr: String,
    },
}

/// What to do with alarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmAction {
    /// List them.
    Get,
    /// Raise one.
    Activate,
    /// Clear it.
    Deactivate,
}

/// Why a member warns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// No space: the quota or the disk is full; what grows is refused.
    NoSpace,
    /// The state is damaged.
    Corrupt,
}

/// What goes with every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// The cluster.
    pub cluster_id: u64,
    /// This member's etcd id.
    pub member_id: u64,
    /// The store's revision when the answer was made.
    pub revision: i64,
    /// This member's epoch.
    pub raft_term: u64,
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// A range.
    Range(mvcc::RangeResult),
    /// A put.
    Put(mvcc::PutResult),
    /// A delete.
    DeleteRange(mvcc::DeleteRangeResult),
    /// A transaction.
    Txn(mvcc::TxnResult),
    /// Compacted.
    Compact,
    /// A lease.
    LeaseGrant {
        /// Its id.
        id: i64,
        /// Its time to live, in seconds.
        ttl: i64,
    },
    /// Revoked.
    LeaseRevoke,
    /// Renewed.
    LeaseKeepAlive {
        /// Its id.
        id: i64,
        /// Its time to live in seconds; 0: there is no such lease.
        ttl: i64,
    },
    /// What a lease has left.
    LeaseTimeToLive {
        /// Its id.
        id: i64,
        /// Seconds left; −1: there is no such lease.
        ttl: i64,
        /// Seconds at grant.
        granted: i64,
        /// Its keys, if asked.
        keys: Vec<Bytes>,
    },
    /// The ids of all leases, ascending.
    Leases(Vec<i64>),
    /// (Member id, kind) of each alarm concerned.
    Alarms(Vec<(u64, AlarmKind)>),
    /// This member's state.
    Status(Box<Status>),
    /// A hash.
    Hash {
        /// CRC32C.
        hash: u32,
        /// The lowest revision kept.
        compact_revision: i64,
        /// Up to which revision.
        hash_revision: i64,
    },
    /// Handed over.
    MoveLeader,
    /// The members.
    MemberList(Vec<MemberRecord>),
    /// The cluster serves.
    Health,
    /// Nothing to do.
    Defragment,
}

/// This member's state.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Status {
    /// The part it plays in group 0.
    pub role: Role,
    /// The leader's etcd member id; 0: unknown.
    pub leader: u64,
    /// The last index committed, as known here.
    pub commit: u64,
    /// The last index applied here.
    pub applied: u64,
    /// The leader is known, and everything it had committed by then is applied here.
    pub caught_up: bool,
    /// Bytes the state takes, with history.
    pub db_bytes: u64,
    /// Bytes of it in use.
    pub db_bytes_in_use: u64,
    /// Keys now.
    pub keys: u64,
    /// Watchers here.
    pub watchers: u64,
    /// Leases.
    pub leases: u64,
    /// The state's digest.
    pub digest: u64,
    /// Alarms in force.
    pub alarms: Vec<(u64, AlarmKind)>,
    /// Proposals that wait for their apply here.
    pub pending: u64,
    /// Leader changes seen since the start.
    pub leader_changes: u64,
    /// Proposals made, and those that failed.
    pub proposals: (u64, u64),
}

/// What a door says about a watch stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum WatchRequest {
    /// A new stream. `needs_leader`: end it when the leader is lost.
    Open {
        /// The `hasleader` wish.
        needs_leader: bool,
    },
    /// A new watcher on it.
    Create(mvcc::WatchCreate),
    /// End one watcher.
    Cancel {
        /// Its id.
        watch_id: i64,
    },
    /// Say how far this stream is.
    Progress,
    /// The door has written so many of the bytes it was given.
    Taken {
        /// As the responses' `bytes` said.
        bytes: usize,
    },
    /// The stream is gone.
    Close,
}

/// What leaves a member for its own process.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// The answer to a call.
    Reply {
        /// The call.
        id: RequestId,
        /// Goes with the answer.
        header: Header,
        /// What it gave.
        result: Result<Reply, Refusal>,
    },
    /// Responses for a watch stream, in order.
    Watch {
        /// The stream.
        stream: StreamId,
        /// Goes with the responses.
        header: Header,
        /// What to write.
        responses: Vec<mvcc::WatchResponse>,
        /// What [`WatchRequest::Taken`] gives back when they are written.
        bytes: usize,
    },
    /// A watch stream ends with this error (the leader was lost, the member drains).
    WatchEnd {
        /// The stream.
        stream: StreamId,
        /// Why.
        refusal: Refusal,
    },
    /// Commit this to the group's store off this thread; answer [`Request::Flushed`]. One at a time.
    Flush {
        /// The group.
        group: GroupId,
        /// What to commit.
        batch: StoreBatch,
        /// What it makes durable.
        mark: Position,
    },
    /// Do this with the group's snapshots; answer [`Request::Snapshot`]. Behind all flushes asked before.
    Snapshot {
        /// The group.
        group: GroupId,
        /// What.
        op: SnapshotOp,
    },
    /// Role, leader or epoch changed.
    Role {
        /// The group.
        group: GroupId,
        /// The part now played.
        role: Role,
        /// The leader, as far as known.
        leader: Option<NodeId>,
        /// The epoch.
        epoch: u64,
    },
    /// The member table changed: these are the addresses to reach.
    Members(Vec<MemberRecord>),
    /// The member must end, and why.
    Fatal(Fatal),
    /// After [`Request::Drain`]: nothing here leads any more.
    Drained,
}

/// Why a member must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// The log or the store failed. Start again from disk.
    #[error("storage failed")]
    Storage,
    /// The store holds damage. Retire the disk id, come back by replacement.
    #[error("the state of group {0} is damaged")]
    Corrupt(GroupId),
    /// The log holds an operation this version does not know.
    #[error("entry {index} of group {group} has operation {op}, which this version does not know: upgrade this member")]
    UnknownOperation {
        /// The group.
        group: GroupId,
        /// The entry.
        index: u64,
        /// The operation's number.
        op: u32,
    },
    /// Another disk took this member's place.
    #[error("this member's disk was replaced; its directory cannot come back")]
    Replaced,
}

/// Why a call was refused. One table at each door turns it into the protocol's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The request breaks a rule of the key-value store.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// There is no leader, and the client does not want to wait.
    #[error("no leader")]
    NoLeader,
    /// This member does not lead, and only the leader can.
    #[error("not leader")]
    NotLeader,
    /// Too many requests wait here; this one was never proposed. Try again later.
    #[error("too many requests")]
    Busy,
    /// The quota or the disk is full.
    #[error("no space")]
    NoSpace,
    /// The state is damaged; nothing is written until the alarm is cleared.
    #[error("corrupt")]
    Corrupt,
    /// No answer came in time: the outcome is unknown.
    #[error("timed out: outcome unknown")]
    TimedOut,
    /// The entry reached this member inside a snapshot, or the member ends: the outcome is unknown.
    #[error("outcome unknown")]
    Unknown,
    /// The request is too large.
    #[error("request is too large: {bytes} > {bytes_max} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The transfer's target is not a voter, or did not take over in time.
    #[error("bad leader transferee")]
    BadTransferee,
    /// The transfer did not finish in time.
    #[error("leader transfer timed out")]
    TransferTimedOut,
    /// There is no such member.
    #[error("member not found")]
    MemberNotFound,
    /// The disk that is to be replaced, or another that is coming in its place, is connected to this member or just
    /// takes over: stop that member first, and ask again.
    #[error("member {name} still runs under another disk id: stop it before its disk is replaced")]
    StillHere {
        /// Whose disk.
        name: String,
    },
    /// The member is shutting down.
    #[error("stopped")]
    Stopped,
    /// The key belongs to a store that is not built yet.
    #[error("{store} is not built yet: keys under {prefix} are reserved")]
    Reserved {
        /// Which store.
        store: &'static str,
        /// The prefix.
        prefix: &'static str,
    },
}

/// The rules of the key-value store a request can break, from every one of its operations. etcd's fixed texts stand
/// beside the originals in [`mvcc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// etcd: `etcdserver: key is not provided`.
    #[error("key is not provided")]
    EmptyKey,
    /// No such key, or an empty step of a transaction. etcd: `etcdserver: key not found`.
    #[error("key not found")]
    KeyNotFound,
    /// etcd: `etcdserver: value is provided`.
    #[error("value is provided together with ignore_value")]
    ValueProvided,
    /// etcd: `etcdserver: lease is provided`.
    #[error("lease is provided together with ignore_lease")]
    LeaseProvided,
    /// etcd: `etcdserver: too many operations in txn request`.
    #[error("too many operations in the transaction, at most {max}")]
    TooManyOps {
        /// The limit of this level.
        max: usize,
    },
    /// etcd: `etcdserver: duplicate key given in txn request`.
    #[error("a key is written twice, or written and deleted, in one path of the transaction")]
    DuplicateKey,
    /// etcd: `etcdserver: invalid sort option`.
    #[error("invalid sort option")]
    InvalidSortOption,
    /// etcd: `etcdserver: mvcc: required revision has been compacted`.
    #[error("the revision has been compacted, the oldest is {compacted}")]
    Compacted {
        /// The oldest revision that can be read.
        compacted: mvcc::Revision,
    },
    /// etcd: `etcdserver: mvcc: required revision is a future revision`.
    #[error("the revision is a future one, the current is {current}")]
    FutureRev {
        /// The current revision.
        current: mvcc::Revision,
    },
    /// etcd: `etcdserver: requested lease not found`.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// etcd: `etcdserver: lease already exists`.
    #[error("lease already exists")]
    LeaseExists,
    /// etcd: `etcdserver: too large lease TTL`.
    #[error("too large lease time to live, at most {max} s")]
    LeaseTtlTooLarge {
        /// The limit.
        max: i64,
    },
    /// A rule the store has and this list does not name yet.
    #[error("the request breaks a rule of the store")]
    Unnamed,
}

impl From<mvcc::RequestError> for KvError {
    fn from(e: mvcc::RequestError) -> Self {
        match e {
            mvcc::RequestError::EmptyKey => Self::EmptyKey,
            mvcc::RequestError::ValueProvided => Self::ValueProvided,
            mvcc::RequestError::LeaseProvided => Self::LeaseProvided,
            mvcc::RequestError::TooManyOps { max } => Self::TooManyOps { max },
            mvcc::RequestError::DuplicateKey => Self::DuplicateKey,
            mvcc::RequestError::InvalidSortOption => Self::InvalidSortOption,
            mvcc::RequestError::KeyNotFound => Self::KeyNotFound,
            _ => Self::Unnamed,
        }
    }
}

impl From<mvcc::NoRefusal> for KvError {
    fn from(never: mvcc::NoRefusal) -> Self {
        match never {}
    }
}

impl From<mvcc::PutError> for KvError {
    fn from(e: mvcc::PutError) -> Self {
        match e {
            mvcc::PutError::LeaseNotFound => Self::LeaseNotFound,
            mvcc::PutError::KeyNotFound => Self::KeyNotFound,
            _ => Self::Unnamed,
        }
    }
}

impl From<mvcc::TxnError> for KvError {
    fn from(e: mvcc::TxnError) -> Self {
        match e {
            mvcc::TxnError::LeaseNotFound => Self::LeaseNotFound,
            mvcc::TxnError::KeyNotFound => Self::KeyNotFound,
            mvcc::TxnError::Compacted { compacted } => Self::Compacted { compacted },
            mvcc::TxnError::FutureRev { current } => Self::FutureRev { current },
            _ => Self::Unnamed,
        }
    }
}

impl From<mvcc::CompactError> for KvError {
    fn from(e: mvcc::CompactError) -> Self {
        match e {
            mvcc::CompactError::Compacted { compacted } => Self::Compacted { compacted },
            mvcc::CompactError::FutureRev { current } => Self::FutureRev { current },
            _ => Self::Unnamed,
        }
    }
}

impl From<mvcc::LeaseGrantError> for KvError {
    fn from(e: mvcc::LeaseGrantError) -> Self {
        match e {
            mvcc::LeaseGrantError::LeaseNotFound => Self::LeaseNotFound,
            mvcc::LeaseGrantError::LeaseExists => Self::LeaseExists,
            mvcc::LeaseGrantError::LeaseTtlTooLarge { max } => Self::LeaseTtlTooLarge { max },
            _ => Self::Unnamed,
        }
    }
}

impl From<mvcc::LeaseRevokeError> for KvError {
    fn from(e: mvcc::LeaseRevokeError) -> Self {
        match e {
            mvcc::LeaseRevokeError::LeaseNotFound => Self::LeaseNotFound,
            _ => Self::Unnamed,
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
