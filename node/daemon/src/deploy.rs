//! Deploy: from a manifest's text to a Raft command. Everything that can be found wrong is found before the command,
//! and all of it is said at once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use trellis_manifest::{App, Image, Parsed, Severity, Tech};
use trellis_placement::{Applied, Command, Release, Versions};
use trellis_raft::ProposeError;
use trellis_sandbox::{Inspection, Need, Wake};
use trellis_wire::{ComponentName, Digest};

use crate::api::types::{DeployReply, DeployRequest, Finding};
use crate::artifacts::{ArtifactError, Artifacts};
use crate::changes;
use crate::grants::trait_to_add;
use crate::node::Node;
use crate::{cut_off, oci, proposal};

/// Why a deploy is not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeployError {
    /// The manifest has errors.
    #[error("the manifest has {} error(s)", .0.iter().filter(|f| f.severity == "error").count())]
    Invalid(Vec<Finding>),
    /// The manifest is valid but cannot be deployed as it is: one sentence for each reason.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The lattice refused the command.
    #[error("{0}")]
    Conflict(String),
    /// It may go through later.
    #[error("{0}")]
    Unavailable(String),
}

/// Deploys, or says what would change.
pub(crate) async fn deploy(node: &Node, request: DeployRequest) -> Result<DeployReply, DeployError> {
    let (app, mut findings) = parse(node, &request)?;
    let refused = cut_off::certainly(node).filter(|_| !request.dry_run);
    refused.map_or(Ok(()), |why| Err(DeployError::Unavailable(why)))?;
    let artifacts = resolve(node, &app, &request).await?;
    let (here, absent) = artifacts.iter().partition(|(_, digest)| node.artifacts.has(**digest));
    check_components(node, &app, here).await?;
    findings.extend(absent.into_iter().map(|(name, _)| unchecked(name)));
    let manifest = match request.dry_run {
        true => Artifacts::digest(request.manifest.as_bytes()),
        false => store_manifest(node, request.manifest).await?,
    };
    let release = Release { version: version(&app, &artifacts), app, artifacts, manifest, replace: request.replace };
    let entry = proposal::entry(Command::Deploy(Box::new(release.clone())));
    entry.check_size().map_err(|why| DeployError::Refused(vec![why.to_string()]))?;

    let before = node.raft.state().borrow().clone();
    let mut after = (*before).clone();
    let foreseen = after.apply(&entry);
    after.check_pulled_at_home(&release.app.name).map_err(|why| DeployError::Conflict(why.to_string()))?;
    let mut reply = DeployReply {
        app: release.app.name.to_string(),
        version: release.version.clone(),
        outcome: "dry_run".into(),
        waits_for: Vec::new(),
        changes: changes::of_release(
            before.app(&release.app.name).and_then(Versions::deployed).map(|old| &**old),
            &release,
        ),
        moves: changes::moves(&before, after, &release.app.name),
        findings,
    };
    if request.dry_run {
        return match foreseen {
            Applied::Refused(why) => Err(DeployError::Conflict(why.to_string())),
            _ => Ok(reply),
        };
    }
    let applied = proposal::commit(&node.raft, entry).await.map_err(|why| match why {
        ProposeError::TooOld(why) => DeployError::Conflict(why.to_string()),
        why => DeployError::Unavailable(why.to_string()),
    })?;
    reply.outcome = match applied {
        Applied::Refused(why) => return Err(DeployError::Conflict(why.to_string())),
        Applied::Unchanged => "unchanged".into(),
        Applied::Done | Applied::Repeated if is_rolled_out(node, &release) => "rolling_out".into(),
        Applied::Done | Applied::Repeated => "deployed".into(),
        Applied::Waiting(what) => {
            reply.waits_for = what;
            "waiting".into()
        }
    };
    Ok(reply)
}

/// Whether a release takes another's place step by step.
fn is_rolled_out(node: &Node, release: &Release) -> bool {
    let state = node.raft.state().borrow().clone();
    let newer = state.app(&release.app.name).and_then(Versions::newer);
    newer.is_some_and(|newer| newer.version == release.version)
}

/// The findings of a parse as the API gives them.
pub(crate) fn findings(parsed: &Parsed) -> Vec<Finding> {
    let finding = |found: &trellis_manifest::Finding| Finding {
        severity: match found.severity {
            Severity::Error => "error".into(),
            Severity::Warning => "warning".into(),
        },
        line: found.line.into(),
        column: found.column.into(),
        message: found.message.clone(),
        rendered: found.to_string(),
    };
    parsed.findings.iter().map(finding).collect()
}

fn parse(node: &Node, request: &DeployRequest) -> Result<(App, Vec<Finding>), DeployError> {
    let origin = if request.origin.is_empty() { "manifest" } else { &request.origin };
    let parsed = node.parse_manifest(&request.manifest, origin);
    let findings = findings(&parsed);
    let Some(app) = parsed.app else { return Err(DeployError::Invalid(findings)) };
    let not_built = app.not_built();
    if not_built.is_empty() {
        return Ok((app, findings));
    }
    Err(DeployError::Refused(not_built.iter().map(|what| format!("{what} is not built into this version")).collect()))
}

/// The artifact of each component: uploaded before, or pulled now.
async fn resolve(
    node: &Node,
    app: &App,
    request: &DeployRequest,
) -> Result<BTreeMap<ComponentName, Digest>, DeployError> {
    let (mut artifacts, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, component) in &app.components {
        let found = match &component.image {
            Image::File { path, digest } => uploaded(node, name, path, *digest, request),
            Image::Oci(image) => pulled(node, image).await.map_err(|why| format!("{name}: {why}")),
            // It is the other app's: its artifact came with that app's deploy.
            Image::Shared { .. } => continue,
        };
        match found {
            Ok(digest) => drop(artifacts.insert(name.clone(), digest)),
            Err(why) => problems.push(why),
        }
    }
    if problems.is_empty() { Ok(artifacts) } else { Err(DeployError::Refused(problems)) }
}

fn uploaded(
    node: &Node,
    name: &ComponentName,
    path: &str,
    expected: Option<Digest>,
    request: &DeployRequest,
) -> Result<Digest, String> {
    let Some(text) = request.artifacts.get(name.as_str()) else {
        return Err(format!(
            "{name}: the file {path} was not uploaded; deploy with `trellis deploy`, or PUT it to /v1/artifacts/<digest> \
             and name the digest in `artifacts`"
        ));
    };
    let digest: Digest = text.parse().map_err(|why| format!("{name}: {why}"))?;
    if let Some(expected) = expected.filter(|expected| *expected != digest) {
        return Err(format!("{name}: {path} has digest {digest}; the manifest asks for {expected}"));
    }
    // A dry run uploads nothing: what it would upload is known by its digest.
    if request.dry_run || node.artifacts.keep(digest) {
        Ok(digest)
    } else {
        Err(format!("{name}: {}", ArtifactError::Missing(digest)))
    }
}

async fn pulled(node: &Node, image: &str) -> Result<Digest, String> {
    let pulled = oci::pull(image, &node.oci_insecure).await.map_err(|why| why.to_string())?;
    let artifacts = node.artifacts.clone();
    let stored = tokio::task::spawn_blocking(move || artifacts.put(&pulled.bytes, Some(pulled.digest)));
    stored.await.map_err(|why| format!("storing {image} broke off: {why}"))?.map_err(|why| format!("{image}: {why}"))
}

/// Compiles each component, and checks that its imports are granted and that what is to wake it can.
async fn check_components(
    node: &Node,
    app: &App,
    artifacts: Vec<(&ComponentName, &Digest)>,
) -> Result<(), DeployError> {
    let mut problems = Vec::new();
    // Many components may be of one artifact.
    let mut inspected = BTreeMap::new();
    for (name, digest) in artifacts {
        let inspection = match inspected.entry(digest) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(inspect(node, *digest).await),
        };
        match inspection {
            Ok(inspection) => {
                problems.extend(missing_links(app, name, inspection));
                problems.extend(deaf_links(app, name, inspection));
            }
            Err(why) => problems.push(format!("{name}: {why}")),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(DeployError::Refused(problems)) }
}

/// A dry run cannot look into what is not uploaded yet.
fn unchecked(component: &ComponentName) -> Finding {
    let message = format!("{component} is not on the node yet; its imports are checked when it is deployed");
    Finding { severity: "warning".into(), line: 0, column: 0, rendered: format!("warning: {message}"), message }
}

async fn inspect(node: &Node, digest: Digest) -> Result<Inspection, String> {
    let (artifacts, engine) = (node.artifacts.clone(), node.engine.clone());
    let work = tokio::task::spawn_blocking(move || {
        let bytes = artifacts.get(digest).map_err(|why| why.to_string())?;
        engine.compile(digest, &bytes).map_err(|why| why.to_string())?;
        engine.inspect(&bytes).map_err(|why| why.to_string())
    });
    work.await.map_err(|why| format!("compiling broke off: {why}"))?
}

/// Imports that need a link and have none: one sentence each, with the trait to add.
fn missing_links(app: &App, name: &ComponentName, inspection: &Inspection) -> Vec<String> {
    let granted = |need: &Need| {
        app.links.iter().filter(|link| link.source == *name).any(|link| {
            let same_package =
                link.package == need.package && (link.namespace == need.namespace || need.package == "messaging");
            let known = matches!(need.package.as_str(), "keyvalue" | "messaging" | "blobstore");
            same_package && (known || need.interfaces.iter().all(|wanted| link.interfaces.contains(wanted)))
        })
    };
    let missing = inspection.needs.iter().filter(|need| !granted(need));
    missing
        .map(|need| {
            let interfaces = need.interfaces.join(", ");
            format!(
                "{name} imports {}:{}/{{{interfaces}}}, which no link grants; {}",
                need.namespace,
                need.package,
                trait_to_add(&need.namespace, &need.package, &interfaces, offering(app, &need.package))
            )
        })
        .collect()
}

/// The app's only provider that can offer the package, to name it.
fn offering<'a>(app: &'a App, package: &str) -> Option<&'a str> {
    let offers = |tech: Option<Tech>| match tech {
        Some(Tech::Embedded | Tech::Nats | Tech::Redis) => matches!(package, "keyvalue" | "messaging"),
        Some(Tech::Rabbitmq | Tech::Mqtt) => package == "messaging",
        Some(Tech::Http | Tech::Timer) | None => false,
    };
    let mut found = app.providers.iter().filter(|(_, provider)| offers(provider.tech()));
    match (found.next(), found.next()) {
        (Some((name, _)), None) => Some(name.as_str()),
        _ => None,
    }
}

/// Links that are to wake a component with what it has no export for.
fn deaf_links(app: &App, name: &ComponentName, inspection: &Inspection) -> Vec<String> {
    let from_providers =
        app.links.iter().filter(|link| link.target == *name && app.providers.contains_key(&link.source));
    let deaf = from_providers.filter(|link| match link.package.as_str() {
        "http" => !inspection.wakes.iter().any(|wake| matches!(wake, Wake::HttpP2 | Wake::HttpP3)),
        "messaging" => {
            !inspection.wakes.iter().any(|wake| matches!(wake, Wake::MessageWasmcloud | Wake::MessageTrellis))
        }
        "cli" => !inspection.wakes.iter().any(|wake| matches!(wake, Wake::RunP2 | Wake::RunP3)),
        _ => false,
    });
    deaf.map(|link| {
        format!(
            "{name} exports nothing that the link from {} could wake: {}:{}/{{{}}} was expected among its exports ({})",
            link.source,
            link.namespace,
            link.package,
            link.interfaces.join(", "),
            inspection.exports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        )
    })
    .collect()
}

async fn store_manifest(node: &Node, manifest: String) -> Result<Digest, DeployError> {
    let artifacts = node.artifacts.clone();
    let stored = tokio::task::spawn_blocking(move || artifacts.put(manifest.as_bytes(), None)).await;
    let stored = stored.map_err(|why| DeployError::Unavailable(format!("storing the manifest broke off: {why}")))?;
    stored.map_err(|why| DeployError::Unavailable(why.to_string()))
}

/// The version: the manifest's own, or one made from the content, so that the same content is the same version.
fn version(app: &App, artifacts: &BTreeMap<ComponentName, Digest>) -> String {
    app.version.clone().unwrap_or_else(|| {
        let content = trellis_wire::frame::encode(&(app, artifacts));
        Artifacts::digest(&content).hex()[..12].to_owned()
    })
}
