//! One life of one member: from an unopened directory to an orderly end, or to the first thing that cannot be survived.
//!
//! ```text
//! lock ─ identity ─ peers' port ─ doors (answer "no leader") ─ formation ─ log, store ─ Member ─ driver ─ serving
//!                                                                                                        │ stop
//! unlock ─ transport ─ store thread ─ driver, log closed clean ─ doors ─ leaderships moved ─ not ready ◄──┘
//! ```
//! 1. When [`live`] returns, nothing of the member runs any more and its directory is unlocked.
//! 2. After the log, the store or the machine failed, nothing is written.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use triune_consensus::driver::{Driver, DriverConfig, DriverExit, DriverHandle, EventSink, LogError, OutputSink};
use triune_consensus::{Config, Configuration, Recovered};
use triune_storage::{Disk, Identity};
use triune_transport::tcp::{TcpConfig, TcpTransport};
use triune_transport::{ClusterId, Event, Nanos, NodeId, Transport};

use crate::config::{Door, Resolved};
use crate::doors::etcd::{EtcdConfig, EtcdDoor};
use crate::doors::{Bridge, Port as _};
use crate::member::api::{Fatal, Output, Request};
use crate::member::system::MemberRecord;
use crate::member::{FormedMember, GroupRecovered, Member, MemberConfig, MemberError, MemberLimits};

use super::admin::{Admin, Figure};
use super::home::{self, GROUP, Stored};
use super::listen;
use super::meet::{Formed, Host, Meeting};
use super::port::MemberPort;
use super::store_thread::{Job, Jobs, StoreThread};

/// How long leaderships may take to move, and requests to end, in a stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long doors may take to close after that.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// How long frames may take to leave in a stop, in ms.
const FLUSH_MS: u64 = 500;
/// How often a member that is not ready looks whether it is.
const READY_LOOK: Duration = Duration::from_millis(20);
/// How often a member that is not ready says why.
const READY_LOG: Duration = Duration::from_secs(5);

/// How a life ended.
pub(super) enum End {
    /// As asked.
    Stopped,
    /// The log or the store failed: start again from disk.
    Poisoned(String),
    /// A bug of ours: as after a crash.
    Panicked(String),
    /// What the disk holds is damaged: set it aside and come back.
    Damaged(String),
    /// It cannot start, or go on, until somebody changes something.
    Refused(anyhow::Error),
}

impl End {
    /// [`End::Refused`] with these words.
    pub(super) fn refused(words: String) -> Self {
        Self::Refused(anyhow::Error::msg(words))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Poisoned(why) => write!(f, "storage failed, nothing more was written: {why}"),
            Self::Panicked(why) => write!(f, "a bug: {why}"),
            Self::Damaged(why) => write!(f, "the data is damaged: {why}"),
            Self::Refused(why) => write!(f, "{why:#}"),
        }
    }
}

/// Runs the member until `stop`, or until it cannot go on. Calls `ready` once, when it serves.
pub(super) async fn live(config: &Resolved, stop: watch::Receiver<bool>, ready: impl FnOnce() + Send + 'static) -> End {
    match Life::begin(config, stop, ready).await {
        Ok(life) => life.run().await,
        Err(end) => end,
    }
}

/// What runs, in the order it was started.
struct Life {
    stop: watch::Receiver<bool>,
    /// Ended with the doors; `true` closes them.
    closing: watch::Sender<bool>,
    open: Arc<AtomicBool>,
    bridge: Arc<Bridge>,
    transport: Arc<TcpTransport>,
    doors: JoinSet<()>,
    tasks: JoinSet<()>,
    port: MemberPort,
    signals: Signals,
    driver: Option<DriverHandle<Request>>,
    store: Option<StoreThread>,
    /// Held for its lock.
    disk: Arc<dyn Disk>,
}

/// What the member says to its shell.
#[derive(Clone)]
struct Signals {
    fatal: watch::Sender<Option<Fatal>>,
    drained: watch::Sender<bool>,
}

impl Life {
    async fn begin(
        config: &Resolved,
        stop: watch::Receiver<bool>,
        ready: impl FnOnce() + Send + 'static,
    ) -> Result<Self, End> {
        let disk = home::open_disk(config).map_err(End::Refused)?;
        let identity = home::identity(&*disk, config)?;
        let bridge = Arc::new(Bridge::new());
        let port = MemberPort::connect(&bridge);
        let driver = Driver::<Member>::new(driver_config(config));
        let transport = bind_peers(config, &identity, driver.event_sink()).await.map_err(End::Refused)?;
        let room = Arc::downgrade(&transport);
        driver.on_room(move || {
            if let Some(transport) = Weak::upgrade(&room) {
                transport.resume();
            }
        });
        let (host, mut heard) = Host::new(&identity, Arc::clone(&bridge));
        let mut life = Self {
            stop: stop.clone(),
            closing: watch::Sender::new(false),
            open: Arc::default(),
            bridge,
            transport,
            doors: JoinSet::new(),
            tasks: JoinSet::new(),
            port,
            signals: Signals { fatal: watch::Sender::new(None), drained: watch::Sender::new(false) },
            driver: None,
            store: None,
            disk: Arc::clone(&disk),
        };
        match life.start(config, identity, driver, &host, &mut heard, ready).await {
            Ok(()) => Ok(life),
            Err(end) => {
                life.end(false).await;
                Err(end)
            }
        }
    }

    async fn start(
        &mut self,
        config: &Resolved,
        identity: Identity,
        driver: Driver<Member>,
        host: &Arc<Host>,
        heard: &mut tokio::sync::mpsc::Receiver<crate::member::formation::Say>,
        ready: impl FnOnce() + Send + 'static,
    ) -> Result<(), End> {
        let admin = self.open_doors(config).await.map_err(End::Refused)?;
        self.tasks.spawn(Arc::clone(host).serve(Arc::clone(&self.transport)));
        self.tasks.spawn(watch_ready(admin, Arc::clone(&self.transport), ready));

        let meeting = Meeting { config, disk: &self.disk, host, stop: self.stop.clone() };
        let formed = if identity.formed {
            Formed { identity, members: Vec::new() }
        } else {
            meeting.form(identity, heard).await?
        };
        let (disk, identity, settings) = (Arc::clone(&self.disk), formed.identity.clone(), config.clone());
        let opened = tokio::task::spawn_blocking(move || home::open(&disk, &identity, &settings)).await;
        let stored = opened.map_err(|panic| End::Panicked(panic.to_string()))?;
        let stored = stored.map_err(|end| alone_is_refused(end, &formed.identity))?;
        // Back from a lost disk, and started again before it learned who the others are.
        let unknown = stored.members.is_empty() && formed.members.is_empty() && formed.identity.listed.is_empty();
        let formed = if unknown {
            let cluster = formed.identity.cluster;
            meeting.come_back(formed.identity, cluster).await?
        } else {
            formed
        };
        self.serve(config, driver, host, formed, stored)
    }

    /// Binds and serves what clients connect to. They hear "no leader" until there is one.
    async fn open_doors(&mut self, config: &Resolved) -> anyhow::Result<Arc<Admin>> {
        let doors = &config.node.doors;
        if doors.contains(&Door::Etcd) {
            let listener = listen::bind("etcd", config.etcd.addr).await?;
            let door = EtcdConfig { request_bytes_max: config.etcd.request_bytes_max };
            let routes = EtcdDoor::new(Arc::clone(&self.bridge), door).routes();
            let (connections_max, closing) = (config.etcd.connections_max, self.closing.subscribe());
            self.doors.spawn(async move {
                if let Err(error) = listen::serve_grpc(listener, routes, connections_max, closing).await {
                    tracing::error!(%error, "the etcd door failed");
                }
            });
        }
        let (open, figures) = (Arc::clone(&self.open), self.figures());
        let admin = Arc::new(Admin {
            bridge: Arc::clone(&self.bridge),
            figures: Box::new(figures),
            open: Box::new(move || open.load(Ordering::Acquire)),
        });
        if doors.contains(&Door::Admin) {
            let listener = listen::bind("admin", config.admin.addr).await?;
            let routes = Arc::clone(&admin).routes();
            self.doors.spawn(listen::serve_http(listener, routes, self.closing.subscribe()));
        }
        self.open.store(true, Ordering::Release);
        Ok(admin)
    }

    /// Starts the member itself.
    fn serve(
        &mut self,
        config: &Resolved,
        driver: Driver<Member>,
        host: &Arc<Host>,
        formed: Formed,
        stored: Stored,
    ) -> Result<(), End> {
        let Formed { identity, members } = formed;
        let clock = driver_config(config).clock;
        self.transport.set_cluster(ClusterId(identity.cluster));
        let known = if stored.members.is_empty() { members } else { stored.members.clone() };
        let peers = Peers { transport: Arc::clone(&self.transport), host: Arc::clone(host), set: Mutex::default() };
        peers.listed(&identity, config);
        peers.now(&known);

        let store = Arc::clone(&stored.store);
        let boot = home::random_id().map_err(End::Refused)?;
        let member_config = member_config(config, &identity, boot, stored.recovered, Arc::clone(&store));
        let member = Member::recover(member_config, clock()).map_err(|error| member_failed(error, &identity))?;

        let disk = Arc::clone(&self.disk);
        let open = Arc::new(move |path: &str| home::open_store(&disk, path));
        let stores = std::iter::once((GROUP, store)).collect();
        let port = Arc::new(self.port.clone());
        let store = StoreThread::spawn(&config.node.name, Arc::clone(&self.disk), open, stores, port);
        let store = self.store.insert(store.map_err(End::Refused)?);

        let outputs =
            Outputs { bridge: Arc::clone(&self.bridge), jobs: store.jobs(), peers, signals: self.signals.clone() };
        let transport = Arc::clone(&self.transport) as Arc<dyn Transport>;
        let driver = driver.start(member, stored.wal.into(), transport, outputs);
        let driver = driver.map_err(|error| End::Refused(error.into()))?;
        self.port.set(driver.clone());
        self.driver = Some(driver);
        self.tasks.spawn(tell_wall_clock(self.port.clone()));
        Ok(())
    }

    /// Serves until something ends it.
    async fn run(mut self) -> End {
        let Some(driver) = self.driver.clone() else { return End::Stopped };
        let mut fatal = self.signals.fatal.subscribe();
        tokio::select! {
            _ = self.stop.wait_for(|stop| *stop) => {}
            _ = driver.exited() => {}
            _ = fatal.wait_for(Option::is_some) => {}
        }
        let failed = fatal.borrow().is_some() || driver.exit().is_some();
        if !failed {
            self.drain(&driver).await;
        }
        let exit = self.end(!failed).await;
        let fatal = fatal.borrow().clone();
        match (fatal, exit) {
            (_, Some(DriverExit::Panicked(why))) => End::Panicked(why),
            (_, Some(DriverExit::Poisoned(error @ LogError::Faulty(_)))) => End::Damaged(words(&error)),
            (_, Some(DriverExit::Poisoned(error))) => End::Poisoned(words(&error)),
            (Some(fatal @ Fatal::Storage), _) => End::Poisoned(fatal.to_string()),
            (Some(fatal @ Fatal::Corrupt(_)), _) => End::Damaged(fatal.to_string()),
            (Some(fatal), _) => End::Refused(fatal.into()),
            (None, _) => End::Stopped,
        }
    }

    /// Not ready, no new connection, leaderships moved.
    async fn drain(&self, driver: &DriverHandle<Request>) {
        tracing::info!("stopping: moving leaderships, finishing requests");
        self.open.store(false, Ordering::Release);
        self.closing.send_replace(true);
        let mut drained = self.signals.drained.subscribe();
        if driver.request_wait(Request::Drain).await.is_ok() {
            let all = async {
                tokio::select! {
                    _ = drained.wait_for(|drained| *drained) => {}
                    _ = driver.exited() => {}
                }
            };
            if timeout(DRAIN_WITHIN, all).await.is_err() {
                tracing::warn!("not drained in time");
            }
        }
    }

    /// Ends whatever was started. In good `order` what was accepted is made durable; else nothing is written.
    async fn end(&mut self, order: bool) -> Option<DriverExit> {
        self.open.store(false, Ordering::Release);
        self.closing.send_replace(true);
        if order {
            let closed = async { while self.doors.join_next().await.is_some() {} };
            let _late = timeout(CLOSE_WITHIN, closed).await;
        }
        let exit = match &self.driver {
            Some(driver) => {
                if order {
                    driver.stop()
                } else {
                    driver.abort()
                }
                Some(driver.exited().await)
            }
            None => None,
        };
        if let Some(mut store) = self.store.take() {
            let stopping = tokio::task::spawn_blocking(move || store.stop(order));
            let _panicked = stopping.await;
        }
        self.bridge.close();
        self.doors.shutdown().await;
        self.transport.shutdown(if order { FLUSH_MS } else { 0 }).await;
        self.tasks.shutdown().await;
        exit
    }

    /// What the shell knows for `/metrics`.
    fn figures(&self) -> impl Fn() -> Vec<Figure> + Send + Sync + 'static {
        let (transport, port) = (Arc::downgrade(&self.transport), self.port.clone());
        move || {
            let mut figures = Vec::new();
            if let Some(stats) = port.stats() {
                figures.extend([
                    counter("triune_log_syncs", "Syncs of the log.", stats.syncs),
                    counter("triune_log_writes", "Writes covered by them.", stats.writes),
                    counter("triune_log_written_bytes", "Payload bytes written to the log.", stats.write_bytes),
                    seconds("triune_log_sync_seconds", "Time spent in append and sync.", stats.sync_nanos),
                    counter("triune_machine_turns", "Turns of the member's thread.", stats.turns),
                    counter("triune_machine_inputs", "Inputs taken in them.", stats.inputs),
                ]);
            }
            if let Some(transport) = transport.upgrade() {
                let stats = transport.stats();
                figures.extend([
                    counter("triune_peer_frames_sent", "Frames sent to peers.", stats.frames_sent),
                    counter("triune_peer_sent_bytes", "Bytes sent to peers.", stats.bytes_sent),
                    counter("triune_peer_frames_received", "Frames received from peers.", stats.frames_received),
                    counter("triune_peer_received_bytes", "Bytes received from peers.", stats.bytes_received),
                    counter("triune_peer_connects", "Connections made to peers.", stats.connects),
                ]);
            }
            figures
        }
    }
}

/// Takes the member's outputs, on its thread.
struct Outputs {
    bridge: Arc<Bridge>,
    jobs: Jobs,
    peers: Peers,
    signals: Signals,
}

impl OutputSink<Output> for Outputs {
    fn output(&mut self, output: Output) {
        match self.bridge.deliver(output) {
            None => {}
            Some(Output::Flush { group, batch, mark }) => self.jobs.push(Job::Flush { group, batch, mark }),
            Some(Output::Snapshot { group, op }) => self.jobs.push(Job::Snapshot { group, op }),
            Some(Output::Role { group, role, leader, epoch }) => {
                tracing::info!(%group, ?role, ?leader, epoch, "role");
            }
            Some(Output::Members(members)) => self.peers.now(&members),
            Some(Output::Fatal(fatal)) => {
                tracing::error!(%fatal, "the member must end");
                self.signals.fatal.send_replace(Some(fatal));
            }
            Some(Output::Drained) => {
                self.signals.drained.send_replace(true);
            }
            Some(other) => tracing::error!(?other, "an output nobody takes"),
        }
    }
}

/// Keeps the transport's addresses as the member table says.
struct Peers {
    transport: Arc<TcpTransport>,
    host: Arc<Host>,
    set: Mutex<Vec<NodeId>>,
}

impl Peers {
    /// The members of the list the cluster was formed from.
    fn listed(&self, identity: &Identity, config: &Resolved) {
        let mut set = self.set.lock();
        for FormedMember { disk, peer_addr, .. } in formed_members(identity, config) {
            if !peer_addr.is_empty() {
                self.transport.set_peer(disk, peer_addr);
                set.push(disk);
            }
        }
    }

    /// The members of now; those that left are forgotten. An empty table says nothing.
    fn now(&self, members: &[MemberRecord]) {
        if members.is_empty() {
            return;
        }
        self.host.knows(members);
        let peers = members.iter().flat_map(MemberRecord::peers).filter(|(_, addr)| !addr.is_empty());
        let mut set = self.set.lock();
        let before = std::mem::take(&mut *set);
        for (node, addr) in peers {
            self.transport.set_peer(node, addr);
            set.push(node);
        }
        for gone in before.into_iter().filter(|node| !set.contains(node)) {
            self.transport.remove_peer(gone);
        }
    }
}

/// Lets the transport's readers push straight into the driver.
struct IntoDriver(EventSink);

impl triune_transport::tcp::EventSink for IntoDriver {
    fn deliver(&self, events: &mut Vec<Event>) -> bool {
        self.0.push_all(events)
    }
}

async fn bind_peers(config: &Resolved, identity: &Identity, sink: EventSink) -> anyhow::Result<Arc<TcpTransport>> {
    let mut tcp = TcpConfig::new(NodeId(identity.disk));
    tcp.cluster = ClusterId(identity.cluster);
    tcp.require_cluster = true;
    tcp.name.clone_from(&identity.name);
    tcp.listen = config.peer.addr;
    tcp.advertise = config.peer.advertise.to_string();
    tcp.seed = home::random_id()?;
    tcp.sink = Some(Arc::new(IntoDriver(sink)));
    Ok(Arc::new(TcpTransport::bind(tcp).await?))
}

fn driver_config(config: &Resolved) -> DriverConfig {
    DriverConfig { name: config.node.name.clone(), clock: Arc::new(boot_time), ..DriverConfig::default() }
}

/// The clock that also counts while the machine is suspended, so that no lease outlives a sleep.
fn boot_time() -> Nanos {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    Nanos::from_secs(seconds).after(Nanos(nanos))
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn formed_members(identity: &Identity, config: &Resolved) -> Vec<FormedMember> {
    let addrs = home::initial_list(config);
    let listed = identity.listed.iter().map(|member| FormedMember {
        name: member.name.clone(),
        disk: NodeId(member.disk),
        peer_addr: addrs.iter().find(|(name, _)| *name == member.name).map_or_else(String::new, |(_, a)| a.clone()),
    });
    listed.collect()
}

fn member_config(
    config: &Resolved,
    identity: &Identity,
    boot: u64,
    recovered: Recovered,
    store: Arc<dyn triune_storage::OrderedStore>,
) -> MemberConfig {
    let node = NodeId(identity.disk);
    let consensus = &config.consensus;
    let replica = Config {
        heartbeat: Nanos::from_millis(consensus.heartbeat_ms.into()),
        election_min: Nanos::from_millis(consensus.election_ms_min.into()),
        election_max: Nanos::from_millis(consensus.election_ms_max.into()),
        keep_entries: consensus.snapshot_entries,
        ..Config::new(GROUP, node, boot)
    };
    let formed = formed_members(identity, config);
    let voters = (!formed.is_empty()).then(|| Configuration::of(formed.iter().map(|member| member.disk)));
    let limits = MemberLimits {
        request_bytes_max: config.etcd.request_bytes_max,
        txn_ops_max: config.etcd.txn_ops_max,
        quota_bytes: config.etcd.quota_bytes,
        progress_every: Nanos::from_secs(config.etcd.watch_progress_s.into()),
        lease_ttl_s_min: config.etcd.lease_ttl_s_min.into(),
        ..MemberLimits::default()
    };
    let serves_etcd = config.node.doors.contains(&Door::Etcd);
    MemberConfig {
        cluster: ClusterId(identity.cluster),
        node,
        name: identity.name.clone(),
        boot,
        formed,
        peer_addr: config.peer.advertise.to_string(),
        client_urls: serves_etcd.then(|| format!("http://{}", config.etcd.advertise)).into_iter().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        wall_ms: wall_ms(),
        limits,
        groups: vec![GroupRecovered { replica, recovered: Recovered { formed: voters, ..recovered }, store }],
    }
}

/// A member whose log or state contradicts itself.
fn member_failed(error: MemberError, identity: &Identity) -> End {
    alone_is_refused(End::Damaged(words(&error)), identity)
}

/// A member that is a cluster of one has nobody to come back to: its damaged data is all there is.
fn alone_is_refused(end: End, identity: &Identity) -> End {
    match end {
        End::Damaged(why) if identity.listed.len() == 1 => End::refused(format!(
            "the data is damaged: {why}. This member is the only one of its cluster, so nothing is set aside: restore a \
             copy of the data directory, or start anew with an empty one"
        )),
        end => end,
    }
}

/// An error with its causes.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Tells the member the time of day, every second.
async fn tell_wall_clock(port: MemberPort) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        // A member too busy to hear it hears the next one.
        let _busy = port.request(Request::WallClock(wall_ms()));
    }
}

/// Calls `ready` when the member serves; until then says now and then why it does not.
async fn watch_ready(admin: Arc<Admin>, transport: Arc<TcpTransport>, ready: impl FnOnce() + Send) {
    let mut ticks = interval(READY_LOOK);
    let mut log = interval(READY_LOG);
    log.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if admin.not_ready().await.is_none() {
                    break;
                }
            }
            _ = log.tick() => {
                let why = admin.not_ready().await.unwrap_or("ready");
                let lost = transport.peers().into_iter().filter(|peer| !peer.connected);
                let lost = lost.map(|peer| match peer.last_error {
                    Some(error) => format!("{} ({error})", peer.addr),
                    None => peer.addr,
                });
                tracing::info!(why, unreachable = lost.collect::<Vec<_>>().join(", "), "not ready yet");
            }
        }
    }
    ready();
}

#[allow(clippy::cast_precision_loss, reason = "metrics are floating point by their format")]
const fn counter(name: &'static str, help: &'static str, value: u64) -> Figure {
    Figure { name, help, counter: true, labels: String::new(), value: value as f64 }
}

#[allow(clippy::cast_precision_loss, reason = "metrics are floating point by their format")]
const fn seconds(name: &'static str, help: &'static str, nanos: u64) -> Figure {
    Figure { name, help, counter: true, labels: String::new(), value: nanos as f64 / 1e9 }
}
