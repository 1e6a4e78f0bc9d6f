//! The async `Transport` trait over the simulated network, and the poll-only executor that runs it. A shell.
//!
//! No runtime and no thread: a poll of an empty receiver lets the network work, in virtual time, until something arrives
//! there or nothing is left to happen. So whoever awaits `recv` moves the clock; whoever has a clock of its own calls
//! [`SimNetwork::run_for`].
//!
//! 1. Frames that arrived and were not received count against the sender's queue, as with a socket nobody reads.
//! 2. Equal seeds and equal calls give equal events.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use triune_transport::{Channel, Event, Nanos, NodeId, SendError, Transport};

use crate::{Arrival, Delivery, EventQueue, Net, NetConfig, NetEvent, NetStats, Refused, Rng, Topology};

/// A simulated network whose ends speak the async `Transport` trait. Clones share it.
#[derive(Clone)]
pub struct SimNetwork {
    shared: Arc<Mutex<Shared>>,
}

/// One node's end of a [`SimNetwork`].
pub struct SimTransport {
    network: SimNetwork,
    local: NodeId,
}

/// The largest frame an end takes: 4 MiB.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

struct Shared {
    net: Net,
    queue: EventQueue<Delivery<Bytes>>,
    out: Vec<Delivery<Bytes>>,
    inboxes: BTreeMap<NodeId, Inbox>,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    /// Frames among them, by sender and channel.
    waiting: BTreeMap<(NodeId, Channel), u32>,
    wakers: Vec<Waker>,
    closed: bool,
}

impl SimNetwork {
    /// A network without ends. It keeps sessions, whatever `config` says: the trait promises them.
    pub fn new(config: NetConfig, seed: &Rng) -> Self {
        let net = Net::new(NetConfig { sessions: true, ..config }, seed);
        let shared = Shared { net, queue: EventQueue::new(), out: Vec::new(), inboxes: BTreeMap::new() };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A new end, linked soon with all others. An id that was shut down may come back.
    pub fn end(&self, local: NodeId) -> SimTransport {
        let mut shared = self.lock();
        shared.inboxes.insert(local, Inbox::default());
        shared.change(|net, now, out| net.start(now, local, out));
        SimTransport { network: self.clone(), local }
    }

    /// Virtual time.
    pub fn now(&self) -> Nanos {
        self.lock().queue.now()
    }

    /// Lets the network work for a span of virtual time.
    pub fn run_for(&self, span: Nanos) {
        let mut shared = self.lock();
        let until = shared.queue.now().after(span);
        while let Some((now, delivery)) = shared.queue.pop_until(until) {
            shared.deliver(now, delivery);
        }
    }

    /// Lets the network do the next thing; false if there is none.
    pub fn step(&self) -> bool {
        self.lock().step()
    }

    /// Cuts as `topology` says, on top of what is cut.
    pub fn apply(&self, topology: &Topology) {
        self.lock().change(|net, now, out| net.apply(now, topology, out));
    }

    /// Stops frames from `from` to `to`.
    pub fn block(&self, from: NodeId, to: NodeId) {
        self.lock().change(|net, now, out| net.block(now, from, to, out));
    }

    /// Lets them pass again.
    pub fn unblock(&self, from: NodeId, to: NodeId) {
        self.lock().change(|net, now, out| net.unblock(now, from, to, out));
    }

    /// Ends all cuts and clogs.
    pub fn heal(&self) {
        self.lock().change(Net::heal);
    }

    /// What became of the frames so far.
    pub fn stats(&self) -> NetStats {
        self.lock().net.stats()
    }

    /// Polls `future` to its end, letting the network work whenever it waits. `None` if it waits and nothing is left to
    /// happen: a deadlock, told instead of hung.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Some(output);
            }
            if !woken.0.swap(false, Ordering::Relaxed) && !self.step() {
                return None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn change(&mut self, act: impl FnOnce(&mut Net, Nanos, &mut Vec<Delivery<Bytes>>)) {
        act(&mut self.net, self.queue.now(), &mut self.out);
        self.flush();
    }

    fn flush(&mut self) {
        for delivery in self.out.drain(..) {
            self.queue.push(delivery.at, delivery);
        }
    }

    fn step(&mut self) -> bool {
        let Some((now, delivery)) = self.queue.pop() else { return false };
        self.deliver(now, delivery);
        true
    }

    fn deliver(&mut self, now: Nanos, delivery: Delivery<Bytes>) {
        let arrival = self.net.arrive(now, delivery, &mut self.out);
        self.flush();
        let Some(Arrival { to, from, event }) = arrival else { return };
        let Some(inbox) = self.inboxes.get_mut(&to).filter(|inbox| !inbox.closed) else { return };
        inbox.events.push_back(match event {
            NetEvent::Up { lane, session } => Event::Up { peer: from, lane, session },
            NetEvent::Down { lane, session } => Event::Down { peer: from, lane, session },
            NetEvent::Frame { channel, session, frame } => {
                *inbox.waiting.entry((from, channel)).or_insert(0) += 1;
                Event::Frame { from, session, channel, frame }
            }
        });
        inbox.wakers.drain(..).for_each(Waker::wake);
    }

    fn send(&mut self, from: NodeId, to: NodeId, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        if self.inboxes.get(&from).is_none_or(|inbox| inbox.closed) {
            return Err(SendError::Closed(frame));
        }
        if frame.len() > FRAME_BYTES_MAX {
            return Err(SendError::TooLarge(frame));
        }
        let unread = self.inboxes.get(&to).and_then(|inbox| inbox.waiting.get(&(from, channel))).copied().unwrap_or(0);
        if unread + self.net.under_way(from, to, channel) >= self.net.config().queue_frames_max {
            return Err(SendError::Full(frame));
        }
        let result = self.net.send(self.queue.now(), from, to, channel, frame, &mut self.out);
        self.flush();
        self.inboxes.values_mut().flat_map(|inbox| inbox.wakers.drain(..)).for_each(Waker::wake);
        result.map_err(|refused| match refused {
            Refused::Full(frame) => SendError::Full(frame),
            Refused::NotConnected(frame) => SendError::NotConnected(frame),
            Refused::Unknown(frame) => SendError::Unknown(frame),
        })
    }

    fn poll_recv(&mut self, local: NodeId, context: &Context<'_>) -> Poll<Option<Event>> {
        loop {
            let Some(inbox) = self.inboxes.get_mut(&local) else { return Poll::Ready(None) };
            if let Some(event) = inbox.events.pop_front() {
                if let Event::Frame { from, channel, .. } = &event
                    && let Some(unread) = inbox.waiting.get_mut(&(*from, *channel))
                {
                    *unread -= 1;
                }
                return Poll::Ready(Some(event));
            }
            if inbox.closed {
                return Poll::Ready(None);
            }
            if !self.step() {
                if let Some(inbox) = self.inboxes.get_mut(&local) {
                    inbox.wakers.push(context.waker().clone());
                }
                return Poll::Pending;
            }
        }
    }

    fn shutdown(&mut self, local: NodeId, drain: Nanos) {
        if self.inboxes.get(&local).is_none_or(|inbox| inbox.closed) {
            return;
        }
        let until = self.queue.now().after(drain);
        while self.net.frames_from(local) > 0 && self.queue.peek_at().is_some_and(|at| at <= until) {
            self.step();
        }
        if let Some(inbox) = self.inboxes.get_mut(&local) {
            inbox.closed = true;
            inbox.wakers.drain(..).for_each(Waker::wake);
        }
        self.change(|net, now, out| net.crash(now, local, out));
    }
}

#[async_trait]
impl Transport for SimTransport {
    fn local(&self) -> NodeId {
        self.local
    }

    fn send(&self, to: NodeId, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        self.network.lock().send(self.local, to, channel, frame)
    }

    async fn recv(&self) -> Option<Event> {
        poll_fn(|context| self.network.lock().poll_recv(self.local, context)).await
    }

    async fn shutdown(&self, drain_ms: u64) {
        self.network.lock().shutdown(self.local, Nanos::from_millis(drain_ms));
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNetwork").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimTransport").field("local", &self.local).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_what_never_comes_is_told() {
        let network = SimNetwork::new(NetConfig::default(), &Rng::new(1));
        let end = network.end(NodeId(1));
        assert_eq!(network.block_on(end.recv()), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_events_at_the_same_times() {
        let run = |seed| {
            let network = SimNetwork::new(NetConfig::default(), &Rng::new(seed));
            let (a, b) = (network.end(NodeId(1)), network.end(NodeId(2)));
            network.run_for(Nanos::from_secs(2));
            for n in 0..50_u8 {
                a.send(NodeId(2), Channel::Log, Bytes::from(vec![n])).unwrap();
            }
            let events: Vec<_> = (0..52).map(|_| network.block_on(b.recv()).unwrap()).collect();
            (events, network.now())
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1).1, run(2).1);
    }
}
