//! Leadership transfer (thesis 3.10): stop proposing, bring the target up to date, tell it to campaign; with a deadline.
//!
//! 1. From `TimeoutNow` on this leader serves no lease read in its term: that message lifts the voters' promise, and
//!    it may arrive late, even after the transfer was given up.
//! 2. At the deadline the transfer ends, whatever became of the target, and proposals are taken again.

use triune_storage::IoSeq;
use triune_transport::{Channel, Nanos, NodeId};

use super::{Raft, wire::RaftMsg};
use crate::{AdminError, AdminId, Effect, Effects, Role};

/// A transfer asked for. It outlives the leadership, so that its asker learns how it ended.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    /// Who asked; `None` for the leader's own, when it was removed.
    id: Option<AdminId>,
    pub(super) target: NodeId,
    pub(super) deadline: Nanos,
    told: bool,
}

impl Raft {
    pub(super) fn on_transfer(&mut self, id: AdminId, to: Option<NodeId>, out: &mut Effects<RaftMsg>) {
        match self.transfer_target(to) {
            Ok(target) if target == self.cfg.node => out.push(Effect::Admin { id, outcome: Ok(()) }),
            Ok(target) => self.begin_transfer(Some(id), target, out),
            Err(error) => out.push(Effect::Admin { id, outcome: Err(error) }),
        }
    }

    fn transfer_target(&self, to: Option<NodeId>) -> Result<NodeId, AdminError> {
        if self.role != Role::Leader {
            return Err(AdminError::NotLeader { leader: self.leader });
        }
        if self.transfer.is_some() {
            return Err(AdminError::InProgress);
        }
        match to.or_else(|| self.best_follower()) {
            Some(node) if self.config().voters.contains(&node) => Ok(node),
            _ => Err(AdminError::Invalid("the target is no voter")),
        }
    }

    /// The voter that was heard lately and holds most of the log.
    pub(super) fn best_follower(&self) -> Option<NodeId> {
        let lead = self.lead.as_ref()?;
        let heard = |at: Nanos| self.now.since(at) < self.cfg.election_min;
        let voters =
            lead.peers.iter().filter(|(node, peer)| self.config().voters.contains(node) && heard(peer.heard_at));
        voters.max_by_key(|(node, peer)| (peer.matched, **node)).map(|(node, _)| *node)
    }

    fn begin_transfer(&mut self, id: Option<AdminId>, target: NodeId, out: &mut Effects<RaftMsg>) {
        let deadline = self.now.after(self.cfg.election_max);
        self.transfer = Some(Transfer { id, target, deadline, told: false });
        self.drive_transfer(out);
    }

    /// Tells the target to campaign as soon as it holds the whole log.
    pub(super) fn drive_transfer(&mut self, out: &mut Effects<RaftMsg>) {
        let (Some(lead), Some(transfer)) = (self.lead.as_mut(), self.transfer.as_mut()) else {
            return;
        };
        let whole = lead.peers.get(&transfer.target).is_some_and(|peer| peer.matched == self.log.last().index);
        if whole && !transfer.told {
            transfer.told = true;
            lead.lease_void = true;
            let (target, term) = (transfer.target, self.term);
            self.send(target, Channel::Vote, RaftMsg::TimeoutNow { term }, IoSeq::NONE, out);
        }
    }

    pub(super) fn on_timeout_now(&mut self, out: &mut Effects<RaftMsg>) {
        if self.role != Role::Leader && self.may_campaign() {
            self.become_candidate(true, out);
        }
    }

    /// Whether proposals are held off.
    pub(super) const fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// A leader of this term became known: how the transfer ended.
    pub(super) fn settle_transfer(&mut self, out: &mut Effects<RaftMsg>) {
        let Some(transfer) = self.transfer.take() else {
            return;
        };
        let outcome = if self.leader == Some(transfer.target) { Ok(()) } else { Err(AdminError::Unknown) };
        if let Some(id) = transfer.id {
            out.push(Effect::Admin { id, outcome });
        }
    }

    pub(super) fn expire_transfer(&mut self, out: &mut Effects<RaftMsg>) {
        if self.transfer.as_ref().is_some_and(|transfer| self.now >= transfer.deadline)
            && let Some(Transfer { id: Some(id), .. }) = self.transfer.take()
        {
            out.push(Effect::Admin { id, outcome: Err(AdminError::TimedOut) });
        }
    }
}
