//! The phases of a run, and the two loops: closed (a client sends when it has its answer) and open (a request is sent
//! when it is due, by the first client that is free).

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::{
    Options,
    process::Usage,
    report::{Errors, Report},
    watch::Watchers,
    wire::{CallError, Connection},
    workload::{Random, Source, Workload, key, put},
};

/// Runs all phases.
pub(super) async fn run(options: Options) -> anyhow::Result<Report> {
    let connections = connect(&options).await?;
    let before = Usage::of(&options.pids).context("--pids")?; // a wrong pid fails before the load, not after
    drop(before);
    if options.workload.reads() {
        fill(&options, &connections).await.context("cannot fill the keys")?;
    }
    let warmup = Duration::from_secs(options.warmup_seconds.into());
    if !warmup.is_zero() {
        drive(&options, &connections, Limit { ops: u64::MAX, time: warmup }, Instant::now()).await;
    }
    let epoch = Instant::now();
    let watchers = match options.workload {
        Workload::Watch => Some(Watchers::open(&options, &connections, epoch).await.context("cannot watch")?),
        _ => None,
    };
    let time = if options.ops.is_some() { Duration::MAX } else { Duration::from_secs(options.seconds.into()) };
    let limit = Limit { ops: options.ops.unwrap_or(u64::MAX), time };
    let (before, own_before) = (Usage::of(&options.pids)?, Usage::of(&[std::process::id()])?);
    let began = Instant::now();
    let outcome = drive(&options, &connections, limit, epoch).await;
    let elapsed = began.elapsed();
    let deliveries = match watchers {
        Some(watchers) => Some(watchers.finish(outcome.latency.len()).await),
        None => None,
    };
    let (after, own_after) = (Usage::of(&options.pids)?, Usage::of(&[std::process::id()])?);
    let (server, own) = (after.since(&before), own_after.since(&own_before));
    Ok(Report { options, elapsed, latency: outcome.latency, errors: outcome.errors, deliveries, server, own })
}

/// When a phase ends: at either.
#[derive(Clone, Copy)]
struct Limit {
    ops: u64,
    time: Duration,
}

/// What a phase saw.
struct Outcome {
    latency: Histogram<u64>,
    errors: Errors,
}

/// What the clients of a phase share.
struct Shared {
    limit: Limit,
    began: Instant,
    taken: Cell<u64>,
    gap: Option<Duration>,
    outcome: RefCell<Outcome>,
}

async fn connect(options: &Options) -> anyhow::Result<Vec<Rc<Connection>>> {
    let mut connections = Vec::new();
    for endpoint in options.endpoints.iter().cycle().take(options.connections() as usize) {
        let opened = Connection::open(endpoint).await;
        connections.push(Rc::new(opened.with_context(|| format!("nobody answers at {endpoint}"))?));
    }
    Ok(connections)
}

/// Puts every key once, in order, by all clients.
async fn fill(options: &Options, connections: &[Rc<Connection>]) -> anyhow::Result<()> {
    let next = Rc::new(Cell::new(0));
    let value = value(options);
    let mut clients = JoinSet::new();
    for (_, connection) in (0..options.clients.min(options.keys)).zip(connections.iter().cycle()) {
        let (next, connection, value, keys) = (Rc::clone(&next), Rc::clone(connection), value.clone(), options.keys);
        clients.spawn_local(async move {
            while next.get() < keys {
                let number = next.replace(next.get() + 1);
                put(key(number), value.clone()).send(&connection).await?;
            }
            Ok::<(), CallError>(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn drive(options: &Options, connections: &[Rc<Connection>], limit: Limit, epoch: Instant) -> Outcome {
    let outcome = Outcome { latency: histogram(), errors: Errors::default() };
    let gap = options.rate.map(|rate| Duration::from_secs(1) / rate);
    let began = Instant::now();
    let shared = Rc::new(Shared { limit, began, taken: Cell::new(0), gap, outcome: RefCell::new(outcome) });
    let value = value(options);
    let mut clients = JoinSet::new();
    for (number, connection) in (0..options.clients).zip(connections.iter().cycle()) {
        let seed = options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number.into());
        let source = Source::new(options.workload, options.keys, options.read_percent, value.clone(), seed);
        let stamp = (options.workload == Workload::Watch).then_some(epoch);
        clients.spawn_local(client(Rc::clone(&shared), Rc::clone(connection), source, stamp, options.value_bytes));
    }
    while clients.join_next().await.is_some() {}
    let shared = Rc::into_inner(shared).expect("all clients have ended");
    shared.outcome.into_inner()
}

/// Sends until the phase ends. With `stamp`, values carry the time of the put, for the watchers.
async fn client(
    shared: Rc<Shared>,
    connection: Rc<Connection>,
    mut source: Source,
    stamp: Option<Instant>,
    bytes: u32,
) {
    let mut random = Random::new(u64::from(bytes));
    while let Some(start) = shared.next_start().await {
        let call = match stamp {
            Some(epoch) => put(key(random.below(STAMPED_KEYS)), super::watch::stamped(epoch, start, bytes)),
            None => source.next(),
        };
        let answer = call.send(&connection).await;
        shared.record(start, &answer);
        if let Err(CallError::Connection(_)) = answer {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}

impl Shared {
    /// The time from which the next request counts, when it is time to send it; `None` when the phase is over.
    async fn next_start(&self) -> Option<Instant> {
        let number = self.taken.replace(self.taken.get() + 1);
        let now = Instant::now();
        if number >= self.limit.ops || now.duration_since(self.began) >= self.limit.time {
            return None;
        }
        let Some(gap) = self.gap else { return Some(now) };
        let due = self.began + gap.mul_f64(number as f64);
        if due.duration_since(self.began) >= self.limit.time {
            return None;
        }
        if due <= now {
            return Some(due); // every client was busy: the wait counts
        }
        tokio::time::sleep_until(due.into()).await;
        Some(Instant::now()) // the timer sleeps in whole milliseconds: what it overslept does not count
    }

    fn record(&self, start: Instant, answer: &Result<(), CallError>) {
        let mut outcome = self.outcome.borrow_mut();
        match answer {
            Ok(()) => outcome.latency.saturating_record(micros(start.elapsed())),
            Err(error) => outcome.errors.count(error),
        }
    }
}

/// A histogram from 1 µs to 10 minutes, three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds in order")
}

/// Whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn value(options: &Options) -> Bytes {
    let mut random = Random::new(options.seed);
    (0..options.value_bytes).map(|_| random.next().to_le_bytes()[0]).collect()
}

const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Few keys: the watch workload measures delivery, not the key space.
const STAMPED_KEYS: u32 = 1_000;
