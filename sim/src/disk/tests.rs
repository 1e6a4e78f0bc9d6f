//! What survives a power cut, and what each fault does.

use std::collections::BTreeSet;
use std::sync::Arc;

use triune_storage::{Disk, DiskError, DiskFile, OpenMode};

use super::*;
use crate::{Ppm, Rng};

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(&Rng::new(seed))
}

fn create(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(path, OpenMode::Create).unwrap();
    file.write_at(0, bytes).unwrap();
    file
}

fn durable(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = create(disk, path, bytes);
    file.sync().unwrap();
    disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir)).unwrap();
    file
}

fn content(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
    Some(bytes)
}

#[test]
fn synced_bytes_survive_and_unsynced_ones_may_go() {
    let disk = disk(1);
    let file = durable(&disk, "log", b"kept");
    file.write_at(4, b" gone").unwrap();
    assert_eq!(content(&disk, "log").unwrap(), b"kept gone");
    let report = disk.crash_keeping(&mut |_| false);
    assert_eq!(content(&disk, "log").unwrap(), b"kept");
    assert_eq!((report.kept, report.lost, report.names_lost), (0, 2, 0));
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_gone() {
    let disk = disk(2);
    create(&disk, "a", b"x").sync().unwrap();
    disk.crash_keeping(&mut |_| false);
    assert_eq!(content(&disk, "a"), None);
    create(&disk, "a", b"x").sync().unwrap();
    disk.crash_keeping(&mut |_| true);
    assert_eq!(content(&disk, "a").unwrap(), b"x");
}

#[test]
fn a_write_is_torn_between_sectors_only() {
    let mut rng = Rng::new(3);
    let mut torn = 0;
    for seed in 0..200 {
        let disk = disk(seed);
        let file = durable(&disk, "log", &[0; 2048]);
        file.write_at(100, &[1; 1800]).unwrap();
        torn += disk.crash(&mut rng).torn_writes;
        let bytes = content(&disk, "log").unwrap();
        assert_eq!(bytes.len(), 2048);
        for (n, sector) in bytes.chunks(512).enumerate() {
            let written = &sector[if n == 0 { 100 } else { 0 }..if n == 3 { 364 } else { 512 }];
            assert!(written.iter().all(|b| *b == written[0]), "seed {seed}: sector {n} is a mixture");
        }
    }
    assert!(torn > 50, "only {torn} torn");
}

#[test]
fn a_later_unsynced_write_can_survive_without_an_earlier_one() {
    let disk = disk(4);
    let file = durable(&disk, "log", &[0; 1024]);
    file.write_at(0, &[1; 512]).unwrap();
    file.write_at(512, &[2; 512]).unwrap();
    assert_eq!(disk.pending(), 2);
    disk.crash_keeping(&mut |n| n == 1);
    assert_eq!(content(&disk, "log").unwrap(), [[0; 512], [2; 512]].concat());
}

#[test]
fn a_rename_happens_or_not_and_never_loses_the_file() {
    let mut rng = Rng::new(5);
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let disk = disk(seed);
        durable(&disk, "current", b"old");
        create(&disk, "new", b"new").sync().unwrap();
        disk.sync_dir("").unwrap();
        disk.rename("new", "current").unwrap();
        assert_eq!(content(&disk, "current").unwrap(), b"new");
        disk.crash(&mut rng);
        outcomes.insert((content(&disk, "current").unwrap(), content(&disk, "new")));
    }
    let old = (b"old".to_vec(), Some(b"new".to_vec()));
    assert_eq!(outcomes, [old, (b"new".to_vec(), None)].into());
}

#[test]
fn a_synced_rename_brings_the_creation_along() {
    let disk = disk(6);
    disk.create_dir_all("a/b").unwrap();
    disk.sync_dir("").unwrap();
    disk.sync_dir("a").unwrap();
    create(&disk, "a/x", b"1").sync().unwrap();
    disk.rename("a/x", "a/b/y").unwrap();
    disk.sync_dir("a/b").unwrap();
    assert_eq!(disk.pending(), 0);
    disk.crash_keeping(&mut |_| false);
    assert_eq!(disk.snapshot().files(), ["a/b/y"]);
}

#[test]
fn an_unsynced_directory_takes_its_synced_files_with_it() {
    let disk = disk(7);
    disk.create_dir_all("wal").unwrap();
    durable(&disk, "wal/1", b"x");
    disk.crash_keeping(&mut |_| false);
    assert_eq!(disk.list("").unwrap(), Vec::<String>::new());
    assert_eq!(disk.list("wal").unwrap(), Vec::<String>::new());
}

#[test]
fn a_removed_file_may_come_back_until_its_directory_is_synced() {
    let disk = disk(8);
    durable(&disk, "a", b"1");
    disk.remove("a").unwrap();
    disk.crash_keeping(&mut |_| false);
    assert_eq!(content(&disk, "a").unwrap(), b"1");
    disk.remove("a").unwrap();
    disk.sync_dir("").unwrap();
    disk.crash(&mut Rng::new(1));
    assert_eq!(content(&disk, "a"), None);
}

#[test]
fn an_open_file_outlives_its_name() {
    let disk = disk(9);
    let file = durable(&disk, "a", b"1");
    disk.remove("a").unwrap();
    disk.sync_dir("").unwrap();
    let mut buf = [0; 4];
    assert_eq!(file.read_at(0, &mut buf), Ok(1));
    drop(file);
    disk.sync_dir("").unwrap();
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn handles_die_with_their_process() {
    let disk = disk(10);
    let file = create(&disk, "a", b"1");
    disk.kill();
    assert!(matches!(file.write_at(0, b"2"), Err(DiskError::Io { .. })));
    assert_eq!(content(&disk, "a").unwrap(), b"1", "the page cache outlives the process");
    let file = disk.open("a", OpenMode::Write).unwrap();
    disk.crash(&mut Rng::new(0));
    assert!(file.sync().is_err());
}

#[test]
fn a_failed_sync_is_not_made_good_by_a_later_one() {
    let mut lost = 0;
    for seed in 0..50 {
        let disk = disk(seed);
        let file = durable(&disk, "log", &[0; 512]);
        file.write_at(0, &[1; 512]).unwrap();
        disk.fail_nth(DiskOp::Sync, 1);
        assert!(matches!(file.sync(), Err(DiskError::Io { op: "sync", .. })));
        assert_eq!(content(&disk, "log").unwrap(), [1; 512], "it looks written");
        file.sync().unwrap();
        disk.crash_keeping(&mut |_| true);
        lost += u64::from(content(&disk, "log").unwrap() == [0; 512]);
    }
    assert!((10..40).contains(&lost), "{lost} of 50 lost");
}

#[test]
fn a_lying_sync_is_found_out_by_a_crash() {
    let disk = disk(12);
    disk.set_faults(DiskFaults { lying_sync: true, ..DiskFaults::default() });
    durable(&disk, "log", b"x");
    disk.crash_keeping(&mut |_| false);
    assert_eq!(content(&disk, "log"), None);
}

#[test]
fn a_full_disk_refuses_growth_and_lets_reserved_space_be_used() {
    let disk = disk(13);
    disk.set_capacity(Some(10_000));
    let reserved = disk.open("wal", OpenMode::Create).unwrap();
    reserved.allocate(8_000).unwrap();
    let other = disk.open("other", OpenMode::Create).unwrap();
    assert!(matches!(other.write_at(0, &[1; 2_001]), Err(DiskError::NoSpace { .. })));
    other.write_at(0, &[1; 2_000]).unwrap();
    reserved.write_at(7_000, &[2; 1_000]).unwrap();
    assert!(matches!(reserved.allocate(8_001), Err(DiskError::NoSpace { .. })));
    disk.remove("other").unwrap();
    reserved.allocate(9_000).unwrap();
    assert_eq!((disk.used_bytes(), disk.stats().no_space), (9_000, 2));
}

#[test]
fn a_bit_flip_hits_the_platter_and_spares_a_newer_page() {
    let disk = disk(14);
    let file = durable(&disk, "log", &[0; 8]);
    assert!(disk.flip_bit("log", 3, 0));
    assert_eq!(content(&disk, "log").unwrap(), [0, 0, 0, 1, 0, 0, 0, 0]);
    file.write_at(0, &[0; 8]).unwrap();
    assert!(disk.flip_bit("log", 4, 7));
    assert_eq!(content(&disk, "log").unwrap(), [0; 8], "the cache still holds what was written");
    assert_eq!(disk.snapshot().durable_bytes("log").unwrap(), [0, 0, 0, 1, 128, 0, 0, 0]);
    assert!(!disk.flip_bit("log", 8, 0));
    let (path, at) = disk.flip_random(None, 2..4, &mut Rng::new(1)).unwrap();
    assert!(path == "log" && (2..4).contains(&at));
}

#[test]
fn a_misdirected_write_shows_after_a_crash() {
    let disk = disk(15);
    let file = durable(&disk, "log", &[0; 512 * 64]);
    disk.set_faults(DiskFaults { misdirected_write: Ppm::ALWAYS, ..DiskFaults::default() });
    file.write_at(0, &[7; 512]).unwrap();
    file.sync().unwrap();
    assert_eq!(content(&disk, "log").unwrap()[..512], [7; 512]);
    disk.crash(&mut Rng::new(0));
    let bytes = content(&disk, "log").unwrap();
    assert_eq!(bytes[..512], [0; 512]);
    assert_eq!(bytes.iter().filter(|b| **b == 7).count(), 512);
    assert_eq!(disk.stats().misdirected, 1);
}

#[test]
fn errors_by_number_and_by_chance() {
    let disk = disk(16);
    let file = durable(&disk, "log", &[1; 4096]);
    disk.fail_nth(DiskOp::Write, 2);
    file.write_at(0, b"a").unwrap();
    assert!(file.write_at(0, b"b").is_err());
    file.write_at(0, b"c").unwrap();
    disk.fail_nth(DiskOp::SyncDir, 1);
    assert!(disk.sync_dir("").is_err());
    disk.set_faults(DiskFaults { read_error: Ppm::percent(50), short_read: Ppm::percent(50), ..DiskFaults::default() });
    let mut buf = [0; 4096];
    let results: Vec<_> = (0..1_000).map(|_| file.read_at(0, &mut buf)).collect();
    let failed = results.iter().filter(|r| r.is_err()).count();
    let short = results.iter().filter(|r| matches!(r, Ok(n) if *n < 4096)).count();
    assert!((400..600).contains(&failed) && (150..350).contains(&short), "{failed} failed, {short} short");
}

#[test]
fn the_modes_of_opening() {
    let disk = disk(17);
    assert!(matches!(disk.open("a", OpenMode::Read), Err(DiskError::NotFound { .. })));
    assert!(matches!(disk.open("no/a", OpenMode::Create), Err(DiskError::NotFound { .. })));
    disk.open("a", OpenMode::CreateNew).unwrap();
    assert!(matches!(disk.open("a", OpenMode::CreateNew), Err(DiskError::Exists { .. })));
    assert!(disk.open("a", OpenMode::Read).unwrap().write_at(0, b"x").is_err());
    assert!(disk.open("../a", OpenMode::Read).is_err());
    assert!(matches!(disk.remove("b"), Err(DiskError::NotFound { .. })));
    disk.create_dir_all("d/e").unwrap();
    disk.open("d/e/f", OpenMode::Create).unwrap();
    assert_eq!(disk.list("").unwrap(), ["a", "d"]);
    disk.rename("d", "g").unwrap();
    assert_eq!(disk.list("g/e").unwrap(), ["f"]);
    disk.remove_dir_all("g").unwrap();
    disk.remove_dir_all("g").unwrap();
    assert_eq!(disk.list("").unwrap(), ["a"]);
}

#[test]
fn every_crash_state_of_a_small_history_is_enumerated() {
    let disk = disk(18);
    let file = durable(&disk, "log", &[0; 1536]);
    file.write_at(0, &[1; 1536]).unwrap();
    let snapshot = disk.snapshot();
    let states = snapshot.crash_states(1_000, &mut Rng::new(0));
    let distinct: BTreeSet<_> = states.iter().map(|image| image.live_bytes("log").unwrap()).collect();
    assert_eq!((states.len(), distinct.len()), (8, 8));
    assert_eq!(snapshot.crash_states(5, &mut Rng::new(0)).len(), 5);
    disk.restore(&states[5]);
    assert_eq!(content(&disk, "log").unwrap(), [[1; 512], [0; 512], [1; 512]].concat());
    assert_eq!(snapshot.live_bytes("log").unwrap(), [1; 1536], "a snapshot is a picture");
}

#[test]
fn what_was_synced_survives_any_history() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let disk = disk(seed);
        let path = |rng: &mut Rng| format!("f{}", rng.below(4));
        // What must be there: bytes and names as of the last sync that covered them.
        let mut synced = std::collections::BTreeMap::new();
        for _ in 0..60 {
            let path = path(&mut rng);
            let file = disk.open(&path, OpenMode::Create).unwrap();
            match rng.below(4) {
                0 => {
                    file.sync().unwrap();
                    disk.sync_dir("").unwrap();
                    synced.insert(path.clone(), content(&disk, &path).unwrap());
                }
                1 => {
                    disk.crash(&mut rng);
                    for (path, bytes) in &synced {
                        assert!(content(&disk, path).unwrap().starts_with(bytes), "seed {seed}: {path}");
                    }
                }
                _ => {
                    // Beyond what is synced, so that the synced part must stand.
                    let from = synced.get(&path).map_or(0, Vec::len) as u64;
                    file.write_at(from + rng.below(2_000), &vec![rng.next_u64() as u8; 700]).unwrap();
                }
            }
        }
    }
}
