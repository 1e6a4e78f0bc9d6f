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

/// Whether a member sent a vote that it granted, since the last look.
fn granted(pump: &mut Pump, from: u64) -> bool {
    sent(pump, from).iter().any(|(_, msg)| matches!(msg, RaftMsg::VoteReply { granted: true, .. }))
}

/// What a member said last about the log of a leader, since the last look.
fn outcome(pump: &mut Pump, from: u64) -> Option<AppendOutcome> {
    let outcomes = sent(pump, from).into_iter().filter_map(|(_, msg)| match msg {
        RaftMsg::AppendReply { outcome, .. } => Some(outcome),
        _ => None,
    });
    outcomes.last()
}

fn read_outcome(pump: &Pump, id: triune_consensus::ReadId) -> Option<bool> {
    pump.told.iter().find_map(|(_, told)| match told {
        Told::Read(of, outcome) if *of == id => Some(outcome.is_ok()),
        _ => None,
    })
}

/// 3.3, figure 3.1: a message of an older term changes nothing and is answered with the newer term.
#[test]
fn a_message_of_an_older_term_changes_nothing() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 2, 3, heartbeat(4));
    sync(&mut pump, 3);
    sent(&mut pump, 3);
    hand(&mut pump, 1, 3, append(3, (0, 0), 0, entries(1, &[3])));
    assert_eq!((pump.view(NodeId(3)).last, pump.view(NodeId(3)).leader), (Position::ZERO, Some(NodeId(2))));
    let answer = sent(&mut pump, 3);
    assert!(answer.iter().all(|(to, msg)| *to == 1 && msg.term() == Some(Epoch(4))), "{answer:?}");
    assert_eq!(answer.len(), 1);
}

/// 3.3: a leader that sees a newer term steps down into it.
#[test]
fn a_leader_that_sees_a_newer_term_steps_down() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    hand(&mut pump, 2, 1, RaftMsg::HeartbeatReply { term: Epoch(9), round: RoundId::default() });
    assert_eq!(
        (pump.role(leader), pump.view(leader).epoch, pump.view(leader).leader),
        (Role::Follower, Epoch(9), None)
    );
}

/// 3.4: a replica starts as a follower and stays one as long as a leader is heard.
#[test]
fn a_follower_that_hears_its_leader_does_not_campaign() {
    let mut pump = Pump::new(3);
    let leader = pump.elect();
    let term = pump.view(leader).epoch;
    pump.pass(Nanos::from_secs(30));
    assert_eq!((pump.leader(), pump.view(leader).epoch), (Some(leader), term));
}

/// 3.4: a leader heartbeats by itself, at its interval.
#[test]
fn a_leader_heartbeats_while_there_is_nothing_to_say() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.now = pump.nodes[&leader].raft().next_deadline().unwrap();
    pump.step(leader, Input::Timeout);
    let beats = sent(&mut pump, 1).into_iter().filter(|(_, msg)| matches!(msg, RaftMsg::Heartbeat { .. }));
    assert_eq!(beats.map(|(to, _)| to).collect::<Vec<_>>(), [2, 3]);
    let next = pump.nodes[&leader].raft().next_deadline().unwrap();
    assert_eq!(next.since(pump.now), Nanos::from_millis(100));
}

/// 3.4: one vote a term, to the first who asks; the same candidate is answered the same again.
#[test]
fn one_vote_a_term() {
    let mut pump = Pump::new(3);
    for (from, expected) in [(1, true), (2, false), (1, true)] {
        hand(&mut pump, from, 3, vote(1, (0, 0)));
        sync(&mut pump, 3);
        assert_eq!(granted(&mut pump, 3), expected, "to {from}");
    }
}

/// 3.4, 3.8: a vote given is remembered across a crash.
#[test]
fn a_vote_survives_a_crash() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 1, 3, vote(1, (0, 0)));
    sync(&mut pump, 3);
    assert!(granted(&mut pump, 3));
    pump.crash(NodeId(3), 0);
    pump.restart(NodeId(3));
    hand(&mut pump, 2, 3, vote(1, (0, 0)));
    sync(&mut pump, 3);
    assert!(!granted(&mut pump, 3));
}

/// 3.8: a vote leaves only when it is durable; lost with the power, it was never given.
#[test]
fn a_vote_is_durable_before_it_is_sent() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 1, 3, vote(1, (0, 0)));
    assert!(!granted(&mut pump, 3), "before the sync");
    pump.crash(NodeId(3), 0);
    pump.restart(NodeId(3));
    assert_eq!((pump.view(NodeId(3)).epoch, pump.view(NodeId(3)).detail.vote), (Epoch(0), None));
    hand(&mut pump, 2, 3, vote(1, (0, 0)));
    sync(&mut pump, 3);
    assert!(granted(&mut pump, 3), "free to vote again");
}

/// 3.4: a candidate that hears a leader of its own term follows it; one of an older term it ignores.
#[test]
fn a_candidate_yields_to_a_leader_of_its_term_and_to_no_older_one() {
    let mut pump = Pump::new(3);
    pump.now = pump.now.after(Nanos::from_secs(3));
    pump.step(NodeId(3), Input::Timeout);
    hand(&mut pump, 1, 3, RaftMsg::PreVoteReply { term: Epoch(1), granted: true });
    assert_eq!(pump.role(NodeId(3)), Role::Candidate);
    hand(&mut pump, 2, 3, heartbeat(0));
    assert_eq!(pump.role(NodeId(3)), Role::Candidate);
    hand(&mut pump, 2, 3, heartbeat(1));
    assert_eq!((pump.role(NodeId(3)), pump.view(NodeId(3)).leader), (Role::Follower, Some(NodeId(2))));
}

/// 3.4: half is no majority, whatever the size.
#[test]
fn a_candidate_needs_more_than_half() {
    for size in 2..=7_u64 {
        let mut pump = Pump::new(size);
        pump.now = pump.now.after(Nanos::from_secs(3));
        pump.step(NodeId(1), Input::Timeout);
        let quorum = size / 2 + 1;
        for voter in 2..=quorum {
            assert_eq!(pump.role(NodeId(1)), Role::PreCandidate, "size {size}");
            hand(&mut pump, voter, 1, RaftMsg::PreVoteReply { term: Epoch(1), granted: true });
        }
        sync(&mut pump, 1);
        for voter in 2..=quorum {
            assert_eq!(pump.role(NodeId(1)), Role::Candidate, "size {size}");
            hand(&mut pump, voter, 1, RaftMsg::VoteReply { term: Epoch(1), granted: true });
        }
        assert_eq!(pump.role(NodeId(1)), Role::Leader, "size {size}");
    }
}

/// 3.4: a vote counted twice is one vote, and a refusal is none.
#[test]
fn repeated_votes_and_refusals_count_for_nothing() {
    let mut pump = Pump::new(5);
    pump.now = pump.now.after(Nanos::from_secs(3));
    pump.step(NodeId(1), Input::Timeout);
    for voter in [2, 3] {
        hand(&mut pump, voter, 1, RaftMsg::PreVoteReply { term: Epoch(1), granted: true });
    }
    sync(&mut pump, 1);
    for (voter, granted) in [(2, true), (2, true), (3, false), (2, true)] {
        hand(&mut pump, voter, 1, RaftMsg::VoteReply { term: Epoch(1), granted });
    }
    assert_eq!(pump.role(NodeId(1)), Role::Candidate);
}

/// 3.4: timeouts are drawn anew from a range, so that a tie does not repeat for ever.
#[test]
fn election_timeouts_are_drawn_anew_from_their_range() {
    let mut pump = Pump::new(3);
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..50 {
        pump.step(NodeId(1), Input::Timeout);
        let timeout = pump.nodes[&NodeId(1)].raft().next_deadline().unwrap().since(pump.now);
        assert!((Nanos::from_secs(1)..=Nanos::from_secs(2)).contains(&timeout), "{timeout:?}");
        drawn.insert(timeout);
        pump.now = pump.now.after(timeout);
    }
    assert!(drawn.len() > 40, "{} different ones of 50", drawn.len());
}

/// 3.5: the leader sends what precedes its entries, and a follower without that refuses them.
#[test]
fn a_follower_takes_nothing_behind_a_gap_or_a_conflict() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 1, 3, append(2, (0, 0), 0, entries(1, &[1, 1])));
    sync(&mut pump, 3);
    assert_eq!(outcome(&mut pump, 3), Some(AppendOutcome::Matched(Index(2))));
    for prev in [(2, 2), (1, 3), (2, 5)] {
        hand(&mut pump, 1, 3, append(2, prev, 0, entries(prev.1 + 1, &[2])));
        sync(&mut pump, 3);
        assert!(matches!(outcome(&mut pump, 3), Some(AppendOutcome::Rejected { .. })), "after {prev:?}");
        assert_eq!(pump.view(NodeId(3)).last, Position::new(1, 2));
    }
}

/// 3.5, figure 3.6: each of the six followers of the figure ends with the leader's log.
#[test]
fn every_follower_of_figure_3_6_ends_with_the_leaders_log() {
    let leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for (case, follower) in ('a'..).zip(followers) {
        let mut pump = Pump::new(3);
        hand(&mut pump, 3, 1, append(6, (0, 0), 0, entries(1, &leader)));
        hand(&mut pump, 3, 2, append(7, (0, 0), 0, entries(1, follower)));
        sync(&mut pump, 1);
        sync(&mut pump, 2);
        pump.net.clear();
        // 3 holds what the leader holds, and gives it its vote.
        hand(&mut pump, 1, 3, append(6, (0, 0), 0, entries(1, &leader)));
        sync(&mut pump, 3);
        pump.net.clear();
        for _ in 0..2 {
            // The first campaign may only tell it of the follower's newer term.
            pump.now = pump.now.after(Nanos::from_secs(3));
            pump.step(NodeId(1), Input::Timeout);
            pump.settle();
            if pump.role(NodeId(1)) == Role::Leader {
                break;
            }
        }
        assert_eq!(pump.role(NodeId(1)), Role::Leader, "case {case}");
        pump.pass(Nanos::from_secs(1));
        let image = |id: u64| pump.nodes[&NodeId(id)].image.entries.clone();
        assert_eq!(image(2), image(1), "case {case}");
        assert_eq!(image(2).len(), 11, "case {case}");
    }
}

/// 3.5: an append that arrives late or twice takes nothing away (figure 3.1, step 3: only a conflict cuts).
#[test]
fn a_late_append_does_not_shorten_the_log() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 1, 3, append(1, (0, 0), 0, entries(1, &[1, 1, 1])));
    hand(&mut pump, 1, 3, append(1, (0, 0), 0, entries(1, &[1])));
    assert_eq!(pump.view(NodeId(3)).last, Position::new(1, 3));
    hand(&mut pump, 1, 3, append(1, (1, 1), 0, Vec::new()));
    assert_eq!(pump.view(NodeId(3)).last, Position::new(1, 3));
}

/// 3.5: a follower commits no more than what this message proved equal to the leader's log.
#[test]
fn a_follower_commits_only_what_is_known_equal() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 1, 3, append(1, (0, 0), 0, entries(1, &[1, 1, 1])));
    hand(&mut pump, 2, 3, append(2, (1, 1), 3, Vec::new()));
    assert_eq!(pump.view(NodeId(3)).commit, Index(1), "entries 2 and 3 may be others' there");
}

/// 3.5, 3.8: what a follower confirms is durable.
#[test]
fn a_follower_confirms_only_what_is_durable() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 1, 3, append(1, (0, 0), 0, entries(1, &[1, 1])));
    assert_eq!(outcome(&mut pump, 3), None);
    sync(&mut pump, 3);
    assert_eq!(outcome(&mut pump, 3), Some(AppendOutcome::Matched(Index(2))));
}

/// 3.6.1: the vote goes only to a log at least as up-to-date: the later last term wins, then the longer log.
#[test]
fn a_vote_goes_only_to_a_log_at_least_as_new() {
    let mine: &[u64] = &[1, 2, 2];
    let cases = [((2, 3), true), ((2, 4), true), ((3, 1), true), ((2, 2), false), ((1, 9), false), ((0, 0), false)];
    for (last, expected) in cases {
        let mut pump = Pump::new(3);
        hand(&mut pump, 1, 3, append(2, (0, 0), 0, entries(1, mine)));
        sync(&mut pump, 3);
        pump.now = pump.now.after(Nanos::from_secs(3));
        hand(&mut pump, 2, 3, vote(5, last));
        sync(&mut pump, 3);
        assert_eq!(granted(&mut pump, 3), expected, "to {last:?}");
    }
}

/// 3.6.2, figure 3.7: an entry of an older term on a majority commits only with one of the leader's own.
#[test]
fn an_entry_of_an_older_term_commits_only_with_one_of_the_leaders_own() {
    let mut pump = Pump::new(3);
    hand(&mut pump, 3, 1, append(1, (0, 0), 0, entries(1, &[1, 1])));
    sync(&mut pump, 1);
    pump.now = pump.now.after(Nanos::from_secs(3));
    pump.step(NodeId(1), Input::Timeout);
    hand(&mut pump, 2, 1, RaftMsg::PreVoteReply { term: Epoch(2), granted: true });
    sync(&mut pump, 1);
    hand(&mut pump, 2, 1, RaftMsg::VoteReply { term: Epoch(2), granted: true });
    sync(&mut pump, 1);
    assert_eq!((pump.role(NodeId(1)), pump.view(NodeId(1)).last), (Role::Leader, Position::new(2, 3)));
    let matched = |index| RaftMsg::AppendReply { term: Epoch(2), outcome: AppendOutcome::Matched(Index(index)) };
    hand(&mut pump, 2, 1, matched(2));
    assert_eq!(pump.view(NodeId(1)).commit, Index(0), "on two of three, but of term 1");
    hand(&mut pump, 2, 1, matched(3));
    assert_eq!(pump.view(NodeId(1)).commit, Index(3), "all of it with the barrier of term 2");
}

/// 3.6.3: an acknowledged entry is in the log of every later leader.
#[test]
fn every_later_leader_has_what_was_committed() {
    let mut pump = Pump::new(5);
    let mut leader = pump.elect();
    for round in 1..=4 {
        pump.put(leader, 0, round);
        pump.settle();
        let committed = pump.view(leader).commit;
        pump.isolate(leader);
        pump.pass(Nanos::from_secs(8));
        leader = pump.elect();
        assert!(pump.view(leader).last.index >= committed);
        assert_eq!(pump.nodes[&leader].machine.registers[0], round);
        pump.cut.clear();
        pump.pass(Nanos::from_secs(2));
    }
}

/// 3.7: a crashed follower is sent everything again until it has it.
#[test]
fn a_restarted_follower_is_brought_up_to_date() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.crash(NodeId(3), 0);
    for value in 1..=5 {
        pump.put(leader, 1, value);
    }
    pump.settle();
    pump.restart(NodeId(3));
    pump.pass(Nanos::from_secs(1));
    assert_eq!(pump.view(NodeId(3)).last, pump.view(leader).last);
    assert_eq!(pump.nodes[&NodeId(3)].machine.registers[1], 5);
}

/// 3.10: the target campaigns at once, voters follow it though they hear the old leader, and nothing is lost.
#[test]
fn a_transfer_hands_over_within_a_round_trip() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.put(leader, 0, 1);
    pump.settle();
    let before = pump.now;
    let id = pump.admin(leader, AdminOp::Transfer { to: Some(NodeId(2)) });
    pump.settle();
    assert_eq!((pump.leader(), pump.now), (Some(NodeId(2)), before));
    assert!(pump.told.contains(&(leader, Told::Admin(id, Ok(())))));
}

/// 3.10: while it waits for the target the leader takes nothing; at the deadline it goes on.
#[test]
fn a_transfer_to_a_dead_target_ends_at_its_deadline() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.crash(NodeId(2), 0);
    let id = pump.admin(leader, AdminOp::Transfer { to: Some(NodeId(2)) });
    let last = pump.view(leader).last;
    pump.put(leader, 0, 1);
    assert_eq!(pump.view(leader).last, last, "taken during the transfer");
    pump.pass(Nanos::from_millis(2_000));
    assert!(pump.told.contains(&(leader, Told::Admin(id, Err(AdminError::TimedOut)))));
    pump.put(leader, 0, 2);
    pump.settle();
    assert_eq!((pump.leader(), pump.nodes[&leader].machine.registers[0]), (Some(leader), 2));
}

/// 4.1: a configuration is in force from its append on, committed or not, and a truncation takes it back.
#[test]
fn a_configuration_is_in_force_from_its_append_and_gone_with_it() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.isolate(leader);
    pump.admin(leader, AdminOp::Change { change: ConfigChange::Remove(NodeId(3)), context: Bytes::new() });
    pump.settle();
    assert_eq!(pump.view(leader).config, common::voters(1..=2), "though it is not committed");
    pump.elect_this(2);
    pump.cut.clear();
    pump.pass(Nanos::from_secs(1));
    assert_eq!(pump.view(leader).config, common::voters(1..=3), "it was never committed");
}

/// 4.1, and the bug of 2015: no change before an entry of the leader's own term is committed, none beside another.
#[test]
fn a_change_waits_for_an_own_commit_and_for_the_change_before() {
    let mut pump = Pump::new(4);
    let leader = pump.elect_this(1);
    pump.isolate(leader);
    let remove = |node| AdminOp::Change { change: ConfigChange::Remove(NodeId(node)), context: Bytes::new() };
    pump.admin(leader, remove(4));
    let second = pump.admin(leader, remove(3));
    assert!(pump.told.contains(&(leader, Told::Admin(second, Err(AdminError::InProgress)))));

    let mut pump = Pump::new(3);
    for id in 1..=3 {
        pump.slow.insert(NodeId(id));
    }
    pump.now = pump.now.after(Nanos::from_secs(3));
    pump.step(NodeId(1), Input::Timeout);
    hand(&mut pump, 2, 1, RaftMsg::PreVoteReply { term: Epoch(1), granted: true });
    sync(&mut pump, 1);
    hand(&mut pump, 2, 1, RaftMsg::VoteReply { term: Epoch(1), granted: true });
    assert_eq!(pump.role(NodeId(1)), Role::Leader);
    let early = pump.admin(NodeId(1), remove(3));
    assert!(pump.told.contains(&(NodeId(1), Told::Admin(early, Err(AdminError::NotReady)))));
}

/// 4.2.1: a replica without a configuration takes entries and never campaigns; a learner neither votes nor counts.
#[test]
fn a_blank_replica_and_a_learner_never_campaign() {
    let mut pump = Pump::new(1);
    pump.add(9, None, |_| {});
    pump.pass(Nanos::from_secs(10));
    assert_eq!((pump.role(NodeId(9)), pump.view(NodeId(9)).epoch), (Role::Follower, Epoch(0)));
    let leader = pump.elect();
    assert_eq!(change(&mut pump, leader, ConfigChange::AddLearner(NodeId(9))), Some(Ok(())));
    pump.pass(Nanos::from_secs(1));
    assert_eq!(pump.role(NodeId(9)), Role::Learner);
    pump.isolate(NodeId(9));
    pump.put(leader, 0, 3);
    pump.settle();
    assert_eq!(pump.nodes[&leader].machine.registers[0], 3, "commits without the learner");
    let term = pump.view(NodeId(9)).epoch;
    pump.pass(Nanos::from_secs(10));
    assert_eq!((pump.role(NodeId(9)), pump.view(NodeId(9)).epoch), (Role::Learner, term));
}

/// 4.2.2: a leader that removes itself leads until that is committed, counts itself for nothing, then leaves.
#[test]
fn a_leader_that_is_removed_leaves_when_that_is_committed() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.slow.extend([NodeId(2), NodeId(3)]);
    assert_eq!(change(&mut pump, leader, ConfigChange::Remove(leader)), None);
    sync(&mut pump, 2);
    pump.settle();
    assert_eq!((pump.role(leader), pump.view(leader).commit), (Role::Leader, Index(1)), "2 alone is half of (2, 3)");
    pump.slow.clear();
    pump.settle();
    assert_eq!((pump.role(leader), pump.view(leader).commit), (Role::Follower, Index(2)));
    assert!(matches!(pump.leader(), Some(NodeId(2 | 3))));
}

/// 4.2.3: a removed replica learns of it and campaigns no more; had it not, nobody would have been disturbed.
#[test]
fn a_removed_replica_is_told_and_disturbs_nobody() {
    for told in [true, false] {
        let mut pump = Pump::new(3);
        let leader = pump.elect_this(1);
        if !told {
            pump.isolate(NodeId(3));
        }
        assert_eq!(change(&mut pump, leader, ConfigChange::Remove(NodeId(3))), Some(Ok(())));
        pump.cut.clear();
        let term = pump.view(leader).epoch;
        let campaigned = |pump: &Pump| {
            pump.told.iter().any(|(id, told)| {
                *id == NodeId(3) && matches!(told, Told::Role(change) if change.role == Role::PreCandidate)
            })
        };
        pump.pass(Nanos::from_secs(10));
        assert_eq!(campaigned(&pump), !told);
        assert_eq!((pump.leader(), pump.view(leader).epoch), (Some(leader), term));
    }
}

/// 4.3: while joint, a majority of each half decides, for commits and for votes.
#[test]
fn a_joint_configuration_needs_both_majorities() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.add(4, None, |_| {});
    assert_eq!(change(&mut pump, leader, ConfigChange::AddLearner(NodeId(4))), Some(Ok(())));
    pump.pass(Nanos::from_millis(500));
    pump.slow.extend([NodeId(2), NodeId(3), NodeId(4)]);
    assert_eq!(change(&mut pump, leader, ConfigChange::Replace { old: NodeId(3), new: NodeId(4) }), None);
    let joint = pump.view(leader).last.index;
    sync(&mut pump, 4);
    pump.settle();
    assert!(pump.view(leader).commit < joint, "1 and 4 are no majority of (1, 2, 3)");
    sync(&mut pump, 3);
    pump.settle();
    assert_eq!(pump.view(leader).commit, joint, "1, 4 and 1, 3");
    pump.slow.clear();
    pump.pass(Nanos::from_secs(1));
    assert_eq!(pump.view(leader).config, common::voters([1, 2, 4]), "the leader leaves it by itself");
}

/// 4.3: votes too: a candidate of a joint configuration does not win with one half.
#[test]
fn a_candidate_of_a_joint_configuration_needs_both_majorities() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.add(4, None, |_| {});
    assert_eq!(change(&mut pump, leader, ConfigChange::AddLearner(NodeId(4))), Some(Ok(())));
    pump.pass(Nanos::from_millis(500));
    pump.slow.extend((1..=4).map(NodeId));
    change(&mut pump, leader, ConfigChange::Replace { old: NodeId(3), new: NodeId(4) });
    pump.net.clear();
    pump.crash(leader, 0);
    pump.crash(NodeId(3), 0);
    pump.slow.clear();
    assert!(pump.view(NodeId(2)).config.is_joint());
    pump.pass(Nanos::from_secs(10));
    assert_eq!(pump.leader(), None, "2 and 4 are no majority of (1, 2, 3)");
    pump.restart(NodeId(3));
    pump.elect();
    pump.pass(Nanos::from_secs(1));
    assert_eq!(pump.view(NodeId(2)).config, common::voters([1, 2, 4]));
}

/// 5.1: a replica that needs what is gone from the log gets a snapshot, then the entries above it.
#[test]
fn a_replica_far_behind_gets_a_snapshot_and_the_rest() {
    let mut pump = Pump::with(3, |cfg| (cfg.keep_entries, cfg.chunk_bytes_max) = (0, 32));
    let leader = pump.elect_this(1);
    pump.isolate(NodeId(3));
    for value in 1..=20 {
        pump.put(leader, 2, value);
        pump.settle();
    }
    pump.nodes.get_mut(&leader).unwrap().checkpoint();
    pump.settle();
    assert_eq!(pump.view(leader).base.index, Index(21));
    pump.cut.clear();
    pump.put(leader, 3, 9);
    pump.pass(Nanos::from_secs(3));
    assert!(pump.told.iter().any(|(id, told)| *id == NodeId(3) && matches!(told, Told::Installed(_))));
    assert_eq!(pump.nodes[&NodeId(3)].machine.registers, pump.nodes[&leader].machine.registers);
    assert_eq!(pump.view(NodeId(3)).last, pump.view(leader).last);
}

/// 6.2: a leader that hears no quorum for an election timeout steps down.
#[test]
fn a_leader_without_a_quorum_steps_down() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.isolate(leader);
    pump.pass(Nanos::from_millis(1_200));
    assert_ne!(pump.role(leader), Role::Leader);
}

/// 6.4: a read waits for a round of heartbeats answered by a quorum.
#[test]
fn a_read_waits_for_a_quorum_of_heartbeats() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    let read = pump.read(leader);
    assert_eq!(read_outcome(&pump, read), None);
    pump.settle();
    assert_eq!(read_outcome(&pump, read), Some(true));
    pump.isolate(leader);
    let lost = pump.read(leader);
    pump.settle();
    assert_eq!(read_outcome(&pump, lost), None, "nobody confirmed it");
    pump.pass(Nanos::from_secs(3));
    assert_eq!(read_outcome(&pump, lost), Some(false), "given up");
}

/// 6.4, step 3: an answer to an earlier round confirms no later read.
#[test]
fn an_answer_to_an_earlier_round_confirms_no_later_read() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    let first = pump.read(leader);
    pump.settle_only(|_| true);
    let late: Vec<_> = pump.net.drain(..).collect();
    assert!(late.iter().any(|flying| matches!(flying.msg, RaftMsg::HeartbeatReply { .. })));
    for flying in late.iter().cloned() {
        pump.deliver(flying);
    }
    assert_eq!(read_outcome(&pump, first), Some(true));
    let second = pump.read(leader);
    pump.net.clear();
    for flying in late {
        pump.deliver(flying);
    }
    assert_eq!(read_outcome(&pump, second), None);
}

/// 6.4: a follower asks its leader for the index and serves the read itself; a learner too.
#[test]
fn a_follower_serves_reads_at_the_leaders_index() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.put(leader, 0, 5);
    pump.settle();
    let read = pump.read(NodeId(3));
    pump.settle();
    let index = pump.told.iter().find_map(|(id, told)| match told {
        Told::Read(of, Ok(index)) if *of == read && *id == NodeId(3) => Some(*index),
        _ => None,
    });
    assert_eq!(index, Some(pump.view(leader).commit));
}

/// 6.4: a leader that has not committed in its own term serves no read, also with a lease.
#[test]
fn a_new_leader_serves_no_read_before_its_first_commit() {
    for mode in [ReadMode::ReadIndex, ReadMode::Lease] {
        let mut pump = Pump::with(3, |cfg| cfg.read = mode);
        pump.now = pump.now.after(Nanos::from_secs(5));
        pump.step(NodeId(1), Input::Timeout);
        hand(&mut pump, 2, 1, RaftMsg::PreVoteReply { term: Epoch(1), granted: true });
        sync(&mut pump, 1);
        hand(&mut pump, 2, 1, RaftMsg::VoteReply { term: Epoch(1), granted: true });
        assert_eq!(pump.role(NodeId(1)), Role::Leader);
        let round = sent(&mut pump, 1).into_iter().find_map(|(_, msg)| match msg {
            RaftMsg::Heartbeat { round, .. } => Some(round),
            _ => None,
        });
        hand(&mut pump, 2, 1, RaftMsg::HeartbeatReply { term: Epoch(1), round: round.unwrap() });
        let read = pump.read(NodeId(1));
        assert_eq!(read_outcome(&pump, read), None, "{mode:?}");
        sync(&mut pump, 1);
        let outcome = AppendOutcome::Matched(Index(1));
        hand(&mut pump, 2, 1, RaftMsg::AppendReply { term: Epoch(1), outcome });
        pump.settle();
        assert_eq!(read_outcome(&pump, read), Some(true), "{mode:?}");
    }
}

/// 6.4.1: with a lease the leader reads at once, until a timeout less the drift of two clocks after the round left.
#[test]
fn a_lease_ends_before_anybody_else_can_be_elected() {
    let mut pump = Pump::with(3, |cfg| cfg.read = ReadMode::Lease);
    let leader = pump.elect_this(1);
    pump.pass(Nanos::from_millis(150));
    let lease = pump.view(leader).lease.unwrap();
    assert!(lease.since(pump.now) <= Nanos::from_millis(980), "1 s less 2 × 1 %");
    pump.now = Nanos(lease.0 - 1);
    let read = pump.read(leader);
    assert_eq!(read_outcome(&pump, read), Some(true));
    pump.now = lease;
    let late = pump.read(leader);
    assert_eq!(read_outcome(&pump, late), None, "it needs a round now");
}

/// 6.4.1, 3.10: a leader that told another to campaign has no lease any more.
#[test]
fn a_transfer_ends_the_lease() {
    let mut pump = Pump::with(3, |cfg| cfg.read = ReadMode::Lease);
    let leader = pump.elect_this(1);
    pump.pass(Nanos::from_millis(150));
    assert!(pump.view(leader).lease.is_some());
    pump.admin(leader, AdminOp::Transfer { to: Some(NodeId(2)) });
    assert_eq!(pump.view(leader).lease, None);
    let read = pump.read(leader);
    assert_eq!(read_outcome(&pump, read), None);
}

/// 6.4.1: a replica that restarts does not know whom it promised its silence, and keeps it for a whole timeout.
#[test]
fn a_restarted_replica_keeps_the_promise_it_may_have_made() {
    let mut pump = Pump::with(3, |cfg| cfg.read = ReadMode::Lease);
    pump.crash(NodeId(3), 0);
    pump.restart(NodeId(3));
    hand(&mut pump, 2, 3, vote(5, (4, 9)));
    sync(&mut pump, 3);
    assert!(!granted(&mut pump, 3));
    pump.now = pump.now.after(Nanos::from_secs(1));
    hand(&mut pump, 2, 3, vote(5, (4, 9)));
    sync(&mut pump, 3);
    assert!(granted(&mut pump, 3));
}

/// 6.4.1, 4.2.2: the last voter keeps that promise too: it needs nobody's vote, but the leader it is about to replace
/// does not know yet that its removal is committed, and still reads under the lease that voter gave it.
#[test]
fn a_restarted_last_voter_keeps_its_promise_to_the_leader_being_removed() {
    let mut pump = Pump::with(2, |cfg| cfg.read = ReadMode::Lease);
    let (leader, heir) = (pump.elect_this(1), NodeId(2));
    pump.pass(Nanos::from_millis(150));
    pump.cut.insert((heir, leader));
    assert_eq!(change(&mut pump, leader, ConfigChange::Remove(leader)), None, "the heir's answer is lost");
    assert_eq!(pump.view(heir).config, common::voters([2]));
    pump.isolate(heir);
    pump.crash(heir, 0);
    pump.restart(heir);
    let restarted_at = pump.now;
    let lease = pump.view(leader).lease.unwrap();
    pump.pass(Nanos(lease.since(pump.now).0 - 1));
    let read = pump.read(leader);
    assert_eq!(read_outcome(&pump, read), Some(true), "the lease holds");
    assert_eq!(pump.role(heir), Role::Follower, "so nobody else leads");
    pump.pass(restarted_at.after(Nanos::from_secs(1)).since(pump.now));
    assert_eq!(pump.role(heir), Role::Leader);
}

/// 9.6: a replica that was cut off comes back without deposing anybody: asking changes no term.
#[test]
fn a_replica_that_was_cut_off_deposes_nobody() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    let term = pump.view(leader).epoch;
    pump.isolate(NodeId(3));
    pump.pass(Nanos::from_secs(20));
    assert_eq!(pump.view(NodeId(3)).epoch, term, "it only asked");
    pump.cut.clear();
    pump.pass(Nanos::from_secs(5));
    assert_eq!((pump.leader(), pump.view(leader).epoch), (Some(leader), term));
    assert_eq!(pump.view(NodeId(3)).leader, Some(leader));
}

/// 9.6: a pre-vote is no vote: it is given to many and writes nothing.
#[test]
fn a_pre_vote_binds_nobody() {
    let mut pump = Pump::new(3);
    for from in [1, 2] {
        hand(&mut pump, from, 3, RaftMsg::PreVote { term: Epoch(1), last: Position::ZERO });
        let answer = (from, RaftMsg::PreVoteReply { term: Epoch(1), granted: true });
        assert_eq!(sent(&mut pump, 3), [answer]);
    }
    assert!(pump.nodes[&NodeId(3)].pending.is_empty());
    assert_eq!((pump.view(NodeId(3)).epoch, pump.view(NodeId(3)).detail.vote), (Epoch(0), None));
}

/// 10.2.1: the leader's disk works beside its sends; an entry may commit before it is durable at the leader.
#[test]
fn a_leader_commits_what_followers_hold_before_its_own_disk_is_done() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.slow.insert(leader);
    pump.put(leader, 0, 8);
    pump.settle();
    let view = pump.view(leader);
    assert_eq!((view.commit, view.detail.durable), (Index(2), Index(1)));
    assert_eq!(pump.nodes[&leader].machine.registers[0], 0, "applied here only when durable here");
    assert_eq!(pump.nodes[&NodeId(2)].machine.registers[0], 8);
}

/// 10.2.1: its own write counts only when durable: alone or one of two, it waits for its disk.
#[test]
fn a_leaders_own_write_counts_only_when_durable() {
    for size in [1, 2] {
        let mut pump = Pump::new(size);
        let leader = pump.elect();
        pump.slow.insert(leader);
        let before = pump.view(leader).commit;
        pump.put(leader, 0, 8);
        pump.settle();
        assert_eq!(pump.view(leader).commit, before, "size {size}");
        pump.slow.clear();
        pump.settle();
        assert_eq!(pump.view(leader).commit, before.next(), "size {size}");
    }
}

/// 10.2.2: appends are pipelined up to the window, then wait for an answer.
#[test]
fn appends_are_pipelined_up_to_the_window() {
    let mut pump = Pump::with(3, |cfg| cfg.inflight_msgs_max = 4);
    let leader = pump.elect_this(1);
    for value in 0..10 {
        pump.put(leader, 0, value);
    }
    let to_two = |flying: &&pump::Flying| flying.to == NodeId(2) && matches!(flying.msg, RaftMsg::Append { .. });
    assert_eq!(pump.net.iter().filter(to_two).count(), 4);
    pump.settle();
    assert_eq!(pump.view(NodeId(2)).last.index, Index(11));
}

/// 3.8: a replica whose disk failed says nothing more that needs it, and leaves nobody waiting.
#[test]
fn a_replica_whose_disk_failed_answers_what_waits_and_falls_silent() {
    let mut pump = Pump::new(3);
    let leader = pump.elect_this(1);
    pump.isolate(leader);
    pump.put(leader, 0, 1);
    let read = pump.read(leader);
    let transfer = pump.admin(leader, AdminOp::Transfer { to: Some(NodeId(2)) });
    pump.net.clear();
    pump.step(leader, Input::IoFailed);
    assert_eq!(read_outcome(&pump, read), Some(false));
    assert!(pump.told.contains(&(leader, Told::Admin(transfer, Err(AdminError::Unknown)))));
    hand(&mut pump, 2, 1, heartbeat(9));
    hand(&mut pump, 2, 1, vote(9, (9, 9)));
    assert_eq!(sent(&mut pump, 1), []);
    assert_eq!(pump.nodes[&leader].raft().next_deadline(), None);
}

/// Figure 3.1 asks for a durable log. A disk whose leader knows of entries it confirmed and no longer holds says so once,
/// acknowledges nothing, and grants no vote: whoever counted it then must not be outvoted by it now.
#[test]
fn a_disk_that_forgot_what_it_confirmed_says_nothing_more() {
    let mut pump = Pump::new(3);
    let known = RaftMsg::Heartbeat {
        term: Epoch(4),
        commit: Index::ZERO,
        matched: Index(7),
        round: RoundId { boot: 9, count: 1 },
    };
    hand(&mut pump, 2, 3, known.clone());
    hand(&mut pump, 2, 3, known);
    sync(&mut pump, 3);
    let forgot = pump.told.iter().filter(|(of, told)| *of == NodeId(3) && matches!(told, Told::Forgot)).count();
    assert_eq!(forgot, 1);
    hand(&mut pump, 2, 3, append(4, (0, 0), 0, entries(1, &[4])));
    hand(&mut pump, 1, 3, vote(5, (9, 9)));
    sync(&mut pump, 3);
    let said = sent(&mut pump, 3);
    let harmless = |msg: &RaftMsg| match msg {
        RaftMsg::VoteReply { granted, .. } => !granted,
        RaftMsg::AppendReply { outcome, .. } => !matches!(outcome, AppendOutcome::Matched(_)),
        _ => false,
    };
    assert!(said.iter().all(|(_, msg)| harmless(msg)), "{said:?}");
}
