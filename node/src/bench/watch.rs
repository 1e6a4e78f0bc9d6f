//! Watch fan-out: many watchers on one prefix, each of which must see every put.
//!
//! A value begins with the time of its put, in microseconds since the epoch of the run, so that each delivery says
//! how late it is.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::SendStream;
use hdrhistogram::Histogram;
use prost::Message as _;
use tokio::task::JoinSet;

use super::{
    Options,
    drive::{histogram, micros},
    wire::{CallError, Connection, Frames, frame},
    workload::PREFIX,
};
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion};

/// What the watchers saw.
#[derive(Debug)]
pub(super) struct Deliveries {
    /// From the put to the watcher, in µs.
    pub(super) latency: Histogram<u64>,
    /// Deliveries that did not come within [`DRAIN_MAX`] after the last put.
    pub(super) missing: u64,
    /// From the first put to the last delivery.
    pub(super) elapsed: Duration,
}

/// The open watchers.
pub(super) struct Watchers {
    tasks: JoinSet<()>,
    count: u64,
    began: Instant,
    seen: Rc<RefCell<Seen>>,
}

struct Seen {
    latency: Histogram<u64>,
    last: Instant,
}

impl Watchers {
    /// Opens all watchers, spread over the connections, and waits until the server has confirmed each.
    pub(super) async fn open(
        options: &Options,
        connections: &[Rc<Connection>],
        epoch: Instant,
    ) -> Result<Self, CallError> {
        let seen = Rc::new(RefCell::new(Seen { latency: histogram(), last: Instant::now() }));
        let mut tasks = JoinSet::new();
        for (_, connection) in (0..options.watchers).zip(connections.iter().cycle()) {
            let (send, mut frames) = connection.stream(WATCH, frame(&create())).await?;
            let created = frames.next().await?.ok_or(CallError::Malformed("no answer to a watch"))?;
            let created = WatchResponse::decode(created).map_err(|_| CallError::Malformed("watch response"))?;
            if !created.created || created.canceled {
                return Err(CallError::Malformed("the watch was refused"));
            }
            tasks.spawn_local(watch(send, frames, epoch, Rc::clone(&seen)));
        }
        Ok(Self { tasks, count: options.watchers.into(), began: Instant::now(), seen })
    }

    /// Waits until every watcher has seen every one of `puts`, or too long.
    pub(super) async fn finish(mut self, puts: u64) -> Deliveries {
        let expected = self.count * puts;
        let patience = Instant::now() + DRAIN_MAX;
        while self.seen.borrow().latency.len() < expected && Instant::now() < patience {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        self.tasks.shutdown().await;
        let seen = Rc::into_inner(self.seen).expect("all watchers have ended").into_inner();
        let missing = expected.saturating_sub(seen.latency.len());
        Deliveries { latency: seen.latency, missing, elapsed: seen.last.duration_since(self.began) }
    }
}

/// Reads until the stream ends; a stream that breaks shows as missing deliveries.
async fn watch(send: SendStream<Bytes>, mut frames: Frames, epoch: Instant, seen: Rc<RefCell<Seen>>) {
    while let Ok(Some(message)) = frames.next().await {
        let Ok(response) = WatchResponse::decode(message) else { break };
        let now = Instant::now();
        let mut seen = seen.borrow_mut();
        seen.last = now;
        for kv in response.events.into_iter().filter_map(|event| event.kv) {
            let Some(stamp) = kv.value.first_chunk::<8>() else { continue };
            let late = micros(now.duration_since(epoch)).saturating_sub(u64::from_le_bytes(*stamp));
            seen.latency.saturating_record(late);
        }
    }
    drop(send); // until here it kept our half of the stream open
}

/// A value that says when it was put.
pub(super) fn stamped(epoch: Instant, start: Instant, bytes: u32) -> Bytes {
    let mut value = BytesMut::with_capacity(bytes as usize);
    value.put_u64_le(micros(start.saturating_duration_since(epoch)));
    value.resize(bytes as usize, b'x');
    value.freeze()
}

fn create() -> WatchRequest {
    let range_end = Bytes::from_static(b"bench0"); // '0' follows '/'
    debug_assert!(PREFIX.as_bytes() < &range_end[..], "the range holds the prefix");
    let create = WatchCreateRequest { key: PREFIX.into(), range_end, ..WatchCreateRequest::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const DRAIN_MAX: Duration = Duration::from_secs(10);
const DRAIN_POLL: Duration = Duration::from_millis(5);
