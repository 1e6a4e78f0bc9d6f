//! The wire types and gRPC services of the etcd v3 API and of gRPC health, compiled from `proto/`.
//!
//! Bytes fields are [`bytes::Bytes`], so that keys and values go from the socket to the log without a copy. Names
//! and numbers are etcd's own: a stock client cannot tell the difference.

/// Keys, values and events.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/kv.proto"
)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
    pub use triune_txn::mvcc::KeyValue;
}

/// KV, Watch, Lease, Cluster and Maintenance.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/rpc.proto"
)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
    pub use triune_txn::mvcc::{DeleteRangeOp as DeleteRangeRequest, PutOp as PutRequest, RangeOp as RangeRequest};

    /// The enums of [`RangeRequest`].
    pub mod range_request {
        pub use triune_txn::mvcc::{SortOrder, SortTarget};
    }
}

/// gRPC health.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/health.proto"
)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
