//! The store against the naive model: every answer, every event, reads at every old revision, over flushes, crashes
//! and compactions at any point.
#![cfg(feature = "mvcc")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    missing_docs,
    reason = "test code: a panic is the failure report, and the shared module serves two tests"
)]

mod common;

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use common::{Answer, Model, Op, Rng};
use triune_storage::{Index, MemStore, OrderedStore, StoreBatch, Table};
use triune_txn::mvcc::{
    Applied, ApplyError, ApplyResult, CompactOp, Event, FlushBatch, OpenError, PutOp, RangeError, RequestLimits, Store,
    StoreLimits, Tables, check_txn,
};

const TABLES: Tables = Tables { revisions: Table(1), leases: Table(2), mark: Table(3) };

fn open(disk: &Arc<MemStore>, limits: StoreLimits) -> Store {
    Store::open(Arc::clone(disk) as Arc<dyn OrderedStore>, TABLES, limits).unwrap()
}

fn settle<T, E: std::error::Error>(
    outcome: ApplyResult<T, E>,
    answer: impl FnOnce(T) -> Answer,
) -> (Answer, Vec<Event>) {
    match outcome {
        Ok(Applied { result, events }) => (answer(result), events.to_vec()),
        Err(ApplyError::Refused(refusal)) => {
            let name = format!("{refusal:?}");
            let known = ["LeaseNotFound", "LeaseExists", "KeyNotFound", "Compacted", "FutureRev"];
            let known = known.into_iter().find(|known| name.starts_with(known));
            (Answer::Refused(known.expect("a known refusal")), Vec::new())
        }
        Err(ApplyError::Store(error)) => panic!("{error}"),
    }
}

fn apply(store: &mut Store, index: u64, op: &Op) -> (Answer, Vec<Event>) {
    let index = Index(index);
    match op {
        Op::Put(op) => settle(store.apply_put(index, op), Answer::Put),
        Op::Delete(op) => settle(store.apply_delete_range(index, op), Answer::Delete),
        Op::Txn(op) => settle(store.apply_txn(index, op), Answer::Txn),
        Op::Compact(op) => settle(store.apply_compact(index, op), |result| Answer::Other(result.revision)),
        Op::Grant(op) => settle(store.apply_lease_grant(index, op), |result| Answer::Other(result.ttl_s)),
        Op::Revoke(op) => settle(store.apply_lease_revoke(index, op), |result| Answer::Other(result.deleted)),
        Op::Checkpoint(op) => settle(store.apply_lease_checkpoint(index, op), |_| Answer::Other(0)),
        Op::Skip => {
            store.skip(index);
            (Answer::Other(0), Vec::new())
        }
    }
}

/// Everything that must be equal on two members at one index.
fn fingerprint(store: &Store) -> (Index, i64, i64, u64, u64, u32, String) {
    let hash = store.hash_kv(0).unwrap().hash;
    let leases = format!("{:?}", store.leases().iter().collect::<Vec<_>>());
    let (applied, revision, compacted) = (store.applied(), store.revision(), store.compacted());
    (applied, revision, compacted, store.digest(), store.approx_bytes(), hash, leases)
}

/// What is on disk, row by row.
fn rows(disk: &MemStore) -> Vec<(Table, Bytes, Bytes)> {
    let mut rows = Vec::new();
    let view = disk.view().unwrap();
    for table in [TABLES.revisions, TABLES.leases, TABLES.mark] {
        let mut visit = |key: &[u8], value: &[u8]| {
            rows.push((table, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            true
        };
        view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut visit).unwrap();
    }
    rows
}

/// With everything flushed and swept, the quota counts exactly the rows that are there.
fn check_bytes(store: &Store, disk: &MemStore, seed: u64) {
    if store.wants_flush() || !store.compaction_done() {
        return;
    }
    let bytes = |(table, key, value): &(Table, Bytes, Bytes)| match *table {
        table if table == TABLES.revisions => (key.len() + value.len()) as u64 + 32,
        table if table == TABLES.leases => 64,
        _ => 0,
    };
    let sum: u64 = rows(disk).iter().map(bytes).sum();
    assert_eq!(store.approx_bytes(), sum, "seed {seed}: bytes for the quota");
}

/// A snapshot of what is on disk, installed elsewhere, is the state after the same index.
fn check_snapshot(store: &Store, disk: &MemStore, seed: u64) {
    if store.durable() != store.applied() {
        return;
    }
    let other = Arc::new(MemStore::default());
    let ops = rows(disk).into_iter().map(|(table, key, value)| (table, key, Some(value))).collect();
    other.commit(StoreBatch { ops }).unwrap();
    assert_eq!(fingerprint(&open(&other, StoreLimits::default())), fingerprint(store), "seed {seed}: a snapshot");
}

#[derive(Default)]
struct Seen {
    snapshots: u64,
    applied: u64,
    refused: u64,
    reads: u64,
    compacted_reads: u64,
    crashes: u64,
    replayed: u64,
    flushes: u64,
    sweeps_done: u64,
}

fn run(seed: u64, steps: u64, seen: &mut Seen) {
    let mut rng = Rng::new(seed);
    let limits =
        StoreLimits { cache_bytes_max: *rng.pick(&[0, 500, 1 << 20]), sweep_keys_max: *rng.pick(&[1, 3, 1000]) };
    let disk = Arc::new(MemStore::default());
    let mut store = open(&disk, limits);
    // A second member that never flushes.
    let mut twin = open(&Arc::new(MemStore::default()), StoreLimits::default());
    let mut model = Model::new();
    let mut log: Vec<Op> = Vec::new();
    let mut out: Option<FlushBatch> = None;
    let flush_percent = *rng.pick(&[5, 40, 90]);
    let mut durable = 0;
    for step in 0..steps {
        let op = loop {
            let op = common::op(&mut rng, &model);
            match &op {
                Op::Txn(txn) if check_txn(txn, &RequestLimits::default()).is_err() => {}
                _ => break op,
            }
        };
        log.push(op.clone());
        let index = log.len() as u64;
        let expected = model.apply(&op);
        assert_eq!(apply(&mut store, index, &op), expected, "seed {seed} step {step} {op:?}");
        assert_eq!(apply(&mut twin, index, &op), expected, "seed {seed} step {step} twin {op:?}");
        if matches!(expected.0, Answer::Refused(_)) {
            seen.refused += 1
        } else {
            seen.applied += 1
        }

        for _ in 0..3 {
            let range = common::range_op(&mut rng, &model);
            let found = store.range(&range).map_err(|error| match error {
                RangeError::Compacted { .. } => "Compacted",
                RangeError::FutureRev { .. } => "FutureRev",
                other => panic!("{other}"),
            });
            seen.reads += 1;
            seen.compacted_reads += u64::from(found == Err("Compacted"));
            assert_eq!(found, model.range(&range, model.revision), "seed {seed} step {step} {range:?}");
        }
        if out.is_none() && rng.chance(flush_percent) {
            out = store.take_flush();
        }
        if rng.chance(flush_percent)
            && let Some(flush) = out.take()
        {
            disk.commit(flush.batch).unwrap();
            durable = flush.mark.applied.0;
            if rng.chance(95) {
                store.flushed(flush.mark);
                seen.flushes += 1;
                check_bytes(&store, &disk, seed);
                if rng.chance(5) {
                    check_snapshot(&store, &disk, seed);
                    seen.snapshots += u64::from(store.durable() == store.applied());
                }
                seen.sweeps_done += u64::from(model.compacted >= 0 && store.compaction_done());
            } else {
                // The commit came through, the news of it did not: the crash is due now.
                crash(&mut store, &disk, limits, durable, &log, seed, seen);
            }
        }
        if rng.chance(2) {
            out = None;
            crash(&mut store, &disk, limits, durable, &log, seed, seen);
        }
        if rng.chance(10) {
            assert_eq!(fingerprint(&store), fingerprint(&twin), "seed {seed} step {step}");
        }
    }
    assert_eq!(fingerprint(&store), fingerprint(&twin), "seed {seed}");
}

fn crash(
    store: &mut Store,
    disk: &Arc<MemStore>,
    limits: StoreLimits,
    durable: u64,
    log: &[Op],
    seed: u64,
    seen: &mut Seen,
) {
    let before = fingerprint(store);
    *store = open(disk, limits);
    assert_eq!(store.applied(), Index(durable), "seed {seed}: the disk holds the state after one index");
    for (op, index) in log.iter().zip(1..).skip(usize::try_from(durable).unwrap()) {
        apply(store, index, op);
        seen.replayed += 1;
    }
    assert_eq!(fingerprint(store), before, "seed {seed}: a replay reaches the same state");
    seen.crashes += 1;
}

#[test]
fn every_answer_equals_the_models_over_flushes_crashes_and_compactions() {
    let mut seen = Seen::default();
    for seed in common::seeds(60) {
        run(seed, 250, &mut seen);
    }
    println!(
        "{} applied, {} refused, {} reads ({} compacted), {} flushes, {} crashes, {} entries replayed, {} sweeps",
        seen.applied,
        seen.refused,
        seen.reads,
        seen.compacted_reads,
        seen.flushes,
        seen.crashes,
        seen.replayed,
        seen.sweeps_done
    );
    for counter in [
        seen.snapshots,
        seen.refused,
        seen.compacted_reads,
        seen.flushes,
        seen.crashes,
        seen.replayed,
        seen.sweeps_done,
    ] {
        assert!(counter > 0, "a case was never met");
    }
}

#[test]
fn what_is_not_a_store_is_refused_at_opening() {
    let check = |table: Table, key: &'static [u8], value: &'static [u8], expected: OpenError| {
        let disk = Arc::new(MemStore::default());
        let ops = vec![(table, Bytes::from_static(key), Some(Bytes::from_static(value)))];
        disk.commit(StoreBatch { ops }).unwrap();
        let opened = Store::open(disk as Arc<dyn OrderedStore>, TABLES, StoreLimits::default());
        assert_eq!(opened.err(), Some(expected));
    };
    check(TABLES.mark, b"mark", b"\xff", OpenError::Corrupt { table: 3 });
    check(TABLES.mark, b"mark", b"\x08\x02", OpenError::Newer { found: 2, known: 1 });
    check(TABLES.leases, b"short", b"", OpenError::Corrupt { table: 2 });
    check(TABLES.revisions, b"short", b"", OpenError::Corrupt { table: 1 });
    // A pair of a revision that the mark has not reached.
    check(
        TABLES.revisions,
        b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0",
        b"\n\x01a\x20\x01",
        OpenError::Corrupt { table: 1 },
    );
}

#[test]
#[should_panic(expected = "a batch is flushed once, in order")]
fn a_batch_is_not_flushed_twice() {
    let disk = Arc::new(MemStore::default());
    let mut store = open(&disk, StoreLimits::default());
    store.skip(Index(1));
    let mark = store.take_flush().unwrap().mark;
    assert_eq!(store.take_flush(), None, "one batch at a time");
    store.flushed(mark);
    store.flushed(mark);
}

#[test]
fn an_idle_store_sweeps_to_the_end() {
    let disk = Arc::new(MemStore::default());
    let mut store = open(&disk, StoreLimits { sweep_keys_max: 3, ..StoreLimits::default() });
    for index in 1..=100_u64 {
        // Most keys have nothing to remove.
        let key = Bytes::from(if index < 20 { format!("key{index:02}") } else { "last".to_owned() });
        store.apply_put(Index(index), &PutOp { key, ..PutOp::default() }).unwrap();
    }
    store.apply_compact(Index(101), &CompactOp { revision: 101, physical: true }).unwrap();
    let mut calls = 0;
    while store.wants_flush() {
        let flush = store.take_flush().expect("a batch comes when one is wanted");
        disk.commit(flush.batch).unwrap();
        store.flushed(flush.mark);
        calls += 1;
        if calls == 2 {
            store = open(&disk, StoreLimits { sweep_keys_max: 3, ..StoreLimits::default() });
            assert!(!store.compaction_done(), "a restart in the middle goes on with it");
        }
        assert!(calls < 100, "it never ends");
    }
    assert!(store.compaction_done());
    assert!(calls >= 6, "slices that remove nothing are batches too");
    let revisions = rows(&disk).iter().filter(|(table, ..)| *table == TABLES.revisions).count();
    assert_eq!(revisions, 20);
    assert_eq!(store.take_flush(), None);
}
