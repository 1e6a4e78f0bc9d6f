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
//! ```
//! use std::sync::Arc;
//! use triune_storage::{Entry, Index, IoSeq, MemDisk, Position, StreamBatch, StreamId, Wal, WalConfig};
//!
//! let disk = Arc::new(MemDisk::new());
//! let (mut wal, recovered) = Wal::open(disk.clone(), "wal", WalConfig::default())?;
//! assert!(recovered.streams.is_empty());
//! let entry = Entry { position: Position::new(1, 1), head: "put a 1".into(), ..Entry::default() };
//! let batch = StreamBatch { stream: StreamId(0), seq: IoSeq(1), entries: vec![entry], ..StreamBatch::default() };
//! wal.append(&[batch])?; // many streams, one write
//! wal.sync()?; // only now may anybody be told
//! drop(wal);
//!
//! let (wal, recovered) = Wal::open(disk, "wal", WalConfig::default())?;
//! let stream = recovered.streams.get(&StreamId(0)).ok_or("lost")?;
//! assert_eq!((stream.last, stream.is_faulty()), (Position::new(1, 1), false));
//! assert_eq!(wal.reader().read(StreamId(0), Index(1)..=Index(1), 1024)?.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Guarantees.** What a returned `sync` covers is recovered or reported as faulty, never silently gone; what was cut
//! never comes back; a batch is atomic over its streams. **Not:** the last batch before a power loss, when its bytes
//! decay too, is taken for torn (policy `watermark`); a disk that lies about `sync` is not found out.
//!
//! **Features.** `file`: the real disk and the lossy one. `redb`: an ordered store on disk. `conformance`: the suite
//! that an implementation of [`Disk`] or [`OrderedStore`] should pass.

#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod disk;
mod entry;
#[cfg(feature = "file")]
mod file;
mod identity;
mod ids;
pub mod layout;
#[cfg(feature = "file")]
mod lossy;
mod mem;
#[cfg(feature = "redb")]
mod redb_store;
mod store;
mod store_mem;
#[cfg(all(test, feature = "file"))]
mod testdir;
mod wal;

pub use disk::{Disk, DiskError, DiskFile, OpenMode};
pub use entry::{Entry, Location, Run, Section, StreamBatch};
#[cfg(feature = "file")]
pub use file::{FileDisk, LockError};
pub use identity::{Identity, IdentityError, ListedMember};
pub use ids::{Epoch, Index, IoSeq, Position, StreamId};
#[cfg(feature = "file")]
pub use lossy::{DiskMode, DiskModeError, LossyDisk};
pub use mem::{Fate, MemDisk, SECTOR};
#[cfg(feature = "redb")]
pub use redb_store::{RedbConfig, RedbStore};
pub use store::{KeyRange, OrderedStore, StoreBatch, StoreError, StoreView, Table};
pub use store_mem::MemStore;
pub use wal::{
    Appended, Hole, OpenError, Pin, ReadError, Recovered, RecoveredStream, Verdicts, Wal, WalConfig, WalError,
    WalReader,
};
