//! `triune start`: one member in the foreground, until a signal ends it.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Resolved;

use super::life::{End, live};
use super::{home, logs};

/// A bug of ours: `EX_SOFTWARE` of sysexits.
pub(super) const EXIT_PANICKED: u8 = 70;
/// Storage failed: `EX_IOERR`.
pub(super) const EXIT_POISONED: u8 = 74;
/// A second Ctrl-C.
const EXIT_INTERRUPTED: i32 = 130;

/// Runs the member; returns when it has ended, with the code to exit with.
#[must_use]
pub fn run(config: Resolved) -> ExitCode {
    if let Err(error) = logs::init(&config.node) {
        return refuse(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_name("triune").enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error.into()),
    };
    let end = runtime.block_on(async {
        let stop = match on_signals() {
            Ok(stop) => stop,
            Err(error) => return End::Refused(error.into()),
        };
        loop {
            let name = config.node.name.clone();
            let end = live(&config, stop.clone(), move || tracing::info!(name, "ready")).await;
            let End::Damaged(why) = &end else { return end };
            tracing::error!(why, "this disk must not vote any more");
            if let Err(error) = home::retire(&config) {
                return End::Refused(error.context("the damaged data cannot be set aside"));
            }
        }
    });
    match &end {
        End::Stopped => ExitCode::SUCCESS,
        End::Refused(error) => refuse(error),
        End::Poisoned(_) | End::Damaged(_) => {
            tracing::error!("{end}");
            ExitCode::from(EXIT_POISONED)
        }
        End::Panicked(_) => {
            tracing::error!("{end}");
            ExitCode::from(EXIT_PANICKED)
        }
    }
}

/// Turns true at the first Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once.
///
/// # Errors
/// When the system takes no handler.
pub(super) fn on_signals() -> std::io::Result<watch::Receiver<bool>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (tell, stop) = watch::channel(false);
    tokio::spawn(async move {
        let mut interrupts = 0;
        loop {
            tokio::select! {
                _ = interrupt.recv() => interrupts += 1,
                _ = terminate.recv() => {}
            }
            if interrupts > 1 {
                std::process::exit(EXIT_INTERRUPTED);
            }
            tell.send_replace(true);
        }
    });
    Ok(stop)
}

/// Says what is wrong and what to do.
pub(super) fn refuse(error: &anyhow::Error) -> ExitCode {
    eprintln!("triune: {error:#}");
    ExitCode::FAILURE
}
