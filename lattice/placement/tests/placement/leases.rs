//! Leases under crashes, lost and late messages, leaders that do not know yet that they are none, and clocks that run at
//! different rates: never two holders at once, and always one once all is well.
//!
//! The seed of a failure is the last one that is printed; `TRELLIS_SIMULATE_SEED=N` replays it alone.
//! `TRELLIS_SIMULATE_SEEDS=N` runs so many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trellis_placement::{Applied, Command, Entry, LeaseMoves, Lessee, Lessor, Patience, Renewal, State};
use trellis_wire::{CommandId, Delivery, LinkId, LinkName, NodeId, OrderBy};

use crate::lattice::{Lattice, component, facts, link, node_id, provider, release, scaler};

const LEASE: Duration = Duration::from_secs(4);
/// What a person may make of it, in LEASE.
const LONGEST: u32 = 3;
/// The slowest and the fastest clock, in thousandths of real time. Monotonic clocks differ by some millionths.
const RATES: (u64, u64) = (970, 1030);
/// How much time passes in one step of the simulation.
const STEP: Duration = Duration::from_millis(100);
const NODES: usize = 5;
const LINKS: usize = 3;
/// How many seeds are run unless the environment says otherwise.
const SEEDS: u64 = 300;

/// Xorshift: a seed gives the same run every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    /// The number of a node's first sign of life.
    fn first(&mut self) -> u64 {
        self.roll(u64::MAX)
    }
}

fn link_id(n: usize) -> LinkId {
    let end = |name: String| format!("app/{name}").parse().unwrap();
    LinkId::new(&end(format!("p{n}")), &end("c".into()), &LinkName::default(), "w", "p", &["i".into()])
}

fn rate(dice: &mut Dice) -> u32 {
    (RATES.0 + dice.roll(RATES.1 - RATES.0 + 1)) as u32
}

fn timings(lease: Duration) -> Command {
    Command::Timings(Patience { lease, lost: 2 * lease, ..Patience::default() })
}

/// One node: its clock, what it has applied of the log, and both its sides of leases.
struct One {
    /// How many thousandths of a second its clock counts in one, now.
    rate: u32,
    /// What it showed when it last changed its rate, and when that was.
    shown: Duration,
    since: Duration,
    state: State,
    applied: usize,
    lessor: Lessor,
    lessee: Lessee,
    /// Until when it does nothing, by real time: crashed or frozen.
    away: Duration,
    /// When a quorum last acknowledged it in this term, by its own clock.
    acknowledged: Option<(u64, Duration)>,
    next_beat: Duration,
}

impl One {
    fn clock(&self, real: Duration) -> Duration {
        self.shown + (real - self.since) * self.rate / 1000
    }

    /// Its clock drifts: from now on it runs at another rate.
    fn drift(&mut self, rate: u32, real: Duration) {
        (self.shown, self.since, self.rate) = (self.clock(real), real, rate);
    }
}

/// What is under way.
enum Message {
    Sign(usize, u64),
    Answer(u64, Renewal),
}

/// The whole lattice and what really is.
struct World {
    dice: Dice,
    real: Duration,
    log: Vec<Entry>,
    nodes: Vec<One>,
    /// Who leads in the highest term, and which.
    leader: (usize, u64),
    /// How long the log was when that one was elected.
    elected_at: usize,
    /// When each message arrives, and whom it is for.
    messages: Vec<(Duration, usize, Message)>,
    wanted: BTreeMap<LinkId, BTreeSet<NodeId>>,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut nodes = Vec::new();
        for n in 0..NODES {
            let (lessor, lessee) = (Lessor::new(LEASE), Lessee::new(node_id(n), dice.first()));
            let shown = Duration::from_secs(dice.roll(1000));
            let rate = rate(&mut dice);
            let (state, away) = (State::default(), Duration::ZERO);
            nodes.push(One {
                rate,
                shown,
                since: away,
                state,
                applied: 0,
                lessor,
                lessee,
                away,
                acknowledged: None,
                next_beat: away,
            });
        }
        let all: BTreeSet<_> = (0..NODES).map(node_id).collect();
        let wanted = (0..LINKS).map(|n| (link_id(n), all.clone())).collect();
        let mut world = Self {
            dice,
            real: Duration::ZERO,
            log: Vec::new(),
            nodes,
            leader: (0, 1),
            elected_at: 0,
            messages: Vec::new(),
            wanted,
            calm: false,
        };
        for n in 0..NODES {
            world.commit(Command::Join(facts(n, "n", 10, BTreeMap::new(), false)));
        }
        if seed.is_multiple_of(2) {
            // The others have what an older build began: each node has its own.
            world.commit(timings(LEASE));
        }
        world
    }

    fn commit(&mut self, command: Command) {
        let id = format!("00000000-0000-0000-0000-{:012x}", self.log.len() + 1).parse::<CommandId>().unwrap();
        self.log.push(Entry { id, at_ms: 0, command });
    }

    fn is_away(&self, n: usize) -> bool {
        self.nodes[n].away > self.real
    }

    fn post(&mut self, to: usize, message: Message) {
        if self.calm || !self.dice.one_in(8) {
            let late = if self.calm { 0 } else { self.dice.roll(30) * self.dice.roll(2) };
            self.messages.push((self.real + STEP * late as u32, to, message));
        }
    }

    fn apply(&mut self, n: usize, upto: usize) {
        let node = &mut self.nodes[n];
        for entry in &self.log[node.applied..upto] {
            node.state.apply(entry);
        }
        node.applied = upto;
    }

    /// Something goes wrong, now and then.
    fn harm(&mut self) {
        let n = self.dice.roll(NODES as u64) as usize;
        if self.dice.one_in(60) {
            self.nodes[n].away = self.real + STEP * self.dice.roll(150) as u32;
            if self.dice.one_in(2) {
                // A crash, not a freeze: what was in memory is gone. The state is on disk.
                self.nodes[n].lessor = Lessor::new(LEASE);
                self.nodes[n].lessee = Lessee::new(node_id(n), self.dice.first());
                self.nodes[n].acknowledged = None;
            }
        }
        if self.dice.one_in(80) {
            self.elect();
        }
        if self.dice.one_in(20) {
            let rate = rate(&mut self.dice);
            self.nodes[n].drift(rate, self.real);
        }
        if self.dice.one_in(300) {
            let lease = LEASE * (1 + self.dice.roll(LONGEST.into()) as u32);
            self.commit(timings(lease));
        }
        if self.dice.one_in(50) {
            let nobody = self.dice.one_in(3);
            let link = link_id(self.dice.roll(LINKS as u64) as usize);
            let all = (0..NODES).map(node_id).filter(|_| !nobody && !self.dice.one_in(3)).collect();
            self.wanted.insert(link, all);
        }
    }

    /// Someone else leads from now on: from here no other leader is acknowledged, or commits anything. Who led before
    /// does not know.
    fn elect(&mut self) {
        let n = self.dice.roll(NODES as u64) as usize;
        if !self.is_away(n) {
            (self.leader, self.elected_at) = ((n, self.leader.1 + 1), self.log.len());
        }
    }

    fn step(&mut self) {
        self.real += STEP;
        if !self.calm {
            self.harm();
        }
        for n in (0..NODES).filter(|n| self.nodes[*n].away <= self.real).collect::<Vec<_>>() {
            let behind = self.log.len() - self.nodes[n].applied;
            let upto =
                self.nodes[n].applied + if self.calm { behind } else { self.dice.roll(behind as u64 + 1) as usize };
            self.apply(n, upto);
            self.lead(n);
            self.beat(n);
        }
        self.deliver();
        self.check();
    }

    fn lead(&mut self, n: usize) {
        let (now, leads) = (self.nodes[n].clock(self.real), self.leader.0 == n);
        if leads && self.nodes[n].lessor.term() != Some(self.leader.1) {
            // Behind a read barrier.
            self.apply(n, self.log.len());
            self.nodes[n].lessor.lead(self.leader.1, now);
        } else if !leads && (self.calm || self.dice.one_in(3)) {
            // It learns that it no longer leads, sooner or later.
            self.nodes[n].lessor.step_down();
        }
        if leads && (self.calm || self.dice.one_in(3)) {
            self.nodes[n].acknowledged = Some((self.leader.1, now));
        }
        let away: BTreeSet<_> = (0..NODES).filter(|n| self.is_away(*n)).map(node_id).collect();
        let node = &mut self.nodes[n];
        // What a deposed leader decided may still be committed by the one that leads now, at any time. One that knows what was
        // committed since has heard that it leads no more.
        let may_commit = node.applied <= self.elected_at && self.dice.one_in(4);
        let moves = node.lessor.decide(&node.state, &self.wanted, |id| !away.contains(&id), now);
        if let Some(moves) = moves
            && (leads || may_commit)
        {
            self.commit(Command::Lease(moves));
        }
    }

    fn beat(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.next_beat <= self.real && node.lessee.is_named(&node.state) {
            node.next_beat = self.real + 10 * STEP;
            let number = node.lessee.send(node.clock(self.real));
            (0..NODES).for_each(|to| self.post(to, Message::Sign(n, number)));
        }
    }

    fn deliver(&mut self) {
        let (due, rest) = std::mem::take(&mut self.messages).into_iter().partition(|(at, ..)| *at <= self.real);
        self.messages = rest;
        let due: Vec<(Duration, usize, Message)> = due;
        for (at, to, message) in due {
            if self.is_away(to) {
                // What is frozen finds it later; what crashed never does.
                self.messages.push((at + STEP, to, message));
                continue;
            }
            let now = self.nodes[to].clock(self.real);
            let node = &mut self.nodes[to];
            match message {
                Message::Answer(number, renewal) => node.lessee.renewed(&node.state, number, renewal),
                Message::Sign(from, number) => {
                    let term = node.lessor.term();
                    let acknowledged = node.acknowledged.filter(|(acked, _)| Some(*acked) == term).map(|(_, at)| at);
                    if let Some(renewal) = node.lessor.renew(&node.state, node_id(from), acknowledged, now) {
                        self.post(from, Message::Answer(number, renewal));
                    }
                }
            }
        }
    }

    fn holders(&self) -> BTreeMap<LinkId, Vec<usize>> {
        let mut holders: BTreeMap<LinkId, Vec<usize>> = BTreeMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            for link in node.lessee.holds(&node.state, node.clock(self.real)).into_keys() {
                holders.entry(link).or_default().push(n);
            }
        }
        holders
    }

    fn check(&self) {
        for (link, holders) in self.holders() {
            assert_eq!(holders.len(), 1, "{link} is held by {holders:?} at {:?}", self.real);
        }
    }
}

#[test]
fn no_two_nodes_ever_have_one_lease_and_in_the_end_one_has_each() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("TRELLIS_SIMULATE_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("TRELLIS_SIMULATE_SEEDS").unwrap_or(SEEDS),
    };
    let (count, mut held) = (seeds.clone().count(), 0);
    for seed in seeds {
        let mut world = World::new(seed);
        println!("seed {seed}");
        for _ in 0..1_500 {
            world.step();
            held += world.holders().len();
        }
        let all: BTreeSet<_> = (0..NODES).map(node_id).collect();
        world.wanted.values_mut().for_each(|nodes| *nodes = all.clone());
        world.calm = true;
        for _ in 0..LONGEST * 350 {
            world.step();
        }
        assert_eq!(world.holders().len(), LINKS, "seed {seed}: all is well and something is held by nobody");
    }
    let share = held * 100 / (count * 1_500 * LINKS);
    assert!(share > 20 || count < 10, "leases are held for {share} % of the time: too little to prove anything");
}

/// The worst that clocks can do: the leader that goes has the slowest, and renews at the last moment; the one that comes has
/// the fastest.
#[test]
fn a_new_leader_waits_until_the_last_renewal_of_a_slower_one_has_run_out() {
    let mut lattice = Lattice::default();
    for n in 0..3 {
        lattice.apply(Command::Join(facts(n, "n", 10, BTreeMap::new(), false)));
    }
    for lease in [LEASE, LONGEST * LEASE, LEASE] {
        lattice.apply(timings(lease));
        let longest = lattice.state.timings().unwrap().longest_lease;
        let by = |rate: u64, real: Duration| real * rate as u32 / 1000;
        let (mut goes, mut comes) = (Lessor::new(LEASE), Lessor::new(LEASE));
        goes.lead(1, Duration::ZERO);
        comes.lead(2, Duration::ZERO);
        // One that leads since long, and has not heard of the shorter lease yet.
        let (mut before, mut ends) = (lattice.state.clone(), Duration::ZERO);
        if lease < longest {
            before = before.timed(trellis_placement::Timings {
                patience: Patience { lease: longest, ..Patience::default() },
                longest_lease: longest,
            });
        }
        for step in 0.. {
            let real = STEP / 10 * step;
            let Some(renewal) = goes.renew(&before, node_id(0), Some(Duration::ZERO), by(RATES.0, real)) else { break };
            let mut holder = Lessee::new(node_id(0), 1);
            let number = holder.send(by(RATES.0, real));
            holder.renewed(&lattice.state, number, renewal);
            ends = ends.max(holder.until() * 1000 / RATES.0 as u32);
        }
        let wanted = BTreeMap::from([(link_id(0), BTreeSet::from([node_id(1)]))]);
        let mut real = Duration::ZERO;
        while comes.decide(&lattice.state, &wanted, |_| true, by(RATES.1, real)).is_none() {
            real += STEP / 10;
        }
        assert!(ends <= real, "lease {lease:?}: it is had until {ends:?} and granted again after {real:?}");
        assert!(real < longest * 5 / 4, "and not much later: {real:?}");
    }
}

#[test]
fn a_later_grant_has_a_higher_token_and_one_decided_on_another_edition_is_nothing() {
    let mut lattice = Lattice::default();
    for n in 0..2 {
        lattice.apply(Command::Join(facts(n, "n", 10, BTreeMap::new(), false)));
    }
    let to = |link: usize, node: Option<usize>| BTreeMap::from([(link_id(link), node.map(node_id))]);
    let mut moves = |edition: u64, to| lattice.apply(Command::Lease(LeaseMoves { edition, to }));
    assert_eq!(moves(0, to(0, Some(0))), Applied::Done);
    assert_eq!(moves(0, to(1, Some(0))), Applied::Unchanged, "the edition is 1 by now");
    assert_eq!(moves(1, to(0, Some(1))), Applied::Unchanged, "it is not free");
    assert_eq!(moves(1, to(1, Some(7))), Applied::Unchanged, "there is no such node");
    assert_eq!(moves(1, to(0, None)), Applied::Done);
    assert_eq!(moves(2, to(0, Some(1))), Applied::Done);
    let leases = lattice.state.leases();
    let lease = leases.get(&link_id(0)).unwrap();
    assert_eq!((lease.node, lease.token, leases.edition()), (node_id(1), 2, 3));
}

#[test]
fn an_ordered_link_needs_a_lease_where_it_is_applied() {
    let mut lattice = Lattice::default();
    for n in 0..3 {
        lattice.apply(Command::Join(facts(n, "n", 10, BTreeMap::new(), false)));
    }
    let mut app = release("orders", "v1");
    component(&mut app, "api", 1, scaler("each 2 on any"));
    provider(&mut app, "nats", trellis_manifest::Tech::Nats, None);
    link(&mut app, "nats", "api", &[]);
    link(&mut app, "nats", "api", &[]);
    app.app.links[1].name = "ordered".parse().unwrap();
    app.app.links[1].delivery = Delivery { order_by: Some(OrderBy::Subject), ..Delivery::default() };
    assert_eq!(lattice.apply(Command::Deploy(Box::new(app))), Applied::Done);
    lattice.settle();
    let leased = lattice.state.leased().links;
    assert_eq!(leased.values().cloned().collect::<Vec<_>>(), [(0..3).map(node_id).collect()]);
    assert!(leased.keys().next().unwrap().to_string().ends_with(" ordered"));
}
