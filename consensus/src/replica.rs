//! A replica with a program's state machine on top: the shortest way from an [`App`] to a replicated one.
//!
//! It is a [`Machine`], so the driver runs it; it is pure, so a simulator does too. It keeps the program's state in
//! memory and hands it out as one string of bytes, in chunks to peers and whole to the embedder; programs with more
//! state than that assemble [`crate::Seat`]s themselves.
//!
//! ```text
//!  Propose ──▶ pending by id ──Accepted(position)──▶ pending by position ──apply──▶ Applied, or Lost
//!                   └──────Rejected──▶ Refused          └── snapshot beyond it ──▶ Unknown
//! ```
//!
//! 1. Each request is answered once, with its token; a proposal is answered from this replica's own apply.
//! 2. `Refused` and `Lost` mean: not applied, never will be. `Unknown` means either.
//! 3. Entries reach [`App::apply`] in log order, each once a life; a life begins with [`App::restore`] or an empty app.
//! 4. The log is freed only behind a state the embedder has said to be saved.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_storage::{Entry, Epoch, Index, Position};
use triune_transport::{GroupId, Lane, Nanos};

use crate::{
    AdminError, AdminId, AdminOp, Config, ConfigEntry, Configuration, Effect, EntryKind, Input, Machine, MachineEffect,
    MachineInput, Proposal, ProposalId, ProposeError, ProposeOutcome, Protocol, ReadError, ReadId, RecoverError,
    Recovered, RoleChange, Seat, SnapshotEvent, SnapshotMark, SnapshotMeta, SnapshotOp, View,
};

/// A program's state machine. Apply must be deterministic: same entries, same state, same answers.
pub trait App: Send + 'static {
    /// What applying a command answers its proposer.
    type Response: Send + 'static;
    /// A question about the state.
    type Query: Send + 'static;
    /// Its answer.
    type Answer: Send + 'static;

    /// Carries out one command: its head and sections are the proposal's.
    fn apply(&mut self, entry: &Entry) -> Self::Response;

    /// Answers from the state as it is.
    fn query(&self, query: Self::Query) -> Self::Answer;

    /// The whole state as bytes, from which [`App::restore`] makes an equal one.
    fn snapshot(&self) -> Bytes;

    /// Replaces the whole state.
    ///
    /// # Errors
    /// When the bytes are no state of this program; the state must then be as before.
    fn restore(&mut self, state: Bytes) -> Result<(), AppError>;
}

/// Why a program does not take a state back.
pub type AppError = Box<dyn Error + Send + Sync>;

/// The caller's name for a request; comes back in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What is asked of a replica.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ReplicaRequest<Q> {
    /// Replicate and apply a command.
    Propose {
        /// Names the request.
        token: Token,
        /// The command.
        head: Bytes,
        /// Its payload sections.
        sections: Vec<Bytes>,
    },
    /// Answer from a state that holds everything acknowledged before this was asked.
    Read {
        /// Names the request.
        token: Token,
        /// The question.
        query: Q,
    },
    /// Answer from this replica's state as it is, at once.
    Peek {
        /// Names the request.
        token: Token,
        /// The question.
        query: Q,
    },
    /// Change the configuration, or hand the leadership over.
    Admin {
        /// Names the request.
        token: Token,
        /// What.
        op: AdminOp,
    },
    /// Tell what everybody may know of the replica.
    View {
        /// Names the request.
        token: Token,
    },
    /// The oldest state handed out by [`ReplicaOutput::Save`] and not yet answered is durable.
    Saved,
}

/// What a replica answers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ReplicaOutput<R, N, D> {
    /// The command was applied here.
    Applied {
        /// Whose request.
        token: Token,
        /// Where it stands.
        position: Position,
        /// What the program answered.
        response: R,
    },
    /// The command was not taken. It was not applied.
    Refused {
        /// Whose request.
        token: Token,
        /// Why.
        error: RefusedError,
    },
    /// Another command stands where this one stood: it was lost with its leader, and is not applied. Propose it anew.
    Lost {
        /// Whose request.
        token: Token,
    },
    /// The command may or may not have been applied: this replica skipped its place with a snapshot, or failed.
    Unknown {
        /// Whose request.
        token: Token,
    },
    /// An answer to a question.
    Answer {
        /// Whose request.
        token: Token,
        /// What the program answers, or why it could not be asked.
        answer: Result<N, ReadError>,
    },
    /// An administrative request was carried out or refused.
    Admin {
        /// Whose request.
        token: Token,
        /// `Ok`: carried out.
        outcome: Result<(), AdminError>,
    },
    /// What everybody may know.
    View {
        /// Whose request.
        token: Token,
        /// The view.
        view: View<D>,
    },
    /// Role, leader or epoch changed.
    Role(RoleChange),
    /// This disk lost what it had confirmed: end the replica, and come back under a new id.
    Forgot,
    /// Keep this durably in place of the last, then say [`ReplicaRequest::Saved`], in the order asked; give it to
    /// [`Replica::recover`] at the next start. Only with [`ReplicaConfig::durable`].
    Save(Bytes),
}

/// The outputs of a replica of protocol `P` with app `A`.
pub type OutputOf<P, A> = ReplicaOutput<<A as App>::Response, <A as App>::Answer, <P as Protocol>::Detail>;

/// Why a command was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedError {
    /// The protocol does not take it. See there.
    #[error(transparent)]
    Protocol(#[from] ProposeError),
    /// Too many commands wait here. Try again when some are answered.
    #[error("too many commands wait")]
    Busy,
    /// The disk is full. Free space; nothing is harmed.
    #[error("no space left for the log")]
    NoSpace,
}

/// Limits of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// Commands and questions that may wait here, each. Default 65,536.
    pub pending_max: usize,
    /// The largest state that is taken from a peer, in bytes. Default 1 GiB.
    pub snapshot_bytes_max: u64,
    /// The state is saved and the log freed each so many entries; 0: never. Default 0.
    pub save_every: u64,
    /// States are saved by the embedder ([`ReplicaOutput::Save`]). False for replicas that need not survive their
    /// process: then nothing is handed out, and a replica whose log was freed cannot be recovered. Default true.
    pub durable: bool,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self { pending_max: 65_536, snapshot_bytes_max: 1 << 30, save_every: 0, durable: true }
    }
}

/// Why a replica cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// The protocol refuses what the log holds.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The saved state is damaged, or of another version.
    #[error("the saved state is malformed")]
    Malformed,
    /// The program refuses the saved state.
    #[error("the program refuses the saved state")]
    App(#[source] AppError),
}

/// One replica of one group with a program's state.
pub struct Replica<P: Protocol, A: App> {
    group: GroupId,
    seat: Seat<P>,
    app: A,
    config: ReplicaConfig,
    /// What the state is: the last entry applied, and the configuration there.
    mark: SnapshotMark,
    effects: VecDeque<Effect<Bytes>>,
    scratch: Vec<Effect<Bytes>>,
    next_id: u64,
    full: bool,
    failed: bool,

    /// Proposals of this turn.
    proposals: Vec<Proposal>,
    /// Proposals without a word yet.
    asked: BTreeMap<ProposalId, Token>,
    /// Proposals in the log.
    accepted: BTreeMap<Index, (Epoch, Token)>,
    /// Applied while proposals were without a word: one of them may turn out to be this. Invariant: empty if `asked` is.
    early: BTreeMap<Position, A::Response>,

    /// Reads of this turn.
    reads: Vec<ReadId>,
    /// Questions without a word yet.
    questions: BTreeMap<ReadId, (Token, A::Query)>,
    /// Questions that wait for an index to be applied.
    ready: BTreeMap<Index, Vec<(Token, A::Query)>>,
    admins: BTreeMap<AdminId, Token>,

    /// States that peers are being sent. At most [`OUTGOING_MAX`], the newest.
    outgoing: BTreeMap<Position, (SnapshotMeta, Bytes)>,
    /// A state being received.
    incoming: Option<(SnapshotMeta, BytesMut)>,
    /// The states handed out to be saved, oldest first, and whether each was received from a peer. At most two: the
    /// log stands still until a received one is installed.
    saving: VecDeque<(SnapshotMark, bool)>,
    /// The index of the last state saved.
    saved: Index,
}

/// States kept for peers.
const OUTGOING_MAX: usize = 2;

const SAVED_VERSION: u8 = 1;

impl<P: Protocol, A: App> Replica<P, A> {
    /// Rebuilds a replica: `app` is empty, `saved` is what was last saved, `recovered` what the log holds. Its
    /// `applied` is filled in here.
    ///
    /// # Errors
    /// [`ReplicaError`]: the replica must not start.
    pub fn recover(
        protocol: Config,
        config: ReplicaConfig,
        now: Nanos,
        mut recovered: Recovered,
        mut app: A,
        saved: Option<Bytes>,
    ) -> Result<Self, ReplicaError> {
        let formed = recovered.formed.clone().unwrap_or_default();
        let mut mark = SnapshotMark { config: formed, ..SnapshotMark::default() };
        if let Some(saved) = saved {
            let (saved, state) = decode_saved(saved).ok_or(ReplicaError::Malformed)?;
            app.restore(state).map_err(ReplicaError::App)?;
            recovered.applied = Some(saved.clone());
            mark = saved;
        }
        Ok(Self {
            group: protocol.group,
            seat: Seat::recover(protocol, now, recovered)?,
            app,
            config,
            saved: mark.position.index,
            mark,
            effects: VecDeque::new(),
            scratch: Vec::new(),
            next_id: 0,
            full: false,
            failed: false,
            proposals: Vec::new(),
            asked: BTreeMap::new(),
            accepted: BTreeMap::new(),
            early: BTreeMap::new(),
            reads: Vec::new(),
            questions: BTreeMap::new(),
            ready: BTreeMap::new(),
            admins: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            incoming: None,
            saving: VecDeque::new(),
        })
    }

    /// The program.
    pub const fn app(&self) -> &A {
        &self.app
    }

    /// What everybody may know of the replica.
    pub fn view(&self) -> View<P::Detail> {
        self.seat.view()
    }

    /// The last position applied.
    pub const fn applied(&self) -> Position {
        self.mark.position
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn pending(&self) -> usize {
        self.asked.len() + self.accepted.len()
    }

    /// Steps the protocol and carries out what it wants, until it wants no more.
    fn advance(&mut self, now: Nanos, input: Input<P::Msg>, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        self.seat.step(now, input, &mut self.scratch);
        self.settle(now, out);
    }

    fn settle(&mut self, now: Nanos, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        self.effects.extend(self.scratch.drain(..));
        while let Some(effect) = self.effects.pop_front() {
            if let Some(answer) = self.execute(effect, out) {
                self.seat.step(now, answer, &mut self.scratch);
                self.effects.extend(self.scratch.drain(..));
            }
        }
    }

    /// Carries out one effect; what it returns goes back into the protocol.
    fn execute(
        &mut self,
        effect: Effect<Bytes>,
        out: &mut Vec<MachineEffect<OutputOf<P, A>>>,
    ) -> Option<Input<P::Msg>> {
        let group = self.group;
        match effect {
            Effect::Persist(batch) => out.push(MachineEffect::Persist(batch)),
            Effect::Send { to, channel, msg, .. } => out.push(MachineEffect::Send { to, channel, frame: msg }),
            Effect::Fetch { req, first, last, bytes_max } => {
                out.push(MachineEffect::Fetch { group, req, first, last, bytes_max });
            }
            Effect::Release { upto } => out.push(MachineEffect::Release { group, upto }),
            Effect::Role(change) => out.push(MachineEffect::Output(ReplicaOutput::Role(change))),
            Effect::Forgot => out.push(MachineEffect::Output(ReplicaOutput::Forgot)),
            Effect::Apply { entries, .. } => return self.on_apply(&entries, out),
            Effect::Reply { id, outcome, .. } => self.on_reply(id, outcome, out),
            Effect::Read { id, outcome } => self.on_read(id, outcome, out),
            Effect::Admin { id, outcome } => {
                if let Some(token) = self.admins.remove(&id) {
                    out.push(MachineEffect::Output(ReplicaOutput::Admin { token, outcome }));
                }
            }
            Effect::Snapshot(op) => return self.on_snapshot_op(op, out).map(Input::Snapshot),
        }
        None
    }
}

// Commands.
impl<P: Protocol, A: App> Replica<P, A> {
    fn on_propose(
        &mut self,
        token: Token,
        head: Bytes,
        sections: Vec<Bytes>,
        out: &mut Vec<MachineEffect<OutputOf<P, A>>>,
    ) {
        let error = if self.full {
            RefusedError::NoSpace
        } else if self.pending() >= self.config.pending_max {
            RefusedError::Busy
        } else {
            let id = ProposalId(self.next_id());
            self.asked.insert(id, token);
            return self.proposals.push(Proposal { id, head, sections });
        };
        out.push(MachineEffect::Output(ReplicaOutput::Refused { token, error }));
    }

    fn on_reply(&mut self, id: ProposalId, outcome: ProposeOutcome, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let Some(token) = self.asked.remove(&id) else { return };
        let output = match outcome {
            ProposeOutcome::Rejected(error) => Some(ReplicaOutput::Refused { token, error: error.into() }),
            ProposeOutcome::Accepted(position) => match self.early.remove(&position) {
                Some(response) => Some(ReplicaOutput::Applied { token, position, response }),
                None if position.index <= self.mark.position.index => Some(ReplicaOutput::Unknown { token }),
                None => {
                    let replaced = self.accepted.insert(position.index, (position.epoch, token));
                    // A leader puts two commands at one index only if it led twice, and lost the first between.
                    replaced.map(|(_, token)| ReplicaOutput::Lost { token })
                }
            },
        };
        out.extend(output.map(MachineEffect::Output));
        if self.asked.is_empty() {
            self.early.clear();
        }
    }

    fn on_apply(&mut self, entries: &[Entry], out: &mut Vec<MachineEffect<OutputOf<P, A>>>) -> Option<Input<P::Msg>> {
        for entry in entries {
            self.apply_one(entry, out);
        }
        let upto = self.mark.position.index;
        let rest = self.ready.split_off(&upto.next());
        for (token, query) in std::mem::replace(&mut self.ready, rest).into_values().flatten() {
            self.answer(token, query, out);
        }
        self.save_if_due(out);
        entries.last().map(|_| Input::Applied { upto })
    }

    fn apply_one(&mut self, entry: &Entry, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let position = entry.position;
        assert_eq!(position.index, self.mark.position.index.next(), "entries are applied in order, each once");
        self.mark.position = position;
        let response = match EntryKind::from_u8(entry.kind) {
            Some(EntryKind::Command) => Some(self.app.apply(entry)),
            Some(EntryKind::Config) => {
                if let Ok(changed) = ConfigEntry::decode(entry.head.clone()) {
                    (self.mark.config, self.mark.config_index) = (changed.config, position.index);
                }
                None
            }
            Some(EntryKind::Barrier) | None => None,
        };
        let output = match self.accepted.remove(&position.index) {
            Some((epoch, token)) => match response {
                Some(response) if epoch == position.epoch => ReplicaOutput::Applied { token, position, response },
                _ => ReplicaOutput::Lost { token },
            },
            None => {
                if let Some(response) = response.filter(|_| !self.asked.is_empty()) {
                    self.early.insert(position, response);
                }
                return;
            }
        };
        out.push(MachineEffect::Output(output));
    }

    /// What stood at or below the mark was skipped.
    fn forget_skipped(&mut self, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let rest = self.accepted.split_off(&self.mark.position.index.next());
        for (_, token) in std::mem::replace(&mut self.accepted, rest).into_values() {
            out.push(MachineEffect::Output(ReplicaOutput::Unknown { token }));
        }
    }
}

// Questions.
impl<P: Protocol, A: App> Replica<P, A> {
    fn on_question(&mut self, token: Token, query: A::Query, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        if self.questions.len() + self.ready.len() >= self.config.pending_max {
            let answer = Err(ReadError::Busy);
            return out.push(MachineEffect::Output(ReplicaOutput::Answer { token, answer }));
        }
        let id = ReadId(self.next_id());
        self.questions.insert(id, (token, query));
        self.reads.push(id);
    }

    fn on_read(&mut self, id: ReadId, outcome: Result<Index, ReadError>, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let Some((token, query)) = self.questions.remove(&id) else { return };
        match outcome {
            Ok(index) if index <= self.mark.position.index => self.answer(token, query, out),
            Ok(index) => self.ready.entry(index).or_default().push((token, query)),
            Err(error) => out.push(MachineEffect::Output(ReplicaOutput::Answer { token, answer: Err(error) })),
        }
    }

    fn answer(&self, token: Token, query: A::Query, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let answer = Ok(self.app.query(query));
        out.push(MachineEffect::Output(ReplicaOutput::Answer { token, answer }));
    }
}

// States of the program as a whole.
impl<P: Protocol, A: App> Replica<P, A> {
    fn on_snapshot_op(
        &mut self,
        op: SnapshotOp,
        out: &mut Vec<MachineEffect<OutputOf<P, A>>>,
    ) -> Option<SnapshotEvent> {
        match op {
            SnapshotOp::Take { at_least } => Some(SnapshotEvent::Taken(self.take(at_least))),
            SnapshotOp::Read { req, position, offset, len_max } => {
                let data = self.outgoing.get(&position).and_then(|(_, state)| chunk(state, offset, len_max));
                Some(SnapshotEvent::Chunk { req, offset, data })
            }
            SnapshotOp::Write { meta, offset, data } => Some(self.receive(meta, offset, &data)),
            SnapshotOp::Install { meta } => self.install(&meta, out),
            SnapshotOp::Drop { position } => {
                self.outgoing.remove(&position);
                self.incoming.take_if(|(meta, _)| meta.mark.position == position);
                None
            }
        }
    }

    fn take(&mut self, at_least: Index) -> Option<SnapshotMeta> {
        if self.mark.position.index < at_least || self.mark.position == Position::ZERO {
            return None;
        }
        let state = self.app.snapshot();
        let meta = SnapshotMeta { mark: self.mark.clone(), bytes: state.len() as u64, crc: crc32c::crc32c(&state) };
        self.outgoing.insert(self.mark.position, (meta.clone(), state));
        while self.outgoing.len() > OUTGOING_MAX {
            self.outgoing.pop_first();
        }
        Some(meta)
    }

    fn receive(&mut self, meta: SnapshotMeta, offset: u64, data: &[u8]) -> SnapshotEvent {
        let position = meta.mark.position;
        if offset == 0 {
            self.incoming.take_if(|(kept, _)| *kept != meta);
        }
        let (kept, state) = self.incoming.get_or_insert_with(|| (meta.clone(), BytesMut::new()));
        let upto = state.len() as u64;
        let fits = *kept == meta && upto.saturating_add(data.len() as u64) <= meta.bytes;
        if !fits || meta.bytes > self.config.snapshot_bytes_max || offset > upto {
            self.incoming = None;
            return SnapshotEvent::Failed { position };
        }
        if offset == upto {
            state.extend_from_slice(data);
        }
        SnapshotEvent::Written { position, upto: state.len() as u64 }
    }

    fn install(&mut self, meta: &SnapshotMeta, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) -> Option<SnapshotEvent> {
        let position = meta.mark.position;
        let received = self.incoming.take().filter(|(kept, _)| kept == meta).map(|(_, state)| state.freeze());
        // An empty state needs no chunk.
        let state = received.unwrap_or_default();
        if state.len() as u64 != meta.bytes || crc32c::crc32c(&state) != meta.crc {
            return Some(SnapshotEvent::Failed { position });
        }
        assert!(position.index > self.mark.position.index, "a snapshot is never installed below what is applied");
        if let Err(error) = self.app.restore(state) {
            tracing::warn!(?position, error, "the program refuses a snapshot");
            return Some(SnapshotEvent::Failed { position });
        }
        self.mark = meta.mark.clone();
        self.early.clear();
        self.forget_skipped(out);
        if !self.config.durable {
            self.saved = position.index;
            return Some(SnapshotEvent::Installed(self.mark.clone()));
        }
        self.saving.push_back((self.mark.clone(), true));
        out.push(MachineEffect::Output(ReplicaOutput::Save(self.encode_saved())));
        None
    }

    fn save_if_due(&mut self, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let due = self.config.save_every > 0
            && self.saving.is_empty()
            && self.mark.position.index.0 - self.saved.0 >= self.config.save_every;
        if !due {
            return;
        }
        self.saving.push_back((self.mark.clone(), false));
        if self.config.durable {
            out.push(MachineEffect::Output(ReplicaOutput::Save(self.encode_saved())));
        }
    }

    /// The oldest state in `saving` is durable.
    fn on_saved(&mut self, now: Nanos, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        let Some((mark, received)) = self.saving.pop_front() else { return };
        self.saved = mark.position.index;
        let input = if received {
            Input::Snapshot(SnapshotEvent::Installed(mark))
        } else {
            Input::Compact { upto: mark.position.index }
        };
        self.advance(now, input, out);
    }

    fn encode_saved(&self) -> Bytes {
        let state = self.app.snapshot();
        let config = ConfigEntry { config: self.mark.config.clone(), context: Bytes::new() }.encode();
        let mut buf = BytesMut::with_capacity(40 + config.len() + state.len());
        buf.put_u8(SAVED_VERSION);
        buf.put_u32_le(crc32c::crc32c(&state));
        buf.put_u64_le(self.mark.position.epoch.0);
        buf.put_u64_le(self.mark.position.index.0);
        buf.put_u64_le(self.mark.config_index.0);
        buf.put_u32_le(u32::try_from(config.len()).unwrap_or(u32::MAX));
        buf.put_slice(&config);
        buf.put_slice(&state);
        buf.freeze()
    }
}

impl<P: Protocol, A: App> Machine for Replica<P, A>
where
    P: Send,
    P::Msg: Send,
    P::Detail: Send + 'static,
{
    type Request = ReplicaRequest<A::Query>;
    type Output = OutputOf<P, A>;

    fn step(&mut self, now: Nanos, input: MachineInput<Self::Request>, out: &mut Vec<MachineEffect<Self::Output>>) {
        match input {
            MachineInput::Frame { from, session, frame, .. } => {
                if let Err(error) = self.seat.receive(now, from, session, frame, &mut self.scratch) {
                    tracing::warn!(?from, %error, "a frame was dropped");
                }
                self.settle(now, out);
            }
            // The bulk lane carries nothing whose loss a protocol must hear of.
            MachineInput::Link { lane: Lane::Bulk, .. } => {}
            MachineInput::Link { peer, session, up, .. } => self.advance(now, Input::Link { peer, session, up }, out),
            MachineInput::Timeout => self.advance(now, Input::Timeout, out),
            MachineInput::Persisted { seq, .. } => self.advance(now, Input::Persisted(seq), out),
            MachineInput::Fetched { req, entries, .. } => self.advance(now, Input::Entries { req, entries }, out),
            MachineInput::NoSpace => self.full = true,
            MachineInput::SpaceAgain => self.full = false,
            MachineInput::IoFailed => self.on_failed(now, out),
            MachineInput::Request(request) => self.on_request(now, request, out),
        }
    }

    fn idle(&mut self, now: Nanos, out: &mut Vec<MachineEffect<Self::Output>>) {
        if !self.proposals.is_empty() {
            let proposals = std::mem::take(&mut self.proposals);
            self.advance(now, Input::Propose(proposals), out);
        }
        if !self.reads.is_empty() {
            let reads = std::mem::take(&mut self.reads);
            self.advance(now, Input::Read(reads), out);
        }
        if !self.config.durable && !self.saving.is_empty() {
            self.on_saved(now, out);
        }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        if self.failed { None } else { self.seat.next_deadline() }
    }
}

impl<P: Protocol, A: App> Replica<P, A> {
    fn on_request(
        &mut self,
        now: Nanos,
        request: ReplicaRequest<A::Query>,
        out: &mut Vec<MachineEffect<OutputOf<P, A>>>,
    ) {
        match request {
            ReplicaRequest::Propose { token, .. } if self.failed => {
                let error = ProposeError::Stopped.into();
                out.push(MachineEffect::Output(ReplicaOutput::Refused { token, error }));
            }
            ReplicaRequest::Read { token, .. } if self.failed => {
                let answer = Err(ReadError::NoLeader);
                out.push(MachineEffect::Output(ReplicaOutput::Answer { token, answer }));
            }
            ReplicaRequest::Propose { token, head, sections } => self.on_propose(token, head, sections, out),
            ReplicaRequest::Read { token, query } => self.on_question(token, query, out),
            ReplicaRequest::Peek { token, query } => self.answer(token, query, out),
            ReplicaRequest::Admin { token, op } => {
                let id = AdminId(self.next_id());
                self.admins.insert(id, token);
                self.advance(now, Input::Admin { id, op }, out);
            }
            ReplicaRequest::View { token } => {
                let view = self.seat.view();
                out.push(MachineEffect::Output(ReplicaOutput::View { token, view }));
            }
            ReplicaRequest::Saved => self.on_saved(now, out),
        }
    }

    /// The log failed: everybody who waits gets a word.
    fn on_failed(&mut self, now: Nanos, out: &mut Vec<MachineEffect<OutputOf<P, A>>>) {
        self.failed = true;
        self.proposals.clear();
        self.reads.clear();
        self.advance(now, Input::IoFailed, out);
        let accepted = std::mem::take(&mut self.accepted).into_values().map(|(_, token)| token);
        for token in std::mem::take(&mut self.asked).into_values().chain(accepted) {
            out.push(MachineEffect::Output(ReplicaOutput::Unknown { token }));
        }
        let ready = std::mem::take(&mut self.ready).into_values().flatten();
        for (token, _) in std::mem::take(&mut self.questions).into_values().chain(ready) {
            out.push(MachineEffect::Output(ReplicaOutput::Answer { token, answer: Err(ReadError::NoLeader) }));
        }
        for token in std::mem::take(&mut self.admins).into_values() {
            out.push(MachineEffect::Output(ReplicaOutput::Admin { token, outcome: Err(AdminError::Unknown) }));
        }
    }
}

impl<P: Protocol, A: App> fmt::Debug for Replica<P, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("group", &self.group).field("mark", &self.mark).finish_non_exhaustive()
    }
}

/// Up to `len_max` bytes of `state` from `offset` on; `None` beyond its end.
fn chunk(state: &Bytes, offset: u64, len_max: usize) -> Option<Bytes> {
    let offset = usize::try_from(offset).ok().filter(|offset| *offset <= state.len())?;
    Some(state.slice(offset..offset.saturating_add(len_max).min(state.len())))
}

/// What [`ReplicaOutput::Save`] handed out.
fn decode_saved(mut saved: Bytes) -> Option<(SnapshotMark, Bytes)> {
    if saved.try_get_u8().ok()? != SAVED_VERSION {
        return None;
    }
    let crc = saved.try_get_u32_le().ok()?;
    let position = Position::new(saved.try_get_u64_le().ok()?, saved.try_get_u64_le().ok()?);
    let config_index = Index(saved.try_get_u64_le().ok()?);
    let config_len = saved.try_get_u32_le().ok()? as usize;
    if config_len > saved.len() {
        return None;
    }
    let config: Configuration = ConfigEntry::decode(saved.split_to(config_len)).ok()?.config;
    let intact = crc32c::crc32c(&saved) == crc;
    intact.then_some((SnapshotMark { position, config, config_index }, saved))
}
