//! [`OrderedStore`] in memory, for tests, simulation and state that need not survive. A view is a cheap clone of an
//! immutable tree per table; a commit copies only the tables it touches while a view is held.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use crate::{KeyRange, OrderedStore, StoreBatch, StoreError, StoreView, Table};

type Tree = BTreeMap<Bytes, Bytes>;
type Tables = BTreeMap<Table, Arc<Tree>>;

/// An ordered store without a disk: every commit is "durable" at once, and gone with the process.
#[derive(Debug, Default)]
pub struct MemStore {
    tables: RwLock<Tables>,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl OrderedStore for MemStore {
    fn view(&self) -> Result<Box<dyn StoreView>, StoreError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Box::new(MemView { tables }))
    }

    fn commit(&self, batch: StoreBatch) -> Result<(), StoreError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for (table, key, value) in batch.ops {
            let tree = Arc::make_mut(tables.entry(table).or_default());
            match value {
                Some(value) => drop(tree.insert(key, value)),
                None => drop(tree.remove(&key)),
            }
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        Ok(tables.get(&table).and_then(|tree| tree.get(key)).cloned())
    }
}

#[derive(Debug)]
struct MemView {
    tables: Tables,
}

impl StoreView for MemView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.tables.get(&table).and_then(|tree| tree.get(key)).cloned())
    }

    fn scan(
        &self,
        table: Table,
        range: KeyRange<'_>,
        reverse: bool,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        if crate::store::is_empty_range(&range) {
            return Ok(());
        }
        let Some(tree) = self.tables.get(&table) else { return Ok(()) };
        let mut pairs = tree.range::<[u8], _>(range);
        while let Some((key, value)) = if reverse { pairs.next_back() } else { pairs.next() } {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
