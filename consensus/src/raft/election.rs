//! Elections (thesis 3.4, 3.6.1; pre-vote 9.6; check-quorum and stickiness 6.2, 4.2.3). Decides who may lead.
//!
//! ```text
//!   Follower ──timeout──► PreCandidate ──quorum says "you could"──► Candidate ──quorum──► Leader
//!      ▲  ▲                    │                                       │                   │
//!      │  └──── TimeoutNow: straight to Candidate                      │                   │
//!      └────────── newer term, a leader of this term, refused, no quorum heard ◄───────────┘
//! ```
//! 1. One vote per term, durable before it is sent; one's own is counted only when durable.
//! 2. Terms never go back. Pre-vote changes neither term nor vote.
//! 3. While a leader was heard within the shortest election timeout, no vote is given, unless that leader asked; not to
//!    oneself either.

use triune_storage::{Entry, Epoch, IoSeq, Position};
use triune_transport::{Channel, Nanos, NodeId};

use super::{Leader, Raft, wire::RaftMsg};
use crate::{Effects, EntryKind, Role};

impl Raft {
    /// Draws the next election timeout anew: two replicas that tie once do not tie for ever.
    pub(super) fn restart_election_timer(&mut self) {
        let span = self.cfg.election_max.since(self.cfg.election_min).0;
        let extra = self.random() % span.max(1);
        self.election_at = self.now.after(self.cfg.election_min).after(Nanos(extra));
    }

    /// splitmix64: seeded from node and boot, the core's only randomness.
    fn random(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether this replica may campaign: a voter of the configuration in force, or of the one before while the
    /// change that removes it is not known committed (thesis 4.2.2: it may be the only one with the newest log).
    pub(super) fn may_campaign(&self) -> bool {
        let me = self.cfg.node;
        let (index, config) = self.configs.latest();
        let voter = self.config().is_voter(me);
        let leaving = *index > self.commit && self.configs.previous().is_some_and(|old| old.is_voter(me));
        (voter || leaving) && !config.voters.is_empty() && !self.amnesia && !self.is_installing()
    }

    pub(super) fn on_election_timeout(&mut self, out: &mut Effects<RaftMsg>) {
        debug_assert_ne!(self.role, Role::Leader);
        self.restart_election_timer();
        if self.may_campaign() {
            self.become_pre_candidate(out);
        } else if self.role != Role::Follower {
            self.become_follower(self.term, None, out);
        } else {
            // A learner, or a replica in no configuration: it only forgets whom it no longer hears.
            self.leader = None;
        }
    }

    fn become_pre_candidate(&mut self, out: &mut Effects<RaftMsg>) {
        assert_ne!(self.role, Role::Leader, "a leader does not campaign");
        self.role = Role::PreCandidate;
        self.leader = None;
        self.votes.clear();
        self.votes.insert(self.cfg.node, true);
        if self.won() {
            self.become_candidate(false, out);
            return;
        }
        let msg = RaftMsg::PreVote { term: self.term.next(), last: self.log.last() };
        self.ask_voters(&msg, self.io.hard, out);
    }

    pub(super) fn become_candidate(&mut self, transfer: bool, out: &mut Effects<RaftMsg>) {
        assert_ne!(self.role, Role::Leader, "a leader does not campaign");
        debug_assert!(transfer || !self.is_sticky(), "a candidate promised a leader its silence");
        self.role = Role::Candidate;
        self.leader = None;
        self.term = self.term.next();
        self.vote = Some(self.cfg.node);
        self.batch.state = true;
        self.votes.clear();
        self.restart_election_timer();
        // Both the term and the end of the log it names must be durable here: after a crash this replica could
        // otherwise win with a shorter log than its voters were shown.
        self.self_vote = self.io.last.next();
        let mut after = self.self_vote;
        if self.mutant_vote_before_durable() {
            after = IoSeq::NONE;
            self.self_vote = IoSeq::NONE;
        }
        let msg = RaftMsg::Vote { term: self.term, last: self.log.last(), transfer };
        self.ask_voters(&msg, after, out);
        self.count_own_vote(out);
    }

    fn ask_voters(&self, msg: &RaftMsg, after: IoSeq, out: &mut Effects<RaftMsg>) {
        for node in self.config().members() {
            if node != self.cfg.node && self.config().is_voter(node) {
                self.send(node, Channel::Vote, msg.clone(), after, out);
            }
        }
    }

    /// Counts this candidate's own vote once it is durable.
    pub(super) fn count_own_vote(&mut self, out: &mut Effects<RaftMsg>) {
        if self.role == Role::Candidate && self.io.durable >= self.self_vote {
            self.votes.insert(self.cfg.node, true);
            self.count_votes(out);
        }
    }

    fn won(&self) -> bool {
        self.config().is_quorum(|node| self.votes.get(&node) == Some(&true))
    }

    fn lost(&self) -> bool {
        !self.config().is_quorum(|node| self.votes.get(&node) != Some(&false))
    }

    fn count_votes(&mut self, out: &mut Effects<RaftMsg>) {
        match self.role {
            Role::PreCandidate if self.won() => self.become_candidate(false, out),
            Role::Candidate if self.won() => self.become_leader(out),
            Role::PreCandidate | Role::Candidate if self.lost() => self.become_follower(self.term, None, out),
            _ => {}
        }
    }

    fn become_leader(&mut self, out: &mut Effects<RaftMsg>) {
        assert_eq!(self.role, Role::Candidate, "only a candidate becomes leader");
        assert!(self.won(), "a leader has the votes of a quorum");
        assert_eq!(self.vote, Some(self.cfg.node), "a leader voted for itself");
        self.role = Role::Leader;
        self.leader = Some(self.cfg.node);
        self.votes.clear();
        self.drop_incoming(out);
        self.lead = Some(Box::new(Leader::new(self.log.last().index.next(), self.now)));
        self.follow_configuration();
        // The barrier: nothing of an older term commits before an entry of this one does (thesis 3.6.2, 6.4).
        let position = Position { epoch: self.term, index: self.log.last().index.next() };
        self.append(Entry { position, kind: EntryKind::Barrier as u8, ..Entry::default() });
        self.settle_transfer(out);
        self.adopt_reads();
        self.broadcast_heartbeat(out);
        self.advance_commit(out);
    }

    /// Steps down or follows. `term` is at least ours.
    pub(super) fn become_follower(&mut self, term: Epoch, leader: Option<NodeId>, out: &mut Effects<RaftMsg>) {
        assert!(term >= self.term, "terms never go back");
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.batch.state = true;
            self.leader = None;
        }
        if self.role != Role::Follower {
            self.restart_election_timer();
            self.role = Role::Follower;
            self.leader = None;
            self.votes.clear();
        }
        if let Some(lead) = self.lead.take() {
            self.resign(*lead, out);
        }
        if leader.is_some() && self.leader != leader {
            assert!(self.leader.is_none(), "R1: two leaders in one term");
            self.leader = leader;
            self.on_new_leader(out);
        }
    }

    /// Whether a leader was heard so recently that no other is helped into office.
    fn is_sticky(&self) -> bool {
        self.role == Role::Leader
            || self.now < self.no_vote_before
            || self.leader_heard_at.is_some_and(|at| self.now.since(at) < self.cfg.election_min)
    }

    /// A message of a newer term: whether to go on with it, after following it into that term where that is due.
    pub(super) fn meet_newer_term(&mut self, from: NodeId, msg: &RaftMsg, out: &mut Effects<RaftMsg>) -> bool {
        let Some(term) = msg.term().filter(|term| *term > self.term) else {
            return true;
        };
        match msg {
            RaftMsg::PreVote { .. } | RaftMsg::PreVoteReply { granted: true, .. } => true,
            RaftMsg::Vote { transfer: false, .. } if self.is_sticky() => false,
            RaftMsg::Append { .. } | RaftMsg::Heartbeat { .. } | RaftMsg::Offer { .. } | RaftMsg::Chunk { .. } => {
                self.become_follower(term, Some(from), out);
                true
            }
            _ => {
                self.become_follower(term, None, out);
                true
            }
        }
    }

    pub(super) fn on_pre_vote(&mut self, from: NodeId, term: Epoch, last: Position, out: &mut Effects<RaftMsg>) {
        let granted = term > self.term && !self.is_sticky() && last >= self.log.last() && !self.amnesia;
        let term = if granted { term } else { self.term };
        self.send(from, Channel::Vote, RaftMsg::PreVoteReply { term, granted }, self.after_hard(), out);
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: NodeId, term: Epoch, granted: bool, out: &mut Effects<RaftMsg>) {
        let ours = if granted { self.term.next() } else { self.term };
        if self.role == Role::PreCandidate && term == ours {
            self.votes.insert(from, granted);
            self.count_votes(out);
        }
    }

    pub(super) fn on_vote(
        &mut self,
        from: NodeId,
        term: Epoch,
        last: Position,
        transfer: bool,
        out: &mut Effects<RaftMsg>,
    ) {
        let free = self.vote.is_none_or(|node| node == from) && self.leader.is_none();
        let promised = self.is_sticky() && !transfer;
        let granted = term == self.term && free && !promised && last >= self.log.last() && !self.amnesia;
        if granted {
            if self.vote.is_none() {
                self.vote = Some(from);
                self.batch.state = true;
            }
            self.restart_election_timer();
        }
        let after = if self.mutant_vote_before_durable() { IoSeq::NONE } else { self.after_hard() };
        self.send(from, Channel::Vote, RaftMsg::VoteReply { term: self.term, granted }, after, out);
    }

    pub(super) fn on_vote_reply(&mut self, from: NodeId, term: Epoch, granted: bool, out: &mut Effects<RaftMsg>) {
        if self.role == Role::Candidate && term == self.term {
            let granted = granted || self.mutant_higher_term_is_grant();
            self.votes.insert(from, granted);
            self.count_votes(out);
        }
    }
}
