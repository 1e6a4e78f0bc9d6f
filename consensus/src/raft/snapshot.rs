//! Snapshots (thesis 5; figure 5.3): in chunks, resumable, at most a window in flight. The embedder owns the bytes.
//!
//! ```text
//!   leader                                         follower
//!   Take ─► Taken(meta)   ── Offer(meta) ──►       do I need it?   no: "matched"
//!                         ◄─ ChunkReply(upto) ──   what I keep of it already
//!   Read ─► Chunk         ── Chunk(offset) ──►     Write ─► Written
//!                         ◄─ ChunkReply(upto) ──
//!                                                  all kept, nothing being applied: Install ─► Installed
//!                         ◄─ "matched" ──          log reset, durable
//! ```
//! 1. A snapshot is never installed at or below the commit (R10), nor while entries are being applied.
//! 2. While one is being installed the log stands still: no append, no commit, no campaign.
//! 3. After a crash between the install and the log's reset, recovery finds the applied mark beyond the log.

use bytes::Bytes;
use triune_storage::{Epoch, Index, Position};
use triune_transport::{Channel, Nanos, NodeId};

use super::{
    Raft,
    progress::{Progress, Sending, State},
    wire::RaftMsg,
};
use crate::{Effect, Effects, Role, SnapshotEvent, SnapshotMark, SnapshotMeta, SnapshotOp};

/// Chunks in flight to one follower.
const CHUNKS_MAX: u64 = 4;

/// The snapshot a leader sends from.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots {
    meta: Option<SnapshotMeta>,
    taking: bool,
    /// Not asked again before this, after it could not be made.
    ask_at: Nanos,
}

/// A snapshot being received.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    meta: SnapshotMeta,
    /// Handed to the embedder up to here.
    asked: u64,
    /// Kept by the embedder up to here.
    kept: u64,
    /// Every byte was handed over (needed where there are none).
    begun: bool,
    installing: bool,
}

impl Incoming {
    const fn is_complete(&self) -> bool {
        self.begun && self.kept == self.meta.bytes
    }
}

// The leader.
impl Raft {
    pub(super) fn drive_snapshot(
        &mut self,
        node: NodeId,
        peer: &mut Progress,
        snapshots: &mut Snapshots,
        out: &mut Effects<RaftMsg>,
    ) {
        if peer.state != State::Snapshot {
            return;
        }
        if peer.sending.is_none() {
            let base = self.log.base().index;
            match &snapshots.meta {
                Some(meta) if meta.mark.position.index >= base => {
                    let meta = meta.clone();
                    peer.sending = Some(Sending { meta, kept: None, sent: 0, reading: None, moved_at: self.now });
                    self.offer(node, peer, out);
                }
                _ if !snapshots.taking && self.now >= snapshots.ask_at => {
                    snapshots.taking = true;
                    out.push(Effect::Snapshot(SnapshotOp::Take { at_least: base }));
                }
                _ => {}
            }
            return;
        }
        let silent = peer.sending.as_ref().is_some_and(|s| self.now.since(s.moved_at) >= self.cfg.election_min);
        if silent {
            self.offer(node, peer, out);
        }
        self.read_chunk(peer, out);
    }

    /// Asks the peer from which byte on it needs the snapshot.
    fn offer(&self, node: NodeId, peer: &mut Progress, out: &mut Effects<RaftMsg>) {
        let Some(sending) = peer.sending.as_mut() else {
            return;
        };
        (sending.kept, sending.reading, sending.moved_at) = (None, None, self.now);
        let msg = RaftMsg::Offer { term: self.term, meta: sending.meta.clone() };
        self.send(node, Channel::Bulk, msg, self.after_hard(), out);
    }

    fn read_chunk(&mut self, peer: &mut Progress, out: &mut Effects<RaftMsg>) {
        let window = (self.cfg.chunk_bytes_max as u64).saturating_mul(CHUNKS_MAX);
        let Some(sending) = peer.sending.as_mut().filter(|sending| sending.reading.is_none()) else {
            return;
        };
        let Some(kept) = sending.kept else {
            return;
        };
        if sending.sent < sending.meta.bytes && sending.sent - kept.min(sending.sent) < window {
            let req = self.next_fetch();
            sending.reading = Some(req);
            let (position, offset) = (sending.meta.mark.position, sending.sent);
            let len_max = self.cfg.chunk_bytes_max;
            out.push(Effect::Snapshot(SnapshotOp::Read { req, position, offset, len_max }));
        }
    }

    fn on_chunk_read(&mut self, req: crate::FetchId, offset: u64, data: Option<Bytes>, out: &mut Effects<RaftMsg>) {
        let term = self.term;
        let Some(lead) = self.lead.as_mut() else {
            return;
        };
        let reading = |peer: &Progress| peer.sending.as_ref().is_some_and(|sending| sending.reading == Some(req));
        let Some((&node, peer)) = lead.peers.iter_mut().find(|(_, peer)| reading(peer)) else {
            return;
        };
        let Some(sending) = peer.sending.as_mut() else {
            return;
        };
        sending.reading = None;
        match data {
            Some(data) if !data.is_empty() && offset == sending.sent => {
                sending.sent += data.len() as u64;
                let position = sending.meta.mark.position;
                self.send(node, Channel::Bulk, RaftMsg::Chunk { term, position, offset, data }, self.after_hard(), out);
            }
            Some(data) if !data.is_empty() => {}
            _ => {
                // That snapshot is gone: begin with another.
                peer.sending = None;
                lead.snapshots.meta = None;
            }
        }
    }

    pub(super) fn on_chunk_reply(
        &mut self,
        from: NodeId,
        term: Epoch,
        position: Position,
        upto: u64,
        out: &mut Effects<RaftMsg>,
    ) {
        let now = self.now;
        if term != self.term {
            return;
        }
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        if let Some(peer) = lead.peers.get_mut(&from) {
            peer.heard_at = now;
            if let Some(sending) = peer.sending.as_mut().filter(|s| s.meta.mark.position == position) {
                match sending.kept {
                    _ if upto > sending.meta.bytes => {}
                    None => {
                        (sending.kept, sending.sent, sending.moved_at) = (Some(upto), upto, now);
                    }
                    Some(kept) if upto > kept => {
                        (sending.kept, sending.moved_at) = (Some(upto), now);
                        sending.sent = sending.sent.max(upto);
                    }
                    // It lost what it kept.
                    Some(kept) if upto < kept => self.offer(from, peer, out),
                    Some(_) => {}
                }
            }
        }
        self.lead = Some(lead);
    }

    /// Drops the snapshot when no peer needs it.
    pub(super) fn tidy_snapshots(&mut self, out: &mut Effects<RaftMsg>) {
        let Some(lead) = self.lead.as_mut() else {
            return;
        };
        let needed = lead.peers.values().any(|peer| peer.sending.is_some());
        let wanted = lead.peers.values().any(|peer| peer.state == State::Snapshot);
        let stale = |meta: &SnapshotMeta| meta.mark.position.index < self.log.base().index;
        if !needed && let Some(meta) = lead.snapshots.meta.take_if(|meta| !wanted || stale(meta)) {
            out.push(Effect::Snapshot(SnapshotOp::Drop { position: meta.mark.position }));
        }
    }

    pub(super) fn drop_snapshots(snapshots: Snapshots, out: &mut Effects<RaftMsg>) {
        if let Some(meta) = snapshots.meta {
            out.push(Effect::Snapshot(SnapshotOp::Drop { position: meta.mark.position }));
        }
    }
}

// The follower.
impl Raft {
    pub(super) fn is_installing(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.installing)
    }

    pub(super) fn on_offer(&mut self, from: NodeId, term: Epoch, meta: SnapshotMeta, out: &mut Effects<RaftMsg>) {
        if !self.hear_leader(from, term, Index::ZERO, out) {
            return;
        }
        if let Some(incoming) = self.incoming.as_ref().filter(|incoming| incoming.meta == meta) {
            let (position, upto) = (meta.mark.position, incoming.asked);
            self.send(from, Channel::Bulk, RaftMsg::ChunkReply { term, position, upto }, self.after_hard(), out);
            return;
        }
        if self.is_installing() || self.decline(Some(from), &meta.mark, out) {
            return;
        }
        let empty = meta.bytes == 0;
        let position = meta.mark.position;
        self.drop_incoming(out);
        self.incoming = Some(Incoming { meta, asked: 0, kept: 0, begun: false, installing: false });
        if empty {
            self.write_chunk(Bytes::new(), out);
        }
        self.send(from, Channel::Bulk, RaftMsg::ChunkReply { term, position, upto: 0 }, self.after_hard(), out);
    }

    /// Whether the log already holds what the snapshot stands for; then the leader is told so. What stands above the
    /// mark in such a log may be acknowledged, so it must not be cut, whether a leader is known or not.
    fn decline(&mut self, leader: Option<NodeId>, mark: &SnapshotMark, out: &mut Effects<RaftMsg>) -> bool {
        if mark.position.index > self.commit && self.log.matches(mark.position) {
            self.commit_to(mark.position.index, out);
        }
        let held = mark.position.index <= self.commit;
        if held && let Some(leader) = leader.filter(|leader| *leader != self.cfg.node) {
            self.confirm_to(leader, self.commit, out);
        }
        held
    }

    pub(super) fn on_chunk(
        &mut self,
        from: NodeId,
        term: Epoch,
        position: Position,
        offset: u64,
        data: Bytes,
        out: &mut Effects<RaftMsg>,
    ) {
        if !self.hear_leader(from, term, Index::ZERO, out) {
            return;
        }
        let Some(incoming) = self.incoming.as_ref().filter(|i| i.meta.mark.position == position && !i.installing)
        else {
            return;
        };
        let fits = offset == incoming.asked && data.len() as u64 <= incoming.meta.bytes - offset;
        if fits && !data.is_empty() {
            self.write_chunk(data, out);
        }
    }

    fn write_chunk(&mut self, data: Bytes, out: &mut Effects<RaftMsg>) {
        if let Some(incoming) = self.incoming.as_mut() {
            let (meta, offset) = (incoming.meta.clone(), incoming.asked);
            incoming.asked += data.len() as u64;
            incoming.begun = true;
            out.push(Effect::Snapshot(SnapshotOp::Write { meta, offset, data }));
        }
    }

    fn on_written(&mut self, position: Position, upto: u64, out: &mut Effects<RaftMsg>) {
        let Some(incoming) = self.incoming.as_mut().filter(|incoming| incoming.meta.mark.position == position) else {
            return;
        };
        incoming.kept = incoming.kept.max(upto.min(incoming.asked));
        if let Some(leader) = self.leader {
            let (term, upto) = (self.term, incoming.kept);
            self.send(leader, Channel::Bulk, RaftMsg::ChunkReply { term, position, upto }, self.after_hard(), out);
        }
    }

    fn on_failed(&mut self, position: Position, out: &mut Effects<RaftMsg>) {
        if self.incoming.take_if(|incoming| incoming.meta.mark.position == position).is_some()
            && let Some(leader) = self.leader
        {
            let term = self.term;
            self.send(leader, Channel::Bulk, RaftMsg::ChunkReply { term, position, upto: 0 }, self.after_hard(), out);
        }
    }

    /// Forgets a snapshot half received.
    pub(super) fn drop_incoming(&mut self, out: &mut Effects<RaftMsg>) {
        if let Some(incoming) = self.incoming.take_if(|incoming| !incoming.installing) {
            out.push(Effect::Snapshot(SnapshotOp::Drop { position: incoming.meta.mark.position }));
        }
    }

    /// Installs a snapshot that is all here, once nothing is being applied.
    pub(super) fn drive_install(&mut self, out: &mut Effects<RaftMsg>) {
        let idle = self.applied == self.applying;
        let Some(incoming) = self.incoming.as_ref().filter(|i| i.is_complete() && !i.installing && idle) else {
            return;
        };
        let meta = incoming.meta.clone();
        if self.decline(self.leader, &meta.mark, out) {
            self.drop_incoming(out);
            return;
        }
        if self.role != Role::Follower {
            // A candidate was promised votes for the log it has.
            return;
        }
        if let Some(incoming) = self.incoming.as_mut() {
            incoming.installing = true;
        }
        self.apply_fetch = None;
        out.push(Effect::Snapshot(SnapshotOp::Install { meta }));
    }

    fn on_installed(&mut self, mark: SnapshotMark, out: &mut Effects<RaftMsg>) {
        let ours = |incoming: &mut Incoming| incoming.installing && incoming.meta.mark == mark;
        if self.incoming.take_if(ours).is_none() {
            return;
        }
        assert!(mark.position.index > self.commit, "R10: a snapshot at or below the commit was installed");
        self.rebase(&mark);
        if let Some(leader) = self.leader {
            self.confirm_to(leader, mark.position.index, out);
        }
    }

    /// The state machine now stands at `mark`, and the log starts after it.
    fn rebase(&mut self, mark: &SnapshotMark) {
        let position = mark.position;
        self.log.reset(position);
        self.io.reset(position.index);
        self.configs = super::hard_state::ConfigStack::new(mark.config_index, mark.config.clone());
        (self.commit, self.applying, self.applied) = (position.index, position.index, position.index);
        self.apply_ahead.clear();
        (self.apply_ahead_bytes, self.apply_fetch) = (0, None);
        assert!(self.batch.entries.is_empty(), "a step resets the log before it appends");
        self.batch.reset = Some(position);
        self.batch.truncate_from = None;
        self.batch.state = true;
    }

    pub(super) fn on_snapshot_event(&mut self, event: SnapshotEvent, out: &mut Effects<RaftMsg>) {
        match event {
            SnapshotEvent::Taken(meta) => {
                let ask_at = self.now.after(self.cfg.heartbeat);
                match (self.lead.as_mut(), meta) {
                    (Some(lead), meta) => {
                        lead.snapshots.taking = false;
                        lead.snapshots.ask_at = ask_at;
                        lead.snapshots.meta = meta;
                    }
                    (None, Some(meta)) => {
                        out.push(Effect::Snapshot(SnapshotOp::Drop { position: meta.mark.position }));
                    }
                    (None, None) => {}
                }
            }
            SnapshotEvent::Chunk { req, offset, data } => self.on_chunk_read(req, offset, data, out),
            SnapshotEvent::Written { position, upto } => self.on_written(position, upto, out),
            SnapshotEvent::Installed(mark) => self.on_installed(mark, out),
            SnapshotEvent::Failed { position } => self.on_failed(position, out),
        }
    }
}
