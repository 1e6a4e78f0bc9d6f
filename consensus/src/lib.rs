//! Raft, Multi-Paxos and Zab as pure state machines behind one trait, with one driver.
//!
//! **Problem.** A program that replicates its state needs agreement it can trust, on a disk that may lie, over a
//! network that loses; and it should not have to marry one algorithm, one runtime or one storage engine for it.
//!
//! **What it is not.** No key-value store, no network, no disk: see `triune-transport` and `triune-storage`.
//!
//! Three replicas wired by a loop (a disk that is done at once, a network that loses nothing):
//!
//! ```
//! # #[cfg(feature = "raft")] {
//! use triune_consensus::{Config, Configuration, Effect, Effects, Input, Protocol, Recovered, Role, raft::Raft};
//! use triune_transport::{GroupId, LinkSession, Nanos, NodeId};
//!
//! let ids = [1, 2, 3].map(NodeId);
//! let formed = || Recovered { formed: Some(Configuration::of(ids)), ..Recovered::default() };
//! let config = |id: NodeId| Config::new(GroupId(0), id, 7 + id.0);
//! let mut replicas = ids.map(|id| Raft::recover(config(id), Nanos::ZERO, formed()).unwrap());
//! let mut inputs = std::collections::VecDeque::from([(ids[0], Input::Timeout)]);
//! while let Some((at, input)) = inputs.pop_front() {
//!     let mut out = Effects::default();
//!     replicas[at.0 as usize - 1].step(Nanos::from_secs(3), input, &mut out);
//!     for effect in out.drain() {
//!         match effect {
//!             Effect::Persist(batch) => inputs.push_front((at, Input::Persisted(batch.seq))),
//!             Effect::Send { to, msg, .. } => inputs.push_back((to, Input::Message { from: at, link: LinkSession(1), msg })),
//!             _ => {}
//!         }
//!     }
//! }
//! assert_eq!(replicas[0].view().role, Role::Leader);
//! # }
//! ```
//!
//! **Duties of the embedder**, if it runs replicas itself rather than with the driver:
//! 1. Recover each replica from its disk: [`Recovered`].
//! 2. Take `now` after the input was dequeued, then call [`Protocol::step`].
//! 3. Execute the effects in order per line, each only when the write named by its `after` is durable; [`Gate`] does it.
//! 4. Call with [`Input::Timeout`] at [`Protocol::next_deadline`].
//! 5. After a failed write: [`Input::IoFailed`], then end the replica. Never retry a sync.
//!
//! **Guarantees.** One order of commands on every replica; an acknowledged command survives every crash of a minority,
//! and the loss of power by all; linearizable reads on any replica. **Not guaranteed:** progress without a quorum;
//! that a proposal without an answer did not happen.

#![forbid(unsafe_code)]

#[cfg(feature = "driver")]
pub mod driver;
mod gate;
#[cfg(feature = "check")]
pub mod invariants;
mod machine;
mod protocol;
#[cfg(feature = "raft")]
pub mod raft;
#[cfg(feature = "raft")]
pub mod replica;
mod seat;
pub mod session;
mod types;

#[cfg(feature = "mutants")]
mod mutants;
#[cfg(feature = "mutants")]
pub use mutants::Mutant;

pub use gate::Gate;
pub use machine::{Machine, MachineEffect, MachineInput};
pub use protocol::{Protocol, Wire, WireError};
pub use seat::{FRAME_HEADER_BYTES, FRAME_VERSION, Seat, frame_group};
pub use triune_storage::{Entry, Epoch, Index, IoSeq, Position, Run, StreamBatch};
pub use types::{
    AdminError, AdminId, AdminOp, Config, ConfigChange, ConfigEntry, ConfigError, Configuration, Effect, Effects,
    EntryKind, FetchId, Input, Proposal, ProposalId, ProposeError, ProposeOutcome, ReadError, ReadId, ReadMode,
    RecoverError, Recovered, Role, RoleChange, SnapshotEvent, SnapshotMark, SnapshotMeta, SnapshotOp, View,
};
