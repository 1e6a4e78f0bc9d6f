//! The Maintenance service: alarms, status, hashes, moving the leader.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, EtcdDoor, Wish, header, mismatch};
use crate::member::api::{AlarmAction, AlarmKind, Call, Reply};
use crate::pb::etcdserverpb as pb;

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for EtcdDoor {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let wish = Wish::of(&request);
        let pb::AlarmRequest { action, member_id, alarm } = request.into_inner();
        let action = match pb::alarm_request::AlarmAction::try_from(action) {
            Ok(pb::alarm_request::AlarmAction::Get) => AlarmAction::Get,
            Ok(pb::alarm_request::AlarmAction::Activate) => AlarmAction::Activate,
            Ok(pb::alarm_request::AlarmAction::Deactivate) => AlarmAction::Deactivate,
            Err(_) => return Err(Status::invalid_argument("etcdserver: unknown alarm action")),
        };
        let alarm = match pb::AlarmType::try_from(alarm) {
            Ok(pb::AlarmType::None) => None,
            Ok(pb::AlarmType::Nospace) => Some(AlarmKind::NoSpace),
            Ok(pb::AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
            Err(_) => return Err(Status::invalid_argument("etcdserver: unknown alarm")),
        };
        match self.ask(&wish, Call::Alarm { action, member: member_id, alarm }).await? {
            (h, Reply::Alarms(alarms)) => Ok(Response::new(pb::AlarmResponse {
                header: header(h),
                alarms: alarms.into_iter().map(|(member_id, kind)| alarm_member(member_id, kind)).collect(),
            })),
            _ => Err(mismatch()),
        }
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let (h, Reply::Status(status)) = self.ask(&Wish::of(&request), Call::Status).await? else {
            return Err(mismatch());
        };
        let mut errors = Vec::new();
        if status.leader == 0 {
            errors.push("etcdserver: no leader".to_owned());
        }
        for (member, kind) in &status.alarms {
            let name = alarm_member(*member, *kind).alarm().as_str_name();
            errors.push(format!("memberID:{member} alarm:{name} "));
        }
        Ok(Response::new(pb::StatusResponse {
            header: header(h),
            version: ETCD_VERSION.to_owned(),
            db_size: i64::try_from(status.db_bytes).unwrap_or(i64::MAX),
            leader: status.leader,
            raft_index: status.commit,
            raft_term: h.raft_term,
            raft_applied_index: status.applied,
            errors,
            db_size_in_use: i64::try_from(status.db_bytes_in_use).unwrap_or(i64::MAX),
            is_learner: status.role == triune_consensus::Role::Learner,
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        match self.ask(&Wish::of(&request), Call::Defragment).await? {
            (h, Reply::Defragment) => Ok(Response::new(pb::DefragmentResponse { header: header(h) })),
            _ => Err(mismatch()),
        }
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        match self.ask(&Wish::of(&request), Call::Hash).await? {
            (h, Reply::Hash { hash, .. }) => Ok(Response::new(pb::HashResponse { header: header(h), hash })),
            _ => Err(mismatch()),
        }
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let wish = Wish::of(&request);
        match self.ask(&wish, Call::HashKv(request.into_inner().revision)).await? {
            (h, Reply::Hash { hash, compact_revision, .. }) => {
                Ok(Response::new(pb::HashKvResponse { header: header(h), hash, compact_revision }))
            }
            _ => Err(mismatch()),
        }
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("etcdserver: snapshots for clients are not built yet"))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let wish = Wish::of(&request);
        match self.ask(&wish, Call::MoveLeader(request.into_inner().target_id)).await? {
            (h, Reply::MoveLeader) => Ok(Response::new(pb::MoveLeaderResponse { header: header(h) })),
            _ => Err(mismatch()),
        }
    }

    async fn downgrade(&self, _: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented("etcdserver: downgrades are not built"))
    }
}

fn alarm_member(member_id: u64, kind: AlarmKind) -> pb::AlarmMember {
    let alarm = match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id, alarm: alarm.into() }
}
