//! A multi-version key-value store with etcd's semantics, as a pure state machine.
//!
//! One thread owns a `Store` and its `WatcherHub`. The calls, in the order an embedder meets them:
//!
//! ```text
//! open      Store::open(Arc<dyn OrderedStore>, Tables, Limits) -> Result<Store, OpenError>
//!           store.applied() -> Index           replay the log from the entry after it
//!           store.tables() -> [Table; 3]       the rows of a snapshot; install = import them, open again, hub.resync
//! propose   check_put | check_range | check_delete_range | check_txn(&op, &limits) -> Result<(), RequestError>
//!           floor_ttl(&mut LeaseGrantOp, &limits)
//! apply     store.apply_put(Index, &PutOp)                       -> Result<Applied<PutResult>, ApplyError<PutError>>
//!           store.apply_delete_range(Index, &DeleteRangeOp)      -> … DeleteRangeResult, NoRefusal
//!           store.apply_txn(Index, &TxnOp)                       -> … TxnResult, TxnError
//!           store.apply_compact(Index, &CompactOp)               -> … CompactResult, CompactError
//!           store.apply_lease_grant | _revoke | _checkpoint      -> … Lease…Result, Lease…Error
//!           store.skip(Index)                                    an entry that is not for this store
//!           hub.notify(&store, &applied.events)                  after each apply
//! read      store.range(&RangeOp) -> Result<RangeResult, RangeError>; store.txn_read(&TxnOp); store.hash_kv(revision)
//!           store.revision(), compacted(), digest(), approx_bytes(), leases()
//! flush     store.wants_flush(); store.take_flush() -> Option<FlushBatch{batch: StoreBatch, mark: FlushMark}>; commit; store.flushed(mark)
//! watch     hub.open_stream() -> StreamKey; hub.create(stream, &store, &WatchCreate); hub.cancel(stream, &store, id);
//!           hub.request_progress(stream); hub.tick_progress(&store); hub.ready() -> streams with something to send;
//!           hub.poll(stream, &store, budget_bytes) -> Result<Vec<WatchResponse>, StoreError>; hub.close_stream(stream)
//! lease     clock.promote(now, store.leases(), extend); demote(); granted(now, &lease); revoked(id);
//!           renew(now, id) -> Renewal; remaining(now, id); expired(now, max) -> ids to revoke; next_deadline()
//! ```

mod apply;
#[cfg(feature = "check")]
pub mod check;
mod check_request;
mod digest;
mod error;
mod hash;
mod index;
mod lease;
mod op;
mod outcome;
mod range;
mod revision;
mod store;
mod tail;
mod txn;
mod watch;

pub use apply::ApplyResult;
pub use check_request::{RequestLimits, check_delete_range, check_put, check_range, check_txn, floor_ttl};

pub use error::{
    ApplyError, CompactError, LeaseGrantError, LeaseRevokeError, NoRefusal, OpenError, PutError, RangeError,
    RequestError, TxnError,
};
pub use lease::{
    CHECKPOINT_INTERVAL, LEASE_EXPIRIES_PER_S_MAX, LEASE_TTL_MAX_S, Lease, LeaseClock, LeaseTable, REVOKE_RETRY,
    Renewal,
};
pub use op::{
    CompactOp, Compare, CompareOperand, CompareResult, CompareTarget, DeleteRangeOp, KeyValue, LeaseCheckpoint,
    LeaseCheckpointOp, LeaseGrantOp, LeaseId, LeaseRevokeOp, PutOp, RangeOp, Request, RequestOp, Revision, SortOrder,
    SortTarget, TxnOp,
};
pub use outcome::{
    Applied, CompactResult, DeleteRangeResult, Event, EventKind, Events, HashKv, LeaseCheckpointResult,
    LeaseGrantResult, LeaseRevokeResult, OpResult, PutResult, RangeResult, TxnResult,
};
pub use store::{FlushBatch, FlushMark, Store, StoreLimits, Tables};
pub use watch::{CancelReason, StreamKey, WATCH_ID_NONE, WatchCreate, WatchId, WatchLimits, WatchResponse, WatcherHub};
