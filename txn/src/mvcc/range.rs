//! Reading: ranges at any revision that is still there, with etcd's order of limiting, filtering and sorting.

use super::error::RangeError;
use super::index::Span;
use super::op::{KeyValue, RangeOp, Revision, SortOrder, SortTarget};
use super::outcome::RangeResult;
use super::store::Store;

impl Store {
    /// Reads a range.
    ///
    /// # Errors
    /// [`RangeError::Compacted`], [`RangeError::FutureRev`], and when the store under it fails.
    pub fn range(&self, op: &RangeOp) -> Result<RangeResult, RangeError> {
        self.range_seen_at(op, self.revision)
    }

    /// Whether `revision` can be read, when `current` is the current one; 0 and less stand for that one.
    pub(super) fn readable(&self, revision: Revision, current: Revision) -> Result<Revision, RangeError> {
        if revision > current {
            return Err(RangeError::FutureRev { current });
        }
        let revision = if revision <= 0 { current } else { revision };
        if revision < self.compacted {
            return Err(RangeError::Compacted { compacted: self.compacted });
        }
        Ok(revision)
    }

    /// The range as a transaction sees it whose own writes made `current`.
    pub(super) fn range_seen_at(&self, op: &RangeOp, current: Revision) -> Result<RangeResult, RangeError> {
        let revision = self.readable(op.revision, current)?;
        let span = Span::new(&op.key, &op.range_end);
        if op.count_only {
            let count = count_of(self.live(span, revision).count());
            return Ok(RangeResult { revision: current, kvs: Vec::new(), count, more: false });
        }
        // One more than asked shows whether there is more. A filter or an order needs all pairs.
        let fetch_max = match usize::try_from(op.limit) {
            Ok(limit) if limit > 0 && !needs_all(op) => limit.saturating_add(1),
            _ => usize::MAX,
        };
        let mut reader = self.reader();
        let mut kvs = Vec::new();
        let mut count = 0;
        for (_, point) in self.live(span, revision) {
            if count < fetch_max {
                kvs.push(reader.pair(point)?);
            }
            count += 1;
        }
        kvs.retain(|kv| passes(op, kv));
        sort(op, &mut kvs);
        let limit = usize::try_from(op.limit).unwrap_or(0);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if op.keys_only {
            for kv in &mut kvs {
                kv.value.clear();
            }
        }
        Ok(RangeResult { revision: current, kvs, count: count_of(count), more })
    }
}

/// etcd looks at the order alone, not at the target: a target without an order sorts what the limit left.
fn needs_all(op: &RangeOp) -> bool {
    op.sort_order != SortOrder::None as i32
        || op.min_mod_revision != 0
        || op.max_mod_revision != 0
        || op.min_create_revision != 0
        || op.max_create_revision != 0
}

fn passes(op: &RangeOp, kv: &KeyValue) -> bool {
    (op.max_mod_revision == 0 || kv.mod_revision <= op.max_mod_revision)
        && (op.min_mod_revision == 0 || kv.mod_revision >= op.min_mod_revision)
        && (op.max_create_revision == 0 || kv.create_revision <= op.max_create_revision)
        && (op.min_create_revision == 0 || kv.create_revision >= op.min_create_revision)
}

fn sort(op: &RangeOp, kvs: &mut [KeyValue]) {
    let target = SortTarget::try_from(op.sort_target).unwrap_or(SortTarget::Key);
    let order = SortOrder::try_from(op.sort_order).unwrap_or(SortOrder::None);
    let compare = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match order {
        // By key already.
        SortOrder::None | SortOrder::Ascend if target == SortTarget::Key => {}
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
        SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
    }
}

fn count_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
