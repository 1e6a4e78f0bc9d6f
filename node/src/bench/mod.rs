//! `triune bench etcd`: load for any server that speaks the etcd v3 API, ours or another's.
//!
//! One thread, so that it takes little of the cores it shares with the servers: requests are encoded by hand-fed
//! prost and sent on bare HTTP/2 streams (`wire`). A closed loop keeps `--clients` requests in flight. An open loop
//! (`--rate`) has a due time for every request, and latency counts from it: a server that stalls is charged for the
//! requests that had to wait (no coordinated omission). What the timer of this process oversleeps is not charged.
//!
//! Phases: connect, fill the keys (reads need them), warm up unrecorded, measure. Server CPU is read from `/proc`
//! right before and after the measured phase.

mod drive;
mod process;
mod report;
mod watch;
mod wire;
mod workload;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

pub use workload::Workload;

/// What to send, how fast, and to whom.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Addresses to spread the connections over, by commas
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', default_value = "127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// What to send
    #[arg(long, value_enum, default_value_t = Workload::Put)]
    workload: Workload,
    /// Requests in flight; in an open loop, the most in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Connections, shared by the clients [default: one for each endpoint]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: Option<u32>,
    /// Requests due each second, evenly spaced: an open loop [default: a closed loop]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Stop after so many requests [default: see --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Stop after so many seconds, if --ops is not given
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Seconds of load before the measurement
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup_seconds: u32,
    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
    /// Size of a value
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    value_bytes: u32,
    /// Of a mixed workload, the share of linearizable reads; the rest are puts
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    read_percent: u32,
    /// Of the watch workload, the number of watchers; each sees every put
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    watchers: u32,
    /// Process ids of all servers, by commas, to measure their CPU and memory
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    pids: Vec<u32>,
    /// Seed of the choice of keys
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print one JSON object in place of text
    #[arg(long)]
    json: bool,
}

impl Options {
    fn connections(&self) -> u32 {
        let least = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).max(1);
        self.connections.unwrap_or(least)
    }
}

/// Runs the load and prints the report. Fails if nothing succeeded, or a watcher missed an event.
#[must_use]
pub fn run(options: Options) -> ExitCode {
    let json = options.json;
    match measure(options) {
        Ok(report) => {
            report.print(json);
            if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("triune: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: Options) -> anyhow::Result<report::Report> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, drive::run(options))
}
