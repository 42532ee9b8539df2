//! A node's seal. Frames in, words and reasons out; what it remembers of other nodes are their starts and counts.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use trellis_wire::frame::{self, FrameError};
use trellis_wire::{LatticeId, LatticeSecret, NodeId, NodeKey};
use zeroize::Zeroizing;

use crate::head::Head;
use crate::secret::signed_by;
use crate::window::Window;
use crate::{Distrust, NodeSecret, Refused, Start};

/// The bytes of a signature.
const SIGNATURE: usize = 64;
/// The bytes of a tag.
const TAG: usize = 16;
/// How many nodes may be introduced that the state does not name yet.
const INTRODUCED_MAX: usize = 256;

/// Who is who, by the state of the lattice.
pub trait Book: Send + Sync {
    /// The lattice, once it is known.
    fn lattice(&self) -> Option<LatticeId>;
    /// The key of a member.
    fn key(&self, node: NodeId) -> Option<NodeKey>;
    /// What all members share.
    fn secret(&self) -> Option<LatticeSecret>;
    /// How many times the lattice was recovered without a quorum.
    fn incarnation(&self) -> u32;
}

/// A node's seal. One for each start of its process.
pub struct Seal {
    me: NodeId,
    secret: NodeSecret,
    start: Start,
    book: RwLock<Option<Arc<dyn Book>>>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Keys that another member vouched for, of nodes that the book does not name yet.
    introduced: HashMap<NodeId, NodeKey>,
    /// As many as the lattice has had members since this start.
    peers: HashMap<NodeId, Peer>,
    /// How many words this node has announced.
    announced: u64,
    /// Who sealed a word and is in no book.
    unknown: Option<NodeId>,
    /// Who said that this node is no member, and is one itself.
    disowned_by: Option<NodeId>,
    /// Who names an incarnation of the lattice that is later than what the book knows.
    risen: Option<NodeId>,
    /// Whether a later start of this node itself was proven.
    is_superseded: bool,
}

/// What is remembered of another node.
struct Peer {
    key: NodeKey,
    shared: Zeroizing<[u8; 32]>,
    /// The newest start that was proven. All below is of it.
    start: Option<Start>,
    /// By subject: the key, and how many words went out.
    out: HashMap<Box<str>, (Lane, u64)>,
    /// By subject: the key, and which words came in.
    ins: HashMap<Box<str>, (Lane, Window)>,
    /// How many announcements the start had made when it was greeted. `None`: it was not.
    greeted: Option<u64>,
    /// By subject: the number of the last announcement.
    heard: HashMap<Box<str>, u64>,
}

/// The keys of one subject from one start of a node to one start of another: for words, and for their answers.
#[derive(Clone)]
struct Lane(Arc<(LessSafeKey, LessSafeKey)>);

/// A word that was sealed, so that its answer is known.
pub struct Asked {
    to: NodeId,
    key: NodeKey,
    subject: Box<str>,
    /// In which lattice, and for which start.
    lattice: LatticeId,
    their: Start,
    lane: Lane,
    count: u64,
}

/// The right to answer a word, once.
pub struct Ticket {
    lane: Lane,
    count: u64,
}

/// A word that was opened.
pub struct Opened {
    /// Who said it.
    pub from: NodeId,
    /// What.
    pub body: Vec<u8>,
    /// To answer it with, where it was said to this node alone.
    pub ticket: Option<Ticket>,
}

/// A word of one who may be no member yet, signed with the key that it presents.
#[derive(Debug, PartialEq, Eq)]
pub struct Presented {
    /// Who it says it is.
    pub from: NodeId,
    /// The key with which it signed.
    pub key: NodeKey,
    /// What it says.
    pub body: Vec<u8>,
}

impl Seal {
    /// The seal of a node in this start of its process.
    pub fn new(me: NodeId, secret: NodeSecret, start: Start) -> Self {
        Self { me, secret, start, book: RwLock::default(), table: Mutex::default() }
    }

    /// The node.
    pub const fn node(&self) -> NodeId {
        self.me
    }

    /// Its public key.
    pub fn key(&self) -> NodeKey {
        self.secret.key()
    }

    /// Reads from this book from now on.
    pub fn read(&self, book: Arc<dyn Book>) {
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = Some(book);
    }

    /// Another member vouches for this key. It counts for as long as the book does not name the node.
    pub fn introduce(&self, node: NodeId, key: NodeKey) {
        let mut table = self.lock();
        if table.introduced.len() < INTRODUCED_MAX {
            table.introduced.insert(node, key);
        }
    }

    /// Who sealed a word for this node and is not known; asking tells it once.
    pub fn take_unknown(&self) -> Option<NodeId> {
        self.lock().unknown.take()
    }

    /// Which member answered this node that it knows no such member; asking tells it once.
    pub fn take_disowned(&self) -> Option<NodeId> {
        self.lock().disowned_by.take()
    }

    /// Who speaks of a later incarnation of the lattice than this node knows; asking tells it once. It may be a stranger's
    /// word: reason to ask members, and no more.
    pub fn take_risen(&self) -> Option<NodeId> {
        self.lock().risen.take()
    }

    /// Whether there is a later start of this node than this one: another process has its id and its key, and was met since.
    pub fn is_superseded(&self) -> bool {
        self.lock().is_superseded
    }

    /// Seals a word for one node.
    ///
    /// # Errors
    /// [`Distrust::NotMet`]: that node has to be greeted first.
    pub fn seal(&self, to: NodeId, subject: &str, body: &[u8]) -> Result<(Vec<u8>, Asked), Distrust> {
        let (lattice, key) = self.known(to)?;
        let (lane, count, their) = {
            let mut table = self.lock();
            let peer = table.peer(&self.secret, to, key)?;
            let their = peer.start.ok_or(Distrust::NotMet(to))?;
            if !peer.out.contains_key(subject) {
                let lane = Lane::new(&peer.shared, (self.me, self.start), (to, their), subject);
                peer.out.insert(subject.into(), (lane, 0));
            }
            let (lane, count) = peer.out.get_mut(subject).expect("it was just put there");
            *count += 1;
            (lane.clone(), *count, their)
        };
        let head = Head::Sealed { lattice, from: self.me, start: self.start, to: their, count };
        let frame = closed(&lane.0.0, count, &head, body);
        Ok((frame, Asked { to, key, subject: subject.into(), lattice, their, lane, count }))
    }

    /// Opens a word that came on `subject`: one that was sealed for this node, or one that was announced.
    ///
    /// # Errors
    /// Whatever is wrong with it. [`Distrust::NotMet`]: an announcement of a start that has to be greeted first.
    pub fn open(&self, subject: &str, payload: &[u8]) -> Result<Opened, Distrust> {
        let (head, rest) = frame::decode_head::<Head>(payload)?;
        let clear = &payload[..payload.len() - rest.len()];
        match head {
            Head::Sealed { lattice, from, start, to, count } => {
                let key = self.member(lattice, from)?;
                if to != self.start {
                    self.look_for_twin(subject, (from, key, start), to, (count, clear, rest));
                    return Err(Distrust::OtherStart(from));
                }
                self.open_sealed(subject, (from, key, start), count, clear, rest)
            }
            Head::Announced { lattice, from, start, count } => {
                let key = if from == self.me { self.key() } else { self.member(lattice, from)? };
                self.open_announced(subject, (from, key, start), count, clear, rest)
            }
            _ => Err(Distrust::Malformed("neither a sealed word nor an announcement".into())),
        }
    }

    /// Answers a word.
    pub fn answer(&self, ticket: Ticket, body: &[u8]) -> Vec<u8> {
        closed(&ticket.lane.0.1, ticket.count, &Head::Answer, body)
    }

    /// Opens the answer to a word.
    ///
    /// # Errors
    /// It is none. [`Distrust::Refused`] with [`Refused::OtherStart`]: the word may be sealed again, for the start that
    /// is known now.
    pub fn open_answer(&self, asked: &Asked, payload: &[u8]) -> Result<Vec<u8>, Distrust> {
        let (head, rest) = frame::decode_head::<Head>(payload)?;
        let clear = &payload[..payload.len() - rest.len()];
        match head {
            Head::Answer => opened(&asked.lane.0.1, asked.count, clear, rest).ok_or(Distrust::Forged(asked.to)),
            Head::Notice { start, why, .. } => {
                let bound = notice(&asked.subject, self.me, self.start, asked.count, clear);
                // A copy of the word with another head may have been what that node saw.
                let is_so = match why {
                    Refused::OtherLattice(theirs) => theirs != asked.lattice,
                    Refused::OtherStart => start.number > asked.their.number,
                    Refused::Unknown => true,
                };
                if !is_so || !signed_by(asked.key.bytes(), &bound, rest) {
                    return Err(Distrust::Forged(asked.to));
                }
                match why {
                    Refused::OtherLattice(theirs) => drop(self.of_other(theirs, asked.to)),
                    Refused::OtherStart => self.lock().peer(&self.secret, asked.to, asked.key)?.renew(start),
                    Refused::Unknown => self.lock().disowned_by = Some(asked.to),
                }
                Err(Distrust::Refused { by: asked.to, why })
            }
            _ => Err(Distrust::Malformed("no answer".into())),
        }
    }

    /// What to answer a word with that was not taken; `None`: nothing.
    pub fn notice(&self, subject: &str, payload: &[u8], why: &Distrust) -> Option<Vec<u8>> {
        let lattice = self.lattice()?;
        let why = Refused::of(why, Some(lattice))?;
        let Ok((Head::Sealed { from, start: asker, count, .. }, _)) = frame::decode_head(payload) else { return None };
        let mut told = frame::encode(&Head::Notice { lattice, start: self.start, why });
        let signature = self.secret.sign(&notice(subject, from, asker, count, &told));
        told.extend(signature);
        Some(told)
    }

    /// Signs a word for all members, hidden from everyone else.
    ///
    /// # Errors
    /// [`Distrust::NoLattice`].
    pub fn announce(&self, subject: &str, body: &[u8]) -> Result<Vec<u8>, Distrust> {
        let book = self.book().ok_or(Distrust::NoLattice)?;
        let (lattice, secret) = named(&*book).zip(book.secret()).ok_or(Distrust::NoLattice)?;
        let count = {
            let mut table = self.lock();
            table.announced += 1;
            table.announced
        };
        let key = veil(&secret, self.me, self.start);
        let head = Head::Announced { lattice, from: self.me, start: self.start, count };
        let mut frame = closed(&key, count, &head, body);
        let signature = self.secret.sign(&labelled("announced", subject, &frame));
        frame.extend(signature);
        Ok(frame)
    }

    /// Asks a node which start it is in.
    pub fn greeting(nonce: [u8; 16]) -> Vec<u8> {
        frame::encode(&Head::Greeting { nonce })
    }

    /// Answers a greeting.
    ///
    /// # Errors
    /// It is none, or this node belongs to no lattice yet.
    pub fn greeted(&self, subject: &str, payload: &[u8]) -> Result<Vec<u8>, Distrust> {
        let Head::Greeting { nonce } = frame::decode(payload)? else {
            return Err(Distrust::Malformed("no greeting".into()));
        };
        let (lattice, announced) = (self.lattice().ok_or(Distrust::NoLattice)?, self.lock().announced);
        let mut told = frame::encode(&Head::Greeted { lattice, start: self.start, announced, nonce });
        let signature = self.secret.sign(&labelled("greeted", subject, &told));
        told.extend(signature);
        Ok(told)
    }

    /// Takes the answer to a greeting of `node` with this nonce.
    ///
    /// # Errors
    /// It is none of that node's.
    pub fn meet(&self, node: NodeId, subject: &str, nonce: [u8; 16], payload: &[u8]) -> Result<(), Distrust> {
        let (ours, key) = self.known(node)?;
        let (head, signature) = frame::decode_head::<Head>(payload)?;
        let Head::Greeted { lattice, start, announced, nonce: echo } = head else {
            return Err(Distrust::Malformed("no answer to a greeting".into()));
        };
        let told = &payload[..payload.len() - signature.len()];
        if !signed_by(key.bytes(), &labelled("greeted", subject, told), signature) || echo != nonce {
            return Err(Distrust::Forged(node));
        }
        if lattice != ours {
            return Err(self.of_other(lattice, node));
        }
        let mut table = self.lock();
        let peer = table.peer(&self.secret, node, key)?;
        peer.renew(start);
        if peer.start != Some(start) {
            return Err(Distrust::OtherStart(node));
        }
        peer.greeted = Some(peer.greeted.unwrap_or_default().max(announced));
        Ok(())
    }

    /// Signs a word as one who presents its own key.
    pub fn present(&self, subject: &str, body: &[u8]) -> Vec<u8> {
        let mut frame = frame::encode(&Head::Presented { from: self.me, key: self.key() });
        frame.extend(body);
        let signature = self.secret.sign(&labelled("presented", subject, &frame));
        frame.extend(signature);
        frame
    }

    /// The lattice that the book names, as frames do.
    fn lattice(&self) -> Option<LatticeId> {
        named(&*self.book()?)
    }

    /// Why a word of a lattice is not taken that frames name otherwise.
    fn of_other(&self, theirs: LatticeId, from: NodeId) -> Distrust {
        let Some(book) = self.book() else { return Distrust::NoLattice };
        let Some(number) = book.lattice().and_then(|ours| ours.incarnation(theirs)) else {
            return Distrust::OtherLattice { theirs, from };
        };
        if number > book.incarnation() {
            self.lock().risen = Some(from);
        }
        Distrust::OtherIncarnation { theirs: number, from }
    }

    fn book(&self) -> Option<Arc<dyn Book>> {
        self.book.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This node's lattice, and the key of a node in it.
    fn known(&self, node: NodeId) -> Result<(LatticeId, NodeKey), Distrust> {
        // The book is never asked with the table locked: it may have a lock of its own.
        let book = self.book().ok_or(Distrust::NoLattice)?;
        let lattice = named(&*book).ok_or(Distrust::NoLattice)?;
        let key = book.key(node);
        let mut table = self.lock();
        match key {
            Some(key) => {
                table.introduced.remove(&node);
                Ok((lattice, key))
            }
            None => match table.introduced.get(&node) {
                Some(key) => Ok((lattice, *key)),
                None => Err(Distrust::Unknown(node)),
            },
        }
    }

    /// The key of a sender that says it is of `theirs`.
    fn member(&self, theirs: LatticeId, from: NodeId) -> Result<NodeKey, Distrust> {
        if self.lattice().ok_or(Distrust::NoLattice)? != theirs {
            return Err(self.of_other(theirs, from));
        }
        let known = self.known(from);
        if matches!(known, Err(Distrust::Unknown(_))) {
            self.lock().unknown = Some(from);
        }
        known.map(|(_, key)| key)
    }

    fn open_sealed(
        &self,
        subject: &str,
        (from, key, start): (NodeId, NodeKey, Start),
        count: u64,
        clear: &[u8],
        rest: &[u8],
    ) -> Result<Opened, Distrust> {
        let lane = {
            let mut table = self.lock();
            let peer = table.peer(&self.secret, from, key)?;
            if !peer.is_new(start) && peer.start != Some(start) {
                return Err(Distrust::OtherStart(from));
            }
            let lane =
                (peer.start == Some(start)).then(|| peer.ins.get(subject).map(|(lane, _)| lane.clone())).flatten();
            lane.unwrap_or_else(|| Lane::new(&peer.shared, (from, start), (self.me, self.start), subject))
        };
        let body = opened(&lane.0.0, count, clear, rest).ok_or(Distrust::Forged(from))?;
        // From here on it is that node's own word.
        let mut table = self.lock();
        let peer = table.peer(&self.secret, from, key)?;
        peer.renew(start);
        if peer.start != Some(start) {
            return Err(Distrust::OtherStart(from));
        }
        let (_, window) = peer.ins.entry(subject.into()).or_insert_with(|| (lane.clone(), Window::default()));
        if !window.take(count) {
            return Err(Distrust::Replayed(from));
        }
        Ok(Opened { from, body, ticket: Some(Ticket { lane, count }) })
    }

    /// Who seals a word for a later start of this node has met that one. It may be a stranger's word, so it is opened: this node
    /// has the keys of all its starts.
    fn look_for_twin(
        &self,
        subject: &str,
        (from, key, start): (NodeId, NodeKey, Start),
        to: Start,
        (count, clear, rest): (u64, &[u8], &[u8]),
    ) {
        if !to.is_after(&self.start) {
            return;
        }
        let mut table = self.lock();
        let Ok(peer) = table.peer(&self.secret, from, key) else { return };
        let lane = Lane::new(&peer.shared, (from, start), (self.me, to), subject);
        table.is_superseded |= opened(&lane.0.0, count, clear, rest).is_some();
    }

    fn open_announced(
        &self,
        subject: &str,
        (from, key, start): (NodeId, NodeKey, Start),
        count: u64,
        clear: &[u8],
        rest: &[u8],
    ) -> Result<Opened, Distrust> {
        let (hidden, signature) = rest.split_at_checked(rest.len().saturating_sub(SIGNATURE)).unwrap_or((&[], rest));
        let frame = [clear, hidden].concat();
        if !signed_by(key.bytes(), &labelled("announced", subject, &frame), signature) {
            return Err(Distrust::Forged(from));
        }
        let secret = self.book().and_then(|book| book.secret()).ok_or(Distrust::NoLattice)?;
        let body = opened(&veil(&secret, from, start), count, clear, hidden).ok_or(Distrust::Forged(from))?;
        let mut table = self.lock();
        let peer = table.peer(&self.secret, from, key)?;
        if from == self.me {
            // What this start itself said needs no greeting.
            peer.renew(self.start);
            peer.greeted = Some(0);
            if start.is_after(&self.start) {
                table.is_superseded = true;
                return Err(Distrust::OtherStart(from));
            }
        }
        if peer.is_new(start) {
            return Err(Distrust::NotMet(from));
        }
        if peer.start != Some(start) {
            return Err(Distrust::OtherStart(from));
        }
        let floor = peer.greeted.ok_or(Distrust::NotMet(from))?;
        let heard = peer.heard.entry(subject.into()).or_insert(floor);
        if count <= *heard {
            return Err(Distrust::Replayed(from));
        }
        *heard = count;
        Ok(Opened { from, body, ticket: None })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal of node {}", self.me)
    }
}

impl Table {
    /// What is remembered of a node, from nothing where its key is another one than before.
    fn peer(&mut self, secret: &NodeSecret, node: NodeId, key: NodeKey) -> Result<&mut Peer, Distrust> {
        if self.peers.get(&node).is_none_or(|peer| peer.key != key) {
            let shared = secret.agree(key).ok_or(Distrust::Unknown(node))?;
            self.peers.insert(node, Peer::new(key, shared));
        }
        Ok(self.peers.get_mut(&node).expect("it was just put there"))
    }
}

impl Peer {
    fn new(key: NodeKey, shared: Zeroizing<[u8; 32]>) -> Self {
        let (out, ins, heard) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { key, shared, start: None, out, ins, greeted: None, heard }
    }

    /// Whether this start is later than what is known.
    fn is_new(&self, start: Start) -> bool {
        self.start.is_none_or(|known| start.number > known.number)
    }

    /// A start was proven. A later one puts an end to what was of the one before.
    fn renew(&mut self, start: Start) {
        if self.is_new(start) {
            *self = Self { start: Some(start), ..Self::new(self.key, self.shared.clone()) };
        }
    }
}

impl Lane {
    fn new(shared: &[u8; 32], from: (NodeId, Start), to: (NodeId, Start), subject: &str) -> Self {
        let pseudorandom = Salt::new(HKDF_SHA256, b"trellis sealed 1").extract(shared);
        let key = |direction: &[u8]| {
            let ends = [from, to].map(|(node, start)| (node.uuid().into_bytes(), start.bytes()));
            let [(from, its), (to, theirs)] = &ends;
            let info = [direction, from.as_slice(), to, its, theirs, subject.as_bytes()];
            let made = pseudorandom.expand(&info, &CHACHA20_POLY1305);
            LessSafeKey::new(UnboundKey::from(made.expect("a key is shorter than HKDF can give")))
        };
        Self(Arc::new((key(b"word"), key(b"answ"))))
    }
}

/// The lattice that a book names, as frames do.
fn named(book: &dyn Book) -> Option<LatticeId> {
    book.lattice().map(|lattice| lattice.of_incarnation(book.incarnation()))
}

/// The key that hides what one start of a node announces.
fn veil(secret: &LatticeSecret, from: NodeId, start: Start) -> LessSafeKey {
    let pseudorandom = Salt::new(HKDF_SHA256, b"trellis announced 1").extract(secret.bytes());
    let (from, start) = (from.uuid().into_bytes(), start.bytes());
    let info = [from.as_slice(), &start];
    let made = pseudorandom.expand(&info, &CHACHA20_POLY1305);
    LessSafeKey::new(UnboundKey::from(made.expect("a key is shorter than HKDF can give")))
}

/// Each number is used once with each key.
fn nonce(count: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Head, hidden body, tag.
fn closed(key: &LessSafeKey, count: u64, head: &Head, body: &[u8]) -> Vec<u8> {
    let clear = frame::encode(head);
    let mut frame = Vec::with_capacity(clear.len() + body.len() + TAG + SIGNATURE);
    frame.extend(&clear);
    frame.extend(body);
    let hidden = &mut frame[clear.len()..];
    let tag = key.seal_in_place_separate_tag(nonce(count), Aad::from(&clear), hidden);
    frame.extend(tag.expect("no body is as long as the cipher's limit").as_ref());
    frame
}

/// The body, if head and body are as they were closed.
fn opened(key: &LessSafeKey, count: u64, clear: &[u8], hidden: &[u8]) -> Option<Vec<u8>> {
    let mut body = hidden.to_vec();
    let length = key.open_in_place(nonce(count), Aad::from(clear), &mut body).ok()?.len();
    body.truncate(length);
    Some(body)
}

/// What is signed: a label, so that no signature serves two ends, the subject, and the bytes.
fn labelled(label: &str, subject: &str, bytes: &[u8]) -> Vec<u8> {
    [b"trellis ", label.as_bytes(), b"\0", subject.as_bytes(), b"\0", bytes].concat()
}

/// What is signed of a notice: it is bound to the word that was not taken.
fn notice(subject: &str, asker: NodeId, start: Start, count: u64, told: &[u8]) -> Vec<u8> {
    let bound = [asker.uuid().as_bytes().as_slice(), &start.bytes(), &count.to_le_bytes(), told].concat();
    labelled("notice", subject, &bound)
}

/// Reads a word of one who presents its own key.
///
/// # Errors
/// It is none, or was not signed with that key.
pub fn presented(subject: &str, payload: &[u8]) -> Result<Presented, Distrust> {
    let (head, rest) = frame::decode_head::<Head>(payload)?;
    let Head::Presented { from, key } = head else { return Err(Distrust::Malformed("nobody presents itself".into())) };
    let short = || Distrust::from(FrameError::Empty);
    let (body, signature) = rest.split_at_checked(rest.len().saturating_sub(SIGNATURE)).ok_or_else(short)?;
    let signed = &payload[..payload.len() - signature.len()];
    if !signed_by(key.bytes(), &labelled("presented", subject, signed), signature) {
        return Err(Distrust::Forged(from));
    }
    Ok(Presented { from, key, body: body.to_vec() })
}

#[cfg(test)]
mod tests;
