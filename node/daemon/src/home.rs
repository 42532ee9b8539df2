//! The home, for people: which node keeps what `trellis://embedded` keeps and pulls MQTT topics that have an order or caps, and
//! what it means that it is away. Which node that is, `placement` decides.

use trellis_placement::{Home, Life, State};
use trellis_wire::NodeId;

use crate::liveness::Liveness;

/// What people are told of while the home does not answer, and why it does not.
pub(crate) fn unavailable(state: &State, home: NodeId, why: &str) -> String {
    format!(
        "node {}, the home of what trellis://embedded keeps, does not answer: {why}. Its stores, queues and subjects are \
         unavailable, and no MQTT topic with an order or caps is pulled, until it does: start it again, or give it up, with \
         all that it keeps, by `trellis nodes forget {home}`",
        state.named(home)
    )
}

/// Why what is embedded is not there now, if it is not.
pub(crate) fn away(state: &State, liveness: &Liveness) -> Option<String> {
    match state.home() {
        Home::Unsettled => None,
        Home::At(home) if liveness.life(home) == Life::Alive => None,
        Home::At(home) => Some(unavailable(state, home, &heard(liveness, home))),
        Home::GivenUp => Some(given_up()),
    }
}

/// When a node was last heard.
pub(crate) fn heard(liveness: &Liveness, node: NodeId) -> String {
    match liveness.silence(node) {
        Some(silence) => format!("it was last heard {} s ago", silence.as_secs()),
        None => "it was not heard since this node started".into(),
    }
}

/// What is said between a home that was forgotten and the next.
pub(crate) fn given_up() -> String {
    "no node keeps what is embedded: the home was forgotten, and the leader has not recorded another one yet".into()
}
