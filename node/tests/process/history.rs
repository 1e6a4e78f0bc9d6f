//! What the clients saw: every request with its interval of real time and its outcome.

use std::time::Duration;

use super::model::{Request, Response};

/// One request of one client.
#[derive(Debug, Clone)]
pub struct Record {
    /// Number of the client; a client has one request at a time, but an unknown one may take effect later.
    pub client: usize,
    /// The member that was asked.
    pub member: usize,
    /// Since the beginning of the run.
    pub invoked: Duration,
    pub returned: Duration,
    pub request: Request,
    pub outcome: Outcome,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Answered, at this revision of the store.
    Answered { revision: i64, response: Response },
    /// It may have happened, may happen later, or never.
    Unknown,
    /// The server refused it, or never got it: it did not and will not happen.
    Failed,
}

impl Record {
    /// Whether the answer must be of the newest state: everything but serializable reads.
    pub fn is_linearizable(&self) -> bool {
        !matches!(&self.request, Request::Range(range) if range.serializable)
    }

    /// The revision it was answered at.
    pub fn revision(&self) -> Option<i64> {
        match &self.outcome {
            Outcome::Answered { revision, .. } => Some(*revision),
            Outcome::Unknown | Outcome::Failed => None,
        }
    }
}
