//! `triune dev`: a whole cluster in this process, each member as if it were a process of its own.
//!
//! Every member owns its runtime, threads, ports and lock. One that fails is dropped whole, without another write, and
//! started again from its disk after a pause of 1 s, doubling to 30; the others go on. Nothing here is shared but the
//! process and its log.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::{Dev, Door, Resolved};

use super::life::{End, live};
use super::start::{on_signals, refuse};
use super::{home, logs};

/// The first pause before a member is started again; doubles with each failure.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A life so long pays off earlier failures.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How long a dead member's tasks may take to be dropped.
const DROP_WITHIN: Duration = Duration::from_secs(2);

/// What a member tells.
enum Word {
    /// It serves.
    Ready(usize),
    /// It cannot start.
    Refused(String, anyhow::Error),
    /// Its thread ends.
    Ended,
}

/// Runs the cluster; returns when all members have ended, with the code to exit with.
#[must_use]
pub fn run(dev: Dev) -> ExitCode {
    let Some(first) = dev.members.first() else { return ExitCode::SUCCESS };
    if let Err(error) = logs::init(&first.node) {
        return refuse(&error);
    }
    if dev.fresh
        && let Err(error) = empty_all(&dev, first)
    {
        return refuse(&error);
    }
    let signals =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("signals").enable_all().build();
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return refuse(&error.into()),
    };
    let signalled = match signals.block_on(async { on_signals() }) {
        Ok(signalled) => signalled,
        Err(error) => return refuse(&error.into()),
    };
    let (end, stop) = watch::channel(false);
    let end_on_signal = end.clone();
    let mut heard = signalled;
    signals.spawn(async move {
        let _ever = heard.wait_for(|stop| *stop).await;
        end_on_signal.send_replace(true);
    });
    let (tell, words) = mpsc::channel();
    let mut threads = Vec::new();
    for (at, member) in dev.members.iter().enumerate() {
        let member = one_of(&dev, at, member);
        let (stop, tell) = (stop.clone(), tell.clone());
        let thread = std::thread::Builder::new().name(member.node.name.clone());
        match thread.spawn(move || lives(at, member, &stop, &tell)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                end.send_replace(true);
                return refuse(&error.into());
            }
        }
    }
    drop(tell);
    let code = attend(&dev, &words, &end);
    for thread in threads {
        let _panicked = thread.join();
    }
    code
}

/// Empties every member's directory, also of members that an earlier `dev` had and this one has not: left over, they
/// would belong to another cluster the next time.
fn empty_all(dev: &Dev, first: &Resolved) -> anyhow::Result<()> {
    dev.members.iter().try_for_each(home::empty)?;
    let Some(parent) = first.node.data_dir.parent() else { return Ok(()) };
    for entry in std::fs::read_dir(parent)? {
        let data_dir = entry?.path();
        let name = data_dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix('m').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let known = dev.members.iter().any(|member| member.node.data_dir == data_dir);
        if number && !known && data_dir.join(triune_storage::layout::IDENTITY).is_file() {
            let mut member = first.clone();
            member.node.data_dir = data_dir;
            home::empty(&member)?;
        }
    }
    Ok(())
}

/// Listens to the members until all have ended.
fn attend(dev: &Dev, words: &mpsc::Receiver<Word>, end: &watch::Sender<bool>) -> ExitCode {
    let mut ready = vec![false; dev.members.len()];
    let mut shown = false;
    let mut code = ExitCode::SUCCESS;
    while let Ok(word) = words.recv() {
        match word {
            Word::Ready(at) => {
                if let Some(ready) = ready.get_mut(at) {
                    *ready = true;
                }
                if !shown && ready.iter().all(|ready| *ready) {
                    shown = true;
                    show(dev);
                }
            }
            Word::Refused(name, error) => {
                code = refuse(&error.context(format!("member {name}")));
                end.send_replace(true);
            }
            Word::Ended => {}
        }
    }
    code
}

/// A failing disk fails for one member and once: the point is to see the others go on and it come back.
fn one_of(dev: &Dev, at: usize, member: &Resolved) -> Resolved {
    let mut member = member.clone();
    if at > 0 && dev.members.len() > 1 {
        member.storage.disk.fail_sync = None;
    }
    member
}

/// One member's thread: life after life.
fn lives(at: usize, mut member: Resolved, stop: &watch::Receiver<bool>, tell: &mpsc::Sender<Word>) {
    let mut pause = PAUSE_MIN;
    let mut first = true;
    while !*stop.borrow() {
        let began = Instant::now();
        let Some(end) = one_life(at, &member, stop, tell) else { break };
        match end {
            End::Stopped => break,
            End::Refused(error) if first => {
                let _gone = tell.send(Word::Refused(member.node.name.clone(), error));
                break;
            }
            End::Damaged(_) => {
                tracing::error!("{end}");
                if let Err(error) = home::retire(&member) {
                    tracing::error!(error = %format!("{error:#}"), "the damaged data cannot be set aside");
                }
            }
            End::Poisoned(_) | End::Panicked(_) | End::Refused(_) => tracing::error!("{end}"),
        }
        first = false;
        member.storage.disk.fail_sync = None;
        if began.elapsed() >= LONG_LIFE {
            pause = PAUSE_MIN;
        }
        tracing::warn!(seconds = pause.as_secs(), "this member starts again from its disk after a pause");
        if wait(stop, pause) {
            break;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    let _gone = tell.send(Word::Ended);
}

/// One life on a runtime of its own. `None`: there is no runtime to be had.
fn one_life(at: usize, member: &Resolved, stop: &watch::Receiver<bool>, tell: &mpsc::Sender<Word>) -> Option<End> {
    let name = format!("{}-io", member.node.name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _gone = tell.send(Word::Refused(member.node.name.clone(), error.into()));
            return None;
        }
    };
    let tell = tell.clone();
    let ready = move || {
        let _gone = tell.send(Word::Ready(at));
    };
    let end = runtime.block_on(live(member, stop.clone(), ready));
    runtime.shutdown_timeout(DROP_WITHIN);
    Some(end)
}

/// Waits for `pause`; whether the stop came first.
fn wait(stop: &watch::Receiver<bool>, pause: Duration) -> bool {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return true };
    let mut stop = stop.clone();
    runtime.block_on(async { tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() })
}

/// The one block on stdout: where everything is, and what to try.
fn show(dev: &Dev) {
    let mut text = format!("\ntriune: {} members are ready\n\n", dev.members.len());
    for member in &dev.members {
        let mut line = format!("  {}", member.node.name);
        for door in &member.node.doors {
            line += &match door {
                Door::Etcd => format!("  etcd {}", member.etcd.advertise),
                Door::Admin => format!("  admin http://{}", member.admin.addr),
            };
        }
        line += &format!("  peers {}  data {}\n", member.peer.advertise, member.node.data_dir.display());
        text += &line;
    }
    let endpoints: Vec<_> = dev.members.iter().map(|member| member.etcd.advertise.to_string()).collect();
    text += &format!("\ntry: etcdctl --endpoints {} put hello world\n", endpoints.join(","));
    let mut stdout = std::io::stdout().lock();
    // Nobody may be reading; the members serve all the same.
    let _unread = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
