//! The guard of the admin API: tokens with roles where there are any, and no page of a browser that was sent from elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Role, Tokens};
use super::problem::Refusal;
use crate::node::Node;

/// What one route needs.
pub(super) type Needs = (Arc<Node>, Option<Role>);

pub(super) async fn check(State((node, role)): State<Needs>, request: Request, next: Next) -> Response {
    match allowed(request.headers(), request.uri(), &node.admin_tokens, role) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether a request may have what needs this role.
pub(super) fn allowed(headers: &HeaderMap, uri: &Uri, tokens: &Tokens, role: Option<Role>) -> Result<(), Refusal> {
    origin_is_ours(headers, uri, !tokens.is_empty()).and_then(|()| may(headers, tokens, role))
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

fn may(headers: &HeaderMap, tokens: &Tokens, role: Option<Role>) -> Result<(), Refusal> {
    let Some(needed) = role.filter(|_| !tokens.is_empty()) else { return Ok(()) };
    let unauthorized = |what: &str| Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", what);
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(given) = given.and_then(|value| value.strip_prefix("Bearer ")) else {
        return Err(unauthorized("a bearer token is needed: --admin-token or TRELLIS_ADMIN_TOKEN"));
    };
    match tokens.role(given) {
        None => Err(unauthorized("the bearer token is another one")),
        Some(role) if role < needed => {
            let error = format!("this needs a token with role {needed}, and the one given has role {role}");
            Err(Refusal::new(StatusCode::FORBIDDEN, "role", error))
        }
        Some(_) => Ok(()),
    }
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
    fn a_token_is_asked_for_and_its_role_counts() {
        let mut headers = HeaderMap::new();
        let mut tokens = Tokens::default();
        assert!(may(&headers, &tokens, Some(Role::Admin)).is_ok(), "there are none");
        tokens.add(Role::Admin, "all");
        tokens.add(Role::Deploy, "some");
        let status =
            |headers: &HeaderMap, role| may(headers, &tokens, role).map_err(|refusal| refusal.into_response().status());
        assert_eq!(status(&headers, Some(Role::Read)), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(status(&headers, None), Ok(()));
        for (token, role, expected) in [
            ("some", Role::Read, Ok(())),
            ("some", Role::Deploy, Ok(())),
            ("some", Role::Admin, Err(StatusCode::FORBIDDEN)),
            ("all", Role::Admin, Ok(())),
            ("none", Role::Read, Err(StatusCode::UNAUTHORIZED)),
        ] {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            assert_eq!(status(&headers, Some(role)), expected, "{token} {role}");
        }
        let why = may(&headers, &tokens, Some(Role::Read)).unwrap_err();
        assert!(format!("{why:?}").contains("another one"));
    }
}
