//! The seeded world of Raft replicas: network, disks, clocks and processes that fail, clients that write, read, move
//! the leadership and change the membership; every promise is checked after every step.
//!
//! A seed draws its own cluster (1, 2, 3 or 5 voters and two spares), limits and fault mix, runs to its number of
//! steps, then the faults end and the cluster must elect, commit and converge; at last the clients' history of the
//! registers must be linearizable.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "test support")]

use std::collections::BTreeMap;

use bytes::Bytes;
use triune_consensus::invariants::Image;
use triune_consensus::invariants::raft::{Cluster, Observer};
use triune_consensus::raft::{Raft, RaftMsg};
use triune_consensus::{
    AdminId, AdminOp, Config, ConfigChange, Index, Input, IoSeq, Position, Proposal, ProposalId, ProposeOutcome,
    Protocol, ReadId, ReadMode, Role,
};
use triune_sim::checker::register::{Keyed, Register, RegisterOp, RegisterRet, Seen};
use triune_sim::checker::wgl::{Limits, check_by_key};
use triune_sim::checker::{Operation, validate};
use triune_sim::{
    Arrival, Chaos, Clock, Counters, Delivery, EventQueue, Fault, FaultClass, Net, NetEvent, Ppm, Rng, SeedRun, Swarm,
    Trace,
};
use triune_transport::{Nanos, NodeId};

use crate::common::{self, KEYS, Node, Output, Told};

/// What must have been seen over many seeds.
pub const SOMETIMES: [&str; 14] = [
    "leader changes",
    "leaders that stepped down without quorum",
    "truncations",
    "snapshot installs",
    "configuration changes",
    "joint configurations",
    "crashes with unsynced writes",
    "power losses",
    "restarts",
    "pauses",
    "partitions",
    "writes acknowledged",
    "reads served by followers",
    "transfers",
];

const CLASSES: [FaultClass; 11] = [
    FaultClass::Loss,
    FaultClass::Duplication,
    FaultClass::Reordering,
    FaultClass::Partition,
    FaultClass::Clog,
    FaultClass::Kill,
    FaultClass::PowerLoss,
    FaultClass::PowerLossOfAll,
    FaultClass::Pause,
    FaultClass::SlowDisk,
    FaultClass::Drift,
];

/// How one run is made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: u64,
    #[cfg(feature = "mutants")]
    pub mutant: Option<triune_consensus::Mutant>,
}

impl Plan {
    pub fn of(steps: u64) -> Self {
        Self {
            steps,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Net(Delivery<RaftMsg>),
    Arrived(Arrival<RaftMsg>),
    Timer(NodeId, u64),
    Sync(NodeId, u64),
    Local(NodeId, u64),
    Client,
}

struct Member {
    node: Node,
    clock: Clock,
    /// Rises with each boot: events of an older one are void.
    life: u64,
    timer_at: Option<Nanos>,
    syncing: bool,
    locals: usize,
    paused: bool,
    deferred: Vec<Event>,
    /// Reads let through, waiting for the state machine.
    ripening: Vec<(Index, Op)>,
}

#[derive(Default)]
struct Members(BTreeMap<NodeId, Member>);

impl Cluster for Members {
    fn replica(&self, node: NodeId) -> Option<&Raft> {
        self.0.get(&node)?.node.replica.as_ref()
    }

    fn image(&self, node: NodeId) -> Option<&Image> {
        self.0.get(&node).map(|member| &member.node.image)
    }
}

#[derive(Clone, Copy, Debug)]
struct Op {
    id: u64,
    key: u64,
    call: Nanos,
    began_at: Index,
}

type Call = Operation<(u64, RegisterOp<u64>), RegisterRet<u64>>;

pub struct World {
    now: Nanos,
    rng: Rng,
    queue: EventQueue<Event>,
    net: Net,
    members: Members,
    observer: Observer,
    chaos: Chaos,
    counters: Counters,
    trace: Trace,
    history: BTreeMap<u64, Call>,
    reads: BTreeMap<ReadId, (NodeId, Op)>,
    placed: BTreeMap<(NodeId, Index), (Position, u64)>,
    /// Where each write took effect, if it did.
    taken: BTreeMap<u64, Index>,
    next_id: u64,
    boots: u64,
    steps: u64,
    client_mean: Nanos,
    sync_mean: Nanos,
    changes: bool,
    out: Output,
}

/// Runs one seed.
pub fn run(seed: u64, plan: &Plan) -> Result<SeedRun, String> {
    let mut world = World::new(seed, plan);
    world.run_until(|world| world.steps >= plan.steps);
    world.finish()?;
    world.check_history()?;
    let faults = world.chaos.drawn();
    Ok(SeedRun { steps: world.steps, faults, hash: world.trace.hash(), counters: world.counters })
}

impl World {
    fn new(seed: u64, plan: &Plan) -> Self {
        let root = Rng::new(seed);
        let mut rng = root.fork("world");
        let swarm = Swarm::draw(&mut rng, &CLASSES, Nanos::from_millis(600));
        let size = *rng.pick(&[1_u64, 2, 3, 3, 3, 5]).unwrap();
        let net = Net::new(swarm.net_config(rng.coin()), &root);
        let ids: Vec<NodeId> = (1..=size + 2).map(NodeId).collect();
        let chaos = Chaos::new(swarm.clone(), &ids[..size as usize], Nanos::ZERO, &root);
        let mut world = Self {
            now: Nanos::from_millis(1),
            queue: EventQueue::new(),
            net,
            members: Members::default(),
            observer: Observer::new(),
            // Milliseconds, or up to 50 ms on a slow disk.
            sync_mean: Nanos(rng.range(100_000, 5_000_000) + u64::from(swarm.strength(FaultClass::SlowDisk).0) * 50),
            chaos,
            counters: Counters::new(),
            trace: Trace::with_lines(if std::env::var("TRIUNE_SIM_VERBOSE").is_ok() { 400 } else { 0 }),
            history: BTreeMap::new(),
            reads: BTreeMap::new(),
            placed: BTreeMap::new(),
            taken: BTreeMap::new(),
            next_id: 0,
            boots: seed << 16,
            steps: 0,
            client_mean: rng.span(Nanos::from_millis(2), Nanos::from_millis(60)),
            changes: rng.coin(),
            out: Output::default(),
            rng,
        };
        let base = world.draw_config(plan);
        for id in ids {
            let formed = (id.0 <= size).then(|| common::voters(1..=size));
            world.boots += 1;
            let cfg = Config { node: id, boot: world.boots, ..base.clone() };
            let skew = world.rng.span(Nanos::ZERO, Nanos::from_secs(1_000));
            let clock = Clock::new(skew, 0);
            let node = Node::new(cfg, formed, clock.now_at(world.now));
            let member = Member {
                node,
                clock,
                life: 0,
                timer_at: None,
                syncing: false,
                locals: 0,
                paused: false,
                deferred: Vec::new(),
                ripening: Vec::new(),
            };
            world.members.0.insert(id, member);
            let mut deliveries = Vec::new();
            world.net.start(world.now, id, &mut deliveries);
            world.schedule(deliveries);
            world.arm(id);
        }
        world.queue.push(world.now, Event::Client);
        world
    }

    fn draw_config(&mut self, plan: &Plan) -> Config {
        let _ = plan;
        let rng = &mut self.rng;
        let mut cfg = common::config(1, 1);
        cfg.inflight_msgs_max = *rng.pick(&[1, 2, 8, 256]).unwrap();
        cfg.append_bytes_max = *rng.pick(&[1, 300, 1 << 20]).unwrap();
        cfg.inflight_bytes_max = *rng.pick(&[500, 8 << 20]).unwrap();
        cfg.cache_bytes_max = *rng.pick(&[0, 400, 32 << 20]).unwrap();
        cfg.uncommitted_bytes_max = *rng.pick(&[1_000, 64 << 20]).unwrap();
        cfg.chunk_bytes_max = *rng.pick(&[10, 50, 1 << 20]).unwrap();
        cfg.keep_entries = *rng.pick(&[0, 4, 100]).unwrap();
        cfg.promote_lag_max = 10;
        cfg.election_max = Nanos::from_millis(*rng.pick(&[1_020, 1_300, 2_000]).unwrap());
        cfg.read = *rng.pick(&[ReadMode::ReadIndex, ReadMode::ReadIndex, ReadMode::Lease]).unwrap();
        #[cfg(feature = "mutants")]
        {
            cfg.mutant = plan.mutant;
        }
        cfg
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let next_fault = self.chaos.next_at();
            match self.queue.peek_at() {
                Some(at) if next_fault.is_none_or(|fault_at| at < fault_at) => {
                    let (at, event) = self.queue.pop().unwrap();
                    self.now = self.now.max(at);
                    self.on_event(event);
                }
                _ => {
                    self.now = self.now.max(next_fault.unwrap());
                    while let Some(fault) = self.chaos.next(self.now) {
                        self.on_fault(fault);
                    }
                }
            }
        }
    }

    fn schedule(&mut self, deliveries: Vec<Delivery<RaftMsg>>) {
        for delivery in deliveries {
            self.queue.push(delivery.at, Event::Net(delivery));
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Net(delivery) => {
                let mut deliveries = Vec::new();
                let arrival = self.net.arrive(self.now, delivery, &mut deliveries);
                self.schedule(deliveries);
                if let Some(arrival) = arrival {
                    self.on_event(Event::Arrived(arrival));
                }
            }
            Event::Arrived(ref arrival) => {
                if self.defer(arrival.to, &event) {
                    return;
                }
                let Event::Arrived(Arrival { to, from, event }) = event else { unreachable!() };
                let input = match event {
                    NetEvent::Up { session, .. } => Input::Link { peer: from, session, up: true },
                    NetEvent::Down { session, .. } => Input::Link { peer: from, session, up: false },
                    NetEvent::Frame { session, frame, .. } => Input::Message { from, link: session, msg: frame },
                };
                self.step(to, input);
            }
            Event::Timer(id, life) => {
                if self.members.0[&id].life == life && !self.defer(id, &event) {
                    let member = self.members.0.get_mut(&id).unwrap();
                    member.timer_at = None;
                    let local = member.clock.now_at(self.now);
                    if member.node.is_up() && member.node.raft().next_deadline().is_some_and(|at| at <= local) {
                        self.step(id, Input::Timeout);
                    }
                    self.arm(id);
                }
            }
            Event::Sync(id, life) => {
                if self.members.0[&id].life == life && !self.defer(id, &event) {
                    self.on_sync(id);
                }
            }
            Event::Local(id, life) => {
                if self.members.0[&id].life == life && !self.defer(id, &event) {
                    let member = self.members.0.get_mut(&id).unwrap();
                    member.locals -= 1;
                    if let Some(input) = member.node.local.pop_front() {
                        self.step(id, input);
                    }
                }
            }
            Event::Client => {
                self.on_client();
                let gap = self.rng.exponential(self.client_mean);
                self.queue.push(self.now.after(gap), Event::Client);
            }
        }
    }

    /// A paused process takes nothing; it finds everything when it goes on.
    fn defer(&mut self, id: NodeId, event: &Event) -> bool {
        let member = self.members.0.get_mut(&id).unwrap();
        if member.paused {
            member.deferred.push(event.clone());
        }
        member.paused
    }

    fn on_sync(&mut self, id: NodeId) {
        let member = self.members.0.get_mut(&id).unwrap();
        member.syncing = false;
        // One sync covers what was written when it began; sometimes more was written since.
        let count = self.rng.range(1, member.node.pending.len() as u64) as usize;
        if let Some(seq) = self.make_durable(id, count) {
            self.step(id, Input::Persisted(seq));
        }
    }

    /// Write by write, so that the observer sees each state that was durable.
    fn make_durable(&mut self, id: NodeId, count: usize) -> Option<IoSeq> {
        let mut last = None;
        for _ in 0..count {
            let node = &mut self.members.0.get_mut(&id).unwrap().node;
            last = node.sync(1).or(last);
            self.observer.durable(id, &node.image);
        }
        last
    }

    fn step(&mut self, id: NodeId, input: Input<RaftMsg>) {
        let Some(member) = self.members.0.get_mut(&id).filter(|member| member.node.is_up()) else {
            return;
        };
        self.steps += 1;
        let kind = kind_of(&input);
        let was = member.node.raft().state();
        let mut out = std::mem::take(&mut self.out);
        member.node.step(member.clock.now_at(self.now), input, &mut out);
        let is = member.node.raft().state();
        self.trace.event(self.now, id, kind, &(is.term, is.last, is.commit, is.applied));
        if is.role == Role::Leader && was.role != Role::Leader {
            self.counters.hit("leader changes");
        }
        if was.role == Role::Leader && is.role != Role::Leader && is.term == was.term {
            self.counters.hit("leaders that stepped down without quorum");
        }
        let raft = self.members.replica(id).unwrap();
        for batch in out.writes.drain(..) {
            self.observer.written(id, raft, &batch);
            if batch.truncate_from.is_some() {
                self.counters.hit("truncations");
            }
        }
        // An install shows before the replica hears of it.
        for told in &out.told {
            if let Told::Installed(mark) = told {
                self.observer.installed(id, mark);
                self.counters.hit("snapshot installs");
            }
        }
        self.observer.stepped(id, &self.members);
        for told in out.told.drain(..) {
            self.on_told(id, told);
        }
        let mut deliveries = Vec::new();
        for (to, channel, msg) in out.sends.drain(..) {
            self.observer.sent(id, to, &msg, &self.members);
            let _ = self.net.send(self.now, id, to, channel, msg, &mut deliveries);
        }
        self.schedule(deliveries);
        self.out = out;
        self.ripen(id);
        self.arm(id);
    }

    /// Schedules what a member waits for.
    fn arm(&mut self, id: NodeId) {
        let member = self.members.0.get_mut(&id).unwrap();
        let Some(raft) = member.node.replica.as_ref() else {
            return;
        };
        let life = member.life;
        if let Some(deadline) = raft.next_deadline() {
            let at = member.clock.true_time_of(deadline).max(self.now);
            if member.timer_at.is_none_or(|armed| at < armed) {
                member.timer_at = Some(at);
                self.queue.push(at, Event::Timer(id, life));
            }
        }
        if !member.syncing && !member.node.pending.is_empty() {
            member.syncing = true;
            self.queue.push(self.now.after(self.rng.exponential(self.sync_mean)), Event::Sync(id, life));
        }
        while member.locals < member.node.local.len() {
            member.locals += 1;
            let delay = self.rng.exponential(Nanos::from_micros(100));
            self.queue.push(self.now.after(delay), Event::Local(id, life));
        }
    }

    fn on_told(&mut self, id: NodeId, told: Told) {
        match told {
            Told::Applied(entry) => {
                self.observer.applied(id, &entry);
                if let Some(value) = common::value_of(&entry) {
                    self.taken.insert(value, entry.position.index);
                }
                if let Some((position, op)) = self.placed.remove(&(id, entry.position.index))
                    && position == entry.position
                {
                    let ret = RegisterRet::Put { revision: i64::try_from(position.index.0).ok() };
                    self.history.get_mut(&op).unwrap().ret = Some((self.now, ret));
                    self.counters.hit("writes acknowledged");
                }
            }
            Told::Reply(ProposalId(op), ProposeOutcome::Accepted(position)) => {
                self.placed.insert((id, position.index), (position, op));
            }
            Told::Reply(ProposalId(op), _) => {
                self.history.remove(&op);
            }
            Told::Read(read, outcome) => {
                let (_, op) = self.reads.remove(&read).expect("an answer to a read nobody asked");
                if let Ok(index) = outcome {
                    self.observer.read(id, op.began_at, index);
                    self.members.0.get_mut(&id).unwrap().ripening.push((index, op));
                    if self.members.replica(id).unwrap().state().role != Role::Leader {
                        self.counters.hit("reads served by followers");
                    }
                }
            }
            Told::Admin(AdminId(kind), Ok(())) => {
                self.counters.hit(if kind % 2 == 0 { "transfers" } else { "configuration changes" });
            }
            // No disk of this world forgets what was durable: a replica that believes so is wrong.
            Told::Forgot => panic!("{id:?} believes that its disk forgot"),
            Told::Role(_) | Told::Admin(..) | Told::Installed(_) | Told::Released(_) => {}
        }
    }

    /// Serves reads whose index is applied.
    fn ripen(&mut self, id: NodeId) {
        let member = self.members.0.get_mut(&id).unwrap();
        let (applied, registers) = (member.node.machine.mark.position.index, member.node.machine.registers);
        for (_, op) in member.ripening.extract_if(.., |(index, _)| *index <= applied) {
            let value = registers[op.key as usize];
            let seen = (value != 0).then_some(Seen { value, mod_revision: None, version: None });
            let call = Operation {
                client: op.id,
                call: op.call,
                op: (op.key, RegisterOp::Get),
                ret: Some((self.now, RegisterRet::Get(seen))),
            };
            self.history.insert(op.id, call);
        }
    }

    fn on_client(&mut self) {
        let ids: Vec<NodeId> = self.members.0.keys().copied().collect();
        let anybody = *self.rng.pick(&ids).unwrap();
        // Also the deposed ones, as long as they do not know it.
        let leads = |id: &&NodeId| self.members.replica(**id).is_some_and(|raft| raft.state().role == Role::Leader);
        let leaders: Vec<NodeId> = ids.iter().filter(leads).copied().collect();
        let node = self.rng.pick(&leaders).copied().filter(|_| self.rng.chance(Ppm(800_000))).unwrap_or(anybody);
        if !self.members.0[&node].node.is_up() || self.members.0[&node].paused {
            return;
        }
        let coin = self.rng.coin();
        match self.rng.below(100) {
            0..50 => self.put(node),
            50..85 => self.read(if coin { node } else { anybody }),
            85..92 => self.checkpoint(anybody),
            92..95 => self.admin(node, 0, AdminOp::Transfer { to: coin.then_some(anybody) }),
            _ if self.changes => self.change(node),
            _ => {}
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn put(&mut self, node: NodeId) {
        let count = if self.rng.chance(Ppm(100_000)) { 5 } else { 1 };
        let mut proposals = Vec::new();
        for _ in 0..count {
            let (id, key) = (self.id(), self.rng.below(KEYS as u64));
            let op = (key, RegisterOp::Put(id));
            self.history.insert(id, Operation { client: id, call: self.now, op, ret: None });
            proposals.push(Proposal { id: ProposalId(id), head: common::put(key, id), sections: Vec::new() });
        }
        self.step(node, Input::Propose(proposals));
    }

    fn read(&mut self, node: NodeId) {
        if !self.members.0[&node].node.is_up() || self.members.0[&node].paused {
            return;
        }
        let (id, key) = (self.id(), self.rng.below(KEYS as u64));
        let began_at = self.observer.applied_max();
        self.reads.insert(ReadId(id), (node, Op { id, key, call: self.now, began_at }));
        self.step(node, Input::Read(vec![ReadId(id)]));
    }

    fn checkpoint(&mut self, node: NodeId) {
        let member = self.members.0.get_mut(&node).unwrap();
        if member.node.is_up() && !member.paused {
            member.node.checkpoint();
            self.arm(node);
        }
    }

    fn admin(&mut self, node: NodeId, kind: u64, op: AdminOp) {
        let id = AdminId(self.id() * 2 + kind);
        self.step(node, Input::Admin { id, op });
    }

    fn change(&mut self, node: NodeId) {
        let ids: Vec<NodeId> = self.members.0.keys().copied().collect();
        let (a, b) = (*self.rng.pick(&ids).unwrap(), *self.rng.pick(&ids).unwrap());
        let change = match self.rng.below(8) {
            0..3 => ConfigChange::AddLearner(a),
            3 | 4 => ConfigChange::Promote(a),
            5 => ConfigChange::Remove(a),
            _ => ConfigChange::Replace { old: a, new: b },
        };
        self.admin(node, 1, AdminOp::Change { change, context: Bytes::new() });
        let raft = self.members.replica(node);
        if raft.is_some_and(|raft| raft.configuration().1.is_joint()) {
            self.counters.hit("joint configurations");
        }
    }

    fn on_fault(&mut self, fault: Fault) {
        self.trace.event(self.now, NodeId(0), "fault", &fault);
        let mut deliveries = Vec::new();
        match fault {
            Fault::Kill(id) => self.crash(id, true),
            Fault::PowerLoss(id) => {
                self.counters.hit("power losses");
                self.crash(id, false);
            }
            Fault::Start(id) => self.start(id),
            Fault::Pause(id) => {
                self.members.0.get_mut(&id).unwrap().paused = true;
                self.counters.hit("pauses");
            }
            Fault::Resume(id) => self.resume(id),
            Fault::Partition(topology) => {
                self.net.apply(self.now, &topology, &mut deliveries);
                self.counters.hit("partitions");
            }
            Fault::Heal => self.net.heal(self.now, &mut deliveries),
            Fault::Clog { from, to, until } => self.net.clog(from, to, until),
            Fault::Drift(id, ppm) => {
                let member = self.members.0.get_mut(&id).unwrap();
                member.clock.set_drift(self.now, ppm);
                member.timer_at = None;
                self.arm(id);
            }
            _ => {}
        }
        self.schedule(deliveries);
    }

    fn crash(&mut self, id: NodeId, keep_written: bool) {
        let member = self.members.0.get_mut(&id).unwrap();
        if !member.node.is_up() {
            return;
        }
        let written = member.node.pending.len() as u64;
        let kept = if keep_written { written } else { self.rng.range(0, written) };
        if kept < written {
            self.counters.hit("crashes with unsynced writes");
        }
        self.make_durable(id, kept as usize);
        let member = self.members.0.get_mut(&id).unwrap();
        member.node.crash(0);
        member.life += 1;
        (member.timer_at, member.syncing, member.locals, member.paused) = (None, false, 0, false);
        member.deferred.clear();
        member.ripening.clear();
        self.reads.retain(|_, (node, _)| *node != id);
        self.placed.retain(|(node, _), _| *node != id);
        let mut deliveries = Vec::new();
        self.net.crash(self.now, id, &mut deliveries);
        self.schedule(deliveries);
    }

    fn start(&mut self, id: NodeId) {
        let member = self.members.0.get_mut(&id).unwrap();
        if member.node.is_up() {
            return;
        }
        self.boots += 1;
        member.node.restart(member.clock.now_at(self.now), self.boots).expect("what it wrote it can read");
        self.observer.restarted(id, member.node.raft());
        self.counters.hit("restarts");
        let mut deliveries = Vec::new();
        self.net.start(self.now, id, &mut deliveries);
        self.schedule(deliveries);
        self.arm(id);
    }

    /// What waited comes in its order, mixed with the timer that is long due.
    fn resume(&mut self, id: NodeId) {
        let member = self.members.0.get_mut(&id).unwrap();
        member.paused = false;
        let deferred = std::mem::take(&mut member.deferred);
        let spread = deferred.len() as u64 * 50;
        for (n, event) in (0..).zip(deferred) {
            let delay = match event {
                Event::Timer(..) => Nanos::from_micros(self.rng.range(0, spread)),
                _ => Nanos::from_micros(n * 50),
            };
            self.queue.push(self.now.after(delay), event);
        }
    }

    /// Ends the faults; the cluster must then elect, commit and converge.
    fn finish(&mut self) -> Result<(), String> {
        for fault in self.chaos.finish(None) {
            self.on_fault(fault);
        }
        self.net.set_config(Swarm::calm().net_config(self.net.config().sessions));
        self.sync_mean = Nanos::from_micros(200);
        let acked = self.counters.of("writes acknowledged");
        let end = self.now.after(Nanos::from_secs(60));
        self.run_until(|world| world.now >= end || world.has_settled(acked));
        if self.has_settled(acked) { Ok(()) } else { Err(format!("liveness: no progress in 60 s\n{}", self.states())) }
    }

    /// Writes went through since, and every member of the configuration is near the leader.
    fn has_settled(&self, acked: u64) -> bool {
        let leaders = self
            .members
            .0
            .values()
            .filter(|member| member.node.replica.as_ref().is_some_and(|raft| raft.state().role == Role::Leader));
        let Some(leader) = leaders.max_by_key(|member| member.node.raft().state().term) else {
            return false;
        };
        let (_, config) = leader.node.raft().configuration();
        let state = leader.node.raft().state();
        let near = |id: &NodeId| {
            let raft = self.members.replica(*id);
            raft.is_some_and(|raft| {
                raft.state().leader == Some(leader.node.id()) && raft.state().applied.0 + 20 >= state.commit.0
            })
        };
        self.counters.of("writes acknowledged") >= acked + 20 && !config.is_joint() && config.members().iter().all(near)
    }

    fn states(&self) -> String {
        let mut text = String::new();
        for (id, member) in &self.members.0 {
            let state = member.node.replica.as_ref().map_or_else(|| "down".to_owned(), Raft::summary);
            text.push_str(&format!("{id:?}: {state}\n"));
            if std::env::var("TRIUNE_SIM_VERBOSE").is_ok() {
                text.push_str(&format!("{:?}\n", member.node.replica));
            }
        }
        text.extend(self.trace.lines().map(|line| format!("{line}\n")));
        text
    }

    fn check_history(&self) -> Result<(), String> {
        let mut history: Vec<Call> = self.history.values().cloned().collect();
        // The world knows what the client does not: whether a write of unknown outcome took effect, and where. It may
        // have done so at any time since its call.
        for call in history.iter_mut().filter(|call| call.ret.is_none()) {
            let taken = self.taken.get(&call.client);
            call.ret = taken.map(|at| (self.now, RegisterRet::Put { revision: i64::try_from(at.0).ok() }));
        }
        history.retain(|call| call.ret.is_some());
        validate(&history).map_err(|error| error.to_string())?;
        let model = Keyed::<u64, _>::new(Register::new());
        let report = check_by_key(&model, &history, |op| op.0, Limits::default()).map_err(|error| error.to_string())?;
        if report.passed() { Ok(()) } else { Err(format!("G9: not linearizable: {:?}", report.failures.first())) }
    }
}

const fn kind_of(input: &Input<RaftMsg>) -> &'static str {
    match input {
        Input::Message { .. } => "message",
        Input::Timeout => "timeout",
        Input::Propose(_) => "propose",
        Input::Read(_) => "read",
        Input::Admin { .. } => "admin",
        Input::Persisted(_) => "persisted",
        Input::Applied { .. } => "applied",
        Input::Compact { .. } => "compact",
        Input::Entries { .. } => "entries",
        Input::Snapshot(_) => "snapshot",
        Input::Link { .. } => "link",
        _ => "other",
    }
}
