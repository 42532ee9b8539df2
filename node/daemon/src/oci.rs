//! Components from OCI registries: pulled by reference, checked by digest. The only file that knows oci-client.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde::Deserialize;
use trellis_wire::Digest;

use crate::artifacts::ARTIFACT_BYTES_MAX;

/// How long a registry may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// What was pulled.
pub(crate) struct Pulled {
    /// The component.
    pub(crate) bytes: Vec<u8>,
    /// Its digest as the image's manifest states it; whoever stores it checks it.
    pub(crate) digest: Digest,
}

/// Why a component cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    #[error("`{image}` is no OCI reference: {why}")]
    Reference { image: String, why: String },
    #[error("{image} is no Wasm component: {why}")]
    NotWasm { image: String, why: String },
    #[error("{image} has {bytes} bytes; at most {ARTIFACT_BYTES_MAX} are taken")]
    TooLarge { image: String, bytes: u64 },
    #[error("{}: {why}", path.display())]
    Credentials { path: PathBuf, why: String },
    #[error("pulling {image}: {why}")]
    Registry { image: String, why: String },
}

/// Pulls `image`. Registries on loopback and those in `insecure` (`host:port`) are spoken to over plain HTTP.
pub(crate) async fn pull(image: &str, insecure: &[String]) -> Result<Pulled, OciError> {
    let reference: Reference = image
        .parse()
        .map_err(|why: oci_client::ParseError| OciError::Reference { image: image.into(), why: why.to_string() })?;
    let auth = credentials(reference.resolve_registry())?;
    let client = client(&reference, insecure);
    let registry = |why: oci_client::errors::OciDistributionError| OciError::Registry {
        image: image.into(),
        why: with_causes(&why),
    };
    let (manifest, _) = client.pull_image_manifest(&reference, &auth).await.map_err(registry)?;
    let layer = wasm_layer(image, &manifest)?;
    let digest = layer
        .digest
        .parse()
        .map_err(|why: trellis_wire::IdError| OciError::NotWasm { image: image.into(), why: why.to_string() })?;
    let mut blob = client.pull_blob_stream(&reference, layer).await.map_err(registry)?;
    let mut bytes = Vec::new();
    while let Some(piece) = blob.stream.next().await {
        bytes.extend_from_slice(
            &piece.map_err(|why| OciError::Registry { image: image.into(), why: with_causes(&why) })?,
        );
        // A registry may send more than the manifest said.
        check_size(image, bytes.len() as u64)?;
    }
    Ok(Pulled { bytes, digest })
}

fn client(reference: &Reference, insecure: &[String]) -> Client {
    let registry = reference.resolve_registry();
    let plain = is_loopback(registry) || insecure.iter().any(|named| named == registry);
    Client::new(ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("trellis/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// Whether `host[:port]` is this machine: only there is plain HTTP the default.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The one layer that is the component. Tools disagree on its media type: `application/wasm` (the Wasm OCI artifact
/// guidance, wasmCloud, wkg), `application/vnd.wasm.content.layer.v1+wasm` (older tools).
fn wasm_layer<'m>(image: &str, manifest: &'m OciImageManifest) -> Result<&'m OciDescriptor, OciError> {
    let not_wasm = |why: String| OciError::NotWasm { image: image.into(), why };
    let layers: Vec<_> = manifest.layers.iter().filter(|layer| layer.media_type.contains("wasm")).collect();
    match layers.as_slice() {
        [layer] => check_size(image, u64::try_from(layer.size).unwrap_or(u64::MAX)).map(|()| *layer),
        [] => {
            let found: Vec<_> = manifest.layers.iter().map(|layer| layer.media_type.as_str()).collect();
            Err(not_wasm(format!("its layers are {}, none is application/wasm", found.join(", "))))
        }
        _ => Err(not_wasm("it has several Wasm layers".into())),
    }
}

fn check_size(image: &str, bytes: u64) -> Result<(), OciError> {
    if bytes > ARTIFACT_BYTES_MAX { Err(OciError::TooLarge { image: image.into(), bytes }) } else { Ok(()) }
}

/// Docker's `config.json`, as far as it holds credentials.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Default, Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// What `docker login` left for `registry` in `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
fn credentials(registry: &str) -> Result<RegistryAuth, OciError> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    let Some(path) = folder.map(|folder| folder.join("config.json")) else { return Ok(RegistryAuth::Anonymous) };
    match std::fs::read(&path) {
        Ok(text) => from_docker_config(&text, registry).map_err(|why| OciError::Credentials { path, why }),
        Err(none) if none.kind() == std::io::ErrorKind::NotFound => Ok(RegistryAuth::Anonymous),
        Err(why) => Err(OciError::Credentials { path, why: why.to_string() }),
    }
}

fn from_docker_config(text: &[u8], registry: &str) -> Result<RegistryAuth, String> {
    let config: DockerConfig = serde_json::from_slice(text).map_err(|why| format!("is no Docker config: {why}"))?;
    let is_hub = ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&registry);
    let hub = is_hub.then_some("https://index.docker.io/v1/");
    let names = [registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")];
    let found = names.iter().map(String::as_str).chain(hub).find_map(|name| config.auths.get(name));
    let Some(found) = found else { return Ok(RegistryAuth::Anonymous) };
    if let (Some(username), Some(password)) = (&found.username, &found.password) {
        return Ok(RegistryAuth::Basic(username.clone(), password.clone()));
    }
    // `docker login` with a credential store leaves an entry without `auth`: the store is not asked.
    let Some(auth) = &found.auth else {
        return Err(format!(
            "the credentials of {registry} are in a credential store, which is not supported; \
                            put `auth` (base64 of user:password) into this file"
        ));
    };
    let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((username, password)) => Ok(RegistryAuth::Basic(username.into(), password.into())),
        None => Err(format!("`auth` of {registry} is not base64 of user:password")),
    }
}

/// An error with all its causes: reqwest hides `connection refused` in the third.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        let why_text = why.to_string();
        if !text.contains(&why_text) {
            text.push_str(": ");
            text.push_str(&why_text);
        }
        cause = why.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_docker_login() {
        let config = br#"{"auths": {"127.0.0.1:5000": {"auth": "YWxpY2U6c2VjcmV0"}, "https://index.docker.io/v1/":
            {"username": "bob", "password": "pw"}, "stored.example": {}}}"#;
        let basic = |user: &str, password: &str| Ok(RegistryAuth::Basic(user.into(), password.into()));
        assert_eq!(from_docker_config(config, "127.0.0.1:5000"), basic("alice", "secret"));
        assert_eq!(from_docker_config(config, "index.docker.io"), basic("bob", "pw"));
        for stranger in ["ghcr.io", "notdocker.io", "docker.io.example"] {
            assert_eq!(from_docker_config(config, stranger), Ok(RegistryAuth::Anonymous), "{stranger}");
        }
        assert!(from_docker_config(config, "stored.example").unwrap_err().contains("credential store"));
        assert!(from_docker_config(b"{", "ghcr.io").unwrap_err().contains("no Docker config"));
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for registry in ["localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["ghcr.io", "localhost.example:5000", "10.0.0.1:5000"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
