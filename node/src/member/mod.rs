//! The pure core of a member: protocol replicas, stores, sessions, watches and the doors' side, without a thread,
//! socket, file or clock. The shell runs it; the simulator runs exactly the same.
//!
//! ```text
//!          frames, persisted, fetched                  requests
//!                    │                                     │
//!              ┌─────▼─────┐  committed entries  ┌─────────▼┐
//!              │   order   ├────────┐    ┌───────┤   edge   │
//!              │ replicas  │   ┌────▼────▼─┐     │ waiting  │
//!              │ stamping  │◀──┤   state   ├────▶│ calls    │
//!              └───────────┘   │ apply     │     └──────────┘
//!                              │ reads     │  answers, watches, flushes
//!                              └───────────┘
//! ```
//!
//! **Duties of the shell**: run it as any [`triune_consensus::Machine`], and execute the outputs of [`api`]:
//! 1. Commit [`api::Output::Flush`] batches in the order given, off the thread; answer with `Flushed`.
//! 2. Execute [`api::Output::Snapshot`] behind all flushes asked before; the stream's format is in `snapshot`.
//! 3. Hand replies and watch responses to the doors; give back credit with `Taken`.
//! 4. Keep the transport's addresses as [`api::Output::Members`] says ([`system::MemberRecord::peers`]).
//! 5. End the member on [`api::Output::Fatal`].

pub mod api;
mod config;
pub mod formation;
pub mod system;

pub use config::{FormedMember, GroupRecovered, MemberConfig, MemberLimits};
