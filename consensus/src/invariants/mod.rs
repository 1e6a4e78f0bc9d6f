//! What must hold over a whole cluster, checked from outside after every step of a simulation.

mod image;

pub use image::Image;
