//! What must hold over a whole cluster, checked from outside after every step of a simulation.

mod image;
#[cfg(feature = "raft")]
pub mod raft;

pub use image::Image;
