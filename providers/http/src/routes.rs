//! Which link answers a request at one address: pure, no socket. A table is immutable; adding and removing make a new
//! one, so that a request never waits for a change.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use trellis_wire::{ComponentKey, LinkId};

use crate::config::At;

/// Another link already answers there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// What is taken, for people: ``path `/shop` ``.
    pub(crate) what: String,
    /// Whose it is.
    pub(crate) component: ComponentKey,
}

/// The links at one address, each with what answers for it. A copy shares the entries: there may be thousands.
#[derive(Debug, Clone)]
pub(crate) struct Routes<T> {
    entries: Vec<Arc<Entry<T>>>,
    table: Table,
    /// The places of links in `entries`.
    places: HashMap<Arc<LinkId>, usize>,
}

#[derive(Debug)]
struct Entry<T> {
    link: Arc<LinkId>,
    component: ComponentKey,
    at: At,
    to: T,
}

/// How an entry is found; numbers are places in `entries`. One address is routed in one way only.
#[derive(Debug, Clone, Default)]
enum Table {
    #[default]
    Nobody,
    Address,
    Path {
        literal: HashMap<Arc<str>, usize>,
        patterns: matchit::Router<usize>,
    },
    Host {
        header: HeaderName,
        hosts: HashMap<Arc<str>, usize>,
    },
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), table: Table::Nobody, places: HashMap::new() }
    }
}

impl<T: Clone> Routes<T> {
    /// The table with one more link, which takes the place of its own former entry and of those in its way whose links
    /// are `leaving`.
    pub(crate) fn with(
        &self,
        link: &LinkId,
        component: &ComponentKey,
        at: At,
        to: T,
        leaving: impl Fn(&LinkId) -> bool,
    ) -> Result<Self, Conflict> {
        let mut routes = if self.places.contains_key(link) { self.without(link) } else { self.clone() };
        let entry = Arc::new(Entry { link: Arc::new(link.clone()), component: component.clone(), at, to });
        loop {
            let Err(nth) = routes.push(entry.clone()) else { return Ok(routes) };
            let other = routes.entries[nth].clone();
            if !leaving(&other.link) {
                return Err(Conflict { what: described(&other.at), component: other.component.clone() });
            }
            routes = routes.without(&other.link);
        }
    }

    /// The table without a link.
    pub(crate) fn without(&self, link: &LinkId) -> Self {
        let mut routes = Self::default();
        for entry in self.entries.iter().filter(|entry| *entry.link != *link) {
            routes.push(entry.clone()).expect("fewer links do not conflict where more did not");
        }
        routes
    }

    /// Adds an entry, or says the place of the one in its way.
    fn push(&mut self, entry: Arc<Entry<T>>) -> Result<(), usize> {
        let nth = self.entries.len();
        self.table.add(&entry.at, nth)?;
        self.places.insert(entry.link.clone(), nth);
        self.entries.push(entry);
        Ok(())
    }

    /// What answers for `link`.
    pub(crate) fn of_link(&self, link: &LinkId) -> Option<&T> {
        self.places.get(link).map(|nth| &self.entries[*nth].to)
    }
}

impl<T> Routes<T> {
    /// Whether no link is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A component that is linked here, to name it.
    pub(crate) fn anyone(&self) -> Option<&ComponentKey> {
        self.entries.first().map(|entry| &entry.component)
    }

    /// Who answers a request to `authority` (host and perhaps port) at `path`.
    pub(crate) fn find(&self, authority: &str, path: &str, headers: &HeaderMap) -> Option<&T> {
        let nth = match &self.table {
            Table::Nobody => None,
            Table::Address => Some(0),
            Table::Path { literal, patterns } => find_path(literal, patterns, path),
            Table::Host { header, hosts } if header == header::HOST => find_host(hosts, authority),
            Table::Host { header, hosts } => find_host(hosts, headers.get(header)?.to_str().ok()?),
        }?;
        Some(&self.entries[nth].to)
    }

    /// What a request was routed by, to say why nobody answers it.
    pub(crate) fn routed_by(&self) -> &str {
        match &self.table {
            Table::Nobody | Table::Address => "address",
            Table::Path { .. } => "path",
            Table::Host { header, .. } => header.as_str(),
        }
    }
}

impl Table {
    /// Adds the entry at place `nth`, or names the place of the one in its way.
    fn add(&mut self, at: &At, nth: usize) -> Result<(), usize> {
        if matches!(self, Self::Nobody) {
            *self = Self::fit_for(at);
        } else if matches!(self, Self::Address) || matches!(at, At::Address) {
            return Err(0);
        }
        match (self, at) {
            (Self::Path { patterns, .. }, At::Path(path)) if path.contains('{') => {
                let before = patterns.clone();
                patterns.insert(path.as_str(), nth).map_err(|_| first_in_the_way(before, path))
            }
            (Self::Path { literal, .. }, At::Path(path)) => claim(literal, trimmed(path), nth),
            (Self::Host { header, hosts }, At::Host { header: wanted, host }) if header == wanted => {
                claim(hosts, host, nth)
            }
            (Self::Address, At::Address) => Ok(()),
            _ => Err(0),
        }
    }

    fn fit_for(at: &At) -> Self {
        match at {
            At::Address => Self::Address,
            At::Path(_) => Self::Path { literal: HashMap::new(), patterns: matchit::Router::new() },
            At::Host { header, .. } => Self::Host { header: header.clone(), hosts: HashMap::new() },
        }
    }
}

fn claim(map: &mut HashMap<Arc<str>, usize>, key: &str, nth: usize) -> Result<(), usize> {
    match map.get(key) {
        Some(other) => Err(*other),
        None => {
            map.insert(key.into(), nth);
            Ok(())
        }
    }
}

/// matchit names the pattern in the way, not its value: the place is found by asking for that pattern as a path.
fn first_in_the_way(mut patterns: matchit::Router<usize>, path: &str) -> usize {
    match patterns.insert(path, usize::MAX) {
        Err(matchit::InsertError::Conflict { with }) => patterns.at(&with).map_or(0, |found| *found.value),
        _ => 0,
    }
}

/// An exact path goes first, then a pattern, then the longest path that it lies below.
fn find_path(literal: &HashMap<Arc<str>, usize>, patterns: &matchit::Router<usize>, path: &str) -> Option<usize> {
    let exact = literal.get(path).copied();
    let pattern = || patterns.at(path).ok().map(|found| *found.value);
    let below = || {
        let mut rest = path;
        while let Some((shorter, _)) = rest.rsplit_once('/') {
            if let Some(nth) = literal.get(shorter) {
                return Some(*nth);
            }
            rest = shorter;
        }
        None
    };
    exact.or_else(pattern).or_else(below)
}

/// `/shop/` and `/shop` are one; `/` is the empty path, below which everything lies.
fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// With its port first, then without it. Hosts are compared in lower case.
fn find_host(hosts: &HashMap<Arc<str>, usize>, authority: &str) -> Option<usize> {
    let authority = authority.to_ascii_lowercase();
    let without_port = || match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => hosts.get(host),
        _ => None,
    };
    hosts.get(authority.as_str()).or_else(without_port).copied()
}

fn described(at: &At) -> String {
    match at {
        At::Address => "the whole address".into(),
        At::Path(path) => format!("path `{path}`"),
        At::Host { header, host } if header == header::HOST => format!("host `{host}`"),
        At::Host { header, host } => format!("`{header}: {host}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str) -> ComponentKey {
        ComponentKey { app: "app".parse().unwrap(), name: name.parse().unwrap() }
    }

    fn id(name: &str) -> LinkId {
        LinkId::new(&component("http"), &component(name), &"default".parse().unwrap(), "wasi", "http", &[])
    }

    fn add(routes: &Routes<&'static str>, name: &'static str, at: At) -> Result<Routes<&'static str>, Conflict> {
        routes.with(&id(name), &component(name), at, name, |_| false)
    }

    fn paths(paths: &[&'static str]) -> Routes<&'static str> {
        paths.iter().enumerate().fold(Routes::default(), |routes, (nth, path)| {
            let name: &'static str = ["a", "b", "c", "d", "e"][nth];
            add(&routes, name, At::Path((*path).into())).unwrap()
        })
    }

    fn host(host: &str) -> At {
        At::Host { header: header::HOST, host: host.into() }
    }

    #[test]
    fn a_link_takes_the_place_of_itself_and_of_one_that_leaves() {
        let found = |routes: &Routes<&'static str>| routes.find("", "/", &HeaderMap::new()).copied();
        let routes = add(&Routes::default(), "a", At::Address).unwrap();
        let routes = routes.with(&id("a"), &component("a"), At::Address, "again", |_| false).unwrap();
        assert_eq!(found(&routes), Some("again"));
        let refused = routes.with(&id("b"), &component("b"), At::Address, "b", |link| *link == id("c")).unwrap_err();
        assert_eq!(refused.component, component("a"));
        let routes = routes.with(&id("b"), &component("b"), At::Address, "b", |link| *link == id("a")).unwrap();
        assert_eq!((found(&routes), routes.of_link(&id("a"))), (Some("b"), None));

        let routes = paths(&["/shop", "/cart"]);
        let leaves = |link: &LinkId| *link == id("a");
        let refused = routes.with(&id("c"), &component("c"), At::Address, "c", leaves).unwrap_err();
        assert_eq!(refused.component, component("b"), "what stays is in the way of what would replace both");
    }

    #[test]
    fn a_path_owns_itself_and_what_lies_below_and_the_longest_wins() {
        let routes = paths(&["/shop", "/shop/cart/", "/shop/{id}/reviews", "/"]);
        let headers = HeaderMap::new();
        let cases = [
            ("/shop", "a"),
            ("/shop/", "a"),
            ("/shop/1", "a"),
            ("/shop/cart", "b"),
            ("/shop/cart/2/x", "b"),
            ("/shop/7/reviews", "c"),
            ("/shopping", "d"),
            ("/", "d"),
            ("/x/y", "d"),
        ];
        for (path, name) in cases {
            assert_eq!(routes.find("h", path, &headers), Some(&name), "{path}");
        }
        assert_eq!(paths(&["/shop"]).find("h", "/shopping", &headers), None);
        assert_eq!(paths(&["/shop"]).find("h", "*", &headers), None);
    }

    #[test]
    fn a_host_is_found_with_or_without_its_port() {
        let routes = add(&Routes::default(), "a", host("a.example")).unwrap();
        let routes = add(&routes, "b", host("a.example:81")).unwrap();
        let headers = HeaderMap::new();
        for (authority, name) in
            [("a.example", Some(&"a")), ("A.Example:80", Some(&"a")), ("a.example:81", Some(&"b")), ("b", None)]
        {
            assert_eq!(routes.find(authority, "/", &headers), name, "{authority}");
        }
    }

    #[test]
    fn a_header_of_ones_own_may_route() {
        let at = At::Host { header: HeaderName::from_static("x-tenant"), host: "blue".into() };
        let routes = add(&Routes::default(), "a", at).unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(routes.find("blue", "/", &headers), None);
        headers.insert("x-tenant", "Blue".parse().unwrap());
        assert_eq!(routes.find("h", "/", &headers), Some(&"a"));
    }

    #[test]
    fn conflicts_name_who_is_in_the_way() {
        let taken = |routes: &Routes<_>, at| {
            let conflict = add(routes, "z", at).unwrap_err();
            format!("{} {}", conflict.what, conflict.component.name)
        };
        let address = add(&Routes::default(), "a", At::Address).unwrap();
        assert_eq!(taken(&address, At::Address), "the whole address a");
        assert_eq!(taken(&address, At::Path("/x".into())), "the whole address a");
        let routes = paths(&["/x", "/y", "/y/{id}"]);
        assert_eq!(taken(&routes, At::Path("/y/".into())), "path `/y` b");
        assert_eq!(taken(&routes, At::Path("/y/{other}".into())), "path `/y/{id}` c");
        assert_eq!(taken(&routes, At::Address), "path `/x` a");
        assert_eq!(taken(&routes, host("h")), "path `/x` a");
        let hosts = add(&Routes::default(), "a", host("h")).unwrap();
        assert_eq!(taken(&hosts, host("h")), "host `h` a");
    }

    #[test]
    fn removing_leaves_the_others() {
        let routes = paths(&["/x", "/y"]).without(&id("a"));
        assert_eq!(routes.find("h", "/x", &HeaderMap::new()), None);
        assert_eq!(routes.find("h", "/y", &HeaderMap::new()), Some(&"b"));
        assert!(routes.without(&id("b")).is_empty());
    }
}
