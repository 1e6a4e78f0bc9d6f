//! The history held against linearizability, key by key, with the order of the watch left aside: only what clients
//! asked, saw, and when. A request on several keys counts on each of them with its part.
//!
//! Of unknown requests only those are offered to the search that the watch shows to have happened; they may still
//! stand anywhere after their beginning, or nowhere.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use triune_node::pb::{
    etcdserverpb::{
        PutRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, compare::TargetUnion, request_op, response_op,
    },
    mvccpb::{Event, event::EventType},
};
use triune_sim::checker::{
    Operation,
    wgl::{self, Limits, Model},
};
use triune_transport::Nanos;

use super::{
    history::{Outcome, Record},
    model::{Request, Response},
    order::Summary,
};

/// One key: its value and the lease it hangs on, if it is there.
#[derive(Debug)]
struct Key;

type State = Option<(Bytes, i64)>;

/// What is asked of one key.
#[derive(Debug, Clone, PartialEq)]
enum Ask {
    Put {
        value: Bytes,
        lease: i64,
    },
    Swap {
        expected: Bytes,
        value: Bytes,
    },
    Delete,
    /// Gone if it hangs on this lease.
    Revoke {
        lease: i64,
    },
    Get,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    /// It happened, at this revision.
    Done {
        revision: i64,
    },
    Swapped {
        succeeded: bool,
        revision: i64,
    },
    Deleted {
        found: bool,
        revision: i64,
    },
    Got(Option<Bytes>),
}

impl Model for Key {
    type Op = (Bytes, Ask);
    type Ret = Answer;
    type State = State;

    fn init(&self) -> State {
        None
    }

    fn step(&self, state: &State, (_, ask): &Self::Op, answer: Option<&Answer>) -> Option<State> {
        let value = state.as_ref().map(|(value, _)| value);
        match (ask, answer) {
            (Ask::Put { value, lease }, None | Some(Answer::Done { .. })) => Some(Some((value.clone(), *lease))),
            (Ask::Swap { expected, value: new }, answer) => {
                let holds = value == Some(expected);
                match answer {
                    None if holds => Some(Some((new.clone(), 0))),
                    Some(Answer::Swapped { succeeded: true, .. }) if holds => Some(Some((new.clone(), 0))),
                    Some(Answer::Swapped { succeeded: false, .. }) if !holds => Some(state.clone()),
                    _ => None,
                }
            }
            (Ask::Delete, Some(Answer::Deleted { found, .. })) => (state.is_some() == *found).then_some(None),
            (Ask::Delete, None) => state.as_ref().map(|_| None),
            (Ask::Revoke { lease }, answer) => {
                let holds = state.as_ref().is_some_and(|(_, held)| held == lease);
                match answer {
                    Some(Answer::Deleted { found: false, .. }) if !holds => Some(state.clone()),
                    None | Some(Answer::Deleted { found: true, .. }) if holds => Some(None),
                    _ => None,
                }
            }
            (Ask::Get, Some(Answer::Got(got))) => (value == got.as_ref()).then(|| state.clone()),
            _ => None,
        }
    }

    fn order(&self, _: &Self::Op, answer: &Answer) -> Option<i64> {
        match answer {
            Answer::Done { revision }
            | Answer::Swapped { succeeded: true, revision }
            | Answer::Deleted { found: true, revision } => Some(*revision),
            _ => None,
        }
    }
}

/// Searches an order for each key. Fails with the shortest beginning that has none, or if the search is cut short.
pub fn check(records: &[Record], summary: &Summary, events: &[Event]) -> Result<String, String> {
    let projection = Projection::of(records, summary, events);
    let report = wgl::check_by_key(&Key, &projection.operations, |(key, _)| key.clone(), Limits::default());
    let report = report.map_err(|error| format!("the recorder is at fault: {error}"))?;
    if let Some((key, verdict)) = report.failures.first() {
        return Err(format!("key {key:?}: {verdict}"));
    }
    Ok(format!("{} operations on {} keys are linearizable, {} states searched", report.ops, report.keys, report.states))
}

/// The history as operations on single keys.
struct Projection {
    operations: Vec<Operation<(Bytes, Ask), Answer>>,
    /// Values that the watch shows.
    present: BTreeSet<Bytes>,
    /// What revokes removed, as the watch shows: their answers do not say.
    deletes: BTreeSet<(i64, Bytes)>,
    /// Contended keys by slot prefix, for deletes of whole slots.
    keys: BTreeSet<Bytes>,
    /// Keys that were put with a lease.
    leased: BTreeMap<i64, BTreeSet<Bytes>>,
}

impl Projection {
    fn of(records: &[Record], summary: &Summary, events: &[Event]) -> Self {
        let kvs = || events.iter().filter_map(|event| Some((event.r#type(), event.kv.as_ref()?)));
        let revoked = |revision| summary.revokes.contains(&revision);
        let deletes = kvs().filter(|(kind, kv)| *kind == EventType::Delete && revoked(kv.mod_revision));
        let mut projection = Self {
            operations: Vec::new(),
            present: kvs().map(|(_, kv)| kv.value.clone()).collect(),
            deletes: deletes.map(|(_, kv)| (kv.mod_revision, kv.key.clone())).collect(),
            keys: BTreeSet::new(),
            leased: BTreeMap::new(),
        };
        records.iter().for_each(|record| projection.learn_keys(&record.request));
        for (place, record) in records.iter().enumerate() {
            match &record.outcome {
                Outcome::Answered { revision, response } => projection.answered(record, *revision, response),
                Outcome::Unknown if summary.took_effect.contains(&place) => projection.unknown(record),
                Outcome::Unknown | Outcome::Failed => {}
            }
        }
        projection
    }

    fn learn_keys(&mut self, request: &Request) {
        match request {
            Request::Put(put) => self.learn_key(put),
            Request::Txn(txn) => puts(txn.success.iter().chain(&txn.failure)).for_each(|put| self.learn_key(put)),
            Request::Range(_) | Request::Delete(_) | Request::Revoke { .. } => {}
        }
    }

    fn learn_key(&mut self, put: &PutRequest) {
        self.keys.insert(put.key.clone());
        if put.lease != 0 {
            self.leased.entry(put.lease).or_default().insert(put.key.clone());
        }
    }

    fn answered(&mut self, record: &Record, revision: i64, response: &Response) {
        match (&record.request, response) {
            (Request::Put(put), _) => {
                let ask = Ask::Put { value: put.value.clone(), lease: put.lease };
                self.push(record, &put.key, ask, Some(Answer::Done { revision }));
            }
            (Request::Range(range), Response::Range(got)) if range.range_end.is_empty() && !range.serializable => {
                let value = got.kvs.first().map(|kv| kv.value.clone());
                self.push(record, &range.key, Ask::Get, Some(Answer::Got(value)));
            }
            (Request::Delete(delete), Response::Delete(gone)) if delete.range_end.is_empty() => {
                let answer = Answer::Deleted { found: gone.deleted > 0, revision };
                self.push(record, &delete.key, Ask::Delete, Some(answer));
            }
            (Request::Delete(delete), Response::Delete(gone)) => {
                for key in self.slot(&delete.key, &delete.range_end) {
                    let found = gone.prev_kvs.iter().any(|kv| kv.key == key);
                    self.push(record, &key, Ask::Delete, Some(Answer::Deleted { found, revision }));
                }
            }
            (Request::Revoke { lease }, _) => {
                for key in self.leased.get(lease).cloned().unwrap_or_default() {
                    let found = self.deletes.contains(&(revision, key.clone()));
                    self.push(record, &key, Ask::Revoke { lease: *lease }, Some(Answer::Deleted { found, revision }));
                }
            }
            (Request::Txn(txn), Response::Txn(response)) => self.answered_txn(record, revision, txn, response),
            _ => {}
        }
    }

    /// A swap by value keeps its compare; of the others the taken branch says what happened.
    fn answered_txn(&mut self, record: &Record, revision: i64, txn: &TxnRequest, response: &TxnResponse) {
        let succeeded = response.succeeded;
        if let Some((key, expected, value)) = swap(txn) {
            let ask = Ask::Swap { expected, value };
            self.push(record, &key, ask, Some(Answer::Swapped { succeeded, revision }));
            if let Some(got) = (!succeeded).then(|| response.responses.iter().find_map(got)).flatten() {
                self.push(record, &key, Ask::Get, Some(Answer::Got(got)));
            }
            return;
        }
        for put in puts(if succeeded { &txn.success } else { &txn.failure }.iter()) {
            let ask = Ask::Put { value: put.value.clone(), lease: put.lease };
            self.push(record, &put.key, ask, Some(Answer::Done { revision }));
        }
    }

    fn unknown(&mut self, record: &Record) {
        match &record.request {
            Request::Put(put) => self.unknown_put(record, put),
            Request::Txn(txn) => match swap(txn) {
                Some((key, expected, value)) => self.push(record, &key, Ask::Swap { expected, value }, None),
                None => puts(txn.success.iter().chain(&txn.failure)).for_each(|put| self.unknown_put(record, put)),
            },
            Request::Delete(delete) if delete.range_end.is_empty() => self.push(record, &delete.key, Ask::Delete, None),
            Request::Delete(delete) => {
                for key in self.slot(&delete.key, &delete.range_end) {
                    self.push(record, &key, Ask::Delete, None);
                }
            }
            Request::Revoke { lease } => {
                for key in self.leased.get(lease).cloned().unwrap_or_default() {
                    self.push(record, &key, Ask::Revoke { lease: *lease }, None);
                }
            }
            Request::Range(_) => {}
        }
    }

    fn unknown_put(&mut self, record: &Record, put: &PutRequest) {
        if self.present.contains(&put.value) {
            self.push(record, &put.key, Ask::Put { value: put.value.clone(), lease: put.lease }, None);
        }
    }

    /// Keys of leases that may run out are left to the other check: nobody saw when they went. Each part counts as a
    /// client of its own, because the parts of one request overlap.
    fn push(&mut self, record: &Record, key: &Bytes, ask: Ask, answer: Option<Answer>) {
        if !key.starts_with(CONTENDED) {
            return;
        }
        let nanos = |time: std::time::Duration| Nanos(u64::try_from(time.as_nanos()).expect("a run is no century"));
        let client = (record.client as u64) << 32 | self.operations.len() as u64;
        let ret = answer.map(|answer| (nanos(record.returned), answer));
        self.operations.push(Operation { client, call: nanos(record.invoked), op: (key.clone(), ask), ret });
    }

    fn slot(&self, from: &Bytes, to: &Bytes) -> Vec<Bytes> {
        self.keys.range(from.clone()..to.clone()).cloned().collect()
    }
}

/// Key, expected value and new value, if the transaction is a swap by value.
fn swap(txn: &TxnRequest) -> Option<(Bytes, Bytes, Bytes)> {
    let compare = txn.compare.first()?;
    let Some(TargetUnion::Value(expected)) = &compare.target_union else { return None };
    let put = puts(txn.success.iter()).next()?;
    Some((compare.key.clone(), expected.clone(), put.value.clone()))
}

fn puts<'a>(branch: impl Iterator<Item = &'a RequestOp>) -> impl Iterator<Item = &'a PutRequest> {
    branch.filter_map(|op| match op.request.as_ref()? {
        request_op::Request::RequestPut(put) => Some(put),
        _ => None,
    })
}

/// What a read of one key inside a transaction got.
fn got(op: &ResponseOp) -> Option<Option<Bytes>> {
    match op.response.as_ref()? {
        response_op::Response::ResponseRange(range) => Some(range.kvs.first().map(|kv| kv.value.clone())),
        _ => None,
    }
}

const CONTENDED: &[u8] = b"p/";
