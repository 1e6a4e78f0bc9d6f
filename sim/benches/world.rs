//! What a simulation spends most on: the event queue, the network's draws, and the check of a history.
#![allow(missing_docs, reason = "criterion's macros make public items without words")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use triune_sim::checker::Operation;
use triune_sim::checker::register::{Register, RegisterOp, RegisterRet, Seen};
use triune_sim::checker::wgl::{Limits, check};
use triune_sim::{EventQueue, Net, NetConfig, Rng};
use triune_transport::{Channel, Nanos, NodeId};

/// A queue that holds 1,000 events: one out, one in.
fn event_queue(c: &mut Criterion) {
    let mut rng = Rng::new(1);
    let mut queue = EventQueue::new();
    (0..1_000_u64).for_each(|n| queue.push(Nanos(rng.below(1_000_000)), n));
    let mut group = c.benchmark_group("event_queue");
    group.throughput(Throughput::Elements(1));
    group.bench_function("pop_push_1000", |b| {
        b.iter(|| {
            let (now, n) = queue.pop().unwrap_or_default();
            queue.push(now.after(Nanos(rng.below(1_000_000))), black_box(n));
        });
    });
    group.finish();
}

/// One frame sent and delivered.
fn net(c: &mut Criterion) {
    let mut net = Net::new(NetConfig::default(), &Rng::new(1));
    let mut queue = EventQueue::new();
    let mut out = Vec::new();
    (1..=3).for_each(|id| net.start(Nanos::ZERO, NodeId(id), &mut out));
    let mut group = c.benchmark_group("net");
    group.throughput(Throughput::Elements(1));
    group.bench_function("send_and_arrive", |b| {
        b.iter(|| {
            let _ = net.send(queue.now(), NodeId(1), NodeId(2), Channel::Log, 7_u64, &mut out);
            out.drain(..).for_each(|delivery| queue.push(delivery.at, delivery));
            if let Some((now, delivery)) = queue.pop() {
                black_box(net.arrive(now, delivery, &mut out));
            }
        });
    });
    group.finish();
}

/// 250 operations of 32 clients on one key, as a real process test records them.
fn checker(c: &mut Criterion) {
    let history = history();
    let mut group = c.benchmark_group("checker");
    group.throughput(Throughput::Elements(history.len() as u64));
    group.bench_function("wgl_250_ops_32_clients", |b| {
        b.iter(|| check(&Register::new(), black_box(&history), Limits::default()));
    });
    group.finish();
}

fn history() -> Vec<Operation<RegisterOp<u64>, RegisterRet<u64>>> {
    let mut rng = Rng::new(3);
    let mut free_at = [0_u64; 32];
    let mut points: Vec<_> = (0..250)
        .map(|n| {
            let client = rng.below(32);
            let call = free_at.get(client as usize).copied().unwrap_or(0) + rng.below(100);
            let effect = call + rng.below(500);
            let ret = effect + rng.below(500);
            if let Some(slot) = free_at.get_mut(client as usize) {
                *slot = ret + 1;
            }
            (effect, client, call, ret, n)
        })
        .collect();
    points.sort_unstable();
    let (mut cell, mut revision, mut history) = (None, 1, Vec::new());
    for (_, client, call, ret, n) in points {
        let (op, answer) = if rng.coin() {
            revision += 1;
            cell = Some(Seen { value: n, mod_revision: Some(revision), version: None });
            (RegisterOp::Put(n), RegisterRet::Put { revision: Some(revision) })
        } else {
            (RegisterOp::Get, RegisterRet::Get(cell.clone()))
        };
        history.push(Operation { client, call: Nanos(call), op, ret: Some((Nanos(ret), answer)) });
    }
    history
}

criterion_group!(benches, event_queue, net, checker);
criterion_main!(benches);
