//! Behaviours of whole members, one each.

use triune_consensus::MachineInput;
use triune_transport::{Channel, GroupId, LinkSession, Nanos, NodeId};
use triune_txn::mvcc;

use super::MemberLimits;
use super::api::*;
use super::forward::{Forward, Refused, encode};
use super::testkit::*;

fn secs(s: u64) -> Nanos {
    Nanos::from_secs(s)
}

#[test]
fn a_single_member_serves() {
    let mut c = Cluster::ready(1);
    assert!(matches!(c.call(0, put("k", "v")), Ok(Reply::Put(_))));
    assert_eq!(value_of(c.call(0, get("k"))), Some("v".into()));
    let (header, result) = {
        let id = c.ask(0, Call::MemberList { linearizable: true });
        c.answer(0, id)
    };
    let Ok(Reply::MemberList(members)) = result else { panic!("{result:?}") };
    assert_eq!(members.len(), 1);
    assert_eq!((header.cluster_id, header.member_id, header.revision), (99, members[0].member_id, 2));
    assert_eq!(members[0].client_urls, ["http://m1:2379"]);
}

#[test]
fn every_member_takes_writes_and_reads_them_back_at_every_other() {
    let mut c = Cluster::ready(3);
    for n in 0..3 {
        let key = format!("k{n}");
        assert!(matches!(c.call(n, put(&key, "v")), Ok(Reply::Put(_))));
        for reader in 0..3 {
            assert_eq!(value_of(c.call(reader, get(&key))), Some("v".into()));
        }
    }
    c.run_for(secs(1));
    c.check_digests();
}

#[test]
fn a_lost_forward_is_sent_again_under_its_number_and_carried_out_once() {
    let mut c = Cluster::ready(3);
    let follower = c.a_follower();
    c.mute = Some(Channel::Forward);
    let id = c.ask(follower, put("k", "v"));
    c.run_for(Nanos::from_millis(300));
    assert!(!c.nodes[follower].answers.contains_key(&id));
    c.mute = None;
    let (header, result) = c.answer(follower, id);
    assert!(matches!(result, Ok(Reply::Put(_))));
    assert_eq!(header.revision, 2);
}

#[test]
fn a_command_forwarded_twice_is_carried_out_once() {
    let mut c = Cluster::ready(3);
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    // The leader hears the follower, the follower hears nothing: its own apply cannot answer it.
    let ids: Vec<NodeId> = c.nodes.iter().map(|n| n.id).collect();
    c.cut.insert((ids[leader], ids[follower]));
    let before = c.log_len();
    let id = c.ask(follower, put("k", "v"));
    c.run_for(Nanos::from_millis(900));
    c.cut.clear();
    let (_, result) = c.answer(follower, id);
    assert!(matches!(result, Ok(Reply::Put(_))));
    c.run_for(secs(2));
    assert!(c.log_len() >= before + 2, "it was forwarded at least twice");
    let Ok(Reply::Range(range)) = c.call(leader, get("k")) else { panic!() };
    assert_eq!((range.kvs[0].version, range.revision), (1, 2));
    c.check_digests();
}

#[test]
fn a_leader_that_dies_costs_no_acknowledged_write_and_no_waiting_one() {
    let mut c = Cluster::ready(3);
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    assert!(matches!(c.call(follower, put("a", "1")), Ok(Reply::Put(_))));
    c.stop(leader);
    let id = c.ask(follower, put("b", "2"));
    let (_, result) = c.answer(follower, id);
    assert!(matches!(result, Ok(Reply::Put(_))), "{result:?}");
    c.start(leader);
    assert_eq!(value_of(c.call(leader, get("a"))), Some("1".into()));
    assert_eq!(value_of(c.call(leader, get("b"))), Some("2".into()));
    c.run_for(secs(1));
    c.check_digests();
}

#[test]
fn without_a_quorum_a_call_times_out_and_a_client_that_needs_a_leader_hears_at_once() {
    let mut c = Cluster::ready(3);
    let leader = c.leader().unwrap();
    (0..3).filter(|n| *n != leader).for_each(|n| c.stop(n));
    let started = c.now;
    let (write, read) = (c.ask(leader, put("k", "v")), c.ask(leader, get("k")));
    let (_, result) = c.answer(leader, write);
    assert_eq!(result, Err(Refusal::TimedOut));
    let (_, result) = c.answer(leader, read);
    assert_eq!(result, Err(Refusal::TimedOut));
    let took = c.now.since(started);
    assert!(took >= secs(7) && took <= Nanos::from_millis(7_200), "5 s and two election timeouts, not {took:?}");
    let id = c.ask_with(leader, get("k"), true);
    assert_eq!(c.nodes[leader].answers[&id].1, Err(Refusal::NoLeader));
    let Call::Range { op, .. } = get("k") else { panic!() };
    let id = c.ask(leader, Call::Range { op, serializable: true });
    assert!(c.nodes[leader].answers[&id].1.is_ok(), "serializable reads answer at once");
    let id = c.ask(leader, Call::Status);
    assert!(c.nodes[leader].answers[&id].1.is_ok());
}

#[test]
fn a_restarted_member_has_its_state_and_its_old_session_is_closed() {
    let mut c = Cluster::ready(1);
    assert!(matches!(c.call(0, put("k", "v")), Ok(Reply::Put(_))));
    c.run_for(secs(1));
    let digest = c.member(0).digest();
    let position = c.member(0).position();
    c.stop(0);
    c.start(0);
    assert_eq!((c.member(0).position(), c.member(0).digest()), (position, digest), "flushed before the stop");
    assert_eq!(value_of(c.call(0, get("k"))), Some("v".into()));
    assert!(matches!(c.call(0, put("k", "w")), Ok(Reply::Put(_))));
}

#[test]
fn an_unflushed_state_is_replayed_to_the_same_digest() {
    let mut c = Cluster::ready(1);
    c.hold_flushes = true;
    for n in 0..20 {
        assert!(matches!(c.call(0, put(&format!("k{}", n % 3), "v")), Ok(Reply::Put(_))));
    }
    c.run_for(secs(1));
    assert_eq!(c.held_flushes(), 1, "one flush is out at a time");
    let (digest, position) = (c.member(0).digest(), c.member(0).position());
    c.stop(0);
    c.hold_flushes = false;
    c.start(0);
    c.run_until(|c| c.member(0).position().index >= position.index);
    let Ok(Reply::Range(range)) = c.call(0, get("k0")) else { panic!() };
    assert_eq!(range.revision, 21);
    // The restart appends a barrier and a session: compare by replaying a second time.
    assert_ne!(c.member(0).digest(), digest);
    c.run_for(secs(1));
    c.check_digests();
}

#[test]
fn a_member_far_behind_catches_up_by_snapshot() {
    let mut c = Cluster::with(3, MemberLimits::default(), 5);
    c.settle();
    let follower = c.a_follower();
    c.stop(follower);
    let leader = c.leader().unwrap();
    for n in 0..50 {
        assert!(matches!(c.call(leader, put(&format!("k{n}"), "v")), Ok(Reply::Put(_))));
        c.run_for(Nanos::from_millis(20));
    }
    c.start(follower);
    assert_eq!(value_of(c.call(follower, get("k49"))), Some("v".into()));
    assert_eq!(c.nodes[follower].installs, 1);
    assert!(matches!(c.call(follower, put("after", "v")), Ok(Reply::Put(_))));
    c.run_for(secs(1));
    c.check_digests();
}

#[test]
fn an_entry_that_arrives_inside_a_snapshot_is_answered_unknown() {
    let mut c = Cluster::with(3, MemberLimits::default(), 5);
    c.settle();
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    let (l, f) = (c.nodes[leader].id, c.nodes[follower].id);
    let others: Vec<NodeId> = c.nodes.iter().map(|n| n.id).filter(|id| *id != f).collect();
    // The follower is heard once more, and hears nothing until its log is gone from the others.
    c.cut.extend(others.iter().map(|id| (*id, f)));
    let id = c.ask(follower, put("mine", "v"));
    c.run_for(Nanos::from_millis(20));
    c.cut.insert((f, l));
    c.cut.extend(others.iter().map(|id| (f, *id)));
    for n in 0..50 {
        assert!(matches!(c.call(leader, put(&format!("k{n}"), "v")), Ok(Reply::Put(_))));
        c.run_for(Nanos::from_millis(20));
    }
    c.cut.clear();
    let (_, result) = c.answer(follower, id);
    assert_eq!(result, Err(Refusal::Unknown));
    assert_eq!(value_of(c.call(follower, get("mine"))), Some("v".into()));
    assert_eq!(c.nodes[follower].installs, 1);
}

#[test]
fn the_quota_raises_the_alarm_and_deletes_go_on() {
    let limits = MemberLimits { quota_bytes: 4_000, ..MemberLimits::default() };
    let mut c = Cluster::with(3, limits, 10_000);
    c.settle();
    let follower = c.a_follower();
    let big = "x".repeat(1_000);
    let mut refused = None;
    for n in 0..10 {
        refused = c.call(follower, put(&format!("k{n}"), &big)).err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(Refusal::NoSpace));
    c.run_for(secs(1));
    for n in 0..3 {
        assert_eq!(c.call(n, put("small", "v")), Err(Refusal::NoSpace), "the alarm holds everywhere");
        let grant = Call::LeaseGrant(mvcc::LeaseGrantOp { ttl_s: 10, id: 0 });
        assert_eq!(c.call(n, grant), Err(Refusal::NoSpace));
    }
    let Ok(Reply::Alarms(alarms)) = c.call(0, Call::Alarm { action: AlarmAction::Get, member: 0, alarm: None }) else {
        panic!()
    };
    assert_eq!(alarms.len(), 1);
    let delete = mvcc::DeleteRangeOp { key: "k".into(), range_end: "l".into(), prev_kv: false };
    let Ok(Reply::DeleteRange(deleted)) = c.call(follower, Call::DeleteRange(delete)) else { panic!() };
    let compact = mvcc::CompactOp { revision: deleted.revision, physical: true };
    assert_eq!(c.call(follower, Call::Compact(compact)), Ok(Reply::Compact));
    let clear = Call::Alarm { action: AlarmAction::Deactivate, member: 0, alarm: Some(AlarmKind::NoSpace) };
    let Ok(Reply::Alarms(cleared)) = c.call(0, clear) else { panic!() };
    assert_eq!(cleared, alarms);
    c.run_for(secs(1));
    assert!(c.call(follower, put("small", "v")).is_ok());
    c.run_for(secs(1));
    c.check_digests();
}

#[test]
fn a_full_disk_raises_the_alarm_and_refuses_what_grows() {
    let mut c = Cluster::ready(3);
    let follower = c.a_follower();
    c.step(follower, MachineInput::NoSpace);
    assert_eq!(c.call(follower, put("k", "v")), Err(Refusal::NoSpace));
    c.run_for(secs(1));
    let leader = c.leader().unwrap();
    assert_eq!(c.call(leader, put("k", "v")), Err(Refusal::NoSpace), "the alarm is everybody's");
    assert!(c.call(leader, get("k")).is_ok());
    c.step(follower, MachineInput::SpaceAgain);
    let clear = Call::Alarm { action: AlarmAction::Deactivate, member: 0, alarm: Some(AlarmKind::NoSpace) };
    assert!(c.call(leader, clear).is_ok());
    c.run_for(secs(1));
    assert!(c.call(follower, put("k", "v")).is_ok());
}

fn grant(c: &mut Cluster, n: usize, ttl_s: i64) -> i64 {
    let Ok(Reply::LeaseGrant { id, ttl }) = c.call(n, Call::LeaseGrant(mvcc::LeaseGrantOp { ttl_s, id: 0 })) else {
        panic!()
    };
    assert_eq!(ttl, ttl_s.max(2));
    id
}

fn put_leased(key: &str, lease: i64) -> Call {
    Call::Put(mvcc::PutOp { key: key.to_owned().into(), lease, ..Default::default() })
}

#[test]
fn a_lease_that_nobody_renews_ends_and_takes_its_keys() {
    let mut c = Cluster::ready(3);
    let follower = c.a_follower();
    let lease = grant(&mut c, follower, 5);
    assert!(c.call(follower, put_leased("k", lease)).is_ok());
    for _ in 0..4 {
        c.run_for(secs(3));
        let renewed = c.call(follower, Call::LeaseKeepAlive(lease));
        assert_eq!(renewed, Ok(Reply::LeaseKeepAlive { id: lease, ttl: 5 }));
    }
    assert!(value_of(c.call(0, get("k"))).is_some());
    let Ok(Reply::LeaseTimeToLive { ttl, granted, keys, .. }) =
        c.call(follower, Call::LeaseTimeToLive { id: lease, keys: true })
    else {
        panic!()
    };
    assert!((3..=5).contains(&ttl), "{ttl}");
    assert_eq!((granted, keys), (5, vec!["k".into()]));
    c.run_for(secs(7));
    assert_eq!(value_of(c.call(0, get("k"))), None);
    for n in 0..3 {
        let gone = c.call(n, Call::LeaseKeepAlive(lease));
        assert_eq!(gone, Ok(Reply::LeaseKeepAlive { id: lease, ttl: 0 }));
        let Ok(Reply::LeaseTimeToLive { ttl, .. }) = c.call(n, Call::LeaseTimeToLive { id: lease, keys: false }) else {
            panic!()
        };
        assert_eq!(ttl, -1);
    }
    c.check_digests();
}

#[test]
fn a_new_leader_gives_leases_their_whole_time_again_and_then_ends_them() {
    let mut c = Cluster::ready(3);
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    let lease = grant(&mut c, follower, 6);
    assert!(c.call(follower, put_leased("k", lease)).is_ok());
    c.run_for(secs(4));
    c.stop(leader);
    c.run_until(|c| c.leader().is_some());
    c.run_for(secs(5));
    assert!(value_of(c.call(follower, get("k"))).is_some(), "extended");
    c.run_for(secs(5));
    assert_eq!(value_of(c.call(follower, get("k"))), None);
    assert_eq!(c.call(follower, Call::Leases), Ok(Reply::Leases(Vec::new())));
}

#[test]
fn a_late_answer_about_a_lease_is_not_taken_for_another_question_after_a_restart() {
    let mut c = Cluster::ready(3);
    let follower = c.a_follower();
    let lease = grant(&mut c, follower, 60);
    // The leader hears the question and cannot prove that it leads until the asking member has started again.
    c.mute = Some(Channel::Heartbeat);
    c.ask(follower, Call::LeaseKeepAlive(12_345));
    c.run_for(Nanos::from_millis(10));
    c.stop(follower);
    c.start(follower);
    let id = c.ask(follower, Call::LeaseKeepAlive(lease));
    c.mute = None;
    assert_eq!(c.answer(follower, id).1, Ok(Reply::LeaseKeepAlive { id: lease, ttl: 60 }));
}

#[test]
fn a_refused_opening_is_asked_again_a_tick_later() {
    let mut c = Cluster::ready(3);
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    c.stop(follower);
    c.start(follower);
    let (from, to) = (c.nodes[leader].id, c.nodes[follower].id);
    c.cut.insert((to, from));
    c.run_until(|c| c.member(follower).view().is_some_and(|view| view.leader == Some(from)));
    let refusal = Forward::Rejected { leader: None, refused: vec![(0, 0, Refused::NotLeader)] };
    let frame = encode(GroupId(0), &refusal);
    let before = c.sent(follower, Channel::Forward);
    for _ in 0..100 {
        let (session, channel, frame) = (LinkSession(1), Channel::Forward, frame.clone());
        c.step(follower, MachineInput::Frame { from, session, channel, frame });
    }
    assert!(c.sent(follower, Channel::Forward) - before <= 1);
    c.cut.clear();
    assert!(c.call(follower, put("k", "v")).is_ok());
}

fn watch_all(c: &mut Cluster, n: usize, stream: u64, start_revision: i64) {
    c.watch(n, stream, WatchRequest::Open { needs_leader: false });
    let wish = mvcc::WatchCreate { range_end: "\0".into(), start_revision, ..Default::default() };
    c.watch(n, stream, WatchRequest::Create(wish));
}

fn events(c: &Cluster, n: usize, stream: u64) -> Vec<mvcc::Event> {
    let watched = c.nodes[n].watched.get(&StreamId(stream));
    watched.into_iter().flatten().flat_map(|response| response.events.iter().cloned()).collect()
}

#[test]
fn a_watch_tells_every_change_at_every_member() {
    let mut c = Cluster::ready(3);
    (0..3).for_each(|n| watch_all(&mut c, n, 1, 1));
    for n in 0..10 {
        assert!(c.call(n % 3, put(&format!("k{}", n % 4), "v")).is_ok());
    }
    c.run_for(secs(1));
    let first = events(&c, 0, 1);
    assert_eq!(first.iter().map(|e| e.kv.mod_revision).collect::<Vec<_>>(), (2..=11).collect::<Vec<_>>());
    (1..3).for_each(|n| assert_eq!(events(&c, n, 1), first));
}

#[test]
fn a_slow_watch_stops_at_its_credit_and_loses_nothing() {
    let mut c = Cluster::ready(1);
    c.hold_credit = true;
    watch_all(&mut c, 0, 1, 1);
    let big = "x".repeat(100_000);
    for n in 0..40 {
        assert!(c.call(0, put(&format!("k{n}"), &big)).is_ok());
    }
    c.run_for(secs(1));
    let (told, owed) = (events(&c, 0, 1).len(), c.nodes[0].owed[&StreamId(1)]);
    assert!(told < 40, "{told}");
    assert!((WATCH_CREDIT_BYTES..=WATCH_CREDIT_BYTES + 200_000).contains(&owed), "{owed}");
    c.hold_credit = false;
    c.watch(0, 1, WatchRequest::Taken { bytes: owed });
    c.run_for(secs(1));
    let revisions: Vec<i64> = events(&c, 0, 1).iter().map(|e| e.kv.mod_revision).collect();
    assert_eq!(revisions, (2..=41).collect::<Vec<_>>());
}

#[test]
fn a_stream_that_needs_a_leader_ends_without_one() {
    let mut c = Cluster::ready(3);
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    c.watch(follower, 1, WatchRequest::Open { needs_leader: true });
    c.watch(follower, 2, WatchRequest::Open { needs_leader: false });
    (0..3).filter(|n| *n != follower && *n != leader).for_each(|n| c.stop(n));
    c.stop(leader);
    c.run_for(secs(10));
    assert_eq!(c.nodes[follower].ended.get(&StreamId(1)), Some(&Refusal::NoLeader));
    assert_eq!(c.nodes[follower].ended.get(&StreamId(2)), None);
    c.watch(follower, 3, WatchRequest::Open { needs_leader: true });
    assert_eq!(c.nodes[follower].ended.get(&StreamId(3)), Some(&Refusal::NoLeader));
}

#[test]
fn leadership_moves_where_it_is_told_and_only_from_the_leader() {
    let mut c = Cluster::ready(3);
    let (leader, follower) = (c.leader().unwrap(), c.a_follower());
    let id_of = |c: &Cluster, n: usize| c.member(n).members().find(|r| r.disk == c.nodes[n].id.0).unwrap().member_id;
    let target = id_of(&c, follower);
    assert_eq!(c.call(follower, Call::MoveLeader(target)), Err(Refusal::NotLeader));
    assert_eq!(c.call(leader, Call::MoveLeader(12_345)), Err(Refusal::BadTransferee));
    assert_eq!(c.call(leader, Call::MoveLeader(target)), Ok(Reply::MoveLeader));
    c.run_until(|c| c.leader() == Some(follower));
}

#[test]
fn a_draining_member_gives_the_lead_away() {
    let mut c = Cluster::ready(3);
    let leader = c.leader().unwrap();
    c.step(leader, MachineInput::Request(Request::Drain));
    c.run_until(|c| c.nodes[leader].drained);
    assert_ne!(c.leader(), Some(leader));
    assert_eq!(c.call(leader, get("k")), Err(Refusal::Stopped));
    let mut c = Cluster::ready(1);
    c.step(0, MachineInput::Request(Request::Drain));
    assert!(c.nodes[0].drained, "nobody to give it to");
}

#[test]
fn a_lost_disk_is_replaced_through_any_member() {
    let mut c = Cluster::ready(3);
    let leader = c.leader().unwrap();
    let lost = c.a_follower();
    let asked = (0..3).find(|n| *n != leader && *n != lost).unwrap();
    let name = c.nodes[lost].name.clone();
    let replace = |disk| Call::Replace { name: name.clone(), disk: NodeId(disk), peer_addr: "new:2380".into() };
    assert_eq!(c.call(asked, replace(77)), Err(Refusal::StillHere { name: name.clone() }));
    c.stop(lost);
    let Ok(Reply::MemberList(list)) = c.call(asked, replace(77)) else { panic!() };
    assert!(list.iter().any(|r| r.joining_disk == 77 && r.name == name));
    let new = c.add_blank(&name, 77);
    c.run_until(|c| c.member(leader).members().any(|r| r.disk == 77));
    let record = c.member(leader).members().find(|r| r.disk == 77).unwrap().clone();
    let before = list.iter().find(|r| r.name == name).unwrap();
    assert_eq!((record.member_id, record.ordinal), (before.member_id, before.ordinal));
    // The new disk votes: the cluster survives the loss of another.
    c.stop(asked);
    assert!(c.call(new, put("k", "v")).is_ok());
    let view = c.member(new).view().unwrap();
    assert!(view.config.voters.contains(&NodeId(77)) && !view.config.contains(c.nodes[lost].id));
    c.run_for(secs(1));
    c.check_digests();
}

#[test]
fn a_displaced_disk_ends_when_it_sees_it() {
    let mut c = Cluster::ready(3);
    let (leader, old) = (c.leader().unwrap(), c.a_follower());
    let (l, o) = (c.nodes[leader].id, c.nodes[old].id);
    let name = c.nodes[old].name.clone();
    // The leader believes it gone; it lives, and still hears.
    let down = MachineInput::Link { peer: o, lane: triune_transport::Lane::Main, session: LinkSession(1), up: false };
    c.step(leader, down);
    let replace = Call::Replace { name: name.clone(), disk: NodeId(77), peer_addr: "new:2380".into() };
    assert!(c.call(leader, replace).is_ok());
    c.add_blank(&name, 77);
    c.run_until(|c| c.nodes[old].fatal.is_some());
    assert_eq!(c.nodes[old].fatal, Some(Fatal::Replaced));
    assert_ne!(l, o);
}

#[test]
fn a_disk_that_is_coming_is_not_pushed_aside_while_it_runs() {
    let mut c = Cluster::ready(3);
    let leader = c.leader().unwrap();
    let lost = c.a_follower();
    let name = c.nodes[lost].name.clone();
    let replace = |disk| Call::Replace { name: name.clone(), disk: NodeId(disk), peer_addr: "new:2380".into() };
    c.stop(lost);
    assert!(c.call(leader, replace(77)).is_ok());
    let new = c.add_blank(&name, 77);
    assert_eq!(c.call(leader, replace(88)), Err(Refusal::StillHere { name: name.clone() }));
    assert!(c.call(leader, replace(77)).is_ok(), "it may ask again");
    c.stop(new);
    assert!(c.call(leader, replace(88)).is_ok());
    c.add_blank(&name, 88);
    c.run_until(|c| c.member(leader).members().any(|r| r.disk == 88));
}

#[test]
fn requests_that_break_a_rule_never_reach_the_log() {
    let mut c = Cluster::ready(1);
    let before = c.log_len();
    let cases = [
        (put("", "v"), Refusal::Kv(KvError::EmptyKey)),
        (get(""), Refusal::Kv(KvError::EmptyKey)),
        (put(".triune/mq/t/0/k", "v"), Refusal::Reserved { store: "the queue", prefix: ".triune/mq/" }),
        (get(".triune/cache/0/k"), Refusal::Reserved { store: "the cache", prefix: ".triune/cache/" }),
    ];
    for (call, refusal) in cases {
        assert_eq!(c.call(0, call), Err(refusal));
    }
    let huge = put("k", &"x".repeat(2 << 20));
    assert!(matches!(c.call(0, huge), Err(Refusal::TooLarge { bytes_max, .. }) if bytes_max == 3 << 19));
    assert_eq!(c.log_len(), before);
}

#[test]
fn too_many_waiting_calls_are_refused_and_never_proposed() {
    let limits = MemberLimits { waiting_max: 4, ..MemberLimits::default() };
    let mut c = Cluster::with(3, limits, 10_000);
    c.settle();
    let leader = c.leader().unwrap();
    (0..3).filter(|n| *n != leader).for_each(|n| c.stop(n));
    for n in 0..4 {
        c.ask(leader, put(&format!("k{n}"), "v"));
    }
    let id = c.ask(leader, put("k", "v"));
    assert_eq!(c.nodes[leader].answers[&id].1, Err(Refusal::Busy));
    let id = c.ask(leader, get("k"));
    assert_eq!(c.nodes[leader].answers[&id].1, Err(Refusal::Busy));
}

#[test]
fn a_cancelled_call_is_not_answered() {
    let mut c = Cluster::ready(3);
    let leader = c.leader().unwrap();
    (0..3).filter(|n| *n != leader).for_each(|n| c.stop(n));
    let ids = [c.ask(leader, put("k", "v")), c.ask(leader, get("k")), c.ask(leader, Call::LeaseKeepAlive(5))];
    for id in ids {
        c.step(leader, MachineInput::Request(Request::Cancel(id)));
    }
    c.run_for(secs(20));
    assert!(ids.iter().all(|id| !c.nodes[leader].answers.contains_key(id)));
}

#[test]
fn a_physical_compaction_waits_for_the_removal() {
    let mut c = Cluster::ready(1);
    for _ in 0..5 {
        assert!(c.call(0, put("k", "v")).is_ok());
    }
    c.run_for(secs(1));
    c.hold_flushes = true;
    let compact = |physical| Call::Compact(mvcc::CompactOp { revision: 4, physical });
    let id = c.ask(0, compact(true));
    c.run_for(secs(1));
    assert!(!c.nodes[0].answers.contains_key(&id));
    c.release_flushes();
    assert_eq!(c.answer(0, id).1, Ok(Reply::Compact));
    assert_eq!(c.call(0, compact(false)), Err(Refusal::Kv(KvError::Compacted { compacted: 4 })));
}

#[test]
fn members_hash_alike_and_status_tells_the_leader() {
    let mut c = Cluster::ready(3);
    for n in 0..9 {
        assert!(c.call(n % 3, put("k", "v")).is_ok());
    }
    c.run_for(secs(1));
    let hash = |c: &mut Cluster, n| c.call(n, Call::HashKv(0)).unwrap();
    let first = hash(&mut c, 0);
    assert!((1..3).all(|n| hash(&mut c, n) == first));
    let leader = c.leader().unwrap();
    let leader_id = c.member(leader).members().find(|r| r.disk == c.nodes[leader].id.0).unwrap().member_id;
    for n in 0..3 {
        let Ok(Reply::Status(status)) = c.call(n, Call::Status) else { panic!() };
        assert_eq!(status.leader, leader_id);
        assert!(status.caught_up);
    }
}
