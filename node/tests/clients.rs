//! Stock clients, the same session on Debian's etcd and on ours: what they print must be equal, once ids, addresses,
//! times and sizes are replaced by words.
//!
//! Behind the feature `clients`, because it needs `etcd`, `etcdctl` and `bash`; with the feature on, a missing one
//! fails. Each session starts on a fresh cluster, so that revisions are compared as they are.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a test: a panic is its way to fail, and it has no readers outside"
)]

#[path = "process/cluster.rs"]
#[allow(dead_code, reason = "the process tests use all of it")]
mod cluster;

use std::{
    path::Path,
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

use cluster::{Cluster, MEMBERS, Server};

/// The session says the same whichever member of etcd it talks to: what differs elsewhere is a difference of servers.
#[test]
fn the_etcdctl_session_is_the_same_on_every_run() {
    assert_equal("member 2 of etcd", etcd(), &session(Server::Etcd, 2));
}

#[test]
fn etcdctl_sees_no_difference_between_etcd_and_each_of_our_members() {
    for member in 0..MEMBERS {
        assert_equal(&format!("our member {member}"), etcd(), &session(Server::Triune { disk: "real" }, member));
    }
}

/// The session on a member of etcd, taken once.
fn etcd() -> &'static str {
    static SESSION: OnceLock<String> = OnceLock::new();
    SESSION.get_or_init(|| session(Server::Etcd, 0))
}

/// Runs the script on one member of a fresh cluster.
fn session(server: Server, member: usize) -> String {
    let mut cluster = Cluster::start(server);
    let endpoints = cluster.endpoints();
    await_health(&mut cluster, &endpoints.join(","));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/etcdctl.sh");
    let output = run(Command::new("bash").arg(script).arg(&endpoints[member]).arg(endpoints.join(",")));
    let text = String::from_utf8(output.stdout).expect("etcdctl prints text");
    let errors = String::from_utf8_lossy(&output.stderr);
    cluster.check_running();
    assert!(output.status.success() && errors.is_empty(), "the script itself failed: {errors}\n{text}");
    assert!(!text.contains("TIMEOUT") && text.contains("## the end"), "member {member} of {server:?}:\n{text}");
    text
}

fn await_health(cluster: &mut Cluster, endpoints: &str) {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        let health = run(Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoints, "--command-timeout", "2s"])
            .args(["endpoint", "health"]));
        if health.status.success() {
            return;
        }
        cluster.check_running();
        let words = String::from_utf8_lossy(&health.stderr);
        assert!(Instant::now() < patience, "no health: {words}\n{}", cluster.log_tail(0));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("this test needs {:?}: {error}", command.get_program()))
}

/// Fails with every line that differs, and the command it belongs to.
fn assert_equal(whose: &str, expected: &str, actual: &str) {
    if expected == actual {
        return;
    }
    let mut report = String::new();
    let (mut expected, mut actual) = (blocks(expected).into_iter(), blocks(actual).into_iter());
    loop {
        match (expected.next(), actual.next()) {
            (None, None) => break,
            (one, other) if one == other => {}
            (one, other) => {
                let (one, other) = (one.unwrap_or_default(), other.unwrap_or_default());
                report += &format!("--- etcd\n{one}\n--- {whose}\n{other}\n");
            }
        }
    }
    panic!("etcdctl sees a difference:\n{report}");
}

/// A session cut at its commands.
fn blocks(session: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in session.lines() {
        if line.starts_with("$ ") || line.starts_with("## ") {
            blocks.push(String::new());
        }
        let last = blocks.last_mut().expect("begun with one");
        last.push_str(line);
        last.push('\n');
    }
    blocks
}
