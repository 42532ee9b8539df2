//! One entry of `spec.components`: a component or a provider.

use trellis_wire::{AppName, ComponentName, Digest};

use crate::fields::Fields;
use crate::finding::{At, Report};
use crate::links::{self, Side};
use crate::nearest::{did_you_mean, nearest};
use crate::reading::{Entry, Kind, Reading};
use crate::settings::{self, Settings};
use crate::tree::Node;
use crate::{Component, Image, Limits, Provider, Scaler, Served, Tech, images, level, limits, scaler};

const TRAITS: [&str; 3] = ["link", "spreadscaler", "daemonscaler"];

/// Where an entry's code is.
enum Code<'t> {
    Image(&'t str, At),
    Shared { app: AppName, component: ComponentName },
}

/// What the traits of an entry say, links aside.
struct Held {
    scaler: Option<Scaler>,
    at: Option<At>,
}

/// Reads an entry into the app, its links and config included.
pub(crate) fn read(node: &Node, reading: &mut Reading<'_, '_>) {
    let Some(fields) = Fields::read(node, &level::ENTRY, reading.report) else { return };
    let name = fields.need_text("name", "name: my-component", reading.report);
    let (text, at) = name.unwrap_or(("", node.at));
    let kind = kind(&fields, reading.report);
    let source = name.and_then(|_| self::name(text, at, reading.report));
    let properties = fields.need("properties", "properties:", reading.report);
    let properties = properties.and_then(|node| Fields::read(node, &level::PROPERTIES, reading.report));
    let held = traits(&fields, source.as_ref(), kind, reading);
    let limits = limits(&fields, kind, reading.report);
    let Some(properties) = properties else { return };
    let code = code(&properties, node.at, reading.report);
    let shared = matches!(code, Some(Code::Shared { .. }));
    let id = id(&properties, text, at, shared, reading);
    let own = settings::read(&properties, Side::Entry, reading);
    if shared {
        alone(&properties, held.at, limits.is_some(), at, reading.report);
    }
    if name.is_some() {
        let again = twice(text, at, reading);
        // Two of one name have one generated id; that has been said then.
        let id = id.clone().filter(|(_, id_at)| !again || *id_at != at);
        reading.entries.push(Entry { name: text.into(), at, id, kind, secrets_at: own.secrets_at });
    }
    let (Some(source), Some(code)) = (source, code) else { return };
    let id = id.map_or_else(String::new, |(id, _)| id);
    let Settings { configs, secrets, .. } = own;
    match kind {
        Some(Kind::Component) => {
            let Some(image) = component_image(code, reading.report) else { return };
            let limits = limits.unwrap_or_default();
            let component = Component { id, image, configs, secrets, scaler: held.scaler, limits };
            reading.app.components.insert(source, component);
        }
        Some(Kind::Provider) => {
            let Some((image, served)) = provider_image(code, reading) else { return };
            let provider = Provider { id, image, served, configs, secrets, scaler: held.scaler };
            reading.app.providers.insert(source, provider);
        }
        None => {}
    }
}

fn name(text: &str, at: At, report: &mut Report<'_>) -> Option<ComponentName> {
    let allowed: String = text.chars().filter(|c| !c.is_control()).take(63).collect::<String>().replace('/', "-");
    let help =
        || if allowed.is_empty() { "write `name: my-component`".into() } else { format!("write `name: {allowed}`") };
    ComponentName::new(text).map_err(|error| report.error(at, error.to_string(), help())).ok()
}

fn kind(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<Kind> {
    let (text, at) = fields.need_text("type", "type: component", report)?;
    match text {
        // wadm before 0.11 said `actor`.
        "component" | "actor" => Some(Kind::Component),
        "capability" => Some(Kind::Provider),
        "provider" => {
            report.error(at, "unknown type `provider`", "write `type: capability`");
            None
        }
        _ => {
            let known = "write `type: component` for code in a sandbox or `type: capability` for a provider";
            report.error(at, format!("unknown type `{text}`"), did_you_mean(text, ["component", "capability"], known));
            None
        }
    }
}

/// Whether there is an entry of this name already, which is an error.
fn twice(text: &str, at: At, reading: &mut Reading<'_, '_>) -> bool {
    let Some(first) = reading.entries.iter().find(|entry| entry.name == text) else { return false };
    let help = format!("line {} has a component of this name already: give one of them another", first.at.line);
    reading.report.error(at, format!("the name `{text}` comes twice"), help);
    true
}

/// Reads the traits: links go to `reading`, the one scaler is returned.
fn traits(
    fields: &Fields<'_>,
    source: Option<&ComponentName>,
    kind: Option<Kind>,
    reading: &mut Reading<'_, '_>,
) -> Held {
    let mut held = Held { scaler: None, at: None };
    for node in fields.list("traits", reading.report) {
        let Some(fields) = Fields::read(node, &level::TRAIT, reading.report) else { continue };
        let kind_of_trait = fields.need_text("type", "type: link", reading.report);
        let properties = fields.need("properties", "properties:", reading.report);
        let (Some((text, at)), Some(properties)) = (kind_of_trait, properties) else { continue };
        match text {
            "link" => links::read(properties, source, reading),
            "spreadscaler" | "daemonscaler" => {
                if let Some(first) = held.at {
                    let help = format!("line {} has one already: keep the one that is meant", first.line);
                    reading.report.error(at, "a second scaler for one component", help);
                }
                held.scaler = scaler::read(properties, text == "daemonscaler", reading.report);
                held.at = Some(at);
            }
            _ => unknown_trait(text, at, kind, reading.report),
        }
    }
    held
}

fn unknown_trait(text: &str, at: At, kind: Option<Kind>, report: &mut Report<'_>) {
    let meant = match text {
        "linkdef" => Some("link"),
        "scaler" if kind == Some(Kind::Component) => Some("spreadscaler"),
        _ => nearest(text, TRAITS),
    };
    let help = meant.map_or(format!("known traits: {}", TRAITS.join(", ")), |meant| format!("did you mean `{meant}`?"));
    report.warn(at, format!("unknown trait type `{text}`; the trait is passed over"), help);
}

fn limits(fields: &Fields<'_>, kind: Option<Kind>, report: &mut Report<'_>) -> Option<Limits> {
    let pair = fields.pair("limits")?;
    if kind == Some(Kind::Provider) {
        let message = "`limits` means nothing here: a provider runs in no sandbox";
        report.warn(pair.key_at, message, "put it beside the properties of the component that it is meant for");
    }
    limits::read(&pair.node, report)
}

/// Exactly one of `image` and `application`.
fn code<'t>(properties: &Fields<'t>, at: At, report: &mut Report<'_>) -> Option<Code<'t>> {
    let image = properties.text("image", report);
    let application = properties.pair("application");
    match (image, application) {
        (Some(_), Some(pair)) => {
            let help =
                "keep `image` for code of this app's own, or `application` for a component that another app shares";
            report.error(pair.key_at, "`image` and `application` exclude each other", help);
            None
        }
        (Some((image, at)), None) => Some(Code::Image(image, at)),
        (None, Some(pair)) => {
            let fields = Fields::read(&pair.node, &level::APPLICATION, report)?;
            let app = fields.need_text("name", "name: the-other-app", report);
            let component = fields.need_text("component", "component: its-component", report);
            let ((app, app_at), (component, at)) = (app?, component?);
            let app = AppName::new(app).map_err(|error| report.error(app_at, error.to_string(), "")).ok();
            Some(Code::Shared { app: app?, component: name(component, at, report)? })
        }
        (None, None) => {
            // One that is no text or mistyped has been reported where it stands.
            if properties.get("image").is_none() && !properties.has_mistyped("image") {
                let help = "write `image: ghcr.io/owner/name:0.1.0`, `image: file://./build/name.wasm` or `application: {name: \
                            .., component: ..}`";
                report.error(at, "a component needs `image` or `application`", help);
            }
            None
        }
    }
}

/// What a component of another app may not have: its own app says it.
fn alone(properties: &Fields<'_>, scaler: Option<At>, limits: bool, at: At, report: &mut Report<'_>) {
    let help = "set it in the app that shares the component";
    for key in ["config", "secrets"] {
        if let Some(pair) = properties.pair(key)
            && !pair.node.items().is_empty()
        {
            report.error(pair.key_at, format!("`{key}` is not allowed beside `application`"), help);
        }
    }
    if let Some(at) = scaler {
        report.error(at, "a scaler is not allowed on a component of another app", help);
    }
    if limits {
        report.error(at, "`limits` is not allowed on a component of another app", help);
    }
}

/// The id, given or generated; none for a component of another app that is given none here.
fn id(
    properties: &Fields<'_>,
    name: &str,
    at: At,
    shared: bool,
    reading: &mut Reading<'_, '_>,
) -> Option<(String, At)> {
    let Some((id, id_at)) = properties.text("id", reading.report) else {
        return (!shared).then(|| (generated_id(reading.app.name.as_str(), name), at));
    };
    if id.is_empty() || id.len() > 253 || id.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let message = format!("`{id}` is no id: it names a queue group, which has 1 to 253 bytes and no spaces");
        reading.report.error(
            id_at,
            message,
            format!("write `id: {}`, or none", generated_id(reading.app.name.as_str(), name)),
        );
    }
    Some((id.into(), id_at))
}

/// wadm's rule for an entry without an `id` (wadm 0.21): both halves in lower case, what is not alphanumeric as `_`.
fn generated_id(app: &str, name: &str) -> String {
    let half = |text: &str| text.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("{}-{}", half(app), half(name))
}

fn component_image(code: Code<'_>, report: &mut Report<'_>) -> Option<Image> {
    match code {
        Code::Shared { app, component } => Some(Image::Shared { app, component }),
        Code::Image(text, at) => image(text.trim()).map_err(|(message, help)| report.error(at, message, help)).ok(),
    }
}

/// `file://path`, a bare path or an OCI reference; any may end in `@sha256:<digest>`.
fn image(text: &str) -> Result<Image, (String, &'static str)> {
    let (name, digest) = match text.rsplit_once("@sha") {
        Some((name, digest)) => {
            let refused =
                |_| (format!("`sha{digest}` is no digest"), "write `@sha256:` and 64 hex digits after the image");
            (name, Some(format!("sha{digest}").parse::<Digest>().map_err(refused)?))
        }
        None => (text, None),
    };
    let path = match name.split_once("://") {
        Some(("file", path)) => Some(path),
        Some((scheme, _)) => {
            let help = "write `file://<path>`, or a registry's reference without a scheme: `ghcr.io/owner/name:0.1.0`";
            return Err((format!("`{scheme}://` is not known for a component's image"), help));
        }
        None => is_path(name).then_some(name),
    };
    if path.unwrap_or(name).is_empty() || name.chars().any(char::is_control) {
        return Err((
            format!("`{text}` is no image"),
            "write `image: ghcr.io/owner/name:0.1.0` or `image: file://./build/name.wasm`",
        ));
    }
    match path {
        Some(path) => Ok(Image::File { path: path.into(), digest }),
        None if name.contains(char::is_whitespace) => Err((
            format!("`{text}` is no image: a reference has no spaces"),
            "write `file://` before a path with spaces",
        )),
        None => Ok(Image::Oci(text.into())),
    }
}

/// Whether a reference without a scheme is a path: it begins like one, or it ends in `.wasm` and names no registry.
fn is_path(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let registry = name.contains('/') && (first == "localhost" || first.contains(['.', ':']));
    name.starts_with('/') || first == "." || first == ".." || (name.ends_with(".wasm") && !registry)
}

fn provider_image(code: Code<'_>, reading: &mut Reading<'_, '_>) -> Option<(String, Served)> {
    let (image, at) = match code {
        Code::Shared { app, component } => return Some((String::new(), Served::Shared { app, component })),
        Code::Image(image, at) => (image.trim(), at),
    };
    if image.is_empty() {
        reading.report.error(
            at,
            "the image is empty",
            "write `image: trellis://embedded`, `trellis://nats` or `trellis://http`",
        );
        return None;
    }
    let served = match images::resolve(image, &reading.options.image_aliases) {
        Ok(served) => served,
        Err(meant) => {
            let help = meant.map_or_else(built_in, |meant| format!("did you mean `trellis://{meant}`?"));
            reading.report.error(at, format!("`{image}` is no provider of Trellis"), help);
            return None;
        }
    };
    if let Served::NotBuilt(name) = &served {
        let message = if images::is_known(name) {
            format!("the provider `{name}` is not built yet: this can be validated but not deployed")
        } else {
            format!("no provider is known for the image `{image}`: this can be validated but not deployed")
        };
        reading.report.warn(at, message, built_in() + "; an image alias maps an image to one");
    }
    Some((image.into(), served))
}

fn built_in() -> String {
    format!("built in are {}", Tech::ALL.map(|tech| format!("`trellis://{}`", tech.as_str())).join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_as_wadm_makes_them() {
        assert_eq!(generated_id("My-App", "http.Server 1"), "my_app-http_server_1");
        assert_eq!(generated_id("a", "é"), "a-_");
    }

    #[test]
    fn an_image_is_a_file_or_a_reference() {
        let hex = "ab".repeat(32);
        let digest = hex.parse().ok();
        let file = |path: &str| Ok(Image::File { path: path.into(), digest: None });
        assert_eq!(image("file://./build/a.wasm"), file("./build/a.wasm"));
        assert_eq!(image("file:///abs/a.wasm"), file("/abs/a.wasm"));
        assert_eq!(image("./a@2.wasm"), file("./a@2.wasm"));
        assert_eq!(image("build/a.wasm"), file("build/a.wasm"));
        assert_eq!(image("../a"), file("../a"));
        assert_eq!(image(&format!("./a.wasm@sha256:{hex}")), Ok(Image::File { path: "./a.wasm".into(), digest }));
        for oci in [
            "ghcr.io/a/b:1",
            "localhost:5000/a.wasm",
            "wasmcloud.azurecr.io/echo.wasm",
            "echo:1",
            &format!("ghcr.io/a/b@sha256:{hex}"),
        ] {
            assert_eq!(image(oci), Ok(Image::Oci(oci.into())));
        }
        for wrong in
            ["", "file://", "https://a/b.wasm", "oci://ghcr.io/a", "ghcr.io/a b", "ghcr.io/a@sha256:00", "a@sha512:00"]
        {
            assert!(image(wrong).is_err(), "{wrong}");
        }
    }
}
