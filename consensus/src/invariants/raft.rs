//! Raft's promises over a whole cluster, checked from outside: a cluster that keeps them is correct whatever it does.
//!
//! | check | says | called |
//! |--|--|--|
//! | G1, R5 | one command at one position, everywhere | [`Observer::applied`] |
//! | G4, R7 | nothing is said that the sender's disk does not hold | [`Observer::sent`] |
//! | G5, R8 | what is newly committed is durable on a quorum of the configuration in force | [`Observer::stepped`] |
//! | G6 | terms, commits and applied marks never go back | `stepped`, [`Observer::restarted`] |
//! | G7 | released ≤ applied ≤ committed ≤ last | [`crate::raft::Raft::check_invariants`] |
//! | G9 | a read's index is not below what was applied anywhere when it began | [`Observer::read`] |
//! | R1 | one leader a term | `stepped` |
//! | R2 | a leader only appends | [`Observer::written`] |
//! | R3 | one entry, one content, one predecessor | `written` |
//! | R4 | a leader holds everything committed | `stepped` |
//! | R6 | counting commits entries of the leader's own term | `stepped` |
//! | R8 | one uncommitted configuration | `stepped` |
//! | R9, G10 | what a follower confirms is durable there and equals the leader's log | `sent` |
//! | R10 | a snapshot ends at a committed position, above the commit | [`Observer::installed`] |
//!
//! Each panics with its name; a simulation turns that into a failed seed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use triune_storage::{Entry, Epoch, Index, Position, StreamBatch};
use triune_transport::NodeId;

use super::Image;
use crate::raft::{AppendOutcome, Raft, RaftMsg, RaftState, hard_state_of};
use crate::{Role, SnapshotMark};

/// A view of the whole cluster that only the checker has.
pub trait Cluster {
    /// The replica, while it is up.
    fn replica(&self, node: NodeId) -> Option<&Raft>;
    /// What its disk durably holds, up or not.
    fn image(&self, node: NodeId) -> Option<&Image>;
}

/// Remembers what was promised, and checks that it is kept.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    /// What is committed, by index - 1: the entry's epoch, and the term of the leader that committed it.
    committed: Vec<(Epoch, Epoch)>,
    /// What was applied, by index - 1: a hash of the entry.
    applied: Vec<u64>,
    /// Every entry ever written: a hash of its content, and the epoch before it.
    entries: BTreeMap<Position, (u64, Epoch)>,
    leaders: BTreeMap<Epoch, NodeId>,
    /// For whom each disk voted, and where its log ended then.
    votes: BTreeMap<(NodeId, Epoch), (NodeId, Position)>,
    seen: BTreeMap<NodeId, Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    state: RaftState,
    /// The highest term it said anything in.
    spoken: Epoch,
}

impl Observer {
    /// An observer of a cluster that begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// The highest index anybody applied.
    pub fn applied_max(&self) -> Index {
        Index(self.applied.len() as u64)
    }

    /// A write was asked for (it is not durable yet).
    pub fn written(&mut self, node: NodeId, replica: &Raft, batch: &StreamBatch) {
        let state = replica.state();
        if batch.truncate_from.is_some() {
            assert_ne!(state.role, Role::Leader, "R2: leader {node} truncated its log");
        }
        for entry in &batch.entries {
            let at = entry.position;
            let Some(before) = self.epoch_before(replica, entry, batch) else {
                continue;
            };
            let now = (content(entry), before);
            let first = *self.entries.entry(at).or_insert(now);
            assert_eq!(first, now, "R3: {node} holds another entry at {at:?}, or another before it");
        }
    }

    fn epoch_before(&self, replica: &Raft, entry: &Entry, batch: &StreamBatch) -> Option<Epoch> {
        let before = entry.position.index.prev();
        let within = batch.entries.iter().find(|e| e.position.index == before);
        within.map(|e| e.position.epoch).or_else(|| replica.epoch_at(before))
    }

    /// The image of `node` just became `image`.
    pub fn durable(&mut self, node: NodeId, image: &Image) {
        let Some((term, Some(vote))) = image.state.as_ref().and_then(hard_state_of) else {
            return;
        };
        let (first, _) = *self.votes.entry((node, term)).or_insert_with(|| (vote, image.last()));
        assert_eq!(first, vote, "R7: {node} voted twice in {term:?}");
    }

    /// A message leaves `from`.
    pub fn sent(&mut self, from: NodeId, to: NodeId, msg: &RaftMsg, cluster: &impl Cluster) {
        let Some(term) = msg.term() else {
            return;
        };
        if matches!(msg, RaftMsg::PreVote { .. } | RaftMsg::PreVoteReply { granted: true, .. }) {
            return;
        }
        let image = cluster.image(from).expect("a sender has a disk");
        let (durable, _) = image.state.as_ref().and_then(hard_state_of).unwrap_or_default();
        assert!(term <= durable, "G4: {from} speaks of {term:?}, its disk knows {durable:?}");
        let seen = self.seen.entry(from).or_default();
        seen.spoken = seen.spoken.max(term);
        match msg {
            RaftMsg::VoteReply { granted: true, .. } => {
                let vote = self.votes.get(&(from, term)).map(|(vote, _)| *vote);
                assert_eq!(vote, Some(to), "G4: {from} grants {to} a vote its disk does not hold");
            }
            RaftMsg::Vote { last, .. } => {
                let own = self.votes.get(&(from, term)).filter(|(vote, _)| *vote == from);
                let held = own.map(|(_, held)| (*held).max(image.applied));
                assert!(own.is_some(), "G4: {from} campaigns without a durable vote for itself");
                assert!(held >= Some(*last), "G4: {from} campaigns with a log its disk lacks");
            }
            RaftMsg::AppendReply { outcome: AppendOutcome::Matched(index), .. } => {
                self.confirmed(from, to, term, *index, cluster);
            }
            RaftMsg::Append { .. } | RaftMsg::Heartbeat { .. } | RaftMsg::Offer { .. } | RaftMsg::Chunk { .. } => {
                assert_eq!(self.leaders.get(&term), Some(&from), "R1: {from} speaks as leader of {term:?}");
            }
            _ => {}
        }
    }

    fn confirmed(&self, from: NodeId, to: NodeId, term: Epoch, index: Index, cluster: &impl Cluster) {
        let image = cluster.image(from).expect("a sender has a disk");
        let (durable, _) = image.state.as_ref().and_then(hard_state_of).unwrap_or_default();
        if durable > term {
            return;
        }
        let held = image.last().index.max(image.applied.index);
        assert!(index <= held, "G4: {from} confirms {index:?}, its disk ends at {held:?}");
        let leader = cluster.replica(to).filter(|raft| raft.state().role == Role::Leader && raft.state().term == term);
        let theirs = leader.and_then(|raft| raft.epoch_at(index));
        let ours = image.entry(index).map(|entry| entry.position.epoch);
        if let (Some(theirs), Some(ours)) = (theirs, ours) {
            assert_eq!(ours, theirs, "R9: {from} confirms {index:?} to {to}, whose entry there is another");
        }
    }

    /// `node` took an input.
    pub fn stepped(&mut self, node: NodeId, cluster: &impl Cluster) {
        let Some(replica) = cluster.replica(node) else {
            return;
        };
        let state = replica.state();
        let before = self.seen.get(&node).map_or_else(RaftState::default, |seen| seen.state);
        assert!(state.term >= before.term, "G6: {node} went back from {:?} to {:?}", before.term, state.term);
        assert!(state.commit >= before.commit, "G6: the commit of {node} went back");
        assert!(state.applied >= before.applied, "G6: the applied mark of {node} went back");
        assert!(state.base >= before.base, "G7: the base of {node} went back");
        if state.role == Role::Leader {
            self.led(node, replica, &state, &before);
        }
        if state.commit > before.commit {
            // A leader that commits its own removal steps down in the same step.
            let led = [before, state].iter().any(|at| at.role == Role::Leader && at.term == state.term);
            self.committed(node, replica, &state, led, cluster);
        }
        self.seen.entry(node).or_default().state = state;
    }

    fn led(&mut self, node: NodeId, replica: &Raft, state: &RaftState, before: &RaftState) {
        let first = *self.leaders.entry(state.term).or_insert(node);
        assert_eq!(first, node, "R1: two leaders in {:?}", state.term);
        if before.role != Role::Leader || before.term != state.term {
            // A leader elected late, in a term already over, need not hold what newer terms committed.
            for (index, (epoch, by)) in (1..).zip(&self.committed) {
                let index = Index(index);
                if index >= state.base && *by < state.term {
                    let held = replica.epoch_at(index);
                    assert_eq!(held, Some(*epoch), "R4: new leader {node} lacks the committed entry {index:?}");
                }
            }
            return;
        }
        if state.config_index > before.config_index {
            let own = replica.epoch_at(state.commit) == Some(state.term);
            assert!(own, "R8: leader {node} changes the configuration before it committed in its term");
            assert!(before.config_index <= state.commit, "R8: two uncommitted configurations at {node}");
        }
    }

    fn committed(&mut self, node: NodeId, replica: &Raft, state: &RaftState, led: bool, cluster: &impl Cluster) {
        let known = self.committed.len() as u64;
        if state.commit.0 > known {
            assert!(led, "G5: {node} committed {:?} before any leader", state.commit);
            assert_eq!(replica.epoch_at(state.commit), Some(state.term), "R6: an older term's entry, by counting");
            let (_, config) = replica.configuration();
            for index in known + 1..=state.commit.0 {
                let epoch = replica.epoch_at(Index(index)).expect("a leader knows what it commits");
                let position = Position { epoch, index: Index(index) };
                let holds = |peer: NodeId| cluster.image(peer).is_some_and(|image| image.holds(position));
                assert!(config.is_quorum(holds), "G5: {position:?} committed without a durable quorum of {config:?}");
                self.committed.push((epoch, state.term));
            }
        }
        let epoch = self.committed_epoch(state.commit);
        let held = replica.epoch_at(state.commit);
        assert_eq!(held, epoch, "R5: {node} committed another entry at {:?}", state.commit);
    }

    fn committed_epoch(&self, index: Index) -> Option<Epoch> {
        let at = usize::try_from(index.0).ok()?.checked_sub(1)?;
        self.committed.get(at).map(|(epoch, _)| *epoch)
    }

    /// `node` hands an entry to its state machine.
    pub fn applied(&mut self, node: NodeId, entry: &Entry) {
        let at = entry.position;
        assert_eq!(self.committed_epoch(at.index), Some(at.epoch), "G1: {node} applies {at:?}, which is not committed");
        let hash = content(entry);
        let slot = usize::try_from(at.index.0).unwrap_or(usize::MAX) - 1;
        match self.applied.get(slot) {
            Some(first) => assert_eq!(*first, hash, "G1: {node} applies another command at {at:?}"),
            None => {
                assert_eq!(slot, self.applied.len(), "G1: {node} skipped entries before {at:?}");
                self.applied.push(hash);
            }
        }
    }

    /// A linearizable read that began when [`Observer::applied_max`] was `began_at` is let through from `index` on.
    pub fn read(&self, node: NodeId, began_at: Index, index: Index) {
        assert!(index >= began_at, "G9: a read at {node} is let through at {index:?}, {began_at:?} was applied before");
    }

    /// `node` replaced its state by a snapshot.
    pub fn installed(&self, node: NodeId, mark: &SnapshotMark) {
        let at = mark.position;
        assert_eq!(self.committed_epoch(at.index), Some(at.epoch), "R10: {node} installed {at:?}, not committed");
        let before = self.seen.get(&node).map_or(Index::ZERO, |seen| seen.state.commit);
        assert!(at.index > before, "R10: {node} installed a snapshot below its commit");
    }

    /// `node` starts again from its disk.
    pub fn restarted(&mut self, node: NodeId, replica: &Raft) {
        let seen = self.seen.entry(node).or_default();
        let state = replica.state();
        assert!(state.term >= seen.spoken, "G6: {node} forgot {:?}, in which it spoke", seen.spoken);
        seen.state = state;
    }
}

fn content(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.kind, &entry.head, &entry.sections).hash(&mut hasher);
    hasher.finish()
}
