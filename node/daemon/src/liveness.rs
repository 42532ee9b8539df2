//! Liveness: this node's heartbeat, everyone else's, and what the leader does about those that are silent or new. What
//! to do is decided by `placement::Membership`; here is only when, and how it is carried out.
//!
//! It runs where Raft runs, on threads of their own: a guest that computes for ever delays no heartbeat.
//!
//! A heartbeat says that the node lives and names what it said before (`sign.rs`). What a node holds is said when it is
//! new, and counts when they change (`pages.rs`). Who missed a page asks that node for it (`known.rs`).

mod known;
mod pages;
mod sign;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;
use trellis_bus::{Heard, Sealed};
use trellis_manifest::Tech;
use trellis_placement::{Command, Decision, Life, LogView, Membership, Node, Patience, SHORT_HEARTBEATS, State};
use trellis_raft::{Member, Raft};
use trellis_trust::Distrust;
use trellis_wire::{ComponentKey, Generation, LatticeId, LinkId, NodeId, frame, subject};

use self::known::Known;
pub(crate) use self::pages::Pages;
use self::pages::{Counted, Page, Told};
pub(crate) use self::sign::{Alive, Answer, Ask, Beat, Counts, OfComponent, OfLink, Sign};
use crate::board::{Board, Health, Mark};
use crate::dispatch::{Dispatch, Holding};
use crate::events::{Events, Report};
use crate::leases::Leases;
use crate::proposal;
use crate::providers::Providers;
use crate::seldom::Seldom;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long news waits for more before it goes out with a heartbeat of its own.
const NEWS_WAIT: Duration = Duration::from_millis(100);
/// The wait before pages that were missed are asked for, and the most that is added to it by chance, so that not everyone
/// asks at once.
const CATCH_UP_EVERY: Duration = Duration::from_millis(500);
const CATCH_UP_JITTER: Duration = Duration::from_secs(1);
/// How many pages are asked for after one such wait, how many of them at one time, and how long an answer may take.
const CATCH_UP_MAX: usize = 64;
const CATCH_UP_AT_ONCE: usize = 4;
const CATCH_UP_WAIT: Duration = Duration::from_secs(2);
/// How much is said of what is not well.
const PROBLEM_CHARS_MAX: usize = 300;
/// How long another lattice of this name is remembered after it was last heard.
const STRANGER_MAX: Duration = Duration::from_secs(30);

/// What is known of each node's life.
pub(crate) struct Liveness {
    origin: Instant,
    me: NodeId,
    sheet: Mutex<Sheet>,
}

struct Sheet {
    membership: Membership,
    nodes: BTreeMap<NodeId, Known>,
    /// How far each node is that follows from outside the log.
    applied: BTreeMap<NodeId, u64>,
    stranger: Option<(LatticeId, NodeId, Instant)>,
    /// Of lines about strangers.
    strangers: Seldom,
    /// The page that was asked for last.
    asked: Option<(NodeId, u16)>,
}

impl Liveness {
    pub(crate) fn new(me: NodeId, patience: Patience) -> Self {
        let membership = Membership::new(me, patience, Duration::ZERO);
        let (nodes, applied, strangers) = (BTreeMap::new(), BTreeMap::new(), Seldom::default());
        let sheet = Sheet { membership, nodes, applied, stranger: None, strangers, asked: None };
        Self { origin: Instant::now(), me, sheet: Mutex::new(sheet) }
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

    /// Whether this node does not hear itself: its own bus has been gone for a while.
    pub(crate) fn is_deaf(&self) -> bool {
        self.lock().membership.is_deaf(self.now())
    }

    /// Whether a node has not been heard for as long as a lost one, or was looked for in vain for so long.
    pub(crate) fn is_silent(&self, node: NodeId) -> bool {
        let sheet = self.lock();
        let silence = sheet.membership.silence(node, self.now());
        node != self.me && silence.is_some_and(|silence| silence >= sheet.membership.patience().lost)
    }

    /// Whether any other node was heard since this one started.
    pub(crate) fn has_heard_others(&self) -> bool {
        self.lock().nodes.keys().any(|node| *node != self.me)
    }

    /// Whether a node has been silent for so long that it need not be asked: also one that said goodbye may still answer.
    pub(crate) fn is_gone(&self, node: NodeId) -> bool {
        self.silence(node).is_some_and(|silence| silence >= self.patience().lost)
    }

    /// Whether a node said not longer than so ago that it ends, and was not heard since.
    pub(crate) fn left_within(&self, node: NodeId, ago: Duration) -> bool {
        let sheet = self.lock();
        sheet.membership.has_left(node) && sheet.membership.silence(node, self.now()) < Some(ago)
    }

    /// The timings that count now.
    pub(crate) fn patience(&self) -> Patience {
        *self.lock().membership.patience()
    }

    /// How far in the log a node is that follows from outside, as it last said.
    pub(crate) fn applied(&self, node: NodeId) -> Option<u64> {
        self.lock().applied.get(&node).copied()
    }

    /// The plan that a node carries out, as it last said.
    pub(crate) fn generation(&self, node: NodeId) -> Option<Generation> {
        self.lock().nodes.get(&node).map(|known| known.generation)
    }

    /// How many sandboxes are alive on a node, as it last said.
    pub(crate) fn running(&self, node: NodeId) -> Option<u64> {
        self.lock().nodes.get(&node).map(|known| known.running)
    }

    /// How a component is on another node.
    pub(crate) fn component(&self, node: NodeId, key: &ComponentKey) -> Option<OfComponent> {
        self.lock().nodes.get(&node)?.component(key, false).cloned()
    }

    /// The same in the other version of a roll-out.
    pub(crate) fn beside(&self, node: NodeId, key: &ComponentKey) -> Option<OfComponent> {
        self.lock().nodes.get(&node)?.component(key, true).cloned()
    }

    /// How a link is on another node.
    pub(crate) fn link(&self, node: NodeId, id: &LinkId) -> Option<OfLink> {
        self.lock().nodes.get(&node)?.link(id).cloned()
    }

    /// Pages of nodes that live which this node has not as they say they are: some of them, and each in its turn.
    fn missing(&self) -> Vec<(NodeId, u16)> {
        let now = self.now();
        let mut sheet = self.lock();
        let alive = sheet.nodes.iter().filter(|(node, _)| sheet.membership.life(**node, now) == Life::Alive);
        let missing = alive.flat_map(|(node, known)| known.missing().map(|page| (*node, page)));
        let mut missing: Vec<_> = missing.collect();
        let next = missing.partition_point(|page| Some(*page) <= sheet.asked);
        missing.rotate_left(next);
        missing.truncate(CATCH_UP_MAX);
        sheet.asked = missing.last().copied();
        missing
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

    /// Takes a page with which a node says that it lives. What became of its components since.
    fn beat_by(&self, node: NodeId, beat: Beat) -> Vec<(ComponentKey, Report)> {
        let now = self.now();
        let mut sheet = self.lock();
        sheet.membership.heard(node, now);
        let known = sheet.nodes.entry(node).or_default();
        (known.generation, known.running) = (beat.generation, beat.running);
        known.page(beat)
    }

    /// Takes a heartbeat. What became of the node's components since.
    fn alive_by(&self, node: NodeId, alive: Alive) -> Vec<(ComponentKey, Report)> {
        let now = self.now();
        let mut sheet = self.lock();
        sheet.membership.heard(node, now);
        match alive.applied {
            Some(index) => sheet.applied.insert(node, index),
            None => sheet.applied.remove(&node),
        };
        sheet.nodes.entry(node).or_default().alive(alive)
    }

    /// Takes a page that was asked for.
    fn page_by(&self, node: NodeId, page: Beat) -> Vec<(ComponentKey, Report)> {
        self.lock().nodes.get_mut(&node).map(|known| known.page(page)).unwrap_or_default()
    }

    /// The components that ran on nodes which are lost, each once.
    fn lost(&self, state: &State) -> Vec<(NodeId, BTreeSet<ComponentKey>)> {
        let now = self.now();
        let Sheet { membership, nodes, .. } = &mut *self.lock();
        // One that is heard again is lost only until that is agreed on.
        let is_lost = |id| state.node(id).is_some_and(Node::is_lost) && membership.life(id, now) != Life::Alive;
        let lost = nodes.iter_mut().filter(|(id, _)| is_lost(**id)).map(|(id, known)| (*id, known.lost()));
        lost.filter(|(_, ran)| !ran.is_empty()).collect()
    }

    /// Another lattice of this name was heard, or whoever reaches the bus says so: only its members could tell.
    fn note(&self, theirs: LatticeId, node: NodeId) {
        let mut sheet = self.lock();
        if sheet.stranger.is_none_or(|(known, ..)| known != theirs)
            && let Some(left_out) = sheet.strangers.due(Instant::now())
        {
            tracing::error!(%theirs, %node, left_out, "another lattice of this name is on the same NATS");
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
    /// As they were last needed.
    pub(crate) pages: Mutex<Arc<Pages>>,
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
            () = self.catch_up() => {}
            () = self.give_pages() => {}
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
        let (mut turn, mut told, mut counted) = (0, Told::default(), Counted::default());
        loop {
            turn += 1;
            let everyone_knows = self.raft.state().borrow().everyone_knows(SHORT_HEARTBEATS);
            if everyone_knows {
                self.say_news(&mut told, &mut counted).await;
            } else {
                told = Told::default();
                let pages = self.pages();
                self.say(&Sign::Beat(Box::new(self.beat_of(&pages, turn % pages.pages.len())))).await;
                if let Some(index) = self.applied() {
                    self.say(&Sign::Applied(index)).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.liveness.patience().heartbeat) => {}
                () = self.board.noted.notified() => tokio::time::sleep(NEWS_WAIT).await,
            }
        }
    }

    /// Says what is new, and that this node lives.
    async fn say_news(&self, told: &mut Told, counted: &mut Counted) {
        let pages = self.pages();
        for nth in told.next_look(&pages) {
            let mut beat = self.beat_of(&pages, nth);
            if told.page(&mut beat) {
                self.say(&Sign::Beat(Box::new(beat))).await;
            }
        }
        let counts = counted.now(&pages, self.dispatch.at_rest(), |page| self.counts_of(page));
        let alive = Alive {
            generation: self.board.generation(),
            running: self.dispatch.running() as u64,
            applied: Some(self.raft.applied()),
            pages: told.marks(),
            counts: told.counts(counts),
        };
        self.say(&Sign::Alive(Box::new(alive))).await;
    }

    /// How far in the log this node is, if it follows from outside.
    fn applied(&self) -> Option<u64> {
        (!self.raft.members().has(self.sealed.node())).then(|| self.raft.applied())
    }

    /// What is on the board now.
    fn pages(&self) -> Arc<Pages> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.revision != self.board.revision() {
            *pages = Arc::new(pages.next(&self.board));
        }
        pages.clone()
    }

    async fn say(&self, sign: &Sign) {
        let subject = subject::heartbeat(self.sealed.lattice(), self.sealed.node());
        if let Err(why) = self.sealed.announce(&subject, &frame::encode(sign)).await {
            tracing::debug!(%why, "no heartbeat");
        }
    }

    /// A page of all there is to say.
    fn beat_of(&self, pages: &Pages, nth: usize) -> Beat {
        let page = &pages.pages[nth];
        let (mut held, mut beside) = (Vec::new(), Vec::new());
        for ((key, is_beside), mark, health) in &page.components {
            let counts = self.counts(key, *is_beside);
            let report = (key.clone(), OfComponent { mark: *mark, health: shortened(health.clone()), counts });
            if *is_beside { beside.push(report) } else { held.push(report) }
        }
        let links = page.links.iter();
        Beat {
            generation: self.board.generation(),
            running: self.dispatch.running() as u64,
            page: u16::try_from(nth).unwrap_or(u16::MAX),
            pages: u16::try_from(pages.pages.len()).unwrap_or(u16::MAX),
            components: held,
            links: links.map(|((id, tech), mark, health)| self.of_link(id, *tech, *mark, health)).collect(),
            beside,
        }
    }

    /// The counts of a page's components, numbered as a [`Beat`] numbers them: the board has those beside the deployed
    /// version last.
    fn counts_of(&self, page: &Page) -> Vec<Counts> {
        page.components.iter().map(|((key, is_beside), ..)| self.counts(key, *is_beside)).collect()
    }

    fn counts(&self, key: &ComponentKey, is_beside: bool) -> Counts {
        let holding = if is_beside { self.dispatch.beside(key) } else { self.dispatch.holding(key) };
        holding.as_deref().map_or_else(Counts::default, counts)
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
        let mut beats = self.sealed.words(subject::heartbeats(self.sealed.lattice()));
        loop {
            self.hear(beats.next().await).await;
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

    /// Asks for what was missed.
    async fn catch_up(&self) {
        loop {
            tokio::time::sleep(CATCH_UP_EVERY + CATCH_UP_JITTER.mul_f64(rand::random())).await;
            let missing = futures::stream::iter(self.liveness.missing());
            missing.for_each_concurrent(CATCH_UP_AT_ONCE, |(node, page)| self.ask_for(node, page)).await;
        }
    }

    async fn ask_for(&self, node: NodeId, page: u16) {
        let subject = subject::page(self.sealed.lattice(), node);
        let answer = self.sealed.ask(node, &subject, &frame::encode(&Ask::Page(page)), CATCH_UP_WAIT).await;
        match answer.map(|answer| frame::decode(&answer)) {
            Ok(Ok(Answer::Page(beat))) => self.report(node, self.liveness.page_by(node, *beat)),
            Ok(Ok(Answer::NoSuch)) => {}
            Ok(Err(why)) => tracing::debug!(%node, page, %why, "a page is not understood"),
            Err(why) => tracing::debug!(%node, page, %why, "a page that was missed is not here yet"),
        }
    }

    /// Gives pages to those who missed them.
    async fn give_pages(&self) {
        let mut questions = self.sealed.words(subject::page(self.sealed.lattice(), self.sealed.node()));
        loop {
            // Who sent what is not taken was told.
            if let Ok(question) = questions.next().await {
                self.give_page(question).await;
            }
        }
    }

    async fn give_page(&self, question: Heard) {
        let (Some(reply), Ok(Ask::Page(nth))) = (question.reply, frame::decode(&question.body)) else { return };
        let (pages, nth) = (self.pages(), usize::from(nth));
        let answer = match nth < pages.pages.len() {
            true => Answer::Page(Box::new(self.beat_of(&pages, nth))),
            false => Answer::NoSuch,
        };
        if let Err(why) = self.sealed.answer(reply, &frame::encode(&answer)).await {
            tracing::debug!(%why, "a page was not given");
        }
    }

    fn report(&self, node: NodeId, reports: Vec<(ComponentKey, Report)>) {
        let state = self.raft.state().borrow().clone();
        for (component, report) in reports {
            self.events.reported(&state, node, &component, &report);
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
            Sign::Beat(beat) => self.report(node, self.liveness.beat_by(node, *beat)),
            Sign::Alive(mut alive) => {
                alive.applied.into_iter().for_each(|index| self.raft.heard(node, index));
                // How far members are, the leader knows better.
                alive.applied = alive.applied.filter(|_| !self.raft.members().has(node));
                self.report(node, self.liveness.alive_by(node, *alive));
            }
        }
    }

    /// Asks for what this node needs: with every heartbeat, and at once when leases have changed hands.
    async fn renew(&self) {
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
                () = tokio::time::sleep(self.liveness.patience().heartbeat) => edition,
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
            // What a leader of the past grants, another one may have renewed to somebody else.
            if let Some(moves) = self.leases.decide(&state, |id| self.liveness.life(id) == Life::Alive)
                && *leaders.borrow() == leads
                && let Err(why) = self.raft.propose_as_leader(proposal::entry(Command::Lease(moves))).await
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
            for (node, ran) in self.liveness.lost(&state) {
                self.events.lost(&state, node, &ran);
            }
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

fn counts(holding: &Holding) -> Counts {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Counts {
        running: holding.running() as u64,
        events: read(&holding.counts().events),
        faults: read(&holding.counts().faults),
        tally: (read(&holding.tally().events), read(&holding.tally().faults)),
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
