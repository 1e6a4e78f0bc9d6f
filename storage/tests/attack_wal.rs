//! The log against a hostile disk: the simulator's, which loses, reorders, misdirects, flips, fails and fills up.
//!
//! 1. What a returned `sync` or `open` covers comes back, bit for bit, whatever power cut, kill or error follows.
//! 2. What was not covered comes back as a prefix of the appends, or not at all.
//! 3. Damage to what is proven durable is reported; it never reads as an earlier, shorter or empty log.
//!
//! A failure prints its seed; `ATTACK_SEED=n` runs that history alone, `ATTACK_HISTORIES=n` sets how many.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use triune_sim::{DiskImage, DiskOp, Rng, SimDisk};
use triune_storage::{
    Entry, Epoch, Index, IoSeq, Location, OpenError, Pin, Position, Recovered, Section, StreamBatch, StreamId, Wal,
    WalConfig, WalError,
};

const SEGMENT_BYTES: u64 = 8 << 10;

fn config() -> WalConfig {
    WalConfig { segment_bytes: SEGMENT_BYTES, spare_segments_max: 1, salt: 0xA77A, ..WalConfig::default() }
}

fn open(disk: &SimDisk) -> Result<(Wal, Recovered), OpenError> {
    Wal::open(Arc::new(disk.clone()), "wal", config())
}

fn blank(seed: u64) -> SimDisk {
    SimDisk::new(&Rng::new(seed))
}

fn from(image: &DiskImage) -> SimDisk {
    SimDisk::from_image(image.clone(), &Rng::new(0))
}

fn entry(epoch: u64, index: u64, fill: u64, len: usize, sections: usize) -> Entry {
    let bytes = |n: usize, salt: u64| Bytes::from((0..n).map(|i| (fill + salt + i as u64) as u8).collect::<Vec<_>>());
    Entry {
        position: Position::new(epoch, index),
        kind: (fill % 7) as u8,
        head: bytes(len, 0),
        sections: (0..sections).map(|s| bytes(len / 2 + s, s as u64 + 1)).collect(),
    }
}

fn write(stream: u32, seq: u64, entries: Vec<Entry>) -> StreamBatch {
    let epoch = entries.last().map_or(Epoch(1), |e| e.position.epoch);
    StreamBatch { stream: StreamId(stream), seq: IoSeq(seq), epoch, entries, ..StreamBatch::default() }
}

fn state(stream: u32, seq: u64, words: &str) -> StreamBatch {
    StreamBatch { state: Some(Bytes::from(words.to_owned())), ..write(stream, seq, Vec::new()) }
}

/// What one stream holds, as its writer knows it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Stream {
    /// The base as the last append told it.
    said: Position,
    /// The base as the last `release` asked for it.
    released: Position,
    entries: BTreeMap<u64, Entry>,
    state: Option<Bytes>,
    seq: IoSeq,
    epoch: Epoch,
}

impl Stream {
    fn last(&self) -> Position {
        let last = self.entries.values().next_back().map(|e| e.position);
        last.filter(|last| last.index > self.released.index).unwrap_or(self.released)
    }

    fn apply(&mut self, batch: &StreamBatch) {
        if let Some(base) = batch.reset {
            (self.said, self.released) = (base, base);
            self.entries.clear();
        }
        if let Some(from) = batch.truncate_from {
            self.entries.split_off(&from.0);
        }
        self.entries.extend(batch.entries.iter().map(|e| (e.position.index.0, e.clone())));
        self.state = batch.state.clone().or(self.state.take());
        (self.seq, self.epoch) = (batch.seq, batch.epoch);
    }
}

type Picture = BTreeMap<StreamId, Stream>;

fn after(picture: &Picture, batches: &[StreamBatch]) -> Picture {
    let mut next = picture.clone();
    for stream in next.values_mut() {
        stream.said = stream.released;
    }
    for batch in batches {
        next.entry(batch.stream).or_default().apply(batch);
    }
    next
}

/// Whether the log holds exactly `picture`; a base may be newer, as a checkpoint told it, up to what `now` released.
fn holds(picture: &Picture, now: &Picture, wal: &Wal, found: &Recovered) -> bool {
    let same_streams = found.streams.keys().eq(picture.keys());
    same_streams
        && picture.iter().all(|(id, s)| {
            let r = &found.streams[id];
            let newest = now.get(id).map_or(s.released, |n| n.released.max(s.released));
            let base_is_known = r.base == s.said
                || r.base == newest
                || s.entries.get(&r.base.index.0).is_some_and(|e| e.position == r.base);
            let live: Vec<Entry> = s.entries.range(r.base.index.0 + 1..).map(|(_, e)| e.clone()).collect();
            let last = live.last().map_or(r.base, |e| e.position);
            let read = wal.reader().read(*id, r.base.index.next()..=last.index, usize::MAX);
            let read = if live.is_empty() { read.map(|_| Vec::new()) } else { read };
            r.state == s.state
                && (r.last_seq, r.epoch, r.last) == (s.seq, s.epoch, last)
                && (s.said.index..=newest.index).contains(&r.base.index)
                && base_is_known
                && wal.reader().bounds(*id) == Some((r.base, r.last))
                && read.as_ref() == Ok(&live)
        })
}

/// A log with every picture it may legally come back with, in order of their appends.
struct Bench {
    seed: u64,
    disk: SimDisk,
    wal: Option<Wal>,
    pictures: Vec<Picture>,
    now: Picture,
    pins: Vec<(Pin, Location, Bytes)>,
}

#[derive(Debug, Default)]
struct Tally {
    appends: u64,
    syncs: u64,
    crashes: u64,
    kills: u64,
    failures: u64,
    no_space: u64,
    failed_opens: u64,
    pins: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let disk = blank(seed);
        let (wal, _) = open(&disk).unwrap();
        Self { seed, disk, wal: Some(wal), pictures: vec![Picture::new()], now: Picture::new(), pins: Vec::new() }
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().unwrap()
    }

    fn append(&mut self, batches: &[StreamBatch], reserved: bool) -> Result<(), WalError> {
        let next = after(&self.now, batches);
        let done = if reserved { self.wal().append_reserved(batches) } else { self.wal().append(batches) };
        match done {
            Ok(_) => {
                self.pictures.push(next.clone());
                self.now = next;
                Ok(())
            }
            // It may be on disk in part or whole.
            Err(error) => {
                if error != WalError::NoSpace {
                    self.pictures.push(next);
                }
                Err(error)
            }
        }
    }

    fn sync(&mut self) -> Result<(), WalError> {
        self.wal().sync()?;
        self.pictures = vec![self.now.clone()];
        Ok(())
    }

    fn release(&mut self, stream: StreamId, upto: u64) {
        self.wal().release(stream, Index(upto));
        if let Some(s) = self.now.get_mut(&stream) {
            let upto = upto.min(s.last().index.0);
            if upto > s.released.index.0 {
                s.released = s.entries[&upto].position;
            }
        }
    }

    /// Opens what the disk holds now; the log must hold one of the pictures, and from now on that one.
    fn reopen(&mut self, tally: &mut Tally) {
        self.wal = None;
        self.pins.clear();
        let (wal, found) = loop {
            match open(&self.disk) {
                Ok(opened) => break opened,
                Err(OpenError::Disk(_)) => {
                    tally.failed_opens += 1;
                    self.disk.set_capacity(None);
                    self.disk.kill();
                }
                Err(error) => panic!("seed {}: {error}", self.seed),
            }
        };
        assert!(!found.is_faulty(), "seed {}: nothing was damaged: {found:#?}", self.seed);
        assert_eq!(found.verdicts.batches_faulty, 0, "seed {}", self.seed);
        let picture = self.pictures.iter().rposition(|p| holds(p, &self.now, &wal, &found));
        let Some(picture) = picture else {
            panic!("seed {}: {:#?}\nis none of {:#?}", self.seed, found.streams, self.pictures)
        };
        let mut now = self.pictures[picture].clone();
        for (id, s) in &mut now {
            let base = found.streams[id].base;
            (s.said, s.released) = (base, base);
            s.entries = s.entries.split_off(&base.index.next().0);
        }
        (self.wal, self.pictures, self.now) = (Some(wal), vec![now.clone()], now);
    }

    fn batch(&mut self, rng: &mut Rng, pending: &Picture) -> StreamBatch {
        let stream = rng.below(4) as u32;
        let s = pending.get(&StreamId(stream)).cloned().unwrap_or_default();
        let seq = s.seq.0 + 1;
        let mut epoch = s.last().epoch.0.max(1) + u64::from(rng.below(5) == 0);
        let mut last = s.last().index.0;
        let mut batch = write(stream, seq, Vec::new());
        match rng.below(24) {
            0 | 1 => {
                last += rng.below(6);
                epoch += 1;
                batch.reset = Some(Position::new(epoch, last));
            }
            2..=5 if last > s.released.index.0 => {
                last = s.released.index.0 + rng.below(last - s.released.index.0);
                epoch += 1;
                batch.truncate_from = Some(Index(last + 1));
            }
            _ => {}
        }
        for i in 0..rng.below(4) {
            let len = match rng.below(40) {
                0 => SEGMENT_BYTES as usize * 2,
                1..=4 => 3_000,
                5..=8 => 0,
                _ => rng.below(300) as usize,
            };
            batch.entries.push(entry(epoch, last + 1 + i, rng.next_u64() >> 8, len, rng.below(3) as usize));
        }
        batch.epoch = Epoch(epoch);
        if rng.below(3) == 0 {
            batch.state = Some(Bytes::from(format!("s{stream} {seq} {}", rng.below(1 << 20))));
        }
        batch
    }

    fn batches(&mut self, rng: &mut Rng) -> Vec<StreamBatch> {
        let mut pending = self.now.clone();
        let mut batches = Vec::new();
        for _ in 0..1 + rng.below(3) {
            let batch = self.batch(rng, &pending);
            pending.entry(batch.stream).or_default().apply(&batch);
            batches.push(batch);
        }
        batches
    }

    fn check_pins(&self) {
        for (pin, place, bytes) in &self.pins {
            assert_eq!(pin.read(*place).as_ref(), Ok(bytes), "seed {}", self.seed);
        }
    }

    fn pin(&mut self, rng: &mut Rng) {
        let Some((id, s)) = self.now.iter().nth(rng.below(4) as usize) else { return };
        let (first, last) = (s.released.index.0 + 1, s.last().index.0);
        if first > last {
            return;
        }
        let index = rng.range(first, last);
        let (reader, expected) = (self.wal.as_ref().unwrap().reader(), s.entries[&index].head.clone());
        let place = reader.locate(*id, Index(index), Section::Head).unwrap().unwrap();
        self.pins.push((reader.pin(*id, Index(index)..=Index(last)).unwrap(), place, expected));
    }
}

/// One history: a few lives of a log, each ended by a power cut, a kill, or an error and either.
fn history(seed: u64, tally: &mut Tally) {
    let mut rng = Rng::new(seed);
    let mut bench = Bench::new(seed);
    let (fails, fills) = (rng.coin(), rng.coin());
    for _ in 0..2 + rng.below(5) {
        if fails {
            let op = [DiskOp::Write, DiskOp::Sync, DiskOp::SyncDir][rng.below(3) as usize];
            bench.disk.fail_nth(op, 1 + rng.below(12));
        }
        let mut failed = false;
        for _ in 0..rng.below(24) {
            let done = match rng.below(20) {
                0..=9 => {
                    let batches = bench.batches(&mut rng);
                    tally.appends += 1;
                    match bench.append(&batches, rng.below(4) == 0) {
                        Err(WalError::NoSpace) => {
                            tally.no_space += 1;
                            bench.disk.set_capacity(None);
                            if rng.coin() { bench.append(&batches, false) } else { Ok(()) }
                        }
                        done => done,
                    }
                }
                10..=14 => {
                    tally.syncs += 1;
                    bench.sync()
                }
                15 | 16 => {
                    let stream = StreamId(rng.below(4) as u32);
                    let last = bench.now.get(&stream).map_or(0, |s| s.last().index.0);
                    bench.release(stream, rng.range(0, last + 1));
                    Ok(())
                }
                17 => match bench.append(&[], true) {
                    Err(WalError::NoSpace) => Ok(()),
                    Ok(()) => bench.sync(),
                    error => error,
                },
                18 if fills => {
                    let room = rng.below(3 * SEGMENT_BYTES);
                    bench.disk.set_capacity(Some(bench.disk.used_bytes() + room));
                    Ok(())
                }
                18 => {
                    tally.pins += 1;
                    bench.pin(&mut rng);
                    Ok(())
                }
                _ => {
                    bench.pins.clear();
                    Ok(())
                }
            };
            match done {
                Ok(()) => bench.check_pins(),
                Err(WalError::Disk(_)) => {
                    failed = true;
                    break;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        if failed {
            tally.failures += 1;
            let before = bench.disk.stats();
            assert_eq!(bench.wal().sync(), Err(WalError::Poisoned), "seed {seed}");
            assert_eq!(bench.wal().append(&[state(0, 1, "x")]), Err(WalError::Poisoned), "seed {seed}");
            assert_eq!(bench.disk.stats(), before, "seed {seed}: a poisoned log does not touch the disk");
        }
        // Handles close before the power goes, as in a process that dies first; or after.
        if rng.coin() {
            bench.wal = None;
        }
        if rng.below(3) == 0 {
            tally.kills += 1;
            bench.disk.kill();
        } else {
            tally.crashes += 1;
            bench.disk.crash(&mut rng);
        }
        if rng.below(4) == 0 {
            // The next opening dies half-way, and the power with it.
            let op = [DiskOp::Write, DiskOp::Sync, DiskOp::SyncDir][rng.below(3) as usize];
            bench.disk.fail_nth(op, 1 + rng.below(4));
            if open(&bench.disk).is_err() && rng.coin() {
                bench.disk.crash(&mut rng);
            } else {
                bench.disk.kill();
            }
        }
        bench.reopen(tally);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|n| n.parse().ok())
}

#[test]
fn histories_of_writes_faults_and_crashes_match_the_model() {
    let mut tally = Tally::default();
    let seeds = match number("ATTACK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ATTACK_HISTORIES").unwrap_or(3_000),
    };
    for seed in seeds.clone() {
        history(seed, &mut tally);
    }
    // A segment freed by an opening whose last segment then lost its name.
    history(4104, &mut tally);
    println!("{} histories: {tally:?}", seeds.end - seeds.start);
    if seeds.end - seeds.start >= 3_000 {
        let Tally { failures, no_space, failed_opens, pins, .. } = tally;
        assert!(failures > 100 && no_space > 100 && failed_opens > 100 && pins > 100, "{tally:?}");
    }
}

/// One synced entry after the other.
fn fill(wal: &mut Wal, stream: u32, from: u64, n: u64, len: usize) -> Result<(), WalError> {
    for i in from..from + n {
        wal.append(&[write(stream, i, vec![entry(1, i, i, len, 0)])])?;
        wal.sync()?;
    }
    Ok(())
}

#[test]
fn a_segment_whose_directory_sync_failed_is_not_trusted_to_have_a_name() {
    let mut lost = 0;
    for seed in 0..20 {
        let disk = blank(seed);
        let (mut wal, _) = open(&disk).unwrap();
        disk.fail_nth(DiskOp::SyncDir, 1);
        let mut last = 0;
        while fill(&mut wal, 1, last + 1, 1, 900).is_ok() {
            last += 1;
        }
        // The process ends, the machine goes on; the new process sees the name, and syncs the directory with success.
        disk.kill();
        let (mut wal, found) = open(&disk).unwrap();
        last = found.streams[&StreamId(1)].last.index.0;
        fill(&mut wal, 1, last + 1, 2, 10).unwrap();
        lost += disk.crash_keeping(&mut |_| false).names_lost;
        let (_, found) = open(&disk).unwrap();
        assert_eq!(found.streams[&StreamId(1)].last.index.0, last + 2, "seed {seed}: acknowledged and gone");
    }
    assert_eq!(lost, 0, "no name is left to chance");
}

#[test]
fn a_checkpoint_that_decays_is_faulty_because_its_segment_has_a_name() {
    let disk = blank(1);
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[state(2, 1, "voted for 3 in term 9")]).unwrap();
    // Headers, the first checkpoint, the vote, the room for a mark; then blocks up to it.
    let blocks = SEGMENT_BYTES / 512 - 5;
    fill(&mut wal, 1, 1, blocks, 10).unwrap();
    assert_eq!(wal.reader().segments().len(), 1);
    wal.release(StreamId(1), Index(blocks));
    wal.append(&[]).unwrap();
    wal.sync().unwrap();
    // That was the last block: the mark of the next opening is a checkpoint in a new segment, and the old one is free.
    drop(wal);
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(wal.reader().segments().first().unwrap().0, 2);
    assert_eq!(wal.reader().segments().len(), 1, "the checkpoint is all there is");
    drop(wal);
    disk.crash_keeping(&mut |_| true);
    let whole = disk.snapshot();
    let path = "wal/0000000000000002.seg";
    let mut reported = 0;
    for offset in 0..1024 + 512 {
        let disk = from(&whole);
        assert!(disk.flip_bit(path, offset, (offset % 8) as u8));
        let (wal, found) = open(&disk).unwrap();
        let intact =
            found.streams.get(&StreamId(2)).is_some_and(|r| r.state.as_deref() == Some(b"voted for 3 in term 9"));
        assert!(intact || found.is_faulty(), "byte {offset}: a vote is forgotten: {found:?}");
        reported += u64::from(found.is_faulty());
        drop(wal);
        let (_, again) = open(&disk).unwrap();
        assert_eq!(again.is_faulty(), found.is_faulty(), "byte {offset}");
    }
    assert!(reported > 100, "{reported}");
}

#[test]
fn writes_of_one_stream_in_one_commit_are_placed_behind_each_other() {
    let disk = blank(1);
    let (mut wal, _) = open(&disk).unwrap();
    let reset = |index| StreamBatch { reset: Some(Position::new(2, index)), ..write(1, 1, Vec::new()) };
    let cut = |from, entries| StreamBatch { truncate_from: Some(Index(from)), ..write(1, 2, entries) };
    // Below the base that the same commit sets.
    let refused = wal.append(&[reset(10), cut(5, vec![entry(2, 5, 0, 1, 0)])]);
    assert!(matches!(refused, Err(WalError::Gap { .. })), "{refused:?}");
    assert_eq!(wal.reader().bounds(StreamId(1)), None, "nothing happened");
    wal.append(&[reset(10), cut(12, vec![entry(2, 11, 0, 1, 0)])]).unwrap();
    // And above a base that it lowers.
    wal.append(&[reset(3), cut(4, vec![entry(2, 4, 0, 1, 0)])]).unwrap();
    wal.sync().unwrap();
    let (_, found) = open(&from(&disk.snapshot())).unwrap();
    assert_eq!(found.streams[&StreamId(1)].last, Position::new(2, 4));
}

#[test]
fn a_log_below_new_directories_survives_their_making() {
    let disk = blank(1);
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), "groups/7/wal", config()).unwrap();
    fill(&mut wal, 1, 1, 1, 10).unwrap();
    disk.crash_keeping(&mut |_| false);
    let (_, found) = Wal::open(Arc::new(disk), "groups/7/wal", config()).unwrap();
    assert_eq!(found.streams[&StreamId(1)].last.index, Index(1));
}

#[test]
fn ordinary_writes_leave_the_reserve_to_those_that_free_space() {
    let disk = blank(1);
    let (mut wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let mut last = 0;
    while fill(&mut wal, 1, last + 1, 1, 20).is_ok() {
        last += 1;
    }
    let delete = [write(1, last + 1, vec![entry(1, last + 1, 0, 20, 0)])];
    assert_eq!(wal.append(&delete), Err(WalError::NoSpace));
    wal.append_reserved(&delete).unwrap();
    wal.sync().unwrap();
    // The segment in use is the reserve now; the disk is as full as before.
    let put = [write(1, last + 2, vec![entry(1, last + 2, 0, 20, 0)])];
    assert_eq!(wal.append(&put), Err(WalError::NoSpace), "the reserve is not for everybody");
    wal.append_reserved(&put).unwrap();
    wal.sync().unwrap();
    drop(wal);
    disk.kill();
    // A new process on the full disk is no richer.
    let (mut wal, _) = open(&disk).unwrap();
    let put = [write(1, last + 3, vec![entry(1, last + 3, 0, 20, 0)])];
    assert_eq!(wal.append(&put), Err(WalError::NoSpace));
    // Freeing a segment fills the reserve, and all is well.
    wal.release(StreamId(1), Index(last));
    wal.append_reserved(&[]).unwrap();
    wal.sync().unwrap();
    wal.append(&put).unwrap();
    wal.sync().unwrap();
}

#[test]
fn a_release_gets_through_when_even_the_reserve_is_full() {
    let disk = blank(1);
    let (mut wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let put = |last: u64| [write(1, last + 1, vec![entry(1, last + 1, last, 20, 0)])];
    let mut last = 0;
    while wal.append_reserved(&put(last)).is_ok() {
        wal.sync().unwrap();
        last += 1;
    }
    assert_eq!(wal.append_reserved(&put(last)), Err(WalError::NoSpace));
    wal.release(StreamId(1), Index(last));
    wal.append_reserved(&put(last)).unwrap();
    wal.sync().unwrap();
    disk.crash_keeping(&mut |_| false);
    let (_, found) = open(&disk).unwrap();
    let r = &found.streams[&StreamId(1)];
    assert_eq!((r.base.index.0, r.last.index.0, found.is_faulty()), (last, last + 1, false));
}
