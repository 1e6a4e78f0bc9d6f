//! The `Protocol` trait: one replica of one group, whichever algorithm agrees.
//!
//! After each `step`, execute all its effects, in order per line, each only when the write named by its `after` is
//! durable. Nothing else is asked of the embedder, and nothing less is safe.

use std::fmt;

use bytes::{Bytes, BytesMut};
use triune_transport::Nanos;

use crate::{Config, Effects, Input, RecoverError, Recovered, View};

/// A message between replicas of one protocol, as bytes.
pub trait Wire: Sized + Clone + fmt::Debug + PartialEq {
    /// Appends the encoding to `buf`.
    fn encode(&self, buf: &mut BytesMut);

    /// Reads what [`Wire::encode`] wrote; payloads share `frame`'s memory.
    ///
    /// # Errors
    /// When the bytes are not a message of this protocol. The frame is dropped, the peer logged.
    fn decode(frame: Bytes) -> Result<Self, WireError>;
}

/// Bytes from a peer that are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes end before the message does.
    #[error("message truncated")]
    Truncated,
    /// A field holds what it must not.
    #[error("malformed {field}")]
    Malformed {
        /// Which field.
        field: &'static str,
    },
    /// Made by a newer version.
    #[error("message kind {kind} is unknown here")]
    UnknownKind {
        /// The kind's number.
        kind: u8,
    },
}

/// One replica of one group: a pure state machine.
///
/// It owns no file, socket, thread or clock. Time comes in as `now`, randomness as [`Config::boot`], and everything it
/// wants done goes out as effects. `Clone` is for exhaustive search.
pub trait Protocol: Sized + Clone {
    /// What its replicas say to each other.
    type Msg: Wire;
    /// What it shows of itself beyond [`View`]'s common part.
    type Detail: Clone + fmt::Debug;

    /// The name in configuration files and data directories: `raft`, `paxos`, `zab`.
    const NAME: &'static str;

    /// Rebuilds a replica from what its disk holds.
    ///
    /// # Errors
    /// When the disk holds what this protocol cannot have written. The member must not start.
    fn recover(cfg: Config, now: Nanos, from: Recovered) -> Result<Self, RecoverError>;

    /// Takes one input and appends what must be done to `out`. Never waits, never fails: bad messages are dropped.
    fn step(&mut self, now: Nanos, input: Input<Self::Msg>, out: &mut Effects<Self::Msg>);

    /// When to call `step(Timeout)` next, if nothing else happens. `None`: never.
    fn next_deadline(&self) -> Option<Nanos>;

    /// What everybody may know of this replica. Cheap.
    fn view(&self) -> View<Self::Detail>;

    /// A hash of the state without clocks, random state and counters, for exhaustive search.
    fn fingerprint(&self) -> u128;
}
