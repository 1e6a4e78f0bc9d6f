//! Three server processes on loopback: ours, or Debian's etcd to prove the tests themselves.
//!
//! A cluster kills only what it started, and on drop all of that. Ports lie below the ephemeral range, so that a
//! member that is down does not lose its port to an outgoing connection. On a panic the directory stays, with a log
//! for each member.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
};

use rustix::process::{Pid, Signal, kill_process};

/// Which server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// `triune start` of this build, with a `--disk`.
    Triune {
        /// As on the command line.
        disk: &'static str,
    },
    /// Debian's `etcd`.
    Etcd,
}

/// Three members, each with a directory and two ports.
pub struct Cluster {
    server: Server,
    extra: Vec<&'static str>,
    dir: PathBuf,
    members: Vec<Member>,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl Cluster {
    /// Starts three members; they form a cluster on their own time.
    pub fn start(server: Server) -> Self {
        Self::start_with(server, &[])
    }

    /// The same with more flags for each.
    pub fn start_with(server: Server, extra: &[&'static str]) -> Self {
        let mut cluster = Self::prepare(server);
        cluster.extra = extra.to_vec();
        (0..MEMBERS).for_each(|at| cluster.launch(at));
        cluster
    }

    /// Three members that do not run yet.
    pub fn prepare(server: Server) -> Self {
        let dir = scratch();
        let members = (0..MEMBERS).map(|_| Member { client_port: free_port(), peer_port: free_port(), child: None });
        Self { server, extra: Vec::new(), dir, members: members.collect() }
    }

    /// `host:port` for peers, of every member.
    #[allow(dead_code, reason = "shared with the operate tests")]
    pub fn peer_addrs(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("127.0.0.1:{}", member.peer_port)).collect()
    }

    /// A member's data directory.
    #[allow(dead_code, reason = "shared with the operate tests")]
    pub fn data(&self, at: usize) -> PathBuf {
        self.dir.join(format!("m{at}"))
    }

    /// All a member has logged.
    pub fn log_text(&self, at: usize) -> String {
        fs::read(self.log(at)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// `host:port` for etcd clients, of every member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("127.0.0.1:{}", member.client_port)).collect()
    }

    /// Where the data and logs lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a member that is down.
    pub fn launch(&mut self, at: usize) {
        assert!(self.members[at].child.is_none(), "member {at} runs already");
        let log = File::options().create(true).append(true).open(self.log(at)).expect("a log file");
        let mut command = self.command(at);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TRIUNE_") || name.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        let errors = log.try_clone().expect("a second handle");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.server));
        self.members[at].child = Some(child);
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.members[at].child.take() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be awaited");
        }
    }

    /// `kill -9` to all, then waits: no member sees another one die first and acts on it.
    pub fn kill_all(&mut self) {
        let mut children: Vec<Child> = self.members.iter_mut().filter_map(|member| member.child.take()).collect();
        children.iter_mut().for_each(|child| child.kill().expect("our own child can be killed"));
        for mut child in children {
            child.wait().expect("our own child can be awaited");
        }
    }

    /// SIGSTOP.
    pub fn pause(&self, at: usize) {
        self.signal(at, Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self, at: usize) {
        self.signal(at, Signal::CONT);
    }

    /// Fails if a member that should run has exited by itself.
    pub fn check_running(&mut self) {
        for at in 0..MEMBERS {
            let exited = self.members[at].child.as_mut().and_then(|child| child.try_wait().expect("our own child"));
            if let Some(status) = exited {
                panic!("member {at} exited by itself, {status}:\n{}", self.log_tail(at));
            }
        }
    }

    /// The end of a member's log.
    pub fn log_tail(&self, at: usize) -> String {
        let text = self.log_text(at);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn signal(&self, at: usize, signal: Signal) {
        let child = self.members[at].child.as_ref().expect("only a running member is signalled");
        kill_process(Pid::from_child(child), signal).expect("our own child can be signalled");
    }

    fn log(&self, at: usize) -> PathBuf {
        self.dir.join(format!("m{at}.log"))
    }

    fn command(&self, at: usize) -> Command {
        let Member { client_port, peer_port, .. } = self.members[at];
        let data = self.dir.join(format!("m{at}"));
        let peers = |scheme: &str| {
            let peer = |(at, member): (usize, &Member)| format!("m{at}={scheme}127.0.0.1:{}", member.peer_port);
            self.members.iter().enumerate().map(peer).collect::<Vec<_>>().join(",")
        };
        let (mut command, args) = match self.server {
            Server::Triune { disk } => (
                Command::new(env!("CARGO_BIN_EXE_triune")),
                vec![
                    ("--peer-addr", format!("127.0.0.1:{peer_port}")),
                    ("--doors", "etcd".to_owned()),
                    ("--etcd-addr", format!("127.0.0.1:{client_port}")),
                    ("--initial-cluster", peers("")),
                    ("--disk", disk.to_owned()),
                ],
            ),
            Server::Etcd => (
                Command::new("etcd"),
                vec![
                    ("--listen-client-urls", format!("http://127.0.0.1:{client_port}")),
                    ("--advertise-client-urls", format!("http://127.0.0.1:{client_port}")),
                    ("--listen-peer-urls", format!("http://127.0.0.1:{peer_port}")),
                    ("--initial-advertise-peer-urls", format!("http://127.0.0.1:{peer_port}")),
                    ("--initial-cluster", peers("http://")),
                ],
            ),
        };
        if let Server::Triune { .. } = self.server {
            command.arg("start");
        }
        command.arg("--name").arg(format!("m{at}")).arg("--data-dir").arg(data);
        for (flag, value) in args {
            command.arg(flag).arg(value);
        }
        command.args(&self.extra);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        if std::thread::panicking() {
            eprintln!("data and logs of the members are kept in {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A fresh directory below the build's own scratch space.
pub fn scratch() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster-{}-{count}", std::process::id()));
    fs::create_dir_all(&dir).expect("a scratch directory");
    dir
}

/// A loopback port nobody listens on, and which this process hands out once.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 1_000).expect("below a thousand") * 20;
    for _ in 0..PORTS {
        let port = PORT_FIRST + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no loopback port is free from {PORT_FIRST} on");
}

/// A `--port-offset` under which every port of a `dev` of three members is free.
#[allow(dead_code, reason = "shared with the operate tests")]
pub fn free_ports_offset() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..100)
        .map(|_| free_port() - 1_000)
        .find(|offset| [2_379, 2_380, 8_379].iter().all(|base| (0..3).all(|n| free(base + 100 * n + offset))))
        .expect("a free range of ports")
}

/// Members of every cluster here.
pub const MEMBERS: usize = 3;
const PORT_FIRST: u16 = 10_000;
/// Up to 32,000: Linux hands out ephemeral ports from 32,768 on.
const PORTS: u16 = 22_000;
const LOG_TAIL_LINES: usize = 20;
