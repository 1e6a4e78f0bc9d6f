//! What Raft must not forget (figure 2, "persistent state"), and the stack of configurations above the log's base.
//!
//! The stack is kept with term and vote so that a start never scans the log for configurations.
//!
//! Layout, little-endian: protocol tag `u8` = 1, version `u8` = 1, term `u64`, vote `u64` (0: nobody), commit `u64`,
//! then `u16` configurations of: index `u64` and three sets (voters, outgoing, learners), each `u16` + `u64`s.

use bytes::{BufMut, Bytes, BytesMut};
use triune_storage::{Epoch, Index};
use triune_transport::NodeId;

use super::wire::{Cursor, put_configuration};
use crate::{Configuration, RecoverError, WireError};

/// Names Raft in a data directory.
pub(super) const PROTOCOL_TAG: u8 = 1;
const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HardState {
    pub(super) term: Epoch,
    pub(super) vote: Option<NodeId>,
    /// A hint: what was known committed when this was written.
    pub(super) commit: Index,
    pub(super) configs: Vec<(Index, Configuration)>,
}

impl HardState {
    pub(super) fn encode(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(128);
        buf.put_u8(PROTOCOL_TAG);
        buf.put_u8(VERSION);
        buf.put_u64_le(self.term.0);
        buf.put_u64_le(self.vote.map_or(0, |node| node.0));
        buf.put_u64_le(self.commit.0);
        buf.put_u16_le(u16::try_from(self.configs.len()).expect("at most a few configurations are above the base"));
        for (index, config) in &self.configs {
            buf.put_u64_le(index.0);
            put_configuration(&mut buf, config);
        }
        buf.freeze()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, RecoverError> {
        match bytes.first() {
            Some(&PROTOCOL_TAG) => Self::decode_body(bytes).map_err(|_| RecoverError::BadState),
            Some(&found) => Err(RecoverError::OtherProtocol { found }),
            None => Err(RecoverError::BadState),
        }
    }

    fn decode_body(bytes: Bytes) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(bytes);
        cursor.u8()?;
        if cursor.u8()? != VERSION {
            return Err(WireError::Malformed { field: "hard state version" });
        }
        let term = Epoch(cursor.u64()?);
        let vote = Some(NodeId(cursor.u64()?)).filter(|node| node.0 != 0);
        let commit = Index(cursor.u64()?);
        let count = cursor.u16()?;
        let mut configs = Vec::new();
        for _ in 0..count {
            configs.push((Index(cursor.u64()?), cursor.configuration()?));
        }
        cursor.end()?;
        Ok(Self { term, vote, commit, configs })
    }
}

/// The configurations above the log's base, oldest first, and the one in force at the base.
///
/// Invariant: never empty; indexes strictly rise; all but the first are above the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigStack(Vec<(Index, Configuration)>);

impl ConfigStack {
    pub(super) fn new(index: Index, config: Configuration) -> Self {
        Self(vec![(index, config)])
    }

    pub(super) fn recover(stack: Vec<(Index, Configuration)>) -> Result<Self, RecoverError> {
        let rising = stack.iter().zip(stack.iter().skip(1)).all(|((a, _), (b, _))| a < b);
        if stack.is_empty() || !rising {
            return Err(RecoverError::BadState);
        }
        Ok(Self(stack))
    }

    /// The newest, committed or not: a configuration is in force from its append on (thesis 4.1).
    pub(super) fn latest(&self) -> &(Index, Configuration) {
        self.0.last().expect("the stack is never empty")
    }

    /// The newest at or below `index`.
    #[cfg(feature = "mutants")]
    pub(super) fn at(&self, index: Index) -> &(Index, Configuration) {
        self.0.iter().rev().find(|(at, _)| *at <= index).unwrap_or_else(|| self.oldest())
    }

    /// The one before the newest, if the stack still holds it.
    pub(super) fn previous(&self) -> Option<&Configuration> {
        self.0.iter().rev().nth(1).map(|(_, config)| config)
    }

    #[cfg(feature = "mutants")]
    fn oldest(&self) -> &(Index, Configuration) {
        self.0.first().expect("the stack is never empty")
    }

    pub(super) fn push(&mut self, index: Index, config: Configuration) {
        assert!(index > self.latest().0, "configurations stand in the order of the log");
        self.0.push((index, config));
    }

    /// Forgets those from `index` on; whether there were any.
    pub(super) fn truncate_from(&mut self, index: Index) -> bool {
        let before = self.0.len();
        self.0.retain(|(at, _)| *at < index);
        assert!(!self.0.is_empty(), "a truncation took the configuration at the base");
        self.0.len() != before
    }

    /// Forgets what no truncation can bring back: all older than the one in force at `base`.
    pub(super) fn release(&mut self, base: Index) {
        let keep = self.0.partition_point(|(at, _)| *at <= base).saturating_sub(1);
        self.0.drain(..keep);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Index, Configuration)> {
        self.0.iter()
    }

    pub(super) fn to_vec(&self) -> Vec<(Index, Configuration)> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> HardState {
        let joint = Configuration {
            voters: [NodeId(1), NodeId(2)].into(),
            outgoing: [NodeId(1), NodeId(3)].into(),
            learners: [NodeId(9)].into(),
        };
        HardState {
            term: Epoch(7),
            vote: Some(NodeId(3)),
            commit: Index(40),
            configs: vec![(Index(0), Configuration::of([NodeId(1)])), (Index(41), joint)],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(HardState::decode(state().encode()), Ok(state()));
    }

    #[test]
    fn another_protocols_directory_is_named_and_a_cut_one_is_refused() {
        let bytes = state().encode();
        assert_eq!(HardState::decode(bytes.slice(..20)), Err(RecoverError::BadState));
        assert_eq!(HardState::decode(Bytes::from_static(&[2, 1])), Err(RecoverError::OtherProtocol { found: 2 }));
    }

    #[test]
    fn a_truncated_configuration_uncovers_the_one_before() {
        let mut stack = ConfigStack::recover(state().configs).expect("rising");
        assert!(stack.latest().1.is_joint());
        assert!(stack.truncate_from(Index(41)));
        assert!(!stack.latest().1.is_joint());
        assert!(!stack.truncate_from(Index(41)));
    }

    #[test]
    fn a_release_keeps_the_configuration_in_force_at_the_base() {
        let mut stack = ConfigStack::recover(state().configs).expect("rising");
        stack.release(Index(40));
        assert_eq!(stack.to_vec().len(), 2);
        stack.release(Index(41));
        assert_eq!(stack.to_vec().len(), 1);
    }
}
