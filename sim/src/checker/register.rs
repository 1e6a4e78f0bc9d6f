//! The model of one key of an etcd-like store: put, compare-and-set, delete, get, with as much of versions and revisions
//! as the answers tell.
//!
//! The revision of a write whose answer never came is not known: the state says so, and the first read that shows it
//! fills it in. What is not known never makes a violation; it may hide one, which the check against the total order
//! ([`order`](super::order)) then finds.

use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;

use super::wgl::Model;

/// The model; `V` is the value, unique per write where the workload can make it so.
#[derive(Clone, Copy, Debug)]
pub struct Register<V>(PhantomData<V>);

/// What can be asked of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterOp<V> {
    /// Sets it.
    Put(V),
    /// Sets it if it is as expected.
    Cas {
        /// What it must be.
        expect: Expect<V>,
        /// What it becomes.
        value: V,
    },
    /// Removes it.
    Delete,
    /// Reads it.
    Get,
}

/// What a compare-and-set compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect<V> {
    /// There is no value. The same as `ModRevision(0)` and `Version(0)`.
    Absent,
    /// The value.
    Value(V),
    /// The revision of the last write.
    ModRevision(i64),
    /// The number of writes since it was created.
    Version(i64),
}

/// What can be answered. A revision that the door does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterRet<V> {
    /// It was set, at this revision.
    Put {
        /// The write's revision.
        revision: Option<i64>,
    },
    /// Whether it was as expected; if so it was set.
    Cas {
        /// Whether it was.
        succeeded: bool,
        /// The write's revision. Only looked at if it succeeded.
        revision: Option<i64>,
    },
    /// It is gone.
    Delete {
        /// Whether there was something to remove.
        existed: bool,
        /// The removal's revision. Only looked at if something was removed.
        revision: Option<i64>,
    },
    /// What was read.
    Get(Option<Seen<V>>),
}

/// A value as read, with what the door told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<V> {
    /// The value.
    pub value: V,
    /// The revision of its last write.
    pub mod_revision: Option<i64>,
    /// Its number of writes since it was created.
    pub version: Option<i64>,
}

/// The state of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegisterState<V> {
    cell: Option<Cell<V>>,
    /// The greatest revision known to be reached: the next write's is above it.
    floor: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cell<V> {
    value: V,
    version: i64,
    /// `None` while nobody was told. Invariant: if known, it is the floor; if not, it is above it.
    mod_revision: Option<i64>,
}

impl<V> Default for Register<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Register<V> {
    /// The model of a key that does not exist yet.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// What a comparison comes to, as far as the state tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Perhaps,
}

impl<V: Clone + Eq> RegisterState<V> {
    fn holds(&self, expect: &Expect<V>) -> Holds {
        let known = |holds| if holds { Holds::Yes } else { Holds::No };
        match (expect, &self.cell) {
            (Expect::Absent | Expect::ModRevision(0) | Expect::Version(0), cell) => known(cell.is_none()),
            (_, None) => Holds::No,
            (Expect::Value(value), Some(cell)) => known(cell.value == *value),
            (Expect::Version(version), Some(cell)) => known(cell.version == *version),
            (Expect::ModRevision(revision), Some(cell)) => match cell.mod_revision {
                Some(known_revision) => known(known_revision == *revision),
                None if *revision > self.floor => Holds::Perhaps,
                None => Holds::No,
            },
        }
    }

    /// The state after a write of `value`, if `revision` can be its revision.
    fn written(&self, value: &V, revision: Option<i64>) -> Option<Self> {
        let floor = self.raised(revision)?;
        let version = self.cell.as_ref().map_or(1, |cell| cell.version + 1);
        Some(Self { cell: Some(Cell { value: value.clone(), version, mod_revision: revision }), floor })
    }

    fn raised(&self, revision: Option<i64>) -> Option<i64> {
        match revision {
            Some(revision) if revision <= self.floor => None,
            Some(revision) => Some(revision),
            None => Some(self.floor),
        }
    }

    /// The state after a comparison with this revision was seen to hold.
    fn learned(&self, expect: &Expect<V>) -> Self {
        let mut state = self.clone();
        if let (Expect::ModRevision(revision), Some(cell)) = (expect, &mut state.cell)
            && cell.mod_revision.is_none()
        {
            cell.mod_revision = Some(*revision);
            state.floor = *revision;
        }
        state
    }

    /// The state after a read of `seen`, if it can be read.
    fn read(&self, seen: Option<&Seen<V>>) -> Option<Self> {
        let (Some(cell), Some(seen)) = (&self.cell, seen) else {
            return (self.cell.is_none() && seen.is_none()).then(|| self.clone());
        };
        if cell.value != seen.value || seen.version.is_some_and(|version| version != cell.version) {
            return None;
        }
        match seen.mod_revision {
            Some(revision) if self.holds(&Expect::ModRevision(revision)) == Holds::No => None,
            Some(revision) => Some(self.learned(&Expect::ModRevision(revision))),
            None => Some(self.clone()),
        }
    }
}

impl<V: Clone + Eq + Hash + fmt::Debug> Model for Register<V> {
    type Op = RegisterOp<V>;
    type Ret = RegisterRet<V>;
    type State = RegisterState<V>;

    fn init(&self) -> Self::State {
        RegisterState { cell: None, floor: 0 }
    }

    fn step(&self, state: &Self::State, op: &Self::Op, ret: Option<&Self::Ret>) -> Option<Self::State> {
        match (op, ret) {
            (RegisterOp::Put(value), None) => state.written(value, None),
            (RegisterOp::Put(value), Some(RegisterRet::Put { revision })) => state.written(value, *revision),
            (RegisterOp::Cas { expect, value }, None) => match state.holds(expect) {
                Holds::No => None,
                Holds::Yes | Holds::Perhaps => state.learned(expect).written(value, None),
            },
            (RegisterOp::Cas { expect, value }, Some(RegisterRet::Cas { succeeded, revision })) => {
                match (state.holds(expect), succeeded) {
                    (Holds::Yes, false) | (Holds::No, true) => None,
                    (_, true) => state.learned(expect).written(value, *revision),
                    (_, false) => Some(state.clone()),
                }
            }
            (RegisterOp::Delete, None) => state.cell.as_ref().map(|_| RegisterState { cell: None, floor: state.floor }),
            (RegisterOp::Delete, Some(RegisterRet::Delete { existed, revision })) => match (&state.cell, existed) {
                (Some(_), true) => Some(RegisterState { cell: None, floor: state.raised(*revision)? }),
                (None, false) => Some(state.clone()),
                _ => None,
            },
            (RegisterOp::Get, None) => None,
            (RegisterOp::Get, Some(RegisterRet::Get(seen))) => state.read(seen.as_ref()),
            _ => None,
        }
    }

    fn order(&self, _: &Self::Op, ret: &Self::Ret) -> Option<i64> {
        match ret {
            RegisterRet::Put { revision }
            | RegisterRet::Cas { succeeded: true, revision }
            | RegisterRet::Delete { existed: true, revision } => *revision,
            RegisterRet::Cas { .. } | RegisterRet::Delete { .. } | RegisterRet::Get(_) => None,
        }
    }
}

/// A model whose operations carry their key beside them, for [`check_by_key`](super::wgl::check_by_key).
#[derive(Clone, Copy, Debug, Default)]
pub struct Keyed<K, M> {
    model: M,
    key: PhantomData<K>,
}

impl<K, M> Keyed<K, M> {
    /// The model of each key.
    pub const fn new(model: M) -> Self {
        Self { model, key: PhantomData }
    }
}

impl<K: Clone + PartialEq + fmt::Debug, M: Model> Model for Keyed<K, M> {
    type Op = (K, M::Op);
    type Ret = M::Ret;
    type State = M::State;

    fn init(&self) -> Self::State {
        self.model.init()
    }

    fn step(&self, state: &Self::State, op: &Self::Op, ret: Option<&Self::Ret>) -> Option<Self::State> {
        self.model.step(state, &op.1, ret)
    }

    fn order(&self, op: &Self::Op, ret: &Self::Ret) -> Option<i64> {
        self.model.order(&op.1, ret)
    }
}

#[cfg(test)]
mod tests;
