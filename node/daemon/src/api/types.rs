//! The JSON of the admin API: what the CLI, the dashboard and scripts send and get. Field names are the contract.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trellis_placement::{GivenTimings, Patience};

/// A header of `GET /v1/backup`, `true` where the node is cut off from its lattice: it gives what it knew by then.
pub const STALE: &str = "trellis-stale";

/// A header of `GET /v1/backup`, once for each past version that is not whole in it: nobody has one of its artifacts any more.
pub const LEFT_OUT: &str = "trellis-left-out";

/// Every answer that is no success. `error` says what happened, where, and what to do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// For people.
    pub error: String,
    /// For programs: `invalid_manifest`, `refused`, `not_found`, `too_large`, `not_ready`, `unavailable`, `internal`...
    pub code: String,
    /// What validation found, where the problem is a manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// One finding of the manifest's validation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// `error` or `warning`.
    pub severity: String,
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
    /// What is wrong and what to write instead.
    pub message: String,
    /// The finding as a terminal shows it, with the source line.
    pub rendered: String,
}

/// `POST /v1/deploy`: puts a version of an app and deploys it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeployRequest {
    /// The manifest as it was written.
    pub manifest: String,
    /// The file it came from, for messages.
    #[serde(default)]
    pub origin: String,
    /// Component name -> `sha256:...` of the artifact uploaded for its `file://` or bare-path image.
    #[serde(default)]
    pub artifacts: BTreeMap<String, String>,
    /// Replace a version of the same name that has other content.
    #[serde(default)]
    pub replace: bool,
    /// Change nothing; say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What `POST /v1/deploy` did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeployReply {
    /// The app.
    pub app: String,
    /// The version that is deployed now, or would be.
    pub version: String,
    /// `deployed`, `rolling_out`, `unchanged`, `waiting` or `dry_run`.
    pub outcome: String,
    /// What a deploy that is `waiting` waits for; what ran before goes on running.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
    /// What changes: one line each, `+ component api`, `~ link api -> kv: bucket`, `- provider http`.
    pub changes: Vec<String>,
    /// What moves, one line each: `api: node laptop 0 -> 10 permits`.
    pub moves: Vec<String>,
    /// Warnings of the validation.
    pub findings: Vec<Finding>,
}

/// `GET /v1/apps`: one line for each app.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AppSummary {
    /// Its name.
    pub app: String,
    /// The deployed version, or the newest one where none is deployed.
    pub version: String,
    /// `ready`, `deploying`, `troubled` (a node that holds some of it is late with its heartbeat; or it is ready, and a trigger
    /// paused by itself or has parked keys), `waiting`, `failed` or `undeployed`.
    pub state: String,
    /// Components in it.
    pub components: usize,
    /// Providers in it.
    pub providers: usize,
    /// The description annotation.
    pub description: Option<String>,
}

/// `GET /v1/apps/{app}`: what was asked, what runs where, and why not.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AppStatus {
    /// Its name.
    pub app: String,
    /// The deployed version, or the newest one where none is deployed.
    pub version: String,
    /// As in [`AppSummary`], where what is said of messages makes it no less ready.
    pub state: String,
    /// The generation of the plan that this speaks of.
    pub generation: u64,
    /// Why it is not ready: one sentence each. When it is, what waits for someone, such as a trigger that paused.
    pub problems: Vec<String>,
    /// Its components.
    pub components: Vec<ComponentStatus>,
    /// Its links.
    pub links: Vec<LinkStatus>,
    /// Versions kept, newest first.
    pub versions: Vec<String>,
    /// The version that takes its place, or the one before while this one is watched.
    #[serde(default)]
    pub rollout: Option<RolloutStatus>,
    /// What became of each version that is kept, newest first.
    #[serde(default)]
    pub history: Vec<VersionStatus>,
}

/// A roll-out in [`AppStatus`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RolloutStatus {
    /// The version that is rolled out.
    pub to: String,
    /// The version whose place it takes.
    pub from: String,
    /// The step, from 0: making ready.
    pub step: u8,
    /// The last step; at this one all events go to the new version, and its faults are watched.
    pub last: u8,
    /// The new version's share of the events, in percent.
    pub share: u8,
    /// What the next step waits for, one sentence each.
    pub waits_for: Vec<String>,
    /// Events that the new version handled, by the last heartbeats.
    pub events: u64,
    /// Faults among them.
    pub faults: u64,
}

/// A version in [`AppStatus`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct VersionStatus {
    /// Its name.
    pub version: String,
    /// `deployed`, `rolling-out`, `waiting`, `replaced`, `overtaken` (another one was wanted before it had taken over),
    /// `rolled-back`, `undeployed` or `kept`.
    pub state: String,
    /// When it was first put, in milliseconds since 1970.
    pub put_ms: u64,
    /// When all events went to it last; absent where they never did.
    pub deployed_ms: Option<u64>,
    /// When that ended.
    pub ended_ms: Option<u64>,
    /// What ended it: the version that replaced it, or why it was rolled back.
    pub why: Option<String>,
}

/// `POST /v1/apps/{app}/rollback`.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RollbackRequest {
    /// The version to go back to; absent: the one before.
    #[serde(default)]
    pub version: Option<String>,
}

/// What a rollback comes to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RollbackReply {
    /// The app.
    pub app: String,
    /// The version that it goes back to.
    pub version: String,
    /// `goes_back`; or, where nothing changed, `runs` or `on_its_way`.
    #[serde(default)]
    pub outcome: String,
}

/// A component in [`AppStatus`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ComponentStatus {
    /// Its name.
    pub name: String,
    /// The artifact.
    pub digest: String,
    /// What the manifest asks for: `10 in the lattice`, `on every node`, `one holder`.
    pub asked: String,
    /// Who holds it.
    pub holders: Vec<Holder>,
    /// Why it is not placed as asked, where it is not.
    pub problem: Option<String>,
}

/// A node that holds a component.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    /// The node's id.
    pub node: String,
    /// The node's name.
    pub name: String,
    /// Permits; absent: as many as the node allows.
    pub permits: Option<u32>,
    /// `ready`, `starting`, `failed`, `silent` (its node is late with its heartbeat), or `behind`: a node at the edge that is not
    /// ready and is not waited for.
    pub state: String,
    /// Sandboxes alive now.
    pub running: u64,
    /// Events handled since the node started.
    pub events: u64,
    /// Faults among them.
    pub faults: u64,
    /// Why it is not ready.
    pub problem: Option<String>,
}

/// A link in [`AppStatus`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LinkStatus {
    /// The entry with the trait.
    pub source: String,
    /// The entry that it names.
    pub target: String,
    /// Its name.
    pub name: String,
    /// `wasi:keyvalue/store,atomics`.
    pub interfaces: String,
    /// `ready`, `starting`, `failed` or `silent` (a node that applies it is late with its heartbeat).
    pub state: String,
    /// Where it listens or what it is connected to, where that means something: `http://127.0.0.1:8000`.
    pub at: Option<String>,
    /// What is not well: `not connected to nats://...`.
    pub problem: Option<String>,
    /// Who has its lease, where it may be at work on one node of the lattice only and somebody has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseStatus>,
}

/// The lease of a link that may be at work on one node only: a timer, an ordered queue.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LeaseStatus {
    /// The id of the node that has it.
    pub node: String,
    /// Its name.
    pub name: String,
    /// The fencing token: higher with each grant.
    pub token: u64,
    /// Whether the node has it at this moment, by its last renewal; known where it is the node that answers.
    pub held: Option<bool>,
}

/// `GET /v1/nodes`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// Its id.
    pub id: String,
    /// Its host name.
    pub name: String,
    /// Its public key, `N...`.
    pub key: String,
    /// What it is to the log: `voter`, `learner`, or outside of it `follower` or `edge`.
    pub role: String,
    /// Whether it leads now.
    pub leader: bool,
    /// Whether it is the home: what `trellis://embedded` keeps is in its file.
    #[serde(default)]
    pub home: bool,
    /// `ready`, `suspect` (late), `silent` (late and not declared lost yet), `lost`, `drained`, or `unheard`: not since the
    /// answering node started, which was a moment ago.
    pub state: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The version of Trellis that it runs.
    pub version: String,
    /// Milliseconds since its last sign of life, where the answering node knows.
    pub last_seen_ms: Option<u64>,
    /// How many entries of the log it lacks, where the answering node knows: the leader of members, every node of others.
    #[serde(default)]
    pub lag: Option<u64>,
    /// Sandboxes alive now, where this node knows.
    pub running: Option<u64>,
}

/// What `POST /v1/nodes/{node}/drain` comes to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DrainReply {
    /// The node.
    #[serde(flatten)]
    pub node: NodeReply,
    /// What the node had and no other node can hold, one sentence each with the reason: it is not held until then.
    #[serde(default)]
    pub unplaced: Vec<String>,
}

/// What `POST /v1/nodes/thaw` did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ThawReply {
    /// The nodes that were given up for now. None: nothing was frozen.
    pub nodes: Vec<String>,
}

/// `PUT /v1/trust/token`: sets another join token.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct TokenRequest {
    /// The token, at least 16 characters.
    pub token: String,
}

/// `PUT /v1/timings`: changes the lattice's timings; what is absent stays as it is. In the lattice's status all are there.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimingsBody {
    /// How often each node gives a sign of life, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// After how long without one a node gets no new work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspect_after_ms: Option<u64>,
    /// After how long it is lost, and what it holds goes elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_after_ms: Option<u64>,
    /// For how long a node that is cut off goes on with what must run once in the lattice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
}

impl TimingsBody {
    /// The same as the flags that give them.
    pub fn given(&self) -> GivenTimings {
        let time = |ms: Option<u64>| ms.map(Duration::from_millis);
        GivenTimings {
            heartbeat: time(self.heartbeat_ms),
            suspect: time(self.suspect_after_ms),
            lost: time(self.lost_after_ms),
            lease: time(self.lease_ms),
        }
    }
}

impl From<Patience> for TimingsBody {
    fn from(Patience { heartbeat, suspect, lost, lease }: Patience) -> Self {
        let ms = |time: Duration| Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Self {
            heartbeat_ms: ms(heartbeat),
            suspect_after_ms: ms(suspect),
            lost_after_ms: ms(lost),
            lease_ms: ms(lease),
        }
    }
}

/// What a change of a node, `/v1/nodes/{node}...`, is answered with: which node was meant. A path names it by its id, its
/// name, a part of its id that only one has at its beginning or end (4 digits or more), or as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeReply {
    /// Its id.
    pub id: String,
    /// How it is shown: by its name, with the end of its id where others have that name too.
    pub name: String,
    /// Whether it is the home, or was when it was forgotten.
    pub home: bool,
}

/// `PUT /v1/nodes/{node}/labels`: changes labels of a node.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LabelsRequest {
    /// The new value of each label; `null` takes it away.
    pub labels: BTreeMap<String, Option<String>>,
}

/// `GET /v1/apps/{app}/explain`: why it is as it is, from what the lattice agreed on and what the answering node did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AppExplanation {
    /// The app.
    pub app: String,
    /// What holds for all of it: a roll-out, a version taken back, a freeze.
    pub notes: Vec<String>,
    /// Its components and providers, of every version that runs.
    pub components: Vec<ComponentExplanation>,
    /// Where the answering node sent events for it lately, oldest first. What it ran itself is not listed.
    pub routed: Vec<RoutedEvent>,
}

/// A component in [`AppExplanation`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ComponentExplanation {
    /// Its name.
    pub name: String,
    /// Spreads that are not fully placed, and why.
    pub unplaced: Vec<String>,
    /// Of each node, whether it holds it and why.
    pub nodes: Vec<NodeVerdict>,
}

/// A node in [`ComponentExplanation`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerdict {
    /// The node's id.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Whether it holds the component.
    pub holds: bool,
    /// Why it does, or why not.
    pub why: String,
    /// What would change that.
    pub change: Option<String>,
}

/// An event in [`AppExplanation`] that another node ran.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RoutedEvent {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The component.
    pub component: String,
    /// The node that took it.
    pub to: String,
    /// Why it did not run here.
    pub why: String,
}

/// `GET /v1/lattice`: the lattice and the node that answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LatticeStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The node that answers.
    pub node: String,
    /// The leader, if one is known.
    pub leader: Option<String>,
    /// `embedded` or `connected to nats 2.15.1` or `not connected to nats://...: reason`.
    pub bus: String,
    /// The version of Trellis that the answering node runs.
    pub version: String,
    /// The generation of the plan.
    pub generation: u64,
    /// Who can join.
    pub trust: String,
    /// The timings of every node. A build before them tells none.
    #[serde(default)]
    pub timings: TimingsBody,
    /// What is not well, one sentence each.
    pub problems: Vec<String>,
}

/// `PUT /v1/config/{name}` and the answer of `GET /v1/config/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConfigBody {
    /// The pairs.
    pub values: BTreeMap<String, String>,
}

/// The largest body of a message that `POST /v1/publish` reads, in bytes. What takes the message may take less, and says so.
pub const PUBLISH_BYTES_MAX: usize = 32 * 1024 * 1024;

/// `POST /v1/publish`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PublishRequest {
    /// The subject.
    pub subject: String,
    /// The body, base64.
    pub body_base64: String,
    /// Headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// What `POST /v1/publish` did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PublishReply {
    /// `embedded`, `nats`, or `nats and embedded` where embedded links take the subject too.
    pub via: String,
    /// Queues and subscriptions of embedded links that took it; absent where it went to NATS only, which does not say.
    pub receivers: Option<usize>,
}

/// Dead letters in one answer at most. More are there where it has as many.
pub const DEAD_LETTERS_MAX: usize = 1_000;

/// `GET /v1/apps/{app}/dead-letters` (`?component=`): messages that were given up.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeadLettersStatus {
    /// Those that were found.
    pub dead_letters: Vec<DeadLetterStatus>,
    /// What may be missing: which node did not say what it has, and why. Empty: all that have it answered.
    pub problems: Vec<String>,
}

/// A message that was given up.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetterStatus {
    /// To show, replay or drop it by.
    pub id: String,
    /// The queue that it was taken off.
    pub queue: String,
    /// The component that could not handle it, as `app/component`.
    pub component: String,
    /// Where it was published.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its body, base64.
    pub body_base64: String,
    /// Its body, where it is text.
    pub body_text: Option<String>,
    /// When it was published, in milliseconds since 1970.
    pub published_ms: Option<u64>,
    /// How often it was tried.
    pub attempts: u32,
    /// How often a node died while it worked on it.
    pub kills: u32,
    /// The component's code at the last attempt, as `sha256:...`; empty where nothing ran.
    pub digest: String,
    /// The plan by which it was held then.
    pub generation: u64,
    /// The trace of that attempt, in hex; empty where none was kept.
    pub trace: String,
    /// What the component failed with, each with its backtrace, the newest last.
    pub faults: Vec<String>,
    /// `refused`, `max-attempts`, `max-faults`, `max-age` or `killed-its-node`.
    pub reason: String,
    /// The same for people.
    pub detail: String,
    /// When it was given up, in milliseconds since 1970.
    pub at_ms: u64,
}

/// `GET /v1/triggers`: every link by which a queue wakes a component, wherever it runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TriggersStatus {
    /// Each of them.
    pub triggers: Vec<TriggerStatus>,
    /// Nodes that did not say how theirs are.
    pub problems: Vec<String>,
}

/// How a trigger is. Counts are since the nodes that run it started.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TriggerStatus {
    /// The component that it wakes, as `app/component`.
    pub component: String,
    /// The link.
    pub link: String,
    /// What it pulls from: `nats`, `embedded`.
    pub system: String,
    /// `running`, `paused` (by a person), `auto-paused` (most messages failed on their first attempt) or `troubled`.
    pub state: String,
    /// Nodes that run it.
    pub nodes: usize,
    /// Messages that wait, those between two attempts included; absent where the broker does not say.
    pub waiting: Option<u64>,
    /// Messages that are given out and not settled.
    pub claimed: Option<u64>,
    /// How long ago the oldest message was published, in milliseconds; absent where there is none, and on RabbitMQ, which shows
    /// none that waits.
    pub oldest_age_ms: Option<u64>,
    /// Messages in handlers now.
    pub in_flight: u64,
    /// Messages that its nodes hold, those that wait for their turn included.
    pub held: u64,
    /// Attempts.
    pub attempts: u64,
    /// Deliveries that ended in `ack`, `retry`, `dead-letter`, `drop` and `give-back`.
    pub outcomes: BTreeMap<String, u64>,
    /// Dead letters that are kept beside the queue; absent where the broker does not say.
    pub dead_letters: Option<u64>,
    /// How long messages that were there waited for a permit, on average, in milliseconds.
    pub permit_wait_ms: Option<f64>,
    /// From a message's publication to its first attempt, on average, in milliseconds.
    pub in_queue_ms: Option<f64>,
    /// How long a handler took, on average, in milliseconds.
    pub run_ms: Option<f64>,
    /// What is not well.
    pub problems: Vec<String>,
}

/// `POST /v1/apps/{app}/components/{component}/invoke`: runs `wasi:cli/run` once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct InvokeRequest {
    /// The arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
}

/// What the run left behind.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct InvokeReply {
    /// Whether it ended in ok.
    pub ok: bool,
    /// Standard output, base64.
    pub stdout_base64: String,
    /// Standard error, base64.
    pub stderr_base64: String,
}

/// One line of `GET /v1/logs` (`?app=&component=&follow=true`): newline-delimited JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The node.
    pub node: String,
    /// The app.
    pub app: String,
    /// The component.
    pub component: String,
    /// The event whose sandbox said it.
    pub event: String,
    /// `trace`, `debug`, `info`, `warn`, `error` or `critical`.
    pub level: String,
    /// What the guest gave as context; `stdout` and `stderr` for what it printed; `fault` for how it failed.
    pub context: String,
    /// The text.
    pub message: String,
}

/// One line of `GET /v1/events` (`?app=&follow=true`): a CloudEvent 1.0 of the lattice. Its types and their `data`:
///
/// - `trellis.node.joined`, `.lost`, `.back`, `.forgotten`, `.drained`, `.undrained`: `node`, `name`; `.labelled`: those, and
///   in `labels` each label that is another now, `null` where it is gone;
/// - `trellis.leader.elected`: `node`, `name`, `term`;
/// - `trellis.app.rolling`, `trellis.app.deployed`, `trellis.app.rolled_back`: `app`, `version`, `before` (the version that ran, if one did),
///   and `why` where that one was taken back;
///   `trellis.app.waits`: `app`, `version`, `waits_for`; `trellis.app.undeployed`, `.deleted`: `app`;
/// - `trellis.link.set`, `.removed`: `app`, `link`;
/// - `trellis.trigger.paused`, `.resumed` (by hand): `app`, `component`;
/// - `trellis.lease.granted`, `.lost`: `link`, `node`, `name`, `token`;
/// - `trellis.component.started`, `.stopped`, `.faulted`: `component`, `node`, `name`, and `faults` for how many.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent {
    /// `1.0`.
    pub specversion: String,
    /// Its own, together with `source`.
    pub id: String,
    /// `/trellis/LATTICE-ID/NODE-ID`: the node that says so. Another that is followed says the same under ids of its own.
    pub source: String,
    /// As above.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about: a node's id, an app, `app/component`, a link.
    pub subject: String,
    /// When the node noticed, as RFC 3339.
    pub time: String,
    /// `application/json`.
    pub datacontenttype: String,
    /// As above.
    pub data: serde_json::Value,
}

/// What `POST /v1/restore` brought back.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RestoreReply {
    /// Deploys and configs that were made again, in order.
    pub commands: usize,
    /// Artifacts that came with them.
    pub artifacts: usize,
}

/// The answer of `PUT /v1/artifacts/{digest}` and of each line of `GET /v1/artifacts`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactStatus {
    /// `sha256:...`.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is compiled on the answering node.
    pub compiled: bool,
}
