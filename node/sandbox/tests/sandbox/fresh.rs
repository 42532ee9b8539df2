//! Nothing of one run is seen by another, with the pool set up as on a node: what keeps pages between runs to be fast must
//! not keep what is on them.

use std::sync::Arc;

use trellis_sandbox::Component;
use trellis_wire::{Event, Reply};

use crate::lab::{Lab, MEBIBYTE};

/// How often each guest runs on each of a few threads. There are more guests than the pool has slots, so that slots are used
/// again and again, by another guest than before as well.
const RUNS: usize = 4;
const THREADS: usize = 3;
const GUESTS: usize = 80;

/// Ends in `err` if anything is not as it was compiled: each byte of memory, what `grow` adds to it, a global, each entry
/// and the size of a table. Then it dirties all of that: 64 KiB of a large memory that is kept between runs, or 3 MiB, of
/// which most is not.
fn scribbler(text: &str, pages_dirtied: u32) -> String {
    let (first, last, bytes) = (1024, 1024 + text.len(), pages_dirtied * 65_536);
    format!(
        r#"(component
    (core module $m
        (memory 2 64)
        (data (i32.const {first}) "{text}")
        (global $dirty (mut i64) (i64.const 7))
        (table $t 8 64 funcref)
        (elem (i32.const 1) func $run)
        (func $zero (param $from i32) (param $to i32) (result i32)
            (loop $next
                (if (i32.lt_u (local.get $from) (local.get $to)) (then
                    (if (i32.load8_u (local.get $from)) (then (return (i32.const 0))))
                    (local.set $from (i32.add (local.get $from) (i32.const 1)))
                    (br $next))))
            (i32.const 1))
        (func $null (param $at i32) (result i32) (ref.is_null (table.get $t (local.get $at))))
        (func $fresh (result i32)
            (if (i64.ne (global.get $dirty) (i64.const 7)) (then (return (i32.const 0))))
            (if (i32.ne (memory.size) (i32.const 2)) (then (return (i32.const 0))))
            (if (i32.ne (table.size $t) (i32.const 8)) (then (return (i32.const 0))))
            (if (i32.eqz (call $null (i32.const 0))) (then (return (i32.const 0))))
            (if (call $null (i32.const 1)) (then (return (i32.const 0))))
            (if (i32.eqz (call $null (i32.const 7))) (then (return (i32.const 0))))
            (if (i32.ne (i32.load8_u (i32.const {first})) (i32.const {initial})) (then (return (i32.const 0))))
            (if (i32.eqz (call $zero (i32.const 0) (i32.const {first}))) (then (return (i32.const 0))))
            (if (i32.eqz (call $zero (i32.const {last}) (i32.const 131072))) (then (return (i32.const 0))))
            (drop (memory.grow (i32.const 62)))
            (drop (table.grow $t (ref.null func) (i32.const 56)))
            (if (i32.eqz (call $null (i32.const 63))) (then (return (i32.const 0))))
            (call $zero (i32.const 131072) (i32.const 4194304)))
        (func $run (export "run") (result i32)
            (if (i32.eqz (call $fresh)) (then (return (i32.const 1))))
            (global.set $dirty (i64.const -1))
            (memory.fill (i32.const 0) (i32.const 255) (i32.const {bytes}))
            (memory.fill (i32.const 4128768) (i32.const 255) (i32.const 65536))
            (table.set $t (i32.const 0) (ref.func $run))
            (table.set $t (i32.const 1) (ref.null func))
            (table.fill $t (i32.const 7) (ref.func $run) (i32.const 57))
            (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $export (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $export)))"#,
        initial = text.as_bytes()[0]
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn memory_globals_and_tables_are_fresh_for_each_run() {
    let mut lab = Lab::with(4, 1024 * MEBIBYTE);
    lab.limits.memory_bytes = 8 * MEBIBYTE;
    let lab = Arc::new(lab);
    let dirty = |nth: usize| if nth.is_multiple_of(2) { 1 } else { 48 };
    let guests: Vec<_> =
        (0..GUESTS).map(|nth| lab.component(&scribbler(&format!("guest {nth}"), dirty(nth)))).collect();
    let threads: Vec<_> = (0..THREADS).map(|_| tokio::spawn(run(lab.clone(), guests.clone()))).collect();
    for thread in threads {
        thread.await.unwrap();
    }
    lab.all_gone().await;
}

async fn run(lab: Arc<Lab>, guests: Vec<Arc<Component>>) {
    for _ in 0..RUNS {
        for guest in &guests {
            let ran = guest.run(Event::Run(vec![]), lab.setup()).await;
            let Ok(Reply::Run(output)) = ran else { panic!("it failed: {ran:?}") };
            assert!(output.ok, "an earlier run shows through");
        }
    }
}
