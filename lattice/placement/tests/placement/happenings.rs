//! What followers of the lattice are told, and what a backup brings back.

use std::collections::BTreeMap;

use trellis_manifest::Tech;
use trellis_placement::{Applied, Command, Happening, LeaseMoves, NodeFacts, State, happenings};
use trellis_wire::{AppName, ComponentKey, Config, LinkId};

use crate::lattice::{Lattice, component, facts, link, node_id, provider, release, scaler};

impl Lattice {
    /// What a command makes happen, as text.
    fn tells(&mut self, command: Command) -> Vec<String> {
        let before = self.state.clone();
        self.apply(command);
        happenings(&before, &self.state).iter().map(said).collect()
    }
}

fn said(happening: &Happening) -> String {
    match happening {
        Happening::LinkSet(_, id) => format!("LinkSet {id}"),
        other => format!("{other:?}"),
    }
}

fn orders(version: &str, code: u8) -> Command {
    let mut app = release("orders", version);
    component(&mut app, "api", code, scaler("2"));
    provider(&mut app, "http", Tech::Http, None);
    link(&mut app, "http", "api", &[]);
    Command::Deploy(Box::new(app))
}

#[test]
fn what_happens_is_told_from_the_states_alone() {
    let mut lattice = Lattice::default();
    let node = node_id(1);
    let join = Command::Join(facts(1, "n", 10, BTreeMap::new(), false));
    assert_eq!(lattice.tells(join.clone()), [format!("NodeJoined({node})")]);
    assert_eq!(lattice.tells(join), [] as [&str; 0], "nothing changed");
    assert_eq!(lattice.tells(Command::Lost(node)), [format!("NodeLost({node})")]);
    assert_eq!(lattice.tells(Command::Back(node)), [format!("NodeBack({node})")]);
    assert_eq!(lattice.tells(Command::Drain { node, on: true }), [format!("NodeDrained({node})")]);
    assert_eq!(lattice.tells(Command::Drain { node, on: false }), [format!("NodeUndrained({node})")]);
    assert_eq!(lattice.tells(Command::Home(node)), [format!("HomeSet({node})")]);
    let mut label = |key: &str, value: Option<&str>| {
        lattice.tells(Command::Label { node, labels: BTreeMap::from([(key.into(), value.map(Into::into))]) })
    };
    let labelled = |labels: &str| [format!("NodeLabelled({node}, {{{labels}}})")];
    assert_eq!(label("zone", Some("eu")), labelled(r#""zone": Some("eu")"#));
    assert_eq!(label("zone", Some("eu")), [] as [&str; 0], "it was so");
    assert_eq!(label("zone", None), labelled(r#""zone": None"#));

    let link = "orders/http -> orders/api wasi:http/incoming-handler default";
    let deployed = |version: &str, before: &str| {
        format!(r#"AppDeployed {{ app: "orders", version: "{version}", before: {before} }}"#)
    };
    assert_eq!(lattice.tells(orders("v1", 1)), [deployed("v1", "None"), format!("LinkSet {link}")]);
    let rolling = |version: &str, before: &str| {
        format!(r#"AppRolling {{ app: "orders", version: "{version}", before: Some("{before}") }}"#)
    };
    let back = |why: &str| format!(r#"AppRolledBack {{ app: "orders", version: "v1", before: "v2", why: {why} }}"#);
    assert_eq!(lattice.tells(orders("v2", 2)), [rolling("v2", "v1")]);
    let (app, version): (AppName, String) = ("orders".parse().unwrap(), "v2".into());
    let why = "it is never ready".into();
    assert_eq!(
        lattice.tells(Command::GiveUp { app: app.clone(), version: version.clone(), why }),
        [back(r#"Some("it is never ready")"#)]
    );

    assert_eq!(lattice.tells(orders("v2", 2)), [rolling("v2", "v1")]);
    let step = |version: &str, step| Command::Advance { app: app.clone(), version: version.into(), step };
    assert_eq!(lattice.tells(step("v2", 1)), [] as [&str; 0]);
    assert_eq!(lattice.tells(step("v2", 2)), [] as [&str; 0]);
    assert_eq!(lattice.tells(step("v2", 3)), [deployed("v2", r#"Some("v1")"#)], "the link is the same");
    assert_eq!(lattice.tells(step("v2", 4)), [] as [&str; 0]);
    let by_hand = Command::Rollback { app: app.clone(), version: None };
    assert_eq!(lattice.tells(by_hand), [rolling("v1", "v2")]);
    (1..3).for_each(|n| drop(lattice.tells(step("v1", n))));
    assert_eq!(lattice.tells(step("v1", 3)), [back("None")]);
    let removed = format!(r#"LinkRemoved("orders", {link})"#);
    let undeployed = lattice.tells(Command::Undeploy(app));
    assert_eq!(undeployed, [removed, r#"AppUndeployed("orders")"#.to_owned()]);
    assert_eq!(lattice.tells(Command::Delete("orders".parse().unwrap())), [r#"AppDeleted("orders")"#]);
}

#[test]
fn leases_that_change_hands_are_told() {
    let mut lattice = Lattice::default();
    lattice.apply(Command::Join(facts(1, "n", 10, BTreeMap::new(), false)));
    let end = |name: &str| format!("a/{name}").parse().unwrap();
    let id = LinkId::new(&end("p"), &end("c"), &Default::default(), "w", "p", &["i".into()]);
    let moves = |edition, to| Command::Lease(LeaseMoves { edition, to: BTreeMap::from([(id.clone(), to)]) });
    let lease = format!("({id}, Lease {{ node: {}, token: 1 }})", node_id(1));
    assert_eq!(lattice.tells(moves(0, Some(node_id(1)))), [format!("LeaseGranted{lease}")]);
    assert_eq!(lattice.tells(moves(1, None)), [format!("LeaseLost{lease}")]);
}

/// What a backup is to bring back of a state.
fn kept(state: &State) -> Vec<String> {
    let mut kept = Vec::new();
    for (name, versions) in state.apps() {
        let version = |release: Option<&std::sync::Arc<trellis_placement::Release>>| {
            release.map_or("none".into(), |release| release.version.clone())
        };
        let all: Vec<_> = versions.kept().iter().map(|kept| &*kept.release).collect();
        let ways = [versions.deployed(), versions.newer(), versions.next()].map(version);
        kept.push(format!("{name} {ways:?} {all:?}"));
    }
    kept.extend(state.configs().iter().map(|(name, config)| format!("{name} {config:?}")));
    kept
}

/// A state made from a backup of another.
fn restored(state: &State) -> Lattice {
    let mut restored = Lattice::default();
    for command in state.commands() {
        let applied = restored.apply(command);
        assert!(!matches!(applied, Applied::Refused(_)), "{applied:?}");
    }
    restored
}

#[test]
fn a_backup_tells_how_versions_ended() {
    let mut lattice = Lattice::default();
    let mut labels = BTreeMap::new();
    NodeFacts::announce_level(&mut labels);
    lattice.apply(Command::Join(facts(1, "n", 10, labels, false)));
    let config = |version: &str| [("orders-own".into(), Config::from_iter([("k", version)]))].into();
    let deploy = |lattice: &mut Lattice, version: &str, code| {
        let Command::Deploy(mut release) = orders(version, code) else { unreachable!("it is a deploy") };
        release.app.configs = config(version);
        release.replace = true;
        lattice.apply(Command::Deploy(release));
    };
    // v1 ran, v2 faulted, v3 was overtaken by v4, and another content of v4 is on its way.
    let app: AppName = "orders".parse().unwrap();
    deploy(&mut lattice, "v1", 1);
    deploy(&mut lattice, "v2", 2);
    let faulted = Command::GiveUp { app: app.clone(), version: "v2".into(), why: "it faults".into() };
    lattice.apply(faulted);
    deploy(&mut lattice, "v3", 3);
    deploy(&mut lattice, "v4", 4);
    lattice.settle();
    let past = |state: &State| {
        let kept = state.app(&"orders".parse().unwrap()).unwrap().kept().iter();
        kept.map(|kept| (kept.release.version.clone(), kept.put_ms, kept.deployed_ms, kept.ended.clone())).collect()
    };
    let (before, again): (Vec<_>, Vec<_>) = (past(&lattice.state), past(&restored(&lattice.state).state));
    assert_eq!(again[..3], before[..3]);
    let mut other = restored(&lattice.state);
    deploy(&mut lattice, "v4", 5);
    assert_eq!(kept(&restored(&lattice.state).state), kept(&lattice.state));

    // What ran well before is gone back to there, too, and an app that was stopped has its config.
    assert_eq!(other.apply(Command::Rollback { app: app.clone(), version: None }), Applied::Done);
    other.settle();
    assert_eq!(other.state.app(&app).unwrap().deployed().unwrap().version, "v1");
    other.apply(Command::Undeploy(app.clone()));
    let third = restored(&other.state);
    assert_eq!(kept(&third.state), kept(&other.state));
    assert_eq!(third.state.configs().get("orders-own").unwrap().owner, Some(app));
}

#[test]
fn a_backup_brings_back_apps_versions_and_configs() {
    let mut lattice = Lattice::default();
    lattice.apply(Command::Join(facts(1, "n", 10, BTreeMap::new(), false)));
    assert!(lattice.state.is_empty());
    let config = |name: &str| Command::PutConfig { name: name.into(), values: Config::from_iter([("k", "v")]) };
    lattice.apply(config("colours"));
    // Of three versions the first runs, and the middle one is on its way to take its place.
    for (version, code) in [("v1", 1), ("v2", 2), ("v3", 3), ("v2", 2)] {
        lattice.apply(orders(version, code));
    }
    // Named so that it comes before what it uses.
    let mut shares = release("shares", "v1");
    shares.app.shared = true;
    provider(&mut shares, "kv", Tech::Embedded, None);
    lattice.apply(Command::Deploy(Box::new(shares)));
    let mut uses = release("a-user", "v1");
    component(&mut uses, "api", 9, scaler("1"));
    provider(&mut uses, "kv", Tech::Embedded, None);
    let shared = trellis_manifest::Served::Shared { app: "shares".parse().unwrap(), component: "kv".parse().unwrap() };
    uses.app.providers.values_mut().for_each(|provider| provider.served = shared.clone());
    link(&mut uses, "api", "kv", &[]);
    assert_eq!(lattice.apply(Command::Deploy(Box::new(uses))), Applied::Done);
    // One that was stopped, and one that waits for its config.
    let mut stopped = release("stopped", "v1");
    component(&mut stopped, "api", 7, None);
    lattice.apply(Command::Deploy(Box::new(stopped)));
    lattice.apply(Command::Undeploy("stopped".parse().unwrap()));
    let mut waits = release("waits", "v1");
    component(&mut waits, "api", 8, None);
    waits.app.components.values_mut().for_each(|component| component.configs.push("missing".into()));
    assert!(matches!(lattice.apply(Command::Deploy(Box::new(waits))), Applied::Waiting(_)));

    let paused: ComponentKey = "orders/api".parse().unwrap();
    let told = lattice.tells(Command::Pause { component: paused.clone(), on: true });
    assert_eq!(told, ["TriggerPaused(orders/api)"]);

    let restored = restored(&lattice.state);
    assert_eq!(kept(&restored.state), kept(&lattice.state));
    assert!(!restored.state.is_empty() && restored.state.is_paused(&paused));
}
