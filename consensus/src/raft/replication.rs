//! Log replication (thesis 3.5, 3.6; pipelining 10.2.1): the leader's appends, the follower's answers, the commit.
//!
//! 1. The leader only appends (R2); its own write runs beside the send and counts when durable (10.2.1).
//! 2. A follower acknowledges what equals the leader's log *and* is durable here (`after`).
//! 3. Counting commits only entries of the leader's own term; older ones commit with them (3.6.2).
//! 4. Late, repeated and reordered messages change nothing.

use triune_storage::{Entry, Epoch, Index, IoSeq, Position};
use triune_transport::{Channel, Nanos, NodeId};

use super::{
    Leader, Raft,
    log::cost,
    progress::{Progress, State},
    read::ROUNDS_MAX,
    wire::{AppendOutcome, RaftMsg, RoundId},
};
use crate::{ConfigEntry, Effect, Effects, EntryKind, FetchId, Proposal, ProposeError, ProposeOutcome, Role};

/// Payload in one [`Effect::Apply`].
const APPLY_BYTES_MAX: usize = 4 << 20;
/// Payload handed to the state machine and not yet reported applied.
const APPLY_AHEAD_BYTES_MAX: usize = 64 << 20;

/// A leader's proposals that are not yet committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Uncommitted {
    steps: std::collections::VecDeque<(Index, usize)>,
    pub(super) bytes: usize,
}

impl Uncommitted {
    fn push(&mut self, last: Index, bytes: usize) {
        self.steps.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn commit(&mut self, upto: Index) {
        while self.steps.front().is_some_and(|(last, _)| *last <= upto) {
            self.bytes -= self.steps.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }
}

// The leader.
impl Raft {
    pub(super) fn on_propose(&mut self, proposals: Vec<Proposal>, out: &mut Effects<RaftMsg>) {
        let refusal = match self.role {
            Role::Leader if self.is_transferring() => Some(ProposeError::Transferring),
            Role::Leader => None,
            _ => Some(ProposeError::NotLeader { leader: self.leader }),
        };
        if let Some(error) = refusal {
            for Proposal { id, .. } in proposals {
                let outcome = ProposeOutcome::Rejected(error.clone());
                out.push(Effect::Reply { id, outcome, after: IoSeq::NONE });
            }
            return;
        }
        let held = self.lead.as_ref().map_or(0, |lead| lead.uncommitted.bytes);
        let mut bytes = 0;
        self.batch.entries.reserve(proposals.len());
        for Proposal { id, head, sections } in proposals {
            let position = Position { epoch: self.term, index: self.log.last().index.next() };
            let entry = Entry { position, kind: EntryKind::Command as u8, head, sections };
            let more = cost(&entry);
            let outcome = if held + bytes > 0 && held + bytes + more > self.cfg.uncommitted_bytes_max {
                ProposeOutcome::Rejected(ProposeError::Busy)
            } else {
                bytes += more;
                self.append(entry);
                ProposeOutcome::Accepted(position)
            };
            out.push(Effect::Reply { id, outcome, after: IoSeq::NONE });
        }
        let last = self.log.last().index;
        if let Some(lead) = self.lead.as_mut().filter(|_| bytes > 0) {
            lead.uncommitted.push(last, bytes);
        }
        self.advance_commit(out);
    }

    /// Puts an entry at the end of the log and into this step's write.
    pub(super) fn append(&mut self, entry: Entry) {
        let index = entry.position.index;
        let config = (entry.kind == EntryKind::Config as u8).then(|| entry.head.clone());
        self.batch.entries.push(entry.clone());
        self.log.append(entry);
        if let Some(head) = config {
            self.adopt_config(index, head);
        }
    }

    /// Sends every peer what it lacks and its window allows, and the commit if it may not know it.
    pub(super) fn replicate(&mut self, out: &mut Effects<RaftMsg>) {
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        let Leader { peers, snapshots, .. } = &mut *lead;
        for (&node, peer) in peers.iter_mut() {
            self.replicate_to(node, peer, out);
            self.tell_commit(node, peer, out);
            self.drive_snapshot(node, peer, snapshots, out);
        }
        self.lead = Some(lead);
    }

    fn replicate_to(&mut self, node: NodeId, peer: &mut Progress, out: &mut Effects<RaftMsg>) {
        let last = self.log.last().index;
        while peer.next <= last && peer.may_send(&self.cfg) {
            let Some(prev) = self.log.position_at(peer.next.prev()) else {
                peer.snapshot();
                return;
            };
            match self.log.cached(peer.next, last, self.cfg.append_bytes_max) {
                Some((entries, bytes)) => self.send_append(node, peer, prev, entries, bytes, out),
                None => {
                    let req = self.next_fetch();
                    peer.fetch = Some(req);
                    let (first, last) = (peer.next, self.log.cache_first().prev());
                    out.push(Effect::Fetch { req, first, last, bytes_max: self.cfg.append_bytes_max });
                    return;
                }
            }
        }
    }

    fn send_append(
        &self,
        node: NodeId,
        peer: &mut Progress,
        prev: Position,
        entries: Vec<Entry>,
        bytes: usize,
        out: &mut Effects<RaftMsg>,
    ) {
        debug_assert_eq!(prev.index.next(), peer.next, "an append starts where the peer's log is thought to end");
        if let Some(last) = entries.last() {
            peer.sent(last.position.index, bytes, self.now);
        }
        peer.commit_told = self.commit;
        let msg = RaftMsg::Append { term: self.term, prev, commit: self.commit, matched: peer.matched, entries };
        self.send(node, Channel::Log, msg, IoSeq::NONE, out);
    }

    pub(super) fn tell_commit(&self, node: NodeId, peer: &mut Progress, out: &mut Effects<RaftMsg>) {
        if peer.state == State::Replicate
            && peer.commit_told < self.commit
            && let Some(prev) = self.log.position_at(peer.next.prev())
        {
            self.send_append(node, peer, prev, Vec::new(), 0, out);
        }
    }

    pub(super) fn broadcast_heartbeat(&mut self, out: &mut Effects<RaftMsg>) {
        let round = self.next_round();
        self.send_heartbeats(round, out);
    }

    pub(super) fn send_heartbeats(&mut self, count: u64, out: &mut Effects<RaftMsg>) {
        let (term, now) = (self.term, self.now);
        let round = RoundId { boot: self.cfg.boot, count };
        let next = now.after(self.cfg.heartbeat);
        let Some(lead) = self.lead.as_mut() else {
            return;
        };
        lead.heartbeat_at = next;
        if lead.rounds.len() == ROUNDS_MAX {
            lead.rounds.pop_front();
        }
        lead.rounds.push_back((count, now));
        for (&node, peer) in &lead.peers {
            let commit = self.commit.min(peer.matched);
            let msg = RaftMsg::Heartbeat { term, commit, matched: peer.matched, round };
            out.push(Effect::Send { to: node, channel: Channel::Heartbeat, msg, after: IoSeq::NONE });
        }
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: NodeId, term: Epoch, round: RoundId, out: &mut Effects<RaftMsg>) {
        let (now, boot) = (self.now, self.cfg.boot);
        let quick = Nanos(self.cfg.heartbeat.0 * 2);
        let patient = Nanos(self.cfg.election_min.0 / 2).max(quick);
        let Some((lead, peer)) = self.peer_of_term(from, term) else {
            return;
        };
        peer.heard_at = now;
        if round.boot == boot && round.count >= peer.round {
            peer.round = round.count;
            let sent_at = lead.iter().find(|(count, _)| *count == round.count);
            peer.round_sent_at = sent_at.map_or(peer.round_sent_at, |(_, at)| peer.round_sent_at.max(*at));
        }
        let patience = if peer.state == State::Probe { quick } else { patient };
        if peer.stalled(now, patience) {
            let next = if peer.state == State::Probe { peer.next } else { peer.matched.next() };
            peer.probe(next);
        }
        self.confirm_reads(out);
    }

    /// What this leader knows of `from`, when the message is of this term; and the rounds it sent.
    fn peer_of_term(
        &mut self,
        from: NodeId,
        term: Epoch,
    ) -> Option<(&std::collections::VecDeque<(u64, Nanos)>, &mut Progress)> {
        if term != self.term {
            return None;
        }
        let lead = self.lead.as_mut()?;
        lead.peers.get_mut(&from).map(|peer| (&lead.rounds, peer))
    }

    pub(super) fn on_append_reply(
        &mut self,
        from: NodeId,
        term: Epoch,
        outcome: AppendOutcome,
        out: &mut Effects<RaftMsg>,
    ) {
        let (now, last) = (self.now, self.log.last().index);
        let base = self.log.base().index;
        let agreed = match outcome {
            AppendOutcome::Rejected { hint, .. } if hint.index >= base => {
                self.log.last_at_most(hint.index, hint.epoch).index
            }
            AppendOutcome::Rejected { hint, .. } => hint.index,
            AppendOutcome::Matched(index) => index,
        };
        let Some((_, peer)) = self.peer_of_term(from, term) else {
            return;
        };
        peer.heard_at = now;
        match outcome {
            AppendOutcome::Matched(index) if index > last => {
                tracing::warn!(peer = %from, "a follower confirms entries nobody sent it");
            }
            AppendOutcome::Matched(index) => {
                if peer.confirm(index, now) {
                    self.advance_commit(out);
                    self.drive_transfer(out);
                }
            }
            AppendOutcome::Rejected { prev, .. } => {
                // A refusal of what was confirmed since, or of an older probe, is late.
                let late = match peer.state {
                    State::Probe => prev.next() != peer.next,
                    State::Replicate => prev <= peer.matched,
                    State::Snapshot => true,
                };
                if !late {
                    peer.probe(agreed.min(prev.prev()).next());
                }
            }
        }
    }

    /// Commits what a quorum holds durably (5.3, 5.4.2), and what follows from it.
    pub(super) fn advance_commit(&mut self, out: &mut Effects<RaftMsg>) {
        while self.role == Role::Leader {
            let index = self.quorum_index();
            let countable = self.log.epoch_at(index) == Some(self.term) || self.mutant_commit_older_term();
            if index <= self.commit || !countable {
                return;
            }
            self.commit_to(index, out);
            self.drive_reads(out);
        }
    }

    /// The largest index a quorum of the configuration in force holds durably.
    fn quorum_index(&self) -> Index {
        let Some(lead) = self.lead.as_ref() else {
            return Index::ZERO;
        };
        let own = if self.mutant_apply_before_durable() { self.log.last().index } else { self.io.durable_last };
        let holds = |node: &NodeId| {
            if *node == self.cfg.node { own } else { lead.peers.get(node).map_or(Index::ZERO, |peer| peer.matched) }
        };
        let config = self.config();
        [&config.voters, &config.outgoing]
            .into_iter()
            .filter(|half| !half.is_empty())
            .map(|half| {
                // Halves are small: for each member's index, how many hold at least that.
                let reached = |index: Index| half.iter().filter(|node| holds(node) >= index).count() * 2 > half.len();
                half.iter().map(holds).filter(|index| reached(*index)).max().unwrap_or_default()
            })
            .min()
            .unwrap_or_default()
    }
}

// The follower.
impl Raft {
    /// A message that only a leader sends: follows it, unless it is deposed or this replica must not confirm anything.
    pub(super) fn hear_leader(
        &mut self,
        from: NodeId,
        term: Epoch,
        matched: Index,
        out: &mut Effects<RaftMsg>,
    ) -> bool {
        if term < self.term {
            let msg = RaftMsg::HeartbeatReply { term: self.term, round: RoundId::default() };
            self.send(from, Channel::Heartbeat, msg, self.after_hard(), out);
            return false;
        }
        debug_assert_eq!(term, self.term, "a newer term is followed first");
        if self.role == Role::Leader || self.leader.is_some_and(|leader| leader != from) {
            tracing::error!(peer = %from, ?term, "two leaders in one term");
            return false;
        }
        self.become_follower(term, Some(from), out);
        self.leader_heard_at = Some(self.now);
        self.restart_election_timer();
        if self.log.last().index < matched && !self.amnesia {
            tracing::error!(?matched, last = ?self.log.last(), "this disk lost entries that it had confirmed");
            self.amnesia = true;
            out.push(Effect::Forgot);
        }
        !self.amnesia
    }

    pub(super) fn on_heartbeat(
        &mut self,
        from: NodeId,
        term: Epoch,
        commit: Index,
        matched: Index,
        round: RoundId,
        out: &mut Effects<RaftMsg>,
    ) {
        if !self.hear_leader(from, term, matched, out) {
            return;
        }
        // At most `matched`, up to which the two logs are known equal.
        if commit <= matched && !self.is_installing() {
            self.commit_to(commit, out);
        }
        let msg = RaftMsg::HeartbeatReply { term: self.term, round };
        self.send(from, Channel::Heartbeat, msg, self.after_hard(), out);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_append(
        &mut self,
        from: NodeId,
        term: Epoch,
        prev: Position,
        commit: Index,
        matched: Index,
        entries: Vec<Entry>,
        out: &mut Effects<RaftMsg>,
    ) {
        if !self.hear_leader(from, term, matched, out) || self.is_installing() {
            return;
        }
        if prev.index < self.commit {
            // Late or repeated: what is committed here the leader has too (R4).
            self.confirm_to(from, self.commit, out);
            return;
        }
        if !self.log.matches(prev) && !self.mutant_no_log_match(prev) {
            let hint = self.log.last_at_most(prev.index, prev.epoch);
            let outcome = AppendOutcome::Rejected { prev: prev.index, hint };
            let msg = RaftMsg::AppendReply { term: self.term, outcome };
            self.send(from, Channel::Log, msg, self.after_hard(), out);
            return;
        }
        let (last_new, asked) = (Index(prev.index.0 + entries.len() as u64), !entries.is_empty());
        if !self.take_entries(entries) {
            return;
        }
        self.commit_to(commit.min(last_new), out);
        if asked {
            self.confirm_to(from, last_new, out);
        }
    }

    /// Appends what is new, cutting what conflicts; whether the message was sound.
    fn take_entries(&mut self, entries: Vec<Entry>) -> bool {
        let sound = |entry: &Entry| {
            entry.kind != EntryKind::Config as u8
                || ConfigEntry::decode(entry.head.clone()).is_ok_and(|e| !e.config.voters.is_empty())
        };
        let known = |entry: &Entry| self.log.matches(entry.position);
        let new = entries.iter().position(|entry| !known(entry)).unwrap_or(entries.len());
        let Some(first) = entries.get(new).map(|entry| entry.position.index) else {
            return true;
        };
        if first <= self.commit || !entries.iter().skip(new).all(sound) {
            tracing::error!(?first, commit = ?self.commit, "a leader's append contradicts what is committed, or itself");
            return false;
        }
        if first <= self.log.last().index {
            self.truncate_from(first);
        }
        entries.into_iter().skip(new).for_each(|entry| self.append(entry));
        true
    }

    fn truncate_from(&mut self, index: Index) {
        assert!(index > self.commit, "R4: a truncation reaches into what is committed");
        assert!(self.batch.entries.is_empty(), "a step truncates before it appends");
        self.log.truncate_from(index);
        let kept_pending = self.mutant_stale_completion();
        self.io.truncate_from(index, kept_pending);
        self.batch.truncate_from = Some(index);
        if self.configs.truncate_from(index) {
            self.batch.state = true;
        }
    }

    /// Tells the leader that everything ≤ `index` is here, as soon as it is durable.
    pub(super) fn confirm_to(&self, leader: NodeId, index: Index, out: &mut Effects<RaftMsg>) {
        let msg = RaftMsg::AppendReply { term: self.term, outcome: AppendOutcome::Matched(index) };
        self.send(leader, Channel::Log, msg, self.after_hard().max(self.io.covers(index)), out);
    }
}

// Both.
impl Raft {
    pub(super) fn commit_to(&mut self, index: Index, out: &mut Effects<RaftMsg>) {
        if index <= self.commit {
            return;
        }
        assert!(index <= self.log.last().index, "G7: a commit beyond the log");
        let before = std::mem::replace(&mut self.commit, index);
        if let Some(lead) = self.lead.as_mut() {
            lead.uncommitted.commit(index);
        }
        let config_at = self.configs.latest().0;
        if config_at > before && config_at <= index {
            self.on_config_committed(out);
        } else if self.lead.as_ref().is_some_and(|lead| lead.first > before && lead.first <= index) {
            // The first commit of a new leader: an older leader's joint configuration may wait to be left.
            self.on_config_committed(out);
        }
    }

    /// Hands committed entries to the state machine; each batch waits until it is durable here.
    pub(super) fn emit_applies(&mut self, out: &mut Effects<RaftMsg>) {
        while self.applying < self.commit
            && self.apply_ahead_bytes < APPLY_AHEAD_BYTES_MAX
            && self.apply_fetch.is_none()
            && !self.is_installing()
        {
            let first = self.applying.next();
            match self.log.cached(first, self.commit, APPLY_BYTES_MAX) {
                Some((entries, bytes)) => self.emit_apply(entries, bytes, out),
                None => {
                    let req = self.next_fetch();
                    self.apply_fetch = Some(req);
                    let last = self.commit.min(self.log.cache_first().prev());
                    out.push(Effect::Fetch { req, first, last, bytes_max: APPLY_BYTES_MAX });
                }
            }
        }
    }

    fn emit_apply(&mut self, entries: Vec<Entry>, bytes: usize, out: &mut Effects<RaftMsg>) {
        let Some(last) = entries.last().map(|entry| entry.position.index) else {
            unreachable!("an apply of nothing");
        };
        assert!(last <= self.commit, "G7: applying beyond the commit");
        self.applying = last;
        self.apply_ahead.push_back((last, bytes));
        self.apply_ahead_bytes += bytes;
        let after = if self.mutant_apply_before_durable() { IoSeq::NONE } else { self.io.covers(last) };
        out.push(Effect::Apply { entries, after });
    }

    pub(super) fn on_applied(&mut self, upto: Index) {
        assert!(upto <= self.applying, "the state machine reports what it was not given");
        self.applied = self.applied.max(upto);
        while self.apply_ahead.front().is_some_and(|(last, _)| *last <= upto) {
            self.apply_ahead_bytes -= self.apply_ahead.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    /// Entries came from our disk. A late answer, of a log that has changed since, is recognised and dropped.
    pub(super) fn on_entries(&mut self, req: FetchId, entries: Option<Vec<Entry>>, out: &mut Effects<RaftMsg>) {
        if self.apply_fetch == Some(req) {
            self.apply_fetch = None;
            match entries {
                Some(mut entries) if self.log.confirms(self.applying.next(), &entries) => {
                    let commit = self.commit;
                    entries.retain(|entry| entry.position.index <= commit);
                    let bytes = entries.iter().map(cost).sum();
                    self.emit_apply(entries, bytes, out);
                }
                Some(_) => {}
                None => self.on_io_failed(out),
            }
            return;
        }
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        if let Some((&node, peer)) = lead.peers.iter_mut().find(|(_, peer)| peer.fetch == Some(req)) {
            peer.fetch = None;
            if let Some(entries) = entries
                && self.log.confirms(peer.next, &entries)
                && peer.may_send(&self.cfg)
                && let Some(prev) = self.log.position_at(peer.next.prev())
            {
                let bytes = entries.iter().map(cost).sum();
                self.send_append(node, peer, prev, entries, bytes, out);
            }
        }
        self.lead = Some(lead);
    }

    /// The state machine holds everything ≤ `upto` durably. Keeps what lagging followers are likely to need.
    pub(super) fn on_compact(&mut self, upto: Index, out: &mut Effects<RaftMsg>) {
        let upto = upto.min(self.applied).min(self.io.durable_last);
        let mut target = upto.0.saturating_sub(self.cfg.keep_entries);
        // A peer that is being sent a snapshot needs the entries above it next, or it would need another at once.
        let patience = self.cfg.keep_entries.max(SENDING_KEEP_ENTRIES_MIN).saturating_mul(8);
        let sending = self.lead.iter().flat_map(|lead| lead.peers.values()).filter_map(Progress::sending_position);
        for position in sending.filter(|position| upto.0 - position.index.0.min(upto.0) <= patience) {
            target = target.min(position.index.0);
        }
        if Index(target) > self.log.base().index {
            self.log.release(Index(target));
            self.configs.release(Index(target));
            out.push(Effect::Release { upto: Index(target) });
        }
    }
}

/// What is kept above a snapshot on its way, even where `keep_entries` is small.
const SENDING_KEEP_ENTRIES_MIN: u64 = 1_024;
