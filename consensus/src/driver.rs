//! The driver: the one executor of effects. It runs any [`Machine`] on threads, a log and a network.
//!
//! It decides nothing about a protocol. It owns the clock, the threads and the queues:
//!
//! ```text
//!  requests ──┐                    ┌── Persist ──▶ log thread: take all that waits, one append, one sync ──┐
//!  frames ────┼▶ inbox ▶ machine ──┼── Send ─────▶ transport (never waits)                                 │
//!  deadline ──┘    ▲      thread   ├── Fetch ────▶ read thread ───────────────────────────────┐            │
//!                  │               └── Output ───▶ sink, on the machine thread                │            │
//!                  └──────────────────────────────── Fetched ─────────────────────────────────┴─ Persisted ┘
//! ```
//!
//! A *turn* of the machine thread: take what waits (bounded), read the clock once, step each input, step a passed
//! deadline, call [`Machine::idle`], hand all writes to the log thread as one, execute the rest in order. An idle
//! machine is woken once per burst of inputs and the log thread once per turn, so a batch costs two wake-ups however
//! many commands it holds.
//!
//! 1. `now` is read after the inputs of a turn were dequeued, so nothing a machine serves at `now` was asked later.
//! 2. Writes reach the log in the order asked; [`MachineInput::Persisted`] is given only after the sync that covers it.
//! 3. After a failed write or sync nothing is written any more: the machine hears [`MachineInput::IoFailed`], its last
//!    outputs are delivered, the driver ends as [`DriverExit::Poisoned`].
//! 4. A panic of the machine ends the driver as [`DriverExit::Panicked`]; no further write is begun.
//! 5. Every queue is bounded, see [`DriverConfig`].

mod handle;
mod inbox;
mod log;
mod log_thread;
mod machine_thread;
mod mem_log;
mod read_thread;
mod stats;
mod wal_log;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use triune_transport::{Nanos, Transport};

use crate::{Machine, MachineInput};

pub use handle::{DriverExit, DriverHandle, RequestError};
pub use inbox::EventSink;
pub use log::{DriverLog, LogError, LogRead, LogWrite, Space};
pub use mem_log::MemLog;
pub use stats::DriverStats;

/// Reads a monotonic clock.
pub type ClockFn = Arc<dyn Fn() -> Nanos + Send + Sync>;

/// Limits and habits of one driver.
#[derive(Clone)]
pub struct DriverConfig {
    /// Names the threads: `<name>-machine`, `<name>-log`, `<name>-read`.
    pub name: String,
    /// Requests that wait for the machine. When full, [`DriverHandle::request`] refuses with
    /// [`RequestError::Busy`] and [`DriverHandle::request_wait`] waits. Default 65,536.
    pub requests_max: usize,
    /// Frames from peers that wait for the machine; when full, the network is not read. Default 16,384.
    pub frames_max: usize,
    /// Bytes of those frames; one frame may exceed it. Default 64 MiB.
    pub frame_bytes_max: usize,
    /// Frames, and as many requests, taken in one turn. Larger: fewer syncs; smaller: an earlier deadline. Default 1024.
    pub turn_inputs_max: usize,
    /// Payload bytes handed to the log and not yet durable. Above it the machine hears only completions and
    /// deadlines, until the disk has caught up. Default 128 MiB.
    pub log_bytes_max: usize,
    /// Reads of old entries under way; above it likewise. Default 1024.
    pub fetches_max: usize,
    /// How long a full disk is left alone before the next try. Default 250 ms.
    pub space_retry: Nanos,
    /// How long a stop waits for accepted requests and unsynced writes. Default 10 s.
    pub drain_max: Nanos,
    /// The machine's clock. Default: time since this configuration was made, by [`Instant`].
    pub clock: ClockFn,
}

impl Default for DriverConfig {
    fn default() -> Self {
        let origin = Instant::now();
        Self {
            name: "driver".to_owned(),
            requests_max: 65_536,
            frames_max: 16_384,
            frame_bytes_max: 64 << 20,
            turn_inputs_max: 1024,
            log_bytes_max: 128 << 20,
            fetches_max: 1024,
            space_retry: Nanos::from_millis(250),
            drain_max: Nanos::from_secs(10),
            clock: Arc::new(move || Nanos::from(origin.elapsed())),
        }
    }
}

impl fmt::Debug for DriverConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Takes a machine's outputs, on the machine thread. It must not block: everything waits for it.
pub trait OutputSink<O>: Send + 'static {
    /// Takes one output.
    fn output(&mut self, output: O);

    /// Called after the last output of a turn: the place to wake somebody once for many.
    fn turn_end(&mut self) {}
}

impl<O, F: FnMut(O) + Send + 'static> OutputSink<O> for F {
    fn output(&mut self, output: O) {
        self(output);
    }
}

/// A driver whose queues stand and whose threads do not run yet, so that a transport can be given its sink first.
pub struct Driver<M: Machine> {
    config: DriverConfig,
    inbox: Arc<inbox::Inbox<M::Request>>,
}

impl<M: Machine> fmt::Debug for Driver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<M: Machine + 'static> Driver<M> {
    /// Makes the queues.
    pub fn new(config: DriverConfig) -> Self {
        let inbox = Arc::new(inbox::Inbox::new(&config));
        Self { config, inbox }
    }

    /// Where a transport may push its events from its own tasks, instead of being asked by a pump.
    pub fn event_sink(&self) -> EventSink {
        EventSink::new(Arc::clone(&self.inbox) as Arc<dyn inbox::PushEvent>)
    }

    /// Sets what tells a pushing transport that there is room again, after [`EventSink::push_all`] said no. It is
    /// called on the machine thread and must not block. The first one set counts.
    pub fn on_room(&self, room: impl Fn() + Send + Sync + 'static) {
        self.inbox.on_room(inbox::RoomFn(Box::new(room)));
    }

    /// Starts the threads. The embedder feeds [`Driver::event_sink`], or spawns [`DriverHandle::pump`] on a runtime.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        self,
        machine: M,
        log: DriverLog,
        transport: Arc<dyn Transport>,
        outputs: impl OutputSink<M::Output>,
    ) -> std::io::Result<DriverHandle<M::Request>> {
        let Self { config, inbox } = self;
        let stats = Arc::new(stats::Counters::default());
        let (exit, exited) = watch::channel(None);
        let completions = Arc::clone(&inbox);
        let deliver: log_thread::Deliver = Arc::new(move |completion| completions.complete(completion.into()));
        let (tell, count) = (Arc::clone(&deliver), Arc::clone(&stats));
        let log_thread = log_thread::LogThread::spawn(&config, log.writer, tell, count, inbox.aborted())?;
        let read_thread = read_thread::ReadThread::spawn(&config, log.reader, deliver)?;
        let runner = machine_thread::Runner {
            config: config.clone(),
            machine,
            inbox: Arc::clone(&inbox),
            log: log_thread,
            reads: read_thread,
            transport,
            outputs: Box::new(outputs),
            stats: Arc::clone(&stats),
        };
        machine_thread::spawn(runner, exit)?;
        Ok(DriverHandle::new(inbox, exited, stats))
    }

    /// Makes the queues, starts the threads, and pumps `transport` on the current tokio runtime.
    ///
    /// # Errors
    /// When the system gives no thread.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(
        machine: M,
        log: DriverLog,
        transport: Arc<dyn Transport>,
        outputs: impl OutputSink<M::Output>,
        config: DriverConfig,
    ) -> std::io::Result<DriverHandle<M::Request>> {
        let handle = Self::new(config).start(machine, log, Arc::clone(&transport), outputs)?;
        tokio::spawn(handle.clone().pump(transport));
        Ok(handle)
    }
}

/// What the log and read threads tell the machine.
#[derive(Debug)]
pub(crate) enum Completion {
    Persisted { group: triune_transport::GroupId, seq: crate::IoSeq },
    Fetched { group: triune_transport::GroupId, req: crate::FetchId, entries: Option<Vec<crate::Entry>> },
    NoSpace,
    SpaceAgain,
    IoFailed,
}

impl<R> From<Completion> for MachineInput<R> {
    fn from(completion: Completion) -> Self {
        match completion {
            Completion::Persisted { group, seq } => Self::Persisted { group, seq },
            Completion::Fetched { group, req, entries } => Self::Fetched { group, req, entries },
            Completion::NoSpace => Self::NoSpace,
            Completion::SpaceAgain => Self::SpaceAgain,
            Completion::IoFailed => Self::IoFailed,
        }
    }
}
