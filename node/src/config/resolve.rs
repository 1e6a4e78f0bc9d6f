//! Resolved settings: typed, complete, and checked against each other. What cannot run is refused here, before a file
//! or a socket is opened.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, str::FromStr};

use super::{
    ConfigError, DiskMode, Door, HostPort, InitialMember, LogFormat,
    error::InitialClusterProblem,
    keys::{self, KEYS, Scope},
    layers::{Layers, Origin},
    value::{parse_bind, parse_bytes, parse_log_level, parse_name},
};

/// All settings of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// `[node]`.
    pub node: Node,
    /// `[peer]`.
    pub peer: Peer,
    /// `[etcd]`.
    pub etcd: Etcd,
    /// `[admin]`.
    pub admin: Admin,
    /// `[storage]`.
    pub storage: Storage,
    /// `[consensus]`.
    pub consensus: Consensus,
    settings: Vec<Setting>,
}

/// One line of the resolved configuration, to be printed at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `section.name`.
    pub key: &'static str,
    /// The value that holds, as text.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// `[node]`: who this member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Unique in the cluster.
    pub name: String,
    /// Where it keeps all it must not lose.
    pub data_dir: PathBuf,
    /// Doors to open, in order, each once.
    pub doors: Vec<Door>,
    /// All members at first formation, this one among them, sorted by name. A formed member ignores it.
    pub initial_cluster: Vec<InitialMember>,
    /// Addresses beyond loopback are allowed without TLS and auth.
    pub insecure: bool,
    /// Form of the log.
    pub log: LogFormat,
    /// Level of the log, as for `tracing_subscriber::filter::Targets`.
    pub log_level: String,
}

/// `[peer]`: how the members reach this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Address to bind.
    pub addr: SocketAddr,
    /// Address to connect to.
    pub advertise: HostPort,
}

/// `[etcd]`: the etcd door and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Address to bind.
    pub addr: SocketAddr,
    /// Address to connect to, as told to clients.
    pub advertise: HostPort,
    /// Largest request, in bytes. etcd's default, 1.5 MiB.
    pub request_bytes_max: usize,
    /// Most operations of a transaction, each level counted alone. etcd's default, 128.
    pub txn_ops_max: usize,
    /// Bytes of the store at which writes are refused (alarm NOSPACE). etcd's default, 2 GiB.
    pub quota_bytes: u64,
    /// Shortest lease, in seconds: 1.5 × the shortest election timeout, rounded up, as in etcd.
    pub lease_ttl_s_min: u32,
    /// Pause between progress notices of a watch that asked for them, in seconds. etcd's default, 600.
    pub watch_progress_s: u32,
    /// Most connections at a time; one more is closed at once.
    pub connections_max: usize,
}

/// `[admin]`: metrics and health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Address to bind.
    pub addr: SocketAddr,
}

/// `[storage]`: the disk and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Which disk.
    pub disk: DiskMode,
    /// Size of a segment of the log, in bytes; 1 MiB to 1 GiB.
    pub segment_bytes: u64,
}

/// `[consensus]`: the replication of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consensus {
    /// Pause between heartbeats, in ms.
    pub heartbeat_ms: u32,
    /// Shortest election timeout drawn, in ms; more than 2 × heartbeat.
    pub election_ms_min: u32,
    /// Longest election timeout drawn, in ms; more than the shortest.
    pub election_ms_max: u32,
    /// Log entries between two snapshots; from 1.
    pub snapshot_entries: u64,
}

/// All that `triune dev` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dev {
    /// Empty the data directories first.
    pub fresh: bool,
    /// The members m1…, each complete; their data lies in `m<n>` below the common directory.
    pub members: Vec<Resolved>,
}

/// What the machine alone can say, taken once by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) host_name: String,
}

impl Machine {
    fn here() -> Self {
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host_name = parse_name(host_name.trim()).unwrap_or_else(|_| "m1".to_owned());
        Self { host_name }
    }
}

impl Resolved {
    /// Resolves the settings of the one member that `triune start` runs.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that does not hold.
    pub fn start(layers: &Layers) -> Result<Self, ConfigError> {
        Self::of_member(layers, &Machine::here(), &[])
    }

    /// The settings as they hold, in the order of the sections, to be printed at start.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Settings `chosen` by the program stand in for defaults, never for what was written.
    fn of_member(layers: &Layers, machine: &Machine, chosen: &[(&'static str, String)]) -> Result<Self, ConfigError> {
        let mut read = Reader { layers, chosen, settings: Vec::new() };
        let name = read.value("node.name", &machine.host_name, parse_name)?;
        let data_dir = read.value("node.data_dir", &format!("./triune-data/{name}"), |text| match text {
            "" => Err("a path"),
            path => Ok(PathBuf::from(path)),
        })?;
        let doors = read.doors()?;
        let insecure = read.flag("node.insecure")?;
        let log = read.parsed("node.log")?;
        let log_level = read.value("node.log_level", "", parse_log_level)?;
        let peer = read.peer()?;
        let initial_cluster = read.initial_cluster(&name, &peer.advertise)?;
        let etcd = read.etcd()?;
        let admin = Admin { addr: read.value("admin.addr", "", parse_bind)? };
        let storage = read.storage()?;
        let consensus = read.consensus()?;
        let mut settings = read.settings;
        settings.sort_by_key(|setting| KEYS.iter().position(|key| key.path == setting.key));
        let node = Node { name, data_dir, doors, initial_cluster, insecure, log, log_level };
        let resolved = Self { node, peer, etcd, admin, storage, consensus, settings };
        resolved.check_exposure()?;
        Ok(resolved)
    }

    fn check_exposure(&self) -> Result<(), ConfigError> {
        let etcd = self.node.doors.contains(&Door::Etcd).then_some(("etcd.addr", self.etcd.addr));
        let admin = self.node.doors.contains(&Door::Admin).then_some(("admin.addr", self.admin.addr));
        for (key, addr) in [Some(("peer.addr", self.peer.addr)), etcd, admin].into_iter().flatten() {
            if !addr.ip().is_loopback() && !self.node.insecure {
                return Err(ConfigError::Exposed { key, addr });
            }
        }
        Ok(())
    }
}

impl Dev {
    /// Resolves `count` members on loopback: member n adds 100·(n-1) to the ports of etcd, peers and admin, and all
    /// add `port_offset`.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that does not hold.
    pub fn resolve(layers: &Layers, fresh: bool, count: u16, port_offset: u16) -> Result<Self, ConfigError> {
        if !(1..=5).contains(&count) {
            return Err(InitialClusterProblem::Count(count.into()).into());
        }
        if let Some(key) = layers.keys().find(|key| key.scope == Scope::Start) {
            let origin = layers.find(key.path).map_or(Origin::Default, |written| written.origin.clone());
            return Err(ConfigError::NotInDev { key: key.path, origin });
        }
        let root = layers.find("node.data_dir").map_or("./triune-data", |written| &written.text);
        let address = |member: u16, base: u32| {
            let port = base + 100 * u32::from(member - 1) + u32::from(port_offset);
            let port = u16::try_from(port).map_err(|_| ConfigError::PortTooHigh { member, port })?;
            Ok::<_, ConfigError>(format!("127.0.0.1:{port}"))
        };
        let cluster = (1..=count)
            .map(|member| Ok(format!("m{member}={}", address(member, PEER_PORT)?)))
            .collect::<Result<Vec<_>, ConfigError>>()?
            .join(",");
        let members = (1..=count).map(|member| {
            let name = format!("m{member}");
            let mut layers = layers.clone();
            layers.redirect("node.data_dir", &format!("{root}/{name}"));
            let chosen = [
                ("node.name", name),
                ("node.data_dir", format!("{root}/m{member}")),
                ("node.initial_cluster", cluster.clone()),
                ("peer.addr", address(member, PEER_PORT)?),
                ("etcd.addr", address(member, ETCD_PORT)?),
                ("admin.addr", address(member, ADMIN_PORT)?),
            ];
            Resolved::of_member(&layers, &Machine { host_name: String::new() }, &chosen)
        });
        Ok(Self { fresh, members: members.collect::<Result<_, _>>()? })
    }
}

impl From<InitialClusterProblem> for ConfigError {
    fn from(problem: InitialClusterProblem) -> Self {
        Self::InitialCluster { problem }
    }
}

/// Reads one setting after the other, and notes each with its origin.
struct Reader<'a> {
    layers: &'a Layers,
    chosen: &'a [(&'static str, String)],
    settings: Vec<Setting>,
}

impl Reader<'_> {
    /// A setting whose default is in the table, or else `computed`.
    fn value<T>(
        &mut self,
        path: &'static str,
        computed: &str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<T, ConfigError> {
        let key = keys::find(path);
        debug_assert!(key.is_some_and(|key| key.scope != Scope::NotBuilt), "{path} is in the table of settings");
        let (text, origin) = match self.layers.find(path) {
            Some(written) => (written.text.clone(), written.origin.clone()),
            None => {
                let chosen = self.chosen.iter().find(|(chosen, _)| *chosen == path).map(|(_, text)| text.as_str());
                let default = key.and_then(|key| key.default).unwrap_or(computed);
                (chosen.unwrap_or(default).to_owned(), Origin::Default)
            }
        };
        let value = parse(&text).map_err(|expected| ConfigError::BadValue {
            key: path,
            value: text.clone(),
            origin: origin.clone(),
            expected,
        })?;
        self.settings.push(Setting { key: path, value: text, origin });
        Ok(value)
    }

    fn parsed<T: FromStr<Err: Into<Expected>>>(&mut self, path: &'static str) -> Result<T, ConfigError> {
        self.value(path, "", |text| text.parse().map_err(|error: T::Err| error.into().0))
    }

    fn number<T: TryFrom<u64>>(&mut self, path: &'static str, least: u64) -> Result<T, ConfigError> {
        const EXPECTED: [&str; 2] = ["a whole number from 0 on that fits", "a whole number from 1 on that fits"];
        let expected = if least == 0 { EXPECTED[0] } else { EXPECTED[1] };
        self.value(path, "", |text| {
            let number: u64 = text.parse().map_err(|_| expected)?;
            if number < least { Err(expected) } else { T::try_from(number).map_err(|_| expected) }
        })
    }

    fn flag(&mut self, path: &'static str) -> Result<bool, ConfigError> {
        self.value(path, "", |text| text.parse().map_err(|_| "true or false"))
    }

    fn one_of(&mut self, path: &'static str, only: &'static str) -> Result<(), ConfigError> {
        self.value(path, "", |text| if text == only { Ok(()) } else { Err(only) })
    }

    fn doors(&mut self) -> Result<Vec<Door>, ConfigError> {
        let origin = self.layers.find("node.doors").map_or(Origin::Default, |written| written.origin.clone());
        let names = self.value("node.doors", "", |text| Ok(text.to_owned()))?;
        let mut doors = BTreeSet::new();
        for name in names.split(',').filter(|name| !name.is_empty()) {
            doors.insert(match name {
                "etcd" => Door::Etcd,
                "admin" => Door::Admin,
                "redis" | "kafka" => {
                    return Err(ConfigError::NotBuilt { key: format!("door {name}"), origin });
                }
                _ => {
                    let (key, value, expected) = ("node.doors", names, "doors by commas: etcd, admin");
                    return Err(ConfigError::BadValue { key, value, origin, expected });
                }
            });
        }
        Ok(doors.into_iter().collect())
    }

    /// A bound address and the one to connect to.
    fn addresses(
        &mut self,
        addr_key: &'static str,
        advertise_key: &'static str,
        flag: &'static str,
    ) -> Result<(SocketAddr, HostPort), ConfigError> {
        let addr = self.value(addr_key, "", parse_bind)?;
        if addr.ip().is_unspecified() && self.layers.find(advertise_key).is_none() {
            return Err(ConfigError::AdvertiseNeeded { key: addr_key, addr, flag });
        }
        let advertise = self.value(advertise_key, &addr.to_string(), HostPort::from_str)?;
        Ok((addr, advertise))
    }

    fn peer(&mut self) -> Result<Peer, ConfigError> {
        let (addr, advertise) = self.addresses("peer.addr", "peer.advertise", "peer-advertise")?;
        Ok(Peer { addr, advertise })
    }

    fn initial_cluster(&mut self, name: &str, own: &HostPort) -> Result<Vec<InitialMember>, ConfigError> {
        let mut members = self.value("node.initial_cluster", &format!("{name}={own}"), |text| {
            text.split(',').map(parse_member).collect::<Option<Vec<_>>>().ok_or("name=host:port, by commas")
        })?;
        members.sort();
        check_members(&members, name, own)?;
        Ok(members)
    }

    fn etcd(&mut self) -> Result<Etcd, ConfigError> {
        let (addr, advertise) = self.addresses("etcd.addr", "etcd.advertise", "etcd-advertise")?;
        let request_bytes_max = self.value("etcd.request_bytes_max", "", |text| match parse_bytes(text)? {
            bytes @ 1024..=REQUEST_BYTES_LIMIT => usize::try_from(bytes).map_err(|_| "a size this machine can hold"),
            _ => Err("a size from 1KiB to 64MiB"),
        })?;
        Ok(Etcd {
            addr,
            advertise,
            request_bytes_max,
            txn_ops_max: self.number("etcd.txn_ops_max", 1)?,
            quota_bytes: self.value("etcd.quota_bytes", "", |text| match parse_bytes(text)? {
                0 => Err("a size above 0"),
                bytes => Ok(bytes),
            })?,
            lease_ttl_s_min: self.number("etcd.lease_ttl_s_min", 1)?,
            watch_progress_s: self.number("etcd.watch_progress_s", 1)?,
            connections_max: self.number("etcd.connections_max", 1)?,
        })
    }

    fn storage(&mut self) -> Result<Storage, ConfigError> {
        let disk = self.parsed("storage.disk")?;
        self.one_of("storage.fsync", "always")?;
        let segment_bytes = self.value("storage.segment_bytes", "", |text| match parse_bytes(text)? {
            bytes @ SEGMENT_BYTES_LEAST..=SEGMENT_BYTES_MOST => Ok(bytes),
            _ => Err("a size from 1MiB to 1GiB"),
        })?;
        Ok(Storage { disk, segment_bytes })
    }

    fn consensus(&mut self) -> Result<Consensus, ConfigError> {
        self.one_of("consensus.protocol", "raft")?;
        self.one_of("consensus.read", "index")?;
        let heartbeat_ms: u32 = self.number("consensus.heartbeat_ms", 1)?;
        let election_ms_min: u32 = self.number("consensus.election_ms_min", 1)?;
        let election_ms_max: u32 = self.number("consensus.election_ms_max", 1)?;
        if u64::from(election_ms_min) <= 2 * u64::from(heartbeat_ms) {
            return Err(ConfigError::Contradiction {
                left: format!("consensus.election_ms_min = {election_ms_min}"),
                relation: "more than twice",
                right: format!("consensus.heartbeat_ms = {heartbeat_ms}"),
            });
        }
        if election_ms_max <= election_ms_min {
            return Err(ConfigError::Contradiction {
                left: format!("consensus.election_ms_max = {election_ms_max}"),
                relation: "more than",
                right: format!("consensus.election_ms_min = {election_ms_min}"),
            });
        }
        let snapshot_entries = self.number("consensus.snapshot_entries", 1)?;
        Ok(Consensus { heartbeat_ms, election_ms_min, election_ms_max, snapshot_entries })
    }
}

fn parse_member(text: &str) -> Option<InitialMember> {
    let (name, peer) = text.split_once('=')?;
    Some(InitialMember { name: parse_name(name).ok()?, peer: peer.parse().ok()? })
}

fn check_members(members: &[InitialMember], name: &str, own: &HostPort) -> Result<(), InitialClusterProblem> {
    if !(1..=5).contains(&members.len()) {
        return Err(InitialClusterProblem::Count(members.len()));
    }
    let (mut names, mut peers) = (BTreeSet::new(), BTreeSet::new());
    for member in members {
        if !names.insert(&member.name) {
            return Err(InitialClusterProblem::NameTwice(member.name.clone()));
        }
        if !peers.insert(&member.peer) {
            return Err(InitialClusterProblem::AddressTwice(member.peer.to_string()));
        }
    }
    match members.iter().find(|member| member.name == name) {
        None => Err(InitialClusterProblem::SelfMissing(name.to_owned())),
        Some(listed) if listed.peer != *own => {
            Err(InitialClusterProblem::SelfElsewhere { listed: listed.peer.to_string(), own: own.to_string() })
        }
        Some(_) => Ok(()),
    }
}

/// What a parser expected, for error types that know and for those that cannot fail.
struct Expected(&'static str);

impl From<&'static str> for Expected {
    fn from(expected: &'static str) -> Self {
        Self(expected)
    }
}

impl From<std::convert::Infallible> for Expected {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

const ETCD_PORT: u32 = 2379;
const PEER_PORT: u32 = 2380;
const ADMIN_PORT: u32 = 8379;
const REQUEST_BYTES_LIMIT: u64 = 64 << 20;
const SEGMENT_BYTES_LEAST: u64 = 1 << 20;
const SEGMENT_BYTES_MOST: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::find;

    fn layers(written: &[(&str, &str)]) -> Result<Layers, ConfigError> {
        let flags = written.iter().map(|(path, text)| (find(path).expect("a key of the table"), (*text).to_owned()));
        Layers::read(None, std::iter::empty(), flags)
    }

    fn start(written: &[(&str, &str)]) -> Result<Resolved, ConfigError> {
        Resolved::of_member(&layers(written)?, &Machine { host_name: "here".to_owned() }, &[])
    }

    /// Both words must stand in the message: what is wrong, and what to do.
    fn refused(written: &[(&str, &str)], what: &str, cure: &str) {
        let message = start(written).expect_err("refused").to_string();
        assert!(message.contains(what) && message.contains(cure), "{written:?}: {message}");
    }

    #[test]
    fn nothing_written_is_a_cluster_of_one_on_loopback() {
        let resolved = start(&[]).expect("defaults hold");
        assert_eq!(resolved.node.name, "here");
        assert_eq!(resolved.node.data_dir, PathBuf::from("./triune-data/here"));
        assert_eq!(resolved.node.doors, [Door::Etcd, Door::Admin]);
        assert_eq!(resolved.node.initial_cluster.len(), 1);
        assert_eq!(resolved.etcd.request_bytes_max, 1_572_864);
        assert_eq!((resolved.etcd.txn_ops_max, resolved.etcd.quota_bytes), (128, 2 << 30));
        assert!(resolved.settings().iter().all(|setting| setting.origin == Origin::Default));
        let built = KEYS.iter().filter(|key| key.scope != Scope::NotBuilt).map(|key| key.path);
        let printed = resolved.settings().iter().map(|setting| setting.key);
        assert!(printed.eq(built), "every setting is resolved and printed, in the order of the table");
    }

    #[test]
    fn three_members_start_in_the_promised_form() {
        let resolved = start(&[
            ("node.name", "m0"),
            ("node.data_dir", "D"),
            ("peer.addr", "127.0.0.1:7001"),
            ("node.doors", "etcd"),
            ("etcd.addr", "127.0.0.1:7002"),
            ("node.initial_cluster", "m2=127.0.0.1:7201,m0=127.0.0.1:7001,m1=127.0.0.1:7101"),
        ])
        .expect("holds");
        let names: Vec<_> = resolved.node.initial_cluster.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["m0", "m1", "m2"]);
        assert_eq!(resolved.node.doors, [Door::Etcd]);
        assert_eq!(resolved.etcd.advertise.as_str(), "127.0.0.1:7002");
    }

    #[test]
    fn what_cannot_run_is_refused_with_a_cure() {
        refused(&[("peer.addr", "0.0.0.0:2380")], "peer.addr", "--peer-advertise");
        refused(&[("etcd.addr", "10.1.2.3:2379")], "10.1.2.3:2379", "--insecure");
        refused(&[("node.initial_cluster", "m9=127.0.0.1:2380")], "here", "--name");
        refused(&[("node.initial_cluster", "here=127.0.0.1:9")], "127.0.0.1:2380", "--peer-advertise");
        refused(&[("node.initial_cluster", "here=127.0.0.1:2380,here=127.0.0.1:1")], "twice", "here");
        refused(&[("node.initial_cluster", "here")], "initial_cluster", "name=host:port");
        refused(&[("consensus.election_ms_min", "200")], "election_ms_min = 200", "more than twice");
        refused(&[("consensus.election_ms_max", "1000")], "election_ms_max = 1000", "more than");
        refused(&[("node.doors", "etcd,kafka")], "kafka", "not built");
        refused(&[("node.doors", "etcd,http")], "http", "etcd, admin");
        refused(&[("redis.addr", "127.0.0.1:6379")], "redis.addr", "not built");
        refused(&[("storage.fsync", "interval")], "storage.fsync", "always");
        refused(&[("etcd.txn_ops_max", "0")], "txn_ops_max", "from 1");
        refused(&[("node.insecure", "yes")], "node.insecure", "true or false");
    }

    #[test]
    fn a_closed_door_exposes_nothing() {
        let quiet = [("node.doors", "etcd"), ("admin.addr", "10.0.0.1:1")];
        assert!(start(&quiet).is_ok());
        assert!(start(&[("etcd.addr", "10.0.0.1:1"), ("node.insecure", "true")]).is_ok());
    }

    #[test]
    fn dev_spreads_ports_by_a_hundred_and_directories_by_name() {
        let dev = Dev::resolve(&layers(&[("node.data_dir", "d")]).expect("read"), true, 3, 10_000).expect("holds");
        let ports: Vec<_> =
            dev.members.iter().map(|m| (m.etcd.addr.port(), m.peer.addr.port(), m.admin.addr.port())).collect();
        assert_eq!(ports, [(12379, 12380, 18379), (12479, 12480, 18479), (12579, 12580, 18579)]);
        let third = dev.members.last().expect("three members");
        assert_eq!((third.node.name.as_str(), third.node.data_dir.as_path()), ("m3", "d/m3".as_ref()));
        assert!(dev.members.iter().all(|m| m.node.initial_cluster == third.node.initial_cluster));
    }

    #[test]
    fn dev_refuses_what_it_chooses_itself() {
        let named = layers(&[("node.name", "x")]).expect("read");
        assert!(matches!(Dev::resolve(&named, false, 3, 0), Err(ConfigError::NotInDev { key: "node.name", .. })));
        let none = layers(&[]).expect("read");
        assert!(matches!(Dev::resolve(&none, false, 3, 60_000), Err(ConfigError::PortTooHigh { .. })));
        assert!(Dev::resolve(&none, false, 0, 0).is_err());
        assert!(Dev::resolve(&none, false, 6, 0).is_err());
    }
}
