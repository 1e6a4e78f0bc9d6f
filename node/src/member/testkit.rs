//! A cluster of whole members wired by a loop, for tests of one behaviour at a time: writes are durable at once, each
//! frame takes a millisecond, nothing happens by chance. The seeded world with faults is `tests/sim_member.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use triune_consensus::{
    Config, Configuration, Entry, Index, IoSeq, Machine, MachineEffect, MachineInput, Position, Recovered, Role,
    SnapshotEvent, SnapshotMark, SnapshotOp,
};
use triune_storage::{MemStore, OrderedStore, Run, StoreBatch, StreamBatch};
use triune_transport::{Channel, ClusterId, GroupId, LinkSession, Nanos, NodeId};
use triune_txn::mvcc;

use super::api::{Call, Fatal, Header, Output, Refusal, Reply, Request, RequestId, StreamId, WatchRequest};
use super::{FormedMember, GroupRecovered, Member, MemberConfig, MemberLimits, applied_mark, snapshot};

pub(super) type Answer = (Header, Result<Reply, Refusal>);

/// What of a node survives its process.
#[derive(Default)]
struct Disk {
    state: Option<Bytes>,
    base: Position,
    log: Vec<Entry>,
    seq: IoSeq,
    store: Arc<MemStore>,
    /// Snapshots made, and one being received.
    made: BTreeMap<Position, Bytes>,
    received: Vec<u8>,
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) member: Option<Member>,
    disk: Disk,
    boot: u64,
    pub(super) answers: BTreeMap<RequestId, Answer>,
    pub(super) watched: BTreeMap<StreamId, Vec<mvcc::WatchResponse>>,
    /// Credit not yet given back, where the test holds it.
    pub(super) owed: BTreeMap<StreamId, usize>,
    pub(super) ended: BTreeMap<StreamId, Refusal>,
    pub(super) fatal: Option<Fatal>,
    pub(super) drained: bool,
    pub(super) installs: usize,
    /// Frames it sent, by channel, lost ones included.
    sent: BTreeMap<Channel, usize>,
    formed: Vec<FormedMember>,
}

pub(super) struct Cluster {
    pub(super) now: Nanos,
    pub(super) nodes: Vec<Node>,
    net: VecDeque<(Nanos, NodeId, NodeId, Channel, Bytes)>,
    /// Frames between these two, in this direction, are lost.
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    /// Frames of this channel are lost.
    pub(super) mute: Option<Channel>,
    /// Watch credit is not given back.
    pub(super) hold_credit: bool,
    /// Flushes are not answered.
    pub(super) hold_flushes: bool,
    held: Vec<(usize, Position, StoreBatch)>,
    pub(super) limits: MemberLimits,
    pub(super) keep_entries: u64,
    next_request: u64,
    boots: u64,
}

impl Cluster {
    pub(super) fn new(count: u64) -> Self {
        Self::with(count, MemberLimits::default(), 10_000)
    }

    pub(super) fn with(count: u64, limits: MemberLimits, keep_entries: u64) -> Self {
        let formed: Vec<FormedMember> = (1..=count)
            .map(|n| FormedMember { name: format!("m{n}"), disk: NodeId(n * 10), peer_addr: format!("m{n}:2380") })
            .collect();
        let node = |member: &FormedMember| Node {
            id: member.disk,
            name: member.name.clone(),
            member: None,
            disk: Disk::default(),
            boot: 0,
            answers: BTreeMap::new(),
            watched: BTreeMap::new(),
            owed: BTreeMap::new(),
            ended: BTreeMap::new(),
            fatal: None,
            drained: false,
            installs: 0,
            sent: BTreeMap::new(),
            formed: formed.clone(),
        };
        let mut cluster = Self {
            now: Nanos::from_secs(1),
            nodes: formed.iter().map(node).collect(),
            net: VecDeque::new(),
            cut: BTreeSet::new(),
            mute: None,
            hold_credit: false,
            hold_flushes: false,
            held: Vec::new(),
            limits,
            keep_entries,
            next_request: 0,
            boots: 0,
        };
        (0..cluster.nodes.len()).for_each(|n| cluster.start(n));
        cluster
    }

    /// A cluster that has a leader and a member table everywhere.
    pub(super) fn ready(count: u64) -> Self {
        let mut cluster = Self::new(count);
        cluster.settle();
        cluster
    }

    pub(super) fn settle(&mut self) {
        self.run_until(|c| {
            let complete = |n: &Node| {
                n.member.as_ref().is_none_or(|m| m.members().count() > 0 && m.members().all(|r| !r.version.is_empty()))
            };
            c.leader().is_some() && c.nodes.iter().all(complete)
        });
    }

    /// Adds a blank disk that was told the cluster's table.
    pub(super) fn add_blank(&mut self, name: &str, disk: u64) -> usize {
        let node = Node {
            id: NodeId(disk),
            name: name.to_owned(),
            member: None,
            disk: Disk::default(),
            boot: 0,
            answers: BTreeMap::new(),
            watched: BTreeMap::new(),
            owed: BTreeMap::new(),
            ended: BTreeMap::new(),
            fatal: None,
            drained: false,
            installs: 0,
            sent: BTreeMap::new(),
            formed: Vec::new(),
        };
        self.nodes.push(node);
        let n = self.nodes.len() - 1;
        self.start(n);
        n
    }

    pub(super) fn start(&mut self, n: usize) {
        self.boots += 1;
        let (now, boot) = (self.now, self.boots);
        let node = &mut self.nodes[n];
        node.boot = boot;
        let disk = &node.disk;
        let mut runs: Vec<Run> = Vec::new();
        for entry in &disk.log {
            let Position { epoch, index } = entry.position;
            match runs.last_mut() {
                Some(run) if run.epoch == epoch => run.last = index,
                _ => runs.push(Run { epoch, first: index, last: index }),
            }
        }
        let applied: Option<SnapshotMark> = applied_mark(&*disk.store.view().unwrap()).unwrap();
        let formed = (!node.formed.is_empty()).then(|| Configuration::of(node.formed.iter().map(|m| m.disk)));
        let recovered = Recovered {
            state: disk.state.clone(),
            base: disk.base,
            runs,
            holes: Vec::new(),
            applied,
            last_seq: disk.seq,
            formed,
        };
        let mut replica = Config::new(GroupId(0), node.id, boot);
        replica.keep_entries = self.keep_entries;
        let config = MemberConfig {
            cluster: ClusterId(99),
            node: node.id,
            name: node.name.clone(),
            boot,
            formed: node.formed.clone(),
            peer_addr: format!("{}:2380", node.name),
            client_urls: vec![format!("http://{}:2379", node.name)],
            version: "0.1.0".into(),
            wall_ms: 1_700_000_000_000,
            limits: self.limits.clone(),
            groups: vec![GroupRecovered { replica, recovered, store: node.disk.store.clone() }],
        };
        node.member = Some(Member::recover(config, now).unwrap());
        let peers: Vec<NodeId> = self.nodes.iter().filter(|p| p.member.is_some()).map(|p| p.id).collect();
        for peer in peers {
            let me = self.nodes[n].id;
            if peer != me {
                self.link(me, peer, true);
                self.link(peer, me, true);
            }
        }
    }

    /// Kills the process: what it wrote stays, what was on its way to it is lost.
    pub(super) fn stop(&mut self, n: usize) {
        let id = self.nodes[n].id;
        self.nodes[n].member = None;
        self.net.retain(|(_, from, to, _, _)| *from != id && *to != id);
        self.held.retain(|(node, _, _)| *node != n);
        let others: Vec<NodeId> = self.nodes.iter().map(|p| p.id).filter(|p| *p != id).collect();
        for other in others {
            self.link(other, id, false);
        }
    }

    fn link(&mut self, at: NodeId, peer: NodeId, up: bool) {
        let session = LinkSession(self.boots);
        let lane = triune_transport::Lane::Main;
        if let Some(n) = self.index_of(at) {
            self.step(n, MachineInput::Link { peer, lane, session, up });
        }
    }

    fn index_of(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    pub(super) fn step(&mut self, n: usize, input: MachineInput<Request>) {
        let now = self.now;
        let mut out = Vec::new();
        if let Some(member) = self.nodes[n].member.as_mut() {
            member.step(now, input, &mut out);
            member.idle(now, &mut out);
        }
        self.execute(n, out);
    }

    fn execute(&mut self, n: usize, effects: Vec<MachineEffect<Output>>) {
        let mut inputs = Vec::new();
        for effect in effects {
            match effect {
                MachineEffect::Persist(batch) => inputs.push(self.nodes[n].disk.persist(batch)),
                MachineEffect::Send { to, channel, frame } => {
                    let from = self.nodes[n].id;
                    *self.nodes[n].sent.entry(channel).or_default() += 1;
                    if !self.cut.contains(&(from, to)) && self.mute != Some(channel) {
                        let at = self.now.after(Nanos::from_millis(1));
                        self.net.push_back((at, from, to, channel, frame));
                    }
                }
                MachineEffect::Fetch { group, req, first, last, .. } => {
                    let log = &self.nodes[n].disk.log;
                    let entries: Vec<Entry> =
                        log.iter().filter(|e| e.position.index >= first && e.position.index <= last).cloned().collect();
                    let whole = entries.first().is_some_and(|e| e.position.index == first);
                    inputs.push(MachineInput::Fetched { group, req, entries: whole.then_some(entries) });
                }
                MachineEffect::Release { upto, .. } => self.nodes[n].disk.release(upto),
                MachineEffect::Output(output) => self.output(n, output, &mut inputs),
                _ => panic!("an effect this kit does not know"),
            }
        }
        for input in inputs {
            self.step(n, input);
        }
    }

    fn output(&mut self, n: usize, output: Output, inputs: &mut Vec<MachineInput<Request>>) {
        let node = &mut self.nodes[n];
        match output {
            Output::Reply { id, header, result } => {
                assert!(node.answers.insert(id, (header, result)).is_none(), "a call is answered once");
            }
            Output::Watch { stream, responses, bytes, .. } => {
                node.watched.entry(stream).or_default().extend(responses);
                if self.hold_credit {
                    *node.owed.entry(stream).or_default() += bytes;
                } else {
                    let event = WatchRequest::Taken { bytes };
                    inputs.push(MachineInput::Request(Request::Watch { stream, event }));
                }
            }
            Output::WatchEnd { stream, refusal } => {
                node.ended.insert(stream, refusal);
            }
            Output::Flush { batch, mark, .. } => {
                if self.hold_flushes {
                    self.held.push((n, mark, batch));
                } else {
                    node.disk.store.commit(batch).unwrap();
                    inputs.push(MachineInput::Request(Request::Flushed { group: GroupId(0), mark }));
                }
            }
            Output::Snapshot { op, .. } => {
                if let Some((event, store)) = node.disk.snapshot(op) {
                    node.installs += usize::from(store.is_some());
                    inputs.push(MachineInput::Request(Request::Snapshot { group: GroupId(0), event, store }));
                }
            }
            Output::Role { .. } | Output::Members(_) => {}
            Output::Fatal(fatal) => node.fatal = Some(fatal),
            Output::Drained => node.drained = true,
        }
    }

    /// Lets the earliest thing happen, if it is due by `end`. Whether something did.
    fn turn(&mut self, end: Nanos) -> bool {
        let frame_at = self.net.front().map(|(at, ..)| *at);
        let deadline = |node: &Node| node.member.as_ref().and_then(Machine::next_deadline);
        let timer = (0..self.nodes.len()).filter_map(|n| Some((deadline(&self.nodes[n])?, n))).min();
        match (frame_at, timer) {
            (Some(at), timer) if at <= end && timer.is_none_or(|(due, _)| at <= due) => {
                self.now = self.now.max(at);
                let Some((_, from, to, channel, frame)) = self.net.pop_front() else { return false };
                if self.cut.contains(&(from, to)) {
                    return true;
                }
                if let Some(n) = self.index_of(to) {
                    self.step(n, MachineInput::Frame { from, session: LinkSession(1), channel, frame });
                }
                true
            }
            (_, Some((due, n))) if due <= end => {
                self.now = self.now.max(due);
                self.step(n, MachineInput::Timeout);
                true
            }
            _ => false,
        }
    }

    pub(super) fn run_for(&mut self, span: Nanos) {
        let end = self.now.after(span);
        while self.turn(end) {}
        self.now = end;
    }

    pub(super) fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        let end = self.now.after(Nanos::from_secs(60));
        while !done(self) {
            assert!(self.turn(end), "it did not happen within a minute");
        }
    }

    /// The node that leads, if exactly one says so.
    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |n: &usize| {
            self.nodes[*n].member.as_ref().and_then(Member::view).is_some_and(|view| view.role == Role::Leader)
        };
        let mut leaders = (0..self.nodes.len()).filter(leads);
        let first = leaders.next();
        first.filter(|_| leaders.next().is_none())
    }

    pub(super) fn a_follower(&self) -> usize {
        let leader = self.leader();
        (0..self.nodes.len()).find(|n| Some(*n) != leader && self.nodes[*n].member.is_some()).unwrap()
    }

    pub(super) fn ask(&mut self, n: usize, call: Call) -> RequestId {
        self.ask_with(n, call, false)
    }

    pub(super) fn ask_with(&mut self, n: usize, call: Call, needs_leader: bool) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.step(n, MachineInput::Request(Request::Call { id, within: None, needs_leader, call }));
        id
    }

    pub(super) fn answer(&mut self, n: usize, id: RequestId) -> Answer {
        self.run_until(|c| c.nodes[n].answers.contains_key(&id));
        self.nodes[n].answers[&id].clone()
    }

    pub(super) fn call(&mut self, n: usize, call: Call) -> Result<Reply, Refusal> {
        let id = self.ask(n, call);
        self.answer(n, id).1
    }

    pub(super) fn watch(&mut self, n: usize, stream: u64, event: WatchRequest) {
        self.step(n, MachineInput::Request(Request::Watch { stream: StreamId(stream), event }));
    }

    pub(super) fn release_flushes(&mut self) {
        self.hold_flushes = false;
        for (n, mark, batch) in std::mem::take(&mut self.held) {
            self.nodes[n].disk.store.commit(batch).unwrap();
            self.step(n, MachineInput::Request(Request::Flushed { group: GroupId(0), mark }));
        }
    }

    /// Frames a node sent on a channel, lost ones included.
    pub(super) fn sent(&self, n: usize, channel: Channel) -> usize {
        self.nodes[n].sent.get(&channel).copied().unwrap_or(0)
    }

    pub(super) fn held_flushes(&self) -> usize {
        self.held.len()
    }

    pub(super) fn member(&self, n: usize) -> &Member {
        self.nodes[n].member.as_ref().unwrap()
    }

    /// All living members at one index hold one state.
    pub(super) fn check_digests(&self) {
        let mut at: BTreeMap<Position, u64> = BTreeMap::new();
        for member in self.nodes.iter().filter_map(|node| node.member.as_ref()) {
            let digest = *at.entry(member.position()).or_insert_with(|| member.digest());
            assert_eq!(digest, member.digest(), "members differ at {:?}", member.position());
        }
    }

    /// How many commands stand in the longest log.
    pub(super) fn log_len(&self) -> u64 {
        self.nodes.iter().map(|n| n.disk.base.index.0 + n.disk.log.len() as u64).max().unwrap_or(0)
    }
}

impl Disk {
    fn persist(&mut self, batch: StreamBatch) -> MachineInput<Request> {
        if let Some(base) = batch.reset {
            self.base = base;
            self.log.clear();
        }
        if let Some(from) = batch.truncate_from {
            self.log.retain(|e| e.position.index < from);
        }
        self.log.extend(batch.entries);
        if batch.state.is_some() {
            self.state = batch.state;
        }
        self.seq = batch.seq;
        MachineInput::Persisted { group: GroupId(0), seq: batch.seq }
    }

    fn release(&mut self, upto: Index) {
        if let Some(entry) = self.log.iter().find(|e| e.position.index == upto) {
            self.base = entry.position;
        }
        self.log.retain(|e| e.position.index > upto);
    }

    fn snapshot(&mut self, op: SnapshotOp) -> Option<(SnapshotEvent, Option<Arc<dyn OrderedStore>>)> {
        match op {
            SnapshotOp::Take { .. } => {
                let mut bytes = Vec::new();
                let view = self.store.view().unwrap();
                let meta = snapshot::write(&*view, |piece| {
                    bytes.extend_from_slice(&piece);
                    Ok::<_, Infallible>(())
                });
                let meta = meta.ok()?;
                self.made.insert(meta.mark.position, bytes.into());
                Some((SnapshotEvent::Taken(Some(meta)), None))
            }
            SnapshotOp::Read { req, position, offset, len_max } => {
                let data = self.made.get(&position).map(|bytes| {
                    let from = usize::try_from(offset).unwrap().min(bytes.len());
                    bytes.slice(from..bytes.len().min(from + len_max))
                });
                Some((SnapshotEvent::Chunk { req, offset, data }, None))
            }
            SnapshotOp::Write { meta, offset, data } => {
                self.received.truncate(usize::try_from(offset).unwrap());
                self.received.extend_from_slice(&data);
                let upto = self.received.len() as u64;
                Some((SnapshotEvent::Written { position: meta.mark.position, upto }, None))
            }
            SnapshotOp::Install { meta } => {
                let (mut reader, mut batch) = (snapshot::Reader::new(), StoreBatch::default());
                reader.push(&self.received, &mut batch).unwrap();
                reader.finish().unwrap();
                self.store = Arc::new(MemStore::new());
                self.store.commit(batch).unwrap();
                assert!(snapshot::is_whole(&*self.store.view().unwrap(), &meta.mark).unwrap());
                Some((SnapshotEvent::Installed(meta.mark), Some(self.store.clone())))
            }
            SnapshotOp::Drop { position } => {
                self.made.remove(&position);
                None
            }
            _ => None,
        }
    }
}

pub(super) fn put(key: &str, value: &str) -> Call {
    Call::Put(mvcc::PutOp { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() })
}

pub(super) fn get(key: &str) -> Call {
    Call::Range { op: mvcc::RangeOp { key: key.to_owned().into(), ..Default::default() }, serializable: false }
}

/// The one value a range gave.
pub(super) fn value_of(result: Result<Reply, Refusal>) -> Option<String> {
    let Ok(Reply::Range(range)) = result else { panic!("not a range: {result:?}") };
    range.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}
