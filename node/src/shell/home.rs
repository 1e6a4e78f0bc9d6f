//! A member's data directory: lock, identity, log and store, opened in this order; and setting them aside.
//!
//! 1. Nothing is read or written before the lock is held; the lock is held while any part of the directory is open.
//! 2. A directory whose data was retired never forms a cluster: its member can only come back by replacement.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use anyhow::Context as _;
use triune_consensus::{Recovered, SnapshotMark};
use triune_storage::{
    Disk, DiskError, DiskMode, FileDisk, Identity, IdentityError, OpenError, OrderedStore, RecoveredStream, RedbConfig,
    RedbStore, StoreError, StreamId, Wal, WalConfig, layout,
};
use triune_transport::GroupId;

use crate::config::Resolved;
use crate::member::formation::list_hash;
use crate::member::system::{MemberRecord, SystemError};
use crate::member::{applied_mark, member_table};

use super::life::End;

/// The only group there is yet.
pub(super) const GROUP: GroupId = GroupId(0);

/// What a formed member's directory holds.
pub(super) struct Stored {
    pub(super) wal: Wal,
    pub(super) recovered: Recovered,
    pub(super) store: Arc<dyn OrderedStore>,
    pub(super) members: Vec<MemberRecord>,
}

/// Locks the directory.
///
/// # Errors
/// When another process has it, or it cannot be made.
pub(super) fn open_disk(config: &Resolved) -> anyhow::Result<Arc<dyn Disk>> {
    let dir = &config.node.data_dir;
    let disk = FileDisk::open(dir)
        .with_context(|| format!("data directory {}: stop who uses it, or choose another --data-dir", dir.display()))?;
    let crate::config::DiskMode { lossy, nosync, fail_sync } = config.storage.disk;
    Ok(DiskMode { lossy, nosync, fail_sync }.wrap(Arc::new(disk)))
}

/// Empties the directory, but for its lock.
///
/// # Errors
/// As [`open_disk`], or the disk's.
pub(super) fn empty(config: &Resolved) -> anyhow::Result<()> {
    let disk = open_disk(config)?;
    for name in disk.list("")?.iter().filter(|name| *name != layout::LOCK) {
        match disk.remove(name) {
            Ok(()) => {}
            Err(DiskError::NotFound { .. } | DiskError::Io { .. }) => disk.remove_dir_all(name)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(disk.sync_dir("")?)
}

/// Who this directory is; draws a disk id for a blank one.
pub(super) fn identity(disk: &dyn Disk, config: &Resolved) -> Result<Identity, End> {
    let initial_cluster = list_hash(&initial_list(config));
    let mut identity = match Identity::load(disk) {
        Ok(Some(identity)) => identity,
        Ok(None) => blank(disk, config).map_err(End::Refused)?,
        Err(error @ IdentityError::Damaged) if config.node.initial_cluster.len() > 1 => {
            return Err(End::Damaged(error.to_string()));
        }
        Err(IdentityError::Damaged) => {
            return Err(End::refused(format!(
                "data directory {}: the identity is damaged, and no other member is named that could have the data; \
                 nothing was moved. Put the directory back from a copy, or name the other members by --initial-cluster",
                config.node.data_dir.display()
            )));
        }
        Err(error) => return Err(End::Refused(error.into())),
    };
    let (name, dir) = (&config.node.name, config.node.data_dir.display());
    if identity.name != *name {
        let owner = &identity.name;
        return Err(End::refused(format!(
            "data directory {dir} belongs to member {owner}, not {name}: check --name and --data-dir"
        )));
    }
    if identity.formed || identity.initial_cluster == initial_cluster {
        return Ok(identity);
    }
    if !identity.listed.is_empty() {
        return Err(End::refused(format!(
            "data directory {dir} was first started with another --initial-cluster: start with that one, or empty all \
             data directories"
        )));
    }
    identity.initial_cluster = initial_cluster;
    identity.save(disk).map_err(|error| End::Poisoned(error.to_string()))?;
    Ok(identity)
}

/// The identity of a directory without one.
fn blank(disk: &dyn Disk, config: &Resolved) -> anyhow::Result<Identity> {
    let names = disk.list("")?;
    // Data without an identity: setting it aside was interrupted. What is not ours (`lost+found`) stays where it is.
    let ours = [layout::WAL, layout::GROUPS, layout::MQ, layout::CACHE];
    if names.iter().any(|name| ours.contains(&name.as_str())) {
        layout::retire(disk, random_id()?)?;
    }
    let names = disk.list("")?;
    let retired = names.iter().filter_map(|name| name.strip_prefix(RETIRED));
    let replaces = retired.filter_map(|id| u64::from_str_radix(id, 16).ok()).next_back().unwrap_or(0);
    let identity = Identity {
        initial_cluster: list_hash(&initial_list(config)),
        replaces,
        ..Identity::blank(&config.node.name, random_id()?)
    };
    identity.save(disk)?;
    Ok(identity)
}

/// Sets the data aside; the next start draws a new disk id and comes back by replacement.
///
/// # Errors
/// The disk's; call again.
pub(super) fn retire(config: &Resolved) -> anyhow::Result<()> {
    let disk = open_disk(config)?;
    let old = Identity::load(&*disk).ok().flatten().map(|identity| identity.disk);
    let aside = layout::retire(&*disk, old.map_or_else(random_id, Ok)?)?;
    let dir = config.node.data_dir.join(&aside);
    tracing::error!(aside = %dir.display(), "the data is set aside; this member comes back with a new disk id");
    Ok(())
}

/// Opens log and store of a formed member.
pub(super) fn open(disk: &Arc<dyn Disk>, identity: &Identity, config: &Resolved) -> Result<Stored, End> {
    let wal_config =
        WalConfig { segment_bytes: config.storage.segment_bytes, salt: identity.disk, ..WalConfig::default() };
    let (wal, found) = Wal::open(Arc::clone(disk), layout::WAL, wal_config).map_err(|error| match error {
        OpenError::Disk(error @ DiskError::Io { .. }) => End::Poisoned(error.to_string()),
        error => End::Refused(error.into()),
    })?;
    let blank = RecoveredStream::default();
    let stream = found.streams.get(&StreamId(GROUP.0)).unwrap_or(&blank);
    if found.is_faulty() {
        let (entries, batches) = (found.verdicts.entries_faulty, found.verdicts.batches_faulty);
        return Err(End::Damaged(format!("the log has lost {entries} entries in {batches} damaged batches")));
    }
    let verdicts = found.verdicts;
    tracing::info!(clean = found.clean, boot = found.boot, last = ?stream.last, torn = verdicts.batches_torn, "log open");
    disk.create_dir_all(&layout::group_dir(GROUP.0)).map_err(|error| End::Poisoned(error.to_string()))?;
    let store = open_store(disk, &layout::group_state(GROUP.0)).map_err(store_failed)?;
    let (mark, members) = read_state(&*store)?;
    let recovered = Recovered { applied: mark, ..Recovered::from_log(stream) };
    Ok(Stored { wal, recovered, store, members })
}

/// Opens a group's store.
///
/// # Errors
/// The store's.
pub(super) fn open_store(disk: &Arc<dyn Disk>, path: &str) -> Result<Arc<dyn OrderedStore>, StoreError> {
    Ok(Arc::new(RedbStore::open(&**disk, path, RedbConfig::default())?))
}

fn read_state(store: &dyn OrderedStore) -> Result<(Option<SnapshotMark>, Vec<MemberRecord>), End> {
    let failed = |error: SystemError| match error {
        SystemError::Store(error) => store_failed(error),
        SystemError::Corrupt { .. } => End::Damaged(error.to_string()),
        error => End::Refused(error.into()),
    };
    let view = store.view().map_err(store_failed)?;
    let mark = applied_mark(&*view).map_err(failed)?;
    let members = if mark.is_some() { member_table(&*view).map_err(failed)? } else { Vec::new() };
    Ok((mark, members))
}

/// A store that cannot be opened or read is as lost as its disk: the log before its mark is gone.
fn store_failed(error: StoreError) -> End {
    match error {
        StoreError::Corrupt { .. } | StoreError::Engine(_) => End::Damaged(error.to_string()),
        error => End::Poisoned(error.to_string()),
    }
}

/// `--initial-cluster` as (name, address).
pub(super) fn initial_list(config: &Resolved) -> Vec<(String, String)> {
    let list = config.node.initial_cluster.iter();
    list.map(|member| (member.name.clone(), member.peer.to_string())).collect()
}

/// A random number that is not 0.
///
/// # Errors
/// When the system has none to give.
pub(super) fn random_id() -> anyhow::Result<u64> {
    let mut source = File::open("/dev/urandom").context("no random numbers")?;
    loop {
        let mut bytes = [0; 8];
        source.read_exact(&mut bytes).context("no random numbers")?;
        let id = u64::from_le_bytes(bytes);
        if id != 0 {
            return Ok(id);
        }
    }
}

/// What [`layout::retire`] calls the directories it makes.
const RETIRED: &str = "retired-";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Layers;
    use crate::config::keys;

    /// A directory of its own, gone at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("triune-home-{}-{name}", std::process::id()));
            let _absent = std::fs::remove_dir_all(&dir);
            Self(dir)
        }

        fn config(&self, name: &str, list: &str) -> Resolved {
            let flags = [
                ("node.name", name.to_owned()),
                ("node.data_dir", self.0.display().to_string()),
                ("peer.addr", "127.0.0.1:7001".to_owned()),
                ("node.initial_cluster", list.to_owned()),
            ];
            let flags = flags.into_iter().map(|(key, text)| (keys::find(key).unwrap(), text)).collect::<Vec<_>>();
            Resolved::start(&Layers::read(None, std::iter::empty(), flags).unwrap()).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }

    const LIST: &str = "m0=127.0.0.1:7001,m1=127.0.0.1:7002";

    fn refusal(end: End) -> String {
        match end {
            End::Refused(error) => format!("{error:#}"),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_directory_in_use_is_refused_until_it_is_let_go() {
        let dir = Dir::new("lock");
        let config = dir.config("m0", LIST);
        let held = open_disk(&config).unwrap();
        let words = format!("{:#}", open_disk(&config).unwrap_err());
        assert!(words.contains("in use") && words.contains("--data-dir"), "{words}");
        drop(held);
        open_disk(&config).unwrap();
    }

    #[test]
    fn a_directory_keeps_its_disk_id_and_serves_no_other_member() {
        let dir = Dir::new("identity");
        let config = dir.config("m0", LIST);
        let disk = open_disk(&config).unwrap();
        let Ok(first) = identity(&*disk, &config) else { panic!("a blank directory gets an identity") };
        let Ok(again) = identity(&*disk, &config) else { panic!("and keeps it") };
        assert_eq!(first, again);
        assert!(first.disk != 0 && !first.formed && first.replaces == 0);
        let words = refusal(identity(&*disk, &dir.config("m1", "m1=127.0.0.1:7001")).unwrap_err());
        assert!(words.contains("belongs to member m0") && words.contains("--name"), "{words}");
    }

    #[test]
    fn the_list_may_change_until_it_was_said() {
        let dir = Dir::new("list");
        let (config, other) = (dir.config("m0", LIST), dir.config("m0", "m0=127.0.0.1:7001"));
        let disk = open_disk(&config).unwrap();
        let Ok(mut said) = identity(&*disk, &config) else { panic!("blank") };
        let Ok(changed) = identity(&*disk, &other) else { panic!("nothing was said yet") };
        assert_ne!(said.initial_cluster, changed.initial_cluster);
        said.listed = vec![triune_storage::ListedMember { name: "m0".to_owned(), disk: said.disk }];
        said.save(&*disk).unwrap();
        let words = refusal(identity(&*disk, &other).unwrap_err());
        assert!(words.contains("another --initial-cluster"), "{words}");
        said.formed = true;
        said.save(&*disk).unwrap();
        assert!(identity(&*disk, &other).is_ok(), "a formed member ignores the list");
    }

    #[test]
    fn a_retired_directory_gets_a_new_disk_id_and_remembers_the_old() {
        let dir = Dir::new("retire");
        let config = dir.config("m0", LIST);
        let old = {
            let disk = open_disk(&config).unwrap();
            let Ok(old) = identity(&*disk, &config) else { panic!("blank") };
            disk.create_dir_all(layout::WAL).unwrap();
            old.disk
        };
        retire(&config).unwrap();
        let disk = open_disk(&config).unwrap();
        let Ok(new) = identity(&*disk, &config) else { panic!("blank again") };
        assert_ne!(new.disk, old);
        assert_eq!(new.replaces, old);
        let names = disk.list("").unwrap();
        assert!(
            names.contains(&format!("retired-{old:016x}")) && !names.contains(&layout::WAL.to_owned()),
            "{names:?}"
        );
        drop(disk);
        empty(&config).unwrap();
        assert_eq!(open_disk(&config).unwrap().list("").unwrap(), [layout::LOCK]);
    }
}
