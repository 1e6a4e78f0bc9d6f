//! The file `identity`: who this data directory is. A voter is (name, disk id); without this file it is nobody.
//!
//! Written atomically (`identity.new`, sync, rename, sync of the directory), before the first vote, and again when
//! formation says `listed` and `formed`. Nothing said is taken back: `disk` never changes in one directory.
//!
//! ```text
//! 0   8  magic "TRIUNEID"
//! 8   2  format version, little-endian (1)
//! 10  2  zero
//! 12  4  length n of the body
//! 16  4  CRC32C of bytes 0..16 and the body
//! 20  n  the body, prost
//! ```

use prost::Message;

use crate::{Disk, DiskError, OpenMode, layout};

/// Who a data directory is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Identity {
    /// The member's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The disk id: random, not 0, drawn when the directory was made.
    #[prost(uint64, tag = "2")]
    pub disk: u64,
    /// Hash of the list that formed the cluster; 0 before.
    #[prost(uint64, tag = "3")]
    pub cluster: u64,
    /// L, sorted: what this member said `listed` of. Empty before.
    #[prost(message, repeated, tag = "4")]
    pub listed: Vec<ListedMember>,
    /// Whether this member may vote: `listed` of one L was heard from all, or `formed` from one, or it joined a formed
    /// cluster.
    #[prost(bool, tag = "5")]
    pub formed: bool,
    /// The disk id this one replaces (its data was set aside); 0 when there is none.
    #[prost(uint64, tag = "6")]
    pub replaces: u64,
    /// Hash of the `--initial-cluster` this directory was started with first.
    #[prost(uint64, tag = "7")]
    pub initial_cluster: u64,
    /// The member id in the cluster (etcd's), when known; 0 before.
    #[prost(uint64, tag = "8")]
    pub member: u64,
}

/// One line of L.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct ListedMember {
    /// The member's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its disk id.
    #[prost(uint64, tag = "2")]
    pub disk: u64,
}

/// The identity cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The disk failed.
    #[error("identity: {0}")]
    Disk(#[from] DiskError),
    /// A newer program made this directory. Use that program.
    #[error("identity: format version {found}, this program reads up to {supported}")]
    Version {
        /// The file's version.
        found: u16,
        /// Ours.
        supported: u16,
    },
    /// The file is no identity, or damaged. Set the directory aside and let the member come back with a new disk id.
    #[error("identity: the file is damaged; set the data directory aside and start with an empty one")]
    Damaged,
}

impl Identity {
    /// A blank member's identity: a name and a fresh disk id.
    ///
    /// # Panics
    /// When `disk` is 0, which names nobody.
    pub fn blank(name: &str, disk: u64) -> Self {
        assert!(disk != 0, "disk id 0 names nobody");
        Self { name: name.to_owned(), disk, ..Self::default() }
    }

    /// Reads it; `None` in a blank directory.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>, IdentityError> {
        let file = match disk.open(layout::IDENTITY, OpenMode::Read) {
            Ok(file) => file,
            Err(DiskError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = usize::try_from(file.len()?.min(BYTES_MAX)).map_err(|_| IdentityError::Damaged)?;
        let mut bytes = vec![0; len];
        let got = file.read_at(0, &mut bytes)?;
        bytes.truncate(got);
        Self::decode_file(&bytes).map(Some)
    }

    /// Writes it atomically; durable when this returns.
    ///
    /// # Errors
    /// The disk's. The old identity is then still there, or the new one is.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), DiskError> {
        let bytes = self.encode_file();
        let file = disk.open(layout::IDENTITY_NEW, OpenMode::Create)?;
        file.set_len(0)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        drop(file);
        disk.rename(layout::IDENTITY_NEW, layout::IDENTITY)?;
        disk.sync_dir("")
    }

    fn encode_file(&self) -> Vec<u8> {
        let body = self.encode_to_vec();
        let mut out = Vec::with_capacity(HEADER + body.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out), &body);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    fn decode_file(bytes: &[u8]) -> Result<Self, IdentityError> {
        let (head, rest) = bytes.split_at_checked(16).ok_or(IdentityError::Damaged)?;
        let (crc, body) = rest.split_at_checked(4).ok_or(IdentityError::Damaged)?;
        let (magic, numbers) = head.split_at(8);
        if magic != MAGIC {
            return Err(IdentityError::Damaged);
        }
        let version = u16::from_le_bytes(array(numbers, 0)?);
        if version > VERSION {
            return Err(IdentityError::Version { found: version, supported: VERSION });
        }
        let len = u32::from_le_bytes(array(numbers, 4)?);
        let body = body.get(..len as usize).ok_or(IdentityError::Damaged)?;
        let crc = u32::from_le_bytes(array(crc, 0)?);
        if crc32c::crc32c_append(crc32c::crc32c(head), body) != crc {
            return Err(IdentityError::Damaged);
        }
        Self::decode(body).map_err(|_| IdentityError::Damaged)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], IdentityError> {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).ok_or(IdentityError::Damaged)
}

const MAGIC: &[u8; 8] = b"TRIUNEID";
const VERSION: u16 = 1;
const HEADER: usize = 20;
/// A list of a few hundred members fits; anything longer is no identity.
const BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemDisk;

    fn sample() -> Identity {
        let mut id = Identity::blank("m1", 7);
        id.cluster = 9;
        id.listed = vec![ListedMember { name: "m1".into(), disk: 7 }, ListedMember { name: "m2".into(), disk: 8 }];
        id.formed = true;
        id
    }

    #[test]
    fn saved_identity_survives_power_loss() {
        let disk = MemDisk::new();
        assert_eq!(Identity::load(&disk).unwrap(), None);
        Identity::blank("m1", 7).save(&disk).unwrap();
        sample().save(&disk).unwrap();
        let after = disk.power_loss(&mut |_| crate::Fate::Lost);
        assert_eq!(Identity::load(&after).unwrap(), Some(sample()));
    }

    #[test]
    fn interrupted_save_leaves_old_or_new() {
        for fate in [crate::Fate::Lost, crate::Fate::Kept, crate::Fate::Torn] {
            for stop in 0..8 {
                let disk = MemDisk::new();
                let old = Identity::blank("m1", 7);
                old.save(&disk).unwrap();
                disk.cut_power_after(stop);
                let saved = sample().save(&disk).is_ok();
                let after = disk.power_loss(&mut |_| fate);
                let found = Identity::load(&after).unwrap().expect("an identity");
                assert!(found == sample() || (!saved && found == old), "stop {stop}: {found:?}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample().encode_file();
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(Identity::decode_file(&bad).is_err(), "bit {at}");
        }
    }

    #[test]
    fn newer_version_is_refused_with_its_number() {
        let mut bytes = sample().encode_file();
        bytes[8] = 2;
        assert_eq!(Identity::decode_file(&bytes), Err(IdentityError::Version { found: 2, supported: 1 }));
    }
}
