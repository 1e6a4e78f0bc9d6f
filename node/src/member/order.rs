//! Order: the protocol replicas, and the leader's side of proposing.
//!
//! It owns a seat per group, turns its effects into the member's, stamps commands and tells doors what was not taken.
//! It never looks into a command and never touches the state.
//!
//! 1. Commands and reads of a turn go in together: one write, one round of messages.
//! 2. `stamp = max(previous stamp, leader clock)`: stamps of one leader never fall, and a new leader starts at or
//!    above what it has applied; apply takes the maximum again.
//! 3. A command that is not put into the log is told so to the door it came from, never silently dropped, unless the
//!    telling is lost on the way; doors ask again.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use triune_consensus::{
    AdminOp, Effect, Input, MachineEffect, Proposal, ProposalId, ProposeOutcome, Protocol, ReadId, Role, Seat, View,
    WireError,
};
use triune_transport::{Channel, GroupId, LinkSession, Nanos, NodeId};

use super::api::Output;
use super::clock::LeaderClock;
use super::command::{Command, ENVELOPE_BYTES, Envelope};
use super::forward::{Forward, Refused, encode};
use super::queues::{Queues, RoleNow, ToEdge, ToOrder, ToState};
use super::rng::Rng;

pub(super) type Effects = Vec<MachineEffect<Output>>;

/// A seat of any protocol. The one place that names what a member's replicas must do.
pub trait Replica: Send {
    /// As [`Seat::step`]; messages come through [`Replica::receive`] alone.
    fn step(&mut self, now: Nanos, input: Input<Infallible>, out: &mut Vec<Effect<Bytes>>);

    /// As [`Seat::receive`].
    ///
    /// # Errors
    /// When the frame is no message for this replica.
    fn receive(
        &mut self,
        now: Nanos,
        from: NodeId,
        link: LinkSession,
        frame: Bytes,
        out: &mut Vec<Effect<Bytes>>,
    ) -> Result<(), WireError>;

    /// As [`Seat::next_deadline`].
    fn next_deadline(&self) -> Option<Nanos>;

    /// As [`Seat::view`], without the protocol's own part.
    fn view(&self) -> View<()>;
}

impl<P> Replica for Seat<P>
where
    P: Protocol + Send,
    P::Msg: Send,
{
    fn step(&mut self, now: Nanos, input: Input<Infallible>, out: &mut Vec<Effect<Bytes>>) {
        Self::step(self, now, lift(input), out);
    }

    fn receive(
        &mut self,
        now: Nanos,
        from: NodeId,
        link: LinkSession,
        frame: Bytes,
        out: &mut Vec<Effect<Bytes>>,
    ) -> Result<(), WireError> {
        Self::receive(self, now, from, link, frame, out)
    }

    fn next_deadline(&self) -> Option<Nanos> {
        Self::next_deadline(self)
    }

    fn view(&self) -> View<()> {
        let View { role, leader, epoch, last, commit, applied, base, config, lease, detail: _ } = Self::view(self);
        View { role, leader, epoch, last, commit, applied, base, config, lease, detail: () }
    }
}

/// The same input for a protocol whose messages it cannot hold.
fn lift<M>(input: Input<Infallible>) -> Input<M> {
    match input {
        Input::Message { msg, .. } => match msg {},
        Input::Timeout => Input::Timeout,
        Input::Propose(batch) => Input::Propose(batch),
        Input::Read(ids) => Input::Read(ids),
        Input::Admin { id, op } => Input::Admin { id, op },
        Input::Persisted(seq) => Input::Persisted(seq),
        Input::Applied { upto } => Input::Applied { upto },
        Input::Compact { upto } => Input::Compact { upto },
        Input::Entries { req, entries } => Input::Entries { req, entries },
        Input::Snapshot(event) => Input::Snapshot(event),
        Input::Link { peer, session, up } => Input::Link { peer, session, up },
        Input::IoFailed => Input::IoFailed,
        // A kind of input added later has no message in it and must be named here.
        _ => unreachable!("an input this member never makes"),
    }
}

/// Where a proposal came from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// `None`: the own door.
    from: Option<NodeId>,
    session: u64,
    seq: u64,
}

/// One group's replica and what the member keeps beside it.
struct Chair {
    seat: Box<dyn Replica>,
    role: RoleNow,
    last_stamp: u64,
    /// Commands of this turn, stamped.
    batch: Vec<Proposal>,
    batch_bytes: usize,
    /// Reads of this turn.
    reads: Vec<ReadId>,
    /// Origins of proposals whose reply is out, by dense id from `origins_base`.
    origins: VecDeque<Option<Origin>>,
    origins_base: u64,
}

/// The order machine.
pub(super) struct Order {
    node: NodeId,
    chairs: BTreeMap<GroupId, Chair>,
    clock: LeaderClock,
    rng: Rng,
    /// Heads are built here: one allocation for many commands.
    arena: BytesMut,
    effects: Vec<Effect<Bytes>>,
    /// Refusals of this turn, by the door they go to.
    refused: BTreeMap<Option<NodeId>, Vec<(u64, u64, Refused)>>,
    /// A replica's disk lost what it had confirmed.
    forgot: bool,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").field("node", &self.node).field("groups", &self.chairs.len()).finish_non_exhaustive()
    }
}

impl Order {
    pub(super) fn new(
        node: NodeId,
        seats: BTreeMap<GroupId, Box<dyn Replica>>,
        now: Nanos,
        wall_ms: u64,
        seed: u64,
    ) -> Self {
        let chair = |seat: Box<dyn Replica>| {
            let view = seat.view();
            Chair {
                role: RoleNow { role: view.role, leader: view.leader, epoch: view.epoch },
                seat,
                last_stamp: 0,
                batch: Vec::new(),
                batch_bytes: 0,
                reads: Vec::new(),
                origins: VecDeque::new(),
                origins_base: 1,
            }
        };
        Self {
            node,
            chairs: seats.into_iter().map(|(group, seat)| (group, chair(seat))).collect(),
            clock: LeaderClock::new(now, wall_ms),
            rng: Rng::new(seed),
            arena: BytesMut::new(),
            effects: Vec::new(),
            refused: BTreeMap::new(),
            forgot: false,
        }
    }

    /// The part group 0's replica plays now.
    pub(super) fn role(&self) -> RoleNow {
        self.chairs.get(&GroupId(0)).map(|chair| chair.role).unwrap_or_default()
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        self.chairs.values().filter_map(|chair| chair.seat.next_deadline()).min()
    }

    /// The replica's view of group 0, for checks.
    pub(super) fn view(&self) -> Option<View<()>> {
        self.chairs.get(&GroupId(0)).map(|chair| chair.seat.view())
    }

    /// Whether a replica's disk lost what it had confirmed.
    pub(super) const fn has_forgotten(&self) -> bool {
        self.forgot
    }

    pub(super) fn step(&mut self, now: Nanos, input: ToOrder, queues: &mut Queues, out: &mut Effects) {
        match input {
            ToOrder::Frame { from, session, frame } => self.on_frame(now, from, session, frame, queues, out),
            ToOrder::Link { peer, session, up } => {
                self.each(now, queues, out, |_| Some(Input::Link { peer, session, up }));
            }
            ToOrder::Timeout => self.each(now, queues, out, |chair| {
                chair.seat.next_deadline().is_some_and(|deadline| deadline <= now).then_some(Input::Timeout)
            }),
            ToOrder::WallClock(ms) => self.clock.wall(now, ms),
            ToOrder::Persisted { group, seq } => self.input(now, group, Input::Persisted(seq), queues, out),
            ToOrder::Fetched { group, req, entries } => {
                self.input(now, group, Input::Entries { req, entries }, queues, out);
            }
            ToOrder::Propose { from, commands } => self.on_propose(now, from, commands, queues, out),
            ToOrder::Read(id) => {
                if let Some(chair) = self.chairs.get_mut(&GroupId(0)) {
                    chair.reads.push(id);
                }
            }
            ToOrder::Admin { id, op } => self.input(now, GroupId(0), Input::Admin { id, op }, queues, out),
            ToOrder::Applied { group, upto, stamp_ms } => {
                if let Some(chair) = self.chairs.get_mut(&group) {
                    chair.last_stamp = chair.last_stamp.max(stamp_ms);
                }
                self.input(now, group, Input::Applied { upto }, queues, out);
            }
            ToOrder::Compact { group, upto } => self.input(now, group, Input::Compact { upto }, queues, out),
            ToOrder::Snapshot { group, event } => self.input(now, group, Input::Snapshot(event), queues, out),
            ToOrder::Status { id, mut status } => {
                if let Some(chair) = self.chairs.get(&GroupId(0)) {
                    let view = chair.seat.view();
                    status.role = view.role;
                    status.commit = view.commit.0;
                }
                queues.state.push_back(ToState::Status { id, status });
            }
        }
    }

    /// The end of a turn: what was gathered goes in together.
    pub(super) fn idle(&mut self, now: Nanos, queues: &mut Queues, out: &mut Effects) {
        let waiting = |chair: &Chair| !chair.batch.is_empty() || !chair.reads.is_empty();
        let groups: Vec<GroupId> = self.chairs.iter().filter(|(_, c)| waiting(c)).map(|(group, _)| *group).collect();
        for group in groups {
            self.flush(now, group, queues, out);
        }
        self.tell_refused(queues, out);
    }

    fn flush(&mut self, now: Nanos, group: GroupId, queues: &mut Queues, out: &mut Effects) {
        let Some(chair) = self.chairs.get_mut(&group) else { return };
        chair.batch_bytes = 0;
        let (batch, reads) = (std::mem::take(&mut chair.batch), std::mem::take(&mut chair.reads));
        if !batch.is_empty() {
            self.input(now, group, Input::Propose(batch), queues, out);
        }
        if !reads.is_empty() {
            self.input(now, group, Input::Read(reads), queues, out);
        }
    }

    fn on_frame(
        &mut self,
        now: Nanos,
        from: NodeId,
        session: LinkSession,
        frame: Bytes,
        queues: &mut Queues,
        out: &mut Effects,
    ) {
        let Ok(group) = triune_consensus::frame_group(&frame) else {
            tracing::warn!(?from, "a frame without a header");
            return;
        };
        let Some(chair) = self.chairs.get_mut(&group) else { return };
        if let Err(error) = chair.seat.receive(now, from, session, frame, &mut self.effects) {
            tracing::warn!(?from, %error, "a frame is no message");
        }
        self.execute(group, queues, out);
    }

    fn on_propose(
        &mut self,
        now: Nanos,
        from: Option<NodeId>,
        commands: Vec<Command>,
        queues: &mut Queues,
        out: &mut Effects,
    ) {
        for command in commands {
            let Command { envelope, head, sections } = command;
            let group = envelope.group;
            let Some(chair) = self.chairs.get_mut(&group) else { continue };
            if chair.role.role != Role::Leader {
                self.refused.entry(from).or_default().push((envelope.session, envelope.seq, Refused::NotLeader));
                continue;
            }
            let stamp_ms = self.clock.now_ms(now).max(chair.last_stamp);
            chair.last_stamp = stamp_ms;
            let stamped = Envelope { stamp_ms, seed: self.rng.draw(), ..envelope };
            if self.arena.capacity() < ENVELOPE_BYTES + head.len() {
                self.arena.reserve(ARENA_BYTES.max(ENVELOPE_BYTES + head.len()));
            }
            stamped.put(&mut self.arena);
            self.arena.extend_from_slice(&head);
            let id = ProposalId(chair.origins_base + chair.origins.len() as u64);
            chair.origins.push_back(Some(Origin { from, session: envelope.session, seq: envelope.seq }));
            if chair.origins.len() > ORIGINS_MAX {
                chair.origins.pop_front();
                chair.origins_base += 1;
            }
            let head = self.arena.split().freeze();
            chair.batch_bytes += head.len() + sections.iter().map(Bytes::len).sum::<usize>();
            chair.batch.push(Proposal { id, head, sections });
            if chair.batch.len() >= BATCH_MAX || chair.batch_bytes >= BATCH_BYTES_MAX {
                self.flush(now, group, queues, out);
            }
        }
    }

    fn input(&mut self, now: Nanos, group: GroupId, input: Input<Infallible>, queues: &mut Queues, out: &mut Effects) {
        let Some(chair) = self.chairs.get_mut(&group) else { return };
        chair.seat.step(now, input, &mut self.effects);
        self.execute(group, queues, out);
    }

    fn each(
        &mut self,
        now: Nanos,
        queues: &mut Queues,
        out: &mut Effects,
        input: impl Fn(&Chair) -> Option<Input<Infallible>>,
    ) {
        let groups: Vec<GroupId> = self.chairs.keys().copied().collect();
        for group in groups {
            let Some(chair) = self.chairs.get_mut(&group) else { continue };
            let Some(input) = input(chair) else { continue };
            self.input(now, group, input, queues, out);
        }
    }

    /// Turns the replica's effects into the member's. They are past the gate: each may be done now.
    fn execute(&mut self, group: GroupId, queues: &mut Queues, out: &mut Effects) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Persist(batch) => out.push(MachineEffect::Persist(batch)),
                Effect::Send { to, channel, msg, after: _ } => {
                    out.push(MachineEffect::Send { to, channel, frame: msg });
                }
                Effect::Apply { entries, after: _ } => queues.state.push_back(ToState::Apply(entries)),
                Effect::Reply { id, outcome, after: _ } => self.on_reply(group, id, &outcome),
                Effect::Read { id, outcome } => queues.edge.push_back(ToEdge::ReadReady { id, outcome }),
                Effect::Admin { id, outcome } => queues.edge.push_back(ToEdge::AdminDone { id, outcome }),
                Effect::Fetch { req, first, last, bytes_max } => {
                    out.push(MachineEffect::Fetch { group, req, first, last, bytes_max });
                }
                Effect::Snapshot(op) => queues.state.push_back(ToState::SnapshotOp(op)),
                Effect::Release { upto } => out.push(MachineEffect::Release { group, upto }),
                Effect::Role(change) => {
                    let role = RoleNow { role: change.role, leader: change.leader, epoch: change.epoch };
                    if let Some(chair) = self.chairs.get_mut(&group) {
                        chair.role = role;
                    }
                    queues.state.push_back(ToState::Role(role));
                    queues.edge.push_back(ToEdge::Role(role));
                    out.push(MachineEffect::Output(Output::Role {
                        group,
                        role: role.role,
                        leader: role.leader,
                        epoch: role.epoch.0,
                    }));
                }
                Effect::Forgot => self.forgot = true,
                // An effect added later must be executed here.
                _ => unreachable!("an effect this member does not know"),
            }
        }
        self.effects = effects;
    }

    fn on_reply(&mut self, group: GroupId, id: ProposalId, outcome: &ProposeOutcome) {
        let Some(chair) = self.chairs.get_mut(&group) else { return };
        let slot = id.0.checked_sub(chair.origins_base).and_then(|n| usize::try_from(n).ok());
        let origin = slot.and_then(|n| chair.origins.get_mut(n)).and_then(Option::take);
        while matches!(chair.origins.front(), Some(None)) {
            chair.origins.pop_front();
            chair.origins_base += 1;
        }
        let (Some(origin), ProposeOutcome::Rejected(error)) = (origin, outcome) else { return };
        self.refused.entry(origin.from).or_default().push((origin.session, origin.seq, Refused::of(error)));
    }

    fn tell_refused(&mut self, queues: &mut Queues, out: &mut Effects) {
        let leader = self.role().leader.filter(|leader| *leader != self.node);
        while let Some((door, refused)) = self.refused.pop_first() {
            match door {
                None => queues.edge.push_back(ToEdge::Refused { refused }),
                Some(to) => {
                    let frame = encode(GroupId(0), &Forward::Rejected { leader, refused });
                    out.push(MachineEffect::Send { to, channel: Channel::Forward, frame });
                }
            }
        }
    }
}

/// Commands in one input of the replica. More go in at once rather than wait for the turn's end.
const BATCH_MAX: usize = 1_024;
/// Bytes in one input of the replica.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Memory taken at a time to build heads in.
const ARENA_BYTES: usize = 64 << 10;
/// Proposals whose reply may be out. Above it the oldest is forgotten: its door then asks again by itself.
const ORIGINS_MAX: usize = 1 << 17;
/// What a transfer without a target asks for.
pub(super) const TRANSFER_ANY: AdminOp = AdminOp::Transfer { to: None };
