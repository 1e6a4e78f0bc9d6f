//! `OrderedStore`: tables of ordered byte keys, written in atomic batches, read at any time.
//!
//! State machines read it inside `apply` (injected, synchronous; an error is fail-stop) and never commit to it: a
//! flusher off the apply path does, with the applied index in the same batch, so that what is on disk is always the
//! state after exactly one index.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::DiskError;

/// A table's number. The embedder assigns them; 0 is reserved for the store's own marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub u8);

/// What a store could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk under it failed. Stop; recover by opening again.
    #[error("store: {0}")]
    Disk(#[from] DiskError),
    /// A value's checksum does not match: the disk id must be retired.
    #[error("store: table {table}: a value fails its checksum")]
    Corrupt {
        /// The table it was found in.
        table: u8,
    },
    /// An earlier commit failed; nothing more is written until the store is opened again.
    #[error("store: poisoned by an earlier failure")]
    Poisoned,
    /// The engine failed in another way.
    #[error("store: {0}")]
    Engine(String),
}

/// One atomic write: later operations on a key win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreBatch {
    /// `Some(value)` puts, `None` deletes.
    pub ops: Vec<(Table, Bytes, Option<Bytes>)>,
}

/// A key range, in byte order.
pub type KeyRange<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Whether no key can lie in `range`. Implementations ask before they hand a range to a tree that would panic.
pub(crate) fn is_empty_range(range: &KeyRange<'_>) -> bool {
    match *range {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
        _ => false,
    }
}

/// A consistent picture of a store.
pub trait StoreView: Send {
    /// The value of `key`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when its checksum fails, else the disk's.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Calls `visit` with each pair of `range` in ascending order (descending if `reverse`) until it says `false`.
    ///
    /// # Errors
    /// As [`StoreView::get`].
    fn scan(
        &self,
        table: Table,
        range: KeyRange<'_>,
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError>;
}

/// An ordered, transactional store. One writer at a time, any number of readers.
pub trait OrderedStore: Send + Sync + fmt::Debug {
    /// A picture of the last committed state; it does not change while it is held.
    ///
    /// # Errors
    /// When the disk fails.
    fn view(&self) -> Result<Box<dyn StoreView>, StoreError>;

    /// Writes `batch` atomically and durably.
    ///
    /// # Errors
    /// After an error the store is poisoned.
    fn commit(&self, batch: StoreBatch) -> Result<(), StoreError>;

    /// The value of `key` in the last committed state.
    ///
    /// # Errors
    /// As [`StoreView::get`].
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.view()?.get(table, key)
    }
}

impl<S: OrderedStore + ?Sized> OrderedStore for Arc<S> {
    fn view(&self) -> Result<Box<dyn StoreView>, StoreError> {
        (**self).view()
    }

    fn commit(&self, batch: StoreBatch) -> Result<(), StoreError> {
        (**self).commit(batch)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        (**self).get(table, key)
    }
}
