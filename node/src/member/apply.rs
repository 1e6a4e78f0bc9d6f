//! Applying one entry. Deterministic: the entry and the state before it decide everything.
//!
//! ```text
//! entry ─ barrier ─▶ passed
//!       ─ configuration ─▶ system tables
//!       ─ command ─ session? ─ unknown, applied, stale ─▶ passed, chained
//!                            ╰ fresh ─ alarm? ─ refused ─▶ chained
//!                                             ╰ carried out
//! ```
//! 1. A (session, seq) is carried out at most once, ever.
//! 2. Every entry moves the state's index by one, whatever becomes of it.
//! 3. An operation this version does not know ends the member; nothing is skipped in hope.

use triune_consensus::session::{Seq, SessionId, SessionTag, Verdict};
use triune_consensus::{ConfigEntry, Entry, EntryKind, Index};
use triune_transport::{GroupId, Nanos};
use triune_txn::mvcc;

use super::api::{AlarmKind, Fatal, KvError, Refusal, Reply};
use super::command::{CommandError, Envelope, Head, Op};
use super::queues::{Queues, ToEdge};
use super::state::{State, fatal_of};

/// What an operation gave, or why the member ends.
type Carried = Result<Result<Reply, Refusal>, Fatal>;

impl State {
    /// Applies the entry behind the last one.
    pub(super) fn apply(&mut self, now: Nanos, entry: Entry, queues: &mut Queues) -> Result<(), Fatal> {
        let index = entry.position.index;
        match EntryKind::from_u8(entry.kind) {
            Some(EntryKind::Command) => self.command(now, entry, queues)?,
            Some(EntryKind::Barrier) => self.store.skip(index),
            Some(EntryKind::Config) => {
                let unknown = Fatal::UnknownOperation { group: GROUP, index: index.0, op: 0 };
                let config = ConfigEntry::decode(entry.head).map_err(|_| unknown)?.config;
                self.system.configured(config, index);
                self.members_changed = true;
                self.system.chain(index, EFFECT_CONFIG);
                self.store.skip(index);
            }
            None => {
                return Err(Fatal::UnknownOperation { group: GROUP, index: index.0, op: u32::from(entry.kind) });
            }
        }
        Ok(())
    }

    fn command(&mut self, now: Nanos, entry: Entry, queues: &mut Queues) -> Result<(), Fatal> {
        let index = entry.position.index;
        let fatal = |error: CommandError| {
            let op = if let CommandError::Unknown { op } = error { op } else { 0 };
            Fatal::UnknownOperation { group: GROUP, index: index.0, op }
        };
        let mut head = entry.head;
        let envelope = Envelope::take(&mut head).map_err(fatal)?;
        self.system.stamp_ms = self.system.stamp_ms.max(envelope.stamp_ms);
        if envelope.session == 0 {
            self.open_session(index, Head::op(&head).map_err(fatal)?, queues);
            self.store.skip(index);
            return Ok(());
        }
        let session = SessionId(envelope.session);
        let tag = SessionTag { session, seq: Seq(envelope.seq), acked_below: Seq(envelope.acked_below) };
        let verdict = self.sessions.check(index, tag);
        if verdict != Verdict::Fresh {
            self.system.chain(index, EFFECT_PASSED);
            self.store.skip(index);
            return Ok(());
        }
        let op = Head::op(&head).map_err(fatal)?;
        let result = self.carry_out(now, index, op)?;
        if self.my_session == Some(session) {
            let header = self.header();
            queues.edge.push_back(ToEdge::Applied { session, seq: envelope.seq, header, result });
        }
        Ok(())
    }

    fn open_session(&mut self, index: Index, op: Op, queues: &mut Queues) {
        let Op::OpenSession(open) = op else {
            // No door sends this: a command without a session is never carried out.
            self.system.chain(index, EFFECT_PASSED);
            return;
        };
        let opened = self.sessions.open(index, open.node, open.boot);
        self.system.chain(index, EFFECT_SESSION.wrapping_add(opened.session.0));
        if self.my_session.is_some_and(|mine| opened.closed.contains(&mine)) {
            self.my_session = None;
            queues.edge.push_back(ToEdge::SessionClosed);
        }
        if (open.node, open.boot) == (self.me.node.0, self.me.boot) {
            self.my_session = Some(opened.session);
            queues.edge.push_back(ToEdge::SessionOpened(opened.session));
        }
    }

    fn carry_out(&mut self, now: Nanos, index: Index, op: Op) -> Carried {
        if let Some(refusal) = self.alarmed(&op) {
            self.system.chain(index, EFFECT_ALARMED);
            self.store.skip(index);
            return Ok(Err(refusal));
        }
        match op {
            Op::Put(op) => {
                let applied = self.store.apply_put(index, &op);
                self.kv(applied, Reply::Put)
            }
            Op::DeleteRange(op) => {
                let applied = self.store.apply_delete_range(index, &op);
                self.kv(applied, Reply::DeleteRange)
            }
            Op::Txn(op) => {
                let applied = self.store.apply_txn(index, &op);
                self.kv(applied, Reply::Txn)
            }
            Op::Compact(op) => {
                let applied = self.store.apply_compact(index, &op);
                self.kv(applied, |_| Reply::Compact)
            }
            Op::LeaseGrant(op) => {
                let applied = self.store.apply_lease_grant(index, &op);
                if applied.is_ok() {
                    self.leases.granted(now, op.id, op.ttl_s);
                }
                self.kv(applied, |lease| Reply::LeaseGrant { id: lease.id, ttl: lease.ttl_s })
            }
            Op::LeaseRevoke(op) => {
                let applied = self.store.apply_lease_revoke(index, &op);
                if applied.is_ok() {
                    self.leases.revoked(op.id);
                }
                self.kv(applied, |_| Reply::LeaseRevoke)
            }
            Op::LeaseCheckpoint(op) => {
                let applied = self.store.apply_lease_checkpoint(index, &op);
                self.kv(applied, |_| Reply::Health)
            }
            Op::OpenSession(_) => {
                // Sessions are opened outside of sessions; no door sends this.
                self.system_op(index, EFFECT_PASSED);
                Ok(Err(Refusal::Unknown))
            }
            Op::FormCluster(op) => {
                let formed = self.system.form(op.members);
                self.members_changed |= formed;
                self.system_op(index, EFFECT_FORM + u64::from(formed));
                Ok(Ok(Reply::Health))
            }
            Op::MemberUpdate(op) => {
                let changed = self.system.update(&op);
                self.members_changed |= changed;
                self.system_op(index, EFFECT_UPDATE + u64::from(changed));
                Ok(Ok(Reply::Health))
            }
            Op::MemberJoin(op) => {
                let joined = self.system.join(&op);
                self.members_changed |= joined.is_ok();
                self.system_op(index, EFFECT_JOIN + u64::from(joined.is_ok()));
                Ok(joined.map(|()| Reply::MemberList(self.system.members.values().cloned().collect())))
            }
            Op::Alarm(op) => {
                let concerned = self.system.alarm(op);
                self.system_op(index, EFFECT_ALARM + concerned.len() as u64);
                Ok(Ok(Reply::Alarms(concerned)))
            }
        }
    }

    /// Why the alarms in force refuse this operation.
    fn alarmed(&self, op: &Op) -> Option<Refusal> {
        if self.system.alarms.is_empty() {
            return None;
        }
        let kv = !matches!(
            op,
            Op::OpenSession(_) | Op::FormCluster(_) | Op::MemberUpdate(_) | Op::MemberJoin(_) | Op::Alarm(_)
        );
        if kv && self.system.is_alarmed(AlarmKind::Corrupt) {
            return Some(Refusal::Corrupt);
        }
        let grows = match op {
            Op::Put(_) | Op::LeaseGrant(_) => true,
            Op::Txn(txn) => holds_put(txn),
            _ => false,
        };
        (grows && self.system.is_alarmed(AlarmKind::NoSpace)).then_some(Refusal::NoSpace)
    }

    fn system_op(&mut self, index: Index, effect: u64) {
        self.system.chain(index, effect);
        self.store.skip(index);
    }

    /// Hands an applied operation's events on, and turns its outcome into an answer.
    fn kv<T, E>(&mut self, applied: mvcc::ApplyResult<T, E>, reply: impl FnOnce(T) -> Reply) -> Carried
    where
        E: std::error::Error,
        KvError: From<E>,
    {
        match applied {
            Ok(mvcc::Applied { result, events }) => {
                self.hub.notify(&self.store, &events).map_err(|error| fatal_of(&error, GROUP))?;
                Ok(Ok(reply(result)))
            }
            Err(mvcc::ApplyError::Refused(error)) => Ok(Err(Refusal::Kv(error.into()))),
            Err(mvcc::ApplyError::Store(error)) => Err(fatal_of(&error, GROUP)),
        }
    }
}

/// Whether a transaction holds a put on any path.
pub(super) fn holds_put(txn: &mvcc::TxnOp) -> bool {
    txn.success.iter().chain(&txn.failure).any(|step| match &step.request {
        Some(mvcc::Request::Put(_)) => true,
        Some(mvcc::Request::Txn(txn)) => holds_put(txn),
        _ => false,
    })
}

/// The group whose state this is.
const GROUP: GroupId = GroupId(0);

// What the chain notes of an entry that the key-value store's own chain does not see.
const EFFECT_PASSED: u64 = 1;
const EFFECT_ALARMED: u64 = 2;
const EFFECT_CONFIG: u64 = 3;
const EFFECT_FORM: u64 = 4;
const EFFECT_UPDATE: u64 = 6;
const EFFECT_JOIN: u64 = 8;
const EFFECT_ALARM: u64 = 1 << 8;
const EFFECT_SESSION: u64 = 1 << 16;
