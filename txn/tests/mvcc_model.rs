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

use std::sync::Arc;

use common::{Answer, Model, Op, Rng};
use triune_storage::{Index, MemStore, OrderedStore, Table};
use triune_txn::mvcc::{
    Applied, ApplyError, ApplyResult, Event, FlushBatch, RangeError, RequestLimits, Store, StoreLimits, Tables,
    check_txn,
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

#[derive(Default)]
struct Seen {
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
    for seed in 1..=60 {
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
    for counter in [seen.refused, seen.compacted_reads, seen.flushes, seen.crashes, seen.replayed, seen.sweeps_done] {
        assert!(counter > 0, "a case was never met");
    }
}
