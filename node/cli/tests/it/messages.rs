//! Messages on `trellis://embedded`, end to end: published by hand and by guests, to handlers of both kinds.

use serde_json::{Value, json};

use crate::apps::{app, component, eventually, examples, http, image, link, link_from, provider, waking};
use crate::client::{get, send};
use crate::node::Node;
use crate::trellis::fed;

/// Handlers of both kinds, and a window on the store that they write to: `seen/{body}` counts, `last/{body}` tells.
fn handlers() -> String {
    handlers_with(&[])
}

/// The same, with further traits of the handler of our kind.
fn handlers_with(traits: &[String]) -> String {
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let wakes = [
        link_from("ours", "trellis:messaging/handler", "ours", "{subject: 'ours.*.in'}"),
        link_from("theirs", "wasmcloud:messaging/handler", "theirs", "{subscriptions: 'theirs.>, other'}"),
    ];
    let bus = "{name: bus, config: [{name: may, properties: {allowed_subjects: 'theirs.>'}}]}";
    let publishes = link(bus, "trellis:messaging/producer");
    let consumes = link("bus", "wasmcloud:messaging/consumer");
    app(
        "mail",
        &[
            component("window", "test_kv", "", &[store()]),
            component("ours", "test_messages", "limits: {timeout: 5s}", &[&[store(), publishes], traits].concat()),
            component("theirs", "test_wasmcloud_messages", "", &[store(), consumes]),
            http("window", ""),
            provider("store", "embedded"),
            waking("bus", "embedded", &wakes),
        ],
    )
}

fn publish(node: &Node, subject: &str, body: &str) -> String {
    node.trellis(&["publish", subject, body, "--header", "by=hand"]).ok()
}

/// What the store holds under a key, once there is something.
#[track_caller]
fn stored(node: &Node, key: &str) -> String {
    let at = node.at("mail");
    eventually(&format!("{key} is stored"), || {
        get(at, &format!("/{key}")).ok().filter(|response| response.status == 200).map(|response| response.text())
    })
}

/// Events and faults of a component of the app.
fn counts(node: &Node, name: &str) -> (u64, u64) {
    let status = node.status("mail");
    let components = status["components"].as_array().unwrap();
    let holder = &components.iter().find(|one| one["name"] == name).unwrap()["holders"][0];
    (holder["events"].as_u64().unwrap(), holder["faults"].as_u64().unwrap())
}

#[track_caller]
fn until_counted(node: &Node, name: &str, expected: (u64, u64)) {
    eventually(&format!("{name} had {expected:?} events and faults"), || {
        (counts(node, name) == expected).then_some(())
    });
}

#[test]
fn a_message_wakes_handlers_of_both_kinds() {
    let node = Node::start(&[]);
    node.deploy(&handlers());
    assert_eq!(publish(&node, "ours.a.in", "fine"), "published to ours.a.in via embedded, to 1 subscription\n");
    assert_eq!(stored(&node, "last/fine"), "ours.a.in attempt=1 by=hand");
    publish(&node, "theirs.a.b.c", "good");
    assert_eq!(stored(&node, "last/good"), "theirs.a.b.c");
    publish(&node, "other", "also");
    assert_eq!(stored(&node, "last/also"), "other");

    for nobody in ["ours.in", "ours.a.b.in", "theirs", "elsewhere"] {
        assert!(publish(&node, nobody, "lost").ends_with("no link subscribes to it\n"), "{nobody}");
    }
    for wrong in ["ours.*.in", "ours..in", "$JS.API.INFO", ""] {
        node.trellis(&["publish", wrong, "x"]).failed(1);
    }
    assert_eq!((counts(&node, "ours"), counts(&node, "theirs")), ((1, 0), (2, 0)));
}

#[test]
fn every_message_has_a_fresh_sandbox() {
    let node = Node::start(&[]);
    node.deploy(&handlers());
    for number in 0..20 {
        publish(&node, "ours.a.in", &number.to_string());
        let about = stored(&node, &format!("about/{number}"));
        assert!(about.starts_with("source=default ") && about.ends_with(" had=0"), "{about}");
    }
    until_counted(&node, "ours", (20, 0));
}

#[test]
fn whatever_a_handler_says_the_next_message_is_handled() {
    let node = Node::start(&[]);
    node.deploy(&handlers());
    for word in ["retry", "retry-soon", "dead-letter", "drop", "trap", "loop"] {
        publish(&node, "ours.a.in", word);
    }
    publish(&node, "ours.a.in", "after");
    assert_eq!(stored(&node, "last/after"), "ours.a.in attempt=1 by=hand");
    // Embedded subjects deliver once: what was refused is gone, and a fault is counted.
    until_counted(&node, "ours", (7, 2));
    for word in ["retry", "trap", "loop"] {
        assert_eq!(stored(&node, &format!("seen/{word}")), "1");
    }
    for word in ["retry", "trap", "end"] {
        publish(&node, "theirs.x", word);
    }
    assert_eq!(stored(&node, "last/end"), "theirs.x");
    until_counted(&node, "theirs", (3, 1));
    let faults: Vec<Value> = node.logs("mail").into_iter().filter(|line| line["context"] == "fault").collect();
    let of = |name: &str| faults.iter().filter(|line| line["component"] == name).count();
    assert_eq!((of("ours"), of("theirs")), (2, 1), "{faults:#?}");
    for refused in ["asked for another try: as asked", "gave up on it: as asked", "dropped a message: as asked"] {
        assert!(node.log().contains(refused), "{refused} is missing in:\n{}", node.log());
    }
}

#[test]
fn what_a_handler_publishes_wakes_another() {
    let node = Node::start(&[]);
    node.deploy(&handlers());
    publish(&node, "ours.a.in", "publish theirs.from.ours");
    let keys = || get(node.at("mail"), "/?keys").unwrap().ok();
    eventually("the other was woken", || keys().contains("last/from ours.a.in\n").then_some(()));
    // What a handler publishes before it traps is held back, and goes with it.
    publish(&node, "ours.b.in", "publish-then-trap theirs.never");
    until_counted(&node, "ours", (2, 1));

    // What its link does not allow is denied at the call, not once it is too late to be told.
    publish(&node, "ours.c.in", "publish other");
    let denied = || node.log().contains("`allowed_subjects` does not name `other`");
    eventually("the denial is told", || denied().then_some(()));

    // A question that a component answers.
    publish(&node, "ours.a.in", "request theirs.question");
    assert_eq!(stored(&node, "answer/theirs-question"), "answer to theirs.question");
    until_counted(&node, "ours", (4, 1));
    until_counted(&node, "theirs", (2, 0));
    assert!(!keys().contains("from ours.b.in"), "{}", keys());
}

#[test]
fn messages_wait_for_permits_and_none_is_lost() {
    let node = Node::start(&[]);
    node.deploy(&handlers_with(&["{type: spreadscaler, properties: {instances: 2}}".into()]));
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let body = json!({ "subject": "ours.many.in", "body_base64": "c2xlZXAgMQ==", "headers": [] }).to_string();
    let json = [("content-type", "application/json")];
    for _ in 0..200 {
        assert_eq!(send(admin, "POST", "/v1/publish", &json, body.as_bytes()).unwrap().status, 200);
    }
    until_counted(&node, "ours", (200, 0));
    let at = node.at("mail");
    eventually("all were handled", || (get(at, "/seen/sleep-1").unwrap().text() == "200").then_some(()));
}

#[test]
fn an_order_gets_its_invoice() {
    let node = Node::start(&[]);
    let manifest = std::fs::read_to_string(examples().join("orders/app.yaml")).unwrap();
    let manifest = manifest.replace("127.0.0.1:8080", "127.0.0.1:0");
    let manifest = ["orders_api", "orders_invoice", "orders_report"]
        .iter()
        .fold(manifest, |text, guest| text.replace(&format!("file://../build/{guest}.wasm"), &image(guest)));
    node.deploy(&manifest);
    let at = node.at("orders");
    assert_eq!(get(at, "/health").unwrap().ok(), "ok\n");
    let order = json!({ "customer": "Ada", "lines": [{ "article": "tea", "quantity": 2, "price_cents": 450 }] });
    let placed = send(at, "POST", "/orders", &[], order.to_string().as_bytes()).unwrap();
    assert_eq!((placed.status, placed.header("location")), (201, Some("/orders/1")), "{}", placed.text());
    let invoice = eventually("the invoice is there", || {
        let order: Value = serde_json::from_str(&get(at, "/orders/1").unwrap().ok()).unwrap();
        (!order["invoice"].is_null()).then(|| order["invoice"].clone())
    });
    assert_eq!(invoice, json!({ "total_cents": 900, "currency": "EUR" }));

    let wrong = send(at, "POST", "/orders", &[], br#"{"customer":"","lines":[]}"#).unwrap();
    assert!(wrong.status == 400 && wrong.text().contains("`customer` is empty"), "{}", wrong.text());
    let reported = node.trellis(&["invoke", "orders/report", "--top", "3"]).ok();
    assert_eq!(reported, "1 invoices, 9.00 in all\norder 1: 9.00\n");
    let logged = node.trellis(&["logs", "orders/invoice"]).ok();
    assert!(logged.contains("order 1: 900 cents EUR, attempt 1"), "{logged}");
}

#[test]
fn a_message_that_is_too_large_is_refused_with_what_is_taken() {
    let node = Node::start(&[]);
    let said = fed(&["publish", "mail", "-", "--admin", &node.admin], &vec![b'a'; 3 << 20]).failed(1);
    assert!(said.contains("a message of 3145732 bytes is too large; at most 1048576 are taken"), "{said}");
}
