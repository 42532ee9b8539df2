//! The guard of the admin API: a token where one is set, and no page of a browser that was sent from elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Refusal;
use crate::node::Node;

/// What needs no token: whether the process lives, for supervisors.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

pub(super) async fn check(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let allowed = origin_is_ours(request.headers(), request.uri(), node.admin_token.is_some())
        .and_then(|()| token_fits(request.headers(), request.uri().path(), node.admin_token.as_deref()));
    match allowed {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Refuses a foreign `Host` (a name that an attacker points to 127.0.0.1) unless a token protects the API, and always
/// a foreign `Origin` (a page that another site served).
fn origin_is_ours(headers: &HeaderMap, uri: &Uri, has_token: bool) -> Result<(), Refusal> {
    let forbidden = |what: String| Refusal::new(StatusCode::FORBIDDEN, "forbidden", what);
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    if !has_token && !is_local(host) {
        return Err(forbidden(format!("the Host `{host}` is not this node's; use 127.0.0.1 or localhost")));
    }
    match headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or("?")) {
        None => Ok(()),
        Some(origin) if origin.split_once("://").is_some_and(|(_, authority)| authority == host) => Ok(()),
        Some(origin) => Err(forbidden(format!("the Origin `{origin}` is not this node's"))),
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn token_fits(headers: &HeaderMap, path: &str, token: Option<&str>) -> Result<(), Refusal> {
    let Some(token) = token.filter(|_| !OPEN.contains(&path)) else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(given) if same(given.as_bytes(), token.as_bytes()) => Ok(()),
        Some(_) => Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", "the bearer token is another one")),
        None => {
            let error = "a bearer token is needed: --admin-token or TRELLIS_ADMIN_TOKEN";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", error))
        }
    }
}

/// Compares in a time that does not tell how much fits.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_origin(host: &str, origin: Option<&str>, has_token: bool) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        origin_is_ours(&headers, &Uri::from_static("/v1/apps"), has_token).is_ok()
    }

    #[test]
    fn a_foreign_host_or_origin_is_refused() {
        assert!(check_origin("127.0.0.1:7878", None, false));
        assert!(check_origin("localhost:7878", Some("http://localhost:7878"), false));
        assert!(check_origin("[::1]:7878", None, false));
        assert!(!check_origin("evil.example:7878", None, false), "a name that points here");
        assert!(!check_origin("localhost:7878", Some("https://evil.example"), false));
        assert!(!check_origin("localhost:7878", Some("http://localhost:9999"), false), "another local port");
        assert!(check_origin("node7.internal:7878", None, true), "a token protects it");
        assert!(!check_origin("node7.internal:7878", Some("https://evil.example"), true));
    }

    #[test]
    fn a_token_is_asked_for_everywhere_but_for_health() {
        let mut headers = HeaderMap::new();
        assert!(token_fits(&headers, "/v1/apps", None).is_ok());
        assert!(token_fits(&headers, "/v1/apps", Some("s3cret")).is_err());
        assert!(token_fits(&headers, "/healthz", Some("s3cret")).is_ok());
        headers.insert(header::AUTHORIZATION, "Bearer s3cret".parse().unwrap());
        assert!(token_fits(&headers, "/v1/apps", Some("s3cret")).is_ok());
        assert!(token_fits(&headers, "/v1/apps", Some("s3cres")).is_err());
    }
}
