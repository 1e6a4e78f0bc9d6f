//! Group commit against the device's own speed: 1, 16 and 256 writers of 256 B, each batch one append and one sync,
//! beside a loop that writes and syncs the same bytes on a preallocated file. What the log adds is the difference.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use triune_storage::{
    Disk, DiskFile, Entry, Epoch, FileDisk, Index, IoSeq, MemDisk, OpenMode, Position, StreamBatch, StreamId, Wal,
    WalConfig,
};

const ENTRY_BYTES: usize = 256;
const SEGMENT_BYTES: u64 = 16 << 20;

fn batches(writers: u64, round: u64) -> Vec<StreamBatch> {
    // One stream, as one group has: the writers' entries share a batch.
    let entries = (0..writers)
        .map(|w| Entry {
            position: Position::new(1, round * writers + w + 1),
            head: bytes::Bytes::from_static(&[7; ENTRY_BYTES]),
            ..Entry::default()
        })
        .collect();
    vec![StreamBatch { stream: StreamId(0), seq: IoSeq(round + 1), epoch: Epoch(1), entries, ..StreamBatch::default() }]
}

fn log(disk: Arc<dyn Disk>) -> Wal {
    Wal::open(disk, "wal", WalConfig { segment_bytes: SEGMENT_BYTES, ..WalConfig::default() }).unwrap().0
}

/// Appends one round, syncs, and keeps the log short, so that segments are recycled as in steady state.
fn commit(wal: &mut Wal, writers: u64, round: u64) {
    wal.append(&batches(writers, round)).unwrap();
    wal.sync().unwrap();
    if round.is_multiple_of(64) {
        wal.release(StreamId(0), Index((round * writers).saturating_sub(10_000)));
    }
}

fn bare(file: &dyn DiskFile, data: &[u8], at: &mut u64) {
    let len = data.len().next_multiple_of(512) as u64;
    if *at + len > SEGMENT_BYTES {
        *at = 0;
    }
    file.write_at(*at, data).unwrap();
    file.sync().unwrap();
    *at += len;
}

fn append(c: &mut Criterion) {
    let dir: PathBuf = std::env::temp_dir().join(format!("triune-bench-append-{}", std::process::id()));
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(&dir).unwrap());
    let mut wal = log(Arc::clone(&disk));
    let file = disk.open("bare", OpenMode::Create).unwrap();
    file.allocate(SEGMENT_BYTES).unwrap();
    file.sync().unwrap();
    let mut group = c.benchmark_group("durable");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let (mut at, mut index) = (0, 0);
    for writers in [1u64, 16, 256] {
        group.throughput(Throughput::Elements(writers));
        // As many bytes as the log writes for the batch, so that the two differ in work, not in size.
        let bytes = wal_bytes(writers);
        let data = vec![7; bytes];
        group.bench_function(format!("bare/{writers}"), |b| b.iter(|| bare(&*file, &data, &mut at)));
        wal.append(&[StreamBatch { reset: Some(Position::ZERO), ..StreamBatch::default() }]).unwrap();
        index = 0;
        group.bench_function(format!("wal/{writers}"), |b| {
            b.iter(|| {
                commit(&mut wal, writers, index);
                index += 1;
            });
        });
    }
    group.finish();
    let _ = index;
    drop((wal, file, disk));
    std::fs::remove_dir_all(dir).unwrap();
}

fn wal_bytes(writers: u64) -> usize {
    let mut wal = log(Arc::new(MemDisk::new()));
    usize::try_from(wal.append(&batches(writers, 0)).unwrap().bytes).unwrap()
}

/// A disk that forgets: what is left is the log's own work.
fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("cpu");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut round = 0;
    for writers in [1u64, 256] {
        group.throughput(Throughput::Elements(writers));
        let mut wal = log(Arc::new(null::NullDisk));
        round = 0;
        group.bench_function(format!("append/{writers}"), |b| {
            b.iter(|| {
                commit(&mut wal, writers, round);
                round += 1;
            });
        });
    }
    let _ = round;
}

mod null {
    //! A disk without bytes.

    use std::sync::Arc;

    use triune_storage::{Disk, DiskError, DiskFile, OpenMode};

    #[derive(Debug)]
    pub(crate) struct NullDisk;

    impl DiskFile for NullDisk {
        fn len(&self) -> Result<u64, DiskError> {
            Ok(0)
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<usize, DiskError> {
            Ok(0)
        }
        fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
            Ok(())
        }
        fn set_len(&self, _: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn allocate(&self, _: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn sync(&self) -> Result<(), DiskError> {
            Ok(())
        }
    }

    impl Disk for NullDisk {
        fn open(&self, _: &str, _: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
            Ok(Arc::new(Self))
        }
        fn list(&self, _: &str) -> Result<Vec<String>, DiskError> {
            Ok(Vec::new())
        }
        fn create_dir_all(&self, _: &str) -> Result<(), DiskError> {
            Ok(())
        }
        fn rename(&self, _: &str, _: &str) -> Result<(), DiskError> {
            Ok(())
        }
        fn remove(&self, _: &str) -> Result<(), DiskError> {
            Ok(())
        }
        fn remove_dir_all(&self, _: &str) -> Result<(), DiskError> {
            Ok(())
        }
        fn sync_dir(&self, _: &str) -> Result<(), DiskError> {
            Ok(())
        }
    }
}

criterion_group!(benches, append, encode);
criterion_main!(benches);
