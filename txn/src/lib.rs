//! Atomic commit, and a multi-version store with etcd's semantics.
#![forbid(unsafe_code)]

#[cfg(feature = "mvcc")]
pub mod mvcc;
