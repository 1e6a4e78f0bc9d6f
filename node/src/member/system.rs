//! The system tables of group 0: who the members are. Rows of the store, changed only by logged commands.

use triune_transport::NodeId;

/// One member, as every member knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemberRecord {
    /// Its name, unique.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its number, never reused; from 1.
    #[prost(uint32, tag = "2")]
    pub ordinal: u32,
    /// Its disk id: the identity it votes under.
    #[prost(uint64, tag = "3")]
    pub disk: u64,
    /// Its etcd member id; kept when the disk is replaced.
    #[prost(uint64, tag = "4")]
    pub member_id: u64,
    /// The version of the binary it runs.
    #[prost(string, tag = "5")]
    pub version: String,
    /// Where peers reach it.
    #[prost(string, tag = "6")]
    pub peer_addr: String,
    /// Where etcd clients reach it, as it says itself: full URLs.
    #[prost(string, repeated, tag = "7")]
    pub client_urls: Vec<String>,
    /// It learns and does not vote.
    #[prost(bool, tag = "8")]
    pub learner: bool,
}

impl MemberRecord {
    /// The identity it votes under.
    pub const fn node(&self) -> NodeId {
        NodeId(self.disk)
    }
}
