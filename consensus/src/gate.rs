//! The durability gate: holds each effect until the write it waits for is durable, line by line.
//!
//! 1. An effect leaves the gate only when every write ≤ its `after` is durable.
//! 2. Effects of one line leave in the order they came.
//! 3. A waiting effect holds up no other line.
//!
//! It is pure, and the driver and every simulation run this one.

use std::collections::{BTreeMap, VecDeque};

use triune_storage::IoSeq;
use triune_transport::{Channel, NodeId};

use crate::{Effect, Effects};

/// What keeps its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Peer(NodeId, Channel),
    Apply,
    Reply,
}

/// Effects that wait for a write.
#[derive(Clone, Debug)]
pub struct Gate<M> {
    /// Invariant: never falls.
    durable: IoSeq,
    /// Invariant: no queue is empty, and the front of each waits for a write > `durable`.
    lines: BTreeMap<Line, VecDeque<(IoSeq, Effect<M>)>>,
}

impl<M> Default for Gate<M> {
    fn default() -> Self {
        Self::new(IoSeq::NONE)
    }
}

impl<M> Gate<M> {
    /// A gate whose writes ≤ `durable` are durable already.
    pub const fn new(durable: IoSeq) -> Self {
        Self { durable, lines: BTreeMap::new() }
    }

    /// Takes the effects of one step; appends to `released` those that wait for nothing, in order.
    pub fn admit(&mut self, effects: &mut Effects<M>, released: &mut Vec<Effect<M>>) {
        for effect in effects.0.drain(..) {
            let Some((line, after)) = line_of(&effect) else {
                released.push(effect);
                continue;
            };
            match self.lines.get_mut(&line) {
                Some(queue) => queue.push_back((after, effect)),
                None if after > self.durable => {
                    self.lines.entry(line).or_default().push_back((after, effect));
                }
                None => released.push(effect),
            }
        }
    }

    /// Notes that every write ≤ `seq` is durable; appends to `released` what that lets through.
    pub fn persisted(&mut self, seq: IoSeq, released: &mut Vec<Effect<M>>) {
        if seq <= self.durable {
            return;
        }
        self.durable = seq;
        self.lines.retain(|_, queue| {
            while queue.front().is_some_and(|(after, _)| *after <= seq) {
                if let Some((after, effect)) = queue.pop_front() {
                    assert!(after <= seq, "an effect left the gate before its write was durable");
                    released.push(effect);
                }
            }
            !queue.is_empty()
        });
    }

    /// Every write ≤ this is durable.
    pub const fn durable(&self) -> IoSeq {
        self.durable
    }

    /// How many effects wait.
    pub fn waiting(&self) -> usize {
        self.lines.values().map(VecDeque::len).sum()
    }
}

/// The line an effect keeps order on, and what it waits for; `None` for effects that never wait.
const fn line_of<M>(effect: &Effect<M>) -> Option<(Line, IoSeq)> {
    match effect {
        Effect::Send { to, channel, after, .. } => Some((Line::Peer(*to, *channel), *after)),
        Effect::Apply { after, .. } => Some((Line::Apply, *after)),
        Effect::Reply { after, .. } => Some((Line::Reply, *after)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(to: u64, channel: Channel, msg: u32, after: u64) -> Effect<u32> {
        Effect::Send { to: NodeId(to), channel, msg, after: IoSeq(after) }
    }

    fn admit(gate: &mut Gate<u32>, effects: Vec<Effect<u32>>) -> Vec<Effect<u32>> {
        let mut released = Vec::new();
        gate.admit(&mut Effects(effects), &mut released);
        released
    }

    #[test]
    fn a_vote_that_waits_does_not_delay_a_heartbeat() {
        let mut gate = Gate::default();
        let beat = send(2, Channel::Heartbeat, 7, 0);
        let released = admit(&mut gate, vec![send(2, Channel::Vote, 1, 1), beat.clone()]);
        assert_eq!(released, vec![beat]);
        assert_eq!(gate.waiting(), 1);
    }

    #[test]
    fn a_line_keeps_its_order_behind_a_waiting_effect() {
        let mut gate = Gate::default();
        assert!(admit(&mut gate, vec![send(2, Channel::Log, 1, 1), send(2, Channel::Log, 2, 0)]).is_empty());
        let mut released = Vec::new();
        gate.persisted(IoSeq(1), &mut released);
        assert_eq!(released, vec![send(2, Channel::Log, 1, 1), send(2, Channel::Log, 2, 0)]);
        assert_eq!(gate.waiting(), 0);
    }

    #[test]
    fn a_completion_covers_every_smaller_number_and_no_larger() {
        let mut gate = Gate::default();
        admit(&mut gate, vec![send(2, Channel::Log, 1, 1), send(3, Channel::Log, 2, 2), send(4, Channel::Log, 3, 3)]);
        let mut released = Vec::new();
        gate.persisted(IoSeq(2), &mut released);
        assert_eq!(released.len(), 2);
        assert_eq!(gate.waiting(), 1);
    }
}
