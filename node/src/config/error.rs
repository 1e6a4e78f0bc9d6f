//! What can be wrong with a configuration. Each message says what was written, where, and what would do.

use std::path::PathBuf;

use super::layers::Origin;

/// Why a configuration is refused. The caller prints it and exits 64: nothing was started or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Give the path of a file that can be read.
    #[error("cannot read the configuration file {}", path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Mend the file where the source points.
    #[error("{} is not TOML", path.display())]
    FileMalformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// Mend the spelling.
    #[error("there is no setting {key} ({origin}){}", nearest.map(|n| format!("; did you mean {n}?")).unwrap_or_default())]
    UnknownKey {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// The setting that is spelled most like it.
        nearest: Option<&'static str>,
    },
    /// Leave it out: no part of this build would heed it.
    #[error("{key} ({origin}) belongs to a part of triune that is not built yet; leave it out")]
    NotBuilt {
        /// The key, section or door.
        key: String,
        /// Where.
        origin: Origin,
    },
    /// Write a text, a whole number, true or false, or a list of texts.
    #[error("{key} ({origin}) must be a text, a whole number, true or false, or a list of texts")]
    BadForm {
        /// The key.
        key: String,
        /// Where.
        origin: Origin,
    },
    /// Write what is expected.
    #[error("{key} = {value:?} ({origin}): expected {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// As written.
        value: String,
        /// Where.
        origin: Origin,
        /// What would do.
        expected: &'static str,
    },
    /// Leave it out, or use `start`: `dev` chooses it for each of its members.
    #[error("{key} ({origin}) is for `triune start`; `triune dev` chooses it for each of its members")]
    NotInDev {
        /// The key.
        key: &'static str,
        /// Where.
        origin: Origin,
    },
    /// Two settings that cannot both hold.
    #[error("{left} must be {relation} {right}")]
    Contradiction {
        /// One key with its value.
        left: String,
        /// How they must relate.
        relation: &'static str,
        /// The other.
        right: String,
    },
    /// Bind loopback, or say that the network is trusted.
    #[error(
        "{key} = {addr} can be reached from other machines, without TLS or auth; bind 127.0.0.1, or add --insecure if \
         all who can reach it may read and write everything"
    )]
    Exposed {
        /// The key.
        key: &'static str,
        /// The address.
        addr: std::net::SocketAddr,
    },
    /// Say by which name others reach a wildcard address.
    #[error("{key} = {addr} is no address to connect to; give --{flag} host:port as well")]
    AdvertiseNeeded {
        /// The key.
        key: &'static str,
        /// The address.
        addr: std::net::SocketAddr,
        /// The flag to give.
        flag: &'static str,
    },
    /// The list of members and this member disagree.
    #[error("--initial-cluster {problem}")]
    InitialCluster {
        /// What is wrong with it.
        problem: InitialClusterProblem,
    },
    /// Choose a smaller `--port-offset` or fewer members.
    #[error("member {member} would need port {port}, and ports end at 65535; choose a smaller --port-offset")]
    PortTooHigh {
        /// The member, from 1.
        member: u16,
        /// The port that does not exist.
        port: u32,
    },
}

/// What is wrong with `--initial-cluster`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InitialClusterProblem {
    /// A name stands twice.
    #[error("names {0} twice")]
    NameTwice(String),
    /// An address stands twice.
    #[error("gives the address {0} to two members")]
    AddressTwice(String),
    /// This member is not in it.
    #[error("does not list this member, {0}; add {0}=host:port, or set --name")]
    SelfMissing(String),
    /// This member is listed under another address than the one it has.
    #[error("lists this member at {listed}, but --peer-advertise (default: --peer-addr) says {own}")]
    SelfElsewhere {
        /// The address in the list.
        listed: String,
        /// The address of this member.
        own: String,
    },
    /// More than five voters.
    #[error("lists {0} members; 1 to 5 can vote")]
    Count(usize),
}
