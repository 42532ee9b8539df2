//! Pulls from a consumer. All answers come to one inbox: another one for each pull would cost the server as much as the pull.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, StatusCode, Subject, Subscriber};
use futures::StreamExt as _;
use tokio::time::timeout;
use trellis_provider::delivery::Trouble;

use crate::connection::REQUEST_MAX;

/// How one link pulls.
pub(crate) struct Pulls {
    context: Context,
    client: Client,
    /// Kept from a pull that came to its end: nothing more comes there.
    inbox: Mutex<Option<Inbox>>,
}

struct Inbox {
    name: Subject,
    answers: Subscriber,
}

impl Pulls {
    pub(crate) const fn new(context: Context, client: Client) -> Self {
        Self { context, client, inbox: Mutex::new(None) }
    }

    /// Adds the messages that the server gives out now, up to `max` in all.
    ///
    /// # Errors
    /// The server does not answer, or refuses. Messages that came before that are added.
    pub(crate) async fn take(
        &self,
        consumer: &Consumer<pull::Config>,
        max: usize,
        messages: &mut Vec<jetstream::Message>,
    ) -> Result<(), Trouble> {
        let kept = self.inbox().take();
        let mut inbox = match kept {
            Some(inbox) => inbox,
            None => self.open().await?,
        };
        let now = pull::BatchConfig { batch: max - messages.len(), no_wait: true, ..Default::default() };
        consumer.request_batch(now, inbox.name.clone()).await.map_err(|why| why.to_string())?;
        while messages.len() < max {
            // The server answers at once. Where the connection broke in between it never does.
            let answer = timeout(REQUEST_MAX, inbox.answers.next()).await.ok().flatten();
            let message = answer.ok_or("the server does not answer")?;
            match message.status {
                None | Some(StatusCode::OK) => {
                    messages.push(jetstream::Message { message, context: self.context.clone() });
                }
                // It has no more.
                Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => break,
                Some(status) => {
                    return Err(format!("{} {}", status.as_u16(), message.description.unwrap_or_default()));
                }
            }
        }
        *self.inbox() = Some(inbox);
        Ok(())
    }

    async fn open(&self) -> Result<Inbox, Trouble> {
        let name = Subject::from(self.client.new_inbox());
        let answers = self.client.subscribe(name.clone()).await.map_err(|why| why.to_string())?;
        Ok(Inbox { name, answers })
    }

    fn inbox(&self) -> MutexGuard<'_, Option<Inbox>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
