//! The routes: the table, and one short function for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, head, post, put};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use trellis_placement::{Applied, Command, Life, NoNode, Refusal as Why, TrustChange, check_label};
use trellis_provider::Want;
use trellis_provider::delivery::Fate;
use trellis_raft::ProposeError;
use trellis_trust::TOKEN_CHARS_MIN;
use trellis_wire::Secret;
use trellis_wire::credentials::{self, Held};
use trellis_wire::{
    AppName, CallError, ComponentKey, ComponentName, Config, Digest, Event, IdError, Message, NodeId, Reply, subject,
};

use super::access::Role;
use super::problem::Refusal;
use super::types::{
    AppExplanation, AppStatus, AppSummary, ArtifactStatus, CloudEvent, ConfigBody, DeadLetterStatus, DeadLettersStatus,
    DeployReply, DeployRequest, DrainReply, InvokeReply, InvokeRequest, LEFT_OUT, LabelsRequest, LatticeStatus,
    LogLine, NodeReply, NodeStatus, PUBLISH_BYTES_MAX, PublishReply, PublishRequest, RestoreReply, RollbackReply,
    RollbackRequest, STALE, ThawReply, TimingsBody, TokenRequest, TriggersStatus,
};
use super::{metrics, openapi};
use crate::artifacts::{ARTIFACT_BYTES_MAX, ArtifactError, Artifacts};
use crate::backup::BackupError;
use crate::far::message::Origin;
use crate::node::Node;
use crate::triggers::{Found, Letters};
use crate::{backup, changes, clock, cut_off, deploy, explain, membership, proposal, status};

/// The largest JSON body, in bytes: a manifest and little else.
const JSON_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The same of a message to publish, in base64 and with its headers.
const PUBLISH_JSON_BYTES_MAX: usize = PUBLISH_BYTES_MAX.div_ceil(3) * 4 + 1024 * 1024;
/// The largest body of any other request, in bytes, as axum has it.
const BODY_BYTES_DEFAULT: usize = 2 * 1024 * 1024;
/// How long `invoke` waits for a permit.
const INVOKE_WAIT: Duration = Duration::from_secs(30);
/// Log lines given where the request does not say how many.
const LINES_DEFAULT: usize = 200;

type Answer<T> = Result<T, Refusal>;
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One line of the table.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// What a token must allow; `None`: anyone may ask, so that supervisors can.
    pub(super) role: Option<Role>,
    /// The shape of the JSON that it takes.
    pub(super) takes: Option<SchemaOf>,
    /// The shape of the JSON that it gives; `None`: text, bytes or nothing.
    pub(super) gives: Option<SchemaOf>,
    pub(super) serve: fn() -> MethodRouter<Arc<Node>>,
}

fn shape<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

macro_rules! route {
    ($role:ident $method:literal $path:literal $summary:literal, $takes:expr, $gives:expr, $serve:expr) => {
        Route {
            role: $role,
            method: $method,
            path: $path,
            summary: $summary,
            takes: $takes,
            gives: $gives,
            serve: || $serve,
        }
    };
}

const ANYONE: Option<Role> = None;
const READ: Option<Role> = Some(Role::Read);
const DEPLOY: Option<Role> = Some(Role::Deploy);
const ADMIN: Option<Role> = Some(Role::Admin);

/// Everything that the admin API has, and what a token must allow for it.
pub(super) fn routes() -> Vec<Route> {
    vec![
        route!(ANYONE "get" "/healthz" "Whether the process lives.", None, None, get(healthz)),
        route!(ANYONE "get" "/readyz" "Whether the node can do its work; 503 says why not.", None, None, get(readyz)),
        route!(READ "get" "/metrics" "Prometheus text.", None, None, get(metrics_page)),
        route!(READ "get" "/openapi.json" "This document.", None, None, get(document)),
        route!(READ "get" "/v1/lattice" "The lattice, and the node that answers.", None, Some(shape::<LatticeStatus>), get(lattice)),
        route!(READ "get" "/v1/nodes" "The nodes.", None, Some(shape::<Vec<NodeStatus>>), get(nodes)),
        route!(ADMIN "post" "/v1/nodes/thaw" "Places anew what frozen nodes hold: those that vanished together with too many.",
        None, Some(shape::<ThawReply>), post(thaw)),
        route!(ADMIN "delete" "/v1/nodes/{node}" "Forgets a node that will not come back.", None, Some(shape::<NodeReply>), delete(forget)),
        route!(ADMIN "post" "/v1/nodes/{node}/drain" "Moves everything off a node.", None, Some(shape::<DrainReply>), post(drain)),
        route!(ADMIN "post" "/v1/nodes/{node}/undrain" "Lets a drained node hold things again.", None, Some(shape::<NodeReply>), post(undrain)),
        route!(ADMIN "put" "/v1/nodes/{node}/labels" "Changes labels of a node.", Some(shape::<LabelsRequest>), Some(shape::<NodeReply>), put(label)),
        route!(ADMIN "put" "/v1/trust/nodes/{key}" "Lets a node with this key join without the join token.", None, None, put(allow)),
        route!(ADMIN "delete" "/v1/trust/nodes/{key}" "Lets it no longer; a node that is a member stays one.", None, None, delete(disallow)),
        route!(ADMIN "put" "/v1/trust/token" "Sets another join token.", Some(shape::<TokenRequest>), None, put(set_token)),
        route!(ADMIN "put" "/v1/timings" "Changes the lattice's timings, on every node, while they run.", Some(shape::<TimingsBody>), None, put(set_timings)),
        route!(READ "get" "/v1/apps" "The apps.", None, Some(shape::<Vec<AppSummary>>), get(apps)),
        route!(DEPLOY "post" "/v1/deploy" "Puts a version of an app and deploys it.",
        Some(shape::<DeployRequest>), Some(shape::<DeployReply>), at_most(JSON_BYTES_MAX, post(put_deploy))),
        route!(READ "get" "/v1/apps/{app}" "What was asked, what runs where, and why not.", None, Some(shape::<AppStatus>), get(app)),
        route!(DEPLOY "delete" "/v1/apps/{app}" "Stops an app and forgets its history.", None, None, delete(delete_app)),
        route!(READ "get" "/v1/apps/{app}/manifest" "The manifest of the deployed version, or of the newest.", None, None, get(manifest)),
        route!(DEPLOY "post" "/v1/apps/{app}/undeploy" "Stops an app and keeps its history.", None, None, post(undeploy)),
        route!(DEPLOY "post" "/v1/apps/{app}/rollback" "Goes back to the version before, or to a named one that is kept.",
        Some(shape::<RollbackRequest>), Some(shape::<RollbackReply>), post(rollback)),
        route!(DEPLOY "post" "/v1/apps/{app}/components/{component}/invoke" "Runs a wasi:cli/run component once.",
        Some(shape::<InvokeRequest>), Some(shape::<InvokeReply>), post(invoke)),
        route!(READ "get" "/v1/apps/{app}/dead-letters" "Messages that were given up, and which nodes did not say what they have; `component=`, `reason=`, `older_than_ms=` and `id=` choose.",
        None, Some(shape::<DeadLettersStatus>), get(dead_letters)),
        route!(DEPLOY "post" "/v1/apps/{app}/dead-letters/{id}/replay" "Puts a dead letter back into its queue, once.",
        None, None, post(replay_dead_letter)),
        route!(DEPLOY "delete" "/v1/apps/{app}/dead-letters/{id}" "Forgets a dead letter.", None, None, delete(drop_dead_letter)),
        route!(READ "get" "/v1/apps/{app}/explain" "Why it is placed as it is, what would change that, and where events went.",
        None, Some(shape::<AppExplanation>), get(explain)),
        route!(READ "get" "/v1/triggers" "Every link by which a queue wakes a component, and how it goes.",
        None, Some(shape::<TriggersStatus>), get(triggers)),
        route!(DEPLOY "post" "/v1/apps/{app}/components/{component}/pause" "Queues wake the component no more.", None, None, post(pause)),
        route!(DEPLOY "post" "/v1/apps/{app}/components/{component}/resume" "Queues wake the component again.", None, None, post(resume)),
        route!(READ "head" "/v1/artifacts/{digest}" "Whether an artifact is on this node.", None, None, head(has_artifact)),
        route!(DEPLOY "put" "/v1/artifacts/{digest}" "Uploads a component; it is compiled before the answer.",
        None, Some(shape::<ArtifactStatus>), put(put_artifact).layer(DefaultBodyLimit::max(ARTIFACT_BYTES_MAX as usize))),
        route!(READ "get" "/v1/config" "The names of config.", None, Some(shape::<Vec<String>>), get(configs)),
        route!(READ "get" "/v1/config/{name}" "One config.", None, Some(shape::<ConfigBody>), get(config)),
        route!(DEPLOY "put" "/v1/config/{name}" "Puts a config in place of what it held.", Some(shape::<ConfigBody>), None, put(put_config)),
        route!(DEPLOY "delete" "/v1/config/{name}" "Deletes a config.", None, None, delete(delete_config)),
        route!(DEPLOY "post" "/v1/publish" "Publishes a message.", Some(shape::<PublishRequest>), Some(shape::<PublishReply>), at_most(PUBLISH_JSON_BYTES_MAX, post(publish))),
        route!(READ "get" "/v1/logs" "What guests said, one JSON object on each line; `follow=true` goes on.",
        None, Some(shape::<LogLine>), get(logs)),
        route!(READ "get" "/v1/events" "What happens in the lattice, one CloudEvent on each line; `follow=true` goes on.",
        None, Some(shape::<CloudEvent>), get(events)),
        route!(ADMIN "get" "/v1/backup" "Apps with their versions, config and artifacts, as `restore` takes them.", None, None, get(get_backup)),
        route!(ADMIN "post" "/v1/restore" "Brings back a backup on a lattice that has neither apps nor config.",
        None, Some(shape::<RestoreReply>), post(restore)),
        route!(READ "get" "/v1/schema/manifest" "The JSON Schema of the manifest.", None, None, get(schema)),
    ]
}

/// A route whose request may have so many bytes.
fn at_most(bytes: usize, route: MethodRouter<Arc<Node>>) -> MethodRouter<Arc<Node>> {
    let route: MethodRouter<Arc<Node>> = route.layer(DefaultBodyLimit::max(bytes));
    route.layer(Extension(BytesMax(bytes)))
}

/// What [`at_most`] said, for who is refused.
#[derive(Clone, Copy)]
struct BytesMax(usize);

/// JSON in, with our own problem where it does not fit.
struct Take<T>(T);

impl<T: serde::de::DeserializeOwned> FromRequest<Arc<Node>> for Take<T> {
    type Rejection = Refusal;

    async fn from_request(request: axum::extract::Request, node: &Arc<Node>) -> Result<Self, Refusal> {
        let BytesMax(most) = request.extensions().get().copied().unwrap_or(BytesMax(BODY_BYTES_DEFAULT));
        let taken: Result<Json<T>, JsonRejection> = Json::from_request(request, node).await;
        taken.map(|Json(value)| Self(value)).map_err(|why| match why.status() {
            status @ StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(
                status,
                "too_large",
                format!("the request has more than {most} bytes, which is the most here"),
            ),
            status => Refusal::new(status, "bad_request", why.body_text()),
        })
    }
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(node): State<Arc<Node>>) -> Answer<&'static str> {
    match status::unready(&node) {
        problems if problems.is_empty() => Ok("ready\n"),
        problems => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", problems.join("; "))),
    }
}

async fn metrics_page(State(node): State<Arc<Node>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::page(&node).await).into_response()
}

async fn document() -> Json<serde_json::Value> {
    Json(openapi::document(&routes()))
}

async fn schema() -> Json<serde_json::Value> {
    Json(trellis_manifest::json_schema())
}

async fn lattice(State(node): State<Arc<Node>>) -> Json<LatticeStatus> {
    Json(status::lattice(&node))
}

async fn nodes(State(node): State<Arc<Node>>) -> Json<Vec<NodeStatus>> {
    Json(status::nodes(&node))
}

/// The node that a person means, and what is answered once it is changed.
fn meant(node: &Node, text: &str) -> Answer<(NodeId, Json<NodeReply>)> {
    let state = node.raft.state().borrow().clone();
    let id = state.meant(text).map_err(|why| match why {
        NoNode::Unknown(_) => Refusal::not_found(why.to_string()),
        NoNode::Several { .. } => Refusal::conflict(why.to_string()),
    })?;
    let home = state.home_node() == Some(id);
    Ok((id, Json(NodeReply { id: id.to_string(), name: state.shown(id), home })))
}

/// A node that is silent and not declared lost, because too many vanished at once, is given up by this.
async fn forget(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer<Json<NodeReply>> {
    let (id, reply) = meant(&node, &name)?;
    if node.liveness.life(id) == Life::Silent {
        drop(propose(&node, Command::Lost(id)).await?);
    }
    propose(&node, Command::Forget(id)).await.map(|_| reply)
}

async fn drain(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer<Json<DrainReply>> {
    let ((id, Json(reply)), before) = (meant(&node, &name)?, node.raft.state().borrow().clone());
    drop(propose(&node, Command::Drain { node: id, on: true }).await?);
    let unplaced = tokio::task::spawn_blocking(move || changes::unplaced_without(&before, id)).await;
    let unplaced =
        unplaced.map_err(|why| Refusal::internal(format!("what nobody else can hold is not known: {why}")))?;
    Ok(Json(DrainReply { node: reply, unplaced }))
}

async fn undrain(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer<Json<NodeReply>> {
    let (id, reply) = meant(&node, &name)?;
    propose(&node, Command::Drain { node: id, on: false }).await.map(|_| reply)
}

async fn allow(State(node): State<Arc<Node>>, Path(key): Path<String>) -> Answer<Json<serde_json::Value>> {
    propose(&node, Command::Trust(TrustChange::Allow(key.parse().map_err(bad_name)?))).await
}

async fn disallow(State(node): State<Arc<Node>>, Path(key): Path<String>) -> Answer<Json<serde_json::Value>> {
    propose(&node, Command::Trust(TrustChange::Disallow(key.parse().map_err(bad_name)?))).await
}

/// The token itself goes no further than here.
async fn set_token(
    State(node): State<Arc<Node>>,
    Take(request): Take<TokenRequest>,
) -> Answer<Json<serde_json::Value>> {
    if request.token.trim().chars().count() < TOKEN_CHARS_MIN {
        return Err(Refusal::bad_request(format!("a join token has at least {TOKEN_CHARS_MIN} characters")));
    }
    let lattice = node.raft.state().borrow().lattice_id();
    let lattice = lattice.ok_or_else(|| Refusal::unavailable("this node belongs to no lattice yet"))?;
    let token = membership::token(lattice, &Secret::new(&request.token)).await;
    propose(&node, Command::Trust(TrustChange::Token(token.key()))).await
}

/// A write reaches the leader, which may have heard of another change meanwhile: the later one counts, whole.
async fn set_timings(
    State(node): State<Arc<Node>>,
    Take(request): Take<TimingsBody>,
) -> Answer<Json<serde_json::Value>> {
    if request == TimingsBody::default() {
        return Err(Refusal::bad_request(
            "nothing is to change: give one of heartbeat_ms, suspect_after_ms, lost_after_ms, lease_ms",
        ));
    }
    let patience = request.given().over(status::timings(&node));
    patience.check().map_err(|why| Refusal::bad_request(why.to_string()))?;
    propose(&node, Command::Timings(patience)).await
}

async fn label(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    Take(request): Take<LabelsRequest>,
) -> Answer<Json<NodeReply>> {
    // Whatever is there already can be taken away.
    let mut set = request.labels.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    set.try_for_each(|(key, value)| check_label(key, value)).map_err(|why| Refusal::bad_request(why.to_string()))?;
    let (id, reply) = meant(&node, &name)?;
    propose(&node, Command::Label { node: id, labels: request.labels }).await.map(|_| reply)
}

async fn explain(State(node): State<Arc<Node>>, Path(app): Path<String>) -> Answer<Json<AppExplanation>> {
    let name = app_name(&app)?;
    explain::app(&node, &name).map(Json).ok_or_else(|| no_app(&name))
}

/// Nodes that are silent and not declared lost, because too many vanished at once, are given up for now.
async fn thaw(State(node): State<Arc<Node>>) -> Answer<Json<ThawReply>> {
    let (mut nodes, state) = (Vec::new(), node.raft.state().borrow().clone());
    for id in node.liveness.frozen() {
        drop(propose(&node, Command::Lost(id)).await?);
        nodes.push(state.named(id));
    }
    Ok(Json(ThawReply { nodes }))
}

async fn apps(State(node): State<Arc<Node>>) -> Json<Vec<AppSummary>> {
    Json(status::apps(&node))
}

async fn put_deploy(State(node): State<Arc<Node>>, Take(request): Take<DeployRequest>) -> Answer<Json<DeployReply>> {
    Ok(Json(deploy::deploy(&node, request).await?))
}

async fn app(State(node): State<Arc<Node>>, Path(app): Path<String>) -> Answer<Json<AppStatus>> {
    let name = app_name(&app)?;
    status::whole(&node, &name).await.map(Json).ok_or_else(|| no_app(&name))
}

async fn manifest(State(node): State<Arc<Node>>, Path(app): Path<String>) -> Answer<Response> {
    let name = app_name(&app)?;
    let state = node.raft.state().borrow().clone();
    let release = state.app(&name).and_then(status::release).ok_or_else(|| no_app(&name))?;
    node.fetch.ensure(release.manifest).await.map_err(|why| Refusal::unavailable(why.to_string()))?;
    let text = node.artifacts.get(release.manifest).map_err(|why| Refusal::unavailable(why.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

async fn undeploy(State(node): State<Arc<Node>>, Path(app): Path<String>) -> Answer<Json<serde_json::Value>> {
    propose(&node, Command::Undeploy(app_name(&app)?)).await
}

async fn rollback(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    Take(request): Take<RollbackRequest>,
) -> Answer<Json<RollbackReply>> {
    let name = app_name(&app)?;
    let applied = apply(&node, Command::Rollback { app: name.clone(), version: request.version }).await?;
    let state = node.raft.state().borrow().clone();
    let versions = state.app(&name).ok_or_else(|| no_app(&name))?;
    let version = versions.next().or(versions.newer()).or(versions.deployed()).ok_or_else(|| no_app(&name))?;
    let outcome = match applied {
        Applied::Unchanged if versions.deployed() == Some(version) => "runs",
        Applied::Unchanged => "on_its_way",
        _ => "goes_back",
    };
    Ok(Json(RollbackReply { app: name.to_string(), version: version.version.clone(), outcome: outcome.into() }))
}

async fn delete_app(State(node): State<Arc<Node>>, Path(app): Path<String>) -> Answer<Json<serde_json::Value>> {
    propose(&node, Command::Delete(app_name(&app)?)).await
}

async fn propose(node: &Node, command: Command) -> Answer<Json<serde_json::Value>> {
    apply(node, command).await.map(|_| Json(serde_json::json!({})))
}

/// Commits a command, and says what came of it.
async fn apply(node: &Node, command: Command) -> Answer<Applied> {
    let entry = proposal::entry(command);
    entry.check_size().map_err(|why| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", why.to_string()))?;
    // Nothing is sent, so that nobody needs to wonder whether it takes effect after all.
    cut_off::certainly(node).map_or(Ok(()), |why| Err(Refusal::unavailable(why)))?;
    match proposal::commit(&node.raft, entry).await {
        Ok(Applied::Refused(
            why @ (Why::UnknownApp(_) | Why::UnknownComponent(_) | Why::UnknownConfig(_) | Why::UnknownNode(_)),
        )) => Err(Refusal::not_found(why.to_string())),
        Ok(Applied::Refused(why)) => Err(Refusal::conflict(why.to_string())),
        Ok(applied) => Ok(applied),
        Err(ProposeError::TooOld(why)) => Err(Refusal::conflict(why.to_string())),
        Err(why) => Err(Refusal::unavailable(why.to_string())),
    }
}

async fn invoke(
    State(node): State<Arc<Node>>,
    Path((app, component)): Path<(String, String)>,
    Take(request): Take<InvokeRequest>,
) -> Answer<Json<InvokeReply>> {
    let key = component_key(&app, &component)?;
    let permit = node.dispatch.permit(&key, Want::Answer { at_most: INVOKE_WAIT }, Origin::Invoke.into()).await;
    let permit = permit.map_err(|why| match why {
        trellis_wire::Error::NotHeld(_) => Refusal::not_found(format!("{why}; `trellis apps` lists what is deployed")),
        why => Refusal::unavailable(why.to_string()),
    })?;
    match permit.run(Event::Run(request.args)).await {
        Ok(Reply::Run(output)) => Ok(Json(InvokeReply {
            ok: output.ok,
            stdout_base64: STANDARD.encode(output.stdout),
            stderr_base64: STANDARD.encode(output.stderr),
        })),
        Ok(other) => Err(Refusal::internal(format!("{key} answered a run with {other:?}"))),
        Err(failure) => Err(Refusal::new(StatusCode::BAD_GATEWAY, "fault", failure.to_string())),
    }
}

async fn has_artifact(State(node): State<Arc<Node>>, Path(digest): Path<String>) -> Answer<StatusCode> {
    let digest: Digest = digest.parse().map_err(bad_name)?;
    Ok(if node.artifacts.has(digest) { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

async fn put_artifact(
    State(node): State<Arc<Node>>,
    Path(digest): Path<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Answer<Json<ArtifactStatus>> {
    let bytes = bytes.map_err(|why| Refusal::new(why.status(), "too_large", why.body_text()))?;
    let digest: Digest = digest.parse().map_err(bad_name)?;
    let work = tokio::task::spawn_blocking(move || {
        // The digest first: what came broken is not worth compiling. Then the compiler: what is no component is not
        // worth keeping.
        let found = Artifacts::digest(&bytes);
        if found != digest {
            let error = ArtifactError::Mismatch { expected: digest, found };
            return Err(Refusal::bad_request(error.to_string()));
        }
        node.engine.compile(digest, &bytes).map_err(|why| match why.is_of_the_artifact() {
            true => Refusal::bad_request(why.to_string()),
            false => Refusal::unavailable(why.to_string()),
        })?;
        node.artifacts.put(&bytes, Some(digest)).map_err(|why| Refusal::unavailable(why.to_string()))?;
        let compiled = node.engine.is_compiled(digest);
        Ok(Json(ArtifactStatus { digest: digest.to_string(), bytes: bytes.len() as u64, compiled }))
    });
    work.await.map_err(|why| Refusal::internal(format!("compiling broke off: {why}")))?
}

async fn configs(State(node): State<Arc<Node>>) -> Json<Vec<String>> {
    Json(node.raft.state().borrow().configs().iter().map(|(name, _)| name.to_owned()).collect())
}

async fn config(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer<Json<ConfigBody>> {
    let state = node.raft.state().borrow().clone();
    let config =
        state.configs().get(&name).ok_or_else(|| Refusal::not_found(format!("there is no config `{name}`")))?;
    let values: BTreeMap<_, _> = config.values.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(Json(ConfigBody { values }))
}

async fn put_config(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    Take(body): Take<ConfigBody>,
) -> Answer<Json<serde_json::Value>> {
    for (key, value) in &body.values {
        let what = match credentials::held(key, value) {
            Some(Held::InAddress) => "holds a password",
            Some(Held::Plain) => "is a credential",
            Some(Held::AsWasmcloud) | None => continue,
        };
        let why = format!("`{key}` {what}, which the lattice would keep and show: name it in a manifest's `secrets`");
        return Err(Refusal::bad_request(why));
    }
    propose(&node, Command::PutConfig { name, values: Config::from_iter(body.values) }).await
}

async fn delete_config(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer<Json<serde_json::Value>> {
    propose(&node, Command::DeleteConfig(name)).await
}

async fn get_backup(State(node): State<Arc<Node>>) -> Answer<Response> {
    let is_stale = cut_off::certainly(&node).is_some();
    let (backup, left_out) = backup::backup(&node, is_stale).await.map_err(no_backup)?;
    let mut answer = ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(backup)).into_response();
    if is_stale {
        answer.headers_mut().insert(STALE, HeaderValue::from_static("true"));
    }
    for version in left_out {
        let named = HeaderValue::from_str(&version.escape_default().to_string()).expect("what is escaped is ASCII");
        answer.headers_mut().append(LEFT_OUT, named);
    }
    Ok(answer)
}

async fn restore(State(node): State<Arc<Node>>, body: Body) -> Answer<Json<RestoreReply>> {
    let restored = backup::restore(&node, body.into_data_stream()).await.map_err(no_backup)?;
    Ok(Json(RestoreReply { commands: restored.commands, artifacts: restored.artifacts }))
}

fn no_backup(why: BackupError) -> Refusal {
    match why {
        BackupError::Unusable(_) => Refusal::bad_request(why.to_string()),
        BackupError::NotEmpty | BackupError::TooNew(_) | BackupError::Stopped { .. } => {
            Refusal::conflict(why.to_string())
        }
        BackupError::Unavailable(_) => Refusal::unavailable(why.to_string()),
    }
}

async fn publish(State(node): State<Arc<Node>>, Take(request): Take<PublishRequest>) -> Answer<Json<PublishReply>> {
    let body = STANDARD.decode(&request.body_base64);
    let body = body.map_err(|why| Refusal::bad_request(format!("body_base64 is no base64: {why}")))?;
    if !subject::is_free(&request.subject) {
        let error = format!("`{}` is no subject to publish to: it is reserved or malformed", request.subject);
        return Err(Refusal::bad_request(error));
    }
    let message =
        Message { subject: request.subject, body: body.into(), headers: request.headers, ..Message::default() };
    let has_nats = node.nats_url.is_some();
    // First, so that what is refused there has not gone out on NATS yet.
    let embedded = match has_nats {
        true => node.triggers.publish(&message).await,
        false => node.providers.embedded.publish(message.clone()).await.map(Some),
    };
    let embedded = embedded.map_err(|why| match why {
        CallError::Invalid(_) => Refusal::bad_request(why.to_string()),
        why => Refusal::unavailable(why.to_string()),
    })?;
    if has_nats {
        node.providers.nats.publish(message).await.map_err(|why| match (embedded, &why) {
            (Some(took), _) => Refusal::unavailable(format!("{why}; {took} embedded queues and links have it already")),
            (None, CallError::Invalid(_) | CallError::Denied(_)) => Refusal::bad_request(why.to_string()),
            (None, _) => Refusal::unavailable(why.to_string()),
        })?;
    }
    let via = match (has_nats, embedded) {
        (true, None) => "nats",
        (true, Some(_)) => "nats and embedded",
        (false, _) => "embedded",
    };
    Ok(Json(PublishReply { via: via.into(), receivers: embedded }))
}

/// The query of `/v1/apps/{app}/dead-letters`.
#[derive(Deserialize)]
struct DeadLetterQuery {
    component: Option<String>,
    reason: Option<String>,
    /// Given up at least so long ago, in milliseconds.
    older_than_ms: Option<u64>,
    id: Option<String>,
}

impl DeadLetterQuery {
    fn takes(&self, found: &Found, now_ms: u64) -> bool {
        self.reason.as_ref().is_none_or(|reason| *reason == found.letter.reason)
            && self.older_than_ms.is_none_or(|age| found.letter.at_ms.saturating_add(age) <= now_ms)
            && self.id.as_ref().is_none_or(|id| *id == found.id)
    }
}

async fn dead_letters(
    State(node): State<Arc<Node>>,
    Path(app): Path<String>,
    query: Result<Query<DeadLetterQuery>, QueryRejection>,
) -> Answer<Json<DeadLettersStatus>> {
    let Query(query) = query.map_err(|why| Refusal::bad_request(why.body_text()))?;
    let component = query.component.as_ref().map(|name| name.parse::<ComponentName>().map_err(bad_name)).transpose()?;
    let (app, now_ms) = (app_name(&app)?, clock::now_ms());
    known(&node, &app, component.as_ref())?;
    reachable(&node, &app, component.as_ref())?;
    let found = node.triggers.find((&app, component.as_ref()), |found| query.takes(found, now_ms)).await;
    let Letters { found, problems } = found.map_err(Refusal::unavailable)?;
    let shown = found.into_iter().map(|Found { letter, id }| DeadLetterStatus {
        id,
        queue: letter.queue,
        component: letter.component,
        subject: letter.message.subject,
        headers: letter.message.headers,
        body_base64: STANDARD.encode(&letter.message.body),
        body_text: String::from_utf8(letter.message.body.into()).ok(),
        published_ms: letter.message.published_ms,
        attempts: letter.attempts,
        kills: letter.kills,
        digest: letter.ran.digest,
        generation: letter.ran.generation,
        trace: letter.ran.trace,
        faults: letter.faults,
        reason: letter.reason,
        detail: letter.detail,
        at_ms: letter.at_ms,
    });
    Ok(Json(DeadLettersStatus { dead_letters: shown.collect(), problems }))
}

/// Whether there is such an app, and such a component in one of its versions.
fn known(node: &Node, app: &AppName, component: Option<&ComponentName>) -> Answer<()> {
    let state = node.shares.state();
    let versions = state.app(app).ok_or_else(|| no_app(app))?;
    let has = |name: &ComponentName| versions.kept().iter().any(|kept| kept.release.app.components.contains_key(name));
    match component.filter(|name| !has(name)) {
        Some(name) => Err(Refusal::not_found(format!("app `{app}` has no component `{name}` in any version"))),
        None => Ok(()),
    }
}

/// Whether there is someone to ask for dead letters.
fn reachable(node: &Node, app: &AppName, component: Option<&ComponentName>) -> Answer<()> {
    node.triggers.out_of_reach(app, component).map_or(Ok(()), |why| Err(Refusal::conflict(why)))
}

async fn replay_dead_letter(
    State(node): State<Arc<Node>>,
    Path((app, id)): Path<(String, String)>,
) -> Answer<Json<serde_json::Value>> {
    decide(&node, &app, &id, Fate::Replay).await
}

async fn drop_dead_letter(
    State(node): State<Arc<Node>>,
    Path((app, id)): Path<(String, String)>,
) -> Answer<Json<serde_json::Value>> {
    decide(&node, &app, &id, Fate::Drop).await
}

async fn decide(node: &Node, app: &str, id: &str, fate: Fate) -> Answer<Json<serde_json::Value>> {
    let app = app_name(app)?;
    reachable(node, &app, None)?;
    match node.triggers.decide(&app, id, fate).await {
        Ok(true) => Ok(Json(serde_json::json!({}))),
        Ok(false) => Err(Refusal::not_found(format!("there is no dead letter {id} of {app}"))),
        Err(why) => Err(Refusal::unavailable(why)),
    }
}

async fn triggers(State(node): State<Arc<Node>>) -> Json<TriggersStatus> {
    Json(status::triggers(&node).await)
}

async fn pause(
    State(node): State<Arc<Node>>,
    Path((app, component)): Path<(String, String)>,
) -> Answer<Json<serde_json::Value>> {
    propose(&node, Command::Pause { component: component_key(&app, &component)?, on: true }).await
}

/// Ends a pause by hand, and those that triggers made by themselves.
async fn resume(
    State(node): State<Arc<Node>>,
    Path((app, component)): Path<(String, String)>,
) -> Answer<Json<serde_json::Value>> {
    let component = component_key(&app, &component)?;
    let ended = apply(&node, Command::Pause { component: component.clone(), on: false }).await?;
    let by_themselves = node.triggers.resume_all(&component).await;
    // What did pause may be in no version any more.
    if matches!(ended, Applied::Unchanged) && by_themselves == 0 {
        known(&node, &component.app, Some(&component.name))?;
    }
    Ok(Json(serde_json::json!({})))
}

/// The query of `/v1/logs`.
#[derive(Deserialize)]
struct LogQuery {
    app: Option<String>,
    component: Option<String>,
    #[serde(default)]
    follow: bool,
    lines: Option<usize>,
}

impl LogQuery {
    fn takes(&self, line: &LogLine) -> bool {
        self.app.as_ref().is_none_or(|app| *app == line.app)
            && self.component.as_ref().is_none_or(|component| *component == line.component)
    }
}

async fn logs(State(node): State<Arc<Node>>, query: Result<Query<LogQuery>, QueryRejection>) -> Answer<Response> {
    let Query(query) = query.map_err(|why| Refusal::bad_request(why.body_text()))?;
    let lines = query.lines.unwrap_or(LINES_DEFAULT);
    let (last, new) = node.logs.follow(lines, |line| query.takes(line));
    let new = query.follow.then_some(new);
    Ok(lines_of(last, new, move |line| query.takes(line), &node))
}

/// The query of `/v1/events`.
#[derive(Deserialize)]
struct EventQuery {
    app: Option<String>,
    #[serde(default)]
    follow: bool,
    lines: Option<usize>,
}

impl EventQuery {
    /// With an app, what is about it: itself, its components and its links.
    fn takes(&self, event: &CloudEvent) -> bool {
        let is_about = |app: &String| {
            event.data["app"] == **app
                || event.subject.strip_prefix(app.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.app.as_ref().is_none_or(is_about)
    }
}

async fn events(State(node): State<Arc<Node>>, query: Result<Query<EventQuery>, QueryRejection>) -> Answer<Response> {
    let Query(query) = query.map_err(|why| Refusal::bad_request(why.body_text()))?;
    let lines = query.lines.unwrap_or(LINES_DEFAULT);
    let (last, new) = node.events.follow(lines, |event| query.takes(event));
    let new = query.follow.then_some(new);
    Ok(lines_of(last, new, move |event| query.takes(event), &node))
}

/// The last lines; then, where there is `new`, each that comes until the client leaves or the node shuts down.
fn lines_of<T: Serialize + Clone + Send + 'static>(
    last: Vec<T>,
    new: Option<broadcast::Receiver<T>>,
    takes: impl Fn(&T) -> bool + Send + 'static,
    node: &Node,
) -> Response {
    let last: String = last.iter().map(json_line).collect();
    let body = match new {
        None => Body::from(last),
        Some(new) => {
            let lines = futures::stream::unfold((Some(last), new, takes), next_line);
            Body::from_stream(futures::StreamExt::take_until(lines, node.shutdown.clone().cancelled_owned()))
        }
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// What a follower is at: what it has yet to get of the past, what comes, and which of that it wants.
type Following<T, F> = (Option<String>, broadcast::Receiver<T>, F);
type Line = Result<String, std::convert::Infallible>;

async fn next_line<T: Serialize + Clone, F: Fn(&T) -> bool>(
    (past, mut new, takes): Following<T, F>,
) -> Option<(Line, Following<T, F>)> {
    if let Some(past) = past.filter(|past| !past.is_empty()) {
        return Some((Ok(past), (None, new, takes)));
    }
    loop {
        match new.recv().await {
            Ok(line) if takes(&line) => return Some((Ok(json_line(&line)), (None, new, takes))),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                return Some((Ok(format!("{{\"missed_lines\":{missed}}}\n")), (None, new, takes)));
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn json_line(line: &impl Serialize) -> String {
    let mut text = serde_json::to_string(line).expect("a line is plain data");
    text.push('\n');
    text
}

fn app_name(text: &str) -> Answer<AppName> {
    text.parse().map_err(bad_name)
}

fn component_key(app: &str, component: &str) -> Answer<ComponentKey> {
    Ok(ComponentKey { app: app_name(app)?, name: component.parse().map_err(bad_name)? })
}

fn bad_name(why: IdError) -> Refusal {
    Refusal::bad_request(why.to_string())
}

fn no_app(name: &AppName) -> Refusal {
    Refusal::not_found(format!("there is no app `{name}`; `trellis apps` lists what there is"))
}
