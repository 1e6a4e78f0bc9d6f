//! One table: each refusal's gRPC code and etcd's text. Client libraries match the texts, so they are etcd's to the
//! letter (`api/v3rpc/rpctypes/error.go` of etcd 3.5).

use tonic::{Code, Status};

use crate::member::api::{KvError, Refusal};

/// The status a client of etcd expects for this refusal.
pub fn status_of(refusal: &Refusal) -> Status {
    if let Refusal::Reserved { .. } = refusal {
        return Status::invalid_argument(format!("etcdserver: {refusal}"));
    }
    let (code, text) = entry(refusal);
    Status::new(code, text)
}

fn entry(refusal: &Refusal) -> (Code, &'static str) {
    match refusal {
        Refusal::Kv(e) => kv(e),
        Refusal::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
        Refusal::NotLeader => (Code::FailedPrecondition, "etcdserver: not leader"),
        Refusal::Busy => (Code::ResourceExhausted, "etcdserver: too many requests"),
        Refusal::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Refusal::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        Refusal::TooLarge { .. } => (Code::InvalidArgument, "etcdserver: request is too large"),
        Refusal::BadTransferee => (Code::FailedPrecondition, "etcdserver: bad leader transferee"),
        Refusal::TransferTimedOut => {
            (Code::Unavailable, "etcdserver: request timed out, leader transfer took too long")
        }
        Refusal::MemberNotFound => (Code::NotFound, "etcdserver: member not found"),
        Refusal::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
        // The outcome is unknown: never a text that says it did not happen.
        _ => (Code::Unavailable, "etcdserver: request timed out"),
    }
}

const fn kv(error: &KvError) -> (Code, &'static str) {
    match error {
        KvError::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
        KvError::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        KvError::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
        KvError::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
        KvError::TooManyOps { .. } => (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
        KvError::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        KvError::InvalidSortOption => (Code::InvalidArgument, "etcdserver: invalid sort option"),
        KvError::Compacted { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        KvError::FutureRev { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
        KvError::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
        KvError::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        KvError::LeaseTtlTooLarge { .. } => (Code::OutOfRange, "etcdserver: too large lease TTL"),
        KvError::Unnamed => (Code::InvalidArgument, "etcdserver: the request breaks a rule of the store"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(refusal: Refusal, code: Code, text: &str) {
        let status = status_of(&refusal);
        assert_eq!((status.code(), status.message()), (code, text));
    }

    #[test]
    fn refusals_have_the_codes_and_texts_of_etcd() {
        check(Refusal::Kv(KvError::EmptyKey), Code::InvalidArgument, "etcdserver: key is not provided");
        check(
            Refusal::Kv(KvError::Compacted { compacted: 7 }),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        check(Refusal::Kv(KvError::LeaseNotFound), Code::NotFound, "etcdserver: requested lease not found");
        check(Refusal::NoSpace, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
    }

    #[test]
    fn an_unknown_outcome_never_maps_to_a_definite_failure() {
        for refusal in [Refusal::Unknown, Refusal::TimedOut] {
            check(refusal, Code::Unavailable, "etcdserver: request timed out");
        }
    }
}
