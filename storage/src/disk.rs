//! The `Disk` trait: the few file operations a log and a store need, so that a simulator can stand in for the real one.
//!
//! Paths are relative to the member's data directory, use `/`, and never contain `..`.
//!
//! 1. A write is durable only after a later `sync` of the same file returned `Ok`. Until then a crash may keep any
//!    subset of the written sectors.
//! 2. A created, renamed or removed name is durable only after `sync_dir` of its directory returned `Ok`.
//! 3. After a failed `sync` nothing is known of the unsynced bytes, and a later `sync` that succeeds proves nothing
//!    about them. Callers poison themselves; nobody retries.

use std::fmt;
use std::sync::Arc;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// It must exist; it is not written.
    Read,
    /// It must exist; it may be written.
    Write,
    /// It is made if absent; it may be written.
    Create,
    /// It must not exist; it is made.
    CreateNew,
}

/// What a disk could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// There is no such file or directory.
    #[error("{path}: not found")]
    NotFound {
        /// The path as given.
        path: String,
    },
    /// The file is there already.
    #[error("{path}: exists")]
    Exists {
        /// The path as given.
        path: String,
    },
    /// No space is left. Nothing written before is harmed; free space and try again.
    #[error("{path}: no space left on device")]
    NoSpace {
        /// The path as given.
        path: String,
    },
    /// The device failed (EIO and its kin). What was not synced is lost or unknown.
    #[error("{path}: {op}: {reason}")]
    Io {
        /// The path as given.
        path: String,
        /// The operation that failed.
        op: &'static str,
        /// The system's words.
        reason: String,
    },
}

/// An open file. All methods may be called from any thread.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// The file's length in bytes.
    ///
    /// # Errors
    /// When the device does not answer.
    fn len(&self) -> Result<u64, DiskError>;

    /// Whether the file is empty.
    ///
    /// # Errors
    /// When the device does not answer.
    fn is_empty(&self) -> Result<bool, DiskError> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file. Returns how many.
    ///
    /// # Errors
    /// When the device fails.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DiskError>;

    /// Writes all of `data` at `offset`, growing the file as needed.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] or [`DiskError::Io`]; any part of `data` may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Writes `parts` one after the other at `offset`, as one operation where the system can.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn write_vectored_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        let mut at = offset;
        for part in parts {
            self.write_at(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Sets the length; new bytes read as zero.
    ///
    /// # Errors
    /// When the device fails.
    fn set_len(&self, len: u64) -> Result<(), DiskError>;

    /// Reserves space so that later writes below `len` cannot fail with [`DiskError::NoSpace`]; grows the file to it.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] when it does not fit.
    fn allocate(&self, len: u64) -> Result<(), DiskError>;

    /// Makes every byte written so far durable (fdatasync, with the length).
    ///
    /// # Errors
    /// After an error the caller must not rely on any byte that was not durable before.
    fn sync(&self) -> Result<(), DiskError>;
}

/// A directory tree that belongs to one member.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DiskError::NotFound`], [`DiskError::Exists`] as the mode says, else the device's.
    fn open(&self, path: &str, mode: OpenMode) -> Result<Arc<dyn DiskFile>, DiskError>;

    /// The names (not paths) of the files and directories in `dir`, sorted. An absent directory is empty.
    ///
    /// # Errors
    /// When the device fails.
    fn list(&self, dir: &str) -> Result<Vec<String>, DiskError>;

    /// Makes a directory and its parents.
    ///
    /// # Errors
    /// When the device fails.
    fn create_dir_all(&self, dir: &str) -> Result<(), DiskError>;

    /// Renames a file or directory, replacing a file at `to`.
    ///
    /// # Errors
    /// [`DiskError::NotFound`], or the device's.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`DiskError::NotFound`], or the device's.
    fn remove(&self, path: &str) -> Result<(), DiskError>;

    /// Removes a directory and all below it; absent is fine.
    ///
    /// # Errors
    /// When the device fails.
    fn remove_dir_all(&self, dir: &str) -> Result<(), DiskError>;

    /// Makes the names in `dir` durable.
    ///
    /// # Errors
    /// As for [`DiskFile::sync`].
    fn sync_dir(&self, dir: &str) -> Result<(), DiskError>;
}
