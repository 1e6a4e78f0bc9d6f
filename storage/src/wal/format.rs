//! The log's bytes. All numbers little-endian; all checksums CRC32C; *salted* means that the segment's salt comes
//! first, so that bytes of another segment, another log or a client's value never pass for ours.
//!
//! ```text
//! segment file  wal/<seq, 16 hex>.seg           batch (starts and ends on a block of 512)
//! ┌────────────────────┐ 0                      ┌──────────────────┐
//! │ segment header     │                        │ batch header  64 │
//! ├────────────────────┤ 512                    │ directory        │ records, 8-aligned: what the batch does, and a
//! │ the same again     │                        │                  │ header for each entry, with its payload's place
//! ├────────────────────┤ 1024                   │ payload          │ heads, sections, hard states, in record order
//! │ checkpoint batch   │                        │ zeros            │
//! │ batch …            │                        │ commit frame  32 │ the last 32 bytes of the last block
//! └────────────────────┘ size                   └──────────────────┘
//!
//! segment header, 64 bytes                      batch header, 64 bytes
//!  0  8  magic "TRIUNEWL"                        0  4  magic "TWB1"
//!  8  2  format version (1)                      4  2  flags: 1 open, 2 checkpoint, 4 clean, 8 doubt
//! 10  2  zero                                    6  2  zero
//! 12  4  block size (512)                        8  8  group-commit seq, dense over all segments
//! 16  8  segment seq                            16  8  watermark: every batch ≤ it was durable when this was made
//! 24  8  salt                                   24  8  boot: number of the opening that wrote it
//! 32  8  segment size                           32  8  first group-commit seq of that boot
//! 40  8  first group-commit seq in it           40  8  first segment still needed
//! 48  4  chain: commit CRC of the batch before  48  4  directory bytes
//! 52  8  zero                                   52  4  total bytes, commit frame included
//! 60  4  CRC of 0..60                           56  4  chain: commit CRC of the batch before
//!                                               60  4  salted CRC of 0..60
//! commit frame, 32 bytes
//!  0  4  magic "TWC1"                           16  8  watermark, as in the header
//!  4  4  commit CRC: salted, header + directory 24  4  total bytes, so that the start can be found from the end
//!  8  8  group-commit seq                       28  4  salted CRC of 0..28
//!
//! record: 0 1 magic 0xA5 · 1 1 type · 2 2 length / 8 · 4 4 salted CRC of 0..4 and 8.. · 8 4 low half of the
//!         group-commit seq · 12 4 stream · then by type:
//! 1 write  16 8 seq · 24 8 epoch · 32 16 reset position · 48 8 truncate from · 56 8 first index · 64 4 entries
//!          68 4 flags: 1 reset, 2 truncate, 4 state · 72 4 state offset · 76 4 state length · 80 4 state CRC
//!          84 4 count of the stream's writes, so that a lost one is noticed
//! 2 entry  16 8 index · 24 8 epoch · 32 4 data offset · 36 4 head length · 40 4 head CRC · 44 1 kind
//!          45 1 flags (zero; rewritten suffixes and unbundled payloads will be told here) · 46 2 sections
//!          48 8 × sections: length, CRC
//! 3 base   16 16 base position: the stream's log starts behind it
//! 4 table  16 8 seq · 24 8 epoch · 32 16 base · 48 16 last · 64 4 count · 68 4 flags: 1 doubt, 2 state faulty,
//!          4 state · 72 4 state offset · 76 4 state length · 80 4 state CRC · 84 4 zero
//! ```
//!
//! Offsets in records count from the start of the segment's file. A position is epoch, then index. The commit CRC
//! covers header and directory, and the directory holds the CRC of every payload piece: each byte is summed once, and
//! each piece can be checked, and served, alone.
//!
//! Blocks keep a torn sector from harming the batch before it. A segment begins with a *checkpoint*: a table record of
//! every stream, so that older segments are needed only for entries.

use bytes::Bytes;

use crate::{Epoch, Index, IoSeq, Position, StreamId};

/// Batches start on multiples of this.
pub(super) const BLOCK: usize = 512;
/// Where the first batch of a segment starts: behind the header and its twin.
pub(super) const DATA_START: u64 = 2 * BLOCK as u64;
pub(super) const BATCH_HEADER: usize = 64;
pub(super) const COMMIT: usize = 32;
pub(super) const VERSION: u16 = 1;
pub(super) const WRITE_RECORD: usize = 88;
pub(super) const ENTRY_RECORD: usize = 48;
pub(super) const BASE_RECORD: usize = 32;
pub(super) const TABLE_RECORD: usize = 88;
/// A record's length is told in 16 bits, in units of 8.
pub(super) const SECTIONS_MAX: usize = u16::MAX as usize - ENTRY_RECORD / 8;

pub(super) const FLAG_OPEN: u16 = 1;
pub(super) const FLAG_CHECKPOINT: u16 = 2;
pub(super) const FLAG_CLEAN: u16 = 4;
pub(super) const FLAG_DOUBT: u16 = 8;

const SEGMENT_MAGIC: &[u8; 8] = b"TRIUNEWL";
const BATCH_MAGIC: &[u8; 4] = b"TWB1";
const COMMIT_MAGIC: &[u8; 4] = b"TWC1";
const RECORD_MAGIC: u8 = 0xA5;

const _: () = assert!(WRITE_RECORD.is_multiple_of(8) && TABLE_RECORD.is_multiple_of(8));
const _: () = assert!(ENTRY_RECORD.is_multiple_of(8) && BASE_RECORD.is_multiple_of(8));
const _: () = assert!(BATCH_HEADER + COMMIT <= BLOCK);

/// A running CRC that already holds the segment's salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(u32);

impl Salt {
    pub(super) fn new(salt: u64) -> Self {
        Self(crc32c::crc32c(&salt.to_le_bytes()))
    }

    pub(super) fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// The salt of segment `seq` made in boot `boot`: no two incarnations of a recycled file share one.
pub(super) fn segment_salt(config_salt: u64, seq: u64, boot: u64) -> u64 {
    let mut x = config_salt ^ seq.rotate_left(32) ^ boot.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) seq: u64,
    pub(super) salt: u64,
    pub(super) size: u64,
    pub(super) first_batch: u64,
    pub(super) chain: u32,
}

/// A segment header that is intact and from a newer program.
pub(super) struct NewerVersion(pub(super) u16);

impl SegmentHeader {
    /// Both copies, ready to be written at 0.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * BLOCK);
        for _ in 0..2 {
            let start = out.len();
            out.extend_from_slice(SEGMENT_MAGIC);
            out.extend_from_slice(&VERSION.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&(BLOCK as u32).to_le_bytes());
            out.extend_from_slice(&self.seq.to_le_bytes());
            out.extend_from_slice(&self.salt.to_le_bytes());
            out.extend_from_slice(&self.size.to_le_bytes());
            out.extend_from_slice(&self.first_batch.to_le_bytes());
            out.extend_from_slice(&self.chain.to_le_bytes());
            out.extend_from_slice(&[0; 8]);
            let crc = crc32c::crc32c(out.get(start..).unwrap_or(&[]));
            out.extend_from_slice(&crc.to_le_bytes());
            out.resize(start + BLOCK, 0);
        }
        out
    }

    /// The first intact copy in the first two blocks of a file.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, NewerVersion> {
        for copy in bytes.chunks(BLOCK).take(2) {
            if let Some(found) = Self::decode_copy(copy) {
                return found.map(Some);
            }
        }
        Ok(None)
    }

    fn decode_copy(b: &[u8]) -> Option<Result<Self, NewerVersion>> {
        if b.get(..8)? != SEGMENT_MAGIC || crc32c::crc32c(b.get(..60)?) != u32_at(b, 60)? {
            return None;
        }
        let version = u16_at(b, 8)?;
        if version > VERSION {
            return Some(Err(NewerVersion(version)));
        }
        Some(Ok(Self {
            seq: u64_at(b, 16)?,
            salt: u64_at(b, 24)?,
            size: u64_at(b, 32)?,
            first_batch: u64_at(b, 40)?,
            chain: u32_at(b, 48)?,
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct BatchHeader {
    pub(super) flags: u16,
    pub(super) seq: u64,
    pub(super) watermark: u64,
    pub(super) boot: u64,
    pub(super) boot_first: u64,
    pub(super) first_segment: u64,
    pub(super) directory: u32,
    pub(super) total: u32,
    pub(super) chain: u32,
}

impl BatchHeader {
    /// Appends it to `out`, which must be empty.
    pub(super) fn encode(&self, salt: Salt, out: &mut Vec<u8>) {
        debug_assert!(out.is_empty(), "the header opens the buffer");
        out.extend_from_slice(BATCH_MAGIC);
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.watermark.to_le_bytes());
        out.extend_from_slice(&self.boot.to_le_bytes());
        out.extend_from_slice(&self.boot_first.to_le_bytes());
        out.extend_from_slice(&self.first_segment.to_le_bytes());
        out.extend_from_slice(&self.directory.to_le_bytes());
        out.extend_from_slice(&self.total.to_le_bytes());
        out.extend_from_slice(&self.chain.to_le_bytes());
        let crc = salt.crc(out);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(out.len(), BATCH_HEADER);
    }

    pub(super) fn decode(b: &[u8], salt: Salt) -> Option<Self> {
        if b.get(..4)? != BATCH_MAGIC || salt.crc(b.get(..60)?) != u32_at(b, 60)? {
            return None;
        }
        let header = Self {
            flags: u16_at(b, 4)?,
            seq: u64_at(b, 8)?,
            watermark: u64_at(b, 16)?,
            boot: u64_at(b, 24)?,
            boot_first: u64_at(b, 32)?,
            first_segment: u64_at(b, 40)?,
            directory: u32_at(b, 48)?,
            total: u32_at(b, 52)?,
            chain: u32_at(b, 56)?,
        };
        let (directory, total) = (header.directory as usize, header.total as usize);
        let fits = total.is_multiple_of(BLOCK) && directory.checked_add(BATCH_HEADER + COMMIT)? <= total;
        fits.then_some(header)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommitFrame {
    pub(super) crc: u32,
    pub(super) seq: u64,
    pub(super) watermark: u64,
    pub(super) total: u32,
}

impl CommitFrame {
    pub(super) fn encode(&self, salt: Salt, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(COMMIT_MAGIC);
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.watermark.to_le_bytes());
        out.extend_from_slice(&self.total.to_le_bytes());
        let crc = salt.crc(out.get(start..).unwrap_or(&[]));
        out.extend_from_slice(&crc.to_le_bytes());
    }

    pub(super) fn decode(b: &[u8], salt: Salt) -> Option<Self> {
        if b.get(..4)? != COMMIT_MAGIC || salt.crc(b.get(..28)?) != u32_at(b, 28)? {
            return None;
        }
        let frame = Self { crc: u32_at(b, 4)?, seq: u64_at(b, 8)?, watermark: u64_at(b, 16)?, total: u32_at(b, 24)? };
        (frame.total as usize).is_multiple_of(BLOCK).then_some(frame)
    }
}

/// Where a byte string lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteRecord {
    pub(super) seq: IoSeq,
    pub(super) epoch: Epoch,
    pub(super) reset: Option<Position>,
    pub(super) truncate_from: Option<Index>,
    pub(super) first: Index,
    pub(super) entries: u32,
    pub(super) state: Option<Piece>,
    pub(super) count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryRecord<'a> {
    pub(super) index: Index,
    pub(super) epoch: Epoch,
    pub(super) data: u32,
    pub(super) head_len: u32,
    pub(super) head_crc: u32,
    pub(super) kind: u8,
    sections: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableRecord {
    pub(super) seq: IoSeq,
    pub(super) epoch: Epoch,
    pub(super) base: Position,
    pub(super) last: Position,
    pub(super) count: u32,
    pub(super) doubt: bool,
    pub(super) state_faulty: bool,
    pub(super) state: Option<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Write(WriteRecord),
    Entry(EntryRecord<'a>),
    Base(Position),
    Table(TableRecord),
}

/// One record of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) len: usize,
    /// Low half of the group-commit seq.
    pub(super) tag: u32,
    pub(super) stream: StreamId,
    pub(super) body: Body<'a>,
}

impl<'a> EntryRecord<'a> {
    pub(super) fn sections(&self) -> usize {
        self.sections.len() / 8
    }

    /// Head, then sections: where each lies.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        let head = (self.head_len, self.head_crc);
        let sections = self.sections.chunks_exact(8).filter_map(|s| Some((u32_at(s, 0)?, u32_at(s, 4)?)));
        std::iter::once(head).chain(sections).scan(self.data, |offset, (len, crc)| {
            let piece = Piece { offset: *offset, len, crc };
            *offset = offset.saturating_add(len);
            Some(piece)
        })
    }

    /// Head and sections together, in bytes.
    pub(super) fn payload_len(&self) -> u64 {
        self.pieces().map(|p| u64::from(p.len)).sum()
    }
}

impl<'a> Record<'a> {
    /// The intact record at the start of `b`.
    pub(super) fn decode(b: &'a [u8], salt: Salt) -> Option<Self> {
        if *b.first()? != RECORD_MAGIC {
            return None;
        }
        let len = usize::from(u16_at(b, 2)?) * 8;
        let b = b.get(..len)?;
        let crc = crc32c::crc32c_append(salt.crc(b.get(..4)?), b.get(8..)?);
        if crc != u32_at(b, 4)? {
            return None;
        }
        let body = match *b.get(1)? {
            1 => Body::Write(WriteRecord::decode(b)?),
            2 => Body::Entry(EntryRecord::decode(b)?),
            3 => Body::Base(position_at(b, 16)?),
            4 => Body::Table(TableRecord::decode(b)?),
            _ => return None,
        };
        Some(Self { len, tag: u32_at(b, 8)?, stream: StreamId(u32_at(b, 12)?), body })
    }
}

impl WriteRecord {
    fn decode(b: &[u8]) -> Option<Self> {
        let flags = u32_at(b, 68)?;
        Some(Self {
            seq: IoSeq(u64_at(b, 16)?),
            epoch: Epoch(u64_at(b, 24)?),
            reset: if flags & 1 == 0 { None } else { Some(position_at(b, 32)?) },
            truncate_from: if flags & 2 == 0 { None } else { Some(Index(u64_at(b, 48)?)) },
            first: Index(u64_at(b, 56)?),
            entries: u32_at(b, 64)?,
            state: if flags & 4 == 0 { None } else { Some(piece_at(b, 72)?) },
            count: u32_at(b, 84)?,
        })
    }
}

impl<'a> EntryRecord<'a> {
    fn decode(b: &'a [u8]) -> Option<Self> {
        let sections = b.get(ENTRY_RECORD..)?;
        if sections.len() != usize::from(u16_at(b, 46)?) * 8 {
            return None;
        }
        Some(Self {
            index: Index(u64_at(b, 16)?),
            epoch: Epoch(u64_at(b, 24)?),
            data: u32_at(b, 32)?,
            head_len: u32_at(b, 36)?,
            head_crc: u32_at(b, 40)?,
            kind: *b.get(44)?,
            sections,
        })
    }
}

impl TableRecord {
    fn decode(b: &[u8]) -> Option<Self> {
        let flags = u32_at(b, 68)?;
        Some(Self {
            seq: IoSeq(u64_at(b, 16)?),
            epoch: Epoch(u64_at(b, 24)?),
            base: position_at(b, 32)?,
            last: position_at(b, 48)?,
            count: u32_at(b, 64)?,
            doubt: flags & 1 != 0,
            state_faulty: flags & 2 != 0,
            state: if flags & 4 == 0 { None } else { Some(piece_at(b, 72)?) },
        })
    }
}

/// Appends records to a directory.
pub(super) struct RecordWriter<'b> {
    pub(super) out: &'b mut Vec<u8>,
    pub(super) salt: Salt,
    pub(super) tag: u32,
}

impl RecordWriter<'_> {
    pub(super) fn write(&mut self, stream: StreamId, w: &WriteRecord) {
        let start = self.begin(1, WRITE_RECORD, stream);
        self.u64(w.seq.0);
        self.u64(w.epoch.0);
        self.position(w.reset.unwrap_or_default());
        self.u64(w.truncate_from.unwrap_or_default().0);
        self.u64(w.first.0);
        self.u32(w.entries);
        self.u32(
            u32::from(w.reset.is_some())
                | u32::from(w.truncate_from.is_some()) << 1
                | u32::from(w.state.is_some()) << 2,
        );
        self.piece(w.state);
        self.u32(w.count);
        self.end(start, WRITE_RECORD);
    }

    /// One entry; `data` is where its payload begins. Sums the payload; returns its length.
    pub(super) fn entry(&mut self, stream: StreamId, entry: &crate::Entry, data: u32) -> u32 {
        let len = entry_record_len(entry.sections.len());
        let start = self.begin(2, len, stream);
        self.u64(entry.position.index.0);
        self.u64(entry.position.epoch.0);
        self.u32(data);
        let mut total = self.sum(&entry.head);
        self.out.extend_from_slice(&[entry.kind, 0]);
        self.out.extend_from_slice(&(entry.sections.len() as u16).to_le_bytes());
        for section in &entry.sections {
            total += self.sum(section);
        }
        self.end(start, len);
        total
    }

    pub(super) fn base(&mut self, stream: StreamId, base: Position) {
        let start = self.begin(3, BASE_RECORD, stream);
        self.position(base);
        self.end(start, BASE_RECORD);
    }

    pub(super) fn table(&mut self, stream: StreamId, t: &TableRecord) {
        let start = self.begin(4, TABLE_RECORD, stream);
        self.u64(t.seq.0);
        self.u64(t.epoch.0);
        self.position(t.base);
        self.position(t.last);
        self.u32(t.count);
        self.u32(u32::from(t.doubt) | u32::from(t.state_faulty) << 1 | u32::from(t.state.is_some()) << 2);
        self.piece(t.state);
        self.u32(0);
        self.end(start, TABLE_RECORD);
    }

    fn begin(&mut self, kind: u8, len: usize, stream: StreamId) -> usize {
        let start = self.out.len();
        self.out.extend_from_slice(&[RECORD_MAGIC, kind]);
        self.out.extend_from_slice(&((len / 8) as u16).to_le_bytes());
        self.u32(0);
        self.u32(self.tag);
        self.u32(stream.0);
        start
    }

    fn end(&mut self, start: usize, len: usize) {
        assert_eq!(self.out.len() - start, len, "a record has the length it says");
        let Some(record) = self.out.get_mut(start..) else { return };
        let crc = match (record.get(..4), record.get(8..)) {
            (Some(front), Some(rest)) => crc32c::crc32c_append(self.salt.crc(front), rest),
            _ => return,
        };
        if let Some(slot) = record.get_mut(4..8) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
    }

    fn sum(&mut self, bytes: &Bytes) -> u32 {
        self.u32(bytes.len() as u32);
        self.u32(crc32c::crc32c(bytes));
        bytes.len() as u32
    }

    fn piece(&mut self, piece: Option<Piece>) {
        let piece = piece.unwrap_or(Piece { offset: 0, len: 0, crc: 0 });
        self.u32(piece.offset);
        self.u32(piece.len);
        self.u32(piece.crc);
    }

    fn position(&mut self, p: Position) {
        self.u64(p.epoch.0);
        self.u64(p.index.0);
    }

    fn u32(&mut self, n: u32) {
        self.out.extend_from_slice(&n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.out.extend_from_slice(&n.to_le_bytes());
    }
}

pub(super) const fn entry_record_len(sections: usize) -> usize {
    ENTRY_RECORD + 8 * sections
}

/// The bytes of a whole batch with this directory and payload.
pub(super) const fn batch_total(directory: u64, payload: u64) -> u64 {
    (BATCH_HEADER as u64 + directory + payload + COMMIT as u64).next_multiple_of(BLOCK as u64)
}

fn array_at<const N: usize>(b: &[u8], at: usize) -> Option<[u8; N]> {
    b.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    array_at(b, at).map(u16::from_le_bytes)
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    array_at(b, at).map(u32::from_le_bytes)
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    array_at(b, at).map(u64::from_le_bytes)
}

fn position_at(b: &[u8], at: usize) -> Option<Position> {
    Some(Position::new(u64_at(b, at)?, u64_at(b, at + 8)?))
}

fn piece_at(b: &[u8], at: usize) -> Option<Piece> {
    Some(Piece { offset: u32_at(b, at)?, len: u32_at(b, at + 4)?, crc: u32_at(b, at + 8)? })
}
