//! The etcd v3 door: KV, Watch, Lease, Cluster, Maintenance and health on tonic, with etcd 3.5's codes and texts.

mod cluster;
mod convert;
mod errors;
mod health;
mod kv;
mod lease;
mod maintenance;
mod watch;

use std::sync::Arc;

use tonic::Request;
use tonic::service::Routes;
use triune_transport::Nanos;

use crate::doors::Bridge;
use crate::member::api::{Call, Header, Reply};
use crate::pb::etcdserverpb as pb;

pub use errors::status_of;

/// What `Status.version` says: clients switch features on by it.
pub const ETCD_VERSION: &str = "3.5.21";

/// How the door behaves.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Largest request, in bytes of its encoding. Default 1.5 MiB, as etcd; a little more is read so that the refusal
    /// can be etcd's own.
    pub request_bytes_max: usize,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self { request_bytes_max: 3 << 19 }
    }
}

/// One member's etcd door.
#[derive(Clone, Debug)]
pub struct EtcdDoor {
    bridge: Arc<Bridge>,
    config: EtcdConfig,
}

impl EtcdDoor {
    /// A door to the member behind `bridge`.
    pub const fn new(bridge: Arc<Bridge>, config: EtcdConfig) -> Self {
        Self { bridge, config }
    }

    /// All its services.
    pub fn routes(&self) -> Routes {
        use crate::pb::health::health_server::HealthServer;
        use pb::cluster_server::ClusterServer;
        use pb::kv_server::KvServer;
        use pb::lease_server::LeaseServer;
        use pb::maintenance_server::MaintenanceServer;
        use pb::watch_server::WatchServer;
        // As etcd: what is read may exceed the limit by the slack of its envelope; the member refuses beyond the limit.
        let decode = self.config.request_bytes_max + (512 << 10);
        let encode = usize::MAX;
        let mut routes = Routes::builder();
        routes
            .add_service(
                KvServer::new(self.clone()).max_decoding_message_size(decode).max_encoding_message_size(encode),
            )
            .add_service(
                WatchServer::new(self.clone()).max_decoding_message_size(decode).max_encoding_message_size(encode),
            )
            .add_service(LeaseServer::new(self.clone()))
            .add_service(ClusterServer::new(self.clone()))
            .add_service(MaintenanceServer::new(self.clone()))
            .add_service(HealthServer::new(self.clone()));
        routes.routes()
    }

    /// Asks the member, with what the request's metadata say about waiting.
    async fn ask(&self, wish: &Wish, call: Call) -> Result<(Header, Reply), tonic::Status> {
        self.bridge.call(call, wish.within, wish.needs_leader).await.map_err(|e| status_of(&e.refusal))
    }
}

/// What a request's metadata say about waiting.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    within: Option<Nanos>,
    needs_leader: bool,
}

impl Wish {
    fn of<T>(request: &Request<T>) -> Self {
        let metadata = request.metadata();
        Self {
            within: metadata.get("grpc-timeout").and_then(|t| t.to_str().ok()).and_then(grpc_timeout),
            needs_leader: metadata.get("hasleader").is_some_and(|v| v.as_bytes() == b"true"),
        }
    }
}

/// Reads gRPC's `TimeoutValue TimeoutUnit`.
fn grpc_timeout(text: &str) -> Option<Nanos> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = if digits.len() <= 8 { digits.parse().ok()? } else { return None };
    let nanos = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    Some(Nanos(value.saturating_mul(nanos)))
}

/// The member gave another answer than the call has: a bug of ours, never the client's doing.
fn mismatch() -> tonic::Status {
    tonic::Status::internal("the member answered another question")
}

/// The header as clients know it.
pub(crate) const fn header(h: Header) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        cluster_id: h.cluster_id,
        member_id: h.member_id,
        revision: h.revision,
        raft_term: h.raft_term,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_in_every_unit_and_nothing_else() {
        assert_eq!(grpc_timeout("5S"), Some(Nanos::from_secs(5)));
        assert_eq!(grpc_timeout("250m"), Some(Nanos::from_millis(250)));
        assert_eq!(grpc_timeout("1H"), Some(Nanos::from_secs(3_600)));
        assert_eq!(grpc_timeout("99999999H"), Some(Nanos(u64::MAX)));
        for bad in ["", "S", "5", "5X", "-5S", "999999999S", "5é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
