//! A file's bytes as shared pages: cheap to clone, sparse, zero where nothing was written.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

/// Invariant: no page lies wholly beyond `len`, and every byte beyond `len` in the last page is zero.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
    len: u64,
}

impl Content {
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset`; returns how many bytes lie below the end.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let available = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < available {
            let (page, within, room) = place(offset + done as u64);
            let take = room.min(available - done);
            let to = buf.get_mut(done..done + take).expect("within buf");
            match self.pages.get(&page) {
                Some(bytes) => to.copy_from_slice(bytes.get(within..within + take).expect("within the page")),
                None => to.fill(0),
            }
            done += take;
        }
        available
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (page, within, room) = place(at);
            let (now, later) = rest.split_at(room.min(rest.len()));
            let bytes = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES])));
            bytes.get_mut(within..within + now.len()).expect("within the page").copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        self.len = self.len.max(at);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (page, within, _) = place(len);
            self.pages.split_off(&if within == 0 { page } else { page + 1 });
            if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes).get_mut(within..).expect("within the page").fill(0);
            }
        }
        self.len = len;
    }

    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Flips one bit; false when `offset` is beyond the end.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) -> bool {
        let mut byte = [0];
        if self.read(offset, &mut byte) == 0 {
            return false;
        }
        self.write(offset, &[byte[0] ^ (1 << (bit % 8))]);
        true
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; self.len as usize];
        self.read(0, &mut all);
        all
    }
}

/// The page of a byte, its place in it, and the room from there to the page's end.
const fn place(offset: u64) -> (u64, usize, usize) {
    let within = (offset % PAGE_BYTES as u64) as usize;
    (offset / PAGE_BYTES as u64, within, PAGE_BYTES - within)
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} pages", self.len, self.pages.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn it_reads_like_a_plain_vector() {
        let mut rng = Rng::new(1);
        let (mut content, mut plain) = (Content::default(), Vec::<u8>::new());
        for _ in 0..2_000 {
            let at = rng.below(20_000) as usize;
            match rng.below(10) {
                0 => {
                    content.set_len(at as u64);
                    plain.resize(at, 0);
                }
                1 => assert_eq!(content.flip(at as u64, 3), plain.get_mut(at).map(|b| *b ^= 8).is_some()),
                _ => {
                    let data = vec![rng.next_u64() as u8; rng.below(9_000) as usize];
                    content.write(at as u64, &data);
                    if !data.is_empty() {
                        plain.resize(plain.len().max(at + data.len()), 0);
                        plain[at..at + data.len()].copy_from_slice(&data);
                    } else {
                        plain.resize(plain.len().max(at), 0);
                    }
                }
            }
            assert_eq!(content.len(), plain.len() as u64);
        }
        assert_eq!(content.bytes(), plain);
        let snapshot = content.clone();
        content.write(0, b"other");
        assert_eq!(snapshot.bytes(), plain, "a clone is a picture");
    }
}
