//! Raft's messages and their bytes.
//!
//! | message | channel | source | deviation |
//! |--|--|--|--|
//! | `PreVote` | vote | thesis 9.6 | |
//! | `Vote` | vote | figure 2 | `transfer` lifts the voters' stickiness (thesis 4.2.3, 3.10) |
//! | `TimeoutNow` | vote | thesis 3.10 | |
//! | `Append` | log | figure 2 | carries the match the leader knows, to find lost disks |
//! | `Heartbeat` | heartbeat | thesis 6.4 | apart from `Append`, so that it waits behind no entry |
//! | `ReadIndex` | heartbeat | thesis 6.4 | |
//! | `Offer`, `Chunk` | bulk | figure 3.13 | the receiver says from where on it needs the bytes |
//!
//! Fixed little-endian fields; payloads share the frame's memory. No length from outside is believed before the bytes
//! behind it are seen, so decoding never allocates more than a small multiple of the frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_storage::{Entry, Epoch, Index, Position};
use triune_transport::NodeId;

use crate::{Configuration, SnapshotMark, SnapshotMeta, Wire, WireError};

/// The name of one heartbeat round: never used twice, not even by another boot of the same replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RoundId {
    /// [`crate::Config::boot`] of the replica that counts.
    pub boot: u64,
    /// Its count.
    pub count: u64,
}

/// What a follower says to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// Its log equals the leader's up to here, durably.
    Matched(Index),
    /// It has no such previous entry.
    Rejected {
        /// The previous index it was asked for.
        prev: Index,
        /// The last place where the two logs can agree.
        hint: Position,
    },
}

/// What one replica says to another.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RaftMsg {
    /// Could I win in `term`? Changes nothing.
    PreVote {
        /// The term the candidate would campaign in.
        term: Epoch,
        /// The end of its log.
        last: Position,
    },
    /// The answer.
    PreVoteReply {
        /// Granted: the term asked for; refused: the voter's own.
        term: Epoch,
        /// Yes or no.
        granted: bool,
    },
    /// Vote for me.
    Vote {
        /// The candidate's term.
        term: Epoch,
        /// The end of its log.
        last: Position,
        /// The leader asked it to campaign.
        transfer: bool,
    },
    /// The answer; durable before it is sent.
    VoteReply {
        /// The voter's term.
        term: Epoch,
        /// Yes or no.
        granted: bool,
    },
    /// Entries behind `prev`.
    Append {
        /// The leader's term.
        term: Epoch,
        /// What the follower must hold before the first entry.
        prev: Position,
        /// Known committed.
        commit: Index,
        /// What the follower has acknowledged to this leader: less than that in its log means it lost its disk.
        matched: Index,
        /// Contiguous behind `prev`; empty only to tell the commit, and then not answered unless refused.
        entries: Vec<Entry>,
    },
    /// The answer; what it confirms is durable.
    AppendReply {
        /// The follower's term.
        term: Epoch,
        /// Taken or not.
        outcome: AppendOutcome,
    },
    /// I lead.
    Heartbeat {
        /// The leader's term.
        term: Epoch,
        /// Known committed, and at most what the follower is known to hold.
        commit: Index,
        /// As in `Append`.
        matched: Index,
        /// The round.
        round: RoundId,
    },
    /// The answer. Also sent, with round zero, to tell a deposed leader the newer term.
    HeartbeatReply {
        /// The follower's term.
        term: Epoch,
        /// The round it answers.
        round: RoundId,
    },
    /// A follower asks from which index on its reads are linearizable.
    ReadIndex {
        /// The question's name.
        ctx: RoundId,
    },
    /// The answer; silence means no.
    ReadIndexReply {
        /// The question's name.
        ctx: RoundId,
        /// From here on.
        index: Index,
    },
    /// Campaign now.
    TimeoutNow {
        /// The leader's term.
        term: Epoch,
    },
    /// Do you need this snapshot, and from which byte on?
    Offer {
        /// The leader's term.
        term: Epoch,
        /// The snapshot.
        meta: SnapshotMeta,
    },
    /// A piece of the offered snapshot.
    Chunk {
        /// The leader's term.
        term: Epoch,
        /// Which snapshot.
        position: Position,
        /// From which byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// How much of a snapshot is kept.
    ChunkReply {
        /// The follower's term.
        term: Epoch,
        /// Which snapshot.
        position: Position,
        /// Everything below this byte.
        upto: u64,
    },
}

impl RaftMsg {
    /// The term it was sent in, where it has one.
    pub const fn term(&self) -> Option<Epoch> {
        match self {
            Self::PreVote { term, .. }
            | Self::PreVoteReply { term, .. }
            | Self::Vote { term, .. }
            | Self::VoteReply { term, .. }
            | Self::Append { term, .. }
            | Self::AppendReply { term, .. }
            | Self::Heartbeat { term, .. }
            | Self::HeartbeatReply { term, .. }
            | Self::TimeoutNow { term }
            | Self::Offer { term, .. }
            | Self::Chunk { term, .. }
            | Self::ChunkReply { term, .. } => Some(*term),
            Self::ReadIndex { .. } | Self::ReadIndexReply { .. } => None,
        }
    }
}

const PRE_VOTE: u8 = 1;
const PRE_VOTE_REPLY: u8 = 2;
const VOTE: u8 = 3;
const VOTE_REPLY: u8 = 4;
const APPEND: u8 = 5;
const APPEND_REPLY: u8 = 6;
const HEARTBEAT: u8 = 7;
const HEARTBEAT_REPLY: u8 = 8;
const READ_INDEX: u8 = 9;
const READ_INDEX_REPLY: u8 = 10;
const TIMEOUT_NOW: u8 = 11;
const OFFER: u8 = 12;
const CHUNK: u8 = 13;
const CHUNK_REPLY: u8 = 14;

/// Epoch, kind, section count and head length: the least an entry takes.
const ENTRY_BYTES_MIN: usize = 8 + 1 + 2 + 4;

impl Wire for RaftMsg {
    fn encode(&self, buf: &mut BytesMut) {
        match self {
            Self::PreVote { term, last } => {
                put_head(buf, PRE_VOTE, *term);
                put_position(buf, *last);
            }
            Self::PreVoteReply { term, granted } => {
                put_head(buf, PRE_VOTE_REPLY, *term);
                buf.put_u8(u8::from(*granted));
            }
            Self::Vote { term, last, transfer } => {
                put_head(buf, VOTE, *term);
                put_position(buf, *last);
                buf.put_u8(u8::from(*transfer));
            }
            Self::VoteReply { term, granted } => {
                put_head(buf, VOTE_REPLY, *term);
                buf.put_u8(u8::from(*granted));
            }
            Self::Append { term, prev, commit, matched, entries } => {
                put_head(buf, APPEND, *term);
                put_position(buf, *prev);
                buf.put_u64_le(commit.0);
                buf.put_u64_le(matched.0);
                put_entries(buf, entries);
            }
            Self::AppendReply { term, outcome } => {
                put_head(buf, APPEND_REPLY, *term);
                match outcome {
                    AppendOutcome::Matched(index) => {
                        buf.put_u8(0);
                        buf.put_u64_le(index.0);
                    }
                    AppendOutcome::Rejected { prev, hint } => {
                        buf.put_u8(1);
                        buf.put_u64_le(prev.0);
                        put_position(buf, *hint);
                    }
                }
            }
            Self::Heartbeat { term, commit, matched, round } => {
                put_head(buf, HEARTBEAT, *term);
                buf.put_u64_le(commit.0);
                buf.put_u64_le(matched.0);
                put_round(buf, *round);
            }
            Self::HeartbeatReply { term, round } => {
                put_head(buf, HEARTBEAT_REPLY, *term);
                put_round(buf, *round);
            }
            Self::ReadIndex { ctx } => {
                buf.put_u8(READ_INDEX);
                put_round(buf, *ctx);
            }
            Self::ReadIndexReply { ctx, index } => {
                buf.put_u8(READ_INDEX_REPLY);
                put_round(buf, *ctx);
                buf.put_u64_le(index.0);
            }
            Self::TimeoutNow { term } => put_head(buf, TIMEOUT_NOW, *term),
            Self::Offer { term, meta } => {
                put_head(buf, OFFER, *term);
                put_position(buf, meta.mark.position);
                buf.put_u64_le(meta.mark.config_index.0);
                put_configuration(buf, &meta.mark.config);
                buf.put_u64_le(meta.bytes);
                buf.put_u32_le(meta.crc);
            }
            Self::Chunk { term, position, offset, data } => {
                put_head(buf, CHUNK, *term);
                put_position(buf, *position);
                buf.put_u64_le(*offset);
                put_bytes(buf, data);
            }
            Self::ChunkReply { term, position, upto } => {
                put_head(buf, CHUNK_REPLY, *term);
                put_position(buf, *position);
                buf.put_u64_le(*upto);
            }
        }
    }

    fn decode(frame: Bytes) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(frame);
        let msg = match cursor.u8()? {
            PRE_VOTE => Self::PreVote { term: cursor.epoch()?, last: cursor.position()? },
            PRE_VOTE_REPLY => Self::PreVoteReply { term: cursor.epoch()?, granted: cursor.bool("granted")? },
            VOTE => Self::Vote { term: cursor.epoch()?, last: cursor.position()?, transfer: cursor.bool("transfer")? },
            VOTE_REPLY => Self::VoteReply { term: cursor.epoch()?, granted: cursor.bool("granted")? },
            APPEND => {
                let (term, prev) = (cursor.epoch()?, cursor.position()?);
                let (commit, matched) = (cursor.index()?, cursor.index()?);
                Self::Append { term, prev, commit, matched, entries: cursor.entries(prev)? }
            }
            APPEND_REPLY => {
                let term = cursor.epoch()?;
                let outcome = match cursor.u8()? {
                    0 => AppendOutcome::Matched(cursor.index()?),
                    1 => AppendOutcome::Rejected { prev: cursor.index()?, hint: cursor.position()? },
                    _ => return Err(WireError::Malformed { field: "append outcome" }),
                };
                Self::AppendReply { term, outcome }
            }
            HEARTBEAT => Self::Heartbeat {
                term: cursor.epoch()?,
                commit: cursor.index()?,
                matched: cursor.index()?,
                round: cursor.round()?,
            },
            HEARTBEAT_REPLY => Self::HeartbeatReply { term: cursor.epoch()?, round: cursor.round()? },
            READ_INDEX => Self::ReadIndex { ctx: cursor.round()? },
            READ_INDEX_REPLY => Self::ReadIndexReply { ctx: cursor.round()?, index: cursor.index()? },
            TIMEOUT_NOW => Self::TimeoutNow { term: cursor.epoch()? },
            OFFER => Self::Offer { term: cursor.epoch()?, meta: cursor.meta()? },
            CHUNK => Self::Chunk {
                term: cursor.epoch()?,
                position: cursor.position()?,
                offset: cursor.u64()?,
                data: cursor.bytes()?,
            },
            CHUNK_REPLY => {
                Self::ChunkReply { term: cursor.epoch()?, position: cursor.position()?, upto: cursor.u64()? }
            }
            kind => return Err(WireError::UnknownKind { kind }),
        };
        cursor.end()?;
        Ok(msg)
    }
}

fn put_head(buf: &mut BytesMut, kind: u8, term: Epoch) {
    buf.put_u8(kind);
    buf.put_u64_le(term.0);
}

fn put_position(buf: &mut BytesMut, position: Position) {
    buf.put_u64_le(position.epoch.0);
    buf.put_u64_le(position.index.0);
}

fn put_round(buf: &mut BytesMut, round: RoundId) {
    buf.put_u64_le(round.boot);
    buf.put_u64_le(round.count);
}

/// Lengths first, so that one check covers all of an entry's payload.
fn put_entries(buf: &mut BytesMut, entries: &[Entry]) {
    buf.put_u32_le(length(entries.len()));
    for entry in entries {
        buf.put_u64_le(entry.position.epoch.0);
        buf.put_u8(entry.kind);
        buf.put_u16_le(u16::try_from(entry.sections.len()).expect("an entry has at most 65,535 sections"));
        buf.put_u32_le(length(entry.head.len()));
        for section in &entry.sections {
            buf.put_u32_le(length(section.len()));
        }
        buf.put_slice(&entry.head);
        for section in &entry.sections {
            buf.put_slice(section);
        }
    }
}

fn put_bytes(buf: &mut BytesMut, bytes: &Bytes) {
    buf.put_u32_le(length(bytes.len()));
    buf.put_slice(bytes);
}

pub(crate) fn put_configuration(buf: &mut BytesMut, config: &Configuration) {
    for set in [&config.voters, &config.outgoing, &config.learners] {
        buf.put_u16_le(u16::try_from(set.len()).expect("a configuration has at most 65,535 members"));
        for node in set {
            buf.put_u64_le(node.0);
        }
    }
}

fn length(n: usize) -> u32 {
    u32::try_from(n).expect("requests are limited far below 4 GiB")
}

/// A reader that checks before it believes.
pub(crate) struct Cursor(Bytes);

impl Cursor {
    pub(crate) const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    fn need(&self, n: usize) -> Result<(), WireError> {
        if self.0.len() < n { Err(WireError::Truncated) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.need(2)?;
        Ok(self.0.get_u16_le())
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Malformed { field }),
        }
    }

    fn epoch(&mut self) -> Result<Epoch, WireError> {
        bounded(self.u64()?, "epoch").map(Epoch)
    }

    fn index(&mut self) -> Result<Index, WireError> {
        bounded(self.u64()?, "index").map(Index)
    }

    fn position(&mut self) -> Result<Position, WireError> {
        Ok(Position { epoch: self.epoch()?, index: self.index()? })
    }

    fn round(&mut self) -> Result<RoundId, WireError> {
        Ok(RoundId { boot: self.u64()?, count: self.u64()? })
    }

    fn take(&mut self, n: usize) -> Result<Bytes, WireError> {
        self.need(n)?;
        Ok(self.0.split_to(n))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, WireError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(crate) fn configuration(&mut self) -> Result<Configuration, WireError> {
        let mut config = Configuration::default();
        for set in [&mut config.voters, &mut config.outgoing, &mut config.learners] {
            let count = usize::from(self.u16()?);
            self.need(count * 8)?;
            for _ in 0..count {
                let node = NodeId(self.u64()?);
                if node.0 == 0 || set.last().is_some_and(|last| *last >= node) {
                    return Err(WireError::Malformed { field: "configuration" });
                }
                set.insert(node);
            }
        }
        Ok(config)
    }

    fn meta(&mut self) -> Result<SnapshotMeta, WireError> {
        let (position, config_index) = (self.position()?, self.index()?);
        let mark = SnapshotMark { position, config: self.configuration()?, config_index };
        Ok(SnapshotMeta { mark, bytes: self.u64()?, crc: self.u32()? })
    }

    fn entries(&mut self, prev: Position) -> Result<Vec<Entry>, WireError> {
        let count = self.u32()? as usize;
        self.need(count.checked_mul(ENTRY_BYTES_MIN).ok_or(WireError::Truncated)?)?;
        let mut entries = Vec::with_capacity(count);
        let mut last = prev;
        for _ in 0..count {
            let position = Position { epoch: self.epoch()?, index: last.index.next() };
            if position.epoch < last.epoch {
                return Err(WireError::Malformed { field: "entry epoch" });
            }
            last = position;
            entries.push(self.entry(position)?);
        }
        Ok(entries)
    }

    fn entry(&mut self, position: Position) -> Result<Entry, WireError> {
        let (kind, section_count) = (self.u8()?, usize::from(self.u16()?));
        let head_len = self.u32()? as usize;
        let mut lens = self.take(section_count * 4)?;
        let head = self.take(head_len)?;
        let mut sections = Vec::with_capacity(section_count);
        while lens.has_remaining() {
            sections.push(self.take(lens.get_u32_le() as usize)?);
        }
        Ok(Entry { position, kind, head, sections })
    }

    /// Everything not yet read.
    pub(crate) fn rest(self) -> Bytes {
        self.0
    }

    pub(crate) fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Malformed { field: "end of message" }) }
    }
}

/// Numbers near the end of `u64` come from nobody honest and would overflow when counted on.
fn bounded(n: u64, field: &'static str) -> Result<u64, WireError> {
    if n > u64::MAX / 2 { Err(WireError::Malformed { field }) } else { Ok(n) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position() -> impl Strategy<Value = Position> {
        (0..1_u64 << 40, 0..1_u64 << 40).prop_map(|(epoch, index)| Position::new(epoch, index))
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn append() -> impl Strategy<Value = RaftMsg> {
        let entry = (any::<u8>(), bytes(), prop::collection::vec(bytes(), 0..4));
        (position(), prop::collection::vec(entry, 0..5)).prop_map(|(prev, entries)| {
            let entries = entries.into_iter().zip(prev.index.0 + 1..).map(|((kind, head, sections), index)| Entry {
                position: Position { epoch: prev.epoch, index: Index(index) },
                kind,
                head,
                sections,
            });
            let (term, commit) = (prev.epoch.next(), prev.index);
            RaftMsg::Append { term, prev, commit, matched: Index(0), entries: entries.collect() }
        })
    }

    fn offer() -> impl Strategy<Value = RaftMsg> {
        let nodes = || prop::collection::btree_set((1..9_u64).prop_map(NodeId), 0..5);
        (position(), nodes(), nodes(), nodes(), any::<u64>()).prop_map(|(position, voters, outgoing, learners, n)| {
            let config = Configuration { voters, outgoing, learners };
            let mark = SnapshotMark { position, config, config_index: position.index };
            RaftMsg::Offer { term: position.epoch, meta: SnapshotMeta { mark, bytes: n, crc: 7 } }
        })
    }

    fn small() -> impl Strategy<Value = RaftMsg> {
        (0..11_u8, position(), any::<bool>(), any::<u64>(), bytes()).prop_map(|(which, last, flag, n, data)| {
            let (term, index, round) = (last.epoch, last.index, RoundId { boot: n, count: n / 2 });
            match which {
                0 => RaftMsg::PreVote { term, last },
                1 => RaftMsg::PreVoteReply { term, granted: flag },
                2 => RaftMsg::Vote { term, last, transfer: flag },
                3 => RaftMsg::VoteReply { term, granted: flag },
                4 => RaftMsg::AppendReply { term, outcome: AppendOutcome::Rejected { prev: index, hint: last } },
                5 => RaftMsg::AppendReply { term, outcome: AppendOutcome::Matched(index) },
                6 => RaftMsg::Heartbeat { term, commit: index, matched: index, round },
                7 => RaftMsg::ReadIndexReply { ctx: round, index },
                8 => RaftMsg::TimeoutNow { term },
                9 => RaftMsg::Chunk { term, position: last, offset: n, data },
                _ => RaftMsg::ChunkReply { term, position: last, upto: n },
            }
        })
    }

    fn encoded(msg: &RaftMsg) -> Bytes {
        let mut buf = BytesMut::new();
        msg.encode(&mut buf);
        buf.freeze()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(msg in prop_oneof![append(), offer(), small()]) {
            prop_assert_eq!(RaftMsg::decode(encoded(&msg)), Ok(msg));
        }

        #[test]
        fn a_cut_message_is_refused(msg in prop_oneof![append(), offer(), small()], cut in any::<prop::sample::Index>()) {
            let bytes = encoded(&msg);
            prop_assert!(RaftMsg::decode(bytes.slice(..cut.index(bytes.len()))).is_err());
        }

        #[test]
        fn garbage_never_panics(kind in 0..16_u8, garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![kind];
            bytes.extend(garbage);
            let _ = RaftMsg::decode(Bytes::from(bytes));
        }
    }

    #[test]
    fn a_count_without_the_bytes_behind_it_allocates_nothing() {
        let msg = RaftMsg::Append {
            term: Epoch(1),
            prev: Position::ZERO,
            commit: Index(0),
            matched: Index(0),
            entries: Vec::new(),
        };
        let mut bytes = encoded(&msg).to_vec();
        let at = bytes.len() - 4;
        bytes.truncate(at);
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(RaftMsg::decode(Bytes::from(bytes)), Err(WireError::Truncated));
    }
}
