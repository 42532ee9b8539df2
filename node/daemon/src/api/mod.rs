//! The admin API: HTTP and JSON, for the CLI, the dashboard and scripts. `routes::routes` is the one table
//! of what there is; the router and the OpenAPI document are both made from it.

mod guard;
mod metrics;
mod openapi;
mod problem;
mod routes;
pub mod types;

use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Serves the API until `shutdown`.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener, shutdown: CancellationToken) {
    let served = axum::serve(listener, router(node)).with_graceful_shutdown(shutdown.cancelled_owned());
    if let Err(why) = served.await {
        tracing::error!("the admin API ended: {why}");
    }
}

fn router(node: Arc<Node>) -> Router {
    let table =
        routes::routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, (route.serve)()));
    table
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(axum::middleware::from_fn_with_state(node.clone(), guard::check))
        .with_state(node)
}
