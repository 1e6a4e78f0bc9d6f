//! Known bugs, chosen at run time: the simulator must find each. Absent from production.

/// A bug to run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Mutant {
    /// A vote leaves before it is durable (hashicorp/raft#661).
    VoteBeforeDurable,
    /// Entries of an older term are committed by counting (thesis 3.6.2).
    CommitOlderTerm,
    /// One member applies before its own write is durable (etcd#14370).
    ApplyBeforeDurable,
    /// A read-index round reuses the id of an earlier one (etcd#20418).
    ReadIdReused,
    /// A configuration takes effect when it is applied, not when it is appended.
    ConfigAtApply,
    /// A new leader does not check that the follower's previous entry matches.
    NoLogMatch,
    /// A higher term seen counts as a vote granted (openraft#1220).
    HigherTermIsGrant,
    /// A late completion of an overwritten suffix confirms the new one (openraft#1960).
    StaleCompletion,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: [Self; 8] = [
        Self::VoteBeforeDurable,
        Self::CommitOlderTerm,
        Self::ApplyBeforeDurable,
        Self::ReadIdReused,
        Self::ConfigAtApply,
        Self::NoLogMatch,
        Self::HigherTermIsGrant,
        Self::StaleCompletion,
    ];
}
