//! The network's promises, tried with random sends, losses, partitions and crashes.

use super::*;
use crate::EventQueue;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

struct World {
    net: Net,
    queue: EventQueue<Delivery<u64>>,
    out: Vec<Delivery<u64>>,
}

impl World {
    fn new(config: NetConfig, seed: u64) -> Self {
        let mut world = Self { net: Net::new(config, &Rng::new(seed)), queue: EventQueue::new(), out: Vec::new() };
        for node in NODES {
            world.net.start(Nanos::ZERO, node, &mut world.out);
        }
        world.flush();
        world
    }

    fn flush(&mut self) {
        for delivery in self.out.drain(..) {
            self.queue.push(delivery.at, delivery);
        }
    }

    fn send(&mut self, from: u64, to: u64, channel: Channel, frame: u64) -> Result<(), Refused<u64>> {
        let now = self.queue.now();
        let result = self.net.send(now, NodeId(from), NodeId(to), channel, frame, &mut self.out);
        self.flush();
        result
    }

    fn step(&mut self) -> Option<Option<Arrival<u64>>> {
        let (now, delivery) = self.queue.pop()?;
        let arrival = self.net.arrive(now, delivery, &mut self.out);
        self.flush();
        Some(arrival)
    }

    fn settle(&mut self) -> Vec<Arrival<u64>> {
        let mut seen = Vec::new();
        while let Some(arrival) = self.step() {
            seen.extend(arrival);
        }
        seen
    }

    fn run_for(&mut self, span: Nanos) -> Vec<Arrival<u64>> {
        let until = self.queue.now().after(span);
        let mut seen = Vec::new();
        while let Some((now, delivery)) = self.queue.pop_until(until) {
            seen.extend(self.net.arrive(now, delivery, &mut self.out));
            self.flush();
        }
        seen
    }
}

fn frames(seen: &[Arrival<u64>]) -> Vec<u64> {
    let frame = |a: &Arrival<u64>| match a.event {
        NetEvent::Frame { frame, .. } => Some(frame),
        _ => None,
    };
    seen.iter().filter_map(frame).collect()
}

/// What a receiver has seen of one link: checks promises 1 and 2 as events come.
#[derive(Default)]
struct Watcher {
    open: BTreeMap<(NodeId, NodeId, Lane), u64>,
    newest: BTreeMap<(NodeId, NodeId, Lane), u64>,
    /// The next number of (from, to, channel, session): the sender numbers frames per channel.
    next: BTreeMap<(NodeId, NodeId, Channel, u64), u64>,
    arrived: u64,
}

impl Watcher {
    fn see(&mut self, Arrival { to, from, event }: Arrival<u64>) {
        match event {
            NetEvent::Up { lane, session } => {
                assert_eq!(self.open.insert((from, to, lane), session.0), None, "up while open");
                let before = self.newest.insert((from, to, lane), session.0).unwrap_or(0);
                assert!(session.0 > before, "session numbers rise");
            }
            NetEvent::Down { lane, session } => {
                assert_eq!(self.open.remove(&(from, to, lane)), Some(session.0), "down of what is open");
            }
            NetEvent::Frame { channel, session, frame } => {
                assert_eq!(self.open.get(&(from, to, channel.lane())), Some(&session.0), "frame outside its session");
                if let Some(next) = self.next.get(&(from, to, channel, session.0)) {
                    assert_eq!(frame, *next, "gap, copy or disorder within a session");
                }
                self.next.insert((from, to, channel, session.0), frame + 1);
                self.arrived += 1;
            }
        }
    }

    fn crash(&mut self, node: NodeId) {
        self.open.retain(|(_, to, _), _| *to != node);
    }
}

#[test]
fn with_sessions_frames_come_in_order_once_without_gap_whatever_happens() {
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let config = NetConfig { loss: Ppm(rng.below(20_000) as u32), ..NetConfig::default() };
        let mut world = World::new(config, seed);
        let mut watcher = Watcher::default();
        let mut next: BTreeMap<(u64, u64, Channel), u64> = BTreeMap::new();
        let mut up: BTreeSet<NodeId> = NODES.into();
        for _ in 0..3_000 {
            let now = world.queue.now();
            match rng.below(1_000) {
                0..=4 => {
                    let topology = Topology::draw(&mut rng, &NODES).unwrap();
                    world.net.apply(now, &topology, &mut world.out);
                }
                5..=14 => world.net.heal(now, &mut world.out),
                15..=19 => {
                    let node = *rng.pick(&NODES).unwrap();
                    world.net.crash(now, node, &mut world.out);
                    watcher.crash(node);
                    up.remove(&node);
                }
                20..=39 => {
                    let node = *rng.pick(&NODES).unwrap();
                    if up.insert(node) {
                        world.net.start(now, node, &mut world.out);
                    }
                }
                40..=44 => world.net.clog(NODES[0], NODES[1], now.after(Nanos::from_millis(20))),
                45..=500 => {
                    let (from, to) = (rng.range(1, 3), rng.range(1, 3));
                    let channel = *rng.pick(&Channel::ALL).unwrap();
                    if from != to && up.contains(&NodeId(from)) {
                        let n = next.entry((from, to, channel)).or_insert(0);
                        if world.send(from, to, channel, *n).is_ok() {
                            *next.get_mut(&(from, to, channel)).unwrap() += 1;
                        }
                    }
                }
                _ => {
                    if let Some(Some(arrival)) = world.step() {
                        watcher.see(arrival);
                    }
                }
            }
            world.flush();
        }
        for arrival in world.settle() {
            watcher.see(arrival);
        }
        let stats = world.net.stats();
        assert_eq!(stats.sent, stats.arrived + stats.lost, "seed {seed}: every frame has one fate: {stats:?}");
        assert_eq!(stats.arrived, watcher.arrived, "seed {seed}");
    }
}

#[test]
fn a_lost_frame_ends_the_session_and_a_new_one_follows() {
    let mut world = World::new(NetConfig::default(), 1);
    world.settle();
    let lossy = NetConfig { loss: Ppm::ALWAYS, ..NetConfig::default() };
    world.net.set_config(lossy);
    world.send(1, 2, Channel::Log, 7).unwrap();
    world.net.set_config(NetConfig::default());
    let seen = world.settle();
    let kinds: Vec<_> = seen.iter().map(|a| (&a.event, a.from, a.to)).collect();
    let (lane, one, two) = (Lane::Main, LinkSession(1), LinkSession(2));
    assert_eq!(
        kinds,
        [
            (&NetEvent::Down { lane, session: one }, NodeId(1), NodeId(2)),
            (&NetEvent::Up { lane, session: two }, NodeId(1), NodeId(2))
        ]
    );
    world.send(1, 2, Channel::Log, 8).unwrap();
    assert_eq!(frames(&world.settle()), [8]);
}

#[test]
fn a_broken_link_swallows_frames_until_the_sender_notices() {
    let mut world = World::new(NetConfig { reconnect_mean: Nanos::from_secs(9), ..NetConfig::default() }, 2);
    world.settle();
    world.net.block(world.queue.now(), NodeId(1), NodeId(2), &mut world.out);
    world.flush();
    world.send(1, 2, Channel::Vote, 1).unwrap();
    world.run_for(Nanos::from_millis(201));
    assert_eq!(world.send(1, 2, Channel::Vote, 2), Err(Refused::NotConnected(2)));
    world.settle();
    world.net.heal(world.queue.now(), &mut world.out);
    world.flush();
    world.settle();
    world.send(1, 2, Channel::Vote, 3).unwrap();
    assert_eq!(frames(&world.settle()), [3]);
}

#[test]
fn a_block_is_one_way() {
    let mut world = World::new(NetConfig::default(), 3);
    world.settle();
    world.net.apply(world.queue.now(), &Topology::OneWay(NodeId(1), NodeId(2)), &mut world.out);
    world.flush();
    world.settle();
    assert!(world.send(1, 2, Channel::Log, 1).is_err());
    world.send(2, 1, Channel::Log, 2).unwrap();
    assert_eq!(frames(&world.settle()), [2]);
    assert!(world.net.reaches(NodeId(2), NodeId(1)) && !world.net.reaches(NodeId(1), NodeId(2)));
    assert!(!world.net.is_quorum_connected(NodeId(1), &NODES[..2], 2));
    assert!(world.net.is_quorum_connected(NodeId(1), &NODES, 2));
}

#[test]
fn a_clog_delays_and_a_full_queue_hands_back() {
    let mut world = World::new(NetConfig { queue_frames_max: 2, ..NetConfig::default() }, 4);
    world.settle();
    let clear_at = world.queue.now().after(Nanos::from_secs(1));
    world.net.clog(NodeId(1), NodeId(2), clear_at);
    world.send(1, 2, Channel::Log, 1).unwrap();
    world.send(1, 2, Channel::Log, 2).unwrap();
    assert_eq!(world.send(1, 2, Channel::Log, 3), Err(Refused::Full(3)));
    // Another channel and another peer are not held up by the full queue.
    world.send(1, 2, Channel::Vote, 4).unwrap();
    world.send(1, 3, Channel::Log, 5).unwrap();
    let seen = frames(&world.settle());
    assert_eq!(seen.first(), Some(&5));
    assert!(world.queue.now() >= clear_at);
    world.send(1, 2, Channel::Log, 6).unwrap();
    assert_eq!(world.send(1, 9, Channel::Log, 7), Err(Refused::Unknown(7)));
}

#[test]
fn without_sessions_frames_are_lost_copied_and_reordered() {
    let config = NetConfig {
        sessions: false,
        loss: Ppm::percent(10),
        duplication: Ppm::percent(10),
        reorder: Ppm::percent(10),
        ..NetConfig::default()
    };
    let mut world = World::new(config, 5);
    for n in 0..2_000 {
        world.send(1, 2, Channel::Log, n).unwrap();
    }
    let seen = world.settle();
    assert!(seen.iter().all(|a| matches!(a.event, NetEvent::Frame { session: LinkSession(1), .. })));
    let seen = frames(&seen);
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert!((1_700..1_900).contains(&distinct.len()), "lost a tenth: {}", distinct.len());
    assert!((150..250).contains(&(seen.len() - distinct.len())), "copied a tenth");
    assert!(!seen.is_sorted(), "reordered");
}

#[test]
fn the_same_seed_draws_the_same_fates() {
    let run = |seed| {
        let mut world = World::new(NetConfig { loss: Ppm::percent(5), ..NetConfig::default() }, seed);
        for n in 0..500 {
            let _ = world.send(1 + n % 3, 1 + (n + 1) % 3, Channel::Log, n);
            world.run_for(Nanos::from_millis(1));
        }
        (world.settle(), world.net.stats())
    };
    assert_eq!(run(8), run(8));
    assert_ne!(run(8).1, run(9).1);
}
