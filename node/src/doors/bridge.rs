//! The bridge between tasks that wait for answers and the pure member, which only knows ids.
//!
//! 1. Each call is answered once, or its waiter learns that the member ended.
//! 2. A waiter that goes away takes its place in the table with it, and the member is told.
//! 3. Watch responses of a stream arrive in order; the bytes on their way are bounded by the member's credit.
//! 4. A member too busy to hear that bytes were written, or that a stream is gone, is told again: else the stream would
//!    stand still, or stay, for ever.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use triune_transport::Nanos;
use triune_txn::mvcc;

use crate::member::api::{Call, Header, Output, Refusal, Reply, Request, RequestId, StreamId, WatchRequest};

/// The way into the thread that runs the member.
pub trait Port: Send + Sync + 'static {
    /// Queues a request and returns at once.
    ///
    /// # Errors
    /// [`PortError`]; the request was not taken.
    fn request(&self, request: Request) -> Result<(), PortError>;

    /// Hands a request over, waiting while the queue is full. Not for a task: it may block its thread.
    ///
    /// # Errors
    /// [`PortError::Stopped`] only.
    fn request_wait(&self, request: Request) -> Result<(), PortError>;
}

/// Why the member did not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Its input queue is full. Try again later.
    #[error("too many requests")]
    Busy,
    /// It has ended.
    #[error("member stopped")]
    Stopped,
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct CallError {
    /// The header, if the member made one.
    pub header: Header,
    /// Why.
    pub refusal: Refusal,
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self { header: Header::default(), refusal }
    }
}

type Answer = (Header, Result<Reply, Refusal>);

/// What a watch stream's task receives.
#[derive(Debug)]
pub enum WatchItem {
    /// Write these, then give the bytes back with [`WatchStream::taken`].
    Responses {
        /// Goes with each.
        header: Header,
        /// In order.
        responses: Vec<mvcc::WatchResponse>,
        /// To give back.
        bytes: usize,
    },
    /// The stream ends so.
    End(Refusal),
}

/// Joins doors to one member. Shared behind an `Arc`.
pub struct Bridge {
    port: OnceLock<Box<dyn Port>>,
    next: AtomicU64,
    calls: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    streams: Mutex<HashMap<u64, mpsc::UnboundedSender<WatchItem>>>,
    /// Streams that are gone and of which the member was too busy to hear. Told with the next request it takes.
    gone: Mutex<Vec<StreamId>>,
    /// Whether there are any: spares each request the lock.
    some_gone: AtomicBool,
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("calls", &self.calls.lock().len()).finish_non_exhaustive()
    }
}

impl Default for Bridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Bridge {
    /// A bridge to no member yet: calls are refused with [`Refusal::Stopped`] until [`Bridge::connect`].
    pub fn new() -> Self {
        Self {
            port: OnceLock::new(),
            next: AtomicU64::new(1),
            calls: Mutex::new(HashMap::new()),
            streams: Mutex::new(HashMap::new()),
            gone: Mutex::new(Vec::new()),
            some_gone: AtomicBool::new(false),
        }
    }

    /// Names the member. Done once; a second call changes nothing.
    pub fn connect(&self, port: Box<dyn Port>) {
        let _ = self.port.set(port);
    }

    fn request(&self, request: Request) -> Result<(), Refusal> {
        let port = self.port.get().ok_or(Refusal::Stopped)?;
        port.request(request).map_err(|e| match e {
            PortError::Busy => Refusal::Busy,
            PortError::Stopped => Refusal::Stopped,
        })?;
        if self.some_gone.load(Ordering::Acquire) {
            self.tell_gone(&**port);
        }
        Ok(())
    }

    /// Tells the member of streams that are gone, as far as it takes it.
    fn tell_gone(&self, port: &dyn Port) {
        let mut gone = self.gone.lock();
        while let Some(stream) = gone.pop() {
            if port.request(Request::Watch { stream, event: WatchRequest::Close }) == Err(PortError::Busy) {
                return gone.push(stream);
            }
        }
        self.some_gone.store(false, Ordering::Release);
    }

    /// Asks the member and waits for its answer.
    ///
    /// # Errors
    /// The member's refusal; [`Refusal::Unknown`] if it ended before it answered.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the wish for an answer; what was proposed may still be carried out.
    pub async fn call(
        &self,
        call: Call,
        within: Option<Nanos>,
        needs_leader: bool,
    ) -> Result<(Header, Reply), CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, waiter) = oneshot::channel();
        self.calls.lock().insert(id, answer);
        let place = Place { bridge: self, id };
        self.request(Request::Call { id: RequestId(id), within, needs_leader, call })?;
        let answer = waiter.await;
        std::mem::forget(place); // answered, or the table is being emptied: either way the place is gone
        match answer {
            Ok((header, Ok(reply))) => Ok((header, reply)),
            Ok((header, Err(refusal))) => Err(CallError { header, refusal }),
            Err(_) => Err(Refusal::Unknown.into()),
        }
    }

    /// Opens a watch stream.
    ///
    /// # Errors
    /// When the member does not take it.
    pub fn watch(self: &Arc<Self>, needs_leader: bool) -> Result<WatchStream, Refusal> {
        let id = StreamId(self.next.fetch_add(1, Ordering::Relaxed));
        // Bounded by the member's credit per stream, not by the channel.
        let (sender, items) = mpsc::unbounded_channel();
        self.streams.lock().insert(id.0, sender);
        let stream = WatchStream { bridge: Arc::clone(self), id, items };
        stream.say(WatchRequest::Open { needs_leader })?;
        Ok(stream)
    }

    /// Takes what is for a door; gives back what is not.
    pub fn deliver(&self, output: Output) -> Option<Output> {
        match output {
            Output::Reply { id, header, result } => {
                if let Some(waiter) = self.calls.lock().remove(&id.0) {
                    let _ = waiter.send((header, result));
                }
                None
            }
            Output::Watch { stream, header, responses, bytes } => {
                self.push(stream, WatchItem::Responses { header, responses, bytes });
                None
            }
            Output::WatchEnd { stream, refusal } => {
                self.push(stream, WatchItem::End(refusal));
                None
            }
            other => Some(other),
        }
    }

    /// The member ended: every waiter learns that its outcome is unknown, every stream ends.
    pub fn close(&self) {
        self.calls.lock().clear();
        self.streams.lock().clear();
    }

    fn push(&self, stream: StreamId, item: WatchItem) {
        if let Some(sender) = self.streams.lock().get(&stream.0) {
            let _ = sender.send(item);
        }
    }
}

/// A waiter's place in the table, given up when the waiter goes away.
struct Place<'a> {
    bridge: &'a Bridge,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.bridge.calls.lock().remove(&self.id).is_some() {
            let _ = self.bridge.request(Request::Cancel(RequestId(self.id)));
        }
    }
}

/// One watch stream of a client. Dropping it ends its watches.
#[derive(Debug)]
pub struct WatchStream {
    bridge: Arc<Bridge>,
    id: StreamId,
    items: mpsc::UnboundedReceiver<WatchItem>,
}

impl WatchStream {
    /// Says something about this stream to the member.
    ///
    /// # Errors
    /// When the member does not take it.
    pub fn say(&self, event: WatchRequest) -> Result<(), Refusal> {
        self.bridge.request(Request::Watch { stream: self.id, event })
    }

    /// The next item; `None` when the member ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<WatchItem> {
        self.items.recv().await
    }

    /// Gives back the bytes of an item that was written, however busy the member is.
    ///
    /// # Cancel safety
    /// Not cancel safe: the bytes may stay owed, so drop the stream too.
    pub async fn taken(&self, bytes: usize) {
        while self.say(WatchRequest::Taken { bytes }) == Err(Refusal::Busy) {
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.bridge.streams.lock().remove(&self.id.0);
        if self.say(WatchRequest::Close) == Err(Refusal::Busy) {
            let mut gone = self.bridge.gone.lock();
            gone.push(self.id);
            self.bridge.some_gone.store(true, Ordering::Release);
        }
    }
}

/// Pause before a member that was too busy to hear of written bytes is told again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that takes nothing while it is busy.
    #[derive(Default)]
    struct Door {
        busy: AtomicBool,
        told: Mutex<Vec<(u64, WatchRequest)>>,
    }

    impl Port for Arc<Door> {
        fn request(&self, request: Request) -> Result<(), PortError> {
            if self.busy.load(Ordering::Acquire) {
                return Err(PortError::Busy);
            }
            if let Request::Watch { stream, event } = request {
                self.told.lock().push((stream.0, event));
            }
            Ok(())
        }

        fn request_wait(&self, request: Request) -> Result<(), PortError> {
            self.request(request)
        }
    }

    fn bridge() -> (Arc<Bridge>, Arc<Door>) {
        let (bridge, door) = (Arc::new(Bridge::new()), Arc::new(Door::default()));
        bridge.connect(Box::new(Arc::clone(&door)));
        (bridge, door)
    }

    #[tokio::test]
    async fn credit_is_given_back_to_a_member_that_was_too_busy_to_take_it() {
        let (bridge, door) = bridge();
        let stream = bridge.watch(false).unwrap();
        door.busy.store(true, Ordering::Release);
        let taken = async { stream.taken(7).await };
        let free = async { door.busy.store(false, Ordering::Release) };
        tokio::join!(taken, free);
        assert_eq!(door.told.lock().last(), Some(&(stream.id.0, WatchRequest::Taken { bytes: 7 })));
    }

    #[test]
    fn a_member_too_busy_to_hear_that_a_stream_is_gone_hears_it_with_the_next_request() {
        let (bridge, door) = bridge();
        let (first, second) = (bridge.watch(false).unwrap(), bridge.watch(false).unwrap());
        let id = first.id.0;
        door.busy.store(true, Ordering::Release);
        drop(first);
        assert_eq!(second.say(WatchRequest::Progress), Err(Refusal::Busy));
        door.busy.store(false, Ordering::Release);
        assert_eq!(second.say(WatchRequest::Progress), Ok(()));
        assert_eq!(second.say(WatchRequest::Progress), Ok(()));
        let told = door.told.lock();
        let closed: Vec<u64> =
            told.iter().filter(|(_, event)| *event == WatchRequest::Close).map(|(id, _)| *id).collect();
        assert_eq!(closed, [id], "once");
    }
}
