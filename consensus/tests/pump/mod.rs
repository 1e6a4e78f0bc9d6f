//! A cluster wired by a loop, for tests that decide every delivery: no loss or delay but what the test asks for.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "test support")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use triune_consensus::raft::{RaftDetail, RaftMsg};
use triune_consensus::{
    AdminId, AdminOp, Config, Configuration, Input, Proposal, ProposalId, Protocol, ReadId, Role, View,
};
use triune_transport::{Channel, LinkSession, Nanos, NodeId};

use crate::common::{self, Node, Output, Told};

#[derive(Clone, Debug, PartialEq)]
pub struct Flying {
    pub from: NodeId,
    pub to: NodeId,
    pub channel: Channel,
    pub msg: RaftMsg,
}

pub struct Pump {
    pub now: Nanos,
    pub nodes: BTreeMap<NodeId, Node>,
    pub net: VecDeque<Flying>,
    pub told: Vec<(NodeId, Told)>,
    /// Directions that deliver nothing.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Members whose disk does not finish.
    pub slow: BTreeSet<NodeId>,
    next_id: u64,
}

impl Pump {
    pub fn new(size: u64) -> Self {
        Self::with(size, |_| {})
    }

    pub fn with(size: u64, tune: impl Fn(&mut Config)) -> Self {
        let mut pump = Self {
            now: Nanos::from_secs(1),
            nodes: BTreeMap::new(),
            net: VecDeque::new(),
            told: Vec::new(),
            cut: BTreeSet::new(),
            slow: BTreeSet::new(),
            next_id: 0,
        };
        for id in 1..=size {
            pump.add(id, Some(common::voters(1..=size)), &tune);
        }
        pump
    }

    pub fn add(&mut self, id: u64, formed: Option<Configuration>, tune: impl Fn(&mut Config)) {
        let mut cfg = common::config(id, 100 + id);
        tune(&mut cfg);
        self.nodes.insert(NodeId(id), Node::new(cfg, formed, self.now));
    }

    pub fn step(&mut self, id: NodeId, input: Input<RaftMsg>) {
        let mut out = Output::default();
        self.nodes.get_mut(&id).unwrap().step(self.now, input, &mut out);
        self.net.extend(out.sends.into_iter().map(|(to, channel, msg)| Flying { from: id, to, channel, msg }));
        self.told.extend(out.told.into_iter().map(|told| (id, told)));
    }

    pub fn deliver(&mut self, flying: Flying) {
        let Flying { from, to, msg, .. } = flying;
        if !self.cut.contains(&(from, to)) && self.nodes.get(&to).is_some_and(Node::is_up) {
            self.step(to, Input::Message { from, link: LinkSession(1), msg });
        }
    }

    /// Finishes all writes of a member and lets its state machine answer.
    pub fn finish_io(&mut self, id: NodeId) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        if !self.slow.contains(&id)
            && let Some(seq) = node.sync(usize::MAX)
        {
            self.step(id, Input::Persisted(seq));
            return true;
        }
        if let Some(input) = self.nodes.get_mut(&id).unwrap().local.pop_front() {
            self.step(id, input);
            return true;
        }
        false
    }

    /// Delivers and writes until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if let Some(flying) = self.net.pop_front() {
                self.deliver(flying);
                continue;
            }
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            let mut busy = false;
            for id in ids {
                busy |= self.finish_io(id);
            }
            if !busy {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Delivers what is in flight and chosen, once; all else stays in flight.
    pub fn settle_only(&mut self, chosen: impl Fn(&Flying) -> bool) {
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.net).into_iter().partition(chosen);
        self.net.extend(later);
        now.into_iter().for_each(|flying| self.deliver(flying));
    }

    /// Lets time pass: every deadline up to `span` from now fires, and everything settles after each.
    pub fn pass(&mut self, span: Nanos) {
        let end = self.now.after(span);
        loop {
            let up = self.nodes.iter().filter(|(_, node)| node.is_up());
            let next = up.filter_map(|(id, node)| Some((node.raft().next_deadline()?, *id))).min();
            match next {
                Some((at, id)) if at <= end => {
                    self.now = self.now.max(at);
                    self.step(id, Input::Timeout);
                    self.settle();
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Lets time pass until somebody leads.
    pub fn elect(&mut self) -> NodeId {
        for _ in 0..200 {
            self.pass(Nanos::from_millis(100));
            if let Some(id) = self.leader() {
                return id;
            }
        }
        panic!("nobody leads");
    }

    /// Makes this one campaign at once.
    pub fn elect_this(&mut self, id: u64) -> NodeId {
        let id = NodeId(id);
        self.now = self.now.after(Nanos::from_secs(3));
        self.step(id, Input::Timeout);
        self.settle();
        assert_eq!(self.role(id), Role::Leader, "{}", self.nodes[&id].raft().summary());
        id
    }

    /// The leader of the highest term.
    pub fn leader(&self) -> Option<NodeId> {
        let up = self.nodes.values().filter(|node| node.is_up() && node.raft().view().role == Role::Leader);
        up.max_by_key(|node| node.raft().view().epoch).map(Node::id)
    }

    pub fn role(&self, id: NodeId) -> Role {
        self.view(id).role
    }

    pub fn view(&self, id: NodeId) -> View<RaftDetail> {
        self.nodes[&id].raft().view()
    }

    pub fn put(&mut self, id: NodeId, key: u64, value: u64) -> ProposalId {
        self.next_id += 1;
        let proposal = ProposalId(self.next_id);
        let head = common::put(key, value);
        self.step(id, Input::Propose(vec![Proposal { id: proposal, head, sections: Vec::new() }]));
        proposal
    }

    pub fn read(&mut self, id: NodeId) -> ReadId {
        self.next_id += 1;
        self.step(id, Input::Read(vec![ReadId(self.next_id)]));
        ReadId(self.next_id)
    }

    pub fn admin(&mut self, id: NodeId, op: AdminOp) -> AdminId {
        self.next_id += 1;
        self.step(id, Input::Admin { id: AdminId(self.next_id), op });
        AdminId(self.next_id)
    }

    pub fn isolate(&mut self, id: NodeId) {
        for other in self.nodes.keys().copied().filter(|other| *other != id) {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    pub fn crash(&mut self, id: NodeId, kept: usize) {
        self.nodes.get_mut(&id).unwrap().crash(kept);
    }

    pub fn restart(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        let boot = node.cfg.boot + 1_000;
        node.restart(now, boot).unwrap();
    }
}
