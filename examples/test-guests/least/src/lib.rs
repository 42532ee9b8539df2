//! Answers over HTTP with nothing: the smallest guest that a request can wake, for benches of the host that need thousands.

wit_bindgen::generate!({
    path: "../../../sdk/wit",
    inline: "
        package test:guest;
        world least {
            export wasi:http/incoming-handler@0.2.12;
        }",
    world: "test:guest/least",
    generate_all,
});

use exports::wasi::http0_2_12::incoming_handler::Guest;
use wasi::http0_2_12::types::{Fields, IncomingRequest, OutgoingResponse, ResponseOutparam};

struct Least;

impl Guest for Least {
    fn handle(_: IncomingRequest, answer: ResponseOutparam) {
        ResponseOutparam::set(answer, Ok(OutgoingResponse::new(Fields::new())));
    }
}

export!(Least);
