//! A lattice in a variable, and a short way to write apps.

use std::collections::BTreeMap;

use trellis_manifest::{App, AppLink, Component, Delivery, Image, Limits, Provider, Scaler, Served, Spread, Tech};
use trellis_placement::{Applied, Capacity, Command, Entry, NodeFacts, Release, State, plan};
use trellis_wire::{CommandId, ComponentName, Digest, LinkName, NodeId, NodeKey};

/// A state with the commands that made it.
#[derive(Debug, Default)]
pub(crate) struct Lattice {
    pub(crate) state: State,
    commands: u64,
}

impl Lattice {
    pub(crate) fn apply(&mut self, command: Command) -> Applied {
        self.commands += 1;
        let id = format!("00000000-0000-0000-0000-{:012x}", self.commands).parse::<CommandId>().unwrap();
        self.state.apply(&Entry { id, at_ms: 1_000 * self.commands, command })
    }

    /// Plans once. Says whether there was anything to change.
    pub(crate) fn plan(&mut self) -> bool {
        let Some(delta) = plan(&self.state) else { return false };
        assert_eq!(self.apply(Command::Plan(delta)), Applied::Done);
        true
    }

    /// Takes the next step of every roll-out. Whether there is any.
    pub(crate) fn advance(&mut self) -> bool {
        let steps: Vec<_> = self
            .state
            .rolling()
            .map(|(app, versions)| {
                let (rollout, newer) = (versions.rollout().unwrap(), versions.newer().unwrap());
                Command::Advance { app: app.clone(), version: newer.version.clone(), step: rollout.step + 1 }
            })
            .collect();
        let any = !steps.is_empty();
        for step in steps {
            assert_eq!(self.apply(step), Applied::Done);
        }
        any
    }

    /// Plans, lets every live node say that it carries the plan out, and takes the steps of roll-outs, until nothing
    /// changes.
    pub(crate) fn settle(&mut self) -> usize {
        let mut deltas = self.settle_plan();
        while self.advance() {
            deltas += self.settle_plan();
        }
        deltas
    }

    /// The same without the steps of roll-outs.
    pub(crate) fn settle_plan(&mut self) -> usize {
        for deltas in 0..10_000 {
            let owing: Vec<_> =
                self.state.nodes().iter().filter(|(_, node)| !node.is_lost()).map(|(&id, _)| id).collect();
            for node in owing {
                if let Some(generation) = self.state.owes(node) {
                    self.apply(Command::Acked { node, generation });
                }
            }
            if !self.plan() {
                return deltas;
            }
        }
        panic!("the plan never settles");
    }
}

pub(crate) fn node_id(n: usize) -> NodeId {
    format!("0a0de000-0000-7000-8000-{n:012x}").parse().unwrap()
}

pub(crate) fn facts(n: usize, name: &str, permits: u32, labels: BTreeMap<String, String>, edge: bool) -> NodeFacts {
    let capacity = Capacity { permits, memory_bytes: 1 << 30 };
    NodeFacts {
        id: node_id(n),
        name: name.into(),
        labels,
        version: "0.1.0".into(),
        capacity,
        edge,
        key: NodeKey::new([0; 32]),
    }
}

/// A release of an app that declares nothing yet.
pub(crate) fn release(app: &str, version: &str) -> Release {
    let app = App::new(app.parse().unwrap());
    let manifest = Digest::new([0; 32]);
    Release { app, version: version.into(), artifacts: BTreeMap::new(), manifest, replace: false }
}

/// Adds a component. Its code is named by a number.
pub(crate) fn component(release: &mut Release, name: &str, code: u8, scaler: Option<Scaler>) {
    let (id, name) = (format!("{}-{name}", release.app.name), name.parse::<ComponentName>().unwrap());
    release.artifacts.insert(name.clone(), Digest::new([code; 32]));
    let image = Image::File { path: format!("{name}.wasm"), digest: None };
    let component =
        Component { id, image, configs: Vec::new(), secrets: Vec::new(), scaler, limits: Limits::default() };
    release.app.components.insert(name, component);
}

pub(crate) fn provider(release: &mut Release, name: &str, tech: Tech, scaler: Option<Scaler>) {
    let id = format!("{}-{name}", release.app.name);
    let served = Served::Builtin(tech);
    let provider =
        Provider { id, image: format!("trellis://{tech}"), served, configs: Vec::new(), secrets: Vec::new(), scaler };
    release.app.providers.insert(name.parse().unwrap(), provider);
}

pub(crate) fn link(release: &mut Release, source: &str, target: &str, configs: &[String]) {
    let is_wake = release.app.providers.contains_key(&source.parse::<ComponentName>().unwrap());
    let link = AppLink {
        source: source.parse().unwrap(),
        target: target.parse().unwrap(),
        name: LinkName::default(),
        namespace: "wasi".into(),
        package: if is_wake { "http" } else { "keyvalue" }.into(),
        interfaces: vec![if is_wake { "incoming-handler" } else { "store" }.into()],
        source_configs: if is_wake { configs.to_vec() } else { Vec::new() },
        target_configs: if is_wake { Vec::new() } else { configs.to_vec() },
        source_secrets: Vec::new(),
        target_secrets: Vec::new(),
        delivery: Delivery::default(),
    };
    release.app.links.push(link);
}

/// `9`, `9 on zone=eu:80, zone=us&fast=*:20`, `each 2 on zone=eu`; `none` is no scaler.
pub(crate) fn scaler(text: &str) -> Option<Scaler> {
    if text == "none" {
        return None;
    }
    let (count, spreads) = text.split_once(" on ").unwrap_or((text, "any"));
    let spreads = spreads.split(", ").map(spread).collect();
    Some(match count.strip_prefix("each ") {
        Some(each) => Scaler::Daemon { instances: Some(each.parse().unwrap()), spreads },
        None => Scaler::Spread { instances: Some(count.parse().unwrap()), spreads },
    })
}

fn spread(text: &str) -> Spread {
    let (requirements, weight) = text.split_once(':').unwrap_or((text, "100"));
    Spread { name: requirements.into(), requirements: pairs(requirements, '&'), weight: weight.parse().unwrap() }
}

/// `a=1 b=2`; what has no `=` is left out.
pub(crate) fn pairs(text: &str, between: char) -> BTreeMap<String, String> {
    let pairs = text.split(between).filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.into(), value.into())).collect()
}
