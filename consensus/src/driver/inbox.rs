//! The machine's inbox: three bounded queues behind one lock, one sleeper.
//!
//! *Completions* (of writes and reads) are always taken: their number is bounded by what the machine asked for.
//! *Frames* are bounded by number and bytes; the pump waits, a pushing transport is told. *Requests* are bounded by a
//! semaphore, so that waiters are served in order.
//!
//! 1. Each queue keeps its order.
//! 2. The sleeping machine is woken once, by the first input after it fell asleep.
//! 3. A closed inbox takes nothing; what it took is stepped, unless the driver ends in failure.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use triune_transport::Event;

use super::DriverConfig;
use crate::MachineInput;

/// Why a request was not taken.
pub(crate) enum Refused<R> {
    Full(R),
    Closed(R),
}

/// Whether inputs are still taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// All are.
    Open,
    /// Completions only: the machine drains.
    Stopping,
    /// Likewise, and nothing that waits is stepped any more.
    Aborting,
    /// None is.
    Closed,
}

pub(crate) struct Inbox<R> {
    state: Mutex<State<R>>,
    wake: Condvar,
    /// One permit per free place for a request.
    places: Semaphore,
    /// Told when frames were taken after a push was refused, for the pump.
    frames_taken: Notify,
    frames_max: usize,
    frame_bytes_max: usize,
    /// Set by an abort; the log thread looks at it before each write.
    aborted: Arc<AtomicBool>,
    /// Called when frames are taken again after a push was refused.
    on_room: OnceLock<RoomFn>,
}

/// Tells a pushing transport that there is room again.
pub(crate) struct RoomFn(pub(crate) Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for RoomFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomFn").finish_non_exhaustive()
    }
}

struct State<R> {
    completions: VecDeque<MachineInput<R>>,
    frames: VecDeque<Event>,
    /// Invariant: the sum of the frames' lengths.
    frame_bytes: usize,
    requests: VecDeque<R>,
    /// A push was refused for lack of room since frames were taken last.
    frames_refused: bool,
    /// The machine sleeps and nobody has woken it yet.
    asleep: bool,
    phase: Phase,
}

impl<R> fmt::Debug for Inbox<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("places", &self.places.available_permits()).finish_non_exhaustive()
    }
}

/// How much a turn may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appetite {
    /// At most so many frames, and so many requests.
    pub(crate) each_max: usize,
}

impl<R: Send + 'static> Inbox<R> {
    pub(crate) fn new(config: &DriverConfig) -> Self {
        Self {
            state: Mutex::new(State {
                completions: VecDeque::new(),
                frames: VecDeque::new(),
                frame_bytes: 0,
                requests: VecDeque::new(),
                frames_refused: false,
                asleep: false,
                phase: Phase::Open,
            }),
            wake: Condvar::new(),
            places: Semaphore::new(config.requests_max.clamp(1, Semaphore::MAX_PERMITS)),
            frames_taken: Notify::new(),
            frames_max: config.frames_max.max(1),
            frame_bytes_max: config.frame_bytes_max.max(1),
            aborted: Arc::default(),
            on_room: OnceLock::new(),
        }
    }

    /// Set once no further write may be begun.
    pub(crate) fn aborted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.aborted)
    }

    /// Sets what tells a pushing transport that there is room again; the first one counts.
    pub(crate) fn on_room(&self, room: RoomFn) {
        drop(self.on_room.set(room));
    }

    pub(crate) fn request(&self, request: R) -> Result<(), Refused<R>> {
        match self.places.try_acquire() {
            Ok(place) => place.forget(),
            Err(tokio::sync::TryAcquireError::NoPermits) => return Err(Refused::Full(request)),
            Err(tokio::sync::TryAcquireError::Closed) => return Err(Refused::Closed(request)),
        }
        self.enqueue(request).map_err(Refused::Closed)
    }

    pub(crate) async fn request_wait(&self, request: R) -> Result<(), R> {
        match self.places.acquire().await {
            Ok(place) => place.forget(),
            Err(_) => return Err(request),
        }
        self.enqueue(request)
    }

    /// Takes a request whose place is held.
    fn enqueue(&self, request: R) -> Result<(), R> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(request);
        }
        state.requests.push_back(request);
        self.rouse(state);
        Ok(())
    }

    /// Takes a completion; a closed inbox drops it.
    pub(crate) fn complete(&self, input: MachineInput<R>) {
        let mut state = self.lock();
        if state.phase != Phase::Closed {
            state.completions.push_back(input);
            self.rouse(state);
        }
    }

    /// Takes no further request or frame.
    pub(crate) fn stop(&self) {
        self.end(Phase::Stopping);
    }

    /// Takes no further request or frame, and steps none that waits. No further write is begun.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.end(Phase::Aborting);
    }

    fn end(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        self.rouse(state);
        self.places.close();
        self.frames_taken.notify_one();
    }

    /// Takes nothing further and forgets what waits.
    pub(crate) fn close(&self) {
        self.stop();
        let mut state = self.lock();
        state.phase = Phase::Closed;
        state.completions.clear();
        state.frames.clear();
        state.frame_bytes = 0;
        let forgotten = std::mem::take(&mut state.requests);
        drop(state);
        // Dropping a request may run the embedder's code: not under the lock.
        drop(forgotten);
    }

    /// Moves what waits to `batch`: all completions, then frames and requests as far as `appetite` goes (`None`: it
    /// does not). Sleeps up to `patience` if there is nothing to take.
    pub(crate) fn take(
        &self,
        appetite: Option<Appetite>,
        patience: Option<Duration>,
        batch: &mut Vec<MachineInput<R>>,
    ) -> Phase {
        let mut state = self.lock();
        let phase = state.phase;
        if state.is_bare(appetite) && phase == Phase::Open && patience != Some(Duration::ZERO) {
            state = self.sleep(state, patience);
        }
        batch.extend(state.completions.drain(..));
        let Some(Appetite { each_max }) = appetite else { return state.phase };
        let frames = state.frames.len().min(each_max);
        for _ in 0..frames {
            let Some(event) = state.frames.pop_front() else { break };
            state.frame_bytes -= event_bytes(&event);
            batch.extend(input_of(event));
        }
        let requests = state.requests.len().min(each_max);
        batch.extend(state.requests.drain(..requests).map(MachineInput::Request));
        let phase = state.phase;
        let refused = frames > 0 && std::mem::take(&mut state.frames_refused);
        drop(state);
        if requests > 0 {
            self.places.add_permits(requests);
        }
        if refused {
            self.frames_taken.notify_one();
            if let Some(room) = self.on_room.get() {
                room.0();
            }
        }
        phase
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.completions.is_empty() && state.frames.is_empty() && state.requests.is_empty()
    }

    /// Sleeps until a completion comes, at most `patience`: while the machine drains.
    pub(crate) fn wait_completion(&self, patience: Duration) {
        let state = self.lock();
        if state.completions.is_empty() {
            drop(self.sleep(state, Some(patience)));
        }
    }

    fn is_full(&self, state: &State<R>) -> bool {
        state.frames.len() >= self.frames_max || state.frame_bytes >= self.frame_bytes_max
    }

    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<R>>,
        patience: Option<Duration>,
    ) -> MutexGuard<'a, State<R>> {
        state.asleep = true;
        let mut state = match patience {
            Some(patience) => {
                self.wake.wait_timeout(state, patience).map_or_else(|e| e.into_inner().0, |woken| woken.0)
            }
            None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.asleep = false;
        state
    }

    fn rouse(&self, mut state: MutexGuard<'_, State<R>>) {
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Nobody panics while holding it; if somebody did, the queues would still be whole.
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> State<R> {
    fn is_bare(&self, appetite: Option<Appetite>) -> bool {
        self.completions.is_empty() && (appetite.is_none() || (self.frames.is_empty() && self.requests.is_empty()))
    }
}

/// What an event is to a machine; `None` for kinds that a later transport may add.
fn input_of<R>(event: Event) -> Option<MachineInput<R>> {
    match event {
        Event::Up { peer, lane, session } => Some(MachineInput::Link { peer, lane, session, up: true }),
        Event::Down { peer, lane, session } => Some(MachineInput::Link { peer, lane, session, up: false }),
        Event::Frame { from, session, channel, frame } => Some(MachineInput::Frame { from, session, channel, frame }),
        _ => None,
    }
}

const fn event_bytes(event: &Event) -> usize {
    match event {
        Event::Frame { frame, .. } => frame.len(),
        _ => 0,
    }
}

/// An inbox, seen by a transport that does not know the machine.
pub(crate) trait PushEvent: Send + Sync + fmt::Debug {
    fn push_all(&self, events: &mut Vec<Event>) -> bool;
    fn is_open(&self) -> bool;
    fn frames_taken(&self) -> &Notify;
}

impl<R: Send + 'static> PushEvent for Inbox<R> {
    fn push_all(&self, events: &mut Vec<Event>) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            events.clear();
            return true;
        }
        if self.is_full(&state) {
            state.frames_refused = true;
            return false;
        }
        state.frame_bytes += events.iter().map(event_bytes).sum::<usize>();
        state.frames.extend(events.drain(..));
        self.rouse(state);
        true
    }

    fn is_open(&self) -> bool {
        self.lock().phase == Phase::Open
    }

    fn frames_taken(&self) -> &Notify {
        &self.frames_taken
    }
}

/// Where a transport's events enter a driver.
#[derive(Clone, Debug)]
pub struct EventSink {
    inbox: Arc<dyn PushEvent>,
}

impl EventSink {
    pub(crate) fn new(inbox: Arc<dyn PushEvent>) -> Self {
        Self { inbox }
    }

    /// Takes all of `events` and returns true, leaving it empty; or, when the queue is full, takes none and returns
    /// false: then offer them again when [`super::Driver::on_room`]'s function is called. A stopped driver takes all
    /// and forgets them. The queue refuses by what it already holds, so any batch is taken in the end.
    pub fn push_all(&self, events: &mut Vec<Event>) -> bool {
        events.is_empty() || self.inbox.push_all(events)
    }

    /// As [`EventSink::push_all`], waiting while the queue is full. `false`: the driver has stopped, read no more.
    ///
    /// # Cancel safety
    /// Cancel safe: what was not taken is still in `events`.
    pub async fn push_all_wait(&self, events: &mut Vec<Event>) -> bool {
        loop {
            let taken = self.inbox.frames_taken().notified();
            if self.push_all(events) {
                break;
            }
            taken.await;
        }
        if self.inbox.is_open() {
            return true;
        }
        // There may be another pusher behind this one.
        self.inbox.frames_taken().notify_one();
        false
    }
}
