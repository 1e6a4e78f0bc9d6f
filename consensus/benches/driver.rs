//! The driver's throughput: 1, 64 and 1024 proposers in a closed loop against three replicas of one process.
//!
//! Links and logs are in memory, so this measures the machine, the queues and the wake-ups: what is left when disk and
//! network cost nothing. `threads` counts three machine threads, three log threads and one runtime.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench, by criterion's macros")]

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use triune_consensus::driver::{Driver, DriverConfig, DriverHandle, MemLog};
use triune_consensus::raft::Raft;
use triune_consensus::replica::{App, AppError, Replica, ReplicaConfig, ReplicaOutput, ReplicaRequest, Token};
use triune_consensus::{Config, Configuration, Entry, Recovered, Role};
use triune_transport::mem::{MemConfig, MemNetwork};
use triune_transport::{GroupId, Nanos, NodeId, Transport};

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// Counts commands.
struct Count(u64);

impl App for Count {
    type Response = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, _entry: &Entry) -> u64 {
        self.0 += 1;
        self.0
    }

    fn query(&self, (): ()) -> u64 {
        self.0
    }

    fn snapshot(&self) -> Bytes {
        Bytes::new()
    }

    fn restore(&mut self, _state: Bytes) -> Result<(), AppError> {
        Ok(())
    }
}

/// What a replica tells the load.
enum Word {
    Leads(usize),
    Applied(Token),
}

struct Cluster {
    handles: Vec<DriverHandle<ReplicaRequest<()>>>,
    words: mpsc::Receiver<Word>,
    leader: usize,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let _inside = runtime.enter();
        let network = MemNetwork::new(MemConfig::default());
        let (tell, words) = mpsc::channel();
        let mut handles = Vec::new();
        for (at, node) in NODES.into_iter().enumerate() {
            let formed = Recovered { formed: Some(Configuration::of(NODES)), ..Recovered::default() };
            let protocol = Config::new(GroupId(0), node, node.0);
            let config = ReplicaConfig { durable: false, save_every: 100_000, ..ReplicaConfig::default() };
            let replica = Replica::<Raft, _>::recover(protocol, config, Nanos::ZERO, formed, Count(0), None).unwrap();
            let transport: Arc<dyn Transport> = Arc::new(network.join(node).unwrap());
            let tell = tell.clone();
            let sink = move |output| match output {
                ReplicaOutput::Applied { token, .. } => drop(tell.send(Word::Applied(token))),
                ReplicaOutput::Role(change) if change.role == Role::Leader => drop(tell.send(Word::Leads(at))),
                _ => {}
            };
            let log = MemLog::new().open();
            handles.push(Driver::spawn(replica, log, transport, sink, DriverConfig::default()).unwrap());
        }
        let leader = loop {
            if let Word::Leads(at) = words.recv().unwrap() {
                break at;
            }
        };
        Self { handles, words, leader, _runtime: runtime }
    }

    fn propose(&self, token: u64) {
        let head = Bytes::from_static(&[7; 16]);
        let request = ReplicaRequest::Propose { token: Token(token), head, sections: Vec::new() };
        self.handles[self.leader].request(request).unwrap();
    }

    /// `proposers` of them keep one command each in the air until `commands` are applied.
    fn run(&self, proposers: u64, commands: u64) -> Duration {
        let began = Instant::now();
        let mut sent = proposers.min(commands);
        (0..sent).for_each(|token| self.propose(token));
        for _ in 0..commands {
            let token = loop {
                if let Word::Applied(token) = self.words.recv().unwrap() {
                    break token;
                }
            };
            if sent < commands {
                self.propose(token.0);
                sent += 1;
            }
        }
        began.elapsed()
    }
}

fn throughput(c: &mut Criterion) {
    let cluster = Cluster::start();
    let mut group = c.benchmark_group("driver");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    for proposers in [1, 64, 1024] {
        group.bench_function(format!("{proposers} proposers"), |b| {
            b.iter_custom(|commands| cluster.run(proposers, commands));
        });
    }
    group.finish();
    for handle in &cluster.handles {
        eprintln!("{:?}", handle.stats());
        handle.stop();
    }
}

criterion_group!(benches, throughput);
criterion_main!(benches);
