//! What happens to the processes, spread evenly over the requests, and only while all three serve.

use std::time::Duration;

use triune_node::pb::etcdserverpb::{StatusRequest, maintenance_client::MaintenanceClient};

use super::{
    cluster::{Cluster, MEMBERS},
    survey,
    workload::{Random, Shared},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    KillLeader,
    PauseLeader,
    KillAll,
    KillAny,
    PauseAny,
}

/// Injects `count` faults and returns when the cluster serves again after the last.
pub async fn inject(cluster: &mut Cluster, shared: &Shared, count: usize, random: &mut Random) {
    for number in 0..count {
        let due = shared.goal * (number + 1) / (count + 1);
        while shared.sent() < due {
            tokio::time::sleep(POLL).await;
        }
        let fault =
            [Fault::KillLeader, Fault::PauseLeader, Fault::KillAll, Fault::KillAny, Fault::PauseAny][number % 5];
        let victim = match fault {
            Fault::KillLeader | Fault::PauseLeader => leader(shared).await.unwrap_or_else(|| random.below(MEMBERS)),
            Fault::KillAll | Fault::KillAny | Fault::PauseAny => random.below(MEMBERS),
        };
        eprintln!("fault {} of {count}: {fault:?}, member {victim}, after {} requests", number + 1, shared.sent());
        strike(cluster, fault, victim, random).await;
        survey::await_service(cluster, &shared.channels).await;
    }
}

async fn strike(cluster: &mut Cluster, fault: Fault, victim: usize, random: &mut Random) {
    let pause = Duration::from_millis(200 + random.below(2_000) as u64);
    match fault {
        Fault::KillLeader | Fault::KillAny => {
            cluster.kill(victim);
            tokio::time::sleep(pause).await;
            cluster.launch(victim);
        }
        Fault::PauseLeader | Fault::PauseAny => {
            cluster.pause(victim);
            tokio::time::sleep(pause).await;
            cluster.resume(victim);
        }
        Fault::KillAll => {
            cluster.kill_all();
            (0..MEMBERS).for_each(|at| cluster.launch(at));
        }
    }
}

/// The member that calls itself leader.
async fn leader(shared: &Shared) -> Option<usize> {
    for (at, channel) in shared.channels.iter().enumerate() {
        let mut client = MaintenanceClient::new(channel.clone());
        let Ok(Ok(status)) = tokio::time::timeout(PATIENCE, client.status(StatusRequest {})).await else { continue };
        let status = status.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Some(at);
        }
    }
    None
}

const POLL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(1);
