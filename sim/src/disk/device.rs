//! A disk image behind a device that fails: draws the faults, counts them, and knows which handles are still alive.

use std::collections::{BTreeMap, BTreeSet};

use triune_storage::{DiskError, OpenMode};

use super::image::{CrashReport, DiskImage, Ino, SECTOR_BYTES, io};
use crate::{Ppm, Rng};

/// Which faults happen by chance, per operation. All off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// A read fails with EIO.
    pub read_error: Ppm,
    /// A read returns fewer bytes than there are. This breaks the contract of `DiskFile::read_at` on purpose.
    pub short_read: Ppm,
    /// A write fails with EIO after a random part of it.
    pub write_error: Ppm,
    /// A write lands at another sector of its file; reads before the next crash do not show it.
    pub misdirected_write: Ppm,
    /// A sync of a file or directory fails with EIO; a random part of what it covered becomes durable, the rest never.
    pub sync_error: Ppm,
    /// A sync says `Ok` and does nothing: a disk with a volatile cache, or a program built without fsync.
    pub lying_sync: bool,
}

/// The operations that can be made to fail by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DiskOp {
    /// `read_at`.
    Read,
    /// `write_at`, `set_len` and `allocate`.
    Write,
    /// `sync` of a file.
    Sync,
    /// `sync_dir`.
    SyncDir,
}

/// How many operations and faults a disk saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Reads asked for.
    pub reads: u64,
    /// Writes asked for.
    pub writes: u64,
    /// Syncs of files asked for.
    pub syncs: u64,
    /// Syncs of directories asked for.
    pub dir_syncs: u64,
    /// Operations that failed with EIO.
    pub errors: u64,
    /// Operations refused for lack of space.
    pub no_space: u64,
    /// Reads cut short.
    pub short_reads: u64,
    /// Writes that landed elsewhere.
    pub misdirected: u64,
    /// Bits flipped.
    pub flips: u64,
    /// Power cuts.
    pub crashes: u64,
    /// Writes torn by power cuts.
    pub torn_writes: u64,
    /// Unsynced sectors and names lost in power cuts.
    pub lost: u64,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) image: DiskImage,
    pub(super) faults: DiskFaults,
    pub(super) stats: DiskStats,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) misdirect_next: bool,
    rng: Rng,
    /// Operations to go until one of this kind fails; 1 is the next.
    countdown: BTreeMap<DiskOp, u64>,
    /// Handles opened under another generation belong to a process that is gone.
    generation: u64,
    open: BTreeMap<Ino, u32>,
}

/// What a handle holds.
#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    pub(super) path: String,
    ino: Ino,
    generation: u64,
    writable: bool,
}

impl Device {
    pub(super) fn new(image: DiskImage, seed: &Rng) -> Self {
        Self {
            image,
            faults: DiskFaults::default(),
            stats: DiskStats::default(),
            capacity_bytes: None,
            misdirect_next: false,
            rng: seed.fork("disk"),
            countdown: BTreeMap::new(),
            generation: 0,
            open: BTreeMap::new(),
        }
    }

    pub(super) fn fail_nth(&mut self, op: DiskOp, n: u64) {
        self.countdown.insert(op, n);
    }

    pub(super) fn kill(&mut self) {
        self.generation += 1;
        self.open.clear();
        self.image.collect(&BTreeSet::new());
    }

    pub(super) fn restore(&mut self, image: DiskImage) {
        self.image = image;
        self.kill();
    }

    pub(super) fn crashed(&mut self, report: CrashReport) -> CrashReport {
        self.stats.crashes += 1;
        self.stats.torn_writes += report.torn_writes;
        self.stats.lost += report.lost + report.names_lost;
        self.kill();
        report
    }

    pub(super) fn flip(&mut self, path: &str, offset: u64, bit: u8) -> bool {
        let flipped = self.image.flip_bit(path, offset, bit);
        self.stats.flips += u64::from(flipped);
        flipped
    }

    pub(super) fn open(&mut self, path: &str, mode: OpenMode) -> Result<OpenFile, DiskError> {
        let ino = self.image.open(path, mode)?;
        *self.open.entry(ino).or_insert(0) += 1;
        Ok(OpenFile { path: path.into(), ino, generation: self.generation, writable: mode != OpenMode::Read })
    }

    pub(super) fn close(&mut self, file: &OpenFile) {
        if file.generation != self.generation {
            return;
        }
        if let Some(count) = self.open.get_mut(&file.ino) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&file.ino);
            }
        }
    }

    pub(super) fn len(&self, file: &OpenFile) -> Result<u64, DiskError> {
        self.alive(file, "len")?;
        Ok(self.image.len(file.ino))
    }

    pub(super) fn read(&mut self, file: &OpenFile, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        self.alive(file, "read")?;
        self.stats.reads += 1;
        if self.fails(DiskOp::Read, self.faults.read_error) {
            return Err(io(&file.path, "read", EIO));
        }
        let mut n = self.image.read(file.ino, offset, buf);
        if n > 1 && self.rng.chance(self.faults.short_read) {
            self.stats.short_reads += 1;
            n = self.rng.range(1, n as u64 - 1) as usize;
        }
        Ok(n)
    }

    pub(super) fn write(&mut self, file: &OpenFile, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.writable(file, "write")?;
        self.stats.writes += 1;
        if self.fails(DiskOp::Write, self.faults.write_error) {
            let part = self.rng.range(0, data.len() as u64) as usize;
            let written = data.get(..part).unwrap_or_default();
            if self.room(file, offset + part as u64).is_ok() {
                self.image.write(file.ino, offset, written, offset);
            }
            return Err(io(&file.path, "write", EIO));
        }
        self.room(file, offset + data.len() as u64)?;
        let lands_at = self.draw_landing(file, offset);
        self.image.write(file.ino, offset, data, lands_at);
        Ok(())
    }

    pub(super) fn set_len(&mut self, file: &OpenFile, len: u64) -> Result<(), DiskError> {
        self.writable(file, "set_len")?;
        if self.fails(DiskOp::Write, self.faults.write_error) {
            return Err(io(&file.path, "set_len", EIO));
        }
        self.image.set_len(file.ino, len);
        Ok(())
    }

    pub(super) fn allocate(&mut self, file: &OpenFile, len: u64) -> Result<(), DiskError> {
        self.writable(file, "allocate")?;
        if self.fails(DiskOp::Write, self.faults.write_error) {
            return Err(io(&file.path, "allocate", EIO));
        }
        self.room(file, len)?;
        self.image.allocate(file.ino, len);
        Ok(())
    }

    pub(super) fn sync(&mut self, file: &OpenFile) -> Result<(), DiskError> {
        self.alive(file, "sync")?;
        self.stats.syncs += 1;
        if self.fails(DiskOp::Sync, self.faults.sync_error) {
            self.image.sync_failing(file.ino, &mut self.rng);
            return Err(io(&file.path, "sync", EIO));
        }
        if !self.faults.lying_sync {
            self.image.sync(file.ino);
        }
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, dir: &str) -> Result<(), DiskError> {
        self.stats.dir_syncs += 1;
        if self.fails(DiskOp::SyncDir, self.faults.sync_error) {
            self.image.sync_dir(dir, Some(&mut self.rng))?;
            return Err(io(dir, "sync_dir", EIO));
        }
        if !self.faults.lying_sync {
            self.image.sync_dir(dir, None)?;
            let open = self.open.keys().copied().collect();
            self.image.collect(&open);
        }
        Ok(())
    }

    fn alive(&self, file: &OpenFile, op: &'static str) -> Result<(), DiskError> {
        if file.generation == self.generation { Ok(()) } else { Err(io(&file.path, op, GONE)) }
    }

    fn writable(&self, file: &OpenFile, op: &'static str) -> Result<(), DiskError> {
        self.alive(file, op)?;
        if file.writable { Ok(()) } else { Err(io(&file.path, op, "opened for reading")) }
    }

    fn fails(&mut self, op: DiskOp, by_chance: Ppm) -> bool {
        let by_number = match self.countdown.get_mut(&op) {
            Some(1) => {
                self.countdown.remove(&op);
                true
            }
            Some(n) => {
                *n -= 1;
                false
            }
            None => false,
        };
        let fails = by_number || self.rng.chance(by_chance);
        self.stats.errors += u64::from(fails);
        fails
    }

    fn room(&mut self, file: &OpenFile, end: u64) -> Result<(), DiskError> {
        let Some(capacity) = self.capacity_bytes else { return Ok(()) };
        let growth = self.image.growth(file.ino, end);
        if growth > 0 && self.image.used_bytes() + growth > capacity {
            self.stats.no_space += 1;
            return Err(DiskError::NoSpace { path: file.path.clone() });
        }
        Ok(())
    }

    /// Where a write lands: `offset`, or now and then the same place of another sector of the file.
    fn draw_landing(&mut self, file: &OpenFile, offset: u64) -> u64 {
        let once = std::mem::take(&mut self.misdirect_next);
        if !self.rng.chance(self.faults.misdirected_write) && !once {
            return offset;
        }
        let file_sectors = self.image.len(file.ino) / SECTOR_BYTES;
        let sector = self.rng.below(file_sectors);
        let lands_at = sector * SECTOR_BYTES + offset % SECTOR_BYTES;
        self.stats.misdirected += u64::from(lands_at != offset);
        lands_at
    }
}

const EIO: &str = "input/output error (simulated)";
const GONE: &str = "the process that opened it is gone";
