//! What a run may use, what all runs may use, and that nothing is left of a run.

use std::time::Duration;

use trellis_wire::{Error, Event, Failure, Fault};

use crate::lab::{Lab, MEBIBYTE, get, response};

#[tokio::test]
async fn a_guest_over_its_own_memory_is_at_fault() {
    let mut lab = Lab::new();
    lab.limits.memory_bytes = 16 * MEBIBYTE;
    for guest in ["classic", "modern"] {
        let fault = lab.get(guest, "/grow").await.unwrap_err();
        assert_eq!(fault, Failure::Fault(Fault::OutOfMemory { limit_bytes: 16 * MEBIBYTE }), "{guest}");
        lab.all_gone().await;
    }
    lab.limits.memory_bytes = 60_000;
    let fault = lab.get("classic", "/hello").await.unwrap_err();
    assert_eq!(fault, Failure::Fault(Fault::OutOfMemory { limit_bytes: 60_000 }), "too little even to begin");
}

#[tokio::test]
async fn a_node_without_memory_is_busy() {
    let lab = Lab::with(20, 24 * MEBIBYTE);
    let other = response(lab.get("classic", "/stream").await);
    let Err(Failure::Error(busy)) = lab.get("classic", "/grow").await else { panic!("it is not the guest's fault") };
    assert!(matches!(&busy, Error::Busy(why) if why.contains("--sandbox-memory")), "{busy}");
    assert!(busy.is_retryable());
    drop(other);
    lab.all_gone().await;
    assert_eq!(lab.text("classic", "/hello").await, "hello", "the memory is there again");
    // One has room, and a second beside it has too little even to begin.
    let room = one_and_a_half_of("classic").await;
    let lab = Lab::with(20, room);
    let other = response(lab.get("classic", "/stream").await);
    let busy = lab.get("classic", "/hello").await.unwrap_err();
    assert!(matches!(busy, Failure::Error(Error::Busy(_))), "{busy}");
    drop(other);
    lab.all_gone().await;
}

/// Half again the memory of a guest that streams.
async fn one_and_a_half_of(guest: &str) -> u64 {
    let lab = Lab::new();
    let _streaming = response(lab.get(guest, "/stream").await);
    lab.engine.memory_bytes() * 3 / 2
}

#[tokio::test]
async fn a_guest_that_needs_more_than_the_whole_node_has_is_at_fault() {
    let lab = Lab::with(20, 24 * MEBIBYTE);
    assert!(lab.limits.memory_bytes > 24 * MEBIBYTE);
    let fault = lab.get("classic", "/grow").await.unwrap_err();
    assert_eq!(fault, Failure::Fault(Fault::OutOfMemory { limit_bytes: 24 * MEBIBYTE }));
    lab.all_gone().await;
}

/// Grows its table until it cannot, then traps.
const TABLES: &str = r#"(component
    (core module $m
        (table $t 1 funcref)
        (func (export "run") (result i32)
            (loop $again
                (br_if $again (i32.ge_s (table.grow $t (ref.null func) (i32.const 1000)) (i32.const 0))))
            unreachable))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $export (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $export)))"#;

#[tokio::test]
async fn tables_are_part_of_a_guests_memory() {
    let mut lab = Lab::new();
    lab.limits.memory_bytes = 100_000;
    let fault = lab.run(TABLES, Event::Run(vec![])).await.unwrap_err();
    assert_eq!(fault, Failure::Fault(Fault::OutOfMemory { limit_bytes: 100_000 }));
    lab.all_gone().await;
}

#[tokio::test]
async fn handles_and_headers_are_bounded() {
    let lab = Lab::new();
    let Err(Failure::Fault(Fault::Trap(why))) = lab.get("classic", "/hoard").await else { panic!("it hoards") };
    // Which of the two bounds is met first is wasmtime's.
    assert!(["handle limit exceeded", "no free keys"].iter().any(|bound| why.contains(bound)), "{why}");
    assert_eq!(lab.text("classic", "/headers-16").await, "Ok(())");
    let Err(Failure::Fault(Fault::Trap(why))) = lab.get("classic", "/headers-64").await else { panic!("they fit") };
    assert!(why.contains("size of fields exceeds limit"), "{why}");
    lab.all_gone().await;
}

#[tokio::test]
async fn a_node_without_a_free_sandbox_is_busy_at_once() {
    let lab = Lab::with(1, 1024 * MEBIBYTE);
    let component = lab.component("classic");
    let streaming = response(component.run(get("/stream"), lab.setup()).await);
    let begun = std::time::Instant::now();
    let Err(Failure::Error(Error::Busy(why))) = component.run(get("/hello"), lab.setup()).await else {
        panic!("it ran")
    };
    assert!(why.contains("--max-sandboxes") && begun.elapsed() < Duration::from_millis(500), "{why}");
    drop(streaming);
    lab.all_gone().await;
    assert_eq!(lab.text("classic", "/hello").await, "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sandboxes_at_once_give_everything_back() {
    let lab = Lab::with(50, 1024 * MEBIBYTE);
    let (classic, modern) = (lab.component("classic"), lab.component("modern"));
    let runs = (0..200).map(|i| {
        let component = if i % 2 == 0 { classic.clone() } else { modern.clone() };
        let path = ["/hello", "/panic", "/stream", "/break", "/outgoing"][i % 5];
        let setup = lab.setup();
        tokio::spawn(async move { component.run(get(path), setup).await.map(drop) })
    });
    let (mut good, mut bad, mut busy) = (0, 0, 0);
    for run in runs.collect::<Vec<_>>() {
        match run.await.unwrap() {
            Ok(()) => good += 1,
            Err(Failure::Fault(_)) => bad += 1,
            Err(Failure::Error(Error::Busy(_))) => busy += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(good + bad + busy, 200);
    assert!(good > 0 && bad > 0);
    lab.all_gone().await;
}
