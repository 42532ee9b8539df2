//! The admin API: HTTP and JSON, for the CLI, the dashboard and scripts. `routes::routes` is the one table
//! of what there is; the router and the OpenAPI document are both made from it.

mod access;
mod front;
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

use crate::node::Node;

pub use access::{Role, Tokens};
pub(crate) use front::Front;
pub use tls::TlsFiles;
pub(crate) use tls::TlsListener;

/// Where the API listens.
pub(crate) enum Door {
    /// In clear.
    Clear(TcpListener),
    /// With TLS.
    Tls(TlsListener),
}

/// Serves the API until the front's shutdown.
pub(crate) async fn serve(front: Front, door: Door) {
    let shutdown = front.shutdown.clone().cancelled_owned();
    let router = Router::new().fallback(async move |request| front.answer(request).await);
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

    use super::{Role, routes};
    use crate::Options;

    /// Each route, and what a token must allow for it. `deploy/SECURITY.md` says it in words.
    const ROUTES: &str = "
        anyone  get     /healthz
        anyone  get     /readyz
        read    get     /metrics
        read    get     /openapi.json
        read    get     /v1/apps
        read    get     /v1/apps/{app}
        read    get     /v1/apps/{app}/dead-letters
        read    get     /v1/apps/{app}/explain
        read    get     /v1/apps/{app}/manifest
        read    head    /v1/artifacts/{digest}
        read    get     /v1/config
        read    get     /v1/config/{name}
        read    get     /v1/events
        read    get     /v1/lattice
        read    get     /v1/logs
        read    get     /v1/nodes
        read    get     /v1/schema/manifest
        read    get     /v1/triggers
        deploy  delete  /v1/apps/{app}
        deploy  post    /v1/apps/{app}/components/{component}/invoke
        deploy  post    /v1/apps/{app}/components/{component}/pause
        deploy  post    /v1/apps/{app}/components/{component}/resume
        deploy  delete  /v1/apps/{app}/dead-letters/{id}
        deploy  post    /v1/apps/{app}/dead-letters/{id}/replay
        deploy  post    /v1/apps/{app}/rollback
        deploy  post    /v1/apps/{app}/undeploy
        deploy  put     /v1/artifacts/{digest}
        deploy  delete  /v1/config/{name}
        deploy  put     /v1/config/{name}
        deploy  post    /v1/deploy
        deploy  post    /v1/publish
        admin   get     /v1/backup
        admin   post    /v1/nodes/thaw
        admin   delete  /v1/nodes/{node}
        admin   post    /v1/nodes/{node}/drain
        admin   put     /v1/nodes/{node}/labels
        admin   post    /v1/nodes/{node}/undrain
        admin   post    /v1/restore
        admin   put     /v1/timings
        admin   delete  /v1/trust/nodes/{key}
        admin   put     /v1/trust/nodes/{key}
        admin   put     /v1/trust/token
    ";

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
        ask_with(None, method, url).await
    }

    async fn ask_with(token: Option<&str>, method: &str, url: String) -> (u16, String) {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut request = http::Request::builder().method(method).uri(url);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::default()).unwrap();
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
        assert_eq!(served, routes::routes().len(), "each route is in the document once");
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

    #[tokio::test(flavor = "multi_thread")]
    async fn each_route_is_for_the_tokens_that_the_table_says_and_for_no_others() {
        let data_dir = tempfile::tempdir().unwrap();
        let mut options = options(data_dir.path());
        let tokens = [(Role::Read, "looks"), (Role::Deploy, "changes"), (Role::Admin, "all")];
        tokens.iter().for_each(|(role, token)| options.admin_tokens.add(*role, token));
        let node = crate::start(options).await.unwrap();
        let base = format!("http://{}", node.admin());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(node.run(async { drop(stopped.await) }));

        let mut told = Vec::new();
        for line in ROUTES.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [needs, method, path] = line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            told.push((method, path));
            let needed: Option<Role> = needs.parse().ok();
            // Names of nothing that there is: what is allowed finds nothing to do.
            let url = format!("{base}{}", path.replace(['{', '}'], ""));
            for (role, token) in
                std::iter::once((None, None)).chain(tokens.map(|(role, token)| (Some(role), Some(token))))
            {
                let (status, body) = ask_with(token, &method.to_uppercase(), url.clone()).await;
                let expected = match (needed, role) {
                    (Some(_), None) => Some((401, "\"unauthorized\"")),
                    (Some(needed), Some(role)) if role < needed => Some((403, "\"role\"")),
                    _ => None,
                };
                match expected {
                    Some((refused, code)) => {
                        assert!(
                            status == refused && (method == "head" || body.contains(code)),
                            "{line}, {role:?}: {status} {body}"
                        );
                    }
                    None => assert!(![401, 403, 405].contains(&status), "{line}, {role:?}: {status} {body}"),
                }
            }
        }
        told.sort_unstable();
        let mut served: Vec<_> = routes::routes().iter().map(|route| (route.method, route.path)).collect();
        served.sort_unstable();
        assert_eq!(told, served, "the table has each route once");

        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_waits_for_its_lattice_says_for_what() {
        let data_dir = tempfile::tempdir().unwrap();
        let mut options = options(data_dir.path());
        // Both were free a moment ago.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nowhere = free();
        options.admin = free();
        options.admin_tokens.add(Role::Read, "looks");
        options.nats = Some(trellis_bus::Options::urls([format!("nats://{nowhere}")]));
        let base = format!("http://{}", options.admin);
        let asking = async {
            for (method, path) in [("GET", "/readyz"), ("GET", "/v1/lattice"), ("POST", "/v1/deploy")] {
                let (status, body) = ask_with(Some("looks"), method, format!("{base}{path}")).await;
                let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
                let told = problem["error"].as_str().unwrap();
                let waits = format!("in no lattice yet: waiting for the NATS of lattice test: nats://{nowhere}");
                assert!((status, &problem["code"]) == (503, &"not_ready".into()) && told.contains(&waits), "{body}");
            }
            assert_eq!(ask("GET", format!("{base}/healthz")).await, (200, "ok\n".into()));
            for (path, status) in [("/readyz", 503), ("/v1/lattice", 401)] {
                assert_eq!(ask("GET", format!("{base}{path}")).await.0, status, "{path} without a token");
            }
        };
        // Its first poll binds the address.
        tokio::select! {
            biased;
            started = crate::start(options) => panic!("without NATS it is in no lattice: {:?}", started.err()),
            () = asking => {}
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_asks_how_the_lattice_is_while_it_changes_is_answered() {
        let data_dir = tempfile::tempdir().unwrap();
        let node = crate::start(options(data_dir.path())).await.unwrap();
        let base = format!("http://{}", node.admin());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(node.run(async { drop(stopped.await) }));

        let asking = (0..4).map(|_| {
            let url = format!("{base}/v1/lattice");
            tokio::spawn(async move {
                for _ in 0..300 {
                    assert_eq!(ask("GET", url.clone()).await.0, 200);
                }
            })
        });
        let asking = futures::future::join_all(asking.collect::<Vec<_>>());
        let changing = async {
            for n in 0.. {
                // Each is a change of the log: a config that there is not is refused there.
                assert_eq!(ask("DELETE", format!("{base}/v1/config/n{n}")).await.0, 404);
            }
        };
        let answered = async {
            tokio::select! { () = changing => unreachable!(), answered = asking => answered }
        };
        let answered = tokio::time::timeout(std::time::Duration::from_secs(60), answered).await;
        answered.expect("none waits for the other").into_iter().for_each(|asked| asked.unwrap());

        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
    }
}
