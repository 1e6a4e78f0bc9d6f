//! What a member is started with: who it is, what its disk held, how much it may hold in memory.

use std::sync::Arc;

use triune_consensus::{Config, Recovered};
use triune_storage::OrderedStore;
use triune_transport::{ClusterId, Nanos, NodeId};

/// All a [`super::Member`] knows at its start.
#[derive(Debug)]
pub struct MemberConfig {
    /// The cluster, hash of the list it was formed from.
    pub cluster: ClusterId,
    /// The disk id.
    pub node: NodeId,
    /// The member's name.
    pub name: String,
    /// Random, new at every start: names the door's session and seeds what is drawn.
    pub boot: u64,
    /// The list the cluster was formed from, sorted by name; empty on a disk that came later. The first leader writes
    /// the member table from it.
    pub formed: Vec<FormedMember>,
    /// Where peers reach this member, as it tells them.
    pub peer_addr: String,
    /// Where etcd clients reach it: full URLs, as it tells them.
    pub client_urls: Vec<String>,
    /// The version of this binary.
    pub version: String,
    /// The wall clock now, in ms since 1970.
    pub wall_ms: u64,
    /// Bounds.
    pub limits: MemberLimits,
    /// One per group this member has a replica of; group 0 is always among them.
    pub groups: Vec<GroupRecovered>,
}

/// One member of the list a cluster was formed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormedMember {
    /// Its name.
    pub name: String,
    /// Its disk id.
    pub disk: NodeId,
    /// Where peers reach it, as the list said.
    pub peer_addr: String,
}

/// What the disk held of one group.
#[derive(Debug)]
pub struct GroupRecovered {
    /// How its replica behaves; names the group.
    pub replica: Config,
    /// The log and hard state. `applied` must be what [`super::applied_mark`] reads out of `store`.
    pub recovered: Recovered,
    /// The group's state.
    pub store: Arc<dyn OrderedStore>,
}

/// How much a member takes and holds. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberLimits {
    /// The largest request. Default 1.5 MiB, as etcd.
    pub request_bytes_max: usize,
    /// Compares, and steps of each branch, of one transaction level. Default 128, as etcd.
    pub txn_ops_max: usize,
    /// The state may grow to this before the NOSPACE alarm. Default 2 GiB, as etcd.
    pub quota_bytes: u64,
    /// Calls that may wait here for a leader, a quorum or an apply; more are refused as `Busy`. Default 10,000.
    pub waiting_max: usize,
    /// Bytes of proposals that may wait here. Default 64 MiB.
    pub waiting_bytes_max: usize,
    /// Watch streams. Default 100,000.
    pub streams_max: usize,
    /// Oldest change not yet handed to the flusher. Default 100 ms.
    pub flush_every: Nanos,
    /// A flush is made sooner once so much was applied since the last. Default 16 MiB.
    pub flush_bytes: usize,
    /// How often watchers that asked for it are told of progress. Default 10 min, as etcd.
    pub progress_every: Nanos,
    /// Least time to live of a lease in seconds. Default 2: 1.5 × the shortest election timeout, rounded up.
    pub lease_ttl_s_min: i64,
}

impl Default for MemberLimits {
    fn default() -> Self {
        Self {
            request_bytes_max: 3 << 19,
            txn_ops_max: 128,
            quota_bytes: 2 << 30,
            waiting_max: 10_000,
            waiting_bytes_max: 64 << 20,
            streams_max: 100_000,
            flush_every: Nanos::from_millis(100),
            flush_bytes: 16 << 20,
            progress_every: Nanos::from_secs(600),
            lease_ttl_s_min: 2,
        }
    }
}
