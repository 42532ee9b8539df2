//! Heartbeats: what they cost, and that nothing is missed for long.

use trellis_bus::{Bus, Memory, members};
use trellis_manifest::Limits;
use trellis_placement::{Direction, HeldComponent, HeldLink};
use trellis_wire::{Config, Delivery, Digest, Link, LinkName, Secrets};
use uuid::Uuid;

use super::pages::{COUNTS_MAX, PAGE_BYTES_MAX};
use super::*;

/// A board of so many apps: a component each, that HTTP wakes and that uses a store.
fn board(apps: usize) -> Board {
    let board = Board::default();
    for n in 0..apps {
        let component: ComponentKey = format!("app-{n}/component").parse().unwrap();
        hold(&board, &component, Ok(()));
    }
    board
}

/// Holds a component, and applies its links.
fn hold(board: &Board, component: &ComponentKey, done: Result<(), String>) {
    board.component(component.clone(), &held(), done);
    for (package, interface) in [("http", "incoming-handler"), ("keyvalue", "store")] {
        board.link(&link(component, package, interface), Ok(()));
    }
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
        part: Default::default(),
    };
    let direction = Direction::Grants { tech: Tech::Http, provider };
    HeldLink { link, direction, secret_refs: Vec::new(), refused: None }
}

/// A page as it is said, of a node whose components have these counts.
fn beat(pages: &Pages, nth: usize, counts: impl Fn(&ComponentKey) -> Counts) -> Beat {
    let page = &pages.pages[nth];
    let components = page.components.iter().map(|((key, _), mark, health)| {
        (key.clone(), OfComponent { mark: *mark, health: health.clone(), counts: counts(key) })
    });
    let links = page.links.iter().map(|((id, _), mark, health)| {
        (id.clone(), OfLink { mark: *mark, health: health.clone(), at: Some("http://127.0.0.1:8000".into()) })
    });
    Beat {
        generation: Generation(1_000),
        running: 300,
        page: nth as u16,
        pages: pages.pages.len() as u16,
        components: components.collect(),
        links: links.collect(),
        beside: Vec::new(),
    }
}

/// What a node says with one heartbeat.
fn said(pages: &Pages, told: &mut Told, counts: impl Fn(&ComponentKey) -> Counts) -> Vec<Sign> {
    let mut signs = Vec::new();
    for nth in told.next_look(pages) {
        let mut beat = beat(pages, nth, &counts);
        if told.page(&mut beat) {
            signs.push(Sign::Beat(Box::new(beat)));
        }
    }
    let of_page = |page: &Arc<Page>| page.components.iter().map(|((key, _), ..)| counts(key)).collect();
    let now: Vec<Vec<Counts>> = pages.pages.iter().map(of_page).collect();
    let (generation, running) = (Generation(1_000), 300);
    let (pages, counts) = (told.marks(), told.counts(&now));
    signs.push(Sign::Alive(Box::new(Alive { generation, running, applied: Some(1_000_000), pages, counts })));
    signs
}

/// Counts of a node that is at work, after so many heartbeats.
fn at_work(beats: u64) -> Counts {
    Counts { running: 3, events: 1_000_000 + beats, faults: 1_000, tally: (1_000_000 + beats, 1_000) }
}

#[test]
fn a_heartbeat_is_bounded_however_much_a_node_holds() {
    const BEATS: usize = 60;
    let node = NodeId::new(Uuid::from_u128(1));
    let [sealed] = members::members(&Bus::Memory(Memory::alone()), LatticeId::new(Uuid::nil()), [node]);
    let subject = subject::heartbeat(sealed.lattice(), node);
    let bytes = |sign: &Sign| sealed.seal().announce(&subject, &frame::encode(sign)).unwrap().len();
    println!("B/s that each of 1,000 nodes hears, with a heartbeat a second, means of {BEATS} s");
    println!(
        "{:>10} {:>6} {:>10} {:>12} {:>12} {:>12} {:>14}",
        "components", "pages", "largest B", "all pages B", "idle", "all busy", "a page a beat"
    );
    for apps in [0, 10, 90, 1_000, 10_000] {
        let pages = Pages::of(&board(apps));
        let (mut told, count) = (Told::default(), pages.pages.len());
        let first: Vec<usize> = said(&pages, &mut told, |_| at_work(0)).iter().map(bytes).collect();
        let all: usize = first[..count].iter().sum();
        let mut mean = |busy: u64| {
            let beat = |n| said(&pages, &mut told, |_| at_work(busy * n)).iter().map(bytes).sum::<usize>();
            (1..=BEATS as u64).map(beat).sum::<usize>() / BEATS
        };
        let (idle, busy) = (mean(0), mean(1));
        let largest = first.iter().max().unwrap();
        println!(
            "{apps:>10} {count:>6} {largest:>10} {all:>12} {:>12} {:>12} {:>14}",
            1_000 * idle,
            1_000 * busy,
            // As older builds do it.
            1_000 * all / count
        );
        assert!(*largest < PAGE_BYTES_MAX + 1_024, "{largest} bytes with {apps} components");
        let told = pages.pages.iter().map(|page| page.components.len() + page.links.len()).sum::<usize>();
        assert_eq!(told, 3 * apps, "every page has its part");
        assert!(idle < 250 + 8 * count + apps, "{idle} bytes a beat with {apps} components that do nothing");
        assert!(
            busy < 250 + 8 * count + 8 * apps.min(COUNTS_MAX),
            "{busy} bytes a beat with {apps} components at work"
        );
    }
}

/// How many apps there may be at one time: enough for some pages.
const APPS: u64 = 200;

/// A node, what it tells, and what another knows of it.
struct Pair {
    dice: u64,
    board: Board,
    pages: Pages,
    counts: BTreeMap<ComponentKey, Counts>,
    told: Told,
    known: Known,
    reports: Vec<(ComponentKey, Report)>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (board, told, known) = Default::default();
        Self {
            dice: seed * 2 + 1,
            pages: Pages::of(&board),
            board,
            counts: BTreeMap::new(),
            told,
            known,
            reports: Vec::new(),
        }
    }

    fn below(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 20) % sides
    }

    /// Something happens on the node. What others are to hear of it.
    fn happens(&mut self) -> Vec<(ComponentKey, Report)> {
        let key: ComponentKey = format!("app-{}/component", self.below(APPS)).parse().unwrap();
        let Some(counts) = self.counts.get_mut(&key) else {
            hold(&self.board, &key, Ok(()));
            self.counts.insert(key.clone(), Counts::default());
            return vec![(key, Report::Started)];
        };
        counts.events += 1;
        counts.tally.0 += 1;
        match self.below(8) {
            0 => {
                self.board.component_gone(&key);
                self.counts.remove(&key);
                vec![(key, Report::Stopped)]
            }
            1..4 => {
                self.counts.get_mut(&key).unwrap().faults += 2;
                vec![(key, Report::Faulted(2))]
            }
            _ => Vec::new(),
        }
    }

    /// A heartbeat, of whose signs some are lost.
    fn beat(&mut self, lost_percent: u64) {
        self.pages = self.pages.next(&self.board);
        for sign in said(&self.pages, &mut self.told, |key| self.counts[key]) {
            let is_lost = self.below(100) < lost_percent;
            self.reports.extend(match sign {
                _ if is_lost => Vec::new(),
                Sign::Beat(beat) => self.known.page(*beat),
                Sign::Alive(alive) => self.known.alive(*alive),
                _ => unreachable!(),
            });
        }
    }

    /// The other asks for what it misses, and gets some of it.
    fn catches_up(&mut self, lost_percent: u64) {
        self.pages = self.pages.next(&self.board);
        for page in self.known.missing().map(usize::from).collect::<Vec<_>>() {
            if page < self.pages.pages.len() && self.below(100) >= lost_percent {
                self.reports.extend(self.known.page(beat(&self.pages, page, |key| self.counts[key])));
            }
        }
    }
}

#[test]
fn whoever_misses_signs_knows_all_in_the_end() {
    for seed in 0..5 {
        let mut pair = Pair::new(seed);
        for _ in 0..40 {
            (0..pair.below(20)).for_each(|_| drop(pair.happens()));
            pair.beat(40);
            pair.catches_up(40);
        }
        // Then nothing is lost, and nothing happens.
        (0..60).for_each(|_| pair.beat(0));
        pair.catches_up(0);
        assert_eq!(pair.known.missing().count(), 0);
        for n in 0..APPS {
            let key: ComponentKey = format!("app-{n}/component").parse().unwrap();
            let known = pair.known.component(&key, false).map(|one| one.counts);
            assert_eq!(known, pair.counts.get(&key).copied(), "seed {seed}, {key}");
        }
    }
}

#[test]
fn who_misses_nothing_asks_for_nothing_and_hears_just_what_happened() {
    for seed in 0..4 {
        let mut pair = Pair::new(seed);
        // The first pages say how the node is.
        pair.beat(0);
        for _ in 0..300 {
            let happened = pair.happens();
            pair.beat(0);
            assert_eq!(pair.known.missing().count(), 0);
            assert_eq!(std::mem::take(&mut pair.reports), happened, "seed {seed}");
        }
        assert!(Pages::of(&pair.board).pages.len() > 1, "there was more than one page");
    }
}

#[test]
fn what_ran_on_a_lost_node_is_told_once_and_what_runs_there_when_it_is_back() {
    let mut pair = Pair::new(1);
    pair.beat(0);
    (0..200).for_each(|_| drop(pair.happens()));
    pair.beat(0);
    pair.reports.clear();
    let held: BTreeSet<_> = pair.counts.keys().cloned().collect();
    assert_eq!(pair.known.lost(), held);
    assert_eq!(pair.known.lost(), BTreeSet::new(), "only once");
    // It was frozen, and knows nothing of that: what it said before is not said again unless it is asked.
    pair.beat(0);
    assert_eq!(pair.reports, []);
    pair.catches_up(0);
    let started = |report: (ComponentKey, Report)| (report.1 == Report::Started).then_some(report.0);
    let reports = std::mem::take(&mut pair.reports);
    assert_eq!(reports.len(), held.len(), "no fault is told again: {reports:?}");
    assert_eq!(reports.into_iter().filter_map(started).collect::<BTreeSet<_>>(), held);
    assert_eq!(pair.known.missing().count(), 0);
}

/// A node may come to say no more than pages again, as older builds do.
#[test]
fn what_was_said_last_holds() {
    let mut pair = Pair::new(1);
    pair.happens();
    pair.beat(0);
    pair.happens();
    pair.known.page(beat(&Pages::of(&pair.board), 0, |key| pair.counts[key]));
    assert_eq!(pair.known.missing().count(), 0);
}

#[test]
fn of_many_pages_that_are_missing_each_is_asked_for_in_its_turn() {
    let node = |n: u128| NodeId::new(Uuid::from_u128(n));
    let liveness = Liveness::new(node(0), Patience::default());
    for n in 1..=2 {
        let pages = (0..50).map(|page: u64| Mark::of(&page)).collect();
        let alive = Alive { generation: Generation(1), running: 0, applied: None, pages, counts: Vec::new() };
        liveness.alive_by(node(n), alive);
    }
    let mut asked = BTreeSet::new();
    for _ in 0..2 {
        let missing = liveness.missing();
        assert_eq!(missing.len(), CATCH_UP_MAX);
        asked.extend(missing);
    }
    assert_eq!(asked.len(), 100, "though nobody answers");
}
