//! Configuration: flags over `TRIUNE_*` over TOML over defaults, read once at start.
//!
//! Two steps. [`Layers`] holds what was written, as text by key, and where; [`Resolved`] holds typed, checked values,
//! and is all that the rest of the program sees. [`keys`] is the only list of settings. Nothing else reads the
//! environment.

mod error;
pub mod keys;
mod layers;
mod resolve;
mod value;

pub use error::{ConfigError, InitialClusterProblem};
pub use layers::{Layers, Origin, Written};
pub use resolve::{Admin, Consensus, Dev, Etcd, Node, Peer, Resolved, Setting, Storage};
pub use value::{DiskMode, Door, HostPort, InitialMember, LogFormat, parse_bind, parse_bytes, parse_name};
