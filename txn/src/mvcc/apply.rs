//! Applying the operations of the log. Deterministic: what is refused is refused from replicated state alone, before
//! the first write; only a failing disk differs between members, and that stops the member.

use triune_storage::{Index, StoreError};

use super::error::{
    ApplyError, CompactError, LeaseGrantError, LeaseRevokeError, NoRefusal, PutError, RangeError, TxnError,
};
use super::index::Span;
use super::op::{CompactOp, DeleteRangeOp, LeaseCheckpointOp, LeaseGrantOp, LeaseRevokeOp, PutOp, TxnOp};
use super::outcome::{
    Applied, CompactResult, DeleteRangeResult, Events, LeaseCheckpointResult, LeaseGrantResult, LeaseRevokeResult,
    PutResult, TxnResult,
};
use super::store::{Store, Write};
use super::txn::Plan;

/// What an apply answers.
pub type ApplyResult<T, E> = Result<Applied<T>, ApplyError<E>>;

impl Store {
    /// Writes one key.
    ///
    /// # Errors
    /// [`PutError`], and when the store under it fails.
    pub fn apply_put(&mut self, index: Index, op: &PutOp) -> ApplyResult<PutResult, PutError> {
        if let Err(refusal) = self.check_put_state(op) {
            self.refuse(index);
            return Err(ApplyError::Refused(refusal));
        }
        let mut write = self.begin();
        let result = self.put_in(&mut write, op)?;
        let events = self.end(index, write);
        Ok(Applied { result, events })
    }

    /// Deletes a range.
    ///
    /// # Errors
    /// When the store under it fails.
    pub fn apply_delete_range(
        &mut self,
        index: Index,
        op: &DeleteRangeOp,
    ) -> ApplyResult<DeleteRangeResult, NoRefusal> {
        let mut write = self.begin();
        let result = self.delete_range_in(&mut write, op)?;
        let events = self.end(index, write);
        Ok(Applied { result, events })
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// [`TxnError`], and when the store under it fails.
    pub fn apply_txn(&mut self, index: Index, op: &TxnOp) -> ApplyResult<TxnResult, TxnError> {
        let plan = match self.plan_txn(op) {
            Ok(plan) => plan,
            Err(ApplyError::Refused(refusal)) => {
                self.refuse(index);
                return Err(ApplyError::Refused(refusal));
            }
            Err(error) => return Err(error),
        };
        let mut write = self.begin();
        let mut result = self.run_plan(&mut write, &plan).map_err(unplanned)?;
        let events = self.end(index, write);
        result.revision = self.revision;
        Ok(Applied { result, events })
    }

    /// Puts a compaction in force, at once; the removal follows with the flushes.
    ///
    /// # Errors
    /// [`CompactError`].
    pub fn apply_compact(&mut self, index: Index, op: &CompactOp) -> ApplyResult<CompactResult, CompactError> {
        let refusal = if op.revision <= self.compacted {
            Some(CompactError::Compacted { compacted: self.compacted })
        } else if op.revision > self.revision {
            Some(CompactError::FutureRev { current: self.revision })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.refuse(index);
            return Err(ApplyError::Refused(refusal));
        }
        self.set_compacted(op.revision);
        self.seal(index, &[TAG_COMPACT, op.revision]);
        Ok(Applied { result: CompactResult { revision: self.revision }, events: Events::default() })
    }

    /// Creates a lease.
    ///
    /// # Errors
    /// [`LeaseGrantError`].
    pub fn apply_lease_grant(
        &mut self,
        index: Index,
        op: &LeaseGrantOp,
    ) -> ApplyResult<LeaseGrantResult, LeaseGrantError> {
        if let Err(refusal) = self.leases.grant(op.id, op.ttl_s) {
            self.refuse(index);
            return Err(ApplyError::Refused(refusal));
        }
        self.seal(index, &[TAG_GRANT, op.id, op.ttl_s]);
        let result = LeaseGrantResult { revision: self.revision, id: op.id, ttl_s: op.ttl_s };
        Ok(Applied { result, events: Events::default() })
    }

    /// Ends a lease and deletes its keys, by key, in one revision.
    ///
    /// # Errors
    /// [`LeaseRevokeError`].
    pub fn apply_lease_revoke(
        &mut self,
        index: Index,
        op: &LeaseRevokeOp,
    ) -> ApplyResult<LeaseRevokeResult, LeaseRevokeError> {
        let Some(lease) = self.leases.get(op.id) else {
            self.refuse(index);
            return Err(ApplyError::Refused(LeaseRevokeError::LeaseNotFound));
        };
        let keys: Vec<_> = lease.keys.iter().cloned().collect();
        let mut write = self.begin();
        for key in &keys {
            self.write_delete(&mut write, key.clone());
        }
        self.leases.remove(op.id);
        self.seal(index, &[TAG_REVOKE, op.id]);
        let events = self.end(index, write);
        let result = LeaseRevokeResult { revision: self.revision, deleted: count_of(keys.len()) };
        Ok(Applied { result, events })
    }

    /// Records the time leases have left; unknown ones are skipped, for a revoke may have come first.
    ///
    /// # Errors
    /// None.
    pub fn apply_lease_checkpoint(
        &mut self,
        index: Index,
        op: &LeaseCheckpointOp,
    ) -> ApplyResult<LeaseCheckpointResult, NoRefusal> {
        let mut effect = vec![TAG_CHECKPOINT];
        for checkpoint in &op.checkpoints {
            if self.leases.checkpoint(checkpoint.id, checkpoint.remaining_s) {
                effect.extend([checkpoint.id, checkpoint.remaining_s]);
            }
        }
        self.seal(index, &effect);
        Ok(Applied { result: LeaseCheckpointResult { revision: self.revision }, events: Events::default() })
    }

    /// Why state refuses the put, if it does. etcd looks for the lease first.
    pub(super) fn check_put_state(&self, op: &PutOp) -> Result<(), PutError> {
        if op.lease != 0 && self.leases.get(op.lease).is_none() {
            return Err(PutError::LeaseNotFound);
        }
        if (op.ignore_value || op.ignore_lease) && !self.exists(&op.key) {
            return Err(PutError::KeyNotFound);
        }
        Ok(())
    }

    pub(super) fn exists(&self, key: &[u8]) -> bool {
        self.index.get(key).is_some_and(|versions| versions.version > 0)
    }

    pub(super) fn put_in(&mut self, write: &mut Write, op: &PutOp) -> Result<PutResult, StoreError> {
        let previous = if op.prev_kv || op.ignore_value || op.ignore_lease {
            self.reader().get(&op.key, write.current())?
        } else {
            None
        };
        let (mut value, mut lease) = (op.value.clone(), op.lease);
        if op.ignore_value || op.ignore_lease {
            // The key was there before the transaction, that was checked. A step of it may have deleted the key since
            // (etcd lets a deletion to the end of the keyspace pass, and then dies here): what was there is kept.
            let kept = match &previous {
                Some(previous) => Some(previous.clone()),
                None => self.reader().get(&op.key, write.main() - 1)?,
            };
            if let Some(kept) = kept {
                value = if op.ignore_value { kept.value } else { value };
                lease = if op.ignore_lease { kept.lease } else { lease };
            }
        }
        self.write_put(write, op.key.clone(), value, lease);
        Ok(PutResult { revision: write.main(), prev_kv: previous.filter(|_| op.prev_kv) })
    }

    pub(super) fn delete_range_in(
        &mut self,
        write: &mut Write,
        op: &DeleteRangeOp,
    ) -> Result<DeleteRangeResult, StoreError> {
        let mut reader = self.reader();
        let mut keys = Vec::new();
        let mut prev_kvs = Vec::new();
        for (key, point) in self.live(Span::new(&op.key, &op.range_end), write.current()) {
            keys.push(bytes::Bytes::copy_from_slice(key));
            if op.prev_kv {
                prev_kvs.push(reader.pair(point)?);
            }
        }
        drop(reader);
        let deleted = count_of(keys.len());
        for key in keys {
            self.write_delete(write, key);
        }
        Ok(DeleteRangeResult { revision: write.current(), deleted, prev_kvs })
    }

    fn run_plan(&mut self, write: &mut Write, plan: &Plan<'_>) -> Result<TxnResult, RangeError> {
        let mut responses = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            responses.push(self.run_step(write, step)?);
        }
        Ok(TxnResult { revision: 0, succeeded: plan.succeeded, responses })
    }

    fn run_step(
        &mut self,
        write: &mut Write,
        step: &super::txn::Step<'_>,
    ) -> Result<super::outcome::OpResult, RangeError> {
        use super::outcome::OpResult;
        use super::txn::Step;
        Ok(match step {
            Step::Range(op) => OpResult::Range(self.range_seen_at(op, write.current())?),
            Step::Put(op) => OpResult::Put(self.put_in(write, op)?),
            Step::DeleteRange(op) => OpResult::DeleteRange(self.delete_range_in(write, op)?),
            Step::Txn(plan) => OpResult::Txn(self.run_plan(write, plan)?),
        })
    }
}

/// A range that was planned as readable is: nothing but the disk can fail.
fn unplanned(error: RangeError) -> ApplyError<TxnError> {
    match error {
        RangeError::Store(error) => ApplyError::Store(error),
        RangeError::Compacted { .. } | RangeError::FutureRev { .. } => {
            unreachable!("checked before the first write, and a transaction only raises the current revision")
        }
    }
}

fn count_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const TAG_COMPACT: i64 = 1;
const TAG_GRANT: i64 = 2;
const TAG_REVOKE: i64 = 3;
const TAG_CHECKPOINT: i64 = 4;
