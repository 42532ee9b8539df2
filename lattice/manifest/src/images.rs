//! Which provider an image names. A manifest written for wadm names images in some registry with some tag; only the last
//! path segment says what they are.

use std::collections::BTreeMap;

use crate::nearest::nearest;
use crate::{Served, Tech};

/// Whom a known name stands for.
#[derive(Debug, Clone, Copy)]
enum Known {
    Builtin(Tech),
    /// Known, but not built into this version.
    NotBuilt,
}

/// The one table: names of providers with `-` for `_`. The first of a group is the name in messages.
const PROVIDERS: &[(&[&str], Known)] = &[
    (&["http-server", "httpserver", "http-server-provider"], Known::Builtin(Tech::Http)),
    (&["http-client", "httpclient", "http-client-provider"], Known::Builtin(Tech::Http)),
    (&["messaging-nats", "nats-messaging", "nats-messaging-provider"], Known::Builtin(Tech::Nats)),
    (&["keyvalue-nats", "kv-nats", "nats-kv"], Known::Builtin(Tech::Nats)),
    (&["messaging-kafka", "kafka-messaging", "kafka"], Known::NotBuilt),
    (&["keyvalue-redis", "kvredis", "kv-redis"], Known::Builtin(Tech::Redis)),
    (&["keyvalue-vault", "kvvault", "kv-vault"], Known::NotBuilt),
    (&["keyvalue-couchbase", "couchbase"], Known::NotBuilt),
    (&["blobstore-fs"], Known::NotBuilt),
    (&["blobstore-s3"], Known::NotBuilt),
    (&["blobstore-azure"], Known::NotBuilt),
    (&["blobstore-nats"], Known::NotBuilt),
    (&["sqldb-postgres"], Known::NotBuilt),
    (&["cron-scheduler", "cronjob"], Known::NotBuilt),
    (&["lattice-controller"], Known::NotBuilt),
];

/// `trellis://<tech>`: ours by name, beside the built-in ones.
const PLANNED: &[&str] = &["kafka", "postgres"];

/// Who serves an image, or the nearest known name for one that begins with `trellis://` and is no provider of ours.
///
/// `aliases` maps an image, an image without tag and digest, or a last path segment to a name or image of this table.
pub(crate) fn resolve(image: &str, aliases: &BTreeMap<String, String>) -> Result<Served, Option<&'static str>> {
    let untagged = untagged(image);
    let alias = [image, untagged, segment(image)].into_iter().find_map(|key| aliases.get(key));
    let image = alias.map_or(image, String::as_str);
    match image.split_once("://") {
        Some(("trellis", tech)) => ours(tech),
        Some(("file", _)) => Ok(Served::NotBuilt(image.into())),
        _ => {
            Ok(known(&segment(image).to_lowercase().replace('_', "-"))
                .unwrap_or_else(|| Served::NotBuilt(image.into())))
        }
    }
}

/// Whether a provider of this name is known, built or not.
pub(crate) fn is_known(name: &str) -> bool {
    known(name).is_some() || PLANNED.contains(&name)
}

fn ours(name: &str) -> Result<Served, Option<&'static str>> {
    if let Some(tech) = Tech::ALL.into_iter().find(|tech| tech.as_str() == name) {
        return Ok(Served::Builtin(tech));
    }
    let names = Tech::ALL.map(Tech::as_str).into_iter().chain(PLANNED.iter().copied());
    if PLANNED.contains(&name) { Ok(Served::NotBuilt(name.into())) } else { Err(nearest(name, names)) }
}

fn known(name: &str) -> Option<Served> {
    let (names, known) = PROVIDERS.iter().find(|(names, _)| names.contains(&name))?;
    Some(match known {
        Known::Builtin(tech) => Served::Builtin(*tech),
        Known::NotBuilt => Served::NotBuilt(names[0].into()),
    })
}

/// The last path segment without tag and digest.
fn segment(image: &str) -> &str {
    let untagged = untagged(image);
    untagged.rsplit('/').next().unwrap_or(untagged)
}

/// An image without its tag and digest; a port of the registry stays.
fn untagged(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    match image.rfind(':') {
        Some(colon) if !image[colon..].contains('/') => &image[..colon],
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(image: &str) -> Served {
        resolve(image, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn a_known_provider_is_known_from_any_registry() {
        for image in [
            "ghcr.io/wasmcloud/http-server:0.23.0",
            "localhost:5000/http-server",
            "wasmcloud.azurecr.io/httpserver:0.13.1",
            "registry.example/mirror/http_server:1@sha256:00",
            "wasmcloud+builtin://http-client",
            "http-server",
            "trellis://http",
        ] {
            assert_eq!(served(image), Served::Builtin(Tech::Http), "{image}");
        }
        assert_eq!(served("ghcr.io/wasmcloud/messaging-nats:canary"), Served::Builtin(Tech::Nats));
        assert_eq!(served("wasmcloud+builtin://messaging-nats"), Served::Builtin(Tech::Nats));
        assert_eq!(served("trellis://embedded"), Served::Builtin(Tech::Embedded));
        assert_eq!(served("wasmcloud.azurecr.io/kvredis:0.19"), Served::Builtin(Tech::Redis));
    }

    #[test]
    fn what_is_not_built_keeps_its_name_or_its_image() {
        assert_eq!(served("wasmcloud.azurecr.io/kvvault:0.8"), Served::NotBuilt("keyvalue-vault".into()));
        assert_eq!(served("trellis://kafka"), Served::NotBuilt("kafka".into()));
        assert_eq!(served("ghcr.io/acme/own:1"), Served::NotBuilt("ghcr.io/acme/own:1".into()));
        assert!(is_known("keyvalue-redis") && is_known("kafka") && !is_known("ghcr.io/acme/own:1"));
    }

    #[test]
    fn aliases_come_first() {
        let aliases =
            BTreeMap::from([("own".into(), "trellis://nats".into()), ("reg:5000/x".into(), "http-server".into())]);
        assert_eq!(resolve("ghcr.io/acme/own:1", &aliases), Ok(Served::Builtin(Tech::Nats)));
        assert_eq!(resolve("reg:5000/x:2", &aliases), Ok(Served::Builtin(Tech::Http)));
    }

    #[test]
    fn a_wrong_name_of_ours_gets_the_nearest() {
        assert_eq!(resolve("trellis://embeded", &BTreeMap::new()), Err(Some("embedded")));
        assert_eq!(resolve("trellis://fax", &BTreeMap::new()), Err(None));
    }
}
