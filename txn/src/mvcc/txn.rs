//! Transactions: which branch, whether it may run, and the read-only way that needs no log.
//!
//! All compares, those of nested transactions included, see the state before the outermost one. The path is fixed
//! and every step of it checked before the first write, so that a refused transaction has done nothing, and every
//! member refuses it alike.

use std::cmp::Ordering;

use triune_storage::StoreError;

use super::error::{ApplyError, PutError, RangeError, TxnError};
use super::index::Span;
use super::op::{
    Compare, CompareOperand, CompareResult, CompareTarget, DeleteRangeOp, KeyValue, PutOp, RangeOp, Request, TxnOp,
};
use super::outcome::{OpResult, TxnResult};
use super::store::Store;

/// The path a transaction takes.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) succeeded: bool,
    pub(super) steps: Vec<Step<'a>>,
}

#[derive(Debug)]
pub(super) enum Step<'a> {
    Range(&'a RangeOp),
    Put(&'a PutOp),
    DeleteRange(&'a DeleteRangeOp),
    Txn(Plan<'a>),
}

impl Store {
    /// Runs a transaction that holds no write, at the current revision. `None`: its path holds one; propose it.
    ///
    /// # Errors
    /// [`TxnError`], and when the store under it fails.
    pub fn txn_read(&self, op: &TxnOp) -> Result<Option<TxnResult>, ApplyError<TxnError>> {
        let plan = self.plan_txn(op)?;
        let result = self.read_plan(&plan).map_err(|error| match error {
            RangeError::Store(error) => ApplyError::Store(error),
            RangeError::Compacted { compacted } => ApplyError::Refused(TxnError::Compacted { compacted }),
            RangeError::FutureRev { current } => ApplyError::Refused(TxnError::FutureRev { current }),
        })?;
        Ok(result.map(|result| TxnResult { revision: self.revision, ..result }))
    }

    fn read_plan(&self, plan: &Plan<'_>) -> Result<Option<TxnResult>, RangeError> {
        let mut responses = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            responses.push(match step {
                Step::Range(op) => OpResult::Range(self.range(op)?),
                Step::Txn(plan) => match self.read_plan(plan)? {
                    Some(result) => OpResult::Txn(result),
                    None => return Ok(None),
                },
                Step::Put(_) | Step::DeleteRange(_) => return Ok(None),
            });
        }
        Ok(Some(TxnResult { revision: 0, succeeded: plan.succeeded, responses }))
    }

    /// Chooses the path, then checks it as etcd does: all puts first, then all ranges.
    pub(super) fn plan_txn<'a>(&self, op: &'a TxnOp) -> Result<Plan<'a>, ApplyError<TxnError>> {
        let plan = self.choose(op)?;
        self.check_puts(&plan).map_err(ApplyError::Refused)?;
        self.check_ranges(&plan).map_err(ApplyError::Refused)?;
        Ok(plan)
    }

    fn choose<'a>(&self, op: &'a TxnOp) -> Result<Plan<'a>, StoreError> {
        let mut succeeded = true;
        for compare in &op.compares {
            if !self.holds(compare)? {
                succeeded = false;
                break;
            }
        }
        let branch = if succeeded { &op.success } else { &op.failure };
        let mut steps = Vec::with_capacity(branch.len());
        for step in branch {
            match &step.request {
                Some(Request::Range(op)) => steps.push(Step::Range(op)),
                Some(Request::Put(op)) => steps.push(Step::Put(op)),
                Some(Request::DeleteRange(op)) => steps.push(Step::DeleteRange(op)),
                Some(Request::Txn(op)) => steps.push(Step::Txn(self.choose(op)?)),
                // Refused before it was proposed.
                None => {}
            }
        }
        Ok(Plan { succeeded, steps })
    }

    fn check_puts(&self, plan: &Plan<'_>) -> Result<(), TxnError> {
        for step in &plan.steps {
            match step {
                // In a transaction etcd looks for the key first.
                Step::Put(op) if (op.ignore_value || op.ignore_lease) && !self.exists(&op.key) => {
                    return Err(TxnError::KeyNotFound);
                }
                Step::Put(op) => self.check_put_state(op).map_err(|error| match error {
                    PutError::LeaseNotFound => TxnError::LeaseNotFound,
                    PutError::KeyNotFound => TxnError::KeyNotFound,
                })?,
                Step::Txn(plan) => self.check_puts(plan)?,
                Step::Range(_) | Step::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn check_ranges(&self, plan: &Plan<'_>) -> Result<(), TxnError> {
        for step in &plan.steps {
            match step {
                Step::Range(op) if op.revision > self.revision => {
                    return Err(TxnError::FutureRev { current: self.revision });
                }
                // Unlike a range alone, a negative revision is below the compaction here.
                Step::Range(op) if op.revision != 0 && op.revision < self.compacted => {
                    return Err(TxnError::Compacted { compacted: self.compacted });
                }
                Step::Txn(plan) => self.check_ranges(plan)?,
                Step::Range(_) | Step::Put(_) | Step::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> Result<bool, StoreError> {
        let mut reader = self.reader();
        let mut any = false;
        for (_, point) in self.live(Span::new(&compare.key, &compare.range_end), self.revision) {
            any = true;
            if !relates(compare, &reader.pair(point)?) {
                return Ok(false);
            }
        }
        // On the wire an empty value and none are the same: on a missing key a value compare never holds.
        let missing_holds = || compare.target != CompareTarget::Value as i32 && relates(compare, &KeyValue::default());
        Ok(any || missing_holds())
    }
}

fn relates(compare: &Compare, kv: &KeyValue) -> bool {
    let operand = compare.operand.as_ref();
    let number = |stored: i64, asked: Option<i64>| stored.cmp(&asked.unwrap_or(0));
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => match operand {
            Some(CompareOperand::Value(asked)) => kv.value.cmp(asked),
            _ => kv.value.as_ref().cmp(b"".as_slice()),
        },
        Ok(CompareTarget::Version) => number(kv.version, operand.and_then(CompareOperand::version)),
        Ok(CompareTarget::Create) => number(kv.create_revision, operand.and_then(CompareOperand::create_revision)),
        Ok(CompareTarget::Mod) => number(kv.mod_revision, operand.and_then(CompareOperand::mod_revision)),
        Ok(CompareTarget::Lease) => number(kv.lease, operand.and_then(CompareOperand::lease)),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

impl CompareOperand {
    const fn version(&self) -> Option<i64> {
        if let Self::Version(asked) = self { Some(*asked) } else { None }
    }

    const fn create_revision(&self) -> Option<i64> {
        if let Self::CreateRevision(asked) = self { Some(*asked) } else { None }
    }

    const fn mod_revision(&self) -> Option<i64> {
        if let Self::ModRevision(asked) = self { Some(*asked) } else { None }
    }

    const fn lease(&self) -> Option<i64> {
        if let Self::Lease(asked) = self { Some(*asked) } else { None }
    }
}
