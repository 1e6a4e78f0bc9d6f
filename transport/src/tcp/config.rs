//! What a [`TcpTransport`](super::TcpTransport) is told at its birth.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;

use super::hello::Hello;
use crate::{ClusterId, Event, NodeId};

/// Where events go when the embedder runs a thread of its own and wants no task in between.
///
/// `deliver` is called from the readers' tasks, one batch of one connection at a time, several connections at once. It
/// must not wait.
pub trait EventSink: Send + Sync + 'static {
    /// Takes all of `events` and returns true, leaving it empty; or takes none and returns false.
    ///
    /// After false the connection is not read until
    /// [`TcpTransport::resume`](super::TcpTransport::resume), then the same batch is offered again. Other connections
    /// go on. Refuse by what is already held, never by the size of the batch.
    fn deliver(&self, events: &mut Vec<Event>) -> bool;
}

/// Identity, limits and timings. Start from [`TcpConfig::new`].
#[derive(Clone)]
pub struct TcpConfig {
    /// This member's disk id; never 0.
    pub local: NodeId,
    /// This member's cluster; 0 before formation, then told by [`set_cluster`](super::TcpTransport::set_cluster).
    pub cluster: ClusterId,
    /// Refuse links where either end has no cluster yet. Exchanges are served all the same. Default false.
    pub require_cluster: bool,
    /// This member's name, for the other end's logs.
    pub name: String,
    /// Where to listen. Port 0 picks one; ask [`local_addr`](super::TcpTransport::local_addr).
    pub listen: SocketAddr,
    /// Where peers can reach this member; empty for the address it listens on.
    pub advertise: String,
    /// Said in every link's hello; opaque here.
    pub hello_payload: Bytes,
    /// The largest frame, in bytes, sent or taken. Default 16 MiB; below 4 GiB.
    pub frame_bytes_max: usize,
    /// Frames that may wait for one peer on one channel. Default 4096.
    pub queue_frames_max: usize,
    /// Bytes that may wait for one peer on one channel; an empty queue takes any frame. Default 32 MiB.
    pub queue_bytes_max: usize,
    /// Received events that may wait for `recv`. A batch of one read may go over it. Default 8192.
    pub inbox_events_max: usize,
    /// Received bytes that may wait for `recv`, likewise. Default 64 MiB.
    pub inbox_bytes_max: usize,
    /// Connections taken at once; one more is closed at once. Default 256.
    pub inbound_max: usize,
    /// Exchanges that may wait for [`recv_exchange`](super::TcpTransport::recv_exchange). Default 64.
    pub exchanges_max: usize,
    /// A connection that has not finished its handshake by then is closed, in ms. Default 10,000.
    pub handshake_ms: u64,
    /// How long one address may take to connect, in ms. Default 2,000.
    pub connect_ms: u64,
    /// First pause before dialling again, in ms; doubles with each failure. Default 50.
    pub backoff_ms_min: u64,
    /// Longest pause, in ms. Half of each pause is drawn at random. Default 1,000.
    pub backoff_ms_max: u64,
    /// Sent bytes that are not acknowledged for so long, or a socket that takes none, end the connection, in ms.
    /// Default 5,000: beyond any election, well below TCP's own quarter of an hour.
    pub stall_ms: u64,
    /// Seeds the jitter.
    pub seed: u64,
    /// Takes the events instead of `recv`; `None` for `recv`.
    pub sink: Option<Arc<dyn EventSink>>,
}

/// Why a configuration makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `local` is 0, which means nobody.
    #[error("local node id is 0")]
    LocalIsNobody,
    /// A limit or a time is 0.
    #[error("{0} is 0")]
    Zero(&'static str),
    /// `frame_bytes_max` does not fit the length field.
    #[error("frame_bytes_max is {0}, above 4 GiB")]
    FrameBytesMax(usize),
    /// `backoff_ms_min` exceeds `backoff_ms_max`.
    #[error("backoff_ms_min exceeds backoff_ms_max")]
    Backoff,
    /// Name, advertised address or payload exceed their limits in a hello.
    #[error("name, advertise or hello_payload exceed their limits")]
    HelloTooLarge,
}

impl TcpConfig {
    /// The defaults, listening on a free loopback port.
    pub fn new(local: NodeId) -> Self {
        Self {
            local,
            cluster: ClusterId(0),
            require_cluster: false,
            name: String::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertise: String::new(),
            hello_payload: Bytes::new(),
            frame_bytes_max: 16 << 20,
            queue_frames_max: 4096,
            queue_bytes_max: 32 << 20,
            inbox_events_max: 8192,
            inbox_bytes_max: 64 << 20,
            inbound_max: 256,
            exchanges_max: 64,
            handshake_ms: 10_000,
            connect_ms: 2_000,
            backoff_ms_min: 50,
            backoff_ms_max: 1_000,
            stall_ms: 5_000,
            seed: 0,
            sink: None,
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first thing found wrong, see [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.local == NodeId(0) {
            return Err(ConfigError::LocalIsNobody);
        }
        let positive = [
            ("frame_bytes_max", self.frame_bytes_max as u64),
            ("queue_frames_max", self.queue_frames_max as u64),
            ("queue_bytes_max", self.queue_bytes_max as u64),
            ("inbox_events_max", self.inbox_events_max as u64),
            ("inbox_bytes_max", self.inbox_bytes_max as u64),
            ("inbound_max", self.inbound_max as u64),
            ("exchanges_max", self.exchanges_max as u64),
            ("handshake_ms", self.handshake_ms),
            ("connect_ms", self.connect_ms),
            ("backoff_ms_min", self.backoff_ms_min),
            ("stall_ms", self.stall_ms),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero(name));
        }
        if u32::try_from(self.frame_bytes_max).is_err() {
            return Err(ConfigError::FrameBytesMax(self.frame_bytes_max));
        }
        if self.backoff_ms_min > self.backoff_ms_max {
            return Err(ConfigError::Backoff);
        }
        if !self.hello(ClusterId(0), NodeId(0), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).fits() {
            return Err(ConfigError::HelloTooLarge);
        }
        Ok(())
    }

    /// What this member says to a peer; `bound` is where it listens.
    pub(super) fn hello(&self, cluster: ClusterId, expect: NodeId, bound: SocketAddr) -> Hello {
        let peer_addr = if self.advertise.is_empty() { bound.to_string() } else { self.advertise.clone() };
        let payload = self.hello_payload.clone();
        Hello { cluster, node: self.local, expect, name: self.name.clone(), peer_addr, payload }
    }
}

impl fmt::Debug for TcpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConfig")
            .field("local", &self.local)
            .field("cluster", &self.cluster)
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .finish_non_exhaustive()
    }
}
