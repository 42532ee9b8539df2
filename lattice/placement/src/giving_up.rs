//! What a node may do for what it was told to give up: until it says that it did, it goes on with it, and what is under way
//! there calls and wakes as before.

use trellis_wire::{AppName, ComponentKey, LinkId, NodeId};

use crate::State;

/// A link of something that a node gives up.
struct GivenUp {
    source: ComponentKey,
    target: ComponentKey,
    /// Whether a provider wakes a component by it.
    wakes: bool,
}

impl State {
    /// Whether a node was told to give up a component or provider, or some of its permits, and has not said yet that it did.
    pub fn gives_up(&self, node: NodeId, key: &ComponentKey) -> bool {
        self.plan().unacked(key).any(|(unacked, _)| unacked == node)
    }

    /// Whether a node gives up the component that calls by this link, whatever the link's config.
    pub fn gives_up_caller(&self, node: NodeId, link: &LinkId) -> bool {
        self.given_up_links(node, link).any(|one| !one.wakes && self.gives_up(node, &one.source))
    }

    /// Whether a node gives up what wakes a component by this link: its provider, what the provider runs beside, or the
    /// component that calls.
    pub fn gives_up_waker(&self, node: NodeId, link: &LinkId, component: &ComponentKey) -> bool {
        let is_given_up =
            |one: &GivenUp| self.gives_up(node, &one.source) || one.wakes && self.gives_up(node, &one.target);
        self.given_up_links(node, link).any(|one| one.target == *component && is_given_up(&one))
    }

    /// What is declared under a link's id by the apps that a node gives something of up: few, and few such nodes.
    fn given_up_links<'a>(&'a self, node: NodeId, link: &'a LinkId) -> impl Iterator<Item = GivenUp> + 'a {
        let given_up: Vec<&ComponentKey> = self.plan().given_up_by(node).collect();
        let names_some = move |app: &AppName| given_up.iter().any(|key| key.app == *app);
        let of_it = self
            .running()
            .filter(move |release| names_some(&release.app.name) || release.uses().any(|used| names_some(&used.app)));
        let links = of_it.flat_map(|release| release.app.links.iter().map(move |link| (release, link)));
        links.filter_map(move |(release, declared)| {
            let (source, target) = (release.key(&declared.source), release.key(&declared.target));
            let wakes = self.served(release, &declared.source).is_some();
            let is_it = self.link_of(release, declared).0.link() == link.link();
            is_it.then_some(GivenUp { source, target, wakes })
        })
    }
}
