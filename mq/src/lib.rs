//! A durable, ordered message queue that speaks Kafka.
//!
//! Nothing here yet: this crate holds its place in the workspace, and the arrow test already watches what it may use.

#![forbid(unsafe_code)]
