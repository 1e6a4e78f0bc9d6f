//! The `triune` binary: parses the command line and runs what it asks for.

use std::process::ExitCode;

use triune_node::cli::{self, Faces};
use triune_node::shell::{dev, start};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(Faces { start: Some(start::run), dev: Some(dev::run) })
}
