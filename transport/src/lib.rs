//! Opaque frames on numbered channels between the members of a cluster, and the ids all crates share.
//!
//! **Problem.** Consensus, transactions and caches all need to hand small messages to named peers without ever
//! waiting, to learn when messages may have been lost, and to run unchanged over memory, TCP and a simulated network.
//!
//! **What it is not.** It is no RPC system: it names no message, matches no reply to a request, retries nothing.
//!
//! **Duties of the embedder.**
//! 1. Give every member the ids and addresses of its peers.
//! 2. Call [`Transport::recv`] from one task, promptly: receive queues are bounded, and a full one stops reading.
//! 3. Treat [`SendError`] as loss: protocols must survive it.
//! 4. Call [`Transport::shutdown`] before dropping.
//!
//! **Guarantees.** Per (peer, channel) the frames of one link session arrive in order, once, without gap; a session
//! ends when that can no longer be promised. **Not guaranteed:** that a frame arrives at all; any order between
//! channels; secrecy without TLS.
//!
//! # Example
//! Two members in one process. Over TCP only the first two lines differ: see `tcp`.
//! ```
//! use bytes::Bytes;
//! use triune_transport::mem::{MemConfig, MemNetwork};
//! use triune_transport::{Channel, Event, NodeId, Transport};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let network = MemNetwork::new(MemConfig::default());
//! let (a, b) = (network.join(NodeId(1)).unwrap(), network.join(NodeId(2)).unwrap());
//! a.send(NodeId(2), Channel::Vote, Bytes::from_static(b"may I lead?")).unwrap();
//! // A session begins before its first frame.
//! assert!(matches!(b.recv().await, Some(Event::Up { peer: NodeId(1), .. })));
//! assert!(matches!(b.recv().await, Some(Event::Frame { frame, .. }) if frame == "may I lead?"));
//! a.shutdown(0).await;
//! assert!(matches!(b.recv().await, Some(Event::Down { peer: NodeId(1), .. })));
//! # });
//! ```
//!
//! # Features
//! | feature | adds |
//! |---|---|
//! | `mem` | `mem`: links inside one process |
//! | `tcp` | `tcp`: framed, checksummed TCP with a handshake and reconnect |
//! | `contract` | `contract`: what every implementation must do, as tests to run on your own |

#![forbid(unsafe_code)]

mod channel;
#[cfg(feature = "contract")]
pub mod contract;
mod ids;
#[cfg(feature = "mem")]
pub mod mem;
#[cfg(feature = "tcp")]
pub mod tcp;
mod transport;

pub use channel::{Channel, Lane, LinkSession};
pub use ids::{ClusterId, GroupId, Nanos, NodeId};
pub use transport::{Event, SendError, Transport};
