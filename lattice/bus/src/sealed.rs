//! The bus as members use it: every word that goes out is sealed or signed, and none comes in that is not. Whoever adds
//! a subject between nodes sends and listens through this, and needs to know nothing more of trust.
//!
//! What words are worth is decided in `trellis-trust`; here is only how they travel, and that a node is greeted before
//! the first word to it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trellis_trust::{Asked, Distrust, Refused, Seal, Ticket};
use trellis_wire::{LatticeName, NodeId, subject};

use crate::{Bus, BusError, Delivered, Subscription};

/// How long a node may take to say which start it is in.
const GREET_WAIT: Duration = Duration::from_secs(2);
/// The wait before a subscription that ended is made again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// How many nodes are greeted at one time because of what they announced.
const GREETINGS_MAX: usize = 64;
/// How often one word is sealed: again where its receiver has started again since.
const TRIES_MAX: usize = 2;

/// A node's end of the bus, among members. Clones share it.
#[derive(Debug, Clone)]
pub struct Sealed {
    bus: Bus,
    lattice: LatticeName,
    seal: Arc<Seal>,
    /// Whom this node greets just now.
    greeting: Arc<Mutex<HashSet<NodeId>>>,
}

/// Why a word was not said, or not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// The bus did not carry it.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// One of the two does not take it from the other.
    #[error(transparent)]
    Distrust(#[from] Distrust),
}

/// A word from a member.
pub struct Heard {
    /// Who said it.
    pub from: NodeId,
    /// What.
    pub body: Bytes,
    /// To answer it with, where an answer is awaited.
    pub reply: Option<Reply>,
}

/// The right to answer a word, once.
pub struct Reply {
    to: String,
    ticket: Ticket,
}

impl Sealed {
    /// The lattice's words on this bus, under this seal.
    pub fn new(bus: Bus, lattice: LatticeName, seal: Arc<Seal>) -> Self {
        Self { bus, lattice, seal, greeting: Arc::default() }
    }

    /// The bus below, for what is not said among members.
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The seal.
    pub const fn seal(&self) -> &Arc<Seal> {
        &self.seal
    }

    /// The lattice's name.
    pub const fn lattice(&self) -> &LatticeName {
        &self.lattice
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.seal.node()
    }

    /// Asks a node and awaits its answer, at most for `wait`.
    ///
    /// # Errors
    /// As for [`Bus::request`]; or one of the two does not take it from the other.
    pub async fn ask(&self, to: NodeId, subject: &str, body: &[u8], wait: Duration) -> Result<Bytes, SealedError> {
        let deadline = Instant::now() + wait;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut tries = 0;
        loop {
            let (word, asked) = self.sealed(to, subject, body, left()).await?;
            let answer = self.bus.request(subject, &[], word.into(), left()).await?;
            tries += 1;
            match self.opened(&asked, &answer) {
                Err(Distrust::Refused { why: Refused::OtherStart, .. }) if tries < TRIES_MAX => {}
                opened => return Ok(opened?.into()),
            }
        }
    }

    /// Says something to a node, which gives no answer.
    ///
    /// # Errors
    /// As for [`Bus::publish`]; or the node is not known, or did not answer a greeting.
    pub async fn tell(&self, to: NodeId, subject: &str, body: &[u8]) -> Result<(), SealedError> {
        let (word, _) = self.sealed(to, subject, body, GREET_WAIT).await?;
        Ok(self.bus.publish(subject, &[], word.into()).await?)
    }

    /// Says something to all members.
    ///
    /// # Errors
    /// As for [`Bus::publish`]; or this node belongs to no lattice yet.
    pub async fn announce(&self, subject: &str, body: &[u8]) -> Result<(), SealedError> {
        let word = self.seal.announce(subject, body)?;
        Ok(self.bus.publish(subject, &[], word.into()).await?)
    }

    /// Answers a word.
    ///
    /// # Errors
    /// As for [`Bus::publish`].
    pub async fn answer(&self, reply: Reply, body: &[u8]) -> Result<(), BusError> {
        let answer = self.seal.answer(reply.ticket, body);
        self.bus.publish(&reply.to, &[], answer.into()).await
    }

    /// Listens to a subject.
    ///
    /// # Errors
    /// As for [`Bus::subscribe`].
    pub async fn listen(&self, subject: &str) -> Result<Listening, BusError> {
        let subscription = self.bus.subscribe(subject, None).await?;
        Ok(Listening { sealed: self.clone(), subscription })
    }

    /// Listens to a subject whatever becomes of the subscription: it is made again, a moment after it ended or failed.
    pub fn words(&self, subject: String) -> Words {
        Words { sealed: self.clone(), subject, listening: None }
    }

    /// Answers those who ask which start this node is in. When this returns they can ask; what it gives has to run, and
    /// never ends.
    ///
    /// # Errors
    /// As for [`Bus::subscribe`].
    pub async fn be_greeted(&self) -> Result<impl Future<Output = ()> + Send + use<>, BusError> {
        let (sealed, subject) = (self.clone(), subject::greet(&self.lattice, self.node()));
        let mut greetings = self.bus.subscribe(&subject, None).await?;
        Ok(async move {
            loop {
                while let Some(greeting) = greetings.next().await {
                    sealed.greet_back(&greeting).await;
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
                match sealed.bus.subscribe(&subject, None).await {
                    Ok(again) => greetings = again,
                    Err(why) => tracing::warn!("not listening on {subject}: {why}"),
                }
            }
        })
    }

    async fn greet_back(&self, greeting: &Delivered) {
        let Some(reply) = &greeting.reply else { return };
        let said = match self.seal.greeted(&greeting.subject, &greeting.payload) {
            Ok(answer) => self.bus.publish(reply, &[], answer.into()).await.map_err(|why| why.to_string()),
            Err(why) => Err(why.to_string()),
        };
        if let Err(why) = said {
            tracing::debug!(why, "a greeting was not answered");
        }
    }

    /// A word for a node that may have to be greeted first.
    async fn sealed(
        &self,
        to: NodeId,
        subject: &str,
        body: &[u8],
        wait: Duration,
    ) -> Result<(Vec<u8>, Asked), SealedError> {
        match self.seal.seal(to, subject, body) {
            Err(Distrust::NotMet(_)) => {
                self.greet(to, wait.min(GREET_WAIT)).await?;
                Ok(self.seal.seal(to, subject, body)?)
            }
            sealed => Ok(sealed?),
        }
    }

    async fn greet(&self, node: NodeId, wait: Duration) -> Result<(), SealedError> {
        let (subject, nonce) = (subject::greet(&self.lattice, node), rand::random());
        let answer = self.bus.request(&subject, &[], Seal::greeting(nonce).into(), wait).await?;
        Ok(self.seal.meet(node, &subject, nonce, &answer.payload)?)
    }

    /// Greets a node beside what else is done; what it announces from then on is heard.
    fn greet_beside(&self, node: NodeId) {
        {
            let mut greeting = self.greeting();
            if greeting.len() >= GREETINGS_MAX || !greeting.insert(node) {
                return;
            }
        }
        let sealed = self.clone();
        tokio::spawn(async move {
            if let Err(why) = sealed.greet(node, GREET_WAIT).await {
                tracing::debug!(%node, %why, "greeting a node");
            }
            sealed.greeting().remove(&node);
        });
    }

    fn greeting(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        self.greeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self, asked: &Asked, answer: &Delivered) -> Result<Vec<u8>, Distrust> {
        self.seal.open_answer(asked, &answer.payload)
    }
}

/// What a subscription among members gets. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Listening {
    sealed: Sealed,
    subscription: Subscription,
}

/// The words on a subject, without an end.
#[derive(Debug)]
pub struct Words {
    sealed: Sealed,
    subject: String,
    listening: Option<Listening>,
}

impl Words {
    /// Waits for the next word. One that is not taken is an error, as for [`Listening::next`]. Cancelling the wait loses
    /// nothing.
    pub async fn next(&mut self) -> Result<Heard, Distrust> {
        loop {
            if let Some(listening) = &mut self.listening {
                if let Some(word) = listening.next().await {
                    return word;
                }
                self.listening = None;
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
            match self.sealed.listen(&self.subject).await {
                Ok(listening) => self.listening = Some(listening),
                Err(why) => {
                    tracing::warn!("not listening on {}: {why}", self.subject);
                    tokio::time::sleep(LISTEN_AGAIN).await;
                }
            }
        }
    }
}

impl Listening {
    /// Waits for the next word. `None` when the bus is closed. A word that is not taken is an error here, and its sender
    /// has been told why if it awaits an answer; listening goes on. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Result<Heard, Distrust>> {
        let delivered = self.subscription.next().await?;
        let opened = self.sealed.seal.open(&delivered.subject, &delivered.payload);
        Some(match opened {
            Ok(opened) => {
                let reply = delivered.reply.zip(opened.ticket).map(|(to, ticket)| Reply { to, ticket });
                Ok(Heard { from: opened.from, body: opened.body.into(), reply })
            }
            Err(why) => {
                self.refuse(delivered, &why);
                Err(why)
            }
        })
    }

    /// Beside what else is done, because who sends what is not taken must not hold up the others.
    fn refuse(&self, delivered: Delivered, why: &Distrust) {
        tracing::debug!(subject = delivered.subject, %why, "a word is not taken");
        if let Distrust::NotMet(node) = why {
            self.sealed.greet_beside(*node);
        }
        let Some(to) = delivered.reply else { return };
        let Some(notice) = self.sealed.seal.notice(&delivered.subject, &delivered.payload, why) else { return };
        let bus = self.sealed.bus.clone();
        // The asker sees a time-out if it cannot be told.
        tokio::spawn(async move { drop(bus.publish(&to, &[], notice.into()).await) });
    }
}
