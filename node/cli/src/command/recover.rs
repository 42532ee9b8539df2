//! `trellis recover`: goes on with one node when more than half of the voters are gone for good.

use std::path::PathBuf;

use trellis_daemon::Recovered;
use trellis_wire::LatticeName;

use crate::failure::Failure;
use crate::machine;
use crate::output::print;

/// Go on with this node alone when more than half of the voters are gone for good
///
/// Works on the data directory of a node that is stopped. Without --yes it only says what that would give up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis recover --new-quorum --data-dir /var/lib/trellis
  trellis recover --new-quorum --data-dir /var/lib/trellis --yes")]
pub(crate) struct Recover {
    /// Make this node the only voter of its lattice
    #[arg(long, required = true)]
    new_quorum: bool,
    /// The node's data directory [default: trellis/LATTICE under $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, env = "TRELLIS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The lattice [default: the data directory's]
    #[arg(long, env = "TRELLIS_LATTICE", value_name = "NAME")]
    lattice: Option<LatticeName>,
    /// Do it: what may be lost was read and understood
    #[arg(long)]
    yes: bool,
}

impl Recover {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        debug_assert!(self.new_quorum, "clap requires it");
        let data_dir = match self.data_dir {
            Some(data_dir) => data_dir,
            None => {
                let default = || "default".parse().expect("it is a valid lattice name");
                machine::data_dir(&self.lattice.clone().unwrap_or_else(default)).map_err(Failure::Usage)?
            }
        };
        let recovered = trellis_daemon::recover(&data_dir, self.lattice, self.yes).await;
        let recovered = recovered.map_err(|why| Failure::Failed(why.to_string()))?;
        if recovered.given_up().is_empty() {
            let node = recovered.node;
            return Ok(print(&format!("node {node} is the only voter of its lattice already: nothing to recover"))?);
        }
        print(&render(&recovered, self.yes))?;
        if self.yes { Ok(()) } else { Err(Failure::Failed("nothing was changed: add --yes to do it".into())) }
    }
}

fn listed(nodes: &[String]) -> String {
    if nodes.is_empty() { "none".into() } else { nodes.join(", ") }
}

fn render(recovered: &Recovered, done: bool) -> String {
    let (node, recovery) = (recovered.node, &recovered.recovery);
    let apps: Vec<String> = recovery.state.apps().map(|(name, _)| name.to_string()).collect();
    let others = recovered.given_up();
    let voted = if recovery.votes { "" } else { " It did not vote, so it may lack more than a voter would." };
    let code = match recovered.without_code.join(", ") {
        none if none.is_empty() => "none".into(),
        apps => format!("of {apps}; deploy it again where no node that is left has it"),
    };
    let home = match recovery.home {
        Some(home) => format!("node {home} was the home: what trellis://embedded kept is given up with it.\n"),
        None => String::new(),
    };
    let verb = if done { "is" } else { "would be" };
    format!(
        "node {node} {verb} the only voter of its lattice from now on.\n\
         it has the log up to entry {}, {} of them not known to be agreed on, and kept; apps: {}.\n\
         lost may be: whatever the others agreed on that this node had not heard of.{voted}\n\
         code that is not on this node: {code}.\n\
         given up and forgotten: {}. Nothing of theirs is taken any more: each stops when it hears of this, and comes back \
         with an empty --data-dir only.\n\
         {home}\
         nodes that did not vote: {}. They go on with this one by themselves; one that has carried out what this log lacks \
         stops and says so.\n\
         Start this node as before.",
        recovery.last,
        recovery.unknown,
        if apps.is_empty() { "none".into() } else { apps.join(", ") },
        listed(&others),
        listed(&recovered.others()),
    )
}
