//! Asking a node: one method for each thing that its admin API does. The paths are spelled here and nowhere else.

mod endpoint;
mod exchange;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trellis_daemon::api::types::{
    AppExplanation, AppStatus, AppSummary, ArtifactStatus, ConfigBody, DeadLettersStatus, DeployReply, DeployRequest,
    DrainReply, InvokeReply, InvokeRequest, LEFT_OUT, LabelsRequest, LatticeStatus, NodeReply, NodeStatus, Problem,
    PublishReply, PublishRequest, RestoreReply, RollbackReply, RollbackRequest, STALE, ThawReply, TimingsBody,
    TokenRequest, TriggersStatus,
};
use trellis_wire::{AppName, ComponentKey, Digest, NodeKey};

pub(crate) use self::endpoint::Endpoint;
use self::endpoint::encoded;
pub(crate) use self::exchange::Lines;
use self::exchange::{Upload, exchange, read, save};
use crate::scope::Scope;

/// Where a node's admin API is, where nothing else is said.
pub(crate) const ADMIN_DEFAULT: &str = "127.0.0.1:7878";
/// How long a node may take to answer what it can answer at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long it may take to agree with the others, or to pull and check images, before it answers.
const AGREE_WITHIN: Duration = Duration::from_secs(120);
/// How long it may take to receive and compile an artifact, or to run a component once.
const WORK_WITHIN: Duration = Duration::from_secs(600);

/// The admin API that is meant, before or after the command's name: the one to ask, and for `up` the one to serve.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Connection {
    /// The node to ask, as URL or host:port; for `up`, where it listens [default: 127.0.0.1:7878]
    #[arg(long, env = "TRELLIS_ADMIN", value_name = "URL", global = true, help_heading = "Admin API")]
    pub(crate) admin: Option<Endpoint>,
    /// The bearer token of its admin API; better set as TRELLIS_ADMIN_TOKEN
    #[arg(
        long,
        env = "TRELLIS_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        value_parser = token,
        global = true,
        help_heading = "Admin API"
    )]
    pub(crate) admin_token: Option<String>,
    /// PEM file of the CA that vouches for an https:// address, instead of the machine's
    #[arg(long, env = "TRELLIS_ADMIN_CA", value_name = "FILE", global = true, help_heading = "Admin API")]
    pub(crate) admin_ca: Option<PathBuf>,
}

impl Connection {
    /// A client for that node. Nothing is sent yet.
    pub(crate) fn open(&self) -> Admin {
        let here = || ADMIN_DEFAULT.parse().expect("it is a valid address");
        let (token, ca) = (self.admin_token.clone(), self.admin_ca.clone());
        Admin { endpoint: self.admin.clone().unwrap_or_else(here), token, ca }
    }
}

/// A token goes into a header, which takes visible ASCII only.
pub(crate) fn token(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.into());
    }
    Err("a token is ASCII without blanks".into())
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Nobody is there.
    #[error("no node answers at {endpoint}: {reason}; start one with `trellis up` or name another with --admin")]
    Unreachable { endpoint: Endpoint, reason: String },
    /// It took too long.
    #[error("{endpoint} did not answer {what} within {} s", after.as_secs())]
    Slow { endpoint: Endpoint, what: String, after: Duration },
    /// It does not prove to be the node that is meant.
    #[error("{endpoint} is not trusted: {reason}; --admin-ca names the certificate that vouches for it")]
    Untrusted { endpoint: Endpoint, reason: String },
    /// The connection ended in the middle.
    #[error("the connection to {endpoint} broke off: {reason}")]
    BrokenOff { endpoint: Endpoint, reason: String },
    /// It said no, and why.
    #[error("{}", problem.error)]
    Refused { status: StatusCode, problem: Box<Problem> },
    /// It is no node, or one of another version.
    #[error("{endpoint} answered {status}, but not as a node of this version does ({reason}); is --admin right?")]
    Foreign { endpoint: Endpoint, status: StatusCode, reason: String },
}

impl AdminError {
    /// Whether the same request may go through a moment later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Slow { .. } | Self::BrokenOff { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Untrusted { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// A backup that was written.
pub(crate) struct Saved {
    pub(crate) bytes: u64,
    /// Whether the node that gave it is cut off.
    pub(crate) is_stale: bool,
    /// Past versions that are not whole in it.
    pub(crate) left_out: Vec<String>,
}

/// A node's admin API.
#[derive(Debug)]
pub(crate) struct Admin {
    endpoint: Endpoint,
    token: Option<String>,
    ca: Option<PathBuf>,
}

impl Admin {
    /// Every app, one line each.
    pub(crate) async fn apps(&self) -> Result<Vec<AppSummary>, AdminError> {
        self.get("/v1/apps").await
    }

    /// What an app was asked to be, and what it is.
    pub(crate) async fn app(&self, app: &AppName) -> Result<AppStatus, AdminError> {
        self.get(&format!("/v1/apps/{}", encoded(app.as_str()))).await
    }

    /// Every node that this one knows.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeStatus>, AdminError> {
        self.get("/v1/nodes").await
    }

    /// The lattice, and the node that answers.
    pub(crate) async fn lattice(&self) -> Result<LatticeStatus, AdminError> {
        self.get("/v1/lattice").await
    }

    /// Lets a node with this key join.
    pub(crate) async fn allow(&self, key: NodeKey) -> Result<(), AdminError> {
        self.ask(Method::PUT, &format!("/v1/trust/nodes/{key}"), None, AGREE_WITHIN).await.map(drop)
    }

    /// Lets it no longer.
    pub(crate) async fn disallow(&self, key: NodeKey) -> Result<(), AdminError> {
        self.ask(Method::DELETE, &format!("/v1/trust/nodes/{key}"), None, AGREE_WITHIN).await.map(drop)
    }

    /// Sets another join token.
    pub(crate) async fn set_join_token(&self, token: String) -> Result<(), AdminError> {
        self.ask(Method::PUT, "/v1/trust/token", Some(json(&TokenRequest { token })), AGREE_WITHIN).await.map(drop)
    }

    /// Forgets a node that will not come back.
    pub(crate) async fn forget(&self, node: &str) -> Result<NodeReply, AdminError> {
        let path = format!("/v1/nodes/{}", encoded(node));
        self.parsed(self.ask(Method::DELETE, &path, None, AGREE_WITHIN).await?).await
    }

    /// Drains a node.
    pub(crate) async fn drain(&self, node: &str) -> Result<DrainReply, AdminError> {
        let path = format!("/v1/nodes/{}/drain", encoded(node));
        self.parsed(self.ask(Method::POST, &path, None, AGREE_WITHIN).await?).await
    }

    /// Ends that.
    pub(crate) async fn undrain(&self, node: &str) -> Result<NodeReply, AdminError> {
        let path = format!("/v1/nodes/{}/undrain", encoded(node));
        self.parsed(self.ask(Method::POST, &path, None, AGREE_WITHIN).await?).await
    }

    /// Changes labels of a node.
    pub(crate) async fn label(&self, node: &str, request: &LabelsRequest) -> Result<NodeReply, AdminError> {
        let path = format!("/v1/nodes/{}/labels", encoded(node));
        self.parsed(self.ask(Method::PUT, &path, Some(json(request)), AGREE_WITHIN).await?).await
    }

    /// Changes the lattice's timings.
    pub(crate) async fn set_timings(&self, timings: &TimingsBody) -> Result<(), AdminError> {
        self.ask(Method::PUT, "/v1/timings", Some(json(timings)), AGREE_WITHIN).await.map(drop)
    }

    /// Why an app is placed as it is.
    pub(crate) async fn explain(&self, app: &AppName) -> Result<AppExplanation, AdminError> {
        self.get(&format!("/v1/apps/{}/explain", encoded(app.as_str()))).await
    }

    /// Has what frozen nodes hold placed anew.
    pub(crate) async fn thaw(&self) -> Result<ThawReply, AdminError> {
        self.parsed(self.ask(Method::POST, "/v1/nodes/thaw", None, AGREE_WITHIN).await?).await
    }

    /// Puts a version of an app and deploys it.
    pub(crate) async fn deploy(&self, request: &DeployRequest) -> Result<DeployReply, AdminError> {
        self.post("/v1/deploy", request, AGREE_WITHIN).await
    }

    /// Stops an app and keeps its history.
    pub(crate) async fn undeploy(&self, app: &AppName) -> Result<(), AdminError> {
        let path = format!("/v1/apps/{}/undeploy", encoded(app.as_str()));
        self.ask(Method::POST, &path, None, AGREE_WITHIN).await.map(drop)
    }

    /// Goes back to the version before, or to a named one.
    pub(crate) async fn rollback(&self, app: &AppName, version: Option<String>) -> Result<RollbackReply, AdminError> {
        let path = format!("/v1/apps/{}/rollback", encoded(app.as_str()));
        self.post(&path, &RollbackRequest { version }, AGREE_WITHIN).await
    }

    /// Stops an app and forgets it.
    pub(crate) async fn delete(&self, app: &AppName) -> Result<(), AdminError> {
        let path = format!("/v1/apps/{}", encoded(app.as_str()));
        self.ask(Method::DELETE, &path, None, AGREE_WITHIN).await.map(drop)
    }

    /// Runs a component's `wasi:cli/run` once.
    pub(crate) async fn invoke(
        &self,
        component: &ComponentKey,
        request: &InvokeRequest,
    ) -> Result<InvokeReply, AdminError> {
        let (app, name) = (encoded(component.app.as_str()), encoded(component.name.as_str()));
        self.post(&format!("/v1/apps/{app}/components/{name}/invoke"), request, WORK_WITHIN).await
    }

    /// Publishes one message.
    pub(crate) async fn publish(&self, request: &PublishRequest) -> Result<PublishReply, AdminError> {
        self.post("/v1/publish", request, ANSWER_WITHIN).await
    }

    /// Whether the node has an artifact.
    pub(crate) async fn has_artifact(&self, digest: Digest) -> Result<bool, AdminError> {
        let request = self.request(Method::HEAD, &format!("/v1/artifacts/{digest}"), Upload::new(Bytes::new()));
        let head = exchange(&self.endpoint, self.ca.as_deref(), request, ANSWER_WITHIN).await?;
        // Whatever else is wrong is told in words to the PUT that follows: the answer to HEAD has no body to say it in.
        Ok(head.status() == StatusCode::OK)
    }

    /// Gives the node an artifact; `sent` hears of each piece as it goes out.
    pub(crate) async fn put_artifact(
        &self,
        digest: Digest,
        bytes: Bytes,
        sent: impl FnMut(usize) + Send + 'static,
    ) -> Result<ArtifactStatus, AdminError> {
        let mut request = self.request(Method::PUT, &format!("/v1/artifacts/{digest}"), Upload::counted(bytes, sent));
        let wasm = http::HeaderValue::from_static("application/wasm");
        request.headers_mut().insert(header::CONTENT_TYPE, wasm);
        let answer = self.accepted(exchange(&self.endpoint, self.ca.as_deref(), request, WORK_WITHIN).await?).await?;
        self.parsed(answer).await
    }

    /// The names of all config.
    pub(crate) async fn configs(&self) -> Result<Vec<String>, AdminError> {
        self.get("/v1/config").await
    }

    /// One config.
    pub(crate) async fn config(&self, name: &str) -> Result<ConfigBody, AdminError> {
        self.get(&format!("/v1/config/{}", encoded(name))).await
    }

    /// Writes a config whole.
    pub(crate) async fn put_config(&self, name: &str, body: &ConfigBody) -> Result<(), AdminError> {
        let path = format!("/v1/config/{}", encoded(name));
        self.ask(Method::PUT, &path, Some(json(body)), AGREE_WITHIN).await.map(drop)
    }

    /// Removes a config.
    pub(crate) async fn delete_config(&self, name: &str) -> Result<(), AdminError> {
        let path = format!("/v1/config/{}", encoded(name));
        self.ask(Method::DELETE, &path, None, AGREE_WITHIN).await.map(drop)
    }

    /// The dead letters of an app, or of one component of it, that these pairs choose: `reason`, `older_than_ms`, `id`.
    pub(crate) async fn dead_letters(
        &self,
        of: &Scope,
        chosen: &[(&str, String)],
    ) -> Result<DeadLettersStatus, AdminError> {
        let component = of.component().map(|component| ("component", component.to_owned()));
        let pairs = component.iter().chain(chosen).map(|(key, value)| format!("{key}={}", encoded(value)));
        let path =
            format!("/v1/apps/{}/dead-letters?{}", encoded(of.app.as_str()), pairs.collect::<Vec<_>>().join("&"));
        self.get(&path).await
    }

    /// Every trigger.
    pub(crate) async fn triggers(&self) -> Result<TriggersStatus, AdminError> {
        self.get("/v1/triggers").await
    }

    /// Pauses a component's queues, or resumes them.
    pub(crate) async fn pause(&self, of: &ComponentKey, on: bool) -> Result<(), AdminError> {
        let (app, component, word) = (&of.app, &of.name, if on { "pause" } else { "resume" });
        let path = format!("/v1/apps/{}/components/{}/{word}", encoded(app.as_str()), encoded(component.as_str()));
        self.ask(Method::POST, &path, None, AGREE_WITHIN).await.map(drop)
    }

    /// Puts a dead letter back into its queue. Whether there was one.
    pub(crate) async fn replay_dead_letter(&self, app: &AppName, id: &str) -> Result<bool, AdminError> {
        let path = format!("/v1/apps/{}/dead-letters/{}/replay", encoded(app.as_str()), encoded(id));
        is_there(self.ask(Method::POST, &path, None, ANSWER_WITHIN).await)
    }

    /// Forgets a dead letter. Whether there was one.
    pub(crate) async fn drop_dead_letter(&self, app: &AppName, id: &str) -> Result<bool, AdminError> {
        let path = format!("/v1/apps/{}/dead-letters/{}", encoded(app.as_str()), encoded(id));
        is_there(self.ask(Method::DELETE, &path, None, ANSWER_WITHIN).await)
    }

    /// What guests said: the last `lines`, and with `follow` whatever comes.
    pub(crate) async fn logs(
        &self,
        app: Option<&AppName>,
        component: Option<&str>,
        follow: bool,
        lines: u32,
    ) -> Result<Lines, AdminError> {
        let mut path = format!("/v1/logs?follow={follow}&lines={lines}");
        for (key, value) in [("app", app.map(AppName::as_str)), ("component", component)] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", encoded(value)));
            }
        }
        let answer = self.ask(Method::GET, &path, None, ANSWER_WITHIN).await?;
        Ok(Lines::new(self.endpoint.clone(), answer.into_body()))
    }

    /// What happens in the lattice: the last `lines`, and with `follow` whatever comes.
    pub(crate) async fn events(&self, app: Option<&AppName>, follow: bool, lines: u32) -> Result<Lines, AdminError> {
        let app = app.map(|app| format!("&app={}", encoded(app.as_str()))).unwrap_or_default();
        let path = format!("/v1/events?follow={follow}&lines={lines}{app}");
        let answer = self.ask(Method::GET, &path, None, ANSWER_WITHIN).await?;
        Ok(Lines::new(self.endpoint.clone(), answer.into_body()))
    }

    /// Writes a backup to `out`, piece by piece.
    pub(crate) async fn backup(&self, out: &mut impl std::io::Write) -> Result<Saved, AdminError> {
        let answer = self.ask(Method::GET, "/v1/backup", None, WORK_WITHIN).await?;
        let is_stale = answer.headers().contains_key(STALE);
        let left_out = answer.headers().get_all(LEFT_OUT).iter();
        let left_out = left_out.map(|version| String::from_utf8_lossy(version.as_bytes()).into_owned()).collect();
        Ok(Saved { bytes: save(&self.endpoint, answer.into_body(), out).await?, is_stale, left_out })
    }

    /// Brings back a backup.
    pub(crate) async fn restore(&self, file: std::fs::File) -> Result<RestoreReply, AdminError> {
        let request = self.request(Method::POST, "/v1/restore", Upload::file(file));
        let answer = self.accepted(exchange(&self.endpoint, self.ca.as_deref(), request, WORK_WITHIN).await?).await?;
        self.parsed(answer).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let answer = self.ask(Method::GET, path, None, ANSWER_WITHIN).await?;
        self.parsed(answer).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<T, AdminError> {
        let answer = self.ask(Method::POST, path, Some(json(body)), within).await?;
        self.parsed(answer).await
    }

    /// One exchange that must succeed; its body is not read yet.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        within: Duration,
    ) -> Result<Response<Incoming>, AdminError> {
        let is_json = body.is_some();
        let mut request = self.request(method, path, Upload::new(body.unwrap_or_default()));
        if is_json {
            let json = http::HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        self.accepted(exchange(&self.endpoint, self.ca.as_deref(), request, within).await?).await
    }

    fn request(&self, method: Method, path: &str, body: Upload) -> Request<Upload> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.endpoint.authority());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(body).expect("paths are encoded, and a token is checked when it is parsed")
    }

    /// Passes a success on; reads everything else as the node's refusal.
    async fn accepted(&self, answer: Response<Incoming>) -> Result<Response<Incoming>, AdminError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = read(&self.endpoint, answer.into_body()).await?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(AdminError::Refused { status, problem: Box::new(problem) }),
            Err(_) => Err(self.foreign(status, "the body is no problem in JSON")),
        }
    }

    async fn parsed<T: DeserializeOwned>(&self, answer: Response<Incoming>) -> Result<T, AdminError> {
        let status = answer.status();
        let body = read(&self.endpoint, answer.into_body()).await?;
        serde_json::from_slice(&body).map_err(|error| self.foreign(status, &error.to_string()))
    }

    fn foreign(&self, status: StatusCode, reason: &str) -> AdminError {
        AdminError::Foreign { endpoint: self.endpoint.clone(), status, reason: reason.into() }
    }
}

/// Whether there was what was asked for.
fn is_there(answer: Result<Response<Incoming>, AdminError>) -> Result<bool, AdminError> {
    match answer {
        Ok(_) => Ok(true),
        Err(AdminError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(false),
        Err(why) => Err(why),
    }
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("requests have text keys and no value that JSON lacks").into()
}
