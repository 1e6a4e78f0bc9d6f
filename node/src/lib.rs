//! What the `triune` binary is made of, as a library, so that the binary and its tests share one set of types.
//!
//! **What it is not.** No public API: each store is a crate of its own, made to be imported; this one assembles them.

#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod config;
pub mod doors;
pub mod member;
pub mod pb;
pub mod shell;
