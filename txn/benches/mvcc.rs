//! The store's hot paths: put, range, transaction, watch fan-out, flush; and the memory a key costs, printed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark: a panic is the report")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use triune_storage::{Index, MemStore, OrderedStore, Table};
use triune_txn::mvcc::{
    Compare, CompareOperand, CompareResult, CompareTarget, PutOp, RangeOp, Request, Store, StoreLimits, Tables, TxnOp,
    WatchCreate, WatchLimits, WatcherHub,
};

const TABLES: Tables = Tables { revisions: Table(1), leases: Table(2), mark: Table(3) };
const KEYS: u64 = 100_000;

fn key(n: u64) -> Bytes {
    Bytes::from(format!("key/{:012}", n.wrapping_mul(0x9e37_79b9) % KEYS))
}

fn put(n: u64) -> PutOp {
    PutOp { key: key(n), value: Bytes::from_static(&[b'v'; 64]), ..PutOp::default() }
}

/// A store and the index of its log.
struct World {
    disk: Arc<MemStore>,
    store: Store,
    index: u64,
}

impl World {
    fn new() -> Self {
        let disk = Arc::new(MemStore::default());
        let store = Store::open(disk.clone(), TABLES, StoreLimits::default()).unwrap();
        Self { disk, store, index: 0 }
    }

    fn filled() -> Self {
        let mut world = Self::new();
        for n in 0..KEYS {
            world.put(&put(n));
        }
        world.flush();
        world
    }

    fn put(&mut self, op: &PutOp) -> triune_txn::mvcc::Events {
        self.index += 1;
        self.store.apply_put(Index(self.index), op).unwrap().events
    }

    fn flush(&mut self) {
        while let Some(flush) = self.store.take_flush() {
            self.disk.commit(flush.batch).unwrap();
            self.store.flushed(flush.mark);
        }
    }
}

fn puts(c: &mut Criterion) {
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Elements(1));
    let mut world = World::filled();
    let mut n = 0;
    group.bench_function("64 B over 100k keys", |b| {
        b.iter(|| {
            n += 1;
            if n % 10_000 == 0 {
                world.flush();
            }
            black_box(world.put(&put(n * 7)))
        });
    });
    group.finish();
}

fn ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("range");
    let world = World::filled();
    group.throughput(Throughput::Elements(1));
    let one = RangeOp { key: key(77), ..RangeOp::default() };
    group.bench_function("one key", |b| b.iter(|| black_box(world.store.range(&one).unwrap())));
    group.throughput(Throughput::Elements(100));
    let hundred = RangeOp { key: "key/".into(), range_end: "key/000000000100".into(), ..RangeOp::default() };
    group.bench_function("100 keys", |b| b.iter(|| black_box(world.store.range(&hundred).unwrap())));
    let count = RangeOp { key: "\0".into(), range_end: "\0".into(), count_only: true, ..RangeOp::default() };
    group.throughput(Throughput::Elements(KEYS));
    group.bench_function("count of 100k", |b| b.iter(|| black_box(world.store.range(&count).unwrap())));
    group.finish();
}

fn txns(c: &mut Criterion) {
    let mut group = c.benchmark_group("txn");
    group.throughput(Throughput::Elements(1));
    let mut world = World::filled();
    let mut n = 0;
    group.bench_function("compare, put, range", |b| {
        b.iter(|| {
            n += 1;
            if n % 10_000 == 0 {
                world.flush();
            }
            let compare = Compare {
                result: CompareResult::Greater as i32,
                target: CompareTarget::Version as i32,
                key: key(n),
                operand: Some(CompareOperand::Version(0)),
                range_end: Bytes::new(),
            };
            let success =
                vec![Request::Put(put(n)).into(), Request::Range(RangeOp { key: key(n), ..RangeOp::default() }).into()];
            world.index += 1;
            let op = TxnOp { compares: vec![compare], success, failure: Vec::new() };
            black_box(world.store.apply_txn(Index(world.index), &op).unwrap())
        });
    });
    group.finish();
}

fn watches(c: &mut Criterion) {
    let mut group = c.benchmark_group("watch");
    for watches in [1_u64, 100] {
        group.throughput(Throughput::Elements(watches));
        let mut world = World::filled();
        let mut hub = WatcherHub::new(WatchLimits::default());
        let wish = WatchCreate { key: key(1), ..WatchCreate::default() };
        let streams: Vec<_> = (0..watches).map(|_| hub.open_stream()).collect();
        for stream in &streams {
            hub.create(*stream, &world.store, &wish);
        }
        // Watches elsewhere, which must not cost.
        let elsewhere = hub.open_stream();
        for n in 0..10_000 {
            let range_end = Bytes::from(format!("other/{:08}", n + 1));
            let wish = WatchCreate { key: format!("other/{n:08}").into(), range_end, ..WatchCreate::default() };
            hub.create(elsewhere, &world.store, &wish);
        }
        hub.poll(elsewhere, &world.store, usize::MAX).unwrap();
        group.bench_function(format!("notify and poll {watches} of one key"), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for n in 0..iterations {
                    let events = world.put(&put(1));
                    if n % 10_000 == 0 {
                        world.flush();
                    }
                    let started = Instant::now();
                    hub.notify(&world.store, &events).unwrap();
                    for stream in &streams {
                        black_box(hub.poll(*stream, &world.store, 1 << 16).unwrap());
                    }
                    spent += started.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

fn flushes(c: &mut Criterion) {
    let mut group = c.benchmark_group("flush");
    group.throughput(Throughput::Elements(1000));
    let mut world = World::filled();
    group.bench_function("take a batch of 1000 puts", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                for n in 0..1000 {
                    world.put(&put(n));
                }
                let started = Instant::now();
                let flush = world.store.take_flush().unwrap();
                spent += started.elapsed();
                world.disk.commit(flush.batch).unwrap();
                let started = Instant::now();
                world.store.flushed(flush.mark);
                spent += started.elapsed();
            }
            spent
        });
    });
    group.finish();
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// An ordered store that forgets everything: what is left in memory is the multi-version store's own.
#[derive(Debug)]
struct Abyss(MemStore);

impl OrderedStore for Abyss {
    fn view(&self) -> Result<Box<dyn triune_storage::StoreView>, triune_storage::StoreError> {
        self.0.view()
    }

    fn commit(&self, _: triune_storage::StoreBatch) -> Result<(), triune_storage::StoreError> {
        Ok(())
    }
}

fn memory(_: &mut Criterion) {
    let limits = StoreLimits { cache_bytes_max: 0, ..StoreLimits::default() };
    let mut store = Store::open(Arc::new(Abyss(MemStore::default())), TABLES, limits).unwrap();
    let before = resident_bytes();
    let keys = 1_000_000;
    for n in 0..keys {
        let op = PutOp {
            key: format!("key/{:012}", (n * 0x9e37_79b9) % 1_000_003).into(),
            value: Bytes::from_static(&[b'v'; 64]),
            ..PutOp::default()
        };
        store.apply_put(Index(n + 1), &op).unwrap();
        if n % 1000 == 999 {
            let flush = store.take_flush().unwrap();
            store.flushed(flush.mark);
        }
    }
    let after = resident_bytes();
    println!("memory: {} B a key of 16 B, values on disk, {keys} keys", after.saturating_sub(before) / keys);
}

criterion_group!(benches, memory, puts, ranges, txns, watches, flushes);
criterion_main!(benches);
