//! The log thread: takes all writes that wait, appends them as one, syncs once, reports per group.
//!
//! 1. Writes are made in the order handed over; a `Persisted` follows the sync that covers it.
//! 2. After any error but "no space" nothing is written any more, and [`super::DriverExit::Poisoned`] follows.
//! 3. On a full disk it first tries the reserve; when that is full too, it holds what it has and tries again after
//!    `space_retry`, or when a release may have freed a segment. Nothing is lost, nothing is acknowledged.
//!
//! ```text
//!             ordinary fails: NoSpace         reserve fails
//!  Ordinary ───────────────────────▶ Reserve ◀────────────▶ hold, wait, try again
//!     ▲                                 │
//!     └── ordinary succeeds: SpaceAgain ┘   (tried at most once per `space_retry`, and after each release)
//! ```

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use triune_storage::{Entry, Index, IoSeq, StreamBatch, StreamId};
use triune_transport::GroupId;

use super::log::{LogError, LogWrite, Space};
use super::stats::Counters;
use super::{Completion, DriverConfig};

/// Hands a completion to the machine.
pub(crate) type Deliver = Arc<dyn Fn(Completion) + Send + Sync>;

/// One commit writes no more payload than this, unless a single write does: below any log's own batch limit.
const COMMIT_BYTES_MAX: usize = 32 << 20;

/// How the log thread ended.
#[derive(Debug)]
pub(crate) enum LogEnd {
    /// Everything handed over is durable and the log is closed.
    Closed,
    /// It was told to stop at once, or could not finish.
    Abandoned,
    Failed(LogError),
    Panicked(String),
}

/// The machine thread's end of the log thread.
#[derive(Debug)]
pub(crate) struct LogThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<LogEnd>>,
}

impl LogThread {
    pub(crate) fn spawn(
        config: &DriverConfig,
        writer: Box<dyn LogWrite>,
        deliver: Deliver,
        stats: Arc<Counters>,
        aborted: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            shared: Arc::clone(&shared),
            writer,
            deliver,
            stats,
            aborted,
            space: Space::Ordinary,
            space_retry: config.space_retry.into(),
        };
        let thread = std::thread::Builder::new().name(format!("{}-log", config.name)).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hands over writes, leaving `batches` empty, and releases.
    pub(crate) fn submit(&self, batches: &mut Vec<StreamBatch>, releases: &mut Vec<(StreamId, Index)>) {
        if batches.is_empty() && releases.is_empty() {
            return;
        }
        let bytes = batches.iter().map(batch_bytes).sum::<usize>();
        self.shared.bytes.fetch_add(bytes, Relaxed);
        self.shared.writes.fetch_add(batches.len(), Relaxed);
        let mut queue = self.shared.lock();
        queue.batches.append(batches);
        for (stream, upto) in releases.drain(..) {
            let released = queue.releases.entry(stream).or_default();
            *released = upto.max(*released);
        }
        self.shared.rouse(queue);
    }

    /// Payload bytes handed over and not yet durable.
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.shared.bytes.load(Relaxed)
    }

    /// Whether everything handed over is durable.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.writes.load(Acquire) == 0
    }

    /// Ends the thread: after its queue (`finish`), or after the write under way. Waits for it.
    pub(crate) fn end(&mut self, finish: bool) -> LogEnd {
        let mut queue = self.shared.lock();
        queue.orders = if finish { Orders::Finish } else { Orders::Abandon };
        self.shared.rouse(queue);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(end)) => end,
            Some(Err(panic)) => LogEnd::Panicked(panic_words(panic.as_ref())),
            None => LogEnd::Abandoned,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Orders {
    #[default]
    Serve,
    /// Write what waits, close, end.
    Finish,
    /// End without another write.
    Abandon,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Payload bytes and writes handed over and not yet durable.
    bytes: AtomicUsize,
    writes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    batches: Vec<StreamBatch>,
    /// The highest per stream; a lower one says nothing more.
    releases: BTreeMap<StreamId, Index>,
    orders: Orders,
    asleep: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rouse(&self, mut queue: MutexGuard<'_, Queue>) {
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Sleeps until roused, at most `patience`.
    fn sleep<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, patience: Option<Duration>) -> MutexGuard<'a, Queue> {
        queue.asleep = true;
        let mut queue = match patience {
            Some(patience) => {
                self.wake.wait_timeout(queue, patience).map_or_else(|e| e.into_inner().0, |woken| woken.0)
            }
            None => self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
        };
        queue.asleep = false;
        queue
    }
}

struct Worker {
    shared: Arc<Shared>,
    writer: Box<dyn LogWrite>,
    deliver: Deliver,
    stats: Arc<Counters>,
    aborted: Arc<AtomicBool>,
    space: Space,
    space_retry: Duration,
}

impl Worker {
    fn run(mut self) -> LogEnd {
        let end = catch_unwind(AssertUnwindSafe(|| self.serve()))
            .unwrap_or_else(|panic| Err(LogEnd::Panicked(panic_words(panic.as_ref()))));
        let end = match end {
            Ok(never) => never,
            Err(end) => end,
        };
        if matches!(end, LogEnd::Failed(_) | LogEnd::Panicked(_)) {
            tracing::error!(?end, "the log failed; nothing is written any more");
            (self.deliver)(Completion::IoFailed);
        }
        end
    }

    fn serve(&mut self) -> Result<LogEnd, LogEnd> {
        let mut batches = Vec::new();
        loop {
            let mut queue = self.shared.lock();
            while queue.batches.is_empty() && queue.releases.is_empty() && queue.orders == Orders::Serve {
                queue = self.shared.sleep(queue, None);
            }
            let orders = queue.orders;
            std::mem::swap(&mut queue.batches, &mut batches);
            let releases = std::mem::take(&mut queue.releases);
            drop(queue);
            match orders {
                Orders::Abandon => return Ok(LogEnd::Abandoned),
                Orders::Finish if batches.is_empty() => {
                    self.release(releases)?;
                    self.writer.close().map_err(LogEnd::Failed)?;
                    return Ok(LogEnd::Closed);
                }
                Orders::Serve | Orders::Finish => {}
            }
            let mut rest = batches.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(commit_len(rest));
                self.commit(now)?;
                rest = later;
            }
            batches.clear();
            self.release(releases)?;
        }
    }

    /// Makes `batches` durable, however long the disk is full, and reports.
    fn commit(&mut self, batches: &[StreamBatch]) -> Result<(), LogEnd> {
        if self.aborted.load(Acquire) {
            return Err(LogEnd::Abandoned);
        }
        let began = Instant::now();
        while !self.try_commit(batches)? {
            self.hold()?;
        }
        let bytes = batches.iter().map(batch_bytes).sum::<usize>();
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stats.sync(batches.len() as u64, bytes as u64, nanos);
        let mut durable = BTreeMap::<StreamId, IoSeq>::new();
        for batch in batches {
            let seq = durable.entry(batch.stream).or_default();
            assert!(*seq < batch.seq, "writes of one group are numbered upwards");
            *seq = batch.seq;
        }
        // Before the report, so that a machine that waits for the disk to catch up sees it when it wakes.
        self.shared.bytes.fetch_sub(bytes, Relaxed);
        for (stream, seq) in durable {
            (self.deliver)(Completion::Persisted { group: GroupId(stream.0), seq });
        }
        // After it, so that a log that is idle has nothing left to report.
        self.shared.writes.fetch_sub(batches.len(), AcqRel);
        Ok(())
    }

    /// Tries ordinary space, then the reserve. `false`: both are full.
    fn try_commit(&mut self, batches: &[StreamBatch]) -> Result<bool, LogEnd> {
        match self.writer.commit(batches, Space::Ordinary) {
            Ok(()) => {
                self.set_space(Space::Ordinary);
                return Ok(true);
            }
            Err(LogError::NoSpace) => self.set_space(Space::Reserve),
            Err(error) => return Err(LogEnd::Failed(error)),
        }
        match self.writer.commit(batches, Space::Reserve) {
            Ok(()) => Ok(true),
            Err(LogError::NoSpace) => Ok(false),
            Err(error) => Err(LogEnd::Failed(error)),
        }
    }

    fn set_space(&mut self, space: Space) {
        if self.space == space {
            return;
        }
        self.space = space;
        match space {
            Space::Reserve => {
                tracing::warn!("no space left for the log; it goes on in its reserve");
                (self.deliver)(Completion::NoSpace);
            }
            Space::Ordinary => {
                tracing::info!("the log has ordinary space again");
                (self.deliver)(Completion::SpaceAgain);
            }
        }
    }

    /// The disk is full to the last: waits, then frees what may be freed.
    fn hold(&mut self) -> Result<(), LogEnd> {
        let mut queue = self.shared.lock();
        if queue.releases.is_empty() && queue.orders == Orders::Serve {
            queue = self.shared.sleep(queue, Some(self.space_retry));
        }
        let releases = std::mem::take(&mut queue.releases);
        // What waits on a full disk was never acknowledged: a stop need not wait for space.
        let stopped = queue.orders != Orders::Serve;
        drop(queue);
        self.release(releases)?;
        if stopped { Err(LogEnd::Abandoned) } else { Ok(()) }
    }

    fn release(&mut self, releases: BTreeMap<StreamId, Index>) -> Result<(), LogEnd> {
        releases.into_iter().try_for_each(|(stream, upto)| match self.writer.release(stream, upto) {
            // Freeing needs a little space itself; what is not freed now is freed with the next release.
            Ok(()) | Err(LogError::NoSpace) => Ok(()),
            Err(error) => Err(LogEnd::Failed(error)),
        })
    }
}

/// How many of `batches` go into one commit: at least one.
fn commit_len(batches: &[StreamBatch]) -> usize {
    let mut bytes = 0;
    let fit = batches.iter().take_while(|batch| {
        bytes += batch_bytes(batch);
        bytes <= COMMIT_BYTES_MAX
    });
    fit.count().max(1)
}

/// Payload bytes of a write.
fn batch_bytes(batch: &StreamBatch) -> usize {
    batch.entries.iter().map(Entry::payload_bytes).sum::<usize>() + batch.state.as_ref().map_or(0, bytes::Bytes::len)
}

/// What a panic said.
pub(crate) fn panic_words(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
    words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}
