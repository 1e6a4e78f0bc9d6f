//! Clients: what they ask, what they were answered, and the two judges' view of it.
//!
//! Keys `s…` see operations on themselves alone and are judged by WGL too; keys `t…` see transactions, ranges and
//! leases as well, and are judged by the order alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use triune_node::member::api::{Call, KvError, Refusal, Reply};
use triune_sim::Rng;
use triune_sim::checker::order::{self, Act, ActResult, Compare, Event, KeyRange, Kv, Op, Relation, Target};
use triune_sim::checker::register::{Expect, RegisterOp, RegisterRet, Seen};
use triune_sim::checker::{Operation, register};
use triune_transport::Nanos;
use triune_txn::mvcc;

pub type Single = (Bytes, RegisterOp<Bytes>);
pub type Judge = register::Keyed<Bytes, register::Register<Bytes>>;

/// A call under way.
#[derive(Debug)]
pub struct Open {
    pub at: Nanos,
    pub node: usize,
    pub asked: Asked,
}

/// What was asked, as the judges see it. `None`: it changes no key.
#[derive(Debug)]
pub struct Asked {
    pub op: Option<Op>,
    pub single: Option<Single>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kv,
    Grant,
    KeepAlive(i64),
    Compact,
    Disarm,
}

#[derive(Default)]
pub struct Histories {
    pub order: Vec<Operation<Op, order::Reply>>,
    pub single: Vec<Operation<Single, RegisterRet<Bytes>>>,
}

/// What clients know.
pub struct Clients {
    rng: Rng,
    values: u64,
    asked: u64,
    /// The last revision seen of a key, for compare-and-set.
    seen: BTreeMap<Bytes, i64>,
    pub leases: Vec<i64>,
}

impl Clients {
    pub fn new(seed: &Rng) -> Self {
        Self { rng: seed.fork("clients"), values: 0, asked: 0, seen: BTreeMap::new(), leases: Vec::new() }
    }

    fn value(&mut self) -> Bytes {
        self.values += 1;
        let long = self.rng.below(20) == 0;
        let text = format!("v{}", self.values);
        if long { format!("{text}{}", "x".repeat(2_000)).into() } else { text.into() }
    }

    /// Keys are replaced as time passes, so that no key's history grows past what WGL searches.
    fn key(&mut self, kind: &str) -> Bytes {
        let generation = self.asked / 400;
        format!("{kind}{}-{generation}", self.rng.below(4)).into()
    }

    /// Draws what to ask next.
    pub fn draw(&mut self, compact_to: i64) -> (Call, Asked) {
        self.asked += 1;
        match self.rng.below(100) {
            0..25 => self.put_single(),
            25..40 => self.cas(),
            40..48 => self.delete_single(),
            48..66 => self.get(),
            66..78 => self.txn(),
            78..84 => self.range(),
            84..89 => self.leased_put(),
            89..92 => self.grant(),
            92..95 => self.keep_alive(),
            95..97 => self.revoke(),
            _ => compact(compact_to),
        }
    }

    fn put_single(&mut self) -> (Call, Asked) {
        let (key, value) = (self.key("s"), self.value());
        let call = Call::Put(mvcc::PutOp { key: key.clone(), value: value.clone(), ..Default::default() });
        kv(call, Op::put(key.clone(), value.clone()), Some((key, RegisterOp::Put(value))))
    }

    fn delete_single(&mut self) -> (Call, Asked) {
        let key = self.key("s");
        let call = Call::DeleteRange(mvcc::DeleteRangeOp { key: key.clone(), ..Default::default() });
        kv(call, Op::delete(key.clone()), Some((key, RegisterOp::Delete)))
    }

    fn get(&mut self) -> (Call, Asked) {
        let key = self.key("s");
        let serializable = self.rng.below(4) == 0;
        let call = Call::Range { op: mvcc::RangeOp { key: key.clone(), ..Default::default() }, serializable };
        if serializable {
            return kv(call, Op::Serializable(KeyRange::key(key)), None);
        }
        kv(call, Op::range(KeyRange::key(key.clone())), Some((key, RegisterOp::Get)))
    }

    fn cas(&mut self) -> (Call, Asked) {
        let (key, value) = (self.key("s"), self.value());
        let revision = self.seen.get(&key).copied().unwrap_or(0);
        let compare = mvcc::Compare {
            result: mvcc::CompareResult::Equal.into(),
            target: mvcc::CompareTarget::Mod.into(),
            key: key.clone(),
            operand: Some(mvcc::CompareOperand::ModRevision(revision)),
            range_end: Bytes::new(),
        };
        let put = mvcc::PutOp { key: key.clone(), value: value.clone(), ..Default::default() };
        let op =
            mvcc::TxnOp { compares: vec![compare], success: vec![mvcc::Request::Put(put).into()], failure: Vec::new() };
        let ours = Op::Txn {
            compares: vec![Compare { key: key.clone(), target: Target::Mod(revision), relation: Relation::Equal }],
            success: vec![Act::Put { key: key.clone(), value: value.clone(), lease: 0 }],
            failure: Vec::new(),
        };
        let single = (key, RegisterOp::Cas { expect: Expect::ModRevision(revision), value });
        kv(Call::Txn { op, serializable: false }, ours, Some(single))
    }

    fn txn(&mut self) -> (Call, Asked) {
        let (a, b) = (self.key("t"), self.key("t"));
        let (va, gone) = (self.value(), self.rng.coin());
        let range = mvcc::RangeOp { key: "t".into(), range_end: "u".into(), ..Default::default() };
        let mut success =
            vec![mvcc::Request::Put(mvcc::PutOp { key: a.clone(), value: va.clone(), ..Default::default() }).into()];
        let mut acts = vec![Act::Put { key: a.clone(), value: va, lease: 0 }];
        if a != b {
            let (step, act) = if gone {
                let op = mvcc::DeleteRangeOp { key: b.clone(), ..Default::default() };
                (mvcc::Request::DeleteRange(op), Act::Delete(KeyRange::key(b.clone())))
            } else {
                let value = self.value();
                let op = mvcc::PutOp { key: b.clone(), value: value.clone(), ..Default::default() };
                (mvcc::Request::Put(op), Act::Put { key: b.clone(), value, lease: 0 })
            };
            success.push(step.into());
            acts.push(act);
        }
        success.push(mvcc::Request::Range(range.clone()).into());
        let all = Act::Range { range: KeyRange::of("t", "u"), limit: 0, revision: None };
        acts.push(all.clone());
        let compare = mvcc::Compare {
            result: mvcc::CompareResult::Less.into(),
            target: mvcc::CompareTarget::Version.into(),
            key: b.clone(),
            operand: Some(mvcc::CompareOperand::Version(5)),
            range_end: Bytes::new(),
        };
        let op = mvcc::TxnOp { compares: vec![compare], success, failure: vec![mvcc::Request::Range(range).into()] };
        let ours = Op::Txn {
            compares: vec![Compare { key: b, target: Target::Version(5), relation: Relation::Less }],
            success: acts,
            failure: vec![all],
        };
        kv(Call::Txn { op, serializable: false }, ours, None)
    }

    fn range(&mut self) -> (Call, Asked) {
        let serializable = self.rng.coin();
        let op = mvcc::RangeOp { key: "s".into(), range_end: "u".into(), ..Default::default() };
        let range = KeyRange::of("s", "u");
        let ours = if serializable { Op::Serializable(range) } else { Op::range(range) };
        kv(Call::Range { op, serializable }, ours, None)
    }

    fn leased_put(&mut self) -> (Call, Asked) {
        let (key, value) = (self.key("t"), self.value());
        let lease = self.rng.pick(&self.leases).copied().unwrap_or(0);
        let call = Call::Put(mvcc::PutOp { key: key.clone(), value: value.clone(), lease, ..Default::default() });
        kv(call, Op::one(Act::Put { key, value, lease }), None)
    }

    fn grant(&mut self) -> (Call, Asked) {
        let ttl_s = i64::try_from(self.rng.range(2, 6)).unwrap();
        let call = Call::LeaseGrant(mvcc::LeaseGrantOp { ttl_s, id: 0 });
        (call, Asked { op: None, single: None, kind: Kind::Grant })
    }

    fn keep_alive(&mut self) -> (Call, Asked) {
        let lease = self.rng.pick(&self.leases).copied().unwrap_or(99);
        (Call::LeaseKeepAlive(lease), Asked { op: None, single: None, kind: Kind::KeepAlive(lease) })
    }

    fn revoke(&mut self) -> (Call, Asked) {
        let lease = self.rng.pick(&self.leases).copied().unwrap_or(99);
        self.leases.retain(|id| *id != lease);
        kv(Call::LeaseRevoke(mvcc::LeaseRevokeOp { id: lease }), Op::LeaseRevoke(lease), None)
    }

    /// Takes an answer. Gives what is known to be wrong with it.
    pub fn answered(
        &mut self,
        client: u64,
        now: Nanos,
        open: Open,
        revision: i64,
        result: Result<Reply, Refusal>,
        histories: &mut Histories,
    ) -> Result<(), String> {
        let Open { at, asked, .. } = open;
        match result {
            // Nobody knows.
            Err(Refusal::TimedOut | Refusal::Unknown) => histories.lost(client, at, asked),
            // Never carried out.
            Err(
                Refusal::NoLeader
                | Refusal::Busy
                | Refusal::NoSpace
                | Refusal::Stopped
                | Refusal::Kv(KvError::LeaseNotFound),
            ) => {}
            Err(Refusal::Kv(KvError::Compacted { .. } | KvError::FutureRev { .. })) if asked.kind == Kind::Compact => {}
            Err(other) => return Err(format!("{asked:?} was refused: {other}")),
            Ok(Reply::LeaseGrant { id, .. }) => self.leases.push(id),
            Ok(Reply::LeaseKeepAlive { id, ttl }) => {
                if ttl == 0 {
                    self.leases.retain(|lease| *lease != id);
                }
            }
            Ok(Reply::Compact | Reply::Alarms(_)) => {}
            Ok(reply) => {
                let Some(op) = asked.op else { return Err(format!("{asked:?} was answered {reply:?}")) };
                if let Some((key, ask)) = asked.single {
                    let ret = self.judged(&key, &reply);
                    let ret = Some((now, ret));
                    histories.single.push(Operation { client, call: at, op: (key, ask), ret });
                }
                let answer = order_reply(reply, revision);
                histories.order.push(Operation { client, call: at, op, ret: Some((now, answer)) });
            }
        }
        Ok(())
    }

    fn judged(&mut self, key: &Bytes, reply: &Reply) -> RegisterRet<Bytes> {
        match reply {
            Reply::Put(put) => {
                self.seen.insert(key.clone(), put.revision);
                RegisterRet::Put { revision: Some(put.revision) }
            }
            Reply::DeleteRange(deleted) => {
                RegisterRet::Delete { existed: deleted.deleted > 0, revision: Some(deleted.revision) }
            }
            Reply::Txn(txn) => RegisterRet::Cas { succeeded: txn.succeeded, revision: Some(txn.revision) },
            Reply::Range(range) => {
                let kv = range.kvs.first();
                self.seen.insert(key.clone(), kv.map_or(0, |kv| kv.mod_revision));
                RegisterRet::Get(kv.map(|kv| Seen {
                    value: kv.value.clone(),
                    mod_revision: Some(kv.mod_revision),
                    version: Some(kv.version),
                }))
            }
            other => panic!("{other:?} answers no operation on one key"),
        }
    }
}

impl Histories {
    /// No answer came, or one that says nothing: it happened once, or never.
    pub fn lost(&mut self, client: u64, at: Nanos, asked: Asked) {
        if let Some(op) = asked.single {
            self.single.push(Operation { client, call: at, op, ret: None });
        }
        if let Some(op) = asked.op {
            self.order.push(Operation { client, call: at, op, ret: None });
        }
    }
}

fn kv(call: Call, op: Op, single: Option<Single>) -> (Call, Asked) {
    (call, Asked { op: Some(op), single, kind: Kind::Kv })
}

fn compact(revision: i64) -> (Call, Asked) {
    let call = Call::Compact(mvcc::CompactOp { revision, physical: revision % 2 == 0 });
    (call, Asked { op: None, single: None, kind: Kind::Compact })
}

pub fn disarm() -> (Call, Asked) {
    use triune_node::member::api::{AlarmAction, AlarmKind};
    let call = Call::Alarm { action: AlarmAction::Deactivate, member: 0, alarm: Some(AlarmKind::NoSpace) };
    (call, Asked { op: None, single: None, kind: Kind::Disarm })
}

fn kv_of(kv: &mvcc::KeyValue) -> Kv {
    Kv {
        key: kv.key.clone(),
        value: kv.value.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

pub fn event_of(event: &mvcc::Event) -> Event {
    match event.kind {
        mvcc::EventKind::Put => Event::Put(kv_of(&event.kv)),
        mvcc::EventKind::Delete => Event::Delete(event.kv.key.clone()),
    }
}

fn range_result(range: &mvcc::RangeResult) -> ActResult {
    ActResult::Range { kvs: range.kvs.iter().map(kv_of).collect(), count: usize::try_from(range.count).unwrap() }
}

fn order_reply(reply: Reply, revision: i64) -> order::Reply {
    match reply {
        Reply::Put(put) => order::Reply { revision: put.revision, succeeded: None, results: vec![ActResult::Put] },
        Reply::DeleteRange(deleted) => order::Reply {
            revision: deleted.revision,
            succeeded: None,
            results: vec![ActResult::Deleted(deleted.deleted)],
        },
        Reply::Range(range) => {
            order::Reply { revision: range.revision, succeeded: None, results: vec![range_result(&range)] }
        }
        Reply::Txn(txn) => order::Reply {
            revision: txn.revision,
            succeeded: Some(txn.succeeded),
            results: txn
                .responses
                .iter()
                .map(|response| match response {
                    mvcc::OpResult::Put(_) => ActResult::Put,
                    mvcc::OpResult::DeleteRange(deleted) => ActResult::Deleted(deleted.deleted),
                    mvcc::OpResult::Range(range) => range_result(range),
                    mvcc::OpResult::Txn(_) => panic!("no client nests"),
                })
                .collect(),
        },
        Reply::LeaseRevoke => order::Reply { revision, succeeded: None, results: Vec::new() },
        other => panic!("{other:?} answers no operation on keys"),
    }
}
