//! A guest as it was written for wasmCloud 1.x: its messages, its link names, the configuration under its old name.

use exports::wasmcloud::messaging::handler::{BrokerMessage, Guest as Handler};
use wasi::config0_2_0_draft::runtime;
use wasi::keyvalue::store;
use wasmcloud::bus::lattice::{self, CallTargetInterface};
use wasmcloud::messaging::consumer;
use wasmcloud::secrets::{reveal, store as secrets};

wit_bindgen::generate!({
    path: "../../../../../sdk/wit",
    inline: "
        package test:guest;
        world older {
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:config/runtime@0.2.0-draft;
            import wasmcloud:messaging/consumer@0.2.0;
            import wasmcloud:bus/lattice@1.0.0;
            import wasmcloud:secrets/store@0.1.0-draft;
            import wasmcloud:secrets/reveal@0.1.0-draft;
            export wasmcloud:messaging/handler@0.2.0;
        }",
    world: "test:guest/older",
    generate_all,
});

struct Guest;
export!(Guest);

impl Handler for Guest {
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        match message.subject.as_str() {
            "ok" => Ok(()),
            "refuse" => Err(String::from_utf8_lossy(&message.body).into_owned()),
            "trap" => panic!("cannot handle it"),
            "config" => Err(format!("{:?}", runtime::get("greeting"))),
            "secret" => {
                let held = |name: &str| match secrets::get(name) {
                    Ok(secret) => format!("{:?}", reveal::reveal(&secret)),
                    Err(why) => format!("{why:?}"),
                };
                Err(format!("{} {}", held("password"), held("other")))
            }
            "publish" => consumer::publish(&BrokerMessage { subject: "out".into(), ..message }),
            "request" => {
                let answer = consumer::request("ask", b"?", 250)?;
                Err(format!("{answer:?}"))
            }
            "links" => {
                let opened = |name: &str| match store::open(name) {
                    Ok(bucket) => {
                        format!("{:?}", bucket.get("where").map(|v| v.map(|v| String::from_utf8(v).unwrap())))
                    }
                    Err(why) => format!("{why:?}"),
                };
                let before = opened("");
                let target = CallTargetInterface::new("wasi", "keyvalue", "store");
                lattice::set_link_name("second", vec![target]);
                let names = ["", "third", "nothing", "empty"].map(opened);
                Err(format!("{before} {}", names.join(" ")))
            }
            other => Err(format!("no such subject: {other}")),
        }
    }
}
