//! Clients that put, compare-and-swap, delete, read and lease a few contended keys through all three members.
//!
//! What may be retried: nothing. A request whose outcome is unknown is written down as unknown, and its client goes on
//! under the same number with another request. Values are unique, so that each change names its request. A contended
//! key is replaced by a fresh one after [`KEY_OPS_MAX`] requests, so that the search per key stays small.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use triune_node::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    lease_client::LeaseClient,
    request_op,
};

use super::{
    history::{Outcome, Record},
    model::{Request, Response},
};

/// What all clients share.
pub struct Shared {
    pub channels: Vec<Channel>,
    began: Instant,
    /// Requests in all, refused ones not counted.
    pub goal: usize,
    sent: Cell<usize>,
    /// Set when all faults are over: from then on the goal ends the run.
    pub released: Cell<bool>,
    slots: Vec<Slot>,
    pub records: RefCell<Vec<Record>>,
    /// Leases that may run out.
    pub expiring: RefCell<BTreeSet<i64>>,
    /// Leases that were acknowledged, are long, and are gone.
    pub lost_leases: RefCell<Vec<String>>,
}

/// A place for one contended key after the other.
struct Slot {
    generation: Cell<u32>,
    ops: Cell<u32>,
    /// A value and a revision that somebody saw here, to compare with.
    seen: RefCell<(Bytes, i64)>,
}

impl Shared {
    pub fn new(endpoints: &[String], goal: usize) -> Rc<Self> {
        let slot = |_| Slot { generation: Cell::new(0), ops: Cell::new(0), seen: RefCell::new((Bytes::new(), 0)) };
        Rc::new(Self {
            channels: endpoints.iter().map(|endpoint| channel(endpoint)).collect(),
            began: Instant::now(),
            goal,
            sent: Cell::new(0),
            released: Cell::new(false),
            slots: (0..SLOTS).map(slot).collect(),
            records: RefCell::default(),
            expiring: RefCell::default(),
            lost_leases: RefCell::default(),
        })
    }

    /// Requests until now, refused ones not counted.
    pub fn sent(&self) -> usize {
        self.sent.get()
    }

    fn is_over(&self) -> bool {
        self.released.get() && self.sent.get() >= self.goal
    }
}

/// One client, until the run is over.
pub async fn client(shared: Rc<Shared>, number: usize, seed: u64) {
    let mut client = Client { random: Random(seed), number, values: 0, leases: Vec::new(), shared };
    while !client.shared.is_over() {
        client.step().await;
    }
}

struct Client {
    shared: Rc<Shared>,
    number: usize,
    random: Random,
    values: u64,
    /// Acknowledged long leases that this client did not try to revoke.
    leases: Vec<i64>,
}

impl Client {
    async fn step(&mut self) {
        let slot = self.random.below(SLOTS);
        let key = self.key(slot);
        let request = match self.random.below(100) {
            0..25 => Request::Put(PutRequest { prev_kv: self.random.below(2) == 0, ..self.put(&key, 0) }),
            25..47 => read(&key, false),
            47..53 => read(&key, true),
            53..59 => self.read_slot(slot),
            59..71 => self.swap_value(slot, &key),
            71..76 => self.swap_revision(slot, &key),
            76..83 => self.two_keys(slot, &key),
            83..89 => Request::Delete(DeleteRangeRequest { key, range_end: Bytes::new(), prev_kv: true }),
            89..91 => Request::Delete(whole_slot(slot)),
            91..94 => return self.leased_put(&key).await,
            94..97 => match self.leases.pop() {
                Some(lease) => Request::Revoke { lease },
                None => read(&key, false),
            },
            97 => return self.fleeting_put().await,
            _ => return self.keep_alive().await,
        };
        self.send(request, Some(slot)).await;
    }

    /// The key that is now contended in this slot.
    fn key(&self, slot: usize) -> Bytes {
        let place = &self.shared.slots[slot];
        place.ops.set(place.ops.get() + 1);
        if place.ops.get() > KEY_OPS_MAX {
            place.ops.set(1);
            place.generation.set(place.generation.get() + 1);
        }
        Bytes::from(format!("p/{slot}/{:04}", place.generation.get()))
    }

    fn put(&mut self, key: &Bytes, lease: i64) -> PutRequest {
        self.values += 1;
        let value = Bytes::from(format!("c{}v{}", self.number, self.values));
        PutRequest { key: key.clone(), value, lease, ..PutRequest::default() }
    }

    fn read_slot(&mut self, slot: usize) -> Request {
        let DeleteRangeRequest { key, range_end, .. } = whole_slot(slot);
        let limit = [0, 0, 1, 3][self.random.below(4)];
        Request::Range(RangeRequest { key, range_end, limit, ..RangeRequest::default() })
    }

    fn swap_value(&mut self, slot: usize, key: &Bytes) -> Request {
        let seen = self.shared.slots[slot].seen.borrow().0.clone();
        let compare = compare(key, CompareTarget::Value, TargetUnion::Value(seen));
        self.swap(compare, key)
    }

    fn swap_revision(&mut self, slot: usize, key: &Bytes) -> Request {
        let seen = self.shared.slots[slot].seen.borrow().1;
        let compare = compare(key, CompareTarget::Mod, TargetUnion::ModRevision(seen));
        self.swap(compare, key)
    }

    fn swap(&mut self, compare: Compare, key: &Bytes) -> Request {
        let put = request_op::Request::RequestPut(self.put(key, 0));
        let get = request_op::Request::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() });
        Request::Txn(TxnRequest { compare: vec![compare], success: vec![op(put)], failure: vec![op(get)] })
    }

    /// If this key is there, put it and the one of the next slot, else the other alone; read both.
    fn two_keys(&mut self, slot: usize, key: &Bytes) -> Request {
        let other = self.key((slot + 1) % SLOTS);
        let there = Compare {
            result: CompareResult::Greater.into(),
            ..compare(key, CompareTarget::Version, TargetUnion::Version(0))
        };
        let get = |key: &Bytes| {
            op(request_op::Request::RequestRange(RangeRequest { key: key.clone(), ..RangeRequest::default() }))
        };
        let one = op(request_op::Request::RequestPut(self.put(key, 0)));
        let two = op(request_op::Request::RequestPut(self.put(&other, 0)));
        let alone = op(request_op::Request::RequestPut(self.put(&other, 0)));
        Request::Txn(TxnRequest {
            compare: vec![there],
            success: vec![one, get(key), two, get(&other)],
            failure: vec![alone, get(&other)],
        })
    }

    /// A put on a contended key with a long lease, for a later revoke to delete.
    async fn leased_put(&mut self, key: &Bytes) {
        let Some(lease) = self.grant(LONG_TTL_S).await else { return };
        self.leases.push(lease);
        let put = self.put(key, lease);
        self.send(Request::Put(put), None).await;
    }

    /// A put on a key of its own with a short lease that nobody keeps alive.
    async fn fleeting_put(&mut self) {
        let Some(lease) = self.grant(SHORT_TTL_S).await else { return };
        self.shared.expiring.borrow_mut().insert(lease);
        let key = Bytes::from(format!("x/{}/{}", self.number, self.values));
        let put = self.put(&key, lease);
        self.send(Request::Put(put), None).await;
    }

    async fn grant(&mut self, ttl: i64) -> Option<i64> {
        let mut client = LeaseClient::new(self.channel().1);
        let granted = within(client.lease_grant(LeaseGrantRequest { ttl, id: 0 })).await.ok()?;
        self.count();
        Some(granted.into_inner().id)
    }

    /// Renews a long lease once; it must still be there.
    async fn keep_alive(&mut self) {
        let Some(&lease) = self.leases.last() else { return };
        self.count();
        let mut client = LeaseClient::new(self.channel().1);
        let once = async {
            let request = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
            client.lease_keep_alive(request).await?.into_inner().message().await
        };
        if let Ok(Some(answer)) = within(once).await
            && answer.ttl == 0
        {
            self.lost_lease(lease, "a keep-alive found it gone");
        }
    }

    fn lost_lease(&self, lease: i64, how: &str) {
        let text = format!("lease {lease:x} of client {}, {LONG_TTL_S} s long and not revoked: {how}", self.number);
        self.shared.lost_leases.borrow_mut().push(text);
    }

    fn count(&self) {
        self.shared.sent.set(self.shared.sent.get() + 1);
    }

    /// A member, mostly the same one.
    fn channel(&mut self) -> (usize, Channel) {
        let members = self.shared.channels.len();
        let hop = if self.random.below(5) == 0 { self.random.below(members) } else { 0 };
        let member = (self.number + hop) % members;
        (member, self.shared.channels[member].clone())
    }

    /// Sends one request and writes down what became of it.
    async fn send(&mut self, request: Request, slot: Option<usize>) {
        let (member, channel) = self.channel();
        let invoked = self.shared.began.elapsed();
        let answer = within(call(channel, &request)).await;
        let returned = self.shared.began.elapsed();
        let outcome = match answer {
            Ok((header, response)) => {
                let header = header.expect("an answer has a header");
                self.learn(slot, header.revision, &request);
                Outcome::Answered { revision: header.revision, response }
            }
            Err(status) => self.outcome_of(&request, &status),
        };
        let failed = outcome == Outcome::Failed;
        if !failed {
            self.count();
        }
        let record = Record { client: self.number, member, invoked, returned, request, outcome };
        self.shared.records.borrow_mut().push(record);
        if failed {
            tokio::time::sleep(FAILURE_PAUSE).await; // a member that is down refuses at once: no storm of refusals
        }
    }

    fn outcome_of(&self, request: &Request, status: &Status) -> Outcome {
        let gone = status.message().contains("lease not found");
        match request {
            Request::Revoke { lease } if gone => self.lost_lease(*lease, "a revoke found it gone"),
            Request::Put(put) if gone && !self.shared.expiring.borrow().contains(&put.lease) => {
                self.lost_lease(put.lease, "a put found it gone");
            }
            _ => {}
        }
        let harmless = matches!(request, Request::Range(_)) || is_definite(status);
        if harmless { Outcome::Failed } else { Outcome::Unknown }
    }

    /// Remembers a value that is likely to be there, for later compares.
    fn learn(&self, slot: Option<usize>, revision: i64, request: &Request) {
        if let (Some(slot), Request::Put(put)) = (slot, request) {
            *self.shared.slots[slot].seen.borrow_mut() = (put.value.clone(), revision);
        }
    }
}

async fn call(channel: Channel, request: &Request) -> Result<(Option<ResponseHeader>, Response), Status> {
    let mut kv = KvClient::new(channel.clone());
    Ok(match request.clone() {
        Request::Range(request) => {
            let mut response = kv.range(request).await?.into_inner();
            (response.header.take(), Response::Range(response))
        }
        Request::Put(request) => {
            let mut response = kv.put(request).await?.into_inner();
            (response.header.take(), Response::Put(response))
        }
        Request::Delete(request) => {
            let mut response = kv.delete_range(request).await?.into_inner();
            (response.header.take(), Response::Delete(response))
        }
        Request::Txn(request) => {
            let mut response = kv.txn(request).await?.into_inner();
            (response.header.take(), Response::Txn(without_headers(response)))
        }
        Request::Revoke { lease } => {
            let response = LeaseClient::new(channel).lease_revoke(LeaseRevokeRequest { id: lease }).await?.into_inner();
            (response.header, Response::Revoke)
        }
    })
}

/// Headers inside a transaction's answer repeat the one outside.
fn without_headers(
    mut response: triune_node::pb::etcdserverpb::TxnResponse,
) -> triune_node::pb::etcdserverpb::TxnResponse {
    use triune_node::pb::etcdserverpb::response_op::Response as Out;
    for op in &mut response.responses {
        match op.response.as_mut() {
            Some(Out::ResponseRange(response)) => response.header = None,
            Some(Out::ResponsePut(response)) => response.header = None,
            Some(Out::ResponseDeleteRange(response)) => response.header = None,
            Some(Out::ResponseTxn(_)) | None => {}
        }
    }
    response
}

/// Whether the request certainly did not happen: refused by rule, or never delivered.
fn is_definite(status: &Status) -> bool {
    let refused = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::ResourceExhausted
    );
    let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    refused || causes.into_iter().any(|cause| cause.to_string().contains("tcp connect error"))
}

async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, call).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// A connection that is made when it is needed, and again when it broke.
pub fn channel(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("a loopback address");
    endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true).connect_lazy()
}

fn read(key: &Bytes, serializable: bool) -> Request {
    Request::Range(RangeRequest { key: key.clone(), serializable, ..RangeRequest::default() })
}

fn whole_slot(slot: usize) -> DeleteRangeRequest {
    let (key, range_end) = (Bytes::from(format!("p/{slot}/")), Bytes::from(format!("p/{slot}0")));
    DeleteRangeRequest { key, range_end, prev_kv: true }
}

fn compare(key: &Bytes, target: CompareTarget, to: TargetUnion) -> Compare {
    let result = CompareResult::Equal.into();
    Compare { result, target: target.into(), key: key.clone(), target_union: Some(to), range_end: Bytes::new() }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }
}

/// Contended keys at a time.
const SLOTS: usize = 4;
/// Requests on one key before a fresh one takes its place.
pub const KEY_OPS_MAX: u32 = 200;
/// Longer than a pause by SIGSTOP and an election, shorter than patience.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
const FAILURE_PAUSE: Duration = Duration::from_millis(20);
const LONG_TTL_S: i64 = 3_600;
const SHORT_TTL_S: i64 = 3;
