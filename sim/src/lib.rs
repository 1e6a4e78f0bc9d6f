//! The seeded world: a virtual clock, a network and disks with faults, processes that crash, and history checkers.
#![forbid(unsafe_code)]

pub mod checker;
mod clock;
mod counters;
mod disk;
mod faults;
mod net;
mod queue;
mod rng;
mod runner;
mod threads;
mod trace;
mod transport;

pub use clock::{Clock, DRIFT_PPM_MAX, WALL_ORIGIN_MS};
pub use counters::{Counters, NeverHappened};
pub use disk::{CrashReport, DiskFaults, DiskImage, DiskOp, DiskStats, SECTOR_BYTES, SimDisk};
pub use faults::{Chaos, Fault, FaultClass, Swarm};
pub use net::{Arrival, Delivery, Net, NetConfig, NetEvent, NetStats, Refused, Topology};
pub use queue::EventQueue;
pub use rng::{Ppm, Rng};
pub use runner::{Plan, SeedFailure, SeedRun, Summary};
pub use trace::{Trace, TraceHash, TraceHasher};
pub use transport::{FRAME_BYTES_MAX, SimNetwork, SimTransport};
