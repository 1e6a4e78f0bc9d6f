//! A snapshot's bytes: every row of a group's state, in an order and form that any member reads alike.
//!
//! ```text
//! │ "TRIUNES1" │ row … │ end │        row: table u8 │ key len u32 │ value len u32 │ key │ value
//!                                     end: 0 u8 │ rows u64 │ crc32c u32 of all before it
//! ```
//! Little-endian. The mark is one of the rows: a snapshot says itself what it is the state after. Rows come table by
//! table, ascending. The writer makes it in pieces, the reader takes it in pieces of any size; neither holds it whole.
//!
//! 1. A snapshot with a flipped, lost or added byte is refused as a whole.
//! 2. No length is believed before the bytes behind it are there, and none above [`ROW_BYTES_MAX`] at all.

use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_consensus::{SnapshotMark, SnapshotMeta};
use triune_storage::{StoreBatch, StoreError, StoreView, Table};

use super::system::{STATE_TABLES, SystemError, applied_mark};

/// A key or value longer than this is damage: a request's limit is far below.
pub const ROW_BYTES_MAX: usize = 64 << 20;

/// Bytes after which the writer hands a piece on.
const PIECE_BYTES: usize = 256 << 10;

/// Why a snapshot was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError<E: std::error::Error + 'static> {
    /// The store could not be read.
    #[error(transparent)]
    State(#[from] SystemError),
    /// The store holds nothing yet.
    #[error("there is no state yet")]
    Blank,
    /// The pieces could not be kept.
    #[error("snapshot: {0}")]
    Sink(#[source] E),
}

/// Why a snapshot was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It does not begin as a snapshot of this version does.
    #[error("not a snapshot of a known version")]
    Header,
    /// A row names a table no state has, or is longer than a row can be.
    #[error("malformed row")]
    Row,
    /// The end is missing, or not where it should be.
    #[error("the snapshot is cut or too long")]
    End,
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
}

/// Writes the state in `view` to `sink`, piece by piece. Gives its name, length and checksum.
///
/// # Errors
/// When the store or the sink fails, or there is no state yet.
pub fn write<E: std::error::Error + 'static>(
    view: &dyn StoreView,
    mut sink: impl FnMut(Bytes) -> Result<(), E>,
) -> Result<SnapshotMeta, WriteError<E>> {
    let mark = applied_mark(view)?.ok_or(WriteError::Blank)?;
    let mut writer = Writer { buf: BytesMut::new(), bytes: 0, crc: 0, rows: 0 };
    writer.buf.put_slice(MAGIC);
    let mut failed = None;
    for table in STATE_TABLES {
        let scanned = view.scan(table, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            writer.row(table, key, value);
            if writer.buf.len() >= PIECE_BYTES {
                failed = sink(writer.piece()).err();
            }
            failed.is_none()
        });
        if let Some(error) = failed {
            return Err(WriteError::Sink(error));
        }
        scanned.map_err(|error: StoreError| WriteError::State(error.into()))?;
    }
    writer.buf.put_u8(END);
    writer.buf.put_u64_le(writer.rows);
    // The checksum covers all before it, what is still in the buffer included.
    let crc = crc32c::crc32c_append(writer.crc, &writer.buf);
    writer.buf.put_u32_le(crc);
    sink(writer.piece()).map_err(WriteError::Sink)?;
    Ok(SnapshotMeta { mark, bytes: writer.bytes, crc: writer.crc })
}

struct Writer {
    buf: BytesMut,
    bytes: u64,
    crc: u32,
    rows: u64,
}

impl Writer {
    fn row(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.buf.put_u8(table.0);
        self.buf.put_u32_le(u32::try_from(key.len()).unwrap_or(u32::MAX));
        self.buf.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.buf.put_slice(key);
        self.buf.put_slice(value);
        self.rows += 1;
    }

    fn piece(&mut self) -> Bytes {
        let piece = self.buf.split().freeze();
        self.bytes += piece.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, &piece);
        piece
    }
}

/// Reads a snapshot in pieces of any size.
#[derive(Debug, Default)]
pub struct Reader {
    /// What is not yet a whole row.
    buf: BytesMut,
    begun: bool,
    ended: bool,
    crc: u32,
    rows: u64,
}

impl Reader {
    /// A reader at the beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece; appends its whole rows to `batch`, to be imported into a blank store.
    ///
    /// # Errors
    /// The snapshot is damaged: throw away what was imported.
    pub fn push(&mut self, piece: &[u8], batch: &mut StoreBatch) -> Result<(), ReadError> {
        self.buf.extend_from_slice(piece);
        if !self.begun {
            if self.buf.len() < MAGIC.len() {
                return Ok(());
            }
            if !self.buf.starts_with(MAGIC) {
                return Err(ReadError::Header);
            }
            self.take(MAGIC.len());
            self.begun = true;
        }
        while !self.ended {
            let Some(first) = self.buf.first().copied() else { return Ok(()) };
            if first == END {
                return self.end();
            }
            let Some(mut lens) = self.buf.get(1..ROW_HEADER_BYTES) else { return Ok(()) };
            let (key, value) = (lens.get_u32_le() as usize, lens.get_u32_le() as usize);
            if !STATE_TABLES.contains(&Table(first)) || key > ROW_BYTES_MAX || value > ROW_BYTES_MAX {
                return Err(ReadError::Row);
            }
            if self.buf.len() < ROW_HEADER_BYTES + key + value {
                return Ok(());
            }
            let mut row = self.take(ROW_HEADER_BYTES + key + value);
            row.advance(ROW_HEADER_BYTES);
            let key = row.split_to(key);
            batch.ops.push((Table(first), key, Some(row)));
            self.rows += 1;
        }
        if self.buf.is_empty() { Ok(()) } else { Err(ReadError::End) }
    }

    /// Ends the snapshot.
    ///
    /// # Errors
    /// [`ReadError::End`] when it is not whole.
    pub fn finish(&self) -> Result<(), ReadError> {
        if self.ended && self.buf.is_empty() { Ok(()) } else { Err(ReadError::End) }
    }

    fn end(&mut self) -> Result<(), ReadError> {
        if self.buf.len() < END_BYTES {
            return Ok(());
        }
        let mut end = self.take(END_BYTES - 4);
        end.advance(1);
        if end.get_u64_le() != self.rows {
            return Err(ReadError::End);
        }
        if self.buf.get_u32_le() != self.crc {
            return Err(ReadError::Checksum);
        }
        self.ended = true;
        if self.buf.is_empty() { Ok(()) } else { Err(ReadError::End) }
    }

    fn take(&mut self, len: usize) -> Bytes {
        let taken = self.buf.split_to(len).freeze();
        self.crc = crc32c::crc32c_append(self.crc, &taken);
        taken
    }
}

/// Checks that a store into which a snapshot was imported is what its name says.
///
/// # Errors
/// When the mark row cannot be read.
pub fn is_whole(view: &dyn StoreView, mark: &SnapshotMark) -> Result<bool, SystemError> {
    Ok(applied_mark(view)?.as_ref() == Some(mark))
}

const MAGIC: &[u8] = b"TRIUNES1";
/// No table has this number: storage keeps it for its own marks.
const END: u8 = 0;
const ROW_HEADER_BYTES: usize = 9;
const END_BYTES: usize = 13;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use triune_storage::{MemStore, OrderedStore};

    use super::*;
    use crate::member::system::{SYSTEM_TABLE, System};

    fn sample(rows: usize) -> MemStore {
        let store = MemStore::new();
        let mut batch = StoreBatch::default();
        for n in 0..rows {
            let key = Bytes::from(format!("key{n:05}"));
            batch.ops.push((Table(1), key, Some(Bytes::from(vec![b'v'; n % 300]))));
        }
        System::default().take_rows(&mut batch);
        store.commit(batch).unwrap();
        store
    }

    fn bytes_of(store: &MemStore) -> (SnapshotMeta, Vec<u8>) {
        let mut all = Vec::new();
        let meta = write(&*store.view().unwrap(), |piece| {
            all.extend_from_slice(&piece);
            Ok::<_, Infallible>(())
        });
        (meta.unwrap(), all)
    }

    fn read(bytes: &[u8], piece: usize) -> Result<StoreBatch, ReadError> {
        let (mut reader, mut batch) = (Reader::new(), StoreBatch::default());
        for chunk in bytes.chunks(piece) {
            reader.push(chunk, &mut batch)?;
        }
        reader.finish()?;
        Ok(batch)
    }

    #[test]
    fn every_row_arrives_whatever_the_pieces() {
        let store = sample(3_000);
        let (meta, bytes) = bytes_of(&store);
        assert_eq!((meta.bytes, meta.crc), (bytes.len() as u64, crc32c::crc32c(&bytes)));
        for piece in [1, 7, 4096, bytes.len()] {
            let copy = MemStore::new();
            copy.commit(read(&bytes, piece).unwrap()).unwrap();
            assert!(is_whole(&*copy.view().unwrap(), &meta.mark).unwrap());
            assert_eq!(bytes_of(&copy), (meta.clone(), bytes.clone()));
        }
    }

    #[test]
    fn any_flipped_bit_or_cut_is_refused() {
        let (_, bytes) = bytes_of(&sample(5));
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at], 64).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(read(&flipped, 64).is_err(), "flipped at {at}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(read(&longer, 64), Err(ReadError::End));
        assert_eq!(read(&longer, longer.len()), Err(ReadError::End));
    }

    #[test]
    fn a_blank_store_gives_no_snapshot() {
        let store = MemStore::new();
        let written = write(&*store.view().unwrap(), |_| Ok::<_, Infallible>(()));
        assert!(matches!(written, Err(WriteError::Blank)));
        assert!(store.get(SYSTEM_TABLE, b"mark").unwrap().is_none());
    }
}
