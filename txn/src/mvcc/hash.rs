//! `HashKV`: one number over all history above the compaction, equal on every member, flushed or not, swept or not.

use super::error::RangeError;
use super::op::Revision;
use super::outcome::{EventKind, HashKv};
use super::store::{Change, Store, row_key, row_value};

impl Store {
    /// Hashes every row up to `revision` (0: the current one) that a compaction leaves: CRC-32C over the rows' keys
    /// and values in order of revision, behind etcd's name of the table. Reads all of them.
    ///
    /// # Errors
    /// As a range at that revision, and when the store under it fails.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKv, RangeError> {
        let hash_revision = self.readable(revision, self.revision)?;
        let mut hash = crc32c::crc32c(b"key");
        self.reader().scan(0, &mut |change| {
            if change.rev.main > hash_revision {
                return false;
            }
            if self.outlives_compaction(&change) {
                hash = crc32c::crc32c_append(hash, &row_key(&change));
                hash = crc32c::crc32c_append(hash, &row_value(&change));
            }
            true
        })?;
        Ok(HashKv { hash, compact_revision: self.compacted, hash_revision, revision: self.revision })
    }

    /// Whether the row is above the compaction, or still read at it. A deletion at the compaction itself is kept for
    /// watches, but counts with etcd as gone.
    fn outlives_compaction(&self, change: &Change) -> bool {
        if change.rev.main > self.compacted {
            return true;
        }
        let kept = self.index.get(&change.kv.key).and_then(|versions| versions.live_at(self.compacted));
        change.kind == EventKind::Put && kept.is_some_and(|point| point.rev() == change.rev)
    }
}
