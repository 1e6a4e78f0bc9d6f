//! A segmented write-ahead log that tells torn from faulty, an ordered store, and the disk both stand on.
//!
//! **Problem.** Replicated systems lose acknowledged writes where a log guesses: a flipped bit is read as the end of
//! the log, a failed fsync is retried, a blank disk votes under its old name. This log does not guess.
//!
//! **What it is not.** No consensus, no replication, no query language.
//!
//! **Duties of the embedder.**
//! 1. Give each member a directory of its own, and open it once (the `LOCK` file says who has it).
//! 2. Act on a write only after its `sync` returned.
//! 3. After any error of a write or sync: stop, and recover by opening again. Never retry.
//! 4. Treat a *faulty* verdict as "existed": do not vote by that range.
//!
//! The parts: [`Disk`] and its real and in-memory forms, the log's types, [`OrderedStore`], [`Identity`].

#![forbid(unsafe_code)]

mod disk;
mod entry;
mod identity;
mod ids;
pub mod layout;
mod mem;
mod store;
mod store_mem;
mod wal;

pub use disk::{Disk, DiskError, DiskFile, OpenMode};
pub use entry::{Entry, Location, Run, Section, StreamBatch};
pub use identity::{Identity, IdentityError, ListedMember};
pub use ids::{Epoch, Index, IoSeq, Position, StreamId};
pub use mem::{Fate, MemDisk, SECTOR};
pub use store::{KeyRange, OrderedStore, StoreBatch, StoreError, StoreView, Table};
pub use store_mem::MemStore;
pub use wal::{Appended, Hole, OpenError, ReadError, Recovered, RecoveredStream, Verdicts, WalConfig, WalError};
