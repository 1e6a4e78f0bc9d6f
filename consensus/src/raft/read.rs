//! Linearizable reads (thesis 6.4): a round of heartbeats proves that nobody else leads, then the commit index of the
//! round's start is a point no acknowledged write lies beyond.
//!
//! - All reads that arrive while a round is out share the next one.
//! - A follower asks its leader for the index, one question at a time, and serves the read itself.
//! - Lease reads (6.4.1): the newest round that a quorum answered *left here* at t; until t + the shortest election
//!   timeout, less the drift of two clocks, none of them votes for anybody else.
//!
//! 1. A round's name (boot, count) is never used again. 2. A round confirms only reads that arrived before it left.
//! 3. No read is let through before this leader committed in its own term.

use triune_storage::{Index, IoSeq};
use triune_transport::{Channel, Nanos, NodeId};

use super::{
    Raft,
    wire::{RaftMsg, RoundId},
};
use crate::{Effect, Effects, ReadError, ReadId, ReadMode, Role};

/// Reads that may wait in one replica.
const READS_MAX: usize = 65_536;
/// Heartbeat rounds whose send time is remembered, for the lease.
pub(super) const ROUNDS_MAX: usize = 64;

/// Reads that wait here; remote ones are questions of followers, at most one a follower and batch.
#[derive(Clone, Debug, Default)]
struct Batch {
    local: Vec<ReadId>,
    remote: Vec<(NodeId, RoundId)>,
    /// When the first came.
    since: Nanos,
}

impl Batch {
    const fn is_empty(&self) -> bool {
        self.local.is_empty() && self.remote.is_empty()
    }
}

/// A batch whose proof is under way.
#[derive(Clone, Debug)]
struct Asked {
    batch: Batch,
    /// The round (leader) or question (follower) that decides it.
    round: u64,
    /// The commit at the round's start; a follower learns it from the answer.
    index: Index,
    /// When the question left.
    sent_at: Nanos,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Reads {
    waiting: Batch,
    asked: Option<Asked>,
}

impl Reads {
    fn count(&self) -> usize {
        self.waiting.local.len() + self.asked.as_ref().map_or(0, |asked| asked.batch.local.len())
    }

    /// When the oldest read gives up.
    pub(super) fn deadline(&self, patience: Nanos) -> Option<Nanos> {
        let asked = self.asked.as_ref().map(|asked| &asked.batch);
        let batches = asked.into_iter().chain(Some(&self.waiting));
        batches.filter(|batch| !batch.is_empty()).map(|batch| batch.since.after(patience)).min()
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.count() <= READS_MAX, "G11: reads that wait");
    }
}

impl Raft {
    pub(super) fn on_read(&mut self, ids: Vec<ReadId>, out: &mut Effects<RaftMsg>) {
        if self.role == Role::Leader && self.may_read_at_once() {
            let index = self.commit;
            ids.into_iter().for_each(|id| out.push(Effect::Read { id, outcome: Ok(index) }));
            return;
        }
        let room = READS_MAX - self.reads.count();
        if self.reads.waiting.is_empty() {
            self.reads.waiting.since = self.now;
        }
        for (n, id) in ids.into_iter().enumerate() {
            if n < room {
                self.reads.waiting.local.push(id);
            } else {
                out.push(Effect::Read { id, outcome: Err(ReadError::Busy) });
            }
        }
        self.drive_reads(out);
    }

    /// Whether no round is needed: the only voter, or a leader within its lease; and committed in its own term.
    fn may_read_at_once(&self) -> bool {
        let alone = self.config().is_quorum(|node| node == self.cfg.node);
        self.has_committed_in_term() && (alone || self.lease().is_some_and(|until| self.now < until))
    }

    /// Until when, by this leader's clock, no other leader can have been elected.
    pub(super) fn lease(&self) -> Option<Nanos> {
        let lead = self.lead.as_ref().filter(|lead| self.cfg.read == ReadMode::Lease && !lead.lease_void)?;
        let me = self.cfg.node;
        let sent_at = |node: NodeId| {
            if node == me { self.now } else { lead.peers.get(&node).map_or(Nanos::ZERO, |peer| peer.round_sent_at) }
        };
        let voters = self.config().voters.iter().chain(&self.config().outgoing);
        let start =
            voters.map(|node| sent_at(*node)).filter(|t| self.config().is_quorum(|n| sent_at(n) >= *t)).max()?;
        // Two clocks, each off by the bound: one fast, one slow.
        let drift = self.cfg.election_min.0 / 1_000_000 * u64::from(self.cfg.drift_ppm) * 2;
        (start > Nanos::ZERO).then(|| start.after(self.cfg.election_min.since(Nanos(drift))))
    }

    /// Moves waiting reads on: into a round (leader) or a question (follower).
    pub(super) fn drive_reads(&mut self, out: &mut Effects<RaftMsg>) {
        if self.reads.asked.is_some() || self.reads.waiting.is_empty() {
            return;
        }
        match (self.role, self.leader) {
            (Role::Leader, _) if self.has_committed_in_term() => {
                let batch = std::mem::take(&mut self.reads.waiting);
                let index = self.commit;
                if self.may_read_at_once() {
                    self.let_through(batch, index, out);
                    return;
                }
                let round = self.next_round();
                self.reads.asked = Some(Asked { batch, round, index, sent_at: self.now });
                self.send_heartbeats(round, out);
            }
            (Role::Follower, Some(leader)) => {
                let batch = std::mem::take(&mut self.reads.waiting);
                debug_assert!(batch.remote.is_empty(), "only a leader holds others' questions");
                let round = self.next_round();
                self.reads.asked = Some(Asked { batch, round, index: Index::ZERO, sent_at: self.now });
                self.ask_leader(leader, round, out);
            }
            _ => {}
        }
    }

    fn ask_leader(&self, leader: NodeId, round: u64, out: &mut Effects<RaftMsg>) {
        let ctx = RoundId { boot: self.cfg.boot, count: round };
        self.send(leader, Channel::Heartbeat, RaftMsg::ReadIndex { ctx }, self.after_hard(), out);
    }

    pub(super) const fn next_round(&mut self) -> u64 {
        #[cfg(feature = "mutants")]
        if matches!(self.cfg.mutant, Some(crate::Mutant::ReadIdReused)) {
            self.round = 1;
            return self.round;
        }
        self.round += 1;
        self.round
    }

    pub(super) fn on_read_index(&mut self, from: NodeId, ctx: RoundId, out: &mut Effects<RaftMsg>) {
        if self.role != Role::Leader {
            return;
        }
        if self.reads.waiting.is_empty() {
            self.reads.waiting.since = self.now;
        }
        // A follower asks one question at a time: a newer one means that it gave the older up.
        let waiting = &mut self.reads.waiting;
        waiting.remote.retain(|(node, _)| *node != from);
        waiting.remote.push((from, ctx));
        self.drive_reads(out);
    }

    pub(super) fn on_read_index_reply(&mut self, from: NodeId, ctx: RoundId, index: Index, out: &mut Effects<RaftMsg>) {
        let ours = |asked: &mut Asked| ctx == RoundId { boot: self.cfg.boot, count: asked.round };
        if self.role == Role::Leader || self.leader != Some(from) {
            return;
        }
        if let Some(asked) = self.reads.asked.take_if(ours) {
            self.let_through(asked.batch, index, out);
            self.drive_reads(out);
        }
    }

    /// A follower answered a heartbeat: the round out may have its quorum now.
    pub(super) fn confirm_reads(&mut self, out: &mut Effects<RaftMsg>) {
        let (Some(lead), Some(asked)) = (self.lead.as_ref(), self.reads.asked.as_ref()) else {
            return;
        };
        let (me, round) = (self.cfg.node, asked.round);
        let answered = |node: NodeId| node == me || lead.peers.get(&node).is_some_and(|peer| peer.round >= round);
        if self.config().is_quorum(answered)
            && let Some(asked) = self.reads.asked.take()
        {
            self.let_through(asked.batch, asked.index, out);
            self.drive_reads(out);
        }
    }

    fn let_through(&self, batch: Batch, index: Index, out: &mut Effects<RaftMsg>) {
        for id in batch.local {
            out.push(Effect::Read { id, outcome: Ok(index) });
        }
        for (node, ctx) in batch.remote {
            self.send(node, Channel::Heartbeat, RaftMsg::ReadIndexReply { ctx, index }, IoSeq::NONE, out);
        }
    }

    /// A new leader takes what it had asked as a follower into its own rounds.
    pub(super) fn adopt_reads(&mut self) {
        if let Some(asked) = self.reads.asked.take() {
            let newer = std::mem::replace(&mut self.reads.waiting, asked.batch);
            self.reads.waiting.local.extend(newer.local);
        }
    }

    /// The leader changed: others' questions are theirs to repeat, own ones go to the new leader.
    pub(super) fn reroute_reads(&mut self, out: &mut Effects<RaftMsg>) {
        self.adopt_reads();
        self.reads.waiting.remote.clear();
        self.drive_reads(out);
    }

    /// Gives up reads that waited for an election timeout; repeats a follower's question that seems lost.
    pub(super) fn expire_reads(&mut self, out: &mut Effects<RaftMsg>) {
        let (now, patience) = (self.now, self.cfg.election_max);
        let late = |batch: &Batch| !batch.is_empty() && now.since(batch.since) >= patience;
        let asked = self.reads.asked.take_if(|asked| late(&asked.batch)).map(|asked| asked.batch);
        let waiting = late(&self.reads.waiting).then(|| std::mem::take(&mut self.reads.waiting));
        for batch in asked.into_iter().chain(waiting) {
            for id in batch.local {
                out.push(Effect::Read { id, outcome: Err(ReadError::NoLeader) });
            }
        }
        self.repeat_question(out);
        self.drive_reads(out);
    }

    /// This replica stops: nobody is left waiting.
    pub(super) fn abandon_reads(&mut self, out: &mut Effects<RaftMsg>) {
        let Reads { waiting, asked } = std::mem::take(&mut self.reads);
        for id in asked.into_iter().flat_map(|asked| asked.batch.local).chain(waiting.local) {
            out.push(Effect::Read { id, outcome: Err(ReadError::NoLeader) });
        }
    }

    fn repeat_question(&mut self, out: &mut Effects<RaftMsg>) {
        let Some(leader) = self.leader.filter(|_| self.role == Role::Follower) else {
            return;
        };
        let silent = |asked: &Asked| self.now.since(asked.sent_at) >= self.question_patience();
        if self.reads.asked.as_ref().is_some_and(silent) {
            let round = self.next_round();
            if let Some(asked) = self.reads.asked.as_mut() {
                (asked.round, asked.sent_at) = (round, self.now);
            }
            self.ask_leader(leader, round, out);
        }
    }

    const fn question_patience(&self) -> Nanos {
        Nanos(self.cfg.heartbeat.0 * 3)
    }

    /// When a follower's question is repeated.
    pub(super) fn question_deadline(&self) -> Option<Nanos> {
        let asked = self.reads.asked.as_ref().filter(|_| self.role == Role::Follower && self.leader.is_some())?;
        Some(asked.sent_at.after(self.question_patience()))
    }
}
