//! What the members hold when the load is over: the watch from revision 1, all keys, and the hash, of each; and whether
//! they serve at all.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::transport::Channel;
use triune_node::pb::{
    etcdserverpb::{
        HashKvRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, kv_client::KvClient,
        maintenance_client::MaintenanceClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};

use super::{cluster::Cluster, model::Model};

/// What the first member holds, and whether the others hold the same.
pub struct Survey {
    /// The watch from revision 1.
    pub events: Vec<Event>,
    keys: Vec<KeyValue>,
    agreement: Result<(), String>,
}

/// Events, keys and hash of one member.
type Held = (Vec<Event>, Vec<KeyValue>, u32);

/// Waits until every member answers a linearizable read; fails if one does not in time, or has exited.
pub async fn await_service(cluster: &mut Cluster, channels: &[Channel]) {
    let patience = Instant::now() + SERVICE_MAX;
    for (at, channel) in channels.iter().enumerate() {
        while read(channel, "probe").await.is_err() {
            cluster.check_running();
            let dir = cluster.dir().display().to_string();
            assert!(Instant::now() < patience, "member {at} does not serve; see {dir}:\n{}", cluster.log_tail(at));
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Waits for the short leases to run out, then reads everything from every member and compares.
pub async fn take(cluster: &Cluster, channels: &[Channel]) -> Result<Survey, String> {
    let patience = Instant::now() + EXPIRY_MAX;
    let revision = loop {
        match read(&channels[0], "x/").await {
            Ok(left) if left.count == 0 => break left.header.unwrap_or_default().revision,
            _ if Instant::now() > patience => return Err("short leases do not run out".to_owned()),
            _ => tokio::time::sleep(POLL).await,
        }
    };
    let mut surveys = Vec::new();
    for (at, channel) in channels.iter().enumerate() {
        let survey = tokio::time::timeout(SURVEY_MAX, of_member(channel, revision)).await;
        let survey = survey.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        surveys.push(survey.map_err(|error| format!("member {at}: {error}; its log: {}", cluster.log_tail(at)))?);
    }
    let agreement = agreement(&surveys);
    let (events, keys, _) = surveys.swap_remove(0);
    Ok(Survey { events, keys, agreement })
}

/// Whether all members hold the same history, keys and hash.
fn agreement(surveys: &[Held]) -> Result<(), String> {
    for pair in surveys.windows(2) {
        let ((events, keys, hash), (other_events, other_keys, other_hash)) = (&pair[0], &pair[1]);
        if let Some((one, other)) = events.iter().zip(other_events).find(|(one, other)| one != other) {
            return Err(format!("the histories of members differ: {one:?} and {other:?}"));
        }
        let lengths = (events.len(), other_events.len());
        if lengths.0 != lengths.1 || keys != other_keys || hash != other_hash {
            return Err(format!("members differ: events {lengths:?}, hashes {:?}", (hash, other_hash)));
        }
    }
    Ok(())
}

impl Survey {
    /// All members must hold the same, and the keys must be what the events make of the empty store.
    pub fn check_end(&self) -> Result<(), String> {
        self.agreement.clone()?;
        let mut model = Model::new();
        for revision in self.events.chunk_by(|one, other| mod_revision(one) == mod_revision(other)) {
            model.advance(revision)?;
        }
        let equal = model.keys().eq(self.keys.iter());
        equal.then_some(()).ok_or_else(|| "the keys are not what the history makes".to_owned())
    }
}

async fn of_member(channel: &Channel, revision: i64) -> Result<Held, String> {
    let events = watch_until(channel, revision).await?;
    let all = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..RangeRequest::default()
    };
    let words = |status: tonic::Status| status.to_string();
    let keys = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX).range(all).await.map_err(words)?;
    let hash = MaintenanceClient::new(channel.clone()).hash_kv(HashKvRequest { revision }).await.map_err(words)?;
    Ok((events, keys.into_inner().kvs, hash.into_inner().hash))
}

/// All events from revision 1 until this one.
async fn watch_until(channel: &Channel, revision: i64) -> Result<Vec<Event>, String> {
    let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    let create = WatchCreateRequest { key, range_end, start_revision: 1, ..WatchCreateRequest::default() };
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(request).await.map_err(|error| error.to_string())?;
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let words = |status: tonic::Status| status.to_string();
    let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let mut responses = client.watch(stream).await.map_err(words)?.into_inner();
    let mut events: Vec<Event> = Vec::new();
    while revision > 1 && events.last().map_or(0, mod_revision) < revision {
        let response = responses.message().await.map_err(words)?.ok_or("the watch ended")?;
        if response.canceled {
            return Err(format!("the watch was canceled: {response:?}"));
        }
        events.extend(response.events);
    }
    events.retain(|event| mod_revision(event) <= revision);
    drop(requests); // until here it kept our half of the stream open
    Ok(events)
}

/// A linearizable read of all keys that begin so.
async fn read(channel: &Channel, prefix: &str) -> Result<RangeResponse, tonic::Status> {
    let (key, range_end) = (Bytes::from(prefix.to_owned()), Bytes::from(format!("{prefix}\u{7f}")));
    let request = RangeRequest { key, range_end, ..RangeRequest::default() };
    let mut client = KvClient::new(channel.clone());
    let answer = tokio::time::timeout(READ_MAX, client.range(request)).await;
    Ok(answer.map_err(|_| tonic::Status::deadline_exceeded("no answer in time"))??.into_inner())
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

const POLL: Duration = Duration::from_millis(50);
const READ_MAX: Duration = Duration::from_secs(3);
/// Progress: a cluster whose members all run serves again within this.
const SERVICE_MAX: Duration = Duration::from_secs(30);
/// The time to live, two elections, and a machine that is busy.
const EXPIRY_MAX: Duration = Duration::from_secs(30);
const SURVEY_MAX: Duration = Duration::from_secs(60);
