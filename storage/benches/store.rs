//! The ordered stores: a batch of 64 puts of 256 B, a read, a scan of 100; in memory and on redb over the real disk.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking")]

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use triune_storage::{FileDisk, MemStore, OrderedStore, RedbConfig, RedbStore, StoreBatch, Table};

const KEYS: u64 = 20_000;

fn key(n: u64) -> Bytes {
    Bytes::from(format!("key {:08}", n % KEYS))
}

fn batch(from: u64, n: u64) -> StoreBatch {
    let value = Bytes::from_static(&[5; 256]);
    StoreBatch { ops: (from..from + n).map(|i| (Table(1), key(i.wrapping_mul(7919)), Some(value.clone()))).collect() }
}

fn run(c: &mut Criterion, name: &str, store: &dyn OrderedStore) {
    store.commit(batch(0, KEYS)).unwrap();
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    let mut n = 0;
    group.throughput(Throughput::Elements(64));
    group.bench_function("commit/64", |b| {
        b.iter(|| {
            n += 64;
            store.commit(batch(n, 64)).unwrap();
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("get", |b| {
        b.iter(|| {
            n += 1;
            store.get(Table(1), &key(n.wrapping_mul(7919))).unwrap().unwrap()
        });
    });
    group.throughput(Throughput::Elements(100));
    group.bench_function("scan/100", |b| {
        b.iter(|| {
            n += 1;
            let from = key(n.wrapping_mul(7919) % (KEYS - 100));
            let mut left = 100;
            let range = (Bound::Included(&*from), Bound::Unbounded);
            store
                .view()
                .unwrap()
                .scan(Table(1), range, false, &mut |_, _| {
                    left -= 1;
                    left > 0
                })
                .unwrap();
            assert_eq!(left, 0);
        });
    });
    group.finish();
}

fn stores(c: &mut Criterion) {
    run(c, "mem", &MemStore::new());
    let dir = std::env::temp_dir().join(format!("triune-bench-store-{}", std::process::id()));
    let disk = FileDisk::open(&dir).unwrap();
    let store = RedbStore::open(&disk, "state", RedbConfig::default()).unwrap();
    run(c, "redb", &store);
    drop((store, disk));
    std::fs::remove_dir_all(dir).unwrap();
}

criterion_group!(benches, stores);
criterion_main!(benches);
