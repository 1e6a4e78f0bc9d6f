//! The interpreter of `testdata/raft/*.txt`: a handful of replicas, every step of which is printed.
//!
//! A file is blocks: commands, one a line, then `----`, what happened, and an empty line. `#` begins a comment.
//!
//! | command | does |
//! |--|--|
//! | `tune keep-entries 0`, `tune read lease` | how the replicas added later behave |
//! | `add-nodes 3`, `add-blank 4` | replicas 1..=3 formed together; one that knows no configuration |
//! | `campaign 1` | the longest election timeout passes, and 1 notices |
//! | `timeout 1` | 1's next deadline comes |
//! | `pass 1500ms` | time passes; deadlines fire in order and everything settles after each |
//! | `sleep 500ms` | time passes, nobody notices |
//! | `propose 1 x`, `read 2` | a client's command, a client's read |
//! | `transfer 1 2` | hand the leadership over |
//! | `change 1 add-learner 4`, `… promote 4`, `… remove 3`, `… replace 3 4` | change the configuration |
//! | `persist 1`, `persist 1 one` | 1's disk finishes its writes and its state machine answers; the oldest write only |
//! | `deliver`, `deliver 1->2`, `deliver 1->2 Vote`, `drop …` | what is in flight (and matches) arrives, or is lost |
//! | `duplicate …` | what is in flight (and matches) arrives and stays in flight |
//! | `settle` | deliver and persist until nothing is left to do |
//! | `slow 2`, `fast 2` | 2's disk finishes only when told to (`persist 2`), also in `settle` |
//! | `cut 1->2`, `isolate 1`, `heal` | links that deliver nothing |
//! | `crash 2`, `restart 2` | power loss: what was not durable is gone |
//! | `checkpoint 1` | 1's state machine makes itself durable, the log before may go |
//! | `status`, `log`, `network` | shows the replicas, their logs (`|` ends what is durable), what is in flight |
//! | `quiet …`, `brief …` | any of them without its output, without its heartbeats |
//!
//! Besides the text, each run checks that no two replicas apply different entries and that no term has two leaders.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub, reason = "test support")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use bytes::Bytes;
use triune_consensus::raft::{AppendOutcome, RaftMsg};
use triune_consensus::{
    AdminId, AdminOp, Config, ConfigChange, ConfigEntry, Configuration, Entry, EntryKind, Index, Input, Position,
    Proposal, ProposalId, ProposeOutcome, Protocol, ReadId, ReadMode, Role, StreamBatch,
};
use triune_transport::{LinkSession, Nanos, NodeId};

use crate::common::{self, Node, Output, Told};

/// Runs a script; the same text with the outputs that happened.
pub fn run(script: &str) -> String {
    let mut world = World::default();
    let mut text = String::new();
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        if line == "----" {
            lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
            let happened = std::mem::take(&mut world.out);
            let happened = if happened.is_empty() { "ok\n" } else { &happened };
            text += &format!("----\n{happened}\n");
            continue;
        }
        text += line;
        text.push('\n');
        let command = line.split('#').next().unwrap_or_default().trim();
        if !command.is_empty() {
            world.command(command);
        }
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// The lines of both, those that differ marked and numbered.
pub fn diff(expected: &str, actual: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (expected.lines().collect(), actual.lines().collect());
    // The longest common subsequence, backwards: common[i][j] is its length for old[i..] and new[j..].
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut shown) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            writeln!(shown, "{:4}   {}", i + 1, old[i]).unwrap();
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            writeln!(shown, "{:4} - {}", i + 1, old[i]).unwrap();
            i += 1;
        } else {
            writeln!(shown, "{:4} + {}", j + 1, new[j]).unwrap();
            j += 1;
        }
    }
    shown
}

struct Flying {
    from: u64,
    to: u64,
    msg: RaftMsg,
}

#[derive(Default)]
struct World {
    now: Nanos,
    nodes: BTreeMap<u64, Node>,
    net: VecDeque<Flying>,
    cut: BTreeSet<(u64, u64)>,
    slow: BTreeSet<u64>,
    keep_entries: Option<u64>,
    lease: bool,
    boots: u64,
    next_id: u64,
    applied: BTreeMap<Index, Entry>,
    leaders: BTreeMap<u64, u64>,
    out: String,
}

impl World {
    fn command(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["quiet", ..] => {
                let before = self.out.len();
                self.command(line.trim_start_matches("quiet").trim());
                self.out.truncate(before);
            }
            ["brief", ..] => {
                let before = std::mem::take(&mut self.out);
                self.command(line.trim_start_matches("brief").trim());
                let shown = std::mem::replace(&mut self.out, before);
                shown.lines().filter(|line| !line.contains(" Heartbeat")).for_each(|line| self.say(line));
            }
            ["tune", "keep-entries", n] => self.keep_entries = Some(number(n)),
            ["tune", "read", "lease"] => self.lease = true,
            ["add-nodes", n] => {
                let n = number(n);
                (1..=n).for_each(|id| self.add(id, Some(common::voters(1..=n))));
            }
            ["add-blank", id] => self.add(number(id), None),
            ["campaign", id] => {
                self.now = self.now.after(Nanos::from_secs(2));
                self.step(number(id), Input::Timeout);
            }
            ["timeout", id] => {
                let at = self.nodes[&number(id)].raft().next_deadline().unwrap();
                self.now = self.now.max(at);
                self.step(number(id), Input::Timeout);
            }
            ["pass", span] => self.pass(millis(span)),
            ["sleep", span] => self.now = self.now.after(millis(span)),
            ["propose", id, text] => {
                assert_ne!(text.len(), 16, "sixteen bytes are a register write to the state machine");
                let head = Bytes::copy_from_slice(text.as_bytes());
                let proposal = Proposal { id: ProposalId(self.next()), head, sections: Vec::new() };
                self.step(number(id), Input::Propose(vec![proposal]));
            }
            ["read", id] => {
                let read = ReadId(self.next());
                self.step(number(id), Input::Read(vec![read]));
            }
            ["transfer", id, to] => {
                let to = Some(NodeId(number(to)));
                self.admin(number(id), AdminOp::Transfer { to });
            }
            ["change", id, change @ ..] => {
                let change = parse_change(change);
                self.admin(number(id), AdminOp::Change { change, context: Bytes::new() });
            }
            ["persist", id, "one"] => drop(self.persist(number(id), 1)),
            ["persist", id] => {
                self.persist(number(id), usize::MAX);
                while self.answer(number(id)) {}
            }
            ["deliver", which @ ..] => {
                let (now, later) = self.chosen(which);
                self.net = later;
                now.into_iter().for_each(|flying| self.deliver(flying));
            }
            ["duplicate", which @ ..] => {
                let (now, mut later) = self.chosen(which);
                for Flying { from, to, msg } in now {
                    later.push_back(Flying { from, to, msg: msg.clone() });
                    self.net.clear();
                    self.deliver(Flying { from, to, msg });
                    later.append(&mut self.net);
                }
                self.net = later;
            }
            ["drop", which @ ..] => {
                let (lost, later) = self.chosen(which);
                self.net = later;
                for Flying { from, to, msg } in lost {
                    self.say(&format!("{from} -> {to} {} is lost", describe(&msg)));
                }
            }
            ["settle"] => self.settle(),
            ["slow", id] => drop(self.slow.insert(number(id))),
            ["fast", id] => drop(self.slow.remove(&number(id))),
            ["cut", link] => drop(self.cut.insert(parse_link(link))),
            ["isolate", id] => {
                let id = number(id);
                let others = self.nodes.keys().copied().filter(|other| *other != id);
                self.cut.extend(others.flat_map(|other| [(id, other), (other, id)]));
            }
            ["heal"] => self.cut.clear(),
            ["crash", id] => {
                let node = self.nodes.get_mut(&number(id)).unwrap();
                let lost = node.pending.len();
                node.crash(0);
                self.say(&format!("{id} crashes, {lost} writes lost"));
            }
            ["restart", id] => {
                self.boots += 1;
                let (now, boot) = (self.now, 1_000 * self.boots);
                self.nodes.get_mut(&number(id)).unwrap().restart(now, boot).unwrap();
                self.show_status(number(id));
            }
            ["checkpoint", id] => {
                self.nodes.get_mut(&number(id)).unwrap().checkpoint();
                while self.answer(number(id)) {}
            }
            ["status"] => {
                self.nodes.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.show_status(id))
            }
            ["log"] => self.show_logs(),
            ["network"] => {
                let shown: Vec<_> =
                    self.net.iter().map(|f| format!("{} -> {} {}", f.from, f.to, describe(&f.msg))).collect();
                shown.iter().for_each(|line| self.say(line));
            }
            _ => panic!("no such command: {line}"),
        }
    }

    fn next(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn say(&mut self, line: &str) {
        self.out += line;
        self.out.push('\n');
    }

    fn add(&mut self, id: u64, formed: Option<Configuration>) {
        let mut cfg: Config = common::config(id, 100 + id);
        cfg.keep_entries = self.keep_entries.unwrap_or(cfg.keep_entries);
        if self.lease {
            cfg.read = ReadMode::Lease;
        }
        self.now = self.now.max(Nanos::from_secs(1));
        self.nodes.insert(id, Node::new(cfg, formed, self.now));
    }

    fn admin(&mut self, id: u64, op: AdminOp) {
        let request = AdminId(self.next());
        self.step(id, Input::Admin { id: request, op });
    }

    fn step(&mut self, id: u64, input: Input<RaftMsg>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_up()) else {
            return;
        };
        let before = node.pending.len();
        let mut out = Output::default();
        node.step(now, input, &mut out);
        let view = node.raft().view();
        let writes: Vec<_> = node.pending.iter().skip(before).cloned().collect();
        if view.role == Role::Leader {
            let leader = *self.leaders.entry(view.epoch.0).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", view.epoch.0);
        }
        let (roles, others): (Vec<_>, Vec<_>) = out.told.into_iter().partition(|told| matches!(told, Told::Role(_)));
        roles.iter().for_each(|told| self.tell(id, told));
        for batch in writes {
            self.say(&describe_write(id, &batch, view.epoch.0, view.detail.vote));
        }
        others.iter().for_each(|told| self.tell(id, told));
        for (to, _, msg) in out.sends {
            self.say(&format!("{id} -> {} {}", to.0, describe(&msg)));
            self.net.push_back(Flying { from: id, to: to.0, msg });
        }
    }

    fn tell(&mut self, id: u64, told: &Told) {
        let line = match told {
            Told::Role(change) => {
                let leader = change.leader.map_or_else(|| "nobody".to_owned(), |leader| leader.0.to_string());
                format!("{id} is {} in term {}, led by {leader}", role(change.role), change.epoch.0)
            }
            Told::Forgot => format!("{id} has lost what it confirmed, and says nothing more"),
            Told::Reply(_, ProposeOutcome::Accepted(position)) => format!("{id} takes {}", place(*position)),
            Told::Reply(_, outcome) => format!("{id} refuses: {outcome:?}"),
            Told::Read(read, Ok(index)) => format!("{id} may serve read {} from index {}", read.0, index.0),
            Told::Read(read, Err(error)) => format!("{id} gives up read {}: {error}", read.0),
            Told::Admin(_, Ok(())) => format!("{id} has carried the request out"),
            Told::Admin(_, Err(error)) => format!("{id} could not carry the request out: {error}"),
            Told::Applied(entry) => {
                let known = self.applied.entry(entry.position.index).or_insert_with(|| entry.clone());
                assert_eq!(known, entry, "two replicas apply different entries");
                format!("{id} applies {}", describe_entry(entry))
            }
            Told::Installed(mark) => format!("{id} installs the snapshot at {}", place(mark.position)),
            Told::Released(upto) => format!("{id} lets the log go up to {}", upto.0),
        };
        self.say(&line);
    }

    fn deliver(&mut self, flying: Flying) {
        let Flying { from, to, msg } = flying;
        if !self.cut.contains(&(from, to)) {
            self.step(to, Input::Message { from: NodeId(from), link: LinkSession(1), msg });
        }
    }

    /// The disk finishes; whether it had something to do.
    fn persist(&mut self, id: u64, count: usize) -> bool {
        let Some(seq) = self.nodes.get_mut(&id).unwrap().sync(count) else {
            return false;
        };
        self.say(&format!("{id} has write {} durable", seq.0));
        self.step(id, Input::Persisted(seq));
        true
    }

    /// The state machine answers; whether it had to.
    fn answer(&mut self, id: u64) -> bool {
        let input = self.nodes.get_mut(&id).unwrap().local.pop_front();
        input.map(|input| self.step(id, input)).is_some()
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if let Some(flying) = self.net.pop_front() {
                self.deliver(flying);
                continue;
            }
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            let busy = ids.into_iter().filter(|id| {
                let wrote = !self.slow.contains(id) && self.persist(*id, usize::MAX);
                wrote | self.answer(*id)
            });
            if busy.count() == 0 {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn pass(&mut self, span: Nanos) {
        let end = self.now.after(span);
        loop {
            let up = self.nodes.iter().filter(|(_, node)| node.is_up());
            match up.filter_map(|(id, node)| Some((node.raft().next_deadline()?, *id))).min() {
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

    /// What is in flight and matches `[link] [message]`, and the rest.
    fn chosen(&mut self, which: &[&str]) -> (VecDeque<Flying>, VecDeque<Flying>) {
        let link = which.iter().find(|word| word.contains("->")).map(|word| parse_link(word));
        let kind = which.iter().find(|word| !word.contains("->"));
        std::mem::take(&mut self.net).into_iter().partition(|flying| {
            link.is_none_or(|link| link == (flying.from, flying.to))
                && kind.is_none_or(|kind| describe(&flying.msg).split(' ').next() == Some(kind))
        })
    }

    fn show_status(&mut self, id: u64) {
        let node = &self.nodes[&id];
        if !node.is_up() {
            self.say(&format!("{id} is down"));
            return;
        }
        let view = node.raft().view();
        let vote = view.detail.vote.map_or_else(|| "nobody".to_owned(), |node| node.0.to_string());
        let leader = view.leader.map_or_else(|| "nobody".to_owned(), |node| node.0.to_string());
        let line = format!(
            "{id} is {} in term {}, led by {leader}, voted for {vote}, last {}, commit {}, applied {}, config {}",
            role(view.role),
            view.epoch.0,
            place(view.last),
            view.commit.0,
            view.applied.0,
            describe_configuration(&view.config)
        );
        self.say(&line);
    }

    fn show_logs(&mut self) {
        let lines: Vec<_> = self.nodes.iter().map(|(id, node)| show_log(*id, node)).collect();
        lines.iter().for_each(|line| self.say(line));
    }
}

fn show_log(id: u64, node: &Node) -> String {
    let mut written = node.image.clone();
    node.pending.iter().cloned().for_each(|batch| written.write(batch));
    let durable = written.entries.iter().take_while(|entry| node.image.entry(entry.position.index) == Some(*entry));
    let durable = durable.count();
    let mut line = format!("{id}:");
    if written.base != Position::ZERO {
        write!(line, " after {}", place(written.base)).unwrap();
    }
    for (n, entry) in written.entries.iter().enumerate() {
        if n == durable {
            line += " |";
        }
        write!(line, " {}", describe_entry(entry)).unwrap();
    }
    line
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

fn millis(word: &str) -> Nanos {
    Nanos::from_millis(number(word.trim_end_matches("ms")))
}

fn parse_link(word: &str) -> (u64, u64) {
    let (from, to) = word.split_once("->").unwrap();
    (number(from), number(to))
}

fn parse_change(words: &[&str]) -> ConfigChange {
    match words {
        ["add-learner", id] => ConfigChange::AddLearner(NodeId(number(id))),
        ["promote", id] => ConfigChange::Promote(NodeId(number(id))),
        ["remove", id] => ConfigChange::Remove(NodeId(number(id))),
        ["replace", old, new] => ConfigChange::Replace { old: NodeId(number(old)), new: NodeId(number(new)) },
        _ => panic!("no such change: {words:?}"),
    }
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Learner => "learner",
    }
}

/// term/index.
fn place(position: Position) -> String {
    format!("{}/{}", position.epoch.0, position.index.0)
}

fn describe_entry(entry: &Entry) -> String {
    let what = match EntryKind::from_u8(entry.kind).unwrap() {
        EntryKind::Command => String::from_utf8_lossy(&entry.head).into_owned(),
        EntryKind::Barrier => "barrier".to_owned(),
        EntryKind::Config => describe_configuration(&ConfigEntry::decode(entry.head.clone()).unwrap().config),
    };
    format!("{}:{what}", place(entry.position))
}

fn describe_configuration(config: &Configuration) -> String {
    let set = |set: &BTreeSet<NodeId>| set.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join(",");
    let mut text = format!("({})", set(&config.voters));
    if config.is_joint() {
        write!(text, "&({})", set(&config.outgoing)).unwrap();
    }
    if !config.learners.is_empty() {
        write!(text, "+learners({})", set(&config.learners)).unwrap();
    }
    text
}

fn describe_write(id: u64, batch: &StreamBatch, term: u64, vote: Option<NodeId>) -> String {
    let mut line = format!("{id} writes {}:", batch.seq.0);
    if let Some(base) = batch.reset {
        write!(line, " log starts after {}", place(base)).unwrap();
    }
    if let Some(index) = batch.truncate_from {
        write!(line, " cut from {}", index.0).unwrap();
    }
    for entry in &batch.entries {
        write!(line, " {}", describe_entry(entry)).unwrap();
    }
    if batch.state.is_some() {
        let vote = vote.map_or_else(|| "nobody".to_owned(), |node| node.0.to_string());
        write!(line, " term={term} vote={vote}").unwrap();
    }
    line
}

fn describe(msg: &RaftMsg) -> String {
    let yes = |granted: bool| if granted { "granted" } else { "refused" };
    match msg {
        RaftMsg::PreVote { term, last } => format!("PreVote term={} last={}", term.0, place(*last)),
        RaftMsg::PreVoteReply { term, granted } => format!("PreVoteReply term={} {}", term.0, yes(*granted)),
        RaftMsg::Vote { term, last, transfer } => {
            format!("Vote term={} last={}{}", term.0, place(*last), if *transfer { " transfer" } else { "" })
        }
        RaftMsg::VoteReply { term, granted } => format!("VoteReply term={} {}", term.0, yes(*granted)),
        RaftMsg::Append { term, prev, commit, matched: _, entries } => {
            let entries: Vec<_> = entries.iter().map(describe_entry).collect();
            format!("Append term={} prev={} commit={} [{}]", term.0, place(*prev), commit.0, entries.join(" "))
        }
        RaftMsg::AppendReply { term, outcome: AppendOutcome::Matched(index) } => {
            format!("AppendReply term={} matched={}", term.0, index.0)
        }
        RaftMsg::AppendReply { term, outcome: AppendOutcome::Rejected { prev, hint } } => {
            format!("AppendReply term={} rejected prev={} hint={}", term.0, prev.0, place(*hint))
        }
        RaftMsg::Heartbeat { term, commit, matched: _, round } => {
            format!("Heartbeat term={} commit={} round={}", term.0, commit.0, round.count)
        }
        RaftMsg::HeartbeatReply { term, round } => format!("HeartbeatReply term={} round={}", term.0, round.count),
        RaftMsg::ReadIndex { ctx } => format!("ReadIndex question={}", ctx.count),
        RaftMsg::ReadIndexReply { ctx, index } => format!("ReadIndexReply question={} index={}", ctx.count, index.0),
        RaftMsg::TimeoutNow { term } => format!("TimeoutNow term={}", term.0),
        RaftMsg::Offer { term, meta } => {
            format!("Offer term={} snapshot={} bytes={}", term.0, place(meta.mark.position), meta.bytes)
        }
        RaftMsg::Chunk { term, position, offset, data } => {
            let end = offset + data.len() as u64;
            format!("Chunk term={} snapshot={} bytes={offset}..{end}", term.0, place(*position))
        }
        RaftMsg::ChunkReply { term, position, upto } => {
            format!("ChunkReply term={} snapshot={} kept={upto}", term.0, place(*position))
        }
        _ => format!("{msg:?}"),
    }
}
