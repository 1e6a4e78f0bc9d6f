//! The way into the member's driver, for doors and the store thread, from before there is a driver.
//!
//! While the cluster forms, doors are open and there is no member to ask: calls are refused with
//! [`Refusal::NoLeader`], which is what clients of a cluster without a quorum hear too.

use std::sync::{Arc, OnceLock, Weak};

use triune_consensus::driver::{DriverHandle, DriverStats, RequestError};

use crate::doors::{Bridge, Port, PortError};
use crate::member::api::{Header, Output, Refusal, Request, WatchRequest};

/// A driver that may not run yet. Clones name the same one.
#[derive(Clone, Debug)]
pub(super) struct MemberPort {
    driver: Arc<OnceLock<DriverHandle<Request>>>,
    bridge: Weak<Bridge>,
}

impl MemberPort {
    /// Connects `bridge` to a driver that is named later.
    pub(super) fn connect(bridge: &Arc<Bridge>) -> Self {
        let port = Self { driver: Arc::default(), bridge: Arc::downgrade(bridge) };
        bridge.connect(Box::new(port.clone()));
        port
    }

    /// The driver runs from now on.
    pub(super) fn set(&self, driver: DriverHandle<Request>) {
        let first = self.driver.set(driver);
        assert!(first.is_ok(), "a port leads to one driver");
    }

    /// What the driver has done, if it runs.
    pub(super) fn stats(&self) -> Option<DriverStats> {
        self.driver.get().map(DriverHandle::stats)
    }

    /// Answers in place of a member that does not run yet.
    fn refuse(&self, request: &Request) {
        let refused = match request {
            Request::Call { id, .. } => {
                Output::Reply { id: *id, header: Header::default(), result: Err(Refusal::NoLeader) }
            }
            Request::Watch { stream, event: WatchRequest::Open { .. } } => {
                Output::WatchEnd { stream: *stream, refusal: Refusal::NoLeader }
            }
            _ => return,
        };
        if let Some(bridge) = self.bridge.upgrade() {
            let _for_a_door = bridge.deliver(refused);
        }
    }
}

impl Port for MemberPort {
    fn request(&self, request: Request) -> Result<(), PortError> {
        let Some(driver) = self.driver.get() else {
            self.refuse(&request);
            return Ok(());
        };
        driver.request(request).map_err(|error| match error {
            RequestError::Busy(_) => PortError::Busy,
            _ => PortError::Stopped,
        })
    }

    fn request_wait(&self, request: Request) -> Result<(), PortError> {
        self.driver.wait().request_blocking(request).map_err(|_| PortError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::WatchItem;
    use crate::member::api::Call;

    #[tokio::test]
    async fn before_there_is_a_member_calls_and_watches_hear_that_there_is_no_leader() {
        let bridge = Arc::new(Bridge::new());
        let _port = MemberPort::connect(&bridge);
        let refused = bridge.call(Call::Health, None, false).await.unwrap_err();
        assert_eq!(refused.refusal, Refusal::NoLeader);
        let mut stream = bridge.watch(false).unwrap();
        assert!(matches!(stream.next().await, Some(WatchItem::End(Refusal::NoLeader))));
    }
}
