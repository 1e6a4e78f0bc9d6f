//! gRPC calls on bare HTTP/2 streams: one header block, one frame out, frames in, a status in the trailers.
//!
//! A general client would do, at two to three times the CPU a call: the load tool shares its cores with what it
//! measures. It knows no compression and no TLS.

use std::{cell::RefCell, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use prost::Message;
use tonic::codegen::http::{HeaderMap, Request, Uri, header};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The server answered with a gRPC status.
    #[error("status {code}: {message}")]
    Status {
        /// Its number.
        code: u32,
        /// Its words.
        message: String,
    },
    /// The connection broke, or could not be made.
    #[error("connection: {0}")]
    Connection(String),
    /// The answer is not what the protocol allows.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> Self {
        Self::Connection(error.to_string())
    }
}

/// One connection, made again after it broke.
pub(super) struct Connection {
    address: String,
    sender: RefCell<Option<SendRequest<Bytes>>>,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(address: &str) -> Result<Self, CallError> {
        let address = address.strip_prefix("http://").unwrap_or(address).to_owned();
        let sender = connect(&address).await?;
        Ok(Self { address, sender: RefCell::new(Some(sender)) })
    }

    /// Calls a method that takes one message and answers one.
    pub(super) async fn unary<R: Message + Default>(
        &self,
        method: &'static str,
        message: Bytes,
    ) -> Result<R, CallError> {
        let (_, mut frames) = self.open_stream(method, message, true).await?;
        let first = frames.next().await?;
        let rest = if first.is_some() { frames.next().await? } else { None };
        match (first, rest) {
            (Some(message), None) => R::decode(message).map_err(|_| CallError::Malformed("message")),
            _ => Err(CallError::Malformed("not one message")),
        }
    }

    /// Calls a method, sends one message, and leaves both directions open.
    pub(super) async fn stream(
        &self,
        method: &'static str,
        message: Bytes,
    ) -> Result<(SendStream<Bytes>, Frames), CallError> {
        self.open_stream(method, message, false).await
    }

    async fn open_stream(
        &self,
        method: &'static str,
        message: Bytes,
        only: bool,
    ) -> Result<(SendStream<Bytes>, Frames), CallError> {
        let sender = self.sender.borrow().clone();
        let sender = match sender {
            Some(sender) => sender,
            None => {
                let sender = connect(&self.address).await?;
                *self.sender.borrow_mut() = Some(sender.clone());
                sender
            }
        };
        let opened = call(sender, &self.address, method, message, only).await;
        if let Err(CallError::Connection(_)) = opened {
            *self.sender.borrow_mut() = None;
        }
        opened
    }
}

async fn connect(address: &str) -> Result<SendRequest<Bytes>, CallError> {
    let broken = |error: std::io::Error| CallError::Connection(error.to_string());
    let socket = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address)).await;
    let socket = socket.map_err(|_| CallError::Connection("no answer in 5 s".to_owned()))?.map_err(broken)?;
    socket.set_nodelay(true).map_err(broken)?;
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(socket)
        .await?;
    // Ends with the connection; its error reaches every stream.
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// Sends head and message; `only` says that no other message will follow, in the same frame.
async fn call(
    sender: SendRequest<Bytes>,
    address: &str,
    method: &'static str,
    message: Bytes,
    only: bool,
) -> Result<(SendStream<Bytes>, Frames), CallError> {
    let uri = Uri::builder().scheme("http").authority(address).path_and_query(method).build();
    let request = Request::post(uri.map_err(|_| CallError::Malformed("address"))?)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())
        .map_err(|_| CallError::Malformed("request"))?;
    let mut sender = sender.ready().await?;
    let (response, mut send) = sender.send_request(request, false)?;
    send.send_data(message, only)?;
    let response = response.await?;
    check_status(response.headers())?;
    Ok((send, Frames { body: response.into_body(), buffered: BytesMut::new() }))
}

/// The messages of one answer.
pub(super) struct Frames {
    body: RecvStream,
    buffered: BytesMut,
}

impl Frames {
    /// The next message; `None` when the server ended the stream well.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = self.split()? {
                return Ok(Some(message));
            }
            match self.body.data().await {
                Some(chunk) => {
                    let chunk = chunk?;
                    self.body.flow_control().release_capacity(chunk.len())?;
                    self.buffered.extend_from_slice(&chunk);
                }
                None => {
                    let trailers = self.body.trailers().await?;
                    check_status(&trailers.unwrap_or_default())?;
                    return if self.buffered.is_empty() { Ok(None) } else { Err(CallError::Malformed("cut short")) };
                }
            }
        }
    }

    fn split(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some((head, _)) = self.buffered.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(CallError::Malformed("compressed"));
        }
        if length > MESSAGE_BYTES_MAX {
            return Err(CallError::Malformed("too long"));
        }
        if self.buffered.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.buffered.advance(HEAD_BYTES);
        Ok(Some(self.buffered.split_to(length).freeze()))
    }
}

/// A message as a gRPC frame.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("a request is far below 4 GiB"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(str::parse) {
        None | Some(Ok(0)) => Ok(()),
        Some(Ok(code)) => Err(CallError::Status { code, message: text("grpc-message").unwrap_or_default().to_owned() }),
        Some(Err(_)) => Err(CallError::Malformed("status")),
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW_BYTES: u32 = 8 << 20;
/// A flag for compression and the length.
const HEAD_BYTES: usize = 5;
const MESSAGE_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::LeaseGrantRequest;

    #[test]
    fn a_frame_is_flag_length_and_message() {
        let bytes = frame(&LeaseGrantRequest { ttl: 5, id: 0 });
        assert_eq!(&bytes[..], [0, 0, 0, 0, 2, 8, 5]);
    }

    #[test]
    fn a_status_in_the_headers_fails_the_call() {
        let mut headers = HeaderMap::new();
        assert_eq!(check_status(&headers), Ok(()));
        headers.insert("grpc-status", "8".parse().expect("a header"));
        headers.insert("grpc-message", "busy".parse().expect("a header"));
        assert_eq!(check_status(&headers), Err(CallError::Status { code: 8, message: "busy".to_owned() }));
    }
}
