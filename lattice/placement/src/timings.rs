//! Timings: how often nodes are heard, and how long each is waited for. The lattice agrees on them, as on anything else: the
//! one that founds it records its own, and all others take those. What an operator gives a node beside is compared with them.
//!
//! They are changed by command, while nodes run. A leader that does not know of a change yet may renew leases by the former
//! timings; so the longest lease that there ever was is remembered, and a new leader waits for that
//! ([`Lessor`](crate::Lessor)).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::level::TIMINGS_LEVEL;
use crate::state::done_if;
use crate::{Applied, NodeFacts, State};

/// The label with which a node that joins says which timings it was given: `lease=8000,lost-after=12000`, in milliseconds. It
/// is no label of the node's, and not recorded.
const TIMINGS_LABEL: &str = "trellis.timings";

/// The shortest lease: what leads the lattice is acknowledged every half second.
const LEASE_MIN: Duration = Duration::from_secs(2);

/// When a silent node is what. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// How often each node is heard.
    pub heartbeat: Duration,
    /// After so long without a sign of life no new work goes to a node.
    pub suspect: Duration,
    /// After so long it is lost, and what it holds is placed elsewhere.
    pub lost: Duration,
    /// So long a node has what must run once in the lattice, after the leader was last acknowledged by a quorum.
    pub lease: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            suspect: Duration::from_secs(3),
            lost: Duration::from_secs(6),
            lease: Duration::from_secs(4),
        }
    }
}

impl Patience {
    /// Checks that they fit each other.
    ///
    /// # Errors
    /// Which do not, by the names of their flags.
    pub fn check(&self) -> Result<(), UnfitTimings> {
        let Self { heartbeat, suspect, lost, lease } = *self;
        if heartbeat.is_zero() || heartbeat.saturating_mul(2) > suspect || suspect >= lost {
            return Err(UnfitTimings::Order { heartbeat, suspect, lost });
        }
        if lease >= lost {
            return Err(UnfitTimings::LateLease { lease, lost });
        }
        if lease < LEASE_MIN || heartbeat.saturating_mul(2) > lease {
            return Err(UnfitTimings::ShortLease { lease, heartbeat });
        }
        Ok(())
    }
}

/// Why timings make no sense together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnfitTimings {
    /// A node would be lost before it is suspect, or for one heartbeat that is late.
    #[error(
        "--heartbeat {heartbeat:?}, --suspect-after {suspect:?}, --lost-after {lost:?}: two heartbeats must fit before a node is \
         suspect, and it must be suspect before it is lost"
    )]
    Order {
        /// As in [`Patience`].
        heartbeat: Duration,
        /// As in [`Patience`].
        suspect: Duration,
        /// As in [`Patience`].
        lost: Duration,
    },
    /// What is strict would run in two places.
    #[error(
        "--lease {lease:?}, --lost-after {lost:?}: what a cut-off node stops at the end of its lease goes elsewhere once it is \
         lost, which must be later"
    )]
    LateLease {
        /// As in [`Patience`].
        lease: Duration,
        /// As in [`Patience`].
        lost: Duration,
    },
    /// It would end between two signs of life.
    #[error(
        "--lease {lease:?}: two heartbeats (--heartbeat {heartbeat:?}) must fit into it, and it lasts at least {LEASE_MIN:?}"
    )]
    ShortLease {
        /// As in [`Patience`].
        lease: Duration,
        /// As in [`Patience`].
        heartbeat: Duration,
    },
}

/// What the lattice has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// The timings.
    pub patience: Patience,
    /// The longest lease that there ever was.
    pub longest_lease: Duration,
}

/// The timings that an operator gave a node. Of the others the lattice's are taken, whatever they are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GivenTimings {
    /// `--heartbeat`
    pub heartbeat: Option<Duration>,
    /// `--suspect-after`
    pub suspect: Option<Duration>,
    /// `--lost-after`
    pub lost: Option<Duration>,
    /// `--lease`
    pub lease: Option<Duration>,
}

impl GivenTimings {
    /// These where they are given, the others for the rest.
    pub fn over(&self, rest: Patience) -> Patience {
        Patience {
            heartbeat: self.heartbeat.unwrap_or(rest.heartbeat),
            suspect: self.suspect.unwrap_or(rest.suspect),
            lost: self.lost.unwrap_or(rest.lost),
            lease: self.lease.unwrap_or(rest.lease),
        }
    }

    /// Each by its name.
    fn named(&self) -> [(&'static str, Option<Duration>); 4] {
        let Self { heartbeat, suspect, lost, lease } = *self;
        [("heartbeat", heartbeat), ("suspect-after", suspect), ("lost-after", lost), ("lease", lease)]
    }

    fn set(&mut self, name: &str, time: Duration) {
        match name {
            "heartbeat" => self.heartbeat = Some(time),
            "suspect-after" => self.suspect = Some(time),
            "lost-after" => self.lost = Some(time),
            "lease" => self.lease = Some(time),
            // A later build may know of more.
            _ => {}
        }
    }
}

impl From<Patience> for GivenTimings {
    fn from(Patience { heartbeat, suspect, lost, lease }: Patience) -> Self {
        Self { heartbeat: Some(heartbeat), suspect: Some(suspect), lost: Some(lost), lease: Some(lease) }
    }
}

/// The flags that give them, as they are written.
impl fmt::Display for GivenTimings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.named().into_iter().filter_map(|(name, time)| Some(format!("--{name} {:?}", time?)));
        f.write_str(&given.collect::<Vec<_>>().join(" "))
    }
}

/// A node was given other timings than its lattice has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it was given {given}, and its lattice has {agreed}: all nodes have the lattice's. Start it without, or change them for all \
     nodes, on one that runs: `trellis nodes timings {given}`"
)]
pub struct OtherTimings {
    /// The flags that differ, and what the lattice has in their place.
    given: String,
    agreed: String,
}

impl NodeFacts {
    /// Says in which timings a node that wants to join was given.
    pub fn tell_timings(&mut self, given: &GivenTimings) {
        let told = given.named().into_iter().filter_map(|(name, time)| Some(format!("{name}={}", time?.as_millis())));
        self.labels.insert(TIMINGS_LABEL.into(), told.collect::<Vec<_>>().join(","));
    }

    /// Takes out what [`Self::tell_timings`] put in.
    pub fn take_timings(&mut self) -> GivenTimings {
        let mut given = GivenTimings::default();
        for told in self.labels.remove(TIMINGS_LABEL).iter().flat_map(|told| told.split(',')) {
            if let Some((name, Ok(ms))) = told.split_once('=').map(|(name, ms)| (name, ms.parse())) {
                given.set(name, Duration::from_millis(ms));
            }
        }
        given
    }
}

impl State {
    /// What the lattice has agreed on. `None`: nothing yet, as where an older build founded it; then each node has its own.
    pub const fn timings(&self) -> Option<&Timings> {
        self.timings.as_ref()
    }

    /// The same state with these, as a snapshot has it.
    #[must_use]
    pub const fn timed(mut self, timings: Timings) -> Self {
        self.timings = Some(timings);
        self
    }

    /// Whether the leader is to record its own timings now: every member knows of them, and there are none.
    pub fn lacks_timings(&self) -> bool {
        self.timings.is_none() && self.lattice.is_some() && self.everyone_knows(TIMINGS_LEVEL)
    }

    /// Checks what a node was given.
    ///
    /// # Errors
    /// It differs from what the lattice has.
    pub fn check_timings(&self, given: &GivenTimings) -> Result<(), OtherTimings> {
        let Some(Timings { patience, .. }) = self.timings else { return Ok(()) };
        let (mut other, mut agreed) = (GivenTimings::default(), GivenTimings::default());
        for ((name, given), (_, has)) in given.named().into_iter().zip(GivenTimings::from(patience).named()) {
            if let (Some(given), Some(has)) = (given, has.filter(|has| given != Some(*has))) {
                other.set(name, given);
                agreed.set(name, has);
            }
        }
        if other == GivenTimings::default() {
            return Ok(());
        }
        Err(OtherTimings { given: other.to_string(), agreed: agreed.to_string() })
    }

    pub(crate) fn agree_on(&mut self, patience: Patience) -> Applied {
        let before = self.timings.map_or(Duration::ZERO, |before| before.longest_lease);
        let timings = Timings { patience, longest_lease: before.max(patience.lease) };
        done_if(self.timings.replace(timings) != Some(timings))
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::{CommandId, NodeKey};

    use super::*;
    use crate::{Capacity, Command, Entry};

    const SECOND: Duration = Duration::from_secs(1);

    fn facts() -> NodeFacts {
        NodeFacts {
            id: "0a0de000-0000-7000-8000-000000000001".parse().unwrap(),
            name: "n".into(),
            labels: [("zone".to_owned(), "eu".to_owned())].into(),
            version: String::new(),
            capacity: Capacity { permits: 1, memory_bytes: 0 },
            edge: false,
            key: NodeKey::new([0; 32]),
        }
    }

    fn agree(state: &mut State, n: u32, patience: Patience) -> Applied {
        let id: CommandId = format!("00000000-0000-0000-0000-{n:012x}").parse().unwrap();
        state.apply(&Entry { id, at_ms: 0, command: Command::Timings(patience) })
    }

    #[test]
    fn what_a_node_was_given_is_compared_with_what_the_lattice_has() {
        let mut state = State::default();
        let eight = GivenTimings { lease: Some(8 * SECOND), lost: Some(6 * SECOND), ..GivenTimings::default() };
        assert_eq!(state.check_timings(&eight), Ok(()), "an older build agreed on none");
        agree(&mut state, 1, Patience::default());
        let said = state.check_timings(&eight).unwrap_err().to_string();
        let told = "given --lease 8s, and its lattice has --lease 4s: all nodes have the lattice's. Start it without, or \
                    change them for all nodes, on one that runs: `trellis nodes timings --lease 8s`";
        assert!(said.ends_with(told), "{said}");
        assert_eq!(state.check_timings(&GivenTimings::default()), Ok(()));
        assert_eq!(state.check_timings(&Patience::default().into()), Ok(()), "the same by another way");
    }

    #[test]
    fn who_joins_says_what_it_was_given_and_that_is_not_recorded() {
        let given = GivenTimings { heartbeat: Some(SECOND / 2), lease: Some(8 * SECOND), ..GivenTimings::default() };
        let mut joining = facts();
        joining.tell_timings(&given);
        assert_eq!(joining.take_timings(), given);
        assert_eq!(joining, facts());
        assert_eq!(joining.take_timings(), GivenTimings::default());
        joining.labels.insert(TIMINGS_LABEL.into(), "lease=soon,,lost-after=12000,more=1".into());
        assert_eq!(joining.take_timings(), GivenTimings { lost: Some(12 * SECOND), ..GivenTimings::default() });
    }

    #[test]
    fn the_longest_lease_is_remembered() {
        let (mut state, usual) = (State::default(), Patience::default());
        let lease = |state: &State| state.timings().map(|now| (now.patience.lease, now.longest_lease)).unwrap();
        assert_eq!(agree(&mut state, 1, usual), Applied::Done);
        assert_eq!(agree(&mut state, 2, usual), Applied::Unchanged);
        assert_eq!(agree(&mut state, 3, Patience { lost: 20 * SECOND, lease: 9 * SECOND, ..usual }), Applied::Done);
        assert_eq!(lease(&state), (9 * SECOND, 9 * SECOND));
        agree(&mut state, 4, usual);
        assert_eq!(lease(&state), (4 * SECOND, 9 * SECOND));
    }

    #[test]
    fn timings_must_fit_each_other() {
        let usual = Patience::default();
        assert_eq!(usual.check(), Ok(()));
        let says = |patience: Patience| patience.check().unwrap_err().to_string();
        assert!(says(Patience { heartbeat: 2 * SECOND, ..usual }).contains("two heartbeats must fit"));
        assert!(says(Patience { heartbeat: Duration::MAX, ..usual }).contains("two heartbeats must fit"));
        assert!(says(Patience { lease: 6 * SECOND, ..usual }).contains("which must be later"));
        assert!(says(Patience { lease: SECOND, ..usual }).contains("it lasts at least 2s"));
    }
}
