//! One simulated member: a replica behind its gate, its disk (written and durable apart) and a small state machine.
//!
//! It executes every effect but the sends, which it hands out, and the syncs, which the test decides.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "test support"
)]

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_consensus::invariants::Image;
use triune_consensus::raft::{Raft, RaftMsg};
use triune_consensus::{
    AdminError, AdminId, Config, ConfigEntry, Configuration, Effect, Effects, Entry, EntryKind, Gate, Index, Input,
    IoSeq, Position, ProposalId, ProposeOutcome, Protocol, ReadError, ReadId, RecoverError, RoleChange, SnapshotEvent,
    SnapshotMark, SnapshotMeta, SnapshotOp, StreamBatch,
};
use triune_transport::{Channel, GroupId, Nanos, NodeId};

/// Registers of the replicated state machine.
pub const KEYS: usize = 4;

/// The replicated state machine: registers, and a digest over everything applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub mark: SnapshotMark,
    pub registers: [u64; KEYS],
    pub digest: u64,
}

impl Machine {
    pub fn apply(&mut self, entry: &Entry) {
        assert_eq!(entry.position.index, self.mark.position.index.next(), "applied out of order");
        self.mark.position = entry.position;
        for word in [entry.position.epoch.0, entry.position.index.0, u64::from(entry.kind)] {
            self.digest = (self.digest.rotate_left(7) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        for byte in entry.head.iter() {
            self.digest = (self.digest.rotate_left(7) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        match EntryKind::from_u8(entry.kind).unwrap() {
            EntryKind::Command if entry.head.len() == 16 => {
                let mut head = entry.head.clone();
                let key = head.get_u64_le() as usize % KEYS;
                self.registers[key] = head.get_u64_le();
            }
            EntryKind::Command | EntryKind::Barrier => {}
            EntryKind::Config => {
                self.mark.config = ConfigEntry::decode(entry.head.clone()).unwrap().config;
                self.mark.config_index = entry.position.index;
            }
        }
    }

    /// The snapshot's bytes; padded, so that there are several chunks.
    pub fn encode(&self) -> Bytes {
        let mut buf = BytesMut::new();
        self.registers.iter().for_each(|value| buf.put_u64_le(*value));
        buf.put_u64_le(self.digest);
        buf.put_bytes(7, 100);
        buf.freeze()
    }

    pub fn decode(mark: SnapshotMark, mut bytes: Bytes) -> Self {
        let mut machine = Self { mark, ..Self::default() };
        machine.registers.iter_mut().for_each(|value| *value = bytes.get_u64_le());
        machine.digest = bytes.get_u64_le();
        machine
    }
}

/// A write of `value` to register `key`.
pub fn put(key: u64, value: u64) -> Bytes {
    let mut buf = BytesMut::with_capacity(16);
    buf.put_u64_le(key);
    buf.put_u64_le(value);
    buf.freeze()
}

/// The value a command writes.
pub fn value_of(entry: &Entry) -> Option<u64> {
    let command = entry.kind == EntryKind::Command as u8 && entry.head.len() == 16;
    command.then(|| entry.head.slice(8..).get_u64_le())
}

/// What a member says to the outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Reply(ProposalId, ProposeOutcome),
    Read(ReadId, Result<Index, ReadError>),
    Admin(AdminId, Result<(), AdminError>),
    Applied(Entry),
    Installed(SnapshotMark),
    Role(RoleChange),
    Forgot,
    Released(Index),
}

/// What left a member in one step.
#[derive(Debug, Default)]
pub struct Output {
    pub sends: Vec<(NodeId, Channel, RaftMsg)>,
    pub told: Vec<Told>,
    pub writes: Vec<StreamBatch>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub cfg: Config,
    pub formed: Option<Configuration>,
    pub replica: Option<Raft>,
    gate: Gate<RaftMsg>,
    /// Durable.
    pub image: Image,
    /// Written, not durable.
    pub pending: VecDeque<StreamBatch>,
    pub machine: Machine,
    /// What a crash leaves of it.
    pub durable_machine: Machine,
    /// Answers of the disk and the state machine, in the order they come.
    pub local: VecDeque<Input<RaftMsg>>,
    outgoing: Option<(SnapshotMeta, Bytes)>,
    incoming: Option<(SnapshotMeta, Vec<u8>)>,
    effects: Effects<RaftMsg>,
    released: Vec<Effect<RaftMsg>>,
    pub steps: u64,
}

impl Node {
    pub fn new(cfg: Config, formed: Option<Configuration>, now: Nanos) -> Self {
        let machine = Machine {
            mark: SnapshotMark { config: formed.clone().unwrap_or_default(), ..SnapshotMark::default() },
            ..Machine::default()
        };
        let mut node = Self {
            cfg,
            formed,
            replica: None,
            gate: Gate::default(),
            image: Image::default(),
            pending: VecDeque::new(),
            durable_machine: machine.clone(),
            machine,
            local: VecDeque::new(),
            outgoing: None,
            incoming: None,
            effects: Effects::default(),
            released: Vec::new(),
            steps: 0,
        };
        let boot = node.cfg.boot;
        node.restart(now, boot).unwrap();
        node
    }

    pub fn id(&self) -> NodeId {
        self.cfg.node
    }

    pub fn raft(&self) -> &Raft {
        self.replica.as_ref().unwrap()
    }

    pub fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// Loses power: of the writes that were not durable, the first `kept` survive.
    pub fn crash(&mut self, kept: usize) {
        for batch in self.pending.drain(..).take(kept) {
            self.image.write(batch);
        }
        self.pending.clear();
        self.replica = None;
        self.machine = self.durable_machine.clone();
        self.local.clear();
        self.outgoing = None;
        self.incoming = None;
    }

    pub fn restart(&mut self, now: Nanos, boot: u64) -> Result<(), RecoverError> {
        assert!(self.replica.is_none());
        self.cfg.boot = boot;
        let applied = (self.machine.mark.position != Position::ZERO).then(|| self.machine.mark.clone());
        let recovered = self.image.recovered(applied, self.formed.clone());
        self.gate = Gate::new(recovered.last_seq);
        self.replica = Some(Raft::recover(self.cfg.clone(), now, recovered)?);
        Ok(())
    }

    /// The first `count` writes become durable; the number to report.
    pub fn sync(&mut self, count: usize) -> Option<IoSeq> {
        let mut seq = None;
        for batch in self.pending.drain(..count.min(self.pending.len())) {
            seq = Some(batch.seq);
            self.image.write(batch);
        }
        seq
    }

    /// Checkpoints the state machine, so that the log before may go.
    pub fn checkpoint(&mut self) {
        self.durable_machine = self.machine.clone();
        self.image.applied = self.machine.mark.position;
        self.local.push_back(Input::Compact { upto: self.machine.mark.position.index });
    }

    pub fn step(&mut self, now: Nanos, input: Input<RaftMsg>, out: &mut Output) {
        let Some(replica) = self.replica.as_mut() else {
            return;
        };
        self.steps += 1;
        if let Input::Persisted(seq) = input {
            self.gate.persisted(seq, &mut self.released);
        }
        replica.step(now, input, &mut self.effects);
        self.gate.admit(&mut self.effects, &mut self.released);
        replica.check_invariants();
        let mut released = std::mem::take(&mut self.released);
        for effect in released.drain(..) {
            self.execute(effect, out);
        }
        self.released = released;
    }

    fn execute(&mut self, effect: Effect<RaftMsg>, out: &mut Output) {
        match effect {
            Effect::Persist(batch) => {
                out.writes.push(batch.clone());
                self.pending.push_back(batch);
            }
            Effect::Send { to, channel, msg, .. } => out.sends.push((to, channel, msg)),
            Effect::Apply { entries, .. } => {
                for entry in entries {
                    self.machine.apply(&entry);
                    out.told.push(Told::Applied(entry));
                }
                self.local.push_back(Input::Applied { upto: self.machine.mark.position.index });
            }
            Effect::Reply { id, outcome, .. } => out.told.push(Told::Reply(id, outcome)),
            Effect::Read { id, outcome } => out.told.push(Told::Read(id, outcome)),
            Effect::Admin { id, outcome } => out.told.push(Told::Admin(id, outcome)),
            Effect::Fetch { req, first, last, bytes_max } => {
                self.local.push_back(Input::Entries { req, entries: self.image.read(first, last, bytes_max) });
            }
            Effect::Snapshot(op) => self.snapshot(op, out),
            Effect::Release { upto } => {
                self.image.release(upto);
                out.told.push(Told::Released(upto));
            }
            Effect::Role(change) => out.told.push(Told::Role(change)),
            Effect::Forgot => out.told.push(Told::Forgot),
            _ => unreachable!("an effect of no protocol here"),
        }
    }

    fn snapshot(&mut self, op: SnapshotOp, out: &mut Output) {
        match op {
            SnapshotOp::Take { at_least } => {
                assert!(self.machine.mark.position.index >= at_least, "asked for more than is applied");
                let bytes = self.machine.encode();
                let meta = SnapshotMeta { mark: self.machine.mark.clone(), bytes: bytes.len() as u64, crc: 0 };
                self.outgoing = Some((meta.clone(), bytes));
                self.local.push_back(Input::Snapshot(SnapshotEvent::Taken(Some(meta))));
            }
            SnapshotOp::Read { req, position, offset, len_max } => {
                let held = self.outgoing.as_ref().filter(|(meta, _)| meta.mark.position == position);
                let data = held.map(|(_, bytes)| {
                    let from = usize::try_from(offset).unwrap();
                    bytes.slice(from..bytes.len().min(from + len_max))
                });
                self.local.push_back(Input::Snapshot(SnapshotEvent::Chunk { req, offset, data }));
            }
            SnapshotOp::Write { meta, offset, data } => {
                if offset == 0 {
                    self.incoming = Some((meta.clone(), Vec::new()));
                }
                let (_, bytes) = self.incoming.as_mut().filter(|(of, _)| *of == meta).unwrap();
                assert_eq!(bytes.len() as u64, offset, "chunks are written in order");
                bytes.extend_from_slice(&data);
                let (position, upto) = (meta.mark.position, bytes.len() as u64);
                self.local.push_back(Input::Snapshot(SnapshotEvent::Written { position, upto }));
            }
            SnapshotOp::Install { meta } => {
                let (of, bytes) = self.incoming.take().unwrap();
                assert_eq!(of, meta);
                assert_eq!(bytes.len() as u64, meta.bytes);
                assert!(meta.mark.position.index > self.machine.mark.position.index, "an install goes back");
                self.machine = Machine::decode(meta.mark.clone(), bytes.into());
                self.durable_machine = self.machine.clone();
                self.image.applied = self.machine.mark.position;
                out.told.push(Told::Installed(meta.mark.clone()));
                self.local.push_back(Input::Snapshot(SnapshotEvent::Installed(meta.mark)));
            }
            SnapshotOp::Drop { position } => {
                self.outgoing.take_if(|(meta, _)| meta.mark.position == position);
                self.incoming.take_if(|(meta, _)| meta.mark.position == position);
            }
            _ => unreachable!("a snapshot operation of no protocol here"),
        }
    }
}

/// A configuration of these ids.
pub fn voters(ids: impl IntoIterator<Item = u64>) -> Configuration {
    Configuration::of(ids.into_iter().map(NodeId))
}

/// The defaults, for a small world.
pub fn config(id: u64, boot: u64) -> Config {
    Config::new(GroupId(0), NodeId(id), boot)
}
