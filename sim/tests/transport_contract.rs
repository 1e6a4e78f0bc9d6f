//! The contract every `Transport` keeps, run on the simulated network in virtual time.

use async_trait::async_trait;
use triune_sim::{FRAME_BYTES_MAX, NetConfig, Rng, SimNetwork, SimTransport};
use triune_transport::contract::World;
use triune_transport::{Nanos, NodeId};

struct Simulated {
    network: SimNetwork,
    seed: u64,
}

impl Simulated {
    fn new(seed: u64) -> Self {
        Self { network: SimNetwork::new(NetConfig::default(), &Rng::new(seed)), seed }
    }
}

#[async_trait(?Send)]
impl World for Simulated {
    type End = SimTransport;

    async fn ends(&mut self, n: u64) -> Vec<SimTransport> {
        self.network = SimNetwork::new(NetConfig::default(), &Rng::new(self.seed));
        (1..=n).map(|id| self.network.end(NodeId(id))).collect()
    }

    async fn cut(&mut self, _: &[SimTransport], a: NodeId, b: NodeId) {
        self.network.block(a, b);
        self.network.block(b, a);
        // Until both ends have noticed.
        self.network.run_for(NetConfig::default().detect_max);
    }

    async fn heal(&mut self, _: &[SimTransport], a: NodeId, b: NodeId) {
        self.network.unblock(a, b);
        self.network.unblock(b, a);
    }

    async fn pause(&mut self) {
        self.network.run_for(Nanos::from_millis(1));
    }

    fn frame_bytes_max(&self) -> usize {
        FRAME_BYTES_MAX
    }
}

macro_rules! run {
    ($case:path) => {
        for seed in 0..20 {
            // The world replaces its network; any network drives a future to its end.
            let driver = SimNetwork::new(NetConfig::default(), &Rng::new(seed));
            let done = driver.block_on($case(&mut Simulated::new(seed)));
            assert!(done.is_some(), "seed {seed}: waits for what never comes");
        }
    };
}

triune_transport::transport_contract!(run);
