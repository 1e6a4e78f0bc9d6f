//! The segmented write-ahead log.

mod types;

pub use types::{Appended, Hole, OpenError, ReadError, Recovered, RecoveredStream, Verdicts, WalConfig, WalError};
