//! The types of single settings, and how they are read from text. A value that parses is a value that can be used.

use std::{fmt, net::SocketAddr, str::FromStr};

/// A front end that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// The etcd v3 API.
    Etcd,
    /// Metrics and health over HTTP.
    Admin,
}

impl Door {
    /// The name as in `--doors`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Admin => "admin",
        }
    }
}

/// `host:port` to connect to; the host may be a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort(String);

impl HostPort {
    /// The text, `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.to_string())
    }
}

impl FromStr for HostPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "host:port";
        let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let named = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        match port.parse::<u16>() {
            Ok(1..) if named || (bracketed && text.parse::<SocketAddr>().is_ok()) => Ok(Self(text.to_owned())),
            _ => Err(EXPECTED),
        }
    }
}

/// One `name=host:port` of `--initial-cluster`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InitialMember {
    /// The member's name.
    pub name: String,
    /// Its peer address, as the others reach it.
    pub peer: HostPort,
}

/// Which disk a member writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskMode {
    /// Unsynced bytes live in process memory alone, so that `kill -9` loses them as power loss would.
    pub lossy: bool,
    /// Syncs do nothing: a known bug, which the tests must catch. Only with the feature `mutants`.
    pub nosync: bool,
    /// Fails this sync, counted from 1 over the life of the process.
    pub fail_sync: Option<u64>,
}

impl FromStr for DiskMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "real, or by commas: lossy, fail-sync=N with N from 1";
        let mut mode = Self::default();
        if text == "real" {
            return Ok(mode);
        }
        for word in text.split(',') {
            match word.split_once('=') {
                None if word == "lossy" => mode.lossy = true,
                None if word == "nosync" && cfg!(feature = "mutants") => mode.nosync = true,
                None if word == "nosync" => return Err("no nosync: it needs a build with the feature `mutants`"),
                Some(("fail-sync", n)) => match n.parse() {
                    Ok(n @ 1..) => mode.fail_sync = Some(n),
                    _ => return Err(EXPECTED),
                },
                _ => return Err(EXPECTED),
            }
        }
        if mode.nosync && !mode.lossy { Err("nosync together with lossy") } else { Ok(mode) }
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json"),
        }
    }
}

/// Reads a size: a number of bytes, or one with KiB, MiB or GiB behind it.
///
/// # Errors
/// What was expected.
pub fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "a size such as 512, 64KiB, 1.5MiB or 2GiB";
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(EXPECTED),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| EXPECTED)?;
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX)).ok_or(EXPECTED)?;
    let fraction: u64 = fraction.parse().map_err(|_| EXPECTED)?;
    let bytes = (u128::from(whole) << shift) + (u128::from(fraction) << shift) / u128::from(scale);
    u64::try_from(bytes).map_err(|_| EXPECTED)
}

/// Reads an address to bind. `localhost` means 127.0.0.1.
///
/// # Errors
/// What was expected.
pub fn parse_bind(text: &str) -> Result<SocketAddr, &'static str> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| "ip:port, such as 127.0.0.1:2379")
}

/// Whether a name can stand in a path, a list and a log line.
///
/// # Errors
/// What was expected.
pub fn parse_name(text: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !text.starts_with('.');
    if fits { Ok(text.to_owned()) } else { Err("1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.'") }
}

/// Parses the level of the log: a level, or `target=level` pairs by commas, as `tracing_subscriber`'s targets. What it
/// would take for the name of a target is refused here, since that would silence the log.
pub(super) fn parse_log_level(text: &str) -> Result<String, &'static str> {
    let known = |level: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&level);
    let parts = text.split(',').map(|part| part.rsplit_once('=').map_or(part, |(_, level)| level));
    if parts.into_iter().all(known) {
        Ok(text.to_owned())
    } else {
        Err("error, warn, info, debug, trace or off, or target=level pairs by commas")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("0", 0), ("512", 512), ("64KiB", 65_536), ("1.5MiB", 1_572_864), ("2 GiB", 2 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1GB", "-1", "1.2.3", ".", "1.", "99999999999999999999", "18446744073709551615GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_host_and_port() {
        for text in ["127.0.0.1:1", "[::1]:2380", "m1.triune.svc:2380"] {
            assert_eq!(text.parse::<HostPort>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        for text in ["", ":1", "host", "host:", "host:0", "host:65536", "http://host:1", "::1:2380", "a b:1"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
        assert_eq!(parse_bind("localhost:80"), Ok(SocketAddr::from(([127, 0, 0, 1], 80))));
        assert!(parse_bind("example.org:80").is_err());
    }

    #[test]
    fn disks_are_named_by_words() {
        assert_eq!("real".parse(), Ok(DiskMode::default()));
        assert_eq!("lossy".parse(), Ok(DiskMode { lossy: true, ..DiskMode::default() }));
        let both = DiskMode { lossy: true, fail_sync: Some(7), ..DiskMode::default() };
        assert_eq!("lossy,fail-sync=7".parse(), Ok(both));
        for text in ["", "Lossy", "real,lossy", "fail-sync", "fail-sync=0", "fail-sync=x", "nosync"] {
            assert!(text.parse::<DiskMode>().is_err(), "{text}");
        }
        assert_eq!("lossy,nosync".parse::<DiskMode>().is_ok(), cfg!(feature = "mutants"));
    }

    #[test]
    fn names_can_stand_in_paths() {
        for name in ["m0", "a.b-c_D", "x"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        for name in ["", ".", "..", ".x", "a/b", "a=b", "a,b", "ä", &"x".repeat(65)] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_level_of_the_log_is_one_that_exists() {
        for good in ["info", "off", "warn,triune_node=debug"] {
            assert!(parse_log_level(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,loud", "triune_node=loud"] {
            assert!(parse_log_level(bad).is_err(), "{bad}");
        }
    }
}
