//! A disk that loses on `kill -9` what it would lose on power loss: bytes and names live in this process' memory until
//! they are synced. For tests that kill processes; slow and hungry by design. Also home of the `--disk` modes.
//!
//! ```text
//! write ──▶ unsynced pages ──sync──▶ file has a durable name? yes ─▶ real file + fdatasync
//! (memory)                              no ─▶ synced pages (memory), until sync_dir makes the name
//! names  ──▶ pending operations ──sync_dir──▶ real directory + fsync
//! ```
//! Space is asked for at the sync: a full disk shows there, not in `allocate`.
//! Directories themselves are made at once: an empty directory that survives harms nobody. A renamed directory is
//! settled first, then renamed at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Disk, DiskError, DiskFile, OpenMode, layout};

/// How a member treats its disk: `--disk lossy`, `--disk lossy,nosync`, `--disk fail-sync=N`. The default is plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DiskMode {
    /// Unsynced bytes and names live in process memory only.
    pub lossy: bool,
    /// `sync` does nothing, but for the identity: for tests that must fail.
    pub nosync: bool,
    /// The `N`-th sync (from 1, files and directories) fails, as do all after it.
    pub fail_sync: Option<u64>,
}

/// A disk mode that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown disk mode {word:?}; known are lossy, nosync (with lossy) and fail-sync=N")]
pub struct DiskModeError {
    word: String,
}

impl FromStr for DiskMode {
    type Err = DiskModeError;

    fn from_str(text: &str) -> Result<Self, DiskModeError> {
        let mut mode = Self::default();
        for word in text.split(',') {
            let unknown = || DiskModeError { word: word.to_owned() };
            match word.split_once('=') {
                None if word == "lossy" => mode.lossy = true,
                None if word == "nosync" => mode.nosync = true,
                Some(("fail-sync", n)) => {
                    mode.fail_sync = Some(n.parse().ok().filter(|n| *n > 0).ok_or_else(unknown)?);
                }
                _ => return Err(unknown()),
            }
        }
        if mode.nosync && !mode.lossy {
            return Err(DiskModeError { word: "nosync".to_owned() });
        }
        Ok(mode)
    }
}

impl DiskMode {
    /// `disk` as this mode shows it.
    pub fn wrap(self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        if self == Self::default() {
            return disk;
        }
        Arc::new(LossyDisk::new(disk, self))
    }
}

/// A disk over another that holds back what is not synced. Clones share it.
#[derive(Clone)]
pub struct LossyDisk {
    shared: Arc<Shared>,
}

struct Shared {
    under: Arc<dyn Disk>,
    mode: DiskMode,
    syncs: AtomicU64,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// Opened or made here: the current name of each.
    files: BTreeMap<String, Arc<Mutex<Inode>>>,
    /// Names that are on the disk under us and gone here.
    hidden: BTreeSet<String>,
    pending: Vec<NameOp>,
}

#[derive(Clone)]
enum NameOp {
    Link(String, Arc<Mutex<Inode>>),
    Rename(String, String),
    Remove(String),
}

impl NameOp {
    fn touches(&self, dir: &str) -> bool {
        match self {
            Self::Link(path, _) | Self::Remove(path) => parent(path) == dir,
            Self::Rename(from, to) => parent(from) == dir || parent(to) == dir,
        }
    }

    /// Whether it concerns something below a directory, given with its slash.
    fn is_below(&self, below: &str) -> bool {
        match self {
            Self::Link(path, _) | Self::Remove(path) => path.starts_with(below),
            Self::Rename(from, to) => from.starts_with(below) || to.starts_with(below),
        }
    }
}

/// One file's bytes: what the disk has, and what it has not.
struct Inode {
    /// The real file, once its name is durable.
    real: Option<Arc<dyn DiskFile>>,
    /// Pages written since the last sync; or, without a real file, since ever.
    dirty: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Without a real file: pages as of the last sync, and the length then.
    synced: BTreeMap<u64, Box<[u8; PAGE]>>,
    synced_len: u64,
    len: u64,
    /// The shortest it was since the last sync: real bytes beyond read as zero.
    len_min: u64,
    /// Space to reserve on the real file.
    allocate: u64,
}

impl LossyDisk {
    /// Holds back what `under` is not yet asked to sync.
    pub fn new(under: Arc<dyn Disk>, mode: DiskMode) -> Self {
        let shared = Shared { under, mode, syncs: AtomicU64::new(0), names: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a sync; `Ok(false)` when it is to do nothing.
    fn sync_counts(&self, path: &str) -> Result<bool, DiskError> {
        let n = self.syncs.fetch_add(1, Ordering::Relaxed) + 1;
        if self.mode.fail_sync.is_some_and(|fail| n >= fail) {
            let reason = format!("told to fail from sync {n} on");
            return Err(DiskError::Io { path: path.to_owned(), op: "sync", reason });
        }
        // Who a member is survives even then: what must be seen to be missing is data.
        let who = path.is_empty() || path == layout::IDENTITY || path == layout::IDENTITY_NEW;
        Ok(!self.mode.nosync || who)
    }

    fn find(&self, names: &mut Names, path: &str) -> Result<Option<Arc<Mutex<Inode>>>, DiskError> {
        if let Some(found) = names.files.get(path) {
            return Ok(Some(Arc::clone(found)));
        }
        if names.hidden.contains(path) {
            return Ok(None);
        }
        let real = match self.under.open(path, OpenMode::Write) {
            Ok(real) => real,
            Err(DiskError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let inode = Arc::new(Mutex::new(Inode::of(real)?));
        names.files.insert(path.to_owned(), Arc::clone(&inode));
        Ok(Some(inode))
    }

    /// Does the pending name operations that `which` picks, for real.
    fn settle(&self, names: &mut Names, which: impl Fn(&NameOp) -> bool) -> Result<(), DiskError> {
        let pending = std::mem::take(&mut names.pending);
        let mut rest = pending.into_iter();
        for op in rest.by_ref() {
            if !which(&op) {
                names.pending.push(op);
                continue;
            }
            if let Err(error) = self.settle_one(&op) {
                names.pending.push(op);
                names.pending.extend(rest);
                return Err(error);
            }
        }
        let still: BTreeSet<String> = names
            .pending
            .iter()
            .filter_map(|op| match op {
                NameOp::Rename(path, _) | NameOp::Remove(path) => Some(path.clone()),
                NameOp::Link(..) => None,
            })
            .collect();
        names.hidden.retain(|path| still.contains(path));
        Ok(())
    }

    fn settle_one(&self, op: &NameOp) -> Result<(), DiskError> {
        match op {
            NameOp::Link(path, inode) => {
                let real = self.under.open(path, OpenMode::Create)?;
                lock(inode).materialize(real)
            }
            NameOp::Rename(from, to) => self.under.rename(from, to),
            NameOp::Remove(path) => match self.under.remove(path) {
                Err(DiskError::NotFound { .. }) => Ok(()),
                other => other,
            },
        }
    }
}

impl fmt::Debug for LossyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LossyDisk").field("mode", &self.shared.mode).field("under", &self.shared.under).finish()
    }
}

impl Disk for LossyDisk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        if !self.shared.mode.lossy {
            let file = self.shared.under.open(path, mode)?;
            return Ok(Arc::new(CountedFile { shared: Arc::clone(&self.shared), file, path: path.to_owned() }));
        }
        let mut names = self.shared.names();
        let found = self.shared.find(&mut names, path)?;
        let inode = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(DiskError::Exists { path: path.to_owned() }),
            (Some(inode), _) => inode,
            (None, OpenMode::Read | OpenMode::Write) => return Err(DiskError::NotFound { path: path.to_owned() }),
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                let inode = Arc::new(Mutex::new(Inode::new()));
                names.files.insert(path.to_owned(), Arc::clone(&inode));
                names.pending.push(NameOp::Link(path.to_owned(), Arc::clone(&inode)));
                inode
            }
        };
        Ok(Arc::new(LossyFile { shared: Arc::clone(&self.shared), inode, path: path.to_owned() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, DiskError> {
        let names = self.shared.names();
        let path_of = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let under = self.shared.under.list(dir)?;
        let mut all: BTreeSet<String> =
            under.into_iter().filter(|name| !names.hidden.contains(&path_of(name))).collect();
        let here = names.files.keys().filter(|path| parent(path) == dir);
        all.extend(here.filter_map(|path| path.rsplit('/').next()).map(str::to_owned));
        Ok(all.into_iter().collect())
    }

    fn create_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        self.shared.under.create_dir_all(dir)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        if !self.shared.mode.lossy {
            return self.shared.under.rename(from, to);
        }
        let mut names = self.shared.names();
        let Some(inode) = self.shared.find_file(&mut names, from)? else {
            // A directory: settle all below it and move it for real.
            let below = format!("{from}/");
            self.shared.settle(&mut names, |_| true)?;
            names.files.retain(|path, _| !path.starts_with(&below));
            return self.shared.under.rename(from, to);
        };
        names.files.remove(from);
        names.files.insert(to.to_owned(), inode);
        names.hidden.insert(from.to_owned());
        names.hidden.remove(to);
        names.pending.push(NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        if !self.shared.mode.lossy {
            return self.shared.under.remove(path);
        }
        let mut names = self.shared.names();
        if self.shared.find_file(&mut names, path)?.is_none() {
            return Err(DiskError::NotFound { path: path.to_owned() });
        }
        names.files.remove(path);
        names.hidden.insert(path.to_owned());
        names.pending.push(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        let mut names = self.shared.names();
        let below = format!("{dir}/");
        if self.shared.mode.lossy {
            // What concerns something below may hang on anything before it, so then all is settled; else nothing need be.
            if names.pending.iter().any(|op| op.is_below(&below)) {
                self.shared.settle(&mut names, |_| true)?;
            }
            names.files.retain(|path, _| !path.starts_with(&below));
        }
        self.shared.under.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        if !self.shared.sync_counts(dir)? {
            return Ok(());
        }
        if self.shared.mode.lossy {
            let mut names = self.shared.names();
            self.shared.settle(&mut names, |op| op.touches(dir))?;
        }
        self.shared.under.sync_dir(dir)
    }
}

impl Shared {
    /// As `find`, but `None` for a directory.
    fn find_file(&self, names: &mut Names, path: &str) -> Result<Option<Arc<Mutex<Inode>>>, DiskError> {
        match self.find(names, path) {
            // Opening a directory for writing fails (EISDIR).
            Err(DiskError::Io { .. }) => Ok(None),
            other => other,
        }
    }
}

impl Inode {
    fn new() -> Self {
        Self {
            real: None,
            dirty: BTreeMap::new(),
            synced: BTreeMap::new(),
            synced_len: 0,
            len: 0,
            len_min: 0,
            allocate: 0,
        }
    }

    fn of(real: Arc<dyn DiskFile>) -> Result<Self, DiskError> {
        let len = real.len()?;
        Ok(Self { real: Some(real), len, len_min: len, ..Self::new() })
    }

    /// The page as the last sync left it.
    fn clean_page(&self, number: u64) -> Result<Box<[u8; PAGE]>, DiskError> {
        let mut page = Box::new([0; PAGE]);
        let Some(real) = &self.real else {
            return Ok(self.synced.get(&number).cloned().unwrap_or(page));
        };
        let start = number * PAGE as u64;
        let wanted = usize::try_from(self.len_min.saturating_sub(start)).unwrap_or(usize::MAX).min(PAGE);
        if let Some(target) = page.get_mut(..wanted).filter(|target| !target.is_empty()) {
            real.read_at(start, target)?;
        }
        Ok(page)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        let wanted = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        if self.dirty.is_empty()
            && self.len == self.len_min
            && let (Some(real), Some(target)) = (&self.real, buf.get_mut(..wanted))
        {
            return real.read_at(offset, target);
        }
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (number, inside) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let n = (PAGE - inside).min(wanted - done);
            let clean;
            let page = match self.dirty.get(&number) {
                Some(page) => page,
                None => {
                    clean = self.clean_page(number)?;
                    &clean
                }
            };
            if let (Some(target), Some(source)) = (buf.get_mut(done..done + n), page.get(inside..inside + n)) {
                target.copy_from_slice(source);
            }
            done += n;
        }
        Ok(wanted)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let (number, inside) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let n = (PAGE - inside).min(rest.len());
            if !self.dirty.contains_key(&number) {
                let page = self.clean_page(number)?;
                self.dirty.insert(number, page);
            }
            let target = self.dirty.get_mut(&number).and_then(|page| page.get_mut(inside..inside + n));
            if let (Some(target), Some(source)) = (target, rest.get(..n)) {
                target.copy_from_slice(source);
            }
            done += n;
        }
        self.len = self.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> Result<(), DiskError> {
        if len < self.len {
            // What is cut must read as zero when the file grows again.
            let number = len / PAGE as u64;
            let inside = (len % PAGE as u64) as usize;
            if inside > 0 {
                let mut page = match self.dirty.remove(&number) {
                    Some(page) => page,
                    None => self.clean_page(number)?,
                };
                page.get_mut(inside..).unwrap_or_default().fill(0);
                self.dirty.insert(number, page);
            }
            self.dirty.split_off(&len.div_ceil(PAGE as u64));
            if self.real.is_none() {
                self.synced_cut(len);
            }
            self.len_min = self.len_min.min(len);
        }
        self.len = len;
        Ok(())
    }

    /// Without a real file a shrink forgets synced pages at once: it loses more than it must, never less.
    fn synced_cut(&mut self, len: u64) {
        self.synced.split_off(&len.div_ceil(PAGE as u64));
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        let dirty = std::mem::take(&mut self.dirty);
        match self.real.clone() {
            Some(real) => {
                if let Err(error) = self.write_back(&*real, &dirty) {
                    self.dirty = dirty;
                    return Err(error);
                }
                self.len_min = self.len;
            }
            None => self.synced.extend(dirty),
        }
        self.synced_len = self.len;
        Ok(())
    }

    fn write_back(&self, real: &dyn DiskFile, pages: &BTreeMap<u64, Box<[u8; PAGE]>>) -> Result<(), DiskError> {
        if real.len()? > self.len_min {
            real.set_len(self.len_min)?;
        }
        if self.allocate.min(self.len) > real.len()? {
            real.allocate(self.allocate.min(self.len))?;
        }
        for (number, page) in pages {
            let start = number * PAGE as u64;
            let n = usize::try_from(self.len.saturating_sub(start)).unwrap_or(usize::MAX).min(PAGE);
            real.write_at(start, page.get(..n).unwrap_or(&[]))?;
        }
        if real.len()? != self.len {
            real.set_len(self.len)?;
        }
        real.sync()
    }

    /// The name became durable: what was synced goes to the real file, what was not stays here.
    fn materialize(&mut self, real: Arc<dyn DiskFile>) -> Result<(), DiskError> {
        real.set_len(0)?;
        if self.allocate > 0 {
            real.allocate(self.allocate.min(self.synced_len))?;
        }
        for (number, page) in &self.synced {
            let start = number * PAGE as u64;
            let n = usize::try_from(self.synced_len.saturating_sub(start)).unwrap_or(usize::MAX).min(PAGE);
            real.write_at(start, page.get(..n).unwrap_or(&[]))?;
        }
        real.set_len(self.synced_len)?;
        real.sync()?;
        self.synced.clear();
        self.len_min = self.synced_len.min(self.len);
        self.real = Some(real);
        Ok(())
    }
}

struct LossyFile {
    shared: Arc<Shared>,
    inode: Arc<Mutex<Inode>>,
    path: String,
}

impl fmt::Debug for LossyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LossyFile({})", self.path)
    }
}

impl DiskFile for LossyFile {
    fn len(&self) -> Result<u64, DiskError> {
        Ok(lock(&self.inode).len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        lock(&self.inode).read(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        lock(&self.inode).write(offset, data)
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        lock(&self.inode).set_len(len)
    }

    fn allocate(&self, len: u64) -> Result<(), DiskError> {
        let mut inode = lock(&self.inode);
        inode.allocate = inode.allocate.max(len);
        if len > inode.len { inode.set_len(len) } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), DiskError> {
        if self.shared.sync_counts(&self.path)? { lock(&self.inode).sync() } else { Ok(()) }
    }
}

/// A file of the disk below, whose syncs are counted.
struct CountedFile {
    shared: Arc<Shared>,
    file: Arc<dyn DiskFile>,
    path: String,
}

impl fmt::Debug for CountedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl DiskFile for CountedFile {
    fn len(&self) -> Result<u64, DiskError> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.file.write_at(offset, data)
    }

    fn write_vectored_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        self.file.write_vectored_at(offset, parts)
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> Result<(), DiskError> {
        self.file.allocate(len)
    }

    fn sync(&self) -> Result<(), DiskError> {
        if self.shared.sync_counts(&self.path)? { self.file.sync() } else { Ok(()) }
    }
}

fn lock(inode: &Mutex<Inode>) -> MutexGuard<'_, Inode> {
    inode.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemDisk;

    fn lossy(under: &MemDisk) -> LossyDisk {
        LossyDisk::new(Arc::new(under.clone()), DiskMode { lossy: true, ..DiskMode::default() })
    }

    #[test]
    fn modes_are_read_and_nonsense_is_named() {
        let mode = |text: &str| text.parse::<DiskMode>();
        assert_eq!(mode("lossy").unwrap(), DiskMode { lossy: true, ..DiskMode::default() });
        assert_eq!(mode("lossy,nosync").unwrap(), DiskMode { lossy: true, nosync: true, fail_sync: None });
        assert_eq!(mode("fail-sync=7").unwrap().fail_sync, Some(7));
        for bad in ["", "loss", "nosync", "fail-sync", "fail-sync=0", "fail-sync=x", "lossy=1"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unsynced_bytes_and_names_die_with_the_process() {
        let under = MemDisk::new();
        let disk = lossy(&under);
        let a = disk.open("a", OpenMode::Create).unwrap();
        a.write_at(0, b"one").unwrap();
        a.sync().unwrap();
        assert!(under.list("").unwrap().is_empty(), "no name without sync_dir");
        disk.sync_dir("").unwrap();
        a.write_at(0, b"two and more").unwrap();
        disk.rename("a", "b").unwrap();
        let mut buf = [0; 12];
        assert_eq!(disk.open("b", OpenMode::Read).unwrap().read_at(0, &mut buf).unwrap(), 12);
        assert_eq!(disk.list("").unwrap(), ["b"]);
        assert!(matches!(disk.open("a", OpenMode::Read), Err(DiskError::NotFound { .. })));
        // The process dies here.
        let disk = lossy(&under);
        assert_eq!(disk.list("").unwrap(), ["a"]);
        let n = disk.open("a", OpenMode::Read).unwrap().read_at(0, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"one");
    }

    #[test]
    fn the_nth_sync_fails_and_all_after_it() {
        let under = MemDisk::new();
        let mode = DiskMode { fail_sync: Some(2), ..DiskMode::default() };
        let disk = mode.wrap(Arc::new(under));
        let file = disk.open("a", OpenMode::Create).unwrap();
        file.sync().unwrap();
        assert!(file.sync().is_err());
        assert!(disk.sync_dir("").is_err());
    }
}
