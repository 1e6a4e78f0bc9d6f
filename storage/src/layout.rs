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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, MemDisk, OpenMode};

    fn populated() -> MemDisk {
        let disk = MemDisk::new();
        Identity::blank("m1", 0xAB).save(&disk).unwrap();
        disk.open(LOCK, OpenMode::Create).unwrap();
        for dir in [WAL.to_owned(), group_snapshots(0)] {
            disk.create_dir_all(&dir).unwrap();
            disk.open(&format!("{dir}/file"), OpenMode::Create).unwrap().sync().unwrap();
            disk.sync_dir(&dir).unwrap();
        }
        disk.sync_dir("").unwrap();
        disk
    }

    #[test]
    fn retired_data_is_set_aside_whole_and_the_lock_stays() {
        let disk = populated();
        assert_eq!(retire(&disk, 0xAB).unwrap(), "retired-00000000000000ab");
        assert_eq!(disk.list("").unwrap(), [LOCK, "retired-00000000000000ab"]);
        assert_eq!(disk.list("retired-00000000000000ab").unwrap(), ["groups", "identity", "wal"]);
        assert_eq!(disk.list("retired-00000000000000ab/groups/0/snap").unwrap(), ["file"]);
        assert_eq!(Identity::load(&disk).unwrap(), None);
    }

    #[test]
    fn interrupted_retirement_never_leaves_an_identity_without_its_log() {
        for stop in 0..20 {
            let disk = populated();
            disk.cut_power_after(stop);
            let done = retire(&disk, 0xAB).is_ok();
            let disk = disk.power_loss(&mut |_| crate::Fate::Lost);
            if Identity::load(&disk).unwrap().is_some() {
                assert!(!done && disk.list(WAL).unwrap() == ["file"], "stop {stop}");
            }
            retire(&disk, 0xAB).unwrap();
            assert!(disk.list(WAL).unwrap().is_empty() && disk.list(GROUPS).unwrap().is_empty(), "stop {stop}");
        }
    }
}
