//! Histories of a store that misbehaves on purpose: the good ones pass, each bug is named.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::Rng;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    LostWrite,
    StaleRead,
    DoubleApply,
    TornTxn,
    SkewedCompare,
    MembersDiffer,
    Invented,
    LeaseKeepsAKey,
    LateRevision,
}

/// A reference store of its own making: a map and a log, unlike the checker's timeline.
struct Store {
    map: BTreeMap<Key, Kv>,
    before: BTreeMap<Key, Kv>,
    log: Vec<Revision>,
    bug: Bug,
    fired: u32,
}

impl Store {
    fn revision(&self) -> i64 {
        self.log.len() as i64 + 1
    }

    fn commit(&mut self, map: BTreeMap<Key, Kv>, mut events: Vec<Event>, fire: bool) {
        if events.is_empty() {
            return;
        }
        if self.bug == Bug::TornTxn && fire && events.len() > 1 {
            self.fired += 1;
            let Some(Event::Put(kv)) = events.pop() else { return };
            let mut torn = map;
            torn.remove(&kv.key);
            if let Some(old) = self.map.get(&kv.key) {
                torn.insert(kv.key.clone(), old.clone());
            }
            self.map = torn;
        } else {
            self.before = std::mem::replace(&mut self.map, map);
        }
        let revision = self.revision() + 1;
        self.log.push(Revision { revision, events });
    }

    fn put(map: &mut BTreeMap<Key, Kv>, key: &Key, value: &Bytes, lease: i64, revision: i64) -> Event {
        let old = map.get(key);
        let kv = Kv {
            key: key.clone(),
            value: value.clone(),
            create_revision: old.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |kv| kv.version + 1),
            lease,
        };
        map.insert(key.clone(), kv.clone());
        Event::Put(kv)
    }

    fn end_lease(&mut self, lease: i64) {
        let mut map = self.map.clone();
        let mut bound: Vec<_> = map.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        if self.bug == Bug::LeaseKeepsAKey && bound.len() > 1 {
            self.fired += 1;
            bound.pop();
        }
        bound.iter().for_each(|key| drop(map.remove(key)));
        self.commit(map, bound.into_iter().map(Event::Delete).collect(), false);
    }

    fn apply(&mut self, op: &Op, fire: bool) -> Reply {
        let (compares, success, failure) = match op {
            Op::LeaseRevoke(lease) => {
                self.end_lease(*lease);
                return Reply { revision: self.revision(), succeeded: None, results: Vec::new() };
            }
            Op::Serializable(range) => {
                let kvs = read(&self.map, range);
                let results = vec![ActResult::Range { count: kvs.len(), kvs }];
                return Reply { revision: self.revision(), succeeded: None, results };
            }
            Op::Txn { compares, success, failure } => (compares, success, failure),
        };
        let mut holds = compares.iter().all(|c| match c.target {
            Target::Mod(n) => self.map.get(&c.key).map_or(0, |kv| kv.mod_revision) == n,
            _ => unreachable!("the workload compares revisions"),
        });
        if self.bug == Bug::SkewedCompare && fire && !holds {
            self.fired += 1;
            holds = true;
        }
        let stale = self.bug == Bug::StaleRead && fire && self.before != self.map;
        let mut map = if stale { self.before.clone() } else { self.map.clone() };
        let (mut events, mut results) = (Vec::new(), Vec::new());
        let revision = self.revision() + 1;
        for act in if holds { success } else { failure } {
            match act {
                Act::Put { key, value, lease } => {
                    events.push(Self::put(&mut map, key, value, *lease, revision));
                    results.push(ActResult::Put);
                }
                Act::Delete(range) => {
                    let found = read(&map, range);
                    found.iter().for_each(|kv| drop(map.remove(&kv.key)));
                    results.push(ActResult::Deleted(found.len() as i64));
                    events.extend(found.into_iter().map(|kv| Event::Delete(kv.key)));
                }
                Act::Range { range, .. } => {
                    let kvs = read(&map, range);
                    results.push(ActResult::Range { count: kvs.len(), kvs });
                }
            }
        }
        if stale && events.is_empty() {
            self.fired += u32::from(read(&self.map, &all()) != read(&map, &all()));
        } else if !stale {
            self.lose_or_commit(map, events, fire);
        } else {
            return self.apply(op, false);
        }
        Reply { revision: self.revision(), succeeded: Some(holds), results }
    }

    fn lose_or_commit(&mut self, map: BTreeMap<Key, Kv>, events: Vec<Event>, fire: bool) {
        let again = events.clone();
        if self.bug == Bug::LostWrite && fire && !events.is_empty() {
            self.fired += 1;
            return;
        }
        self.commit(map, events, fire);
        if self.bug == Bug::DoubleApply
            && fire
            && let [Event::Put(kv)] = again.as_slice()
        {
            self.fired += 1;
            let mut map = self.map.clone();
            let event = Self::put(&mut map, &kv.key, &kv.value, kv.lease, self.revision() + 1);
            self.commit(map, vec![event], false);
        }
    }
}

fn read(map: &BTreeMap<Key, Kv>, range: &KeyRange) -> Vec<Kv> {
    let inside = |kv: &&Kv| match &range.end {
        None => kv.key == range.start,
        Some(end) => kv.key >= range.start && kv.key < *end,
    };
    map.values().filter(inside).cloned().collect()
}

fn all() -> KeyRange {
    KeyRange::of("a", "z")
}

fn key(rng: &mut Rng) -> Key {
    Key::copy_from_slice(&[b'a' + rng.below(4) as u8])
}

fn draw_op(rng: &mut Rng, n: usize, revision: i64) -> Op {
    let value = Bytes::from(n.to_string());
    let put = |key, lease| Act::Put { key, value: value.clone(), lease };
    match rng.below(9) {
        0 => Op::one(put(key(rng), 0)),
        1..=2 => Op::one(put(key(rng), rng.range(1, 2) as i64)),
        3 => Op::one(Act::Delete(if rng.coin() { KeyRange::key(key(rng)) } else { KeyRange::of("b", "d") })),
        4 => Op::LeaseRevoke(rng.range(1, 2) as i64),
        5 => Op::Serializable(all()),
        6 => Op::range(all()),
        _ => {
            let mod_revision = (revision - rng.below(3) as i64).max(0);
            let target = if rng.coin() { Target::Mod(mod_revision) } else { Target::Mod(0) };
            Op::Txn {
                compares: vec![Compare { key: key(rng), target, relation: Relation::Equal }],
                success: vec![put("a".into(), 0), put("b".into(), 0)],
                failure: vec![Act::Range { range: all(), limit: 0, revision: None }],
            }
        }
    }
}

fn run(bug: Bug, seed: u64) -> (Vec<Operation<Op, Reply>>, Vec<MemberOrder>, u32) {
    let mut rng = Rng::new(seed);
    let mut store = Store { map: BTreeMap::new(), before: BTreeMap::new(), log: Vec::new(), bug, fired: 0 };
    let mut free_at = [0_u64; 8];
    let mut points: Vec<_> = (0..200)
        .map(|n| {
            let client = rng.below(8);
            let call = free_at[client as usize] + rng.below(100);
            let effect = call + rng.below(300);
            let ret = effect + rng.below(300);
            free_at[client as usize] = ret + 1;
            (effect, client, call, ret, n)
        })
        .collect();
    points.sort_unstable();
    let mut history = Vec::new();
    for (_, client, call, ret, n) in points {
        let op = draw_op(&mut rng, n, store.revision());
        let (fire, fate) = (rng.below(8) == 0, rng.below(30));
        if rng.below(40) == 0 {
            store.end_lease(rng.range(1, 2) as i64);
        }
        if fate == 0 {
            history.push(Operation { client, call: Nanos(call), op, ret: None });
            continue;
        }
        let mut reply = store.apply(&op, fire);
        if bug == Bug::LateRevision && fire && op.may_write() && reply.revision > 2 {
            store.fired += 1;
            reply.revision -= 1;
        }
        let ret = (fate > 1).then_some((Nanos(ret), reply));
        history.push(Operation { client, call: Nanos(call), op, ret });
    }
    if bug == Bug::Invented {
        store.fired += 1;
        let mut map = store.map.clone();
        let event = Store::put(&mut map, &"a".into(), &"nobody".into(), 0, store.revision() + 1);
        store.commit(map, vec![event], false);
    }
    let order = |member: &str| MemberOrder { member: member.into(), revisions: store.log.clone() };
    let mut orders = vec![order("m0"), order("m1"), order("m2")];
    if bug == Bug::MembersDiffer {
        store.fired += 1;
        orders[1].revisions.pop();
    }
    (history, orders, store.fired)
}

#[test]
fn every_history_of_a_correct_store_passes() {
    let mut total = Report::default();
    for seed in 0..300 {
        let (history, orders, _) = run(Bug::None, seed);
        match check(&history, &orders) {
            Ok(report) => {
                total.revisions += report.revisions;
                total.writes += report.writes;
                total.reads += report.reads;
                total.unknown_applied += report.unknown_applied;
                total.unknown_never += report.unknown_never;
                total.leases_ended += report.leases_ended;
                assert_eq!(report.revisions, report.writes + report.unknown_applied + report.leases_ended);
            }
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    println!("{total:?}");
    assert!(total.unknown_applied > 300 && total.unknown_never > 300 && total.leases_ended > 300);
}

#[test]
fn every_seeded_bug_is_named() {
    let name = |violation: &Violation| format!("{violation:?}").split([' ', '{', '(']).next().unwrap().to_owned();
    for (bug, allowed) in [
        (Bug::LostWrite, ["Lost", "WrongEffect", "WrongAnswer", "ClaimedTwice"]),
        (Bug::StaleRead, ["WrongAnswer"; 4]),
        (Bug::DoubleApply, ["NoCause", "WrongEffect", "WrongAnswer", "ClaimedTwice"]),
        (Bug::TornTxn, ["WrongEffect", "WrongAnswer", "NoCause", "NoCause"]),
        (Bug::SkewedCompare, ["WrongEffect", "WrongAnswer", "NoCause", "ClaimedTwice"]),
        (Bug::MembersDiffer, ["MembersDiffer"; 4]),
        (Bug::Invented, ["NoCause"; 4]),
        (Bug::LeaseKeepsAKey, ["WrongEffect", "WrongAnswer", "NoCause", "NoCause"]),
        (Bug::LateRevision, ["WrongEffect", "ClaimedTwice", "WrongAnswer", "AgainstTime"]),
    ] {
        let (mut fired, mut caught) = (0, 0);
        for seed in 0..60 {
            let (history, orders, strikes) = run(bug, seed);
            fired += u32::from(strikes > 0);
            if let Err(violation) = check(&history, &orders) {
                assert!(allowed.contains(&name(&violation).as_str()), "{bug:?} told as {violation}");
                caught += 1;
            }
        }
        println!("{bug:?}: fired in {fired}, caught in {caught} of 60");
        assert!(fired >= 15 && caught * 10 >= fired * 9, "{bug:?}: fired {fired}, caught {caught}");
    }
}

fn put(client: u64, call: u64, ret: Option<(u64, i64)>, value: &'static str) -> Operation<Op, Reply> {
    let reply = |revision| Reply { revision, succeeded: None, results: vec![ActResult::Put] };
    let ret = ret.map(|(at, revision)| (Nanos(at), reply(revision)));
    Operation { client, call: Nanos(call), op: Op::put("a", value), ret }
}

fn order(values: &[&'static str]) -> Vec<MemberOrder> {
    let mut map = BTreeMap::new();
    let mut revisions = Vec::new();
    for (revision, value) in (2..).zip(values) {
        let event = Store::put(&mut map, &"a".into(), &Bytes::from_static(value.as_bytes()), 0, revision);
        revisions.push(Revision { revision, events: vec![event] });
    }
    vec![MemberOrder { member: "m0".into(), revisions }]
}

#[test]
fn revisions_follow_real_time() {
    let overlap = [put(1, 0, Some((9, 3)), "x"), put(2, 1, Some((8, 2)), "y")];
    assert!(check(&overlap, &order(&["y", "x"])).is_ok());
    let apart = [put(1, 0, Some((4, 3)), "x"), put(2, 5, Some((8, 2)), "y")];
    assert!(matches!(check(&apart, &order(&["y", "x"])), Err(Violation::AgainstTime { revision: 2, seen: 3, .. })));
}

#[test]
fn an_unknown_write_explains_one_revision_and_only_after_its_call() {
    let unknown = put(1, 0, None, "x");
    let report = check(std::slice::from_ref(&unknown), &order(&["x"])).unwrap();
    assert_eq!((report.unknown_applied, report.unknown_never), (1, 0));
    assert_eq!(check(std::slice::from_ref(&unknown), &order(&[])).unwrap().unknown_never, 1);
    let twice = check(&[unknown], &order(&["x", "x"]));
    assert!(matches!(twice, Err(Violation::NoCause { revision: 3, .. })), "{twice:?}");
    let early = check(&[put(2, 0, Some((4, 3)), "y"), put(1, 5, None, "x")], &order(&["x", "y"]));
    assert!(matches!(early, Err(Violation::NoCause { revision: 2, .. })), "{early:?}");
}

#[test]
fn two_like_unknown_writes_find_a_cause_each() {
    // The first revision could be either; the second only the one called early enough.
    let history = [put(1, 0, None, "x"), put(2, 6, Some((7, 3)), "y"), put(3, 0, None, "x")];
    assert_eq!(check(&history, &order(&["x", "y", "x"])).unwrap().unknown_applied, 2);
}

#[test]
fn an_order_no_store_can_write_is_told() {
    let mut gap = order(&["x", "y"]);
    gap[0].revisions.remove(0);
    assert!(matches!(check(&[], &gap), Err(Violation::Impossible { revision: 3, .. })));
    let mut version = order(&["x"]);
    let Event::Put(kv) = &mut version[0].revisions[0].events[0] else { panic!("a put") };
    kv.version = 7;
    assert!(matches!(check(&[], &version), Err(Violation::Impossible { revision: 2, .. })));
}

#[test]
fn a_lost_write_names_itself() {
    let violation = check(&[put(1, 0, Some((4, 2)), "x")], &order(&[])).unwrap_err();
    let text = violation.to_string();
    assert!(text.starts_with("lost write: #0 client 1"), "{text}");
    assert!(text.ends_with("was acknowledged at revision 2, the order ends at 1"), "{text}");
}
