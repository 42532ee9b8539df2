//! The admin API: HTTP and JSON, for the CLI, the dashboard and scripts. `routes::routes` is the one table
//! of what there is; the router and the OpenAPI document are both made from it.

mod access;
mod guard;
mod metrics;
mod openapi;
mod problem;
mod routes;
mod tls;
pub mod types;

use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

pub use access::{Role, Tokens};
pub use tls::TlsFiles;
pub(crate) use tls::TlsListener;

/// Where the API listens.
pub(crate) enum Door {
    /// In clear.
    Clear(TcpListener),
    /// With TLS.
    Tls(TlsListener),
}

/// Serves the API until `shutdown`.
pub(crate) async fn serve(node: Arc<Node>, door: Door, shutdown: CancellationToken) {
    let (router, shutdown) = (router(&node), shutdown.cancelled_owned());
    let served = match door {
        Door::Clear(listener) => axum::serve(listener, router).with_graceful_shutdown(shutdown).await,
        Door::Tls(listener) => axum::serve(listener, router).with_graceful_shutdown(shutdown).await,
    };
    if let Err(why) = served {
        tracing::error!("the admin API ended: {why}");
    }
}

fn router(node: &Arc<Node>) -> Router {
    // Each route is guarded by what the table says it needs; what is no route at all tells nobody anything.
    let guarded = |role| axum::middleware::from_fn_with_state((node.clone(), role), guard::check);
    let table = routes::routes()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, (route.serve)().layer(guarded(route.role))));
    table.fallback(problem::no_such_path).method_not_allowed_fallback(problem::no_such_method).with_state(node.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http_body_util::{BodyExt, Full};
    use hyper::body::Bytes;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    use crate::Options;

    fn options(data_dir: &std::path::Path) -> Options {
        Options {
            data_dir: data_dir.to_owned(),
            admin: "127.0.0.1:0".parse().unwrap(),
            admin_tokens: Default::default(),
            admin_tls: None,
            admin_insecure: false,
            lattice: "test".parse().unwrap(),
            nats: None,
            bootstrap: false,
            join_token: None,
            allow_nodes: Default::default(),
            listen_host: None,
            labels: BTreeMap::new(),
            sandboxes_max: 10,
            sandbox_memory_bytes: 1 << 30,
            wasi_p3: true,
            oci_insecure: Vec::new(),
            edge: false,
            image_aliases: BTreeMap::new(),
            timings: Default::default(),
            care: Default::default(),
            secrets: Default::default(),
        }
    }

    async fn ask(method: &str, url: String) -> (u16, String) {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = http::Request::builder().method(method).uri(url).body(Full::default()).unwrap();
        let answer = client.request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_route_of_the_openapi_document_is_served_and_every_problem_is_json() {
        let data_dir = tempfile::tempdir().unwrap();
        let node = crate::start(options(data_dir.path())).await.unwrap();
        let base = format!("http://{}", node.admin());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(node.run(async { drop(stopped.await) }));

        let (status, text) = ask("GET", format!("{base}/openapi.json")).await;
        assert_eq!(status, 200);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut served = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                let url = format!("{base}{}", path.replace(['{', '}'], ""));
                let (status, body) = ask(&method.to_uppercase(), url).await;
                assert!(status != 405 && !body.contains("the admin API has no"), "{method} {path}: {status} {body}");
                if status >= 400 && method != "head" {
                    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
                    assert!(problem["error"].is_string() && problem["code"].is_string(), "{method} {path}: {body}");
                }
                served += 1;
            }
        }
        assert_eq!(served, super::routes::routes().len(), "each route is in the document once");
        let dangling = text.split("\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap());
        for name in dangling {
            assert!(document["components"]["schemas"][name].is_object(), "{name} is referred to and not described");
        }
        for (method, path, expected, says) in [
            ("GET", "/v2/apps", 404, "/openapi.json"),
            ("PATCH", "/v1/apps", 405, "/openapi.json"),
            ("GET", "/v1/logs?lines=many", 400, "lines"),
        ] {
            let (status, body) = ask(method, format!("{base}{path}")).await;
            assert_eq!(status, expected, "{body}");
            let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(problem["error"].as_str().unwrap().contains(says), "{body}");
        }

        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
    }
}
