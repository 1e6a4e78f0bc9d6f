//! The system tables of group 0: who the members are. Rows of the store, changed only by logged commands.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use triune_consensus::{Configuration, SnapshotMark};
use triune_storage::{Index, Position, StoreBatch, StoreError, StoreView, Table};
use triune_transport::{ClusterId, NodeId};
use triune_txn::mvcc;

use super::api::{AlarmKind, Refusal};
use super::command::{AlarmOp, MemberJoin, MemberUpdate};
use super::config::FormedMember;
use super::rng::mix;

/// One member, as every member knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemberRecord {
    /// Its name, unique.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its number, never reused; from 1.
    #[prost(uint32, tag = "2")]
    pub ordinal: u32,
    /// Its disk id: the identity it votes under.
    #[prost(uint64, tag = "3")]
    pub disk: u64,
    /// Its etcd member id; kept when the disk is replaced.
    #[prost(uint64, tag = "4")]
    pub member_id: u64,
    /// The version of the binary it runs.
    #[prost(string, tag = "5")]
    pub version: String,
    /// Where peers reach it.
    #[prost(string, tag = "6")]
    pub peer_addr: String,
    /// Where etcd clients reach it, as it says itself: full URLs.
    #[prost(string, repeated, tag = "7")]
    pub client_urls: Vec<String>,
    /// It learns and does not vote.
    #[prost(bool, tag = "8")]
    pub learner: bool,
    /// The disk that is coming in place of `disk`; 0: none. It learns until the configuration names it a voter.
    #[prost(uint64, tag = "9")]
    pub joining_disk: u64,
    /// Where peers reach the joining disk's process.
    #[prost(string, tag = "10")]
    pub joining_addr: String,
    /// Disks that were replaced, the latest last; they are told so when they speak.
    #[prost(fixed64, repeated, tag = "11")]
    pub former_disks: Vec<u64>,
}

impl MemberRecord {
    /// The identity it votes under.
    pub const fn node(&self) -> NodeId {
        NodeId(self.disk)
    }

    /// Every (identity, address) a transport must know for it: its own, and the joining disk's if there is one.
    pub fn peers(&self) -> impl Iterator<Item = (NodeId, &str)> {
        let joining = (self.joining_disk != 0).then_some((NodeId(self.joining_disk), self.joining_addr.as_str()));
        std::iter::once((self.node(), self.peer_addr.as_str())).chain(joining)
    }
}

/// The tables of group 0's store.
///
/// | table | rows |
/// |---|---|
/// | 1 | revisions of the key-value store |
/// | 2 | its leases |
/// | 3 | its mark |
/// | 4 | system rows: the mark, the members, the alarms |
/// | 5 | sessions, a row each |
pub const KV_TABLES: mvcc::Tables = mvcc::Tables { revisions: Table(1), leases: Table(2), mark: Table(3) };
/// System rows.
pub const SYSTEM_TABLE: Table = Table(4);
/// Sessions.
pub const SESSION_TABLE: Table = Table(5);
/// Every table whose rows, together, are the state of the group: what a snapshot carries, in this order.
pub const STATE_TABLES: [Table; 5] =
    [KV_TABLES.revisions, KV_TABLES.leases, KV_TABLES.mark, SYSTEM_TABLE, SESSION_TABLE];

/// Rows that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SystemError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row does not decode: retire the disk id and come back by replacement.
    #[error("system row {key:?} does not decode")]
    Corrupt {
        /// Which row.
        key: Vec<u8>,
    },
    /// A newer version wrote it: start that one.
    #[error("the state has format {found}, this version knows {known}")]
    Newer {
        /// What is there.
        found: u32,
        /// What this version reads.
        known: u32,
    },
}

/// What the state in this store is the state after. `None`: it is blank.
///
/// # Errors
/// When the row cannot be read.
pub fn applied_mark(view: &dyn StoreView) -> Result<Option<SnapshotMark>, SystemError> {
    Ok(read_mark(view)?.map(|row| row.snapshot_mark()))
}

/// The member table in this store, by ordinal.
///
/// # Errors
/// When a row cannot be read.
pub fn member_table(view: &dyn StoreView) -> Result<Vec<MemberRecord>, SystemError> {
    Ok(System::read(view)?.members.into_values().collect())
}

/// The row that says what the state is the state after.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct MarkRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(fixed64, tag = "2")]
    epoch: u64,
    #[prost(fixed64, tag = "3")]
    index: u64,
    #[prost(fixed64, repeated, tag = "4")]
    voters: Vec<u64>,
    #[prost(fixed64, repeated, tag = "5")]
    outgoing: Vec<u64>,
    #[prost(fixed64, repeated, tag = "6")]
    learners: Vec<u64>,
    #[prost(fixed64, tag = "7")]
    config_index: u64,
    #[prost(fixed64, tag = "8")]
    stamp_ms: u64,
    #[prost(fixed64, tag = "9")]
    digest: u64,
}

impl MarkRow {
    fn snapshot_mark(&self) -> SnapshotMark {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        SnapshotMark {
            position: Position::new(self.epoch, self.index),
            config: Configuration {
                voters: set(&self.voters),
                outgoing: set(&self.outgoing),
                learners: set(&self.learners),
            },
            config_index: Index(self.config_index),
        }
    }
}

fn read_mark(view: &dyn StoreView) -> Result<Option<MarkRow>, SystemError> {
    let Some(row) = view.get(SYSTEM_TABLE, MARK_KEY)? else { return Ok(None) };
    let row = MarkRow::decode(row).map_err(|_| SystemError::Corrupt { key: MARK_KEY.to_vec() })?;
    if row.format > FORMAT {
        return Err(SystemError::Newer { found: row.format, known: FORMAT });
    }
    Ok(Some(row))
}

/// The system tables in memory, and which of their rows the next flush must carry.
///
/// | row | value |
/// |---|---|
/// | `mark` | position, configuration, stamp, digest: in every flush |
/// | `member/` ordinal u32 be | [`MemberRecord`] |
/// | `alarm/` member id u64 be, kind u8 | empty |
///
/// Everything here changes by applied entries alone, and is equal on every member at equal index.
#[derive(Clone, Debug, Default)]
pub(crate) struct System {
    pub(crate) position: Position,
    pub(crate) config: Arc<Configuration>,
    pub(crate) config_index: Index,
    /// The greatest stamp applied.
    pub(crate) stamp_ms: u64,
    /// Chain over (index, effect) of what changed these tables.
    digest: u64,
    pub(crate) members: BTreeMap<u32, MemberRecord>,
    pub(crate) alarms: BTreeSet<(u64, AlarmKind)>,
    dirty: BTreeMap<Bytes, Option<Bytes>>,
}

impl System {
    /// Reads the tables. A blank store gives blank tables.
    pub(crate) fn read(view: &dyn StoreView) -> Result<Self, SystemError> {
        let mut system = Self::default();
        if let Some(row) = read_mark(view)? {
            let mark = row.snapshot_mark();
            system.position = mark.position;
            system.config = Arc::new(mark.config);
            system.config_index = mark.config_index;
            system.stamp_ms = row.stamp_ms;
            system.digest = row.digest;
        }
        let mut bad = None;
        view.scan(SYSTEM_TABLE, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, value| {
            if key != MARK_KEY && !system.take_row(key, value) {
                bad = Some(key.to_vec());
            }
            bad.is_none()
        })?;
        match bad {
            Some(key) => Err(SystemError::Corrupt { key }),
            None => Ok(system),
        }
    }

    fn take_row(&mut self, key: &[u8], value: &[u8]) -> bool {
        if let Some(ordinal) = key.strip_prefix(MEMBER_PREFIX).and_then(|k| <[u8; 4]>::try_from(k).ok()) {
            let Ok(record) = MemberRecord::decode(value) else { return false };
            return self.members.insert(u32::from_be_bytes(ordinal), record).is_none();
        }
        if let Some((id, [kind])) = key.strip_prefix(ALARM_PREFIX).and_then(<[u8]>::split_first_chunk::<8>) {
            let Some(kind) = alarm_of(u32::from(*kind)) else { return false };
            return self.alarms.insert((u64::from_be_bytes(*id), kind));
        }
        false
    }

    /// The chain's value.
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    /// Notes an effect at the entry being applied.
    pub(crate) fn chain(&mut self, index: Index, effect: u64) {
        self.digest = mix(mix(self.digest.wrapping_add(index.0)).wrapping_add(effect));
    }

    /// Appends what a flush must carry: the changed rows, and always the mark.
    pub(crate) fn take_rows(&mut self, batch: &mut StoreBatch) {
        for (key, value) in std::mem::take(&mut self.dirty) {
            batch.ops.push((SYSTEM_TABLE, key, value));
        }
        let ids = |set: &BTreeSet<NodeId>| set.iter().map(|node| node.0).collect();
        let mark = MarkRow {
            format: FORMAT,
            epoch: self.position.epoch.0,
            index: self.position.index.0,
            voters: ids(&self.config.voters),
            outgoing: ids(&self.config.outgoing),
            learners: ids(&self.config.learners),
            config_index: self.config_index.0,
            stamp_ms: self.stamp_ms,
            digest: self.digest,
        };
        batch.ops.push((SYSTEM_TABLE, Bytes::from_static(MARK_KEY), Some(mark.encode_to_vec().into())));
    }

    /// The record of the member whose disk this is.
    pub(crate) fn by_disk(&self, node: NodeId) -> Option<&MemberRecord> {
        self.members.values().find(|record| record.disk == node.0)
    }

    /// Writes the first member table; a later wish changes nothing. Whether it did.
    pub(crate) fn form(&mut self, members: Vec<MemberRecord>) -> bool {
        if !self.members.is_empty() {
            return false;
        }
        for record in members {
            self.put_member(record);
        }
        true
    }

    /// Notes what a member says of itself. Whether something changed.
    pub(crate) fn update(&mut self, update: &MemberUpdate) -> bool {
        let Some(record) = self.by_disk(NodeId(update.disk)) else { return false };
        let mut next = record.clone();
        next.version.clone_from(&update.version);
        next.peer_addr.clone_from(&update.peer_addr);
        next.client_urls.clone_from(&update.client_urls);
        let changed = next != *record;
        if changed {
            self.put_member(next);
        }
        changed
    }

    /// Notes that a disk wants to come in place of `name`'s.
    pub(crate) fn join(&mut self, join: &MemberJoin) -> Result<(), Refusal> {
        let record = self.members.values().find(|r| r.name == join.name).ok_or(Refusal::MemberNotFound)?;
        let is_of = |r: &MemberRecord| r.disk == join.disk || r.joining_disk == join.disk;
        let taken = self.members.values().any(|r| r.name != join.name && is_of(r));
        // A late copy of an old wish: a disk that was replaced never comes back.
        let former = self.members.values().any(|r| r.former_disks.contains(&join.disk));
        if taken || former || join.disk == 0 {
            return Err(Refusal::MemberNotFound);
        }
        // Votes already: the change goes to its end, or the table would lose the disk that takes over.
        if !is_of(record) && self.config.is_voter(NodeId(record.joining_disk)) {
            return Err(Refusal::StillHere { name: join.name.clone() });
        }
        let mut next = record.clone();
        if next.disk == join.disk {
            next.peer_addr.clone_from(&join.peer_addr);
        } else {
            next.joining_disk = join.disk;
            next.joining_addr.clone_from(&join.peer_addr);
        }
        self.put_member(next);
        Ok(())
    }

    /// A configuration took effect at `index`: a joining disk that votes now, whose old disk does not, is the member's.
    pub(crate) fn configured(&mut self, config: Configuration, index: Index) {
        let arrived: Vec<MemberRecord> = self
            .members
            .values()
            .filter(|r| r.joining_disk != 0 && config.voters.contains(&NodeId(r.joining_disk)))
            .filter(|r| !config.is_voter(NodeId(r.disk)))
            .cloned()
            .collect();
        for mut record in arrived {
            record.former_disks.push(std::mem::replace(&mut record.disk, std::mem::take(&mut record.joining_disk)));
            if record.former_disks.len() > FORMER_DISKS_MAX {
                record.former_disks.remove(0);
            }
            record.peer_addr = std::mem::take(&mut record.joining_addr);
            self.put_member(record);
        }
        let moved: Vec<MemberRecord> =
            self.members.values().filter(|r| r.learner != config.learners.contains(&r.node())).cloned().collect();
        for mut record in moved {
            record.learner = !record.learner;
            self.put_member(record);
        }
        self.config = Arc::new(config);
        self.config_index = index;
    }

    /// Raises or clears alarms; gives those concerned.
    pub(crate) fn alarm(&mut self, op: AlarmOp) -> Vec<(u64, AlarmKind)> {
        let kind = alarm_of(op.alarm);
        if !op.clear {
            let Some(kind) = kind else { return Vec::new() };
            if self.alarms.insert((op.member, kind)) {
                self.dirty.insert(alarm_key(op.member, kind), Some(Bytes::new()));
            }
            return vec![(op.member, kind)];
        }
        let concerned = self.alarms_of(op.member, kind);
        for (member, kind) in &concerned {
            self.alarms.remove(&(*member, *kind));
            self.dirty.insert(alarm_key(*member, *kind), None);
        }
        concerned
    }

    /// The alarms of this member (0: of all) of this kind (`None`: of any).
    pub(crate) fn alarms_of(&self, member: u64, kind: Option<AlarmKind>) -> Vec<(u64, AlarmKind)> {
        let concerns = |(m, k): &&(u64, AlarmKind)| (member == 0 || *m == member) && kind.is_none_or(|kind| *k == kind);
        self.alarms.iter().filter(concerns).copied().collect()
    }

    /// Whether an alarm of this kind is on anywhere.
    pub(crate) fn is_alarmed(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|(_, k)| *k == kind)
    }

    fn put_member(&mut self, record: MemberRecord) {
        self.dirty.insert(member_key(record.ordinal), Some(record.encode_to_vec().into()));
        self.members.insert(record.ordinal, record);
    }
}

/// The records a cluster begins with: ordinals in the order of names, member ids drawn from the disk ids.
pub(crate) fn first_records(cluster: ClusterId, formed: &[FormedMember]) -> Vec<MemberRecord> {
    let mut sorted: Vec<&FormedMember> = formed.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    (1..)
        .zip(sorted)
        .map(|(ordinal, member)| MemberRecord {
            name: member.name.clone(),
            ordinal,
            disk: member.disk.0,
            // Never 0: that names nobody in etcd's API.
            member_id: mix(member.disk.0 ^ mix(cluster.0)).max(1),
            peer_addr: member.peer_addr.clone(),
            ..MemberRecord::default()
        })
        .collect()
}

/// The number of an alarm's kind in rows and commands.
pub(crate) const fn alarm_number(kind: AlarmKind) -> u32 {
    match kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    }
}

const fn alarm_of(number: u32) -> Option<AlarmKind> {
    match number {
        1 => Some(AlarmKind::NoSpace),
        2 => Some(AlarmKind::Corrupt),
        _ => None,
    }
}

fn member_key(ordinal: u32) -> Bytes {
    [MEMBER_PREFIX, &ordinal.to_be_bytes()].concat().into()
}

fn alarm_key(member: u64, kind: AlarmKind) -> Bytes {
    let number = u8::try_from(alarm_number(kind)).unwrap_or(0);
    [ALARM_PREFIX, &member.to_be_bytes(), &[number]].concat().into()
}

/// Replaced disks remembered of one member.
const FORMER_DISKS_MAX: usize = 16;
const FORMAT: u32 = 1;
const MARK_KEY: &[u8] = b"mark";
const MEMBER_PREFIX: &[u8] = b"member/";
const ALARM_PREFIX: &[u8] = b"alarm/";

#[cfg(test)]
mod tests {
    use triune_storage::{MemStore, OrderedStore};

    use super::*;

    fn formed() -> Vec<FormedMember> {
        ["b", "a", "c"]
            .iter()
            .zip([20, 10, 30])
            .map(|(name, disk)| FormedMember {
                name: (*name).to_owned(),
                disk: NodeId(disk),
                peer_addr: format!("{name}:2380"),
            })
            .collect()
    }

    fn reread(system: &mut System) -> System {
        let store = MemStore::new();
        let mut batch = StoreBatch::default();
        system.take_rows(&mut batch);
        store.commit(batch).unwrap();
        System::read(&*store.view().unwrap()).unwrap()
    }

    #[test]
    fn the_first_table_is_written_once_and_ordered_by_name() {
        let mut system = System::default();
        assert!(system.form(first_records(ClusterId(9), &formed())));
        assert!(!system.form(first_records(ClusterId(8), &formed())));
        let names: Vec<_> = system.members.values().map(|r| (r.ordinal, r.name.as_str(), r.disk)).collect();
        assert_eq!(names, [(1, "a", 10), (2, "b", 20), (3, "c", 30)]);
        let ids: BTreeSet<u64> = system.members.values().map(|r| r.member_id).collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(ids, first_records(ClusterId(9), &formed()).iter().map(|r| r.member_id).collect());
    }

    #[test]
    fn rows_read_as_written() {
        let mut system = System { position: Position::new(3, 9), stamp_ms: 77, ..System::default() };
        system.form(first_records(ClusterId(9), &formed()));
        system.alarm(AlarmOp { clear: false, member: 5, alarm: 1 });
        system.configured(Configuration::of([NodeId(10), NodeId(20)]), Index(4));
        system.chain(Index(9), 1);
        let read = reread(&mut system);
        assert_eq!(read.members, system.members);
        assert_eq!(read.alarms, system.alarms);
        assert_eq!((read.position, read.stamp_ms, read.digest()), (system.position, 77, system.digest()));
        assert_eq!((&*read.config, read.config_index), (&Configuration::of([NodeId(10), NodeId(20)]), Index(4)));
    }

    #[test]
    fn a_replaced_disk_keeps_the_member() {
        let mut system = System::default();
        system.form(first_records(ClusterId(9), &formed()));
        let before = system.members[&2].clone();
        let join = MemberJoin { name: "b".into(), disk: 21, peer_addr: "b2:2380".into() };
        assert_eq!(system.join(&join), Ok(()));
        assert_eq!(system.members[&2].peers().collect::<Vec<_>>(), [(NodeId(20), "b:2380"), (NodeId(21), "b2:2380")]);
        let joint = Configuration {
            voters: [10, 21, 30].map(NodeId).into(),
            outgoing: [10, 20, 30].map(NodeId).into(),
            learners: BTreeSet::new(),
        };
        system.configured(joint, Index(5));
        assert_eq!(system.members[&2].disk, 20, "the old disk still votes");
        system.configured(Configuration::of([10, 21, 30].map(NodeId)), Index(6));
        let after = system.members[&2].clone();
        assert_eq!((after.disk, after.peer_addr.as_str(), after.joining_disk), (21, "b2:2380", 0));
        assert_eq!((after.member_id, after.ordinal), (before.member_id, before.ordinal));
        assert_eq!(reread(&mut system).members, system.members);
    }

    #[test]
    fn a_disk_cannot_join_under_two_names_nor_an_unknown_one() {
        let mut system = System::default();
        system.form(first_records(ClusterId(9), &formed()));
        let join = |name: &str, disk| MemberJoin { name: name.into(), disk, peer_addr: String::new() };
        assert_eq!(system.join(&join("x", 99)), Err(Refusal::MemberNotFound));
        assert_eq!(system.join(&join("a", 20)), Err(Refusal::MemberNotFound));
        assert_eq!(system.join(&join("a", 0)), Err(Refusal::MemberNotFound));
    }

    #[test]
    fn a_late_copy_of_an_old_wish_brings_no_replaced_disk_back() {
        let mut system = System::default();
        system.form(first_records(ClusterId(9), &formed()));
        let join = |disk| MemberJoin { name: "b".into(), disk, peer_addr: "b:2380".into() };
        assert_eq!(system.join(&join(21)), Ok(()));
        system.configured(Configuration::of([10, 21, 30].map(NodeId)), Index(5));
        assert_eq!(system.join(&join(20)), Err(Refusal::MemberNotFound));
        assert_eq!(system.join(&join(21)), Ok(()));
        assert_eq!((system.members[&2].disk, system.members[&2].joining_disk), (21, 0));
    }

    #[test]
    fn a_disk_that_votes_already_is_not_pushed_aside_by_the_next() {
        let mut system = System::default();
        system.form(first_records(ClusterId(9), &formed()));
        let join = |disk| MemberJoin { name: "b".into(), disk, peer_addr: format!("b{disk}:2380") };
        assert_eq!(system.join(&join(21)), Ok(()));
        let joint = Configuration {
            voters: [10, 21, 30].map(NodeId).into(),
            outgoing: [10, 20, 30].map(NodeId).into(),
            learners: BTreeSet::new(),
        };
        system.configured(joint, Index(5));
        assert_eq!(system.join(&join(22)), Err(Refusal::StillHere { name: "b".into() }));
        system.configured(Configuration::of([10, 21, 30].map(NodeId)), Index(6));
        assert_eq!(system.members[&2].disk, 21, "the table names every voter");
        assert_eq!(system.join(&join(22)), Ok(()));
    }

    #[test]
    fn alarms_are_cleared_by_member_and_kind() {
        let mut system = System::default();
        system.alarm(AlarmOp { clear: false, member: 5, alarm: 1 });
        system.alarm(AlarmOp { clear: false, member: 6, alarm: 1 });
        system.alarm(AlarmOp { clear: false, member: 6, alarm: 2 });
        assert_eq!(system.alarm(AlarmOp { clear: true, member: 6, alarm: 1 }), [(6, AlarmKind::NoSpace)]);
        assert!(system.is_alarmed(AlarmKind::NoSpace));
        assert_eq!(system.alarm(AlarmOp { clear: true, member: 0, alarm: 0 }).len(), 2);
        assert!(reread(&mut system).alarms.is_empty());
    }

    #[test]
    fn a_damaged_row_is_found() {
        let store = MemStore::new();
        let ops = vec![(SYSTEM_TABLE, member_key(1), Some(Bytes::from_static(b"\xff")))];
        store.commit(StoreBatch { ops }).unwrap();
        let view = store.view().unwrap();
        assert_eq!(member_table(&*view), Err(SystemError::Corrupt { key: member_key(1).to_vec() }));
    }
}
