//! Talking to other members by address: forming a cluster, coming back to one, and answering those who do.
//!
//! What is said and when it is safe is decided by `member::formation`; this asks, saves, and passes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use triune_storage::{Disk, Identity, ListedMember};
use triune_transport::tcp::{Hello, TcpTransport, exchange};
use triune_transport::{ClusterId, NodeId};

use crate::config::Resolved;
use crate::doors::Bridge;
use crate::member::api::{Call, Reply};
use crate::member::formation::{Answer, Ask, Formation, Members, Question, Replace, Say, Step, Told, say};
use crate::member::system::MemberRecord;

use super::home::initial_list;
use super::life::End;

/// How often a peer that has not said what is needed is asked.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long one question may take.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// How often a wait is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Words of others that may wait to be heard; one more is dropped, and said again soon.
const HEARD_MAX: usize = 64;

/// What this member answers to those who ask by address.
#[derive(Debug)]
pub(super) struct Host {
    say: Mutex<Say>,
    /// The members of now, once known.
    members: Mutex<Vec<MemberRecord>>,
    heard: mpsc::Sender<Say>,
    bridge: Arc<Bridge>,
}

impl Host {
    /// A host of this identity, and what others say to it.
    pub(super) fn new(identity: &Identity, bridge: Arc<Bridge>) -> (Arc<Self>, mpsc::Receiver<Say>) {
        let (heard, words) = mpsc::channel(HEARD_MAX);
        let host = Self { say: Mutex::new(say(identity)), members: Mutex::default(), heard, bridge };
        (Arc::new(host), words)
    }

    /// This identity is durable.
    pub(super) fn says(&self, identity: &Identity) {
        *self.say.lock() = say(identity);
    }

    /// These are the members of now.
    pub(super) fn knows(&self, members: &[MemberRecord]) {
        *self.members.lock() = members.to_vec();
    }

    /// Answers until the transport is shut down. A question at a time that needs the member, any number of others.
    pub(super) async fn serve(self: Arc<Self>, transport: Arc<TcpTransport>) {
        let mut answers = JoinSet::new();
        while let Some(asked) = transport.recv_exchange().await {
            while answers.try_join_next().is_some() {}
            let host = Arc::clone(&self);
            answers.spawn(async move {
                let Ok(question) = Question::decode(asked.hello.payload.clone()) else {
                    tracing::warn!(from = %asked.from, "a question by address makes no sense");
                    return;
                };
                let told = host.answer(question.ask).await;
                asked.reply(Bytes::from(Answer { told: Some(told) }.encode_to_vec()));
            });
        }
    }

    async fn answer(&self, ask: Option<Ask>) -> Told {
        match ask {
            Some(Ask::Formation(said)) => self.answer_formation(said),
            Some(Ask::Replace(wish)) => self.answer_replace(wish).await,
            None => Told::Refused("this version does not know the question".to_owned()),
        }
    }

    fn answer_formation(&self, said: Say) -> Told {
        let mut say = self.say.lock().clone();
        if say.formed {
            let members = self.members.lock();
            if !members.is_empty() {
                say.listed = members.iter().map(|m| ListedMember { name: m.name.clone(), disk: m.disk }).collect();
                say.listed.sort();
            }
            if say.listed.is_empty() {
                return Told::Refused("this member has just come back and does not know the others yet".to_owned());
            }
        } else {
            let _full = self.heard.try_send(said);
        }
        Told::Formation(say)
    }

    async fn answer_replace(&self, wish: Replace) -> Told {
        let (formed, cluster) = {
            let say = self.say.lock();
            (say.formed, say.cluster)
        };
        if !formed || cluster != wish.cluster {
            return Told::Refused(format!("this member is not of cluster {:x}", wish.cluster));
        }
        let call = Call::Replace { name: wish.name, disk: NodeId(wish.disk), peer_addr: wish.peer_addr };
        match self.bridge.call(call, Some(ASK_WITHIN.into()), false).await {
            Ok((_, Reply::MemberList(members))) => Told::Members(Members { members }),
            Ok(_) => Told::Refused("the member answered another question".to_owned()),
            Err(error) => Told::Refused(error.refusal.to_string()),
        }
    }
}

/// One member's side of talking by address.
pub(super) struct Meeting<'a> {
    pub(super) config: &'a Resolved,
    pub(super) disk: &'a Arc<dyn Disk>,
    pub(super) host: &'a Host,
    pub(super) stop: watch::Receiver<bool>,
}

/// A member that may vote, or learns to.
pub(super) struct Formed {
    pub(super) identity: Identity,
    /// The members, if it came back; else they are listed in the identity.
    pub(super) members: Vec<MemberRecord>,
}

impl Meeting<'_> {
    /// Forms the cluster, or comes back to it.
    pub(super) async fn form(&self, mut identity: Identity, heard: &mut mpsc::Receiver<Say>) -> Result<Formed, End> {
        let names = self.config.node.initial_cluster.iter().map(|member| member.name.clone());
        let returns = identity.replaces != 0;
        if returns && self.peers().is_empty() {
            return Err(End::refused(format!(
                "the data of this directory was set aside: name the other members by --initial-cluster, so that {} can \
                 come back",
                identity.name
            )));
        }
        let mut formation = Formation::new(identity.clone(), names);
        let mut asked = JoinSet::new();
        let mut in_flight = BTreeSet::new();
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged = Instant::now();
        let mut stop = self.stop.clone();
        loop {
            match formation.step() {
                // A member of a formed cluster must not form another one.
                Step::Save(next) if returns && !next.formed => {}
                Step::Save(next) => {
                    next.save(&**self.disk).map_err(|error| End::Poisoned(error.to_string()))?;
                    formation.saved(next.clone());
                    self.host.says(&next);
                    identity = next;
                    continue;
                }
                Step::Formed(identity) => {
                    tracing::info!(cluster = %ClusterId(identity.cluster), "cluster formed");
                    return Ok(Formed { identity, members: Vec::new() });
                }
                Step::ComeBack { cluster } => return self.come_back(identity, cluster).await,
                Step::Wait { missing } if logged.elapsed() >= LOG_EVERY => {
                    logged = Instant::now();
                    tracing::info!(missing = missing.join(", "), "waiting for members, to form the cluster");
                }
                Step::Wait { .. } => {}
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return Err(End::Stopped),
                Some(said) = heard.recv() => {
                    // Whoever asks may be wrong; what stops this member is the answer to its own question.
                    if let Err(error) = formation.hear(said) {
                        tracing::warn!(%error, "another member is at odds with this one");
                    }
                }
                Some(answer) = asked.join_next(), if !asked.is_empty() => {
                    let Ok((name, told)) = answer else { continue };
                    in_flight.remove(&name);
                    if let Ok(Told::Formation(said)) = told {
                        formation.hear(said).map_err(|error| End::Refused(error.into()))?;
                    }
                }
                _ = ticks.tick() => {
                    for (name, addr) in self.peers() {
                        if in_flight.insert(name.clone()) {
                            let hello = self.hello(&identity, Ask::Formation(formation.say()));
                            asked.spawn(async move { (name, ask(&addr, &hello).await) });
                        }
                    }
                }
            }
        }
    }

    /// Asks until some member has logged that this disk takes the place of the lost one.
    pub(super) async fn come_back(&self, identity: Identity, cluster: u64) -> Result<Formed, End> {
        tracing::warn!(cluster = %ClusterId(cluster), disk = %NodeId(identity.disk), "coming back with a new disk id");
        let mut logged = None::<Instant>;
        let mut stop = self.stop.clone();
        let mut ticks = interval(ASK_EVERY * 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for (name, addr) in self.peers() {
                let wish = Replace {
                    name: identity.name.clone(),
                    disk: identity.disk,
                    peer_addr: self.config.peer.advertise.to_string(),
                    cluster,
                };
                let hello = self.hello(&identity, Ask::Replace(wish));
                let answer = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return Err(End::Stopped),
                    answer = ask(&addr, &hello) => answer,
                };
                let why = match answer {
                    Ok(Told::Members(Members { members })) => {
                        let identity = Identity { cluster, formed: true, ..identity };
                        identity.save(&**self.disk).map_err(|error| End::Poisoned(error.to_string()))?;
                        self.host.says(&identity);
                        self.host.knows(&members);
                        return Ok(Formed { identity, members });
                    }
                    Ok(Told::Refused(why)) => why,
                    Ok(Told::Formation(_)) => "it answers another question".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                    logged = Some(Instant::now());
                    tracing::info!(member = name, why, "not taken back yet, asking again");
                }
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return Err(End::Stopped),
                _ = ticks.tick() => {}
            }
        }
    }

    /// The other members of the list.
    fn peers(&self) -> Vec<(String, String)> {
        let own = &self.config.node.name;
        initial_list(self.config).into_iter().filter(|(name, _)| name != own).collect()
    }

    fn hello(&self, identity: &Identity, ask: Ask) -> Hello {
        Hello {
            node: NodeId(identity.disk),
            name: identity.name.clone(),
            peer_addr: self.config.peer.advertise.to_string(),
            payload: Bytes::from(Question { ask: Some(ask) }.encode_to_vec()),
            ..Hello::default()
        }
    }
}

async fn ask(addr: &str, hello: &Hello) -> anyhow::Result<Told> {
    let answer = exchange(addr, hello, ASK_WITHIN + ASK_WITHIN / 2).await?;
    let told = Answer::decode(answer.payload)?.told;
    told.ok_or_else(|| anyhow::anyhow!("the answer says nothing this version knows"))
}
