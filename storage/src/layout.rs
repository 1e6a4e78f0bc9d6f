//! The names in a data directory, and setting its data aside.
//!
//! ```text
//! LOCK                  who has the directory open; never moved
//! identity              who it is (see `identity`)
//! wal/                  the log of all groups
//! groups/<id>/state     a group's store
//! groups/<id>/snap/     its snapshots
//! mq/<topic>/<p>/  cache/
//! retired-<disk id>/    data of a disk id that may no longer vote, for a person to look at
//! ```

use crate::{Disk, DiskError};

/// The lock file.
pub const LOCK: &str = "LOCK";
/// The identity file.
pub const IDENTITY: &str = "identity";
/// The identity file while it is written.
pub const IDENTITY_NEW: &str = "identity.new";
/// The log's directory.
pub const WAL: &str = "wal";
/// The groups' directory.
pub const GROUPS: &str = "groups";
/// The queue's directory.
pub const MQ: &str = "mq";
/// The cache's directory.
pub const CACHE: &str = "cache";

/// The directory of group `id`.
pub fn group_dir(id: u32) -> String {
    format!("{GROUPS}/{id}")
}

/// The store file of group `id`.
pub fn group_state(id: u32) -> String {
    format!("{GROUPS}/{id}/state")
}

/// The snapshot directory of group `id`.
pub fn group_snapshots(id: u32) -> String {
    format!("{GROUPS}/{id}/snap")
}

/// Sets all data aside, so that the member can come back with a new disk id: everything but `LOCK` and what was
/// retired before goes into `retired-<disk id>/`. `identity` goes first: interrupted, the directory is blank or whole,
/// never an identity without its log. Call again after an interruption; close every open file before.
///
/// # Errors
/// The disk's; call again.
pub fn retire(disk: &dyn Disk, disk_id: u64) -> Result<String, DiskError> {
    let target = format!("retired-{disk_id:016x}");
    disk.create_dir_all(&target)?;
    disk.sync_dir("")?;
    let mut names = disk.list("")?;
    names.sort_by_key(|name| name != IDENTITY);
    for name in names.iter().filter(|name| *name != LOCK && !name.starts_with("retired-")) {
        disk.rename(name, &format!("{target}/{name}"))?;
        disk.sync_dir(&target)?;
        disk.sync_dir("")?;
    }
    Ok(target)
}
