//! Checks a history against *the* order: the revisions that a watch from the first one gave, at each member.
//!
//! Where a store numbers its writes and shows them all, no search is needed and keys need not be looked at one by one:
//! transactions and ranges are checked whole.
//!
//! 1. The orders seen at all members are equal, and each is one a store can have produced (revisions without gap,
//!    versions counted).
//! 2. Each acknowledged write stands at its revision with exactly its effect, and nobody else's.
//! 3. Each read equals the model at its revision; so does each comparison of a transaction.
//! 4. Revisions follow real time: what was called after an answer came shows at least that answer's revision, and a
//!    write a later one. (A serializable read may be old; it must still be true.)
//! 5. Every revision has one cause: an acknowledged write, or an unknown one used at most once, or the end of a lease,
//!    which removes exactly the keys bound to it.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use triune_transport::Nanos;

pub use self::model::{Act, ActResult, Compare, Event, Key, KeyRange, Kv, Op, Relation, Reply, Revision, Target};
use self::model::{Effect, Timeline};
use super::{Malformed, Operation, validate};

/// The order one member's watch gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberOrder {
    /// Whose watch.
    pub member: String,
    /// From the first revision to the last.
    pub revisions: Vec<Revision>,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Revisions in the order.
    pub revisions: usize,
    /// Acknowledged writes that stand at their revision.
    pub writes: usize,
    /// Acknowledged operations without effect: reads, failed comparisons, deletes of nothing.
    pub reads: usize,
    /// Revisions explained by a write of unknown outcome.
    pub unknown_applied: usize,
    /// Writes of unknown outcome that never took effect.
    pub unknown_never: usize,
    /// Revisions explained by the end of a lease.
    pub leases_ended: usize,
}

/// What is wrong. Operations are given by their number in the history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The recorder is at fault.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Two members showed different orders.
    #[error("{first} and {second} differ at revision {revision}: {left} against {right}")]
    MembersDiffer {
        /// One member.
        first: String,
        /// The other.
        second: String,
        /// Where.
        revision: i64,
        /// What the first showed there.
        left: String,
        /// What the second showed there.
        right: String,
    },
    /// A revision that no store can have written.
    #[error("revision {revision}: {reason}")]
    Impossible {
        /// Which.
        revision: i64,
        /// Why not.
        reason: String,
    },
    /// An acknowledged write is not in the order.
    #[error("lost write: {op} was acknowledged at revision {revision}, the order ends at {last}")]
    Lost {
        /// The operation.
        op: Described,
        /// The revision it was told.
        revision: i64,
        /// The last revision there is.
        last: i64,
    },
    /// An acknowledged write had another effect than it must.
    #[error("{op} was acknowledged at revision {revision}, which shows {found} instead of {expected}")]
    WrongEffect {
        /// The operation.
        op: Described,
        /// The revision it was told.
        revision: i64,
        /// What the model says it does there.
        expected: String,
        /// What the order shows.
        found: String,
    },
    /// Two acknowledged writes claim one revision.
    #[error("{op} and {other} were both acknowledged at revision {revision}")]
    ClaimedTwice {
        /// One.
        op: Described,
        /// The other.
        other: Described,
        /// The revision.
        revision: i64,
    },
    /// An answer differs from the model at its revision.
    #[error("{op} answered {found} at revision {revision}, where the model says {expected}")]
    WrongAnswer {
        /// The operation.
        op: Described,
        /// The revision of the answer.
        revision: i64,
        /// The model's answer.
        expected: String,
        /// The answer.
        found: String,
    },
    /// Revisions run against real time.
    #[error("{op} was answered at revision {revision}, though revision {seen} had been seen before it was called")]
    AgainstTime {
        /// The operation.
        op: Described,
        /// Its revision.
        revision: i64,
        /// The revision answered before.
        seen: i64,
    },
    /// A revision nobody asked for: an invented write, or one applied twice.
    #[error("revision {revision} has no cause: {found}")]
    NoCause {
        /// The revision.
        revision: i64,
        /// Its events.
        found: String,
    },
}

/// An operation as told in a violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its number in the history.
    pub number: usize,
    /// Client, times and request.
    pub text: String,
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {}", self.number, self.text)
    }
}

/// Checks `history` against the orders that the members' watches gave. O(n log n), but for unknown outcomes that could
/// explain several revisions.
///
/// # Errors
/// The first violation found.
pub fn check(history: &[Operation<Op, Reply>], orders: &[MemberOrder]) -> Result<Report, Violation> {
    validate(history)?;
    members_agree(orders)?;
    let revisions = orders.first().map(|order| order.revisions.as_slice()).unwrap_or_default();
    let timeline = Timeline::build(revisions)?;
    let seen = seen_before(history);
    let mut check = Check { history, timeline, seen, claimed: BTreeMap::new(), report: Report::default() };
    check.report.revisions = revisions.len();
    for number in 0..history.len() {
        check.acknowledged(number)?;
    }
    check.real_time()?;
    check.causes(revisions)?;
    Ok(check.report)
}

fn members_agree(orders: &[MemberOrder]) -> Result<(), Violation> {
    let Some((first, others)) = orders.split_first() else { return Ok(()) };
    for second in others {
        let longest = first.revisions.len().max(second.revisions.len());
        for i in 0..longest {
            let (left, right) = (first.revisions.get(i), second.revisions.get(i));
            if left != right {
                return Err(Violation::MembersDiffer {
                    first: first.member.clone(),
                    second: second.member.clone(),
                    revision: left.or(right).map_or(0, |r| r.revision),
                    left: left.map_or_else(|| "nothing".into(), |r| format!("{:?}", r.events)),
                    right: right.map_or_else(|| "nothing".into(), |r| format!("{:?}", r.events)),
                });
            }
        }
    }
    Ok(())
}

struct Check<'a> {
    history: &'a [Operation<Op, Reply>],
    timeline: Timeline,
    /// For each operation the newest revision answered before it was called.
    seen: Vec<i64>,
    /// Which operation each revision belongs to.
    claimed: BTreeMap<i64, usize>,
    report: Report,
}

impl Check<'_> {
    fn describe(&self, number: usize) -> Described {
        let text = self.history.get(number).map(|o| {
            let until = o.ret.as_ref().map_or_else(|| "?".into(), |(at, _)| format!("{at:?}"));
            format!("client {} [{:?} .. {until}] {:?}", o.client, o.call, o.op)
        });
        Described { number, text: text.unwrap_or_default() }
    }

    /// Promises 2 and 3, for one operation that was answered.
    fn acknowledged(&mut self, number: usize) -> Result<(), Violation> {
        let Some(Operation { op, ret: Some((_, reply)), .. }) = self.history.get(number) else { return Ok(()) };
        let revision = reply.revision;
        if revision > self.timeline.last() {
            let last = self.timeline.last();
            return Err(Violation::Lost { op: self.describe(number), revision, last });
        }
        // A write with effect stands at its revision, on top of the one before; anything else is a read of its own.
        let written = self.timeline.effect(op, revision - 1, revision);
        let read = self.timeline.effect(op, revision, revision);
        let writes = op.may_write() && !written.events.is_empty() && written.agrees(reply);
        let reads = read.events.is_empty() && read.agrees(reply);
        // An answer that does not tell (a revoke's) may be either: it is a write if the revision is as it would write it
        // and still free.
        let free = !self.claimed.contains_key(&revision) && self.seen(number) < revision;
        if writes && (!reads || (free && self.timeline.events(revision) == written.events)) {
            return self.claim(number, revision, &written);
        }
        if reads {
            self.report.reads += 1;
            return Ok(());
        }
        let (expected, found) = (format!("{:?}", read.results), format!("{:?}", reply.results));
        Err(Violation::WrongAnswer { op: self.describe(number), revision, expected, found })
    }

    fn claim(&mut self, number: usize, revision: i64, written: &Effect) -> Result<(), Violation> {
        let found = self.timeline.events(revision);
        if found != written.events {
            let (expected, found) = (format!("{:?}", written.events), format!("{found:?}"));
            return Err(Violation::WrongEffect { op: self.describe(number), revision, expected, found });
        }
        if let Some(other) = self.claimed.insert(revision, number) {
            let (op, other) = (self.describe(number), self.describe(other));
            return Err(Violation::ClaimedTwice { op, other, revision });
        }
        self.report.writes += 1;
        Ok(())
    }

    /// Promise 4.
    fn real_time(&self) -> Result<(), Violation> {
        for (number, operation) in self.history.iter().enumerate() {
            let Operation { op, ret: Some((_, Reply { revision, .. })), .. } = operation else { continue };
            let (revision, seen) = (*revision, self.seen(number));
            let writes = self.claimed.get(&revision) == Some(&number);
            if !op.is_serializable() && (revision < seen || (writes && revision == seen)) {
                return Err(Violation::AgainstTime { op: self.describe(number), revision, seen });
            }
        }
        Ok(())
    }

    fn seen(&self, number: usize) -> i64 {
        self.seen.get(number).copied().unwrap_or(0)
    }

    /// Promise 5: gives each revision that nobody was acknowledged a cause of its own, by augmenting paths.
    fn causes(&mut self, revisions: &[Revision]) -> Result<(), Violation> {
        let unknown: Vec<_> =
            self.history.iter().enumerate().filter(|(_, o)| o.ret.is_none() && o.op.may_write()).collect();
        let mut causes: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for revision in revisions.iter().filter(|r| !self.claimed.contains_key(&r.revision)) {
            let number = revision.revision;
            let events = self.timeline.events(number);
            let can = |(n, o): &&(usize, &Operation<Op, Reply>)| {
                self.seen(*n) < number && self.timeline.effect(&o.op, number - 1, number).events == events
            };
            let candidates: Vec<usize> = unknown.iter().filter(can).map(|(n, _)| *n).collect();
            causes.insert(number, candidates);
        }
        let mut used: BTreeMap<usize, i64> = BTreeMap::new();
        for number in causes.keys().copied().collect::<Vec<_>>() {
            if assign(number, &causes, &mut used, &mut BTreeSet::new()) {
                continue;
            }
            if !self.timeline.is_end_of_lease(number) {
                let found = format!("{:?}", self.timeline.events(number));
                return Err(Violation::NoCause { revision: number, found });
            }
            self.report.leases_ended += 1;
        }
        self.report.unknown_applied = used.len();
        self.report.unknown_never = unknown.len() - used.len();
        Ok(())
    }
}

/// For each operation the newest revision answered before it was called.
fn seen_before(history: &[Operation<Op, Reply>]) -> Vec<i64> {
    let strict = history.iter().filter(|o| !o.op.is_serializable());
    let mut answered: Vec<(Nanos, i64)> =
        strict.filter_map(|o| o.ret.as_ref().map(|(at, reply)| (*at, reply.revision))).collect();
    answered.sort_unstable();
    let mut newest = 0;
    for (_, revision) in &mut answered {
        newest = newest.max(*revision);
        *revision = newest;
    }
    let seen = |call: Nanos| {
        let before = answered.partition_point(|(at, _)| *at < call);
        before.checked_sub(1).and_then(|i| answered.get(i)).map_or(0, |(_, revision)| *revision)
    };
    history.iter().map(|o| seen(o.call)).collect()
}

/// Kuhn's step: finds a cause for `revision`, moving others to another cause of theirs if need be.
fn assign(
    revision: i64,
    causes: &BTreeMap<i64, Vec<usize>>,
    used: &mut BTreeMap<usize, i64>,
    tried: &mut BTreeSet<usize>,
) -> bool {
    for cause in causes.get(&revision).into_iter().flatten() {
        if !tried.insert(*cause) {
            continue;
        }
        let holder = used.get(cause).copied();
        if holder.is_none_or(|holder| assign(holder, causes, used, tried)) {
            used.insert(*cause, revision);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
