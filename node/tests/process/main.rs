//! Three real processes under `kill -9`, SIGSTOP and the death of all at once, while 32 clients write: nothing that
//! was acknowledged is lost, and what everybody saw fits into one order.
//!
//! The short form runs in every `cargo test`; `TRIUNE_FULL=1` runs 55,000 requests and 20 faults. With
//! `TRIUNE_PROCESS_SERVER=etcd` the same runs against Debian's etcd, which proves the test on a server known to be
//! good. `TRIUNE_SEED` repeats the choice of requests and faults; what the machine interleaves it does not repeat.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a test: a panic is its way to fail, and it has no readers outside"
)]

mod cluster;
mod faults;
mod history;
mod linear;
mod model;
mod order;
mod survey;
mod workload;

use std::{
    rc::Rc,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use cluster::{Cluster, Server};
use order::Violation;
use workload::{Random, Shared};

#[test]
fn acknowledged_writes_survive_kills_and_pauses() {
    run(Server::Triune { disk: "real" }).unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn acknowledged_writes_survive_the_loss_of_all_unsynced_bytes() {
    run(Server::Triune { disk: "lossy" }).unwrap_or_else(|violation| panic!("{violation}"));
}

/// The test of the test: without syncs the loss is found, and the write is named.
#[cfg(feature = "mutants")]
#[test]
fn a_disk_that_does_not_sync_is_caught() {
    match run(Server::Triune { disk: "lossy,nosync" }) {
        Err(Violation::LostWrite(text)) => eprintln!("caught, as it must be: {text}"),
        Err(other) => panic!("caught, but no lost write is named: {other}"),
        Ok(()) => panic!("members that sync nothing lost nothing: this test would not see a loss"),
    }
}

/// One run at a time: two clusters on two cores would only time each other out.
fn run(server: Server) -> Result<(), Violation> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = match std::env::var("TRIUNE_PROCESS_SERVER").as_deref() {
        Ok("etcd") => Server::Etcd,
        Ok(other) => panic!("TRIUNE_PROCESS_SERVER={other}: expected etcd, or nothing"),
        Err(_) => server,
    };
    let full = std::env::var_os("TRIUNE_FULL").is_some();
    let (requests, faults) = if full { (55_000, 20) } else { (4_000, 4) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
    let seed = std::env::var("TRIUNE_SEED").map_or(now.into(), |seed| seed.parse().expect("TRIUNE_SEED is a number"));
    eprintln!("{server:?}: {requests} requests, {faults} faults, TRIUNE_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, load_and_check(Cluster::start(server), requests, faults, seed))
}

async fn load_and_check(mut cluster: Cluster, requests: usize, faults: usize, seed: u64) -> Result<(), Violation> {
    let shared = Shared::new(&cluster.endpoints(), requests);
    survey::await_service(&mut cluster, &shared.channels).await;
    let mut random = Random(seed);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn_local(workload::client(Rc::clone(&shared), number, random.0 ^ (number as u64) << 32));
    }
    faults::inject(&mut cluster, &shared, faults, &mut random).await;
    shared.released.set(true);
    while let Some(ended) = clients.join_next().await {
        ended.expect("clients do not panic");
    }
    cluster.check_running();
    let survey = survey::take(&cluster, &shared.channels).await.map_err(Violation::Contradiction)?;
    let records = shared.records.take();
    let summary = order::check(&records, &survey.events, &shared.expiring.borrow())?;
    if let Some(lost) = shared.lost_leases.borrow().first() {
        return Err(Violation::LostWrite(lost.clone()));
    }
    survey.check_end().map_err(Violation::Contradiction)?;
    let linear = linear::check(&records, &summary, &survey.events).map_err(Violation::Contradiction)?;
    eprintln!(
        "{} requests, {} revisions: {} writes and {} reads stand in the order, {} unknown took effect, {} leases ran \
         out; {linear}",
        records.len(),
        summary.revisions,
        summary.writes,
        summary.reads,
        summary.took_effect.len(),
        summary.expiries,
    );
    assert!(summary.writes > requests / 10 && summary.reads > requests / 10, "the run did something");
    Ok(())
}

const CLIENTS: usize = 32;
