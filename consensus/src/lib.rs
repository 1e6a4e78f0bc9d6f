//! Raft, Multi-Paxos and Zab as pure state machines behind one trait, with one driver.
#![forbid(unsafe_code)]
