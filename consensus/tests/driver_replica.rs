//! Whole replicas on the driver: three of them in one process, over links and logs in memory.
//!
//! Nothing here sleeps: a test waits for outputs. Crashes are drivers that end while others go on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use triune_consensus::driver::{Driver, DriverConfig, DriverExit, DriverHandle, MemLog};
use triune_consensus::raft::{Raft, RaftDetail};
use triune_consensus::replica::{App, AppError, Replica, ReplicaConfig, ReplicaOutput, ReplicaRequest, Token};
use triune_consensus::{AdminOp, Config, Configuration, Entry, Index, Recovered, Role};
use triune_storage::{Fate, MemDisk, StreamId, Wal, WalConfig};
use triune_transport::mem::{MemConfig, MemNetwork};
use triune_transport::{GroupId, Nanos, NodeId, Transport};

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// Every command applied, in order.
#[derive(Default)]
struct Journal(Vec<u64>);

impl App for Journal {
    type Response = usize;
    type Query = ();
    type Answer = Vec<u64>;

    fn apply(&mut self, entry: &Entry) -> usize {
        self.0.push(entry.head.clone().get_u64());
        self.0.len()
    }

    fn query(&self, (): ()) -> Vec<u64> {
        self.0.clone()
    }

    fn snapshot(&self) -> Bytes {
        self.0.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn restore(&mut self, mut state: Bytes) -> Result<(), AppError> {
        self.0.clear();
        while state.has_remaining() {
            self.0.push(state.try_get_u64()?);
        }
        Ok(())
    }
}

type Output = ReplicaOutput<usize, Vec<u64>, RaftDetail>;

/// A replica's driver and its end of the network.
type Running = (DriverHandle<ReplicaRequest<()>>, Arc<dyn Transport>);

struct Cluster {
    network: MemNetwork,
    logs: BTreeMap<NodeId, MemLog>,
    saved: BTreeMap<NodeId, Bytes>,
    running: BTreeMap<NodeId, Running>,
    leader: Option<NodeId>,
    tell: mpsc::UnboundedSender<(NodeId, Output)>,
    outputs: mpsc::UnboundedReceiver<(NodeId, Output)>,
    boots: u64,
    config: ReplicaConfig,
}

impl Cluster {
    fn start(config: ReplicaConfig) -> Self {
        let (tell, outputs) = mpsc::unbounded_channel();
        let mut cluster = Self {
            network: MemNetwork::new(MemConfig::default()),
            logs: NODES.iter().map(|node| (*node, MemLog::new())).collect(),
            saved: BTreeMap::new(),
            running: BTreeMap::new(),
            leader: None,
            tell,
            outputs,
            boots: 0,
            config,
        };
        for node in NODES {
            cluster.boot(node);
        }
        cluster
    }

    fn boot(&mut self, node: NodeId) {
        self.boots += 1;
        let log = &self.logs[&node];
        let formed = Some(Configuration::of(NODES));
        let recovered = Recovered { formed, ..log.recover(StreamId(0)) };
        let protocol = Config { keep_entries: 4, ..protocol(node, self.boots) };
        let saved = self.saved.get(&node).cloned();
        let app = Journal::default();
        let replica =
            Replica::<Raft, _>::recover(protocol, self.config.clone(), Nanos::ZERO, recovered, app, saved).unwrap();
        let transport: Arc<dyn Transport> = Arc::new(self.network.join(node).unwrap());
        let tell = self.tell.clone();
        let sink = move |output| drop(tell.send((node, output)));
        let config = DriverConfig { name: format!("n{}", node.0), ..DriverConfig::default() };
        let handle = Driver::spawn(replica, log.open(), Arc::clone(&transport), sink, config).unwrap();
        self.running.insert(node, (handle, transport));
    }

    async fn halt(&mut self, node: NodeId) {
        let (handle, transport) = self.running.remove(&node).unwrap();
        transport.shutdown(0).await;
        handle.stop();
        assert!(matches!(handle.exited().await, DriverExit::Stopped));
        self.leader = self.leader.filter(|leader| *leader != node);
    }

    async fn next(&mut self) -> (NodeId, Output) {
        let (node, output) = tokio::time::timeout(PATIENCE, self.outputs.recv()).await.unwrap().unwrap();
        match &output {
            ReplicaOutput::Role(change) if change.role == Role::Leader => self.leader = Some(node),
            ReplicaOutput::Role(_) if self.leader == Some(node) => self.leader = None,
            ReplicaOutput::Save(state) => {
                self.saved.insert(node, state.clone());
                self.ask(node, ReplicaRequest::Saved);
            }
            _ => {}
        }
        (node, output)
    }

    fn ask(&self, node: NodeId, request: ReplicaRequest<()>) {
        if let Some((handle, _)) = self.running.get(&node) {
            handle.request(request).unwrap();
        }
    }

    async fn leader(&mut self) -> NodeId {
        while self.leader.is_none_or(|leader| !self.running.contains_key(&leader)) {
            self.next().await;
        }
        self.leader.unwrap()
    }

    /// Proposes `n` until it is applied; returns at which length of the journal.
    async fn put(&mut self, n: u64) -> usize {
        loop {
            let leader = self.leader().await;
            let head = Bytes::copy_from_slice(&n.to_be_bytes());
            self.ask(leader, ReplicaRequest::Propose { token: Token(n), head, sections: Vec::new() });
            loop {
                match self.next().await.1 {
                    ReplicaOutput::Applied { token: Token(t), response, .. } if t == n => return response,
                    ReplicaOutput::Refused { token: Token(t), .. } | ReplicaOutput::Lost { token: Token(t) }
                        if t == n =>
                    {
                        break;
                    }
                    ReplicaOutput::Unknown { .. } => panic!("nothing here makes an outcome unknown"),
                    _ => {}
                }
            }
        }
    }

    /// A linearizable read at `node`, asked again until it is let through.
    async fn read(&mut self, node: NodeId) -> Vec<u64> {
        loop {
            self.ask(node, ReplicaRequest::Read { token: Token(0), query: () });
            loop {
                if let (at, ReplicaOutput::Answer { answer, .. }) = self.next().await
                    && at == node
                {
                    match answer {
                        Ok(journal) => return journal,
                        Err(_) => break,
                    }
                }
            }
        }
    }

    async fn view(&mut self, node: NodeId) -> triune_consensus::View<RaftDetail> {
        self.ask(node, ReplicaRequest::View { token: Token(0) });
        loop {
            if let (at, ReplicaOutput::View { view, .. }) = self.next().await
                && at == node
            {
                return view;
            }
        }
    }

    async fn stop(mut self) {
        for node in NODES {
            if self.running.contains_key(&node) {
                self.halt(node).await;
            }
        }
    }
}

/// Short timeouts: real time passes here.
fn protocol(node: NodeId, boot: u64) -> Config {
    Config {
        heartbeat: Nanos::from_millis(20),
        election_min: Nanos::from_millis(200),
        election_max: Nanos::from_millis(400),
        ..Config::new(GroupId(0), node, boot)
    }
}

#[tokio::test]
async fn commands_are_applied_in_one_order_and_read_anywhere() {
    let mut cluster = Cluster::start(ReplicaConfig::default());
    for n in 1..=20 {
        assert_eq!(cluster.put(n).await, n as usize);
    }
    for node in NODES {
        assert_eq!(cluster.read(node).await, (1..=20).collect::<Vec<_>>());
    }
    cluster.stop().await;
}

#[tokio::test]
async fn commands_in_flight_are_answered_in_order() {
    let mut cluster = Cluster::start(ReplicaConfig::default());
    let leader = cluster.leader().await;
    cluster.put(0).await;
    for n in 1..=500_u64 {
        let head = Bytes::copy_from_slice(&n.to_be_bytes());
        cluster.ask(leader, ReplicaRequest::Propose { token: Token(n), head, sections: Vec::new() });
    }
    let mut expected = 1;
    while expected <= 500 {
        if let ReplicaOutput::Applied { token, response, .. } = cluster.next().await.1 {
            assert_eq!((token, response), (Token(expected), expected as usize + 1));
            expected += 1;
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_that_restarts_replays_its_log() {
    let mut cluster = Cluster::start(ReplicaConfig::default());
    for n in 1..=5 {
        cluster.put(n).await;
    }
    let leader = cluster.leader().await;
    cluster.halt(leader).await;
    cluster.put(6).await;
    cluster.boot(leader);
    assert_eq!(cluster.read(leader).await, (1..=6).collect::<Vec<_>>());
    cluster.stop().await;
}

#[tokio::test]
async fn all_replicas_at_once_come_back_with_everything_acknowledged() {
    let mut cluster = Cluster::start(ReplicaConfig { save_every: 4, ..ReplicaConfig::default() });
    for n in 1..=30 {
        cluster.put(n).await;
    }
    for node in NODES {
        cluster.halt(node).await;
    }
    for node in NODES {
        cluster.boot(node);
    }
    assert_eq!(cluster.put(31).await, 31);
    for node in NODES {
        assert_eq!(cluster.read(node).await, (1..=31).collect::<Vec<_>>());
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_far_behind_catches_up_by_snapshot() {
    let mut cluster = Cluster::start(ReplicaConfig { save_every: 4, ..ReplicaConfig::default() });
    let leader = cluster.leader().await;
    cluster.put(1).await;
    let absent = NODES.into_iter().find(|node| *node != leader).unwrap();
    let lagging = cluster.view(absent).await.last.index;
    cluster.halt(absent).await;
    for n in 2..=60 {
        cluster.put(n).await;
    }
    let leader = cluster.leader().await;
    while cluster.view(leader).await.base.index <= lagging {
        let n = cluster.read(leader).await.len() as u64 + 1;
        cluster.put(n).await;
    }
    let written = cluster.read(leader).await.len() as u64;
    cluster.boot(absent);
    assert_eq!(cluster.read(absent).await, (1..=written).collect::<Vec<_>>());
    assert!(cluster.view(absent).await.base.index > lagging, "it cannot have replayed what nobody has any more");
    assert!(cluster.saved.contains_key(&absent), "a snapshot is saved before it counts");
    // What it installed survives it.
    cluster.halt(absent).await;
    cluster.boot(absent);
    assert_eq!(cluster.read(absent).await, (1..=written).collect::<Vec<_>>());
    cluster.stop().await;
}

#[tokio::test]
async fn the_leadership_moves_when_asked() {
    let mut cluster = Cluster::start(ReplicaConfig::default());
    cluster.put(1).await;
    let leader = cluster.leader().await;
    let to = NODES.into_iter().find(|node| *node != leader).unwrap();
    cluster.ask(leader, ReplicaRequest::Admin { token: Token(7), op: AdminOp::Transfer { to: Some(to) } });
    while cluster.leader != Some(to) {
        cluster.next().await;
    }
    assert_eq!(cluster.put(2).await, 2);
    assert_eq!(cluster.view(to).await.leader, Some(to));
    cluster.stop().await;
}

#[tokio::test]
async fn proposals_are_refused_by_a_follower_and_beyond_the_limit() {
    let mut cluster = Cluster::start(ReplicaConfig { pending_max: 0, ..ReplicaConfig::default() });
    let leader = cluster.leader().await;
    let head = Bytes::new();
    cluster.ask(leader, ReplicaRequest::Propose { token: Token(1), head, sections: Vec::new() });
    loop {
        if let ReplicaOutput::Refused { token, error } = cluster.next().await.1 {
            assert_eq!(token, Token(1));
            assert_eq!(error, triune_consensus::replica::RefusedError::Busy);
            break;
        }
    }
    assert_eq!(cluster.view(leader).await.last.index, Index(1), "only the barrier is in the log");
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_on_the_real_log_survives_the_loss_of_power() {
    let disk = Arc::new(MemDisk::new());
    let network = MemNetwork::new(MemConfig::default());
    let (tell, mut outputs) = mpsc::unbounded_channel();
    let boot = |disk: Arc<MemDisk>, boot: u64| {
        let (wal, found) =
            Wal::open(disk, "wal", WalConfig { segment_bytes: 1 << 16, ..WalConfig::default() }).unwrap();
        let stream = found.streams.get(&StreamId(0)).cloned().unwrap_or_default();
        assert!(!stream.is_faulty());
        let formed = Some(Configuration::of([NODES[0]]));
        let recovered = Recovered { formed, ..Recovered::from_log(&stream) };
        let (protocol, app) = (protocol(NODES[0], boot), Journal::default());
        let config = ReplicaConfig::default();
        let replica = Replica::<Raft, _>::recover(protocol, config, Nanos::ZERO, recovered, app, None).unwrap();
        let transport: Arc<dyn Transport> = Arc::new(network.join(NODES[0]).unwrap());
        let tell = tell.clone();
        let sink = move |output: Output| drop(tell.send(output));
        let handle = Driver::spawn(replica, wal.into(), Arc::clone(&transport), sink, DriverConfig::default()).unwrap();
        (handle, transport)
    };
    let (handle, transport) = boot(Arc::clone(&disk), 1);
    loop {
        let head = Bytes::copy_from_slice(&7_u64.to_be_bytes());
        handle.request(ReplicaRequest::Propose { token: Token(7), head, sections: Vec::new() }).unwrap();
        if let ReplicaOutput::Applied { .. } = applied_or_refused(&mut outputs).await {
            break;
        }
    }
    // Power goes while it runs; what was applied was durable.
    let after = Arc::new(disk.power_loss(&mut |_| Fate::Lost));
    transport.shutdown(0).await;
    handle.stop();
    handle.exited().await;
    while outputs.try_recv().is_ok() {}
    let (handle, _transport) = boot(after, 2);
    loop {
        handle.request(ReplicaRequest::Read { token: Token(8), query: () }).unwrap();
        if let Some(ReplicaOutput::Answer { answer: Ok(journal), .. }) = next_answer(&mut outputs).await {
            assert_eq!(journal, vec![7]);
            break;
        }
    }
    handle.stop();
    assert!(matches!(handle.exited().await, DriverExit::Stopped));
}

async fn applied_or_refused(outputs: &mut mpsc::UnboundedReceiver<Output>) -> Output {
    loop {
        let output = tokio::time::timeout(PATIENCE, outputs.recv()).await.unwrap().unwrap();
        if matches!(output, ReplicaOutput::Applied { .. } | ReplicaOutput::Refused { .. }) {
            return output;
        }
    }
}

async fn next_answer(outputs: &mut mpsc::UnboundedReceiver<Output>) -> Option<Output> {
    loop {
        let output = tokio::time::timeout(PATIENCE, outputs.recv()).await.unwrap()?;
        if matches!(output, ReplicaOutput::Answer { .. }) {
            return Some(output);
        }
    }
}
