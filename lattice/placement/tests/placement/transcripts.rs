//! Transcripts: commands in, what the lattice makes of them out. `UPDATE_GOLDENFILES=1 cargo test` writes them anew.
//!
//! Nodes are named by one letter. `deploy APP VERSION` takes components as `NAME=SCALER`, providers as `NAME=TECH`,
//! and as quoted words links (`web>api CONFIG`), config (`config NAME K=V`), the config a component reads
//! (`api reads NAME`), components whose code is new (`new api`) and `shared`. `join NODE new` is of this build, others are of
//! the first.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use goldenscript::{Argument, Command as Line, Runner};
use trellis_manifest::{Image, Tech};
use trellis_placement::{
    Applied, Assigned, Beside, Change, Command, Direction, End, Ended, HeldLink, Home, NodeFacts, Release, State, Step,
    diff, plan,
};
use trellis_wire::{AppName, ComponentKey, Config, DEAD_BYTES_MAX, NodeId, Part, frame};

use crate::lattice::{Lattice, component, facts, link, node_id, pairs, provider, release, scaler};

#[derive(Default)]
struct Script {
    lattice: Lattice,
    /// What each node carried out last.
    running: Vec<Assigned>,
}

impl Runner for Script {
    fn run(&mut self, line: &Line) -> Result<String, Box<dyn Error>> {
        let mut args = line.consume_args();
        let keyed = args.rest_key();
        let words: Vec<&str> = args.rest_pos().iter().map(|arg| arg.value.as_str()).collect();
        let first = words.first().copied().unwrap_or_default();
        let node = || node_id(index(first));
        let app = || first.parse();
        let command = match line.name.as_str() {
            "plan" => return Ok(self.plan()),
            "settle" => {
                self.lattice.settle();
                return Ok(holdings(&self.lattice.state));
            }
            "settle-plan" => {
                self.lattice.settle_plan();
                return Ok(holdings(&self.lattice.state));
            }
            "advance" => {
                self.lattice.advance();
                return Ok(shown(&self.lattice.state, &app()?));
            }
            "history" => return Ok(history(&self.lattice.state, &app()?)),
            "unready" => return Ok(lines(self.lattice.state.unready(&app()?))),
            "give-up" => Command::GiveUp { app: app()?, version: words[1].into(), why: words[2].into() },
            "rollback" => Command::Rollback { app: app()?, version: words.get(1).map(|version| (*version).into()) },
            "ack" => {
                let generation = self.lattice.state.plan().generation();
                Command::Acked { node: node(), generation }
            }
            "waiting" => return Ok(lines(self.lattice.state.waiting(&app()?))),
            "unplaced" => return Ok(lines(self.lattice.state.unplaced(&app()?))),
            "nowhere" => return Ok(lines(self.lattice.state.nowhere(&first.parse()?))),
            "home" if words.is_empty() => return Ok(home(&self.lattice.state)),
            "home" => Command::Home(node()),
            "gives-up" => return Ok(gives_up(&self.lattice.state, node())),
            "explain" => return Ok(explain(&self.lattice.state, &first.parse()?)),
            "steps" => return Ok(self.steps(first)),
            "join" => Command::Join(join(first, &words[1..], &keyed)),
            "lost" => Command::Lost(node()),
            "back" => Command::Back(node()),
            "forget" => Command::Forget(node()),
            "drain" => Command::Drain { node: node(), on: true },
            "pause" => Command::Pause { component: first.parse()?, on: true },
            "resume" => Command::Pause { component: first.parse()?, on: false },
            "paused" => return Ok(self.lattice.state.is_paused(&first.parse()?).to_string()),
            "undrain" => Command::Drain { node: node(), on: false },
            "label" => {
                let value = |arg: &&Argument| (arg.value != "-").then(|| arg.value.clone());
                let labels = keyed.iter().map(|arg| (arg.name().to_owned(), value(arg))).collect();
                Command::Label { node: node(), labels }
            }
            "deploy" => Command::Deploy(Box::new(manifest(&words, &keyed))),
            "undeploy" => Command::Undeploy(app()?),
            "delete" => Command::Delete(app()?),
            "put" => Command::PutConfig { name: first.into(), values: config(&keyed) },
            "unput" => Command::DeleteConfig(first.into()),
            other => return Err(format!("no command {other}").into()),
        };
        Ok(applied(&self.lattice.apply(command)))
    }

    /// Whatever the script does: a state reads back as it was written.
    fn end_script(&mut self) -> Result<(), Box<dyn Error>> {
        let state = &self.lattice.state;
        assert_eq!(frame::decode::<State>(&frame::encode(state))?.at_home(state.home()), *state);
        Ok(())
    }
}

impl Script {
    fn plan(&mut self) -> String {
        let Some(delta) = plan(&self.lattice.state) else { return "nothing to change".into() };
        let mut out = format!("generation {}\n", delta.generation());
        for (key, changes) in &delta.changes {
            let changes: Vec<String> = changes
                .iter()
                .map(|(&node, change)| match change {
                    Change::Hold(permits) => {
                        format!("{} {}", letter(node), permits.map_or("*".into(), |permits| permits.to_string()))
                    }
                    Change::Release => format!("{} -", letter(node)),
                    Change::Stage => format!("{} ready the newer", letter(node)),
                    Change::Unstage => format!("{} drop the newer", letter(node)),
                })
                .collect();
            writeln!(out, "{key}: {}", changes.join(", ")).unwrap();
        }
        assert_eq!(self.lattice.apply(Command::Plan(delta)), Applied::Done);
        out
    }

    fn steps(&mut self, node: &str) -> String {
        let n = index(node);
        self.running.resize_with(self.running.len().max(n + 1), Assigned::default);
        let assigned = self.lattice.state.assigned(node_id(n));
        let steps = diff(&self.running[n], &assigned);
        self.running[n] = assigned;
        lines(steps.iter().map(step))
    }
}

fn step(step: &Step) -> String {
    match step {
        Step::RemoveLink(id) => format!("remove link {id}"),
        Step::RemoveComponent(key) => format!("remove {key}"),
        Step::RemoveBeside(key) => format!("remove beside {key}"),
        Step::HoldBeside(key, beside) => {
            let Beside { held, share } = &**beside;
            let permits = held.permits.map_or("*".into(), |permits| permits.to_string());
            let (version, code) = (&held.version, held.digest.bytes()[0]);
            format!("hold beside {key} version {version} code {code} permits {permits}, {share} % of events")
        }
        Step::Hold(key, held) | Step::Adjust(key, held) => {
            let verb = if matches!(step, Step::Hold(..)) { "hold" } else { "adjust" };
            let permits = held.permits.map_or("*".into(), |permits| permits.to_string());
            format!(
                "{verb} {key} version {} code {} permits {permits}{}",
                held.version,
                held.digest.bytes()[0],
                values(&held.config)
            )
        }
        Step::AddLink(held) => {
            let HeldLink { link, direction, refused, .. } = &**held;
            let direction = match direction {
                Direction::Wakes { provider, tech } => format!("{provider} ({tech}) wakes {}", link.component),
                Direction::Grants { provider, tech } => format!("{provider} ({tech}) answers {}", link.component),
                Direction::GrantsElsewhere { provider, .. } => {
                    format!("{provider} elsewhere answers {}", link.component)
                }
                Direction::Between { target } => format!("{} calls {target}", link.component),
            };
            let dead_bytes_max = link.delivery.dead_bytes_max;
            let part = match link.part {
                Part::Own => "",
                Part::All => ", all of it",
                Part::Stored => ", what it stored",
            };
            let letters = match dead_bytes_max < DEAD_BYTES_MAX {
                true => format!(", dead letters up to {} MiB", dead_bytes_max >> 20),
                false => String::new(),
            };
            let refused = refused.as_ref().map(|why| format!(", refused: {why}")).unwrap_or_default();
            format!("add link {direction}{}{part}{letters}{refused}", values(&link.config))
        }
    }
}

fn join(name: &str, words: &[&str], keyed: &[&Argument]) -> NodeFacts {
    let mut labels = keyed
        .iter()
        .map(|arg| (arg.name().to_owned(), arg.value.clone()))
        .collect::<std::collections::BTreeMap<_, _>>();
    let permits = labels.remove("permits").map_or(100, |permits| permits.parse().unwrap());
    if words.contains(&"new") {
        NodeFacts::announce_level(&mut labels);
    }
    facts(index(name), name, permits, labels, words.contains(&"edge"))
}

/// Where the home is, and who would be recorded next.
fn home(state: &State) -> String {
    let at = match state.home() {
        Home::Unsettled => "unsettled".into(),
        Home::At(node) => format!("at {}", letter(node)),
        Home::GivenUp => "given up".into(),
    };
    match state.home_to_be() {
        Some(node) => format!("{at}, to be at {}", letter(node)),
        None => at,
    }
}

fn manifest(words: &[&str], keyed: &[&Argument]) -> Release {
    let mut made = release(words[0], words[1]);
    for arg in keyed {
        let (name, (what, rest)) = (arg.name(), arg.value.split_once(' ').unwrap_or((&arg.value, "")));
        match (what, Tech::ALL.into_iter().find(|tech| tech.as_str() == what)) {
            (_, Some(tech)) => provider(&mut made, name, tech, scaler(if rest.is_empty() { "none" } else { rest })),
            ("from", None) => {
                component(&mut made, name, 0, None);
                let key: ComponentKey = rest.parse().unwrap();
                let shared = Image::Shared { app: key.app, component: key.name };
                made.app.components.get_mut(&name.parse().unwrap()).unwrap().image = shared;
            }
            _ => component(&mut made, name, 1, scaler(&arg.value)),
        }
    }
    for word in &words[2..] {
        let parts: Vec<&str> = word.split(' ').collect();
        match parts[..] {
            ["shared"] => made.app.shared = true,
            ["replace"] => made.replace = true,
            ["new", entry] => component(&mut made, entry, 2, scaler("1")),
            [entry, "reads", name] => {
                let entry = &entry.parse().unwrap();
                if let Some(component) = made.app.components.get_mut(entry) {
                    component.configs.push(name.into());
                } else {
                    made.app.providers.get_mut(entry).unwrap().configs.push(name.into());
                }
            }
            ["config", name, ..] => {
                let values = pairs(word, ' ').into_iter().collect();
                made.app.configs.insert(format!("{}-{name}", words[0]), values);
            }
            [ends, ref configs @ ..] => {
                let (source, target) = ends.split_once('>').unwrap();
                link(&mut made, source, target, &configs.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
            }
            [] => {}
        }
    }
    made
}

fn applied(applied: &Applied) -> String {
    match applied {
        Applied::Done => "done".into(),
        Applied::Unchanged => "unchanged".into(),
        Applied::Waiting(what) => format!("waits for {}", what.join(", ")),
        Applied::Repeated => "repeated".into(),
        Applied::Refused(refusal) => format!("refused: {refusal}"),
    }
}

/// What runs of an app, and who holds it.
fn shown(state: &State, app: &AppName) -> String {
    let Some(versions) = state.app(app) else { return "no app".into() };
    let version = |release: Option<&Arc<Release>>| release.map_or("nothing".into(), |one| one.version.clone());
    let mut out = format!("{} is deployed", version(versions.deployed()));
    if let Some(rollout) = versions.rollout() {
        let (newer, older) = (version(versions.newer()), version(versions.older()));
        write!(out, "; {newer} for {older}, step {}, {} % of events", rollout.step, rollout.share()).unwrap();
    }
    out
}

fn history(state: &State, app: &AppName) -> String {
    let Some(versions) = state.app(app) else { return "no app".into() };
    let kept = lines(versions.kept().iter().map(|kept| {
        let ended = match &kept.ended {
            None => "runs or never ran".into(),
            Some(Ended { how: End::Replaced(by), .. }) if kept.deployed_ms.is_none() => format!("overtaken by {by}"),
            Some(Ended { how: End::Replaced(by), .. }) => format!("replaced by {by}"),
            Some(Ended { how: End::RolledBack(why), .. }) => format!("rolled back: {why}"),
            Some(Ended { how: End::Undeployed, .. }) => "undeployed".into(),
        };
        format!("{}: {ended}", kept.release.version)
    }));
    format!("{}\n{kept}", shown(state, app))
}

fn holdings(state: &State) -> String {
    lines(state.plan().holdings().iter().map(|(key, holding)| {
        let holders: Vec<String> = holding
            .iter()
            .map(|(&node, permits)| {
                format!("{} {}", letter(node), permits.map_or("*".into(), |permits| permits.to_string()))
            })
            .collect();
        let staged: String = state.plan().staged(key).into_iter().flatten().map(|&node| letter(node)).collect();
        let staged = if staged.is_empty() { staged } else { format!("; the newer: {staged}") };
        format!("{key}: {}{staged}", holders.join(", "))
    }))
}

fn explain(state: &State, key: &ComponentKey) -> String {
    lines(state.explain(key).iter().map(|(node, verdict)| format!("{} {verdict}", letter(*node))))
}

/// What a node may still do for what it gives up.
fn gives_up(state: &State, node: NodeId) -> String {
    let ids = state.running().flat_map(|release| state.link_ids(release));
    lines(ids.flat_map(|id| {
        let wakes = id.target().filter(|target| state.gives_up_waker(node, &id, target));
        let calls = state.gives_up_caller(node, &id);
        [calls.then(|| format!("call by {id}")), wakes.map(|target| format!("wake {target} by {id}"))]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    }))
}

fn config(keyed: &[&Argument]) -> Config {
    keyed.iter().map(|arg| (arg.name(), arg.value.as_str())).collect()
}

fn values(config: &Config) -> String {
    config.iter().fold(String::new(), |text, (key, value)| format!("{text} {key}={value}"))
}

fn lines<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let lines: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if lines.is_empty() { "nothing".into() } else { lines.join("\n") }
}

fn index(letter: &str) -> usize {
    usize::from(letter.bytes().next().expect("a node is named") - b'a')
}

fn letter(node: NodeId) -> char {
    ('a'..='z').find(|letter| node_id(index(&letter.to_string())) == node).expect("nodes have one letter")
}

#[test]
fn transcripts() {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/placement/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(scripts).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        goldenscript::run(&mut Script::default(), path).unwrap();
    }
}
