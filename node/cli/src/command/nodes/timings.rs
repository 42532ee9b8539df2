//! `trellis nodes timings`: the lattice's timings, shown or changed.

use trellis_daemon::api::types::TimingsBody;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;
use crate::quantity::Time;

/// Show how long nodes are waited for, or change it on all of them while they run
///
/// Without an option they are shown. What a node was started with must be changed there too, or left out, before it starts
/// again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis nodes timings
  trellis nodes timings --lease 8s --lost-after 12s")]
pub(super) struct Timings {
    /// How often each node gives a sign of life
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<Time>,
    /// After this long without a sign of life a node gets no new work
    #[arg(long, value_name = "TIME")]
    suspect_after: Option<Time>,
    /// After this long it is lost, and what it holds goes elsewhere
    #[arg(long, value_name = "TIME")]
    lost_after: Option<Time>,
    /// For so long a node that is cut off goes on with what must run once in the lattice
    #[arg(long, value_name = "TIME")]
    lease: Option<Time>,
}

impl Timings {
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let admin = connection.open();
        let ms = |time: Option<Time>| time.map(|time| u64::try_from(time.0.as_millis()).unwrap_or(u64::MAX));
        let (heartbeat_ms, suspect_after_ms) = (ms(self.heartbeat), ms(self.suspect_after));
        let (lost_after_ms, lease_ms) = (ms(self.lost_after), ms(self.lease));
        let wanted = TimingsBody { heartbeat_ms, suspect_after_ms, lost_after_ms, lease_ms };
        if wanted == TimingsBody::default() {
            let timings = admin.lattice().await?.timings;
            return Ok(print(&timings.given().to_string())?);
        }
        admin.set_timings(&wanted).await?;
        Ok(print(&format!("every node has {} from now on", wanted.given()))?)
    }
}
