//! The event queue of a simulated world: earliest first, and first come first served among equals.
//!
//! 1. Two events of the same instant come out in the order in which they went in, so a run depends on nothing but its
//!    seed. (`BinaryHeap` alone promises no order among equals.)
//! 2. Time never goes back: an event pushed for the past comes out now.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use triune_transport::Nanos;

/// Events in order of their time.
#[derive(Clone, Debug)]
pub struct EventQueue<T> {
    heap: BinaryHeap<Reverse<Slot<T>>>,
    pushed: u64,
    now: Nanos,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    at: Nanos,
    seq: u64,
    event: T,
}

impl<T> Default for EventQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> EventQueue<T> {
    /// An empty queue at time zero.
    pub const fn new() -> Self {
        Self { heap: BinaryHeap::new(), pushed: 0, now: Nanos::ZERO }
    }

    /// The time of the event popped last.
    pub const fn now(&self) -> Nanos {
        self.now
    }

    /// Adds an event at true time `at`, or now if that is past. An event at [`Nanos::MAX`] ("never") is not kept.
    pub fn push(&mut self, at: Nanos, event: T) {
        if at == Nanos::MAX {
            return;
        }
        let slot = Slot { at: at.max(self.now), seq: self.pushed, event };
        self.pushed += 1;
        self.heap.push(Reverse(slot));
    }

    /// The earliest event, and the clock moves to it.
    pub fn pop(&mut self) -> Option<(Nanos, T)> {
        let Reverse(slot) = self.heap.pop()?;
        debug_assert!(slot.at >= self.now);
        self.now = slot.at;
        Some((slot.at, slot.event))
    }

    /// When the earliest event is due.
    pub fn peek_at(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse(slot)| slot.at)
    }

    /// The earliest event if it is due by `until`; otherwise the clock moves to `until` and there is none.
    pub fn pop_until(&mut self, until: Nanos) -> Option<(Nanos, T)> {
        if self.peek_at().is_some_and(|at| at <= until) {
            return self.pop();
        }
        self.now = self.now.max(until);
        None
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Forgets the events for which `keep` is false. O(n).
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.heap.retain(|Reverse(slot)| keep(&slot.event));
    }
}

impl<T> PartialEq for Slot<T> {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl<T> Eq for Slot<T> {}

impl<T> PartialOrd for Slot<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Slot<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn events_come_in_time_order_and_equals_in_push_order() {
        let mut rng = Rng::new(11);
        let mut queue = EventQueue::new();
        let mut expected = Vec::new();
        for n in 0..5_000_u64 {
            let at = Nanos(rng.below(50));
            queue.push(at, n);
            expected.push((at, n));
        }
        expected.sort();
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(popped, expected);
    }

    #[test]
    fn the_past_is_now_and_never_is_dropped() {
        let mut queue = EventQueue::new();
        queue.push(Nanos(10), 'a');
        assert_eq!(queue.pop(), Some((Nanos(10), 'a')));
        queue.push(Nanos(3), 'b');
        queue.push(Nanos::MAX, 'c');
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.pop(), Some((Nanos(10), 'b')));
        assert!(queue.is_empty());
    }

    #[test]
    fn pop_until_moves_the_clock_even_when_nothing_is_due() {
        let mut queue = EventQueue::new();
        queue.push(Nanos(10), ());
        assert_eq!(queue.pop_until(Nanos(5)), None);
        assert_eq!(queue.now(), Nanos(5));
        assert_eq!(queue.pop_until(Nanos(10)), Some((Nanos(10), ())));
        queue.push(Nanos(20), ());
        queue.retain(|()| false);
        assert_eq!(queue.peek_at(), None);
    }
}
