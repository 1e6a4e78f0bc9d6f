//! A chain over (index, effects). Two members that applied the same log up to the same index hold the same value; a
//! difference proves that one of them computed another state. It guards against faults, not against forgers.

use triune_storage::Index;

use super::outcome::{Event, EventKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) const fn new(value: u64) -> Self {
        Self(value)
    }

    pub(crate) const fn value(self) -> u64 {
        self.0
    }

    pub(crate) fn events(&mut self, index: Index, events: &[Event]) {
        self.mix(index.0);
        self.mix(events.len() as u64);
        for event in events {
            let kv = &event.kv;
            let sums = u64::from(crc32c::crc32c(&kv.key)) << 32 | u64::from(crc32c::crc32c(&kv.value));
            self.mix(sums);
            self.mix(u64::from(event.kind == EventKind::Delete));
            for number in [kv.mod_revision, kv.create_revision, kv.version, kv.lease] {
                self.mix(number.cast_unsigned());
            }
        }
    }

    pub(crate) fn effect(&mut self, index: Index, numbers: &[i64]) {
        self.mix(index.0);
        for number in numbers {
            self.mix(number.cast_unsigned());
        }
    }

    pub(crate) fn refusal(&mut self, index: Index) {
        self.effect(index, &[-1]);
    }

    /// The finaliser of `SplitMix64` over a running sum: each bit of the past moves half of the result's bits.
    const fn mix(&mut self, word: u64) {
        let mut z = self.0.rotate_left(5).wrapping_add(word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }
}
