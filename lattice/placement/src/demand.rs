//! What a scaler asks for, spread by spread.

use std::collections::BTreeMap;

use trellis_manifest::{Component, Scaler, Spread};
use trellis_wire::ComponentName;

use crate::Release;

static ANY_NODE: BTreeMap<String, String> = BTreeMap::new();

/// What is to be held, and by whom.
#[derive(Debug)]
pub(crate) enum Demand<'a> {
    /// So many permits in the lattice. At no time more.
    Permits(Vec<Portion<'a>>),
    /// So many nodes, each as much as it allows.
    Nodes(Vec<Portion<'a>>),
    /// Every node that a spread matches, each so many.
    Every { portions: Vec<Portion<'a>>, permits: Option<u32> },
}

/// What is planned of a release.
pub(crate) enum Planned<'a> {
    /// A component of its own.
    Component(&'a Component),
    /// A built-in provider with this scaler. Without one it runs where the components are that it is linked with, or at home.
    Provider(&'a Scaler),
}

impl<'a> Planned<'a> {
    /// `None`: this entry is not planned.
    pub(crate) fn of(release: &'a Release, entry: &ComponentName) -> Option<Self> {
        if release.shared(entry).is_some() {
            return None;
        }
        if let Some(component) = release.app.components.get(entry) {
            return Some(Self::Component(component));
        }
        let provider = release.app.providers.get(entry).filter(|provider| provider.tech().is_some())?;
        provider.scaler.as_ref().map(Self::Provider)
    }
}

/// What one spread asks for.
#[derive(Debug)]
pub(crate) struct Portion<'a> {
    pub(crate) name: &'a str,
    pub(crate) requirements: &'a BTreeMap<String, String>,
    /// Permits, or nodes; for [`Demand::Every`] permits on each node.
    pub(crate) wanted: u32,
}

impl<'a> Demand<'a> {
    /// What an entry of a release asks for, and whether it needs sandboxes. `None`: it is not planned.
    pub(crate) fn of_entry(release: &'a Release, entry: &ComponentName) -> Option<(Self, bool)> {
        Some(match Planned::of(release, entry)? {
            Planned::Component(component) => (Self::of_component(component), true),
            Planned::Provider(scaler) => (Self::of_provider(scaler), false),
        })
    }

    /// What is asked for while a newer version, which asks for `newer`, has this share of the events, in percent. Only
    /// counted permits move step by step; there are at most as many as the one that asks for more has.
    pub(crate) fn giving_way_to(self, newer: Self, share: u8) -> Self {
        match (self, newer) {
            (Self::Permits(older), Self::Permits(newer)) if share > 0 && share < 100 => {
                let part = |portions: Vec<Portion<'a>>, of_hundred: u64, up: bool| {
                    let total: u64 = portions.iter().map(|portion| u64::from(portion.wanted)).sum();
                    let left = if up { (total * of_hundred).div_ceil(100) } else { total * of_hundred / 100 };
                    thinned(portions, total, left)
                };
                let share = u64::from(share);
                let mut both = part(older, 100 - share, false);
                both.extend(part(newer, share, true));
                Self::Permits(both)
            }
            (older, _) if share < 100 => older,
            (_, newer) => newer,
        }
    }

    /// Without a scaler a component is held by one node.
    pub(crate) fn of_component(component: &'a Component) -> Self {
        let in_flight_max = component.limits.max_in_flight.unwrap_or(u32::MAX);
        match &component.scaler {
            None => Self::one_node(),
            Some(Scaler::Spread { instances: Some(instances), spreads }) => {
                Self::Permits(portions(spreads, (*instances).min(in_flight_max)))
            }
            Some(Scaler::Spread { instances: None, spreads }) => Self::every(spreads, None),
            Some(Scaler::Daemon { instances, spreads }) => Self::every(spreads, *instances),
        }
    }

    fn of_provider(scaler: &'a Scaler) -> Self {
        match scaler {
            Scaler::Spread { instances: Some(instances), spreads } => Self::Nodes(portions(spreads, *instances)),
            Scaler::Daemon { instances: Some(0), .. } => Self::Nodes(Vec::new()),
            Scaler::Spread { instances: None, spreads } | Scaler::Daemon { spreads, .. } => Self::every(spreads, None),
        }
    }

    fn one_node() -> Self {
        Self::Nodes(vec![Portion { name: "default", requirements: &ANY_NODE, wanted: 1 }])
    }

    fn every(spreads: &'a [Spread], permits: Option<u32>) -> Self {
        let wanted = permits.unwrap_or(1);
        let portion = |spread: &'a Spread| Portion { name: &spread.name, requirements: &spread.requirements, wanted };
        Self::Every { portions: spreads.iter().map(portion).collect(), permits }
    }

    pub(crate) fn portions(&self) -> &[Portion<'a>] {
        match self {
            Self::Permits(portions) | Self::Nodes(portions) | Self::Every { portions, .. } => portions,
        }
    }

    /// The permits that may be given out in all, where there is such a number.
    pub(crate) fn pool(&self) -> Option<u64> {
        match self {
            Self::Permits(portions) => Some(portions.iter().map(|portion| u64::from(portion.wanted)).sum()),
            Self::Nodes(_) | Self::Every { .. } => None,
        }
    }
}

/// Portions in the same proportion that sum to `left` instead of `total`.
fn thinned<'a>(portions: Vec<Portion<'a>>, total: u64, left: u64) -> Vec<Portion<'a>> {
    // The sums up to each portion are rounded, not the portions: so they add up.
    let (mut before, mut given) = (0, 0);
    let thin = |portion: Portion<'a>| {
        before += u64::from(portion.wanted);
        let upto = (before * left).checked_div(total).unwrap_or(0);
        let wanted = u32::try_from(upto - given).unwrap_or(u32::MAX);
        given = upto;
        Portion { wanted, ..portion }
    };
    portions.into_iter().map(thin).collect()
}

/// Divides `instances` over spreads by weight.
fn portions(spreads: &[Spread], instances: u32) -> Vec<Portion<'_>> {
    let wanted = trellis_manifest::spread(instances, spreads);
    let named = spreads.iter().zip(wanted);
    named.map(|(Spread { name, requirements, .. }, wanted)| Portion { name, requirements, wanted }).collect()
}
