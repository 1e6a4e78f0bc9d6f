//! What etcd says that a store does, in its plainest form: a map, a revision, and requests applied one after the other.
//!
//! The reference that real answers are held against. It knows what the workload sends and refuses the rest by panic.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use triune_node::pb::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
        RequestOp, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op, response_op,
    },
    mvccpb::{Event, KeyValue, event::EventType},
};

/// A store at one revision.
#[derive(Debug, Clone)]
pub struct Model {
    keys: BTreeMap<Bytes, KeyValue>,
    revision: i64,
}

/// A request that may change the store.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Revoke { lease: i64 },
}

/// Its answer, with no headers but the one outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Revoke,
}

impl Model {
    /// The empty store: revision 1.
    pub fn new() -> Self {
        Self { keys: BTreeMap::new(), revision: 1 }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn keys(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values()
    }

    pub fn find(&self, key: &Bytes) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// The answer and the events that the request would cause as the next one. Changes nothing.
    pub fn answer(&self, request: &Request) -> (Response, Vec<Event>) {
        let mut next = Step { keys: Cow::Borrowed(&self.keys), revision: self.revision + 1, events: Vec::new() };
        let response = match request {
            Request::Range(range) => Response::Range(next.range(range)),
            Request::Put(put) => Response::Put(next.put(put)),
            Request::Delete(delete) => Response::Delete(next.delete(delete)),
            Request::Txn(txn) => Response::Txn(next.txn(txn)),
            Request::Revoke { lease } => {
                next.revoke(*lease);
                Response::Revoke
            }
        };
        (response, next.events)
    }

    /// Takes the events of the next revision, and says what is wrong with them, if anything.
    pub fn advance(&mut self, events: &[Event]) -> Result<(), String> {
        self.revision += 1;
        for event in events {
            let kv = event.kv.as_ref().ok_or("an event without a key")?;
            if kv.mod_revision != self.revision {
                return Err(format!("an event of revision {} stands at {}", kv.mod_revision, self.revision));
            }
            let old = self.keys.get(&kv.key);
            if event.r#type() == EventType::Delete {
                old.ok_or_else(|| format!("a delete of {:?}, which is not there", kv.key))?;
                self.keys.remove(&kv.key);
                continue;
            }
            let create = old.map_or(self.revision, |old| old.create_revision);
            let version = old.map_or(1, |old| old.version + 1);
            if (kv.create_revision, kv.version) != (create, version) {
                let claimed = (kv.create_revision, kv.version);
                return Err(format!("{:?} has creation and version {claimed:?}, not {:?}", kv.key, (create, version)));
            }
            self.keys.insert(kv.key.clone(), kv.clone());
        }
        Ok(())
    }
}

/// One request at work. The keys are copied at the first change.
struct Step<'m> {
    keys: Cow<'m, BTreeMap<Bytes, KeyValue>>,
    revision: i64,
    events: Vec<Event>,
}

impl Step<'_> {
    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let supported = RangeRequest {
            key: request.key.clone(),
            range_end: request.range_end.clone(),
            limit: request.limit,
            serializable: request.serializable,
            ..RangeRequest::default()
        };
        assert_eq!(*request, supported, "the model knows this option");
        let mut kvs: Vec<KeyValue> = self.span(&request.key, &request.range_end).cloned().collect();
        let count = kvs.len();
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        kvs.truncate(limit);
        RangeResponse { header: None, more: count > kvs.len(), count: count as i64, kvs }
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        assert!(!request.ignore_value && !request.ignore_lease, "the model knows this option");
        let old = self.keys.get(&request.key).cloned();
        let kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            create_revision: old.as_ref().map_or(self.revision, |old| old.create_revision),
            mod_revision: self.revision,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease: request.lease,
        };
        self.keys.to_mut().insert(kv.key.clone(), kv.clone());
        self.events.push(Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None });
        PutResponse { header: None, prev_kv: old.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let gone: Vec<KeyValue> = self.span(&request.key, &request.range_end).cloned().collect();
        self.remove(&gone);
        let deleted = gone.len() as i64;
        DeleteRangeResponse { header: None, deleted, prev_kvs: if request.prev_kv { gone } else { Vec::new() } }
    }

    fn revoke(&mut self, lease: i64) {
        let gone: Vec<KeyValue> = self.keys.values().filter(|kv| kv.lease == lease).cloned().collect();
        self.remove(&gone);
    }

    fn remove(&mut self, gone: &[KeyValue]) {
        for kv in gone {
            self.keys.to_mut().remove(&kv.key);
            let tomb = KeyValue { key: kv.key.clone(), mod_revision: self.revision, ..KeyValue::default() };
            self.events.push(Event { r#type: EventType::Delete.into(), kv: Some(tomb), prev_kv: None });
        }
    }

    fn txn(&mut self, request: &TxnRequest) -> TxnResponse {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &request.success } else { &request.failure };
        let responses = branch.iter().map(|op| self.operation(op)).collect();
        TxnResponse { header: None, succeeded, responses }
    }

    fn operation(&mut self, op: &RequestOp) -> ResponseOp {
        use {request_op::Request as In, response_op::Response as Out};
        let response = match op.request.as_ref().expect("the workload sends whole operations") {
            In::RequestRange(range) => Out::ResponseRange(self.range(range)),
            In::RequestPut(put) => Out::ResponsePut(self.put(put)),
            In::RequestDeleteRange(delete) => Out::ResponseDeleteRange(self.delete(delete)),
            In::RequestTxn(txn) => Out::ResponseTxn(self.txn(txn)),
        };
        ResponseOp { response: Some(response) }
    }

    fn holds(&self, compare: &Compare) -> bool {
        assert!(compare.range_end.is_empty(), "the model knows this option");
        let kv = self.keys.get(&compare.key);
        let number = |field: fn(&KeyValue) -> i64| kv.map_or(0, field);
        let ordering = match (compare.target(), compare.target_union.as_ref().expect("the workload compares something"))
        {
            (CompareTarget::Version, TargetUnion::Version(to)) => number(|kv| kv.version).cmp(to),
            (CompareTarget::Create, TargetUnion::CreateRevision(to)) => number(|kv| kv.create_revision).cmp(to),
            (CompareTarget::Mod, TargetUnion::ModRevision(to)) => number(|kv| kv.mod_revision).cmp(to),
            (CompareTarget::Lease, TargetUnion::Lease(to)) => number(|kv| kv.lease).cmp(to),
            (CompareTarget::Value, TargetUnion::Value(to)) => match kv {
                Some(kv) => kv.value.cmp(to),
                None => return false,
            },
            other => panic!("the model knows no compare of {other:?}"),
        };
        match compare.result() {
            CompareResult::Equal => ordering.is_eq(),
            CompareResult::NotEqual => ordering.is_ne(),
            CompareResult::Greater => ordering.is_gt(),
            CompareResult::Less => ordering.is_lt(),
        }
    }

    fn span<'a>(&'a self, key: &Bytes, end: &'a Bytes) -> impl Iterator<Item = &'a KeyValue> {
        let alone = end.is_empty().then(|| key.clone());
        let open = end[..] == [0];
        self.keys
            .range(key.clone()..)
            .map(|(_, kv)| kv)
            .take_while(move |kv| alone.as_ref().map_or(open || kv.key < *end, |alone| kv.key == *alone))
    }
}
