//! Accepting connections for the doors: a limit on their number, a time limit on their first words, an orderly end.
//!
//! 1. Beyond its limit a door closes a new connection at once; the others notice nothing.
//! 2. A connection that has not said its first words within [`FIRST_WORDS`] is closed.
//! 3. After the stop no connection is accepted; what is under way may end, for as long as the owner waits.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use futures_util::stream::{self, Stream};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::authority::Mender;

/// How long a new connection may take to say what every connection begins with.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// HTTP/2's preface and the header of the settings that follow it.
const FIRST_BYTES: usize = 24 + 9;
/// Bytes read at once while a connection's first request is looked at.
const PIECE_BYTES: usize = 4 << 10;
/// Pause after the system could give no connection (no file descriptors left), so that it is not asked in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A silent client is asked whether it lives, as often as this.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// And is dropped after so long without an answer.
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(20);
/// Connections of the admin port; a scraper needs one.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Listens for a door.
///
/// # Errors
/// With what to do about it.
pub(super) async fn bind(door: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!("{door} door: cannot listen on {addr}: stop what listens there, or choose another --{door}-addr")
    })
}

/// Serves gRPC until `stop`, then until the last request has ended.
///
/// # Errors
/// When serving fails as a whole, which no client can cause.
pub(super) async fn serve_grpc(
    listener: TcpListener,
    routes: Routes,
    connections_max: usize,
    mut stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let stopped = async move {
        let _owner_gone = stop.wait_for(|stop| *stop).await;
    };
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(listener, connections_max), stopped)
        .await
}

/// Serves HTTP/1 until `stop`, then until the last answer is written.
pub(super) async fn serve_http(listener: TcpListener, router: axum::Router, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => continue,
            stream = accept(&listener) => stream,
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(router.clone());
        let mut stop = stop.clone();
        connections.spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(FIRST_WORDS);
            let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
            let mut stopping = false;
            loop {
                tokio::select! {
                    // A fault of the client's ends its connection and nothing else.
                    _ended = serving.as_mut() => break,
                    _ = stop.wait_for(|stop| *stop), if !stopping => {
                        stopping = true;
                        serving.as_mut().graceful_shutdown();
                    }
                }
            }
            drop(place);
        });
    }
    while connections.join_next().await.is_some() {}
}

/// The next connection; never gives up.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _slower = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "no connection accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn incoming(
    listener: TcpListener,
    connections_max: usize,
) -> impl Stream<Item = Result<DoorStream, io::Error>> + Send + 'static {
    let places = Arc::new(Semaphore::new(connections_max));
    stream::unfold((listener, places), async |(listener, places)| {
        loop {
            let stream = accept(&listener).await;
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => return Some((Ok(DoorStream::new(stream, place)), (listener, places))),
                Err(_) => tracing::warn!("too many connections, one is closed"),
            }
        }
    })
}

/// A connection that must speak soon.
struct DoorStream {
    stream: TcpStream,
    /// Bytes still to come before [`FIRST_WORDS`] is over; then 0.
    owed: usize,
    until: Pin<Box<Sleep>>,
    mender: Mender,
    /// Read and mended, and not yet taken.
    ahead: BytesMut,
    _place: OwnedSemaphorePermit,
}

impl DoorStream {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let until = Box::pin(sleep_until(Instant::now() + FIRST_WORDS));
        Self { stream, owed: FIRST_BYTES, until, mender: Mender::default(), ahead: BytesMut::new(), _place: place }
    }

    /// Reads through the mender until there is something to hand on, or the client has ended.
    fn poll_mended(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            let mut piece = [0; PIECE_BYTES];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.mender.push(piece.filled(), &mut self.ahead);
        }
        let taken = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl Connected for DoorStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for DoorStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.owed > 0 && self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake in time")));
        }
        if self.mender.is_off() && self.ahead.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            ready!(self.poll_mended(cx, buf))?;
        }
        self.owed = self.owed.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DoorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let addr = listener.local_addr().unwrap();
        let (here, there) = tokio::join!(TcpStream::connect(addr), accept(listener));
        (here.unwrap(), there)
    }

    fn place() -> OwnedSemaphorePermit {
        Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
    }

    /// Time is the runtime's own: it moves on as soon as everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_is_ended_and_one_that_did_is_not() {
        let listener = bind("etcd", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        for (words, ended) in [(&b"P"[..], true), (&[7; FIRST_BYTES][..], false)] {
            let (mut client, server) = connect(&listener).await;
            let mut door = DoorStream::new(server, place());
            client.write_all(words).await.unwrap();
            // One byte more than was sent; what is held back to be mended counts as not begun.
            let mut heard = vec![0; words.len() + 1];
            let more = tokio::time::timeout(FIRST_WORDS * 3, door.read_exact(&mut heard)).await;
            assert_eq!(more.is_ok_and(|read| read.is_err()), ended, "{} bytes", words.len());
        }
    }

    #[tokio::test]
    async fn beyond_the_limit_a_connection_is_closed_and_a_freed_place_is_taken() {
        let listener = bind("etcd", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut incoming = Box::pin(incoming(listener, 1));
        let _first = TcpStream::connect(addr).await.unwrap();
        let taken = futures_util::StreamExt::next(&mut incoming).await.unwrap().unwrap();
        let mut second = TcpStream::connect(addr).await.unwrap();
        let closed = async { second.read(&mut [0; 1]).await };
        tokio::select! {
            read = closed => assert!(read.is_ok_and(|read| read == 0), "closed at once"),
            _ = futures_util::StreamExt::next(&mut incoming) => panic!("there is no place for a second"),
        }
        drop(taken);
        let _third = TcpStream::connect(addr).await.unwrap();
        assert!(futures_util::StreamExt::next(&mut incoming).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_flag() {
        let taken = bind("etcd", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let words = format!("{:#}", bind("admin", taken.local_addr().unwrap()).await.unwrap_err());
        assert!(words.contains("--admin-addr"), "{words}");
    }
}
