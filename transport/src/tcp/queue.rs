//! What waits to be written on one lane: a bounded queue for each channel, drained in batches.
//!
//! ```text
//! Down ── dial ──► Dialing ── handshake ──► Open ── connection ends ──► Down      (main)
//! Parked ─ first frame ─► Dialing ─────────► Open ── connection ends ─► Down ─ pause ─► Parked   (bulk)
//! ```
//! 1. Frames are taken in while `Open`, and by the bulk lane also while `Parked` or `Dialing`.
//! 2. A batch takes from every channel that has frames, in the order of the channels' numbers, up to a share each: an
//!    urgent frame goes first in the next batch, and no channel starves.
//! 3. The writer is woken by the frame that ends its idleness, by no other.
//! 4. What is left when the connection ends is dropped: the session is over, and its receiver is told so.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{Channel, Lane, SendError};

/// Bytes one channel may put into one batch; one frame at least.
const SHARE_BYTES: usize = 128 << 10;

pub(super) struct LaneQueue {
    lane: Lane,
    frames_max: usize,
    bytes_max: usize,
    state: Mutex<State>,
    /// Wakes the writer.
    pub(super) ready: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Down,
    Parked,
    Dialing,
    Open,
}

struct State {
    phase: Phase,
    /// The writer found nothing and waits for `ready`.
    idle: bool,
    waiting: [Waiting; Channel::ALL.len()],
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl LaneQueue {
    pub(super) fn new(lane: Lane, frames_max: usize, bytes_max: usize) -> Self {
        let phase = match lane {
            Lane::Main => Phase::Down,
            Lane::Bulk => Phase::Parked,
        };
        let state = Mutex::new(State { phase, idle: true, waiting: Default::default() });
        Self { lane, frames_max, bytes_max, state, ready: Notify::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().phase == Phase::Open
    }

    /// Takes a frame in, or gives it back.
    pub(super) fn push(&self, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        let mut state = self.state();
        let takes = match state.phase {
            Phase::Open => true,
            Phase::Parked | Phase::Dialing => self.lane == Lane::Bulk,
            Phase::Down => false,
        };
        if !takes {
            return Err(SendError::NotConnected(frame));
        }
        let Some(waiting) = state.waiting.get_mut(channel as usize) else {
            return Err(SendError::NotConnected(frame));
        };
        let crowded = !waiting.frames.is_empty() && waiting.bytes + frame.len() > self.bytes_max;
        if crowded || waiting.frames.len() >= self.frames_max {
            return Err(SendError::Full(frame));
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(frame);
        let wake = std::mem::take(&mut state.idle);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Moves the next batch into `batch`; when there is none, marks the writer idle: it must await `ready`.
    pub(super) fn fill(&self, batch: &mut Vec<(Channel, Bytes)>) {
        let mut state = self.state();
        for (channel, waiting) in Channel::ALL.into_iter().zip(&mut state.waiting) {
            let mut share = 0;
            while share < SHARE_BYTES
                && let Some(frame) = waiting.frames.pop_front()
            {
                waiting.bytes -= frame.len();
                // Each frame counts a little beyond its bytes, so that empty ones end as well.
                share += frame.len() + super::frame::FRAME_HEADER_BYTES;
                batch.push((channel, frame));
            }
        }
        state.idle = batch.is_empty();
    }

    /// Whether anything waits; marks the writer idle when not.
    pub(super) fn has_frames(&self) -> bool {
        let mut state = self.state();
        let some = state.waiting.iter().any(|w| !w.frames.is_empty());
        state.idle = !some;
        some
    }

    /// Enters a phase. Every phase that takes no frames, or no longer can deliver them, drops what waits; returns how
    /// many frames that were.
    pub(super) fn enter(&self, phase: Phase) -> usize {
        let mut state = self.state();
        state.phase = phase;
        if phase != Phase::Down {
            return 0;
        }
        let mut dropped = 0;
        for waiting in &mut state.waiting {
            dropped += waiting.frames.len();
            *waiting = Waiting::default();
        }
        dropped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(frames_max: usize, bytes_max: usize) -> LaneQueue {
        let queue = LaneQueue::new(Lane::Main, frames_max, bytes_max);
        queue.enter(Phase::Open);
        queue
    }

    fn fill(queue: &LaneQueue) -> Vec<(Channel, Bytes)> {
        let mut batch = Vec::new();
        queue.fill(&mut batch);
        batch
    }

    #[test]
    fn limits_bind_in_frames_and_in_bytes_for_each_channel_alone() {
        for queue in [open(2, 1 << 20), open(100, 20)] {
            let frame = Bytes::from_static(b"0123456789");
            queue.push(Channel::Log, frame.clone()).unwrap();
            queue.push(Channel::Log, frame.clone()).unwrap();
            assert_eq!(queue.push(Channel::Log, frame.clone()), Err(SendError::Full(frame.clone())));
            assert_eq!(queue.push(Channel::Heartbeat, frame), Ok(()));
        }
    }

    #[test]
    fn an_empty_queue_takes_a_frame_above_its_byte_limit() {
        let queue = open(10, 4);
        assert_eq!(queue.push(Channel::Log, Bytes::from_static(b"larger")), Ok(()));
        assert!(matches!(queue.push(Channel::Log, Bytes::from_static(b"x")), Err(SendError::Full(_))));
    }

    #[test]
    fn urgent_frames_overtake_and_no_channel_starves() {
        let queue = open(1000, 1 << 30);
        let large = Bytes::from(vec![0; SHARE_BYTES / 2]);
        for _ in 0..8 {
            queue.push(Channel::Forward, large.clone()).unwrap();
            queue.push(Channel::Log, large.clone()).unwrap();
        }
        queue.push(Channel::Heartbeat, Bytes::new()).unwrap();
        let channels: Vec<_> = fill(&queue).into_iter().map(|(c, _)| c as u8).collect();
        assert_eq!(channels, [0, 2, 2, 3, 3]);
        queue.push(Channel::Vote, Bytes::new()).unwrap();
        assert_eq!(fill(&queue).first().map(|(c, _)| *c), Some(Channel::Vote));
    }

    #[test]
    fn going_down_drops_and_refuses() {
        let queue = open(10, 100);
        queue.push(Channel::Log, Bytes::from_static(b"x")).unwrap();
        assert_eq!(queue.enter(Phase::Down), 1);
        assert!(matches!(queue.push(Channel::Log, Bytes::new()), Err(SendError::NotConnected(_))));
        assert!(fill(&queue).is_empty());
    }
}
