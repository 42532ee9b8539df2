//! Tokens with roles, and TLS, on the admin API of a real node.

use std::path::{Path, PathBuf};

use crate::node::{DataDir, Node};
use crate::trellis::{command, trellis};

const TOKENS: &str = "read=looks,deploy=changes";

/// A certificate for 127.0.0.1 and its key.
fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=trellis",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=CA:FALSE",
            "-out",
        ])
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}

#[test]
fn a_token_does_what_its_role_allows() {
    let environment = [("TRELLIS_ADMIN_TOKEN_FOR", TOKENS), ("TRELLIS_ADMIN_TOKEN", "all")];
    let node = Node::start_with(&DataDir::new(), &[], &environment);
    let ask = |token: &str, args: &[&str]| node.trellis(&[args, &["--admin-token", token]].concat());
    let id = node.banner.iter().find_map(|line| line.strip_prefix("node ")).unwrap().trim();
    for token in ["looks", "changes", "all"] {
        ask(token, &["apps"]).ok();
    }
    let denied = ask("looks", &["config", "put", "a", "b=c"]).failed(1);
    assert!(denied.contains("this needs a token with role deploy, and the one given has role read"), "{denied}");
    ask("changes", &["config", "put", "a", "b=c"]).ok();
    let denied = ask("changes", &["drain", id]).failed(1);
    assert!(denied.contains("this needs a token with role admin, and the one given has role deploy"), "{denied}");
    ask("all", &["drain", id]).ok();
    assert!(ask("nothing", &["apps"]).failed(1).contains("the bearer token is another one"));
    assert!(node.trellis(&["apps"]).failed(1).contains("a bearer token is needed"));
}

#[test]
fn beyond_loopback_the_admin_api_speaks_tls_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(folder.path());
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let refused = |more: &[&str]| {
        let mut up = command();
        up.args(["up", "--admin", "0.0.0.0:0", "--admin-token", "s3cret", "--data-dir"])
            .arg(folder.path().join("data"));
        let ended = up.args(more).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        String::from_utf8(ended.stderr).unwrap()
    };
    assert!(refused(&[]).contains("tokens would go there in clear: give --admin-tls-cert"));
    let missing = refused(&["--admin-tls-cert", "/nowhere/cert.pem", "--admin-tls-key", key]);
    assert!(missing.contains("--admin-tls-cert /nowhere/cert.pem"), "{missing}");

    let node = Node::start(&["--admin-token", "s3cret", "--admin-tls-cert", certificate, "--admin-tls-key", key]);
    assert!(node.admin.starts_with("https://127.0.0.1:"), "{}", node.admin);
    let ask = |more: &[&str]| node.trellis(&[&["apps", "--admin-token", "s3cret"], more].concat());
    assert!(ask(&["--admin-ca", certificate]).ok().starts_with("no apps yet"));
    let untrusted = ask(&[]).failed(1);
    assert!(untrusted.contains("is not trusted") && untrusted.contains("--admin-ca names"), "{untrusted}");
    let clear = node.admin.replacen("https", "http", 1);
    assert_eq!(trellis(&["apps", "--admin", &clear]).code, 1, "no plain HTTP on this port");
}
