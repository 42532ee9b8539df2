//! What a scaler asks for, spread by spread.

use std::collections::BTreeMap;

use trellis_manifest::{Component, Provider, Scaler, Spread};

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

/// What one spread asks for.
#[derive(Debug)]
pub(crate) struct Portion<'a> {
    pub(crate) name: &'a str,
    pub(crate) requirements: &'a BTreeMap<String, String>,
    /// Permits, or nodes; for [`Demand::Every`] permits on each node.
    pub(crate) wanted: u32,
}

impl<'a> Demand<'a> {
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

    /// Without a scaler a built-in provider is not planned: it runs where the components are that it is linked with.
    pub(crate) fn of_provider(provider: &'a Provider) -> Option<Self> {
        match provider.scaler.as_ref()? {
            Scaler::Spread { instances: Some(instances), spreads } => Some(Self::Nodes(portions(spreads, *instances))),
            Scaler::Daemon { instances: Some(0), .. } => Some(Self::Nodes(Vec::new())),
            Scaler::Spread { instances: None, spreads } | Scaler::Daemon { spreads, .. } => {
                Some(Self::every(spreads, None))
            }
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

/// Divides `instances` over spreads by weight.
fn portions(spreads: &[Spread], instances: u32) -> Vec<Portion<'_>> {
    let wanted = trellis_manifest::spread(instances, spreads);
    let named = spreads.iter().zip(wanted);
    named.map(|(Spread { name, requirements, .. }, wanted)| Portion { name, requirements, wanted }).collect()
}
