//! The read thread: fetches old entries from the log, so that the machine never waits for a disk to read.
//!
//! Requests are answered in order. An error of the disk ends the driver, and so does a damaged entry: a replica must
//! not go on as if it had never existed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use triune_storage::{Index, StreamId};
use triune_transport::GroupId;

use super::log::{LogError, LogRead};
use super::log_thread::{Deliver, panic_words};
use super::{Completion, DriverConfig};
use crate::FetchId;

/// One wish for entries `first ..= last`.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) group: GroupId,
    pub(crate) req: FetchId,
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) bytes_max: usize,
}

/// How the read thread ended, unless in good order.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    Failed(LogError),
    Panicked(String),
}

/// The machine thread's end of the read thread.
#[derive(Debug)]
pub(crate) struct ReadThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<ReadEnd>>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    fetches: VecDeque<Fetch>,
    /// Taken and not yet answered.
    busy: bool,
    ended: bool,
}

impl ReadThread {
    pub(crate) fn spawn(config: &DriverConfig, reader: Box<dyn LogRead>, deliver: Deliver) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker { shared: Arc::clone(&shared), reader, deliver };
        let thread = std::thread::Builder::new().name(format!("{}-read", config.name)).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn submit(&self, fetch: Fetch) {
        self.shared.lock().fetches.push_back(fetch);
        self.shared.wake.notify_one();
    }

    /// How many wishes are not answered yet.
    pub(crate) fn backlog(&self) -> usize {
        let queue = self.shared.lock();
        queue.fetches.len() + usize::from(queue.busy)
    }

    /// Ends the thread after the read under way. Waits for it.
    pub(crate) fn end(&mut self) -> Option<ReadEnd> {
        self.shared.lock().ended = true;
        self.shared.wake.notify_one();
        match self.thread.take()?.join() {
            Ok(end) => end,
            Err(panic) => Some(ReadEnd::Panicked(panic_words(panic.as_ref()))),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next wish; `None` at the end.
    fn next(&self) -> Option<Fetch> {
        let mut queue = self.lock();
        queue.busy = false;
        loop {
            if queue.ended {
                return None;
            }
            if let Some(fetch) = queue.fetches.pop_front() {
                queue.busy = true;
                return Some(fetch);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    reader: Box<dyn LogRead>,
    deliver: Deliver,
}

impl Worker {
    fn run(mut self) -> Option<ReadEnd> {
        let end = catch_unwind(AssertUnwindSafe(|| self.serve().err().map(ReadEnd::Failed)))
            .unwrap_or_else(|panic| Some(ReadEnd::Panicked(panic_words(panic.as_ref()))));
        if let Some(end) = &end {
            tracing::error!(?end, "reading the log failed");
            (self.deliver)(Completion::IoFailed);
        }
        end
    }

    fn serve(&mut self) -> Result<(), LogError> {
        while let Some(Fetch { group, req, first, last, bytes_max }) = self.shared.next() {
            let entries = self.reader.entries(StreamId(group.0), first, last, bytes_max)?;
            (self.deliver)(Completion::Fetched { group, req, entries });
        }
        Ok(())
    }
}
