//! What a frame costs: the codec alone, and 128-byte frames through a `mem` and a `tcp` pair.
//!
//! Both ends of a pair share one thread, so the figure is the CPU of sender and receiver together, not a pipeline of two
//! cores. `batch` is how many frames are queued before the receiver is let run: 1 shows the cost of waking, 1000 what is
//! left when it is shared.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; criterion's macros make undocumented items")]

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use triune_transport::mem::{MemConfig, MemNetwork};
use triune_transport::tcp::codec::{FrameDecoder, encode_header};
use triune_transport::tcp::{TcpConfig, TcpTransport};
use triune_transport::{Channel, Event, Lane, NodeId, Transport};

const BATCHES: [usize; 3] = [1, 32, 1000];

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    for bytes in [128, 4 << 10, 64 << 10] {
        let frame = vec![7; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("encode", bytes), |b| b.iter(|| encode_header(Channel::Log, &frame)));

        let count = (64 << 10) / bytes;
        let mut wire = Vec::new();
        for _ in 0..count {
            wire.extend_from_slice(&encode_header(Channel::Log, &frame));
            wire.extend_from_slice(&frame);
        }
        group.throughput(Throughput::Bytes(wire.len() as u64));
        group.bench_function(BenchmarkId::new("decode", bytes), |b| {
            b.iter(|| {
                let mut decoder = FrameDecoder::new(Lane::Main, 1 << 20);
                decoder.space().extend_from_slice(&wire);
                let mut frames = 0;
                while decoder.next_frame().unwrap().is_some() {
                    frames += 1;
                }
                assert_eq!(frames, count);
            });
        });
    }
    group.finish();
}

fn pairs(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let network = MemNetwork::new(MemConfig::default());
    let (a, b) = (network.join(NodeId(1)).unwrap(), network.join(NodeId(2)).unwrap());
    pair(c, "mem", &runtime, &a, &b);

    let bind = |id| runtime.block_on(TcpTransport::bind(TcpConfig::new(NodeId(id)))).unwrap();
    let (a, b) = (bind(1), bind(2));
    a.set_peer(NodeId(2), b.local_addr().to_string());
    pair(c, "tcp", &runtime, &a, &b);
    runtime.block_on(a.shutdown(1_000));
    runtime.block_on(b.shutdown(1_000));
}

fn pair<T: Transport>(c: &mut Criterion, name: &str, runtime: &Runtime, a: &T, b: &T) {
    let frame = Bytes::from(vec![7; 128]);
    runtime.block_on(async {
        while a.send(b.local(), Channel::Log, frame.clone()).is_err() {
            tokio::task::yield_now().await;
        }
        while !matches!(b.recv().await, Some(Event::Frame { .. })) {}
    });
    let mut group = c.benchmark_group(name);
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        let mut events = Vec::with_capacity(batch);
        group.bench_function(BenchmarkId::new("128B", batch), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    for _ in 0..batch {
                        a.send(b.local(), Channel::Log, frame.clone()).unwrap();
                    }
                    events.clear();
                    while events.len() < batch {
                        b.recv_many(&mut events, batch).await;
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = codec, pairs
}
criterion_main!(benches);
