//! What nodes say to all others of themselves: that they live, and what they hold where that is new.

use serde::{Deserialize, Serialize};
use trellis_placement::Renewal;
use trellis_wire::{ComponentKey, Generation, LinkId, NodeId};

use crate::board::{Health, Mark};

/// What comes on a heartbeat's subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Sign {
    /// A page that is new; to lattices with nodes that know no [`Sign::Alive`], one page with each heartbeat.
    Beat(Box<Beat>),
    /// The node ends now, on purpose.
    Goodbye,
    /// The node needs its leases: may it go on? The number is for the answer.
    Renew(u64),
    /// The leader's answer to the sign of this node with this number.
    Renewed(NodeId, u64, Renewal),
    /// How far in the log the node is, which follows from outside.
    Applied(u64),
    /// The node lives, and this names what it said before.
    Alive(Box<Alive>),
}

/// A page of what a node holds, and how that is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// The plan that the node carries out.
    pub(crate) generation: Generation,
    /// Sandboxes alive.
    pub(crate) running: u64,
    /// Which page this is, of how many.
    pub(crate) page: u16,
    pub(crate) pages: u16,
    pub(crate) components: Vec<(ComponentKey, OfComponent)>,
    pub(crate) links: Vec<(LinkId, OfLink)>,
    /// Components in the other version of a roll-out.
    pub(crate) beside: Vec<(ComponentKey, OfComponent)>,
}

impl Beat {
    /// Names what the page says, but for counts: the same for the same content.
    pub(crate) fn mark(&self) -> Mark {
        let held = |all: &[(ComponentKey, OfComponent)]| {
            all.iter().map(|(key, one)| (key.clone(), one.mark, one.health.clone())).collect::<Vec<_>>()
        };
        Mark::of(&(held(&self.components), &self.links, held(&self.beside)))
    }

    /// The components in the order in which [`Alive::counts`] numbers them.
    pub(crate) fn numbered(&mut self) -> impl Iterator<Item = &mut (ComponentKey, OfComponent)> {
        self.components.iter_mut().chain(&mut self.beside)
    }
}

/// All that every heartbeat repeats, and counts where they changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alive {
    /// The plan that the node carries out.
    pub(crate) generation: Generation,
    /// Sandboxes alive.
    pub(crate) running: u64,
    /// How far in the log the node is. Older builds say it only if they follow from outside.
    pub(crate) applied: Option<u64>,
    /// The [`Beat::mark`] of each page. Who has another page asks for this one.
    pub(crate) pages: Vec<Mark>,
    /// By page and number on it.
    pub(crate) counts: Vec<(u16, u16, Counts)>,
}

/// A question on a node's page subject, from one that missed a page.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Page(u16),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Page(Box<Beat>),
    /// It has fewer pages by now.
    NoSuch,
}

/// How a component is on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OfComponent {
    /// Just what it holds.
    pub(crate) mark: Mark,
    pub(crate) health: Health,
    pub(crate) counts: Counts,
}

/// What a component does on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) running: u64,
    pub(crate) events: u64,
    pub(crate) faults: u64,
    /// Events and faults of this version, since it is held.
    pub(crate) tally: (u64, u64),
}

/// How a link is on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OfLink {
    /// Just what it applies.
    pub(crate) mark: Mark,
    pub(crate) health: Health,
    /// Where it is reached.
    pub(crate) at: Option<String>,
}
