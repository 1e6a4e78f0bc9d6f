//! The seeded world: a virtual clock, a network and disks with faults, processes that crash, and history checkers.
#![forbid(unsafe_code)]
