//! `HashKV`: one number over all history above the compaction, equal on every member, flushed or not, swept or not.

use super::error::RangeError;
use super::index::Span;
use super::op::Revision;
use super::outcome::HashKv;
use super::store::{Change, Store, row_key, row_value};

impl Store {
    /// Hashes the rows up to `revision` (0: the current one): CRC-32C over their keys and values in order of revision,
    /// behind etcd's name of the table. Equal to etcd's for equal history. Reads all rows.
    ///
    /// # Errors
    /// As a range at that revision, and when the store under it fails.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKv, RangeError> {
        let hash_revision = self.readable(revision, self.revision)?;
        // etcd's rule: of the rows at or below the compaction those count that a read at the hashed revision finds; if
        // there is none, those that the compaction leaves.
        let empty = self.live(Span::From(b""), hash_revision).next().is_none();
        let keep_at = if empty { self.compacted } else { hash_revision };
        let mut hash = crc32c::crc32c(b"key");
        self.reader().scan(0, &mut |change| {
            if change.rev.main > hash_revision {
                return false;
            }
            if change.rev.main > self.compacted || self.finds(&change, keep_at) {
                hash = crc32c::crc32c_append(hash, &row_key(&change));
                hash = crc32c::crc32c_append(hash, &row_value(&change));
            }
            true
        })?;
        Ok(HashKv { hash, compact_revision: self.compacted, hash_revision, revision: self.revision })
    }

    /// Whether a read at `revision` finds this change.
    fn finds(&self, change: &Change, revision: Revision) -> bool {
        let found = self.index.get(&change.kv.key).and_then(|versions| versions.live_at(revision));
        found.is_some_and(|point| point.rev() == change.rev)
    }
}
