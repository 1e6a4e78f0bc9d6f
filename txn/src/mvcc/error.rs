//! What an operation can be refused for, one enum each. A refusal inside the log is part of the replicated outcome:
//! every member finds the same one.

use triune_storage::StoreError;

use super::op::Revision;

/// A request that must not be proposed. All are the client's doing; sending it again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// etcd: `etcdserver: key is not provided`.
    #[error("key is not provided")]
    EmptyKey,
    /// A step of a transaction is empty. etcd: `etcdserver: key not found`.
    #[error("a step of the transaction is empty")]
    KeyNotFound,
    /// A value beside `ignore_value`. etcd: `etcdserver: value is provided`.
    #[error("value is provided together with ignore_value")]
    ValueProvided,
    /// A lease beside `ignore_lease`. etcd: `etcdserver: lease is provided`.
    #[error("lease is provided together with ignore_lease")]
    LeaseProvided,
    /// etcd: `etcdserver: too many operations in txn request`.
    #[error("too many operations in the transaction, at most {max}")]
    TooManyOps {
        /// The limit of this level.
        max: usize,
    },
    /// etcd: `etcdserver: duplicate key given in txn request`.
    #[error("a key is written twice, or written and deleted, in one path of the transaction")]
    DuplicateKey,
    /// etcd: `etcdserver: invalid sort option`.
    #[error("invalid sort option")]
    InvalidSortOption,
}

/// Why a revision cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// It is below the compaction; read a later one.
    /// etcd: `etcdserver: mvcc: required revision has been compacted`.
    #[error("the revision has been compacted, the oldest is {compacted}")]
    Compacted {
        /// The oldest revision that can be read.
        compacted: Revision,
    },
    /// It has not come yet. etcd: `etcdserver: mvcc: required revision is a future revision`.
    #[error("the revision is a future one, the current is {current}")]
    FutureRev {
        /// The current revision.
        current: Revision,
    },
    /// The store under it failed. Stop.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a put was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// etcd: `etcdserver: requested lease not found`.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// `ignore_value` or `ignore_lease` on a key that does not exist. etcd: `etcdserver: key not found`.
    #[error("key not found")]
    KeyNotFound,
}

/// Why a transaction was refused; nothing of it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TxnError {
    /// As [`PutError::LeaseNotFound`].
    #[error("requested lease not found")]
    LeaseNotFound,
    /// As [`PutError::KeyNotFound`].
    #[error("key not found")]
    KeyNotFound,
    /// As [`RangeError::Compacted`].
    #[error("the revision has been compacted, the oldest is {compacted}")]
    Compacted {
        /// The oldest revision that can be read.
        compacted: Revision,
    },
    /// As [`RangeError::FutureRev`].
    #[error("the revision is a future one, the current is {current}")]
    FutureRev {
        /// The current revision.
        current: Revision,
    },
}

/// Why a compaction was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// It is done already. etcd: `etcdserver: mvcc: required revision has been compacted`.
    #[error("already compacted at {compacted}")]
    Compacted {
        /// The compaction in force.
        compacted: Revision,
    },
    /// etcd: `etcdserver: mvcc: required revision is a future revision`.
    #[error("the revision is a future one, the current is {current}")]
    FutureRev {
        /// The current revision.
        current: Revision,
    },
}

/// Why a lease was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseGrantError {
    /// The number is 0: draw one first. etcd: `etcdserver: requested lease not found`.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// etcd: `etcdserver: lease already exists`.
    #[error("lease already exists")]
    LeaseExists,
    /// etcd: `etcdserver: too large lease TTL`.
    #[error("too large lease time to live, at most {max} s")]
    LeaseTtlTooLarge {
        /// The limit.
        max: i64,
    },
}

/// Why a lease was not revoked or checkpointed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseRevokeError {
    /// etcd: `etcdserver: requested lease not found`.
    #[error("requested lease not found")]
    LeaseNotFound,
}

/// Never: for operations that are not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRefusal {}

/// Why an operation of the log had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError<E: std::error::Error + 'static> {
    /// Every member refuses it alike. Answer the client; go on with the log.
    #[error(transparent)]
    Refused(E),
    /// The store under it failed on this member. Stop; recover by opening again.
    #[error(transparent)]
    Store(StoreError),
}

impl<E: std::error::Error + 'static> From<StoreError> for ApplyError<E> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Why a store could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store under it failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Written by a later version; use that one.
    #[error("mvcc: format {found} is newer than {known}")]
    Newer {
        /// What is there.
        found: u32,
        /// What this version reads.
        known: u32,
    },
    /// A row does not decode: retire the disk id and return as a replaced member.
    #[error("mvcc: a row of table {table} does not decode")]
    Corrupt {
        /// The table.
        table: u8,
    },
}
