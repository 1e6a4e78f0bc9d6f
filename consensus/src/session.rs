//! Sessions: the replicated half of "exactly once" (thesis 6.3), and the proposer's half.
//!
//! A proposer that hears nothing sends its command again. So each command carries (session, seq), and apply asks the
//! [`SessionTable`] whether it was applied before. The table is replicated state: same log, same table, same rows.
//!
//! ```text
//!              acked_below          draws next
//!  seq  ───────────┼──▓▓▓▓──▓▓─▓──────┼────────▶
//!        forgotten │ applied marks    │
//!        (stale)   └ oldest that may  └ at most `WINDOW_MAX` ahead
//!                    still be sent
//! ```
//!
//! A session's id is the index of the log entry that opened it, so no id is ever used twice, whatever is sent twice: a
//! late copy of an older opening can only open yet another session and close the current one, whose proposer then
//! opens anew. It can never revive marks that were forgotten.
//!
//! 1. A (session, seq) is let through at most once, ever.
//! 2. A command of a session that is not open is refused.
//! 3. A member has at most one session open; at most [`SESSIONS_MAX`] are open at all, the longest unused goes first.
//! 4. Marks are kept from `acked_below` on, and never further ahead than [`WINDOW_MAX`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use triune_storage::Index;

/// Sessions open at once.
pub const SESSIONS_MAX: usize = 4096;

/// How far a seq may lie above its session's `acked_below`.
pub const WINDOW_MAX: u64 = 1 << 20;

/// Separate runs of marks a session may have; a proposer keeps so few in flight that it never comes near.
pub const RUNS_MAX: usize = 65_536;

/// A session's name: the index of the entry that opened it. 0 names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u64);

/// A command's number in its session, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

/// What a command's envelope says of its proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionTag {
    /// Whose command it is.
    pub session: SessionId,
    /// Which one.
    pub seq: Seq,
    /// Every smaller seq was answered and is never sent again.
    pub acked_below: Seq,
}

/// What apply must do with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Carry it out; it is marked.
    Fresh,
    /// It was carried out before: skip it.
    Applied,
    /// Its proposer has its answer and will not look at another: skip it.
    Stale,
    /// The session is not open here: skip it. The proposer opens a new one and may propose anew, under a new seq.
    UnknownSession,
    /// It lies more than [`WINDOW_MAX`] ahead, or leaves more than [`RUNS_MAX`] gaps: skip it. No proposer of ours
    /// does that.
    TooFar,
}

/// What an opening did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The session now open for that member and boot.
    pub session: SessionId,
    /// What it closed: the member's older one, or the longest unused when there were too many.
    pub closed: Vec<SessionId>,
}

/// Every open session of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionTable {
    sessions: BTreeMap<SessionId, Session>,
    /// Invariant: exactly the inverse of `sessions`' members.
    by_member: BTreeMap<u64, SessionId>,
    /// Rows that differ from what [`SessionTable::take_changes`] gave last.
    changed: BTreeSet<SessionId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    member: u64,
    boot: u64,
    acked_below: Seq,
    /// The index of the last entry that named it.
    used: Index,
    /// Applied seqs as first → last. Invariant: ≥ `acked_below`, apart by at least one.
    runs: BTreeMap<u64, u64>,
}

/// A row that does not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionRowError {
    /// It ends too soon, or too late.
    #[error("session row of {bytes} bytes has the wrong length")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// A newer program wrote it.
    #[error("session row has version {found}")]
    Version {
        /// Its version.
        found: u8,
    },
    /// What it says cannot be.
    #[error("session row contradicts itself or another")]
    Inconsistent,
}

impl SessionTable {
    /// A table without sessions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies the command, at `index`, by which `boot` of `member` opens a session. A copy of the opening that is in
    /// force changes nothing.
    pub fn open(&mut self, index: Index, member: u64, boot: u64) -> Opened {
        let mut closed = Vec::new();
        if let Some(current) = self.by_member.get(&member).copied() {
            if self.sessions.get(&current).is_some_and(|session| session.boot == boot) {
                return Opened { session: current, closed };
            }
            self.close(current);
            closed.push(current);
        }
        while self.sessions.len() >= SESSIONS_MAX {
            let Some(unused) = self.sessions.iter().min_by_key(|(_, s)| s.used).map(|(id, _)| *id) else { break };
            self.close(unused);
            closed.push(unused);
        }
        let id = SessionId(index.0);
        let session = Session { member, boot, acked_below: Seq(1), used: index, runs: BTreeMap::new() };
        let reused = self.sessions.insert(id, session);
        assert!(reused.is_none(), "one entry opens one session");
        self.by_member.insert(member, id);
        self.changed.insert(id);
        debug_assert!(self.is_consistent());
        Opened { session: id, closed }
    }

    /// Closes a session; its commands are refused from here on. Whether it was open.
    pub fn close(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.remove(&id) else { return false };
        self.by_member.remove(&session.member);
        self.changed.insert(id);
        true
    }

    /// Asks whether the command `tag`, at `index`, is to be carried out, and marks it if so.
    pub fn check(&mut self, index: Index, tag: SessionTag) -> Verdict {
        let Some(session) = self.sessions.get_mut(&tag.session) else { return Verdict::UnknownSession };
        self.changed.insert(tag.session);
        session.used = index;
        // A proposer never acknowledges what it is about to send; one that errs forgets no more than that.
        session.forget_below(tag.acked_below.min(tag.seq));
        if tag.seq < session.acked_below {
            Verdict::Stale
        } else if session.is_applied(tag.seq) {
            Verdict::Applied
        } else if tag.seq.0 - session.acked_below.0 > WINDOW_MAX || session.runs.len() >= RUNS_MAX {
            Verdict::TooFar
        } else {
            session.mark(tag.seq);
            Verdict::Fresh
        }
    }

    /// The open session of `member`, and the boot that opened it.
    pub fn of_member(&self, member: u64) -> Option<(SessionId, u64)> {
        let id = self.by_member.get(&member)?;
        self.sessions.get(id).map(|session| (*id, session.boot))
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Every row, by key. Two tables are equal exactly if their rows are.
    pub fn rows(&self) -> impl Iterator<Item = (Bytes, Bytes)> + '_ {
        self.sessions.iter().map(|(id, session)| (row_key(*id), session.encode()))
    }

    /// The rows that changed since the last call, by key; `None`: the row is gone.
    pub fn take_changes(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (row_key(id), self.sessions.get(&id).map(Session::encode))).collect()
    }

    /// Rebuilds a table from its rows.
    ///
    /// # Errors
    /// When a row is damaged: then the whole state is.
    pub fn from_rows<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        rows: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, SessionRowError> {
        let mut table = Self::new();
        for (key, value) in rows {
            let key = key.as_ref();
            let id = key.try_into().map(u64::from_be_bytes);
            let id = SessionId(id.map_err(|_| SessionRowError::Length { bytes: key.len() })?);
            let session = Session::decode(value.as_ref())?;
            let member = session.member;
            let twice = table.sessions.insert(id, session).is_some() || table.by_member.insert(member, id).is_some();
            if twice || table.sessions.len() > SESSIONS_MAX {
                return Err(SessionRowError::Inconsistent);
            }
        }
        Ok(table)
    }

    fn is_consistent(&self) -> bool {
        self.sessions.len() == self.by_member.len()
            && self.sessions.len() <= SESSIONS_MAX
            && self.sessions.iter().all(|(id, s)| self.by_member.get(&s.member) == Some(id))
    }
}

impl Session {
    fn is_applied(&self, seq: Seq) -> bool {
        self.runs.range(..=seq.0).next_back().is_some_and(|(_, last)| *last >= seq.0)
    }

    /// Marks `seq`, joining the runs it touches.
    fn mark(&mut self, seq: Seq) {
        assert!(!self.is_applied(seq), "a seq is marked once");
        let below =
            self.runs.range(..seq.0).next_back().filter(|(_, last)| **last + 1 == seq.0).map(|(first, _)| *first);
        let above = self.runs.remove(&(seq.0 + 1));
        self.runs.insert(below.unwrap_or(seq.0), above.unwrap_or(seq.0));
    }

    /// Forgets the marks below `acked_below`.
    fn forget_below(&mut self, acked_below: Seq) {
        if acked_below <= self.acked_below {
            return;
        }
        self.acked_below = acked_below;
        while let Some(run) = self.runs.first_entry() {
            let (first, last) = (*run.key(), *run.get());
            if first >= acked_below.0 {
                break;
            }
            run.remove();
            if last >= acked_below.0 {
                self.runs.insert(acked_below.0, last);
            }
        }
    }

    fn encode(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(ROW_FIXED_BYTES + self.runs.len() * RUN_BYTES);
        buf.put_u8(ROW_VERSION);
        buf.put_u64_le(self.member);
        buf.put_u64_le(self.boot);
        buf.put_u64_le(self.acked_below.0);
        buf.put_u64_le(self.used.0);
        for (first, last) in &self.runs {
            buf.put_u64_le(*first);
            buf.put_u64_le(*last);
        }
        buf.freeze()
    }

    fn decode(mut row: &[u8]) -> Result<Self, SessionRowError> {
        let bytes = row.len();
        if bytes < ROW_FIXED_BYTES || !(bytes - ROW_FIXED_BYTES).is_multiple_of(RUN_BYTES) {
            return Err(SessionRowError::Length { bytes });
        }
        let version = row.get_u8();
        if version != ROW_VERSION {
            return Err(SessionRowError::Version { found: version });
        }
        let (member, boot) = (row.get_u64_le(), row.get_u64_le());
        let (acked_below, used) = (Seq(row.get_u64_le()), Index(row.get_u64_le()));
        let mut runs = BTreeMap::new();
        let mut least = acked_below.0;
        while row.has_remaining() {
            let (first, last) = (row.get_u64_le(), row.get_u64_le());
            if first < least || last < first || last > u64::MAX - 2 {
                return Err(SessionRowError::Inconsistent);
            }
            runs.insert(first, last);
            least = last + 2;
        }
        Ok(Self { member, boot, acked_below, used, runs })
    }
}

/// Big-endian, so that rows lie in the order of their ids.
fn row_key(id: SessionId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

const ROW_VERSION: u8 = 1;
const ROW_FIXED_BYTES: usize = 1 + 4 * 8;
const RUN_BYTES: usize = 16;

/// The proposer's half: draws seqs, and knows which are still in the air.
///
/// A seq is *pending* from [`SessionClient::draw`] to [`SessionClient::settle`]. Settle it when its answer is known or
/// nobody waits for it any more: a copy that is applied later is then skipped everywhere.
#[derive(Clone, Debug, Default)]
pub struct SessionClient {
    session: Option<SessionId>,
    /// The last seq drawn.
    last: u64,
    /// Invariant: all ≤ `last`.
    pending: BTreeSet<Seq>,
}

impl SessionClient {
    /// A proposer without a session: first propose the command that opens one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The opening was applied. Seqs start anew with each session.
    pub fn opened(&mut self, session: SessionId) {
        if self.session != Some(session) {
            *self = Self { session: Some(session), ..Self::default() };
        }
    }

    /// The session was closed, or found unknown: open another. The pending ones come back, ascending; none of them
    /// will be applied any more, unless it was already.
    pub fn closed(&mut self) -> Vec<Seq> {
        let pending = std::mem::take(&mut self.pending).into_iter().collect();
        *self = Self::default();
        pending
    }

    /// The open session.
    pub const fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// Draws a number for a new command. `None`: there is no session, or the oldest pending command is
    /// [`WINDOW_MAX`] behind.
    pub fn draw(&mut self) -> Option<SessionTag> {
        let session = self.session?;
        let seq = Seq(self.last + 1);
        let acked_below = self.pending.first().copied().unwrap_or(seq);
        if seq.0 - acked_below.0 >= WINDOW_MAX {
            return None;
        }
        self.last = seq.0;
        self.pending.insert(seq);
        debug_assert!(self.pending.last() == Some(&seq), "seqs are drawn upwards");
        Some(SessionTag { session, seq, acked_below })
    }

    /// The command has its answer, or nobody waits for one. Whether it was pending.
    pub fn settle(&mut self, seq: Seq) -> bool {
        self.pending.remove(&seq)
    }

    /// Every smaller seq is settled.
    pub fn acked_below(&self) -> Seq {
        self.pending.first().copied().unwrap_or(Seq(self.last + 1))
    }

    /// How many commands are in the air.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn tag(session: u64, seq: u64, acked_below: u64) -> SessionTag {
        SessionTag { session: SessionId(session), seq: Seq(seq), acked_below: Seq(acked_below) }
    }

    fn open(table: &mut SessionTable, index: u64, member: u64, boot: u64) -> SessionId {
        table.open(Index(index), member, boot).session
    }

    #[test]
    fn a_command_sent_twice_is_applied_once() {
        let mut table = SessionTable::new();
        open(&mut table, 5, 1, 77);
        assert_eq!(table.check(Index(6), tag(5, 1, 1)), Verdict::Fresh);
        assert_eq!(table.check(Index(7), tag(5, 1, 1)), Verdict::Applied);
        assert_eq!(table.check(Index(8), tag(5, 3, 1)), Verdict::Fresh);
        assert_eq!(table.check(Index(9), tag(5, 2, 1)), Verdict::Fresh);
        assert_eq!(table.check(Index(10), tag(5, 2, 1)), Verdict::Applied);
    }

    #[test]
    fn what_was_acknowledged_is_forgotten_and_never_let_through_again() {
        let mut table = SessionTable::new();
        open(&mut table, 5, 1, 77);
        for seq in 1..=3 {
            assert_eq!(table.check(Index(5 + seq), tag(5, seq, 1)), Verdict::Fresh);
        }
        assert_eq!(table.check(Index(9), tag(5, 4, 4)), Verdict::Fresh);
        for seq in 1..=3 {
            assert_eq!(table.check(Index(9 + seq), tag(5, seq, 1)), Verdict::Stale);
        }
        assert_eq!(table.sessions[&SessionId(5)].runs, BTreeMap::from([(4, 4)]));
    }

    #[test]
    fn a_new_boot_closes_the_older_session_of_its_member_only() {
        let mut table = SessionTable::new();
        open(&mut table, 5, 1, 77);
        open(&mut table, 6, 2, 88);
        let opened = table.open(Index(7), 1, 78);
        assert_eq!(opened, Opened { session: SessionId(7), closed: vec![SessionId(5)] });
        assert_eq!(table.check(Index(8), tag(5, 1, 1)), Verdict::UnknownSession);
        assert_eq!(table.check(Index(9), tag(6, 1, 1)), Verdict::Fresh);
        assert_eq!(table.check(Index(10), tag(7, 1, 1)), Verdict::Fresh);
        assert_eq!(table.of_member(1), Some((SessionId(7), 78)));
    }

    #[test]
    fn a_late_copy_of_an_opening_revives_no_marks() {
        let mut table = SessionTable::new();
        open(&mut table, 5, 1, 77);
        assert_eq!(table.check(Index(6), tag(5, 1, 1)), Verdict::Fresh);
        assert_eq!(open(&mut table, 7, 1, 77), SessionId(5), "a copy of the opening in force changes nothing");
        open(&mut table, 8, 1, 78);
        assert_eq!(open(&mut table, 9, 1, 77), SessionId(9), "a copy of an older one opens another session");
        assert_eq!(table.check(Index(10), tag(5, 1, 1)), Verdict::UnknownSession);
    }

    #[test]
    fn when_too_many_are_open_the_longest_unused_goes() {
        let mut table = SessionTable::new();
        for n in 1..=SESSIONS_MAX as u64 {
            open(&mut table, n, n, 0);
        }
        assert_eq!(table.check(Index(5000), tag(1, 1, 1)), Verdict::Fresh);
        let opened = table.open(Index(5001), 5001, 0);
        assert_eq!(opened.closed, vec![SessionId(2)]);
        assert_eq!(table.len(), SESSIONS_MAX);
    }

    #[test]
    fn a_seq_far_ahead_is_refused() {
        let mut table = SessionTable::new();
        open(&mut table, 5, 1, 77);
        assert_eq!(table.check(Index(6), tag(5, WINDOW_MAX + 2, 1)), Verdict::TooFar);
        assert_eq!(table.check(Index(7), tag(5, u64::MAX, 1)), Verdict::TooFar);
        assert_eq!(table.check(Index(8), tag(5, WINDOW_MAX + 1, 1)), Verdict::Fresh);
    }

    #[test]
    fn damaged_rows_are_refused() {
        let mut table = SessionTable::new();
        open(&mut table, 5, 1, 77);
        assert_eq!(table.check(Index(6), tag(5, 1, 1)), Verdict::Fresh);
        let (key, row) = table.rows().next().unwrap();
        for len in 0..row.len() {
            if len != ROW_FIXED_BYTES {
                let error = SessionTable::from_rows([(&key, row.slice(..len))]).unwrap_err();
                assert_eq!(error, SessionRowError::Length { bytes: len });
            }
        }
        let mut newer = row.to_vec();
        newer[0] = 2;
        assert_eq!(SessionTable::from_rows([(&key, newer)]).unwrap_err(), SessionRowError::Version { found: 2 });
        let mut reversed = row.to_vec();
        reversed[ROW_FIXED_BYTES + 8] = 0;
        assert_eq!(SessionTable::from_rows([(&key, reversed)]).unwrap_err(), SessionRowError::Inconsistent);
    }

    #[test]
    fn a_proposer_acknowledges_only_what_lies_below_its_oldest_pending_command() {
        let mut client = SessionClient::new();
        assert_eq!(client.draw(), None);
        client.opened(SessionId(5));
        assert_eq!(client.draw(), Some(tag(5, 1, 1)));
        assert_eq!(client.draw(), Some(tag(5, 2, 1)));
        assert!(client.settle(Seq(2)));
        assert_eq!(client.draw(), Some(tag(5, 3, 1)));
        assert!(client.settle(Seq(1)));
        assert!(!client.settle(Seq(1)));
        assert_eq!(client.acked_below(), Seq(3));
        assert_eq!(client.draw(), Some(tag(5, 4, 3)));
        assert_eq!(client.closed(), vec![Seq(3), Seq(4)]);
        assert_eq!(client.session(), None);
    }

    /// What the table must do, said naively: remember everything for ever.
    #[derive(Default)]
    struct Model {
        open: BTreeMap<u64, (u64, u64, u64)>,
        applied: BTreeSet<(u64, u64)>,
    }

    impl Model {
        fn open(&mut self, index: u64, member: u64, boot: u64) {
            if self.open.values().any(|(m, b, _)| (*m, *b) == (member, boot)) {
                return;
            }
            self.open.retain(|_, (m, ..)| *m != member);
            self.open.insert(index, (member, boot, 1));
        }

        fn check(&mut self, tag: SessionTag) -> Verdict {
            let Some((_, _, acked)) = self.open.get_mut(&tag.session.0) else { return Verdict::UnknownSession };
            *acked = tag.acked_below.0.min(tag.seq.0).max(*acked);
            if tag.seq.0 < *acked {
                Verdict::Stale
            } else if self.applied.insert((tag.session.0, tag.seq.0)) {
                Verdict::Fresh
            } else {
                Verdict::Applied
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open { member: u64, boot: u64 },
        Check { back: u64, seq: u64, acked_below: u64 },
        Reload,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (1..4u64, 0..3u64).prop_map(|(member, boot)| Step::Open { member, boot }),
            12 => (0..40u64, 1..24u64, 0..24u64)
                .prop_map(|(back, seq, acked_below)| Step::Check { back, seq, acked_below }),
            1 => Just(Step::Reload),
        ]
    }

    proptest! {
        #[test]
        fn the_table_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..200)) {
            let (mut table, mut model) = (SessionTable::new(), Model::default());
            let mut rows = BTreeMap::new();
            for (at, step) in steps.into_iter().enumerate() {
                let index = at as u64 + 1;
                match step {
                    Step::Open { member, boot } => {
                        table.open(Index(index), member, boot);
                        model.open(index, member, boot);
                    }
                    Step::Check { back, seq, acked_below } => {
                        let tag = tag(index.saturating_sub(back), seq, acked_below);
                        prop_assert_eq!(table.check(Index(index), tag), model.check(tag));
                    }
                    Step::Reload => {
                        for (key, row) in table.take_changes() {
                            match row {
                                Some(row) => rows.insert(key, row),
                                None => rows.remove(&key),
                            };
                        }
                        let reloaded = SessionTable::from_rows(&rows).unwrap();
                        prop_assert_eq!(&reloaded, &table);
                        prop_assert_eq!(reloaded.rows().collect::<BTreeMap<_, _>>(), rows.clone());
                        table = reloaded;
                    }
                }
                let open = table.sessions.keys().map(|id| id.0).collect::<Vec<_>>();
                prop_assert_eq!(open, model.open.keys().copied().collect::<Vec<_>>());
                prop_assert!(table.is_consistent());
            }
        }

        #[test]
        fn whatever_is_sent_again_and_reordered_is_applied_once(
            drawn in 1..60usize,
            noise in proptest::collection::vec((0..60usize, any::<bool>()), 0..300),
        ) {
            let mut table = SessionTable::new();
            let mut client = SessionClient::new();
            client.opened(open(&mut table, 1, 9, 9));
            let mut sent = Vec::new();
            let mut fresh = BTreeMap::<Seq, u32>::new();
            let mut index = 1;
            for _ in 0..drawn {
                sent.push(client.draw().unwrap());
            }
            for (pick, more) in noise {
                index += 1;
                let tag = sent[pick % sent.len()];
                if table.check(Index(index), tag) == Verdict::Fresh {
                    *fresh.entry(tag.seq).or_default() += 1;
                    client.settle(tag.seq);
                }
                if more {
                    sent.push(client.draw().unwrap());
                }
            }
            prop_assert!(fresh.values().all(|times| *times == 1));
            for tag in sent {
                let again = table.check(Index(index + 1), tag);
                prop_assert!(fresh.contains_key(&tag.seq) != (again == Verdict::Fresh));
            }
        }
    }
}
