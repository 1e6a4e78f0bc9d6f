//! A multi-version store with etcd's semantics; later also atomic commit across stores.
//!
//! **Problem.** A replicated store must compute the same state on every member from the same log, answer reads of the
//! past, tell watchers every change once and in order, and do all that while its disk is slow and its clients are
//! slower. Existing servers weave this into their network and disk code. Here it is one pure state machine: [`mvcc`].
//!
//! **What it is not.** No consensus, no network, no thread, no clock: an embedder brings the log, the time and the
//! disk. The protocols of atomic commit (two-phase and its kin) are not built yet.
//!
//! **Duties of the embedder.**
//! 1. Check a request before it is proposed ([`mvcc::check_put`] and its siblings); raise a lease to the floor.
//! 2. Apply entries in the order of their indices, on every member the same; after a refusal go on, after a store's
//!    failure stop.
//! 3. Hand the events of each apply to the hub at once, [`mvcc::WatcherHub::notify`].
//! 4. Take a batch between entries ([`mvcc::Store::take_flush`]), commit it elsewhere, say so
//!    ([`mvcc::Store::flushed`]). Keep the log from [`mvcc::Store::durable`] on.
//! 5. Drive [`mvcc::LeaseClock`] at the leader alone, and propose the revokes it asks for.
//! 6. Poll streams when their clients can take more; read no more requests of one that does not read its answers.
//!
//! **Guarantees.** Same log, same state: answers, refusals, digest, quota bytes and hash are functions of the entries
//! alone, whatever was flushed, swept or crashed (`tests/mvcc_model.rs`). What is on disk is the state after exactly
//! one index. A watch sees every event of its range once, in order, a revision never split unless it agreed, or is
//! told from where on it can (`tests/mvcc_watch.rs`). [`mvcc::Store::hash_kv`] gives etcd's number for etcd's history
//! (`tests/mvcc_fine_points.rs`). **Not guaranteed:** that two members flush or sweep at the same time; an order among
//! the watches of a stream.
//!
//! ```
//! use std::sync::Arc;
//! use triune_storage::{Index, MemStore, OrderedStore, Table};
//! use triune_txn::mvcc::{PutOp, RangeOp, Store, StoreLimits, Tables};
//!
//! let disk = Arc::new(MemStore::default());
//! let tables = Tables { revisions: Table(1), leases: Table(2), mark: Table(3) };
//! let mut store = Store::open(disk.clone(), tables, StoreLimits::default())?;
//! for (index, value) in [(1, "red"), (2, "blue")] {
//!     let put = PutOp { key: "colour".into(), value: value.into(), ..PutOp::default() };
//!     store.apply_put(Index(index), &put)?;
//! }
//! let then = RangeOp { key: "colour".into(), revision: 2, ..RangeOp::default() };
//! assert_eq!(store.range(&then)?.kvs[0].value, "red");
//! if let Some(flush) = store.take_flush() {
//!     disk.commit(flush.batch)?;
//!     store.flushed(flush.mark);
//! }
//! assert_eq!(Store::open(disk, tables, StoreLimits::default())?.revision(), 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//! | feature | adds |
//! |---|---|
//! | `mvcc` (default) | [`mvcc`]: revisions, ranges, transactions, leases, watches, compaction |
//! | `check` | `mvcc::check`: the watch guarantees as checks over recorded histories |

#![forbid(unsafe_code)]

#[cfg(feature = "mvcc")]
pub mod mvcc;
