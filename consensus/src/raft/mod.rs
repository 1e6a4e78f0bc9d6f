//! Raft (Ongaro's thesis, 2014) as a pure state machine: one replica of one group.
//!
//! | file | decides | thesis |
//! |--|--|--|
//! | `election` | who may lead | 3.4, 3.6.1, 6.2, 9.6 |
//! | `replication` | what the log is, what is committed | 3.5, 3.6.2, 10.2.1 |
//! | `progress` | what a leader knows of a peer, and its windows | 3.5 |
//! | `read` | which reads are linearizable | 6.4 |
//! | `membership` | who counts | 4 |
//! | `snapshot` | how a replica far behind catches up | 5 |
//! | `transfer` | how a leader leaves | 3.10 |
//! | `log`, `hard_state`, `wire` | what is kept, and what is said | figure 2 |
//!
//! Every input is one `step`: the handlers change the state and note in `batch` what must become durable; `finish`
//! replicates, applies, and writes the batch as *one* record. `after_hard` and `Io::covers` name the write an effect
//! waits for, so that nothing is said before it is durable.
//!
//! 1. At most one `Persist` a step; writes are numbered without gap.
//! 2. `base ≤ applied ≤ applying ≤ commit ≤ last`.
//! 3. Whatever speaks of this term waits until the term is durable.
//!
//! Deviations from the thesis: read-index questions and heartbeats travel apart from appends; a leader sends before its
//! own disk is done; a follower whose log is shorter than what its leader knows falls silent (its disk lost data).

mod election;
mod hard_state;
mod log;
mod membership;
mod progress;
mod read;
mod replication;
mod snapshot;
mod transfer;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use triune_storage::{Entry, Epoch, Index, IoSeq, Position, StreamBatch, StreamId};
use triune_transport::{Channel, Nanos, NodeId};

use self::hard_state::{ConfigStack, HardState};
use self::log::Log;
use self::progress::Progress;
use self::read::Reads;
use self::replication::Uncommitted;
use self::snapshot::{Incoming, Snapshots};
use self::transfer::Transfer;
pub use self::wire::{AppendOutcome, RaftMsg, RoundId};
pub(crate) use self::wire::{Cursor, put_configuration};
use crate::{
    AdminError, AdminId, AdminOp, Config, Configuration, Effect, Effects, FetchId, Input, ProposeError, ProposeOutcome,
    Protocol, RecoverError, Recovered, Role, RoleChange, View,
};

/// One Raft replica.
#[derive(Clone, Debug)]
pub struct Raft {
    cfg: Config,
    rng: u64,
    now: Nanos,
    /// Invariant: never falls, also across a restart.
    term: Epoch,
    vote: Option<NodeId>,
    role: Role,
    /// Who leads `term`. Invariant: once known, it stays for the term, unless forgotten.
    leader: Option<NodeId>,
    /// When a leader was last heard, of whichever term: the promise of silence outlives the term.
    leader_heard_at: Option<Nanos>,
    /// With lease reads: a restarted replica does not know whom it promised its silence.
    no_vote_before: Nanos,
    election_at: Nanos,
    votes: BTreeMap<NodeId, bool>,
    /// The write that makes this candidate's own vote durable.
    self_vote: IoSeq,
    log: Log,
    configs: ConfigStack,
    commit: Index,
    /// Handed to the state machine.
    applying: Index,
    /// Applied by it.
    applied: Index,
    apply_ahead: VecDeque<(Index, usize)>,
    apply_ahead_bytes: usize,
    apply_fetch: Option<FetchId>,
    io: Io,
    batch: Batch,
    fetch: u64,
    /// Counts heartbeat rounds and read questions of this boot. Invariant: never falls.
    round: u64,
    lead: Option<Box<Leader>>,
    reads: Reads,
    transfer: Option<Transfer>,
    incoming: Option<Incoming>,
    /// A write failed: nothing more is said.
    stopped: bool,
    /// The leader knows of entries this disk no longer holds: nothing more is confirmed.
    amnesia: bool,
    said: RoleChange,
}

/// What only a leader has.
#[derive(Clone, Debug)]
struct Leader {
    /// Everybody it replicates to; never itself.
    peers: BTreeMap<NodeId, Progress>,
    /// The index of its barrier: its first own entry.
    first: Index,
    heartbeat_at: Nanos,
    /// The latest heartbeat rounds, and when they left.
    rounds: VecDeque<(u64, Nanos)>,
    uncommitted: Uncommitted,
    /// The change under way, and the index whose commit ends it.
    change: Option<(AdminId, Index)>,
    /// A `TimeoutNow` left in this term: it has no lease any more.
    lease_void: bool,
    snapshots: Snapshots,
}

impl Leader {
    fn new(first: Index, now: Nanos) -> Self {
        Self {
            peers: BTreeMap::new(),
            first,
            heartbeat_at: now,
            rounds: VecDeque::new(),
            uncommitted: Uncommitted::default(),
            change: None,
            lease_void: false,
            snapshots: Snapshots::default(),
        }
    }
}

/// What this step must make durable, as one write.
#[derive(Clone, Debug, Default)]
struct Batch {
    reset: Option<Position>,
    truncate_from: Option<Index>,
    entries: Vec<Entry>,
    /// The hard state changed.
    state: bool,
}

impl Batch {
    const fn is_empty(&self) -> bool {
        self.reset.is_none() && self.truncate_from.is_none() && self.entries.is_empty() && !self.state
    }
}

/// The writes under way.
#[derive(Clone, Debug)]
struct Io {
    /// The newest write asked for.
    last: IoSeq,
    durable: IoSeq,
    /// The write that holds the current term, vote and configurations.
    hard: IoSeq,
    /// Writes with entries that are not yet durable, with the indexes each still stands for. Ascending in both.
    pending: VecDeque<(IoSeq, Index, Index)>,
    /// The log is durable up to here.
    durable_last: Index,
}

impl Io {
    /// The write after which the log is durable up to `index`.
    fn covers(&self, index: Index) -> IoSeq {
        if index <= self.durable_last {
            return IoSeq::NONE;
        }
        let pending = self.pending.iter().find(|(_, first, last)| *first <= index && index <= *last);
        pending.map_or(self.last.next(), |(seq, _, _)| *seq)
    }

    /// Entries from `index` on were overwritten: no write under way stands for them any more.
    fn truncate_from(&mut self, index: Index, keep_pending: bool) {
        if keep_pending {
            return;
        }
        self.pending.retain_mut(|(_, first, last)| {
            *last = (*last).min(index.prev());
            first <= last
        });
        self.durable_last = self.durable_last.min(index.prev());
    }

    fn reset(&mut self, base: Index) {
        self.pending.clear();
        self.durable_last = base.prev();
    }

    fn persisted(&mut self, seq: IoSeq) {
        self.durable = seq;
        while let Some((_, _, last)) = self.pending.pop_front_if(|(at, _, _)| *at <= seq) {
            self.durable_last = self.durable_last.max(last);
        }
    }
}

/// A replica in a few numbers: what observers compare between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RaftState {
    /// The part it plays.
    pub role: Role,
    /// Its term.
    pub term: Epoch,
    /// Who leads, as far as known.
    pub leader: Option<NodeId>,
    /// Its last entry.
    pub last: Position,
    /// Known committed.
    pub commit: Index,
    /// Applied.
    pub applied: Index,
    /// The log starts after this.
    pub base: Index,
    /// Where the configuration in force stands.
    pub config_index: Index,
}

/// Term and vote of a durable hard state; `None` when it is not Raft's.
#[cfg(feature = "check")]
pub fn hard_state_of(bytes: &bytes::Bytes) -> Option<(Epoch, Option<NodeId>)> {
    HardState::decode(bytes.clone()).ok().map(|state| (state.term, state.vote))
}

/// What Raft shows beyond [`View`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RaftDetail {
    /// Voted for in this term.
    pub vote: Option<NodeId>,
    /// The log is durable up to here.
    pub durable: Index,
    /// The leader knows of entries this disk no longer holds; the replica confirms nothing and must be replaced.
    pub amnesia: bool,
    /// Where the configuration in force stands in the log.
    pub config_index: Index,
    /// A snapshot is being received.
    pub receiving_snapshot: bool,
    /// On a leader: what each peer is known to hold.
    pub peers: Vec<PeerDetail>,
}

/// What a leader knows of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDetail {
    /// Which peer.
    pub node: NodeId,
    /// Its log equals the leader's up to here, durably.
    pub matched: Index,
    /// It is being sent a snapshot.
    pub snapshot: bool,
    /// When it was last heard, by the leader's clock.
    pub heard_at: Nanos,
}

impl Protocol for Raft {
    type Msg = RaftMsg;
    type Detail = RaftDetail;

    const NAME: &'static str = "raft";

    fn recover(cfg: Config, now: Nanos, from: Recovered) -> Result<Self, RecoverError> {
        cfg.validate()?;
        if let Some((first, last)) = from.holes.first() {
            return Err(RecoverError::Faulty { first: *first, last: *last });
        }
        let fresh = from.state.is_none();
        let state = from.state.map(HardState::decode).transpose()?;
        let mut log = Log::recover(from.base, from.runs)?;
        if fresh && log.last() != Position::ZERO && from.applied.is_none() {
            return Err(RecoverError::Inconsistent("a log without a hard state"));
        }
        let mark = from.applied;
        let applied = mark.as_ref().map_or(Index::ZERO, |mark| mark.position.index);
        if applied < log.base().index {
            return Err(RecoverError::Inconsistent("the log starts after what is applied"));
        }
        let (term, vote, hint, stack) = match state {
            Some(state) => (state.term, state.vote, state.commit, state.configs),
            None => (Epoch::ZERO, None, Index::ZERO, Vec::new()),
        };
        let mut batch = Batch::default();
        // A crash after a snapshot's install and before the log's reset: the state machine is ahead of the log.
        let ahead = mark.filter(|mark| !log.matches(mark.position));
        let configs = match ahead {
            Some(mark) => {
                log.reset(mark.position);
                batch = Batch { reset: Some(mark.position), state: true, ..batch };
                ConfigStack::new(mark.config_index, mark.config)
            }
            None if stack.is_empty() => ConfigStack::new(Index::ZERO, from.formed.unwrap_or_default()),
            None => ConfigStack::recover(stack)?,
        };
        if configs.latest().0 > log.last().index {
            return Err(RecoverError::Inconsistent("a configuration beyond the log"));
        }
        if log.last().epoch > term && batch.reset.is_none() {
            return Err(RecoverError::Inconsistent("an entry of a term that was never durable"));
        }
        let commit = hint.min(log.last().index).max(applied);
        let no_vote_before = if cfg.read == crate::ReadMode::Lease { now.after(cfg.election_min) } else { Nanos::ZERO };
        let mut raft = Self {
            rng: cfg.boot ^ cfg.node.0.rotate_left(32) ^ u64::from(cfg.group.0),
            now,
            term: term.max(log.last().epoch),
            vote,
            role: Role::Follower,
            leader: None,
            leader_heard_at: None,
            no_vote_before,
            election_at: Nanos::ZERO,
            votes: BTreeMap::new(),
            self_vote: IoSeq::NONE,
            io: Io {
                last: from.last_seq,
                durable: from.last_seq,
                hard: IoSeq::NONE,
                pending: VecDeque::new(),
                durable_last: log.last().index,
            },
            log,
            configs,
            commit,
            applying: applied,
            applied,
            apply_ahead: VecDeque::new(),
            apply_ahead_bytes: 0,
            apply_fetch: None,
            batch,
            fetch: 0,
            round: 0,
            lead: None,
            reads: Reads::default(),
            transfer: None,
            incoming: None,
            stopped: false,
            amnesia: false,
            said: RoleChange { role: Role::Follower, leader: None, epoch: Epoch::ZERO },
            cfg,
        };
        raft.configs.release(raft.log.base().index);
        raft.restart_election_timer();
        if raft.config().is_quorum(|node| node == raft.cfg.node) {
            // The only voter waits for nobody's vote, but for its own promise (thesis 6.4.1): where the change that made
            // it the only one is new (4.2.2), the leader that goes may not know it committed, and reads by that lease.
            raft.election_at = now.max(no_vote_before);
        }
        Ok(raft)
    }

    fn step(&mut self, now: Nanos, input: Input<RaftMsg>, out: &mut Effects<RaftMsg>) {
        self.now = self.now.max(now);
        if self.stopped {
            Self::refuse(input, out);
            return;
        }
        match input {
            Input::Message { from, link: _, msg } => self.on_message(from, msg, out),
            Input::Timeout => self.on_timeout(out),
            Input::Propose(proposals) => self.on_propose(proposals, out),
            Input::Read(ids) => self.on_read(ids, out),
            Input::Admin { id, op } => self.on_admin(id, op, out),
            Input::Persisted(seq) => self.on_persisted(seq, out),
            Input::Applied { upto } => self.on_applied(upto),
            Input::Compact { upto } => self.on_compact(upto, out),
            Input::Entries { req, entries } => self.on_entries(req, entries, out),
            Input::Snapshot(event) => self.on_snapshot_event(event, out),
            Input::Link { peer, session: _, up } => self.on_link(peer, up),
            Input::IoFailed => self.on_io_failed(out),
        }
        if !self.stopped {
            self.finish(out);
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        if self.stopped {
            return None;
        }
        let role = self.lead.as_ref().map_or(self.election_at, |lead| lead.heartbeat_at);
        let transfer = self.transfer.as_ref().map(|transfer| transfer.deadline);
        let reads = self.reads.deadline(self.cfg.election_max);
        [Some(role), transfer, reads, self.question_deadline()].into_iter().flatten().min()
    }

    fn view(&self) -> View<RaftDetail> {
        View {
            role: self.shown_role(),
            leader: self.leader,
            epoch: self.term,
            last: self.log.last(),
            commit: self.commit,
            applied: self.applied,
            base: self.log.base(),
            config: self.config().clone(),
            lease: self.lease(),
            detail: self.detail(),
        }
    }

    fn fingerprint(&self) -> u128 {
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            self.hash_state(&mut hasher);
            u128::from(hasher.finish())
        };
        half(1) << 64 | half(2)
    }
}

impl Raft {
    fn on_message(&mut self, from: NodeId, msg: RaftMsg, out: &mut Effects<RaftMsg>) {
        if from == self.cfg.node || !self.meet_newer_term(from, &msg, out) {
            return;
        }
        match msg {
            RaftMsg::PreVote { term, last } => self.on_pre_vote(from, term, last, out),
            RaftMsg::PreVoteReply { term, granted } => self.on_pre_vote_reply(from, term, granted, out),
            RaftMsg::Vote { term, last, transfer } => self.on_vote(from, term, last, transfer, out),
            RaftMsg::VoteReply { term, granted } => self.on_vote_reply(from, term, granted, out),
            RaftMsg::Append { term, prev, commit, matched, entries } => {
                self.on_append(from, term, prev, commit, matched, entries, out);
            }
            RaftMsg::AppendReply { term, outcome } => self.on_append_reply(from, term, outcome, out),
            RaftMsg::Heartbeat { term, commit, matched, round } => {
                self.on_heartbeat(from, term, commit, matched, round, out);
            }
            RaftMsg::HeartbeatReply { term, round } => self.on_heartbeat_reply(from, term, round, out),
            RaftMsg::ReadIndex { ctx } => self.on_read_index(from, ctx, out),
            RaftMsg::ReadIndexReply { ctx, index } => self.on_read_index_reply(from, ctx, index, out),
            RaftMsg::TimeoutNow { term } if term == self.term => self.on_timeout_now(out),
            RaftMsg::TimeoutNow { .. } => {}
            RaftMsg::Offer { term, meta } => self.on_offer(from, term, meta, out),
            RaftMsg::Chunk { term, position, offset, data } => self.on_chunk(from, term, position, offset, data, out),
            RaftMsg::ChunkReply { term, position, upto } => self.on_chunk_reply(from, term, position, upto, out),
        }
    }

    fn on_timeout(&mut self, out: &mut Effects<RaftMsg>) {
        self.expire_transfer(out);
        if let Some(heartbeat_at) = self.lead.as_ref().map(|lead| lead.heartbeat_at) {
            if self.now >= heartbeat_at {
                self.on_heartbeat_timeout(out);
            }
        } else if self.now >= self.election_at {
            self.on_election_timeout(out);
        }
        self.expire_reads(out);
    }

    /// A leader that no quorum was heard from within the shortest election timeout steps down (thesis 6.2).
    fn on_heartbeat_timeout(&mut self, out: &mut Effects<RaftMsg>) {
        let heard = |node: NodeId| {
            let peer = self.lead.as_ref().and_then(|lead| lead.peers.get(&node));
            node == self.cfg.node || peer.is_some_and(|peer| self.now.since(peer.heard_at) < self.cfg.election_min)
        };
        if self.config().is_quorum(heard) {
            self.tidy_snapshots(out);
            self.broadcast_heartbeat(out);
        } else {
            self.become_follower(self.term, None, out);
        }
    }

    fn on_admin(&mut self, id: AdminId, op: AdminOp, out: &mut Effects<RaftMsg>) {
        match op {
            AdminOp::Transfer { to } => self.on_transfer(id, to, out),
            AdminOp::Change { change, context } => self.on_change(id, &change, context, out),
        }
    }

    fn on_persisted(&mut self, seq: IoSeq, out: &mut Effects<RaftMsg>) {
        assert!(seq <= self.io.last, "a completion of a write nobody asked for");
        if seq <= self.io.durable {
            return;
        }
        self.io.persisted(seq);
        self.count_own_vote(out);
        self.advance_commit(out);
    }

    /// A new run of frames: what was in flight on the old one may be lost.
    fn on_link(&mut self, peer: NodeId, up: bool) {
        let progress = self.lead.as_mut().and_then(|lead| lead.peers.get_mut(&peer));
        if let Some(progress) = progress.filter(|_| up)
            && progress.state != progress::State::Snapshot
        {
            progress.probe(progress.matched.next());
        }
    }

    fn on_io_failed(&mut self, out: &mut Effects<RaftMsg>) {
        self.stopped = true;
        self.batch = Batch::default();
        if let Some(lead) = self.lead.take() {
            self.resign(*lead, out);
        }
        self.role = Role::Follower;
        self.leader = None;
        self.settle_transfer(out);
        self.abandon_reads(out);
        self.say_role(out);
    }

    /// What a stopped replica answers.
    fn refuse(input: Input<RaftMsg>, out: &mut Effects<RaftMsg>) {
        match input {
            Input::Propose(proposals) => {
                for proposal in proposals {
                    let outcome = ProposeOutcome::Rejected(ProposeError::Stopped);
                    out.push(Effect::Reply { id: proposal.id, outcome, after: IoSeq::NONE });
                }
            }
            Input::Read(ids) => {
                for id in ids {
                    out.push(Effect::Read { id, outcome: Err(crate::ReadError::NoLeader) });
                }
            }
            Input::Admin { id, .. } => {
                out.push(Effect::Admin { id, outcome: Err(AdminError::NotLeader { leader: None }) });
            }
            _ => {}
        }
    }

    /// The end of every step: replicate, apply, write.
    fn finish(&mut self, out: &mut Effects<RaftMsg>) {
        self.replicate(out);
        self.drive_install(out);
        self.emit_applies(out);
        self.flush(out);
        let evictable = if self.lead.is_some() { self.commit.min(self.io.durable_last) } else { self.io.durable_last };
        self.log.evict(evictable, self.cfg.cache_bytes_max);
        self.say_role(out);
    }

    /// Writes the step's batch as one record.
    fn flush(&mut self, out: &mut Effects<RaftMsg>) {
        if self.batch.is_empty() {
            return;
        }
        let Batch { reset, truncate_from, entries, state } = std::mem::take(&mut self.batch);
        let seq = self.io.last.next();
        self.io.last = seq;
        let first = reset.map(|base| base.index).or_else(|| entries.first().map(|entry| entry.position.index));
        if let Some(first) = first {
            self.io.pending.push_back((seq, first, self.log.last().index));
        }
        if state {
            self.io.hard = seq;
        }
        let state = state.then(|| {
            let configs = self.configs.to_vec();
            HardState { term: self.term, vote: self.vote, commit: self.commit, configs }.encode()
        });
        let (stream, epoch) = (StreamId(self.cfg.group.0), self.term);
        out.push(Effect::Persist(StreamBatch { stream, seq, epoch, reset, truncate_from, entries, state }));
    }

    fn say_role(&mut self, out: &mut Effects<RaftMsg>) {
        let change = RoleChange { role: self.shown_role(), leader: self.leader, epoch: self.term };
        if change != self.said {
            tracing::debug!(node = %self.cfg.node, group = %self.cfg.group, ?change, "role");
            self.said = change.clone();
            out.push(Effect::Role(change));
        }
    }

    /// What a leader leaves behind when it steps down.
    fn resign(&mut self, lead: Leader, out: &mut Effects<RaftMsg>) {
        if let Some((id, _)) = lead.change {
            out.push(Effect::Admin { id, outcome: Err(AdminError::Unknown) });
        }
        Self::drop_snapshots(lead.snapshots, out);
        self.reroute_reads(out);
    }

    /// A leader of this term became known.
    fn on_new_leader(&mut self, out: &mut Effects<RaftMsg>) {
        self.settle_transfer(out);
        self.reroute_reads(out);
    }

    fn send(&self, to: NodeId, channel: Channel, msg: RaftMsg, after: IoSeq, out: &mut Effects<RaftMsg>) {
        debug_assert_ne!(to, self.cfg.node, "a replica does not write to itself");
        out.push(Effect::Send { to, channel, msg, after });
    }

    /// The write after which the term, the vote and the configurations are durable.
    const fn after_hard(&self) -> IoSeq {
        if self.batch.state { self.io.last.next() } else { self.io.hard }
    }

    const fn next_fetch(&mut self) -> FetchId {
        self.fetch += 1;
        FetchId(self.fetch)
    }

    /// Whether this leader committed an entry of its own term: from then on it knows what is committed.
    fn has_committed_in_term(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| self.commit >= lead.first)
    }

    fn shown_role(&self) -> Role {
        if self.role == Role::Follower && self.config().learners.contains(&self.cfg.node) {
            Role::Learner
        } else {
            self.role
        }
    }

    fn detail(&self) -> RaftDetail {
        let peers = self.lead.iter().flat_map(|lead| &lead.peers).map(|(&node, peer)| PeerDetail {
            node,
            matched: peer.matched,
            snapshot: peer.state == progress::State::Snapshot,
            heard_at: peer.heard_at,
        });
        RaftDetail {
            vote: self.vote,
            durable: self.io.durable_last,
            amnesia: self.amnesia,
            config_index: self.configs.latest().0,
            receiving_snapshot: self.incoming.is_some(),
            peers: peers.collect(),
        }
    }

    fn hash_state(&self, hasher: &mut DefaultHasher) {
        (self.term, self.vote, self.role, self.leader, &self.votes).hash(hasher);
        (self.log.base(), self.log.last(), self.commit, self.applying, self.applied).hash(hasher);
        for run in self.log.runs() {
            (run.epoch, run.first, run.last).hash(hasher);
        }
        for (index, config) in self.configs.iter() {
            (index, config).hash(hasher);
        }
        (self.io.last.0 - self.io.durable.0, self.io.durable_last, self.stopped, self.amnesia).hash(hasher);
        self.transfer.as_ref().map(|transfer| transfer.target).hash(hasher);
        for (node, peer) in self.lead.iter().flat_map(|lead| &lead.peers) {
            (node, peer.matched, peer.next, peer.state, peer.probed_at.is_some()).hash(hasher);
        }
    }

    /// Checks what must hold between any two steps. Panics where it does not.
    pub fn check_invariants(&self) {
        self.log.check_invariants();
        self.reads.check_invariants();
        assert!(self.batch.is_empty() || self.io.last == self.io.durable, "a step left its write behind");
        assert!(self.log.base().index <= self.applied, "G7: released beyond what is applied");
        assert!(self.applied <= self.applying, "G7: applied what was not handed over");
        assert!(self.applying <= self.commit, "G7: applying beyond the commit");
        assert!(self.commit <= self.log.last().index, "G7: committed beyond the log");
        assert!(self.log.last().epoch <= self.term, "an entry of a later term");
        assert!(self.configs.latest().0 <= self.log.last().index, "a configuration beyond the log");
        assert_eq!(self.lead.is_some(), self.role == Role::Leader, "a leader's state without the role");
        if self.role == Role::Leader {
            assert_eq!(self.leader, Some(self.cfg.node), "a leader follows nobody");
            assert!(!self.is_installing(), "a leader installs no snapshot");
        }
        if matches!(self.role, Role::Candidate | Role::PreCandidate) {
            assert_eq!(self.leader, None, "a candidate knows no leader");
        }
        if self.role == Role::Candidate {
            assert_eq!(self.vote, Some(self.cfg.node), "a candidate votes for itself");
        }
        for peer in self.lead.iter().flat_map(|lead| lead.peers.values()) {
            peer.check_invariants(&self.cfg, self.log.last().index);
        }
    }

    /// The replica in a few numbers. Cheap: no allocation.
    pub fn state(&self) -> RaftState {
        RaftState {
            role: self.role,
            term: self.term,
            leader: self.leader,
            last: self.log.last(),
            commit: self.commit,
            applied: self.applied,
            base: self.log.base().index,
            config_index: self.configs.latest().0,
        }
    }

    /// The epoch of the entry at `index`, if this replica knows it.
    pub fn epoch_at(&self, index: Index) -> Option<Epoch> {
        self.log.epoch_at(index)
    }

    /// The configuration in force, and where it stands in the log, committed or not.
    pub fn configuration(&self) -> (Index, &Configuration) {
        let (index, config) = self.configs.latest();
        (*index, config)
    }

    /// Every write ≤ this is durable, as far as this replica was told.
    pub const fn durable(&self) -> IoSeq {
        self.io.durable
    }

    /// Puts the state of this replica on one line, for scripts.
    pub fn summary(&self) -> String {
        let vote = self.vote.map_or_else(|| "-".to_owned(), |node| format!("{node:?}"));
        let leader = self.leader.map_or_else(|| "-".to_owned(), |node| format!("{node:?}"));
        format!(
            "{:?} {:?} vote={vote} leader={leader} last={:?} commit={} applied={}",
            self.shown_role(),
            self.term,
            self.log.last(),
            self.commit.0,
            self.applied.0
        )
    }
}

// The bugs a simulated replica may run with. In production each is constant and false.
#[cfg(feature = "mutants")]
impl Raft {
    fn has(&self, mutant: crate::Mutant) -> bool {
        self.cfg.mutant == Some(mutant)
    }

    fn mutant_vote_before_durable(&self) -> bool {
        self.has(crate::Mutant::VoteBeforeDurable)
    }

    fn mutant_higher_term_is_grant(&self) -> bool {
        self.has(crate::Mutant::HigherTermIsGrant)
    }

    fn mutant_commit_older_term(&self) -> bool {
        self.has(crate::Mutant::CommitOlderTerm)
    }

    fn mutant_apply_before_durable(&self) -> bool {
        self.has(crate::Mutant::ApplyBeforeDurable) && self.config().is_quorum(|node| node == self.cfg.node)
    }

    fn mutant_no_log_match(&self, prev: Position) -> bool {
        self.has(crate::Mutant::NoLogMatch) && prev.index <= self.log.last().index
    }

    fn mutant_stale_completion(&self) -> bool {
        self.has(crate::Mutant::StaleCompletion)
    }
}

#[cfg(not(feature = "mutants"))]
#[expect(clippy::unused_self, reason = "the same calls as with mutants")]
impl Raft {
    const fn mutant_vote_before_durable(&self) -> bool {
        false
    }

    const fn mutant_higher_term_is_grant(&self) -> bool {
        false
    }

    const fn mutant_commit_older_term(&self) -> bool {
        false
    }

    const fn mutant_apply_before_durable(&self) -> bool {
        false
    }

    const fn mutant_no_log_match(&self, _: Position) -> bool {
        false
    }

    const fn mutant_stale_completion(&self) -> bool {
        false
    }
}
