//! The real disk: files below one directory, owned by one process at a time.
//!
//! Linux calls where they matter: `fallocate` reserves a segment, `pwritev` writes a batch without copying it,
//! `fdatasync` makes it durable, `flock` on `LOCK` keeps a second process out. Nothing is retried but `EINTR`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use crate::{Disk, DiskError, DiskFile, OpenMode, layout};

/// A data directory on the real disk, locked while this lives.
#[derive(Debug)]
pub struct FileDisk {
    root: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// The data directory cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process has it. Stop that process, or choose another directory.
    #[error("{path}: in use by another process")]
    InUse {
        /// The directory.
        path: String,
    },
    /// The directory cannot be made or opened.
    #[error("{0}")]
    Disk(#[from] DiskError),
}

impl FileDisk {
    /// Makes `root` if needed, and locks it.
    ///
    /// # Errors
    /// [`LockError::InUse`] when a living process has it; a dead one's lock is gone with it.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, LockError> {
        let root = root.as_ref().to_path_buf();
        let shown = root.display().to_string();
        std::fs::create_dir_all(&root).map_err(|e| error(&shown, "create directory", &e))?;
        let path = root.join(layout::LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|e| error(&shown, "open LOCK", &e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse { path: shown }),
            Err(TryLockError::Error(e)) => Err(error(&shown, "lock", &e).into()),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn at(&self, path: &str) -> PathBuf {
        debug_assert!(!path.split('/').any(|part| part == ".."), "paths stay below the root");
        self.root.join(path)
    }
}

impl Disk for FileDisk {
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::Write => options.write(true),
            OpenMode::Create => options.write(true).create(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let file = options.open(self.at(path)).map_err(|e| error(path, "open", &e))?;
        Ok(Arc::new(OpenFile { file, path: path.to_owned() }))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, DiskError> {
        let entries = match std::fs::read_dir(self.at(dir)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(error(dir, "list", &e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| error(dir, "list", &e))?;
            // Names that are no UTF-8 are not ours.
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        std::fs::create_dir_all(self.at(dir)).map_err(|e| error(dir, "create directory", &e))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        std::fs::rename(self.at(from), self.at(to)).map_err(|e| error(from, "rename", &e))
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        std::fs::remove_file(self.at(path)).map_err(|e| error(path, "remove", &e))
    }

    fn remove_dir_all(&self, dir: &str) -> Result<(), DiskError> {
        match std::fs::remove_dir_all(self.at(dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(dir, "remove directory", &e)),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        let opened = File::open(self.at(dir)).map_err(|e| error(dir, "open directory", &e))?;
        opened.sync_all().map_err(|e| error(dir, "sync directory", &e))
    }
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: String,
}

impl OpenFile {
    fn error(&self, op: &'static str, e: &io::Error) -> DiskError {
        error(&self.path, op, e)
    }
}

impl DiskFile for OpenFile {
    fn len(&self) -> Result<u64, DiskError> {
        self.file.metadata().map(|m| m.len()).map_err(|e| self.error("stat", &e))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error("read", &e)),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(data, offset).map_err(|e| self.error("write", &e))
    }

    fn write_vectored_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        let mut at = offset;
        for chunk in parts.chunks(IOV_MAX) {
            let mut slices: Vec<IoSlice<'_>> = chunk.iter().map(|part| IoSlice::new(part)).collect();
            let mut left = slices.as_mut_slice();
            while left.iter().any(|slice| !slice.is_empty()) {
                match rustix::io::pwritev(&self.file, left, at) {
                    Ok(0) => return Err(self.error("write", &io::ErrorKind::WriteZero.into())),
                    Ok(n) => {
                        at += n as u64;
                        IoSlice::advance_slices(&mut left, n);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(self.error("write", &e.into())),
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.file.set_len(len).map_err(|e| self.error("set length", &e))
    }

    fn allocate(&self, len: u64) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::OPNOTSUPP) => return self.fill_to(len),
                Err(e) => {
                    // A partial reservation would hold what others need.
                    let e = self.error("allocate", &e.into());
                    if matches!(e, DiskError::NoSpace { .. }) {
                        self.set_len(self.len()?)?;
                    }
                    return Err(e);
                }
            }
        }
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|e| self.error("sync", &e))
    }
}

impl OpenFile {
    /// Reserves by writing zeros, where the file system cannot do better.
    fn fill_to(&self, len: u64) -> Result<(), DiskError> {
        let zeros = vec![0; 1 << 16];
        let mut at = self.len()?;
        while at < len {
            let n = usize::try_from(len - at).unwrap_or(usize::MAX).min(zeros.len());
            self.write_at(at, zeros.get(..n).unwrap_or(&[]))?;
            at += n as u64;
        }
        Ok(())
    }
}

fn error(path: &str, op: &'static str, e: &io::Error) -> DiskError {
    let path = path.to_owned();
    match e.kind() {
        io::ErrorKind::NotFound => DiskError::NotFound { path },
        io::ErrorKind::AlreadyExists => DiskError::Exists { path },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace { path },
        _ => DiskError::Io { path, op, reason: e.to_string() },
    }
}

/// Most parts one `pwritev` takes (Linux: UIO_MAXIOV).
const IOV_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_opening_of_a_directory_is_refused_until_the_first_ends() {
        let dir = crate::testdir::TestDir::new("lock");
        let first = FileDisk::open(dir.path()).unwrap();
        assert!(matches!(FileDisk::open(dir.path()), Err(LockError::InUse { .. })));
        drop(first);
        FileDisk::open(dir.path()).unwrap();
    }

    #[test]
    fn many_parts_arrive_in_order() {
        let dir = crate::testdir::TestDir::new("parts");
        let disk = FileDisk::open(dir.path()).unwrap();
        let file = disk.open("f", OpenMode::CreateNew).unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 7) as usize]).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.write_vectored_at(5, &slices).unwrap();
        let mut back = vec![0; parts.concat().len() + 5];
        assert_eq!(file.read_at(0, &mut back).unwrap(), back.len());
        assert_eq!(back[5..], parts.concat());
        file.allocate(1 << 16).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 16);
    }
}
