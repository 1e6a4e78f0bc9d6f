//! The write-ahead log of one member: many streams, one sequence of group commits, one sync for all that wait.
//!
//! It does not know what an entry means, and it starts no thread: whoever owns the [`Wal`] calls `append` and `sync`,
//! while any number of [`WalReader`]s read, unsynced entries included.
//!
//! ```text
//! append(batches) ─▶ one write ─▶ readable ─▶ sync() ─▶ durable ─▶ act on it
//!      │                                        │
//!      └─ NoSpace: nothing happened             └─ error: poisoned, open again (never retried)
//! ```
//!
//! 1. A batch is recovered whole or not at all, or it is reported as faulty.
//! 2. A batch whose `sync` returned is recovered, or reported as faulty; the one exception is the last batch before a
//!    power loss that damage hits too: policy `watermark` takes it for torn (DESIGN §3).
//! 3. A batch that was cut at an opening never comes back.
//! 4. A segment is freed only when a durable batch says that no stream needs it, and nobody pins it.

mod format;
mod index;
mod pool;
mod reader;
mod recovery;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use self::format::{
    BATCH_HEADER, BatchHeader, COMMIT, CommitFrame, DATA_START, FLAG_CHECKPOINT, FLAG_CLEAN, FLAG_DOUBT, FLAG_OPEN,
    Piece, RecordWriter, Salt, SegmentHeader, TableRecord, WriteRecord,
};
use self::index::{LogIndex, Segment, Slot, StreamLog};
use self::pool::Pool;
pub use self::reader::{Pin, WalReader};
use self::recovery::Replay;
pub use self::types::{
    Appended, Hole, OpenError, ReadError, Recovered, RecoveredStream, Verdicts, WalConfig, WalError,
};
use crate::{Disk, DiskError, Epoch, Index, IoSeq, Position, StreamBatch, StreamId};

/// The log's one writer.
///
/// A batch is recovered whole or not at all, or reported as faulty; what [`sync`](Self::sync) covered is recovered or
/// reported as faulty, but for the last batch before a power loss if damage hits it too (policy `watermark`); what an
/// opening cut never comes back.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: String,
    config: WalConfig,
    shared: Arc<Shared>,
    pool: Pool,
    /// `None` until the first segment is made, or when the last one is unusable.
    segment: Option<Arc<Segment>>,
    /// Where the next batch goes.
    position: u64,
    last_segment: u64,
    next_seq: u64,
    chain: u32,
    boot: u64,
    boot_first: u64,
    /// Invariant: every batch up to it is durable; never beyond `next_seq - 1`.
    durable: u64,
    tails: BTreeMap<StreamId, Tail>,
    /// Streams whose base moved since the last batch.
    moved: BTreeSet<StreamId>,
    /// The oldest segment still needed, as the last batch says; what is older is freed once it is durable.
    first_segment: u64,
    /// Writes of unknown streams may be lost (see [`Recovered::doubt`]); every checkpoint says so again.
    doubt: bool,
    poisoned: bool,
    /// Scratch for one batch: header, directory, small payloads, commit frame. Kept, so that a write allocates nothing.
    buf: Vec<u8>,
    slots: Vec<Slot>,
    /// Scratch for one commit: base and last index of the streams it writes.
    places: BTreeMap<StreamId, (Index, Index)>,
}

/// What the writer knows of a stream, beside the index.
#[derive(Clone, Debug, Default)]
struct Tail {
    base: Position,
    last: Index,
    seq: IoSeq,
    epoch: Epoch,
    count: u32,
    state: Option<Bytes>,
    state_faulty: bool,
    doubt: bool,
}

/// What the writer and its readers share.
#[derive(Debug, Default)]
struct Shared {
    index: RwLock<LogIndex>,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, LogIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, LogIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sizes of a batch before it is encoded.
#[derive(Clone, Copy, Debug)]
struct Plan {
    directory: u64,
    payload: u64,
}

impl Plan {
    fn total(self) -> u64 {
        format::batch_total(self.directory, self.payload)
    }
}

/// What goes into one batch.
#[derive(Clone, Copy)]
struct Content<'a> {
    flags: u16,
    batches: &'a [StreamBatch],
    /// Base records of the streams in `moved`.
    bases: bool,
    /// A table record of every stream.
    tables: bool,
}

impl Wal {
    /// Opens the log in `dir`, or makes one, and says what was found.
    ///
    /// When it returns, all it reports is durable, and covered by a watermark. Reads every live byte once.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(disk: Arc<dyn Disk>, dir: &str, config: WalConfig) -> Result<(Self, Recovered), OpenError> {
        validate(&config)?;
        disk.create_dir_all(dir)?;
        let replay = recovery::recover(&*disk, dir)?;
        let recovered = replay.recovered();
        // What was read may be in a cache only: names first, then the batches that no watermark proves.
        for dir in above(dir) {
            disk.sync_dir(dir)?;
        }
        if let Some(tail) = &replay.tail {
            if let Some((start, bytes)) = &tail.unproven {
                tail.segment.file.write_at(*start, bytes)?;
            }
            tail.segment.file.sync()?;
        }
        let mut wal = Self::from_replay(disk, dir, config, &replay)?;
        if let Some((tail, bytes)) = replay.tail.as_ref().and_then(|tail| Some((tail, tail.nameless.as_ref()?))) {
            wal.name_anew(&tail.segment, bytes)?;
            wal.pool = Pool::open(Arc::clone(&wal.disk), dir, &wal.config, replay.first_segment)?;
        }
        wal.say_open()?;
        wal.pool.fill_reserve()?;
        Ok((wal, recovered))
    }

    fn from_replay(disk: Arc<dyn Disk>, dir: &str, config: WalConfig, replay: &Replay) -> Result<Self, OpenError> {
        let mut index = LogIndex::default();
        let mut tails = BTreeMap::new();
        for (id, stream) in &replay.streams {
            let doubt = stream.in_doubt();
            let tail = Tail {
                base: stream.log.base,
                last: stream.log.last_index(),
                seq: stream.seq,
                epoch: stream.epoch,
                // In doubt, the next write must not look like the one that may be lost.
                count: stream.count.wrapping_add(u32::from(doubt)),
                state: stream.state.clone().filter(|_| !stream.state_faulty),
                state_faulty: stream.state_faulty,
                doubt,
            };
            tails.insert(*id, tail);
            index.streams.insert(*id, stream.log.clone());
        }
        index.segments = replay.segments.range(replay.first_segment..).map(|(k, v)| (*k, Arc::clone(v))).collect();
        let tail = replay.tail.as_ref();
        // What only a segment of doubtful name calls free is not free yet.
        let is_nameless = tail.is_some_and(|tail| tail.nameless.is_some());
        let free_below = if is_nameless { 0 } else { replay.first_segment };
        let pool = Pool::open(Arc::clone(&disk), dir, &config, free_below)?;
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            shared: Arc::new(Shared { index: RwLock::new(index) }),
            pool,
            segment: tail.map(|tail| Arc::clone(&tail.segment)),
            position: tail.map_or(0, |tail| tail.position),
            last_segment: replay.last_segment,
            next_seq: replay.seq + 1,
            chain: replay.chain.unwrap_or(0),
            boot: replay.boot + 1,
            boot_first: replay.seq + 1,
            durable: replay.seq,
            tails,
            moved: BTreeSet::new(),
            first_segment: replay.first_segment,
            doubt: replay.doubt,
            poisoned: false,
            buf: Vec::new(),
            slots: Vec::new(),
            places: BTreeMap::new(),
            config,
        })
    }

    /// Puts `bytes`, all that `segment` holds, under its name once more. The sync of the directory may have failed
    /// when it was made, and a later one that succeeds proves nothing of that name; a batch behind the checkpoint does.
    fn name_anew(&mut self, segment: &Segment, bytes: &[u8]) -> Result<(), DiskError> {
        let (path, file) = self.pool.take(segment.size, true)?;
        file.write_at(0, bytes)?;
        let Segment { seq, size, salt, .. } = *segment;
        let segment = Arc::new(Segment { seq, path: segment.path.clone(), file, size, salt });
        self.publish(&path, &segment)?;
        self.shared.write().segments.insert(seq, Arc::clone(&segment));
        self.segment = Some(segment);
        Ok(())
    }

    /// Marks this opening, durably: whatever was cut can no longer chain to anything.
    fn say_open(&mut self) -> Result<(), OpenError> {
        let content = Content { flags: FLAG_OPEN, batches: &[], bases: false, tables: false };
        self.put(content, true).and_then(|_| self.sync()).map_err(|error| match error {
            WalError::Disk(error) => OpenError::Disk(error),
            _ => OpenError::Disk(DiskError::NoSpace { path: self.dir.clone() }),
        })
    }

    /// Writes `batches` as one group commit: recovered all or none. Readable at once, durable after
    /// [`sync`](Self::sync). Without batches it writes only what [`release`](Self::release) left to say, if anything.
    ///
    /// # Errors
    /// See [`WalError`]. After `NoSpace`, `TooLarge` and `Gap` nothing has changed.
    pub fn append(&mut self, batches: &[StreamBatch]) -> Result<Appended, WalError> {
        self.append_with(batches, false)
    }

    /// As [`append`](Self::append), and may use the reserved segment when the disk is full: for deletes, compaction and
    /// revokes, which free space.
    ///
    /// # Errors
    /// See [`WalError`].
    pub fn append_reserved(&mut self, batches: &[StreamBatch]) -> Result<Appended, WalError> {
        self.append_with(batches, true)
    }

    fn append_with(&mut self, batches: &[StreamBatch], reserved: bool) -> Result<Appended, WalError> {
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        if batches.is_empty() && self.moved.is_empty() {
            return Ok(Appended { seq: self.next_seq - 1, bytes: 0 });
        }
        self.check_places(batches)?;
        if !reserved && !batches.is_empty() {
            self.keep_reserve()?;
        }
        let content = Content { flags: 0, batches, bases: true, tables: false };
        match self.put(content, reserved) {
            // Full to the last, and a release not yet told: telling it may free a segment.
            Err(WalError::NoSpace) if reserved && !self.moved.is_empty() => {
                self.put(Content { batches: &[], ..content }, true)?;
                self.sync()?;
                self.put(content, true)
            }
            done => done,
        }
    }

    /// Makes every appended batch durable, and frees the segments that nobody needs any more.
    ///
    /// # Errors
    /// The log is poisoned: what was not durable is lost or unknown. Stop and open again.
    pub fn sync(&mut self) -> Result<(), WalError> {
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        if self.durable + 1 < self.next_seq {
            if let Some(segment) = &self.segment {
                segment.file.sync().map_err(|error| poison(&mut self.poisoned, error))?;
            }
            self.durable = self.next_seq - 1;
        }
        self.free()
    }

    /// Forgets the entries of `stream` up to `upto`, at most all it has. Durable with the next synced batch, which also
    /// frees the space. The entries are unreadable at once, except through a [`Pin`].
    pub fn release(&mut self, stream: StreamId, upto: Index) {
        let Some(tail) = self.tails.get_mut(&stream) else { return };
        let mut index = self.shared.write();
        let Some(log) = index.streams.get_mut(&stream) else { return };
        let base = log.position(upto.min(log.last_index()));
        if base.index > log.base.index {
            log.release(base);
            tail.base = base;
            self.moved.insert(stream);
        }
    }

    /// Whether [`release`](Self::release) left something to say that no batch has said yet.
    pub fn has_releases(&self) -> bool {
        !self.moved.is_empty()
    }

    /// A reader; it stays valid when the writer is poisoned or dropped.
    pub fn reader(&self) -> WalReader {
        WalReader::new(Arc::clone(&self.shared))
    }

    /// The number of the last batch appended, and of the last one durable.
    pub fn progress(&self) -> (u64, u64) {
        (self.next_seq - 1, self.durable)
    }

    /// Whether an earlier failure ended this log's life.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Bytes of the segments in use, spares and reserve not counted.
    pub fn bytes_used(&self) -> u64 {
        self.shared.read().segments.values().map(|segment| segment.size).sum()
    }

    /// Writes a clean mark, syncs, and ends.
    ///
    /// # Errors
    /// As for [`sync`](Self::sync).
    pub fn close(mut self) -> Result<(), WalError> {
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        let content = Content { flags: FLAG_CLEAN, batches: &[], bases: true, tables: false };
        match self.put(content, true) {
            Ok(_) | Err(WalError::NoSpace) => self.sync(),
            Err(error) => Err(error),
        }
    }

    /// Whether the entries of `batches` fit behind what the streams hold.
    fn check_places(&mut self, batches: &[StreamBatch]) -> Result<(), WalError> {
        self.places.clear();
        for batch in batches {
            let stream = batch.stream;
            let tail = || self.tails.get(&stream).map(|tail| (tail.base.index, tail.last));
            let (mut base, mut last) = self.places.get(&stream).copied().or_else(tail).unwrap_or_default();
            if let Some(reset) = batch.reset {
                (base, last) = (reset.index, reset.index);
            }
            if let Some(index) = batch.truncate_from {
                if index <= base {
                    return Err(WalError::Gap { stream, expected: base.next(), got: index });
                }
                last = last.min(index.prev());
            }
            for entry in &batch.entries {
                let (expected, got) = (last.next(), entry.position.index);
                if got != expected {
                    return Err(WalError::Gap { stream, expected, got });
                }
                last = got;
            }
            self.places.insert(stream, (base, last));
        }
        Ok(())
    }

    /// Ordinary writes wait until the reserve is whole again: what it has left is for those that free space.
    fn keep_reserve(&mut self) -> Result<(), WalError> {
        match self.pool.fill_reserve() {
            Ok(()) if self.pool.lacks_reserve() => Err(WalError::NoSpace),
            Ok(()) => Ok(()),
            Err(error) => Err(poison(&mut self.poisoned, error)),
        }
    }

    /// Encodes and writes one batch, in a new segment if need be.
    fn put(&mut self, content: Content<'_>, reserved: bool) -> Result<Appended, WalError> {
        let plan = self.plan(content)?;
        let left = if content.batches.is_empty() { 0 } else { MARKS_BYTES };
        let fits = self.segment.as_ref().is_some_and(|segment| self.position + plan.total() + left <= segment.size);
        let mut content = content;
        let mut plan = plan;
        if !fits {
            self.roll(content.flags & FLAG_OPEN, plan.total(), reserved)?;
            if content.batches.is_empty() && content.flags & FLAG_CLEAN == 0 {
                // The checkpoint has said it all.
                return Ok(Appended { seq: self.next_seq - 1, bytes: self.position });
            }
            content.bases = false;
            plan = self.plan(content)?;
        }
        let Some(segment) = self.segment.clone() else { return Err(WalError::NoSpace) };
        self.write_batch(&segment, self.position, content, plan)?;
        self.apply(&segment, content.batches);
        if content.bases {
            self.moved.clear();
        }
        self.position += plan.total();
        Ok(Appended { seq: self.next_seq - 1, bytes: plan.total() })
    }

    fn plan(&self, content: Content<'_>) -> Result<Plan, WalError> {
        let bytes_max = self.config.batch_bytes_max;
        let mut plan = Plan { directory: 0, payload: 0 };
        if content.bases {
            plan.directory += (self.moved.len() * format::BASE_RECORD) as u64;
        }
        if content.tables {
            plan.directory += (self.tails.len() * format::TABLE_RECORD) as u64;
            plan.payload += self.tails.values().filter_map(|t| t.state.as_ref()).map(|s| s.len() as u64).sum::<u64>();
        }
        for batch in content.batches {
            plan.directory += format::WRITE_RECORD as u64;
            plan.payload += batch.state.as_ref().map_or(0, |state| state.len() as u64);
            for entry in &batch.entries {
                if entry.sections.len() > format::SECTIONS_MAX {
                    let (bytes, bytes_max) = (entry.sections.len() as u64, format::SECTIONS_MAX as u64);
                    return Err(WalError::TooLarge { bytes, bytes_max });
                }
                plan.directory += format::entry_record_len(entry.sections.len()) as u64;
                plan.payload += entry.payload_bytes() as u64;
            }
        }
        if !content.tables && plan.total() > bytes_max {
            return Err(WalError::TooLarge { bytes: plan.total(), bytes_max });
        }
        Ok(plan)
    }

    /// Encodes `content` for `position` of `segment` and writes it; on success the next batch chains to it.
    fn write_batch(
        &mut self,
        segment: &Segment,
        position: u64,
        content: Content<'_>,
        plan: Plan,
    ) -> Result<(), WalError> {
        let first_segment = self.needed_from(segment.seq);
        let header = BatchHeader {
            flags: content.flags,
            seq: self.next_seq,
            watermark: self.durable,
            boot: self.boot,
            boot_first: self.boot_first,
            first_segment,
            directory: plan.directory as u32,
            total: plan.total() as u32,
            chain: self.chain,
        };
        let mut buf = std::mem::take(&mut self.buf);
        let mut slots = std::mem::take(&mut self.slots);
        buf.clear();
        slots.clear();
        header.encode(segment.salt, &mut buf);
        let data = position as u32 + (BATCH_HEADER as u64 + plan.directory) as u32;
        self.encode_directory(segment, &mut buf, &mut slots, content, position as u32, data);
        debug_assert_eq!(buf.len() as u64, BATCH_HEADER as u64 + plan.directory, "the plan counts every record");
        let crc = segment.salt.crc(&buf);
        let mut cuts: Vec<(usize, &[u8])> = Vec::new();
        for piece in self.payload(content) {
            if piece.len() < COPY_BYTES_MAX {
                buf.extend_from_slice(piece);
            } else {
                cuts.push((buf.len(), piece));
            }
        }
        let padding = plan.total() - plan.payload - plan.directory - (BATCH_HEADER + COMMIT) as u64;
        buf.resize(buf.len() + padding as usize, 0);
        CommitFrame { crc, seq: header.seq, watermark: header.watermark, total: header.total }
            .encode(segment.salt, &mut buf);
        let written = write_parts(segment, position, &buf, &cuts);
        drop(cuts);
        self.buf = buf;
        self.slots = slots;
        match written {
            Ok(()) => {}
            Err(DiskError::NoSpace { .. }) => return Err(WalError::NoSpace),
            Err(error) => return Err(poison(&mut self.poisoned, error)),
        }
        self.chain = crc;
        self.first_segment = first_segment;
        self.next_seq += 1;
        Ok(())
    }

    fn encode_directory(
        &self,
        segment: &Segment,
        buf: &mut Vec<u8>,
        slots: &mut Vec<Slot>,
        content: Content<'_>,
        position: u32,
        mut data: u32,
    ) {
        let mut records = RecordWriter { out: buf, salt: segment.salt, tag: self.next_seq as u32 };
        if content.bases {
            for stream in &self.moved {
                records.base(*stream, self.tails.get(stream).map_or(Position::ZERO, |tail| tail.base));
            }
        }
        if content.tables {
            let index = self.shared.read();
            for (stream, tail) in &self.tails {
                let last = index.streams.get(stream).map_or(tail.base, StreamLog::last);
                let state = tail.state.as_ref().map(|state| piece(state, data));
                data += state.map_or(0, |piece| piece.len);
                records.table(*stream, &tail.record(last, state));
            }
        }
        for batch in content.batches {
            let payload: usize = batch.entries.iter().map(crate::Entry::payload_bytes).sum();
            let state = batch.state.as_ref().map(|state| piece(state, data + payload as u32));
            let count = self.tails.get(&batch.stream).map_or(0, |tail| tail.count);
            let earlier = content.batches.iter().take_while(|b| !std::ptr::eq(*b, batch));
            let earlier = earlier.filter(|b| b.stream == batch.stream).count() as u32;
            let write = WriteRecord {
                seq: batch.seq,
                epoch: batch.epoch,
                reset: batch.reset,
                truncate_from: batch.truncate_from,
                first: batch.entries.first().map_or(Index::ZERO, |entry| entry.position.index),
                entries: batch.entries.len() as u32,
                state,
                count: count.wrapping_add(1 + earlier),
            };
            records.write(batch.stream, &write);
            for entry in &batch.entries {
                let record = position + records.out.len() as u32;
                let len = records.entry(batch.stream, entry, data);
                let sections = entry.sections.len() as u16;
                slots.push(Slot { segment: segment.seq as u32, record, data, len, sections });
                data += len;
            }
            data += state.map_or(0, |piece| piece.len);
        }
    }

    /// Payload pieces in record order, as the directory counted them.
    fn payload<'a>(&'a self, content: Content<'a>) -> impl Iterator<Item = &'a [u8]> {
        let tables = self.tails.values().filter(move |_| content.tables).filter_map(|tail| tail.state.as_deref());
        let batches = content.batches.iter().flat_map(|batch| {
            let entries = batch.entries.iter();
            let pieces = entries.flat_map(|e| std::iter::once(&*e.head).chain(e.sections.iter().map(|s| &**s)));
            pieces.chain(batch.state.as_deref())
        });
        tables.chain(batches)
    }

    /// Makes `batches` visible; `self.slots` says where their entries are.
    fn apply(&mut self, segment: &Segment, batches: &[StreamBatch]) {
        let mut index = self.shared.write();
        let mut slots = self.slots.iter();
        for batch in batches {
            let log = index.streams.entry(batch.stream).or_default();
            let tail = self.tails.entry(batch.stream).or_default();
            if let Some(base) = batch.reset {
                log.reset(base);
                tail.base = base;
                tail.doubt = false;
            }
            if let Some(from) = batch.truncate_from {
                log.truncate_from(from);
            }
            for (entry, slot) in batch.entries.iter().zip(&mut slots) {
                debug_assert_eq!(u64::from(slot.segment), segment.seq);
                log.push(entry.position.epoch, *slot);
            }
            if let Some(state) = &batch.state {
                tail.state = Some(state.clone());
                tail.state_faulty = false;
            }
            tail.last = log.last_index();
            (tail.seq, tail.epoch, tail.count) = (batch.seq, batch.epoch, tail.count.wrapping_add(1));
        }
    }

    /// The oldest segment that any stream needs; `current` if none needs an older one.
    fn needed_from(&self, current: u64) -> u64 {
        if self.moved.is_empty() && self.first_segment == current {
            return current;
        }
        let index = self.shared.read();
        let oldest = index.streams.values().filter_map(StreamLog::first_segment).min();
        // Never back: what an earlier batch declared free may be gone already.
        oldest.unwrap_or(current).min(current).max(self.first_segment)
    }

    /// Ends the current segment durably and begins the next one with a checkpoint of every stream.
    fn roll(&mut self, flags: u16, needed: u64, reserved: bool) -> Result<(), WalError> {
        if let Some(segment) = &self.segment
            && self.durable + 1 < self.next_seq
        {
            segment.file.sync().map_err(|error| poison(&mut self.poisoned, error))?;
            self.durable = self.next_seq - 1;
        }
        let doubt = if self.doubt { FLAG_DOUBT } else { 0 };
        let flags = flags | FLAG_CHECKPOINT | doubt;
        let content = Content { flags, batches: &[], bases: false, tables: true };
        let plan = self.plan(content)?;
        let size = self.config.segment_bytes.max(DATA_START + plan.total() + needed + MARKS_BYTES);
        if size > SEGMENT_BYTES_MAX {
            return Err(WalError::TooLarge { bytes: size, bytes_max: SEGMENT_BYTES_MAX });
        }
        let (path, file) = match self.pool.take(size, reserved) {
            Ok(taken) => taken,
            Err(DiskError::NoSpace { .. }) => return Err(WalError::NoSpace),
            Err(error) => return Err(poison(&mut self.poisoned, error)),
        };
        let seq = self.last_segment + 1;
        let salt = format::segment_salt(self.config.salt, seq, self.boot);
        let header = SegmentHeader { seq, salt, size, first_batch: self.next_seq, chain: self.chain };
        let name = format!("{}/{seq:016x}.seg", self.dir);
        let segment = Arc::new(Segment { seq, path: name, file, size, salt: Salt::new(salt) });
        match segment.file.write_at(0, &header.encode()) {
            Ok(()) => {}
            Err(DiskError::NoSpace { .. }) => return Err(WalError::NoSpace),
            Err(error) => return Err(poison(&mut self.poisoned, error)),
        }
        self.write_batch(&segment, DATA_START, content, plan)?;
        // The checkpoint is durable before the segment has its name: a named segment is never empty.
        self.publish(&path, &segment).map_err(|error| poison(&mut self.poisoned, error))?;
        self.durable = self.next_seq - 1;
        self.last_segment = seq;
        self.position = DATA_START + plan.total();
        self.moved.clear();
        self.shared.write().segments.insert(seq, Arc::clone(&segment));
        self.segment = Some(segment);
        Ok(())
    }

    fn publish(&self, path: &str, segment: &Segment) -> Result<(), DiskError> {
        segment.file.sync()?;
        self.disk.rename(path, &segment.path)?;
        self.disk.sync_dir(&self.dir)
    }

    /// Frees the segments that a durable batch declared unneeded.
    fn free(&mut self) -> Result<(), WalError> {
        let freed = {
            let mut index = self.shared.write();
            let kept = index.segments.split_off(&self.first_segment);
            std::mem::replace(&mut index.segments, kept)
        };
        self.pool.give_back(freed.into_values()).map_err(|error| poison(&mut self.poisoned, error))
    }
}

impl Tail {
    fn record(&self, last: Position, state: Option<Piece>) -> TableRecord {
        TableRecord {
            seq: self.seq,
            epoch: self.epoch,
            base: self.base,
            last,
            count: self.count,
            doubt: self.doubt,
            state_faulty: self.state_faulty,
            state,
        }
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal")
            .field("dir", &self.dir)
            .field("boot", &self.boot)
            .field("next_seq", &self.next_seq)
            .field("durable", &self.durable)
            .field("segment", &self.last_segment)
            .field("position", &self.position)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

fn poison(poisoned: &mut bool, error: DiskError) -> WalError {
    tracing::warn!(%error, "log poisoned");
    *poisoned = true;
    WalError::Disk(error)
}

fn piece(bytes: &Bytes, offset: u32) -> Piece {
    Piece { offset, len: bytes.len() as u32, crc: crc32c::crc32c(bytes) }
}

/// One write: `buf`, with `cuts` (place in `buf`, bytes) let in.
fn write_parts(segment: &Segment, position: u64, buf: &[u8], cuts: &[(usize, &[u8])]) -> Result<(), DiskError> {
    if cuts.is_empty() {
        return segment.file.write_at(position, buf);
    }
    let mut parts: Vec<&[u8]> = Vec::with_capacity(2 * cuts.len() + 1);
    let mut from = 0;
    for (at, bytes) in cuts {
        parts.extend(buf.get(from..*at).filter(|part| !part.is_empty()));
        parts.push(bytes);
        from = *at;
    }
    parts.extend(buf.get(from..));
    segment.file.write_vectored_at(position, &parts)
}

fn validate(config: &WalConfig) -> Result<(), OpenError> {
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&config.segment_bytes) {
        return Err(OpenError::Config("segment_bytes must lie between 8 KiB and 1 GiB"));
    }
    if !config.segment_bytes.is_multiple_of(format::BLOCK as u64) {
        return Err(OpenError::Config("segment_bytes must be a multiple of 512"));
    }
    if config.batch_bytes_max > SEGMENT_BYTES_MAX {
        return Err(OpenError::Config("batch_bytes_max must be at most 1 GiB"));
    }
    Ok(())
}

/// `dir` and every directory above it, the root (`""`) first: each may be new.
fn above(dir: &str) -> impl Iterator<Item = &str> {
    let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
    std::iter::once("").chain(ends.filter_map(|end| dir.get(..end)).filter(|dir| !dir.is_empty()))
}

const SEGMENT_BYTES_MIN: u64 = 8 << 10;
/// Offsets are 32 bits wide; a segment made for one huge batch may reach twice this.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Room that writes leave at the end of a segment for a batch without any: releases, or the mark of an opening. So a
/// disk that is full to the last still takes the release that frees a segment.
const MARKS_BYTES: u64 = format::BLOCK as u64;
/// Payload pieces below this are copied beside their headers; larger ones are written from where they are.
const COPY_BYTES_MAX: usize = 2048;

#[cfg(test)]
mod tests;
