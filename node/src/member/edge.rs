//! Edge: the doors' side of a member. It takes calls, turns them into commands and reads, and keeps each until the own
//! state answers it or its time is up.
//!
//! ```text
//!          ┌── refused: broke a rule, quota, too many wait, no leader and the client will not wait
//!  call ───┼── at once: serializable reads, status
//!          ├── read ──▶ let through by the leader ──▶ answered by the state       ⟲ under a fresh name on failure
//!          ╰── command ──▶ forwarded to the leader ──▶ answered from own apply    ⟲ under the same name on any doubt
//! ```
//! 1. A command is forwarded again only under the number it has; so it is carried out at most once.
//! 2. A client is told *refused* only of what was never put into a log; of all else it is told what apply found, or
//!    that nobody knows.
//! 3. What the leader decides by itself (ending leases) it proposes to itself alone, in the epoch it decided it in.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use prost::Message;
use triune_consensus::session::{Seq, SessionId, SessionTable, SessionTag, Verdict};
use triune_consensus::{AdminError, AdminId, AdminOp, ConfigChange, Index, MachineEffect, ReadError, ReadId};
use triune_storage::Epoch;
use triune_transport::{Channel, GroupId, Nanos, NodeId};
use triune_txn::mvcc;

use super::api::{AlarmAction, AlarmKind, Call, Header, KvError, Output, Refusal, Reply, RequestId, Status};
use super::apply::holds_put;
use super::command::{AlarmOp, Command, Envelope, FormCluster, Head, MemberJoin, MemberUpdate, Op, OpenSession};
use super::config::MemberLimits;
use super::forward::{Forward, LeaseAnswer, LeaseAsk, Refused, encode, put_command};
use super::order::{Effects, TRANSFER_ANY};
use super::queues::{Asker, EdgeFrame, Progress, Queues, Read, ReadWhat, RoleNow, ToEdge, ToOrder, ToState};
use super::rng::{Rng, mix};
use super::state::lease_reply;
use super::system::{MemberRecord, alarm_number};
use super::window::{Duty, Pending, Who, Window};

/// What the edge is started with.
#[derive(Debug)]
pub(super) struct EdgeConfig {
    pub(super) node: NodeId,
    pub(super) boot: u64,
    /// The first member table; empty where this disk came later.
    pub(super) first: Vec<MemberRecord>,
    /// What this member says of itself.
    pub(super) announce: MemberUpdate,
    pub(super) limits: MemberLimits,
    pub(super) election_min: Nanos,
    pub(super) election_max: Nanos,
    pub(super) seed: u64,
}

/// A door's question about a lease that another member answers.
#[derive(Debug)]
struct LeaseWait {
    id: RequestId,
    ask: LeaseAsk,
    deadline: Nanos,
    /// `None`: to be sent at the next occasion.
    sent_at: Option<Nanos>,
}

/// Who waits for an administrative request.
#[derive(Clone, Copy, Debug)]
enum AdminWait {
    Move { id: RequestId, deadline: Nanos },
    Drain,
    Reconcile,
}

/// The edge machine.
#[derive(Debug)]
pub(super) struct Edge {
    config: EdgeConfig,
    request_limits: mvcc::RequestLimits,
    rng: Rng,
    role: RoleNow,
    state: Progress,
    links: BTreeSet<NodeId>,

    session: Option<SessionId>,
    /// When the session was asked for last.
    session_asked: Option<Nanos>,
    window: Window,
    /// Commands made in this turn.
    fresh: Vec<u64>,
    /// All of them must be sent again: leader or session changed.
    resend: bool,

    next_read: u64,
    /// Reads of this turn.
    read_batch: Vec<Read>,
    /// Reads the replica was asked for.
    reads: BTreeMap<ReadId, Vec<Read>>,
    /// Reads that were not let through, to be asked for again.
    read_again: Vec<Read>,
    reads_waiting: usize,

    /// Begins elsewhere at each start: a late answer to a question of an earlier boot must name none of this one's.
    next_ask: u64,
    leases: BTreeMap<u64, LeaseWait>,

    next_admin: u64,
    admin: BTreeMap<AdminId, AdminWait>,

    /// Duties that wait for their apply.
    duties: BTreeSet<Duty>,
    disk_full: bool,
    alarm_wanted: bool,
    draining: bool,
    drained: bool,
    tick_at: Option<Nanos>,
    leader_changes: u64,
    proposals: (u64, u64),
    buf: BytesMut,
}

impl Edge {
    pub(super) fn new(config: EdgeConfig) -> Self {
        let request_limits = mvcc::RequestLimits {
            txn_ops_max: config.limits.txn_ops_max,
            lease_ttl_min_s: config.limits.lease_ttl_s_min,
            ..mvcc::RequestLimits::default()
        };
        Self {
            request_limits,
            rng: Rng::new(config.seed),
            role: RoleNow::default(),
            state: Progress::default(),
            links: BTreeSet::new(),
            session: None,
            session_asked: None,
            window: Window::new(),
            fresh: Vec::new(),
            resend: false,
            next_read: 0,
            read_batch: Vec::new(),
            reads: BTreeMap::new(),
            read_again: Vec::new(),
            reads_waiting: 0,
            next_ask: mix(config.seed) >> 1,
            leases: BTreeMap::new(),
            next_admin: 0,
            admin: BTreeMap::new(),
            duties: BTreeSet::new(),
            disk_full: false,
            alarm_wanted: false,
            draining: false,
            drained: false,
            tick_at: None,
            leader_changes: 0,
            proposals: (0, 0),
            buf: BytesMut::new(),
            config,
        }
    }

    pub(super) const fn next_deadline(&self) -> Option<Nanos> {
        self.tick_at
    }

    pub(super) fn step(&mut self, now: Nanos, input: ToEdge, queues: &mut Queues, out: &mut Effects) {
        match input {
            ToEdge::Call { id, within, needs_leader, call } => {
                self.on_call(now, id, within, needs_leader, call, queues, out);
            }
            ToEdge::Applied { session, seq, header, result } => {
                if self.session == Some(session) {
                    self.on_applied(seq, header, result, queues, out);
                }
            }
            ToEdge::ReadReady { id, outcome } => self.on_read_ready(id, outcome, queues),
            ToEdge::Refused { refused } => self.on_refused(now, &refused, out),
            ToEdge::Frame { from, message } => self.on_frame(now, from, message, out),
            ToEdge::Role(role) => self.on_role(role, out),
            ToEdge::Progress(progress) => self.state = progress,
            ToEdge::Timeout => self.on_tick(now, queues, out),
            ToEdge::SessionOpened(session) => self.on_session(Some(session)),
            ToEdge::SessionClosed => self.on_session(None),
            ToEdge::Leapt { header, session, sessions } => self.on_leapt(header, session, *sessions, out),
            ToEdge::LeaseRetry(read) => self.lease_again(read),
            ToEdge::Expired { epoch, leases } => {
                for id in leases {
                    let op = Op::LeaseRevoke(mvcc::LeaseRevokeOp { id });
                    self.propose_duty(now, Duty::Revoke, op, Some(epoch));
                }
            }
            ToEdge::Checkpoint { epoch, checkpoints } => {
                let op = Op::LeaseCheckpoint(mvcc::LeaseCheckpointOp { checkpoints });
                self.propose_duty(now, Duty::Checkpoint, op, Some(epoch));
            }
            ToEdge::AdminDone { id, outcome } => self.on_admin(id, &outcome, out),
            ToEdge::Link { peer, up } => {
                if up {
                    self.links.insert(peer)
                } else {
                    self.links.remove(&peer)
                };
            }
            ToEdge::Space { full } => {
                self.disk_full = full;
                self.alarm_wanted |= full;
            }
            ToEdge::Cancel(id) => self.on_cancel(id, queues),
            ToEdge::Drain => {
                self.draining = true;
                queues.state.push_back(ToState::Drain);
            }
        }
    }

    /// The end of a turn: duties, then everything gathered goes out together.
    pub(super) fn idle(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        self.do_duties(now, queues, out);
        self.ask_session(now, queues, out);
        self.send(now, queues, out);
        if !self.read_batch.is_empty() {
            self.next_read += 1;
            let id = ReadId(self.next_read);
            self.reads.insert(id, std::mem::take(&mut self.read_batch));
            queues.order.push_back(ToOrder::Read(id));
        }
        self.ask_leases(now, out);
        if self.has_work() {
            self.tick_at.get_or_insert(now.after(TICK));
        } else {
            self.tick_at = None;
        }
    }

    /// Whether something was gathered since the turn ended that can leave at once.
    pub(super) fn wants_turn(&self) -> bool {
        let can_send = self.session.is_some() && self.role.leader.is_some();
        (can_send && (self.resend || !self.fresh.is_empty())) || !self.read_batch.is_empty()
    }

    fn has_work(&self) -> bool {
        self.window.len() > 0
            || self.reads_waiting > 0
            || !self.leases.is_empty()
            || !self.admin.is_empty()
            || (self.draining && !self.drained)
            || (self.session.is_none() && self.role.leader.is_some())
            || (self.state.proven && self.has_reconciling())
    }

    fn patience(&self) -> Nanos {
        OWN_LIMIT.after(self.config.election_min).after(self.config.election_min)
    }

    fn reply(&self, id: RequestId, header: Header, result: Result<Reply, Refusal>, out: &mut Effects) {
        out.push(MachineEffect::Output(Output::Reply { id, header, result }));
    }

    fn refuse(&self, id: RequestId, refusal: Refusal, out: &mut Effects) {
        self.reply(id, self.state.header, Err(refusal), out);
    }
}

// Calls.
impl Edge {
    #[expect(clippy::too_many_arguments, reason = "the fields of one call, each used once")]
    fn on_call(
        &mut self,
        now: Nanos,
        id: RequestId,
        within: Option<Nanos>,
        needs_leader: bool,
        call: Call,
        queues: &mut Queues,
        out: &mut Effects,
    ) {
        let refusal = if self.draining && !matches!(call, Call::Status) {
            Some(Refusal::Stopped)
        } else {
            (needs_leader && self.role.leader.is_none()).then_some(Refusal::NoLeader)
        };
        if let Some(refusal) = refusal {
            return self.refuse(id, refusal, out);
        }
        let deadline = now.after(within.unwrap_or(Nanos::MAX).min(self.patience()));
        if let Err(refusal) = self.take_call(now, id, deadline, call, queues, out) {
            self.refuse(id, refusal, out);
        }
    }

    fn take_call(
        &mut self,
        now: Nanos,
        id: RequestId,
        deadline: Nanos,
        call: Call,
        queues: &mut Queues,
        out: &mut Effects,
    ) -> Result<(), Refusal> {
        match call {
            Call::Range { op, serializable } => {
                mvcc::check_range(&op).map_err(KvError::from)?;
                check_key(&op.key)?;
                self.read(id, deadline, ReadWhat::Range(op), !serializable, queues)
            }
            Call::Txn { op, serializable } => {
                mvcc::check_txn(&op, &self.request_limits).map_err(KvError::from)?;
                check_txn_keys(&op)?;
                if op.is_read_only() {
                    return self.read(id, deadline, ReadWhat::Txn(op), !serializable, queues);
                }
                let grows = holds_put(&op);
                self.propose(id, deadline, Op::Txn(op), grows)
            }
            Call::Put(op) => {
                mvcc::check_put(&op).map_err(KvError::from)?;
                check_key(&op.key)?;
                self.propose(id, deadline, Op::Put(op), true)
            }
            Call::DeleteRange(op) => {
                mvcc::check_delete_range(&op).map_err(KvError::from)?;
                check_key(&op.key)?;
                self.propose(id, deadline, Op::DeleteRange(op), false)
            }
            Call::Compact(op) => self.propose(id, deadline, Op::Compact(op), false),
            Call::LeaseGrant(mut op) => {
                while op.id == 0 {
                    op.id = i64::try_from(self.rng.draw() >> 1).unwrap_or(0);
                }
                mvcc::floor_ttl(&mut op, &self.request_limits);
                self.propose(id, deadline, Op::LeaseGrant(op), true)
            }
            Call::LeaseRevoke(op) => self.propose(id, deadline, Op::LeaseRevoke(op), false),
            Call::LeaseKeepAlive(lease) => self.ask_lease(id, deadline, LeaseAsk::KeepAlive(lease)),
            Call::LeaseTimeToLive { id: lease, keys } => {
                self.ask_lease(id, deadline, LeaseAsk::TimeToLive { id: lease, keys })
            }
            Call::Leases => self.read(id, deadline, ReadWhat::Leases, true, queues),
            Call::Alarm { action: AlarmAction::Get, member, alarm } => {
                self.read(id, deadline, ReadWhat::Alarms { member, alarm }, true, queues)
            }
            Call::Alarm { action, member, alarm } => {
                let clear = action == AlarmAction::Deactivate;
                let op = AlarmOp { clear, member, alarm: alarm.map_or(0, alarm_number) };
                self.propose(id, deadline, Op::Alarm(op), false)
            }
            Call::Status => {
                let status = Box::new(Status {
                    pending: (self.window.len() + self.reads_waiting + self.leases.len()) as u64,
                    leader_changes: self.leader_changes,
                    proposals: self.proposals,
                    ..Status::default()
                });
                queues.order.push_back(ToOrder::Status { id, status });
                Ok(())
            }
            Call::HashKv(revision) => self.read(id, deadline, ReadWhat::HashKv(revision), false, queues),
            Call::Hash => self.read(id, deadline, ReadWhat::Hash, false, queues),
            Call::MoveLeader(target) => self.move_leader(now, id, target, queues, out),
            Call::MemberList { linearizable } => self.read(id, deadline, ReadWhat::MemberList, linearizable, queues),
            Call::Health => self.read(id, deadline, ReadWhat::Health, true, queues),
            Call::Defragment => {
                self.reply(id, self.state.header, Ok(Reply::Defragment), out);
                Ok(())
            }
            Call::Replace { name, disk, peer_addr } => {
                let record = self.state.members.iter().find(|record| record.name == name);
                let another_runs = |record: &MemberRecord| {
                    record.peers().any(|(other, _)| other != disk && self.is_here(other)) && record.disk != disk.0
                };
                if record.is_some_and(another_runs) {
                    return Err(Refusal::StillHere { name });
                }
                self.propose(id, deadline, Op::MemberJoin(MemberJoin { name, disk: disk.0, peer_addr }), false)
            }
        }
    }

    /// Whether that disk's process is certainly alive.
    fn is_here(&self, node: NodeId) -> bool {
        node == self.config.node || self.links.contains(&node)
    }

    fn has_room(&self) -> Result<(), Refusal> {
        let waiting = self.window.len() + self.reads_waiting + self.leases.len();
        if waiting >= self.config.limits.waiting_max { Err(Refusal::Busy) } else { Ok(()) }
    }

    fn read(
        &mut self,
        id: RequestId,
        deadline: Nanos,
        what: ReadWhat,
        linearizable: bool,
        queues: &mut Queues,
    ) -> Result<(), Refusal> {
        let kv = matches!(what, ReadWhat::Range(_) | ReadWhat::Txn(_));
        if kv && self.state.corrupt {
            return Err(Refusal::Corrupt);
        }
        let read = Read { asker: Asker::Door(id), what, deadline };
        if linearizable {
            self.has_room()?;
            self.reads_waiting += 1;
            self.read_batch.push(read);
        } else {
            queues.state.push_back(ToState::Read { index: Index::ZERO, reads: vec![read] });
        }
        Ok(())
    }

    fn propose(&mut self, id: RequestId, deadline: Nanos, op: Op, grows: bool) -> Result<(), Refusal> {
        let physical = matches!(&op, Op::Compact(op) if op.physical);
        let system = matches!(&op, Op::Alarm(_) | Op::MemberJoin(_));
        let head = Head { idempotency: None, op: Some(op) };
        let (bytes, limits) = (head.encoded_len(), &self.config.limits);
        if bytes > limits.request_bytes_max {
            return Err(Refusal::TooLarge { bytes, bytes_max: limits.request_bytes_max });
        }
        if !system && self.state.corrupt {
            return Err(Refusal::Corrupt);
        }
        if grows && (self.state.no_space || self.disk_full || self.state.bytes + bytes as u64 > limits.quota_bytes) {
            self.alarm_wanted |= !self.state.no_space;
            return Err(Refusal::NoSpace);
        }
        self.has_room()?;
        if self.window.bytes() + bytes > limits.waiting_bytes_max || self.window.span() > SPAN_MAX {
            return Err(Refusal::Busy);
        }
        self.proposals.0 += 1;
        self.push(Who::Door(id), deadline, head.encode_to_vec().into(), None, physical);
        Ok(())
    }

    fn propose_duty(&mut self, now: Nanos, duty: Duty, op: Op, only_in: Option<Epoch>) {
        if only_in.is_some_and(|epoch| !self.role.leads() || self.role.epoch != epoch) {
            return;
        }
        self.duties.insert(duty);
        self.push(Who::Duty(duty), now.after(self.patience()), Head::of(op), only_in, false);
    }

    fn push(&mut self, who: Who, deadline: Nanos, head: Bytes, only_in: Option<Epoch>, physical: bool) {
        let pending = Pending { who, head, deadline, sent_at: Nanos::ZERO, tries: 0, again: false, only_in, physical };
        let seq = self.window.push(pending);
        self.fresh.push(seq);
    }

    fn move_leader(
        &mut self,
        now: Nanos,
        id: RequestId,
        target: u64,
        queues: &mut Queues,
        out: &mut Effects,
    ) -> Result<(), Refusal> {
        if !self.role.leads() {
            return Err(Refusal::NotLeader);
        }
        let record = self.state.members.iter().find(|r| r.member_id == target).ok_or(Refusal::BadTransferee)?;
        if record.node() == self.config.node {
            self.reply(id, self.state.header, Ok(Reply::MoveLeader), out);
            return Ok(());
        }
        let op = AdminOp::Transfer { to: Some(record.node()) };
        let deadline = now.after(self.patience());
        self.ask_admin(AdminWait::Move { id, deadline }, op, queues);
        Ok(())
    }

    fn ask_admin(&mut self, wait: AdminWait, op: AdminOp, queues: &mut Queues) {
        self.next_admin += 1;
        let id = AdminId(self.next_admin);
        self.admin.insert(id, wait);
        queues.order.push_back(ToOrder::Admin { id, op });
    }

    fn on_admin(&mut self, id: AdminId, outcome: &Result<(), AdminError>, out: &mut Effects) {
        match self.admin.remove(&id) {
            Some(AdminWait::Move { id, .. }) => {
                let result = match outcome {
                    Ok(()) => Ok(Reply::MoveLeader),
                    Err(AdminError::NotLeader { .. }) => Err(Refusal::NotLeader),
                    Err(AdminError::Invalid(_)) => Err(Refusal::BadTransferee),
                    Err(_) => Err(Refusal::TransferTimedOut),
                };
                self.reply(id, self.state.header, result, out);
            }
            // Asked again at a later tick for as long as there is a need.
            Some(AdminWait::Drain | AdminWait::Reconcile) | None => {}
        }
    }

    fn on_cancel(&mut self, id: RequestId, queues: &mut Queues) {
        for seq in self.window.find(|pending| pending.who == Who::Door(id)) {
            self.window.take(seq);
        }
        let asker = Asker::Door(id);
        let mut gone = 0;
        for reads in self.reads.values_mut().chain([&mut self.read_batch, &mut self.read_again]) {
            let before = reads.len();
            reads.retain(|read| read.asker != asker);
            gone += before - reads.len();
        }
        self.reads_waiting -= gone;
        self.leases.retain(|_, wait| wait.id != id);
        queues.state.push_back(ToState::Cancel(id));
    }
}

// Commands on their way.
impl Edge {
    fn on_applied(
        &mut self,
        seq: u64,
        header: Header,
        result: Result<Reply, Refusal>,
        queues: &mut Queues,
        out: &mut Effects,
    ) {
        let Some(pending) = self.window.take(seq) else { return };
        match pending.who {
            Who::Door(id) if pending.physical && result.is_ok() => {
                queues.state.push_back(ToState::AwaitRemoval { id, deadline: pending.deadline });
            }
            Who::Door(id) => self.reply(id, header, result, out),
            Who::Duty(duty) => {
                self.duties.remove(&duty);
            }
        }
    }

    /// Gives up a command: nobody knows whether it will be carried out.
    fn give_up(&mut self, seq: u64, refusal: &Refusal, out: &mut Effects) {
        let Some(pending) = self.window.take(seq) else { return };
        match pending.who {
            Who::Door(id) => {
                self.proposals.1 += 1;
                self.refuse(id, refusal.clone(), out);
            }
            Who::Duty(duty) => {
                self.duties.remove(&duty);
            }
        }
    }

    fn on_refused(&mut self, now: Nanos, refused: &[(u64, u64, Refused)], out: &mut Effects) {
        for (session, seq, why) in refused {
            if self.session != Some(SessionId(*session)) {
                if *session == 0 {
                    // The opening itself. Not at once: the refusing one may stay the leader this member knows of.
                    self.session_asked = Some(asked_a_tick_short(now));
                }
                continue;
            }
            let Some(pending) = self.window.get_mut(*seq) else { continue };
            // Sent once and refused: it is in nobody's log.
            if *why == Refused::Busy && pending.tries == 1 && matches!(pending.who, Who::Door(_)) {
                self.give_up(*seq, &Refusal::Busy, out);
            } else {
                pending.again = true;
            }
        }
    }

    fn on_role(&mut self, role: RoleNow, out: &mut Effects) {
        let before = std::mem::replace(&mut self.role, role);
        if before.leader == role.leader && before.epoch == role.epoch && before.role == role.role {
            return;
        }
        if role.leader.is_some() && before.leader != role.leader {
            self.leader_changes += 1;
        }
        let void = |pending: &Pending| pending.only_in.is_some_and(|epoch| !role.leads() || role.epoch != epoch);
        for seq in self.window.find(void) {
            self.give_up(seq, &Refusal::Unknown, out);
        }
        if !role.leads() {
            // Nothing is known of what the old leader's change came to; the next leader looks for itself.
            self.admin.retain(|_, wait| matches!(wait, AdminWait::Move { .. }));
        }
        if role.leader.is_some() {
            self.resend = true;
            self.session_asked = None;
            self.leases.values_mut().for_each(|wait| wait.sent_at = None);
        }
    }

    fn on_session(&mut self, session: Option<SessionId>) {
        if self.session != session {
            // What waits was not carried out under the old one: an apply here would have answered it.
            self.session = session;
            self.session_asked = None;
            self.resend = true;
        }
    }

    /// A snapshot replaced the state: what took effect inside it has no answer any more.
    fn on_leapt(&mut self, header: Header, session: Option<SessionId>, mut sessions: SessionTable, out: &mut Effects) {
        self.state.header = header;
        let was = self.session;
        for seq in self.window.find(|pending| pending.tries > 0) {
            let unknown = match (was, session) {
                (Some(was), Some(session)) if was == session => {
                    let tag = SessionTag { session, seq: Seq(seq), acked_below: Seq(0) };
                    sessions.check(Index(u64::MAX), tag) != Verdict::Fresh
                }
                _ => true,
            };
            if unknown {
                self.give_up(seq, &Refusal::Unknown, out);
            }
        }
        self.on_session(session);
    }

    /// Opens this boot's session, before the first command needs it.
    fn ask_session(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        let asked_lately = self.session_asked.is_some_and(|at| now < at.after(RESEND_FIRST));
        if self.session.is_some() || self.role.leader.is_none() || asked_lately {
            return;
        }
        self.session_asked = Some(now);
        let op = Op::OpenSession(OpenSession::of(self.config.node, self.config.boot));
        let command = Command { envelope: Envelope::default(), head: Head::of(op), sections: Vec::new() };
        self.forward(vec![command], queues, out);
    }

    /// Sends what is new, and what must be sent again.
    fn send(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        let (Some(session), Some(_)) = (self.session, self.role.leader) else {
            // All of it goes out when both are there.
            self.resend |= !self.fresh.is_empty();
            self.fresh.clear();
            return;
        };
        let acked_below = self.window.acked_below();
        let mut commands = Vec::new();
        let mut take = |seq: u64, pending: &mut Pending| {
            pending.sent_at = now;
            pending.tries += 1;
            pending.again = false;
            let envelope = Envelope { group: GroupId(0), session: session.0, seq, acked_below, stamp_ms: 0, seed: 0 };
            commands.push(Command { envelope, head: pending.head.clone(), sections: Vec::new() });
        };
        if std::mem::take(&mut self.resend) {
            self.fresh.clear();
            self.window.iter_mut().for_each(|(seq, pending)| take(seq, pending));
        }
        for seq in self.fresh.drain(..) {
            if let Some(pending) = self.window.get_mut(seq) {
                take(seq, pending);
            }
        }
        if !commands.is_empty() {
            self.forward(commands, queues, out);
        }
    }

    /// Hands commands to the leader, which may be the own replica.
    fn forward(&mut self, commands: Vec<Command>, queues: &mut Queues, out: &mut Effects) {
        if self.role.leads() {
            queues.order.push_back(ToOrder::Propose { from: None, commands });
            return;
        }
        let Some(to) = self.role.leader else { return };
        for command in commands {
            if !self.buf.is_empty() && self.buf.len() + command.bytes() > FRAME_BYTES {
                let frame = self.buf.split().freeze();
                out.push(MachineEffect::Send { to, channel: Channel::Forward, frame });
            }
            put_command(&mut self.buf, GroupId(0), &command.envelope, &command.head, &command.sections);
        }
        let frame = self.buf.split().freeze();
        out.push(MachineEffect::Send { to, channel: Channel::Forward, frame });
    }
}

// Reads and leases on their way.
impl Edge {
    fn on_read_ready(&mut self, id: ReadId, outcome: Result<Index, ReadError>, queues: &mut Queues) {
        let Some(reads) = self.reads.remove(&id) else { return };
        match outcome {
            Ok(index) => {
                self.reads_waiting -= reads.len();
                queues.state.push_back(ToState::Read { index, reads });
            }
            Err(_) => self.read_again.extend(reads),
        }
    }

    fn ask_lease(&mut self, id: RequestId, deadline: Nanos, ask: LeaseAsk) -> Result<(), Refusal> {
        self.has_room()?;
        if self.role.leads() {
            self.reads_waiting += 1;
            self.read_batch.push(Read { asker: Asker::Door(id), what: ReadWhat::Lease(ask), deadline });
        } else {
            self.wait_lease(id, ask, deadline);
        }
        Ok(())
    }

    fn wait_lease(&mut self, id: RequestId, ask: LeaseAsk, deadline: Nanos) {
        self.next_ask += 1;
        self.leases.insert(self.next_ask, LeaseWait { id, ask, deadline, sent_at: None });
    }

    /// The state could not answer: this member does not lead any more, or the lease is just ending.
    fn lease_again(&mut self, read: Read) {
        let (Asker::Door(id), ReadWhat::Lease(ask)) = (read.asker, &read.what) else { return };
        if self.role.leads() {
            self.reads_waiting += 1;
            self.read_again.push(read);
        } else {
            self.wait_lease(id, *ask, read.deadline);
        }
    }

    /// Sends the questions about leases that were not sent, or not answered in time, to the leader.
    fn ask_leases(&mut self, now: Nanos, out: &mut Effects) {
        if self.leases.is_empty() {
            return;
        }
        if self.role.leads() {
            for (_, wait) in std::mem::take(&mut self.leases) {
                let LeaseWait { id, ask, deadline, .. } = wait;
                self.reads_waiting += 1;
                self.read_again.push(Read { asker: Asker::Door(id), what: ReadWhat::Lease(ask), deadline });
            }
            return;
        }
        let Some(to) = self.role.leader else { return };
        for (req, wait) in &mut self.leases {
            if wait.sent_at.is_none_or(|at| now >= at.after(RESEND_FIRST)) {
                wait.sent_at = Some(now);
                let frame = encode(GroupId(0), &Forward::LeaseAsk { req: *req, ask: wait.ask });
                out.push(MachineEffect::Send { to, channel: Channel::Forward, frame });
            }
        }
    }

    fn on_frame(&mut self, now: Nanos, from: NodeId, message: EdgeFrame, out: &mut Effects) {
        match message {
            EdgeFrame::Rejected { refused } => self.on_refused(now, &refused, out),
            EdgeFrame::LeaseAsk { req, ask } if self.role.leads() && self.has_room().is_ok() => {
                self.reads_waiting += 1;
                let asker = Asker::Peer { node: from, req };
                let deadline = now.after(self.config.election_max);
                self.read_batch.push(Read { asker, what: ReadWhat::Lease(ask), deadline });
            }
            EdgeFrame::LeaseAsk { req, .. } => {
                let frame = encode(GroupId(0), &Forward::LeaseAnswer { req, answer: LeaseAnswer::NotLeader });
                out.push(MachineEffect::Send { to: from, channel: Channel::Forward, frame });
            }
            EdgeFrame::LeaseAnswer { req, answer: LeaseAnswer::NotLeader } => {
                // Not at once: the asked one may be as ignorant as this member for a while.
                if let Some(wait) = self.leases.get_mut(&req) {
                    wait.sent_at = Some(asked_a_tick_short(now));
                }
            }
            EdgeFrame::LeaseAnswer { req, answer } => {
                if let Some(wait) = self.leases.remove(&req) {
                    let reply = lease_reply(wait.ask, answer);
                    self.reply(wait.id, self.state.header, Ok(reply), out);
                }
            }
        }
    }
}

// Time and duties.
impl Edge {
    fn on_tick(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        if self.tick_at.is_none_or(|at| now < at) {
            return;
        }
        self.tick_at = None;
        for seq in self.window.find(|pending| pending.deadline <= now) {
            self.give_up(seq, &Refusal::TimedOut, out);
        }
        // The own replica loses nothing while it leads; frames to another may be lost.
        let remote = !self.role.leads();
        let again = |pending: &Pending| {
            pending.again || (remote && pending.tries > 0 && now >= pending.sent_at.after(resend_after(pending.tries)))
        };
        let again = self.window.find(again);
        self.fresh.extend(again);
        self.expire_reads(now, out);
        self.read_batch.append(&mut self.read_again);
        let late: Vec<u64> = self.leases.iter().filter(|(_, w)| w.deadline <= now).map(|(req, _)| *req).collect();
        for req in late {
            if let Some(wait) = self.leases.remove(&req) {
                self.refuse(wait.id, Refusal::TimedOut, out);
            }
        }
        let late = |wait: &AdminWait| matches!(wait, AdminWait::Move { deadline, .. } if *deadline <= now);
        let late: Vec<AdminId> = self.admin.iter().filter(|(_, wait)| late(wait)).map(|(id, _)| *id).collect();
        for id in late {
            self.on_admin(id, &Err(AdminError::TimedOut), out);
        }
        self.reconcile(queues);
    }

    fn expire_reads(&mut self, now: Nanos, out: &mut Effects) {
        let mut late = Vec::new();
        for reads in self.reads.values_mut().chain([&mut self.read_batch, &mut self.read_again]) {
            late.extend(reads.extract_if(.., |read| read.deadline <= now).map(|read| read.asker));
        }
        self.reads_waiting -= late.len();
        for asker in late {
            if let Asker::Door(id) = asker {
                self.refuse(id, Refusal::TimedOut, out);
            }
        }
    }

    /// What this member owes the cluster, as far as it is due.
    fn do_duties(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        if self.state.proven && self.state.members.is_empty() && !self.config.first.is_empty() && !self.owes(Duty::Form)
        {
            let op = Op::FormCluster(FormCluster { members: self.config.first.clone() });
            self.propose_duty(now, Duty::Form, op, Some(self.role.epoch));
        }
        if self.session.is_some() && !self.owes(Duty::Announce) && self.is_misdescribed() {
            let op = Op::MemberUpdate(self.config.announce.clone());
            self.propose_duty(now, Duty::Announce, op, None);
        }
        let member = self.state.header.member_id;
        if self.alarm_wanted && member != 0 && !self.owes(Duty::Alarm) {
            self.alarm_wanted = false;
            let alarm = alarm_number(AlarmKind::NoSpace);
            self.propose_duty(now, Duty::Alarm, Op::Alarm(AlarmOp { clear: false, member, alarm }), None);
        }
        if self.draining && !self.drained {
            let alone = self.state.config.voters.len() <= 1;
            if !self.role.leads() || alone {
                self.drained = true;
                out.push(MachineEffect::Output(Output::Drained));
            } else if self.admin.is_empty() {
                self.ask_admin(AdminWait::Drain, TRANSFER_ANY, queues);
            }
        }
    }

    fn owes(&self, duty: Duty) -> bool {
        self.duties.contains(&duty)
    }

    /// Whether the member table says something else of this member than it says itself.
    fn is_misdescribed(&self) -> bool {
        let mine = &self.config.announce;
        self.state.members.iter().find(|record| record.disk == mine.disk).is_some_and(|record| {
            record.version != mine.version
                || record.peer_addr != mine.peer_addr
                || record.client_urls != mine.client_urls
        })
    }

    fn has_reconciling(&self) -> bool {
        self.next_change().is_some()
    }

    /// Moves the configuration a step towards what the member table asks for. Retried at every tick; the replica
    /// refuses what cannot be done yet.
    fn reconcile(&mut self, queues: &mut Queues) {
        if !self.state.proven || !self.role.leads() || self.draining || !self.admin.is_empty() {
            return;
        }
        if let Some(change) = self.next_change() {
            self.ask_admin(AdminWait::Reconcile, AdminOp::Change { change, context: Bytes::new() }, queues);
        }
    }

    fn next_change(&self) -> Option<ConfigChange> {
        let config = &self.state.config;
        if self.state.members.is_empty() || config.is_joint() {
            return None;
        }
        for record in self.state.members.iter().filter(|record| record.joining_disk != 0) {
            let (old, new) = (record.node(), NodeId(record.joining_disk));
            if config.voters.contains(&new) {
                continue;
            }
            if !config.learners.contains(&new) {
                return Some(ConfigChange::AddLearner(new));
            }
            if config.voters.contains(&old) {
                return Some(ConfigChange::Replace { old, new });
            }
        }
        let known = |node: &NodeId| self.state.members.iter().any(|r| r.disk == node.0 || r.joining_disk == node.0);
        config.learners.iter().find(|node| !known(node)).map(|node| ConfigChange::Remove(*node))
    }
}

/// When something must count as asked last, to be asked again a tick from now.
fn asked_a_tick_short(now: Nanos) -> Nanos {
    Nanos(now.after(TICK).0.saturating_sub(RESEND_FIRST.0))
}

/// How long a command that was sent so often may stay without word before it is sent again.
fn resend_after(tries: u32) -> Nanos {
    Nanos(RESEND_FIRST.0 << tries.saturating_sub(1).min(3))
}

/// Refuses keys that belong to stores not built yet.
pub(super) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    for (store, prefix) in RESERVED {
        if key.starts_with(prefix.as_bytes()) {
            return Err(Refusal::Reserved { store, prefix });
        }
    }
    Ok(())
}

/// The same for every key a transaction names.
fn check_txn_keys(txn: &mvcc::TxnOp) -> Result<(), Refusal> {
    txn.compares.iter().try_for_each(|compare| check_key(&compare.key))?;
    txn.success.iter().chain(&txn.failure).try_for_each(|step| match &step.request {
        Some(mvcc::Request::Range(op)) => check_key(&op.key),
        Some(mvcc::Request::Put(op)) => check_key(&op.key),
        Some(mvcc::Request::DeleteRange(op)) => check_key(&op.key),
        Some(mvcc::Request::Txn(op)) => check_txn_keys(op),
        None => Ok(()),
    })
}

/// Keys under these belong to the other stores (DESIGN 5).
pub(super) const RESERVED: [(&str, &str); 2] = [("the cache", ".triune/cache/"), ("the queue", ".triune/mq/")];
/// The member's own limit on a call, beside two of the shortest election timeouts.
const OWN_LIMIT: Nanos = Nanos::from_secs(5);
/// How often what waits is looked through, while something does.
const TICK: Nanos = Nanos::from_millis(50);
/// A command without word is sent again after this, then after twice, four and eight times as long.
const RESEND_FIRST: Nanos = Nanos::from_millis(500);
/// Bytes of commands in one frame; a larger single command travels alone.
const FRAME_BYTES: usize = 1 << 20;
/// Numbers the window may span. Far below what the session table keeps apart.
const SPAN_MAX: usize = 1 << 18;
