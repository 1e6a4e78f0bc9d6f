//! The name of a row: which transaction made it, and as its how-manieth change. etcd's row keys, byte for byte.

use super::op::Revision;

/// A change's place in history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rev {
    /// The transaction.
    pub(crate) main: Revision,
    /// The change in it, from 0.
    pub(crate) sub: u32,
}

/// `main` big-endian, `_`, `sub` big-endian as i64.
const PLAIN_LEN: usize = 17;
/// The mark behind the key of a deletion's row.
const TOMBSTONE_MARK: u8 = b't';

impl Rev {
    pub(crate) const fn new(main: Revision, sub: u32) -> Self {
        Self { main, sub }
    }

    /// The key of this change's row.
    pub(crate) fn row_key(self, tombstone: bool) -> Vec<u8> {
        let mut key = Vec::with_capacity(PLAIN_LEN + usize::from(tombstone));
        key.extend_from_slice(&self.main.to_be_bytes());
        key.push(b'_');
        key.extend_from_slice(&i64::from(self.sub).to_be_bytes());
        if tombstone {
            key.push(TOMBSTONE_MARK);
        }
        key
    }

    /// Reads a row key; whether it marks a deletion comes with it.
    pub(crate) fn parse(row_key: &[u8]) -> Option<(Self, bool)> {
        let (main, rest) = row_key.split_first_chunk::<8>()?;
        let (sep, rest) = rest.split_first()?;
        let (sub, mark) = rest.split_first_chunk::<8>()?;
        if *sep != b'_' || !matches!(mark, [] | [TOMBSTONE_MARK]) {
            return None;
        }
        let sub = u32::try_from(i64::from_be_bytes(*sub)).ok()?;
        Some((Self::new(i64::from_be_bytes(*main), sub), !mark.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_keys_sort_as_revisions_and_read_back() {
        let revs = [Rev::new(1, 0), Rev::new(1, 1), Rev::new(1, 300), Rev::new(2, 0), Rev::new(i64::MAX, u32::MAX)];
        for pair in revs.windows(2) {
            assert!(pair[0].row_key(false) < pair[1].row_key(false));
            assert!(pair[0].row_key(true) < pair[1].row_key(false));
        }
        for rev in revs {
            assert_eq!(Rev::parse(&rev.row_key(false)), Some((rev, false)));
            assert_eq!(Rev::parse(&rev.row_key(true)), Some((rev, true)));
        }
    }

    #[test]
    fn foreign_row_keys_are_refused() {
        let good = Rev::new(7, 3).row_key(true);
        for len in 0..17 {
            assert_eq!(Rev::parse(&good[..len]), None);
        }
        assert_eq!(Rev::parse(&[good.as_slice(), b"t"].concat()), None);
        assert_eq!(Rev::parse(&[&good[..17], b"x"].concat()), None);
        let mut sep = good.clone();
        sep[8] = b'-';
        assert_eq!(Rev::parse(&sep), None);
    }
}
