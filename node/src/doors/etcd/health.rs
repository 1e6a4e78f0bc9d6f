//! The gRPC health service: serving while a linearizable read of nothing gets through.

use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use tonic::{Request, Response, Status};
use triune_transport::Nanos;

use super::EtcdDoor;
use crate::member::api::Call;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::health_server::Health;
use crate::pb::health::{HealthCheckRequest, HealthCheckResponse};

/// How long a check waits for the cluster before it says no.
const CHECK_WITHIN: Nanos = Nanos::from_secs(2);

/// How often a watcher of the health is looked after.
const WATCH_EVERY: Duration = Duration::from_secs(1);

impl EtcdDoor {
    async fn serving(&self) -> ServingStatus {
        match self.bridge.call(Call::Health, Some(CHECK_WITHIN), false).await {
            Ok(_) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        }
    }
}

#[tonic::async_trait]
impl Health for EtcdDoor {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" | "etcdserverpb.Health" | "etcdserverpb.KV" => {
                Ok(Response::new(HealthCheckResponse { status: self.serving().await.into() }))
            }
            _ => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let state = (self.clone(), None);
        let changes = futures_util::stream::unfold(state, |(door, told)| async move {
            loop {
                let now = door.serving().await;
                if told != Some(now) {
                    return Some((Ok(HealthCheckResponse { status: now.into() }), (door, Some(now))));
                }
                tokio::time::sleep(WATCH_EVERY).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
