//! What one proposal costs in the cores of three replicas wired by a loop: nanoseconds and allocations.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a bench")]
#![allow(unsafe_code, reason = "a counting allocator is one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use triune_consensus::raft::{Raft, RaftMsg};
use triune_consensus::{Config, Configuration, Effect, Effects, Input, Proposal, ProposalId, Protocol, Recovered};
use triune_transport::{GroupId, LinkSession, Nanos, NodeId};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Trio {
    replicas: Vec<Raft>,
    inputs: VecDeque<(NodeId, Input<RaftMsg>)>,
    out: Effects<RaftMsg>,
    steps: u64,
    payload: Bytes,
}

impl Trio {
    fn new() -> Self {
        let ids = [1, 2, 3].map(NodeId);
        let replica = |id| {
            let from = Recovered { formed: Some(Configuration::of(ids)), ..Recovered::default() };
            let cfg = Config { cache_bytes_max: 1 << 20, ..Config::new(GroupId(0), id, id.0) };
            Raft::recover(cfg, Nanos::ZERO, from).unwrap()
        };
        let mut trio = Self {
            replicas: ids.map(replica).into(),
            inputs: VecDeque::new(),
            out: Effects::default(),
            steps: 0,
            payload: Bytes::from_static(&[7; 128]),
        };
        trio.inputs.push_back((NodeId(1), Input::Timeout));
        trio.run();
        trio
    }

    fn run(&mut self) {
        while let Some((at, input)) = self.inputs.pop_front() {
            self.steps += 1;
            self.replicas[at.0 as usize - 1].step(Nanos::from_secs(3), input, &mut self.out);
            for effect in self.out.drain() {
                match effect {
                    Effect::Persist(batch) => self.inputs.push_back((at, Input::Persisted(batch.seq))),
                    Effect::Send { to, msg, .. } => {
                        self.inputs.push_back((to, Input::Message { from: at, link: LinkSession(1), msg }));
                    }
                    Effect::Apply { entries, .. } => {
                        let upto = entries.last().unwrap().position.index;
                        self.inputs.push_back((at, Input::Applied { upto }));
                    }
                    other => drop(black_box(other)),
                }
            }
        }
    }

    fn propose(&mut self, count: u64) {
        let proposal = |id| Proposal { id: ProposalId(id), head: self.payload.clone(), sections: Vec::new() };
        let proposals = (0..count).map(proposal).collect();
        self.inputs.push_back((NodeId(1), Input::Propose(proposals)));
        self.run();
    }
}

fn proposals(c: &mut Criterion) {
    let mut group = c.benchmark_group("three replicas, one batch proposed, committed and applied everywhere");
    for batch in [1, 16, 256] {
        let mut trio = Trio::new();
        for _ in 0..200 {
            trio.propose(batch);
        }
        let (allocations, steps) = (ALLOCATIONS.load(Ordering::Relaxed), trio.steps);
        for _ in 0..100 {
            trio.propose(batch);
        }
        let made = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
        let steps = trio.steps - steps;
        println!(
            "batch {batch}: {} steps, {}.{:02} allocations a proposal over all three replicas",
            steps / 100,
            made / (100 * batch),
            made * 100 / (100 * batch) % 100
        );
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| b.iter(|| trio.propose(batch)));
    }
    group.finish();
}

criterion_group!(benches, proposals);
criterion_main!(benches);
