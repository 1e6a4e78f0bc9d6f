//! The machine thread: turns, and the end of them.
//!
//! It runs the machine to completion on one thread: nothing else touches the machine, so it needs no lock, and a
//! command costs no hand-off between the socket and the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use triune_storage::{Index, StreamBatch, StreamId};
use triune_transport::{Nanos, Transport};

use super::handle::DriverExit;
use super::inbox::{Appetite, Inbox, Phase};
use super::log_thread::{LogEnd, LogThread, panic_words};
use super::read_thread::{Fetch, ReadEnd, ReadThread};
use super::stats::Counters;
use super::{DriverConfig, OutputSink};
use crate::{Machine, MachineEffect, MachineInput};

/// Everything the machine thread owns.
pub(crate) struct Runner<M: Machine> {
    pub(crate) config: DriverConfig,
    pub(crate) machine: M,
    pub(crate) inbox: Arc<Inbox<M::Request>>,
    pub(crate) log: LogThread,
    pub(crate) reads: ReadThread,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) outputs: Box<dyn OutputSink<M::Output>>,
    pub(crate) stats: Arc<Counters>,
}

/// How often a draining machine looks whether the log is idle: the last completion comes just before it is.
const DRAIN_LOOK: Duration = Duration::from_millis(1);

/// How the turns ended.
enum TurnsEnd {
    Drained,
    DrainTimedOut,
    Aborted,
    IoFailed,
}

/// Buffers that live over turns.
struct Buffers<M: Machine> {
    inputs: Vec<MachineInput<M::Request>>,
    effects: Vec<MachineEffect<M::Output>>,
    batches: Vec<StreamBatch>,
    releases: Vec<(StreamId, Index)>,
}

pub(crate) fn spawn<M: Machine + 'static>(
    runner: Runner<M>,
    exit: watch::Sender<Option<DriverExit>>,
) -> std::io::Result<()> {
    let name = format!("{}-machine", runner.config.name);
    // The thread ends by itself and says so through `exit`; nobody joins it.
    std::thread::Builder::new().name(name).spawn(move || {
        let end = run(runner);
        match &end {
            DriverExit::Stopped | DriverExit::StoppedEarly => tracing::debug!(?end, "driver ended"),
            DriverExit::Poisoned(_) | DriverExit::Panicked(_) => tracing::error!(?end, "driver ended"),
        }
        exit.send_replace(Some(end));
    })?;
    Ok(())
}

/// Runs to the end; when this returns, all of the driver's threads but this one have ended.
fn run<M: Machine>(mut runner: Runner<M>) -> DriverExit {
    let turns = catch_unwind(AssertUnwindSafe(|| runner.turns()));
    runner.inbox.stop();
    let reads = runner.reads.end();
    let finish = matches!(turns, Ok(TurnsEnd::Drained));
    let log = runner.log.end(finish);
    runner.inbox.close();
    let Runner { machine, outputs, .. } = runner;
    // The embedder's drops may panic too: they must not hide how it ended.
    let dropped = catch_unwind(AssertUnwindSafe(move || drop((machine, outputs))));
    if let Err(panic) = turns {
        return DriverExit::Panicked(panic_words(panic.as_ref()));
    }
    match (log, reads) {
        (LogEnd::Panicked(words), _) | (_, Some(ReadEnd::Panicked(words))) => DriverExit::Panicked(words),
        (LogEnd::Failed(error), _) | (_, Some(ReadEnd::Failed(error))) => DriverExit::Poisoned(error),
        (LogEnd::Closed | LogEnd::Abandoned, None) => match dropped {
            Err(panic) => DriverExit::Panicked(panic_words(panic.as_ref())),
            Ok(()) if finish => DriverExit::Stopped,
            Ok(()) => DriverExit::StoppedEarly,
        },
    }
}

impl<M: Machine> Runner<M> {
    fn turns(&mut self) -> TurnsEnd {
        let mut buffers =
            Buffers { inputs: Vec::new(), effects: Vec::new(), batches: Vec::new(), releases: Vec::new() };
        let mut drain_until = None;
        loop {
            let appetite = self.appetite();
            let phase = self.inbox.take(appetite, self.patience(), &mut buffers.inputs);
            if phase >= Phase::Aborting {
                return TurnsEnd::Aborted;
            }
            if self.turn(&mut buffers) {
                return TurnsEnd::IoFailed;
            }
            if phase == Phase::Open {
                continue;
            }
            let now = (self.config.clock)();
            let until = *drain_until.get_or_insert(now.after(self.config.drain_max));
            // In this order: an idle log has delivered its last completion.
            if self.log.is_idle() && self.reads.backlog() == 0 && self.inbox.is_empty() {
                return TurnsEnd::Drained;
            }
            if now >= until {
                return TurnsEnd::DrainTimedOut;
            }
            if self.appetite().is_none() || self.inbox.is_empty() {
                self.inbox.wait_completion(DRAIN_LOOK.min(until.since(now).into()));
            }
        }
    }

    /// One turn over `buffers.inputs`. Returns whether the log has failed.
    fn turn(&mut self, buffers: &mut Buffers<M>) -> bool {
        let now = (self.config.clock)();
        let mut failed = false;
        self.stats.turn(buffers.inputs.len() as u64);
        for input in buffers.inputs.drain(..) {
            if failed {
                // What the log or a peer said before its failure was reported is void: only requests still get word.
                if !matches!(input, MachineInput::Request(_)) {
                    continue;
                }
            }
            failed |= matches!(input, MachineInput::IoFailed);
            self.machine.step(now, input, &mut buffers.effects);
        }
        if !failed {
            if self.machine.next_deadline().is_some_and(|deadline| deadline <= now) {
                self.machine.step(now, MachineInput::Timeout, &mut buffers.effects);
            }
            self.machine.idle(now, &mut buffers.effects);
        }
        self.execute(buffers, failed);
        failed
    }

    /// Hands the writes to the log as one, then executes everything else in order.
    fn execute(&mut self, buffers: &mut Buffers<M>, failed: bool) {
        for effect in &mut buffers.effects {
            match effect {
                MachineEffect::Persist(batch) => buffers.batches.push(std::mem::take(batch)),
                MachineEffect::Release { group, upto } => buffers.releases.push((StreamId(group.0), *upto)),
                MachineEffect::Send { .. } | MachineEffect::Fetch { .. } | MachineEffect::Output(_) => {}
            }
        }
        if failed {
            buffers.batches.clear();
            buffers.releases.clear();
        }
        self.log.submit(&mut buffers.batches, &mut buffers.releases);
        let mut told = false;
        for effect in buffers.effects.drain(..) {
            match effect {
                MachineEffect::Persist(_) | MachineEffect::Release { .. } => {}
                MachineEffect::Send { to, channel, frame } => {
                    if let Err(refusal) = self.transport.send(to, channel, frame) {
                        self.stats.send_refused();
                        tracing::trace!(?to, ?channel, %refusal, "frame not sent");
                    }
                }
                MachineEffect::Fetch { group, req, first, last, bytes_max } => {
                    if !failed {
                        self.reads.submit(Fetch { group, req, first, last, bytes_max });
                    }
                }
                MachineEffect::Output(output) => {
                    self.outputs.output(output);
                    told = true;
                }
            }
        }
        if told {
            self.outputs.turn_end();
        }
    }

    /// What the next turn may take beside completions: nothing while the disk is behind.
    fn appetite(&self) -> Option<Appetite> {
        let behind =
            self.log.backlog_bytes() > self.config.log_bytes_max || self.reads.backlog() > self.config.fetches_max;
        (!behind).then_some(Appetite { each_max: self.config.turn_inputs_max.max(1) })
    }

    /// How long the machine may sleep. `None`: until an input comes.
    fn patience(&self) -> Option<Duration> {
        let deadline = self.machine.next_deadline()?;
        let now: Nanos = (self.config.clock)();
        Some(deadline.since(now).into())
    }
}
