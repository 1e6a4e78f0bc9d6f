//! What is sent: one request at a time, chosen by a seeded generator.

use bytes::Bytes;
use clap::ValueEnum;

use super::wire::{CallError, Connection, frame};
use crate::pb::etcdserverpb::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

/// The kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Puts on random keys
    Put,
    /// Linearizable reads of random keys
    Get,
    /// Reads of random keys that any member answers alone
    GetSerializable,
    /// Transactions: one compare that holds, one put
    Txn,
    /// Linearizable reads and puts, see --read-percent
    Mixed,
    /// Puts that many watchers see; latency is from the put to each watcher
    Watch,
}

impl Workload {
    /// The name as on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether the keys must be there before.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Get | Self::GetSerializable | Self::Mixed)
    }
}

/// Makes requests; one for each client.
pub(super) struct Source {
    workload: Workload,
    keys: u32,
    read_percent: u32,
    value: Bytes,
    random: Random,
}

/// One request, encoded before its time is taken.
pub(super) enum Call {
    Range(Bytes),
    Put(Bytes),
    Txn(Bytes),
}

impl Source {
    pub(super) fn new(workload: Workload, keys: u32, read_percent: u32, value: Bytes, seed: u64) -> Self {
        Self { workload, keys, read_percent, value, random: Random::new(seed) }
    }

    pub(super) fn next(&mut self) -> Call {
        let key = key(self.random.below(self.keys));
        match self.workload {
            Workload::Put | Workload::Watch => self.put(key),
            Workload::Get => range(key, false),
            Workload::GetSerializable => range(key, true),
            Workload::Txn => self.txn(key),
            Workload::Mixed if self.random.below(100) < self.read_percent => range(key, false),
            Workload::Mixed => self.put(key),
        }
    }

    fn put(&self, key: Bytes) -> Call {
        put(key, self.value.clone())
    }

    /// Creation above -1 holds for every key, also for a missing one, whose creation counts as 0.
    fn txn(&self, key: Bytes) -> Call {
        let compare = Compare {
            result: CompareResult::Greater.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(-1)),
            range_end: Bytes::new(),
        };
        let put = PutRequest { key, value: self.value.clone(), ..PutRequest::default() };
        let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
        Call::Txn(frame(&TxnRequest { compare: vec![compare], success, failure: Vec::new() }))
    }
}

impl Call {
    /// Sends it and checks that the answer is the one the workload must get.
    pub(super) async fn send(self, connection: &Connection) -> Result<(), CallError> {
        match self {
            Self::Put(bytes) => connection.unary::<PutResponse>(PUT, bytes).await.map(drop),
            Self::Range(bytes) => match connection.unary::<RangeResponse>(RANGE, bytes).await?.kvs.len() {
                1 => Ok(()),
                _ => Err(CallError::Malformed("the key that was filled is not there")),
            },
            Self::Txn(bytes) => match connection.unary::<TxnResponse>(TXN, bytes).await?.succeeded {
                true => Ok(()),
                false => Err(CallError::Malformed("a compare that always holds failed")),
            },
        }
    }
}

/// A put of this key.
pub(super) fn put(key: Bytes, value: Bytes) -> Call {
    Call::Put(frame(&PutRequest { key, value, ..PutRequest::default() }))
}

fn range(key: Bytes, serializable: bool) -> Call {
    Call::Range(frame(&RangeRequest { key, serializable, ..RangeRequest::default() }))
}

/// The key of this number.
pub(super) fn key(number: u32) -> Bytes {
    Bytes::from(format!("{PREFIX}{number:010}"))
}

/// SplitMix64: small, seeded, good enough to choose keys.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, by multiplication (Lemire): the bias is below 2⁻³².
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        let high = (self.next() >> 32) * u64::from(bound);
        u32::try_from(high >> 32).expect("a product of two u32, shifted by 32")
    }
}

/// In front of every key this tool writes.
pub(super) const PREFIX: &str = "bench/";
const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_it() {
        let mut random = Random::new(1);
        let mut seen = [false; 7];
        for _ in 0..1_000 {
            seen[random.below(7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
    }

    #[test]
    fn one_seed_makes_one_sequence() {
        let sequence = |seed| {
            let mut random = Random::new(seed);
            [random.next(), random.next(), random.next()]
        };
        assert_eq!(sequence(9), sequence(9));
        assert_ne!(sequence(9), sequence(10));
    }
}
