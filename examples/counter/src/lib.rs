//! Counts how often each path was asked for: HTTP in front, a key-value store behind.
//!
//! Deploy it with `trellis deploy examples/counter/app.yaml`, then `curl localhost:8081/tea`.

use trellis_component::http::{Request, Response};
use trellis_component::keyvalue::Store;

trellis_component::http!(handle);

fn handle(request: Request) -> Result<Response, Response> {
    let path = request.path();
    // One step in the store: no count is lost, however many sandboxes count at the same time.
    let count = Store::open_default()?.increment(&format!("visits{path}"), 1)?;
    Ok(Response::text(format!("{path}: {count}\n")))
}
