//! What a proposer is told: that a command was applied, or why not, in words for people.

use serde::{Deserialize, Serialize};
use trellis_wire::{AppName, ComponentKey, ComponentName, Generation, LatticeName, NodeId, NodeKey};

use crate::{ALLOWED_MAX, Conflict};

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// It is done.
    Done,
    /// It was so already.
    Unchanged,
    /// A deploy is accepted and waits for these; what ran before goes on running.
    Waiting(Vec<String>),
    /// This command id was applied before, and was not refused then.
    Repeated,
    /// Nothing changed.
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// The data directory belongs to another lattice.
    #[error("this is lattice {0} already; a data directory belongs to one lattice")]
    OtherLattice(LatticeName),
    /// The node is no member.
    #[error("node {0} is not known; `trellis nodes` lists those that are")]
    UnknownNode(NodeId),
    /// Only a lost node can be forgotten.
    #[error("node {0} is not lost; stop it first, it is lost a few seconds later")]
    NotLost(NodeId),
    /// There is no such app.
    #[error("app {0} is not known; `trellis apps` lists those that are")]
    UnknownApp(AppName),
    /// The version exists with other content.
    #[error(
        "version {version} of app {app} was deployed with other content; change `version` in the manifest, or deploy \
         with --replace"
    )]
    VersionTaken {
        /// The app.
        app: AppName,
        /// The version.
        version: String,
    },
    /// An artifact was not resolved.
    #[error("component {component} of app {app} has no artifact; its image was not uploaded or resolved")]
    NoArtifact {
        /// The app.
        app: AppName,
        /// The component.
        component: ComponentName,
    },
    /// Another app has the id.
    #[error("id `{id}` is taken by {owner}; give the component another `id`, or leave it out")]
    IdTaken {
        /// The id.
        id: String,
        /// Who has it.
        owner: ComponentKey,
    },
    /// The app whose component is to be shared does not allow it.
    #[error(
        "{shared} is not shared; add the annotation `experimental.wasmcloud.dev/shared: \"true\"` to app {} and deploy \
         that first",
        shared.app
    )]
    NotShared {
        /// The component or provider that was asked for.
        shared: ComponentKey,
    },
    /// Another app needs what would go.
    #[error("app {user} uses {shared}; undeploy {user} first")]
    SharedInUse {
        /// What would go.
        shared: ComponentKey,
        /// The app that uses it.
        user: AppName,
    },
    /// The config comes from an app's manifest.
    #[error("config `{name}` belongs to app {owner}; change it in that app's manifest and deploy")]
    ConfigOwned {
        /// The config.
        name: String,
        /// The app.
        owner: AppName,
    },
    /// The config was put by hand, and the app's manifest would take it over.
    #[error("config `{name}` was put by hand; delete it with `trellis config del {name}`, or name the app's otherwise")]
    ConfigPut {
        /// The config.
        name: String,
    },
    /// There is no such config.
    #[error("config `{0}` is not known; `trellis config` lists those that are")]
    UnknownConfig(String),
    /// An app needs the config.
    #[error(
        "config `{name}` is used by app {user}; undeploy {user} first, or deploy a version of it without the config"
    )]
    ConfigInUse {
        /// The config.
        name: String,
        /// The app that uses it.
        user: AppName,
    },
    /// Two components would listen at one place.
    #[error(transparent)]
    Conflict(#[from] Box<Conflict>),
    /// There is no such version to go back to.
    #[error("app {app} has no {}; `trellis history {app}` lists those that are kept", version.as_ref().map_or("version before this one that ran well".into(), |version| format!("version {version}")))]
    NoSuchVersion {
        /// The app.
        app: AppName,
        /// The version that was asked for; `None`: the one before.
        version: Option<String>,
    },
    /// The delta was made from a plan that is no longer the newest.
    #[error("the plan is at generation {current}, the delta was made from {parent}; plan again")]
    StalePlan {
        /// What the delta was made from.
        parent: Generation,
        /// What the plan is at.
        current: Generation,
    },
    /// The node is known with another key.
    #[error(
        "node {node} is known with key {known} and shows key {found}: put back the file `node-key` that was made with its \
         data directory, or begin with an empty --data-dir, which makes a new node"
    )]
    OtherKey {
        /// The node.
        node: NodeId,
        /// The key that the lattice knows.
        known: NodeKey,
        /// The key that was shown.
        found: NodeKey,
    },
    /// Too many keys are on the list.
    #[error(
        "{ALLOWED_MAX} keys are on the list of nodes that are let in; take one off with `trellis nodes disallow KEY`"
    )]
    ListFull,
    /// The founder has yet to say who may join.
    #[error("the lattice is not founded yet")]
    NotFounded,
    /// No version of the app has such a component.
    #[error("{0} is not known; `trellis status {app}` lists the components of the app", app = .0.app)]
    UnknownComponent(ComponentKey),
    /// A lost node that may still use permits which others have by now.
    #[error("node {0} has not said yet that it gave up what it held when it was lost; it is back once it does")]
    StillOwes(NodeId),
    /// The delta gives out permits that others may use, or that nobody asks for any more.
    #[error("the delta gives out permits of {0} that are not free; plan again")]
    NoSuchPermits(ComponentKey),
    /// Not all parts of a command are there, or they make none.
    #[error("parts of the command were lost because others came between; try it again")]
    PartMissing,
}
