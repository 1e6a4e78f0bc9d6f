//! The `triune` binary.
fn main() {}
