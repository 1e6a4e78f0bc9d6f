//! The bounded queue between the readers' tasks and `recv`: the [`EventSink`] of who brought none.
//!
//! 1. A batch is taken whole or not at all, by what is held already: at most one batch a connection over the limits.
//! 2. Whoever was refused is woken once half of the limits is free again, not by each event taken.
//! 3. After `close` nothing is taken in; what is inside can still be taken out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::config::EventSink;
use crate::Event;

pub(super) struct Inbox {
    state: Mutex<State>,
    readable: Notify,
    /// Shared with the readers: there is room again.
    room: Arc<Notify>,
    events_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    bytes: usize,
    refused: bool,
    closed: bool,
}

impl Inbox {
    pub(super) fn new(events_max: usize, bytes_max: usize, room: Arc<Notify>) -> Self {
        Self { state: Mutex::default(), readable: Notify::new(), room, events_max, bytes_max }
    }

    /// Cancel safe: the only await is before anything is taken.
    pub(super) async fn recv_many(&self, events: &mut Vec<Event>, max: usize) -> usize {
        loop {
            // Made before the look, so that a `close` between look and await is not lost.
            let readable = self.readable.notified();
            if let Some(taken) = self.take(events, max) {
                return taken;
            }
            readable.await;
        }
    }

    pub(super) fn close(&self) {
        self.state().closed = true;
        self.readable.notify_waiters();
        self.room.notify_waiters();
    }

    /// `None` when there is nothing yet.
    fn take(&self, into: &mut Vec<Event>, max: usize) -> Option<usize> {
        let mut state = self.state();
        let taken = max.min(state.events.len());
        if taken == 0 {
            return (max == 0 || state.closed).then_some(0);
        }
        let before = into.len();
        into.extend(state.events.drain(..taken));
        let bytes: usize = into.iter().skip(before).map(weight).sum();
        state.bytes -= bytes;
        let roomy = state.events.len() <= self.events_max / 2 && state.bytes <= self.bytes_max / 2;
        let wake = state.refused && roomy;
        if wake {
            state.refused = false;
        }
        let more = !state.events.is_empty();
        drop(state);
        if wake {
            self.room.notify_waiters();
        }
        if more {
            // Another caller of `recv` may be waiting for what this one left.
            self.readable.notify_one();
        }
        Some(taken)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Inbox {
    fn deliver(&self, events: &mut Vec<Event>) -> bool {
        let mut state = self.state();
        if state.closed {
            events.clear();
            return true;
        }
        if state.events.len() >= self.events_max || state.bytes >= self.bytes_max {
            state.refused = true;
            return false;
        }
        let empty = state.events.is_empty();
        state.bytes += events.iter().map(weight).sum::<usize>();
        state.events.extend(events.drain(..));
        drop(state);
        if empty {
            self.readable.notify_one();
        }
        true
    }
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Frame { frame, .. } => frame.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Channel, LinkSession, NodeId};

    fn batch(frames: usize) -> Vec<Event> {
        let frame = Bytes::from_static(b"0123456789");
        (0..frames)
            .map(|_| Event::Frame {
                from: NodeId(1),
                session: LinkSession(1),
                channel: Channel::Log,
                frame: frame.clone(),
            })
            .collect()
    }

    #[test]
    fn refuses_by_what_it_holds_and_takes_again_once_emptied() {
        for (events_max, bytes_max) in [(4, 1 << 20), (1 << 20, 40)] {
            let inbox = Inbox::new(events_max, bytes_max, Arc::default());
            assert!(inbox.deliver(&mut batch(3)));
            assert!(inbox.deliver(&mut batch(3)), "below its limits it takes a whole batch");
            let mut refused = batch(1);
            assert!(!inbox.deliver(&mut refused));
            assert_eq!(refused.len(), 1, "a refused batch is untouched");
            let mut out = Vec::new();
            assert_eq!(inbox.take(&mut out, 100), Some(6));
            assert!(inbox.deliver(&mut refused));
        }
    }

    #[test]
    fn closed_gives_what_it_has_and_takes_nothing() {
        let inbox = Inbox::new(4, 40, Arc::default());
        assert!(inbox.deliver(&mut batch(1)));
        inbox.close();
        assert!(inbox.deliver(&mut batch(1)));
        let mut out = Vec::new();
        assert_eq!(inbox.take(&mut out, 100), Some(1));
        assert_eq!(inbox.take(&mut out, 100), Some(0));
    }
}
