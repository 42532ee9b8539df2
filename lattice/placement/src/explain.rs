//! Why something is or is not placed, from state alone.

use std::fmt;

use trellis_wire::{AppName, ComponentKey, NodeId};

use crate::demand::{Demand, Portion};
use crate::home::Seat;
use crate::node::EDGE_LABEL;
use crate::planner::Ground;
use crate::rollout::Want;
use crate::{Holding, State, Unfit, Versions};

/// How many nodes an explanation names one by one.
const NODES_NAMED_MAX: usize = 3;

/// What is said until the leader has planned.
const NOT_PLANNED_YET: &str = "the plan has not come to it yet";

/// Whether a node may hold a component, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds it, with so many permits; `None`: as many as it allows. A provider runs there. Of several spreads, those that
    /// fit it.
    Holds(Option<u32>, Vec<String>),
    /// It makes the newer version of a roll-out ready.
    Staged,
    /// It could, and nothing more is needed there now.
    Fits,
    /// Nothing is asked for, on any node: `instances: 0`.
    Unasked,
    /// Nothing can be placed there now.
    Away(Unfit),
    /// It cannot: for each spread by name, why.
    Unfit(Vec<(String, Unfit)>),
    /// A provider without a scaler runs where the components are that it is linked with, and none is there.
    NotLinked,
    /// A provider that is embedded runs at home, which this node is.
    Home,
    /// It runs on the node of this name and id, which is the home; `None`: on none just now.
    NotHome(Option<String>),
}

/// A spread that is not fully placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    /// The component or provider.
    pub component: ComponentKey,
    /// The spread's name; `default` without a scaler.
    pub spread: String,
    /// What it asks for: permits, or nodes for a provider and without a scaler.
    pub wanted: u64,
    /// What is placed of it.
    pub placed: u64,
    /// Why not more, for people.
    pub why: String,
    /// Whether the spread names the edge: nobody waits for what is there.
    pub edge: bool,
}

impl State {
    /// Why each node may or may not hold `key`. Empty when it does not run.
    pub fn explain(&self, key: &ComponentKey) -> Vec<(NodeId, Verdict)> {
        if let Some(want) = self.want(key) {
            let Some(demand) = want.demand.as_ref().or(want.newer.as_ref()) else { return Vec::new() };
            let judge = |(&id, _)| (id, self.judge(demand, want.sandboxes, key, id));
            return self.nodes().iter().map(judge).collect();
        }
        let Some((_, provider)) = self.provider(key) else { return Vec::new() };
        let seat = self.seat(provider);
        let (running, at_home) = (self.provider_nodes(key), self.pulls_at_home(key));
        let judge = |&id| match seat {
            Seat::Home(home) if home == Some(id) => (id, Verdict::Home),
            Seat::Home(home) => (id, Verdict::NotHome(home.map(|home| self.named(home)))),
            _ if running.contains(&id) => (id, Verdict::Holds(None, Vec::new())),
            _ if at_home => (id, Verdict::NotHome(self.home_node().map(|home| self.named(home)))),
            _ => (id, self.nodes()[&id].away().map_or(Verdict::NotLinked, Verdict::Away)),
        };
        self.nodes().keys().map(judge).collect()
    }

    /// The spreads of an app that are not fully placed.
    pub fn unplaced(&self, app: &AppName) -> Vec<Unplaced> {
        let mut ground = Ground::unloaded(self);
        let nothing = Holding::new();
        let mut unplaced = Vec::new();
        for Want { key, demand, sandboxes, .. } in self.app(app).into_iter().flat_map(Want::all) {
            let Some(demand) = demand else { continue };
            let placed = ground.met(&demand, sandboxes, self.holding(&key).unwrap_or(&nothing));
            let reach = ground.reach(&demand, sandboxes);
            for ((portion, list), placed) in demand.portions().iter().zip(&reach.lists).zip(placed) {
                let eligible = list.len() as u64;
                let wanted = match demand {
                    Demand::Every { .. } => u64::from(portion.wanted) * eligible.max(1),
                    Demand::Permits(_) | Demand::Nodes(_) => u64::from(portion.wanted),
                };
                if placed < wanted {
                    let why = self.why(&key, &demand, portion, sandboxes, eligible);
                    unplaced.push(Unplaced {
                        component: key.clone(),
                        spread: portion.name.into(),
                        wanted,
                        placed,
                        why,
                        edge: portion.requirements.contains_key(EDGE_LABEL),
                    });
                }
            }
        }
        unplaced
    }

    /// Why a provider that runs where its scaler or the home is runs on no node, for people. `None`: it runs on some, or beside
    /// components, of which is said where they are.
    pub fn nowhere(&self, provider: &ComponentKey) -> Option<String> {
        let (_, declared) = self.provider(provider)?;
        match self.seat(declared) {
            Seat::Planned if self.holders(provider).is_empty() => {
                let mut unplaced = self.unplaced(&provider.app).into_iter();
                let unplaced = unplaced.find(|unplaced| unplaced.component == *provider);
                let unasked =
                    || format!("{provider}: 0 instances are asked for: deploy app {} with more", provider.app);
                Some(unplaced.map_or_else(unasked, |unplaced| unplaced.to_string()))
            }
            Seat::Home(None) => Some(format!(
                "{provider}: the home was forgotten, and the leader has not recorded another one yet: `trellis nodes` shows \
                 whether there is a node for it that is neither lost nor drained"
            )),
            Seat::Planned | Seat::Home(Some(_)) | Seat::Beside => None,
        }
    }

    /// Why the plan is not ready for the next step of an app's roll-out, for people. What is for the edge is not waited for.
    pub fn unready(&self, app: &AppName) -> Vec<String> {
        let Some(rollout) = self.app(app).and_then(Versions::rollout) else { return Vec::new() };
        let mut unready = Vec::new();
        if rollout.is_last() {
            unready.extend(self.unplaced(app).iter().filter(|unplaced| !unplaced.edge).map(ToString::to_string));
        }
        let mut ground = Ground::survey(self);
        for want in self.app(app).into_iter().flat_map(Want::all) {
            let Some(newer) = &want.newer else { continue };
            let reach = ground.reach(newer, want.sandboxes);
            let is_staged = self.plan().staged(&want.key).is_some_and(|nodes| !nodes.is_empty());
            let wanted = newer.portions().iter().zip(&reach.lists);
            for (portion, list) in
                wanted.filter(|(portion, _)| portion.wanted > 0 && !portion.requirements.contains_key(EDGE_LABEL))
            {
                if list.is_empty() {
                    unready.push(format!("{}: {}", want.key, self.why_nowhere(portion, want.sandboxes)));
                } else if !is_staged {
                    unready.push(format!("{}: {NOT_PLANNED_YET}", want.key));
                }
            }
        }
        unready
    }

    fn judge(&self, demand: &Demand<'_>, sandboxes: bool, key: &ComponentKey, id: NodeId) -> Verdict {
        let node = &self.nodes()[&id];
        if let Some(&permits) = self.holding(key).and_then(|holding| holding.get(&id)) {
            let portions = demand.portions();
            let fitting = portions.iter().filter(|portion| node.suits(portion.requirements, sandboxes).is_ok());
            let spreads = fitting.map(|portion| portion.name.to_owned()).collect();
            return Verdict::Holds(permits, if portions.len() > 1 { spreads } else { Vec::new() });
        }
        if self.plan().staged(key).is_some_and(|nodes| nodes.contains(&id)) {
            return Verdict::Staged;
        }
        if demand.portions().iter().all(|portion| portion.wanted == 0) {
            return Verdict::Unasked;
        }
        if let Some(away) = node.away() {
            return Verdict::Away(away);
        }
        let unfit =
            |portion: &Portion<'_>| Some((portion.name.to_owned(), node.fits(portion.requirements, sandboxes).err()?));
        let reasons: Vec<_> = demand.portions().iter().filter_map(unfit).collect();
        if reasons.len() < demand.portions().len() { Verdict::Fits } else { Verdict::Unfit(reasons) }
    }

    fn why(
        &self,
        key: &ComponentKey,
        demand: &Demand<'_>,
        portion: &Portion<'_>,
        sandboxes: bool,
        eligible: u64,
    ) -> String {
        if eligible == 0 {
            return self.why_nowhere(portion, sandboxes);
        }
        let waits = self.plan().unacked(key).filter(|(id, _)| self.node(*id).is_some_and(|node| !node.is_lost()));
        let waits: Vec<String> = waits.map(|(id, _)| self.shown(id)).collect();
        if !waits.is_empty() {
            return format!("waits until {} gave permits up", waits.join(", "));
        }
        if matches!(demand, Demand::Nodes(_)) && eligible < u64::from(portion.wanted) {
            return format!("only {eligible} nodes fit: start more that do, or deploy it with fewer `instances`");
        }
        NOT_PLANNED_YET.into()
    }

    fn why_nowhere(&self, portion: &Portion<'_>, sandboxes: bool) -> String {
        if self.nodes().is_empty() {
            return "the lattice has no nodes".into();
        }
        let unfit =
            self.nodes().iter().filter_map(|(id, node)| Some((*id, node.fits(portion.requirements, sandboxes).err()?)));
        let mut unfit: Vec<(NodeId, Unfit)> = unfit.collect();
        // Whoever lacks the least says most: among many that were never meant, the one that was would not be named.
        unfit.sort_by_key(|(id, _)| {
            self.nodes()[id].suits(portion.requirements, sandboxes).err().map(|unfit| unfit.rank())
        });
        let named = unfit.iter().take(NODES_NAMED_MAX).map(|(id, unfit)| format!("{} {unfit}", self.shown(*id)));
        let named: Vec<String> = named.collect();
        let more = self.nodes().len() - named.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        // Of a node that is there more can be said than of one that is lost.
        let is_there = |(_, unfit): &&(NodeId, Unfit)| *unfit != Unfit::Lost;
        let helps = unfit.iter().find(is_there).or(unfit.first()).map(|(id, unfit)| {
            format!(
                "; what helps for {}: {}, or deploy it with a spread that fits",
                self.shown(*id),
                unfit.remedy(&id.to_string())
            )
        });
        format!("no node fits: {}{more}{}", named.join("; "), helps.unwrap_or_default())
    }
}

impl Verdict {
    /// What would change it on the node of this name or id, for people.
    pub fn remedy(&self, node: &str) -> Option<String> {
        match self {
            Self::Holds(..) | Self::Staged | Self::Home | Self::NotHome(_) => None,
            Self::Unasked => Some("`instances` above 0".into()),
            Self::Fits => Some("more `instances`, or another node that has no room".into()),
            Self::Away(away) => Some(away.remedy(node)),
            Self::Unfit(reasons) => reasons.first().map(|(_, unfit)| unfit.remedy(node)),
            Self::NotLinked => Some("a component that it is linked with is placed there".into()),
        }
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { component, spread, wanted, placed, why, edge: _ } = self;
        write!(f, "{component}: {placed} of {wanted} placed for spread `{spread}`: {why}")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds(permits, spreads) => {
                f.write_str("holds it")?;
                permits.map_or(Ok(()), |permits| write!(f, " with {permits} permits"))?;
                let named: Vec<String> = spreads.iter().map(|spread| format!("`{spread}`")).collect();
                match named.len() {
                    0 => Ok(()),
                    1 => write!(f, " (spread {})", named[0]),
                    _ => write!(f, " (spreads {})", named.join(", ")),
                }
            }
            Self::Staged => f.write_str("makes the newer version ready, and has no permits of it yet"),
            Self::Fits => f.write_str("could hold it; not needed"),
            Self::Unasked => f.write_str("not needed: 0 instances are asked for"),
            Self::NotLinked => f.write_str("holds no component that it is linked with"),
            Self::Home => f.write_str("runs it: it is the home of what trellis://embedded keeps"),
            Self::NotHome(Some(home)) => write!(f, "reached over the bus: node {home} is its home"),
            Self::NotHome(None) => f.write_str("no node is recorded as its home yet"),
            Self::Away(away) => away.fmt(f),
            Self::Unfit(reasons) => {
                let reasons: Vec<String> =
                    reasons.iter().map(|(spread, unfit)| format!("{unfit} (spread `{spread}`)")).collect();
                f.write_str(&reasons.join("; "))
            }
        }
    }
}
