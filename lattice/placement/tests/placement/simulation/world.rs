//! What happens to a simulated lattice: time, the wire, the log, crashes, partitions, people.
//!
//! The log is a model of what Raft promises: entries in one order, appended only where more than half of the voters are
//! up and reach each other. Everything else is hostile: words are late, lost and doubled, commands of a leader that was
//! are committed after it, peers fall behind, stop, start again from their disks, and disagree about the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use trellis_manifest::Tech;
use trellis_placement::{Applied, Command, Decision, Entry, NodeFacts, Release, State, plan};
use trellis_wire::{CommandId, Config, NodeId};

use super::SEED;
use super::model::{self, Model};
use super::peer::{Peer, log_view};
use crate::lattice::{component, facts, link, node_id, provider, release, scaler};

/// How much time passes in a step.
const TICK: Duration = Duration::from_millis(500);
/// How many steps something goes wrong in.
const STORMY: usize = 160;
/// How many steps nothing goes wrong in, afterwards: enough to be found back, and for every node to hear the plan.
const CALM: usize = 120;
/// Of these, how many nothing may change in any more.
const STILL: usize = 20;
/// How old a sign of life may be that brings a node back: what is late is at most 4 s late, each time.
const BACK_MAX: Duration = Duration::from_secs(15);
/// How many nodes there are at most.
const PEERS_MAX: usize = 9;
/// How many apps people deploy.
const APPS: u64 = 4;

/// What is under way.
enum Parcel {
    Beat { from: NodeId, to: NodeId },
    Goodbye { from: NodeId, to: NodeId },
    Proposal { from: NodeId, entry: Entry },
}

/// Peers, and all between them.
pub(super) struct World {
    dice: StdRng,
    now: Duration,
    peers: BTreeMap<NodeId, Peer>,
    minted: usize,
    log: Vec<Entry>,
    truth: State,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    leader: Option<NodeId>,
    parcels: BTreeMap<(Duration, u64), Parcel>,
    commands: u64,
    storm: bool,
    model: Model,
    /// How much of the log was looked at.
    checked: usize,
    /// Whether what happens is printed, for whoever replays a seed.
    told: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let dice = StdRng::seed_from_u64(seed);
        let (peers, log, parcels) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut world = Self {
            dice,
            now: Duration::ZERO,
            peers,
            minted: 0,
            log,
            truth: State::default(),
            voters: BTreeSet::from([node_id(0)]),
            learners: BTreeSet::new(),
            leader: None,
            parcels,
            commands: 0,
            storm: true,
            model: Model::default(),
            checked: 0,
            told: std::env::var_os(SEED).is_some(),
        };
        for _ in 0..world.dice.random_range(1..7) {
            world.mint();
        }
        world
    }

    /// The storm, the calm, and what must hold after it.
    pub(super) fn run(&mut self) {
        for _ in 0..STORMY {
            self.happen();
            self.step();
        }
        self.mend();
        for _ in 0..CALM - STILL {
            self.step();
        }
        let entries = self.log.len();
        for _ in 0..STILL {
            self.step();
        }
        let late: Vec<_> = self.log[entries..].iter().map(|entry| &entry.command).collect();
        assert!(late.is_empty(), "nothing happens, and yet there is more to do: {late:?}");
        self.check_calm();
    }

    pub(super) fn entries(&self) -> usize {
        self.log.len()
    }

    pub(super) fn lost(&self) -> usize {
        self.log.iter().filter(|entry| matches!(entry.command, Command::Lost(_))).count()
    }

    pub(super) fn truth(&self) -> &State {
        &self.truth
    }

    fn step(&mut self) {
        self.now += TICK;
        self.deliver();
        self.elect();
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.live(id);
        }
        self.lead();
        self.check();
    }
}

/// What goes wrong, and what people do.
impl World {
    fn happen(&mut self) {
        match self.dice.random_range(0..40) {
            0 => self.crash(false),
            1 => self.crash(true),
            2 | 3 => self.start(),
            4 => self.split(),
            5 | 6 => self.peers.values_mut().for_each(|peer| peer.side = 0),
            7 if self.peers.len() < PEERS_MAX => self.mint(),
            8 | 9 => self.drain(),
            10 => self.label(),
            11 => self.forget(),
            12..=17 => self.deploy(),
            18 => self.undeploy(),
            19 => self.configure(),
            _ => {}
        }
    }

    /// A machine that nobody has seen yet.
    fn mint(&mut self) {
        let n = self.minted;
        self.minted += 1;
        let mut labels = BTreeMap::from([("zone".to_owned(), format!("z{}", self.dice.random_range(0..3)))]);
        NodeFacts::announce_level(&mut labels);
        let permits = self.dice.random_range(0..50);
        let edge = n > 0 && self.dice.random_ratio(15, 100);
        let facts = facts(n, "peer", permits, labels, edge);
        let origin = Duration::from_secs(self.dice.random_range(0..100_000));
        let wrong_ms = if self.dice.random_ratio(20, 100) { self.dice.random_range(0..600_000) } else { 0 };
        let side = self.sides().choose(&mut self.dice).copied().unwrap_or_default();
        self.peers.insert(facts.id, Peer::new(facts, side, origin, wrong_ms, self.now));
    }

    fn sides(&self) -> Vec<u64> {
        self.peers.values().map(|peer| peer.side).collect()
    }

    fn any(&mut self, which: impl Fn(&Peer) -> bool) -> Option<NodeId> {
        let ids: Vec<_> = self.peers.values().filter(|peer| which(peer)).map(Peer::id).collect();
        ids.choose(&mut self.dice).copied()
    }

    fn crash(&mut self, says_goodbye: bool) {
        let Some(id) = self.any(|peer| peer.up) else { return };
        if says_goodbye {
            self.tell_all(id, |to| Parcel::Goodbye { from: id, to });
        }
        self.peer(id).crash();
    }

    fn start(&mut self) {
        let Some(id) = self.any(|peer| !peer.up) else { return };
        let now = self.now;
        self.peer(id).start(now);
    }

    fn split(&mut self) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.peer(id).side = self.dice.random_range(0..2);
        }
    }

    fn drain(&mut self) {
        let Some(node) = self.any(|_| true) else { return };
        let on = self.dice.random_ratio(60, 100);
        self.ask(Command::Drain { node, on });
    }

    fn label(&mut self) {
        let Some(node) = self.any(|_| true) else { return };
        let zone = self.dice.random_ratio(80, 100).then(|| format!("z{}", self.dice.random_range(0..3)));
        self.ask(Command::Label { node, labels: BTreeMap::from([("zone".into(), zone)]) });
    }

    /// Only a machine that is really gone is given up.
    fn forget(&mut self) {
        let Some(id) = self.any(|peer| !peer.up) else { return };
        self.ask(Command::Forget(id));
    }

    fn deploy(&mut self) {
        let (app, version) = (self.dice.random_range(0..APPS), self.dice.random_range(0..1_000_000));
        let spread =
            ["any", "zone=z0", "zone=!z1", "zone=z0|z1, zone=z2:50", "edge=true, any:300", "zone=z1:30, any:70"];
        let spread = spread.choose(&mut self.dice).unwrap();
        let scaler = match self.dice.random_range(0..10) {
            0 => None,
            1 => scaler(&format!("each {} on {spread}", self.dice.random_range(0..4))),
            _ => scaler(&format!("{} on {spread}", self.dice.random_range(0..40))),
        };
        let mut release = Release { replace: true, ..release(&format!("app{app}"), &version.to_string()) };
        component(&mut release, "api", u8::try_from(version % 251).unwrap(), scaler);
        if self.dice.random_ratio(50, 100) {
            provider(&mut release, "kv", Tech::Embedded, None);
            link(&mut release, "api", "kv", &[]);
        }
        self.ask(Command::Deploy(Box::new(release)));
    }

    fn undeploy(&mut self) {
        let app = format!("app{}", self.dice.random_range(0..APPS)).parse().unwrap();
        let is_kept = self.dice.random_ratio(70, 100);
        self.ask(if is_kept { Command::Undeploy(app) } else { Command::Delete(app) });
    }

    fn configure(&mut self) {
        let (name, value) =
            (format!("config{}", self.dice.random_range(0..3)), self.dice.random_range(0..1_000_u64).to_string());
        let is_put = self.dice.random_ratio(80, 100);
        self.ask(if is_put {
            Command::PutConfig { name, values: Config::from_iter([("value", value.as_str())]) }
        } else {
            Command::DeleteConfig(name)
        });
    }

    /// A person asks any node.
    fn ask(&mut self, command: Command) {
        if let Some(id) = self.any(|peer| peer.up) {
            self.propose(id, command);
        }
    }

    /// Everything works again.
    fn mend(&mut self) {
        self.storm = false;
        let now = self.now;
        for peer in self.peers.values_mut() {
            peer.side = 0;
            if !peer.up {
                peer.start(now);
            }
        }
    }
}

/// The wire and the log.
impl World {
    fn peer(&mut self, id: NodeId) -> &mut Peer {
        self.peers.get_mut(&id).expect("it is one of them")
    }

    fn reach(&self, a: NodeId, b: NodeId) -> bool {
        matches!((self.peers.get(&a), self.peers.get(&b)), (Some(a), Some(b)) if a.side == b.side && b.up)
    }

    /// Puts a word under way: in a storm late, lost or doubled.
    fn send(&mut self, parcel: impl Fn() -> Parcel) {
        let copies = match () {
            () if !self.storm => 1,
            () if self.dice.random_ratio(8, 100) => 0,
            () if self.dice.random_ratio(10, 100) => 2,
            () => 1,
        };
        for _ in 0..copies {
            let late = self.storm && self.dice.random_ratio(15, 100);
            let late = Duration::from_millis(self.dice.random_range(0..if late { 4_000 } else { 300 }));
            self.commands += 1;
            self.parcels.insert((self.now + late, self.commands), parcel());
        }
    }

    fn tell_all(&mut self, from: NodeId, word: impl Fn(NodeId) -> Parcel) {
        for to in self.peers.keys().copied().collect::<Vec<_>>() {
            if self.reach(from, to) {
                self.send(|| word(to));
            }
        }
    }

    fn propose(&mut self, from: NodeId, command: Command) {
        self.commands += 1;
        let id = format!("00000000-0000-0000-0000-{:012x}", self.commands).parse::<CommandId>().unwrap();
        let at_ms = u64::try_from(self.now.as_millis()).unwrap() + self.peer(from).wrong_ms;
        let entry = Entry { id, at_ms, command };
        self.send(|| Parcel::Proposal { from, entry: entry.clone() });
    }

    fn deliver(&mut self) {
        while let Some(first) = self.parcels.first_entry().filter(|first| first.key().0 <= self.now) {
            let now = self.now;
            match first.remove() {
                Parcel::Beat { from, to } if self.reach(from, to) => self.peer(to).hear(from, now),
                Parcel::Goodbye { from, to } if self.reach(from, to) => self.peer(to).hear_goodbye(from),
                Parcel::Proposal { from, entry } if self.leader.is_some_and(|leader| self.reach(from, leader)) => {
                    self.append(entry);
                }
                _ => {}
            }
        }
    }

    fn append(&mut self, entry: Entry) {
        if matches!(&entry.command, Command::Forget(id) if !self.can_be_spared(*id)) {
            return;
        }
        let before = self.truth.clone();
        let applied = self.truth.apply(&entry);
        if self.told {
            println!("{:?} {}: {:?} -> {applied:?}", self.now, self.log.len(), entry.command);
        }
        self.model.note(&entry, &applied, &before, &self.truth);
        if let (Command::Back(id), Applied::Done) = (&entry.command, &applied) {
            let silence = self.now - self.peers[id].last_up;
            assert!(silence < BACK_MAX, "{id} has been down for {silence:?} and is declared back");
        }
        if let Command::Forget(id) = &entry.command
            && self.truth.node(*id).is_none()
        {
            // Its machine never comes back: that is what forgetting a node says.
            self.peers.remove(id);
        }
        self.log.push(entry);
    }

    /// Whether more than half of the voters are left without this node: beyond that only `recover` helps.
    fn can_be_spared(&self, id: NodeId) -> bool {
        let left = self.voters.iter().filter(|voter| **voter != id && self.peers.contains_key(voter)).count();
        left * 2 > self.voters.len()
    }

    /// Somebody leads where more than half of the voters reach each other, and stays as long as it is so.
    fn elect(&mut self) {
        let together = |side: u64| {
            let reached = |id: &&NodeId| self.peers.get(id).is_some_and(|peer| peer.up && peer.side == side);
            self.voters.iter().filter(reached).copied().collect::<Vec<_>>()
        };
        let quorum = self.sides().into_iter().map(together).find(|side| side.len() * 2 > self.voters.len());
        let quorum = quorum.unwrap_or_default();
        let stays =
            self.leader.filter(|leader| quorum.contains(leader) && !(self.storm && self.dice.random_ratio(2, 100)));
        self.leader = stays.or_else(|| quorum.choose(&mut self.dice).copied());
    }

    /// What a node does in a step: it beats, follows the log, carries out its share and says so.
    fn live(&mut self, id: NodeId) {
        if !self.peer(id).up {
            return;
        }
        self.peer(id).last_up = self.now;
        if self.now.as_millis().is_multiple_of(1_000) {
            self.tell_all(id, |to| Parcel::Beat { from: id, to });
        }
        // Who is not in the log follows from outside, once the lattice knows it.
        let follows = self.voters.contains(&id) || self.learners.contains(&id) || self.truth.node(id).is_some();
        if follows && self.leader.is_some_and(|leader| self.reach(leader, id)) {
            let end = self.log.len();
            let behind = end - self.peer(id).applied;
            let is_slow = self.storm && behind > 0 && self.dice.random_ratio(30, 100);
            let end = if is_slow { end - self.dice.random_range(0..=behind) } else { end };
            let log = std::mem::take(&mut self.log);
            self.peer(id).catch_up(&log, end);
            self.log = log;
        }
        if !self.storm || self.dice.random_ratio(70, 100) {
            self.peer(id).carry_out();
        }
        if let Some(acked) = self.peer(id).acknowledgement() {
            self.propose(id, acked);
        }
        if self.peer(id).joins {
            let facts = self.peer(id).facts.clone();
            self.peer(id).joins = self.truth.node(id).is_none_or(|node| node.is_lost() || node.facts != facts);
            if self.peer(id).joins {
                self.propose(id, Command::Join(facts));
            }
        }
    }

    /// Everyone looks, so that whoever comes to lead knows enough; who leads acts, on what it knows.
    fn lead(&mut self) {
        let (now, end) = (self.now, self.log.len());
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let leads = self.leader == Some(id);
            if !self.peer(id).up || !(leads || self.dice.random_ratio(20, 100)) {
                continue;
            }
            let view = log_view(&self.peers, &self.voters, &self.learners, &self.peers[&id], end);
            let decisions = self.peer(id).decide(&view, now);
            if leads {
                decisions.into_iter().for_each(|decision| self.carry_out(id, decision));
                if let Some(home) = self.peer(id).home_to_be() {
                    self.propose(id, Command::Home(home));
                    continue;
                }
                match self.peer(id).plan() {
                    Some(delta) => self.propose(id, Command::Plan(delta)),
                    // A roll-out goes on when it is ready, which here is a matter of luck.
                    None if !self.storm || self.dice.random_ratio(50, 100) => {
                        self.peer(id).advances().into_iter().for_each(|step| self.propose(id, step));
                    }
                    None => {}
                }
            }
        }
    }

    fn carry_out(&mut self, leader: NodeId, decision: Decision) {
        match decision {
            Decision::Lost(id) => self.propose(leader, Command::Lost(id)),
            Decision::Back(id) => self.propose(leader, Command::Back(id)),
            Decision::Forget(id) => self.propose(leader, Command::Forget(id)),
            Decision::Listen(id) => drop(self.learners.insert(id)),
            Decision::Part(gone) => self.learners.retain(|id| !gone.contains(id)),
            Decision::Voters(voters) => {
                // The old ones agree, or nobody would lead; the new ones must as well.
                let reached = voters.iter().filter(|id| self.reach(leader, **id)).count();
                if reached * 2 > voters.len() {
                    let all: BTreeSet<_> = self.voters.union(&self.learners).copied().collect();
                    self.learners = all.difference(&voters).copied().collect();
                    self.voters = voters;
                }
            }
        }
    }
}

/// What must hold.
impl World {
    fn check(&mut self) {
        model::check_use(&self.truth, self.peers.values());
        model::check_kept(self.peers.values());
        if self.checked == self.log.len() {
            return;
        }
        self.checked = self.log.len();
        for peer in self.peers.values().filter(|peer| peer.applied == self.log.len()) {
            assert_eq!(peer.state, self.truth, "{} has another state", peer.id());
        }
        self.model.check_register(&self.truth);
        model::check_planned(&self.truth);
    }

    /// After the calm every node is there, knows everything, and does just what the plan says.
    fn check_calm(&self) {
        assert!([1, 3, 5].contains(&self.voters.len()), "{:?}", self.voters);
        for (id, peer) in &self.peers {
            let node = self.truth.node(*id).expect("every node has joined");
            assert!(!node.is_lost() && node.facts == peer.facts, "{node:?}");
            assert_eq!(peer.applied, self.log.len(), "{id} is behind");
            assert_eq!(peer.generation(), self.truth.plan().generation(), "{id} does not carry out the plan");
        }
        assert_eq!(plan(&self.truth), None);
        assert_eq!(self.truth.home_to_be(), None, "there is a home where one is needed");
        let has_embedded = self.truth.running().any(|release| !release.app.providers.is_empty());
        let keep = self.peers.values().filter(|peer| peer.keeps()).count();
        let has_home = has_embedded && self.truth.home_node().is_some();
        assert_eq!(keep, usize::from(has_home), "one node keeps what is embedded, where anything is and any may");
        assert_eq!(self.truth.rolling().count(), 0, "every roll-out has ended");
        for (name, _) in self.truth.apps() {
            for unplaced in self.truth.unplaced(name) {
                assert!(
                    unplaced.why.starts_with("no node fits") || unplaced.why.starts_with("the lattice has no nodes"),
                    "{unplaced}"
                );
            }
        }
    }
}
