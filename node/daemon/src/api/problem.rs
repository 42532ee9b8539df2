//! Problems: every answer of the admin API that is no success, as JSON.

use axum::Json;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::types::{Finding, Problem};
use crate::deploy::DeployError;

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    problem: Problem,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), code: code.into(), findings: Vec::new() } }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }

    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error)
    }

    pub(super) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "refused", error)
    }

    pub(super) fn unavailable(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error)
    }

    pub(super) fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)
    }

    fn with_findings(mut self, findings: Vec<Finding>) -> Self {
        self.problem.findings = findings;
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

impl From<DeployError> for Refusal {
    fn from(error: DeployError) -> Self {
        let text = error.to_string();
        match error {
            DeployError::Invalid(findings) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_manifest", text).with_findings(findings)
            }
            DeployError::Refused(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", text),
            DeployError::Conflict(_) => Self::conflict(text),
            DeployError::Unavailable(_) => Self::unavailable(text),
        }
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::not_found(format!("the admin API has no {}; GET /openapi.json lists what it has", uri.path()))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let error = format!("{} does not take {method}; GET /openapi.json lists what it takes", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad_request", error)
}
