//! Which members do not answer this node as their leader: said once for each, and once when it answers again. openraft would
//! say it with every try.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use trellis_wire::NodeId;

use crate::network::AskError;

/// How long a member fails to answer before that is said: a lost message or a restart is nothing to speak of.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Who is silent. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Silences(Arc<Mutex<HashMap<NodeId, Silence>>>);

struct Silence {
    since: Instant,
    is_told: bool,
}

impl Silences {
    /// A member was asked to append, and this came of it.
    pub(crate) fn asked(&self, member: NodeId, failed: Option<&AskError>) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = failed else {
            if let Some(over) = silent.remove(&member).filter(|silence| silence.is_told) {
                tracing::info!(node = %member, "a member answers its leader again, after {:.0?}", over.since.elapsed());
            }
            return;
        };
        let silence = silent.entry(member).or_insert(Silence { since: Instant::now(), is_told: false });
        if !silence.is_told && silence.since.elapsed() >= SILENT_AFTER {
            silence.is_told = true;
            tracing::warn!(node = %member, "a member does not answer its leader, which goes on asking: {why}");
        }
    }
}
