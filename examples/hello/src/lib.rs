//! The smallest HTTP component: it greets.
//!
//! Deploy it with `trellis deploy examples/hello/app.yaml`, then `curl 'localhost:8080/?name=you'`.

use trellis_component::http::{IntoResponse, Request};

trellis_component::http!(handle);

fn handle(request: Request) -> impl IntoResponse {
    let name = request.query_value("name").unwrap_or_else(|| "world".into());
    format!("hello {name}\n")
}
