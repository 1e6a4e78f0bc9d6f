//! What an operator meets, on real processes: bad bytes on every port, wrong starts, a lost disk, a follower far behind,
//! a full disk, a member of `dev` that dies from inside. In each, a good client elsewhere sees no failed request.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a test: a panic is its way to fail, and it has no readers outside"
)]

mod bad_bytes;
mod bad_start;
#[path = "../process/cluster.rs"]
#[allow(dead_code, reason = "shared with the process tests, which use more of it")]
mod cluster;
mod disks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use triune_node::pb::etcdserverpb::kv_client::KvClient;
use triune_node::pb::etcdserverpb::{PutRequest, RangeRequest};

/// How long anything may take before the test gives up: far beyond what it takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of one endpoint, connected when first used.
fn channel(endpoint: &str) -> Channel {
    Endpoint::from_shared(format!("http://{endpoint}")).unwrap().connect_timeout(Duration::from_secs(2)).connect_lazy()
}

async fn put(channel: &Channel, key: &str, value: &[u8]) -> Result<i64, Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_vec().into(), ..PutRequest::default() };
    let response = KvClient::new(channel.clone()).put(request).await?.into_inner();
    Ok(response.header.unwrap().revision)
}

async fn get(channel: &Channel, key: &str, serializable: bool) -> Result<Option<Vec<u8>>, Status> {
    let request = RangeRequest { key: key.to_owned().into(), serializable, ..RangeRequest::default() };
    let response = KvClient::new(channel.clone()).range(request).await?.into_inner();
    Ok(response.kvs.first().map(|kv| kv.value.to_vec()))
}

/// Tries until `what` holds.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Ok(Some(value)) = tokio::time::timeout(Duration::from_secs(10), attempt()).await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Until the member behind `channel` serves a linearizable read.
async fn serving(channel: &Channel) {
    until("the member serves", || async { get(channel, "?", false).await.ok() }).await;
}

/// A client that writes and reads back all the time and counts what fails.
struct GoodClient {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

impl GoodClient {
    fn start(endpoint: &str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, channel) = (Arc::clone(&stop), Arc::clone(&done), channel(endpoint));
        let key = format!("good at {endpoint}");
        let task = tokio::spawn(async move {
            let mut failed = Vec::new();
            let mut n = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                let value = n.to_string().into_bytes();
                match put(&channel, &key, &value).await {
                    Err(status) => {
                        failed.push(format!("put {n}: {status}"));
                        break;
                    }
                    Ok(_) => match get(&channel, &key, false).await {
                        Ok(Some(found)) if found == value => {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        other => {
                            failed.push(format!("get {n}: {other:?}"));
                            break;
                        }
                    },
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            failed
        });
        Self { stop, done, task }
    }

    /// Lets it do something, ends it; fails if one request failed.
    async fn saw_no_failure(self) {
        while self.done.load(Ordering::Relaxed) <= 10 && !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.task.await.unwrap();
        assert!(failed.is_empty(), "a good client saw a failure: {failed:?}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
