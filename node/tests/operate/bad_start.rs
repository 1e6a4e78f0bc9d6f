//! Wrong flags, wrong directories, ports in use: an exit code, and words that say what to do.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::cluster::{Cluster, Server};
use super::{channel, runtime, serving};

fn triune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_triune")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs it and expects it to end by itself, not well, with these words on stderr.
fn refused(args: &[&str], words: &[&str]) {
    let output = triune(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} was not refused:\n{text}");
    for word in words {
        assert!(text.contains(word), "{args:?} does not say {word:?} but:\n{text}");
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn wrong_flags_and_keys_are_refused_by_name() {
    refused(&["start", "--frobnicate"], &["--frobnicate"]);
    let dir = scratch("bad-config");
    let file = dir.join("triune.toml");
    std::fs::write(&file, "[etcd]\nadress = \"127.0.0.1:1\"\n").unwrap();
    refused(&["start", "--config", file.to_str().unwrap()], &["adress", "etcd.addr"]);
    std::fs::write(&file, "[kafka]\naddr = \"127.0.0.1:1\"\n").unwrap();
    refused(&["start", "--config", file.to_str().unwrap()], &["kafka"]);
    refused(&["start", "--etcd-addr", "0.0.0.0:2379"], &["--etcd-advertise"]);
    refused(&["start", "--etcd-addr", "0.0.0.0:2379", "--etcd-advertise", "h:2379"], &["--insecure"]);
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = scratch("port-in-use");
    let data = dir.join("d");
    let free = |_: u8| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    refused(
        &[
            "start",
            "--data-dir",
            data.to_str().unwrap(),
            "--doors",
            "etcd",
            "--peer-addr",
            &free(0),
            "--etcd-addr",
            &addr,
        ],
        &[&addr, "in use"],
    );
    refused(
        &[
            "start",
            "--data-dir",
            data.to_str().unwrap(),
            "--doors",
            "etcd",
            "--peer-addr",
            &addr,
            "--etcd-addr",
            &free(1),
        ],
        &[&addr, "in use"],
    );
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_directory_in_use_of_another_member_or_of_another_format_is_refused() {
    runtime().block_on(async {
        let cluster = Cluster::start(Server::Triune { disk: "real" });
        for endpoint in cluster.endpoints() {
            serving(&channel(&endpoint)).await;
        }
        let data = cluster.data(0);
        let start = |name: &str| {
            let port = |_: u8| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let (peer, etcd) = (port(0), port(1));
            let args = ["start", "--name", name, "--data-dir", data.to_str().unwrap(), "--doors", "etcd"];
            triune(&[&args[..], &["--peer-addr", &peer, "--etcd-addr", &etcd]].concat())
        };
        let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let in_use = start("m0");
        assert!(!in_use.status.success() && words(&in_use).contains("in use"), "{}", words(&in_use));
        drop_but_keep(cluster, |cluster| {
            let other = start("elsewhere");
            assert!(!other.status.success() && words(&other).contains("m0"), "{}", words(&other));
            std::fs::write(cluster.data(0).join("identity"), b"not an identity at all").unwrap();
            let damaged = start("m0");
            assert!(!damaged.status.success() && words(&damaged).contains("identity"), "{}", words(&damaged));
        });
    });
}

/// Kills the cluster's processes, runs `then` on their directories, then removes these.
fn drop_but_keep(mut cluster: Cluster, then: impl FnOnce(&Cluster)) {
    cluster.kill_all();
    std::thread::sleep(Duration::from_millis(100)); // locks of killed processes go with them; let the kernel finish
    then(&cluster);
}
