//! A counter on three replicas: the program's state machine, and the few lines that replicate it.
//!
//! `cargo run -p triune-consensus --features driver --example counter`
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::error::Error;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use triune_consensus::driver::{Driver, DriverConfig, MemLog};
use triune_consensus::raft::Raft;
use triune_consensus::replica::{App, AppError, Replica, ReplicaConfig, ReplicaOutput, ReplicaRequest, Token};
use triune_consensus::{Config, Configuration, Entry, Recovered, Role};
use triune_transport::mem::{MemConfig, MemNetwork};
use triune_transport::{GroupId, Nanos, NodeId, Transport};

struct Counter(u64);

impl App for Counter {
    type Response = u64;
    type Query = ();
    type Answer = u64;

    fn apply(&mut self, entry: &Entry) -> u64 {
        self.0 += entry.head.clone().try_get_u64().unwrap_or(0);
        self.0
    }

    fn query(&self, (): ()) -> u64 {
        self.0
    }

    fn snapshot(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_be_bytes())
    }

    fn restore(&mut self, mut state: Bytes) -> Result<(), AppError> {
        self.0 = state.try_get_u64()?;
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = MemNetwork::new(MemConfig::default());
    let nodes = [NodeId(1), NodeId(2), NodeId(3)];
    let (tell, mut outputs) = mpsc::unbounded_channel();
    let mut replicas = Vec::new();
    for node in nodes {
        let formed = Recovered { formed: Some(Configuration::of(nodes)), ..Recovered::default() };
        let protocol = Config::new(GroupId(0), node, node.0);
        let config = ReplicaConfig { durable: false, ..ReplicaConfig::default() };
        let replica = Replica::<Raft, _>::recover(protocol, config, Nanos::ZERO, formed, Counter(0), None)?;
        let transport: Arc<dyn Transport> = Arc::new(network.join(node).ok_or("joined twice")?);
        let tell = tell.clone();
        let sink = move |output| drop(tell.send((node, output)));
        let log = MemLog::new().open();
        replicas.push(Driver::spawn(replica, log, transport, sink, DriverConfig::default())?);
    }
    let mut leader = None;
    while let Some((node, output)) = outputs.recv().await {
        match output {
            ReplicaOutput::Role(change) if change.role == Role::Leader && leader.is_none() => {
                println!("{node:?} leads in epoch {}", change.epoch.0);
                leader = nodes.iter().position(|n| *n == node);
                let head = Bytes::copy_from_slice(&5_u64.to_be_bytes());
                let propose = ReplicaRequest::Propose { token: Token(1), head, sections: Vec::new() };
                replicas.get(leader.unwrap_or(0)).ok_or("no such replica")?.request_wait(propose).await?;
            }
            ReplicaOutput::Applied { position, response, .. } => {
                println!("applied at {position:?}: the counter is {response}");
                let follower = leader.map_or(0, |at| (at + 1) % nodes.len());
                let read = ReplicaRequest::Read { token: Token(2), query: () };
                replicas.get(follower).ok_or("no such replica")?.request_wait(read).await?;
            }
            ReplicaOutput::Answer { answer, .. } => {
                println!("{node:?}, a follower, reads {}", answer?);
                break;
            }
            _ => {}
        }
    }
    for replica in &replicas {
        replica.stop();
        replica.exited().await;
    }
    Ok(())
}
