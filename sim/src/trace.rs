//! What happened, as a running 128-bit hash and, if asked, as readable lines.
//!
//! The hash covers every event, so two runs of one seed either agree to the last bit or the first difference is worth
//! finding. Lines are made only when they are kept, and only the last [`Trace::with_lines`] many are.
//!
//! 1. The hash depends on the events alone, not on whether lines are kept.
//! 2. The hash is a check on determinism, no defence against an adversary.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};

use triune_transport::{Nanos, NodeId};

use crate::rng::mix64;

/// A run's fingerprint. Equal seeds give equal ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TraceHash(pub u128);

impl fmt::Debug for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The record of one run.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: TraceHasher,
    events: u64,
    lines: VecDeque<String>,
    lines_max: usize,
    json: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Trace {
    /// A trace that keeps only the hash.
    pub const fn new() -> Self {
        Self { hash: TraceHasher::new(), events: 0, lines: VecDeque::new(), lines_max: 0, json: false }
    }

    /// A trace that also keeps the last `lines_max` lines of text.
    pub fn with_lines(lines_max: usize) -> Self {
        Self { lines_max, ..Self::new() }
    }

    /// A trace that keeps its last `lines_max` lines as JSON objects `{"at":ns,"node":"…","kind":"…","detail":"…"}`.
    pub fn with_json(lines_max: usize) -> Self {
        Self { lines_max, json: true, ..Self::new() }
    }

    /// Records one event: when, at which node, what kind, and what it carried.
    ///
    /// `detail` is hashed whole; its `Debug` text is made only for a kept line.
    pub fn event<D: Hash + fmt::Debug>(&mut self, at: Nanos, node: NodeId, kind: &'static str, detail: &D) {
        self.events += 1;
        self.hash.write_u64(at.0);
        self.hash.write_u64(node.0);
        self.hash.write(kind.as_bytes());
        detail.hash(&mut self.hash);
        if self.lines_max > 0 {
            self.keep(line(self.json, at, node, kind, &format!("{detail:?}")));
        }
    }

    /// Folds in a number that is no event of its own, such as a state's fingerprint.
    pub fn absorb(&mut self, value: u128) {
        self.hash.write_u128(value);
    }

    /// The fingerprint so far.
    pub fn hash(&self) -> TraceHash {
        self.hash.finish128(self.events)
    }

    /// How many events were recorded.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The kept lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    fn keep(&mut self, line: String) {
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

fn line(json: bool, at: Nanos, node: NodeId, kind: &str, detail: &str) -> String {
    if json {
        let (kind, detail) = (escape(kind), escape(detail));
        format!(r#"{{"at":{},"node":"{node}","kind":"{kind}","detail":"{detail}"}}"#, at.0)
    } else {
        format!("{at:?} {node:?} {kind} {detail}")
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// A 128-bit hasher with a fixed definition: two lanes, each word folded into both with different constants.
///
/// It implements [`Hasher`], so that whatever derives `Hash` can be recorded; integers are hashed by value, so a run on
/// another byte order gives the same hash.
#[derive(Clone, Debug)]
pub struct TraceHasher {
    low: u64,
    high: u64,
}

impl Default for TraceHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl TraceHasher {
    /// The hash of nothing.
    pub const fn new() -> Self {
        Self { low: 0x243f_6a88_85a3_08d3, high: 0x1319_8a2e_0370_7344 }
    }

    /// All 128 bits, with `tail` (a count of what was hashed) folded in.
    pub fn finish128(&self, tail: u64) -> TraceHash {
        let mut end = self.clone();
        end.write_u64(tail);
        TraceHash((u128::from(mix64(end.high)) << 64) | u128::from(mix64(end.low)))
    }
}

impl Hasher for TraceHasher {
    fn finish(&self) -> u64 {
        mix64(self.low ^ self.high.rotate_left(32))
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.low = (self.low ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
        self.high = (self.high.rotate_left(23) ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ self.low;
    }

    fn write_u128(&mut self, x: u128) {
        self.write_u64(x as u64);
        self.write_u64((x >> 64) as u64);
    }

    fn write_u8(&mut self, x: u8) {
        self.write_u64(x.into());
    }

    fn write_u16(&mut self, x: u16) {
        self.write_u64(x.into());
    }

    fn write_u32(&mut self, x: u32) {
        self.write_u64(x.into());
    }

    fn write_usize(&mut self, x: usize) {
        self.write_u64(x as u64);
    }

    fn write_i64(&mut self, x: i64) {
        self.write_u64(x as u64);
    }

    fn write_i32(&mut self, x: i32) {
        self.write_i64(x.into());
    }

    fn write_isize(&mut self, x: isize) {
        self.write_i64(x as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mut trace: Trace, last: &str) -> Trace {
        for n in 0..10 {
            trace.event(Nanos(n), NodeId(n % 3), "tick", &n);
        }
        trace.event(Nanos(11), NodeId(1), "say", &last);
        trace
    }

    #[test]
    fn the_hash_is_the_same_with_and_without_lines() {
        let (bare, lines) = (run(Trace::new(), "x"), run(Trace::with_lines(4), "x"));
        assert_eq!(bare.hash(), lines.hash());
        assert_eq!((bare.lines().count(), lines.lines().count(), lines.events()), (0, 4, 11));
        assert_eq!(lines.lines().last(), Some("0.000000s n1 say \"x\""));
    }

    #[test]
    fn one_different_event_changes_the_hash() {
        assert_ne!(run(Trace::new(), "x").hash(), run(Trace::new(), "y").hash());
        let (mut ab, mut c) = (Trace::new(), Trace::new());
        ab.event(Nanos(1), NodeId(1), "ab", &());
        c.event(Nanos(1), NodeId(1), "a", &"b");
        assert_ne!(ab.hash(), c.hash());
    }

    #[test]
    fn json_lines_are_escaped() {
        let trace = run(Trace::with_json(1), "a\"b\\\n");
        let line = trace.lines().last().unwrap();
        assert!(line.starts_with(r#"{"at":11,"node":"1","kind":"say","detail":"#), "{line}");
        assert!(!line.contains('\n'));
    }
}
