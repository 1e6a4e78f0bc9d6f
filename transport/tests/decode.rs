//! The decoders against arbitrary and nearly right bytes, under an allocation cap of 16 × the input.
//!
//! The cap is measured, not trusted: this binary's allocator counts what the running thread holds. One read buffer is
//! free of charge, because a connection has it before a byte arrives.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]
#![expect(unsafe_code, reason = "counting allocations takes an allocator of our own, which only forwards")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use triune_transport::tcp::codec::{FrameDecoder, HELLO_HEADER_BYTES, HelloHeader, READ_BYTES, Said, encode_header};
use triune_transport::tcp::{Hello, HelloError};
use triune_transport::{Channel, Lane, NodeId};

const FRAME_BYTES_MAX: usize = 1 << 30;

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is forwarded unchanged to the system's allocator; counting touches no memory of the caller, and
// the cells are const-initialised and have no destructor, so they allocate nothing themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and returns the most it held at once.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let out = work();
    (out, usize::try_from(PEAK.get() - before).unwrap())
}

/// Feeds the wire in pieces, as a socket would; returns the frames before the first error, and the error.
fn decode(wire: &[u8], step: usize) -> (Vec<(Channel, usize)>, bool) {
    let mut decoder = FrameDecoder::new(Lane::Main, FRAME_BYTES_MAX);
    let mut frames = Vec::new();
    for piece in wire.chunks(step) {
        decoder.space().extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some((channel, frame))) => frames.push((channel, frame.len())),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, decoder.finish().is_err())
}

fn decode_hello(wire: &[u8]) -> Result<(Said, Hello), HelloError> {
    let (head, body) = wire.split_first_chunk::<HELLO_HEADER_BYTES>().ok_or(HelloError::Malformed)?;
    let header = HelloHeader::decode(head)?;
    header.decode_body(body.get(..header.body_bytes()).ok_or(HelloError::Malformed)?)
}

fn within_cap(used: usize, input: usize) -> Result<(), TestCaseError> {
    let cap = 16 * input + 2 * READ_BYTES;
    prop_assert!(used <= cap, "{used} bytes held for {input} bytes of input, cap {cap}");
    Ok(())
}

fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    vec((0u8..4, vec(any::<u8>(), 0..3000)), 0..20)
}

fn encode(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut wire = Vec::new();
    for (channel, payload) in frames {
        wire.extend_from_slice(&encode_header(Channel::from_u8(*channel).unwrap(), payload));
        wire.extend_from_slice(payload);
    }
    wire
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn arbitrary_bytes_never_panic_nor_allocate_beyond_the_cap(wire in vec(any::<u8>(), 0..5000), step in 1usize..5000) {
        let (_, used) = peak(|| decode(&wire, step));
        within_cap(used, wire.len())?;
        let (_, used) = peak(|| decode_hello(&wire));
        within_cap(used, wire.len())?;
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_split(sent in frames(), step in 1usize..9000) {
        let wire = encode(&sent);
        let ((got, broken), used) = peak(|| decode(&wire, step));
        prop_assert!(!broken);
        let sent: Vec<_> = sent.iter().map(|(c, p)| (Channel::from_u8(*c).unwrap(), p.len())).collect();
        prop_assert_eq!(got, sent);
        within_cap(used, wire.len())?;
    }

    #[test]
    fn one_flipped_bit_spoils_its_frame_and_what_follows(sent in frames(), step in 1usize..9000, at in any::<prop::sample::Index>()) {
        let mut wire = encode(&sent);
        prop_assume!(!wire.is_empty());
        let bit = at.index(wire.len() * 8);
        wire[bit / 8] ^= 1 << (bit % 8);
        let ((got, broken), used) = peak(|| decode(&wire, step));
        prop_assert!(broken);
        prop_assert!(got.len() < sent.len());
        within_cap(used, wire.len())?;
    }

    #[test]
    fn a_claimed_length_allocates_nothing_that_did_not_arrive(claimed in 0u32..(1 << 30), arrived in 0usize..200_000) {
        let mut wire = encode_header(Channel::Log, b"").to_vec();
        wire[..4].copy_from_slice(&claimed.to_le_bytes());
        wire.resize(wire.len() + arrived, 0);
        let (_, used) = peak(|| decode(&wire, 16 << 10));
        within_cap(used, wire.len())?;
    }

    #[test]
    fn a_hello_survives_the_wire(node in any::<u64>(), name in ".{0,100}", payload in vec(any::<u8>(), 0..2000)) {
        let hello = Hello { node: NodeId(node), name, payload: payload.into(), ..Hello::default() };
        prop_assert_eq!(decode_hello(&hello.encode(Said::Accepted)), Ok((Said::Accepted, hello)));
    }
}
