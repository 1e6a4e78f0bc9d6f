//! Judges what clients saw: [`wgl`] asks whether *some* order explains it, [`order`] whether *the* order does that a
//! watch from the first revision gave.
//!
//! Both take times from one clock that all clients share (virtual time, or one machine's monotonic clock), and both
//! know the outcome "unknown": such an operation took effect once, at any time after its call, or never.

pub mod order;
pub mod register;
pub mod wgl;

use std::collections::BTreeMap;

use triune_transport::Nanos;

/// One call by one client, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<O, R> {
    /// Who called. A client has one call open at a time; after an unknown outcome it may go on.
    pub client: u64,
    /// When it called.
    pub call: Nanos,
    /// What it asked.
    pub op: O,
    /// When the answer came and what it was; `None` if the outcome is unknown. An operation that is known *not* to have
    /// happened (refused before it was proposed) does not belong in a history.
    pub ret: Option<(Nanos, R)>,
}

/// A history that no run can produce: the recorder is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// An answer is older than its call.
    #[error("client {client}: answered at {ret:?}, before its call at {call:?}")]
    AnsweredBeforeCall {
        /// Whose.
        client: u64,
        /// The call.
        call: Nanos,
        /// The answer.
        ret: Nanos,
    },
    /// A client called before its last call was answered.
    #[error("client {client}: calls at {call:?} while its last call is open until {open_until:?}")]
    Overlap {
        /// Whose.
        client: u64,
        /// The second call.
        call: Nanos,
        /// When the first was answered.
        open_until: Nanos,
    },
}

/// Checks that each answer follows its call and that no client has two calls open.
///
/// # Errors
/// The first fault found.
pub fn validate<O, R>(history: &[Operation<O, R>]) -> Result<(), Malformed> {
    let mut sorted: Vec<_> = history.iter().collect();
    sorted.sort_by_key(|o| o.call);
    let mut open: BTreeMap<u64, Nanos> = BTreeMap::new();
    for operation in sorted {
        let (client, call) = (operation.client, operation.call);
        if let Some(open_until) = open.get(&client).copied().filter(|open_until| *open_until > call) {
            return Err(Malformed::Overlap { client, call, open_until });
        }
        if let Some((ret, _)) = &operation.ret {
            if *ret < call {
                return Err(Malformed::AnsweredBeforeCall { client, call, ret: *ret });
            }
            open.insert(client, *ret);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(client: u64, call: u64, ret: Option<u64>) -> Operation<(), ()> {
        Operation { client, call: Nanos(call), op: (), ret: ret.map(|at| (Nanos(at), ())) }
    }

    #[test]
    fn a_recorder_at_fault_is_told() {
        assert_eq!(validate(&[op(1, 5, Some(9)), op(1, 0, Some(5)), op(2, 3, None), op(2, 4, Some(5))]), Ok(()));
        assert!(matches!(validate(&[op(1, 5, Some(4))]), Err(Malformed::AnsweredBeforeCall { client: 1, .. })));
        assert!(matches!(validate(&[op(1, 0, Some(9)), op(1, 8, None)]), Err(Malformed::Overlap { client: 1, .. })));
    }
}
