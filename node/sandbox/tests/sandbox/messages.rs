//! Messages, for our handler (`classic`) and wasmCloud's (`wasmcloud`).

use std::time::Duration;

use trellis_wire::{Config, Failure, Fault, Outcome, Reply, Secret, Secrets, Settle};

use crate::lab::Lab;

fn settled(outcome: Outcome) -> Settle {
    match outcome {
        Ok(Reply::Settle(settle)) => settle,
        other => panic!("a settlement was expected, not {other:?}"),
    }
}

fn retry(reason: &str, after: Option<Duration>) -> Settle {
    Settle::Retry { after, reason: reason.into() }
}

#[tokio::test]
async fn every_word_of_our_handler_is_heard() {
    let lab = Lab::new();
    let cases = [
        ("ok", Settle::Ack),
        ("retry", retry("why", None)),
        ("retry-later", retry("why", Some(Duration::from_millis(1500)))),
        ("dead-letter", Settle::DeadLetter("why".into())),
        ("drop", Settle::Drop("why".into())),
    ];
    for (subject, settle) in cases {
        assert_eq!(settled(lab.message("classic", subject, "why").await), settle);
    }
    let Settle::Drop(seen) = settled(lab.message("classic", "describe", "x").await) else { panic!("not described") };
    for part in
        [r#"id: "7""#, "attempt: 2", "published-ms: Some(5)", r#"reply-to: Some("back")"#, r#"source: "default""#]
    {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    let Settle::DeadLetter(long) = settled(lab.message("classic", "dead-letter", &"é".repeat(9_000)).await) else {
        panic!("no dead letter")
    };
    assert!(long.len() < 5_000 && long.ends_with("é [cut]"), "a reason is bounded");
    lab.all_gone().await;
}

#[tokio::test]
async fn a_trap_and_a_deadline_are_faults_and_no_settlement() {
    let lab = Lab::new().timeout(Duration::from_millis(200));
    let Err(Failure::Fault(Fault::Trap(why))) = lab.message("classic", "trap", "it").await else { panic!("no trap") };
    assert!(why.contains("cannot handle it"), "{why}");
    let late = lab.message("classic", "spin", "").await.unwrap_err();
    assert_eq!(late, Failure::Fault(Fault::Deadline { limit_ms: 200 }));
    assert!(matches!(lab.message("wasmcloud", "trap", "").await, Err(Failure::Fault(Fault::Trap(_)))));
    lab.all_gone().await;
}

#[tokio::test]
async fn wasmclouds_handler_says_ok_or_again() {
    let mut lab = Lab::new();
    lab.config = Config::from_iter([("greeting", "hi")]);
    assert_eq!(settled(lab.message("wasmcloud", "ok", "").await), Settle::Ack);
    assert_eq!(settled(lab.message("wasmcloud", "refuse", "no").await), retry("no", None));
    assert_eq!(settled(lab.message("wasmcloud", "config", "").await), retry(r#"Ok(Some("hi"))"#, None));
    assert_eq!(settled(lab.message("wasmcloud", "publish", "body").await), Settle::Ack);
    let (link, sent) = lab.node.published.lock().unwrap().pop().unwrap();
    assert_eq!((link.as_str(), sent.subject.as_str(), sent.reply_to.as_deref()), ("", "out", Some("back")));
    let Settle::Retry { reason, .. } = settled(lab.message("wasmcloud", "request", "").await) else { panic!("ok") };
    assert!(reason.contains("answer"), "{reason}");
}

#[tokio::test]
async fn a_guest_sees_the_secrets_that_are_its_own() {
    let mut lab = Lab::new();
    lab.secrets = Secrets::from_iter([("password", Secret::new("hunter2"))]);
    let told = settled(lab.message("wasmcloud", "secret", "").await);
    assert_eq!(told, retry(r#"SecretValue::String("hunter2") SecretsError::NotFound"#, None));
}

#[tokio::test]
async fn link_names_choose_between_stores() {
    let lab = Lab::new();
    for link in ["", "second", "third"] {
        let value = if link.is_empty() { "first" } else { link };
        lab.node.stores.lock().unwrap().entry(link.into()).or_default().insert("where".into(), value.into());
    }
    let Settle::Retry { reason, .. } = settled(lab.message("wasmcloud", "links", "").await) else { panic!("ok") };
    // Default link, the chosen one, one named at `open`, a name that is no link: the chosen one's own store; and a link
    // with no store behind it.
    let stores = r#"Ok(Some("first")) Ok(Some("second")) Ok(Some("third")) Ok(Some("second")) "#;
    assert_eq!(reason, format!("{stores}Error::NoSuchStore"));
}
