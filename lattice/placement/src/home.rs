//! The home: the one node of the lattice that keeps what `trellis://embedded` keeps, its stores, queues and subjects. Others
//! reach it over the bus. It is recorded once, by the leader, and never moved by itself: what it keeps is in its file. Only a
//! person who forgets the node gives it up, with what it keeps.
//!
//! There is one home for all apps: what an app publishes may be for another one's queue, and stores may be named across apps.
//! A provider with a scaler of its own is no part of this: it runs where that says, with data of its own on each node.
//!
//! The home also pulls for the links of MQTT that keep an order, or have caps. An MQTT server divides a topic among those who
//! share it, and gives nothing out again; so what one node alone can keep goes to one node, and onto one disk.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trellis_manifest::{AppLink, DeliveryError, Provider, Tech, overlaid};
use trellis_wire::{AppName, ComponentKey, Delivery, NodeId, OrderBy, Part};

use crate::level::{CAPPED_TOPICS_LEVEL, HOME_LEVEL, ORDERED_TOPICS_LEVEL, TooOld};
use crate::state::done_if;
use crate::{Applied, HeldLink, Refusal, Release, State, Versions};

/// Where the lattice's home is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// None was recorded yet: each node that holds a component runs what is embedded for it by itself, as builds did that
    /// know of no home.
    #[default]
    Unsettled,
    /// This node.
    At(NodeId),
    /// The node that was is forgotten, and the leader has not recorded another one yet: nothing that is embedded runs.
    GivenUp,
}

/// What says on which nodes a provider runs.
pub(crate) enum Seat {
    /// Its scaler, by the plan.
    Planned,
    /// The home; `None`: there is none just now.
    Home(Option<NodeId>),
    /// The components that it is linked with.
    Beside,
}

impl Home {
    /// Whether a snapshot must tell of it.
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::Unsettled)
    }
}

impl State {
    /// Where the home is.
    pub const fn home(&self) -> Home {
        self.home
    }

    /// The same state with this home, as a snapshot has it.
    #[must_use]
    pub const fn at_home(mut self, home: Home) -> Self {
        self.home = home;
        self
    }

    /// Which node is the home, if one is.
    pub const fn home_node(&self) -> Option<NodeId> {
        match self.home {
            Home::At(node) => Some(node),
            Home::Unsettled | Home::GivenUp => None,
        }
    }

    /// The home, if that is where a provider runs in some version.
    pub fn kept_at(&self, provider: &ComponentKey) -> Option<NodeId> {
        let home = self.home_node()?;
        let running = self.app(&provider.app)?.running();
        let mut own = running.filter_map(|release| release.app.providers.get(&provider.name));
        own.any(has_home).then_some(home)
    }

    /// Whether a provider runs on one node of the lattice at most: what it takes from a queue there is for every holder.
    pub fn runs_once(&self, provider: &ComponentKey) -> bool {
        self.kept_at(provider).is_some() || self.holding(provider).is_some_and(|holding| holding.len() == 1)
    }

    /// The node that the leader is to record as the home now, where something is for it, every member knows of homes, and
    /// there is none: the oldest open one. One at the edge only where there is no other; and what ran without a home goes on
    /// where most of it is.
    pub fn home_to_be(&self) -> Option<NodeId> {
        if self.home_node().is_some() || !self.everyone_knows(HOME_LEVEL) {
            return None;
        }
        let links = self.links_with_home()?;
        let open = self.nodes().iter().filter(|(_, node)| node.is_open());
        let rank = |id: &NodeId, edge: bool| (edge, Reverse(links.get(id).copied().unwrap_or_default()), *id);
        open.map(|(id, node)| rank(id, node.facts.edge)).min().map(|(.., id)| id)
    }

    /// How many components each node holds that are linked with what is embedded, one that has several links several times.
    /// `None`: nothing needs a home.
    fn links_with_home(&self) -> Option<BTreeMap<NodeId, usize>> {
        let mut links = None;
        for release in self.running() {
            let is_embedded = |entry| self.served(release, entry).is_some_and(|(_, provider)| has_home(provider));
            for link in &release.app.links {
                let component = match self.topic(release, link) {
                    _ if is_embedded(&link.source) => Some(&link.target),
                    _ if is_embedded(&link.target) => Some(&link.source),
                    Some((provider, delivery)) if level_at_home(provider, &delivery).is_some() => {
                        // In order it never ran without a home, so that nothing of it is anywhere.
                        delivery.order_by.is_none().then_some(&link.target)
                    }
                    _ => continue,
                };
                let links: &mut BTreeMap<NodeId, usize> = links.get_or_insert_default();
                let Some(component) = component else { continue };
                for node in self.holders(&release.key(component)) {
                    *links.entry(node).or_default() += 1;
                }
            }
        }
        links
    }

    /// What says where a provider runs.
    pub(crate) fn seat(&self, provider: &Provider) -> Seat {
        match self.home {
            _ if provider.scaler.is_some() => Seat::Planned,
            Home::At(node) if has_home(provider) => Seat::Home(Some(node)),
            Home::GivenUp if has_home(provider) => Seat::Home(None),
            _ => Seat::Beside,
        }
    }

    /// The same of the provider of a link that wakes, with the link's policy.
    pub(crate) fn seat_of_waking(&self, provider: &Provider, delivery: &Delivery) -> Seat {
        let Some(level) = level_at_home(provider, delivery) else { return self.seat(provider) };
        // Older nodes would not let the home wake what they hold.
        let is_known = self.everyone_knows(level);
        if delivery.order_by.is_none() && !(is_known && self.home.is_settled()) {
            // Each node takes its part, under caps of its own.
            return self.seat(provider);
        }
        Seat::Home(self.home_node().filter(|_| is_known))
    }

    /// What a node takes of the messages of a link that wakes, if anything. `wakes` says whether it is one of those on which
    /// the provider wakes by its seat.
    pub(crate) fn part(&self, provider: &Provider, delivery: &Delivery, wakes: impl Fn(Seat) -> bool) -> Option<Part> {
        let seat = self.seat_of_waking(provider, delivery);
        let is_topic_at_home = matches!(seat, Seat::Home(_)) && is_topic(provider);
        match is_topic_at_home {
            false => wakes(seat).then_some(Part::Own),
            true if wakes(seat) => Some(Part::All),
            // In order it was never divided, or else is to come to its end before: see DELIVERY.md.
            true if delivery.order_by.is_none() => wakes(Seat::Beside).then_some(Part::Stored),
            true => None,
        }
    }

    /// The provider of a link that wakes by MQTT, with the link's policy.
    fn topic<'a>(&'a self, release: &'a Release, link: &AppLink) -> Option<(&'a Provider, Delivery)> {
        let (_, provider) = self.served(release, &link.source).filter(|(_, provider)| is_topic(provider))?;
        let (_, config, _) = self.link_of(release, link);
        Some((provider, overlaid(link.delivery.clone(), &config).ok()?))
    }

    /// Whether a link of a release is pulled at home, though its provider runs elsewhere too.
    pub(crate) fn is_pulled_at_home(&self, release: &Release, link: &AppLink) -> bool {
        let topic = self.topic(release, link);
        topic.is_some_and(|(provider, delivery)| matches!(self.seat_of_waking(provider, &delivery), Seat::Home(_)))
    }

    /// Whether the home pulls for a provider that runs elsewhere too, in some version of some app.
    pub fn pulls_at_home(&self, provider: &ComponentKey) -> bool {
        self.running().any(|release| {
            let mut own = release.app.links.iter().filter(|link| release.key(&link.source) == *provider);
            own.any(|link| self.is_pulled_at_home(release, link))
        })
    }

    /// Checks that every member lets the home wake by the links of an app what it holds.
    ///
    /// # Errors
    /// One that is too old.
    pub fn check_pulled_at_home(&self, app: &AppName) -> Result<(), TooOld> {
        let mut running = self.app(app).into_iter().flat_map(Versions::running);
        let asks = |release: &Release| release.app.links.iter().any(|link| self.is_pulled_at_home(release, link));
        if running.any(|release| asks(release)) { self.check_members(ORDERED_TOPICS_LEVEL) } else { Ok(()) }
    }

    /// A node that was lost or drained since the leader chose it becomes none: the leader chooses again.
    pub(crate) fn settle(&mut self, node: NodeId) -> Result<Applied, Refusal> {
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode(node))?;
        let settles = self.home_node().is_none() && known.is_open();
        if settles {
            self.home = Home::At(node);
        }
        Ok(done_if(settles))
    }

    /// A node will not come back: what it kept as the home is gone.
    pub fn give_up_home(&mut self, node: NodeId) {
        if self.home == Home::At(node) {
            self.home = Home::GivenUp;
        }
    }
}

impl HeldLink {
    /// Whether this node is the home, which pulls for it wherever else its provider runs.
    pub fn is_pulled_at_home(&self) -> bool {
        self.link.part == Part::All
    }
}

/// Why a provider with this scaler cannot keep the order that a link asks for, if so.
pub(crate) fn unkept_order(provider: &Provider, delivery: &Delivery) -> Option<DeliveryError> {
    provider.scaler.as_ref().filter(|_| is_topic(provider))?;
    let value = match delivery.order_by.as_ref()? {
        OrderBy::Subject => "subject".into(),
        OrderBy::Header(name) => format!("header:{name}"),
    };
    let wanted = "no order, or a provider without a scaler (then the home of the lattice pulls)".into();
    Some(DeliveryError { key: "order_by".into(), value, wanted })
}

/// The level of all members from which on the home pulls for a link from a provider, if it is to. With a scaler the provider
/// pulls where that says, and caps hold for each of those nodes.
fn level_at_home(provider: &Provider, delivery: &Delivery) -> Option<u16> {
    let is_for_home = is_topic(provider) && provider.scaler.is_none() && delivery.needs_one_puller();
    is_for_home.then_some(if delivery.order_by.is_some() { ORDERED_TOPICS_LEVEL } else { CAPPED_TOPICS_LEVEL })
}

/// Whether what a provider wakes by are MQTT topics.
fn is_topic(provider: &Provider) -> bool {
    provider.tech() == Some(Tech::Mqtt)
}

/// Whether a provider is for the home to run.
fn has_home(provider: &Provider) -> bool {
    provider.scaler.is_none() && provider.tech() == Some(Tech::Embedded)
}
