//! Shapes of partition: whole, one-way and partial, by name.
//!
//! The three partial ones are those in which leader election is known to fail or to flap: *quorum loss* (`Star`: all
//! but the hub lose their quorum), *constrained election* (`Bridge` with an out-of-date middle) and *chained* (`Chain`).
//!
//! Source: Ng, Haridi and Carbone, "Omni-Paxos: breaking the barriers of partial connectivity" (EuroSys 2023), §2.

use std::collections::{BTreeMap, BTreeSet};

use triune_transport::NodeId;

use crate::Rng;

/// Which nodes still hear which.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Topology {
    /// `node` neither speaks nor hears.
    Isolate(NodeId),
    /// `node` hears all and is heard by none.
    Mute(NodeId),
    /// `node` is heard by all and hears none.
    Deaf(NodeId),
    /// Frames from the first to the second are lost; the other direction works.
    OneWay(NodeId, NodeId),
    /// Those named hear each other; all others hear each other; no frame crosses.
    Split(BTreeSet<NodeId>),
    /// Only links with the hub work. With the old leader among the leaves: quorum loss.
    Star(NodeId),
    /// Two sides that hear only themselves and the middle, which hears all.
    Bridge {
        /// Hears all.
        middle: NodeId,
        /// One side; who is neither here nor the middle is on the other.
        left: BTreeSet<NodeId>,
    },
    /// Each hears only its neighbours in this order; who is not in it hears nobody.
    Chain(Vec<NodeId>),
}

impl Topology {
    /// Whether frames from `from` to `to` pass.
    pub fn connects(&self, from: NodeId, to: NodeId) -> bool {
        if from == to {
            return true;
        }
        match self {
            Self::Isolate(node) => from != *node && to != *node,
            Self::Mute(node) => from != *node,
            Self::Deaf(node) => to != *node,
            Self::OneWay(a, b) => (from, to) != (*a, *b),
            Self::Split(side) => side.contains(&from) == side.contains(&to),
            Self::Star(hub) => from == *hub || to == *hub,
            Self::Bridge { middle, left } => {
                from == *middle || to == *middle || left.contains(&from) == left.contains(&to)
            }
            Self::Chain(order) => {
                let place: BTreeMap<_, _> = order.iter().enumerate().map(|(i, node)| (*node, i)).collect();
                match (place.get(&from), place.get(&to)) {
                    (Some(a), Some(b)) => a.abs_diff(*b) == 1,
                    _ => false,
                }
            }
        }
    }

    /// A random shape over `members`; `None` with fewer than two.
    pub fn draw(rng: &mut Rng, members: &[NodeId]) -> Option<Self> {
        if members.len() < 2 {
            return None;
        }
        let mut order = members.to_vec();
        rng.shuffle(&mut order);
        let (first, rest) = order.split_first()?;
        let second = *rest.first()?;
        let some = rng.range(1, rest.len() as u64) as usize;
        Some(match rng.below(8) {
            0 => Self::Isolate(*first),
            1 => Self::Mute(*first),
            2 => Self::Deaf(*first),
            3 => Self::OneWay(*first, second),
            4 => Self::Split(rest.iter().copied().take(some).collect()),
            5 => Self::Star(*first),
            6 => Self::Bridge { middle: *first, left: rest.iter().copied().take(some.div_ceil(2)).collect() },
            _ => Self::Chain(order),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The links that pass among 1, 2, 3, 4, as `from>to`.
    fn check(topology: &Topology, expected: &str) {
        let mut links = Vec::new();
        for from in 1..=4 {
            for to in 1..=4 {
                if from != to && topology.connects(NodeId(from), NodeId(to)) {
                    links.push(format!("{from}>{to}"));
                }
            }
        }
        assert_eq!(links.join(" "), expected, "{topology:?}");
    }

    #[test]
    fn each_shape_passes_what_its_name_says() {
        let set = |ids: &[u64]| ids.iter().map(|n| NodeId(*n)).collect::<BTreeSet<_>>();
        check(&Topology::Isolate(NodeId(1)), "2>3 2>4 3>2 3>4 4>2 4>3");
        check(&Topology::Mute(NodeId(1)), "2>1 2>3 2>4 3>1 3>2 3>4 4>1 4>2 4>3");
        check(&Topology::Deaf(NodeId(1)), "1>2 1>3 1>4 2>3 2>4 3>2 3>4 4>2 4>3");
        check(&Topology::OneWay(NodeId(1), NodeId(2)), "1>3 1>4 2>1 2>3 2>4 3>1 3>2 3>4 4>1 4>2 4>3");
        check(&Topology::Split(set(&[1, 2])), "1>2 2>1 3>4 4>3");
        check(&Topology::Star(NodeId(2)), "1>2 2>1 2>3 2>4 3>2 4>2");
        check(&Topology::Bridge { middle: NodeId(4), left: set(&[1]) }, "1>4 2>3 2>4 3>2 3>4 4>1 4>2 4>3");
        check(&Topology::Chain([3, 1, 2, 4].map(NodeId).to_vec()), "1>2 1>3 2>1 2>4 3>1 4>2");
    }

    #[test]
    fn every_draw_cuts_something() {
        let members = [1, 2, 3].map(NodeId);
        let mut rng = Rng::new(4);
        let mut kinds = BTreeSet::new();
        for _ in 0..200 {
            let topology = Topology::draw(&mut rng, &members).unwrap();
            let pairs = members.iter().flat_map(|a| members.iter().map(move |b| (*a, *b)));
            assert!(pairs.into_iter().any(|(a, b)| !topology.connects(a, b)), "{topology:?}");
            kinds.insert(format!("{topology:?}").split(['(', ' ']).next().unwrap().to_owned());
        }
        assert_eq!(kinds.len(), 8, "{kinds:?}");
        assert_eq!(Topology::draw(&mut rng, &[NodeId(1)]), None);
    }
}
