//! What a leader knows of one peer's log (thesis 3.5, 10.2.1), and how much it may have in flight to it.
//!
//! ```text
//!             rejected, silent, new link
//!        ┌────────────────────────────────┐
//!        ▼                                │
//!      Probe ──── matched ──────────► Replicate
//!        │  ▲                             │
//!   entries │ installed, or gone     entries released
//!   released│                             │
//!        └► Snapshot ◄────────────────────┘
//! ```
//! Probe: one message at a time, until the logs are known to agree. Replicate: a window, optimistic. Snapshot: chunks.
//!
//! 1. `matched < next`. 2. `matched` never falls within a term and is at most what the peer holds durably.

use std::collections::VecDeque;

use triune_storage::{Index, Position};
use triune_transport::Nanos;

use crate::{Config, FetchId, SnapshotMeta};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Probe,
    Replicate,
    Snapshot,
}

/// A snapshot on its way to a peer.
#[derive(Clone, Debug)]
pub(super) struct Sending {
    pub(super) meta: SnapshotMeta,
    /// The peer keeps everything below; `None` until it answered the offer.
    pub(super) kept: Option<u64>,
    /// Sent up to here.
    pub(super) sent: u64,
    /// The chunk being read from our disk.
    pub(super) reading: Option<FetchId>,
    /// When the peer last got further; it is asked again after a silence.
    pub(super) moved_at: Nanos,
}

#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) matched: Index,
    pub(super) next: Index,
    pub(super) state: State,
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
    /// When the outstanding probe left.
    pub(super) probed_at: Option<Nanos>,
    /// When `matched` last rose, or the window was last empty.
    pub(super) moved_at: Nanos,
    /// When it last said anything in this term.
    pub(super) heard_at: Nanos,
    /// The newest heartbeat round it answered, and when that round left here.
    pub(super) round: u64,
    pub(super) round_sent_at: Nanos,
    /// Entries for it being read from our disk.
    pub(super) fetch: Option<FetchId>,
    /// The commit it was last told.
    pub(super) commit_told: Index,
    pub(super) sending: Option<Sending>,
}

impl Progress {
    pub(super) fn new(last: Index, now: Nanos) -> Self {
        Self {
            matched: Index::ZERO,
            next: last.next(),
            state: State::Probe,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            probed_at: None,
            moved_at: now,
            heard_at: now,
            round: 0,
            round_sent_at: Nanos::ZERO,
            fetch: None,
            commit_told: Index::ZERO,
            sending: None,
        }
    }

    /// Whether another append may leave now.
    pub(super) fn may_send(&self, cfg: &Config) -> bool {
        match self.state {
            State::Probe => self.probed_at.is_none() && self.fetch.is_none(),
            State::Replicate => {
                self.fetch.is_none()
                    && self.inflight.len() < cfg.inflight_msgs_max
                    && (self.inflight_bytes < cfg.inflight_bytes_max || self.inflight.is_empty())
            }
            State::Snapshot => false,
        }
    }

    /// Notes that entries up to `last` left.
    pub(super) fn sent(&mut self, last: Index, bytes: usize, now: Nanos) {
        debug_assert!(last >= self.next, "an append without entries is not counted");
        match self.state {
            State::Probe => self.probed_at = Some(now),
            State::Replicate => {
                if self.inflight.is_empty() {
                    self.moved_at = now;
                }
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
                self.next = last.next();
            }
            State::Snapshot => unreachable!("no append leaves beside a snapshot"),
        }
    }

    /// Notes what the peer confirms; whether that is news.
    pub(super) fn confirm(&mut self, matched: Index, now: Nanos) -> bool {
        while self.inflight.front().is_some_and(|(last, _)| *last <= matched) {
            self.inflight_bytes -= self.inflight.pop_front().map_or(0, |(_, bytes)| bytes);
        }
        let news = matched > self.matched;
        if news {
            self.matched = matched;
            self.moved_at = now;
        }
        self.next = self.next.max(matched.next());
        match self.state {
            State::Probe => self.replicate(),
            State::Snapshot if self.sending.as_ref().is_none_or(|s| matched >= s.meta.mark.position.index) => {
                self.replicate();
            }
            State::Replicate | State::Snapshot => {}
        }
        news
    }

    fn replicate(&mut self) {
        self.clear_flight();
        self.state = State::Replicate;
        self.next = self.matched.next();
    }

    /// Back to one message at a time, from `next` on.
    pub(super) fn probe(&mut self, next: Index) {
        self.clear_flight();
        self.state = State::Probe;
        self.next = next.max(self.matched.next());
    }

    pub(super) fn snapshot(&mut self) {
        self.clear_flight();
        self.state = State::Snapshot;
    }

    fn clear_flight(&mut self) {
        self.inflight.clear();
        self.inflight_bytes = 0;
        self.probed_at = None;
        self.fetch = None;
        self.sending = None;
    }

    /// Whether what was sent seems lost: nothing confirmed for `patience` though something is out.
    pub(super) fn stalled(&self, now: Nanos, patience: Nanos) -> bool {
        match self.state {
            State::Probe => self.probed_at.is_some_and(|at| now.since(at) >= patience),
            State::Replicate => !self.inflight.is_empty() && now.since(self.moved_at) >= patience,
            State::Snapshot => false,
        }
    }

    /// Where the snapshot being sent ends: the log above it must stay.
    pub(super) fn sending_position(&self) -> Option<Position> {
        self.sending.as_ref().map(|sending| sending.meta.mark.position)
    }

    pub(super) fn check_invariants(&self, cfg: &Config, last: Index) {
        assert!(self.matched < self.next, "R9: matched must stay below next");
        assert!(self.matched <= last, "R9: matched beyond the leader's own log");
        assert!(self.next <= last.next(), "next beyond the leader's own log");
        assert!(self.inflight.len() <= cfg.inflight_msgs_max, "G11: the window in messages");
        if self.inflight.len() > 1 {
            let (_, newest) = self.inflight.back().copied().unwrap_or_default();
            assert!(self.inflight_bytes - newest < cfg.inflight_bytes_max, "G11: the window in bytes");
        }
    }
}
