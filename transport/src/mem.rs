//! Links inside one process: a [`MemNetwork`] makes one [`MemTransport`] a member.
//!
//! A frame goes straight into the receiver's inbox; there is no task, no copy and no clock, so any executor drives it.
//! Every (sender, channel) has its own limit in the receiver's inbox, which is what the sender's queue is elsewhere.
//! It never loses a frame of a session; [`MemNetwork::cut`] ends sessions, for tests.
//!
//! 1. Lock order: the hub's table, then one inbox. No lock is held across an await.
//! 2. A session's `Up` enters the inbox before its first frame and its `Down` after the last.
//! 3. `main` is up at once when both ends are there and the link is whole; `bulk` comes up with its first frame.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::{Channel, Event, Lane, LinkSession, NodeId, SendError, Transport};

/// The limits of a [`MemNetwork`].
#[derive(Clone, Debug)]
pub struct MemConfig {
    /// Frames a peer may have waiting with one receiver on one channel. Default 4096.
    pub queue_frames_max: usize,
    /// Bytes a peer may have waiting with one receiver on one channel; an empty queue takes any frame. Default 32 MiB.
    pub queue_bytes_max: usize,
    /// The largest frame. Default 16 MiB, as with TCP.
    pub frame_bytes_max: usize,
}

impl Default for MemConfig {
    fn default() -> Self {
        Self { queue_frames_max: 4096, queue_bytes_max: 32 << 20, frame_bytes_max: 16 << 20 }
    }
}

/// The hub that knows all ends of one process. Cloning shares it.
#[derive(Clone)]
pub struct MemNetwork {
    hub: Arc<Hub>,
}

/// One member's end of a [`MemNetwork`]. Dropping it ends its links, like [`Transport::shutdown`].
pub struct MemTransport {
    hub: Arc<Hub>,
    end: Arc<End>,
}

impl MemNetwork {
    /// An empty network.
    pub fn new(config: MemConfig) -> Self {
        Self { hub: Arc::new(Hub { config, table: RwLock::default(), sessions: AtomicU64::new(0) }) }
    }

    /// Makes the end of `id` and links it with every end that is there. `None` when `id` is 0 or already there.
    pub fn join(&self, id: NodeId) -> Option<MemTransport> {
        let mut table = self.hub.table_mut();
        if id == NodeId(0) || matches!(table.ends.get(&id), Some(Some(_))) {
            return None;
        }
        let end = Arc::new(End { id, inbox: Mutex::default(), readable: Notify::new() });
        table.ends.insert(id, Some(Arc::clone(&end)));
        for peer in table.present() {
            self.hub.link(&table, id, peer);
            self.hub.link(&table, peer, id);
        }
        drop(table);
        Some(MemTransport { hub: Arc::clone(&self.hub), end })
    }

    /// Breaks the link between two ends, both ways. What was accepted is still delivered, then `Down`.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Breaks the link by which `to` hears `from`; the other way stays.
    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        let mut table = self.hub.table_mut();
        table.cut.insert((from, to));
        if let Some(Some(end)) = table.ends.get(&to) {
            end.unlink(from);
        }
    }

    /// Mends what [`MemNetwork::cut`] or [`MemNetwork::cut_one_way`] broke, both ways, under new sessions.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        let mut table = self.hub.table_mut();
        for (from, to) in [(a, b), (b, a)] {
            table.cut.remove(&(from, to));
            self.hub.link(&table, from, to);
        }
    }
}

impl MemTransport {
    /// Whether a frame for `peer` would reach it now.
    pub fn is_connected(&self, peer: NodeId) -> bool {
        let table = self.hub.table();
        let Some(Some(end)) = table.ends.get(&peer) else { return false };
        end.inbox().links.get(&self.end.id).is_some_and(|l| l.up())
    }

    /// Takes this end out of the table: every peer hears `Down`, its own inbox takes nothing more.
    fn leave(&self) {
        let mut table = self.hub.table_mut();
        let ours = matches!(table.ends.get(&self.end.id), Some(Some(end)) if Arc::ptr_eq(end, &self.end));
        if ours {
            table.ends.insert(self.end.id, None);
            for end in table.ends.values().flatten() {
                end.unlink(self.end.id);
            }
        }
        drop(table);
        self.end.inbox().closed = true;
        self.end.readable.notify_waiters();
    }
}

#[async_trait]
impl Transport for MemTransport {
    fn local(&self) -> NodeId {
        self.end.id
    }

    fn send(&self, to: NodeId, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        let table = self.hub.table();
        if frame.len() > self.hub.config.frame_bytes_max {
            return Err(SendError::TooLarge(frame));
        }
        if self.end.inbox().closed {
            return Err(SendError::Closed(frame));
        }
        match table.ends.get(&to) {
            Some(Some(end)) if to != self.end.id => end.push(&self.hub, self.end.id, channel, frame),
            Some(None) if to != self.end.id => Err(SendError::NotConnected(frame)),
            _ => Err(SendError::Unknown(frame)),
        }
    }

    async fn recv(&self) -> Option<Event> {
        let mut one = Vec::with_capacity(1);
        self.recv_many(&mut one, 1).await;
        one.pop()
    }

    async fn recv_many(&self, events: &mut Vec<Event>, max: usize) -> usize {
        loop {
            // Made before the look, so that a wake-up between look and await is not lost.
            let readable = self.end.readable.notified();
            {
                let mut inbox = self.end.inbox();
                let taken = inbox.take(events, max);
                if taken > 0 && !inbox.events.is_empty() {
                    self.end.readable.notify_one();
                }
                if taken > 0 || max == 0 || inbox.closed {
                    return taken;
                }
            }
            readable.await;
        }
    }

    async fn shutdown(&self, _drain_ms: u64) {
        // What was accepted is in the receivers' inboxes already: there is nothing to flush.
        self.leave();
    }
}

impl Drop for MemTransport {
    fn drop(&mut self) {
        self.leave();
    }
}

struct Hub {
    config: MemConfig,
    table: RwLock<Table>,
    sessions: AtomicU64,
}

#[derive(Default)]
struct Table {
    /// `None`: was here once, is gone.
    ends: BTreeMap<NodeId, Option<Arc<End>>>,
    cut: BTreeSet<(NodeId, NodeId)>,
}

struct End {
    id: NodeId,
    inbox: Mutex<Inbox>,
    readable: Notify,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    links: BTreeMap<NodeId, Link>,
    closed: bool,
}

/// What one receiver knows of one sender.
#[derive(Default)]
struct Link {
    main: Option<LinkSession>,
    bulk: Option<LinkSession>,
    waiting: [Waiting; Channel::ALL.len()],
}

#[derive(Clone, Copy, Default)]
struct Waiting {
    frames: usize,
    bytes: usize,
}

impl Hub {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_session(&self) -> LinkSession {
        LinkSession(self.sessions.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Brings the main lane from `from` to `to` up, if both are there, the link is whole, and it is not up yet.
    fn link(&self, table: &Table, from: NodeId, to: NodeId) {
        let (Some(Some(_)), Some(Some(end))) = (table.ends.get(&from), table.ends.get(&to)) else { return };
        if from == to || table.cut.contains(&(from, to)) {
            return;
        }
        let mut inbox = end.inbox();
        let link = inbox.links.entry(from).or_default();
        if link.up() || inbox.closed {
            return;
        }
        let session = self.next_session();
        inbox.up(from, Lane::Main, session);
        drop(inbox);
        end.readable.notify_one();
    }
}

impl Table {
    fn present(&self) -> Vec<NodeId> {
        self.ends.iter().filter(|(_, end)| end.is_some()).map(|(id, _)| *id).collect()
    }
}

impl End {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, hub: &Hub, from: NodeId, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        let mut inbox = self.inbox();
        let Some(link) = inbox.links.get_mut(&from).filter(|l| l.up()) else {
            return Err(SendError::NotConnected(frame));
        };
        let waiting = link.waiting(channel);
        let full = waiting.frames >= hub.config.queue_frames_max
            || (waiting.frames > 0 && waiting.bytes + frame.len() > hub.config.queue_bytes_max);
        if full {
            return Err(SendError::Full(frame));
        }
        waiting.frames += 1;
        waiting.bytes += frame.len();
        let session = match link.lane(channel.lane()) {
            Some(session) => *session,
            None => {
                let session = hub.next_session();
                inbox.up(from, channel.lane(), session);
                session
            }
        };
        inbox.events.push_back(Event::Frame { from, session, channel, frame });
        drop(inbox);
        self.readable.notify_one();
        Ok(())
    }

    fn unlink(&self, from: NodeId) {
        let mut inbox = self.inbox();
        let Some(link) = inbox.links.get_mut(&from) else { return };
        let ended = [(Lane::Main, link.main.take()), (Lane::Bulk, link.bulk.take())];
        for (lane, session) in ended {
            if let Some(session) = session {
                inbox.events.push_back(Event::Down { peer: from, lane, session });
            }
        }
        drop(inbox);
        self.readable.notify_one();
    }
}

impl Inbox {
    fn up(&mut self, peer: NodeId, lane: Lane, session: LinkSession) {
        *self.links.entry(peer).or_default().lane(lane) = Some(session);
        self.events.push_back(Event::Up { peer, lane, session });
    }

    fn take(&mut self, into: &mut Vec<Event>, max: usize) -> usize {
        let taken = max.min(self.events.len());
        for event in self.events.drain(..taken) {
            if let Event::Frame { from, channel, frame, .. } = &event
                && let Some(link) = self.links.get_mut(from)
            {
                let waiting = link.waiting(*channel);
                waiting.frames -= 1;
                waiting.bytes -= frame.len();
            }
            into.push(event);
        }
        taken
    }
}

impl Link {
    fn up(&self) -> bool {
        self.main.is_some()
    }

    fn lane(&mut self, lane: Lane) -> &mut Option<LinkSession> {
        match lane {
            Lane::Main => &mut self.main,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn waiting(&mut self, channel: Channel) -> &mut Waiting {
        let [heartbeat, vote, log, forward, bulk] = &mut self.waiting;
        match channel {
            Channel::Heartbeat => heartbeat,
            Channel::Vote => vote,
            Channel::Log => log,
            Channel::Forward => forward,
            Channel::Bulk => bulk,
        }
    }
}
