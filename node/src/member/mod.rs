//! The pure core of a member: protocol replicas, stores, sessions, watches and the doors' side, without a thread,
//! socket, file or clock. The shell runs it; the simulator runs exactly the same.
//!
//! ```text
//!          frames, persisted, fetched                  requests
//!                    │                                     │
//!              ┌─────▼─────┐  committed entries  ┌─────────▼┐
//!              │   order   ├────────┐    ┌───────┤   edge   │
//!              │ replicas  │   ┌────▼────▼─┐     │ waiting  │
//!              │ stamping  │◀──┤   state   ├────▶│ calls    │
//!              └───────────┘   │ apply     │     └──────────┘
//!                              │ reads     │  answers, watches, flushes
//!                              └───────────┘
//! ```
//!
//! **Duties of the shell**: run it as any [`triune_consensus::Machine`], and execute the outputs of [`api`]:
//! 1. Commit [`api::Output::Flush`] batches in the order given, off the thread; answer with `Flushed`.
//! 2. Execute [`api::Output::Snapshot`] behind all flushes asked before; the stream's format is in `snapshot`.
//! 3. Hand replies and watch responses to the doors; give back credit with `Taken`.
//! 4. Keep the transport's addresses as [`api::Output::Members`] says ([`system::MemberRecord::peers`]).
//! 5. End the member on [`api::Output::Fatal`].

pub mod api;
mod apply;
mod clock;
mod command;
mod config;
mod edge;
pub mod formation;
mod forward;
mod order;
mod queues;
mod rng;
pub mod snapshot;
mod state;
pub mod system;
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;

use triune_consensus::{
    Machine, MachineEffect, MachineInput, Position, RecoverError, Seat, SnapshotEvent, View, raft::Raft,
};
use triune_transport::{Channel, GroupId, Lane, Nanos};
use triune_txn::mvcc;

use api::{Fatal, Output, Request};
use command::MemberUpdate;
use edge::{Edge, EdgeConfig};
use forward::Forward;
use order::Order;
use queues::{EdgeFrame, Queues, ToEdge, ToOrder, ToState};
use rng::mix;
use state::{Me, State};

pub use config::{FormedMember, GroupRecovered, MemberConfig, MemberLimits};
pub use order::Replica;
pub use state::StateError;
pub use system::{applied_mark, member_table};

/// One of a member's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Replicas.
    Order,
    /// State.
    State,
    /// The doors' side.
    Edge,
}

impl Part {
    /// All of them, in the order a turn ends them.
    pub const ALL: [Self; 3] = [Self::Edge, Self::Order, Self::State];
}

/// Why a member cannot be rebuilt from its disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// A replica's log or hard state: see [`RecoverError`].
    #[error("group {group}: {source}")]
    Replica {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: RecoverError,
    },
    /// The state of a group.
    #[error("group {group}: {source}")]
    State {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: StateError,
    },
    /// Every member has a replica of group 0, and of no other yet.
    #[error("a member has a replica of group 0 and of no other")]
    Groups,
}

/// A member: all it decides, none of what it does.
#[derive(Debug)]
pub struct Member {
    order: Order,
    state: State,
    edge: Edge,
    queues: Queues,
    dead: bool,
}

impl Member {
    /// Rebuilds a member from what its disk holds.
    ///
    /// # Errors
    /// The disk holds what cannot be: the member must not start.
    pub fn recover(config: MemberConfig, now: Nanos) -> Result<Self, MemberError> {
        Self::recover_with(config, now, |config, now, recovered| {
            Ok(Box::new(Seat::<Raft>::recover(config, now, recovered)?))
        })
    }

    /// The same with replicas made by `seat`.
    ///
    /// # Errors
    /// As [`Member::recover`].
    pub fn recover_with(
        config: MemberConfig,
        now: Nanos,
        seat: impl Fn(
            triune_consensus::Config,
            Nanos,
            triune_consensus::Recovered,
        ) -> Result<Box<dyn Replica>, RecoverError>,
    ) -> Result<Self, MemberError> {
        let MemberConfig {
            cluster,
            node,
            name: _,
            boot,
            formed,
            peer_addr,
            client_urls,
            version,
            wall_ms,
            limits,
            groups,
        } = config;
        let [GroupRecovered { replica, recovered, store }] =
            <[GroupRecovered; 1]>::try_from(groups).map_err(|_| MemberError::Groups)?;
        let group = replica.group;
        if group != GroupId(0) {
            return Err(MemberError::Groups);
        }
        let (election_min, election_max) = (replica.election_min, replica.election_max);
        let me = Me { cluster: cluster.0, node, boot, election_min, election_max };
        let first = recovered.formed.clone().filter(|_| recovered.applied.is_none());
        let mut state = State::recover(me, group, limits.clone(), store, now)
            .map_err(|source| MemberError::State { group, source })?;
        if let Some(formed) = first {
            state.system.config = std::sync::Arc::new(formed);
        }
        let seat = seat(replica, now, recovered).map_err(|source| MemberError::Replica { group, source })?;
        let edge = Edge::new(EdgeConfig {
            node,
            boot,
            first: system::first_records(cluster, &formed),
            announce: MemberUpdate { disk: node.0, version, peer_addr, client_urls },
            limits,
            election_min,
            election_max,
            seed: mix(boot ^ mix(node.0)),
        });
        let order = Order::new(node, BTreeMap::from([(group, seat)]), now, wall_ms, mix(boot));
        Ok(Self { order, state, edge, queues: Queues::default(), dead: false })
    }

    /// Puts an input into the inbox of the machine it concerns.
    pub fn push(&mut self, input: MachineInput<Request>, out: &mut Vec<MachineEffect<Output>>) {
        if self.dead {
            return;
        }
        let queues = &mut self.queues;
        match input {
            MachineInput::Frame { from, .. } if self.state.is_former(from) => {
                let frame = forward::encode(GroupId(0), &Forward::Replaced);
                out.push(MachineEffect::Send { to: from, channel: Channel::Forward, frame });
            }
            MachineInput::Frame { from, session, channel, frame } => {
                if channel != Channel::Forward || forward::kind_of(&frame) == 0 {
                    return queues.order.push_back(ToOrder::Frame { from, session, frame });
                }
                let Some((_, message)) = forward::decode(frame) else {
                    return tracing::warn!(?from, "a forwarded frame is no message");
                };
                let message = match message {
                    Forward::Propose(commands) => {
                        return queues.order.push_back(ToOrder::Propose { from: Some(from), commands });
                    }
                    Forward::Rejected { refused, .. } => EdgeFrame::Rejected { refused },
                    Forward::LeaseAsk { req, ask } => EdgeFrame::LeaseAsk { req, ask },
                    Forward::LeaseAnswer { req, answer } => EdgeFrame::LeaseAnswer { req, answer },
                    // True for ever, whoever says it: a disk id never comes back.
                    Forward::Replaced => return self.die(Fatal::Replaced, out),
                };
                queues.edge.push_back(ToEdge::Frame { from, message });
            }
            MachineInput::Link { peer, lane: Lane::Main, session, up } => {
                queues.order.push_back(ToOrder::Link { peer, session, up });
                queues.edge.push_back(ToEdge::Link { peer, up });
            }
            MachineInput::Link { .. } => {}
            MachineInput::Timeout => {
                queues.order.push_back(ToOrder::Timeout);
                queues.state.push_back(ToState::Timeout);
                queues.edge.push_back(ToEdge::Timeout);
            }
            MachineInput::Persisted { group, seq } => queues.order.push_back(ToOrder::Persisted { group, seq }),
            MachineInput::Fetched { group, req, entries } => {
                queues.order.push_back(ToOrder::Fetched { group, req, entries });
            }
            MachineInput::NoSpace => queues.edge.push_back(ToEdge::Space { full: true }),
            MachineInput::SpaceAgain => queues.edge.push_back(ToEdge::Space { full: false }),
            MachineInput::IoFailed => self.die(Fatal::Storage, out),
            MachineInput::Request(request) => self.push_request(request, out),
            // An input added later must be named here.
            _ => tracing::error!("an input this member does not know"),
        }
    }

    fn push_request(&mut self, request: Request, out: &mut Vec<MachineEffect<Output>>) {
        let queues = &mut self.queues;
        match request {
            Request::Call { id, within, needs_leader, call } => {
                queues.edge.push_back(ToEdge::Call { id, within, needs_leader, call });
            }
            Request::Cancel(id) => queues.edge.push_back(ToEdge::Cancel(id)),
            Request::Watch { stream, event } => queues.state.push_back(ToState::Watch { stream, event }),
            Request::Flushed { group: _, mark } => queues.state.push_back(ToState::Flushed(mark)),
            Request::StoreFailed { group, corrupt } => {
                self.die(if corrupt { Fatal::Corrupt(group) } else { Fatal::Storage }, out);
            }
            Request::Snapshot { group, event, store } => {
                match (&event, store) {
                    (SnapshotEvent::Installed(mark), Some(store)) => {
                        queues.state.push_back(ToState::Installed { mark: mark.clone(), store });
                    }
                    (SnapshotEvent::Installed(_), None) => return self.die(Fatal::Storage, out),
                    (SnapshotEvent::Failed { .. }, _) => queues.state.push_back(ToState::SnapshotFailed),
                    _ => {}
                }
                queues.order.push_back(ToOrder::Snapshot { group, event });
            }
            Request::WallClock(ms) => queues.order.push_back(ToOrder::WallClock(ms)),
            Request::Drain => queues.edge.push_back(ToEdge::Drain),
        }
    }

    /// Lets one machine take the next message of its inbox. Whether there was one.
    pub fn run_part(&mut self, part: Part, now: Nanos, out: &mut Vec<MachineEffect<Output>>) -> bool {
        if self.dead {
            return false;
        }
        let queues = &mut self.queues;
        let ran = match part {
            Part::Order => queues.order.pop_front().map(|input| self.order.step(now, input, queues, out)).is_some(),
            Part::State => queues.state.pop_front().map(|input| self.state.step(now, input, queues, out)).is_some(),
            Part::Edge => queues.edge.pop_front().map(|input| self.edge.step(now, input, queues, out)).is_some(),
        };
        self.dead |= self.state.is_dead();
        if self.order.has_forgotten() {
            // The disk lost what it had confirmed: it must not vote again under this id.
            self.die(Fatal::Corrupt(GroupId(0)), out);
        }
        ran
    }

    /// Lets one machine end its turn.
    pub fn idle_part(&mut self, part: Part, now: Nanos, out: &mut Vec<MachineEffect<Output>>) {
        if self.dead {
            return;
        }
        match part {
            Part::Order => self.order.idle(now, &mut self.queues, out),
            Part::State => self.state.idle(now, &mut self.queues, out),
            Part::Edge => self.edge.idle(now, &mut self.queues, out),
        }
        self.dead |= self.state.is_dead();
    }

    /// The last position applied.
    pub fn position(&self) -> Position {
        self.state.position()
    }

    /// The digest of the state: equal at equal position on every member.
    pub fn digest(&self) -> u64 {
        self.state.digest()
    }

    /// The key-value store, for checks.
    pub const fn store(&self) -> &mvcc::Store {
        &self.state.store
    }

    /// The member table as applied here, by ordinal.
    pub fn members(&self) -> impl Iterator<Item = &system::MemberRecord> {
        self.state.system.members.values()
    }

    /// The view of group 0's replica, for checks.
    pub fn view(&self) -> Option<View<()>> {
        self.order.view()
    }

    /// Whether it said [`Output::Fatal`]: it does nothing more.
    pub const fn is_dead(&self) -> bool {
        self.dead
    }

    /// Runs all machines until no inbox holds anything.
    fn run(&mut self, now: Nanos, out: &mut Vec<MachineEffect<Output>>) {
        while !self.dead && !self.queues.is_empty() {
            for part in [Part::Order, Part::State, Part::Edge] {
                while self.run_part(part, now, out) {}
            }
        }
    }

    fn die(&mut self, fatal: Fatal, out: &mut Vec<MachineEffect<Output>>) {
        if !std::mem::replace(&mut self.dead, true) {
            tracing::error!(%fatal, "the member ends");
            out.push(MachineEffect::Output(Output::Fatal(fatal)));
        }
    }
}

impl Machine for Member {
    type Request = Request;
    type Output = Output;

    fn step(&mut self, now: Nanos, input: MachineInput<Request>, out: &mut Vec<MachineEffect<Output>>) {
        self.push(input, out);
        self.run(now, out);
    }

    fn idle(&mut self, now: Nanos, out: &mut Vec<MachineEffect<Output>>) {
        for part in Part::ALL {
            self.idle_part(part, now, out);
            self.run(now, out);
        }
        if self.edge.wants_turn() {
            for part in Part::ALL {
                self.idle_part(part, now, out);
                self.run(now, out);
            }
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        if self.dead {
            return None;
        }
        [self.order.next_deadline(), self.state.next_deadline(), self.edge.next_deadline()].into_iter().flatten().min()
    }
}
