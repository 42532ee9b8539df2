//! `examples/pipeline` as its README tells it: orders are checked, charged at a service that takes few at a time, put
//! aside when they cannot be, and replayed once what was wrong is put right.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::apps::{eventually, examples, free_address};
use crate::client::{get, send};
use crate::node::Node;

/// What the payment service takes at a time, as the manifest says it.
const AT_MOST: u64 = 4;

/// The example's payment service. Dropping it ends the process by its id.
struct Payment {
    at: SocketAddr,
    child: Child,
}

impl Payment {
    fn start() -> Self {
        let at = free_address();
        let child = Command::new("python3")
            .arg(examples().join("pipeline/payment.py"))
            .args(["--port", &at.port().to_string(), "--at-most", &AT_MOST.to_string(), "--slow-ms", "30"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let payment = Self { at, child };
        eventually("the payment service listens", || get(at, "/stats").ok().map(drop));
        payment
    }

    fn stats(&self) -> Value {
        serde_json::from_str(&get(self.at, "/stats").unwrap().ok()).unwrap()
    }

    #[track_caller]
    fn until_charged(&self, count: u64) {
        eventually(&format!("{count} orders are charged"), || (self.stats()["charged"] == count).then_some(()));
    }
}

impl Drop for Payment {
    fn drop(&mut self) {
        // It is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn manifest(payment: &Payment) -> String {
    let text = std::fs::read_to_string(examples().join("pipeline/app.yaml")).unwrap();
    let build = format!("file://{}/", examples().join("build").display());
    text.replace("file://../build/", &build).replace("127.0.0.1:9900", &payment.at.to_string())
}

fn place(node: &Node, order: &str) {
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let body = json!({ "subject": "orders", "body_base64": BASE64.encode(order), "headers": [] }).to_string();
    let placed = send(admin, "POST", "/v1/publish", &[("content-type", "application/json")], body.as_bytes()).unwrap();
    assert_eq!(placed.status, 200, "{}", placed.text());
}

fn letters(node: &Node) -> Vec<Value> {
    node.dead_letters("pipeline", &[])
}

#[test]
fn orders_are_charged_no_faster_than_the_service_takes_them_and_none_is_lost() {
    let payment = Payment::start();
    let secrets = examples().join("pipeline/secrets");
    let node = Node::start(&["--secrets", secrets.to_str().unwrap()]);
    node.deploy(&manifest(&payment));
    for number in 1..=100 {
        let coupon = if number % 5 == 0 { r#", "coupon": "SPRING""# } else { "" };
        place(&node, &format!(r#"{{"number": {number}, "customer": "Ada", "cents": 450{coupon}}}"#));
    }
    let poison = r#"{"number": 101, "customer": "Grace", "cents": 450, "coupon": "FRIENDS"}"#;
    for wrong in ["no order", r#"{"number": 102, "customer": " ", "cents": 1}"#, poison] {
        place(&node, wrong);
    }
    payment.until_charged(100);
    let stats = payment.stats();
    assert_eq!(
        (&stats["refused"], &stats["repeats"]),
        (&0.into(), &0.into()),
        "the service was never flooded: {stats}"
    );

    let dead = eventually("three orders are put aside", || Some(letters(&node)).filter(|dead| dead.len() == 3));
    let letter = dead.iter().find(|letter| letter["body_text"] == poison).unwrap();
    assert_eq!((&letter["reason"], &letter["attempts"]), (&"max-faults".into(), &3.into()));
    let fault = letter["faults"][2].as_str().unwrap();
    assert!(fault.contains("attempt to divide by zero") && fault.contains("wasm backtrace"), "{fault}");

    // The mistake is put right, and the order goes its way after all.
    node.deploy(&manifest(&payment).replace("coupon.FRIENDS: \"0\"", "coupon.FRIENDS: \"2\""));
    let id = letter["id"].as_str().unwrap();
    assert_eq!(node.trellis(&["dead-letters", "replay", "pipeline", id]).ok(), "1 replayed\n");
    payment.until_charged(101);
    assert_eq!(letters(&node).len(), 2, "what was never an order stays");
    assert_eq!(payment.stats()["repeats"], 0);
}
