//! The simulated disk: what a program wrote, what would survive a power cut, and the faults in between.
//!
//! Every file has a *live* image (what reads return: page cache) and a *durable* one (what the platter holds), and a
//! list of writes that are in the first and not yet in the second. Names have the same: a created, renamed or removed
//! name is durable only after its directory was synced.
//!
//! ```text
//!   write ──▶ live ──▶ pending ── sync ok ───────────────▶ durable
//!                        │  ├─── sync fails: any subset ──▶ durable; the rest stays live and never becomes durable
//!                        │  └─── crash: any subset of 512-byte sectors ──▶ durable; live becomes durable
//!                        └────── kill: the process dies, the page cache stays
//! ```
//!
//! 1. What was synced survives every crash, unless a fault that says otherwise was asked for (a bit flip, a misdirected
//!    write, an fsync that lies).
//! 2. A sector is old or new, never a mixture; a write of several sectors may be torn between them, and of two unsynced
//!    writes the later may survive without the earlier.
//! 3. A rename happens or does not: it never loses both names.
//! 4. A handle dies with its process: after a crash, a kill or a restore it answers with an error.
//!
//! Space is counted by the highest byte reserved or written, without regard to holes.
//!
//! Source of the failure model: Pillai et al., "All file systems are not created equal" (OSDI 2014); Rebello et al.,
//! "Can applications recover from fsync failures?" (ATC 2020).

mod content;
mod device;
mod handle;
mod image;

pub use self::device::{DiskFaults, DiskOp, DiskStats};
pub use self::handle::SimDisk;
pub use self::image::{CrashReport, DiskImage, SECTOR_BYTES};

#[cfg(test)]
mod tests;
