//! The seeded world: a virtual clock, a network and disks with faults, processes that crash, and history checkers.
//!
//! **Problem.** A replicated system fails when a message, a power cut and a slow disk meet in one order out of millions.
//! Real time finds that order once a year and cannot repeat it. A world that is a function of one seed finds it in
//! seconds and repeats it as often as it takes to understand it.
//!
//! **What it is not.** No runtime, no scheduler for threads or futures, no model checker. It holds no nodes: it knows
//! neither what a node is nor what it says. It is the parts of which a simulation is made, each pure and each alone.
//!
//! | part | is |
//! |---|---|
//! | [`Rng`] | the one source of randomness, stable for ever |
//! | [`EventQueue`], [`Clock`] | virtual time, true and as each node sees it |
//! | [`Net`], [`Topology`] | the fate of frames, sessions of links, partitions whole and partial |
//! | [`SimDisk`], [`DiskImage`] | live and durable bytes and names, power cuts, faults; a `storage::Disk` |
//! | [`Swarm`], [`Chaos`], [`Fault`] | what goes wrong in this seed, and when, within what is survivable |
//! | [`Trace`], [`Counters`] | what happened: a 128-bit hash, and proof that rare things did |
//! | [`Plan`], [`Summary`] | many seeds in slices or on threads; the first failure and its one command |
//! | [`SimNetwork`], [`SimTransport`] | the async `Transport` trait on top, with a poll-only executor |
//! | [`checker`] | linearizability by search, and everything against the order of a watch |
//!
//! **Duties of the embedder.**
//! 1. Draw everything from one [`Rng`], [forked](Rng::fork) by label; use no other source, no clock, no `HashMap` whose
//!    order shows.
//! 2. Put every [`Delivery`] into the queue and hand it to [`Net::arrive`] when due; never look inside.
//! 3. Give a machine its own [`Clock`]'s time, and set its timer at [`Clock::true_time_of`] its deadline.
//! 4. Complete a write at the virtual time at which `sync` is called on its [`SimDisk`], not before.
//! 5. Carry out every [`Fault`], and tell [`Chaos::repaired`] when a damaged node is whole again.
//! 6. Check invariants after every step; record every event in the [`Trace`].
//!
//! **Guarantees.** Equal seeds give equal traces, on any machine. Faults stay within the atlas. **Not guaranteed:** that
//! a seed which found a bug still finds it after the code changed; keep the reduced script instead.
//!
//! # Example
//! A toy protocol with a bug: the leader counts acknowledgements, but not whose. With copied frames one follower's
//! answer counts twice, and a write is called committed that only one follower has.
//! ```
//! use triune_sim::{EventQueue, Net, NetConfig, NetEvent, Plan, Ppm, Rng, SeedRun, Trace};
//! use triune_transport::{Channel, Nanos, NodeId};
//!
//! fn one_seed(seed: u64) -> Result<SeedRun, String> {
//!     let rng = Rng::new(seed);
//!     let config = NetConfig { sessions: false, loss: Ppm::percent(20), duplication: Ppm::percent(5), ..NetConfig::default() };
//!     let (mut net, mut queue, mut out) = (Net::new(config, &rng), EventQueue::new(), Vec::new());
//!     let (mut trace, mut acks, mut has_it) = (Trace::new(), 0, 0);
//!     (0..5).for_each(|n| net.start(Nanos::ZERO, NodeId(n), &mut out));
//!     (1..5).for_each(|n| net.send(Nanos::ZERO, NodeId(0), NodeId(n), Channel::Log, "write", &mut out).unwrap());
//!     loop {
//!         out.drain(..).for_each(|delivery| queue.push(delivery.at, delivery));
//!         let Some((now, delivery)) = queue.pop() else { break };
//!         let Some(arrival) = net.arrive(now, delivery, &mut out) else { continue };
//!         trace.event(now, arrival.to, "arrive", &arrival);
//!         match arrival.event {
//!             NetEvent::Frame { frame: "write", .. } => {
//!                 has_it |= 1_u32 << arrival.to.0;
//!                 let _ = net.send(now, arrival.to, NodeId(0), Channel::Log, "ack", &mut out);
//!             }
//!             _ => acks += 1, // the bug: whose?
//!         }
//!         if acks == 2 && has_it.count_ones() < 2 {
//!             return Err("committed without a quorum".into());
//!         }
//!     }
//!     Ok(SeedRun { steps: trace.events(), hash: trace.hash(), ..SeedRun::default() })
//! }
//!
//! let plan = Plan { first_seed: 0, seeds: 10_000, steps_max: 0, replay: "cargo run -- --seed {seed}".into() };
//! let failure = plan.run(one_seed).failure.expect("a seed finds the bug");
//! assert_eq!(failure.message, "committed without a quorum");
//! // The same seed fails the same way, and a seed that holds has one trace.
//! assert_eq!(one_seed(failure.seed), Err(failure.message));
//! assert_eq!(one_seed(0).map(|run| run.hash), one_seed(0).map(|run| run.hash));
//! ```
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
