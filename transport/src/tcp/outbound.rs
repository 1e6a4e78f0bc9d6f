//! The sending half: one task a peer's lane dials, introduces itself, writes batches, and starts over.
//!
//! 1. One connection a lane at a time; a lane's frames leave in the order of [`LaneQueue::fill`].
//! 2. The writer also reads, because an end of the stream is the only way to hear that the peer closed it.
//! 3. Once told to drain, a lane takes no new dial but for frames already accepted, writes what waits, closes its
//!    half, and waits for the peer's close: by then the peer has read everything.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Shared;
use super::dial::{DialError, connect, introduce};
use super::frame::{FRAME_HEADER_BYTES, encode_header};
use super::hello::{Hello, Open};
use super::queue::{LaneQueue, Phase};
use crate::{Channel, Lane, NodeId};

/// Frames below this are copied beside their headers; larger ones are written from where they lie.
const COPY_BYTES_MAX: usize = 4 << 10;

/// One known peer: where it is, what waits for it, what went wrong last.
pub(super) struct Peer {
    pub(super) id: NodeId,
    pub(super) orders: watch::Sender<Orders>,
    pub(super) main: LaneQueue,
    pub(super) bulk: LaneQueue,
    pub(super) met: Mutex<Option<Hello>>,
    pub(super) last_error: Mutex<Option<Arc<DialError>>>,
}

/// What a peer's two lanes are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) addr: String,
    pub(super) stop: Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    /// After what was accepted is written.
    Drained,
    Now,
}

/// Why a connection, or the attempt at one, was over.
enum End {
    /// The peer closed it.
    Closed,
    Io(io::Error),
    /// The peer took nothing for `stall_ms`.
    Stalled,
    /// Everything accepted was written and the peer has read it.
    Drained,
    /// Orders changed.
    Ordered,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the peer"),
            Self::Io(error) => error.fmt(f),
            Self::Stalled => f.write_str("the peer takes no bytes"),
            Self::Drained => f.write_str("drained"),
            Self::Ordered => f.write_str("peer moved, removed, or shutting down"),
        }
    }
}

impl Peer {
    pub(super) fn queue(&self, lane: Lane) -> &LaneQueue {
        match lane {
            Lane::Main => &self.main,
            Lane::Bulk => &self.bulk,
        }
    }

    fn note(&self, met: Result<Hello, Arc<DialError>>) {
        let (hello, error) = match met {
            Ok(hello) => (Some(hello), None),
            Err(error) => (None, Some(error)),
        };
        if hello.is_some() {
            *self.met.lock().unwrap_or_else(PoisonError::into_inner) = hello;
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// The task of one lane.
pub(super) struct LaneTask {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    lane: Lane,
    orders: watch::Receiver<Orders>,
    jitter: Jitter,
    failures: u32,
    /// The last failure told to the operator; the same one again is told quietly.
    told: Option<&'static str>,
}

impl LaneTask {
    pub(super) fn new(shared: Arc<Shared>, peer: Arc<Peer>, lane: Lane) -> Self {
        let orders = peer.orders.subscribe();
        let jitter = Jitter(shared.config.seed ^ peer.id.0.rotate_left(17) ^ (lane as u64));
        Self { shared, peer, lane, orders, jitter, failures: 0, told: None }
    }

    pub(super) async fn run(mut self) {
        loop {
            let now = self.orders.borrow_and_update().clone();
            let over = match now.stop {
                Stop::No => false,
                Stop::Drained => !self.queue().has_frames(),
                Stop::Now => true,
            };
            if over {
                break;
            }
            if self.lane == Lane::Bulk && !self.wanted(&now.addr).await {
                continue;
            }
            let end = self.dial_and_write(&now.addr).await;
            let dropped = self.queue().enter(Phase::Down);
            self.shared.stats.frames_dropped.add(dropped);
            match end {
                // A change of orders is looked at without a pause.
                End::Ordered | End::Drained => {}
                _ => self.pause(&now.addr).await,
            }
            if self.lane == Lane::Bulk {
                self.queue().enter(Phase::Parked);
            }
        }
        self.shared.stats.frames_dropped.add(self.queue().enter(Phase::Down));
    }

    fn queue(&self) -> &LaneQueue {
        self.peer.queue(self.lane)
    }

    /// Bulk only: waits for a first frame. False when orders changed before there was one.
    async fn wanted(&mut self, addr: &str) -> bool {
        while !self.queue().has_frames() {
            let queue = self.peer.queue(self.lane);
            tokio::select! {
                () = queue.ready.notified() => {}
                () = ordered(&mut self.orders, addr, Heed::Drain) => return false,
            }
        }
        self.queue().enter(Phase::Dialing);
        true
    }

    async fn dial_and_write(&mut self, addr: &str) -> End {
        let dialled = tokio::select! {
            dialled = dial(&self.shared, self.peer.id, self.lane, addr) => dialled,
            () = ordered(&mut self.orders, addr, match self.lane {
                Lane::Main => Heed::Drain,
                Lane::Bulk => Heed::NowOnly,
            }) => return End::Ordered,
        };
        let stream = match dialled {
            Ok((stream, hello)) => {
                self.peer.note(Ok(hello));
                stream
            }
            Err(error) => {
                self.on_failure(addr, error);
                return End::Closed;
            }
        };
        info!(peer = %self.peer.id, lane = ?self.lane, addr, "link to peer up");
        self.shared.stats.connects.add(1);
        self.failures = 0;
        self.told = None;
        self.queue().enter(Phase::Open);
        let end = self.write_until_end(stream, addr).await;
        info!(peer = %self.peer.id, lane = ?self.lane, addr, reason = %end, "link to peer down");
        end
    }

    fn on_failure(&mut self, addr: &str, error: DialError) {
        self.failures = self.failures.saturating_add(1);
        self.shared.stats.dial_failures.add(error.label());
        let error = Arc::new(error);
        let cause = std::error::Error::source(&*error).map(ToString::to_string).unwrap_or_default();
        if self.told == Some(error.label()) {
            debug!(peer = %self.peer.id, addr, %error, cause, "peer still not reached");
        } else {
            warn!(peer = %self.peer.id, addr, %error, cause, "peer not reached, will keep trying");
            self.told = Some(error.label());
        }
        self.peer.note(Err(error));
    }

    async fn write_until_end(&mut self, stream: TcpStream, addr: &str) -> End {
        let stall = Duration::from_millis(self.shared.config.stall_ms);
        let (mut reader, mut writer) = stream.into_split();
        let mut taken = Vec::new();
        let mut batch = Batch::default();
        let mut probe = [0; 64];
        loop {
            let queue = self.peer.queue(self.lane);
            queue.fill(&mut taken);
            if taken.is_empty() {
                if self.orders.borrow().stop == Stop::Drained {
                    return close(&mut writer, reader.read(&mut probe)).await;
                }
                tokio::select! {
                    () = queue.ready.notified() => {}
                    heard = reader.read(&mut probe) => match heard {
                        // The peer has nothing to say here: an end, or a fault of its own.
                        Ok(_) => return End::Closed,
                        Err(error) => return End::Io(error),
                    },
                    () = ordered(&mut self.orders, addr, Heed::Drain) => {
                        if self.orders.borrow().stop != Stop::Drained {
                            return End::Ordered;
                        }
                    }
                }
                continue;
            }
            let frames = taken.len();
            batch.load(&mut taken);
            let bytes = batch.remaining();
            tokio::select! {
                biased;
                written = write(&mut writer, &mut batch, stall) => if let Err(end) = written {
                    self.shared.stats.frames_dropped.add(frames);
                    return end;
                },
                () = ordered(&mut self.orders, addr, Heed::NowOnly) => return End::Ordered,
            }
            self.shared.stats.batches_sent.add(1);
            self.shared.stats.frames_sent.add(frames);
            self.shared.stats.bytes_sent.add(bytes);
        }
    }

    async fn pause(&mut self, addr: &str) {
        let config = &self.shared.config;
        let doubled = config.backoff_ms_min.saturating_mul(1 << self.failures.saturating_sub(1).min(20));
        let pause = self.jitter.half_of(doubled.min(config.backoff_ms_max));
        tokio::select! {
            () = sleep(Duration::from_millis(pause)) => {}
            () = ordered(&mut self.orders, addr, Heed::Drain) => {}
        }
    }
}

async fn dial(shared: &Shared, peer: NodeId, lane: Lane, addr: &str) -> Result<(TcpStream, Hello), DialError> {
    let mut stream = connect(addr, Duration::from_millis(shared.config.connect_ms)).await?;
    watch_for_death(&stream, Duration::from_millis(shared.config.stall_ms));
    let hello = shared.hello(peer);
    let within = Duration::from_millis(shared.config.handshake_ms);
    let theirs = timeout(within, introduce(&mut stream, &hello, Open::Link(lane))).await;
    let theirs = theirs.unwrap_or(Err(DialError::Timeout))?;
    Ok((stream, theirs))
}

/// Has the kernel give up on a peer that acknowledges nothing. Its own limit is some fifteen minutes, and a partition
/// that heals would be noticed only at its next, ever later, retry.
pub(super) fn watch_for_death(stream: &TcpStream, within: Duration) {
    let socket = SockRef::from(stream);
    let probing = socket2::TcpKeepalive::new().with_time(within).with_interval(within);
    // Either may be missing on some system; the connection then only dies later.
    if let Err(error) = socket.set_tcp_keepalive(&probing) {
        debug!(%error, "no keep-alive");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket.set_tcp_user_timeout(Some(within)) {
        debug!(%error, "no user timeout");
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Heed {
    Drain,
    NowOnly,
}

/// Returns when the orders no longer are: serve `addr`. Cancel safe: it looks again each time.
async fn ordered(orders: &mut watch::Receiver<Orders>, addr: &str, heed: Heed) {
    loop {
        {
            let now = orders.borrow_and_update();
            let stop = match now.stop {
                Stop::No => false,
                Stop::Drained => heed == Heed::Drain,
                Stop::Now => true,
            };
            if stop || now.addr != addr {
                return;
            }
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

/// Closes our half and waits for the peer to close its own.
async fn close(writer: &mut OwnedWriteHalf, heard: impl Future<Output = io::Result<usize>>) -> End {
    if let Err(error) = writer.shutdown().await {
        return End::Io(error);
    }
    match heard.await {
        Ok(_) => End::Drained,
        Err(error) => End::Io(error),
    }
}

async fn write(writer: &mut OwnedWriteHalf, batch: &mut Batch, stall: Duration) -> Result<(), End> {
    while batch.has_remaining() {
        match timeout(stall, writer.write_buf(batch)).await {
            Ok(Ok(0)) => return Err(End::Io(io::ErrorKind::WriteZero.into())),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(End::Io(error)),
            Err(_) => return Err(End::Stalled),
        }
    }
    Ok(())
}

/// What one vectored write is made of: headers with the small frames beside them, and large frames where they lie.
#[derive(Default)]
struct Batch {
    pieces: VecDeque<Bytes>,
    /// Reused once the pieces split off it are written.
    copied: BytesMut,
}

impl Batch {
    fn load(&mut self, frames: &mut Vec<(Channel, Bytes)>) {
        debug_assert!(self.pieces.is_empty());
        let copy = |frame: &Bytes| if frame.len() < COPY_BYTES_MAX { frame.len() } else { 0 };
        self.copied.reserve(frames.iter().map(|(_, f)| FRAME_HEADER_BYTES + copy(f)).sum());
        for (channel, frame) in frames.drain(..) {
            self.copied.extend_from_slice(&encode_header(channel, &frame));
            if frame.len() < COPY_BYTES_MAX {
                self.copied.extend_from_slice(&frame);
            } else {
                self.pieces.push_back(self.copied.split().freeze());
                self.pieces.push_back(frame);
            }
        }
        if !self.copied.is_empty() {
            self.pieces.push_back(self.copied.split().freeze());
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        assert!(count == 0, "advanced past the end of a batch");
    }
}

/// A seeded source of jitter (splitmix64).
struct Jitter(u64);

impl Jitter {
    /// A span between half of `ms` and all of it.
    fn half_of(&mut self, ms: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ms / 2 + z % (ms / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_reads_the_same_however_it_is_advanced() {
        let frames = [5, 0, COPY_BYTES_MAX, 17, COPY_BYTES_MAX * 2].map(|n| Bytes::from(vec![n as u8; n]));
        let mut expected = Vec::new();
        for frame in &frames {
            expected.extend_from_slice(&encode_header(Channel::Log, frame));
            expected.extend_from_slice(frame);
        }
        for step in [1, 13, 4096, expected.len()] {
            let mut batch = Batch::default();
            batch.load(&mut frames.iter().map(|f| (Channel::Log, f.clone())).collect());
            assert_eq!(batch.remaining(), expected.len());
            let mut got = Vec::new();
            while batch.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = batch.chunks_vectored(&mut slices);
                let all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).collect();
                let taken = step.min(all.len());
                got.extend_from_slice(&all[..taken]);
                batch.advance(taken);
            }
            assert_eq!(got, expected, "advanced by {step}");
        }
    }

    #[test]
    fn jitter_stays_within_half_and_whole_and_follows_its_seed() {
        let draw = |seed| {
            let mut jitter = Jitter(seed);
            (0..100).map(|_| jitter.half_of(1000)).collect::<Vec<_>>()
        };
        assert!(draw(1).iter().all(|ms| (500..=1000).contains(ms)));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
