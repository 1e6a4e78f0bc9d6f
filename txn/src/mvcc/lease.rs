//! Leases: the replicated part, which says who is alive and what hangs on it, and the leader's part, which says for
//! how long.
//!
//! The table changes by log entries alone and is equal on every member. The clock lives at the leader: nobody else's
//! opinion on time counts. An expiry is the leader's decision to propose a revoke; the table changes when that
//! revoke applies. A new leader gives every lease its whole (checkpointed) time again, for it cannot know what was
//! kept alive at the last moment before.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use triune_transport::Nanos;

use super::error::LeaseGrantError;
use super::op::LeaseId;

/// A lease, as every member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Seconds granted.
    pub ttl_s: i64,
    /// Seconds left at the last checkpoint; 0 if there is none.
    pub remaining_s: i64,
    /// The keys attached to it.
    pub keys: BTreeSet<Bytes>,
}

impl Lease {
    /// The time a new leader gives it.
    fn full(&self) -> Nanos {
        let seconds = if self.remaining_s > 0 { self.remaining_s } else { self.ttl_s };
        Nanos::from_secs(u64::try_from(seconds).unwrap_or(0))
    }
}

/// All leases.
#[derive(Clone, Debug, Default)]
pub struct LeaseTable {
    leases: BTreeMap<LeaseId, Lease>,
    of_key: BTreeMap<Bytes, LeaseId>,
    /// Changed since the last flush.
    dirty: BTreeSet<LeaseId>,
}

impl LeaseTable {
    /// The lease with this number.
    #[must_use]
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The lease `key` is attached to.
    #[must_use]
    pub fn of_key(&self, key: &[u8]) -> Option<LeaseId> {
        self.of_key.get(key).copied()
    }

    pub(crate) fn grant(&mut self, id: LeaseId, ttl_s: i64) -> Result<(), LeaseGrantError> {
        if id == 0 {
            return Err(LeaseGrantError::LeaseNotFound);
        }
        if ttl_s > LEASE_TTL_MAX_S {
            return Err(LeaseGrantError::LeaseTtlTooLarge { max: LEASE_TTL_MAX_S });
        }
        if self.leases.contains_key(&id) {
            return Err(LeaseGrantError::LeaseExists);
        }
        self.dirty.insert(id);
        self.restore(id, ttl_s, 0);
        Ok(())
    }

    /// Takes a lease as it was stored.
    pub(crate) fn restore(&mut self, id: LeaseId, ttl_s: i64, remaining_s: i64) {
        self.leases.insert(id, Lease { id, ttl_s, remaining_s, keys: BTreeSet::new() });
    }

    /// Ends a lease whose keys are detached.
    pub(crate) fn remove(&mut self, id: LeaseId) {
        let lease = self.leases.remove(&id);
        assert!(lease.is_some_and(|lease| lease.keys.is_empty()), "a lease goes after its keys");
        self.dirty.insert(id);
    }

    /// Whether the lease exists; the checkpoint is recorded then.
    pub(crate) fn checkpoint(&mut self, id: LeaseId, remaining_s: i64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        lease.remaining_s = remaining_s.clamp(0, lease.ttl_s.max(0));
        self.dirty.insert(id);
        true
    }

    /// Moves `key` to `lease`; 0 only detaches.
    pub(crate) fn attach(&mut self, key: &Bytes, lease: LeaseId) {
        if lease == 0 && self.of_key.is_empty() {
            return;
        }
        if let Some(old) = self.of_key.remove(key)
            && let Some(old) = self.leases.get_mut(&old)
        {
            old.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&lease) {
            // A copy: the key may be a slice of a large request.
            let key = Bytes::copy_from_slice(key);
            lease.keys.insert(key.clone());
            self.of_key.insert(key, lease.id);
        }
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<LeaseId> {
        std::mem::take(&mut self.dirty)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }
}

/// What a keep-alive found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Its time starts again; `checkpointed` asks for a checkpoint of 0 to be proposed, for the recorded one is old.
    Renewed {
        /// Seconds granted, the answer to the client.
        ttl_s: i64,
        /// Whether a checkpoint is to be cleared.
        checkpointed: bool,
    },
    /// It ran out and its revoke is under way: wait for that, then answer as for an unknown one.
    Expired,
    /// There is none, answered with a time to live of 0.
    NotFound,
    /// This member does not lead; ask the leader.
    NotLeader,
}

/// The leader's clock over the leases. Durations only; never compared between members.
///
/// ```text
///            promote                       deadline passed            revoke applied
/// demoted ───────────▶ ticking ──────────────────────────▶ expired ──────────────────▶ gone
///    ▲                   │ ▲ renew                            │ offered again after RETRY
///    └───────────────────┘ └─────────────────────────────────┘ (never renewed)
///         demote
/// ```
#[derive(Clone, Debug, Default)]
pub struct LeaseClock {
    leading: bool,
    timers: BTreeMap<LeaseId, Timer>,
    /// By the next moment something is due. Invariant: holds exactly `timers`' entries.
    queue: BTreeSet<(Nanos, LeaseId)>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    ttl_s: i64,
    deadline: Nanos,
    /// When it is looked at next: the deadline, a checkpoint before it, or a retry after it.
    due: Nanos,
    expired: bool,
    checkpointed: bool,
}

impl LeaseClock {
    /// A clock of a member that does not lead.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Becomes the leader's: every lease gets `extend` (an election timeout, the time nobody could renew) plus its
    /// whole time, and no more than [`LEASE_EXPIRIES_PER_S_MAX`] run out in one second.
    pub fn promote(&mut self, now: Nanos, table: &LeaseTable, extend: Nanos) {
        self.demote();
        self.leading = true;
        let mut by_deadline: Vec<(Nanos, &Lease)> =
            table.iter().map(|lease| (now.after(extend).after(lease.full()), lease)).collect();
        by_deadline.sort_by_key(|(deadline, lease)| (*deadline, lease.id));
        let second = Nanos::from_secs(1);
        let mut window = (Nanos::ZERO, 0);
        for (deadline, lease) in by_deadline {
            // `window.0` is the second being filled; a full one pushes what follows into the next.
            if deadline >= window.0.after(second) {
                window = (deadline, 0);
            } else if window.1 == LEASE_EXPIRIES_PER_S_MAX {
                window = (window.0.after(second), 0);
            }
            window.1 += 1;
            self.insert(lease.id, Timer::starting(lease.ttl_s, deadline.max(window.0), lease.remaining_s > 0));
        }
    }

    /// Stops: another member's clock counts now.
    pub fn demote(&mut self) {
        *self = Self::default();
    }

    /// Whether this member's clock counts.
    #[must_use]
    pub const fn is_leading(&self) -> bool {
        self.leading
    }

    /// A grant applied.
    pub fn granted(&mut self, now: Nanos, id: LeaseId, ttl_s: i64) {
        if self.leading {
            self.insert(id, Timer::starting(ttl_s, now.after(seconds(ttl_s)), false));
        }
    }

    /// A revoke applied.
    pub fn revoked(&mut self, id: LeaseId) {
        self.remove(id);
    }

    /// A keep-alive. The caller has just proved that this member leads.
    pub fn renew(&mut self, now: Nanos, id: LeaseId) -> Renewal {
        if !self.leading {
            return Renewal::NotLeader;
        }
        let Some(timer) = self.timers.get(&id).copied() else { return Renewal::NotFound };
        if timer.expired || timer.deadline <= now {
            return Renewal::Expired;
        }
        self.insert(id, Timer::starting(timer.ttl_s, now.after(seconds(timer.ttl_s)), false));
        Renewal::Renewed { ttl_s: timer.ttl_s, checkpointed: timer.checkpointed }
    }

    /// The time left; `None` for an unknown lease, zero for one that ran out.
    #[must_use]
    pub fn remaining(&self, now: Nanos, id: LeaseId) -> Option<Nanos> {
        self.timers.get(&id).map(|timer| timer.deadline.since(now))
    }

    /// All leases, the one that runs out first at the front: the order etcd lists them in.
    #[must_use]
    pub fn by_deadline(&self) -> Vec<LeaseId> {
        let mut ids: Vec<_> = self.timers.iter().map(|(id, timer)| (timer.deadline, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Up to `max` leases to propose revokes for. One that was offered is offered again after [`REVOKE_RETRY`], for
    /// its proposal may have been lost.
    pub fn expired(&mut self, now: Nanos, max: usize) -> Vec<LeaseId> {
        let mut ids = Vec::new();
        while ids.len() < max
            && let Some(id) = self.next_due(now)
        {
            let Some(mut timer) = self.timers.get(&id).copied() else { break };
            if timer.deadline > now {
                // A checkpoint is due; [`LeaseClock::checkpoints`] was not asked. It waits for the deadline.
                timer.due = timer.deadline;
            } else {
                timer.expired = true;
                timer.due = now.after(REVOKE_RETRY);
                ids.push(id);
            }
            self.insert(id, timer);
        }
        ids
    }

    /// Up to `max` leases whose remaining time is to be recorded, with the seconds. Call before
    /// [`LeaseClock::expired`]. Only leases longer than [`CHECKPOINT_INTERVAL`] are.
    pub fn checkpoints(&mut self, now: Nanos, max: usize) -> Vec<(LeaseId, i64)> {
        let due: Vec<LeaseId> = self
            .queue
            .iter()
            .take_while(|(due, _)| *due <= now)
            .map(|(_, id)| *id)
            .filter(|id| self.timers.get(id).is_some_and(|timer| timer.deadline > now))
            .take(max)
            .collect();
        let mut found = Vec::new();
        for id in due {
            let Some(mut timer) = self.timers.get(&id).copied() else { continue };
            let left = timer.deadline.since(now);
            timer.checkpointed = true;
            timer.due = Timer::next_due(now, timer.deadline);
            self.insert(id, timer);
            found.push((id, i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)));
        }
        found
    }

    /// When [`LeaseClock::checkpoints`] or [`LeaseClock::expired`] has something next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.queue.first().map(|(due, _)| *due)
    }

    fn next_due(&self, now: Nanos) -> Option<LeaseId> {
        self.queue.first().filter(|(due, _)| *due <= now).map(|(_, id)| *id)
    }

    fn insert(&mut self, id: LeaseId, timer: Timer) {
        self.remove(id);
        self.queue.insert((timer.due, id));
        self.timers.insert(id, timer);
        debug_assert_eq!(self.queue.len(), self.timers.len());
    }

    fn remove(&mut self, id: LeaseId) {
        if let Some(timer) = self.timers.remove(&id) {
            assert!(self.queue.remove(&(timer.due, id)), "each timer is queued");
        }
    }
}

impl Timer {
    fn starting(ttl_s: i64, deadline: Nanos, checkpointed: bool) -> Self {
        let from = deadline.since(seconds(ttl_s));
        Self { ttl_s, deadline, due: Self::next_due(from, deadline), expired: false, checkpointed }
    }

    fn next_due(now: Nanos, deadline: Nanos) -> Nanos {
        let checkpoint = now.after(CHECKPOINT_INTERVAL);
        if checkpoint < deadline { checkpoint } else { deadline }
    }
}

fn seconds(ttl_s: i64) -> Nanos {
    Nanos::from_secs(u64::try_from(ttl_s).unwrap_or(0))
}

/// The longest lease, etcd's bound.
pub const LEASE_TTL_MAX_S: i64 = 9_000_000_000;
/// Most leases a new leader lets run out in one second; etcd's ¾ of 1,000.
pub const LEASE_EXPIRIES_PER_S_MAX: usize = 750;
/// After this, a revoke that did not apply is proposed again.
pub const REVOKE_RETRY: Nanos = Nanos::from_secs(3);
/// How often a long lease's remaining time is recorded; etcd's five minutes.
pub const CHECKPOINT_INTERVAL: Nanos = Nanos::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Nanos {
        Nanos::from_secs(s)
    }

    fn table(ttls: &[(LeaseId, i64)]) -> LeaseTable {
        let mut table = LeaseTable::default();
        for (id, ttl_s) in ttls {
            table.grant(*id, *ttl_s).expect("fresh id");
        }
        table
    }

    #[test]
    fn grants_are_refused_as_etcd_does() {
        let mut table = table(&[(7, 10)]);
        assert_eq!(table.grant(0, 10), Err(LeaseGrantError::LeaseNotFound));
        assert_eq!(table.grant(7, 10), Err(LeaseGrantError::LeaseExists));
        let max = LEASE_TTL_MAX_S;
        assert_eq!(table.grant(7, max + 1), Err(LeaseGrantError::LeaseTtlTooLarge { max }));
        assert_eq!(table.grant(8, max), Ok(()));
    }

    #[test]
    fn a_key_hangs_on_one_lease_at_a_time() {
        let mut table = table(&[(1, 10), (2, 10)]);
        let key = Bytes::from_static(b"k");
        table.attach(&key, 1);
        table.attach(&key, 2);
        assert!(table.get(1).expect("granted").keys.is_empty());
        assert_eq!(table.of_key(b"k"), Some(2));
        table.attach(&key, 0);
        assert_eq!(table.of_key(b"k"), None);
        assert!(table.get(2).expect("granted").keys.is_empty());
    }

    #[test]
    fn an_unrenewed_lease_expires_once_and_is_offered_again() {
        let mut clock = LeaseClock::new();
        clock.promote(at(0), &LeaseTable::default(), at(1));
        clock.granted(at(0), 1, 5);
        clock.granted(at(0), 2, 5);
        assert_eq!(clock.renew(at(3), 2), Renewal::Renewed { ttl_s: 5, checkpointed: false });
        assert_eq!(clock.next_deadline(), Some(at(5)));
        assert_eq!(clock.expired(at(4), 10), []);
        assert_eq!(clock.expired(at(5), 10), [1]);
        assert_eq!(clock.expired(at(6), 10), []);
        assert_eq!(clock.expired(at(8), 10), [1, 2]);
        assert_eq!(clock.renew(at(8), 1), Renewal::Expired);
        clock.revoked(1);
        assert_eq!(clock.renew(at(9), 1), Renewal::NotFound);
        assert_eq!(clock.remaining(at(9), 1), None);
        assert_eq!(clock.remaining(at(9), 2), Some(Nanos::ZERO));
    }

    #[test]
    fn a_lease_that_ran_out_is_not_renewed_even_if_nobody_looked() {
        let mut clock = LeaseClock::new();
        clock.promote(at(0), &LeaseTable::default(), Nanos::ZERO);
        clock.granted(at(0), 1, 5);
        assert_eq!(clock.renew(at(5), 1), Renewal::Expired);
    }

    #[test]
    fn a_follower_answers_nothing_about_time() {
        let mut clock = LeaseClock::new();
        clock.granted(at(0), 1, 5);
        assert_eq!(clock.renew(at(1), 1), Renewal::NotLeader);
        assert_eq!((clock.remaining(at(1), 1), clock.next_deadline()), (None, None));
        clock.promote(at(0), &table(&[(1, 5)]), at(1));
        clock.demote();
        assert!(!clock.is_leading());
        assert_eq!(clock.expired(at(100), 10), []);
    }

    #[test]
    fn a_new_leader_gives_the_full_or_checkpointed_time() {
        let mut table = table(&[(1, 100), (2, 100)]);
        assert!(table.checkpoint(2, 40));
        assert!(!table.checkpoint(3, 40));
        let mut clock = LeaseClock::new();
        clock.promote(at(1000), &table, at(2));
        assert_eq!(clock.remaining(at(1000), 1), Some(at(102)));
        assert_eq!(clock.remaining(at(1000), 2), Some(at(42)));
        assert_eq!(clock.by_deadline(), [2, 1]);
        assert_eq!(clock.renew(at(1001), 2), Renewal::Renewed { ttl_s: 100, checkpointed: true });
        assert_eq!(clock.remaining(at(1001), 2), Some(at(100)));
    }

    #[test]
    fn a_new_leader_spreads_expiries() {
        let count = LEASE_EXPIRIES_PER_S_MAX * 3;
        let ttls: Vec<_> = (1..=count).map(|id| (i64::try_from(id).expect("small"), 10)).collect();
        let mut clock = LeaseClock::new();
        clock.promote(at(0), &table(&ttls), Nanos::ZERO);
        let mut per_second = Vec::new();
        for second in 10..=13 {
            per_second.push(clock.expired(at(second), usize::MAX).len());
        }
        // The fourth second offers the first batch again: nobody revoked it.
        let batch = LEASE_EXPIRIES_PER_S_MAX;
        assert_eq!(per_second, [batch, batch, batch, batch]);
    }

    #[test]
    fn long_leases_are_checkpointed() {
        let mut clock = LeaseClock::new();
        clock.promote(at(0), &LeaseTable::default(), Nanos::ZERO);
        clock.granted(at(0), 1, 1000);
        clock.granted(at(0), 2, 100);
        assert_eq!(clock.expired(at(100), 10), [2]);
        clock.revoked(2);
        assert_eq!(clock.next_deadline(), Some(at(300)));
        assert_eq!(clock.checkpoints(at(300), 10), [(1, 700)]);
        assert_eq!(clock.checkpoints(at(300), 10), []);
        assert_eq!(clock.checkpoints(at(600), 10), [(1, 400)]);
        assert_eq!(clock.checkpoints(at(900), 10), [(1, 100)]);
        assert_eq!(clock.next_deadline(), Some(at(1000)));
        assert_eq!(clock.expired(at(1000), 10), [1]);
    }
}
