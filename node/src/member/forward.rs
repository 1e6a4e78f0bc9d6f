//! What members say to each other beside the protocol: commands for the leader, refusals, questions about leases.
//!
//! Frames travel on [`Channel::Forward`] behind the header all frames have; its second field, 0 in a replica's frames,
//! is the kind here.
//!
//! ```text
//! 0         2      4       8
//! │ version │ kind │ group │ body …        little-endian
//! ```
//! A length from outside is believed only once the bytes behind it are seen; nothing here allocates by a count.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_consensus::{FRAME_HEADER_BYTES, FRAME_VERSION, ProposeError};
use triune_transport::{GroupId, NodeId};

use super::command::{Command, ENVELOPE_BYTES, Envelope};

/// A message of a member to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Put these into the log.
    Propose(Vec<Command>),
    /// These were not put into the log.
    Rejected { leader: Option<NodeId>, refused: Vec<(u64, u64, Refused)> },
    /// A question about a lease, for the leader's clock.
    LeaseAsk { req: u64, ask: LeaseAsk },
    /// The answer.
    LeaseAnswer { req: u64, answer: LeaseAnswer },
    /// The receiver's disk was replaced by another, by a committed entry.
    Replaced,
}

/// Why a command was not put into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No leader here, or one that hands over: ask the next.
    NotLeader,
    /// Too much is waiting already.
    Busy,
}

/// What only the leader knows of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseAsk {
    /// Renew it.
    KeepAlive(i64),
    /// How long it has.
    TimeToLive { id: i64, keys: bool },
}

/// What the leader says of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LeaseAnswer {
    /// It does not lead: ask the next.
    NotLeader,
    /// Its time to live, renewed; 0: there is no such lease.
    KeepAlive { ttl: i64 },
    /// What it has left (−1: no such lease), what it was granted, and its keys if asked for.
    TimeToLive { ttl: i64, granted: i64, keys: Vec<Bytes> },
}

impl Refused {
    pub(crate) const fn of(error: &ProposeError) -> Self {
        match error {
            ProposeError::Busy => Self::Busy,
            _ => Self::NotLeader,
        }
    }
}

/// The kind of a frame; 0 belongs to the replica.
pub(crate) fn kind_of(frame: &[u8]) -> u16 {
    frame.get(2..4).map_or(0, |mut two| two.get_u16_le())
}

/// Starts a frame in `buf`.
fn header(buf: &mut BytesMut, kind: u16, group: GroupId) {
    buf.put_u16_le(FRAME_VERSION);
    buf.put_u16_le(kind);
    buf.put_u32_le(group.0);
}

/// Appends one command to a frame of commands, starting the frame if it is empty.
pub(crate) fn put_command(buf: &mut BytesMut, group: GroupId, envelope: &Envelope, head: &Bytes, sections: &[Bytes]) {
    if buf.is_empty() {
        header(buf, PROPOSE, group);
    }
    envelope.put(buf);
    put_bytes(buf, head);
    buf.put_u32_le(u32::try_from(sections.len()).unwrap_or(u32::MAX));
    for section in sections {
        put_bytes(buf, section);
    }
}

/// The frame of any other message.
pub(crate) fn encode(group: GroupId, message: &Forward) -> Bytes {
    let mut buf = BytesMut::new();
    match message {
        Forward::Propose(commands) => {
            header(&mut buf, PROPOSE, group);
            for c in commands {
                put_command(&mut buf, group, &c.envelope, &c.head, &c.sections);
            }
        }
        Forward::Rejected { leader, refused } => {
            header(&mut buf, REJECTED, group);
            buf.put_u64_le(leader.map_or(0, |node| node.0));
            for (session, seq, why) in refused {
                buf.put_u64_le(*session);
                buf.put_u64_le(*seq);
                buf.put_u8(u8::from(*why == Refused::Busy));
            }
        }
        Forward::Replaced => header(&mut buf, REPLACED, group),
        Forward::LeaseAsk { req, ask } => {
            header(&mut buf, LEASE_ASK, group);
            buf.put_u64_le(*req);
            let (what, id) = match ask {
                LeaseAsk::KeepAlive(id) => (0, *id),
                LeaseAsk::TimeToLive { id, keys: false } => (1, *id),
                LeaseAsk::TimeToLive { id, keys: true } => (2, *id),
            };
            buf.put_u8(what);
            buf.put_i64_le(id);
        }
        Forward::LeaseAnswer { req, answer } => {
            header(&mut buf, LEASE_ANSWER, group);
            buf.put_u64_le(*req);
            match answer {
                LeaseAnswer::NotLeader => buf.put_u8(0),
                LeaseAnswer::KeepAlive { ttl } => {
                    buf.put_u8(1);
                    buf.put_i64_le(*ttl);
                }
                LeaseAnswer::TimeToLive { ttl, granted, keys } => {
                    buf.put_u8(2);
                    buf.put_i64_le(*ttl);
                    buf.put_i64_le(*granted);
                    keys.iter().for_each(|key| put_bytes(&mut buf, key));
                }
            }
        }
    }
    buf.freeze()
}

/// Reads a frame; `None`: it is none of ours, and is dropped.
pub(crate) fn decode(mut frame: Bytes) -> Option<(GroupId, Forward)> {
    if frame.len() < FRAME_HEADER_BYTES || frame.get_u16_le() != FRAME_VERSION {
        return None;
    }
    let kind = frame.get_u16_le();
    let group = GroupId(frame.get_u32_le());
    let message = match kind {
        PROPOSE => {
            let mut commands = Vec::new();
            while frame.has_remaining() {
                commands.push(take_command(&mut frame)?);
            }
            Forward::Propose(commands)
        }
        REJECTED => {
            let leader = Some(take_u64(&mut frame)?).filter(|id| *id != 0).map(NodeId);
            let mut refused = Vec::new();
            while frame.has_remaining() {
                let (session, seq) = (take_u64(&mut frame)?, take_u64(&mut frame)?);
                let why = if take_u8(&mut frame)? == 0 { Refused::NotLeader } else { Refused::Busy };
                refused.push((session, seq, why));
            }
            Forward::Rejected { leader, refused }
        }
        LEASE_ASK => {
            let (req, what, id) = (take_u64(&mut frame)?, take_u8(&mut frame)?, take_i64(&mut frame)?);
            let ask = match what {
                0 => LeaseAsk::KeepAlive(id),
                1 | 2 => LeaseAsk::TimeToLive { id, keys: what == 2 },
                _ => return None,
            };
            Forward::LeaseAsk { req, ask }
        }
        LEASE_ANSWER => {
            let (req, what) = (take_u64(&mut frame)?, take_u8(&mut frame)?);
            let answer = match what {
                0 => LeaseAnswer::NotLeader,
                1 => LeaseAnswer::KeepAlive { ttl: take_i64(&mut frame)? },
                2 => {
                    let (ttl, granted) = (take_i64(&mut frame)?, take_i64(&mut frame)?);
                    let mut keys = Vec::new();
                    while frame.has_remaining() {
                        keys.push(take_bytes(&mut frame)?);
                    }
                    LeaseAnswer::TimeToLive { ttl, granted, keys }
                }
                _ => return None,
            };
            Forward::LeaseAnswer { req, answer }
        }
        REPLACED => Forward::Replaced,
        _ => return None,
    };
    Some((group, message))
}

fn take_command(frame: &mut Bytes) -> Option<Command> {
    if frame.len() < ENVELOPE_BYTES {
        return None;
    }
    let envelope = Envelope::take(frame).ok()?;
    let head = take_bytes(frame)?;
    let mut sections = Vec::new();
    for _ in 0..take_u32(frame)? {
        sections.push(take_bytes(frame)?);
    }
    Some(Command { envelope, head, sections })
}

fn put_bytes(buf: &mut BytesMut, bytes: &Bytes) {
    buf.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    buf.put_slice(bytes);
}

fn take_bytes(frame: &mut Bytes) -> Option<Bytes> {
    let len = take_u32(frame)? as usize;
    (len <= frame.len()).then(|| frame.split_to(len))
}

fn take_u8(frame: &mut Bytes) -> Option<u8> {
    frame.has_remaining().then(|| frame.get_u8())
}

fn take_u32(frame: &mut Bytes) -> Option<u32> {
    (frame.len() >= 4).then(|| frame.get_u32_le())
}

fn take_u64(frame: &mut Bytes) -> Option<u64> {
    (frame.len() >= 8).then(|| frame.get_u64_le())
}

fn take_i64(frame: &mut Bytes) -> Option<i64> {
    (frame.len() >= 8).then(|| frame.get_i64_le())
}

const PROPOSE: u16 = 1;
const REJECTED: u16 = 2;
const LEASE_ASK: u16 = 3;
const LEASE_ANSWER: u16 = 4;
const REPLACED: u16 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Forward> {
        let envelope = Envelope { group: GroupId(0), session: 9, seq: 4, acked_below: 2, stamp_ms: 0, seed: 0 };
        let command =
            Command { envelope, head: "head".into(), sections: vec![Bytes::new(), Bytes::from_static(b"payload")] };
        vec![
            Forward::Replaced,
            Forward::Propose(vec![command.clone(), Command { sections: vec![], ..command }]),
            Forward::Rejected { leader: Some(NodeId(7)), refused: vec![(9, 4, Refused::Busy)] },
            Forward::Rejected { leader: None, refused: vec![(9, 4, Refused::NotLeader), (9, 5, Refused::Busy)] },
            Forward::LeaseAsk { req: 1, ask: LeaseAsk::KeepAlive(-5) },
            Forward::LeaseAsk { req: 1, ask: LeaseAsk::TimeToLive { id: 5, keys: true } },
            Forward::LeaseAnswer { req: 2, answer: LeaseAnswer::NotLeader },
            Forward::LeaseAnswer { req: 2, answer: LeaseAnswer::KeepAlive { ttl: 3 } },
            Forward::LeaseAnswer {
                req: 2,
                answer: LeaseAnswer::TimeToLive { ttl: 3, granted: 9, keys: vec!["a".into(), "b".into()] },
            },
        ]
    }

    #[test]
    fn messages_read_as_written() {
        for message in samples() {
            let frame = encode(GroupId(2), &message);
            assert_ne!(kind_of(&frame), 0);
            assert_eq!(decode(frame), Some((GroupId(2), message)));
        }
    }

    #[test]
    fn cut_frames_never_panic_and_never_read_as_the_whole() {
        for message in samples() {
            let frame = encode(GroupId(2), &message);
            for len in 0..frame.len() {
                assert_ne!(decode(frame.slice(..len)), Some((GroupId(2), message.clone())));
            }
        }
    }

    #[test]
    fn a_count_without_bytes_behind_it_allocates_nothing() {
        let mut buf = BytesMut::new();
        header(&mut buf, PROPOSE, GroupId(0));
        Envelope::default().put(&mut buf);
        put_bytes(&mut buf, &Bytes::new());
        buf.put_u32_le(u32::MAX);
        assert_eq!(decode(buf.freeze()), None);
    }
}
