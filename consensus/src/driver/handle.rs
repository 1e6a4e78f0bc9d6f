//! The embedder's end of a driver: requests in, the end reported.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use tokio::sync::watch;
use triune_transport::Transport;

use super::inbox::{EventSink, Inbox, PushEvent, Refused};
use super::log::LogError;
use super::stats::{Counters, DriverStats};

/// Events the pump moves at once.
const PUMP_EVENTS: usize = 256;

/// How a driver ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DriverExit {
    /// It was stopped, and everything accepted was stepped and made durable.
    Stopped,
    /// It was aborted, or stopped and its drain time passed first. Nothing durable is harmed.
    StoppedEarly,
    /// The log failed. Nothing was written since; recover by opening the log again, in a process or member made anew.
    Poisoned(LogError),
    /// The machine (or the log) panicked, with these words. As after a crash.
    Panicked(String),
}

/// Why a request was not taken. It comes back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError<R> {
    /// The queue is full. Shed load, or wait with [`DriverHandle::request_wait`].
    #[error("too many requests wait")]
    Busy(R),
    /// The driver is stopping or has ended. Give up.
    #[error("the driver has stopped")]
    Stopped(R),
}

/// A running driver. Clones name the same one; dropping them all does not stop it.
pub struct DriverHandle<R> {
    inbox: Arc<Inbox<R>>,
    exited: watch::Receiver<Option<DriverExit>>,
    stats: Arc<Counters>,
}

impl<R: Send + 'static> DriverHandle<R> {
    pub(crate) const fn new(
        inbox: Arc<Inbox<R>>,
        exited: watch::Receiver<Option<DriverExit>>,
        stats: Arc<Counters>,
    ) -> Self {
        Self { inbox, exited, stats }
    }

    /// Hands `request` to the machine without waiting.
    ///
    /// # Errors
    /// [`RequestError`]; the request was not and will not be stepped.
    pub fn request(&self, request: R) -> Result<(), RequestError<R>> {
        self.inbox.request(request).map_err(|refused| match refused {
            Refused::Full(request) => RequestError::Busy(request),
            Refused::Closed(request) => RequestError::Stopped(request),
        })
    }

    /// Hands `request` to the machine, waiting while the queue is full. Waiters are served in order.
    ///
    /// # Errors
    /// [`RequestError::Stopped`] only.
    ///
    /// # Cancel safety
    /// A cancelled call has not handed the request over.
    pub async fn request_wait(&self, request: R) -> Result<(), RequestError<R>> {
        self.inbox.request_wait(request).await.map_err(RequestError::Stopped)
    }

    /// As [`DriverHandle::request_wait`], for threads outside any runtime: blocks this thread while the queue is full.
    ///
    /// # Errors
    /// [`RequestError::Stopped`] only.
    pub fn request_blocking(&self, request: R) -> Result<(), RequestError<R>> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut taken = pin!(self.request_wait(request));
        loop {
            if let Poll::Ready(result) = taken.as_mut().poll(&mut context) {
                return result;
            }
            std::thread::park();
        }
    }

    /// Where a transport may push its events.
    pub fn event_sink(&self) -> EventSink {
        EventSink::new(Arc::clone(&self.inbox) as Arc<dyn PushEvent>)
    }

    /// Moves events from `transport` to the machine until either ends. While the machine's queue is full, the
    /// transport is not read.
    pub async fn pump(self, transport: Arc<dyn Transport>) {
        let sink = self.event_sink();
        let mut exited = self.exited.clone();
        let mut events = Vec::with_capacity(PUMP_EVENTS);
        loop {
            let received = tokio::select! {
                received = transport.recv_many(&mut events, PUMP_EVENTS) => received,
                // Cancel safe: it only looks at a value.
                _ = exited.wait_for(Option::is_some) => 0,
            };
            if received == 0 || !sink.push_all_wait(&mut events).await {
                return;
            }
        }
    }

    /// Takes no further request or frame, lets the machine finish what it accepted and make it durable, and ends.
    /// Returns at once; see [`DriverHandle::exited`].
    pub fn stop(&self) {
        self.inbox.stop();
    }

    /// Ends at once, as after a crash: what waits is forgotten, and after the write under way nothing is written.
    pub fn abort(&self) {
        self.inbox.abort();
    }

    /// Waits until the driver has ended: its log is closed and may be opened again.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn exited(&self) -> DriverExit {
        let mut exited = self.exited.clone();
        match exited.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(DriverExit::StoppedEarly),
            Err(_) => DriverExit::Panicked("the machine thread ended without a word".to_owned()),
        }
    }

    /// How the driver ended, if it has.
    pub fn exit(&self) -> Option<DriverExit> {
        self.exited.borrow().clone()
    }

    /// What it has done so far.
    pub fn stats(&self) -> DriverStats {
        self.stats.read()
    }
}

/// Wakes a thread that blocks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<R> Clone for DriverHandle<R> {
    fn clone(&self) -> Self {
        Self { inbox: Arc::clone(&self.inbox), exited: self.exited.clone(), stats: Arc::clone(&self.stats) }
    }
}

impl<R> fmt::Debug for DriverHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverHandle").field("exit", &*self.exited.borrow()).finish_non_exhaustive()
    }
}
