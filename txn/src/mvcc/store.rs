//! The store: current state, history, and the way between memory and disk.
//!
//! Invariants:
//! 1. State is a function of the applied entries alone; nothing of it depends on when a flush ran.
//! 2. What is on disk is the state after exactly one index, named in its mark row.
//! 3. A read at a revision ≥ the compaction answers the same before, during and after the sweep.
//! 4. `approx_bytes` counts the rows that are still readable, not those that the sweep has not reached yet.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use triune_storage::{Index, OrderedStore, StoreBatch, StoreError, StoreView, Table};

use super::digest::Digest;
use super::error::OpenError;
use super::index::{KeyIndex, Point, Span};
use super::lease::LeaseTable;
use super::op::{KeyValue, LeaseId, Revision};
use super::outcome::{EventKind, Events};
use super::revision::Rev;
pub(super) use super::tail::Change;
use super::tail::Tail;

/// The tables a store lives in; an embedder gives them numbers that nobody else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// One row per change: revision → pair.
    pub revisions: Table,
    /// One row per lease.
    pub leases: Table,
    /// The mark row: applied index, revision, compaction, digest.
    pub mark: Table,
}

/// How much a store holds in memory and does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of changes kept in memory after their flush. Default 32 MiB.
    pub cache_bytes_max: usize,
    /// Keys one flush looks at for a compaction. Default 16,384: about a millisecond.
    pub sweep_keys_max: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { cache_bytes_max: 32 << 20, sweep_keys_max: 16_384 }
    }
}

/// What a flusher commits, elsewhere, while applies go on. Rows added to it become durable with it, atomically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushBatch {
    /// The rows.
    pub batch: StoreBatch,
    /// To be handed to [`Store::flushed`] once the commit returned.
    pub mark: FlushMark,
}

/// What a flush makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark {
    /// Every entry up to here.
    pub applied: Index,
    /// The revision at it.
    pub revision: Revision,
    seq: u64,
    swept: Revision,
}

/// The multi-version store. One owner; see the [module](super) for the order of calls.
#[derive(Debug)]
pub struct Store {
    pub(super) disk: Arc<dyn OrderedStore>,
    pub(super) tables: Tables,
    limits: StoreLimits,
    pub(super) index: KeyIndex,
    pub(super) tail: Tail,
    pub(super) leases: LeaseTable,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) applied: Index,
    pub(super) digest: Digest,
    bytes: u64,
    /// (revision, bytes): what a compaction at or above `revision` frees. Ascending, all above `compacted`.
    freeable: VecDeque<(Revision, u64)>,
    sweep: Sweep,
    flush_seq: u64,
    in_flight: Option<FlushMark>,
    /// What the mark row on disk says.
    durable: Durable,
}

/// The removal that follows a compaction.
#[derive(Debug)]
struct Sweep {
    /// The compaction whose removal is complete in memory.
    done: Revision,
    /// The compaction being swept and the last key looked at.
    at: Option<(Revision, Option<Box<[u8]>>)>,
}

#[derive(Clone, Copy, Debug)]
struct Durable {
    applied: Index,
    swept: Revision,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct MarkRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(fixed64, tag = "2")]
    applied: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
    #[prost(sint64, tag = "4")]
    compacted: i64,
    #[prost(fixed64, tag = "5")]
    digest: u64,
    #[prost(sint64, tag = "6")]
    swept: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct LeaseRow {
    #[prost(int64, tag = "1")]
    ttl_s: i64,
    #[prost(int64, tag = "2")]
    remaining_s: i64,
}

/// The writes of one transaction, all under one revision.
#[derive(Debug)]
pub(super) struct Write {
    main: Revision,
    pub(super) events: Vec<super::outcome::Event>,
}

impl Write {
    /// The revision a read inside the transaction sees as current.
    pub(super) fn current(&self) -> Revision {
        if self.events.is_empty() { self.main - 1 } else { self.main }
    }

    /// The revision a put of the transaction answers with.
    pub(super) const fn main(&self) -> Revision {
        self.main
    }
}

impl Store {
    /// Opens the store over `disk`; a blank one starts at revision 1. Reads every row once.
    ///
    /// # Errors
    /// When a row cannot be read or does not decode.
    pub fn open(disk: Arc<dyn OrderedStore>, tables: Tables, limits: StoreLimits) -> Result<Self, OpenError> {
        let view = disk.view()?;
        let mark = match view.get(tables.mark, MARK_KEY)? {
            Some(row) => MarkRow::decode(row).map_err(|_| OpenError::Corrupt { table: tables.mark.0 })?,
            None => MarkRow { format: FORMAT, applied: 0, revision: 1, compacted: -1, digest: 0, swept: -1 },
        };
        if mark.format > FORMAT {
            return Err(OpenError::Newer { found: mark.format, known: FORMAT });
        }
        let applied = Index(mark.applied);
        let pending = (mark.swept < mark.compacted).then_some((mark.compacted, None));
        let mut store = Self {
            disk: Arc::clone(&disk),
            tables,
            limits,
            index: KeyIndex::default(),
            tail: Tail::default(),
            leases: LeaseTable::default(),
            revision: mark.revision,
            compacted: mark.compacted,
            applied,
            digest: Digest::new(mark.digest),
            bytes: 0,
            freeable: VecDeque::new(),
            sweep: Sweep { done: mark.swept, at: pending },
            flush_seq: 0,
            in_flight: None,
            durable: Durable { applied, swept: mark.swept },
        };
        store.restore_leases(&*view)?;
        store.restore_revisions(&*view)?;
        Ok(store)
    }

    /// The last entry applied, or skipped.
    #[must_use]
    pub const fn applied(&self) -> Index {
        self.applied
    }

    /// The current revision.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The compaction in force, -1 if there never was one: the oldest revision that can be read.
    #[must_use]
    pub const fn compacted(&self) -> Revision {
        self.compacted
    }

    /// A chain over (index, effects) of all entries applied: equal at equal index on every member.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest.value()
    }

    /// Bytes of all rows that can still be read, for the quota. Equal at equal index on every member.
    #[must_use]
    pub fn approx_bytes(&self) -> u64 {
        self.bytes + LEASE_BYTES * self.leases.len() as u64
    }

    /// How many keys have an entry in memory, recently deleted ones included.
    #[must_use]
    pub fn keys_len(&self) -> usize {
        self.index.len()
    }

    /// The leases.
    #[must_use]
    pub const fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// The tables whose rows, together, are the state: what a snapshot carries. Install = import into a blank store
    /// and open that one; see [`WatcherHub::resync`](super::WatcherHub::resync).
    #[must_use]
    pub const fn tables(&self) -> [Table; 3] {
        [self.tables.revisions, self.tables.leases, self.tables.mark]
    }

    /// Passes an entry that does not concern this store.
    pub fn skip(&mut self, index: Index) {
        assert!(index >= self.applied, "entries are applied in order");
        self.applied = index;
    }

    /// Whether everything the compaction in force made unreadable is gone from disk: what a client that asked for a
    /// physical compaction waits for.
    #[must_use]
    pub const fn compaction_done(&self) -> bool {
        self.durable.swept >= self.compacted
    }

    /// Whether [`Store::take_flush`] has a batch: something to write, or a compaction to sweep, be it that a slice found
    /// nothing to remove. False while a batch is out. A sweep goes on with the calls, so go on calling while this holds,
    /// be the store idle or not.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        let changed = self.tail.has_pending() || self.leases.is_dirty() || self.applied != self.durable.applied;
        let sweeping = self.sweep.at.is_some() || self.sweep.done != self.durable.swept;
        self.in_flight.is_none() && (changed || sweeping)
    }

    /// What a flusher has to commit, or `None` if there is nothing, or a batch is out. Ask between entries, never
    /// between two operations of one, at most every 100 ms or so. Each batch also sweeps a slice of the compaction.
    pub fn take_flush(&mut self) -> Option<FlushBatch> {
        if !self.wants_flush() {
            return None;
        }
        let mut doomed = Vec::new();
        let swept = self.sweep_slice(&mut doomed);
        let mut ops = Vec::new();
        let table = self.tables.revisions;
        for change in self.tail.depart() {
            ops.push((table, row_key(change), Some(row_value(change))));
        }
        for point in doomed {
            ops.push((table, point.row_key().into(), None));
        }
        for id in self.leases.take_dirty() {
            let row = self.leases.get(id).map(|lease| LeaseRow { ttl_s: lease.ttl_s, remaining_s: lease.remaining_s });
            ops.push((self.tables.leases, lease_key(id), row.map(|row| row.encode_to_vec().into())));
        }
        let row = MarkRow {
            format: FORMAT,
            applied: self.applied.0,
            revision: self.revision,
            compacted: self.compacted,
            digest: self.digest(),
            swept,
        };
        ops.push((self.tables.mark, Bytes::from_static(MARK_KEY), Some(row.encode_to_vec().into())));
        self.flush_seq += 1;
        let mark = FlushMark { applied: self.applied, revision: self.revision, seq: self.flush_seq, swept };
        self.in_flight = Some(mark);
        Some(FlushBatch { batch: StoreBatch { ops }, mark })
    }

    /// The batch of `mark` is durable. Until this call its changes stay in memory, and no other batch goes out.
    ///
    /// # Panics
    /// If that batch is not the one that is out.
    pub fn flushed(&mut self, mark: FlushMark) {
        assert_eq!(self.in_flight, Some(mark), "a batch is flushed once, in order");
        self.in_flight = None;
        self.durable = Durable { applied: mark.applied, swept: mark.swept };
        self.tail.arrive(self.limits.cache_bytes_max);
    }

    /// The last entry known to be on disk: the log may be cut up to here.
    #[must_use]
    pub const fn durable(&self) -> Index {
        self.durable.applied
    }

    /// Starts the writes of a transaction.
    pub(super) const fn begin(&self) -> Write {
        Write { main: self.revision + 1, events: Vec::new() }
    }

    /// Ends them: the revision moves if something changed.
    pub(super) fn end(&mut self, index: Index, write: Write) -> Events {
        assert!(index >= self.applied, "entries are applied in order");
        self.applied = index;
        self.digest.events(index, &write.events);
        if !write.events.is_empty() {
            self.revision = write.main;
        }
        write.events.into()
    }

    /// Records that an entry was refused: members must refuse alike.
    pub(super) fn refuse(&mut self, index: Index) {
        assert!(index >= self.applied, "entries are applied in order");
        self.applied = index;
        self.digest.refusal(index);
    }

    /// Records an entry that changed something other than keys.
    pub(super) fn seal(&mut self, index: Index, effect: &[i64]) {
        assert!(index >= self.applied, "entries are applied in order");
        self.applied = index;
        self.digest.effect(index, effect);
    }

    pub(super) fn write_put(&mut self, write: &mut Write, key: Bytes, value: Bytes, lease: LeaseId) {
        let (create_revision, version) = match self.index.get(&key) {
            Some(versions) if versions.version > 0 => (versions.create_revision, versions.version + 1),
            _ => (write.main, 1),
        };
        let kv = KeyValue { key, create_revision, mod_revision: write.main, version, value, lease };
        self.write_change(write, EventKind::Put, kv);
    }

    pub(super) fn write_delete(&mut self, write: &mut Write, key: Bytes) {
        debug_assert!(self.index.get(&key).is_some_and(|versions| versions.version > 0));
        let kv = KeyValue { key, mod_revision: write.main, ..KeyValue::default() };
        self.write_change(write, EventKind::Delete, kv);
    }

    fn write_change(&mut self, write: &mut Write, kind: EventKind, kv: KeyValue) {
        let sub = u32::try_from(write.events.len()).unwrap_or(u32::MAX);
        let change = Change { rev: Rev::new(write.main, sub), kind, kv };
        self.index_change(&change, row_bytes(&change));
        write.events.push(change.event());
        self.tail.push(change);
    }

    /// Enters a change into index, lease table and accounts: the one way, for applies and for the restart.
    fn index_change(&mut self, change: &Change, bytes: u64) {
        let Change { rev, kind, kv } = change;
        let tombstone = *kind == EventKind::Delete;
        if let Some(old) = self.index.get(&kv.key).map(super::index::Versions::head)
            && !old.is_tombstone()
        {
            // What a transaction wrote and deleted again is still seen by a watch from its revision on.
            self.freeable_at(rev.main.max(old.rev().main + 1), old.bytes());
        }
        self.bytes += bytes;
        if tombstone {
            self.freeable_at(rev.main + 1, bytes);
        }
        self.index.push(&kv.key, Point::new(*rev, tombstone, bytes), kv.create_revision, kv.version);
        self.leases.attach(&kv.key, kv.lease);
    }

    /// A compaction at or above `at` frees `bytes`.
    fn freeable_at(&mut self, at: Revision, bytes: u64) {
        if at <= self.compacted {
            self.bytes -= bytes;
            return;
        }
        // Nearly always at the back: only a deletion's row is free one revision later than what it deleted.
        let place = self.freeable.partition_point(|(revision, _)| *revision < at);
        match self.freeable.get_mut(place) {
            Some((revision, sum)) if *revision == at => *sum += bytes,
            _ => self.freeable.insert(place, (at, bytes)),
        }
    }

    /// Puts a compaction in force. The sweep follows with the flushes.
    pub(super) fn set_compacted(&mut self, at: Revision) {
        assert!(at > self.compacted, "compactions ascend");
        assert!(at <= self.revision, "history is compacted, not the future");
        self.compacted = at;
        while let Some((revision, bytes)) = self.freeable.front().copied()
            && revision <= at
        {
            self.bytes -= bytes;
            self.freeable.pop_front();
        }
        // A sweep under way ends first; what it took stays taken.
        if self.sweep.at.is_none() {
            self.sweep.at = Some((at, None));
        }
    }

    /// Answers the compaction whose removal is complete once `doomed` is gone.
    fn sweep_slice(&mut self, doomed: &mut Vec<Point>) -> Revision {
        if let Some((at, from)) = self.sweep.at.take() {
            match self.index.sweep(from.as_deref(), at, self.limits.sweep_keys_max, doomed) {
                Some(last) => self.sweep.at = Some((at, Some(last))),
                None => {
                    self.sweep.done = at;
                    self.sweep.at = (at < self.compacted).then_some((self.compacted, None));
                }
            }
        }
        self.sweep.done
    }

    fn restore_leases(&mut self, view: &dyn StoreView) -> Result<(), OpenError> {
        let mut bad = false;
        view.scan(self.tables.leases, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, row| {
            let id = <[u8; 8]>::try_from(key).map(LeaseId::from_be_bytes);
            match (id, LeaseRow::decode(row)) {
                (Ok(id), Ok(row)) => self.leases.restore(id, row.ttl_s, row.remaining_s),
                _ => bad = true,
            }
            !bad
        })?;
        if bad { Err(OpenError::Corrupt { table: self.tables.leases.0 }) } else { Ok(()) }
    }

    fn restore_revisions(&mut self, view: &dyn StoreView) -> Result<(), OpenError> {
        let mut bad = false;
        view.scan(self.tables.revisions, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, row| {
            match decode_change(key, row) {
                Some(change) if change.rev.main <= self.revision => {
                    let bytes = row_bytes_of(key.len(), row.len());
                    self.index_change(&change, bytes);
                }
                _ => bad = true,
            }
            !bad
        })?;
        if bad { Err(OpenError::Corrupt { table: self.tables.revisions.0 }) } else { Ok(()) }
    }
}

/// Reads of changes, from memory where they are there.
pub(super) struct Reader<'a> {
    store: &'a Store,
    view: Option<Box<dyn StoreView>>,
}

impl Store {
    pub(super) const fn reader(&self) -> Reader<'_> {
        Reader { store: self, view: None }
    }

    /// The keys of `span` that live at `revision`.
    pub(super) fn live<'a>(
        &'a self,
        span: Span<'_>,
        revision: Revision,
    ) -> impl Iterator<Item = (&'a [u8], Point)> + use<'a> {
        self.index.range(span).filter_map(move |(key, versions)| Some((key, versions.live_at(revision)?)))
    }
}

impl Reader<'_> {
    fn view(&mut self) -> Result<&dyn StoreView, StoreError> {
        if self.view.is_none() {
            self.view = Some(self.store.disk.view()?);
        }
        // Just filled.
        self.view.as_deref().map_or(Err(StoreError::Poisoned), |view| Ok(view as &dyn StoreView))
    }

    /// The change at `point`, which the index says exists.
    pub(super) fn change(&mut self, point: Point) -> Result<Change, StoreError> {
        if let Some(change) = self.store.tail.get(point.rev()) {
            return Ok(change.clone());
        }
        let table = self.store.tables.revisions;
        let key = point.row_key();
        let row = self.view()?.get(table, &key)?.ok_or(StoreError::Corrupt { table: table.0 })?;
        decode_change_shared(&key, row).ok_or(StoreError::Corrupt { table: table.0 })
    }

    pub(super) fn pair(&mut self, point: Point) -> Result<KeyValue, StoreError> {
        debug_assert!(!point.is_tombstone());
        Ok(self.change(point)?.kv)
    }

    /// The pair of `key` at `revision`.
    pub(super) fn get(&mut self, key: &[u8], revision: Revision) -> Result<Option<KeyValue>, StoreError> {
        match self.store.index.get(key).and_then(|versions| versions.live_at(revision)) {
            Some(point) => self.pair(point).map(Some),
            None => Ok(None),
        }
    }

    /// Visits the changes with `main ≥ revision`, ascending, until `visit` says no. What the sweep has not reached
    /// yet is among them where it is below the compaction.
    pub(super) fn scan(&mut self, revision: Revision, visit: &mut dyn FnMut(Change) -> bool) -> Result<(), StoreError> {
        let store = self.store;
        let mut on = true;
        let split = store.tail.first();
        if split.is_none_or(|first| first.main >= revision) {
            let table = store.tables.revisions;
            let from = Rev::new(revision.max(0), 0);
            let to = split.map(|first| first.row_key(false));
            let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let from = from.row_key(false);
            let mut corrupt = false;
            self.view()?.scan(table, (Bound::Included(&from), to), false, &mut |key, row| {
                match decode_change(key, row) {
                    Some(change) => on = visit(change),
                    None => corrupt = true,
                }
                on && !corrupt
            })?;
            if corrupt {
                return Err(StoreError::Corrupt { table: table.0 });
            }
        }
        for change in store.tail.since(revision) {
            if !on {
                break;
            }
            on = visit(change.clone());
        }
        Ok(())
    }
}

/// The key of a change's row.
pub(super) fn row_key(change: &Change) -> Bytes {
    change.rev.row_key(change.kind == EventKind::Delete).into()
}

/// The row of a change: the bytes etcd stores.
pub(super) fn row_value(change: &Change) -> Bytes {
    match change.kind {
        EventKind::Put => change.kv.encode_to_vec().into(),
        EventKind::Delete => KeyValue { key: change.kv.key.clone(), ..KeyValue::default() }.encode_to_vec().into(),
    }
}

fn decode_change(key: &[u8], row: &[u8]) -> Option<Change> {
    decode_change_shared(key, Bytes::copy_from_slice(row))
}

fn decode_change_shared(key: &[u8], row: Bytes) -> Option<Change> {
    let (rev, tombstone) = Rev::parse(key)?;
    let mut kv = KeyValue::decode(row).ok()?;
    if tombstone == (kv.version > 0) || kv.key.is_empty() {
        return None;
    }
    kv.mod_revision = rev.main;
    let kind = if tombstone { EventKind::Delete } else { EventKind::Put };
    Some(Change { rev, kind, kv })
}

fn row_bytes(change: &Change) -> u64 {
    match change.kind {
        EventKind::Put => row_bytes_of(17, change.kv.encoded_len()),
        EventKind::Delete => row_bytes_of(18, prost::encoding::bytes::encoded_len(1, &change.kv.key)),
    }
}

const fn row_bytes_of(key_len: usize, row_len: usize) -> u64 {
    (key_len + row_len) as u64 + ROW_OVERHEAD
}

fn lease_key(id: LeaseId) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

const MARK_KEY: &[u8] = b"mark";
const FORMAT: u32 = 1;
/// What a row costs beside its bytes: checksum, lengths, the tree above it.
const ROW_OVERHEAD: u64 = 32;
/// What a lease counts for the quota.
const LEASE_BYTES: u64 = 64;
