//! A thousand sandboxes at once: as many requests whose handler waits, each in its own.

use std::thread;
use std::time::{Duration, Instant};

use crate::Scale;
use crate::apps::{app, component, http};
use crate::client::get;
use crate::node::Node;
use crate::paced::paced;
use crate::table::{Table, mib};

pub(crate) fn bench(scale: Scale) -> String {
    let (sandboxes, waits) = (scale.or(1_000, 20), Duration::from_secs(scale.or(5, 2)));
    let node = Node::start(&[]);
    let scaler = format!("{{type: spreadscaler, properties: {{instances: {sandboxes}}}}}");
    node.deploy(&app(
        "bench",
        &[component("guest", "test_misbehave", "", &[scaler]), http("guest", "max_waiting: '0'")],
    ));
    let at = node.at("bench");
    get(at, "/").unwrap().ok();
    let (before, began) = (node.memory_bytes(), Instant::now());
    let path = format!("/slow?ms={}", waits.as_millis());
    // Each asks once: the second time would be after its end.
    let asking = thread::spawn(move || paced(at, &path, sandboxes, Duration::ZERO, Duration::from_secs(1)));
    let (mut alive, mut memory) = (0, 0);
    while !asking.is_finished() {
        alive = alive.max(running(&node));
        memory = memory.max(node.memory_bytes());
        thread::sleep(Duration::from_millis(50));
    }
    let took = began.elapsed();
    let came = asking.join().unwrap();
    let mut table = Table::new(&["what", "figure", "goal"]);
    let mut row = |what: &str, figure: String, goal: &str| table.row(&[what.into(), figure, goal.into()]);
    row("alive at once", alive.to_string(), &sandboxes.to_string());
    row("answered", came.accepted.len().to_string(), &sandboxes.to_string());
    row("memory before, and with all of them", format!("{}, {}", mib(before), mib(memory)), "");
    row("from the first request to the last reply", format!("{:.2} s", took.as_secs_f64()), "");
    format!(
        "{sandboxes} requests at once to a Rust component that waits for {} s.\n\n{}",
        waits.as_secs(),
        table.finish()
    )
}

fn running(node: &Node) -> u32 {
    let page = get(node.api(), "/metrics").unwrap().ok();
    page.lines().find_map(|line| line.strip_prefix("trellis_sandboxes_running ")?.parse().ok()).unwrap()
}
