//! Claims of Ongaro's thesis ("Consensus: Bridging Theory and Practice", 2014), one test each, with its section.
//!
//! Small clusters wired by a loop; where a claim is about one replica's answer to one message, the message is made by
//! hand. No test waits: time is a number that the test moves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![cfg(all(feature = "raft", feature = "check"))]

mod common;
mod pump;

use bytes::Bytes;
use pump::Pump;
use triune_consensus::raft::{AppendOutcome, RaftMsg, RoundId};
use triune_consensus::{
    AdminError, AdminOp, ConfigChange, Entry, EntryKind, Epoch, Index, Input, Position, Protocol, ReadMode, Role,
    SnapshotMark, SnapshotMeta,
};
use triune_transport::{LinkSession, Nanos, NodeId};

use common::Told;

/// Hands `to` a message as if `from` had sent it.
fn hand(pump: &mut Pump, from: u64, to: u64, msg: RaftMsg) {
    pump.step(NodeId(to), Input::Message { from: NodeId(from), link: LinkSession(1), msg });
}

/// Finishes the writes of a member, without letting its state machine answer.
fn sync(pump: &mut Pump, id: u64) {
    if let Some(seq) = pump.nodes.get_mut(&NodeId(id)).unwrap().sync(usize::MAX) {
        pump.step(NodeId(id), Input::Persisted(seq));
    }
}

/// What a member sent since the last call.
fn sent(pump: &mut Pump, from: u64) -> Vec<(u64, RaftMsg)> {
    let flying = std::mem::take(&mut pump.net);
    flying.into_iter().filter(|flying| flying.from == NodeId(from)).map(|flying| (flying.to.0, flying.msg)).collect()
}

fn change(pump: &mut Pump, leader: NodeId, change: ConfigChange) -> Option<Result<(), AdminError>> {
    let id = pump.admin(leader, AdminOp::Change { change, context: Bytes::new() });
    pump.settle();
    pump.told.iter().find_map(|(_, told)| match told {
        Told::Admin(of, outcome) if *of == id => Some(outcome.clone()),
        _ => None,
    })
}

/// Entries `first ..` of these terms, as a leader would send them.
fn entries(first: u64, terms: &[u64]) -> Vec<Entry> {
    let entry = |(term, index): (&u64, u64)| Entry {
        position: Position::new(*term, index),
        kind: EntryKind::Command as u8,
        head: common::put(index, *term),
        ..Entry::default()
    };
    terms.iter().zip(first..).map(entry).collect()
}

fn append(term: u64, prev: (u64, u64), commit: u64, entries: Vec<Entry>) -> RaftMsg {
    let prev = Position::new(prev.0, prev.1);
    RaftMsg::Append { term: Epoch(term), prev, commit: Index(commit), matched: Index::ZERO, entries }
}

fn heartbeat(term: u64) -> RaftMsg {
    let round = RoundId { boot: 9, count: 1 };
    RaftMsg::Heartbeat { term: Epoch(term), commit: Index::ZERO, matched: Index::ZERO, round }
}

fn vote(term: u64, last: (u64, u64)) -> RaftMsg {
    RaftMsg::Vote { term: Epoch(term), last: Position::new(last.0, last.1), transfer: false }
}

/// 3.4: a cluster that hears from nobody elects one leader.
#[test]
fn three_replicas_elect_one_leader() {
    let mut pump = Pump::new(3);
    let leader = pump.elect();
    let leaders = pump.nodes.values().filter(|node| pump.role(node.id()) == Role::Leader);
    assert_eq!(leaders.count(), 1);
    assert!(pump.nodes.keys().all(|id| pump.view(*id).leader == Some(leader)));
}

/// 3.5: what the leader takes is applied by all, in the same order.
#[test]
fn what_the_leader_takes_is_applied_by_all() {
    let mut pump = Pump::new(3);
    let leader = pump.elect();
    for value in 1..=10 {
        pump.put(leader, 0, value);
        pump.settle();
    }
    for node in pump.nodes.values() {
        assert_eq!(node.machine.registers[0], 10);
        assert_eq!(node.machine.digest, pump.nodes[&leader].machine.digest);
    }
}

/// 3.10: a leader that a failed transfer deposed and that wins again takes proposals at once.
#[test]
fn a_leader_elected_again_has_no_transfer_open() {
    let span = |cfg: &mut triune_consensus::Config| cfg.election_max = cfg.election_min.after(Nanos::from_millis(1));
    let mut pump = Pump::with(3, span);
    let leader = pump.elect_this(1);
    pump.admin(leader, AdminOp::Transfer { to: Some(NodeId(2)) });
    pump.settle_only(|flying| matches!(flying.msg, RaftMsg::TimeoutNow { .. }));
    pump.cut.extend([(NodeId(1), NodeId(2)), (NodeId(3), NodeId(2))]);
    pump.settle();
    assert_eq!(pump.role(leader), Role::Follower, "the target's campaign deposed it");
    pump.now = pump.nodes[&leader].raft().next_deadline().unwrap();
    pump.step(leader, Input::Timeout);
    pump.settle();
    assert_eq!(pump.role(leader), Role::Leader);
    let before = pump.view(leader).last.index;
    pump.put(leader, 0, 1);
    assert_eq!(pump.view(leader).last.index, before.next(), "the proposal was taken");
}

/// 4.2.1: a new server is brought up to date though no client writes.
#[test]
fn a_new_learner_catches_up_in_an_idle_cluster() {
    let mut pump = Pump::new(3);
    let leader = pump.elect();
    pump.put(leader, 0, 7);
    pump.settle();
    pump.add(4, None, |_| {});
    assert_eq!(change(&mut pump, leader, ConfigChange::AddLearner(NodeId(4))), Some(Ok(())));
    pump.pass(Nanos::from_secs(1));
    assert_eq!(pump.view(NodeId(4)).last, pump.view(leader).last);
    assert_eq!(pump.nodes[&NodeId(4)].machine.registers[0], 7);
    assert_eq!(pump.role(NodeId(4)), Role::Learner);
}

/// 4.2.1: a server that never caught up is not given a vote, however short the log is.
#[test]
fn a_learner_that_never_answered_is_not_promoted() {
    let mut pump = Pump::new(3);
    let leader = pump.elect();
    assert_eq!(change(&mut pump, leader, ConfigChange::AddLearner(NodeId(4))), Some(Ok(())));
    let outcome = change(&mut pump, leader, ConfigChange::Promote(NodeId(4)));
    assert_eq!(outcome, Some(Err(AdminError::LearnerLags)));
}

/// 5.3 (figure 5.3, step 6): a snapshot whose last entry the log has meanwhile got takes nothing away.
///
/// The suffix above it was acknowledged and may be committed, though this follower does not know of it yet.
#[test]
fn a_snapshot_overtaken_by_the_log_is_not_installed_over_it() {
    let mut pump = Pump::new(3);
    let mut machine = common::Machine::default();
    entries(1, &[5; 10]).iter().for_each(|entry| machine.apply(entry));
    let data = machine.encode();
    let mark =
        SnapshotMark { position: Position::new(5, 10), config: common::voters(1..=3), config_index: Index::ZERO };
    let meta = SnapshotMeta { mark, bytes: data.len() as u64, crc: 0 };
    hand(&mut pump, 1, 3, RaftMsg::Offer { term: Epoch(5), meta });
    hand(&mut pump, 1, 3, RaftMsg::Chunk { term: Epoch(5), position: Position::new(5, 10), offset: 0, data });
    // Before the disk has kept the chunk, the next leader sends the entries themselves.
    hand(&mut pump, 2, 3, append(6, (0, 0), 0, entries(1, &[5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 6])));
    sync(&mut pump, 3);
    let outcome = AppendOutcome::Matched(Index(12));
    assert!(sent(&mut pump, 3).contains(&(2, RaftMsg::AppendReply { term: Epoch(6), outcome })));
    // That leader falls silent.
    pump.now = pump.now.after(Nanos::from_secs(3));
    pump.step(NodeId(3), Input::Timeout);
    while pump.finish_io(NodeId(3)) {}
    assert_eq!(pump.view(NodeId(3)).last, Position::new(6, 12), "acknowledged entries are gone");
}

/// 6.4.1: within the shortest election timeout of hearing a leader no vote is given to another, whatever else happens:
/// that leader's lease may rest on it.
#[test]
fn a_newer_term_does_not_lift_the_promise_a_lease_rests_on() {
    let mut pump = Pump::with(5, |cfg| cfg.read = ReadMode::Lease);
    pump.now = pump.now.after(Nanos::from_millis(1_001));
    hand(&mut pump, 1, 3, heartbeat(5));
    sync(&mut pump, 3);
    // The answer to a message of this replica's own, older leadership.
    hand(&mut pump, 4, 3, RaftMsg::HeartbeatReply { term: Epoch(6), round: RoundId::default() });
    hand(&mut pump, 4, 3, vote(6, (4, 9)));
    hand(&mut pump, 5, 3, RaftMsg::PreVote { term: Epoch(7), last: Position::new(4, 9) });
    sync(&mut pump, 3);
    let granted = |msg: &RaftMsg| {
        matches!(msg, RaftMsg::VoteReply { granted: true, .. } | RaftMsg::PreVoteReply { granted: true, .. })
    };
    assert_eq!(pump.view(NodeId(3)).epoch, Epoch(6));
    assert!(!sent(&mut pump, 3).iter().any(|(_, msg)| granted(msg)), "a vote within the lease");
}
