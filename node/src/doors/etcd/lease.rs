//! The Lease service.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};
use triune_txn::mvcc::{LeaseGrantOp, LeaseRevokeOp};

use super::{EtcdDoor, Wish, header, mismatch};
use crate::member::api::{Call, Reply};
use crate::pb::etcdserverpb as pb;

#[tonic::async_trait]
impl pb::lease_server::Lease for EtcdDoor {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let wish = Wish::of(&request);
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        match self.ask(&wish, Call::LeaseGrant(LeaseGrantOp { ttl_s: ttl, id })).await? {
            (h, Reply::LeaseGrant { id, ttl }) => {
                Ok(Response::new(pb::LeaseGrantResponse { header: header(h), id, ttl, error: String::new() }))
            }
            _ => Err(mismatch()),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let wish = Wish::of(&request);
        let id = request.into_inner().id;
        match self.ask(&wish, Call::LeaseRevoke(LeaseRevokeOp { id })).await? {
            (h, Reply::LeaseRevoke) => Ok(Response::new(pb::LeaseRevokeResponse { header: header(h) })),
            _ => Err(mismatch()),
        }
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let wish = Wish { within: None, ..Wish::of(&request) };
        let state = (self.clone(), request.into_inner());
        // One renewal at a time, in order: the answers of a stream answer its requests.
        let answers = futures_util::stream::try_unfold(state, move |(door, mut requests)| async move {
            let Some(pb::LeaseKeepAliveRequest { id }) = requests.message().await? else { return Ok(None) };
            match door.ask(&wish, Call::LeaseKeepAlive(id)).await? {
                (h, Reply::LeaseKeepAlive { id, ttl }) => {
                    let answer = pb::LeaseKeepAliveResponse { header: header(h), id, ttl };
                    Ok(Some((answer, (door, requests))))
                }
                _ => Err(mismatch()),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let wish = Wish::of(&request);
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        match self.ask(&wish, Call::LeaseTimeToLive { id, keys }).await? {
            (h, Reply::LeaseTimeToLive { id, ttl, granted, keys }) => Ok(Response::new(pb::LeaseTimeToLiveResponse {
                header: header(h),
                id,
                ttl,
                granted_ttl: granted,
                keys,
            })),
            _ => Err(mismatch()),
        }
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        match self.ask(&Wish::of(&request), Call::Leases).await? {
            (h, Reply::Leases(ids)) => {
                let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
                Ok(Response::new(pb::LeaseLeasesResponse { header: header(h), leases }))
            }
            _ => Err(mismatch()),
        }
    }
}
