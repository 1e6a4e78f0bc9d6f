//! Watches under random load: slow and fast clients, history and future starts, compactions, fall-backs to the
//! store, crashes and snapshots. What each client saw is checked against the nine guarantees.
#![cfg(all(feature = "mvcc", feature = "check"))]
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

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Model, Op, Rng};
use triune_storage::{Index, MemStore, OrderedStore, Table};
use triune_txn::mvcc::check::{History, Known, Recorded};
use triune_txn::mvcc::{
    CancelReason, Events, RequestLimits, Store, StoreLimits, StreamKey, Tables, WATCH_ID_NONE, WatchCreate,
    WatchLimits, WatchResponse, WatcherHub, check_txn,
};

const TABLES: Tables = Tables { revisions: Table(1), leases: Table(2), mark: Table(3) };

fn apply(store: &mut Store, index: u64, op: &Op) -> Events {
    let index = Index(index);
    let none = Events::default;
    match op {
        Op::Put(op) => store.apply_put(index, op).map_or_else(|_| none(), |applied| applied.events),
        Op::Delete(op) => store.apply_delete_range(index, op).map_or_else(|_| none(), |applied| applied.events),
        Op::Txn(op) => store.apply_txn(index, op).map_or_else(|_| none(), |applied| applied.events),
        Op::Compact(op) => store.apply_compact(index, op).map_or_else(|_| none(), |applied| applied.events),
        Op::Grant(op) => store.apply_lease_grant(index, op).map_or_else(|_| none(), |applied| applied.events),
        Op::Revoke(op) => store.apply_lease_revoke(index, op).map_or_else(|_| none(), |applied| applied.events),
        Op::Checkpoint(op) => store.apply_lease_checkpoint(index, op).map_or_else(|_| none(), |a| a.events),
        Op::Skip => {
            store.skip(index);
            none()
        }
    }
}

/// A client: a stream, how often it reads, and what it saw.
struct Client {
    stream: StreamKey,
    poll_percent: u64,
    budget: usize,
    /// Watches asked for and not answered yet, in order.
    asked: Vec<(WatchCreate, i64)>,
    open: BTreeMap<i64, Recorded>,
    closed: Vec<Recorded>,
    progress_asked: u64,
    progress_seen: u64,
}

#[derive(Default, Debug)]
struct Seen {
    responses: u64,
    events: u64,
    fragments: u64,
    compacted: u64,
    fell_behind: u64,
    progress: u64,
    stream_progress: u64,
    resyncs: u64,
    refused: u64,
    checked: u64,
}

fn wish(rng: &mut Rng, model: &Model) -> WatchCreate {
    let start_revision = match rng.below(10) {
        0..4 => 0,
        4..7 => rng.below(model.revision as u64 + 1) as i64,
        7 => model.compacted,
        8 => model.revision + 1 + rng.below(20) as i64,
        _ => -1,
    };
    WatchCreate {
        key: common::key(rng),
        range_end: common::end(rng),
        start_revision,
        prev_kv: rng.chance(40),
        progress_notify: rng.chance(40),
        fragment: rng.chance(30),
        no_put: rng.chance(10),
        no_delete: rng.chance(10),
        watch_id: if rng.chance(20) { 1 + rng.below(5) as i64 } else { 0 },
    }
}

impl Client {
    fn take(&mut self, responses: Vec<WatchResponse>, seen: &mut Seen) {
        for response in responses {
            seen.responses += 1;
            seen.events += response.events.len() as u64;
            seen.fragments += u64::from(response.fragment);
            if response.created {
                let (wish, created_at) = self.asked.remove(0);
                if let Some(reason) = response.canceled {
                    assert_eq!(response.watch_id, WATCH_ID_NONE, "a refused watch has no number");
                    let refused = [CancelReason::Compacted, CancelReason::EmptyRange, CancelReason::DuplicateId];
                    assert!(refused.contains(&reason));
                    seen.refused += 1;
                } else {
                    let record = Recorded { wish, created_at, responses: Vec::new() };
                    assert!(self.open.insert(response.watch_id, record).is_none(), "numbers are unique");
                }
            } else if response.watch_id == WATCH_ID_NONE {
                assert!(response.is_progress());
                self.progress_seen += 1;
                seen.stream_progress += 1;
                self.open.values_mut().for_each(|record| record.responses.push(response.clone()));
            } else {
                let record = self.open.get_mut(&response.watch_id).expect("events follow the creation");
                seen.progress += u64::from(response.is_progress());
                seen.compacted += u64::from(response.compact_revision != 0);
                let ended = response.canceled.is_some();
                let id = response.watch_id;
                record.responses.push(response);
                if ended {
                    self.closed.extend(self.open.remove(&id));
                }
            }
        }
    }
}

fn run(seed: u64, steps: u64, seen: &mut Seen) {
    let mut rng = Rng::new(seed);
    let disk = Arc::new(MemStore::default());
    let store_limits = StoreLimits { cache_bytes_max: *rng.pick(&[0, 2000, 1 << 20]), sweep_keys_max: 2 };
    let open = || Store::open(Arc::clone(&disk) as Arc<dyn OrderedStore>, TABLES, store_limits).unwrap();
    let mut store = open();
    let limits = WatchLimits {
        queue_bytes_max: *rng.pick(&[200, 1000, 100_000]),
        fragment_bytes: *rng.pick(&[70, 300]),
        stream_watches_max: 100,
        catch_up_revisions: *rng.pick(&[1, 3, 1000]),
    };
    let mut hub = WatcherHub::new(limits);
    let mut model = Model::new();
    let mut history = History::new();
    let mut clients: Vec<Client> = (0..4)
        .map(|_| Client {
            stream: hub.open_stream(),
            poll_percent: *rng.pick(&[3, 30, 100]),
            budget: *rng.pick(&[1, 300, 1 << 20]),
            asked: Vec::new(),
            open: BTreeMap::new(),
            closed: Vec::new(),
            progress_asked: 0,
            progress_seen: 0,
        })
        .collect();
    let mut index = 0;
    for step in 0..steps {
        let op = loop {
            let op = common::op(&mut rng, &model);
            match &op {
                Op::Txn(txn) if check_txn(txn, &RequestLimits::default()).is_err() => {}
                _ => break op,
            }
        };
        index += 1;
        let (_, expected) = model.apply(&op);
        // Sometimes the state comes by snapshot: events go by that the hub never hears of.
        let unheard = rng.chance(3);
        let events = apply(&mut store, index, &op);
        assert_eq!(&*events, &expected[..], "seed {seed} step {step}");
        history.push(&events);
        if unheard {
            while let Some(flush) = store.take_flush() {
                disk.commit(flush.batch).unwrap();
                store.flushed(flush.mark);
            }
            store = open();
            hub.resync(&store);
            seen.resyncs += 1;
        } else {
            hub.notify(&store, &events).unwrap();
        }
        hub.check_invariants();
        if rng.chance(30)
            && let Some(flush) = store.take_flush()
        {
            disk.commit(flush.batch).unwrap();
            store.flushed(flush.mark);
        }
        let at = rng.below(clients.len() as u64) as usize;
        let client = &mut clients[at];
        match rng.below(20) {
            0 => {
                let wish = wish(&mut rng, &model);
                hub.create(client.stream, &store, &wish);
                client.asked.push((wish, store.revision()));
            }
            1 if rng.chance(30) => {
                if let Some(id) = client.open.keys().next().copied() {
                    hub.cancel(client.stream, &store, id);
                }
            }
            2 => {
                hub.request_progress(client.stream);
                client.progress_asked += 1;
            }
            3 if rng.chance(20) => hub.tick_progress(&store),
            _ => {}
        }
        hub.check_invariants();
        seen.fell_behind += hub.watch_counts().1 as u64;
        for client in &mut clients {
            if hub.is_ready(client.stream) && rng.chance(client.poll_percent) {
                let responses = hub.poll(client.stream, &store, client.budget).unwrap();
                client.take(responses, seen);
                hub.check_invariants();
            }
        }
    }
    for client in &mut clients {
        let mut polls = 0;
        while hub.is_ready(client.stream) {
            client.take(hub.poll(client.stream, &store, client.budget).unwrap(), seen);
            polls += 1;
            assert!(polls < 100_000, "seed {seed}: a stream that is never done");
        }
        assert!(client.progress_seen <= client.progress_asked, "seed {seed}: one answer a request at most");
        assert!(client.asked.is_empty(), "seed {seed}: each creation is answered");
        let known = Known { compacted: model.compacted, complete_to: store.revision() };
        for record in client.closed.iter().chain(client.open.values()) {
            seen.checked += 1;
            if let Err(violation) = history.check(record, known) {
                panic!("seed {seed}: {violation}\n{record:#?}");
            }
        }
    }
    let (watches, behind) = hub.watch_counts();
    assert_eq!(behind, 0, "seed {seed}: of {watches} watches");
}

#[test]
fn every_client_sees_the_nine_guarantees_kept() {
    let mut seen = Seen::default();
    for seed in common::seeds(80) {
        run(seed, 400, &mut seen);
    }
    println!("{seen:?}");
    for counter in [
        seen.fragments,
        seen.compacted,
        seen.fell_behind,
        seen.progress,
        seen.stream_progress,
        seen.resyncs,
        seen.refused,
    ] {
        assert!(counter > 0, "a case was never met: {seen:?}");
    }
}
