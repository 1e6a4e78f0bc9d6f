//! The key index: for each key, which rows hold its versions. All of it in memory, values are elsewhere.
//!
//! An entry costs 56 bytes beside its key, plus 16 for each version above the first that no compaction took yet.
//!
//! Invariants:
//! 1. An entry's points ascend by (main, sub); `head` is the last.
//! 2. After the sweep of a compaction at C, at most one point of a key is < C, and only one that a read at C finds.
//!    Everything made at C stays, deletions too: a watch from C on must still see it.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::op::Revision;
use super::revision::Rev;

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    main: Revision,
    sub: u32,
    /// Bytes of its row; the top bit says it is a tombstone.
    bytes_mark: u32,
}

const TOMBSTONE_BIT: u32 = 1 << 31;

impl Point {
    pub(crate) fn new(rev: Rev, tombstone: bool, bytes: u64) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(TOMBSTONE_BIT - 1);
        Self { main: rev.main, sub: rev.sub, bytes_mark: if tombstone { bytes | TOMBSTONE_BIT } else { bytes } }
    }

    pub(crate) const fn rev(self) -> Rev {
        Rev::new(self.main, self.sub)
    }

    pub(crate) const fn is_tombstone(self) -> bool {
        self.bytes_mark & TOMBSTONE_BIT != 0
    }

    pub(crate) const fn bytes(self) -> u64 {
        (self.bytes_mark & !TOMBSTONE_BIT) as u64
    }

    pub(crate) fn row_key(self) -> Vec<u8> {
        self.rev().row_key(self.is_tombstone())
    }
}

/// A key's versions.
#[derive(Clone, Debug)]
pub(crate) struct Versions {
    head: Point,
    /// Of the current life; 0 after a deletion.
    pub(crate) create_revision: Revision,
    /// Of the current life; 0 after a deletion.
    pub(crate) version: i64,
    /// Ascending, all below `head`. Boxed: most keys have none.
    #[expect(clippy::box_collection, reason = "8 bytes in each of a million entries, where a Vec takes 24")]
    older: Option<Box<Vec<Point>>>,
}

impl Versions {
    /// The newest version, be it a deletion.
    pub(crate) const fn head(&self) -> Point {
        self.head
    }

    /// The newest version with `main ≤ revision`, be it a deletion.
    pub(crate) fn last_at(&self, revision: Revision) -> Option<Point> {
        if self.head.main <= revision {
            return Some(self.head);
        }
        let older = self.older.as_deref()?;
        let at = older.partition_point(|point| point.main <= revision);
        older.get(at.checked_sub(1)?).copied()
    }

    /// The version a read at `revision` finds.
    pub(crate) fn live_at(&self, revision: Revision) -> Option<Point> {
        self.last_at(revision).filter(|point| !point.is_tombstone())
    }

    /// All versions with `main ≥ revision`, ascending.
    pub(crate) fn since(&self, revision: Revision) -> impl Iterator<Item = Point> + '_ {
        let older = self.older.as_deref().map_or(&[][..], Vec::as_slice);
        let at = older.partition_point(|point| point.main < revision);
        let head = (self.head.main >= revision).then_some(self.head);
        older.get(at..).unwrap_or_default().iter().copied().chain(head)
    }

    fn push(&mut self, point: Point) {
        assert!(self.head.rev() < point.rev(), "versions of a key ascend");
        self.older.get_or_insert_default().push(self.head);
        self.head = point;
    }

    /// Takes out what a compaction at `at` makes unreadable, into `doomed`. Whether nothing is left is answered.
    ///
    /// What is left: all versions made at `at` or later, for watches from `at` on; and where none was made at `at`
    /// itself, the last one before it, for reads, unless that is a tombstone.
    fn compact(&mut self, at: Revision, doomed: &mut Vec<Point>) -> bool {
        if let Some(older) = self.older.as_deref_mut() {
            let below = older.partition_point(|point| point.main < at);
            let after = older.get(below).copied().unwrap_or(self.head);
            let last = below.checked_sub(1).and_then(|last| older.get(last));
            // Where the head itself is below `at`, it is the last one, and `after` is the head.
            let read_at = after.main > at && last.is_some_and(|last| !last.is_tombstone());
            doomed.extend(older.drain(..below - usize::from(read_at)));
            if older.is_empty() {
                self.older = None;
            } else if older.capacity() > 2 * older.len() {
                older.shrink_to_fit();
            }
        }
        let gone = self.older.is_none() && self.head.is_tombstone() && self.head.main < at;
        if gone {
            doomed.push(self.head);
        }
        gone
    }
}

/// All keys.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    keys: BTreeMap<Box<[u8]>, Versions>,
}

/// The keys from `key` to before `end`, in etcd's notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span<'a> {
    /// One key.
    Point(&'a [u8]),
    /// A half-open range.
    Range(&'a [u8], &'a [u8]),
    /// Every key from here on.
    From(&'a [u8]),
}

impl<'a> Span<'a> {
    /// An empty `end` is one key, a single zero byte is no end.
    pub(crate) const fn new(key: &'a [u8], end: &'a [u8]) -> Self {
        match end {
            [] => Self::Point(key),
            [0] => Self::From(key),
            _ => Self::Range(key, end),
        }
    }
}

impl KeyIndex {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Versions> {
        self.keys.get(key)
    }

    /// The keys of `span`, ascending.
    pub(crate) fn range<'a>(&'a self, span: Span<'_>) -> Box<dyn Iterator<Item = (&'a [u8], &'a Versions)> + 'a> {
        let (from, to) = match span {
            Span::Point(key) => {
                let hit = self.keys.get_key_value(key).map(|(key, versions)| (&**key, versions));
                return Box::new(hit.into_iter());
            }
            Span::Range(key, end) if end <= key => return Box::new(std::iter::empty()),
            Span::Range(key, end) => (Bound::Included(key), Bound::Excluded(end)),
            Span::From(key) => (Bound::Included(key), Bound::Unbounded),
        };
        Box::new(self.keys.range::<[u8], _>((from, to)).map(|(key, versions)| (&**key, versions)))
    }

    /// Adds a version. `create_revision` and `version` are 0 in a deletion.
    pub(crate) fn push(&mut self, key: &[u8], point: Point, create_revision: Revision, version: i64) {
        debug_assert_eq!(point.is_tombstone(), version == 0);
        if let Some(versions) = self.keys.get_mut(key) {
            versions.push(point);
            versions.create_revision = create_revision;
            versions.version = version;
        } else {
            self.keys.insert(key.into(), Versions { head: point, create_revision, version, older: None });
        }
    }

    /// Sweeps up to `keys_max` keys after `from` (`None`: from the first) for a compaction at `at`. Answers the last
    /// key looked at, or `None` when the end was reached.
    pub(crate) fn sweep(
        &mut self,
        from: Option<&[u8]>,
        at: Revision,
        keys_max: usize,
        doomed: &mut Vec<Point>,
    ) -> Option<Box<[u8]>> {
        let start = from.map_or(Bound::Unbounded, Bound::Excluded);
        let mut gone = Vec::new();
        let mut last = None;
        let mut seen = 0;
        for (key, versions) in self.keys.range_mut::<[u8], _>((start, Bound::Unbounded)) {
            if versions.compact(at, doomed) {
                gone.push(key.clone());
            }
            seen += 1;
            if seen == keys_max {
                last = Some(key.clone());
                break;
            }
        }
        for key in gone {
            self.keys.remove(&key);
        }
        last
    }

    /// How many keys have an entry, deleted ones that no sweep took yet included.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

const _: () = assert!(size_of::<Point>() == 16);
const _: () = assert!(size_of::<Versions>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    fn put(index: &mut KeyIndex, key: &str, main: i64, version: i64) {
        index.push(key.as_bytes(), Point::new(Rev::new(main, 0), false, 10), main, version);
    }

    fn delete(index: &mut KeyIndex, key: &str, main: i64) {
        index.push(key.as_bytes(), Point::new(Rev::new(main, 0), true, 10), 0, 0);
    }

    fn mains(index: &KeyIndex, key: &str) -> Vec<i64> {
        index.get(key.as_bytes()).map_or(Vec::new(), |versions| versions.since(0).map(|point| point.main).collect())
    }

    fn sweep(index: &mut KeyIndex, at: i64) -> Vec<i64> {
        let mut doomed = Vec::new();
        assert_eq!(index.sweep(None, at, usize::MAX, &mut doomed), None);
        doomed.iter().map(|point| point.main).collect()
    }

    #[test]
    fn a_read_at_an_old_revision_finds_the_version_of_then() {
        let mut index = KeyIndex::default();
        put(&mut index, "k", 2, 1);
        put(&mut index, "k", 4, 2);
        delete(&mut index, "k", 6);
        put(&mut index, "k", 8, 1);
        let at = |revision| index.get(b"k").and_then(|v| v.live_at(revision)).map(|point| point.main);
        let found: Vec<_> = (1..=9).map(at).collect();
        assert_eq!(found, [None, Some(2), Some(2), Some(4), Some(4), None, None, Some(8), Some(8)]);
    }

    #[test]
    fn a_sweep_leaves_what_is_still_readable() {
        let check = |at: i64, doomed: &[i64], left: &[i64]| {
            let mut index = KeyIndex::default();
            put(&mut index, "k", 2, 1);
            put(&mut index, "k", 4, 2);
            delete(&mut index, "k", 6);
            put(&mut index, "k", 8, 1);
            assert_eq!(sweep(&mut index, at), doomed, "doomed at {at}");
            assert_eq!(mains(&index, "k"), left, "left at {at}");
        };
        check(1, &[], &[2, 4, 6, 8]);
        check(2, &[], &[2, 4, 6, 8]);
        check(4, &[2], &[4, 6, 8]);
        check(5, &[2], &[4, 6, 8]);
        check(6, &[2, 4], &[6, 8]);
        check(7, &[2, 4, 6], &[8]);
        check(9, &[2, 4, 6], &[8]);
    }

    #[test]
    fn a_deletion_outlives_a_compaction_at_its_own_revision_only() {
        let mut index = KeyIndex::default();
        put(&mut index, "k", 2, 1);
        delete(&mut index, "k", 3);
        assert_eq!(sweep(&mut index, 3), [2]);
        assert_eq!(mains(&index, "k"), [3]);
        assert_eq!(sweep(&mut index, 4), [3]);
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn a_sweep_in_slices_reaches_every_key() {
        let mut index = KeyIndex::default();
        for n in 0..10 {
            put(&mut index, &format!("k{n}"), 2 * n + 2, 1);
            delete(&mut index, &format!("k{n}"), 2 * n + 3);
        }
        let (mut cursor, mut doomed, mut slices) = (None, Vec::new(), 0);
        loop {
            cursor = index.sweep(cursor.as_deref(), 100, 3, &mut doomed);
            slices += 1;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!((slices, doomed.len(), index.len()), (4, 20, 0));
    }
}
