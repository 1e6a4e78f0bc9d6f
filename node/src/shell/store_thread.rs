//! The store thread: commits flushes and moves snapshot bytes, off the member's thread.
//!
//! One thread does both, in the order asked, so a snapshot is taken behind all flushes before it and an install can
//! never meet a flush of the state it replaces. It decides nothing: what a snapshot holds is `member::snapshot`'s, when
//! one is taken is the protocol's.
//!
//! ```text
//! groups/<id>/state              the store
//! groups/<id>/state.new          a snapshot being installed; renamed over `state` when whole
//! groups/<id>/snap/<e>-<i>       a snapshot that can be sent
//! groups/<id>/snap/incoming      one that is being received
//! ```
//! 1. `state` is replaced by rename only, when the new one is complete, checked and synced.
//! 2. Nothing in `snap/` survives a start: all of it can be made or asked for again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use triune_consensus::{Position, SnapshotEvent, SnapshotMeta, SnapshotOp};
use triune_storage::{Disk, DiskError, DiskFile, OpenMode, OrderedStore, StoreBatch, StoreError, layout};
use triune_transport::GroupId;

use crate::doors::Port;
use crate::member::api::Request;
use crate::member::snapshot;

/// Jobs that may wait before snapshot chunks are dropped; a sender's window is far smaller.
const JOBS_MAX: usize = 4_096;
/// Rows of a snapshot committed at once while it is installed, in bytes.
const INSTALL_BATCH_BYTES: usize = 4 << 20;
/// Bytes of a snapshot read at once while it is installed.
const READ_BYTES: usize = 256 << 10;
/// Pause before a flush is tried again on a full disk.
const SPACE_RETRY: Duration = Duration::from_millis(500);

/// Opens a group's store at a path.
pub(super) type OpenStore = dyn Fn(&str) -> Result<Arc<dyn OrderedStore>, StoreError> + Send + Sync;

/// Something to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Commit a flush.
    Flush { group: GroupId, batch: StoreBatch, mark: Position },
    /// Do something with snapshots.
    Snapshot { group: GroupId, op: SnapshotOp },
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(super) struct StoreThread {
    jobs: Option<Jobs>,
    abandon: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The way to the thread. It ends when the last of them is dropped.
#[derive(Clone, Debug)]
pub(super) struct Jobs {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

impl Jobs {
    /// Queues a job; never waits. When the disk stands still and too many wait, chunks of snapshots are dropped: they
    /// are asked for again, like a lost message. A flush, an install, a snapshot to take are asked for once at a time
    /// and never dropped.
    pub(super) fn push(&self, job: Job) {
        let again = matches!(&job, Job::Snapshot { op: SnapshotOp::Read { .. } | SnapshotOp::Write { .. }, .. });
        if again && self.waiting.load(Ordering::Relaxed) >= JOBS_MAX {
            return tracing::warn!("store thread is behind, a snapshot chunk is dropped");
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _ended = self.jobs.send(job);
    }
}

impl StoreThread {
    /// Starts it for these groups' open stores. Answers go to `port`.
    ///
    /// # Errors
    /// When the system gives no thread, or the disk fails.
    pub(super) fn spawn(
        name: &str,
        disk: Arc<dyn Disk>,
        open: Arc<OpenStore>,
        stores: BTreeMap<GroupId, Arc<dyn OrderedStore>>,
        port: Arc<dyn Port>,
    ) -> anyhow::Result<Self> {
        let mut groups = BTreeMap::new();
        for (group, store) in stores {
            groups.insert(group, Group::new(group, Arc::clone(&disk), store)?);
        }
        let (jobs, inbox) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let abandon = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            groups,
            open,
            port: Arc::clone(&port),
            abandon: Arc::clone(&abandon),
            waiting: Arc::clone(&waiting),
        };
        let thread = std::thread::Builder::new().name(format!("{name}-store")).spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| worker.run(&inbox))).is_err() {
                let _ended = port.request_wait(Request::StoreFailed { group: GroupId(0), corrupt: false });
            }
        })?;
        Ok(Self { jobs: Some(Jobs { jobs, waiting }), abandon, thread: Some(thread) })
    }

    /// The way to it.
    ///
    /// # Panics
    /// After [`StoreThread::stop`].
    pub(super) fn jobs(&self) -> Jobs {
        self.jobs.clone().expect("it was not stopped")
    }

    /// Lets it finish what was asked, or (not in good `order`) only what it is at, and waits for it. All other ways to
    /// it must be dropped before.
    pub(super) fn stop(&mut self, order: bool) {
        self.jobs = None;
        self.abandon.store(!order, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store thread panicked");
        }
    }
}

struct Worker {
    groups: BTreeMap<GroupId, Group>,
    open: Arc<OpenStore>,
    port: Arc<dyn Port>,
    abandon: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.abandon.load(Ordering::Acquire) {
                return;
            }
            let (Job::Flush { group, .. } | Job::Snapshot { group, .. }) = &job;
            let group = *group;
            let Some(state) = self.groups.get_mut(&group) else { continue };
            let answer = match job {
                Job::Flush { batch, mark, .. } => match state.flush(&batch, &self.abandon) {
                    Ok(()) => Some(Request::Flushed { group, mark }),
                    Err(error) => {
                        tracing::error!(%group, %error, "flush failed");
                        Some(Request::StoreFailed { group, corrupt: matches!(error, StoreError::Corrupt { .. }) })
                    }
                },
                Job::Snapshot { op, .. } => {
                    let installing = matches!(op, SnapshotOp::Install { .. });
                    state.snapshot(op, &*self.open).map(|event| {
                        let installed = installing && matches!(event, SnapshotEvent::Installed(_));
                        Request::Snapshot { group, event, store: installed.then(|| Arc::clone(&state.store)) }
                    })
                }
            };
            if let Some(answer) = answer {
                self.answer(answer);
            }
        }
    }

    /// Answers must arrive: a full inbox is waited for, an ended member is not.
    fn answer(&self, answer: Request) {
        if self.port.request_wait(answer).is_err() {
            tracing::debug!("the member ended before an answer of the store thread");
        }
    }
}

/// A snapshot on its way in.
struct Incoming {
    meta: SnapshotMeta,
    file: Arc<dyn DiskFile>,
    upto: u64,
}

/// One group's store and snapshots.
struct Group {
    disk: Arc<dyn Disk>,
    state: String,
    dir: String,
    store: Arc<dyn OrderedStore>,
    taken: BTreeMap<Position, Arc<dyn DiskFile>>,
    incoming: Option<Incoming>,
}

impl Group {
    fn new(group: GroupId, disk: Arc<dyn Disk>, store: Arc<dyn OrderedStore>) -> Result<Self, DiskError> {
        let dir = layout::group_snapshots(group.0);
        disk.remove_dir_all(&dir)?;
        disk.create_dir_all(&dir)?;
        Ok(Self { disk, state: layout::group_state(group.0), dir, store, taken: BTreeMap::new(), incoming: None })
    }

    /// Commits; a full disk is waited for, since nothing is harmed by it.
    fn flush(&self, batch: &StoreBatch, abandon: &AtomicBool) -> Result<(), StoreError> {
        loop {
            match self.store.commit(batch.clone()) {
                Err(StoreError::Disk(DiskError::NoSpace { path })) if !abandon.load(Ordering::Acquire) => {
                    tracing::warn!(path, "disk full, the flush waits");
                    std::thread::sleep(SPACE_RETRY);
                }
                other => return other,
            }
        }
    }

    fn snapshot(&mut self, op: SnapshotOp, open: &OpenStore) -> Option<SnapshotEvent> {
        match op {
            SnapshotOp::Take { at_least } => Some(SnapshotEvent::Taken(match self.take() {
                Ok(meta) => (meta.mark.position.index >= at_least).then_some(meta),
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "no snapshot was taken");
                    None
                }
            })),
            SnapshotOp::Read { req, position, offset, len_max } => {
                Some(SnapshotEvent::Chunk { req, offset, data: self.read(position, offset, len_max) })
            }
            SnapshotOp::Write { meta, offset, data } => {
                let position = meta.mark.position;
                Some(match self.write(meta, offset, &data) {
                    Ok(upto) => SnapshotEvent::Written { position, upto },
                    Err(error) => {
                        tracing::warn!(%error, "a snapshot chunk could not be kept");
                        self.incoming = None;
                        SnapshotEvent::Failed { position }
                    }
                })
            }
            SnapshotOp::Install { meta } => {
                let position = meta.mark.position;
                Some(match self.install(&meta, open) {
                    Ok(store) => {
                        self.store = store;
                        SnapshotEvent::Installed(meta.mark)
                    }
                    Err(error) => {
                        tracing::warn!(error = %format!("{error:#}"), "a snapshot could not be installed");
                        self.incoming = None;
                        SnapshotEvent::Failed { position }
                    }
                })
            }
            SnapshotOp::Drop { position } => {
                if self.taken.remove(&position).is_some() {
                    let _ = self.disk.remove(&self.path(position));
                }
                None
            }
            _ => None,
        }
    }

    fn path(&self, position: Position) -> String {
        format!("{}/{:016x}-{:016x}", self.dir, position.epoch.0, position.index.0)
    }

    /// Writes the store's state into a file of its own.
    fn take(&mut self) -> anyhow::Result<SnapshotMeta> {
        let making = format!("{}/making", self.dir);
        let file = self.disk.open(&making, OpenMode::Create)?;
        file.set_len(0)?;
        let mut at = 0;
        let view = self.store.view()?;
        let meta = snapshot::write(&*view, |piece: Bytes| {
            file.write_at(at, &piece)?;
            at += piece.len() as u64;
            Ok::<(), DiskError>(())
        })?;
        self.disk.rename(&making, &self.path(meta.mark.position))?;
        self.taken.insert(meta.mark.position, file);
        Ok(meta)
    }

    fn read(&self, position: Position, offset: u64, len_max: usize) -> Option<Bytes> {
        let file = self.taken.get(&position)?;
        let mut buf = vec![0; len_max];
        match file.read_at(offset, &mut buf) {
            Ok(len) => {
                buf.truncate(len);
                Some(Bytes::from(buf))
            }
            Err(error) => {
                tracing::warn!(%error, "a snapshot could not be read");
                None
            }
        }
    }

    /// Keeps a chunk that continues what is kept; says how far that goes.
    fn write(&mut self, meta: SnapshotMeta, offset: u64, data: &[u8]) -> Result<u64, DiskError> {
        let known = self.incoming.as_ref().is_some_and(|incoming| incoming.meta == meta);
        if !known {
            if offset != 0 {
                return Ok(0);
            }
            let file = self.disk.open(&format!("{}/incoming", self.dir), OpenMode::Create)?;
            file.set_len(0)?;
            self.incoming = Some(Incoming { meta, file, upto: 0 });
        }
        let Some(incoming) = &mut self.incoming else { return Ok(0) };
        let end = offset + data.len() as u64;
        if offset == incoming.upto && end <= incoming.meta.bytes {
            incoming.file.write_at(offset, data)?;
            incoming.upto = end;
        }
        Ok(incoming.upto)
    }

    /// Checks the received bytes into a new store, and puts it in the old one's place.
    fn install(&mut self, meta: &SnapshotMeta, open: &OpenStore) -> anyhow::Result<Arc<dyn OrderedStore>> {
        let incoming = self.incoming.take().filter(|i| i.meta == *meta && i.upto == meta.bytes);
        let incoming = incoming.ok_or_else(|| anyhow::anyhow!("its bytes are not all here"))?;
        let making = format!("{}.new", self.state);
        match self.disk.remove(&making) {
            Ok(()) | Err(DiskError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        {
            let store = open(&making)?;
            import(&*incoming.file, meta, &*store)?;
            anyhow::ensure!(snapshot::is_whole(&*store.view()?, &meta.mark)?, "it is not what its name says");
        }
        self.disk.rename(&making, &self.state)?;
        self.disk.sync_dir(parent(&self.state))?;
        let _ = self.disk.remove(&format!("{}/incoming", self.dir));
        Ok(open(&self.state)?)
    }
}

/// Reads a snapshot file into a blank store.
fn import(file: &dyn DiskFile, meta: &SnapshotMeta, store: &dyn OrderedStore) -> anyhow::Result<()> {
    let mut reader = snapshot::Reader::new();
    let mut batch = StoreBatch::default();
    let mut pending = 0;
    let mut crc = 0;
    let mut at = 0;
    let mut buf = vec![0; READ_BYTES];
    while at < meta.bytes {
        let len = file.read_at(at, &mut buf)?;
        anyhow::ensure!(len > 0, "its file is shorter than it should be");
        let piece = buf.get(..len).unwrap_or_default();
        crc = crc32c::crc32c_append(crc, piece);
        reader.push(piece, &mut batch)?;
        at += len as u64;
        pending += len;
        if pending >= INSTALL_BATCH_BYTES {
            store.commit(std::mem::take(&mut batch))?;
            pending = 0;
        }
    }
    reader.finish()?;
    anyhow::ensure!(crc == meta.crc, "its checksum does not match");
    store.commit(batch)?;
    Ok(())
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}
