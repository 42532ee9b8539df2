//! Triggers: the links by which queues wake components, on this node and on others. Any node answers what is asked of any
//! of them: it asks those that run them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use trellis_manifest::Tech;
use trellis_placement::{Direction, HeldLink, Life, Release};
use trellis_provider::Histogram;
use trellis_provider::delivery::{DeadLetter, Fate, OUTCOMES, Standing, Trigger};
use trellis_wire::{AppName, CallError, ComponentKey, ComponentName, LinkId, Message, NodeId};

use crate::api::types::DEAD_LETTERS_MAX;
use crate::dispatch::Dispatch;
use crate::far::WHOLE_BYTES_MAX;
use crate::liveness::Liveness;
use crate::providers::Providers;
use crate::shares::Shares;

/// Dead letters in one answer of a node.
const PAGE: usize = 100;
/// How long all other nodes together may take that are asked for dead letters: less than a client waits.
const ROUND_WAIT: Duration = Duration::from_secs(10);
/// How long a broker may take to say how its queue stands.
const STANDING_WAIT: Duration = Duration::from_secs(2);

/// The triggers of this node, and the way to those of others.
#[derive(Clone)]
pub(crate) struct Triggers {
    pub(crate) me: NodeId,
    pub(crate) providers: Providers,
    pub(crate) shares: Arc<Shares>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) dispatch: Arc<Dispatch>,
}

/// What one node asks another. Append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// How its triggers are: `Vec<View>`.
    Views,
    /// Dead letters of a link after the one of this id, a page of them: `Vec<DeadLetter>`.
    Letters(LinkId, Option<String>),
    /// Decides on one: `Option<DeadLetter>`.
    Decide(LinkId, String, Fate),
    /// A person says that the triggers of this component go on, though they paused by themselves: `usize`, those that had.
    Resume(ComponentKey),
}

/// How a trigger is on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) link: LinkId,
    pub(crate) component: ComponentKey,
    /// What it pulls from, such as `nats`.
    pub(crate) system: String,
    pub(crate) held: u64,
    pub(crate) in_flight: u64,
    pub(crate) attempts: u64,
    /// In the order of [`OUTCOMES`].
    pub(crate) outcomes: [u64; OUTCOMES.len()],
    pub(crate) permit_wait: Times,
    pub(crate) in_queue: Times,
    pub(crate) run: Times,
    /// Since when it pauses by itself, in milliseconds since 1970.
    pub(crate) paused_since_ms: Option<u64>,
    /// As the broker says it: [`View::stands`] is for people.
    pub(crate) standing: Result<Stands, String>,
    pub(crate) problem: Option<String>,
}

/// Durations, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) sum_us: u64,
}

/// How a queue stands, as it travels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stands {
    pub(crate) waiting: u64,
    pub(crate) claimed: u64,
    pub(crate) oldest_age_ms: Option<u64>,
    pub(crate) dead: Option<u64>,
}

/// Where the dead letters of a link are.
struct Place {
    link: LinkId,
    /// The nodes to ask.
    nodes: BTreeSet<NodeId>,
    /// Each of them has its own; else each sees all.
    apart: bool,
}

/// What was found of an app's dead letters.
#[derive(Debug)]
pub(crate) struct Letters {
    pub(crate) found: Vec<Found>,
    /// What is missing: who did not say what it has, and why.
    pub(crate) problems: Vec<String>,
}

/// A dead letter that was found on some node.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) letter: DeadLetter,
    /// Its id among all those of the app.
    pub(crate) id: String,
}

impl From<&Histogram> for Times {
    fn from(histogram: &Histogram) -> Self {
        let read = histogram.read();
        Self { count: read.count, sum_us: u64::try_from(read.sum.as_micros()).unwrap_or(u64::MAX) }
    }
}

impl Stands {
    /// The same where a broker counts what waits for its next attempt as given out: what nodes hold, so many messages, is
    /// given out, and all else waits.
    pub(crate) fn held_apart(self, held: u64) -> Self {
        let claimed = self.claimed.min(held);
        Self { waiting: self.waiting + self.claimed - claimed, claimed, ..self }
    }
}

impl View {
    /// How its queue stands, if that is known, where nodes hold so many of its messages.
    pub(crate) fn stands(&self, held: u64) -> Option<Stands> {
        let stands = *self.standing.as_ref().ok()?;
        // A message that JetStream is told to give out later is unacknowledged until then, like one that is worked on.
        Some(if self.system == Tech::Nats.as_str() { stands.held_apart(held) } else { stands })
    }
}

impl From<Standing> for Stands {
    fn from(standing: Standing) -> Self {
        let Standing { waiting, claimed, oldest_age, dead } = standing;
        let oldest_age_ms = oldest_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Self { waiting, claimed, oldest_age_ms, dead }
    }
}

/// This node's own.
impl Triggers {
    /// Each of this node, with its link.
    pub(crate) fn here(&self) -> Vec<(Arc<HeldLink>, Arc<dyn Trigger>)> {
        let share = self.shares.of(self.me);
        let running = |held: &Arc<HeldLink>| Some((held.clone(), self.trigger(held)?));
        share.links().filter_map(running).collect()
    }

    fn trigger(&self, held: &HeldLink) -> Option<Arc<dyn Trigger>> {
        let Direction::Wakes { tech, .. } = held.direction else { return None };
        self.providers.of(tech).trigger(&held.link.id)
    }

    /// The trigger of a link, if it pulls from a queue here: a core subject has none without a policy.
    fn of(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        self.shares.of(self.me).exact_link(link).and_then(|held| self.trigger(held))
    }

    pub(crate) async fn views(&self) -> Vec<View> {
        let here = self.here();
        let views = here.iter().map(async |(held, trigger)| {
            // A connection may be away though what is stored of its messages is handled.
            let health = tech(held).map_or(Ok(()), |tech| self.providers.of(tech).health(&held.link.id));
            view(held, &**trigger, health).await
        });
        futures::future::join_all(views).await
    }

    async fn letters(&self, link: &LinkId, after: Option<&str>) -> Result<Vec<DeadLetter>, String> {
        let Some(trigger) = self.of(link) else { return Ok(Vec::new()) };
        let mut letters = trigger.letters(after, PAGE).await?;
        let mut bytes = 0;
        // What does not fit the answer comes with the next page, but the first always does.
        letters.retain(|letter| {
            let fits = bytes == 0 || bytes + size(letter) <= WHOLE_BYTES_MAX / 2;
            bytes += size(letter);
            fits
        });
        Ok(letters)
    }

    fn resume(&self, component: &ComponentKey) -> usize {
        let here = self.here();
        let own = here.iter().filter(|(held, _)| held.link.component == *component);
        own.filter(|(_, trigger)| trigger.progress().resume()).count()
    }

    /// The answer to another node, in postcard.
    pub(crate) async fn answer(&self, question: Question) -> Vec<u8> {
        match question {
            Question::Views => written(&Ok(self.views().await)),
            Question::Letters(link, after) => written(&self.letters(&link, after.as_deref()).await),
            Question::Decide(link, id, fate) => written(&match self.of(&link) {
                Some(trigger) => trigger.decide(&id, fate).await,
                None => Ok(None),
            }),
            Question::Resume(component) => written(&Ok(self.resume(&component))),
        }
    }
}

fn written<T: Serialize>(answer: &Result<T, String>) -> Vec<u8> {
    postcard::to_stdvec(answer).expect("plain data can be written")
}

fn size(letter: &DeadLetter) -> usize {
    letter.message.body.len() + letter.faults.iter().map(String::len).sum::<usize>() + 4_096
}

async fn view(held: &HeldLink, trigger: &dyn Trigger, health: Result<(), String>) -> View {
    let standing = match tokio::time::timeout(STANDING_WAIT, trigger.standing()).await {
        Ok(standing) => standing.map(Stands::from),
        Err(_) => Err(format!("the broker did not answer within {STANDING_WAIT:?}")),
    };
    let (progress, tech) = (trigger.progress(), tech(held));
    let counts = progress.counts();
    View {
        link: held.link.id.clone(),
        component: held.link.component.clone(),
        system: tech.map(Tech::as_str).unwrap_or_default().into(),
        held: trigger.held() as u64,
        in_flight: counts.in_flight.load(Relaxed),
        attempts: counts.attempts.load(Relaxed),
        outcomes: counts.outcomes(),
        permit_wait: (&counts.permit_wait).into(),
        in_queue: (&counts.in_queue).into(),
        run: (&counts.run).into(),
        paused_since_ms: progress.paused_since_ms(),
        problem: progress.health().err().or(health.err()).or_else(|| standing.as_ref().err().cloned()),
        standing,
    }
}

/// Whether each node that pulls by a link has a queue of its own.
pub(crate) fn is_each_nodes_own(held: &HeldLink) -> bool {
    tech(held).is_some_and(|tech| tech.is_each_nodes_own(&held.link.config, &held.link.delivery))
}

const fn tech(held: &HeldLink) -> Option<Tech> {
    match held.direction {
        Direction::Wakes { tech, .. } => Some(tech),
        _ => None,
    }
}

/// Those of the whole lattice.
impl Triggers {
    /// Asks one node, which may be this one.
    async fn ask<T: DeserializeOwned>(&self, node: NodeId, question: &Question) -> Result<T, String> {
        self.hear(node, question).await?
    }

    /// What one node says, which may be this one. The outer error: it says nothing.
    async fn hear<T: DeserializeOwned>(&self, node: NodeId, question: &Question) -> Result<Result<T, String>, String> {
        let answer = match node == self.me {
            true => self.answer(question.clone()).await.into(),
            false => self.dispatch.elsewhere().ask(node, question).await?,
        };
        postcard::from_bytes(&answer).map_err(|why| format!("node {node} answers in other words: {why}"))
    }

    /// Publishes a message to what is embedded and takes its subject: what has a home there, what each node has of its own on
    /// this one. How many queues and links took it; `None`: none is there that would.
    ///
    /// # Errors
    /// As for a guest's publish; the home is away.
    pub(crate) async fn publish(&self, message: &Message) -> Result<Option<usize>, CallError> {
        let home = self.shares.state().home_node().filter(|home| self.is_taken(*home, message, true));
        let own = Some(self.me).filter(|me| self.is_taken(*me, message, false));
        let mut took = None;
        for node in BTreeSet::from_iter(home.into_iter().chain(own)) {
            let more = match node == self.me {
                true => self.providers.embedded.publish(message.clone()).await?,
                false => self.dispatch.elsewhere().publish(node, message.clone()).await?,
            };
            took = Some(took.unwrap_or(0) + more);
        }
        Ok(took)
    }

    /// Whether an embedded link of a node takes a message: one that has a home, or one of the node's own.
    fn is_taken(&self, node: NodeId, message: &Message, has_home: bool) -> bool {
        let state = self.shares.state();
        let takes = |held: &HeldLink| match &held.direction {
            Direction::Wakes { provider, tech: Tech::Embedded } => {
                state.kept_at(provider).is_some() == has_home
                    && trellis_embedded::takes(&held.link.config, &message.subject)
            }
            _ => false,
        };
        self.shares.of(node).links().any(|held| takes(held))
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.shares.state().nodes().keys().copied().collect()
    }

    /// How every trigger is, on each node that runs it, and the nodes that did not say.
    pub(crate) async fn all(&self) -> (Vec<(NodeId, View)>, Vec<String>) {
        let nodes = self.nodes();
        let asked = nodes.iter().map(|node| self.ask::<Vec<View>>(*node, &Question::Views));
        let (mut views, mut problems) = (Vec::new(), Vec::new());
        for (node, answer) in nodes.iter().zip(futures::future::join_all(asked).await) {
            match answer {
                Ok(all) => views.extend(all.into_iter().map(|view| (*node, view))),
                Err(why) => problems.push(why),
            }
        }
        (views, problems)
    }

    /// Why nobody can be asked for the dead letters of an app, or of one component: what runs of it is woken by no queue, and
    /// an earlier version was.
    pub(crate) fn out_of_reach(&self, app: &AppName, of: Option<&ComponentName>) -> Option<String> {
        let state = self.shares.state();
        let versions = state.app(app)?;
        let leaves_some =
            |release: &Release| state.links_with_letters(release).any(|(_, woken)| is_asked(&woken, (app, of)));
        if versions.running().any(|release| leaves_some(release)) {
            return None;
        }
        let before = &versions.kept().iter().rev().find(|kept| leaves_some(&kept.release))?.release.version;
        Some(match versions.deployed() {
            None => format!("`{app}` is not deployed: its dead letters are with its broker; deploy it to see them"),
            Some(release) => format!(
                "no queue wakes it in version {} of `{app}`: dead letters of version {before} are with its broker; \
                 deploy that to see them",
                release.version
            ),
        })
    }

    /// What is not known, for people: of which links that leave dead letters no node can be asked.
    fn unheld(&self, (app, of): (&AppName, Option<&ComponentName>), places: &[Place]) -> Vec<String> {
        let state = self.shares.state();
        let deployed = state.app(app).and_then(|versions| versions.deployed());
        let links = deployed.into_iter().flat_map(|release| state.links_with_letters(release));
        let asked = links.filter(|(_, woken)| is_asked(woken, (app, of))).map(|(link, _)| link);
        let lost = state.nodes().iter().filter(|(_, node)| node.is_lost()).map(|(id, _)| state.named(*id));
        let lost = lost.collect::<Vec<_>>().join(", ");
        let who = if lost.is_empty() { lost } else { format!("; lost: {lost}") };
        let unheld = asked.filter(|link| places.iter().all(|place| place.link != *link));
        unheld.map(|link| format!("dead letters of {link} are not known: no node has the link{who}")).collect()
    }

    /// Where the dead letters are of an app, or of one component. A queue that every node sees is the same on each; one of
    /// the node's own is not, and is at the home alone where there is one. Who is lost may have had one, whose letters it
    /// still has.
    fn places(&self, app: &AppName, of: Option<&ComponentName>) -> Vec<Place> {
        let (state, mut places) = (self.shares.state(), BTreeMap::<LinkId, Place>::new());
        let lost = || state.nodes().iter().filter(|(_, node)| node.is_lost()).map(|(id, _)| *id).collect();
        for node in self.nodes() {
            for held in self.shares.of(node).links() {
                let is_asked = is_asked(&held.link.component, (app, of));
                let (true, Direction::Wakes { provider, .. }) = (is_asked, &held.direction) else { continue };
                let apart = is_each_nodes_own(held);
                // A topic that the home pulls for its caps alone may have been divided before.
                let is_in_order = held.is_pulled_at_home() && held.link.delivery.order_by.is_some();
                let has_home = is_in_order || state.kept_at(provider).is_some();
                let nodes = if apart && !has_home { lost() } else { BTreeSet::new() };
                let place = || Place { link: held.link.id.clone(), nodes, apart };
                places.entry(held.link.id.clone()).or_insert_with(place).nodes.insert(node);
            }
        }
        places.into_values().collect()
    }

    /// Up to [`DEAD_LETTERS_MAX`] dead letters of an app or one component that `wanted` takes, oldest first in each queue.
    ///
    /// # Errors
    /// Nobody said anything.
    pub(crate) async fn find(
        &self,
        (app, of): (&AppName, Option<&ComponentName>),
        wanted: impl Fn(&Found) -> bool,
    ) -> Result<Letters, String> {
        let (places, mut has_answer, mut round) = (self.places(app, of), false, Round::of(self));
        let mut letters = Letters { found: Vec::new(), problems: self.unheld((app, of), &places) };
        for place in places {
            let mut problems = Vec::new();
            for node in round.in_turn(&place, None) {
                match round.find_in(&place, node, &wanted, &mut letters.found).await {
                    Ok(()) if place.apart => has_answer = true,
                    Ok(()) => {
                        has_answer = true;
                        problems.clear();
                        break;
                    }
                    Err(why) => problems.push(format!("dead letters of {} on {why}", place.link)),
                }
            }
            letters.problems.extend(problems);
        }
        match has_answer || letters.problems.is_empty() {
            true => Ok(letters),
            false => Err(letters.problems.join("\n")),
        }
    }

    /// Decides on a dead letter of an app. Whether there is such a one: a second time there is not.
    ///
    /// # Errors
    /// It was not found, and who may have it did not say.
    pub(crate) async fn decide(&self, app: &AppName, id: &str, fate: Fate) -> Result<bool, String> {
        let on_node = |(own, node): (_, &str)| Some((own, node.parse::<NodeId>().ok()?));
        let (own, on) = id.rsplit_once('@').and_then(on_node).map_or((id, None), |(own, node)| (own, Some(node)));
        let (places, mut round) = (self.places(app, None), Round::of(self));
        let mut problem = self.unheld((app, None), &places).into_iter().next();
        for place in places {
            let mut why = None;
            // Who is at work for the lattice starts a timer's tick at once; another could only write down that it is to be.
            let holder = self.shares.state().leases().get(&place.link).map(|lease| lease.node);
            for node in round.in_turn(&place, holder).into_iter().filter(|node| on.is_none_or(|on| on == *node)) {
                let question = Question::Decide(place.link.clone(), own.into(), fate);
                match round.ask::<Option<DeadLetter>>(node, &question).await {
                    Ok(Some(_)) => return Ok(true),
                    Ok(None) if place.apart => {}
                    Ok(None) => {
                        why = None;
                        break;
                    }
                    Err(unsaid) => why = Some(format!("dead letters of {} on {unsaid}", place.link)),
                }
            }
            problem = problem.or(why);
        }
        problem.map_or(Ok(false), Err)
    }

    /// Has the triggers of a component go on that paused by themselves, wherever they are. How many that were.
    pub(crate) async fn resume_all(&self, component: &ComponentKey) -> usize {
        let (nodes, question) = (self.nodes(), Question::Resume(component.clone()));
        let asked = nodes.iter().map(|node| self.ask::<usize>(*node, &question));
        futures::future::join_all(asked).await.into_iter().flatten().sum()
    }
}

/// Whether a component is the one whose dead letters are asked for, or of the app.
fn is_asked(component: &ComponentKey, (app, of): (&AppName, Option<&ComponentName>)) -> bool {
    component.app == *app && of.is_none_or(|of| component.name == *of)
}

/// One look through the lattice for dead letters, which takes no longer than [`ROUND_WAIT`] of other nodes.
struct Round<'a> {
    triggers: &'a Triggers,
    until: Instant,
    /// Who said nothing, and why: it is not asked again for each link.
    silent: BTreeMap<NodeId, String>,
}

impl<'a> Round<'a> {
    fn of(triggers: &'a Triggers) -> Self {
        Self { triggers, until: Instant::now() + ROUND_WAIT, silent: BTreeMap::new() }
    }

    /// Whom to ask of a place: this one while it is alive, then this node itself, then whoever else is alive.
    fn in_turn(&self, place: &Place, first: Option<NodeId>) -> Vec<NodeId> {
        let Triggers { me, liveness, .. } = self.triggers;
        let mut nodes: Vec<NodeId> = place.nodes.iter().copied().collect();
        nodes.sort_by_key(|node| {
            let is_silent = liveness.life(*node) != Life::Alive;
            (first != Some(*node) || is_silent, node != me, is_silent)
        });
        nodes
    }

    /// Asks one node, unless it is known to be silent.
    ///
    /// # Errors
    /// Names the node.
    async fn ask<T: DeserializeOwned>(&mut self, node: NodeId, question: &Question) -> Result<T, String> {
        let heard = match self.silent.get(&node) {
            Some(why) => Err(why.clone()),
            None => self.hear(node, question).await.inspect_err(|why| drop(self.silent.insert(node, why.clone()))),
        };
        let named = |why| format!("node {}: {why}", self.triggers.shares.state().named(node));
        heard.flatten().map_err(named)
    }

    async fn hear<T: DeserializeOwned>(&self, node: NodeId, question: &Question) -> Result<Result<T, String>, String> {
        let asked = self.triggers.hear(node, question);
        if node == self.triggers.me {
            return asked.await;
        }
        let late = |_| Err(format!("it did not answer within the {ROUND_WAIT:?} that others are waited for"));
        tokio::time::timeout_at(self.until, asked).await.unwrap_or_else(late)
    }

    /// Finds those of a place that one node has.
    async fn find_in(
        &mut self,
        place: &Place,
        node: NodeId,
        wanted: impl Fn(&Found) -> bool,
        all: &mut Vec<Found>,
    ) -> Result<(), String> {
        let (mut after, several) = (None, place.apart && place.nodes.len() > 1);
        loop {
            let question = Question::Letters(place.link.clone(), after.take());
            let page: Vec<DeadLetter> = self.ask(node, &question).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id.clone());
            for letter in page {
                let id = if several { format!("{}@{node}", letter.id) } else { letter.id.clone() };
                let found = Found { letter, id };
                // While an app is rolled out, two links may read the same queue for one component.
                if wanted(&found) && !all.iter().any(|known| known.id == found.id) {
                    all.push(found);
                }
                if all.len() >= DEAD_LETTERS_MAX {
                    return Ok(());
                }
            }
        }
    }
}
