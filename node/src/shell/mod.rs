//! The shell: everything of a member that touches threads, files, sockets and clocks. It decides nothing.
//!
//! | module | runs |
//! |---|---|
//! | [`start`], [`dev`] | one member until a signal; several, each dropped and started again on its own |
//! | `life` | one life of one member, from lock to unlock |
//! | `home` | its directory: identity, log, store |
//! | `meet` | words by address: forming the cluster, coming back |
//! | `port`, `store_thread` | the ways into and out of the driver's thread |
//! | `listen`, [`admin`] | connections, and the admin pages |

pub mod admin;
mod authority;
pub mod dev;
mod home;
mod life;
mod listen;
mod logs;
mod meet;
mod port;
pub mod start;
mod store_thread;
