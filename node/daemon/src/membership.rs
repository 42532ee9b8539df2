//! How a node comes into its lattice: it starts one, goes on in the one its data directory belongs to, or asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};
use trellis_bus::{Bus, Connection, Sealed, Subscription};
use trellis_placement::{
    Applied, Capacity, Command, Downgraded, GivenTimings, NodeFacts, OtherTimings, Patience, Refusal, State,
    TrustChange, UnfitTimings,
};
use trellis_raft::{ProposeError, Raft, RaftError, Timing};
use trellis_trust::{Presented, Token, presented};
use trellis_wire::{LatticeId, LatticeName, LatticeSecret, NodeId, NodeKey, Secret, frame, subject};

use crate::api::Front;
use crate::forgotten;
use crate::join::{Answer, Challenges, Here, Nonce, Question, Said};
use crate::node::{Node, Options};
use crate::proposal;
use crate::risen::{Parting, risen};
use crate::seldom::Seldom;

/// How long members of a lattice may take to say that they are there.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// The wait between two tries to record this node's facts.
const RETRY: Duration = Duration::from_secs(1);
/// How often a node that knows itself recorded looks whether somebody spoke whom it does not know.
const INTRODUCE_EVERY: Duration = Duration::from_secs(5);
/// How often a node that waits says for what.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How many members of a lattice are taken into account by a node that joins: all that may belong to the log, and room.
const MEMBERS_MAX: usize = 64;
/// Keeps the id of the lattice that a node was told to belong to, before the log says it.
const LATTICE_ID: &str = "lattice-id";
/// How many lattices of one name are looked at.
const LATTICES_MAX: usize = 4;

/// Why a node cannot be in its lattice.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// `--bootstrap`, but there is one.
    #[error(
        "a lattice named {name} answers already (id {id}): join it without --bootstrap, or choose another --lattice"
    )]
    Exists {
        /// Its name.
        name: LatticeName,
        /// Its id.
        id: LatticeId,
    },
    /// `--edge --bootstrap`.
    #[error(
        "--edge and --bootstrap contradict each other: a node at the edge has no vote, and lattice {0} would have no other \
         voter. Start it on a node without --edge, and this one without --bootstrap"
    )]
    EdgeAlone(LatticeName),
    /// More than one lattice of that name answers.
    #[error(
        "two lattices named {name} answer on this NATS (ids {ids}): give one of them another --lattice or another NATS \
         account, then start this node again"
    )]
    Two {
        /// Their name.
        name: LatticeName,
        /// Their ids.
        ids: String,
    },
    /// The data directory was given to another lattice of that name.
    #[error(
        "this data directory was to join lattice {name} with id {ours}, and the lattice that answers has id {theirs}: \
         give the node an empty --data-dir to join this one"
    )]
    Other {
        /// The name of both.
        name: LatticeName,
        /// What the data directory says.
        ours: LatticeId,
        /// What answers.
        theirs: LatticeId,
    },
    /// The lattice will not have it.
    #[error("lattice {0} does not admit this node: {1}")]
    NotAdmitted(LatticeName, String),
    /// What answers does not know the join token that this node was given.
    #[error(
        "lattice {name} answers (id {ids}) and does not prove that it knows this node's --join-token: the token is another \
         one, or the lattice has none, or something else answers in its name"
    )]
    Unproven {
        /// Its name.
        name: LatticeName,
        /// What it says its id is.
        ids: String,
    },
    /// The data directory's key is not the node's.
    #[error("this node cannot go on in its lattice: {0}")]
    Key(Refusal),
    /// The data directory was written by a newer build.
    #[error("this node cannot go on in its lattice: {0}")]
    Downgraded(#[from] Downgraded),
    /// It was given other timings than the lattice has.
    #[error("this node cannot go on in its lattice: {0}")]
    OtherTimings(#[from] OtherTimings),
    /// Those that it was given make no sense.
    #[error(transparent)]
    UnfitTimings(#[from] UnfitTimings),
    /// The data directory.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The bus.
    #[error("the lattice cannot be asked: {0}")]
    Bus(#[from] trellis_bus::BusError),
    /// The log.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The founding command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Opens the log and brings the node into its lattice: starts one, goes on in the one its data directory belongs to, or
/// asks to join and waits until somebody answers.
pub(crate) async fn enter(
    options: &Options,
    facts: &NodeFacts,
    sealed: &Sealed,
    (control, front): (&Handle, &Front),
) -> Result<Raft, MembershipError> {
    let told = read_lattice_id(&options.data_dir)?;
    let raft = open(options, sealed, told, control).await?;
    if raft.is_initialized().await? {
        check_key(&raft.state().borrow(), facts)?;
        raft.state().borrow().check_build()?;
        check_timings(&raft.state().borrow(), &options.timings)?;
        // A founder that was stopped in between goes on with founding.
        if options.nats.is_none() || options.bootstrap {
            found(options, &raft).await?;
        } else if told.is_some() && raft.state().borrow().node(facts.id).is_none() {
            // It was ended right after it was let in, and knows of no entry that it is committed: either its log goes on by
            // itself, or it asks again and hears why not.
            let (mut asking, mut states) = (Asking::new(facts, sealed).await?, raft.state());
            tokio::select! {
                Ok(_) = states.wait_for(|state| state.node(facts.id).is_some()) => {}
                joined = join(options, &mut asking, (control, front), raft.clone(), told) => return joined,
            }
        }
        return Ok(raft);
    }
    if options.edge && options.bootstrap {
        return Err(MembershipError::EdgeAlone(options.lattice.clone()));
    }
    check_timings(&raft.state().borrow(), &options.timings)?;
    if options.nats.is_some() {
        let mut asking = Asking::new(facts, sealed).await?;
        if !options.bootstrap {
            return join(options, &mut asking, (control, front), raft, told).await;
        }
        // Whoever founds a lattice while its NATS is down is told later if there is another one of its name.
        drop(timeout(ANSWER_WAIT, sealed.bus().connection().wait_for(Connection::is_connected)).await);
        let lattice = &options.lattice;
        match asking.who(|_| false).await {
            Ok(answers) => {
                if let Some((_, answer)) = answers.first() {
                    return Err(MembershipError::Exists { name: lattice.clone(), id: answer.here.lattice });
                }
            }
            Err(why) => {
                tracing::warn!("whether a lattice {lattice} exists cannot be asked ({why}): it is started here")
            }
        }
    }
    found(options, &raft).await?;
    Ok(raft)
}

/// The lattice that a node has entered. One that joined may be told its state later.
pub(crate) fn lattice_id(options: &Options, raft: &Raft) -> Result<Option<LatticeId>, MembershipError> {
    let known = raft.state().borrow().lattice_id();
    known.map_or_else(|| read_lattice_id(&options.data_dir), |id| Ok(Some(id)))
}

/// A node is its id together with its key.
fn check_key(state: &State, facts: &NodeFacts) -> Result<(), MembershipError> {
    match state.node(facts.id) {
        Some(known) if known.facts.key != facts.key => {
            Err(MembershipError::Key(Refusal::OtherKey { node: facts.id, known: known.facts.key, found: facts.key }))
        }
        _ => Ok(()),
    }
}

/// What a node was given must be what its lattice has; where that has none yet, it must make sense.
fn check_timings(state: &State, given: &GivenTimings) -> Result<(), MembershipError> {
    match state.timings() {
        Some(_) => Ok(state.check_timings(given)?),
        None => Ok(given.over(Patience::default()).check()?),
    }
}

/// Founds the lattice and says who may join it, as far as that is not done. Where others vote too it is.
async fn found(options: &Options, raft: &Raft) -> Result<(), MembershipError> {
    if raft.state().borrow().trust().is_some() || raft.members().voters.len() > 1 {
        return Ok(());
    }
    let lattice = raft.bootstrap(LatticeId::new(uuid::Uuid::now_v7())).await?;
    let token = match &options.join_token {
        Some(text) => Some(token(lattice, text).await.key()),
        None => None,
    };
    let secret = LatticeSecret::new(rand::random());
    let begin = TrustChange::Begin { secret, token, allowed: options.allow_nodes.clone() };
    raft.propose(proposal::entry(Command::Trust(begin))).await?;
    raft.read_barrier().await?;
    Ok(())
}

/// Takes some tenths of a second of a core, on purpose.
pub(crate) async fn token(lattice: LatticeId, text: &Secret) -> Token {
    let text = text.clone();
    tokio::task::spawn_blocking(move || Token::new(lattice, text.expose()))
        .await
        .expect("deriving a key does not panic")
}

/// On the threads that busy guests cannot starve.
async fn open(
    options: &Options,
    sealed: &Sealed,
    lattice_id: Option<LatticeId>,
    control: &Handle,
) -> Result<Raft, MembershipError> {
    let opening = trellis_raft::open(trellis_raft::Options {
        data_dir: options.data_dir.clone(),
        host: hostname(),
        lattice_id,
        sealed: sealed.clone(),
        timing: Timing::default(),
    });
    let opened = control.spawn(opening).await;
    Ok(opened.map_err(|why| RaftError::Stopped(why.to_string()))??)
}

/// Waits for the lattice's NATS: without it nobody can be asked.
async fn connected(bus: &Bus, lattice: &LatticeName, front: &Front) {
    let mut connection = bus.connection();
    loop {
        if timeout(ANSWER_WAIT, connection.wait_for(Connection::is_connected)).await.is_ok() {
            return;
        }
        let why = match &*connection.borrow() {
            Connection::Connected { .. } => continue,
            Connection::Disconnected { reason } | Connection::Refused(reason) => reason.clone(),
        };
        waits(front, format!("waiting for the NATS of lattice {lattice}: {why}"));
        drop(timeout(TELL_EVERY, connection.wait_for(Connection::is_connected)).await);
    }
}

/// Says what the node waits for, in the log and to whoever asks its admin API.
fn waits(front: &Front, what: String) {
    tracing::warn!("{what}");
    front.waits(what);
}

/// A node that asks, and where its answers come.
struct Asking<'a> {
    facts: &'a NodeFacts,
    sealed: &'a Sealed,
    answers: Subscription,
    /// Of lines about answers that are none.
    unclear: Seldom,
}

/// An answer, and who gave it.
type Answered = (Presented, Answer);

/// What came of asking to be let in.
enum Admission {
    /// The node is recorded in this incarnation of the lattice; this one leads.
    Admitted(NodeId, u32),
    /// It is not to be.
    Refused(String),
    /// Nobody who could decide answered.
    Unanswered,
}

impl<'a> Asking<'a> {
    async fn new(facts: &'a NodeFacts, sealed: &'a Sealed) -> Result<Self, MembershipError> {
        let answers = sealed.bus().subscribe(&subject::joining(sealed.lattice(), facts.id), None).await?;
        Ok(Self { facts, sealed, answers, unclear: Seldom::default() })
    }

    async fn ask(&self, question: &Question) -> Result<(), MembershipError> {
        let subject = subject::join(self.sealed.lattice());
        let asked = self.sealed.seal().present(&subject, &frame::encode(question));
        Ok(self.sealed.bus().publish(&subject, &[], asked.into()).await?)
    }

    /// The next answer to the question with this nonce. `None`: none came in time.
    async fn answer(&mut self, nonce: Nonce, deadline: Instant) -> Option<Answered> {
        while let Ok(Some(answer)) = timeout_at(deadline, self.answers.next()).await {
            let read = presented(&answer.subject, &answer.payload).map_err(|why| why.to_string());
            let read = read.and_then(|by| Ok((frame::decode::<Answer>(&by.body).map_err(|why| why.to_string())?, by)));
            match read {
                Ok((answer, by)) if answer.here.echo == nonce => return Some((by, answer)),
                Ok(_) => {}
                Err(why) => {
                    let lattice = self.sealed.lattice();
                    if let Some(left_out) = self.unclear.due(std::time::Instant::now()) {
                        tracing::warn!(
                            left_out,
                            "something answers for lattice {lattice} that is not understood: {why}"
                        );
                    }
                }
            }
        }
        None
    }

    /// Everyone of a lattice of this name who answers in time, or until one is found that is `enough`.
    async fn who(&mut self, enough: impl Fn(&Answered) -> bool) -> Result<Vec<Answered>, MembershipError> {
        self.all(Question::Who, enough).await
    }

    /// The same of those who know of incarnations, for that question.
    async fn incarnations(&mut self) -> Result<Vec<Answered>, MembershipError> {
        self.all(Question::Incarnation, |_| false).await
    }

    async fn all(
        &mut self,
        question: fn(Nonce) -> Question,
        enough: impl Fn(&Answered) -> bool,
    ) -> Result<Vec<Answered>, MembershipError> {
        let nonce = rand::random();
        self.ask(&question(nonce)).await?;
        let (deadline, mut found) = (Instant::now() + ANSWER_WAIT, Vec::new());
        while let Some(answered) = self.answer(nonce, deadline).await {
            found.push(answered);
            if found.len() >= 2 * MEMBERS_MAX || found.last().is_some_and(&enough) {
                break;
            }
        }
        Ok(found)
    }

    /// Asks the leader of this lattice to be let in, once. With a token only one that proves to know it is asked.
    async fn admit(
        &mut self,
        lattice: LatticeId,
        token: Option<&Token>,
        given: &GivenTimings,
    ) -> Result<Admission, MembershipError> {
        let (id, key) = (self.facts.id, self.facts.key);
        let is_it = |(by, answer): &Answered| {
            answer.here.lattice == lattice && token.is_none_or(|token| answer.is_vouched(&token.key(), id, by))
        };
        let leads = |(_, answer): &Answered| match answer.here.said {
            Said::Present(Some(challenge)) => Some(challenge),
            _ => None,
        };
        let challenge = |answered: &Answered| is_it(answered).then(|| leads(answered)).flatten();
        let answered = self.who(|answered| challenge(answered).is_some()).await?;
        let Some(challenge) = answered.last().and_then(challenge) else { return Ok(Admission::Unanswered) };
        let proof = token.map(|token| token.prove(&challenge, id, key));
        let mut facts = Box::new(self.facts.clone());
        facts.tell_timings(given);
        self.ask(&Question::Admit { facts, lattice, challenge, proof }).await?;
        let deadline = Instant::now() + 2 * ANSWER_WAIT;
        while let Some(answered) = self.answer(challenge, deadline).await {
            if !is_it(&answered) {
                continue;
            }
            let (by, answer) = answered;
            match answer.here.said {
                Said::Refused(why) => return Ok(Admission::Refused(why)),
                Said::Present(_) | Said::Incarnation(_) => {}
                said @ (Said::Admitted | Said::AdmittedTo(_)) => {
                    self.introduce(answer.here.members.into_iter().chain([(by.from, by.key)]));
                    let incarnation = if let Said::AdmittedTo(number) = said { number } else { 0 };
                    return Ok(Admission::Admitted(by.from, incarnation));
                }
            }
        }
        Ok(Admission::Unanswered)
    }

    fn introduce(&self, members: impl Iterator<Item = (NodeId, NodeKey)>) {
        for (node, key) in members.take(MEMBERS_MAX) {
            self.sealed.seal().introduce(node, key);
        }
    }
}

async fn join(
    options: &Options,
    asking: &mut Asking<'_>,
    (control, front): (&Handle, &Front),
    raft: Raft,
    told: Option<LatticeId>,
) -> Result<Raft, MembershipError> {
    let name = &options.lattice;
    connected(asking.sealed.bus(), name, front).await;
    let (found, token) = find(options, asking, front).await?;
    let raft = match told {
        Some(ours) if ours == found => raft,
        Some(ours) => return Err(MembershipError::Other { name: name.clone(), ours, theirs: found }),
        None => {
            // From here on another lattice's messages are refused from the first on.
            raft.shutdown().await;
            write_lattice_id(&options.data_dir, found)?;
            open(options, asking.sealed, Some(found), control).await?
        }
    };
    match admitted(options, (asking, front), &raft, (found, token.as_ref())).await {
        Ok(()) => Ok(raft),
        Err(why) => {
            raft.shutdown().await;
            Err(why)
        }
    }
}

/// Asks until exactly one lattice of this name answers, and proves to know the node's token if it has one.
async fn find(
    options: &Options,
    asking: &mut Asking<'_>,
    front: &Front,
) -> Result<(LatticeId, Option<Token>), MembershipError> {
    let name = &options.lattice;
    let mut told: Option<Instant> = None;
    loop {
        let answered = match asking.who(|_| false).await {
            Ok(answered) => answered,
            Err(why) => {
                waits(front, format!("waiting for lattice {name}: {why}"));
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if !answered.is_empty() {
            return one_of(options, asking.facts.id, &answered).await;
        }
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            told = Some(Instant::now());
            let asks = "no member answers yet. Is one started with --bootstrap, on this NATS and in this account?";
            waits(front, format!("waiting for lattice {name}: {asks}"));
        }
    }
}

/// The one lattice that answered.
async fn one_of(
    options: &Options,
    me: NodeId,
    answered: &[Answered],
) -> Result<(LatticeId, Option<Token>), MembershipError> {
    let name = options.lattice.clone();
    let ids: BTreeSet<LatticeId> = answered.iter().map(|(_, answer)| answer.here.lattice).take(LATTICES_MAX).collect();
    let text = |ids: &BTreeSet<LatticeId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut proven = Vec::new();
    for id in &ids {
        let Some(text) = &options.join_token else {
            proven.push((*id, None));
            continue;
        };
        let token = token(*id, text).await;
        let of_it = |(by, answer): &Answered| answer.here.lattice == *id && answer.is_vouched(&token.key(), me, by);
        if answered.iter().any(of_it) {
            proven.push((*id, Some(token)));
        }
    }
    match (proven.pop(), proven.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(MembershipError::Two { name, ids: text(&ids) }),
        (None, _) => Err(MembershipError::Unproven { name, ids: text(&ids) }),
    }
}

/// Asks to be let in until this node's own log says that it is.
async fn admitted(
    options: &Options,
    (asking, front): (&mut Asking<'_>, &Front),
    raft: &Raft,
    (lattice, token): (LatticeId, Option<&Token>),
) -> Result<(), MembershipError> {
    let (mut states, me, name) = (raft.state(), asking.facts.id, &options.lattice);
    tracing::info!("joining lattice {name} (id {lattice})");
    front.waits(format!("joining lattice {name} (id {lattice})"));
    loop {
        match asking.admit(lattice, token, &options.timings).await {
            Ok(Admission::Admitted(leader, incarnation)) => {
                tracing::info!("admitted; the log is on its way");
                raft.rise(incarnation);
                // Nobody brings it to a node that follows from outside.
                raft.follow(leader);
            }
            Ok(Admission::Refused(why)) => return Err(MembershipError::NotAdmitted(name.clone(), why)),
            Ok(Admission::Unanswered) => {
                let asks = "its leader has not let this node in yet; asking again";
                waits(front, format!("waiting for lattice {name}: {asks}"));
            }
            Err(why) => waits(front, format!("joining lattice {name}: {why}")),
        }
        let seen = states.wait_for(|state| state.node(me).is_some());
        if let Ok(Ok(_)) = timeout(2 * ANSWER_WAIT, seen).await {
            tracing::info!("joined lattice {name}");
            return Ok(());
        }
    }
}

fn read_lattice_id(data_dir: &Path) -> Result<Option<LatticeId>, MembershipError> {
    let path = data_dir.join(LATTICE_ID);
    let damaged = |why: String| MembershipError::Disk { path: path.clone(), source: std::io::Error::other(why) };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|why: trellis_wire::IdError| damaged(why.to_string())),
        Err(none) if none.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MembershipError::Disk { path, source }),
    }
}

fn write_lattice_id(data_dir: &Path, id: LatticeId) -> Result<(), MembershipError> {
    let (path, part) = (data_dir.join(LATTICE_ID), data_dir.join(format!("{LATTICE_ID}.part")));
    let written = || {
        std::fs::write(&part, id.to_string())?;
        std::fs::File::open(&part)?.sync_all()?;
        std::fs::rename(&part, &path)
    };
    written().map_err(|source| MembershipError::Disk { path: path.clone(), source })
}

/// Records this node's facts in the lattice, and answers those who ask which lattice is here or want to join, until
/// shutdown.
pub(crate) async fn serve(node: Arc<Node>, facts: NodeFacts, given: GivenTimings) {
    tokio::select! {
        () = async { tokio::join!(record(&node, &facts, &given), answer(&node)); } => {}
        () = node.shutdown.cancelled() => {}
    }
}

async fn record(node: &Node, facts: &NodeFacts, given: &GivenTimings) {
    let (mut states, mut disowned, mut told) = (node.raft.state(), false, None);
    let mut looked = Instant::now();
    loop {
        let state = states.borrow_and_update().clone();
        warn_of_timings(&state, given, &mut told);
        let known = state.node(node.id);
        if known.is_some_and(|known| known.facts == *facts) {
            match timeout(INTRODUCE_EVERY, states.changed()).await {
                Ok(Ok(())) if looked.elapsed() < INTRODUCE_EVERY => continue,
                Ok(Err(_)) => return,
                Ok(Ok(())) | Err(_) => looked = Instant::now(),
            }
        } else {
            let why = match node.raft.propose(proposal::entry(Command::Join(facts.clone()))).await {
                Ok(Applied::Refused(why)) => why.to_string(),
                Ok(_) => {
                    // A follower has it some time after the leader; asked again meanwhile, it would say all of it again.
                    let is_known = |state: &Arc<State>| state.node(node.id).is_some_and(|known| known.facts == *facts);
                    drop(timeout(RETRY, states.wait_for(is_known)).await);
                    continue;
                }
                Err(why) => why.to_string(),
            };
            tracing::warn!("this node is not recorded in the lattice yet: {why}");
        }
        be_introduced(node, facts, &state).await;
        if let Some(parting) = parted(node, facts, &state, &mut disowned).await {
            node.parted.send_replace(Some(parting));
            return std::future::pending().await;
        }
        // Forgotten while its own log still reached it, it is let in like any other.
        if let (None, Some(lattice)) = (known, state.lattice_id()) {
            ask_again(node, facts, lattice, given).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Says once that the lattice has come to have other timings than this node was given. It has them all the same.
fn warn_of_timings(state: &State, given: &GivenTimings, told: &mut Option<OtherTimings>) {
    let other = state.check_timings(given).err();
    if let Some(why) = other.as_ref().filter(|_| other != *told) {
        tracing::warn!("this node has the lattice's timings, and will not start again with its own: {why}");
    }
    *told = other;
}

/// Whether this node is none of its lattice's any more, by what members say; that it was forgotten they must say twice.
async fn parted(node: &Node, facts: &NodeFacts, state: &State, disowned: &mut bool) -> Option<Parting> {
    if let Some(parting) = rise(node, facts).await {
        return Some(parting);
    }
    let before = *disowned;
    *disowned = is_disowned(node, facts, state, before).await;
    (before && *disowned).then_some(Parting::Forgotten)
}

/// Goes on in a later incarnation of the lattice, if somebody spoke of one and members say so. If it cannot: why.
async fn rise(node: &Node, facts: &NodeFacts) -> Option<Parting> {
    node.control.seal().take_risen()?;
    let answered = match Asking::new(facts, &node.control).await {
        Ok(mut asking) => asking.incarnations().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    // In this order, and only now: this node may have gone on since it heard of it, and its state shows what it applied.
    let applied = node.raft.applied_point();
    let state = node.raft.state().borrow().clone();
    let (incarnation, becomes) = risen(node.id, &state, applied, &answered)?;
    if becomes.is_ok() {
        tracing::warn!(number = incarnation.number, "the lattice was recovered, and this node goes on in it");
        node.raft.rise(incarnation.number);
    }
    becomes.err()
}

/// Whether members say that the lattice has forgotten this node. They are asked if one said so, or all did the last time.
async fn is_disowned(node: &Node, facts: &NodeFacts, state: &State, again: bool) -> bool {
    if node.control.seal().take_disowned().is_none() && !again {
        return false;
    }
    let answered = match Asking::new(facts, &node.control).await {
        Ok(mut asking) => asking.who(|_| false).await,
        Err(why) => Err(why),
    };
    answered.is_ok_and(|answered| forgotten::is_forgotten(node.id, state, &node.raft.members(), &answered))
}

async fn ask_again(node: &Node, facts: &NodeFacts, lattice: LatticeId, given: &GivenTimings) {
    let token = match &node.join_token {
        Some(text) => Some(token(lattice, text).await),
        None => None,
    };
    let asked = match Asking::new(facts, &node.control).await {
        Ok(mut asking) => asking.admit(lattice, token.as_ref(), given).await,
        Err(why) => Err(why),
    };
    match asked {
        Ok(Admission::Refused(why)) => {
            tracing::error!("lattice {} does not let this node in again: {why}", node.lattice)
        }
        Ok(Admission::Admitted(..) | Admission::Unanswered) => {}
        Err(why) => tracing::debug!(%why, "asking to be let in again"),
    }
}

/// Learns who else is a member, if one spoke that this node does not know: while it was away, those it knows may have
/// let others in, and one of these may lead now. Only members that this node knows are believed.
async fn be_introduced(node: &Node, facts: &NodeFacts, state: &State) {
    let Some(unknown) = node.control.seal().take_unknown() else { return };
    let answered = match Asking::new(facts, &node.control).await {
        Ok(mut asking) => asking.who(|_| false).await,
        Err(why) => Err(why),
    };
    let known = |(by, _): &Answered| state.node(by.from).is_some_and(|known| known.facts.key == by.key);
    let vouched = answered.unwrap_or_default().into_iter().filter(known);
    for (other, key) in vouched.flat_map(|(_, answer)| answer.here.members).take(LATTICES_MAX * MEMBERS_MAX) {
        node.control.seal().introduce(other, key);
    }
    tracing::debug!(node = %unknown, "a node spoke that is not known here; members were asked who is one");
}

/// What is remembered of those who ask. Anybody may, who reaches the bus.
#[derive(Default)]
struct Door {
    challenges: Challenges,
    /// Of lines about questions that are none.
    unclear: Seldom,
    /// Of lines about nodes that are not admitted.
    refused: Seldom,
}

async fn answer(node: &Node) {
    let subject = subject::join(&node.lattice);
    let mut door = Door::default();
    loop {
        match node.control.bus().subscribe(&subject, None).await {
            Ok(mut questions) => {
                while let Some(question) = questions.next().await {
                    let asked = presented(&question.subject, &question.payload).map_err(|why| why.to_string());
                    let asked = asked.and_then(|by| Ok((frame::decode(&by.body).map_err(|why| why.to_string())?, by)));
                    match asked {
                        Ok((question, by)) => reply(node, &mut door, question, &by).await,
                        Err(why) => {
                            if let Some(left_out) = door.unclear.due(std::time::Instant::now()) {
                                tracing::warn!(left_out, "a question on {subject} is not understood: {why}");
                            }
                        }
                    }
                }
            }
            Err(why) => tracing::warn!("not listening on {subject}: {why}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Answers one question, if it is for this node to answer.
async fn reply(node: &Node, door: &mut Door, question: Question, by: &Presented) {
    let leads = node.raft.leadership().borrow().me;
    let (echo, said) = match question {
        Question::Who(nonce) => {
            let now = std::time::Instant::now();
            (nonce, Said::Present(leads.then(|| door.challenges.keep(by.from, rand::random(), now)).flatten()))
        }
        Question::Incarnation(nonce) => (nonce, Said::Incarnation(*node.raft.state().borrow().incarnation())),
        Question::Admit { facts, lattice, challenge, proof } => {
            if !leads || !door.challenges.take(by.from, challenge, std::time::Instant::now()) {
                return;
            }
            match admit(node, *facts, (lattice, challenge), proof.as_ref(), by, &mut door.refused).await {
                Ok(()) => match node.raft.state().borrow().incarnation().number {
                    0 => (challenge, Said::Admitted),
                    number => (challenge, Said::AdmittedTo(number)),
                },
                Err(Some(why)) => (challenge, Said::Refused(why)),
                // It asks again.
                Err(None) => return,
            }
        }
    };
    let state = node.raft.state().borrow().clone();
    let Some((lattice, trust)) = state.lattice_id().zip(state.trust()) else { return };
    let is_member = said.is_admission() || state.node(by.from).is_some_and(|known| known.facts.key == by.key);
    let members = if is_member { members(node, &state) } else { Vec::new() };
    let here = Here { lattice, echo, said, members };
    let seal = node.control.seal();
    let answer = Answer::new(here, trust.token.as_ref(), by.from, (seal.node(), seal.key()));
    let to = subject::joining(&node.lattice, by.from);
    let answer = seal.present(&to, &frame::encode(&answer));
    if let Err(why) = node.control.bus().publish(&to, &[], answer.into()).await {
        tracing::warn!("a question of node {} was not answered: {why}", by.from);
    }
}

/// Who belongs to the log, with their keys.
fn members(node: &Node, state: &State) -> Vec<(NodeId, NodeKey)> {
    let members = node.raft.members();
    let ids = members.voters.into_keys().chain(members.learners.into_keys());
    ids.filter_map(|id| Some((id, state.node(id)?.facts.key))).collect()
}

/// Records a node that may join. Whether it then listens to the log or follows from outside is decided
/// by `placement::Membership`.
///
/// # Errors
/// Why not; `None`: it could not be recorded just now.
async fn admit(
    node: &Node,
    mut facts: NodeFacts,
    (wanted, challenge): (LatticeId, Nonce),
    proof: Option<&trellis_trust::Proof>,
    by: &Presented,
    refused: &mut Seldom,
) -> Result<(), Option<String>> {
    let state = node.raft.state().borrow().clone();
    let (ours, trust) = state.lattice_id().zip(state.trust()).ok_or(None)?;
    if wanted != ours {
        return Err(Some(format!("this is the lattice with id {ours}, not {wanted}")));
    }
    if (facts.id, facts.key) != (by.from, by.key) {
        return Err(Some("it presents itself with another id or key than it wants to be known by".into()));
    }
    if state.node(facts.id).is_none() {
        let admits = trust.admits(ours, &challenge, (facts.id, facts.key), proof);
        admits.map_err(|why| {
            if let Some(left_out) = refused.due(std::time::Instant::now()) {
                let (node, key, name) = (facts.id, facts.key, &facts.name);
                tracing::warn!(%node, %key, name, left_out, "a node is not admitted: {why}");
            }
            Some(why.to_string())
        })?;
    }
    state.check_newcomer(&facts).map_err(|why| Some(why.to_string()))?;
    state.check_timings(&facts.take_timings()).map_err(|why| Some(why.to_string()))?;
    let (id, name) = (facts.id, facts.name.clone());
    match node.raft.propose(proposal::entry(Command::Join(facts))).await {
        Ok(Applied::Refused(why)) => Err(Some(why.to_string())),
        Ok(_) => {
            tracing::info!(node = %id, name, "admitted a node");
            Ok(())
        }
        Err(why) => {
            tracing::warn!(node = %id, "a node is not admitted yet: {why}");
            Err(None)
        }
    }
}

/// This machine's name, or `node` where it tells none.
pub(crate) fn hostname() -> String {
    let known = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    known.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "node".into())
}

/// The labels that each node gives itself. Those that it is started with, or that are set later, lie over them.
const AUTOMATIC_LABELS: [&str; 8] =
    ["os", "arch", "hostname", "cpu", "memory", "hostcore.os", "hostcore.arch", "hostcore.osfamily"];

/// Whether each node gives itself this label.
pub fn is_automatic_label(key: &str) -> bool {
    AUTOMATIC_LABELS.contains(&key)
}

/// What the lattice is told of this node.
pub(crate) fn facts(options: &Options, id: NodeId, key: NodeKey) -> NodeFacts {
    let name = hostname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = format!("{}MiB", options.sandbox_memory_bytes / (1024 * 1024));
    let (os, arch, family) = (std::env::consts::OS, std::env::consts::ARCH, std::env::consts::FAMILY);
    let values = [os, arch, &name, &cores.to_string(), &memory, os, arch, family];
    let mut labels: BTreeMap<String, String> =
        AUTOMATIC_LABELS.iter().zip(values).map(|(key, value)| ((*key).into(), value.into())).collect();
    labels.extend(options.labels.clone());
    NodeFacts::announce_level(&mut labels);
    NodeFacts {
        id,
        name,
        labels,
        version: env!("CARGO_PKG_VERSION").into(),
        capacity: Capacity { permits: options.sandboxes_max, memory_bytes: options.sandbox_memory_bytes },
        edge: options.edge,
        key,
    }
}
