//! What operations answer, and the events they leave for watchers.

use std::sync::Arc;

use super::op::{KeyValue, LeaseId, Revision};

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted; the pair holds the key and the revision alone.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The pair as it is now.
    pub kv: KeyValue,
    /// The pair as it was, for watchers that asked for it; `None` if there was none.
    pub prev_kv: Option<KeyValue>,
}

impl Event {
    /// Whether this change created its key.
    #[must_use]
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }

    /// Bytes of keys and values, the measure of queues and budgets.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let prev = self.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
        self.kv.key.len() + self.kv.value.len() + prev
    }
}

/// The events of one revision, in the order they were made; shared by all watchers.
pub type Events = Arc<[Event]>;

/// The outcome of an operation of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied<T> {
    /// The answer for the client.
    pub result: T,
    /// For the watcher hub, at once and always; empty if nothing changed.
    pub events: Events,
}

/// Answer to a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutResult {
    /// The revision of the put.
    pub revision: Revision,
    /// The pair as it was, if asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// Answer to a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    /// The CURRENT revision, also for a read at an old one.
    pub revision: Revision,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, whatever limit and revision filters say.
    pub count: i64,
    /// Whether the limit cut the pairs.
    pub more: bool,
}

/// Answer to a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRangeResult {
    /// The revision of the deletion, or the current one if nothing was deleted.
    pub revision: Revision,
    /// How many keys.
    pub deleted: i64,
    /// The pairs as they were, if asked for, by key.
    pub prev_kvs: Vec<KeyValue>,
}

/// Answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResult {
    /// The store's revision after it. 0 in a nested answer, as etcd leaves it.
    pub revision: Revision,
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer per step of the branch taken.
    pub responses: Vec<OpResult>,
}

/// Answer to a step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// To a range.
    Range(RangeResult),
    /// To a put.
    Put(PutResult),
    /// To a deletion.
    DeleteRange(DeleteRangeResult),
    /// To a nested transaction.
    Txn(TxnResult),
}

/// Answer to a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactResult {
    /// The current revision.
    pub revision: Revision,
}

/// Answer to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrantResult {
    /// The current revision.
    pub revision: Revision,
    /// The lease.
    pub id: LeaseId,
    /// Seconds granted.
    pub ttl_s: i64,
}

/// Answer to a revoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRevokeResult {
    /// The store's revision after it.
    pub revision: Revision,
    /// How many keys went with it.
    pub deleted: i64,
}

/// Answer to a lease checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseCheckpointResult {
    /// The current revision.
    pub revision: Revision,
}

/// The hash of all revisions above the compaction, up to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C over the rows, the bytes and order etcd hashes.
    pub hash: u32,
    /// The compaction in force; -1 if there never was one.
    pub compact_revision: Revision,
    /// Up to where was hashed.
    pub hash_revision: Revision,
    /// The current revision.
    pub revision: Revision,
}
