//! A component as wasmCloud 1.x users have them: `wasmcloud:messaging@0.2.0` and `wasi:keyvalue`, built with
//! wit-bindgen alone. `ok` and anything unknown is taken, `retry` is refused, `trap` traps, and a message that awaits
//! an answer gets one. What came is counted under `seen/{body}`, the latest subject stands under `last/{body}`.

#[expect(unsafe_code, reason = "exporting a function takes it; wit-bindgen writes it")]
mod bindings {
    use super::Component;

    wit_bindgen::generate!({
        inline: "
            package test:wasmcloud-messages;
            world component {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
                import wasmcloud:messaging/consumer@0.2.0;
                export wasmcloud:messaging/handler@0.2.0;
            }
        ",
        path: "../../../sdk/wit",
        generate_all,
    });

    export!(Component with_types_in self);
}

use bindings::exports::wasmcloud::messaging::handler::Guest;
use bindings::wasi::keyvalue::{atomics, store};
use bindings::wasmcloud::messaging::consumer;
use bindings::wasmcloud::messaging::types::BrokerMessage;

struct Component;

impl Guest for Component {
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        note(&message.subject, &body).map_err(|why| format!("{why:?}"))?;
        if let Some(inbox) = message.reply_to {
            let answer = format!("answer to {}", message.subject).into_bytes();
            consumer::publish(&BrokerMessage { subject: inbox, body: answer, reply_to: None })?;
        }
        match body.as_str() {
            "retry" => Err("as asked".into()),
            "trap" => panic!("as asked"),
            _ => Ok(()),
        }
    }
}

fn note(subject: &str, body: &str) -> Result<(), store::Error> {
    let store = store::open("default")?;
    atomics::increment(&store, &format!("seen/{body}"), 1)?;
    store.set(&format!("last/{body}"), subject.as_bytes())
}
