//! What the admin API answers from: nothing while its node starts; what the node waits for, while that may take for ever; then
//! the node.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::access::{Role, Tokens};
use super::problem::Refusal;
use super::{guard, router};
use crate::node::Node;

/// What there is to answer from.
enum Stage {
    /// It starts: whoever asks waits for it.
    Starting,
    /// It waits for this, for people.
    Waits(String),
    /// It answers.
    Up(Router),
}

/// The same, for everyone who changes it or answers from it.
#[derive(Clone)]
pub(crate) struct Front {
    stage: Arc<watch::Sender<Stage>>,
    tokens: Tokens,
    /// When nobody is answered any more.
    pub(crate) shutdown: CancellationToken,
}

impl Front {
    pub(crate) fn new(tokens: Tokens) -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Starting)), tokens, shutdown: CancellationToken::new() }
    }

    /// From here on whoever asks is told what the node waits for.
    pub(crate) fn waits(&self, what: String) {
        self.stage.send_replace(Stage::Waits(what));
    }

    /// From here on the node answers.
    pub(crate) fn is_up(&self, node: &Arc<Node>) {
        self.stage.send_replace(Stage::Up(router(node)));
    }

    pub(super) async fn answer(&self, request: Request) -> Response {
        let mut stage = self.stage.subscribe();
        let stage = stage.wait_for(|stage| !matches!(stage, Stage::Starting)).await.map(|stage| match &*stage {
            Stage::Up(router) => Ok(router.clone()),
            Stage::Waits(what) => Err(what.clone()),
            Stage::Starting => unreachable!("its end is waited for"),
        });
        match stage.expect("its sender is here") {
            Ok(router) => {
                let Ok(answer) = TowerToHyperService::new(router).call(request).await;
                answer
            }
            Err(what) => self.told(&request, &what).unwrap_or_else(IntoResponse::into_response),
        }
    }

    /// What is answered while the node waits, to whom it would be told later, too.
    fn told(&self, request: &Request, what: &str) -> Result<Response, Refusal> {
        let is_healthz = request.uri().path() == "/healthz";
        let role = (!is_healthz && request.uri().path() != "/readyz").then_some(Role::Read);
        guard::allowed(request.headers(), request.uri(), &self.tokens, role)?;
        match is_healthz {
            true => Ok("ok\n".into_response()),
            false => {
                let error = format!("this node is in no lattice yet: {what}");
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", error))
            }
        }
    }
}
