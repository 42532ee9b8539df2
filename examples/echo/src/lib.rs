//! Answers each message with its own body. Written as for wasmCloud 1.x, with `wit-bindgen` alone: nothing in it knows
//! of Trellis.

wit_bindgen::generate!({
    path: ["../../sdk/wit/deps/wasmcloud-messaging-0.2.0.wit", "wit"],
    world: "example:echo/echo",
    generate_all,
});

use exports::wasmcloud::messaging::handler::Guest;
use wasmcloud::messaging::consumer;
use wasmcloud::messaging::types::BrokerMessage;

struct Echo;

impl Guest for Echo {
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        let Some(reply_to) = message.reply_to else {
            println!("{}: {} bytes, and nobody awaits an answer", message.subject, message.body.len());
            return Ok(());
        };
        consumer::publish(&BrokerMessage { subject: reply_to, body: message.body, reply_to: None })
    }
}

export!(Echo);
