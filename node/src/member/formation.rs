//! Formation: how n blank members become one cluster, once, without a coordinator; and how a blank one finds out that
//! its cluster exists already. Pure: the shell saves identities, asks peers by address, and passes on what they say.
//!
//! ```text
//! gathering ── heard (name, disk) of all n ──► saves L = sorted (name, disk) ──► listed
//! listed    ── heard listed(L) of all n ──► saves formed ──► formed: may vote
//! listed    ── heard formed of one, its cluster is the hash of L ──► saves formed ──► formed
//! gathering ── heard formed of one whose members include this name ──► comes back by replacement
//! ```
//! 1. What is said was saved before: [`Formation::say`] tells of the durable identity only.
//! 2. Nothing said is taken back: a disk id never changes, L never changes once listed. Unequal lists stop the member.
//! 3. Nobody votes before everybody has saved the same L, so two halves of a list can never become two clusters.
//!
//! Source: this project's own (architecture, section 3); the idea is that of an n-of-n commit with cooperative
//! termination, where "all listed" is the decision and "formed" spreads it.

use std::collections::BTreeMap;

use triune_storage::{Identity, ListedMember};

/// What members tell each other before there is a cluster, and a formed one answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Say {
    /// Who speaks.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its disk id.
    #[prost(uint64, tag = "2")]
    pub disk: u64,
    /// Hash of the `--initial-cluster` it was started with.
    #[prost(uint64, tag = "3")]
    pub initial_cluster: u64,
    /// L, if it has saved one; of a formed member, the members of now.
    #[prost(message, repeated, tag = "4")]
    pub listed: Vec<ListedMember>,
    /// Whether it is formed.
    #[prost(bool, tag = "5")]
    pub formed: bool,
    /// Its cluster, if formed: the hash of the L it was formed from.
    #[prost(uint64, tag = "6")]
    pub cluster: u64,
}

/// Why a member must not go on. Each message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormationError {
    /// Start all members with the same list.
    #[error("member {peer} was started with another --initial-cluster: start all members with the same list")]
    ListsDiffer {
        /// Who.
        peer: String,
    },
    /// Some member lost its disk while the cluster was formed.
    #[error("member {peer} has listed other disks than this member: empty all data directories and start again")]
    Unequal {
        /// Who.
        peer: String,
    },
    /// The cluster does not know this member.
    #[error("the cluster of {peer} has no member named {name}: check --name and --initial-cluster")]
    NotAMember {
        /// Who said so.
        peer: String,
        /// This member's name.
        name: String,
    },
    /// Two processes run under this name.
    #[error("another process runs as {name} with disk {disk:x}: each member needs a name of its own")]
    SameName {
        /// The name.
        name: String,
        /// The other's disk.
        disk: u64,
    },
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Save this identity durably, then call [`Formation::saved`].
    Save(Identity),
    /// Formed: the member may start.
    Formed(Identity),
    /// The cluster exists and knows another disk under this name: ask it to take this one instead.
    ComeBack {
        /// The cluster.
        cluster: u64,
    },
    /// Go on asking; these have not said what is needed.
    Wait {
        /// Their names.
        missing: Vec<String>,
    },
}

/// The formation of one member.
#[derive(Clone, Debug)]
pub struct Formation {
    /// Invariant: durable.
    identity: Identity,
    /// Names of all members of the list, this one included.
    names: Vec<String>,
    /// What the others last said.
    heard: BTreeMap<String, Say>,
    /// Heard of a formed cluster that knows this name, before anything was listed here.
    come_back: Option<u64>,
    /// Heard of a cluster formed from the list saved here.
    adopted: bool,
}

impl Formation {
    /// Formation of the member with this durable identity, among the members of `names`, itself included.
    ///
    /// # Panics
    /// When the identity's name is not in `names`: the configuration is checked before.
    pub fn new(identity: Identity, names: impl IntoIterator<Item = String>) -> Self {
        let names: Vec<String> = names.into_iter().collect();
        assert!(names.contains(&identity.name), "a member forms a cluster it is listed in");
        assert!(identity.disk != 0, "a disk id is drawn before anything is said");
        Self { identity, names, heard: BTreeMap::new(), come_back: None, adopted: false }
    }

    /// What this member may say now.
    pub fn say(&self) -> Say {
        say(&self.identity)
    }

    /// Takes what a peer said.
    ///
    /// # Errors
    /// When this member must not go on.
    pub fn hear(&mut self, said: Say) -> Result<(), FormationError> {
        if said.name == self.identity.name {
            let same = said.disk == self.identity.disk;
            let (name, disk) = (said.name, said.disk);
            return if same { Ok(()) } else { Err(FormationError::SameName { name, disk }) };
        }
        if said.formed {
            return self.hear_formed(&said);
        }
        if !self.names.contains(&said.name) || said.initial_cluster != self.identity.initial_cluster {
            return Err(FormationError::ListsDiffer { peer: said.name });
        }
        if !self.identity.listed.is_empty() {
            let ours = self.identity.listed.iter().any(|m| m.name == said.name && m.disk == said.disk);
            let theirs = said.listed.is_empty() || said.listed == self.identity.listed;
            if !ours || !theirs {
                return Err(FormationError::Unequal { peer: said.name });
            }
        }
        self.heard.insert(said.name.clone(), said);
        Ok(())
    }

    fn hear_formed(&mut self, said: &Say) -> Result<(), FormationError> {
        if !self.identity.listed.is_empty() {
            if cluster_id(&self.identity.listed) != said.cluster {
                return Err(FormationError::Unequal { peer: said.name.clone() });
            }
            self.adopted = true;
            return Ok(());
        }
        // Nothing listed here, so no cluster was formed with this disk: a cluster needs `listed` of all.
        if said.listed.iter().any(|m| m.name == self.identity.name) {
            self.come_back = Some(said.cluster);
            return Ok(());
        }
        Err(FormationError::NotAMember { peer: said.name.clone(), name: self.identity.name.clone() })
    }

    /// What is to be done now.
    pub fn step(&self) -> Step {
        if self.identity.formed {
            return Step::Formed(self.identity.clone());
        }
        if self.adopted {
            return Step::Save(formed(&self.identity));
        }
        if let Some(cluster) = self.come_back {
            return Step::ComeBack { cluster };
        }
        let listing = self.identity.listed.is_empty();
        let lacks = |name: &&String| match self.heard.get(*name) {
            _ if **name == self.identity.name => false,
            Some(said) => !listing && said.listed != self.identity.listed,
            None => true,
        };
        let missing: Vec<String> = self.names.iter().filter(lacks).cloned().collect();
        if !missing.is_empty() {
            return Step::Wait { missing };
        }
        if listing {
            Step::Save(Identity { listed: self.list(), ..self.identity.clone() })
        } else {
            Step::Save(formed(&self.identity))
        }
    }

    /// The identity of the last [`Step::Save`] is durable.
    pub fn saved(&mut self, identity: Identity) {
        assert_eq!(identity.disk, self.identity.disk, "a disk id never changes");
        if !self.identity.listed.is_empty() {
            assert_eq!(identity.listed, self.identity.listed, "a list said is never taken back");
        }
        self.identity = identity;
    }

    /// L: everybody's (name, disk), sorted.
    fn list(&self) -> Vec<ListedMember> {
        let own = ListedMember { name: self.identity.name.clone(), disk: self.identity.disk };
        let others = self.heard.values().map(|said| ListedMember { name: said.name.clone(), disk: said.disk });
        let mut list: Vec<_> = others.chain([own]).collect();
        list.sort();
        list
    }
}

/// What a member with this identity says. A formed one says the members of now in place of `listed`.
pub fn say(identity: &Identity) -> Say {
    Say {
        name: identity.name.clone(),
        disk: identity.disk,
        initial_cluster: identity.initial_cluster,
        listed: identity.listed.clone(),
        formed: identity.formed,
        cluster: identity.cluster,
    }
}

/// The identity of a member whose cluster is formed from the list it saved.
fn formed(identity: &Identity) -> Identity {
    assert!(!identity.listed.is_empty(), "a cluster forms from a saved list");
    Identity { cluster: cluster_id(&identity.listed), formed: true, ..identity.clone() }
}

/// The cluster's id: a hash of L. Never 0.
pub fn cluster_id(listed: &[ListedMember]) -> u64 {
    let members = listed.iter().flat_map(|m| [m.name.as_bytes().to_vec(), m.disk.to_le_bytes().to_vec()]);
    stable_hash(members).max(1)
}

/// The hash of an `--initial-cluster`: sorted (name, address) pairs.
pub fn list_hash(list: &[(String, String)]) -> u64 {
    let mut list = list.to_vec();
    list.sort();
    stable_hash(list.into_iter().flat_map(|(name, addr)| [name.into_bytes(), addr.into_bytes()]))
}

/// FNV-1a over length-prefixed parts: stable for ever, and nobody's secret.
fn stable_hash(parts: impl IntoIterator<Item = Vec<u8>>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in (part.len() as u64).to_le_bytes().into_iter().chain(part) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// What one member asks another by address, before or beside any link.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Question {
    /// The question.
    #[prost(oneof = "Ask", tags = "1, 2")]
    pub ask: Option<Ask>,
}

/// The questions there are.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Ask {
    /// Formation: this is what I say, what do you?
    #[prost(message, tag = "1")]
    Formation(Say),
    /// Take this disk in place of the one the cluster knows under this name.
    #[prost(message, tag = "2")]
    Replace(Replace),
}

/// A blank disk that wants to come back.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Replace {
    /// The member's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its new disk id.
    #[prost(uint64, tag = "2")]
    pub disk: u64,
    /// Where peers reach it.
    #[prost(string, tag = "3")]
    pub peer_addr: String,
    /// The cluster it was told of.
    #[prost(uint64, tag = "4")]
    pub cluster: u64,
}

/// The answer to a [`Question`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Answer {
    /// The answer.
    #[prost(oneof = "Told", tags = "1, 2, 3")]
    pub told: Option<Told>,
}

/// The answers there are.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Told {
    /// To [`Ask::Formation`].
    #[prost(message, tag = "1")]
    Formation(Say),
    /// To [`Ask::Replace`]: it is logged; these are the members to reach.
    #[prost(message, tag = "2")]
    Members(Members),
    /// Not now, and why; ask again, or somebody else.
    #[prost(string, tag = "3")]
    Refused(String),
}

/// The members of a cluster.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Members {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<super::system::MemberRecord>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["m0", "m1", "m2"];

    fn blank(name: &str, disk: u64) -> Identity {
        Identity { initial_cluster: 7, ..Identity::blank(name, disk) }
    }

    fn formation(identity: Identity) -> Formation {
        Formation::new(identity, NAMES.map(str::to_owned))
    }

    fn three() -> Vec<Formation> {
        NAMES.iter().zip(11..).map(|(name, disk)| formation(blank(name, disk))).collect()
    }

    /// Saves what is to be saved; tells whether it did.
    fn save(f: &mut Formation) -> bool {
        match f.step() {
            Step::Save(identity) => {
                f.saved(identity);
                true
            }
            _ => false,
        }
    }

    fn tell(members: &mut [Formation], from: usize, to: usize) -> Result<(), FormationError> {
        let said = members[from].say();
        members[to].hear(said)
    }

    fn is_formed(f: &Formation) -> bool {
        matches!(f.step(), Step::Formed(_))
    }

    #[test]
    fn three_blank_members_form_one_cluster_in_any_order_of_words_and_crashes() {
        // Every word may be lost, and a member may restart from its durable identity at any point.
        for seed in 1..=500_u64 {
            let mut members = three();
            let mut random = seed;
            let mut draw = |below: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % below
            };
            for _ in 0..400 {
                let (from, to) = (draw(3) as usize, draw(3) as usize);
                match draw(4) {
                    0 | 1 if from != to => tell(&mut members, from, to).unwrap(),
                    2 => {
                        save(&mut members[to]);
                    }
                    3 if draw(4) == 0 => members[to] = formation(members[to].identity.clone()),
                    _ => {}
                }
                let lists: Vec<_> = members.iter().filter(|m| !m.identity.listed.is_empty()).collect();
                assert!(lists.windows(2).all(|w| w[0].identity.listed == w[1].identity.listed), "seed {seed}");
                if members.iter().any(is_formed) {
                    assert!(
                        members.iter().all(|m| !m.identity.listed.is_empty()),
                        "seed {seed}: formed before all listed"
                    );
                }
            }
            assert!(members.iter().all(is_formed), "seed {seed}: not formed after 400 steps");
            assert!(members.iter().all(|m| m.identity.cluster == members[0].identity.cluster));
        }
    }

    #[test]
    fn nobody_lists_before_everybody_was_heard() {
        let mut members = three();
        tell(&mut members, 1, 0).unwrap();
        assert_eq!(members[0].step(), Step::Wait { missing: vec!["m2".to_owned()] });
    }

    #[test]
    fn a_member_that_lost_its_disk_while_the_cluster_forms_stops_the_others() {
        let mut members = three();
        for (from, to) in [(1, 0), (2, 0)] {
            tell(&mut members, from, to).unwrap();
        }
        assert!(save(&mut members[0]), "m0 has listed");
        let reborn = formation(blank("m1", 99)).say();
        assert_eq!(members[0].hear(reborn), Err(FormationError::Unequal { peer: "m1".to_owned() }));
    }

    #[test]
    fn a_blank_member_of_a_known_cluster_comes_back_by_replacement() {
        let mut members = three();
        for _ in 0..3 {
            for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
                tell(&mut members, from, to).unwrap();
            }
            members.iter_mut().for_each(|m| {
                save(m);
            });
        }
        assert!(members.iter().all(is_formed));
        let cluster = members[0].identity.cluster;
        let mut wiped = formation(blank("m2", 77));
        wiped.hear(members[0].say()).unwrap();
        assert_eq!(wiped.step(), Step::ComeBack { cluster });
    }

    #[test]
    fn a_member_with_another_list_or_name_is_told_so() {
        let mut members = three();
        let other = formation(Identity { initial_cluster: 8, ..Identity::blank("m1", 12) }).say();
        assert_eq!(members[0].hear(other), Err(FormationError::ListsDiffer { peer: "m1".to_owned() }));
        let twin = formation(blank("m0", 50)).say();
        assert_eq!(members[0].hear(twin), Err(FormationError::SameName { name: "m0".to_owned(), disk: 50 }));
    }

    #[test]
    fn a_list_of_one_forms_alone() {
        let mut alone = Formation::new(blank("m0", 5), ["m0".to_owned()]);
        assert!(save(&mut alone) && save(&mut alone) && is_formed(&alone));
    }
}
