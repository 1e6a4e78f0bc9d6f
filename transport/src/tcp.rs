//! Framed, checksummed TCP with a handshake and reconnect.
//!
//! ```text
//!   m0 ── main: heartbeats, votes, log, forwarding ──►  m1      each member dials for what it sends,
//!   m0 ── bulk: snapshots, dialled when needed ──────►  m1      so a link is two connections each way
//!   m0 ◄───────────────────────────────────── main ──  m1      and a half-open one harms one direction
//!   m0 ◄───────────────────────────────────── bulk ──  m1
//! ```
//! A connection opens with one [`Hello`] each way, which names cluster and disk on both ends, and then carries frames
//! in one direction. [`exchange`] uses the same port for one question and one answer, for those who know an address but
//! no disk id yet. Layouts: [`codec`].
//!
//! 1. Nothing here is global: many transports live in one process, each on the runtime it was bound in.
//! 2. `send` takes one short lock and never waits; sockets are touched by their own tasks alone.
//! 3. Whatever arrives from outside can end the connection it came by, and nothing else.
//! 4. Every queue is bounded: out by channel, in by events and bytes, connections and exchanges by number.
//!
//! ```
//! use bytes::Bytes;
//! use triune_transport::tcp::{TcpConfig, TcpTransport};
//! use triune_transport::{Channel, Event, NodeId, SendError, Transport};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let a = TcpTransport::bind(TcpConfig::new(NodeId(1))).await.unwrap();
//! let b = TcpTransport::bind(TcpConfig::new(NodeId(2))).await.unwrap();
//! a.set_peer(NodeId(2), b.local_addr().to_string());
//! // `b` hears that `a` is there; from its own answer to that, `a` knows as much a moment later.
//! assert!(matches!(b.recv().await, Some(Event::Up { peer: NodeId(1), .. })));
//! let mut frame = Bytes::from_static(b"append 7");
//! while let Err(error) = a.send(NodeId(2), Channel::Log, frame) {
//!     assert!(matches!(error, SendError::NotConnected(_)));
//!     frame = error.into_frame();
//!     tokio::task::yield_now().await;
//! }
//! assert!(matches!(b.recv().await, Some(Event::Frame { frame, .. }) if frame == "append 7"));
//! a.shutdown(1_000).await;
//! b.shutdown(1_000).await;
//! # });
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use self::inbound::{Claims, accept_all};
use self::inbox::Inbox;
use self::outbound::{LaneTask, Orders, Peer, Stop};
use self::queue::LaneQueue;
use self::stats::Counters;
use crate::{Channel, ClusterId, Event, Lane, NodeId, SendError, Transport};

mod config;
mod dial;
mod frame;
mod hello;
mod inbound;
mod inbox;
mod outbound;
mod queue;
mod stats;

pub use self::config::{ConfigError, EventSink, TcpConfig};
pub use self::dial::{DialError, exchange};
pub use self::hello::{HELLO_PAYLOAD_BYTES_MAX, HELLO_TEXT_BYTES_MAX, Hello, HelloError, Refusal};
pub use self::inbound::Exchange;
pub use self::stats::TcpStats;

/// The bytes on the wire, for those who write another end, a fuzzer or a benchmark.
pub mod codec {
    pub use super::frame::{FRAME_HEADER_BYTES, FRAME_VERSION, FrameDecoder, FrameError, READ_BYTES, encode_header};
    pub use super::hello::{HELLO_BODY_BYTES_MAX, HELLO_HEADER_BYTES, HelloHeader, Open, PROTOCOL_VERSION, Said};
}

/// One member's end of a TCP network.
pub struct TcpTransport {
    shared: Arc<Shared>,
    runtime: Handle,
    stop_inbound: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
    exchanges: tokio::sync::Mutex<mpsc::Receiver<Exchange>>,
}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The configuration makes no sense. Mend it.
    #[error("transport configuration")]
    Config(#[from] ConfigError),
    /// Somebody listens there already. Stop it, or choose another port.
    #[error("address {addr} is in use: stop what listens there, or choose another port")]
    InUse {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How it stands with one known peer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its disk id.
    pub peer: NodeId,
    /// Where it is dialled.
    pub addr: String,
    /// Whether frames for it are taken now (main lane).
    pub connected: bool,
    /// Why the last dial failed; `None` since one succeeded.
    pub last_error: Option<Arc<DialError>>,
}

/// What the tasks of one transport have in common.
struct Shared {
    config: TcpConfig,
    bound: SocketAddr,
    cluster: AtomicU64,
    closing: AtomicBool,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    claims: Claims,
    sessions: AtomicU64,
    inbox: Arc<Inbox>,
    sink: Arc<dyn EventSink>,
    room: Arc<Notify>,
    stats: Counters,
}

impl TcpTransport {
    /// Listens, and starts serving on the runtime this is called in.
    ///
    /// # Errors
    /// See [`BindError`].
    pub async fn bind(config: TcpConfig) -> Result<Self, BindError> {
        config.validate()?;
        let addr = config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr },
            _ => BindError::Listen { addr, source },
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;

        let room = Arc::new(Notify::new());
        let inbox = Arc::new(Inbox::new(config.inbox_events_max, config.inbox_bytes_max, Arc::clone(&room)));
        let sink = config.sink.clone().unwrap_or_else(|| Arc::clone(&inbox) as Arc<dyn EventSink>);
        let (asked, exchanges) = mpsc::channel(config.exchanges_max);
        let (stop_inbound, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            bound,
            cluster: AtomicU64::new(config.cluster.0),
            closing: AtomicBool::new(false),
            peers: RwLock::default(),
            claims: Claims::default(),
            sessions: AtomicU64::new(0),
            inbox,
            sink,
            room,
            stats: Counters::default(),
            config,
        });
        let runtime = Handle::current();
        let acceptor = runtime.spawn(accept_all(Arc::clone(&shared), listener, asked, stopped));
        Ok(Self {
            shared,
            runtime,
            stop_inbound,
            tasks: Mutex::default(),
            acceptor: Mutex::new(Some(acceptor)),
            exchanges: tokio::sync::Mutex::new(exchanges),
        })
    }

    /// Where it listens, with the port that was picked if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.bound
    }

    /// Makes a peer known, or moves it: it is dialled at `addr` (`host:port`, resolved at each dial) from now on. The
    /// same address again changes nothing. The local id and 0 are ignored.
    pub fn set_peer(&self, peer: NodeId, addr: impl Into<String>) {
        let addr = addr.into();
        if peer == self.shared.config.local || peer == NodeId(0) {
            return;
        }
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if self.shared.closing.load(Ordering::Acquire) {
            return;
        }
        if let Some(known) = peers.get(&peer) {
            known.orders.send_if_modified(|orders| {
                let moved = orders.addr != addr;
                orders.addr = addr;
                moved
            });
            return;
        }
        let config = &self.shared.config;
        let queue = |lane| LaneQueue::new(lane, config.queue_frames_max, config.queue_bytes_max);
        let made = Arc::new(Peer {
            id: peer,
            orders: watch::Sender::new(Orders { addr, stop: Stop::No }),
            main: queue(Lane::Main),
            bulk: queue(Lane::Bulk),
            met: Mutex::default(),
            last_error: Mutex::default(),
        });
        peers.insert(peer, Arc::clone(&made));
        let mut tasks = self.tasks();
        tasks.retain(|task| !task.is_finished());
        for lane in [Lane::Main, Lane::Bulk] {
            let task = LaneTask::new(Arc::clone(&self.shared), Arc::clone(&made), lane);
            tasks.push(self.runtime.spawn(task.run()));
        }
    }

    /// Forgets a peer: its outbound connections end now, what waited for it is dropped. Its own connections to us are
    /// its to end.
    pub fn remove_peer(&self, peer: NodeId) {
        let removed = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
        if let Some(removed) = removed {
            removed.orders.send_modify(|orders| orders.stop = Stop::Now);
        }
    }

    /// Says, once formed, which cluster this member belongs to. Handshakes from now on carry and demand it; connections
    /// that stand are kept.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.shared.cluster.store(cluster.0, Ordering::Release);
    }

    /// Whether frames for `peer` are taken now.
    pub fn is_connected(&self, peer: NodeId) -> bool {
        self.shared.peer(peer).is_some_and(|peer| peer.main.is_open())
    }

    /// Every known peer, by its id.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let status = |peer: &Arc<Peer>| PeerStatus {
            peer: peer.id,
            addr: peer.orders.borrow().addr.clone(),
            connected: peer.main.is_open(),
            last_error: peer.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        peers.values().map(status).collect()
    }

    /// What `peer` last said of itself: when it opened a link to us that still stands, else in answer to ours.
    pub fn peer_hello(&self, peer: NodeId) -> Option<Hello> {
        let answered = || self.shared.peer(peer)?.met.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.shared.claims.hello(peer).or_else(answered)
    }

    /// The next question asked by [`exchange`]; `None` after shutdown. Unasked-for, the askers hear "busy".
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn recv_exchange(&self) -> Option<Exchange> {
        self.exchanges.lock().await.recv().await
    }

    /// Tells readers that a [`TcpConfig::sink`] which refused events has room again.
    pub fn resume(&self) {
        self.shared.room.notify_waiters();
    }

    /// A reading of the counters.
    pub fn stats(&self) -> TcpStats {
        self.shared.stats.read()
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_acceptor(&self) -> Option<JoinHandle<()>> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait]
impl Transport for TcpTransport {
    fn local(&self) -> NodeId {
        self.shared.config.local
    }

    fn send(&self, to: NodeId, channel: Channel, frame: Bytes) -> Result<(), SendError> {
        let shared = &self.shared;
        if frame.len() > shared.config.frame_bytes_max {
            return Err(SendError::TooLarge(frame));
        }
        if shared.closing.load(Ordering::Acquire) {
            return Err(SendError::Closed(frame));
        }
        let peers = shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get(&to) else { return Err(SendError::Unknown(frame)) };
        // The bulk lane dials when it is wanted; whether that has a chance the main lane tells.
        if channel.lane() == Lane::Bulk && !peer.main.is_open() {
            return Err(SendError::NotConnected(frame));
        }
        let sent = peer.queue(channel.lane()).push(channel, frame);
        if let Err(SendError::Full(_)) = sent {
            shared.stats.sends_full.add(1);
        }
        sent
    }

    async fn recv(&self) -> Option<Event> {
        let mut one = Vec::with_capacity(1);
        self.shared.inbox.recv_many(&mut one, 1).await;
        one.pop()
    }

    async fn recv_many(&self, events: &mut Vec<Event>, max: usize) -> usize {
        self.shared.inbox.recv_many(events, max).await
    }

    /// Peers are read from while this end drains, so that two ends that shut down together both get what was sent.
    async fn shutdown(&self, drain_ms: u64) {
        let deadline = Instant::now() + Duration::from_millis(drain_ms);
        {
            // Under the lock of the table: no peer is added behind our back.
            let peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            self.shared.closing.store(true, Ordering::Release);
            for peer in peers.values() {
                peer.orders.send_modify(|orders| orders.stop = Stop::Drained);
            }
        }
        let tasks = std::mem::take(&mut *self.tasks());
        for mut task in tasks {
            if timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                let _cancelled = task.await;
            }
        }
        self.stop_inbound.send_replace(true);
        if let Some(acceptor) = self.take_acceptor() {
            let _finished = acceptor.await;
        }
        self.shared.inbox.close();
    }
}

impl Drop for TcpTransport {
    /// Without a shutdown first, what waits is lost and connections are cut.
    fn drop(&mut self) {
        for task in self.tasks().drain(..) {
            task.abort();
        }
        if let Some(acceptor) = self.take_acceptor() {
            acceptor.abort();
        }
    }
}

impl Shared {
    fn cluster(&self) -> ClusterId {
        ClusterId(self.cluster.load(Ordering::Acquire))
    }

    fn hello(&self, expect: NodeId) -> Hello {
        self.config.hello(self.cluster(), expect, self.bound)
    }

    fn peer(&self, peer: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned()
    }
}
