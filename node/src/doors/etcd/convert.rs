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

/// Whether every range of the transaction asked to be serializable (and there is one).
pub(super) fn all_serializable(op: &TxnOp) -> bool {
    fn each(ops: &[RequestOp]) -> bool {
        ops.iter().all(|op| match &op.request {
            Some(Request::Range(r)) => r.serializable,
            Some(Request::Txn(t)) => each(&t.success) && each(&t.failure),
            _ => true,
        })
    }
    each(&op.success) && each(&op.failure)
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
