//! Commands: what one log entry asks of the state. A fixed envelope, then a prost head, then payload sections.
//!
//! ```text
//! 0    2     4       8         16    24            32         40     48
//! │ver │flags│ group │ session │ seq │ acked below │ stamp ms │ seed │ head (prost) …
//! ```
//! Little-endian. The door fills everything but stamp and seed; the leader stamps when it proposes.
//!
//! 1. `(session, seq)` names the command for ever: a door forwards it again under the same name.
//! 2. An operation's number is never reused; an unknown one ends the member rather than being passed over.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use triune_transport::{GroupId, NodeId};
use triune_txn::mvcc;

use super::system::MemberRecord;

/// The version of the envelope written here.
pub(crate) const COMMAND_VERSION: u16 = 1;

/// Bytes before the head.
pub(crate) const ENVELOPE_BYTES: usize = 48;

/// The fixed part of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Envelope {
    pub(crate) group: GroupId,
    /// The door's session; 0 only for the command that opens one.
    pub(crate) session: u64,
    /// The command's number in its session, from 1.
    pub(crate) seq: u64,
    /// The door waits for no answer below this number.
    pub(crate) acked_below: u64,
    /// The leader's clock when it proposed; 0 until then.
    pub(crate) stamp_ms: u64,
    /// Random, drawn by the leader, for what a command needs of chance.
    pub(crate) seed: u64,
}

/// Why bytes are not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    /// They end too soon, or the head does not decode.
    #[error("malformed command")]
    Malformed,
    /// A newer version wrote it, with this operation; 0: the envelope itself is newer.
    #[error("unknown operation {op}")]
    Unknown { op: u32 },
}

impl Envelope {
    pub(crate) fn put(&self, buf: &mut BytesMut) {
        buf.put_u16_le(COMMAND_VERSION);
        buf.put_u16_le(0);
        buf.put_u32_le(self.group.0);
        for word in [self.session, self.seq, self.acked_below, self.stamp_ms, self.seed] {
            buf.put_u64_le(word);
        }
    }

    /// Takes the envelope off the front of `bytes`.
    pub(crate) fn take(bytes: &mut Bytes) -> Result<Self, CommandError> {
        if bytes.len() < ENVELOPE_BYTES {
            return Err(CommandError::Malformed);
        }
        if bytes.get_u16_le() > COMMAND_VERSION {
            return Err(CommandError::Unknown { op: 0 });
        }
        bytes.advance(2);
        Ok(Self {
            group: GroupId(bytes.get_u32_le()),
            session: bytes.get_u64_le(),
            seq: bytes.get_u64_le(),
            acked_below: bytes.get_u64_le(),
            stamp_ms: bytes.get_u64_le(),
            seed: bytes.get_u64_le(),
        })
    }
}

/// A command on its way from a door to the leader's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) envelope: Envelope,
    /// The encoded [`Head`].
    pub(crate) head: Bytes,
    pub(crate) sections: Vec<Bytes>,
}

impl Command {
    pub(crate) fn bytes(&self) -> usize {
        ENVELOPE_BYTES + self.head.len() + self.sections.iter().map(Bytes::len).sum::<usize>()
    }
}

/// The part of a command that says what to do.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Head {
    /// A user's key under which a repeated request gives the first result. No door takes one yet.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub(crate) idempotency: Option<Bytes>,
    #[prost(oneof = "Op", tags = "16, 17, 18, 19, 20, 32, 33, 34, 35, 36, 37, 38")]
    pub(crate) op: Option<Op>,
}

/// Operations. 16–31 change the system tables, 32–63 the key-value store.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Op {
    #[prost(message, tag = "16")]
    OpenSession(OpenSession),
    #[prost(message, tag = "17")]
    FormCluster(FormCluster),
    #[prost(message, tag = "18")]
    MemberUpdate(MemberUpdate),
    #[prost(message, tag = "19")]
    MemberJoin(MemberJoin),
    #[prost(message, tag = "20")]
    Alarm(AlarmOp),
    #[prost(message, tag = "32")]
    Put(mvcc::PutOp),
    #[prost(message, tag = "33")]
    DeleteRange(mvcc::DeleteRangeOp),
    #[prost(message, tag = "34")]
    Txn(mvcc::TxnOp),
    #[prost(message, tag = "35")]
    Compact(mvcc::CompactOp),
    #[prost(message, tag = "36")]
    LeaseGrant(mvcc::LeaseGrantOp),
    #[prost(message, tag = "37")]
    LeaseRevoke(mvcc::LeaseRevokeOp),
    #[prost(message, tag = "38")]
    LeaseCheckpoint(mvcc::LeaseCheckpointOp),
}

/// Opens the session of a member's boot and closes that member's older ones.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct OpenSession {
    #[prost(fixed64, tag = "1")]
    pub(crate) node: u64,
    #[prost(fixed64, tag = "2")]
    pub(crate) boot: u64,
}

/// Writes the member table, if there is none yet.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FormCluster {
    #[prost(message, repeated, tag = "1")]
    pub(crate) members: Vec<MemberRecord>,
}

/// What a member says of itself at its start.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberUpdate {
    #[prost(fixed64, tag = "1")]
    pub(crate) disk: u64,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(string, tag = "3")]
    pub(crate) peer_addr: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) client_urls: Vec<String>,
}

/// A disk wants to come in place of a member's lost one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberJoin {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(fixed64, tag = "2")]
    pub(crate) disk: u64,
    #[prost(string, tag = "3")]
    pub(crate) peer_addr: String,
}

/// Raises or clears an alarm.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct AlarmOp {
    /// Clear it.
    #[prost(bool, tag = "1")]
    pub(crate) clear: bool,
    /// Whose; 0 with `clear`: everybody's.
    #[prost(fixed64, tag = "2")]
    pub(crate) member: u64,
    /// A number of [`super::system::alarm_number`]; 0 with `clear`: all kinds.
    #[prost(uint32, tag = "3")]
    pub(crate) alarm: u32,
}

impl OpenSession {
    pub(crate) const fn of(node: NodeId, boot: u64) -> Self {
        Self { node: node.0, boot }
    }
}

impl Head {
    pub(crate) fn of(op: Op) -> Bytes {
        Self { idempotency: None, op: Some(op) }.encode_to_vec().into()
    }

    /// Reads the operation.
    pub(crate) fn op(bytes: &Bytes) -> Result<Op, CommandError> {
        let head = Self::decode(bytes.clone()).map_err(|_| CommandError::Malformed)?;
        head.op.ok_or_else(|| unknown_op(bytes.clone()))
    }
}

/// The number of the operation in a head that holds none this version knows.
fn unknown_op(mut bytes: Bytes) -> CommandError {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    while bytes.has_remaining() {
        let Ok((tag, wire)) = decode_key(&mut bytes) else { return CommandError::Malformed };
        if tag >= OP_FIRST {
            return CommandError::Unknown { op: tag };
        }
        if skip_field(wire, tag, &mut bytes, DecodeContext::default()).is_err() {
            return CommandError::Malformed;
        }
    }
    CommandError::Malformed
}

/// The least number of an operation.
const OP_FIRST: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_reads_as_written_and_leaves_the_head() {
        let envelope = Envelope { group: GroupId(3), session: 5, seq: 7, acked_below: 6, stamp_ms: 11, seed: u64::MAX };
        let mut buf = BytesMut::new();
        envelope.put(&mut buf);
        assert_eq!(buf.len(), ENVELOPE_BYTES);
        buf.extend_from_slice(b"head");
        let mut bytes = buf.freeze();
        assert_eq!(Envelope::take(&mut bytes), Ok(envelope));
        assert_eq!(&bytes[..], b"head");
    }

    #[test]
    fn a_cut_or_newer_envelope_is_refused() {
        let mut buf = BytesMut::new();
        Envelope::default().put(&mut buf);
        let whole = buf.freeze();
        for len in 0..ENVELOPE_BYTES {
            assert_eq!(Envelope::take(&mut whole.slice(..len)), Err(CommandError::Malformed));
        }
        let mut newer = BytesMut::from(&whole[..]);
        newer[0] = 2;
        assert_eq!(Envelope::take(&mut newer.freeze()), Err(CommandError::Unknown { op: 0 }));
    }

    #[test]
    fn an_operation_of_a_later_version_is_named() {
        let mut head = BytesMut::new();
        prost::encoding::bytes::encode(1, &Bytes::from_static(b"idem"), &mut head);
        prost::encoding::bytes::encode(63, &Bytes::from_static(b"whatever"), &mut head);
        assert_eq!(Head::op(&head.freeze()), Err(CommandError::Unknown { op: 63 }));
        assert_eq!(Head::op(&Bytes::new()), Err(CommandError::Malformed));
        assert_eq!(Head::op(&Bytes::from_static(&[0xff])), Err(CommandError::Malformed));
    }

    #[test]
    fn an_operation_reads_as_written() {
        let op = Op::Put(mvcc::PutOp { key: "k".into(), value: "v".into(), ..Default::default() });
        assert_eq!(Head::op(&Head::of(op.clone())), Ok(op));
    }
}
