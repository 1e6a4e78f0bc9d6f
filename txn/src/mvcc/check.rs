//! The nine guarantees of a watch, as checks over what a client recorded: those etcd tests itself by, and a tenth,
//! that a watch which had the time to finish is complete.
//!
//! | guarantee | says |
//! |---|---|
//! | ordered | revisions never go back |
//! | unique | no event comes twice |
//! | atomic | one revision is one response (fragments of it count as one) |
//! | bookmarkable | after progress to R no event ≤ R comes |
//! | reliable | between two events that came, none is missing |
//! | resumable | the first event is the first from the start revision on |
//! | prev-kv | the pair as it was is the one history had |
//! | is-create | an event creates its key if, and only if, history did not have it |
//! | filter | nothing comes that was not asked for |

use std::collections::BTreeMap;

use bytes::Bytes;

use super::op::{KeyValue, Revision};
use super::outcome::{Event, EventKind};
use super::watch::{WatchCreate, WatchResponse};

/// Everything that happened, in order, from the empty store on.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Vec<Past>,
    live: BTreeMap<Bytes, KeyValue>,
}

/// What happened once.
#[derive(Clone, Debug)]
struct Past {
    /// With the pair as it was before the whole revision.
    event: Event,
    /// Whether the key was there, changes earlier in the revision counted.
    existed: bool,
}

/// What one watch was told, in order; progress of its whole stream included.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// What it asked for.
    pub wish: WatchCreate,
    /// The current revision when it was created.
    pub created_at: Revision,
    /// What came.
    pub responses: Vec<WatchResponse>,
}

/// What the checker knows beside the record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The highest compaction of the run: a pair as it was may be missing below it.
    pub compacted: Revision,
    /// Every event up to here must have come, if the watch was not cancelled. 0 to leave that open.
    pub complete_to: Revision,
}

/// A broken guarantee. Each names the revision it was seen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An event of an older revision followed.
    #[error("not ordered at revision {0}")]
    Ordered(Revision),
    /// An event came twice.
    #[error("not unique at revision {0}")]
    Unique(Revision),
    /// A revision was split over responses.
    #[error("not atomic at revision {0}")]
    Atomic(Revision),
    /// An event followed the progress that covered it.
    #[error("not bookmarkable at revision {0}")]
    Bookmarkable(Revision),
    /// An event is missing between two that came, or differs from what happened.
    #[error("not reliable at revision {0}")]
    Reliable(Revision),
    /// The first event is not the first there was to see.
    #[error("not resumable at revision {0}")]
    Resumable(Revision),
    /// The pair as it was is wrong or missing.
    #[error("wrong previous pair at revision {0}")]
    PrevKv(Revision),
    /// The event says it created a key that was there, or the other way round.
    #[error("wrong about creation at revision {0}")]
    IsCreate(Revision),
    /// The event was not asked for.
    #[error("not asked for at revision {0}")]
    Filter(Revision),
    /// An event up to the end is missing.
    #[error("incomplete from revision {0} on")]
    Complete(Revision),
    /// Cancelled as compacted although what it needed was still there.
    #[error("cancelled for the compaction at {0} without need")]
    Compacted(Revision),
}

impl History {
    /// The empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the events of one revision.
    pub fn push(&mut self, events: &[Event]) {
        let before: Vec<_> = events.iter().map(|event| self.live.get(&event.kv.key).cloned()).collect();
        for (event, prev_kv) in events.iter().zip(before) {
            let old = match event.kind {
                EventKind::Put => self.live.insert(event.kv.key.clone(), event.kv.clone()),
                EventKind::Delete => self.live.remove(&event.kv.key),
            };
            self.events.push(Past { event: Event { prev_kv, ..event.clone() }, existed: old.is_some() });
        }
    }

    /// Checks one record.
    ///
    /// # Errors
    /// The first violation found.
    pub fn check(&self, record: &Recorded, known: Known) -> Result<(), Violation> {
        check_order(record)?;
        self.check_unique(record)?;
        check_atomic(record)?;
        check_bookmarkable(record)?;
        self.check_events(record, known)
    }

    /// A transaction may delete, write and delete a key: twice is too often only where history has it once.
    fn check_unique(&self, record: &Recorded) -> Result<(), Violation> {
        let mut seen: BTreeMap<(Revision, &Bytes, bool), usize> = BTreeMap::new();
        for event in came(record) {
            let revision = event.kv.mod_revision;
            let times = seen.entry((revision, &event.kv.key, event.kind == EventKind::Put)).or_default();
            *times += 1;
            let from = self.events.partition_point(|past| past.event.kv.mod_revision < revision);
            let of_revision = self.events.iter().skip(from).take_while(|past| past.event.kv.mod_revision == revision);
            let same = |past: &&Past| past.event.kv.key == event.kv.key && past.event.kind == event.kind;
            if *times > of_revision.filter(same).count().max(1) {
                return Err(Violation::Unique(revision));
            }
        }
        Ok(())
    }

    /// Compares what came with what should have come: filter, reliable, resumable, prev-kv, is-create, complete.
    fn check_events(&self, record: &Recorded, known: Known) -> Result<(), Violation> {
        let start = match record.wish.start_revision {
            0 => record.created_at + 1,
            start => start,
        };
        let mut due =
            self.events.iter().filter(|past| past.event.kv.mod_revision >= start && wanted(record, &past.event));
        let mut last = start - 1;
        for (event, first) in came(record).zip(std::iter::once(true).chain(std::iter::repeat(false))) {
            let revision = event.kv.mod_revision;
            if !wanted(record, event) || revision < start {
                return Err(Violation::Filter(revision));
            }
            let Some(expected) = due.next() else { return Err(Violation::Reliable(revision)) };
            if (event.kind, &event.kv) != (expected.event.kind, &expected.event.kv) {
                let missing = expected.event.kv.mod_revision;
                return Err(if first { Violation::Resumable(missing) } else { Violation::Reliable(missing) });
            }
            check_one(record, event, expected, known)?;
            last = revision;
        }
        let canceled = record.responses.iter().find(|response| response.canceled.is_some());
        if let Some(canceled) = canceled {
            // The next revision it needed is at most one behind the last that came.
            let needless = canceled.compact_revision != 0 && canceled.compact_revision <= last + 1;
            return if needless { Err(Violation::Compacted(canceled.compact_revision)) } else { Ok(()) };
        }
        match due.next() {
            Some(missing) if missing.event.kv.mod_revision <= known.complete_to => {
                Err(Violation::Complete(missing.event.kv.mod_revision))
            }
            _ => Ok(()),
        }
    }
}

/// Checks what one event says about the state before it.
fn check_one(record: &Recorded, event: &Event, expected: &Past, known: Known) -> Result<(), Violation> {
    let revision = event.kv.mod_revision;
    if event.is_create() != (event.kind == EventKind::Put && !expected.existed) {
        return Err(Violation::IsCreate(revision));
    }
    let before = expected.event.prev_kv.as_ref();
    // A key made in this revision has no pair to show, whatever was there before it.
    let may_miss = revision - 1 < known.compacted || event.is_create();
    let right = match &event.prev_kv {
        Some(prev) => record.wish.prev_kv && Some(prev) == before,
        None => !record.wish.prev_kv || before.is_none() || may_miss,
    };
    if right { Ok(()) } else { Err(Violation::PrevKv(revision)) }
}

fn came(record: &Recorded) -> impl Iterator<Item = &Event> {
    record.responses.iter().flat_map(|response| response.events.iter())
}

fn wanted(record: &Recorded, event: &Event) -> bool {
    let wish = &record.wish;
    let from: &[u8] = if wish.key.is_empty() { b"\0" } else { &wish.key };
    let key = &*event.kv.key;
    let inside = match &*wish.range_end {
        [] => key == from,
        [0] => key >= from,
        end => from <= key && key < end,
    };
    let refused = match event.kind {
        EventKind::Put => wish.no_put,
        EventKind::Delete => wish.no_delete,
    };
    inside && !refused
}

fn check_order(record: &Recorded) -> Result<(), Violation> {
    let mut last = 0;
    for event in came(record) {
        let revision = event.kv.mod_revision;
        if revision < last {
            return Err(Violation::Ordered(revision));
        }
        last = revision;
    }
    Ok(())
}

fn check_atomic(record: &Recorded) -> Result<(), Violation> {
    let mut last = 0;
    let mut fragments = false;
    for response in record.responses.iter().filter(|response| !response.events.is_empty()) {
        let first = response.events.first().map_or(0, |event| event.kv.mod_revision);
        if first == last && !fragments {
            return Err(Violation::Atomic(first));
        }
        if response.fragment && !record.wish.fragment {
            return Err(Violation::Atomic(first));
        }
        last = response.events.last().map_or(0, |event| event.kv.mod_revision);
        fragments = response.fragment;
    }
    Ok(())
}

fn check_bookmarkable(record: &Recorded) -> Result<(), Violation> {
    let mut bookmark = 0;
    for response in &record.responses {
        if let Some(event) = response.events.iter().find(|event| event.kv.mod_revision <= bookmark) {
            return Err(Violation::Bookmarkable(event.kv.mod_revision));
        }
        if response.is_progress() {
            bookmark = response.revision;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::outcome::Events;

    fn put(key: &'static str, revision: Revision, create_revision: Revision) -> Event {
        let key = Bytes::from_static(key.as_bytes());
        let kv = KeyValue { key, mod_revision: revision, create_revision, version: 1, ..KeyValue::default() };
        Event { kind: EventKind::Put, kv, prev_kv: None }
    }

    fn response(revision: Revision, events: &[Event]) -> WatchResponse {
        WatchResponse {
            watch_id: 0,
            revision,
            created: false,
            canceled: None,
            compact_revision: 0,
            fragment: false,
            events: Events::from(events),
        }
    }

    fn check(responses: &[WatchResponse], expected: Result<(), Violation>) {
        let mut history = History::new();
        history.push(&[put("a", 2, 2)]);
        history.push(&[put("a", 3, 2), put("b", 3, 3)]);
        history.push(&[put("a", 4, 2)]);
        history.push(&[put("x", 5, 5)]);
        let wish = WatchCreate {
            key: Bytes::from_static(b"a"),
            range_end: Bytes::from_static(b"c"),
            start_revision: 2,
            ..WatchCreate::default()
        };
        let record = Recorded { wish, created_at: 1, responses: responses.to_vec() };
        assert_eq!(history.check(&record, Known { compacted: -1, complete_to: 5 }), expected);
    }

    #[test]
    fn each_guarantee_is_seen_to_break() {
        let (two, four) = (response(2, &[put("a", 2, 2)]), response(4, &[put("a", 4, 2)]));
        let three = response(3, &[put("a", 3, 2), put("b", 3, 3)]);
        let good = [two.clone(), three.clone(), response(3, &[]), four.clone(), response(5, &[])];
        check(&good, Ok(()));
        check(&[three.clone(), two.clone()], Err(Violation::Ordered(2)));
        check(&[two.clone(), two.clone()], Err(Violation::Unique(2)));
        let halves = [response(3, &[put("a", 3, 2)]), response(3, &[put("b", 3, 3)])];
        check(&[&[two.clone()][..], &halves].concat(), Err(Violation::Atomic(3)));
        check(&[two.clone(), response(3, &[]), three.clone()], Err(Violation::Bookmarkable(3)));
        check(&[two.clone(), four.clone()], Err(Violation::Reliable(3)));
        check(&[three.clone(), four.clone()], Err(Violation::Resumable(2)));
        check(&[two.clone(), three.clone(), response(4, &[put("x", 5, 5)])], Err(Violation::Filter(5)));
        check(&[two.clone(), three.clone()], Err(Violation::Complete(4)));
        let prev = Event { prev_kv: Some(put("a", 2, 2).kv), ..put("a", 3, 2) };
        check(&[two.clone(), response(3, &[prev, put("b", 3, 3)])], Err(Violation::PrevKv(3)));
        let mut canceled = response(5, &[]);
        canceled.canceled = Some(crate::mvcc::CancelReason::Compacted);
        canceled.compact_revision = 3;
        check(&[two.clone(), canceled.clone()], Err(Violation::Compacted(3)));
        canceled.compact_revision = 4;
        check(&[two, canceled], Ok(()));
    }

    #[test]
    fn a_false_creation_is_seen() {
        let mut history = History::new();
        // History itself is inconsistent here: the second put claims to create what is there.
        history.push(&[put("a", 2, 2)]);
        history.push(&[put("a", 3, 3)]);
        let wish = WatchCreate { key: Bytes::from_static(b"a"), start_revision: 2, ..WatchCreate::default() };
        let responses = vec![response(2, &[put("a", 2, 2)]), response(3, &[put("a", 3, 3)])];
        let record = Recorded { wish, created_at: 1, responses };
        assert_eq!(history.check(&record, Known::default()), Err(Violation::IsCreate(3)));
    }
}
