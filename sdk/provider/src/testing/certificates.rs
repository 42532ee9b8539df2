//! Certificates for servers and links of tests, made by the openssl command, and what a link over TLS says when it is not
//! let in.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use trellis_wire::{Link, Secret};

use super::lab::{PATIENCE, link};
use crate::Provider;

/// Who a link is at its server.
pub const USER: &str = "shop";
/// What proves it.
pub const PASSWORD: &str = "hunter2-of-the-broker";
/// The CA that signed the server's certificate and the client's.
pub const CA: &str = "ca.pem";

const EXTENSIONS: &str = "[req]\ndistinguished_name = name\n[name]\n\
    [ca]\nbasicConstraints = critical, CA:TRUE\n\
    [server]\nsubjectAltName = IP:127.0.0.1, DNS:localhost\nextendedKeyUsage = serverAuth\n\
    [client]\nextendedKeyUsage = clientAuth\n";

/// A folder with `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`, and `other.pem`, a CA that signed nothing.
#[derive(Debug)]
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// Makes them, for a server at 127.0.0.1.
    ///
    /// # Panics
    /// There is no openssl, of 3.0 or later. A test without it would prove nothing.
    pub fn make() -> Self {
        let made = Self(tempfile::tempdir().expect("a temporary directory can be made"));
        std::fs::write(made.0.path().join("openssl.cnf"), EXTENSIONS).expect("a file can be written");
        made.openssl("ca", "ca", &[]);
        made.openssl("other", "ca", &[]);
        for kind in ["server", "client"] {
            made.openssl(kind, kind, &["-CA", CA, "-CAkey", "ca.key"]);
        }
        made
    }

    fn openssl(&self, name: &str, extensions: &str, signed: &[&str]) {
        let (subject, certificate, key) = (format!("/CN={name}"), format!("{name}.pem"), format!("{name}.key"));
        let made = Command::new("openssl")
            .current_dir(self.0.path())
            .args([
                "req",
                "-x509",
                "-config",
                "openssl.cnf",
                "-extensions",
                extensions,
                "-subj",
                &subject,
                "-days",
                "2",
            ])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-out", &certificate, "-keyout", &key])
            .args(signed)
            .output()
            .expect("openssl can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Where a file of them is.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// What a file of them holds.
    ///
    /// # Panics
    /// There is none of that name.
    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("it was made")
    }

    /// A link that has this login, this CA and, if it is to, the client's certificate as secrets.
    pub fn link(&self, package: &str, config: &[(&str, &str)], ca: &str, has_certificate: bool) -> Link {
        let mut link = link(package, &[config, &[("for", &format!("{ca} {has_certificate}"))]].concat());
        let mut give = |name: &str, text: &str| link.secrets.set(name, Secret::new(text));
        give("user", USER);
        give("password", PASSWORD);
        give("tls_ca", &self.text(ca));
        if has_certificate {
            give("tls_cert", &self.text("client.pem"));
            give("tls_key", &self.text("client.key"));
        }
        link
    }

    /// Checks that a server which asks for the client's certificate is not reached with another CA, nor without a certificate,
    /// and that the link says what to do and shows no secret.
    ///
    /// # Panics
    /// It is reached, or says something else.
    pub async fn are_asked_for(&self, provider: &impl Provider, config: &[(&str, &str)]) {
        let another_ca = self.link("messaging", config, "other.pem", true);
        self.is_refused(provider, another_ca, "is not of a CA that is trusted: check `tls_ca`").await;
        let nobody = self.link("messaging", config, CA, false);
        self.is_refused(provider, nobody, "check `tls_cert` and `tls_key`").await;
    }

    async fn is_refused(&self, provider: &impl Provider, link: Link, what: &str) {
        provider.grant(link.clone()).await.expect("a server that lets nobody in is no wrong configuration");
        let (began, mut heard) = (Instant::now(), String::new());
        while !heard.contains(what) {
            assert!(began.elapsed() < PATIENCE, "`{what}` is not in: {heard}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            heard = provider.health(&link.id).err().unwrap_or_default();
            let key = self.text("client.key");
            let secrets = [PASSWORD, key.lines().nth(1).expect("a key has lines")];
            assert!(!secrets.iter().any(|secret| heard.contains(secret)), "a secret is shown: {heard}");
        }
        provider.remove(&link.id).await;
    }
}
