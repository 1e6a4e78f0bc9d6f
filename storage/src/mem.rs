//! A disk in memory that tells durable from pending, so that tests can cut the power at any operation and choose what
//! of the unsynced bytes survives. It is not the simulator's disk: it has no clock, no seed and no faults of its own.
//!
//! Each file has a *current* image (what reads see), a *durable* one (what the last sync made sure of) and the list of
//! writes between them. Names work the same way: the directory operations since `sync_dir` are pending.
//!
//! ```text
//! write ──▶ current ──sync──▶ durable ──▶ survives power loss
//!              └─ pending sectors: lost, kept or torn, one by one, as the test says
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Disk, DiskError, DiskFile, OpenMode};

/// Bytes that a device writes or loses together.
pub const SECTOR: usize = 512;

/// What becomes of one unsynced sector, length change or directory operation when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never reached the device.
    Lost,
    /// It did.
    Kept,
    /// Half of the sector did (a length change or directory operation: as `Kept`).
    Torn,
}

/// A disk in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameOp>,
    dirs: BTreeSet<String>,
    files: Vec<Image>,
    /// Operations that change something (or sync), so far.
    ops: u64,
    power_ends_at: Option<u64>,
    fail_at: Option<u64>,
    capacity: Option<u64>,
}

#[derive(Clone)]
enum NameOp {
    Link(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default)]
struct Image {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl MemDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as the next start finds it after the power failed now: `fate` is asked once for each unsynced piece,
    /// in the order written. This disk stays as it is.
    #[must_use]
    pub fn power_loss(&self, fate: &mut dyn FnMut(u64) -> Fate) -> Self {
        let state = self.lock();
        let mut asked = 0;
        let mut ask = || {
            asked += 1;
            fate(asked - 1)
        };
        let mut names = state.durable_names.clone();
        // Directory operations are journalled: a prefix survives.
        for op in &state.pending_names {
            if ask() == Fate::Lost {
                break;
            }
            apply_name(&mut names, op);
        }
        let files: Vec<Image> = state.files.iter().map(|image| image.after_loss(&mut ask)).collect();
        let mut dirs = state.dirs.clone();
        for path in names.keys() {
            insert_parents(&mut dirs, parent(path));
        }
        let after =
            State { durable_names: names.clone(), names, dirs, files, capacity: state.capacity, ..State::default() };
        Self { state: Arc::new(Mutex::new(after)) }
    }

    /// How many operations that write, sync or change names were tried so far.
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// From the `n`-th such operation of this disk on (0 = the first), every operation fails: the power is gone.
    pub fn cut_power_after(&self, n: u64) {
        let mut state = self.lock();
        state.power_ends_at = Some(state.ops + n);
    }

    /// The `n`-th such operation from now fails once with an I/O error, without effect.
    pub fn fail_op(&self, n: u64) {
        let mut state = self.lock();
        state.fail_at = Some(state.ops + n);
    }

    /// Bytes that all files together may have; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes that all files together have.
    pub fn used(&self) -> u64 {
        let state = self.lock();
        state.names.values().filter_map(|&id| state.files.get(id)).map(|f| f.current.len() as u64).sum()
    }

    /// Changes one byte of a file, current and durable, as a decaying medium would. `false` when there is none such.
    pub fn flip(&self, path: &str, offset: usize, mask: u8) -> bool {
        let mut state = self.lock();
        let Some(&id) = state.names.get(path) else { return false };
        let Some(image) = state.files.get_mut(id) else { return false };
        if let Some(byte) = image.durable.get_mut(offset) {
            *byte ^= mask;
        }
        match image.current.get_mut(offset) {
            Some(byte) => {
                *byte ^= mask;
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, path: &str, op: &'static str) -> Result<(), DiskError> {
        let n = self.ops;
        self.ops += 1;
        let no_power = self.power_ends_at.is_some_and(|end| n >= end);
        if no_power || self.fail_at == Some(n) {
            let reason = if no_power { "the power is gone" } else { "injected" };
            return Err(DiskError::Io { path: path.to_owned(), op, reason: reason.to_owned() });
        }
        Ok(())
    }

    fn room(&self, id: usize, len: usize, path: &str) -> Result<(), DiskError> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let others: usize =
            self.names.values().filter(|&&i| i != id).filter_map(|&i| self.files.get(i)).map(|f| f.current.len()).sum();
        if (others + len) as u64 > capacity {
            return Err(DiskError::NoSpace { path: path.to_owned() });
        }
        Ok(())
    }
}

impl Image {
    fn write(&mut self, offset: usize, data: &[u8]) {
        write_to(&mut self.current, offset, data);
        self.pending.push(Change::Write(offset, data.to_vec()));
    }

    fn set_len(&mut self, len: usize) {
        self.current.resize(len, 0);
        self.pending.push(Change::Len(len));
    }

    fn after_loss(&self, ask: &mut dyn FnMut() -> Fate) -> Self {
        let mut image = self.durable.clone();
        for change in &self.pending {
            match change {
                Change::Len(len) => {
                    if ask() != Fate::Lost {
                        image.resize(*len, 0);
                    }
                }
                Change::Write(offset, data) => {
                    let mut at = *offset;
                    let mut rest = data.as_slice();
                    while !rest.is_empty() {
                        let (piece, tail) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                        match ask() {
                            Fate::Lost => {}
                            Fate::Kept => write_to(&mut image, at, piece),
                            Fate::Torn => write_to(&mut image, at, piece.split_at(piece.len() / 2).0),
                        }
                        at += piece.len();
                        rest = tail;
                    }
                }
            }
        }
        Self { durable: image.clone(), current: image, pending: Vec::new() }
    }
}

fn write_to(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    if let Some(target) = image.get_mut(offset..end) {
        target.copy_from_slice(data);
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, op: &NameOp) {
    match op {
        NameOp::Link(path, id) => drop(names.insert(path.clone(), *id)),
        NameOp::Remove(path) => drop(names.remove(path)),
        NameOp::Rename(from, to) => {
            let below = format!("{from}/");
            let moved: Vec<String> =
                names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
            for name in moved {
                if let Some(id) = names.remove(&name) {
                    names.insert(name.replacen(from.as_str(), to, 1), id);
                }
            }
        }
    }
}

fn insert_parents(dirs: &mut BTreeSet<String>, dir: &str) {
    let mut path = dir;
    while !path.is_empty() {
        dirs.insert(path.to_owned());
        path = parent(path);
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl NameOp {
    fn touches(&self, dir: &str) -> bool {
        match self {
            Self::Link(path, _) | Self::Remove(path) => parent(path) == dir,
            Self::Rename(from, to) => parent(to) == dir || parent(from) == dir,
        }
    }
}

impl fmt::Debug for MemDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("MemDisk").field("files", &state.names.len()).field("ops", &state.ops).finish()
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut state = self.lock();
        let found = state.names.get(path).copied();
        let id = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(DiskError::Exists { path: path.to_owned() }),
            (Some(id), _) => id,
            (None, OpenMode::Read | OpenMode::Write) => return Err(DiskError::NotFound { path: path.to_owned() }),
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                state.count(path, "create")?;
                let id = state.files.len();
                state.files.push(Image::default());
                state.names.insert(path.to_owned(), id);
                state.pending_names.push(NameOp::Link(path.to_owned(), id));
                id
            }
        };
        Ok(Arc::new(MemFile { disk: self.clone(), id, path: path.to_owned() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, DiskError> {
        let state = self.lock();
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let all = state.names.keys().chain(state.dirs.iter());
        let names: BTreeSet<String> = all
            .filter_map(|path| path.strip_prefix(&prefix))
            .filter_map(|rest| rest.split('/').next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(names.into_iter().collect())
    }

    fn create_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.count(dir, "mkdir")?;
        insert_parents(&mut state.dirs, dir);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.count(from, "rename")?;
        let below = format!("{from}/");
        let is_dir = state.dirs.contains(from);
        if !is_dir && !state.names.contains_key(from) {
            return Err(DiskError::NotFound { path: from.to_owned() });
        }
        if is_dir {
            let moved: Vec<String> =
                state.dirs.iter().filter(|d| *d == from || d.starts_with(&below)).cloned().collect();
            for dir in moved {
                state.dirs.remove(&dir);
                state.dirs.insert(dir.replacen(from, to, 1));
            }
        }
        let op = NameOp::Rename(from.to_owned(), to.to_owned());
        apply_name(&mut state.names, &op);
        state.pending_names.push(op);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.count(path, "remove")?;
        if state.names.remove(path).is_none() {
            return Err(DiskError::NotFound { path: path.to_owned() });
        }
        state.pending_names.push(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.count(dir, "remove_dir_all")?;
        let below = format!("{dir}/");
        let gone: Vec<String> = state.names.keys().filter(|name| name.starts_with(&below)).cloned().collect();
        for path in gone {
            state.names.remove(&path);
            state.pending_names.push(NameOp::Remove(path));
        }
        state.dirs.retain(|d| d != dir && !d.starts_with(&below));
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        state.count(dir, "sync_dir")?;
        let pending = std::mem::take(&mut state.pending_names);
        for op in pending {
            if op.touches(dir) {
                apply_name(&mut state.durable_names, &op);
            } else {
                state.pending_names.push(op);
            }
        }
        Ok(())
    }
}

struct MemFile {
    disk: MemDisk,
    id: usize,
    path: String,
}

impl MemFile {
    fn change<T>(
        &self,
        op: &'static str,
        end: usize,
        apply: impl FnOnce(&mut Image) -> T,
    ) -> Result<Option<T>, DiskError> {
        let mut state = self.disk.lock();
        state.count(&self.path, op)?;
        let grows = state.files.get(self.id).is_some_and(|image| image.current.len() < end);
        if grows {
            state.room(self.id, end, &self.path)?;
        }
        Ok(state.files.get_mut(self.id).map(apply))
    }

    fn number(&self, n: u64) -> Result<usize, DiskError> {
        usize::try_from(n).map_err(|_| DiskError::NoSpace { path: self.path.clone() })
    }
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemFile({})", self.path)
    }
}

impl DiskFile for MemFile {
    fn len(&self) -> Result<u64, DiskError> {
        Ok(self.disk.lock().files.get(self.id).map_or(0, |image| image.current.len() as u64))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        let offset = self.number(offset)?;
        let state = self.disk.lock();
        let there = state.files.get(self.id).and_then(|image| image.current.get(offset..)).unwrap_or(&[]);
        let n = there.len().min(buf.len());
        if let (Some(target), Some(source)) = (buf.get_mut(..n), there.get(..n)) {
            target.copy_from_slice(source);
        }
        Ok(n)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let offset = self.number(offset)?;
        self.change("write", offset + data.len(), |image| image.write(offset, data)).map(drop)
    }

    fn write_vectored_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        self.write_at(offset, &parts.concat())
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        let len = self.number(len)?;
        self.change("set_len", len, |image| image.set_len(len)).map(drop)
    }

    fn allocate(&self, len: u64) -> Result<(), DiskError> {
        let len = self.number(len)?;
        self.change("allocate", len, |image| {
            if image.current.len() < len {
                image.set_len(len);
            }
        })
        .map(drop)
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.change("sync", 0, |image| {
            image.durable.clone_from(&image.current);
            image.pending.clear();
        })
        .map(drop)
    }
}
