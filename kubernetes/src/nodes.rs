//! Which nodes go by what: how many have activated a `Cell`, and which have not.
//!
//! Flows in: what this node has activated, and the leases in which other nodes' agents say the same. Flows out: for an object how many
//! nodes go by it. No I/O and no clock; `nodes::report` and `nodes::hear` have both.
//!
//! A node says one digest, of all objects of Cardinal's own kinds that it goes by. Agents see the same objects change in the same
//! order, so that a node whose digest is one that was ours goes by what we went by then. A digest that was never ours tells nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use sha2::{Digest as _, Sha256};

use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::store::Objects;
use crate::uid::Uid;

mod hear;
mod report;

pub(crate) use hear::hear;
pub(crate) use report::report;

/// States that nodes may be behind by.
const REMEMBERED: usize = 256;
/// A node that was not heard of for so long is not counted: agents renew what they say every [`report::RENEWAL`].
const FORGOTTEN: Duration = Duration::from_secs(300);
/// How long is waited for all nodes before it is said that some are behind: there is one write to make then, not two.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Names of nodes that are behind.
const NAMED: usize = 3;

/// The kinds of which is said which nodes go by them.
const KINDS: [Kind; 3] = [Kind::Cell, Kind::Platform, Kind::RoutingTable];

/// Whether nodes are counted for an object of this kind.
pub(crate) fn counted(kind: Kind) -> bool {
    KINDS.contains(&kind)
}

/// The state of all objects of [`KINDS`], in few letters: their identities and generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest(Arc<str>);

impl Digest {
    fn of(objects: &Objects) -> Self {
        let mut digest = Sha256::new();
        for kind in KINDS {
            for (id, object) in own(objects, kind) {
                let uid = object.uid.to_string();
                for part in [kind.name(), &id.namespace, &id.name, &uid] {
                    digest.update(part);
                    digest.update([0]);
                }
                digest.update(object.generation.to_be_bytes());
            }
        }
        let letters = digest.finalize();
        // Half of it is far more than enough to tell states apart.
        let letters = letters[..16].iter().map(|byte| format!("{byte:02x}"));
        Self(letters.collect::<String>().into())
    }
}

/// Objects of a kind.
fn own(objects: &Objects, kind: Kind) -> impl Iterator<Item = (&ObjectId, &Arc<Object>)> {
    let first = ObjectId {
        kind,
        namespace: "".into(),
        name: "".into(),
    };
    let rest = objects.range(first..);
    rest.take_while(move |(id, _)| id.kind == kind)
}

/// Counts states of this node.
type Step = u64;

/// An object as this node goes by it.
#[derive(Clone, Debug)]
struct Activated {
    uid: Uid,
    generation: i64,
    /// Since which state, and when that began.
    step: Step,
    at: Instant,
}

/// Another node.
#[derive(Clone, Debug)]
struct Node {
    /// The last of our states that it said to go by.
    step: Option<Step>,
    /// What it said last, and when that was heard.
    digest: Digest,
    renewed: Option<MicroTime>,
    heard: Instant,
}

/// How many nodes go by an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spread {
    /// Nodes that do.
    pub(crate) activated: usize,
    /// All that are known.
    pub(crate) known: usize,
    /// Some of those that do not.
    pub(crate) behind: Vec<Arc<str>>,
}

impl Spread {
    /// Who is missing, in words; none if nobody is.
    pub(crate) fn missing(&self) -> Option<String> {
        let count = self.known - self.activated;
        let names = self.behind.join(", ");
        match count {
            0 => None,
            1 => Some(format!("{names} has not activated it yet")),
            _ if count > self.behind.len() => Some(format!(
                "{count} nodes have not activated it yet, among them {names}"
            )),
            _ => Some(format!("{names} have not activated it yet")),
        }
    }
}

/// What is to be said of the nodes that go by an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This.
    Known(Spread),
    /// It is soon known.
    Soon,
}

/// What is known of the nodes.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    /// What this node goes by, and what it said of it.
    objects: Objects,
    activated: OrdMap<ObjectId, Activated>,
    digest: Digest,
    step: Step,
    /// States before, the oldest first.
    before: VecDeque<(Digest, Step)>,
    others: BTreeMap<Arc<str>, Node>,
    /// Others were listed, or cannot be.
    complete: bool,
    /// Differs when something else may be to be said of objects of which all was said.
    turn: u64,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let objects = Objects::new();
        Self {
            digest: Digest::of(&objects),
            objects,
            activated: OrdMap::new(),
            step: 0,
            before: VecDeque::new(),
            others: BTreeMap::new(),
            complete: false,
            turn: 0,
        }
    }

    /// What this node goes by.
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Differs when something else may be to be said of objects that no node is behind with.
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }

    /// This node goes by these objects now; whether its digest is another one.
    pub(crate) fn activate(&mut self, objects: &Objects, now: Instant) -> bool {
        let differing = self.objects.diff(objects).map(|change| match change {
            DiffItem::Add(id, _)
            | DiffItem::Update { new: (id, _), .. }
            | DiffItem::Remove(id, _) => id,
        });
        let ids: Vec<ObjectId> = differing.filter(|id| counted(id.kind)).cloned().collect();
        self.objects = objects.clone();
        let step = self.step + 1;
        let mut changed = false;
        for id in ids {
            match objects.get(&id) {
                Some(object) if self.holds(object).is_some() => {}
                Some(object) => {
                    let activated = Activated {
                        uid: object.uid.clone(),
                        generation: object.generation,
                        step,
                        at: now,
                    };
                    self.activated.insert(id, activated);
                    changed = true;
                }
                None => changed |= self.activated.remove(&id).is_some(),
            }
        }
        if changed {
            let digest = std::mem::replace(&mut self.digest, Digest::of(objects));
            self.before.push_back((digest, self.step));
            if self.before.len() > REMEMBERED {
                self.before.pop_front();
            }
            self.step = step;
            for name in self.others.keys().cloned().collect::<Vec<_>>() {
                self.place(&name);
            }
        }
        changed
    }

    fn holds(&self, object: &Object) -> Option<&Activated> {
        let activated = self.activated.get(&object.id)?;
        let same = activated.uid == object.uid && activated.generation == object.generation;
        same.then_some(activated)
    }

    /// Which of our states a digest was.
    fn step_of(&self, digest: &Digest) -> Option<Step> {
        if self.digest == *digest {
            return Some(self.step);
        }
        let mut before = self.before.iter().rev();
        before
            .find(|(known, _)| known == digest)
            .map(|(_, step)| *step)
    }

    /// Finds the state that a node goes by. One that is not known (yet) leaves what was.
    fn place(&mut self, name: &str) {
        let Some(digest) = self.others.get(name).map(|node| node.digest.clone()) else {
            return;
        };
        let Some(step) = self.step_of(&digest) else {
            return;
        };
        if let Some(node) = self.others.get_mut(name) {
            // It went back, as an agent does that starts with what was on its disk.
            if node.step.is_some_and(|before| before > step) {
                self.turn += 1;
            }
            node.step = Some(step);
        }
    }

    /// A node's agent says what it goes by; whether that is something else than before. `renewed` is its own time: it tells only
    /// what is said anew.
    pub(crate) fn heard(
        &mut self,
        name: &str,
        digest: &str,
        renewed: Option<MicroTime>,
        now: Instant,
    ) -> bool {
        let digest = Digest(digest.into());
        match self.others.get_mut(name) {
            Some(node) if node.digest == digest => {
                if node.renewed != renewed {
                    (node.renewed, node.heard) = (renewed, now);
                }
                return false;
            }
            Some(node) => (node.digest, node.renewed, node.heard) = (digest, renewed, now),
            None => {
                let node = Node {
                    step: None,
                    digest,
                    renewed,
                    heard: now,
                };
                self.others.insert(name.into(), node);
                self.turn += 1;
            }
        }
        self.place(name);
        true
    }

    /// A node is no more.
    pub(crate) fn gone(&mut self, name: &str) {
        if self.others.remove(name).is_some() {
            self.turn += 1;
        }
    }

    /// Only these other nodes are left.
    pub(crate) fn listed(&mut self, names: &[Arc<str>]) {
        let before = self.others.len();
        self.others.retain(|name, _| names.contains(name));
        if before != self.others.len() || !self.complete {
            self.turn += 1;
        }
        self.complete = true;
    }

    /// Other nodes cannot be heard: what is known of them goes on.
    pub(crate) fn deaf(&mut self) {
        if !self.complete {
            self.turn += 1;
        }
        self.complete = true;
    }

    /// Nobody listens to other nodes any more.
    pub(crate) fn forget(&mut self) {
        self.others.clear();
        self.complete = false;
    }

    /// Drops nodes that are silent for [`FORGOTTEN`]; whether there were any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.others.len();
        self.others
            .retain(|_, node| now.saturating_duration_since(node.heard) < FORGOTTEN);
        let dropped = self.others.len() != before;
        self.turn += u64::from(dropped);
        dropped
    }

    /// Which nodes go by an object as it is.
    pub(crate) fn of(&self, object: &Object, now: Instant) -> Answer {
        let Some(activated) = self.holds(object).filter(|_| self.complete) else {
            return Answer::Soon;
        };
        let behind = self.others.iter();
        let behind = behind.filter(|(_, node)| node.step.is_none_or(|step| step < activated.step));
        let behind: Vec<&Arc<str>> = behind.map(|(name, _)| name).collect();
        if !behind.is_empty() && now.saturating_duration_since(activated.at) < PATIENCE {
            return Answer::Soon;
        }
        let known = self.others.len() + 1;
        Answer::Known(Spread {
            activated: known - behind.len(),
            known,
            behind: behind.into_iter().take(NAMED).cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests;
