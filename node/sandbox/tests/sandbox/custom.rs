//! Interfaces that only guests know, from both sides.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use trellis_wire::{Answer, CallError, Error, Event, Failure, Fault, Reply};

use crate::lab::Lab;

const ADD: &str = "shop:math/add@1.0.0";

/// Exports a function.
const CALLED: &str = r#"(component
    (core module $m (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
    (core instance $i (instantiate $m))
    (func $add (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $i "add")))
    (instance $export (export "add" (func $add)))
    (export "shop:math/add@1.0.0" (instance $export)))"#;

/// Ends in `ok` if the same function, imported, gives 5 for 2 and 3.
const CALLS: &str = r#"(component
    (import "shop:math/add@1.0.0" (instance $math
        (export "add" (func (param "a" u32) (param "b" u32) (result u32)))))
    (core module $m
        (import "math" "add" (func $add (param i32 i32) (result i32)))
        (func (export "run") (result i32) (i32.ne (call $add (i32.const 2) (i32.const 3)) (i32.const 5))))
    (core func $add (canon lower (func $math "add")))
    (core instance $i (instantiate $m (with "math" (instance (export "add" (func $add))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $export (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $export)))"#;

fn invoke(function: &str, params: &'static [u8]) -> Event {
    Event::Invoke { interface: ADD.into(), function: function.into(), params: Bytes::from_static(params) }
}

#[tokio::test]
async fn a_function_of_a_guest_can_be_called() {
    let lab = Lab::new();
    // 300 + 1 = 301, in LEB128.
    let Ok(Reply::Values(sum)) = lab.run(CALLED, invoke("add", &[0xac, 0x02, 1])).await else { panic!("no values") };
    assert_eq!(&sum[..], [0xad, 0x02]);
    for (function, params) in [("subtract", &[1, 2][..]), ("add", &[1]), ("add", &[1, 2, 3])] {
        let Err(Failure::Error(Error::Unusable(why))) = lab.run(CALLED, invoke(function, params)).await else {
            panic!("{function} ran on {params:?}")
        };
        assert!(why.contains("shop:math/add@1.0.0"), "{why}");
    }
    lab.all_gone().await;
}

#[tokio::test]
async fn a_guest_can_call_a_function_outside() {
    let lab = Lab::new();
    let Ok(Reply::Run(output)) = lab.run(CALLS, Event::Run(vec![])).await else { panic!("it failed") };
    assert!(output.ok);
    lab.node.denies.store(true, Ordering::SeqCst);
    let Err(Failure::Fault(Fault::Trap(why))) = lab.run(CALLS, Event::Run(vec![])).await else { panic!("not denied") };
    assert!(why.contains("denied: add a link"), "{why}");
}

#[tokio::test]
async fn a_call_that_fails_through_no_doing_of_the_guests_is_our_error() {
    let lab = Lab::new();
    let fails = async |with: Result<Answer, CallError>| {
        *lab.node.invoked.lock().unwrap() = Some(with);
        lab.run(CALLS, Event::Run(vec![])).await.unwrap_err()
    };
    let busy = fails(Err(CallError::Unavailable("it starts".into()))).await;
    assert_eq!(busy, Failure::Error(Error::Busy("unavailable: it starts".into())));
    let late = fails(Err(CallError::TimedOut("no answer".into()))).await;
    assert_eq!(late, Failure::Error(Error::Internal("timed out: no answer".into())));
    for wrong in [Answer::Published, Answer::Values(Bytes::from_static(&[0x80])), Answer::Values(Bytes::new())] {
        let wrong = fails(Ok(wrong)).await;
        assert!(matches!(&wrong, Failure::Error(Error::Internal(why)) if why.contains("not fit")), "{wrong}");
    }
    let absent = fails(Err(CallError::NoSuch("add".into()))).await;
    assert!(matches!(&absent, Failure::Fault(Fault::Trap(why)) if why.contains("add does not exist")), "{absent}");
    lab.all_gone().await;
}
