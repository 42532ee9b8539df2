//! HTTP events, for guests of WASI 0.2 (`classic`) and 0.3 (`modern`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use trellis_wire::{Body, BodyError, Config, Error, Event, Failure, Fault, Reply, Settle};

use crate::lab::{Lab, MEBIBYTE, get, response, text};

const BOTH: [&str; 2] = ["classic", "modern"];

#[tokio::test]
async fn a_request_is_answered_and_the_sandbox_is_gone() {
    let lab = Lab::new();
    for guest in BOTH {
        let response = response(lab.get(guest, "/hello").await);
        assert_eq!(response.status(), 200);
        assert_eq!(response.body().size_hint().exact(), Some(5), "{guest}: a short reply has a known length");
        lab.all_gone().await;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
}

#[tokio::test]
async fn a_request_body_streams_in() {
    let lab = Lab::new();
    for guest in BOTH {
        let words = stream::iter(["one ", "two ", "three"]).then(|word| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok::<_, BodyError>(Frame::data(Bytes::from_static(word.as_bytes())))
        });
        let body = StreamBody::new(Box::pin(words));
        let request = http::Request::post("http://test.local/echo").body(Body::new(body)).unwrap();
        assert_eq!(text(lab.run(guest, Event::Http(request)).await).await, "one two three", "{guest}");
        lab.all_gone().await;
    }
}

#[tokio::test]
async fn a_request_without_a_host_is_answered() {
    let lab = Lab::new();
    for guest in BOTH {
        let request = http::Request::get("/hello").body(Body::empty()).unwrap();
        assert_eq!(text(lab.run(guest, Event::Http(request)).await).await, "hello");
    }
}

#[tokio::test]
async fn nothing_of_one_run_is_seen_by_the_next() {
    const FRESH: &str = "run 1, 0 bytes scribbled";
    let lab = Lab::new();
    for _ in 0..20 {
        for guest in BOTH {
            assert_eq!(lab.text(guest, "/scribble").await, FRESH);
        }
        let settled = lab.message("classic", "scribble", "").await;
        let Ok(Reply::Settle(Settle::Drop(told))) = settled else { panic!("{settled:?}") };
        assert_eq!(told, FRESH);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_that_spins_ends_at_its_deadline_and_starves_nobody() {
    let lab = Lab::new();
    let limited = Lab::new().timeout(Duration::from_secs(1));
    for guest in BOTH {
        let spins = limited.get(guest, "/loop");
        let others = async {
            for _ in 0..3 {
                assert_eq!(lab.text("classic", "/hello").await, "hello");
            }
            tokio::time::Instant::now()
        };
        // Compiling is no part of it.
        limited.component(guest);
        lab.component("classic");
        let begun = tokio::time::Instant::now();
        let (outcome, others_done) = tokio::join!(spins, others);
        assert_eq!(outcome.unwrap_err(), Failure::Fault(Fault::Deadline { limit_ms: 1000 }));
        assert!(others_done - begun < Duration::from_millis(900), "others waited for the one that spins");
        limited.all_gone().await;
    }
}

#[tokio::test]
async fn the_clock_stands_still_without_sandboxes_and_goes_on_with_the_next() {
    let lab = Lab::new().timeout(Duration::from_millis(300));
    lab.component("classic");
    for _ in 0..2 {
        while !lab.engine.is_idle() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let spins = lab.get("classic", "/loop").await;
        assert_eq!(spins.unwrap_err(), Failure::Fault(Fault::Deadline { limit_ms: 300 }));
        lab.all_gone().await;
    }
}

#[tokio::test]
async fn a_guest_that_waits_for_ever_ends_at_its_deadline() {
    let lab = Lab::new().timeout(Duration::from_millis(100));
    for guest in BOTH {
        assert_eq!(lab.get(guest, "/sleep").await.unwrap_err(), Failure::Fault(Fault::Deadline { limit_ms: 100 }));
        lab.all_gone().await;
    }
}

#[tokio::test]
async fn a_panic_is_a_trap_with_its_message_and_backtrace() {
    let lab = Lab::new();
    for guest in BOTH {
        let Err(Failure::Fault(Fault::Trap(text))) = lab.get(guest, "/panic").await else { panic!("no trap") };
        assert!(text.contains("the oven is cold"), "{text}");
        assert!(text.contains("wasm backtrace"), "{text}");
        assert!(text.contains("unreachable"), "{text}");
        lab.all_gone().await;
    }
    let Err(Failure::Fault(Fault::Trap(text))) = lab.get("classic", "/exit").await else { panic!("no trap") };
    assert!(text.contains("wasi:cli/exit with code 1"), "{text}");
}

#[tokio::test]
async fn no_answer_and_an_error_code_are_faults_of_their_own() {
    let lab = Lab::new();
    assert_eq!(lab.get("classic", "/silent").await.unwrap_err(), Failure::Fault(Fault::NoReply));
    for guest in BOTH {
        let Err(Failure::Fault(Fault::Refused(code))) = lab.get(guest, "/refuse").await else { panic!("not refused") };
        assert!(code.contains("ConfigurationError"), "{code}");
    }
}

#[tokio::test]
async fn a_trap_after_the_head_breaks_the_body_off() {
    let lab = Lab::new();
    for (guest, path) in [("classic", "/break"), ("classic", "/break-after-a-while"), ("modern", "/break")] {
        let response = response(lab.get(guest, path).await);
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half", "{guest} {path}");
        let why = body.frame().await.expect("no clean end").unwrap_err();
        assert!(why.to_string().contains("broke after the head"), "{guest} {path}: {why}");
        assert!(lab.logged("sandbox").pop().unwrap().contains("after its response had begun"));
        lab.all_gone().await;
    }
}

#[tokio::test]
async fn a_body_that_is_let_go_of_breaks_off() {
    let lab = Lab::new();
    let mut body = response(lab.get("classic", "/drop").await).into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn only_the_first_of_two_answers_counts() {
    let lab = Lab::new();
    let response = response(lab.get("classic", "/twice").await);
    assert_eq!(response.status(), 201);
    assert!(response.into_body().collect().await.is_err(), "the second answer trapped");
}

#[tokio::test]
async fn a_huge_body_streams_with_back_pressure() {
    let lab = Lab::new();
    for guest in BOTH {
        let mut body = response(lab.get(guest, "/stream").await).into_body();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(lab.logged("guest").len() < 3, "{guest} wrote on though nobody read: {:?}", lab.logged("guest"));
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().into_data().unwrap().len() as u64;
            assert!(lab.engine.memory_bytes() <= 8 * MEBIBYTE, "{guest} grows as it writes");
        }
        assert_eq!(read, 64 * MEBIBYTE);
        drop(body);
        lab.all_gone().await;
        lab.node.lines.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn a_reply_that_takes_too_long_breaks_off_unless_it_may() {
    let mut lab = Lab::new();
    for guest in BOTH {
        for (reply, whole) in [(Some(Duration::from_millis(100)), false), (None, true)] {
            lab.limits.reply = reply;
            let mut body = response(lab.get(guest, "/stream").await).into_body();
            body.frame().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let ended = body.collect().await.map(drop).map_err(|why| why.to_string());
            assert_eq!(ended.is_ok(), whole, "{guest}: {ended:?}");
            assert!(ended.err().is_none_or(|why| why.contains("not done in time")));
            lab.all_gone().await;
        }
    }
}

#[tokio::test]
async fn dropping_the_body_aborts_the_sandbox() {
    let lab = Lab::new();
    for guest in BOTH {
        let mut body = response(lab.get(guest, "/stream").await).into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(lab.engine.sandboxes(), 1);
        drop(body);
        lab.all_gone().await;
        assert!(!lab.logged("guest").contains(&"wrote 64 MiB".into()));
    }
}

#[tokio::test]
async fn dropping_the_run_aborts_the_sandbox() {
    let lab = Lab::new();
    for guest in BOTH {
        let component = lab.component(guest);
        let setup = lab.setup();
        let run = tokio::time::timeout(Duration::from_millis(50), component.run(get("/sleep"), setup));
        assert!(run.await.is_err());
        lab.all_gone().await;
    }
}

#[tokio::test]
async fn a_guest_may_work_on_after_its_answer() {
    let lab = Lab::new();
    for guest in BOTH {
        assert_eq!(lab.text(guest, "/after").await, "answered");
        lab.all_gone().await;
        assert_eq!(lab.logged("guest").last().map(String::as_str), Some("worked on after the answer"), "{guest}");
        lab.node.lines.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn outgoing_requests_go_outside_or_are_denied() {
    let lab = Lab::new();
    for guest in BOTH {
        assert_eq!(lab.text(guest, "/outgoing").await, "203 GET http://example.test/weather with 0 bytes");
    }
    lab.node.denies.store(true, Ordering::SeqCst);
    for guest in BOTH {
        let code = lab.text(guest, "/outgoing").await;
        assert!(code.contains("HttpRequestDenied"), "{code}");
        assert_eq!(lab.logged("wasi:http").pop().as_deref(), Some("denied: add a link"));
    }
}

#[tokio::test]
async fn keys_and_values_go_outside_or_are_denied() {
    let lab = Lab::new();
    let all = r#"None Some("1") 2 [Some(("b", [50])), None] true false Err(Error::Other("`text` holds no number"))"#;
    assert_eq!(lab.text("classic", "/keyvalue").await, all);
    assert_eq!(lab.text("modern", "/keyvalue").await, "Ok(4)", "the same store from the other generation");
    lab.node.stores.lock().unwrap().clear();
    assert_eq!(lab.text("classic", "/keys").await, "a,b | c,d | e");
    lab.node.denies.store(true, Ordering::SeqCst);
    let denied = lab.text("classic", "/keyvalue").await;
    assert!(denied.contains("denied: add a link"), "{denied}");
}

#[tokio::test]
async fn messages_go_outside_or_are_denied() {
    let lab = Lab::new();
    let said = lab.text("classic", "/publish").await;
    assert!(said.starts_with("Ok(()) Ok(()) Ok(Message") && said.contains("answer"), "{said}");
    let published = std::mem::take(&mut *lab.node.published.lock().unwrap());
    assert_eq!(published.iter().map(|(link, _)| link.as_str()).collect::<Vec<_>>(), ["", "other"]);
    assert_eq!(published[0].1.headers, [("a".to_owned(), "b".to_owned())]);
    lab.node.denies.store(true, Ordering::SeqCst);
    let denied = lab.text("classic", "/publish").await;
    assert_eq!(denied.matches(r#"Denied("add a link")"#).count(), 3, "{denied}");
}

#[tokio::test]
async fn configuration_and_log_lines_pass() {
    let mut lab = Lab::new();
    lab.config = Config::from_iter([("greeting", " hi "), ("empty", " ")]);
    let read = lab.text("classic", "/config").await;
    assert_eq!(read, r#"Some("hi") None [("empty", " "), ("greeting", " hi ")]"#);
    lab.text("classic", "/log").await;
    assert_eq!(lab.logged("guest"), ["from the log"]);
    assert_eq!(lab.logged("stdout"), ["to stdout"]);
    assert_eq!(lab.logged("stderr"), ["to stderr"]);
}

#[tokio::test]
async fn there_is_no_world_outside() {
    let lab = Lab::new();
    assert_eq!(lab.text("classic", "/world").await, r#"0 0 0 Ok("") tcp false udp false name false"#);
}

#[tokio::test]
async fn an_event_of_the_wrong_kind_is_our_error() {
    let lab = Lab::new();
    let Err(Failure::Error(Error::Unusable(why))) = lab.message("modern", "ok", "").await else { panic!("it ran") };
    assert!(why.contains("app/guest cannot be woken by a message"), "{why}");
    lab.all_gone().await;
}
