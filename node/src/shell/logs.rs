//! The log: events on stderr, as lines for people or as JSON. One subscriber a process.

use std::str::FromStr;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::config::{LogFormat, Node};

/// Starts logging. A second call in one process changes nothing.
///
/// # Errors
/// When the level does not parse.
pub(super) fn init(node: &Node) -> anyhow::Result<()> {
    let targets = Targets::from_str(&node.log_level)
        .map_err(|error| anyhow::anyhow!("node.log_level = {:?}: {error}", node.log_level))?;
    let lines = fmt::layer().with_writer(std::io::stderr).with_thread_names(true).with_target(false);
    let layer = match node.log {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let _already = tracing_subscriber::registry().with(layer.with_filter(targets)).try_init();
    Ok(())
}
