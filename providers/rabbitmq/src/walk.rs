//! A walk over the dead letters of a queue. AMQP lets nobody look into a queue without taking from it, so all are taken, by
//! one consumer, and put back in their order. Meanwhile nobody else would see them: one walks at a time, of all nodes, for
//! which an exclusive queue stands that the server gives to one connection only, and takes away with it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use trellis_provider::delivery::Trouble;

use crate::connection::{ANSWER_MAX, Line, NOT_FOUND, Unanswered, close, within};

/// Dead letters that one walk goes over at most: what a consumer can hold.
pub(crate) const WALK_MAX: u16 = u16::MAX;
/// How long is waited until nobody else walks, and how often is looked.
const TURN_MAX: Duration = Duration::from_secs(8);
const TURN_LOOK: Duration = Duration::from_millis(50);
/// How often, and how far apart, is looked whether what was put back is there.
const PUT_BACK_LOOKS: usize = 50;
const PUT_BACK_LOOK: Duration = Duration::from_millis(20);
/// Another connection has the exclusive queue.
const RESOURCE_LOCKED: u16 = 405;

/// Holds what it passed until it ends.
#[derive(Debug)]
pub(crate) struct Walk {
    line: Arc<Line>,
    queue: String,
    turn: Turn,
    channel: Channel,
    consumer: Consumer,
    /// Those that were there at the beginning.
    there: u64,
    passed: u64,
    taken_off: u64,
}

impl Walk {
    /// Begins when nobody else walks there; `None`: there is no such queue.
    pub(crate) async fn begin(line: Arc<Line>, queue: &str) -> Result<Option<Self>, Trouble> {
        let turn = Turn::wait(&line, queue).await?;
        match Self::consume(&line, queue).await {
            Ok((channel, consumer, there)) => {
                let (queue, passed, taken_off) = (queue.to_owned(), 0, 0);
                Ok(Some(Self { line, queue, turn, channel, consumer, there, passed, taken_off }))
            }
            Err(why) => {
                turn.end(&line).await;
                if matches!(why, Unanswered::Refused(NOT_FOUND, _)) { Ok(None) } else { Err(why.into()) }
            }
        }
    }

    async fn consume(line: &Line, queue: &str) -> Result<(Channel, Consumer, u64), Unanswered> {
        let channel = line.channel().await?;
        let there = line.waiting(&channel, queue).await?;
        within(channel.basic_qos(WALK_MAX, BasicQosOptions::default())).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = within(channel.basic_consume(queue.into(), "".into(), options, none)).await?;
        Ok((channel, consumer, there.min(u64::from(WALK_MAX))))
    }

    /// The next one. `None`: there is none that was there at the beginning.
    pub(crate) async fn next(&mut self) -> Result<Option<Delivery>, Trouble> {
        if self.passed >= self.there {
            return Ok(None);
        }
        match timeout(ANSWER_MAX, self.consumer.next()).await {
            Ok(Some(delivery)) => {
                self.passed += 1;
                Ok(Some(delivery.map_err(Unanswered::from)?))
            }
            Ok(None) => Err(format!("the server ended the look at queue `{}`", self.queue)),
            // What somebody else took, or became too old, is not missing.
            Err(_) if self.line.waiting(&self.channel, &self.queue).await? == 0 => Ok(None),
            Err(_) => Err(format!("queue `{}` gives out nothing within {ANSWER_MAX:?}", self.queue)),
        }
    }

    /// Takes one off.
    pub(crate) async fn take_off(&mut self, delivery: &Delivery) -> Result<(), Trouble> {
        within(delivery.acker.ack(BasicAckOptions::default())).await?;
        self.taken_off += 1;
        Ok(())
    }

    /// Puts back what it holds, and waits for a moment until that is there again.
    pub(crate) async fn end(self) -> Result<(), Trouble> {
        let back = self.put_back().await;
        // Whatever it still holds goes back with it.
        close(&self.channel).await;
        self.turn.end(&self.line).await;
        Ok(back?)
    }

    async fn put_back(&self) -> Result<(), Unanswered> {
        within(self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default())).await?;
        within(self.channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true })).await?;
        for _ in 0..PUT_BACK_LOOKS {
            if self.line.waiting(&self.channel, &self.queue).await? >= self.passed - self.taken_off {
                return Ok(());
            }
            sleep(PUT_BACK_LOOK).await;
        }
        Ok(())
    }
}

/// The right to walk over a queue.
#[derive(Debug)]
struct Turn {
    exclusive: String,
    /// The exclusive queue is the connection's, so its own links take turns by this.
    _own: OwnedMutexGuard<()>,
}

impl Turn {
    async fn wait(line: &Arc<Line>, queue: &str) -> Result<Self, Trouble> {
        let (until, exclusive) = (Instant::now() + TURN_MAX, format!("{queue}.trellis.look"));
        let busy = || format!("somebody else looks through queue `{queue}` at the moment; try again");
        let own = timeout_at(until, line.walk(queue).lock_owned()).await.map_err(|_| busy())?;
        loop {
            let channel = line.channel().await?;
            let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(exclusive.as_str().into(), options, FieldTable::default());
            match within(declared).await {
                Ok(_) => {
                    close(&channel).await;
                    return Ok(Self { exclusive, _own: own });
                }
                Err(Unanswered::Refused(RESOURCE_LOCKED, _)) if Instant::now() < until => sleep(TURN_LOOK).await,
                Err(Unanswered::Refused(RESOURCE_LOCKED, _)) => return Err(busy()),
                Err(why) => return Err(why.into()),
            }
        }
    }

    /// The server would end it too, with the connection.
    async fn end(self, line: &Line) {
        let ended = async {
            let channel = line.channel().await?;
            within(channel.queue_delete(self.exclusive.as_str().into(), QueueDeleteOptions::default())).await?;
            close(&channel).await;
            Ok::<_, Unanswered>(())
        };
        if let Err(why) = ended.await {
            tracing::debug!(%why, "the right to look through a queue ends with its connection");
        }
    }
}
