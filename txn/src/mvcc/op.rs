//! The operations that travel in the replicated log, and the key-value pair they leave behind.
//!
//! Field numbers are etcd's own, so that what is stored and hashed here has the bytes etcd stores and hashes. A field
//! added later gets a number above 1000; a number is never reused.

use bytes::Bytes;

/// A point in the history of the store. One per transaction that changed something; the empty store stands at 1.
pub type Revision = i64;

/// A lease's number, chosen by the door. 0 is "no lease".
pub type LeaseId = i64;

/// A key with its value, as it stood at `mod_revision`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct KeyValue {
    /// The key; never empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The revision that created the key; 0 in a deletion.
    #[prost(int64, tag = "2")]
    pub create_revision: Revision,
    /// The revision of this change.
    #[prost(int64, tag = "3")]
    pub mod_revision: Revision,
    /// Changes since the key was created, from 1; 0 in a deletion.
    #[prost(int64, tag = "4")]
    pub version: i64,
    /// The value.
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
    /// The lease the key is attached to; 0 for none.
    #[prost(int64, tag = "6")]
    pub lease: LeaseId,
}

/// Writes one key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PutOp {
    /// The key; not empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// The lease to attach; 0 detaches.
    #[prost(int64, tag = "3")]
    pub lease: LeaseId,
    /// Whether the answer carries the pair as it was.
    #[prost(bool, tag = "4")]
    pub prev_kv: bool,
    /// Keep the value; the key must exist.
    #[prost(bool, tag = "5")]
    pub ignore_value: bool,
    /// Keep the lease; the key must exist.
    #[prost(bool, tag = "6")]
    pub ignore_lease: bool,
}

/// How a range is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SortOrder {
    /// By key; ascending where the target is not the key.
    None = 0,
    /// Lowest first.
    Ascend = 1,
    /// Highest first.
    Descend = 2,
}

/// What a range is sorted by. Ties keep key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SortTarget {
    /// The key.
    Key = 0,
    /// [`KeyValue::version`].
    Version = 1,
    /// [`KeyValue::create_revision`].
    Create = 2,
    /// [`KeyValue::mod_revision`].
    Mod = 3,
    /// [`KeyValue::value`].
    Value = 4,
}

/// Reads the keys from `key` to before `range_end`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RangeOp {
    /// The first key; not empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Empty: `key` alone. One zero byte: every key ≥ `key`.
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// Most pairs to return; 0 and less for all.
    #[prost(int64, tag = "3")]
    pub limit: i64,
    /// The revision to read at; 0 and less for the current one.
    #[prost(int64, tag = "4")]
    pub revision: Revision,
    /// A [`SortOrder`].
    #[prost(enumeration = "SortOrder", tag = "5")]
    pub sort_order: i32,
    /// A [`SortTarget`].
    #[prost(enumeration = "SortTarget", tag = "6")]
    pub sort_target: i32,
    /// Served by this member alone. The store does not look at it.
    #[prost(bool, tag = "7")]
    pub serializable: bool,
    /// Leave the values out of the answer.
    #[prost(bool, tag = "8")]
    pub keys_only: bool,
    /// Answer the count alone.
    #[prost(bool, tag = "9")]
    pub count_only: bool,
    /// Least modification revision; 0 for any.
    #[prost(int64, tag = "10")]
    pub min_mod_revision: Revision,
    /// Highest modification revision; 0 for any.
    #[prost(int64, tag = "11")]
    pub max_mod_revision: Revision,
    /// Least creation revision; 0 for any.
    #[prost(int64, tag = "12")]
    pub min_create_revision: Revision,
    /// Highest creation revision; 0 for any.
    #[prost(int64, tag = "13")]
    pub max_create_revision: Revision,
}

/// Deletes the keys from `key` to before `range_end`, in one revision.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeleteRangeOp {
    /// The first key; not empty.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// As [`RangeOp::range_end`].
    #[prost(bytes = "bytes", tag = "2")]
    pub range_end: Bytes,
    /// Whether the answer carries the pairs as they were.
    #[prost(bool, tag = "3")]
    pub prev_kv: bool,
}

/// How a compare relates what is stored to what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CompareResult {
    /// Stored = asked.
    Equal = 0,
    /// Stored > asked.
    Greater = 1,
    /// Stored < asked.
    Less = 2,
    /// Stored ≠ asked.
    NotEqual = 3,
}

/// What a compare looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CompareTarget {
    /// [`KeyValue::version`].
    Version = 0,
    /// [`KeyValue::create_revision`].
    Create = 1,
    /// [`KeyValue::mod_revision`].
    Mod = 2,
    /// [`KeyValue::value`]; false where the key is missing.
    Value = 3,
    /// [`KeyValue::lease`].
    Lease = 4,
}

/// A condition of a transaction. Over a range it must hold for every key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Compare {
    /// A [`CompareResult`]; an unknown one holds.
    #[prost(enumeration = "CompareResult", tag = "1")]
    pub result: i32,
    /// A [`CompareTarget`]; an unknown one finds stored and asked equal.
    #[prost(enumeration = "CompareTarget", tag = "2")]
    pub target: i32,
    /// The first key; not empty.
    #[prost(bytes = "bytes", tag = "3")]
    pub key: Bytes,
    /// The operand; a missing one, or one of another target, is 0 or empty.
    #[prost(oneof = "CompareOperand", tags = "4, 5, 6, 7, 8")]
    pub operand: Option<CompareOperand>,
    /// As [`RangeOp::range_end`].
    #[prost(bytes = "bytes", tag = "64")]
    pub range_end: Bytes,
}

/// What a compare asks for.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum CompareOperand {
    /// For [`CompareTarget::Version`].
    #[prost(int64, tag = "4")]
    Version(i64),
    /// For [`CompareTarget::Create`].
    #[prost(int64, tag = "5")]
    CreateRevision(Revision),
    /// For [`CompareTarget::Mod`].
    #[prost(int64, tag = "6")]
    ModRevision(Revision),
    /// For [`CompareTarget::Value`].
    #[prost(bytes = "bytes", tag = "7")]
    Value(Bytes),
    /// For [`CompareTarget::Lease`].
    #[prost(int64, tag = "8")]
    Lease(LeaseId),
}

/// If all `compares` hold `success`, else `failure`; atomically, in at most one revision.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TxnOp {
    /// The conditions.
    #[prost(message, repeated, tag = "1")]
    pub compares: Vec<Compare>,
    /// Done when all hold.
    #[prost(message, repeated, tag = "2")]
    pub success: Vec<RequestOp>,
    /// Done when one does not.
    #[prost(message, repeated, tag = "3")]
    pub failure: Vec<RequestOp>,
}

/// One step of a branch.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RequestOp {
    /// The step; a missing one is refused.
    #[prost(oneof = "Request", tags = "1, 2, 3, 4")]
    pub request: Option<Request>,
}

/// The steps a branch may hold.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Request {
    /// A read; it sees the steps before it.
    #[prost(message, tag = "1")]
    Range(RangeOp),
    /// A write.
    #[prost(message, tag = "2")]
    Put(PutOp),
    /// A deletion.
    #[prost(message, tag = "3")]
    DeleteRange(DeleteRangeOp),
    /// A transaction in the transaction; its compares see the state before the outermost one.
    #[prost(message, tag = "4")]
    Txn(TxnOp),
}

/// Forgets what was superseded before `revision`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CompactOp {
    /// Reads at this revision and above go on working.
    #[prost(int64, tag = "1")]
    pub revision: Revision,
    /// The client waits until the removal is on disk.
    #[prost(bool, tag = "2")]
    pub physical: bool,
}

/// Creates a lease.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct LeaseGrantOp {
    /// Time to live in seconds, already raised to the floor by the proposer.
    #[prost(int64, tag = "1")]
    pub ttl_s: i64,
    /// Its number; never 0 here: the door draws one where the client sent 0.
    #[prost(int64, tag = "2")]
    pub id: LeaseId,
}

/// Ends a lease and deletes its keys, in one revision.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct LeaseRevokeOp {
    /// Which.
    #[prost(int64, tag = "1")]
    pub id: LeaseId,
}

/// Records how long leases still had, so that a new leader does not start long ones from the beginning.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeaseCheckpointOp {
    /// One per lease; unknown leases are skipped.
    #[prost(message, repeated, tag = "1")]
    pub checkpoints: Vec<LeaseCheckpoint>,
}

/// One lease's remaining time.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct LeaseCheckpoint {
    /// Which lease.
    #[prost(int64, tag = "1")]
    pub id: LeaseId,
    /// Seconds left; 0 clears the checkpoint (the full time counts again).
    #[prost(int64, tag = "2")]
    pub remaining_s: i64,
}

impl From<Request> for RequestOp {
    fn from(request: Request) -> Self {
        Self { request: Some(request) }
    }
}

impl TxnOp {
    /// Whether no branch, nested ones included, holds a write: such a transaction needs no log entry.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match &op.request {
            Some(Request::Put(_) | Request::DeleteRange(_)) => false,
            Some(Request::Txn(txn)) => txn.is_read_only(),
            Some(Request::Range(_)) | None => true,
        })
    }
}
