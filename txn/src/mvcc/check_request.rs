//! The checks of a request before it is proposed, in etcd's order: what fails here never reaches the log.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::error::RequestError;
use super::op::{DeleteRangeOp, LeaseGrantOp, PutOp, RangeOp, Request, RequestOp, SortOrder, SortTarget, TxnOp};

/// What a request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Steps in one branch, and compares, of a transaction; nested ones have what the outer left. Default 128.
    pub txn_ops_max: usize,
    /// Transactions in transactions. Each costs two levels of nesting in the log's encoding, which allows 100.
    /// Default 32.
    pub txn_depth_max: usize,
    /// Shortest lease in seconds: 1.5 × the election timeout, rounded up, so that a lease outlives an election.
    /// Default 2.
    pub lease_ttl_min_s: i64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { txn_ops_max: 128, txn_depth_max: 32, lease_ttl_min_s: 2 }
    }
}

/// Checks a range.
///
/// # Errors
/// [`RequestError::EmptyKey`], [`RequestError::InvalidSortOption`].
pub fn check_range(op: &RangeOp) -> Result<(), RequestError> {
    if op.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if SortOrder::try_from(op.sort_order).is_err() || SortTarget::try_from(op.sort_target).is_err() {
        return Err(RequestError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put.
///
/// # Errors
/// [`RequestError::EmptyKey`], [`RequestError::ValueProvided`], [`RequestError::LeaseProvided`].
pub fn check_put(op: &PutOp) -> Result<(), RequestError> {
    if op.key.is_empty() {
        return Err(RequestError::EmptyKey);
    }
    if op.ignore_value && !op.value.is_empty() {
        return Err(RequestError::ValueProvided);
    }
    if op.ignore_lease && op.lease != 0 {
        return Err(RequestError::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
///
/// # Errors
/// [`RequestError::EmptyKey`].
pub fn check_delete_range(op: &DeleteRangeOp) -> Result<(), RequestError> {
    if op.key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction: first every step, then that no path writes a key twice or writes what it deletes.
///
/// # Errors
/// Each of [`RequestError`].
pub fn check_txn(op: &TxnOp, limits: &RequestLimits) -> Result<(), RequestError> {
    check_txn_steps(op, limits.txn_ops_max, limits.txn_depth_max)?;
    check_overlaps(&op.success)?;
    check_overlaps(&op.failure)?;
    Ok(())
}

/// Raises a lease's time to the floor. The proposer does it, so that members with other settings apply the same.
pub fn floor_ttl(op: &mut LeaseGrantOp, limits: &RequestLimits) {
    op.ttl_s = op.ttl_s.max(limits.lease_ttl_min_s);
}

fn check_txn_steps(op: &TxnOp, ops_max: usize, depth_left: usize) -> Result<(), RequestError> {
    let ops = op.compares.len().max(op.success.len()).max(op.failure.len());
    if ops > ops_max || depth_left == 0 {
        return Err(RequestError::TooManyOps { max: ops_max });
    }
    if op.compares.iter().any(|compare| compare.key.is_empty()) {
        return Err(RequestError::EmptyKey);
    }
    for step in op.success.iter().chain(&op.failure) {
        match &step.request {
            Some(Request::Range(range)) => check_range(range)?,
            Some(Request::Put(put)) => check_put(put)?,
            Some(Request::DeleteRange(delete)) => check_delete_range(delete)?,
            Some(Request::Txn(txn)) => check_txn_steps(txn, ops_max - ops, depth_left - 1)?,
            None => return Err(RequestError::KeyNotFound),
        }
    }
    Ok(())
}

/// What the paths through a branch write and delete.
#[derive(Default)]
struct Footprint {
    puts: BTreeSet<Bytes>,
    /// (key, range end) as asked.
    deletes: Vec<(Bytes, Bytes)>,
}

impl Footprint {
    /// etcd compares the end as it is: a single zero byte, which deletes to the end of the keyspace, overlaps
    /// nothing here. Such a transaction is allowed there and so here; its steps apply in order.
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(
            |(from, end)| {
                if end.is_empty() { **from == *key } else { **from <= *key && *key < **end }
            },
        )
    }

    fn put(&mut self, key: &Bytes) -> Result<(), RequestError> {
        if self.deletes(key) || !self.puts.insert(key.clone()) {
            return Err(RequestError::DuplicateKey);
        }
        Ok(())
    }
}

/// Quadratic in the steps of one level at worst, and those are bounded by now.
fn check_overlaps(steps: &[RequestOp]) -> Result<Footprint, RequestError> {
    let mut all = Footprint::default();
    for step in steps {
        if let Some(Request::DeleteRange(delete)) = &step.request {
            all.deletes.push((delete.key.clone(), delete.range_end.clone()));
        }
    }
    for step in steps {
        if let Some(Request::Txn(txn)) = &step.request {
            let then = check_overlaps(&txn.success)?;
            let otherwise = check_overlaps(&txn.failure)?;
            for key in &then.puts {
                all.put(key)?;
            }
            // Only one of the two branches is taken: a key in both is written once.
            for key in otherwise.puts.difference(&then.puts) {
                all.put(key)?;
            }
            all.deletes.extend(then.deletes);
            all.deletes.extend(otherwise.deletes);
        }
    }
    for step in steps {
        if let Some(Request::Put(put)) = &step.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::op::Compare;

    fn key(key: &str) -> Bytes {
        Bytes::copy_from_slice(key.as_bytes())
    }

    fn put(k: &str) -> RequestOp {
        Request::Put(PutOp { key: key(k), ..PutOp::default() }).into()
    }

    fn delete(k: &str, end: &str) -> RequestOp {
        Request::DeleteRange(DeleteRangeOp { key: key(k), range_end: key(end), prev_kv: false }).into()
    }

    fn txn(success: &[RequestOp], failure: &[RequestOp]) -> TxnOp {
        TxnOp { compares: Vec::new(), success: success.to_vec(), failure: failure.to_vec() }
    }

    fn nested(success: &[RequestOp], failure: &[RequestOp]) -> RequestOp {
        Request::Txn(txn(success, failure)).into()
    }

    fn check(op: &TxnOp, expected: Result<(), RequestError>) {
        assert_eq!(check_txn(op, &RequestLimits::default()), expected, "{op:?}");
    }

    #[test]
    fn a_path_writes_a_key_once() {
        let duplicate = Err(RequestError::DuplicateKey);
        check(&txn(&[put("a"), put("b")], &[put("a")]), Ok(()));
        check(&txn(&[put("a"), put("a")], &[]), duplicate);
        check(&txn(&[], &[put("a"), put("a")]), duplicate);
        check(&txn(&[put("a"), nested(&[put("a")], &[])], &[]), duplicate);
        check(&txn(&[nested(&[put("a")], &[]), nested(&[put("a")], &[])], &[]), duplicate);
    }

    #[test]
    fn nested_branches_exclude_each_other() {
        check(&txn(&[nested(&[put("a")], &[put("a")])], &[]), Ok(()));
        check(&txn(&[nested(&[put("a")], &[put("a")]), put("a")], &[]), Err(RequestError::DuplicateKey));
    }

    #[test]
    fn a_path_does_not_write_what_it_deletes() {
        let duplicate = Err(RequestError::DuplicateKey);
        check(&txn(&[delete("a", ""), put("a")], &[]), duplicate);
        check(&txn(&[put("a"), delete("a", "")], &[]), duplicate);
        check(&txn(&[delete("a", "c"), put("b")], &[]), duplicate);
        check(&txn(&[delete("a", "c"), put("c")], &[]), Ok(()));
        check(&txn(&[delete("a", "c"), delete("b", "d")], &[]), Ok(()));
        check(&txn(&[delete("a", "c"), nested(&[], &[put("b")])], &[]), duplicate);
        check(&txn(&[nested(&[delete("a", "c")], &[]), put("b")], &[]), duplicate);
        check(&txn(&[delete("a", "\0"), put("b")], &[]), Ok(()));
    }

    #[test]
    fn a_level_has_128_steps_and_leaves_the_rest_to_nested_ones() {
        let puts = |n: usize| (0..n).map(|i| put(&format!("k{i}"))).collect::<Vec<_>>();
        check(&txn(&puts(128), &[]), Ok(()));
        check(&txn(&puts(129), &[]), Err(RequestError::TooManyOps { max: 128 }));
        let compares = vec![Compare { key: key("k"), ..Compare::default() }; 129];
        check(&TxnOp { compares, ..TxnOp::default() }, Err(RequestError::TooManyOps { max: 128 }));
        check(&txn(&[nested(&puts(127), &[])], &[]), Ok(()));
        check(&txn(&[nested(&puts(128), &[])], &[]), Err(RequestError::TooManyOps { max: 127 }));
    }

    #[test]
    fn nesting_is_bounded_below_what_the_encoding_carries() {
        let deep = |n: usize| (1..n).fold(txn(&[], &[]), |inner, _| txn(&[Request::Txn(inner).into()], &[]));
        check(&deep(32), Ok(()));
        check(&deep(33), Err(RequestError::TooManyOps { max: 96 }));
        let encoded = prost::Message::encode_to_vec(&deep(32));
        assert!(<TxnOp as prost::Message>::decode(encoded.as_slice()).is_ok());
    }

    #[test]
    fn the_first_fault_in_etcds_order_is_the_one_told() {
        let empty = txn(&[RequestOp { request: None }], &[]);
        check(&empty, Err(RequestError::KeyNotFound));
        check(&txn(&[put("")], &[]), Err(RequestError::EmptyKey));
        check(&txn(&[put("a"), put("a"), put("")], &[]), Err(RequestError::EmptyKey));
        let compare = Compare::default();
        check(&TxnOp { compares: vec![compare], ..empty }, Err(RequestError::EmptyKey));
        let range = RangeOp { key: key("k"), sort_order: 3, ..RangeOp::default() };
        check(&txn(&[Request::Range(range).into()], &[]), Err(RequestError::InvalidSortOption));
    }

    #[test]
    fn single_requests_are_checked() {
        assert_eq!(check_put(&PutOp::default()), Err(RequestError::EmptyKey));
        let value = PutOp { key: key("k"), value: key("v"), ignore_value: true, lease: 1, ..PutOp::default() };
        assert_eq!(check_put(&value), Err(RequestError::ValueProvided));
        let lease = PutOp { key: key("k"), lease: 1, ignore_lease: true, ..PutOp::default() };
        assert_eq!(check_put(&lease), Err(RequestError::LeaseProvided));
        assert_eq!(check_delete_range(&DeleteRangeOp::default()), Err(RequestError::EmptyKey));
        assert_eq!(check_range(&RangeOp::default()), Err(RequestError::EmptyKey));
        let sort = RangeOp { key: key("k"), sort_target: 5, ..RangeOp::default() };
        assert_eq!(check_range(&sort), Err(RequestError::InvalidSortOption));
    }

    #[test]
    fn a_short_lease_is_raised_to_the_floor() {
        let check = |ttl_s: i64, expected: i64| {
            let mut op = LeaseGrantOp { ttl_s, id: 1 };
            floor_ttl(&mut op, &RequestLimits::default());
            assert_eq!(op.ttl_s, expected);
        };
        check(-5, 2);
        check(0, 2);
        check(2, 2);
        check(60, 60);
    }
}
