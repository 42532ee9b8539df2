//! A node's share that is worked out from the former one is just what it is when it is worked out anew, whatever happened
//! in between, and has what did not change at the same place in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use trellis_manifest::{Image, Served, Tech};
use trellis_placement::{Assigned, Command, LeasedLinks, NodeFacts, Release, State, diff};
use trellis_wire::{AppName, Config};

use crate::lattice::{Lattice, component, facts, link, node_id, provider, release, scaler};

const NODES: usize = 3;
const APPS: usize = 4;

/// Something that a share may follow from.
#[derive(Debug, Clone)]
enum Happens {
    /// In a zone, of this build or of the first.
    Join(usize, u8, bool),
    Lost(usize),
    Back(usize),
    Drain(usize, bool),
    Forget(usize),
    Home(usize),
    /// An app in a version of this shape.
    Deploy(usize, Shape),
    Undeploy(usize),
    Delete(usize),
    Config(u8, Option<u8>),
    Plan,
    Ack(usize),
    Advance(usize),
    GiveUp(usize),
    Rollback(usize),
}

/// What an app declares. The first app is shared; others may use it, and the last may have links of its own to it alone.
#[derive(Debug, Clone, Copy)]
struct Shape {
    code: u8,
    spread: u8,
    /// Whether its http provider has a scaler.
    scaled: bool,
    /// The config that its links name: one that is put, one of its own manifest, or none.
    config: u8,
    uses_provider: bool,
    uses_component: bool,
    /// What the config of its own manifest says.
    value: u8,
}

fn happens() -> impl Strategy<Value = Happens> {
    let (node, app) = (0..NODES, 0..APPS);
    let shape = (0..3_u8, 0..5_u8, any::<bool>(), 0..3_u8, any::<bool>(), any::<bool>(), 0..3_u8).prop_map(
        |(code, spread, scaled, config, uses_provider, uses_component, value)| Shape {
            code,
            spread,
            scaled,
            config,
            uses_provider,
            uses_component,
            value,
        },
    );
    prop_oneof![
        3 => (node.clone(), 0..2_u8, any::<bool>()).prop_map(|(n, zone, is_new)| Happens::Join(n, zone, is_new)),
        1 => node.clone().prop_map(Happens::Lost),
        1 => node.clone().prop_map(Happens::Back),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Happens::Drain(n, on)),
        1 => node.clone().prop_map(Happens::Forget),
        2 => node.clone().prop_map(Happens::Home),
        8 => (app.clone(), shape).prop_map(|(app, shape)| Happens::Deploy(app, shape)),
        1 => app.clone().prop_map(Happens::Undeploy),
        1 => app.clone().prop_map(Happens::Delete),
        3 => (0..2_u8, proptest::option::of(0..3_u8)).prop_map(|(name, value)| Happens::Config(name, value)),
        6 => Just(Happens::Plan),
        2 => node.prop_map(Happens::Ack),
        5 => app.clone().prop_map(Happens::Advance),
        1 => app.clone().prop_map(Happens::GiveUp),
        1 => app.prop_map(Happens::Rollback),
    ]
}

fn app_name(n: usize) -> AppName {
    format!("app{n}").parse().unwrap()
}

fn of(value: u8) -> Config {
    // What keeps an order or has caps is pulled at home where it comes by MQTT.
    let policy = match value {
        0 => None,
        1 => Some(("delivery.order_by", "subject")),
        _ => Some(("delivery.max_in_flight", "2")),
    };
    [("bucket", &*value.to_string())].into_iter().chain(policy).collect()
}

fn release_of(n: usize, shape: Shape) -> Release {
    let mut made = release(&format!("app{n}"), &format!("{shape:?}"));
    let spreads = ["none", "4", "2 on zone=z0", "each 1", "3 on zone=z1:50, any:50"];
    component(&mut made, "api", shape.code, scaler(spreads[usize::from(shape.spread)]));
    component(&mut made, "far", 9, None);
    provider(&mut made, "http", Tech::Http, scaler(if shape.scaled { "1" } else { "none" }));
    provider(&mut made, "store", Tech::Embedded, None);
    provider(&mut made, "timer", Tech::Timer, None);
    provider(&mut made, "topics", Tech::Mqtt, None);
    made.app.shared = n == 0;
    let (app, uses_provider, uses_component) =
        (app_name(0), n > 0 && shape.uses_provider, n > 0 && shape.uses_component);
    if uses_provider {
        for entry in made.app.providers.values_mut() {
            let component = entry.id.rsplit('-').next().unwrap().parse().unwrap();
            entry.served = Served::Shared { app: app.clone(), component };
        }
    }
    if uses_component {
        let far = made.app.components.get_mut(&"far".parse().unwrap()).unwrap();
        far.image = Image::Shared { app, component: "api".parse().unwrap() };
        made.artifacts.remove(&"far".parse().unwrap());
    }
    let configs: Vec<String> = match shape.config {
        0 => Vec::new(),
        1 => vec!["put0".into(), "put1".into()],
        _ => vec![format!("app{n}-own")],
    };
    if shape.config == 2 {
        made.app.configs.insert(format!("app{n}-own"), of(shape.value));
    }
    // No two apps listen at one address.
    let (at, address) = (format!("app{n}-at"), format!("127.0.0.1:{}", 8000 + n));
    made.app.configs.insert(at.clone(), [("address", &*address)].into_iter().collect());
    link(&mut made, "http", "api", &[configs.clone(), vec![at]].concat());
    link(&mut made, "timer", "api", &configs);
    link(&mut made, "topics", "api", &configs);
    link(&mut made, "api", "store", &configs);
    link(&mut made, "api", "far", &[]);
    if n == APPS - 1 {
        // Both of its ends may be another app's.
        link(&mut made, "far", "store", &configs);
    }
    made
}

fn join(n: usize, zone: u8, is_new: bool) -> Command {
    let mut labels = BTreeMap::from([("zone".to_owned(), format!("z{zone}"))]);
    if is_new {
        NodeFacts::announce_level(&mut labels);
    }
    Command::Join(facts(n, "node", 10, labels, false))
}

fn command(state: &State, happens: &Happens) -> Option<Command> {
    let rolling = |n: usize| {
        let versions = state.app(&app_name(n));
        let version = versions.and_then(|one| one.newer()).map(|newer| newer.version.clone()).unwrap_or_default();
        (version, versions.and_then(|one| one.rollout()).map_or(0, |rollout| rollout.step))
    };
    Some(match happens {
        Happens::Join(n, zone, is_new) => join(*n, *zone, *is_new),
        Happens::Lost(n) => Command::Lost(node_id(*n)),
        Happens::Back(n) => Command::Back(node_id(*n)),
        Happens::Forget(n) => Command::Forget(node_id(*n)),
        Happens::Home(n) => Command::Home(node_id(*n)),
        Happens::Drain(n, on) => Command::Drain { node: node_id(*n), on: *on },
        Happens::Deploy(n, shape) => Command::Deploy(Box::new(release_of(*n, *shape))),
        Happens::Undeploy(n) => Command::Undeploy(app_name(*n)),
        Happens::Delete(n) => Command::Delete(app_name(*n)),
        Happens::Config(name, Some(value)) => Command::PutConfig { name: format!("put{name}"), values: of(*value) },
        Happens::Config(name, None) => Command::DeleteConfig(format!("put{name}")),
        Happens::Plan => Command::Plan(trellis_placement::plan(state)?),
        Happens::Ack(n) => Command::Acked { node: node_id(*n), generation: state.plan().generation() },
        Happens::Advance(n) => {
            let (version, step) = rolling(*n);
            Command::Advance { app: app_name(*n), version, step: step + 1 }
        }
        Happens::GiveUp(n) => Command::GiveUp { app: app_name(*n), version: rolling(*n).0, why: "it faults".into() },
        Happens::Rollback(n) => Command::Rollback { app: app_name(*n), version: None },
    })
}

/// How much was checked, so that the stories are known to be about something.
#[derive(Default)]
struct Seen {
    links: usize,
    crossing: usize,
    beside: usize,
    leased: usize,
}

/// Checks that every link and component is found by its name.
fn check_found(share: &Assigned, seen: &mut Seen) {
    for held in share.links() {
        assert_eq!(share.exact_link(&held.link.id), Some(held));
        seen.links += 1;
        seen.crossing += usize::from(held.link.id.apps().is_some_and(|(source, target)| source != target));
    }
    for (key, held) in share.components() {
        assert_eq!(share.component(key), Some(held));
    }
    for (key, beside) in share.all_beside() {
        assert_eq!(share.beside(key), Some(beside));
        seen.beside += 1;
    }
}

fn check(story: &[Happens], seen: &mut Seen) {
    let mut lattice = Lattice::default();
    for (n, zone) in [(0, 0), (1, 1)] {
        lattice.apply(join(n, zone, true));
    }
    let mut known: Vec<(State, Assigned)> = vec![Default::default(); NODES];
    let mut leased: (State, LeasedLinks) = Default::default();
    for (nth, happens) in story.iter().enumerate() {
        if let Some(command) = command(&lattice.state, happens) {
            lattice.apply(command);
        }
        leased = (lattice.state.clone(), lattice.state.leased_since(&leased.0, &leased.1));
        assert_eq!(leased.1, lattice.state.leased(), "after {happens:?}");
        seen.leased += leased.1.links.len();
        for (n, (before, share)) in known.iter_mut().enumerate() {
            // One node looks at every state, others miss some.
            if nth % (n + 1) != 0 {
                continue;
            }
            let next = lattice.state.assigned_since(before, node_id(n), share);
            let anew = lattice.state.assigned(node_id(n));
            assert_eq!(next, anew, "node {n} after {happens:?}");
            assert_eq!(diff(&next, &anew), [], "what is equal needs no steps");
            assert!(next.apart(share).all(|(_, now, former)| now != former), "what did not change is where it was");
            check_found(&next, seen);
            let mut running = share.clone();
            running.meet(&next);
            assert_eq!(diff(&running, &next), diff(share, &next), "what is equal only is taken over");
            (*before, *share) = (lattice.state.clone(), next);
        }
    }
}

#[test]
fn a_share_that_goes_on_from_the_former_one_is_what_it_is_anew() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let seen = std::cell::RefCell::new(Seen::default());
    let stories = proptest::collection::vec(happens(), 1..60);
    runner
        .run(&stories, |story| {
            check(&story, &mut seen.borrow_mut());
            Ok(())
        })
        .unwrap_or_else(|why| panic!("{why}"));
    let Seen { links, crossing, beside, leased } = seen.into_inner();
    let seen = format!("{links} links, {crossing} crossing, {beside} beside, {leased} leased");
    assert!(links > 1_000 && crossing > 100 && beside > 100 && leased > 100, "{seen}");
}
