//! What goes wrong, when, and how much of it at once.
//!
//! *Swarm*: each seed draws which classes of fault are on and how strong they are, so that some seeds meet loss alone,
//! some torn writes under a partition, some nothing. One fixed mix would hide what only a lone fault shows.
//! *Atlas*: only survivable faults are drawn: whatever the classes, at most a minority of disks is damaged at a time.
//! *Phases*: chaos first; then the faults end, wholly or but for a random core of exactly a quorum, and the world must
//! make progress.
//!
//! 1. A node is damaged (flipped bit, misdirected write, lost disk, failed sync) only while the damaged ones, this one
//!    included, are at most `(members - 1) / 2`; it counts until [`Chaos::repaired`].
//! 2. What is undone in time (pause, clog, full disk, crash) is undone by a fault of its own, drawn with it.
//! 3. The draws depend on the seed and the times asked for, on nothing else.
//!
//! Source: Groce et al., "Swarm testing" (ISSTA 2012); the two phases and the atlas follow TigerBeetle's simulator.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use triune_transport::{Nanos, NodeId};

use crate::{EventQueue, NetConfig, Ppm, Rng, Topology};

/// A kind of fault that a seed has on or off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum FaultClass {
    /// Frames lost; with sessions, links that break.
    Loss,
    /// Frames delivered twice (networks without sessions).
    Duplication,
    /// Frames overtaken (networks without sessions).
    Reordering,
    /// Whole, one-way and partial partitions.
    Partition,
    /// Links that hold frames for a while.
    Clog,
    /// Processes killed; the page cache stays.
    Kill,
    /// Power cuts: unsynced writes lost, torn, reordered.
    PowerLoss,
    /// Power cuts of all members at once.
    PowerLossOfAll,
    /// Processes that stand still.
    Pause,
    /// Disks that take long.
    SlowDisk,
    /// Bits flipped on the platter.
    BitFlip,
    /// Writes that land elsewhere.
    Misdirected,
    /// EIO on sync.
    SyncError,
    /// EIO on write.
    WriteError,
    /// EIO on read.
    ReadError,
    /// Disks that run full for a while.
    NoSpace,
    /// Disks replaced by blank ones.
    LostDisk,
    /// Clocks that run fast or slow.
    Drift,
    /// Wall clocks that jump.
    WallJump,
}

impl FaultClass {
    /// Every class.
    pub const ALL: [Self; 19] = [
        Self::Loss,
        Self::Duplication,
        Self::Reordering,
        Self::Partition,
        Self::Clog,
        Self::Kill,
        Self::PowerLoss,
        Self::PowerLossOfAll,
        Self::Pause,
        Self::SlowDisk,
        Self::BitFlip,
        Self::Misdirected,
        Self::SyncError,
        Self::WriteError,
        Self::ReadError,
        Self::NoSpace,
        Self::LostDisk,
        Self::Drift,
        Self::WallJump,
    ];

    /// Whether it may harm what was durable, so that the atlas counts it.
    pub const fn damages(self) -> bool {
        matches!(self, Self::BitFlip | Self::Misdirected | Self::SyncError | Self::LostDisk)
    }

    /// Whether it is drawn as an event in time; the others are rates of the network or the disk.
    const fn is_event(self) -> bool {
        !matches!(self, Self::Loss | Self::Duplication | Self::Reordering | Self::SlowDisk)
    }
}

/// The classes one seed has on, each with its strength: 1 ppm is the faintest, [`Ppm::ALWAYS`] the strongest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swarm {
    classes: BTreeMap<FaultClass, Ppm>,
    /// The mean gap between fault events.
    pub gap_mean: Nanos,
}

impl Swarm {
    /// No faults at all.
    pub const fn calm() -> Self {
        Self { classes: BTreeMap::new(), gap_mean: Nanos::MAX }
    }

    /// Exactly these classes, at full strength.
    pub fn of(classes: &[FaultClass], gap_mean: Nanos) -> Self {
        Self { classes: classes.iter().map(|class| (*class, Ppm::ALWAYS)).collect(), gap_mean }
    }

    /// Draws a mix of `allowed`: each class is on with probability one half, with a strength of its own. The mean gap
    /// between events is drawn from half of `gap_mean` to twice that.
    pub fn draw(rng: &mut Rng, allowed: &[FaultClass], gap_mean: Nanos) -> Self {
        let mut classes = BTreeMap::new();
        for class in allowed {
            let (on, strength) = (rng.coin(), Ppm(rng.range(50_000, 1_000_000) as u32));
            if on {
                classes.insert(*class, strength);
            }
        }
        Self { classes, gap_mean: rng.span(Nanos(gap_mean.0 / 2), Nanos(gap_mean.0.saturating_mul(2))) }
    }

    /// Whether the class is on.
    pub fn is_on(&self, class: FaultClass) -> bool {
        self.classes.contains_key(&class)
    }

    /// The strength of a class; 0 when it is off.
    pub fn strength(&self, class: FaultClass) -> Ppm {
        self.classes.get(&class).copied().unwrap_or(Ppm::NEVER)
    }

    /// A network with this swarm's rates: at full strength a loss of 1 % with sessions and 20 % without, 20 % copies,
    /// 30 % overtaken.
    pub fn net_config(&self, sessions: bool) -> NetConfig {
        let scaled = |class, max: u32| Ppm((u64::from(self.strength(class).0) * u64::from(max) / 1_000_000) as u32);
        NetConfig {
            sessions,
            loss: scaled(FaultClass::Loss, if sessions { 10_000 } else { 200_000 }),
            duplication: scaled(FaultClass::Duplication, 200_000),
            reorder: scaled(FaultClass::Reordering, 300_000),
            ..NetConfig::default()
        }
    }

    /// The mean time of a disk sync: 200 µs, or up to 50 ms where slow disks are on.
    pub fn sync_mean(&self) -> Nanos {
        let slow = u64::from(self.strength(FaultClass::SlowDisk).0) * 50;
        Nanos::from_micros(200).after(Nanos(slow))
    }
}

impl fmt::Display for Swarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swarm")?;
        for (class, strength) in &self.classes {
            write!(f, " {class:?}:{}%", strength.0 / 10_000)?;
        }
        if self.classes.is_empty() { write!(f, " calm") } else { write!(f, " gap:{}ms", self.gap_mean.as_millis()) }
    }
}

/// One thing that goes wrong, or is made good again. The embedder carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The process dies; what it wrote stays in the page cache (`SimDisk::kill`).
    Kill(NodeId),
    /// Power fails (`SimDisk::crash`).
    PowerLoss(NodeId),
    /// A dead node starts again. For a live one, nothing.
    Start(NodeId),
    /// The process stands still: it takes no input until [`Fault::Resume`].
    Pause(NodeId),
    /// It goes on.
    Resume(NodeId),
    /// Frames are cut as the shape says (`Net::apply`).
    Partition(Topology),
    /// All cuts and clogs end (`Net::heal`).
    Heal,
    /// Frames of one direction wait (`Net::clog`).
    Clog {
        /// Who sends.
        from: NodeId,
        /// Who receives.
        to: NodeId,
        /// Until when.
        until: Nanos,
    },
    /// A bit flips on the platter (`SimDisk::flip_random`).
    FlipBit(NodeId),
    /// The next write lands elsewhere (`SimDisk::misdirect_next`).
    Misdirect(NodeId),
    /// The next sync fails (`SimDisk::fail_nth`).
    FailSync(NodeId),
    /// The next write fails.
    FailWrite(NodeId),
    /// The next read fails.
    FailRead(NodeId),
    /// The disk is full (`SimDisk::set_capacity` with what is used).
    Fill(NodeId),
    /// There is space again.
    Drain(NodeId),
    /// Dies, and its disk is replaced by a blank one.
    LoseDisk(NodeId),
    /// Its clock drifts from now on by this many ppm (`Clock::set_drift`).
    Drift(NodeId, i32),
    /// Its wall clock jumps by this many ms (`Clock::jump_wall`).
    JumpWall(NodeId, i64),
}

/// Draws faults in time for one seed, within the atlas.
#[derive(Clone, Debug)]
pub struct Chaos {
    swarm: Swarm,
    members: Vec<NodeId>,
    rng: Rng,
    events: EventQueue<Step>,
    damaged: BTreeSet<NodeId>,
    drawn: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Draw,
    Do(Fault),
}

impl Chaos {
    /// Chaos among `members` from `now` on.
    pub fn new(swarm: Swarm, members: &[NodeId], now: Nanos, seed: &Rng) -> Self {
        let mut chaos = Self {
            swarm,
            members: members.to_vec(),
            rng: seed.fork("chaos"),
            events: EventQueue::new(),
            damaged: BTreeSet::new(),
            drawn: 0,
        };
        chaos.plan(now);
        chaos
    }

    /// The mix in force.
    pub const fn swarm(&self) -> &Swarm {
        &self.swarm
    }

    /// When [`Chaos::next`] has something; `None` when no event class is on.
    pub fn next_at(&self) -> Option<Nanos> {
        self.events.peek_at()
    }

    /// A fault that is due by `now`, if one is. Call until `None`.
    pub fn next(&mut self, now: Nanos) -> Option<Fault> {
        while let Some((at, step)) = self.events.pop_until(now) {
            match step {
                Step::Do(fault) => return Some(fault),
                Step::Draw => {
                    self.plan(at);
                    if let Some(fault) = self.draw(at) {
                        self.drawn += 1;
                        return Some(fault);
                    }
                }
            }
        }
        None
    }

    /// How many faults were drawn, not counting those that make good.
    pub const fn drawn(&self) -> u64 {
        self.drawn
    }

    /// The nodes that count as damaged.
    pub const fn damaged(&self) -> &BTreeSet<NodeId> {
        &self.damaged
    }

    /// The node's disk is whole again (repaired from peers, or replaced and caught up): others may be damaged now.
    pub fn repaired(&mut self, node: NodeId) {
        self.damaged.remove(&node);
    }

    /// Members come or go; the atlas counts the new list.
    pub fn set_members(&mut self, members: &[NodeId]) {
        self.members = members.to_vec();
        self.damaged.retain(|node| members.contains(node));
    }

    /// Ends the chaos and says what to do for the liveness phase. With `core` set only its nodes come back, the others
    /// stay dead and cut off; else all do.
    pub fn finish(&mut self, core: Option<&BTreeSet<NodeId>>) -> Vec<Fault> {
        self.events = EventQueue::new();
        self.swarm = Swarm::calm();
        let mut faults = vec![Fault::Heal];
        for node in &self.members {
            if core.is_none_or(|core| core.contains(node)) {
                faults.extend([Fault::Drain(*node), Fault::Drift(*node, 0), Fault::Resume(*node), Fault::Start(*node)]);
            } else {
                faults.push(Fault::PowerLoss(*node));
            }
        }
        faults
    }

    /// A random quorum for the liveness phase: undamaged members first, then others, `quorum` in all.
    pub fn draw_core(&mut self, quorum: usize) -> BTreeSet<NodeId> {
        let mut order = self.members.clone();
        self.rng.shuffle(&mut order);
        order.sort_by_key(|node| self.damaged.contains(node));
        order.into_iter().take(quorum).collect()
    }

    fn plan(&mut self, now: Nanos) {
        if self.swarm.classes.keys().any(|class| class.is_event()) {
            let gap = self.rng.exponential(self.swarm.gap_mean);
            self.events.push(now.after(gap), Step::Draw);
        }
    }

    fn draw(&mut self, now: Nanos) -> Option<Fault> {
        let on: Vec<_> = self.swarm.classes.iter().filter(|(c, _)| c.is_event()).map(|(c, s)| (*c, *s)).collect();
        let (class, strength) = *self.rng.pick(&on)?;
        if !self.rng.chance(strength) {
            return None;
        }
        let node = *self.rng.pick(&self.members)?;
        if class.damages() && !self.may_damage(node) {
            return None;
        }
        let back = now.after(Nanos::from_millis(10)).after(self.rng.exponential(Nanos::from_secs(1)));
        if class.damages() {
            self.damaged.insert(node);
        }
        self.make(class, node, now, back)
    }

    fn make(&mut self, class: FaultClass, node: NodeId, now: Nanos, back: Nanos) -> Option<Fault> {
        let (fault, undo) = match class {
            FaultClass::Loss | FaultClass::Duplication | FaultClass::Reordering | FaultClass::SlowDisk => return None,
            FaultClass::Partition => {
                (Fault::Partition(Topology::draw(&mut self.rng, &self.members)?), Some(Fault::Heal))
            }
            FaultClass::Clog => {
                let others: Vec<_> = self.members.iter().copied().filter(|peer| *peer != node).collect();
                (Fault::Clog { from: node, to: *self.rng.pick(&others)?, until: back }, None)
            }
            FaultClass::Kill => (Fault::Kill(node), Some(Fault::Start(node))),
            FaultClass::PowerLoss => (Fault::PowerLoss(node), Some(Fault::Start(node))),
            FaultClass::PowerLossOfAll => {
                for member in self.members.clone() {
                    if member != node {
                        self.events.push(now, Step::Do(Fault::PowerLoss(member)));
                        let start = back.after(self.rng.exponential(Nanos::from_millis(200)));
                        self.events.push(start, Step::Do(Fault::Start(member)));
                    }
                }
                (Fault::PowerLoss(node), Some(Fault::Start(node)))
            }
            FaultClass::Pause => (Fault::Pause(node), Some(Fault::Resume(node))),
            FaultClass::BitFlip => (Fault::FlipBit(node), None),
            FaultClass::Misdirected => (Fault::Misdirect(node), None),
            FaultClass::SyncError => (Fault::FailSync(node), Some(Fault::Start(node))),
            FaultClass::WriteError => (Fault::FailWrite(node), Some(Fault::Start(node))),
            FaultClass::ReadError => (Fault::FailRead(node), Some(Fault::Start(node))),
            FaultClass::NoSpace => (Fault::Fill(node), Some(Fault::Drain(node))),
            FaultClass::LostDisk => (Fault::LoseDisk(node), Some(Fault::Start(node))),
            FaultClass::Drift => (Fault::Drift(node, self.rng.range(0, 2_000) as i32 - 1_000), None),
            FaultClass::WallJump => (Fault::JumpWall(node, self.rng.range(0, 7_200_000) as i64 - 3_600_000), None),
        };
        if let Some(undo) = undo {
            self.events.push(back, Step::Do(undo));
        }
        Some(fault)
    }

    fn may_damage(&self, node: NodeId) -> bool {
        let others = self.damaged.iter().filter(|damaged| **damaged != node).count();
        others < self.members.len().saturating_sub(1) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn faults(swarm: Swarm, seed: u64) -> Vec<(Nanos, Fault)> {
        let mut chaos = Chaos::new(swarm, &MEMBERS, Nanos::ZERO, &Rng::new(seed));
        let mut all = Vec::new();
        while all.len() < 500 {
            let Some(at) = chaos.next_at() else { break };
            while let Some(fault) = chaos.next(at) {
                assert!(chaos.damaged().len() <= 1, "a minority of three");
                if all.len() % 50 == 49 {
                    chaos.damaged().clone().into_iter().for_each(|node| chaos.repaired(node));
                }
                all.push((at, fault));
            }
        }
        all
    }

    #[test]
    fn every_event_class_is_drawn_and_at_most_a_minority_is_damaged() {
        let swarm = Swarm::of(&FaultClass::ALL, Nanos::from_millis(100));
        let kinds: BTreeSet<_> = (0..5)
            .flat_map(|seed| faults(swarm.clone(), seed))
            .map(|(_, fault)| format!("{fault:?}").split(['(', ' ']).next().unwrap().to_owned())
            .collect();
        assert_eq!(kinds.len(), 18, "{kinds:?}");
    }

    #[test]
    fn a_lone_member_is_never_damaged() {
        let swarm = Swarm::of(&[FaultClass::BitFlip, FaultClass::LostDisk], Nanos::from_millis(1));
        let mut chaos = Chaos::new(swarm, &MEMBERS[..1], Nanos::ZERO, &Rng::new(1));
        assert_eq!(chaos.next(Nanos::from_secs(10)), None);
        assert_eq!(chaos.drawn(), 0);
    }

    #[test]
    fn whatever_stops_starts_again() {
        let swarm = Swarm::of(&[FaultClass::Kill, FaultClass::PowerLossOfAll], Nanos::from_secs(5));
        let mut down = BTreeSet::new();
        for (_, fault) in faults(swarm, 3) {
            match fault {
                Fault::Kill(node) | Fault::PowerLoss(node) => down.insert(node),
                Fault::Start(node) => down.remove(&node),
                other => panic!("{other:?} was not on"),
            };
        }
        assert!(down.len() <= 3);
        let mut chaos = Chaos::new(Swarm::calm(), &MEMBERS, Nanos::ZERO, &Rng::new(3));
        assert_eq!(chaos.next_at(), None);
        let core = chaos.draw_core(2);
        let plan = chaos.finish(Some(&core));
        assert_eq!(plan.iter().filter(|f| matches!(f, Fault::Start(n) if core.contains(n))).count(), 2);
        assert_eq!(plan.iter().filter(|f| matches!(f, Fault::PowerLoss(n) if !core.contains(n))).count(), 1);
    }

    #[test]
    fn a_swarm_differs_by_seed_and_prints_itself() {
        let draw = |seed| Swarm::draw(&mut Rng::new(seed), &FaultClass::ALL, Nanos::from_millis(500));
        assert_eq!(draw(1), draw(1));
        let texts: BTreeSet<_> = (0..20).map(|seed| draw(seed).to_string()).collect();
        assert_eq!(texts.len(), 20);
        assert_eq!(Swarm::calm().to_string(), "swarm calm");
        let on = (0..1_000).filter(|seed| draw(*seed).is_on(FaultClass::BitFlip)).count();
        assert!((450..550).contains(&on), "{on}");
        let lossy = Swarm::of(&[FaultClass::Loss], Nanos::from_secs(1));
        assert_eq!((lossy.net_config(true).loss, lossy.net_config(false).loss), (Ppm(10_000), Ppm(200_000)));
    }
}
