//! Reading the log while it is written. A reader looks up places under a short lock and reads the disk without it.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use super::format::{Body, EntryRecord, Piece, Record, entry_record_len};
use super::index::{LogIndex, Segment, Slot, StreamLog};
use super::types::ReadError;
use crate::{Entry, Index, Location, Position, Run, Section, StreamId};

/// Reads entries, appended or synced, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct WalReader {
    shared: Arc<Shared>,
}

/// Keeps the segments of a range of entries from being reused, so that a [`Location`] in it stays true even when the
/// entries are released meanwhile. Drop it soon: it holds disk space.
pub struct Pin {
    segments: Vec<Arc<Segment>>,
}

/// Entries whose records, and whose payloads, lie side by side in one segment.
struct Span {
    segment: Arc<Segment>,
    first: Index,
    slots: Vec<Slot>,
}

impl WalReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The entries of `range` that are there, as many as fit `bytes_max` of payload, but at least one; fewer also
    /// before a hole. Two disk reads for each group commit they came in; payloads share those buffers.
    ///
    /// # Errors
    /// When the first one cannot be had, see [`ReadError`]; [`ReadError::Disk`] and [`ReadError::Faulty`] also for a
    /// later one that fails while it is read.
    pub fn read(
        &self,
        stream: StreamId,
        range: RangeInclusive<Index>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let spans = self.spans(stream, &range, bytes_max)?;
        let mut entries = Vec::with_capacity(spans.iter().map(|span| span.slots.len()).sum());
        for span in &spans {
            span.read(stream, &mut entries)?;
        }
        Ok(entries)
    }

    /// Where a piece of an entry lies. `None` when there is no such section. One small disk read.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn locate(&self, stream: StreamId, index: Index, section: Section) -> Result<Option<Location>, ReadError> {
        let (segment, slot) = {
            let shared = self.shared.read();
            let slot = *live_slot(&shared, stream, index)?;
            (segment_of(&shared, stream, index, &slot)?, slot)
        };
        let record = read_exact(&segment, slot.record, entry_record_len(slot.sections.into()), stream, index)?;
        let entry = entry_at(&segment, &record, 0, stream, index)?;
        let nth = match section {
            Section::Head => 0,
            Section::Payload(n) => usize::from(n) + 1,
        };
        let found = entry.pieces().nth(nth);
        Ok(found.map(|p| Location { segment: segment.seq, offset: p.offset.into(), len: p.len, crc: p.crc }))
    }

    /// Keeps the segments of `range` readable until the pin is dropped.
    ///
    /// # Errors
    /// See [`ReadError`]; the whole range must be there.
    pub fn pin(&self, stream: StreamId, range: RangeInclusive<Index>) -> Result<Pin, ReadError> {
        let shared = self.shared.read();
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        let mut index = *range.start();
        while index <= *range.end() {
            let slot = live_slot(&shared, stream, index)?;
            if segments.last().is_none_or(|last| last.seq != u64::from(slot.segment)) {
                segments.push(segment_of(&shared, stream, index, slot)?);
            }
            index = index.next();
        }
        Ok(Pin { segments })
    }

    /// The intact entries of `stream` by epoch, ascending. Empty for an unknown stream.
    pub fn runs(&self, stream: StreamId) -> Vec<Run> {
        self.shared.read().streams.get(&stream).map(|log| log.runs().collect()).unwrap_or_default()
    }

    /// Base and last position of `stream`; `None` when it is unknown.
    pub fn bounds(&self, stream: StreamId) -> Option<(Position, Position)> {
        self.shared.read().streams.get(&stream).map(|log| (log.base, log.last()))
    }

    /// The segments in use, by number, with the path of each file.
    pub fn segments(&self) -> Vec<(u64, String)> {
        self.shared.read().segments.values().map(|segment| (segment.seq, segment.path.clone())).collect()
    }

    fn spans(&self, stream: StreamId, range: &RangeInclusive<Index>, bytes_max: usize) -> Result<Vec<Span>, ReadError> {
        let shared = self.shared.read();
        let mut index = *range.start();
        live_slot(&shared, stream, index)?;
        let Some(log) = shared.streams.get(&stream) else { return Ok(Vec::new()) };
        let mut spans: Vec<Span> = Vec::new();
        let mut bytes = 0;
        for slot in log.slots_from(index) {
            bytes += slot.len as usize;
            let full = bytes > bytes_max && index != *range.start();
            if index > *range.end() || slot.is_hole() || full {
                break;
            }
            match spans.last_mut() {
                Some(span) if span.continues(slot) => span.slots.push(*slot),
                _ => {
                    let segment = segment_of(&shared, stream, index, slot)?;
                    spans.push(Span { segment, first: index, slots: vec![*slot] });
                }
            }
            index = index.next();
        }
        Ok(spans)
    }
}

impl fmt::Debug for WalReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalReader").finish_non_exhaustive()
    }
}

impl Pin {
    /// The bytes at `location`, checked.
    ///
    /// # Errors
    /// [`ReadError::Disk`]; [`ReadError::Faulty`] with stream and index 0 when the location is not in a pinned segment
    /// or its bytes fail their checksum.
    pub fn read(&self, location: Location) -> Result<Bytes, ReadError> {
        let lost = || ReadError::Faulty { stream: StreamId::default(), index: Index::ZERO };
        let segment = self.segments.iter().find(|s| s.seq == location.segment).ok_or_else(lost)?;
        let offset = u32::try_from(location.offset).map_err(|_| lost())?;
        let bytes = read_exact(segment, offset, location.len as usize, StreamId::default(), Index::ZERO)?;
        if crc32c::crc32c(&bytes) == location.crc { Ok(bytes) } else { Err(lost()) }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments.iter().map(|segment| segment.seq)).finish()
    }
}

impl Span {
    fn continues(&self, next: &Slot) -> bool {
        self.slots.last().is_some_and(|last| {
            last.segment == next.segment
                && u64::from(last.data) + u64::from(last.len) == u64::from(next.data)
                && last.record as usize + entry_record_len(last.sections.into()) == next.record as usize
        })
    }

    fn read(&self, stream: StreamId, out: &mut Vec<Entry>) -> Result<(), ReadError> {
        let (Some(first), Some(last)) = (self.slots.first(), self.slots.last()) else { return Ok(()) };
        let records_len = (last.record - first.record) as usize + entry_record_len(last.sections.into());
        let payload_len = (last.data - first.data) as usize + last.len as usize;
        let between = (first.data - first.record) as usize;
        let (records, payload) = if between <= records_len + GAP_BYTES_MAX {
            let all = read_exact(&self.segment, first.record, between + payload_len, stream, self.first)?;
            (all.slice(..records_len), all.slice(between..))
        } else {
            let records = read_exact(&self.segment, first.record, records_len, stream, self.first)?;
            (records, read_exact(&self.segment, first.data, payload_len, stream, self.first)?)
        };
        let mut index = self.first;
        for slot in &self.slots {
            let record = entry_at(&self.segment, &records, (slot.record - first.record) as usize, stream, index)?;
            out.push(decode(&record, &payload, first.data, stream, index)?);
            index = index.next();
        }
        Ok(())
    }
}

fn live_slot(shared: &LogIndex, stream: StreamId, index: Index) -> Result<&Slot, ReadError> {
    let log = shared.streams.get(&stream).ok_or(ReadError::Absent { stream, index, last: Index::ZERO })?;
    if index <= log.base.index {
        return Err(ReadError::Released { stream, base: log.base });
    }
    let last = StreamLog::last_index(log);
    let slot = log.slot(index).ok_or(ReadError::Absent { stream, index, last })?;
    if slot.is_hole() { Err(ReadError::Faulty { stream, index }) } else { Ok(slot) }
}

fn segment_of(shared: &LogIndex, stream: StreamId, index: Index, slot: &Slot) -> Result<Arc<Segment>, ReadError> {
    let segment = shared.segments.get(&u64::from(slot.segment));
    segment.cloned().ok_or(ReadError::Faulty { stream, index })
}

fn read_exact(segment: &Segment, offset: u32, len: usize, stream: StreamId, index: Index) -> Result<Bytes, ReadError> {
    let mut buf = vec![0; len];
    let got = segment.file.read_at(offset.into(), &mut buf)?;
    if got < len { Err(ReadError::Faulty { stream, index }) } else { Ok(buf.into()) }
}

fn entry_at<'b>(
    segment: &Segment,
    records: &'b [u8],
    at: usize,
    stream: StreamId,
    index: Index,
) -> Result<EntryRecord<'b>, ReadError> {
    let record = records.get(at..).and_then(|b| Record::decode(b, segment.salt));
    match record {
        Some(Record { stream: found, body: Body::Entry(entry), .. }) if found == stream && entry.index == index => {
            Ok(entry)
        }
        _ => Err(ReadError::Faulty { stream, index }),
    }
}

fn decode(
    record: &EntryRecord<'_>,
    payload: &Bytes,
    payload_at: u32,
    stream: StreamId,
    index: Index,
) -> Result<Entry, ReadError> {
    let take = |piece: Piece| {
        let start = (piece.offset.checked_sub(payload_at)?) as usize;
        let end = start.checked_add(piece.len as usize)?;
        let bytes = payload.get(start..end)?;
        (crc32c::crc32c(bytes) == piece.crc).then(|| payload.slice(start..end))
    };
    let faulty = ReadError::Faulty { stream, index };
    let mut pieces = record.pieces();
    let head = pieces.next().and_then(take).ok_or(faulty.clone())?;
    let sections = pieces.map(take).collect::<Option<Vec<Bytes>>>().ok_or(faulty)?;
    Ok(Entry { position: Position { epoch: record.epoch, index }, kind: record.kind, head, sections })
}

/// Bytes between a span's records and its payload that are read along rather than with a second call.
const GAP_BYTES_MAX: usize = 16 << 10;
