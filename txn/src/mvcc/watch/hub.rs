//! The hub: hands every event to the watches it concerns, and lets each stream take them at its own pace.
//!
//! A watch is live, its events pushed into its queue as they are made, or behind, reading history from the store
//! when its stream is polled:
//!
//! ```text
//!  create, start > revision ──▶ live ◀── reached the current revision ── behind ◀── create, start ≤ revision
//!                                │                                        ▲  │
//!                                └── queue past its limit, or resync ─────┘  └── next below the compaction ─▶ gone
//! ```
//!
//! Nothing is lost: what is dropped from a queue is read again from the store, and `next` is the first revision the
//! client does not have. A revision is one response; only watches that allow fragments see it split.
//!
//! Invariants:
//! 1. A stream's `heads` holds (seq of the first queued item, watch) of exactly its watches with a non-empty queue.
//! 2. A live watch has, in its queue or delivered, every event ≥ its start and ≤ `seen`.
//! 3. A progress message of a stream leaves only while all its watches are live, after all they had queued.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use triune_storage::StoreError;

use super::interval::{KeySpan, SpanIndex};
use super::message::{CancelReason, StreamKey, WATCH_ID_NONE, WatchCreate, WatchId, WatchLimits, WatchResponse};
use crate::mvcc::op::{KeyValue, Revision};
use crate::mvcc::outcome::{Event, EventKind, Events};
use crate::mvcc::store::{Change, Reader, Store};

/// A watch's number in the hub, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WatcherKey(pub(super) u64);

/// All watches of a member. One owner, the store's.
#[derive(Debug, Default)]
pub struct WatcherHub {
    limits: WatchLimits,
    streams: BTreeMap<StreamKey, Stream>,
    watchers: BTreeMap<WatcherKey, Watcher>,
    spans: SpanIndex,
    ready: BTreeSet<StreamKey>,
    /// Streams whose progress waits for a watch that has not started.
    waiting: BTreeSet<StreamKey>,
    /// The revision of the last event handed in.
    seen: Revision,
    streams_opened: u64,
    watchers_made: u64,
    seq: u64,
}

#[derive(Debug, Default)]
struct Stream {
    watches: BTreeMap<WatchId, WatcherKey>,
    next_id: WatchId,
    /// Answers to requests, and periodic progress.
    control: VecDeque<(u64, WatchResponse)>,
    heads: BTreeSet<(u64, WatcherKey)>,
    /// Taking turns.
    behind: VecDeque<WatcherKey>,
    /// The client asked for progress.
    progress_wanted: bool,
    /// The answer to that, on its way.
    progress: Option<(u64, Revision)>,
}

#[derive(Debug)]
struct Watcher {
    stream: StreamKey,
    id: WatchId,
    /// The seq of the message that tells of its creation, which comes before all others.
    announced: u64,
    span: KeySpan,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    fragment: bool,
    progress_notify: bool,
    /// No event since the last tick.
    quiet: bool,
    live: bool,
    /// What the client asked for: before it there is no progress to tell.
    start: Revision,
    /// The first revision the client has not been given nor has queued, if nothing above `seen` is meant.
    next: Revision,
    queue: VecDeque<Item>,
    queued_bytes: usize,
}

/// One revision's events for one watch.
#[derive(Debug)]
struct Item {
    seq: u64,
    revision: Revision,
    events: Events,
    bytes: usize,
}

impl WatcherHub {
    /// A hub without streams.
    #[must_use]
    pub fn new(limits: WatchLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Opens a stream.
    pub fn open_stream(&mut self) -> StreamKey {
        self.streams_opened += 1;
        let key = StreamKey(self.streams_opened);
        self.streams.insert(key, Stream::default());
        key
    }

    /// Ends a stream and all its watches; nothing more is said.
    pub fn close_stream(&mut self, stream: StreamKey) {
        let Some(closed) = self.streams.remove(&stream) else { return };
        self.ready.remove(&stream);
        self.waiting.remove(&stream);
        for watcher in closed.watches.values() {
            if let Some(watcher_state) = self.watchers.remove(watcher) {
                self.spans.remove(&watcher_state.span, *watcher);
            }
        }
    }

    /// Begins a watch. The stream is told: created, or created and cancelled with the reason.
    pub fn create(&mut self, stream: StreamKey, store: &Store, wish: &WatchCreate) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        let (watch_id, canceled) = match self.admit(stream, store, wish) {
            Ok(id) => (id, None),
            Err(reason) => (WATCH_ID_NONE, Some(reason)),
        };
        let response = WatchResponse { created: true, canceled, ..quiet(watch_id, store.revision()) };
        self.say(stream, response);
    }

    /// Ends a watch; the stream is told. An unknown one is passed over in silence, as by etcd.
    pub fn cancel(&mut self, stream: StreamKey, store: &Store, watch_id: WatchId) {
        if self.drop_watch(stream, watch_id) {
            let canceled = Some(CancelReason::Requested);
            self.say(stream, WatchResponse { canceled, ..quiet(watch_id, store.revision()) });
        }
    }

    /// Ends all watches of a stream for `reason`; each is told.
    pub fn cancel_all(&mut self, stream: StreamKey, store: &Store, reason: CancelReason) {
        let ids: Vec<WatchId> =
            self.streams.get(&stream).map_or(Vec::new(), |state| state.watches.keys().copied().collect());
        for id in ids {
            self.drop_watch(stream, id);
            self.say(stream, WatchResponse { canceled: Some(reason), ..quiet(id, store.revision()) });
        }
    }

    /// Hands in the events of an apply: after each one, before the next, for the pairs as they were are read from
    /// the store now.
    ///
    /// # Errors
    /// When the store fails.
    pub fn notify(&mut self, store: &Store, events: &Events) -> Result<(), StoreError> {
        let Some(revision) = events.first().map(|event| event.kv.mod_revision) else { return Ok(()) };
        debug_assert_eq!(revision, store.revision(), "events are handed in after each apply");
        self.seen = revision;
        let mut cuts = Cuts::new(store, events);
        if let [event] = &**events {
            // The common case, kept free of allocations beside the queues'.
            let mut concerned = Vec::new();
            self.spans.stab(&event.kv.key, &mut |watcher| concerned.push(watcher));
            for watcher in concerned {
                self.offer(watcher, revision, &[0], &mut cuts)?;
            }
        } else {
            let mut concerned: BTreeMap<WatcherKey, Vec<u32>> = BTreeMap::new();
            for (event, at) in events.iter().zip(0..) {
                self.spans.stab(&event.kv.key, &mut |watcher| concerned.entry(watcher).or_default().push(at));
            }
            for (watcher, which) in concerned {
                self.offer(watcher, revision, &which, &mut cuts)?;
            }
        }
        self.ready.extend(&self.waiting);
        Ok(())
    }

    /// The client asks how far the stream is. It is told once, with [`WATCH_ID_NONE`], as soon as all its watches
    /// are live and past their start. A stream without watches is told nothing, as by etcd.
    pub fn request_progress(&mut self, stream: StreamKey) {
        if let Some(state) = self.streams.get_mut(&stream)
            && !state.watches.is_empty()
        {
            state.progress_wanted = true;
            self.ready.insert(stream);
        }
    }

    /// Tells the watches that asked for it, and had no event since the last tick, how far they are. Call every ten
    /// minutes or so.
    pub fn tick_progress(&mut self, store: &Store) {
        let mut due = Vec::new();
        for watcher in self.watchers.values_mut().filter(|watcher| watcher.progress_notify) {
            let idle = watcher.live && watcher.queue.is_empty() && watcher.start <= store.revision();
            if std::mem::replace(&mut watcher.quiet, true) && idle {
                due.push((watcher.stream, watcher.id));
            }
        }
        for (stream, id) in due {
            self.say(stream, quiet(id, store.revision()));
        }
    }

    /// The store was replaced by a later one, from a snapshot: every live watch reads what it missed from there.
    pub fn resync(&mut self, store: &Store) {
        let live: Vec<WatcherKey> =
            self.watchers.iter().filter(|(_, watcher)| watcher.live).map(|(key, _)| *key).collect();
        for key in live {
            let Some(watcher) = self.watchers.get_mut(&key) else { continue };
            watcher.next = watcher.next.max(self.seen + 1);
            // One whose start has still not come goes on waiting.
            if watcher.next <= store.revision() || !watcher.queue.is_empty() {
                self.fall_behind(key);
            }
        }
        self.seen = store.revision();
    }

    /// The streams that have something to send.
    pub fn ready(&self) -> impl Iterator<Item = StreamKey> + '_ {
        self.ready.iter().copied()
    }

    /// Whether this stream has something to send.
    #[must_use]
    pub fn is_ready(&self, stream: StreamKey) -> bool {
        self.ready.contains(&stream)
    }

    /// Answers waiting in a stream: read no more of its requests while they are many.
    #[must_use]
    pub fn control_len(&self, stream: StreamKey) -> usize {
        self.streams.get(&stream).map_or(0, |stream| stream.control.len())
    }

    /// All watches, and how many of them are behind.
    #[must_use]
    pub fn watch_counts(&self) -> (usize, usize) {
        (self.watchers.len(), self.streams.values().map(|stream| stream.behind.len()).sum())
    }

    /// Takes what a stream can send now, about `budget_bytes` of it: call when the client can take it. At least one
    /// response comes if there is one, and a revision is never left half taken. May answer nothing although the
    /// stream stays [ready](WatcherHub::is_ready), when history held nothing for it so far: poll again.
    ///
    /// # Errors
    /// When the store fails.
    pub fn poll(
        &mut self,
        stream: StreamKey,
        store: &Store,
        budget_bytes: usize,
    ) -> Result<Vec<WatchResponse>, StoreError> {
        let mut out = Vec::new();
        let Some(state) = self.streams.get(&stream) else { return Ok(out) };
        // Live watches must not starve those that catch up, nor the other way round.
        let live_budget = if state.behind.is_empty() { budget_bytes } else { budget_bytes / 2 };
        let turns = state.behind.len();
        let mut spent = 0;
        while let Some(bytes) = self.take_next(stream, &mut out) {
            spent += bytes;
            if spent >= live_budget {
                break;
            }
        }
        for _ in 0..turns {
            spent += self.catch_up_next(stream, store, &mut out)?;
            if spent >= budget_bytes {
                break;
            }
        }
        self.answer_progress(stream, store);
        while spent < live_budget
            && let Some(bytes) = self.take_next(stream, &mut out)
        {
            spent += bytes;
        }
        self.refresh_ready(stream);
        Ok(out)
    }

    fn admit(&mut self, stream: StreamKey, store: &Store, wish: &WatchCreate) -> Result<WatchId, CancelReason> {
        if wish.start_revision < 0 {
            return Err(CancelReason::Compacted);
        }
        // Copies: what the client sent may be a slice of something large.
        let key = Bytes::copy_from_slice(if wish.key.is_empty() { b"\0" } else { &wish.key });
        let end = Bytes::copy_from_slice(&wish.range_end);
        let span = KeySpan::new(key, end).ok_or(CancelReason::EmptyRange)?;
        let state = self.streams.entry(stream).or_default();
        if state.watches.len() >= self.limits.stream_watches_max {
            return Err(CancelReason::TooMany);
        }
        let id = match wish.watch_id {
            0 => state.draw_id(),
            taken if state.watches.contains_key(&taken) => return Err(CancelReason::DuplicateId),
            chosen => chosen,
        };
        self.seen = self.seen.max(store.revision());
        let live = wish.start_revision == 0 || wish.start_revision > store.revision();
        let next = if live { wish.start_revision.max(store.revision() + 1) } else { wish.start_revision };
        self.watchers_made += 1;
        let key = WatcherKey(self.watchers_made);
        state.watches.insert(id, key);
        if !live {
            state.fall_behind(key);
        }
        self.spans.insert(&span, key);
        let watcher = Watcher {
            stream,
            id,
            announced: self.seq + 1,
            span,
            prev_kv: wish.prev_kv,
            no_put: wish.no_put,
            no_delete: wish.no_delete,
            fragment: wish.fragment,
            progress_notify: wish.progress_notify,
            quiet: true,
            live,
            start: wish.start_revision,
            next,
            queue: VecDeque::new(),
            queued_bytes: 0,
        };
        self.watchers.insert(key, watcher);
        Ok(id)
    }

    fn drop_watch(&mut self, stream: StreamKey, watch_id: WatchId) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else { return false };
        let Some(key) = state.watches.remove(&watch_id) else { return false };
        let Some(watcher) = self.watchers.remove(&key) else { return false };
        if let Some(head) = watcher.queue.front() {
            state.heads.remove(&(head.seq, key));
        }
        if !watcher.live {
            state.behind.retain(|behind| *behind != key);
        }
        state.control.retain(|(_, response)| response.watch_id != watch_id || !response.is_progress());
        if state.watches.is_empty() {
            state.progress_wanted = false;
            state.progress = None;
        }
        self.spans.remove(&watcher.span, key);
        true
    }

    /// Queues an answer.
    fn say(&mut self, stream: StreamKey, response: WatchResponse) {
        self.seq += 1;
        if let Some(state) = self.streams.get_mut(&stream) {
            state.control.push_back((self.seq, response));
            self.ready.insert(stream);
        }
    }

    /// Queues the events at `which` for a watch, if it is live and wants them.
    fn offer(
        &mut self,
        key: WatcherKey,
        revision: Revision,
        which: &[u32],
        cuts: &mut Cuts<'_>,
    ) -> Result<(), StoreError> {
        let Some(watcher) = self.watchers.get_mut(&key) else { return Ok(()) };
        if !watcher.live || revision < watcher.next {
            return Ok(());
        }
        let Some((events, bytes)) = cuts.cut(watcher, which)? else { return Ok(()) };
        let Some(state) = self.streams.get_mut(&watcher.stream) else { return Ok(()) };
        self.seq += 1;
        if watcher.queue.is_empty() {
            state.heads.insert((self.seq, key));
        }
        watcher.queue.push_back(Item { seq: self.seq, revision, events, bytes });
        watcher.queued_bytes += bytes;
        self.ready.insert(watcher.stream);
        // A single revision is kept whatever its size: it is shared, and the store would only give it again.
        if watcher.queued_bytes > self.limits.queue_bytes_max && watcher.queue.len() > 1 {
            self.fall_behind(key);
        }
        Ok(())
    }

    /// Drops a live watch's queue; the store has it.
    fn fall_behind(&mut self, key: WatcherKey) {
        let Some(watcher) = self.watchers.get_mut(&key) else { return };
        let Some(state) = self.streams.get_mut(&watcher.stream) else { return };
        assert!(watcher.live, "only a live watch has something to drop");
        watcher.live = false;
        if let Some(head) = watcher.queue.front() {
            watcher.next = head.revision;
            state.heads.remove(&(head.seq, key));
        }
        watcher.queue = VecDeque::new();
        watcher.queued_bytes = 0;
        state.fall_behind(key);
        self.ready.insert(watcher.stream);
    }

    /// Takes the oldest of what the stream has queued. Answers its bytes.
    fn take_next(&mut self, stream: StreamKey, out: &mut Vec<WatchResponse>) -> Option<usize> {
        let state = self.streams.get_mut(&stream)?;
        let control = state.control.front().map_or(u64::MAX, |(seq, _)| *seq);
        let progress = state.progress.map_or(u64::MAX, |(seq, _)| seq);
        let (head, key) = state.heads.first().copied().unwrap_or((u64::MAX, WatcherKey(0)));
        let least = control.min(progress).min(head);
        if least == u64::MAX {
            return None;
        }
        if least == control {
            out.extend(state.control.pop_front().map(|(_, response)| response));
            return Some(CONTROL_BYTES);
        }
        if least == progress {
            out.extend(state.progress.take().map(|(_, revision)| quiet(WATCH_ID_NONE, revision)));
            return Some(CONTROL_BYTES);
        }
        state.heads.pop_first();
        let watcher = self.watchers.get_mut(&key)?;
        let item = watcher.queue.pop_front()?;
        watcher.queued_bytes -= item.bytes;
        watcher.quiet = false;
        watcher.next = item.revision + 1;
        if let Some(head) = watcher.queue.front() {
            state.heads.insert((head.seq, key));
        }
        respond(watcher, item.revision, item.events, self.limits.fragment_bytes, out);
        Some(item.bytes)
    }

    /// Gives the watch whose turn it is a slice of history. Answers the bytes it took.
    fn catch_up_next(
        &mut self,
        stream: StreamKey,
        store: &Store,
        out: &mut Vec<WatchResponse>,
    ) -> Result<usize, StoreError> {
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(0) };
        let Some(key) = state.behind.pop_front() else { return Ok(0) };
        let Some(watcher) = self.watchers.get_mut(&key) else { return Ok(0) };
        if state.control.front().is_some_and(|(seq, _)| *seq <= watcher.announced) {
            state.behind.push_back(key);
            return Ok(0);
        }
        if watcher.next < store.compacted() {
            let id = watcher.id;
            let compact_revision = store.compacted();
            let canceled = Some(CancelReason::Compacted);
            state.behind.push_back(key);
            self.drop_watch(stream, id);
            out.push(WatchResponse { canceled, compact_revision, ..quiet(id, store.revision()) });
            return Ok(CONTROL_BYTES);
        }
        let slice = read_slice(watcher, store, &self.limits)?;
        watcher.next = slice.next;
        watcher.live = slice.next > store.revision();
        if !watcher.live {
            state.behind.push_back(key);
        }
        if !slice.events.is_empty() {
            watcher.quiet = false;
            // A header may be taken for a bookmark: it names no revision that is still to come.
            let revision = if watcher.live { store.revision() } else { slice.next - 1 };
            respond(watcher, revision, slice.events.into(), self.limits.fragment_bytes, out);
        }
        Ok(slice.bytes)
    }

    fn answer_progress(&mut self, stream: StreamKey, store: &Store) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if !state.progress_wanted || !state.behind.is_empty() {
            return;
        }
        let started = |key: &WatcherKey| self.watchers.get(key).is_some_and(|w| w.start <= store.revision());
        if state.watches.values().all(started) {
            self.seq += 1;
            state.progress_wanted = false;
            state.progress = Some((self.seq, store.revision()));
        }
    }

    fn refresh_ready(&mut self, stream: StreamKey) {
        let idle = self.streams.get(&stream).is_none_or(|state| {
            state.control.is_empty() && state.heads.is_empty() && state.behind.is_empty() && state.progress.is_none()
        });
        if idle {
            self.ready.remove(&stream);
        } else {
            self.ready.insert(stream);
        }
        if self.streams.get(&stream).is_some_and(|state| state.progress_wanted) {
            self.waiting.insert(stream);
        } else {
            self.waiting.remove(&stream);
        }
    }

    /// Panics where an invariant of the hub does not hold. For tests, after each call.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        for (stream_key, stream) in &self.streams {
            let queued = |key: &WatcherKey| self.watchers.get(key).and_then(|w| w.queue.front()).map(|item| item.seq);
            let heads: BTreeSet<_> = stream.watches.values().filter_map(|key| Some((queued(key)?, *key))).collect();
            assert_eq!(heads, stream.heads, "heads name the queues");
            for (id, key) in &stream.watches {
                let watcher = self.watchers.get(key);
                assert!(watcher.is_some_and(|w| w.stream == *stream_key && w.id == *id), "a watch is in its stream");
                let behind = stream.behind.iter().filter(|behind| *behind == key).count();
                assert_eq!(behind, usize::from(watcher.is_some_and(|w| !w.live)), "who is not live waits for a turn");
            }
            if stream.progress.is_some() {
                assert!(stream.behind.is_empty(), "progress is promised by live watches");
            }
        }
        for watcher in self.watchers.values() {
            assert_eq!(watcher.queued_bytes, watcher.queue.iter().map(|item| item.bytes).sum::<usize>());
            assert!(watcher.queue.len() <= 1 || watcher.queued_bytes <= self.limits.queue_bytes_max);
            assert!(watcher.live || watcher.queue.is_empty());
        }
    }
}

impl Stream {
    /// Gives a watch turns at the store. A progress message under way would promise what it has not read.
    fn fall_behind(&mut self, key: WatcherKey) {
        self.behind.push_back(key);
        self.progress_wanted |= self.progress.take().is_some();
    }

    fn draw_id(&mut self) -> WatchId {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}

impl Watcher {
    const fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

/// The parts of one revision that watches want, each made once and shared.
struct Cuts<'a> {
    store: &'a Store,
    events: &'a Events,
    /// With the pairs as they were; made for the first watch that asks.
    with_prev: Option<Events>,
    /// Parts made so far, by (which, with pairs as they were).
    parts: BTreeMap<(Vec<u32>, bool), (Events, usize)>,
    whole: [Option<(Events, usize)>; 2],
}

impl<'a> Cuts<'a> {
    const fn new(store: &'a Store, events: &'a Events) -> Self {
        Self { store, events, with_prev: None, parts: BTreeMap::new(), whole: [None, None] }
    }

    fn cut(&mut self, watcher: &Watcher, which: &[u32]) -> Result<Option<(Events, usize)>, StoreError> {
        let all = self.source(watcher.prev_kv)?;
        let event = |at: &u32| usize::try_from(*at).ok().and_then(|at| all.get(at));
        let wanted = |at: &&u32| event(at).is_some_and(|event| watcher.wants(event.kind));
        let count = which.iter().filter(wanted).count();
        if count == 0 {
            return Ok(None);
        }
        if count == all.len() {
            let [plain, prev] = &mut self.whole;
            let whole = if watcher.prev_kv { prev } else { plain };
            return Ok(Some(whole.get_or_insert_with(|| (Arc::clone(&all), bytes_of(&all))).clone()));
        }
        let part: Vec<u32> = which.iter().filter(wanted).copied().collect();
        let cut = self.parts.entry((part, watcher.prev_kv)).or_insert_with_key(|(part, _)| {
            let events: Events = part.iter().filter_map(event).cloned().collect();
            let bytes = bytes_of(&events);
            (events, bytes)
        });
        Ok(Some(cut.clone()))
    }

    fn source(&mut self, prev_kv: bool) -> Result<Events, StoreError> {
        if !prev_kv {
            return Ok(Arc::clone(self.events));
        }
        if let Some(events) = &self.with_prev {
            return Ok(Arc::clone(events));
        }
        let mut events = Vec::with_capacity(self.events.len());
        let mut reader = self.store.reader();
        for event in self.events.iter() {
            events.push(Event { prev_kv: prev_of(self.store, &mut reader, event)?, ..event.clone() });
        }
        let events: Events = events.into();
        self.with_prev = Some(Arc::clone(&events));
        Ok(events)
    }
}

/// The pair an event replaced, where the compaction left it.
fn prev_of(store: &Store, reader: &mut Reader<'_>, event: &Event) -> Result<Option<KeyValue>, StoreError> {
    let before = event.kv.mod_revision - 1;
    if event.is_create() || before < store.compacted() {
        return Ok(None);
    }
    reader.get(&event.kv.key, before)
}

/// A piece of history for one watch.
struct Slice {
    events: Vec<Event>,
    /// The first revision not read.
    next: Revision,
    bytes: usize,
}

/// Reads whole revisions from the watch's next one on, until the limits say stop or the present is reached.
fn read_slice(watcher: &Watcher, store: &Store, limits: &WatchLimits) -> Result<Slice, StoreError> {
    let mut slice = Slice { events: Vec::new(), next: store.revision() + 1, bytes: CONTROL_BYTES };
    let mut revisions = 0;
    let mut last = 0;
    store.changes_since(&watcher.span, watcher.next, &mut |change: Change| {
        if change.rev.main != last {
            if revisions == limits.catch_up_revisions || slice.bytes >= limits.queue_bytes_max {
                slice.next = change.rev.main;
                return false;
            }
            revisions += 1;
            last = change.rev.main;
        }
        if watcher.span.contains(&change.kv.key) && watcher.wants(change.kind) {
            let event = change.event();
            slice.bytes += event.bytes() + EVENT_BYTES;
            slice.events.push(event);
        }
        true
    })?;
    if watcher.prev_kv {
        let mut reader = store.reader();
        for event in &mut slice.events {
            event.prev_kv = prev_of(store, &mut reader, event)?;
        }
    }
    Ok(slice)
}

impl Store {
    /// Visits the changes from `revision` on: of one key by its index, of a range by the history as a whole, whose
    /// other keys come along.
    fn changes_since(
        &self,
        span: &KeySpan,
        revision: Revision,
        visit: &mut dyn FnMut(Change) -> bool,
    ) -> Result<(), StoreError> {
        let mut reader = self.reader();
        let KeySpan::Point(key) = span else { return reader.scan(revision, visit) };
        let Some(versions) = self.index.get(key) else { return Ok(()) };
        for point in versions.since(revision) {
            if !visit(reader.change(point)?) {
                break;
            }
        }
        Ok(())
    }
}

/// Makes the responses for some events: one, or fragments where the watch allows them.
fn respond(watcher: &Watcher, revision: Revision, events: Events, fragment_bytes: usize, out: &mut Vec<WatchResponse>) {
    if !watcher.fragment || bytes_of(&events) < fragment_bytes || events.len() < 2 {
        out.push(WatchResponse { events, ..quiet(watcher.id, revision) });
        return;
    }
    let mut rest = &*events;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.bytes() + EVENT_BYTES;
            bytes < fragment_bytes
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (part, left) = rest.split_at(count);
        rest = left;
        out.push(WatchResponse { events: part.into(), fragment: !rest.is_empty(), ..quiet(watcher.id, revision) });
    }
}

/// A response that tells progress, until something is added.
fn quiet(watch_id: WatchId, revision: Revision) -> WatchResponse {
    WatchResponse {
        watch_id,
        revision,
        created: false,
        canceled: None,
        compact_revision: 0,
        fragment: false,
        events: Events::default(),
    }
}

fn bytes_of(events: &[Event]) -> usize {
    events.iter().map(|event| event.bytes() + EVENT_BYTES).sum()
}

/// What an event counts for beside its keys and values.
const EVENT_BYTES: usize = 64;
/// What a response without events counts for.
const CONTROL_BYTES: usize = 64;
