//! Where messages wait for another try: queues (`<queue>.trellis.wait.<ms>`) whose messages come back to the end of the link's
//! queue, each after its own time.
//!
//! RabbitMQ looks at the first message of a queue only, so one that waits longer holds up those behind it. Each queue has the
//! waits of one power of two, up to its `<ms>`: no wait is shorter than asked, and none longer than twice as long, or 128 ms.
//!
//! They are made when a link begins, up to the longest wait of its policy, and none is made later: a queue that is made when a
//! message first needs it could be lost with that message (`young.rs`). A component may ask for a longer wait. Then the message
//! passes through the longest queue again, with what is left to wait in a header.
//!
//! They stay when the link ends, as its queue does, since messages may be in them.

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use trellis_provider::delivery::RETRY_AFTER_MAX;
use trellis_wire::Delivery;

use crate::connection::{Line, PRECONDITION_FAILED, Unanswered, close, within};
use crate::wanted::{LOOKS_MAX, is_there, long, make, quorum, word};
use crate::young::Young;

/// The shortest queue has the waits up to this.
const SHORTEST_MS: u64 = 1 << 7;
/// There is one for waits of so long, whatever the policy: the engine's own, while a trigger pauses.
const ALWAYS_MS: u64 = 1 << 16;

/// The delay queues of a link's queue.
#[derive(Debug, Clone)]
pub(crate) struct Delays {
    queue: String,
    longest_ms: u64,
}

/// A wait as its queue has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) queue: String,
    pub(crate) ms: u64,
    /// What is left to wait after it.
    pub(crate) left_ms: u64,
}

impl Delays {
    /// Those for the waits of a policy.
    pub(crate) fn new(queue: &str, policy: &Delivery) -> Self {
        let longest = policy.backoff.wait(u32::MAX, 1.0).min(RETRY_AFTER_MAX);
        Self { queue: queue.into(), longest_ms: ms(longest).max(ALWAYS_MS).next_power_of_two() }
    }

    /// Where to wait for so long.
    pub(crate) fn wait(&self, after: Duration) -> Wait {
        let all_ms = ms(after).max(1);
        let ms = all_ms.min(self.longest_ms);
        Wait { queue: self.name(ms.next_power_of_two().max(SHORTEST_MS)), ms, left_ms: all_ms - ms }
    }

    /// All their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let each = std::iter::successors(Some(SHORTEST_MS), |up_to_ms| Some(up_to_ms * 2));
        each.take_while(|up_to_ms| *up_to_ms <= self.longest_ms).map(|up_to_ms| self.name(up_to_ms))
    }

    fn name(&self, up_to_ms: u64) -> String {
        format!("{}.trellis.wait.{up_to_ms}", self.queue)
    }

    /// Makes those that are missing, and sees that each answers.
    pub(crate) async fn find(&self, line: &Line, young: &Young) -> Result<(), String> {
        for name in self.names() {
            passes_on(line, young, (&name, &self.queue), &[]).await?;
        }
        Ok(())
    }
}

/// Makes a queue whose messages come to another one when their time is over, if it is missing, and sees that it answers.
pub(crate) async fn passes_on(
    line: &Line,
    young: &Young,
    (name, to): (&str, &str),
    more: &[(&str, AMQPValue)],
) -> Result<(), String> {
    let own = [
        ("x-dead-letter-exchange", word("")),
        ("x-dead-letter-routing-key", word(to)),
        ("x-dead-letter-strategy", word("at-least-once")),
        ("x-overflow", word("reject-publish")),
        ("x-delivery-limit", long(LOOKS_MAX)),
    ];
    let arguments = quorum(&[&own, more].concat());
    let made = async {
        if is_there(line, name).await? {
            return line.declare(name, arguments).await;
        }
        make(line, name, arguments, young).await
    };
    made.await.map_err(|why| match why {
        Unanswered::Refused(PRECONDITION_FAILED, why) => {
            format!("queue `{name}` is not as it was made; delete it once it is empty: {why}")
        }
        Unanswered::Refused(_, why) => {
            let problem = "cannot be made; RabbitMQ 3.10 or later is needed for waits that lose nothing";
            format!("queue `{name}` {problem}: {why}")
        }
        Unanswered::Away(why) => format!("queue `{name}`: {why}"),
    })?;
    answers(line, name).await.map_err(|why| format!("queue `{name}`: {why}"))
}

/// Sees that a queue has a leader: one without says how many messages it has, and gives out none.
async fn answers(line: &Line, queue: &str) -> Result<(), Unanswered> {
    let channel = line.channel().await?;
    let got = within(channel.basic_get(queue.into(), BasicGetOptions::default())).await.map_err(|why| match why {
        Unanswered::Away(why) => {
            let problem = "the server was killed just after it was made, and lost it: delete it";
            Unanswered::Away(format!("{why}; if it stays so, {problem}"))
        }
        refused @ Unanswered::Refused(..) => refused,
    })?;
    if let Some(message) = got {
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        within(message.delivery.acker.nack(back)).await?;
    }
    close(&channel).await;
    Ok(())
}

fn ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use trellis_wire::Backoff;

    use super::*;

    fn delays(max: Duration) -> Delays {
        let backoff = Backoff { max, ..Backoff::default() };
        Delays::new("q", &Delivery { backoff, ..Delivery::default() })
    }

    #[test]
    fn every_wait_has_a_queue_of_its_power_of_two_and_is_kept_whole() {
        for max_secs in [1, 300, 3_600, 100 * 24 * 3_600] {
            let delays = delays(Duration::from_secs(max_secs));
            let names: BTreeSet<_> = delays.names().collect();
            assert!(names.len() <= 24, "{}", names.len());
            for asked_ms in (51..RETRY_AFTER_MAX.as_millis()).step_by(12_345_678).chain(51..5_000) {
                let (mut left, mut waited_ms) = (Duration::from_millis(u64::try_from(asked_ms).unwrap()), 0);
                while !left.is_zero() {
                    let wait = delays.wait(left);
                    assert!(names.contains(&wait.queue), "{wait:?}");
                    let up_to_ms: u64 = wait.queue.rsplit_once('.').unwrap().1.parse().unwrap();
                    assert!(wait.ms <= up_to_ms && (up_to_ms == SHORTEST_MS || up_to_ms < 2 * wait.ms), "{wait:?}");
                    waited_ms += u128::from(wait.ms);
                    left = Duration::from_millis(wait.left_ms);
                }
                assert_eq!(waited_ms, asked_ms);
            }
        }
    }

    #[test]
    fn a_policys_own_waits_pass_through_once() {
        let wait = delays(Duration::from_secs(3_600)).wait(Duration::from_secs(4_320));
        assert_eq!((wait.queue.as_str(), wait.left_ms), ("q.trellis.wait.8388608", 0));
    }
}
