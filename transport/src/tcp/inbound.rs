//! The receiving half: accept, judge the hello, then read frames until the connection ends.
//!
//! 1. A fault of one connection ends that connection alone: it is logged, counted by reason, and nothing else moves.
//! 2. At most one session of a (peer, lane) is open. A newer connection evicts the older one and waits for its `Down`.
//! 3. A full receiver stops the reading of that connection, and of no other.
//! 4. `Up`, the frames and `Down` of a session are delivered by one task, in that order.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Shared;
use super::dial::{answer, read_hello};
use super::frame::{FrameDecoder, FrameError};
use super::hello::{Hello, HelloError, Open, Refusal, Said};
use super::outbound::watch_for_death;
use crate::{Event, Lane, LinkSession, NodeId};

/// A question from an address; answer it with [`Exchange::reply`], or drop it and the asker hears "busy".
#[derive(Debug)]
pub struct Exchange {
    /// Who asks, and in its payload what.
    pub hello: Hello,
    /// Where the question came from.
    pub from: SocketAddr,
    answer: oneshot::Sender<Bytes>,
}

impl Exchange {
    /// Answers with `payload`, at most [`HELLO_PAYLOAD_BYTES_MAX`](super::HELLO_PAYLOAD_BYTES_MAX) bytes; a longer
    /// one is cut. An asker that has gone hears nothing.
    pub fn reply(self, payload: Bytes) {
        let _asker_gone = self.answer.send(payload);
    }
}

/// The open inbound sessions, by who sends.
#[derive(Default)]
pub(super) struct Claims(Mutex<BTreeMap<(NodeId, Lane), Claim>>);

struct Claim {
    token: u64,
    /// Held while a session of this (peer, lane) is open.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Dropped to evict the claimant.
    _evict: oneshot::Sender<()>,
    hello: Hello,
}

/// Why a session ended.
enum End {
    Closed,
    Replaced,
    Io(io::Error),
    Fault(FrameError),
}

pub(super) async fn accept_all(
    shared: Arc<Shared>,
    listener: TcpListener,
    exchanges: mpsc::Sender<Exchange>,
    mut stop: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(shared.config.inbound_max));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                        shared.stats.inbound_faults.add("too_many_connections");
                        warn!(%from, limit = shared.config.inbound_max, "connection closed: too many");
                        continue;
                    };
                    let (shared, exchanges) = (Arc::clone(&shared), exchanges.clone());
                    connections.spawn(async move {
                        serve(&shared, stream, from, &exchanges).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Mostly no file descriptors left; accepting again at once would spin.
                    shared.stats.inbound_faults.add("accept");
                    warn!(%error, "cannot accept connections");
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means the transport is gone, which is a stop as well.
    let _stopped = stop.wait_for(|stop| *stop).await;
}

async fn serve(shared: &Shared, mut stream: TcpStream, from: SocketAddr, exchanges: &mpsc::Sender<Exchange>) {
    let within = Duration::from_millis(shared.config.handshake_ms);
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%from, %error, "connection lost at once");
        return;
    }
    let heard = timeout(within, read_hello(&mut stream)).await;
    let (open, hello) = match heard {
        Err(_) => return fault(shared, from, "handshake_timeout", "no handshake in time"),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return fault(shared, from, "handshake_truncated", "connection ended inside the handshake");
        }
        Ok(Err(error)) => return fault(shared, from, "handshake_io", error),
        Ok(Ok(Err(error @ HelloError::Version { .. }))) => {
            fault(shared, from, Refusal::BadVersion.label(), error);
            return say(shared, &mut stream, Said::Refused(Refusal::BadVersion), Bytes::new(), within).await;
        }
        Ok(Ok(Err(error))) => return fault(shared, from, "handshake_garbage", error),
        Ok(Ok(Ok((Said::Open(open), hello)))) => (open, hello),
        Ok(Ok(Ok(_))) => return fault(shared, from, "handshake_garbage", "an answer without a question"),
    };
    if let Err(refusal) = hello.judge(open, shared.config.local, shared.cluster(), shared.config.require_cluster) {
        warn!(
            %from, peer = %hello.node, name = hello.name, cluster = %hello.cluster, expected = %hello.expect,
            reason = %refusal, "connection refused"
        );
        shared.stats.inbound_faults.add(refusal.label());
        return say(shared, &mut stream, Said::Refused(refusal), Bytes::new(), within).await;
    }
    match open {
        Open::Exchange => serve_exchange(shared, stream, from, hello, exchanges, within).await,
        Open::Link(lane) => serve_link(shared, stream, from, hello, lane, within).await,
    }
}

async fn serve_exchange(
    shared: &Shared,
    mut stream: TcpStream,
    from: SocketAddr,
    hello: Hello,
    exchanges: &mpsc::Sender<Exchange>,
    within: Duration,
) {
    let (answer, answered) = oneshot::channel();
    let queued = exchanges.try_send(Exchange { hello, from, answer }).is_ok();
    let (said, payload) = match timeout(within, answered).await {
        Ok(Ok(payload)) if queued => (Said::Accepted, payload),
        _ => {
            shared.stats.inbound_faults.add(Refusal::Busy.label());
            (Said::Refused(Refusal::Busy), Bytes::new())
        }
    };
    say(shared, &mut stream, said, payload, within).await;
}

async fn serve_link(
    shared: &Shared,
    mut stream: TcpStream,
    from: SocketAddr,
    hello: Hello,
    lane: Lane,
    within: Duration,
) {
    watch_for_death(&stream, Duration::from_millis(shared.config.stall_ms));
    let (peer, name) = (hello.node, hello.name.clone());
    say(shared, &mut stream, Said::Accepted, shared.config.hello_payload.clone(), within).await;

    let (token, turn, mut evicted) = shared.claims.claim(peer, lane, hello);
    // Our own drop of the registry entry also ends the wait: whoever replaced us goes on.
    let held = tokio::select! {
        held = turn.lock_owned() => held,
        _ = &mut evicted => return,
    };
    let session = LinkSession(shared.sessions.fetch_add(1, Ordering::Relaxed) + 1);
    info!(%peer, name, ?lane, %from, session = session.0, "link from peer up");
    let end = read_until_end(shared, &mut stream, peer, lane, session, &mut evicted).await;
    // Counted and told before the other end can see it: who looks after the close finds it.
    match &end {
        End::Closed => info!(%peer, name, ?lane, session = session.0, "link from peer closed"),
        End::Replaced => info!(%peer, name, ?lane, session = session.0, "link from peer replaced by a newer one"),
        End::Io(error) => info!(%peer, name, ?lane, session = session.0, %error, "link from peer lost"),
        End::Fault(error) => {
            shared.stats.inbound_faults.add(error.label());
            warn!(%peer, name, ?lane, %from, %error, "link from peer closed for its fault");
        }
    }
    drop(stream);
    deliver(shared, &mut vec![Event::Down { peer, lane, session }]).await;
    drop(held);
    shared.claims.release(peer, lane, token);
}

async fn read_until_end(
    shared: &Shared,
    stream: &mut TcpStream,
    peer: NodeId,
    lane: Lane,
    session: LinkSession,
    evicted: &mut oneshot::Receiver<()>,
) -> End {
    let mut decoder = FrameDecoder::new(lane, shared.config.frame_bytes_max);
    let mut events = vec![Event::Up { peer, lane, session }];
    // `Up` is delivered even when evicted meanwhile, because `Down` follows in any case.
    deliver(shared, &mut events).await;
    loop {
        // Cancel safe: what a read brought is in the decoder before anything else is awaited.
        let read = tokio::select! {
            read = stream.read_buf(decoder.space()) => read,
            _ = &mut *evicted => return End::Replaced,
        };
        match read {
            Ok(0) => return decoder.finish().map_or_else(End::Fault, |()| End::Closed),
            Ok(bytes) => shared.stats.bytes_received.add(bytes),
            Err(error) => return End::Io(error),
        }
        let fault = loop {
            match decoder.next_frame() {
                Ok(Some((channel, frame))) => events.push(Event::Frame { from: peer, session, channel, frame }),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        shared.stats.frames_received.add(events.len());
        if !events.is_empty() {
            tokio::select! {
                biased;
                () = deliver(shared, &mut events) => {}
                // The session ends, and with it what was not delivered.
                _ = &mut *evicted => return End::Replaced,
            }
        }
        if let Some(error) = fault {
            return End::Fault(error);
        }
    }
}

/// Hands `events` over, waiting for room. Cancel safe: all were taken or none.
async fn deliver(shared: &Shared, events: &mut Vec<Event>) {
    loop {
        // Made before the offer, so that a wake-up between refusal and await is not lost.
        let room = shared.room.notified();
        if shared.sink.deliver(events) {
            return;
        }
        shared.stats.inbox_stalls.add(1);
        room.await;
    }
}

/// Answers a hello. An asker that does not listen is left alone.
async fn say(shared: &Shared, stream: &mut TcpStream, said: Said, payload: Bytes, within: Duration) {
    let wire = answer(shared.hello(NodeId(0)), said, payload);
    if let Ok(Err(error)) = timeout(within, stream.write_all(&wire)).await {
        debug!(%error, "answer to a handshake not heard");
    }
}

fn fault(shared: &Shared, from: SocketAddr, label: &'static str, reason: impl std::fmt::Display) {
    shared.stats.inbound_faults.add(label);
    warn!(%from, %reason, "connection closed");
}

impl Claims {
    /// Registers a connection as the newest of its (peer, lane) and evicts the one before it.
    fn claim(
        &self,
        peer: NodeId,
        lane: Lane,
        hello: Hello,
    ) -> (u64, Arc<tokio::sync::Mutex<()>>, oneshot::Receiver<()>) {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let older = claims.remove(&(peer, lane));
        let (token, turn) = older.map_or_else(Default::default, |older| (older.token + 1, older.turn));
        let (evict, evicted) = oneshot::channel();
        claims.insert((peer, lane), Claim { token, turn: Arc::clone(&turn), _evict: evict, hello });
        (token, turn, evicted)
    }

    /// Forgets a claim, unless a newer one took its place.
    fn release(&self, peer: NodeId, lane: Lane, token: u64) {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.get(&(peer, lane)).is_some_and(|claim| claim.token == token) {
            claims.remove(&(peer, lane));
        }
    }

    /// What the peer said when it opened its main lane to us.
    pub(super) fn hello(&self, peer: NodeId) -> Option<Hello> {
        let claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claims.get(&(peer, Lane::Main)).map(|claim| claim.hello.clone())
    }
}

impl FrameError {
    /// A short fixed word, for metrics.
    const fn label(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "frame_too_large",
            Self::Version(_) => "frame_version",
            Self::Channel(_) => "frame_channel",
            Self::Checksum => "frame_checksum",
            Self::Truncated => "frame_truncated",
        }
    }
}
