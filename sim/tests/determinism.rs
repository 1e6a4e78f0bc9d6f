//! Same seed, two worlds, one trace: clocks, network, disks and chaos together.
#![allow(clippy::indexing_slicing, reason = "a test may panic on what is not there")]
#![allow(clippy::unwrap_used, reason = "the same")]

use std::collections::BTreeMap;

use triune_sim::{
    Chaos, Clock, Counters, Delivery, EventQueue, Fault, FaultClass, Net, NetEvent, Plan, Rng, SeedRun, SimDisk, Swarm,
    Trace, sometimes,
};
use triune_storage::{Disk, OpenMode};
use triune_transport::{Channel, Nanos, NodeId};

const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

enum Event {
    Net(Delivery<u64>),
    Tick(NodeId),
    Chaos,
}

struct World {
    net: Net,
    queue: EventQueue<Event>,
    out: Vec<Delivery<u64>>,
    chaos: Chaos,
    clocks: BTreeMap<NodeId, Clock>,
    disks: BTreeMap<NodeId, SimDisk>,
    up: BTreeMap<NodeId, bool>,
    rng: Rng,
    trace: Trace,
    counters: Counters,
}

impl World {
    fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        let swarm = Swarm::draw(&mut rng.fork("swarm"), &FaultClass::ALL, Nanos::from_millis(300));
        let mut world = Self {
            net: Net::new(swarm.net_config(seed.is_multiple_of(2)), &rng),
            queue: EventQueue::new(),
            out: Vec::new(),
            chaos: Chaos::new(swarm, &MEMBERS, Nanos::ZERO, &rng),
            clocks: MEMBERS.map(|n| (n, Clock::new(Nanos(n.0 * 1_000_000), n.0 as i32 * 100))).into(),
            disks: MEMBERS.map(|n| (n, SimDisk::new(&rng.fork(&n.to_string())))).into(),
            up: BTreeMap::new(),
            rng: rng.fork("world"),
            trace: Trace::new(),
            counters: Counters::new(),
        };
        for node in MEMBERS {
            world.start(node);
        }
        world.plan_chaos();
        world
    }

    fn start(&mut self, node: NodeId) {
        if self.up.insert(node, true) != Some(true) {
            self.net.start(self.queue.now(), node, &mut self.out);
            self.queue.push(self.queue.now(), Event::Tick(node));
        }
    }

    fn plan_chaos(&mut self) {
        if let Some(at) = self.chaos.next_at() {
            self.queue.push(at, Event::Chaos);
        }
    }

    fn run(mut self, steps: u64) -> SeedRun {
        while self.trace.events() < steps {
            let out = std::mem::take(&mut self.out);
            out.into_iter().for_each(|delivery| self.queue.push(delivery.at, Event::Net(delivery)));
            let Some((now, event)) = self.queue.pop() else { break };
            match event {
                Event::Net(delivery) => {
                    if let Some(arrival) = self.net.arrive(now, delivery, &mut self.out) {
                        sometimes!(self.counters, "frame", matches!(arrival.event, NetEvent::Frame { .. }));
                        self.trace.event(now, arrival.to, "arrive", &arrival);
                    }
                }
                Event::Tick(node) => self.tick(now, node),
                Event::Chaos => {
                    while let Some(fault) = self.chaos.next(now) {
                        self.trace.event(now, NodeId(0), "fault", &fault);
                        self.carry_out(now, fault);
                    }
                    self.plan_chaos();
                }
            }
        }
        let faults = self.chaos.drawn();
        SeedRun { steps: self.trace.events(), faults, hash: self.trace.hash(), counters: self.counters }
    }

    fn tick(&mut self, now: Nanos, node: NodeId) {
        if self.up.get(&node) != Some(&true) {
            return;
        }
        let wrote = self.write(node);
        self.trace.event(now, node, "tick", &wrote);
        for to in MEMBERS {
            let n = self.rng.next_u64();
            let _ = self.net.send(now, node, to, Channel::Heartbeat, n, &mut self.out);
        }
        let clock = &self.clocks[&node];
        let next = clock.now_at(now).after(Nanos::from_millis(10));
        self.queue.push(clock.true_time_of(next), Event::Tick(node));
    }

    fn write(&mut self, node: NodeId) -> Result<u64, String> {
        let file = self.disks[&node].open("log", OpenMode::Create).map_err(|e| e.to_string())?;
        let len = file.len().map_err(|e| e.to_string())?;
        file.write_at(len, &[node.0 as u8; 700]).map_err(|e| e.to_string())?;
        if self.rng.coin() {
            file.sync().map_err(|e| e.to_string())?;
        }
        Ok(len)
    }

    fn carry_out(&mut self, now: Nanos, fault: Fault) {
        match fault {
            Fault::Kill(node) | Fault::PowerLoss(node) | Fault::LoseDisk(node) => {
                self.up.insert(node, false);
                self.net.crash(now, node, &mut self.out);
                let report = self.disks[&node].crash(&mut self.rng);
                sometimes!(self.counters, "torn", report.torn_writes > 0);
                sometimes!(self.counters, "crash");
            }
            Fault::Start(node) => self.start(node),
            Fault::Partition(topology) => {
                sometimes!(self.counters, "partition");
                self.net.apply(now, &topology, &mut self.out);
            }
            Fault::Heal => self.net.heal(now, &mut self.out),
            Fault::Clog { from, to, until } => self.net.clog(from, to, until),
            Fault::Drift(node, ppm) => self.clocks.get_mut(&node).unwrap().set_drift(now, ppm),
            _ => {}
        }
    }
}

fn plan() -> Plan {
    let replay = "cargo test -p triune-sim --test determinism  # seed {seed}".into();
    Plan { first_seed: 0, seeds: 40, steps_max: 0, replay }
}

#[test]
fn the_same_seed_twice_gives_one_trace_hash() {
    let one = |seed| Ok::<_, String>(World::new(seed).run(5_000));
    let (first, second) = (plan().run(one), plan().run_on_threads(2, None, one));
    println!("trace {} over {} steps, {} faults; {}", first.hash, first.steps, first.faults, first.counters);
    assert_eq!(first, second);
    assert!(first.failure.is_none(), "{first}");
    first.counters.require(&["frame", "crash", "torn", "partition"]).unwrap();
    assert_ne!(one(1).unwrap().hash, one(2).unwrap().hash);
}
