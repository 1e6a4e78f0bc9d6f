//! The driver's promises, on a machine that does what it is told and a log that fails on demand.
//!
//! No test sleeps to wait for the driver: each waits for an output, or for the log to be called.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use triune_consensus::driver::{
    Driver, DriverConfig, DriverExit, DriverHandle, DriverLog, LogError, LogWrite, MemLog, OutputSink, RequestError,
    Space,
};
use triune_consensus::{
    Entry, Epoch, FetchId, Index, IoSeq, Machine, MachineEffect, MachineInput, Position, StreamBatch,
};
use triune_storage::StreamId;
use triune_transport::mem::{MemConfig, MemNetwork, MemTransport};
use triune_transport::{Channel, Event, GroupId, Lane, LinkSession, Nanos, NodeId, Transport};

/// Long enough for any machine the tests run on; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

const GROUP: GroupId = GroupId(3);

#[derive(Debug)]
enum Ask {
    Append(&'static str),
    Fetch { first: u64, last: u64 },
    Send { to: NodeId, text: &'static str },
    Wake { after: Nanos },
    Say(u64),
    Release(u64),
    Panic,
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Durable(u64),
    Fetched(Option<Vec<String>>),
    Frame(String),
    Link(bool),
    Woken,
    NoSpace,
    SpaceAgain,
    IoFailed,
    Echo(u64),
}

/// Does what it is told; its log is one entry a write.
#[derive(Default)]
struct Parrot {
    seq: u64,
    deadline: Option<Nanos>,
}

impl Machine for Parrot {
    type Request = Ask;
    type Output = Said;

    fn step(&mut self, now: Nanos, input: MachineInput<Ask>, out: &mut Vec<MachineEffect<Said>>) {
        let said = match input {
            MachineInput::Request(Ask::Append(text)) => {
                self.seq += 1;
                return out.push(MachineEffect::Persist(batch(self.seq, text)));
            }
            MachineInput::Request(Ask::Fetch { first, last }) => {
                let (first, last) = (Index(first), Index(last));
                return out.push(MachineEffect::Fetch {
                    group: GROUP,
                    req: FetchId(1),
                    first,
                    last,
                    bytes_max: 1 << 20,
                });
            }
            MachineInput::Request(Ask::Send { to, text }) => {
                let frame = Bytes::from_static(text.as_bytes());
                return out.push(MachineEffect::Send { to, channel: Channel::Log, frame });
            }
            MachineInput::Request(Ask::Wake { after }) => return self.deadline = Some(now.after(after)),
            MachineInput::Request(Ask::Say(n)) => Said::Echo(n),
            MachineInput::Request(Ask::Release(upto)) => {
                return out.push(MachineEffect::Release { group: GROUP, upto: Index(upto) });
            }
            MachineInput::Request(Ask::Panic) => panic!("told to"),
            MachineInput::Persisted { group, seq } => {
                assert_eq!(group, GROUP);
                Said::Durable(seq.0)
            }
            MachineInput::Fetched { entries, .. } => Said::Fetched(entries.map(|entries| texts(&entries))),
            MachineInput::Frame { frame, .. } => Said::Frame(String::from_utf8(frame.to_vec()).unwrap()),
            MachineInput::Link { lane: Lane::Main, up, .. } => Said::Link(up),
            MachineInput::Timeout => {
                self.deadline = None;
                Said::Woken
            }
            MachineInput::NoSpace => Said::NoSpace,
            MachineInput::SpaceAgain => Said::SpaceAgain,
            MachineInput::IoFailed => {
                // A machine may still want to write; the driver must not.
                self.seq += 1;
                out.push(MachineEffect::Persist(batch(self.seq, "after the failure")));
                Said::IoFailed
            }
            _ => return,
        };
        out.push(MachineEffect::Output(said));
    }

    fn next_deadline(&self) -> Option<Nanos> {
        self.deadline
    }
}

fn batch(seq: u64, text: &'static str) -> StreamBatch {
    let head = Bytes::from_static(text.as_bytes());
    let entry = Entry { position: Position::new(1, seq), kind: 0, head, sections: Vec::new() };
    StreamBatch {
        stream: StreamId(GROUP.0),
        seq: IoSeq(seq),
        epoch: Epoch(1),
        entries: vec![entry],
        ..StreamBatch::default()
    }
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.head.to_vec()).unwrap()).collect()
}

/// What the log does with the next commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// Holds each commit until the mood changes.
    Slow,
    OrdinaryFull,
    Full,
    Broken,
}

/// The mood, and how many writes each commit held.
type Log = (Mood, Vec<usize>);

/// A log in memory with moods, which remembers each commit.
#[derive(Clone)]
struct MoodyLog {
    inner: MemLog,
    shared: Arc<(Mutex<Log>, Condvar)>,
    calls: Arc<AtomicUsize>,
}

impl MoodyLog {
    fn new(mood: Mood) -> Self {
        let shared = Arc::new((Mutex::new((mood, Vec::new())), Condvar::new()));
        Self { inner: MemLog::new(), shared, calls: Arc::default() }
    }

    fn open(&self) -> DriverLog {
        DriverLog { writer: Box::new(self.clone()), reader: self.inner.open().reader }
    }

    fn set(&self, mood: Mood) {
        self.shared.0.lock().unwrap().0 = mood;
        self.shared.1.notify_all();
    }

    /// Waits until the log has been called so often.
    fn await_calls(&self, calls: usize) {
        let guard = self.shared.0.lock().unwrap();
        let (_guard, timeout) =
            self.shared.1.wait_timeout_while(guard, PATIENCE, |_| self.calls.load(SeqCst) < calls).unwrap();
        assert!(!timeout.timed_out(), "the log was called {} times, not {calls}", self.calls.load(SeqCst));
    }

    /// How many writes each commit that succeeded held.
    fn commits(&self) -> Vec<usize> {
        self.shared.0.lock().unwrap().1.clone()
    }

    fn entries(&self) -> Vec<String> {
        let mut reader = self.inner.open().reader;
        let entries = reader.entries(StreamId(GROUP.0), Index(1), Index(u64::MAX), usize::MAX).unwrap();
        texts(&entries.unwrap_or_default())
    }
}

impl LogWrite for MoodyLog {
    fn commit(&mut self, batches: &[StreamBatch], space: Space) -> Result<(), LogError> {
        let mut guard = self.shared.0.lock().unwrap();
        self.calls.fetch_add(1, SeqCst);
        self.shared.1.notify_all();
        while guard.0 == Mood::Slow {
            guard = self.shared.1.wait(guard).unwrap();
        }
        match (guard.0, space) {
            (Mood::Broken, _) => return Err(LogError::Failed(Arc::new(std::io::Error::other("broken")))),
            (Mood::Full, _) | (Mood::OrdinaryFull, Space::Ordinary) => return Err(LogError::NoSpace),
            _ => {}
        }
        guard.1.push(batches.len());
        self.inner.commit(batches, space)
    }

    fn release(&mut self, stream: StreamId, upto: Index) -> Result<(), LogError> {
        LogWrite::release(&mut self.inner, stream, upto)
    }
}

struct Bench {
    handle: DriverHandle<Ask>,
    said: mpsc::Receiver<Said>,
    log: MoodyLog,
}

impl Bench {
    fn start(mood: Mood, config: DriverConfig) -> Self {
        let (tell, said) = mpsc::channel();
        Self::start_with(mood, config, transport(), said, move |output| drop(tell.send(output)))
    }

    fn start_with(
        mood: Mood,
        config: DriverConfig,
        transport: Arc<dyn Transport>,
        said: mpsc::Receiver<Said>,
        outputs: impl OutputSink<Said>,
    ) -> Self {
        let log = MoodyLog::new(mood);
        let handle = Driver::new(config).start(Parrot::default(), log.open(), transport, outputs).unwrap();
        Self { handle, said, log }
    }

    fn ask(&self, ask: Ask) {
        self.handle.request(ask).unwrap();
    }

    fn expect(&self, expected: Said) {
        assert_eq!(self.said.recv_timeout(PATIENCE).unwrap(), expected);
    }

    fn exit(&self) -> DriverExit {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let exit = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.handle.exited()).await });
        exit.expect("the driver ends")
    }

    fn stop(&self) {
        self.handle.stop();
        assert!(matches!(self.exit(), DriverExit::Stopped), "{:?}", self.handle.exit());
    }
}

fn transport() -> Arc<dyn Transport> {
    Arc::new(join(&MemNetwork::new(MemConfig::default()), 1))
}

fn join(network: &MemNetwork, id: u64) -> MemTransport {
    network.join(NodeId(id)).unwrap()
}

#[test]
fn writes_that_wait_share_one_sync() {
    let bench = Bench::start(Mood::Slow, DriverConfig::default());
    bench.ask(Ask::Append("a"));
    bench.log.await_calls(1);
    for _ in 0..100 {
        bench.ask(Ask::Append("b"));
    }
    // An answer to the last request proves that all before it were stepped.
    bench.ask(Ask::Say(1));
    bench.expect(Said::Echo(1));
    bench.log.set(Mood::Well);
    bench.expect(Said::Durable(1));
    bench.expect(Said::Durable(101));
    assert_eq!(bench.log.commits(), vec![1, 100]);
    bench.stop();
    let stats = bench.handle.stats();
    assert_eq!((stats.syncs, stats.writes), (2, 101));
}

#[test]
fn nothing_is_reported_durable_before_the_sync_returns() {
    let bench = Bench::start(Mood::Slow, DriverConfig::default());
    bench.ask(Ask::Append("a"));
    bench.log.await_calls(1);
    bench.ask(Ask::Say(1));
    bench.expect(Said::Echo(1));
    assert!(bench.said.try_recv().is_err());
    bench.log.set(Mood::Well);
    bench.expect(Said::Durable(1));
}

#[test]
fn a_failed_write_poisons_for_good() {
    let bench = Bench::start(Mood::Well, DriverConfig::default());
    bench.ask(Ask::Append("kept"));
    bench.expect(Said::Durable(1));
    bench.log.set(Mood::Broken);
    bench.ask(Ask::Append("lost"));
    bench.expect(Said::IoFailed);
    bench.log.set(Mood::Well);
    assert!(matches!(bench.exit(), DriverExit::Poisoned(LogError::Failed(_))));
    assert_eq!(bench.log.entries(), vec!["kept"]);
    assert!(matches!(bench.handle.request(Ask::Say(1)), Err(RequestError::Stopped(Ask::Say(1)))));
}

#[test]
fn a_panic_of_the_machine_ends_the_driver_with_its_words() {
    let bench = Bench::start(Mood::Well, DriverConfig::default());
    bench.ask(Ask::Append("kept"));
    bench.expect(Said::Durable(1));
    bench.ask(Ask::Panic);
    assert!(matches!(bench.exit(), DriverExit::Panicked(words) if words == "told to"));
    assert_eq!(bench.log.entries(), vec!["kept"]);
}

#[test]
fn a_full_disk_goes_on_in_the_reserve_and_back() {
    let config = DriverConfig { space_retry: Nanos::from_millis(1), ..DriverConfig::default() };
    let bench = Bench::start(Mood::OrdinaryFull, config);
    bench.ask(Ask::Append("a"));
    bench.expect(Said::NoSpace);
    bench.expect(Said::Durable(1));
    bench.ask(Ask::Append("b"));
    bench.expect(Said::Durable(2));
    bench.log.set(Mood::Full);
    bench.ask(Ask::Append("c"));
    let calls = bench.log.calls.load(SeqCst);
    bench.log.await_calls(calls + 4);
    assert!(bench.said.try_recv().is_err(), "a write that is held is not reported");
    bench.log.set(Mood::Well);
    bench.expect(Said::SpaceAgain);
    bench.expect(Said::Durable(3));
    assert_eq!(bench.log.entries(), vec!["a", "b", "c"]);
    bench.stop();
}

#[test]
fn a_stop_does_not_wait_for_a_disk_that_is_full_to_the_last() {
    let bench = Bench::start(Mood::Full, DriverConfig { drain_max: Nanos::from_millis(1), ..DriverConfig::default() });
    bench.ask(Ask::Append("a"));
    bench.expect(Said::NoSpace);
    bench.handle.stop();
    assert!(matches!(bench.exit(), DriverExit::StoppedEarly));
}

#[test]
fn a_stop_finishes_what_was_accepted() {
    let bench = Bench::start(Mood::Slow, DriverConfig::default());
    bench.ask(Ask::Append("a"));
    bench.log.await_calls(1);
    bench.ask(Ask::Append("b"));
    bench.handle.stop();
    assert!(matches!(bench.handle.request(Ask::Append("c")), Err(RequestError::Stopped(_))));
    bench.log.set(Mood::Well);
    bench.expect(Said::Durable(1));
    bench.expect(Said::Durable(2));
    assert!(matches!(bench.exit(), DriverExit::Stopped));
    assert_eq!(bench.log.entries(), vec!["a", "b"]);
}

#[test]
fn an_abort_writes_nothing_more() {
    let bench = Bench::start(Mood::Slow, DriverConfig::default());
    bench.ask(Ask::Append("under way"));
    bench.log.await_calls(1);
    bench.ask(Ask::Append("waiting"));
    bench.ask(Ask::Say(1));
    bench.expect(Said::Echo(1));
    bench.handle.abort();
    // The machine waits for nothing; the log thread for the write under way.
    bench.log.set(Mood::Well);
    assert!(matches!(bench.exit(), DriverExit::StoppedEarly));
    assert_eq!(bench.log.entries(), vec!["under way"]);
}

#[test]
fn old_entries_come_back_and_released_ones_do_not() {
    let bench = Bench::start(Mood::Well, DriverConfig::default());
    for (n, text) in ["a", "b", "c"].into_iter().enumerate() {
        bench.ask(Ask::Append(text));
        bench.expect(Said::Durable(n as u64 + 1));
    }
    bench.ask(Ask::Fetch { first: 2, last: 3 });
    bench.expect(Said::Fetched(Some(vec!["b".into(), "c".into()])));
    bench.ask(Ask::Release(2));
    // The next write is made behind the release.
    bench.ask(Ask::Append("d"));
    bench.expect(Said::Durable(4));
    bench.ask(Ask::Append("e"));
    bench.expect(Said::Durable(5));
    bench.ask(Ask::Fetch { first: 2, last: 3 });
    bench.expect(Said::Fetched(None));
    bench.ask(Ask::Fetch { first: 3, last: 3 });
    bench.expect(Said::Fetched(Some(vec!["c".into()])));
}

#[test]
fn a_deadline_wakes_a_machine_that_hears_nothing() {
    let bench = Bench::start(Mood::Well, DriverConfig::default());
    bench.ask(Ask::Wake { after: Nanos::from_millis(5) });
    bench.expect(Said::Woken);
    bench.stop();
}

/// Blocks the machine thread at each output until told to go on.
fn stuck_sink() -> (impl OutputSink<Said>, mpsc::Sender<()>, mpsc::Receiver<Said>) {
    let (go, wait) = mpsc::channel::<()>();
    let (tell, said) = mpsc::channel();
    let sink = move |output| {
        drop(tell.send(output));
        let _ = wait.recv();
    };
    (sink, go, said)
}

#[test]
fn a_full_queue_refuses_and_its_waiters_are_served_in_order() {
    let (sink, go, said) = stuck_sink();
    let config = DriverConfig { requests_max: 2, ..DriverConfig::default() };
    let bench = Bench::start_with(Mood::Well, config, transport(), said, sink);
    bench.ask(Ask::Say(0));
    bench.expect(Said::Echo(0));
    bench.ask(Ask::Say(1));
    bench.ask(Ask::Say(2));
    assert!(matches!(bench.handle.request(Ask::Say(9)), Err(RequestError::Busy(Ask::Say(9)))));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut third = std::pin::pin!(bench.handle.request_wait(Ask::Say(3)));
        let mut fourth = std::pin::pin!(bench.handle.request_wait(Ask::Say(4)));
        // Poll each once, so that they wait in this order.
        assert!(futures_once(third.as_mut()).await.is_none());
        assert!(futures_once(fourth.as_mut()).await.is_none());
        drop(go);
        third.await.unwrap();
        fourth.await.unwrap();
    });
    for n in 1..=4 {
        bench.expect(Said::Echo(n));
    }
}

#[test]
fn a_thread_outside_any_runtime_can_wait_for_room() {
    let (sink, go, said) = stuck_sink();
    let config = DriverConfig { requests_max: 1, ..DriverConfig::default() };
    let bench = Bench::start_with(Mood::Well, config, transport(), said, sink);
    bench.ask(Ask::Say(0));
    bench.expect(Said::Echo(0));
    bench.ask(Ask::Say(1));
    let handle = bench.handle.clone();
    let waiter = std::thread::spawn(move || handle.request_blocking(Ask::Say(2)));
    drop(go);
    waiter.join().unwrap().unwrap();
    bench.expect(Said::Echo(1));
    bench.expect(Said::Echo(2));
    bench.stop();
    assert!(matches!(bench.handle.request_blocking(Ask::Say(3)), Err(RequestError::Stopped(_))));
}

/// Polls `future` once.
async fn futures_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[test]
fn a_pushing_transport_is_refused_when_frames_wait_and_told_of_room() {
    let (sink, go, said) = stuck_sink();
    let driver = Driver::<Parrot>::new(DriverConfig { frames_max: 2, ..DriverConfig::default() });
    let events = driver.event_sink();
    let (room, has_room) = mpsc::channel();
    let room = Mutex::new(room);
    driver.on_room(move || room.lock().unwrap().send(()).unwrap_or_default());
    let handle = driver.start(Parrot::default(), MemLog::new().open(), transport(), sink).unwrap();
    handle.request(Ask::Say(0)).unwrap();
    assert_eq!(said.recv_timeout(PATIENCE).unwrap(), Said::Echo(0));
    let mut three = (0..3).map(frame).collect::<Vec<_>>();
    assert!(events.push_all(&mut three), "an empty queue takes any batch");
    assert!(three.is_empty());
    let mut more = vec![frame(3)];
    assert!(!events.push_all(&mut more));
    assert_eq!(more.len(), 1);
    assert!(has_room.try_recv().is_err());
    drop(go);
    has_room.recv_timeout(PATIENCE).unwrap();
    assert!(events.push_all(&mut more));
    for n in 0..4 {
        assert_eq!(said.recv_timeout(PATIENCE).unwrap(), Said::Frame(format!("frame {n}")));
    }
    handle.stop();
}

fn frame(n: u64) -> Event {
    let frame = Bytes::from(format!("frame {n}"));
    Event::Frame { from: NodeId(2), session: LinkSession(1), channel: Channel::Log, frame }
}

#[test]
fn a_disk_that_falls_behind_stops_requests_but_not_completions() {
    let config = DriverConfig { log_bytes_max: 1, ..DriverConfig::default() };
    let bench = Bench::start(Mood::Slow, config);
    bench.ask(Ask::Append("two bytes and more"));
    bench.log.await_calls(1);
    bench.ask(Ask::Say(1));
    // The machine is deaf to requests now: the only thing it can hear is that the write is durable.
    assert!(bench.said.try_recv().is_err(), "a request was heard while the disk was behind");
    bench.log.set(Mood::Well);
    // Which of the two it hears first is open once the disk has caught up.
    let mut said = [bench.said.recv_timeout(PATIENCE).unwrap(), bench.said.recv_timeout(PATIENCE).unwrap()];
    said.sort_by_key(|said| matches!(said, Said::Echo(_)));
    assert_eq!(said, [Said::Durable(1), Said::Echo(1)]);
    bench.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_cross_from_one_driver_to_another() {
    let network = MemNetwork::new(MemConfig::default());
    let ends = [Arc::new(join(&network, 1)) as Arc<dyn Transport>, Arc::new(join(&network, 2))];
    let mut heard = Vec::new();
    let mut handles = Vec::new();
    for end in &ends {
        let (tell, said) = tokio::sync::mpsc::unbounded_channel();
        let outputs = move |output| drop(tell.send(output));
        let config = DriverConfig::default();
        let log = MemLog::new().open();
        handles.push(Driver::spawn(Parrot::default(), log, Arc::clone(end), outputs, config).unwrap());
        heard.push(said);
    }
    handles[0].request(Ask::Send { to: NodeId(2), text: "hello" }).unwrap();
    assert_eq!(heard[1].recv().await, Some(Said::Link(true)));
    assert_eq!(heard[1].recv().await, Some(Said::Frame("hello".into())));
    ends[0].shutdown(0).await;
    assert_eq!(heard[1].recv().await, Some(Said::Link(false)));
    for handle in &handles {
        handle.stop();
        assert!(matches!(handle.exited().await, DriverExit::Stopped));
    }
}
