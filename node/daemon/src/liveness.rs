//! Liveness: this node's heartbeat, everyone else's, and what the leader does about those that are silent or new. What
//! to do is decided by `placement::Membership`; here is only when, and how it is carried out.
//!
//! It runs where Raft runs, on threads of their own: a guest that computes for ever delays no heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use trellis_bus::{Heard, Sealed};
use trellis_manifest::Tech;
use trellis_placement::{Command, Decision, Life, LogView, Membership, Patience, Renewal};
use trellis_raft::{Member, Raft};
use trellis_trust::Distrust;
use trellis_wire::{ComponentKey, Generation, LatticeId, LinkId, NodeId, frame, subject};

use crate::board::{All, Board, Health, Mark, Noted};
use crate::dispatch::{Dispatch, Holding};
use crate::events::{Events, Report};
use crate::leases::Leases;
use crate::proposal;
use crate::providers::Providers;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The wait before a subscription that ended is made again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// How long news waits for more before it goes out with a heartbeat of its own.
const NEWS_WAIT: Duration = Duration::from_millis(100);
/// How much one heartbeat says of components and links, in bytes; the rest is said by the next ones, page by page.
const PAGE_BYTES_MAX: usize = 32 * 1024;
/// What a page says of one component or link besides what is on the board, at most: counts, or an address.
const MORE_BYTES_MAX: usize = 64;
/// How much is said of what is not well.
const PROBLEM_CHARS_MAX: usize = 300;
/// How long another lattice of this name is remembered after it was last heard.
const STRANGER_MAX: Duration = Duration::from_secs(30);

/// What comes on a heartbeat's subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Sign {
    Beat(Box<Beat>),
    /// The node ends now, on purpose.
    Goodbye,
    /// The node needs its leases: may it go on? The number is for the answer.
    Renew(u64),
    /// The leader's answer to the sign of this node with this number.
    Renewed(NodeId, u64, Renewal),
    /// How far in the log the node is, which follows from outside.
    Applied(u64),
}

/// A heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// The plan that the node carries out.
    pub(crate) generation: Generation,
    /// Sandboxes alive.
    pub(crate) running: u64,
    /// Which page this is, of how many.
    pub(crate) page: u16,
    pub(crate) pages: u16,
    pub(crate) components: Vec<(ComponentKey, OfComponent)>,
    pub(crate) links: Vec<(LinkId, OfLink)>,
    /// Components in the other version of a roll-out.
    pub(crate) beside: Vec<(ComponentKey, OfComponent)>,
}

/// How a component is on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OfComponent {
    /// Just what it holds.
    pub(crate) mark: Mark,
    pub(crate) health: Health,
    pub(crate) running: u64,
    pub(crate) events: u64,
    pub(crate) faults: u64,
    /// Events and faults of this version, since it is held.
    pub(crate) tally: (u64, u64),
}

/// How a link is on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OfLink {
    /// Just what it applies.
    pub(crate) mark: Mark,
    pub(crate) health: Health,
    /// Where it is reached.
    pub(crate) at: Option<String>,
}

/// What is known of each node's life.
pub(crate) struct Liveness {
    origin: Instant,
    me: NodeId,
    patience: Patience,
    sheet: Mutex<Sheet>,
}

struct Sheet {
    membership: Membership,
    nodes: BTreeMap<NodeId, Known>,
    /// How far each node is that follows from outside the log.
    applied: BTreeMap<NodeId, u64>,
    stranger: Option<(LatticeId, NodeId, Instant)>,
}

/// What a node said of itself.
struct Known {
    last: Beat,
    pages: BTreeMap<u16, Beat>,
}

impl Known {
    /// What is other in `now` than it was in `before`. A component may have moved to another page, which is nothing; and
    /// the first page of a node that was never heard says how it is, not what happens.
    fn reports(&self, before: &[Beat], now: &Beat) -> Vec<(ComponentKey, Report)> {
        if before.is_empty() {
            return Vec::new();
        }
        let old: BTreeMap<&ComponentKey, &OfComponent> =
            before.iter().flat_map(|page| &page.components).map(|(key, one)| (key, one)).collect();
        let is_elsewhere = |key: &ComponentKey| {
            let others = self.pages.values().filter(|page| page.page != now.page);
            others.flat_map(|page| &page.components).any(|(one, _)| one == key)
        };
        let mut reports = Vec::new();
        for (key, one) in &now.components {
            let was = old.get(key);
            let is_new = was.is_none_or(|was| was.health != Health::Ready);
            if is_new && one.health == Health::Ready && !(was.is_none() && is_elsewhere(key)) {
                reports.push((key.clone(), Report::Started));
            }
            // Counts begin anew with the process, and with each time that a component is held.
            let faults = match was {
                Some(was) => one.faults.saturating_sub(was.faults),
                None if is_elsewhere(key) => 0,
                None => one.faults,
            };
            if faults > 0 {
                reports.push((key.clone(), Report::Faulted(faults)));
            }
        }
        let is_now = |key: &ComponentKey| now.components.iter().any(|(one, _)| one == key) || is_elsewhere(key);
        let gone = old.into_iter().filter(|(key, was)| was.health == Health::Ready && !is_now(key));
        reports.extend(gone.map(|(key, _)| (key.clone(), Report::Stopped)));
        reports
    }
}

impl Liveness {
    pub(crate) fn new(me: NodeId, patience: Patience) -> Self {
        let membership = Membership::new(me, patience, Duration::ZERO);
        let sheet = Sheet { membership, nodes: BTreeMap::new(), applied: BTreeMap::new(), stranger: None };
        Self { origin: Instant::now(), me, patience, sheet: Mutex::new(sheet) }
    }

    /// How a node seems.
    pub(crate) fn life(&self, node: NodeId) -> Life {
        self.lock().membership.life(node, self.now())
    }

    /// How long ago a node was heard; `None`: never.
    pub(crate) fn silence(&self, node: NodeId) -> Option<Duration> {
        if node == self.me {
            return Some(Duration::ZERO);
        }
        let sheet = self.lock();
        sheet.nodes.contains_key(&node).then(|| sheet.membership.silence(node, self.now())).flatten()
    }

    /// After so long without a sign of life a node is suspect.
    pub(crate) const fn suspect_after(&self) -> Duration {
        self.patience.suspect
    }

    /// How far in the log a node is that follows from outside, as it last said.
    pub(crate) fn applied(&self, node: NodeId) -> Option<u64> {
        self.lock().applied.get(&node).copied()
    }

    /// The last heartbeat of a node, without its pages.
    pub(crate) fn beat(&self, node: NodeId) -> Option<Beat> {
        self.lock().nodes.get(&node).map(|known| known.last.clone())
    }

    /// How a component is on another node.
    pub(crate) fn component(&self, node: NodeId, key: &ComponentKey) -> Option<OfComponent> {
        let sheet = self.lock();
        let pages = sheet.nodes.get(&node)?.pages.values();
        pages.flat_map(|page| &page.components).find(|(one, _)| one == key).map(|(_, report)| report.clone())
    }

    /// The same in the other version of a roll-out.
    pub(crate) fn beside(&self, node: NodeId, key: &ComponentKey) -> Option<OfComponent> {
        let sheet = self.lock();
        let pages = sheet.nodes.get(&node)?.pages.values();
        pages.flat_map(|page| &page.beside).find(|(one, _)| one == key).map(|(_, report)| report.clone())
    }

    /// How a link is on another node.
    pub(crate) fn link(&self, node: NodeId, id: &LinkId) -> Option<OfLink> {
        let sheet = self.lock();
        let pages = sheet.nodes.get(&node)?.pages.values();
        pages.flat_map(|page| &page.links).find(|(one, _)| one == id).map(|(_, report)| report.clone())
    }

    /// Who is silent and yet not declared lost, because too many vanished at once.
    pub(crate) fn frozen(&self) -> BTreeSet<NodeId> {
        self.lock().membership.frozen().clone()
    }

    /// What is not well with the lattice, one sentence each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let sheet = self.lock();
        let mut problems = Vec::new();
        if sheet.membership.is_deaf(self.now()) {
            problems.push("this node does not hear its own heartbeats: what it says of other nodes is stale".into());
        }
        let frozen: Vec<String> = sheet.membership.frozen().iter().map(ToString::to_string).collect();
        if !frozen.is_empty() {
            problems.push(format!(
                "over a third of the nodes vanished within a minute, so nothing that they hold is placed anew until they \
                 are back: {}; `trellis nodes thaw` places it anew now",
                frozen.join(", ")
            ));
        }
        if let Some((lattice, node, _)) = sheet.stranger.filter(|(.., heard)| heard.elapsed() < STRANGER_MAX) {
            problems.push(format!(
                "another lattice of this name (id {lattice}, heard from node {node}) is on the same NATS; its nodes are \
                 refused: give one of the two another --lattice or another NATS account"
            ));
        }
        problems
    }

    /// Takes a heartbeat. What became of the node's components since its last ones.
    fn beat_by(&self, node: NodeId, beat: Beat) -> Vec<(ComponentKey, Report)> {
        let now = self.now();
        let mut sheet = self.lock();
        sheet.membership.heard(node, now);
        let known = sheet.nodes.entry(node);
        let known = known.or_insert_with(|| Known { last: beat.clone(), pages: BTreeMap::new() });
        let others = |page: &&Beat| page.page >= beat.pages || page.page == beat.page;
        let before: Vec<Beat> = known.pages.values().filter(others).cloned().collect();
        known.pages.retain(|page, _| *page < beat.pages);
        known.last = Beat { components: Vec::new(), links: Vec::new(), beside: Vec::new(), ..beat.clone() };
        known.pages.insert(beat.page, beat.clone());
        known.reports(&before, &beat)
    }

    /// Another lattice of this name was heard.
    fn note(&self, theirs: LatticeId, node: NodeId) {
        let mut sheet = self.lock();
        if sheet.stranger.is_none_or(|(known, ..)| known != theirs) {
            tracing::error!(%theirs, %node, "another lattice of this name is on the same NATS");
        }
        sheet.stranger = Some((theirs, node, Instant::now()));
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().expect("no code panics while it holds this lock")
    }
}

/// What is on a node's board, cut into pages. It is made anew when the board changes, and not for each heartbeat: there may
/// be thousands of components, with nothing new of any.
struct Pages {
    revision: u64,
    components: Noted<(ComponentKey, bool)>,
    links: Noted<(LinkId, Option<Tech>)>,
    /// What is on each page; the first is there even if it is empty.
    ranges: Vec<(Range<usize>, Range<usize>)>,
}

impl Pages {
    fn of(board: &Board) -> Self {
        // Read first: what changes in between makes the pages anew.
        let revision = board.revision();
        let All { components, links } = board.all();
        let mut ranges = vec![(0..0, 0..0)];
        let mut bytes = 0;
        let mut room = |ranges: &mut Vec<(Range<usize>, Range<usize>)>, more: usize| {
            if bytes + more > PAGE_BYTES_MAX && bytes > 0 {
                let (components, links) = ranges.last().expect("there is one");
                ranges.push((components.end..components.end, links.end..links.end));
                bytes = 0;
            }
            bytes += more;
        };
        for entry in &components {
            room(&mut ranges, frame::encode(entry).len() + MORE_BYTES_MAX);
            ranges.last_mut().expect("there is one").0.end += 1;
        }
        for entry in &links {
            room(&mut ranges, frame::encode(entry).len() + MORE_BYTES_MAX);
            ranges.last_mut().expect("there is one").1.end += 1;
        }
        Self { revision, components, links, ranges }
    }
}

/// What a node's liveness needs to run.
pub(crate) struct Pulse {
    pub(crate) sealed: Sealed,
    pub(crate) raft: Raft,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) board: Arc<Board>,
    pub(crate) providers: Providers,
    pub(crate) leases: Arc<Leases>,
    pub(crate) events: Arc<Events>,
}

impl Pulse {
    /// Beats until `leaving` and says goodbye then; listens and, where this node leads, acts, until `shutdown`.
    pub(crate) async fn run(self, leaving: CancellationToken, shutdown: CancellationToken) {
        let beating = async {
            tokio::select! {
                () = leaving.cancelled() => self.say(&Sign::Goodbye).await,
                () = self.beat() => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = beating => {}
            () = self.listen() => {}
            () = self.lead() => {}
            () = self.renew() => {}
            () = self.grant() => {}
            () = self.leases.keep() => {}
        }
        if !leaving.is_cancelled() {
            self.say(&Sign::Goodbye).await;
        }
    }

    async fn beat(&self) {
        let mut every = tokio::time::interval(self.liveness.patience.heartbeat);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn: u16 = 0;
        let mut pages = Pages::of(&self.board);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.board.noted.notified() => tokio::time::sleep(NEWS_WAIT).await,
            }
            if pages.revision != self.board.revision() {
                pages = Pages::of(&self.board);
            }
            turn = turn.wrapping_add(1);
            self.say(&Sign::Beat(Box::new(self.beat_of(&pages, turn)))).await;
            if !self.raft.members().has(self.sealed.node()) {
                self.say(&Sign::Applied(self.raft.applied())).await;
            }
        }
    }

    async fn say(&self, sign: &Sign) {
        let subject = subject::heartbeat(self.sealed.lattice(), self.sealed.node());
        if let Err(why) = self.sealed.announce(&subject, &frame::encode(sign)).await {
            tracing::debug!(%why, "no heartbeat");
        }
    }

    /// The heartbeat whose turn it is: one page of all there is to say.
    fn beat_of(&self, pages: &Pages, turn: u16) -> Beat {
        let nth = usize::from(turn) % pages.ranges.len();
        let (components, links) = pages.ranges[nth].clone();
        let links = pages.links[links].iter();
        let (mut held, mut beside) = (Vec::new(), Vec::new());
        for ((key, is_beside), mark, health) in &pages.components[components] {
            let holding = if *is_beside { self.dispatch.beside(key) } else { self.dispatch.holding(key) };
            let report = (key.clone(), of_component(holding, *mark, health.clone()));
            if *is_beside { beside.push(report) } else { held.push(report) }
        }
        Beat {
            generation: self.board.generation(),
            running: self.dispatch.running() as u64,
            page: u16::try_from(nth).unwrap_or(u16::MAX),
            pages: u16::try_from(pages.ranges.len()).unwrap_or(u16::MAX),
            components: held,
            links: links.map(|((id, tech), mark, health)| self.of_link(id, *tech, *mark, health)).collect(),
            beside,
        }
    }

    fn of_link(&self, id: &LinkId, tech: Option<Tech>, mark: Mark, health: &Health) -> (LinkId, OfLink) {
        let well = tech.map_or(Ok(()), |tech| self.providers.of(tech).health(id));
        let health = match (health, well) {
            (Health::Ready, Err(why)) => Health::Unwell(why),
            (health, _) => health.clone(),
        };
        (id.clone(), OfLink { mark, health: shortened(health), at: self.providers.http.url(id) })
    }

    async fn listen(&self) {
        let subject = subject::heartbeats(self.sealed.lattice());
        loop {
            match self.sealed.listen(&subject).await {
                Ok(mut beats) => {
                    while let Some(beat) = beats.next().await {
                        self.hear(beat).await;
                    }
                }
                Err(why) => tracing::warn!("not listening on {subject}: {why}"),
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    async fn hear(&self, beat: Result<Heard, Distrust>) {
        match beat {
            Ok(heard) => match frame::decode(&heard.body) {
                Ok(sign) => self.take(heard.from, sign).await,
                Err(why) => tracing::debug!(from = %heard.from, %why, "a heartbeat is not understood"),
            },
            Err(Distrust::OtherLattice { theirs, from }) => self.liveness.note(theirs, from),
            // A node that just started, a repetition, or a stranger.
            Err(_) => {}
        }
    }

    async fn take(&self, node: NodeId, sign: Sign) {
        match sign {
            Sign::Renew(number) => {
                if let Some(renewal) = self.leases.answer(node) {
                    self.say(&Sign::Renewed(node, number, renewal)).await;
                }
            }
            Sign::Renewed(of, number, renewal) if of == self.sealed.node() => self.leases.renewed(number, renewal),
            Sign::Renewed(..) => {}
            Sign::Goodbye => self.liveness.lock().membership.left(node),
            Sign::Applied(index) => drop(self.liveness.lock().applied.insert(node, index)),
            Sign::Beat(beat) => {
                let reports = self.liveness.beat_by(node, *beat);
                let state = self.raft.state().borrow().clone();
                for (component, report) in reports {
                    self.events.reported(&state, node, &component, &report);
                }
            }
        }
    }

    /// Asks for what this node needs: with every heartbeat, and at once when leases have changed hands.
    async fn renew(&self) {
        let mut every = tokio::time::interval(self.liveness.patience.heartbeat);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut states, mut edition) = (self.raft.state(), 0);
        loop {
            let known = edition;
            let moved = async {
                let moved = states.wait_for(|state| state.leases().edition() != known).await;
                match moved.map(|state| state.leases().edition()) {
                    Ok(edition) => edition,
                    Err(_) => std::future::pending().await,
                }
            };
            edition = tokio::select! {
                _ = every.tick() => edition,
                edition = moved => edition,
            };
            let Some(number) = self.leases.sign() else { continue };
            match self.leases.answer(self.sealed.node()) {
                // A leader needs no bus to ask itself.
                Some(renewal) => self.leases.renewed(number, renewal),
                None => self.say(&Sign::Renew(number)).await,
            }
        }
    }

    /// Grants leases while this node leads.
    async fn grant(&self) {
        let (mut states, mut leaders) = (self.raft.state(), self.raft.leadership());
        loop {
            let leads = leaders.borrow_and_update().clone();
            self.leases.lead(&leads).await;
            let state = states.borrow_and_update().clone();
            if let Some(moves) = self.leases.decide(&state, |id| self.liveness.life(id) == Life::Alive)
                && let Err(why) = self.propose(Command::Lease(moves)).await
            {
                tracing::warn!("leases do not change hands yet: {why}");
            }
            tokio::select! {
                Ok(()) = states.changed() => {}
                Ok(()) = leaders.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Every node looks, so that whoever comes to lead knows enough; the leader acts.
    async fn lead(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let state = self.raft.state().borrow().clone();
            let log = self.log_view();
            let decisions = {
                let mut sheet = self.liveness.lock();
                sheet.nodes.retain(|id, _| state.node(*id).is_some());
                sheet.applied.retain(|id, _| state.node(*id).is_some());
                sheet.membership.decide(&state, &log, self.liveness.now())
            };
            for decision in decisions {
                if !self.raft.leadership().borrow().me {
                    break;
                }
                self.carry_out(decision).await;
            }
        }
    }

    fn log_view(&self) -> LogView {
        let members = self.raft.members();
        LogView {
            voters: members.voters.into_keys().collect(),
            learners: members.learners.into_keys().collect(),
            lag: self.raft.lag(),
        }
    }

    /// What does not go through now is decided again at the next look.
    async fn carry_out(&self, decision: Decision) {
        tracing::info!(?decision, "membership");
        let done = match decision {
            Decision::Lost(id) => self.propose(Command::Lost(id)).await,
            Decision::Back(id) => self.propose(Command::Back(id)).await,
            Decision::Forget(id) => self.propose(Command::Forget(id)).await,
            Decision::Listen(id) => {
                let host = self.raft.state().borrow().node(id).map(|node| node.facts.name.clone());
                let member = Member { host: host.unwrap_or_default() };
                self.raft.add_learner(id, member).await.map_err(|why| why.to_string())
            }
            Decision::Voters(voters) => self.raft.change_voters(voters).await.map_err(|why| why.to_string()),
            Decision::Part(gone) => {
                let gone: BTreeSet<NodeId> = gone;
                self.raft.remove_learners(gone).await.map_err(|why| why.to_string())
            }
        };
        if let Err(why) = done {
            tracing::warn!("membership is not changed yet: {why}");
        }
    }

    async fn propose(&self, command: Command) -> Result<(), String> {
        self.raft.propose(proposal::entry(command)).await.map(drop).map_err(|why| why.to_string())
    }
}

fn of_component(holding: Option<Arc<Holding>>, mark: Mark, health: Health) -> OfComponent {
    let count = |read: fn(&Holding) -> &AtomicU64| holding.as_ref().map_or(0, |one| read(one).load(Ordering::Relaxed));
    OfComponent {
        mark,
        health: shortened(health),
        running: holding.as_ref().map_or(0, |holding| holding.running() as u64),
        events: count(|holding| &holding.counts().events),
        faults: count(|holding| &holding.counts().faults),
        tally: (count(|holding| &holding.tally().events), count(|holding| &holding.tally().faults)),
    }
}

fn shortened(health: Health) -> Health {
    let short = |why: String| why.chars().take(PROBLEM_CHARS_MAX).collect();
    match health {
        Health::Failed(why) => Health::Failed(short(why)),
        Health::Unwell(why) => Health::Unwell(short(why)),
        health => health,
    }
}

#[cfg(test)]
mod tests {
    use trellis_bus::{Bus, Memory, members};
    use trellis_manifest::Limits;
    use trellis_placement::{Direction, HeldComponent, HeldLink};
    use trellis_wire::{Config, Delivery, Digest, Link, LinkName, Secrets};
    use uuid::Uuid;

    use super::*;

    /// A board of so many apps: a component each, that HTTP wakes and that uses a store.
    fn board(apps: usize) -> Board {
        let board = Board::default();
        for n in 0..apps {
            let component: ComponentKey = format!("app-{n}/component").parse().unwrap();
            board.component(component.clone(), &held(), Ok(()));
            for (package, interface) in [("http", "incoming-handler"), ("keyvalue", "store")] {
                board.link(&link(&component, package, interface), Ok(()));
            }
        }
        board
    }

    fn held() -> HeldComponent {
        let (digest, limits) = (Digest::new([0; 32]), Limits::default());
        HeldComponent {
            digest,
            version: "1".into(),
            permits: Some(10),
            limits,
            config: Config::default(),
            secret_refs: Vec::new(),
            secrets: Secrets::default(),
            id: "app-component".into(),
            links: BTreeSet::new(),
        }
    }

    fn link(component: &ComponentKey, package: &str, interface: &str) -> HeldLink {
        let provider: ComponentKey = format!("{}/{package}", component.app).parse().unwrap();
        let id = LinkId::new(&provider, component, &LinkName::default(), "wasi", package, &[interface.into()]);
        let link = Link {
            id: id.granting(&[("bucket", "orders")].into_iter().collect()),
            component: component.clone(),
            name: LinkName::default(),
            namespace: "wasi".into(),
            package: package.into(),
            interfaces: vec![interface.into()],
            config: Config::default(),
            delivery: Delivery::default(),
            secrets: Secrets::default(),
        };
        let direction = Direction::Grants { tech: Tech::Http, provider };
        HeldLink { link, direction, secret_refs: Vec::new(), refused: None }
    }

    /// A page as it is said, with counts of a node that is at work.
    fn page(pages: &Pages, nth: usize) -> Sign {
        let (components, links) = pages.ranges[nth].clone();
        let of_component = |((key, _), mark, health): &((ComponentKey, bool), Mark, Health)| {
            let (running, events, faults, tally) = (3, 1_000_000, 1_000, (1_000_000, 1_000));
            (key.clone(), OfComponent { mark: *mark, health: health.clone(), running, events, faults, tally })
        };
        let of_link = |((id, _), mark, health): &((LinkId, Option<Tech>), Mark, Health)| {
            (id.clone(), OfLink { mark: *mark, health: health.clone(), at: Some("http://127.0.0.1:8000".into()) })
        };
        Sign::Beat(Box::new(Beat {
            generation: Generation(1_000),
            running: 300,
            page: nth as u16,
            pages: pages.ranges.len() as u16,
            components: pages.components[components].iter().map(of_component).collect(),
            links: pages.links[links].iter().map(of_link).collect(),
            beside: Vec::new(),
        }))
    }

    #[test]
    fn a_heartbeat_is_bounded_however_much_a_node_holds() {
        let node = NodeId::new(Uuid::from_u128(1));
        let [sealed] = members::members(&Bus::Memory(Memory::alone()), LatticeId::new(Uuid::nil()), [node]);
        let subject = subject::heartbeat(sealed.lattice(), node);
        println!(
            "{:>10} {:>6} {:>10} {:>14} {:>20}",
            "components", "pages", "largest B", "all pages B", "B/s, 1,000 nodes hear"
        );
        for apps in [0, 10, 90, 1_000, 10_000] {
            let board = board(apps);
            let pages = Pages::of(&board);
            let bytes: Vec<usize> = (0..pages.ranges.len())
                .map(|nth| sealed.seal().announce(&subject, &frame::encode(&page(&pages, nth))).unwrap().len())
                .collect();
            let (largest, all) = (bytes.iter().max().unwrap(), bytes.iter().sum::<usize>());
            // One page of each node with each heartbeat, once a second.
            println!("{apps:>10} {:>6} {largest:>10} {all:>14} {:>20}", bytes.len(), 1_000 * all / bytes.len());
            assert!(*largest < PAGE_BYTES_MAX + 1_024, "{largest} bytes with {apps} components");
            let told = pages.ranges.iter().map(|(components, links)| components.len() + links.len()).sum::<usize>();
            assert_eq!(told, 3 * apps, "every page has its part");
        }
    }
}
