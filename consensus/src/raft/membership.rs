//! Membership changes (thesis 4): single steps, and joint consensus (4.3) for replacing a voter.
//!
//! 1. A configuration is in force from its append on, on every replica, committed or not; a truncation takes it back.
//! 2. At most one configuration is uncommitted, and none is proposed before this leader committed in its own term
//!    (the 2015 single-server bug).
//! 3. While joint, both majorities decide everything; when the joint entry commits, the leader leaves it by itself.
//! 4. A removed replica keeps receiving the log until its removal commits, and that commit is the last it is told.

use std::collections::BTreeSet;

use bytes::Bytes;
use triune_storage::{Entry, Index, IoSeq, Position};
use triune_transport::{Channel, NodeId};

use super::{Raft, progress::Progress, wire::RaftMsg};
use crate::{AdminError, AdminId, ConfigChange, ConfigEntry, Configuration, Effect, Effects, EntryKind, Role};

impl Raft {
    /// The configuration in force.
    pub(super) fn config(&self) -> &Configuration {
        #[cfg(feature = "mutants")]
        if self.cfg.mutant == Some(crate::Mutant::ConfigAtApply) {
            return &self.configs.at(self.applied).1;
        }
        &self.configs.latest().1
    }

    pub(super) fn on_change(&mut self, id: AdminId, change: &ConfigChange, context: Bytes, out: &mut Effects<RaftMsg>) {
        match self.changed(change) {
            Ok(config) => {
                let index = self.append_config(config, context);
                if let Some(lead) = self.lead.as_mut() {
                    lead.change = Some((id, index));
                }
                self.advance_commit(out);
            }
            Err(error) => out.push(Effect::Admin { id, outcome: Err(error) }),
        }
    }

    /// The configuration after `change`, if it may be made now.
    fn changed(&self, change: &ConfigChange) -> Result<Configuration, AdminError> {
        let Some(lead) = self.lead.as_ref() else {
            return Err(AdminError::NotLeader { leader: self.leader });
        };
        if !self.has_committed_in_term() {
            return Err(AdminError::NotReady);
        }
        let (index, config) = self.configs.latest();
        if *index > self.commit || config.is_joint() || lead.change.is_some() || self.transfer.is_some() {
            return Err(AdminError::InProgress);
        }
        // One that never answered this leader, or not lately, would be a dead voter, however short the log is.
        let caught_up = |node: &NodeId| {
            lead.peers.get(node).is_some_and(|peer| {
                peer.matched > Index::ZERO
                    && peer.matched.0 + self.cfg.promote_lag_max >= self.commit.0
                    && self.now.since(peer.heard_at) < self.cfg.election_min
            })
        };
        let mut next = config.clone();
        match change {
            ConfigChange::AddLearner(node) => {
                if node.0 == 0 || config.contains(*node) {
                    return Err(AdminError::Invalid("the replica is there already"));
                }
                next.learners.insert(*node);
            }
            ConfigChange::Promote(node) => {
                if !next.learners.remove(node) {
                    return Err(AdminError::Invalid("the replica is no learner"));
                }
                if !caught_up(node) {
                    return Err(AdminError::LearnerLags);
                }
                next.voters.insert(*node);
            }
            ConfigChange::Remove(node) => {
                if !next.voters.remove(node) && !next.learners.remove(node) {
                    return Err(AdminError::Invalid("the replica is not there"));
                }
                if next.voters.is_empty() {
                    return Err(AdminError::Invalid("the last voter cannot go"));
                }
            }
            ConfigChange::Replace { old, new } => {
                next.outgoing = next.voters.clone();
                if !next.voters.remove(old) {
                    return Err(AdminError::Invalid("the replica to replace is no voter"));
                }
                if !next.learners.remove(new) {
                    return Err(AdminError::Invalid("the replacement is no learner"));
                }
                if !caught_up(new) {
                    return Err(AdminError::LearnerLags);
                }
                next.voters.insert(*new);
            }
        }
        Ok(next)
    }

    fn append_config(&mut self, config: Configuration, context: Bytes) -> Index {
        assert_eq!(self.role, Role::Leader, "only a leader changes the configuration");
        let index = self.log.last().index.next();
        let head = ConfigEntry { config, context }.encode();
        let position = Position { epoch: self.term, index };
        self.append(Entry { position, kind: EntryKind::Config as u8, head, sections: Vec::new() });
        index
    }

    /// Notes the configuration the entry just appended at `index` carries.
    pub(super) fn adopt_config(&mut self, index: Index, head: Bytes) {
        let decoded = ConfigEntry::decode(head).expect("configurations are checked before they are appended");
        self.configs.push(index, decoded.config);
        self.batch.state = true;
        self.follow_configuration();
    }

    /// A leader talks to everybody in force, and to those being removed until that is committed.
    pub(super) fn follow_configuration(&mut self) {
        let (me, now, last) = (self.cfg.node, self.now, self.log.last().index);
        let (index, config) = self.configs.latest();
        let mut members: BTreeSet<NodeId> = config.members();
        members.extend(self.config().members());
        if *index > self.commit
            && let Some(old) = self.configs.previous()
        {
            members.extend(old.members());
        }
        if let Some(lead) = self.lead.as_mut() {
            // A peer that joins later is probed with the last entry at once: there may be no next one for long.
            let known = if last < lead.first { last } else { last.prev() };
            lead.peers.retain(|node, _| members.contains(node));
            for node in members.into_iter().filter(|node| *node != me) {
                lead.peers.entry(node).or_insert_with(|| Progress::new(known, now));
            }
        }
    }

    /// The commit passed a configuration: leave joint, answer, step down where removed.
    pub(super) fn on_config_committed(&mut self, out: &mut Effects<RaftMsg>) {
        self.tell_leaving(out);
        self.follow_configuration();
        let (index, config) = self.configs.latest();
        let (index, joint, voter) = (*index, config.is_joint(), config.is_voter(self.cfg.node));
        if self.role != Role::Leader || index > self.commit || !self.has_committed_in_term() {
            return;
        }
        if joint {
            let config = Configuration { outgoing: BTreeSet::new(), ..config.clone() };
            let index = self.append_config(config, Bytes::new());
            if let Some((_, at)) = self.lead.as_mut().and_then(|lead| lead.change.as_mut()) {
                *at = index;
            }
            return;
        }
        if let Some((id, _)) = self.lead.as_mut().and_then(|lead| lead.change.take_if(|(_, at)| *at <= index)) {
            out.push(Effect::Admin { id, outcome: Ok(()) });
        }
        if !voter {
            self.leave(out);
        }
    }

    /// Tells those whose removal just committed so, that they campaign no more. Once: nobody depends on it.
    fn tell_leaving(&mut self, out: &mut Effects<RaftMsg>) {
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        for (&node, peer) in lead.peers.iter_mut().filter(|(node, _)| !self.config().contains(**node)) {
            self.tell_commit(node, peer, out);
        }
        self.lead = Some(lead);
    }

    /// This leader is removed: it tells the rest what is committed, names a successor and steps down.
    fn leave(&mut self, out: &mut Effects<RaftMsg>) {
        self.replicate(out);
        let (successor, term) = (self.best_follower(), self.term);
        if let Some(node) = successor {
            self.send(node, Channel::Vote, RaftMsg::TimeoutNow { term }, IoSeq::NONE, out);
        }
        self.become_follower(term, None, out);
    }
}
