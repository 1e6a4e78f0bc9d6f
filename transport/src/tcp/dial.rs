//! Connecting and introducing oneself: what links and exchanges have in common on the dialer's side.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::hello::{HELLO_HEADER_BYTES, Hello, HelloError, HelloHeader, Open, Refusal, Said};
use crate::NodeId;

/// Why an address gave no conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The host name has no address now. Retry.
    #[error("cannot resolve the address")]
    Resolve(#[source] io::Error),
    /// No address answered. Retry.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection was lost during the handshake. Retry.
    #[error("connection lost during the handshake")]
    Lost(#[source] io::Error),
    /// Connecting or the handshake took too long. Retry.
    #[error("no answer in time")]
    Timeout,
    /// The other end will not talk; who it is stands beside the reason. Mend the configuration, or retry when
    /// [`Refusal::Busy`].
    #[error("refused by {} ({}) of cluster {}: {refusal}", .by.name, .by.node, .by.cluster)]
    Refused {
        /// Its reason.
        refusal: Refusal,
        /// What it said of itself.
        by: Box<Hello>,
    },
    /// It answered, but is not the disk that was expected. The address is another member's.
    #[error("expected node {expected}, met {} ({})", .met.name, .met.node)]
    WrongNode {
        /// Whom we wanted.
        expected: NodeId,
        /// Whom we met.
        met: Box<Hello>,
    },
    /// It is no peer of this protocol, or of another version.
    #[error("not a peer")]
    Hello(#[from] HelloError),
    /// Our own hello exceeds its limits. Never sent.
    #[error("hello exceeds its limits")]
    TooLarge,
}

impl DialError {
    /// A short fixed word, for metrics and to tell one failure from the next.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::Lost(_) => "lost",
            Self::Timeout => "timeout",
            Self::Refused { refusal, .. } => refusal.label(),
            Self::WrongNode { .. } => "wrong_node",
            Self::Hello(HelloError::Version { .. }) => "bad_version",
            Self::Hello(_) => "bad_hello",
            Self::TooLarge => "too_large",
        }
    }
}

/// Asks whoever listens at `addr` (`host:port`) one thing and returns its answer, in one connection.
///
/// The question is `hello.payload`, the answer the payload of the returned [`Hello`], which also says who answered.
/// Needs no transport of one's own: formation, joining members and command line tools use it. The other end serves it
/// by [`TcpTransport::recv_exchange`](super::TcpTransport::recv_exchange).
///
/// # Errors
/// See [`DialError`]. After [`DialError::Lost`] and [`DialError::Timeout`] the other end may have acted on it.
///
/// # Cancel safety
/// Cancelling closes the connection; the other end may have acted on it.
pub async fn exchange(addr: &str, hello: &Hello, within: Duration) -> Result<Hello, DialError> {
    if !hello.fits() {
        return Err(DialError::TooLarge);
    }
    let talk = async {
        let mut stream = connect(addr, within).await?;
        introduce(&mut stream, hello, Open::Exchange).await
    };
    timeout(within, talk).await.unwrap_or(Err(DialError::Timeout))
}

/// Resolves now, not at configuration time, and tries each address in turn.
pub(super) async fn connect(addr: &str, each: Duration) -> Result<TcpStream, DialError> {
    let addrs = lookup_host(addr).await.map_err(DialError::Resolve)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in addrs {
        match timeout(each, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(DialError::Connect)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(DialError::Connect(last))
}

/// Says hello and judges the answer. The caller sets the time limit.
pub(super) async fn introduce(stream: &mut TcpStream, hello: &Hello, open: Open) -> Result<Hello, DialError> {
    stream.write_all(&hello.encode(Said::Open(open))).await.map_err(DialError::Lost)?;
    let (said, theirs) = match read_hello(stream).await.map_err(DialError::Lost)? {
        Ok(heard) => heard,
        Err(error) => return Err(error.into()),
    };
    match said {
        Said::Refused(refusal) => Err(DialError::Refused { refusal, by: Box::new(theirs) }),
        Said::Open(_) => Err(HelloError::Malformed.into()),
        Said::Accepted if hello.expect != NodeId(0) && theirs.node != hello.expect => {
            Err(DialError::WrongNode { expected: hello.expect, met: Box::new(theirs) })
        }
        Said::Accepted => Ok(theirs),
    }
}

/// Reads one hello. The outer error is the socket's, the inner one what the bytes are not.
pub(super) async fn read_hello<R>(stream: &mut R) -> io::Result<Result<(Said, Hello), HelloError>>
where
    R: AsyncRead + Unpin,
{
    let mut head = [0; HELLO_HEADER_BYTES];
    stream.read_exact(&mut head).await?;
    let header = match HelloHeader::decode(&head) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    // `read_to_end` grows with what arrives: a claimed length alone allocates nothing.
    let mut body = Vec::new();
    stream.take(header.body_bytes() as u64).read_to_end(&mut body).await?;
    if body.len() < header.body_bytes() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(header.decode_body(&body))
}

/// One answer of an acceptor.
pub(super) fn answer(mut ours: Hello, said: Said, payload: Bytes) -> Vec<u8> {
    ours.payload = payload;
    ours.encode(said)
}
