//! A naive store: every version ever written in one list, everything else computed from it; and a seeded source of
//! operations. Slow and plain on purpose, so that it can be believed.

use std::collections::BTreeMap;

use bytes::Bytes;
use triune_txn::mvcc::{
    CompactOp, Compare, CompareOperand, DeleteRangeOp, DeleteRangeResult, Event, EventKind, KeyValue, LeaseCheckpoint,
    LeaseCheckpointOp, LeaseGrantOp, LeaseRevokeOp, OpResult, PutOp, PutResult, RangeOp, RangeResult, Request,
    RequestOp, TxnOp, TxnResult,
};

/// xorshift64*: enough to wander, and the seed is all there is to replay.
pub struct Rng(pub u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// The seeds of a run: `1..=default`, or as many as `MVCC_SEEDS` says, or those from `MVCC_SEED` on.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("MVCC_SEEDS").unwrap_or(default);
    let first = number("MVCC_SEED").unwrap_or(1);
    first..first + count
}

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Put(PutOp),
    Delete(DeleteRangeOp),
    Txn(TxnOp),
    Compact(CompactOp),
    Grant(LeaseGrantOp),
    Revoke(LeaseRevokeOp),
    Checkpoint(LeaseCheckpointOp),
    Skip,
}

/// What an operation answered, refusals as the name of their variant.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Put(PutResult),
    Delete(DeleteRangeResult),
    Txn(TxnResult),
    Other(i64),
    Refused(&'static str),
}

#[derive(Clone, Default)]
pub struct Model {
    pub revision: i64,
    pub compacted: i64,
    /// Every change ever, in order.
    pub versions: Vec<(i64, EventKind, KeyValue)>,
    pub leases: BTreeMap<i64, i64>,
}

pub fn in_range(key: &[u8], from: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == from,
        [0] => key >= from,
        _ => from <= key && key < end,
    }
}

impl Model {
    pub fn new() -> Self {
        Self { revision: 1, compacted: -1, ..Self::default() }
    }

    pub fn state_at(&self, revision: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut state = BTreeMap::new();
        for (main, kind, kv) in &self.versions {
            if *main <= revision {
                match kind {
                    EventKind::Put => state.insert(kv.key.clone(), kv.clone()),
                    EventKind::Delete => state.remove(&kv.key),
                };
            }
        }
        state
    }

    pub fn range(&self, op: &RangeOp, current: i64) -> Result<RangeResult, &'static str> {
        if op.revision > current {
            return Err("FutureRev");
        }
        let revision = if op.revision <= 0 { current } else { op.revision };
        if revision < self.compacted {
            return Err("Compacted");
        }
        let mut kvs: Vec<KeyValue> = self.state_at(revision).into_values().collect();
        kvs.retain(|kv| in_range(&kv.key, &op.key, &op.range_end));
        let count = kvs.len() as i64;
        if op.count_only {
            return Ok(RangeResult { revision: current, kvs: Vec::new(), count, more: false });
        }
        let filters = [op.min_mod_revision, op.max_mod_revision, op.min_create_revision, op.max_create_revision];
        let limit = if op.limit > 0 { op.limit as usize } else { usize::MAX };
        // A sort target without an order sees only what the limit left, plus the one that tells of more.
        if op.sort_order == 0 && filters == [0; 4] {
            kvs.truncate(limit.saturating_add(1));
        }
        let or = |filter: i64, none: i64| if filter == 0 { none } else { filter };
        kvs.retain(|kv| {
            kv.mod_revision >= or(op.min_mod_revision, i64::MIN)
                && kv.mod_revision <= or(op.max_mod_revision, i64::MAX)
                && kv.create_revision >= or(op.min_create_revision, i64::MIN)
                && kv.create_revision <= or(op.max_create_revision, i64::MAX)
        });
        let field = |kv: &KeyValue| match op.sort_target {
            1 => (kv.version, Bytes::new()),
            2 => (kv.create_revision, Bytes::new()),
            3 => (kv.mod_revision, Bytes::new()),
            4 => (0, kv.value.clone()),
            _ => (0, kv.key.clone()),
        };
        if op.sort_order == 2 {
            kvs.sort_by_key(|kv| std::cmp::Reverse(field(kv)));
        } else {
            kvs.sort_by_key(field);
        }
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if op.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResult { revision: current, kvs, count, more })
    }

    pub fn apply(&mut self, op: &Op) -> (Answer, Vec<Event>) {
        let before = self.versions.len();
        let answer = self.answer(op);
        let events: Vec<Event> = self.versions[before..]
            .iter()
            .map(|(_, kind, kv)| Event { kind: *kind, kv: kv.clone(), prev_kv: None })
            .collect();
        if !events.is_empty() {
            self.revision += 1;
        }
        (answer, events)
    }

    fn answer(&mut self, op: &Op) -> Answer {
        let main = self.revision + 1;
        match op {
            Op::Put(op) => {
                if op.lease != 0 && !self.leases.contains_key(&op.lease) {
                    return Answer::Refused("LeaseNotFound");
                }
                if (op.ignore_value || op.ignore_lease) && !self.state_at(main).contains_key(&op.key) {
                    return Answer::Refused("KeyNotFound");
                }
                Answer::Put(self.put(op, main))
            }
            Op::Delete(op) => {
                let started = self.versions.len();
                Answer::Delete(self.delete(op, main, started))
            }
            Op::Txn(op) => {
                let before = self.state_at(main);
                if let Err(refused) = self.check_puts(op, &before).and_then(|()| self.check_ranges(op, &before)) {
                    return Answer::Refused(refused);
                }
                let started = self.versions.len();
                let mut result = self.txn(op, &before, main, started);
                result.revision = self.revision + i64::from(self.versions.len() > started);
                Answer::Txn(result)
            }
            Op::Compact(op) if op.revision <= self.compacted => Answer::Refused("Compacted"),
            Op::Compact(op) if op.revision > self.revision => Answer::Refused("FutureRev"),
            Op::Compact(op) => {
                self.compacted = op.revision;
                Answer::Other(self.revision)
            }
            Op::Grant(op) if op.id == 0 => Answer::Refused("LeaseNotFound"),
            Op::Grant(op) if self.leases.contains_key(&op.id) => Answer::Refused("LeaseExists"),
            Op::Grant(op) => {
                self.leases.insert(op.id, op.ttl_s);
                Answer::Other(op.ttl_s)
            }
            Op::Revoke(op) => {
                if self.leases.remove(&op.id).is_none() {
                    return Answer::Refused("LeaseNotFound");
                }
                let keys: Vec<Bytes> =
                    self.state_at(main).into_values().filter(|kv| kv.lease == op.id).map(|kv| kv.key).collect();
                for key in &keys {
                    self.tombstone(key.clone(), main);
                }
                Answer::Other(keys.len() as i64)
            }
            Op::Checkpoint(_) | Op::Skip => Answer::Other(0),
        }
    }

    fn put(&mut self, op: &PutOp, main: i64) -> PutResult {
        let old = self.state_at(main).remove(&op.key);
        let mut kv = KeyValue {
            key: op.key.clone(),
            create_revision: old.as_ref().map_or(main, |old| old.create_revision),
            mod_revision: main,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            value: op.value.clone(),
            lease: op.lease,
        };
        // What a step before deleted counts as there, for who wants to keep it.
        if let Some(kept) = old.clone().or_else(|| self.state_at(main - 1).remove(&op.key)) {
            if op.ignore_value {
                kv.value = kept.value;
            }
            if op.ignore_lease {
                kv.lease = kept.lease;
            }
        }
        self.versions.push((main, EventKind::Put, kv));
        PutResult { revision: main, prev_kv: old.filter(|_| op.prev_kv) }
    }

    fn tombstone(&mut self, key: Bytes, main: i64) {
        let kv = KeyValue { key, mod_revision: main, ..KeyValue::default() };
        self.versions.push((main, EventKind::Delete, kv));
    }

    fn delete(&mut self, op: &DeleteRangeOp, main: i64, started: usize) -> DeleteRangeResult {
        let mut kvs: Vec<KeyValue> = self.state_at(main).into_values().collect();
        kvs.retain(|kv| in_range(&kv.key, &op.key, &op.range_end));
        for kv in &kvs {
            self.tombstone(kv.key.clone(), main);
        }
        let revision = if self.versions.len() > started { main } else { main - 1 };
        let deleted = kvs.len() as i64;
        DeleteRangeResult { revision, deleted, prev_kvs: if op.prev_kv { kvs } else { Vec::new() } }
    }

    fn branch<'a>(op: &'a TxnOp, before: &BTreeMap<Bytes, KeyValue>) -> (bool, &'a [RequestOp]) {
        let holds = op.compares.iter().all(|compare| {
            let kvs: Vec<&KeyValue> =
                before.values().filter(|kv| in_range(&kv.key, &compare.key, &compare.range_end)).collect();
            if kvs.is_empty() {
                return compare.target != 3 && relates(compare, &KeyValue::default());
            }
            kvs.into_iter().all(|kv| relates(compare, kv))
        });
        (holds, if holds { &op.success } else { &op.failure })
    }

    fn check_puts(&self, op: &TxnOp, before: &BTreeMap<Bytes, KeyValue>) -> Result<(), &'static str> {
        for step in Self::branch(op, before).1 {
            match step.request.as_ref().unwrap() {
                Request::Put(put) if (put.ignore_value || put.ignore_lease) && !before.contains_key(&put.key) => {
                    return Err("KeyNotFound");
                }
                Request::Put(put) if put.lease != 0 && !self.leases.contains_key(&put.lease) => {
                    return Err("LeaseNotFound");
                }
                Request::Txn(txn) => self.check_puts(txn, before)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_ranges(&self, op: &TxnOp, before: &BTreeMap<Bytes, KeyValue>) -> Result<(), &'static str> {
        for step in Self::branch(op, before).1 {
            match step.request.as_ref().unwrap() {
                Request::Range(range) if range.revision > self.revision => return Err("FutureRev"),
                Request::Range(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err("Compacted");
                }
                Request::Txn(txn) => self.check_ranges(txn, before)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, op: &TxnOp, before: &BTreeMap<Bytes, KeyValue>, main: i64, started: usize) -> TxnResult {
        let (succeeded, steps) = Self::branch(op, before);
        let mut responses = Vec::new();
        for step in steps {
            let current = if self.versions.len() > started { main } else { main - 1 };
            responses.push(match step.request.as_ref().unwrap() {
                Request::Range(range) => OpResult::Range(self.range(range, current).expect("checked")),
                Request::Put(put) => OpResult::Put(self.put(put, main)),
                Request::DeleteRange(delete) => OpResult::DeleteRange(self.delete(delete, main, started)),
                Request::Txn(txn) => OpResult::Txn(self.txn(txn, before, main, started)),
            });
        }
        TxnResult { revision: 0, succeeded, responses }
    }

    /// The pair of an event's key just before it.
    pub fn before(&self, event: &Event) -> Option<KeyValue> {
        self.state_at(event.kv.mod_revision - 1).remove(&event.kv.key)
    }
}

fn relates(compare: &Compare, kv: &KeyValue) -> bool {
    use CompareOperand as O;
    let order = match (compare.target, &compare.operand) {
        (0, operand) => kv.version.cmp(&if let Some(O::Version(n)) = operand { *n } else { 0 }),
        (1, operand) => kv.create_revision.cmp(&if let Some(O::CreateRevision(n)) = operand { *n } else { 0 }),
        (2, operand) => kv.mod_revision.cmp(&if let Some(O::ModRevision(n)) = operand { *n } else { 0 }),
        (3, operand) => kv.value.cmp(&if let Some(O::Value(v)) = operand { v.clone() } else { Bytes::new() }),
        (4, operand) => kv.lease.cmp(&if let Some(O::Lease(n)) = operand { *n } else { 0 }),
        _ => std::cmp::Ordering::Equal,
    };
    match compare.result {
        0 => order.is_eq(),
        1 => order.is_gt(),
        2 => order.is_lt(),
        3 => order.is_ne(),
        _ => true,
    }
}

const KEYS: [&str; 8] = ["a", "aa", "ab", "b", "ba", "c", "\0", "\u{7f}"];

pub fn key(rng: &mut Rng) -> Bytes {
    Bytes::from_static(rng.pick(&KEYS).as_bytes())
}

/// A range end: often none, sometimes everything, sometimes below the key.
pub fn end(rng: &mut Rng) -> Bytes {
    match rng.below(10) {
        0..5 => Bytes::new(),
        5..7 => Bytes::from_static(b"\0"),
        _ => key(rng),
    }
}

fn value(rng: &mut Rng) -> Bytes {
    Bytes::from(format!("v{}", rng.below(6)))
}

fn put_op(rng: &mut Rng) -> PutOp {
    let (ignore_value, ignore_lease) = (rng.chance(10), rng.chance(10));
    PutOp {
        key: key(rng),
        value: if ignore_value { Bytes::new() } else { value(rng) },
        lease: if ignore_lease || rng.chance(60) { 0 } else { rng.below(5) as i64 },
        prev_kv: rng.chance(30),
        ignore_value,
        ignore_lease,
    }
}

fn delete_op(rng: &mut Rng) -> DeleteRangeOp {
    DeleteRangeOp { key: key(rng), range_end: end(rng), prev_kv: rng.chance(50) }
}

/// A revision near what is there: compacted, old, current, future, absurd.
fn revision(rng: &mut Rng, model: &Model) -> i64 {
    match rng.below(12) {
        0..4 => 0,
        4 => model.compacted,
        5 => model.compacted - 1,
        6 => model.revision + 1,
        7 => -3,
        _ => rng.below(model.revision as u64 + 1) as i64,
    }
}

pub fn range_op(rng: &mut Rng, model: &Model) -> RangeOp {
    let mut bound = |percent| if rng.chance(percent) { rng.below(model.revision as u64 + 2) as i64 } else { 0 };
    let filters = [bound(10), bound(10), bound(10), bound(10)];
    RangeOp {
        key: key(rng),
        range_end: end(rng),
        limit: if rng.chance(50) { rng.below(5) as i64 - 1 } else { 0 },
        revision: revision(rng, model),
        sort_order: rng.below(3) as i32,
        sort_target: rng.below(5) as i32,
        serializable: rng.chance(50),
        keys_only: rng.chance(20),
        count_only: rng.chance(15),
        min_mod_revision: filters[0],
        max_mod_revision: filters[1],
        min_create_revision: filters[2],
        max_create_revision: filters[3],
    }
}

fn compare(rng: &mut Rng, model: &Model) -> Compare {
    let near = model.revision - rng.below(4) as i64;
    let operand = match rng.below(6) {
        0 => Some(CompareOperand::Version(rng.below(4) as i64)),
        1 => Some(CompareOperand::CreateRevision(if rng.chance(50) { 0 } else { near })),
        2 => Some(CompareOperand::ModRevision(near)),
        3 => Some(CompareOperand::Value(value(rng))),
        4 => Some(CompareOperand::Lease(rng.below(5) as i64)),
        _ => None,
    };
    Compare {
        result: rng.below(5) as i32,
        target: rng.below(6) as i32,
        key: key(rng),
        operand,
        range_end: if rng.chance(70) { Bytes::new() } else { end(rng) },
    }
}

fn step(rng: &mut Rng, model: &Model, depth: u64) -> RequestOp {
    let request = match rng.below(if depth == 0 { 9 } else { 11 }) {
        0..3 => Request::Range(range_op(rng, model)),
        3..7 => Request::Put(put_op(rng)),
        7..9 => Request::DeleteRange(delete_op(rng)),
        _ => Request::Txn(txn_op(rng, model, depth - 1)),
    };
    request.into()
}

pub fn txn_op(rng: &mut Rng, model: &Model, depth: u64) -> TxnOp {
    let steps = |n: u64, rng: &mut Rng| (0..rng.below(n)).map(|_| step(rng, model, depth)).collect::<Vec<_>>();
    let (success, failure) = (steps(4, rng), steps(3, rng));
    TxnOp { compares: (0..rng.below(3)).map(|_| compare(rng, model)).collect(), success, failure }
}

pub fn op(rng: &mut Rng, model: &Model) -> Op {
    match rng.below(100) {
        0..40 => Op::Put(put_op(rng)),
        40..52 => Op::Delete(delete_op(rng)),
        52..80 => Op::Txn(txn_op(rng, model, 2)),
        80..83 => Op::Compact(CompactOp { revision: revision(rng, model), physical: false }),
        83..90 => Op::Grant(LeaseGrantOp { id: rng.below(5) as i64, ttl_s: 2 + rng.below(1000) as i64 }),
        90..94 => Op::Revoke(LeaseRevokeOp { id: rng.below(5) as i64 }),
        94..97 => {
            let one = |rng: &mut Rng| LeaseCheckpoint { id: rng.below(5) as i64, remaining_s: rng.below(50) as i64 };
            Op::Checkpoint(LeaseCheckpointOp { checkpoints: (0..2).map(|_| one(rng)).collect() })
        }
        _ => Op::Skip,
    }
}
