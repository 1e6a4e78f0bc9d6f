//! The log against a model: every crash point of a script, every flipped byte, every failed call, and random walks of
//! operations, crashes and openings. A failure prints its seed.

use std::collections::BTreeMap;

use super::*;
use crate::{Entry, Fate, Location, MemDisk, Section};

/// A small generator, so that a seed is all a failure needs (splitmix64).
struct Rng(u64);

impl Rng {
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

    fn fate(&mut self) -> Fate {
        [Fate::Lost, Fate::Kept, Fate::Torn][self.below(3) as usize]
    }
}

/// What one stream should hold. Released entries stay here: a base may or may not have become durable.
#[derive(Clone, Debug, Default, PartialEq)]
struct ModelStream {
    floor: Position,
    released: Index,
    entries: BTreeMap<u64, Entry>,
    state: Option<Bytes>,
}

impl ModelStream {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(0).max(self.floor.index.0)
    }
}

type Model = BTreeMap<StreamId, ModelStream>;

fn apply_to(model: &mut Model, batch: &StreamBatch) {
    let s = model.entry(batch.stream).or_default();
    if let Some(base) = batch.reset {
        s.floor = base;
        s.released = base.index;
        s.entries.clear();
    }
    if let Some(from) = batch.truncate_from {
        s.entries.split_off(&from.0);
    }
    for entry in &batch.entries {
        s.entries.insert(entry.position.index.0, entry.clone());
    }
    if batch.state.is_some() {
        s.state = batch.state.clone();
    }
}

/// A log under test with every picture it may legally come back with.
struct Bench {
    disk: MemDisk,
    wal: Wal,
    /// After the last sync, then after each append since.
    pictures: Vec<Model>,
    now: Model,
    seq: u64,
}

fn config() -> WalConfig {
    WalConfig { segment_bytes: 8 << 10, spare_segments_max: 1, salt: 77, ..WalConfig::default() }
}

fn open(disk: &MemDisk) -> Result<(Wal, Recovered), OpenError> {
    Wal::open(Arc::new(disk.clone()), "wal", config())
}

fn entry(epoch: u64, index: u64, fill: u64, len: usize, sections: usize) -> Entry {
    let bytes = |n: usize, salt: u64| Bytes::from((0..n).map(|i| (fill + salt + i as u64) as u8).collect::<Vec<_>>());
    Entry {
        position: Position::new(epoch, index),
        kind: (fill % 5) as u8,
        head: bytes(len, 0),
        sections: (0..sections).map(|s| bytes(len / 2 + s, s as u64 + 1)).collect(),
    }
}

impl Bench {
    fn new() -> Self {
        let disk = MemDisk::new();
        let (wal, _) = open(&disk).unwrap();
        Self { disk, wal, pictures: vec![Model::new()], now: Model::new(), seq: 0 }
    }

    fn append(&mut self, batches: &[StreamBatch]) -> Result<(), WalError> {
        let mut next = self.now.clone();
        for batch in batches {
            apply_to(&mut next, batch);
        }
        // A failed append may still be on disk in part or whole.
        self.pictures.push(next.clone());
        self.wal.append(batches)?;
        self.now = next;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WalError> {
        self.wal.sync()?;
        self.pictures = vec![self.now.clone()];
        Ok(())
    }

    fn release(&mut self, stream: StreamId, upto: u64) {
        self.wal.release(stream, Index(upto));
        if let Some(s) = self.now.get_mut(&stream) {
            s.released = s.released.max(Index(upto.min(s.last())));
        }
    }

    fn batch(&mut self, rng: &mut Rng) -> StreamBatch {
        self.seq += 1;
        let stream = StreamId(rng.below(3) as u32);
        let s = self.now.get(&stream).cloned().unwrap_or_default();
        let epoch = self.seq / 7 + 1;
        let mut batch = StreamBatch { stream, seq: IoSeq(self.seq), epoch: Epoch(epoch), ..StreamBatch::default() };
        let mut last = s.last();
        if rng.below(20) == 0 {
            last += rng.below(5) + 1;
            batch.reset = Some(Position::new(epoch, last));
        } else if rng.below(4) == 0 && last > s.released.0 {
            last = s.released.0 + rng.below(last - s.released.0);
            batch.truncate_from = Some(Index(last + 1));
        }
        for i in 0..rng.below(4) {
            let len = if rng.below(10) == 0 { 3000 } else { rng.below(300) as usize };
            batch.entries.push(entry(epoch, last + 1 + i, rng.next(), len, rng.below(3) as usize));
        }
        if rng.below(2) == 0 {
            batch.state = Some(Bytes::from(format!("state {}", self.seq)));
        }
        batch
    }

    /// Power loss, opening, and the check that what came back is one of the legal pictures.
    fn crash(self, seed: u64, fate: &mut dyn FnMut(u64) -> Fate) -> Self {
        let disk = self.disk.power_loss(fate);
        let (wal, recovered) = open(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(!recovered.is_faulty(), "seed {seed}: power loss is no damage: {recovered:?}");
        let bases = &self.now;
        let found = self.pictures.iter().position(|m| matches(m, bases, &wal, &recovered));
        let Some(found) = found else {
            panic!("seed {seed}: {recovered:#?}\nis none of {} pictures: {:#?}", self.pictures.len(), self.pictures)
        };
        let mut now = self.pictures[found].clone();
        for (id, s) in &mut now {
            s.released = recovered.streams[id].base.index;
        }
        Self { disk, wal, pictures: vec![now.clone()], now, seq: self.seq }
    }

    fn check_reads(&self) {
        let reader = self.wal.reader();
        for (id, s) in &self.now {
            for (i, expected) in s.entries.iter().filter(|(i, _)| **i > s.released.0) {
                let got = reader.read(*id, Index(*i)..=Index(*i), 0).unwrap();
                assert_eq!(got, vec![expected.clone()]);
            }
            if s.last() > s.released.0 {
                let all = reader.read(*id, s.released.next()..=Index(s.last()), usize::MAX).unwrap();
                let expected: Vec<Entry> = s.entries.range(s.released.0 + 1..).map(|(_, e)| e.clone()).collect();
                assert_eq!(all, expected);
            }
        }
    }
}

fn matches(model: &Model, bases: &Model, wal: &Wal, recovered: &Recovered) -> bool {
    let known: Vec<_> = recovered.streams.keys().collect();
    known == model.keys().collect::<Vec<_>>()
        && model.iter().all(|(id, s)| {
            let r = &recovered.streams[id];
            let latest = bases.get(id).map_or(Index::ZERO, |b| b.released).max(s.released);
            r.state == s.state
                && r.last.index.0 == s.last()
                && r.base.index <= latest
                && r.base.index >= s.floor.index
                && (r.base.index.0 + 1..=s.last()).all(|i| {
                    let got = wal.reader().read(*id, Index(i)..=Index(i), 0);
                    got.is_ok_and(|got| Some(&got[0]) == s.entries.get(&i))
                })
        })
}

/// One step of a random walk.
fn step(bench: &mut Bench, rng: &mut Rng) -> Result<(), WalError> {
    match rng.below(10) {
        0..=5 => {
            let first = bench.batch(rng);
            let mut batches = vec![first];
            if rng.below(3) == 0 {
                let second = bench.batch(rng);
                if second.stream != batches[0].stream {
                    batches.push(second);
                }
            }
            bench.append(&batches)
        }
        6 | 7 => bench.sync(),
        8 => {
            let stream = StreamId(rng.below(3) as u32);
            let last = bench.now.get(&stream).map_or(0, ModelStream::last);
            bench.release(stream, rng.below(last + 1));
            Ok(())
        }
        _ => {
            bench.append(&[])?;
            bench.sync()
        }
    }
}

#[test]
fn random_walks_of_writes_and_crashes_match_the_model() {
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let mut bench = Bench::new();
        for _ in 0..6 {
            for _ in 0..rng.below(40) {
                step(&mut bench, &mut rng).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
            bench.check_reads();
            let keep = rng.below(4);
            bench = bench.crash(seed, &mut |_| match keep {
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ => rng.fate(),
            });
        }
    }
}

/// The fates tried at each crash point: whole ones, each single piece lost or kept, and random mixes.
fn fates(n: u64) -> impl Iterator<Item = Box<dyn FnMut(u64) -> Fate>> {
    let whole =
        [Fate::Lost, Fate::Kept, Fate::Torn].into_iter().map(|f| Box::new(move |_| f) as Box<dyn FnMut(u64) -> Fate>);
    let single = (0..10u64).flat_map(|k| {
        let lost = move |i| if i == k { Fate::Lost } else { Fate::Kept };
        let kept = move |i| if i == k { Fate::Kept } else { Fate::Lost };
        let torn = move |i| if i == k { Fate::Torn } else { Fate::Kept };
        [Box::new(lost) as Box<dyn FnMut(u64) -> Fate>, Box::new(kept), Box::new(torn)]
    });
    let mixed = (0..10).map(move |s| {
        let mut rng = Rng(n * 1000 + s);
        Box::new(move |_| rng.fate()) as Box<dyn FnMut(u64) -> Fate>
    });
    whole.chain(single).chain(mixed)
}

/// A fixed script over rolls, truncations, resets and releases; ends early when the disk fails.
fn script(bench: &mut Bench, seed: u64, steps: u64) -> Result<(), WalError> {
    let mut rng = Rng(seed);
    for _ in 0..steps {
        step(bench, &mut rng)?;
    }
    bench.sync()
}

#[test]
fn every_crash_point_of_a_script_recovers_a_legal_picture() {
    let mut states = 0;
    for seed in [11, 23] {
        let ops = {
            let mut bench = Bench::new();
            let before = bench.disk.ops();
            script(&mut bench, seed, 45).unwrap();
            bench.disk.ops() - before
        };
        for stop in 0..=ops {
            for mut fate in fates(stop) {
                let mut bench = Bench::new();
                bench.disk.cut_power_after(stop);
                let done = script(&mut bench, seed, 45);
                assert!(done.is_err() || stop == ops, "the power is gone at {stop} of {ops}");
                let mut bench = bench.crash(stop, &mut *fate);
                // Life goes on, over whatever the torn tail left behind; and fails again.
                let mut rng = Rng(stop);
                for _ in 0..3 {
                    step(&mut bench, &mut rng).unwrap();
                }
                bench.crash(stop, &mut |_| rng.fate());
                states += 1;
            }
        }
    }
    println!("{states} crash states");
    assert!(states > 5_000);
}

#[test]
fn power_lost_while_opening_loses_nothing() {
    for seed in 0..20 {
        for stop in 0..14 {
            let mut rng = Rng(seed);
            let mut bench = Bench::new();
            script(&mut bench, seed, 30).unwrap();
            for _ in 0..3 {
                let batch = bench.batch(&mut rng);
                bench.append(&[batch]).unwrap();
            }
            let Bench { disk, now, pictures, seq, .. } = bench;
            let disk = disk.power_loss(&mut |_| rng.fate());
            // What was reported here must be there after the next crash too, if the opening succeeded.
            disk.cut_power_after(stop);
            let first = open(&disk);
            let again = disk.power_loss(&mut |_| rng.fate());
            let (wal, recovered) = open(&again).unwrap();
            assert!(pictures.iter().any(|m| matches(m, &now, &wal, &recovered)), "seed {seed} stop {stop}");
            if let Ok((_, told)) = first {
                assert_eq!(told.streams, recovered.streams, "seed {seed} stop {stop} seq {seq}");
            }
        }
    }
}

#[test]
fn what_an_opening_found_in_a_cache_is_durable_when_it_returns() {
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let mut bench = Bench::new();
        script(&mut bench, seed, 20).unwrap();
        for _ in 0..rng.below(6) {
            let batch = bench.batch(&mut rng);
            bench.append(&[batch]).unwrap();
        }
        // The process dies, the machine lives: the next one reads bytes that no device has yet. Then the power fails.
        let Bench { disk, wal, now, .. } = bench;
        drop(wal);
        let (wal, told) = open(&disk).unwrap();
        assert!(matches(&now, &now, &wal, &told), "seed {seed}: a dead process loses nothing it wrote");
        let (_, recovered) = open(&disk.power_loss(&mut |_| Fate::Lost)).unwrap();
        assert_eq!(told.streams, recovered.streams, "seed {seed}");
    }
}

#[test]
fn any_failed_call_poisons_and_nothing_acknowledged_is_lost() {
    let mut failures = 0;
    for seed in [5, 6] {
        for n in 0.. {
            let mut bench = Bench::new();
            bench.disk.fail_op(n);
            match script(&mut bench, seed, 45) {
                Ok(()) => break,
                Err(error) => {
                    assert!(matches!(error, WalError::Disk(_)), "{error:?}");
                    failures += 1;
                }
            }
            assert!(bench.wal.is_poisoned());
            let ops = bench.disk.ops();
            assert_eq!(bench.wal.append(&[StreamBatch::default()]), Err(WalError::Poisoned));
            assert_eq!(bench.wal.sync(), Err(WalError::Poisoned));
            assert_eq!(bench.disk.ops(), ops, "a poisoned log does not touch the disk");
            let mut rng = Rng(n);
            bench.crash(n, &mut |_| rng.fate());
        }
    }
    println!("{failures} call sites failed");
    assert!(failures > 100);
}

/// Two streams in one segment, every batch synced.
fn synced_log() -> (MemDisk, Model) {
    let mut bench = Bench::new();
    for i in 1..=6u64 {
        for stream in [1, 2] {
            let batch = StreamBatch {
                stream: StreamId(stream),
                seq: IoSeq(i),
                epoch: Epoch(1),
                entries: vec![entry(1, i, i * 9, 40, (i % 3) as usize)],
                state: (i % 2 == 0).then(|| Bytes::from(format!("s{i}"))),
                ..StreamBatch::default()
            };
            bench.append(&[batch]).unwrap();
            bench.sync().unwrap();
        }
    }
    (bench.disk, bench.now)
}

#[test]
fn a_flipped_byte_below_a_watermark_is_faulty_never_torn_or_silent() {
    let (disk, model) = synced_log();
    let whole = disk.power_loss(&mut |_| Fate::Lost);
    // Opening says that everything is durable: from here on each flip hits a proven batch.
    drop(open(&whole).unwrap());
    let path = "wal/0000000000000001.seg";
    // The checkpoint and twelve batches; the opening's own is the last, and exempt.
    let end = 1024 + 512 * 13;
    let (mut holes, mut doubts, mut unharmed) = (0, 0, 0);
    for offset in 0..end {
        let disk = whole.power_loss(&mut |_| Fate::Lost);
        assert!(disk.flip(path, offset, 0x10));
        let (wal, recovered) = open(&disk).unwrap();
        let reader = wal.reader();
        for (id, s) in &model {
            let Some(r) = recovered.streams.get(id) else {
                assert!(recovered.verdicts.batches_faulty > 0 && recovered.is_faulty(), "byte {offset}");
                continue;
            };
            assert!(r.last.index.0 == s.last() || r.doubt, "byte {offset}: {r:?}");
            assert!(r.state == s.state || r.state_faulty || r.doubt, "byte {offset}: {r:?}");
            for (i, expected) in &s.entries {
                match reader.read(*id, Index(*i)..=Index(*i), 0) {
                    Ok(got) => assert_eq!(&got[0], expected, "byte {offset}"),
                    Err(ReadError::Faulty { .. }) => assert!(r.is_faulty(), "byte {offset}"),
                    Err(ReadError::Absent { .. }) => assert!(r.doubt, "byte {offset}: {i} absent, {r:?}"),
                    Err(error) => panic!("byte {offset}: {error}"),
                }
            }
        }
        assert_eq!(recovered.verdicts.batches_torn, 0, "byte {offset}");
        if recovered.streams.values().any(|r| !r.holes.is_empty()) {
            holes += 1;
        } else if recovered.is_faulty() {
            doubts += 1;
        } else {
            unharmed += 1;
        }
        // And it stays so: the next opening finds the same.
        drop(wal);
        let (_, again) = open(&disk).unwrap();
        assert_eq!(again.streams, recovered.streams, "byte {offset}");
    }
    println!("{holes} holes, {doubts} doubts, {unharmed} unharmed (padding, header twin, commit frames)");
    assert!(holes > 1000 && doubts > 100);
}

#[test]
fn a_flip_in_the_last_batch_is_guessed_torn_as_the_policy_says() {
    let (disk, _) = synced_log();
    let disk = disk.power_loss(&mut |_| Fate::Lost);
    let last = (0..13).rev().map(|b| 1024 + 512 * b).find(|at| disk.flip("wal/0000000000000001.seg", at + 70, 1));
    assert!(last.is_some());
    let (_, recovered) = open(&disk).unwrap();
    assert!(!recovered.is_faulty());
    assert_eq!(recovered.verdicts.batches_torn, 1);
}

fn fill(wal: &mut Wal, stream: u32, from: u64, n: u64, len: usize) -> Result<(), WalError> {
    for i in from..from + n {
        let entries = vec![entry(1, i, i, len, 0)];
        let batch =
            StreamBatch { stream: StreamId(stream), seq: IoSeq(i), epoch: Epoch(1), entries, ..StreamBatch::default() };
        wal.append(&[batch])?;
        wal.sync()?;
    }
    Ok(())
}

#[test]
fn released_segments_are_reused_and_their_old_bytes_stay_dead() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    for round in 0..30 {
        fill(&mut wal, 1, round * 10 + 1, 10, 900).unwrap();
        wal.release(StreamId(1), Index(round * 10 + 8));
        wal.append(&[]).unwrap();
        wal.sync().unwrap();
        assert!(wal.reader().segments().len() <= 3, "round {round}: {:?}", wal.reader().segments());
        let copy = disk.power_loss(&mut |_| Fate::Lost);
        let (_, recovered) = open(&copy).unwrap();
        let r = &recovered.streams[&StreamId(1)];
        assert_eq!((r.base.index.0, r.last.index.0), (round * 10 + 8, round * 10 + 10));
        assert!(!recovered.is_faulty());
    }
    assert!(disk.used() <= 8192 * 5, "{} bytes", disk.used());
}

#[test]
fn an_idle_stream_keeps_its_segment_until_it_is_released() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, 7, 1, 1, 10).unwrap();
    fill(&mut wal, 1, 1, 40, 900).unwrap();
    wal.release(StreamId(1), Index(40));
    wal.append(&[]).unwrap();
    wal.sync().unwrap();
    let before = wal.reader().segments().len();
    assert!(before >= 4);
    assert_eq!(wal.reader().read(StreamId(7), Index(1)..=Index(1), 0).unwrap().len(), 1);
    wal.release(StreamId(7), Index(1));
    wal.append(&[]).unwrap();
    wal.sync().unwrap();
    assert_eq!(wal.reader().segments().len(), 1);
}

#[test]
fn a_pinned_location_stays_true_after_release_and_reuse() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, 1, 1, 3, 500).unwrap();
    let reader = wal.reader();
    let pin = reader.pin(StreamId(1), Index(1)..=Index(2)).unwrap();
    let place = reader.locate(StreamId(1), Index(2), Section::Head).unwrap().unwrap();
    assert_eq!(reader.locate(StreamId(1), Index(2), Section::Payload(0)).unwrap(), None);
    for round in 0..5 {
        fill(&mut wal, 1, round * 20 + 4, 20, 900).unwrap();
        wal.release(StreamId(1), Index(round * 20 + 23));
        wal.append(&[]).unwrap();
        wal.sync().unwrap();
    }
    assert!(matches!(reader.locate(StreamId(1), Index(2), Section::Head), Err(ReadError::Released { .. })));
    assert_eq!(pin.read(place).unwrap(), entry(1, 2, 2, 500, 0).head);
    assert!(matches!(pin.read(Location { segment: 99, ..place }), Err(ReadError::Faulty { .. })));
    drop(pin);
    fill(&mut wal, 1, 104, 1, 10).unwrap();
    assert!(disk.list("wal").unwrap().iter().all(|name| name != "0000000000000001.seg"));
}

#[test]
fn a_full_disk_refuses_without_harm_and_the_reserve_lets_releases_through() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(4 * 8192));
    let mut last = 0;
    let refused = loop {
        match fill(&mut wal, 1, last + 1, 1, 900) {
            Ok(()) => last += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, WalError::NoSpace);
    assert!(!wal.is_poisoned());
    let (bytes, used) = (Bytes::from_static(b"still votes"), disk.used());
    let state =
        StreamBatch { stream: StreamId(2), seq: IoSeq(1), state: Some(bytes.clone()), ..StreamBatch::default() };
    // Until a segment is freed, only reserved appends get through once the current one is full.
    while wal.append(std::slice::from_ref(&state)).is_ok() {}
    wal.append_reserved(std::slice::from_ref(&state)).unwrap();
    wal.release(StreamId(1), Index(last - 1));
    wal.append_reserved(&[]).unwrap();
    wal.sync().unwrap();
    assert_eq!(disk.used(), used, "the reserve is full again");
    fill(&mut wal, 1, last + 1, 3, 900).unwrap();
    let (_, recovered) = open(&disk.power_loss(&mut |_| Fate::Lost)).unwrap();
    assert_eq!(recovered.streams[&StreamId(1)].last.index.0, last + 3);
    assert_eq!(recovered.streams[&StreamId(2)].state, Some(bytes));
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let big = entry(1, 1, 3, 50_000, 2);
    let batch = |entries| StreamBatch { stream: StreamId(1), seq: IoSeq(1), entries, ..StreamBatch::default() };
    wal.append(&[batch(vec![big.clone()])]).unwrap();
    wal.sync().unwrap();
    fill(&mut wal, 1, 2, 3, 100).unwrap();
    assert_eq!(wal.reader().read(StreamId(1), Index(1)..=Index(1), 0).unwrap(), vec![big]);
    let (_, recovered) = open(&disk.power_loss(&mut |_| Fate::Lost)).unwrap();
    assert_eq!(recovered.streams[&StreamId(1)].last.index, Index(4));
    let small = WalConfig { batch_bytes_max: 1000, ..config() };
    let (mut wal, _) = Wal::open(Arc::new(MemDisk::new()), "wal", small).unwrap();
    assert!(matches!(wal.append(&[batch(vec![entry(1, 1, 3, 2000, 0)])]), Err(WalError::TooLarge { .. })));
    assert_eq!(wal.reader().bounds(StreamId(1)), None);
}

#[test]
fn entries_that_leave_a_gap_are_refused_and_change_nothing() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, 1, 1, 3, 10).unwrap();
    wal.release(StreamId(1), Index(2));
    let refused = |wal: &mut Wal, batch: StreamBatch| {
        let batch = StreamBatch { stream: StreamId(1), ..batch };
        let progress = wal.progress();
        assert!(matches!(wal.append(&[batch]), Err(WalError::Gap { .. })));
        assert_eq!(wal.progress(), progress);
    };
    refused(&mut wal, StreamBatch { entries: vec![entry(1, 5, 0, 1, 0)], ..StreamBatch::default() });
    refused(&mut wal, StreamBatch { entries: vec![entry(1, 3, 0, 1, 0)], ..StreamBatch::default() });
    refused(&mut wal, StreamBatch { truncate_from: Some(Index(2)), ..StreamBatch::default() });
    fill(&mut wal, 1, 4, 1, 10).unwrap();
}

#[test]
fn reads_tell_released_absent_and_unknown_apart() {
    let disk = MemDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, 1, 1, 5, 100).unwrap();
    wal.release(StreamId(1), Index(2));
    let reader = wal.reader();
    let read = |stream, from, to, max| reader.read(StreamId(stream), Index(from)..=Index(to), max);
    assert!(matches!(read(1, 2, 4, 0), Err(ReadError::Released { base, .. }) if base == Position::new(1, 2)));
    assert!(matches!(read(1, 6, 9, 0), Err(ReadError::Absent { last: Index(5), .. })));
    assert!(matches!(read(9, 1, 1, 0), Err(ReadError::Absent { .. })));
    assert_eq!(read(1, 3, 9, 0).unwrap().len(), 1, "at least one");
    assert_eq!(read(1, 3, 9, 200).unwrap().len(), 2);
    assert_eq!(read(1, 3, 9, 300).unwrap().len(), 3);
    assert_eq!(read(1, 4, 3, 300).unwrap().len(), 0);
}

#[test]
fn a_closed_log_opens_clean_and_another_version_is_refused() {
    let disk = MemDisk::new();
    let (wal, recovered) = open(&disk).unwrap();
    assert!(!recovered.clean);
    wal.close().unwrap();
    let (wal, recovered) = open(&disk).unwrap();
    assert!(recovered.clean && recovered.boot == 2);
    drop(wal);
    let (_, recovered) = open(&disk).unwrap();
    assert!(!recovered.clean && recovered.boot == 3);

    let header = SegmentHeader { seq: 1, salt: 1, size: 8192, first_batch: 1, chain: 0 };
    let mut bytes = header.encode();
    for copy in bytes.chunks_mut(512) {
        copy[8] = 9;
        let crc = crc32c::crc32c(&copy[..60]);
        copy[60..64].copy_from_slice(&crc.to_le_bytes());
    }
    disk.open("wal/0000000000000001.seg", crate::OpenMode::Write).unwrap().write_at(0, &bytes).unwrap();
    assert!(matches!(open(&disk), Err(OpenError::Version { found: 9, supported: 1, .. })));
}

#[test]
fn garbage_in_place_of_a_segment_is_faulty_not_fatal() {
    for seed in 0..50 {
        let (disk, _) = synced_log();
        let disk = disk.power_loss(&mut |_| Fate::Lost);
        drop(open(&disk).unwrap());
        let mut rng = Rng(seed);
        let file = disk.open("wal/0000000000000001.seg", crate::OpenMode::Write).unwrap();
        let from = rng.below(7000);
        let garbage: Vec<u8> = (0..rng.below(2000) + 600).map(|_| rng.next() as u8).collect();
        file.write_at(from, &garbage).unwrap();
        file.set_len(8192).unwrap();
        let (mut wal, recovered) = open(&disk).unwrap();
        assert!(recovered.is_faulty() || recovered.verdicts.batches_torn <= 1, "seed {seed}: {recovered:?}");
        let last = recovered.streams.get(&StreamId(1)).map_or(0, |r| r.last.index.0);
        fill(&mut wal, 1, last + 1, 3, 50).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        drop(wal);
        let (_, again) = open(&disk).unwrap();
        assert_eq!(again.streams[&StreamId(1)].last.index.0, last + 3, "seed {seed}");
        assert_eq!(again.is_faulty(), recovered.is_faulty(), "seed {seed}");
    }
}
