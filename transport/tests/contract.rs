//! The contract suite on `mem` and on `tcp` over loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::Duration;

use async_trait::async_trait;
use triune_transport::NodeId;
use triune_transport::contract::World;
use triune_transport::mem::{MemConfig, MemNetwork, MemTransport};
use triune_transport::tcp::{TcpConfig, TcpTransport};

const FRAME_BYTES_MAX: usize = 1 << 20;

/// One network of either kind hangs at most this long; a passing case takes a fraction of a second.
const HUNG: Duration = Duration::from_secs(60);

fn block_on<F: Future>(case: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(HUNG, case).await.expect("the case hangs") });
}

struct Mem(Option<MemNetwork>);

#[async_trait(?Send)]
impl World for Mem {
    type End = MemTransport;

    async fn ends(&mut self, n: u64) -> Vec<MemTransport> {
        let config = MemConfig { queue_frames_max: 256, frame_bytes_max: FRAME_BYTES_MAX, ..MemConfig::default() };
        let network = self.0.insert(MemNetwork::new(config));
        (1..=n).map(|id| network.join(NodeId(id)).unwrap()).collect()
    }

    async fn cut(&mut self, _: &[MemTransport], a: NodeId, b: NodeId) {
        self.0.as_ref().unwrap().cut(a, b);
    }

    async fn heal(&mut self, _: &[MemTransport], a: NodeId, b: NodeId) {
        self.0.as_ref().unwrap().heal(a, b);
    }

    async fn pause(&mut self) {
        tokio::task::yield_now().await;
    }

    fn frame_bytes_max(&self) -> usize {
        FRAME_BYTES_MAX
    }
}

struct Tcp;

#[async_trait(?Send)]
impl World for Tcp {
    type End = TcpTransport;

    async fn ends(&mut self, n: u64) -> Vec<TcpTransport> {
        let mut ends: Vec<TcpTransport> = Vec::new();
        for id in 1..=n {
            let config = TcpConfig {
                queue_frames_max: 256,
                inbox_events_max: 256,
                frame_bytes_max: FRAME_BYTES_MAX,
                seed: id,
                ..TcpConfig::new(NodeId(id))
            };
            ends.push(TcpTransport::bind(config).await.unwrap());
        }
        for a in 1..=n {
            for b in 1..=n {
                link(&ends, NodeId(a), NodeId(b));
            }
        }
        ends
    }

    async fn cut(&mut self, ends: &[TcpTransport], a: NodeId, b: NodeId) {
        end(ends, a).remove_peer(b);
        end(ends, b).remove_peer(a);
    }

    async fn heal(&mut self, ends: &[TcpTransport], a: NodeId, b: NodeId) {
        link(ends, a, b);
        link(ends, b, a);
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn frame_bytes_max(&self) -> usize {
        FRAME_BYTES_MAX
    }
}

fn end(ends: &[TcpTransport], id: NodeId) -> &TcpTransport {
    ends.get(id.0 as usize - 1).unwrap()
}

/// The own id is ignored by `set_peer`.
fn link(ends: &[TcpTransport], from: NodeId, to: NodeId) {
    end(ends, from).set_peer(to, end(ends, to).local_addr().to_string());
}

mod mem {
    macro_rules! run {
        ($case:path) => {
            super::block_on($case(&mut super::Mem(None)))
        };
    }
    triune_transport::transport_contract!(run);
}

mod tcp {
    macro_rules! run {
        ($case:path) => {
            super::block_on($case(&mut super::Tcp))
        };
    }
    triune_transport::transport_contract!(run);
}
