//! Leases as the lattice agrees on them: which node is to do what must run once. That a node is named here is needed for
//! its having the lease, and not enough: it has it only while the leader renews it, which [`Lessor`](crate::Lessor) and
//! [`Lessee`](crate::Lessee) decide.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use trellis_manifest::{AppLink, Tech};
use trellis_wire::{AppName, LinkId, NodeId};

use crate::pairs::{is_same, pairs};
use crate::rollout::Form;
use crate::state::done_if;
use crate::{Applied, Direction, HeldLink, Node, Release, State};

/// How long the link ids of one [`Command::Lease`](crate::Command::Lease) may be together, in bytes. What does not fit
/// comes with the next one.
pub(crate) const MOVES_BYTES_MAX: usize = 32 * 1024;

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who has it, for as long as it is renewed.
    pub node: NodeId,
    /// The generation of the plan when it was granted, or higher where that number was given already: of two grants the
    /// later one has the higher token, whatever they are of.
    pub token: u64,
}

/// Leases that change hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseMoves {
    /// The edition of the leases that this was decided on. It is carried out on no other.
    pub edition: u64,
    /// Who is to have each: a node, where nobody has it; `None`: it is taken back.
    pub to: BTreeMap<LinkId, Option<NodeId>>,
}

/// Every lease that was granted and not taken back.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    granted: BTreeMap<LinkId, Lease>,
    /// The highest token so far.
    token: u64,
    /// How often leases have changed hands.
    edition: u64,
}

impl Leases {
    /// A link's lease.
    pub fn get(&self, link: &LinkId) -> Option<Lease> {
        self.granted.get(link).copied()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = (&LinkId, Lease)> {
        self.granted.iter().map(|(link, lease)| (link, *lease))
    }

    /// Those of one node.
    pub fn of(&self, node: NodeId) -> impl Iterator<Item = (&LinkId, u64)> {
        self.granted.iter().filter(move |(_, lease)| lease.node == node).map(|(link, lease)| (link, lease.token))
    }

    /// How often leases have changed hands: what a renewal speaks of.
    pub const fn edition(&self) -> u64 {
        self.edition
    }

    /// Takes leases back and grants those that are free. Whoever decided that they are free knew one edition: by another
    /// one nothing is done. A node that closed since is granted nothing.
    fn carry(&mut self, moves: &LeaseMoves, generation: u64, is_there: impl Fn(NodeId) -> bool) -> Applied {
        if moves.edition != self.edition {
            return Applied::Unchanged;
        }
        let mut changed = false;
        for (link, to) in &moves.to {
            changed |= match to {
                None => self.granted.remove(link).is_some(),
                Some(node) if self.granted.contains_key(link) || !is_there(*node) => false,
                Some(node) => {
                    self.token = generation.max(self.token + 1);
                    self.granted.insert(link.clone(), Lease { node: *node, token: self.token });
                    true
                }
            };
        }
        self.edition += u64::from(changed);
        done_if(changed)
    }

    /// Strikes a node out.
    pub(crate) fn forget(&mut self, node: NodeId) {
        let before = self.granted.len();
        self.granted.retain(|_, lease| lease.node != node);
        self.edition += u64::from(self.granted.len() != before);
    }
}

/// Whether what a technology wakes may be at work on one node of the lattice only, where its link asks for what one node
/// alone can keep. An embedded queue is one node's anyway, and an MQTT topic of which that is asked is the home's; a timer's ticks
/// always start from one node.
fn needs_lease(tech: Tech, asks: bool) -> bool {
    match tech {
        Tech::Http | Tech::Embedded | Tech::Mqtt => false,
        Tech::Nats | Tech::Redis | Tech::Rabbitmq => asks,
        Tech::Timer => true,
    }
}

impl HeldLink {
    /// Whether it may be at work on one node of the lattice only, by lease: what keeps an order, what is capped for the
    /// whole lattice, and timers.
    pub fn needs_lease(&self) -> bool {
        match &self.direction {
            Direction::Wakes { tech, .. } => needs_lease(*tech, self.link.delivery.needs_one_puller()),
            Direction::Grants { .. } | Direction::GrantsElsewhere { .. } | Direction::Between { .. } => false,
        }
    }
}

/// The links that need a lease, with the nodes that apply them: one of those is to have it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LeasedLinks {
    /// Each link's nodes.
    pub links: BTreeMap<LinkId, BTreeSet<NodeId>>,
    /// The apps that have a link which may need one.
    apps: BTreeSet<AppName>,
}

impl State {
    /// Every lease that was granted.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The links that need a lease.
    pub fn leased(&self) -> LeasedLinks {
        self.leased_since(&Self::default(), &LeasedLinks::default())
    }

    /// The same, going on from those of a former state: apps without a link that may need one are looked at when their
    /// versions change.
    pub fn leased_since(&self, before: &Self, leased: &LeasedLinks) -> LeasedLinks {
        let changed = pairs(&before.apps, &self.apps).filter(|(_, old, new)| !is_same(*old, *new));
        let mut next = LeasedLinks::default();
        for app in leased.apps.iter().chain(changed.map(|(app, ..)| app)) {
            let Some(versions) = self.app(app).filter(|_| !next.apps.contains(app)) else { continue };
            for form in Form::all(versions) {
                for link in form.release.app.links.iter().filter(|link| self.may_need_lease(form.release, link)) {
                    next.apps.insert(app.clone());
                    let held = self.nodes().keys().map(|node| (*node, self.held_link(form, versions, link, *node)));
                    for (node, held) in held.filter_map(|(node, held)| Some((node, held?))) {
                        if held.needs_lease() {
                            next.links.entry(held.link.id).or_default().insert(node);
                        }
                    }
                }
            }
        }
        next
    }

    /// Whether a link of a release may need a lease. What serves another app's provider may change without this app.
    fn may_need_lease(&self, release: &Release, link: &AppLink) -> bool {
        let tech = self.served(release, &link.source).and_then(|(_, provider)| provider.tech());
        tech.is_some_and(|tech| needs_lease(tech, true)) || release.shared(&link.source).is_some()
    }

    pub(crate) fn move_leases(&mut self, moves: &LeaseMoves) -> Applied {
        let nodes = &self.nodes;
        let is_there = |id| nodes.get(&id).is_some_and(|node: &Node| !node.is_lost());
        self.leases.carry(moves, self.plan.generation().0, is_there)
    }
}
