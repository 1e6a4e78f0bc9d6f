//! The Cluster service. The members are listed; changing them is not built yet, and says so.

use tonic::{Request, Response, Status};

use super::{EtcdDoor, Wish, header, mismatch};
use crate::member::api::{Call, Header, Reply};
use crate::member::system::MemberRecord;
use crate::pb::etcdserverpb as pb;

const NOT_YET: &str = "etcdserver: membership changes are not built yet";

#[tonic::async_trait]
impl pb::cluster_server::Cluster for EtcdDoor {
    async fn member_add(&self, _: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(Status::unimplemented(NOT_YET))
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(Status::unimplemented(NOT_YET))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(Status::unimplemented(NOT_YET))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let wish = Wish::of(&request);
        let linearizable = request.into_inner().linearizable;
        match self.ask(&wish, Call::MemberList { linearizable }).await? {
            // etcd's header says no revision here: the members are not the store's.
            (h, Reply::MemberList(members)) => Ok(Response::new(pb::MemberListResponse {
                header: header(Header { revision: 0, ..h }),
                members: members.into_iter().map(member).collect(),
            })),
            _ => Err(mismatch()),
        }
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(Status::unimplemented(NOT_YET))
    }
}

fn member(record: MemberRecord) -> pb::Member {
    pb::Member {
        id: record.member_id,
        name: record.name,
        peer_ur_ls: vec![format!("http://{}", record.peer_addr)],
        client_ur_ls: record.client_urls,
        // A disk that comes in place of a lost one learns until it votes.
        is_learner: record.learner || record.joining_disk != 0,
    }
}
