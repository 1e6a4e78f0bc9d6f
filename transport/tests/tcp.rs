//! What TCP adds to the contract: bad bytes, wrong peers, slow peers, exchanges, sinks, and coming back.
//!
//! A raw socket plays the bad peer. Every fault must end the connection it came by, be counted under its reason, and
//! leave a good link beside it untouched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use triune_transport::tcp::codec::{HELLO_HEADER_BYTES, HelloHeader, Open, Said, encode_header};
use triune_transport::tcp::{
    BindError, DialError, EventSink, Hello, HelloError, Refusal, TcpConfig, TcpTransport, exchange,
};
use triune_transport::{Channel, ClusterId, Event, Lane, LinkSession, NodeId, SendError, Transport};

const LOCAL: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const SECOND: Duration = Duration::from_secs(1);

async fn bind(id: NodeId, change: impl FnOnce(&mut TcpConfig)) -> TcpTransport {
    let mut config = TcpConfig { name: format!("m{}", id.0), seed: id.0, ..TcpConfig::new(id) };
    change(&mut config);
    TcpTransport::bind(config).await.unwrap()
}

fn addr(end: &TcpTransport) -> String {
    end.local_addr().to_string()
}

fn faults(end: &TcpTransport, reason: &str) -> u64 {
    end.stats().inbound_faults.get(reason).copied().unwrap_or(0)
}

/// A raw connection that has said hello as node `id` and was accepted.
async fn raw_link(to: &TcpTransport, id: NodeId) -> TcpStream {
    let mut stream = TcpStream::connect(to.local_addr()).await.unwrap();
    let hello = Hello { node: id, expect: LOCAL, ..Hello::default() };
    stream.write_all(&hello.encode(Said::Open(Open::Link(Lane::Main)))).await.unwrap();
    assert_eq!(raw_answer(&mut stream).await.unwrap().0, Said::Accepted);
    stream
}

async fn raw_answer(stream: &mut TcpStream) -> Result<(Said, Hello), HelloError> {
    let mut head = [0; HELLO_HEADER_BYTES];
    stream.read_exact(&mut head).await.unwrap();
    let header = HelloHeader::decode(&head)?;
    let mut body = vec![0; header.body_bytes()];
    stream.read_exact(&mut body).await.unwrap();
    header.decode_body(&body)
}

/// Waits until the other end has closed; a reset is a close as well.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _reset = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, b"", "nothing more is said on a bad connection");
}

fn wire(channel: Channel, payload: &[u8]) -> Vec<u8> {
    [&encode_header(channel, payload)[..], payload].concat()
}

async fn send_until_taken(from: &TcpTransport, to: NodeId, frame: &'static [u8]) {
    while let Err(error) = from.send(to, Channel::Log, Bytes::from_static(frame)) {
        assert!(matches!(error, SendError::NotConnected(_)), "{error}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn next_frame(at: &TcpTransport) -> Bytes {
    loop {
        if let Event::Frame { frame, .. } = at.recv().await.unwrap() {
            return frame;
        }
    }
}

/// Waits until `from` has failed to reach `to`, and returns why.
async fn dial_error(from: &TcpTransport, to: NodeId) -> Arc<DialError> {
    loop {
        let status = from.peers().into_iter().find(|s| s.peer == to).unwrap();
        assert!(!status.connected);
        if let Some(error) = status.last_error {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn garbage_closes_its_own_connection_and_no_other() {
    let end = bind(LOCAL, |_| {}).await;
    let good = bind(PEER, |_| {}).await;
    good.set_peer(LOCAL, addr(&end));
    send_until_taken(&good, LOCAL, b"before").await;
    assert_eq!(next_frame(&end).await, "before");

    let mut http = TcpStream::connect(end.local_addr()).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: triune\r\n\r\n").await.unwrap();
    closed(&mut http).await;
    assert_eq!(faults(&end, "handshake_garbage"), 1);

    let mut short = TcpStream::connect(end.local_addr()).await.unwrap();
    short.write_all(b"triune").await.unwrap();
    short.shutdown().await.unwrap();
    closed(&mut short).await;
    assert_eq!(faults(&end, "handshake_truncated"), 1);

    let mut large = Hello::default().encode(Said::Open(Open::Exchange));
    large[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut stream = TcpStream::connect(end.local_addr()).await.unwrap();
    stream.write_all(&large).await.unwrap();
    closed(&mut stream).await;
    assert_eq!(faults(&end, "handshake_garbage"), 2);

    good.send(LOCAL, Channel::Log, Bytes::from_static(b"after")).unwrap();
    assert!(matches!(end.recv().await, Some(Event::Frame { frame, .. }) if frame == "after"), "no Down in between");
    assert_eq!(good.stats().connects, 1);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_dawdles_is_closed_after_ten_seconds() {
    let end = bind(LOCAL, |_| {}).await;
    let mut slow = TcpStream::connect(end.local_addr()).await.unwrap();
    let begun = Instant::now();
    slow.write_all(b"tri").await.unwrap();
    closed(&mut slow).await;
    assert!((10 * SECOND..11 * SECOND).contains(&begun.elapsed()), "closed after {:?}", begun.elapsed());
    assert_eq!(faults(&end, "handshake_timeout"), 1);
}

#[tokio::test]
async fn a_bad_frame_ends_the_session_after_the_good_ones_before_it() {
    let mut checksum = wire(Channel::Log, b"flipped");
    *checksum.last_mut().unwrap() ^= 1;
    let mut version = wire(Channel::Log, b"x");
    version[4] = 9;
    let mut oversize = wire(Channel::Log, b"");
    oversize[..4].copy_from_slice(&(4097u32).to_le_bytes());
    let cases = [
        ("frame_checksum", checksum),
        ("frame_version", version),
        ("frame_too_large", oversize),
        ("frame_channel", wire(Channel::Bulk, b"on the main lane")),
        ("frame_truncated", wire(Channel::Log, b"cut here")[..15].to_vec()),
    ];
    let end = bind(LOCAL, |c| c.frame_bytes_max = 4096).await;
    for (reason, bad) in cases {
        let mut stream = raw_link(&end, PEER).await;
        stream.write_all(&wire(Channel::Vote, b"good")).await.unwrap();
        stream.write_all(&bad).await.unwrap();
        stream.shutdown().await.unwrap();
        closed(&mut stream).await;
        assert_eq!(faults(&end, reason), 1, "{reason}");
        let Some(Event::Up { session, .. }) = end.recv().await else { panic!("{reason}: no session") };
        assert!(matches!(end.recv().await, Some(Event::Frame { frame, .. }) if frame == "good"), "{reason}");
        assert_eq!(end.recv().await, Some(Event::Down { peer: PEER, lane: Lane::Main, session }), "{reason}");
    }
}

#[tokio::test]
async fn another_cluster_is_refused_by_name() {
    let end = bind(LOCAL, |c| c.cluster = ClusterId(7)).await;
    let other = bind(PEER, |c| c.cluster = ClusterId(8)).await;
    other.set_peer(LOCAL, addr(&end));
    let error = dial_error(&other, LOCAL).await;
    assert_eq!(error.to_string(), "refused by m1 (1) of cluster 7: wrong cluster");
    assert!(faults(&end, "wrong_cluster") >= 1);
    assert!(other.stats().dial_failures["wrong_cluster"] >= 1);
    // Once it says the right one, it is let in.
    other.set_cluster(ClusterId(7));
    send_until_taken(&other, LOCAL, b"home").await;
    assert_eq!(next_frame(&end).await, "home");
}

#[tokio::test]
async fn another_disk_at_the_address_is_refused_by_name() {
    let end = bind(LOCAL, |_| {}).await;
    let dialer = bind(PEER, |_| {}).await;
    dialer.set_peer(NodeId(3), addr(&end));
    let error = dial_error(&dialer, NodeId(3)).await;
    let DialError::Refused { refusal: Refusal::WrongNode, by } = &*error else { panic!("{error}") };
    assert_eq!((by.node, by.name.as_str()), (LOCAL, "m1"));
    let copy = bind(LOCAL, |_| {}).await;
    let mut stream = TcpStream::connect(copy.local_addr()).await.unwrap();
    let hello = Hello { node: LOCAL, ..Hello::default() };
    stream.write_all(&hello.encode(Said::Open(Open::Link(Lane::Main)))).await.unwrap();
    assert_eq!(raw_answer(&mut stream).await.unwrap().0, Said::Refused(Refusal::SameNode));
}

#[tokio::test]
async fn another_version_is_told_so() {
    let end = bind(LOCAL, |_| {}).await;
    let mut hello = Hello { node: PEER, ..Hello::default() }.encode(Said::Open(Open::Link(Lane::Main)));
    hello[8] = 9;
    let mut stream = TcpStream::connect(end.local_addr()).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    assert_eq!(raw_answer(&mut stream).await.unwrap().0, Said::Refused(Refusal::BadVersion));
    closed(&mut stream).await;
    assert_eq!(faults(&end, "bad_version"), 1);
}

#[tokio::test]
async fn a_link_waits_for_formation_when_a_cluster_is_required() {
    let end = bind(LOCAL, |c| (c.cluster, c.require_cluster) = (ClusterId(7), true)).await;
    let blank = bind(PEER, |_| {}).await;
    blank.set_peer(LOCAL, addr(&end));
    let error = dial_error(&blank, LOCAL).await;
    assert!(matches!(&*error, DialError::Refused { refusal: Refusal::NoCluster, .. }), "{error}");
    blank.set_cluster(ClusterId(7));
    send_until_taken(&blank, LOCAL, b"formed").await;
    assert_eq!(next_frame(&end).await, "formed");
    assert_eq!(end.peer_hello(PEER).map(|h| (h.name, h.cluster)), Some(("m2".into(), ClusterId(7))));
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let end = bind(LOCAL, |_| {}).await;
    let taken = end.local_addr();
    let again = TcpTransport::bind(TcpConfig { listen: taken, ..TcpConfig::new(PEER) }).await;
    let Err(error @ BindError::InUse { addr }) = again else { panic!("bound twice") };
    assert_eq!(addr, taken);
    assert_eq!(
        error.to_string(),
        format!("address {taken} is in use: stop what listens there, or choose another port")
    );
}

#[tokio::test]
async fn one_question_gets_one_answer_from_an_address() {
    let end = bind(LOCAL, |c| c.cluster = ClusterId(7)).await;
    let at = addr(&end);
    let ask = |cluster| Hello { cluster: ClusterId(cluster), payload: Bytes::from_static(b"who?"), ..Hello::default() };
    let (unformed, formed) = (ask(0), ask(7));
    let (answer, ()) = tokio::join!(exchange(&at, &unformed, 10 * SECOND), async {
        let question = end.recv_exchange().await.unwrap();
        assert_eq!(question.hello.payload, "who?");
        question.reply(Bytes::from_static(b"a member"));
    });
    let answer = answer.unwrap();
    assert_eq!((answer.node, answer.cluster, &answer.payload[..]), (LOCAL, ClusterId(7), &b"a member"[..]));

    let wrong = exchange(&at, &ask(8), 10 * SECOND).await;
    assert!(matches!(wrong, Err(DialError::Refused { refusal: Refusal::WrongCluster, .. })), "{wrong:?}");
    let (dropped, ()) = tokio::join!(exchange(&at, &formed, 10 * SECOND), async {
        drop(end.recv_exchange().await.unwrap());
    });
    assert!(matches!(dropped, Err(DialError::Refused { refusal: Refusal::Busy, .. })), "{dropped:?}");
    let large = Hello { payload: Bytes::from(vec![0; (64 << 10) + 1]), ..Hello::default() };
    assert!(matches!(exchange(&at, &large, SECOND).await, Err(DialError::TooLarge)));

    end.shutdown(0).await;
    assert!(end.recv_exchange().await.is_none(), "the acceptor has gone");
    assert!(matches!(exchange(&at, &ask(0), 10 * SECOND).await, Err(DialError::Connect(_))));
}

#[tokio::test]
async fn who_answers_an_exchange_with_noise_is_no_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let hello = Hello::default();
    let (answer, ()) = tokio::join!(exchange(&at, &hello, 10 * SECOND), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read(&mut [0; 512]).await;
    });
    assert!(matches!(answer, Err(DialError::Hello(HelloError::Magic))), "{answer:?}");
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    let end = bind(LOCAL, |c| c.inbound_max = 1).await;
    let first = raw_link(&end, PEER).await;
    let mut second = TcpStream::connect(end.local_addr()).await.unwrap();
    closed(&mut second).await;
    assert_eq!(faults(&end, "too_many_connections"), 1);
    assert!(matches!(end.recv().await, Some(Event::Up { .. })));
    drop(first);
    assert!(matches!(end.recv().await, Some(Event::Down { .. })), "the first was untouched until it left");
}

#[tokio::test]
async fn a_newer_connection_of_a_peer_replaces_the_older() {
    let end = bind(LOCAL, |_| {}).await;
    let mut older = raw_link(&end, PEER).await;
    let up = |session| Some(Event::Up { peer: PEER, lane: Lane::Main, session: LinkSession(session) });
    assert_eq!(end.recv().await, up(1));
    let _newer = raw_link(&end, PEER).await;
    closed(&mut older).await;
    assert_eq!(end.recv().await, Some(Event::Down { peer: PEER, lane: Lane::Main, session: LinkSession(1) }));
    assert_eq!(end.recv().await, up(2));
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let first = bind(LOCAL, |_| {}).await;
    let listen = first.local_addr();
    let dialer = bind(PEER, |_| {}).await;
    dialer.set_peer(LOCAL, "localhost:".to_owned() + &listen.port().to_string());
    send_until_taken(&dialer, LOCAL, b"one").await;
    assert_eq!(next_frame(&first).await, "one");
    first.shutdown(0).await;
    drop(first);
    let second = bind(LOCAL, |c| c.listen = listen).await;
    while dialer.stats().connects < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    send_until_taken(&dialer, LOCAL, b"two").await;
    assert_eq!(next_frame(&second).await, "two");
}

#[tokio::test]
async fn a_peer_that_takes_no_bytes_is_dialled_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let accept = async || {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(raw_answer(&mut stream).await.unwrap().0, Said::Open(Open::Link(Lane::Main)));
        let hello = Hello { node: LOCAL, ..Hello::default() };
        stream.write_all(&hello.encode(Said::Accepted)).await.unwrap();
        stream
    };
    let dialer = bind(PEER, |c| c.stall_ms = 100).await;
    dialer.set_peer(LOCAL, listener.local_addr().unwrap().to_string());
    let deaf = accept().await;
    let frame = Bytes::from(vec![0; 256 << 10]);
    let mut taken = 0;
    loop {
        match dialer.send(LOCAL, Channel::Log, frame.clone()) {
            Ok(()) => taken += 1,
            Err(SendError::NotConnected(_)) if taken > 0 => break,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    let _anew = accept().await;
    assert!(dialer.stats().frames_dropped > 0, "what waited for the deaf peer is dropped, and counted");
    drop(deaf);
}

#[tokio::test]
async fn a_dropped_end_cuts_its_links() {
    let end = bind(LOCAL, |_| {}).await;
    let dialer = bind(PEER, |_| {}).await;
    dialer.set_peer(LOCAL, addr(&end));
    assert!(matches!(end.recv().await, Some(Event::Up { .. })));
    drop(dialer);
    assert!(matches!(end.recv().await, Some(Event::Down { .. })));
}

/// Holds at most one batch until it is emptied.
#[derive(Default)]
struct Small {
    held: Mutex<Vec<Event>>,
    refusals: AtomicUsize,
}

impl EventSink for Small {
    fn deliver(&self, events: &mut Vec<Event>) -> bool {
        let mut held = self.held.lock().unwrap();
        if !held.is_empty() {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        held.append(events);
        true
    }
}

#[tokio::test]
async fn a_sink_without_room_is_asked_again_after_resume_and_misses_nothing() {
    const FRAMES: u64 = 5_000;
    let sink = Arc::new(Small::default());
    let end = bind(LOCAL, |c| c.sink = Some(Arc::clone(&sink) as Arc<dyn EventSink>)).await;
    let mut stream = raw_link(&end, PEER).await;
    let writer = tokio::spawn(async move {
        for n in 0..FRAMES {
            stream.write_all(&wire(Channel::Log, &n.to_le_bytes())).await.unwrap();
        }
        stream
    });
    let mut next = 0;
    while next < FRAMES {
        for event in std::mem::take(&mut *sink.held.lock().unwrap()) {
            if let Event::Frame { frame, .. } = event {
                assert_eq!(frame[..], next.to_le_bytes());
                next += 1;
            }
        }
        end.resume();
        tokio::task::yield_now().await;
    }
    drop(writer.await.unwrap());
    let refusals = sink.refusals.load(Ordering::Relaxed) as u64;
    assert!(refusals > 0, "the sink was never full: the test tests nothing");
    assert_eq!(end.stats().inbox_stalls, refusals);
    assert_eq!(end.stats().frames_received, FRAMES);
}

#[tokio::test]
async fn frames_may_be_sent_from_a_thread_without_a_runtime() {
    let end = bind(LOCAL, |_| {}).await;
    let dialer = Arc::new(bind(PEER, |_| {}).await);
    let (sender, at) = (Arc::clone(&dialer), addr(&end));
    let thread = std::thread::spawn(move || {
        sender.set_peer(LOCAL, at);
        while sender.send(LOCAL, Channel::Forward, Bytes::from_static(b"from a thread")).is_err() {
            std::thread::yield_now();
        }
    });
    assert_eq!(next_frame(&end).await, "from a thread");
    thread.join().unwrap();
}
