//! The KV service.

use tonic::{Request, Response, Status};

use super::{EtcdDoor, Wish, convert, header, mismatch};
use crate::member::api::{Call, Reply};
use crate::pb::etcdserverpb as pb;

#[tonic::async_trait]
impl pb::kv_server::Kv for EtcdDoor {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let wish = Wish::of(&request);
        let op = request.into_inner();
        let serializable = op.serializable;
        match self.ask(&wish, Call::Range { op, serializable }).await? {
            (h, Reply::Range(result)) => Ok(Response::new(convert::range(Some(h), result))),
            _ => Err(mismatch()),
        }
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let wish = Wish::of(&request);
        match self.ask(&wish, Call::Put(request.into_inner())).await? {
            (h, Reply::Put(result)) => Ok(Response::new(convert::put(Some(h), result))),
            _ => Err(mismatch()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let wish = Wish::of(&request);
        match self.ask(&wish, Call::DeleteRange(request.into_inner())).await? {
            (h, Reply::DeleteRange(result)) => Ok(Response::new(convert::delete(Some(h), result))),
            _ => Err(mismatch()),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let wish = Wish::of(&request);
        let op = convert::txn(request.into_inner());
        let serializable = convert::all_serializable(&op);
        match self.ask(&wish, Call::Txn { op, serializable }).await? {
            (h, Reply::Txn(result)) => Ok(Response::new(convert::txn_response(Some(h), result))),
            _ => Err(mismatch()),
        }
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let wish = Wish::of(&request);
        let pb::CompactionRequest { revision, physical } = request.into_inner();
        let op = triune_txn::mvcc::CompactOp { revision, physical };
        match self.ask(&wish, Call::Compact(op)).await? {
            (h, Reply::Compact) => Ok(Response::new(pb::CompactionResponse { header: header(h) })),
            _ => Err(mismatch()),
        }
    }
}
