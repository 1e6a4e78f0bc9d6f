//! One process of the world: a member, its write-ahead log on a simulated disk, and a store whose commits are atomic.
//!
//! What survives a crash: the disk's durable image, and every batch whose commit ended; the batch under way survives
//! or not, whole.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use triune_consensus::{Config, Configuration, MachineInput, Position, Recovered, SnapshotEvent, SnapshotOp};
use triune_node::member::api::{Request, StreamId};
use triune_node::member::{FormedMember, GroupRecovered, Member, MemberConfig, MemberLimits, applied_mark, snapshot};
use triune_sim::{Clock, Rng, SimDisk};
use triune_storage::{MemStore, OrderedStore, StoreBatch, StreamBatch, StreamId as Stream, Wal, WalConfig};
use triune_transport::{ClusterId, GroupId, Nanos, NodeId};

pub const GROUP: GroupId = GroupId(0);

/// What the store's thread has to do, in order.
pub enum Job {
    Flush(StoreBatch, Position),
    Snapshot(SnapshotOp),
}

pub struct Node {
    pub id: NodeId,
    /// Disk ids it had before, lost with their disks.
    pub former: Vec<NodeId>,
    /// The id under which the faults know it: that of the last disk that was a member's.
    pub drawn_as: NodeId,
    /// Its disk is blank and new: it must be taken in before it starts.
    pub blank: bool,
    /// The formation knows nothing of its disk.
    pub late: bool,
    pub name: String,
    pub clock: Clock,
    pub disk: SimDisk,
    pub store: Arc<MemStore>,
    /// Counts starts: what belongs to an earlier life is void.
    pub life: u64,
    pub member: Option<Member>,
    pub wal: Option<Wal>,
    pub paused: bool,
    /// What came while it stood still.
    pub held: Vec<MachineInput<Request>>,
    /// Writes asked for and not begun.
    pub writes: Vec<StreamBatch>,
    /// Writes of which the sync is under way.
    pub syncing: Vec<StreamBatch>,
    /// The log writes into its reserve.
    pub in_reserve: bool,
    pub full: bool,
    pub jobs: VecDeque<Job>,
    pub job_under_way: bool,
    pub made: BTreeMap<Position, Bytes>,
    pub received: Vec<u8>,
    pub timer_at: Option<Nanos>,
    pub turn_planned: bool,
    pub last_position: Position,
    /// The stream of this life's watch.
    pub stream: StreamId,
    /// When it answered an operation on keys last.
    pub answered_at: Option<Nanos>,
}

impl Node {
    pub fn new(id: NodeId, name: String, rng: &mut Rng) -> Self {
        let skew = Nanos(rng.range(1_000_000, 1_000_000_000_000));
        Self {
            id,
            former: Vec::new(),
            drawn_as: id,
            blank: false,
            late: false,
            name,
            clock: Clock::new(skew, 0),
            disk: SimDisk::new(&rng.fork("disk").fork(&id.to_string())),
            store: Arc::new(MemStore::new()),
            life: 0,
            member: None,
            wal: None,
            paused: false,
            held: Vec::new(),
            writes: Vec::new(),
            syncing: Vec::new(),
            in_reserve: false,
            full: false,
            jobs: VecDeque::new(),
            job_under_way: false,
            made: BTreeMap::new(),
            received: Vec::new(),
            timer_at: None,
            turn_planned: false,
            last_position: Position::ZERO,
            stream: StreamId(0),
            answered_at: None,
        }
    }

    /// Starts the process from its disk. `Err`: the disk is full, or failed again.
    pub fn start(&mut self, now: Nanos, formed: &[FormedMember], boot: u64) -> Result<(), String> {
        self.life += 1;
        let config = WalConfig { segment_bytes: 64 << 10, salt: self.id.0, ..WalConfig::default() };
        let (wal, found) = Wal::open(Arc::new(self.disk.clone()), "wal", config).map_err(|e| e.to_string())?;
        assert!(
            !found.is_faulty(),
            "{}: acknowledged bytes are damaged, and nobody damaged them: {found:?}",
            self.name
        );
        let stream = found.streams.get(&Stream(GROUP.0)).cloned().unwrap_or_default();
        let view = self.store.view().unwrap();
        let recovered = Recovered {
            state: stream.state,
            base: stream.base,
            runs: stream.runs,
            holes: Vec::new(),
            applied: applied_mark(&*view).unwrap(),
            last_seq: stream.last_seq,
            formed: (!self.late).then(|| Configuration::of(formed.iter().map(|member| member.disk))),
        };
        let mut replica = Config::new(GROUP, self.id, boot);
        replica.keep_entries = 40;
        replica.chunk_bytes_max = 4 << 10;
        let limits = MemberLimits { waiting_max: 64, flush_bytes: 4 << 10, ..MemberLimits::default() };
        let wall_ms = u64::try_from(self.clock.wall_ms_at(now)).unwrap_or(0);
        let config = MemberConfig {
            cluster: ClusterId(7),
            node: self.id,
            name: self.name.clone(),
            boot,
            formed: if self.late { Vec::new() } else { formed.to_vec() },
            peer_addr: format!("{}:2380", self.name),
            client_urls: vec![format!("http://{}:2379", self.name)],
            version: "0.1.0".into(),
            wall_ms,
            limits,
            groups: vec![GroupRecovered { replica, recovered, store: self.store.clone() }],
        };
        let member = Member::recover(config, self.clock.now_at(now));
        self.member = Some(member.unwrap_or_else(|error| panic!("{}: {error}", self.name)));
        self.wal = Some(wal);
        self.stream = StreamId(boot);
        Ok(())
    }

    /// The disk is gone; a blank one with an id of its own takes its place.
    pub fn lose_disk(&mut self, id: NodeId, rng: &Rng) {
        self.former.push(std::mem::replace(&mut self.id, id));
        self.disk = SimDisk::new(&rng.fork("disk").fork(&id.to_string()));
        self.store = Arc::new(MemStore::new());
        self.last_position = Position::ZERO;
        self.full = false;
        (self.blank, self.late) = (true, true);
    }

    pub fn is(&self, id: NodeId) -> bool {
        self.id == id || self.former.contains(&id)
    }

    /// The process ends. `commits`: whether the store's write under way got through.
    pub fn end(&mut self, commits: bool) {
        self.member = None;
        self.wal = None;
        if let (true, true, Some(Job::Flush(batch, _))) = (self.job_under_way, commits, self.jobs.pop_front()) {
            self.store.commit(batch).unwrap();
        }
        self.paused = false;
        self.held.clear();
        self.writes.clear();
        self.syncing.clear();
        self.in_reserve = false;
        self.jobs.clear();
        self.job_under_way = false;
        self.made.clear();
        self.received.clear();
        self.timer_at = None;
        self.turn_planned = false;
    }

    /// What a person wants to know of it.
    pub fn describe(&self) -> String {
        let view = self.member.as_ref().and_then(Member::view);
        let at = self.member.as_ref().map(|m| (m.position(), m.store().revision(), m.store().leases().len()));
        format!(
            "{}: paused {} full {} answered {:?} at {at:?} {view:?}",
            self.name, self.paused, self.full, self.answered_at
        )
    }

    pub fn local(&self, now: Nanos) -> Nanos {
        self.clock.now_at(now)
    }

    /// Does the store's next job; gives what the member hears of it.
    pub fn do_job(&mut self) -> Option<Request> {
        self.job_under_way = false;
        match self.jobs.pop_front()? {
            Job::Flush(batch, mark) => {
                self.store.commit(batch).unwrap();
                Some(Request::Flushed { group: GROUP, mark })
            }
            Job::Snapshot(op) => self.snapshot(op),
        }
    }

    fn snapshot(&mut self, op: SnapshotOp) -> Option<Request> {
        let mut installed: Option<Arc<dyn OrderedStore>> = None;
        let event = match op {
            SnapshotOp::Take { .. } => {
                let mut bytes = Vec::new();
                let view = self.store.view().unwrap();
                let meta = snapshot::write(&*view, |piece| {
                    bytes.extend_from_slice(&piece);
                    Ok::<_, Infallible>(())
                })
                .unwrap();
                self.made.insert(meta.mark.position, bytes.into());
                SnapshotEvent::Taken(Some(meta))
            }
            SnapshotOp::Read { req, position, offset, len_max } => {
                let data = self.made.get(&position).map(|bytes| {
                    let from = usize::try_from(offset).unwrap().min(bytes.len());
                    bytes.slice(from..bytes.len().min(from + len_max))
                });
                SnapshotEvent::Chunk { req, offset, data }
            }
            SnapshotOp::Write { meta, offset, data } => {
                let offset = usize::try_from(offset).unwrap();
                if offset > self.received.len() {
                    SnapshotEvent::Failed { position: meta.mark.position }
                } else {
                    self.received.truncate(offset);
                    self.received.extend_from_slice(&data);
                    SnapshotEvent::Written { position: meta.mark.position, upto: self.received.len() as u64 }
                }
            }
            SnapshotOp::Install { meta } => {
                let (mut reader, mut batch) = (snapshot::Reader::new(), StoreBatch::default());
                let read = reader.push(&self.received, &mut batch).and_then(|()| reader.finish());
                if read.is_err() {
                    SnapshotEvent::Failed { position: meta.mark.position }
                } else {
                    self.store = Arc::new(MemStore::new());
                    self.store.commit(batch).unwrap();
                    assert!(snapshot::is_whole(&*self.store.view().unwrap(), &meta.mark).unwrap());
                    installed = Some(self.store.clone());
                    SnapshotEvent::Installed(meta.mark)
                }
            }
            SnapshotOp::Drop { position } => {
                self.made.remove(&position);
                return None;
            }
            _ => panic!("a snapshot operation this world does not know"),
        };
        Some(Request::Snapshot { group: GROUP, event, store: installed })
    }
}
