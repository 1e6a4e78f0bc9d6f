//! Channels, lanes and link sessions: how traffic between two members is kept apart.
//!
//! A *channel* orders frames; a *lane* is a connection. Channels 0–3 share the main lane with a queue each, so a
//! heartbeat never waits behind a log entry in a queue; channel 4 (snapshots) has a connection of its own, so it never
//! waits behind one in a socket either.

/// A numbered stream of frames between two members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Channel {
    /// Heartbeats and read-index rounds.
    Heartbeat = 0,
    /// Elections.
    Vote = 1,
    /// Log replication.
    Log = 2,
    /// Commands and reads forwarded to the leader, and their refusals.
    Forward = 3,
    /// Snapshot chunks, on a connection of their own.
    Bulk = 4,
}

impl Channel {
    /// Every channel, in the order of its number.
    pub const ALL: [Self; 5] = [Self::Heartbeat, Self::Vote, Self::Log, Self::Forward, Self::Bulk];

    /// The channel with this number, if there is one.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Heartbeat),
            1 => Some(Self::Vote),
            2 => Some(Self::Log),
            3 => Some(Self::Forward),
            4 => Some(Self::Bulk),
            _ => None,
        }
    }

    /// The connection this channel travels on.
    pub const fn lane(self) -> Lane {
        match self {
            Self::Bulk => Lane::Bulk,
            _ => Lane::Main,
        }
    }
}

/// One of the two connections from a member to a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Channels 0 to 3.
    Main,
    /// Channel 4.
    Bulk,
}

/// The number of one unbroken run of frames from one peer on one lane. Rises with each new run; never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LinkSession(pub u64);
