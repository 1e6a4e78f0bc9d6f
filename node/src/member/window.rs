//! The commands of a door that have no answer yet, by their number in the session.
//!
//! ```text
//!  acked below = base                     next
//!        ├──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬───┤
//!        │▓▓│  │▓▓│▓▓│  │  │▓▓│▓▓│▓▓│▓▓│▓▓ │     ▓ waits   blank: answered, given up
//! ```
//! Numbers are dense and rise for as long as the member runs, over sessions too. Everything below `base` was answered
//! or given up: the table forgets it, and a late copy of it is skipped.

use std::collections::VecDeque;

use bytes::Bytes;
use triune_storage::Epoch;
use triune_transport::Nanos;

use super::api::RequestId;

/// A command without an answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) who: Who,
    /// The encoded head: what is sent again is the same, byte for byte.
    pub(super) head: Bytes,
    pub(super) deadline: Nanos,
    pub(super) sent_at: Nanos,
    /// How often it was sent.
    pub(super) tries: u32,
    /// It was refused, or lost its leader: send it at the next occasion.
    pub(super) again: bool,
    /// Only for the leader of this epoch to propose to itself: void under any other.
    pub(super) only_in: Option<Epoch>,
    /// A compaction whose client waits for the removal.
    pub(super) physical: bool,
}

/// Who waits for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Door(RequestId),
    Duty(Duty),
}

/// What a member proposes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Duty {
    Form,
    Announce,
    Alarm,
    Revoke,
    Checkpoint,
}

/// The window. See the file's head.
#[derive(Debug)]
pub(super) struct Window {
    /// The number of the first slot.
    base: u64,
    /// Invariant: the first slot is not blank.
    slots: VecDeque<Option<Pending>>,
    live: usize,
    bytes: usize,
}

impl Window {
    pub(super) const fn new() -> Self {
        Self { base: 1, slots: VecDeque::new(), live: 0, bytes: 0 }
    }

    /// Adds a command; gives its number.
    pub(super) fn push(&mut self, pending: Pending) -> u64 {
        self.live += 1;
        self.bytes += pending.head.len();
        self.slots.push_back(Some(pending));
        self.base + self.slots.len() as u64 - 1
    }

    /// Takes a command out: it has its answer, or nobody waits for one.
    pub(super) fn take(&mut self, seq: u64) -> Option<Pending> {
        let pending = self.slot(seq)?.take()?;
        self.live -= 1;
        self.bytes -= pending.head.len();
        while matches!(self.slots.front(), Some(None)) {
            self.slots.pop_front();
            self.base += 1;
        }
        Some(pending)
    }

    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Pending> {
        self.slot(seq)?.as_mut()
    }

    /// The commands that wait, ascending.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Pending)> {
        (self.base..).zip(&mut self.slots).filter_map(|(seq, slot)| Some((seq, slot.as_mut()?)))
    }

    /// The numbers for which `which` holds, ascending.
    pub(super) fn find(&self, mut which: impl FnMut(&Pending) -> bool) -> Vec<u64> {
        let slots = (self.base..).zip(&self.slots);
        slots.filter(|(_, slot)| slot.as_ref().is_some_and(&mut which)).map(|(seq, _)| seq).collect()
    }

    /// Every smaller number was answered or given up.
    pub(super) const fn acked_below(&self) -> u64 {
        self.base
    }

    pub(super) const fn len(&self) -> usize {
        self.live
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// From the oldest that waits to the newest, blanks included: what a stuck one keeps from being forgotten.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    fn slot(&mut self, seq: u64) -> Option<&mut Option<Pending>> {
        let at = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(bytes: usize) -> Pending {
        Pending {
            who: Who::Duty(Duty::Form),
            head: Bytes::from(vec![0; bytes]),
            deadline: Nanos::ZERO,
            sent_at: Nanos::ZERO,
            tries: 0,
            again: false,
            only_in: None,
            physical: false,
        }
    }

    #[test]
    fn the_base_follows_the_oldest_that_waits() {
        let mut window = Window::new();
        assert_eq!([window.push(pending(1)), window.push(pending(2)), window.push(pending(4))], [1, 2, 3]);
        assert!(window.take(2).is_some());
        assert!(window.take(2).is_none());
        assert_eq!((window.acked_below(), window.len(), window.bytes(), window.span()), (1, 2, 5, 3));
        assert!(window.take(1).is_some());
        assert_eq!((window.acked_below(), window.span()), (3, 1));
        assert!(window.take(1).is_none());
        assert!(window.take(3).is_some());
        assert_eq!((window.acked_below(), window.len(), window.bytes(), window.span()), (4, 0, 0, 0));
        assert_eq!(window.push(pending(1)), 4);
        assert!(window.take(u64::MAX).is_none());
    }

    #[test]
    fn only_what_waits_is_seen() {
        let mut window = Window::new();
        for bytes in 0..5 {
            window.push(pending(bytes));
        }
        window.take(3);
        assert_eq!(window.iter_mut().map(|(seq, _)| seq).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert_eq!(window.find(|p| p.head.len() > 2), [4, 5]);
    }
}
