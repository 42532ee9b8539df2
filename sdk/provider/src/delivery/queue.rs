//! What a broker supplies to the engine: a queue to pull from, and a ledger for what must outlive a node.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use trellis_wire::Message;

use super::letter::{DeadLetter, Fate};
use super::policy::{Record, Settlement};

/// How long a claim lasts that is not extended.
pub const CLAIM: Duration = Duration::from_secs(10);
/// How often a claim is extended while its message is worked on.
pub const EXTEND_EVERY: Duration = Duration::from_secs(3);
/// Messages that one pull may bring.
pub const PULL_MAX: usize = 256;
/// Longest key of a ledger, in bytes. Keys are made of `A-Z a-z 0-9 - _ = /`.
pub const LEDGER_KEY_BYTES_MAX: usize = 200;
/// Largest value of a ledger, in bytes. What is larger is divided by whoever writes it.
pub const LEDGER_VALUE_BYTES_MAX: usize = 256 * 1024;

/// Why a broker could not do something, for people. The engine tries again.
pub type Trouble = String;

/// A queue, as the engine of one link sees it. Claims are the broker's own: whatever it needs to settle.
///
/// `trellis_provider::testing::contract` says as a test what each of these must guarantee; every broker runs it.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// A message that was given out and is not settled.
    type Claim: Send + Sync + 'static;

    /// Waits until there is probably something to pull, and says about how many. Claims nothing, and may be dropped.
    ///
    /// # Errors
    /// The broker is not there, or what is to be pulled from is not.
    async fn ready(&self) -> Result<usize, Trouble>;

    /// Claims up to `max` messages for [`CLAIM`] and returns soon, with none if there are none. What was given out before
    /// and came back goes before what is new.
    ///
    /// # Errors
    /// As for [`Queue::ready`].
    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Self::Claim>>, Trouble>;

    /// Waits until a connection that is broken stands again, and for ever where it is not broken: a link that fails is tried
    /// then, and else every 30 s in the end. `None`: the broker cannot tell, and it is tried every 5 s.
    fn mends(&self) -> Option<BoxFuture<'_, ()>> {
        None
    }

    /// Carries out a settlement. A claim that has ended meanwhile is no error: the message is given out again.
    ///
    /// # Errors
    /// It is not carried out, and is tried again.
    async fn settle(&self, claim: &Self::Claim, settlement: &Settlement) -> Result<(), Trouble>;

    /// Whether a dead letter is stored first and its message taken off then, so that who dies in between leaves both. The letter's
    /// message has the id that the message was given out with. A broker that does it in one step needs nothing kept of it.
    fn buries_in_two_steps(&self) -> bool {
        false
    }

    /// Whether a settlement failed for what its message is, such as too large, and others may go well.
    fn is_of_one(&self, _why: &Trouble) -> bool {
        false
    }

    /// Makes a claim last for [`CLAIM`] from now on.
    ///
    /// # Errors
    /// It is tried again with the next tick.
    async fn extend(&self, claim: &Self::Claim) -> Result<(), Trouble>;

    /// An attempt is over, in `fault` if in one, and the next is made under the same claim: an ordered link keeps a
    /// message between its attempts, so that none overtakes it. What was counted so outlives the claim.
    ///
    /// # Errors
    /// It is not counted.
    async fn note(&self, claim: &Self::Claim, fault: Option<&str>) -> Result<(), Trouble>;

    /// An ordered link pulls from it no more for now: its term is over, and nothing that was pulled will be settled. By default
    /// claims are left to end. A broker whose claims last as long as a consumer ends that.
    async fn leave(&self) {}

    /// How the queue stands.
    ///
    /// # Errors
    /// The broker is not there.
    async fn standing(&self) -> Result<Standing, Trouble>;

    /// What was given out before and is not settled for good: an ordered link begins with that. Where the broker cannot tell
    /// more, all that [`Standing::claimed`] counts.
    ///
    /// # Errors
    /// The broker is not there.
    async fn out(&self) -> Result<Out, Trouble> {
        let all = self.standing().await?.claimed;
        Ok(Out { all, later: all })
    }

    /// Up to `max` dead letters of this queue and component after the one of this id, or from the oldest on, in the order
    /// in which they were given up.
    ///
    /// # Errors
    /// They cannot be read.
    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble>;

    /// Puts a dead letter back, as if it were published now and only for the component that gave it up, or forgets it. It
    /// is no dead letter any more then. Returns it; `None`: this component has none of that id, so that a second time
    /// does nothing. For an ordered link what is put back comes before all that waits, since that may wait for it.
    ///
    /// # Errors
    /// It is not done, or not wholly: the same again makes it whole, and where that may bring the message twice, both say so
    /// by [`Place::once`].
    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble>;

    /// The ledger beside the queue, or the lattice's where the broker has no place for one. `None`: there is none, and
    /// `delivery.dedupe` is refused; what a handler publishes then goes out before its message is settled, and is made anew
    /// where a node dies in between.
    fn ledger(&self) -> Option<&dyn Ledger>;

    /// Whether no other node can pull from it: then it needs no lease to keep its order.
    fn is_of_one_node(&self) -> bool {
        false
    }

    /// Whether [`Place::position`] is known, and what comes back comes first: without, `delivery.order_by` is refused.
    fn keeps_order(&self) -> bool;
}

/// Small entries by key, kept where the queue is and for as long: marks of what was handled, outboxes, parked keys.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Reads an entry; there is none once its time is over.
    ///
    /// # Errors
    /// It cannot be read.
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble>;

    /// Writes `new` for so long, or removes the entry where that is `None`, if the entry is `old`, which is `None` where
    /// there is none. Whether it was. One of two who do that at the same time is told no.
    ///
    /// # Errors
    /// Whether it was written is not known.
    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble>;

    /// Removes an entry, whatever it is. Whether there is none then: another may have written it anew.
    ///
    /// # Errors
    /// As for [`Ledger::read`] and [`Ledger::swap`].
    async fn remove(&self, key: &str) -> Result<bool, Trouble> {
        match self.read(key).await? {
            Some(old) => self.swap(key, Some(&old), None, Duration::ZERO).await,
            None => Ok(true),
        }
    }

    /// Every key below `prefix`, which ends in `/`, that has an entry; at most 10,000.
    ///
    /// # Errors
    /// They cannot be read.
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble>;
}

/// A message that a broker gave out.
#[derive(Debug)]
pub struct Claimed<C> {
    /// To settle it with.
    pub claim: C,
    /// The message, with `attempt` as in the record.
    pub message: Message,
    /// What is known of it.
    pub record: Record,
    /// Where it comes from.
    pub place: Place,
}

/// Where a message comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Names it in its queue: the same at every delivery, and no other's. Made of what a ledger's key may hold.
    pub key: String,
    /// Whether it is another's as well where publishers named two messages alike: the broker has no name of its own for one.
    /// Then one that is being handled cannot be told from its twin.
    pub has_twins: bool,
    /// Where it stands in its queue: what was published later stands higher. `None` where the broker cannot say.
    pub position: Option<u128>,
    /// Whether it was given out before, to whomever and whatever came of it: then the ledger may know something of it.
    pub again: bool,
    /// What its publisher named it by, if it did: two with one name are the same to `delivery.dedupe`.
    pub name: Option<String>,
    /// The id of the dead letter that it was, if it is replayed.
    pub replay_of: Option<String>,
    /// What names that dead letter for ever, where the broker puts one back and takes it off in two steps: who dies between them
    /// leaves it, and it may be put back once more. Of what has one name only that counts which was pulled first.
    pub once: Option<String>,
}

/// Messages that were given out before, on whatever node, and are not settled, or were given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Out {
    /// All of them: those that are claimed, and those that wait, be it for a time to come.
    pub all: u64,
    /// Those of them that no pull brings yet.
    pub later: u64,
}

/// How a queue stands at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Messages that wait.
    pub waiting: u64,
    /// Messages that are given out and not settled, on whatever node. Where a broker does not tell them apart (NATS), also
    /// those that wait for their next attempt: people are told that what no node holds waits.
    pub claimed: u64,
    /// How long ago the oldest that waits was published, where the broker can say.
    pub oldest_age: Option<Duration>,
    /// Dead letters beside the queue, of whatever component, where the broker can count them.
    pub dead: Option<u64>,
}
