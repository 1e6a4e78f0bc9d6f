//! CPU time and memory of processes, from `/proc`.

use std::{fs, io, time::Duration};

/// What some processes used since they began.
#[derive(Debug, Clone)]
pub(super) struct Usage {
    processes: Vec<Process>,
}

#[derive(Debug, Clone)]
struct Process {
    cpu: Duration,
    rss_bytes: u64,
}

/// What they used between two moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Used {
    /// User and system time of all.
    pub(super) cpu: Duration,
    /// Resident memory of each, at the end.
    pub(super) rss_bytes: Vec<u64>,
}

impl Usage {
    /// Reads all of them.
    pub(super) fn of(pids: &[u32]) -> io::Result<Self> {
        Ok(Self { processes: pids.iter().map(|&pid| Process::read(pid)).collect::<io::Result<_>>()? })
    }

    /// The difference from an earlier reading of the same processes.
    pub(super) fn since(&self, before: &Self) -> Used {
        let sum = |usage: &Self| usage.processes.iter().map(|process| process.cpu).sum::<Duration>();
        let rss_bytes = self.processes.iter().map(|process| process.rss_bytes).collect();
        Used { cpu: sum(self).saturating_sub(sum(before)), rss_bytes }
    }
}

impl Process {
    fn read(pid: u32) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("process {pid}: {error}"));
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(named)?;
        let malformed = || named(io::Error::from(io::ErrorKind::InvalidData));
        let (cpu, pages) = parse_stat(&stat).ok_or_else(malformed)?;
        Ok(Self { cpu, rss_bytes: pages * PAGE_BYTES })
    }
}

/// User and system time, and resident pages (fields 14, 15 and 24 of proc(5)). The name before them, in brackets, may
/// itself hold brackets and spaces.
fn parse_stat(stat: &str) -> Option<(Duration, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)?;
    Some((Duration::from_millis(ticks * (1_000 / TICKS_PER_SECOND)), number(24)?))
}

/// USER_HZ, fixed in Linux's interface to user space.
const TICKS_PER_SECOND: u64 = 100;
/// Of the machines this is measured on; only the memory column depends on it.
const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_shift_its_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 100 1000 25 18446744073709551615";
        assert_eq!(parse_stat(stat), Some((Duration::from_secs(2), 25)));
        assert_eq!(parse_stat("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = Usage::of(&[std::process::id()]).expect("this process is there");
        assert!(usage.since(&usage).rss_bytes[0] > 0);
    }
}
