//! Compiles `proto/` with protox, in Rust: no protoc, no generated code in the tree.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/rpc.proto", "proto/health.proto"], ["proto"])?;
    // These are the store's own types, with etcd's field numbers: what a client sends goes into the log as it is.
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".mvccpb.KeyValue", "::triune_txn::mvcc::KeyValue")
        .extern_path(".etcdserverpb.RangeRequest", "::triune_txn::mvcc::RangeOp")
        .extern_path(".etcdserverpb.PutRequest", "::triune_txn::mvcc::PutOp")
        .extern_path(".etcdserverpb.DeleteRangeRequest", "::triune_txn::mvcc::DeleteRangeOp")
        .compile_fds(descriptors)?;
    Ok(())
}
