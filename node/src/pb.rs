//! The wire types and gRPC services of the etcd v3 API and of gRPC health, compiled from `proto/`.
//!
//! Bytes fields are [`bytes::Bytes`], so that keys and values go from the socket to the log without a copy. Names
//! and numbers are etcd's own: a stock client cannot tell the difference.

/// Keys, values and events.
#[allow(missing_docs, unused_qualifications, reason = "generated from proto/kv.proto")]
#[allow(clippy::all, clippy::use_self, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// KV, Watch, Lease, Cluster and Maintenance.
#[allow(missing_docs, unused_qualifications, reason = "generated from proto/rpc.proto")]
#[allow(clippy::all, clippy::use_self, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// gRPC health.
#[allow(missing_docs, unused_qualifications, reason = "generated from proto/health.proto")]
#[allow(clippy::all, clippy::use_self, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
