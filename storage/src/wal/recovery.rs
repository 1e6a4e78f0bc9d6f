//! Reading a log back, and the verdict on every batch and entry: *ok*, *torn*, *faulty*, *absent* (DESIGN §3).
//!
//! The scan walks each segment batch by batch; a batch must chain to the one before (seq, commit CRC, boot). Where the
//! walk breaks, behind batch `n`, everything further on in the segment is searched for **proof**: the highest
//! watermark of an intact header or commit frame behind the break, and the first batch of any later segment (a roll
//! syncs the old segment before the new one gets its name). A segment's own checkpoint is proven by its name.
//!
//! ```text
//!          n          break                      proof ≤ n: torn. Nobody was told: cut here.
//! ──┬──────┬──────┬─ ? ? ? ? ─┬──────┬           proof > n: faulty. n+1 ..= proof existed: keep the holes,
//!   │  ok  │  ok  │           │ w=42 │           salvage records that are intact alone, go on behind.
//! ```
//!
//! 1. What is cut can never come back: each opening writes a batch with a new boot number at the cut, so stale bytes
//!    chain to nothing, and their watermarks lie below the cut.
//! 2. A stream that may have lost a write of which nothing is left is in *doubt*, until its own write counter shows
//!    that it lost none.
//! 3. Damage below the first segment still needed is no news: tables and bases behind it say all there is to know.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{
    BATCH_HEADER, BLOCK, BatchHeader, Body, COMMIT, CommitFrame, DATA_START, EntryRecord, FLAG_CHECKPOINT, FLAG_CLEAN,
    FLAG_DOUBT, NewerVersion, Piece, Record, Salt, SegmentHeader, TableRecord, VERSION, WriteRecord,
};
use super::index::{Segment, Slot, StreamLog};
use super::types::{OpenError, Recovered, RecoveredStream, Verdicts};
use crate::{Disk, DiskFile, Epoch, Index, IoSeq, OpenMode, StreamId};

/// Everything `open` needs to go on writing.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) streams: BTreeMap<StreamId, StreamReplay>,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    /// The last accepted batch.
    pub(super) seq: u64,
    pub(super) chain: Option<u32>,
    pub(super) boot: u64,
    /// The oldest segment still needed.
    pub(super) first_segment: u64,
    pub(super) last_segment: u64,
    /// Where writing goes on; `None` when the last segment is unusable.
    pub(super) tail: Option<Tail>,
    /// A lost batch may have held the only writes of a stream nobody knows of.
    pub(super) doubt: bool,
    clean: bool,
    watermark: u64,
    verdicts: Verdicts,
    faulty_in: BTreeMap<u64, u64>,
    /// The write whose entries are being read: its stream and last index.
    open_write: Option<(StreamId, Index)>,
}

/// The end of the last segment.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) segment: Arc<Segment>,
    pub(super) position: u64,
    /// Batches that no watermark proves: perhaps only in a cache. Written again before anything is built on them.
    pub(super) unproven: Option<(u64, Vec<u8>)>,
    /// All its bytes, when nothing follows the checkpoint: then nothing proves its name either.
    pub(super) nameless: Option<Vec<u8>>,
}

/// One stream while it is read back.
#[derive(Debug, Default)]
pub(super) struct StreamReplay {
    pub(super) log: StreamLog,
    pub(super) seq: IoSeq,
    pub(super) epoch: Epoch,
    pub(super) count: u32,
    pub(super) state: Option<Bytes>,
    pub(super) state_faulty: bool,
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// A damaged place may have held a write of this stream.
    Suspect,
    /// It did: entries up to here may be others than we hold.
    Tainted(Index),
}

/// A header or commit frame found behind a break.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    start: usize,
    end: usize,
    seq: u64,
    watermark: u64,
    header: Option<BatchHeader>,
}

struct OpenedFile {
    seq: u64,
    path: String,
    file: Arc<dyn DiskFile>,
    header: Option<SegmentHeader>,
}

/// Reads the log in `dir`.
pub(super) fn recover(disk: &dyn Disk, dir: &str) -> Result<Replay, OpenError> {
    let mut files = Vec::new();
    for name in disk.list(dir)? {
        if let Some(seq) = segment_seq(&name) {
            files.push(open_file(disk, seq, format!("{dir}/{name}"))?);
        }
    }
    let replay = replay_from(&files, 0)?;
    let stale_damage = replay.faulty_in.keys().any(|segment| *segment < replay.first_segment);
    if stale_damage {
        // The damage lies below what is needed (a freed segment came back, say): read again without it.
        return replay_from(&files, replay.first_segment);
    }
    Ok(replay)
}

fn replay_from(files: &[OpenedFile], from: u64) -> Result<Replay, OpenError> {
    let mut replay = Replay { last_segment: from.saturating_sub(1), ..Replay::default() };
    let files: Vec<&OpenedFile> = files.iter().filter(|f| f.seq >= from).collect();
    for (i, opened) in files.iter().enumerate() {
        // The next segment's first batch proves all before it.
        let next = files.iter().skip(i + 1).find_map(|f| f.header);
        let floor = next.map_or(0, |h| h.first_batch.saturating_sub(1));
        replay.read_segment(opened, floor, i == 0, i + 1 == files.len())?;
    }
    Ok(replay)
}

/// The number in a segment's file name.
pub(super) fn segment_seq(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".seg")?;
    if hex.len() == 16 { u64::from_str_radix(hex, 16).ok() } else { None }
}

fn open_file(disk: &dyn Disk, seq: u64, path: String) -> Result<OpenedFile, OpenError> {
    let file = disk.open(&path, OpenMode::Write)?;
    let mut head = vec![0; 2 * BLOCK];
    let got = file.read_at(0, &mut head)?;
    head.truncate(got);
    match SegmentHeader::decode(&head) {
        Ok(header) => Ok(OpenedFile { seq, path, file, header: header.filter(|h| h.seq == seq) }),
        Err(NewerVersion(found)) => Err(OpenError::Version { path, found, supported: VERSION }),
    }
}

impl Replay {
    fn read_segment(
        &mut self,
        opened: &OpenedFile,
        floor: u64,
        is_first: bool,
        is_last: bool,
    ) -> Result<(), OpenError> {
        let gap = self.last_segment != 0 && opened.seq != self.last_segment + 1;
        if gap {
            self.lose(self.last_segment + 1, 1);
        }
        self.last_segment = opened.seq;
        self.tail = None;
        let Some(header) = opened.header else {
            tracing::warn!(segment = opened.seq, "log segment without an intact header");
            self.lose(opened.seq, 1);
            return Ok(());
        };
        let before = header.first_batch.saturating_sub(1);
        if !is_first && before > self.seq {
            self.lose(opened.seq, before - self.seq);
        }
        self.seq = before;
        self.chain = Some(header.chain);
        let segment = Arc::new(Segment {
            seq: opened.seq,
            path: opened.path.clone(),
            file: Arc::clone(&opened.file),
            size: header.size,
            salt: Salt::new(header.salt),
        });
        let bytes = read_all(&*opened.file, header.size)?;
        // A segment gets its name after its checkpoint is durable: the name proves it.
        let (end, unproven) = self.walk(&segment, &bytes, floor.max(header.first_batch));
        if is_last {
            let unproven = unproven.and_then(|start| Some((start as u64, bytes.get(start..end)?.to_vec())));
            let nameless = if self.seq <= header.first_batch { bytes.get(..end).map(<[u8]>::to_vec) } else { None };
            self.tail = Some(Tail { segment: Arc::clone(&segment), position: end as u64, unproven, nameless });
        }
        self.segments.insert(opened.seq, segment);
        Ok(())
    }

    /// Reads batch after batch. Returns where the log ends, and where its first unproven batch starts.
    fn walk(&mut self, segment: &Segment, bytes: &[u8], floor: u64) -> (usize, Option<usize>) {
        let mut at = DATA_START as usize;
        let mut starts: Vec<(u64, usize)> = Vec::new();
        loop {
            if let Some(header) = self.next_header(bytes, at, segment.salt)
                && let Some(crc) = verify(bytes, at, &header, segment.salt)
            {
                starts.push((header.seq, at));
                self.accept(segment, bytes, at, &header, crc);
                at += header.total as usize;
            } else if let Some(next) = self.cross_break(segment, bytes, at, floor) {
                starts.clear();
                at = next;
            } else {
                break;
            }
        }
        let unproven = starts.iter().find(|(seq, _)| *seq > self.watermark).map(|(_, start)| *start);
        (at, unproven)
    }

    /// The header at `at`, if it continues the chain.
    fn next_header(&self, bytes: &[u8], at: usize, salt: Salt) -> Option<BatchHeader> {
        let header = BatchHeader::decode(bytes.get(at..at + BATCH_HEADER)?, salt)?;
        let chained = self.chain.is_none_or(|chain| chain == header.chain);
        let fits = at + header.total as usize <= bytes.len();
        (header.seq == self.seq + 1 && chained && header.boot >= self.boot && fits).then_some(header)
    }

    fn accept(&mut self, segment: &Segment, bytes: &[u8], at: usize, header: &BatchHeader, crc: u32) {
        self.verdicts.batches_ok += 1;
        self.note(header);
        self.chain = Some(crc);
        let directory = at + BATCH_HEADER..at + BATCH_HEADER + header.directory as usize;
        let tags = header.seq - 1..header.seq;
        self.apply(segment, bytes, directory, &tags);
    }

    fn note(&mut self, header: &BatchHeader) {
        self.seq = header.seq;
        self.boot = header.boot;
        self.watermark = self.watermark.max(header.watermark);
        self.first_segment = self.first_segment.max(header.first_segment);
        self.clean = header.flags & FLAG_CLEAN != 0;
        if header.flags & FLAG_CHECKPOINT != 0 {
            // It lists every stream its writer knew.
            self.doubt = header.flags & FLAG_DOUBT != 0;
        }
    }

    /// Judges the break at `at`. `Some(next)`: faulty, read on there. `None`: the log ends here.
    fn cross_break(&mut self, segment: &Segment, bytes: &[u8], at: usize, floor: u64) -> Option<usize> {
        let n = self.seq;
        let candidates = self.candidates(bytes, at, segment.salt);
        let proof = candidates.iter().map(|c| c.watermark).max().unwrap_or(0).max(floor);
        if proof <= n {
            self.verdicts.batches_torn += candidates.len() as u64;
            return None;
        }
        self.clean = false;
        if let Some(header) = self.next_header(bytes, at, segment.salt) {
            return Some(self.salvage_batch(segment, bytes, at, &header));
        }
        let next = next_whole(bytes, &candidates, n, proof, segment.salt);
        let evidence = candidates.iter().filter(|c| c.seq <= proof || c.watermark > n).max_by_key(|c| c.seq);
        let (upto, end) = match (next, evidence) {
            (Some(next), _) => (next.seq - 1, next.start),
            (None, _) if floor > n => (floor, bytes.len()),
            (None, Some(evidence)) => (evidence.seq, evidence.end),
            (None, None) => (proof, bytes.len()),
        };
        self.lose(segment.seq, upto.saturating_sub(n).max(1));
        self.apply(segment, bytes, at..end, &(n..upto));
        self.seq = upto;
        self.chain = None;
        if let (None, Some(header)) = (next, evidence.and_then(|e| e.header)) {
            self.note(&header);
            self.seq = upto;
        }
        Some(end)
    }

    /// A proven batch with an intact header and damage elsewhere: what is intact alone is kept.
    fn salvage_batch(&mut self, segment: &Segment, bytes: &[u8], at: usize, header: &BatchHeader) -> usize {
        let end = at + header.total as usize;
        *self.faulty_in.entry(segment.seq).or_default() += 1;
        self.note(header);
        self.clean = false;
        let directory = at + BATCH_HEADER..at + BATCH_HEADER + header.directory as usize;
        let whole = self.apply(segment, bytes, directory, &(header.seq - 1..header.seq));
        if !whole {
            self.suspect_all();
        }
        let frame = bytes.get(end - COMMIT..end).and_then(|b| CommitFrame::decode(b, segment.salt));
        self.chain = frame.filter(|f| f.seq == header.seq).map(|f| f.crc);
        tracing::warn!(segment = segment.seq, batch = header.seq, "log batch is faulty");
        end
    }

    /// Batches existed and are lost, and nobody knows whose writes they held.
    fn lose(&mut self, segment: u64, batches: u64) {
        tracing::warn!(segment, batches, "log batches are faulty");
        *self.faulty_in.entry(segment).or_default() += batches;
        self.clean = false;
        self.suspect_all();
    }

    fn suspect_all(&mut self) {
        self.doubt = true;
        for stream in self.streams.values_mut() {
            stream.doubt.get_or_insert(Doubt::Suspect);
        }
    }

    /// All intact headers and commit frames behind a break that claim to come later, one a batch, by start.
    fn candidates(&self, bytes: &[u8], at: usize, salt: Salt) -> Vec<Candidate> {
        let mut found: BTreeMap<usize, Candidate> = BTreeMap::new();
        for start in (at..bytes.len()).step_by(BLOCK) {
            let header = bytes.get(start..start + BATCH_HEADER).and_then(|b| BatchHeader::decode(b, salt));
            if let Some(h) = header.filter(|h| h.seq > self.seq && h.boot >= self.boot) {
                let (seq, watermark, end) = (h.seq, h.watermark, start + h.total as usize);
                found.insert(start, Candidate { start, end, seq, watermark, header: Some(h) });
            }
            let end = start + BLOCK;
            let frame = bytes.get(end - COMMIT..end).and_then(|b| CommitFrame::decode(b, salt));
            let Some(frame) = frame.filter(|f| f.seq > self.seq) else { continue };
            let Some(start) = end.checked_sub(frame.total as usize).filter(|start| *start >= at) else { continue };
            let (seq, watermark) = (frame.seq, frame.watermark);
            found.entry(start).or_insert(Candidate { start, end, seq, watermark, header: None });
        }
        found.into_values().collect()
    }

    /// Applies the records in `range`, skipping what is damaged. `true` when nothing was.
    fn apply(&mut self, segment: &Segment, bytes: &[u8], range: Range<usize>, tags: &Range<u64>) -> bool {
        let mut at = range.start;
        let mut whole = true;
        while at < range.end {
            let record = bytes.get(at..range.end).and_then(|b| Record::decode(b, segment.salt));
            let ours = record.filter(|r| u64::from(r.tag.wrapping_sub(tags.start as u32 + 1)) < tags.end - tags.start);
            if let Some(record) = ours {
                self.on_record(segment, bytes, at, &record);
                at += record.len;
            } else {
                whole = false;
                at += 8;
            }
        }
        self.finish_write();
        whole
    }

    fn on_record(&mut self, segment: &Segment, bytes: &[u8], at: usize, record: &Record<'_>) {
        match record.body {
            Body::Write(write) => {
                self.finish_write();
                let stream = self.streams.entry(record.stream).or_default();
                stream.on_write(&write, bytes);
                if write.entries > 0 {
                    self.open_write = Some((record.stream, Index(write.first.0 + u64::from(write.entries) - 1)));
                }
            }
            Body::Entry(entry) => {
                let stream = self.streams.entry(record.stream).or_default();
                stream.on_entry(segment, bytes, at, &entry);
            }
            Body::Base(base) => self.streams.entry(record.stream).or_default().log.release(base),
            Body::Table(table) => {
                let known = self.streams.contains_key(&record.stream);
                self.streams.entry(record.stream).or_default().on_table(&table, known, bytes);
            }
        }
    }

    /// Entries that a write announced and that were not found are holes.
    fn finish_write(&mut self) {
        if let Some((id, last)) = self.open_write.take()
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.log.push_holes(last);
        }
    }

    /// What to tell the embedder.
    pub(super) fn recovered(&self) -> Recovered {
        let mut verdicts = self.verdicts;
        verdicts.batches_faulty = self.faulty_in.range(self.first_segment..).map(|(_, n)| n).sum();
        let streams: BTreeMap<StreamId, RecoveredStream> =
            self.streams.iter().map(|(id, stream)| (*id, stream.recovered())).collect();
        for stream in self.streams.values() {
            let lost = stream.log.hole_count();
            verdicts.entries_faulty += lost;
            verdicts.entries_ok += stream.log.len() as u64 - lost;
        }
        let clean = self.clean && verdicts.batches_faulty == 0;
        Recovered { streams, doubt: self.doubt, verdicts, clean, boot: self.boot + 1 }
    }
}

impl StreamReplay {
    fn on_write(&mut self, write: &WriteRecord, bytes: &[u8]) {
        let lost_one = write.count != self.count.wrapping_add(1);
        if !lost_one && self.doubt == Some(Doubt::Suspect) {
            self.doubt = None;
        }
        if let Some(base) = write.reset {
            self.log.reset(base);
        }
        if let Some(index) = write.truncate_from {
            self.log.truncate_from(index);
            if let Some(Doubt::Tainted(upto)) = &mut self.doubt {
                *upto = index.prev().min(*upto);
            }
        }
        if write.entries > 0 {
            self.log.truncate_from(write.first);
            self.log.push_holes(write.first.prev());
        }
        if lost_one {
            self.state_faulty = true;
            self.doubt = Some(Doubt::Tainted(self.log.last_index()));
        }
        if write.reset.is_some() {
            self.doubt = None;
        }
        if let Some(piece) = write.state {
            self.take_state(Some(piece), false, bytes);
        }
        (self.seq, self.epoch, self.count) = (write.seq, write.epoch, write.count);
    }

    fn on_entry(&mut self, segment: &Segment, bytes: &[u8], at: usize, entry: &EntryRecord<'_>) {
        if entry.index <= self.log.base.index {
            return;
        }
        self.log.truncate_from(entry.index);
        self.log.push_holes(entry.index.prev());
        if !entry.pieces().all(|piece| piece_bytes(bytes, &piece).is_some()) {
            self.log.push_holes(entry.index);
            return;
        }
        let slot = Slot {
            segment: segment.seq as u32,
            record: at as u32,
            data: entry.data,
            len: u32::try_from(entry.payload_len()).unwrap_or(u32::MAX),
            sections: entry.sections() as u16,
        };
        self.log.push(entry.epoch, slot);
    }

    fn on_table(&mut self, table: &TableRecord, known: bool, bytes: &[u8]) {
        if !known {
            self.log.reset(table.base);
        } else if table.base.index > self.log.base.index {
            self.log.release(table.base);
        }
        self.log.truncate_from(table.last.index.next());
        self.log.push_holes(table.last.index);
        let lost_one = known && table.count != self.count;
        if lost_one || table.doubt {
            self.doubt = Some(Doubt::Tainted(table.last.index));
        } else if self.doubt == Some(Doubt::Suspect) {
            self.doubt = None;
        }
        self.take_state(table.state, table.state_faulty, bytes);
        (self.seq, self.epoch, self.count) = (table.seq, table.epoch, table.count);
    }

    fn take_state(&mut self, piece: Option<Piece>, known_faulty: bool, bytes: &[u8]) {
        let intact = piece.and_then(|piece| piece_bytes(bytes, &piece));
        self.state = intact.map(Bytes::copy_from_slice);
        self.state_faulty = known_faulty || (piece.is_some() && self.state.is_none());
    }

    pub(super) fn in_doubt(&self) -> bool {
        match self.doubt {
            None => false,
            Some(Doubt::Suspect) => true,
            Some(Doubt::Tainted(upto)) => upto > self.log.base.index,
        }
    }

    fn recovered(&self) -> RecoveredStream {
        RecoveredStream {
            state: self.state.clone().filter(|_| !self.state_faulty),
            state_faulty: self.state_faulty,
            base: self.log.base,
            last: self.log.last(),
            runs: self.log.runs().collect(),
            holes: self.log.holes(),
            doubt: self.in_doubt(),
            last_seq: self.seq,
            epoch: self.epoch,
        }
    }
}

/// The first whole batch behind a break that the proof covers, or that brings the proof.
fn next_whole(bytes: &[u8], candidates: &[Candidate], n: u64, proof: u64, salt: Salt) -> Option<Candidate> {
    let headers = candidates.iter().filter_map(|c| c.header);
    let best = headers.max_by_key(|h| (h.watermark, h.seq))?;
    candidates.iter().copied().find(|c| {
        let Some(h) = c.header else { return false };
        let covered = h.seq <= proof || h.watermark > n;
        // Stale bytes of an earlier boot claim numbers that the newer boot used again.
        let same_history = h.boot <= best.boot && (h.seq < best.boot_first || h.boot == best.boot);
        covered && same_history && verify(bytes, c.start, &h, salt).is_some()
    })
}

/// The commit CRC of the batch at `at`, if all of it is intact: header, directory, payload, commit frame.
fn verify(bytes: &[u8], at: usize, header: &BatchHeader, salt: Salt) -> Option<u32> {
    let end = at.checked_add(header.total as usize)?;
    let frame = CommitFrame::decode(bytes.get(end - COMMIT..end)?, salt)?;
    let directory_end = at + BATCH_HEADER + header.directory as usize;
    let crc = salt.crc(bytes.get(at..directory_end)?);
    if frame.seq != header.seq || frame.crc != crc || frame.total != header.total {
        return None;
    }
    let mut record_at = at + BATCH_HEADER;
    while record_at < directory_end {
        let record = Record::decode(bytes.get(record_at..directory_end)?, salt)?;
        let intact = match record.body {
            Body::Entry(entry) => entry.pieces().all(|piece| piece_bytes(bytes, &piece).is_some()),
            Body::Write(WriteRecord { state: Some(piece), .. })
            | Body::Table(TableRecord { state: Some(piece), .. }) => piece_bytes(bytes, &piece).is_some(),
            _ => true,
        };
        if !intact {
            return None;
        }
        record_at += record.len;
    }
    Some(crc)
}

/// The bytes of `piece`, if they match their checksum.
fn piece_bytes<'b>(bytes: &'b [u8], piece: &Piece) -> Option<&'b [u8]> {
    let start = piece.offset as usize;
    let found = bytes.get(start..start.checked_add(piece.len as usize)?)?;
    (crc32c::crc32c(found) == piece.crc).then_some(found)
}

fn read_all(file: &dyn DiskFile, size: u64) -> Result<Vec<u8>, OpenError> {
    let len = file.len()?.min(size);
    let len = usize::try_from(len).map_err(|_| OpenError::Config("segment larger than memory"))?;
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let Some(rest) = bytes.get_mut(at..) else { break };
        let got = file.read_at(at as u64, rest)?;
        if got == 0 {
            break;
        }
        at += got;
    }
    Ok(bytes)
}
