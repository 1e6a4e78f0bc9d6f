//! What every [`Transport`] must do, as tests anybody can run on an implementation of their own.
//!
//! Implement [`World`] and run each case through [`transport_contract!`](crate::transport_contract), or all of them
//! with [`all`]. A case names no runtime: it awaits [`Transport::recv`] and [`World::pause`], so a real network runs
//! it under a runtime and a simulated one under a poll-only executor in virtual time.
//!
//! 1. No case waits by the clock: it polls for what it wants, pausing between looks, at most [`PAUSES_MAX`] times.
//! 2. Every event of every case goes through one observer ([`Heard`]), which holds the order of sessions and frames.
//! 3. A case panics on the first breach, naming it.
#![allow(clippy::panic, reason = "a test suite says what is wrong by panicking")]

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};

use crate::{Channel, Event, Lane, LinkSession, NodeId, SendError, Transport};

/// How often a case looks for what it waits for before it gives up.
pub const PAUSES_MAX: usize = 20_000;

/// The network under test. Each call of [`World::ends`] begins a new one.
#[async_trait(?Send)]
pub trait World {
    /// One member's end.
    type End: Transport;

    /// Ends 1, 2, … `n` of a new network without faults, each knowing all others, linked soon.
    async fn ends(&mut self, n: u64) -> Vec<Self::End>;

    /// Ends the sessions between two of the ends, both ways, until [`World::heal`].
    async fn cut(&mut self, ends: &[Self::End], a: NodeId, b: NodeId);

    /// Lets the two find each other again.
    async fn heal(&mut self, ends: &[Self::End], a: NodeId, b: NodeId);

    /// Lets the network work for a moment: about a millisecond.
    async fn pause(&mut self);

    /// The size of the largest frame the ends take.
    fn frame_bytes_max(&self) -> usize;
}

/// Runs every case, in the order of this file.
pub async fn all<W: World>(world: &mut W) {
    frames_arrive_in_order_once_without_gap(world).await;
    every_channel_carries_frames_of_any_size(world).await;
    sessions_rise_across_cuts(world).await;
    a_full_queue_hands_the_frame_back_and_loses_nothing(world).await;
    a_full_log_queue_does_not_hold_up_heartbeats(world).await;
    a_blocked_peer_does_not_hold_up_another(world).await;
    links_come_back_after_a_cut(world).await;
    an_end_that_shuts_down_delivers_what_it_accepted(world).await;
    a_shut_down_end_takes_and_gives_nothing(world).await;
    the_unknown_and_the_self_are_refused(world).await;
    too_large_a_frame_is_refused_alone(world).await;
    a_cancelled_receive_loses_nothing(world).await;
}

/// Makes one `#[test]` of each case: `transport_contract!(run)`, where `run!(case)` is a macro whose expansion, given
/// the path of a case, makes a [`World`](crate::contract::World) and runs the case on it to its end.
#[macro_export]
macro_rules! transport_contract {
    ($run:ident) => {
        $crate::transport_contract! { @cases $run
            frames_arrive_in_order_once_without_gap
            every_channel_carries_frames_of_any_size
            sessions_rise_across_cuts
            a_full_queue_hands_the_frame_back_and_loses_nothing
            a_full_log_queue_does_not_hold_up_heartbeats
            a_blocked_peer_does_not_hold_up_another
            links_come_back_after_a_cut
            an_end_that_shuts_down_delivers_what_it_accepted
            a_shut_down_end_takes_and_gives_nothing
            the_unknown_and_the_self_are_refused
            too_large_a_frame_is_refused_alone
            a_cancelled_receive_loses_nothing
        }
    };
    (@cases $run:ident $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $run!($crate::contract::$case);
            }
        )*
    };
}

/// Two ends; 1 sends numbered frames on three channels at once, 2 receives them.
pub async fn frames_arrive_in_order_once_without_gap<W: World>(world: &mut W) {
    const FRAMES: u64 = 1_000;
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let mut heard = Heard::default();
    let mut next = BTreeMap::from([(Channel::Heartbeat, 0), (Channel::Log, 0), (Channel::Forward, 0)]);
    let mut tries = 0;
    while next.values().any(|n| *n < FRAMES) {
        let mut accepted = 0;
        for (channel, n) in &mut next {
            while *n < FRAMES && a.send(b.local(), *channel, numbered(*n, 8)).is_ok() {
                *n += 1;
                accepted += 1;
            }
        }
        if accepted > 0 {
            tries = 0;
        } else if let Some(event) = polled_once(b.recv()).await {
            heard.on_some(b, event);
        } else {
            // Not linked yet, or all is on its way.
            tries += 1;
            assert!(tries < PAUSES_MAX, "no frame is accepted");
            world.pause().await;
        }
    }
    for channel in next.into_keys() {
        heard.await_frames(b, a.local(), channel, FRAMES).await;
    }
    assert_eq!(heard.ups, 1, "an undisturbed link has one session");
    close(ends).await;
}

/// The empty frame, a small one and the largest, on each of the five channels.
pub async fn every_channel_carries_frames_of_any_size<W: World>(world: &mut W) {
    let max = world.frame_bytes_max();
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let mut heard = Heard::default();
    for channel in Channel::ALL {
        for bytes in [0, 1, max] {
            let frame = Bytes::from(vec![channel as u8; bytes]);
            send(world, a, b.local(), channel, frame.clone()).await;
            let got = heard.raw_frame(b).await;
            assert!(got == (a.local(), channel, frame), "{bytes} bytes on {channel:?} arrive as they were sent");
        }
    }
    close(ends).await;
}

/// Each cut ends the session; each heal begins a larger one.
pub async fn sessions_rise_across_cuts<W: World>(world: &mut W) {
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let mut heard = Heard::default();
    for round in 0..3 {
        heard.await_up(b, a.local()).await;
        send(world, a, b.local(), Channel::Log, numbered(round, 8)).await;
        heard.await_frames(b, a.local(), Channel::Log, round + 1).await;
        world.cut(&ends, a.local(), b.local()).await;
        heard.await_down(b, a.local()).await;
        world.heal(&ends, a.local(), b.local()).await;
    }
    close(ends).await;
}

/// 2 does not receive; 1 sends until nothing more is taken; then 2 receives all that was.
pub async fn a_full_queue_hands_the_frame_back_and_loses_nothing<W: World>(world: &mut W) {
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let accepted = stuff(world, a, b.local()).await;
    let frame = numbered(accepted, STUFF_BYTES);
    assert_eq!(a.send(b.local(), Channel::Log, frame.clone()), Err(SendError::Full(frame)), "the frame comes back");
    let mut heard = Heard::default();
    heard.await_frames(b, a.local(), Channel::Log, accepted).await;
    send(world, a, b.local(), Channel::Log, numbered(accepted, STUFF_BYTES)).await;
    heard.await_frames(b, a.local(), Channel::Log, accepted + 1).await;
    assert_eq!(heard.ups, 1, "a full queue ends no session");
    close(ends).await;
}

/// While the log queue refuses, heartbeats and votes are still taken, and arrive.
pub async fn a_full_log_queue_does_not_hold_up_heartbeats<W: World>(world: &mut W) {
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let logs = stuff(world, a, b.local()).await;
    for channel in [Channel::Heartbeat, Channel::Vote, Channel::Forward] {
        assert_eq!(a.send(b.local(), channel, numbered(0, 8)), Ok(()), "{channel:?} beside a full log queue");
    }
    let mut heard = Heard::default();
    for channel in [Channel::Heartbeat, Channel::Vote, Channel::Forward] {
        heard.await_frames(b, a.local(), channel, 1).await;
    }
    heard.await_frames(b, a.local(), Channel::Log, logs).await;
    close(ends).await;
}

/// 2 does not receive and its queue is full; 3 hears 1, and 1 hears 3, all the same.
pub async fn a_blocked_peer_does_not_hold_up_another<W: World>(world: &mut W) {
    let ends = world.ends(3).await;
    let [a, b, c] = &ends[..] else { panic!("three ends were asked for") };
    let stuffed = stuff(world, a, b.local()).await;
    let (mut at_a, mut at_b, mut at_c) = (Heard::default(), Heard::default(), Heard::default());
    for n in 0..100 {
        send(world, a, c.local(), Channel::Log, numbered(n, 8)).await;
        at_c.await_frames(c, a.local(), Channel::Log, n + 1).await;
        send(world, c, a.local(), Channel::Log, numbered(n, 8)).await;
        at_a.await_frames(a, c.local(), Channel::Log, n + 1).await;
    }
    at_b.await_frames(b, a.local(), Channel::Log, stuffed).await;
    close(ends).await;
}

/// During a cut sends are refused; after it frames flow again, both ways, under new sessions.
pub async fn links_come_back_after_a_cut<W: World>(world: &mut W) {
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let (mut at_a, mut at_b) = (Heard::default(), Heard::default());
    for n in 0..2 {
        send(world, a, b.local(), Channel::Vote, numbered(n, 8)).await;
        at_b.await_frames(b, a.local(), Channel::Vote, n + 1).await;
        send(world, b, a.local(), Channel::Vote, numbered(n, 8)).await;
        at_a.await_frames(a, b.local(), Channel::Vote, n + 1).await;
        if n > 0 {
            break;
        }
        world.cut(&ends, a.local(), b.local()).await;
        at_b.await_down(b, a.local()).await;
        at_a.await_down(a, b.local()).await;
        let frame = Bytes::from_static(b"into the void");
        match a.send(b.local(), Channel::Vote, frame.clone()) {
            Err(SendError::NotConnected(back) | SendError::Unknown(back)) => assert_eq!(back, frame),
            other => panic!("a send across a cut gave {other:?}"),
        }
        world.heal(&ends, a.local(), b.local()).await;
    }
    assert_eq!((at_a.ups, at_b.ups), (2, 2));
    close(ends).await;
}

/// Frames accepted just before a shutdown arrive, and then the session ends.
pub async fn an_end_that_shuts_down_delivers_what_it_accepted<W: World>(world: &mut W) {
    const FRAMES: u64 = 50;
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    for n in 0..FRAMES {
        send(world, a, b.local(), Channel::Log, numbered(n, 256)).await;
    }
    a.shutdown(60_000).await;
    let mut heard = Heard::default();
    heard.await_frames(b, a.local(), Channel::Log, FRAMES).await;
    heard.await_down(b, a.local()).await;
    close(ends).await;
}

/// After its shutdown an end refuses frames as closed, and its receiver ends.
pub async fn a_shut_down_end_takes_and_gives_nothing<W: World>(world: &mut W) {
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let mut heard = Heard::default();
    send(world, b, a.local(), Channel::Log, numbered(0, 8)).await;
    heard.await_frames(a, b.local(), Channel::Log, 1).await;
    a.shutdown(60_000).await;
    let frame = numbered(0, 8);
    assert_eq!(a.send(b.local(), Channel::Log, frame.clone()), Err(SendError::Closed(frame)));
    while let Some(event) = a.recv().await {
        heard.on(event);
    }
    assert_eq!(a.recv().await, None, "the end stays the end");
    assert_eq!(a.recv_many(&mut Vec::new(), 8).await, 0, "for many as for one");
    a.shutdown(0).await;
    close(ends).await;
}

/// A frame for nobody known, or for oneself, comes back.
pub async fn the_unknown_and_the_self_are_refused<W: World>(world: &mut W) {
    let ends = world.ends(2).await;
    let (a, _) = pair(&ends);
    for to in [NodeId(999), a.local(), NodeId(0)] {
        let frame = numbered(0, 8);
        assert_eq!(a.send(to, Channel::Log, frame.clone()), Err(SendError::Unknown(frame)), "to {to}");
    }
    close(ends).await;
}

/// One byte above the limit comes back and harms no session.
pub async fn too_large_a_frame_is_refused_alone<W: World>(world: &mut W) {
    let large = Bytes::from(vec![0; world.frame_bytes_max() + 1]);
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let mut heard = Heard::default();
    send(world, a, b.local(), Channel::Log, numbered(0, 8)).await;
    assert_eq!(a.send(b.local(), Channel::Log, large.clone()), Err(SendError::TooLarge(large)));
    send(world, a, b.local(), Channel::Log, numbered(1, 8)).await;
    heard.await_frames(b, a.local(), Channel::Log, 2).await;
    assert_eq!(heard.ups, 1);
    close(ends).await;
}

/// Receives that are dropped after one poll take nothing with them.
pub async fn a_cancelled_receive_loses_nothing<W: World>(world: &mut W) {
    const FRAMES: u64 = 200;
    let ends = world.ends(2).await;
    let (a, b) = pair(&ends);
    let mut heard = Heard::default();
    for n in 0..FRAMES {
        send(world, a, b.local(), Channel::Log, numbered(n, 8)).await;
        if let Some(event) = polled_once(b.recv()).await.flatten() {
            heard.on(event);
        }
    }
    heard.await_frames(b, a.local(), Channel::Log, FRAMES).await;
    close(ends).await;
}

/// What one end heard, held against the promises of [`Transport`].
#[derive(Debug, Default)]
pub struct Heard {
    /// Sessions that began on main lanes.
    pub ups: usize,
    open: BTreeMap<(NodeId, Lane), LinkSession>,
    newest: BTreeMap<(NodeId, Lane), LinkSession>,
    frames: BTreeMap<(NodeId, Channel), u64>,
}

impl Heard {
    /// Holds one event against what was heard before; the payload of a frame is the caller's to judge.
    ///
    /// # Panics
    /// When it breaks a promise.
    pub fn on_link(&mut self, event: &Event) {
        match event {
            Event::Up { peer, lane, session } => {
                let newest = self.newest.insert((*peer, *lane), *session).unwrap_or_default();
                assert!(*session > newest, "session {session:?} of {peer} after {newest:?}");
                let open = self.open.insert((*peer, *lane), *session);
                assert_eq!(open, None, "the session before {session:?} of {peer} was not ended");
                self.ups += usize::from(*lane == Lane::Main);
            }
            Event::Down { peer, lane, session } => {
                let open = self.open.remove(&(*peer, *lane));
                assert_eq!(open, Some(*session), "the session that ended is the one that was open");
            }
            Event::Frame { from, session, channel, .. } => {
                let open = self.open.get(&(*from, channel.lane()));
                assert_eq!(open, Some(session), "a frame belongs to the open session");
            }
        }
    }

    /// As [`Heard::on_link`], and a frame's number must be the next of its (sender, channel).
    ///
    /// # Panics
    /// When it breaks a promise.
    pub fn on(&mut self, event: Event) {
        self.on_link(&event);
        if let Event::Frame { from, channel, frame, .. } = event {
            let next = self.frames.entry((from, channel)).or_default();
            let number = frame.first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
            assert_eq!(number, Some(*next), "the next frame from {from} on {channel:?}");
            *next += 1;
        }
    }

    async fn next<T: Transport>(&mut self, at: &T) {
        let event = at.recv().await;
        self.on_some(at, event);
    }

    fn on_some<T: Transport>(&mut self, at: &T, event: Option<Event>) {
        let Some(event) = event else { panic!("the receiver of {} ended early", at.local()) };
        self.on(event);
    }

    async fn await_frames<T: Transport>(&mut self, at: &T, from: NodeId, channel: Channel, count: u64) {
        while self.frames.get(&(from, channel)).is_none_or(|n| *n < count) {
            self.next(at).await;
        }
        assert_eq!(self.frames.get(&(from, channel)), Some(&count), "no frame arrives twice");
    }

    async fn await_up<T: Transport>(&mut self, at: &T, peer: NodeId) {
        while !self.open.contains_key(&(peer, Lane::Main)) {
            self.next(at).await;
        }
    }

    async fn await_down<T: Transport>(&mut self, at: &T, peer: NodeId) {
        while self.open.contains_key(&(peer, Lane::Main)) {
            self.next(at).await;
        }
    }

    async fn raw_frame<T: Transport>(&mut self, at: &T) -> (NodeId, Channel, Bytes) {
        loop {
            let Some(event) = at.recv().await else { panic!("the receiver of {} ended early", at.local()) };
            self.on_link(&event);
            if let Event::Frame { from, channel, frame, .. } = event {
                return (from, channel, frame);
            }
        }
    }
}

fn pair<T>(ends: &[T]) -> (&T, &T) {
    let [a, b] = ends else { panic!("two ends were asked for, {} came", ends.len()) };
    (a, b)
}

/// A frame of at least 8 bytes that begins with its number.
fn numbered(n: u64, bytes: usize) -> Bytes {
    let mut frame = BytesMut::with_capacity(bytes.max(8));
    frame.put_u64_le(n);
    frame.resize(bytes.max(8), 0x5a);
    frame.freeze()
}

/// Sends, trying again while the link is not there or its queue is full.
async fn send<W: World>(world: &mut W, from: &W::End, to: NodeId, channel: Channel, mut frame: Bytes) {
    for _ in 0..PAUSES_MAX {
        match from.send(to, channel, frame) {
            Ok(()) => return,
            Err(SendError::Full(back) | SendError::NotConnected(back)) => frame = back,
            Err(other) => panic!("from {} to {to}: {other}", from.local()),
        }
        world.pause().await;
    }
    panic!("{} could not send to {to}", from.local());
}

const STUFF_BYTES: usize = 4 << 10;
/// Beyond what any queue and the sockets under it may hold.
const STUFF_FRAMES_MAX: u64 = 64 << 10;

/// Fills the log queue from `from` to an end that does not receive, until it stays full. Returns the frames taken.
async fn stuff<W: World>(world: &mut W, from: &W::End, to: NodeId) -> u64 {
    let (mut accepted, mut full, mut unlinked) = (0, 0, 0);
    while full < 50 {
        match from.send(to, Channel::Log, numbered(accepted, STUFF_BYTES)) {
            Ok(()) => {
                (accepted, full) = (accepted + 1, 0);
                assert!(accepted < STUFF_FRAMES_MAX, "a queue without a limit");
                continue;
            }
            Err(SendError::Full(_)) => full += 1,
            Err(SendError::NotConnected(_)) => unlinked += 1,
            Err(other) => panic!("from {} to {to}: {other}", from.local()),
        }
        assert!(unlinked < PAUSES_MAX, "{} never came to reach {to}", from.local());
        world.pause().await;
    }
    assert!(accepted > 0);
    accepted
}

async fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn close<T: Transport>(ends: Vec<T>) {
    for end in &ends {
        end.shutdown(0).await;
    }
}
