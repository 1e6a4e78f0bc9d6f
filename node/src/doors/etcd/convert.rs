//! Between etcd's messages and the store's operations. Keys, values and pairs move; they are never copied.

use triune_txn::mvcc::{
    Compare, CompareOperand, DeleteRangeResult, Event, EventKind, OpResult, PutResult, RangeResult, Request, RequestOp,
    TxnOp, TxnResult,
};

use super::header;
use crate::member::api::Header;
use crate::pb::etcdserverpb as pb;
use crate::pb::mvccpb;

/// A transaction as the store knows it.
pub(super) fn txn(request: pb::TxnRequest) -> TxnOp {
    TxnOp {
        compares: request.compare.into_iter().map(compare).collect(),
        success: request.success.into_iter().map(op).collect(),
        failure: request.failure.into_iter().map(op).collect(),
    }
}

fn compare(c: pb::Compare) -> Compare {
    use pb::compare::TargetUnion;
    Compare {
        result: c.result,
        target: c.target,
        key: c.key,
        operand: c.target_union.map(|operand| match operand {
            TargetUnion::Version(v) => CompareOperand::Version(v),
            TargetUnion::CreateRevision(v) => CompareOperand::CreateRevision(v),
            TargetUnion::ModRevision(v) => CompareOperand::ModRevision(v),
            TargetUnion::Value(v) => CompareOperand::Value(v),
            TargetUnion::Lease(v) => CompareOperand::Lease(v),
        }),
        range_end: c.range_end,
    }
}

fn op(op: pb::RequestOp) -> RequestOp {
    use pb::request_op::Request as Step;
    RequestOp {
        request: op.request.map(|step| match step {
            Step::RequestRange(r) => Request::Range(r),
            Step::RequestPut(r) => Request::Put(r),
            Step::RequestDeleteRange(r) => Request::DeleteRange(r),
            Step::RequestTxn(r) => Request::Txn(txn(r)),
        }),
    }
}

/// Whether every range of the transaction asked to be serializable, and there is one. A transaction that only compares
/// did not ask: its answer says how the keys are now. (etcd answers that one from the local state, however old.)
pub(super) fn all_serializable(op: &TxnOp) -> bool {
    let mut asked = ranges(op).peekable();
    asked.peek().is_some() && asked.all(|serializable| serializable)
}

/// What each range of a transaction, nested ones included, asked.
fn ranges(op: &TxnOp) -> Box<dyn Iterator<Item = bool> + '_> {
    let steps = op.success.iter().chain(&op.failure);
    Box::new(steps.flat_map(|step| match &step.request {
        Some(Request::Range(range)) => Box::new(std::iter::once(range.serializable)),
        Some(Request::Txn(txn)) => ranges(txn),
        _ => Box::new(std::iter::empty()),
    }))
}

pub(super) fn range(h: Option<Header>, result: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse { header: inner(h, result.revision), kvs: result.kvs, more: result.more, count: result.count }
}

pub(super) fn put(h: Option<Header>, result: PutResult) -> pb::PutResponse {
    pb::PutResponse { header: inner(h, result.revision), prev_kv: result.prev_kv }
}

pub(super) fn delete(h: Option<Header>, result: DeleteRangeResult) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header: inner(h, result.revision), deleted: result.deleted, prev_kvs: result.prev_kvs }
}

pub(super) fn txn_response(h: Option<Header>, result: TxnResult) -> pb::TxnResponse {
    pb::TxnResponse {
        header: inner(h, result.revision),
        succeeded: result.succeeded,
        responses: result.responses.into_iter().map(response).collect(),
    }
}

fn response(result: OpResult) -> pb::ResponseOp {
    use pb::response_op::Response;
    let response = match result {
        OpResult::Range(r) => Response::ResponseRange(range(None, r)),
        OpResult::Put(r) => Response::ResponsePut(put(None, r)),
        OpResult::DeleteRange(r) => Response::ResponseDeleteRange(delete(None, r)),
        OpResult::Txn(r) => Response::ResponseTxn(txn_response(None, r)),
    };
    pb::ResponseOp { response: Some(response) }
}

/// The outer answer's header in full; an inner one's holds the revision only, as etcd's does.
const fn inner(h: Option<Header>, revision: i64) -> Option<pb::ResponseHeader> {
    match h {
        Some(h) => header(Header { revision, ..h }),
        None => Some(pb::ResponseHeader { cluster_id: 0, member_id: 0, revision, raft_term: 0 }),
    }
}

pub(super) fn event(event: &Event) -> mvccpb::Event {
    mvccpb::Event {
        r#type: match event.kind {
            EventKind::Put => mvccpb::event::EventType::Put.into(),
            EventKind::Delete => mvccpb::event::EventType::Delete.into(),
        },
        kv: Some(event.kv.clone()),
        prev_kv: event.prev_kv.clone(),
    }
}

#[cfg(test)]
mod tests {
    use triune_txn::mvcc::RangeOp;

    use super::*;

    fn check(success: Vec<RequestOp>, expected: bool) {
        let op = TxnOp { compares: vec![Compare::default()], success, failure: Vec::new() };
        assert_eq!(all_serializable(&op), expected, "{op:?}");
    }

    #[test]
    fn only_a_transaction_that_asked_for_it_is_answered_from_an_old_state() {
        let range = |serializable| Request::Range(RangeOp { key: "k".into(), serializable, ..RangeOp::default() });
        let nested = |op: Request| Request::Txn(TxnOp { success: vec![op.into()], ..TxnOp::default() });
        check(vec![range(true).into()], true);
        check(vec![range(true).into(), nested(range(true)).into()], true);
        check(vec![range(true).into(), range(false).into()], false);
        check(vec![range(true).into(), nested(range(false)).into()], false);
        check(Vec::new(), false);
        check(vec![Request::Txn(TxnOp::default()).into()], false);
    }
}
