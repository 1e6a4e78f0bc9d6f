//! `SimDisk` behind the `Disk` trait: a shared handle on one simulated device, and nothing else.
//!
//! The trait asks for `&self` from any thread, so there is a lock here, and here only; one thread uses it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use triune_storage::{Disk, DiskError, DiskFile, OpenMode};

use super::device::{Device, DiskFaults, DiskOp, DiskStats, OpenFile};
use super::image::{CrashReport, DiskImage, io};
use crate::Rng;

/// A simulated disk. Clones share it, as processes on one machine do.
#[derive(Clone)]
pub struct SimDisk {
    device: Arc<Mutex<Device>>,
}

impl SimDisk {
    /// A blank disk whose faults are drawn from `seed`.
    pub fn new(seed: &Rng) -> Self {
        Self::from_image(DiskImage::new(), seed)
    }

    /// A disk with this content.
    pub fn from_image(image: DiskImage, seed: &Rng) -> Self {
        Self { device: Arc::new(Mutex::new(Device::new(image, seed))) }
    }

    /// Sets which faults happen by chance from now on.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.device().faults = faults;
    }

    /// Which faults happen by chance.
    pub fn faults(&self) -> DiskFaults {
        self.device().faults
    }

    /// Makes the `n`-th operation of this kind from now fail once; 1 is the next one.
    pub fn fail_nth(&self, op: DiskOp, n: u64) {
        self.device().fail_nth(op, n.max(1));
    }

    /// Makes the next write land at another sector of its file; reads before the next crash do not show it.
    pub fn misdirect_next(&self) {
        self.device().misdirect_next = true;
    }

    /// Limits the space; `None` is no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.device().capacity_bytes = bytes;
    }

    /// Space taken, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.device().image.used_bytes()
    }

    /// Power fails: any subset of what was not synced is lost. All handles die.
    pub fn crash(&self, rng: &mut Rng) -> CrashReport {
        let mut device = self.device();
        let report = device.image.crash(rng);
        device.crashed(report)
    }

    /// Power fails, and of what was not synced those pieces survive for which `keep` is true; see
    /// [`DiskImage::crash_keeping`].
    pub fn crash_keeping(&self, keep: &mut dyn FnMut(usize) -> bool) -> CrashReport {
        let mut device = self.device();
        let report = device.image.crash_keeping(keep);
        device.crashed(report)
    }

    /// The process dies and the machine goes on: nothing is lost, all handles die.
    pub fn kill(&self) {
        self.device().kill();
    }

    /// The number of things a crash would decide about.
    pub fn pending(&self) -> usize {
        self.device().image.pending()
    }

    /// A picture of the disk, unsynced writes included. Cheap: pages are shared.
    pub fn snapshot(&self) -> DiskImage {
        self.device().image.clone()
    }

    /// Puts the disk back to a picture. All handles die; faults, counters and random state stay as they are.
    pub fn restore(&self, image: &DiskImage) {
        self.device().restore(image.clone());
    }

    /// Flips bit `bit` (0 to 7) of the durable byte at `offset`; false when there is none.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) -> bool {
        self.device().flip(path, offset, bit)
    }

    /// Flips a random bit in `range` of a file's durable image, or of a random file if `path` is `None`. Says where.
    pub fn flip_random(&self, path: Option<&str>, range: std::ops::Range<u64>, rng: &mut Rng) -> Option<(String, u64)> {
        let mut device = self.device();
        let candidates: Vec<_> = match path {
            Some(path) => vec![path.to_owned()],
            None => device.image.files(),
        };
        let len = |path: &String| device.image.durable_bytes(path).map_or(0, |bytes| bytes.len() as u64);
        let files: Vec<_> = candidates.into_iter().map(|p| (len(&p), p)).filter(|(l, _)| *l > range.start).collect();
        let (len, path) = rng.pick(&files)?.clone();
        let offset = rng.range(range.start, len.min(range.end).saturating_sub(1));
        let bit = rng.below(8) as u8;
        device.flip(&path, offset, bit).then_some((path, offset))
    }

    /// What happened so far.
    pub fn stats(&self) -> DiskStats {
        self.device().stats
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // A panic elsewhere (an invariant that fired) must not hide itself behind a poisoned lock.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        check(path, "open")?;
        let file = self.device().open(path, mode)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, DiskError> {
        check(dir, "list")?;
        Ok(self.device().image.list(dir))
    }

    fn create_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        check(dir, "create_dir_all")?;
        self.device().image.create_dir_all(dir)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        check(from, "rename")?;
        check(to, "rename")?;
        self.device().image.rename(from, to)
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        check(path, "remove")?;
        self.device().image.remove(path)
    }

    fn remove_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        check(dir, "remove_dir_all")?;
        self.device().image.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        check(dir, "sync_dir")?;
        self.device().sync_dir(dir)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("files", &self.device().image.files().len()).finish_non_exhaustive()
    }
}

struct SimFile {
    disk: SimDisk,
    file: OpenFile,
}

impl DiskFile for SimFile {
    fn len(&self) -> Result<u64, DiskError> {
        self.disk.device().len(&self.file)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        self.disk.device().read(&self.file, offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.disk.device().write(&self.file, offset, data)
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.disk.device().set_len(&self.file, len)
    }

    fn allocate(&self, len: u64) -> Result<(), DiskError> {
        self.disk.device().allocate(&self.file, len)
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.disk.device().sync(&self.file)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.device().close(&self.file);
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimFile").field(&self.file.path).finish()
    }
}

/// The trait's rule on paths: a path that leaves the data directory is the caller's bug, told as an error.
fn check(path: &str, op: &'static str) -> Result<(), DiskError> {
    if path.split('/').any(|name| name == "..") {
        return Err(io(path, op, "a path never leaves the data directory"));
    }
    Ok(())
}
