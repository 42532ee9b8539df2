//! Calls another component `?n=` times and answers with how many nanoseconds each call took, a line each, for the benches
//! of the host.

use std::time::Instant;

use trellis_component::http::{IntoResponse, Request};

mod calls {
    wit_bindgen::generate!({ path: "../ping/wit", world: "caller" });
}

trellis_component::http!(handle);

fn handle(request: Request) -> impl IntoResponse {
    let count = request.query_value("n").and_then(|count| count.parse().ok()).unwrap_or(1);
    let mut took = String::new();
    for number in 0..count {
        let began = Instant::now();
        assert_eq!(calls::test::calls::pinging::ping(number), number + 1, "the other component counts on");
        took += &format!("{}\n", began.elapsed().as_nanos());
    }
    took
}
