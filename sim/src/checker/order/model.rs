//! The store the order is checked against: every key's past, and what an operation does at a revision.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Violation;

/// A key.
pub type Key = Bytes;

/// One key, or all in `start .. end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The key, or the first of the range.
    pub start: Key,
    /// The end, exclusive; `None` is the one key `start`.
    pub end: Option<Key>,
}

/// A key and its value as the store tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Bytes,
    /// The revision at which it was created.
    pub create_revision: i64,
    /// The revision of its last write.
    pub mod_revision: i64,
    /// Writes since it was created.
    pub version: i64,
    /// The lease it is bound to; 0 is none.
    pub lease: i64,
}

/// One change, as a watch shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key was set.
    Put(Kv),
    /// A key was removed.
    Delete(Key),
}

/// All changes of one revision, by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its number; the store's first write is 2.
    pub revision: i64,
    /// What it changed; at least one thing. The order among keys does not matter.
    pub events: Vec<Event>,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Compares, then does all of one branch at one revision. A plain put, delete or range is a branch of one.
    Txn {
        /// All must hold for `success`; none given always holds.
        compares: Vec<Compare>,
        /// Done if they hold.
        success: Vec<Act>,
        /// Done if one does not.
        failure: Vec<Act>,
    },
    /// A range read that any member may answer from the past.
    Serializable(KeyRange),
    /// Ends a lease and removes its keys.
    LeaseRevoke(i64),
}

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sets a key.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Bytes,
        /// The lease; 0 is none.
        lease: i64,
    },
    /// Removes keys.
    Delete(KeyRange),
    /// Reads keys, at the operation's own revision or an older one.
    Range {
        /// Which.
        range: KeyRange,
        /// At most this many; 0 is all.
        limit: usize,
        /// At which revision; `None` is now.
        revision: Option<i64>,
    },
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Key,
    /// What of it.
    pub target: Target,
    /// How it must relate to the target's value.
    pub relation: Relation,
}

/// What a condition looks at. An absent key has revision, version and lease 0; no condition on its value holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its value.
    Value(Bytes),
    /// Its version.
    Version(i64),
    /// The revision at which it was created.
    Create(i64),
    /// The revision of its last write.
    Mod(i64),
    /// Its lease.
    Lease(i64),
}

/// How the key's side relates to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less.
    Less,
    /// Greater.
    Greater,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The revision in the answer's header.
    pub revision: i64,
    /// Whether the comparisons held; `None` if the answer does not tell.
    pub succeeded: Option<bool>,
    /// One for each act of the branch taken. Empty if the answer was not kept, which only puts and revokes allow: what
    /// may come to nothing (a delete, a comparison) must say so, or it is taken for a write.
    pub results: Vec<ActResult>,
}

/// The answer to one act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActResult {
    /// A key was set.
    Put,
    /// So many keys were removed.
    Deleted(i64),
    /// What was read, by key.
    Range {
        /// The pairs, at most as many as the limit.
        kvs: Vec<Kv>,
        /// How many there are, whatever the limit.
        count: usize,
    },
}

impl Op {
    /// A put of `value` at `key`, without a lease.
    pub fn put(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::one(Act::Put { key: key.into(), value: value.into(), lease: 0 })
    }

    /// A delete of one key.
    pub fn delete(key: impl Into<Key>) -> Self {
        Self::one(Act::Delete(KeyRange::key(key)))
    }

    /// A linearizable read.
    pub fn range(range: KeyRange) -> Self {
        Self::one(Act::Range { range, limit: 0, revision: None })
    }

    /// An unconditional transaction of one act.
    pub fn one(act: Act) -> Self {
        Self::Txn { compares: Vec::new(), success: vec![act], failure: Vec::new() }
    }

    pub(super) fn may_write(&self) -> bool {
        match self {
            Self::Txn { success, failure, .. } => {
                success.iter().chain(failure).any(|act| !matches!(act, Act::Range { .. }))
            }
            Self::Serializable(_) => false,
            Self::LeaseRevoke(_) => true,
        }
    }

    pub(super) const fn is_serializable(&self) -> bool {
        matches!(self, Self::Serializable(_))
    }
}

impl KeyRange {
    /// One key.
    pub fn key(key: impl Into<Key>) -> Self {
        Self { start: key.into(), end: None }
    }

    /// All keys from `start` to before `end`.
    pub fn of(start: impl Into<Key>, end: impl Into<Key>) -> Self {
        Self { start: start.into(), end: Some(end.into()) }
    }
}

/// What an operation does and answers.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) succeeded: bool,
    pub(super) events: Vec<Event>,
    pub(super) results: Vec<ActResult>,
}

impl Effect {
    /// Whether the answer is the one this effect gives.
    pub(super) fn agrees(&self, reply: &Reply) -> bool {
        reply.succeeded.is_none_or(|succeeded| succeeded == self.succeeded)
            && (reply.results.is_empty() || reply.results == self.results)
    }
}

/// Every key's past.
pub(super) struct Timeline {
    keys: BTreeMap<Key, Vec<(i64, Option<Kv>)>>,
    revisions: BTreeMap<i64, Vec<Event>>,
}

impl Timeline {
    /// Replays the order and checks that a store can have produced it.
    pub(super) fn build(revisions: &[Revision]) -> Result<Self, Violation> {
        let mut timeline = Self { keys: BTreeMap::new(), revisions: BTreeMap::new() };
        for (expected, Revision { revision, events }) in (FIRST_REVISION..).zip(revisions) {
            let impossible = |reason: String| Violation::Impossible { revision: *revision, reason };
            if *revision != expected {
                return Err(impossible(format!("follows {}", expected - 1)));
            }
            if events.is_empty() {
                return Err(impossible("changes nothing".into()));
            }
            for event in events {
                let before = timeline.at(event.key(), *revision - 1);
                let after = match event {
                    Event::Put(kv) => {
                        let must = written(before, kv.clone(), *revision);
                        if must != *kv {
                            return Err(impossible(format!("shows {kv:?}, must be {must:?}")));
                        }
                        Some(kv.clone())
                    }
                    Event::Delete(key) if before.is_none() => {
                        return Err(impossible(format!("removes {key:?}, which is not there")));
                    }
                    Event::Delete(_) => None,
                };
                let past = timeline.keys.entry(event.key().clone()).or_default();
                if past.last().is_some_and(|(at, _)| at == revision) {
                    return Err(impossible(format!("changes {:?} twice", event.key())));
                }
                past.push((*revision, after));
            }
            timeline.revisions.insert(*revision, sorted(events.clone()));
        }
        Ok(timeline)
    }

    pub(super) fn last(&self) -> i64 {
        self.revisions.keys().next_back().copied().unwrap_or(FIRST_REVISION - 1)
    }

    /// The changes of a revision, by key.
    pub(super) fn events(&self, revision: i64) -> Vec<Event> {
        self.revisions.get(&revision).cloned().unwrap_or_default()
    }

    /// What `op` does in the state at `base`, if its changes get `revision`.
    pub(super) fn effect(&self, op: &Op, base: i64, revision: i64) -> Effect {
        match op {
            Op::Serializable(range) => {
                let act = Act::Range { range: range.clone(), limit: 0, revision: None };
                self.branch(true, &[act], base, revision)
            }
            Op::LeaseRevoke(lease) => {
                let events = sorted(self.bound_to(*lease, base).into_iter().map(Event::Delete).collect());
                Effect { succeeded: true, events, results: Vec::new() }
            }
            Op::Txn { compares, success, failure } => {
                let succeeded = compares.iter().all(|compare| compare.holds(self.at(&compare.key, base)));
                self.branch(succeeded, if succeeded { success } else { failure }, base, revision)
            }
        }
    }

    /// Whether the revision removes all keys of one lease and does nothing else.
    pub(super) fn is_end_of_lease(&self, revision: i64) -> bool {
        let events = self.events(revision);
        let lease = events.first().and_then(|event| self.at(event.key(), revision - 1)).map_or(0, |kv| kv.lease);
        let all = sorted(self.bound_to(lease, revision - 1).into_iter().map(Event::Delete).collect());
        lease != 0 && events == all
    }

    /// Acts see what earlier acts of the same branch did.
    fn branch(&self, succeeded: bool, acts: &[Act], base: i64, revision: i64) -> Effect {
        let mut changed: BTreeMap<Key, Option<Kv>> = BTreeMap::new();
        let mut results = Vec::new();
        for act in acts {
            results.push(match act {
                Act::Put { key, value, lease } => {
                    let before = changed.get(key).map_or_else(|| self.at(key, base), Option::as_ref);
                    let kv = Kv {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: 0,
                        mod_revision: 0,
                        version: 0,
                        lease: *lease,
                    };
                    let kv = written(before, kv, revision);
                    changed.insert(key.clone(), Some(kv));
                    ActResult::Put
                }
                Act::Delete(range) => {
                    let found = self.in_range(range, base, &changed);
                    let count = found.len() as i64;
                    changed.extend(found.into_iter().map(|kv| (kv.key, None)));
                    ActResult::Deleted(count)
                }
                Act::Range { range, limit, revision: past } => {
                    let mut kvs = match past {
                        Some(past) => self.in_range(range, *past, &BTreeMap::new()),
                        None => self.in_range(range, base, &changed),
                    };
                    let count = kvs.len();
                    if *limit > 0 {
                        kvs.truncate(*limit);
                    }
                    ActResult::Range { kvs, count }
                }
            });
        }
        let is_change = |(key, kv): &(Key, Option<Kv>)| kv.is_some() || self.at(key, base).is_some();
        let events = changed.into_iter().filter(is_change);
        let events = events.map(|(key, kv)| kv.map_or(Event::Delete(key), Event::Put)).collect();
        Effect { succeeded, events, results }
    }

    fn at(&self, key: &Key, revision: i64) -> Option<&Kv> {
        let past = self.keys.get(key)?;
        let before = past.partition_point(|(at, _)| *at <= revision);
        past.get(before.checked_sub(1)?)?.1.as_ref()
    }

    fn in_range(&self, range: &KeyRange, revision: i64, changed: &BTreeMap<Key, Option<Kv>>) -> Vec<Kv> {
        let current = |key: &Key| changed.get(key).cloned().unwrap_or_else(|| self.at(key, revision).cloned());
        let Some(end) = &range.end else { return current(&range.start).into_iter().collect() };
        if *end <= range.start {
            return Vec::new();
        }
        let bounds = range.start.clone()..end.clone();
        let old = self.keys.range(bounds.clone()).map(|(key, _)| key);
        let keys: BTreeSet<_> = old.chain(changed.range(bounds).map(|(key, _)| key)).collect();
        keys.into_iter().filter_map(current).collect()
    }

    fn bound_to(&self, lease: i64, revision: i64) -> Vec<Key> {
        let bound = |key: &&Key| self.at(key, revision).is_some_and(|kv| kv.lease == lease);
        self.keys.keys().filter(bound).cloned().collect()
    }
}

impl Event {
    const fn key(&self) -> &Key {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete(key) => key,
        }
    }
}

impl Compare {
    fn holds(&self, kv: Option<&Kv>) -> bool {
        let number = |of: fn(&Kv) -> i64, target: &i64| Some(kv.map_or(0, of).cmp(target));
        let ordering = match &self.target {
            Target::Value(value) => kv.map(|kv| kv.value.cmp(value)),
            Target::Version(n) => number(|kv| kv.version, n),
            Target::Create(n) => number(|kv| kv.create_revision, n),
            Target::Mod(n) => number(|kv| kv.mod_revision, n),
            Target::Lease(n) => number(|kv| kv.lease, n),
        };
        ordering.is_some_and(|ordering| match self.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::NotEqual => ordering.is_ne(),
            Relation::Less => ordering.is_lt(),
            Relation::Greater => ordering.is_gt(),
        })
    }
}

/// `kv` with the counters a write at `revision` gives it.
fn written(before: Option<&Kv>, kv: Kv, revision: i64) -> Kv {
    let (create_revision, version) = before.map_or((revision, 1), |old| (old.create_revision, old.version + 1));
    Kv { create_revision, mod_revision: revision, version, ..kv }
}

fn sorted(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by(|a, b| a.key().cmp(b.key()));
    events
}

/// An empty store is at revision 1.
const FIRST_REVISION: i64 = 2;
