//! The Watch service: one task a stream, between the client's requests and the member's responses.
//!
//! The task holds no queue of its own: what the member sends is bounded by its credit, which the task gives back when
//! the gRPC stream has taken the response, so a slow client slows nobody else.

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use triune_txn::mvcc;

use super::errors::status_of;
use super::{EtcdDoor, Wish, convert, header};
use crate::doors::{WatchItem, WatchStream};
use crate::member::api::{Header, Refusal, WatchRequest};
use crate::pb::etcdserverpb as pb;

/// Responses handed to the gRPC stream and not yet taken by it.
const RESPONSES_AHEAD: usize = 8;

type Responses = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl pb::watch_server::Watch for EtcdDoor {
    type WatchStream = Responses;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Responses>, Status> {
        let wish = Wish::of(&request);
        let stream = self.bridge.watch(wish.needs_leader).map_err(|r| status_of(&r))?;
        let (out, responses) = mpsc::channel(RESPONSES_AHEAD);
        tokio::spawn(run(stream, request.into_inner(), out));
        let responses = futures_util::stream::unfold(responses, |mut responses| async move {
            responses.recv().await.map(|response| (response, responses))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// Runs one stream until either side ends it. Owned by the connection: it ends when the receiver of `out` is dropped.
async fn run(
    mut stream: WatchStream,
    mut requests: Streaming<pb::WatchRequest>,
    out: mpsc::Sender<Result<pb::WatchResponse, Status>>,
) {
    loop {
        // Both branches are cancel safe: a message is taken whole or not at all.
        tokio::select! {
            () = out.closed() => return,
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    if let Err(refusal) = say(&stream, request) {
                        let _ = out.send(Err(status_of(&refusal))).await;
                        return;
                    }
                }
                // The client has said all it will, or is gone; a closed half still gets its events, as in etcd the
                // whole stream ends.
                Ok(None) | Err(_) => return,
            },
            item = stream.next() => match item {
                Some(WatchItem::Responses { header: h, responses, bytes }) => {
                    for response in responses {
                        if out.send(Ok(encode(h, response))).await.is_err() {
                            return;
                        }
                    }
                    stream.taken(bytes).await;
                }
                Some(WatchItem::End(refusal)) => {
                    let _ = out.send(Err(status_of(&refusal))).await;
                    return;
                }
                None => {
                    let _ = out.send(Err(status_of(&Refusal::Stopped))).await;
                    return;
                }
            },
        }
    }
}

fn say(stream: &WatchStream, request: pb::WatchRequest) -> Result<(), Refusal> {
    use pb::watch_create_request::FilterType;
    use pb::watch_request::RequestUnion;
    match request.request_union {
        Some(RequestUnion::CreateRequest(r)) => {
            let filtered = |kind: FilterType| r.filters.contains(&i32::from(kind));
            stream.say(WatchRequest::Create(mvcc::WatchCreate {
                no_put: filtered(FilterType::Noput),
                no_delete: filtered(FilterType::Nodelete),
                key: r.key,
                range_end: r.range_end,
                start_revision: r.start_revision,
                prev_kv: r.prev_kv,
                progress_notify: r.progress_notify,
                fragment: r.fragment,
                watch_id: r.watch_id,
            }))
        }
        Some(RequestUnion::CancelRequest(r)) => stream.say(WatchRequest::Cancel { watch_id: r.watch_id }),
        Some(RequestUnion::ProgressRequest(_)) => stream.say(WatchRequest::Progress),
        None => Ok(()),
    }
}

fn encode(h: Header, response: mvcc::WatchResponse) -> pb::WatchResponse {
    let cancel_reason = match response.canceled {
        None | Some(mvcc::CancelReason::Requested) => String::new(),
        Some(mvcc::CancelReason::Compacted) => "etcdserver: mvcc: required revision has been compacted".to_owned(),
        Some(mvcc::CancelReason::NoLeader) => "etcdserver: no leader".to_owned(),
        Some(reason) => reason.to_string(),
    };
    pb::WatchResponse {
        header: header(Header { revision: response.revision, ..h }),
        watch_id: response.watch_id,
        created: response.created,
        canceled: response.canceled.is_some(),
        compact_revision: response.compact_revision,
        cancel_reason,
        fragment: response.fragment,
        events: response.events.iter().map(convert::event).collect(),
    }
}
