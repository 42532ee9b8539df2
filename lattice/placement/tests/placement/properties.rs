//! What holds for every lattice, whatever happens to it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use trellis_manifest::{Scaler, Spread, Tech};
use trellis_placement::{Applied, Command, Entry, Holding, State, Verdict, plan};
use trellis_wire::{AppName, ComponentKey, NodeId};

use crate::lattice::{Lattice, component, facts, node_id, provider, release, scaler};

const NODES: usize = 6;

/// Something that happens.
#[derive(Debug, Clone)]
enum Happens {
    Join(usize, u32, u8, bool),
    Lost(usize),
    Back(usize),
    Drain(usize, bool),
    Deploy(usize, u32, Vec<(Option<u8>, u32)>),
    Daemon(usize, u32, Option<u8>),
    Unscaled(usize),
    Undeploy(usize),
    Ack(usize),
    Advance(usize),
    GiveUp(usize),
    Rollback(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    let node = 0..NODES;
    let zone = proptest::option::of(0..4_u8);
    let spreads = proptest::collection::vec((zone.clone(), 0..5_u32), 1..4);
    prop_oneof![
        4 => (node.clone(), 0..60_u32, 0..3_u8, any::<bool>()).prop_map(|(n, permits, zone, edge)| Happens::Join(n, permits, zone, edge && n == 0)),
        1 => node.clone().prop_map(Happens::Lost),
        1 => node.clone().prop_map(Happens::Back),
        2 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Happens::Drain(n, on)),
        4 => (0..4_usize, 0..40_u32, spreads).prop_map(|(app, instances, spreads)| Happens::Deploy(app, instances, spreads)),
        1 => (0..4_usize, 0..4_u32, zone).prop_map(|(app, each, zone)| Happens::Daemon(app, each, zone)),
        1 => (0..4_usize).prop_map(Happens::Unscaled),
        1 => (0..4_usize).prop_map(Happens::Undeploy),
        3 => node.prop_map(Happens::Ack),
        5 => (0..4_usize).prop_map(Happens::Advance),
        1 => (0..4_usize).prop_map(Happens::GiveUp),
        1 => (0..4_usize).prop_map(Happens::Rollback),
    ]
}

/// Zone 3 is everywhere but in zone 0, and no zone is any node.
fn spread(zone: Option<u8>, weight: u32) -> Spread {
    let requirement = zone.map(|zone| ("zone".into(), if zone == 3 { "!z0".into() } else { format!("z{zone}") }));
    Spread { name: format!("{zone:?}"), requirements: requirement.into_iter().collect(), weight }
}

/// Each scaler is a version of its own.
fn app(app: usize, scaler: Option<Scaler>) -> Command {
    let mut release = release(&format!("app{app}"), &format!("{scaler:?}"));
    component(&mut release, "api", 1, scaler);
    Command::Deploy(Box::new(release))
}

fn command(state: &State, happens: &Happens) -> Command {
    match happens {
        Happens::Join(n, permits, zone, edge) => {
            let labels = BTreeMap::from([("zone".to_owned(), format!("z{zone}"))]);
            Command::Join(facts(*n, "node", *permits, labels, *edge))
        }
        Happens::Lost(n) => Command::Lost(node_id(*n)),
        Happens::Back(n) => Command::Back(node_id(*n)),
        Happens::Drain(n, on) => Command::Drain { node: node_id(*n), on: *on },
        Happens::Deploy(n, instances, spreads) => {
            let spreads = spreads.iter().map(|&(zone, weight)| spread(zone, weight)).collect();
            app(*n, Some(Scaler::Spread { instances: Some(*instances), spreads }))
        }
        Happens::Daemon(n, each, zone) => {
            app(*n, Some(Scaler::Daemon { instances: Some(*each), spreads: vec![spread(*zone, 100)] }))
        }
        Happens::Unscaled(n) => app(*n, None),
        Happens::Undeploy(n) => Command::Undeploy(format!("app{n}").parse().unwrap()),
        Happens::Ack(n) => Command::Acked { node: node_id(*n), generation: state.plan().generation() },
        Happens::Advance(n) => {
            let (app, version, step) = rolling(state, *n);
            Command::Advance { app, version, step: step + 1 }
        }
        Happens::GiveUp(n) => {
            let (app, version, _) = rolling(state, *n);
            Command::GiveUp { app, version, why: "it faults".into() }
        }
        Happens::Rollback(n) => Command::Rollback { app: format!("app{n}").parse().unwrap(), version: None },
    }
}

/// The version of an app that is rolled out, with its step; of another one, no version.
fn rolling(state: &State, n: usize) -> (AppName, String, u8) {
    let app: AppName = format!("app{n}").parse().unwrap();
    let versions = state.app(&app);
    let version = versions.and_then(|one| one.newer()).map(|newer| newer.version.clone()).unwrap_or_default();
    let step = versions.and_then(|one| one.rollout()).map_or(0, |rollout| rollout.step);
    (app, version, step)
}

fn key(app: usize) -> ComponentKey {
    format!("app{app}/api").parse().unwrap()
}

/// Whatever holds something may.
fn check_holders(state: &State) {
    for (key, holding) in state.plan().holdings() {
        assert!(!holding.is_empty(), "{key} holds nothing");
        for (id, verdict) in state.explain(key) {
            let node = state.node(id).unwrap();
            if !matches!(verdict, Verdict::Holds(..)) {
                continue;
            }
            assert!(node.is_open(), "{key} is on a closed node");
            assert!(node.facts.capacity.permits > 0, "{key} is on a node without sandboxes");
            let versions = state.app(&key.app).unwrap();
            let scalers = versions.running().filter_map(|one| one.app.components[&key.name].scaler.clone());
            let spreads: Vec<_> =
                scalers.flat_map(|(Scaler::Spread { spreads, .. } | Scaler::Daemon { spreads, .. })| spreads).collect();
            // A version without a scaler may be anywhere.
            if versions.running().any(|one| one.app.components[&key.name].scaler.is_none()) {
                continue;
            }
            let zone = node.label("zone").unwrap();
            let fits = |spread: &Spread| {
                spread.requirements.get("zone").is_none_or(
                    |wanted| {
                        if wanted == "!z0" { zone != "z0" } else { zone == wanted }
                    },
                )
            };
            assert!(spreads.iter().any(fits), "{key} is on a node that no spread matches");
            assert!(!node.facts.edge, "{key} is on an edge node that no spread names");
        }
    }
}

/// When all has settled every spread that some node fits has what it wants, and no more.
fn check_settled(state: &State) {
    for (name, versions) in state.apps() {
        for unplaced in state.unplaced(name) {
            assert!(
                unplaced.why.starts_with("no node fits") || unplaced.why.starts_with("the lattice has no nodes"),
                "{unplaced}"
            );
        }
        let Some(release) = versions.deployed() else { continue };
        let Some(Scaler::Spread { instances: Some(instances), .. }) =
            release.app.components.values().next().unwrap().scaler.clone()
        else {
            continue;
        };
        let placed: u64 = held(state.holding(&release.key(&"api".parse().unwrap())));
        let missing: u64 = state.unplaced(name).iter().map(|unplaced| unplaced.wanted - unplaced.placed).sum();
        assert_eq!(placed + missing, u64::from(instances));
    }
}

/// The most instances that a version of app 0 which runs asks for.
fn pool(state: &State) -> u64 {
    let versions = state.app(&key(0).app).unwrap();
    let instances = versions.running().map(|one| match &one.app.components[&key(0).name].scaler {
        Some(Scaler::Spread { instances: Some(instances), .. }) => u64::from(*instances),
        _ => 0,
    });
    instances.max().unwrap_or(0)
}

/// Beside its holders one more node keeps each artifact, where there is one that may.
fn check_spares(state: &State) {
    let fit = |node: &NodeId| state.node(*node).is_some_and(|node| node.is_open() && !node.facts.edge);
    for release in state.running() {
        let key = release.key(&"api".parse().unwrap());
        let digest = release.artifacts[&key.name];
        let keeps = |node: &&NodeId| state.spares(**node).contains(&digest);
        // All apps have the same code here, so that one node may be the spare for one and a holder for another.
        let spares = state.nodes().keys().filter(|node| !state.holders(&key).contains(node)).filter(keeps).count();
        let could = state.nodes().keys().filter(|node| fit(node) && !state.holders(&key).contains(node)).count();
        assert!(spares >= could.min(1), "{key}: {spares} of {could}");
        assert!(state.nodes().keys().filter(keeps).all(fit), "{key}: a spare is closed or at the edge");
        let of_app = state.spares_of(&release.app.name);
        assert!(of_app.iter().all(|(_, spare)| state.spares(spare.node).contains(&spare.digest)), "{of_app:?}");
        assert!(could == 0 || of_app.iter().any(|(name, spare)| (name, spare.digest) == (&key.name, digest)));
    }
}

fn held(holding: Option<&Holding>) -> u64 {
    holding.into_iter().flatten().filter_map(|(_, permits)| *permits).map(u64::from).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_stable_and_whatever_holds_something_may(story in proptest::collection::vec(happens(), 1..30)) {
        let mut lattice = Lattice::default();
        for happens in &story {
            let command = command(&lattice.state, happens);
            lattice.apply(command);
            // Two changes for one node are two deltas, and what one node gives up another takes over with the next; then a
            // plan that is carried out needs no other.
            for _ in 0..3 {
                lattice.plan();
            }
            prop_assert_eq!(plan(&lattice.state), None);
            check_holders(&lattice.state);
        }
        lattice.settle();
        check_holders(&lattice.state);
        check_settled(&lattice.state);
        check_spares(&lattice.state);
    }

    /// A node may use what it had at any generation since the last that it acknowledged. Versions of other numbers and
    /// spreads come and go meanwhile: the sum never grows beyond what the larger of those that run asks for.
    #[test]
    fn permits_never_sum_to_more_than_instances(
        instances in 1..40_u32,
        spreads in proptest::collection::vec((proptest::option::of(0..4_u8), 1..5_u32), 1..4),
        story in proptest::collection::vec(happens(), 1..40),
    ) {
        let mut lattice = Lattice::default();
        let mut usable: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut before = 0;
        let deploy = command(&lattice.state, &Happens::Deploy(0, instances, spreads));
        lattice.apply(deploy.clone());
        for happens in &story {
            if matches!(happens, Happens::Daemon(0, ..) | Happens::Unscaled(0)) {
                continue;
            }
            let command = command(&lattice.state, happens);
            lattice.apply(command);
            if matches!(happens, Happens::Undeploy(0)) {
                lattice.plan();
                lattice.apply(deploy.clone());
            }
            lattice.plan();
            let holding = lattice.state.holding(&key(0)).cloned().unwrap_or_default();
            for (&node, permits) in &holding {
                let most = usable.entry(node).or_default();
                *most = permits.unwrap_or(0).max(*most);
            }
            if let Happens::Ack(n) = happens {
                usable.insert(node_id(*n), holding.get(&node_id(*n)).copied().flatten().unwrap_or(0));
            }
            let live = usable.iter().filter(|(id, _)| !lattice.state.node(**id).is_some_and(|node| node.is_lost()));
            let sum: u64 = live.map(|(_, &permits)| u64::from(permits)).sum();
            let pool = pool(&lattice.state).max(before);
            prop_assert!(sum <= pool, "{sum} of {pool} after {happens:?}");
            before = sum;
        }
    }
}

#[test]
fn a_large_lattice_is_placed_in_deltas_that_fit_the_log() {
    let mut lattice = Lattice::default();
    for n in 0..1_000 {
        let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", n % 10))]);
        lattice.apply(Command::Join(facts(n, "node", 1_000, labels, false)));
    }
    for n in 0..200 {
        let mut release = release(&format!("app{n}"), "1");
        for c in 0..10 {
            let scaler = match c {
                0 => None,
                1 => scaler(&format!("20 on zone=z{}:30, any:70", n % 10)),
                _ => scaler("10"),
            };
            component(&mut release, &format!("c{c}"), 1, scaler);
        }
        assert_eq!(lattice.apply(Command::Deploy(Box::new(release))), Applied::Done);
    }
    let mut deltas = 0;
    while let Some(delta) = plan(&lattice.state) {
        let id = format!("00000000-0000-0000-0001-{deltas:012x}").parse().unwrap();
        let entry = Entry { id, at_ms: 0, command: Command::Plan(delta) };
        assert!(entry.fits());
        assert_eq!(lattice.state.apply(&entry), Applied::Done);
        assert_eq!(lattice.state.apply(&entry), Applied::Repeated);
        deltas += 1;
    }
    let placed: u64 = lattice.state.plan().holdings().values().map(|holding| held(Some(holding))).sum();
    assert_eq!((lattice.state.plan().holdings().len(), placed), (2_000, 200 * (20 + 8 * 10)));
    let mut held_by: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in lattice.state.plan().holdings().values().flat_map(|holding| holding.keys()) {
        *held_by.entry(*node).or_default() += 1;
    }
    let most = held_by.values().copied().max().unwrap();
    assert_eq!(lattice.state.assigned(node_id(7)).components().count(), held_by[&node_id(7)]);
    assert!(most < 60, "20,000 permits over 1,000 nodes leave no node with {most}");
}

#[test]
fn what_nobody_asks_for_is_given_up_while_another_app_gives_up_a_scaler() {
    let mut lattice = Lattice::default();
    lattice.apply(Command::Join(facts(1, "node", 10, BTreeMap::new(), false)));
    let shop = |version: &str, scale: &str| {
        let mut release = release("shop", version);
        component(&mut release, "api", 1, None);
        provider(&mut release, "http", Tech::Http, scaler(scale));
        Command::Deploy(Box::new(release))
    };
    let mut gone = release("gone", "1");
    component(&mut gone, "api", 1, None);
    for command in [shop("1", "1"), Command::Deploy(Box::new(gone))] {
        assert_eq!(lattice.apply(command), Applied::Done);
    }
    lattice.settle();
    assert_eq!(lattice.state.plan().holdings().len(), 3);
    for command in [shop("2", "none"), Command::Undeploy("gone".parse().unwrap())] {
        assert_eq!(lattice.apply(command), Applied::Done);
    }
    lattice.settle_plan();
    let held = lattice.state.plan().holdings().keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(held, ["shop/api", "shop/http"], "and what the older version has runs on");
}
