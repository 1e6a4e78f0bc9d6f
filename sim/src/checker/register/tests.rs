//! Good histories pass, each kind of broken store is caught: histories are made by a store that misbehaves on purpose.

use triune_transport::Nanos;

use super::*;
use crate::Rng;
use crate::checker::wgl::{Limits, Verdict, check, check_by_key};
use crate::checker::{Operation, validate};

type Op = RegisterOp<u64>;
type History = Vec<Operation<Op, RegisterRet<u64>>>;

/// How the store misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    /// An acknowledged write is forgotten.
    LostWrite,
    /// A read shows the value before the last one.
    StaleRead,
    /// A write is applied again later.
    DoubleApply,
    /// A compare-and-set does not look.
    BlindCas,
    /// A read shows a write that was never asked for.
    Invented,
    /// A refused delete removes.
    GhostDelete,
}

struct Store {
    cell: Option<(u64, i64, i64)>,
    before: Option<(u64, i64, i64)>,
    revision: i64,
    repeat: Option<u64>,
    bug: Bug,
}

impl Store {
    fn write(&mut self, value: Option<u64>) -> i64 {
        self.revision += 1;
        self.before = self.cell;
        let version = self.cell.map_or(1, |c| c.2 + 1);
        self.cell = value.map(|value| (value, self.revision, version));
        self.revision
    }

    fn apply(&mut self, op: &Op, rng: &mut Rng, revisions: bool) -> RegisterRet<u64> {
        let strikes = rng.below(10) == 0;
        let told = |revision: i64| revisions.then_some(revision);
        if self.bug == Bug::DoubleApply
            && strikes
            && let Some(value) = self.repeat.take()
        {
            self.write(Some(value));
        }
        match op {
            Op::Put(value) => {
                if self.bug == Bug::LostWrite && strikes {
                    self.revision += 1;
                    return RegisterRet::Put { revision: told(self.revision) };
                }
                self.repeat = Some(*value);
                RegisterRet::Put { revision: told(self.write(Some(*value))) }
            }
            Op::Cas { expect, value } => {
                let cell = self.cell;
                let holds = match expect {
                    Expect::Absent => cell.is_none(),
                    Expect::Value(v) => cell.is_some_and(|c| c.0 == *v),
                    Expect::ModRevision(r) => cell.map_or(0, |c| c.1) == *r,
                    Expect::Version(n) => cell.map_or(0, |c| c.2) == *n,
                };
                let succeeded = holds || (self.bug == Bug::BlindCas && strikes);
                let revision = if succeeded { self.write(Some(*value)) } else { self.revision };
                RegisterRet::Cas { succeeded, revision: told(revision) }
            }
            Op::Delete => {
                if self.bug == Bug::GhostDelete && strikes && self.cell.is_some() {
                    self.write(None);
                    return RegisterRet::Delete { existed: false, revision: told(self.revision) };
                }
                let existed = self.cell.is_some();
                let revision = if existed { self.write(None) } else { self.revision };
                RegisterRet::Delete { existed, revision: told(revision) }
            }
            Op::Get => {
                let cell = if self.bug == Bug::StaleRead && strikes { self.before } else { self.cell };
                let seen = |(value, revision, version): (u64, i64, i64)| Seen {
                    value: if self.bug == Bug::Invented && strikes { value + 1_000_000 } else { value },
                    mod_revision: told(revision),
                    version: told(version),
                };
                RegisterRet::Get(cell.map(seen))
            }
        }
    }
}

/// `clients` at once; each call takes effect at a random instant between call and return; some answers are lost, and of
/// those some never take effect.
fn history(bug: Bug, seed: u64, clients: u64, ops: usize, revisions: bool) -> History {
    let mut rng = Rng::new(seed);
    let mut store = Store { cell: None, before: None, revision: 1, repeat: None, bug };
    let mut points = Vec::new();
    let mut free_at = vec![0_u64; clients as usize];
    let mut known = vec![0_u64];
    for n in 0..ops as u64 {
        let client = rng.below(clients);
        let call = free_at[client as usize] + rng.below(200);
        let effect = call + rng.below(500);
        let ret = effect + rng.below(500);
        free_at[client as usize] = ret + 1;
        let op = match rng.below(10) {
            0..=2 => Op::Put(n),
            3 => Op::Cas { expect: Expect::Value(*rng.pick(&known).unwrap()), value: n },
            4 if revisions => Op::Cas { expect: Expect::ModRevision(rng.below(n + 2) as i64), value: n },
            4 => Op::Cas { expect: Expect::Absent, value: n },
            5 => Op::Delete,
            _ => Op::Get,
        };
        known.push(n);
        let fate = rng.below(40);
        points.push((effect, client, call, (fate > 0).then_some(ret), op, fate == 0 && rng.coin()));
    }
    points.sort_by_key(|p| (p.0, p.1));
    let mut history = Vec::new();
    for (_, client, call, ret, op, never) in points {
        if never {
            history.push(Operation { client, call: Nanos(call), op, ret: None });
            continue;
        }
        let answer = store.apply(&op, &mut rng, revisions);
        history.push(Operation { client, call: Nanos(call), op, ret: ret.map(|at| (Nanos(at), answer)) });
    }
    validate(&history).unwrap();
    history
}

fn verdict(history: &History) -> Verdict<Register<u64>> {
    check(&Register::new(), history, Limits::default()).unwrap()
}

#[test]
fn every_history_of_a_correct_store_passes() {
    let mut states = 0;
    for seed in 0..300 {
        let history = history(Bug::None, seed, 1 + seed % if seed % 2 == 0 { 32 } else { 8 }, 250, seed % 2 == 0);
        match verdict(&history) {
            Verdict::Linearizable { states: n } => states += n,
            other => panic!("seed {seed}: {other}"),
        }
    }
    println!("300 histories, {states} states");
}

#[test]
fn every_seeded_bug_is_caught() {
    for revisions in [true, false] {
        for bug in [Bug::LostWrite, Bug::StaleRead, Bug::DoubleApply, Bug::BlindCas, Bug::Invented, Bug::GhostDelete] {
            let (mut caught, mut cut) = (0, 0);
            for seed in 0..40 {
                let limits = Limits { states_max: 50_000 };
                let history = history(bug, seed, 6, 120, revisions);
                match check(&Register::new(), &history, limits).unwrap() {
                    Verdict::Linearizable { .. } => {}
                    Verdict::Violation(example) => {
                        caught += 1;
                        assert!(!example.stuck.is_empty(), "{example}");
                    }
                    Verdict::CutShort { .. } => cut += 1,
                }
            }
            println!("{bug:?} revisions={revisions}: caught {caught}, cut short {cut} of 40");
            assert!(
                caught >= if revisions { 10 } else { 3 },
                "{bug:?} with revisions={revisions} was caught {caught} times of 40"
            );
        }
    }
}

fn op(client: u64, call: u64, ret: u64, op: Op, answer: RegisterRet<u64>) -> Operation<Op, RegisterRet<u64>> {
    Operation { client, call: Nanos(call), op, ret: Some((Nanos(ret), answer)) }
}

fn unknown(client: u64, call: u64, op: Op) -> Operation<Op, RegisterRet<u64>> {
    Operation { client, call: Nanos(call), op, ret: None }
}

fn put(revision: i64) -> RegisterRet<u64> {
    RegisterRet::Put { revision: Some(revision) }
}

fn got(value: u64) -> RegisterRet<u64> {
    RegisterRet::Get(Some(Seen { value, mod_revision: None, version: None }))
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never_but_once() {
    let late = unknown(1, 0, Op::Put(7));
    let read = |at, value| op(2, at, at + 1, Op::Get, got(value));
    let write = op(2, 10, 11, Op::Put(8), put(2));
    assert!(verdict(&vec![late.clone(), write.clone(), read(20, 8)]).is_linearizable());
    assert!(verdict(&vec![late.clone(), write.clone(), read(20, 8), read(30, 7)]).is_linearizable());
    assert!(verdict(&vec![late.clone(), read(5, 7), write.clone(), read(20, 8)]).is_linearizable());
    assert!(!verdict(&vec![late.clone(), read(5, 7), write.clone(), read(20, 8), read(30, 7)]).is_linearizable());
    let later = unknown(1, 2, Op::Put(7));
    assert!(!verdict(&vec![read(0, 7), later]).is_linearizable(), "a read before the call");
}

#[test]
fn revisions_against_real_time_are_caught() {
    let history = vec![op(1, 0, 1, Op::Put(1), put(5)), op(2, 2, 3, Op::Put(2), put(4))];
    assert!(!verdict(&history).is_linearizable());
    let same = vec![op(1, 0, 9, Op::Put(1), put(5)), op(2, 2, 8, Op::Put(2), put(5))];
    assert!(!verdict(&same).is_linearizable(), "two writes at one revision");
}

#[test]
fn a_revision_learned_from_a_read_binds_later_ones() {
    let seen = |revision| RegisterRet::Get(Some(Seen { value: 7, mod_revision: Some(revision), version: Some(1) }));
    let write = unknown(1, 0, Op::Put(7));
    let read = |at, revision| op(2, at, at + 1, Op::Get, seen(revision));
    assert!(verdict(&vec![write.clone(), read(1, 3), read(3, 3)]).is_linearizable());
    assert!(!verdict(&vec![write.clone(), read(1, 3), read(3, 4)]).is_linearizable());
    let cas = |revision, succeeded| {
        let op_ = Op::Cas { expect: Expect::ModRevision(revision), value: 9 };
        op(2, 5, 6, op_, RegisterRet::Cas { succeeded, revision: Some(8) })
    };
    assert!(verdict(&vec![write.clone(), read(1, 3), cas(3, true)]).is_linearizable());
    assert!(!verdict(&vec![write, read(1, 3), cas(4, true)]).is_linearizable());
}

#[test]
fn the_counterexample_is_the_first_read_that_cannot_be_explained() {
    let mut history: History = (0..50).map(|n| op(1, n * 10, n * 10 + 5, Op::Put(n), put(n as i64 + 2))).collect();
    history.push(op(2, 206, 208, Op::Get, got(3)));
    history.extend((50..60).map(|n| op(1, n * 10, n * 10 + 5, Op::Put(n), put(n as i64 + 2))));
    let Verdict::Violation(example) = verdict(&history) else { panic!("not found") };
    assert_eq!(example.explained.len(), 21);
    assert_eq!(example.stuck.iter().map(|o| o.client).collect::<Vec<_>>(), [2]);
    let text = example.to_string();
    assert!(text.contains("client 2 [0.000000s .. 0.000000s] Get -> Get(Some(Seen { value: 3"), "{text}");
    assert!(text.lines().count() < 20, "{text}");
}

#[test]
fn a_search_that_reaches_its_bound_says_so() {
    // Many unknown writes and a read that none explains: only exhaustion would tell.
    let mut history: History = (0..40).map(|n| unknown(n, 0, Op::Put(n))).collect();
    history.push(op(99, 10, 11, Op::Get, got(1_000)));
    let verdict = check(&Register::new(), &history, Limits { states_max: 1_000 }).unwrap();
    assert!(matches!(verdict, Verdict::CutShort { states: 1_000 }), "{verdict}");
}

#[test]
fn fifty_thousand_operations_by_key_are_checked_in_no_time() {
    let mut all: Vec<Operation<(u64, Op), RegisterRet<u64>>> = Vec::new();
    for key in 0..200 {
        for o in history(Bug::None, key, 32, 250, true) {
            all.push(Operation { client: key * 100 + o.client, call: o.call, op: (key, o.op), ret: o.ret });
        }
    }
    let report = check_by_key(&Keyed::new(Register::new()), &all, |(key, _)| *key, Limits::default()).unwrap();
    assert!(report.passed(), "{}", report.failures[0].1);
    assert_eq!((report.keys, report.ops), (200, 50_000));
    println!("{} states", report.states);
    assert!(report.states < 500_000, "{} states", report.states);
}
