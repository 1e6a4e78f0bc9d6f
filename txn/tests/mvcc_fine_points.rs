//! etcd's fine points, one test each, named by the behaviour: what partial servers get wrong.
#![cfg(feature = "mvcc")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "test code: a panic is the failure report"
)]

use std::sync::Arc;

use bytes::Bytes;
use triune_storage::{Index, MemStore, OrderedStore, Table};
use triune_txn::mvcc::{
    Applied, ApplyError, CancelReason, CompactError, CompactOp, Compare, CompareOperand, CompareResult, CompareTarget,
    DeleteRangeOp, Event, EventKind, LeaseGrantOp, LeaseRevokeError, LeaseRevokeOp, OpResult, PutError, PutOp,
    PutResult, RangeError, RangeOp, RangeResult, Request, SortOrder, SortTarget, Store, StoreLimits, StreamKey, Tables,
    TxnError, TxnOp, TxnResult, WATCH_ID_NONE, WatchCreate, WatchLimits, WatchResponse, WatcherHub,
};

const TABLES: Tables = Tables { revisions: Table(1), leases: Table(2), mark: Table(3) };

/// A store, a hub and the index of the log.
struct World {
    disk: Arc<MemStore>,
    store: Store,
    hub: WatcherHub,
    index: u64,
}

impl World {
    fn new() -> Self {
        Self::with(WatchLimits::default())
    }

    fn with(limits: WatchLimits) -> Self {
        let disk = Arc::new(MemStore::default());
        let store = open(&disk);
        Self { disk, store, hub: WatcherHub::new(limits), index: 0 }
    }

    fn next(&mut self) -> Index {
        self.index += 1;
        Index(self.index)
    }

    fn told<T>(&mut self, applied: Applied<T>) -> T {
        self.hub.notify(&self.store, &applied.events).unwrap();
        applied.result
    }

    fn put_op(&mut self, op: PutOp) -> Result<PutResult, PutError> {
        let index = self.next();
        match self.store.apply_put(index, &op) {
            Ok(applied) => Ok(self.told(applied)),
            Err(ApplyError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    fn put(&mut self, key: &str, value: &str) -> i64 {
        self.put_op(put(key, value)).unwrap().revision
    }

    fn delete(&mut self, key: &str, end: &str) -> (i64, i64) {
        let index = self.next();
        let applied = self.store.apply_delete_range(index, &delete(key, end)).unwrap();
        let result = self.told(applied);
        (result.revision, result.deleted)
    }

    fn txn(&mut self, op: &TxnOp) -> Result<TxnResult, TxnError> {
        let index = self.next();
        match self.store.apply_txn(index, op) {
            Ok(applied) => Ok(self.told(applied)),
            Err(ApplyError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    fn compact(&mut self, revision: i64) -> Result<i64, CompactError> {
        let index = self.next();
        match self.store.apply_compact(index, &CompactOp { revision, physical: false }) {
            Ok(applied) => Ok(applied.result.revision),
            Err(ApplyError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    fn grant(&mut self, id: i64) {
        let index = self.next();
        self.store.apply_lease_grant(index, &LeaseGrantOp { id, ttl_s: 60 }).unwrap();
    }

    fn revoke(&mut self, id: i64) -> Result<(i64, i64), LeaseRevokeError> {
        let index = self.next();
        match self.store.apply_lease_revoke(index, &LeaseRevokeOp { id }) {
            Ok(applied) => {
                let result = self.told(applied);
                Ok((result.revision, result.deleted))
            }
            Err(ApplyError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    fn flush(&mut self) {
        while let Some(flush) = self.store.take_flush() {
            self.disk.commit(flush.batch).unwrap();
            self.store.flushed(flush.mark);
        }
    }

    fn keys(&self, op: &RangeOp) -> Vec<String> {
        self.store.range(op).unwrap().kvs.iter().map(|kv| text(&kv.key)).collect()
    }

    fn watch(&mut self, wish: &WatchCreate) -> StreamKey {
        let stream = self.hub.open_stream();
        self.hub.create(stream, &self.store, wish);
        stream
    }

    fn poll(&mut self, stream: StreamKey) -> Vec<WatchResponse> {
        let mut all = Vec::new();
        while self.hub.is_ready(stream) {
            all.extend(self.hub.poll(stream, &self.store, 1 << 20).unwrap());
            self.hub.check_invariants();
        }
        all
    }
}

fn open(disk: &Arc<MemStore>) -> Store {
    Store::open(Arc::clone(disk) as Arc<dyn OrderedStore>, TABLES, StoreLimits::default()).unwrap()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn put(key: &str, value: &str) -> PutOp {
    PutOp { key: bytes(key), value: bytes(value), ..PutOp::default() }
}

fn delete(key: &str, end: &str) -> DeleteRangeOp {
    DeleteRangeOp { key: bytes(key), range_end: bytes(end), prev_kv: false }
}

fn range(key: &str, end: &str) -> RangeOp {
    RangeOp { key: bytes(key), range_end: bytes(end), ..RangeOp::default() }
}

fn all() -> RangeOp {
    range("\0", "\0")
}

fn success(steps: Vec<Request>) -> TxnOp {
    TxnOp { success: steps.into_iter().map(Into::into).collect(), ..TxnOp::default() }
}

fn compare(target: CompareTarget, result: CompareResult, key: &str, operand: CompareOperand) -> Compare {
    Compare {
        target: target as i32,
        result: result as i32,
        key: bytes(key),
        operand: Some(operand),
        range_end: Bytes::new(),
    }
}

fn wish(key: &str, end: &str, start_revision: i64) -> WatchCreate {
    WatchCreate { key: bytes(key), range_end: bytes(end), start_revision, ..WatchCreate::default() }
}

/// The events in some responses, as `+key@revision` and `-key@revision`.
fn events(responses: &[WatchResponse]) -> Vec<String> {
    let show = |event: &Event| {
        let sign = if event.kind == EventKind::Put { '+' } else { '-' };
        format!("{sign}{}@{}", text(&event.kv.key), event.kv.mod_revision)
    };
    responses.iter().flat_map(|response| response.events.iter().map(show)).collect()
}

// Revisions.

#[test]
fn the_empty_store_stands_at_revision_one() {
    let world = World::new();
    assert_eq!((world.store.revision(), world.store.compacted()), (1, -1));
    let empty = RangeResult { revision: 1, kvs: Vec::new(), count: 0, more: false };
    assert_eq!(world.store.range(&all()).unwrap(), empty);
}

#[test]
fn a_transaction_takes_one_revision_however_many_keys() {
    let mut world = World::new();
    let puts = ["c", "a", "b"].map(|key| Request::Put(put(key, "v"))).to_vec();
    assert_eq!(world.txn(&success(puts)).unwrap().revision, 2);
    let result = world.store.range(&all()).unwrap();
    assert!(result.kvs.iter().all(|kv| kv.mod_revision == 2 && kv.create_revision == 2 && kv.version == 1));
    assert_eq!(world.delete("a", "c"), (3, 2));
    assert_eq!(world.store.revision(), 3);
}

#[test]
fn events_of_a_transaction_come_in_the_order_of_its_steps() {
    let mut world = World::new();
    let stream = world.watch(&wish("\0", "\0", 0));
    let puts = ["c", "a", "b"].map(|key| Request::Put(put(key, "v"))).to_vec();
    world.txn(&success(puts)).unwrap();
    assert_eq!(events(&world.poll(stream)), ["+c@2", "+a@2", "+b@2"]);
}

#[test]
fn what_changes_nothing_leaves_the_revision() {
    let mut world = World::new();
    world.put("a", "1");
    assert_eq!(world.delete("x", "z"), (2, 0));
    assert_eq!(world.delete("b", "a"), (2, 0));
    assert_eq!(world.txn(&TxnOp::default()).unwrap().revision, 2);
    assert_eq!(world.txn(&success(vec![Request::Range(all())])).unwrap().revision, 2);
    assert_eq!(world.txn(&success(vec![Request::DeleteRange(delete("x", ""))])).unwrap().revision, 2);
    world.grant(1);
    assert_eq!(world.revoke(1), Ok((2, 0)));
    assert_eq!(world.store.revision(), 2);
}

#[test]
fn an_old_read_answers_with_the_current_revision() {
    let mut world = World::new();
    world.put("a", "1");
    world.put("a", "2");
    let result = world.store.range(&RangeOp { revision: 2, ..range("a", "") }).unwrap();
    assert_eq!((result.revision, text(&result.kvs[0].value)), (3, "1".to_owned()));
}

// Puts.

#[test]
fn a_key_counts_its_versions_anew_after_a_deletion() {
    let mut world = World::new();
    let pair = |world: &World| {
        let kv = world.store.range(&range("a", "")).unwrap().kvs.remove(0);
        (kv.create_revision, kv.mod_revision, kv.version)
    };
    world.put("a", "1");
    world.put("a", "2");
    assert_eq!(pair(&world), (2, 3, 2));
    world.delete("a", "");
    world.put("a", "3");
    assert_eq!(pair(&world), (5, 5, 1));
}

#[test]
fn ignore_flags_keep_what_is_there_and_need_it() {
    let mut world = World::new();
    world.grant(7);
    let keep_value = PutOp { ignore_value: true, lease: 7, ..put("a", "") };
    let keep_lease = PutOp { ignore_lease: true, prev_kv: true, ..put("a", "2") };
    assert_eq!(world.put_op(keep_value.clone()), Err(PutError::KeyNotFound));
    assert_eq!(world.put_op(keep_lease.clone()), Err(PutError::KeyNotFound));
    world.put("a", "1");
    world.put_op(keep_value).unwrap();
    let prev = world.put_op(keep_lease).unwrap().prev_kv.unwrap();
    assert_eq!((text(&prev.value), prev.lease, prev.version), ("1".to_owned(), 7, 2));
    let kv = world.store.range(&range("a", "")).unwrap().kvs.remove(0);
    assert_eq!((text(&kv.value), kv.lease), ("2".to_owned(), 7));
}

#[test]
fn an_unknown_lease_is_told_before_a_missing_key_but_not_in_a_transaction() {
    let mut world = World::new();
    let op = PutOp { lease: 9, ignore_value: true, ..put("a", "") };
    assert_eq!(world.put_op(op.clone()), Err(PutError::LeaseNotFound));
    assert_eq!(world.txn(&success(vec![Request::Put(op)])), Err(TxnError::KeyNotFound));
}

/// etcd 3.4.23 lets this pass its checks and then panics on every member.
#[test]
fn a_put_that_keeps_what_its_own_transaction_deleted_keeps_it() {
    let mut world = World::new();
    world.put("a", "1");
    let keep = PutOp { ignore_value: true, prev_kv: true, ..put("a", "") };
    let op = success(vec![Request::DeleteRange(delete("a", "\0")), Request::Put(keep)]);
    let result = world.txn(&op).unwrap();
    let OpResult::Put(put) = &result.responses[1] else { panic!("{result:?}") };
    assert_eq!(put.prev_kv, None);
    let kv = world.store.range(&range("a", "")).unwrap().kvs.remove(0);
    assert_eq!((text(&kv.value), kv.create_revision, kv.version), ("1".to_owned(), 3, 1));
}

// Ranges.

#[test]
fn range_ends_are_read_as_etcd_reads_them() {
    let mut world = World::new();
    for key in ["a", "a\0", "ab", "b", "\u{7f}"] {
        world.put(key, "v");
    }
    assert_eq!(world.keys(&range("a", "")), ["a"]);
    assert_eq!(world.keys(&range("a", "b")), ["a", "a\0", "ab"]);
    assert_eq!(world.keys(&range("ab", "\0")), ["ab", "b", "\u{7f}"]);
    assert_eq!(world.keys(&range("\0", "\0")).len(), 5);
    assert_eq!(world.keys(&range("b", "a")), Vec::<String>::new());
    assert_eq!(world.keys(&range("b", "b")), Vec::<String>::new());
}

#[test]
fn the_count_ignores_limit_and_revision_filters() {
    let mut world = World::new();
    for key in ["a", "b", "c", "d"] {
        world.put(key, "v");
    }
    let limited = world.store.range(&RangeOp { limit: 2, ..all() }).unwrap();
    assert_eq!((limited.kvs.len(), limited.count, limited.more), (2, 4, true));
    let exact = world.store.range(&RangeOp { limit: 4, ..all() }).unwrap();
    assert_eq!((exact.kvs.len(), exact.count, exact.more), (4, 4, false));
    let filtered = world.store.range(&RangeOp { min_mod_revision: 4, limit: 1, ..all() }).unwrap();
    assert_eq!((filtered.kvs.len(), filtered.count, filtered.more), (1, 4, true));
    let counted = world.store.range(&RangeOp { count_only: true, limit: 1, ..all() }).unwrap();
    assert_eq!((counted.kvs.len(), counted.count, counted.more), (0, 4, false));
}

#[test]
fn filters_and_orders_look_past_the_limit() {
    let mut world = World::new();
    for key in ["a", "b", "c", "d"] {
        world.put(key, "v");
    }
    assert_eq!(world.keys(&RangeOp { limit: 1, min_create_revision: 4, ..all() }), ["c"]);
    let descend = SortOrder::Descend as i32;
    assert_eq!(world.keys(&RangeOp { limit: 2, sort_order: descend, ..all() }), ["d", "c"]);
    let by_mod = RangeOp { sort_target: SortTarget::Mod as i32, ..all() };
    assert_eq!(world.keys(&RangeOp { limit: 1, sort_order: descend, ..by_mod }), ["d"]);
}

#[test]
fn another_target_without_an_order_sorts_upwards() {
    let mut world = World::new();
    world.put("a", "3");
    world.put("b", "1");
    world.put("c", "2");
    let by_value = RangeOp { sort_target: SortTarget::Value as i32, ..all() };
    assert_eq!(world.keys(&by_value), ["b", "c", "a"]);
    // The limit is not lifted for it: the order is made of what was fetched, one more than asked.
    assert_eq!(world.keys(&RangeOp { limit: 1, ..by_value.clone() }), ["b"]);
    let without_values = RangeOp { keys_only: true, ..by_value };
    assert_eq!(world.keys(&without_values), ["b", "c", "a"]);
    assert!(world.store.range(&without_values).unwrap().kvs.iter().all(|kv| kv.value.is_empty()));
}

// Transactions.

#[test]
fn a_missing_key_compares_as_zero_but_never_by_value() {
    let check = |target, result, operand, expected: bool| {
        let op = TxnOp { compares: vec![compare(target, result, "none", operand)], ..TxnOp::default() };
        assert_eq!(World::new().txn(&op).unwrap().succeeded, expected, "{op:?}");
    };
    use CompareResult::{Equal, Greater, Less, NotEqual};
    check(CompareTarget::Version, Equal, CompareOperand::Version(0), true);
    check(CompareTarget::Create, Equal, CompareOperand::CreateRevision(0), true);
    check(CompareTarget::Mod, Less, CompareOperand::ModRevision(1), true);
    check(CompareTarget::Lease, Equal, CompareOperand::Lease(0), true);
    check(CompareTarget::Mod, Greater, CompareOperand::ModRevision(0), false);
    for result in [Equal, NotEqual, Greater, Less] {
        check(CompareTarget::Value, result, CompareOperand::Value(Bytes::new()), false);
    }
}

#[test]
fn a_ranged_compare_holds_for_every_key() {
    let mut world = World::new();
    world.put("a", "x");
    world.put("b", "x");
    let mut every = compare(CompareTarget::Value, CompareResult::Equal, "a", CompareOperand::Value(bytes("x")));
    every.range_end = bytes("c");
    let op = TxnOp { compares: vec![every], ..TxnOp::default() };
    assert!(world.txn(&op).unwrap().succeeded);
    world.put("b", "y");
    assert!(!world.txn(&op).unwrap().succeeded);
}

#[test]
fn nested_compares_see_the_state_before_and_ranges_the_steps_before() {
    let mut world = World::new();
    let absent = compare(CompareTarget::Version, CompareResult::Equal, "a", CompareOperand::Version(0));
    let nested = TxnOp { compares: vec![absent], ..success(vec![Request::Put(put("b", "2"))]) };
    let op = success(vec![Request::Put(put("a", "1")), Request::Txn(nested), Request::Range(all())]);
    let result = world.txn(&op).unwrap();
    let [OpResult::Put(_), OpResult::Txn(inner), OpResult::Range(seen)] = &result.responses[..] else {
        panic!("{result:?}")
    };
    assert!(inner.succeeded);
    assert_eq!((seen.count, seen.revision, inner.revision), (2, 2, 0));
}

#[test]
fn a_refused_transaction_has_done_nothing() {
    let mut world = World::new();
    for _ in 0..3 {
        world.put("a", "1");
    }
    world.compact(3).unwrap();
    let old = RangeOp { revision: 2, ..range("a", "") };
    let refused = success(vec![Request::Put(put("b", "1")), Request::Range(old)]);
    assert_eq!(world.txn(&refused), Err(TxnError::Compacted { compacted: 3 }));
    let future = RangeOp { revision: 9, ..range("a", "") };
    let refused = success(vec![Request::Put(put("b", "1")), Request::Range(future)]);
    assert_eq!(world.txn(&refused), Err(TxnError::FutureRev { current: 4 }));
    let leased = PutOp { lease: 5, ..put("c", "1") };
    let refused = success(vec![Request::Put(put("b", "1")), Request::Put(leased)]);
    assert_eq!(world.txn(&refused), Err(TxnError::LeaseNotFound));
    assert_eq!((world.store.revision(), world.keys(&all())), (4, vec!["a".to_owned()]));
}

#[test]
fn members_refuse_alike_whether_swept_or_not() {
    let (mut swept, mut lazy) = (World::new(), World::new());
    for world in [&mut swept, &mut lazy] {
        for value in ["1", "2", "3"] {
            world.put("a", value);
        }
        world.compact(3).unwrap();
    }
    swept.flush();
    let old = RangeOp { revision: 2, ..range("a", "") };
    let op = success(vec![Request::Put(put("b", "1")), Request::Range(old)]);
    assert_eq!(swept.txn(&op), lazy.txn(&op));
    assert_eq!(swept.store.digest(), lazy.store.digest());
    assert_eq!(swept.store.approx_bytes(), lazy.store.approx_bytes());
    assert_eq!(swept.store.hash_kv(0), lazy.store.hash_kv(0));
}

// Compaction.

#[test]
fn a_compaction_moves_forward_within_history() {
    let mut world = World::new();
    for _ in 0..4 {
        world.put("a", "1");
    }
    assert_eq!(world.compact(6), Err(CompactError::FutureRev { current: 5 }));
    assert_eq!(world.compact(3), Ok(5));
    assert_eq!(world.compact(3), Err(CompactError::Compacted { compacted: 3 }));
    assert_eq!(world.compact(2), Err(CompactError::Compacted { compacted: 3 }));
    assert_eq!(world.compact(5), Ok(5));
}

#[test]
fn the_compacted_revision_itself_can_be_read_and_watched() {
    let mut world = World::new();
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    world.compact(3).unwrap();
    for sweep in [false, true] {
        if sweep {
            world.flush();
            assert!(world.store.compaction_done());
        }
        let at = |revision| RangeOp { revision, ..range("a", "") };
        assert_eq!(text(&world.store.range(&at(3)).unwrap().kvs[0].value), "2");
        assert_eq!(world.store.range(&at(2)), Err(RangeError::Compacted { compacted: 3 }));
        let stream = world.watch(&wish("a", "", 3));
        assert_eq!(events(&world.poll(stream)), ["+a@3", "+a@4"]);
    }
}

#[test]
fn a_deletion_at_the_compacted_revision_is_still_watched() {
    let mut world = World::new();
    world.put("a", "1");
    world.delete("a", "");
    world.put("b", "1");
    world.compact(3).unwrap();
    world.flush();
    for span in ["", "\0"] {
        let stream = world.watch(&wish("a", span, 3));
        assert_eq!(events(&world.poll(stream))[0], "-a@3");
    }
    world.compact(4).unwrap();
    world.flush();
    assert_eq!(world.store.keys_len(), 1);
}

#[test]
fn a_watch_below_the_compaction_is_created_then_cancelled() {
    let mut world = World::new();
    for _ in 0..4 {
        world.put("a", "1");
    }
    world.compact(4).unwrap();
    let stream = world.watch(&wish("a", "", 2));
    let told = world.poll(stream);
    assert_eq!(told.len(), 2);
    assert!(told[0].created && told[0].canceled.is_none());
    assert_eq!((told[1].canceled, told[1].compact_revision), (Some(CancelReason::Compacted), 4));
    assert_eq!(told[0].watch_id, told[1].watch_id);
}

#[test]
fn a_watch_that_fell_behind_is_cancelled_by_a_later_compaction() {
    let mut world = World::with(WatchLimits { queue_bytes_max: 300, ..WatchLimits::default() });
    let stream = world.watch(&wish("a", "", 0));
    assert!(world.poll(stream)[0].created);
    for _ in 0..20 {
        world.put("a", "a longer value than most");
    }
    assert_eq!(world.hub.watch_counts(), (1, 1));
    world.compact(15).unwrap();
    let told = world.poll(stream);
    assert_eq!((told[0].canceled, told[0].compact_revision), (Some(CancelReason::Compacted), 15));
    assert_eq!(world.hub.watch_counts(), (0, 0));
}

#[test]
fn bytes_for_the_quota_fall_at_the_compaction_not_at_the_sweep() {
    let mut world = World::new();
    for _ in 0..100 {
        world.put("a", "some value");
    }
    let before = world.store.approx_bytes();
    world.compact(101).unwrap();
    let after = world.store.approx_bytes();
    assert!(after * 50 < before, "{before} to {after}");
    world.flush();
    assert_eq!(world.store.approx_bytes(), after);
    assert_eq!(open(&world.disk).approx_bytes(), after);
}

/// Taken from etcd 3.4.23: `etcdctl endpoint hashkv` after each of these steps.
#[test]
fn the_hash_is_etcds() {
    let mut world = World::new();
    let mut hashes = Vec::new();
    let mut note = |world: &World| hashes.push(world.store.hash_kv(0).unwrap().hash);
    note(&world);
    world.put("a", "1");
    note(&world);
    world.put("b", "22");
    world.put("a", "333");
    world.delete("b", "");
    note(&world);
    world.put("c", "x");
    let steps =
        vec![Request::Put(put("t1", "v1")), Request::Put(put("t2", "v2")), Request::DeleteRange(delete("c", ""))];
    world.txn(&success(steps)).unwrap();
    note(&world);
    for revision in [4, 5, 6] {
        world.compact(revision).unwrap();
        note(&world);
        world.flush();
    }
    world.put("b", "again");
    note(&world);
    let seen = [
        1_084_519_789,
        2_587_454_935,
        2_763_738_174,
        2_028_412_777,
        583_700_859,
        1_017_225_329,
        3_674_001_532,
        2_219_419_482,
    ];
    assert_eq!(hashes, seen);
    assert_eq!(world.store.hash_kv(7).unwrap().hash, 3_674_001_532);
    assert_eq!(world.store.hash_kv(5), Err(RangeError::Compacted { compacted: 6 }));
    assert_eq!(world.store.hash_kv(9), Err(RangeError::FutureRev { current: 8 }));
}

// Leases.

#[test]
fn a_put_needs_its_lease_and_leaves_the_one_before() {
    let mut world = World::new();
    assert_eq!(world.put_op(PutOp { lease: 1, ..put("a", "") }), Err(PutError::LeaseNotFound));
    world.grant(1);
    world.grant(2);
    world.put_op(PutOp { lease: 1, ..put("a", "") }).unwrap();
    world.put_op(PutOp { lease: 2, ..put("a", "") }).unwrap();
    assert_eq!(world.revoke(1), Ok((3, 0)));
    world.put("a", "");
    assert_eq!(world.revoke(2), Ok((4, 0)));
    assert_eq!(world.keys(&all()), ["a"]);
    assert_eq!(world.revoke(2), Err(LeaseRevokeError::LeaseNotFound));
}

#[test]
fn a_revoke_deletes_its_keys_in_one_revision_by_key() {
    let mut world = World::new();
    world.grant(1);
    for key in ["c", "a", "b"] {
        world.put_op(PutOp { lease: 1, ..put(key, "") }).unwrap();
    }
    world.delete("b", "");
    world.flush();
    world.store = open(&world.disk);
    let stream = world.watch(&wish("\0", "\0", 0));
    assert_eq!(world.revoke(1), Ok((6, 2)));
    assert_eq!(events(&world.poll(stream)), ["-a@6", "-c@6"]);
}

// Watches.

#[test]
fn an_empty_key_is_the_least_one_and_a_zero_end_is_no_end() {
    let mut world = World::new();
    let (least, endless, prefix) =
        (world.watch(&wish("", "", 0)), world.watch(&wish("", "\0", 0)), world.watch(&wish("b", "c", 0)));
    world.put("\0", "1");
    world.put("b1", "2");
    world.put("c", "2");
    assert_eq!(events(&world.poll(least)), ["+\0@2"]);
    assert_eq!(events(&world.poll(endless)), ["+\0@2", "+b1@3", "+c@4"]);
    assert_eq!(events(&world.poll(prefix)), ["+b1@3"]);
}

#[test]
fn refused_watches_are_created_and_cancelled_at_once_without_a_number() {
    let mut world = World::new();
    let stream = world.watch(&WatchCreate { watch_id: 5, ..wish("a", "", 0) });
    world.hub.create(stream, &world.store, &WatchCreate { watch_id: 5, ..wish("b", "", 0) });
    world.hub.create(stream, &world.store, &wish("b", "a", 0));
    world.hub.create(stream, &world.store, &wish("b", "b", 0));
    world.hub.create(stream, &world.store, &wish("a", "", -1));
    let told = world.poll(stream);
    assert!(told.iter().all(|response| response.created));
    assert_eq!(told.iter().map(|response| response.watch_id).collect::<Vec<_>>(), [5, -1, -1, -1, -1]);
    let reasons: Vec<_> = told.iter().map(|response| response.canceled).collect();
    let empty = Some(CancelReason::EmptyRange);
    assert_eq!(reasons, [None, Some(CancelReason::DuplicateId), empty, empty, Some(CancelReason::Compacted)]);
}

#[test]
fn numbers_left_to_the_stream_pass_over_taken_ones() {
    let mut world = World::new();
    let stream = world.watch(&WatchCreate { watch_id: 1, ..wish("a", "", 0) });
    for _ in 0..3 {
        world.hub.create(stream, &world.store, &wish("a", "", 0));
    }
    let ids: Vec<_> = world.poll(stream).iter().map(|response| response.watch_id).collect();
    assert_eq!(ids, [1, 0, 2, 3]);
}

#[test]
fn a_watch_of_the_future_waits_and_says_nothing_before() {
    let mut world = World::new();
    world.put("a", "1");
    let stream = world.watch(&WatchCreate { progress_notify: true, ..wish("a", "", 5) });
    assert!(world.poll(stream)[0].created);
    world.hub.request_progress(stream);
    world.hub.tick_progress(&world.store);
    world.put("a", "2");
    world.put("a", "3");
    assert_eq!(world.poll(stream), []);
    world.put("a", "4");
    let told = world.poll(stream);
    assert_eq!(events(&told), ["+a@5"]);
    assert!(told.last().unwrap().is_progress(), "the request is answered once the start is reached");
}

#[test]
fn a_future_watch_stays_in_the_future_over_a_snapshot() {
    let mut world = World::new();
    world.put("a", "1");
    let stream = world.watch(&wish("a", "", 5));
    world.poll(stream);
    let mut later = World::new();
    for value in ["1", "2", "3"] {
        later.put("a", value);
    }
    (world.store, world.index) = (later.store, later.index);
    world.hub.resync(&world.store);
    assert_eq!(world.poll(stream), []);
    world.put("a", "4");
    assert_eq!(events(&world.poll(stream)), ["+a@5"]);
}

#[test]
fn a_quiet_watch_is_not_cancelled_by_a_compaction_that_came_with_a_snapshot() {
    let mut world = World::new();
    let stream = world.watch(&wish("a", "", 0));
    world.poll(stream);
    for _ in 0..5 {
        world.put("b", "1");
    }
    world.compact(5).unwrap();
    world.flush();
    world.store = open(&world.disk);
    world.hub.resync(&world.store);
    world.put("a", "1");
    assert_eq!(events(&world.poll(stream)), ["+a@7"]);
}

#[test]
fn filters_leave_out_a_kind() {
    let mut world = World::new();
    let no_put = world.watch(&WatchCreate { no_put: true, ..wish("a", "", 0) });
    let no_delete = world.watch(&WatchCreate { no_delete: true, ..wish("a", "", 0) });
    world.put("a", "1");
    world.delete("a", "");
    assert_eq!(events(&world.poll(no_put)), ["-a@3"]);
    assert_eq!(events(&world.poll(no_delete)), ["+a@2"]);
}

#[test]
fn the_pair_as_it_was_comes_to_who_asked() {
    let mut world = World::new();
    let (with, without) =
        (world.watch(&WatchCreate { prev_kv: true, ..wish("a", "", 0) }), world.watch(&wish("a", "", 0)));
    world.put("a", "1");
    world.put("a", "2");
    world.delete("a", "");
    let prev = |responses: Vec<WatchResponse>| -> Vec<Option<String>> {
        let events = responses.iter().flat_map(|response| response.events.iter());
        events.map(|event| event.prev_kv.as_ref().map(|kv| text(&kv.value))).collect()
    };
    assert_eq!(prev(world.poll(with)), [None, Some("1".to_owned()), Some("2".to_owned())]);
    assert_eq!(prev(world.poll(without)), [None, None, None]);
}

#[test]
fn a_revision_is_split_only_for_who_allowed_it() {
    let mut world = World::with(WatchLimits { fragment_bytes: 300, ..WatchLimits::default() });
    let (whole, split) =
        (world.watch(&wish("\0", "\0", 0)), world.watch(&WatchCreate { fragment: true, ..wish("\0", "\0", 0) }));
    let puts = (0..10).map(|n| Request::Put(put(&format!("k{n}"), "value"))).collect();
    world.txn(&success(puts)).unwrap();
    let parts = |responses: &[WatchResponse]| -> Vec<(usize, bool)> {
        responses[1..].iter().map(|response| (response.events.len(), response.fragment)).collect()
    };
    assert_eq!(parts(&world.poll(whole)), [(10, false)]);
    assert_eq!(parts(&world.poll(split)), [(4, true), (4, true), (2, false)]);
}

#[test]
fn progress_is_told_once_and_only_when_all_watches_are_level() {
    let mut world = World::with(WatchLimits { catch_up_revisions: 2, ..WatchLimits::default() });
    for _ in 0..10 {
        world.put("a", "1");
    }
    let stream = world.watch(&wish("b", "", 0));
    world.hub.create(stream, &world.store, &wish("a", "", 2));
    world.hub.request_progress(stream);
    world.hub.request_progress(stream);
    let told = world.poll(stream);
    let progress: Vec<_> = told.iter().enumerate().filter(|(_, response)| response.is_progress()).collect();
    assert_eq!(progress.len(), 1);
    let (place, progress) = progress[0];
    assert_eq!((progress.watch_id, progress.revision, place), (WATCH_ID_NONE, 11, told.len() - 1));
    let idle = world.hub.open_stream();
    world.hub.request_progress(idle);
    assert_eq!(world.poll(idle), [], "nothing to be level with");
}

#[test]
fn periodic_progress_goes_to_the_quiet_watches_that_asked() {
    let mut world = World::new();
    let (asked, silent) =
        (world.watch(&WatchCreate { progress_notify: true, ..wish("a", "", 0) }), world.watch(&wish("a", "", 0)));
    world.put("a", "1");
    world.poll(asked);
    world.poll(silent);
    world.hub.tick_progress(&world.store);
    assert_eq!(world.poll(asked), [], "an event came since the last tick");
    world.hub.tick_progress(&world.store);
    let told = world.poll(asked);
    assert_eq!((told.len(), told[0].is_progress(), told[0].revision, told[0].watch_id), (1, true, 2, 0));
    assert_eq!(world.poll(silent), []);
}

#[test]
fn a_cancelled_watch_is_told_so_and_an_unknown_one_is_passed_over() {
    let mut world = World::new();
    let stream = world.watch(&wish("a", "", 0));
    world.put("a", "1");
    world.hub.cancel(stream, &world.store, 0);
    world.hub.cancel(stream, &world.store, 0);
    world.put("a", "2");
    let told = world.poll(stream);
    assert_eq!(told.len(), 2);
    assert_eq!(told[1].canceled, Some(CancelReason::Requested));
    let stream = world.watch(&wish("a", "", 0));
    world.hub.cancel_all(stream, &world.store, CancelReason::NoLeader);
    assert_eq!(world.poll(stream)[1].canceled, Some(CancelReason::NoLeader));
    world.hub.close_stream(stream);
    world.put("a", "3");
    assert_eq!(world.hub.watch_counts(), (0, 0));
}

#[test]
fn a_slow_watch_holds_little_and_loses_nothing() {
    let limits = WatchLimits { queue_bytes_max: 10_000, ..WatchLimits::default() };
    let mut world = World::with(limits);
    let stream = world.watch(&wish("k", "l", 0));
    let mut expected = Vec::new();
    for n in 0..2000 {
        let key = format!("k{}", n % 7);
        expected.push(format!("+{key}@{}", n + 2));
        world.put(&key, &"x".repeat(100));
        world.hub.check_invariants();
        if n % 50 == 0 {
            world.flush();
        }
    }
    assert_eq!(world.hub.watch_counts(), (1, 1), "it reads from the store now");
    assert_eq!(events(&world.poll(stream)), expected);
    assert_eq!(world.hub.watch_counts(), (1, 0), "and is live again");
}

#[test]
fn a_hundred_watches_of_a_key_share_its_events() {
    let mut world = World::new();
    let streams: Vec<_> = (0..100).map(|_| world.watch(&wish("a", "", 0))).collect();
    world.put("a", "1");
    let told: Vec<_> = streams.iter().map(|stream| world.poll(*stream).pop().unwrap().events).collect();
    assert!(told.iter().all(|events| Arc::ptr_eq(events, &told[0])));
}
