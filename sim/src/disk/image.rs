//! The state of one disk, live and durable, as a value: clone it for a snapshot, crash the clone to see what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use triune_storage::{DiskError, OpenMode};

use super::content::Content;
use crate::Rng;

/// What a disk writes whole: a crash leaves a sector old or new.
pub const SECTOR_BYTES: u64 = 512;

/// Everything on one disk, and what of it is durable. Cloning shares all pages.
#[derive(Clone, Debug)]
pub struct DiskImage {
    files: BTreeMap<Ino, Arc<File>>,
    live: BTreeMap<Ino, Dir>,
    durable: BTreeMap<Ino, Dir>,
    /// Changes of names that no directory sync has covered yet, oldest first.
    names: Vec<NameOp>,
    next_ino: u64,
}

/// What a crash kept and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Unsynced sectors and lengths that survived.
    pub kept: u64,
    /// Unsynced sectors and lengths that did not.
    pub lost: u64,
    /// Writes of which some sectors survived and some did not.
    pub torn_writes: u64,
    /// Unsynced names that survived.
    pub names_kept: u64,
    /// Unsynced names that did not.
    pub names_lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ino(u64);

type Dir = BTreeMap<String, Ino>;

#[derive(Clone, Debug, Default)]
struct File {
    live: Content,
    durable: Content,
    pending: Vec<Pending>,
    /// Space taken, in bytes: writes below it cannot run out of space.
    reserved: u64,
}

#[derive(Clone, Debug)]
enum Pending {
    Bytes { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Grow(u64),
}

#[derive(Clone, Debug)]
enum NameOp {
    Link { at: Name, ino: Ino },
    Unlink { at: Name },
    Move { from: Name, to: Name, ino: Ino },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    dir: Ino,
    name: String,
}

const ROOT: Ino = Ino(0);

impl Default for DiskImage {
    fn default() -> Self {
        Self::new()
    }
}

impl DiskImage {
    /// A blank disk.
    pub fn new() -> Self {
        let dirs: BTreeMap<_, _> = [(ROOT, Dir::new())].into();
        Self { files: BTreeMap::new(), live: dirs.clone(), durable: dirs, names: Vec::new(), next_ino: 1 }
    }

    /// The paths of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.walk(ROOT, "", &mut paths);
        paths
    }

    /// What a program reads of the whole file.
    pub fn live_bytes(&self, path: &str) -> Option<Vec<u8>> {
        Some(self.file_at(path)?.live.bytes())
    }

    /// What of the file's bytes would survive if everything unsynced were lost. (Its name may be unsynced too.)
    pub fn durable_bytes(&self, path: &str) -> Option<Vec<u8>> {
        Some(self.file_at(path)?.durable.bytes())
    }

    /// The number of things a crash decides about: unsynced sectors, lengths and names.
    pub fn pending(&self) -> usize {
        let pieces = |op: &Pending| match op {
            Pending::Bytes { offset, data } => sectors(*offset, data).count(),
            Pending::SetLen(_) | Pending::Grow(_) => 1,
        };
        self.files.values().flat_map(|f| &f.pending).map(pieces).sum::<usize>() + self.names.len()
    }

    /// Power fails: of the unsynced things, numbered from 0 to [`DiskImage::pending`], those survive for which `keep`
    /// is true. Live becomes durable.
    pub fn crash_keeping(&mut self, keep: &mut dyn FnMut(usize) -> bool) -> CrashReport {
        let mut report = CrashReport::default();
        let mut n = 0;
        let mut decide = || {
            n += 1;
            keep(n - 1)
        };
        for file in self.files.values_mut().filter(|f| !f.pending.is_empty() || f.live != f.durable) {
            let file = Arc::make_mut(file);
            for op in std::mem::take(&mut file.pending) {
                file.crash_op(&op, &mut decide, &mut report);
            }
            file.live = file.durable.clone();
        }
        for op in std::mem::take(&mut self.names) {
            if decide() {
                report.names_kept += 1;
                op.apply(&mut self.durable);
            } else {
                report.names_lost += 1;
            }
        }
        self.live = self.durable.clone();
        self.collect(&BTreeSet::new());
        report
    }

    /// Power fails, and chance decides: nothing unsynced survives, or all, or a prefix, or any subset.
    pub fn crash(&mut self, rng: &mut Rng) -> CrashReport {
        let pending = self.pending() as u64;
        match rng.below(4) {
            0 => self.crash_keeping(&mut |_| false),
            1 => self.crash_keeping(&mut |_| true),
            2 => {
                let cut = rng.range(0, pending);
                self.crash_keeping(&mut |n| (n as u64) < cut)
            }
            _ => {
                let keep = crate::Ppm::percent(rng.range(5, 95) as u32);
                self.crash_keeping(&mut |_| rng.chance(keep))
            }
        }
    }

    /// The disks that a power cut now could leave: all of them when they are at most `limit`, else nothing kept,
    /// everything kept, each prefix, each single survivor, each single loss, and random subsets up to `limit`.
    pub fn crash_states(&self, limit: usize, rng: &mut Rng) -> Vec<Self> {
        let pending = self.pending();
        let crashed = |keep: &mut dyn FnMut(usize) -> bool| {
            let mut image = self.clone();
            image.crash_keeping(keep);
            image
        };
        if pending < usize::BITS as usize - 1 && 1_usize << pending <= limit {
            return (0..1_usize << pending).map(|mask| crashed(&mut |n| mask >> n & 1 == 1)).collect();
        }
        let mut states: Vec<_> = (0..=pending).map(|cut| crashed(&mut |n| n < cut)).collect();
        states.extend((0..pending).map(|only| crashed(&mut |n| n == only)));
        states.extend((0..pending).map(|but| crashed(&mut |n| n != but)));
        states.truncate(limit);
        while states.len() < limit {
            states.push(crashed(&mut |_| rng.coin()));
        }
        states
    }

    /// Flips a bit of what is on the platter, and of what reads return unless the page cache holds a newer version.
    /// False when there is no such byte.
    pub fn flip_bit(&mut self, path: &str, offset: u64, bit: u8) -> bool {
        let Some(file) = self.lookup(path).and_then(|ino| self.files.get_mut(&ino)) else { return false };
        let file = Arc::make_mut(file);
        let dirty = file.pending.iter().any(|op| op.covers(offset));
        let flipped = file.durable.flip(offset, bit);
        if flipped && !dirty {
            file.live.flip(offset, bit);
        }
        flipped
    }

    pub(super) fn open(&mut self, path: &str, mode: OpenMode) -> Result<Ino, DiskError> {
        let found = self.lookup(path);
        match (found, mode) {
            (Some(_), OpenMode::CreateNew) => Err(DiskError::Exists { path: path.into() }),
            (Some(ino), _) if self.files.contains_key(&ino) => Ok(ino),
            (Some(_), _) => Err(io(path, "open", "is a directory")),
            (None, OpenMode::Read | OpenMode::Write) => Err(DiskError::NotFound { path: path.into() }),
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                let at = self.parent(path)?;
                let ino = self.new_ino();
                self.files.insert(ino, Arc::default());
                self.change(NameOp::Link { at, ino });
                Ok(ino)
            }
        }
    }

    pub(super) fn len(&self, ino: Ino) -> u64 {
        self.files.get(&ino).map_or(0, |f| f.live.len())
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> usize {
        self.files.get(&ino).map_or(0, |f| f.live.read(offset, buf))
    }

    /// Writes to the live image. `lands_at` is where the bytes will go on the platter: elsewhere if misdirected.
    pub(super) fn write(&mut self, ino: Ino, offset: u64, data: &[u8], lands_at: u64) {
        let Some(file) = self.file_mut(ino) else { return };
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        if end > file.live.len() {
            file.pending.push(Pending::Grow(end));
        }
        file.live.write(offset, data);
        file.reserved = file.reserved.max(end);
        file.pending.push(Pending::Bytes { offset: lands_at, data: data.to_vec() });
    }

    pub(super) fn set_len(&mut self, ino: Ino, len: u64) {
        let Some(file) = self.file_mut(ino) else { return };
        file.live.set_len(len);
        file.reserved = file.reserved.min(len);
        file.pending.push(Pending::SetLen(len));
    }

    pub(super) fn allocate(&mut self, ino: Ino, len: u64) {
        let Some(file) = self.file_mut(ino) else { return };
        file.reserved = file.reserved.max(len);
        if len > file.live.len() {
            file.live.grow(len);
            file.pending.push(Pending::Grow(len));
        }
    }

    /// Space a write or reservation up to `end` would take on top of what the file has.
    pub(super) fn growth(&self, ino: Ino, end: u64) -> u64 {
        self.files.get(&ino).map_or(0, |f| end.saturating_sub(f.reserved))
    }

    /// Space taken by all files that have a name.
    pub(super) fn used_bytes(&self) -> u64 {
        let inos: BTreeSet<_> = self.live.values().flat_map(BTreeMap::values).collect();
        inos.into_iter().filter_map(|ino| self.files.get(ino)).map(|f| f.reserved).sum()
    }

    pub(super) fn sync(&mut self, ino: Ino) {
        let Some(file) = self.file_mut(ino) else { return };
        for op in std::mem::take(&mut file.pending) {
            op.apply(&mut file.durable);
        }
    }

    /// A sync that fails: chance decides what reaches the platter; the rest looks written and never will be.
    pub(super) fn sync_failing(&mut self, ino: Ino, rng: &mut Rng) {
        let Some(file) = self.file_mut(ino) else { return };
        let mut report = CrashReport::default();
        for op in std::mem::take(&mut file.pending) {
            file.crash_op(&op, &mut || rng.coin(), &mut report);
        }
    }

    pub(super) fn sync_dir(&mut self, dir: &str, rng_on_failure: Option<&mut Rng>) -> Result<(), DiskError> {
        let ino = self.dir(dir)?;
        // A change of the directory brings along earlier changes of the same names, wherever they were made.
        let mut touched = BTreeSet::new();
        let mut chosen = vec![false; self.names.len()];
        for (op, chosen) in self.names.iter().zip(&mut chosen).rev() {
            if op.names().any(|name| name.dir == ino || touched.contains(name)) {
                *chosen = true;
                touched.extend(op.names().cloned());
            }
        }
        let mut lossy = rng_on_failure;
        for (op, chosen) in std::mem::take(&mut self.names).into_iter().zip(chosen) {
            if !chosen {
                self.names.push(op);
            } else if lossy.as_mut().is_none_or(|rng| rng.coin()) {
                op.apply(&mut self.durable);
            }
        }
        Ok(())
    }

    pub(super) fn list(&self, dir: &str) -> Vec<String> {
        let names = self.lookup(dir).and_then(|ino| self.live.get(&ino));
        names.map(|names| names.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn create_dir_all(&mut self, dir: &str) -> Result<(), DiskError> {
        let mut at = ROOT;
        for name in components(dir) {
            let next = self.live.get(&at).and_then(|names| names.get(name)).copied();
            at = match next {
                Some(ino) if self.live.contains_key(&ino) => ino,
                Some(_) => return Err(io(dir, "create_dir_all", "a file is in the way")),
                None => {
                    let ino = self.new_ino();
                    self.live.insert(ino, Dir::new());
                    self.durable.insert(ino, Dir::new());
                    self.change(NameOp::Link { at: Name { dir: at, name: name.into() }, ino });
                    ino
                }
            };
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        let ino = self.lookup(from).ok_or_else(|| DiskError::NotFound { path: from.into() })?;
        let (from_name, to_name) = (self.parent(from)?, self.parent(to)?);
        if self.lookup(to).is_some_and(|target| target != ino && self.live.contains_key(&target)) {
            return Err(io(to, "rename", "is a directory"));
        }
        if from_name != to_name {
            self.change(NameOp::Move { from: from_name, to: to_name, ino });
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &str) -> Result<(), DiskError> {
        let ino = self.lookup(path).ok_or_else(|| DiskError::NotFound { path: path.into() })?;
        if self.live.contains_key(&ino) {
            return Err(io(path, "remove", "is a directory"));
        }
        let at = self.parent(path)?;
        self.change(NameOp::Unlink { at });
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, dir: &str) -> Result<(), DiskError> {
        let Some(ino) = self.lookup(dir) else { return Ok(()) };
        if ino == ROOT {
            return Err(io(dir, "remove_dir_all", "is the data directory itself"));
        }
        if !self.live.contains_key(&ino) {
            return Err(io(dir, "remove_dir_all", "is a file"));
        }
        for name in self.list(dir) {
            let path = format!("{dir}/{name}");
            let child = self.lookup(&path);
            if child.is_some_and(|child| self.live.contains_key(&child)) {
                self.remove_dir_all(&path)?;
            } else {
                self.remove(&path)?;
            }
        }
        let at = self.parent(dir)?;
        self.change(NameOp::Unlink { at });
        Ok(())
    }

    /// Forgets files that have no name, live, durable or pending, and that nobody has open.
    pub(super) fn collect(&mut self, open: &BTreeSet<Ino>) {
        let mut named: BTreeSet<Ino> = open.clone();
        named.insert(ROOT);
        named.extend(self.live.values().chain(self.durable.values()).flat_map(BTreeMap::values));
        named.extend(self.names.iter().filter_map(NameOp::ino));
        self.files.retain(|ino, _| named.contains(ino));
        self.live.retain(|ino, _| named.contains(ino));
        self.durable.retain(|ino, _| named.contains(ino));
    }

    fn change(&mut self, op: NameOp) {
        op.apply(&mut self.live);
        self.names.push(op);
    }

    const fn new_ino(&mut self) -> Ino {
        self.next_ino += 1;
        Ino(self.next_ino)
    }

    fn file_mut(&mut self, ino: Ino) -> Option<&mut File> {
        self.files.get_mut(&ino).map(Arc::make_mut)
    }

    fn file_at(&self, path: &str) -> Option<&File> {
        self.lookup(path).and_then(|ino| self.files.get(&ino)).map(Arc::as_ref)
    }

    fn lookup(&self, path: &str) -> Option<Ino> {
        components(path).try_fold(ROOT, |at, name| self.live.get(&at)?.get(name).copied())
    }

    fn dir(&self, path: &str) -> Result<Ino, DiskError> {
        let found = self.lookup(path).filter(|ino| self.live.contains_key(ino));
        found.ok_or_else(|| DiskError::NotFound { path: path.into() })
    }

    fn parent(&self, path: &str) -> Result<Name, DiskError> {
        let path = path.trim_matches('/');
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok(Name { dir: self.dir(dir)?, name: name.into() })
    }

    fn walk(&self, dir: Ino, prefix: &str, paths: &mut Vec<String>) {
        for (name, ino) in self.live.get(&dir).into_iter().flatten() {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            if self.files.contains_key(ino) {
                paths.push(path);
            } else {
                self.walk(*ino, &path, paths);
            }
        }
    }
}

impl File {
    /// Applies to the durable image those pieces of `op` for which `keep` is true.
    fn crash_op(&mut self, op: &Pending, keep: &mut dyn FnMut() -> bool, report: &mut CrashReport) {
        let (mut kept, mut lost) = (0, 0);
        match op {
            Pending::Bytes { offset, data } => {
                for (at, piece) in sectors(*offset, data) {
                    if keep() {
                        kept += 1;
                        self.durable.write(at, piece);
                    } else {
                        lost += 1;
                    }
                }
            }
            Pending::SetLen(_) | Pending::Grow(_) if keep() => {
                kept = 1;
                op.apply(&mut self.durable);
            }
            Pending::SetLen(_) | Pending::Grow(_) => lost = 1,
        }
        report.kept += kept;
        report.lost += lost;
        report.torn_writes += u64::from(kept > 0 && lost > 0);
    }
}

impl Pending {
    fn apply(&self, to: &mut Content) {
        match self {
            Self::Bytes { offset, data } => to.write(*offset, data),
            Self::SetLen(len) => to.set_len(*len),
            Self::Grow(len) => to.grow(*len),
        }
    }

    const fn covers(&self, at: u64) -> bool {
        match self {
            Self::Bytes { offset, data } => *offset <= at && at < *offset + data.len() as u64,
            Self::SetLen(_) | Self::Grow(_) => false,
        }
    }
}

impl NameOp {
    fn apply(&self, dirs: &mut BTreeMap<Ino, Dir>) {
        let mut link = |at: &Name, ino: Ino| {
            dirs.entry(at.dir).or_default().insert(at.name.clone(), ino);
        };
        match self {
            Self::Link { at, ino } => link(at, *ino),
            Self::Move { from, to, ino } => {
                link(to, *ino);
                let old = dirs.entry(from.dir).or_default();
                if old.get(&from.name) == Some(ino) {
                    old.remove(&from.name);
                }
            }
            Self::Unlink { at } => {
                dirs.entry(at.dir).or_default().remove(&at.name);
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        let (first, second) = match self {
            Self::Link { at, .. } | Self::Unlink { at } => (at, None),
            Self::Move { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    const fn ino(&self) -> Option<Ino> {
        match self {
            Self::Link { ino, .. } | Self::Move { ino, .. } => Some(*ino),
            Self::Unlink { .. } => None,
        }
    }
}

/// The pieces of a write that reach the platter whole, with their offsets.
fn sectors(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = data;
    let mut at = offset;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let room = (SECTOR_BYTES - at % SECTOR_BYTES) as usize;
        let (piece, later) = rest.split_at(room.min(rest.len()));
        let place = at;
        rest = later;
        at += piece.len() as u64;
        Some((place, piece))
    })
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".")
}

pub(super) fn io(path: &str, op: &'static str, reason: &str) -> DiskError {
    DiskError::Io { path: path.into(), op, reason: reason.into() }
}
