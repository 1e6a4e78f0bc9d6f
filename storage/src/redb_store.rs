//! [`OrderedStore`] on redb, over our [`Disk`]: one redb table per [`Table`], one redb transaction per batch, durable
//! with two syncs (commit and quick repair), so that an opening after a crash costs nothing.
//!
//! A stored value is `CRC32C(table, key, value) little-endian ‖ value`: a decayed page is reported, never served.
//!
//! 1. After a failed commit the store is poisoned, but for a full disk: then the engine is opened again in place (as
//!    after a crash) once nobody holds a view, and the next commit is tried as usual.
//! 2. Reads see the last commit that returned `Ok`, or one that failed after it was durable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, StorageBackend, TableDefinition, TableError};

use crate::{Disk, DiskError, DiskFile, KeyRange, OpenMode, OrderedStore, StoreBatch, StoreError, StoreView, Table};

/// How a [`RedbStore`] runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedbConfig {
    /// Memory for cached pages, in bytes. Default 64 MiB.
    pub cache_bytes: usize,
}

impl Default for RedbConfig {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

/// An ordered store in one file.
pub struct RedbStore {
    file: Arc<dyn DiskFile>,
    config: RedbConfig,
    /// `None` only while it is opened again, or when that failed.
    engine: RwLock<Option<Arc<Database>>>,
    /// One writer at a time.
    writer: Mutex<()>,
    poisoned: AtomicBool,
    /// The engine met a full disk and must be opened again before the next commit.
    stale: AtomicBool,
}

impl RedbStore {
    /// Opens or makes the store in file `path`; the directory must be there. Its name is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Disk`]; [`StoreError::Engine`] when the file is no store.
    pub fn open(disk: &dyn Disk, path: &str, config: RedbConfig) -> Result<Self, StoreError> {
        let file = disk.open(path, OpenMode::Create)?;
        let engine = open_engine(&file, &config)?;
        disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir))?;
        Ok(Self {
            file,
            config,
            engine: RwLock::new(Some(Arc::new(engine))),
            writer: Mutex::new(()),
            poisoned: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        })
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        Ok(self.file.len()?)
    }

    fn engine(&self) -> Result<Arc<Database>, StoreError> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.clone().ok_or(StoreError::Poisoned)
    }

    fn begin_read(&self) -> Result<RedbView, StoreError> {
        let engine = self.engine()?;
        let txn = engine.begin_read().map_err(|e| engine_error(e.into()))?;
        Ok(RedbView { txn, tables: RefCell::default(), _engine: engine })
    }

    /// After a full disk: a fresh engine over the same file, if nobody reads through the old one.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut engine = self.engine.write().unwrap_or_else(PoisonError::into_inner);
        if engine.as_ref().is_some_and(|engine| Arc::strong_count(engine) > 1) {
            return Err(StoreError::Disk(DiskError::NoSpace { path: "state".to_owned() }));
        }
        *engine = None;
        *engine = Some(Arc::new(open_engine(&self.file, &self.config)?));
        self.stale.store(false, Ordering::Release);
        Ok(())
    }

    fn try_commit(&self, batch: StoreBatch) -> Result<(), StoreError> {
        let engine = self.engine()?;
        let mut txn = engine.begin_write().map_err(|e| engine_error(e.into()))?;
        txn.set_quick_repair(true);
        {
            let mut tables = BTreeMap::new();
            let mut value_buf = Vec::new();
            for (table, key, value) in &batch.ops {
                if let std::collections::btree_map::Entry::Vacant(vacant) = tables.entry(*table) {
                    vacant.insert(txn.open_table(definition(&name(*table))).map_err(|e| engine_error(e.into()))?);
                }
                let Some(opened) = tables.get_mut(table) else { continue };
                let done = match value {
                    Some(value) => {
                        value_buf.clear();
                        value_buf.extend_from_slice(&checksum(*table, key, value).to_le_bytes());
                        value_buf.extend_from_slice(value);
                        opened.insert(&**key, value_buf.as_slice()).map(drop)
                    }
                    None => opened.remove(&**key).map(drop),
                };
                done.map_err(|e| engine_error(e.into()))?;
            }
        }
        txn.commit().map_err(|e| engine_error(e.into()))
    }
}

impl OrderedStore for RedbStore {
    fn view(&self) -> Result<Box<dyn StoreView>, StoreError> {
        Ok(Box::new(self.begin_read()?))
    }

    fn commit(&self, batch: StoreBatch) -> Result<(), StoreError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Poisoned);
        }
        if self.stale.load(Ordering::Acquire) {
            self.reopen()?;
        }
        let done = self.try_commit(batch);
        match &done {
            Ok(()) => {}
            Err(StoreError::Disk(DiskError::NoSpace { .. })) => self.stale.store(true, Ordering::Release),
            Err(error) => {
                tracing::warn!(%error, "store poisoned");
                self.poisoned.store(true, Ordering::Release);
            }
        }
        done
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.begin_read()?.get(table, key)
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("file", &self.file).field("poisoned", &self.poisoned).finish_non_exhaustive()
    }
}

type Opened = Option<Arc<ReadOnlyTable<&'static [u8], &'static [u8]>>>;

struct RedbView {
    txn: ReadTransaction,
    /// Tables opened so far; `None` for one that no batch wrote yet.
    tables: RefCell<BTreeMap<Table, Opened>>,
    /// Keeps the engine from being opened again under us.
    _engine: Arc<Database>,
}

impl RedbView {
    fn table(&self, table: Table) -> Result<Opened, StoreError> {
        if let Some(opened) = self.tables.borrow().get(&table) {
            return Ok(opened.clone());
        }
        let opened = match self.txn.open_table(definition(&name(table))) {
            Ok(opened) => Some(Arc::new(opened)),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(engine_error(error.into())),
        };
        self.tables.borrow_mut().insert(table, opened.clone());
        Ok(opened)
    }
}

impl StoreView for RedbView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(opened) = self.table(table)? else { return Ok(None) };
        let Some(found) = opened.get(key).map_err(|e| engine_error(e.into()))? else { return Ok(None) };
        checked(table, key, found.value()).map(|value| Some(Bytes::copy_from_slice(value)))
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
        let Some(opened) = self.table(table)? else { return Ok(()) };
        let mut pairs = opened.range::<&[u8]>(range).map_err(|e| engine_error(e.into()))?;
        while let Some(pair) = if reverse { pairs.next_back() } else { pairs.next() } {
            let (key, value) = pair.map_err(|e| engine_error(e.into()))?;
            let value = checked(table, key.value(), value.value())?;
            if !visit(key.value(), value) {
                break;
            }
        }
        Ok(())
    }
}

/// Our file as redb's storage.
struct Backend(Arc<dyn DiskFile>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len().map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let got = self.0.read_at(offset, out).map_err(io::Error::other)?;
        if got < out.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // Growing reserves: a full disk shows here, and not in the middle of a write.
        let grows = self.0.len().map_err(io::Error::other)? < len;
        let done = if grows { self.0.allocate(len) } else { self.0.set_len(len) };
        done.map_err(io::Error::other)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync().map_err(io::Error::other)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data).map_err(io::Error::other)
    }
}

fn open_engine(file: &Arc<dyn DiskFile>, config: &RedbConfig) -> Result<Database, StoreError> {
    let mut builder = Database::builder();
    builder.set_cache_size(config.cache_bytes);
    builder.create_with_backend(Backend(Arc::clone(file))).map_err(|e| engine_error(e.into()))
}

/// Finds our own error again in what redb wrapped around it.
fn engine_error(error: redb::Error) -> StoreError {
    match &error {
        redb::Error::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<DiskError>()) {
            Some(disk) => StoreError::Disk(disk.clone()),
            None => StoreError::Engine(error.to_string()),
        },
        _ => StoreError::Engine(error.to_string()),
    }
}

fn checked<'v>(table: Table, key: &[u8], stored: &'v [u8]) -> Result<&'v [u8], StoreError> {
    let corrupt = StoreError::Corrupt { table: table.0 };
    let Some((crc, value)) = stored.split_first_chunk::<4>() else { return Err(corrupt) };
    if u32::from_le_bytes(*crc) == checksum(table, key, value) { Ok(value) } else { Err(corrupt) }
}

fn checksum(table: Table, key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&[table.0]), key), value)
}

fn name(table: Table) -> String {
    format!("t{}", table.0)
}

fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fate, MemDisk};

    fn put(key: &str, value: &str) -> (Table, Bytes, Option<Bytes>) {
        (Table(1), Bytes::from(key.to_owned()), Some(Bytes::from(value.to_owned())))
    }

    fn open(disk: &MemDisk) -> Result<RedbStore, StoreError> {
        RedbStore::open(disk, "state", RedbConfig { cache_bytes: 1 << 20 })
    }

    #[test]
    fn committed_batches_survive_power_loss_at_every_operation() {
        // Each batch writes the same number under many keys: a torn batch would show two numbers.
        let batch = |n: u64| StoreBatch {
            ops: (0..50).map(|k| put(&format!("key {k}"), &format!("{n} {}", "x".repeat(90)))).collect(),
        };
        for stop in (0..400).step_by(7) {
            let disk = MemDisk::new();
            drop(open(&disk).unwrap());
            disk.cut_power_after(stop);
            let mut acked = 0;
            if let Ok(store) = open(&disk) {
                while acked < 8 && store.commit(batch(acked + 1)).is_ok() {
                    acked += 1;
                }
            }
            let mut turn = stop;
            let disk = disk.power_loss(&mut |_| {
                turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                [Fate::Lost, Fate::Kept, Fate::Torn][(turn >> 40) as usize % 3]
            });
            let store = open(&disk).unwrap();
            let mut seen = Vec::new();
            store
                .view()
                .unwrap()
                .scan(Table(1), (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), false, &mut |_, v| {
                    seen.push(String::from_utf8_lossy(v).split(' ').next().unwrap().parse::<u64>().unwrap());
                    true
                })
                .unwrap();
            seen.dedup();
            assert!(seen.len() <= 1, "stop {stop}: {seen:?}");
            let found = seen.first().copied().unwrap_or(0);
            assert!(found == acked || found == acked + 1, "stop {stop}: acknowledged {acked}, found {found}");
        }
    }

    #[test]
    fn a_failed_sync_poisons_until_the_next_opening() {
        let disk = MemDisk::new();
        let store = open(&disk).unwrap();
        store.commit(StoreBatch { ops: vec![put("a", "1")] }).unwrap();
        disk.fail_op(0);
        assert!(matches!(store.commit(StoreBatch { ops: vec![put("a", "2")] }), Err(StoreError::Disk(_))));
        assert_eq!(store.commit(StoreBatch { ops: vec![put("a", "3")] }), Err(StoreError::Poisoned));
        drop(store);
        let store = open(&disk.power_loss(&mut |_| Fate::Lost)).unwrap();
        assert_eq!(store.get(Table(1), b"a").unwrap().unwrap(), "1");
    }

    #[test]
    fn a_full_disk_refuses_and_later_commits_again() {
        let disk = MemDisk::new();
        let store = open(&disk).unwrap();
        store.commit(StoreBatch { ops: vec![put("a", "1")] }).unwrap();
        disk.set_capacity(Some(disk.used()));
        let big = StoreBatch { ops: vec![put("b", &"y".repeat(8 << 20))] };
        assert!(matches!(store.commit(big.clone()), Err(StoreError::Disk(DiskError::NoSpace { .. }))));
        assert_eq!(store.get(Table(1), b"a").unwrap().unwrap(), "1");
        assert!(matches!(store.commit(big.clone()), Err(StoreError::Disk(DiskError::NoSpace { .. }))));
        store.commit(StoreBatch { ops: vec![(Table(1), Bytes::from_static(b"a"), None)] }).unwrap();
        disk.set_capacity(None);
        store.commit(big).unwrap();
        assert_eq!(store.get(Table(1), b"a").unwrap(), None);
        assert_eq!(store.get(Table(1), b"b").unwrap().unwrap().len(), 8 << 20);
    }

    #[test]
    fn a_decayed_value_is_reported_not_served() {
        let disk = MemDisk::new();
        let store = open(&disk).unwrap();
        store.commit(StoreBatch { ops: vec![put("key", "precious value")] }).unwrap();
        drop(store);
        let file = disk.open("state", OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        let places: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(b"precious value")).collect();
        assert!(!places.is_empty());
        for at in places {
            assert!(disk.flip("state", at + 2, 4));
        }
        let store = open(&disk).unwrap();
        assert_eq!(store.get(Table(1), b"key"), Err(StoreError::Corrupt { table: 1 }));
    }
}
