//! A tick as a run of `wasi:cli/run`: the engine speaks of messages, the component is told of a run, and what came of it
//! is told as a settlement.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trellis_provider::{Caps, Delivered, Permit, PermitSource, Permits, Run, Share, Want};
use trellis_wire::{ComponentKey, Error, Event, LinkId, Message, Outcome, Reply, RunOutput, Settle};

use crate::ticks::TIME;

/// What of a failed run's standard error is in its reason, in bytes.
const REASON_BYTES_MAX: usize = 1_000;

/// Permits whose messages become runs with these arguments.
pub(crate) fn as_runs(permits: Permits, args: Vec<String>) -> Permits {
    let runs = Runs { permits: permits.clone(), args: args.into() };
    permits.through(Arc::new(runs))
}

struct Runs {
    permits: Permits,
    args: Arc<[String]>,
}

#[async_trait]
impl PermitSource for Runs {
    async fn acquire(&self, _: &ComponentKey, want: Want) -> Result<Permit, Error> {
        let permit = self.permits.acquire(want).await?;
        Ok(Permit::new(AsRun { permit, args: self.args.clone() }))
    }

    fn on_trial(&self, _: &ComponentKey, code: &str) -> Option<String> {
        self.permits.on_trial(code)
    }

    fn is_taken_back(&self, _: &ComponentKey, version: &str) -> bool {
        self.permits.is_taken_back(version)
    }

    fn share(&self, link: &LinkId, whole: Caps) -> Arc<Share> {
        self.permits.share(link, whole)
    }
}

struct AsRun {
    permit: Permit,
    args: Arc<[String]>,
}

#[async_trait]
impl Run for AsRun {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        let run = self.event(event);
        settled(self.permit.run(run).await)
    }

    async fn deliver(self: Box<Self>, event: Event, at_most: Duration) -> Delivered {
        let run = self.event(event);
        let delivered = self.permit.deliver(run, at_most).await;
        Delivered { outcome: settled(delivered.outcome), ..delivered }
    }
}

impl AsRun {
    fn event(&self, event: Event) -> Event {
        match event {
            Event::Message(tick) => Event::Run(self.args.iter().map(|word| filled(word, &tick)).collect()),
            other => other,
        }
    }
}

/// An argument with `{time}` and `{attempt}` filled in.
fn filled(word: &str, tick: &Message) -> String {
    let time = tick.headers.iter().find(|(name, _)| name == TIME).map_or("", |(_, value)| value);
    word.replace("{time}", time).replace("{attempt}", &tick.attempt.to_string())
}

fn settled(outcome: Outcome) -> Outcome {
    match outcome {
        Ok(Reply::Run(RunOutput { ok: true, .. })) => Ok(Reply::Settle(Settle::Ack)),
        Ok(Reply::Run(RunOutput { stderr, .. })) => {
            let said = String::from_utf8_lossy(&stderr);
            let end = said.trim();
            let from = end.ceil_char_boundary(end.len().saturating_sub(REASON_BYTES_MAX));
            Ok(Reply::Settle(Settle::Retry { after: None, reason: format!("the run failed: {}", &end[from..]) }))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_is_tried_again_with_what_it_said_last() {
        let stderr = format!("{}the end\n", "é".repeat(1_000)).into();
        let outcome = settled(Ok(Reply::Run(RunOutput { ok: false, stderr, ..RunOutput::default() })));
        let Ok(Reply::Settle(Settle::Retry { reason, .. })) = outcome else { panic!("{outcome:?}") };
        assert!(
            reason.starts_with("the run failed: é") && reason.ends_with("é the end".trim_start_matches("é ")),
            "{reason}"
        );
        assert!(reason.len() < REASON_BYTES_MAX + 50, "{}", reason.len());
        let tick =
            Message { headers: vec![(TIME.into(), "2026-11-26T14:00:00Z".into())], attempt: 2, ..Message::default() };
        assert_eq!(filled("--since={time}#{attempt}", &tick), "--since=2026-11-26T14:00:00Z#2");
    }
}
