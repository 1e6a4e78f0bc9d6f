//! The suite that an implementation of [`Disk`] or [`OrderedStore`] should pass, power loss included.
//!
//! Give each check a closure that makes a fresh, empty thing; a check that fails returns a [`Violation`] that names the
//! rule and the seed. The log itself is run over your disk too ([`log_survives_power_loss`]): what it promises holds
//! only on a disk that passes.
//!
//! ```
//! use triune_storage::conformance::{self, MemPower};
//! conformance::disk_keeps_its_word(&mut || Ok(MemPower::new().disk_arc()))?;
//! conformance::disk_survives_power_loss(&mut || Ok(Box::new(MemPower::new())), 20)?;
//! # Ok::<(), conformance::Violation>(())
//! ```

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Disk, DiskError, Entry, Epoch, Fate, Index, IoSeq, MemDisk, OpenMode, OrderedStore, Position, StoreBatch,
    StreamBatch, StreamId, Table, Wal, WalConfig,
};

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
pub struct Violation {
    /// The rule, as the trait's documentation has it.
    pub rule: &'static str,
    /// What was seen, with the seed.
    pub detail: String,
}

impl Violation {
    /// A broken rule; also for a factory that cannot make what it is asked for.
    pub fn new(rule: &'static str, detail: impl fmt::Display) -> Self {
        Self { rule, detail: detail.to_string() }
    }
}

/// A disk whose power can be cut.
pub trait PowerLoss {
    /// The disk as it is now.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn disk(&mut self) -> Result<Arc<dyn Disk>, Violation>;

    /// Cuts the power: every open file is dead, and of what was not synced any part may be gone, as `seed` decides.
    fn cut(&mut self, seed: u64);
}

/// [`PowerLoss`] for [`MemDisk`]: sectors lost, kept or torn at random.
#[derive(Debug, Default)]
pub struct MemPower {
    disk: MemDisk,
}

impl MemPower {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk, for the checks that need no power loss.
    pub fn disk_arc(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }
}

impl PowerLoss for MemPower {
    fn disk(&mut self) -> Result<Arc<dyn Disk>, Violation> {
        Ok(self.disk_arc())
    }

    fn cut(&mut self, seed: u64) {
        let mut draw = Draw(seed);
        self.disk = self.disk.power_loss(&mut |_| match draw.below(3) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            _ => Fate::Torn,
        });
    }
}

type Make<'a, T> = &'a mut dyn FnMut() -> Result<T, Violation>;

/// Reads, writes, names and errors of a disk, without power loss.
///
/// # Errors
/// The first rule broken.
pub fn disk_keeps_its_word(make: Make<'_, Arc<dyn Disk>>) -> Result<(), Violation> {
    let disk = make()?;
    let rule = "open modes";
    expect(rule, matches!(disk.open("a", OpenMode::Read), Err(DiskError::NotFound { .. })), "read of an absent file")?;
    expect(
        rule,
        matches!(disk.open("a", OpenMode::Write), Err(DiskError::NotFound { .. })),
        "write of an absent file",
    )?;
    let file = told(rule, disk.open("a", OpenMode::CreateNew))?;
    expect(rule, matches!(disk.open("a", OpenMode::CreateNew), Err(DiskError::Exists { .. })), "create new twice")?;
    told(rule, disk.open("a", OpenMode::Create))?;

    let rule = "writes are read back, gaps read as zero";
    told(rule, file.write_at(10, b"ten"))?;
    told(rule, file.write_vectored_at(20, &[b"twenty", b"", b" one"]))?;
    let mut buf = [9; 40];
    let got = told(rule, file.read_at(0, &mut buf))?;
    let mut wanted = [0; 30];
    wanted.get_mut(10..13).unwrap_or_default().copy_from_slice(b"ten");
    wanted.get_mut(20..30).unwrap_or_default().copy_from_slice(b"twenty one");
    expect(rule, buf.get(..got) == Some(wanted.as_slice()), format!("{:?}", buf.get(..got)))?;
    expect(rule, told(rule, file.read_at(99, &mut buf))? == 0, "a read behind the end returns bytes")?;

    let rule = "lengths";
    told(rule, file.set_len(12))?;
    told(rule, file.set_len(20))?;
    let got = told(rule, file.read_at(10, &mut buf))?;
    expect(rule, buf.get(..got) == Some(b"te\0\0\0\0\0\0\0\0".as_slice()), "cut bytes came back")?;
    told(rule, file.allocate(5000))?;
    expect(rule, told(rule, file.len())? == 5000, "allocate grows the file")?;
    told(rule, file.allocate(100))?;
    expect(rule, told(rule, file.len())? == 5000, "allocate does not shrink it")?;

    let rule = "names";
    told(rule, disk.create_dir_all("d/e"))?;
    told(rule, disk.open("d/e/f", OpenMode::Create))?;
    told(rule, disk.open("d/b", OpenMode::Create))?;
    expect(rule, told(rule, disk.list("d"))? == ["b", "e"], "list is sorted, files and directories")?;
    expect(rule, told(rule, disk.list("nowhere"))?.is_empty(), "an absent directory is empty")?;
    told(rule, disk.rename("a", "d/b"))?;
    expect(rule, told(rule, told(rule, disk.open("d/b", OpenMode::Read))?.len())? == 5000, "rename replaces")?;
    expect(rule, told(rule, file.len())? == 5000, "an open file outlives its rename")?;
    expect(rule, matches!(disk.rename("a", "z"), Err(DiskError::NotFound { .. })), "rename of an absent file")?;
    told(rule, disk.remove("d/b"))?;
    told(rule, file.read_at(0, &mut buf))?;
    expect(rule, matches!(disk.remove("d/b"), Err(DiskError::NotFound { .. })), "remove of an absent file")?;
    told(rule, disk.rename("d", "moved"))?;
    expect(rule, told(rule, disk.list("moved/e"))? == ["f"], "a directory moves with all below")?;
    told(rule, disk.remove_dir_all("moved"))?;
    told(rule, disk.remove_dir_all("moved"))?;
    expect(rule, told(rule, disk.list("moved"))?.is_empty(), "remove_dir_all leaves something")?;
    told(rule, disk.sync_dir(""))
}

/// What was synced, bytes and names, is there after power loss; a synced file under an unsynced rename has one of its
/// two names. `seeds` rounds.
///
/// # Errors
/// The first rule broken.
pub fn disk_survives_power_loss(make: Make<'_, Box<dyn PowerLoss>>, seeds: u64) -> Result<(), Violation> {
    for seed in 0..seeds {
        let mut power = make()?;
        let rule = "synced bytes under synced names survive";
        let disk = power.disk()?;
        told(rule, disk.create_dir_all("d"))?;
        told(rule, disk.sync_dir(""))?;
        let file = told(rule, disk.open("d/a", OpenMode::CreateNew))?;
        let mut draw = Draw(seed);
        let kept: Vec<u8> = (0..draw.below(20_000) + 1).map(|_| draw.next() as u8).collect();
        told(rule, file.write_at(0, &kept))?;
        told(rule, file.sync())?;
        told(rule, disk.sync_dir("d"))?;
        // Unsynced from here on: behind the kept bytes, so that those must not change.
        told(rule, file.write_at(kept.len() as u64, &[7; 3000]))?;
        told(rule, disk.open("d/new", OpenMode::Create).map(drop))?;
        told(rule, disk.rename("d/a", "d/b"))?;
        drop((file, disk));
        power.cut(seed);

        let disk = power.disk()?;
        let names = told(rule, disk.list("d"))?;
        let rule = "a rename is all or nothing";
        let found: Vec<&String> = names.iter().filter(|name| *name == "a" || *name == "b").collect();
        let [name] = found.as_slice() else {
            return Err(Violation::new(rule, format!("seed {seed}: {names:?}")));
        };
        let rule = "synced bytes under synced names survive";
        let file = told(rule, disk.open(&format!("d/{name}"), OpenMode::Write))?;
        let mut back = vec![0; kept.len()];
        let got = told(rule, file.read_at(0, &mut back))?;
        expect(rule, got == kept.len() && back == kept, format!("seed {seed}: {got} bytes read back, or others"))?;
    }
    Ok(())
}

/// The log over this disk: each round writes, cuts the power somewhere, and opens again; what a returned `sync` covered
/// must be there, in order, and nothing may be called faulty. `seeds` rounds.
///
/// # Errors
/// The first rule broken.
pub fn log_survives_power_loss(make: Make<'_, Box<dyn PowerLoss>>, seeds: u64) -> Result<(), Violation> {
    let rule = "a synced batch is recovered";
    let config = || WalConfig { segment_bytes: 16 << 10, ..WalConfig::default() };
    for seed in 0..seeds {
        let mut power = make()?;
        let mut draw = Draw(seed);
        let (mut written, mut durable, mut base) = (0u64, 0u64, 0u64);
        for _ in 0..4 {
            let (mut wal, recovered) = told(rule, Wal::open(power.disk()?, "wal", config()))?;
            let stream = recovered.streams.get(&StreamId(1));
            let last = stream.map_or(0, |s| s.last.index.0);
            let seen = format!("seed {seed}: durable {durable}, written {written}, recovered {last}");
            expect(rule, (durable..=written).contains(&last), &seen)?;
            expect("power loss is no damage", !recovered.is_faulty(), &seen)?;
            base = base.max(stream.map_or(0, |s| s.base.index.0));
            if last > base {
                let found = told(rule, wal.reader().read(StreamId(1), Index(base + 1)..=Index(last), usize::MAX))?;
                let same = found.iter().zip(base + 1..).all(|(entry, i)| *entry == sample(i));
                expect(rule, same && found.len() as u64 == last - base, &seen)?;
            }
            (written, durable) = (last, last);
            for _ in 0..draw.below(30) {
                let n = draw.below(3) + 1;
                let entries: Vec<Entry> = (written + 1..=written + n).map(sample).collect();
                let batch = StreamBatch {
                    stream: StreamId(1),
                    seq: IoSeq(written + 1),
                    epoch: Epoch(1),
                    entries,
                    ..StreamBatch::default()
                };
                told(rule, wal.append(&[batch]))?;
                written += n;
                if draw.below(3) == 0 {
                    told(rule, wal.sync())?;
                    durable = written;
                }
                if draw.below(8) == 0 {
                    wal.release(StreamId(1), Index(draw.below(durable + 1)));
                }
            }
            drop(wal);
            power.cut(draw.next());
        }
    }
    Ok(())
}

/// Batches, deletes, ranges and views of a store, without power loss.
///
/// # Errors
/// The first rule broken.
pub fn store_keeps_its_word(make: Make<'_, Box<dyn OrderedStore>>) -> Result<(), Violation> {
    let store = make()?;
    let (t1, t2) = (Table(1), Table(2));
    let rule = "a batch is applied in order, tables are apart";
    let key = |k: &'static str| Bytes::from_static(k.as_bytes());
    let put = |t, k, v| (t, key(k), Some(key(v)));
    told(rule, store.commit(StoreBatch { ops: vec![put(t1, "b", "2"), put(t1, "a", "1"), put(t1, "b", "3")] }))?;
    told(rule, store.commit(StoreBatch { ops: vec![put(t1, "c", ""), put(t2, "b", "other"), put(t1, "d", "4")] }))?;
    let get = |t, k: &str| told(rule, store.get(t, k.as_bytes()));
    expect(rule, get(t1, "b")? == Some(key("3")), "the later of two puts wins")?;
    expect(rule, get(t2, "b")? == Some(key("other")), "another table")?;
    expect(rule, get(t1, "c")? == Some(Bytes::new()), "an empty value is a value")?;
    expect(rule, get(t1, "x")?.is_none() && get(Table(200), "b")?.is_none(), "absent keys and tables")?;

    let rule = "a view does not change while it is held";
    let view = told(rule, store.view())?;
    told(rule, store.commit(StoreBatch { ops: vec![(t1, key("a"), None), put(t1, "b", "5")] }))?;
    let old = (told(rule, view.get(t1, b"a"))?, told(rule, view.get(t1, b"b"))?);
    expect(rule, old == (Some(key("1")), Some(key("3"))), format!("{old:?}"))?;
    drop(view);
    expect(rule, get(t1, "a")?.is_none() && get(t1, "b")? == Some(key("5")), "a new view sees the commit")?;

    let rule = "scans are ordered, bounded and stop when told";
    let scan = |low: Bound<&[u8]>, high: Bound<&[u8]>, reverse: bool, limit: usize| {
        let mut seen = String::new();
        let view = told(rule, store.view())?;
        let visit = &mut |k: &[u8], _: &[u8]| {
            seen.push_str(&String::from_utf8_lossy(k));
            seen.len() < limit
        };
        told(rule, view.scan(t1, (low, high), reverse, visit))?;
        Ok(seen)
    };
    use Bound::{Excluded, Included, Unbounded};
    for (low, high, reverse, limit, wanted) in [
        (Unbounded, Unbounded, false, 9, "bcd"),
        (Unbounded, Unbounded, true, 9, "dcb"),
        (Unbounded, Unbounded, false, 2, "bc"),
        (Included(b"b".as_slice()), Excluded(b"d".as_slice()), false, 9, "bc"),
        (Excluded(b"b".as_slice()), Included(b"d".as_slice()), true, 9, "dc"),
        (Included(b"c".as_slice()), Included(b"c".as_slice()), false, 9, "c"),
        (Excluded(b"c".as_slice()), Excluded(b"c".as_slice()), false, 9, ""),
        (Included(b"d".as_slice()), Included(b"b".as_slice()), false, 9, ""),
    ] {
        let seen = scan(low, high, reverse, limit)?;
        expect(rule, seen == wanted, format!("{low:?} {high:?} reverse {reverse}: {seen}, not {wanted}"))?;
    }
    Ok(())
}

/// A store over a disk whose power is cut: each committed batch is there whole, a later one whole or not at all.
/// `open` opens the store that lives on the disk. `seeds` rounds.
///
/// # Errors
/// The first rule broken.
pub fn store_survives_power_loss(
    make: Make<'_, Box<dyn PowerLoss>>,
    open: &mut dyn FnMut(Arc<dyn Disk>) -> Result<Box<dyn OrderedStore>, Violation>,
    seeds: u64,
) -> Result<(), Violation> {
    let rule = "a committed batch survives whole";
    for seed in 0..seeds {
        let mut power = make()?;
        let mut draw = Draw(seed);
        let mut committed = 0u64;
        for _ in 0..3 {
            let store = open(power.disk()?)?;
            let mut seen = Vec::new();
            let view = told(rule, store.view())?;
            let visit = &mut |_: &[u8], value: &[u8]| {
                seen.push(value.to_vec());
                true
            };
            told(rule, view.scan(Table(1), (Bound::Unbounded, Bound::Unbounded), false, visit))?;
            let wanted = committed.to_le_bytes();
            let whole = seen.iter().all(|value| *value == wanted) && (committed == 0 || seen.len() == KEYS as usize);
            expect(rule, whole, format!("seed {seed}: batch {committed}, found {seen:?}"))?;
            drop(view);
            for _ in 0..draw.below(6) {
                let value = Bytes::copy_from_slice(&(committed + 1).to_le_bytes());
                let ops = (0..KEYS).map(|k| (Table(1), Bytes::copy_from_slice(&[k]), Some(value.clone()))).collect();
                told(rule, store.commit(StoreBatch { ops }))?;
                committed += 1;
            }
            drop(store);
            power.cut(draw.next());
        }
    }
    Ok(())
}

fn sample(index: u64) -> Entry {
    let bytes = |n: u64| Bytes::from(vec![index as u8; (index * n % 700) as usize]);
    Entry {
        position: Position::new(1, index),
        kind: 1,
        head: bytes(31),
        sections: vec![bytes(7); (index % 3) as usize],
    }
}

fn expect(rule: &'static str, held: bool, detail: impl fmt::Display) -> Result<(), Violation> {
    if held { Ok(()) } else { Err(Violation::new(rule, detail)) }
}

fn told<T, E: fmt::Display>(rule: &'static str, result: Result<T, E>) -> Result<T, Violation> {
    result.map_err(|error| Violation::new(rule, error))
}

/// A small generator, so that a seed is all a failure needs (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Keys of each batch in the store's power-loss check.
const KEYS: u8 = 40;
