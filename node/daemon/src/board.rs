//! The board: what this node has carried out, and what it could not. Written by reconcile, read by the admin API and
//! `/readyz`; no decision is taken by it.
//!
//! It keeps the mark of what was carried out, not only that something was: a component whose new version is still compiling
//! is starting, however well the former one runs.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use trellis_manifest::Tech;
use trellis_placement::{Assigned, Beside, Direction, HeldComponent, HeldLink};
use trellis_provider::delivery::is_of_messages;
use trellis_wire::{ComponentKey, Generation, LinkId, frame};

use crate::artifacts::Artifacts;

/// How something that is assigned to this node is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Health {
    /// Not there yet.
    Starting,
    /// Does what it should.
    Ready,
    /// Tried and not done; it is tried again.
    Failed(String),
    /// Done, and what it needs is not there now, such as a broker.
    Unwell(String),
}

impl Health {
    /// `ready`, `starting` or `failed`.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            _ if self.is_ready() => "ready",
            Self::Failed(_) => "failed",
            Self::Starting | Self::Unwell(_) | Self::Ready => "starting",
        }
    }

    /// Whether it does its part, so that nobody waits for it. A link that pauses by itself or has parked keys does: what does
    /// not go well is its messages, and what is deployed next may be made for them.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Ready => true,
            Self::Unwell(why) => is_of_messages(why),
            Self::Starting | Self::Failed(_) => false,
        }
    }

    /// What is wrong, if anything is.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Failed(why) | Self::Unwell(why) => Some(why.clone()),
            Self::Starting | Self::Ready => None,
        }
    }
}

/// How many of the last changes of the board are known by name.
const NEWS_MAX: usize = 4_096;

/// Names what is held or applied in a few bytes: digest, permits, limits, config and all but the values of secrets, which
/// other nodes do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark([u8; 8]);

impl Mark {
    /// The same for the same content, on every node.
    pub(crate) fn of(held: &impl Serialize) -> Self {
        let digest = Artifacts::digest(&frame::encode(held));
        Self(digest.bytes()[..8].try_into().expect("a digest has 32 bytes"))
    }
}

/// What was carried out or failed, by what it is.
pub(crate) type Noted<K> = Vec<(K, Mark, Health)>;

/// The health of everything assigned to this node.
#[derive(Default)]
pub(crate) struct Board {
    sheet: Mutex<Sheet>,
    /// Something was noted: others hear of it with a heartbeat that does not wait for its turn.
    pub(crate) noted: Notify,
}

/// What is held, what is held beside it, and what is applied, with the technology at its other end.
pub(crate) struct All {
    /// With whether it is held beside the deployed version.
    pub(crate) components: Noted<(ComponentKey, bool)>,
    pub(crate) links: Noted<(LinkId, Option<Tech>)>,
}

#[derive(Default)]
struct Sheet {
    components: BTreeMap<ComponentKey, (Mark, Health)>,
    beside: BTreeMap<ComponentKey, (Mark, Health)>,
    links: BTreeMap<LinkId, (Mark, Option<Tech>, Health)>,
    /// Counts the changes of all.
    revision: u64,
    /// The names of what changed last, at most [`NEWS_MAX`], the newest last.
    news: VecDeque<u64>,
    /// The last generation that reconcile went through, whether all of it succeeded or not.
    passed: Option<Generation>,
}

impl Sheet {
    /// What is named so changes.
    fn note(&mut self, name: u64) {
        self.revision += 1;
        if self.news.len() == NEWS_MAX {
            self.news.pop_front();
        }
        self.news.push_back(name);
    }
}

impl Board {
    /// Notes what came of holding a component.
    pub(crate) fn component(&self, key: ComponentKey, held: &HeldComponent, done: Result<(), String>) {
        let mut sheet = self.lock();
        sheet.note(name_of_component(&key, false));
        sheet.components.insert(key, (Mark::of(held), health(done)));
    }

    /// Notes that a component is no longer held.
    pub(crate) fn component_gone(&self, key: &ComponentKey) {
        let mut sheet = self.lock();
        sheet.note(name_of_component(key, false));
        sheet.components.remove(key);
    }

    /// Notes what came of holding the other version of a roll-out.
    pub(crate) fn beside(&self, key: ComponentKey, beside: &Beside, done: Result<(), String>) {
        let mut sheet = self.lock();
        sheet.note(name_of_component(&key, true));
        sheet.beside.insert(key, (Mark::of(beside), health(done)));
    }

    /// Notes that it is no longer held.
    pub(crate) fn beside_gone(&self, key: &ComponentKey) {
        let mut sheet = self.lock();
        sheet.note(name_of_component(key, true));
        sheet.beside.remove(key);
    }

    /// Notes what came of applying a link.
    pub(crate) fn link(&self, held: &HeldLink, done: Result<(), String>) {
        let noted = (Mark::of(held), tech(held), health(done));
        let mut sheet = self.lock();
        sheet.note(name_of(&held.link.id));
        sheet.links.insert(held.link.id.clone(), noted);
    }

    /// Notes that a link is no longer applied.
    pub(crate) fn link_gone(&self, id: &LinkId) {
        let mut sheet = self.lock();
        sheet.note(name_of(id));
        sheet.links.remove(id);
    }

    /// Forgets what failed and is no longer asked for.
    pub(crate) fn keep(&self, assigned: &Assigned) {
        let mut sheet = self.lock();
        let is_gone = |key: &ComponentKey, (_, health): &mut (Mark, Health)| {
            is_failed(health) && assigned.component(key).is_none()
        };
        let gone = sheet.components.extract_if(.., is_gone);
        let mut names: Vec<u64> = gone.map(|(key, _)| name_of_component(&key, false)).collect();
        let is_gone =
            |key: &ComponentKey, (_, health): &mut (Mark, Health)| is_failed(health) && assigned.beside(key).is_none();
        let gone = sheet.beside.extract_if(.., is_gone);
        names.extend(gone.map(|(key, _)| name_of_component(&key, true)));
        let gone =
            sheet.links.extract_if(.., |id, (.., health)| is_failed(health) && assigned.exact_link(id).is_none());
        names.extend(gone.map(|(id, _)| name_of(&id)));
        names.into_iter().for_each(|name| sheet.note(name));
    }

    /// Notes what goes on as it was, where something else was tried in its place and is not wanted any more.
    pub(crate) fn goes_on(&self, running: &Assigned, assigned: &Assigned) {
        let mut sheet = self.lock();
        let mut names = Vec::new();
        // What failed is all that can be noted of something else.
        for (key, (mark, health)) in sheet.components.iter_mut().filter(|(_, (_, health))| is_failed(health)) {
            if let Some(held) = running.component(key).filter(|held| assigned.component(key) == Some(held)) {
                (*mark, *health) = (Mark::of(held), Health::Ready);
                names.push(name_of_component(key, false));
            }
        }
        for (id, (mark, _, health)) in sheet.links.iter_mut().filter(|(_, (.., health))| is_failed(health)) {
            if let Some(held) = running.exact_link(id).filter(|held| assigned.exact_link(id) == Some(held)) {
                (*mark, *health) = (Mark::of(&**held), Health::Ready);
                names.push(name_of(id));
            }
        }
        names.into_iter().for_each(|name| sheet.note(name));
    }

    /// Notes that reconcile went through a generation.
    pub(crate) fn passed(&self, generation: Generation) {
        self.lock().passed = Some(generation);
        self.noted.notify_one();
    }

    /// Whether reconcile has gone through the assignments once since the node started.
    pub(crate) fn has_passed(&self) -> bool {
        self.lock().passed.is_some()
    }

    /// How a component is that is to be held like this.
    pub(crate) fn of_component(&self, key: &ComponentKey, held: &HeldComponent) -> Health {
        match self.lock().components.get(key) {
            Some((mark, health)) if *mark == Mark::of(held) => health.clone(),
            _ => Health::Starting,
        }
    }

    /// How a link is that is to be applied like this.
    pub(crate) fn of_link(&self, held: &HeldLink) -> Health {
        match self.lock().links.get(&held.link.id) {
            Some((mark, _, health)) if *mark == Mark::of(held) => health.clone(),
            _ => Health::Starting,
        }
    }

    /// What answers a link on this node, ready for calls: the link, or the same with another config, which has just changed.
    pub(crate) fn answering(&self, id: &LinkId) -> Option<(LinkId, Tech)> {
        let sheet = self.lock();
        let exact = sheet.links.get_key_value(id);
        let from = sheet.links.range(id.link()..).take_while(|(other, _)| other.link() == id.link());
        exact.into_iter().chain(from).find_map(|(id, (_, tech, health))| match health {
            Health::Ready => Some((id.clone(), (*tech)?)),
            _ => None,
        })
    }

    /// The last generation that reconcile went through.
    pub(crate) fn generation(&self) -> Generation {
        self.lock().passed.unwrap_or_default()
    }

    /// Which revision of the next this is.
    pub(crate) fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Which revision this is, and the names of what changed since an earlier one, if that is known.
    pub(crate) fn news_since(&self, revision: u64) -> (u64, Option<Vec<u64>>) {
        let sheet = self.lock();
        let count = sheet.revision.checked_sub(revision).and_then(|count| usize::try_from(count).ok());
        let count = count.filter(|count| *count <= sheet.news.len());
        (sheet.revision, count.map(|count| sheet.news.iter().rev().take(count).copied().collect()))
    }

    /// Everything of such names, and how it is.
    pub(crate) fn all(&self, is_asked_for: impl Fn(u64) -> bool) -> All {
        let sheet = self.lock();
        let held = |is_beside: bool, all: &BTreeMap<ComponentKey, (Mark, Health)>| -> Noted<(ComponentKey, bool)> {
            let asked = all.iter().filter(|(key, _)| is_asked_for(name_of_component(key, is_beside)));
            asked.map(|(key, (mark, health))| ((key.clone(), is_beside), *mark, health.clone())).collect()
        };
        let links = sheet.links.iter().filter(|(id, _)| is_asked_for(name_of(id)));
        let links = links.map(|(id, (mark, tech, health))| ((id.clone(), *tech), *mark, health.clone()));
        let components = [held(false, &sheet.components), held(true, &sheet.beside)].concat();
        All { components, links: links.collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().expect("no code panics while it holds this lock")
    }
}

/// Names something on the board.
pub(crate) fn name_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Names a component, which may be held beside the deployed version.
pub(crate) fn name_of_component(key: &ComponentKey, is_beside: bool) -> u64 {
    name_of(&(key, is_beside))
}

/// What is at a link's other end on this node.
fn tech(held: &HeldLink) -> Option<Tech> {
    match held.direction {
        Direction::Wakes { tech, .. } | Direction::Grants { tech, .. } => Some(tech),
        Direction::GrantsElsewhere { .. } | Direction::Between { .. } => None,
    }
}

const fn is_failed(health: &Health) -> bool {
    matches!(health, Health::Failed(_))
}

fn health(done: Result<(), String>) -> Health {
    done.map_or_else(Health::Failed, |()| Health::Ready)
}

#[cfg(test)]
mod tests {
    use trellis_provider::delivery::PAUSED;

    use super::*;

    #[test]
    fn what_is_said_of_messages_makes_a_link_no_less_ready() {
        let unwell = |why: String| Health::Unwell(why);
        let of_messages =
            [format!("{PAUSED}: most messages failed"), "3 keys are parked behind a dead letter: ...".into()];
        assert!(of_messages.map(unwell).iter().all(|health| health.is_ready() && health.word() == "ready"));
        let away = unwell("not connected to nats://hub".into());
        assert!(!away.is_ready() && away.word() == "starting");
    }
}
