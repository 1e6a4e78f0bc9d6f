//! The simulated network: it decides the fate and the delay of every frame, and keeps the sessions of links.
//!
//! It holds no queue of its own. What shall happen comes out as [`Delivery`]s, which the embedder puts into its
//! [`EventQueue`](crate::EventQueue) and hands back to [`Net::arrive`] when they are due; only then is it decided
//! whether the frame still arrives. It is generic over the frame, so that a simulation of bare state machines sends
//! their messages without encoding them.
//!
//! With `sessions = true` it promises what the `Transport` trait promises. Per direction and lane a link is
//!
//! ```text
//!            start, heal                 reconnect delay over
//!   Idle ───────────────▶ (reconnect) ─────────────────────────▶ Up ── frame lost, block, crash ──▶ Broken
//!    ▲                        │ blocked or an end is down                                              │
//!    └────────────────────────┴─────────────────────────── reconnect ◀─────────────────────────────────┘
//! ```
//!
//! 1. Frames of one session and channel arrive in order, once, without gap, after their `Up` and before their `Down`.
//! 2. Session numbers of a link only rise; no frame of an ended session arrives.
//! 3. While a link is `Broken` and the sender has not noticed, it takes frames and loses them, as TCP does.
//!
//! With `sessions = false` there is one session, numbered 1, and no `Up` or `Down`: frames are lost, duplicated and
//! reordered one by one, also across a crash of either end.

mod topology;

use std::collections::{BTreeMap, BTreeSet};

use triune_transport::{Channel, Lane, LinkSession, Nanos, NodeId};

pub use self::topology::Topology;
use crate::{Ppm, Rng};

/// How the network behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Whether links keep order and sessions. Default true.
    pub sessions: bool,
    /// The least delay of a frame. Default 100 µs.
    pub delay_min: Nanos,
    /// The mean of the exponential delay on top. Default 400 µs.
    pub delay_mean: Nanos,
    /// Frames lost. With sessions a loss ends the session. Default never.
    pub loss: Ppm,
    /// Frames delivered twice, each copy with a delay of its own. Without sessions only. Default never.
    pub duplication: Ppm,
    /// Frames held back by up to `reorder_span`, so that later ones overtake them. Without sessions only. Default never.
    pub reorder: Ppm,
    /// The most a held-back frame waits. Default 50 ms.
    pub reorder_span: Nanos,
    /// The most it takes each end to learn that a session ended. Default 200 ms.
    pub detect_max: Nanos,
    /// The mean of the exponential pause before a new session. Default 50 ms.
    pub reconnect_mean: Nanos,
    /// Frames under way per link and channel; more are refused as [`Refused::Full`]. Default 4,096.
    pub queue_frames_max: u32,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            sessions: true,
            delay_min: Nanos::from_micros(100),
            delay_mean: Nanos::from_micros(400),
            loss: Ppm::NEVER,
            duplication: Ppm::NEVER,
            reorder: Ppm::NEVER,
            reorder_span: Nanos::from_millis(50),
            detect_max: Nanos::from_millis(200),
            reconnect_mean: Nanos::from_millis(50),
            queue_frames_max: 4_096,
        }
    }
}

/// Something the network will do. Put it into the event queue; hand it to [`Net::arrive`] when it is due.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delivery<F> {
    /// The true time at which it is due.
    pub at: Nanos,
    /// Who sends.
    pub from: NodeId,
    /// Who receives.
    pub to: NodeId,
    carried: Carried<F>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Carried<F> {
    Up(Lane, LinkSession),
    Down(Lane, LinkSession),
    Frame(Channel, LinkSession, F),
    Reconnect(Lane),
}

impl<F> Delivery<F> {
    /// The frame it carries, if it carries one: for embedders that filter messages by their type.
    pub const fn frame(&self) -> Option<(Channel, &F)> {
        match &self.carried {
            Carried::Frame(channel, _, frame) => Some((*channel, frame)),
            _ => None,
        }
    }
}

/// What a node receives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arrival<F> {
    /// Who receives.
    pub to: NodeId,
    /// Who sent.
    pub from: NodeId,
    /// What.
    pub event: NetEvent<F>,
}

/// The kinds of arrival: the twin of the transport's `Event`, generic over the frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NetEvent<F> {
    /// A session begins.
    Up {
        /// On which lane.
        lane: Lane,
        /// Its number, larger than every earlier one of this link.
        session: LinkSession,
    },
    /// A session ended.
    Down {
        /// On which lane.
        lane: Lane,
        /// Its number.
        session: LinkSession,
    },
    /// A frame.
    Frame {
        /// On which channel.
        channel: Channel,
        /// In which session.
        session: LinkSession,
        /// What was sent.
        frame: F,
    },
}

/// Why a frame was not taken; it comes back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused<F> {
    /// Too many frames are under way on this link and channel.
    #[error("queue full")]
    Full(F),
    /// There is no session now.
    #[error("peer not connected")]
    NotConnected(F),
    /// No such node was ever started.
    #[error("peer unknown")]
    Unknown(F),
}

/// What became of the frames so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Frames taken by [`Net::send`].
    pub sent: u64,
    /// Frames that arrived, copies included.
    pub arrived: u64,
    /// Frames taken that will never arrive.
    pub lost: u64,
    /// Extra copies made.
    pub duplicated: u64,
    /// Frames held back so that others could overtake them.
    pub reordered: u64,
    /// Frames handed back.
    pub refused: u64,
    /// Sessions begun.
    pub sessions: u64,
    /// Sessions ended by loss, partition or crash.
    pub sessions_ended: u64,
}

/// The network between the nodes of one world.
#[derive(Clone, Debug)]
pub struct Net {
    config: NetConfig,
    rng: Rng,
    /// Every node ever started, and whether it is up.
    nodes: BTreeMap<NodeId, bool>,
    links: BTreeMap<(NodeId, NodeId, Lane), Link>,
    blocked: BTreeSet<(NodeId, NodeId)>,
    clogged: BTreeMap<(NodeId, NodeId), Nanos>,
    stats: NetStats,
}

/// One direction of one lane.
#[derive(Clone, Debug)]
struct Link {
    state: LinkState,
    /// The newest session begun; 0 before the first.
    session: u64,
    /// The session the receiver has open.
    /// Invariant: at most `session`, and above `cut`.
    open: Option<u64>,
    /// Nothing of sessions up to this one arrives any more.
    cut: u64,
    /// When the newest `Up` or `Down` arrives: frames come after their `Up`, an `Up` after the last `Down`.
    mark_at: Nanos,
    /// When the newest frame of each channel arrives.
    last_at: [Nanos; Channel::ALL.len()],
    /// Frames under way per channel.
    under_way: [u32; Channel::ALL.len()],
    /// Whether a `Reconnect` is in the event queue.
    reconnecting: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    Idle,
    Up,
    /// Until `noticed_at` the sender believes in the session.
    Broken {
        noticed_at: Nanos,
    },
}

impl Link {
    const fn new() -> Self {
        Self {
            state: LinkState::Idle,
            session: 0,
            open: None,
            cut: 0,
            mark_at: Nanos::ZERO,
            last_at: [Nanos::ZERO; Channel::ALL.len()],
            under_way: [0; Channel::ALL.len()],
            reconnecting: false,
        }
    }

    fn last_at(&mut self, channel: Channel) -> &mut Nanos {
        self.last_at.get_mut(channel as usize).expect("one slot for each channel")
    }

    fn under_way(&mut self, channel: Channel) -> &mut u32 {
        self.under_way.get_mut(channel as usize).expect("one slot for each channel")
    }
}

impl Net {
    /// A network without nodes. Its draws are its own: what else the world draws does not shift them.
    pub fn new(config: NetConfig, seed: &Rng) -> Self {
        Self {
            config,
            rng: seed.fork("net"),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            blocked: BTreeSet::new(),
            clogged: BTreeMap::new(),
            stats: NetStats::default(),
        }
    }

    /// A node starts or starts again. Its links begin to connect.
    pub fn start<F>(&mut self, now: Nanos, node: NodeId, out: &mut Vec<Delivery<F>>) {
        let peers: Vec<_> = self.nodes.keys().copied().filter(|peer| *peer != node).collect();
        self.nodes.insert(node, true);
        for peer in peers {
            for (from, to) in [(node, peer), (peer, node)] {
                for lane in LANES {
                    self.links.entry((from, to, lane)).or_insert_with(Link::new);
                }
            }
        }
        self.reconnect_all(now, out);
    }

    /// A node's process dies. Peers learn of it by `Down`; it receives nothing more until [`Net::start`].
    pub fn crash<F>(&mut self, now: Nanos, node: NodeId, out: &mut Vec<Delivery<F>>) {
        self.nodes.insert(node, false);
        let keys: Vec<_> = self.links.keys().copied().filter(|(from, to, _)| *from == node || *to == node).collect();
        for (from, to, lane) in keys {
            self.end_session(now, (from, to, lane), to == node, out);
            if let Some(link) = self.links.get_mut(&(from, to, lane)) {
                if to == node {
                    link.open = None;
                } else {
                    link.state = LinkState::Idle;
                }
            }
        }
    }

    /// Sends one frame. Its fate is drawn now; what will come of it is appended to `out`.
    ///
    /// # Errors
    /// [`Refused`] returns the frame. Loss is no error: the sender cannot know.
    pub fn send<F: Clone>(
        &mut self,
        now: Nanos,
        from: NodeId,
        to: NodeId,
        channel: Channel,
        frame: F,
        out: &mut Vec<Delivery<F>>,
    ) -> Result<(), Refused<F>> {
        let result = if self.config.sessions {
            self.send_in_session(now, from, to, channel, frame, out)
        } else {
            self.send_loose(now, from, to, channel, frame, out)
        };
        match result {
            Ok(()) => self.stats.sent += 1,
            Err(_) => self.stats.refused += 1,
        }
        result
    }

    /// A delivery is due: says what the receiver sees, if anything. May append to `out`.
    pub fn arrive<F>(&mut self, now: Nanos, delivery: Delivery<F>, out: &mut Vec<Delivery<F>>) -> Option<Arrival<F>> {
        let Delivery { from, to, carried, .. } = delivery;
        let alive = self.nodes.get(&to).copied().unwrap_or(false);
        let event = match carried {
            Carried::Reconnect(lane) => {
                self.on_reconnect(now, (from, to, lane), out);
                None
            }
            Carried::Up(lane, session) => self.on_up((from, to, lane), session, alive),
            Carried::Down(lane, session) => self.on_down((from, to, lane), session),
            Carried::Frame(channel, session, frame) => {
                self.on_frame((from, to, channel.lane()), channel, session, frame, alive)
            }
        }?;
        Some(Arrival { to, from, event })
    }

    /// Stops frames from `from` to `to`, those under way included. The other direction goes on.
    pub fn block<F>(&mut self, now: Nanos, from: NodeId, to: NodeId, out: &mut Vec<Delivery<F>>) {
        if from == to || !self.blocked.insert((from, to)) {
            return;
        }
        for lane in LANES {
            self.end_session(now, (from, to, lane), true, out);
        }
    }

    /// Lets frames from `from` to `to` pass again.
    pub fn unblock<F>(&mut self, now: Nanos, from: NodeId, to: NodeId, out: &mut Vec<Delivery<F>>) {
        if self.blocked.remove(&(from, to)) {
            self.reconnect_all(now, out);
        }
    }

    /// Blocks what `topology` blocks, on top of what is blocked already.
    pub fn apply<F>(&mut self, now: Nanos, topology: &Topology, out: &mut Vec<Delivery<F>>) {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        for from in &nodes {
            for to in &nodes {
                if !topology.connects(*from, *to) {
                    self.block(now, *from, *to, out);
                }
            }
        }
    }

    /// Unblocks and unclogs everything.
    pub fn heal<F>(&mut self, now: Nanos, out: &mut Vec<Delivery<F>>) {
        self.blocked.clear();
        self.clogged.clear();
        self.reconnect_all(now, out);
    }

    /// Holds up frames sent from `from` to `to` until `until`; none is lost and no session ends.
    pub fn clog(&mut self, from: NodeId, to: NodeId, until: Nanos) {
        self.clogged.insert((from, to), until);
    }

    /// Changes the behaviour from now on; deliveries under way keep theirs. `sessions` cannot change.
    pub fn set_config(&mut self, config: NetConfig) {
        assert_eq!(config.sessions, self.config.sessions, "a world keeps its kind of network");
        self.config = config;
    }

    /// The behaviour in force.
    pub const fn config(&self) -> &NetConfig {
        &self.config
    }

    /// What became of the frames so far.
    pub const fn stats(&self) -> NetStats {
        self.stats
    }

    /// Frames under way on a channel from `from` to `to`.
    pub fn under_way(&self, from: NodeId, to: NodeId, channel: Channel) -> u32 {
        let link = self.links.get(&(from, to, channel.lane()));
        link.and_then(|link| link.under_way.get(channel as usize)).copied().unwrap_or(0)
    }

    /// Frames under way from `from` to anybody.
    pub fn frames_from(&self, from: NodeId) -> u32 {
        let links = self.links.iter().filter(|((sender, _, _), _)| *sender == from);
        links.flat_map(|(_, link)| link.under_way).sum()
    }

    /// Whether both nodes are up and nothing blocks frames from `from` to `to`.
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        let up = |node| self.nodes.get(&node).copied().unwrap_or(false);
        up(from) && up(to) && !self.blocked.contains(&(from, to))
    }

    /// Whether `node` exchanges frames, both ways, with enough of `members` (itself counted) for a quorum.
    pub fn is_quorum_connected(&self, node: NodeId, members: &[NodeId], quorum: usize) -> bool {
        let both_ways = |peer: &&NodeId| self.reaches(node, **peer) && self.reaches(**peer, node);
        members.iter().filter(both_ways).count() >= quorum
    }

    fn send_in_session<F>(
        &mut self,
        now: Nanos,
        from: NodeId,
        to: NodeId,
        channel: Channel,
        frame: F,
        out: &mut Vec<Delivery<F>>,
    ) -> Result<(), Refused<F>> {
        let lane = channel.lane();
        let arrives = self.draw_arrival(now, from, to);
        let lost = self.rng.chance(self.config.loss);
        let queue_frames_max = self.config.queue_frames_max;
        let Some(link) = self.links.get_mut(&(from, to, lane)) else { return Err(Refused::Unknown(frame)) };
        match link.state {
            LinkState::Idle => return Err(Refused::NotConnected(frame)),
            LinkState::Broken { noticed_at } if now >= noticed_at => return Err(Refused::NotConnected(frame)),
            LinkState::Broken { .. } => {
                self.stats.lost += 1;
                return Ok(());
            }
            LinkState::Up => {}
        }
        if *link.under_way(channel) >= queue_frames_max {
            return Err(Refused::Full(frame));
        }
        if lost {
            self.stats.lost += 1;
            self.end_session(now, (from, to, lane), false, out);
            return Ok(());
        }
        let at = arrives.max(link.mark_at).max(*link.last_at(channel));
        *link.last_at(channel) = at;
        *link.under_way(channel) += 1;
        out.push(Delivery { at, from, to, carried: Carried::Frame(channel, LinkSession(link.session), frame) });
        Ok(())
    }

    fn send_loose<F: Clone>(
        &mut self,
        now: Nanos,
        from: NodeId,
        to: NodeId,
        channel: Channel,
        frame: F,
        out: &mut Vec<Delivery<F>>,
    ) -> Result<(), Refused<F>> {
        let key = (from, to, channel.lane());
        let Some(link) = self.links.get_mut(&key) else { return Err(Refused::Unknown(frame)) };
        if *link.under_way(channel) >= self.config.queue_frames_max {
            return Err(Refused::Full(frame));
        }
        if self.rng.chance(self.config.loss) || self.blocked.contains(&(from, to)) {
            self.stats.lost += 1;
            return Ok(());
        }
        let copies = if self.rng.chance(self.config.duplication) { 2 } else { 1 };
        self.stats.duplicated += copies - 1;
        for _ in 0..copies {
            let mut at = self.draw_arrival(now, from, to);
            let held = self.rng.chance(self.config.reorder);
            let hold = if held { self.rng.span(Nanos::ZERO, self.config.reorder_span) } else { Nanos::ZERO };
            let Some(link) = self.links.get_mut(&key) else { break };
            at = at.max(*link.last_at(channel));
            if held {
                self.stats.reordered += 1;
                at = at.after(hold);
            } else {
                *link.last_at(channel) = at;
            }
            *link.under_way(channel) += 1;
            out.push(Delivery { at, from, to, carried: Carried::Frame(channel, LOOSE_SESSION, frame.clone()) });
        }
        Ok(())
    }

    fn draw_arrival(&mut self, now: Nanos, from: NodeId, to: NodeId) -> Nanos {
        let delay = self.config.delay_min.after(self.rng.exponential(self.config.delay_mean));
        let clear_at = self.clogged.get(&(from, to)).copied().unwrap_or(Nanos::ZERO);
        now.max(clear_at).after(delay)
    }

    fn on_reconnect<F>(&mut self, now: Nanos, key: LinkKey, out: &mut Vec<Delivery<F>>) {
        let (from, to, lane) = key;
        let open = self.reaches(from, to);
        let arrives = self.draw_arrival(now, from, to);
        let Some(link) = self.links.get_mut(&key) else { return };
        link.reconnecting = false;
        if !open {
            link.state = LinkState::Idle;
            return;
        }
        link.session += 1;
        link.state = LinkState::Up;
        link.mark_at = arrives.max(link.mark_at);
        self.stats.sessions += 1;
        out.push(Delivery { at: link.mark_at, from, to, carried: Carried::Up(lane, LinkSession(link.session)) });
    }

    fn on_up<F>(&mut self, key: LinkKey, session: LinkSession, alive: bool) -> Option<NetEvent<F>> {
        let link = self.links.get_mut(&key)?;
        if !alive || session.0 <= link.cut {
            return None;
        }
        assert_eq!(link.open, None, "a session begins only after the one before it ended");
        link.open = Some(session.0);
        Some(NetEvent::Up { lane: key.2, session })
    }

    fn on_down<F>(&mut self, key: LinkKey, session: LinkSession) -> Option<NetEvent<F>> {
        let link = self.links.get_mut(&key)?;
        link.cut = link.cut.max(session.0);
        if link.open != Some(session.0) {
            return None;
        }
        link.open = None;
        Some(NetEvent::Down { lane: key.2, session })
    }

    fn on_frame<F>(
        &mut self,
        key: LinkKey,
        channel: Channel,
        session: LinkSession,
        frame: F,
        alive: bool,
    ) -> Option<NetEvent<F>> {
        let sessions = self.config.sessions;
        let blocked = self.blocked.contains(&(key.0, key.1));
        let link = self.links.get_mut(&key)?;
        let under_way = link.under_way(channel);
        *under_way = under_way.saturating_sub(1);
        let valid = if sessions { link.open == Some(session.0) && session.0 > link.cut } else { !blocked };
        if !alive || !valid {
            self.stats.lost += 1;
            return None;
        }
        self.stats.arrived += 1;
        Some(NetEvent::Frame { channel, session, frame })
    }

    /// Ends the session of a link that has one: the receiver learns it by a `Down`, the sender in a while, and a new
    /// session is tried after both. With `now_cut` even frames under way are lost.
    fn end_session<F>(&mut self, now: Nanos, key: LinkKey, now_cut: bool, out: &mut Vec<Delivery<F>>) {
        let (from, to, lane) = key;
        let down = now.after(self.rng.span(Nanos::ZERO, self.config.detect_max));
        let noticed_at = now.after(self.rng.span(Nanos::ZERO, self.config.detect_max));
        let Some(link) = self.links.get_mut(&key) else { return };
        if now_cut {
            link.cut = link.cut.max(link.session);
        }
        if link.state != LinkState::Up {
            return;
        }
        link.state = LinkState::Broken { noticed_at };
        link.mark_at = down.max(link.mark_at);
        self.stats.sessions_ended += 1;
        let at = link.mark_at;
        out.push(Delivery { at, from, to, carried: Carried::Down(lane, LinkSession(link.session)) });
        self.reconnect(at.max(noticed_at), key, out);
    }

    fn reconnect<F>(&mut self, not_before: Nanos, key: LinkKey, out: &mut Vec<Delivery<F>>) {
        let pause = self.rng.exponential(self.config.reconnect_mean);
        let Some(link) = self.links.get_mut(&key) else { return };
        if link.reconnecting {
            return;
        }
        link.reconnecting = true;
        let (from, to, lane) = key;
        out.push(Delivery { at: not_before.after(pause), from, to, carried: Carried::Reconnect(lane) });
    }

    fn reconnect_all<F>(&mut self, now: Nanos, out: &mut Vec<Delivery<F>>) {
        if !self.config.sessions {
            return;
        }
        let down: Vec<_> = self.links.iter().filter(|(_, l)| l.state != LinkState::Up).map(|(key, _)| *key).collect();
        for key in down {
            if self.reaches(key.0, key.1) {
                self.reconnect(now, key, out);
            }
        }
    }
}

type LinkKey = (NodeId, NodeId, Lane);

const LANES: [Lane; 2] = [Lane::Main, Lane::Bulk];

/// The one session of a network without sessions.
const LOOSE_SESSION: LinkSession = LinkSession(1);

#[cfg(test)]
mod tests;
