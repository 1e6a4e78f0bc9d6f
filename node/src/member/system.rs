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
    /// The disk that is coming in place of `disk`; 0: none. It learns until the configuration names it a voter.
    #[prost(uint64, tag = "9")]
    pub joining_disk: u64,
    /// Where peers reach the joining disk's process.
    #[prost(string, tag = "10")]
    pub joining_addr: String,
}

impl MemberRecord {
    /// The identity it votes under.
    pub const fn node(&self) -> NodeId {
        NodeId(self.disk)
    }

    /// Every (identity, address) a transport must know for it: its own, and the joining disk's if there is one.
    pub fn peers(&self) -> impl Iterator<Item = (NodeId, &str)> {
        let joining = (self.joining_disk != 0).then_some((NodeId(self.joining_disk), self.joining_addr.as_str()));
        std::iter::once((self.node(), self.peer_addr.as_str())).chain(joining)
    }
}
