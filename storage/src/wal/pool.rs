//! Segment files that are not in use: spares to write over, and one reserve for the day the disk is full.
//!
//! ```text
//! in use ──freed──▶ unpinned? ──▶ reserve missing: wal/reserve
//!                                 else room:       wal/spare-<n>  ──taken──▶ in use
//!                                 else:            removed
//! ```
//! Their names need not be durable: a freed segment that shows up again is older than the first one needed.

use std::sync::Arc;

use super::index::Segment;
use super::recovery::segment_seq;
use super::types::WalConfig;
use crate::{Disk, DiskError, DiskFile, OpenMode};

#[derive(Debug)]
pub(super) struct Pool {
    disk: Arc<dyn Disk>,
    dir: String,
    segment_bytes: u64,
    spares_max: usize,
    wants_reserve: bool,
    has_reserve: bool,
    spares: Vec<String>,
    next_spare: u64,
    /// Freed, but somebody still reads them.
    pinned: Vec<Arc<Segment>>,
}

impl Pool {
    /// Takes stock of `dir`, and removes segments older than `first_segment`.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        config: &WalConfig,
        first_segment: u64,
    ) -> Result<Self, DiskError> {
        let mut pool = Self {
            disk,
            dir: dir.to_owned(),
            segment_bytes: config.segment_bytes,
            spares_max: config.spare_segments_max,
            wants_reserve: config.reserve,
            has_reserve: false,
            spares: Vec::new(),
            next_spare: 0,
            pinned: Vec::new(),
        };
        for name in pool.disk.list(dir)? {
            let path = format!("{dir}/{name}");
            let stale = segment_seq(&name).is_some_and(|seq| seq < first_segment);
            let reserve = name == RESERVE;
            if stale || name.starts_with(SPARE) || reserve {
                let keep = !stale
                    && pool.is_full_size(&path)?
                    && if reserve { pool.wants_reserve } else { pool.spares.len() < pool.spares_max };
                if !keep {
                    pool.disk.remove(&path)?;
                } else if reserve {
                    pool.has_reserve = true;
                } else {
                    let number = name.strip_prefix(SPARE).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                    pool.next_spare = pool.next_spare.max(number + 1);
                    pool.spares.push(path);
                }
            }
        }
        Ok(pool)
    }

    fn is_full_size(&self, path: &str) -> Result<bool, DiskError> {
        Ok(self.disk.open(path, OpenMode::Read)?.len()? == self.segment_bytes)
    }

    /// A file of `size` bytes under a name of no meaning.
    pub(super) fn take(&mut self, size: u64, reserved: bool) -> Result<(String, Arc<dyn DiskFile>), DiskError> {
        if size == self.segment_bytes
            && let Some(path) = self.spares.last()
        {
            let file = self.disk.open(path, OpenMode::Write)?;
            return Ok((self.spares.pop().unwrap_or_default(), file));
        }
        match self.make(size) {
            Err(DiskError::NoSpace { .. }) if reserved && self.has_reserve && size == self.segment_bytes => {
                let path = format!("{}/{RESERVE}", self.dir);
                let file = self.disk.open(&path, OpenMode::Write)?;
                self.has_reserve = false;
                Ok((path, file))
            }
            other => other,
        }
    }

    fn make(&mut self, size: u64) -> Result<(String, Arc<dyn DiskFile>), DiskError> {
        let path = format!("{}/{SPARE}{}", self.dir, self.next_spare);
        self.next_spare += 1;
        self.allocate(&path, size).map(|file| (path, file))
    }

    fn allocate(&self, path: &str, size: u64) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.disk.open(path, OpenMode::Create)?;
        if let Err(error) = file.allocate(size) {
            if matches!(error, DiskError::NoSpace { .. }) {
                self.disk.remove(path)?;
            }
            return Err(error);
        }
        Ok(file)
    }

    /// Makes the reserve if it is wanted, missing, and fits.
    pub(super) fn fill_reserve(&mut self) -> Result<(), DiskError> {
        if !self.lacks_reserve() {
            return Ok(());
        }
        let path = format!("{}/{RESERVE}", self.dir);
        match self.allocate(&path, self.segment_bytes) {
            Ok(_) => self.has_reserve = true,
            Err(DiskError::NoSpace { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the reserve is wanted and not there: in use, or it never fitted.
    pub(super) fn lacks_reserve(&self) -> bool {
        self.wants_reserve && !self.has_reserve
    }

    /// Takes freed segments; those that somebody still holds wait.
    pub(super) fn give_back(&mut self, freed: impl Iterator<Item = Arc<Segment>>) -> Result<(), DiskError> {
        self.pinned.extend(freed);
        let mut i = 0;
        while let Some(segment) = self.pinned.get(i) {
            if Arc::strong_count(segment) > 1 {
                i += 1;
                continue;
            }
            let segment = self.pinned.remove(i);
            self.recycle(&segment)?;
        }
        Ok(())
    }

    fn recycle(&mut self, segment: &Segment) -> Result<(), DiskError> {
        if segment.size == self.segment_bytes && self.wants_reserve && !self.has_reserve {
            self.disk.rename(&segment.path, &format!("{}/{RESERVE}", self.dir))?;
            self.has_reserve = true;
        } else if segment.size == self.segment_bytes && self.spares.len() < self.spares_max {
            let path = format!("{}/{SPARE}{}", self.dir, self.next_spare);
            self.next_spare += 1;
            self.disk.rename(&segment.path, &path)?;
            self.spares.push(path);
        } else {
            self.disk.remove(&segment.path)?;
            self.fill_reserve()?;
        }
        Ok(())
    }
}

const RESERVE: &str = "reserve";
const SPARE: &str = "spare-";
