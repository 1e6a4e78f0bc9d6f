//! The history held against the order that the watch from revision 1 gives.
//!
//! The watch fixes one order of all changes. Against it: each acknowledged write stands at its revision with exactly
//! its effect; each read equals the model at its revision; revisions follow real time; every change is explained by
//! one request, acknowledged or unknown, or by a lease that was allowed to run out. Nothing is searched, so nothing is
//! cut short.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use triune_node::pb::{
    etcdserverpb::{ResponseOp, response_op},
    mvccpb::{Event, event::EventType},
};

use super::{
    history::{Outcome, Record},
    model::{Model, Request, Response},
};

/// What the history shows that must not be.
#[derive(Debug)]
pub enum Violation {
    /// An acknowledged write is not at its revision.
    LostWrite(String),
    /// The order contradicts itself, a request, or real time.
    Contradiction(String),
}

/// What was checked.
#[derive(Debug, Default)]
pub struct Summary {
    pub revisions: i64,
    /// Acknowledged writes found at their revision.
    pub writes: usize,
    /// Answers without effect that equal the model.
    pub reads: usize,
    /// Revisions at which an acknowledged revoke removed keys.
    pub revokes: BTreeSet<i64>,
    /// Revisions at which a lease ran out.
    pub expiries: usize,
    /// The unknown requests that took effect, by their place in the history.
    pub took_effect: BTreeSet<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LostWrite(text) => write!(f, "LOST WRITE: {text}"),
            Self::Contradiction(text) => write!(f, "CONTRADICTION: {text}"),
        }
    }
}

/// Checks everything. `expiring` are the leases that may run out.
pub fn check(records: &[Record], events: &[Event], expiring: &BTreeSet<i64>) -> Result<Summary, Violation> {
    let order = by_revision(events)?;
    check_presence(records, &order)?;
    let floors = Floors::of(records);
    check_real_time(records, &floors)?;
    let mut replay = Replay::new(records, &floors, expiring);
    replay.check_answers_here()?;
    for (revision, events) in &order {
        replay.advance(*revision, events)?;
    }
    replay.finish()
}

/// The events by their revision: without gap, and in rising order.
fn by_revision(events: &[Event]) -> Result<BTreeMap<i64, Vec<Event>>, Violation> {
    let mut order: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    let mut last = 1;
    for event in events {
        let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        if revision != last && revision != last + 1 || revision < 2 {
            return contradiction(format!("the watch jumps from revision {last} to {revision}"));
        }
        last = revision;
        let event = Event { prev_kv: None, ..event.clone() };
        order.entry(revision).or_default().push(event);
    }
    Ok(order)
}

/// First of all: is every acknowledged write there at all? What else is wrong follows from a loss.
fn check_presence(records: &[Record], order: &BTreeMap<i64, Vec<Event>>) -> Result<(), Violation> {
    for record in records {
        let (Some(revision), true) = (record.revision(), claims_effect(record)) else { continue };
        let events = order.get(&revision).map_or(&[][..], |events| &events[..]);
        let present = match &record.request {
            Request::Put(put) => events.iter().any(|event| puts(event, &put.key, &put.value)),
            _ => !events.is_empty(),
        };
        if !present {
            let found = if events.is_empty() { "nothing".to_owned() } else { words(events) };
            return Err(Violation::LostWrite(format!("{}; at that revision stands {found}", describe(record))));
        }
    }
    Ok(())
}

/// The newest revision that anybody had seen when a moment came.
struct Floors {
    /// Moments in rising order, and the highest revision returned until then.
    steps: Vec<(Duration, i64)>,
}

impl Floors {
    fn of(records: &[Record]) -> Self {
        let mut steps: Vec<(Duration, i64)> =
            records.iter().filter_map(|record| Some((record.returned, record.revision()?))).collect();
        steps.sort_unstable();
        let mut highest = 1;
        for (_, revision) in &mut steps {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Self { steps }
    }

    fn at(&self, moment: Duration) -> i64 {
        let until = self.steps.partition_point(|(returned, _)| *returned < moment);
        if until == 0 { 1 } else { self.steps[until - 1].1 }
    }
}

fn check_real_time(records: &[Record], floors: &Floors) -> Result<(), Violation> {
    for record in records.iter().filter(|record| record.is_linearizable()) {
        let Some(revision) = record.revision() else { continue };
        let floor = floors.at(record.invoked);
        if revision < floor || revision == floor && claims_effect(record) {
            let text = format!("{}, though revision {floor} had been seen before it began", describe(record));
            return contradiction(text);
        }
    }
    Ok(())
}

/// The model on its way through the order.
struct Replay<'a> {
    model: Model,
    floors: &'a Floors,
    expiring: &'a BTreeSet<i64>,
    answered: BTreeMap<i64, Vec<&'a Record>>,
    /// Unknown requests that have explained nothing yet, the earliest first: it can explain whatever a later one of
    /// the same text can.
    unknown: Vec<(usize, &'a Record)>,
    summary: Summary,
}

impl<'a> Replay<'a> {
    fn new(records: &'a [Record], floors: &'a Floors, expiring: &'a BTreeSet<i64>) -> Self {
        let mut answered: BTreeMap<i64, Vec<&Record>> = BTreeMap::new();
        for record in records {
            if let Some(revision) = record.revision() {
                answered.entry(revision).or_default().push(record);
            }
        }
        let mut unknown: Vec<(usize, &Record)> =
            records.iter().enumerate().filter(|(_, record)| record.outcome == Outcome::Unknown).collect();
        unknown.sort_by_key(|(_, record)| record.invoked);
        Self { model: Model::new(), floors, expiring, answered, unknown, summary: Summary::default() }
    }

    fn advance(&mut self, revision: i64, events: &[Event]) -> Result<(), Violation> {
        self.explain(revision, events)?;
        self.model.advance(events).or_else(contradiction)?;
        self.check_answers_here()
    }

    /// Finds the one request that made these events.
    fn explain(&mut self, revision: i64, events: &[Event]) -> Result<(), Violation> {
        let here: Vec<&Record> = self.answered.get(&revision).into_iter().flatten().copied().collect();
        let claimants: Vec<&Record> = here.iter().copied().filter(|record| claims_effect(record)).collect();
        if claimants.is_empty() && here.iter().any(|record| self.revoked(record, events)) {
            self.summary.revokes.insert(revision);
            self.summary.writes += 1;
            return Ok(());
        }
        match claimants.as_slice() {
            [] => self.explain_unacknowledged(revision, events),
            [record] => {
                let (response, effect) = self.model.answer(&record.request);
                if effect != events {
                    let (is, be) = (words(events), words(&effect));
                    return contradiction(format!("{}: stands as {is}, and should as {be}", describe(record)));
                }
                self.summary.writes += 1;
                check_response(record, &response)
            }
            [one, other, ..] => {
                contradiction(format!("one revision acknowledged twice: {} and {}", describe(one), describe(other)))
            }
        }
    }

    /// A revoke does not say whether it removed keys: if nobody else claims the events, and it would have made them, it
    /// did.
    fn revoked(&self, record: &Record, events: &[Event]) -> bool {
        matches!(record.request, Request::Revoke { .. }) && self.model.answer(&record.request).1 == events
    }

    fn explain_unacknowledged(&mut self, revision: i64, events: &[Event]) -> Result<(), Violation> {
        let cause = self.unknown.iter().position(|(_, record)| {
            self.floors.at(record.invoked) < revision
                && may_touch(&record.request, events)
                && self.model.answer(&record.request).1 == events
        });
        if let Some(at) = cause {
            let (place, _) = self.unknown.remove(at);
            self.summary.took_effect.insert(place);
            return Ok(());
        }
        let expired = events.first().and_then(|event| self.model.find(&event.kv.as_ref()?.key)).map(|kv| kv.lease);
        match expired {
            Some(lease) if self.expiring.contains(&lease) => {
                let effect = self.model.answer(&Request::Revoke { lease }).1;
                if effect == events {
                    self.summary.expiries += 1;
                    return Ok(());
                }
                contradiction(format!("revision {revision} is half an expiry: {}", words(events)))
            }
            _ => contradiction(format!("revision {revision} was asked for by nobody: {}", words(events))),
        }
    }

    /// Answers without effect, at the revision the model stands at.
    fn check_answers_here(&mut self) -> Result<(), Violation> {
        for record in self.answered.remove(&self.model.revision()).into_iter().flatten() {
            if claims_effect(record) {
                continue;
            }
            let (response, effect) = self.model.answer(&record.request);
            let revoked = matches!(record.request, Request::Revoke { .. });
            if !effect.is_empty() {
                let what = if revoked { "left keys behind" } else { "answered as if it changed nothing" };
                return contradiction(format!("{}: {what}: {}", describe(record), words(&effect)));
            }
            check_response(record, &response)?;
            self.summary.reads += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Summary, Violation> {
        if let Some((revision, records)) = self.answered.first_key_value() {
            let last = self.model.revision();
            let first = records.first().map(|record| describe(record)).unwrap_or_default();
            return contradiction(format!("answers at revision {revision}, but the order ends at {last}: {first}"));
        }
        self.summary.revisions = self.model.revision();
        Ok(self.summary)
    }
}

fn check_response(record: &Record, expected: &Response) -> Result<(), Violation> {
    let Outcome::Answered { response, .. } = &record.outcome else { return Ok(()) };
    if response == expected {
        return Ok(());
    }
    contradiction(format!("{}: answered {response:?}, and the order says {expected:?}", describe(record)))
}

/// Whether the answer itself says that something changed.
fn claims_effect(record: &Record) -> bool {
    let Outcome::Answered { response, .. } = &record.outcome else { return false };
    match response {
        Response::Put(_) => true,
        Response::Delete(response) => response.deleted > 0,
        Response::Txn(response) => response.responses.iter().any(changes),
        Response::Range(_) | Response::Revoke => false,
    }
}

fn changes(op: &ResponseOp) -> bool {
    use response_op::Response::{ResponseDeleteRange, ResponsePut, ResponseRange, ResponseTxn};
    match op.response.as_ref() {
        Some(ResponsePut(_)) => true,
        Some(ResponseDeleteRange(response)) => response.deleted > 0,
        Some(ResponseTxn(response)) => response.responses.iter().any(changes),
        Some(ResponseRange(_)) | None => false,
    }
}

/// A quick no for most requests, before the model is asked.
fn may_touch(request: &Request, events: &[Event]) -> bool {
    match request {
        Request::Range(_) => false,
        Request::Put(put) => events.iter().any(|event| puts(event, &put.key, &put.value)),
        Request::Txn(_) => true,
        Request::Delete(_) | Request::Revoke { .. } => events.iter().all(|event| event.r#type() == EventType::Delete),
    }
}

fn puts(event: &Event, key: &[u8], value: &[u8]) -> bool {
    let kv = event.kv.as_ref();
    event.r#type() == EventType::Put && kv.is_some_and(|kv| kv.key == key && kv.value == value)
}

fn contradiction<T>(text: String) -> Result<T, Violation> {
    Err(Violation::Contradiction(text))
}

fn words(events: &[Event]) -> String {
    let word = |event: &Event| {
        let kv = event.kv.clone().unwrap_or_default();
        let verb = if event.r#type() == EventType::Put { "put" } else { "delete" };
        format!("{verb} {:?} = {:?} (version {}, lease {:x})", kv.key, kv.value, kv.version, kv.lease)
    };
    events.iter().map(word).collect::<Vec<_>>().join(" + ")
}

/// Who, what, when.
fn describe(record: &Record) -> String {
    let what = match &record.request {
        Request::Put(put) => format!("put {:?} = {:?}", put.key, put.value),
        other => format!("{other:?}"),
    };
    let at =
        record.revision().map_or_else(|| "unanswered".to_owned(), |revision| format!("acknowledged at {revision}"));
    let (client, member) = (record.client, record.member);
    format!(
        "{what} by client {client} through member {member}, {at}, from {:?} to {:?}",
        record.invoked, record.returned
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use triune_node::pb::{
        etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse},
        mvccpb::KeyValue,
    };

    use super::*;

    fn put(value: &str, times: (u64, u64), revision: Option<i64>) -> Record {
        let request =
            Request::Put(PutRequest { key: Bytes::from("k"), value: value.to_owned().into(), ..PutRequest::default() });
        let answered = |revision| Outcome::Answered { revision, response: Response::Put(PutResponse::default()) };
        record(request, times, revision.map_or(Outcome::Unknown, answered))
    }

    fn read(kv: Option<KeyValue>, times: (u64, u64), revision: i64) -> Record {
        let kvs: Vec<KeyValue> = kv.into_iter().collect();
        let response = Response::Range(RangeResponse { count: kvs.len() as i64, kvs, ..RangeResponse::default() });
        let request = Request::Range(RangeRequest { key: Bytes::from("k"), ..RangeRequest::default() });
        record(request, times, Outcome::Answered { revision, response })
    }

    fn record(request: Request, (from, to): (u64, u64), outcome: Outcome) -> Record {
        let (invoked, returned) = (Duration::from_millis(from), Duration::from_millis(to));
        Record { client: 0, member: 0, invoked, returned, request, outcome }
    }

    fn kv(value: &str, revision: i64) -> KeyValue {
        let (key, value) = (Bytes::from("k"), value.to_owned().into());
        KeyValue { key, value, create_revision: 2, mod_revision: revision, version: revision - 1, lease: 0 }
    }

    fn event(value: &str, revision: i64) -> Event {
        Event { r#type: EventType::Put.into(), kv: Some(kv(value, revision)), prev_kv: None }
    }

    fn verdict(records: &[Record], events: &[Event]) -> String {
        match check(records, events, &BTreeSet::new()) {
            Ok(summary) => {
                format!("{} writes, {} reads, {} late", summary.writes, summary.reads, summary.took_effect.len())
            }
            Err(violation) => violation.to_string(),
        }
    }

    #[test]
    fn a_true_history_passes() {
        let records = [
            read(None, (0, 1), 1),
            put("a", (1, 3), Some(2)),
            put("b", (2, 4), None),
            read(Some(kv("b", 3)), (8, 9), 3),
        ];
        assert_eq!(verdict(&records, &[event("a", 2), event("b", 3)]), "1 writes, 2 reads, 1 late");
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_named() {
        let records = [put("a", (0, 1), Some(2)), put("b", (2, 3), Some(3))];
        let text = verdict(&records, &[event("a", 2)]);
        assert!(text.starts_with("LOST WRITE: put b\"k\" = b\"b\" by client 0") && text.contains("nothing"), "{text}");
        let text = verdict(&records, &[event("a", 2), event("c", 3)]);
        assert!(text.starts_with("LOST WRITE") && text.contains("b\"c\""), "{text}");
    }

    #[test]
    fn a_stale_read_is_found_by_time_and_a_wrong_one_by_content() {
        let written = [event("a", 2), event("b", 3)];
        let base = [put("a", (0, 1), Some(2)), put("b", (2, 3), Some(3))];
        let with = |last: Record| verdict(&[&base[..], &[last]].concat(), &written);
        assert!(with(read(Some(kv("a", 2)), (4, 5), 2)).contains("revision 3 had been seen"));
        assert!(with(read(Some(kv("a", 2)), (4, 5), 3)).contains("the order says"));
        assert!(with(read(Some(kv("b", 3)), (4, 5), 4)).contains("the order ends at 3"));
        assert!(with(put("c", (4, 5), Some(3))).starts_with("LOST WRITE"));
    }

    #[test]
    fn a_change_that_nobody_asked_for_is_found() {
        assert!(verdict(&[], &[event("a", 2)]).contains("asked for by nobody"));
        let twice = [put("a", (0, 1), None)];
        assert!(verdict(&twice, &[event("a", 2), event("a", 3)]).contains("revision 3 was asked for by nobody"));
    }

    #[test]
    fn an_unknown_write_cannot_come_before_it_was_sent() {
        let records = [put("b", (0, 1), Some(3)), put("a", (2, 3), None)];
        assert!(verdict(&records, &[event("a", 2), event("b", 3)]).contains("revision 2 was asked for by nobody"));
    }
}
