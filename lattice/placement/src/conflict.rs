//! HTTP listeners, and when two of them cannot both be. Found at deploy, from state, before any node tries to bind.
//!
//! The keys and their meaning are those of wasmCloud's http-server provider (0.27): `routing_mode` is `address` (one
//! component per address), `path` (longest prefix of the path) or `host` (by a header). Here links may share a listener
//! when they route in the same mode and by different routes, whichever apps they belong to.

use std::fmt;

use serde::{Deserialize, Serialize};
use trellis_manifest::Tech;
use trellis_wire::{ComponentKey, Config};

/// Where an http link listens that names no address: wasmCloud's default.
pub const DEFAULT_HTTP_ADDRESS: &str = "127.0.0.1:8000";

/// Where a component is reached over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The address as it is configured, `host:port`.
    pub address: String,
    /// What is routed there.
    pub route: Route,
    /// Whom it reaches.
    pub component: ComponentKey,
}

/// What of an address is routed to a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Route {
    /// All of it.
    Address,
    /// Paths that begin so. Without a slash at the end.
    Path(String),
    /// Requests whose header has this value.
    Host {
        /// The header, in lower case; `host` unless said otherwise.
        header: String,
        /// Its value, in lower case.
        value: String,
    },
}

impl Listener {
    /// Reads the merged config of an http link. `None` where the link's mode needs a key it lacks or is unknown: the
    /// provider names the key, and there is nothing to conflict with.
    pub(crate) fn read(tech: Option<Tech>, config: &Config, component: ComponentKey) -> Option<Self> {
        if tech != Some(Tech::Http) {
            return None;
        }
        let address =
            config.get("address").or(config.get("default_address")).unwrap_or(DEFAULT_HTTP_ADDRESS).to_owned();
        let route = match config.get("routing_mode").unwrap_or("address") {
            "address" => Route::Address,
            "path" => Route::Path(config.get("path")?.trim_end_matches('/').to_owned()),
            "host" => Route::Host {
                header: config.get("header").unwrap_or("host").to_lowercase(),
                value: config.get("host")?.to_lowercase(),
            },
            _ => return None,
        };
        Some(Self { address, route, component })
    }

    /// Whether the two cannot both be.
    fn excludes(&self, other: &Self) -> bool {
        if !overlap(&self.address, &other.address) {
            return false;
        }
        match (&self.route, &other.route) {
            _ if self.address != other.address => true,
            (Route::Address, Route::Address)
            | (Route::Path(_), Route::Path(_))
            | (Route::Host { .. }, Route::Host { .. }) => {
                self.route == other.route && self.component != other.component
            }
            _ => true,
        }
    }
}

/// Whether binding one address would keep the other from being bound. Port 0 is a new port each time.
fn overlap(one: &str, other: &str) -> bool {
    // Each deploy is held against every listener of the lattice: nothing is copied here.
    let split = |address| str::rsplit_once(address, ':').unwrap_or((address, ""));
    let ((host, port), (other_host, other_port)) = (split(one), split(other));
    let is_any = |host| matches!(host, "0.0.0.0" | "[::]" | "");
    port == other_port && port != "0" && (host.eq_ignore_ascii_case(other_host) || is_any(host) || is_any(other_host))
}

/// Finds the first conflict of `wanted` among themselves and with `others`.
pub(crate) fn find<'a>(
    wanted: &'a [Listener],
    others: impl Iterator<Item = &'a Listener> + Clone,
) -> Option<Box<Conflict>> {
    wanted.iter().enumerate().find_map(|(i, one)| {
        let taken = others.clone().chain(&wanted[..i]).find(|other| one.excludes(other))?;
        Some(Box::new(Conflict { wanted: one.clone(), taken: taken.clone() }))
    })
}

/// Two components would listen at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{} cannot listen at {wanted}: {} has {taken}; {}", wanted.component, taken.component, self.advice())]
pub struct Conflict {
    /// What was asked for.
    pub wanted: Listener,
    /// What is there.
    pub taken: Listener,
}

impl Conflict {
    fn advice(&self) -> String {
        match (&self.wanted.route, &self.taken.route) {
            _ if self.wanted.address != self.taken.address => {
                format!("write `address: {}` to share that listener, or take another port", self.taken.address)
            }
            (Route::Path(_), Route::Path(_)) => "give the link another `path`".into(),
            (Route::Host { .. }, Route::Host { .. }) => "give the link another `host`".into(),
            (_, Route::Path(_)) => {
                "give the link another `address`, or `routing_mode: path` and a `path` of its own".into()
            }
            (_, Route::Host { .. }) => {
                "give the link another `address`, or `routing_mode: host` and a `host` of its own".into()
            }
            (_, Route::Address) => "give the link another `address`".into(),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Route::Address => write!(f, "{}", self.address),
            Route::Path(path) => write!(f, "{}, path {}", self.address, if path.is_empty() { "/" } else { path }),
            Route::Host { header, value } => write!(f, "{}, {header} {value}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(component: &str, config: &[(&str, &str)]) -> Listener {
        let config = config.iter().copied().collect();
        Listener::read(Some(Tech::Http), &config, component.parse().unwrap()).unwrap()
    }

    /// One string per pair: empty where both may be.
    fn check(one: &[(&str, &str)], other: &[(&str, &str)]) -> String {
        let (one, other) = (listener("new/api", one), listener("old/web", other));
        find(&[one], std::iter::once(&other)).map(|conflict| conflict.to_string()).unwrap_or_default()
    }

    #[test]
    fn listeners_are_shared_by_route_and_only_within_one_mode() {
        let (path, host) = (("routing_mode", "path"), ("routing_mode", "host"));
        let at = ("address", "0.0.0.0:80");
        assert_eq!(check(&[at], &[("address", "0.0.0.0:81")]), "");
        assert_eq!(check(&[at, path, ("path", "/a")], &[at, path, ("path", "/a/b")]), "");
        assert_eq!(check(&[at, host, ("host", "a.io")], &[at, host, ("host", "b.io")]), "");
        assert_eq!(check(&[("address", "127.0.0.1:0")], &[("address", "127.0.0.1:0")]), "");
        insta::assert_snapshot!(check(&[at], &[at]),
            @"new/api cannot listen at 0.0.0.0:80: old/web has 0.0.0.0:80; give the link another `address`");
        insta::assert_snapshot!(check(&[at, path, ("path", "/a/")], &[at, path, ("path", "/a")]),
            @"new/api cannot listen at 0.0.0.0:80, path /a: old/web has 0.0.0.0:80, path /a; give the link another `path`");
        insta::assert_snapshot!(check(&[at, path, ("path", "/a")], &[at, host, ("host", "A.io")]),
            @"new/api cannot listen at 0.0.0.0:80, path /a: old/web has 0.0.0.0:80, host a.io; give the link another `address`, or `routing_mode: host` and a `host` of its own");
        insta::assert_snapshot!(check(&[("default_address", "127.0.0.1:80")], &[at]),
            @"new/api cannot listen at 127.0.0.1:80: old/web has 0.0.0.0:80; write `address: 0.0.0.0:80` to share that listener, or take another port");
        assert!(!check(&[], &[("address", DEFAULT_HTTP_ADDRESS)]).is_empty(), "the default counts");
    }
}
