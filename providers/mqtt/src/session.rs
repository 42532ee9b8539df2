//! Messages that must arrive: the server keeps a session for this node and link, also while the node is away, and each
//! message goes into a queue on this node's disk before it is acknowledged. From there the engine has it, with its attempts,
//! waits and dead letters.
//!
//! What the server gives again though it is stored is known by `given.rs`, and not stored again.
//!
//! Where one node of the lattice takes all messages of the link, it alone has its session, by an id that is the lattice's: when
//! another one is the home, the server goes on with what came while there was none. It shares the topic with nobody, since
//! servers keep the order of a topic only for who has it to himself. Sessions by which nodes had their parts before are given up
//! then, each by its node, once what is still in it is stored.
//!
//! With QoS 0 the server gives each message once, to who is there, and keeps no session: what came is stored all the same, and
//! what comes while the disk cannot take it waits in a bounded buffer, and then is lost. There is nothing to be forgotten.
//!
//! A session lasts longer than the link is applied: while the link is applied anew messages are stored all the same. Only
//! where the link is placed here no more the node unsubscribes, stores what is still on its way, and has the server forget it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use trellis_provider::{Depot, LinkError};
use trellis_wire::{LinkId, Message};

use crate::client::{self, Arrived, Heard};
use crate::config::{Qos, RECEIVE_MAX, Session, Settings};
use crate::connection::{ANSWER_MAX, Connection, Subscription};
use crate::given::Given;
use crate::source::BUFFER_MESSAGES_MAX;

/// The pauses while messages cannot be stored.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After so long without a message nothing more is on its way to who has unsubscribed.
const QUIET: Duration = Duration::from_millis(500);
/// How long a node goes on with its part after another one is to take all: until that has subscribed. Rather twice than never.
const HANDOVER: Duration = Duration::from_secs(5);
/// How often the server is asked to forget a session, and the pause after each time.
const LEAVE_TRIES: u32 = 6;
const LEAVE_PAUSE: Duration = Duration::from_secs(2);
/// The pause before that begins anew, where what the server keeps must still be had.
const LEAVE_AGAIN: Duration = Duration::from_secs(60);

/// What makes a session this one and no other.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) settings: Settings,
    pub(crate) qos: Qos,
    /// The client's id, where the server keeps a session.
    pub(crate) id: String,
    /// What is subscribed to.
    pub(crate) topic: String,
    /// The queue that its messages go to.
    pub(crate) queue: String,
}

/// A session that is kept.
pub(crate) struct Kept {
    wanted: Wanted,
    connection: Connection,
    /// Nothing more is stored.
    stop: CancellationToken,
    /// What still comes is stored, and then nothing more.
    last: CancellationToken,
    keeper: TaskTracker,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Kept {
    /// Goes on with a session, or begins it; a former one is not begun anew.
    fn open(wanted: Wanted, depot: Arc<dyn Depot>, is_former: bool) -> Result<Arc<Self>, LinkError> {
        let (session, room) = match wanted.qos {
            Qos::AtLeastOnce => (Session::Lasting(wanted.id.clone()), usize::from(RECEIVE_MAX)),
            Qos::AtMostOnce => (Session::Passing, BUFFER_MESSAGES_MAX),
        };
        let (inbox, waiting) = mpsc::channel(room);
        let subscription = Subscription { topic: wanted.topic.clone(), qos: wanted.qos, is_former };
        let connection = Connection::open(&wanted.settings, &session, Some(subscription), inbox)?;
        let kept = Self {
            connection,
            stop: CancellationToken::new(),
            last: CancellationToken::new(),
            keeper: TaskTracker::new(),
            trouble: Arc::default(),
            wanted,
        };
        let keeper = Keeper {
            depot,
            session: kept.wanted.id.clone(),
            queue: kept.wanted.queue.clone(),
            stop: kept.stop.clone(),
            last: kept.last.clone(),
            trouble: kept.trouble.clone(),
        };
        kept.keeper.spawn(keeper.run(waiting));
        kept.keeper.close();
        Ok(Arc::new(kept))
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        lock(&self.trouble).clone().map_or_else(|| self.connection.health(), Err)
    }

    /// Ends the connection, so that the server keeps what comes for later. Where it keeps nothing, what has come is stored
    /// first, if the disk takes it in time.
    async fn close(&self) {
        if self.wanted.qos == Qos::AtMostOnce {
            // The connection ends either way.
            drop(timeout(ANSWER_MAX, self.try_leave()).await);
        }
        self.stop.cancel();
        self.keeper.wait().await;
        self.connection.close().await;
    }

    /// Has the server forget it, again while it does not. Whether it has.
    async fn leave(&self) -> bool {
        let mut left = self.try_leave().await;
        for _ in 1..LEAVE_TRIES {
            if left.is_ok() {
                break;
            }
            sleep(LEAVE_PAUSE).await;
            left = self.try_leave().await;
        }
        if let Err(why) = &left {
            let (server, Wanted { id, topic, .. }) = (self.wanted.settings.shown(), &self.wanted);
            tracing::warn!(server, id, topic, "the server still keeps messages that nobody fetches: {why}");
        }
        left.is_ok()
    }

    /// What was done of it before is not done again.
    async fn try_leave(&self) -> Result<(), String> {
        let is_kept = self.wanted.qos == Qos::AtLeastOnce;
        if !self.last.is_cancelled() {
            let unsubscribed = self.connection.unsubscribe().await;
            if is_kept {
                unsubscribed?;
            }
            self.last.cancel();
        }
        self.keeper.wait().await;
        self.connection.close().await;
        if !is_kept {
            return Ok(());
        }
        let over = Session::Over(self.wanted.id.clone());
        let options = self.wanted.settings.options(&over).map_err(|why| why.to_string())?;
        let (client, mut events) = client::open(&options);
        let forgotten = async {
            loop {
                match events.poll(&client).await? {
                    Heard::Connected(_) => client.disconnect()?,
                    Heard::Ends => return Ok(()),
                    _ => {}
                }
            }
        };
        timeout(ANSWER_MAX, forgotten).await.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_MAX:?}")))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Stores messages, then acknowledges them.
struct Keeper {
    depot: Arc<dyn Depot>,
    /// The client's id.
    session: String,
    queue: String,
    stop: CancellationToken,
    last: CancellationToken,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Keeper {
    async fn run(self, mut waiting: mpsc::Receiver<Arrived>) {
        let most = waiting.max_capacity();
        let Some(mut given) = self.given().await else { return };
        loop {
            let mut arrived = Vec::with_capacity(most);
            let quiet = async {
                self.last.cancelled().await;
                sleep(QUIET).await;
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                count = waiting.recv_many(&mut arrived, most) => if count == 0 { return },
                () = quiet => return,
            }
            let new = new_of(&arrived, &mut given);
            if !self.keep(new, &given).await {
                return;
            }
            for one in arrived {
                one.acknowledge().await;
            }
        }
    }

    /// What is stored already. `None`: nothing more is to be stored.
    async fn given(&self) -> Option<Given> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.depot.note(&self.queue) {
                Ok(note) => {
                    *lock(&self.trouble) = None;
                    return Some(Given::read(&self.session, &note));
                }
                Err(why) if self.fails(&why, &mut pause).await => return None,
                Err(_) => {}
            }
        }
    }

    /// Stores messages, however long the disk takes; what came together is written together, in its order. While there is no
    /// room nothing is acknowledged, and the server holds back what is next. Whether they are stored.
    async fn keep(&self, new: Vec<Message>, given: &Given) -> bool {
        let mut pause = PAUSE_MIN;
        while !new.is_empty() {
            match self.depot.keep(&self.queue, new.clone(), given.note()).await {
                Ok(()) => break,
                Err(why) if self.fails(&why, &mut pause).await => return false,
                Err(_) => {}
            }
        }
        *lock(&self.trouble) = None;
        true
    }

    /// Says what is wrong, and waits before the next try. Whether nothing more is to be stored.
    async fn fails(&self, why: &str, pause: &mut Duration) -> bool {
        *lock(&self.trouble) = Some(format!("messages cannot be stored, and wait: {why}"));
        tokio::select! {
            () = self.stop.cancelled() => true,
            () = sleep(*pause) => {
                *pause = (*pause * 2).min(PAUSE_MAX);
                false
            }
        }
    }
}

/// What of this is not stored yet.
fn new_of(arrived: &[Arrived], given: &mut Given) -> Vec<Message> {
    let is_new = |one: &&Arrived| {
        if let Some(what) = one.begins {
            given.begin(what);
        }
        one.number().is_none_or(|number| !given.is_stored(number, one.again, &one.message))
    };
    arrived.iter().filter(is_new).map(|one| one.message.clone()).collect()
}

/// The sessions of this node.
#[derive(Default)]
pub(crate) struct Sessions {
    /// By link: one that is applied, or may be applied anew.
    kept: Mutex<HashMap<LinkId, Arc<Kept>>>,
    /// By the client's id: those that the server is to forget.
    leaving: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
    /// By the client's id: those that the server is to forget once this node has what is in them.
    retiring: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
}

impl Sessions {
    /// The session of a link: the one that is there, if it is what is wanted.
    pub(crate) async fn open(
        &self,
        link: &LinkId,
        wanted: Wanted,
        depot: &Arc<dyn Depot>,
    ) -> Result<Arc<Kept>, LinkError> {
        let before = lock(&self.kept).remove(link);
        let kept = match before {
            Some(before) if before.wanted == wanted => before,
            before => {
                match before {
                    Some(before) if before.wanted.id == wanted.id => before.close().await,
                    Some(before) => self.leave(before),
                    None => {}
                }
                // One that is wanted again is not to be forgotten after all.
                drop(lock(&self.leaving).remove(&wanted.id));
                drop(lock(&self.retiring).remove(&wanted.id));
                Kept::open(wanted, depot.clone(), false)?
            }
        };
        lock(&self.kept).insert(link.clone(), kept.clone());
        Ok(kept)
    }

    /// Gives up the session by which this node had its own part of a link's messages, in this process or an earlier one, once
    /// what it still has is stored. If this process ends before, the next one is to do so.
    pub(crate) fn retire(&self, link: &LinkId, own: Wanted, depot: &Arc<dyn Depot>) -> Result<(), LinkError> {
        let id = own.id.clone();
        let before = lock(&self.kept).extract_if(|of, kept| of == link && kept.wanted.id == id).next();
        let mut retiring = lock(&self.retiring);
        retiring.retain(|_, retiring| !retiring.is_finished());
        let former = match before {
            Some((_, before)) => before,
            None if own.qos == Qos::AtMostOnce || retiring.contains_key(&id) => return Ok(()),
            None => Kept::open(own, depot.clone(), true)?,
        };
        let task = async move {
            sleep(HANDOVER).await;
            while !former.leave().await {
                sleep(LEAVE_AGAIN).await;
            }
        };
        retiring.insert(id, AbortOnDropHandle::new(tokio::spawn(task)));
        Ok(())
    }

    /// Begins to have the server forget the session of a link.
    pub(crate) fn forget(&self, link: &LinkId) {
        if let Some(kept) = lock(&self.kept).remove(link) {
            self.leave(kept);
        }
    }

    fn leave(&self, kept: Arc<Kept>) {
        let id = kept.wanted.id.clone();
        let leaving = AbortOnDropHandle::new(tokio::spawn(async move {
            kept.leave().await;
        }));
        let mut all = lock(&self.leaving);
        all.retain(|_, leaving| !leaving.is_finished());
        all.insert(id, leaving);
    }

    /// Ends all of them, and returns when those that are to be forgotten are.
    pub(crate) async fn drain(&self) {
        lock(&self.retiring).clear();
        let kept: Vec<_> = lock(&self.kept).drain().map(|(_, kept)| kept).collect();
        let leaving: Vec<_> = lock(&self.leaving).drain().map(|(_, leaving)| leaving).collect();
        join_all(kept.iter().map(|kept| kept.close())).await;
        for left in join_all(leaving).await {
            if let Err(why) = left {
                tracing::warn!(%why, "a session was not given up");
            }
        }
    }
}

/// Nothing panics while it holds one of these.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
