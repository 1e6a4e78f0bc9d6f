//! The world of one seed: members, network, disks, clocks, faults, clients, and what must hold.
//!
//! 1. Members at one position hold one state.
//! 2. Every answered operation is explained by WGL (per key) and by the order the watches gave (everything).
//! 3. The watches of all members, resumed over restarts, give one order, without gap.
//! 4. When the faults end, every member answers, and all come to one state.

use std::collections::BTreeMap;

use bytes::Bytes;
use triune_consensus::{Machine, MachineEffect, MachineInput, Position, Role};
use triune_node::member::api::{Call, Output, Refusal, Request, RequestId, WatchRequest};
use triune_node::member::{FormedMember, Part};
use triune_sim::checker::order::{self, MemberOrder, Revision};
use triune_sim::checker::wgl::{Limits, check_by_key};
use triune_sim::{
    Chaos, Counters, Delivery, DiskOp, EventQueue, Fault, FaultClass, Net, NetEvent, Rng, SeedRun, Swarm, Trace,
};
use triune_storage::{ReadError, StreamId as Stream, WalError};
use triune_transport::{Nanos, NodeId};
use triune_txn::mvcc;

use crate::clients::{Clients, Histories, Judge, Kind, Open, disarm, event_of};
use crate::node::{GROUP, Job, Node};

/// What many seeds together must have seen.
pub const SOMETIMES: [&str; 16] = [
    "disk replaced",
    "leader",
    "kill",
    "power loss",
    "power loss of all",
    "pause",
    "partition",
    "failed write",
    "no space",
    "wall jump",
    "snapshot installed",
    "forwarded frame",
    "lease ended",
    "watch resumed",
    "flush lost in a crash",
    "one member",
];

/// What some hundred seeds together must have seen as well.
pub const RARELY: [&str; 2] = ["outcome unknown", "timed out"];

const FAULTS: [FaultClass; 14] = [
    FaultClass::Loss,
    FaultClass::Partition,
    FaultClass::Clog,
    FaultClass::Kill,
    FaultClass::PowerLoss,
    FaultClass::PowerLossOfAll,
    FaultClass::Pause,
    FaultClass::SlowDisk,
    FaultClass::SyncError,
    FaultClass::WriteError,
    FaultClass::NoSpace,
    FaultClass::Drift,
    FaultClass::WallJump,
    FaultClass::LostDisk,
];

const CLIENTS: u64 = 6;

enum Ev {
    Net(Delivery<Bytes>),
    Timer { n: usize, life: u64 },
    Turn { n: usize, life: u64 },
    Synced { n: usize, life: u64 },
    Write { n: usize, life: u64 },
    Job { n: usize, life: u64 },
    Input { n: usize, life: u64, input: MachineInput<Request> },
    Client(u64),
    Restart(usize),
    Rejoin(usize),
    Chaos,
    Wall,
}

struct World {
    now: Nanos,
    rng: Rng,
    events: EventQueue<Ev>,
    net: Net,
    nodes: Vec<Node>,
    formed: Vec<FormedMember>,
    chaos: Chaos,
    sync_mean: Nanos,
    clients: Clients,
    open: BTreeMap<RequestId, (u64, Open)>,
    /// Requests to take a blank disk in: whose, and which disk.
    joins: BTreeMap<RequestId, (usize, NodeId)>,
    next_request: u64,
    /// What each member's watch gave, over its lives.
    orders: Vec<Vec<Revision>>,
    digests: BTreeMap<Position, u64>,
    histories: Histories,
    trace: Trace,
    counters: Counters,
    steps: u64,
    boots: u64,
    quiet: bool,
    no_space_seen: bool,
    /// Clients ask no more.
    stopped: bool,
    /// When the phase of the liveness check began.
    phase_at: Nanos,
}

pub fn run(seed: u64, steps_max: u64) -> Result<SeedRun, String> {
    let mut rng = Rng::new(seed);
    let count = match seed % 10 {
        0 => 1,
        5 => 5,
        _ => 3,
    };
    let formed: Vec<FormedMember> = (1..=count)
        .map(|n| FormedMember { name: format!("m{n}"), disk: NodeId(n * 17), peer_addr: format!("m{n}:2380") })
        .collect();
    let ids: Vec<NodeId> = formed.iter().map(|member| member.disk).collect();
    let swarm = Swarm::draw(&mut rng, &FAULTS, Nanos::from_millis(500));
    let about = format!("{count} members, {swarm}");
    let mut world = World {
        now: Nanos::ZERO,
        net: Net::new(swarm.net_config(true), &rng),
        nodes: formed.iter().map(|member| Node::new(member.disk, member.name.clone(), &mut rng)).collect(),
        // A sync takes 200 µs, or up to 50 ms where slow disks are on.
        sync_mean: Nanos(200_000 + u64::from(swarm.strength(FaultClass::SlowDisk).0) * 50),
        chaos: Chaos::new(swarm, &ids, Nanos::from_secs(2), &rng),
        clients: Clients::new(&rng),
        orders: vec![Vec::new(); ids.len()],
        formed,
        rng,
        events: EventQueue::new(),
        open: BTreeMap::new(),
        joins: BTreeMap::new(),
        next_request: 0,
        digests: BTreeMap::new(),
        histories: Histories::default(),
        trace: Trace::with_lines(if std::env::var("TRIUNE_SIM_TRACE").is_ok() { 20_000 } else { 0 }),
        counters: Counters::new(),
        steps: 0,
        boots: seed << 20,
        quiet: false,
        no_space_seen: false,
        stopped: false,
        phase_at: Nanos::ZERO,
    };
    let result = world.live(steps_max);
    result.map_err(|message| {
        let lines: Vec<&str> = world.trace.lines().collect();
        format!("{message}\n{about}\n{}", lines.join("\n"))
    })?;
    if count == 1 {
        world.counters.hit("one member");
    }
    Ok(SeedRun { steps: world.steps, faults: world.chaos.drawn(), hash: world.trace.hash(), counters: world.counters })
}

impl World {
    fn live(&mut self, steps_max: u64) -> Result<(), String> {
        for n in 0..self.nodes.len() {
            self.start(n)?;
        }
        for client in 0..CLIENTS {
            self.events.push(Nanos::from_millis(client * 10), Ev::Client(client));
        }
        self.events.push(Nanos::from_secs(1), Ev::Wall);
        self.plan_chaos();
        while self.steps < steps_max {
            self.turn()?;
        }
        self.liveness()?;
        self.judge()
    }

    /// Faults end: a quorum alone must serve, then all must, and come to one state.
    fn liveness(&mut self) -> Result<(), String> {
        let quorum = self.nodes.len() / 2 + 1;
        let core = self.chaos.draw_core(quorum);
        for fault in self.chaos.finish(Some(&core)) {
            self.carry_out(fault)?;
        }
        self.quiet = true;
        let is_core = |n: &usize| core.iter().any(|id| self.nodes[*n].is(*id));
        let core: Vec<usize> = (0..self.nodes.len()).filter(is_core).collect();
        self.expect("a quorum serves", Nanos::from_secs(20), |w| w.each_answers(&core))?;
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        for id in ids {
            for fault in [Fault::Drain(id), Fault::Resume(id), Fault::Start(id)] {
                self.carry_out(fault)?;
            }
        }
        self.carry_out(Fault::Heal)?;
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.expect("every member serves", Nanos::from_secs(20), |w| w.each_answers(&all))?;
        self.stopped = true;
        self.expect("every call is answered", Nanos::from_secs(20), |w| Ok(w.open.is_empty()))?;
        // Leases that still run would go on changing revisions: let them end first.
        self.expect("all come to one state", Nanos::from_secs(60), |w| {
            let at = |n: usize| w.nodes[n].member.as_ref().map(|m| (m.position(), m.store().leases().len()));
            let told = |n: usize| w.orders[n].last().map_or(1, |r| r.revision);
            let revision = w.nodes[0].member.as_ref().map_or(0, |m| m.store().revision());
            Ok(all.iter().all(|n| at(*n) == at(0) && told(*n) == revision) && at(0).is_some_and(|(_, l)| l == 0))
        })
    }

    /// Asks each of `nodes` something until all have answered. State between calls lives in the counters.
    fn each_answers(&mut self, nodes: &[usize]) -> Result<bool, String> {
        Ok(nodes
            .iter()
            .all(|n| self.nodes[*n].member.as_ref().and_then(|m| m.view()).is_some_and(|view| view.leader.is_some()))
            && nodes.iter().all(|n| self.answers_since(*n)))
    }

    fn answers_since(&self, n: usize) -> bool {
        self.nodes[n].answered_at.is_some_and(|at| at >= self.phase_at)
    }

    fn expect(
        &mut self,
        what: &str,
        within: Nanos,
        mut done: impl FnMut(&mut Self) -> Result<bool, String>,
    ) -> Result<(), String> {
        let end = self.now.after(within);
        self.phase_at = self.now;
        while !done(self)? {
            if self.now > end {
                let views: Vec<String> = self.nodes.iter().map(Node::describe).collect();
                return Err(format!("not within {within:?}: {what}\n{}", views.join("\n")));
            }
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), String> {
        let Some((at, event)) = self.events.pop() else { return Err("the world stands still".into()) };
        self.now = at;
        match event {
            Ev::Net(delivery) => self.deliver(delivery)?,
            Ev::Timer { n, life } => {
                if self.nodes[n].life == life {
                    self.nodes[n].timer_at = None;
                    self.on_timer(n)?;
                }
            }
            Ev::Turn { n, life } => {
                if self.nodes[n].life == life {
                    self.nodes[n].turn_planned = false;
                    self.poke(n)?;
                }
            }
            Ev::Synced { n, life } => self.on_synced(n, life)?,
            Ev::Write { n, life } => {
                if self.nodes[n].life == life {
                    self.write(n)?;
                }
            }
            Ev::Job { n, life } => {
                if self.nodes[n].life == life {
                    if let Some(request) = self.nodes[n].do_job() {
                        if let Request::Snapshot { store: Some(_), .. } = &request {
                            self.counters.hit("snapshot installed");
                        }
                        self.input(n, MachineInput::Request(request))?;
                    }
                    self.plan_job(n);
                }
            }
            Ev::Input { n, life, input } => {
                if self.nodes[n].life == life {
                    self.input(n, input)?;
                }
            }
            Ev::Client(client) => self.ask(client)?,
            Ev::Restart(n) => self.start(n)?,
            Ev::Rejoin(n) => self.rejoin(n)?,
            Ev::Chaos => {
                while let Some(fault) = self.chaos.next(self.now) {
                    self.carry_out(fault)?;
                }
                self.plan_chaos();
            }
            Ev::Wall => {
                for n in 0..self.nodes.len() {
                    let ms = u64::try_from(self.nodes[n].clock.wall_ms_at(self.now)).unwrap_or(0);
                    self.input(n, MachineInput::Request(Request::WallClock(ms)))?;
                }
                self.events.push(self.now.after(Nanos::from_secs(1)), Ev::Wall);
            }
        }
        Ok(())
    }

    fn plan_chaos(&mut self) {
        if let Some(at) = self.chaos.next_at() {
            self.events.push(at.max(self.now), Ev::Chaos);
        }
    }

    // Processes.

    fn start(&mut self, n: usize) -> Result<(), String> {
        if self.nodes[n].member.is_some() {
            return Ok(());
        }
        if self.nodes[n].blank {
            self.events.push(self.now.after(Nanos::from_millis(100)), Ev::Rejoin(n));
            return Ok(());
        }
        self.boots += 1;
        let (now, boot) = (self.now, self.boots);
        let formed = self.formed.clone();
        // A fault that was armed before may hit the start itself; in the quiet it hits once at most.
        let mut tries = if self.quiet { 4 } else { 1 };
        while let Err(error) = self.nodes[n].start(now, &formed, boot) {
            self.counters.hit("start failed");
            self.nodes[n].end(false);
            self.disk_dies(n, true);
            tries -= 1;
            if tries == 0 {
                return if self.quiet { Err(format!("{} cannot start: {error}", self.nodes[n].name)) } else { Ok(()) };
            }
        }
        if self.nodes[n].former.is_empty() {
            self.chaos.repaired(self.nodes[n].id);
        }
        let mut out = Vec::new();
        self.net.start(now, self.nodes[n].id, &mut out);
        self.deliveries(out);
        let stream = self.nodes[n].stream;
        let seen = self.orders[n].last().map_or(1, |r| r.revision);
        if seen > 1 {
            self.counters.hit("watch resumed");
        }
        let open = WatchRequest::Open { needs_leader: false };
        let wish = mvcc::WatchCreate { range_end: "\0".into(), start_revision: seen + 1, ..Default::default() };
        for event in [open, WatchRequest::Create(wish)] {
            self.input(n, MachineInput::Request(Request::Watch { stream, event }))?;
        }
        Ok(())
    }

    /// A blank disk asks any member to be taken in, until one says yes; when the table names it, it counts as whole.
    fn rejoin(&mut self, n: usize) -> Result<(), String> {
        let (id, name) = (self.nodes[n].id, self.nodes[n].name.clone());
        let tables = || self.nodes.iter().filter_map(|node| node.member.as_ref());
        let is_listed = |id: NodeId| tables().any(|m| m.members().any(|r| r.disk == id.0));
        if is_listed(id) {
            // A disk not yet replaced goes on counting as damaged, under the id it was drawn for.
            self.nodes[n].drawn_as = id;
            let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.drawn_as).collect();
            self.counters.hit("disk replaced");
            self.chaos.set_members(&ids);
            return Ok(());
        }
        self.events.push(self.now.after(Nanos::from_millis(300)), Ev::Rejoin(n));
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].member.is_some()).collect();
        let door = self.rng.pick(&alive).copied();
        if let (true, Some(door)) = (self.nodes[n].blank, door) {
            self.next_request += 1;
            let request = RequestId(self.next_request);
            self.joins.insert(request, (n, id));
            let call = Call::Replace { name: name.clone(), disk: id, peer_addr: format!("{name}-{id}:2380") };
            let call = Request::Call { id: request, within: None, needs_leader: false, call };
            self.input(door, MachineInput::Request(call))?;
        }
        Ok(())
    }

    /// The process is gone: what its clients asked is in doubt.
    fn stop(&mut self, n: usize, power: bool) {
        if self.nodes[n].member.is_none() {
            return;
        }
        let commits = self.rng.coin();
        if self.nodes[n].job_under_way && !commits {
            self.counters.hit("flush lost in a crash");
        }
        self.nodes[n].end(commits);
        self.nodes[n].life += 1;
        self.disk_dies(n, power);
        let mut out = Vec::new();
        self.net.crash(self.now, self.nodes[n].id, &mut out);
        self.deliveries(out);
        let gone: Vec<RequestId> = self.open.iter().filter(|(_, (_, o))| o.node == n).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some((client, open)) = self.open.remove(&id) {
                self.histories.lost(client, open.at, open.asked);
                self.next_call(client);
            }
        }
    }

    fn disk_dies(&mut self, n: usize, power: bool) {
        if power {
            let mut rng = self.rng.fork("crash");
            self.rng.next_u64();
            self.nodes[n].disk.crash(&mut rng);
        } else {
            self.nodes[n].disk.kill();
        }
    }

    fn carry_out(&mut self, fault: Fault) -> Result<(), String> {
        self.trace.event(self.now, NodeId(0), "fault", &fault);
        let find = |w: &Self, id: NodeId| w.nodes.iter().position(|node| node.is(id)).expect("a member");
        let mut out = Vec::new();
        match fault {
            Fault::Kill(id) => {
                self.counters.hit("kill");
                let n = find(self, id);
                self.stop(n, false);
            }
            Fault::PowerLoss(id) => {
                self.counters.hit("power loss");
                let n = find(self, id);
                self.stop(n, true);
                if self.nodes.iter().all(|node| node.member.is_none()) {
                    self.counters.hit("power loss of all");
                }
            }
            Fault::LoseDisk(id) => {
                let n = find(self, id);
                self.stop(n, true);
                // The atlas counts the disk as damaged under the id it was drawn for, until it is replaced.
                let new = NodeId(1_000 + self.rng.below(1 << 30));
                let rng = self.rng.fork("lost");
                self.nodes[n].lose_disk(new, &rng);
            }
            Fault::Start(id) => {
                let n = find(self, id);
                self.start(n)?;
            }
            Fault::Pause(id) => {
                self.counters.hit("pause");
                let n = find(self, id);
                self.nodes[n].paused = self.nodes[n].member.is_some();
            }
            Fault::Resume(id) => {
                let n = find(self, id);
                if std::mem::take(&mut self.nodes[n].paused) {
                    for input in std::mem::take(&mut self.nodes[n].held) {
                        self.input(n, input)?;
                    }
                    self.on_timer(n)?;
                    self.write(n)?;
                    self.plan_job(n);
                }
            }
            Fault::Partition(topology) => {
                self.counters.hit("partition");
                self.net.apply(self.now, &topology, &mut out);
            }
            Fault::Heal => self.net.heal(self.now, &mut out),
            Fault::Clog { from, to, until } => self.net.clog(from, to, until),
            Fault::FailSync(id) => {
                let n = find(self, id);
                self.nodes[n].disk.fail_nth(DiskOp::Sync, 1);
            }
            Fault::FailWrite(id) => {
                let n = find(self, id);
                self.nodes[n].disk.fail_nth(DiskOp::Write, 1);
            }
            Fault::Fill(id) => {
                let n = find(self, id);
                let used = self.nodes[n].disk.used_bytes();
                self.nodes[n].disk.set_capacity(Some(used));
                self.nodes[n].full = true;
            }
            Fault::Drain(id) => {
                let n = find(self, id);
                self.nodes[n].disk.set_capacity(None);
                self.nodes[n].full = false;
                self.start(n)?;
            }
            Fault::Drift(id, ppm) => {
                let n = find(self, id);
                let now = self.now;
                self.nodes[n].clock.set_drift(now, ppm);
                self.plan_timer(n);
            }
            Fault::JumpWall(id, ms) => {
                self.counters.hit("wall jump");
                let n = find(self, id);
                self.nodes[n].clock.jump_wall(ms);
            }
            other => return Err(format!("this world does not know {other:?}")),
        }
        self.deliveries(out);
        Ok(())
    }

    // Machines.

    fn input(&mut self, n: usize, input: MachineInput<Request>) -> Result<(), String> {
        let node = &mut self.nodes[n];
        if node.paused {
            node.held.push(input);
            return Ok(());
        }
        let Some(member) = node.member.as_mut() else { return Ok(()) };
        self.steps += 1;
        self.trace.event(self.now, node.id, "input", &format_args_hash(&input));
        let mut out = Vec::new();
        member.push(input, &mut out);
        self.execute(n, out)?;
        self.poke(n)
    }

    fn on_timer(&mut self, n: usize) -> Result<(), String> {
        let now = self.now;
        let node = &self.nodes[n];
        let due = node.member.as_ref().and_then(Machine::next_deadline).is_some_and(|at| at <= node.local(now));
        if due && !node.paused {
            return self.input(n, MachineInput::Timeout);
        }
        self.plan_timer(n);
        Ok(())
    }

    /// Lets the member's machines go on for a while, in any order.
    fn poke(&mut self, n: usize) -> Result<(), String> {
        let to_the_end = self.rng.below(3) > 0;
        let rounds = if to_the_end { u64::MAX } else { self.rng.range(1, 12) };
        let mut left = rounds;
        let mut dry = 0;
        let mut idled = 0;
        while left > 0 && dry < 6 {
            left -= 1;
            let part = *self.rng.pick(&Part::ALL).expect("three");
            let idle = self.rng.below(8) == 0;
            if self.nodes[n].paused {
                break;
            }
            let now = self.nodes[n].local(self.now);
            let Some(member) = self.nodes[n].member.as_mut() else { return Ok(()) };
            let mut out = Vec::new();
            if idle {
                member.idle_part(part, now, &mut out);
            } else if member.run_part(part, now, &mut out) {
                dry = 0;
            } else {
                dry += 1;
            }
            if to_the_end && dry == 6 && idled < 2 {
                for part in Part::ALL {
                    member.idle_part(part, now, &mut out);
                }
                idled += 1;
                dry = 0;
            }
            self.execute(n, out)?;
        }
        self.check(n)?;
        if !to_the_end && !self.nodes[n].turn_planned {
            self.nodes[n].turn_planned = true;
            let at = self.now.after(Nanos::from_micros(self.rng.range(1, 800)));
            self.events.push(at, Ev::Turn { n, life: self.nodes[n].life });
        }
        self.plan_timer(n);
        Ok(())
    }

    fn check(&mut self, n: usize) -> Result<(), String> {
        let node = &mut self.nodes[n];
        let Some(member) = node.member.as_ref() else { return Ok(()) };
        let position = member.position();
        if position == node.last_position {
            return Ok(());
        }
        node.last_position = position;
        let digest = *self.digests.entry(position).or_insert_with(|| member.digest());
        if digest != member.digest() {
            return Err(format!("{} differs at {position:?}", node.name));
        }
        self.trace.absorb(u128::from(digest));
        Ok(())
    }

    fn plan_timer(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(deadline) = node.member.as_ref().and_then(Machine::next_deadline) else { return };
        let at = node.clock.true_time_of(deadline).max(self.now.after(Nanos::from_micros(1)));
        if node.timer_at.is_none_or(|planned| at < planned) && !node.paused {
            node.timer_at = Some(at);
            self.events.push(at, Ev::Timer { n, life: node.life });
        }
    }

    fn execute(&mut self, n: usize, effects: Vec<MachineEffect<Output>>) -> Result<(), String> {
        for effect in effects {
            if self.nodes[n].member.is_none() {
                return Ok(());
            }
            match effect {
                MachineEffect::Persist(batch) => {
                    self.trace.event(self.now, self.nodes[n].id, "persist", &batch.seq);
                    self.nodes[n].writes.push(batch);
                    if self.nodes[n].syncing.is_empty() {
                        let at = self.now.after(Nanos::from_micros(self.rng.range(1, 50)));
                        self.events.push(at, Ev::Write { n, life: self.nodes[n].life });
                    }
                }
                MachineEffect::Send { to, channel, frame } => {
                    if channel == triune_transport::Channel::Forward {
                        self.counters.hit("forwarded frame");
                    }
                    let mut out = Vec::new();
                    let from = self.nodes[n].id;
                    self.trace.event(self.now, from, "send", &(to, channel, frame.len()));
                    if self.net.send(self.now, from, to, channel, frame, &mut out).is_err() {
                        self.counters.hit("frame refused");
                        self.trace.event(self.now, from, "refused", &to);
                    }
                    self.deliveries(out);
                }
                MachineEffect::Fetch { group, req, first, last, bytes_max } => {
                    let reader = self.nodes[n].wal.as_ref().expect("it lives").reader();
                    let entries = match reader.read(Stream(group.0), first..=last, bytes_max) {
                        Ok(entries) => (!entries.is_empty()).then_some(entries),
                        Err(ReadError::Released { .. } | ReadError::Absent { .. }) => None,
                        Err(error) => return Err(format!("{}: {error}", self.nodes[n].name)),
                    };
                    let at = self.now.after(Nanos::from_micros(self.rng.range(10, 2_000)));
                    let input = MachineInput::Fetched { group, req, entries };
                    self.events.push(at, Ev::Input { n, life: self.nodes[n].life, input });
                }
                MachineEffect::Release { group, upto } => {
                    self.nodes[n].wal.as_mut().expect("it lives").release(Stream(group.0), upto);
                }
                MachineEffect::Output(output) => self.output(n, output)?,
                _ => return Err("an effect this world does not know".into()),
            }
        }
        Ok(())
    }

    fn output(&mut self, n: usize, output: Output) -> Result<(), String> {
        match output {
            Output::Reply { id, result, .. } if self.joins.contains_key(&id) => {
                let (node, disk) = self.joins.remove(&id).expect("just seen");
                if result.is_ok() && self.nodes[node].id == disk && self.nodes[node].blank {
                    self.nodes[node].blank = false;
                    self.events.push(self.now.after(Nanos::from_millis(5)), Ev::Restart(node));
                }
            }
            Output::Reply { id, header, result } => {
                let Some((client, open)) = self.open.remove(&id) else { return Ok(()) };
                self.trace.event(self.now, self.nodes[n].id, "reply", &(id.0, header.revision, result.is_ok()));
                match &result {
                    Ok(_) if open.asked.kind == Kind::Kv => self.nodes[n].answered_at = Some(self.now),
                    Ok(_) => {}
                    Err(Refusal::TimedOut) => self.counters.hit("timed out"),
                    Err(Refusal::Unknown) => self.counters.hit("outcome unknown"),
                    Err(Refusal::NoSpace) => {
                        self.no_space_seen = true;
                        self.counters.hit("no space");
                    }
                    Err(_) => {}
                }
                let now = self.now;
                self.clients.answered(client, now, open, header.revision, result, &mut self.histories)?;
                self.next_call(client);
            }
            Output::Watch { stream, responses, bytes, .. } => {
                if stream == self.nodes[n].stream {
                    self.watched(n, &responses)?;
                }
                let at = self.now.after(self.rng.exponential(Nanos::from_millis(2)));
                let event = WatchRequest::Taken { bytes };
                let input = MachineInput::Request(Request::Watch { stream, event });
                self.events.push(at, Ev::Input { n, life: self.nodes[n].life, input });
            }
            Output::WatchEnd { refusal, .. } => return Err(format!("a watch ended: {refusal}")),
            Output::Flush { batch, mark, .. } => {
                self.nodes[n].jobs.push_back(Job::Flush(batch, mark));
                self.plan_job(n);
            }
            Output::Snapshot { op, .. } => {
                self.nodes[n].jobs.push_back(Job::Snapshot(op));
                self.plan_job(n);
            }
            Output::Role { role, epoch, .. } => {
                self.trace.event(self.now, self.nodes[n].id, "role", &(role, epoch));
                if role == Role::Leader {
                    self.counters.hit("leader");
                }
            }
            Output::Fatal(fatal) => return Err(format!("{} ends: {fatal}", self.nodes[n].name)),
            Output::Members(_) | Output::Drained => {}
            _ => return Err("an output this world does not know".into()),
        }
        Ok(())
    }

    fn watched(&mut self, n: usize, responses: &[mvcc::WatchResponse]) -> Result<(), String> {
        for response in responses {
            if let Some(reason) = response.canceled {
                return Err(format!("{}: the watch was cancelled: {reason}", self.nodes[n].name));
            }
            for event in response.events.iter() {
                let revision = event.kv.mod_revision;
                let order = &mut self.orders[n];
                match order.last_mut() {
                    Some(last) if last.revision == revision => last.events.push(event_of(event)),
                    Some(last) if last.revision > revision => {
                        return Err(format!("{}: revision {revision} after {}", self.nodes[n].name, last.revision));
                    }
                    _ => order.push(Revision { revision, events: vec![event_of(event)] }),
                }
            }
        }
        Ok(())
    }

    // The disk and the store.

    fn write(&mut self, n: usize) -> Result<(), String> {
        let node = &mut self.nodes[n];
        if node.member.is_none() || node.paused || !node.syncing.is_empty() || node.writes.is_empty() {
            return Ok(());
        }
        let batches = std::mem::take(&mut node.writes);
        let wal = node.wal.as_mut().expect("it lives");
        let was_in_reserve = node.in_reserve;
        let result = match wal.append(&batches) {
            Err(WalError::NoSpace) => {
                node.in_reserve = true;
                wal.append_reserved(&batches)
            }
            other => {
                node.in_reserve = false;
                other
            }
        };
        match result {
            Ok(_) => {
                node.syncing = batches;
                let took = Nanos::from_micros(50).after(self.rng.exponential(self.sync_mean));
                self.events.push(self.now.after(took), Ev::Synced { n, life: self.nodes[n].life });
            }
            Err(WalError::NoSpace) => {
                node.writes = batches;
                let (at, life) = (self.now.after(Nanos::from_millis(100)), node.life);
                self.events.push(at, Ev::Write { n, life });
            }
            Err(_) => {
                self.counters.hit("failed write");
                return self.poisoned(n);
            }
        }
        match (was_in_reserve, self.nodes[n].in_reserve) {
            (false, true) => self.input(n, MachineInput::NoSpace),
            (true, false) => self.input(n, MachineInput::SpaceAgain),
            _ => Ok(()),
        }
    }

    fn on_synced(&mut self, n: usize, life: u64) -> Result<(), String> {
        let node = &mut self.nodes[n];
        if node.life != life {
            return Ok(());
        }
        if node.paused {
            let at = self.now.after(Nanos::from_millis(20));
            self.events.push(at, Ev::Synced { n, life });
            return Ok(());
        }
        let done = std::mem::take(&mut node.syncing);
        if node.wal.as_mut().expect("it lives").sync().is_err() {
            self.counters.hit("failed write");
            return self.poisoned(n);
        }
        let seq = done.last().expect("something was written").seq;
        self.input(n, MachineInput::Persisted { group: GROUP, seq })?;
        self.write(n)
    }

    /// A write failed: the process ends, and comes back by itself.
    fn poisoned(&mut self, n: usize) -> Result<(), String> {
        self.stop(n, false);
        self.events.push(self.now.after(Nanos::from_secs(1)), Ev::Restart(n));
        Ok(())
    }

    fn plan_job(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.member.is_none() || node.paused || node.job_under_way || node.jobs.is_empty() {
            return;
        }
        node.job_under_way = true;
        let took = Nanos::from_micros(100).after(self.rng.exponential(Nanos::from_millis(15)));
        self.events.push(self.now.after(took), Ev::Job { n, life: self.nodes[n].life });
    }

    // The network.

    fn deliveries(&mut self, out: Vec<Delivery<Bytes>>) {
        for delivery in out {
            self.events.push(delivery.at, Ev::Net(delivery));
        }
    }

    fn deliver(&mut self, delivery: Delivery<Bytes>) -> Result<(), String> {
        let mut out = Vec::new();
        let arrival = self.net.arrive(self.now, delivery, &mut out);
        self.deliveries(out);
        let Some(arrival) = arrival else { return Ok(()) };
        // A disk that is gone hears nothing more.
        let Some(n) = self.nodes.iter().position(|node| node.id == arrival.to) else { return Ok(()) };
        let peer = arrival.from;
        let input = match arrival.event {
            NetEvent::Up { lane, session } => MachineInput::Link { peer, lane, session, up: true },
            NetEvent::Down { lane, session } => MachineInput::Link { peer, lane, session, up: false },
            NetEvent::Frame { channel, session, frame } => MachineInput::Frame { from: peer, session, channel, frame },
        };
        self.input(n, input)
    }

    // Clients.

    fn next_call(&mut self, client: u64) {
        let at = self.now.after(Nanos::from_micros(100)).after(self.rng.exponential(Nanos::from_millis(20)));
        self.events.push(at, Ev::Client(client));
    }

    fn ask(&mut self, client: u64) -> Result<(), String> {
        if self.stopped {
            return Ok(());
        }
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].member.is_some()).collect();
        let Some(n) = self.rng.pick(&alive).copied() else {
            self.next_call(client);
            return Ok(());
        };
        // What every member's watch has passed may be forgotten.
        let told = self.orders.iter().map(|order| order.last().map_or(1, |r| r.revision)).min().unwrap_or(1);
        let (call, asked) = if self.no_space_seen && self.nodes.iter().all(|node| !node.full) {
            self.no_space_seen = false;
            disarm()
        } else {
            self.clients.draw(told - 1)
        };
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let open = Open { at: self.now, node: n, asked };
        self.open.insert(id, (client, open));
        self.input(n, MachineInput::Request(Request::Call { id, within: None, needs_leader: false, call }))
    }

    fn judge(&mut self) -> Result<(), String> {
        let orders: Vec<MemberOrder> = self
            .nodes
            .iter()
            .zip(&self.orders)
            .map(|(node, revisions)| MemberOrder { member: node.name.clone(), revisions: revisions.clone() })
            .collect();
        let report = order::check(&self.histories.order, &orders).map_err(|e| format!("order: {e}"))?;
        self.counters.add("acknowledged writes", report.writes as u64);
        self.counters.add("reads", report.reads as u64);
        self.counters.add("lease ended", report.leases_ended as u64);
        self.counters.add("unknown and carried out", report.unknown_applied as u64);
        let report = check_by_key(&Judge::default(), &self.histories.single, |op| op.0.clone(), Limits::default())
            .map_err(|e| e.to_string())?;
        self.counters.add("operations judged by WGL", report.ops as u64);
        if report.passed() { Ok(()) } else { Err(format!("not linearizable: {:?}", report.failures.first())) }
    }
}

/// What of an input goes into the trace: its kind and size.
fn format_args_hash(input: &MachineInput<Request>) -> (u8, usize) {
    match input {
        MachineInput::Frame { frame, .. } => (1, frame.len()),
        MachineInput::Link { up, .. } => (2, usize::from(*up)),
        MachineInput::Timeout => (3, 0),
        MachineInput::Persisted { seq, .. } => (4, usize::try_from(seq.0).unwrap_or(0)),
        MachineInput::Fetched { .. } => (5, 0),
        MachineInput::Request(_) => (6, 0),
        _ => (7, 0),
    }
}
