//! The conformance suite on every disk and store of this crate, and on broken ones that it must catch.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use triune_storage::conformance::{self, MemPower, PowerLoss, Violation};
use triune_storage::{Disk, DiskMode, FileDisk, MemDisk, MemStore, OrderedStore, RedbConfig, RedbStore};

/// A directory of its own, removed when the test passes.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("triune-conformance-{}-{n}", std::process::id())))
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}

/// The lossy disk: power loss is the death of the process, here a new `LossyDisk` over the same directory.
struct LossyPower {
    under: Arc<dyn Disk>,
    mode: DiskMode,
    disk: Arc<dyn Disk>,
    _dir: Option<TestDir>,
}

impl LossyPower {
    fn over(mode: &str, under: Arc<dyn Disk>, dir: Option<TestDir>) -> Box<dyn PowerLoss> {
        let mode: DiskMode = mode.parse().unwrap();
        Box::new(Self { disk: mode.wrap(Arc::clone(&under)), under, mode, _dir: dir })
    }

    fn on_files(mode: &str) -> Box<dyn PowerLoss> {
        let dir = TestDir::new();
        Self::over(mode, Arc::new(FileDisk::open(&dir.0).unwrap()), Some(dir))
    }

    fn on_memory(mode: &str) -> Box<dyn PowerLoss> {
        Self::over(mode, Arc::new(MemDisk::new()), None)
    }
}

impl PowerLoss for LossyPower {
    fn disk(&mut self) -> Result<Arc<dyn Disk>, Violation> {
        Ok(Arc::clone(&self.disk))
    }

    fn cut(&mut self, _seed: u64) {
        self.disk = self.mode.wrap(Arc::clone(&self.under));
    }
}

fn redb(disk: &dyn Disk) -> Result<Box<dyn OrderedStore>, Violation> {
    let store = RedbStore::open(disk, "state", RedbConfig { cache_bytes: 1 << 20 });
    store.map(|s| Box::new(s) as Box<dyn OrderedStore>).map_err(|e| Violation::new("open", e))
}

#[test]
fn disks_keep_their_word() {
    conformance::disk_keeps_its_word(&mut || Ok(Arc::new(MemDisk::new()))).unwrap();
    let dir = TestDir::new();
    conformance::disk_keeps_its_word(&mut || Ok(Arc::new(FileDisk::open(&dir.0).unwrap()))).unwrap();
    conformance::disk_keeps_its_word(&mut || LossyPower::on_memory("lossy").disk()).unwrap();
    let mut lossy = LossyPower::on_files("lossy");
    conformance::disk_keeps_its_word(&mut || lossy.disk()).unwrap();
}

#[test]
fn disks_survive_power_loss() {
    conformance::disk_survives_power_loss(&mut || Ok(Box::new(MemPower::new())), 200).unwrap();
    conformance::disk_survives_power_loss(&mut || Ok(LossyPower::on_memory("lossy")), 20).unwrap();
    conformance::disk_survives_power_loss(&mut || Ok(LossyPower::on_files("lossy")), 3).unwrap();
}

#[test]
fn the_log_survives_power_loss_on_each_disk() {
    conformance::log_survives_power_loss(&mut || Ok(Box::new(MemPower::new())), 100).unwrap();
    conformance::log_survives_power_loss(&mut || Ok(LossyPower::on_memory("lossy")), 50).unwrap();
    conformance::log_survives_power_loss(&mut || Ok(LossyPower::on_files("lossy")), 3).unwrap();
}

#[test]
fn stores_keep_their_word() {
    conformance::store_keeps_its_word(&mut || Ok(Box::new(MemStore::new()))).unwrap();
    conformance::store_keeps_its_word(&mut || redb(&MemDisk::new())).unwrap();
}

#[test]
fn the_store_survives_power_loss_on_each_disk() {
    let open = &mut |disk: Arc<dyn Disk>| redb(&*disk);
    conformance::store_survives_power_loss(&mut || Ok(Box::new(MemPower::new())), open, 15).unwrap();
    conformance::store_survives_power_loss(&mut || Ok(LossyPower::on_memory("lossy")), open, 10).unwrap();
    conformance::store_survives_power_loss(&mut || Ok(LossyPower::on_files("lossy")), open, 2).unwrap();
}

#[test]
fn a_disk_that_does_not_sync_is_caught() {
    let nosync = || LossyPower::on_memory("lossy,nosync");
    conformance::disk_survives_power_loss(&mut || Ok(nosync()), 5).unwrap_err();
    conformance::log_survives_power_loss(&mut || Ok(nosync()), 5).unwrap_err();
    let open = &mut |disk: Arc<dyn Disk>| redb(&*disk);
    conformance::store_survives_power_loss(&mut || Ok(nosync()), open, 5).unwrap_err();
}
