//! Looks at an artifact: what it imports and exports, and so what wakes it and which links it needs. Reads names only;
//! nothing is compiled.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use wasmparser::{ComponentExternalKind, ComponentTypeRef, Encoding, Parser, Payload};

use crate::component::ComponentError;

/// The name of a WIT interface: `wasi:http/types@0.2.12`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName {
    /// `wasi`.
    pub namespace: String,
    /// `http`.
    pub package: String,
    /// `types`.
    pub interface: String,
    /// `0.2.12`, if the package has one.
    pub version: Option<String>,
}

impl InterfaceName {
    /// Whether it is this interface at this version or, where the version is `0.2` or `0.3`, at a release of it.
    fn is(&self, package: &str, interface: &str, version: &str) -> bool {
        self.is_of(package) && self.interface == interface && self.has_version(version)
    }

    fn is_of(&self, package: &str) -> bool {
        package.split_once(':') == Some((&self.namespace, &self.package))
    }

    fn has_version(&self, served: &str) -> bool {
        let Some(version) = &self.version else { return false };
        match served {
            "0.2" | "0.3" => {
                let patch = version.strip_prefix(served).and_then(|rest| rest.strip_prefix('.'));
                patch.is_some_and(|patch| patch.bytes().all(|b| b.is_ascii_digit()))
            }
            exact => version == exact,
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.namespace, self.package, self.interface)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

impl FromStr for InterfaceName {
    /// The text, which is no interface's name.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, version) = text.split_once('@').map_or((text, None), |(path, version)| (path, Some(version.into())));
        let parts = path.split_once(':').and_then(|(namespace, rest)| Some((namespace, rest.split_once('/')?)));
        let Some((namespace, (package, interface))) = parts else { return Err(text.into()) };
        Ok(Self { namespace: namespace.into(), package: package.into(), interface: interface.into(), version })
    }
}

/// What can wake a component: one of the interfaces that it exports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// HTTP requests, through `wasi:http/incoming-handler` of WASI 0.2.
    HttpP2,
    /// HTTP requests, through `wasi:http/handler` of WASI 0.3.
    HttpP3,
    /// Messages, through `wasmcloud:messaging/handler@0.2.0`.
    MessageWasmcloud,
    /// Messages, through `trellis:messaging/handler@0.1.0`.
    MessageTrellis,
    /// A run with arguments, through `wasi:cli/run` of WASI 0.2.
    RunP2,
    /// A run with arguments, through `wasi:cli/run` of WASI 0.3.
    RunP3,
    /// Calls of an interface of its own.
    Invoke(InterfaceName),
}

impl Wake {
    /// What an exported interface is woken by. None for one that only lends its types.
    pub(crate) fn by(export: &InterfaceName) -> Option<Self> {
        let known = [
            ("wasi:http", "incoming-handler", "0.2", Self::HttpP2),
            ("wasi:http", "handler", "0.3", Self::HttpP3),
            ("wasmcloud:messaging", "handler", "0.2.0", Self::MessageWasmcloud),
            ("trellis:messaging", "handler", "0.1.0", Self::MessageTrellis),
            ("wasi:cli", "run", "0.2", Self::RunP2),
            ("wasi:cli", "run", "0.3", Self::RunP3),
        ];
        if let Some((.., wake)) =
            known.into_iter().find(|(package, name, version, _)| export.is(package, name, version))
        {
            return Some(wake);
        }
        let ours = SERVED.iter().any(|served| export.is_of(served.package));
        (!ours).then(|| Self::Invoke(export.clone()))
    }
}

/// A package whose interfaces work only through a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// `wasi`.
    pub namespace: String,
    /// `keyvalue`.
    pub package: String,
    /// `store`, `atomics`.
    pub interfaces: Vec<String>,
}

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Every interface that it imports.
    pub imports: Vec<InterfaceName>,
    /// Every interface that it exports.
    pub exports: Vec<InterfaceName>,
    /// What can wake it.
    pub wakes: Vec<Wake>,
    /// The links without which its deploy fails.
    pub needs: Vec<Need>,
    /// The links without which it runs but is denied what it asks for: outgoing HTTP.
    pub warns: Vec<Need>,
}

/// What happens at deploy time when a component has no link for an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// Nothing.
    Free,
    /// A warning.
    Warned,
    /// The deploy fails.
    Needed,
}

/// A package that the host serves.
struct Served {
    package: &'static str,
    version: &'static str,
    /// Empty: all of them.
    interfaces: &'static [&'static str],
    link: Link,
}

const fn served(
    package: &'static str,
    version: &'static str,
    interfaces: &'static [&'static str],
    link: Link,
) -> Served {
    Served { package, version, interfaces, link }
}

/// Every package that the host serves. A version `0.2` or `0.3` stands for its releases; drafts match by exact name.
const SERVED: &[Served] = &[
    served("wasi:io", "0.2", &[], Link::Free),
    served("wasi:cli", "0.2", &[], Link::Free),
    served("wasi:cli", "0.3", &[], Link::Free),
    served("wasi:clocks", "0.2", &[], Link::Free),
    served("wasi:clocks", "0.3", &[], Link::Free),
    served("wasi:random", "0.2", &[], Link::Free),
    served("wasi:random", "0.3", &[], Link::Free),
    served("wasi:filesystem", "0.2", &[], Link::Free),
    served("wasi:filesystem", "0.3", &[], Link::Free),
    served("wasi:sockets", "0.2", &[], Link::Free),
    served("wasi:sockets", "0.3", &[], Link::Free),
    served("wasi:http", "0.2", &["types"], Link::Free),
    served("wasi:http", "0.2", &["outgoing-handler"], Link::Warned),
    served("wasi:http", "0.3", &["types"], Link::Free),
    served("wasi:http", "0.3", &["client"], Link::Warned),
    served("wasi:config", "0.2.0-rc.1", &["store"], Link::Free),
    served("wasi:config", "0.2.0-draft", &["store", "runtime"], Link::Free),
    served("wasmcloud:secrets", "0.1.0-draft", &["store", "reveal"], Link::Free),
    served("wasi:logging", "0.1.0-draft", &["logging"], Link::Free),
    served("wasi:keyvalue", "0.2.0-draft", &["store", "atomics", "batch"], Link::Needed),
    served("wasmcloud:bus", "1.0.0", &["lattice"], Link::Free),
    served("wasmcloud:messaging", "0.2.0", &["types"], Link::Free),
    served("wasmcloud:messaging", "0.2.0", &["consumer"], Link::Needed),
    served("trellis:messaging", "0.1.0", &["types"], Link::Free),
    served("trellis:messaging", "0.1.0", &["producer"], Link::Needed),
];

/// Whether the host itself serves the import, so that it is not another component's or a provider's.
pub(crate) fn is_served(import: &InterfaceName) -> bool {
    SERVED.iter().any(|served| import.is_of(served.package))
}

/// Looks at an artifact. Needs no engine, so a command line can do it too.
///
/// # Errors
/// It is no component, or it imports what is not served; `wasi_p3` says whether WASI 0.3 is.
pub fn inspect(wasm: &[u8], wasi_p3: bool) -> Result<Inspection, ComponentError> {
    let (imports, exports) = names(wasm)?;
    let mut needs = BTreeMap::new();
    let mut warns = BTreeMap::new();
    for import in &imports {
        match link(import, wasi_p3)? {
            Link::Free => {}
            Link::Warned => note(&mut warns, import),
            Link::Needed => note(&mut needs, import),
        }
    }
    for export in exports.iter().filter(|_| !wasi_p3) {
        if matches!(Wake::by(export), Some(Wake::HttpP3 | Wake::RunP3)) {
            return Err(switched_off(export));
        }
    }
    let wakes = exports.iter().filter_map(Wake::by).collect();
    Ok(Inspection {
        imports,
        exports,
        wakes,
        needs: needs.into_values().collect(),
        warns: warns.into_values().collect(),
    })
}

fn note(links: &mut BTreeMap<(String, String), Need>, import: &InterfaceName) {
    let InterfaceName { namespace, package, interface, .. } = import.clone();
    let key = (namespace.clone(), package.clone());
    links.entry(key).or_insert(Need { namespace, package, interfaces: Vec::new() }).interfaces.push(interface);
}

/// What an import means for links, or why it can never be served.
fn link(import: &InterfaceName, wasi_p3: bool) -> Result<Link, ComponentError> {
    let mut of_package = SERVED.iter().filter(|served| import.is_of(served.package)).peekable();
    if of_package.peek().is_none() {
        return Ok(Link::Needed);
    }
    let fits = |served: &&Served| {
        let interface = served.interfaces.is_empty() || served.interfaces.contains(&import.interface.as_str());
        interface && import.has_version(served.version)
    };
    match of_package.find(fits) {
        Some(served) if served.version == "0.3" && !wasi_p3 => Err(switched_off(import)),
        Some(served) => Ok(served.link),
        None => Err(ComponentError::Unsupported(format!(
            "it imports {import}, which this node does not serve; of {}:{} it serves {}",
            import.namespace,
            import.package,
            versions(import),
        ))),
    }
}

fn switched_off(interface: &InterfaceName) -> ComponentError {
    ComponentError::Unsupported(format!("it uses {interface}, and WASI 0.3 is switched off on this node"))
}

/// What is served of an import's package, for people.
fn versions(import: &InterfaceName) -> String {
    let of_package = SERVED.iter().filter(|served| import.is_of(served.package));
    let name = |served: &Served| {
        let release = if matches!(served.version, "0.2" | "0.3") { ".x" } else { "" };
        let interfaces = if served.interfaces.is_empty() { "everything".into() } else { served.interfaces.join(", ") };
        format!("{interfaces} @{}{release}", served.version)
    };
    of_package.map(name).collect::<Vec<_>>().join("; ")
}

type Names = (Vec<InterfaceName>, Vec<InterfaceName>);

/// The interfaces that the outermost component imports and exports.
fn names(wasm: &[u8]) -> Result<Names, ComponentError> {
    let truncated = |why: wasmparser::BinaryReaderError| {
        ComponentError::NotAComponent(format!("is not WebAssembly, or was cut short: {why}"))
    };
    if wasm.is_empty() {
        return Err(ComponentError::NotAComponent("is not WebAssembly: it is empty".into()));
    }
    if !wasm.starts_with(b"\0asm") {
        return Err(ComponentError::NotAComponent("is not WebAssembly: it does not begin as such files do".into()));
    }
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(truncated)? {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => return Err(core_module()),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import.map_err(truncated)?;
                    let is_instance = matches!(import.ty, ComponentTypeRef::Instance(_));
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        imports.push(interface(import.name.name, is_instance)?);
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export.map_err(truncated)?;
                    if export.kind == ComponentExternalKind::Instance {
                        // What is of no package nothing can wake, and it does no harm: all that componentize-py makes
                        // exports such an instance for itself, named `exports`.
                        exports.extend(export.name.name.parse::<InterfaceName>());
                    }
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

fn core_module() -> ComponentError {
    ComponentError::NotAComponent(
        "is a core module, not a component; build with `--target wasm32-wasip2` or wrap it with \
         `wasm-tools component new`"
            .into(),
    )
}

fn interface(name: &str, is_instance: bool) -> Result<InterfaceName, ComponentError> {
    match name.parse() {
        Ok(interface) if is_instance => Ok(interface),
        _ => Err(ComponentError::Unsupported(format!(
            "it imports `{name}`, which is no interface of a package; put it into an interface of a named package"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(wat: &str) -> Result<Inspection, String> {
        inspect(&wat::parse_str(wat).unwrap(), true).map_err(|why| why.to_string())
    }

    #[test]
    fn needs_and_wakes_are_read_from_names() {
        let seen = of(r#"(component
            (import "wasi:keyvalue/store@0.2.0-draft" (instance))
            (import "wasi:keyvalue/batch@0.2.0-draft" (instance))
            (import "wasi:http/types@0.2.1" (instance))
            (import "wasi:http/outgoing-handler@0.2.1" (instance))
            (import "wasi:config/runtime@0.2.0-draft" (instance))
            (import "shop:stock/levels" (instance))
            (instance $i)
            (export "wasi:http/incoming-handler@0.2.3" (instance $i))
            (export "trellis:messaging/types@0.1.0" (instance $i))
            (export "shop:prices/list@1.0.0" (instance $i)))"#)
        .unwrap();
        let need = |namespace: &str, package: &str, interfaces: &[&str]| Need {
            namespace: namespace.into(),
            package: package.into(),
            interfaces: interfaces.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(seen.needs, [need("shop", "stock", &["levels"]), need("wasi", "keyvalue", &["store", "batch"])]);
        assert_eq!(seen.warns, [need("wasi", "http", &["outgoing-handler"])]);
        assert_eq!(seen.wakes, [Wake::HttpP2, Wake::Invoke("shop:prices/list@1.0.0".parse().unwrap())]);
    }

    #[test]
    fn versions_that_are_not_served_are_refused_with_those_that_are() {
        let refused = of(r#"(component (import "wasi:keyvalue/store@0.2.0-draft2" (instance)))"#).unwrap_err();
        assert!(refused.contains("wasi:keyvalue/store@0.2.0-draft2"), "{refused}");
        assert!(refused.contains("store, atomics, batch @0.2.0-draft"), "{refused}");
        assert!(of(r#"(component (import "wasi:http/types@0.2.0-rc-2023-11-10" (instance)))"#).is_err());
        assert!(of(r#"(component (import "wasi:keyvalue/watcher@0.2.0-draft" (instance)))"#).is_err());
        assert!(of(r#"(component (import "f" (func)))"#).unwrap_err().contains("imports `f`"));
    }

    #[test]
    fn wasi_0_3_can_be_switched_off() {
        let wasm = wat::parse_str(r#"(component (import "wasi:clocks/types@0.3.0" (instance)))"#).unwrap();
        assert!(inspect(&wasm, true).is_ok());
        assert!(inspect(&wasm, false).unwrap_err().to_string().contains("switched off"));
    }

    #[test]
    fn what_is_no_component_is_named() {
        let not = |wasm: &[u8]| inspect(wasm, true).unwrap_err().to_string();
        assert!(not(b"").contains("not WebAssembly"));
        assert!(not(b"garbage, more than eight bytes").contains("not WebAssembly"));
        assert!(not(&wat::parse_str("(module)").unwrap()).contains("wasm-tools component new"));
        let whole = wat::parse_str("(component (core module (memory 1) (data (i32.const 0) \"hello\")))").unwrap();
        assert!(not(&whole[..whole.len() - 4]).contains("cut short"));
    }
}
