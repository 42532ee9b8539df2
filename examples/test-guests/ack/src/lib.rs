//! Takes every message: the least that a queue can wake, for the benches of the host.

wit_bindgen::generate!({
    path: "../../../sdk/wit",
    inline: "
        package test:guest;
        world ack {
            export trellis:messaging/handler@0.1.0;
        }",
    world: "test:guest/ack",
    generate_all,
});

use exports::trellis::messaging::handler::{Guest, Message, Refusal};

struct Ack;

impl Guest for Ack {
    fn handle(_: Message) -> Result<(), Refusal> {
        Ok(())
    }
}

export!(Ack);
