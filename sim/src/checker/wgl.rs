//! Linearizability by search: is there one order of the operations, each within its call and return, that the model
//! could have produced one after the other?
//!
//! Depth first over "which operation comes next", with the states already tried kept by (set of operations done, model
//! state). On top of that, in the order in which they save most:
//!
//! 1. *By key* ([`check_by_key`]): a history is linearizable if each key's is (Herlihy and Wing's locality).
//! 2. *Absorption*: an answered operation that may come next and leaves the state as it is comes next. Any order with it
//!    later is still an order with it now, so there is no choice to make: reads cost nothing.
//! 3. *Known order* ([`Model::order`]): where answers carry revisions, writes are tried in that order only.
//! 4. *Unknown outcomes* come after answered ones, unless they explain an open read at once; of equal ones only one is
//!    tried.
//!
//! The search is bounded; a search that reaches its bound says [`Verdict::CutShort`], which is not a pass.
//!
//! Source: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for linearizability" (2017);
//! Horn and Kroening, "Faster linearizability checking via P-compositionality" (2015); Athalye's Porcupine.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash};

use triune_transport::Nanos;

use super::{Malformed, Operation, validate};
use crate::TraceHasher;

/// The sequential specification.
pub trait Model {
    /// What can be asked.
    type Op: Clone + PartialEq + fmt::Debug;
    /// What can be answered.
    type Ret: Clone + fmt::Debug;
    /// The object's state.
    type State: Clone + Eq + Hash + fmt::Debug;

    /// The state before the first operation.
    fn init(&self) -> Self::State;

    /// The state after `op`, if it can be answered with `ret` in `state`. `ret` is `None` when the outcome is unknown:
    /// then the state after it took effect, or `None` if in this state it would have none.
    ///
    /// A model may learn from an answer (an unknown revision seen by a read): the state returned may hold more than the
    /// operation alone would tell.
    fn step(&self, state: &Self::State, op: &Self::Op, ret: Option<&Self::Ret>) -> Option<Self::State>;

    /// A number by which operations that have one must be ordered, such as the revision a write was given.
    fn order(&self, op: &Self::Op, ret: &Self::Ret) -> Option<i64> {
        let _ = (op, ret);
        None
    }
}

/// How far to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// States kept per key; the search gives up beyond. Default 4 million.
    pub states_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { states_max: 4_000_000 }
    }
}

type HistoryOp<M> = Operation<<M as Model>::Op, <M as Model>::Ret>;

/// What the search found.
#[derive(Clone, Debug)]
pub enum Verdict<M: Model> {
    /// There is an order.
    Linearizable {
        /// States tried.
        states: usize,
    },
    /// There is none.
    Violation(Box<Counterexample<M>>),
    /// The bound was reached first. Not a pass.
    CutShort {
        /// States tried.
        states: usize,
    },
}

impl<M: Model> Verdict<M> {
    /// Whether there is an order.
    pub const fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable { .. })
    }
}

/// The shortest beginning of a history that no order explains.
#[derive(Clone, Debug)]
pub struct Counterexample<M: Model> {
    /// The best order found for what came before.
    pub explained: Vec<Operation<M::Op, M::Ret>>,
    /// The state after it.
    pub state: M::State,
    /// Those that may come next, none of which can: the one that returned last is the first that cannot be explained.
    pub stuck: Vec<Operation<M::Op, M::Ret>>,
    /// Those of unknown outcome that were not needed so far.
    pub unknown: Vec<Operation<M::Op, M::Ret>>,
}

/// What [`check_by_key`] found.
#[derive(Clone, Debug)]
pub struct Report<K, M: Model> {
    /// Keys checked.
    pub keys: usize,
    /// Operations checked.
    pub ops: usize,
    /// States tried, all keys together.
    pub states: usize,
    /// The keys that did not pass; at most [`FAILURES_MAX`].
    pub failures: Vec<(K, Verdict<M>)>,
}

/// Failing keys that a [`Report`] holds; the check stops there.
pub const FAILURES_MAX: usize = 4;

impl<K, M: Model> Report<K, M> {
    /// Whether every key passed.
    pub const fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Checks each key's operations on their own.
///
/// # Errors
/// When the history itself cannot be: see [`Malformed`].
pub fn check_by_key<M: Model, K: Ord>(
    model: &M,
    history: &[Operation<M::Op, M::Ret>],
    key_of: impl Fn(&M::Op) -> K,
    limits: Limits,
) -> Result<Report<K, M>, Malformed> {
    validate(history)?;
    let mut by_key: BTreeMap<K, Vec<&HistoryOp<M>>> = BTreeMap::new();
    for operation in history {
        by_key.entry(key_of(&operation.op)).or_default().push(operation);
    }
    let mut report = Report { keys: 0, ops: 0, states: 0, failures: Vec::new() };
    for (key, operations) in by_key {
        report.keys += 1;
        report.ops += operations.len();
        let verdict = check_refs(model, &operations, limits);
        match &verdict {
            Verdict::Linearizable { states } | Verdict::CutShort { states } => report.states += states,
            Verdict::Violation(_) => {}
        }
        if !verdict.is_linearizable() {
            report.failures.push((key, verdict));
            if report.failures.len() == FAILURES_MAX {
                break;
            }
        }
    }
    Ok(report)
}

/// Checks one object's history.
///
/// # Errors
/// When the history itself cannot be: see [`Malformed`].
pub fn check<M: Model>(
    model: &M,
    history: &[Operation<M::Op, M::Ret>],
    limits: Limits,
) -> Result<Verdict<M>, Malformed> {
    validate(history)?;
    Ok(check_refs(model, &history.iter().collect::<Vec<_>>(), limits))
}

fn check_refs<M: Model>(model: &M, history: &[&Operation<M::Op, M::Ret>], limits: Limits) -> Verdict<M> {
    let mut search = Search::new(model, history, None);
    match search.run(limits) {
        Outcome::Found => Verdict::Linearizable { states: search.seen.len() },
        Outcome::CutShort => Verdict::CutShort { states: search.seen.len() },
        Outcome::Exhausted => {
            drop(search);
            Verdict::Violation(Box::new(shortest(model, history, limits)))
        }
    }
}

/// Cuts a history that has no order at the first return that makes it so. A beginning of a linearizable history is
/// linearizable, so bisection finds it.
fn shortest<M: Model>(model: &M, history: &[&Operation<M::Op, M::Ret>], limits: Limits) -> Counterexample<M> {
    let mut returns: Vec<_> = history.iter().filter_map(|o| o.ret.as_ref().map(|(at, _)| *at)).collect();
    returns.sort_unstable();
    let holds_until = returns
        .partition_point(|until| !matches!(Search::new(model, history, Some(*until)).run(limits), Outcome::Exhausted));
    let mut search = Search::new(model, history, returns.get(holds_until).copied());
    search.run(limits);
    search.counterexample()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Found,
    Exhausted,
    CutShort,
}

/// One answered operation or one of unknown outcome, ready for the search.
struct Item<'a, M: Model> {
    operation: &'a Operation<M::Op, M::Ret>,
    ret: Option<&'a M::Ret>,
    call: Nanos,
    /// [`Nanos::MAX`] if unknown.
    returned: Nanos,
    /// Its place among those with a known order, or `None`.
    rank: Option<usize>,
}

type Seen<S> = HashSet<(Box<[u64]>, S), BuildHasherDefault<TraceHasher>>;

/// Invariant: the linked list holds exactly the items whose bit is clear, by call time.
struct Search<'a, M: Model> {
    model: &'a M,
    items: Vec<Item<'a, M>>,
    /// `next[i]` follows item `i`; the last element is the head. [`END`] ends the list.
    next: Vec<usize>,
    prev: Vec<usize>,
    done: Box<[u64]>,
    /// Answered items not done.
    open: usize,
    /// How many of those with a known order are done: the next must have this rank.
    ranked_done: usize,
    seen: Seen<M::State>,
    trail: Vec<usize>,
    deepest: (usize, Vec<usize>, M::State),
}

struct Frame<S> {
    /// The state before the choices of this frame.
    state: S,
    candidates: Vec<usize>,
    tried: usize,
    /// How long the trail was before the current candidate.
    trail: usize,
}

const END: usize = usize::MAX;

impl<'a, M: Model> Search<'a, M> {
    /// A search over what was called by `until`; answers after it count as unknown.
    fn new(model: &'a M, history: &[&'a Operation<M::Op, M::Ret>], until: Option<Nanos>) -> Self {
        let until = until.unwrap_or(Nanos::MAX);
        let mut items: Vec<_> = history
            .iter()
            .filter(|o| o.call <= until)
            .map(|operation| {
                let answer = operation.ret.as_ref().filter(|(at, _)| *at <= until);
                Item {
                    operation,
                    ret: answer.map(|(_, ret)| ret),
                    call: operation.call,
                    returned: answer.map_or(Nanos::MAX, |(at, _)| *at),
                    rank: None,
                }
            })
            .collect();
        items.sort_by_key(|item| item.call);
        let order = |item: &Item<'_, M>| item.ret.and_then(|ret| model.order(&item.operation.op, ret));
        let mut ranked: Vec<_> = items.iter().enumerate().filter_map(|(i, item)| Some((order(item)?, i))).collect();
        ranked.sort_unstable();
        for (rank, (_, i)) in ranked.into_iter().enumerate() {
            if let Some(item) = items.get_mut(i) {
                item.rank = Some(rank);
            }
        }
        let n = items.len();
        Self {
            model,
            next: (1..n).chain([END, if n == 0 { END } else { 0 }]).skip(usize::from(n == 0)).collect(),
            prev: (0..=n).map(|i| if i == 0 { n } else { i - 1 }).collect(),
            done: vec![0; n.div_ceil(64)].into_boxed_slice(),
            open: items.iter().filter(|item| item.ret.is_some()).count(),
            ranked_done: 0,
            seen: HashSet::default(),
            trail: Vec::new(),
            deepest: (0, Vec::new(), model.init()),
            items,
        }
    }

    fn run(&mut self, limits: Limits) -> Outcome {
        let state = self.model.init();
        self.absorb(&state);
        self.note_depth(&state);
        let candidates = self.candidates(&state);
        let mut frames = vec![Frame { state, candidates, tried: 0, trail: self.trail.len() }];
        while self.open > 0 {
            let Some(frame) = frames.last_mut() else { return Outcome::Exhausted };
            let keep = frame.trail;
            let candidate = frame.candidates.get(frame.tried).copied();
            frame.tried += 1;
            let step = candidate.and_then(|c| Some((c, self.step(&frame.state, c)?)));
            while self.trail.len() > keep {
                self.undo();
            }
            let Some((chosen, state)) = step else {
                if candidate.is_none() {
                    frames.pop();
                }
                continue;
            };
            self.take(chosen);
            self.absorb(&state);
            if self.seen.len() >= limits.states_max {
                return Outcome::CutShort;
            }
            if self.seen.insert((self.done.clone(), state.clone())) {
                self.note_depth(&state);
                let candidates = self.candidates(&state);
                frames.push(Frame { state, candidates, tried: 0, trail: self.trail.len() });
            }
        }
        Outcome::Found
    }

    fn step(&self, state: &M::State, i: usize) -> Option<M::State> {
        let item = self.items.get(i)?;
        let after = self.model.step(state, &item.operation.op, item.ret)?;
        // An unknown one without effect need never have happened.
        (item.ret.is_some() || after != *state).then_some(after)
    }

    /// Does every answered operation that may come next and changes nothing, until there is none.
    fn absorb(&mut self, state: &M::State) {
        loop {
            let free: Vec<_> = self
                .window()
                .filter(|i| self.item(*i).ret.is_some() && self.step(state, *i).as_ref() == Some(state))
                .collect();
            if free.is_empty() {
                return;
            }
            for i in free {
                self.take(i);
            }
        }
    }

    /// The operations that may come next: called before the first return among those not done, and not out of the known
    /// order.
    fn window(&self) -> impl Iterator<Item = usize> + '_ {
        let mut first_return = Nanos::MAX;
        let mut at = self.follow(self.items.len());
        let scanned = std::iter::from_fn(move || {
            let i = at;
            let item = self.items.get(i)?;
            if item.call > first_return {
                return None;
            }
            first_return = first_return.min(item.returned);
            at = self.follow(i);
            Some(i)
        });
        scanned.filter(|i| self.item(*i).rank.is_none_or(|rank| rank == self.ranked_done))
    }

    fn candidates(&self, state: &M::State) -> Vec<usize> {
        let window: Vec<_> = self.window().collect();
        let mut candidates: Vec<((u8, Nanos), usize)> = Vec::with_capacity(window.len());
        for i in &window {
            let item = self.item(*i);
            let urgency = if item.ret.is_none() {
                let twin = |j: &usize| *j < *i && self.item(*j).ret.is_none() && self.same_op(*i, *j);
                if window.iter().any(twin) {
                    continue;
                }
                if self.explains_a_read(state, *i, &window) { 0 } else { 2 }
            } else {
                u8::from(item.rank.is_none())
            };
            candidates.push(((urgency, item.returned), *i));
        }
        candidates.sort_unstable();
        candidates.into_iter().map(|(_, i)| i).collect()
    }

    /// Whether after the unknown `i` some answered operation that may come next would change nothing.
    fn explains_a_read(&self, state: &M::State, i: usize, window: &[usize]) -> bool {
        let Some(after) = self.step(state, i) else { return false };
        let matches = |j: &usize| self.item(*j).ret.is_some() && self.step(&after, *j).as_ref() == Some(&after);
        window.iter().any(matches)
    }

    fn same_op(&self, i: usize, j: usize) -> bool {
        self.item(i).operation.op == self.item(j).operation.op
    }

    fn item(&self, i: usize) -> &Item<'a, M> {
        self.items.get(i).expect("an index from the list")
    }

    fn follow(&self, i: usize) -> usize {
        self.next.get(i).copied().unwrap_or(END)
    }

    fn take(&mut self, i: usize) {
        let (before, after) = (self.prev.get(i).copied().unwrap_or(END), self.follow(i));
        set(&mut self.next, before, after);
        set(&mut self.prev, after, before);
        self.flip(i);
        self.open -= usize::from(self.item(i).ret.is_some());
        self.ranked_done += usize::from(self.item(i).rank.is_some());
        self.trail.push(i);
    }

    fn undo(&mut self) {
        let Some(i) = self.trail.pop() else { return };
        let (before, after) = (self.prev.get(i).copied().unwrap_or(END), self.follow(i));
        set(&mut self.next, before, i);
        set(&mut self.prev, after, i);
        self.flip(i);
        self.open += usize::from(self.item(i).ret.is_some());
        self.ranked_done -= usize::from(self.item(i).rank.is_some());
    }

    fn flip(&mut self, i: usize) {
        if let Some(word) = self.done.get_mut(i / 64) {
            *word ^= 1 << (i % 64);
        }
    }

    fn note_depth(&mut self, state: &M::State) {
        let answered = self.trail.iter().filter(|i| self.item(**i).ret.is_some()).count();
        if answered > self.deepest.0 {
            self.deepest = (answered, self.trail.clone(), state.clone());
        }
    }

    fn counterexample(mut self) -> Counterexample<M> {
        while !self.trail.is_empty() {
            self.undo();
        }
        let (_, order, state) = std::mem::replace(&mut self.deepest, (0, Vec::new(), self.model.init()));
        for i in &order {
            self.take(*i);
        }
        let copy = |i: &usize| {
            let Item { operation, ret, returned, .. } = self.item(*i);
            Operation { ret: ret.map(|ret| (*returned, ret.clone())), ..(*operation).clone() }
        };
        let mut first_return = Nanos::MAX;
        let mut stuck = Vec::new();
        let mut at = self.follow(self.items.len());
        while let Some(item) = self.items.get(at).filter(|item| item.call <= first_return) {
            first_return = first_return.min(item.returned);
            stuck.push(at);
            at = self.follow(at);
        }
        let (stuck, unknown): (Vec<_>, Vec<_>) = stuck.iter().map(copy).partition(|o| o.ret.is_some());
        Counterexample { explained: order.iter().map(copy).collect(), state, stuck, unknown }
    }
}

fn set(list: &mut [usize], i: usize, value: usize) {
    if let Some(slot) = list.get_mut(i) {
        *slot = value;
    }
}

/// Operations of the explained part that are printed.
const EXPLAINED_SHOWN: usize = 8;

impl<M: Model> fmt::Display for Counterexample<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.explained.len().saturating_sub(EXPLAINED_SHOWN);
        writeln!(f, "explained, in this order ({hidden} before these):")?;
        for operation in self.explained.iter().skip(hidden) {
            writeln!(f, "  {}", Line(operation))?;
        }
        writeln!(f, "state then: {:?}", self.state)?;
        writeln!(f, "and none of these can come next:")?;
        for operation in &self.stuck {
            writeln!(f, "  {}", Line(operation))?;
        }
        writeln!(f, "not even with those of unknown outcome:")?;
        for operation in &self.unknown {
            writeln!(f, "  {}", Line(operation))?;
        }
        Ok(())
    }
}

impl<M: Model> fmt::Display for Verdict<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable { states } => write!(f, "linearizable ({states} states)"),
            Self::CutShort { states } => write!(f, "cut short after {states} states: not decided"),
            Self::Violation(example) => write!(f, "NOT linearizable\n{example}"),
        }
    }
}

struct Line<'a, O, R>(&'a Operation<O, R>);

impl<O: fmt::Debug, R: fmt::Debug> fmt::Display for Line<'_, O, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { client, call, op, ret } = self.0;
        match ret {
            Some((at, ret)) => write!(f, "client {client} [{call:?} .. {at:?}] {op:?} -> {ret:?}"),
            None => write!(f, "client {client} [{call:?} ..        ] {op:?} -> unknown"),
        }
    }
}
