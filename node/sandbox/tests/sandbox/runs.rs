//! Runs with arguments, for guests of WASI 0.2 (`classic`) and 0.3 (`modern`).

use std::time::Duration;

use trellis_wire::{Event, Failure, Fault, Outcome, Reply, RunOutput};

use crate::lab::{Lab, MEBIBYTE};

fn output(outcome: Outcome) -> RunOutput {
    match outcome {
        Ok(Reply::Run(output)) => output,
        other => panic!("output was expected, not {other:?}"),
    }
}

async fn run(lab: &Lab, guest: &str, arguments: &[&str]) -> Outcome {
    lab.run(guest, Event::Run(arguments.iter().map(ToString::to_string).collect())).await
}

#[tokio::test]
async fn arguments_go_in_and_output_comes_out() {
    let lab = Lab::new();
    let ran = output(run(&lab, "classic", &["a", "b c"]).await);
    assert_eq!(ran, RunOutput { ok: true, stdout: "guest a b c\n".into(), stderr: "0 variables\n".into() });
    let ran = output(run(&lab, "modern", &["a"]).await);
    assert_eq!((ran.ok, &ran.stdout[..]), (true, &b"guest a\n"[..]));
    assert!(!output(run(&lab, "classic", &["fail"]).await).ok);
    assert!(!output(run(&lab, "modern", &["fail"]).await).ok);
    let exited = output(run(&lab, "classic", &["exit"]).await);
    assert_eq!((exited.ok, &exited.stdout[..]), (false, &b"guest exit\n"[..]));
    lab.all_gone().await;
}

#[tokio::test]
async fn output_is_bounded() {
    let lab = Lab::new();
    assert_eq!(output(run(&lab, "classic", &["much"]).await).stdout.len() as u64, MEBIBYTE);
}

#[tokio::test]
async fn a_run_that_panics_or_does_not_end_is_a_fault() {
    let lab = Lab::new().timeout(Duration::from_millis(200));
    let Err(Failure::Fault(Fault::Trap(why))) = run(&lab, "classic", &["panic"]).await else { panic!("no trap") };
    assert!(why.contains("the run panicked"), "{why}");
    for (guest, argument) in [("classic", "loop"), ("modern", "sleep")] {
        let late = run(&lab, guest, &[argument]).await.unwrap_err();
        assert!(matches!(late, Failure::Fault(Fault::Deadline { limit_ms: 200 })), "{guest}: {late}");
    }
    lab.all_gone().await;
}
