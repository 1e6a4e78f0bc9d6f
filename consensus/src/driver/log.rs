//! What a driver needs of a log: one writer that appends and syncs, one reader that fetches old entries.
//!
//! The shipped one is `triune-storage`'s write-ahead log (`DriverLog::from(wal)`); [`super::MemLog`] stands in for it where nothing needs to
//! survive the process.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use triune_storage::{Entry, Index, StreamBatch, StreamId};

/// Which space a write may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// What everybody may use.
    Ordinary,
    /// The log's reserve as well: the disk is full, and only what frees space is still proposed.
    Reserve,
}

/// What a log could not do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No space. Nothing of this write is in the log, nothing before is harmed; the driver tries again later.
    #[error("no space left for the log")]
    NoSpace,
    /// A write, sync or read failed. Nothing may be written any more; recover by opening the log again.
    #[error("log failed")]
    Failed(#[source] Arc<dyn Error + Send + Sync>),
    /// An entry that existed does not read back: the disk lies. Its id must be retired.
    #[error("log damaged")]
    Faulty(#[source] Arc<dyn Error + Send + Sync>),
}

/// The writing end, owned by the log thread.
pub trait LogWrite: Send + 'static {
    /// Appends all `batches` in order and makes them durable with one sync.
    ///
    /// # Errors
    /// [`LogError::NoSpace`]: nothing happened, the same call may be made again. Anything else: never call again.
    fn commit(&mut self, batches: &[StreamBatch], space: Space) -> Result<(), LogError>;

    /// Entries of `stream` at and below `upto` are no longer needed.
    ///
    /// # Errors
    /// As [`LogWrite::commit`].
    fn release(&mut self, stream: StreamId, upto: Index) -> Result<(), LogError>;

    /// Called once after the last write of a driver that stops in good order.
    ///
    /// # Errors
    /// When the end could not be marked; the next start recovers as after a crash.
    fn close(&mut self) -> Result<(), LogError> {
        Ok(())
    }
}

/// The reading end, owned by the read thread.
pub trait LogRead: Send + 'static {
    /// Entries `first ..= last`, stopping after `bytes_max` payload bytes but returning at least one.
    /// `None`: `first` is not (or no longer) in the log.
    ///
    /// # Errors
    /// [`LogError::Faulty`] or [`LogError::Failed`]; both end the driver.
    fn entries(
        &mut self,
        stream: StreamId,
        first: Index,
        last: Index,
        bytes_max: usize,
    ) -> Result<Option<Vec<Entry>>, LogError>;
}

/// Both ends of one log. Made from a [`triune_storage::Wal`], a [`super::MemLog`], or whatever else has two ends.
pub struct DriverLog {
    /// For the log thread.
    pub writer: Box<dyn LogWrite>,
    /// For the read thread.
    pub reader: Box<dyn LogRead>,
}

impl fmt::Debug for DriverLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverLog").finish_non_exhaustive()
    }
}
