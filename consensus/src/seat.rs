//! A seat: one replica behind its durability gate, speaking frames instead of messages.
//!
//! This is what an executor holds per group, whether that executor is the shipped driver, a program's own pure machine
//! or a simulator. It adds no decision: it decodes, steps, gates and encodes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_storage::IoSeq;
use triune_transport::{GroupId, LinkSession, Nanos, NodeId};

use crate::{Config, Effect, Effects, Gate, Input, Protocol, RecoverError, Recovered, View, Wire, WireError};

/// The version of the frame header below; a frame of another is refused.
pub const FRAME_VERSION: u16 = 1;

/// Bytes before the message: version `u16`, reserved `u16`, group `u32`, little-endian.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Reads which group a frame is for, without decoding it.
///
/// # Errors
/// When it is too short, or of another version.
pub fn frame_group(frame: &[u8]) -> Result<GroupId, WireError> {
    let mut header = frame.get(..FRAME_HEADER_BYTES).ok_or(WireError::Truncated)?;
    if header.get_u16_le() != FRAME_VERSION {
        return Err(WireError::Malformed { field: "frame version" });
    }
    header.advance(2);
    Ok(GroupId(header.get_u32_le()))
}

/// One replica of one group behind its gate.
#[derive(Clone, Debug)]
pub struct Seat<P: Protocol> {
    group: GroupId,
    replica: P,
    gate: Gate<P::Msg>,
    effects: Effects<P::Msg>,
    released: Vec<Effect<P::Msg>>,
    buf: BytesMut,
}

impl<P: Protocol> Seat<P> {
    /// Rebuilds the replica from its disk.
    ///
    /// # Errors
    /// As [`Protocol::recover`].
    pub fn recover(cfg: Config, now: Nanos, from: Recovered) -> Result<Self, RecoverError> {
        let (group, durable) = (cfg.group, from.last_seq);
        Ok(Self {
            group,
            replica: P::recover(cfg, now, from)?,
            gate: Gate::new(durable),
            effects: Effects::default(),
            released: Vec::new(),
            buf: BytesMut::new(),
        })
    }

    /// Steps the replica; appends to `out` what may be executed *now*, in order. Sends carry whole frames.
    pub fn step(&mut self, now: Nanos, input: Input<P::Msg>, out: &mut Vec<Effect<Bytes>>) {
        if let Input::Persisted(seq) = input {
            self.gate.persisted(seq, &mut self.released);
        }
        self.replica.step(now, input, &mut self.effects);
        self.gate.admit(&mut self.effects, &mut self.released);
        for effect in self.released.drain(..) {
            out.push(encode(self.group, effect, &mut self.buf));
        }
    }

    /// Steps the replica with a frame from a peer.
    ///
    /// # Errors
    /// When the frame is not a message for this group; the replica is untouched.
    pub fn receive(
        &mut self,
        now: Nanos,
        from: NodeId,
        link: LinkSession,
        mut frame: Bytes,
        out: &mut Vec<Effect<Bytes>>,
    ) -> Result<(), WireError> {
        if frame_group(&frame)? != self.group {
            return Err(WireError::Malformed { field: "group" });
        }
        frame.advance(FRAME_HEADER_BYTES);
        let msg = P::Msg::decode(frame)?;
        self.step(now, Input::Message { from, link, msg }, out);
        Ok(())
    }

    /// When to step with [`Input::Timeout`] next.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.replica.next_deadline()
    }

    /// What everybody may know of the replica.
    pub fn view(&self) -> View<P::Detail> {
        self.replica.view()
    }

    /// The replica itself, for checks.
    pub const fn replica(&self) -> &P {
        &self.replica
    }

    /// Every write ≤ this is durable.
    pub const fn durable(&self) -> IoSeq {
        self.gate.durable()
    }
}

/// The same effect with its message as a frame.
fn encode<M: Wire>(group: GroupId, effect: Effect<M>, buf: &mut BytesMut) -> Effect<Bytes> {
    match effect {
        Effect::Send { to, channel, msg, after } => {
            buf.put_u16_le(FRAME_VERSION);
            buf.put_u16_le(0);
            buf.put_u32_le(group.0);
            msg.encode(buf);
            Effect::Send { to, channel, msg: buf.split().freeze(), after }
        }
        Effect::Persist(batch) => Effect::Persist(batch),
        Effect::Apply { entries, after } => Effect::Apply { entries, after },
        Effect::Reply { id, outcome, after } => Effect::Reply { id, outcome, after },
        Effect::Read { id, outcome } => Effect::Read { id, outcome },
        Effect::Admin { id, outcome } => Effect::Admin { id, outcome },
        Effect::Fetch { req, first, last, bytes_max } => Effect::Fetch { req, first, last, bytes_max },
        Effect::Snapshot(op) => Effect::Snapshot(op),
        Effect::Release { upto } => Effect::Release { upto },
        Effect::Role(change) => Effect::Role(change),
        Effect::Forgot => Effect::Forgot,
    }
}
