//! Greets over HTTP, as a component of WASI 0.3 does: for the tests and benches of the host. No SDK, so that it runs under
//! `wasmtime serve` as well.

wit_bindgen::generate!({
    path: "../../../sdk/wit",
    inline: "
        package test:guest;
        world hello-async {
            include wasi:http/service@0.3.0;
        }",
    world: "test:guest/hello-async",
    generate_all,
});

use exports::wasi::http0_3_0::handler::Guest;
use wasi::http0_3_0::types::{ErrorCode, Fields, Request, Response};

struct Hello;

impl Guest for Hello {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        let (mut body, reader) = wit_stream::new();
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(Fields::new(), Some(reader), trailers_reader);
        wit_bindgen::spawn_local(async move {
            body.write_all(b"hello world\n".to_vec()).await;
            drop(body);
            drop(trailers.write(Ok(None)).await);
        });
        Ok(response)
    }
}

export!(Hello);
