//! The one table of settings: each key with its flag, default and words.
//!
//! Flags, environment variables, TOML keys, `--help` and "did you mean" are all read off this table, so none of them
//! can know a setting that the others do not.
//!
//! 1. A flag is unique, and so is a key; a test checks both.
//! 2. The environment variable of a flag is `TRIUNE_` + the flag in capitals.

/// A setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// `section.name`, as in TOML.
    pub path: &'static str,
    /// The flag without its dashes.
    pub flag: &'static str,
    /// Text of the default; `None` if it is computed from other settings or the machine.
    pub default: Option<&'static str>,
    /// What it is, with its unit.
    pub help: &'static str,
    /// Where it applies.
    pub scope: Scope,
}

/// Where a setting applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `start` and `dev` alike.
    Both,
    /// `start` alone: `dev` chooses it for each of its members.
    Start,
    /// Belongs to a part that is not built yet: refused by name.
    NotBuilt,
}

impl Key {
    /// The environment variable of this key.
    #[must_use]
    pub fn env(&self) -> String {
        format!("TRIUNE_{}", self.flag.replace('-', "_").to_uppercase())
    }

    /// The section in front of the dot.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or(self.path, |(section, _)| section)
    }
}

/// Finds a key by its TOML path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The candidate nearest to what was written, if it is near enough to have been meant.
#[must_use]
pub fn nearest<'a>(written: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (distance(written, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().max(written.len()) / 2)
        .map(|(_, candidate)| candidate)
}

/// Edit distance (Levenshtein), one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let here = (diagonal + usize::from(from != *to)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Sections of parts that are not built yet: any key in them is refused, with the section's name.
pub const SECTIONS_NOT_BUILT: &[&str] = &["redis", "kafka", "cache", "mq", "tls", "auth"];

const fn both(path: &'static str, flag: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { path, flag, default: Some(default), help, scope: Scope::Both }
}

const fn start(path: &'static str, flag: &'static str, default: Option<&'static str>, help: &'static str) -> Key {
    Key { path, flag, default, help, scope: Scope::Start }
}

const fn not_built(path: &'static str, flag: &'static str) -> Key {
    Key { path, flag, default: None, help: "", scope: Scope::NotBuilt }
}

/// Every setting there is.
pub const KEYS: &[Key] = &[
    start("node.name", "name", None, "Name of this member, unique in the cluster [default: the host's name]"),
    Key {
        path: "node.data_dir",
        flag: "data-dir",
        default: None,
        help: "Where this member keeps all it must not lose [default: ./triune-data/<name>; dev: ./triune-data]",
        scope: Scope::Both,
    },
    start("node.doors", "doors", Some("etcd,admin"), "Doors to open, by name"),
    start(
        "node.initial_cluster",
        "initial-cluster",
        None,
        "All members at first formation, name=host:port of the peer address, by commas [default: this one alone]; a \
         formed member ignores it",
    ),
    both("node.insecure", "insecure", "false", "Allow addresses beyond loopback without TLS and auth"),
    both("node.log", "log", "text", "Form of the log on stderr: text or json"),
    both("node.log_level", "log-level", "info", "error, warn, info, debug or trace; also target=level, by commas"),
    start("peer.addr", "peer-addr", Some("127.0.0.1:2380"), "Address for the other members"),
    start("peer.advertise", "peer-advertise", None, "host:port at which they reach it [default: peer.addr]"),
    start("etcd.addr", "etcd-addr", Some("127.0.0.1:2379"), "Address for etcd clients"),
    start("etcd.advertise", "etcd-advertise", None, "host:port at which they reach it [default: etcd.addr]"),
    both("etcd.request_bytes_max", "etcd-request-bytes-max", "1.5MiB", "Largest request"),
    both("etcd.txn_ops_max", "etcd-txn-ops-max", "128", "Most operations of one transaction"),
    both("etcd.quota_bytes", "etcd-quota-bytes", "2GiB", "Size of the store at which writes are refused"),
    both("etcd.lease_ttl_s_min", "etcd-lease-ttl-s-min", "2", "Shortest lease, in seconds"),
    both("etcd.watch_progress_s", "etcd-watch-progress-s", "600", "Pause between progress notices, in seconds"),
    both("etcd.connections_max", "etcd-connections-max", "10000", "Most connections at a time"),
    start("admin.addr", "admin-addr", Some("127.0.0.1:8379"), "Address for /metrics, /healthz and /readyz"),
    both("storage.disk", "disk", "real", "real; lossy loses unsynced bytes at kill -9; fail-sync=N fails the Nth sync"),
    both("storage.fsync", "storage-fsync", "always", "When writes reach the disk: always"),
    both(
        "storage.segment_bytes",
        "storage-segment-bytes",
        "8MiB",
        "Size of a segment of the log; one more is kept in reserve",
    ),
    both("consensus.protocol", "consensus-protocol", "raft", "What replicates the log: raft"),
    both("consensus.read", "consensus-read", "index", "How linearizable reads are proven: index"),
    both("consensus.heartbeat_ms", "consensus-heartbeat-ms", "100", "Pause between heartbeats, in ms"),
    both("consensus.election_ms_min", "consensus-election-ms-min", "1000", "Shortest election timeout drawn, in ms"),
    both("consensus.election_ms_max", "consensus-election-ms-max", "2000", "Longest election timeout drawn, in ms"),
    both("consensus.snapshot_entries", "consensus-snapshot-entries", "10000", "Log entries between two snapshots"),
    not_built("node.groups", "groups"),
    not_built("redis.addr", "redis-addr"),
    not_built("redis.advertise", "redis-advertise"),
    not_built("redis.cluster_addr", "redis-cluster-addr"),
    not_built("kafka.addr", "kafka-addr"),
    not_built("kafka.advertise", "kafka-advertise"),
    not_built("admin.advertise", "admin-advertise"),
    not_built("cache.bytes_max", "cache-bytes-max"),
    not_built("mq.retention_ms", "mq-retention-ms"),
    not_built("tls.ca", "tls-ca"),
    not_built("tls.cert", "tls-cert"),
    not_built("tls.key", "tls-key"),
    not_built("tls.client_auth", "tls-client-auth"),
    not_built("auth.enabled", "auth-enabled"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_and_flags_are_unique() {
        let paths: BTreeSet<_> = KEYS.iter().map(|key| key.path).collect();
        let flags: BTreeSet<_> = KEYS.iter().map(|key| key.flag).collect();
        assert_eq!((paths.len(), flags.len()), (KEYS.len(), KEYS.len()));
    }

    #[test]
    fn every_key_of_a_part_not_built_is_marked_so() {
        for key in KEYS.iter().filter(|key| SECTIONS_NOT_BUILT.contains(&key.section())) {
            assert_eq!(key.scope, Scope::NotBuilt, "{}", key.path);
        }
    }

    #[test]
    fn a_flag_names_its_variable() {
        assert_eq!(find("etcd.addr").map(Key::env).as_deref(), Some("TRIUNE_ETCD_ADDR"));
        assert_eq!(find("node.data_dir").map(Key::env).as_deref(), Some("TRIUNE_DATA_DIR"));
    }

    #[test]
    fn distance_is_levenshtein() {
        for (a, b, expected) in [("", "abc", 3), ("kitten", "sitting", 3), ("etcd.adr", "etcd.addr", 1), ("x", "x", 0)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn nearest_names_only_what_may_have_been_meant() {
        let paths = || KEYS.iter().map(|key| key.path);
        assert_eq!(nearest("etcd.adr", paths()), Some("etcd.addr"));
        assert_eq!(nearest("zzzzzzzzzzzzzzzz", paths()), None);
    }
}
