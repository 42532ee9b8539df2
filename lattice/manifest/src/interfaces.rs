//! WIT interfaces in the namespaces that we know. Others are somebody's own and are never questioned.

use crate::nearest::nearest;

/// (namespace, package, interfaces): wadm's list (wadm-types 0.8, validation) and what Trellis offers beside it.
const KNOWN: &[(&str, &str, &[&str])] = &[
    ("wasi", "blobstore", &["blobstore", "container", "types"]),
    ("wasi", "config", &["runtime", "store"]),
    ("wasi", "http", &["incoming-handler", "outgoing-handler", "handler", "client"]),
    ("wasi", "keyvalue", &["store", "atomics", "batch", "watch"]),
    ("wasi", "logging", &["logging"]),
    ("wasi", "cli", &["run"]),
    ("wasmcloud", "messaging", &["consumer", "handler"]),
    ("wasmcloud", "bus", &["lattice"]),
    ("wasmcloud", "secrets", &["store", "reveal"]),
    ("wasmcloud", "postgres", &["query", "prepared"]),
    ("trellis", "messaging", &["producer", "handler"]),
];

/// Why an interface is doubtful and what was probably meant; `None` where it is known or none of our business.
pub(crate) fn doubt(namespace: &str, package: &str, interface: &str) -> Option<String> {
    let packages: Vec<_> = KNOWN.iter().filter(|(known, ..)| *known == namespace).collect();
    if packages.is_empty() {
        return None;
    }
    let Some((_, _, interfaces)) = packages.iter().find(|(_, known, _)| *known == package) else {
        let meant = nearest(package, packages.iter().map(|(_, known, _)| *known));
        let known = packages.iter().map(|(_, known, _)| *known).collect::<Vec<_>>().join(", ");
        return Some(meant.map_or(format!("known packages of `{namespace}`: {known}"), |meant| {
            format!("did you mean package `{meant}`?")
        }));
    };
    if interfaces.contains(&interface) {
        return None;
    }
    if let Some((bare, _)) = interface.split_once('@') {
        return Some(format!("write it without its version: `{bare}`"));
    }
    let known = || format!("known interfaces of `{namespace}:{package}`: {}", interfaces.join(", "));
    Some(nearest(interface, interfaces.iter().copied()).map_or_else(known, |meant| format!("did you mean `{meant}`?")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_namespaces_are_questioned() {
        assert_eq!(doubt("wasi", "keyvalue", "store"), None);
        assert_eq!(doubt("acme", "anything", "at-all"), None);
        assert_eq!(doubt("wasi", "keyvalue", "stor").unwrap(), "did you mean `store`?");
        assert_eq!(doubt("wasi", "keyvlaue", "store").unwrap(), "did you mean package `keyvalue`?");
        assert_eq!(doubt("wasi", "http", "handler@0.3.0").unwrap(), "write it without its version: `handler`");
        assert!(doubt("wasmcloud", "messaging", "x").unwrap().ends_with("consumer, handler"));
    }
}
