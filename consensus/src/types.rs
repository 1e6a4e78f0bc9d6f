//! What goes into a replica and what comes out: the vocabulary all protocols share.
//!
//! `after: IoSeq` on an effect is the safety contract. Writes are numbered densely per replica; an effect with
//! `after = n` may be executed once every write ≤ n is durable, and 0 waits for nothing. Order holds per *line*: each
//! (peer, channel), the apply line, the reply line. A gated effect holds its own line only, so a vote that waits for
//! its fsync never delays a heartbeat.

use std::collections::BTreeSet;

use bytes::Bytes;
use triune_storage::{Entry, Epoch, Index, IoSeq, Position, RecoveredStream, Run, StreamBatch};
use triune_transport::{Channel, GroupId, LinkSession, Nanos, NodeId};

/// What a log entry is. Stored as [`Entry::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A command for the state machine.
    Command = 0,
    /// A leader's first entry: carries nothing, is applied as nothing.
    Barrier = 1,
    /// A configuration: [`ConfigEntry`] as head.
    Config = 2,
}

impl EntryKind {
    /// The kind with this number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Command),
            1 => Some(Self::Barrier),
            2 => Some(Self::Config),
            _ => None,
        }
    }
}

/// Who votes, who learns. Joint while `outgoing` is not empty: then both majorities are needed for everything.
#[derive(Clone, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub struct Configuration {
    /// The voters (of the new configuration, while joint).
    pub voters: BTreeSet<NodeId>,
    /// The voters of the old configuration while joint, else empty.
    pub outgoing: BTreeSet<NodeId>,
    /// Replicas that receive the log and count for no quorum.
    pub learners: BTreeSet<NodeId>,
}

impl Configuration {
    /// A configuration of these voters and nobody else.
    pub fn of(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether both majorities are needed now.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `node` votes in either half.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether `node` is in it at all.
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Everybody in it, ascending, each once.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    /// Whether those for whom `has` holds are a quorum: a majority of each half.
    pub fn is_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let majority = |half: &BTreeSet<NodeId>| half.iter().filter(|n| has(**n)).count() * 2 > half.len();
        !self.voters.is_empty() && majority(&self.voters) && (self.outgoing.is_empty() || majority(&self.outgoing))
    }
}

/// A change of the configuration, asked of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigChange {
    /// Adds a replica that learns.
    AddLearner(NodeId),
    /// Makes a learner a voter. Refused while it lags.
    Promote(NodeId),
    /// Removes a voter or learner.
    Remove(NodeId),
    /// Replaces the lost disk `old` of a voter by the caught-up learner `new`, in one joint step.
    Replace {
        /// The voter that is gone.
        old: NodeId,
        /// A learner that has caught up.
        new: NodeId,
    },
}

/// What a configuration entry's head says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ConfigEntry {
    /// The configuration from here on.
    pub config: Configuration,
    /// The embedder's words about the change (names, addresses); opaque.
    pub context: Bytes,
}

#[cfg(feature = "raft")]
impl ConfigEntry {
    /// The head of an entry of kind [`EntryKind::Config`]: three sets, each `u16` count and `u64` ids, then the context.
    pub fn encode(&self) -> Bytes {
        let members = self.config.voters.len() + self.config.outgoing.len() + self.config.learners.len();
        let mut buf = bytes::BytesMut::with_capacity(6 + members * 8 + self.context.len());
        crate::raft::put_configuration(&mut buf, &self.config);
        buf.extend_from_slice(&self.context);
        buf.freeze()
    }

    /// Reads what [`ConfigEntry::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are no configuration.
    pub fn decode(head: Bytes) -> Result<Self, crate::WireError> {
        let mut cursor = crate::raft::Cursor::new(head);
        Ok(Self { config: cursor.configuration()?, context: cursor.rest() })
    }
}

/// How a replica behaves. Plain values; [`Config::validate`] says what cannot work.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The group this replica is of.
    pub group: GroupId,
    /// Its own id: the disk id.
    pub node: NodeId,
    /// Random, new at every boot: seeds the timeouts and makes read-index ids of different boots differ.
    pub boot: u64,
    /// How often a leader speaks when it has nothing to say. Default 100 ms.
    pub heartbeat: Nanos,
    /// Shortest silence before campaigning; more than 2 × heartbeat. Default 1 s.
    pub election_min: Nanos,
    /// Longest silence before campaigning; more than `election_min`, drawn anew each time. Default 2 s.
    pub election_max: Nanos,
    /// Append messages in flight to one follower. Default 256.
    pub inflight_msgs_max: usize,
    /// Append bytes in flight to one follower. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Payload bytes in one append message; a larger single entry travels alone. Default 1 MiB.
    pub append_bytes_max: usize,
    /// Proposed and not yet committed bytes before `Busy`. Default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Entries kept in memory behind the applied index for followers that lag a little. Default 32 MiB.
    pub cache_bytes_max: usize,
    /// Snapshot bytes in one message. Default 256 KiB.
    pub chunk_bytes_max: usize,
    /// Entries a learner may lag behind the commit to count as caught up. Default 1,024.
    pub promote_lag_max: u64,
    /// Log entries kept for followers behind the index the embedder offers to compact. Default 10,000.
    pub keep_entries: u64,
    /// How reads are served. Default [`ReadMode::ReadIndex`].
    pub read: ReadMode,
    /// Bound on the drift between two clocks' rates, in parts per million, for leases. Default 10,000 (1 %).
    pub drift_ppm: u32,
    /// Bugs to run with; empty in production, and absent from it.
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::Mutant>,
}

/// How a linearizable read is made sure of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// One round of heartbeats, shared by all reads that wait.
    #[default]
    ReadIndex,
    /// The leader's lease, under the stated drift bound; falls back to the round without one.
    Lease,
}

/// What a [`Config`] cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An id of 0 names nobody.
    #[error("node id must not be 0")]
    NodeZero,
    /// Campaigns would start between two heartbeats.
    #[error("election timeout must exceed twice the heartbeat")]
    ElectionTooShort,
    /// Nothing to draw from.
    #[error("the longest election timeout must exceed the shortest")]
    ElectionRangeEmpty,
    /// A limit of 0 stops everything.
    #[error("{field} must be at least 1")]
    Zero {
        /// Which limit.
        field: &'static str,
    },
}

impl Config {
    /// The defaults for this replica.
    pub fn new(group: GroupId, node: NodeId, boot: u64) -> Self {
        Self {
            group,
            node,
            boot,
            heartbeat: Nanos::from_millis(100),
            election_min: Nanos::from_secs(1),
            election_max: Nanos::from_secs(2),
            inflight_msgs_max: 256,
            inflight_bytes_max: 8 << 20,
            append_bytes_max: 1 << 20,
            uncommitted_bytes_max: 64 << 20,
            cache_bytes_max: 32 << 20,
            chunk_bytes_max: 256 << 10,
            promote_lag_max: 1_024,
            keep_entries: 10_000,
            read: ReadMode::ReadIndex,
            drift_ppm: 10_000,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Checks the relations between the fields.
    ///
    /// # Errors
    /// The first relation that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.node.0 == 0 {
            return Err(ConfigError::NodeZero);
        }
        if self.election_min.0 <= self.heartbeat.0.saturating_mul(2) {
            return Err(ConfigError::ElectionTooShort);
        }
        if self.election_max <= self.election_min {
            return Err(ConfigError::ElectionRangeEmpty);
        }
        let limits = [
            ("inflight_msgs_max", self.inflight_msgs_max),
            ("inflight_bytes_max", self.inflight_bytes_max),
            ("append_bytes_max", self.append_bytes_max),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max),
            ("chunk_bytes_max", self.chunk_bytes_max),
        ];
        match limits.iter().find(|(_, limit)| *limit == 0) {
            Some((field, _)) => Err(ConfigError::Zero { field }),
            None => Ok(()),
        }
    }
}

/// What a replica's disk holds at start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// The last durable hard state, as the protocol wrote it.
    pub state: Option<Bytes>,
    /// The log starts after this position.
    pub base: Position,
    /// The log's epochs, ascending, without gap from `base`.
    pub runs: Vec<Run>,
    /// Indexes known to have existed whose bytes are damaged.
    pub holes: Vec<(Index, Index)>,
    /// What the state machine durably holds: the position it has applied, and the configuration there.
    pub applied: Option<SnapshotMark>,
    /// The number of the last write found durable; numbering goes on after it.
    pub last_seq: IoSeq,
    /// The configuration the cluster was formed with; used only where nothing newer is on disk.
    pub formed: Option<Configuration>,
}

impl Recovered {
    /// What a log recovered of one stream; `applied` and `formed` are left to the embedder.
    ///
    /// A stream whose hard state is lost or in doubt ([`RecoveredStream::is_faulty`]) must not vote: check before.
    pub fn from_log(stream: &RecoveredStream) -> Self {
        Self {
            state: stream.state.clone(),
            base: stream.base,
            runs: stream.runs.clone(),
            holes: stream.holes.iter().map(|hole| (hole.first, hole.last)).collect(),
            last_seq: stream.last_seq,
            ..Self::default()
        }
    }
}

/// Why a replica cannot be rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The configuration of the replica is impossible.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The directory was written by another protocol.
    #[error("the directory was written by another protocol (tag {found})")]
    OtherProtocol {
        /// The tag found.
        found: u8,
    },
    /// The hard state does not decode.
    #[error("the hard state is malformed")]
    BadState,
    /// The log has a gap, or damage that cannot be repaired yet.
    #[error("log entries {first:?} to {last:?} are damaged")]
    Faulty {
        /// The first damaged index.
        first: Index,
        /// The last damaged index.
        last: Index,
    },
    /// The pieces contradict each other.
    #[error("the directory contradicts itself: {0}")]
    Inconsistent(&'static str),
}

/// A proposal's name between a proposer and its own replica; never on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// A read's name between a reader and its own replica; never on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// An administrative request's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminId(pub u64);

/// The name of a request for old entries or for a snapshot chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// A command to be put into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Comes back in the reply.
    pub id: ProposalId,
    /// The command's envelope and head.
    pub head: Bytes,
    /// Its payload sections.
    pub sections: Vec<Bytes>,
}

/// What a replica is asked to do beside proposing and reading.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdminOp {
    /// Hand the leadership over, to `to` or to the best follower; given up after one longest election timeout.
    Transfer {
        /// The new leader.
        to: Option<NodeId>,
    },
    /// Change the configuration.
    Change {
        /// How.
        change: ConfigChange,
        /// Goes into the entry; opaque.
        context: Bytes,
    },
}

/// What enters a replica.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Input<M> {
    /// A peer said something.
    Message {
        /// Who.
        from: NodeId,
        /// In which run of frames.
        link: LinkSession,
        /// What.
        msg: M,
    },
    /// The deadline of [`crate::Protocol::next_deadline`] has passed (or not: a spurious one is harmless).
    Timeout,
    /// Commands to replicate, in this order.
    Propose(Vec<Proposal>),
    /// Linearizable reads to be let through, on the leader or any other replica.
    Read(Vec<ReadId>),
    /// An administrative request.
    Admin {
        /// Comes back in the reply.
        id: AdminId,
        /// What is asked.
        op: AdminOp,
    },
    /// Every write ≤ this number is durable.
    Persisted(IoSeq),
    /// The state machine has applied everything ≤ `upto`.
    Applied {
        /// The index applied.
        upto: Index,
    },
    /// The state machine holds everything ≤ `upto` durably: the log before it may go.
    Compact {
        /// The durable position, and the configuration there.
        upto: Index,
    },
    /// An answer to [`Effect::Fetch`].
    Entries {
        /// The request.
        req: FetchId,
        /// Contiguous from the asked first index; possibly fewer than asked, never none. `None`: they are gone.
        entries: Option<Vec<Entry>>,
    },
    /// Something happened to a snapshot.
    Snapshot(SnapshotEvent),
    /// A run of frames from a peer began or ended.
    Link {
        /// Whose.
        peer: NodeId,
        /// Which.
        session: LinkSession,
        /// Began or ended.
        up: bool,
    },
    /// A write failed: this replica says nothing more that needs a write, ever.
    IoFailed,
}

/// The name of a snapshot: what was applied, and under which configuration.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotMark {
    /// The last position it contains.
    pub position: Position,
    /// The configuration in force at that position.
    pub config: Configuration,
    /// Where that configuration stands in the log.
    pub config_index: Index,
}

/// A snapshot that can be sent: its mark, size and checksum.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotMeta {
    /// What it contains.
    pub mark: SnapshotMark,
    /// Its length in bytes.
    pub bytes: u64,
    /// CRC32C of all its bytes.
    pub crc: u32,
}

/// What a replica wants done with snapshots. The embedder owns the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotOp {
    /// Make a snapshot at or above this index available; answered by [`SnapshotEvent::Taken`]. Asked once at a time.
    Take {
        /// The least useful index.
        at_least: Index,
    },
    /// Read a chunk of the snapshot at `position`; answered by [`SnapshotEvent::Chunk`].
    Read {
        /// Comes back in the answer.
        req: FetchId,
        /// Which snapshot.
        position: Position,
        /// From which byte.
        offset: u64,
        /// At most so many bytes.
        len_max: usize,
    },
    /// Keep a received chunk; answered by [`SnapshotEvent::Written`]. Offset 0 of another snapshot discards the older.
    Write {
        /// Which snapshot.
        meta: SnapshotMeta,
        /// From which byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// All bytes are there: check them, replace the state durably, then answer [`SnapshotEvent::Installed`].
    Install {
        /// Which snapshot.
        meta: SnapshotMeta,
    },
    /// Nobody needs this snapshot any more.
    Drop {
        /// Which.
        position: Position,
    },
}

/// What happened to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotEvent {
    /// A snapshot can be sent. `None`: it could not be made; ask again later.
    Taken(Option<SnapshotMeta>),
    /// A chunk to send. `data` is `None` when that snapshot is gone.
    Chunk {
        /// The request.
        req: FetchId,
        /// From which byte.
        offset: u64,
        /// The bytes.
        data: Option<Bytes>,
    },
    /// Everything below `upto` of this snapshot is kept here.
    Written {
        /// Which snapshot.
        position: Position,
        /// How many bytes.
        upto: u64,
    },
    /// The state is now the snapshot's, durably.
    Installed(SnapshotMark),
    /// Its bytes were wrong, or could not be kept; begin again.
    Failed {
        /// Which snapshot.
        position: Position,
    },
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Effect<M> {
    /// Make this durable; answer [`Input::Persisted`]. Writes are made in the order they are asked.
    Persist(StreamBatch),
    /// Say this to a peer.
    Send {
        /// To whom.
        to: NodeId,
        /// On which channel.
        channel: Channel,
        /// What.
        msg: M,
        /// Not before this write is durable.
        after: IoSeq,
    },
    /// Apply these entries, in order; they are committed. Answer [`Input::Applied`].
    Apply {
        /// Contiguous.
        entries: Vec<Entry>,
        /// Not before this write is durable.
        after: IoSeq,
    },
    /// Tell the proposer; clients are answered from apply.
    Reply {
        /// The proposal.
        id: ProposalId,
        /// What became of it.
        outcome: ProposeOutcome,
        /// Not before this write is durable.
        after: IoSeq,
    },
    /// A read may be served, once everything ≤ `index` is applied here. Or it may not.
    Read {
        /// The read.
        id: ReadId,
        /// From which index on.
        outcome: Result<Index, ReadError>,
    },
    /// An administrative request was carried out or refused.
    Admin {
        /// The request.
        id: AdminId,
        /// `Ok`: carried out (a configuration: committed).
        outcome: Result<(), AdminError>,
    },
    /// Entries `first ..= last` are needed from the log on disk; answer [`Input::Entries`].
    Fetch {
        /// Comes back in the answer.
        req: FetchId,
        /// The first index.
        first: Index,
        /// The last index.
        last: Index,
        /// Stop after so many payload bytes, but return at least one entry.
        bytes_max: usize,
    },
    /// Something is to be done with a snapshot.
    Snapshot(SnapshotOp),
    /// The log before and at this index is no longer needed.
    Release {
        /// The last index that may go.
        upto: Index,
    },
    /// Role, leader or epoch changed.
    Role(RoleChange),
    /// The leader knows of entries this disk confirmed and no longer holds (amnesia). The replica confirms nothing and
    /// votes for nobody any more: retire the disk id, come back under a new one.
    Forgot,
}

/// The caller-owned buffer `step` appends to.
#[derive(Clone, Debug, PartialEq)]
pub struct Effects<M>(pub Vec<Effect<M>>);

impl<M> Default for Effects<M> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<M> Effects<M> {
    /// Appends one effect.
    pub fn push(&mut self, effect: Effect<M>) {
        self.0.push(effect);
    }

    /// Takes all effects out, leaving the capacity.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect<M>> + '_ {
        self.0.drain(..)
    }
}

/// What became of a proposal, as far as its own replica knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposeOutcome {
    /// It is in the leader's log at this position. It may still be lost with its leader.
    Accepted(Position),
    /// It was never put into a log. Safe to try again.
    Rejected(ProposeError),
}

/// Why a proposal was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Ask `leader`, if known.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as known here.
        leader: Option<NodeId>,
    },
    /// Too many uncommitted bytes. Wait for some to commit, then try again.
    #[error("too many uncommitted bytes")]
    Busy,
    /// The leadership is being handed over. Try again at the new leader.
    #[error("leadership is being transferred")]
    Transferring,
    /// A write failed here; this replica serves no more.
    #[error("storage failed")]
    Stopped,
}

/// Why a read was not let through. Always safe to try again, under a new id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader is known, or it could not prove itself within an election timeout.
    #[error("no leader")]
    NoLeader,
    /// Too many reads wait.
    #[error("too many reads wait")]
    Busy,
}

/// Why an administrative request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Ask `leader`, if known.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as known here.
        leader: Option<NodeId>,
    },
    /// Another change or transfer is under way. Try again when it is done.
    #[error("another change is under way")]
    InProgress,
    /// This leader has not yet committed an entry of its own epoch. Try again shortly.
    #[error("the leader has not yet committed in its own epoch")]
    NotReady,
    /// The learner is too far behind. Try again when it has caught up.
    #[error("the learner lags")]
    LearnerLags,
    /// The request names a replica that is not (or is already) there.
    #[error("no such change is possible: {0}")]
    Invalid(&'static str),
    /// The transfer's deadline passed; the old leader goes on.
    #[error("the transfer timed out")]
    TimedOut,
    /// The leader lost its role; the outcome is unknown.
    #[error("the leader stepped down")]
    Unknown,
}

/// The part a replica plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Role {
    /// Receives the log, votes.
    #[default]
    Follower,
    /// Asks whether it could win, changing nothing.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log, does not vote.
    Learner,
}

/// A change of role, leader or epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// The part now played.
    pub role: Role,
    /// Who leads, as far as known here.
    pub leader: Option<NodeId>,
    /// In which epoch.
    pub epoch: Epoch,
}

/// What everybody may know of a replica.
#[derive(Clone, Debug, PartialEq)]
pub struct View<D> {
    /// The part it plays.
    pub role: Role,
    /// Who leads, as far as known here.
    pub leader: Option<NodeId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its last entry.
    pub last: Position,
    /// Known committed.
    pub commit: Index,
    /// Applied.
    pub applied: Index,
    /// The log starts after this.
    pub base: Position,
    /// The configuration in force.
    pub config: Configuration,
    /// Until when it may serve lease reads, by its own clock.
    pub lease: Option<Nanos>,
    /// What the protocol shows beyond.
    pub detail: D,
}
