//! State: applies the log, answers reads, feeds watches, hands out flushes and snapshots.
//!
//! It owns the replicated state of group 0 and the leader's clock over leases. It never speaks to the network but to
//! answer a peer's question about a lease, and never decides what gets into the log.
//!
//! 1. What is applied depends on the log alone; the clock only decides when flushes leave and which leases the leader
//!    proposes to end.
//! 2. One flush is out at a time; each carries the state after exactly one index, its mark, and the sessions there.
//! 3. Between a snapshot's install being asked and its end no flush leaves: it would write over the new state.
//! 4. The clock over leases runs only while this member leads and has applied an entry of its own epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use triune_consensus::MachineEffect;
use triune_consensus::session::{SessionId, SessionTable};
use triune_consensus::{Entry, Index, Position, SnapshotMark, SnapshotOp};
use triune_storage::{Epoch, OrderedStore, StoreError};
use triune_transport::{Channel, GroupId, Nanos, NodeId};
use triune_txn::mvcc;

use super::api::{
    AlarmKind, Fatal, Header, KvError, Output, Refusal, Reply, RequestId, Status, StreamId, WATCH_CREDIT_BYTES,
    WatchRequest,
};
use super::config::MemberLimits;
use super::edge::check_key;
use super::forward::{Forward, LeaseAnswer, LeaseAsk, encode};
use super::order::Effects;
use super::queues::{Asker, Progress, Queues, Read, ReadWhat, RoleNow, ToEdge, ToOrder, ToState};
use super::rng::mix;
use super::system::{KV_TABLES, MemberRecord, SESSION_TABLE, System, SystemError};

/// Why a store cannot be a group's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The key-value store cannot be read.
    #[error(transparent)]
    Kv(#[from] mvcc::OpenError),
    /// The system tables cannot be read.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The session table cannot be read.
    #[error("a session row is damaged: {0}")]
    Sessions(#[from] triune_consensus::session::SessionRowError),
    /// The tables were not written together.
    #[error("the tables are of different indexes: {kv} and {system}")]
    Torn {
        /// The key-value store's index.
        kv: u64,
        /// The system tables'.
        system: u64,
    },
}

/// Who this member is, and what of it the state needs.
#[derive(Clone, Debug)]
pub(super) struct Me {
    pub(super) cluster: u64,
    pub(super) node: NodeId,
    pub(super) boot: u64,
    pub(super) election_min: Nanos,
    pub(super) election_max: Nanos,
}

/// Whether the leader's clock runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    No,
    /// It leads, and has not yet seen itself commit.
    Unproven(Epoch),
    Proven(Epoch),
}

/// A watch stream.
#[derive(Debug)]
struct Stream {
    key: mvcc::StreamKey,
    needs_leader: bool,
    /// Bytes handed to the door and not yet taken.
    on_way: usize,
}

/// What is known of flushes.
#[derive(Debug, Default)]
struct Flushes {
    /// The one that is out.
    out: Option<(mvcc::FlushMark, Position)>,
    /// When the next must leave.
    due: Option<Nanos>,
    /// Payload bytes applied since the last.
    bytes: usize,
    /// The last one known to be durable.
    durable: Index,
    /// A snapshot at or above this index is wanted as soon as it is durable.
    take: Option<Index>,
    /// A snapshot is being installed.
    installing: bool,
}

/// The state machine of group 0.
#[derive(Debug)]
pub(super) struct State {
    pub(super) me: Me,
    group: GroupId,
    limits: MemberLimits,
    pub(super) store: mvcc::Store,
    pub(super) hub: mvcc::WatcherHub,
    pub(super) leases: mvcc::LeaseClock,
    pub(super) system: System,
    pub(super) sessions: SessionTable,
    /// This boot's session.
    pub(super) my_session: Option<SessionId>,
    role: RoleNow,
    lead: Lead,
    leaderless_since: Option<Nanos>,
    /// Reads that wait for their index.
    reads: BTreeMap<Index, Vec<Read>>,
    /// Who waits for a compaction's removal.
    removals: Vec<(RequestId, Nanos)>,
    streams: BTreeMap<StreamId, Stream>,
    by_key: BTreeMap<mvcc::StreamKey, StreamId>,
    ready: Vec<mvcc::StreamKey>,
    /// A watch has more to say although nothing happened.
    poll_again: bool,
    flushes: Flushes,
    progress_at: Nanos,
    /// When reads whose time is up are looked for next.
    sweep_at: Option<Nanos>,
    /// What was last told of the member table.
    members: Arc<Vec<MemberRecord>>,
    pub(super) members_changed: bool,
    /// Disks that were replaced.
    former: BTreeSet<NodeId>,
    member_id: u64,
    /// The member table named this disk once: if it no longer does, another took its place.
    listed: bool,
    dead: bool,
}

/// The pieces a store holds.
struct Opened {
    store: mvcc::Store,
    system: System,
    sessions: SessionTable,
}

fn open(disk: Arc<dyn OrderedStore>) -> Result<Opened, StateError> {
    let store = mvcc::Store::open(Arc::clone(&disk), KV_TABLES, mvcc::StoreLimits::default())?;
    let view = disk.view().map_err(SystemError::from)?;
    let system = System::read(&*view)?;
    let mut rows = Vec::new();
    view.scan(SESSION_TABLE, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        true
    })
    .map_err(SystemError::from)?;
    let sessions = SessionTable::from_rows(rows)?;
    if store.applied() != system.position.index {
        return Err(StateError::Torn { kv: store.applied().0, system: system.position.index.0 });
    }
    Ok(Opened { store, system, sessions })
}

impl State {
    /// Reads the state out of its store.
    pub(super) fn recover(
        me: Me,
        group: GroupId,
        limits: MemberLimits,
        disk: Arc<dyn OrderedStore>,
        now: Nanos,
    ) -> Result<Self, StateError> {
        let Opened { store, system, sessions } = open(disk)?;
        let mut hub = mvcc::WatcherHub::new(mvcc::WatchLimits::default());
        hub.resync(&store);
        let durable = store.applied();
        let mut state = Self {
            group,
            store,
            hub,
            leases: mvcc::LeaseClock::new(),
            system,
            sessions,
            my_session: None,
            role: RoleNow::default(),
            lead: Lead::No,
            leaderless_since: Some(now),
            reads: BTreeMap::new(),
            removals: Vec::new(),
            streams: BTreeMap::new(),
            by_key: BTreeMap::new(),
            ready: Vec::new(),
            poll_again: false,
            flushes: Flushes { durable, ..Flushes::default() },
            progress_at: now.after(limits.progress_every),
            sweep_at: None,
            members: Arc::default(),
            members_changed: true,
            former: BTreeSet::new(),
            member_id: 0,
            listed: false,
            dead: false,
            me,
            limits,
        };
        state.follow_members();
        Ok(state)
    }

    /// The last position applied.
    pub(super) const fn position(&self) -> Position {
        self.system.position
    }

    /// The state's digest: equal at equal index on every member.
    pub(super) const fn digest(&self) -> u64 {
        mix(self.store.digest() ^ mix(self.system.digest()))
    }

    /// Whether another disk took this one's place.
    pub(super) fn is_former(&self, node: NodeId) -> bool {
        self.former.contains(&node)
    }

    pub(super) const fn is_dead(&self) -> bool {
        self.dead
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        let flush = self.flushes.due.filter(|_| self.flushes.out.is_none() && !self.flushes.installing);
        let streams = self.leaderless_since.filter(|_| self.streams.values().any(|s| s.needs_leader));
        [
            flush,
            self.leases.next_deadline(),
            (!self.streams.is_empty()).then_some(self.progress_at),
            self.sweep_at,
            streams.map(|since| since.after(self.me.election_max)),
            self.poll_again.then_some(Nanos::ZERO),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn step(&mut self, now: Nanos, input: ToState, queues: &mut Queues, out: &mut Effects) {
        if self.dead {
            return;
        }
        match input {
            ToState::Apply(entries) => self.on_apply(now, entries, queues, out),
            ToState::Read { index, reads } => self.on_read(now, index, reads, queues, out),
            ToState::Role(role) => self.on_role(now, role, queues),
            ToState::SnapshotOp(op) => self.on_snapshot_op(op, out),
            ToState::Installed { mark, store } => self.on_installed(now, &mark, store, queues, out),
            ToState::SnapshotFailed => self.flushes.installing = false,
            ToState::Flushed(mark) => self.on_flushed(now, mark, queues, out),
            ToState::AwaitRemoval { id, deadline } => {
                self.removals.push((id, deadline));
                self.sweep_at.get_or_insert(now.after(SWEEP_EVERY));
                self.answer_removals(out);
            }
            ToState::Watch { stream, event } => self.on_watch(stream, event, out),
            ToState::Status { id, status } => self.on_status(id, status, out),
            ToState::Timeout => self.on_timeout(now, queues, out),
            ToState::Cancel(id) => self.on_cancel(id),
            ToState::Drain => self.end_streams(|_| true, &Refusal::Stopped, out),
        }
    }

    /// The end of a turn: what watches can take, and a flush if it is time.
    pub(super) fn idle(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        if self.dead {
            return;
        }
        if let Err(error) = self.feed_watches(out) {
            return self.end(fatal_of(&error, self.group), out);
        }
        self.flush(now, out);
        if self.members_changed {
            self.tell_members(queues, out);
        }
    }

    /// What goes with every answer.
    pub(super) fn header(&self) -> Header {
        Header {
            cluster_id: self.me.cluster,
            member_id: self.member_id,
            revision: self.store.revision(),
            raft_term: self.role.epoch.0,
        }
    }

    pub(super) fn reply(&self, id: RequestId, result: Result<Reply, Refusal>, out: &mut Effects) {
        out.push(MachineEffect::Output(Output::Reply { id, header: self.header(), result }));
    }

    pub(super) fn end(&mut self, fatal: Fatal, out: &mut Effects) {
        tracing::error!(%fatal, "the member ends");
        self.dead = true;
        out.push(MachineEffect::Output(Output::Fatal(fatal)));
    }

    fn on_apply(&mut self, now: Nanos, entries: Vec<Entry>, queues: &mut Queues, out: &mut Effects) {
        for entry in entries {
            let position = entry.position;
            if position.index <= self.system.position.index {
                continue;
            }
            assert_eq!(position.index, self.system.position.index.next(), "entries are applied without a gap");
            self.flushes.bytes += entry.payload_bytes();
            if let Err(fatal) = self.apply(now, entry, queues) {
                return self.end(fatal, out);
            }
            self.system.position = position;
            if self.lead == Lead::Unproven(position.epoch) {
                self.lead = Lead::Proven(position.epoch);
                self.leases.promote(now, self.store.leases(), self.me.election_min);
            }
        }
        self.flushes.due.get_or_insert(now.after(self.limits.flush_every));
        let upto = self.system.position.index;
        queues.order.push_back(ToOrder::Applied { group: self.group, upto, stamp_ms: self.system.stamp_ms });
        self.applied_more(now, queues, out);
    }

    /// The applied index moved: tell the edge, answer the reads that waited for it.
    fn applied_more(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        if self.members_changed {
            self.follow_members();
            if self.dead {
                return self.end(Fatal::Replaced, out);
            }
        }
        self.tell_progress(queues);
        while let Some(first) = self.reads.first_entry() {
            if *first.key() > self.system.position.index {
                break;
            }
            for read in first.remove() {
                self.answer(now, read, queues, out);
            }
        }
    }

    fn on_role(&mut self, now: Nanos, role: RoleNow, queues: &mut Queues) {
        self.role = role;
        match self.lead {
            Lead::Unproven(epoch) | Lead::Proven(epoch) if role.leads() && role.epoch == epoch => {}
            _ => {
                self.leases.demote();
                self.lead = if role.leads() { Lead::Unproven(role.epoch) } else { Lead::No };
            }
        }
        if role.leader.is_some() {
            self.leaderless_since = None;
        } else {
            self.leaderless_since.get_or_insert(now);
        }
        self.tell_progress(queues);
    }

    fn tell_progress(&self, queues: &mut Queues) {
        queues.edge.push_back(ToEdge::Progress(Progress {
            header: self.header(),
            bytes: self.store.approx_bytes(),
            no_space: self.system.is_alarmed(AlarmKind::NoSpace),
            corrupt: self.system.is_alarmed(AlarmKind::Corrupt),
            members: Arc::clone(&self.members),
            config: Arc::clone(&self.system.config),
            proven: matches!(self.lead, Lead::Proven(_)),
        }));
    }

    /// Takes over a changed member table. Marks the member dead if its disk lost its place.
    fn follow_members(&mut self) {
        self.members = Arc::new(self.system.members.values().cloned().collect());
        self.former = self.members.iter().flat_map(|r| r.former_disks.iter().copied().map(NodeId)).collect();
        let mine = self.system.by_disk(self.me.node).map(|record| record.member_id);
        match mine {
            Some(id) => (self.member_id, self.listed) = (id, true),
            None if self.listed => self.dead = true,
            None => {}
        }
    }

    fn tell_members(&mut self, queues: &mut Queues, out: &mut Effects) {
        self.members_changed = false;
        self.tell_progress(queues);
        if !self.members.is_empty() {
            out.push(MachineEffect::Output(Output::Members((*self.members).clone())));
        }
    }

    fn on_timeout(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        self.poll_again = false;
        if let Lead::Proven(epoch) = self.lead
            && self.leases.next_deadline().is_some_and(|due| due <= now)
        {
            let checkpoints: Vec<_> = self
                .leases
                .checkpoints(now, LEASES_AT_ONCE)
                .into_iter()
                .map(|(id, remaining_s)| mvcc::LeaseCheckpoint { id, remaining_s })
                .collect();
            if !checkpoints.is_empty() {
                queues.edge.push_back(ToEdge::Checkpoint { epoch, checkpoints });
            }
            let leases = self.leases.expired(now, LEASES_AT_ONCE);
            if !leases.is_empty() {
                queues.edge.push_back(ToEdge::Expired { epoch, leases });
            }
        }
        if self.progress_at <= now {
            self.progress_at = now.after(self.limits.progress_every);
            self.hub.tick_progress(&self.store);
        }
        if self.leaderless_since.is_some_and(|since| since.after(self.me.election_max) <= now) {
            self.end_streams(|stream| stream.needs_leader, &Refusal::NoLeader, out);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.give_up(now, out);
        }
    }

    /// Answers those whose time is up.
    fn give_up(&mut self, now: Nanos, out: &mut Effects) {
        let mut late = Vec::new();
        for reads in self.reads.values_mut() {
            late.extend(reads.extract_if(.., |read| read.deadline <= now).map(|read| read.asker));
        }
        self.reads.retain(|_, reads| !reads.is_empty());
        late.extend(self.removals.extract_if(.., |(_, at)| *at <= now).map(|(id, _)| Asker::Door(id)));
        for asker in late {
            if let Asker::Door(id) = asker {
                self.reply(id, Err(Refusal::TimedOut), out);
            }
        }
        let waits = !self.reads.is_empty() || !self.removals.is_empty();
        self.sweep_at = waits.then(|| now.after(SWEEP_EVERY));
    }

    fn on_cancel(&mut self, id: RequestId) {
        for reads in self.reads.values_mut() {
            reads.retain(|read| read.asker != Asker::Door(id));
        }
        self.removals.retain(|(waiting, _)| *waiting != id);
    }
}

// Flushes and snapshots.
impl State {
    fn flush(&mut self, now: Nanos, out: &mut Effects) {
        let wanted = self.flushes.take.is_some()
            || self.flushes.bytes >= self.limits.flush_bytes
            || self.flushes.due.is_some_and(|due| due <= now);
        if !wanted || self.flushes.out.is_some() || self.flushes.installing {
            return;
        }
        self.flushes.due = None;
        self.flushes.bytes = 0;
        let Some(mvcc::FlushBatch { mut batch, mark }) = self.store.take_flush() else {
            self.take_snapshot(out);
            return;
        };
        self.system.take_rows(&mut batch);
        for (key, row) in self.sessions.take_changes() {
            batch.ops.push((SESSION_TABLE, key, row));
        }
        let position = self.system.position;
        assert_eq!(mark.applied, position.index, "a flush is the state after one index");
        self.flushes.out = Some((mark, position));
        out.push(MachineEffect::Output(Output::Flush { group: self.group, batch, mark: position }));
    }

    fn on_flushed(&mut self, now: Nanos, mark: Position, queues: &mut Queues, out: &mut Effects) {
        let Some((kv_mark, position)) = self.flushes.out.take_if(|(_, position)| *position == mark) else { return };
        self.store.flushed(kv_mark);
        self.flushes.durable = position.index;
        queues.order.push_back(ToOrder::Compact { group: self.group, upto: position.index });
        if !self.store.compaction_done() {
            self.flushes.due.get_or_insert(now.after(self.limits.flush_every));
        }
        self.answer_removals(out);
        self.take_snapshot(out);
    }

    fn answer_removals(&mut self, out: &mut Effects) {
        if self.store.compaction_done() {
            for (id, _) in std::mem::take(&mut self.removals) {
                self.reply(id, Ok(Reply::Compact), out);
            }
        }
    }

    /// Asks for the wanted snapshot once the store holds enough.
    fn take_snapshot(&mut self, out: &mut Effects) {
        if let Some(at_least) = self.flushes.take.take_if(|at_least| *at_least <= self.flushes.durable) {
            let op = SnapshotOp::Take { at_least };
            out.push(MachineEffect::Output(Output::Snapshot { group: self.group, op }));
        }
    }

    fn on_snapshot_op(&mut self, op: SnapshotOp, out: &mut Effects) {
        match op {
            SnapshotOp::Take { at_least } => {
                self.flushes.take = Some(at_least);
                self.take_snapshot(out);
                return;
            }
            SnapshotOp::Install { .. } => self.flushes.installing = true,
            _ => {}
        }
        out.push(MachineEffect::Output(Output::Snapshot { group: self.group, op }));
    }

    fn on_installed(
        &mut self,
        now: Nanos,
        mark: &SnapshotMark,
        disk: Arc<dyn OrderedStore>,
        queues: &mut Queues,
        out: &mut Effects,
    ) {
        let opened = match open(disk) {
            Ok(opened) if opened.system.position == mark.position => opened,
            Ok(_) | Err(_) => return self.end(Fatal::Corrupt(self.group), out),
        };
        assert!(mark.position.index >= self.system.position.index, "a snapshot never goes back");
        let Opened { store, system, sessions } = opened;
        self.store = store;
        self.system = system;
        self.sessions = sessions;
        self.hub.resync(&self.store);
        self.leases.demote();
        self.lead = if self.role.leads() { Lead::Unproven(self.role.epoch) } else { Lead::No };
        self.flushes = Flushes { durable: mark.position.index, ..Flushes::default() };
        let mine = self.sessions.of_member(self.me.node.0).filter(|(_, boot)| *boot == self.me.boot);
        self.my_session = mine.map(|(session, _)| session);
        let sessions = Box::new(self.sessions.clone());
        queues.edge.push_back(ToEdge::Leapt { header: self.header(), session: self.my_session, sessions });
        self.members_changed = true;
        self.applied_more(now, queues, out);
    }
}

// Reads.
impl State {
    fn on_read(&mut self, now: Nanos, index: Index, mut reads: Vec<Read>, queues: &mut Queues, out: &mut Effects) {
        if index > self.system.position.index {
            let waiting: usize = self.reads.values().map(Vec::len).sum();
            let room = self.limits.waiting_max.saturating_sub(waiting);
            for read in reads.split_off(room.min(reads.len())) {
                if let Asker::Door(id) = read.asker {
                    self.reply(id, Err(Refusal::Busy), out);
                }
            }
            self.reads.entry(index).or_default().extend(reads);
            self.sweep_at.get_or_insert(now.after(SWEEP_EVERY));
            return;
        }
        for read in reads {
            self.answer(now, read, queues, out);
        }
    }

    fn answer(&mut self, now: Nanos, read: Read, queues: &mut Queues, out: &mut Effects) {
        if self.dead {
            return;
        }
        let result = match &read.what {
            ReadWhat::Lease(ask) => return self.answer_lease(now, *ask, read, queues, out),
            ReadWhat::Range(op) => self.store.range(op).map(Reply::Range).map_err(StateRefusal::from),
            ReadWhat::Txn(op) => match self.store.txn_read(op) {
                Ok(Some(result)) => Ok(Reply::Txn(result)),
                // Only read-only transactions come here.
                Ok(None) => Err(StateRefusal::Refused(Refusal::Unknown)),
                Err(error) => Err(error.into()),
            },
            ReadWhat::HashKv(revision) => self.store.hash_kv(*revision).map_err(StateRefusal::from).map(|hash| {
                let mvcc::HashKv { hash, compact_revision, hash_revision, .. } = hash;
                Reply::Hash { hash, compact_revision, hash_revision }
            }),
            ReadWhat::Hash => Ok(Reply::Hash {
                hash: u32::try_from(self.digest() & u64::from(u32::MAX)).unwrap_or(0),
                compact_revision: self.store.compacted(),
                hash_revision: self.store.revision(),
            }),
            ReadWhat::Leases => Ok(Reply::Leases(self.store.leases().iter().map(|lease| lease.id).collect())),
            ReadWhat::Alarms { member, alarm } => Ok(Reply::Alarms(self.system.alarms_of(*member, *alarm))),
            ReadWhat::MemberList => Ok(Reply::MemberList(self.system.members.values().cloned().collect())),
            ReadWhat::Health => Ok(Reply::Health),
        };
        match (result, read.asker) {
            (Ok(reply), Asker::Door(id)) => self.reply(id, Ok(reply), out),
            (Err(StateRefusal::Refused(refusal)), Asker::Door(id)) => self.reply(id, Err(refusal), out),
            (Err(StateRefusal::Store(error)), _) => self.end(fatal_of(&error, self.group), out),
            // Peers ask about leases only.
            (_, Asker::Peer { .. }) => {}
        }
    }

    fn answer_lease(&mut self, now: Nanos, ask: LeaseAsk, read: Read, queues: &mut Queues, out: &mut Effects) {
        let answer = match ask {
            LeaseAsk::KeepAlive(id) => match self.leases.renew(now, id) {
                mvcc::Renewal::Renewed { ttl_s, checkpointed } => {
                    if let (true, Lead::Proven(epoch)) = (checkpointed, self.lead) {
                        let checkpoints = vec![mvcc::LeaseCheckpoint { id, remaining_s: 0 }];
                        queues.edge.push_back(ToEdge::Checkpoint { epoch, checkpoints });
                    }
                    LeaseAnswer::KeepAlive { ttl: ttl_s }
                }
                mvcc::Renewal::NotFound => LeaseAnswer::KeepAlive { ttl: 0 },
                // Its revoke is under way, or another leads: ask again.
                mvcc::Renewal::Expired | mvcc::Renewal::NotLeader => LeaseAnswer::NotLeader,
            },
            LeaseAsk::TimeToLive { .. } if !self.leases.is_leading() => LeaseAnswer::NotLeader,
            LeaseAsk::TimeToLive { id, keys } => match (self.store.leases().get(id), self.leases.remaining(now, id)) {
                (Some(lease), Some(left)) => LeaseAnswer::TimeToLive {
                    ttl: i64::try_from(left.0 / 1_000_000_000).unwrap_or(i64::MAX),
                    granted: lease.ttl_s,
                    keys: if keys { lease.keys.iter().cloned().collect() } else { Vec::new() },
                },
                _ => LeaseAnswer::TimeToLive { ttl: -1, granted: 0, keys: Vec::new() },
            },
        };
        match read.asker {
            Asker::Peer { node, req } => {
                let frame = encode(self.group, &Forward::LeaseAnswer { req, answer });
                out.push(MachineEffect::Send { to: node, channel: Channel::Forward, frame });
            }
            Asker::Door(_) if answer == LeaseAnswer::NotLeader => queues.edge.push_back(ToEdge::LeaseRetry(read)),
            Asker::Door(id) => self.reply(id, Ok(lease_reply(ask, answer)), out),
        }
    }

    fn on_status(&self, id: RequestId, mut status: Box<Status>, out: &mut Effects) {
        let applied = self.system.position.index.0;
        status.leader = self.role.leader.and_then(|node| self.system.by_disk(node)).map_or(0, |r| r.member_id);
        status.applied = applied;
        status.caught_up = self.role.leader.is_some() && applied >= status.commit;
        status.db_bytes = self.store.approx_bytes();
        status.db_bytes_in_use = self.store.approx_bytes();
        status.keys = self.store.keys_len() as u64;
        status.watchers = self.hub.watch_counts().0 as u64;
        status.leases = self.store.leases().len() as u64;
        status.digest = self.digest();
        status.alarms = self.system.alarms_of(0, None);
        self.reply(id, Ok(Reply::Status(status)), out);
    }
}

// Watches.
impl State {
    fn on_watch(&mut self, id: StreamId, event: WatchRequest, out: &mut Effects) {
        if let WatchRequest::Open { needs_leader } = event {
            let refusal = if self.streams.len() >= self.limits.streams_max {
                Some(Refusal::Busy)
            } else {
                (needs_leader && self.role.leader.is_none()).then_some(Refusal::NoLeader)
            };
            if let Some(refusal) = refusal {
                out.push(MachineEffect::Output(Output::WatchEnd { stream: id, refusal }));
                return;
            }
            let key = self.hub.open_stream();
            self.streams.insert(id, Stream { key, needs_leader, on_way: 0 });
            self.by_key.insert(key, id);
            return;
        }
        // Anything else may cross the stream's end on its way here.
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let key = stream.key;
        if let WatchRequest::Create(wish) = &event
            && let Err(refusal) = check_key(&wish.key)
        {
            return self.end_streams(|stream| stream.key == key, &refusal, out);
        }
        match event {
            WatchRequest::Open { .. } => {}
            WatchRequest::Create(wish) => self.hub.create(key, &self.store, &wish),
            WatchRequest::Cancel { watch_id } => self.hub.cancel(key, &self.store, watch_id),
            WatchRequest::Progress => self.hub.request_progress(key),
            WatchRequest::Taken { bytes } => stream.on_way = stream.on_way.saturating_sub(bytes),
            WatchRequest::Close => {
                self.streams.remove(&id);
                self.by_key.remove(&key);
                self.hub.close_stream(key);
                return;
            }
        }
        if self.hub.control_len(key) > CONTROL_MAX {
            self.end_streams(|stream| stream.key == key, &Refusal::Busy, out);
        }
    }

    fn end_streams(&mut self, which: impl Fn(&Stream) -> bool, refusal: &Refusal, out: &mut Effects) {
        let ended: Vec<StreamId> = self.streams.iter().filter(|(_, s)| which(s)).map(|(id, _)| *id).collect();
        for id in ended {
            let Some(stream) = self.streams.remove(&id) else { continue };
            self.by_key.remove(&stream.key);
            self.hub.close_stream(stream.key);
            out.push(MachineEffect::Output(Output::WatchEnd { stream: id, refusal: refusal.clone() }));
        }
    }

    fn feed_watches(&mut self, out: &mut Effects) -> Result<(), StoreError> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.extend(self.hub.ready());
        let header = self.header();
        for key in ready.drain(..) {
            let Some(id) = self.by_key.get(&key).copied() else { continue };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if stream.on_way >= WATCH_CREDIT_BYTES {
                continue;
            }
            let responses = self.hub.poll(key, &self.store, WATCH_CREDIT_BYTES - stream.on_way)?;
            let bytes = responses.iter().map(response_bytes).sum();
            stream.on_way += bytes;
            self.poll_again |= self.hub.is_ready(key) && stream.on_way < WATCH_CREDIT_BYTES;
            if !responses.is_empty() {
                out.push(MachineEffect::Output(Output::Watch { stream: id, header, responses, bytes }));
            }
        }
        self.ready = ready;
        Ok(())
    }
}

/// A read's refusal, or the end of the member.
enum StateRefusal {
    Refused(Refusal),
    Store(StoreError),
}

impl From<mvcc::RangeError> for StateRefusal {
    fn from(error: mvcc::RangeError) -> Self {
        match error {
            mvcc::RangeError::Store(error) => Self::Store(error),
            mvcc::RangeError::Compacted { compacted } => Self::Refused(Refusal::Kv(KvError::Compacted { compacted })),
            mvcc::RangeError::FutureRev { current } => Self::Refused(Refusal::Kv(KvError::FutureRev { current })),
            _ => Self::Refused(Refusal::Kv(KvError::Unnamed)),
        }
    }
}

impl From<mvcc::ApplyError<mvcc::TxnError>> for StateRefusal {
    fn from(error: mvcc::ApplyError<mvcc::TxnError>) -> Self {
        match error {
            mvcc::ApplyError::Refused(error) => Self::Refused(Refusal::Kv(error.into())),
            mvcc::ApplyError::Store(error) => Self::Store(error),
        }
    }
}

/// The answer to a door's question about a lease.
pub(super) fn lease_reply(ask: LeaseAsk, answer: LeaseAnswer) -> Reply {
    match (ask, answer) {
        (LeaseAsk::KeepAlive(id), LeaseAnswer::KeepAlive { ttl }) => Reply::LeaseKeepAlive { id, ttl },
        (LeaseAsk::TimeToLive { id, .. }, LeaseAnswer::TimeToLive { ttl, granted, keys }) => {
            Reply::LeaseTimeToLive { id, ttl, granted, keys }
        }
        // A peer that answers another question than was asked knows no such lease.
        (LeaseAsk::KeepAlive(id), _) => Reply::LeaseKeepAlive { id, ttl: 0 },
        (LeaseAsk::TimeToLive { id, .. }, _) => Reply::LeaseTimeToLive { id, ttl: -1, granted: 0, keys: Vec::new() },
    }
}

/// How a store's failure ends the member.
pub(super) fn fatal_of(error: &StoreError, group: GroupId) -> Fatal {
    match error {
        StoreError::Corrupt { .. } => Fatal::Corrupt(group),
        _ => Fatal::Storage,
    }
}

/// What a response costs its stream's credit.
fn response_bytes(response: &mvcc::WatchResponse) -> usize {
    RESPONSE_BYTES + response.events.iter().map(|event| EVENT_BYTES + event.bytes()).sum::<usize>()
}

/// What a response costs beside its events.
const RESPONSE_BYTES: usize = 64;
/// What an event costs beside its keys and values.
const EVENT_BYTES: usize = 64;
/// Answers a stream may leave lying before it is ended: its client asks and does not listen.
const CONTROL_MAX: usize = 10_000;
/// How often reads whose time is up are looked for.
const SWEEP_EVERY: Nanos = Nanos::from_millis(100);
/// Leases ended or recorded in one go.
const LEASES_AT_ONCE: usize = 1_000;
