//! Claims of Ongaro's thesis, one test each, with its section.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![cfg(all(feature = "raft", feature = "check"))]

mod common;
mod pump;

use pump::Pump;
use triune_consensus::Role;

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
